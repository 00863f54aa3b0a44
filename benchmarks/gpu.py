"""Speed of a GPU relative to a CPU: the same computations on the default device of JAX, run once on each device.

- gradient: one value and gradient of the log density of N supernovae (flat wCDM), inside one compiled loop, in double
  and in single precision;
- chains: `hbm_jax.sample` on the five systems of the suite with 4 to 1024 chains: effective draws per second of the
  slowest parameter of the population;
- ensemble: `hbm_jax.ChEES` with 1024 chains, and NUTS with four, until their verdicts: the seconds of each without
  compilation, and of the call;
- fits: `hbm_jax.fit_each` over many supernova sets of 60 and over many single X-ray spectra: fits per second. 200 of
  them differ; larger numbers repeat these.

    JAX_PLATFORMS=cpu python benchmarks/gpu.py --output cpu.json
    JAX_PLATFORMS=cuda python benchmarks/gpu.py --output gpu.json
    python benchmarks/gpu.py --compare cpu.json gpu.json

prints the table of ratios, and `benchmarks/results/gpu.txt` is the committed one.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
import warnings
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "suite"))
SYSTEMS = ("supernovae", "relation", "golenetskii", "normal", "afterglows")
DIFFERENT = 200
HELD = {
    "photon_index_mean": 2.0, "photon_index_std": 0.5, "log10_flux_mean": -11.3, "log10_flux_std": 1.0,
    "log10_nh_mean": -0.5, "log10_nh_std": 1.0,
}  # fmt: skip


def supernovae(num):
    """Return N supernovae: those of JLA, repeated."""
    from hbm_jax.data import load_jla

    sne = load_jla()
    return sne.subset(np.arange(num) % len(sne))


def gradient(num, dtype, steps):
    """Return the times of one value and gradient, and of compilation [s]."""
    import jax
    import jax.numpy as jnp

    import hbm_jax as hbm
    from hbm_jax.inference.sampler.target import build_target

    with jax.enable_x64(dtype == "float64"):
        target = build_target(hbm.models.Supernova(cosmology="wcdm"), (supernovae(num),), jax.random.key(0))
        slope = jax.value_and_grad(target.potential)

        def many(flat):
            return jax.lax.fori_loop(0, steps, lambda _, f: f - 1e-9 * jnp.tanh(slope(f)[1]), flat)

        flat = jnp.asarray(target.start)
        began = time.perf_counter()
        run = jax.jit(many).lower(flat).compile()
        compiled = time.perf_counter() - began
        jax.block_until_ready(run(flat))
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            jax.block_until_ready(run(flat))
            seconds.append((time.perf_counter() - began) / steps)
    return statistics.median(seconds), compiled


def system_of(name):
    """Return model, data and names of the population parameters of a system of the suite."""
    system = import_module(f"systems.{name}")
    return *system.ours(system.problem(**system.SIZES), next(iter(system.OURS.values()))), system.NAMES


def chains(model, data, names, num, draws):
    """Return the times of sampling and in total [s], and the smallest ESS."""
    import hbm_jax as hbm

    began = time.perf_counter()
    fit = hbm.sample(
        model, data, seed=1, num_chains=num, num_samples=draws, sampler=hbm.HMC(trajectory_length=1.5), progress=False
    )
    everything = time.perf_counter() - began
    table = fit.summary()
    rows = table[[any(label == name or label.startswith(f"{name}[") for name in names) for label in table.index]]
    return {
        "sampling": fit.timing["sampling"], "everything": everything, "usable": bool(fit.verdict.usable),
        "ess": float(min(rows["ess_bulk"].min(), rows["ess_tail"].min())),
    }  # fmt: skip


def until_verdict(model, data, num):
    """Return the times of warm-up and draws and in total [s] of ChEES, or of NUTS if there are four chains."""
    import hbm_jax as hbm

    sampler = hbm.NUTS() if num == 4 else hbm.ChEES()
    began = time.perf_counter()
    fit = hbm.sample(model, data, seed=1, num_chains=num, sampler=sampler, progress=False)
    everything = time.perf_counter() - began
    return {
        "drawing": fit.timing["warmup"] + fit.timing["sampling"], "start": fit.timing["start"],
        "everything": everything, "usable": bool(fit.verdict.usable), "draws": fit.posterior.sizes["draw"],
        "r_hat": fit.verdict.worst_r_hat[1], "ess": fit.verdict.smallest_ess[1], "reasons": list(fit.verdict.reasons),
    }  # fmt: skip


def supernova_sets():
    """Return the model, and simulated sets of 60 supernovae with one design."""
    import hbm_jax as hbm

    rng = np.random.default_rng(1)
    design = hbm.data.load_jla().subset(np.arange(0, 740, 12)[:60])
    root = np.linalg.cholesky(design.covariance)
    sets = []
    for _ in range(DIFFERENT):
        m_b, x1, c = np.stack([design.m_b, design.x1, design.c]) + np.einsum(
            "nij,nj->in", root, rng.normal(size=(60, 3))
        )
        sets.append((design.replace_observations(m_b, x1, c),))
    return hbm.models.Supernova(cosmology="lcdm"), sets


def spectra():
    """Return the model, and simulated single spectra of some hundred counts, bound to it."""
    from hbm_jax.data import AfterglowPopulation, Afterglows
    from hbm_jax.models import Afterglow
    from hbm_jax.spectra import SpectrumStack, group, noticed

    drawn = AfterglowPopulation(log10_flux=(-11.3, 0.3), exposure=3000.0, min_counts=20).draw(DIFFERENT, seed=5)
    masks = [noticed(s, (0.3, 10.0)) for s in drawn.spectra]
    grouped = [group(s, "optimal", noticed=m) for s, m in zip(drawn.spectra, masks, strict=True)]
    data = Afterglows.from_spectra(SpectrumStack.of(grouped, masks), z=drawn.columns["z"], nh_mw=drawn.columns["nh_mw"])
    model = Afterglow(priors=HELD)
    return model, [(one,) for one in model.prepare(data).each()]


def fits(model, different, num):
    """Return the times without compilation and of compilation [s], and the number of usable fits."""
    import hbm_jax as hbm

    data = [different[i % len(different)] for i in range(num)]
    found = hbm.fit_each(model, data, seed=1, progress=False)
    return {
        "seconds": found.cost["seconds"] - found.cost["compile_seconds"], "compile": found.cost["compile_seconds"],
        "usable": int(found.usable.sum()), "slots": found.cost["num_slots"],
    }  # fmt: skip


def measure(options):
    """Run all computations that fit into the time limit, and write each result as soon as it is there."""
    import jax

    import hbm_jax as hbm

    warnings.filterwarnings("ignore", message="Found chain dimension to be longer")
    deadline = time.perf_counter() + options.seconds
    if jax.config.jax_platforms == "cpu":
        hbm.use_every_core()
    device = jax.devices()[0]
    found = {
        "device": f"{device.device_kind} ({len(jax.devices())} device(s), {os.cpu_count()} cores)",
        "versions": {p: version(p) for p in ("jax", "jaxlib", "numpyro")} | {"python": platform.python_version()},
        "date": datetime.date.today().isoformat(), "gradient": {}, "chains": {}, "ensemble": {}, "fits": {},
    }  # fmt: skip

    def keep(section, name, work):
        if time.perf_counter() > deadline:
            return False
        try:
            found[section][name] = work()
        except Exception as error:  # such as too little memory: recorded, and the next computation is run
            found[section][name] = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        print(section, name, found[section][name], f"{deadline - time.perf_counter():.0f} s left", flush=True)
        options.output.write_text(json.dumps(found, indent=1))
        return True

    for num in (10, 100, 1000, 10_000, 100_000) if "gradient" in options.only else ():
        for dtype in ("float64", "float32"):
            steps = max(20, 20_000 // max(num // 10, 1)) if device.platform == "cpu" else 500
            keep("gradient", f"{num} {dtype}", lambda n=num, d=dtype, s=steps: gradient(n, d, min(s, 2000)))
    for name in options.systems if "chains" in options.only else ():
        with jax.enable_x64(True):
            system = system_of(name)
        for num in (4, 64, 1024):
            keep("chains", f"{name}, {num}", lambda s=system, n=num: chains(*s, n, max(20_000 // n, 100)))
    for name in options.systems if "ensemble" in options.only else ():
        with jax.enable_x64(True):
            model, data, _ = system_of(name)
        for num in (4, 1024):
            keep("ensemble", f"{name}, {num}", lambda m=model, d=data, n=num: until_verdict(m, d, n))
    for title, kind in (("supernova sets", supernova_sets), ("spectra", spectra)):
        if "fits" not in options.only:
            continue
        with jax.enable_x64(True):
            model, different = kind()
        for num in options.fits:
            keep("fits", f"{num} {title}", lambda m=model, d=different, n=num: fits(m, d, n))
            last = found["fits"].get(f"{num} {title}", {})
            if "seconds" not in last or 10 * last["seconds"] > min(options.longest, deadline - time.perf_counter()):
                break


def compare(paths) -> str:
    """Return the table of results of two devices."""
    a, b = (json.loads(path.read_text()) for path in paths)
    lines = [f"A: {a['device']}, {a['versions']}, {a['date']}", f"B: {b['device']}, {b['versions']}, {b['date']}"]
    head = f"{'':30s}{'A':>12s}{'B':>12s}{'B is faster by':>16s}"
    lines += ["", "one value and gradient, flat wCDM [us]", head]
    for name, (seconds, _) in ((k, v) for k, v in a["gradient"].items() if isinstance(v, list)):
        other = b["gradient"].get(name)
        if isinstance(other, list):
            lines.append(
                f"{name + ' supernovae':30s}{1e6 * seconds:12.1f}{1e6 * other[0]:12.1f}{seconds / other[0]:16.2f}"
            )
    lines += ["", "effective draws of the slowest parameter of the population a second of sampling", head]
    for name, one in a["chains"].items():
        both = one, b["chains"].get(name, {})
        rates = [x["ess"] / x["sampling"] if "ess" in x else np.nan for x in both]
        usable = "/".join({True: "usable", False: "not usable"}.get(x.get("usable"), "not run") for x in both)
        lines.append(f"{name + ' chains':30s}{rates[0]:12.0f}{rates[1]:12.0f}{rates[1] / rates[0]:16.2f}   {usable}")
    lines += ["", "warm-up and draws until the verdict [s]: NUTS with 4 chains, ChEES with 1024", head]
    for name in dict.fromkeys([*a.get("ensemble", {}), *b.get("ensemble", {})]):
        both = [found.get("ensemble", {}).get(name, {}) for found in (a, b)]
        seconds = [x.get("drawing", np.nan) for x in both]
        usable = "/".join({True: "usable", False: "not usable"}.get(x.get("usable"), "not run") for x in both)
        lines.append(
            f"{name + ' chains':30s}{seconds[0]:12.2f}{seconds[1]:12.2f}{seconds[0] / seconds[1]:16.2f}   {usable}"
        )
    lines += ["", "fit_each: fits a second, compiling not counted (usable fits beside)", head]
    for name in dict.fromkeys([*a["fits"], *b["fits"]]):
        num = int(name.split()[0])
        cells, rates = [], []
        for found in (a, b):
            one = found["fits"].get(name, {})
            rates.append(num / one["seconds"] if "seconds" in one else np.nan)
            cells.append(f"{rates[-1]:.1f}" if "seconds" in one else one.get("error", "not run")[:10])
        usable = "/".join(str(found["fits"].get(name, {}).get("usable", "-")) for found in (a, b))
        lines.append(f"{name:30s}{cells[0]:>12s}{cells[1]:>12s}{rates[1] / rates[0]:16.2f}   {usable}")
    return "\n".join(lines) + "\n"


def main():
    """Measure on this device, or compare two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file of the results, or text of the comparison")
    parser.add_argument("--seconds", type=float, default=1200.0, help="time limit for starting a computation")
    parser.add_argument("--longest", type=float, default=200.0, help="largest predicted time of a call [s]")
    parser.add_argument(
        "--only", nargs="+", default=["gradient", "chains", "ensemble", "fits"], help="parts to measure"
    )
    parser.add_argument("--systems", nargs="+", default=SYSTEMS, help="systems of the suite for the chains")
    parser.add_argument("--fits", type=int, nargs="+", default=[10**k for k in range(6)], help="numbers of fits")
    parser.add_argument("--compare", type=Path, nargs=2, metavar="FILE")
    options = parser.parse_args()
    if options.compare:
        text = compare(options.compare)
        print(text)
        if options.output:
            options.output.write_text(text)
        return
    options.output = options.output or Path("gpu.json")
    measure(options)


if __name__ == "__main__":
    main()
