"""The sampler of the package nutpie on our compiled density."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.inference.sampler.kernels.hamiltonian import Hamiltonian
from hbm_jax.inference.sampler.kernels.protocol import Block
from hbm_jax.inference.sampler.warmup.adaptation import Adaptation

if TYPE_CHECKING:  # the help of the command line reads the options, and needs neither Optax nor xarray
    from hbm_jax.inference.sampler.initialisation import Start
    from hbm_jax.inference.sampler.target import Target

UNSUPPORTED = ("checkpoint", "split", "until", "max_num_samples", "max_seconds")  # options of `sample`
# Names of nutpie's statistics, in the order of `Block` after the position.
STATISTICS = ("logp", "energy", "n_steps", "mean_tree_accept", "diverging")


@dataclass(frozen=True, kw_only=True)
class Nutpie(Hamiltonian):
    """No-U-Turn sampler of the package nutpie (Seyboldt, Carlson & Carpenter 2026, arXiv:2603.18845), an extra.

    It calls our compiled density from Python, which takes about 0.2 ms more than the gradient itself, and compiles
    nothing else. This suits posteriors that need few gradients, and comparisons with `NUTS`. Install it by ``pip
    install hbm_jax[nutpie]``.

    All draws are made in one call. Therefore ``num_samples`` is required, because sampling cannot stop on convergence;
    there is no checkpoint, time budget or progress line; lost chains are not restarted; and it runs in one process, in
    double precision. Chains start at our starting points and warm up with the metric of nutpie. The same seed gives the
    same draws with the same version of nutpie.

    Parameters
    ----------
    low_rank : bool
        Whether the metric has correlations, in a few directions; otherwise it is diagonal.
    target_accept_prob, max_tree_depth : optional
        As in `NUTS`.

    Raises
    ------
    ValueError
        For options out of range. When sampling starts, also without ``num_samples`` and for unsupported options.
    ImportError
        When sampling starts, if nutpie is not installed.

    Examples
    --------
    >>> Nutpie(target_accept_prob=0.9)
    Nutpie(target_accept_prob=0.9, max_tree_depth=10, low_rank=True)
    """

    name: ClassVar[str] = "nutpie"
    warmups: ClassVar[tuple[int, int, int]] = (400, 400, 1000)  # it learns its metric from draws alone

    low_rank: bool = field(default=True, metadata={"help": "whether nutpie's metric has correlations"})

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.low_rank, bool):
            raise ValueError(f"Nutpie: expected low_rank to be True or False; found {self.low_rank!r}.")

    def require_options(self, options: Mapping[str, Any]) -> None:
        """Raise ValueError for options of `hbm_jax.sample` that need draws in blocks, ImportError without nutpie."""
        for name in UNSUPPORTED:
            if options.get(name) is not None:
                raise ValueError(
                    f"Nutpie: expected no {name}: all draws are made in one call; found {options[name]!r}."
                )
        if options.get("num_samples") is None:
            raise ValueError("Nutpie: expected num_samples: it cannot stop when chains have converged; found none.")
        if np.dtype(options.get("dtype", "float64")) != np.float64:
            raise ValueError(f"Nutpie: expected dtype 'float64'; found {options['dtype']!r}.")
        if importlib.util.find_spec("nutpie") is None:
            raise ImportError("Nutpie: expected the package nutpie; found none. Install hbm_jax[nutpie].")

    def chains(
        self, target: "Target", start: "Start", num_warmup: int, key: Any, num_chains: int, num_samples: int
    ) -> "NutpieChains":
        """Return the chains of a run."""
        return NutpieChains(target, start, num_warmup, self, key, num_samples)

    def outcome(self, fitted: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the number of warm-up draws."""
        return fitted


@dataclass
class NutpieChains:
    """Chains of nutpie with the attributes of `hbm_jax.inference.sampler.chains.Chains` that a run uses.

    The first block makes all draws, warm-up included; later ones return them.
    """

    target: "Target"
    start: "Start"
    num_adapted: int
    sampler: Nutpie
    key: jax.Array
    num_samples: int
    num_warmup: ClassVar[int] = 0  # the warm-up is not that of the loop
    num_warmup_draws: ClassVar[int] = 0
    num_devices: ClassVar[int] = 1
    restarts_lost: ClassVar[bool] = False
    num_superchains: ClassVar[int] = 0
    max_draws: ClassVar[int | None] = None

    def __post_init__(self):
        self.buffer, self.count = self.num_samples, 0
        self.adaptation = Adaptation(0, 0.8)
        self.start_potential = np.array([float(self.target.value_and_grad(p)[0]) for p in self.start.points])
        self.fitted = {"num_warmup": self.num_adapted}
        self.step_size = np.full(len(self.start.points), np.nan)
        self._draws: Block | None = None

    def count_draws(self, block: Block) -> None:
        """Add the draws of a block to `count`."""
        self.count += block.energy.shape[1]

    def cost_of_draw(self) -> float:
        """Return 0: all draws are made at once."""
        return 0.0

    def advance(self, num_draws: int) -> Block:
        """Return the next draws of every chain."""
        if self._draws is None:
            self._draws = self._sample()
        first = self.count
        block = Block(*(values[:, first : first + num_draws] for values in self._draws))
        self.count_draws(block)
        return block

    def _sample(self) -> Block:
        """Run nutpie on the compiled density, and return all draws as one block."""
        import nutpie

        unit, size, points = self.target.unit, self.target.size, self.start.points
        evaluate = self.target.value_and_grad

        def log_density(z):
            with jax.enable_x64(True):  # an option of each thread
                value, gradient = evaluate(unit * z)
            return -float(value), -unit * np.asarray(gradient)

        def initial_point(seed):
            return points[np.random.default_rng(seed).integers(len(points))] / unit

        model = nutpie.compiled_pyfunc.from_pyfunc(
            size,
            lambda: log_density,
            lambda *_: lambda z: {"position": unit * z},
            [np.dtype("float64")],
            [(size,)],
            ["position"],
            make_initial_point_fn=initial_point,
        )
        trace = nutpie.sample(
            model,
            draws=self.num_samples,
            tune=self.num_adapted,
            chains=len(points),
            seed=int(jax.random.randint(self.key, (), 0, 2**31 - 1, jnp.int32)),
            progress_bar=False,
            save_warmup=False,
            low_rank_modified_mass_matrix=self.sampler.low_rank,
            target_accept=self.sampler.target_accept_prob,
            maxdepth=self.sampler.max_tree_depth,
        )
        stats = [trace.sample_stats[name].to_numpy() for name in STATISTICS]
        self.step_size = trace.sample_stats["step_size"].to_numpy()[:, -1]
        return Block(trace.posterior["position"].to_numpy(), -stats[0], *stats[1:])
