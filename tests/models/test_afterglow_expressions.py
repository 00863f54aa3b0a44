"""Populations of any expression: which parameters vary, their density, their counts, and the coordinates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy import stats

import hbm_jax as hbm
from hbm_jax.data import AfterglowPopulation, read_afterglows, write_afterglows
from hbm_jax.models import Afterglow
from hbm_jax.models.varying import varying_of
from hbm_jax.models.xray.absorbed_counts import values_of
from hbm_jax.models.xray.trial_spectra import possible_trials
from hbm_jax.spectra import Parameter, component, photons
from hbm_jax.spectra.folding.fold import photons_in_bins
from hbm_jax.spectra.model import registration
from hbm_jax.spectra.model.absorbers import precise_cross_section

NUM = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("afterglows")
    population = AfterglowPopulation(redshift=(0.4, 1.5, 4.0), log10_flux=(-11.2, 0.1), exposure=3000.0, min_counts=0)
    return read_afterglows(write_afterglows(folder, population.draw(NUM, seed=4)), spectra=folder / "spectra")


@pytest.fixture
def covered():
    """A partial coverer of a user's own, in the population for this test alone."""
    before = dict(registration.REGISTERED)

    @component({"fraction": Parameter("", "Uniform(0.0, 1.0)", "covered fraction")}, kind="multiplicative")
    def partly(energy, fraction):
        return 1.0 - fraction * jnp.exp(-(energy**-2.5))

    yield partly
    registration.REGISTERED.clear()
    registration.REGISTERED.update(before)


def run(model, prepared):
    """Sites of the program at coordinates of 0, its log density there, and ln |d parameters / d coordinates|."""
    hyper = {}
    for varying in model.medium.sites:
        hyper |= {f"{varying.site}_mean": varying.mean[0], f"{varying.site}_std": 0.3 * varying.mean[1]}
    hidden = {f"_{varying.site}": np.zeros(NUM) for varying in model.medium.sites}

    def sites(hidden):
        return handlers.trace(handlers.seed(handlers.substitute(model, hyper | hidden), 0)).get_trace(prepared)

    def parameters(flat):
        trace = sites(dict(zip(hidden, flat.reshape(len(hidden), NUM), strict=True)))
        return jnp.concatenate([trace[v.site]["value"] for v in model.medium.sites])

    @jax.jit
    def evaluated(h):
        slopes = jax.jacfwd(parameters)(jnp.zeros(NUM * len(hidden)))
        density = log_density(model, (prepared,), {}, hyper | h)[0]
        return slopes, density, {name: site["value"] for name, site in sites(h).items() if site["type"] != "plate"}

    slopes, density, trace = evaluated(hidden)
    return trace, float(density) - np.linalg.slogdet(np.asarray(slopes))[1], hyper


@pytest.mark.parametrize(
    ("text", "names"),
    [
        pytest.param(
            "tbabs(mw) * ztbabs(host) * cutoffpl",
            ["photon_index", "log10_e_cut", "log10_flux", "log10_nh"],
            marks=pytest.mark.long,
        ),
        pytest.param(
            "tbabs(mw) * (powerlaw + bbodyrad(bb)) * ztbabs(host)",
            ["photon_index", "log10_flux", "log10_bb_kT", "bb_log10_flux", "log10_nh"],
            marks=pytest.mark.long,
        ),
        ("tbabs(mw) * partly * powerlaw", ["logit_fraction", "photon_index", "log10_flux"]),
    ],
)
def test_density_and_counts_of_an_expression(text, names, data, covered):
    model = Afterglow(spectrum=text)
    assert [v.site for v in model.medium.sites] == names
    assert Afterglow(**model.to_config()).medium == model.medium
    prepared = model.prepare(data)
    assert (prepared.errors <= 1e-4).all()
    assert model.cautions(prepared) == ()
    trace, density, hyper = run(model, prepared)
    p = {v.parameter: v.value(trace[v.site]) for v in model.medium.sites} | {"nh_mw": prepared.nh_mw}
    p |= {"nh": p["host_nh"]} if "host_nh" in p else {}
    with jax.enable_x64(True):
        expected = np.asarray(jax.jit(prepared.expected)(p))
    for row in range(NUM):
        spectrum = model.medium.spectrum(np.asarray(data.z), model.band).of_source(row)
        edges, response = data.spectra.grouped_response(row)
        with jax.enable_x64(True):
            exact = np.asarray(jax.jit(photons(spectrum, edges))(values_of(p, row))) @ response
        np.testing.assert_allclose(expected[row, : len(exact)], exact, rtol=2e-5, atol=1e-6 * exact.sum())
    prior = 0.0
    for v in model.medium.sites:
        mean, std = hyper[f"{v.site}_mean"], hyper[f"{v.site}_std"]
        prior += stats.norm.logpdf(mean, *v.mean) + stats.halfnorm.logpdf(std, scale=v.std)
        prior += stats.norm.logpdf(trace[v.site], mean, std).sum()
    with jax.enable_x64(True):
        likelihood = float(jax.jit(lambda expected: jnp.sum(prepared.statistic.log_likelihood(expected)))(expected))
    assert density == pytest.approx(prior + likelihood, rel=1e-9)


