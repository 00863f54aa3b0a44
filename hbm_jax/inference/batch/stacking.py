"""Many data sets as one: what is equal in all of them once, what differs stacked, what is ragged padded and masked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro


@dataclass(frozen=True)
class Stack:
    """The arguments of a program for many objects.

    Attributes
    ----------
    first : tuple
        Arguments of the first object, padded: what the program is traced with.
    leaves : list of array
        Every array that differs from object to object, stacked along a first axis and padded at the end of the others.
    varying : tuple of int
        Which leaves of the arguments those are; the others are the same for every object.
    lengths : (num, num_ragged) array of int
        True lengths of the ragged axes of each object.
    padded : tuple of int
        Their common padded lengths, each unlike any other length in the data.
    """

    first: tuple
    leaves: list[np.ndarray]
    varying: tuple[int, ...]
    lengths: np.ndarray
    padded: tuple[int, ...]

    def __len__(self):
        return len(self.lengths)

    def args(self, leaves: Sequence, others: tuple | None = None) -> tuple:
        """Arguments with one object's leaves in place, among those of the first object or others."""
        flat, structure = jax.tree.flatten(self.first if others is None else others)
        for place, leaf in zip(self.varying, leaves, strict=True):
            flat[place] = leaf
        return jax.tree.unflatten(structure, flat)

    def without_padding(self, row: int) -> tuple:
        """Arguments of one object as they were given."""
        flat, structure = jax.tree.flatten(self.args([leaf[row] for leaf in self.leaves]))
        own = dict(zip(self.padded, self.lengths[row], strict=True))
        cut = [leaf[tuple(slice(own.get(size)) for size in np.shape(leaf))] if np.ndim(leaf) else leaf for leaf in flat]
        return jax.tree.unflatten(structure, cut)

    def take(self, rows) -> "Stack":
        """Return some of the objects."""
        return Stack(self.first, [leaf[rows] for leaf in self.leaves], self.varying, self.lengths[rows], self.padded)


def stack(data: Any) -> Stack:
    """Stack the data of many objects.

    Parameters
    ----------
    data : sequence, or a pytree of arrays
        A list with one entry for each object: its first argument, or a tuple of all its arguments. Or one pytree (a
        dictionary, a container) whose arrays all have the objects along their first axis.

    Raises
    ------
    ValueError
        If there are no objects, or they do not have the same structure; the object is named.
    """
    objects = objects_of(data)
    if not objects:
        raise ValueError("fit_each: expected at least one object, found none.")
    flat = [jax.tree_util.tree_flatten_with_path(entry)[0] for entry in objects]
    paths = [jax.tree_util.keystr(path) for path, _ in flat[0]]
    for number, entry in enumerate(flat):
        own = [jax.tree_util.keystr(path) for path, _ in entry]
        if own != paths:
            odd = sorted(set(own) ^ set(paths))
            raise ValueError(
                f"fit_each: expected every object to have the same fields; found that object {number} and the first "
                f"differ in {', '.join(odd[:5]) or 'their order'}."
            )
    columns = [[np.asarray(entry[i][1]) for entry in flat] for i in range(len(paths))]
    for path, column in zip(paths, columns, strict=True):
        for number, value in enumerate(column):
            if value.ndim != column[0].ndim:
                raise ValueError(
                    f"fit_each: expected {path} of every object to have {column[0].ndim} axes, as the first has; found "
                    f"{value.ndim} for object {number}."
                )
            if value.dtype.hasobject or value.dtype.kind not in "fiub":
                raise ValueError(f"fit_each: expected numbers in {path}; found {value.dtype} for object {number}.")
    # Axes whose lengths differ, together with those that share their lengths in every object.
    sizes = {
        (i, axis): tuple(value.shape[axis] for value in column)
        for i, column in enumerate(columns)
        for axis in range(column[0].ndim)
    }
    ragged = list(dict.fromkeys(size for size in sizes.values() if len(set(size)) > 1))
    if any(min(size) == 0 for size in ragged):
        raise ValueError(f"fit_each: expected data for every object; object {np.argmin(ragged[0])} has none.")
    taken = {size[0] for size in sizes.values() if len(set(size)) == 1}
    padded = []
    for size in ragged:
        length = max(size)
        while length in taken:
            length += 1
        taken.add(length)
        padded.append(length)
    to = dict(zip(ragged, padded, strict=True))
    varying, leaves, first = [], [], []
    for i, column in enumerate(columns):
        shape = [to.get(sizes[i, axis], column[0].shape[axis]) for axis in range(column[0].ndim)]
        values = [_pad(value, shape) for value in column]
        first.append(values[0])
        if any(not np.array_equal(value, values[0], equal_nan=value.dtype.kind == "f") for value in values[1:]):
            varying.append(i)
            leaves.append(np.stack(values))
    structure = jax.tree.structure(objects[0])
    lengths = np.stack(ragged, axis=1) if ragged else np.zeros((len(objects), 0), int)
    return Stack(jax.tree.unflatten(structure, first), leaves, tuple(varying), lengths, tuple(padded))


