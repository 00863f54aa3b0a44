"""Normal hierarchical models of one or several quantities, with a choice of parametrisations.

For value m of group k,

    theta_k ~ N(mu, tau^2),    y_km ~ N(theta_k, sigma_km^2),

where the errors sigma_km are known, or a common sigma is inferred, or both are added in quadrature. Vectors have a
population N(mu, Sigma) with standard deviations tau and a correlation matrix. Where the data constrain theta_k weakly,
the posterior of (theta_k, log tau) is a funnel that a centred parametrisation explores poorly; where they constrain it
well, the non-centred one is slow (Betancourt & Girolami 2013, arXiv:1312.0906). The marginal form avoids both.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist

from hbm_jax.data.linear.values_in_groups import ValuesInGroups
from hbm_jax.distributions import GroupedNormal
from hbm_jax.distributions.normal.grouped_normal import WhitenedNoise, whiten_noise
from hbm_jax.models.base import PopulationModel, without_padding
from hbm_jax.models.partial_centering import centring_weight_from_estimates, sample_partially_centred
from hbm_jax.models.priors import Prior, sample_shaped
from hbm_jax.precomputation import padded_axis, padded_size
from hbm_jax.validation import DataError, OptionError, Remedy

if TYPE_CHECKING:
    import pandas as pd

NEAR = 0.05  # weights this close to 0 or 1 are called non-centred or centred in the table of `centring`

# Priors for standardised values: minus the mean of all values, in units of their standard deviation.
DEFAULTS: dict[str, Prior] = {"mu": dist.Normal(0.0, 3.0), "tau": dist.HalfNormal(2.0)}
WITHIN: dict[str, Prior] = {"sigma": dist.HalfNormal(2.0)}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class BoundValues:
    """Values of D components in K groups of at most M values, bound to a `Normal` or `NormalVectors`.

    Attributes
    ----------
    components : tuple of str
        Names of the components.
    values, errors, used, center, unit
        As in `hbm_jax.data.ValuesInGroups`.
    noise : WhitenedNoise or None
        Factorised covariances of the errors; None for an inferred sigma.
    weights, reference : (D, K), (D,)
        Weights of the partial non-centring of the true values, and its reference scales.
    in_sample : (K,) or None
        False for groups of padding; None without any.
    """

    components: tuple[str, ...] = field(metadata={"static": True})
    values: Any
    errors: Any
    used: Any
    center: Any
    unit: Any
    noise: WhitenedNoise | None
    weights: Any
    reference: Any
    in_sample: Any = None


@dataclass(frozen=True, kw_only=True)
class _Hierarchy(PopulationModel):
    """Common part of `Normal` and `NormalVectors`; sites of vectors have the dimension ``component``."""

    Bound = BoundValues
    priors_in_data_units = True

    latents: Literal["marginal", "centred", "noncentred", "mixed"] = field(
        default="marginal", metadata={"help": "how the true values of the groups are treated"}
    )
    sigma: Literal["known", "inferred"] = field(
        default="known", metadata={"help": "standard deviation of values within a group"}
    )
    observed_sites = ("y",)
    target_accept_prob = 0.9  # tau may be close to 0 where there are few groups

    @property
    def default_priors(self) -> dict[str, Prior]:
        """Default priors, for standardised values."""
        return DEFAULTS | (WITHIN if self.sigma == "inferred" else {})

    def bind(self, data: ValuesInGroups) -> BoundValues:
        """Return values, factorised errors and weights of the partial non-centring."""
        self._check(data)
        arrays = {key: np.asarray(getattr(data, key)) for key in ("values", "errors", "used", "center", "unit")}
        noise = whiten_noise(arrays["errors"], arrays["used"]) if self.sigma == "known" else None
        weights, reference = _centring_weights(self.latents, data, self.sigma)
        return BoundValues(data.components, **arrays, noise=noise, weights=weights, reference=reference)

    def padded(self, bound: BoundValues) -> tuple[BoundValues, dict[str, int]]:
        """Return the values with unused values and groups added, as `hbm_jax.models.base.PopulationModel.padded`.

        Nothing is added where true values are sampled.
        """
        num, columns = np.shape(bound.used)
        rows, size = padded_size(num), padded_size(columns)
        if self.latents != "marginal":
            return bound, {}

        def of_values(array, value=None):
            return padded_axis(padded_axis(array, size, 1, value), rows)

        noise = bound.noise
        if noise is not None:
            groups = (padded_axis(array, rows) for array in (noise.covariance, noise.log_det))
            noise = WhitenedNoise(of_values(noise.inverse, 0.0), *groups)
        padded = dataclasses.replace(
            bound,
            values=of_values(bound.values),
            errors=of_values(bound.errors),
            used=of_values(bound.used, False),
            noise=noise,
            weights=padded_axis(bound.weights, rows, 1),
            in_sample=np.arange(rows) < num,
        )
        return padded, {"group": num, "value": columns}

    def program(self, bound: BoundValues, observed: bool, recover: bool) -> None:
        """Run the NumPyro program; ``recover`` draws the true values of the groups where they are integrated out."""
        mu, tau = self._sample("mu", bound, bound.center), self._sample("tau", bound)
        tril = tau[:, None] * self._correlation("correlation", bound)
        noise = jnp.asarray(bound.errors)
        if self.sigma == "inferred":
            factor = self._sample("sigma", bound)[:, None] * self._correlation("sigma_correlation", bound)
            noise = noise + factor @ factor.T
        loc, scale_tril = mu, tril
        if self.latents != "marginal":
            loc, scale_tril = self._theta(bound, mu, tril), jnp.zeros_like(tril)
        values = GroupedNormal(loc, scale_tril, noise, bound.used, bound.noise)
        with numpyro.plate("group", len(bound.values)), without_padding(bound.in_sample):
            drawn = numpyro.sample("y", values, obs=jnp.asarray(bound.values) if observed else None)
            if recover and self.latents == "marginal":
                theta = values.conditional(drawn).sample(numpyro.prng_key())
                numpyro.deterministic("theta", self._plain(theta))

    def _check(self, data) -> None:
        """Raise an error for data that cannot constrain the parameters."""
        model = type(self).__name__
        advice = "Read them with hbm_jax.data.read_values, or use ValuesInGroups.from_columns."
        self.check_container(data, ValuesInGroups, advice)
        if len(data) < 2:
            raise DataError(
                f"{model}: expected two groups or more, to estimate their population; found {len(data)}. Name the "
                "groups in a column group."
            )
        if self.sigma == "known" and not data.has_errors:
            columns = ", ".join(f"sigma_{key}" for key in data.components)
            raise DataError(
                f"{model}: sigma='known' expects errors of the values ({columns}); found none. Use sigma='inferred'.",
                [Remedy("sigma", "inferred")],
            )
        if self.sigma == "inferred" and not data.has_errors and np.shape(data.used)[1] < 2:
            raise DataError(
                f"{model}: sigma='inferred' expects errors, or groups of several values, to separate sigma from tau; "
                "found neither."
            )

    def _shape(self, bound: BoundValues) -> tuple[int, ...]:
        """Return the shape of the parameters."""
        return (len(bound.components),)

    def _sample(self, name: str, bound: BoundValues, center: Any = 0.0):
        """Sample a parameter, (D,); a default prior is transformed to the units of the data."""
        shape = self._shape(bound)
        unit, center = (jnp.broadcast_to(x, bound.unit.shape).reshape(shape) for x in (bound.unit, center))
        prior = self.prior_in_data_units(name, unit, center)
        return jnp.reshape(sample_shaped(name, prior, shape), (-1,))

    def _correlation(self, name: str, bound: BoundValues):
        """Return the Cholesky factor (D, D) of a correlation matrix."""
        return jnp.eye(len(bound.components))

    def _plain(self, theta):
        """Return true values as they are recorded: a single quantity has no axis of components."""
        return theta

    def _theta(self, bound: BoundValues, mu, tril):
        """Sample the true values of the groups, (K, D), component by component."""
        num, size = len(bound.values), len(bound.components)
        centring_weights = list(zip(bound.weights, bound.reference, strict=True))
        with numpyro.plate("group", num):
            if self.latents == "centred":
                joint = dist.MultivariateNormal(mu, scale_tril=tril) if size > 1 else dist.Normal(mu[0], tril[0, 0])
                return jnp.reshape(jnp.asarray(numpyro.sample("theta", joint)), (-1, size))
            if size == 1:
                return sample_partially_centred("theta", mu[0], tril[0, 0], centring_weights[0])[:, None]
            theta: list = []
            standard: list = []
            for i, key in enumerate(bound.components):
                # Conditional on the previous components, the next one is normal.
                location = mu[i] + sum((tril[i, j] * z for j, z in enumerate(standard)), jnp.zeros(num))
                theta.append(sample_partially_centred(f"_theta_{key}", location, tril[i, i], centring_weights[i]))
                standard.append((theta[-1] - location) / tril[i, i])
            return numpyro.deterministic("theta", jnp.stack(theta, axis=-1))

    def centring(self, data: ValuesInGroups) -> "pd.DataFrame":
        """Return the partial non-centring with which each true value is sampled.

        Parameters
        ----------
        data : ValuesInGroups
            The values.

        Returns
        -------
        pandas.DataFrame
            One row per element, as in `hbm_jax.inference.Centering`: ``site, element, prior_scale, information,
            weight, parametrisation``. ``information`` is the inverse variance of the mean of the group, ``prior_scale``
            the estimate of tau from the means of all groups, and ``weight`` is 1 for the centred parametrisation and 0
            for the non-centred one.

        Raises
        ------
        ValueError
            With ``latents="marginal"``, where true values are not sampled.
        """
        self._check(data)
        if self.latents == "marginal":
            raise ValueError("centring: expected latents 'centred', 'noncentred' or 'mixed'; found 'marginal'.")
        _, information = _estimates(data, self.sigma)
        rows = []
        for d, (weights, scale) in enumerate(zip(*_centring_weights(self.latents, data, self.sigma), strict=True)):
            for k, name in enumerate(data.name):
                weight = float(weights[k])
                description = "non-centred" if weight < NEAR else "centred" if weight > 1.0 - NEAR else "in between"
                element = f"theta[{name}]" if len(data.components) == 1 else f"theta[{name},{data.components[d]}]"
                rows.append(("theta", element, float(scale), float(information[k, d]), weight, description))
        import pandas as pd  # here, because no other part of a model needs it

        return pd.DataFrame(
            rows, columns=["site", "element", "prior_scale", "information", "weight", "parametrisation"]
        )

    def simulate(self, key: jax.Array, data: ValuesInGroups, parameters: Mapping[str, float] | None = None):
        """Draw a simulated sample, with true values of the groups from which the values are drawn.

        Arguments and result are those of `hbm_jax.models.base.PopulationModel.simulate`.
        """
        return PopulationModel.simulate(dataclasses.replace(self, latents="noncentred"), key, data, parameters)

    @property
    def dims(self) -> dict[str, list[str]]:
        """Dimensions of sites that their plates do not name."""
        return {"y": ["group", "value", "component"]}

    def coords(self, data: ValuesInGroups) -> dict[str, list]:
        """Return the labels of the dimensions."""
        return {"group": list(data.name), "component": list(data.components)}


@dataclass(frozen=True, kw_only=True)
class Normal(_Hierarchy):
    """Normal hierarchical model of one quantity; a call with data is a NumPyro program.

    Parameters
    ----------
    latents : str
        ``"marginal"``: the true values theta of the groups are integrated out exactly; `hbm_jax.latents` draws them
        from their conditional posterior. ``"centred"``: theta ~ N(mu, tau) is sampled directly. ``"noncentred"``:
        (theta - mu) / tau is sampled. ``"mixed"``: a partial non-centring of each group with a weight computed from its
        data, see `centring`. All have the same posterior.
    sigma : str
        Standard deviation of values about the true value of their group: ``"known"``, their errors; or ``"inferred"``,
        a parameter ``sigma``, added in quadrature to the errors if there are any.
    priors : mapping of str to Distribution, float or str
        Overrides by parameter name, in the units of the data; a number fixes the parameter. The defaults,
        `all_priors`, are for standardised values and are transformed by the mean and standard deviation of all measured
        values (`ValuesInGroups.center` and ``unit``).

    Raises
    ------
    ValueError
        For an unknown option or prior name.

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

    def _shape(self, bound: BoundValues) -> tuple[int, ...]:
        """Return the shape of a parameter: a scalar."""
        return ()

    def _plain(self, theta):
        """Return true values without the axis of components."""
        return theta[..., 0]

    @property
    def description(self) -> str:
        """One-line description for reports."""
        return f"Normal hierarchical model, {self.sigma} sigma, {self.latents} latents"


