"""Table models of XSPEC (atable, mtable, etable): files of spectra on a grid of parameters, read and written.

Reference: Arnaud, OGIP/92-009, the file format for XSPEC table models.
"""

import functools
import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hbm_jax.spectra.ogip.tables import opened
from hbm_jax.spectra.ogip.writing import refuse_existing
from hbm_jax.validation import DataError, Floats

if TYPE_CHECKING:
    from astropy.io import fits

NUM_CHECKS = 200  # largest number of grid cells in which the interpolation error is measured


@dataclass(frozen=True)
class TableParameter:
    """Parameter of a table model.

    Attributes
    ----------
    name : str
        Name in the file; characters other than letters, digits and underscores are replaced by underscores.
    unit : str
        Unit, empty if there is none.
    values : tuple of float
        Grid points, increasing; empty for an additional parameter, in which the model is linear.
    logarithmic : bool
        True: the model is interpolated in the logarithm of the parameter.
    initial, low, high : float
        Initial value, and hard limits.
    fixed : bool
        True: the parameter is fixed by default (a step of 0 or less in the file).
    """

    name: str
    unit: str = ""
    values: tuple[float, ...] = ()
    logarithmic: bool = False
    initial: float = 0.0
    low: float = 0.0
    high: float = 0.0
    fixed: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class TableModel:
    """Contents of a table model.

    Attributes
    ----------
    name : str
        Name of the model.
    additive : bool
        True: the spectra are photons/cm^2/s in each bin; False: factors, or optical depths.
    has_redshift, has_energy_scale : bool
        True: the model has a redshift, or a factor of all energies (keywords REDSHIFT and ESCALE).
    parameters : tuple of TableParameter
        Interpolated parameters, then additional ones.
    energy : (num_energies + 1,)
        Edges of the energy bins [keV].
    spectra : (num_grid, num_energies)
        Spectra on the grid; the last parameter varies fastest.
    additional : (num_additional, num_grid, num_energies)
        Spectra that are multiplied by each additional parameter and added.
    error : float
        Interpolation error, if it was measured by `write_table_model`; NaN otherwise.
    """

    name: str
    additive: bool
    has_redshift: bool
    has_energy_scale: bool
    parameters: tuple[TableParameter, ...]
    energy: Floats
    spectra: Floats
    additional: Floats
    error: float = np.nan

    @property
    def interpolated(self) -> tuple[TableParameter, ...]:
        """Parameters of the grid."""
        return tuple(parameter for parameter in self.parameters if parameter.values)


def read_table_model(path: str | Path) -> TableModel:
    """Read a table model.

    Raises DataError if the file cannot be read, an extension or column is missing, or spectra and parameters do not
    form a grid. The last 8 files are cached, and read again if they were modified.

    Parameters
    ----------
    path : path
        FITS file of OGIP/92-009.
    """
    path = Path(path).absolute()  # in messages, and in the key of the cache
    try:
        modified = os.stat(path).st_mtime_ns
    except OSError:
        raise DataError(f"{path}: expected a table model; the file does not exist.") from None
    return _read(path, modified)


@functools.lru_cache(maxsize=8)
def _read(path: Path, modified: int) -> TableModel:
    """Read a table model; the time of modification is part of the key of the cache."""
    with opened(path) as hdus:
        header = hdus[0].header
        extensions = {}
        for name in ("PARAMETERS", "ENERGIES", "SPECTRA"):
            if name not in hdus:
                raise DataError(f"{path}: expected an extension {name}; found {', '.join(hdu.name for hdu in hdus)}.")
            extensions[name] = hdus[name]
        parameters = _parameters(extensions["PARAMETERS"], path)
        grid = [parameter.values for parameter in parameters if parameter.values]
        energies, table = extensions["ENERGIES"].data, extensions["SPECTRA"].data
        low, high = (np.asarray(energies[name], float) for name in ("ENERG_LO", "ENERG_HI"))
        if not (len(low) and (high > low).all() and np.allclose(low[1:], high[:-1], rtol=1e-5) and low[0] >= 0):
            raise DataError(f"{path}[ENERGIES]: expected adjacent, increasing bins; found {low[:3]}, {high[:3]}.")
        order = _grid_order(np.asarray(table["PARAMVAL"], float).reshape(len(table), -1), grid, path)
        names = [name for name in table.names if re.fullmatch(r"(?i)ADDSP\d+", name)]
        num_additional = len(parameters) - len(grid)
        if len(names) != num_additional:
            raise DataError(f"{path}[SPECTRA]: expected {num_additional} columns ADDSP; found {len(names)}.")
        spectra, *additional = (
            np.asarray(table[name], float).reshape(len(table), -1)[order] for name in ("INTPSPEC", *names)
        )
        if spectra.shape[1] != len(low):
            raise DataError(f"{path}[SPECTRA]: expected {len(low)} numbers in each; found {spectra.shape[1]}.")
        return TableModel(
            name=str(header.get("MODLNAME", path.stem)).strip(),
            additive=bool(header.get("ADDMODEL", True)),
            has_redshift=bool(header.get("REDSHIFT", False)),
            has_energy_scale=bool(header.get("ESCALE", False)),
            parameters=parameters,
            energy=np.append(low, high[-1]),
            spectra=spectra,
            additional=np.array(additional).reshape(num_additional, *spectra.shape),
            error=float(header.get("INTPERR", np.nan)),
        )


