"""Figures of afterglows, of one small fit with a WHIM, show what plain NumPy makes of its draws."""

import dataclasses
import types

import numpy as np
import pytest
from scipy.stats import norm
from stored_fits import assert_not_stale, load

import hbm_jax as hbm
from hbm_jax import constants, report
from hbm_jax.absorption import neutral_cross_section, whim_optical_depth
from hbm_jax.cosmology import Cosmology
from hbm_jax.plotting import contours, count_spectra, folded_draws, selected_afterglows
from hbm_jax.plotting.labels import label
from hbm_jax.plotting.xray import populations
from hbm_jax.plotting.xray.figures import figures
from hbm_jax.spectra.statistics.marginal import prior_shape
from plotting.test_figures import decoded, texts

NAMES = ("sim001", "sim002", "sim003")
pytestmark = pytest.mark.long  # their programs take long to compile


@pytest.fixture(scope="module")
def fit():
    return load("afterglow")


def test_the_stored_fit_is_not_stale():
    assert_not_stale("afterglow")


def test_the_report_has_the_figures_of_afterglows(fit):
    assert list(report.figures_for(fit)) == [
        "spectra", "host_columns", "afterglow_populations", "unfolded_spectrum", "whim_contour", "corner", "trace",
    ]  # fmt: skip


def test_every_figure_of_the_report_is_drawn(fit):
    figures = report.figures_for(fit)
    for name in list(figures)[:5]:
        caption, draw = figures[name]
        assert caption.endswith(".")
        assert len(np.unique(np.asarray(decoded(draw(fit)).convert("RGB")).reshape(-1, 3), axis=0)) > 20


def test_folded_model_is_that_of_the_fits_own_program(fit):
    # Independently of `parameters`: the log likelihood that the inference computes by running the program again.
    found = folded_draws.folded(fit, num_draws=10**6)
    statistic = fit.data.spectra.statistic()
    own = hbm.inference.log_likelihood(fit)["counts"].transpose("chain", "draw", ...).to_numpy()
    ours = np.asarray(statistic.log_likelihood(found.source))
    np.testing.assert_allclose(ours, own.reshape(ours.shape), rtol=1e-6, atol=1e-6)  # nodes may be chosen otherwise


def test_background_is_that_of_the_statistic(fit):
    s = fit.data.spectra
    shape = np.array([
        prior_shape(counts[used], mean[used])
        for counts, mean, used in zip(np.asarray(s.background), np.asarray(s.background_mean), s.used, strict=True)
    ])[:, None]  # fmt: skip
    rate = np.asarray(s.ratio) * (1.0 + shape / np.asarray(s.background_mean))
    mean = (np.asarray(s.background) + shape) / rate  # of the Gamma posterior
    found = folded_draws.folded(fit, num_draws=3).background
    np.testing.assert_allclose(found[2], np.where(s.used, mean, 0.0), rtol=1e-12)


def test_bins_hold_all_counts_and_enough_of_them():
    counts = np.array([0, 3, 0, 1, 30, 2, 0, 9, 4, 1], float)
    edges = np.linspace(1.0, 2.0, 11)
    bins = folded_draws.bins_of_enough_counts(counts, edges[:-1], edges[1:])
    assert list(bins.first) == [0, 5]
    np.testing.assert_array_equal(bins.total(counts), [34, 16])
    np.testing.assert_array_equal([bins.low, bins.high], [[1.0, 1.5], [1.5, 2.0]])
    np.testing.assert_array_equal(bins.at_groups([[1.0, 2.0], [3.0, 4.0]], 10), np.repeat([[1, 2], [3, 4]], 5, axis=1))


def test_points_are_rates_with_gehrels_errors(fit):
    s = fit.data.spectra
    seen = folded_draws.points(fit.data.spectra, 0)
    assert seen.counts.sum() == np.asarray(s.counts[0]).sum()
    # Gehrels' approximations are within 2 % of the exact limits, which are quantiles of a Gamma distribution.
    from scipy.stats import gamma

    np.testing.assert_allclose(seen.counts + seen.above, gamma(seen.counts + 1).ppf(norm.cdf(1.0)), rtol=0.02)
    np.testing.assert_allclose(seen.counts - seen.below, gamma(seen.counts).ppf(norm.cdf(-1.0)), rtol=0.02)
    upper = hbm.plotting.spectra(fit, ["sim001"]).axes[0]
    rate = upper.containers[0][0].get_ydata()
    np.testing.assert_allclose(rate, seen.counts / (8000.0 * (seen.bins.high - seen.bins.low)), rtol=1e-9)


def test_cells_are_the_sources_asked_for(fit):
    figure = hbm.plotting.spectra(fit, max_num=2)
    total = np.asarray(fit.data.spectra.counts).sum(axis=1)
    brightest = sorted(np.argsort(-total)[:2])
    assert [axes.get_title().split(",")[0] for axes in figure.axes[::2]] == [NAMES[i] for i in brightest]
    assert "energy [keV]" in texts(figure)
    residual = figure.axes[1].containers[0][0].get_ydata()
    assert np.abs(residual).max() < 5
    with pytest.raises(ValueError, match=r"spectra: expected names among sim001, .*; found 'GRB'"):
        hbm.plotting.spectra(fit, ["GRB"])


def test_residuals_by_hand():
    np.testing.assert_allclose(count_spectra.residuals(np.array([0.0, 4.0]), np.array([2.0, 4.0])), [-2.0, 0.0])
    assert count_spectra.residuals(np.array([9.0]), np.array([4.0]))[0] == pytest.approx(
        np.sqrt(2 * (4 - 9 + 9 * np.log(9 / 4)))
    )


def test_unfolded_spectrum_by_hand(fit):
    p = folded_draws.source_parameters(fit, 1, num_draws=4)
    posterior = fit.posterior.stack(draws=("chain", "draw"))
    np.testing.assert_array_equal(p["nh"][0], 10 ** posterior["log10_nh"].to_numpy()[1, 0])
    np.testing.assert_array_equal(p["log10_n0"][-1], posterior["log10_n0"].to_numpy()[-1])
    energy = np.geomspace(0.3, 10.0, 4001)
    found = count_spectra.unfolded(fit, 1, energy, 4)
    # Integrated over the band it is the flux.
    flux = np.trapezoid(found.unabsorbed / energy, energy, axis=1)
    np.testing.assert_allclose(np.log10(flux), p["log10_flux"], atol=1e-6)
    np.testing.assert_allclose(
        found.unabsorbed[:, -1] / found.unabsorbed[:, 0], (10.0 / 0.3) ** (2.0 - p["photon_index"])
    )
    some = np.array([0.4, 0.7, 1.5])
    found = count_spectra.unfolded(fit, 1, some, 4).transmissions
    z = float(fit.data.z[1])
    np.testing.assert_allclose(
        found["host"], np.exp(-p["nh"][:, None] * neutral_cross_section(some * (1 + z))), rtol=1e-9
    )
    mw = np.exp(-fit.data.nh_mw[1] * neutral_cross_section(some))
    np.testing.assert_allclose(found["Milky Way"], mw * np.ones((4, 1)))
    whim = whim_optical_depth(
        some, z, n0=10 ** p["log10_n0"][2], log10_T=p["log10_T"][2], log10_xi=0.0, metallicity=0.3, abundances="wilm",
        cosmology=Cosmology.flat(H0=70.0, Om0=0.3),
    )  # fmt: skip
    np.testing.assert_allclose(found["WHIM"][2], np.exp(-whim), rtol=1e-4)
    upper, lower = hbm.plotting.unfolded_spectrum(fit, "sim002").axes
    assert [line.get_label() for line in lower.get_lines()] == ["Milky Way", "host", "WHIM", "all absorbers"]
    assert "sim002" in upper.get_title()
    # The unfolded data lie on the model where the counts are those expected.
    assert constants.kev_in_erg == pytest.approx(1.602e-9, rel=1e-3)


