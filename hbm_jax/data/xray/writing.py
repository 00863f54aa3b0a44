"""Writer of simulated afterglows: a catalogue and OGIP files."""

from pathlib import Path

import numpy as np

from hbm_jax.data.populations import new_catalogue, write_catalogue
from hbm_jax.data.xray.simulation import SimulatedAfterglows
from hbm_jax.spectra.folding.response import Arf
from hbm_jax.spectra.ogip.writing import write_arf, write_pha, write_rmf

CATALOG, SPECTRA = "catalog.ecsv", "spectra"


def write_afterglows(folder: str | Path, sample: SimulatedAfterglows, *, overwrite: bool = False) -> Path:
    """Write a simulated sample as OGIP files, which `hbm_jax.data.read_afterglows` and other software can read.

    Raises FileExistsError if the catalogue exists and `overwrite` is false. Returns the path of the catalogue. Its
    header contains the true population parameters; columns beginning with ``true_`` contain those of each source.

    Parameters
    ----------
    folder : path
        Output folder, created if missing. The files are ``catalog.ecsv``, and in ``spectra/`` the PHA files of sources
        and backgrounds and the response.
    sample : SimulatedAfterglows
        Output of `AfterglowPopulation.draw`.
    overwrite : bool
        True: replace existing files.
    """
    catalogue = new_catalogue(folder, CATALOG, overwrite)
    spectra = catalogue.parent / SPECTRA
    spectra.mkdir(exist_ok=True)
    response = sample.spectra[0].response
    assert response is not None
    write_rmf(spectra / "response.rmf", response.rmf, overwrite=overwrite)
    write_arf(spectra / "response.arf", Arf(response.rmf.energy, response.area), overwrite=overwrite)
    for spectrum in sample.spectra:
        background_file = f"{spectrum.name}_bkg.pha"
        write_pha(spectra / background_file, spectrum.background, overwrite=overwrite)  # type: ignore[arg-type]
        files = {"background": background_file, "rmf": "response.rmf", "arf": "response.arf"}
        write_pha(spectra / f"{spectrum.name}.pha", spectrum, overwrite=overwrite, **files)
    true_columns = {key: value for key, value in sample.truth.items() if np.ndim(value)}
    return write_catalogue(catalogue, sample.columns, sample.truth, true_columns, overwrite)
