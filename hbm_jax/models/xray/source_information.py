"""What the counts of each source say of its own spectrum, were it alone: the coordinates a population is sampled in.

Counts say most of the column itself, not of its logarithm, and least of index, flux and column one by one: these three
go together. Each source's log likelihood is taken as quadratic in photon index, log10 flux and column, about its best
spectrum as one of the sample, without a medium; the absorption by one then moves where the quadratic has its maximum,
to first order. Nothing of this changes the posterior: see `hbm_jax.models.partial_centering.sample_together`.
"""

import functools
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist
from numpyro.distributions.transforms import AffineTransform

from hbm_jax.distributions import LogOrLinear
from hbm_jax.models.partial_centering import Coordinate, sample_together
from hbm_jax.precomputation import precomputed

# Of photon index, log10 flux and log10 of the column: a normal population to begin with, that counts as so many
# sources when it is replaced by that of the sample, which is taken to be no narrower than this.
_MEAN, _STD, _COUNTS_AS = np.array([2.0, -11.5, -0.5]), np.array([1.0, 3.0, 1.0]), 1.0
_NARROWEST = np.array([0.1, 0.1, 0.2])
_ROUNDS, _STEPS = 5, 12
_TEMPERATURES = np.linspace(4.5, 7.5, 13)
_THIN = -12.0  # log10 of a density [cm^-3] whose absorption is of first order
_LEAST = 1e-6  # information about a column: 10^25 cm^-2 would not be noticed
_LN10 = float(np.log(10.0))
_GRID, _BEYOND, _REACH = 33, 4.0, 20.0  # of V: points, and how far beyond the counts' and the population's own


