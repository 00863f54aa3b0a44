"""Centredness against closed forms, equal posteriors in every form, and programs of every shape."""

import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from jax.flatten_util import ravel_pytree
from monte_carlo import seed
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer.util import log_density
from programs import eight_schools, tiny

import hbm_jax as hbm
from hbm_jax.inference.centering import pilot as centering
from hbm_jax.inference.centering.location_scale import FAMILIES, PartialNonCentring, ReparametrisedProgram, find_sites
from hbm_jax.inference.centering.pilot import Pilot, _table, centre
from hbm_jax.inference.sampler.fingerprint import identify

KEY = jax.random.key(3)
RNG = np.random.default_rng(5)


def groups(y, error, tau=None, observed=True):
    """One datum a group, tau free or fixed, in whatever unit y has."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0)) if tau is None else tau
    with numpyro.plate("group", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, error), obs=y if observed else None)


def nested(y):
    """Groups of groups."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("group", y.shape[0], dim=-2):
        theta = numpyro.sample("theta", dist.Normal(mu, 0.5))
        with numpyro.plate("member", y.shape[1], dim=-1):
            phi = numpyro.sample("phi", dist.Normal(theta, 0.3))
            numpyro.sample("y", dist.Normal(phi, 0.2), obs=y)


def counts(y):
    """Poisson counts with log-normal rates."""
    mean = numpyro.sample("mean", dist.Normal(3.0, 1.0))
    with numpyro.plate("object", len(y)):
        rate = numpyro.sample("rate", dist.LogNormal(mean, 0.1))
        numpyro.sample("y", dist.Poisson(rate), obs=y)


def of_family(family, observed=True):
    """A vector site of any family in a plate, its first two parents latent."""
    m = numpyro.sample("m", dist.Normal(0.0, 1.0))
    t = numpyro.sample("t", dist.LogNormal(0.0, 0.5))
    others = {"df": 4.0} if family is dist.StudentT else {"asymmetry": 1.5} if family is dist.AsymmetricLaplace else {}
    with numpyro.plate("object", 3):
        u = numpyro.sample("u", family(loc=m, scale=t * np.array([0.5, 2.0]), **others).to_event(1))
        numpyro.sample("y", dist.Normal(u, 1.0).to_event(1), obs=np.zeros((3, 2)) if observed else None)


def in_random_forms(program, args, seed=0):
    random = np.random.default_rng(seed)
    shapes = find_sites(program, args, KEY)
    return ReparametrisedProgram(
        program,
        tuple(
            PartialNonCentring(n, random.uniform(size=s), random.uniform(0.2, 3.0, size=s)) for n, s in shapes.items()
        ),
    )


def chosen(centering, site):
    return centering.table[centering.table["site"] == site]["weight"].to_numpy()


def chosen_by(program, args, draws, key=KEY):
    """Table of what is chosen by draws, unconstrained, of all latents but the location-scale sites, non-centred."""
    num = len(next(iter(draws.values())))
    forms = tuple(
        PartialNonCentring(n, np.zeros(shape), np.ones(shape)) for n, shape in find_sites(program, args, KEY).items()
    )
    params = draws | {form.sampled_site: RNG.normal(size=(num, *form.weight.shape)) for form in forms}
    pilot = Pilot(program, args, 0, num)
    table = _table(*pilot.choose(forms, jax.device_get(pilot.evaluate(forms, params)), key))
    return {site: rows.reset_index() for site, rows in table.groupby("site")}


# The table, where the answer is known


@pytest.mark.long
def test_no_data_is_not_centred_and_perfect_data_is():
    error = np.array([1e-4, 0.1, 2.0, 40.0, 1e4])

    def program(y):
        mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))  # which is no obstacle
        with numpyro.plate("group", len(y)):
            theta = numpyro.sample("theta", dist.Normal(mu, 2.0))
            numpyro.sample("y", dist.Normal(theta, error), obs=y)

    found = centre(program, np.zeros(5), num_warmup=60, num_pilots=20)
    np.testing.assert_allclose(found.table["weight"], 4.0 / (4.0 + error**2), rtol=1e-9)
    np.testing.assert_allclose(found.table["information"], error**-2.0, rtol=1e-9)
    np.testing.assert_allclose(found.table["prior_scale"], 2.0)
    assert list(found.table["parametrisation"]) == ["centred", "centred", "in between", "non-centred", "non-centred"]
    assert list(found.table["element"]) == [f"theta[{i}]" for i in range(5)]
    assert "1 round of 20 pilot draws, 0 of them divergent" in found.note
    (form,) = found.program.reparametrisations
    np.testing.assert_array_equal(form.weight, found.table["weight"])
    np.testing.assert_array_equal(form.reference, found.table["prior_scale"])


