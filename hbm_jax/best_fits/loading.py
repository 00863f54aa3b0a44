"""Reader of stored best fits."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hbm_jax.best_fits.fit import BestFit
from hbm_jax.best_fits.storage import FILE, KIND
from hbm_jax.inference.likelihood.profile import MaximumLikelihood
from hbm_jax.inference.results import ResultFileError
from hbm_jax.models import SpectralFit
from hbm_jax.models.xray.spectral_fit import Deviance
from hbm_jax.reading import MAX_BYTES
from hbm_jax.spectra.stack import SpectrumStack
from hbm_jax.spectra.statistics.goodness import Goodness


def load(path: str | Path) -> BestFit:
    """Read a best fit from the folder or the file that `BestFit.save` wrote.

    Parameters
    ----------
    path : path
        Folder with a file ``best_fit.npz``, or that file.

    Returns
    -------
    BestFit
        With model and data, so that profiles, contours, lines and figures can be computed.

    Raises
    ------
    ResultFileError
        If the file does not exist, or is not a best fit or damaged.

    Examples
    --------
    >>> load("best").contour("photon_index", "nh")  # doctest: +SKIP
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise ResultFileError(f"{path}: expected a best fit; found no such file.")
    try:
        with zipfile.ZipFile(path) as parts:
            size = sum(part.file_size for part in parts.infolist())
        if size > MAX_BYTES:
            raise ValueError(f"found {size} bytes when decompressed")
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        description = json.loads(str(arrays.pop("description")))
        if description.get("kind") != KIND:
            raise ValueError(f"found {description.get('kind')!r}")
        return _restored(description, arrays)
    except Exception as error:  # zlib, zipfile, NumPy and the model each raise their own
        raise ResultFileError(
            f"{path}: expected a best fit of this version; {type(error).__name__}: {error}"
        ) from error


def _restored(description: dict[str, Any], arrays: dict[str, np.ndarray]) -> BestFit:
    """Return the best fit of stored arrays and description."""
    tables = {name: pd.DataFrame(columns) for name, columns in description["tables"].items()}
    table = tables["parameters"].set_index("parameter")
    covariance, names = arrays["covariance"], table.index
    std = np.sqrt(np.diagonal(covariance))
    likelihood = MaximumLikelihood(
        table=table,
        log_likelihood=description["log_likelihood"],
        parameters={name: arrays[f"site_{name}"] for name in description["sites"]},
        covariance=pd.DataFrame(covariance, names, names),
        correlation=pd.DataFrame(covariance / (std[:, None] * std), names, names),
        **{key: description[key] for key in ("num_data", "level", "converged", "note")},
    )
    groups = arrays["deviance"]
    spectra = groups.sum(axis=1)
    deviance = Deviance(groups, spectra, float(spectra.sum()), description["degrees_of_freedom"])
    goodness = Goodness(arrays["observed"], arrays["simulated"]) if "observed" in arrays else None
    data = SpectrumStack.from_dict({n.removeprefix("data_"): v for n, v in arrays.items() if n.startswith("data_")})
    model = SpectralFit(**description["model"])
    return BestFit(model, data, likelihood, deviance, goodness, tables["fluxes"], tables["spectra"])
