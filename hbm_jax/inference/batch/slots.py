"""A fixed number of places in which objects are sampled side by side, by one compiled program."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.initialization import init_to_sample
from numpyro.infer.util import constrain_fn, potential_energy

from hbm_jax.inference.batch import chees
from hbm_jax.inference.batch.padding import ragged_axes
from hbm_jax.inference.batch.stacking import Stack, masked
from hbm_jax.inference.sampler.target import build_target

CPU_LANES, ACCELERATOR_LANES = 64, 4096  # on each device, at most
MIN_LANES, LANE_OPERATIONS = 8, 1e6  # on a CPU: places that fill a gradient are enough, and more wait for the slowest
COPIES = 6  # of a block's draws that exist at one time, on the device and on the host
BLOCK = 50  # draws of a chain between two looks at who is done; also the period of the jitter
MAX_DENSE = 32  # parameters
DENSE_SHARE = 0.2  # of the gradient's cost that products with a dense metric may take
CANDIDATES = 6  # draws of the prior for each chain, of which it gets one of the most probable


@dataclass
class Lanes:
    """Places for objects, and the compiled programs that fill them and advance them.

    Attributes
    ----------
    program : callable
        A NumPyro program.
    stack : Stack
        Data of all objects.
    wanted : int or None
        Places asked for; as many as suit the device and the memory where None.
    num_chains : int
        Chains in each.
    options : chees.Options
        Of the sampler.
    max_bytes : float
        Memory for draws under way.
    """

    program: Callable
    stack: Stack
    wanted: int | None
    num_chains: int
    options: chees.Options
    max_bytes: float
    num_lanes: int = field(init=False)

    def __post_init__(self):
        self.target = build_target(
            masked(self.program, self.stack.padded, self.stack.lengths[0]), self.stack.first, jax.random.key(0)
        )
        self.ragged = ragged_axes(self.program, self.stack)
        shapes = jax.eval_shape(
            lambda key: self._free(key, self.stack.leaves, self.stack.lengths, 0), jax.random.key(0)
        )
        self._unravel = ravel_pytree({name: np.zeros(s.shape[1:], s.dtype) for name, s in shapes.items()})[1]
        one = self._density([leaf[0] for leaf in self.stack.leaves], self.stack.lengths[0])
        operations = chees.operations(one, self.target.size, self.num_chains)
        products = 4.0 * self.num_chains * self.target.size**2
        self.dense = self.target.size <= MAX_DENSE and products < DENSE_SHARE * operations
        self.num_lanes = self._places(operations)
        devices = jax.local_devices()
        num_devices = max(n for n in range(1, len(devices) + 1) if self.num_lanes % n == 0)
        mesh = Mesh(np.asarray(devices[:num_devices]), ("lane",))
        spread = PartitionSpec("lane")
        self._spread = NamedSharding(mesh, spread)

        def sharded(function, num_args):
            whole = jax.vmap(function)
            return jax.jit(
                jax.shard_map(whole, mesh=mesh, in_specs=(spread,) * num_args, out_specs=spread, check_vma=False)
            )

        self._fill = sharded(self._fill_one, 5)
        self._advance = sharded(self._advance_one, 4)
        self.object = np.full(self.num_lanes, -1)
        self.leaves = [np.repeat(leaf[:1], self.num_lanes, axis=0) for leaf in self.stack.leaves]
        self.lengths = np.repeat(self.stack.lengths[:1], self.num_lanes, axis=0)
        self.state: Any = None

    def without_padding(self, name: str, values: np.ndarray, number: int, first: int) -> np.ndarray:
        """Return an array of a site of one object without its padding.

        Parameters
        ----------
        name : str
            The site.
        values : array
            With the axes of the site from axis ``first`` on.
        number : int
            Which object of the stack.
        first : int
            Number of axes before those of the site.
        """
        for axis, which in self.ragged.get(name, ()):
            values = values.take(range(self.stack.lengths[number, which]), axis=first + axis)
        return values

    def _places(self, operations: float) -> int:
        """Return as many places as were asked for or suit device and memory, no more than there are objects."""
        devices = jax.local_devices()
        shapes = jax.eval_shape(self.target.constrain, self.target.start)
        numbers = self.target.size + 6 + sum(int(np.prod(s.shape)) for s in shapes.values())
        fitting = int(self.max_bytes / (8.0 * COPIES * BLOCK * self.num_chains * numbers))
        most = ACCELERATOR_LANES
        if devices[0].platform == "cpu":
            most = int(np.clip(LANE_OPERATIONS / operations, MIN_LANES, CPU_LANES))
        places = self.wanted or int(np.clip(fitting, 1, most * len(devices)))
        places = min(places, len(self.stack))
        # A few more, so that the devices share them equally.
        return -(-places // len(devices)) * len(devices) if places > len(devices) else places

    def _free(self, key, leaves, lengths, row):
        """Return draws of the unconstrained parameters from the prior of one object, by site."""
        leaves = [leaf[row] for leaf in leaves] if row is not None else leaves
        program = masked(self.program, self.stack.padded, lengths[row] if row is not None else lengths)

        def draw(key):
            initial = handlers.substitute(handlers.seed(program, key), substitute_fn=init_to_sample())
            trace = handlers.trace(initial).get_trace(*self.stack.args(leaves))
            sites = {name: site for name, site in trace.items() if site["type"] == "sample" and not site["is_observed"]}
            return {name: biject_to(site["fn"].support).inv(site["value"]) for name, site in sites.items()}

        return jax.vmap(draw)(jax.random.split(key, CANDIDATES * self.num_chains))

    def _density(self, leaves, lengths):
        program, args = masked(self.program, self.stack.padded, lengths), self.stack.args(leaves)
        one = jax.value_and_grad(lambda flat: potential_energy(program, args, {}, self._unravel(flat)))
        return jax.vmap(one)

    def _fill_one(self, state, fresh, key, leaves, lengths):
        """Put a new object into a place, where ``fresh``."""
        key_prior, key_chain = jax.random.split(jax.random.wrap_key_data(key))
        draws = self._free(key_prior, leaves, lengths, None)
        candidates = jax.vmap(lambda draw: ravel_pytree(draw)[0])(draws)
        density = self._density(leaves, lengths)
        potential, gradient = density(candidates)
        possible = jnp.isfinite(potential) & jnp.isfinite(gradient).all(-1)
        order = jnp.argsort(jnp.where(possible, potential, jnp.inf))
        # Every other one of the better half and more: dispersed, and none in a hopeless place.
        chosen = order[: 2 * self.num_chains : 2]
        points = candidates[jnp.where(possible[chosen], chosen, order[0])]
        new = chees.initial_state(density, points, jax.random.key_data(key_chain), self.dense)
        return jax.tree.map(lambda a, b: jnp.where(fresh, a, b), new, state)

    def _advance_one(self, state, active, leaves, lengths):
        """Make a block of draws of every chain in a place."""
        density = self._density(leaves, lengths)
        program, args = masked(self.program, self.stack.padded, lengths), self.stack.args(leaves)

        def constrain(flat):
            sites = constrain_fn(program, args, {}, self._unravel(flat), return_deterministic=True)
            return {name: value for name, value in sites.items() if not name.startswith("_")}

        def draw(state, share):
            state, drawn = chees.advance(density, state, share, active, self.options)
            return state, (drawn, jax.vmap(constrain)(drawn.position))

        def segment(state, shares):
            state, drawn = jax.lax.scan(draw, state, shares)
            return chees.end_segment(state, self.options), drawn

        shares = jnp.asarray(chees.halton(BLOCK)).reshape(-1, chees.SEGMENT)
        state, drawn = jax.lax.scan(segment, state, shares)
        return state, jax.tree.map(lambda x: x.reshape(BLOCK, *x.shape[2:]), drawn)

    def fill(self, places: np.ndarray, objects: np.ndarray, keys: np.ndarray):
        """Put objects into places.

        Parameters
        ----------
        places, objects : (n,)
            Which goes where.
        keys : (num_objects, ...)
            Data of a random key for each object of the stack, so that its draws do not depend on its place.
        """
        self.object[places] = objects
        for mine, leaf in zip(self.leaves, self.stack.leaves, strict=True):
            mine[places] = leaf[objects]
        self.lengths[places] = self.stack.lengths[objects]
        if self.state is None:
            shape = jax.eval_shape(
                jax.vmap(lambda key, leaves, lengths: self._empty(key, leaves, lengths)),
                keys[np.maximum(self.object, 0)],
                self.leaves,
                self.lengths,
            )
            # Spread as the programs return it: otherwise the second call of `_fill` compiles it again.
            self.state = jax.tree.map(lambda s: jax.device_put(np.zeros(s.shape, s.dtype), self._spread), shape)
        fresh = np.zeros(self.num_lanes, bool)
        fresh[places] = True
        own = keys[np.maximum(self.object, 0)]
        self.state = self._fill(self.state, fresh, own, self.leaves, self.lengths)

    def _empty(self, key, leaves, lengths):
        density = self._density(leaves, lengths)
        points = jnp.zeros((self.num_chains, self.target.size))
        return chees.initial_state(density, points, key, self.dense)

    def shorten(self, places: np.ndarray):
        """Halve the step of the objects in these places."""
        less = np.zeros(self.state.averaged.shape)
        less[places, 0] = np.log(2.0)
        self.state = self.state._replace(averaged=self.state.averaged - less.astype(self.state.averaged.dtype))

    def advance(self):
        """Make a block of draws in every place that holds an object.

        Returns
        -------
        Draw, dict of str to array
            Leading dimensions (lane, draw, chain); the sites a person reads.
        """
        self.state, (draws, sites) = self._advance(self.state, self.object >= 0, self.leaves, self.lengths)
        return jax.device_get((draws, sites))
