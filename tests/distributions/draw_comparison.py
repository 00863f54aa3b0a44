"""Draws of several numbers compared with independent ones: each number, and the dependence of each pair."""

import numpy as np
from scipy import special, stats


def normal_scores(draws, sorted_reference):
    """Quantiles of a standard normal at which draws (num, M) are among those of the reference; M of sorted numbers."""
    columns = []
    for x, others in zip(draws.T, sorted_reference.T, strict=True):
        order = np.argsort(x)
        rank = 0.5 * (np.searchsorted(others, x[order], "left") + np.searchsorted(others, x[order], "right"))
        scores = np.empty(len(x))
        scores[order] = special.ndtri((rank + 0.5) / (len(others) + 1.0))
        columns.append(scores)
    return np.column_stack(columns)


def p_of_means(found, expected):
    """P-values of each column's mean in two samples."""
    error = np.sqrt(found.var(axis=0) / len(found) + expected.var(axis=0) / len(expected))
    return 2.0 * stats.norm.sf(np.abs(found.mean(axis=0) - expected.mean(axis=0)) / error)


def smallest(p_values):
    """P-value of the smallest of many."""
    p = np.concatenate([np.ravel(p) for p in p_values])
    return float(-np.expm1(p.size * np.log1p(-min(p.min(), 1.0 - 1e-16))))


def p_values_of(found, expected):
    """P-values of each number (M), and of means, squares and products of the normal scores of two sets (num, M)."""
    each = [stats.ks_2samp(*columns, method="asymp").pvalue for columns in zip(found.T, expected.T, strict=True)]
    order = np.sort(expected, axis=0)
    found, expected = normal_scores(found, order), normal_scores(expected, order)
    one, other = np.triu_indices(found.shape[1])
    products = p_of_means(*(x[:, one] * x[:, other] for x in (found, expected)))
    return each, np.concatenate([p_of_means(found, expected), products])


def same_distribution(monte_carlo, found, expected, name):
    """Two sets of independent draws (num, M) have one distribution."""
    found, expected = np.asarray(found), np.asarray(expected)
    constant = (expected == expected[0]).all(axis=0)
    np.testing.assert_array_equal(found[:, constant], np.broadcast_to(expected[0, constant], found[:, constant].shape))
    each, moments = p_values_of(found[:, ~constant], expected[:, ~constant])
    monte_carlo.p_value(smallest([each]), name=f"{name}: each number")
    monte_carlo.p_value(smallest([moments]), name=f"{name}: moments")
