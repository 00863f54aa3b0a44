"""Counts in channels, with whatever statistic their background asks for, as a distribution."""

import numpy as np
from numpyro import distributions as dist
from numpyro.distributions import constraints

from hbm_jax.spectra.statistics.joint import AnyStatistic


class Counts(dist.Distribution):
    """Counts in the channels of many spectra, given those expected of the sources alone.

    Parameters
    ----------
    expected : array (N, G)
        Expected counts of the source.
    statistic : Statistic or JointStatistic
        From `hbm_jax.spectra.prepare`, of the same shape: it holds backgrounds, and which entries are padding. The
        log probability of padding is 0 and its draws are 0.

    Notes
    -----
    What depends on the counts that the statistic was prepared with was worked out then; for other counts, such as those
    of a simulated sample, it is worked out at every evaluation. Draws are of the counts in the source region, with the
    background drawn as `Statistic.draw` says.
    """

    arg_constraints = {"expected": constraints.real}  # noqa: RUF012 - NumPyro's own convention
    support = constraints.real
    pytree_data_fields = ("expected", "statistic")

    def __init__(self, expected, statistic: AnyStatistic, *, validate_args=None):
        self.expected = expected
        self.statistic = statistic
        super().__init__(np.shape(expected), (), validate_args=validate_args)

    def log_prob(self, value):
        """Log probability of counts, (N, G)."""
        own = value is self.statistic.counts
        return (self.statistic if own else self.statistic.with_counts(value)).log_likelihood(self.expected)

    def sample(self, key, sample_shape=()):
        """Draw counts, (N, G)."""
        if sample_shape:
            raise NotImplementedError("Counts draws one sample at a time; use jax.vmap for more.")
        return self.statistic.draw(key, self.expected).counts

    @property
    def mean(self):
        """Expected counts of the source, (N, G)."""
        return self.expected
