"""Partial non-centring of normal latents, with weights computed from the data.

For a latent u ~ N(m, t^2) whose own data give a likelihood N(estimate, 1 / information), the conditional posterior is
normal, with mean g and standard deviation s, where 1 / s^2 = 1 / t^2 + information. `sample_whitened` samples
(u - g) / s, whose posterior is standard normal for every m and t if that likelihood is exactly normal. This is close to
the centred parametrisation where the data are informative and to the non-centred one where they are not, for each
element and each value of t. The density is exact: g and s only define the coordinate.

Without an estimate, `sample_partially_centred` uses a constant weight c between the two (0 non-centred, 1 centred):
x ~ N(c m, t0^2 (t / t0)^(2c)) with u = m + (t / t0)^(1 - c) (x - c m). The distribution of u does not depend on c and
t0; for data of information I, c = t^2 I / (1 + t^2 I). `hbm_jax.inference.centre` instead estimates c from a pilot run.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist
from numpyro.distributions.transforms import AffineTransform


class GaussianLikelihood(NamedTuple):
    """Gaussian approximation of each element's likelihood: its maximum and its information.

    Both may depend on parameters sampled before. Zero information gives the non-centred parametrisation.

    Attributes
    ----------
    estimate : (...)
        Value of the latent at the maximum.
    information : (...)
        Inverse variance of the estimate.
    """

    estimate: Any
    information: Any


def sample_whitened(
    name: str,
    location,
    scale,
    likelihood: GaussianLikelihood,
    record: bool = True,
    detected: Callable | None = None,
):
    """Sample a normal latent in units of its conditional posterior, as site ``_name``, and return its value.

    Parameters
    ----------
    name : str
        Name of the latent.
    location, scale : (...)
        Mean and standard deviation of its distribution.
    likelihood : GaussianLikelihood
        Gaussian approximation of each element's likelihood, (...).
    record : bool
        Whether the value is recorded as a deterministic site ``name``.
    detected : callable, optional
        Called with the distribution of site ``_name`` and a function that returns the latent for a value of the site.
        Returns the distribution of the site for detected objects.

    Returns
    -------
    array (...)
    """
    x_scale = jnp.sqrt(1.0 + likelihood.information * scale**2)
    error = scale / x_scale
    x_shift = error * likelihood.information * (likelihood.estimate - location)

    def latent(x):
        return location + error * (x + x_shift)

    prior: Any = dist.Normal(-x_shift, x_scale)
    if detected is not None:
        prior = detected(prior, latent)
    value = latent(numpyro.sample(f"_{name}", prior))
    return numpyro.deterministic(name, value) if record else value


class Coordinate(NamedTuple):
    """A coordinate V of a latent in which its posterior is approximately normal.

    Attributes
    ----------
    prior : Distribution or callable
        Prior of V, (n,), or a function that returns it from the latents before this one, by name.
    latent : callable
        The latent as a function of V.
    """

    prior: Any
    latent: Any


def sample_together(coordinates: Mapping[str, Coordinate], precision, slope) -> list[Any]:
    """Sample the latents of each element whitened by their joint posterior, and return their values.

    If the posterior of the coordinates V were normal, with precision P = R^T R and gradient ``slope`` at V = 0, then
    R V - R^-T slope would be standard normal. Its components are sampled, as sites ``_name``. R is lower triangular, so
    each component depends on the previous ones only. The density is exactly that of the priors.

    Parameters
    ----------
    coordinates : mapping of str to Coordinate
        Coordinates of the K latents, by the names under which the latents are recorded.
    precision : (n, K, K)
        Negative Hessian of the log posterior of each element, in the coordinates.
    slope : (n, K)
        Gradient of the log posterior at V = 0.

    Returns
    -------
    list of array (n,)
        Values of the K latents.
    """
    K = len(coordinates)
    P = [[precision[:, i, j] for j in range(K)] for i in range(K)]
    expected = [slope[:, i] for i in range(K)]
    R: list[list[Any]] = [[0.0] * K for _ in range(K)]
    for k in reversed(range(K)):  # from the last latent, whose diagonal element of R is the root of its own precision
        R[k][k] = jnp.sqrt(P[k][k])
        expected[k] = expected[k] / R[k][k]
        for i in range(k):
            R[k][i] = P[k][i] / R[k][k]
            expected[i] = expected[i] - R[k][i] * expected[k]
        for i in range(k):
            for j in range(k):
                P[i][j] = P[i][j] - R[k][i] * R[k][j]
    V: list[Any] = []
    values: dict[str, Any] = {}
    for k, (name, (prior, latent)) in enumerate(coordinates.items()):
        shift = sum((R[k][i] * V[i] for i in range(k)), -expected[k])
        prior = prior if isinstance(prior, dist.Distribution) else prior(values)
        whitened_prior = dist.TransformedDistribution(prior, AffineTransform(shift, R[k][k]))
        V.append((numpyro.sample(f"_{name}", whitened_prior, infer={"start": 0.0}) - shift) / R[k][k])
        values[name] = numpyro.deterministic(name, latent(V[k]))
    return list(values.values())


class Slopes(NamedTuple):
    """Centred sums over the points of each of J groups, which estimate the slopes of y in P predictors.

    Attributes
    ----------
    square : (J, P, P)
        Sums of products of predictors, less the variances of their errors on the diagonal.
    product : (J, P)
        Sums of products of predictors and y.
    weight : (J, P)
        Inverse variance of y about the lines; 0 where a group does not constrain the slope.
    """

    square: Any
    product: Any
    weight: Any

    def likelihood(self, k: int, slopes: Sequence[Any]) -> GaussianLikelihood:
        """Return each group's estimate of its slope in predictor k, given the other ``slopes``, P arrays of (J,)."""
        square = self.square[:, k, k]
        others = sum(self.square[:, k, i] * slope for i, slope in enumerate(slopes) if i != k)
        return GaussianLikelihood((self.product[:, k] - others) / square, square * self.weight[:, k])


