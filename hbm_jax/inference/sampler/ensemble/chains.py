"""Chains of `hbm_jax.ChEES`: all advance together, by the algorithm that `hbm_jax.fit_each` has for each object."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.inference.batch import chees
from hbm_jax.inference.sampler.chains import BUFFER_BYTES, Chains
from hbm_jax.inference.sampler.kernels.protocol import Block
from hbm_jax.inference.sampler.warmup.adaptation import Adaptation
from hbm_jax.xla_options import QUICK

MAX_BYTES = 2**29  # largest size of the draws of an adaptive run, in the unconstrained parameters
FEWEST_DRAWS = 50  # per chain, of an adaptive run, whatever their size
FORGETTING = 10  # draws from the common points that are discarded
JITTER = 50  # period of the jitter of the trajectory length, in draws


@dataclass
class EnsembleChains(Chains):
    """Chains that are adapted together, with the attributes of `Chains` that a run uses.

    ``start`` has a point for each superchain, at which all its chains begin. After the warm-up every chain of a
    superchain moves to the position of the first one, and the next `FORGETTING` draws are discarded. Chains are in the
    order of their superchains.
    """

    restarts_lost: ClassVar[bool] = False
    sampler: Any  # the ChEES that returns these chains
    num_chains: int = 0

    def __post_init__(self):
        size, self.num_devices = self.target.size, 1
        self.buffer = int(np.clip(BUFFER_BYTES / (8.0 * self.num_chains * size), 1, 500))
        self.adaptation = Adaptation(0, 0.8)  # unused: the state has its own
        self.options = chees.Options(
            self.num_warmup, self.sampler.target_accept_prob or 0.8, 2**self.sampler.max_tree_depth, harmonic=True
        )
        metric, inverse_mass = self.start.metric, np.asarray(self.start.metric.inverse_mass)
        factor = jnp.asarray(np.linalg.cholesky(inverse_mass) if inverse_mass.ndim == 2 else np.sqrt(inverse_mass))
        self._arrays = [*map(jnp.asarray, metric.change_of_variables.values()), factor]
        arrays: dict[str, Any] = dict(zip(metric.change_of_variables, self._arrays, strict=False))
        self._whitening = _Whitening(type(metric)(metric.kind, inverse_mass, metric.why, **arrays), factor)
        self._evaluate = jax.vmap(jax.value_and_grad(lambda v: self.target.potential(self._whitening.to_position(v))))
        self._num_gradients = 1
        self.state = self._initial_state()
        self._advance = self.target.compile(self._program, self.state, jnp.asarray(1), arrays=self._arrays)

    def _initial_state(self) -> Any:
        """Return the state of all chains at their starting points."""
        points = self.start.metric.from_position(np.asarray(self.start.points))
        factor = np.asarray(self._whitening.factor)
        white = np.linalg.solve(factor, points.T).T if factor.ndim == 2 else points / factor
        white = jnp.asarray(np.repeat(white, self.num_chains // self.num_superchains, axis=0))
        inputs = white, jax.random.key_data(self.key)
        initial = partial(chees.initial_state, self._evaluate, dense=self.start.metric.learnt_dense)
        return self.target.compile(initial, *inputs, options=QUICK, arrays=self._arrays)(*inputs)

    def _program(self, state: chees.State, num_draws: Any) -> tuple[chees.State, chees.Draw]:
        """Make draws of every chain; the program that is compiled. Arrays of the draws have ``buffer`` rows."""
        jitters = jnp.asarray(chees.halton(JITTER), state.position.dtype)

        def one(state):
            state, draw = chees.advance(self._evaluate, state, jitters[state.age % JITTER], self.options)
            ending = chees.window_ends(state.age, self.options)
            state = jax.lax.cond(ending, lambda s: chees.end_segment(s, self.options), lambda s: s, state)
            return state, draw._replace(position=self._whitening.to_position(draw.position))

        def step(index, carry):
            state, draw = one(carry[0])
            return state, jax.tree.map(lambda rows, new: rows.at[index].set(new), carry[1], draw)

        shapes = jax.eval_shape(one, state)[1]
        rows = jax.tree.map(lambda x: jnp.zeros((self.buffer, *x.shape), x.dtype), shapes)
        return jax.lax.fori_loop(0, num_draws, step, (state, rows))

    @property
    def num_superchains(self) -> int:  # type: ignore[override]
        """Number of groups of chains with a common start."""
        return self.sampler.num_superchains

    @property
    def max_draws(self) -> int:  # type: ignore[override]
        """Largest number of draws per chain of an adaptive run, for which `MAX_BYTES` suffice."""
        return max(FEWEST_DRAWS, int(MAX_BYTES / (8.0 * self.num_chains * self.target.size)))

    @property
    def num_warmup_draws(self) -> int:
        """Number of draws per chain that are discarded."""
        return self.num_warmup + FORGETTING

    def advance(self, num_draws: int) -> Block:
        """Advance every chain by up to ``num_draws`` draws (at most ``buffer``), and return them.

        Positions of discarded draws are not kept. A block ends where the chains move to their common points.
        """
        if self.count == self.num_warmup:
            self.state = self._at_common_points(self.state)
        ends = [end for end in (self.num_warmup, self.num_warmup_draws) if end > self.count]
        last = min([self.count + min(num_draws, self.buffer), *ends])
        number = last - self.count
        self.state, rows = self._advance(self.state, jnp.asarray(number))
        draw = chees.Draw(*(np.swapaxes(np.asarray(x)[:number], 0, 1) for x in rows))
        position = draw.position if self.count >= self.num_warmup_draws else draw.position[..., :0]
        block = Block(
            position,
            draw.potential_energy,
            draw.energy,
            draw.num_steps,
            draw.accept_prob,
            draw.diverging,
            np.zeros((*draw.energy.shape, 0)),
        )
        self.count_draws(block)
        return block

    def _at_common_points(self, state: chees.State) -> chees.State:
        """Return the state with every chain at the position of the first one of its superchain."""
        length = self.num_chains // self.num_superchains
        first = np.repeat(np.arange(0, self.num_chains, length), length)
        return state._replace(
            position=state.position[first], potential=state.potential[first], gradient=state.gradient[first]
        )

    def count_draws(self, block: Block) -> None:
        """Count draws of `advance` or of an earlier session, and their gradients in sequence."""
        self.count += block.energy.shape[1]
        self._num_gradients += int(block.num_steps[0].sum())

    @property
    def fitted(self) -> Mapping[str, Any]:
        """Outcome of the adaptation, and the number of gradients in sequence, without those of the searches."""
        length = float(np.exp(self.state.log_length[1]))
        return {"mean_trajectory_length": 0.5 * length, "sequential_gradients": self._num_gradients}

    @property
    def start_potential(self) -> np.ndarray:
        """Minus the log density at the position of the first chain of each superchain."""
        return np.asarray(self.state.potential[:: self.num_chains // self.num_superchains])

    @property
    def step_size(self) -> np.ndarray:
        """Step size of each chain, (num_chains,)."""
        return np.full(self.num_chains, float(np.exp(self.state.averaged[0])))


@dataclass
class _Whitening:
    """Variables of the chains, in which the metric of the start is a unit matrix."""

    metric: Any
    factor: jax.Array  # (d, d) lower Cholesky factor of the inverse mass matrix, or (d,) roots of its diagonal

    def to_position(self, v):
        """Return unconstrained positions, (..., d)."""
        return self.metric.to_position(v @ self.factor.T if self.factor.ndim == 2 else self.factor * v)