def objects_of(data: Any) -> list[tuple]:
    """Return the arguments of the program for each object, of data as `stack` takes them."""
    entries = data if isinstance(data, list) else _unstacked(data)
    return [entry if isinstance(entry, tuple) else (entry,) for entry in entries]


def _unstacked(data) -> list[tuple]:
    """Objects of a pytree that has them along the first axis of every array."""
    args = data if isinstance(data, tuple) else (data,)
    leaves, structure = jax.tree.flatten(args)
    counts = {np.shape(leaf)[:1] for leaf in leaves}
    if len(counts) != 1 or counts == {()}:
        raise ValueError(
            "fit_each: expected a list with one entry for each object, or arrays that all have the objects along their "
            f"first axis; found first axes of {sorted(str(c[0]) if c else 'a scalar' for c in counts)}."
        )
    (num,) = counts.pop()
    return [jax.tree.unflatten(structure, [np.asarray(leaf)[i] for leaf in leaves]) for i in range(num)]


def _pad(value, shape):
    """Repeat the last entry of each axis: padding stays within whatever domain the data have."""
    if not value.ndim:
        return value
    return np.pad(value, [(0, n - own) for n, own in zip(shape, value.shape, strict=True)], mode="edge")


class MaskedData(numpyro.primitives.Messenger):
    """Takes the padding out of the density: observed sites count only up to the true length of their ragged axis.

    Parameters
    ----------
    program : callable
        A NumPyro program, called with padded data.
    padded : tuple of int
        Padded lengths, by which ragged axes are known.
    lengths : sequence of int
        True lengths.
    """

    def __init__(self, program: Callable, padded: tuple[int, ...], lengths):
        super().__init__(program)
        self.padded, self.lengths = padded, lengths

    def process_message(self, msg):
        """Mask an observed site."""
        if msg["type"] != "sample" or not msg["is_observed"] or not self.padded:
            return
        shape = np.shape(msg["value"])
        batch = len(shape) - msg["fn"].event_dim
        for axis, size in enumerate(shape):
            if size not in self.padded:
                continue
            if axis >= batch:
                raise ValueError(
                    f"fit_each: the objects differ in the length of an axis of the vector-valued site {msg['name']!r}; "
                    "expected ragged axes to be independent entries, in a plate."
                )
            length = self.lengths[self.padded.index(size)]
            inside = (jnp.arange(size) < length).reshape([-1] + [1] * (batch - axis - 1))
            msg["fn"] = msg["fn"].expand(shape[:batch]).mask(inside)


def masked(program: Callable, padded: tuple[int, ...], lengths) -> Callable:
    """Return the program with the padding of its data left out of the density."""
    return MaskedData(program, padded, lengths) if padded else program
