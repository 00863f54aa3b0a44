"""Stacking of the data of many objects: common values stored once, others stacked, ragged axes padded and masked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro

from hbm_jax.inference.program import bound_args, bound_objects, is_bound


@dataclass(frozen=True)
class Stack:
    """The arguments of a program for many objects.

    Attributes
    ----------
    first : tuple
        Padded arguments of the first object, with which the program is traced.
    leaves : list of array
        Every array that differs from object to object, stacked along a first axis and padded at the end of the others.
    varying : tuple of int
        Indices of these arrays among the flattened arguments; the other arguments are the same for every object.
    lengths : (num, num_ragged) array of int
        True lengths of the ragged axes of each object.
    padded : tuple of int
        Common padded length of each ragged axis. It differs from every other length in the data, so that it identifies
        the axis.
    source : tuple of (callable, Stack) or None
        For bound data, the program that bound them and the stack of its arguments; else None.
    """

    first: tuple
    leaves: list[np.ndarray]
    varying: tuple[int, ...]
    lengths: np.ndarray
    padded: tuple[int, ...]
    source: "tuple[Callable, Stack] | None" = None

    def __len__(self):
        return len(self.lengths)

    def args(self, leaves: Sequence, template: tuple | None = None) -> tuple:
        """Return the arguments of one object: its leaves in a template, by default those of the first object."""
        flat, structure = jax.tree.flatten(self.first if template is None else template)
        for index, leaf in zip(self.varying, leaves, strict=True):
            flat[index] = leaf
        return jax.tree.unflatten(structure, flat)

    def without_padding(self, row: int) -> tuple:
        """Return the arguments of one object as they were before padding."""
        if self.source is not None:
            program, stack = self.source
            return bound_args(program, stack.without_padding(row))
        flat, structure = jax.tree.flatten(self.args([leaf[row] for leaf in self.leaves]))
        lengths = dict(zip(self.padded, self.lengths[row], strict=True))
        unpadded = [
            leaf[tuple(slice(lengths.get(size)) for size in np.shape(leaf))] if np.ndim(leaf) else leaf for leaf in flat
        ]
        return jax.tree.unflatten(structure, unpadded)

    def take(self, rows) -> "Stack":
        """Return the stack of some of the objects."""
        source = self.source and (self.source[0], self.source[1].take(rows))
        return replace(self, leaves=[leaf[rows] for leaf in self.leaves], lengths=self.lengths[rows], source=source)


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
        If there are no objects, or if they differ in structure; the message names the object.
    """
    objects = objects_of(data)
    if not objects:
        raise ValueError("fit_each: expected at least one object; found none.")
    paths, columns = _columns(objects)
    for path, column in zip(paths, columns, strict=True):
        for index, value in enumerate(column):
            if value.ndim != column[0].ndim:
                raise ValueError(
                    f"fit_each: expected {path} of every object to have {column[0].ndim} axes, as the first has; found "
                    f"{value.ndim} for object {index}."
                )
            if value.dtype.hasobject or value.dtype.kind not in "fiub":
                raise ValueError(f"fit_each: expected numbers in {path}; found {value.dtype} for object {index}.")
    # Lengths of each axis in all objects. Axes with equal lengths in every object are the same ragged axis.
    axis_lengths = {
        (field, axis): tuple(value.shape[axis] for value in column)
        for field, column in enumerate(columns)
        for axis in range(column[0].ndim)
    }
    ragged = list(dict.fromkeys(lengths for lengths in axis_lengths.values() if len(set(lengths)) > 1))
    if any(min(lengths) == 0 for lengths in ragged):
        raise ValueError(f"fit_each: expected data for every object; object {np.argmin(ragged[0])} has none.")
    # A padded length identifies its axis, so it differs from all other lengths.
    other_lengths = {lengths[0] for lengths in axis_lengths.values() if len(set(lengths)) == 1}
    padded = []
    for lengths in ragged:
        length = max(lengths)
        while length in other_lengths:
            length += 1
        other_lengths.add(length)
        padded.append(length)
    padded_length = dict(zip(ragged, padded, strict=True))
    varying, leaves, first = [], [], []
    for field, column in enumerate(columns):
        shape = [padded_length.get(axis_lengths[field, axis], column[0].shape[axis]) for axis in range(column[0].ndim)]
        values = [_pad(value, shape) for value in column]
        first.append(values[0])
        if any(not np.array_equal(value, values[0], equal_nan=value.dtype.kind == "f") for value in values[1:]):
            varying.append(field)
            leaves.append(np.stack(values))
    structure = jax.tree.structure(objects[0])
    ragged_lengths = np.stack(ragged, axis=1) if ragged else np.zeros((len(objects), 0), int)
    return Stack(jax.tree.unflatten(structure, first), leaves, tuple(varying), ragged_lengths, tuple(padded))


