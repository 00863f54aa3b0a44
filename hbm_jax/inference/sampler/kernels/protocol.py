"""Protocol of samplers, and the types of their results."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np


class Block(NamedTuple):
    """Raw draws of every chain from one call; leading dimensions (chain, draw).

    ``gradient`` is that of minus the log density in the variables of the sampler; it is kept during the warm-up, and
    has the shape (chain, draw, 0) afterwards.
    """

    position: np.ndarray
    potential_energy: np.ndarray
    energy: np.ndarray
    num_steps: np.ndarray
    accept_prob: np.ndarray
    diverging: np.ndarray
    gradient: np.ndarray = np.zeros((0, 0, 0))


class Chain(NamedTuple):
    """One chain while its program is traced.

    Attributes
    ----------
    kernel : numpyro.infer.mcmc.MCMCKernel
        Result of `Sampler.kernel`.
    potential : callable
        (size,) -> scalar, minus the log density in the variables of the sampler.
    to_position : callable
        (..., size) -> (..., size), unconstrained positions of the variables of the sampler.
    buffer : int
        Largest number of draws of a call; results have this length, so that one program serves any number of draws.
    parallel : bool
        Whether the device evaluates many densities at the same time.
    """

    kernel: Any
    potential: Callable
    to_position: Callable
    buffer: int
    parallel: bool


@runtime_checkable
class Sampler(Protocol):
    """Sampler of `hbm_jax.sample`: a frozen dataclass of its options, which are plain values.

    By default, a subclass has no rounds after the warm-up and samples any number of parameters.

    Attributes
    ----------
    name : str
        Name in configurations, checkpoints and `Fit.run`.
    rounds : tuple of int
        Draws per chain of each round that follows the warm-up; `fit` is called at the end of the warm-up and of each
        round. Empty if the sampler has no such rounds.
    target_accept_prob : float or None
        Mean acceptance probability of the trajectories; None stands for that of the program, see `resolved`.
    warmups : (int, int, int)
        Default numbers of warm-up draws: if the posterior is nearly normal, see
        `hbm_jax.inference.sampler.initialisation.Start`, if the start comes from another approximation of it, and
        otherwise.
    num_searches : int or None
        Number of searches for modes before sampling; None for the usual one.
    first_check : int or None
        Draws per chain at the first check for convergence; None for that of the stopping rule.
    equal_steps : bool
        True if each step of a trajectory is one gradient, so that their number gives the depth of a tree.
    """

    name: ClassVar[str]
    rounds: ClassVar[tuple[int, ...]] = ()
    warmups: ClassVar[tuple[int, int, int]] = (200, 400, 1000)
    num_searches: ClassVar[int | None] = None
    first_check: ClassVar[int | None] = None
    equal_steps: ClassVar[bool] = True

    @property
    def target_accept_prob(self) -> float | None:
        """Mean acceptance probability of the trajectories."""

    def resolved(self, target_accept_prob: float) -> "Sampler":
        """Return the sampler with this acceptance probability if none was given."""

    def require_size(self, size: int) -> None:
        """Raise ValueError if the sampler cannot sample so many parameters."""
        return

    def require_options(self, options: Mapping[str, Any]) -> None:
        """Raise ValueError for options of `hbm_jax.sample` that the sampler does not support, or needs and lacks."""
        return

    def chosen(self, nearly_normal: bool) -> "Sampler":
        """Return the sampler for a posterior that is nearly normal, or not: itself, unless it makes a choice."""
        return self

    def num_starts(self, num_chains: int) -> int:
        """Return the number of starting points, fewer than chains if some share a start."""
        return num_chains

    def chains(self, target: Any, start: Any, num_warmup: int, key: Any, num_chains: int, num_samples: int) -> Any:
        """Return the chains of a run, or None for `hbm_jax.inference.sampler.chains.Chains`.

        Those call the methods below for each chain. A sampler whose chains are adapted together returns chains of its
        own, with the attributes and methods of those chains that a run uses, and has no use for the methods below.
        """
        return None

    def kernel(self, potential: Callable, inverse_mass: Any, dense: bool, step_size: Any) -> Any:
        """Return the NumPyro kernel of a potential, with an inverse mass matrix or its diagonal, and a step size."""

    def fitted(self, size: int) -> Any:
        """Return the initial result of `fit`: a pytree of arrays, which is an argument of the compiled program."""
        return ()

    def advance(self, chain: Chain, state: Any, key: Any, fitted: Any, first: Any, num_draws: Any) -> tuple[Any, Block]:
        """Advance one chain.

        Parameters
        ----------
        chain : Chain
            The chain.
        state : pytree
            State of the kernel.
        key : jax.Array
            Random key of the chain, the same at every call.
        fitted : pytree
            Result of `fit`, or of `fitted`.
        first, num_draws : scalar
            Index of the first draw, and number of draws.

        Returns
        -------
        state, block
            The new state, and the draws with their statistics: arrays of length ``chain.buffer``, of which
            ``num_draws`` are valid.
        """

    def fit(self, variables: np.ndarray, block: Block, num: int) -> Any:
        """Return the arrays fitted to the draws of the warm-up (``num`` 0) or of round ``num``, as used by `advance`.

        Parameters
        ----------
        variables : (chain, draw, size)
            Draws in the variables of the sampler.
        block : Block
            The same draws, raw.
        num : int
            Number of rounds that are complete after the warm-up.
        """
        return ()

    def outcome(self, fitted: Any) -> Mapping[str, Any]:
        """Return entries for `Fit.run` about the outcome of sampling."""
        return {}

    def notes(self, fitted: Any) -> Sequence[str]:
        """Return notes for the verdict about the outcome of sampling."""
        return ()
