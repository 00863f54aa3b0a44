"""p-values of statistics of the measured data among those of replicates.

Columns of a pool are the measured data set, number 0, and its replicates. Every step treats them alike, so that under
the model the rank of the measured data is uniform, however many statistics there are and however they depend on each
other.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import log_ndtr, logsumexp, ndtri, ndtri_exp

from hbm_jax.inference.sampler.ensemble.convergence import ranks

TAIL = 0.1  # fraction of a pool, on each side, whose scores follow an exponential distribution


def normal_scores(values: np.ndarray) -> np.ndarray:
    """Return the normal scores of each row of (n, pool) among the pool.

    The score is the normal quantile of the rank. In the outer tenth on each side the rank is replaced by the
    probability of an exponential distribution fitted to this tail, so that the size of the pool does not limit scores.
    """
    num = values.shape[1]
    scores = ndtri((ranks(values) - 0.5) / num)
    num_tail = max(3, round(TAIL * num))
    ordered = np.sort(values, axis=1)
    for sign, low_to_high in ((1.0, ordered), (-1.0, -ordered[:, ::-1])):
        threshold = low_to_high[:, num - num_tail - 1, None]
        scale = (low_to_high[:, num - num_tail :] - threshold).mean(axis=1, keepdims=True)
        excess = sign * values - threshold
        beyond = (excess > 0) & (scale > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            tail = -sign * ndtri_exp(np.log(num_tail / num) - np.where(beyond, excess / scale, 0.0))
        scores = np.where(beyond, tail, scores)
    return scores


def scores_of(values: np.ndarray, two_sided: np.ndarray) -> np.ndarray:
    """Return the scores of statistics (statistic, pool): larger is less usual.

    Of a statistic that is ``two_sided`` (statistic,) small ``values`` are as unusual as large ones.
    """
    scores = normal_scores(values)
    return np.where(two_sided[:, None], np.abs(scores), scores)


def p_value_of(scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the p-value of the measured data by all scores (statistic, pool) together.

    The harmonic mean of the tail probabilities of all scores (Wilson 2019, PNAS 116, 1195), with ``weights``
    (statistic,), is ranked among those of the pool. One very small probability makes it small, and so do several that
    are moderately small. The p-value is exact with any weights that do not depend on the data.
    """
    log_inverse = logsumexp(-log_ndtr(-scores), axis=0, b=None if weights is None else weights[:, None])
    return float((log_inverse >= log_inverse[0]).mean())


def distances_of(values: np.ndarray, two_sided: np.ndarray) -> np.ndarray:
    """Return the distances of measured statistics from the means of their replicates, in their standard deviations.

    ``values`` are (statistic, pool); a distance has no sign if the statistic is ``two_sided`` (statistic,).
    """
    replicated = values[:, 1:]
    distance = (values[:, 0] - replicated.mean(axis=1)) / np.maximum(replicated.std(axis=1), 1e-300)
    return np.where(two_sided, np.abs(distance), distance)


def family_scores_of(families: Sequence[str], scores: np.ndarray) -> dict[str, float]:
    """Return the score of the measured data in each family of statistics: its largest score, scored among the pool.

    ``families`` (statistic,) are names, and ``scores`` (statistic, pool) those of `scores_of`.
    """
    members = np.asarray(families)
    names = list(dict.fromkeys(families))
    largest = np.stack([scores[members == name].max(axis=0) for name in names])
    return dict(zip(names, normal_scores(largest)[:, 0].tolist(), strict=True))


def combined(p_values: Sequence[float]) -> float:
    """Combine p-values that depend on each other (Cauchy combination of Liu & Xie 2020, JASA 115, 393)."""
    p = np.clip(np.asarray(p_values, float), 1e-12, 0.9)  # a p-value near 1 must not cancel a small one
    return float(0.5 - np.arctan(np.tan((0.5 - p) * np.pi).mean()) / np.pi)
