"""Joint distribution of the fluxes of the intervals of bursts, with the line of each burst integrated out.

In burst i the fluxes follow a line in the peak energy, y_ij ~ N(log10_N_i + gamma_i x_ij, scatter^2), whose two
coefficients are normal in the population. Given the peak energies, the fluxes of a burst are jointly Gaussian with the
covariance X diag(variances) X^T + scatter^2. This avoids the funnel of log10_N_i and gamma_i at small population
widths.
"""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import distributions as dist
from numpyro.distributions import constraints

from hbm_jax.models.priors import Prior

LOG_2PI = float(np.log(2.0 * np.pi))
# Priors of a population of lines, and units.
LINES: dict[str, Prior] = {
    "gamma_mean": dist.Normal(1.5, 0.5),
    "gamma_std": dist.HalfNormal(0.5),
    "log10_N_mean": dist.Normal(52.0, 1.0),
    "log10_N_std": dist.HalfNormal(1.0),
}
SCATTER: dict[str, Prior] = {"intrinsic_scatter": dist.HalfNormal(0.3)}
UNITS = {
    "log10_N": "erg/s",
    "log10_N_mean": "erg/s",
    "log10_N_std": "dex",
    "log10_luminosity": "erg/s",
    "log10_flux": "erg/cm^2/s",
    "intrinsic_scatter": "dex",
}


class Line(NamedTuple):
    """Population of the lines log10_N + gamma x: means, standard deviations, and the intrinsic scatter about a line."""

    log10_N_mean: jax.Array
    log10_N_std: jax.Array
    gamma_mean: jax.Array
    gamma_std: jax.Array
    scatter: jax.Array


class Coordinates(NamedTuple):
    """Reparametrisation of log10 of the fluxes for sampling; it does not change their density.

    Attributes
    ----------
    guess : (I,)
        Approximate flux of each interval.
    trend : (I,)
        Part of each flux that is subtracted before sampling.
    weight : (I,)
        Weight of partial non-centring: 1 for the flux itself, 0 for its distance from ``guess`` in units of the
        scatter.
    reference : float
        Scatter at which the centred and the non-centred coordinate have the same width.
    """

    guess: jax.Array
    trend: jax.Array
    weight: jax.Array
    reference: float


