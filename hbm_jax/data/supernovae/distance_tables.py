"""Distance-level samples from the files in which they are published, and from tables of one's own."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hbm_jax.data.columns import repeated_names, unused_errors
from hbm_jax.data.supernovae.dense_covariance import read_covariance
from hbm_jax.data.supernovae.distance_moduli import COLUMNS, COVARIATE, QUANTITIES, DistanceModuli
from hbm_jax.data.supernovae.snana import MISSING, blank_separated, snana_text, survey_name
from hbm_jax.data.tables import TableColumns, make_from_rows, missing_codes, read_table
from hbm_jax.names import did_you_mean, listed
from hbm_jax.reading import readable
from hbm_jax.validation import DataError, tell

__all__ = ["DISTANCE_FORMATS", "read_distance_moduli"]

DIAGONAL = "diagonal"
KINDS = ("total", "systematic", "inverse")
# A total covariance contains the statistical one: where more than half of its diagonal is below this share of the
# stated variances, it is taken to be a systematic one that was called total.
TOO_SMALL = 0.9


@dataclass(frozen=True)
class DistanceFormat:
    """How a release is written: which columns are which, and what its covariance file holds.

    Attributes
    ----------
    read : callable
        Path -> columns as they stand in the file.
    columns : dict of str to str
        Standard name to the file's.
    covariance_is : str
        ``"total"``; ``"systematic"``, to which the squared errors of the table are added; ``"inverse"``, of the total.
    z_min : float
        Objects at or below this redshift are left out, other than calibrators, as the release's own likelihood does.
    covariates : dict of str to str
        Columns worth looking at residuals against.
    usual : str
        Name of the covariance file in the release.
    """

    read: Callable[[Path], TableColumns]
    columns: Mapping[str, str]
    covariance_is: str = "total"
    z_min: float = 0.0
    covariates: Mapping[str, str] = field(default_factory=dict)
    usual: str = ""


def _pantheon2018(path: Path) -> TableColumns:
    """As JLA's light-curve parameters; rows have one entry less than the header has names."""
    return blank_separated(path, short=True)


def _jla_binned(path: Path) -> TableColumns:
    return blank_separated(path, ["z", "mu"])


def _union2(path: Path) -> TableColumns:
    return blank_separated(path, ["name", "z", "mu", "sigma", "probability_low_mass"])


def _union3(path: Path) -> TableColumns:
    """Image of the Union3 release: first row redshifts, first column moduli, the rest the inverse covariance."""
    from astropy.io import fits

    image = np.asarray(fits.getdata(path), dtype=np.float64)
    if image.ndim != 2 or image.shape[0] != image.shape[1]:
        raise DataError(f"expected a square image, as mu_mat_union3_cosmo=2_mu.fits is, found shape {image.shape}.")
    covariance = np.linalg.inv(0.5 * (image[1:, 1:] + image[1:, 1:].T))
    names = np.array([f"node {z:.4g}" for z in image[0, 1:]])
    columns = {"name": names, "z": image[0, 1:], "mu": image[1:, 0], "covariance": covariance}
    return TableColumns(str(path), columns)


def _table(path: Path) -> TableColumns:
    return read_table(path)


_PANTHEON_PLUS = {
    "name": "CID", "survey": "IDSURVEY", "z_cmb": "zHD", "z_hel": "zHEL", "m_b_corr": "m_b_corr",
    "sigma": "m_b_corr_err_DIAG", "mu_calibrator": "CEPH_DIST",
}  # fmt: skip
_SNANA = {"name": "CID", "survey": "IDSURVEY", "z_cmb": "zHD", "z_hel": "zHEL", "mu": "MU", "sigma": "MUERR"}
_JLA_STYLE = {"name": "name", "z_cmb": "zcmb", "z_hel": "zhel", "m_b_corr": "mb", "sigma": "dmb"}

