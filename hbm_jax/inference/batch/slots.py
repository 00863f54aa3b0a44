"""Slots of a batch: a fixed number of objects sampled together by one compiled program."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpyro.distributions import biject_to
from numpyro.infer.util import constrain_fn, potential_energy

from hbm_jax.inference.arguments import latents_of, prior_trace
from hbm_jax.inference.batch import chees, interleaving
from hbm_jax.inference.batch.padding import ragged_axes
from hbm_jax.inference.batch.stacking import Stack, masked
from hbm_jax.inference.sampler.target import ProperAuxiliaries, build_target
from hbm_jax.xla_options import QUICK, sampling_options

CPU_SLOTS, ACCELERATOR_SLOTS = 64, 4096  # largest number for each device
# On a CPU: smallest number, and operations of one gradient of all slots; more slots would wait for each other longer.
MIN_SLOTS, SLOT_OPERATIONS = 8, 1e6
COPIES = 2  # of the draws of a call in memory at the same time, on device and host
BLOCK = 50  # the numbers of draws of a chain at which it is checked for convergence are multiples
MAX_DENSE = 32  # largest number of parameters with a dense metric
DENSE_FRACTION = 0.2  # largest cost of products with a dense metric, as a fraction of that of the gradient
CANDIDATES = 6  # prior draws per chain; starting points are chosen from the most probable ones


@dataclass
class Slots:
    """Slots for objects, and the compiled programs that fill and advance them.

    Attributes
    ----------
    program : callable
        A NumPyro program.
    stack : Stack
        Data of all objects.
    requested : int or None
        Requested number of slots; if None, as many as suit the device and the memory.
    num_chains : int
        Chains in each slot.
    options : chees.Options
        Settings of the sampler.
    max_bytes : float
        Limit on the memory of the draws of unfinished objects.
    num_slots : int
        Number of slots.
    """

    program: Callable
    stack: Stack
    requested: int | None
    num_chains: int
    options: chees.Options
    max_bytes: float
    num_slots: int = field(init=False)

    def __post_init__(self):
        self.program = ProperAuxiliaries(self.program)
        self.target = build_target(
            masked(self.program, self.stack.padded, self.stack.lengths[0]), self.stack.first, jax.random.key(0)
        )
        self.ragged = ragged_axes(self.program, self.stack)
        first_leaves, first_lengths = [leaf[0] for leaf in self.stack.leaves], self.stack.lengths[0]
        shapes = jax.eval_shape(lambda key: self._prior_draws(key, first_leaves, first_lengths), jax.random.key(0))
        self._unravel = ravel_pytree({name: np.zeros(s.shape[1:], s.dtype) for name, s in shapes.items()})[1]
        value_and_grad = self._value_and_grad(first_leaves, first_lengths)
        operations = chees.operations(value_and_grad, self.target.size, self.num_chains)
        products = 4.0 * self.num_chains * self.target.size**2
        self.dense = self.target.size <= MAX_DENSE and products < DENSE_FRACTION * operations
        self.num_slots = self._choose_num_slots(operations)
        devices = jax.local_devices()
        num_devices = max(n for n in range(1, len(devices) + 1) if self.num_slots % n == 0)
        mesh = Mesh(np.asarray(devices[:num_devices]), ("slot",))
        spec = PartitionSpec("slot")
        self._sharding = NamedSharding(mesh, spec)

        def sharded(function, num_args, options):
            return jax.jit(
                jax.shard_map(function, mesh=mesh, in_specs=(spec,) * num_args, out_specs=spec, check_vma=False),
                compiler_options=options,
            )

        options = sampling_options(devices[0].platform)
        self._fill = sharded(jax.vmap(self._fill_slot), 5, QUICK)  # runs so seldom that its compilation takes longer
        self._advance = sharded(self._advance_slots, 4, options)
        self._constrain = sharded(jax.vmap(self._constrain_row), 3, options)
        self.object = np.full(self.num_slots, -1)
        self.leaves = [np.repeat(leaf[:1], self.num_slots, axis=0) for leaf in self.stack.leaves]
        self.lengths = np.repeat(self.stack.lengths[:1], self.num_slots, axis=0)
        self.state: Any = None

    def replace_stack(self, stack: Stack) -> None:
        """Empty all slots, for the objects of another part of the same stack; nothing is compiled again."""
        self.stack = stack
        self.object[:] = -1

    def without_padding(self, name: str, values: np.ndarray, number: int, first: int) -> np.ndarray:
        """Return values of a site of one object without its padding.

        Parameters
        ----------
        name : str
            Name of the site.
        values : array
            Values, with the axes of the site from axis ``first`` on.
        number : int
            Index of the object in the stack.
        first : int
            Number of leading axes, before those of the site.
        """
        for axis, ragged_axis in self.ragged.get(name, ()):
            values = values.take(range(self.stack.lengths[number, ragged_axis]), axis=first + axis)
        return values

    def _choose_num_slots(self, operations: float) -> int:
        """Return the requested number of slots, or one that suits device and memory; at most one for each object."""
        devices = jax.local_devices()
        shapes = jax.eval_shape(self.target.constrain, self.target.start)
        # Position, energy and statistics of the transitions of a call, momenta, and sites, in double precision.
        num_records = COPIES * interleaving.RECORDS + interleaving.MAX_DRAWS
        num_values = num_records * (self.target.size + 6)
        num_values += COPIES * BLOCK * sum(int(np.prod(s.shape)) for s in shapes.values())
        memory_limit = int(self.max_bytes / (8.0 * self.num_chains * num_values))
        device_limit = ACCELERATOR_SLOTS
        if devices[0].platform == "cpu":
            device_limit = int(np.clip(SLOT_OPERATIONS / operations, MIN_SLOTS, CPU_SLOTS))
        num_slots = self.requested or int(np.clip(memory_limit, 1, device_limit * len(devices)))
        num_slots = min(num_slots, len(self.stack))
        # Rounded up, so that every device has the same number of slots.
        return -(-num_slots // len(devices)) * len(devices) if num_slots > len(devices) else num_slots

    def _prior_draws(self, key, leaves, lengths):
        """Return prior draws of the unconstrained parameters of one object, by site."""
        program = masked(self.program, self.stack.padded, lengths)

        def draw(key):
            latents = latents_of(prior_trace(program, self.stack.args(leaves), key))
            return {name: biject_to(site["fn"].support).inv(site["value"]) for name, site in latents.items()}

        return jax.vmap(draw)(jax.random.split(key, CANDIDATES * self.num_chains))

    def _value_and_grad(self, leaves, lengths):
        """Return potential energy and gradient of one object as a function of positions of all chains."""
        program, args = masked(self.program, self.stack.padded, lengths), self.stack.args(leaves)
        value_and_grad = jax.value_and_grad(lambda flat: potential_energy(program, args, {}, self._unravel(flat)))
        return jax.vmap(value_and_grad)

    def _fill_slot(self, state, is_new, key, leaves, lengths):
        """Return the initial state of the object in a slot where ``is_new``, else the state as it is."""
        key_prior, key_chain = jax.random.split(jax.random.wrap_key_data(key))
        draws = self._prior_draws(key_prior, leaves, lengths)
        candidates = jax.vmap(lambda draw: ravel_pytree(draw)[0])(draws)
        value_and_grad = self._value_and_grad(leaves, lengths)
        potential, gradient = value_and_grad(candidates)
        is_finite = jnp.isfinite(potential) & jnp.isfinite(gradient).all(-1)
        order = jnp.argsort(jnp.where(is_finite, potential, jnp.inf))
        # Every second of the most probable third: dispersed, but not far in a tail.
        spaced = order[: 2 * self.num_chains : 2]
        points = candidates[jnp.where(is_finite[spaced], spaced, order[0])]
        probable = jnp.where(is_finite[order], order, order[0])[: 2 * self.num_chains]
        unit = chees.initial_unit(candidates[probable], gradient[probable])
        initial = chees.initial_state(value_and_grad, points, jax.random.key_data(key_chain), self.dense, unit)
        begun = initial, interleaving.first_trajectory(initial, self.options)
        return jax.tree.map(lambda a, b: jnp.where(is_new, a, b), begun, state)

    def _advance_slots(self, state, num_draws, leaves, lengths):
        """Make draws of every chain of all slots of a device; see `interleaving.advance`."""

        def leapfrog(leaves, lengths, factor, trajectory):
            return chees.leapfrog(self._value_and_grad(leaves, lengths), factor, trajectory)

        def leapfrog_all(factors, trajectories):
            return jax.vmap(leapfrog)(leaves, lengths, factors, trajectories)

        states, trajectories = state
        *state, records = interleaving.advance(leapfrog_all, states, trajectories, num_draws, self.options)
        return tuple(state), records

    def _constrain_row(self, positions, leaves, lengths):
        """Return the values of the sites of one object at positions (draw, chain, size)."""
        program, args = masked(self.program, self.stack.padded, lengths), self.stack.args(leaves)

        def constrain(flat):
            sites = constrain_fn(program, args, {}, self._unravel(flat), return_deterministic=True)
            return {name: value for name, value in sites.items() if not name.startswith("_")}

        return jax.vmap(jax.vmap(constrain))(positions)

    def fill(self, slots: np.ndarray, objects: np.ndarray, keys: np.ndarray):
        """Put new objects into slots.

        Parameters
        ----------
        slots, objects : (n,)
            Indices of the slots, and of the object that goes into each.
        keys : (num_objects, ...)
            Key data of a random key for each object of the stack, so that its draws do not depend on its slot.
        """
        self.object[slots] = objects
        for slot_leaf, leaf in zip(self.leaves, self.stack.leaves, strict=True):
            slot_leaf[slots] = leaf[objects]
        self.lengths[slots] = self.stack.lengths[objects]
        slot_keys = keys[np.maximum(self.object, 0)]
        if self.state is None:
            points = jnp.zeros((self.num_chains, self.target.size))

            def initial_state(key, leaves, lengths):
                state = chees.initial_state(self._value_and_grad(leaves, lengths), points, key, self.dense)
                return state, interleaving.first_trajectory(state, self.options)

            shape = jax.eval_shape(jax.vmap(initial_state), slot_keys, self.leaves, self.lengths)
            # Sharded as the programs return it: otherwise the second call of `_fill` would compile again.
            self.state = jax.tree.map(lambda s: jax.device_put(np.zeros(s.shape, s.dtype), self._sharding), shape)
        is_new = np.zeros(self.num_slots, bool)
        is_new[slots] = True
        self.state = self._fill(self.state, is_new, slot_keys, self.leaves, self.lengths)

    def shorten(self, slots: np.ndarray):
        """Halve the step size of the objects in these slots, from their next trajectories on."""
        state, trajectory = self.state
        log_factor = np.zeros(state.averaged.shape)
        log_factor[slots, 0] = np.log(2.0)
        self.state = state._replace(averaged=state.averaged - log_factor.astype(state.averaged.dtype)), trajectory

    def advance(self, num_draws: np.ndarray) -> tuple[list[chees.Draw], np.ndarray, np.ndarray]:
        """Make draws of every slot, at most `interleaving.MAX_DRAWS`.

        Parameters
        ----------
        num_draws : (num_slots,) of int
            Largest number of draws of each slot; 0 for empty slots.

        Returns
        -------
        list of Draw
            Draws of each slot, whose numbers differ; leading dimensions (draw, chain).
        steps, waited : (num_slots,)
            Leapfrog steps that each slot needed, and those that the batch took meanwhile.
        """
        num_draws = np.minimum(num_draws, interleaving.MAX_DRAWS).astype(np.int32)
        self.state, records = self._advance(self.state, num_draws, self.leaves, self.lengths)
        draws, ended, steps, waited = jax.device_get(records)
        rounds = [np.flatnonzero(row) for row in ended]
        return [chees.Draw(*(x[i, index] for x in draws)) for i, index in enumerate(rounds)], steps, waited

    def sites(self, rows: list[int], positions: np.ndarray) -> dict[str, np.ndarray]:
        """Return the values of the sites, whose names do not begin with ``_``, at blocks of `BLOCK` draws.

        Parameters
        ----------
        rows : list of int
            Slots.
        positions : (row, BLOCK, chain, size)
            Draws of each.
        """
        parts = []
        for first in range(0, len(rows), self.num_slots):
            # Of one shape, so that the program is compiled once.
            index = np.resize(rows[first : first + self.num_slots], self.num_slots)
            part = np.resize(positions[first : first + self.num_slots], (self.num_slots, *positions.shape[1:]))
            values = self._constrain(part, [leaf[index] for leaf in self.leaves], self.lengths[index])
            parts.append(jax.device_get(values))
        return {name: np.concatenate([part[name] for part in parts])[: len(rows)] for name in parts[0]}
