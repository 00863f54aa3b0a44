"""Check that the padding of ragged data leaves the posterior of a program unchanged.

A program is evaluated for one object with and without padding. Latents with one entry per datum are padded together
with the data. Their padded entries change nothing if the padded log density is the unpadded one plus the log prior of
these entries, whatever their values: the prior is normalised, so that the marginal posterior is that of the object
without padding.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import distributions as dist
from numpyro.infer.util import log_density

from hbm_jax.inference.arguments import latents_of, prior_trace, prior_value
from hbm_jax.inference.batch.stacking import Stack, masked

ADVICE = "Give all objects the same number of data, or call fit_each for each number."
NUM_POINTS = 3  # prior draws at which the densities are compared
MAX_DRAWS = 30  # prior draws tried for each object until NUM_POINTS of them have a finite density
MAX_OBJECTS = 5  # objects tried for each ragged axis until one has a finite density

Axes = tuple[tuple[int, int], ...]
"""Ragged axes of a site, as pairs (axis of the site, index of the ragged axis of the data)."""


def ragged_axes(program: Callable, stack: Stack) -> dict[str, Axes]:
    """Return the ragged axes of each latent and deterministic site, and check that padding changes none of them.

    Parameters
    ----------
    program : callable
        A NumPyro program of the data of one object.
    stack : Stack
        Data of all objects.

    Returns
    -------
    dict of str to tuple of (int, int)
        Axis of the site and index of the ragged axis of the data, for each ragged axis of each site.

    Raises
    ------
    ValueError
        If padding changes the log density or a deterministic site of an object, or if that cannot be tested.
    """
    is_padded = stack.lengths < np.asarray(stack.padded)
    has_finite_data = np.ones(len(stack), bool)
    for leaf in stack.leaves:
        has_finite_data &= np.isfinite(leaf).reshape(len(stack), -1).all(axis=1)
    # Objects with finite data first; among them, those with most padded axes.
    order = np.lexsort((-is_padded.sum(axis=1), ~has_finite_data))
    axes: dict[str, Axes] = {}
    verified = np.zeros(len(stack.padded), bool)
    for ragged_axis in range(len(stack.padded)):
        rows = order[is_padded[order, ragged_axis]]
        for row in rows[:MAX_OBJECTS]:
            if verified[ragged_axis]:
                break
            try:
                comparison = _Comparison(program, stack, int(row))
                finite_density = comparison.compare()
            except (AttributeError, IndexError, KeyError, TypeError) as error:
                raise ValueError(
                    "fit_each: the objects differ in their number of data; expected a program that runs with padded "
                    f"data; found an error with the padded data of object {row}: {type(error).__name__}: {error}. "
                    f"{ADVICE}"
                ) from error
            axes = {
                name: tuple(dict.fromkeys((*axes.get(name, ()), *new_axes)))
                for name, new_axes in comparison.axes.items()
            }
            if finite_density:
                verified |= is_padded[row]
        # With few objects this is not an error: without a finite density they get no starting point and are unusable.
        if not verified[ragged_axis] and len(rows) > MAX_OBJECTS:
            raise ValueError(
                "fit_each: the objects differ in their number of data, and the effect of padding could not be tested: "
                f"{MAX_OBJECTS} of the shorter ones have no finite log density at {MAX_DRAWS} draws of the prior. "
                f"{ADVICE}"
            )
    return axes


class _Comparison:
    """Comparison of the densities and sites of one object without and with padding."""

    def __init__(self, program: Callable, stack: Stack, row: int):
        self.row, self.padded = row, stack.padded
        self.lengths = [int(length) for length in stack.lengths[row]]
        self.program, self.masked = program, masked(program, stack.padded, self.lengths)
        self.stack, self.args = stack, stack.without_padding(row)
        unpadded_leaves = jax.tree.leaves(self.args)
        # Passed as arguments, so that they are traced as in the batch.
        self.data = [unpadded_leaves[index] for index in stack.varying], [leaf[row] for leaf in stack.leaves]
        key = jax.random.key(0)
        shapes = jax.eval_shape(
            lambda data: [_latents_and_deterministics(prior_trace(*call, key)) for call in self._calls(data)], self.data
        )
        if list(shapes[0]) != list(shapes[1]):
            differing = sorted(set(shapes[0]) ^ set(shapes[1]))
            raise ValueError(
                f"fit_each: the objects differ in their number of data; expected object {row} to have the same sites "
                f"with and without padding; found {', '.join(differing)} in one of them only. {ADVICE}"
            )
        self.axes = {name: self._axes(name, shapes[0][name].shape, shapes[1][name].shape) for name in shapes[0]}

    def _calls(self, data) -> tuple[tuple[Callable, tuple], tuple[Callable, tuple]]:
        """Return program and arguments for the object without padding, and with it."""
        unpadded, padded = data
        return (self.program, self.stack.args(unpadded, self.args)), (self.masked, self.stack.args(padded))

    def _axes(self, name: str, unpadded: tuple, padded: tuple) -> Axes:
        """Return the axes of a site that are longer with padding."""
        longer = [axis for axis in range(min(len(unpadded), len(padded))) if unpadded[axis] != padded[axis]]
        ragged = {size: index for index, size in enumerate(self.padded)}
        axes = tuple((axis, ragged[padded[axis]]) for axis in longer if padded[axis] in ragged)
        data_lengths = [self.lengths[ragged_axis] for _, ragged_axis in axes]
        if len(unpadded) != len(padded) or data_lengths != [unpadded[axis] for axis in longer]:
            raise ValueError(
                f"fit_each: the objects differ in their number of data; the site {name!r} of object {self.row} has "
                f"shape {unpadded} without padding and {padded} with it; expected axes as long as those of the data. "
                f"{ADVICE}"
            )
        return axes

    def _data_slices(self, name: str) -> tuple[slice, ...]:
        """Return the slices of a site that hold data, not padding."""
        lengths = {axis: self.lengths[ragged_axis] for axis, ragged_axis in self.axes[name]}
        return tuple(slice(lengths.get(axis)) for axis in range(max(lengths, default=-1) + 1))

    def _densities(self, key, data):
        """Draw latents; return the quantities that must agree with and without padding.

        Returns
        -------
        tuple
            Log density without padding; log density with padding, minus the log prior of the padded latents; the sum
            of the absolute values of these terms, which scales the rounding error; and the values of each
            deterministic site without and with padding.
        """
        key_unpadded, key_padded = jax.random.split(key)
        unpadded_call, padded_call = self._calls(data)
        latents = _latents(prior_trace(*unpadded_call, key_unpadded))

        def latent_with_padding(site):
            draw, name = prior_value(site), site["name"]
            if draw is None:
                return None
            return draw.at[self._data_slices(name)].set(latents[name]) if self.axes[name] else latents[name]

        values = _latents(prior_trace(*padded_call, key_padded, latent_with_padding))
        unpadded, unpadded_trace = log_density(*unpadded_call, {}, latents)
        padded, padded_trace = log_density(*padded_call, {}, values)
        prior = sum((self._prior_of_padding(name, padded_trace[name]) for name in values if self.axes[name]), 0.0)
        deterministics = {
            name: (site["value"], jnp.asarray(padded_trace[name]["value"])[self._data_slices(name)])
            for name, site in unpadded_trace.items()
            if site["type"] == "deterministic" and not name.startswith("_")
        }
        return unpadded, padded - prior, jnp.abs(unpadded) + jnp.abs(padded) + jnp.abs(prior), deterministics

    def _prior_of_padding(self, name: str, site):
        """Return the log prior of the padded entries of a latent site; ValueError if it is not a separate term."""
        fn = site["fn"]
        while isinstance(fn, dist.Independent):
            fn = fn.base_dist
        log_prob = fn.log_prob(site["value"])
        while isinstance(fn, dist.Independent | dist.ExpandedDistribution):
            fn = fn.base_dist
        if (
            isinstance(fn, dist.ImproperUniform)
            or site["scale"] is not None
            or any(axis >= log_prob.ndim for axis, _ in self.axes[name])
        ):
            raise ValueError(
                "fit_each: the objects differ in their number of data, on which the size of the latent site "
                f"{name!r} depends; expected it to have independent entries in a plate, with a proper prior that is "
                f"not scaled. {ADVICE}"
            )
        is_data = jnp.zeros(log_prob.shape, bool).at[self._data_slices(name)].set(True)
        return jnp.where(is_data, 0.0, log_prob).sum()

    def compare(self) -> bool:
        """Raise ValueError if padding changes the density or a site; return whether a finite density was found."""
        compute_densities = jax.jit(self._densities)  # one compilation, instead of one per operation
        tolerance = 1e3 * np.finfo(jnp.zeros(0).dtype).eps
        num_compared = 0
        for seed in range(MAX_DRAWS):
            unpadded, padded, scale, deterministics = jax.device_get(compute_densities(jax.random.key(seed), self.data))
            if not (np.isfinite(unpadded) or np.isfinite(padded)):
                continue
            if not (np.isfinite(scale) and abs(padded - unpadded) <= tolerance * scale):
                raise ValueError(
                    "fit_each: the objects differ in their number of data, and padding changes the log density of this "
                    f"program: for object {self.row} it is {unpadded:.6g} without padding and {padded:.6g} with it. "
                    "Only observed sites along the data are masked; expected no numpyro.factor, and no sum, mean, "
                    f"difference or length of the data, or of latents along them, in the program. {ADVICE}"
                )
            for name, (value, padded_value) in deterministics.items():
                largest = np.max(np.abs(value), initial=0.0, where=np.isfinite(value))
                if not np.allclose(padded_value, value, rtol=tolerance, atol=tolerance * largest, equal_nan=True):
                    raise ValueError(
                        "fit_each: the objects differ in their number of data, and the deterministic site "
                        f"{name!r} depends on the padding: for object {self.row} its value with padding differs from "
                        f"that without. {ADVICE}"
                    )
            num_compared += 1
            if num_compared == NUM_POINTS:
                break
        return num_compared > 0


def _latents(trace) -> dict:
    """Return the values of the latents of a trace."""
    return {name: site["value"] for name, site in latents_of(trace).items()}


def _latents_and_deterministics(trace) -> dict:
    """Return the values of latent and deterministic sites of a trace, in the order of their names."""
    deterministic = {name: site["value"] for name, site in trace.items() if site["type"] == "deterministic"}
    return {name: jnp.asarray(value) for name, value in sorted((_latents(trace) | deterministic).items())}
