"""Draws and data as an ArviZ DataTree that can be stored, and a check of this before sampling."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from hbm_jax.inference.program import arrays_of_reparametrisations, coords_of, dims_of, symbols_of, units_of

RESERVED = {"chain", "draw", "sample"}
KINDS = "biufcUS"  # NumPy kinds that a file can hold: numbers and text


def plain_labels(values, name: str = "labels") -> list:
    """Return the labels of a dimension as a list of numbers or text; dates and other objects become text.

    Raises
    ------
    ValueError
        If the labels are not one-dimensional.
    """
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"sample: expected {name} to be a list; found {values!r:.100}.")
    return array.astype(str).tolist() if array.dtype.kind not in "biufU" else array.tolist()


def arrays_of(data) -> dict[str, np.ndarray] | None:
    """Return data as arrays by name: the fields of a container, or the columns of a pandas table.

    Return None for other types of data, and if a field is neither numbers nor text or has a name that a file cannot
    hold.
    """
    if isinstance(data, pd.DataFrame):
        if not data.columns.is_unique:
            return None
        fields: Any = {"index": data.index.to_numpy()} | {str(name): data[name].to_numpy() for name in data.columns}
    elif hasattr(data, "to_dict"):
        fields = data.to_dict()
    else:
        return None
    if not isinstance(fields, Mapping):
        return None
    arrays = {}
    for name, value in fields.items():
        try:
            array = np.asarray(value)
        except ValueError:  # rows of different lengths
            return None
        if array.dtype.kind == "O" and all(isinstance(entry, str) for entry in array.flat):
            array = array.astype(str)
        if not isinstance(name, str) or "/" in name or array.dtype.kind not in KINDS:
            return None
        arrays[name] = array
    return arrays


def require_storable_names(dims: dict[str, list[str]]) -> None:
    """Raise ValueError if a site or plate has a name that a result file cannot hold."""
    for kind, names in (("site", dims), ("plate", {plate for plates in dims.values() for plate in plates})):
        for name in RESERVED & set(names):
            raise ValueError(f"The program has a {kind} called {name!r}: expected another name, because ArviZ uses it.")
        for name in names:
            if "/" in name:
                raise ValueError(
                    f"The program has a {kind} called {name!r}: expected a name without '/', which separates groups in "
                    "result files. In numpyro.handlers.scope, pass divider='.'."
                )


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
    """Return draws and data as a DataTree with names, dimensions, labels, units and symbols.

    Parameters
    ----------
    program, args
        The fitted program and its arguments.
    target : Target
        Gives dimensions and labels.
    sites, sample_stats : mapping of str to array (chain, draw, ...)
        Draws.
    positions : array (chain, draw, size)
        The flat unconstrained draws.
    dims, coords : mapping, optional
        Dimensions and coordinates given by the user; they take precedence over those of the program and the plates.

    Raises
    ------
    ValueError
        If a site has the name of a dimension, or for labels of the wrong length.
    """
    dims = target.dims | dims_of(program) | dict(dims or {})
    coords = coords_of(program, args) | dict(coords or {})
    used_dims = {name: dims[name] for name in sites if dims.get(name)}
    used_dim_names = {dim for names in used_dims.values() for dim in names}
    labels = {
        name: plain_labels(values, f"coords[{name!r}]") for name, values in coords.items() if name in used_dim_names
    }
    for name in used_dim_names & set(sites):
        raise ValueError(
            f"a site and a plate or dimension are both called {name!r}: expected two names, because the coordinate of "
            "the dimension would replace the site. Rename one of them."
        )
    unconstrained = {"position": positions}
    parameters = {"parameter": list(target.real_labels)}
    tree = xr.DataTree.from_dict(
        {
            "posterior": dataset_of_draws(sites, used_dims, labels),
            "sample_stats": dataset_of_draws(sample_stats),
            "unconstrained_posterior": dataset_of_draws(unconstrained, {"position": ["parameter"]}, parameters),
        }
    )
    for attribute, texts in {"units": units_of(program), "symbol": symbols_of(program)}.items():
        for name in texts:
            if name in tree["posterior"]:
                tree["posterior"][name].attrs[attribute] = texts[name]
    data_arrays = arrays_of(args[0]) if args else None
    if data_arrays is not None:
        tree["constant_data"] = xr.DataTree(_dataset(data_arrays))
    if arrays := arrays_of_reparametrisations(program):
        numbered = {n: ([f"{n}_dim_{axis}" for axis in range(value.ndim)], value) for n, value in arrays.items()}
        tree["centering"] = xr.DataTree(xr.Dataset(numbered))
    return tree


def dataset_of_draws(
    draws: Mapping[str, np.ndarray],
    dims: Mapping[str, list[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Return draws as a Dataset with the names of ArviZ.

    ArviZ's own ``from_dict`` does the same, but its import takes that of matplotlib.

    Parameters
    ----------
    draws : mapping of str to array (chain, draw, ...)
        Draws by name.
    dims : mapping of str to list of str, optional
        Dimensions of variables after ``chain`` and ``draw``; missing ones are named ``<variable>_dim_<number>``.
    coords : mapping of str to sequence, optional
        Labels of dimensions. Default: numbers from 0.

    Raises
    ------
    ValueError
        If a variable has fewer axes than dimensions, or a dimension has labels of another length.
    """
    dims, variables, labels = dims or {}, {}, dict(coords or {})
    for name, values in draws.items():
        named = ["chain", "draw", *dims.get(name, ())]
        if len(named) > values.ndim:
            raise ValueError(
                f"{name} has the dimensions {', '.join(named)}: expected an array of as many axes; found {values.ndim}."
            )
        named += [f"{name}_dim_{i}" for i in range(values.ndim - len(named))]
        variables[name] = (named, values)
        for dim, size in zip(named, values.shape, strict=True):
            labels.setdefault(dim, np.arange(size))
            if len(labels[dim]) != size:
                raise ValueError(f"{name}: expected {size} labels of {dim!r}; found {len(labels[dim])}.")
    return xr.Dataset(variables, labels)


def check_storable(program: Callable, args: tuple, target, dims, coords) -> None:
    """Build the DataTree of one draw of zeros, to report before sampling that draws cannot be stored.

    Raises
    ------
    ValueError
        If the draws cannot be stored; the message gives the reason.
    """
    for name, site in target.shapes.items():
        if not hasattr(site, "shape"):
            raise ValueError(
                f"sample: expected site {name!r} to be an array; found a {type(site).__name__}. Make each of its "
                "parts a separate site."
            )
    sites = {name: np.zeros((1, 1, *site.shape), site.dtype) for name, site in target.shapes.items()}
    try:
        tree_of(
            program,
            args,
            target=target,
            sites=sites,
            sample_stats={"lp": np.zeros((1, 1))},
            positions=np.zeros((1, 1, len(target.real_labels))),
            dims=dims,
            coords=coords,
        )
    except Exception as error:
        raise ValueError(f"sample: expected a program whose draws can be stored; found: {error}") from error


def _dataset(fields: Mapping[str, np.ndarray]) -> xr.Dataset:
    """Return arrays as a Dataset, with dimensions ``object_<length>``, ``axis_<length>``."""
    variables = {}
    for name, array in fields.items():
        dims = [f"object_{len(array)}", *(f"axis_{n}" for n in array.shape[1:])] if array.ndim else []
        dims = [f"{dim}_{i}" if dim in dims[:i] else dim for i, dim in enumerate(dims)]
        variables[name] = xr.Variable(dims, array)
    return xr.Dataset(variables)