def _columns(objects: list[tuple]) -> tuple[list[str], list[list[np.ndarray]]]:
    """Return the path of each field, and its arrays of all objects."""
    flattened = [jax.tree_util.tree_flatten_with_path(entry)[0] for entry in objects]
    paths = [jax.tree_util.keystr(path) for path, _ in flattened[0]]
    for index, entry in enumerate(flattened):
        entry_paths = [jax.tree_util.keystr(path) for path, _ in entry]
        if entry_paths != paths:
            differing = sorted(set(entry_paths) ^ set(paths))
            raise ValueError(
                f"fit_each: expected every object to have the same fields; found that object {index} and the first "
                f"differ in {', '.join(differing[:5]) or 'their order'}."
            )
    return paths, [[np.asarray(entry[field][1]) for entry in flattened] for field in range(len(paths))]


def bound_stack(program: Callable, data: Any) -> Stack:
    """Stack the data of many objects for tracing the program: bound data if it has `Program.bind`.

    Ragged data are padded before they are bound, except by programs with `Program.bind_alike`.

    Raises
    ------
    ValueError
        As `stack`, and if the bound data of two objects differ in structure, or in shapes.
    """
    objects = objects_of(data)
    if hasattr(program, "bind_alike") and not is_bound(program, objects):
        with jax.enable_x64(True):
            stacked = stack([(bound,) for bound in program.bind_alike([args[0] for args in objects])])
        if stacked.padded:
            raise ValueError(
                "fit_each: expected bound data of the same shapes for all objects; found others. Fit the objects in "
                "groups of equal shapes."
            )
        return stacked
    stacked = stack(data)
    if stacked.padded:
        objects = [stacked.args([leaf[row] for leaf in stacked.leaves]) for row in range(len(stacked))]
    bound = bound_objects(program, objects)
    if bound[0] is objects[0]:
        return stacked
    structures: list[Any] = [jax.tree.structure(args) for args in bound]
    for index, structure in enumerate(structures):
        if structure != structures[0]:
            raise ValueError(
                f"fit_each: expected bound data of one structure for all objects; found that object {index} and the "
                "first differ. Give the program a method bind_each, or fit the objects in groups."
            )
    source = (program, stacked) if stacked.padded else None
    return replace(stack(bound), lengths=stacked.lengths, padded=stacked.padded, source=source)


def objects_of(data: Any) -> list[tuple]:
    """Return the program's arguments for each object, from data in any form that `stack` takes."""
    entries = data if isinstance(data, list) else _unstacked(data)
    return [entry if isinstance(entry, tuple) else (entry,) for entry in entries]


def _unstacked(data) -> list[tuple]:
    """Split a pytree into objects along the first axis of every array."""
    args = data if isinstance(data, tuple) else (data,)
    leaves, structure = jax.tree.flatten(args)
    counts = {np.shape(leaf)[:1] for leaf in leaves}
    if len(counts) != 1 or counts == {()}:
        raise ValueError(
            "fit_each: expected a list with one entry for each object, or arrays that all have the objects along their "
            f"first axis; found first axes of {sorted(str(c[0]) if c else 'a scalar' for c in counts)}."
        )
    (num_objects,) = counts.pop()
    return [jax.tree.unflatten(structure, [np.asarray(leaf)[i] for leaf in leaves]) for i in range(num_objects)]


def _pad(value, shape):
    """Pad with the last entry of each axis, so that the padding lies within the domain of the data."""
    if not value.ndim:
        return value
    return np.pad(value, [(0, length - size) for length, size in zip(shape, value.shape, strict=True)], mode="edge")


class MaskedData(numpyro.primitives.Messenger):
    """Handler that masks the padding of observed sites, beyond the true length of their ragged axes.

    Parameters
    ----------
    program : callable
        A NumPyro program, called with padded data.
    padded : tuple of int
        Padded lengths, which identify the ragged axes.
    lengths : sequence of int
        True lengths.
    """

    def __init__(self, program: Callable, padded: tuple[int, ...], lengths):
        super().__init__(program)
        self.padded, self.lengths = padded, lengths

    def process_message(self, msg):
        """Mask the padding of an observed site."""
        if msg["type"] != "sample" or not msg["is_observed"] or not self.padded:
            return
        shape = np.shape(msg["value"])
        num_batch_axes = len(shape) - msg["fn"].event_dim
        for axis, size in enumerate(shape):
            if size not in self.padded:
                continue
            if axis >= num_batch_axes:
                raise ValueError(
                    f"fit_each: the objects differ in the length of an axis of the vector-valued site {msg['name']!r}; "
                    "expected ragged axes to be independent entries, in a plate."
                )
            length = self.lengths[self.padded.index(size)]
            is_data = (jnp.arange(size) < length).reshape([-1] + [1] * (num_batch_axes - axis - 1))
            msg["fn"] = msg["fn"].expand(shape[:num_batch_axes]).mask(is_data)


def masked(program: Callable, padded: tuple[int, ...], lengths) -> Callable:
    """Return the program with the padding of its observed sites masked."""
    return MaskedData(program, padded, lengths) if padded else program
