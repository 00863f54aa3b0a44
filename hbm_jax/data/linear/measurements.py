"""Forms of measurement that become values with normal errors: asymmetric errors, logarithms, repeated measurements."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hbm_jax.data.columns import index_of_groups
from hbm_jax.data.linear.grouped import GroupedRows, pairs_of
from hbm_jax.names import did_you_mean, listed
from hbm_jax.validation import DataError, Floats, float_vector, reject_rows, require_covariances, text_tuple

NO_LIMIT = ("", "none", "=", "0", "0.0", "false")
LIMITS = dict.fromkeys(NO_LIMIT, 0.0)
LIMITS |= dict.fromkeys(("upper", "<", "1", "1.0", "true"), 1.0)
LIMITS |= dict.fromkeys(("lower", ">", "-1", "-1.0"), -1.0)
COMBINED = "object"  # column that names the object of a row


def limit_words(column: Any) -> list[str]:
    """Return the entries of a column of limits as lower-case text."""
    return ["" if word is np.ma.masked else str(word).strip().lower() for word in column]


def with_normal_errors(
    columns: Mapping[str, Any], coordinates: Sequence[str], log10: Collection[str], column_names: Mapping[str, str]
) -> dict[str, Any]:
    """Return columns in which every coordinate has a value and one error.

    Parameters
    ----------
    columns : mapping of str to array (N,)
        Columns by standard name.
    coordinates : sequence of str
        Names of the coordinates.
    log10 : collection of str
        Coordinates whose columns are linear and whose logarithms are wanted; ``cut_A`` and ``threshold_A`` are
        converted too.
    column_names : mapping of str to str
        Names of columns in messages.

    Returns
    -------
    dict
        An interval from A - A_err_lo to A + A_err_hi, of the logarithm where it is wanted, becomes its centre and half
        of its width: the normal distribution with the same interval of one standard deviation. A missing error of a
        limit becomes 0.

    Raises
    ------
    DataError
        For errors given in two forms or below 0, and logarithms of values, or of their lower ends, that are not
        positive.
    """
    for key in log10:
        if key not in coordinates:
            names, hint = ", ".join(coordinates), did_you_mean(key, coordinates)
            raise DataError(f"log10: expected coordinates, of {names}; found {key!r}{hint}.")
    converted = dict(columns)
    for key in coordinates:
        asymmetric = f"{key}_err_lo" in columns or f"{key}_err_hi" in columns
        # True for the rows whose value is a limit; empty without a column of limits.
        limit = np.array([word not in NO_LIMIT for word in limit_words(columns.get(f"limit_{key}", ()))], bool)
        if f"sigma_{key}" in columns and limit.any():
            converted[f"sigma_{key}"] = _errors_of_limits(columns, f"sigma_{key}", limit, column_names)
        if asymmetric or key in log10:
            _require_convertible_errors(columns, key, asymmetric, len(coordinates), column_names)
            converted |= _interval(converted, key, asymmetric, key in log10, limit, column_names)
    return converted


def _errors_of_limits(columns: Mapping[str, Any], key: str, limit: NDArray[np.bool_], column_names) -> Floats:
    """Return a column of errors, 0 where a limit has none."""
    errors = float_vector(columns[key], column_names.get(key, key), allow_missing=True)
    return np.where(np.isnan(errors) & limit, 0.0, errors) if len(limit) == len(errors) else errors


def _require_convertible_errors(columns, key: str, asymmetric: bool, num_coordinates: int, column_names) -> None:
    """Raise DataError for a coordinate with one side of an interval, with errors in two forms, or with a covariance."""
    low, high, sigma = f"{key}_err_lo", f"{key}_err_hi", f"sigma_{key}"
    if asymmetric and not (low in columns and high in columns and sigma not in columns):
        found = [column_names.get(name, name) for name in (low, high, sigma) if name in columns]
        raise DataError(f"errors of {key}: expected {low} and {high}, or {sigma}; found {listed(found)}.")
    for name in columns:
        if name.startswith("covariance") and (num_coordinates == 2 or key in name.split("_")[1:]):
            raise DataError(
                f"{column_names.get(name, name)}: expected a correlation, because the error of {key} is converted; "
                "found a covariance."
            )


def _interval(
    columns, key: str, asymmetric: bool, logarithm: bool, limit: NDArray[np.bool_], column_names
) -> dict[str, Any]:
    """Return the columns of a coordinate whose interval is replaced by its centre and half of its width."""
    label = column_names.get(key, key)
    values = float_vector(columns[key], label, allow_missing=True)
    ends = []
    for name in (f"{key}_err_lo", f"{key}_err_hi") if asymmetric else (f"sigma_{key}",) * 2:
        errors = _errors_of_limits(columns, name, limit, column_names) if name in columns else np.zeros(len(values))
        reject_rows(errors < 0, errors, column_names.get(name, name), "an error of 0 or more", ())
        if len(errors) != len(values):
            raise DataError(f"{column_names.get(name, name)}: expected {len(values)} values; found {len(errors)}.")
        ends.append(errors)
    low, high = values - ends[0], values + ends[1]
    changed: dict[str, Any] = {}
    if logarithm:
        reject_rows(values <= 0, values, label, "a positive value, whose logarithm is taken", ())
        error = f"{key}_err_lo" if asymmetric else f"sigma_{key}"
        expected = f"a value above its error of {error}, whose logarithm is taken; or an upper limit without error"
        reject_rows(low <= 0, values, label, expected, ())
        low, high = np.log10(low), np.log10(high)
        for name in (f"cut_{key}", f"threshold_{key}"):
            if name in columns:
                label = column_names.get(name, name)
                limits = float_vector(columns[name], label, allow_missing=True)
                reject_rows(limits <= 0, limits, label, "a positive value, whose logarithm is taken", ())
                changed[name] = np.log10(limits)
    changed[key] = 0.5 * (low + high)
    if asymmetric or f"sigma_{key}" in columns:
        changed[f"sigma_{key}"] = 0.5 * (high - low)
    return changed


def point_errors(rows: GroupedRows) -> Floats:
    """Return the error covariances (N, D, D) of the D coordinates of points."""
    *predictors, _ = rows.coordinates
    for kind in {"covariance", "correlation"} & set(rows.columns):
        if len(predictors) > 1:
            raise DataError(
                f"{rows.label(kind)}: expected the coordinates in the name, as in '{kind}_{predictors[0]}_y', with "
                f"{len(predictors)} predictors; found {kind!r}."
            )
    errors = rows.errors(pairs_of(rows.coordinates, short=len(predictors) == 1), without_error=rows.coordinates)
    if len(predictors) > 1:
        # With three or more coordinates, valid pairwise correlations do not ensure a positive definite matrix.
        diagonal = np.diagonal(errors, axis1=1, axis2=2)
        unit_filled = errors + np.where(diagonal > 0, 0.0, 1.0)[:, :, None] * np.eye(len(rows.coordinates))
        require_covariances(unit_filled, "covariance of the errors", rows.labels)
    return errors


def combined_by_object(
    columns: Mapping[str, Any], coordinates: Sequence[str], column_names: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """Return columns with one row per object, and warnings.

    Parameters
    ----------
    columns : mapping of str to array (N,)
        Columns with a column ``object``; rows of the same object are independent measurements of the same true
        coordinates. A coordinate may be missing in all but one of its rows.
    coordinates, column_names
        As for `with_normal_errors`.

    Returns
    -------
    columns : dict
        Means weighted by the inverse covariances, and their covariances. The density of all rows, given the true
        coordinates, is that of these times a constant, so that nothing is lost.
    warnings : list of str
        The number of objects that are combined, and a sentence if the response of every one of them is the same in all
        its rows, as if it were one measurement written several times.

    Raises
    ------
    DataError
        For an object whose rows differ in other columns, are limits, or have errors of 0 and different values.
    """
    names = text_tuple(columns[COMBINED], column_names.get(COMBINED, COMBINED), "")
    names = tuple(name or f"row {row}" for row, name in enumerate(names))  # a row without a name is its own object
    unique = tuple(dict.fromkeys(names))
    index = index_of_groups(names, unique)
    first = np.unique(index, return_index=True)[1]
    repeated = np.flatnonzero(np.bincount(index) > 1)
    if not len(repeated):
        return {key: column for key, column in columns.items() if key != COMBINED}, []
    filled, measured = _fill_missing(columns, coordinates, index, first, column_names)
    rows = GroupedRows(filled, coordinates, column_names, 3)
    if len(names) != rows.num:
        raise DataError(f"{column_names.get(COMBINED, COMBINED)}: expected {rows.num} names; found {len(names)}.")
    errors = point_errors(rows)
    values, covariances = rows.values[first], errors[first]
    order = np.argsort(index, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(index))[:-1])
    all_repeated = True  # y and its error are the same in all rows of every object
    for number in repeated:
        of_object = members[number]
        _require_same_entries(columns, coordinates, of_object, unique[number], column_names)
        values[number], covariances[number] = _weighted_mean(
            rows.values[of_object], errors[of_object], measured[of_object], coordinates, unique[number]
        )
        y, error = rows.values[of_object, -1], errors[of_object, -1, -1]
        all_repeated &= bool(measured[of_object, -1].all() and np.ptp(y) == 0 and np.ptp(error) == 0 and error[0] > 0)
    counted = f"{len(repeated)} of {len(unique)} objects"
    warnings = [f"{counted} have several rows, which are combined as measurements of the same true values"]
    if all_repeated:
        objects = listed([unique[number] for number in repeated], 3)
        warnings.append(
            f"{column_names.get('y', 'y')} and its error are the same in all rows of {objects}, and are combined as "
            "independent measurements; if it was measured once, leave it empty in all rows but one"
        )
    return _as_columns(filled, coordinates, values, covariances, first), warnings


def _fill_missing(columns, coordinates, index, first, column_names) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """Fill missing coordinates from another row of the same object.

    Returns
    -------
    columns : dict
        Columns with the filled coordinates and their errors.
    measured : (N, D) of bool
        False for the coordinates that were filled.
    """
    filled = {name: column for name, column in columns.items() if name != COMBINED}
    measured = np.ones((len(index), len(coordinates)), bool)
    for position, key in enumerate(coordinates):
        if key not in columns:
            continue  # reported by GroupedRows
        values = float_vector(columns[key], column_names.get(key, key), allow_missing=True)
        if len(values) != len(index):
            continue
        measured[:, position] = ~np.isnan(values)
        first_measured = np.array(first)  # row of each object
        rows = np.flatnonzero(measured[:, position])[::-1]
        first_measured[index[rows]] = rows  # of several rows of an object, the last assignment remains: the first row
        source = np.where(measured[:, position], np.arange(len(index)), first_measured[index])
        filled[key] = values[source]
        if f"sigma_{key}" in columns:
            name = f"sigma_{key}"
            filled[name] = float_vector(columns[name], column_names.get(name, name), allow_missing=True)[source]
    return filled, measured


def _require_same_entries(columns, coordinates, rows, name: str, column_names) -> None:
    """Raise an error for rows of an object that are limits, or differ in a column that is not a measurement."""
    measured = {*coordinates, *(f"sigma_{key}" for key in coordinates)}
    for key, column in columns.items():
        if key in measured or key.startswith(("covariance", "correlation")):
            continue
        entries = [str(entry) for entry in np.ma.asarray(column)[rows].tolist()]
        label = f"{column_names.get(key, key)} of object {name}"
        if key.startswith("limit_") and any(word not in NO_LIMIT for word in limit_words(np.ma.asarray(column)[rows])):
            raise DataError(f"{label}: expected a single row for an object with a limit; found {len(rows)}.")
        if len(set(entries)) > 1:
            raise DataError(f"{label}: expected the same entry in all of its rows; found {listed(entries, 3)}.")


def _weighted_mean(values, errors, measured, coordinates, name: str) -> tuple[Floats, Floats]:
    """Return the mean (D,) of the rows of an object weighted by the inverse covariances, and its covariance (D, D)."""
    size = len(coordinates)
    without_error = np.diagonal(errors, axis1=1, axis2=2) == 0
    exact = without_error.all(axis=0)
    for position, key in enumerate(coordinates):
        if without_error[:, position].any() and not exact[position]:
            raise DataError(f"errors of {key} of object {name}: expected all 0 or none; found both.")
        if exact[position] and np.ptp(values[measured[:, position], position]) > 0:
            found = ", ".join(f"{value:g}" for value in values[measured[:, position], position][:3])
            raise DataError(f"{key} of object {name}: expected errors, or the same value in all rows; found {found}.")
    information, weighted = np.zeros((size, size)), np.zeros(size)
    for value, error, present in zip(values, errors, measured, strict=True):
        used = np.flatnonzero(present & ~exact)
        inverse = np.linalg.inv(error[np.ix_(used, used)])
        information[np.ix_(used, used)] += inverse
        weighted[used] += inverse @ value[used]
    mean, covariance, inferred = np.array(values[0]), np.zeros((size, size)), np.flatnonzero(~exact)
    inverse = np.linalg.inv(information[np.ix_(inferred, inferred)])
    covariance[np.ix_(inferred, inferred)] = 0.5 * (inverse + inverse.T)
    mean[inferred] = inverse @ weighted[inferred]
    return mean, covariance


def _as_columns(columns, coordinates, values, covariances, first) -> dict[str, Any]:
    """Return columns with the first row of each object and the combined coordinates and errors."""
    replaced = ("covariance", "correlation")
    combined: dict[str, Any] = {}
    for key, column in columns.items():
        if not key.startswith(replaced):
            combined[key] = np.ma.asarray(column)[first] if np.ma.isMaskedArray(column) else np.asarray(column)[first]
    for position, key in enumerate(coordinates):
        combined[key], combined[f"sigma_{key}"] = values[:, position], np.sqrt(covariances[:, position, position])
    for (i, j), pair in pairs_of(coordinates, short=len(coordinates) == 2).items():
        if covariances[:, i, j].any():
            combined[f"covariance{pair}"] = covariances[:, i, j]
    return combined