def test_host_columns_and_upper_limits(fit):
    draws = fit.posterior["log10_nh"].to_numpy().reshape(-1, 3)
    axis = hbm.plotting.host_columns(fit).axes[0]
    low, median = np.quantile(draws, (0.025, 0.5), axis=0)
    measured = median - low <= 1.0
    x, y = axis.containers[0][0].get_data()
    np.testing.assert_allclose(y, 22.0 + median[measured])
    np.testing.assert_allclose(x, np.log1p(fit.data.z)[measured])
    # A column that is hardly constrained is an upper limit, at its 95 % quantile.
    tree = fit.tree.copy(deep=True)
    tree["posterior"]["log10_nh"][:] = np.linspace(-0.6, -0.4, 60)[:, None]
    tree["posterior"]["log10_nh"][..., 1] = np.linspace(-4.0, 0.0, 60)
    other = dataclasses.replace(fit, tree=tree)
    figure = hbm.plotting.host_columns(fit, other)
    limits = figure.axes[0].containers[-1]
    np.testing.assert_allclose(limits[0].get_ydata(), [22.0 - 4.0 * 0.05], atol=0.02)
    joined = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 2 and line.get_lw() == 0.5]
    assert len(joined) == 3
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"fit", "other", "upper limit, 95 %"} <= labels


def test_whim_contours_hold_their_shares(fit):
    grid = np.linspace(-6.0, 6.0, 400)
    density = np.outer(norm.pdf(grid), norm.pdf(grid))
    # A normal density in the plane is above p at a radius r with 1 - exp(-r^2 / 2) of its mass inside.
    peak = 1.0 / (2.0 * np.pi)
    np.testing.assert_allclose(contours.levels_of(density), [peak * 0.05, peak * 0.32], rtol=0.01)
    figure = hbm.plotting.whim_contour(fit)
    assert figure.axes[0].get_xlabel() == r"$\log_{10}\,n_0$ [cm$^{-3}$]"
    assert figure.axes[0].get_ylabel() == r"$\log_{10}\,T$ [K]"
    held = dataclasses.replace(fit, program=hbm.models.Afterglow(whim=True, priors={"log10_T": 6.0}))
    for program, words in ((held.program, "found fixed values"), (hbm.models.Afterglow(), "one without WHIM")):
        other = dataclasses.replace(fit, program=program)
        assert "whim_contour" not in report.figures_for(other)
        with pytest.raises(ValueError, match=words):
            hbm.plotting.whim_contour(other)


def test_populations_are_densities(fit):
    grid = np.linspace(-8.0, 12.0, 1_000_001)  # a population may be narrow
    density = populations._population(fit, fit.program, "photon_index", grid, 5)
    np.testing.assert_allclose(np.trapezoid(density, grid, axis=1), 1.0, rtol=2e-5)
    figure = hbm.plotting.afterglow_populations(fit)
    assert texts(figure)[0] == r"$\Gamma$"
    ticks = figure.axes[2].get_lines()[0].get_xdata()
    np.testing.assert_allclose(ticks, np.median(fit.posterior["log10_nh"].to_numpy().reshape(-1, 3), axis=0))


def test_fits_that_are_not_of_afterglows_are_refused(own_fit):
    for name in ("spectra", "unfolded_spectrum", "host_columns", "whim_contour", "afterglow_populations"):
        with pytest.raises(ValueError, match=f"{name}: expected a fit of hbm_jax.models.Afterglow"):
            getattr(hbm.plotting, name)(own_fit)
    with pytest.raises(ValueError, match=r"spectral_populations: expected a fit of .*SpectralPopulation"):
        hbm.plotting.spectral_populations(own_fit)


