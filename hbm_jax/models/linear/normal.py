"""The normal hierarchical model, of one component and of several, in every parametrisation.

For value m of group k,

    theta_k ~ N(mu, tau^2),    y_km ~ N(theta_k, sigma_km^2),

with errors sigma_km that are known, or one sigma that is inferred, or both added; of vectors, N(mu, Sigma) with
standard deviations tau and a correlation matrix. Where data say little about a theta_k, the pair (theta_k, log tau) is
a funnel that the centred form cannot enter, and where they say much, the non-centred form is slow (Betancourt and
Girolami 2013, arXiv:1312.0906). The marginal form has neither trouble.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pandas as pd
from numpyro import distributions as dist

from hbm_jax.data.linear.values_in_groups import ValuesInGroups
from hbm_jax.distributions import GroupedNormal
from hbm_jax.models.partial_centering import Form, form, form_of, sample_centred
from hbm_jax.models.priors import Prior, complete_priors, priors_to_text, standardised
from hbm_jax.models.protocol import configuration, simulated
from hbm_jax.names import choose
from hbm_jax.validation import DataError

LATENTS = ("marginal", "centred", "noncentred", "mixed")
SIGMA = ("known", "inferred")
NEAR = 0.05  # of 0 or 1: what a table calls non-centred or centred

# Of standardised values: in standard deviations of all of them, from their mean.
DEFAULTS: dict[str, Prior] = {"mu": dist.Normal(0.0, 3.0), "tau": dist.HalfNormal(2.0)}
WITHIN: dict[str, Prior] = {"sigma": dist.HalfNormal(2.0)}


@dataclass(frozen=True, kw_only=True)
class _Hierarchy:
    """What the two models share; sites of vectors have the dimension ``component``."""

    latents: str = field(default="marginal", metadata={"help": ", ".join(LATENTS)})
    sigma: str = field(default="known", metadata={"help": ", ".join(SIGMA)})
    priors: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self):
        choose("treatment of the latents", self.latents, LATENTS)
        choose("sigma", self.sigma, SIGMA)
        object.__setattr__(self, "priors", dict(self.priors))
        self.all_priors  # noqa: B018 - raises for unknown names

    @property
    def all_priors(self) -> dict[str, Prior]:
        """Every parameter with its prior: overrides in the units of the data, defaults of standardised values."""
        defaults = DEFAULTS | (WITHIN if self.sigma == "inferred" else {})
        return complete_priors(defaults, self.priors, type(self).__name__)

    def __call__(self, data: ValuesInGroups, observed: bool = True, recover: bool = False):
        """Run the NumPyro program.

        Parameters
        ----------
        data : ValuesInGroups
            The values. With ``observed=False`` everything but these is the design, and they are drawn.
        observed : bool
            Whether to condition on the measured values.
        recover : bool
            Whether to draw the true values of the groups, where they were integrated out.
        """
        self._check(data)
        mu, tril = self._population(data)
        noise = self._noise(data)
        if self.latents == "marginal":
            values = GroupedNormal(mu, tril, noise, data.used)
        else:
            theta = self._theta(data, mu, tril)
            values = GroupedNormal(theta, jnp.zeros_like(tril), noise, data.used)
        with numpyro.plate("group", len(data)):
            drawn = numpyro.sample("y", values, obs=jnp.asarray(data.values) if observed else None)
            if recover and self.latents == "marginal":
                theta = values.conditional(drawn).sample(numpyro.prng_key())
                numpyro.deterministic("theta", self._plain(theta))

    def _check(self, data) -> None:
        what = type(self).__name__
        if not isinstance(data, ValuesInGroups):
            raise DataError(
                f"{what}: expected ValuesInGroups; found {type(data).__name__}. Read them with "
                "hbm_jax.data.read_values, or use ValuesInGroups.from_columns."
            )
        if len(data) < 2:
            raise DataError(
                f"{what}: expected two groups or more, else there is no population; found {len(data)}. Name the groups "
                "in a column group."
            )
        if self.sigma == "known" and not data.has_errors:
            columns = ", ".join(f"sigma_{key}" for key in data.components)
            raise DataError(
                f"{what}: sigma='known' expects errors of the values ({columns}); found none. Use sigma='inferred'."
            )
        if self.sigma == "inferred" and not data.has_errors and np.shape(data.used)[1] < 2:
            raise DataError(
                f"{what}: sigma='inferred' expects errors, or groups of several values, to tell sigma from tau; found "
                "neither."
            )

    def _sample(self, name: str, data: ValuesInGroups, center: Any = 0.0):
        """Sample a parameter, (D,), of which the default prior is of standardised values."""
        prior, size = self.all_priors[name], len(data.components)
        if not isinstance(prior, dist.Distribution):
            return jnp.full(size, float(prior))
        center = jnp.broadcast_to(jnp.asarray(center), (size,))
        each = prior.expand((size,)) if name in self.priors else standardised(prior, jnp.asarray(data.unit), center)
        return jnp.asarray(numpyro.sample(name, each.to_event(1)))

    def _population(self, data: ValuesInGroups):
        """Mean (D,) of the population, and the Cholesky factor (D, D) of its covariance."""
        mu, tau = self._sample("mu", data, data.center), self._sample("tau", data)
        return mu, tau[:, None] * self._correlation("correlation", data)

    def _noise(self, data: ValuesInGroups):
        """Covariance of each value about the true one of its group, (K, M, D, D)."""
        if self.sigma == "known":
            return data.errors
        factor = self._sample("sigma", data)[:, None] * self._correlation("sigma_correlation", data)
        return jnp.asarray(data.errors) + factor @ factor.T

    def _correlation(self, name: str, data: ValuesInGroups):
        """Cholesky factor (D, D) of a correlation matrix."""
        return jnp.eye(len(data.components))

    def _plain(self, theta):
        return theta

    def _theta(self, data: ValuesInGroups, mu, tril):
        """Sample the true values of the groups, (K, D), one component after the other."""
        forms = _forms(self.latents, data, self.sigma)
        size = len(data.components)
        with numpyro.plate("group", len(data)):
            if self.latents == "centred":
                whole = dist.MultivariateNormal(mu, scale_tril=tril) if size > 1 else dist.Normal(mu[0], tril[0, 0])
                return jnp.reshape(jnp.asarray(numpyro.sample("theta", whole)), (-1, size))
            if size == 1:
                return sample_centred("theta", mu[0], tril[0, 0], forms[0])[:, None]
            drawn: list = []
            steps: list = []
            for i, key in enumerate(data.components):
                # Given the components before, the next one is normal.
                location = mu[i] + sum((tril[i, j] * step for j, step in enumerate(steps)), jnp.zeros(len(data)))
                drawn.append(sample_centred(f"_theta_{key}", location, tril[i, i], forms[i]))
                steps.append((drawn[-1] - location) / tril[i, i])
            return numpyro.deterministic("theta", jnp.stack(drawn, axis=-1))

    def centring(self, data: ValuesInGroups) -> pd.DataFrame:
        """Say how centred each true value is sampled, and why.

        Parameters
        ----------
        data : ValuesInGroups
            The values.

        Returns
        -------
        pandas.DataFrame
            One row an element, as in `hbm_jax.inference.Centering`: ``site, element, prior_scale, information,
            centredness, form``. Information is the inverse variance of the group's mean by its own values;
            the prior scale is what the means of all groups say of tau. 1 is centred, 0 non-centred.

        Raises
        ------
        ValueError
            In the marginal form, which samples no true values.
        """
        self._check(data)
        if self.latents == "marginal":
            raise ValueError("centring: expected latents 'centred', 'noncentred' or 'mixed'; found 'marginal'.")
        _, information = _estimates(data, self.sigma)
        rows = []
        for d, (chosen, scale) in enumerate(_forms(self.latents, data, self.sigma)):
            for k, name in enumerate(data.name):
                c = float(chosen[k])
                words = "non-centred" if c < NEAR else "centred" if c > 1.0 - NEAR else "in between"
                element = f"theta[{name}]" if len(data.components) == 1 else f"theta[{name},{data.components[d]}]"
                rows.append(("theta", element, float(scale), float(information[k, d]), c, words))
        return pd.DataFrame(rows, columns=["site", "element", "prior_scale", "information", "centredness", "form"])

    def simulate(self, key: jax.Array, data: ValuesInGroups, parameters: Mapping[str, float] | None = None):
        """Draw a simulated sample on the design of ``data``.

        Parameters
        ----------
        key : jax.Array
            Random key.
        data : ValuesInGroups
            Gives groups, numbers of values and errors.
        parameters : mapping of str to float, optional
            True values by name; those not named are drawn from their priors.

        Returns
        -------
        ValuesInGroups, dict
            The sample with new measured values, and the true value of every parameter and latent.
        """
        observed, truth = simulated(dataclasses.replace(self, latents="noncentred"), key, data, parameters)
        return data.replace_observations(observed["y"]), truth

    # What the inference and the surfaces ask of a program, beside calling it.

    @property
    def dims(self) -> dict[str, list[str]]:
        """Dimensions of sites, beyond what the plates say."""
        return {"y": ["group", "value", "component"]}

    def coords(self, data: ValuesInGroups) -> dict[str, list]:
        """Labels of the dimensions."""
        return {"group": list(data.name), "component": list(data.components)}

    @property
    def units(self) -> dict[str, str]:
        """Units of the parameters: those of the data, which it does not know."""
        return {}

    @property
    def target_accept_prob(self) -> float:
        """What `hbm_jax.sample` takes by default: short steps, for few groups whose spread may be next to nothing."""
        return 0.9

    def to_config(self) -> dict:
        """Choices as plain values, overridden priors as text; the class with these is the same model."""
        return configuration(self) | {
            "priors": priors_to_text(self.priors and {k: self.all_priors[k] for k in self.priors})
        }


@dataclass(frozen=True, kw_only=True)
class Normal(_Hierarchy):
    """The normal hierarchical model of one quantity; calling it with data is a NumPyro program.

    Parameters
    ----------
    latents : str
        ``"marginal"``: the true values theta of the groups are integrated out exactly, and `hbm_jax.latents` draws them
        back. ``"centred"``: theta ~ N(mu, tau) as written. ``"noncentred"``: in units of tau from mu. ``"mixed"``:
        each group in between, as its data ask for, see `centring`. All have the same posterior.
    sigma : str
        Of the values about the true one: ``"known"``, their errors; ``"inferred"``, a parameter ``sigma``, which is
        added in quadrature to the errors where there are some.
    priors : mapping of str to Distribution, float or str
        Overrides by parameter name, in the units of the data; a number holds the parameter fixed. The defaults,
        `all_priors`, are those of standardised values, moved and scaled to the mean and standard deviation of all
        measured values (`ValuesInGroups.center` and ``unit``).

    Raises
    ------
    ValueError
        For an unknown choice or prior name.

    Examples
    --------
    >>> sorted(Normal(sigma="inferred").all_priors)
    ['mu', 'sigma', 'tau']
    """

    def _check(self, data) -> None:
        super()._check(data)
        if len(data.components) > 1:
            raise DataError(
                f"Normal: expected one component; found {len(data.components)} ({', '.join(data.components)}). Use "
                "NormalVectors."
            )

    def _sample(self, name: str, data: ValuesInGroups, center: Any = 0.0):
        prior = self.all_priors[name]
        if not isinstance(prior, dist.Distribution):
            return jnp.full(1, float(prior))
        if name not in self.priors:
            prior = standardised(prior, jnp.asarray(data.unit)[0], jnp.broadcast_to(jnp.asarray(center), (1,))[0])
        return jnp.asarray(numpyro.sample(name, prior))[None]

    def _plain(self, theta):
        return theta[..., 0]

    @property
    def description(self) -> str:
        """One line for reports."""
        return f"Normal hierarchical model, {self.sigma} sigma, {self.latents} latents"


@dataclass(frozen=True, kw_only=True)
class NormalVectors(_Hierarchy):
    """The normal hierarchical model of several quantities at once; calling it with data is a NumPyro program.

    The true values of a group come from a multivariate normal of means mu, standard deviations tau and a correlation
    matrix, with measurements whose errors may be correlated too.

    Parameters
    ----------
    latents, sigma
        As of `Normal`; an inferred scatter has a standard deviation for each component, and correlations.
    correlated : bool
        Whether components are correlated, in the population and in an inferred scatter.
    concentration : float
        Of the prior of Lewandowski, Kurowicka & Joe for correlation matrices: 1 is uniform, more favours small
        correlations.
    priors : mapping of str to Distribution, float or str
        As of `Normal`; one prior for all components.

    Raises
    ------
    ValueError
        For an unknown choice or prior name, or a concentration that is not positive.

    Examples
    --------
    >>> sorted(NormalVectors().all_priors)
    ['mu', 'tau']
    """

    correlated: bool = field(default=True, metadata={"help": "whether components are correlated"})
    concentration: float = field(default=2.0, metadata={"help": "of the prior of correlations; 1 is uniform"})

    def __post_init__(self):
        super().__post_init__()
        if not self.concentration > 0:
            raise ValueError(f"NormalVectors: concentration: expected a positive number; found {self.concentration}.")

    def _correlation(self, name: str, data: ValuesInGroups):
        size = len(data.components)
        if not self.correlated or size < 2:
            return jnp.eye(size)
        factor = jnp.asarray(numpyro.sample(f"_{name}_factor", dist.LKJCholesky(size, self.concentration)))
        numpyro.deterministic(name, (factor @ factor.T)[np.tril_indices(size, -1)])
        return factor

    @property
    def dims(self) -> dict[str, list[str]]:
        """Dimensions of sites, beyond what the plates say."""
        vectors = {name: ["component"] for name in (*DEFAULTS, *WITHIN)}
        pairs = {name: ["pair"] for name in ("correlation", "sigma_correlation")}
        return super().dims | vectors | pairs | {"theta": ["group", "component"]}

    def coords(self, data: ValuesInGroups) -> dict[str, list]:
        """Labels of the dimensions."""
        pairs = zip(*np.tril_indices(len(data.components), -1), strict=True)
        return super().coords(data) | {"pair": [f"{data.components[j]}-{data.components[i]}" for i, j in pairs]}

    @property
    def description(self) -> str:
        """One line for reports."""
        kind = "correlated" if self.correlated else "independent"
        return f"Normal hierarchical model of vectors, {kind} components, {self.sigma} sigma, {self.latents} latents"


def _forms(latents: str, data: ValuesInGroups, sigma: str) -> list[Form]:
    """Centredness of each group, and the scale it refers to, for each component."""
    num, size = len(data), len(data.components)
    if latents != "mixed":
        return [(np.full(num, 1.0 if latents == "centred" else 0.0), 1.0)] * size
    if not isinstance(data.values, np.ndarray) or not isinstance(data.errors, np.ndarray):
        return [form(np.full(num, 3.0), 1.0, few=True)] * size  # traced: the same in all groups
    mean, information = _estimates(data, sigma)
    return [form_of(mean[:, d], information[:, d]) for d in range(size)]


def _estimates(data: ValuesInGroups, sigma: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each group by its own values alone, and the inverse square of its error, (K, D) each."""
    used, values = np.asarray(data.used), np.asarray(data.values)
    variance = np.where(used[..., None], np.diagonal(np.asarray(data.errors), axis1=-2, axis2=-1), 0.0)
    count = used.sum(axis=1)
    if sigma == "inferred":
        away = np.where(used[..., None], values - (values.sum(axis=1) / count[:, None])[:, None], 0.0)
        freedom = int((count - 1).sum())
        # Where no group has two values, half of all scatter is taken for that within groups.
        within = (away**2).sum((0, 1)) / freedom if freedom else 0.5 * np.asarray(data.unit) ** 2
        known = variance.sum((0, 1)) / count.sum()
        variance = variance + np.maximum(within - known, 1e-6 * within + 1e-300)
    weights = np.where(used[..., None], 1.0 / np.where(used[..., None], variance, 1.0), 0.0)
    information = weights.sum(axis=1)
    return (weights * values).sum(axis=1) / information, information