@pytest.mark.long
def test_coordinates_are_about_the_best_there_is(data):
    """At coordinates of 0 the log density of each source is near its maximum, whatever the expression."""
    model = Afterglow(spectrum="tbabs(mw) * ztbabs(host) * cutoffpl")
    prepared = model.prepare(data)
    sites = model.medium.sites
    means = dict(zip((v.site for v in sites), (2.0, 1.0, -11.2, -0.4), strict=True))
    hyper = {f"{name}_mean": mean for name, mean in means.items()} | {f"{name}_std": 0.5 for name in means}
    zero = {f"_{v.site}": np.zeros(NUM) for v in sites}
    slopes = jax.jit(jax.grad(lambda hidden: log_density(model, (prepared,), {}, hyper | hidden)[0]))(zero)
    # In standard deviations; the likelihood of a cut-off energy is not normal.
    assert max(np.abs(slope).max() for slope in slopes.values()) < 3.0


@pytest.mark.long
def test_the_photons_of_lines_are_kept_at_any_width(data):
    """Two sources of known redshift and one of uncertain redshift, behind hosts without and with a column."""
    model = Afterglow(spectrum="tbabs(mw) * ztbabs(host) * (powerlaw + gauss(fe))")
    prepared = model.prepare(dataclasses.replace(data, sigma_z=np.array([0.0, 0.0, 0.1])))
    assert list(prepared.uncertain_rows) == [2]
    assert prepared.known.density is not None
    assert model.cautions(data, prepared) == ()
    energy, mean_flux = np.array([2.0003, 6.4017, 1.3012]), -11.0
    p = {"photon_index": np.full(NUM, 2.0), "log10_flux": np.full(NUM, -12.0), "fe_energy": energy, "z": prepared.z}
    with jax.enable_x64(True):
        counts = jax.jit(prepared.expected)
        for sigma in (0.0, 1e-6, 1e-3, 0.05, 1.0):
            for nh in (0.0, 0.3):
                q = p | {"nh": np.full(NUM, nh), "nh_mw": np.full(NUM, 0.1 * nh), "fe_sigma": np.full(NUM, sigma)}
                bright, faint = (counts(q | {"fe_log10_flux": np.full(NUM, f)}) for f in (mean_flux, -40.0))
                found = np.asarray(bright - faint)
                for row in range(NUM):
                    edges, response = data.spectra.grouped_response(row)
                    width, band = max(sigma, 1e-12), np.array(model.band)
                    profile = stats.norm(energy[row], width)
                    # The mean energy of the line within the band, times its part in the band.
                    unit = energy[row] * np.diff(profile.cdf(band)) - width**2 * np.diff(profile.pdf(band))
                    line = 10.0**mean_flux / (unit[0] * 1.602176634e-9) * np.diff(profile.cdf(edges))
                    if nh:  # the mean transmission of 40 cells in each bin
                        cells = np.linspace(edges[:-1], edges[1:], 41, axis=1)
                        share, middle = np.diff(profile.cdf(cells), axis=1), 0.5 * (cells[:, 1:] + cells[:, :-1])
                        depth = 0.1 * nh * precise_cross_section(middle, "wilm")
                        depth += nh * precise_cross_section(middle * (1.0 + data.z[row]), "wilm")
                        line *= np.sum(share * np.exp(-depth), axis=1) / np.maximum(share.sum(axis=1), 1e-300)
                    exact, size = line @ response, found[row, : response.shape[1]]
                    # Within a bin, hosts of uncertain redshift have one transmission.
                    rtol = 1e-6 if not nh else 2e-2 if row == 2 else 2e-3
                    np.testing.assert_allclose(
                        size, exact, rtol=rtol, atol=rtol * exact.max(), err_msg=f"{row} {sigma} {nh}"
                    )
    values = {f"{v.site}_mean": v.mean[0] for v in model.medium.sites} | {"z": prepared.z[2:]}
    values |= {f"{v.site}_std": 0.3 for v in model.medium.sites}
    values |= {f"_{v.site}": np.zeros(NUM) for v in model.medium.sites}
    slopes = jax.jit(jax.grad(lambda v: log_density(model, (prepared,), {}, v)[0]))(values)
    assert all(np.isfinite(slope).all() for slope in slopes.values())