def test_a_spectral_fit_is_drawn_by_its_own_deviance():
    one = load("spectral_fit")
    data = one.data
    found = folded_draws.folded(one)
    draw = {name: one.posterior[name].to_numpy()[0, 2] for name in ("photon_index", "log10_flux", "calibration")}
    np.testing.assert_allclose(found.source[2], one.program.expected(data, draw), rtol=1e-12)
    figure = hbm.plotting.spectra(one)
    assert [axes.get_title() for axes in figure.axes[::2]] == [
        f"{name}, {int(np.sum(counts))} counts" for name, counts in zip(data.name, data.counts, strict=True)
    ]


def test_a_spectral_fit_is_unfolded_by_its_own_expression():
    one = load("spectral_fit")
    energy = np.geomspace(0.3, 10.0, 4001)
    bare, absorbed, transmissions = count_spectra.unfolded(one, 1, energy, num_draws=5)
    flux = np.trapezoid(bare / energy, energy, axis=1)
    np.testing.assert_allclose(np.log10(flux), one.posterior["log10_flux"].to_numpy()[0, :, 1], atol=1e-6)
    steep = bare[:, -1] / bare[:, 0]
    np.testing.assert_allclose(steep, (10.0 / 0.3) ** (2.0 - one.posterior["photon_index"].to_numpy()[0]))
    through = np.exp(-0.3 * neutral_cross_section(energy))  # of the column that is held
    np.testing.assert_allclose(absorbed / bare, np.broadcast_to(through, absorbed.shape), rtol=1e-6)
    assert list(transmissions) == ["mw"]
    np.testing.assert_allclose(transmissions["mw"], np.broadcast_to(through, absorbed.shape), rtol=1e-6)
    upper, lower = hbm.plotting.unfolded_spectrum(one, "sim001").axes
    assert upper.get_title() == "sim001"
    assert [line.get_label() for line in lower.get_lines()] == ["mw", "all absorbers"]


def test_figures_of_another_expression_are_those_of_its_parameters(fit):
    without_host = types.SimpleNamespace(data=fit.data, posterior={"photon_index": None}, program=fit.program)
    assert "host_columns" in figures(fit)
    assert set(figures(fit)) - set(figures(without_host)) == {"host_columns"}
    labels = [axes.get_xlabel() for axes in hbm.plotting.afterglow_populations(fit).axes]
    assert labels == [label("photon_index"), label("log10_flux", "erg/cm^2/s"), label("log10_nh", "1e22/cm^2")]


@pytest.mark.parametrize(
    "text", ["log10_flux > -11.6 +- 0.1", "counts > 99", "log10_flux efficiency -12.0:0.0001 -11.2:1.0"]
)
def test_a_selection_of_afterglows_shows_what_it_leaves_out(fit, text):
    """For the flux, all sources far above the limit are detected; for counts, hidden sources are missing."""
    priors = {"photon_index_mean": 2.0, "photon_index_std": 0.2, "log10_flux_mean": -11.7, "log10_flux_std": 0.4}
    priors |= {"log10_nh_mean": 0.3, "log10_nh_std": 0.9}
    names = ("photon_index", "log10_flux", "log10_nh")
    selected = types.SimpleNamespace(
        program=hbm.models.Afterglow(selection=text, priors=priors), data=fit.data, args=(fit.data,), blinding=None,
        posterior={name: fit.posterior[name] for name in names},
    )  # fmt: skip
    left, right, *efficiency = selected_afterglows(selected).axes
    assert len(efficiency) == ("efficiency" in text)
    missing, detected, sources = left.lines[:3]
    assert len(sources.get_xdata()) == len(fit.data)
    assert len(detected.get_xdata()) + len(missing.get_xdata()) == 1500
    assert detected.get_xdata().mean() > missing.get_xdata().mean() + 0.3
    if "flux" in text:
        assert (missing.get_xdata() < -11.2).all()
        assert (detected.get_xdata() > -12.0).all()
    else:
        assert missing.get_ydata().mean() > detected.get_ydata().mean() + 0.05
    assert right.get_ylabel() == "sources"
    with pytest.raises(ValueError, match="selected_afterglows: expected a fit with a selection"):
        selected_afterglows(fit)
