"""Detection limits of surveys in observed bands, and surveys without one: densities by plain integrals, simulation."""

import dataclasses

import jax
import numpy as np
import pytest
from models.densities import LogDensity
from models.test_supernova import FEW
from models.test_supernova_options import MORE_PRIORS, Plain, T, normal
from numpyro import distributions as dist
from scipy import stats

from hbm_jax.data import DataError
from hbm_jax.models import Supernova
from hbm_jax.models.supernovae.bound import padded
from hbm_jax.validation import OptionError

SHIFT, RATIO = np.array([0.3, -0.2, 0.5]), np.array([1.3, 0.8, 2.0])
BAND_PRIORS = {"m_lim_shift": stats.norm(0, 0.5), "m_lim_width_ratio": stats.lognorm(0.5, 0, 1)}


@pytest.fixture(scope="module")
def limited():
    """Six supernovae of JLA in three surveys, the last of which has no limit."""
    few = FEW.subset([0, 2, 4, 6, 9, 12])
    observed_limit = few.m_b + np.array([0.2, -0.1, 0.5, 0.0, np.nan, np.nan])
    return dataclasses.replace(
        few,
        survey=("a", "a", "a", "b", "c", "c"),  # in the order of `survey_counts`: a, c, b
        log10_mass=np.array([9.9, 11.0, 10.1, 8.2, 10.4, 5.0]),
        band_limit=observed_limit,
        band_limit_width=np.where(np.isnan(observed_limit), np.nan, 0.4),
        band_offset=np.array([0.2, -0.5, 0.1, 0.3, 0.0, 0.0]),
        band_colour=np.array([-1.5, 0.4, -0.2, 1.1, 0.0, 0.0]),
    )


def plain(options, data):
    """Log likelihood: each supernova with a limit in m_b and c of its own."""
    index, total = {"a": 0, "c": 1, "b": 2}, 0.0
    for n, survey in enumerate(data.survey):
        one, s = data.subset([n]), index[survey]
        if np.isnan(data.band_limit[n]):
            total += Plain(Supernova(**options), one, T).total()
            continue
        limit = {
            "m_lim": data.band_limit[n] + SHIFT[s] - data.band_offset[n],
            "m_lim_colour": -data.band_colour[n],
            "m_lim_width": data.band_limit_width[n] * RATIO[s],
        }
        total += Plain(Supernova(selection="common", **options), one, T | limit).total()
    return total


def sites_of(model):
    free = [name for name, prior in model.all_priors.items() if isinstance(prior, dist.Distribution)]
    return {name: T.get(name) for name in free} | {"m_lim_shift": SHIFT, "m_lim_width_ratio": RATIO}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="normal"),
        pytest.param({"outliers": True, "mass_error": True}, id="mixture"),
        pytest.param({"stretch": "tail", "colour": "dust"}, id="tails", marks=pytest.mark.long),
        pytest.param({"colour": "broken"}, id="broken", marks=pytest.mark.long),
    ],
)
def test_density_is_a_plain_integral(limited, options):
    model = Supernova(selection="band", priors={"Om0": T["Om0"]}, **options)
    sites = sites_of(model)
    prior = sum(np.sum((MORE_PRIORS | BAND_PRIORS)[name].logpdf(value)) for name, value in sites.items())
    density, gradient = LogDensity(model, limited).with_gradient(sites)
    np.testing.assert_allclose(density - prior, plain(options, limited), rtol=2e-8)
    assert all(np.isfinite(slope).all() for slope in gradient.values())
    # Without a limit the likelihood does not depend on the shift of the survey.
    assert gradient["m_lim_shift"][1] == pytest.approx(-SHIFT[1] / 0.5**2, rel=1e-12)


def test_padding_and_stacking_keep_the_density(limited):
    model = Supernova(selection="band", priors={"Om0": T["Om0"]})
    sites, bound = sites_of(model), model.bound(limited)
    density = LogDensity(model)
    value = density(sites, bound)
    assert density(sites, padded(bound, 9)) == pytest.approx(value, abs=1e-9)
    everywhere = dataclasses.replace(limited, band_limit=limited.m_b + 0.3, band_limit_width=np.full(6, 0.2))
    first = model.bind_each([limited, everywhere])[0]
    assert density(sites, first) == pytest.approx(value, abs=1e-9)


