"""The marginal statistic as a plain sum, to compare with."""

import numpy as np
from scipy import stats
from scipy.special import gammaln, logsumexp


def log_marginal(S, mu, shape, rate):
    """Sum over how many of the counts are background: Poisson times negative binomial."""
    k = np.arange(int(S) + 1.0)
    behind = gammaln(shape + k) - gammaln(shape) - gammaln(k + 1) + shape * np.log(rate / (1 + rate))
    return logsumexp(behind - k * np.log1p(rate) + stats.poisson.logpmf(S - k, mu))
