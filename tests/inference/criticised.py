"""Programs to criticise, and fits of them whose draws NumPy makes: independent ones of posteriors known exactly."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import numpyro
from monte_carlo import seed
from numpyro import distributions as dist
from programs import fit_about_the_start, fit_of_draws
from scipy import stats

import hbm_jax as hbm
from hbm_jax.inference import loo

SHAPE = (4, 1000)  # chains and draws


# A straight line with known noise: every predictive density is known.

NOISE_OF_LINE, WIDTH = 0.5, 2.0  # of the noise and of the prior of the coefficients
NUM_STARS = 36


@dataclasses.dataclass(frozen=True)
class Line:
    """A container of the kind that can be refitted."""

    name: tuple
    x: np.ndarray
    y: np.ndarray
    night: tuple

    def __len__(self):
        return len(self.x)

    def subset(self, rows):
        rows = np.asarray(rows)
        name, night = (tuple(values[i] for i in rows) for values in (self.name, self.night))
        return Line(name, self.x[rows], self.y[rows], night)


def line_data(outlier=0.0):
    rng = np.random.default_rng(7)
    x = np.sort(rng.uniform(-1.0, 1.0, NUM_STARS))
    y = 0.4 + 1.3 * x + NOISE_OF_LINE * rng.normal(size=NUM_STARS)
    y[-1] += outlier
    nights = tuple(f"night {i}" for i in rng.integers(0, 5, NUM_STARS))
    return Line(tuple(f"star {i}" for i in range(NUM_STARS)), x, y, nights)


def line(data):
    coefficient = numpyro.sample("coefficient", dist.Normal(0.0, WIDTH).expand([2]).to_event(1))
    with numpyro.plate("star", len(data)):
        mean = coefficient[0] + coefficient[1] * jnp.asarray(data.x)
        numpyro.sample("y", dist.Normal(mean, NOISE_OF_LINE), obs=data.y)


def flat_line(data):
    level = numpyro.sample("level", dist.Normal(0.0, WIDTH))
    with numpyro.plate("star", len(data)):
        numpyro.sample("y", dist.Normal(level, NOISE_OF_LINE), obs=data.y)


line.coords = flat_line.coords = lambda data: {"star": list(data.name)}


def line_posterior(data, program=line):
    """Mean and covariance of the coefficients."""
    columns = [np.ones(len(data)), data.x] if program is line else [np.ones(len(data))]
    design = np.column_stack(columns)
    covariance = np.linalg.inv(np.eye(len(columns)) / WIDTH**2 + design.T @ design / NOISE_OF_LINE**2)
    return covariance @ design.T @ data.y / NOISE_OF_LINE**2, covariance


def fit_of_line(data, program=line, number=1, **run):
    draws = np.random.default_rng(seed(number)).multivariate_normal(*line_posterior(data, program), size=SHAPE)
    sites = {"coefficient": draws} if program is line else {"level": draws[..., 0]}
    return fit_of_draws(program, (data,), sites, run=run)


@functools.cache
def line_fit(outlier=0.0, program=line):
    return fit_of_line(line_data(outlier), program)


@functools.cache
def line_loo(program=line):
    return loo(line_fit(program=program))


def with_bad(result, *labels):
    """The result, had importance sampling failed for the units of these labels alone."""
    k = np.where(result.table.index.isin(labels), 2.0, 0.3)
    return dataclasses.replace(result, table=result.table.assign(pareto_k=k))


def tail_index_of_line(data, rows):
    """Shape k of the tail of the importance weights 1 / p(y_rows | line): their moments below 1 / k are finite."""
    design = np.column_stack([np.ones(len(data.x)), data.x])
    precision = design.T @ design / NOISE_OF_LINE**2 + np.eye(2) / WIDTH**2
    share = np.linalg.solve(precision, design[rows].T @ design[rows] / NOISE_OF_LINE**2)
    return np.linalg.eigvals(share).real.max()


def density_of_line_left_out(data, rows):
    """log p(y_rows | y_others), by the conjugate posterior of the others."""
    mean, covariance = line_posterior(data.subset(np.setdiff1d(np.arange(len(data)), rows)))
    design = np.column_stack([np.ones(len(rows)), data.x[rows]])
    spread = design @ covariance @ design.T + NOISE_OF_LINE**2 * np.eye(len(rows))
    return stats.multivariate_normal(design @ mean, spread).logpdf(data.y[rows])


# Stars scattered about a level: a latent for each.


def scattered(data):
    level = numpyro.sample("level", dist.Normal(0.0, WIDTH))
    with numpyro.plate("star", len(data)):
        true = numpyro.sample("true", dist.Normal(level, 1.0))
        numpyro.deterministic("offset", true - level)
        numpyro.sample("y", dist.Normal(true, NOISE_OF_LINE), obs=data.y)


def level_posterior(y):
    """Mean and variance of the level, with the latents integrated out."""
    variance = 1.0 / (1.0 / WIDTH**2 + len(y) / (1.0 + NOISE_OF_LINE**2))
    return variance * y.sum() / (1.0 + NOISE_OF_LINE**2), variance


def fit_of_scattered(data, number=2, **run):
    rng = np.random.default_rng(seed(number))
    mean, variance = level_posterior(data.y)
    level = rng.normal(mean, np.sqrt(variance), SHAPE)
    given = 1.0 / (1.0 + 1.0 / NOISE_OF_LINE**2)  # variance of a latent given the level
    true = rng.normal(given * (level[..., None] + data.y / NOISE_OF_LINE**2), np.sqrt(given))
    sites = {"level": level, "true": true, "offset": true - level[..., None]}
    latents = {name: sites[name] for name in ("level", "true")}
    plates = {"true": ["star"], "offset": ["star"]}
    return fit_of_draws(scattered, (data,), sites, unconstrained=latents, dims=plates, run=run)


# Groups with a common mean and scatter, whose effects are integrated out or sampled.

GROUPS, PER_GROUP, NOISE = 6, 3, 0.7
MEASURED = np.random.default_rng(3).normal(
    np.repeat(np.random.default_rng(2).normal(1.0, 1.0, GROUPS), PER_GROUP), NOISE
)
GROUP_OF = np.repeat(np.arange(GROUPS), PER_GROUP)
MU, TAU = np.meshgrid(np.linspace(-8, 10, 361), 0.025 * (np.arange(400) + 0.5), indexing="ij")
LOG_PRIOR = stats.norm(0, 3).logpdf(MU) + stats.halfnorm(0, 2).logpdf(TAU)


def marginal_groups(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    covariance = tau**2 * jnp.ones((PER_GROUP, PER_GROUP)) + NOISE**2 * jnp.eye(PER_GROUP)
    with numpyro.plate("group", GROUPS):
        numpyro.sample("y", dist.MultivariateNormal(mu, covariance), obs=y.reshape(GROUPS, PER_GROUP))


def sampled_groups(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    with numpyro.plate("group", GROUPS):
        effect = numpyro.sample("effect", dist.Normal(mu, tau))
    with numpyro.plate("member", len(y)):
        numpyro.sample("y", dist.Normal(effect[GROUP_OF], NOISE), obs=y)


@functools.cache
def log_density_of_groups():
    """log p(y_g | mu, tau), effects integrated out, on the grid: (group, mu, tau)."""
    in_groups = MEASURED.reshape(GROUPS, PER_GROUP)
    mean = in_groups.mean(axis=1)
    # Normals with a common correlation, split into the group's mean and the scatter within.
    of_mean = stats.norm.logpdf(mean[:, None, None], MU, np.sqrt(TAU**2 + NOISE**2 / PER_GROUP))
    squares = np.sum((in_groups - mean[:, None]) ** 2, axis=1)
    within = -0.5 * squares / NOISE**2 - 0.5 * (PER_GROUP - 1) * np.log(2 * np.pi * NOISE**2) - 0.5 * np.log(PER_GROUP)
    return of_mean + within[:, None, None]


def density_of_groups_left_out():
    """log p(y_g | others) of each group."""
    log_group = log_density_of_groups()
    found = []
    for g in range(GROUPS):
        others = LOG_PRIOR + np.delete(log_group, g, axis=0).sum(axis=0)
        joint = others + log_group[g]
        found.append(np.logaddexp.reduce(joint.ravel()) - np.logaddexp.reduce(others.ravel()))
    return np.array(found)


@functools.cache
def group_fit(program):
    rng = np.random.default_rng(seed(5))
    log_posterior = (LOG_PRIOR + log_density_of_groups().sum(axis=0)).ravel()
    share = np.exp(log_posterior - log_posterior.max())
    cell = rng.choice(len(share), size=SHAPE, p=share / share.sum())
    mu = MU.ravel()[cell] + 0.05 * rng.uniform(-0.5, 0.5, SHAPE)
    tau = TAU.ravel()[cell] + 0.025 * rng.uniform(-0.5, 0.5, SHAPE)
    sites, latents, plates = {"mu": mu, "tau": tau}, {"mu": mu, "tau": np.log(tau)}, {}
    if program is sampled_groups:
        mean = MEASURED.reshape(GROUPS, PER_GROUP).mean(axis=1)
        precision = PER_GROUP / NOISE**2 + 1.0 / tau[..., None] ** 2
        centre = (PER_GROUP * mean / NOISE**2 + (mu / tau**2)[..., None]) / precision
        sites["effect"] = latents["effect"] = rng.normal(centre, precision**-0.5)
        plates = {"effect": ["group"]}
    return fit_of_draws(program, (MEASURED,), sites, unconstrained=latents, dims=plates)


# Two measurements of each object, beside factors. With noise as large as this, importance weights given the latents
# have a variance.

NOISE_OF_PAIR = 2.5
SLOPE = np.linspace(-6.0, 6.0, 2401)


def pair(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("object", len(x)):
        true = numpyro.sample("true", dist.Normal(0.0, 1.0))
        numpyro.sample("x_seen", dist.Normal(true, NOISE_OF_PAIR), obs=x)
        numpyro.sample("y_seen", dist.Normal(slope * true, NOISE_OF_PAIR), obs=y)
    numpyro.factor("_guard", 0.0)
    numpyro.factor("own", 0.0 * slope)


def log_density_of_pairs(x, y):
    """log p(x_i, y_i | slope), the latents integrated out, on the grid: (object, slope)."""
    a, b, c = 1.0 + NOISE_OF_PAIR**2, SLOPE, SLOPE**2 + NOISE_OF_PAIR**2  # of the covariance [[a, b], [b, c]]
    determinant = a * c - b**2
    square = (c * x[:, None] ** 2 - 2.0 * b * x[:, None] * y[:, None] + a * y[:, None] ** 2) / determinant
    return -0.5 * square - 0.5 * np.log(determinant) - np.log(2.0 * np.pi)


@functools.cache
def pair_fit():
    measured, rng = np.random.default_rng(0), np.random.default_rng(seed(6))
    x, y = measured.normal(size=12) + NOISE_OF_PAIR * measured.normal(size=(2, 12))
    log_posterior = stats.norm.logpdf(SLOPE) + log_density_of_pairs(x, y).sum(axis=0)
    share = np.exp(log_posterior - log_posterior.max())
    slope = rng.choice(SLOPE, size=SHAPE, p=share / share.sum())
    slope = slope + (SLOPE[1] - SLOPE[0]) * rng.uniform(-0.5, 0.5, SHAPE)
    b = slope[..., None]
    precision = 1.0 + (1.0 + b**2) / NOISE_OF_PAIR**2
    true = rng.normal((x + b * y) / NOISE_OF_PAIR**2 / precision, precision**-0.5)
    return fit_of_draws(pair, (x, y), {"slope": slope, "true": true}, dims={"true": ["object"]})


# Supernovae: draws about the start, of no posterior; enough to compare functions of draws.


@functools.cache
def supernova_fit():
    sne = hbm.data.load_jla().subset(np.arange(0, 740, 37))
    model = hbm.models.Supernova(cosmology="wcdm", priors={"Om0": "Normal(0.3, 0.05)"})
    return fit_about_the_start(model, (sne,), (4, 250), 7)