def _parameters(hdu: "fits.BinTableHDU", path: Path) -> tuple[TableParameter, ...]:
    """Return the parameters in the order of the file."""
    parameters, columns = [], hdu.columns.names
    num_interpolated = int(hdu.header.get("NINTPARM", len(hdu.data)))
    for number, row in enumerate(hdu.data):
        name = re.sub(r"\W+", "_", str(row["NAME"])).strip("_") or f"parameter_{number + 1}"
        values: tuple[float, ...] = ()
        if number < num_interpolated:
            values = tuple(np.ravel(np.asarray(row["VALUE"], float))[: int(row["NUMBVALS"])].tolist())
            if len(values) < 2 or not (np.diff(values) > 0).all():
                raise DataError(
                    f"{path}[PARAMETERS], {name}: expected at least two increasing values; found {values[:4]}."
                )
        low, high = float(row["MINIMUM"]), float(row["MAXIMUM"])
        if values:
            low, high = max(low, values[0]), min(high, values[-1])
        logarithmic = int(row["METHOD"]) == 1 if number < num_interpolated else False
        if logarithmic and not values[0] > 0:
            raise DataError(f"{path}[PARAMETERS], {name}: expected positive values of METHOD 1; found {values[0]:g}.")
        unit = str(row["UNIT"]).strip() if "UNIT" in columns else ""
        fixed = float(row["DELTA"]) <= 0
        parameters.append(TableParameter(name, unit, values, logarithmic, float(row["INITIAL"]), low, high, fixed))
    if not any(parameter.values for parameter in parameters):
        raise DataError(f"{path}[PARAMETERS]: expected at least one interpolated parameter; found none.")
    return tuple(parameters)


def _grid_order(points: Floats, grid: Sequence[Sequence[float]], path: Path) -> NDArray[np.int64]:
    """Return the rows of the grid points, ordered so that the last parameter varies fastest."""
    shape = tuple(map(len, grid))
    if points.shape != (int(np.prod(shape)), len(grid)):
        raise DataError(
            f"{path}[SPECTRA]: expected {np.prod(shape):.0f} spectra of {len(grid)} parameters; found {len(points)} of "
            f"{points.shape[1]}."
        )
    nearest = [np.abs(points[:, [axis]] - np.asarray(values)).argmin(axis=1) for axis, values in enumerate(grid)]
    grid_index = np.ravel_multi_index(nearest, shape)
    missing = np.setdiff1d(np.arange(len(points)), grid_index)
    if missing.size:
        indices = np.unravel_index(missing[0], shape)
        point = ", ".join(f"{values[int(i)]:g}" for values, i in zip(grid, indices, strict=True))
        raise DataError(
            f"{path}[SPECTRA], PARAMVAL: expected every point of the grid of parameters once; found none at {point}."
        )
    return np.argsort(grid_index, kind="stable")