class BurstFluxes(dist.Distribution):
    """Distribution of log10 of the fluxes of I intervals of B bursts, in the coordinates of the sampler.

    Variances of 0 are allowed: all bursts then share that coefficient. The solution does not divide by them.

    Parameters
    ----------
    x, log10_area : (I,)
        log10_E_peak - 2, and log10 of 4 pi d_L^2 [cm^2].
    of_burst : (I, B)
        1 where an interval belongs to a burst, else 0.
    line, coordinates : Line, Coordinates
        Population of lines, and coordinates of the values.
    """

    arg_constraints: ClassVar[dict] = {}
    support = constraints.real_vector
    pytree_data_fields = ("x", "log10_area", "of_burst", "line", "coordinates")

    def __init__(self, x, log10_area, of_burst, line: Line, coordinates: Coordinates, *, validate_args=None):
        self.x, self.log10_area, self.of_burst = x, log10_area, of_burst
        self.line, self.coordinates = line, coordinates
        super().__init__((), (np.shape(x)[0],), validate_args=validate_args)

    def flux(self, value):
        """Return log10 of the fluxes [erg/cm^2/s] at coordinates ``value``, (I,)."""
        guess, trend, c, reference = self.coordinates
        ratio, center = self.line.scatter / reference, guess - trend
        return center + ratio ** (1.0 - c) * (value - c * center) + trend

    def value(self, flux):
        """Return the coordinates of log10 of the fluxes, the inverse of `flux`."""
        guess, trend, c, reference = self.coordinates
        ratio, center = self.line.scatter / reference, guess - trend
        return c * center + ratio ** (c - 1.0) * (flux - trend - center)

    def log_prob(self, value):
        """Return the log density of coordinates (I,), a scalar.

        chi^2 of a burst is the sum of the squared deviations of its intervals from its most probable line, in units of
        the scatter, and of that line from the mean line of the population, in units of its standard deviations. V w is
        this difference between the lines, with V and w = (1 + A V)^-1 b of `_solve`.
        """
        line, coordinates = self.line, self.coordinates
        residual = self._residual(self.flux(value))
        determinant, _, (w0, w1) = self._solve(residual)
        # chi^2 as a sum of squares: the equivalent difference can become negative by rounding far from the maximum.
        line_shift = self.of_burst @ jnp.stack([w0 * line.log10_N_std**2, w1 * line.gamma_std**2], axis=1)
        deviation = (residual - line_shift[:, 0] - line_shift[:, 1] * self.x) / line.scatter
        chi2 = deviation**2 @ self.of_burst + (line.log10_N_std * w0) ** 2 + (line.gamma_std * w1) ** 2
        num = jnp.sum(self.of_burst, axis=0)
        log_density = -0.5 * (chi2 + jnp.log(determinant) + num * (LOG_2PI + 2.0 * jnp.log(line.scatter)))
        log_ratio = jnp.log(line.scatter / coordinates.reference)  # of the Jacobian of `flux`
        return jnp.sum(log_density) + jnp.sum(1.0 - coordinates.weight) * log_ratio

    def sample(self, key, sample_shape=()):
        """Draw values, ``(*sample_shape, I)``."""
        line = self.line
        key_lines, key_scatter = jax.random.split(key)
        noise_N, noise_gamma = jax.random.normal(key_lines, (2, *sample_shape, np.shape(self.of_burst)[1]))
        log10_N, gamma = line.log10_N_mean + line.log10_N_std * noise_N, line.gamma_mean + line.gamma_std * noise_gamma
        scatter = line.scatter * jax.random.normal(key_scatter, (*sample_shape, *np.shape(self.x)))
        flux = log10_N @ self.of_burst.T + gamma @ self.of_burst.T * self.x - self.log10_area + scatter
        return self.value(flux)

    def lines(self, flux, noise):
        """Return a draw of log10_N and gamma of each burst given its fluxes (I,), from standard normal noise (2, B)."""
        line = self.line
        determinant, (m00, m01, m11), (w0, w1) = self._solve(self._residual(flux))
        l00 = jnp.sqrt(m00)
        positive = m00 > 0
        l10 = jnp.where(positive, m01 / jnp.where(positive, l00, 1.0), 0.0)
        # Conditional variance of gamma given log10_N as a ratio, without cancellation.
        variance = (line.log10_N_std * line.gamma_std) ** 2 / determinant / jnp.where(positive, m00, 1.0)
        l11 = jnp.sqrt(jnp.where(positive, variance, m11))
        log10_N = line.log10_N_mean + line.log10_N_std**2 * w0 + l00 * noise[0]
        gamma = line.gamma_mean + line.gamma_std**2 * w1 + l10 * noise[0] + l11 * noise[1]
        return log10_N, gamma

    def _residual(self, flux):
        """Return log10 of the luminosities relative to the mean line of the population, (I,)."""
        return flux + self.log10_area - self.line.log10_N_mean - self.line.gamma_mean * self.x

    def _solve(self, residual):
        """Return for each burst the determinant of 1 + A V, the matrix V (1 + A V)^-1, and the vector (1 + A V)^-1 b.

        V is the diagonal matrix of the variances of log10_N and gamma, A = X^T X / scatter^2 and b = X^T residual /
        scatter^2, where X has the columns 1 and x.
        """
        line, of_burst = self.line, self.of_burst
        weight, v0, v1 = 1.0 / line.scatter**2, line.log10_N_std**2, line.gamma_std**2
        columns = jnp.stack([jnp.ones_like(residual), self.x, residual, residual * self.x], axis=1)
        a00, a01, b0, b1 = weight * (of_burst.T @ columns).T
        mean = a01 / a00
        spread = weight * ((self.x - of_burst @ mean) ** 2 @ of_burst)
        a11 = spread + a01 * mean
        determinant = 1.0 + v0 * a00 + v1 * a11 + v0 * v1 * a00 * spread
        covariance = (
            (1.0 + v1 * a11) * v0 / determinant,
            -v0 * v1 * a01 / determinant,
            (1.0 + v0 * a00) * v1 / determinant,
        )
        solution = (
            ((1.0 + v1 * a11) * b0 - v1 * a01 * b1) / determinant,
            ((1.0 + v0 * a00) * b1 - v0 * a01 * b0) / determinant,
        )
        return determinant, covariance, solution
