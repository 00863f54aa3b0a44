"""Readers of distance-level samples: files of published releases, and any table."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hbm_jax.data.building import make_from_rows, named_errors, with_warnings
from hbm_jax.data.columns import repeated_names, unused_errors
from hbm_jax.data.containers import warnings_of
from hbm_jax.data.supernovae.dense_covariance import read_covariance
from hbm_jax.data.supernovae.distance_moduli import COLUMNS, COVARIATE, QUANTITIES, DistanceModuli
from hbm_jax.data.supernovae.snana import MISSING, blank_separated, snana_text, survey_name
from hbm_jax.data.tables import TableColumns, missing_codes, read_table
from hbm_jax.names import did_you_mean
from hbm_jax.reading import readable
from hbm_jax.validation import DataError, Remedy, frozen_array

DIAGONAL = "diagonal"
KINDS = ("total", "systematic", "inverse")
# A total covariance includes the statistical variances. If more than half of its diagonal is below this fraction of the
# variances in the table, it is probably a systematic covariance, and `read_distance_moduli` raises an error.
TOO_SMALL = 0.9


@dataclass(frozen=True)
class DistanceFormat:
    """File format of a release.

    Attributes
    ----------
    read : callable
        Function that reads the table at a path.
    columns : dict of str to str
        Column names in the file, by standard name.
    covariance_is : str
        Content of the covariance file: ``"total"``; ``"systematic"``, to which the squared errors of the table are
        added; ``"inverse"``, the inverse of the total covariance.
    z_min : float
        Objects at or below this redshift are left out, except calibrators, as in the likelihood of the release.
    covariates : dict of str to str
        Column names of covariates for residual plots, by name of the covariate.
    covariance_file : str
        Name of the covariance file in the release.
    """

    read: Callable[[Path], TableColumns]
    columns: Mapping[str, str]
    covariance_is: str = "total"
    z_min: float = 0.0
    covariates: Mapping[str, str] = field(default_factory=dict)
    covariance_file: str = ""


def _union3(path: Path) -> TableColumns:
    """Read the FITS image of Union3: redshifts (first row), moduli (first column) and inverse covariance (the rest)."""
    from astropy.io import fits

    image = np.asarray(fits.getdata(path), dtype=np.float64)
    if image.ndim != 2 or image.shape[0] != image.shape[1]:
        raise DataError(f"expected a square image, such as mu_mat_union3_cosmo=2_mu.fits; found shape {image.shape}.")
    covariance = np.linalg.inv(0.5 * (image[1:, 1:] + image[1:, 1:].T))
    names = np.array([f"node {z:.4g}" for z in image[0, 1:]])
    columns = {"name": names, "z": image[0, 1:], "mu": image[1:, 0], "covariance": covariance}
    return TableColumns(str(path), columns)


_PANTHEON_PLUS = {
    "name": "CID", "survey": "IDSURVEY", "z_cmb": "zHD", "z_hel": "zHEL", "m_b_corr": "m_b_corr",
    "sigma": "m_b_corr_err_DIAG", "mu_calibrator": "CEPH_DIST",
}  # fmt: skip
_SNANA = {"name": "CID", "survey": "IDSURVEY", "z_cmb": "zHD", "z_hel": "zHEL", "mu": "MU", "sigma": "MUERR"}
_JLA_STYLE = {"name": "name", "z_cmb": "zcmb", "z_hel": "zhel", "m_b_corr": "mb", "sigma": "dmb"}

DISTANCE_FORMATS: dict[str, DistanceFormat] = {
    "table": DistanceFormat(read_table, {}),
    "pantheon+": DistanceFormat(
        blank_separated,
        _PANTHEON_PLUS,
        z_min=0.01,
        covariates={"x1": "x1", "c": "c", "log10_mass": "HOST_LOGMASS", "mw_ebv": "MWEBV"},
        covariance_file="Pantheon+SH0ES_STAT+SYS.cov",
    ),
    "des-sn5yr": DistanceFormat(
        read_table, _SNANA | {"sigma": "MUERR_FINAL"}, "systematic", covariance_file="STAT+SYS.txt.gz"
    ),
    "des-dovekie": DistanceFormat(snana_text, _SNANA, "inverse", covariance_file="STAT+SYS.npz"),
    "union3": DistanceFormat(_union3, {"name": "name", "z_cmb": "z", "mu": "mu", "covariance": "covariance"}),
    "jla-binned": DistanceFormat(
        partial(blank_separated, names=["z", "mu"]), {"z_cmb": "z", "mu": "mu"}, covariance_file="jla_mub_covmatrix.dat"
    ),
    "pantheon2018": DistanceFormat(
        partial(blank_separated, short=True),  # rows have one entry fewer than the header has names
        _JLA_STYLE,
        "systematic",
        covariance_file="sys_full_long.txt",
    ),
    "union2.1": DistanceFormat(
        partial(blank_separated, names=["name", "z", "mu", "sigma", "probability_low_mass"]),
        {"name": "name", "z_cmb": "z", "mu": "mu", "sigma": "sigma"},
        covariates={"probability_low_mass": "probability_low_mass"},
        covariance_file="SCPUnion2.1_covmat_sys.txt",
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
    """Read distance moduli or corrected magnitudes from a published release or from any table.

    Parameters
    ----------
    source
        Path of the table. With ``format="table"``, any input of `hbm_jax.data.read_table`.
    covariance
        Path of the covariance: text (also ``.gz``), ``.npz`` or ``.npy``. ``"diagonal"``: use only the errors of the
        table, without correlations.
    columns
        Column names in the table, by standard name (see `DistanceModuli.from_columns`); they take precedence over those
        of `format`.
    format
        ``"table"``: a table with standard column names or with names given by `columns`. ``"pantheon+"``,
        ``"des-sn5yr"``, ``"des-dovekie"``, ``"union3"`` (the FITS image with the inverse covariance),
        ``"jla-binned"``, ``"pantheon2018"``, ``"union2.1"``: files of these releases. ``"snana"``: a text table of
        SNANA with zHD, zHEL, MU and MUERR. In all formats except ``"table"``, -9 stands for missing values.
    missing, leave_out
        As for all readers of tables, see the notes of `hbm_jax.data.read_table`.
    covariance_is
        Content of the covariance file: ``"total"``, ``"systematic"`` (the squared errors of the table are added) or
        ``"inverse"`` (of the total covariance). The default depends on the format.
    z_min
        Objects at or below this redshift are left out, except calibrators. Default: 0.01 for Pantheon+, otherwise 0.
    calibrators
        True: keep calibrators and their independent distances, which determine H0. False: `z_min` applies to
        calibrators too, and the remaining ones are treated like other objects.

    Returns
    -------
    DistanceModuli
        For objects with several rows, as in Pantheon+, the names include the survey. Warnings in the metadata of the
        table (`DistanceModuli.to_table`), such as that the moduli are blinded, are issued again and stay with the data.

    Raises
    ------
    FileNotFoundError, DataError
        As for `hbm_jax.data.read_table` and `DistanceModuli.from_columns`.

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
    release = DISTANCE_FORMATS[format]
    is_path = isinstance(source, str | os.PathLike)
    if format != "table" and not is_path:
        raise DataError(f"format={format!r} is the format of a file: expected a path; found a {type(source).__name__}.")
    if is_path and not Path(source).exists():
        raise FileNotFoundError(f"{source}: expected a table file, found no such file.")
    with named_errors(source if is_path else "the given columns"):
        if format == "table":
            table = read_table(source, missing=missing)
        else:
            with readable(Path(source), f"a table of the format {format!r}"):
                table = release.read(Path(source))
            table = dataclasses.replace(table, missing=(MISSING, *missing_codes(missing)))
        values, column_names = _columns(table, release, columns or {})
        repeated = repeated_names(values["name"], "objects") if "name" in values else []
        if "name" in values:
            values["name"] = _distinct(values["name"], values.get("survey"))
        values = _with_covariance(values, release, covariance, covariance_is)
        data, left_out, _ = make_from_rows(
            values,
            partial(DistanceModuli.from_columns, column_names=column_names),
            name="name",
            leave_out=leave_out,
            matrices=("covariance",),
        )
        # Unused redshift errors cause no warning: the errors of the moduli include them.
        unused = unused_errors(column_names, table.columns, ("mu_calibrator",))
        kept = warnings_of({key.lower(): value for key, value in table.meta.items()})  # FITS has capital letters
        texts = [*kept, *left_out, *unused, *(repeated if "sigma" in values else ()), *data.warnings]
        data = with_warnings(data, texts, table)
    return _selected(data, release.z_min if z_min is None else float(z_min), calibrators)


