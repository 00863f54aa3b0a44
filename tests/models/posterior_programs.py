"""The 33 posteriors of posteriordb with reference draws, as NumPyro programs in the parameters of posteriordb.

The normal regressions are in raw coordinates, with the flat priors that posteriordb has: those of `posteriors.LINEAR`.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist
from numpyro.distributions import constraints
from posteriors import FOLDER, LINEAR, columns_of, read_json

from hbm_jax.data import RegressionData
from hbm_jax.distributions.notation import distribution_from_text
from hbm_jax.inference.sampler.target import build_target

STEPS = 5  # of the method of Runge and Kutta between two times of observation; the rms error of ln L is below 0.004


@dataclass(frozen=True)
class Case:
    """A posterior: program with its arguments, and how its sites are those of the reference.

    Attributes
    ----------
    program, args : callable, tuple
        NumPyro program and its arguments.
    sites : tuple of str
        Sites whose flattened values, one after the other, are the columns of the reference draws.
    latents : callable
        Sites of the reference (dict of str to array) -> value of each latent site.
    heavy_tails : bool
        Whether moments do not exist, so that logarithms of the columns are compared.
    """

    program: Callable
    args: tuple
    sites: tuple[str, ...]
    latents: Callable = dict
    heavy_tails: bool = False


def flat(name, constraint=constraints.real, shape=()):
    """Sample an improper site whose density is constant."""
    return numpyro.sample(name, dist.ImproperUniform(constraint, (), shape))


def regression(X, y, *, priors, has_intercept):
    """Normal linear regression in raw coordinates; priors by name, each a distribution or None, which is flat."""
    parts, sigma = [], priors["sigma"]
    sizes = {"intercept": int(has_intercept), "coef": X.shape[1] - has_intercept}
    for name, key in (("alpha", "intercept"), ("beta", "coef")):
        prior, size = priors[key], sizes[key]
        if size and prior is None:
            parts.append(flat(name, shape=(size,)))
        elif size:
            parts.append(numpyro.sample(name, prior.expand([size]).to_event(1)))
    scale = flat("sigma", constraints.positive) if sigma is None else numpyro.sample("sigma", sigma)
    numpyro.sample("y", dist.Normal(X @ jnp.concatenate(parts), scale).to_event(1), obs=y)


def linear(shared_data, name):
    """One of `posteriors.LINEAR`."""
    posterior = LINEAR[name]
    data = RegressionData.from_columns(columns_of(shared_data, posterior.file), posterior.formula)
    priors = {
        key: None if text == "flat" else distribution_from_text(text)
        for key, text in ({"intercept": "flat"} | posterior.priors).items()
    }
    has_intercept = data.terms[0] == "Intercept"
    program = functools.partial(regression, priors=priors, has_intercept=has_intercept)
    sites = ("alpha", "beta", "sigma") if has_intercept else ("beta", "sigma")
    return Case(program, (np.asarray(data.X), np.asarray(data.y)), sites)


def eight_schools(y, sigma):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    deviation = numpyro.sample("deviation", dist.Normal().expand([len(y)]).to_event(1))
    theta = numpyro.deterministic("theta", mu + tau * deviation)
    numpyro.sample("y", dist.Normal(theta, sigma).to_event(1), obs=y)


def schools_latents(sites):
    return {
        "mu": sites["mu"],
        "tau": sites["tau"],
        "deviation": (sites["theta"] - sites["mu"]) / sites["tau"],
    }


def normal_mixture(y):
    mu = flat("mu", constraints.ordered_vector, (2,))
    numpyro.factor("prior of mu", dist.Normal(0.0, 2.0).log_prob(mu).sum())
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
    components = dist.Normal(mu, sigma).log_prob(y[:, None]) + jnp.log(jnp.stack([theta, 1.0 - theta]))
    numpyro.factor("likelihood", jax.nn.logsumexp(components, axis=1).sum())


def garch(y, sigma1):
    """GARCH(1,1): variance = alpha0 + alpha1 (last deviation)^2 + beta1 (last variance)."""
    mu = flat("mu")
    alpha0 = flat("alpha0", constraints.positive)
    alpha1 = flat("alpha1", constraints.unit_interval)
    beta1 = flat("beta1", constraints.interval(0.0, 1.0 - alpha1))

    def step(variance, value):
        following = alpha0 + alpha1 * (value - mu) ** 2 + beta1 * variance
        return following, following

    first = jnp.asarray(sigma1**2)
    _, others = jax.lax.scan(step, first, y[:-1], unroll=8)
    std = jnp.sqrt(jnp.concatenate([first[None], others]))
    numpyro.sample("y", dist.Normal(mu, std).to_event(1), obs=y)


def squared_exponential(x, rho, alpha, diagonal):
    """Covariance matrix of a Gaussian process with amplitude alpha and length rho, plus a diagonal."""
    return alpha**2 * jnp.exp(-0.5 * ((x[:, None] - x) / rho) ** 2) + diagonal * jnp.eye(len(x))


def process_priors():
    return numpyro.sample("rho", dist.Gamma(25.0, 4.0)), numpyro.sample("alpha", dist.HalfNormal(2.0))


def process_regression(x, y):
    rho, alpha = process_priors()
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.MultivariateNormal(0.0, squared_exponential(x, rho, alpha, sigma)), obs=y)


def poisson_process(x, counts):
    rho, alpha = process_priors()
    noise = numpyro.sample("noise", dist.Normal().expand([len(x)]).to_event(1))
    f = numpyro.deterministic("f", jnp.linalg.cholesky(squared_exponential(x, rho, alpha, 1e-10)) @ noise)
    numpyro.sample("counts", dist.Poisson(jnp.exp(f)).to_event(1), obs=counts)


def poisson_latents(x):
    def latents(sites):
        factor = jnp.linalg.cholesky(squared_exponential(x, sites["rho"], sites["alpha"], 1e-10))
        noise = jax.scipy.linalg.solve_triangular(factor, sites["f"], lower=True)
        return {"rho": sites["rho"], "alpha": sites["alpha"], "noise": noise}

    return latents


def runge_kutta(derivative, state, step, num):
    """States at the times of observation 1, ..., num, (num, size); ``step`` is the time between two of them.

    Parameters
    ----------
    derivative : callable
        (time, state) -> derivative of the state.
    state : (size,)
        State at time 0.
    """
    h = step / STEPS

    def advance(state, time):
        k1 = derivative(time, state)
        k2 = derivative(time + 0.5 * h, state + 0.5 * h * k1)
        k3 = derivative(time + 0.5 * h, state + 0.5 * h * k2)
        k4 = derivative(time + h, state + h * k3)
        following = state + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        return following, following

    _, states = jax.lax.scan(advance, state, h * jnp.arange(num * STEPS))
    return states[STEPS - 1 :: STEPS]


def predator_and_prey(y_init, y):
    """Lotka and Volterra's equations, observed every year with lognormal errors."""
    center, width = jnp.array([1.0, 0.05, 1.0, 0.05]), jnp.array([0.5, 0.05, 0.5, 0.05])
    theta = numpyro.sample("theta", dist.TruncatedNormal(center, width, low=0.0).to_event(1))
    z_init = numpyro.sample("z_init", dist.LogNormal(math.log(10.0), 1.0).expand([2]).to_event(1))
    sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))

    def rate(_, log_z):  # logarithms stay finite
        prey, predators = jnp.exp(log_z)
        return jnp.stack([theta[0] - theta[1] * predators, theta[3] * prey - theta[2]])

    log_z = runge_kutta(rate, jnp.log(z_init), 1.0, len(y))
    log_z = jnp.concatenate([jnp.log(z_init)[None], log_z])
    numpyro.sample("y", dist.LogNormal(log_z, sigma).to_event(2), obs=jnp.concatenate([y_init[None], y]))


def elimination(dose, volume, interval, concentrations):
    """First-order absorption and Michaelis-Menten elimination of a drug, observed at equal intervals."""
    prior = dist.HalfCauchy(1.0)
    k_a, k_m, v_m, sigma = (numpyro.sample(name, prior) for name in ("k_a", "K_m", "V_m", "sigma"))

    def rate(time, c):
        return jnp.exp(-k_a * time) * dose * k_a / volume - v_m / volume * c / (k_m + c)

    c = runge_kutta(rate, jnp.zeros(1), interval, len(concentrations))[:, 0]
    numpyro.sample("C", dist.LogNormal(jnp.log(c), sigma).to_event(1), obs=concentrations)


def _others():
    """Name -> file, and a function of its contents (arrays) that returns the case."""
    return {
        "eight_schools-eight_schools_noncentered": (
            "eight_schools.json",
            lambda d: Case(eight_schools, (d["y"], d["sigma"]), ("theta", "mu", "tau"), schools_latents),
        ),
        "low_dim_gauss_mix-low_dim_gauss_mix": (
            "low_dim_gauss_mix.json",
            lambda d: Case(normal_mixture, (d["y"],), ("mu", "sigma", "theta")),
        ),
        "one_comp_mm_elim_abs-one_comp_mm_elim_abs": (
            "one_comp_mm_elim_abs.json",
            lambda d: Case(
                elimination,
                (d["D"], d["V"], d["times"][0], d["C_hat"]),
                ("k_a", "K_m", "V_m", "sigma"),
                heavy_tails=True,
            ),
        ),
        "garch-garch11": (
            "garch.json",
            lambda d: Case(garch, (d["y"], d["sigma1"]), ("mu", "alpha0", "alpha1", "beta1")),
        ),
        "gp_pois_regr-gp_regr": (
            "gp_pois_regr.json",
            lambda d: Case(process_regression, (d["x"], d["y"]), ("rho", "alpha", "sigma")),
        ),
        "gp_pois_regr-gp_pois_regr": (
            "gp_pois_regr.json",
            lambda d: Case(poisson_process, (d["x"], d["k"]), ("rho", "alpha", "f"), poisson_latents(d["x"])),
        ),
        "hudson_lynx_hare-lotka_volterra": (
            "hudson_lynx_hare.json",
            lambda d: Case(predator_and_prey, (d["y_init"], d["y"]), ("theta", "z_init", "sigma")),
        ),
    }


