"""Independent Metropolis-Hastings proposals between trajectories, for posteriors close to normal.

Proposals are drawn from a normal distribution in the sampler's variables, fitted to the warm-up (the independence chain
of Tierney 1994, Ann. Statist. 22, 1701). They do not depend on the current state, and a draw costs one evaluation of
the density, which takes less time than its gradient (half for JLA). If the posterior has heavier tails than the
proposals, a chain stays in a tail for many draws. Therefore one draw in `EVERY` is a trajectory, and if too few
proposals are accepted, all draws are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.inference.sampler.kernels.hamiltonian import Hamiltonian, empty_block, statistics
from hbm_jax.inference.sampler.kernels.hmc import HMC
from hbm_jax.inference.sampler.kernels.nuts import NUTS
from hbm_jax.inference.sampler.kernels.protocol import Block, Chain

EVERY = 16  # number of draws per trajectory
ROUNDS = (200, 600, 4000)  # draws per chain in each round after the warm-up; proposals are refitted at its end
DRAWS_PER_PARAMETER = 10  # fewest draws per parameter to which proposals are fitted
# Weights and widths of the two components of the proposals. The first is as wide as the draws, the second wider, so
# that a chain leaves the tails sooner.
WEIGHTS, SCALES = (0.8, 0.2), (1.0, 1.2)
LEAST_ACCEPTED = 0.4  # accepted fraction in the last round below which proposals are not used
# Pareto index of the weights (posterior density over that of the proposals) from which their second moment under the
# proposals is infinite: a chain would rarely reach, and hardly leave, regions where the weights are large.
MAX_TAIL = 0.5
FEWEST_WEIGHTS = 100  # to which the index is fitted
MAX_RANGE = 100.0  # of the logarithms of the largest weights, beyond which their index is certainly above 1
MAX_SIZE = 100  # largest number of parameters
CHUNK = 64  # densities that an accelerator evaluates in parallel, per chain


class Proposals(NamedTuple):
    """Mixture of two normal distributions in the d variables of the sampler, and whether to propose from it."""

    mean: Any  # (d,)
    factor: Any  # (d, d) Cholesky factor of the covariance, lower triangular
    inverse: Any  # (d, d) inverse of the factor
    used: Any  # () bool
    tail: Any = np.asarray(0.0)  # () Pareto index of the largest weights, in the last round

    @classmethod
    def disabled(cls, size: int) -> "Proposals":
        """Return proposals that are not used: all draws are trajectories."""
        return cls(np.zeros(size), np.eye(size), np.eye(size), np.asarray(False))

    @classmethod
    def fit(cls, draws: np.ndarray) -> "Proposals":
        """Fit to draws (num, size); `disabled` if there are too few, or their covariance is not positive definite."""
        num, size = draws.shape
        if num < DRAWS_PER_PARAMETER * size or not np.isfinite(draws).all():
            return cls.disabled(size)
        covariance = np.atleast_2d(np.cov(draws, rowvar=False))
        try:
            factor = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            return cls.disabled(size)
        return cls(draws.mean(axis=0), factor, np.linalg.inv(factor), np.asarray(True))

    def transform(self, noise: jax.Array) -> jax.Array:
        """Transform noise from `scaled`, (..., d), to positions."""
        return self.mean + noise @ self.factor.T

    def log_density(self, position: jax.Array) -> jax.Array:
        """Return the log density at positions (..., d), up to a constant."""
        return _log_density((position - self.mean) @ self.inverse.T)


def scaled(noise: jax.Array, uniform: jax.Array) -> jax.Array:
    """Scale standard normal noise (..., d) by the width of the component that a uniform number (...) selects."""
    return noise * jnp.where(uniform < WEIGHTS[0], *SCALES)[..., None]


def _log_density(noise):
    """Return the log density of the mixture at standardised positions (..., d), up to a constant."""
    square, size = jnp.sum(noise**2, axis=-1), noise.shape[-1]
    parts = [np.log(p) - size * np.log(s) - 0.5 * square / s**2 for p, s in zip(WEIGHTS, SCALES, strict=True)]
    return jnp.logaddexp(*parts)


def tail_index(log_weights: np.ndarray) -> float:
    """Return the Pareto index under the proposals, at least 0, of weights given at draws of the posterior.

    The index k of a generalised Pareto distribution is fitted to the largest weights (Zhang & Stephens 2009,
    Technometrics 51, 316). The density of weights w at draws of the posterior is w times that under the proposals, so
    an index k at these draws is an index k / (1 + k) under the proposals. From 0.5 on, the second moment is infinite.

    Parameters
    ----------
    log_weights : array
        Log posterior density minus that of the proposals, up to a constant; entries that are not finite are ignored.
    """
    values = np.sort(np.asarray(log_weights, float)[np.isfinite(log_weights)])
    if len(values) < FEWEST_WEIGHTS or np.ptp(values) == 0:
        return 0.0
    if values[-1] - values[-int(np.sqrt(len(values)))] > MAX_RANGE:
        return 1.0
    from arviz_stats.base import array_stats  # here, because the help of the command line reads the options

    index = float(array_stats.psislw(values[-1] - values)[1])
    return max(index, 0.0) / (1.0 + max(index, 0.0))


class ProposedDraws(NamedTuple):
    """Precomputed proposals for one call of the sampler, n of them."""

    position: jax.Array  # (n, d)
    potential: jax.Array  # (n,)
    weight: jax.Array  # (n,) log ratio of posterior to proposal density, -inf if not finite
    threshold: jax.Array  # (n,) log of a uniform random number


def draw_proposals(
    potential, proposals: Proposals, key: jax.Array, first, num, max_num: int, chunk: int
) -> ProposedDraws:
    """Draw proposals and compute their densities.

    Parameters
    ----------
    potential : callable
        (d,) -> scalar, minus the log density.
    proposals : Proposals
        Distribution of the proposals; if it is not used, no densities are computed.
    key : jax.Array
        Key of the chain. Random numbers depend only on it and on the index of the draw, not on the division into calls.
    first, num : scalar
        Index of the first draw, and number of draws.
    max_num : int
        Length of the result, rounded up to a multiple of ``chunk``; entries beyond ``num`` are padding.
    chunk : int
        Number of densities evaluated in parallel.
    """
    length = -(-max_num // chunk) * chunk
    indices = first + jnp.arange(length)
    keys = jax.vmap(lambda number: jax.random.split(jax.random.fold_in(key, number)))(indices)
    dtype = jnp.result_type(proposals.mean)
    noise = jax.vmap(lambda k: jax.random.normal(k, proposals.mean.shape, dtype))(keys[:, 0])
    uniform = jax.vmap(lambda k: jax.random.uniform(k, (2,), dtype))(keys[:, 1])
    noise, threshold = scaled(noise, uniform[:, 0]), jnp.log(uniform[:, 1])
    position = proposals.transform(noise)
    batched_potential = potential if chunk == 1 else jax.vmap(potential)

    def compute(index, potentials):
        chunk_positions = jax.lax.dynamic_slice_in_dim(position, index * chunk, chunk)
        values = batched_potential(chunk_positions[0])[None] if chunk == 1 else batched_potential(chunk_positions)
        return jax.lax.dynamic_update_slice_in_dim(potentials, values.astype(dtype), index * chunk, 0)

    num_chunks = jnp.where(proposals.used, -(-num // chunk), 0)
    values = jax.lax.fori_loop(0, num_chunks, compute, jnp.full(length, jnp.inf, dtype))
    weight = -values - _log_density(noise)
    return ProposedDraws(position, values, jnp.where(jnp.isfinite(weight), weight, -jnp.inf), threshold)


@dataclass(frozen=True, kw_only=True)
class IndependentProposals(Hamiltonian):
    """Independent Metropolis-Hastings proposals for 15 of every 16 draws; the sixteenth is a trajectory.

    Proposals come from a normal distribution fitted to 4800 additional warm-up draws per chain. This suits many draws
    of at most 100 parameters with a posterior close to normal: a draw then costs one evaluation of the density. If
    fewer than 0.4 of the proposals are accepted in the last round of the warm-up, or the posterior has much heavier
    tails than the proposals (Pareto index of the weights of 0.5 or more), all draws are trajectories;
    ``fit.run["proposals_used"]`` is then False.

    Parameters
    ----------
    trajectory_length : float, optional
        Mean length of the trajectories between the proposals, as in `HMC`; by default they are those of `NUTS`.
    target_accept_prob, max_tree_depth : optional
        As in `NUTS`.

    Raises
    ------
    ValueError
        For options out of range. When sampling starts, also for more than 100 parameters.
    """

    name: ClassVar[str] = "independent_proposals"
    rounds: ClassVar[tuple[int, ...]] = ROUNDS

    trajectory_length: float | None = field(
        default=None, metadata={"help": "mean length of the trajectories between proposals; by default those of NUTS"}
    )

    def __post_init__(self):
        super().__post_init__()
        self._check_length(self.trajectory_length)

    @property
    def trajectories(self) -> Hamiltonian:
        """Sampler of the trajectories between the proposals."""
        options: dict[str, Any] = {
            "target_accept_prob": self.target_accept_prob,
            "max_tree_depth": self.max_tree_depth,
        }
        if self.trajectory_length is None:
            return NUTS(**options)
        return HMC(trajectory_length=self.trajectory_length, **options)

    def require_size(self, size: int) -> None:
        """Raise ValueError for more than ``MAX_SIZE`` parameters."""
        if size > MAX_SIZE:
            raise ValueError(
                f"IndependentProposals: expected at most {MAX_SIZE} parameters; found {size}. Marginalise latents if "
                "the model can, or use another sampler."
            )

    def kernel(self, potential: Callable, inverse_mass: Any, dense: bool, step_size: Any) -> Any:
        """Return the NumPyro kernel of the trajectories."""
        return self.trajectories.kernel(potential, inverse_mass, dense, step_size)

    def prepared(self, state: Any) -> Any:
        """Return the state from which the next trajectory starts."""
        return self.trajectories.prepared(state)

    def fitted(self, size: int) -> Proposals:
        """Return proposals that are not used."""
        return Proposals.disabled(size)

    def fit(self, variables: np.ndarray, block: Block, num: int) -> Proposals:
        """Fit proposals to round ``num``, or for 0 to the second half of the warm-up; see `Sampler.fit`.

        The last fit decides whether they are used.
        """
        is_proposal = block.num_steps == 0
        fitted_draws = variables if num else variables[:, variables.shape[1] // 2 :]
        proposals = Proposals.fit(fitted_draws.reshape(-1, variables.shape[-1]))
        if num < len(self.rounds) or not proposals.used:
            return proposals
        too_few = is_proposal.any() and block.accept_prob[is_proposal].mean() < LEAST_ACCEPTED
        log_weights = -block.potential_energy - np.asarray(proposals.log_density(jnp.asarray(variables)))
        tail = np.asarray(tail_index(log_weights))
        return proposals._replace(used=np.asarray(not too_few and tail < MAX_TAIL), tail=tail)

    def outcome(self, fitted: Proposals) -> Mapping[str, Any]:
        """Return whether proposals are used, and the Pareto index of their weights."""
        return {"proposals_used": bool(fitted.used), "proposals_tail": round(float(fitted.tail), 2)}

    def notes(self, fitted: Proposals) -> tuple[str, ...]:
        """Return a note if proposals are not used because of the tails of the posterior."""
        if fitted.tail < MAX_TAIL:
            return ()
        return (
            "all draws are trajectories, because the posterior has heavier tails than the independent proposals "
            f"(Pareto index of the weights {float(fitted.tail):.2f}; below {MAX_TAIL:g} is needed)",
        )

    def advance(
        self, chain: Chain, state: Any, key: Any, fitted: Proposals, first: Any, num_draws: Any
    ) -> tuple[Any, Block]:
        """Advance one chain by independent proposals and trajectories; see `Sampler.advance`.

        One array holds all possible states: the proposals, computed beforehand, then the ends of trajectories, and the
        initial state. The chain moves between indices of this array, so that accepting a proposal only needs the
        comparison of two numbers.
        """
        chunk = CHUNK if chain.parallel else 1
        proposed = draw_proposals(chain.potential, fitted, key, first, num_draws, chain.buffer, chunk)
        moves = _Moves(self, chain, fitted, proposed, first, num_draws)
        carry = moves.carry(state, empty_block(chain, state))
        initial = carry.current
        carry = jax.lax.while_loop(lambda carry: carry.index < num_draws, moves.step, carry)
        positions, values, weight = carry.candidates
        by_trajectory = carry.recorded.num_steps > 0
        previous_weight = weight[jnp.concatenate([initial[None], carry.visited[:-1]])]
        accept_prob = jnp.minimum(1.0, jnp.exp(weight[: chain.buffer] - previous_weight))
        block = carry.recorded._replace(
            position=chain.to_position(positions[carry.visited]),
            potential_energy=values[carry.visited],
            energy=jnp.where(by_trajectory, carry.recorded.energy, jnp.nan),  # a proposal has no momentum
            accept_prob=jnp.where(by_trajectory, carry.recorded.accept_prob, accept_prob),
        )
        return carry.state._replace(z=positions[carry.current], potential_energy=values[carry.current]), block


class _Carry(NamedTuple):
    """State of the loop of one call of the sampler."""

    index: Any  # number of draws so far
    current: Any  # candidate at which the chain is
    state: Any  # of the kernel
    candidates: Any  # position (n, d), potential (n,) and log weight (n,) of each
    visited: Any  # (buffer,) candidate of each draw
    recorded: Any  # Block of the trajectories


class _Moves(NamedTuple):
    """Moves of one chain between candidates."""

    sampler: IndependentProposals
    chain: Chain
    proposals: Proposals
    proposed: ProposedDraws
    first: Any
    num_draws: Any

    def carry(self, state, empty: Block) -> _Carry:
        """Return the carry before the first draw, at which the chain is at the last candidate, its initial state."""
        initial_state = state.z, state.potential_energy, self._weight(state)
        proposed = self.proposed.position, self.proposed.potential, self.proposed.weight
        candidates = tuple(
            jnp.concatenate([values, jnp.zeros_like(values), initial[None]])  # zeros for the ends of trajectories
            for values, initial in zip(proposed, initial_state, strict=True)
        )
        zero = jnp.zeros_like(self.num_draws)
        current = zero + 2 * len(self.proposed.weight)
        return _Carry(zero, current, state, candidates, jnp.zeros(self.chain.buffer, zero.dtype), empty)

    def _weight(self, state):
        """Return the log ratio of posterior to proposal density at a state."""
        return -state.potential_energy - self.proposals.log_density(state.z)

    def step(self, carry: _Carry) -> _Carry:
        """Make one trajectory, or all proposals up to the next one."""
        is_trajectory = ~self.proposals.used | ((self.first + carry.index) % EVERY == 0)
        return jax.lax.cond(is_trajectory, self._trajectory, self._proposals, carry)

    def _trajectory(self, carry: _Carry) -> _Carry:
        """Make one trajectory from the current candidate; its end becomes a new candidate."""
        index, current, state, candidates, visited, recorded = carry

        def refreshed(state):
            value, gradient = jax.value_and_grad(self.chain.potential)(state.z)
            return state._replace(potential_energy=value, z_grad=gradient)

        z, value, _ = (values[current] for values in candidates)
        state = state._replace(z=z, potential_energy=value)
        state = jax.lax.cond(self.proposals.used | (index == 0), refreshed, lambda state: state, state)
        state = self.sampler.trajectory(self.chain, state)
        current = len(self.proposed.weight) + index
        end_state = state.z, state.potential_energy, self._weight(state)
        candidates = tuple(values.at[current].set(new) for values, new in zip(candidates, end_state, strict=True))
        recorded = jax.tree.map(lambda buffer, new: buffer.at[index].set(new), recorded, statistics(self.chain, state))
        return _Carry(index + 1, current, state, candidates, visited.at[index].set(current), recorded)

    def _proposals(self, carry: _Carry) -> _Carry:
        """Accept or reject the proposals up to the next trajectory."""
        index, current, state, candidates, visited, recorded = carry
        _, _, weights = candidates
        stop = jnp.minimum(self.num_draws, index + EVERY - (self.first + index) % EVERY)

        def accept(i, carry):
            current, weight, visited = carry
            accepted = self.proposed.threshold[i] < self.proposed.weight[i] - weight
            current, weight = jnp.where(accepted, i, current), jnp.where(accepted, self.proposed.weight[i], weight)
            return current, weight, visited.at[i].set(current)

        current, _, visited = jax.lax.fori_loop(index, stop, accept, (current, weights[current], visited))
        return _Carry(stop, current, state, candidates, visited, recorded)
