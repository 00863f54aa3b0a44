"""The population of afterglows: its density against plain NumPy, its parts against each other, its choices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_whim import whim_depth
from jax.flatten_util import ravel_pytree
from monte_carlo import seed
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy import stats
from scipy.special import gammaln

from hbm_jax.data import AfterglowPopulation, DataError, read_afterglows, write_afterglows
from hbm_jax.models import Afterglow
from hbm_jax.models.xray.absorbed_counts import positive
from hbm_jax.spectra.model.absorbers import precise_cross_section
from hbm_jax.spectra.model.components import PowerLaw
from hbm_jax.spectra.statistics.marginal import background_posterior

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
GAS = {"log10_n0": -6.5, "log10_T": 6.1, "log10_xi": 0.0, "metallicity": 0.3}
BAND = (0.3, 10.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("afterglows")
    population = AfterglowPopulation(redshift=(0.4, 1.5, 4.0), log10_flux=(-11.2, 0.1), exposure=3000.0, min_counts=0)
    return read_afterglows(write_afterglows(folder, population.draw(NUM, seed=4)), spectra=folder / "spectra")


@pytest.fixture(scope="module")
def prepared(data):
    return Afterglow().prepare(data)


@pytest.fixture(scope="module")
def with_whim(data):
    """The model with a medium, and two of the sources for it."""
    model = Afterglow(whim=True)
    return model, model.prepare(data.subset([0, 1]))


def own(p=LATENT, rows=slice(None), **more):
    """Return what `AbsorbedCounts.expected` takes."""
    p = {name: values[rows] for name, values in p.items()}
    return {"photon_index": p["photon_index"], "log10_flux": p["log10_flux"], "nh": 10.0 ** p["log10_nh"], **more}


# One compiled function each for the samples and the parameters of one shape.
expected_counts = jax.jit(lambda prepared, p: prepared.expected(p))
_log_likelihoods = jax.jit(lambda prepared, p: prepared.statistic.log_likelihood(prepared.expected(p)).sum(axis=1))
_total_and_slopes = jax.jit(jax.value_and_grad(lambda p, prepared: jnp.sum(_log_likelihoods(prepared, p))))


def completed(prepared, p):
    p = {"nh_mw": prepared.nh_mw, "z": prepared.z} | p
    return {name: np.asarray(value, float) for name, value in p.items()}


def log_likelihoods(prepared, p):
    """Log likelihood of each source."""
    return np.asarray(_log_likelihoods(prepared, completed(prepared, p)))


@functools.cache
def program(**options):
    """Compiled: log density of a model's program, ln |d parameters / d coordinates|, and the parameters.

    Its arguments are the sample, parameters that are sampled as they are, and the coordinates of all others.
    """
    model = Afterglow(**options)

    def run(prepared, given, hidden):
        flat, unravel = ravel_pytree(hidden)

        def parameters(flat):
            sites = given | unravel(flat)
            trace = handlers.trace(handlers.seed(handlers.substitute(model, sites), 0)).get_trace(prepared)
            names = [*LATENT, *(("log10_T", DENSITY[model.sightlines]) if "_whim" in hidden else ())]
            return {name: trace[name]["value"] for name in names}

        slopes = jax.jacfwd(lambda flat: ravel_pytree(parameters(flat))[0])(flat)
        density = log_density(model, (prepared,), {}, given | hidden)[0]
        return density, jnp.linalg.slogdet(slopes)[1], parameters(flat)

    return jax.jit(run)


DENSITY = {False: "log10_n0", True: "log10_n0_mean"}
HIDDEN = {"_photon_index": [0.3, -0.5, 0.1], "_log10_flux": [-0.4, 0.2, 0.6], "_log10_nh": [0.5, -0.3, -0.7]}


def without_jacobian(prepared, given=None, medium=None, **options):
    """Log density of the program in its parameters at coordinates about 0, and these parameters."""
    num = len(prepared.z)
    hidden = {name: np.array(values[:num]) for name, values in HIDDEN.items()}
    hidden |= {} if medium is None else {"_whim": np.array(medium)}
    density, log_jacobian, found = program(**options)(prepared, HYPER | (given or {}), hidden)
    return float(density - log_jacobian), {name: np.asarray(values) for name, values in found.items()}


def log_prior(found, columns=None):
    """Log density of population and latents, the columns' aside where they are not normal."""
    prior = (
        stats.norm.logpdf(1.9, 2.0, 0.5)
        + stats.halfnorm.logpdf(0.2, scale=0.3)
        + stats.norm.logpdf(-11.2, -11.5, 0.75)
        + stats.halfnorm.logpdf(0.3, scale=0.5)
        + stats.norm.logpdf(-0.4, -0.5, 0.75)
        + stats.halfnorm.logpdf(0.5, scale=0.5)
    )
    laws = {name: stats.norm(HYPER[f"{name}_mean"], HYPER[f"{name}_std"]) for name in LATENT}
    laws |= {} if columns is None else {"log10_nh": columns}
    return prior + sum(law.logpdf(found[name]).sum() for name, law in laws.items())


