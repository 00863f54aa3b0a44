"""What the counts of each source say of its own spectrum, were it alone: the coordinates a population is sampled in.

Counts say most of the column itself, not of its logarithm, and least of index, flux and column one by one: these three
go together. Each source's log likelihood is taken as quadratic in photon index, log10 flux and column, about its best
spectrum without a medium; the absorption by one then moves where the quadratic has its maximum, to first order. Nothing
of this changes the posterior: see `hbm_jax.models.centred.sample_together`.
"""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import distributions as dist

from hbm_jax.distributions import LogOrLinear
from hbm_jax.models.centred import Coordinate

if TYPE_CHECKING:
    from hbm_jax.models.absorbed_counts import AbsorbedCounts

# Weak normal priors by which no direction is left open, of photon index, log10 flux and log10 of the column.
_MEAN, _STD = np.array([2.0, -11.5, -0.5]), np.array([1.0, 3.0, 1.0])
_STEPS = 30
_TEMPERATURES = np.linspace(4.5, 7.5, 13)
_THIN = -12.0  # log10 of a density [cm^-3] whose absorption is of first order
_LEAST = 1e-6  # information about a column: 10^25 cm^-2 would not be noticed
_LN10 = float(np.log(10.0))


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
    def of(cls, prepared: "AbsorbedCounts", band: tuple[float, float]) -> "OwnSpectra":
        """Fit every source on its own, all at once.

        Parameters
        ----------
        prepared : AbsorbedCounts
            The sources; their redshifts are taken from the catalogue, and a column of the Milky Way that is missing as
            10^20.7 cm^-2.
        band : (float, float)
            Of the flux [keV].
        """
        known = np.isfinite(np.asarray(prepared.nh_mw))
        galactic = np.where(known, np.asarray(prepared.nh_mw), 0.05)
        with jax.enable_x64(True), jax.ensure_compile_time_eval():
            found = jax.device_get(_fit(prepared, jnp.asarray(galactic), tuple(band)))
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

    def coordinates(self, depth, galactic, means, stds, population) -> tuple[dict[str, Coordinate], Any, Any]:
        """Coordinates of every source, for `sample_together`.

        Index and flux are taken relative to their population. A column is normal in its logarithm where it is small, by
        the population, and normal itself where the counts measure it: see `LogOrLinear`.

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
        s1, s2, s3 = (jnp.broadcast_to(std, galactic.shape) for std in stds)
        # What is known of the column with index and flux at their best for each, given the population.
        a, b, c = (s * curvature[:, i, j] * t for s, t, i, j in ((s1, s1, 0, 0), (s1, s2, 0, 1), (s2, s2, 1, 1)))
        u, v = s1 * curvature[:, 0, 2], s2 * curvature[:, 1, 2]
        det = (1.0 + a) * (1.0 + c) - b * b
        first, second = ((1.0 + c) * u - b * v) / det, ((1.0 + a) * v - b * u) / det
        known = jnp.maximum(curvature[:, 2, 2] - first * u - second * v, _LEAST)
        score = weighted - curvature[:, :, 0] * means[0] - curvature[:, :, 1] * means[1]
        best = (score[:, 2] - first * s1 * score[:, 0] - second * s2 * score[:, 1]) / known
        column = LogOrLinear.of(known**-0.5, s3)
        # From the maximum of its normal density times the column itself, towards that with the population.
        V = column(jnp.arcsinh(0.5 * best * jnp.sqrt(known)) / _LN10 - 0.5 * jnp.log10(known))
        for _ in range(2):
            log10_nh, by_log, by_column = column.slopes(V)
            pull = by_column * known * (best - 10.0**log10_nh) - by_log * (log10_nh - means[2]) / s3**2
            V = V + 2.0 * jnp.tanh(0.5 * pull / (by_column**2 * known + (by_log / s3) ** 2))
        log10_nh, by_log, by_column = column.slopes(V)
        stretch = jnp.stack([s1, s2, by_column], axis=-1)
        prior = jnp.stack([jnp.ones_like(s1), jnp.ones_like(s1), (by_log / s3) ** 2], axis=-1)
        precision = stretch[:, :, None] * curvature * stretch[:, None, :] + prior[:, :, None] * np.eye(3)
        slope = stretch * (score - curvature[:, :, 2] * (10.0**log10_nh)[:, None])
        slope = slope.at[:, 2].add(-by_log * (log10_nh - means[2]) / s3**2)
        standard = dist.Normal().expand(galactic.shape)
        of_column = dist.TransformedDistribution(population.expand(galactic.shape), column)
        found = {
            "photon_index": Coordinate(standard, lambda V: means[0] + stds[0] * V, 0.0),
            "log10_flux": Coordinate(standard, lambda V: means[1] + stds[1] * V, 0.0),
            "log10_nh": Coordinate(of_column, column.inv, V),
        }
        return found, precision, slope


@functools.partial(jax.jit, static_argnames="band")
def _fit(prepared: "AbsorbedCounts", galactic, band):
    """Curvature, weighted values, responses to the Galactic column and the medium, depths of that, information."""
    statistic = prepared.statistic
    num = len(galactic)
    medium = {"log10_xi": 0.0, "metallicity": 0.3, "z": jnp.asarray(prepared.z)}

    def expected(theta, galactic, log10_n0=-30.0, log10_T=6.0):
        """Return counts by photon index, log10 flux and log10 column; without a medium."""
        p = {"photon_index": theta[:, 0], "log10_flux": theta[:, 1], "nh": 10.0 ** theta[:, 2], "nh_mw": galactic}
        return prepared.expected(p | medium | {"log10_n0": log10_n0, "log10_T": log10_T}, band)

    mean, precision = jnp.asarray(_MEAN), jnp.asarray(1.0 / _STD**2)
    theta = jnp.broadcast_to(mean, (num, 3))
    some = jnp.maximum(jnp.sum(jnp.where(statistic.used, statistic.counts, 0.0), axis=1), 1.0)
    unit = jnp.sum(jnp.where(statistic.used, expected(theta, galactic), 0.0), axis=1)
    theta = theta.at[:, 1].add(jnp.log10(some / unit))

    def slopes(theta):
        """Return log likelihood, expected counts, and their derivatives (3, N, G)."""
        tangents = jnp.broadcast_to(jnp.eye(3)[:, None, :], (3, num, 3))
        mu, jvp = jax.linearize(lambda t: expected(t, galactic), theta)
        return mu, jax.lax.map(jvp, tangents)

    def score(mu):
        """First derivative of the log likelihood of each channel, and minus the second."""
        ones = jnp.ones_like(mu)
        first, second = jax.jvp(jax.grad(lambda m: jnp.sum(statistic.log_likelihood(m))), (mu,), (ones,))
        return first, jnp.maximum(-second, 0.0)

    def objective(theta):
        found = jnp.sum(statistic.log_likelihood(expected(theta, galactic)), axis=1)
        return found - 0.5 * jnp.sum(precision * (theta - mean) ** 2, axis=1)

    def step(_, state):
        theta, value, damping = state
        mu, along = slopes(theta)
        first, weight = score(mu)
        slope = jnp.einsum("kng,ng->nk", along, first) - precision * (theta - mean)
        H = jnp.einsum("kng,lng,ng->nkl", along, along, weight) + jnp.diag(precision)
        damped = H + damping[:, None, None] * (H * jnp.eye(3))
        new = theta + jnp.clip(jnp.linalg.solve(damped, slope[..., None])[..., 0], -0.5, 0.5)
        new_value = objective(new)
        better = new_value >= value
        theta = jnp.where(better[:, None], new, theta)
        return theta, jnp.where(better, new_value, value), jnp.where(better, damping / 5.0, damping * 5.0)

    theta, _, _ = jax.lax.fori_loop(0, _STEPS, step, (theta, objective(theta), jnp.full(num, 1e-2)))
    mu, along = slopes(theta)
    first, weight = score(mu)
    nh = 10.0 ** theta[:, 2]
    along = along.at[2].divide(_LN10 * nh[:, None])  # by the column itself
    curvature = jnp.einsum("kng,lng,ng->nkl", along, along, weight)
    values = theta.at[:, 2].set(nh)
    weighted = jnp.einsum("nkl,nl->nk", curvature, values) + jnp.einsum("kng,ng->nk", along, first)

    def response(change):
        return -jnp.einsum("kng,ng,ng->nk", along, weight, change)

    by_galactic = response(jax.jvp(lambda g: expected(theta, g), (galactic,), (jnp.ones(num),))[1])
    guide = prepared.depth
    if guide is None:
        return curvature, weighted, by_galactic, jnp.zeros((0, num, 3)), jnp.zeros((0, num, 0)), jnp.zeros((0, num))

    def by_temperature(T):
        change = jax.jvp(lambda n: expected(theta, galactic, n, T), (_THIN,), (1.0,))[1] / (_LN10 * 10.0**_THIN)
        return response(change), guide(1.0, T), jnp.sum(weight * change**2, axis=1)

    return curvature, weighted, by_galactic, *jax.lax.map(by_temperature, jnp.asarray(_TEMPERATURES))