class Population(Protocol):
    """Sources and their expected counts; `hbm_jax.models.xray.absorbed_counts.AbsorbedCounts` is one."""

    @property
    def statistic(self) -> Any:
        """Statistic of the counts."""

    @property
    def z(self) -> Any:
        """Redshifts of the catalogue, (N,)."""

    @property
    def nh_mw(self) -> Any:
        """Columns of the Milky Way [1e22 cm^-2], (N,); NaN where missing."""

    @property
    def depth(self) -> Any:
        """Optical depth of the medium to each source at a few energies; None without one."""

    def expected(self, p: dict[str, Any], band: tuple[float, float]) -> jax.Array:
        """Return expected counts of the sources alone, (N, G)."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class OwnSpectra:
    """Quadratic log likelihoods of N sources in photon index, log10 flux and column [1e22 cm^-2].

    Attributes
    ----------
    precision : (N, 3, 3)
        Curvature.
    weighted : (N, 3)
        Precision times the values at the maximum, without a medium.
    by_depth : (N, 3, D)
        Change of ``weighted`` for each of the D optical depths of the medium in `AbsorbedCounts.depth`.
    by_galactic : (N, 3)
        Change of ``weighted`` with the column of the Milky Way [1e22 cm^-2], from ``galactic``.
    galactic : (N,)
        Column of the Milky Way that ``weighted`` is for.
    density : (N,)
        Information about n0 of a medium of 10^6 K, whatever index, flux and column are [1e14 cm^6].
    """

    precision: Any
    weighted: Any
    by_depth: Any
    by_galactic: Any
    galactic: Any
    density: Any

    @classmethod
    def of(cls, prepared: Population, band: tuple[float, float]) -> "OwnSpectra":
        """Fit every source on its own, all at once.

        Parameters
        ----------
        prepared : Population
            The sources; their redshifts are taken from the catalogue, and a column of the Milky Way that is missing as
            10^20.7 cm^-2.
        band : (float, float)
            Of the flux [keV].
        """
        known = np.isfinite(np.asarray(prepared.nh_mw))
        galactic = np.where(known, np.asarray(prepared.nh_mw), 0.05)
        found = precomputed(lambda: _fit(prepared, galactic, tuple(band)))
        precision, weighted, by_galactic, by_density, depth, own_density = found
        density = np.zeros(len(weighted))
        if prepared.depth is None:
            by_depth = np.zeros((*weighted.shape, 0))
        else:  # the same few optical depths stand for the medium whatever its temperature
            inverse = np.linalg.pinv(np.moveaxis(depth, 0, 1), rcond=1e-3)  # (N, D, temperatures)
            by_depth = np.einsum("ndt,tnk->nkd", inverse, by_density)
            middle = len(_TEMPERATURES) // 2
            explained = np.linalg.solve(precision + np.diag([25.0, 1.0, 0.1]), by_density[middle][..., None])[..., 0]
            density = 1e-14 * (own_density[middle] - np.sum(explained * by_density[middle], axis=1))
        return cls(precision, weighted, by_depth, by_galactic, galactic, np.maximum(density, 1e-6))

    def sample(self, depth, galactic, means, stds, population) -> tuple[Any, Any, Any]:
        """Sample photon index, log10 flux and log10 column of every source; their values.

        The column first, by what is known of it whatever index and flux are: normal in its logarithm where it is small,
        by the population, and normal itself where the counts measure it (`LogOrLinear`). Then index and flux, relative
        to their population, of which counts and the column say a normal distribution.

        Parameters
        ----------
        depth : (N, D) or None
            Optical depths of the medium, as in `AbsorbedCounts.depth`; None without one.
        galactic : (N,)
            Columns of the Milky Way [1e22 cm^-2].
        means, stds : sequences of 3
            Of the population of photon indices, log10 fluxes and log10 columns.
        population : Distribution
            Of log10 columns.
        """
        weighted = self.weighted + self.by_galactic * (galactic - self.galactic)[:, None]
        if depth is not None:
            weighted = weighted + jnp.einsum("nkd,nd->nk", self.by_depth, depth)
        curvature = jnp.asarray(self.precision)
        spread = jnp.broadcast_to(jnp.stack(stds[:2]), (len(galactic), 2))
        precision = spread[:, :, None] * curvature[:, :2, :2] * spread[:, None, :] + np.eye(2)
        score = weighted - curvature[:, :, 0] * means[0] - curvature[:, :, 1] * means[1]
        slope, tied = spread * score[:, :2], spread * curvature[:, :2, 2]
        (a, b), c = jnp.moveaxis(precision[:, 0], -1, 0), precision[:, 1, 1]
        explained = jnp.stack([c * tied[:, 0] - b * tied[:, 1], a * tied[:, 1] - b * tied[:, 0]], axis=-1)
        explained = explained / (a * c - b * b)[:, None]
        known = jnp.maximum(curvature[:, 2, 2] - jnp.sum(explained * tied, axis=1), _LEAST)
        best = (score[:, 2] - jnp.sum(explained * slope, axis=1)) / known
        log10_nh = _sample_column(known, best, means[2], stds[2], population)
        index, flux = sample_together(
            {
                "photon_index": _relative(means[0], stds[0], galactic.shape),
                "log10_flux": _relative(means[1], stds[1], galactic.shape),
            },
            precision,
            slope - tied * (10.0**log10_nh)[:, None],
        )
        return index, flux, log10_nh


def _sample_column(known, best, mean, std, population):
    """Sample log10 of columns of which the counts say N(best, 1 / known), and the population N(mean, std^2).

    Sampled is V of `LogOrLinear`, by its mean and standard deviation under both: sums over a grid, which change
    smoothly with mean and std also where a source leaves its population for its own counts.
    """
    std = jnp.broadcast_to(std, known.shape)
    chart = LogOrLinear.of(known**-0.5, std)
    prior = dist.TransformedDistribution(population.expand(known.shape), chart)
    alone = jnp.arcsinh(0.5 * best * jnp.sqrt(known)) / _LN10 - 0.5 * jnp.log10(known)
    share = 1.0 / (1.0 + (_LN10 * 10.0**alone * std) ** 2 * known)  # of the population in what is known
    one, other, both = chart(alone), chart(mean), chart(alone + share * (mean - alone))
    low = jnp.maximum(jnp.minimum(one, other) - _BEYOND, both - _REACH)
    high = jnp.minimum(jnp.maximum(one, other) + _BEYOND, both + _REACH)
    step = (high - low) / (_GRID - 1)
    V = low + np.arange(_GRID)[:, None] * step
    weight = jax.nn.softmax(prior.log_prob(V) - 0.5 * known * (best - 10.0 ** chart.inv(V)) ** 2, axis=0)
    middle = jnp.sum(weight * V, axis=0)
    scale = jnp.sqrt(jnp.sum(weight * (V - middle) ** 2, axis=0) + step**2 / 12.0)
    moved = dist.TransformedDistribution(prior, AffineTransform(-middle / scale, 1.0 / scale))
    V = middle + scale * numpyro.sample("_log10_nh", moved, infer={"start": 0.0})
    return numpyro.deterministic("log10_nh", chart.inv(V))


def _relative(mean, std, shape) -> Coordinate:
    """Coordinate relative to a normal population."""
    return Coordinate(dist.Normal().expand(shape), lambda V: mean + std * V)


def _fit(prepared: Population, galactic, band):
    """Curvature, weighted values, responses to the Galactic column and the medium, depths of that, information.

    One program for the spectra and their derivatives, one for the responses; what is between them is NumPy.
    """
    num = len(galactic)

    counts = np.sum(np.where(prepared.statistic.used, prepared.statistic.counts, 0.0), axis=1)
    prepared, galactic = jax.device_put((prepared, galactic))  # once for all

    def look(theta):
        *sums, along, weight = _look(prepared, galactic, theta, band)
        return [np.asarray(part) for part in sums], along, weight

    def height(value, theta, mean, precision):
        """Log likelihood of each source, and what the population says of its parameters."""
        return value - 0.5 * np.sum(precision * (theta - mean) ** 2, axis=1)

    theta, mean, std = np.tile(_MEAN, (num, 1)), _MEAN, _STD
    theta[:, 1] += np.log10(np.maximum(counts, 1.0) / look(theta)[0][0])
    (_, value, slope, information), *_ = look(theta)
    for _ in range(_ROUNDS):
        # Every source as one of a population, and the population by them.
        precision, damping = 1.0 / std**2, np.full(num, 1e-2)
        for _ in range(_STEPS):
            uphill, curvature = slope - precision * (theta - mean), information[:, :3, :3] + np.diag(precision)
            damped = curvature + damping[:, None, None] * (curvature * np.eye(3))
            new = theta + np.clip(np.linalg.solve(damped, uphill[..., None])[..., 0], -0.5, 0.5)
            (_, *found), *_ = look(new)
            better = height(found[0], new, mean, precision) >= height(value, theta, mean, precision)
            theta = np.where(better[:, None], new, theta)
            value = np.where(better, found[0], value)
            slope = np.where(better[:, None], found[1], slope)
            information = np.where(better[:, None, None], found[2], information)
            damping = np.where(better, damping / 5.0, damping * 5.0)
        error = np.linalg.inv(information[:, :3, :3] + np.diag(precision))
        mean = (np.sum(theta, axis=0) + _COUNTS_AS * _MEAN) / (num + _COUNTS_AS)
        square = np.sum((theta - mean) ** 2 + np.einsum("nkk->nk", error), axis=0) + _COUNTS_AS * _STD**2
        std = np.maximum(np.sqrt(square / (num + _COUNTS_AS)), _NARROWEST)
    _, along, weight = look(theta)
    values = np.stack([theta[:, 0], theta[:, 1], 10.0 ** theta[:, 2]], axis=1)
    by_column = np.stack([np.ones(num), np.ones(num), 1.0 / (_LN10 * values[:, 2])], axis=1)  # not by its logarithm
    curvature = by_column[:, :, None] * information[:, :3, :3] * by_column[:, None, :]
    weighted = np.einsum("nkl,nl->nk", curvature, values) + by_column * slope
    by_density, depth, of_density = jax.device_get(_of_medium(prepared, galactic, theta, along, weight, band))
    return curvature, weighted, -by_column * information[:, :3, 3], by_column * by_density, depth, of_density


def _expected(prepared, theta, galactic, band, log10_n0=-30.0, log10_T=6.0):
    """Return counts by photon index, log10 flux and log10 column (N, 3); without a medium."""
    p = {"photon_index": theta[:, 0], "log10_flux": theta[:, 1], "nh": 10.0 ** theta[:, 2], "nh_mw": galactic}
    medium = {"log10_n0": log10_n0, "log10_T": log10_T, "log10_xi": 0.0, "metallicity": 0.3}
    return prepared.expected(p | medium | {"z": jnp.asarray(prepared.z)}, band)


@functools.partial(jax.jit, static_argnames="band")
def _look(prepared, galactic, theta, band):
    """Return what counts say of index, log10 flux, log10 column and the Galactic column, where these are so.

    Expected counts and log likelihood (N,), its slopes by the first three (N, 3), information (N, 4, 4); derivatives
    of the channels by the first three (3, N, G), and the information of each channel (N, G).
    """
    statistic = prepared.statistic
    both = jnp.concatenate([theta, galactic[:, None]], axis=1)
    mu, jvp = jax.linearize(lambda b: _expected(prepared, b[:, :3], b[:, 3], band), both)
    along = jax.lax.map(jvp, jnp.broadcast_to(jnp.eye(4)[:, None, :], (4, *both.shape)))
    of_all = jax.grad(lambda m: jnp.sum(statistic.log_likelihood(m)))
    first, second = jax.jvp(of_all, (mu,), (jnp.ones_like(mu),))
    weight = jnp.maximum(-second, 0.0)
    return (
        jnp.sum(jnp.where(statistic.used, mu, 0.0), axis=1),
        jnp.sum(statistic.log_likelihood(mu), axis=1),
        jnp.einsum("kng,ng->nk", along[:3], first),
        jnp.einsum("kng,lng,ng->nkl", along, along, weight),
        along[:3],
        weight,
    )


@functools.partial(jax.jit, static_argnames="band")
def _of_medium(prepared, galactic, theta, along, weight, band):
    """Return change of slopes with the density of a thin medium, by temperature; its depths; information about it."""
    guide = prepared.depth
    if guide is None:
        num = len(galactic)
        return jnp.zeros((0, num, 3)), jnp.zeros((0, num, 0)), jnp.zeros((0, num))

    def by_temperature(T):
        def counts(log10_n0):
            return _expected(prepared, theta, galactic, band, log10_n0, T)

        change = jax.jvp(counts, (_THIN,), (1.0,))[1] / (_LN10 * 10.0**_THIN)
        return -jnp.einsum("kng,ng,ng->nk", along, weight, change), guide(1.0, T), jnp.sum(weight * change**2, axis=1)

    return jax.lax.map(by_temperature, jnp.asarray(_TEMPERATURES))
