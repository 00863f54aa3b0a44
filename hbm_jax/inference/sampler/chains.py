"""Chains of NUTS or Hamiltonian Monte Carlo as one compiled program, and their draws.

`Chains` holds the program that advances every chain by any number of draws; a `Block` holds the raw draws of one call,
on the host; `Draws` collects blocks. The draws do not depend on their division into blocks.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from numpyro.infer import HMC, NUTS
from numpyro.infer.util import ParamInfo

from hbm_jax.inference.compilation.constants_as_arguments import Compiled
from hbm_jax.inference.sampler.independent_proposals import (
    EVERY,
    LEAST_ACCEPTED,
    MAX_SIZE,
    ROUNDS,
    Proposals,
    draw_proposals,
)
from hbm_jax.inference.sampler.initialisation import Start
from hbm_jax.inference.sampler.target import Target

CHUNK = 64  # densities of independent proposals that an accelerator evaluates in parallel, per chain
GOLDEN = 0.6180339887498949  # golden ratio minus 1; its multiples modulo 1 are spread more evenly than random numbers
BUFFER_BYTES = 64 * 2**20  # largest size of a block on the device


class Block(NamedTuple):
    """Raw draws of every chain from one call; leading dimensions (chain, draw)."""

    position: np.ndarray
    potential_energy: np.ndarray
    energy: np.ndarray
    num_steps: np.ndarray
    accept_prob: np.ndarray
    diverging: np.ndarray


@dataclass
class Chains:
    """Chains of NUTS or HMC on a target, advanced together by one compiled program.

    Chains are distributed over the devices. A CPU core runs its chains one after the other, because vectorised NUTS
    trees of different depth wait for the deepest; an accelerator runs them in parallel.
    """

    target: Target
    start: Start
    num_warmup: int
    target_accept_prob: float
    max_tree_depth: int
    trajectory_length: float | None
    independent_proposals: bool
    key: jax.Array
    buffer: int = field(init=False)  # largest number of draws per call
    count: int = field(default=0, init=False)  # draws per chain so far, warm-up included

    def __post_init__(self):
        if self.independent_proposals and self.target.size > MAX_SIZE:
            raise ValueError(
                f"sample(independent_proposals=True): expected at most {MAX_SIZE} parameters; found "
                f"{self.target.size}. Marginalise latents if the model can, or omit the option."
            )
        num_chains = len(self.start.points)
        processes = self.target.processes
        self.state = self._initial_state()
        devices = jax.local_devices()
        num_devices = max(n for n in range(1, len(devices) + 1) if num_chains % n == 0)
        mesh = Mesh(np.asarray(devices[:num_devices]), ("chain",))
        per_chain = PartitionSpec("chain")
        self.num_devices = processes.num_devices or num_devices
        self.buffer = int(np.clip(BUFFER_BYTES / (8.0 * num_chains * self.target.size), 50, 2000))
        one_by_one = devices[0].platform == "cpu"
        self._chunk = 1 if one_by_one else CHUNK
        # Number of draws at the end of each warm-up round, when proposals are fitted.
        self._round_ends: tuple[int, ...] = ()
        self._round: list[Block] = []  # blocks of the current round
        self.proposals = Proposals.disabled(self.target.size if self.independent_proposals else 0)
        if self.independent_proposals:
            self._round_ends = tuple(np.cumsum([self.num_warmup, *ROUNDS]).tolist())
        self._keys = jax.random.split(jax.random.fold_in(self.key, 1), num_chains)

        def advance(state, keys, proposals, first, num_draws):
            def chain(chain_inputs):
                state, key = chain_inputs
                return self._advance_chain(state, key, proposals, first, num_draws)

            return jax.lax.map(chain, (state, keys)) if one_by_one else jax.vmap(chain)((state, keys))

        if not processes.num_devices:  # otherwise objects are split over the devices, and every device runs all chains
            replicated = PartitionSpec()
            specs = (per_chain, per_chain, replicated, replicated, replicated)
            advance = jax.shard_map(advance, mesh=mesh, in_specs=specs, out_specs=per_chain, check_vma=False)
        started = time.perf_counter()
        self._advance = processes.compile(advance, *self._inputs(0))
        self.compile_seconds = time.perf_counter() - started

    def _initial_state(self) -> Any:
        """Create the kernel, and return the initial sampler state of all chains."""
        metric = self.start.metric

        # The metric is an argument, not a constant, so that a run with another seed reuses the compiled program.
        # Potential and gradient come from the program of the searches; compiled into this program they would take as
        # long again.
        def initialise(key, position, potential, gradient, inverse_mass):
            point = metric.from_position(position)
            (point_gradient,) = jax.vjp(metric.to_position, point)[1](gradient)
            settings = {
                "potential_fn": lambda u: self.target.potential(metric.to_position(u)),
                "dense_mass": metric.dense,
                "inverse_mass_matrix": inverse_mass,
                "target_accept_prob": self.target_accept_prob,
            }
            if self.trajectory_length is None:
                self.kernel = NUTS(**settings, max_tree_depth=self.max_tree_depth)
            else:
                self.kernel = HMC(**settings, trajectory_length=self.trajectory_length)
            return self.kernel.init(key, self.num_warmup, ParamInfo(point, potential, point_gradient), (), {})

        # A kernel of a single chain, mapped here: the kernel of NumPyro for several chains is always vectorised.
        initialise_all = jax.vmap(initialise, in_axes=(0, 0, 0, 0, None))
        values, gradients = zip(*map(self.target.value_and_grad, self.start.points), strict=True)
        arrays = self.start.points, np.stack(values), np.stack(gradients), metric.inverse_mass
        inputs = (jax.random.split(self.key, len(self.start.points)), *map(jnp.asarray, arrays))
        return self.target.processes.compile(initialise_all, *inputs)(*inputs)

    def _inputs(self, num_draws: int):
        """Return the arguments of the compiled program that advances the chains."""
        dtype = jnp.result_type(self.state.z)
        mean, factor, inverse, used = self.proposals
        mean, factor, inverse = (jnp.asarray(a, dtype) for a in (mean, factor, inverse))
        proposals = Proposals(mean, factor, inverse, jnp.asarray(used))
        return self.state, self._keys, proposals, jnp.asarray(self.count), jnp.asarray(num_draws)

    def _advance_chain(self, state, key, proposals, first, num_draws):
        """Advance one chain; the buffer of draws has a fixed size, so that one program serves any number of draws."""

        def record(state):
            return Block(
                self.start.metric.to_position(state.z),
                state.potential_energy,
                state.energy,
                state.num_steps,
                state.accept_prob,
                state.diverging,
            )

        def trajectory(state):
            return self.kernel.sample(self._with_length(state), (), {})

        empty = jax.tree.map(lambda x: jnp.zeros((self.buffer, *jnp.shape(x)), jnp.result_type(x)), record(state))
        if not self.independent_proposals:

            def step(index, carry):
                state, buffers = carry
                state = trajectory(state)
                return state, jax.tree.map(lambda buffer, new: buffer.at[index].set(new), buffers, record(state))

            return jax.lax.fori_loop(0, num_draws, step, (state, empty))

        def potential(u):
            return self.target.potential(self.start.metric.to_position(u))

        return self._advance_with_proposals(
            state, potential, trajectory, record, empty, key, proposals, first, num_draws
        )

    def _advance_with_proposals(
        self, state, potential, trajectory, record, empty, key, proposals, first, num_draws
    ) -> tuple[Any, Block]:
        """Advance one chain by independent proposals and trajectories.

        All possible states are in one array of candidates, and the chain moves between indices of it: first the
        proposals, computed beforehand, then the ends of trajectories, last the initial state. Accepting a proposal then
        only needs the comparison of two numbers.
        """
        proposed = draw_proposals(potential, proposals, key, first, num_draws, self.buffer, self._chunk)
        num_proposals = len(proposed.weight)

        def with_room(proposed_values, initial_value):
            return jnp.concatenate([proposed_values, jnp.zeros_like(proposed_values), initial_value[None]])

        def weight_of(state):
            return -state.potential_energy - proposals.log_density(state.z)

        def refreshed(state):
            value, gradient = jax.value_and_grad(potential)(state.z)
            return state._replace(potential_energy=value, z_grad=gradient)

        def run_trajectory(carry):
            index, current, state, candidates, visited, recorded = carry
            z, value, _ = (values[current] for values in candidates)
            state = state._replace(z=z, potential_energy=value)
            state = jax.lax.cond(proposals.used | (index == 0), refreshed, lambda state: state, state)
            state = trajectory(state)
            current = num_proposals + index
            end_state = state.z, state.potential_energy, weight_of(state)
            candidates = tuple(values.at[current].set(new) for values, new in zip(candidates, end_state, strict=True))
            recorded = jax.tree.map(lambda buffer, new: buffer.at[index].set(new), recorded, record(state))
            return index + 1, current, state, candidates, visited.at[index].set(current), recorded

        def run_proposals(carry):
            index, current, state, candidates, visited, recorded = carry
            stop = jnp.minimum(num_draws, index + EVERY - (first + index) % EVERY)

            def accept(i, carry):
                current, weight, visited = carry
                accepted = proposed.threshold[i] < proposed.weight[i] - weight
                current, weight = jnp.where(accepted, i, current), jnp.where(accepted, proposed.weight[i], weight)
                return current, weight, visited.at[i].set(current)

            current, _, visited = jax.lax.fori_loop(index, stop, accept, (current, candidates[2][current], visited))
            return stop, current, state, candidates, visited, recorded

        def step(carry):
            is_trajectory = ~proposals.used | ((first + carry[0]) % EVERY == 0)
            return jax.lax.cond(is_trajectory, run_trajectory, run_proposals, carry)

        initial_state = state.z, state.potential_energy, weight_of(state)
        candidates = tuple(map(with_room, (proposed.position, proposed.potential, proposed.weight), initial_state))
        zero = jnp.zeros_like(num_draws)
        initial = zero + 2 * num_proposals
        carry = zero, initial, state, candidates, jnp.zeros(self.buffer, zero.dtype), empty
        carry = jax.lax.while_loop(lambda carry: carry[0] < num_draws, step, carry)
        _, current, state, (positions, values, weight), visited, recorded = carry
        by_trajectory = recorded.num_steps > 0
        previous_weight = weight[jnp.concatenate([initial[None], visited[:-1]])]
        accept_prob = jnp.minimum(1.0, jnp.exp(weight[: self.buffer] - previous_weight))
        block = recorded._replace(
            position=self.start.metric.to_position(positions[visited]),
            potential_energy=values[visited],
            energy=jnp.where(by_trajectory, recorded.energy, jnp.nan),  # a proposal has no momentum
            accept_prob=jnp.where(by_trajectory, recorded.accept_prob, accept_prob),
        )
        return state._replace(z=positions[current], potential_energy=values[current]), block

    def _with_length(self, state):
        """Set the length of the next trajectory; lengths vary because a constant one may be a period of the motion."""
        if self.trajectory_length is None:
            return state
        fraction = jnp.mod(GOLDEN * (state.i + 1.0), 1.0)
        # If floating-point numbers are too coarse for the posterior, the energy error does not depend on the step size,
        # whose adaptation then diverges: a trajectory has at most as many steps as the deepest tree, and at least one
        # (NumPyro takes none if the step size is infinite).
        step_size = jnp.minimum(state.adapt_state.step_size, 2.0 * self.trajectory_length)
        length = jnp.minimum(2.0 * fraction * self.trajectory_length, step_size * 2**self.max_tree_depth)
        return state._replace(trajectory_length=length, adapt_state=state.adapt_state._replace(step_size=step_size))

    @property
    def num_warmup_draws(self) -> int:
        """Number of warm-up draws per chain, including those that proposals are fitted to."""
        return self._round_ends[-1] if self._round_ends else self.num_warmup

    def advance(self, num_draws: int) -> Block:
        """Advance every chain by up to ``num_draws`` draws (at most ``buffer``), and return them.

        Fewer are drawn if a round of the warm-up ends, because proposals are then fitted.
        """
        remaining = [end - self.count for end in self._round_ends if end > self.count]
        num_draws = min(num_draws, *remaining) if remaining else num_draws
        state, buffers = self._advance(*self._inputs(num_draws))
        block = Block(*jax.tree.map(lambda buffer: np.asarray(buffer)[:, :num_draws], buffers))
        self.state = state
        self.count_draws(block)
        return block

    def count_draws(self, block: Block):
        """Count draws of `advance` or of an earlier session; fit proposals at the end of each round of the warm-up."""
        self.count += block.energy.shape[1]
        if self.count > self.num_warmup_draws or not self._round_ends:
            return
        self._round.append(block)
        if self.count not in self._round_ends:
            return
        round_draws = Block(*(np.concatenate(parts, axis=1) for parts in zip(*self._round, strict=True)))
        self._round = []
        is_proposal = round_draws.num_steps == 0
        position = self.start.metric.from_position(round_draws.position.astype(float))
        positions = position if self.count > self.num_warmup else position[:, position.shape[1] // 2 :]
        self.proposals = Proposals.fit(positions.reshape(-1, self.target.size))
        too_few = is_proposal.any() and round_draws.accept_prob[is_proposal].mean() < LEAST_ACCEPTED
        if self.count == self._round_ends[-1] and too_few:
            self.proposals = self.proposals._replace(used=np.asarray(False))

    def state_arrays(self) -> dict[str, np.ndarray]:
        """Return the complete state of every chain, adaptation included, as arrays by name."""
        leaves = jax.tree_util.tree_flatten_with_path(self.state)[0]
        return {jax.tree_util.keystr(path): np.asarray(_plain(leaf)) for path, leaf in leaves}

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
            name, expected = jax.tree_util.keystr(path), _plain(leaf)
            saved = arrays.get(name)
            if saved is None or saved.shape != expected.shape or saved.dtype != expected.dtype:
                raise ValueError(
                    f"The saved sampler state does not fit: expected {name} of "
                    f"{expected.dtype}{list(expected.shape)}, found "
                    f"{'none' if saved is None else f'{saved.dtype}{list(saved.shape)}'}. It was written by another "
                    "version of NumPyro or JAX."
                )
            array = jnp.asarray(saved)
            leaves.append(jax.random.wrap_key_data(array) if _is_key(leaf) else array)
        self.state = jax.tree_util.tree_unflatten(structure, leaves)

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
        self._constrain = Compiled(jax.vmap(self.target.constrain))

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
        flat = position.reshape(-1, size)
        padded = np.concatenate([flat, np.repeat(flat[-1:], -len(flat) % self._chunk, axis=0)])
        chunks = [jax.device_get(self._constrain(part)) for part in padded.reshape(-1, self._chunk, size)]
        sites = jax.tree.map(lambda *parts: np.concatenate(parts)[: len(flat)], *chunks)
        return {name: value.reshape(num_chains, num_draws, *value.shape[1:]) for name, value in sites.items()}


def _is_key(leaf) -> bool:
    """Return whether an array is a typed JAX random key."""
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf):
    """Return an array unchanged, and a random key as its integer data."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf
