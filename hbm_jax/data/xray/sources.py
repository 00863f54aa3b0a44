"""Container and reader of X-ray sources with one spectrum each or with several: epochs, intervals, instruments."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jax.tree_util import register_dataclass
from numpy.typing import ArrayLike

from hbm_jax.data.building import named_errors
from hbm_jax.data.catalogues import HasSpectra
from hbm_jax.data.columns import TEXT, Column
from hbm_jax.data.containers import selected_rows
from hbm_jax.data.tables import read_table
from hbm_jax.data.xray.spectrum_files import read_grouped_spectra
from hbm_jax.names import listed
from hbm_jax.spectra.stack import SpectrumStack
from hbm_jax.validation import DataError, float_vector, frozen_array, text_tuple

ALIASES = {"name": "source", "z": "redshift", "spectrum": "pha"}
FILES = ("spectrum", "background", "rmf", "arf")
_KNOWN = "known_"  # prefix of stored columns


@register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class SourceSpectra(HasSpectra):
    """N X-ray sources with S spectra, of which each source has one or more.

    Build it with `from_spectra` or `hbm_jax.data.read_source_spectra`; the constructor does not validate. Registered as
    a pytree.

    Attributes
    ----------
    name : tuple of str
        Names of the sources.
    z : (N,)
        Redshifts; 0 for sources in the Galaxy.
    spectra : SpectrumStack
        The spectra with their responses.
    source : (S,) int
        Index of the source of each spectrum.
    epoch : tuple of str
        Epoch of each spectrum. Spectra of one source and epoch, such as those of several instruments, share it.
    instrument : tuple of str
        Name of the instrument of each spectrum; empty if it is unknown.
    known : dict of str to (S,) array
        Parameters of the model expression that are known for each spectrum, such as a Galactic column ``mw_nh``.
    left_out : tuple of (str, str)
        Names of sources that were left out, each with the reason.
    """

    name: tuple[str, ...] = field(metadata={"static": True})
    z: Any
    spectra: SpectrumStack
    source: Any
    epoch: tuple[str, ...] = field(metadata={"static": True})
    instrument: tuple[str, ...] = field(metadata={"static": True})
    known: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[tuple[str, str], ...] = field(default=(), metadata={"static": True})
    object_name = "source"

    @classmethod
    def from_spectra(
        cls,
        spectra: SpectrumStack,
        *,
        source: Sequence[str] | None = None,
        z: ArrayLike = 0.0,
        epoch: Sequence[Any] | None = None,
        instrument: Sequence[str] | None = None,
        known: Mapping[str, ArrayLike] | None = None,
    ) -> "SourceSpectra":
        """Build the container from spectra, after checking them.

        Raises DataError for unequal lengths, redshifts that are missing, negative, or differ between the spectra of one
        source, and known values that are not finite.

        Parameters
        ----------
        spectra : SpectrumStack
            S spectra from `SpectrumStack.of`.
        source : sequence of str, optional
            Name of the source of each spectrum, S; by default the names of the spectra, one source each.
        z : float or (S,)
            Redshift of the source of each spectrum.
        epoch : sequence, optional
            Epoch or interval of each spectrum, S; by default each spectrum has an epoch of its own.
        instrument : sequence of str, optional
            Name of the instrument of each spectrum, for factors between instruments.
        known : mapping of str to float or (S,) array, optional
            Values of parameters of the model expression that are known for each spectrum.
        """
        num = len(spectra)
        sources = tuple(str(entry) for entry in (spectra.name if source is None else source))
        instruments = ("",) * num if instrument is None else tuple(str(entry) for entry in instrument)
        epochs = tuple(str(entry) for entry in (range(num) if epoch is None else epoch))
        for key, entries in (("source", sources), ("epoch", epochs), ("instrument", instruments)):
            if len(entries) != num:
                raise DataError(f"{key}: expected an entry for each of {num} spectra; found {len(entries)}.")
        names = tuple(dict.fromkeys(sources))
        index = np.array([names.index(entry) for entry in sources])

        def column(key: str, values: ArrayLike) -> np.ndarray:
            """Return a value for each spectrum."""
            values = np.full(num, values) if np.ndim(values) == 0 else values
            numbers = float_vector(values, key, spectra.name)
            if len(numbers) != num:
                raise DataError(f"{key}: expected a value for each of {num} spectra; found {len(numbers)}.")
            return numbers

        redshifts = column("z", z)
        if (redshifts < 0).any():
            row = int(np.argmax(redshifts < 0))
            raise DataError(f"z, {spectra.name[row]}: expected a redshift of 0 or more; found {redshifts[row]:g}.")
        first = np.array([sources.index(name) for name in names])
        differs = redshifts != redshifts[first][index]
        if differs.any():
            row = int(np.argmax(differs))
            raise DataError(
                f"z: expected one redshift for all spectra of {sources[row]}; found "
                f"{redshifts[first][index][row]:g} and {redshifts[row]:g}."
            )
        columns = {str(key): frozen_array(column(str(key), values)) for key, values in (known or {}).items()}
        return cls(
            names, frozen_array(redshifts[first]), spectra, frozen_array(index, None), epochs, instruments, columns
        )

    def subset(self, rows: ArrayLike) -> "SourceSpectra":
        """Return sources with all their spectra, by a boolean mask (N,) or by integer indices, as `Sample.subset`."""
        index = selected_rows(rows, len(self), self.object_name)
        chosen = [np.flatnonzero(np.asarray(self.source) == row) for row in index]
        spectra = np.concatenate(chosen)
        return dataclasses.replace(
            self,
            name=tuple(self.name[row] for row in index),
            z=frozen_array(np.asarray(self.z)[index]),
            spectra=self.spectra.subset(spectra),
            source=frozen_array(np.repeat(np.arange(len(index)), [len(rows) for rows in chosen]), None),
            epoch=tuple(self.epoch[row] for row in spectra),
            instrument=tuple(self.instrument[row] for row in spectra),
            known={key: frozen_array(np.asarray(values)[spectra]) for key, values in self.known.items()},
        )

    @property
    def epochs(self) -> tuple[tuple[str, str], ...]:
        """Source and epoch of each of E epochs."""
        sources = (self.name[row] for row in np.asarray(self.source))
        return tuple(dict.fromkeys(zip(sources, self.epoch, strict=True)))

    @property
    def epoch_index(self) -> np.ndarray:
        """Index of the epoch of each spectrum among `epochs`, (S,)."""
        number = {pair: row for row, pair in enumerate(self.epochs)}
        sources = (self.name[row] for row in np.asarray(self.source))
        return np.array([number[pair] for pair in zip(sources, self.epoch, strict=True)])

    def describe(self) -> str:
        """Return a paragraph on the sample: number of sources and spectra, redshifts, counts and energies."""
        s = self.spectra
        counts, per_source = np.asarray(s.counts).sum(axis=1), np.bincount(np.asarray(self.source))
        instruments = [entry for entry in dict.fromkeys(self.instrument) if entry]
        return (
            f"{len(self)} source{'s' if len(self) > 1 else ''} at redshift {np.min(self.z):.4g} to "
            f"{np.max(self.z):.4g} with {len(s)} spectra, {per_source.min()} to {per_source.max()} each"
            f"{', from ' + listed(instruments) if instruments else ''}; {counts.min():.0f} to {counts.max():.0f} "
            f"counts in a spectrum (median {np.median(counts):.0f}) from {np.nanmin(s.e_min):.3g} to "
            f"{np.nanmax(s.e_max):.3g} keV. Backgrounds: {int(s.has_background.sum())} of {len(s)}."
        ) + self._notes()

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return plain arrays by field name, text as arrays of strings, for storage and fingerprints."""
        stored = {
            "name": np.array(self.name),
            "z": np.array(self.z),
            "source": np.array(self.source),
            "epoch": np.array(self.epoch, dtype=str),
            "instrument": np.array(self.instrument, dtype=str),
            "left_out": np.array([list(pair) for pair in self.left_out], dtype=str).reshape(-1, 2),
        }
        columns = {f"{_KNOWN}{key}": np.array(values) for key, values in self.known.items()}
        return stored | columns | self.spectra.to_dict()

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "SourceSpectra":
        """Rebuild the container from the output of `to_dict`; every value is restored exactly."""
        return cls(
            name=tuple(str(entry) for entry in stored["name"]),
            z=frozen_array(stored["z"]),
            spectra=SpectrumStack.from_dict(stored),
            source=frozen_array(stored["source"], None),
            epoch=tuple(str(entry) for entry in stored["epoch"]),
            instrument=tuple(str(entry) for entry in stored["instrument"]),
            known={
                key.removeprefix(_KNOWN): frozen_array(values)
                for key, values in stored.items()
                if key.startswith(_KNOWN)
            },
            left_out=cls._left_out(stored),
        )

    def to_table(self):
        """Return an astropy ``Table`` with a row for each spectrum."""
        from astropy.table import Table

        source = np.asarray(self.source)
        columns = {"name": [self.name[row] for row in source], "z": np.asarray(self.z)[source]}
        columns |= {"spectrum": list(self.spectra.name), "epoch": list(self.epoch)}
        columns |= {"instrument": list(self.instrument)}
        columns |= {key: np.array(values) for key, values in self.known.items()}
        counts = np.asarray(self.spectra.counts).sum(axis=1).astype(int)
        return Table(columns | {"counts": counts, "exposure": np.array(self.spectra.exposure)})


