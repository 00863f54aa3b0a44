"""Counts of groups whose rates have a beta or gamma population; the rates are integrated out in closed form.

    y_j ~ Binomial(trials_j, rate_j),      rate_j ~ Beta(alpha, beta),
    y_j ~ Poisson(exposure_j rate_j),      rate_j ~ Gamma(alpha, beta),

(Gelman et al. 2013, Bayesian Data Analysis, section 5.3; George, Makov & Smith 1993.)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist

from hbm_jax.data.regression.regression_data import INTERCEPT, RegressionData
from hbm_jax.models.priors import Prior, complete_priors, priors_to_text, sample_prior
from hbm_jax.models.protocol import configuration, simulated
from hbm_jax.names import choose
from hbm_jax.validation import DataError, reject_rows

PRIORS: dict[tuple[str, str], dict[str, Prior]] = {
    ("binomial", "mean"): {"mean": dist.Uniform(0.0, 1.0), "dispersion": dist.Uniform(0.0, 1.0)},
    ("binomial", "shape"): {"alpha": dist.Exponential(0.1), "beta": dist.Exponential(0.1)},
    ("poisson", "mean"): {"mean": dist.LogNormal(0.0, 2.0), "dispersion": dist.HalfNormal(1.0)},
    ("poisson", "shape"): {"alpha": dist.Exponential(1.0), "beta": dist.Gamma(0.1, 1.0)},
}
FAMILIES = {"binomial": "trials", "poisson": "exposure"}
PARAMETERS = ("mean", "shape")


@dataclass(frozen=True, kw_only=True)
class Rates:
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

    family: str = field(default="binomial", metadata={"help": ", ".join(FAMILIES)})
    parameters: str = field(default="mean", metadata={"help": "parameters with priors: mean (and dispersion) or shape"})
    priors: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self):
        choose("family", self.family, tuple(FAMILIES))
        choose("pair of parameters", self.parameters, PARAMETERS)
        object.__setattr__(self, "priors", dict(self.priors))
        self.all_priors  # noqa: B018 - raises for unknown names

    @property
    def all_priors(self) -> dict[str, Prior]:
        """Every parameter with its prior; that of the mean of Poisson rates is relative to the mean of all data."""
        return complete_priors(PRIORS[self.family, self.parameters], self.priors, "Rates")

    def __call__(self, data: RegressionData, observed: bool = True, recover: bool = False):
        """Run the NumPyro program.

        Parameters
        ----------
        data : RegressionData
            Groups, one per row. With ``observed=False`` the counts are drawn.
        observed : bool
            Whether to condition on the counts.
        recover : bool
            Whether to draw the rates, which are integrated out.
        """
        self._check(data)
        size = jnp.asarray(data.trials) if self.family == "binomial" else jnp.exp(jnp.asarray(data.offset))
        alpha, beta = self._shape(data, size)
        if self.family == "binomial":
            marginal = dist.BetaBinomial(alpha, beta, size)
        else:
            marginal = dist.GammaPoisson(alpha, beta / size)
        value = jnp.round(jnp.asarray(data.y)).astype(int) if observed else None
        with numpyro.plate("point", np.shape(data.y)[0]):
            drawn = numpyro.sample("observed", marginal, obs=value)
            if recover:
                posterior: dist.Distribution = dist.Gamma(alpha + drawn, beta + size)
                if self.family == "binomial":
                    posterior = dist.Beta(alpha + drawn, beta + size - drawn)
                numpyro.deterministic("rate", posterior.sample(numpyro.prng_key()))

    def _shape(self, data: RegressionData, size):
        """Sample the parameters of the population; return alpha and beta."""
        priors = self.all_priors
        if self.parameters == "shape":
            return sample_prior("alpha", priors["alpha"]), sample_prior("beta", priors["beta"])
        prior = priors["mean"]
        if self.family == "poisson" and "mean" not in self.priors:
            overall = jnp.maximum(jnp.asarray(data.y_mean), 0.5 / size.shape[0]) / size.mean()
            prior = dist.LogNormal(jnp.log(overall), 2.0)
        mean, dispersion = sample_prior("mean", prior), sample_prior("dispersion", priors["dispersion"])
        total = dispersion**-2.0
        if self.family == "binomial":
            return mean * total, (1.0 - mean) * total
        return total, total / mean

    def _check(self, data) -> None:
        """Raise an error where the data do not fit the family."""
        if not isinstance(data, RegressionData):
            raise DataError(
                f"Rates: expected RegressionData; found {type(data).__name__}. Read them with "
                "hbm_jax.data.read_regression(source, formula='deaths ~ 1', trials='operations')."
            )
        role = FAMILIES[self.family]
        if role not in data.source.roles:
            raise DataError(f"Rates: the family {self.family!r} expects {role}=, a column of the table; found none.")
        if data.terms != (INTERCEPT,) or data.groups:
            raise DataError(
                f"Rates: expected a formula without predictors, as in '{data.response} ~ 1': every row is a group; "
                f"found {data.source.formula!r}. With predictors, use hbm_jax.models.Regression."
            )
        if isinstance(data.y, np.ndarray):
            reject_rows((data.y < 0) | (data.y != np.round(data.y)), data.y, data.response, "a count", data.name)

    def simulate(self, key, data: RegressionData, parameters: Mapping[str, float] | None = None):
        """Draw a simulated sample with the design of ``data``; see `Regression.simulate`."""
        observed, truth = simulated(self, key, data, parameters)
        return data.replace_observations(observed["observed"]), truth

    @property
    def dims(self) -> dict[str, list[str]]:
        """Dimensions of sites that their plates do not name."""
        return {"observed": ["point"]}

    def coords(self, data: RegressionData) -> dict[str, list]:
        """Return the labels of the dimensions."""
        return {"point": list(data.name)}

    @property
    def units(self) -> dict[str, str]:
        """Units of the parameters: empty, because they are those of the data."""
        return {}

    @property
    def description(self) -> str:
        """One-line description for reports."""
        population = "beta" if self.family == "binomial" else "gamma"
        return f"Rates of groups from a {population} population, {self.family} counts"

    def to_config(self) -> dict:
        """Return options as plain values and overridden priors as text; ``Rates(**config)`` is the same model."""
        return configuration(self) | {
            "priors": priors_to_text(self.priors and {k: self.all_priors[k] for k in self.priors})
        }
