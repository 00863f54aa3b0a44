"""A linear relation with errors in both variables and groups: y = alpha_j (x - pivot) + beta_j.

For point i of group j, with true predictors x_i drawn from a population,

    y_i ~ N(alpha_j . (x_i - pivot) + beta_j, intrinsic_scatter^2),
    alpha_j ~ N(alpha_mean, alpha_std^2),    beta_j ~ N(beta_mean, beta_std^2),
    x_i ~ N(x_mean, x_std^2), or a mixture of normals,

and x and y are measured with errors. The scatter may have outliers, or follow a Student's t distribution (Kelly 2007,
ApJ 665, 1489; Gelman & Hill 2007, ch. 13).
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.distributions import transforms

from hbm_jax.data.linear.points_in_groups import PointsInGroups
from hbm_jax.distributions import GroupedLinearRelation, SoftHalfNormal
from hbm_jax.distributions.linear.measured_points import Limits, MeasuredPoints
from hbm_jax.models.partial_centering import GaussianLikelihood, Slopes, sample_whitened, slopes_of_groups
from hbm_jax.models.priors import Prior, complete_priors, priors_to_text
from hbm_jax.models.protocol import configuration, simulated
from hbm_jax.names import choose
from hbm_jax.validation import DataError

POOLING = ("partial", "none", "complete")
LATENTS = ("marginal", "sampled")

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


@dataclass(frozen=True, kw_only=True)
class Relation:
    """Linear relation with errors in both variables; a call with data is a NumPyro program.

    Parameters
    ----------
    pooling : str
        ``"partial"``: slopes and intercepts of the groups are drawn from a population; ``"none"``: each group has an
        independent line; ``"complete"``: all groups have the same line.
    latents : str
        ``"marginal"``: true values are integrated out exactly. With partial pooling of one predictor, without mixtures,
        Student's t and limits, so are the intercepts of the groups. `hbm_jax.latents` draws them from their conditional
        posterior. ``"sampled"``: the true predictors and the intercepts are sampled. Both have the same posterior.
    correlated : bool
        Whether slopes and intercept of a group are correlated (partial pooling). The prior is that of Lewandowski,
        Kurowicka & Joe with concentration 1: with one predictor, ``correlation`` is uniform.
    scatter : bool
        Whether y has intrinsic scatter about the line.
    num_components : int
        Number of normal components in the population of true predictors. More than 1 requires a single predictor.
    outliers : bool
        Whether a fraction ``outlier_fraction`` of the points has an additional scatter ``outlier_scatter``.
        `hbm_jax.latents` then returns the ``outlier_probability`` of each point.
    student_t : bool
        Whether the scatter follows Student's t with ``nu`` degrees of freedom and scale ``intrinsic_scatter`` instead
        of a normal distribution. `hbm_jax.latents` then returns a ``weight`` of each point, about 1 in the bulk and
        close to 0 for an outlier.
    pivot : float, optional
        Value of every predictor at which the response is beta [units of x]; by default the mean of the measured values,
        where slope and intercept are least correlated.
    priors : mapping of str to Distribution, float or str
        Overrides by parameter name, in the units of the data; a number fixes the parameter. The defaults,
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

    pooling: str = field(default="partial", metadata={"help": ", ".join(POOLING)})
    latents: str = field(default="marginal", metadata={"help": ", ".join(LATENTS)})
    correlated: bool = field(default=False, metadata={"help": "whether slope and intercept are correlated"})
    scatter: bool = field(default=True, metadata={"help": "whether there is intrinsic scatter"})
    num_components: int = field(default=1, metadata={"help": "normals in the population of true predictors"})
    outliers: bool = field(default=False, metadata={"help": "whether some points scatter more"})
    student_t: bool = field(default=False, metadata={"help": "whether the scatter follows Student's t"})
    pivot: float | None = field(default=None, metadata={"help": "x at which y is beta; the mean by default"})
    priors: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self):
        choose("pooling", self.pooling, POOLING)
        choose("treatment of the latents", self.latents, LATENTS)
        if self.correlated and self.pooling != "partial":
            raise ValueError(f"Relation: correlated=True expects pooling='partial'; found {self.pooling!r}.")
        if self.student_t and (self.outliers or not self.scatter):
            conflict = "outliers=True" if self.outliers else "scatter=False"
            raise ValueError(f"Relation: student_t=True expects scatter=True and outliers=False; found {conflict}.")
        if self.num_components < 1:
            raise ValueError(f"Relation: num_components: expected 1 or more; found {self.num_components}.")
        object.__setattr__(self, "priors", dict(self.priors))
        self.all_priors  # noqa: B018 - raises for unknown names

    @property
    def all_priors(self) -> dict[str, Prior]:
        """Every parameter with its prior: overrides in the units of the data, defaults for standardised variables."""
        defaults = dict(PARTIAL | GROUPS) if self.pooling == "partial" else dict(LINE)
        defaults |= (CORRELATION if self.correlated else {}) | (SCATTER if self.scatter else {}) | POPULATION
        if self.num_components > 1:
            defaults |= {"x_weight": dist.Dirichlet(jnp.ones(self.num_components))}
        if self.outliers:
            defaults |= {"outlier_fraction": dist.Beta(1.0, 9.0), "outlier_scatter": dist.HalfNormal(5.0)}
        if self.student_t:
            defaults |= {"nu": dist.Gamma(2.0, 0.1)}
        if self.pooling == "partial" and not set(GROUPS) & set(self.priors):
            return complete_priors({k: v for k, v in defaults.items() if k not in GROUPS}, self.priors, "Relation")
        return complete_priors(defaults, self.priors, "Relation")

    def _sample(self, name: str, unit: Any = 1.0, center: Any = 0.0, shape: tuple[int, ...] = ()):
        """Sample a parameter; a default prior is transformed to the units of the data."""
        prior = self.all_priors.get(name, GROUPS.get(name))
        if isinstance(prior, float | int):
            return jnp.broadcast_to(jnp.asarray(float(prior)), shape)
        assert prior is not None
        if name not in self.priors:
            if isinstance(prior, dist.Normal):
                prior = dist.Normal(center + unit * prior.loc, unit * prior.scale)
            elif isinstance(prior, dist.HalfNormal):
                prior = dist.HalfNormal(unit * prior.scale)
        if isinstance(prior, dist.HalfNormal):
            prior = SoftHalfNormal(prior.scale)  # the posterior may extend from 0 to the total variance
        return jnp.asarray(numpyro.sample(name, prior.expand(shape).to_event(len(shape)) if shape else prior))

    def __call__(self, data: PointsInGroups, observed: bool = True, recover: bool = False):
        """Run the NumPyro program.

        Parameters
        ----------
        data : PointsInGroups
            The points. With ``observed=False`` the measured values are drawn, and everything else is the design.
        observed : bool
            Whether to condition on the measured values.
        recover : bool
            Whether to draw the latents that are integrated out.
        """
        self._check(data)
        num = len(data.predictors)
        unit, center = jnp.asarray(data.unit), jnp.asarray(data.center)
        pivot = center[:-1] if self.pivot is None else jnp.full(num, float(self.pivot))
        # The parameters of a single predictor are scalars, those of several are vectors.
        scalar = num == 1
        x_unit, x_center = (unit[0], center[0]) if scalar else (unit[:-1], center[:-1])
        p = self._population(scalar, num, x_unit, x_center)
        scatter = self._sample("intrinsic_scatter", unit[-1]) if self.scatter else jnp.zeros(())
        p |= {"intrinsic_scatter": scatter}
        if self.outliers:
            p["outliers"] = (self._sample("outlier_fraction"), self._sample("outlier_scatter", unit[-1]))
        if self.student_t:
            p["nu"] = self._sample("nu")
        values = jnp.asarray(data.values) if observed else None
        alpha, beta = self._lines(data, p, scalar, num, unit, x_unit, pivot)
        if beta is None:
            self._grouped(data, p, alpha, pivot, values, recover)
            return
        slope = alpha.reshape(-1, 1, num) if scalar else jnp.broadcast_to(alpha, (len(data), num))[:, None, :]
        intercept = jnp.broadcast_to(beta, (len(data),))[:, None] - (slope * pivot).sum(-1)
        self._points(data, p, slope, intercept, num, values, recover)

    def _check(self, data) -> None:
        """Raise an error where the data do not fit the options."""
        if not isinstance(data, PointsInGroups):
            raise DataError(
                f"Relation: expected PointsInGroups; found {type(data).__name__}. Read them with "
                "hbm_jax.data.read_relation, or use PointsInGroups.from_columns."
            )
        num = len(data.predictors)
        if self.num_components > 1 and num > 1:
            raise DataError(
                f"Relation: num_components > 1 expects one predictor; found {num} ({', '.join(data.predictors)})."
            )
        if num > 1 and "correlation" in self.priors:
            raise DataError(
                f"Relation: a prior of correlation expects one predictor; found {num}, whose correlations with the "
                "intercept have the prior of Lewandowski, Kurowicka & Joe."
            )
        self._check_errors(data)
        if self.pooling == "partial" and len(data) < 2:
            raise DataError(
                f"Relation: pooling='partial' expects two groups or more; found {len(data)}. Name the groups in a "
                "column group, or use pooling='complete'."
            )

    def _check_errors(self, data: PointsInGroups) -> None:
        """Raise an error where a missing error makes the density infinite. Traced errors are not checked."""
        if isinstance(data.errors, jax.core.Tracer) or isinstance(data.used, jax.core.Tracer):
            return
        variances = np.diagonal(np.asarray(data.errors)[np.asarray(data.used)], axis1=-2, axis2=-1)
        missing = [name for name, values in zip((*data.predictors, "y"), variances.T, strict=True) if not values.all()]
        for name in missing:
            if name == "y" and not self.scatter:
                raise DataError("Relation(scatter=False): expected errors of y for every point; found points without.")
            if name != "y" and self.latents == "sampled":
                raise DataError(
                    f"Relation(latents='sampled'): expected an error of {name} for every point; found points without, "
                    "whose true values are known exactly. Use latents='marginal'."
                )

    def _population(self, scalar: bool, num: int, unit, center) -> dict[str, Any]:
        """Sample the population of true predictors; return means, covariances and log weights of its components."""
        if self.num_components > 1:
            k = self.num_components
            # For standardised variables the first mean is N(0, 2^2), and differences of successive means are log-normal
            # with median 1.
            loc, scale = jnp.append(center, jnp.full(k - 1, jnp.log(unit))), jnp.append(2.0 * unit, jnp.ones(k - 1))
            base = dist.Normal(loc, scale).to_event(1)
            means = numpyro.sample("x_mean", dist.TransformedDistribution(base, transforms.OrderedTransform()))
            std = self._sample("x_std", unit, shape=(k,))
            weights = self._sample("x_weight")
            return {"loc": means[:, None], "cov": (std**2)[:, None, None], "log_weights": jnp.log(weights)}
        shape = () if scalar else (num,)
        mean, std = self._sample("x_mean", unit, center, shape), self._sample("x_std", unit, shape=shape)
        if scalar:
            loc, cov = mean[None, None], (std**2)[None, None, None]
        else:
            factor = numpyro.sample("x_correlation_factor", dist.LKJCholesky(num, 2.0))
            factor = std[:, None] * factor
            loc, cov = mean[None], (factor @ factor.T)[None]
        return {"loc": loc, "cov": cov, "log_weights": jnp.zeros(1), "mean": mean, "std": std}

    def _lines(self, data: PointsInGroups, p, scalar: bool, num: int, unit, x_unit, pivot):
        """Sample slopes and intercepts of the groups; intercepts are None where they are integrated out."""
        slope_unit = unit[-1] / x_unit
        shape = () if scalar else (num,)
        y_center = jnp.asarray(data.center)[-1]
        if self.pooling == "complete":
            return self._sample("alpha", slope_unit, 0.0, shape), self._sample("beta", unit[-1], y_center)
        if self.pooling == "none":
            with numpyro.plate("group", len(data), dim=-1):
                alpha = self._sample("alpha", slope_unit, 0.0, shape)
                alpha = jnp.broadcast_to(alpha, (len(data), *shape))
                return alpha, jnp.broadcast_to(self._sample("beta", unit[-1], y_center), (len(data),))
        mean = self._sample("alpha_mean", slope_unit, 0.0, shape)
        std = self._sample("alpha_std", slope_unit, 0.0, shape)
        location, offset = mean, self._sample("beta_mean", unit[-1], y_center)
        spread = self._sample("beta_std", unit[-1])
        if data.group_predictor_names:
            group_predictors = jnp.asarray(data.group_predictors)
            size = group_predictors.shape[1]
            coefficients = self._sample("alpha_group", slope_unit, 0.0, (size, *shape))
            location = location + group_predictors @ coefficients
            offset = offset + group_predictors @ self._sample("beta_group", unit[-1], 0.0, (size,))
        factor = self._correlation(num)
        alpha, standard = self._slopes(data, jnp.broadcast_to(location, (len(data), *shape)), std, factor, scalar, num)
        offset = offset + spread * (standard @ factor[-1, :num])
        spread = spread * factor[-1, num]
        p["offset"], p["spread"] = offset, spread
        if self._integrates(data):
            return alpha, None
        likelihood = _intercept_likelihood(data, alpha.reshape(len(data), num), pivot, p["intrinsic_scatter"])
        with numpyro.plate("group", len(data), dim=-1):
            beta = sample_whitened("beta", jnp.broadcast_to(offset, (len(data),)), spread, likelihood)
        return alpha, beta

    def _correlation(self, num: int):
        """Sample the Cholesky factor of the correlation matrix of slopes and intercept, (P + 1, P + 1)."""
        if not self.correlated:
            return jnp.eye(num + 1)
        if num > 1:
            return numpyro.sample("correlation_factor", dist.LKJCholesky(num + 1, 1.0))
        r = self._sample("correlation")
        return jnp.array([[1.0, 0.0], [r, jnp.sqrt(1.0 - r**2)]])

    def _slopes(self, data, location, std, factor, scalar: bool, num: int):
        """Sample the slopes, predictor by predictor; return them and their standardised values, (J, P)."""
        estimates = _slope_sums(data)
        std = jnp.reshape(std, (num,))
        slopes = list(location.reshape(len(data), num).T)  # means, replaced by sampled values in turn
        standard: list[Any] = []
        for k, predictor in enumerate(data.predictors):
            mean = slopes[k] + std[k] * sum(factor[k, i] * z for i, z in enumerate(standard))
            scale = std[k] * factor[k, k]
            with numpyro.plate("group", len(data), dim=-1):
                name = "alpha" if scalar else f"alpha_{predictor}"
                slope = sample_whitened(name, mean, scale, estimates.likelihood(k, slopes), record=False)
            slopes[k] = slope
            standard.append((slope - mean) / scale)
        alpha = slopes[0] if scalar else jnp.stack(slopes, axis=-1)
        dims = ("group",) if scalar else ("group", "predictor")
        with contextlib.ExitStack() as plates:
            for axis, dim in enumerate(dims):
                plates.enter_context(numpyro.plate(dim, np.shape(alpha)[axis], dim=axis - len(dims)))
            numpyro.deterministic("alpha", alpha)
        return alpha, jnp.stack(standard, axis=-1)

    def _integrates(self, data: PointsInGroups) -> bool:
        """Return whether the intercepts are integrated out."""
        normal = self.num_components == 1 and not self.outliers and not self.student_t
        simple = normal and data.limited == "no"
        return self.pooling == "partial" and self.latents == "marginal" and simple and len(data.predictors) == 1

    def _grouped(self, data, p, alpha, pivot, values, recover):
        """Sample the observed values with true values and intercepts integrated out."""
        errors = jnp.asarray(data.errors)
        triple = jnp.stack([errors[..., 0, 0], errors[..., 0, 1], errors[..., 1, 1]], axis=-1)
        zero = jnp.zeros((len(data), 1))
        relation = GroupedLinearRelation(
            p["mean"] - pivot[0], None, p["offset"], p["spread"], alpha, p["std"], p["intrinsic_scatter"],
            zero + pivot[0], zero, triple, np.asarray(data.used),
        )  # fmt: skip
        with numpyro.plate("group", len(data)):
            drawn = numpyro.sample("observed", relation, obs=values)
        if recover:
            groups = relation.groups(drawn).sample(numpyro.prng_key())
            with numpyro.plate("group", len(data)):
                numpyro.deterministic("beta", groups[..., 1])
            _record(relation.conditional(drawn, groups).sample(numpyro.prng_key()), 1)

    def _points(self, data: PointsInGroups, p, slope, intercept, num: int, values, recover):
        """Sample the observed values for these slopes and intercepts."""
        rows, columns = np.shape(data.used)
        loc, cov, log_weights = p["loc"], p["cov"], p["log_weights"]
        if self.latents == "sampled":
            loc, cov = self._true_predictors(data, p, num, rows, columns)[..., None, :], jnp.zeros((1, num, num))
            log_weights = jnp.zeros(1)
        limits = None
        if data.limited != "no":
            order = jnp.asarray(data.order) if data.limited == "both" else None
            limits = Limits(jnp.asarray(data.limit), jnp.asarray(data.side), order)
        points = MeasuredPoints(
            loc, cov, log_weights, intercept, slope, p["intrinsic_scatter"], jnp.asarray(data.errors), limits,
            p.get("outliers"), p.get("nu"),
        )  # fmt: skip
        with numpyro.plate("group", rows, dim=-2), numpyro.plate("point", columns, dim=-1):
            with handlers.mask(mask=np.asarray(data.used)):
                drawn = numpyro.sample("observed", points, obs=values)
            if recover:
                _record(points.draw_true(numpyro.prng_key(), drawn), num, x=self.latents == "marginal")
                if self.outliers:
                    numpyro.deterministic("outlier_probability", points.outlier_probability(drawn))
                if self.student_t:
                    numpyro.deterministic("weight", points.weight(drawn))

    def _true_predictors(self, data, p, num: int, rows: int, columns: int):
        """Sample the true predictors, (J, M, P)."""
        if num > 1:
            with numpyro.plate("group", rows, dim=-2), numpyro.plate("point", columns, dim=-1):
                return numpyro.sample("x", dist.MultivariateNormal(p["loc"][0], covariance_matrix=p["cov"][0]))
        if self.num_components > 1:
            components = dist.Normal(p["loc"][:, 0], jnp.sqrt(p["cov"][:, 0, 0]))
            mixing = dist.Categorical(logits=p["log_weights"])
            with numpyro.plate("group", rows, dim=-2), numpyro.plate("point", columns, dim=-1):
                return numpyro.sample("x", dist.MixtureSameFamily(mixing, components))[..., None]
        min_variance = 1e-6 * jnp.asarray(data.unit)[0] ** 2
        information = jnp.where(
            np.asarray(data.used), 1.0 / jnp.maximum(jnp.asarray(data.errors)[..., 0, 0], min_variance), 0.0
        )
        with numpyro.plate("group", rows, dim=-2), numpyro.plate("point", columns, dim=-1):
            likelihood = GaussianLikelihood(jnp.asarray(data.values)[..., 0], information)
            return sample_whitened("x", p["mean"], p["std"], likelihood)[..., None]

    def simulate(self, key, data: PointsInGroups, parameters: Mapping[str, float] | None = None):
        """Draw a simulated sample with the design of ``data``.

        Parameters
        ----------
        key : jax.Array
            Random key.
        data : PointsInGroups
            Groups, errors and limits; a response drawn beyond the limit of its point is replaced by the limit.
        parameters : mapping of str to float, optional
            True values by name; parameters not named are drawn from their priors.

        Returns
        -------
        PointsInGroups, dict
            The sample with new measured values, and the true value of every parameter and latent.
        """
        observed, truth = simulated(self, key, data, parameters)
        return data.replace_observations(observed["observed"]), truth

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
    def units(self) -> dict[str, str]:
        """Units of the parameters: empty, because they are those of the data."""
        return {}

    @property
    def target_accept_prob(self) -> float:
        """Default of `hbm_jax.sample`; higher without pooling, where few points constrain a slope weakly."""
        return 0.9 if self.pooling == "none" else 0.8

    @property
    def description(self) -> str:
        """One-line description for reports."""
        options = ", correlated lines" if self.correlated else ""
        options += f", {self.num_components} populations of x" if self.num_components > 1 else ""
        options += ", outliers" if self.outliers else ", Student's t" if self.student_t else ""
        return f"Linear relation with errors in both variables, {self.pooling} pooling, {self.latents} latents{options}"

    def to_config(self) -> dict:
        """Return options as plain values and overridden priors as text; ``Relation(**config)`` is the same model."""
        return configuration(self) | {
            "priors": priors_to_text(self.priors and {k: self.all_priors[k] for k in self.priors})
        }