@dataclass(frozen=True, kw_only=True)
class NormalVectors(_Hierarchy):
    """Normal hierarchical model of several quantities; a call with data is a NumPyro program.

    The true values of a group are drawn from a multivariate normal with means mu, standard deviations tau and a
    correlation matrix. Errors of the measurements may be correlated too.

    Parameters
    ----------
    latents, sigma : str
        As for `Normal`; an inferred scatter has a standard deviation for each component, and correlations.
    correlated : bool
        Whether components are correlated, in the population and in an inferred scatter.
    concentration : float
        Concentration of the prior of Lewandowski, Kurowicka & Joe for correlation matrices: 1 is uniform, and larger
        values favour small correlations.
    priors : mapping of str to Distribution, float or str
        As for `Normal`; each applies to all components.

    Raises
    ------
    ValueError
        For an unknown option or prior name, or a concentration that is not positive.

    Examples
    --------
    >>> sorted(NormalVectors().all_priors)
    ['mu', 'tau']
    """

    correlated: bool = field(default=True, metadata={"help": "whether components are correlated"})
    concentration: float = field(default=2.0, metadata={"help": "of the prior of correlations (LKJ); 1 is uniform"})

    def check_options(self) -> None:
        """Raise ValueError for a concentration that is not positive."""
        if not self.concentration > 0:
            raise OptionError(f"NormalVectors: concentration: expected a positive number; found {self.concentration}.")

    def _correlation(self, name: str, bound: BoundValues):
        """Sample a correlation matrix and return its Cholesky factor, (D, D)."""
        size = len(bound.components)
        if not self.correlated or size < 2:
            return jnp.eye(size)
        factor = jnp.asarray(numpyro.sample(f"_{name}_factor", dist.LKJCholesky(size, self.concentration)))
        numpyro.deterministic(name, (factor @ factor.T)[np.tril_indices(size, -1)])
        return factor

    @property
    def dims(self) -> dict[str, list[str]]:
        """Dimensions of sites that their plates do not name."""
        vectors = {name: ["component"] for name in (*DEFAULTS, *WITHIN)}
        pairs = {name: ["pair"] for name in ("correlation", "sigma_correlation")}
        return super().dims | vectors | pairs | {"theta": ["group", "component"]}

    def coords(self, data: ValuesInGroups) -> dict[str, list]:
        """Return the labels of the dimensions."""
        pairs = zip(*np.tril_indices(len(data.components), -1), strict=True)
        return super().coords(data) | {"pair": [f"{data.components[j]}-{data.components[i]}" for i, j in pairs]}

    @property
    def description(self) -> str:
        """One-line description for reports."""
        kind = "correlated" if self.correlated else "independent"
        return f"Normal hierarchical model of vectors, {kind} components, {self.sigma} sigma, {self.latents} latents"