@pytest.mark.long
def test_a_parameter_can_be_common(data):
    model = Afterglow(
        spectrum="tbabs(mw) * ztbabs(host) * cutoffpl", common="e_cut", priors={"e_cut": "LogNormal(1, 1)"}
    )
    assert "log10_e_cut_mean" not in model.all_priors
    assert model.units["e_cut"] == "keV"
    trace = handlers.trace(handlers.seed(model, 1)).get_trace(model.prepare(data))
    assert np.shape(trace["e_cut"]["value"]) == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"spectrum": "tbabs(mw)"}, "expected a spectrum with an additive component"),
        ({"spectrum": "tbabs(galaxy) * powerlaw"}, "expected absorbers labelled mw or host; found galaxy"),
        ({"spectrum": "powerlaw", "common": "index"}, "parameter of the spectrum 'index'"),
    ],
)
def test_bad_expressions(options, words):
    with pytest.raises(ValueError, match=words):
        Afterglow(**options)


def test_a_default_prior_without_a_population_is_named():
    with pytest.raises(ValueError, match=r"kT: expected a normal, log-normal .*found LogUniform\(0.1, 10\)"):
        varying_of("kT", Parameter("keV", "LogUniform(0.1, 10)", "temperature"))


def test_the_default_is_an_expression_too():
    default, written = Afterglow(whim=True), Afterglow(spectrum="tbabs(mw) * ztbabs(host) * whim * powerlaw")
    assert written.whim
    assert written.all_priors.keys() == default.all_priors.keys()
    assert written.medium.spectrum(1.0, (0.3, 10.0)) == default.medium.spectrum(1.0, (0.3, 10.0))
    assert hbm.models.Afterglow(**written.to_config()).to_config() == written.to_config()


@pytest.mark.long
def test_trial_spectra_are_possible_and_the_fold_is_right_between_them(data):
    """The log likelihoods of trial spectra, by integrals over energy bins, are within 50 of the largest."""
    model = Afterglow(spectrum="tbabs(mw) * ztbabs(host) * (powerlaw + bbodyrad(bb))")
    prepared = model.prepare(data)
    tried = possible_trials(prepared, np.arange(NUM))
    between = [{name: 0.5 * (v + np.roll(v, 1)) for name, v in values.items()} for values in tried]
    with jax.enable_x64(True):
        values = {name: np.stack([v[name] for v in between], axis=1) for name in between[0]}
        folded = np.asarray(jax.jit(jax.vmap(prepared.known))(values))
    for row in range(NUM):
        spectrum = model.medium.spectrum(np.asarray(data.z), model.band).of_source(row)
        edges, response = data.spectra.grouped_response(row)
        num = response.shape[1]
        statistic = jax.tree.map(lambda leaf, row=row: leaf[row] if np.ndim(leaf) else leaf, prepared.statistic)

        def log_likelihood(counts, num=num, statistic=statistic):
            padding = ((0, 0), (0, data.spectra.counts.shape[1] - num))
            with jax.enable_x64(True):
                return np.asarray(jnp.sum(statistic.log_likelihood(np.pad(counts[:, :num], padding)), axis=1))

        at_trials = log_likelihood(photons_in_bins(spectrum, edges, tried[row]) @ response)
        assert at_trials.max() - at_trials.min() < 50.0 + 1e-3
        assert at_trials.max() - np.median(at_trials) > 2.0
        assert np.ptp(np.log10(tried[row]["bb_kT"])) > 0.2
        exact = log_likelihood(photons_in_bins(spectrum, edges, between[row]) @ response)
        np.testing.assert_allclose(log_likelihood(folded[:, row]), exact, rtol=0, atol=3e-4)
