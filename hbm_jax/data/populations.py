"""Common parts of the simulated populations of bursts and of afterglows: checks, redshifts, drawing and catalogues."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from numpy.typing import ArrayLike

from hbm_jax.cosmology import Cosmology
from hbm_jax.spectra.model.energetics import log10_sphere_area
from hbm_jax.spectra.ogip.writing import refuse_existing
from hbm_jax.validation import DataError, Floats

Drawn = TypeVar("Drawn")
EVOLUTIONS = ("hard to soft", "tracking", "none")
MAX_DRAWS = 200  # draws per requested object, after which a threshold is considered unreachable


def require(population: Any, names: tuple[str, ...], expected: str, valid: Callable[[Any], Any]) -> None:
    """Raise `ValueError` for the first of the named fields of a population that is not valid."""
    for name in names:
        value = getattr(population, name)
        if not valid(value):
            raise ValueError(f"{type(population).__name__}: {name}: expected {expected}; found {value!r}.")


def require_moments(population: Any, *names: str) -> None:
    """Raise `ValueError` unless these fields are pairs of mean and standard deviation."""
    require(population, names, "mean and standard deviation", lambda pair: len(pair) == 2 and pair[1] >= 0)


def require_ranges(population: Any, quantity: str, *names: str) -> None:
    """Raise `ValueError` unless these fields are pairs of positive numbers in increasing order."""
    require(population, names, f"two positive {quantity} in increasing order", lambda pair: 0 < pair[0] <= pair[1])


def require_choice(population: Any, name: str, known: tuple[str, ...]) -> None:
    """Raise `ValueError` unless a field is one of the `known` values."""
    require(population, (name,), f"one of {known}", lambda value: value in known)


def moments(population: Any, *names: str) -> dict[str, float]:
    """Return the means and standard deviations in these fields, as ``<name>_mean`` and ``<name>_std``."""
    pairs = {name: getattr(population, name) for name in names}
    return {f"{name}_{end}": value for name in names for end, value in zip(("mean", "std"), pairs[name], strict=True)}


def redshift(rng: np.random.Generator, values: Any, number: int) -> float:
    """Draw a redshift uniformly between two numbers, or return that of source `number` from a list, cyclically."""
    values = [float(z) for z in values]
    return rng.uniform(*values) if len(values) == 2 else values[number % len(values)]


def log10_areas(z: ArrayLike, H0: float, Om0: float) -> Floats:
    """Return log10 of the area 4 pi d_L^2 [cm^2] at redshifts, in a flat LCDM cosmology."""
    with jax.enable_x64(True):
        return np.asarray(jax.jit(log10_sphere_area)(z, Cosmology.flat(H0=H0, Om0=Om0)))


def draw_until(num: int, draw: Callable[[int, int], Drawn | None], unreachable: str) -> tuple[list[Drawn], int]:
    """Draw objects until `num` are accepted; return these, and the number of objects drawn.

    ``draw(num_drawn, num_accepted)`` returns an object, or None if it is not accepted. Raises ValueError if `num` is
    below 1, and DataError if 200 draws per object do not suffice, with the message `unreachable`, a template with
    ``{accepted}`` and ``{drawn}``.
    """
    if num < 1:
        raise ValueError(f"draw: expected at least one object; found {num}.")
    accepted: list[Drawn] = []
    drawn = 0
    while len(accepted) < num:
        if drawn >= MAX_DRAWS * num:
            raise DataError(unreachable.format(accepted=len(accepted), drawn=drawn))
        result = draw(drawn, len(accepted))
        drawn += 1
        if result is not None:
            accepted.append(result)
    return accepted, drawn


def new_catalogue(folder: str | Path, name: str, overwrite: bool) -> Path:
    """Return the path of a catalogue to be written; raise `FileExistsError` if it exists, unless `overwrite`."""
    path = Path(folder) / name
    refuse_existing(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_catalogue(
    path: Path, columns: Mapping[str, Any], truth: Mapping[str, Any], true_columns: Mapping[str, Any], overwrite: bool
) -> Path:
    """Write a catalogue with the scalars of `truth` in its header, and `true_columns` as columns ``true_<name>``."""
    from astropy.table import Table

    table = Table({**columns, **{f"true_{key}": np.asarray(value) for key, value in true_columns.items()}})
    if "nh_mw" in table.colnames:
        table["nh_mw"].unit = "1e22 cm-2"
    table.meta["truth"] = {key: float(value) for key, value in truth.items() if not np.ndim(value)}
    table.write(path, overwrite=overwrite)
    return path
