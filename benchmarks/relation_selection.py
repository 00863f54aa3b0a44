"""Claim: a line through points with cuts in measured x, y or both is recovered with the selection, and not without.

64 replicates of 300 points for each cut. The true values of each are drawn from the priors of the fit: a slope of about
2, and a scatter of 0.3 or so. Errors of 0.7 in x are half its spread, so that the slope depends on the population of x.
The points are drawn by plain rejection in NumPy and fitted with and without the selection (`hbm_jax.fit_each`); without
it, x_mean and x_std have their default priors, which are centred on the data. Standardised errors, (mean - truth) /
standard deviation of the posterior, of slope, intercept and scatter should have a mean of 0 +- 0.125 and a standard
deviation of 1 +- 0.09 over the replicates; the bounds are 3.5 of these errors. 68 % intervals should contain the true
value 31 to 56 times (99.9 %).

Finished cases are kept in a folder, so that an interrupted run continues.

    python benchmarks/relation_selection.py [--replicates 64] [--output benchmarks/results/relation_selection.txt]
"""

import argparse
import datetime
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

LINE = {"alpha": "Normal(2, 0.5)", "beta": "Normal(1, 1)", "intrinsic_scatter": "HalfNormal(0.5)"}
POPULATION = {"x_mean": "Normal(0, 0.5)", "x_std": "LogNormal(0.4, 0.2)"}
ERROR_X, ERROR_Y = 0.7, 0.3
CUTS = {"x": "x > 1", "y": "y > 2", "x and y": "x > 1 and y < 6"}
NAMES = ("alpha", "beta", "intrinsic_scatter")
MAX_MEAN, STD, HELD = 0.44, (0.69, 1.31), (31, 56)


def detected(cut, x, y):
    """Return whether measured points are in the data."""
    inside = np.ones(len(x), bool)
    for part in cut.split(" and "):
        name, sign, limit = part.split()
        values = x if name == "x" else y
        inside &= values > float(limit) if sign == ">" else values < float(limit)
    return inside


def truths(num):
    """Draw the true parameters of each replicate from the priors."""
    rng = np.random.default_rng(4)
    return {
        "alpha": rng.normal(2.0, 0.5, num),
        "beta": rng.normal(1.0, 1.0, num),
        "intrinsic_scatter": np.abs(rng.normal(0.0, 0.5, num)),
        "x_mean": rng.normal(0.0, 0.5, num),
        "x_std": np.exp(rng.normal(0.4, 0.2, num)),
    }


def sample(cut, seed, truth, num):
    """Draw measured points until enough are detected."""
    from hbm_jax.data import PointsInGroups

    rng, size, parts = np.random.default_rng([5, seed]), 20 * num, []
    while sum(map(len, parts)) < num:
        true = rng.normal(truth["x_mean"], truth["x_std"], size)
        y = truth["beta"] + truth["alpha"] * true + rng.normal(0.0, truth["intrinsic_scatter"], size)
        x, y = true + rng.normal(0.0, ERROR_X, size), y + rng.normal(0.0, ERROR_Y, size)
        parts.append(np.stack([x, y], axis=1)[detected(cut, x, y)])
    x, y = np.concatenate(parts)[:num].T
    errors = {"sigma_x": np.full(num, ERROR_X), "sigma_y": np.full(num, ERROR_Y)}
    return PointsInGroups.from_columns({"x": x, "y": y, **errors})


def fitted(cut, with_selection, options):
    """Return mean, standard deviation and 68 % interval of each parameter and replicate, and the cost."""
    import hbm_jax as hbm

    drawn = truths(options.replicates)
    data = [
        sample(cut, k, {name: values[k] for name, values in drawn.items()}, options.points)
        for k in range(options.replicates)
    ]
    priors = LINE | (POPULATION if with_selection else {})
    selection = cut if with_selection else "none"
    model = hbm.models.Relation(pooling="complete", pivot=0.0, selection=selection, priors=priors)
    began, cpu = time.perf_counter(), time.process_time()
    fits = hbm.fit_each(model, data, seed=1, num_chains=2, num_warmup=250, num_samples=250, until=60, progress=False)
    table = fits.summary(list(NAMES))
    rows = {name: table.xs(name, level="parameter") for name in NAMES}
    columns = ("mean", "sd", "lower_68", "upper_68", "ess_bulk")
    return {
        "usable": int(fits.usable.sum()),
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "parameters": {name: {key: rows[name][key].to_list() for key in columns} for name in NAMES},
    }


def judged(result):
    """Return a line for each parameter, and whether it is within the bounds."""
    lines, within = [], []
    for name, columns in result["parameters"].items():
        mean, sd, low, high, ess = (
            np.array(columns[key]) for key in ("mean", "sd", "lower_68", "upper_68", "ess_bulk")
        )
        truth = truths(len(mean))[name]
        pull, held = (mean - truth) / sd, int(((low < truth) & (truth < high)).sum())
        spread = pull.std(ddof=1)
        within.append(abs(pull.mean()) < MAX_MEAN and STD[0] < spread < STD[1] and HELD[0] <= held <= HELD[1])
        lines.append(
            f"    {name:18s} standardised {pull.mean():6.2f} +- {spread:5.2f}, {held:3d} of {len(pull)} intervals; "
            f"error {np.mean(mean - truth):6.3f}, posterior {sd.mean():.3f}; ESS above {ess.min():.0f}"
            f"{'' if within[-1] else '; outside'}"
        )
    return lines, within


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=64)
    parser.add_argument("--points", type=int, default=300)
    parser.add_argument("--output", type=Path, help="also write the text to this file")
    parser.add_argument("--folder", type=Path, default=Path("build/relation_selection"), help="of finished cases")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{options.replicates} replicates of {options.points} points, errors {ERROR_X} in x and {ERROR_Y} in y",
        f"true values drawn from {', '.join(f'{name} ~ {prior}' for name, prior in (LINE | POPULATION).items())}",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores (shared), "
        f"Python {platform.python_version()}, hbm_jax {version('hbm_jax')}, jax {version('jax')}",
        f"bounds of standardised errors: mean {MAX_MEAN} from 0, standard deviation {STD[0]} to {STD[1]}; "
        f"{HELD[0]} to {HELD[1]} of 68 % intervals hold the truth",
    ]
    for name, cut in CUTS.items():
        for with_selection in (True, False):
            file = options.folder / f"{name.replace(' ', '_')}_{'with' if with_selection else 'without'}.json"
            if not file.exists():
                file.write_text(json.dumps(fitted(cut, with_selection, options)))
            result = json.loads(file.read_text())
            texts, within = judged(result)
            expected = all(within) if with_selection else not within[0]
            lines += [
                "",
                f"{'PASS' if expected else 'MISS'}  {cut}, {'with' if with_selection else 'without'} the selection: "
                f"{result['usable']} posteriors usable, {result['seconds']:.0f} s ({result['cpu']:.0f} s of CPU)",
                *texts,
            ]
            print("\n".join(lines[-4:]), flush=True)
    text = "\n".join(lines)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
