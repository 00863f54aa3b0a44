"""Claim: posteriors with a selection of bursts, of afterglows and of points of a relation are calibrated.

128 replicates of each: six bursts of 2 or 3 intervals that are detected by their brightest interval; twenty bursts of
one interval above a smooth limit of the flux whose position is inferred; and, on five spectra in wide groups,
afterglows above a smooth limit of the flux, and those with 60 counts or more. Three bursts of two intervals from the
counts of one detector, above a smooth limit of the flux of the brightest interval. Fifty points of a line with a break
above a limit of x, and of a parabola above a limit of y.

Replicates are in batches, each stored in a folder; batches that are stored are not repeated.

    python benchmarks/calibration_selection.py FOLDER [--output benchmarks/results/calibration_selection.txt]
"""

import argparse
import datetime
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np

BURSTS = {
    "gamma_mean": "Normal(1.5, 0.2)", "gamma_std": "HalfNormal(0.3)", "log10_N_mean": "Normal(52, 0.3)",
    "log10_N_std": "HalfNormal(0.4)", "log10_E_peak_mean": "Normal(2.6, 0.2)", "log10_E_peak_std": "HalfNormal(0.3)",
    "log10_E_peak_scatter": "HalfNormal(0.3)", "intrinsic_scatter": "HalfNormal(0.2)",
}  # fmt: skip
LINE = {
    "gamma": "Normal(1.5, 0.3)", "log10_N": "Normal(52, 0.3)", "log10_E_peak_mean": "Normal(2.6, 0.2)",
    "log10_E_peak_std": "HalfNormal(0.3)", "intrinsic_scatter": "HalfNormal(0.4)",
    "log10_flux_lim": "Normal(-5.8, 0.2)",
}  # fmt: skip
AFTERGLOWS = {
    "photon_index_mean": "Normal(2, 0.2)", "photon_index_std": "HalfNormal(0.2)",
    "log10_flux_mean": "Normal(-11.6, 0.2)", "log10_flux_std": "HalfNormal(0.3)", "log10_nh_mean": "Normal(-0.3, 0.3)",
    "log10_nh_std": "HalfNormal(0.4)",
}  # fmt: skip
COUNTS = {
    "gamma_mean": "Normal(1.4, 0.2)", "gamma_std": 0.2, "log10_N_mean": "Normal(52.2, 0.2)",
    "log10_N_std": "HalfNormal(0.3)", "log10_E_peak_mean": "Normal(2.6, 0.1)", "log10_E_peak_std": "HalfNormal(0.2)",
    "alpha_mean": "Normal(-0.9, 0.1)", "alpha_std": 0.15, "intrinsic_scatter": "HalfNormal(0.2)",
}  # fmt: skip
POINTS = {
    "alpha": "Normal(1, 0.4)", "beta": "Normal(1, 0.4)", "intrinsic_scatter": "HalfNormal(0.4)",
    "x_mean": "Normal(0.3, 0.3)", "x_std": "LogNormal(-0.2, 0.2)",
}  # fmt: skip
BATCH = 32


def afterglows(num: int = 5):
    """Return a design of spectra in wide groups."""
    from hbm_jax.data import AfterglowPopulation, read_afterglows, write_afterglows

    design = AfterglowPopulation(redshift=(0.5, 5.0), log10_flux=(-11.2, 0.1), exposure=2500.0, min_counts=60)
    with tempfile.TemporaryDirectory() as folder:
        catalog = write_afterglows(folder, design.draw(num, seed=5))
        options = {"grouping": "channels_per_group", "group_by": 200}
        return read_afterglows(catalog, spectra=Path(folder) / "spectra", **options)


def burst_counts():
    """Return a design of three bursts of two intervals in one detector, with backgrounds that are almost known.

    The likelihood has the most likely background, whereas those of simulated counts are drawn with the errors of the
    design, so that ranks would not be uniform with errors that matter (`background_statistics.py`).
    """
    from hbm_jax.data import BurstSpectra, BurstSpectraPopulation

    design = BurstSpectraPopulation(
        redshift=(1.0, 1.5, 2.0), num_intervals=2, spectrum="cutoff", detectors={"n0": "nai"}, threshold=0.0,
        background_exposure=1e6,
    )  # fmt: skip
    return BurstSpectra.of(design.draw(3, seed=5).bursts)


def points(num: int = 50):
    """Return a design of points of one line, all above the limits."""
    from hbm_jax.data import PointsInGroups

    columns = {"x": np.linspace(0.0, 1.0, num), "y": np.full(num, 3.0)}
    return PointsInGroups.from_columns(columns | {"sigma_x": np.full(num, 0.3), "sigma_y": np.full(num, 0.2)})


