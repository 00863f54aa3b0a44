"""Fall of a fit statistic by a line or an edge at each of many energies, for starting points of searches.

The likelihood has a maximum at every fluctuation of the counts in which a line fits, and its gradient elsewhere does
not lead to the highest of these. All other parameters are fixed here. The expected counts are linear in the strength of
a weak feature, so that one fold at each energy serves all strengths.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SPREADS = 4.0  # half range of the energies, in standard deviations of the prior of ln E
NUM_ENERGIES = 400, 4000  # smallest and largest number: the first covers the default prior in steps of 1.4 %
PER_GROUP = 0.5  # energies per group of channels; channels are a third of the resolution or narrower
STEP, NUM_STRENGTHS = 2.5, 16  # ratio of adjacent strengths; a strength wrong by 1.6 keeps 64 % of the largest fall
LARGEST = 10.0  # largest counts of a feature, relative to those of the spectrum
WEAK = 0.1  # optical depth at which the fall by an absorbing feature is linear
FAINT = -5.0  # log10 of the strength of an emission line, with an arbitrary effect
ABSENT = -60.0
BATCH = 16  # energies evaluated together
APART = 0.05  # smallest difference in ln E of two peaks
NUM_PEAKS = 2  # energies of the first line or edge at which searches start
EDGE = 1e-6  # smallest distance of a value from the bounds of its prior, relative to their difference
TINY = 1e-10  # smallest distance from the only bound


class Feature(NamedTuple):
    """Names of the parameters of a line or edge.

    Attributes
    ----------
    energy, strength : str
        The energy [keV], and the optical depth or amplitude; a name with ``log10_`` is that of a logarithm.
    width : str or None
        The standard deviation [keV]; None if it is fixed or does not exist.
    """

    energy: str
    strength: str
    width: str | None

    @property
    def is_logarithmic(self) -> bool:
        """True if the strength is a logarithm."""
        return "log10_" in self.strength

    @property
    def absent(self) -> float:
        """Strength without any effect."""
        return ABSENT if self.is_logarithmic else 0.0


class Peak(NamedTuple):
    """Parameters of a feature at a maximum of the fall of the statistic, and the fall; (N,) or scalars."""

    energy: Any
    width: Any
    strength: Any
    fall: Any


def feature_starts(
    features: Sequence[Feature],
    draws: Mapping[str, Any],
    bounds: Mapping[str, tuple[float, float]],
    own: Sequence[str],
    evaluated: Callable,
    bound: Any,
    parameters: Mapping[str, Any],
    refit: Callable,
) -> list[dict[str, Any]]:
    """Return starting points with lines and edges where they lower the statistic most.

    The energy of each feature is scanned over its prior, with the continuum that fits best without features. Each
    further feature is scanned after the previous ones have been placed.

    Parameters
    ----------
    features : sequence of Feature
        Lines and edges with free energy and strength.
    draws : mapping of str to (num,) array
        Draws from the priors of all parameters.
    bounds : mapping of str to (float, float)
        Bounds of the priors of the features' parameters.
    own : sequence of str
        Parameters with one value for each spectrum.
    evaluated : callable
        Maps bound data and values of the free parameters to those of all parameters, and calibration factors.
    bound : FoldedSpectra
        Bound data.
    parameters : mapping of str to array
        Values of the free parameters at the end of a search.
    refit : callable
        Maps values, and names of parameters that are held constant, to the values of highest likelihood.
    """

    def allowed(name, value):
        """Return a value with the shape of the parameter, inside the support of its prior."""
        low, high = bounds[name]
        margin = EDGE * (high - low) if np.isfinite(high - low) else TINY
        return np.clip(np.broadcast_to(value, np.shape(parameters[name])), low + margin, high - margin)

    absent = {feature.strength: allowed(feature.strength, feature.absent) for feature in features}
    constant = {name for feature in features for name in feature if name is not None}
    continuum = refit({**parameters, **absent}, constant)
    num_groups, starts = np.shape(bound.statistic.counts)[1], []
    for rank in range(NUM_PEAKS):
        values = dict(continuum)
        for number, feature in enumerate(features):
            energies = energies_of(draws[feature.energy], *bounds[feature.energy], num_groups)
            untied = feature.energy in own, feature.strength in own
            completed, factors = evaluated(bound, values)
            found = peaks(bound, completed, factors, feature, energies, num=rank + 1, untied=untied)
            peak = found[min(rank if number == 0 else 0, len(found) - 1)]
            for name, value in zip((feature.energy, feature.width, feature.strength), peak[:3], strict=True):
                if name is not None:
                    values[name] = allowed(name, value)
        starts.append(values)
    return starts


def energies_of(draws: Any, lower: float, upper: float, num_groups: int) -> np.ndarray:
    """Return energies [keV] at which a feature is tried, equally spaced in ln E.

    Parameters
    ----------
    draws : (num,)
        Draws of the prior of the energy [keV].
    lower, upper : float
        Bounds of the prior.
    num_groups : int
        Number of groups of channels of a spectrum.
    """
    logarithms = np.log(np.asarray(draws)[np.asarray(draws) > 0])
    half = SPREADS * logarithms.std()
    low, high = max(np.exp(logarithms.mean() - half), lower), min(np.exp(logarithms.mean() + half), upper)
    return np.geomspace(low, high, int(np.clip(PER_GROUP * num_groups, *NUM_ENERGIES)))


def peaks(
    bound: Any,
    values: Mapping[str, Any],
    factor: Any,
    feature: Feature,
    energies: np.ndarray,
    *,
    num: int,
    untied: tuple[bool, bool],
) -> list[Peak]:
    """Return the highest separate maxima of the fall of the statistic by a feature, highest first.

    Parameters
    ----------
    bound : FoldedSpectra
        Spectra, with ``expected(values, factor)``, ``statistic`` and ``num_sources``.
    values, factor
        Values of all parameters, and calibration factors, as in `FoldedSpectra.expected`.
    feature : Feature
        The feature; its own values are ignored, but for a fixed width.
    energies : (K,)
        The energies [keV].
    num : int
        Largest number of maxima.
    untied : (bool, bool)
        Whether each spectrum has its own energy, and its own strength; energies are only searched separately if the
        strengths are.
    """
    widths = 0.5 * energies * np.log(energies[-1] / energies[0]) / (len(energies) - 1)
    if feature.is_logarithmic:
        unit = np.full(len(energies), 10.0**FAINT)
    else:
        unit = WEAK * (np.ones(len(energies)) if feature.width is None else widths)
    others = {name: value for name, value in values.items() if name not in feature[:2]}
    fall, scale = (np.asarray(array) for array in _falls(bound, others, factor, feature, (energies, widths, unit)))
    fall = np.where(np.isfinite(fall), fall, -np.inf)  # (K, number of strengths, N)
    own_energy, own_strength = untied[0] and untied[1], untied[1]
    # Of untied strengths, each belongs to a source; the regions of the background come after them.
    fall = fall[..., : bound.num_sources] if own_strength else fall.sum(axis=-1, keepdims=True)
    best = fall.argmax(axis=1)  # (K, N)
    strength = (unit * scale)[:, None] * _multiples()[best]
    strength = np.log10(strength) if feature.is_logarithmic else strength
    fall = fall.max(axis=1)
    if not own_energy:
        total = fall.sum(axis=-1)
        return [Peak(energies[i], widths[i], _scalar(strength[i]), total[i]) for i in _separate(energies, total, num)]
    columns = np.arange(fall.shape[1])
    rows = np.array([_separate(energies, column, 1)[0] for column in fall.T])
    return [Peak(energies[rows], widths[rows], strength[rows, columns], fall[rows, columns])]


def _scalar(values: np.ndarray) -> Any:
    """Return the only element of an array, or the array."""
    return values[0] if len(values) == 1 else values


def _multiples() -> np.ndarray:
    """Return the counts of the feature that are tried, relative to those of the spectrum."""
    return LARGEST * STEP ** -np.arange(float(NUM_STRENGTHS))


def _separate(energies: np.ndarray, fall: np.ndarray, num: int) -> list[int]:
    """Return the indices of the highest falls that are at least `APART` from each other."""
    chosen: list[int] = []
    remaining = fall.copy()
    while len(chosen) < num and (not chosen or np.isfinite(remaining).any()):
        chosen.append(int(remaining.argmax()))
        remaining[np.abs(np.log(energies / energies[chosen[-1]])) < APART] = -np.inf
    return chosen


@functools.partial(jax.jit, static_argnames="feature")
def _falls(bound, values, factor, feature, grid):
    """Return the fall of the statistic (K, number of strengths, N) and the multiple of the unit of strength (K,)."""
    base = bound.expected({**values, feature.energy: grid[0][0], feature.strength: feature.absent}, factor)
    without = bound.statistic.deviance(base).sum(axis=-1)
    multiples = jnp.asarray(_multiples())

    def at(energy, width, unit):
        strength = jnp.log10(unit) if feature.is_logarithmic else unit
        own = {feature.energy: energy, feature.strength: strength}
        if feature.width is not None:
            own[feature.width] = width
        change = bound.expected({**values, **own}, factor) - base
        size = jnp.abs(change).sum()
        scale = jnp.where(size > 0, jnp.abs(base).sum() / jnp.where(size > 0, size, 1.0), 1.0)

        def fall(multiple):
            return without - bound.statistic.deviance(base + multiple * scale * change).sum(axis=-1)

        return jax.vmap(fall)(multiples), scale

    return jax.lax.map(lambda columns: at(*columns), grid, batch_size=BATCH)
