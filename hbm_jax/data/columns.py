"""Columns of tables: units, physically allowed ranges, usual ranges, and the checks that use them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hbm_jax.names import did_you_mean, listed
from hbm_jax.validation import DataError, Floats, Labels, Remedy, reject_rows

EVERYTHING = (-np.inf, np.inf)
# A value shared by several rows causes a warning if its distance from all other values exceeds this multiple of their
# range. The second threshold is for values that look like missing-value codes, such as -99 and 999.
FAR, FAR_NINES = 2.0, 0.5
MISSING_VALUE = "if it stands for a missing value, pass"
# Names of an error column in tables that have only one.
BARE_ERRORS = {"sigma", "err", "error", "unc", "uncertainty", "stderr"}


@dataclass(frozen=True)
class Column:
    """Unit and ranges of a column of a table.

    Attributes
    ----------
    unit : str or None
        astropy unit; ``""`` for dimensionless numbers; None for text, or if the unit differs from entry to entry.
    description : str
        Description of a value in messages, such as ``"a redshift"``.
    allowed : (float, float)
        Open interval; values outside it are errors.
    usual : (float, float)
        Closed interval; values outside it cause a warning.
    zero : bool
        True: 0 is allowed too, for an `allowed` interval that begins at 0.
    """

    unit: str | None = ""
    description: str = "a number"
    allowed: tuple[float, float] = EVERYTHING
    usual: tuple[float, float] = EVERYTHING
    zero: bool = False


TEXT, UNCONVERTED = Column(None, "text"), Column(None)
ERROR = Column("", "an error", (0.0, np.inf), zero=True)
POSITIVE_ERROR = replace(ERROR, zero=False)
REDSHIFT = Column("", "a redshift", (0.0, 20.0), (0.0, 3.0))  # of supernovae
BURST_REDSHIFT = replace(REDSHIFT, usual=(0.0, 10.0))
# Heliocentric and CMB redshifts differ by the solar motion of 370 km/s and, if corrected for, the peculiar velocity of
# the host.
FRAMES_DIFFER = 0.01  # times 1 + z


def check_values(
    numbers: Mapping[str, Floats], declared: Mapping[str, Column], labels: Mapping[str, str], names: Sequence[str]
) -> list[str]:
    """Return warnings about values outside the usual ranges of columns, whose missing values are NaN.

    All mappings are by standard name; `labels` are the names of the columns in messages, `names` those of the objects.

    Raises
    ------
    DataError
        If a value is outside its allowed range. The message names column, row, object and value; if the value looks
        like a missing-value code, it also contains the option that declares it as one.
    """
    texts = []
    for key, values in numbers.items():
        column = declared.get(key)
        if column is None:
            continue
        low, high = column.allowed
        bad = (values >= high) | ((values < low) if column.zero else (values <= low))
        if bad.any():
            codes = sorted({float(value) for value in values[bad] if _is_code(value)})
            remedies = [_missing_remedy(codes)] if codes else []
            hint = f" ({MISSING_VALUE} {remedies[0]})" if codes else ""
            expected = f"{column.description} {_between(column)}{hint}"
            reject_rows(bad, values, labels.get(key, key), expected, names, remedies)
        low, high = column.usual
        unusual = np.flatnonzero((values < low) | (values > high))
        if unusual.size:
            first = names[unusual[0]] if unusual[0] < len(names) else f"row {unusual[0]}"
            more = f" and {unusual.size - 1} more" if unusual.size > 1 else ""
            texts.append(
                f"{labels.get(key, key)} of {first}{more} is {values[unusual[0]]:g}, unusual for "
                f"{column.description}: {low:g} to {high:g} are usual"
            )
    return texts


def check_plain(numbers: Mapping[str, Floats], labels: Mapping[str, str]) -> list[str]:
    """Return warnings about values that look like missing-value codes, in columns without declared ranges."""
    return [text for key, values in numbers.items() for text in isolated_values(values, labels.get(key, key))]


def check_frames(z_cmb: Floats, z_hel: Floats, labels: Mapping[str, str], names: Sequence[str]) -> None:
    """Raise DataError for CMB and heliocentric redshifts that differ by more than 0.01 (1 + z)."""
    inconsistent = np.abs(z_hel - z_cmb) > FRAMES_DIFFER * (1.0 + z_cmb)
    pairs = Labels(len(z_cmb), lambda row: f"{z_cmb[row]:g} and {z_hel[row]:g}")
    expected = f"redshifts of one object in two frames, no further apart than {FRAMES_DIFFER:g} (1 + z)"
    label = " and ".join(labels.get(key, key) for key in ("z_cmb", "z_hel"))
    reject_rows(inconsistent, pairs, label, expected, names)


def _between(column: Column) -> str:
    """Return the allowed range of a column in words."""
    low, high = column.allowed
    if column.zero:
        return "of 0 or more" if np.isinf(high) else f"from 0 to {high:g}"
    if np.isinf(high):
        return f"above {low:g}"
    return f"below {high:g}" if np.isinf(low) else f"between {low:g} and {high:g}"


def _is_code(value: float) -> bool:
    """Return True for a number that looks like a missing-value code: nines only, or -1."""
    text = f"{value:g}"
    return text == "-1" or set(text.lstrip("-").replace(".", "")) == {"9"}


def _missing_remedy(codes: Sequence[float]) -> Remedy:
    """Return the option that declares numbers as missing-value codes."""
    numbers = tuple(int(code) if abs(code) < 1e15 and code == round(code) else code for code in codes)
    return Remedy("missing", numbers if len(numbers) > 1 else numbers[0])


def isolated_values(values: Floats, label: str) -> list[str]:
    """Return a warning if several rows share a value far from all others, such as -99 for "not measured"."""
    finite = values[np.isfinite(values)]
    for value in (finite.min(), finite.max()) if finite.size else ():
        count = int(np.sum(finite == value))
        if not 2 <= count < len(finite) / 2:
            continue
        others = np.unique(finite[finite != value])
        threshold = FAR_NINES if _is_code(value) else FAR
        if len(others) >= 3 and np.min(np.abs(others - value)) > threshold * np.ptp(others):
            range_text = f"and between {others[0]:g} and {others[-1]:g} in the other rows"
            remedy = _missing_remedy([float(value)])
            return [f"{label} is {value:g} in {count} rows {range_text}; {MISSING_VALUE} {remedy}"]
    return []


class RepeatedNames(str):
    """Category of warnings about repeated names, which do not apply where repeated measurements are accounted for."""


def repeated_names(names: Sequence[str], objects: str) -> list[str]:
    """Return a warning if names are repeated, because errors are too small if an object is counted twice."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if not repeated:
        return []
    return [
        RepeatedNames(
            f"{listed(repeated, 5)} {'are' if len(repeated) > 1 else 'is'} in the table more than once; {objects} with "
            "the same name are treated as independent measurements of different objects"
        )
    ]


def without_repeated_names(warnings: Iterable[str]) -> tuple[str, ...]:
    """Return the warnings that are not about repeated names."""
    return tuple(text for text in warnings if not isinstance(text, RepeatedNames))


def unused_errors(column_names: Mapping[str, str], table: Iterable[str], quantities: Iterable[str]) -> list[str]:
    """Return warnings about unused columns that look like errors of the quantities in use.

    `column_names` are the used columns by standard name, `table` all columns, and `quantities` the standard names of
    quantities with errors.
    """
    used = set(column_names.values())
    texts = []
    quantity_of = {column_names[key].lower(): key for key in quantities if key in column_names}
    for name in table:
        if name in used:
            continue
        lower = name.lower()
        if lower in BARE_ERRORS:
            texts.append(f"column {name!r} looks like an error and is not used")
        for column, key in quantity_of.items():
            has_error = any(error in column_names for error in (f"sigma_{key}", f"var_{key}", "covariance"))
            # x0, the amplitude of SALT, has covariances in tables of supernovae although it is not used itself.
            if lower in _names_of_covariances(column, {*quantity_of, "x0"} - {column}):
                texts.append(f"column {name!r} looks like the covariance of {column_names[key]!r} and is not used")
                break
            if lower in _names_of_errors(column):
                if not has_error:
                    texts.append(f"column {name!r} looks like the error of {column_names[key]!r} and is not used")
                break
    return texts


def _names_of_covariances(column: str, others: Iterable[str]) -> set[str]:
    """Return common names of the covariances and correlations of a column with others, in lower case."""
    pairs = [pair for other in others for pair in (f"{column}_{other}", f"{other}_{column}")]
    return {f"{start}_{pair}" for start in ("cov", "covariance", "corr", "correlation") for pair in pairs}


def _names_of_errors(column: str) -> set[str]:
    """Return common names of the error of a column, in lower case."""
    starts = ("e_", "err_", "error_", "sigma_", "s_", "d_", "unc_", "std_", "stderr_", "s", "d", "e", "err", "sigma")
    ends = ("_err", "_error", "_e", "_sigma", "_unc", "_uncertainty", "_std", "_se", "_sd", "_stderr", "err", "error")
    return {prefix + column for prefix in starts} | {column + suffix for suffix in ends}


def require_in_table(subject: str, name: str, columns: Iterable[str]) -> None:
    """Raise `DataError` if `name` is not a column of the table; the message begins with the `subject`."""
    if name not in columns:
        raise DataError(
            f"{subject} is not in the table{did_you_mean(str(name), columns)}: expected one of {listed(columns)}; "
            f"found {name!r}."
        )


def index_of_groups(values: Sequence[str], names: Sequence[str]) -> NDArray[np.int64]:
    """Return the index in `names` of each value."""
    index = {name: i for i, name in enumerate(names)}
    return np.array([index[value] for value in values], dtype=np.int64)


def rows_by_group(group_index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of each group in their order, (num_groups, largest group), padded with -1.

    Parameters
    ----------
    group_index : (num_rows,)
        Number of the group of each row, from 0; every group has a row.
    """
    # A stable sort of integers of 16 bits or fewer takes linear time.
    order = np.argsort(group_index.astype(np.min_scalar_type(group_index.max())), kind="stable")
    sizes = np.bincount(group_index)
    used = np.arange(sizes.max()) < sizes[:, None]
    rows = np.full(used.shape, -1)
    rows[used] = order
    return rows


def padded(values: NDArray[Any], rows: NDArray[np.int64], filler: Any) -> NDArray[Any]:
    """Return values (num_rows, ...) arranged like `rows`, the output of `rows_by_group`; read-only.

    The padding has the value `filler`.
    """
    # Row -1 is the padding. For a million rows, `take` is five times as fast as indexing.
    out = np.concatenate([values, np.asarray(filler)[None]]).take(rows, 0, mode="wrap")
    out.flags.writeable = False
    return out
