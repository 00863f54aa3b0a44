"""Selected afterglows: densities against direct integrals, draws against rejection, a population with and without."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from monte_carlo import seed
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy import special, stats

import hbm_jax as hbm
from hbm_jax.data import AfterglowPopulation, DataError, read_afterglows, write_afterglows
from hbm_jax.models import Afterglow, Efficiency
from hbm_jax.models.xray.detection import CountLimit, _gamma_nodes, detection_of, with_selection
from hbm_jax.validation import OptionError

HYPER = {
    "photon_index_mean": 1.9, "photon_index_std": 0.25, "log10_flux_mean": -12.1, "log10_flux_std": 0.4,
    "log10_nh_mean": -0.4, "log10_nh_std": 0.5,
}  # fmt: skip
HIDDEN = {"_photon_index": [0.3, -0.5, 0.1], "_log10_flux": [-0.4, 0.2, 0.6], "_log10_nh": [0.5, -0.3, -0.7]}
LEAST = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("afterglows")
    population = AfterglowPopulation(
        redshift=(0.4, 1.5, 4.0), log10_flux=(-11.2, 0.1), exposure=3000.0, min_counts=100, background=3e-3
    )
    return read_afterglows(write_afterglows(folder, population.draw(3, seed=4)), spectra=folder / "spectra")


@pytest.fixture(scope="module")
def plain(data):
    return Afterglow().prepare(data)


@pytest.fixture(scope="module")
def limited(data):
    return Afterglow(selection=f"counts > {LEAST - 1}").prepare(data)


def compiled(model, bound):
    """Change of the log density by the selection, its gradient in the population, and the latents.

    The coordinates of the latents are fixed. The density of the counts is that of all sources.
    """
    hidden = {name: np.array(values) for name, values in HIDDEN.items()}

    def of_latents(model, p):
        return log_density(handlers.block(model, hide=["counts"]), (bound,), {}, p | hidden)[0]

    def change(p):
        return of_latents(model, p) - of_latents(Afterglow(), {name: p[name] for name in HYPER})

    def latents(p):
        trace = handlers.trace(handlers.seed(handlers.substitute(model, p | hidden), 0)).get_trace(bound)
        return {name.removeprefix("_"): trace[name.removeprefix("_")]["value"] for name in HIDDEN}

    return jax.jit(jax.value_and_grad(change)), jax.jit(latents)


def as_arrays(p):
    return {name: np.asarray(value, float) for name, value in p.items()}


def richardson(function, p, *names):
    """Derivative along the sum of parameters."""

    def slope(step):
        ends = (function(p | {name: p[name] + sign * step for name in names}) for sign in (1.0, -1.0))
        return (next(ends) - next(ends)) / (2.0 * step)

    return (4.0 * slope(1e-3) - slope(2e-3)) / 3.0


@pytest.mark.long
def test_the_density_with_a_limit_of_the_flux(plain):
    """Efficiency at the flux over the mean efficiency, a plain integral."""
    p, limit, width = (
        HYPER | {"log10_flux_lim": -11.7, "log10_flux_lim_width": 0.2},
        "log10_flux_lim",
        "log10_flux_lim_width",
    )
    model = Afterglow(selection="log10_flux > Normal(-11.5, 0.5) +- HalfNormal(0.3)")
    nodes = np.linspace(-12.0, 12.0, 4001)
    weights = stats.norm.pdf(nodes) * (nodes[1] - nodes[0])

    with jax.enable_x64(True):
        change, latents = compiled(model, plain)
        found, gradient = change(as_arrays(p))

        def expected(p):
            flux = np.asarray(latents(as_arrays(p))["log10_flux"])
            fluxes = p["log10_flux_mean"] + p["log10_flux_std"] * nodes
            share = np.sum(weights * stats.norm.cdf((fluxes - p[limit]) / p[width]))
            return stats.norm.logcdf((flux - p[limit]) / p[width]).sum() - 3.0 * np.log(share)

        prior = stats.norm.logpdf(p[limit], -11.5, 0.5) + stats.halfnorm.logpdf(p[width], scale=0.3)
        assert float(found) == pytest.approx(expected(p) + prior, abs=1e-8)
        for name in ("log10_flux_mean", "log10_flux_std", "log10_nh_mean"):
            assert float(gradient[name]) == pytest.approx(richardson(expected, p, name), abs=1e-6), name


@pytest.mark.long
def test_the_density_with_an_efficiency_in_the_flux(plain):
    """Efficiency at the flux over its mean, a plain integral."""
    at, probability = (-12.5, -12.0, -11.4), (0.01, 0.4, 1.0)
    model = Afterglow(selection=Efficiency("log10_flux", at, probability))
    fluxes = HYPER["log10_flux_mean"] + HYPER["log10_flux_std"] * np.linspace(-12.0, 12.0, 400_001)
    weights = stats.norm.pdf(fluxes, HYPER["log10_flux_mean"], HYPER["log10_flux_std"]) * (fluxes[1] - fluxes[0])
    with jax.enable_x64(True):
        change, latents = compiled(model, plain)
        difference = float(change(as_arrays(HYPER))[0])
        flux = np.asarray(latents(as_arrays(HYPER))["log10_flux"])
    log_fraction = np.log(np.sum(weights * np.interp(fluxes, at, probability)))
    expected = np.log(np.interp(flux, at, probability)).sum() - 3.0 * log_fraction
    assert difference == pytest.approx(expected, abs=1e-8)


def test_limits_of_the_flux_may_differ_between_sources(data, plain):
    """Efficiency of every source over its own mean efficiency; the limits are stored with the data."""
    limits = np.array([-11.9, -11.6, -12.3])
    other = hbm.data.Afterglows.from_dict(data.to_dict() | {"log10_flux_limit": limits})
    np.testing.assert_array_equal(other.to_dict()["log10_flux_limit"], limits)
    np.testing.assert_array_equal(other.subset([2]).log10_flux_limit, limits[2:])
    assert "log10_flux_limit" not in data.to_dict()
    model = Afterglow(selection="log10_flux > log10_flux_limit +- 0.2")
    detection = detection_of(
        model.selections, HYPER | {"log10_flux_lim_width": 0.2}, with_selection(model, plain, other)
    )
    v = np.array([0.3, -0.5, 1.4])
    found = detection.standardised("log10_flux", dist.Normal().expand((3,)), None).log_prob(v)
    share = stats.norm.logcdf((HYPER["log10_flux_mean"] - limits) / np.hypot(HYPER["log10_flux_std"], 0.2))
    flux = HYPER["log10_flux_mean"] + HYPER["log10_flux_std"] * v
    expected = stats.norm.logpdf(v) + stats.norm.logcdf((flux - limits) / 0.2) - share
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    with pytest.raises(DataError, match=r"expects the column log10_flux_limit .* found none for 3 of 3 sources"):
        with_selection(model, plain, data)


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        {"whim": True, "sightlines": True},
        {"spectrum": "tbabs(mw) * ztbabs(host) * cutoffpl", "galactic": "free"},
        {"spectrum": "tbabs(mw) * (powerlaw + bbodyrad(bb))", "common": "bb_kT"},
    ],
)
def test_a_limit_of_the_flux_beside_other_media_and_spectra(data, options):
    """Efficiency at the fluxes over the mean efficiency, in closed form; drawn fluxes have this distribution."""
    bound = Afterglow(**options).prepare(data, tolerance=1e-2)
    model = Afterglow(selection="log10_flux > -11.7 +- 0.2", **options)
    p = {"log10_flux_mean": -12.1, "log10_flux_std": 0.4}

    def run(model, values, **arguments):
        program = handlers.seed(handlers.substitute(model, values), 1)
        return handlers.trace(program).get_trace(bound, **arguments)

    with jax.enable_x64(True):
        trace = jax.jit(lambda: {n: s["value"] for n, s in run(model, p).items() if s["type"] == "sample"})()
        values = {name: np.asarray(value) for name, value in trace.items() if name != "counts"} | p
        found, reference = (float(log_density(m, (bound,), {}, values)[0]) for m in (model, Afterglow(**options)))
        flux = np.asarray(run(model, values)["log10_flux"]["value"])
    spread = np.hypot(0.4, 0.2)
    expected = stats.norm.logcdf((flux + 11.7) / 0.2) - stats.norm.logcdf((-12.1 + 11.7) / spread)
    assert found - reference == pytest.approx(expected.sum(), abs=1e-8)


def folded(bound, index, log10_nh):
    """log10 of the expected counts of each source at a flux of 1."""
    num = len(bound.z)
    values = {"photon_index": index, "log10_flux": -11.0, "nh": 10.0**log10_nh, "nh_mw": bound.nh_mw, "z": bound.z}
    values = {name: jnp.broadcast_to(jnp.asarray(value, float), (num,)) for name, value in values.items()}
    return 11.0 + jnp.log10(jnp.sum(jnp.where(bound.statistic.used, bound.expected(values), 0.0), axis=1))


def tabulated(bound, index, log10_nh):
    num = len(bound.z)
    return bound.detection.log10_counts_at(jnp.full(num, index), jnp.full(num, log10_nh))


@functools.partial(jax.jit, static_argnames="log10_counts")
def on_grid(bound, index, log10_nh, log10_counts):
    return jax.lax.map(lambda i: jax.lax.map(lambda c: log10_counts(bound, i, c), log10_nh), index)


def log_detected_fractions(bound, p, log10_counts=tabulated):
    """Log of the detected fraction of each source: sums over fine grids of index, column and flux."""
    u, v, w = (np.linspace(-end, end, num) for end, num in ((6.0, 25), (6.5, 53), (6.5, 105)))
    index, log10_nh = p["photon_index_mean"] + p["photon_index_std"] * u, p["log10_nh_mean"] + p["log10_nh_std"] * v
    grid = 10.0 ** np.asarray(on_grid(bound, index, log10_nh, log10_counts))
    background = np.where(bound.statistic.used, bound.statistic.background_moments()[0], 0.0).sum(axis=1)
    flux = 10.0 ** (p["log10_flux_mean"] + p["log10_flux_std"] * w)
    probability = special.gammainc(LEAST, grid[..., None] * flux + background[:, None])
    weights = [stats.norm.pdf(x) / stats.norm.pdf(x).sum() for x in (u, v, w)]
    return np.log(np.einsum("i,j,k,ijnk->n", *weights, probability))


@pytest.mark.long
def test_the_density_with_a_cut_in_counts(limited):
    """Against sums with the table of counts to 1e-7, gradient to 1e-6, and with folds to the error of the table."""
    model, bound = Afterglow(selection=f"counts > {LEAST - 1}"), limited
    with jax.enable_x64(True):
        found, gradient = compiled(model, bound)[0](as_arrays(HYPER))

        def expected(p):
            return -log_detected_fractions(bound, p).sum()

        assert 0.5 < expected(HYPER) < 9.0  # neither all sources are detected, nor hardly any
        assert float(found) == pytest.approx(expected(HYPER), abs=1e-7)
        assert float(found) == pytest.approx(-log_detected_fractions(bound, HYPER, folded).sum(), abs=1e-6)
        for names in (["photon_index_mean", "log10_nh_mean", "log10_flux_std"], HYPER):
            assert sum(float(gradient[name]) for name in names) == pytest.approx(
                richardson(expected, HYPER, *names), abs=3e-6
            )


def test_the_table_of_counts_is_that_of_the_folds(limited):
    bound = limited
    with jax.enable_x64(True):
        index, log10_nh = np.linspace(0.0, 4.0, 9) + 0.03, np.linspace(-2.9, 2.9, 20)
        pair = [np.asarray(on_grid(bound, index, log10_nh, function)) for function in (tabulated, folded)]
    assert np.abs(10.0 ** (pair[0] - pair[1]) - 1.0).max() < 1e-5


@pytest.mark.long
def test_shares_given_latents_average_to_the_share_of_the_population(limited):
    """Those that draws are accepted with: of flux over the flux, of index and flux, of all three."""
    limit, p = limited.detection, as_arrays(HYPER)
    u = np.linspace(-6.5, 6.5, 131)
    weights = stats.norm.pdf(u) / stats.norm.pdf(u).sum()
    flux, index, column = (
        p[f"{name}_mean"] + p[f"{name}_std"] * u for name in ("log10_flux", "photon_index", "log10_nh")
    )
    three = np.ones(3)
    with jax.enable_x64(True):
        of_column = jax.jit(jax.vmap(lambda c: limit.detected_given_column(c * three, p)))(column)
        log_fraction = jax.jit(
            lambda: limit.log_detected_fraction(dist.Normal(p["log10_nh_mean"], p["log10_nh_std"]), p)
        )()
        counts = jax.jit(jax.vmap(lambda i: limit.log10_counts_at(i * three, -0.4 * three)))(index)
        of_index = limit.detected(counts.T + p["log10_flux_mean"], p["log10_flux_std"])
        of_flux = jax.vmap(lambda f: limit.probability(10.0 ** (counts[65] + f)))(flux)
    np.testing.assert_allclose(np.log(weights @ of_column), log_fraction, atol=1e-6)
    np.testing.assert_allclose(of_index @ weights, limit.detected_given_column(-0.4 * three, p), rtol=1e-6)
    np.testing.assert_allclose(weights @ of_flux, of_index[:, 65], rtol=1e-6)


def draws(model, bound, num, key):
    """Latents of the second source, and the counts of its spectrum, in many samples."""

    def draw(key):
        program = handlers.seed(handlers.substitute(model, as_arrays(HYPER)), key)
        trace = handlers.trace(program).get_trace(bound, observed=False)
        names = ("photon_index", "log10_flux", "log10_nh")
        return {name: trace[name]["value"][1] for name in names} | {"counts": jnp.sum(trace["counts"]["value"][1])}

    with jax.enable_x64(True):
        return jax.device_get(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(key), num)))


@pytest.mark.long
@pytest.mark.parametrize("text", ["log10_flux > -12.2 +- 0.1", f"counts > {LEAST - 1}"])
def test_simulated_sources_are_the_detected_ones(plain, limited, text, monte_carlo):
    num = 200
    drawn = draws(Afterglow(selection=text), plain if "flux" in text else limited, num, seed(1))
    everything = draws(Afterglow(), plain, 3 * num, seed(2))
    kept = everything["counts"] >= LEAST
    if "flux" in text:
        kept = np.random.default_rng(seed(3)).normal(size=3 * num) < (everything["log10_flux"] + 12.2) / 0.1
    else:
        assert drawn["counts"].min() >= LEAST
    assert 0.1 < kept.mean() < 0.9
    for name, ours in drawn.items():
        monte_carlo.p_value(stats.ks_2samp(ours, everything[name][kept]).pvalue, name=name)


@pytest.mark.long
def test_a_population_with_and_without_its_selection(tmp_path, monte_carlo):
    """Sixteen sources in wide groups above a limit: without the selection the population is too bright."""
    design = AfterglowPopulation(redshift=(0.5, 3.0), log10_flux=(-11.4, 0.1), exposure=2500.0, min_counts=0)
    catalog = write_afterglows(tmp_path, design.draw(16, seed=seed(5)))
    options = {"grouping": "channels_per_group", "group_by": 100}
    data = read_afterglows(catalog, spectra=tmp_path / "spectra", **options)
    truth = HYPER | {"log10_flux_mean": -11.9}
    selected = Afterglow(selection="log10_flux > -11.7 +- 0.1")
    sample, _ = selected.simulate(jax.random.key(seed(6)), data, truth)
    means = {}
    for name, model in {"with": selected, "without": Afterglow()}.items():
        fit = hbm.sample(model, sample, seed=seed(7), num_chains=2, progress=False)
        draws = fit.posterior["log10_flux_mean"].to_numpy()
        means[name] = draws.mean(), draws.std()
    monte_carlo.within(means["with"][0], -11.9, means["with"][1], name="with the selection")
    # Without it, the mean is that of the detected sources, in closed form.
    spread = np.hypot(0.4, 0.1)
    margin = (-11.9 + 11.7) / spread
    brighter = 0.4**2 / spread * np.exp(stats.norm.logpdf(margin) - stats.norm.logcdf(margin))
    monte_carlo.within(means["without"][0], -11.9 + brighter, means["without"][1], name="without it")
    assert brighter > 3.0 * means["without"][1]


@pytest.mark.long
def test_populations_are_drawn_with_a_limit_of_the_flux(monte_carlo):
    options = {"redshift": (1.0, 2.0, 3.0), "log10_flux": (-11.5, 0.4), "min_counts": 0, "exposure": 100.0}
    sample = AfterglowPopulation(log10_flux_limit=(-11.4, 0.1), **options).draw(60, seed=seed(5))
    flux = np.random.default_rng(seed(6)).normal(-11.5, 0.4, 20_000)
    flux = flux[np.random.default_rng(seed(7)).normal(-11.4, 0.1, 20_000) < flux]
    monte_carlo.p_value(stats.ks_2samp(sample.truth["log10_flux"], flux).pvalue)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"selection": "log10_flux > -12"}, "expects a width.*a step of its density cannot be sampled"),
        ({"selection": "log10_flux < -12 +- 0.1"}, "expected one limit such as"),
        ({"selection": "flux > -12 +- 0.1"}, "expected one limit such as"),
        ({"selection": "counts > 99 +- 2"}, "expects a number of counts"),
        ({"selection": "counts > 9"}, "expects 50 required counts or more.*found 10"),
        ({"selection": "counts > 99", "whim": True}, "expects whim=False; found True"),
        ({"selection": "counts > 99", "spectrum": "tbabs(mw) * cutoffpl"}, 'expects spectrum=None; found "Absorption'),
        ({"selection": "counts > 99", "galactic": "free"}, "expects galactic='fixed'; found 'free'"),
        ({"selection": "log10_flux > -12 +- 0.1", "common": "log10_flux"}, "expects a spectrum with log10_flux"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, words):
    with pytest.raises(OptionError, match=words):
        Afterglow(**options)


@pytest.mark.parametrize(("least", "tolerance"), [(50, 1e-4), (200, 1e-8)])
def test_shares_of_few_detected_sources_are_accurate(least, tolerance):
    """The rule over the time of the last required count, against fine sums over fluxes and the Poisson distribution."""
    times, weights = _gamma_nodes(least)
    for background in (0.0, 0.2 * least):
        for width in (0.05, 0.4):
            mean = np.log10(least - background) - 4.0 * np.hypot(width, 0.43 / np.sqrt(least))
            flux = mean + width * np.linspace(-12.0, 12.0, 20_001)
            density = stats.norm.pdf(flux, mean, width)
            exact = (density * special.gammainc(least, 10.0**flux + background)).sum() / density.sum()
            found = weights @ special.ndtr((mean - np.log10(times - background)) / width)
            assert np.log(found) == pytest.approx(np.log(exact), abs=tolerance)


def test_a_background_of_many_counts_is_refused():
    background = np.array([[6.0, 3.0], [6.0, 9.0]])
    statistic = SimpleNamespace(used=np.ones((2, 2), bool), background_moments=lambda: (background, None))
    with pytest.raises(DataError, match=r"at most 0.2 times the 50 counts.*found 15 counts in source 2"):
        CountLimit.of(SimpleNamespace(z=np.zeros(2), statistic=statistic), 49.0, (0.3, 10.0))


def test_a_selection_by_counts_takes_power_laws_in_any_notation():
    assert Afterglow(selection="counts > 99", spectrum="tbabs(mw) * ztbabs(host) * powerlaw").selections


@pytest.mark.long
def test_sources_with_fewer_counts_are_refused(data):
    with pytest.raises(DataError, match=r"expected 100000 counts or more of every source; found 3 with fewer"):
        Afterglow(selection="counts > 99999").prepare(data)


def test_options_are_stored_and_described(limited):
    model = Afterglow(selection="log10_flux > Normal(-11.5, 0.5) +- 0.1")
    assert Afterglow(**model.to_config()).to_config() == model.to_config()
    assert {"log10_flux_lim", "log10_flux_lim_width"} <= model.all_priors.keys()
    assert "selected by log10_flux > Normal" in model.description
    single = limited.each()
    assert isinstance(single[1].detection, CountLimit)
    assert single[1].detection.thresholds.shape[0] == 1
    assert hbm.models.Afterglow().selections == ()
