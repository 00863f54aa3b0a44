"""Time of a gradient and memory as functions of the size of a population: fitted exponents and a figure.

- supernovae, 10 to 100 000 (flat wCDM, latents integrated out), and the same with the latents as parameters;
- afterglows, 10 to 1000 (host, Milky Way and WHIM; 2400 energies, 1024 channels), which share one response;
- latent dimension: the normal hierarchy with 10 to 100 000 groups, true values as parameters, non-centred;
- chains: 1 to 64 of JLA, seconds for each draw of each of them.

Every size is measured in a separate process; its largest memory includes that of Python, JAX and the compiler. A cost
that grows as N^p has exponent p. It is fitted to sizes of 1000 or more (100 for afterglows), where constant costs are
negligible. `benchmarks/results/scaling.txt` and `scaling.png` are the committed ones.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

SIZES = {
    "supernovae, marginal": (10, 100, 1000, 10_000, 100_000),
    "supernovae, sampled latents": (10, 100, 1000, 10_000, 100_000),
    "normal groups, sampled": (10, 100, 1000, 10_000, 100_000),
    "chains": (1, 4, 16, 64),
    "afterglows": (10, 30, 100, 300, 1000),
}
FITTED_FROM = {"afterglows": 100, "chains": 4}


def program_and_data(kind, num):
    """Return program and data of one size."""
    import hbm_jax as hbm

    if kind.startswith("supernovae"):
        sne = hbm.data.load_jla()
        latents = "marginal" if kind.endswith("marginal") else "noncentred"
        return hbm.models.Supernova(cosmology="wcdm", latents=latents), sne.subset(np.arange(num) % len(sne))
    if kind == "afterglows":
        from hbm_jax.data import AfterglowPopulation, Afterglows
        from hbm_jax.spectra import SpectrumStack, group, noticed
        from hbm_jax.spectra.folding.idealised import xrt_like_arf, xrt_like_rmf
        from hbm_jax.spectra.folding.response import Response

        rmf = xrt_like_rmf(2400)
        drawn = AfterglowPopulation(log10_n0=-6.7).draw(
            min(num, 50), seed=1, response=Response.of(rmf, xrt_like_arf(rmf))
        )
        again = np.arange(num) % len(drawn.spectra)
        masks = [noticed(s, (0.3, 10.0)) for s in drawn.spectra]
        grouped = [group(s, "optimal", noticed=m) for s, m in zip(drawn.spectra, masks, strict=True)]
        stack = SpectrumStack.of([grouped[i] for i in again], [masks[i] for i in again])
        columns = {name: np.asarray(drawn.columns[name])[again] for name in ("z", "nh_mw")}
        names = [f"s{i}" for i in range(num)]
        data = Afterglows.from_spectra(stack, **columns, name=names)
        model = hbm.models.Afterglow(whim=True)
        with each_once():
            return model, model.prepare(data)
    rng = np.random.default_rng(1)
    sigma = np.resize([0.2, 1.0, 5.0], num)
    y = rng.normal(4.0, 1.0, num) + sigma * rng.normal(size=num)
    data = hbm.data.ValuesInGroups.from_columns({"y": y, "sigma_y": sigma, "group": [f"g{i}" for i in range(num)]})
    return hbm.models.Normal(latents="noncentred"), data


@contextlib.contextmanager
def each_once():
    """Context in which repeated afterglows are folded once."""
    from hbm_jax.models.xray import absorbed_counts

    fold, known = absorbed_counts.fold, {}

    def remembered(spectrum, energy, matrix, counts, values, **settings):
        key = spectrum, np.asarray(counts).tobytes()
        if key not in known:
            known[key] = fold(spectrum, energy, matrix, counts, values, **settings)
        return known[key]

    absorbed_counts.fold = remembered
    try:
        yield
    finally:
        absorbed_counts.fold = fold


def gradient(kind, num):
    """Return the times of one value and gradient, and of tracing and compilation [s]."""
    import jax
    import jax.numpy as jnp

    from hbm_jax.inference.sampler.target import build_target

    with jax.enable_x64(True):
        program, data = program_and_data(kind, num)
        began = time.perf_counter()
        target = build_target(program, (data,), jax.random.key(0))
        slope = jax.value_and_grad(target.potential)
        steps = 20

        def many(flat):
            return jax.lax.fori_loop(0, steps, lambda _, f: f - 1e-9 * jnp.tanh(slope(f)[1]), flat)

        flat = jnp.asarray(target.start)
        run = jax.jit(many).lower(flat).compile()
        compiled = time.perf_counter() - began
        jax.block_until_ready(run(flat))
        seconds = []
        while len(seconds) < 5 or (sum(seconds) * steps < 1.0 and len(seconds) < 200):
            began = time.perf_counter()
            jax.block_until_ready(run(flat))
            seconds.append((time.perf_counter() - began) / steps)
    return statistics.median(seconds), compiled


def chains(num):
    """Return the time of sampling per draw of all chains together, and the time before sampling [s]."""
    import hbm_jax as hbm

    hbm.use_every_core()
    sne = hbm.data.load_jla()
    draws = 1000
    fit = hbm.sample(
        hbm.models.Supernova(cosmology="wcdm"), sne, num_chains=num, num_samples=draws, num_warmup=100, progress=False
    )
    return fit.timing["sampling"] / draws, fit.timing["compile"] + fit.timing["trace"]


def measure_one(kind, num):
    """Print the numbers of one size, in this process."""
    seconds, compiling = chains(num) if kind == "chains" else gradient(kind, num)
    memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "compile": compiling, "memory": memory}))


def exponent(kind, rows, what):
    """Slope of the logarithm of a cost over the logarithm of the size."""
    found = [(num, row[what]) for num, row in rows.items() if num >= FITTED_FROM.get(kind, 1000)]
    return np.polyfit(*np.log(np.array(found)).T, 1)[0] if len(found) > 1 else np.nan


def draw(found, path):
    """Draw cost and memory over size, logarithmic."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    from hbm_jax.plotting.style import to_png

    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for kind, rows in found.items():
        label = f"{kind}: $N^{{{exponent(kind, rows, 'seconds'):.2f}}}$"
        left.loglog(list(rows), [1e6 * row["seconds"] for row in rows.values()], "o-", label=label)
        right.loglog(list(rows), [row["memory"] / 2**30 for row in rows.values()], "o-", label=kind)
    left.set(
        xlabel="number of objects, or chains", ylabel="one value and gradient [us]\n(chains: a draw of all of them)"
    )
    right.set(xlabel="number of objects, or chains", ylabel="memory of the process, all counted [GiB]")
    left.set_ylim(bottom=0.01)
    left.legend(fontsize=7, frameon=False, loc="lower right")
    for ax in (left, right):
        ax.grid(color="0.9")
    path.write_bytes(to_png(fig, dpi=110))


