"""Compiled program that draws replicated data; it serves other data of the same or a similar size."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from hbm_jax.inference.compilation.constants_as_arguments import compiled
from hbm_jax.inference.compilation.separation import OF_TRACED_DATA, is_numeric
from hbm_jax.inference.model_check.replicates import Structure, inspect_program, number_of_replicates, replicator
from hbm_jax.inference.program import binds, padded_of, traceable_priors, with_traced
from hbm_jax.xla_options import QUICK, QUICK_LOOPS


def compiled_replicates(
    program: Callable,
    bound: tuple,
    structure: Structure,
    num: int | None,
    latents: Mapping[str, np.ndarray],
    key_data: np.ndarray,
    rng: np.random.Generator,
) -> Callable:
    """Compile the program that draws replicated data.

    Parameters
    ----------
    program, bound
        The program and its bound arguments. Where its data can be traced, they are arguments of the compiled program,
        and padded to sizes in steps.
    structure : Structure
        Sites of the program.
    num : int, optional
        Number of replicates. Default: `number_of_replicates` of the padded size.
    latents, key_data
        Examples of the arguments of the returned function.
    rng : numpy.random.Generator
        Generator of the standard normals, which are drawn anew in each call.

    Returns
    -------
    callable
        Unconstrained latents by name and key data -> the pools of `replicator`, with padding after the data.
    """
    for args, in_steps in _choices(program, bound, structure):
        for data in [(traceable_priors(program), args), ({}, args)]:
            replicates = num or number_of_replicates(in_steps.size)
            # Refused are data whose values decide what the program does, and those padded for the log density alone.
            with contextlib.suppress(*OF_TRACED_DATA, NotImplementedError):
                return _of_traced_data(program, data, in_steps, replicates, latents, key_data, rng)
    replicates = num or number_of_replicates(structure.size)
    run = replicator(program, bound, structure, replicates)
    normals = structure.standard_normals(rng, replicates)
    executable = compiled(run, latents, key_data, normals, compiler_options=_options(structure, replicates))
    return lambda latents, key_data: executable(latents, key_data, structure.standard_normals(rng, replicates))


def _choices(program: Callable, bound: tuple, structure: Structure) -> Iterator[tuple[tuple, Structure]]:
    """Yield arguments that may be traced with their structure: padded, if there is padding, and as they are."""
    if not binds(program):
        return
    if (padded := padded_of(program, bound)) is not None:
        in_steps = inspect_program(program, padded[0], redrawn=structure.redrawn)
        if _begins_with(in_steps, structure):
            yield padded[0], in_steps
    yield bound, structure


def _of_traced_data(
    program: Any,
    data: tuple,
    structure: Structure,
    num: int,
    latents: Mapping[str, np.ndarray],
    key_data: np.ndarray,
    rng: np.random.Generator,
) -> Callable:
    """Return the compiled program with priors and arguments, ``data``, as its arguments; see `compiled_replicates`."""
    leaves, tree = jax.tree.flatten(data)
    numeric = [i for i, leaf in enumerate(leaves) if is_numeric(leaf)]
    arrays = [np.asarray(leaves[i]) for i in numeric]

    def run(latents, key_data, normals, arrays):
        replaced = dict(zip(numeric, arrays, strict=True))
        priors, args = jax.tree.unflatten(tree, [replaced.get(i, leaf) for i, leaf in enumerate(leaves)])
        return replicator(with_traced(program, priors), args, structure, num)(latents, key_data, normals)

    normals = structure.standard_normals(rng, num)
    lowered = jax.jit(run).lower(_filled(latents, structure), key_data, normals, arrays)
    executable = lowered.compile(_options(structure, num))

    def draw(latents, key_data):
        normals = structure.standard_normals(rng, num)
        return executable(_filled(latents, structure), key_data, normals, arrays)

    return draw


def _options(structure: Structure, num: int) -> dict[str, Any]:
    """Return the options of XLA of a program that runs a few times."""
    return QUICK_LOOPS if structure.draws_many_counts(num) else QUICK


def _begins_with(padded: Structure, structure: Structure) -> bool:
    """Return whether the axes of padded sites are those of the sites without padding, and as long or longer."""
    pairs = [(padded.latents.get(name, ()), shape) for name, shape in structure.latents.items()]
    pairs += [(padded.observed[name].shape, site.shape) for name, site in structure.observed.items()]
    return all(len(long) == len(short) and all(map(int.__ge__, long, short)) for long, short in pairs)


def _filled(latents: Mapping[str, np.ndarray], structure: Structure) -> dict[str, np.ndarray]:
    """Return latents with zeros after those of the data, in the shapes of a structure."""
    filled = {}
    for name, value in latents.items():
        filled[name] = np.zeros(structure.latents[name])
        filled[name][tuple(map(slice, value.shape))] = value
    return filled