def write_table_model(
    path: str | Path,
    function: Callable[..., ArrayLike],
    energy: ArrayLike,
    grid: Mapping[str, ArrayLike],
    *,
    additive: bool = True,
    logarithmic: Sequence[str] = (),
    units: Mapping[str, str] | None = None,
    additional: Mapping[str, tuple[Callable[..., ArrayLike], float, float]] | None = None,
    redshift: bool = False,
    energy_scale: bool = False,
    name: str = "model",
    overwrite: bool = False,
) -> float:
    """Write a table model of a function, and measure its interpolation error.

    Raises FileExistsError if the file exists and `overwrite` is false, and DataError if the energies or a grid are not
    increasing, or the function returns a wrong shape or numbers that are not finite.

    Parameters
    ----------
    path : path
        File to write.
    function : callable
        ``function(energy, **parameters)``, with edges of bins (num_energies + 1,) and one number for each parameter. It
        returns photons/cm^2/s in the bins for an additive model; otherwise a factor, or an optical depth for an etable.
    energy : (num_energies + 1,)
        Edges of the bins [keV], in the frame of the source, positive and increasing.
    grid : mapping of str to (num,) array
        Grid points of each parameter, increasing.
    additive : bool
        True: the spectra are photons in bins.
    logarithmic : sequence of str
        Parameters in whose logarithm the spectra are interpolated.
    units : mapping of str to str, optional
        Units of parameters.
    additional : mapping of str to (callable, float, float), optional
        Additional parameters: a function of the same arguments, whose result times the parameter is added, and the
        limits of the parameter.
    redshift, energy_scale : bool
        True: the model has a parameter for the redshift, or for a factor that scales all energies.
    name : str
        Name of the model, at most 12 characters.
    overwrite : bool
        True: replace an existing file.

    Returns
    -------
    float
        Largest interpolation error at the centres of up to 200 grid cells. For an additive model, the sum over bins of
        absolute differences from the function, relative to the sum of the function; otherwise the largest difference in
        a bin. The file has it as the keyword INTPERR.

    Examples
    --------
    >>> edges, grid = np.geomspace(0.1, 10.0, 101), {"kT": np.geomspace(0.3, 3.0, 40)}
    >>> def thermal(energy, kT):
    ...     return kT * -np.diff(np.exp(-energy / kT))
    >>> error = write_table_model("thermal.mod", thermal, edges, grid, logarithmic=["kT"])  # doctest: +SKIP
    """
    refuse_existing(Path(path), overwrite)
    energy = np.asarray(energy, float)
    if energy.ndim != 1 or len(energy) < 2 or not (np.diff(energy) > 0).all() or not energy[0] > 0:
        raise DataError(f"{path}: expected positive, increasing energies; found {energy[:3]}.")
    units, additional = units or {}, additional or {}
    parameters = [_written_parameter(key, grid[key], key in logarithmic, units.get(key, "")) for key in grid]
    additional_parameters = [
        TableParameter(key, units.get(key, ""), (), False, 0.5 * (low + high), low, high)
        for key, (_, low, high) in additional.items()
    ]
    points = list(itertools.product(*(parameter.values for parameter in parameters)))

    def evaluated(spectrum: Callable[..., ArrayLike], point: Sequence[float]) -> Floats:
        """Return a function at a point of the grid, (num_energies,); raise DataError for an invalid result."""
        values = np.asarray(spectrum(energy, **dict(zip(grid, point, strict=True))), float)
        if values.shape != (len(energy) - 1,) or not np.isfinite(values).all():
            raise DataError(
                f"{path}: expected {len(energy) - 1} finite numbers from the function at {dict(zip(grid, point))}; "  # noqa: B905
                f"found shape {values.shape}, {(~np.isfinite(values)).sum()} not finite."
            )
        return values

    spectra = np.array([evaluated(function, point) for point in points])
    additional_spectra = [
        np.array([evaluated(spectrum, point) for point in points]) for spectrum, _, _ in additional.values()
    ]
    error = _interpolation_error(lambda point: evaluated(function, point), spectra, parameters, additive)
    keys: dict[str, Any] = {"MODLNAME": name[:12], "MODLUNIT": "photons/cm^2/s" if additive else " "}
    keys |= {"REDSHIFT": redshift, "ESCALE": energy_scale, "ADDMODEL": additive, "INTPERR": error}
    hdus = _hdus(keys, energy, points, [*parameters, *additional_parameters], spectra, additional_spectra)
    hdus.writeto(path, overwrite=overwrite)
    return error


