"""Selection functions: the detection probability of an observed vector, and the detected fraction."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jax.scipy.special import log_ndtr, logsumexp, ndtr
from jax.tree_util import register_static

from hbm_jax.distributions.half_line import HalfLine, Quadrant
from hbm_jax.distributions.mills_ratio import log_mean_probit, log_mean_probit_of_two, mills_ratio
from hbm_jax.distributions.normal.bivariate import log_bivariate_ndtr
from hbm_jax.distributions.normal.small_matrices import normal_log_density

ENOUGH = 4.0  # effective injections for each object
# Trapezoidal rule over a normal distribution: range on each side in standard deviations, and number of nodes. The step
# is 0.32 standard deviations.
_REACH, _NODES = 7.5, 48
MAX_TRIES = 20_000  # of the rejection sampling of a detected object


class ProbitSelection(NamedTuple):
    """Detection probability Phi((limit - slope . y) / width) of an observed vector y, or a step at the limit.

    Attributes
    ----------
    limit, width : array (...)
        Value of slope . y at which half of the objects are detected, and width of the transition (positive). Without a
        width, objects with slope . y below or at the limit are detected, and no others.
    slope : array (..., n)
        Direction in y.

    Notes
    -----
    The detected fraction of objects with y ~ N(m, C) is exactly
    Phi((limit - slope . m) / sqrt(width^2 + slope . C slope)).

    Examples
    --------
    >>> selection = ProbitSelection(24.0, 0.2, jnp.array([0.0, 0.0, 1.0]))
    >>> float(selection.probability(jnp.array([0.0, 0.0, 24.0])))
    0.5
    """

    limit: Any
    width: Any | None
    slope: Any

    def margin(self, value):
        """Return the limit minus slope . y, (...), of observed vectors (..., n)."""
        return self.limit - jnp.sum(self.slope * value, axis=-1)

    def log_probability(self, value):
        """Return the log probability that an object observed at ``value`` (..., n) is detected."""
        margin = self.margin(value)
        return jnp.where(margin >= 0.0, 0.0, -jnp.inf) if self.width is None else log_ndtr(margin / self.width)

    def probability(self, value):
        """Return the probability that an object observed at ``value`` (..., n) is detected."""
        margin = self.margin(value)
        return jnp.where(margin >= 0.0, 1.0, 0.0) if self.width is None else ndtr(margin / self.width)

    @property
    def variance(self):
        """Squared width of the transition."""
        return 0.0 if self.width is None else self.width**2


class TabulatedSelection(NamedTuple):
    """Detection probability that is piecewise linear in slope . y, and constant beyond its table.

    Attributes
    ----------
    at, probability_at : array (K,)
        Increasing values of slope . y, and the probability at each.
    slope : array (n,)
        Direction in y.

    Notes
    -----
    A piecewise linear function is a constant plus hinges c_k max(v - t_k, 0) or, with the same c_k, max(t_k - v, 0).
    The mean of a hinge over a normal v is s (phi(z) + z Phi(z)) with z = (mean - t_k) / s or its negative. The form
    that is small on the side of the mean is used, and the logarithm of a hinge by the Mills ratio, so that fractions
    far from the table keep their relative accuracy (``tests/models/test_efficiency.py``).

    Examples
    --------
    >>> selection = TabulatedSelection(np.array([0.0, 2.0]), np.array([0.0, 1.0]), np.array([1.0, 0.0]))
    >>> float(selection.probability(jnp.array([0.5, 7.0])))
    0.25
    """

    at: Any
    probability_at: Any
    slope: Any

    def probability(self, value):
        """Return the probability that an object observed at ``value`` (..., n) is detected."""
        return jnp.interp(jnp.sum(self.slope * value, axis=-1), self.at, self.probability_at)

    def log_probability(self, value):
        """Return the log probability that an object observed at ``value`` (..., n) is detected."""
        probability = self.probability(value)
        positive = probability > 0.0
        return jnp.where(positive, jnp.log(jnp.where(positive, probability, 1.0)), -jnp.inf)

    def log_detected(self, mean: Sequence[Any], covariance: Sequence[Sequence]):
        """Return the log mean probability over normal observed vectors, with arrays as in `log_detected_normal`."""
        axes = range(len(mean))
        centre = sum(self.slope[i] * mean[i] for i in axes)
        pairs = [(i, j) for i in axes for j in axes]
        std = jnp.sqrt(sum(self.slope[i] * self.slope[j] * covariance[max(i, j)][min(i, j)] for i, j in pairs))
        # The probability of x is a constant plus the sum of hinges, coefficient * max(side * (x - knot), 0): one at
        # each knot, where the slope changes by the coefficient.
        slopes = np.diff(self.probability_at) / np.diff(self.at)
        changes = np.diff(np.concatenate([[0.0], slopes, [0.0]]))
        nonzero = changes != 0.0 if changes.any() else np.ones(len(changes), bool)
        knots, coefficients = np.asarray(self.at)[nonzero], changes[nonzero]
        # The constant and the side of the hinges are those of the end of the table that is nearer to the mean.
        below = centre < 0.5 * (self.at[0] + self.at[-1])
        side = jnp.where(below, 1.0, -1.0)[..., None]
        constant = jnp.where(below, self.probability_at[0], self.probability_at[-1])
        hinges = _log_hinge(side * (centre[..., None] - knots) / std[..., None]) + jnp.log(std)[..., None]
        # The largest of the logarithms is subtracted before their exponentials are summed. The sum does not depend on
        # it. Its derivative is NaN where XLA computes the hinges twice and rounds them differently.
        largest = lax.stop_gradient(jnp.max(hinges, axis=-1))
        largest = jnp.where(constant > 0.0, jnp.maximum(largest, 0.0), largest)
        total = constant * jnp.exp(-jnp.where(constant > 0.0, largest, 0.0))
        return largest + jnp.log(total + jnp.sum(coefficients * jnp.exp(hinges - largest[..., None]), axis=-1))


def _log_hinge(z):
    """Return log(phi(z) + z Phi(z)), the log of the mean of max(v, 0) over v ~ N(z, 1).

    For z < 0 it is log(phi(z) D(-z)), with D of `hbm_jax.distributions.mills_ratio`, in which nothing cancels.
    """
    negative, size = z < 0.0, jnp.abs(z)
    t = 4.0 / (4.0 + size)
    density = -0.5 * z * z - 0.5 * np.log(2.0 * np.pi)
    positive = jnp.where(negative, 0.0, z)
    inside = jnp.exp(-0.5 * positive**2) / np.sqrt(2.0 * np.pi) + positive * ndtr(positive)
    return jnp.where(negative, density + jnp.log(t * t * mills_ratio(t)[1]), jnp.log(inside))


@register_static
@dataclass(frozen=True)
class FunctionSelection:
    """Detection probability that is a function of two coordinates of the observed vector.

    Attributes
    ----------
    function : callable
        Function of arrays x and y of a common shape that returns probabilities.
    coordinates : (int, int)
        Indices of x and y in the observed vector, in increasing order.
    """

    function: Callable
    coordinates: tuple[int, int] = (0, 1)

    def probability(self, value):
        """Return the probability that an object observed at ``value`` (..., n) is detected."""
        first, second = self.coordinates
        return self.function(value[..., first], value[..., second])

    def log_probability(self, value):
        """Return the log probability that an object observed at ``value`` (..., n) is detected."""
        return jnp.log(self.probability(value))

    def probability_given_first(self, first, mean, std):
        """Return the mean probability (...) at values of the first coordinate (...), over a normal second one."""
        nodes = np.linspace(-_REACH, _REACH, _NODES)
        weights = np.exp(-0.5 * nodes**2)
        values = self.function(*jnp.broadcast_arrays(jnp.asarray(first)[..., None], mean + std * nodes))
        return jnp.sum(weights / np.sum(weights) * values, axis=-1)

    def log_detected(self, mean: Sequence[Any], covariance: Sequence[Sequence]):
        """Return the log mean probability over normal observed vectors, with arrays as in `log_detected_normal`.

        The integral is a trapezoidal rule in both coordinates, whitened.
        """
        first, second = self.coordinates
        nodes = np.linspace(-_REACH, _REACH, _NODES)
        weights = np.exp(-0.5 * nodes**2)
        weights = np.outer(weights, weights) / np.sum(weights) ** 2
        variance_x, covariance_xy = covariance[first][first], covariance[second][first]
        factor_xx = jnp.sqrt(variance_x)  # elements of the Cholesky factor
        factor_yx = covariance_xy / factor_xx
        factor_yy = jnp.sqrt(covariance[second][second] - factor_yx**2)
        u, v = nodes[:, None], nodes[None, :]
        x, y = (a[..., None, None] for a in jnp.broadcast_arrays(mean[first], mean[second]))
        factor_xx, factor_yx, factor_yy = (a[..., None, None] for a in (factor_xx, factor_yx, factor_yy))
        x, y = jnp.broadcast_arrays(x + factor_xx * u, y + factor_yx * u + factor_yy * v)
        return jnp.log(jnp.sum(weights * self.function(x, y), axis=(-2, -1)))


class BothSelections(NamedTuple):
    """Two selections that are independent of each other given the observed vector: objects pass both.

    Attributes
    ----------
    first, second : ProbitSelection
        The selections, with widths.
    """

    first: ProbitSelection
    second: ProbitSelection

    def log_probability(self, value):
        """Return the log probability that an object observed at ``value`` (..., n) passes both."""
        return self.first.log_probability(value) + self.second.log_probability(value)

    def probability(self, value):
        """Return the probability that an object observed at ``value`` (..., n) passes both."""
        return self.first.probability(value) * self.second.probability(value)

    def log_detected(self, mean: Sequence[Any], covariance: Sequence[Sequence]):
        """Return the log mean probability over normal observed vectors, with arrays as in `log_detected_normal`."""
        return log_detected_normal(self, mean, covariance)


class FoundInjections(NamedTuple):
    """Injections that were found, with weights that make them a sample of a population's detected objects.

    Attributes
    ----------
    values : array (I, n)
        True values of each.
    log_weights : array (..., I)
        Log of the density of the population at the values over the density from which they were drawn. Populations of
        a batch (...) share the injections.
    num : float
        Number of injections, found or not.
    num_objects : float or array (...)
        Number of detected objects of each population, whose density is divided by the detected fraction.
    num_intervals : array (...), optional
        Number of intervals, where only injections with as many have weights, and ``num`` (...) is their number.

    Notes
    -----
    The detected fraction of a population is the sum of the weights over the number of injections (Tiwari 2018, CQG 35,
    145009). The log likelihood of N detected objects has the sum of its logarithm, with a Monte Carlo variance V; the
    effective number of injections is N^2 / V, for a single population the squared mean of the weights over the variance
    of that mean. With fewer than `ENOUGH` for each object the likelihood is not reliable (Farr 2019, RNAAS 3, 66).
    Where a population is away from all injections the estimate is far too small, and the likelihood far too large. The
    log of the fraction is therefore multiplied by a weight, which falls smoothly from 1 at `ENOUGH` effective
    injections for each object to 0 at one, so that these populations have the likelihood without selection. In a batch
    both numbers count for a population, that of the whole batch and its own.
    """

    values: Any
    log_weights: Any
    num: Any
    num_objects: Any = 0.0
    num_intervals: Any = None

    @property
    def log_normalisation(self):
        """Log of the detected fraction, times a weight that is 1 where there are enough injections, (...)."""
        of_all = self.effective_number / jnp.maximum(jnp.sum(self._num_of_populations), 1e-300)
        own = self._own_effective_number / jnp.maximum(self._num_of_populations, 1e-300)
        step = jnp.clip(jnp.log(jnp.minimum(of_all, own)) / np.log(ENOUGH), 0.0, 1.0)
        weight = step**3 * (10.0 - 15.0 * step + 6.0 * step**2)
        return weight * (logsumexp(self.log_weights, axis=-1) - jnp.log(self.num))

    @property
    def effective_number(self):
        """Squared number of objects over the Monte Carlo variance of the log likelihood."""
        if jnp.ndim(self.log_weights) == 1:
            return self._own_effective_number
        num = self._num_of_populations
        shares = jnp.exp(self.log_weights - logsumexp(self.log_weights, axis=-1, keepdims=True))
        # Change of the log likelihood by each injection, per object.
        shares = jnp.tensordot(num, shares, num.ndim) / jnp.maximum(jnp.sum(num), 1.0)
        return 1.0 / jnp.maximum(jnp.sum(shares**2) - self._inverse_num(num), 1e-12)

    def _inverse_num(self, num_objects):
        """Return the mean of 1 / num over pairs of objects that share injections, and 0 over the others."""
        if self.num_intervals is None:
            return 1.0 / self.num
        same = jnp.equal(self.num_intervals[:, None], self.num_intervals)
        share = num_objects / jnp.maximum(jnp.sum(num_objects), 1.0)
        return jnp.sum(share * (same @ share) / self.num)

    @property
    def smallest_number(self):
        """Smallest effective number of the populations of a batch that have objects, each on its own."""
        return jnp.min(jnp.where(self._num_of_populations > 0, self._own_effective_number, jnp.inf))

    @property
    def _num_of_populations(self):
        """Number of objects of each population, (...)."""
        return jnp.broadcast_to(self.num_objects, jnp.shape(self.log_weights)[:-1])

    @property
    def _own_effective_number(self):
        """Squared detected fraction of each population over the variance of its estimate, (...)."""
        # Variance over squared mean: sum of w^2 over the squared sum of w, less 1 / num for the injections not found.
        sums = [logsumexp(power * self.log_weights, axis=-1) for power in (1.0, 2.0)]
        return 1.0 / jnp.maximum(jnp.exp(sums[1] - 2.0 * sums[0]) - 1.0 / self.num, 1e-12)

    def sample(self, key, shape: tuple[int, ...]):
        """Draw true values of detected objects, shape + (n,); the last axes of the shape are those of the batch."""
        largest = jnp.max(self.log_weights, axis=-1, keepdims=True)
        cumulative = jnp.cumsum(jnp.exp(self.log_weights - largest), axis=-1)
        uniform = random.uniform(key, shape)
        search = jnp.vectorize(jnp.searchsorted, signature="(i),()->()")
        return jnp.asarray(self.values)[search(cumulative, uniform * cumulative[..., -1])]


class InjectedSelection(NamedTuple):
    """Injections, as the selection of objects with normal populations of true values.

    Attributes
    ----------
    values : array (I, n)
        True values of the injections that were found.
    log_density : array (I,)
        Log density of the distribution from which they were drawn.
    num : float
        Number of injections, found or not.
    objects : array (...)
        1 for every object of a batch, 0 for padding.
    """

    values: Any
    log_density: Any
    num: Any
    objects: Any = 1.0

    def found(self, mean: Sequence[Any], covariance: Sequence[Sequence], log_weights: Any = 0.0) -> FoundInjections:
        """Return the found injections with weights in the population of each object.

        Arrays are as in `log_detected_normal`, of true values, and the log weights of the C components (..., C).
        """
        # Without the barrier XLA takes seconds to evaluate functions of the injections when it compiles.
        values, log_drawn = lax.optimization_barrier((jnp.asarray(self.values), jnp.asarray(self.log_density)))
        residual = [values[:, i] - jnp.asarray(a)[..., None] for i, a in enumerate(mean)]
        rows = [[jnp.asarray(entry)[..., None] for entry in row] for row in covariance]
        log_density = jnp.asarray(log_weights)[..., None] + normal_log_density(residual, rows)
        log_weights = logsumexp(log_density, axis=-2) - log_drawn
        return FoundInjections(values, log_weights, self.num, jnp.asarray(self.objects) * 1.0)


def log_detected_normal(
    selections: Sequence[Any],
    mean: Sequence[Any],
    covariance: Sequence[Sequence],
    half_line: HalfLine | None = None,
):
    """Return the log probability that an object with a normally distributed observed vector passes every selection.

    Parameters
    ----------
    selections : sequence of one or two ProbitSelection
        Selections, independent of each other given the observed vector, with parameters (...) and slopes (..., n). A
        single one may be a `TabulatedSelection`, a `FunctionSelection` or `BothSelections`.
    mean : sequence of n arrays (..., C)
        Elements of the mean, of C components.
    covariance : rows of arrays (..., C)
        Elements of the lower triangle of the covariance.
    half_line : HalfLine, optional
        Exponential latent that is added along its direction, n arrays (..., C); expects a single selection.

    Returns
    -------
    array (..., C)
        In closed form: a normal distribution function, of one or two dimensions, or its mean over the latent; of a
        function, by a fixed quadrature.
    """
    if isinstance(selections[0], TabulatedSelection | FunctionSelection | BothSelections):
        return selections[0].log_detected(mean, covariance)
    axes = range(len(mean))
    slopes = [[jnp.asarray(selection.slope)[..., i, None] for i in axes] for selection in selections]

    def product(a, b):
        return sum(a[i] * b[j] * covariance[max(i, j)][min(i, j)] for i in axes for j in axes)

    if half_line is not None:
        (part,), (slope,) = selections, slopes
        margin = jnp.asarray(part.limit)[..., None] - sum(slope[i] * mean[i] for i in axes)
        variance = product(slope, slope) + jnp.asarray(part.variance)[..., None]
        return log_detected_fraction(margin, variance, half_line, sum(slope[i] * half_line.direction[i] for i in axes))
    scale, standardised = [], []
    for part, slope in zip(selections, slopes, strict=True):
        scale.append(jnp.sqrt(product(slope, slope) + jnp.asarray(part.variance)[..., None]))
        margin = jnp.asarray(part.limit)[..., None] - sum(slope[i] * mean[i] for i in axes)
        standardised.append(margin / scale[-1])
    if len(selections) == 1:
        return log_ndtr(standardised[0])
    return log_bivariate_ndtr(*standardised, product(*slopes) / (scale[0] * scale[1]))


def draw_detected(key, shape: tuple[int, ...], num: int, draw: Callable, probability: Callable):
    """Draw observed vectors of detected objects by rejection, independently of the normalisation of their density.

    Parameters
    ----------
    key : jax.Array
        Random key.
    shape : tuple
        Shape of the objects.
    num : int
        Length n of the observed vectors.
    draw : callable
        Function of a key that returns observed vectors of all objects, detected or not, shape + (n,).
    probability : callable
        Function of observed vectors that returns the probability of detection of each.

    Returns
    -------
    array, shape + (n,)
        NaN for an object that is not detected in ``MAX_TRIES`` tries.
    """

    def some_undetected(state):
        _, tries, _, detected = state
        return (tries < MAX_TRIES) & ~jnp.all(detected)

    def try_again(state):
        key, tries, value, detected = state
        key, key_draw, key_uniform = random.split(key, 3)
        drawn = draw(key_draw)
        new = ~detected & (random.uniform(key_uniform, shape) < probability(drawn))
        return key, tries + 1, jnp.where(new[..., None], drawn, value), detected | new

    start = jnp.full((*shape, num), jnp.nan)
    return lax.while_loop(some_undetected, try_again, (key, 0, start, jnp.zeros(shape, bool)))[2]


def log_detected_fraction(margin, variance, half_line: HalfLine | Quadrant | None = None, latent_slope=None):
    """Return the log of the detected fraction: the mean of Phi((margin - latent_slope . t - e) / width) over e and t.

    The noise e is normal, and t is a positive latent, or two.

    Parameters
    ----------
    margin : array (...)
        Limit minus the mean of slope . y.
    variance : array (...)
        Variance of e plus the squared width.
    half_line : HalfLine or Quadrant, optional
        Distribution of the positive latents, without which t = 0. The mean over one or two exponential latents is in
        closed form (`log_mean_probit`, `log_mean_probit_of_two`). Over a half or truncated normal t it is a Gauss
        quadrature with an error below 1e-8 where t changes slope . y by less than a few times the square root of the
        variance (``tests/distributions/test_observed_mixture.py``); over two of them, one in each direction.
    latent_slope : array (...), or tuple of arrays
        Change of slope . y per unit of each latent.
    """
    if half_line is None:
        return log_ndtr(margin / jnp.sqrt(variance))
    slopes = latent_slope if isinstance(latent_slope, tuple) else (latent_slope,)
    latents = list(zip(half_line.parts, slopes, strict=True))
    # The first latent with a precision, over which the mean is a quadrature.
    numerical = next((n for n, (part, _) in enumerate(latents) if part.precision is not None), None)
    scale = jnp.sqrt(variance)
    if numerical is None:
        shifts = [slope / (part.rate * scale) for part, slope in latents]
        return (log_mean_probit if len(shifts) == 1 else log_mean_probit_of_two)(margin / scale, *shifts)
    part, slope = latents.pop(numerical)
    nodes, log_weights = part.nodes()
    margins = margin[..., None] - slope[..., None] * nodes
    other, other_slope = None, None
    for part, slope in latents:
        other, other_slope = part.map(lambda _: None, lambda scalar: jnp.asarray(scalar)[..., None]), slope[..., None]
    log_fraction = log_detected_fraction(margins, jnp.asarray(variance)[..., None], other, other_slope)
    return logsumexp(log_weights + log_fraction, axis=-1)