DISTANCE_FORMATS: dict[str, DistanceFormat] = {
    "table": DistanceFormat(_table, {}),
    "pantheon+": DistanceFormat(
        blank_separated,
        _PANTHEON_PLUS,
        z_min=0.01,
        covariates={"x1": "x1", "c": "c", "log10_mass": "HOST_LOGMASS", "mw_ebv": "MWEBV"},
        usual="Pantheon+SH0ES_STAT+SYS.cov",
    ),
    "des-sn5yr": DistanceFormat(_table, _SNANA | {"sigma": "MUERR_FINAL"}, "systematic", usual="STAT+SYS.txt.gz"),
    "des-dovekie": DistanceFormat(snana_text, _SNANA, "inverse", usual="STAT+SYS.npz"),
    "union3": DistanceFormat(_union3, {"name": "name", "z_cmb": "z", "mu": "mu", "covariance": "covariance"}),
    "jla-binned": DistanceFormat(_jla_binned, {"z_cmb": "z", "mu": "mu"}, usual="jla_mub_covmatrix.dat"),
    "pantheon2018": DistanceFormat(_pantheon2018, _JLA_STYLE, "systematic", usual="sys_full_long.txt"),
    "union2.1": DistanceFormat(
        _union2,
        {"name": "name", "z_cmb": "z", "mu": "mu", "sigma": "sigma"},
        covariates={"probability_low_mass": "probability_low_mass"},
        usual="SCPUnion2.1_covmat_sys.txt",
    ),
    "snana": DistanceFormat(snana_text, _SNANA, covariates={"x1": "x1", "c": "c", "log10_mass": "HOST_LOGMASS"}),
}


def read_distance_moduli(
    source: Any,
    *,
    covariance: str | None = None,
    columns: Mapping[str, str] | None = None,
    format: str = "table",
    missing: float | list[float] = (),  # type: ignore[assignment]
    leave_out: str | list[str] = (),  # type: ignore[assignment]
    covariance_is: str | None = None,
    z_min: float | None = None,
    calibrators: bool = True,
) -> DistanceModuli:
    """Read a distance-level sample in the form in which it is published, or from a table of one's own.

    Parameters
    ----------
    source
        Path of the table. With ``format="table"`` also anything that `hbm_jax.data.read_table` takes.
    covariance
        Path of the covariance, as text (also with ``.gz``), ``.npz`` or ``.npy``; or ``"diagonal"``: the errors of the
        table alone, as if they were independent.
    columns
        Which column of the table is which, standard name (of `DistanceModuli.from_columns`) to the table's, in place of
        the format's.
    format
        ``"table"``: columns have their standard names, or `columns` tells. ``"pantheon+"``, ``"des-sn5yr"``,
        ``"des-dovekie"``, ``"union3"`` (the FITS image with its inverse covariance), ``"jla-binned"``,
        ``"pantheon2018"``, ``"union2.1"``: the files of these releases. ``"snana"``: any text table of SNANA with zHD,
        zHEL, MU and MUERR. In all of these -9 is no value.
    missing
        Numbers that mean that there is no value: ``missing=(-9, -999)``.
    leave_out
        Rows to leave out: names of objects, ``"row 3"`` and so on counted from 0; ``"bad"`` leaves out those that
        cannot be used, and warns of them.
    covariance_is
        ``"total"``, ``"systematic"`` (squares of the table's errors are added), or ``"inverse"`` (of the total); by
        default what the release means by it.
    z_min
        Objects at or below this redshift are left out, calibrators aside; 0.01 for Pantheon+, else 0.
    calibrators
        Whether to keep calibrators with their independent distances, which give H0. False: leave those objects out
        that `z_min` leaves out, and take the others as any object.

    Returns
    -------
    DistanceModuli
        An object with several rows, as Pantheon+ has them, is named with its survey too.

    Raises
    ------
    FileNotFoundError
        If a path does not exist.
    DataError
        For everything else that is wrong; the message begins with the file.

    Examples
    --------
    >>> read_distance_moduli({"z_cmb": [0.1, 0.5], "mu": [38.3, 42.3], "sigma": [0.1, 0.1]})
    DistanceModuli(2 objects)
    """
    if format not in DISTANCE_FORMATS:
        raise DataError(
            f"format: expected one of {', '.join(DISTANCE_FORMATS)}; found {format!r}"
            f"{did_you_mean(format, DISTANCE_FORMATS)}."
        )
    chosen = DISTANCE_FORMATS[format]
    is_path = isinstance(source, str | os.PathLike)
    if format != "table" and not is_path:
        raise DataError(f"format={format!r} goes with a path: expected a path, found a {type(source).__name__}.")
    if is_path and not Path(source).exists():
        raise FileNotFoundError(f"{source}: expected a table file, found no such file.")
    origin = str(source) if is_path else "the given columns"
    try:
        if format == "table":
            table = read_table(source, missing=missing)
        else:
            with readable(Path(source), f"a table of the format {format!r}"):
                table = chosen.read(Path(source))
            table = dataclasses.replace(table, missing=(MISSING, *missing_codes(missing)))
        found, more, called = _columns(table, chosen, columns or {})
        warnings = repeated_names(found["name"], "objects") if "name" in found else []
        if "name" in found:
            found["name"] = _distinct(found["name"], found.get("survey"))
        found = _with_covariance(found, chosen, covariance, covariance_is)
        both = found | {f"{COVARIATE}{key}": value for key, value in more.items()}
        data, left_out, _ = make_from_rows(
            both, partial(_of_rows, called=called), name="name", leave_out=leave_out, matrices=("covariance",)
        )
        # Errors of redshifts are part of those of the moduli.
        unused = unused_errors(called, table.columns, ("mu_calibrator",))
        told = [*left_out, *unused, *(warnings if "sigma" in found else ()), *data.warnings]
        data = dataclasses.replace(data, warnings=tell(told, origin=origin))
    except DataError as error:
        text = str(error)
        raise DataError(text if text.startswith(origin) else f"{origin}: {text}") from error
    return _selected(data, chosen.z_min if z_min is None else float(z_min), calibrators)


