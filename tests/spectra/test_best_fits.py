"""Best fits of spectra: contours against a plain Poisson likelihood, tables and figures."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from astropy.cosmology import FlatLambdaCDM
from jax import monitoring
from scipy import optimize
from scipy.integrate import quad
from scipy.special import gammaln, ndtr
from scipy.stats import chi2, norm
from small_ogip import small_arf, small_rmf, small_spectrum

import hbm_jax as hbm
from hbm_jax import best_fit
from hbm_jax.best_fits import posterior_fluxes, posterior_lines
from hbm_jax.best_fits.fit import spectrum_table, terms_of
from hbm_jax.inference import ResultFileError
from hbm_jax.models import SpectralFit
from hbm_jax.plotting.xray.profiles import TWO
from hbm_jax.spectra import Response, SpectrumStack

RESPONSE = Response.of(small_rmf(), small_arf())


def photons(index, amplitude, edges):
    return amplitude * np.diff(edges ** (1 - index)) / (1 - index)


@pytest.fixture(scope="module")
def stack():
    rate = RESPONSE.fold(photons(1.5, 3e-3, RESPONSE.energy))
    counts = np.random.default_rng(4).poisson(1234.5678901234 * rate).astype(float)
    return SpectrumStack.of([small_spectrum(counts=counts, response=RESPONSE)])


@pytest.fixture(scope="module")
def best(stack):
    line = "powerlaw + gauss(fe)"
    priors = {"fe_energy": 3.0, "fe_sigma": 0.2, "fe_log10_amplitude": "Uniform(-8, -1)"}
    return best_fit(SpectralFit(line, priors=priors), stack, num_simulations=20, num_starts=3)


def plain(stack, index, log10_amplitude, log10_line, energy=3.0, sigma=0.2):
    """-2 log likelihood written out."""
    line = 10**log10_line * np.diff(ndtr((RESPONSE.energy - energy) / sigma))
    mean = 1234.5678901234 * RESPONSE.fold(photons(index, 10**log10_amplitude, RESPONSE.energy) + line)
    counts = stack.counts[0]
    return -2 * (counts * np.log(mean) - mean - gammaln(counts + 1)).sum()


def test_contours_are_those_of_a_plain_likelihood(stack, best, tmp_path):
    lowest = -2 * best.likelihood.log_likelihood
    grid = best.contour("photon_index", "fe_log10_amplitude", ([1.4, 1.5, 1.7], [-5.0, -3.5, -3.0]))
    start = best.likelihood.table.loc["log10_amplitude", "value"]
    for i, j in [(0, 0), (1, 2), (2, 1)]:
        index, line = grid.grid.axes[0][i], grid.grid.axes[1][j]
        found = optimize.minimize_scalar(
            lambda amplitude, index=index, line=line: plain(stack, index, amplitude, line),
            bracket=(start - 0.1, start + 0.1), tol=1e-10,
        )  # fmt: skip
        assert grid.grid.rise[i, j] == pytest.approx(found.fun - lowest, abs=2e-4)
        assert grid.grid.values["log10_amplitude"][i, j] == pytest.approx(found.x, abs=1e-4)
    assert list(grid.table.columns) == ["photon_index", "fe_log10_amplitude", "rise", "log10_amplitude"]
    assert len(grid.table) == 9
    files = grid.save(tmp_path)
    assert [path.name for path in files] == [
        "contour_photon_index_fe_log10_amplitude.csv",
        "contour_photon_index_fe_log10_amplitude.pdf",
    ]


def test_the_figures_show_levels_and_best_fit(stack, best):
    contour = best.contour("photon_index", "log10_amplitude", (13, 13))
    (axis,) = contour.plot().axes
    shown = axis.figure.legends[0].get_texts()
    assert [text.get_text() for text in shown] == ["68.3 % (2.30)", "90 % (4.61)", "99 % (9.21)", "best fit"]
    assert axis.get_xlabel() == r"$\Gamma$"
    assert axis.get_ylabel().endswith("[photons cm$^{-2}$ s$^{-1}$ keV$^{-1}$]")
    # The drawn contour of 2.30 is where the plain likelihood has risen by so much.
    lines = next(c for c in axis.collections if getattr(c, "levels", None) is not None and len(c.levels) == 3)
    vertices = lines.get_paths()[0].vertices
    for index, amplitude in vertices[:: len(vertices) // 4]:
        found = optimize.minimize_scalar(
            lambda line, index=index, amplitude=amplitude: plain(stack, index, amplitude, line),
            bounds=(-8, -1), method="bounded", options={"xatol": 1e-8},
        )  # fmt: skip
        assert found.fun + 2 * best.likelihood.log_likelihood == pytest.approx(
            TWO[0], abs=0.15
        )  # cubic splines of 13 points
    assert contour._repr_png_()[:4] == b"\x89PNG"
    profile = best.profile("photon_index", 5)
    (axis,) = profile.plot().axes
    assert axis.get_ylabel() == "rise of the statistic"
    np.testing.assert_allclose(axis.get_lines()[0].get_ydata(), profile.grid.rise)


def test_a_contour_needs_two_parameters(best):
    with pytest.raises(ValueError, match="expected two parameters"):
        best.contour("photon_index", "photon_index")


def mean_inverse(index, energy=3.0, sigma=0.2):
    """Mean over the line of one over a power law of amplitude 1."""
    return quad(lambda e: norm.pdf(e, energy, sigma) * e**index, energy - 10 * sigma, energy + 10 * sigma, epsabs=0)[0]


@pytest.mark.long
@pytest.mark.parametrize("level", [pytest.param(0.683, marks=pytest.mark.long), 0.9])
def test_an_equivalent_width_has_the_interval_of_its_profile(stack, best, level):
    table = best.lines(level).set_index("quantity")
    row = table.loc["equivalent width"]
    value = best.likelihood.table["value"]
    width = 10 ** (value["fe_log10_amplitude"] - value["log10_amplitude"]) * mean_inverse(value["photon_index"])
    assert row["value"] == pytest.approx(width, rel=1e-6)
    assert table.loc["photon flux", "value"] == pytest.approx(10 ** value["fe_log10_amplitude"], rel=1e-9)

    def at_width(x, width):
        return plain(stack, x[0], x[1], np.log10(width / mean_inverse(x[0])) + x[1])

    lowest = -2 * best.likelihood.log_likelihood
    ends = [row["upper"]] if row["lower_open"] else [row["lower"], row["upper"]]
    assert (row["lower"] == 0.0) == row["lower_open"]
    for end in ends:
        found = optimize.minimize(at_width, value[["photon_index", "log10_amplitude"]], (end,), method="Nelder-Mead",
                                  options={"xatol": 1e-7, "fatol": 1e-7})  # fmt: skip
        assert found.fun - lowest == pytest.approx(chi2.ppf(level, 1), abs=1e-3)

    assert list(table.columns[-1:]) == ["unit"]


@pytest.mark.long
def test_the_width_of_a_line_with_a_tied_amplitude_has_the_interval_of_its_profile(stack):
    """The equivalent width is then a function of the photon index alone."""
    priors = {"fe_energy": 3.0, "fe_sigma": 0.2, "fe_log10_amplitude": "log10_amplitude - 1"}
    tied = best_fit(SpectralFit("powerlaw + gauss(fe)", priors=priors), stack, num_simulations=0, num_starts=1)
    row = tied.lines(0.9).set_index("quantity").loc["equivalent width"]
    index, amplitude = tied.likelihood.table["value"]
    assert row["value"] == pytest.approx(0.1 * mean_inverse(index), rel=1e-6)
    for end in row[["lower", "upper"]]:
        index = optimize.brentq(lambda index, end=end: 0.1 * mean_inverse(index) - end, 0.0, 3.0, xtol=1e-12)
        found = optimize.minimize_scalar(
            lambda a, index=index: plain(stack, index, a, a - 1), bracket=(amplitude - 0.1, amplitude + 0.1), tol=1e-10
        )
        assert found.fun + 2 * tied.likelihood.log_likelihood == pytest.approx(chi2.ppf(0.9, 1), abs=1e-3)


KEV = 1.602176634e-9  # erg


@pytest.fixture(scope="module")
def faint():
    """A line within the band that the data do not require, at 1.2 keV, with a level of 90 %."""
    line = 4e-4 * np.diff(norm(1.2, 0.05).cdf(RESPONSE.energy))
    rate = RESPONSE.fold(photons(1.5, 3e-3, RESPONSE.energy) + line)
    counts = np.random.default_rng(4).poisson(1234.5678901234 * rate).astype(float)
    stack = SpectrumStack.of([small_spectrum(counts=counts, response=RESPONSE)])
    priors = {"fe_energy": 1.2, "fe_sigma": 0.05, "fe_log10_amplitude": "Uniform(-8, -1)"}
    options = {"num_simulations": 0, "num_starts": 3, "level": 0.9, "bands": [(0.5, 2.0)]}
    return stack, best_fit(SpectralFit("powerlaw + gauss(fe)", priors=priors), stack, **options)


def risen(faint, amplitudes, start):
    """Rise of the statistic, lowest over two parameters; from these follow index and log10 of the two amplitudes."""
    stack, best = faint

    def statistic(x):
        parameters = amplitudes(*x)
        return plain(stack, *parameters, energy=1.2, sigma=0.05) if np.isfinite(parameters).all() else np.inf

    simplex = np.asarray(start, float) + np.array([[0.0, 0.0], [0.05, 0.0], [0.0, 0.1]])
    options = {"xatol": 1e-7, "fatol": 1e-7, "maxiter": 2000, "initial_simplex": simplex}
    with np.errstate(invalid="ignore", divide="ignore"):
        found = optimize.minimize(statistic, simplex[0], method="Nelder-Mead", options=options)
    return found.fun + 2 * best.likelihood.log_likelihood


def power_law_energy(index):
    """Energy flux in 0.5 to 2 keV of a power law of amplitude 1 [keV/cm^2/s]."""
    return (2.0 ** (2 - index) - 0.5 ** (2 - index)) / (2 - index)


@pytest.mark.parametrize("component", ["total", "PowerLaw", "fe"])
def test_fluxes_have_the_intervals_of_their_profiles(faint, component):
    """Against searches at a fixed flux, from which an amplitude follows."""
    value = faint[1].likelihood.table["value"]
    row = faint[1].fluxes.set_index(["component", "quantity"]).loc[(component, "flux")]
    start = value[["photon_index", "log10_amplitude" if component == "fe" else "fe_log10_amplitude"]]
    amplitudes = {
        "total": lambda index, line, flux: (index, np.log10((flux - 1.2 * 10**line) / power_law_energy(index)), line),
        "PowerLaw": lambda index, line, flux: (index, np.log10(flux / power_law_energy(index)), line),
        "fe": lambda index, a, flux: (index, a, np.log10(flux / 1.2)),
    }[component]
    assert row["value"] < row["upper"]
    assert not row["upper_open"]
    assert row["lower_open"] == (component == "fe")  # its upper end is an upper limit
    for end in [row["upper"]] if row["lower_open"] else row[["lower", "upper"]]:
        rise = risen(faint, lambda *x, end=end: amplitudes(*x, end / KEV), start)
        assert rise == pytest.approx(chi2.ppf(0.9, 1), abs=1e-3)


@pytest.mark.long
def test_the_upper_limit_of_a_line_is_where_the_statistic_has_risen_by_2_706(faint):
    best = faint[1]
    table, value = best.lines().set_index("quantity"), best.likelihood.table["value"]
    assert table["lower_open"].all()
    assert (table["lower"] == 0.0).all()
    photon_flux, width = table["upper"]
    start = value[["photon_index", "log10_amplitude"]]
    at_limits = [
        risen(faint, lambda index, a: (index, a, np.log10(photon_flux)), start),
        risen(faint, lambda index, a: (index, a, a + np.log10(width / mean_inverse(index, 1.2, 0.05))), start),
    ]
    np.testing.assert_allclose(at_limits, 2.706, atol=1e-3)


@pytest.mark.long
def test_fluxes_have_values_where_parameters_are_at_bounds_and_lines_outside_the_band(stack):
    """A parameter at its bound is held there: the intervals are those of a fit in which it is fixed."""
    line = "powerlaw + gauss(fe)"
    priors = {"fe_energy": 3.0, "fe_sigma": 0.2, "fe_log10_amplitude": -3.5}
    bands = [(0.5, 0.6), (2.0, 10.0)]
    tables = [
        best_fit(
            SpectralFit(line, priors=priors | {"photon_index": index}),
            stack, num_simulations=0, num_starts=2, bands=bands,
        ).fluxes
        for index in ("Uniform(0, 1.3)", 1.3)
    ]  # fmt: skip
    at_bound, fixed = (table.set_index(["component", "quantity", "low"]).sort_index() for table in tables)
    columns = ["value", "lower", "upper"]
    np.testing.assert_allclose(at_bound[columns], fixed[columns], rtol=1e-4)
    assert at_bound.loc["fe", "value"].loc["flux", 0.5] < 1e-40
    assert np.isfinite(at_bound.loc["total", columns].to_numpy()).all()


def test_a_row_of_latex_has_errors_or_upper_limits(faint):
    best = faint[1]
    table = best.likelihood.table.copy()
    table.loc["fe_log10_amplitude", ["value", "lower", "upper", "lower_open"]] = [-14.0, -np.inf, -3.0394, True]
    limited = dataclasses.replace(best, likelihood=dataclasses.replace(best.likelihood, table=table))
    cells = limited.to_latex().split(" & ")
    assert cells[2] == "$<-3.039$"
    assert cells[0].startswith("$1.52")
    assert "^{+" in cells[0]


def test_lines_of_draws(stack):
    rng = np.random.default_rng(1)
    names = {"photon_index": 1.7, "log10_amplitude": -2.5, "fe_log10_amplitude": -3.0}
    draws = {name: (["chain", "draw"], rng.normal(mean, 0.1, (2, 40))) for name, mean in names.items()}
    model = SpectralFit("powerlaw + gauss(fe)", priors={"fe_energy": 3.0, "fe_sigma": 0.2})
    fit = SimpleNamespace(program=model, posterior=xr.Dataset(draws), data=stack)
    table = posterior_lines(fit, 0.9).set_index("quantity")
    index, amplitude, line = (draws[name][1].ravel() for name in names)
    width = 10 ** (line - amplitude) * np.array([mean_inverse(i) for i in index])
    shown = table.loc["equivalent width", ["lower", "value", "upper", "limit"]].to_numpy(float)
    np.testing.assert_allclose(shown, np.quantile(width, [0.05, 0.5, 0.95, 0.9]), rtol=1e-6)
    assert table.loc["photon flux", "value"] == pytest.approx(10 ** np.median(line), rel=0.02)


def test_fluxes_of_draws(stack):
    """Of two spectra with their own amplitudes, and a line that is tied to the amplitude and to the common index."""
    rng = np.random.default_rng(1)
    index, amplitude = rng.normal(1.7, 0.1, (2, 40)), rng.normal(-2.5, 0.1, (2, 40, 2))
    draws = {"photon_index": (["chain", "draw"], index), "log10_amplitude": (["chain", "draw", "spectrum"], amplitude)}
    priors = {"fe_energy": 1.2, "fe_sigma": 0.05, "fe_log10_amplitude": "log10_amplitude - photon_index"}
    model = SpectralFit("powerlaw + gauss(fe)", own="log10_amplitude", priors=priors)
    both = SpectrumStack.of([small_spectrum(response=RESPONSE), small_spectrum(response=RESPONSE, name="b")])
    fit = SimpleNamespace(program=model, posterior=xr.Dataset(draws), data=both)
    table = posterior_fluxes(fit, [(0.5, 2.0)], z=0.5, level=0.9).set_index(["component", "spectrum", "quantity"])
    assert len(table) == 18
    continuum = 10**amplitude * power_law_energy(index)[..., None]
    line = 1.2 * 10 ** (amplitude - index[..., None])
    parts = {"PowerLaw": continuum, "fe": line, "total": continuum + line}
    for name, draw in parts.items():
        expected = np.quantile(KEV * draw[..., 1], [0.5, 0.05, 0.95, 0.9])
        shown = table.loc[(name, "b", "unabsorbed flux"), ["value", "lower", "upper", "limit"]]
        np.testing.assert_allclose(shown.to_numpy(float), expected, rtol=1e-6)
    area = 4 * np.pi * FlatLambdaCDM(70.0, 0.3).luminosity_distance(0.5).to_value("cm") ** 2
    at_source = KEV * 10 ** amplitude[..., 0] * 1.5 ** (index - 2) * power_law_energy(index)  # 0.5 to 2 keV at rest
    row = table.loc[("PowerLaw", "small", "luminosity")]
    assert row["value"] == pytest.approx(area * np.median(at_source), rel=1e-6)
    widths = posterior_lines(fit).set_index(["spectrum", "quantity"])["value"]
    assert widths["b", "photon flux"] == pytest.approx(np.median(line[..., 1] / 1.2), rel=1e-6)
    with pytest.raises(TypeError, match="posterior_fluxes: expected a fit of a SpectralFit"):
        posterior_fluxes(SimpleNamespace(program=None))
    with pytest.raises(ValueError, match="posterior_fluxes: bands: expected two positive energies"):
        posterior_fluxes(fit, [(2.0, 0.5)])


@pytest.mark.long
def test_the_photon_flux_of_a_line_includes_constant_factors(stack):
    priors = {"photon_index": 1.7, "fe_energy": 3.0, "fe_sigma": 0.2, "log10_amplitude": 0.0}
    model = SpectralFit("cflux(powerlaw + gauss(fe), c) * tbabs", priors=priors | {"nh": 1.0})
    draws = {"c_log10_flux": -11.0, "fe_log10_amplitude": -1.0}
    posterior = xr.Dataset({name: (["chain", "draw"], np.full((1, 2), value)) for name, value in draws.items()})
    table = posterior_lines(SimpleNamespace(program=model, posterior=posterior, data=stack), 0.9).set_index("quantity")
    energy_flux = (10.0**0.3 - 0.5**0.3) / 0.3 + 0.1 * 3.0  # keV/cm^2/s of power law and line, 0.5 to 10 keV
    flux = 0.1 * 1e-11 / 1.602176634e-9 / energy_flux
    assert table.loc["photon flux", "value"] == pytest.approx(flux, rel=1e-6)


def test_a_stored_best_fit_is_the_same(best, tmp_path):
    names = {path.name for path in best.save(tmp_path / "best")}
    assert {"best_fit.npz", "parameters.csv", "spectra.pdf"} <= names
    again = hbm.load(tmp_path / "best")
    assert repr(again) == repr(best)
    for name in ("fluxes", "spectra"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(best, name), check_exact=True)
    pd.testing.assert_frame_equal(again.likelihood.table, best.likelihood.table, check_exact=True)
    pd.testing.assert_frame_equal(again.likelihood.correlation, best.likelihood.correlation, check_exact=True)
    np.testing.assert_array_equal(again.goodness.simulated, best.goodness.simulated)
    assert again.likelihood.parameters == best.likelihood.parameters
    grid = ("photon_index", [1.2, 1.6])
    np.testing.assert_allclose(again.profile(*grid).grid.rise, best.profile(*grid).grid.rise, rtol=1e-9)
    assert again.deviance.total == best.deviance.total
    path = tmp_path / "best" / "best_fit.npz"
    assert repr(hbm.load(path)) == repr(best)
    whole = path.read_bytes()
    for position in np.linspace(0, len(whole) - 1, 30, dtype=int):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 85]) + whole[position + 1 :])
        try:
            hbm.best_fits.load(path)
        except ResultFileError:
            continue
    path.write_bytes(b"PK broken")
    with pytest.raises(ResultFileError, match=r"best_fit.npz: expected a best fit"):
        hbm.best_fits.load(tmp_path / "best")
    with pytest.raises(ResultFileError, match="no such file"):
        hbm.best_fits.load(tmp_path / "nowhere")


def test_one_function_plots_posteriors_and_best_fits(best):
    for figure in (best.plot(), hbm.plotting.spectra(best)):
        assert figure.axes[1].get_ylabel() == "residual"
    for figure in (best.plot("unfolded"), hbm.plotting.unfolded_spectrum(best)):
        assert figure.axes[0].get_title() == "small"
        assert figure._repr_png_()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="expected 'spectra' or 'unfolded'"):
        best.plot("folded")


def test_a_fit_of_other_data_of_the_same_shape_compiles_nothing(stack, best):
    other = stack.replace_observations(stack.counts + 1.0)
    compiled = []

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(duration)

    monitoring.register_event_duration_secs_listener(listen)
    try:
        best_fit(best.model, other, num_simulations=0, num_starts=3, seed=1)
    finally:
        monitoring.unregister_event_duration_listener(listen)
    assert compiled == []


def test_names_of_components_are_not_columns():
    model = SpectralFit("powerlaw(source) + gauss(background)")
    assert list(terms_of(model.spectrum)) == ["source (PowerLaw)", "background (GaussianLine)"]


def test_the_table_of_spectra_has_the_groups_of_each_spectrum(best, stack):
    counts = np.asarray(stack.counts[0])
    in_pairs = np.tile([1, -1], len(counts) // 2)
    spectra = [
        small_spectrum(counts=counts, response=RESPONSE),
        small_spectrum(counts=counts, response=RESPONSE, grouping=in_pairs, name="pairs"),
    ]
    both = SpectrumStack.of(spectra)
    table = spectrum_table(best.model, both, best.model.bound(both), best.likelihood.parameters)
    alone = table[table["spectrum"] == "small"]
    np.testing.assert_array_equal(alone["counts"], counts)
    for name, column in (("counts", counts), ("source", np.asarray(alone["source"]))):
        pairs = table.loc[table["spectrum"] == "pairs", name]
        np.testing.assert_allclose(pairs, column.reshape(-1, 2).sum(axis=1), rtol=1e-9)
