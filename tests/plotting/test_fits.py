"""The figure of a population of posteriors: every object in its place, the unusable ones marked."""

from io import BytesIO

import matplotlib
import numpy as np
import pytest
from PIL import Image

import hbm_jax as hbm
from hbm_jax.inference.batch.fit_each import ObjectResult
from hbm_jax.inference.batch.results import Fits
from hbm_jax.plotting.style import BLUE, VERMILION, to_png


def fits(num, failed=(), empty=()):
    """Made-up results of so many objects, with medians in no order."""
    medians = np.random.default_rng(2).permutation(num).astype(float)
    done = []
    for i, median in enumerate(medians):
        rate = np.array([median - 1.0, median, median + 2.0, median, 1.5, 1.0, 500.0, 500.0])
        sites = {} if i in empty else {"rate": rate, "theta": np.stack([rate, rate + 100.0])}
        why = "no starting point" if i in empty else "R-hat 1.2" if i in failed else ""
        done.append(ObjectResult(i, sites, 400, 0, 1.0, 8.0, why, None))
    return Fits.assemble([f"GRB {i} $" for i in range(num)], done, {}, {}), medians


def points(axes):
    """Coordinates of the points by colour."""
    return {line.get_color(): np.column_stack(line.get_data()) for line in axes.get_lines() if len(line.get_xdata())}


def bars(axes):
    return np.concatenate([np.stack(collection.get_segments()) for collection in axes.collections])


def test_few_objects_have_rows_with_names():
    result, medians = fits(12, failed=(3,), empty=(7,))
    (axes,) = hbm.plotting.population(result, "rate").axes
    order = [i for i in np.argsort(medians) if i != 7]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [rf"GRB {i} \$" for i in order]
    shown = points(axes)
    np.testing.assert_array_equal(shown[VERMILION], [[medians[3], 11 - order.index(3)]])
    assert len(shown[BLUE]) == 10
    found = bars(axes)
    np.testing.assert_array_equal(found[:, 1, 0] - found[:, 0, 0], 3.0)
    assert axes.get_legend_handles_labels()[1] == ["usable (10)", "not usable (1)", "without a posterior (1)"]
    assert axes.get_xlabel() == "rate"


def test_many_objects_are_in_the_order_of_their_medians():
    result, medians = fits(1000, failed=range(0, 1000, 50))
    figure = hbm.plotting.population(result, "rate")
    (axes,) = figure.axes
    everything = np.concatenate(list(points(axes).values()))
    np.testing.assert_array_equal(everything[np.argsort(everything[:, 0]), 1], np.sort(medians))
    assert len(points(axes)[VERMILION]) == 20
    assert len(bars(axes)) == 1000
    assert axes.get_ylabel() == "rate"
    to_png(figure, dpi=40)


def test_an_element_of_a_vector():
    result, medians = fits(5)
    (axes,) = hbm.plotting.population(result, "theta[1]").axes
    np.testing.assert_array_equal(np.sort(points(axes)[BLUE][:, 0]), np.sort(medians) + 100.0)
    assert axes.get_xlabel() == r"$\theta$[1]"
    assert axes.figure.legends == []


def test_it_leaves_matplotlib_alone():
    from matplotlib import pyplot

    with matplotlib.rc_context({"font.size": 31.0, "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams.copy())
        image = Image.open(BytesIO(to_png(hbm.plotting.population(fits(6)[0], "rate"), dpi=40))).convert("RGB")
        assert dict(matplotlib.rcParams.copy()) == before
    assert pyplot.get_fignums() == []
    assert [255, 0, 0] not in np.unique(np.asarray(image).reshape(-1, 3), axis=0).tolist()


@pytest.mark.parametrize("parameter", ["rat", "theta[2]", "theta"])
def test_an_unknown_parameter_is_refused(parameter):
    with pytest.raises(ValueError, match=r"population: expected parameters among rate, theta\[0\], "):
        hbm.plotting.population(fits(3)[0], parameter)
