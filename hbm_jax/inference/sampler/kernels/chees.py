"""Options of Hamiltonian Monte Carlo for many chains that are adapted together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hbm_jax.inference.options import whole_number
from hbm_jax.inference.sampler.kernels.hamiltonian import Hamiltonian

FEWEST_CHAINS, MOST_CHAINS = 64, 4096
FEWEST_SUPERCHAINS = 16


@dataclass(frozen=True, kw_only=True)
class ChEES(Hamiltonian):
    """Hamiltonian Monte Carlo of 64 to 4096 chains that are adapted together, for a GPU.

    All chains take the same number of leapfrog steps. Its mean maximises the change in the squared distance from the
    mean (the ChEES criterion: Hoffman, Radul & Sountsov 2021, AISTATS, PMLR 130, 3907); it varies by a Halton sequence.
    Metric and step size are learnt from all chains. Then everything is frozen, and the chains of each superchain start
    once more, from one point, which they have to forget: the verdict uses nested R-hat (Margossian et al. 2024,
    doi:10.1214/24-BA1453) of the superchains in place of R-hat.

    A draw costs as many gradients in sequence for 1000 chains as for one. On a CPU, `NUTS` takes less time.

    Parameters
    ----------
    num_superchains : int
        Number of superchains, at least 16; it divides the number of chains.
    target_accept_prob : float, optional
        As in `NUTS`.
    max_tree_depth : int
        A trajectory has at most ``2**max_tree_depth`` leapfrog steps.

    Raises
    ------
    ValueError
        For options out of range. When sampling starts, also unless there are 64 to 4096 chains, at least two in each
        superchain, or with ``split``.

    Examples
    --------
    >>> ChEES()
    ChEES(target_accept_prob=None, max_tree_depth=10, num_superchains=16)
    """

    name: ClassVar[str] = "chees"
    first_check: ClassVar[int | None] = 12
    num_searches: ClassVar[int | None] = 16
    warmups: ClassVar[tuple[int, int, int]] = (100, 100, 300)

    num_superchains: int = field(
        default=FEWEST_SUPERCHAINS, metadata={"help": "number of groups of chains with a common start, at least 16"}
    )

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(
            self, "num_superchains", whole_number("num_superchains", self.num_superchains, type(self).__name__)
        )
        if self.num_superchains is None or self.num_superchains < FEWEST_SUPERCHAINS:
            raise ValueError(
                f"ChEES: expected num_superchains of at least {FEWEST_SUPERCHAINS}; found {self.num_superchains}."
            )

    def require_options(self, options: Mapping[str, Any]) -> None:
        """Raise ValueError for another number of chains, and for processes that share one density."""
        num_chains = whole_number("num_chains", options.get("num_chains", 4)) or 0
        in_range = max(FEWEST_CHAINS, 2 * self.num_superchains) <= num_chains <= MOST_CHAINS
        if not in_range or num_chains % self.num_superchains:
            raise ValueError(
                f"ChEES: expected num_chains from {FEWEST_CHAINS} to {MOST_CHAINS}, a multiple of the "
                f"{self.num_superchains} superchains and at least twice as many; found {num_chains}."
            )
        if options.get("split") is not None:
            raise ValueError(f"ChEES: expected no split: one process draws; found {options['split']!r}.")

    def num_starts(self, num_chains: int) -> int:
        """Return the number of starting points: one for each superchain."""
        return self.num_superchains

    def chains(self, target: Any, start: Any, num_warmup: int, key: Any, num_chains: int, num_samples: int) -> Any:
        """Return the chains of a run."""
        from hbm_jax.inference.sampler.ensemble.chains import EnsembleChains

        return EnsembleChains(target, start, num_warmup, self, key, num_chains)

    def outcome(self, fitted: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the trajectory length and the numbers of gradients in sequence."""
        return fitted