def slopes_of_groups(x, y, noise, used) -> Slopes:
    """Return the sums that estimate a separate line in each group; see `Slopes`.

    Parameters
    ----------
    x : (J, M, P)
        Measured predictors.
    y : (J, M)
        Measured responses.
    noise : (J, M, P)
        Variances of the errors of x, which bias a least-squares slope towards zero.
    used : (J, M)
        False for padding.
    """
    x, y, noise, used = (np.asarray(a) for a in (x, y, noise, used))
    mask = used[..., None]
    num = np.maximum(used.sum(axis=1), 1)[:, None]

    def centred(v):
        v = np.where(mask, v, 0.0)
        return np.where(mask, v - (v.sum(axis=1) / num)[:, None], 0.0)

    dx, dy = centred(x), centred(y[..., None])[..., 0]
    square, product = np.einsum("jmk,jml->jkl", dx, dx), np.einsum("jmk,jm->jk", dx, dy)
    measured = np.diagonal(square, axis1=1, axis2=2)
    error = np.where(mask, noise, 0.0).sum(axis=1) * (num - 1) / num
    # Residual variance of y about the least-squares line in one predictor, the best predictor of each group.
    residual = (dy**2).sum(axis=1)[:, None] - product**2 / np.where(measured > 0, measured, 1.0)
    freedom = np.maximum(num - 2, 0)
    variance = np.maximum(residual.min(axis=1).sum() / np.maximum(freedom.sum(), 1), 1e-6 * (dy**2).mean() + 1e-300)
    informative = (num > 2) & (measured - error > 0.2 * measured) & (measured > 0)
    true_square = np.where(informative, measured - error, 1.0)
    square = np.where(np.eye(x.shape[-1], dtype=bool), true_square[..., None], square)
    return Slopes(square, product, np.where(informative, 1.0 / variance, 0.0))


# Weight c of the partial non-centring of each element, and the reference scale t0.
CentringWeight = tuple[np.ndarray, Any]


