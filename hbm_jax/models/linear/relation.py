"""A linear relation with errors in both variables and groups: y = alpha_j (x - pivot) + beta_j.

For point i of group j, with true predictors x_i drawn from a population,

    y_i ~ N(alpha_j . (x_i - pivot) + beta_j, intrinsic_scatter^2),
    alpha_j ~ N(alpha_mean, alpha_std^2),    beta_j ~ N(beta_mean, beta_std^2),
    x_i ~ N(x_mean, x_std^2), or a mixture of normals, or exponential,

and x and y are measured with errors. Both may be multiplied by powers of a function of redshift. The scatter may have
outliers, or follow a Student's t distribution, and points may be missing because of their measured x or y (Kelly 2007,
ApJ 665, 1489; Gelman & Hill 2007, ch. 13).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from numpyro import distributions as dist

from hbm_jax.data.linear.points_in_groups import PointsInGroups
from hbm_jax.distributions import SoftHalfNormal
from hbm_jax.distributions.selection import MAX_TRIES
from hbm_jax.models.base import PopulationModel
from hbm_jax.models.efficiency import DetectionFunction, Efficiency, Injections, effective_injections
from hbm_jax.models.linear.bound_points import BoundPoints, bind_points, has_common_error, padded_points
from hbm_jax.models.linear.checks import check_broken, check_numerical, check_options, check_points
from hbm_jax.models.linear.lines import (
    sample_broken,
    sample_curved,
    sample_evolution,
    sample_grouped,
    sample_lines,
    sample_points,
    sample_population,
    sample_scatter,
    sample_scatter_of_groups,
)
from hbm_jax.models.linear.selected_points import inside
from hbm_jax.models.priors import Prior, in_data_units, sample_shaped
from hbm_jax.models.selection import NONE, Selection, as_selections, stored
from hbm_jax.precomputation import padded_size, precomputed
from hbm_jax.validation import OptionError, Remedy

# Priors for standardised variables: x and y minus their means, in units of their standard deviations.
LINE: dict[str, Prior] = {"alpha": dist.Normal(0.0, 5.0), "beta": dist.Normal(0.0, 5.0)}
PARTIAL: dict[str, Prior] = {
    "alpha_mean": dist.Normal(0.0, 3.0),
    "alpha_std": dist.HalfNormal(1.5),
    "beta_mean": dist.Normal(0.0, 3.0),
    "beta_std": dist.HalfNormal(1.5),
}
CORRELATION: dict[str, Prior] = {"correlation": dist.Uniform(-1.0, 1.0)}
GROUPS: dict[str, Prior] = {"alpha_group": dist.Normal(0.0, 3.0), "beta_group": dist.Normal(0.0, 3.0)}
SCATTER: dict[str, Prior] = {"intrinsic_scatter": dist.HalfNormal(1.0)}
POPULATION: dict[str, Prior] = {"x_mean": dist.Normal(0.0, 2.0), "x_std": dist.HalfNormal(2.0)}
INJECTIONS = "injections"
EVOLVING = ("evolution_alpha", "evolution_scatter")  # slope and scatter that change with redshift
EVOLUTION: dict[str, Prior] = {"evolution_y": dist.Normal(0.0, 3.0), "evolution_x": 0.0} | dict.fromkeys(EVOLVING, 0.0)
BREAK: dict[str, Prior] = {"alpha_above": dist.Normal(0.0, 5.0), "x_break": dist.Normal(0.0, 1.0)}
CURVATURE: dict[str, Prior] = {"curvature": dist.Normal(0.0, 1.0)}
SCATTER_CHANGE: dict[str, Prior] = {"scatter_change": dist.Normal(0.0, 0.5)}
SCATTER_GROUP: dict[str, Prior] = {"scatter_group": dist.Normal(0.0, 0.5)}  # only if overridden
EXPONENTIAL: dict[str, Prior] = {"x_min": dist.Normal(-1.0, 2.0), "x_scale": dist.HalfNormal(2.0)}
# With a selection the mean of the population may be outside the range of the data, and its width much larger.
SELECTED: dict[str, Prior] = {"x_mean": dist.Normal(0.0, 5.0), "x_std": dist.HalfNormal(5.0)}
SELECTED_EXPONENTIAL: dict[str, Prior] = {"x_min": dist.Normal(-3.0, 3.0), "x_scale": dist.HalfNormal(5.0)}


@dataclass(frozen=True, kw_only=True)
class Relation(PopulationModel):
    """Linear relation with errors in both variables; a call with data is a NumPyro program.

    Parameters
    ----------
    pooling : str
        ``"partial"``: slopes and intercepts of the groups are drawn from a population; ``"none"``: each group has an
        independent line; ``"complete"``: all groups have the same line. With a single group, ``"partial"`` is one line
        too, with the parameters and default priors of ``"complete"``, and a note of the verdict says so.
    latents : str
        ``"marginal"``: true values are integrated out exactly. With partial pooling of one predictor, without mixtures,
        outliers, Student's t, limits and selection, so are the intercepts of the groups. `hbm_jax.latents` draws them
        from their conditional posterior. ``"sampled"``: the true predictors and the intercepts are sampled. Both have
        the same posterior.
    correlated : bool
        Whether slopes and intercept of a group are correlated (partial pooling). The prior is that of Lewandowski,
        Kurowicka & Joe with concentration 1: with one predictor, ``correlation`` is uniform.
    scatter : bool
        Whether y has intrinsic scatter about the line.
    x_population : str
        Population of the true predictor: ``"normal"``, or ``"exponential"`` with the density
        exp(-(x - x_min) / x_scale) / x_scale above ``x_min``. A power law of masses, with a density dN / dM of M^-g,
        is exponential in ln M with an ``x_scale`` of 1 / (g - 1). Far below the limit of a selection, x_min does not
        matter and may be fixed. Expects one predictor with errors, no limits, and a selection in x or y, not both.
    num_components : int
        Number of normal components in the population of true predictors. More than 1 requires a single predictor, and
        then x_mean, in increasing order, has a prior that cannot be changed.
    outliers : bool
        Whether a fraction ``outlier_fraction`` of the points has an additional scatter ``outlier_scatter``.
        `hbm_jax.latents` then returns the ``outlier_probability`` of each point.
    student_t : bool
        Whether the scatter follows Student's t with ``nu`` degrees of freedom and scale ``intrinsic_scatter`` instead
        of a normal distribution. `hbm_jax.latents` then returns a ``weight`` of each point, about 1 in the bulk and
        close to 0 for an outlier.
    broken : bool
        Whether the slope changes at ``x_break``, from ``alpha`` below it to ``alpha_above``; ``beta`` is then the
        response at the break. Expects one line, one predictor with a normal population and normal scatter, and at most
        one limit as a selection.
    curved : bool
        Whether the line is a parabola, alpha (x - pivot) + ``curvature`` (x - pivot)^2 + beta.
    scatter_with_x : bool
        Whether the scatter changes with x: it is intrinsic_scatter exp(``scatter_change`` (x - pivot)). With this
        option or ``curved``, the true x is integrated out numerically, in groups of any pooling and with evolution.
        Both expect one predictor with a normal population, normal scatter, no points that are upper or lower limits,
        and limits as a selection, at most two.
    selection : str, Selection, Efficiency or DetectionFunction
        Points that are missing, because of measured coordinates: ``"x > 1"`` for data without points whose measured x
        is below 1, ``"y < Normal(2, 0.5) +- 0.1"`` for a smooth limit with a prior, ``"x > cut_x"`` for the limits of
        the points in a column, or two with ``and`` between them, see `hbm_jax.models.selection`. A tabulated efficiency
        is ``"x efficiency 0.5:0 2:1"`` or ``"x from efficiency.csv"``, and a `hbm_jax.models.DetectionFunction` any
        function of measured x and y. Limits are in the units of the data and in coordinates that are not censored.
        ``"injections"`` estimates the detected fraction from simulated points, see
        `hbm_jax.data.PointsInGroups.with_injections`; it takes one line with scatter, a normal population or a mixture,
        and no limits, evolution or common errors. All expect ``latents="marginal"``. The default priors of x_mean
        and x_std are then wider, because the population may extend far beyond the data.
    evolution : str
        Function of redshift of which powers are factors of the relation: ``"log10 E(z)"``, ``"ln E(z)"``,
        ``"log10 1+z"`` or ``"ln 1+z"``, with the logarithm that x and y are. The relation is then
        y - evolution_y log E(z) = alpha (x + evolution_x log E(z) - pivot) + beta, as in L / E(z)^2 against M E(z)
        with exponents 2 and 1.
        ``evolution_x`` is 0 unless ``priors`` has another value, because it is degenerate with ``evolution_y``. With
        values in ``priors`` the slope is alpha + evolution_alpha log E(z), and the scatter is multiplied by
        E(z)^evolution_scatter; both exponents are 0 by default. Expects the column ``redshift``.
    Om0 : float
        Matter density of the flat cosmology of E(z) = sqrt(Om0 (1 + z)^3 + 1 - Om0).
    pivot : float, optional
        Value of every predictor at which the response is beta [units of x]; by default the mean of the measured values,
        where slope and intercept are least correlated.
    priors : mapping of str to Distribution, float or str
        Overrides by parameter name, in the units of the data; a number fixes the parameter. With a prior of
        ``scatter_group`` the logarithm of the scatter changes linearly with the predictors of groups. The defaults,
        `Relation.all_priors`, are for standardised variables and are transformed by the mean and standard deviation of
        the measured values (`PointsInGroups.center` and ``unit``).

    Raises
    ------
    ValueError
        For an unknown option or prior name, and for incompatible options.

    Examples
    --------
    >>> sorted(Relation(pooling="complete").all_priors)
    ['alpha', 'beta', 'intrinsic_scatter', 'x_mean', 'x_std']
    """

    Bound = BoundPoints
    priors_in_data_units = True

    pooling: Literal["partial", "none", "complete"] = field(
        default="partial", metadata={"help": "whether lines of groups are drawn from a population"}
    )
    latents: Literal["marginal", "sampled"] = field(
        default="marginal", metadata={"help": "whether true values are integrated out"}
    )
    correlated: bool = field(default=False, metadata={"help": "whether slope and intercept are correlated"})
    scatter: bool = field(default=True, metadata={"help": "whether there is intrinsic scatter"})
    x_population: Literal["normal", "exponential"] = field(
        default="normal", metadata={"help": "distribution of true predictors"}
    )
    num_components: int = field(default=1, metadata={"help": "normals in the population of true predictors"})
    outliers: bool = field(default=False, metadata={"help": "whether some points scatter more"})
    student_t: bool = field(default=False, metadata={"help": "whether the scatter follows Student's t"})
    broken: bool = field(default=False, metadata={"help": "whether the slope changes at x_break"})
    curved: bool = field(default=False, metadata={"help": "whether the line is a parabola"})
    scatter_with_x: bool = field(default=False, metadata={"help": "whether the scatter changes with x"})
    selection: str | Selection | Efficiency | DetectionFunction = field(
        default=NONE, metadata={"help": "points that are missing, such as 'x > 1 and y < 2'"}
    )
    evolution: Literal["none", "log10 E(z)", "ln E(z)", "log10 1+z", "ln 1+z"] = field(
        default="none", metadata={"help": "function of redshift with powers that multiply x and y"}
    )
    Om0: float = field(default=0.3, metadata={"help": "matter density of the flat cosmology of E(z)"})
    pivot: float | None = field(default=None, metadata={"help": "x at which y is beta; the mean by default"})
    observed_sites = ("observed",)
    remedies: ClassVar[dict[str, str]] = {
        "distribution": "outliers=True, student_t=True, num_components=2, or selection=, if points are missing",
        "groups": 'pooling="partial", if groups have lines of their own',
    }

    def check_options(self) -> None:
        """Raise OptionError for incompatible options."""
        check_options(self)
        self._check_selection()
        if self.broken:
            check_broken(self)
        if self.is_numerical:
            check_numerical(self)

    @property
    def is_numerical(self) -> bool:
        """True if the true x is integrated out numerically: with a parabola, or a scatter that changes with x."""
        return self.curved or self.scatter_with_x

    @property
    def by_injections(self) -> bool:
        """True if the detected fraction of the population is estimated from injections."""
        return self.selection == INJECTIONS

    def _check_selection(self) -> None:
        """Store the selection as text; raise OptionError for one that cannot be integrated."""
        if self.by_injections:
            expected = {"latents": "marginal", "x_population": "normal", "evolution": "none", "scatter": True}
            for name, value in expected.items():
                if (found := getattr(self, name)) != value:
                    message = f"Relation: selection='injections' expects {name}={value!r}; found {found!r}."
                    raise OptionError(message, [Remedy(name, value)])
            return
        chosen = as_selections(self.selection, "Relation", limits_only=False)
        if any(isinstance(part, Injections) for part in chosen):
            raise OptionError(
                f"Relation: selection: expected 'injections', with injections= of read_relation; "
                f"found {str(chosen[0])!r}."
            )
        object.__setattr__(self, "selection", stored(chosen))
        if len(self.selections) > 2:  # building the selections also checks their priors
            raise OptionError(f"Relation: selection: expected at most two limits; found {self.selection!r}.")
        if self.selections and self.latents == "sampled":
            message = f"Relation: selection={str(self.selection)!r} expects latents='marginal'; found 'sampled'."
            raise OptionError(message, [Remedy("latents", "marginal")])

    @cached_property
    def selections(self) -> tuple[Any, ...]:
        """Selections of the model, with the priors of their parameters."""
        return tuple(selection.with_priors(self.all_priors) for selection in self._stated_selections)

    @cached_property
    def _stated_selections(self) -> tuple[Any, ...]:
        """Selections as the option defines them; ``priors`` may replace the priors of their parameters."""
        if self.by_injections:
            return ()
        return precomputed(lambda: as_selections(self.selection, "Relation", limits_only=False))

    @property
    def default_priors(self) -> dict[str, Prior]:
        """Default priors, for standardised variables; those of predictors of groups only if one is overridden."""
        groups = GROUPS if GROUPS.keys() & self.priors.keys() else {}
        defaults = PARTIAL | groups if self.pooling == "partial" else dict(LINE)
        defaults |= (CORRELATION if self.correlated else {}) | (SCATTER if self.scatter else {})
        if self.x_population == "exponential":
            defaults |= SELECTED_EXPONENTIAL if self._stated_selections else EXPONENTIAL
        else:
            defaults |= SELECTED if self._stated_selections or self.by_injections else POPULATION
        if self.num_components > 1:
            defaults |= {"x_weight": dist.Dirichlet(np.ones(self.num_components))}
        defaults |= (BREAK if self.broken else {}) | (CURVATURE if self.curved else {})
        defaults |= SCATTER_CHANGE if self.scatter_with_x else {}
        defaults |= SCATTER_GROUP if self.scatter and SCATTER_GROUP.keys() & self.priors.keys() else {}
        if self.outliers:
            defaults |= {"outlier_fraction": dist.Beta(1.0, 9.0), "outlier_scatter": dist.HalfNormal(5.0)}
        if self.student_t:
            defaults |= {"nu": dist.Gamma(2.0, 0.1)}
        if self.evolution != "none":
            defaults |= EVOLUTION
        for selection in self._stated_selections:
            defaults |= selection.priors
        return defaults

    def sample_site(self, name: str, unit: Any = 1.0, center: Any = 0.0, shape: tuple[int, ...] = ()):
        """Sample a parameter; a default prior is transformed to the units of the data."""
        if name in self.all_priors:
            prior = self.prior_in_data_units(name, unit, center)
        else:  # predictors of groups, and the line of a single group
            prior = in_data_units((GROUPS | LINE)[name], unit, center)
        if isinstance(prior, dist.HalfNormal):
            prior = SoftHalfNormal(prior.scale)  # the posterior may extend from 0 to the total variance
        return sample_shaped(name, prior, shape)

    def bind(self, data: PointsInGroups) -> BoundPoints:
        """Return the points, and estimates of the lines of groups from them."""
        self._check(data)
        integrates = self._integrates(len(data), len(data.predictors), data.limited != "no", has_common_error(data))
        return bind_points(self, data, self.pooling_of(len(data)), integrates)

    def padded(self, bound: BoundPoints) -> tuple[BoundPoints, dict[str, int]]:
        """Return the points with unused ones added, as `hbm_jax.models.base.PopulationModel.padded`.

        Groups are added too, unless each has an independent line, and nothing where true values are sampled.
        """
        (rows, columns), pooling = np.shape(bound.used), self.pooling_of(len(bound.used))
        if self.latents == "sampled":
            return bound, {}
        sizes = rows if pooling == "none" else padded_size(rows), padded_size(columns)
        return padded_points(bound, *sizes), {"group": rows, "point": columns}

    def pooling_of(self, num_groups: int) -> str:
        """Return the pooling for data of ``num_groups`` groups: complete if partial pooling has a single group."""
        return "complete" if self.pooling == "partial" and num_groups == 1 else self.pooling

    def program(self, bound: BoundPoints, observed: bool, recover: bool) -> None:
        """Run the NumPyro program; ``recover`` draws the latents that are integrated out."""
        population, scatter = sample_population(self, bound), sample_scatter(self, bound)
        common_error = bound.common_error is not None
        integrates = self._integrates(len(bound.used), len(bound.predictors), bound.limits is not None, common_error)
        lines = sample_lines(self, bound, self.pooling_of(len(bound.used)), scatter, integrates)
        lines, scatter = sample_evolution(self, bound, lines, sample_scatter_of_groups(self, bound, scatter))
        values = jnp.asarray(bound.values) if observed else None
        if self.broken:
            sample_broken(self, bound, population, scatter, lines, values, recover)
        elif self.is_numerical:
            sample_curved(self, bound, population, scatter, lines, values, recover)
        elif integrates:
            sample_grouped(bound, population, scatter, lines, values, recover)
        else:
            sample_points(self, bound, population, scatter, lines, values, recover)

    def _integrates(self, num_groups: int, num_predictors: int, limited: bool, common_error: bool) -> bool:
        """Return whether the intercepts, or the common errors of groups, are integrated out."""
        normal = self.num_components == 1 and self.x_population == "normal"
        normal = normal and not (self.outliers or self.student_t or limited or self.selections or self.by_injections)
        normal = normal and not (self.evolving or self.is_numerical)
        of_groups = common_error or self.pooling_of(num_groups) == "partial"
        return of_groups and self.latents == "marginal" and normal and num_predictors == 1

    @property
    def evolving(self) -> tuple[str, ...]:
        """Names of the parameters by which slope and scatter change with redshift, if they are not 0."""
        priors = self.all_priors if self.evolution != "none" else {}
        return tuple(name for name in EVOLVING if isinstance(priors.get(name), dist.Distribution) or priors.get(name))

    def _check(self, data) -> None:
        """Raise an error where the data do not fit the options."""
        advice = "Read them with hbm_jax.data.read_relation, or use PointsInGroups.from_columns."
        self.check_container(data, PointsInGroups, advice)
        check_points(self, data, (*PARTIAL, *GROUPS, *CORRELATION))

    def cautions(self, data: PointsInGroups) -> list[str]:
        """Return notes about injections that are not used, and about a single group, whose line has no population."""
        cautions = []
        if len(data.injections) and not self.by_injections:
            cautions.append("The data have injections, which only selection='injections' uses")
        if self.pooling_of(len(data)) == self.pooling:
            return cautions
        return [
            *cautions,
            "The points are one group, so that one line, with slope alpha and intercept beta, is fitted to all. "
            "Name groups in a column group to fit a line to each; pooling='complete' gives the same fit "
            "without this note",
        ]

    def cautions_of_draws(self, data: PointsInGroups, posterior: Any) -> list[str]:
        """Return a sentence about the effective number of injections over the draws of a posterior."""
        return effective_injections(len(data.injections), data.num_points, posterior) if self.by_injections else []

    def simulate(self, key, data: PointsInGroups, parameters: Mapping[str, float] | None = None):
        """Draw a simulated sample as `hbm_jax.models.base.PopulationModel.simulate`; all of its points are detected.

        Raises
        ------
        ValueError
            If a point of the design is practically never detected.
        """
        return super().simulate(key, inside(data, self.selections), parameters)

    def with_observed(self, data: PointsInGroups, values: Mapping[str, Any]) -> PointsInGroups:
        """Return the points with other measured values; ValueError for a point that was never detected."""
        drawn, used = values["observed"], np.asarray(data.used)
        if np.isnan(drawn[used]).any():
            group = data.name[int(np.argwhere(np.isnan(drawn).any(axis=-1) & used)[0, 0])]
            raise ValueError(
                f"simulate: expected every point to be detectable with {self.selection!r}; found none of {MAX_TRIES} "
                f"draws detected for a point of group {group}. Give true values with more detected points."
            )
        return data.replace_observations(drawn)

    @property
    def dims(self) -> dict[str, list[str]]:
        """Dimensions of sites that their plates do not name."""
        dims = {"observed": ["group", "point", "coordinate"]}
        if self.num_components > 1:
            dims |= {name: ["component"] for name in ("x_mean", "x_std", "x_weight")}
        return dims

    def coords(self, data: PointsInGroups) -> dict[str, list]:
        """Return the labels of the dimensions."""
        return {"group": list(data.name), "coordinate": [*data.predictors, "y"], "predictor": list(data.predictors)}

    @property
    def target_accept_prob(self) -> float:
        """Default of `hbm_jax.sample`; higher without pooling and with a selection, where the data constrain less."""
        if self.selections or self.by_injections:
            return 0.95
        return 0.9 if self.pooling == "none" else 0.8

    @property
    def description(self) -> str:
        """One-line description for reports."""
        options = ", correlated lines" if self.correlated else ""
        options += ", with a break" if self.broken else ", a parabola" if self.curved else ""
        options += ", scatter that changes with x" if self.scatter_with_x else ""
        options += ", exponential population of x" if self.x_population == "exponential" else ""
        options += f", {self.num_components} populations of x" if self.num_components > 1 else ""
        options += ", outliers" if self.outliers else ", Student's t" if self.student_t else ""
        options += f", selected by {self.selection}" if self.selections or self.by_injections else ""
        options += f", powers of {self.evolution}" if self.evolution != "none" else ""
        return f"Linear relation with errors in both variables, {self.pooling} pooling, {self.latents} latents{options}"