def test_few_and_many_data_per_group():
    number = np.array([1] * 10 + [1000] * 3)
    group = np.repeat(np.arange(13), number)

    def program(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfNormal(5.0))
        theta = numpyro.sample("theta", dist.Normal(mu, tau).expand([13]))
        numpyro.sample("y", dist.Normal(theta[group], 10.0), obs=y)

    random = np.random.default_rng(1)
    y = random.normal(random.normal(4.5, 3.5, size=13)[group], 10.0)
    log_tau = random.normal(1.2, 0.3, size=40)
    table = chosen_by(program, (y,), {"mu": random.normal(4.5, 1.0, size=40), "tau": log_tau})["theta"]
    np.testing.assert_allclose(table["information"], number / 100.0, rtol=1e-9)
    np.testing.assert_allclose(table["prior_scale"], np.exp(log_tau.mean()), rtol=1e-9)
    known = np.exp(2.0 * log_tau)[:, None] * number / 100.0
    np.testing.assert_allclose(table["weight"], (known / (1.0 + known)).mean(axis=0), rtol=1e-9)
    assert set(table["parametrisation"][number == 1000]) == {"centred"}
    assert table["weight"][number == 1].max() < 0.2


def test_of_nested_groups_each_learns_what_the_lower_ones_leave():
    y = np.random.default_rng(0).normal(size=(4, 3))
    tables = chosen_by(nested, (y,), {"mu": RNG.normal(size=5)})
    below = 3 / (0.3**2 + 0.2**2)  # not 3 / 0.3^2, nor 3 / 0.2^2
    np.testing.assert_allclose(tables["theta"]["information"], below, rtol=1e-6)
    np.testing.assert_allclose(tables["theta"]["weight"], 0.25 * below / (1.0 + 0.25 * below), rtol=1e-6)
    np.testing.assert_allclose(tables["phi"]["weight"], 0.09 / 0.13, rtol=1e-9)
    assert list(tables["theta"]["element"]) == [f"theta[{i},0]" for i in range(4)]
    assert list(tables["phi"]["element"]) == [f"phi[{i},{j}]" for i in range(4) for j in range(3)]


def test_counts_with_log_normal_rates():
    """The curvature of a Poisson likelihood in the log rate is the rate itself."""
    mean, standard = RNG.normal(3.0, 1.0, size=30), RNG.normal(size=(30, 3))
    forms = (PartialNonCentring("rate", np.zeros(3), np.ones(3)),)
    pilot = Pilot(counts, (np.array([1, 20, 400]),), 0, 30)
    draws = jax.device_get(pilot.evaluate(forms, {"mean": mean, "_rate_free": standard}))
    rate = np.exp(mean[:, None] + 0.1 * standard)
    value, location, scale = draws["sites"]["rate"]
    np.testing.assert_allclose(value, np.log(rate), rtol=1e-12)
    np.testing.assert_allclose(location, np.tile(mean[:, None], 3), rtol=1e-12)
    np.testing.assert_allclose(scale, 0.1, rtol=1e-12)
    (form,), information = pilot.choose(forms, draws, KEY)
    np.testing.assert_allclose(information["rate"], rate.mean(axis=0), rtol=1e-9)
    known = 0.01 * rate.mean(axis=0)
    np.testing.assert_allclose(form.weight, known / (1.0 + known), rtol=1e-9)
    # The last draw in the new form: x = c m + (t / t0)^(c - 1) (u - m), with t = t0.
    last = pilot.last((form,), {"mean": mean, "_rate_free": standard}, draws)
    assert last["mean"] == mean[-1]
    x = form.weight * mean[-1] + np.log(rate[-1]) - mean[-1]
    np.testing.assert_allclose(last["_rate_free"], x, rtol=1e-12)


def test_elements_that_interact(monte_carlo):
    """The curvature of each along a random sign of all is right in the mean."""
    design = np.random.default_rng(1).normal(size=(60, 4))

    def regression(y):
        width = numpyro.sample("width", dist.HalfNormal(1.0))
        slope = numpyro.sample("slope", dist.Normal(jnp.zeros(4), width).to_event(1))
        numpyro.sample("y", dist.Normal(design @ slope, 3.0), obs=y)

    draws, key = {"width": RNG.normal(size=400)}, jax.random.key(seed(3))
    table = chosen_by(regression, (design @ np.ones(4),), draws, key)["slope"]
    hessian = design.T @ design / 9.0
    for i, found in enumerate(table["information"]):
        error = np.sqrt((np.delete(hessian[i], i) ** 2).sum() / 400)
        monte_carlo.within(found, hessian[i, i], error, name=f"slope {i}")