def centring_weight(information, scale: float, few: bool = False) -> CentringWeight:
    """Return the weight c of the partial non-centring of each element, and the reference scale t0.

    Parameters
    ----------
    information : (...)
        Inverse variance of each element's estimate from its own data.
    scale : float
        Estimated standard deviation of the population, t0.
    few : bool
        Whether c is averaged over scales up to twice ``scale``: with few elements the scale may be close to 0.
    """
    scales = scale * (np.linspace(0.05, 1.95, 20) if few else np.ones(1))
    ratio = np.maximum(information, 0.0) * scales.reshape(-1, *(1,) * np.ndim(information)) ** 2
    return np.mean(ratio / (1.0 + ratio), axis=0), float(scale)


def centring_weight_from_estimates(estimates, information) -> CentringWeight:
    """Return weights of the partial non-centring, and the reference scale, from estimates with their information.

    The posterior of the scale t of the population is computed on a grid, with a prior that is flat up to twice the
    spread of the estimates, and with the mean of the population integrated out (Gelman et al. 2013, Bayesian Data
    Analysis, equation 5.21). The weights are those for the 1 per cent quantile of t: if t may be close to 0, every
    element is non-centred and there is no funnel. The reference scale is the geometric mean of t.

    Parameters
    ----------
    estimates, information : (n,)
        Estimate of each element from its own data, and the inverse variance of that estimate.
    """
    information = np.maximum(np.asarray(information, float), 1e-12)
    variance = 1.0 / information
    largest = 2.0 * max(float(np.sqrt(np.average((estimates - np.mean(estimates)) ** 2, weights=information))), 1e-3)
    scales = largest * (np.arange(60) + 0.5) / 60
    total = scales[:, None] ** 2 + variance
    mean = (estimates / total).sum(axis=1) / (1.0 / total).sum(axis=1)
    log_posterior = -0.5 * (np.log(total) + (estimates - mean[:, None]) ** 2 / total).sum(axis=1)
    log_posterior -= 0.5 * np.log((1.0 / total).sum(axis=1))  # of the integral over the mean
    weights = np.exp(log_posterior - log_posterior.max())
    weights /= weights.sum()
    ratio = scales[np.searchsorted(np.cumsum(weights), 0.01)] ** 2 * information
    return ratio / (1.0 + ratio), float(np.exp(weights @ np.log(scales)))


def centring_weight_of_informative(estimates, information, informative) -> CentringWeight:
    """Return the weights of `centring_weight_from_estimates` for ``informative`` elements, (n,) bool, and 0 for others.

    With fewer than three informative elements, weights are for a population of standard deviation 0.3.
    """
    if informative.sum() < 3:
        return centring_weight(np.where(informative, information, 0.0), 0.3, few=True)
    chosen, reference = centring_weight_from_estimates(estimates[informative], information[informative])
    weights = np.zeros(len(information))
    weights[informative] = chosen
    return weights, reference


def sample_partially_centred(
    name: str, location, scale, chosen: CentringWeight, shift: Any = 0.0, detected: Callable | None = None
):
    """Sample a partially non-centred normal latent, as site ``_name``, and record and return its value as ``name``.

    Parameters
    ----------
    name : str
        Name of the latent.
    location, scale : (...)
        Mean and standard deviation of its distribution.
    chosen : CentringWeight
        Weight and reference scale, from `centring_weight`.
    shift : (...)
        Part of the location that is not scaled by the weight, such as an estimate from the data.
    detected : callable, optional
        As in `sample_whitened`.
    """
    c, reference = chosen
    ratio = scale / reference
    location = location - shift

    def latent(x):
        return location + ratio ** (1.0 - c) * (x - c * location) + shift

    prior: Any = dist.Normal(c * location, reference * ratio**c)
    x = numpyro.sample(f"_{name}", prior if detected is None else detected(prior, latent))
    return numpyro.deterministic(name, latent(x))
