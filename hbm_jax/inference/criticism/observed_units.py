"""Units of leave-one-out cross-validation: single observations or groups of them, with labels."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from hbm_jax.inference.results import Fit
from hbm_jax.inference.verdict import dimension_labels


@dataclass(frozen=True)
class Units:
    """Units that are left out in turn.

    Attributes
    ----------
    log_likelihood : (chain, draw, unit)
        Log likelihood of each unit.
    labels : list of str
        Label of each unit.
    name : str
        Name of the kind of unit: a dimension or a grouping.
    dim : str
        Dimension of the data along which units are left out; empty if there are several.
    members : tuple of arrays
        Positions along ``dim`` of each unit's observations; empty if there are several dimensions.
    counts : (unit,)
        Number of observations of each unit.
    """

    log_likelihood: np.ndarray
    labels: list[str]
    name: str
    dim: str
    members: tuple[np.ndarray, ...]
    counts: np.ndarray

    def only(self, mask) -> "Units":
        """Return the units selected by a mask, (unit,) of bool."""
        rows = np.flatnonzero(mask)
        members = tuple(self.members[i] for i in rows) if self.members else ()
        labels = [self.labels[i] for i in rows]
        return replace(
            self,
            log_likelihood=self.log_likelihood[..., rows],
            labels=labels,
            members=members,
            counts=self.counts[rows],
        )


def choose_sites(values: xr.Dataset, site: str | None) -> tuple[xr.DataArray, tuple[str, ...]]:
    """Return the log likelihood, summed over the chosen sites, and the names of these sites."""
    names = tuple(map(str, values))
    if site is not None:
        if site not in names:
            raise ValueError(f"loo: expected one of the observed sites {', '.join(names)}; found site={site!r}.")
        names = (site,)
    shapes = {name: tuple(values[name].sizes.items())[2:] for name in names}
    if len(set(shapes.values())) > 1:
        descriptions = "; ".join(
            f"{name} over ({', '.join(f'{dim}: {size}' for dim, size in shape)})" for name, shape in shapes.items()
        )
        raise ValueError(
            f"loo: expected observed sites with the same dimensions, or site= to choose; found {descriptions}."
        )
    if not shapes[names[0]]:
        raise ValueError(
            f"loo: expected one log likelihood for each object; found a single one for all data of {', '.join(names)}. "
            "Put the observations in a plate, or remove to_event."
        )
    total = values[names[0]]
    for name in names[1:]:
        total = total + values[name]
    return total.transpose("chain", "draw", ...), names


def into_units(values: xr.DataArray, group, fit: Fit) -> Units:
    """Sum log likelihoods (chain, draw, ...) into units, single entries or groups."""
    dims = [str(dim) for dim in values.dims[2:]]
    if group is None:
        axes = [dimension_labels(values, dim) for dim in dims]
        labels = [", ".join(entry) for entry in itertools.product(*axes)]
        log_likelihood = values.to_numpy().reshape(*values.shape[:2], -1)
        is_one_dimensional = len(dims) == 1
        members = tuple(np.array([i]) for i in range(len(labels))) if is_one_dimensional else ()
        counts = np.ones(len(labels), dtype=int)
        return Units(log_likelihood, labels, ", ".join(dims), dims[0] if is_one_dimensional else "", members, counts)
    name, entry_labels, dim = _group_labels(values, dims, group, fit)
    per_entry = values.sum([d for d in dims if d != dim]).to_numpy()
    group_labels, first_entry, inverse = np.unique(entry_labels, return_index=True, return_inverse=True)
    order = np.argsort(first_entry)  # groups in the order of their first entry
    members = tuple(np.flatnonzero(inverse == i) for i in order)
    sums = np.stack([per_entry[..., rows].sum(axis=-1) for rows in members], axis=-1)
    num_per_entry = int(np.prod([values.sizes[d] for d in dims if d != dim], dtype=int))
    counts = np.array([len(rows) * num_per_entry for rows in members])
    return Units(sums, [str(group_labels[i]) for i in order], name, dim, members, counts)


def _group_labels(values, dims, group, fit) -> tuple[str, np.ndarray, str]:
    """Return the name of the grouping, a label for each entry, and the dimension of these labels."""
    sizes = {dim: values.sizes[dim] for dim in dims}
    if isinstance(group, str):
        if group in dims:
            return group, np.asarray(dimension_labels(values, group)), group
        stored = fit.tree["constant_data"].to_dataset() if "constant_data" in fit.tree else {}
        for source in (values.coords, stored):
            if group in source:
                labels = np.asarray(source[group])
                break
        else:
            if not hasattr(fit.data, group):
                fields = sorted(map(str, {*dims, *stored, *getattr(fit.data, "__dataclass_fields__", {})}))
                raise ValueError(
                    f"loo: expected group to be labels, or the name of a dimension or of a field of the data "
                    f"({', '.join(fields)}); found {group!r}."
                )
            labels = np.asarray(getattr(fit.data, group))
        name = group
    else:
        labels, name = np.asarray(group), "group"
    matching_dims = [dim for dim, size in sizes.items() if labels.shape == (size,)]
    if not matching_dims:
        expected = " or ".join(f"{size} ({dim})" for dim, size in sizes.items())
        raise ValueError(
            f"loo: expected one group label for each entry of the site, {expected}; found labels of shape "
            f"{labels.shape}."
        )
    return name, labels, matching_dims[0]
