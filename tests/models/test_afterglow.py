"""The population of afterglows: its density against plain NumPy, its parts against each other, its choices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy import stats
from scipy.special import gammaln

from hbm_jax.data import AfterglowPopulation, DataError, read_afterglows, write_afterglows
from hbm_jax.models import Afterglow
from hbm_jax.models.absorbed_counts import log_amplitude, positive
from hbm_jax.spectra.compression import neutral_at, whim_at
from hbm_jax.spectra.marginal import background_posterior

NUM = 3
HYPER = {
    "photon_index_mean": 1.9,
    "photon_index_std": 0.2,
    "log10_flux_mean": -11.2,
    "log10_flux_std": 0.3,
    "log10_nh_mean": -0.4,
    "log10_nh_std": 0.5,
}
LATENT = {
    "photon_index": np.array([1.7, 2.0, 2.3]),
    "log10_flux": np.array([-11.3, -11.1, -11.0]),
    "log10_nh": np.array([-0.9, -0.2, 0.4]),
}
POINT = HYPER | LATENT
GAS = {"log10_n0": -6.5, "log10_T": 6.1, "log10_xi": 0.0, "metallicity": 0.3}
BAND = (0.3, 10.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("afterglows")
    population = AfterglowPopulation(redshift=(0.4, 1.5, 4.0), log10_flux=(-11.2, 0.1), exposure=3000.0, min_counts=0)
    return read_afterglows(write_afterglows(folder, population.draw(NUM, seed=4)), spectra=folder / "spectra")


def own(p=LATENT, **more):
    """Return what `AbsorbedCounts.expected` takes."""
    return {"photon_index": p["photon_index"], "log10_flux": p["log10_flux"], "nh": 10.0 ** p["log10_nh"], **more}


def log_likelihoods(model, prepared, p):
    """Log likelihood of each source."""
    p = {"nh_mw": prepared.nh_mw, "z": prepared.z} | {k: jnp.asarray(v) for k, v in p.items()}
    both = jax.jit(lambda prepared, p: prepared.statistic.log_likelihood(prepared.expected(p, BAND)).sum(axis=1))
    return np.asarray(both(prepared, p))


def coordinates(model, prepared, point):
    """Return the numbers that are sampled for the latents of a point, and ln |d latents / d numbers| of each source."""
    given = {key: jnp.asarray(value) for key, value in point.items() if key not in LATENT}
    wanted = jnp.stack([point[name] for name in LATENT])

    def latents(x):
        hidden = {f"_{name}": x[k] for k, name in enumerate(LATENT)}
        trace = handlers.trace(handlers.seed(handlers.substitute(model, given | hidden), 0)).get_trace(prepared)
        return jnp.stack([trace[name]["value"] for name in LATENT])

    def slopes(x):
        return jnp.moveaxis(jnp.diagonal(jax.jacfwd(latents)(x), axis1=1, axis2=3), -1, 0)  # (N, 3, 3)

    @jax.jit
    def solve():
        def newton(_, x):
            away = (wanted - latents(x)).T
            return x + jnp.linalg.solve(slopes(x), away[..., None])[..., 0].T

        x = jax.lax.fori_loop(0, 60, newton, jnp.zeros_like(wanted))
        return x, latents(x), jnp.linalg.slogdet(slopes(x))[1]

    x, found, log_jacobian = solve()
    np.testing.assert_allclose(found, wanted, rtol=1e-10)
    return {f"_{name}": x[k] for k, name in enumerate(LATENT)}, log_jacobian


def density(model, prepared, point):
    """Log density of a point in the parameters that have priors, whatever it is sampled in."""
    hidden, log_jacobian = coordinates(model, prepared, point)
    given = {key: jnp.asarray(value) for key, value in point.items() if key not in LATENT} | hidden
    value = jax.jit(lambda p: log_density(model, (prepared,), {}, p)[0])(given)
    return float(value - log_jacobian.sum())


def dense(data, row, *, num=40, gas=None, p=LATENT):
    """Fold by the midpoints of many cells in each bin of the response, in plain NumPy."""
    s = data.spectra
    response = s.responses[row]
    edges = response.energy
    E = (edges[:-1, None] + np.diff(edges)[:, None] * (np.arange(num) + 0.5) / num).ravel()
    z = data.z[row]
    tau = data.nh_mw[row] * neutral_at(E, "wilm") + 10.0 ** p["log10_nh"][row] * neutral_at(E * (1 + z), "wilm")
    if gas is not None:
        tau = tau + whim_at(E, z, [gas["log10_n0"]], [gas["log10_T"]], [gas["metallicity"]], "wilm")[0]
    index = p["photon_index"][row]
    energy_flux = np.trapezoid(np.geomspace(*BAND, 20001) ** (2.0 - index), np.log(np.geomspace(*BAND, 20001)))
    norm = 10.0 ** p["log10_flux"][row] / (energy_flux * 1.602176634e-9)
    photons = (norm * E**-index * np.exp(-tau)).reshape(-1, num).mean(axis=1) * np.diff(edges)
    matrix = response.rmf.matrix.toarray()[response.rows] * response.area[response.rows][:, None]
    counts = photons @ matrix * s.exposure[row]
    groups = s.grouping[row]
    return np.array([counts[groups == g].sum() for g in range(groups.max() + 1)])


def marginal(S, mu, B, ratio, mean):
    """Sum over how many of the counts are background: a Poisson number and a negative binomial one."""
    shape, rate = background_posterior(B, ratio, prior_mean=mean)
    total = np.full(len(S), -np.inf)
    for k in range(int(S.max()) + 1):
        some = k <= S
        n = np.where(some, S - k, 0)
        term = stats.nbinom.logpmf(k, shape, rate / (1 + rate)) + n * np.log(mu) - mu - gammaln(n + 1)
        total = np.logaddexp(total, np.where(some, term, -np.inf))
    return total.sum()


def rows_of(data, row):
    s = data.spectra
    used = s.used[row]
    return [np.asarray(a[row])[used] for a in (s.counts, s.background, s.ratio, s.background_mean)]


@pytest.fixture(scope="module")
def with_whim(data):
    model = Afterglow(whim=True)
    return model, model.prepare(data)


@pytest.mark.parametrize("gas", [None, GAS], ids=["no WHIM", "WHIM"])
def test_log_density_is_that_of_a_plain_numpy_fold(data, with_whim, gas):
    model, prepared = (Afterglow(), Afterglow().prepare(data)) if gas is None else with_whim
    found = log_likelihoods(model, prepared, own(**(gas or {})))
    for row in range(NUM) if gas is None else [1]:
        S, B, ratio, mean = rows_of(data, row)
        exact = marginal(S, dense(data, row, gas=gas), B, ratio, mean)
        # 1e-4 by the choice of energies, the rest by the table of the WHIM and by cells that an edge divides here.
        assert found[row] == pytest.approx(exact, abs=6e-4)
    assert (prepared.errors <= 1e-4).all()
    if gas is None:
        value = density(model, prepared, POINT)
        prior = (
            stats.norm.logpdf(1.9, 2.0, 0.5)
            + stats.halfnorm.logpdf(0.2, scale=0.3)
            + stats.norm.logpdf(-11.2, -11.5, 0.75)
            + stats.halfnorm.logpdf(0.3, scale=0.5)
            + stats.norm.logpdf(-0.4, -0.5, 0.75)
            + stats.halfnorm.logpdf(0.5, scale=0.5)
        )
        for name, values in LATENT.items():
            prior += stats.norm.logpdf(values, HYPER[f"{name}_mean"], HYPER[f"{name}_std"]).sum()
        assert value == pytest.approx(prior + found.sum(), rel=1e-12)


def test_no_column_is_beyond_the_fold(data):
    """1e25 cm^-2 by a plain fold; 1e29 leave no photon, but counts and slopes are sound."""
    model = Afterglow()
    prepared = model.prepare(data)
    dark = {**LATENT, "log10_nh": np.array([3.0, 5.0, 7.0])}
    expected = prepared.expected(own(dark, nh_mw=prepared.nh_mw), BAND)
    assert (np.asarray(expected) > 0).all()
    S, B, ratio, mean = rows_of(data, 0)
    exact = marginal(S, dense(data, 0, p=dark), B, ratio, mean)
    assert log_likelihoods(model, prepared, own(dark))[0] == pytest.approx(exact, abs=6e-4)

    def total(log10_nh):
        p = own({**dark, "log10_nh": log10_nh}, nh_mw=prepared.nh_mw)
        return jnp.sum(prepared.statistic.log_likelihood(prepared.expected(p, BAND)))

    at, h = jnp.array([3.0, 3.0, 7.0]), 1e-5 * np.eye(3)
    slope = np.asarray(jax.grad(total)(at))
    differences = [float(total(at + step) - total(at - step)) / 2e-5 for step in h]
    np.testing.assert_allclose(slope, differences, rtol=1e-4, atol=1e-3)
    assert (slope[:2] < 0).all()  # the less of it, the better


@pytest.mark.parametrize("std", [0.003, 0.05, 0.5])
def test_coordinates_follow_a_population_however_narrow(data, std):
    """0 of what is sampled is about the best there is, by the counts or by the population, whichever say more."""
    model = Afterglow()
    prepared = model.prepare(data)
    free = {name: jnp.asarray(value) for name, value in HYPER.items()} | {"log10_nh_std": jnp.asarray(std)}

    zero = {f"_{name}": jnp.zeros(NUM) for name in LATENT}
    slope = jax.jit(jax.grad(lambda hidden: log_density(model, (prepared,), {}, free | hidden)[0]))(zero)
    for name in ("_photon_index", "_log10_flux", "_log10_nh"):
        # The column of the first is measured, far from a narrow population's: what is quadratic does not reach there.
        assert np.abs(slope[name][1:]).max() < 0.3, name
        assert abs(slope[name][0]) < (5.0 if std < 0.1 else 0.3), name


def test_what_is_not_faint_stays_as_it_is():
    counts = jnp.array([[1000.0, 1e-4, 1e-8, 0.0, -1e-4], [0.0, 0.0, 0.0, 0.0, 0.0]])
    found = np.asarray(positive(counts))
    np.testing.assert_allclose(found[0, :2], [1000.0, 1e-4], rtol=1e-6)
    assert found[0, 2] == pytest.approx(1e-8 / 2 + np.hypot(1e-8, 1e-7) / 2, rel=1e-5)
    assert found[0, 3] == pytest.approx(0.5e-7, rel=1e-5)
    assert found[0, 4] == pytest.approx(0.25e-14 / 1e-4, rel=1e-4)
    assert (found > 0).all()


def test_normalisation_has_the_flux_of_the_band_also_at_index_two():
    index = np.array([-1.0, 1.0, 2.0, 2.0 + 1e-7, 3.5])
    E = np.geomspace(0.5, 8.0, 200001)
    found = np.exp(log_amplitude(jnp.asarray(index), -11.0, (0.5, 8.0)))
    for i, norm in zip(index, found, strict=True):
        assert norm * np.trapezoid(E ** (2.0 - i), np.log(E)) * 1.602176634e-9 == pytest.approx(1e-11, rel=1e-8)
    slope = jax.grad(lambda i: log_amplitude(i, -11.0, (0.5, 8.0)))
    assert float(slope(2.0)) == pytest.approx(0.5 * float(slope(1.99) + slope(2.01)), rel=1e-4)


def test_the_population_is_the_sum_of_its_sources(data, with_whim):
    model, prepared = with_whim
    together = log_likelihoods(model, prepared, own(**GAS))
    singles = prepared.each()
    assert len({str(jax.tree.map(np.shape, one)) for one in singles}) == 1
    assert len({jax.tree.structure(one) for one in singles}) == 1
    for row in range(NUM):
        p = {key: value[row : row + 1] for key, value in own().items()} | GAS
        alone = model.prepare(data.subset([row]))
        assert log_likelihoods(model, alone, p)[0] == pytest.approx(together[row], rel=1e-10)
        assert log_likelihoods(model, singles[row], p)[0] == pytest.approx(together[row], rel=1e-10)


def test_program_is_of_one_size_whatever_the_number_of_sources(data):
    model = Afterglow()

    def size(sample):
        prepared = model.prepare(sample)
        p = HYPER | {f"_{key}": jnp.zeros(len(sample)) for key in LATENT}
        program = jax.make_jaxpr(jax.grad(lambda p: log_density(model, (prepared,), {}, p)[0]))(p)
        return len(program.jaxpr.eqns)

    assert size(data.subset([0, 1])) == size(data)


def test_a_thin_medium_is_none_and_equal_lines_of_sight_are_one(data, with_whim):
    model, prepared = with_whim
    together = log_likelihoods(model, prepared, own(**GAS))
    thin = log_likelihoods(model, prepared, own(**GAS | {"log10_n0": -14.0}))
    without = log_likelihoods(Afterglow(), Afterglow().prepare(data), own())
    np.testing.assert_allclose(thin, without, atol=2e-4)  # other energies
    each = own(**GAS | {"log10_n0": np.full(NUM, GAS["log10_n0"])})
    np.testing.assert_allclose(log_likelihoods(model, prepared, each), together, rtol=1e-12)
    names = sites(Afterglow(whim=True, sightlines=True), prepared)
    assert {"log10_n0", "log10_n0_mean", "log10_n0_std", "log10_T"} <= names.keys()
    assert names["log10_n0"]["value"].shape == (NUM,)


def test_the_ionisation_parameter_can_be_sampled(data, with_whim):
    fixed = log_likelihoods(*with_whim, own(**GAS))
    model = Afterglow(whim=True, priors={"log10_xi": "Uniform(-1, 3)", "metallicity": "Uniform(0, 1)"})
    prepared = model.prepare(data)
    free = log_likelihoods(model, prepared, own(**GAS))
    np.testing.assert_allclose(free, fixed, atol=2e-3)
    assert abs(log_likelihoods(model, prepared, own(**GAS | {"log10_xi": 2.0})) - fixed).max() > 0.1
    assert {"log10_xi", "metallicity"} <= sites(model, prepared).keys()


def sites(model, prepared, **given):
    program = handlers.substitute(model, {key: jnp.asarray(value) for key, value in given.items()})
    return handlers.trace(handlers.seed(program, 0)).get_trace(prepared)


def with_columns(data, **columns):
    return dataclasses.replace(data, **{key: np.asarray(value, float) for key, value in columns.items()})


def test_columns_of_the_milky_way(data):
    fixed = Afterglow()
    prepared = fixed.prepare(data)
    assert "nh_mw" not in sites(fixed, prepared)
    free = sites(Afterglow(galactic="free"), prepared)["nh_mw"]["fn"]
    assert free.batch_shape == (NUM,)
    known = with_columns(data, sigma_nh_mw=np.full(NUM, 1e-3))
    site = sites(Afterglow(galactic="error"), Afterglow(galactic="error").prepare(known), nh_mw=data.nh_mw)["nh_mw"]
    exact = stats.truncnorm.logpdf(0.0, -data.nh_mw / 1e-3, np.inf) - np.log(1e-3)
    np.testing.assert_allclose(site["fn"].log_prob(site["value"]), exact, rtol=1e-6)
    missing = with_columns(data, nh_mw=[0.02, np.nan, 0.03])
    with pytest.raises(DataError, match=r"expected the Galactic column nh_mw .* found none for 1 of 3.*sim002"):
        fixed.prepare(missing)
    with pytest.raises(DataError, match=r"expected a positive sigma_nh_mw of every source; found none for sim001"):
        Afterglow(galactic="error").prepare(data)
    without = Afterglow(galactic="free").prepare(missing)
    values = HYPER | LATENT | {"nh_mw": data.nh_mw}
    free = Afterglow(galactic="free")
    found, expected = (density(free, one, values) for one in (without, free.prepare(data)))
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("whim", [False, True])
@pytest.mark.long
def test_a_redshift_with_an_error_is_a_parameter(data, whim):
    model = Afterglow(whim=whim)
    gas = GAS if whim else {}
    known = log_likelihoods(model, model.prepare(data), own(**gas))
    prepared = model.prepare(with_columns(data, sigma_z=[0.0, 0.1, 0.2]))
    assert list(prepared.uncertain.rows) == [1, 2]
    found = log_likelihoods(model, prepared, own(**gas))
    assert found[0] == pytest.approx(known[0], rel=1e-10)
    # Whole bins of the response instead of chosen energies.
    np.testing.assert_allclose(found, known, atol=0.05)
    assert sites(model, prepared)["z"]["fn"].batch_shape == (2,)

    def of(z):
        p = {k: jnp.asarray(v) for k, v in own(**gas).items()} | {"nh_mw": prepared.nh_mw, "z": z}
        return prepared.statistic.log_likelihood(prepared.expected(p, BAND)).sum()

    z, step = jnp.asarray(data.z), 1e-4
    slope = jax.jit(jax.grad(of))(z)
    ends = jax.jit(jax.vmap(of))(z + step * jnp.array([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]]))
    assert float(slope[1]) == pytest.approx(float(ends[0] - ends[1]) / (2 * step), rel=0.05)


@pytest.mark.long
def test_skew_hosts_have_the_mean_and_the_deviation_of_their_names(data):
    model = Afterglow(host="skew-normal")
    prepared = model.prepare(data)

    def population(shape):
        """Density of one column by the program, over its hidden coordinate."""
        given = {key: jnp.asarray(v) for key, v in HYPER.items()} | {"log10_nh_shape": jnp.asarray(shape)}

        def of(x):
            hidden = {f"_{name}": jnp.zeros(NUM) for name in LATENT} | {"_log10_nh": jnp.full(NUM, x)}
            trace = handlers.trace(handlers.seed(handlers.substitute(model, given | hidden), 0)).get_trace(prepared)
            site = trace["_log10_nh"]
            return trace["log10_nh"]["value"][0], site["fn"].log_prob(site["value"])[0]

        x = jnp.linspace(-40.0, 40.0, 4001)
        (column, log), (slope, _) = jax.vmap(lambda x: jax.jvp(of, (x,), (1.0,)))(x)
        return column, np.exp(log - np.log(slope))

    for shape in (0.0, 4.0, -2.0):
        column, found = population(shape)
        delta = shape / np.sqrt(1 + shape**2) * np.sqrt(2 / np.pi)
        scale = 0.5 / np.sqrt(1 - delta**2)
        exact = stats.skewnorm(shape, -0.4 - scale * delta, scale)
        np.testing.assert_allclose([exact.mean(), exact.std()], [-0.4, 0.5], rtol=1e-9)
        some = (column > -2.5) & (column < 1.5)
        assert some.sum() > 20
        np.testing.assert_allclose(found[some], exact.pdf(column[some]), rtol=1e-6, atol=1e-12)


def test_simulated_counts_have_their_expectation(data):
    model = Afterglow(statistic="cstat")
    bare = dataclasses.replace(data, spectra=without_background(data.spectra))
    prepared = model.prepare(bare)
    narrow = HYPER | {"photon_index_std": 1e-9, "log10_flux_std": 1e-9, "log10_nh_std": 1e-9}
    means = {name: np.full(NUM, HYPER[f"{name}_mean"]) for name in LATENT}
    p = own(means) | {"nh_mw": prepared.nh_mw, "z": prepared.z}
    expected = np.asarray(prepared.expected({k: jnp.asarray(v) for k, v in p.items()}, BAND))
    drawn, truth = model.simulate(jax.random.key(1), bare, narrow)
    again, _ = model.simulate(jax.random.key(1), bare, narrow)
    np.testing.assert_array_equal(drawn.spectra.counts, again.spectra.counts)
    for row in range(NUM):
        total = expected[row].sum()
        assert abs(np.sum(drawn.spectra.counts[row]) - total) < 4 * np.sqrt(total)
    assert truth["log10_nh_mean"] == pytest.approx(-0.4)
    np.testing.assert_allclose(truth["photon_index"], 1.9, atol=1e-7)


def without_background(stack):
    shape = np.shape(stack.counts)
    return dataclasses.replace(stack, background=np.zeros(shape), ratio=np.full(shape, 1e12))


def test_choices_survive_a_file():
    model = Afterglow(
        whim=True,
        sightlines=True,
        galactic="free",
        host="skew-normal",
        statistic="wstat",
        abundances="angr",
        ionization="photo",
        band=(0.5, 8.0),
        priors={"metallicity": "Uniform(0, 1)", "log10_T": 6.0},
    )
    again = Afterglow(**model.to_config())
    assert again.to_config() == model.to_config()
    assert again.all_priors["log10_T"] == 6.0
    assert model.medium == again.medium
    assert model.medium.metallicity is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"galactic": "fix"}, "Did you mean 'fixed'"),
        ({"host": "skew"}, "population of host columns"),
        ({"abundances": "wilms"}, "Did you mean 'wilm'"),
        ({"statistic": "chi2_data"}, "statistic"),
        ({"ionization": "photons"}, "ionisation"),
        ({"sightlines": True}, "expected whim=True with sightlines=True; found whim=False"),
        ({"band": (10.0, 0.3)}, "band: expected two positive energies"),
        ({"priors": {"log10_n0": -7.0}}, "log10_n0"),
        ({"whim": True, "priors": {"log10_t": 6.0}}, "Did you mean 'log10_T'"),
    ],
)
def test_bad_choices_are_named(given, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        Afterglow(**given)
