"""Claim: the posteriors of the linear relation with partial pooling are calibrated, and so are those with limits.

512 replicates of each. Six groups of 1 to 6 points with errors in both variables, correlated in some; then with upper
limits on y; and one group as linmix knows it (Kelly 2007, ApJ 665, 1489): 40 points, errors in both, intrinsic scatter,
upper limits.

    python benchmarks/calibration_relation.py [--output benchmarks/results/calibration_relation.txt]
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from calibration_normal import certificate

POPULATION = {
    "alpha_mean": "Normal(1.5, 0.5)", "alpha_std": "HalfNormal(0.5)", "beta_mean": "Normal(2, 0.5)",
    "beta_std": "HalfNormal(0.7)",
}  # fmt: skip
LINE = {"alpha": "Normal(1.5, 1)", "beta": "Normal(2, 1)"}
COMMON = {"intrinsic_scatter": "HalfNormal(0.4)", "x_mean": "Normal(1, 0.5)", "x_std": "HalfNormal(1)"}


def groups(limits: bool = False):
    """Design of six groups of 1 to 6 points."""
    from hbm_jax.data import PointsInGroups

    rng = np.random.default_rng(1)
    of = np.repeat(np.arange(6), np.arange(1, 7))
    columns = {
        "group": [f"g{k}" for k in of], "x": rng.normal(1.0, 1.0, len(of)), "y": rng.normal(2.0, 1.5, len(of)),
        "sigma_x": rng.uniform(0.1, 0.5, len(of)), "sigma_y": rng.uniform(0.1, 0.4, len(of)),
        "correlation": np.where(of % 2, 0.5, 0.0),
    }  # fmt: skip
    if limits:
        columns["threshold_y"] = np.full(len(of), 1.0)
    return PointsInGroups.from_columns(columns)


def linmix(num: int = 40):
    """Design of one group with errors as large as the spread of x allows, and limits on y."""
    from hbm_jax.data import PointsInGroups

    rng = np.random.default_rng(2)
    columns = {
        "x": rng.normal(1.0, 1.0, num), "y": rng.normal(2.0, 1.5, num), "sigma_x": rng.uniform(0.3, 0.9, num),
        "sigma_y": rng.uniform(0.2, 0.6, num), "threshold_y": np.full(num, 1.0),
    }  # fmt: skip
    return PointsInGroups.from_columns(columns)


def cases() -> Iterator[tuple[str, object, object]]:
    """Name, model and design."""
    from hbm_jax.models import Relation

    partial = Relation(pivot=1.0, priors=POPULATION | COMMON)
    yield "Relation, partial pooling", partial, groups()
    correlated = Relation(pivot=1.0, correlated=True, priors=POPULATION | COMMON)
    yield "Relation, partial pooling, slope and intercept correlated", correlated, groups()
    yield "Relation, partial pooling, upper limits on y", partial, groups(limits=True)
    complete = Relation(pooling="complete", pivot=1.0, priors=LINE | COMMON)
    yield "Relation, one line, errors in both variables and upper limits, as linmix", complete, linmix()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=512)
    parser.add_argument("--output", type=Path, help="also write the text to this file")
    parser.add_argument("--only", default="", help="cases whose name begins with this text")
    arguments = parser.parse_args()
    chosen = (case for case in cases() if case[0].startswith(arguments.only))
    certificate(chosen, arguments.replicates, arguments.output)