def _columns(table: TableColumns, release: DistanceFormat, user_columns: Mapping[str, str]) -> tuple[dict, dict]:
    """Return columns and covariates of a table by standard name, and the names of the columns in the table."""
    standard = [key for key in COLUMNS if key != "covariance"]
    release_columns = {key: name for key, name in release.columns.items() if key in standard and name in table.columns}
    if any(key in user_columns for key in QUANTITIES):
        release_columns = {key: name for key, name in release_columns.items() if key not in QUANTITIES}
    names = table.resolve(standard, dict(release_columns) | dict(user_columns), {})
    table.require(names, "z_cmb", QUANTITIES)
    values: dict[str, Any] = dict(table.values_of(names, COLUMNS))
    if "IDSURVEY" in (names.get("survey"), release.columns.get("survey")) and "survey" in values:
        values["survey"] = [survey_name(number) for number in values["survey"]]
    if "IS_CALIBRATOR" in table.columns and "mu_calibrator" in values:
        flags = np.array([str(flag) not in ("0", "0.0") for flag in table.values("IS_CALIBRATOR")])
        values["mu_calibrator"] = np.where(flags, np.ma.filled(_numbers(values["mu_calibrator"]), np.nan), np.nan)
    if "name" in values:
        values["name"] = [str(name) for name in values["name"]]
    if "covariance" in table.columns:
        values["covariance"] = np.asarray(table.values("covariance"), dtype=np.float64)
    elif "covariance_0" in table.columns:
        rows = range(len(table.columns["covariance_0"]))
        values["covariance"] = np.stack([np.array(table.values(f"covariance_{i}"), float) for i in rows], axis=1)
    covariates = {f"{COVARIATE}{key}": name for key, name in release.covariates.items() if name in table.columns}
    covariates |= {key: key for key in table.columns if key.startswith(COVARIATE)}
    return values | {key: np.ma.filled(_numbers(table.values(name)), np.nan) for key, name in covariates.items()}, names