def dense(data, row, *, num=40, gas=None, p=LATENT):
    """Fold by the midpoints of many cells in each bin of the response, in plain NumPy."""
    s = data.spectra
    response = s.responses[row]
    edges = response.energy
    E = (edges[:-1, None] + np.diff(edges)[:, None] * (np.arange(num) + 0.5) / num).ravel()
    z = data.z[row]
    tau = data.nh_mw[row] * precise_cross_section(E, "wilm") + 10.0 ** p["log10_nh"][row] * precise_cross_section(
        E * (1 + z), "wilm"
    )
    if gas is not None:
        tau = tau + whim_depth(E, z, [gas["log10_n0"]], [gas["log10_T"]], [gas["metallicity"]], "wilm")[0]
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


def test_log_likelihoods_are_those_of_a_plain_numpy_fold(data, prepared):
    found = log_likelihoods(prepared, own())
    for row in range(NUM):
        S, B, ratio, mean = rows_of(data, row)
        exact = marginal(S, dense(data, row), B, ratio, mean)
        # 1e-4 by the choice of energies, the rest by cells that an edge divides here.
        assert found[row] == pytest.approx(exact, abs=6e-4)
    assert (prepared.errors <= 1e-4).all()
    assert Afterglow().cautions(prepared) == ()
    worse = dataclasses.replace(prepared, errors=np.append(prepared.errors[:-1], 0.2))
    assert f"spectrum number {NUM} changes the log likelihood by up to 0.2 " in Afterglow().cautions(worse)[0]


@pytest.mark.long
def test_log_likelihoods_behind_a_medium_are_those_of_a_plain_numpy_fold(data, with_whim):
    _, prepared = with_whim
    S, B, ratio, mean = rows_of(data, 1)
    exact = marginal(S, dense(data, 1, gas=GAS), B, ratio, mean)
    assert log_likelihoods(prepared, own(rows=[0, 1], **GAS))[1] == pytest.approx(exact, abs=6e-4)
    assert (prepared.errors <= 1e-4).all()


def test_log_density_is_that_of_population_and_counts(prepared):
    value, found = without_jacobian(prepared)
    likelihood = log_likelihoods(prepared, own(found)).sum()
    assert value == pytest.approx(log_prior(found) + likelihood, rel=1e-12)


