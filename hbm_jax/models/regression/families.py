"""Families of a generalised linear model: distribution of the response, link, and working response."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from numpyro import distributions as dist
from scipy.special import expit, logit, ndtr, ndtri

from hbm_jax.models.priors import Prior

SIGMA: dict[str, Prior] = {"sigma": dist.HalfNormal(1.0)}


@dataclass(frozen=True)
class Family:
    """Distribution of the response for a linear predictor eta.

    Attributes
    ----------
    links : tuple of str
        Available links; the first is the default.
    values : str
        Type of the response: ``"real"``, ``"count"``, ``"binary"`` or ``"category"``.
    distribution : callable
        ``distribution(eta, link, parameters, bound)`` returns the NumPyro distribution of the response.
    parameters : dict
        Default priors of the parameters other than the coefficients.
    scaled : bool
        Whether the linear predictor is in the units of the response.
    """

    links: tuple[str, ...]
    values: str
    distribution: Callable[..., dist.Distribution]
    parameters: Mapping[str, Prior] = field(default_factory=dict)
    scaled: bool = False


def _logits(eta, link: str):
    """Return the logit of the probability of a linear predictor eta, ``logit`` or ``probit``."""
    return eta if link == "logit" else log_ndtr(eta) - log_ndtr(-eta)


def _normal(eta, link, p, bound):
    """Return the distribution of the response: normal about eta, with scatter and measurement error."""
    return dist.Normal(eta, jnp.sqrt(p["sigma"] ** 2 + bound.error**2))


def _student_t(eta, link, p, bound):
    """Return the distribution of the response: Student's t about eta."""
    return dist.StudentT(p["nu"], eta, p["sigma"])


def _bernoulli(eta, link, p, bound):
    """Return the distribution of the response: 0 or 1, with the probability of eta."""
    return dist.Bernoulli(logits=_logits(eta, link))


def _binomial(eta, link, p, bound):
    """Return the distribution of the response: successes in the trials, with the probability of eta."""
    return dist.Binomial(bound.trials, logits=_logits(eta, link))


def _poisson(eta, link, p, bound):
    """Return the distribution of the response: Poisson with mean exp(eta)."""
    return dist.Poisson(jnp.exp(eta))


def _negative_binomial(eta, link, p, bound):
    """Return the distribution of the response: mean mu = exp(eta), variance mu + overdispersion mu^2."""
    return dist.NegativeBinomial2(jnp.exp(eta), 1.0 / p["overdispersion"])


def _categorical(eta, link, p, bound):
    """Return the distribution of the response: one of the categories; the logit of the first is 0."""
    return dist.Categorical(logits=jnp.concatenate([jnp.zeros((*eta.shape[:-1], 1)), eta], axis=-1))


FAMILIES = {
    "normal": Family(("identity",), "real", _normal, SIGMA, scaled=True),
    "student_t": Family(("identity",), "real", _student_t, SIGMA | {"nu": dist.Gamma(2.0, 0.1)}, scaled=True),
    "bernoulli": Family(("logit", "probit"), "binary", _bernoulli),
    "binomial": Family(("logit", "probit"), "count", _binomial),
    "poisson": Family(("log",), "count", _poisson),
    "negative_binomial": Family(("log",), "count", _negative_binomial, {"overdispersion": dist.HalfNormal(1.0)}),
    "categorical": Family(("softmax",), "category", _categorical),
}


def centre_of(link: str, data: Any) -> float:
    """Return the linear predictor of the mean response: the centre of the default prior of the intercept.

    So that it is finite, at least half a count (and half a failure) in all data is assumed.
    """
    mean, offset, trials = (np.asarray(a) for a in (data.y_mean, data.offset, data.trials))
    if link == "identity":
        return mean - offset.mean()
    if link == "log":
        return np.log(np.maximum(mean, 0.5 / len(offset))) - np.log(np.exp(offset).mean())
    if link == "softmax":
        return 0.0
    num = len(offset) * trials.mean()
    rate = np.clip(mean / trials.mean(), 0.5 / num, 1.0 - 0.5 / num)
    # The probit is approximately the logit over 1.6.
    return logit(rate) / (1.6 if link == "probit" else 1.0) - offset.mean()


def working(link: str, y: np.ndarray, trials: np.ndarray, eta: np.ndarray | None = None):
    """Return the working response and the weights of iteratively reweighted least squares at a linear predictor.

    Parameters
    ----------
    link : str
        Link of the family.
    y, trials : (N,)
        Response, and number of trials.
    eta : (N,), optional
        Linear predictor; by default that of the response itself, for counts shifted from the edge of their range.

    Returns
    -------
    response, weights : (N,)
    """
    if link == "identity":
        return y, np.ones(len(y))
    if link == "log":
        eta = np.log(y + 0.5) if eta is None else np.clip(eta, -30.0, 30.0)
        mean = np.exp(eta)
        return eta + (y - mean) / mean, mean
    rate = (y + 0.5) / (trials + 1.0)
    if link == "logit":
        eta = logit(rate) if eta is None else np.clip(eta, -15.0, 15.0)
        mean = expit(eta)
        slope = mean * (1.0 - mean)
    else:
        eta = ndtri(rate) if eta is None else np.clip(eta, -6.0, 6.0)
        mean, slope = ndtr(eta), np.exp(-0.5 * eta**2) / np.sqrt(2.0 * np.pi)
    return eta + (y / trials - mean) / slope, trials * slope**2 / (mean * (1.0 - mean))
