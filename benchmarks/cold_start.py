"""Time from the start of a process to the printed verdict, on sampler and model: cold, cached, and for another sample.

Four systems: lines of groups with errors in both coordinates, JLA, the Golenetskii relation in catalogue values, and
the normal hierarchy. Each run is a process that imports the packages, reads its data from a file and prints the verdict
on the sampler, and of hbm_jax the one on the model too. Rows of hbm_jax:

- cold: the cache of compiled programs is empty;
- cached: the same sample again;
- other size: another sample, with another number of objects, whose size rounds up to the same step.

Beside the seconds stands the number of programs that were compiled, counted by JAX. Rivals, with the same samples:
plain NumPyro and, where they are installed, PyMC with nutpie, each in the form that the suite found to be the better,
with a warm-up of 1000 draws, on two chains, until the parameters of the population have 400 effective draws and R-hat
below 1.01.
NumPyro too has JAX's cache of compiled programs: its row "cached" is the same sample again.

    python benchmarks/cold_start.py [--rounds 3] [--systems relation,normal] [--output FILE]
"""

import argparse
import datetime
import json
import os
import pickle
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import import_module, util
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "suite"))
SIZES = {"relation": (49, 51), "supernovae": (737, 740), "golenetskii": (33, 35), "normal": (997, 1000)}
MISSES, MIN_ESS, MAX_R_HAT, CHAINS, DRAWS = "/jax/compilation_cache/cache_misses", 400, 1.01, 2, 1000
MAX_DRAWS = 20 * DRAWS


def sample_of(system: str, num: int) -> dict:
    """Return the arrays that the programs of a system in the suite take, with our container as ``data``."""
    import numpy as np

    import hbm_jax as hbm

    rng = np.random.default_rng(num)
    if system == "relation":
        of = np.repeat(np.arange(num), 20)
        alpha, beta, x = rng.normal(1.5, 0.3, num), rng.normal(0.5, 0.5, num), rng.normal(0.2, 1.0, len(of))
        y = alpha[of] * x + beta[of] + rng.normal(0.0, 0.2, len(of))
        sigma_x, sigma_y = rng.uniform(0.1, 0.4, (2, len(of)))
        columns = {"x": x + sigma_x * rng.normal(size=len(of)), "y": y + sigma_y * rng.normal(size=len(of))}
        columns |= {"sigma_x": sigma_x, "sigma_y": sigma_y}
        names = [f"g{i}" for i in of]
        return columns | {"of": of, "data": hbm.data.PointsInGroups.from_columns(columns | {"group": names})}
    if system == "normal":
        sigma = rng.choice([0.2, 0.2, 1.0, 5.0], num)
        y = rng.normal(4.0, 1.0, num) + sigma * rng.normal(size=num)
        columns = {"y": y, "sigma_y": sigma, "group": [f"g{i}" for i in range(num)]}
        return {"y": y, "sigma": sigma, "data": hbm.data.ValuesInGroups.from_columns(columns)}
    if system == "supernovae":
        rows = np.sort(rng.permutation(740)[:num])
        given = import_module("systems.supernovae").problem(740)
        return {name: value if len(value) < 740 else _rows(value, rows) for name, value in given.items()}
    return import_module("systems.golenetskii").problem(num, seed=num)


def _rows(value, rows):
    """Return rows of an array or a container."""
    return value.subset(rows) if hasattr(value, "subset") else value[rows]


def run_ours(system: str, given: dict) -> dict:
    """Sample with hbm_jax as it comes, with cached programs, and print the verdict."""
    import jax

    import hbm_jax as hbm

    misses = []
    jax.monitoring.register_event_listener(lambda name, **_: misses.append(name) if name == MISSES else None)
    hbm.use_every_core()
    hbm.inference.use_compilation_cache()
    module = import_module(f"systems.{system}")
    model, data = module.ours(given, "marginal")
    fit = hbm.sample(model, data, seed=1, progress=False)
    fit.model_check  # noqa: B018 - the second line of the verdict
    print(fit.verdict)
    return {"compiled": len(misses), "usable": fit.verdict.usable}


def _enough(draws, names) -> bool:
    """Return whether the parameters of the population have enough effective draws; ``draws`` are (chain, draw)."""
    from arviz_stats.base import array_stats

    arrays = [draws[name] for name in names]
    ess = min(float(array_stats.ess(a, chain_axis=0, draw_axis=1)) for a in arrays)
    return ess >= MIN_ESS and max(float(array_stats.rhat(a, chain_axis=0, draw_axis=1)) for a in arrays) < MAX_R_HAT


def run_numpyro(system: str, given: dict) -> dict:
    """Sample with NumPyro's MCMC until the draws suffice."""
    import jax
    import numpy as np
    from numpyro.infer import MCMC, NUTS

    jax.config.update("jax_num_cpu_devices", CHAINS)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_compilation_cache_dir", os.environ["HBM_JAX_CACHE"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    misses = []
    jax.monitoring.register_event_listener(lambda name, **_: misses.append(name) if name == MISSES else None)
    module = import_module(f"systems.{system}")
    kernel = NUTS(module.numpyro_program(given, module.FORMS[0]))
    mcmc = MCMC(
        kernel, num_warmup=DRAWS, num_samples=DRAWS, num_chains=CHAINS, chain_method="parallel", progress_bar=False
    )
    mcmc.run(jax.random.key(1))
    draws = {name: np.asarray(mcmc.get_samples(group_by_chain=True)[name]) for name in module.NAMES}
    while not _enough(draws, module.NAMES) and draws[module.NAMES[0]].shape[1] < MAX_DRAWS:
        mcmc.post_warmup_state = mcmc.last_state
        mcmc.run(mcmc.post_warmup_state.rng_key)
        more = mcmc.get_samples(group_by_chain=True)
        draws = {name: np.concatenate([draws[name], more[name]], axis=1) for name in module.NAMES}
    print(f"{draws[module.NAMES[0]].shape[1]} draws of each chain")
    return {"compiled": len(misses), "usable": _enough(draws, module.NAMES)}


