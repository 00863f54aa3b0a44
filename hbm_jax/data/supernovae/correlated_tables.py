"""Reader of supernova tables with covariance matrices in alpha and beta, such as SNLS3 and JLA."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hbm_jax.data.building import leave_out_rows
from hbm_jax.data.supernovae.correlated import BLOCKS, CorrelatedSupernovae, blocks_from_joint
from hbm_jax.data.supernovae.dense_covariance import symmetric
from hbm_jax.data.supernovae.magnitude_errors import velocity_variance
from hbm_jax.data.supernovae.supernovae import Supernovae
from hbm_jax.data.supernovae.tables import JLA_ERROR_PARTS, supernovae_and_rows
from hbm_jax.names import listed
from hbm_jax.reading import read_text, readable, refuse_expansion
from hbm_jax.validation import DataError

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
    """Read supernovae and the six blocks of their covariance in alpha and beta.

    Parameters
    ----------
    source
        Path of the light-curve table of SNLS3 (SiFTO, with a column ``s``; Conley et al. 2011, ApJS 192, 1) or of JLA
        (``jla_lcparams.txt``; Betoule et al. 2014, A&A 568, A22), or any input of `hbm_jax.data.read_supernovae`.
    covariance : str
        Path of the covariance, in one of these forms:

        - an ``.npz`` file with the blocks by name, either as (N, N) or as lower triangles named ``<name>_tril``;
        - a folder of text files ``*v0_covmatrix.dat`` etc., in which N precedes the N^2 elements;
        - the matrix C_eta (3N, 3N) of JLA: a FITS file, or a folder of files ``C_*.fits``, which are summed.
    columns, format, missing
        As for `hbm_jax.data.read_supernovae`; not for the published tables of SNLS3 and JLA.
    leave_out
        As for `hbm_jax.data.read_supernovae`; ``"bad"`` is not supported for the published tables.

    Returns
    -------
    CorrelatedSupernovae
        For SNLS3, ``x1`` is s - 1, and the ``variance_*`` fields contain the intrinsic scatter of each survey (Conley
        et al. 2011), peculiar velocities of 150 km/s and the redshift errors of the table. For JLA, coherent scatter,
        lensing and peculiar velocities are separated from the published errors.

    Raises
    ------
    FileNotFoundError
        If a path does not exist.
    DataError
        For any other problem with the data.
    """
    path = Path(covariance)
    if not path.exists():
        raise FileNotFoundError(f"covariance: expected a file or a folder; found nothing at {covariance}.")
    published = _published(source)
    with readable(path, "covariances"):
        blocks, is_joint = _read_blocks(path)
    if published is None:
        sne, rows = supernovae_and_rows(source, columns, format, missing, leave_out, tied=True)
        selected = _block_of(blocks, rows)
        return CorrelatedSupernovae.from_supernovae(sne, selected, blocks_hold_errors=is_joint)
    if columns:
        raise DataError(f"{source}: expected no columns for a published table; found {listed(columns)}.")
    if np.size(missing):
        raise DataError(
            f"{source}: expected no missing= for a published table, which has no missing-value codes; found {missing}."
        )
    sne, blocks_hold_errors = published
    container = CorrelatedSupernovae.from_supernovae(sne, blocks, blocks_hold_errors=blocks_hold_errors or is_joint)
    if not len(leave_out):
        return container
    return container.subset(leave_out_rows(sne.name, leave_out))


def _block_of(blocks, rows):
    """Return the blocks restricted to the selected objects."""
    if isinstance(rows, slice):
        return blocks
    if isinstance(blocks, dict):
        return {name: block[np.ix_(rows, rows)] for name, block in blocks.items()}
    return blocks[:, rows[:, None], rows]


def _published(source: Any) -> tuple[Supernovae, bool] | None:
    """Return the supernovae of a light-curve table of SNLS3 or JLA; None for any other table.

    The second result is True if the published blocks include the errors of the fits.
    """
    if not isinstance(source, str | Path) or not Path(source).is_file():
        return None
    with open(source, "rb") as file:
        header = file.readline()
    column_names = header.decode(errors="replace").lstrip("#").split()
    if not {"zcmb", "3rdvar", "set"} <= set(column_names):
        return None
    from astropy.io import ascii

    table = ascii.read(str(source), format="commented_header", guess=False)
    values: dict[str, Any] = {key: np.asarray(table[name]) for key, name in LIGHT_CURVES.items()}
    sifto = "s" in column_names
    for key, names in {"cov_m_c": ("cov_m_c", "cov_m_"), "cov_x1_c": ("cov_s_c",)}.items():
        values[key] = np.asarray(table[next(name for name in names if name in column_names)])
    values["x1"] = np.asarray(table["s"]) - 1.0 if sifto else np.asarray(table["x1"])
    values["sigma_x1"] = np.asarray(table["ds" if sifto else "dx1"])
    surveys = SNLS3_SURVEYS if sifto else JLA_SURVEYS
    values["survey"] = [surveys.get(int(index), f"set {index}") for index in table["set"]]
    if not sifto:
        return Supernovae.from_columns(values).separate_error_parts(JLA_ERROR_PARTS), True
    sne = Supernovae.from_columns(values)
    coherent = np.array([SNLS3_SCATTER.get(survey, 0.1) ** 2 for survey in sne.survey])
    slope = 5.0 / np.log(10.0) / sne.z_cmb  # mag per unit redshift
    velocity = velocity_variance(sne.z_cmb, SNLS3_SIGMA_V) + (slope * np.asarray(table["dz"], float)) ** 2
    return sne.with_variances(coherent=coherent, velocity=velocity), False


def _read_blocks(path: Path) -> tuple[np.ndarray | dict[str, np.ndarray], bool]:
    """Return the blocks, and True if they are from a joint covariance, which includes the errors of the fits."""
    if path.is_dir():
        joint_files = sorted(path.glob("C_*.fits"))
        if joint_files:
            return blocks_from_joint(np.sum([_fits(part) for part in joint_files], axis=0)), True
        files = {name: file for name in BLOCKS for file in path.glob(f"*_{name}_covmatrix.dat")}
        files |= {name: file for name in BLOCKS for file in path.glob(f"{name}_covmatrix.dat")}
        if "v0" not in files:
            raise DataError(f"{path}: expected files *v0_covmatrix.dat and so on, or C_*.fits; found neither.")
        return {name: _text(file) for name, file in files.items()}, False
    refuse_expansion(path)
    if path.suffix == ".npz":
        with path.open("rb") as file:
            stored = np.load(file)
            blocks = {name: _matrix(stored, name) for name in BLOCKS if name in stored or f"{name}_tril" in stored}
        if "v0" not in blocks:
            raise DataError(f"{path}: expected arrays {', '.join(BLOCKS)}, full or as <name>_tril; found no v0.")
        return blocks, False
    return blocks_from_joint(_fits(path)), True


def _fits(path: Path) -> np.ndarray:
    """Read the image of a FITS file."""
    from astropy.io import fits

    with readable(path, "a FITS image"):
        return np.asarray(fits.getdata(path), dtype=np.float64)


def _text(path: Path) -> np.ndarray:
    """Read an (N, N) matrix from text in which N precedes the elements."""
    with readable(path, "numbers"):
        numbers = np.array(read_text(path).split(), dtype=float)
    num = int(numbers[0]) if numbers.size else 0
    if numbers.size != num * num + 1:
        raise DataError(f"{path}: expected the size N = {num} and then N^2 numbers; found {numbers.size - 1}.")
    return numbers[1:].reshape(num, num)


def _matrix(stored, name: str) -> np.ndarray:
    """Return a block of an ``.npz`` file, from its full matrix or its lower triangle."""
    if name in stored:
        return stored[name]
    triangle = stored[f"{name}_tril"]
    num = int((np.sqrt(8.0 * triangle.size + 1.0) - 1.0) / 2.0)
    if num * (num + 1) // 2 != triangle.size:
        raise DataError(f"{name}_tril: expected N (N + 1) / 2 numbers; found {triangle.size}.")
    return symmetric(triangle, num, lower=True)
