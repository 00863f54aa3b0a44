"""Draws and data as an ArviZ DataTree that a file can hold, and the check before sampling that there will be one."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from arviz_base import from_dict

KINDS = "biufcUS"  # of NumPy's types, those that a file holds: numbers and text


def plain_labels(values, what: str = "labels") -> list:
    """Return labels of a dimension as a list of numbers or text; dates and other objects become their text.

    Raises
    ------
    ValueError
        If they are not one label after the other.
    """
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"sample: expected {what} to be a list; found {values!r:.100}.")
    return array.astype(str).tolist() if array.dtype.kind not in "biufU" else array.tolist()


def arrays_of(data) -> dict[str, np.ndarray] | None:
    """Return data as arrays by name: a container's fields, the columns of a pandas table; None for data of other kinds.

    None too where a field is neither numbers nor text, or has a name that a file cannot hold.
    """
    if isinstance(data, pd.DataFrame):
        if not data.columns.is_unique:
            return None
        named: Any = {"index": data.index.to_numpy()} | {str(name): data[name].to_numpy() for name in data.columns}
    elif hasattr(data, "to_dict"):
        named = data.to_dict()
    else:
        return None
    if not isinstance(named, Mapping):
        return None
    arrays = {}
    for name, value in named.items():
        try:
            array = np.asarray(value)
        except ValueError:  # rows of different length
            return None
        if array.dtype.kind == "O" and all(isinstance(entry, str) for entry in array.flat):
            array = array.astype(str)
        if not isinstance(name, str) or "/" in name or array.dtype.kind not in KINDS:
            return None
        arrays[name] = array
    return arrays


def tree_of(
    program: Callable,
    args: tuple,
    *,
    target,
    sites: Mapping[str, np.ndarray],
    sample_stats: Mapping[str, np.ndarray],
    positions: np.ndarray,
    dims: Mapping[str, list[str]] | None,
    coords: Mapping[str, Any] | None,
) -> xr.DataTree:
    """Give draws their names, dimensions, labels and units.

    Parameters
    ----------
    program, args
        What was fitted.
    target : Target
        For dimensions and labels.
    sites, sample_stats : mapping of str to array (chain, draw, ...)
        Draws.
    positions : array (chain, draw, size)
        The same draws as the sampler saw them.
    dims, coords : mapping, optional
        A user's, which come before the program's own and those of the plates.

    Raises
    ------
    ValueError
        If a site has the name of a dimension; for labels that do not fit.
    """
    data = args[0] if args else None
    dims = target.dims | dict(getattr(program, "dims", {})) | dict(dims or {})
    own_coords = program.coords(data) if hasattr(program, "coords") else {}
    coords = dict(own_coords) | dict(coords or {})
    used_dims = {name: dims[name] for name in sites if dims.get(name)}
    used = {dim for names in used_dims.values() for dim in names}
    labels = {name: plain_labels(values, f"coords[{name!r}]") for name, values in coords.items() if name in used}
    for name in used & set(sites):
        raise ValueError(
            f"a site and a plate or dimension are both called {name!r}: expected two names, because the labels of the "
            "dimension take the place of the site. Rename one of them."
        )
    tree = from_dict({"posterior": dict(sites)}, dims=used_dims, coords=labels)
    # Each group with names of its own: a site or a plate may be called what the sampler's are.
    tree.update(from_dict({"sample_stats": dict(sample_stats)}))
    raw = {"unconstrained_posterior": {"position": positions}}
    tree.update(from_dict(raw, dims={"position": ["parameter"]}, coords={"parameter": list(target.labels)}))
    for name, unit in getattr(program, "units", {}).items():
        if name in tree["posterior"]:
            tree["posterior"][name].attrs["units"] = str(unit)
    stored = arrays_of(data)
    if stored is not None:
        tree["constant_data"] = xr.DataTree(_dataset(stored))
    forms = getattr(program, "forms", ())
    if forms:
        arrays = {name: value for form in forms for name, value in form.to_arrays().items()}
        numbered = {n: ([f"{n}_dim_{axis}" for axis in range(value.ndim)], value) for n, value in arrays.items()}
        tree["centering"] = xr.DataTree(xr.Dataset(numbered))
    return tree


def rehearse(program: Callable, args: tuple, target, dims, coords) -> None:
    """Put one draw of zeros together as all will be in the end, so that what cannot be stored is said before sampling.

    Raises
    ------
    ValueError
        With what cannot be stored, and why.
    """
    for name, of in target.shapes.items():
        if not hasattr(of, "shape"):
            raise ValueError(
                f"sample: expected site {name!r} to be an array; found a {type(of).__name__}. Give each of its parts a "
                "site of its own."
            )
    sites = {name: np.zeros((1, 1, *of.shape), of.dtype) for name, of in target.shapes.items()}
    try:
        tree_of(
            program,
            args,
            target=target,
            sites=sites,
            sample_stats={"lp": np.zeros((1, 1))},
            positions=np.zeros((1, 1, target.size)),
            dims=dims,
            coords=coords,
        )
    except Exception as error:
        raise ValueError(f"sample: expected a program whose draws can be stored; found: {error}") from error


def _dataset(fields: Mapping[str, np.ndarray]) -> xr.Dataset:
    """Plain arrays as a Dataset: leading dimension ``object``, further ones numbered."""
    variables = {}
    for name, array in fields.items():
        dims = [f"object_{len(array)}", *(f"axis_{n}" for n in array.shape[1:])] if array.ndim else []
        dims = [f"{dim}_{i}" if dim in dims[:i] else dim for i, dim in enumerate(dims)]
        variables[name] = xr.Variable(dims, array)
    return xr.Dataset(variables)