def _written_parameter(name: str, values: ArrayLike, logarithmic: bool, unit: str) -> TableParameter:
    """Return a parameter with its grid; raise DataError for an invalid grid."""
    nodes = np.asarray(values, float)
    if nodes.ndim != 1 or len(nodes) < 2 or not (np.diff(nodes) > 0).all() or (logarithmic and not nodes[0] > 0):
        raise DataError(f"{name}: expected at least two increasing values, positive if logarithmic; found {nodes[:4]}.")
    middle = float(nodes[len(nodes) // 2])
    return TableParameter(name, unit, tuple(nodes.tolist()), logarithmic, middle, float(nodes[0]), float(nodes[-1]))


def _interpolation_error(
    exact: Callable[[Sequence[float]], Floats], spectra: Floats, parameters: Sequence[TableParameter], additive: bool
) -> float:
    """Return the largest interpolation error at the centres of grid cells."""
    from scipy.interpolate import RegularGridInterpolator

    nodes = [np.log(p.values) if p.logarithmic else np.asarray(p.values) for p in parameters]
    interpolated = RegularGridInterpolator(nodes, spectra.reshape(*map(len, nodes), -1))
    middles = [0.5 * (x[1:] + x[:-1]) for x in nodes]
    num = int(np.prod([len(x) for x in middles]))
    cells = np.unique(np.linspace(0, num - 1, min(num, NUM_CHECKS)).round().astype(int))
    errors = []
    for cell in cells:
        index = np.unravel_index(cell, [len(x) for x in middles])
        centre = [float(x[i]) for x, i in zip(middles, index, strict=True)]
        truth = exact([float(np.exp(x)) if p.logarithmic else x for x, p in zip(centre, parameters, strict=True)])
        difference = np.abs(interpolated(centre)[0] - truth)
        errors.append(difference.sum() / max(np.abs(truth).sum(), 1e-300) if additive else difference.max())
    return float(max(errors))


def _hdus(
    keys: Mapping[str, Any],
    energy: Floats,
    points: Sequence[Sequence[float]],
    parameters: Sequence[TableParameter],
    spectra: Floats,
    additional: Sequence[Floats],
) -> "fits.HDUList":
    """Return the extensions of a table model."""
    from astropy.io import fits

    primary = fits.PrimaryHDU()
    keys = {**keys, "HDUCLASS": "OGIP", "HDUCLAS1": "XSPEC TABLE MODEL", "HDUVERS": "1.1.0"}
    primary.header.update(keys)
    max_values = max(len(p.values) for p in parameters)
    padded = np.array([[*p.values, *[0.0] * (max_values - len(p.values))] for p in parameters])
    columns = {
        "NAME": ("12A", [p.name[:12] for p in parameters]), "METHOD": ("J", [int(p.logarithmic) for p in parameters]),
        "INITIAL": ("D", [p.initial for p in parameters]),
        "DELTA": ("D", [-1.0 if p.fixed else 0.01 * (p.high - p.low) for p in parameters]),
        "MINIMUM": ("D", [p.low for p in parameters]), "BOTTOM": ("D", [p.low for p in parameters]),
        "TOP": ("D", [p.high for p in parameters]), "MAXIMUM": ("D", [p.high for p in parameters]),
        "NUMBVALS": ("J", [len(p.values) for p in parameters]), "VALUE": (f"{max_values}D", padded),
        "UNIT": ("20A", [p.unit for p in parameters]),
    }  # fmt: skip
    num = sum(bool(p.values) for p in parameters)
    tables = [("PARAMETERS", columns)]
    tables.append(("ENERGIES", {"ENERG_LO": ("D", energy[:-1]), "ENERG_HI": ("D", energy[1:])}))
    size = f"{len(energy) - 1}D"
    spectra_columns: dict[str, Any] = {"PARAMVAL": (f"{num}D", np.array(points)), "INTPSPEC": (size, spectra)}
    spectra_columns |= {f"ADDSP{number:03d}": (size, rows) for number, rows in enumerate(additional, 1)}
    tables.append(("SPECTRA", spectra_columns))
    hdus = [primary]
    for title, contents in tables:
        fits_columns = [fits.Column(key, kind, array=values) for key, (kind, values) in contents.items()]
        hdus.append(fits.BinTableHDU.from_columns(fits_columns, name=title))
    hdus[1].header["NINTPARM"], hdus[1].header["NADDPARM"] = num, len(parameters) - num
    for column in (1, 2):
        hdus[2].header[f"TUNIT{column}"] = "keV"
    return fits.HDUList(hdus)
