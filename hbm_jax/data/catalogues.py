"""Sources with spectra: base class of their containers, and readers of a catalogue with a folder of spectra."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from hbm_jax.data.building import listed_names, named_errors
from hbm_jax.data.columns import TEXT, Column, check_values, unused_errors
from hbm_jax.data.containers import Sample
from hbm_jax.data.tables import read_table
from hbm_jax.names import did_you_mean
from hbm_jax.spectra.stack import SpectrumStack
from hbm_jax.validation import DataError, Remedy, text_tuple, warn_unusual

Read = TypeVar("Read")
REQUIRED = ("name", "z")


class HasSpectra(Sample):
    """Base class of containers of sources, with a stack of spectra and the names of sources left out."""

    whole = ("left_out",)
    spectra: SpectrumStack
    left_out: tuple[tuple[str, str], ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about unusual values in the catalogue and the files, one sentence each."""
        return self.spectra.warnings

    def replace_observations(self, counts: ArrayLike) -> Self:
        """Return a copy with new counts in the source regions, (N, G), for example simulated ones.

        Raises
        ------
        DataError
            For a wrong shape, or counts that are negative or not integers.
        """
        spectra: dict[str, Any] = {"spectra": self.spectra.replace_observations(counts)}
        return replace(self, **spectra)  # type: ignore[type-var]

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return plain arrays by field name, text as arrays of strings, for storage and fingerprints."""
        fields = {key: np.array(value) for key, value in self._fields().items() if key not in ("spectra", "left_out")}
        fields["left_out"] = np.array([list(pair) for pair in self.left_out], dtype=str).reshape(-1, 2)
        return fields | self.spectra.to_dict()

    @staticmethod
    def _left_out(stored: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        """Return the names and reasons of sources left out from the output of `to_dict`."""
        return tuple((str(name), str(reason)) for name, reason in np.asarray(stored["left_out"]).reshape(-1, 2))

    def _notes(self) -> str:
        """Return sentences on the sources left out, and the warnings, to append to a description."""
        reasons = "; ".join(f"{name} ({reason})" for name, reason in self.left_out)
        return (f" Left out: {reasons}" if reasons else "") + self._warning_text()


@dataclass(frozen=True)
class Catalogue:
    """Rows of a catalogue of sources with spectra.

    Attributes
    ----------
    origin : str
        Path of the table, or the type of an object in memory, for messages.
    folder : path
        Folder of the spectra.
    declared : mapping of str to Column
        Columns that the reader accepts, by standard name.
    column_names : dict of str to str
        Name in the table of each column that is present, by standard name.
    values : dict of str to array
        Values of these columns, by standard name.
    names : tuple of str
        Names of all sources.
    excluded : list of str
        Names left out by the user; ``"bad"`` leaves out sources that cannot be read.
    warnings : tuple of str
        Warnings about columns that look like errors and are not used.
    """

    origin: str
    folder: Path
    declared: Mapping[str, Column]
    column_names: dict[str, str]
    values: dict[str, Any]
    names: tuple[str, ...]
    excluded: list[str]
    warnings: tuple[str, ...]

    def text(self, key: str, row: int) -> str:
        """Return a cell as text; empty if it is masked or the column is absent."""
        value = self.values[key][row] if key in self.values else None
        return "" if value is None or value is np.ma.masked else str(value).strip()

    def label(self, key: str, row: int) -> str:
        """Return the name of a cell for messages."""
        return f"{self.column_names.get(key, key)}, row {row}"

    def numbers(self, row: int) -> dict[str, float]:
        """Return the numerical columns of one source, NaN for missing values; issue warnings about unusual values.

        Raises
        ------
        DataError
            For an entry that is not a number, a value outside its allowed range, and a source without a redshift.
        """
        numbers = {}
        for key in self.column_names:
            if self.declared[key] is TEXT:
                continue
            text, label = self.text(key, row), self.label(key, row)
            try:
                numbers[key] = float(self.values[key][row]) if text else np.nan
            except (TypeError, ValueError):
                raise DataError(f"{label}: expected a number; found {self.values[key][row]!r}.") from None
            if key in REQUIRED and np.isnan(numbers[key]):
                raise DataError(f"{label}: expected {self.declared[key].description}; found {text or 'none'}.")
            column = np.where(np.arange(len(self.names)) == row, numbers[key], np.nan)  # this row alone is checked
            unusual = check_values({key: column}, self.declared, self.column_names, self.names)
            warn_unusual(unusual, origin=self.origin, stacklevel=6)
        return numbers

    def read_each(self, read: Callable[[int, str], Read], kind: str) -> tuple[list[Read], list[tuple[str, str]]]:
        """Read every source that is not left out by name; messages call a source `kind`.

        Returns
        -------
        list
            Results of ``read(row, name)``.
        list of (str, str)
            Names of sources left out, each with the reason.

        Raises
        ------
        DataError
            If sources cannot be read, with their names and the reasons, unless ``"bad"`` sources are left out; if no
            source can be read.
        """
        sources: list[Read] = []
        bad: list[tuple[str, str]] = []
        rows = [row for row, name in enumerate(self.names) if name not in self.excluded]
        for row in rows:
            try:
                sources.append(read(row, self.names[row]))
            except DataError as error:
                bad.append((self.names[row], str(error)))
        if bad and "bad" not in self.excluded:
            listing = "\n".join(f"  {name}: {reason}" for name, reason in bad)
            by_name, all_bad = Remedy("leave_out", [name for name, _ in bad]), Remedy("leave_out", "bad")
            raise DataError(
                f"{self.origin}: expected {len(rows)} {kind}s that can be read; found {len(bad)} that cannot:\n"
                f"{listing}\nCorrect them, or leave them out by name: {by_name} ({all_bad} leaves out all of them).",
                [by_name, all_bad],
            )
        if not sources:
            reasons = "\n".join(reason for _, reason in bad)
            raise DataError(f"{self.origin}: expected a {kind} that can be read; found none.\n{reasons}")
        return sources, [*((name, "by name") for name in self.excluded if name != "bad"), *bad]


def read_catalogue(
    source: Any,
    declared: Mapping[str, Column],
    *,
    columns: Mapping[str, str] | None,
    format: str | None,
    missing: float | Sequence[float],
    spectra: str | Path | None,
    leave_out: str | Sequence[str],
    aliases: Mapping[str, str],
) -> Catalogue:
    """Read the declared columns of a catalogue; the columns ``name`` and ``z`` are required.

    Raises
    ------
    FileNotFoundError
        If the catalogue or the folder does not exist.
    DataError
        If a required column is missing, or a name in `leave_out` is not in the catalogue.
    """
    table = read_table(source, format=format, missing=missing)
    folder = Path(source).parent if isinstance(source, str | Path) else Path()
    if spectra is not None:
        folder = Path(spectra)
    if not folder.is_dir():
        raise FileNotFoundError(f"spectra: expected a folder; found {str(folder)!r}, which does not exist.")
    column_names = table.resolve(list(declared), columns, aliases)
    with named_errors(table.origin):
        table.require(column_names, *REQUIRED)
    values = table.values_of(column_names, declared)
    names = text_tuple(values["name"], column_names["name"], "row {row}")
    excluded = listed_names(leave_out)
    for name in excluded:
        if name != "bad" and name not in names:
            raise DataError(
                f"leave_out: expected names of the catalogue {table.origin}; found {name!r}{did_you_mean(name, names)}."
            )
    unused = warn_unusual(unused_errors(column_names, table.columns, ("z", "nh_mw")), origin=table.origin, stacklevel=4)
    return Catalogue(table.origin, folder, declared, column_names, values, names, excluded, unused)


def possible_stems(name: str) -> list[str]:
    """Return the names that files or folders of a source may have: blanks may be omitted or replaced with ``_``."""
    return list(dict.fromkeys([name, name.replace(" ", ""), name.replace(" ", "_")]))
