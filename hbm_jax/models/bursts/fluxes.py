"""Fluxes of the intervals of bursts, with the line of each burst integrated out, and drawn back afterwards.

In burst i the fluxes follow a line in the peak energy, y_ij ~ N(log10_N_i + gamma_i x_ij, scatter^2), whose two
coefficients are normal in the population. Given the peak energies that is a Gaussian in all fluxes of the burst
together, of covariance X diag(variances) X^T + scatter^2: no latent is left whose width may shrink to nothing.
"""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import distributions as dist
from numpyro.distributions import constraints

LOG_2PI = float(np.log(2.0 * np.pi))


class Line(NamedTuple):
    """Population of the lines of bursts, log10_N + gamma x: means, standard deviations, and the scatter about them."""

    log10_N_mean: jax.Array
    log10_N_std: jax.Array
    gamma_mean: jax.Array
    gamma_std: jax.Array
    scatter: jax.Array


class Coordinates(NamedTuple):
    """In which the fluxes are sampled; it changes no density of theirs.

    Attributes
    ----------
    guess : (I,)
        Flux near which an interval's is expected.
    trend : (I,)
        What a flux is less of, when it is sampled.
    centredness : (I,)
        1 for the flux itself, 0 for its distance from the guess in units of the scatter.
    reference : float
        Scatter at which both have the same width.
    """

    guess: jax.Array
    trend: jax.Array
    centredness: jax.Array
    reference: float


class BurstFluxes(dist.Distribution):
    """Logarithms of the fluxes of I intervals of B bursts, in the coordinates of a sampler.

    Parameters
    ----------
    x : (I,)
        log10_E_peak - 2.
    sphere : (I,)
        log10 of 4 pi d_L^2 [cm^2].
    of_burst : (I, B)
        1 where an interval is of a burst.
    line : Line
        Of the population.
    coordinates : Coordinates
        In which values are.

    Notes
    -----
    Where a variance is 0, the line has that coefficient in all bursts; no matrix is inverted that could be singular.
    """

    arg_constraints: ClassVar[dict] = {}
    support = constraints.real_vector
    pytree_data_fields = ("x", "sphere", "of_burst", "line", "coordinates")

    def __init__(self, x, sphere, of_burst, line: Line, coordinates: Coordinates, *, validate_args=None):
        self.x, self.sphere, self.of_burst = x, sphere, of_burst
        self.line, self.coordinates = line, coordinates
        super().__init__((), (np.shape(x)[0],), validate_args=validate_args)

    def flux(self, value):
        """Return log10 of the fluxes [erg/cm^2/s] of a value in the sampler's coordinates, (I,)."""
        at = self.coordinates
        ratio, near = self.line.scatter / at.reference, at.guess - at.trend
        return near + ratio ** (1.0 - at.centredness) * (value - at.centredness * near) + at.trend

    def value(self, flux):
        """Inverse of `flux`."""
        at = self.coordinates
        ratio, near = self.line.scatter / at.reference, at.guess - at.trend
        return at.centredness * near + ratio ** (at.centredness - 1.0) * (flux - at.trend - near)

    def log_prob(self, value):
        """Log probability of a value, ()."""
        line, at = self.line, self.coordinates
        rest = self._rest(self.flux(value))
        determinant, _, (w0, w1) = self._solved(rest)
        # Sums of squares: the difference of two, where a search has gone astray, could become negative.
        best = self.of_burst @ jnp.stack([w0 * line.log10_N_std**2, w1 * line.gamma_std**2], axis=1)
        left = (rest - best[:, 0] - best[:, 1] * self.x) / line.scatter
        distance = left**2 @ self.of_burst + (line.log10_N_std * w0) ** 2 + (line.gamma_std * w1) ** 2
        num = jnp.sum(self.of_burst, axis=0)
        of_bursts = -0.5 * (distance + jnp.log(determinant) + num * (LOG_2PI + 2.0 * jnp.log(line.scatter)))
        return jnp.sum(of_bursts) + jnp.sum(1.0 - at.centredness) * jnp.log(line.scatter / at.reference)

    def sample(self, key, sample_shape=()):
        """Draw values, sample_shape + (I,)."""
        line = self.line
        of_lines, of_intervals = jax.random.split(key)
        first, second = jax.random.normal(of_lines, (2, *sample_shape, np.shape(self.of_burst)[1]))
        log10_N, gamma = line.log10_N_mean + line.log10_N_std * first, line.gamma_mean + line.gamma_std * second
        scatter = line.scatter * jax.random.normal(of_intervals, (*sample_shape, *np.shape(self.x)))
        flux = log10_N @ self.of_burst.T + gamma @ self.of_burst.T * self.x - self.sphere + scatter
        return self.value(flux)

    def lines(self, flux, noise):
        """Return log10_N and gamma of each burst given its fluxes (I,), by standard normal noise (2, B)."""
        line = self.line
        determinant, (m00, m01, m11), (w0, w1) = self._solved(self._rest(flux))
        first = jnp.sqrt(m00)
        some = m00 > 0
        cross = jnp.where(some, m01 / jnp.where(some, first, 1.0), 0.0)
        # The determinant of the conditional covariance over its first element: nothing cancels.
        left = (line.log10_N_std * line.gamma_std) ** 2 / determinant / jnp.where(some, m00, 1.0)
        second = jnp.sqrt(jnp.where(some, left, m11))
        log10_N = line.log10_N_mean + line.log10_N_std**2 * w0 + first * noise[0]
        gamma = line.gamma_mean + line.gamma_std**2 * w1 + cross * noise[0] + second * noise[1]
        return log10_N, gamma

    def _rest(self, flux):
        return flux + self.sphere - self.line.log10_N_mean - self.line.gamma_mean * self.x

    def _solved(self, rest):
        """Return the determinant of 1 + A V, V (1 + A V)^-1, and (1 + A V)^-1 b, for each burst.

        With V the variances, A = X^T X / scatter^2 and b = X^T rest / scatter^2.
        """
        line, of = self.line, self.of_burst
        weight, v0, v1 = 1.0 / line.scatter**2, line.log10_N_std**2, line.gamma_std**2
        columns = jnp.stack([jnp.ones_like(rest), self.x, rest, rest * self.x], axis=1)
        a00, a01, b0, b1 = weight * (of.T @ columns).T
        mean = a01 / a00
        spread = weight * ((self.x - of @ mean) ** 2 @ of)
        a11 = spread + a01 * mean
        determinant = 1.0 + v0 * a00 + v1 * a11 + v0 * v1 * a00 * spread
        elements = (
            (1.0 + v1 * a11) * v0 / determinant,
            -v0 * v1 * a01 / determinant,
            (1.0 + v0 * a00) * v1 / determinant,
        )
        solved = (
            ((1.0 + v1 * a11) * b0 - v1 * a01 * b1) / determinant,
            ((1.0 + v0 * a00) * b1 - v0 * a01 * b0) / determinant,
        )
        return determinant, elements, solved
