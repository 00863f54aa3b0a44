"""Checks of a relation: options that exclude each other, and points that do not fit them.

In all functions ``model`` is a `hbm_jax.models.Relation`.
"""

from collections.abc import Collection
from typing import Any

import numpy as np

from hbm_jax.data.linear.points_in_groups import PointsInGroups
from hbm_jax.models.linear.selected_points import check_injections, check_selected
from hbm_jax.models.selection import Selection, as_selections
from hbm_jax.validation import DataError, OptionError, Remedy


def check_options(model: Any) -> None:
    """Raise OptionError for incompatible options."""
    if model.correlated and model.pooling != "partial":
        message = f"Relation: correlated=True expects pooling='partial'; found {model.pooling!r}."
        raise OptionError(message, [Remedy("correlated", True), Remedy("pooling", "partial")])
    if model.student_t and (model.outliers or not model.scatter):
        conflict = Remedy("outliers", True) if model.outliers else Remedy("scatter", False)
        remedies = Remedy("student_t", True), Remedy("scatter", True), Remedy("outliers", False)
        message = f"Relation: student_t=True expects scatter=True and outliers=False; found {conflict}."
        raise OptionError(message, [*remedies, conflict])
    if model.num_components < 1:
        raise OptionError(f"Relation: num_components: expected 1 or more; found {model.num_components}.")
    if model.num_components > 1 and "x_mean" in model.priors:
        raise OptionError(
            f"Relation: num_components={model.num_components} expects no prior of x_mean, because the means of the "
            "components are in increasing order, with priors from the mean and the standard deviation of the "
            f"data; found {model.priors['x_mean']}.",
            [Remedy("num_components", model.num_components)],
        )
    if model.x_population == "exponential":
        _check_exponential(model)
    if not 0.0 <= model.Om0 <= 1.0:
        raise OptionError(f"Relation: Om0: expected a number from 0 to 1; found {model.Om0}.")


def _check_exponential(model: Any) -> None:
    """Raise OptionError for options that an exponential population does not have."""
    message = "Relation: x_population='exponential' expects "
    if model.num_components > 1:
        conflict = Remedy("num_components", model.num_components)
        raise OptionError(f"{message}num_components=1; found {conflict}.", [conflict])
    if model.latents == "sampled":
        raise OptionError(f"{message}latents='marginal'; found 'sampled'.", [Remedy("latents", "marginal")])
    chosen = () if model.by_injections else as_selections(model.selection, "Relation", limits_only=False)
    if len(chosen) > 1 or any(not isinstance(selection, Selection) for selection in chosen):
        raise OptionError(f"{message}at most one limit; found selection={str(model.selection)!r}.")


def check_broken(model: Any) -> None:
    """Raise OptionError for options that a line with a break does not have."""
    expected = {
        "latents": "marginal", "x_population": "normal", "num_components": 1, "outliers": False, "student_t": False,
        "evolution": "none",
    }  # fmt: skip
    for name, value in expected.items():
        if (found := getattr(model, name)) != value:
            raise OptionError(
                f"Relation: broken=True expects {name}={value!r}; found {found!r}.", [Remedy(name, value)]
            )
    if model.by_injections or len(model.selections) > 1 or not all(isinstance(s, Selection) for s in model.selections):
        raise OptionError(
            f"Relation: broken=True expects at most one limit; found selection={str(model.selection)!r}.",
            [Remedy("selection", "none")],
        )


def check_numerical(model: Any) -> None:
    """Raise OptionError for options that a parabola, or a scatter that changes with x, does not have."""
    option = "curved" if model.curved else "scatter_with_x"
    expected = {
        "latents": "marginal", "x_population": "normal", "num_components": 1, "outliers": False, "student_t": False,
        "broken": False,
    }  # fmt: skip
    if model.scatter_with_x:
        expected["scatter"] = True
    for name, value in expected.items():
        if (found := getattr(model, name)) != value:
            raise OptionError(
                f"Relation: {option}=True expects {name}={value!r}; found {found!r}.", [Remedy(name, value)]
            )
    if model.by_injections or not all(isinstance(part, Selection) for part in model.selections):
        raise OptionError(
            f"Relation: {option}=True expects limits as a selection; found selection={str(model.selection)!r}.",
            [Remedy("selection", "none")],
        )


def check_numerical_points(model: Any, data: PointsInGroups) -> None:
    """Raise DataError for points that a parabola, or a scatter that changes with x, does not have."""
    option, num = "curved" if model.curved else "scatter_with_x", len(data.predictors)
    if num > 1 or data.limited == "both":
        found = f"{num} predictors" if num > 1 else "limits of a predictor"
        raise DataError(
            f"Relation: {option}=True expects one predictor and limits of the response alone; found {found}.",
            [Remedy(option, False)],
        )


