"""Figures of bursts: what is drawn is what was measured and what the posterior says."""

from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from astropy.cosmology import FlatwCDM
from jax.scipy.special import ndtr
from stored_fits import load

from hbm_jax.data import BurstPopulation, BurstSpectra, BurstSpectraPopulation
from hbm_jax.models import DetectionFunction, Efficiency, Golenetskii, GolenetskiiCounts
from hbm_jax.plotting import selected_bursts
from hbm_jax.plotting.bursts.figures import _log10_area, figures, golenetskii_planes, redshift_predictions


def drawn(axis):
    """Places of all measured points of an axis."""
    return np.concatenate([np.column_stack(bars.lines[0].get_data()) for bars in axis.containers])


def test_both_planes_show_every_interval():
    fit = load("golenetskii")
    left, right = golenetskii_planes(fit).axes
    assert len(drawn(left)) == fit.data.num_intervals == 40
    used, known = fit.data.used, np.isfinite(fit.data.z)
    expected = fit.data.log10_E_peak[used], fit.data.log10_flux[used]
    np.testing.assert_allclose(np.sort(drawn(left), axis=0), np.sort(np.column_stack(expected), axis=0))
    peaks = (fit.data.log10_E_peak + np.log10(1 + fit.data.z)[:, None])[used & known[:, None]]
    np.testing.assert_allclose(np.sort(drawn(right)[:, 0]), np.sort(peaks))
    # The same vertical distances, moved by the distance of each burst: true luminosities lie on the population's band.
    band = right.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() < drawn(right)[:, 1].min() + 1
    assert len(left.lines) >= 6
    assert set(figures(fit)) == {"golenetskii_planes", "redshift_predictions"}


def test_one_line_for_all_bursts():
    fit = load("golenetskii_pooled")
    left, right = golenetskii_planes(fit).axes
    assert len(drawn(left)) == len(drawn(right)) == 108
    line = next(one for one in right.lines if one.get_label() == "population").get_xydata()
    slope = np.polyfit(*line.T, 1)[0]
    assert slope == pytest.approx(float(fit.posterior["gamma"].median()), abs=0.1)
    assert set(figures(fit)) == {"golenetskii_planes"}
    with pytest.raises(ValueError, match="expected bursts of unknown redshift; found none"):
        redshift_predictions(fit)


def test_luminosities_follow_every_free_parameter_of_the_cosmology():
    """Those of wCDM, with astropy's distances."""
    data = load("golenetskii_pooled").data
    draws = {name: (("chain", "draw"), np.full((1, 3), value)) for name, value in (("Om0", 0.3), ("w0", -0.5))}
    model = Golenetskii(cosmology="wcdm", pooling="complete")
    fit = SimpleNamespace(posterior=xr.Dataset(draws), program=model, blinding=None)
    distance = FlatwCDM(H0=70.0, Om0=0.3, w0=-0.5).luminosity_distance(data.z).to_value("cm")
    expected = np.log10(4.0 * np.pi * distance**2)[:, None] + np.asarray(data.log10_k(data.z, model.band))
    np.testing.assert_allclose(_log10_area(fit, model, data, np.asarray(data.z)), expected, rtol=1e-6)


def test_predicted_redshifts_against_given_ones():
    fit, truth = load("golenetskii"), np.array([0.9, 2.4])
    (axis,) = redshift_predictions(fit, truth).axes
    points = next(line for line in axis.lines if line.get_marker() == "o").get_xydata()
    np.testing.assert_allclose(points[:, 0], np.log(truth))
    median = np.log(np.median(fit.posterior["z"].to_numpy(), axis=(0, 1)))
    np.testing.assert_allclose(points[:, 1], median)
    by_name = dict(zip(fit.data.name[-2:], truth, strict=True))
    (again,) = redshift_predictions(fit, by_name).axes
    np.testing.assert_allclose(next(li for li in again.lines if li.get_marker() == "o").get_xydata(), points)
    assert [t.get_text() for t in redshift_predictions(fit).axes[0].get_xticklabels()] != []
    with pytest.raises(ValueError, match="expected the true redshift of sim007; found none"):
        redshift_predictions(fit, {})
    with pytest.raises(ValueError, match=r"expected 2 true redshifts; found shape \(3,\)"):
        redshift_predictions(fit, np.ones(3))


def test_fits_of_something_else_are_refused():
    with pytest.raises(ValueError, match=r"golenetskii_planes: expected a fit of hbm_jax.models.Golenetskii"):
        golenetskii_planes(load("own"))