def read_source_spectra(
    source: Any,
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    missing: float | list[float] = (),  # type: ignore[assignment]
    spectra: str | None = None,
    energies: tuple[float, float] | None = None,
    grouping: str = "optimal",
    group_by: float | None = None,
    bad_channels: bool = False,
) -> SourceSpectra:
    """Read a table with a row for each spectrum, and the spectra.

    Raises FileNotFoundError if the table or a file does not exist, and DataError for an invalid table or spectrum.

    Parameters
    ----------
    source
        Table: path of a CSV, ECSV or FITS file, or a table in memory; see `hbm_jax.data.read_table`. Columns: ``name``
        of the source, which may be repeated, and ``spectrum``, the PHA file; optional ``z``, ``epoch``, ``instrument``,
        and file names ``background``, ``rmf``, ``arf`` that replace those of the header, all relative to the folder of
        spectra. All other columns of numbers without missing values, such as ``mw_nh``, become `SourceSpectra.known`.
    columns, format, missing
        As for all readers of tables, see the notes of `hbm_jax.data.read_table`.
    spectra
        Folder of the spectra; by default the folder of the table.
    energies
        Energy range to use [keV]; by default that of the instrument, as in `hbm_jax.data.read_grouped_spectra`.
    grouping, group_by, bad_channels
        As in `hbm_jax.data.read_afterglows`.

    Examples
    --------
    >>> read_source_spectra("clusters.csv", energies=(0.5, 7.0))  # doctest: +SKIP
    """
    declared = dict.fromkeys(("name", "epoch", "instrument", *FILES), TEXT) | {"z": Column("")}
    table = read_table(source, format=format, missing=missing)
    folder = Path(source).parent if isinstance(source, str | Path) else Path()
    folder = folder if spectra is None else Path(spectra)
    names = table.resolve(list(declared), columns, ALIASES)
    with named_errors(table.origin):
        table.require(names, "name", "spectrum")
        values = table.values_of(names, declared)
        texts = {
            key: text_tuple(values[key], names[key], "row {row}" if key == "name" else "")
            for key in values
            if declared[key] is TEXT
        }
        stack = read_grouped_spectra(
            [_files(texts, row, folder) for row in range(len(texts["name"]))],
            energies="instrument" if energies is None else energies,
            grouping=grouping,
            group_by=group_by,
            bad_channels=bad_channels,
        )
        return SourceSpectra.from_spectra(
            stack,
            source=texts["name"],
            z=np.asarray(values["z"], float) if "z" in values else 0.0,
            epoch=texts.get("epoch"),
            instrument=texts.get("instrument"),
            known=_known({name: table.values(name) for name in table.columns if name not in names.values()}),
        )


def _known(columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the columns of numbers in which none is missing."""
    numbers = {}
    for name, values in columns.items():
        try:
            column = np.ma.filled(np.ma.asarray(values).astype(float), np.nan)
        except (TypeError, ValueError):  # text
            continue
        if np.isfinite(column).all():
            numbers[name] = column
    return numbers


def _files(texts: Mapping[str, Sequence[str]], row: int, folder: Path) -> dict[str, str]:
    """Return the files of a row of the table, as an entry of `read_grouped_spectra`; raise DataError without a PHA."""
    files = {key: texts[key][row].strip() for key in FILES if key in texts}
    if not files["spectrum"]:
        raise DataError(f"spectrum, row {row}: expected the name of a PHA file; found none.")
    paths = {key: name if name.lower() == "none" else str(folder / name) for key, name in files.items() if name}
    return {"file": paths.pop("spectrum")} | paths
