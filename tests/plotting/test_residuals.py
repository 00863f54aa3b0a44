"""Hubble residuals, and the intervals of replicates: what is drawn and written is what was computed."""

import copy
import dataclasses
import itertools
import re

import numpy as np
import numpyro
import pandas as pd
import pytest
from numpyro import distributions as dist

import hbm_jax as hbm
from hbm_jax.plotting.supernovae.hubble import modulus_draws, standardise


def test_residuals_and_their_slopes(supernova_fit):
    figure = hbm.plotting.hubble_residuals(supernova_fit)
    data = supernova_fit.data
    points = standardise(supernova_fit)
    residual = points.mu - np.median(modulus_draws(supernova_fit, data), axis=0)
    weight = points.error**-2
    panels = {axes.get_xlabel(): axes for axes in figure.axes}
    measured = data.sigma_log10_mass < 2.0
    rows = {"redshift": (data.z_cmb, slice(None)), "x_1": (data.x1, slice(None)), "log": (data.log10_mass, measured)}
    for text, (values, here) in rows.items():
        axes = next(axes for label, axes in panels.items() if text in label)
        points_drawn = max(axes.get_lines(), key=lambda line: len(line.get_xdata()))
        np.testing.assert_allclose(points_drawn.get_xdata(), values[here])
        np.testing.assert_allclose(points_drawn.get_ydata(), residual[here])
        root = np.sqrt(weight[here])
        design = np.column_stack([np.ones_like(values[here]), values[here]]) * root[:, None]
        solution = np.linalg.lstsq(design, residual[here] * root, rcond=None)[0]
        expected = solution[1] / np.sqrt(np.linalg.inv(design.T @ design)[1, 1])
        assert float(re.search(r"slope ([-+.\d]+) standard", axes.get_title()).group(1)) == pytest.approx(
            expected, abs=0.051
        )
    last = figure.axes[4]
    assert not figure.axes[5].get_visible()
    assert len(last.get_xticklabels()) == len(data.survey_counts)


def test_names_of_many_surveys_do_not_overlap(supernova_fit):
    data = supernova_fit.data
    names = [f"Survey_number_{row % 25}" for row in range(len(data.survey))]
    fit = copy.copy(supernova_fit)
    fit.args = (dataclasses.replace(data, survey=names),)
    figure = hbm.plotting.hubble_residuals(fit)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[4].get_xticklabels()]
    assert len(boxes) == 25
    assert all(a.x1 <= b.x0 for a, b in itertools.pairwise(boxes))
    assert min(box.y0 for box in boxes) >= 0.0


def test_other_fits_have_no_hubble_residuals(own_fit):
    with pytest.raises(ValueError, match="hubble_residuals"):
        hbm.plotting.hubble_residuals(own_fit)


def shifted(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 5.0))
    with numpyro.plate("value", 10):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_only_the_lowest_row_of_replicates_names_the_parameter():
    index = pd.Index(range(3), name="object")
    verdicts = pd.DataFrame({"usable": True, "why": "", "num_draws": 100, "notes": ""}, index=index)
    sites = {i: {"mean": np.array([1.0 + i, 2.0 + i, 3.0 + i, 2.0 + i, 1.0, 1.0, 500.0, 500.0])} for i in range(3)}
    fits = hbm.inference.Fits(list(range(3)), verdicts, {}, {}, sites, {})
    figure = hbm.plotting.replicates({"first": fits, "second": fits}, {"mean": 2.5})
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "mean"]
    assert [axes.get_title() for axes in figure.axes] == [f"{n}: 2 of 3 contain the truth" for n in ("first", "second")]


@pytest.mark.long
def test_intervals_of_replicates():
    samples = list(np.random.default_rng(0).normal(2.0, 1.0, (12, 10)))
    right = hbm.fit_each(shifted, samples, seed=1, num_chains=4, progress=False)
    figure = hbm.plotting.replicates({"right": right}, {"mean": 2.0})
    rows = right.summary(["mean"])
    inside = int(((rows["lower_68"] < 2.0) & (rows["upper_68"] > 2.0)).sum())
    assert 0 < inside < 12
    (axes,) = figure.axes
    assert axes.get_title() == f"right: {inside} of 12 contain the truth"
    intervals = [len(collection.get_segments()) for collection in axes.collections]
    assert intervals == [inside, 12 - inside]
    assert axes.get_xlabel() == "mean"
    with pytest.raises(ValueError, match="replicates: fits 'right': expected parameters among mean; found slope"):
        hbm.plotting.replicates({"right": right}, {"slope": 1.0})