def _columns(table: TableColumns, chosen: DistanceFormat, given: Mapping[str, str]) -> tuple[dict, dict, dict]:
    """Columns and covariates of a table by their standard names, and what the table calls the columns."""
    standard = [key for key in COLUMNS if key != "covariance"]
    usual = {key: name for key, name in chosen.columns.items() if key in standard and name in table.columns}
    if any(key in given for key in QUANTITIES):
        usual = {key: name for key, name in usual.items() if key not in QUANTITIES}
    names = table.resolve(standard, dict(usual) | dict(given), {})
    for keys in (("z_cmb",), QUANTITIES):
        if not any(key in names for key in keys):
            expected = chosen.columns.get(keys[0]) or keys[0]
            raise DataError(
                f"column {expected!r} is missing{did_you_mean(expected, table.columns)}: expected it, or "
                f"columns={{{keys[0]!r}: <its name in the table>}}; found the columns {listed(table.columns)}."
            )
    texts = ("name", "survey")
    found: dict[str, Any] = {
        key: table.values(name, COLUMNS[key].unit, text=key in texts) for key, name in names.items()
    }
    if "IDSURVEY" in (names.get("survey"), chosen.columns.get("survey")) and "survey" in found:
        found["survey"] = [survey_name(number) for number in found["survey"]]
    if "IS_CALIBRATOR" in table.columns and "mu_calibrator" in found:
        used = np.array([str(flag) not in ("0", "0.0") for flag in table.values("IS_CALIBRATOR")])
        found["mu_calibrator"] = np.where(used, np.ma.filled(_numbers(found["mu_calibrator"]), np.nan), np.nan)
    if "name" in found:
        found["name"] = [str(name) for name in found["name"]]
    if "covariance" in table.columns:
        found["covariance"] = np.asarray(table.values("covariance"), dtype=np.float64)
    elif "covariance_0" in table.columns:
        rows = range(len(table.columns["covariance_0"]))
        found["covariance"] = np.stack([np.array(table.values(f"covariance_{i}"), float) for i in rows], axis=1)
    own = {key.removeprefix(COVARIATE): key for key in table.columns if key.startswith(COVARIATE)}
    wanted = {key: name for key, name in (dict(chosen.covariates) | own).items() if name in table.columns}
    return found, {key: np.ma.filled(_numbers(table.values(name)), np.nan) for key, name in wanted.items()}, names


