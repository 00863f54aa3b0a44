"""Reader of OGIP spectra that are fitted jointly."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from hbm_jax.names import choose, listed
from hbm_jax.spectra.background_regions import OWN, RegionStack
from hbm_jax.spectra.folding.grouping import group, noticed, num_flagged
from hbm_jax.spectra.folding.spectrum import Spectrum
from hbm_jax.spectra.ogip.instruments import default_energies
from hbm_jax.spectra.ogip.pha import HEADER, read_spectra
from hbm_jax.spectra.stack import SpectrumStack
from hbm_jax.validation import DataError, reject_unknown, warn_unusual


def read_grouped_spectra(
    source: str | Path | Mapping[str, Any] | Sequence[str | Path | Mapping[str, Any]],
    *,
    columns: Mapping[str, str] | None = None,
    also: str | dict[str, Any] | list[str | dict[str, Any]] = (),  # type: ignore[assignment]
    background: str | None = None,
    rmf: str | None = None,
    arf: str | None = None,
    energies: tuple[float, float] | Literal["instrument"] | None = "instrument",
    grouping: str = "optimal",
    group_by: float | None = None,
    bad_channels: bool = False,
    background_response: str | None = None,
    background_rmf: str | None = None,
    background_arf: str | None = None,
) -> SpectrumStack:
    """Read spectra with backgrounds and responses, select and group their channels, and stack them for a joint fit.

    Returns a `hbm_jax.spectra.RegionStack` with ``background_response``. Raises DataError for a file that is missing or
    cannot be read, or that has no response or no channels in use; for a mapping without ``file`` or with an unknown
    option.

    Parameters
    ----------
    source
        PHA file, or several. All rows of a type II file are read, or those in braces, as in ``name.pha{3}`` or, for
        orders of a grating, ``name.pha{MEG -1, MEG +1}``. Instead of a name, a mapping with the name as ``file`` and
        options below for this file only.
    columns
        Must be None: spectra have no named columns.
    also
        More PHA files, or mappings, as for ``source``.
    background, rmf, arf
        Files that replace those named in the headers, for all spectra whose options do not name one; ``"none"`` for
        no file. Responses and backgrounds of several files are added, as in ``background="left.pha + right.pha"``, and
        names may depend on the order of a grating, as in ``"{arm}_{order}.rmf"``; see `hbm_jax.spectra.read_spectrum`.
    energies
        Energy range to use [keV]; only channels entirely within it are used. ``"instrument"``: the range in which
        spectra of the instrument are usually fitted (`hbm_jax.spectra.default_energies`, by TELESCOP and INSTRUME),
        which `SpectrumStack.describe` states. None for all good channels. `SpectrumStack.describe` also states the
        number of channels in the range that are not used because of their QUALITY.
    grouping, group_by, bad_channels
        As in `hbm_jax.data.read_afterglows`.
    background_response : {"rmf", "source", "own", "sky"}, optional
        Read the background regions as separate spectra, for ``SpectralFit(..., background_spectrum=)``, with a response
        as in `hbm_jax.spectra.RegionStack.separated`: the redistribution matrix of the source without its effective
        area, the response of the source, or a response of their own.
    background_rmf, background_arf : str, optional
        Files of the own response of the background regions, by default those named in the headers of the backgrounds.

    Examples
    --------
    >>> read_grouped_spectra(["pn.pha", "mos1.pha"], energies=(0.5, 7.0))  # doctest: +SKIP
    >>> nustar = {"file": "nustar.pha", "energies": (3.0, 79.0), "grouping": "min_counts", "group_by": 30}
    >>> read_grouped_spectra(["xrt.pha", nustar])  # doctest: +SKIP
    """
    if columns:
        raise DataError(f"columns: expected none for spectra; found {', '.join(columns)}.")
    shared: dict[str, Any] = {"background": background, "rmf": rmf, "arf": arf, "energies": energies}
    shared |= {"grouping": grouping, "group_by": group_by, "bad_channels": bad_channels}
    shared |= _background_files(background_response, background_rmf, background_arf)
    entries = [*_entries(source), *_entries(also)]
    options = [shared | _options(entry, shared) for entry in entries]
    files = [file_options.pop("file") for file_options in options]
    grouped, masks, notes = [], [], []
    for path, file_options in zip(files, options, strict=True):
        names = {key: file_options[key] for key in ("background", "rmf", "arf", "background_rmf", "background_arf")}
        for spectrum in read_spectra(path, **names):
            energies = file_options["energies"]
            if isinstance(energies, str):
                energies, note = _of_instrument(spectrum, energies)
                notes.append(note)
            masks.append(noticed(spectrum, energies, keep_bad=file_options["bad_channels"]))
            num_bad = 0 if file_options["bad_channels"] else num_flagged(spectrum, energies)
            if num_bad:
                notes.append(f"{spectrum.name}: {num_bad} channels marked as bad (QUALITY) are not used.")
            grouped.append(group(spectrum, file_options["grouping"], file_options["group_by"], noticed=masks[-1]))
    if background_response is None:
        stack = SpectrumStack.of(grouped, masks)
    else:
        stack = RegionStack.separated(grouped, masks, background_response)  # type: ignore[arg-type]
    repeated = [str(path) for path, num in Counter(str(path) for path in files).items() if num > 1]
    texts = warn_unusual(
        [f"{listed(repeated, 5)}: read more than once, so their counts enter the likelihood more than once"]
        if repeated
        else []
    )
    return replace(stack, warnings=(*stack.warnings, *texts), notes=tuple(dict.fromkeys(notes)))


def _background_files(response: str | None, rmf: str | None, arf: str | None) -> dict[str, str | None]:
    """Return the files of the responses of background regions; those of the headers, if they have their own."""
    if response not in OWN:
        if rmf is not None or arf is not None:
            raise DataError(
                "background_rmf, background_arf: expected background_response 'own' or 'sky', for which they are used; "
                f"found {response!r}."
            )
        return {"background_rmf": None, "background_arf": None}
    return {"background_rmf": HEADER if rmf is None else rmf, "background_arf": arf}


def _of_instrument(spectrum: Spectrum, name: str) -> tuple[tuple[float, float], str]:
    """Return the energy range of the instrument of a spectrum, and a sentence about it."""
    choose("energies", name, ("instrument",))
    chosen = default_energies(spectrum.instrument)
    band = f"{chosen.low:g} to {chosen.high:g} keV"
    if chosen.known:
        return (chosen.low, chosen.high), f"Energies: {band}, the default of {chosen.instrument}."
    return ((chosen.low, chosen.high), f"Energies: {band}, because {chosen.instrument} has no default (set energies).")


def _entries(files: Any) -> list[Any]:
    """Return the entries of a list of files; a single entry becomes a list."""
    return [files] if isinstance(files, str | Path | Mapping) else list(files)


def _options(entry: str | Path | Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the file name and the options of an entry."""
    if not isinstance(entry, Mapping):
        return {"file": entry}
    if "file" not in entry:
        raise DataError(
            f"spectra: expected the name of the file as 'file' in every table of options; found {dict(entry)}."
        )
    reject_unknown(list(entry), ["file", *known], f"option of the spectrum {entry['file']}")
    return dict(entry)
