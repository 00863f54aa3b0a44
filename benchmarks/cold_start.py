"""Time from the start of a process to a usable posterior, everything compiled anew: hbm_jax beside plain NumPyro.

Ours ends with the printed verdict on draws and model. NumPyro (its NUTS, four chains, the program as its own experts
would write it, see benchmarks/suite) ends when every parameter of the population has an effective sample size of 400
and an R-hat below 1.01. They take turns. ``python benchmarks/cold_start.py relation supernovae --turns 3``
"""

import argparse
import importlib
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SYSTEMS = ("relation", "supernovae", "golenetskii", "normal")
CHAINS, STRETCH, MAX_STRETCHES = 4, 500, 20


def system_of(name: str):
    """Return a system of the suite."""
    sys.path.insert(0, str(HERE / "suite"))
    return importlib.import_module(f"systems.{name}")


def ours(name: str, given: dict) -> str:
    """Sample with hbm_jax as it comes; return the verdict."""
    import hbm_jax as hbm

    hbm.use_every_core()
    system = system_of(name)
    model, data = system.ours(given, next(iter(system.OURS.values())))
    fit = hbm.sample(model, data, progress=False)
    assert fit.model_check is not None
    return str(fit.verdict)


def numpyro(name: str, given: dict) -> str:
    """Sample with NumPyro in stretches until the criteria hold; return what was reached."""
    import numpyro
    from arviz_stats.base import array_stats
    from numpyro.infer import MCMC, NUTS, init_to_median

    numpyro.enable_x64()
    numpyro.set_host_device_count(CHAINS)
    import jax
    import numpy as np

    system = system_of(name)
    kernel = NUTS(system.numpyro_program(given, system.FORMS[0]), init_strategy=init_to_median)
    mcmc = MCMC(kernel, num_warmup=STRETCH, num_samples=STRETCH, num_chains=CHAINS, progress_bar=False)
    drawn: list[dict[str, np.ndarray]] = []
    for stretch in range(MAX_STRETCHES):
        mcmc.run(jax.random.key(1) if not drawn else mcmc.post_warmup_state.rng_key)
        drawn.append({n: np.asarray(v) for n, v in mcmc.get_samples(group_by_chain=True).items()})
        mcmc.post_warmup_state = mcmc.last_state
        values = [np.concatenate([d[n] for d in drawn], axis=1) for n in system.NAMES]
        axes = {"chain_axis": 0, "draw_axis": 1}
        r_hat = max(float(array_stats.rhat(v, **axes)) for v in values)
        tail = {"method": "tail", "prob": (0.05, 0.95)}
        ess = min(float(array_stats.ess(v, **axes, **kind)) for v in values for kind in ({}, tail))
        if ess >= 400 and r_hat < 1.01:
            return f"usable: effective sample size {ess:.0f}, R-hat {r_hat:.3f}, {CHAINS} x {(stretch + 1) * STRETCH}"
    return f"not usable: effective sample size {ess:.0f}, R-hat {r_hat:.3f}"


CONTESTANTS = {"hbm_jax": ours, "NumPyro": numpyro}


def measure(contestant: str, name: str, problem: Path) -> tuple[float, str]:
    """Run a contestant in a new process; return seconds, and its last line but for the model's."""
    command = [sys.executable, __file__, name, "--contestant", contestant, "--problem", str(problem)]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "HBM_JAX_CACHE": "off"}
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return time.perf_counter() - began, done.stdout.splitlines()[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", default=SYSTEMS)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--problem", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        given = pickle.loads(options.problem.read_bytes())
        print(CONTESTANTS[options.contestant](options.systems[0], given), flush=True)
        return
    print(
        f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, medians of {options.turns}; seconds, and ratio to ours"
    )
    for name in options.systems:
        with tempfile.TemporaryDirectory() as folder:
            problem = Path(folder) / "problem.pickle"
            problem.write_bytes(pickle.dumps(system_of(name).problem()))
            seconds: dict[str, list[float]] = {contestant: [] for contestant in CONTESTANTS}
            for _ in range(options.turns):
                for contestant in CONTESTANTS:
                    taken, said = measure(contestant, name, problem)
                    seconds[contestant].append(taken if said.startswith("usable") else float("inf"))
        medians = {contestant: statistics.median(taken) for contestant, taken in seconds.items()}
        text = "  ".join(f"{c} {s:6.1f} s ({s / medians['hbm_jax']:.2f})" for c, s in medians.items())
        print(f"{name:12s}  {text}", flush=True)


if __name__ == "__main__":
    main()