# The same posterior


def jacobian(program, args, params, sites):
    """Log determinant of what is sampled to the sites' values, all else held."""
    flat, unravel = ravel_pytree({f"_{site}_free": params[f"_{site}_free"] for site in sites})

    def values(flat):
        trace = handlers.trace(handlers.substitute(program, params | unravel(flat))).get_trace(*args)
        return jnp.concatenate([trace[site]["value"].ravel() for site in sorted(sites)])

    return jnp.linalg.slogdet(jax.jacfwd(values)(flat))[1]


def assert_same_density(program, args, seeds=3):
    """The log density of another form is that of the program and the Jacobian, at random points."""
    other = in_random_forms(program, args)
    sites = [form.site for form in other.reparametrisations]

    @jax.jit
    def densities(key):
        trace = handlers.trace(handlers.seed(other, key)).get_trace(*args)
        free = {n: s["value"] for n, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}
        assert not set(free) & set(sites)
        values = {name: trace[name]["value"] for name in sites}
        plain = {name: value for name, value in free.items() if not name.endswith("_free")}
        expected = log_density(program, args, {}, plain | values)[0] + jacobian(other, args, free, sites)
        return log_density(other, args, {}, free)[0], expected, free

    for number in range(seeds):
        found, expected, free = densities(jax.random.key(number))
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        assert np.isfinite(float(found))
        assert all(np.ptp(free[f"_{site}_free"]) > 0 for site in sites)
    return other


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_density_of_every_family(family):
    assert_same_density(of_family, (family,))


def test_density_of_nested_groups():
    other = assert_same_density(nested, (np.zeros((2, 3)),))
    assert [form.site for form in other.reparametrisations] == ["theta", "phi"]


SNE = hbm.data.load_jla().subset(np.arange(0, 740, 75))


@pytest.mark.long
def test_density_of_supernovae():
    other = assert_same_density(hbm.models.Supernova(latents="centred"), (SNE,), seeds=2)
    assert [form.site for form in other.reparametrisations] == ["x1_true", "c_true", "m_b_true"]
    for latents in ("marginal", "noncentred"):
        assert find_sites(hbm.models.Supernova(latents=latents), (SNE,), KEY) == {}


def test_a_model_in_another_form_has_its_attributes():
    model = hbm.models.Supernova(latents="centred")
    other = ReparametrisedProgram(model, (PartialNonCentring("c_true", np.ones(len(SNE)), np.ones(len(SNE))),))
    assert other.coords(SNE) == model.coords(SNE)
    assert (other.dims, other.units, other.description) == (model.dims, model.units, model.description)
    assert other.to_config() == model.to_config()


@pytest.fixture(scope="session")
def schools(shared_data):
    data = json.loads(shared_data("hierarchical/posteriordb/eight_schools.json").read_text())
    return tuple(np.array(data[name], dtype=float) for name in ("y", "sigma"))


# What comes out looks like the program


@pytest.mark.long
def test_names_dims_and_coordinates_stay(schools):
    y, sigma = schools
    program = in_random_forms(groups, (y, sigma))
    options = {"num_warmup": 50, "num_samples": 50, "progress": False, "coords": {"group": list("ABCDEFGH")}}
    fit = hbm.sample(program, y, sigma, **options)
    assert list(fit.posterior) == ["mu", "tau", "theta"]
    assert fit.posterior.sizes == {"chain": 4, "draw": 50, "group": 8}
    assert fit.posterior["theta"].dims == ("chain", "draw", "group")
    assert "theta[C]" in fit.verdict.table.index
    assert not any("free" in name for name in fit.verdict.table.index)
    assert fit.run["program"] == "groups"
    assert "_theta_free[0]" in fit.tree["unconstrained_posterior"]["parameter"].to_numpy()
    replicated = hbm.posterior_predictive(fit, num_draws=20)
    assert replicated["y"].dims == ("sample", "group")
    assert np.ptp(replicated["y"].to_numpy(), axis=0).min() > 0
    prior = hbm.prior_predictive(program, y, sigma, num_draws=20)
    assert set(prior) == {"mu", "tau", "theta", "y"}