def test_log_density_with_skew_hosts(prepared):
    """The name says the mean and the standard deviation, whatever the shape."""
    for shape in (0.0, 4.0, -2.0):
        value, found = without_jacobian(prepared, {"log10_nh_shape": shape}, host="skew-normal")
        delta = shape / np.sqrt(1 + shape**2) * np.sqrt(2 / np.pi)
        scale = 0.5 / np.sqrt(1 - delta**2)
        columns = stats.skewnorm(shape, -0.4 - scale * delta, scale)
        np.testing.assert_allclose([columns.mean(), columns.std()], [-0.4, 0.5], rtol=1e-9)
        expected = log_prior(found, columns) + stats.norm.logpdf(shape, 0.0, 3.0)
        assert value == pytest.approx(expected + log_likelihoods(prepared, own(found)).sum(), rel=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("sightlines", [False, pytest.param(True, marks=pytest.mark.long)])
def test_log_density_with_a_medium(with_whim, sightlines):
    _, prepared = with_whim
    n0 = np.array([-6.8, -7.3])
    given = {"log10_n0_std": 0.25, "log10_n0": n0} if sightlines else {}
    value, found = without_jacobian(prepared, given, [0.3, -0.4], whim=True, sightlines=sightlines)
    mean = float(found[DENSITY[sightlines]])
    expected = log_prior(found) + stats.uniform.logpdf(found["log10_T"], 4.5, 3.0) + stats.norm.logpdf(mean, -7.0, 0.5)
    if sightlines:
        expected += stats.halfnorm.logpdf(0.25, scale=0.3) + stats.norm.logpdf(n0, mean, 0.25).sum()
    gas = GAS | {"log10_T": found["log10_T"], "log10_n0": n0 if sightlines else mean}
    latents = {name: found[name] for name in LATENT}
    assert value == pytest.approx(expected + log_likelihoods(prepared, own(latents, **gas)).sum(), rel=1e-12)


def test_no_column_is_beyond_the_fold(data, prepared):
    """1e25 cm^-2 by a plain fold; 1e29 leave no photon, but counts and slopes are sound."""
    dark = {**LATENT, "log10_nh": np.array([3.0, 5.0, 7.0])}
    assert (np.asarray(expected_counts(prepared, completed(prepared, own(dark)))) > 0).all()
    S, B, ratio, mean = rows_of(data, 0)
    exact = marginal(S, dense(data, 0, p=dark), B, ratio, mean)
    assert log_likelihoods(prepared, own(dark))[0] == pytest.approx(exact, abs=6e-4)

    def at(log10_nh):
        p = completed(prepared, own({**dark, "log10_nh": log10_nh}))
        value, slopes = _total_and_slopes(p, prepared)
        return float(value), np.asarray(slopes["nh"]) * p["nh"] * np.log(10.0)

    columns, h = np.array([3.0, 3.0, 7.0]), 1e-5 * np.eye(3)
    slope = at(columns)[1]
    differences = [(at(columns + step)[0] - at(columns - step)[0]) / 2e-5 for step in h]
    np.testing.assert_allclose(slope, differences, rtol=1e-4, atol=1e-3)
    assert (slope[:2] < 0).all()  # the less of it, the better


def test_coordinates_follow_a_population_however_narrow(prepared):
    """0 of what is sampled is about the best there is, by the counts or by the population, whichever say more."""
    model = Afterglow()
    zero = {f"_{name}": np.zeros(NUM) for name in LATENT}
    slope_of = jax.jit(jax.grad(lambda hidden, free: log_density(model, (prepared,), {}, free | hidden)[0]))
    for std in (0.003, 0.05, 0.5):
        slope = slope_of(zero, HYPER | {"log10_nh_std": std})
        for name in ("_photon_index", "_log10_flux", "_log10_nh"):
            one = np.asarray(slope[name])
            # The column of the first is measured, far from a narrow population's: what is quadratic does not reach.
            assert np.abs(one[1:]).max() < 0.3, (name, std)
            assert abs(one[0]) < (5.0 if std < 0.1 else 0.3), (name, std)


def test_what_is_not_faint_stays_as_it_is():
    counts = np.array([[1000.0, 1e-4, 1e-8, 0.0, -1e-4], [0.0, 0.0, 0.0, 0.0, 0.0]])
    found = np.asarray(jax.jit(positive)(counts))
    np.testing.assert_allclose(found[0, :2], [1000.0, 1e-4], rtol=1e-6)
    assert found[0, 2] == pytest.approx(1e-8 / 2 + np.hypot(1e-8, 1e-7) / 2, rel=1e-5)
    assert found[0, 3] == pytest.approx(0.5e-7, rel=1e-5)
    assert found[0, 4] == pytest.approx(0.25e-14 / 1e-4, rel=1e-4)
    assert (found > 0).all()


def test_normalisation_has_the_flux_of_the_band_also_at_index_two():
    index = np.array([-1.0, 1.0, 2.0, 2.0 + 1e-7, 3.5, 1.99, 2.01])
    E = np.geomspace(0.5, 8.0, 200001)
    at_pivot = PowerLaw(norm=(0.5, 8.0)).on([1.0])

    def log_amplitude(index):
        return jnp.log(at_pivot({"photon_index": index, "log10_flux": -11.0})[0])

    both = jax.jit(jax.vmap(jax.value_and_grad(log_amplitude)))
    logarithm, slope = (np.asarray(values) for values in both(index))
    for i, norm in zip(index, np.exp(logarithm), strict=True):
        assert norm * np.trapezoid(E ** (2.0 - i), np.log(E)) * 1.602176634e-9 == pytest.approx(1e-11, rel=1e-8)
    assert slope[2] == pytest.approx(0.5 * (slope[5] + slope[6]), rel=1e-4)


@pytest.mark.long
def test_the_population_is_the_sum_of_its_sources(data, prepared, with_whim):
    for model, sample, gas in ((Afterglow(), prepared, {}), (*with_whim, GAS)):
        num = len(sample.z)
        together = log_likelihoods(sample, own(rows=slice(num), **gas))
        singles = sample.each()
        assert len(singles) == num
        assert len({str(jax.tree.map(np.shape, one)) for one in singles}) == 1
        assert len({jax.tree.structure(one) for one in singles}) == 1
        for row in range(num):
            p = own(rows=[row], **gas)
            assert log_likelihoods(singles[row], p)[0] == pytest.approx(together[row], rel=1e-10)
            if not gas:
                alone = model.prepare(data.subset([row]))
                assert log_likelihoods(alone, p)[0] == pytest.approx(together[row], rel=1e-10)


@pytest.mark.long
def test_program_is_of_one_size_whatever_the_number_of_sources(data, prepared):
    model = Afterglow()

    def size(sample):
        p = HYPER | {f"_{key}": np.zeros(len(sample.z)) for key in LATENT}
        program = jax.make_jaxpr(jax.grad(lambda p: log_density(model, (sample,), {}, p)[0]))(p)
        return len(program.jaxpr.eqns)

    assert size(model.prepare(data.subset([0, 1]))) == size(prepared)


@pytest.mark.long
def test_a_thin_medium_is_none_and_equal_lines_of_sight_are_one(prepared, with_whim):
    _, sample = with_whim
    rows = [0, 1]
    together = log_likelihoods(sample, own(rows=rows, **GAS))
    thin = log_likelihoods(sample, own(rows=rows, **GAS | {"log10_n0": -14.0}))
    without = log_likelihoods(prepared, own())[rows]
    np.testing.assert_allclose(thin, without, atol=2e-4)  # other energies
    assert np.abs(together - without).max() > 0.1
    each = own(rows=rows, **GAS | {"log10_n0": np.full(2, GAS["log10_n0"])})
    np.testing.assert_allclose(log_likelihoods(sample, each), together, rtol=1e-12)
    names = sites(Afterglow(whim=True, sightlines=True), sample)
    assert {"log10_n0", "log10_n0_mean", "log10_n0_std", "log10_T"} <= names.keys()
    assert names["log10_n0"] == (2,)
    assert Afterglow(whim=True, sightlines=True).chooses_centering
    assert not Afterglow(whim=True).chooses_centering


@pytest.mark.long
def test_the_ionisation_parameter_can_be_sampled(data, with_whim):
    fixed = log_likelihoods(with_whim[1], own(rows=[0, 1], **GAS))[:1]
    model = Afterglow(whim=True, priors={"log10_xi": "Uniform(-1, 3)", "metallicity": "Uniform(0, 1)"})
    prepared = model.prepare(data.subset([0]))
    free = log_likelihoods(prepared, own(rows=[0], **GAS))
    np.testing.assert_allclose(free, fixed, atol=2e-3)
    assert abs(log_likelihoods(prepared, own(rows=[0], **GAS | {"log10_xi": 2.0})) - fixed).max() > 0.03
    assert abs(log_likelihoods(prepared, own(rows=[0], **GAS | {"metallicity": 1.0})) - fixed).max() > 0.03
    assert {"log10_xi", "metallicity"} <= sites(model, prepared).keys()


def sites(model, prepared):
    """Shape of every site, by tracing alone."""
    found = {}

    def run(key):
        trace = handlers.trace(handlers.seed(model, key)).get_trace(prepared)
        found.update({name: np.shape(site["value"]) for name, site in trace.items() if site["type"] != "plate"})
        return 0

    jax.eval_shape(run, jax.random.key(0))
    return found


def with_columns(data, **columns):
    return dataclasses.replace(data, **{key: np.asarray(value, float) for key, value in columns.items()})


@pytest.mark.long
def test_columns_of_the_milky_way(data, prepared):
    assert "nh_mw" not in sites(Afterglow(), prepared)
    column = np.array([0.02, 0.05, 0.03])
    known = dataclasses.replace(prepared, sigma_nh_mw=np.full(NUM, 0.01))
    error = stats.truncnorm(-prepared.nh_mw / 0.01, np.inf, prepared.nh_mw, 0.01).logpdf(column).sum()
    free = stats.lognorm(1.0, 0.0, np.exp(-2.6)).logpdf(column).sum()
    missing = with_columns(data, nh_mw=[0.02, np.nan, 0.03])
    without = Afterglow(galactic="free").prepare(missing)
    for sample, galactic, prior in ((known, "error", error), (prepared, "free", free), (without, "free", free)):
        value, found = without_jacobian(sample, {"nh_mw": column}, galactic=galactic)
        likelihood = log_likelihoods(sample, own(found, nh_mw=column)).sum()
        assert value == pytest.approx(log_prior(found) + prior + likelihood, rel=1e-12)
    with pytest.raises(DataError, match=r"expected the Galactic column nh_mw .* found none for 1 of 3.*sim002"):
        Afterglow().prepare(missing)
    with pytest.raises(DataError, match=r"expected a positive sigma_nh_mw of every source; .* first being sim001"):
        Afterglow(galactic="error").prepare(data)


@pytest.mark.long
@pytest.mark.parametrize("whim", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_redshift_with_an_error_is_a_parameter(data, prepared, with_whim, whim):
    model, known = with_whim if whim else (Afterglow(), prepared)
    num, gas = len(known.z), GAS if whim else {}
    expected = log_likelihoods(known, own(rows=slice(num), **gas))
    uncertain = with_columns(data.subset(np.arange(num)), sigma_z=[0.0, 0.1, 0.2][:num])
    sample = model.prepare(uncertain)
    assert list(sample.uncertain_rows) == list(range(1, num))
    found = log_likelihoods(sample, own(rows=slice(num), **gas))
    assert found[0] == pytest.approx(expected[0], rel=1e-10)
    # Whole bins of the response instead of chosen energies.
    np.testing.assert_allclose(found, expected, atol=0.05)
    assert sites(model, sample)["z"] == (num - 1,)
    assert model.coords(uncertain)["uncertain_redshift"] == list(data.name[1:num])

    z, step = np.array(sample.z), 1e-4
    slope, ends = None, []
    for away in (0.0, step, -step):
        p = completed(sample, own(rows=slice(num), **gas, z=z + away * (np.arange(num) == 1)))
        value, slopes = _total_and_slopes(p, sample)
        slope = slopes if slope is None else slope
        ends.append(float(value))
    assert float(slope["z"][1]) == pytest.approx((ends[1] - ends[2]) / (2 * step), rel=0.05)
    with pytest.raises(ValueError, match="expected known redshifts; found uncertain ones"):
        sample.each()


def without_background(stack):
    shape = np.shape(stack.counts)
    return dataclasses.replace(stack, background=np.zeros(shape), ratio=np.full(shape, 1e12))


NARROW = HYPER | {f"{name}_std": 1e-9 for name in LATENT}
MEANS = {name: np.full(NUM, HYPER[f"{name}_mean"]) for name in LATENT}


@pytest.mark.long
def test_drawn_counts_have_their_expectation(data, monte_carlo):
    model = Afterglow(statistic="cstat", priors=NARROW)
    prepared = model.prepare(dataclasses.replace(data, spectra=without_background(data.spectra)))
    expected = np.asarray(expected_counts(prepared, completed(prepared, own(MEANS))))

    def draw(key):
        trace = handlers.trace(handlers.seed(model, key)).get_trace(prepared, observed=False)
        return trace["counts"]["value"], trace["photon_index"]["value"]

    keys = np.array([[0, seed(number)] for number in range(20)], np.uint32)
    counts, index = (np.asarray(values) for values in jax.jit(jax.vmap(draw))(keys))
    np.testing.assert_allclose(index, 1.9, atol=1e-7)
    used = np.asarray(prepared.statistic.used)
    for row in range(NUM):
        drawn, total = counts[:, row][:, used[row]].sum(axis=1), expected[row][used[row]].sum()
        monte_carlo.within(drawn.mean(), total, np.sqrt(total / len(keys)), name=f"mean of {row}")
    # Group by group, Pearson's sum over all has as many terms as there are counts of some size.
    some = used & (expected > 5.0)
    pearson = ((counts - expected) ** 2 / expected)[:, some]
    variance = (2.0 + 1.0 / expected[some]).mean()
    monte_carlo.within(pearson.mean(), 1.0, np.sqrt(variance / pearson.size), name="variance")


def test_simulated_counts_take_the_place_of_the_observed(data, monkeypatch):
    counts = np.where(data.spectra.used, 7, 0)

    def drawn(model, key, sample, parameters):
        assert (model, key, sample, parameters) == (Afterglow(), "key", data, HYPER)
        return {"counts": counts}, {"photon_index_mean": 1.9}

    monkeypatch.setattr("hbm_jax.models.base.simulated", drawn)
    sample, truth = Afterglow().simulate("key", data, HYPER)
    np.testing.assert_array_equal(sample.spectra.counts, counts)
    assert truth == {"photon_index_mean": 1.9}


@pytest.mark.long
def test_simulation_is_repeatable(data):
    """In the long part, because each operation of the program is compiled by itself."""
    drawn, truth = Afterglow().simulate(jax.random.key(1), data, NARROW)
    again, _ = Afterglow().simulate(jax.random.key(1), data, NARROW)
    np.testing.assert_array_equal(drawn.spectra.counts, again.spectra.counts)
    assert truth["log10_nh_mean"] == pytest.approx(-0.4)
    np.testing.assert_allclose(truth["photon_index"], 1.9, atol=1e-7)


def test_other_observations_move_the_coordinates(prepared):
    model = Afterglow()
    (same,) = model.observing({"counts": prepared.statistic.counts}, prepared)
    np.testing.assert_allclose(
        same.source_information.information_vector, prepared.source_information.information_vector, rtol=1e-6
    )
    (more,) = model.observing({"counts": 2.0 * np.asarray(prepared.statistic.counts)}, prepared)
    np.testing.assert_array_equal(more.statistic.counts, 2.0 * np.asarray(prepared.statistic.counts))
    # Twice the counts: twice the information, about, and log10 of the flux more by 0.3.
    both = [sources.source_information for sources in (prepared, more)]
    best = [np.linalg.solve(s.fisher_information, s.information_vector[..., None])[..., 0] for s in both]
    assert (np.abs(best[1][:, 1] - best[0][:, 1] - np.log10(2.0)) < 0.1).all()


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
        ({"galactic": "fix"}, "did you mean 'fixed'"),
        ({"host": "skew"}, "Unknown host of Afterglow"),
        ({"abundances": "wilms"}, "did you mean 'wilm'"),
        ({"statistic": "chi2_data"}, "statistic"),
        ({"ionization": "photons"}, "ionisation"),
        ({"sightlines": True}, "expected whim=True with sightlines=True; found whim=False"),
        ({"band": (10.0, 0.3)}, "band: expected two positive energies"),
        ({"priors": {"log10_n0": -7.0}}, "log10_n0"),
        ({"whim": True, "priors": {"log10_t": 6.0}}, "did you mean 'log10_T'"),
    ],
)
def test_bad_choices_are_named(given, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        Afterglow(**given)
