"""Chains of NUTS, or of Hamiltonian Monte Carlo, as one compiled program, and what they have drawn.

`Chains` holds the program that advances every chain by any number of draws; a `Block` is what came out of one call, raw
and on the host; `Draws` collects blocks. The draws do not depend on how they are cut into blocks.
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
from hbm_jax.inference.sampler.independent_proposals import EVERY, LEAST_ACCEPTED, MAX_SIZE, ROUNDS, Proposals, stage
from hbm_jax.inference.sampler.initialisation import Start
from hbm_jax.inference.sampler.target import Target

CHUNK = 64  # densities of independent proposals that an accelerator computes side by side, for each chain
GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, are spread more evenly than random numbers
BUFFER_BYTES = 64 * 2**20  # of draws a block may hold on the device


class Block(NamedTuple):
    """Raw draws of every chain from one call, leading dimensions (chain, draw)."""

    position: np.ndarray
    potential_energy: np.ndarray
    energy: np.ndarray
    num_steps: np.ndarray
    accept_prob: np.ndarray
    diverging: np.ndarray


@dataclass
class Chains:
    """Chains of NUTS on a target, advanced together by one compiled program.

    Chains are shared out over the devices. A CPU core runs its chains one after the other, because trees of different
    depth advanced in lock-step wait for the deepest; an accelerator runs them side by side.
    """

    target: Target
    start: Start
    num_warmup: int
    target_accept_prob: float
    max_tree_depth: int
    trajectory_length: float | None
    independent_proposals: bool
    key: jax.Array
    buffer: int = field(init=False)
    count: int = field(default=0, init=False)  # draws of each chain so far, warm-up included

    def __post_init__(self):
        if self.independent_proposals and self.target.size > MAX_SIZE:
            raise ValueError(
                f"sample(independent_proposals=True): expected at most {MAX_SIZE} parameters; found "
                f"{self.target.size}. Integrate latents out where the model can, or leave the option out."
            )
        num_chains = len(self.start.points)
        metric = self.start.metric

        # The metric is an argument, not a constant: another seed's is another, and the program stays the compiled one.
        # Potential and gradient come from the program of the searches; compiled into this one they would take as long.
        def begin(key, position, potential, gradient, inverse_mass):
            point = metric.from_position(position)
            (slope,) = jax.vjp(metric.to_position, point)[1](gradient)
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
            return self.kernel.init(key, self.num_warmup, ParamInfo(point, potential, slope), (), {})

        # One chain's kernel, mapped here: NumPyro would otherwise map it over chains by itself, in lock-step.
        begin_all = jax.vmap(begin, in_axes=(0, 0, 0, 0, None))
        values, gradients = zip(*map(self.target.value_and_grad, self.start.points), strict=True)
        arrays = self.start.points, np.stack(values), np.stack(gradients), metric.inverse_mass
        given = (jax.random.split(self.key, num_chains), *map(jnp.asarray, arrays))
        processes = self.target.processes
        self.state = processes.compile(begin_all, *given)(*given)
        devices = jax.local_devices()
        num_devices = max(n for n in range(1, len(devices) + 1) if num_chains % n == 0)
        mesh = Mesh(np.asarray(devices[:num_devices]), ("chain",))
        spread = PartitionSpec("chain")
        self.num_devices = processes.num_devices or num_devices
        self.buffer = int(np.clip(BUFFER_BYTES / (8.0 * num_chains * self.target.size), 50, 2000))
        one_by_one = devices[0].platform == "cpu"
        self._chunk = 1 if one_by_one else CHUNK
        self._ends: tuple[int, ...] = ()  # of the rounds of the warm-up, after each of which proposals are fitted
        self._seen: list[Block] = []  # of the round under way
        self.proposals = Proposals.none(self.target.size if self.independent_proposals else 0)
        if self.independent_proposals:
            self._ends = tuple(np.cumsum([self.num_warmup, *ROUNDS]).tolist())
        self._keys = jax.random.split(jax.random.fold_in(self.key, 1), num_chains)

        def advance(state, keys, proposals, first, num_draws):
            def chain(of):
                state, key = of
                return self._advance_chain(state, key, proposals, first, num_draws)

            return jax.lax.map(chain, (state, keys)) if one_by_one else jax.vmap(chain)((state, keys))

        if not processes.num_devices:  # else the devices share the objects, and each runs every chain
            whole = PartitionSpec()
            specs = (spread, spread, whole, whole, whole)
            advance = jax.shard_map(advance, mesh=mesh, in_specs=specs, out_specs=spread, check_vma=False)
        started = time.perf_counter()
        self._advance = processes.compile(advance, *self._given(0))
        self.compile_seconds = time.perf_counter() - started

    def _given(self, num_draws: int):
        dtype = jnp.result_type(self.state.z)
        mean, factor, inverse, used = self.proposals
        mean, factor, inverse = (jnp.asarray(a, dtype) for a in (mean, factor, inverse))
        proposals = Proposals(mean, factor, inverse, jnp.asarray(used))
        return self.state, self._keys, proposals, jnp.asarray(self.count), jnp.asarray(num_draws)

    def _advance_chain(self, state, key, proposals, first, num_draws):
        """Advance one chain; writes draws into a buffer of fixed size, so that one program serves every length."""

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

        return self._between_trajectories(state, potential, trajectory, record, empty, key, proposals, first, num_draws)

    def _between_trajectories(
        self, state, potential, trajectory, record, empty, key, proposals, first, num_draws
    ) -> tuple[Any, Block]:
        """Advance one chain by proposals and trajectories.

        A place is a number: of a proposal, of a trajectory behind all those, or, at the end, of where the chain began.
        All that is left to do for a proposal is then to compare two numbers.
        """
        ahead = stage(potential, proposals, key, first, num_draws, self.buffer, self._chunk)
        num = len(ahead.weight)

        def and_room(of_proposals, here):
            return jnp.concatenate([of_proposals, jnp.zeros_like(of_proposals), here[None]])

        def weight_of(state):
            return -state.potential_energy - proposals.log_density(state.z)

        def refreshed(state):
            value, slope = jax.value_and_grad(potential)(state.z)
            return state._replace(potential_energy=value, z_grad=slope)

        def move(carry):
            index, at, state, places, chosen, moved = carry
            z, value, _ = (values[at] for values in places)
            state = state._replace(z=z, potential_energy=value)
            state = jax.lax.cond(proposals.used | (index == 0), refreshed, lambda same: same, state)
            state = trajectory(state)
            at = num + index
            here = state.z, state.potential_energy, weight_of(state)
            places = tuple(values.at[at].set(new) for values, new in zip(places, here, strict=True))
            moved = jax.tree.map(lambda buffer, new: buffer.at[index].set(new), moved, record(state))
            return index + 1, at, state, places, chosen.at[index].set(at), moved

        def propose(carry):
            index, at, state, places, chosen, moved = carry
            end = jnp.minimum(num_draws, index + EVERY - (first + index) % EVERY)

            def one(i, carry):
                at, weight, chosen = carry
                accepted = ahead.threshold[i] < ahead.weight[i] - weight
                at, weight = jnp.where(accepted, i, at), jnp.where(accepted, ahead.weight[i], weight)
                return at, weight, chosen.at[i].set(at)

            at, _, chosen = jax.lax.fori_loop(index, end, one, (at, places[2][at], chosen))
            return end, at, state, places, chosen, moved

        def step(carry):
            moves = ~proposals.used | ((first + carry[0]) % EVERY == 0)
            return jax.lax.cond(moves, move, propose, carry)

        begun = state.z, state.potential_energy, weight_of(state)
        places = tuple(map(and_room, (ahead.place, ahead.potential, ahead.weight), begun))
        zero = jnp.zeros_like(num_draws)
        began = zero + 2 * num
        carry = zero, began, state, places, jnp.zeros(self.buffer, zero.dtype), empty
        carry = jax.lax.while_loop(lambda carry: carry[0] < num_draws, step, carry)
        _, at, state, (place, values, weight), chosen, moved = carry
        by_trajectory = moved.num_steps > 0
        before = weight[jnp.concatenate([began[None], chosen[:-1]])]
        accept_prob = jnp.minimum(1.0, jnp.exp(weight[: self.buffer] - before))
        block = moved._replace(
            position=self.start.metric.to_position(place[chosen]),
            potential_energy=values[chosen],
            energy=jnp.where(by_trajectory, moved.energy, jnp.nan),  # a proposal has no momentum
            accept_prob=jnp.where(by_trajectory, moved.accept_prob, accept_prob),
        )
        return state._replace(z=place[at], potential_energy=values[at]), block

    def _with_length(self, state):
        """Give the next trajectory its length: evenly spread from draw to draw, as one length alone may be a period."""
        if self.trajectory_length is None:
            return state
        share = jnp.mod(GOLDEN * (state.i + 1.0), 1.0)
        # In floating-point numbers too coarse for the posterior, the energy error does not change with the step size,
        # whose adaptation then has no end: a trajectory has at most as many steps as the deepest tree, and at least one
        # (NumPyro takes none where the step size is infinite).
        step_size = jnp.minimum(state.adapt_state.step_size, 2.0 * self.trajectory_length)
        length = jnp.minimum(2.0 * share * self.trajectory_length, step_size * 2**self.max_tree_depth)
        return state._replace(trajectory_length=length, adapt_state=state.adapt_state._replace(step_size=step_size))

    @property
    def num_warmup_draws(self) -> int:
        """Draws of the warm-up, those for fitting proposals included."""
        return self._ends[-1] if self._ends else self.num_warmup

    def advance(self, num_draws: int) -> Block:
        """Advance every chain by ``num_draws`` at most, of which there are no more than ``buffer``; return the draws.

        They end where proposals are to be fitted.
        """
        left = [end - self.count for end in self._ends if end > self.count]
        num_draws = min(num_draws, *left) if left else num_draws
        state, buffers = self._advance(*self._given(num_draws))
        block = Block(*jax.tree.map(lambda buffer: np.asarray(buffer)[:, :num_draws], buffers))
        self.state = state
        self.saw(block)
        return block

    def saw(self, block: Block):
        """Take note of draws, of `advance` or of an earlier session: proposals are fitted to those of the warm-up."""
        self.count += block.energy.shape[1]
        if self.count > self.num_warmup_draws or not self._ends:
            return
        self._seen.append(block)
        if self.count not in self._ends:
            return
        seen = Block(*(np.concatenate(parts, axis=1) for parts in zip(*self._seen, strict=True)))
        self._seen = []
        proposed = seen.num_steps == 0
        position = self.start.metric.from_position(seen.position.astype(float))
        settled = position if self.count > self.num_warmup else position[:, position.shape[1] // 2 :]
        self.proposals = Proposals.of(settled.reshape(-1, self.target.size))
        few = proposed.any() and seen.accept_prob[proposed].mean() < LEAST_ACCEPTED
        if self.count == self._ends[-1] and few:
            self.proposals = self.proposals._replace(used=np.asarray(False))

    def state_arrays(self) -> dict[str, np.ndarray]:
        """Whole state of every chain, adaptation included, as plain arrays by name."""
        leaves = jax.tree_util.tree_flatten_with_path(self.state)[0]
        return {jax.tree_util.keystr(path): np.asarray(_plain(leaf)) for path, leaf in leaves}

    def restore(self, arrays: Mapping[str, np.ndarray]):
        """Continue from a state that `state_arrays` returned.

        Raises
        ------
        ValueError
            If it is not the state of these chains.
        """
        paths, structure = jax.tree_util.tree_flatten_with_path(self.state)
        leaves = []
        for path, leaf in paths:
            name, like = jax.tree_util.keystr(path), _plain(leaf)
            found = arrays.get(name)
            if found is None or found.shape != like.shape or found.dtype != like.dtype:
                raise ValueError(
                    f"The saved sampler state does not fit: expected {name} of {like.dtype}{list(like.shape)}, found "
                    f"{'none' if found is None else f'{found.dtype}{list(found.shape)}'}. It was written by another "
                    "version of NumPyro or JAX."
                )
            array = jnp.asarray(found)
            leaves.append(jax.random.wrap_key_data(array) if _is_key(leaf) else array)
        self.state = jax.tree_util.tree_unflatten(structure, leaves)

    @property
    def step_size(self) -> np.ndarray:
        """Step size of every chain, (num_chains,)."""
        return np.asarray(self.state.adapt_state.step_size)


@dataclass
class Draws:
    """What has been drawn so far: raw blocks, and the constrained sites derived from them."""

    target: Target
    blocks: list[Block] = field(default_factory=list)
    _sites: list[dict[str, np.ndarray]] = field(default_factory=list)

    def __post_init__(self):
        # Every chunk has the same shape, so one program serves all of them.
        self._chunk = int(np.clip(BUFFER_BYTES / (8.0 * 4 * self.target.size), 10, 500))
        self._constrain = Compiled(jax.vmap(self.target.constrain))

    def compile(self):
        """Compile the way from raw draws to sites, so that it does not count as drawing."""
        jax.block_until_ready(self._constrain(np.repeat(self.target.start[None], self._chunk, axis=0)))

    @property
    def num_draws(self) -> int:
        """Draws of each chain."""
        return sum(block.energy.shape[1] for block in self.blocks)

    def raw(self, name: str) -> np.ndarray:
        """One field of all blocks, (chain, draw, ...)."""
        return np.concatenate([getattr(block, name) for block in self.blocks], axis=1)

    def sites(self) -> dict[str, np.ndarray]:
        """Every named site, (chain, draw, ...)."""
        for block in self.blocks[len(self._sites) :]:
            self._sites.append(self._constrain_block(block.position))
        # In the order in which the program declares them.
        names = [name for name in self.target.dims if name in self._sites[0]]
        return {name: np.concatenate([s[name] for s in self._sites], axis=1) for name in names}

    def _constrain_block(self, position):
        num_chains, num_draws, size = position.shape
        flat = position.reshape(-1, size)
        padded = np.concatenate([flat, np.repeat(flat[-1:], -len(flat) % self._chunk, axis=0)])
        chunks = [jax.device_get(self._constrain(part)) for part in padded.reshape(-1, self._chunk, size)]
        whole = jax.tree.map(lambda *parts: np.concatenate(parts)[: len(flat)], *chunks)
        return {name: value.reshape(num_chains, num_draws, *value.shape[1:]) for name, value in whole.items()}


def _is_key(leaf) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf):
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf
