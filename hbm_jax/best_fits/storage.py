"""Storage of best fits in one file, with model, data and all results; `hbm_jax.best_fits.load` reads it."""

import json
from pathlib import Path
from typing import Any

import numpy as np

FILE = "best_fit.npz"
KIND = "hbm_jax.BestFit 2"


def write(best: Any, path: str | Path) -> Path:
    """Write a best fit to a file, ``.npz``, from which `load` restores it exactly.

    Raises
    ------
    ValueError
        For a model that cannot be written as text; see `SpectralFit.to_config`.
    """
    path = Path(path)
    likelihood, goodness = best.likelihood, best.goodness
    tables = {"fluxes": best.fluxes, "spectra": best.spectra, "parameters": likelihood.table.reset_index()}
    description = {
        "kind": KIND,
        "model": best.model.to_config(),
        "log_likelihood": likelihood.log_likelihood,
        "num_data": likelihood.num_data,
        "level": likelihood.level,
        "converged": likelihood.converged,
        "note": likelihood.note,
        "degrees_of_freedom": best.deviance.degrees_of_freedom,
        "sites": list(likelihood.parameters),
        "tables": {n: {key: table[key].tolist() for key in table} for n, table in tables.items()},
    }
    arrays = {f"data_{name}": values for name, values in best.data.to_dict().items()}
    arrays |= {f"site_{name}": values for name, values in likelihood.parameters.items()}
    arrays |= {"covariance": likelihood.covariance.to_numpy(), "deviance": best.deviance.groups}
    if goodness is not None:
        arrays |= {"observed": goodness.observed, "simulated": goodness.simulated}
    with path.open("wb") as file:
        np.savez_compressed(file, description=np.array(json.dumps(description)), **arrays)
    return path
