"""Normal latents sampled by what their own data say of them, where a model can tell from the data alone.

An element u ~ N(m, t^2), of which its own data say N(estimate, 1 / information), is expected at g with an error s,
where 1 / s^2 = 1 / t^2 + information. Sampled is (u - g) / s: were the data's word exactly normal, it would be standard
normal whatever m and t are. That is the centred form where the data say much, and the non-centred where they say
little, for each element and for each value of t. The density is not approximated: g and s only choose coordinates.

Where there is no estimate, there is the fixed form between the two: x ~ N(c m, t0^2 (t / t0)^(2c)) with
u = m + (t / t0)^(1 - c) (x - c m), whatever c and t0; data of information I ask for c = t^2 I / (1 + t^2 I). See
`hbm_jax.inference.centre`, which finds c by a pilot run.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist
from numpyro.distributions.transforms import AffineTransform


class Own(NamedTuple):
    """What the data of each element say of it, were it alone: a value and the inverse square of its error.

    Both may depend on parameters sampled before; no information, 0, is the non-centred form.
    """

    estimate: Any
    information: Any


def sample_whitened(name: str, location, scale, own: Own, record: bool = True):
    """Sample a normal latent by its distance from where it is expected, as site ``_name``; its value.

    Parameters
    ----------
    name : str
        Of the latent.
    location, scale : (...)
        Of its distribution.
    own : Own
        Of each element, (...).
    record : bool
        Whether the value is recorded as ``name``.
    """
    wide = jnp.sqrt(1.0 + own.information * scale**2)
    error = scale / wide
    pull = error * own.information * (own.estimate - location)
    x = numpyro.sample(f"_{name}", dist.Normal(-pull, wide))
    value = location + error * (x + pull)
    return numpyro.deterministic(name, value) if record else value


class Coordinate(NamedTuple):
    """A coordinate V of a latent in which its posterior is about normal.

    Attributes
    ----------
    prior : Distribution
        Of V, (n,).
    latent : callable
        The latent's value at V.
    """

    prior: Any
    latent: Any


def sample_together(coordinates: Mapping[str, Coordinate], precision, slope) -> list[Any]:
    """Sample latents of each element by what its data and the population say of all together; their values.

    Were the posterior of the coordinates V normal, as its precision P and slope at 0 say, R V less R^-T slope were
    standard normal, with P = R^T R. These numbers are sampled, as sites ``_name``; R is lower
    triangular, so that each of them needs the ones before it only. The density is that of the priors, exactly.

    Parameters
    ----------
    coordinates : mapping of str to Coordinate
        Of the K latents, which are recorded by these names.
    precision : (n, K, K)
        Minus the second derivatives of the log posterior of an element, in the coordinates.
    slope : (n, K)
        The first derivatives.
    """
    K = len(coordinates)
    P = [[precision[:, i, j] for j in range(K)] for i in range(K)]
    expected = [slope[:, i] for i in range(K)]
    R: list[list[Any]] = [[0.0] * K for _ in range(K)]
    for k in reversed(range(K)):  # the last latent, given all others, has its own curvature
        R[k][k] = jnp.sqrt(P[k][k])
        expected[k] = expected[k] / R[k][k]
        for i in range(k):
            R[k][i] = P[k][i] / R[k][k]
            expected[i] = expected[i] - R[k][i] * expected[k]
        for i in range(k):
            for j in range(k):
                P[i][j] = P[i][j] - R[k][i] * R[k][j]
    V: list[Any] = []
    values = []
    for k, (name, (prior, latent)) in enumerate(coordinates.items()):
        shift = sum((R[k][i] * V[i] for i in range(k)), -expected[k])
        moved = dist.TransformedDistribution(prior, AffineTransform(shift, R[k][k]))
        V.append((numpyro.sample(f"_{name}", moved, infer={"start": 0.0}) - shift) / R[k][k])
        values.append(numpyro.deterministic(name, latent(V[k])))
    return values


class Slopes(NamedTuple):
    """Sums over the points of each group about their means: what they say of the slopes of y in P predictors.

    Attributes
    ----------
    square : (J, P, P)
        Of products of predictors, those with themselves less the variances of their errors.
    product : (J, P)
        Of predictors with y.
    weight : (J, P)
        Inverse variance of y about the lines; 0 where a group says nothing of a slope.
    """

    square: Any
    product: Any
    weight: Any

    def own(self, k: int, slopes: Sequence[Any]) -> Own:
        """Return what each group says of its slope in predictor k, the others having those ``slopes``, P of (J,)."""
        known = self.square[:, k, k]
        others = sum(self.square[:, k, i] * slope for i, slope in enumerate(slopes) if i != k)
        return Own((self.product[:, k] - others) / known, known * self.weight[:, k])


def slopes_of_groups(x, y, noise, used) -> Slopes:
    """Return sums over points, of which each group has its own line; see `Slopes`.

    Of numbers the sums are numbers, by NumPy; of anything that is traced they are traced.

    Parameters
    ----------
    x : (J, M, P)
        Measured predictors.
    y : (J, M)
        Measured responses.
    noise : (J, M, P)
        Variances of the errors of x, which flatten a line of least squares.
    used : (J, M)
        False for padding.
    """
    xp: Any = jnp if any(isinstance(a, jax.core.Tracer) for a in (x, y, noise, used)) else np
    x, y, noise = (xp.asarray(a) for a in (x, y, noise))
    some = used[..., None]
    num = xp.maximum(used.sum(axis=1), 1)[:, None]

    def away(v):
        v = xp.where(some, v, 0.0)
        return xp.where(some, v - (v.sum(axis=1) / num)[:, None], 0.0)

    dx, dy = away(x), away(y[..., None])[..., 0]
    square, product = xp.einsum("jmk,jml->jkl", dx, dx), xp.einsum("jmk,jm->jk", dx, dy)
    own = xp.diagonal(square, axis1=1, axis2=2)
    error = xp.where(some, noise, 0.0).sum(axis=1) * (num - 1) / num
    # About the line of least squares in one predictor, the best for each group.
    left = (dy**2).sum(axis=1)[:, None] - product**2 / xp.where(own > 0, own, 1.0)
    free = xp.maximum(num - 2, 0)
    variance = xp.maximum(left.min(axis=1).sum() / xp.maximum(free.sum(), 1), 1e-6 * (dy**2).mean() + 1e-300)
    tells = (num > 2) & (own - error > 0.2 * own) & (own > 0)
    true = xp.where(tells, own - error, 1.0)
    square = xp.where(np.eye(x.shape[-1], dtype=bool), true[..., None], square)
    return Slopes(square, product, xp.where(tells, 1.0 / variance, 0.0))


Form = tuple[np.ndarray, Any]  # centredness of each element, and the scale it refers to


def form(information, scale: float, few: bool = False) -> Form:
    """Centredness of each element, and the scale t0 it refers to.

    Parameters
    ----------
    information : (...)
        Of the data about each element: the inverse square of its error.
    scale : float
        Standard deviation of the population, as well as it is known.
    few : bool
        Of few elements the scale may be next to 0: take the mean centredness over scales up to twice that.
    """
    scales = scale * (np.linspace(0.05, 1.95, 20) if few else np.ones(1))
    known = np.maximum(information, 0.0) * scales.reshape(-1, *(1,) * np.ndim(information)) ** 2
    return np.mean(known / (1.0 + known), axis=0), float(scale)


def form_of(estimates, information) -> Form:
    """Centredness by estimates of the elements with their information, (n,) both, and what they say of the scale.

    That of the smallest scale t the estimates leave, their 1 per cent quantile under a prior that is flat up to twice
    their spread: where t may be next to 0, nothing is centred and there is no funnel.
    """
    information = np.maximum(np.asarray(information, float), 1e-12)
    variance = 1.0 / information
    largest = 2.0 * max(float(np.sqrt(np.average((estimates - np.mean(estimates)) ** 2, weights=information))), 1e-3)
    scales = largest * (np.arange(60) + 0.5) / 60
    total = scales[:, None] ** 2 + variance
    mean = (estimates / total).sum(axis=1) / (1.0 / total).sum(axis=1)
    log = -0.5 * (np.log(total) + (estimates - mean[:, None]) ** 2 / total).sum(axis=1)
    log -= 0.5 * np.log((1.0 / total).sum(axis=1))
    weights = np.exp(log - log.max())
    weights /= weights.sum()
    known = scales[np.searchsorted(np.cumsum(weights), 0.01)] ** 2 * information
    return known / (1.0 + known), float(np.exp(weights @ np.log(scales)))


def form_of_some(estimates, information, some) -> Form:
    """Centredness where only the data of ``some`` elements, (n,) bool, tell something; the others are not centred."""
    if some.sum() < 3:
        return form(np.where(some, information, 0.0), 0.3, few=True)
    chosen, reference = form_of(estimates[some], information[some])
    every = np.zeros(len(information))
    every[some] = chosen
    return every, reference


def sample_centred(name: str, location, scale, chosen: Form, shift: Any = 0.0):
    """Sample a normal latent in that form, as site ``_name``; its value, recorded as ``name``.

    Parameters
    ----------
    name : str
        Of the latent.
    location, scale : (...)
        Of its distribution.
    chosen : Form
        Of `form`.
    shift : (...)
        A part of the location that is not to depend on the centredness, such as the data's own estimate.
    """
    c, reference = chosen
    ratio = scale / reference
    location = location - shift
    x = numpyro.sample(f"_{name}", dist.Normal(c * location, reference * ratio**c))
    return numpyro.deterministic(name, location + ratio ** (1.0 - c) * (x - c * location) + shift)
