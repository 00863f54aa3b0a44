"""Linear Gaussian model with its latents integrated out in closed form.

An object has k latents x and n observed components y:

    x ~ N(latent_loc, S S^T)        the population, S = latent_scale_tril
    y = offset + A x + noise        A = loading, noise ~ N(0, noise_covariance)

so that y ~ N(offset + A latent_loc, (A S)(A S)^T + noise_covariance). Supernovae (stretch, colour, magnitude), the
intervals of a burst and the points of a linear relation all have this form.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jax.scipy.linalg import solve_triangular
from numpyro import distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from hbm_jax.distributions.normal.small_matrices import (
    MAX_UNROLLED,
    cholesky,
    elements,
    normal_log_density,
    solve_lower,
    stacked,
    with_noise,
)


class LinearGaussian(dist.Distribution):
    """Normal distribution of data with Gaussian latents integrated out exactly.

    Parameters
    ----------
    latent_loc : array (..., k), or a tuple of k arrays (...)
        Mean of the latents. Separate components are contiguous in memory: the gradient over 740 supernovae then takes
        half as long on a CPU.
    latent_scale_tril : array (..., k, k), or a tuple of k rows of k arrays (...)
        Lower-triangular S with S S^T the covariance of the latents. Zeros on its diagonal (no intrinsic scatter) are
        allowed. Separate elements that are 0.0 cost nothing.
    noise_covariance : array (..., n, n)
        Covariance of the measurement errors, positive definite.
    loading : array (..., n, k), optional
        The matrix A, for each object or shared by all. The identity where omitted (then n = k).
    offset : array (..., n), optional
        Added to A x; zero where omitted.

    Raises
    ------
    ValueError
        If the shapes do not agree.

    Notes
    -----
    All leading dimensions broadcast to the batch shape. Constants passed as NumPy arrays remain constants of the
    compiled program. Where the covariance is not positive definite, the log density is NaN.
    The closed form for n <= 6 agrees with `numpyro.distributions.MultivariateNormal` and with SciPy to 1e-12
    relative (``tests/distributions/test_linear_gaussian.py``).

    References
    ----------
    Kelly 2007, ApJ 665, 1489, eq. 16-24; March et al. 2011, MNRAS 418, 2308, appendix.

    Examples
    --------
    >>> LinearGaussian(np.zeros(2), np.eye(2), np.eye(2)).log_prob(np.zeros(2))  # doctest: +SKIP
    """

    arg_constraints = {  # noqa: RUF012 - NumPyro's own convention
        "latent_loc": constraints.real_vector,
        "latent_scale_tril": constraints.real_matrix,
        "noise_covariance": constraints.positive_definite,
    }
    support = constraints.real_vector
    reparametrized_params = ("latent_loc", "latent_scale_tril", "offset")
    pytree_data_fields = ("_loc", "_scale", "noise_covariance", "loading", "offset")

    def __init__(
        self, latent_loc, latent_scale_tril, noise_covariance, *, loading=None, offset=None, validate_args=None
    ):
        num_observed = np.shape(noise_covariance)[-1]
        scale_shape, scale_batch = _shape(latent_scale_tril, 2)
        (num_loc,), loc_batch = _shape(latent_loc, 1)
        num_latents = scale_shape[-1]
        if num_loc != num_latents or scale_shape != (num_latents,) * 2:
            raise ValueError(
                "LinearGaussian: latent_loc must have shape (..., k) and latent_scale_tril (..., k, k); found "
                f"{(*loc_batch, num_loc)} and {(*scale_batch, *scale_shape)}."
            )
        if loading is None and num_latents != num_observed:
            raise ValueError(
                f"LinearGaussian: {num_latents} latents and {num_observed} observed components need a loading matrix "
                f"of shape (..., {num_observed}, {num_latents}); found none."
            )
        if loading is not None and np.shape(loading)[-2:] != (num_observed, num_latents):
            raise ValueError(
                f"LinearGaussian: loading must have shape (..., {num_observed}, {num_latents}); found "
                f"{np.shape(loading)}."
            )
        self._loc, self._scale = latent_loc, latent_scale_tril
        self.noise_covariance = noise_covariance
        self.loading = loading
        self.offset = offset
        batch_shape = lax.broadcast_shapes(
            loc_batch,
            scale_batch,
            np.shape(noise_covariance)[:-2],
            () if loading is None else np.shape(loading)[:-2],
            () if offset is None else np.shape(offset)[:-1],
        )
        super().__init__(batch_shape, (num_observed,), validate_args=validate_args)

    @property
    def mean(self):
        """Mean of the data, (..., n)."""
        loc = self.latent_loc if self.loading is None else jnp.einsum("...nk,...k->...n", self.loading, self.latent_loc)
        loc = loc if self.offset is None else loc + self.offset
        return jnp.broadcast_to(loc, self.batch_shape + self.event_shape)

    @property
    def latent_loc(self):
        """Mean of the latents, (..., k)."""
        return jnp.stack(jnp.broadcast_arrays(*self._loc), axis=-1) if isinstance(self._loc, tuple) else self._loc

    @property
    def latent_scale_tril(self):
        """Cholesky factor of the covariance of the latents, (..., k, k)."""
        return stacked(self._scale) if isinstance(self._scale, tuple) else self._scale

    @property
    def _observed_scale(self):
        """The matrix A S, (..., n, k)."""
        return self.latent_scale_tril if self.loading is None else jnp.matmul(self.loading, self.latent_scale_tril)

    @property
    def covariance_matrix(self):
        """Covariance of the data, (..., n, n)."""
        scale = self._observed_scale
        return jnp.matmul(scale, jnp.swapaxes(scale, -1, -2)) + self.noise_covariance

    @property
    def variance(self):
        """Variance of each component of the data, (..., n)."""
        diagonal = jnp.diagonal(self.covariance_matrix, axis1=-2, axis2=-1)
        return jnp.broadcast_to(diagonal, self.batch_shape + self.event_shape)

    def sample(self, key, sample_shape=()):
        """Draw data, ``(*sample_shape, ..., n)``."""
        key_latent, key_noise = random.split(key)
        shape = sample_shape + self.batch_shape
        scale, noise_tril = self._observed_scale, cholesky(self.noise_covariance)
        latent = random.normal(key_latent, (*shape, scale.shape[-1]), scale.dtype)
        noise = random.normal(key_noise, shape + self.event_shape, noise_tril.dtype)
        return (
            self.mean
            + jnp.einsum("...nk,...k->...n", scale, latent)
            + jnp.einsum("...nm,...m->...n", noise_tril, noise)
        )

    @validate_sample
    def log_prob(self, value):
        """Return the log density of data (..., n)."""
        if self.event_shape[0] > MAX_UNROLLED:
            residual = value - self.mean
            tril = jnp.linalg.cholesky(self.covariance_matrix)
            tril = jnp.broadcast_to(tril, residual.shape[:-1] + tril.shape[-2:])
            whitened = solve_triangular(tril, residual[..., None], lower=True)[..., 0]
            log_det = 2.0 * jnp.log(jnp.diagonal(tril, axis1=-2, axis2=-1)).sum(-1)
            chi2 = (whitened**2).sum(-1)
            return -0.5 * (chi2 + log_det + self.event_shape[0] * np.log(2.0 * np.pi))
        return normal_log_density(self.residuals(value), self.covariance_elements())

    def residuals(self, value) -> list:
        """Return the data minus their mean, as a list of components."""
        observed = range(self.event_shape[0])
        if self.loading is not None or not isinstance(self._loc, tuple):
            residual = value - self.mean
            return [residual[..., i] for i in observed]
        residual = [value[..., i] - self._loc[i] for i in observed]
        return residual if self.offset is None else [r - self.offset[..., i] for i, r in enumerate(residual)]

    def covariance_elements(self) -> list[list]:
        """Return the elements of the lower triangle of the covariance."""
        if isinstance(self._scale, tuple) and self.loading is None:
            return with_noise(elements(self.noise_covariance), self._scale)
        scale = elements(self._observed_scale)
        if self.loading is None:  # S is lower triangular, and products with 0.0 cost nothing
            scale = [[a if k <= i else 0.0 for k, a in enumerate(row)] for i, row in enumerate(scale)]
        return with_noise(elements(self.noise_covariance), scale)

    def with_offset(self, offset) -> "LinearGaussian":
        """Return the distribution with another offset of the data, (..., n) or None."""
        scale, noise = self._scale, self.noise_covariance
        return LinearGaussian(self._loc, scale, noise, loading=self.loading, offset=offset)

    def conditional(self, value):
        """Return the exact conditional distribution of the latents given data.

        Parameters
        ----------
        value : array (..., n)
            The data.

        Returns
        -------
        numpyro.distributions.MultivariateNormal
            Distribution of the latents (..., k). Its mean is S (1 + G^T G)^-1 G^T r + latent_loc and its covariance
            S (1 + G^T G)^-1 S^T, with C the noise covariance, G = C^-1/2 A S, and r = C^-1/2 (value - mean). This form
            is accurate for small noise and holds for singular S.
        """
        noise_tril = cholesky(self.noise_covariance)
        residual = value - self.mean
        scale = self._observed_scale
        scale = jnp.broadcast_to(scale, (*residual.shape, scale.shape[-1]))
        whitened_scale = solve_lower(noise_tril, scale)
        whitened_residual = solve_lower(noise_tril, residual[..., None])
        transposed = jnp.swapaxes(whitened_scale, -1, -2)
        precision = jnp.eye(scale.shape[-1]) + transposed @ whitened_scale
        # precision = U U^T with U upper triangular (the reversed Cholesky factor of the reversed matrix), so that S
        # U^-T is lower triangular and a factor of the conditional covariance.
        reversed_factor = cholesky(jnp.flip(precision, (-2, -1)))
        inverse = jnp.flip(solve_lower(reversed_factor, jnp.eye(scale.shape[-1])), (-2, -1))
        scale_tril = self.latent_scale_tril @ jnp.swapaxes(inverse, -1, -2)
        loc = self.latent_loc + (scale_tril @ (inverse @ (transposed @ whitened_residual)))[..., 0]
        # The validation of NumPyro would reject a zero on the diagonal (a latent without scatter).
        return dist.MultivariateNormal(loc, scale_tril=scale_tril, validate_args=False)


def _shape(array, num_axes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the last axes and the batch shape of an array, or of nested tuples of arrays (...)."""
    if not isinstance(array, tuple):
        shape = np.shape(array)
        return shape[len(shape) - num_axes :], shape[: len(shape) - num_axes]
    rows = array if num_axes == 2 else (array,)
    batch = lax.broadcast_shapes(*(np.shape(element) for row in rows for element in row))
    return (len(rows), len(rows[0]))[-num_axes:], batch