OTHERS = _others()
NAMES = (*LINEAR, *OTHERS)


def case_of(shared_data, name) -> Case:
    """The program of a posterior; ``shared_data`` locates a file, as the fixture of this name does."""
    if name in LINEAR:
        return linear(shared_data, name)
    file, build = OTHERS[name]
    stored = read_json(shared_data(f"{FOLDER}/{file}"))
    return build({key: np.asarray(value, float) for key, value in stored.items()})


def reference_draws(shared_data, name):
    """Reference draws (chain, draw, column) in double precision, and the names of the columns."""
    summary = read_json(shared_data(f"{FOLDER}/reference_summary.json"))[name]["parameters"]
    with np.load(shared_data(f"{FOLDER}/reference_draws.npz")) as archive:
        return archive[name].astype(float), list(summary)


def columns(case, sites, leading):
    """Sites, arrays with ``leading`` common dimensions, as columns in the order of the reference draws."""
    parts = [jnp.reshape(sites[name], (*jnp.shape(sites[name])[:leading], -1)) for name in case.sites]
    return jnp.concatenate(parts, axis=-1)


def latents_of(case, target, draws):
    """Unconstrained positions (num, size) of reference draws (num, column)."""
    shapes = {name: shape.shape for name, shape in jax.eval_shape(target.sites, target.start).items()}
    ends = np.cumsum([math.prod(shapes[name]) for name in case.sites])
    assert ends[-1] == draws.shape[1]

    def position(row):
        parts = jnp.split(row, ends[:-1].tolist())
        sites = {name: part.reshape(shapes[name]) for name, part in zip(case.sites, parts, strict=True)}
        return target.unconstrain(case.latents(sites))

    return np.asarray(jax.jit(jax.vmap(position))(jnp.asarray(draws)))


def stein_distances(shared_data, name):
    """Stein's identity at the reference draws, in standard errors: of E[g] = 0 and E[z g] = -1 of each component.

    z are unconstrained positions and g the gradient of our log density there. It holds if the draws have this density.
    """
    case = case_of(shared_data, name)
    target = build_target(case.program, case.args, jax.random.key(0))
    draws, _ = reference_draws(shared_data, name)
    z = latents_of(case, target, draws.reshape(-1, draws.shape[-1]))
    gradient = -np.asarray(jax.jit(jax.vmap(jax.grad(target.potential)))(jnp.asarray(z)))
    terms = np.concatenate([gradient, (z - z.mean(axis=0)) * gradient + 1.0], axis=1)
    return terms.mean(axis=0) / terms.std(axis=0) * np.sqrt(len(terms))