def run_pymc(system: str, given: dict) -> dict:
    """Sample with PyMC and nutpie, with more draws until they suffice; each attempt begins again."""
    import nutpie

    module = import_module(f"systems.{system}")
    compiled, num = nutpie.compile_pymc_model(module.pymc_model(given, module.FORMS[0])), DRAWS
    while True:
        trace = nutpie.sample(compiled, draws=num, tune=DRAWS, chains=CHAINS, cores=CHAINS, seed=1, progress_bar=False)
        draws = {n: trace["posterior"][n].transpose("chain", "draw").to_numpy() for n in module.NAMES}
        if _enough(draws, module.NAMES) or num >= MAX_DRAWS:
            break
        num *= 2
    print(f"{num} draws of each chain")
    return {"compiled": None, "usable": _enough(draws, module.NAMES)}


RUNS = {"hbm_jax": run_ours, "NumPyro": run_numpyro, "PyMC with nutpie": run_pymc}


def timed(contestant: str, system: str, problem: Path, cache: Path) -> dict:
    """Run a contestant in a process of its own; return its result with the seconds that the process took."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--contestant", contestant, "--system", system]
        command += ["--problem", str(problem), "--result", str(result)]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        process = subprocess.run(
            command, env=os.environ | {"HBM_JAX_CACHE": str(cache)}, capture_output=True, text=True
        )
        seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if process.returncode:
            return {"seconds": float("nan"), "cpu": cpu, "error": process.stderr.strip().splitlines()[-1]}
        return json.loads(result.read_text()) | {"seconds": seconds, "cpu": cpu}


def measure(system: str, rounds: int, rival_rounds: int, folder: Path) -> list[tuple[str, str, list[dict]]]:
    """Return the results of all contestants of a system: name, row, and one result of each round."""
    problems = []
    for num in SIZES[system]:
        problems.append(folder / f"{system}-{num}")
        problems[-1].write_bytes(pickle.dumps(sample_of(system, num)))
    rows: dict[tuple[str, str], list[dict]] = {}
    rivals = ["NumPyro", *(["PyMC with nutpie"] if all(map(util.find_spec, ("pymc", "nutpie"))) else [])]
    for number in range(max(rounds, rival_rounds)):
        for contestant in ["hbm_jax", *rivals]:
            if number >= (rounds if contestant == "hbm_jax" else rival_rounds):
                continue
            cache = folder / f"cache-{contestant[:4]}-{system}-{number}"
            kinds = {"cold": problems[0]}
            if contestant != "PyMC with nutpie":
                kinds["cached"] = problems[0]
            if contestant == "hbm_jax":
                kinds["other size"] = problems[1]
            for kind, problem in kinds.items():
                rows.setdefault((contestant, kind), []).append(timed(contestant, system, problem, cache))
                print(system, contestant, kind, rows[contestant, kind][-1], file=sys.stderr, flush=True)
    return [(*key, results) for key, results in rows.items()]


def table(system: str, rows) -> list[str]:
    """Return lines of medians; ratios are of the seconds to those of hbm_jax cold and with cached programs."""
    medians = {row[:2]: statistics.median(result["seconds"] for result in row[2]) for row in rows}
    lines = [f"{system}: {SIZES[system][0]} objects, another sample of {SIZES[system][1]}"]
    for contestant, kind, results in rows:
        seconds = [result["seconds"] for result in results]
        median = medians[contestant, kind]
        compiled = {result.get("compiled") for result in results} - {None}
        programs = f"{'/'.join(map(str, sorted(compiled)))} compiled" if compiled else ""
        failed = sum(not result.get("usable", False) for result in results)
        ours = medians["hbm_jax", "cold" if kind == "cold" else "cached"]
        ratio = "" if contestant == "hbm_jax" else f"{median / ours:5.1f} times hbm_jax"
        spread = f"({min(seconds):.1f} to {max(seconds):.1f}, {len(seconds)} runs)"
        cpu = f"{statistics.median(result['cpu'] for result in results):5.1f} s of CPU"
        note = f"; {failed} not converged or failed" if failed else ""
        lines.append(f"  {contestant:17s} {kind:11s} {median:6.1f} s {spread:26s} {cpu} {programs:14s} {ratio}{note}")
    return lines


def main():
    """Run all contestants of each system, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rival-rounds", type=int, default=3)
    parser.add_argument("--systems", default=",".join(SIZES))
    parser.add_argument("--output", type=Path)
    for name in ("contestant", "system", "problem", "result"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        given = pickle.loads(Path(options.problem).read_bytes())
        Path(options.result).write_text(json.dumps(RUNS[options.contestant](options.system, given)))
        return
    packages = ("hbm_jax", "jax", "numpyro", "arviz-stats")
    lines = [
        f"{datetime.date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in packages)}",
        "Seconds from the start of the process to the printed verdict, and processor time of the process, medians. "
        "Load average at the start: "
        f"{os.getloadavg()[0]:.1f}.",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for system in options.systems.split(","):
            lines += ["", *table(system, measure(system, options.rounds, options.rival_rounds, Path(folder)))]
    lines += ["", f"Load average at the end: {os.getloadavg()[0]:.1f}."]
    print("\n".join(lines))
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
