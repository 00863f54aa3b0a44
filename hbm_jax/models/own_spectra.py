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
    """

    precision: Any
    weighted: Any
    by_depth: Any
    by_galactic: Any
    galactic: Any

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
        precision, weighted, by_galactic, by_density, depth = found
        if prepared.depth is None:
            by_depth = np.zeros((*weighted.shape, 0))
        else:  # the same few optical depths stand for the medium whatever its temperature
            inverse = np.linalg.pinv(np.moveaxis(depth, 0, 1), rcond=1e-3)  # (N, D, temperatures)
            by_depth = np.einsum("ndt,tnk->nkd", inverse, by_density)
        return cls(precision, weighted, by_depth, by_galactic, galactic)

    def at(self, depth, galactic, means, stds) -> tuple[jax.Array, jax.Array]:
        """Quadratic in photon index, log10 flux and log10 column, about where the latter is expected.

        Parameters
        ----------
        depth : (N, D) or None
            Optical depths of the medium, as in `AbsorbedCounts.depth`; None without one.
        galactic : (N,)
            Columns of the Milky Way [1e22 cm^-2].
        means, stds : sequences of 3 arrays () or (N,)
            Of the population.

        Returns
        -------
        precision, weighted : (N, 3, 3), (N, 3)
        """
        weighted = self.weighted + self.by_galactic * (galactic - self.galactic)[:, None]
        if depth is not None:
            weighted = weighted + jnp.einsum("nkd,nd->nk", self.by_depth, depth)
        inverse = [1.0 / std**2 for std in stds]
        # Of the column alone: index and flux at their best for each, given the population.
        A, v = jnp.asarray(self.precision)[:, :2, :2], jnp.asarray(self.precision)[:, :2, 2]
        a, b, c = A[:, 0, 0] + inverse[0], A[:, 0, 1], A[:, 1, 1] + inverse[1]
        det = a * c - b * b
        first, second = (c * v[:, 0] - b * v[:, 1]) / det, (a * v[:, 1] - b * v[:, 0]) / det
        known = jnp.maximum(self.precision[:, 2, 2] - first * v[:, 0] - second * v[:, 1], _LEAST)
        pull = weighted[:, 2] - first * (weighted[:, 0] + means[0] * inverse[0])
        pull = pull - second * (weighted[:, 1] + means[1] * inverse[1])
        best = pull / known
        # The maximum of its normal density times the column itself is positive; then towards that with the population.
        log10_nh = (jnp.arcsinh(0.5 * best * jnp.sqrt(known)) - 0.5 * jnp.log(known)) / _LN10
        for _ in range(3):
            nh = 10.0**log10_nh
            slope = _LN10 * nh
            step = slope * known * (best - nh) - (log10_nh - means[2]) * inverse[2]
            log10_nh = log10_nh + jnp.tanh(step / (slope**2 * known + inverse[2]))
        nh = 10.0**log10_nh
        slope = _LN10 * nh
        stretch = jnp.stack([jnp.ones_like(slope), jnp.ones_like(slope), slope], axis=-1)
        moved = weighted - self.precision[:, :, 2] * (nh - slope * log10_nh)[:, None]
        return stretch[:, :, None] * self.precision * stretch[:, None, :], stretch * moved


@functools.partial(jax.jit, static_argnames="band")
def _fit(prepared: "AbsorbedCounts", galactic, band):
    """Curvature, weighted values, responses to the Galactic column and to the medium, and depths of that (T, N, D)."""
    statistic = prepared.statistic
    num = len(galactic)
    medium = {"log10_xi": 0.0, "metallicity": 0.3, "z": jnp.asarray(prepared.z)}

    def expected(theta, galactic, log10_n0=-30.0, log10_T=6.0):
        """Counts by photon index, log10 flux and log10 column; without a medium."""
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
    if prepared.depth is None:
        return curvature, weighted, by_galactic, jnp.zeros((0, num, 3)), jnp.zeros((0, num, 0))

    def by_temperature(T):
        change = jax.jvp(lambda n: expected(theta, galactic, n, T), (_THIN,), (1.0,))[1]
        return response(change) / (_LN10 * 10.0**_THIN), prepared.depth(1.0, T)

    return curvature, weighted, by_galactic, *jax.lax.map(by_temperature, jnp.asarray(_TEMPERATURES))
