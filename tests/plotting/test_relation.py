"""Figures of linear relations show the points and lines that they are of."""

import functools

import numpy as np
import pytest

import hbm_jax as hbm
from hbm_jax.data import PointsInGroups
from hbm_jax.models import Relation
from hbm_jax.plotting import lines, shrinkage_of_lines
from hbm_jax.registry import of_fit


@functools.cache
def fitted():
    rng = np.random.default_rng(2)
    of = np.repeat(np.arange(5), [8, 8, 6, 2, 1])
    alpha, beta = rng.normal(1.0, 0.4, 5), rng.normal(0.0, 0.5, 5)
    x = rng.normal(size=25)
    y = alpha[of] * x + beta[of] + 0.1 * rng.normal(size=25)
    columns = {
        "x": x, "y": y + 0.1 * rng.normal(size=25), "sigma_x": np.full(25, 0.05), "sigma_y": np.full(25, 0.1),
        "group": [f"g{i}" for i in of], "limit_y": ["upper" if i == 3 else "" for i in range(25)],
    }  # fmt: skip
    data = PointsInGroups.from_columns(columns)
    return hbm.sample(Relation(pivot=0.0), data, seed=1, num_samples=200, num_warmup=300, progress=False)


def test_every_group_has_its_points_and_its_line():
    fit = fitted()
    axes = [axis for axis in lines(fit).axes if axis.get_visible()]
    assert [axis.get_title() for axis in axes] == ["g0", "g1", "g2", "g3", "g4"]
    counts = [len(axis.containers[0].lines[0].get_xdata()) for axis in axes]
    assert counts == [7, 8, 6, 2, 1]  # one of the first is a limit
    assert any(line.get_marker() == "v" for line in axes[0].lines)
    median = axes[1].lines[0]
    slope = np.polyfit(median.get_xdata(), median.get_ydata(), 1)[0]
    expected = float(np.median(fit.posterior["alpha"].isel(group=1)))
    assert slope == pytest.approx(expected, abs=0.05)
    assert [axis.get_title() for axis in lines(fit, ["g3"]).axes] == ["g3"]


def test_shrinkage_shows_groups_and_population():
    axis = shrinkage_of_lines(fitted()).axes[0]
    dots = [line for line in axis.lines if line.get_marker() == "o" and line.get_markerfacecolor() != "none"]
    alone = [line for line in axis.lines if line.get_marker() == "o" and line.get_markerfacecolor() == "none"]
    assert len(dots) == 5
    assert len(alone) == 3  # groups of three points or more
    assert len(axis.patches) == 2


def test_the_report_has_them_and_others_are_refused():
    fit = fitted()
    entry = of_fit(fit)
    assert entry is not None
    assert set(entry.figures(fit)) == {"lines", "shrinkage_of_lines"}
    with pytest.raises(ValueError, match="'g9'"):
        lines(fit, ["g9"])
    with pytest.raises(ValueError, match=r"lines: expected a fit of hbm_jax.models.Relation"):
        lines(hbm.sample(lambda: hbm_normal(), num_samples=20, num_warmup=50, progress=False))


def hbm_normal():
    import numpyro
    from numpyro import distributions as dist

    numpyro.sample("x", dist.Normal(0, 1))
