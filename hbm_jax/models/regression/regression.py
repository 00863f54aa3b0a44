"""Generalised linear regression with effects of groups, independent or as a random walk in time.

For point i with predictors x_i, in group j(i) of each term of groups with columns z_i,

    eta_i = offset_i + x_i . coef + sum over terms of z_i . effect_j(i),        y_i ~ family(eta_i),
    effect_j ~ N(0, diag(sd) C diag(sd)),

where C is a correlation matrix (Gelman & Hill 2007; Gelman, Goodrich, Gabry & Vehtari 2020 for the priors).
"""

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist
from numpyro.distributions import constraints

from hbm_jax.data.regression.regression_data import RegressionData
from hbm_jax.models.base import PopulationModel
from hbm_jax.models.priors import Prior, complete_priors, sample_shaped
from hbm_jax.models.regression.coefficients import COEFFICIENTS, FLAT, BoundCoefficients, is_flat, sample_coefficients
from hbm_jax.models.regression.families import FAMILIES, Family, centre_of
from hbm_jax.models.regression.group_effects import BoundEffects, bind_effects, sample_effects
from hbm_jax.names import choose, did_you_mean, listed
from hbm_jax.precomputation import precomputed
from hbm_jax.validation import DataError, OptionError, reject_rows

SINGLE_PRIOR = re.compile(r"(coef|sd)\[(.+)\]")  # name of the prior of a single coefficient or term of groups

GROUPS: dict[str, Prior] = {"sd": dist.HalfNormal(1.5)}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class BoundRegression:
    """Response and design of a regression of N points, bound to a `Regression`.

    Attributes
    ----------
    num_categories : int
        Number of categories of a text response, else 0.
    y, offset, error, trials : (N,)
        As in `hbm_jax.data.RegressionData`; ``y`` are integers unless the response is real.
    X : (N, K)
        Design matrix, without the columns that enter through the means of effects.
    unit : scalar
        Unit of the linear predictor.
    coefficients, groups
        Linear maps of the coefficients, and effects of groups.
    """

    num_categories: int = field(metadata={"static": True})
    y: Any
    offset: Any
    error: Any
    trials: Any
    X: Any
    unit: Any
    coefficients: BoundCoefficients
    groups: tuple[BoundEffects, ...]


