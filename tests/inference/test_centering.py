"""Centredness against closed forms, equal posteriors in every form, and programs of every shape."""

import inspect
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from arviz_stats.base import array_stats
from jax.flatten_util import ravel_pytree
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.infer.util import log_density
from programs import eight_schools, tiny

import hbm_jax as hbm
from hbm_jax.inference.centering import centre
from hbm_jax.inference.identity import identify
from hbm_jax.inference.location_scale import FAMILIES, Form, Recentred, find_sites

KEY = jax.random.key(3)


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


def pure(program, args, centredness):
    """The same program with all its sites in one form."""
    shapes = find_sites(program, args, KEY)
    return Recentred(program, tuple(Form(n, np.full(s, centredness), np.ones(s)) for n, s in shapes.items()))


def in_random_forms(program, args, seed=0):
    random = np.random.default_rng(seed)
    shapes = find_sites(program, args, KEY)
    return Recentred(
        program, tuple(Form(n, random.uniform(size=s), random.uniform(0.2, 3.0, size=s)) for n, s in shapes.items())
    )


def chosen(centering, site):
    return centering.table[centering.table["site"] == site]["centredness"].to_numpy()


# The table, where the answer is known


def test_no_data_is_not_centred_and_perfect_data_is():
    error = np.array([1e-4, 0.1, 2.0, 40.0, 1e4])
    centering = centre(groups, np.zeros(5), error, 2.0)
    np.testing.assert_allclose(centering.table["centredness"], 4.0 / (4.0 + error**2), rtol=1e-9)
    np.testing.assert_allclose(centering.table["information"], error**-2.0, rtol=1e-9)
    np.testing.assert_allclose(centering.table["prior_scale"], 2.0)
    assert list(centering.table["form"]) == ["centred", "centred", "in between", "non-centred", "non-centred"]
    assert list(centering.table["element"]) == [f"theta[{i}]" for i in range(5)]
    assert "1 round of 100 pilot draws, 0 of them divergent" in centering.note


@pytest.mark.slow
def test_eight_schools(schools):
    y, sigma = schools
    fixed = centre(groups, y, sigma, 6.0)
    np.testing.assert_allclose(chosen(fixed, "theta"), 36.0 / (36.0 + sigma**2), rtol=1e-9)
    # With tau free: the mean over its posterior, here that of a long run.
    centering = centre(groups, y, sigma, num_pilots=400)
    tau = fits("schools", schools)["chosen"].posterior["tau"].to_numpy().ravel()[:, None]
    np.testing.assert_allclose(chosen(centering, "theta"), (tau**2 / (tau**2 + sigma**2)).mean(0), rtol=0.25)
    np.testing.assert_allclose(centering.table["prior_scale"], np.exp(np.log(tau).mean()), rtol=0.35)


def test_few_and_many_data_per_group():
    number = np.array([1] * 10 + [1000] * 3)
    group = np.repeat(np.arange(13), number)

    def program(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfNormal(5.0))
        theta = numpyro.sample("theta", dist.Normal(mu, tau).expand([13]))
        numpyro.sample("y", dist.Normal(theta[group], 10.0), obs=y)

    random = np.random.default_rng(1)
    centering = centre(program, random.normal(random.normal(4.5, 3.5, size=13)[group], 10.0))
    np.testing.assert_allclose(centering.table["information"], number / 100.0, rtol=1e-9)
    known = centering.table["prior_scale"].to_numpy() ** 2 * number / 100.0
    np.testing.assert_allclose(chosen(centering, "theta"), known / (1.0 + known), atol=0.05)
    assert set(centering.table["form"][number == 1000]) == {"centred"}
    assert chosen(centering, "theta")[number == 1].max() < 0.2


@pytest.mark.slow
def test_the_unit_does_not_matter():
    y, error = np.array([1.0, 2.0, 0.5, 3.0]), np.array([0.1, 0.5, 1.0, 2.0])

    def program(y, error, unit):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0 * unit))
        with numpyro.plate("group", len(y)):
            theta = numpyro.sample("theta", dist.Normal(mu, 0.7 * unit))
            numpyro.sample("y", dist.Normal(theta, error), obs=y)

    metres, kilometres = (centre(program, y * unit, error * unit, unit) for unit in (1.0, 1e-3))
    np.testing.assert_allclose(chosen(metres, "theta"), chosen(kilometres, "theta"), rtol=1e-9)
    # And what is sampled does not depend on the location, in either unit: no curvature between the two.
    for centering, unit in ((metres, 1.0), (kilometres, 1e-3)):
        args = (y * unit, error * unit, unit)

        def density(both, centering=centering, args=args):
            return log_density(centering.program, args, {}, {"mu": both[0], "_theta_free": both[1:]})[0]

        hessian = jax.hessian(density)(jnp.full(5, unit))
        np.testing.assert_allclose(hessian[0, 1:] * unit**2, 0.0, atol=1e-9)