@pytest.mark.long
def test_simulated_supernovae_are_brighter_than_the_limit_in_the_band(limited):
    """A width of 0.004 mag, so that limits are steps; without a limit half of the supernovae are beyond it."""
    many = limited.subset(np.repeat(np.arange(6), 60))
    many = dataclasses.replace(many, band_limit_width=0.01 * many.band_limit_width)
    model = Supernova(selection="band")
    held = {name: T[name] for name in model.all_priors if name in T} | {"H0": 70.0}
    simulated, _ = model.simulate(jax.random.key(2), many, held | {"m_lim_shift": 0.2, "m_lim_width_ratio": 1.0})
    m_obs = simulated.m_b + many.band_offset + many.band_colour * simulated.c
    limit = many.band_limit + 0.2
    assert np.all(m_obs[:240] < limit[:240] + 0.02)
    assert np.max(m_obs[:60] - limit[:60]) > -0.2
    beyond = simulated.m_b[240:] > np.repeat([np.median(simulated.m_b[240:300]), np.median(simulated.m_b[300:])], 60)
    assert 0.4 < beyond.mean() < 0.6


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="normal"),
        pytest.param({"colour": "dust"}, id="dust"),
        pytest.param({"stretch": "tail", "colour": "tail"}, id="tails", marks=pytest.mark.long),
        pytest.param({"outliers": True, "mass_error": True}, id="mixture", marks=pytest.mark.long),
    ],
)
def test_a_cut_in_colour_divides_by_the_fraction_that_passes(options):
    """The fraction is that of a plain integral over observed colours: a normal, or one with an exponential tail."""
    few = FEW.subset([0, 2, 4, 6, 9, 12])
    few = dataclasses.replace(few, log10_mass=np.array([9.9, 11.0, 10.1, 8.2, 10.4, 5.0]))
    cut = Supernova(selection="colour", priors={"Om0": T["Om0"], "c_lim": 0.05}, **options)
    uncut = Supernova(priors={"Om0": T["Om0"]}, **options)
    sites = {n: T[n] for n, prior in uncut.all_priors.items() if isinstance(prior, dist.Distribution)}
    few = few.replace_observations(few.m_b, few.x1, np.minimum(few.c, 0.04))
    std = np.sqrt(T["c_std"] ** 2 + few.covariance[:, 2, 2])
    passed = stats.norm.cdf(0.05, T["c_mean"], np.hypot(std, 1e-3))
    if "colour" in options:
        tail = T["c_dust"] if options["colour"] == "dust" else T["c_tail"]
        passed = stats.exponnorm.cdf(0.05, tail / np.hypot(std, 1e-3), T["c_mean"], np.hypot(std, 1e-3))
    difference = LogDensity(cut, few)(sites) - LogDensity(uncut, few)(sites)
    np.testing.assert_allclose(difference, -np.sum(np.log(passed)), rtol=1e-9)


@pytest.mark.long
def test_simulated_supernovae_are_bluer_than_the_cut():
    many = FEW.subset(np.repeat(np.arange(6), 60))
    held = {name: T[name] for name in T if name in Supernova().all_priors}
    simulated, _ = Supernova(selection="colour").simulate(jax.random.key(1), many, held | {"c_lim": 0.0})
    assert -0.05 < simulated.c.max() < 0.004
    assert np.sum(Supernova().simulate(jax.random.key(1), many, held)[0].c > 0.004) > 60


def test_data_without_limits_are_refused(limited):
    lost = dataclasses.replace(limited, band_limit=np.full(6, np.nan))
    with pytest.raises(DataError, match=r"selection='band' expects detection limits of surveys.*found none"):
        Supernova(selection="band").bind(lost)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="normal"),
        pytest.param({"outliers": True, "mass_error": True}, id="mixture", marks=pytest.mark.long),
    ],
)
def test_limits_and_a_cut_in_colour_divide_by_the_fraction_that_passes_both(limited, options):
    """The fraction of each component is P(m_obs < limit, c < cut) of two normal variables, by SciPy."""
    model = Supernova(selection="band and colour", priors={"Om0": T["Om0"]}, **options)
    sites = sites_of(model)
    prior = sum(np.sum((MORE_PRIORS | BAND_PRIORS)[name].logpdf(value)) for name, value in sites.items())
    index, total = {"a": 0, "c": 1, "b": 2}, 0.0
    for n, survey in enumerate(limited.survey):
        plain_model = Plain(Supernova(**options), limited.subset([n]), T)
        y = np.array([limited.x1[n], limited.c[n], limited.m_b[n]])
        slope, limit, width = np.zeros(3), 100.0, 1.0
        if np.isfinite(limited.band_limit[n]):
            slope = np.array([0.0, limited.band_colour[n], 1.0])
            limit = limited.band_limit[n] + SHIFT[index[survey]] - limited.band_offset[n]
            width = limited.band_limit_width[n] * RATIO[index[survey]]
        slopes = np.stack([slope, [0.0, 1.0, 0.0]])
        margins, widths = np.array([limit, 0.3]), np.array([width, 1e-3])
        density = passed = 0.0
        for weight, mean, covariance, grid in plain_model.components(0):
            mean = mean + np.array([0.0, 0.0, plain_model.redshifts(0)[0][0]])
            density += weight * np.sum(grid * np.exp(normal(y, mean, covariance)))
            scatter = slopes @ covariance @ slopes.T + np.diag(widths**2)
            fraction = stats.multivariate_normal(np.zeros(2), scatter).cdf(margins - mean @ slopes.T)
            passed += weight * np.sum(grid * fraction)
        total += np.log(density) - np.log(passed) + stats.norm.logcdf((margins - slopes @ y) / widths).sum()
    density, gradient = LogDensity(model, limited).with_gradient(sites)
    np.testing.assert_allclose(density - prior, total, rtol=1e-6)
    assert all(np.isfinite(slope).all() for slope in gradient.values())


@pytest.mark.long
def test_simulated_supernovae_pass_limits_and_cut(limited):
    model = Supernova(selection="band and colour", priors={"c_lim": 0.05})
    many = limited.subset(np.tile(np.arange(6), 20))
    parameters = {name: T[name] for name in T if name in model.all_priors} | {"m_lim_shift": 0.0}
    drawn, _ = model.simulate(jax.random.key(4), many, parameters | {"m_lim_width_ratio": 0.05})
    assert drawn.c.max() < 0.05 + 5e-3
    has_limit = np.isfinite(many.band_limit)
    observed = (drawn.m_b + many.band_offset + many.band_colour * drawn.c)[has_limit]
    assert np.all(observed < many.band_limit[has_limit] + 5 * 0.05 * 0.4)
    assert np.std(drawn.c) > 0.03


def test_a_cut_beside_limits_expects_normal_populations():
    with pytest.raises(OptionError, match="selection 'band and colour' expects colour='normal'; found 'dust'"):
        Supernova(selection="band and colour", colour="dust")
    with pytest.raises(OptionError, match=r"expected common, survey or band limits.*found 'none'"):
        Supernova(selection="none and colour")