def _numbers(values: Any) -> np.ma.MaskedArray:
    """Return a column as a masked array of floats."""
    plain = np.ma.asarray(values)
    texts = np.where(np.ma.getmaskarray(plain), "nan", np.ma.getdata(plain).astype(str))
    return np.ma.MaskedArray(texts.astype(float), np.ma.getmaskarray(plain))


def _distinct(names: list[str], surveys) -> list[str]:
    """Return distinct names: the survey is added to repeated names, and a number if they are still equal."""
    repeated = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    if surveys is not None:
        names = [f"{n} ({s})" if n in repeated else n for n, s in zip(names, surveys, strict=True)]
    count: dict[str, int] = {}
    for index, name in enumerate(names):
        count[name] = count.get(name, 0) + 1
        if count[name] > 1:
            names[index] = f"{name} {count[name]}"
    return names


def _with_covariance(columns: dict[str, Any], release: DistanceFormat, covariance, covariance_is) -> dict[str, Any]:
    """Return the columns with a covariance, if there is one, in place of the errors."""
    kind = covariance_is or release.covariance_is
    if kind not in KINDS:
        raise DataError(f"covariance_is: expected one of {', '.join(KINDS)}; found {kind!r}.")
    if covariance is None:
        if "covariance" in columns:
            columns.pop("sigma", None)
        elif release.covariance_file:
            remedy = Remedy("covariance", DIAGONAL)
            raise DataError(
                f"expected covariance=<file> ({release.covariance_file} of the release), or {remedy} for the errors of "
                "the table without correlations; found none.",
                [remedy],
            )
        return columns
    columns.pop("covariance", None)
    if str(covariance) == DIAGONAL:
        if "sigma" not in columns:
            raise DataError(f"covariance='{DIAGONAL}' expects errors in the table; found none.")
        return columns
    num = len(columns["z_cmb"])
    matrix = read_covariance(covariance, num)
    sigma = columns.pop("sigma", None)
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
        fraction = float(np.median(np.diagonal(matrix) / variance))
        remedy = Remedy("covariance_is", "systematic")
        raise DataError(
            f"{covariance}: expected a total covariance, with at least the variances of the table; found a diagonal of "
            f"{fraction:.2g} times these (median). Try {remedy}.",
            [remedy],
        )
    return columns | {"covariance": matrix}


def _selected(data: DistanceModuli, z_min: float, calibrators: bool) -> DistanceModuli:
    """Apply the redshift cut and, unless `calibrators`, remove the distances of calibrators."""
    keep = data.z_cmb > z_min
    if calibrators:
        keep |= data.is_calibrator
    if not keep.any():
        raise DataError(f"z_min: expected an object at a higher redshift; found none of {len(data)} above {z_min:g}.")
    selected = data if keep.all() else data.subset(keep)
    if calibrators or not selected.is_calibrator.any():
        return selected
    return dataclasses.replace(selected, mu_calibrator=frozen_array(np.full(len(selected), np.nan)))