def _record(true, num: int, x: bool = True) -> None:
    """Record the true predictors and responses, (J, M, P + 1)."""
    if x and num == 1:
        numpyro.deterministic("x", true[..., 0])
    elif x:
        numpyro.deterministic("x", true[..., :-1])
    numpyro.deterministic("y", true[..., -1])


def _slope_sums(data: PointsInGroups) -> Slopes:
    """Return the sums that estimate the slopes of each group from its own points."""
    noise = data.errors.diagonal(axis1=-2, axis2=-1)[..., :-1]
    return slopes_of_groups(data.values[..., :-1], data.values[..., -1], noise, np.asarray(data.used))


def _intercept_likelihood(data: PointsInGroups, alpha, pivot, scatter) -> GaussianLikelihood:
    """Return the Gaussian likelihood of the intercept of each group from its own points, for slopes (J, P)."""
    used = np.asarray(data.used)
    num = used.sum(axis=1)

    def mean(a):
        mask = used.reshape(*used.shape, *(1,) * (np.ndim(a) - 2))
        return jnp.where(mask, jnp.asarray(a), 0.0).sum(axis=1) / num.reshape(-1, *(1,) * (np.ndim(a) - 2))

    values, errors = mean(data.values), mean(jnp.diagonal(jnp.asarray(data.errors), axis1=-2, axis2=-1))
    variance = scatter**2 + errors[:, -1] + (alpha**2 * errors[:, :-1]).sum(-1)
    return GaussianLikelihood(values[:, -1] - (alpha * (values[:, :-1] - pivot)).sum(-1), num / variance)
