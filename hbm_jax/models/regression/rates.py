"""Counts of groups whose rates have a beta or gamma population; the rates are integrated out in closed form.

    y_j ~ Binomial(trials_j, rate_j),      rate_j ~ Beta(alpha, beta),
    y_j ~ Poisson(exposure_j rate_j),      rate_j ~ Gamma(alpha, beta),

(Gelman et al. 2013, Bayesian Data Analysis, section 5.3; George, Makov & Smith 1993.)
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist

from hbm_jax.data.regression.regression_data import INTERCEPT, RegressionData
from hbm_jax.models.base import PopulationModel
from hbm_jax.models.priors import Prior, sample_prior
from hbm_jax.validation import DataError, reject_rows

PRIORS: dict[tuple[str, str], dict[str, Prior]] = {
    ("binomial", "mean"): {"mean": dist.Uniform(0.0, 1.0), "dispersion": dist.Uniform(0.0, 1.0)},
    ("binomial", "shape"): {"alpha": dist.Exponential(0.1), "beta": dist.Exponential(0.1)},
    ("poisson", "mean"): {"mean": dist.LogNormal(0.0, 2.0), "dispersion": dist.HalfNormal(1.0)},
    ("poisson", "shape"): {"alpha": dist.Exponential(1.0), "beta": dist.Gamma(0.1, 1.0)},
}
FAMILIES = {"binomial": "trials", "poisson": "exposure"}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class BoundRates:
    """Counts of N groups, bound to a `Rates`.

    Attributes
    ----------
    counts : (N,) int
        Observed counts.
    size : (N,)
        Trials or exposures.
    log_mean : scalar
        Logarithm of the total count, at least one half, over the total size.
    """

    counts: Any
    size: Any
    log_mean: Any


@dataclass(frozen=True, kw_only=True)
class Rates(PopulationModel):
    """Model of counts of groups whose rates have a beta or gamma population; a call with data is a NumPyro program.

    Every row of the data is a group: `RegressionData` with a formula such as ``"deaths ~ 1"`` and a column of
    ``trials`` or ``exposure``. `hbm_jax.latents` draws the rates from their conditional posterior, as ``rate``.

    Parameters
    ----------
    family : str
        ``"binomial"`` (beta population) or ``"poisson"`` (gamma population).
    parameters : str
        Parameters of the population that have priors. ``"mean"``: the ``mean`` of the rates and the ``dispersion``,
        which is (alpha + beta)^(-1/2) for the beta population and alpha^(-1/2), the standard deviation divided by the
        mean, for the gamma population. ``"shape"``: ``alpha`` and ``beta``.
    priors : mapping of str to Distribution, float or str
        Overrides by name. For ``"binomial"`` the default priors of ``mean`` and ``dispersion`` are uniform from 0 to 1,
        which is the density (alpha + beta)^(-5/2) of Gelman et al., section 5.3, truncated to alpha + beta > 1; those
        of ``alpha`` and ``beta`` are Exponential(0.1). For ``"poisson"`` they are LogNormal(0, 2) times the mean of all
        data for ``mean``, HalfNormal(1) for ``dispersion``, and Exponential(1) and Gamma(0.1, 1) for ``alpha`` and
        ``beta`` (as George, Makov & Smith).

    Raises
    ------
    ValueError
        For an unknown option or prior name.

    Examples
    --------
    >>> sorted(Rates().all_priors)
    ['dispersion', 'mean']
    """

    Bound = BoundRates
    priors_in_data_units = True

    family: Literal["binomial", "poisson"] = field(default="binomial", metadata={"help": "distribution of the counts"})
    parameters: Literal["mean", "shape"] = field(
        default="mean", metadata={"help": "parameters with priors: mean (and dispersion) or shape"}
    )
    dims: ClassVar[dict[str, list[str]]] = {"observed": ["point"]}

    @property
    def default_priors(self) -> dict[str, Prior]:
        """Default priors; that of the mean of Poisson rates is relative to the mean of all data."""
        return PRIORS[self.family, self.parameters]

    def bind(self, data: RegressionData) -> BoundRates:
        """Return counts, trials or exposures, and the mean rate; see `hbm_jax.models.base.PopulationModel.bind`."""
        self._check(data)
        # Integers: NumPyro draws binomial counts only for integer numbers of trials.
        trials = np.round(np.asarray(data.trials)).astype(int)
        size = trials if self.family == "binomial" else np.exp(np.asarray(data.offset))
        overall = np.maximum(data.y_mean, 0.5 / len(size)) / size.mean()
        return BoundRates(np.round(np.asarray(data.y)).astype(int), size, np.log(overall))

    def program(self, bound: BoundRates, observed: bool, recover: bool) -> None:
        """Run the NumPyro program; ``recover`` draws the rates, which are integrated out."""
        size = bound.size
        alpha, beta = self._sample_shape_parameters(bound)
        if self.family == "binomial":
            marginal = dist.BetaBinomial(alpha, beta, size)
        else:
            marginal = dist.GammaPoisson(alpha, beta / size)
        with numpyro.plate("point", len(size)):
            drawn = numpyro.sample("observed", marginal, obs=jnp.asarray(bound.counts) if observed else None)
            if recover:
                posterior: dist.Distribution = dist.Gamma(alpha + drawn, beta + size)
                if self.family == "binomial":
                    posterior = dist.Beta(alpha + drawn, beta + size - drawn)
                numpyro.deterministic("rate", posterior.sample(numpyro.prng_key()))

    def _sample_shape_parameters(self, bound: BoundRates):
        """Sample the parameters of the population; return its shape parameters alpha and beta."""
        priors = self.all_priors
        if self.parameters == "shape":
            return sample_prior("alpha", priors["alpha"]), sample_prior("beta", priors["beta"])
        mean_prior = priors["mean"]
        if self.family == "poisson" and "mean" not in self.priors:
            mean_prior = dist.LogNormal(bound.log_mean, 2.0)  # the default is relative to the mean of the data
        mean = sample_prior("mean", mean_prior)
        dispersion = sample_prior("dispersion", priors["dispersion"])
        shape = dispersion**-2.0  # alpha + beta of a beta population, alpha of a gamma population
        if self.family == "binomial":
            return mean * shape, (1.0 - mean) * shape
        return shape, shape / mean

    def _check(self, data) -> None:
        """Raise an error where the data do not fit the family."""
        advice = "Read them with hbm_jax.data.read_regression(source, formula='deaths ~ 1', trials='operations')."
        self.check_container(data, RegressionData, advice)
        role = FAMILIES[self.family]
        if role not in data.source.roles:
            raise DataError(f"Rates: the family {self.family!r} expects {role}=, a column of the table; found none.")
        if data.terms != (INTERCEPT,) or data.groups:
            raise DataError(
                f"Rates: expected a formula without predictors, as in '{data.response} ~ 1': every row is a group; "
                f"found {data.source.formula!r}. With predictors, use hbm_jax.models.Regression."
            )
        y = np.asarray(data.y)
        reject_rows((y < 0) | (y != np.round(y)), y, data.response, "a count", data.name)

    def coords(self, data: RegressionData) -> dict[str, list]:
        """Return the labels of the dimensions."""
        return {"point": list(data.name)}

    @property
    def description(self) -> str:
        """One-line description for reports."""
        population = "beta" if self.family == "binomial" else "gamma"
        return f"Rates of groups from a {population} population, {self.family} counts"
