"""Generalised linear regression with effects of groups, independent or as a random walk in time.

For point i with predictors x_i, in group j(i) of each term of groups with columns z_i,

    eta_i = offset_i + x_i . coef + sum over terms of z_i . effect_j(i),        y_i ~ family(eta_i),
    effect_j ~ N(0, diag(sd) C diag(sd)).

where C is a correlation matrix (Gelman & Hill 2007; Gelman, Goodrich, Gabry & Vehtari 2020 for the priors).
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist
from numpyro.distributions import constraints

from hbm_jax.data.regression.group_designs import GroupDesign
from hbm_jax.data.regression.regression_data import RegressionData
from hbm_jax.models.partial_centering import CentringWeight, sample_partially_centred
from hbm_jax.models.priors import Prior, complete_priors, distribution_to_text
from hbm_jax.models.protocol import full_name, simulated
from hbm_jax.models.regression.coefficients import COEFFICIENTS, FLAT, is_flat, sample_coefficients
from hbm_jax.models.regression.families import FAMILIES, Family, centre_of
from hbm_jax.models.regression.group_effects import group_centring_weights
from hbm_jax.names import choose, did_you_mean, listed
from hbm_jax.validation import DataError, reject_rows

SINGLE_PRIOR = re.compile(r"(coef|sd)\[(.+)\]")  # name of the prior of a single coefficient or term of groups

GROUPS: dict[str, Prior] = {"sd": dist.HalfNormal(1.5)}


@dataclass(frozen=True, kw_only=True)
class Regression:
    """Generalised linear model with effects of groups; a call with data is a NumPyro program.

    Parameters
    ----------
    family : str
        ``"normal"``, ``"student_t"``, ``"bernoulli"``, ``"binomial"``, ``"poisson"``, ``"negative_binomial"`` or
        ``"categorical"``. For ``"normal"``, a known error of the response is added to ``sigma`` in quadrature. The
        variance of ``"negative_binomial"`` with mean m is m + a m^2, where a is ``overdispersion``. ``"categorical"``
        has a coefficient vector for each category except the first, and no groups.
    link : str
        ``"logit"`` or ``"probit"`` for ``"bernoulli"`` and ``"binomial"``; the other families have a single link.
    qr : bool
        Whether the coefficients are sampled in coordinates in which the predictors are orthogonal. The posterior is the
        same.
    lkj : float
        Concentration of the prior of correlations between the effects of a group (Lewandowski, Kurowicka & Joe 2009).
    priors : mapping of str to Distribution, float or str
        Overrides by name, in the units of the data: ``intercept``; ``coef`` for all other coefficients; ``sd`` for all
        standard deviations of effects; ``coef[x]`` and ``sd[county]`` for a single column or term; and parameters of
        the family. A number fixes the parameter, and ``"flat"`` is an improper uniform prior. The defaults are
        Normal(0, 2.5) for coefficients and HalfNormal(1.5) for standard deviations of effects, both divided by the
        standard deviation of the predictor, and HalfNormal(1) for ``sigma``. For the families ``"normal"`` and
        ``"student_t"`` all are multiplied by the standard deviation of the response. The default prior of the intercept
        applies to the linear predictor at the mean of the predictors, and is centred on the mean response; a prior
        named here applies to the coefficient itself. The ``sd`` of a random walk is that of a step of mean length; its
        default prior gives the whole walk the scatter of independent effects.

    Raises
    ------
    ValueError
        For an unknown option or prior name.

    Examples
    --------
    >>> sorted(Regression().all_priors)
    ['coef', 'intercept', 'sd', 'sigma']
    """

    family: str = field(default="normal", metadata={"help": ", ".join(FAMILIES)})
    link: str = field(default="", metadata={"help": "logit or probit, for families with both"})
    qr: bool = field(default=True, metadata={"help": "whether to sample coefficients of orthogonal predictors"})
    lkj: float = field(default=2.0, metadata={"help": "concentration of the prior of correlations of effects"})
    priors: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self):
        choose("family", self.family, tuple(FAMILIES))
        object.__setattr__(self, "link", self.link or self._family.links[0])
        choose(f"link of the family {self.family}", self.link, self._family.links)
        if not self.lkj > 0:
            raise ValueError(f"Regression: lkj: expected a positive concentration; found {self.lkj}.")
        object.__setattr__(self, "priors", dict(self.priors))
        self.all_priors  # noqa: B018 - raises for unknown names

    @property
    def _family(self) -> Family:
        return FAMILIES[self.family]

    @property
    def all_priors(self) -> dict[str, Any]:
        """Every parameter with its prior: overrides in the units of the data, defaults for standardised variables."""
        defaults: dict[str, Any] = COEFFICIENTS | GROUPS | dict(self._family.parameters)
        singles = {name: FLAT for name in self.priors if SINGLE_PRIOR.fullmatch(name)}
        proper = {name: prior for name, prior in self.priors.items() if not is_flat(prior)}
        priors = complete_priors(defaults | singles, proper, "Regression")
        for name in self.priors.keys() - proper.keys():
            complete_priors(defaults | singles, {name: 0.0}, "Regression")  # raises for unknown names
            priors[name] = FLAT
        return priors

    def __call__(self, data: RegressionData, observed: bool = True, recover: bool = False):
        """Run the NumPyro program.

        Parameters
        ----------
        data : RegressionData
            The points. With ``observed=False`` the response is drawn, and everything else is the design.
        observed : bool
            Whether to condition on the response.
        recover : bool
            No effect, because no parameter is integrated out.
        """
        self._check(data)
        family = self._family
        unit = jnp.asarray(data.y_std) if family.scaled else jnp.ones(())
        num = len(data.categories) - 1 if self.family == "categorical" else 0
        coef = sample_coefficients(
            data,
            self.all_priors,
            self.priors,
            unit=unit,
            centre=centre_of(family, self.link, data),
            qr=self.qr,
            num=num,
        )
        eta = (jnp.asarray(data.X) * jnp.asarray(data.within)) @ coef.T
        eta = eta + (jnp.asarray(data.offset)[:, None] if num else jnp.asarray(data.offset))
        scale = float(data.y_std) if family.scaled and isinstance(data.y_std, np.ndarray) else 1.0
        for group, weights in zip(data.groups, group_centring_weights(self.link, scale, data), strict=True):
            effects = self._effects(group, coef, unit, weights)
            eta = eta + (jnp.asarray(group.values) * effects[jnp.asarray(group.index)]).sum(-1)
        parameters = {name: self._positive(name, unit if name == "sigma" else 1.0) for name in family.parameters}
        value = jnp.asarray(data.y)
        if family.values != "real":
            value = jnp.round(value).astype(int)
        with numpyro.plate("point", np.shape(data.X)[0]):
            numpyro.sample(
                "observed", family.distribution(eta, self.link, parameters, data), obs=value if observed else None
            )

    def _effects(self, group: GroupDesign, coef, unit, weights: list[CentringWeight]):
        """Sample the effects of a term, record them, and return them plus their means, (J, Q)."""
        num, size = len(group.labels), len(group.columns)
        units = unit / jnp.stack([_spread(group.values, c) for c in range(size)])
        units = units / np.sqrt(num) if group.walk else units
        site = f"{group.name}_sd"
        if size == 1:
            sd = self._positive("sd", units[0], site, f"sd[{group.name}]").reshape(1)
        else:
            with numpyro.plate(f"{group.name}_term", size):
                sd = jnp.broadcast_to(self._positive("sd", units, site, f"sd[{group.name}]"), (size,))
        if group.walk:
            effects = self._random_walks(group, sd, weights)
            self._record(group, effects)
            return effects
        factor = jnp.eye(size)
        if size > 1 and group.correlated:
            factor = numpyro.sample(f"_{group.name}_correlation", dist.LKJCholesky(size, self.lkj))
            below = np.tril_indices(size, -1)
            with numpyro.plate(f"{group.name}_pair", len(below[0])):
                numpyro.deterministic(f"{group.name}_correlation", (factor @ factor.T)[below])
        means = jnp.asarray(group.between) @ coef
        columns: list[Any] = []
        standard: list[Any] = []  # standard normals, with which the effects of later columns are correlated
        for c in range(size):
            location = means[:, c] + sd[c] * sum((factor[c, d] * z for d, z in enumerate(standard)), jnp.zeros(num))
            scale = sd[c] * factor[c, c]
            with numpyro.plate(group.factor, num):
                columns.append(sample_partially_centred(f"_{group.name}_{c}", location, scale, weights[c]))
            standard.append((columns[c] - location) / scale)
        effects = jnp.stack(columns, axis=-1)
        self._record(group, effects - means)
        return effects

    def _random_walks(self, group: GroupDesign, sd, weights: list[CentringWeight]):
        """Sample random walks with zero mean, (J, Q), by the amplitudes of their principal components."""
        modes = jnp.asarray(group.modes)
        walks = []
        for c in range(len(group.columns)):
            with numpyro.plate(f"{group.name}_mode", modes.shape[1]):
                amplitudes = sample_partially_centred(
                    f"_{group.name}_{c}", jnp.zeros(modes.shape[1]), sd[c], weights[c]
                )
            walks.append(modes @ amplitudes)
        return jnp.stack(walks, axis=-1)

    def _record(self, group: GroupDesign, effects) -> None:
        """Record effects (J, Q); those of a single column without the axis of columns."""
        name, (num, size) = f"{group.name}_effect", effects.shape
        if size == 1:
            with numpyro.plate(group.factor, num):
                numpyro.deterministic(name, effects[:, 0])
            return
        with numpyro.plate(group.factor, num, dim=-2), numpyro.plate(f"{group.name}_term", size, dim=-1):
            numpyro.deterministic(name, effects)

    def _positive(self, name: str, unit: Any, site: str = "", single: str = ""):
        """Sample a positive parameter from the prior ``single`` if the user set it, else ``name``.

        Default priors are multiplied by ``unit``.
        """
        key = single if single in self.priors else name
        prior = self.all_priors[key]
        if isinstance(prior, float | int):
            return jnp.asarray(float(prior))
        if is_flat(prior):
            prior = dist.ImproperUniform(constraints.positive, (), ())
        elif key not in self.priors and isinstance(prior, dist.HalfNormal):
            prior = dist.HalfNormal(prior.scale * unit)
        return numpyro.sample(site or name, prior)

    def _check(self, data) -> None:
        """Raise an error where the data do not fit the family, or a prior names an unknown term."""
        if not isinstance(data, RegressionData):
            raise DataError(
                f"Regression: expected RegressionData; found {type(data).__name__}. Read them with "
                "hbm_jax.data.read_regression, or use RegressionData.from_columns or from_arrays."
            )
        for name in self.priors:
            match = SINGLE_PRIOR.fullmatch(name)
            if match is None:
                continue
            known = data.terms if match[1] == "coef" else tuple(group.name for group in data.groups)
            if match[2] not in known:
                raise DataError(
                    f"prior.{name}: {match[2]!r} is not in {data.source.formula}{did_you_mean(match[2], known)}: "
                    f"expected one of {listed(known)}; found {match[2]!r}."
                )
        values, text = self._family.values, data.categories
        expected = "text" if values == "category" else "numbers or two categories" if values == "binary" else "numbers"
        valid = bool(text) if values == "category" else not text or (values == "binary" and len(text) == 2)
        if not valid:
            response = f"text ({listed(text)})" if text else "numbers"
            raise DataError(f"{data.response}: expected {expected} for the family {self.family!r}; found {response}.")
        if self.family == "categorical" and data.groups:
            raise DataError(
                f"Regression: expected no terms of groups for the family 'categorical'; found {data.groups[0].name}."
            )
        if self.family == "binomial" and "trials" not in data.source.roles:
            raise DataError("Regression: the family 'binomial' expects trials=, the column of numbers of trials.")
        if isinstance(data.y, np.ndarray) and values in ("count", "binary"):
            invalid = (data.y < 0) | (data.y != np.round(data.y)) | ((values == "binary") & (data.y > 1))
            reject_rows(invalid, data.y, data.response, "0 or 1" if values == "binary" else "a count", data.name)
        if "error" in data.source.roles and self.family != "normal":
            raise DataError(
                f"Regression: expected the family 'normal' with known errors of the response; found {self.family!r}."
            )

    def simulate(self, key, data: RegressionData, parameters: Mapping[str, float] | None = None):
        """Draw a simulated sample with the design of ``data``.

        Parameters
        ----------
        key : jax.Array
            Random key.
        data : RegressionData
            The design.
        parameters : mapping of str to float, optional
            True values by the names of the priors, such as ``coef[x]``; parameters not named are drawn from their
            priors.

        Returns
        -------
        RegressionData, dict
            The sample with a new response, and the true value of every parameter and effect.
        """
        model = dataclasses.replace(self, priors=dict(self.priors) | dict.fromkeys(parameters or {}, 0.0))
        observed, truth = simulated(model, key, data, parameters)
        return data.replace_observations(observed["observed"]), truth

    @property
    def dims(self) -> dict[str, list[str]]:
        """Dimensions of sites that their plates do not name."""
        return {"observed": ["point"]}

    def coords(self, data: RegressionData) -> dict[str, list]:
        """Return the labels of the dimensions: points, coefficients, groups."""
        labels: dict[str, list] = {"point": list(data.name), "term": list(data.terms)}
        if self.family == "categorical":
            labels["category"] = list(data.categories[1:])
        for group in data.groups:
            below = np.tril_indices(len(group.columns), -1)
            pairs = [f"{group.columns[a]}, {group.columns[b]}" for a, b in zip(*below, strict=True)]
            labels |= {group.factor: list(group.labels), f"{group.name}_term": list(group.columns)}
            labels |= {f"{group.name}_pair": pairs}
        return labels

    @property
    def units(self) -> dict[str, str]:
        """Units of the parameters: empty, because they are those of the data."""
        return {}

    @property
    def target_accept_prob(self) -> float:
        """Default of `hbm_jax.sample`: above 0.8, because sd may be close to 0 where there are few groups."""
        return 0.95

    @property
    def description(self) -> str:
        """One-line description for reports."""
        return f"Regression, family {self.family}, link {self.link}"

    def to_config(self) -> dict:
        """Return options as plain values and overridden priors as text; ``Regression(**config)`` is the same model."""
        priors = {name: self.all_priors[name] for name in self.priors}
        text = {name: FLAT if is_flat(prior) else distribution_to_text(prior) for name, prior in priors.items()}
        names = [item.name for item in dataclasses.fields(self) if item.name != "priors"]
        config = {name: getattr(self, name) for name in names} | {"priors": text}
        name = full_name(type(self))
        return config if name is None else config | {"class": name}


def _spread(values, column: int):
    """Return the standard deviation of a column, or its root mean square where the column is constant."""
    x = jnp.asarray(values)[:, column]
    deviation = x.std()
    return jnp.where(deviation > 1e-9 * jnp.abs(x).max(), deviation, jnp.sqrt((x**2).mean()))
