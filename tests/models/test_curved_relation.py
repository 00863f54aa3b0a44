"""Parabolas, and scatter that changes with x: the likelihood in groups with selections, recovery, and refusals."""

import jax
import numpy as np
import pytest
from monte_carlo import seed
from scipy import stats
from sites import compiled_sites

import hbm_jax as hbm
from hbm_jax.data.linear.points_in_groups import PointsInGroups
from hbm_jax.models import Relation
from hbm_jax.validation import DataError, OptionError

PIVOT = 0.3
COLUMNS = {
    "x": np.array([0.1, 0.9, -0.4, 1.3, 0.5]), "y": np.array([0.4, 2.0, -0.1, 2.9, 1.6]),
    "sigma_x": np.array([0.2, 0.3, 0.2, 0.1, 0.4]), "sigma_y": np.array([0.3, 0.1, 0.2, 0.2, 0.1]),
    "group": ["a", "a", "b", "b", "b"], "redshift": np.array([0.1, 0.8, 0.3, 0.5, 1.4]),
    "common_error_x": [0.2, 0.2, 0.1, 0.1, 0.1], "mass": [1.0, 1.0, 2.0, 2.0, 2.0],
}  # fmt: skip
ROW = np.array([0, 0, 1, 1, 1])
TRUTH = {
    "alpha": np.array([1.4, 0.9]), "beta": np.array([1.0, 1.3]), "intrinsic_scatter": 0.3, "x_mean": 0.5, "x_std": 0.8,
    "curvature": 0.4, "scatter_change": 0.6, "evolution_y": -0.5, "scatter_group": np.array([0.7]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("selection", "limits"), [("none", False), ("x > -0.6 and y < 3.5 +- 0.4", False), ("x > -0.6", True)]
)
def test_every_option_at_once_is_a_plain_integral(selection, limits):
    """Two groups, a power of redshift, an error of x in common, and scatter that changes with x and with the group."""
    limit_y = {"limit_y": ["", "<", "", ">", ""]} if limits else {}
    sides = [0.0, 1.0, 0.0, -1.0, 0.0] if limits else np.zeros(5)
    data = PointsInGroups.from_columns(COLUMNS | limit_y, group_predictors=["mass"])
    model = Relation(
        pooling="none", curved=True, scatter_with_x=True, selection=selection, evolution="ln 1+z", pivot=PIVOT,
        priors={"scatter_group": "Normal(0, 1)"},
    )  # fmt: skip
    standard = np.array([0.5, -1.2])
    with jax.enable_x64(True):
        found = compiled_sites(model, model.bind(data))(TRUTH | {"_common_offset_x": standard[:, None]})
    x, total = np.linspace(-9.0, 10.0, 40_001), 0.0
    weights = stats.norm.pdf(x, 0.5, 0.8) * (x[1] - x[0])
    for i, row in enumerate(ROW):
        shift, t = standard[row] * COLUMNS["common_error_x"][i], x - PIVOT
        y = TRUTH["beta"][row] + TRUTH["alpha"][row] * t + 0.4 * t**2 - 0.5 * np.log1p(COLUMNS["redshift"][i])
        scatter = 0.3 * np.exp(0.6 * t + 0.7 * (-0.5, 0.5)[row])
        std_x, std_y = COLUMNS["sigma_x"][i], np.hypot(scatter, COLUMNS["sigma_y"][i])
        of_x = stats.norm.pdf(COLUMNS["x"][i], x + shift, std_x)
        z = (COLUMNS["y"][i] - y) / std_y
        total += np.log(weights @ (of_x * (stats.norm.cdf(sides[i] * z) if sides[i] else stats.norm.pdf(z) / std_y)))
        if selection != "none":
            passing = stats.norm.cdf((x + shift + 0.6) / std_x)
            if "y" in selection:
                passing = passing * stats.norm.cdf((3.5 - y) / np.hypot(std_y, 0.4))
                total += stats.norm.logcdf((3.5 - COLUMNS["y"][i]) / 0.4)
            total -= np.log(weights @ passing)
    assert found.log_probs["observed"][data.used].sum() == pytest.approx(total, rel=0, abs=1e-7)


@pytest.mark.long
def test_a_parabola_behind_a_limit_is_found_again(monte_carlo):
    """250 points above a limit of y, with a scatter that grows with x; without the selection it is not found."""
    truth = {"alpha": 1.5, "beta": 1.0, "curvature": 0.5, "intrinsic_scatter": 0.3, "scatter_change": 0.5}
    truth |= {"x_mean": 0.3, "x_std": 0.8}
    num = 250
    design = {"x": np.linspace(0.0, 1.0, num), "y": np.full(num, 3.0)}
    design |= {"sigma_x": np.full(num, 0.2), "sigma_y": np.full(num, 0.1)}
    options = {"curved": True, "scatter_with_x": True, "pooling": "complete", "pivot": 0.0}
    model = Relation(selection="y > 0.8", **options)
    with jax.enable_x64(True):
        data, _ = model.simulate(jax.random.key(seed(1)), PointsInGroups.from_columns(design), truth)
    assert data.values[..., 1].min() > 0.8
    found, without = (
        hbm.maximum_likelihood(m, data, num_starts=2, errors="curvature").table for m in (model, Relation(**options))
    )
    for name, value in truth.items():
        monte_carlo.within(found.loc[name, "value"], value, found.loc[name, "std"], name=name)
    assert without.loc["alpha", "value"] < truth["alpha"] - 3.0 * without.loc["alpha", "std"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"curved": True, "student_t": True}, "curved=True expects student_t=False; found True"),
        ({"curved": True, "broken": True}, "expects broken=False|broken=True expects"),
        ({"scatter_with_x": True, "scatter": False}, "scatter_with_x=True expects scatter=True; found False"),
        ({"curved": True, "selection": "x efficiency 0:0 1:1"}, "curved=True expects limits as a selection"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, words):
    with pytest.raises(OptionError, match=words):
        Relation(**options)


def test_points_that_do_not_fit_are_refused():
    limited = PointsInGroups.from_columns(COLUMNS | {"limit_x": ["<", "", "", "", ""]})
    with pytest.raises(DataError, match="one predictor and limits of the response alone; found limits of a predictor"):
        Relation(curved=True).bind(limited)
    with pytest.raises(DataError, match="scatter_group expects scatter and predictors of groups; found no predictors"):
        Relation(priors={"scatter_group": 0.3}).bind(PointsInGroups.from_columns(COLUMNS))
