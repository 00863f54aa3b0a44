"""Observed counts of X-ray spectra as a NumPyro distribution, for any statistic."""

import numpy as np
from numpyro import distributions as dist
from numpyro.distributions import constraints

from hbm_jax.spectra.statistics.goodness import drawn_counts
from hbm_jax.spectra.statistics.joint import AnyStatistic

NEGLIGIBLE = 0.1  # displacement of posteriors by a profiled background, in their standard deviations


class Counts(dist.Distribution):
    """Counts in groups of channels of N spectra, given the expected counts of the sources.

    Parameters
    ----------
    expected : array (N, G)
        Expected counts of the source, without background.
    statistic : Statistic or JointStatistic
        Returned by `hbm_jax.spectra.prepare`, with the same shape (N, G): it holds the backgrounds and the mask of
        padding. The log probability of padding is 0 and its draws are 0.

    Notes
    -----
    Terms that depend only on the counts held by the statistic are precomputed; for other counts, such as those of a
    simulated sample, they are computed at every evaluation. Draws are counts in the source region, background
    included, given the data of the background region; see `Statistic.draw_counts`.
    """

    arg_constraints = {"expected": constraints.real}  # noqa: RUF012 - NumPyro's own convention
    pytree_data_fields = ("expected", "statistic")

    def __init__(self, expected, statistic: AnyStatistic, *, validate_args=None):
        self.expected = expected
        self.statistic = statistic
        super().__init__(np.shape(expected), (), validate_args=validate_args)

    @constraints.dependent_property(event_dim=0)
    def support(self):
        """Whole numbers, but real ones for a statistic of Gaussian errors."""
        return constraints.real if "chi2" in self.statistic.name else constraints.nonnegative_integer

    def log_prob(self, value):
        """Return the log probability of counts, (N, G)."""
        is_prepared = value is self.statistic.counts
        return (self.statistic if is_prepared else self.statistic.with_counts(value)).log_likelihood(self.expected)

    def sample(self, key, sample_shape=()):
        """Draw counts, (N, G)."""
        if sample_shape:
            raise NotImplementedError("Counts draws one sample at a time; use jax.vmap for more.")
        return self.statistic.draw_counts(key, self.expected)

    def draw_on_host(self, mean, rng: np.random.Generator):
        """Draw counts with NumPy for many expected counts of the source (num, N, G), in place of `sample`."""
        return drawn_counts(self.statistic, mean, rng)

    @property
    def calibration_caution(self) -> str:
        """Sentence about draws that do not follow the likelihood; empty if they do, see `hbm_jax.calibrate`.

        The likelihood of W and PG-statistic has the most likely background, whereas draws have backgrounds with the
        errors of the background region. Their posteriors differ where these errors matter.
        """
        displacement = self.statistic.displacement_by_profile()
        if displacement <= NEGLIGIBLE:
            return ""
        size = f"by up to about {displacement:.2g} of their standard deviations" if np.isfinite(displacement) else ""
        return (
            f"the statistic {self.statistic.name} has the most likely background, but simulated counts have "
            f"backgrounds with the errors of the background region; this alone can displace posteriors {size}".rstrip()
            + ", so that ranks need not be uniform. statistic='marginal' integrates the background out"
        )

    @property
    def mean(self):
        """Expected counts of the source, (N, G)."""
        return self.expected
