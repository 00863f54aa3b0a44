"""Claim: the posteriors of the normal hierarchical model are calibrated in every form, of one component and of two.

512 replicates of each: parameters from the prior, data from the program, a posterior of each data set, and the ranks of
the true values. The centred form has a prior that keeps tau away from 0 and groups that are measured well: it is wrong
in a funnel, where the other forms are what one uses.

    python benchmarks/calibration_normal.py [--output benchmarks/results/calibration_normal.txt]
"""

import argparse
import datetime
import os
import platform
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np

WIDE = {"mu": "Normal(0, 2)", "tau": "HalfNormal(1)"}
AWAY = {"mu": "Normal(0, 2)", "tau": "LogNormal(0, 0.4)"}


def groups(errors: bool, components: int = 1, scale: float = 0.5):
    """Design of six groups of 1 to 6 values, whose errors differ by a factor of 4."""
    from hbm_jax.data import ValuesInGroups

    rng = np.random.default_rng(1)
    of = np.repeat(np.arange(6), np.arange(1, 7))
    names = [f"y{i}" for i in range(components)] if components > 1 else ["y"]
    columns = {"group": [f"g{k}" for k in of]} | {name: rng.normal(size=len(of)) for name in names}
    if errors:
        columns |= {f"sigma_{name}": scale * np.exp(rng.uniform(-0.7, 0.7, len(of))) for name in names}
        if components > 1:
            columns["correlation_y0_y1"] = rng.uniform(-0.5, 0.8, len(of))
    return ValuesInGroups.from_columns(columns, components=names)


def cases() -> Iterator[tuple[str, object, object]]:
    """Name, model and design."""
    from hbm_jax.models import Normal, NormalVectors

    sigma = {"sigma": "HalfNormal(1)"}
    for latents in ("marginal", "noncentred", "mixed", "centred"):
        priors, scale = (AWAY, 0.3) if latents == "centred" else (WIDE, 0.8)
        yield f"Normal, {latents}", Normal(latents=latents, priors=priors), groups(True, 1, scale)
    for latents in ("marginal", "mixed"):
        model = Normal(latents=latents, sigma="inferred", priors=WIDE | sigma)
        yield f"Normal, {latents}, sigma inferred", model, groups(False)
    for latents in ("marginal", "noncentred", "mixed", "centred"):
        priors, scale = (AWAY, 0.3) if latents == "centred" else (WIDE, 0.8)
        yield f"NormalVectors, {latents}", NormalVectors(latents=latents, priors=priors), groups(True, 2, scale)
    model = NormalVectors(sigma="inferred", priors=WIDE | sigma)
    yield "NormalVectors, marginal, sigma inferred", model, groups(False, 2)


def certificate(cases: Iterable[tuple[str, object, object]], replicates: int, output: Path | None, **options):
    """Calibrate each case, print the result and add it to the file; cases that the file has are not repeated."""
    import hbm_jax as hbm

    hbm.use_every_core()
    lines = [
        f"{replicates} replicates each, float64; {datetime.date.today()}, {platform.machine()}, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, hbm_jax {hbm.__version__}, "
        f"jax {version('jax')}, numpyro {version('numpyro')}"
    ]
    if output and output.is_file():
        lines = output.read_text().splitlines()
    print(lines[0], flush=True)
    for name, model, data in cases:
        if any(line.startswith(f"{name}: ") for line in lines):
            continue
        began = time.perf_counter()
        result = hbm.calibrate(model, data, num_replicates=replicates, seed=1, progress=False, **options)
        seconds = time.perf_counter() - began
        priors = ", ".join(f"{key} ~ {value}" for key, value in model.to_config()["priors"].items())
        text = [
            "", f"{name}: {data.describe()}", priors, f"{seconds:.0f} s, compilation included", str(result),
            result.table.round(4).to_string(),
            f"{'PASS' if result.calibrated else 'MISS'}  calibrated",
        ]  # fmt: skip
        print("\n".join(text), flush=True)
        lines += text
        if output:
            output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=512)
    parser.add_argument("--output", type=Path, help="also write the text to this file")
    parser.add_argument("--only", default="", help="cases whose name begins with this text")
    arguments = parser.parse_args()
    chosen = (case for case in cases() if case[0].startswith(arguments.only))
    certificate(chosen, arguments.replicates, arguments.output)