def main():
    """Measure every size, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, metavar=("KIND", "N"), help=argparse.SUPPRESS)
    parser.add_argument("--only", help="kinds that begin so")
    parser.add_argument("--output", type=Path, default=Path("runs/scaling.txt"), help="text; the figure is beside it")
    options = parser.parse_args()
    if options.one:
        measure_one(options.one[0], int(options.one[1]))
        return
    lines = [
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"hbm_jax {version('hbm_jax')}, jax {version('jax')}, float64; medians"
    ]
    found = {}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for kind, sizes in SIZES.items():
        if options.only and not kind.startswith(options.only):
            continue
        lines += ["", kind, f"{'N':>8s}{'us':>12s}{'compile s':>11s}{'GiB':>8s}"]
        found[kind] = {}
        for num in sizes:
            command = [sys.executable, __file__, "--one", kind, str(num)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                lines.append(f"{num:8d}  failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:100]}")
                print(lines[-1], flush=True)
                continue
            row = found[kind][num] = json.loads(done.stdout.strip().splitlines()[-1])
            lines.append(f"{num:8d}{1e6 * row['seconds']:12.1f}{row['compile']:11.1f}{row['memory'] / 2**30:8.2f}")
            print(kind, lines[-1], flush=True)
        powers = [exponent(kind, found[kind], what) for what in ("seconds", "memory")]
        lines.append(f"from {FITTED_FROM.get(kind, 1000)} on: time as N^{powers[0]:.2f}, memory as N^{powers[1]:.2f}")
        options.output.write_text("\n".join(lines) + "\n")
        draw(found, options.output.with_suffix(".png"))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
