"""Spectra to be fitted together, from OGIP files: read, channels chosen, grouped, stacked."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hbm_jax.names import listed
from hbm_jax.spectra.folding.grouping import group, noticed
from hbm_jax.spectra.ogip.pha import read_spectra
from hbm_jax.spectra.stack import SpectrumStack
from hbm_jax.validation import DataError, tell

__all__ = ["read_grouped_spectra"]


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
    """Read spectra with background and response, choose channels, group them and stack them for a joint fit.

    Parameters
    ----------
    source
        PHA file, or several. Of a file of type II all rows are taken, or the one in braces, as in ``name.pha{3}``.
    columns
        None: spectra have no columns to name.
    also
        More files.
    background, rmf, arf
        Instead of the files that the headers name, for all spectra; ``"none"``: there is none.
    energies
        Range to use [keV]; channels that lie wholly within it. None for all good channels.
    grouping, group_by, bad_channels
        As in `hbm_jax.data.read_afterglows`.

    Returns
    -------
    SpectrumStack

    Raises
    ------
    DataError
        For a file that is missing or cannot be read, without response or channels in use.

    Examples
    --------
    >>> read_grouped_spectra(["pn.pha", "mos1.pha"], energies=(0.5, 7.0))  # doctest: +SKIP
    """
    if columns:
        raise DataError(f"columns: expected none for spectra; found {', '.join(columns)}.")
    files = [source] if isinstance(source, str | Path) else list(source)
    files += [also] if isinstance(also, str) else list(also)
    spectra = [one for path in files for one in read_spectra(path, background=background, rmf=rmf, arf=arf)]
    masks = [noticed(one, energies, keep_bad=bad_channels) for one in spectra]
    grouped = [group(one, grouping, group_by, noticed=mask) for one, mask in zip(spectra, masks, strict=True)]
    stack = SpectrumStack.of(grouped, masks)
    twice = [str(path) for path, times in Counter(str(path) for path in files).items() if times > 1]
    texts = tell([f"{listed(twice, 5)}: read more than once, so that the same counts count twice"] if twice else [])
    return replace(stack, warnings=(*stack.warnings, *texts))
