import dataclasses
from io import BytesIO

import matplotlib
import numpy as np
import pytest
from PIL import Image

from hbm_jax.inference import compare, loo, prior_sensitivity
from hbm_jax.plotting import criticism
from hbm_jax.plotting.style import to_png


@pytest.fixture(scope="module")
def left_out(own_fit):
    return loo(own_fit)


@pytest.fixture(scope="module")
def unreliable(left_out):
    """The second point bad, the fifth refitted."""
    table = left_out.table.copy()
    table.loc[table.index[1], "pareto_k"] = 1.3
    table.loc[table.index[4], ["pareto_k", "refitted"]] = [0.9, True]
    return dataclasses.replace(left_out, table=table)


@pytest.fixture(scope="module")
def compared(left_out, unreliable):
    behind = dataclasses.replace(unreliable, table=unreliable.table.assign(elpd=unreliable.table["elpd"] - 0.3))
    return compare({"own": left_out, "cheaper $": behind})


@pytest.fixture(scope="module")
def sensitivity(own_fit):
    return prior_sensitivity(own_fit)


def texts(axes):
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("name", ["pareto_k", "comparison", "sensitivity"])
def test_figures_are_drawn_and_leave_matplotlib_alone(name, unreliable, compared, sensitivity):
    from matplotlib import pyplot

    result = {"pareto_k": unreliable, "comparison": compared, "sensitivity": sensitivity}[name]
    with matplotlib.rc_context({"font.size": 31.0, "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams.copy())
        figure = getattr(criticism, name)(result)
        image = Image.open(BytesIO(to_png(figure, dpi=40))).convert("RGB")
        assert dict(matplotlib.rcParams.copy()) == before
    assert pyplot.get_fignums() == []
    colours = np.unique(np.asarray(image).reshape(-1, 3), axis=0).tolist()
    assert len(colours) > 20
    assert [255, 0, 0] not in colours


def test_bad_units_are_named_and_refitted_ones_open(unreliable):
    axes = criticism.pareto_k(unreliable).axes[0]
    assert str(unreliable.table.index[1]) in texts(axes)
    assert str(unreliable.table.index[4]) not in texts(axes)
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["good (28)", "bad (1)", "refitted (1)"]
    shown = np.sort(np.concatenate([line.get_ydata() for line in axes.get_lines()[:3]]))
    np.testing.assert_array_equal(shown, np.sort(unreliable.table["pareto_k"]))
    assert axes.get_xlabel().startswith("point")


def test_few_units_have_their_names_at_the_axis(own_fit):
    axes = criticism.pareto_k(loo(own_fit, group=np.repeat(["north", "south", "east"], 10))).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["north", "south", "east"]
    assert axes.get_xlabel() == "group"


def test_comparison_shows_differences_with_their_errors(compared):
    axes = criticism.comparison(compared).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["own", r"cheaper \$"]
    row = compared.table.iloc[1]
    two_errors, one_error = axes.get_lines()[2:4]
    np.testing.assert_allclose(two_errors.get_xdata(), row["elpd_diff"] + 2 * row["dse"] * np.array([-1, 1]))
    np.testing.assert_allclose(one_error.get_xdata(), row["elpd_diff"] + row["dse"] * np.array([-1, 1]))
    assert texts(axes)[0].startswith("best, weight")
    assert texts(axes)[1].endswith("1 bad $k$")


def test_comparison_shows_evidences_where_there_are_several(compared):
    table = compared.table.assign(log_evidence=[-12.5, -10.25])
    evidences = dict.fromkeys(table.index)
    axes = criticism.comparison(dataclasses.replace(compared, table=table, evidences=evidences)).axes[0]
    assert [text.split("; ")[-1] for text in texts(axes)] == [r"$\Delta \ln Z = -2.25$", r"$\Delta \ln Z = 0.00$"]


def test_sensitivity_names_what_is_decided_by_a_prior(sensitivity):
    table = sensitivity.table.assign(prior=[0.2, 0.0], diagnosis=["possible conflict of prior and data", "fine"])
    table["strongest_prior"] = "sigma"
    axes = criticism.sensitivity(dataclasses.replace(sensitivity, table=table)).axes[0]
    assert texts(axes) == ["possible conflict of prior and data\n(prior of $\\sigma$)"]
    likelihood, prior = (line.get_xdata() for line in axes.get_lines()[-2:])
    np.testing.assert_allclose(prior, [0.2, 1e-3])
    np.testing.assert_allclose(likelihood, table["likelihood"])