def test_a_program_in_another_form_is_known_by_its_source_and_forms():
    args = (np.zeros(3), np.ones(3))
    program = in_random_forms(groups, args)
    assert inspect.signature(program) == inspect.signature(groups)
    assert identify(program, args, {}) == identify(in_random_forms(groups, args), args, {})
    about = [identify(each, args, {})["program"] for each in (program, in_random_forms(groups, args, seed=1), groups)]
    assert [each["name"] for each in about] == ["groups"] * 3
    assert len({each["code"] for each in about}) == 3


@pytest.mark.slow
def test_same_seed_same_choice():
    args = (np.array([1.0, 2.0]), np.ones(2))
    options = {"num_warmup": 20, "num_pilots": 10}
    first, second = (centre(groups, *args, seed=1, **options).table["weight"].tolist() for _ in range(2))
    assert first == second


def test_the_pilot_has_other_random_numbers_than_the_chains(monkeypatch):
    keys = []

    def stop(program, args, key):
        keys.append(key)
        raise InterruptedError

    monkeypatch.setattr(centering, "find_sites", stop)
    with pytest.raises(InterruptedError):
        centre(groups, seed=3)
    whole = jax.random.key(3)
    of_chains = [whole, *jax.random.split(whole, 1000), *jax.random.split(jax.random.split(whole, 3)[2], 1000)]
    of_pilot = [keys[0], *jax.random.split(keys[0], 1000)]
    numbers = [{tuple(np.asarray(jax.random.key_data(key))) for key in which} for which in (of_chains, of_pilot)]
    assert len(numbers[0] | numbers[1]) == 2001 + 1001


# Programs without such a site, and wrong requests


