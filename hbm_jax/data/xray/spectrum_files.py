"""Reader of OGIP spectra that are fitted jointly."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hbm_jax.names import listed
from hbm_jax.spectra.folding.grouping import group, noticed
from hbm_jax.spectra.ogip.pha import read_spectra
from hbm_jax.spectra.stack import SpectrumStack
from hbm_jax.validation import DataError, warn_unusual


def read_grouped_spectra(
    source: str | Path | Sequence[str | Path],
    *,
    columns: Mapping[str, str] | None = None,
    also: str | list[str] = (),  # type: ignore[assignment]
    background: str | None = None,
    rmf: str | None = None,
    arf: str | None = None,
    energies: tuple[float, float] | None = (0.3, 10.0),
    grouping: str = "optimal",
    group_by: float | None = None,
    bad_channels: bool = False,
) -> SpectrumStack:
    """Read spectra with backgrounds and responses, select and group their channels, and stack them for a joint fit.

    Parameters
    ----------
    source
        PHA file, or several. All rows of a type II file are read, or the row given in braces, as in ``name.pha{3}``.
    columns
        Must be None: spectra have no named columns.
    also
        More PHA files.
    background, rmf, arf
        Files that replace those named in the headers, for all spectra; ``"none"`` for no file.
    energies
        Energy range to use [keV]; only channels entirely within it are used. None for all good channels.
    grouping, group_by, bad_channels
        As in `hbm_jax.data.read_afterglows`.

    Returns
    -------
    SpectrumStack

    Raises
    ------
    DataError
        For a file that is missing or cannot be read, or that has no response or no channels in use.

    Examples
    --------
    >>> read_grouped_spectra(["pn.pha", "mos1.pha"], energies=(0.5, 7.0))  # doctest: +SKIP
    """
    if columns:
        raise DataError(f"columns: expected none for spectra; found {', '.join(columns)}.")
    files = [source] if isinstance(source, str | Path) else list(source)
    files += [also] if isinstance(also, str) else list(also)
    spectra = [spectrum for path in files for spectrum in read_spectra(path, background=background, rmf=rmf, arf=arf)]
    masks = [noticed(spectrum, energies, keep_bad=bad_channels) for spectrum in spectra]
    grouped = [group(spectrum, grouping, group_by, noticed=mask) for spectrum, mask in zip(spectra, masks, strict=True)]
    stack = SpectrumStack.of(grouped, masks)
    repeated = [str(path) for path, num in Counter(str(path) for path in files).items() if num > 1]
    texts = warn_unusual(
        [f"{listed(repeated, 5)}: read more than once, so their counts enter the likelihood more than once"]
        if repeated
        else []
    )
    return replace(stack, warnings=(*stack.warnings, *texts))
