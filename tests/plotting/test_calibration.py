"""The calibration figure shows the ranks as they are, and warns where the verdict does."""

from io import BytesIO

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import hbm_jax as hbm
from hbm_jax.inference.criticism.calibration import Calibration
from hbm_jax.inference.criticism.rank_tests import ECDF_SHARE, LEVEL, RANKS, band, judge_ranks
from hbm_jax.plotting.calibration import MAX_PANELS
from hbm_jax.plotting.style import BLUE, VERMILION, to_png

NUM = 300
RNG = np.random.default_rng(4)


def certificate(shares):
    ranks = pd.DataFrame({name: np.floor(share * RANKS).astype(int) for name, share in shares.items()})
    return Calibration(ranks, judge_ranks(ranks), 0, {})


@pytest.fixture(scope="module")
def result():
    """Even ranks of one parameter; ranks at both ends of another, as of posteriors that are too narrow."""
    return certificate({"mu": (np.arange(NUM) + 0.5) / NUM, "tau": RNG.beta(0.6, 0.6, NUM)})


@pytest.fixture(scope="module")
def figure(result):
    return hbm.plotting.calibration(result)


def test_it_is_drawn_and_leaves_matplotlib_alone(result):
    from matplotlib import pyplot

    with matplotlib.rc_context({"font.size": 31.0, "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams.copy())
        image = Image.open(BytesIO(to_png(hbm.plotting.calibration(result), dpi=40))).convert("RGB")
        assert dict(matplotlib.rcParams.copy()) == before
    assert pyplot.get_fignums() == []
    colours = np.unique(np.asarray(image).reshape(-1, 3), axis=0).tolist()
    assert len(colours) > 20
    assert [255, 0, 0] not in colours


def test_what_fails_has_its_words_and_the_warning_colour(figure, result):
    even, narrow = figure.axes
    assert even.get_title() == r"$\mu$"
    assert narrow.get_title() == r"$\tau$" + "\noverconfident:\nposteriors are too narrow"
    assert [axes.get_lines()[-1].get_color() for axes in figure.axes] == [BLUE, VERMILION]
    assert not result.calibrated


def test_curves_are_those_of_the_ranks(figure, result):
    share, difference = figure.axes[1].get_lines()[-1].get_data()
    assert (share[0], share[-1], difference[0], difference[-1]) == (0.0, 1.0, 0.0, pytest.approx(0.0))
    below = [(result.ranks["tau"] < k).mean() for k in range(RANKS + 1)]
    np.testing.assert_allclose(difference + share, below, atol=1e-12)
    np.testing.assert_allclose(figure.axes[0].get_lines()[-1].get_ydata(), 0.0, atol=1.0 / NUM)


def test_bands_are_those_of_the_verdict_and_of_95_percent(figure):
    for collection, coverage in zip(figure.axes[0].collections, (1.0 - LEVEL * ECDF_SHARE / 2, 0.95), strict=True):
        share, lower, upper = band(NUM, coverage)
        vertices = collection.get_paths()[0].vertices
        for bound in (lower, upper):
            points = np.column_stack([share, bound])
            assert all(np.isclose(vertices, point).all(axis=1).any() for point in points)


def test_a_certificate_that_was_read_again_has_the_same_figure(result, tmp_path):
    again = hbm.plotting.calibration(Calibration.load(result.save(tmp_path / "certificate.json")))
    np.testing.assert_array_equal(
        again.axes[1].get_lines()[-1].get_ydata(), hbm.plotting.calibration(result).axes[1].get_lines()[-1].get_ydata()
    )


@pytest.mark.long
def test_of_very_many_quantities_the_uneven_have_panels_and_the_others_share_one():
    shares = {f"theta[{i}]": RNG.uniform(size=NUM) for i in range(50)} | {"a $": RNG.beta(2.0, 1.0, NUM)}
    figure = hbm.plotting.calibration(certificate(shares))
    assert len(figure.axes) == MAX_PANELS
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[-1] == f"{51 - MAX_PANELS + 1} others, uniform"
    assert titles[-2] == "a \\$\nbiased:\nposteriors lie too low"
    assert len(figure.axes[-1].get_lines()) == 51 - MAX_PANELS + 2
