"""Generalised linear regression with effects that vary between groups or walk along a time.

For point i with predictors x_i, in group j(i) of each term of groups with columns z_i,

    eta_i = offset_i + x_i . coef + sum over terms of z_i . effect_j(i),        y_i ~ family(eta_i),
    effect_j ~ N(0, diag(sd) C diag(sd)).

(Gelman & Hill 2007; Gelman, Goodrich, Gabry & Vehtari 2020 for the priors.)
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
from hbm_jax.models.partial_centering import Form, sample_centred
from hbm_jax.models.priors import Prior, complete_priors, distribution_to_text
from hbm_jax.models.protocol import full_name, simulated
from hbm_jax.models.regression.coefficients import COEFFICIENTS, FLAT, is_flat, sample_coefficients
from hbm_jax.models.regression.families import FAMILIES, Family, centre_of
from hbm_jax.models.regression.group_effects import group_forms
from hbm_jax.names import choose, did_you_mean, listed
from hbm_jax.validation import DataError, reject_rows

ONE = re.compile(r"(coef|sd)\[(.+)\]")  # a prior of one coefficient or term of groups

GROUPS: dict[str, Prior] = {"sd": dist.HalfNormal(1.5)}


@dataclass(frozen=True, kw_only=True)
class Regression:
    """Generalised linear model with varying effects; a call with data is a NumPyro program.

    Parameters
    ----------
    family : str
        ``"normal"``, ``"student_t"``, ``"bernoulli"``, ``"binomial"``, ``"poisson"``, ``"negative_binomial"`` or
        ``"categorical"``. A known error of the response is added to ``sigma`` in quadrature (normal); ``"categorical"``
        has a coefficient for each category but the first, and no groups; ``overdispersion`` a of the negative binomial
        is that of the variance m + a m^2.
    link : str
        ``"logit"`` or ``"probit"`` for ``"bernoulli"`` and ``"binomial"``; the others have one link.
    qr : bool
        Whether the coefficients are sampled in coordinates in which the predictors are orthogonal. The posterior is the
        same.
    lkj : float
        Concentration of the prior of correlations between the effects of a group (Lewandowski, Kurowicka & Joe 2009).
    priors : mapping of str to Distribution, float or str
        Overrides in the units of the data, by name: ``intercept``, ``coef`` (every other coefficient), ``sd`` (every
        standard deviation of effects), ``coef[x]``, ``sd[county]`` (those of one column or term) and parameters of the
        family. A number holds it fixed, ``"flat"`` is an improper uniform prior. The defaults are Normal(0, 2.5) for
        coefficients and HalfNormal(1.5) for standard deviations of effects, over the standard deviation of the
        predictor, and HalfNormal(1) for ``sigma``, all times that of the response for families ``"normal"`` and
        ``"student_t"``. The default for the intercept is about the mean response at the mean of the predictors; one
        that is given is that of the coefficient itself. Effects that walk have standard deviations of a step of mean
        length; by default they wander as far in all as others scatter.

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
    link: str = field(default="", metadata={"help": "logit or probit, where the family has both"})
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
        singles = {name: FLAT for name in self.priors if ONE.fullmatch(name)}
        given = {name: prior for name, prior in self.priors.items() if not is_flat(prior)}
        read = complete_priors(defaults | singles, given, "Regression")
        for name in self.priors.keys() - given.keys():
            complete_priors(defaults | singles, {name: 0.0}, "Regression")
            read[name] = FLAT
        return read

    def __call__(self, data: RegressionData, observed: bool = True, recover: bool = False):
        """Run the NumPyro program.

        Parameters
        ----------
        data : RegressionData
            The points. With ``observed=False`` everything but the response is the design, and this is drawn.
        observed : bool
            Whether to condition on the response.
        recover : bool
            Without effect: nothing is integrated out.
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
        for group, forms in zip(data.groups, group_forms(self.link, scale, data), strict=True):
            effects = self._effects(group, coef, unit, forms)
            eta = eta + (jnp.asarray(group.values) * effects[jnp.asarray(group.index)]).sum(-1)
        parameters = {name: self._positive(name, unit if name == "sigma" else 1.0) for name in family.parameters}
        value = jnp.asarray(data.y)
        if family.values != "real":
            value = jnp.round(value).astype(int)
        with numpyro.plate("point", np.shape(data.X)[0]):
            numpyro.sample(
                "observed", family.distribution(eta, self.link, parameters, data), obs=value if observed else None
            )

    def _effects(self, group: GroupDesign, coef, unit, forms: list[Form]):
        """Sample the effects of a term, and return them with what they are centred on, (J, Q)."""
        num, size = len(group.labels), len(group.columns)
        each = unit / jnp.stack([_spread(group.values, c) for c in range(size)])
        each = each / np.sqrt(num) if group.walk else each
        called = f"{group.name}_sd"
        if size == 1:
            sd = self._positive("sd", each[0], called, f"sd[{group.name}]").reshape(1)
        else:
            with numpyro.plate(f"{group.name}_term", size):
                sd = jnp.broadcast_to(self._positive("sd", each, called, f"sd[{group.name}]"), (size,))
        if group.walk:
            effects = self._walks(group, sd, forms)
            self._record(group, effects)
            return effects
        factor = jnp.eye(size)
        if size > 1 and group.correlated:
            factor = numpyro.sample(f"_{group.name}_correlation", dist.LKJCholesky(size, self.lkj))
            below = np.tril_indices(size, -1)
            with numpyro.plate(f"{group.name}_pair", len(below[0])):
                numpyro.deterministic(f"{group.name}_correlation", (factor @ factor.T)[below])
        means = jnp.asarray(group.between) @ coef
        whole: list[Any] = []
        free: list[Any] = []  # standard normals, from which those that follow are correlated
        for c in range(size):
            location = means[:, c] + sd[c] * sum((factor[c, d] * one for d, one in enumerate(free)), jnp.zeros(num))
            scale = sd[c] * factor[c, c]
            with numpyro.plate(group.factor, num):
                whole.append(sample_centred(f"_{group.name}_{c}", location, scale, forms[c]))
            free.append((whole[c] - location) / scale)
        effects = jnp.stack(whole, axis=-1)
        self._record(group, effects - means)
        return effects

    def _walks(self, group: GroupDesign, sd, forms: list[Form]):
        """Sample random walks less their means, by their principal components, (J, Q)."""
        modes = jnp.asarray(group.modes)
        walks = []
        for c in range(len(group.columns)):
            with numpyro.plate(f"{group.name}_mode", modes.shape[1]):
                one = sample_centred(f"_{group.name}_{c}", jnp.zeros(modes.shape[1]), sd[c], forms[c])
            walks.append(modes @ one)
        return jnp.stack(walks, axis=-1)

    def _record(self, group: GroupDesign, effects) -> None:
        """Record effects (J, Q), without the axis of columns where there is one."""
        name, (num, size) = f"{group.name}_effect", effects.shape
        if size == 1:
            with numpyro.plate(group.factor, num):
                numpyro.deterministic(name, effects[:, 0])
            return
        with numpyro.plate(group.factor, num, dim=-2), numpyro.plate(f"{group.name}_term", size, dim=-1):
            numpyro.deterministic(name, effects)

    def _positive(self, name: str, unit: Any, called: str = "", one: str = ""):
        """Sample a positive parameter under the prior of its own or of its kind; defaults are of unit scale."""
        key = one if one in self.priors else name
        prior = self.all_priors[key]
        if isinstance(prior, float | int):
            return jnp.asarray(float(prior))
        if is_flat(prior):
            prior = dist.ImproperUniform(constraints.positive, (), ())
        elif key not in self.priors and isinstance(prior, dist.HalfNormal):
            prior = dist.HalfNormal(prior.scale * unit)
        return numpyro.sample(called or name, prior)

    def _check(self, data) -> None:
        if not isinstance(data, RegressionData):
            raise DataError(
                f"Regression: expected RegressionData; found {type(data).__name__}. Read them with "
                "hbm_jax.data.read_regression, or use RegressionData.from_columns or from_arrays."
            )
        for name in self.priors:
            one = ONE.fullmatch(name)
            if one is None:
                continue
            known = data.terms if one[1] == "coef" else tuple(group.name for group in data.groups)
            if one[2] not in known:
                raise DataError(
                    f"prior.{name}: {one[2]!r} is not in {data.source.formula}{did_you_mean(one[2], known)}: expected "
                    f"one of {listed(known)}; found {one[2]!r}."
                )
        values, text = self._family.values, data.categories
        wanted = "text" if values == "category" else "numbers or two categories" if values == "binary" else "numbers"
        fits = bool(text) if values == "category" else not text or (values == "binary" and len(text) == 2)
        if not fits:
            found = f"text ({listed(text)})" if text else "numbers"
            raise DataError(f"{data.response}: expected {wanted} for the family {self.family!r}; found {found}.")
        if self.family == "categorical" and data.groups:
            raise DataError(
                f"Regression: expected no terms of groups for the family 'categorical'; found {data.groups[0].name}."
            )
        if self.family == "binomial" and "trials" not in data.source.roles:
            raise DataError("Regression: the family 'binomial' expects trials=, the column of numbers of trials.")
        if isinstance(data.y, np.ndarray) and values in ("count", "binary"):
            bad = (data.y < 0) | (data.y != np.round(data.y)) | ((values == "binary") & (data.y > 1))
            reject_rows(bad, data.y, data.response, "0 or 1" if values == "binary" else "a count", data.name)
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
            True values by the names of the priors, such as ``coef[x]``; those not named are drawn from their priors.

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
        found: dict[str, list] = {"point": list(data.name), "term": list(data.terms)}
        if self.family == "categorical":
            found["category"] = list(data.categories[1:])
        for group in data.groups:
            below = np.tril_indices(len(group.columns), -1)
            pairs = [f"{group.columns[a]}, {group.columns[b]}" for a, b in zip(*below, strict=True)]
            found |= {group.factor: list(group.labels), f"{group.name}_term": list(group.columns)}
            found |= {f"{group.name}_pair": pairs}
        return found

    @property
    def units(self) -> dict[str, str]:
        """Units of the parameters: empty, because they are those of the data."""
        return {}

    @property
    def target_accept_prob(self) -> float:
        """What `hbm_jax.sample` takes by default: short steps, for few groups whose spread may be next to nothing."""
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
        found = {name: getattr(self, name) for name in names} | {"priors": text}
        name = full_name(type(self))
        return found if name is None else found | {"class": name}


def _spread(values, column: int):
    """Return the standard deviation of a column, or its root mean square where it is the same everywhere."""
    one = jnp.asarray(values)[:, column]
    deviation = one.std()
    return jnp.where(deviation > 1e-9 * jnp.abs(one).max(), deviation, jnp.sqrt((one**2).mean()))