@dataclass(frozen=True, kw_only=True)
class Regression(PopulationModel):
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

    Bound = BoundRegression
    priors_in_data_units = True

    family: Literal["normal", "student_t", "bernoulli", "binomial", "poisson", "negative_binomial", "categorical"] = (
        field(default="normal", metadata={"help": "distribution of the response"})
    )
    link: Literal["", "identity", "log", "logit", "probit", "softmax"] = field(
        default="", metadata={"help": "logit or probit, for families with both"}
    )
    qr: bool = field(default=True, metadata={"help": "whether to sample coefficients of orthogonal predictors"})
    lkj: float = field(default=2.0, metadata={"help": "concentration of the prior of correlations of effects"})
    dims: ClassVar[dict[str, list[str]]] = {"observed": ["point"]}
    target_accept_prob = 0.95  # sd may be close to 0 where there are few groups

    def check_options(self) -> None:
        """Set the default link; raise ValueError for a link of another family, and unless ``lkj`` is positive."""
        object.__setattr__(self, "link", self.link or self._family.links[0])
        choose(f"link of the family {self.family}", self.link, self._family.links)
        if not self.lkj > 0:
            raise OptionError(f"Regression: lkj: expected a positive concentration; found {self.lkj}.")

    @property
    def _family(self) -> Family:
        """The distribution of the response and its links."""
        return FAMILIES[self.family]

    @property
    def default_priors(self) -> dict[str, Any]:
        """Default priors, for standardised variables; those of single terms are replaced by the user's."""
        singles = {name: FLAT for name in self.priors if SINGLE_PRIOR.fullmatch(name)}
        return COEFFICIENTS | GROUPS | dict(self._family.parameters) | singles

    @cached_property
    def all_priors(self) -> dict[str, Any]:
        """Every parameter with its prior; ``"flat"`` is an improper uniform one."""
        flat = [name for name, prior in self.priors.items() if is_flat(prior)]
        proper = dict(self.priors) | dict.fromkeys(flat, 0.0)
        priors = precomputed(lambda: complete_priors(self.default_priors, proper, self.label))
        return priors | dict.fromkeys(flat, FLAT)

    def bind(self, data: RegressionData) -> BoundRegression:
        """Return response, design and coordinates of coefficients and effects."""
        self._check(data)
        y, offset, error, trials, X = (np.asarray(a) for a in (data.y, data.offset, data.error, data.trials, data.X))
        unit = float(data.y_std) if self._family.scaled else 1.0
        return BoundRegression(
            len(data.categories),
            y if self._family.values == "real" else np.round(y).astype(int),
            offset,
            error,
            np.round(trials).astype(int),  # NumPyro draws binomial counts only for integers
            X * data.within,
            np.asarray(unit),
            BoundCoefficients.of(
                data, self.all_priors, self.priors, unit=unit, centre=centre_of(self.link, data), qr=self.qr
            ),
            bind_effects(self.link, unit, data),
        )

    def program(self, bound: BoundRegression, observed: bool, recover: bool) -> None:
        """Run the NumPyro program; ``recover`` has no effect, because no parameter is integrated out."""
        num = bound.num_categories - 1 if self.family == "categorical" else 0
        coef = sample_coefficients(bound.coefficients, self.all_priors, self.priors, num)
        eta = bound.X @ coef.T + (bound.offset[:, None] if num else bound.offset)
        for group in bound.groups:
            effects = sample_effects(group, coef, self.lkj, self.sample_positive)
            eta = eta + (group.values * effects[group.index]).sum(-1)
        parameters = {
            name: self.sample_positive(name, bound.unit if name == "sigma" else 1.0) for name in self._family.parameters
        }
        response = self._family.distribution(eta, self.link, parameters, bound)
        with numpyro.plate("point", len(bound.X)):
            numpyro.sample("observed", response, obs=jnp.asarray(bound.y) if observed else None)

    def sample_positive(self, name: str, unit: Any = 1.0, site: str = "", single: str = ""):
        """Sample a positive parameter from the prior ``single`` if the user set it, else ``name``.

        Default priors are multiplied by ``unit``.
        """
        key = single if single in self.priors else name
        if is_flat(self.all_priors[key]):
            return numpyro.sample(site or name, dist.ImproperUniform(constraints.positive, (), ()))
        return sample_shaped(site or name, self.prior_in_data_units(key, unit))

    def _check(self, data) -> None:
        """Raise an error where the data do not fit the family, or a prior names an unknown term."""
        advice = "Read them with hbm_jax.data.read_regression, or use RegressionData.from_columns or from_arrays."
        self.check_container(data, RegressionData, advice)
        for name in self.priors:
            match = SINGLE_PRIOR.fullmatch(name)
            if match is None:
                continue
            known = data.terms if match[1] == "coef" else tuple(group.name for group in data.groups)
            if match[2] not in known:
                raise DataError(
                    f"prior.{name}: expected one of {listed(known)}, the terms of {data.source.formula}; found "
                    f"{match[2]!r}{did_you_mean(match[2], known)}."
                )
        values, text = self._family.values, data.categories
        if values == "category":
            expected, valid = "text", bool(text)
        elif values == "binary":
            expected, valid = "numbers or two categories", len(text) in (0, 2)
        else:
            expected, valid = "numbers", not text
        if not valid:
            response = f"text ({listed(text)})" if text else "numbers"
            raise DataError(f"{data.response}: expected {expected} for the family {self.family!r}; found {response}.")
        if self.family == "categorical" and data.groups:
            raise DataError(
                f"Regression: expected no terms of groups for the family 'categorical'; found {data.groups[0].name}."
            )
        if self.family == "binomial" and "trials" not in data.source.roles:
            raise DataError("Regression: the family 'binomial' expects trials=, the column of numbers of trials.")
        if values in ("count", "binary"):
            y = np.asarray(data.y)
            invalid = (y < 0) | (y != np.round(y)) | ((values == "binary") & (y > 1))
            reject_rows(invalid, y, data.response, "0 or 1" if values == "binary" else "a count", data.name)
        if "error" in data.source.roles and self.family != "normal":
            raise DataError(
                f"Regression: expected the family 'normal' with known errors of the response; found {self.family!r}."
            )

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
    def description(self) -> str:
        """One-line description for reports."""
        return f"Regression, family {self.family}, link {self.link}"