def cases(word: str) -> Iterator[tuple[str, object, object, dict]]:
    """Name, model, design and options of the replicates of cases whose name begins with a word."""
    from hbm_jax.data import BurstPopulation
    from hbm_jax.models import Afterglow, Golenetskii, GolenetskiiCounts, Relation

    several = BurstPopulation(num_intervals=[2, 3], sigma_log10_flux=(0.05, 0.1))
    single = BurstPopulation(num_intervals=1, sigma_log10_flux=(0.05, 0.1))
    detected = Golenetskii(selection="log10_peak_flux > -6.3", priors=BURSTS)
    above = "log10_flux > Normal(-5.8, 0.2) +- 0.3"
    inferred = Golenetskii(pooling="complete", selection=above, priors=LINE)
    bursts = [
        ("Bursts detected by their brightest interval", detected, several, 6, {"num_chains": 2}),
        ("Bursts above an inferred limit", inferred, single, 20, {}),
    ]
    for name, model, population, num, options in bursts:
        if name.startswith(word):
            yield name, model, population.draw(num, seed=2).data, options
    for name, selection in (
        ("Afterglows above a limit of the flux", "log10_flux > -11.6 +- 0.15"),
        ("Afterglows with 60 counts or more", "counts > 59"),
    ):
        if name.startswith(word):
            model = Afterglow(selection=selection, priors=AFTERGLOWS)
            yield name, model, afterglows(), {"num_chains": 2}
    name, selection = "Counts of bursts above a limit of the flux", "log10_peak_flux > -5.4 +- 0.2"
    if name.startswith(word):
        model = GolenetskiiCounts(spectrum="cutoff", calibration=False, selection=selection, priors=COUNTS)
        # The lines of bursts are drawn in simulations, and integrated out in fits.
        ranked = [name for name, prior in COUNTS.items() if isinstance(prior, str)] + ["log10_E_peak", "log10_flux"]
        yield name, model, burst_counts(), {"num_chains": 2, "parameters": ranked}
    broken = Relation(
        pooling="complete", broken=True, pivot=0.0, selection="x > -0.3",
        priors=POINTS | {"alpha_above": "Normal(2, 0.4)", "x_break": "Normal(0.5, 0.3)"},
    )  # fmt: skip
    curved = Relation(
        pooling="complete", curved=True, pivot=0.0, selection="y > 0.5",
        priors=POINTS | {"curvature": "Normal(0.4, 0.2)"},
    )  # fmt: skip
    for name, model in (("Line with a break above a limit of x", broken), ("Parabola above a limit of y", curved)):
        if name.startswith(word):
            yield name, model, points(), {"num_chains": 2}


def ranks_of(name, model, data, options, replicates, folder):
    """Return ranks and failures of all batches, from the folder where they are stored."""
    import hbm_jax as hbm
    from hbm_jax.inference.criticism.calibration import Calibration

    ranks, failed, bound = [], 0, None
    for number in range(-(-replicates // BATCH)):
        path = folder / f"{name.replace(' ', '_')}_{number}.json"
        if not path.exists():
            if bound is None:
                bound = model.prepare(data, tolerance=1e-2) if hasattr(model, "prepare") else inside(model, data)
            seed = 1000 * (number + 1)
            hbm.calibrate(model, bound, num_replicates=BATCH, seed=seed, progress=False, **options).save(path)
        batch = Calibration.load(path)
        ranks.append(batch.ranks)
        failed += batch.num_failed
    return ranks, failed


def inside(model, data):
    """Return the design with all of its bursts or points above the limit."""
    from hbm_jax.data import PointsInGroups
    from hbm_jax.models.bursts.detection import moved_to_limit as bursts_above
    from hbm_jax.models.linear.selected_points import inside as points_above

    above_limit = points_above if isinstance(data, PointsInGroups) else bursts_above
    return above_limit(data, model.selections)


def lines(options) -> Iterator[str]:
    """Yield the lines of the result."""
    import pandas as pd

    import hbm_jax as hbm
    from hbm_jax.inference.criticism.calibration import Calibration
    from hbm_jax.inference.criticism.rank_tests import judge_ranks

    hbm.use_every_core()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, model, data, choices in cases(options.only):
        began, cpu = time.perf_counter(), time.process_time()
        ranks, failed = ranks_of(name, model, data, choices, options.replicates, options.folder)
        joined = pd.concat(ranks, ignore_index=True)
        result = Calibration(joined, judge_ranks(joined, 1), failed, {})
        yield from ("", f"{name}: {len(joined)} replicates, {model.description}")
        yield f"{data.describe()}"
        yield ", ".join(f"{key} ~ {value}" for key, value in model.to_config()["priors"].items())
        yield f"{time.perf_counter() - began:.0f} s ({time.process_time() - cpu:.0f} s of CPU), stored batches apart"
        yield str(result)
        yield result.table.round(4).to_string()
        smallest = float(np.min(result.table["p"]))
        yield f"{'PASS' if smallest > 1e-3 else 'MISS'}  smallest p-value {smallest:.2g}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the batches")
    parser.add_argument("--replicates", type=int, default=128)
    parser.add_argument("--output", type=Path, help="also write the text to this file")
    parser.add_argument("--only", default="", help="cases whose name begins with this text")
    options = parser.parse_args()
    written = [
        f"float64; {datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores (shared), "
        f"Python {platform.python_version()}, hbm_jax {version('hbm_jax')}, jax {version('jax')}"
    ]
    print(written[0], flush=True)
    for line in lines(options):
        written.append(line)
        print(line, flush=True)
        if options.output:
            options.output.write_text("\n".join(written) + "\n")


if __name__ == "__main__":
    main()