def _numbers(values: Any) -> np.ma.MaskedArray:
    """Return a column as numbers, masked where there is none."""
    plain = np.ma.asarray(values)
    some = np.where(np.ma.getmaskarray(plain), "nan", np.ma.getdata(plain).astype(str))
    return np.ma.MaskedArray(some.astype(float), np.ma.getmaskarray(plain))


def _of_rows(columns: Mapping[str, Any], called: Mapping[str, str]) -> DistanceModuli:
    covariates = {key.removeprefix(COVARIATE): value for key, value in columns.items() if key.startswith(COVARIATE)}
    return DistanceModuli.from_columns(
        {key: value for key, value in columns.items() if not key.startswith(COVARIATE)},
        covariates=covariates,
        called=called,
    )


def _distinct(names: list[str], surveys) -> list[str]:
    """Names of objects, with survey and number where several rows have the same."""
    many = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    if surveys is not None:
        names = [f"{n} ({s})" if n in many else n for n, s in zip(names, surveys, strict=True)]
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            names[index] = f"{name} {seen[name]}"
    return names


def _with_covariance(found: dict[str, Any], chosen: DistanceFormat, covariance, covariance_is) -> dict[str, Any]:
    """Columns with the covariance in place of the errors."""
    kind = covariance_is or chosen.covariance_is
    if kind not in KINDS:
        raise DataError(f"covariance_is: expected one of {', '.join(KINDS)}; found {kind!r}.")
    if covariance is None:
        if "covariance" in found:
            found.pop("sigma", None)
        elif chosen.usual:
            raise DataError(
                f"expected covariance=<file> ({chosen.usual} of the release), or covariance='{DIAGONAL}' for the "
                "errors of the table without correlations; found none."
            )
        return found
    found.pop("covariance", None)
    if str(covariance) == DIAGONAL:
        if "sigma" not in found:
            raise DataError(f"covariance='{DIAGONAL}' expects errors in the table; found none.")
        return found
    num = len(found["z_cmb"])
    matrix = read_covariance(covariance, num)
    sigma = found.pop("sigma", None)
    variance = None if sigma is None else np.array(sigma, float) ** 2
    if kind == "inverse":
        try:
            matrix = np.asarray(np.linalg.inv(matrix), np.float64)
        except np.linalg.LinAlgError:
            raise DataError(f"{covariance}: expected the inverse of a covariance; found a singular matrix.") from None
        matrix = 0.5 * (matrix + matrix.T)
    elif kind == "systematic":
        if variance is None:
            raise DataError("covariance_is='systematic' expects errors in the table, to be added; found none.")
        matrix = matrix + np.diag(variance)
    elif variance is not None and np.mean(np.diagonal(matrix) < TOO_SMALL * variance) > 0.5:
        share = float(np.median(np.diagonal(matrix) / variance))
        raise DataError(
            f"{covariance}: expected a total covariance, with at least the variances of the table; found a diagonal of "
            f"{share:.2g} of them (median). To try: covariance_is='systematic'."
        )
    return found | {"covariance": matrix}


def _selected(data: DistanceModuli, z_min: float, calibrators: bool) -> DistanceModuli:
    """Leave out what is too near, and the calibrators' distances where they are not wanted."""
    keep = data.z_cmb > z_min
    if calibrators:
        keep |= data.is_calibrator
    if not keep.any():
        raise DataError(f"z_min: expected some object beyond; found none of {len(data)} above {z_min:g}.")
    chosen = data if keep.all() else data.subset(keep)
    if calibrators or not chosen.is_calibrator.any():
        return chosen
    nothing = np.full(len(chosen), np.nan)
    nothing.flags.writeable = False
    return dataclasses.replace(chosen, mu_calibrator=nothing)