def check_broken_points(model: Any, data: PointsInGroups) -> None:
    """Raise DataError for points that a line with a break does not have."""
    num, pooling = len(data.predictors), model.pooling_of(len(data))
    unsupported = None
    if pooling != "complete":
        unsupported = f"pooling={pooling!r} and {len(data)} groups"
    elif num > 1:
        unsupported = f"{num} predictors"
    elif data.limited != "no" or np.any(data.common_error_y) or np.any(data.common_error_x):
        unsupported = "limits" if data.limited != "no" else "errors in common"
    if unsupported is not None:
        raise DataError(
            "Relation: broken=True expects one line (pooling='complete'), one predictor, and points without limits and "
            f"errors in common; found {unsupported}.",
            [Remedy("broken", False)],
        )


def check_points(model: Any, data: PointsInGroups, population_parameters: Collection[str]) -> None:
    """Raise an error where points do not fit the options; `population_parameters` are those of populations of lines."""
    num = len(data.predictors)
    if model.num_components > 1 and num > 1:
        raise DataError(
            f"Relation: num_components > 1 expects one predictor; found {num} ({', '.join(data.predictors)})."
        )
    if num > 1 and "correlation" in model.priors:
        raise DataError(
            f"Relation: a prior of correlation expects one predictor; found {num}, whose correlations with the "
            "intercept have the prior of Lewandowski, Kurowicka & Joe."
        )
    _check_errors(model, data)
    if model.broken:
        check_broken_points(model, data)
    if model.is_numerical:
        check_numerical_points(model, data)
    if "scatter_group" in model.priors and not (model.scatter and data.group_predictor_names):
        found = "no predictors of groups" if model.scatter else "scatter=False"
        raise DataError(f"Relation: a prior of scatter_group expects scatter and predictors of groups; found {found}.")
    _check_evolution(model, data)
    if model.x_population == "exponential" and (num > 1 or data.limited != "no"):
        unsupported = f"{num} predictors" if num > 1 else "limits"
        raise DataError(
            f"Relation: x_population='exponential' expects one predictor and no limits; found {unsupported}."
        )
    for selection in model.selections:
        check_selected(data, selection)
    if model.by_injections:
        check_injections(data, model.pooling_of(len(data)))
        if "scatter_group" in model.priors:
            raise DataError("Relation: selection='injections' expects no prior of scatter_group; found one.")
    group_priors = [name for name in population_parameters if name in model.priors]
    if model.pooling_of(len(data)) != model.pooling and (group_priors or model.correlated):
        option = f"a prior of {group_priors[0]}" if group_priors else "correlated=True"
        raise DataError(
            f"Relation: {option} expects two groups or more; found {len(data)}. Name the groups in a column group, "
            "or use pooling='complete' without it.",
            [Remedy("pooling", "complete")],
        )


def _check_evolution(model: Any, data: PointsInGroups) -> None:
    """Raise an error for points without a valid redshift, and for an exponent of one of several predictors."""
    if model.evolution == "none":
        return
    z, used = np.asarray(data.redshift), np.asarray(data.used)
    if not np.isfinite(z[used]).any():
        raise DataError(f"Relation: evolution={model.evolution!r} expects the column redshift; found none.")
    if (invalid := used & ~(z > -1.0)).any():
        j, i = np.argwhere(invalid)[0]
        raise DataError(
            f"Relation: evolution={model.evolution!r} expects a redshift above -1 for every point; found {z[j, i]:g} "
            f"in row {data.row[j, i]}."
        )
    evolving = [name for name in ("evolution_x", "evolution_alpha") if name in model.priors]
    if evolving and len(data.predictors) > 1:
        raise DataError(f"Relation: {evolving[0]} expects one predictor; found {len(data.predictors)}.")


def _check_errors(model: Any, data: PointsInGroups) -> None:
    """Raise an error where a missing error makes the density infinite."""
    variances = np.diagonal(np.asarray(data.errors)[np.asarray(data.used)], axis1=-2, axis2=-1)
    missing = [name for name, values in zip((*data.predictors, "y"), variances.T, strict=True) if not values.all()]
    for name in missing:
        if name == "y" and not model.scatter:
            raise DataError("Relation(scatter=False): expected errors of y for every point; found points without one.")
        if name != "y" and model.latents == "sampled":
            raise DataError(
                f"Relation(latents='sampled'): expected an error of {name} for every point; found points without "
                "one. Use latents='marginal'.",
                [Remedy("latents", "marginal")],
            )
        if name != "y" and model.x_population == "exponential":
            raise DataError(
                f"Relation(x_population='exponential'): expected an error of {name} for every point; found points "
                "without one."
            )