def _centring_weights(latents: str, data: ValuesInGroups, sigma: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of the partial non-centring of D components of K groups, (D, K), and their scales, (D,)."""
    num_groups, num_components = len(data), len(data.components)
    if latents != "mixed":
        return np.full((num_components, num_groups), 1.0 if latents == "centred" else 0.0), np.ones(num_components)
    mean, information = _estimates(data, sigma)
    pairs = [centring_weight_from_estimates(mean[:, d], information[:, d]) for d in range(num_components)]
    return np.stack([weights for weights, _ in pairs]), np.array([scale for _, scale in pairs])


def _estimates(data: ValuesInGroups, sigma: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted mean of each group and its inverse variance, (K, D) each."""
    used, values = np.asarray(data.used), np.asarray(data.values)
    variance = np.where(used[..., None], np.diagonal(np.asarray(data.errors), axis1=-2, axis2=-1), 0.0)
    count = used.sum(axis=1)
    if sigma == "inferred":
        deviation = np.where(used[..., None], values - (values.sum(axis=1) / count[:, None])[:, None], 0.0)
        freedom = int((count - 1).sum())
        # If no group has two values, half of the total variance is assumed to be within groups.
        within = (deviation**2).sum((0, 1)) / freedom if freedom else 0.5 * np.asarray(data.unit) ** 2
        mean_variance = variance.sum((0, 1)) / count.sum()
        variance = variance + np.maximum(within - mean_variance, 1e-6 * within + 1e-300)
    weights = np.where(used[..., None], 1.0 / np.where(used[..., None], variance, 1.0), 0.0)
    information = weights.sum(axis=1)
    return (weights * values).sum(axis=1) / information, information