def scaled(y):
    """Sites that must be left alone: fixed parents, a mask, a tempered prior, a hand-written non-centred form."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    fixed = numpyro.sample("fixed", dist.Normal(3.0, 2.0))
    with handlers.scale(scale=0.5):
        tempered = numpyro.sample("tempered", dist.Normal(mu, 1.0))
    masked = numpyro.sample("masked", dist.Normal(mu, 1.0).mask(False))
    positive = numpyro.sample("positive", dist.TruncatedNormal(mu, 1.0, low=0.0))
    standard = numpyro.sample("_standard", dist.Normal(0.0, 1.0))
    total = mu + fixed + tempered + masked + positive + standard
    numpyro.sample("y", dist.Normal(total, 1.0), obs=y)


@pytest.mark.parametrize(
    ("program", "args"), [(eight_schools, (np.zeros(8), np.ones(8))), (tiny, ()), (scaled, (np.zeros(2),))]
)
def test_programs_without_location_scale_sites_are_returned_as_they_are(program, args):
    found = centre(program, *args)
    assert found.program is program
    assert found.table.empty
    assert list(found.table) == ["site", "element", "prior_scale", "information", "weight", "parametrisation"]
    assert found.note == "no latent site has a location or scale that is itself latent"


class MadeUp(Pilot):
    """A pilot whose draws are given: of mu 0, of the groups standard normal numbers."""

    def __init__(self, program, args, num_warmup, num_pilots):
        super().__init__(program, args, num_warmup, num_pilots)
        assert (num_warmup, num_pilots) == (20, 10)
        self.mode, self.run = self.given_mode, self.given_run

    def given_mode(self, forms, key):
        assert all((form.weight == 0.0).all() for form in forms)
        return {"mu": np.zeros(()), "_theta_free": np.zeros((2, 1)), "phi": np.zeros((2, 3))}, True

    def given_run(self, forms, params, key):
        draws = {"mu": np.zeros(10), "_theta_free": RNG.normal(size=(10, 2, 1)), "phi": RNG.normal(size=(10, 2, 3))}
        return draws, np.arange(10) < 3


def test_only_the_sites_asked_for(monkeypatch):
    monkeypatch.setattr(centering, "Pilot", MadeUp)
    found = centre(nested, np.zeros((2, 3)), sites=["theta"], num_warmup=20, num_pilots=10)
    assert set(found.table["site"]) == {"theta"}
    # Now phi stays centred, and theta knows what the phi beside it say.
    below = 3 / 0.3**2
    np.testing.assert_allclose(chosen(found, "theta"), 0.25 * below / (1.0 + 0.25 * below), rtol=1e-6)
    assert "1 round of 10 pilot draws, 3 of them divergent" in found.note
    assert [form.site for form in found.program.reparametrisations] == ["theta"]


def test_wrong_requests_are_named():
    y = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"location-scale sites \['theta', 'phi'\]; found mu"):
        centre(nested, y, sites=["mu"])
    with pytest.raises(ValueError, match=r"Site 'theta': expected the shape \(2, 1\) .* found \(4, 1\)"):
        handlers.seed(in_random_forms(nested, (y,)), KEY)(np.zeros((4, 3)))

    def discrete():
        numpyro.sample("z", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match="continuous latents only; found the discrete site 'z'"):
        centre(discrete)


def test_a_pilot_without_finite_scales_says_so():
    draws = {
        "others": {},
        "sites": {"theta": (np.zeros((3, 2)), np.zeros((3, 2)), np.array([[1.0, np.nan]] * 3))},
    }
    pilot = Pilot(groups, (), 0, 3)
    with pytest.raises(hbm.inference.StartError, match="finite scales; found NaN or infinity for 'theta'"):
        pilot.choose((PartialNonCentring("theta", np.zeros(2), np.ones(2)),), draws, KEY)


@pytest.mark.long
def test_data_with_nan_are_refused_with_site_and_row():
    def with_covariate(x, y):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        with numpyro.plate("group", 3):
            theta = numpyro.sample("theta", dist.Normal(slope, 1.0))
            numpyro.sample("y", dist.Normal(theta + slope * x, 1.0), obs=y)

    values = np.array([1.0, np.nan, 2.0])
    for program, args, found in (
        (mixed, (values, 1.0), "observed site 'y'"),
        (with_covariate, (values, np.ones(3)), "argument 'x'"),
    ):
        with pytest.raises(hbm.inference.StartError, match=rf"found NaN\. The {found} has NaN in row 1 \(counted"):
            centre(program, *args)


# In `hbm_jax.sample`


def mixed(y, sigma):
    """Groups with a common mean and scatter, written centred."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(3.0))
    with numpyro.plate("group", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


MIXED = (
    np.random.default_rng(2).normal(1.0, 2.0, 12),
    np.array([0.05] * 6 + [8.0] * 6),
)


@pytest.mark.long
def test_sample_chooses_on_request_and_everything_afterwards_knows(tmp_path, monte_carlo):
    options = {"seed": seed(3), "num_samples": 1000, "progress": False}
    fit = hbm.sample(mixed, *MIXED, centering=True, checkpoint=tmp_path / "run", **options)
    assert "pilot draws" in fit.run["centering_note"]
    weights = fit.tree["centering"]["form:theta:centredness"].to_numpy()
    assert (weights[:6] > 0.9).all()
    assert (weights[6:] < 0.5).all()
    assert set(fit.posterior) == {"mu", "tau", "theta"}
    plain = hbm.sample(mixed, *MIXED, **(options | {"num_samples": 3000, "sampler": hbm.NUTS(target_accept_prob=0.95)}))
    assert "centering" not in plain.tree
    for name, place in (("mu", ...), ("tau", ...), ("theta", (..., 0)), ("theta", (..., 11))):
        one, other = (each.posterior[name].to_numpy()[place] for each in (fit, plain))
        monte_carlo.same_mean(one, other, name=f"{name} {place}", min_ess=200)
    # The forms are kept: by the checkpoint, in the file, for predictions.
    again = hbm.resume(tmp_path / "run", mixed, *MIXED, progress=False)
    np.testing.assert_array_equal(again.posterior["theta"], fit.posterior["theta"])
    path = fit.save(tmp_path / "fit")
    drawn = hbm.posterior_predictive(hbm.load(path, mixed, MIXED), num_draws=50)
    assert drawn["y"].shape == (50, 12)


def test_our_models_choose_where_latents_are_sampled():
    assert hbm.models.Supernova(latents="sampled").chooses_centering
    assert not any(
        hbm.models.Supernova(latents=which).chooses_centering for which in ("marginal", "centred", "noncentred")
    )


def test_sites_within_a_loop_keep_their_parametrisation():
    """A random walk by `scan`, whose steps cannot be replaced from outside of the loop."""

    def walk(y):
        tau = numpyro.sample("tau", dist.HalfNormal(1.0))
        mu = numpyro.sample("mu", dist.Normal(0.0, tau))

        def step(x, value):
            x = numpyro.sample("x", dist.Normal(x, tau))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=value)
            return x, None

        scan(step, mu, y)

    sites = find_sites(walk, (jnp.array([0.3, 0.1, -0.2]),), jax.random.key(0))
    assert list(sites) == ["mu"]
