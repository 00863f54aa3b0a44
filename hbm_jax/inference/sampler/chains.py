"""Chains of a sampler as one compiled program, and their draws.

`Chains` holds the program that advances every chain by any number of draws; a `Block` holds the raw draws of one call,
on the host; `Draws` collects blocks. The draws do not depend on their division into blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from numpyro.infer.util import ParamInfo

from hbm_jax.inference.compilation.chunks import map_in_chunks
from hbm_jax.inference.compilation.constants_as_arguments import Compiled
from hbm_jax.inference.compilation.cost import num_elements
from hbm_jax.inference.sampler.initialisation import Start
from hbm_jax.inference.sampler.kernels.protocol import Block, Chain, Sampler
from hbm_jax.inference.sampler.target import Target
from hbm_jax.inference.sampler.warmup.adaptation import Adaptation, without_windows
from hbm_jax.xla_options import QUICK

BUFFER_BYTES = 64 * 2**20  # largest size of a block on the device


@dataclass
class Chains:
    """Chains of a sampler on a target, advanced together by one compiled program.

    Chains are distributed over the devices. A CPU core runs its chains one after the other, because vectorised NUTS
    trees of different depth wait for the deepest; an accelerator runs them in parallel.
    """

    target: Target
    start: Start
    num_warmup: int
    sampler: Sampler
    key: jax.Array
    buffer: int = field(init=False)  # largest number of draws per call
    count: int = field(default=0, init=False)  # draws per chain so far, warm-up included
    restarts_lost: ClassVar[bool] = True  # whether chains are compared during the warm-up, and lost ones restarted
    num_superchains: ClassVar[int] = 0  # groups of chains with a common start; 0 without any
    max_draws: ClassVar[int | None] = None  # largest number of draws of an adaptive run

    def __post_init__(self):
        self.sampler.require_size(self.target.size)
        num_chains = len(self.start.points)
        processes = self.target.processes
        # As arguments of the compiled programs, which then serve runs with another start.
        arrays: dict[str, Any] = {
            name: jnp.asarray(array) for name, array in self.start.metric.change_of_variables.items()
        }
        self._metric, self._metric_arrays = replace(self.start.metric, **arrays), list(arrays.values())
        self.kernel: Any = None
        self.state, self._keys = self._initial_state()
        devices = jax.local_devices()
        num_devices = max(n for n in range(1, len(devices) + 1) if num_chains % n == 0)
        mesh = Mesh(np.asarray(devices[:num_devices]), ("chain",))
        per_chain = PartitionSpec("chain")
        self.num_devices = processes.num_devices or num_devices
        self.buffer = int(np.clip(BUFFER_BYTES / (8.0 * num_chains * self.target.size), 50, 2000))
        one_by_one = devices[0].platform == "cpu"
        # Number of draws at the end of the warm-up and of each round that follows it, when the sampler is fitted.
        rounds = self.sampler.rounds
        self._round_ends: tuple[int, ...] = tuple(np.cumsum([self.num_warmup, *rounds]).tolist()) if rounds else ()
        self._round: list[Block] = []  # blocks of the current round
        self.adaptation = Adaptation(self.num_warmup, self.sampler.target_accept_prob or 0.8)
        self.fitted = self.sampler.fitted(self.target.size)

        def advance(state, keys, fitted, first, num_draws):
            if self.kernel is None:  # the program that creates it was read from disk
                self._trace_initial()
            chain = Chain(self.kernel, self._potential, self._metric.to_position, self.buffer, not one_by_one)

            def advance_chain(chain_inputs):
                state, key = chain_inputs
                return self.sampler.advance(chain, state, key, fitted, first, num_draws)

            return jax.lax.map(advance_chain, (state, keys)) if one_by_one else jax.vmap(advance_chain)((state, keys))

        if not processes.num_devices:  # otherwise objects are split over the devices, and every device runs all chains
            replicated = PartitionSpec()
            specs = (per_chain, per_chain, replicated, replicated, replicated)
            advance = jax.shard_map(advance, mesh=mesh, in_specs=specs, out_specs=per_chain, check_vma=False)
        identity = None if self._identity is None else ["advance", self.buffer, self.num_devices, *self._identity]
        self._advance = self.target.compile(advance, *self._inputs(0), arrays=self._metric_arrays, identity=identity)

    @property
    def _identity(self) -> list[Any] | None:
        """Values that decide what the programs compute, beside target and shapes; None for other packages' samplers."""
        if not type(self.sampler).__module__.startswith("hbm_jax."):
            return None
        metric = self.start.metric
        return [repr(self.sampler), self.num_warmup, metric.kind, metric.learnt_dense, len(self.start.points)]

    def _potential(self, u):
        """Return minus the log density in the variables of the sampler."""
        return self.target.potential(self._metric.to_position(u))

    def _initial_state(self) -> tuple[Any, jax.Array]:
        """Create the kernel, and return the initial sampler state of all chains, and their random keys."""
        metric, dense = self._metric, self.start.metric.learnt_dense

        # The metric is an argument, not a constant, so that a run with another seed reuses the compiled program.
        # Potential and gradient come from the program of the searches, so that they are not compiled a second time.
        def initialise(key, position, potential, gradient, inverse_mass, step_size):
            point = metric.from_position(position)
            (point_gradient,) = jax.vjp(metric.to_position, point)[1](gradient)
            self.kernel = self.sampler.kernel(self._potential, inverse_mass, dense, step_size)
            return self.kernel.init(key, self.num_warmup, ParamInfo(point, potential, point_gradient), (), {})

        def initialise_all(key, *arrays):
            # A kernel of a single chain, mapped here: the kernel of NumPyro for several chains is always vectorised.
            keys, chain_keys = (jax.random.split(k, len(self.start.points)) for k in (key, jax.random.fold_in(key, 1)))
            state = jax.vmap(initialise, in_axes=(0, 0, 0, 0, None, None))(keys, *arrays)
            return without_windows(state, self.num_warmup), chain_keys

        values, gradients = zip(*map(self.target.value_and_grad, self.start.points), strict=True)
        arrays = self.start.points, np.stack(values), np.stack(gradients), metric.inverse_mass, self.start.step_size
        inputs = (self.key, *map(jnp.asarray, arrays))
        self._trace_initial = partial(jax.eval_shape, initialise_all, *inputs)
        identity = None if self._identity is None else ["initial state", self.target.size, *self._identity]
        program = self.target.processes.compile(
            initialise_all, *inputs, options=QUICK, arrays=self._metric_arrays, identity=identity
        )
        return program(*inputs)

    def _inputs(self, num_draws: int):
        """Return the arguments of the compiled program that advances the chains."""
        dtype = jnp.result_type(self.state.z)
        fitted = jax.tree.map(lambda a: jnp.asarray(a, dtype if np.asarray(a).dtype.kind == "f" else None), self.fitted)
        return self.state, self._keys, fitted, jnp.asarray(self.count), jnp.asarray(num_draws)

    @property
    def num_warmup_draws(self) -> int:
        """Number of warm-up draws per chain, including those of the rounds that follow the warm-up."""
        return self._round_ends[-1] if self._round_ends else self.num_warmup

    def advance(self, num_draws: int) -> Block:
        """Advance every chain by up to ``num_draws`` draws (at most ``buffer``), and return them.

        A block ends at the end of the warm-up and of each round that follows it, where the sampler is fitted. Metric
        and step size are updated between the draws of a block.
        """
        ends = (self.num_warmup, *self._round_ends)
        last = min([self.count + num_draws, *(end for end in ends if end > self.count)])
        blocks: list[Block] = []
        while self.count < last:
            self.state = self.adaptation.update(self.state, self.count, self.start.metric.from_position)
            blocks.append(self._advance_to(min([last, *(end for end in self.adaptation.ends if end > self.count)])))
        return blocks[0] if len(blocks) == 1 else joined(blocks)

    def _advance_to(self, last: int) -> Block:
        """Call the compiled program to advance every chain up to ``last`` draws."""
        num_draws = last - self.count
        state, buffers = self._advance(*self._inputs(num_draws))
        if self.count >= self.num_warmup:
            buffers = buffers._replace(gradient=buffers.gradient[..., :0])
        block = Block(*jax.tree.map(lambda buffer: np.asarray(buffer)[:, :num_draws], buffers))
        self.state = state
        self.count_draws(block)
        return block

    def count_draws(self, block: Block):
        """Count draws of `advance` or of an earlier session; fit the sampler at the end of each round."""
        if self.count < self.num_warmup:
            self.adaptation.add(block)
        self.count += block.energy.shape[1]
        if self.count > self.num_warmup_draws or not self._round_ends:
            return
        self._round.append(block)
        if self.count not in self._round_ends:
            return
        round_draws = joined(self._round)
        self._round = []
        variables = self.start.metric.from_position(round_draws.position.astype(float))
        self.fitted = self.sampler.fit(variables, round_draws, self._round_ends.index(self.count))

    def cost_of_draw(self) -> float:
        """Return the number of elements that a draw of all chains computes, by the last warm-up draws; 0 without any.

        It does not depend on the division of the warm-up into blocks.
        """
        if not self.adaptation.blocks:
            return 0.0
        steps = np.concatenate([block.num_steps for block in self.adaptation.blocks], axis=1)
        last = steps[:, steps.shape[1] - steps.shape[1] // 4 :]
        return float(last.mean()) * len(steps) * num_elements(self.target.potential, self.target.start)

    def state_arrays(self) -> dict[str, np.ndarray]:
        """Return the complete state of every chain, adaptation included, as arrays by name.

        Matrices that are equal in all chains, those of the metric, are stored once.
        """
        leaves = jax.tree_util.tree_flatten_with_path(self.state)[0]
        arrays = {jax.tree_util.keystr(path): np.asarray(plain_leaf(leaf)) for path, leaf in leaves}
        return {name: a[:1] if a.ndim == 3 and (a == a[:1]).all() else a for name, a in arrays.items()}

    def restore(self, arrays: Mapping[str, np.ndarray]):
        """Restore a state that `state_arrays` returned.

        Raises
        ------
        ValueError
            If names, shapes or types are not those of these chains.
        """
        paths, structure = jax.tree_util.tree_flatten_with_path(self.state)
        leaves = []
        for path, leaf in paths:
            name, expected = jax.tree_util.keystr(path), plain_leaf(leaf)
            saved = arrays.get(name)
            if saved is not None and saved.ndim == 3 and len(saved) == 1:  # a matrix equal in all chains, stored once
                saved = np.broadcast_to(saved, (len(expected), *saved.shape[1:]))
            if saved is None or saved.shape != expected.shape or saved.dtype != expected.dtype:
                raise ValueError(
                    f"The saved state of the sampler does not fit: expected {name} of "
                    f"{expected.dtype}{list(expected.shape)}, found "
                    f"{'none' if saved is None else f'{saved.dtype}{list(saved.shape)}'}. It was written by another "
                    "version of hbm_jax, NumPyro or JAX."
                )
            array = jnp.asarray(saved)
            leaves.append(jax.random.wrap_key_data(array) if is_key(leaf) else array)
        self.state = jax.tree_util.tree_unflatten(structure, leaves)

    @property
    def start_potential(self) -> np.ndarray:
        """Minus the log density at the starting points, before the first draw, (num_starts,)."""
        return np.asarray(self.state.potential_energy)

    @property
    def step_size(self) -> np.ndarray:
        """Step size of each chain, (num_chains,)."""
        return np.asarray(self.state.adapt_state.step_size)


@dataclass
class Draws:
    """Draws so far: raw blocks, and the constrained sites computed from them."""

    target: Target
    blocks: list[Block] = field(default_factory=list)
    _sites: list[dict[str, np.ndarray]] = field(default_factory=list)

    def __post_init__(self):
        # All chunks have the same shape and share one compiled program.
        self._chunk = int(np.clip(BUFFER_BYTES / (8.0 * 4 * self.target.size), 10, 500))
        self._constrain = Compiled(
            jax.vmap(self.target.constrain), partial(self.target.compile, identity="constrained sites")
        )

    def compile(self):
        """Compile the transform from raw draws to sites, so that its compilation does not count as sampling time."""
        jax.block_until_ready(self._constrain(np.repeat(self.target.start[None], self._chunk, axis=0)))

    @property
    def num_draws(self) -> int:
        """Number of draws per chain."""
        return sum(block.energy.shape[1] for block in self.blocks)

    def raw(self, name: str) -> np.ndarray:
        """Return one field of all blocks, (chain, draw, ...)."""
        return np.concatenate([getattr(block, name) for block in self.blocks], axis=1)

    def sites(self) -> dict[str, np.ndarray]:
        """Return the draws of every named site, (chain, draw, ...)."""
        for block in self.blocks[len(self._sites) :]:
            self._sites.append(self._constrain_block(block.position))
        # In the order of the program.
        names = [name for name in self.target.dims if name in self._sites[0]]
        return {name: np.concatenate([sites[name] for sites in self._sites], axis=1) for name in names}

    def _constrain_block(self, position):
        """Transform positions (chain, draw, size) of a block to sites, in chunks of equal size."""
        num_chains, num_draws, size = position.shape
        sites = map_in_chunks(self._constrain, self._chunk, position.reshape(-1, size))
        sites = {name: value.reshape(num_chains, num_draws, *value.shape[1:]) for name, value in sites.items()}
        return self.target.real_sites(sites, num_leading=2)


def joined(blocks: list[Block]) -> Block:
    """Join blocks along their draws."""
    return Block(*(np.concatenate(parts, axis=1) for parts in zip(*blocks, strict=True)))


def is_key(leaf) -> bool:
    """Return whether an array is a typed JAX random key."""
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def plain_leaf(leaf):
    """Return an array unchanged, and a random key as its integer data."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf
