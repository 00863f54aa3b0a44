"""Columns of a table: their units, the range that physics allows and the range that is usual."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hbm_jax.names import listed
from hbm_jax.validation import DataError, Labels, reject_rows

__all__ = [
    "BURST_REDSHIFT",
    "ERROR",
    "POSITIVE_ERROR",
    "REDSHIFT",
    "TEXT",
    "Column",
    "Unusual",
    "check_frames",
    "check_plain",
    "check_values",
    "leave_out_rows",
    "listed_names",
    "places_of",
    "places_within",
    "repeated_names",
    "unused_errors",
    "warnings_of",
]

Floats = NDArray[np.float64]
EVERYTHING = (-np.inf, np.inf)
# How far from all others, in units of their range, a value lies that several rows have and that is warned of; and how
# far where it is written with nines alone, as -99 and 999 are.
FAR, FAR_NINES = 2.0, 0.5
# What tables with a single column of errors call it.
BARE_ERRORS = {"sigma", "err", "error", "unc", "uncertainty", "stderr"}


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes
    ----------
    unit : str or None
        astropy unit, ``""`` for a number; None for text, or where the unit differs from entry to entry.
    what : str
        What messages call a value, such as ``"a redshift"``.
    allowed : (float, float)
        Open interval; what is not in it cannot be right.
    usual : (float, float)
        Closed interval; what is not in it is warned of.
    zero : bool
        Whether 0 is right, too, where what is allowed begins there.
    """

    unit: str | None = ""
    what: str = "a number"
    allowed: tuple[float, float] = EVERYTHING
    usual: tuple[float, float] = EVERYTHING
    zero: bool = False


TEXT = Column(None)
ERROR = Column("", "an error", (0.0, np.inf), zero=True)
POSITIVE_ERROR = replace(ERROR, zero=False)
REDSHIFT = Column("", "a redshift", (0.0, 20.0), (0.0, 3.0))  # of supernovae
BURST_REDSHIFT = replace(REDSHIFT, usual=(0.0, 10.0))
# Redshifts in two frames differ by our motion of 370 km/s and, where that was corrected, by the host's.
FRAMES_DIFFER = 0.01  # times 1 + z


@dataclass(frozen=True, eq=False, repr=False)
class Unusual:
    """What is unusual in the data of a container.

    Attributes
    ----------
    warnings : tuple of str
        A sentence each, without a full stop.
    """

    warnings: tuple[str, ...] = field(default=(), kw_only=True, metadata={"static": True})

    def _told(self) -> str:
        """Return the warnings as sentences after a description."""
        return "".join(f" Warning: {text}." for text in self.warnings)

    def _stored(self) -> dict[str, np.ndarray]:
        """Return what `to_dict` adds."""
        return {"warnings": np.array(self.warnings)} if self.warnings else {}


def warnings_of(stored: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the warnings that `to_dict` of a container stored."""
    return tuple(str(text) for text in np.atleast_1d(stored.get("warnings", ())))


def check_values(
    numbers: Mapping[str, Floats], declared: Mapping[str, Column], what: Mapping[str, str], names: Sequence[str]
) -> list[str]:
    """Refuse values that no measurement can have; returns warnings of those that are unusual.

    Parameters
    ----------
    numbers
        Columns by standard name; NaN is no value.
    declared
        Columns as they should be.
    what
        What messages call a column.
    names
        Of the objects.

    Raises
    ------
    DataError
        Naming column, row, object and value, and how to call the value missing.
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
            hint = f" ({_say_missing(codes)})" if codes else ""
            reject_rows(bad, values, what.get(key, key), f"{column.what} {_between(column)}{hint}", names)
        low, high = column.usual
        odd = np.flatnonzero((values < low) | (values > high))
        if odd.size:
            first = names[odd[0]] if odd[0] < len(names) else f"row {odd[0]}"
            more = f" and {odd.size - 1} more" if odd.size > 1 else ""
            texts.append(
                f"{what.get(key, key)} of {first}{more} is {values[odd[0]]:g}, unusual for {column.what}: "
                f"{low:g} to {high:g} are usual"
            )
    return texts


def check_plain(numbers: Mapping[str, Floats], what: Mapping[str, str]) -> list[str]:
    """Return warnings of columns that may hold anything: of values that look like codes for no value."""
    return [text for key, values in numbers.items() for text in isolated_values(values, what.get(key, key))]


def check_frames(z_cmb: Floats, z_hel: Floats, what: Mapping[str, str], names: Sequence[str]) -> None:
    """Refuse redshifts in two frames that cannot be of one object."""
    apart = np.abs(z_hel - z_cmb) > FRAMES_DIFFER * (1.0 + z_cmb)
    found = Labels(len(z_cmb), lambda row: f"{z_cmb[row]:g} and {z_hel[row]:g}")
    expected = f"redshifts of one object in two frames, no further apart than {FRAMES_DIFFER:g} (1 + z)"
    both = " and ".join(what.get(key, key) for key in ("z_cmb", "z_hel"))
    reject_rows(apart, found, both, expected, names)


def _between(column: Column) -> str:
    low, high = column.allowed
    if column.zero:
        return "of 0 or more" if np.isinf(high) else f"from 0 to {high:g}"
    if np.isinf(high):
        return f"above {low:g}"
    return f"below {high:g}" if np.isinf(low) else f"between {low:g} and {high:g}"


def _is_code(value: float) -> bool:
    """Return whether a number is one of those that are written for "no value": nines alone, or -1."""
    text = f"{value:g}"
    return text == "-1" or set(text.lstrip("-").replace(".", "")) == {"9"}


def _say_missing(codes: Sequence[float]) -> str:
    text = f"{codes[0]:g}" if len(codes) == 1 else f"({', '.join(f'{code:g}' for code in codes)})"
    return f"where it means that there is no value, say so: missing={text}"


def isolated_values(values: Floats, what: str) -> list[str]:
    """Warn of one value that several rows have and that is far from all others, as -99 for "not measured" is."""
    finite = values[np.isfinite(values)]
    for value in (finite.min(), finite.max()) if finite.size else ():
        times = int(np.sum(finite == value))
        if not 2 <= times < len(finite) / 2:
            continue
        rest = np.unique(finite[finite != value])
        away = FAR_NINES if _is_code(value) else FAR
        if len(rest) >= 3 and np.min(np.abs(rest - value)) > away * np.ptp(rest):
            others = f"and between {rest[0]:g} and {rest[-1]:g} in the others"
            return [f"{what} is {value:g} in {times} rows {others}; {_say_missing([float(value)])}"]
    return []


def repeated_names(names: Sequence[str], objects: str) -> list[str]:
    """Warn of objects that are there twice: data that count twice make errors too small."""
    twice = [name for name, times in Counter(names).items() if times > 1]
    if not twice:
        return []
    return [
        f"{listed(twice, 5)} {'are' if len(twice) > 1 else 'is'} in the table more than once; {objects} of one name "
        "are taken as independent measurements of different objects"
    ]


def unused_errors(found: Mapping[str, str], table: Iterable[str], quantities: Iterable[str]) -> list[str]:
    """Warn of columns that look like errors of a quantity in use and are not used.

    Parameters
    ----------
    found
        Standard name to the table's, of the columns that are used.
    table
        Names of all columns of the table.
    quantities
        Standard names of what has errors.
    """
    used = set(found.values())
    texts = []
    own = {found[key].lower(): key for key in quantities if key in found}
    for name in table:
        if name in used:
            continue
        lower = name.lower()
        if lower in BARE_ERRORS:
            texts.append(f"column {name!r} looks like an error and is not used")
        for column, key in own.items():
            if lower in _names_of_errors(column) or any(
                lower in (f"{start}_{column}_{other}", f"{start}_{other}_{column}")
                for start in ("cov", "covariance", "corr", "correlation")
                for other in (*own, "x0")
                if other != column
            ):
                kind = "covariance" if lower.startswith(("cov", "corr")) else "error"
                if kind == "error" and any(name in found for name in (f"sigma_{key}", f"var_{key}", "covariance")):
                    break
                texts.append(f"column {name!r} looks like the {kind} of {found[key]!r} and is not used")
                break
    return texts


def _names_of_errors(column: str) -> set[str]:
    """Names that tables give to the error of a column, in lower case."""
    starts = ("e_", "err_", "error_", "sigma_", "s_", "d_", "unc_", "std_", "stderr_", "s", "d", "e", "err", "sigma")
    ends = ("_err", "_error", "_e", "_sigma", "_unc", "_uncertainty", "_std", "_se", "_sd", "_stderr", "err", "error")
    return {start + column for start in starts} | {column + end for end in ends}


def listed_names(leave_out: Any) -> list[str]:
    """Return names to leave out as a list, also where there is only one."""
    several = isinstance(leave_out, Iterable) and not isinstance(leave_out, str)
    return [str(name) for name in (leave_out if several else [leave_out])]


def leave_out_rows(names: Sequence[str], leave_out: str | Sequence[str]) -> NDArray[np.bool_]:
    """Return which rows to keep.

    Parameters
    ----------
    names
        Of the object of each row; a row is also called by its number, ``"row 3"``.
    leave_out
        Names to leave out.

    Raises
    ------
    DataError
        For a name that no row has.
    """
    wanted = set(listed_names(leave_out))
    numbers = {name: int(name[4:]) for name in wanted if re.fullmatch(r"row \d+", name)}
    rows = {name: row for name, row in numbers.items() if row < len(names)}
    if unknown := wanted - rows.keys() - wanted.intersection(names):
        raise DataError(
            f"leave_out: expected names of the table's rows, or 'row 3' and so on counted from 0; found "
            f"{listed(sorted(unknown))}."
        )
    keep = np.array([name not in wanted for name in names], dtype=bool)
    keep[list(rows.values())] = False
    return keep


def places_of(values: Sequence[str], names: Sequence[str]) -> NDArray[np.int64]:
    """Return the place of each value among the names."""
    place = {name: i for i, name in enumerate(names)}
    return np.array([place[value] for value in values], dtype=np.int64)


def places_within(of: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many entries of the same group come before each entry."""
    order = np.argsort(of.astype(np.min_scalar_type(of.max())), kind="stable")  # 16 bits are sorted in linear time
    sizes = np.bincount(of)
    within = np.empty(len(of), dtype=np.int64)
    within[order] = np.arange(len(of)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return within