@pytest.mark.parametrize(
    "text", ["log10_flux > -6.0", pytest.param("log10_peak_flux > -5.2 +- 0.1", marks=pytest.mark.long)]
)
def test_a_selection_of_bursts_shows_what_it_leaves_out(text):
    whole = "peak" in text
    data = BurstPopulation(num_intervals=2, log10_flux_limit=-5.6, redshift=(0.5, 3.0)).draw(20, seed=1).data
    values = {"gamma_mean": 1.5, "gamma_std": 0.2, "log10_N_mean": 52.0, "log10_N_std": 0.3, "intrinsic_scatter": 0.1}
    values |= {"log10_E_peak_mean": 2.6, "log10_E_peak_std": 0.3, "log10_E_peak_scatter": 0.25}
    fit = SimpleNamespace(program=Golenetskii(selection=text, priors=values), data=data, args=(data,), posterior={})
    left, right = selected_bursts(fit).axes
    missing, detected, measured, limit = left.lines
    assert len(measured.get_xdata()) == (20 if whole else 40)
    np.testing.assert_allclose(np.sort(np.unique(measured.get_xdata())), np.sort(np.unique(data.z)))
    # The limit in luminosity rises with redshift, and separates detected and missing ones.
    blur = 0.4 if whole else 0.02  # the limit is interpolated
    edges = [np.interp(line.get_xdata(), *limit.get_data()) for line in (detected, missing)]
    assert (detected.get_ydata() > edges[0] - blur).all()
    assert (missing.get_ydata() < edges[1] + blur).all()
    assert 0.1 < len(detected.get_xdata()) / (len(detected.get_xdata()) + len(missing.get_xdata())) < 0.95
    assert right.get_ylabel() == ("bursts" if whole else "intervals")
    with pytest.raises(ValueError, match="selected_bursts: expected a fit with a selection"):
        selected_bursts(load("golenetskii"))


TABLE, PEAKS = (-6.8, -6.0, -5.0), (1.8, 2.4, 3.0)


@pytest.mark.parametrize(
    "selection",
    [
        pytest.param(Efficiency("log10_flux", TABLE, (0.0, 0.2, 1.0)), marks=pytest.mark.long),
        Efficiency("log10_E_peak", PEAKS, (0.0, 1.0, 0.3)),
        DetectionFunction(lambda peak, flux: ndtr((flux + 6.0 - 0.5 * (peak - 2.3)) / 0.3), "a trigger"),
    ],
    ids=["flux", "peak", "function"],
)
def test_bursts_selected_by_tables_and_functions_show_what_is_missing(selection):
    """The detected fraction of the objects in a bin is the efficiency there."""
    data = BurstPopulation(num_intervals=1, log10_flux_limit=-6.2, redshift=(0.5, 3.0)).draw(20, seed=1).data
    values = {"gamma": 1.5, "log10_N": 52.0, "intrinsic_scatter": 0.3, "log10_E_peak_mean": 2.6}
    model = Golenetskii(selection=selection, pooling="complete", priors=values | {"log10_E_peak_std": 0.3})
    fit = SimpleNamespace(program=model, data=data, args=(data,), posterior={})
    left, right, *efficiency = selected_bursts(fit).axes
    missing, detected, measured = left.lines
    assert len(measured.get_xdata()) == 20
    num = len(detected.get_xdata())
    assert 0.1 < num / (num + len(missing.get_xdata())) < 0.95
    assert right.get_ylabel() == "bursts"
    if isinstance(selection, DetectionFunction):
        assert not efficiency
        return
    every, found = (patch.get_xy() for patch in right.patches[:2])
    full = every[:, 1] > 0.3 * every[:, 1].max()
    fraction = found[full, 1] / every[full, 1]
    assert np.abs(fraction - selection.probability_at(every[full, 0])).mean() < 0.1
    (curve,) = efficiency[0].lines
    np.testing.assert_allclose(curve.get_ydata(), selection.probability_at(curve.get_xdata()))
    assert ("energy" in right.get_xlabel()) == (selection.quantity == "log10_E_peak")


@pytest.mark.long
def test_a_selection_of_bursts_from_counts_shows_what_it_leaves_out():
    """The median of the brightest interval of each burst, and a share of missing bursts that a sum gives too."""
    population = BurstSpectraPopulation(redshift=(1.0, 2.0, 3.0), num_intervals=(2, 1, 2), detectors={"n0": "nai"})
    data = BurstSpectra.of(population.draw(3, seed=5).bursts)
    values = {"gamma_mean": 1.5, "gamma_std": 0.2, "log10_N_mean": 52.0, "log10_N_std": 0.3, "intrinsic_scatter": 0.1}
    values |= {"log10_E_peak_mean": 2.6, "log10_E_peak_std": 0.3, "alpha_mean": -1.0, "alpha_std": 0.2}
    model = GolenetskiiCounts(spectrum="cutoff", selection="log10_peak_flux > -5.8 +- 0.1", priors=values)
    flux = np.array([-5.5, -5.9, -5.6, -5.2, -5.0]) + np.zeros((2, 50, 1))
    posterior = xr.Dataset({"log10_flux": (("chain", "draw", "interval"), flux)})
    fit = SimpleNamespace(program=model, data=data, args=(data,), posterior=posterior, blinding=None)
    left, right = selected_bursts(fit).axes
    missing, detected, measured, limit = left.lines
    np.testing.assert_allclose(measured.get_xdata(), data.z)
    at_bursts = np.interp(np.log(data.z), np.log(limit.get_xdata()), limit.get_ydata())
    np.testing.assert_allclose(measured.get_ydata() - at_bursts, np.array([-5.5, -5.6, -5.0]) + 5.8, atol=1e-3)
    share = len(missing.get_xdata()) / (len(missing.get_xdata()) + len(detected.get_xdata()))
    assert 0.1 < share < 0.9
    assert right.get_ylabel() == "bursts"
