"""Published supernova tables with covariance matrices in alpha and beta: SNLS3 and JLA."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hbm_jax.data.columns import leave_out_rows
from hbm_jax.data.supernovae.correlated import BLOCKS, CorrelatedSupernovae, blocks_from_joint
from hbm_jax.data.supernovae.magnitude_errors import velocity_variance
from hbm_jax.data.supernovae.supernovae import Supernovae
from hbm_jax.data.supernovae.tables import JLA_ERROR_PARTS, supernovae_and_rows
from hbm_jax.names import listed
from hbm_jax.reading import read_text, readable, refuse_expansion
from hbm_jax.validation import DataError

__all__ = ["read_correlated_supernovae"]

# Conley et al. 2011, ApJS 192, 1: intrinsic scatter by survey [mag], and peculiar velocities of 150 km/s.
SNLS3_SURVEYS = {0: "snls", 1: "lowz", 2: "hst", 3: "sdss"}
SNLS3_SCATTER = {"snls": 0.0675, "lowz": 0.1133, "hst": 0.0815, "sdss": 0.0989}
SNLS3_SIGMA_V = 150.0
JLA_SURVEYS = {1: "snls", 2: "sdss", 3: "lowz", 4: "hst"}
LIGHT_CURVES = {
    "name": "name", "z_cmb": "zcmb", "z_hel": "zhel", "m_b": "mb", "sigma_m_b": "dmb", "c": "color",
    "sigma_c": "dcolor", "cov_m_x1": "cov_m_s", "log10_mass": "3rdvar", "sigma_log10_mass": "d3rdvar",
}  # fmt: skip


def read_correlated_supernovae(
    source: Any,
    *,
    covariance: str,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    missing: float | list[float] = (),  # type: ignore[assignment]
    leave_out: str | list[str] = (),  # type: ignore[assignment]
) -> CorrelatedSupernovae:
    """Read supernovae and the blocks of their covariance.

    Parameters
    ----------
    source
        Path of a light-curve table as published with SNLS3 (SiFTO: a column ``s``; Conley et al. 2011, ApJS 192, 1) or
        JLA (``jla_lcparams.txt``; Betoule et al. 2014, A&A 568, A22), or anything that
        `hbm_jax.data.read_supernovae` reads.
    covariance : str
        Path of the covariance: an ``.npz`` with the blocks by name, whole (N, N) or the lower triangle as
        ``<name>_tril``; a folder with ``*v0_covmatrix.dat`` and so on, text whose first number is N; or JLA's C_eta,
        (3N, 3N), a FITS file or a folder of several ``C_*.fits``, which are added.
    columns, format, missing
        As in `hbm_jax.data.read_supernovae`; only for other tables than those of SNLS3 and JLA.
    leave_out
        As in `hbm_jax.data.read_supernovae`; of the published tables supernovae by name.

    Returns
    -------
    CorrelatedSupernovae
        For SNLS3, ``x1`` is s - 1, and Conley's intrinsic scatter of each survey and peculiar velocities of 150 km/s
        are in the ``variance_*`` fields; for JLA these are separated from the published errors.

    Raises
    ------
    FileNotFoundError
        If a path does not exist.
    DataError
        For everything else that is wrong.
    """
    path = Path(covariance)
    if not path.exists():
        raise FileNotFoundError(f"covariance: expected a file or a folder; found nothing at {covariance}.")
    published = _published(source)
    with readable(path, "covariances"):
        blocks, joint = _read_blocks(path)
    if published is None:
        sne, rows = supernovae_and_rows(source, columns, format, missing, leave_out, tied=True)
        picked = _block_of(blocks, rows)
        return CorrelatedSupernovae.from_supernovae(sne, picked, blocks_hold_errors=joint)
    if columns:
        raise DataError(f"{source}: expected no columns for a published table; found {listed(columns)}.")
    if np.size(missing):
        raise DataError(f"{source}: expected no missing for a published table, which has none; found {missing}.")
    sne, hold = published
    whole = CorrelatedSupernovae.from_supernovae(sne, blocks, blocks_hold_errors=hold or joint)
    if not len(leave_out):
        return whole
    return whole.subset(leave_out_rows(sne.name, leave_out))


def _block_of(blocks, rows):
    """Return the rows and columns of some objects of every block."""
    if isinstance(rows, slice):
        return blocks
    if isinstance(blocks, dict):
        return {name: block[np.ix_(rows, rows)] for name, block in blocks.items()}
    return blocks[:, rows[:, None], rows]


def _published(source: Any) -> tuple[Supernovae, bool] | None:
    """Return the supernovae of a published light-curve table; None for any other."""
    if not isinstance(source, str | Path) or not Path(source).is_file():
        return None
    with open(source, "rb") as file:
        first = file.readline()
    words = first.decode(errors="replace").lstrip("#").split()
    if not {"zcmb", "3rdvar", "set"} <= set(words):
        return None
    from astropy.io import ascii

    table = ascii.read(str(source), format="commented_header", guess=False)
    values: dict[str, Any] = {key: np.asarray(table[name]) for key, name in LIGHT_CURVES.items()}
    sifto = "s" in words
    for key, names in {"cov_m_c": ("cov_m_c", "cov_m_"), "cov_x1_c": ("cov_s_c",)}.items():
        values[key] = np.asarray(table[next(name for name in names if name in words)])
    values["x1"] = np.asarray(table["s"]) - 1.0 if sifto else np.asarray(table["x1"])
    values["sigma_x1"] = np.asarray(table["ds" if sifto else "dx1"])
    surveys = SNLS3_SURVEYS if sifto else JLA_SURVEYS
    values["survey"] = [surveys.get(int(index), f"set {index}") for index in table["set"]]
    if not sifto:
        return Supernovae.from_columns(values).separate_error_parts(JLA_ERROR_PARTS), True
    sne = Supernovae.from_columns(values)
    coherent = np.array([SNLS3_SCATTER.get(survey, 0.1) ** 2 for survey in sne.survey])
    slope = 5.0 / np.log(10.0) / sne.z_cmb  # magnitudes per redshift
    velocity = velocity_variance(sne.z_cmb, SNLS3_SIGMA_V) + (slope * np.asarray(table["dz"], float)) ** 2
    return sne.with_variances(coherent=coherent, velocity=velocity), False


def _read_blocks(path: Path) -> tuple[np.ndarray | dict[str, np.ndarray], bool]:
    """Return the blocks, and whether they come from a joint covariance, which holds the errors of the fits."""
    if path.is_dir():
        joint = sorted(path.glob("C_*.fits"))
        if joint:
            return blocks_from_joint(np.sum([_fits(part) for part in joint], axis=0)), True
        found = {name: file for name in BLOCKS for file in path.glob(f"*_{name}_covmatrix.dat")}
        found |= {name: file for name in BLOCKS for file in path.glob(f"{name}_covmatrix.dat")}
        if "v0" not in found:
            raise DataError(f"{path}: expected files *v0_covmatrix.dat and so on, or C_*.fits; found neither.")
        return {name: _text(file) for name, file in found.items()}, False
    refuse_expansion(path)
    if path.suffix == ".npz":
        with path.open("rb") as file:
            stored = np.load(file)
            blocks = {name: _matrix(stored, name) for name in BLOCKS if name in stored or f"{name}_tril" in stored}
        if "v0" not in blocks:
            raise DataError(f"{path}: expected arrays {', '.join(BLOCKS)}, whole or <name>_tril; found no v0.")
        return blocks, False
    return blocks_from_joint(_fits(path)), True


def _fits(path: Path) -> np.ndarray:
    from astropy.io import fits

    with readable(path, "a FITS image"):
        return np.asarray(fits.getdata(path), dtype=np.float64)


def _text(path: Path) -> np.ndarray:
    with readable(path, "numbers"):
        numbers = np.array(read_text(path).split(), dtype=float)
    num = int(numbers[0]) if numbers.size else 0
    if numbers.size != num * num + 1:
        raise DataError(f"{path}: expected {num} and then its square of numbers; found {numbers.size - 1} more.")
    return numbers[1:].reshape(num, num)


def _matrix(stored, name: str) -> np.ndarray:
    if name in stored:
        return stored[name]
    triangle = stored[f"{name}_tril"]
    num = int((np.sqrt(8.0 * triangle.size + 1.0) - 1.0) / 2.0)
    if num * (num + 1) // 2 != triangle.size:
        raise DataError(f"{name}_tril: expected N (N + 1) / 2 numbers; found {triangle.size}.")
    full = np.zeros((num, num))
    full[np.tril_indices(num)] = triangle
    return full + np.tril(full, -1).T
