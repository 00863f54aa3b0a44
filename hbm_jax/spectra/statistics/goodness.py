"""Goodness of fit of counts: the deviance of the data among those of data simulated from the model."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray
from scipy import stats

from hbm_jax.spectra.statistics.joint import AnyStatistic

Floats = NDArray[np.float64]
BATCH = 64  # simulations at a time: of 50 spectra of 500 groups with 20 nodes, 250 MB


@dataclass(frozen=True, eq=False, repr=False)
class Goodness:
    """Deviances of the data and of simulated data, summed over the channels of each spectrum.

    Attributes
    ----------
    observed : (num_simulations, ...)
        Deviance of the data, at the expected counts of each simulation; all rows are the same for one best fit.
    simulated : (num_simulations, ...)
        Deviance of the simulated data at the same expected counts.
    """

    observed: Floats
    simulated: Floats

    @property
    def p_value(self) -> Floats:
        """Share of simulations at least as far from the model as the data, (...); small for a bad fit, never 0.

        The data count as one of the simulations, (k + 1) / (num_simulations + 1), which keeps the promise that p < x
        happens with probability x or less (Davison & Hinkley 1997, Bootstrap Methods and their Application, 4.2).
        """
        return self._share(self.observed, self.simulated)

    @property
    def total_p_value(self) -> float:
        """The same for the sum over all spectra."""

        def total(x):
            return x.reshape(len(x), -1).sum(axis=1)

        return float(self._share(total(self.observed), total(self.simulated)))

    @staticmethod
    def _share(observed, simulated):
        # Deviances of equal counts differ by rounding between one program and another.
        further = simulated >= observed - 1e-9 * (1.0 + np.abs(observed))
        return (further.sum(axis=0) + 1.0) / (len(simulated) + 1.0)

    def __repr__(self) -> str:
        p = np.atleast_1d(self.p_value)
        return f"Goodness({len(self.simulated)} simulations, {p.size} spectra, smallest p {p.min():.3g})"


def goodness_of_fit(
    statistic: AnyStatistic, expected: ArrayLike, *, seed: int, num_simulations: int = 1000
) -> Goodness:
    """Simulate data from a model and compare their deviances with that of the data.

    Parameters
    ----------
    statistic : Statistic or JointStatistic
        The statistic with the data, (..., G).
    expected : (..., G) or (num_draws, ..., G)
        Expected counts of the source: of one best fit, or of draws from the posterior.
    seed : int
        Of the simulations.
    num_simulations : int
        How many; with draws, they are taken in turn.

    Returns
    -------
    Goodness

    Raises
    ------
    ValueError
        For expected counts of another shape, or negative or not finite in a channel that is used, and for a number
        of simulations below 1.

    Notes
    -----
    With one best fit this is a parametric bootstrap without a refit: simulated data are compared with the model they
    are drawn from, the data with a model fitted to them. p-values of good fits are then too large, more so the more
    parameters are free for each spectrum. With posterior draws it is the posterior predictive p-value, which shares
    that fault: both miss some bad fits, and a small p-value is a bad fit (Gelman, Meng & Stern 1996, Statistica Sinica
    6, 733; Bayarri & Berger 2000, JASA 95, 1127).

    What is drawn is what `Statistic.draw` says. The background under W and PG-statistic is the best one of the data at
    hand, which is itself fitted.

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
    bad = ~(np.isfinite(draws) & (draws >= 0)) & np.asarray(statistic.used, bool)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"goodness_of_fit: expected{list(place)}: expected numbers of 0 or more; found {draws[place]:g}."
        )
    if num_simulations < 1:
        raise ValueError(f"goodness_of_fit: num_simulations: expected 1 or more; found {num_simulations}.")
    keys = jax.random.split(jax.random.key(seed), num_simulations)
    observed, simulated = _simulate(statistic, jnp.asarray(draws), keys)
    turn = np.arange(num_simulations) % len(draws)
    return Goodness(np.asarray(observed)[turn], np.asarray(simulated))


@jax.jit
def _simulate(statistic, draws, keys):
    """Deviances of the data at each draw, and of one set of data simulated with each key."""

    def one(at):
        key, turn = at
        expected = draws[turn]
        return statistic.draw(key, expected).deviance(expected).sum(axis=-1)

    def of_data(expected):
        return statistic.deviance(expected).sum(axis=-1)

    turn = jnp.arange(len(keys)) % len(draws)
    return jax.lax.map(of_data, draws, batch_size=BATCH), jax.lax.map(one, (keys, turn), batch_size=BATCH)


def cash_moments(expected: ArrayLike) -> tuple[Floats, Floats]:
    """Mean and variance of C in each channel, where the model is true.

    Parameters
    ----------
    expected : (...)
        Expected counts, source and background together, 0 or more; up to 10^6 in reasonable time.

    Returns
    -------
    mean, variance : (...)
        Of `cash`, over Poisson counts. They tend to 1 and 2, and to 0 where next to nothing is expected. Summed over
        channels they say how large C should be: mean +- sqrt(variance).

    Raises
    ------
    ValueError
        For numbers that are negative or not finite.

    Notes
    -----
    The sum over all counts within ten standard deviations and 40 counts of the mean, not an approximation to it.

    References
    ----------
    Kaastra 2017, A&A 605, A51, section 2.

    Examples
    --------
    >>> mean, variance = cash_moments([0.1, 1.0, 100.0])
    >>> [round(float(x), 3) for x in mean]
    [0.481, 1.152, 1.002]
    """
    expected = np.asarray(expected, float)
    bad = ~(np.isfinite(expected) & (expected >= 0))
    if bad.any():
        raise ValueError(
            f"cash_moments: expected: expected finite numbers of 0 or more; found {expected[bad].flat[0]:g}."
        )
    moments = np.array([_moments(mu) for mu in expected.ravel()]).reshape(*expected.shape, 2)
    return moments[..., 0], moments[..., 1]


def _moments(mu: float) -> tuple[float, float]:
    """Mean and variance of C at one mu."""
    if mu == 0.0:
        return 0.0, 0.0
    reach = 10.0 * np.sqrt(mu) + 40.0
    k = np.arange(max(np.floor(mu - reach), 0.0), np.ceil(mu + reach) + 1.0)
    probability = stats.poisson.pmf(k, mu)
    c = 2.0 * (mu - k + k * np.log(np.maximum(k, 1.0) / mu))
    mean = probability @ c
    return mean, probability @ (c - mean) ** 2