def test_of_nested_groups_each_learns_what_the_lower_ones_leave():
    y = np.random.default_rng(0).normal(size=(4, 3))
    centering = centre(nested, y)
    below = 3 / (0.3**2 + 0.2**2)  # not 3 / 0.3^2, nor 3 / 0.2^2
    np.testing.assert_allclose(chosen(centering, "theta"), 0.25 * below / (1.0 + 0.25 * below), rtol=1e-6)
    np.testing.assert_allclose(chosen(centering, "phi"), 0.09 / 0.13, rtol=1e-9)
    assert len(chosen(centering, "theta")) == 4
    assert list(centering.table["element"][[0, 4, 15]]) == ["theta[0,0]", "phi[0,0]", "phi[3,2]"]


@pytest.mark.slow
def test_counts_with_log_normal_rates():
    y = np.array([1, 20, 400])
    centering = centre(counts, y)
    # The curvature of a Poisson likelihood in the log rate is the rate itself.
    rate = hbm.sample(centering.program, y, num_samples=500, progress=False).posterior["rate"].to_numpy()
    np.testing.assert_allclose(centering.table["information"], rate.mean(axis=(0, 1)), rtol=0.1)
    assert (np.diff(chosen(centering, "rate")) > 0).all()


def test_elements_that_interact():
    design = np.random.default_rng(1).normal(size=(60, 4))

    def regression(y):
        width = numpyro.sample("width", dist.HalfNormal(1.0))
        slope = numpyro.sample("slope", dist.Normal(jnp.zeros(4), width).to_event(1))
        numpyro.sample("y", dist.Normal(design @ slope, 3.0), obs=y)

    centering = centre(regression, design @ np.ones(4))
    np.testing.assert_allclose(centering.table["information"], (design**2).sum(0) / 9.0, rtol=0.25)


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
    sites = [form.site for form in other.forms]
    for seed in range(seeds):
        trace = handlers.trace(handlers.seed(other, jax.random.key(seed))).get_trace(*args)
        free = {n: s["value"] for n, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}
        assert not set(free) & set(sites)
        values = {name: trace[name]["value"] for name in sites}
        plain = {name: value for name, value in free.items() if not name.endswith("_free")}
        density = log_density(program, args, {}, plain | values)[0] + jacobian(other, args, free, sites)
        np.testing.assert_allclose(log_density(other, args, {}, free)[0], density, rtol=1e-9)
    return other


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_density_of_every_family(family):
    assert_same_density(of_family, (family,))


def test_density_of_nested_groups():
    other = assert_same_density(nested, (np.zeros((2, 3)),))
    assert [form.site for form in other.forms] == ["theta", "phi"]


def test_density_of_supernovae():
    sne = hbm.data.load_jla().subset(np.arange(0, 740, 25))
    model = hbm.models.Supernova(latents="centred")
    other = assert_same_density(model, (sne,), seeds=2)
    assert [form.site for form in other.forms] == ["x1_true", "c_true", "m_b_true"]
    assert other.coords(sne) == model.coords(sne)
    assert (other.dims, other.units, other.description) == (model.dims, model.units, model.description)
    assert other.to_config() == model.to_config()
    for latents in ("marginal", "noncentred"):
        assert find_sites(hbm.models.Supernova(latents=latents), (sne,), KEY) == {}


@pytest.mark.slow
def test_supernovae_are_more_centred_the_better_they_are_measured():
    sne = hbm.data.load_jla().subset(np.arange(0, 740, 25))
    centering = centre(hbm.models.Supernova(latents="centred"), sne)
    error = np.sqrt(sne.covariance[:, 2, 2])
    c_true = centering.table[centering.table["site"] == "c_true"]
    assert np.corrcoef(np.argsort(np.argsort(error)), np.argsort(np.argsort(c_true["centredness"])))[0, 1] < -0.8
    assert 0.04 < c_true["prior_scale"].iloc[0] < 0.15  # a colour scatter of 0.08
    assert 0.3 < c_true["centredness"].min() <= c_true["centredness"].max() < 1.0


def mixed_case():
    """Ten groups of one datum and three of a thousand, each given by its mean."""
    random = np.random.default_rng(1)
    error = 10.0 / np.sqrt([1] * 10 + [1000] * 3)
    return random.normal(random.normal(4.5, 3.5, size=13), error), error


@pytest.fixture(scope="session")
def schools(shared_data):
    data = json.loads(shared_data("hierarchical/posteriordb/eight_schools.json").read_text())
    return tuple(np.array(data[name], dtype=float) for name in ("y", "sigma"))


_FITS = {}


def fits(case, args=None):
    """Long runs of one case in the three forms, drawn once."""
    if case not in _FITS:
        args = mixed_case() if case == "mixed" else args
        forms = {
            "centred": groups,
            "non-centred": pure(groups, args, 0.0),
            "chosen": centre(groups, *args, seed=1).program,
        }
        options = {"seed": 5, "num_samples": 2500, "target_accept_prob": 0.97, "progress": False}
        _FITS[case] = {name: hbm.sample(form, *args, **options) for name, form in forms.items()}
    return _FITS[case]


