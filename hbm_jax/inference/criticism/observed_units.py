"""What is left out, one at a time: single observations, or groups of them, with their labels."""

from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from hbm_jax.inference.results import Fit


@dataclass(frozen=True)
class Units:
    """What is left out, one at a time: log likelihoods (chain, draw, unit) with labels."""

    numbers: np.ndarray
    labels: list[str]
    name: str
    dim: str
    members: tuple[np.ndarray, ...]
    counts: np.ndarray

    def only(self, chosen) -> "Units":
        """Return the units picked by a mask."""
        rows = np.flatnonzero(chosen)
        members = tuple(self.members[i] for i in rows) if self.members else ()
        labels = [self.labels[i] for i in rows]
        return replace(self, numbers=self.numbers[..., rows], labels=labels, members=members, counts=self.counts[rows])


def choose_sites(values: xr.Dataset, site: str | None) -> tuple[xr.DataArray, tuple[str, ...]]:
    """Log likelihood to use, and the sites it is of."""
    names = tuple(map(str, values))
    if site is not None:
        if site not in names:
            raise ValueError(f"loo: expected one of the observed sites {', '.join(names)}; found site={site!r}.")
        names = (site,)
    shapes = {name: tuple(values[name].sizes.items())[2:] for name in names}
    if len(set(shapes.values())) > 1:
        found = "; ".join(f"{name} over ({', '.join(f'{d}: {n}' for d, n in s)})" for name, s in shapes.items())
        raise ValueError(f"loo: expected observed sites with the same dimensions, or site= to choose; found {found}.")
    if not shapes[names[0]]:
        raise ValueError(
            f"loo: expected one log likelihood for each object; found a single one for all data of {', '.join(names)}. "
            "Put the observations in a plate, or do without to_event."
        )
    total = values[names[0]]
    for name in names[1:]:
        total = total + values[name]
    return total.transpose("chain", "draw", ...), names


def into_units(values: xr.DataArray, group, fit: Fit) -> Units:
    """Sort log likelihoods into units."""
    dims = [str(dim) for dim in values.dims[2:]]
    if group is None:
        shape = values.shape[2:]
        axes = [_texts(values, dim) for dim in dims]
        labels = [", ".join(axis[i] for axis, i in zip(axes, index, strict=True)) for index in np.ndindex(*shape)]
        flat = values.to_numpy().reshape(*values.shape[:2], -1)
        single = len(dims) == 1
        members = tuple(np.array([i]) for i in range(len(labels))) if single else ()
        counts = np.ones(len(labels), dtype=int)
        return Units(flat, labels, ", ".join(dims), dims[0] if single else "", members, counts)
    name, labels_of, dim = _group_labels(values, dims, group, fit)
    per_entry = values.sum([d for d in dims if d != dim]).to_numpy()
    found, first, inverse = np.unique(labels_of, return_index=True, return_inverse=True)
    order = np.argsort(first)  # groups in the order in which the data name them
    members = tuple(np.flatnonzero(inverse == i) for i in order)
    numbers = np.stack([per_entry[..., rows].sum(axis=-1) for rows in members], axis=-1)
    repeats = int(np.prod([values.sizes[d] for d in dims if d != dim], dtype=int))
    counts = np.array([len(rows) * repeats for rows in members])
    return Units(numbers, [str(found[i]) for i in order], name, dim, members, counts)


def _group_labels(values, dims, group, fit) -> tuple[str, np.ndarray, str]:
    """Name of the grouping, one label an entry, and the dimension they are along."""
    sizes = {dim: values.sizes[dim] for dim in dims}
    if isinstance(group, str):
        if group in dims:
            return group, np.asarray(_texts(values, group)), group
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
    fitting = [dim for dim, size in sizes.items() if labels.shape == (size,)]
    if not fitting:
        expected = " or ".join(f"{size} ({dim})" for dim, size in sizes.items())
        raise ValueError(
            f"loo: expected one group label for each entry of the site, {expected}; found labels of shape "
            f"{labels.shape}."
        )
    return name, labels, fitting[0]


def _texts(values, dim) -> list[str]:
    """Labels of a dimension as distinct texts."""
    texts = [str(label) for label in (values[dim].to_numpy() if dim in values.coords else range(values.sizes[dim]))]
    return texts if len(set(texts)) == len(texts) else [f"{text} ({i})" for i, text in enumerate(texts)]
