"""Writing afterglows to a folder: a catalogue and OGIP files, which `hbm_jax.data.read_afterglows` and others read."""

from pathlib import Path

import numpy as np

from hbm_jax.data.xray.simulation import SimulatedAfterglows
from hbm_jax.spectra.folding.response import Arf
from hbm_jax.spectra.ogip.writing import write_arf, write_pha, write_rmf

__all__ = ["CATALOG", "write_afterglows"]

CATALOG, SPECTRA = "catalog.ecsv", "spectra"


def write_afterglows(folder: str | Path, sample: SimulatedAfterglows, *, overwrite: bool = False) -> Path:
    """Write a simulated sample: ``catalog.ecsv``, and ``spectra/`` with PHA, background and the response.

    Parameters
    ----------
    folder : path
        To write into; made if need be.
    sample : SimulatedAfterglows
        From `AfterglowPopulation.draw`.
    overwrite : bool
        Whether to replace files that are there.

    Returns
    -------
    path
        Of the catalogue. The true parameters of the population are in its header, those of each source in columns that
        begin with ``true_``.

    Raises
    ------
    FileExistsError
        If the catalogue is there and not to be replaced.
    """
    from astropy.table import Table

    folder = Path(folder)
    catalog = folder / CATALOG
    if catalog.exists() and not overwrite:
        raise FileExistsError(f"{catalog}: expected a new file; found one that is there. Pass overwrite=True.")
    spectra = folder / SPECTRA
    spectra.mkdir(parents=True, exist_ok=True)
    response = sample.spectra[0].response
    assert response is not None
    write_rmf(spectra / "response.rmf", response.rmf, overwrite=overwrite)
    write_arf(spectra / "response.arf", Arf(response.rmf.energy, response.area), overwrite=overwrite)
    for spectrum in sample.spectra:
        behind = f"{spectrum.name}_bkg.pha"
        write_pha(spectra / behind, spectrum.background, overwrite=overwrite)  # type: ignore[arg-type]
        files = {"background": behind, "rmf": "response.rmf", "arf": "response.arf"}
        write_pha(spectra / f"{spectrum.name}.pha", spectrum, overwrite=overwrite, **files)
    each = {f"true_{key}": value for key, value in sample.truth.items() if np.ndim(value)}
    table = Table({**sample.columns, **each})
    table["nh_mw"].unit = "1e22 cm-2"
    table.meta["truth"] = {key: float(value) for key, value in sample.truth.items() if not np.ndim(value)}
    table.write(catalog, overwrite=overwrite)
    return catalog
