"""Goodness of fit of counts, from the deviances of the data and of data simulated from the model."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from hbm_jax.spectra.statistics.gaussian_marginal import drawn_truncated
from hbm_jax.spectra.statistics.joint import AnyStatistic, JointStatistic
from hbm_jax.spectra.statistics.statistic import PROFILED, Statistic
from hbm_jax.validation import Floats

BATCH = 64  # simulations evaluated together: 250 MB for 50 spectra of 500 groups with 20 nodes
CHUNK = 2**22  # simulated channels in memory at once: 32 MB an array; 70 simulations of 60 000 channels


@dataclass(frozen=True, eq=False, repr=False)
class Goodness:
    """Deviances of the data and of simulated data, summed over the channels of each spectrum.

    Attributes
    ----------
    observed : (num_simulations, ...)
        Deviance of the data at the expected counts of each simulation; all rows are equal for a single best fit.
    simulated : (num_simulations, ...)
        Deviance of the simulated data at the same expected counts.
    """

    observed: Floats
    simulated: Floats

    @property
    def p_value(self) -> Floats:
        """p-value of each spectrum, (...), small for a bad fit.

        p = (k + 1) / (num_simulations + 1), where k simulations have a deviance of at least that of the data. With the
        1, the probability of p < x is at most x (Davison & Hinkley 1997, Bootstrap Methods and their Application, 4.2).
        """
        return self._p_value(self.observed, self.simulated)

    @property
    def total_p_value(self) -> float:
        """p-value of the sum over all spectra."""

        def total(x):
            return x.reshape(len(x), -1).sum(axis=1)

        return float(self._p_value(total(self.observed), total(self.simulated)))

    @staticmethod
    def _p_value(observed, simulated):
        """Return the p-values of deviances (num_simulations, ...)."""
        # Deviances of equal counts differ by rounding errors between compiled programs.
        exceeds = simulated >= observed - 1e-9 * (1.0 + np.abs(observed))
        return (exceeds.sum(axis=0) + 1.0) / (len(simulated) + 1.0)

    def __repr__(self) -> str:
        p = np.atleast_1d(self.p_value)
        return f"Goodness({len(self.simulated)} simulations, {p.size} spectra, smallest p {p.min():.3g})"


def goodness_of_fit(
    statistic: AnyStatistic, expected: ArrayLike, *, seed: int, num_simulations: int = 1000
) -> Goodness:
    """Compare the deviance of the data with the deviances of data simulated from the model.

    Raises ValueError for expected counts of another shape, for values that are negative or not finite in a used
    channel, and for fewer than 1 simulation.

    Parameters
    ----------
    statistic : Statistic or JointStatistic
        The statistic with the data, (..., G).
    expected : (..., G) or (num_draws, ..., G)
        Expected counts of the source, at one best fit or at draws from the posterior.
    seed : int
        Seed of the simulations.
    num_simulations : int
        Number of simulations; posterior draws are used in turn.

    Notes
    -----
    With one best fit this is a parametric bootstrap without refitting: simulated data are compared with the model from
    which they are drawn, but the observed data with a model fitted to them. The p-values of good fits are then too
    large, increasingly with the number of free parameters of each spectrum. With posterior draws it is the posterior
    predictive p-value, which is biased in the same direction. Both miss some bad fits, but a small p-value does
    indicate a bad fit (Gelman, Meng & Stern 1996, Statistica Sinica 6, 733; Bayarri & Berger 2000, JASA 95, 1127).

    Data are simulated by `Statistic.draw`. For W and PG-statistic the background is the best fit to the observed
    data.

    Examples
    --------
    >>> from hbm_jax.spectra.statistics.statistic import prepare
    >>> goodness = goodness_of_fit(prepare("cstat", [3, 0, 2]), [2.0, 1.0, 2.0], seed=1, num_simulations=99)
    >>> 0.0 < goodness.p_value <= 1.0
    True
    """
    size = np.shape(statistic.counts)
    expected = np.asarray(expected, float)
    draws = expected if expected.ndim > len(size) else expected[None]
    if draws.shape[1:] != size or not len(draws):
        raise ValueError(
            f"goodness_of_fit: expected: expected an array of shape {size}, or one for each draw; found "
            f"{expected.shape}."
        )
    invalid = ~(np.isfinite(draws) & (draws >= 0)) & np.asarray(statistic.used, bool)
    if invalid.any():
        index = tuple(int(i) for i in np.argwhere(invalid)[0])
        raise ValueError(
            f"goodness_of_fit: expected{list(index)}: expected numbers of 0 or more; found {draws[index]:g}."
        )
    if num_simulations < 1:
        raise ValueError(f"goodness_of_fit: num_simulations: expected 1 or more; found {num_simulations}.")
    draw_index, rng = np.arange(num_simulations) % len(draws), np.random.default_rng(seed)
    parts = statistic.parts if isinstance(statistic, JointStatistic) else (statistic,)
    observed = np.asarray(_deviance(statistic, draws))
    num_chunks = -(-num_simulations * max(statistic.counts.size, 1) // CHUNK)
    simulated = []
    for chunk in np.array_split(draw_index, min(num_chunks, num_simulations)):
        data = [drawn_data(part, draws[chunk], rng) for part in parts]
        deviances = [_deviance_of_each(p, *d, draws[chunk]) for p, d in zip(parts, data, strict=True)]
        simulated.append(np.sum(np.asarray(deviances), axis=0))
    return Goodness(observed[draw_index], np.concatenate(simulated))


@jax.jit
def _deviance(statistic, draws):
    """Return the deviance of the data of each spectrum, (num_draws, ...), for each of several expected counts."""
    return jax.lax.map(lambda expected: statistic.deviance(expected).sum(axis=-1), draws, batch_size=BATCH)


@jax.jit
def _deviance_of_each(statistic, counts, background, expected):
    """Return the deviance of each spectrum for simulated data and their expected counts, (num_simulations, ...)."""

    def deviance(data):
        *observed, mean = data
        return statistic.with_data(*observed).deviance(mean).sum(axis=-1)

    return jax.lax.map(deviance, (counts, background, expected), batch_size=BATCH)


def drawn_data(statistic: Statistic, expected: Floats, rng: np.random.Generator) -> tuple[Floats, Any]:
    """Return simulated counts, and background data where they vary, as `Statistic.draw` does.

    NumPy draws in place of JAX, whose Poisson and gamma variates take most of the time of a compilation.

    Parameters
    ----------
    statistic : Statistic
        The statistic with the observed data, (..., G).
    expected : (num_simulations, ..., G)
        Expected counts of the source in each simulation.
    rng : numpy.random.Generator
        Random number generator.
    """
    used = np.asarray(statistic.used)
    expected = np.where(used, expected, 1.0)
    if statistic.name.startswith("chi2"):
        variance = np.asarray(statistic.variance) + (expected if statistic.name == "chi2_model" else 0.0)
        counts = expected + np.sqrt(variance) * rng.standard_normal(expected.shape)
        return np.where(used, counts, 0.0), None
    in_source: Any = 0.0  # expected background in the source region
    background: Any = None
    if statistic.name in ("wstat", "pgstat"):
        in_source = np.asarray(_best_background(statistic, expected))
    if statistic.name == "wstat":
        background = rng.poisson(np.asarray(statistic.ratio) * in_source).astype(float)
    elif statistic.name == "pgstat":
        background = in_source + np.asarray(statistic.background_error) * rng.standard_normal(expected.shape)
    elif statistic.name == "marginal" and statistic.shape is None:
        in_source = drawn_truncated(rng, statistic.background, statistic.background_error, expected.shape)
    elif statistic.name == "marginal":
        in_source = rng.standard_gamma(np.broadcast_to(statistic.shape, expected.shape)) / np.asarray(statistic.rate)
    return rng.poisson(np.where(used, expected + in_source, 0.0)).astype(float), background


def drawn_counts(statistic: AnyStatistic, expected: Floats, rng: np.random.Generator) -> Floats:
    """Return simulated counts of the source region, as `Statistic.draw_counts` does, with NumPy.

    Parameters
    ----------
    statistic : Statistic or JointStatistic
        The statistic with the data of the background region, (..., G).
    expected : (num_simulations, ..., G)
        Expected counts of the source in each simulation.
    rng : numpy.random.Generator
        Random number generator.
    """
    if isinstance(statistic, JointStatistic):
        return np.sum([drawn_counts(part, expected, rng) for part in statistic.parts], axis=0)
    if statistic.name not in PROFILED:
        return drawn_data(statistic, expected, rng)[0]
    background = np.broadcast_to(statistic.background, expected.shape)
    if statistic.name == "wstat":
        in_source = rng.standard_gamma(np.maximum(background, 0.0)) / np.asarray(statistic.ratio)
    else:
        in_source = background + np.asarray(statistic.background_error) * rng.standard_normal(expected.shape)
    mean = np.maximum(expected + in_source, 0.0)
    return rng.poisson(np.where(np.asarray(statistic.used), mean, 0.0)).astype(float)


@jax.jit
def _best_background(statistic, expected):
    """Return the most likely background of the observed data for expected counts of the source."""
    return jax.lax.map(statistic.most_likely_background, expected, batch_size=BATCH)
