"""Writer of simulated afterglows: a catalogue and OGIP files."""

from pathlib import Path

import numpy as np

from hbm_jax.data.xray.simulation import SimulatedAfterglows
from hbm_jax.spectra.folding.response import Arf
from hbm_jax.spectra.ogip.writing import write_arf, write_pha, write_rmf

__all__ = ["CATALOG", "write_afterglows"]

CATALOG, SPECTRA = "catalog.ecsv", "spectra"


def write_afterglows(folder: str | Path, sample: SimulatedAfterglows, *, overwrite: bool = False) -> Path:
    """Write a simulated sample as OGIP files, which `hbm_jax.data.read_afterglows` and other software can read.

    Parameters
    ----------
    folder : path
        Output folder, created if missing. It receives ``catalog.ecsv``, and ``spectra/`` with source and background PHA
        files and the response.
    sample : SimulatedAfterglows
        Output of `AfterglowPopulation.draw`.
    overwrite : bool
        Whether to replace existing files.

    Returns
    -------
    path
        The catalogue. Its header holds the true population parameters; columns beginning with ``true_`` hold those of
        each source.

    Raises
    ------
    FileExistsError
        If the catalogue exists and `overwrite` is false.
    """
    from astropy.table import Table

    folder = Path(folder)
    catalog = folder / CATALOG
    if catalog.exists() and not overwrite:
        raise FileExistsError(
            f"{catalog}: expected a new file; found an existing one. Pass overwrite=True to replace it."
        )
    spectra = folder / SPECTRA
    spectra.mkdir(parents=True, exist_ok=True)
    response = sample.spectra[0].response
    assert response is not None
    write_rmf(spectra / "response.rmf", response.rmf, overwrite=overwrite)
    write_arf(spectra / "response.arf", Arf(response.rmf.energy, response.area), overwrite=overwrite)
    for spectrum in sample.spectra:
        background_file = f"{spectrum.name}_bkg.pha"
        write_pha(spectra / background_file, spectrum.background, overwrite=overwrite)  # type: ignore[arg-type]
        files = {"background": background_file, "rmf": "response.rmf", "arf": "response.arf"}
        write_pha(spectra / f"{spectrum.name}.pha", spectrum, overwrite=overwrite, **files)
    true_columns = {f"true_{key}": value for key, value in sample.truth.items() if np.ndim(value)}
    table = Table({**sample.columns, **true_columns})
    table["nh_mw"].unit = "1e22 cm-2"
    table.meta["truth"] = {key: float(value) for key, value in sample.truth.items() if not np.ndim(value)}
    table.write(catalog, overwrite=overwrite)
    return catalog