def moments(fit):
    """Mean and its standard error of every element of every parameter, and of log tau, with the ESS."""
    found = {}
    draws = {name: fit.posterior[name].to_numpy() for name in ("mu", "tau", "theta")}
    draws["log_tau"] = np.log(draws["tau"])
    for name, values in draws.items():
        for index in np.ndindex(values.shape[2:]):
            x = values[(..., *index)]
            ess = float(array_stats.ess(x, chain_axis=0, draw_axis=1))
            found[f"{name}[{index[0] + 1}]" if index else name] = x.mean(), x.std() / math.sqrt(ess), ess
    return found


@pytest.mark.parametrize("form", ["centred", "non-centred", "chosen"])
@pytest.mark.slow
def test_eight_schools_in_every_form_against_posteriordb(form, schools, shared_data):
    path = shared_data("hierarchical/posteriordb/reference_summary.json")
    reference = json.loads(path.read_text())["eight_schools-eight_schools_noncentered"]["parameters"]
    found = moments(fits("schools", schools)[form])
    for name in ["mu", "tau", *(f"theta[{i}]" for i in range(1, 9))]:
        mean, error, ess = found[name]
        assert ess > (200 if form == "centred" else 2000), name
        assert abs(mean - reference[name]["mean"]) < 4 * math.hypot(error, reference[name]["mcse_mean"]), name


@pytest.mark.parametrize("form", ["centred", "non-centred"])
@pytest.mark.slow
def test_mixed_case_in_every_form(form):
    theirs, ours = moments(fits("mixed")[form]), moments(fits("mixed")["chosen"])
    assert len(ours) == 16
    for name, (mean, error, ess) in ours.items():
        assert ess > 2000, name
        assert theirs[name][2] > 400, name
        assert abs(mean - theirs[name][0]) < 4 * math.hypot(error, theirs[name][1]), name


@pytest.mark.slow
def test_chosen_form_mixes_best_where_few_and_many_data_meet():
    smallest = {name: min(ess for _, _, ess in moments(fit).values()) for name, fit in fits("mixed").items()}
    assert smallest["chosen"] > 1.5 * max(smallest["centred"], smallest["non-centred"]), smallest


# What comes out looks like the program


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
    first, second = (centre(groups, *args, seed=1, **options).table["centredness"].tolist() for _ in range(2))
    assert first == second


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
    centering = centre(program, *args)
    assert centering.program is program
    assert centering.table.empty
    assert list(centering.table) == ["site", "element", "prior_scale", "information", "centredness", "form"]
    assert centering.note == "no latent site has a location or scale that is itself latent"


def test_only_the_sites_asked_for():
    y = np.zeros((2, 3))
    centering = centre(nested, y, sites=["theta"], num_warmup=20, num_pilots=10)
    assert set(centering.table["site"]) == {"theta"}
    # Now phi stays centred, and theta knows what the phi beside it say.
    below = 3 / 0.3**2
    np.testing.assert_allclose(chosen(centering, "theta"), 0.25 * below / (1.0 + 0.25 * below), rtol=1e-6)


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


def test_an_improper_prior_is_no_obstacle():
    def program(y):
        mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        with numpyro.plate("group", len(y)):
            theta = numpyro.sample("theta", dist.Normal(mu, 2.0))
            numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    np.testing.assert_allclose(chosen(centre(program, np.array([1.0, 2.0, 3.0])), "theta"), 0.8, rtol=1e-9)


def test_a_pilot_that_finds_nothing_says_so():
    def program(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("theta", dist.Normal(mu, mu * jnp.nan))

    with pytest.raises(hbm.inference.target.StartError, match="finite scales; found others for 'theta'"):
        centre(program, 1.0, num_warmup=5, num_pilots=5)


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
def test_sample_chooses_on_request_and_everything_afterwards_knows(tmp_path):
    options = {"seed": 3, "num_samples": 1000, "progress": False}
    fit = hbm.sample(mixed, *MIXED, centering=True, checkpoint=tmp_path / "run", **options)
    assert "pilot draws" in fit.run["centering_note"]
    centredness = fit.tree["centering"]["form:theta:centredness"].to_numpy()
    assert (centredness[:6] > 0.9).all()
    assert (centredness[6:] < 0.5).all()
    assert set(fit.posterior) == {"mu", "tau", "theta"}
    plain = hbm.sample(mixed, *MIXED, **(options | {"num_samples": 3000, "target_accept_prob": 0.95}))
    assert "centering" not in plain.tree
    for name in ("mu", "tau", "theta[0]", "theta[11]"):
        a, b = fit.summary().loc[name], plain.summary().loc[name]
        assert a["ess_bulk"] > 400
        assert abs(a["mean"] - b["mean"]) < 4 * np.hypot(a["mcse_mean"], b["mcse_mean"]), name
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
