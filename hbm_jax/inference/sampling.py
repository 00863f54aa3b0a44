"""The one loop: find a start, warm up, draw in blocks, report, stop when the verdict is good or the budget ends.

Three parts, so that checkpoints and batches fit in: `Chains` holds the compiled program that advances every chain by
any number of draws; a `Block` is what came out of one call, raw and on the host; `sample` is the loop over blocks.
The draws do not depend on how they are cut into blocks.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from arviz_stats.base import array_stats
from jax.sharding import Mesh, PartitionSpec
from numpyro.infer import NUTS

from hbm_jax.inference import diagnostics
from hbm_jax.inference.progress import LiveLine
from hbm_jax.inference.results import Fit, assemble
from hbm_jax.inference.start import Start, choose_start
from hbm_jax.inference.target import Target, build_target

BUFFER_BYTES = 64 * 2**20  # of draws a block may hold on the device
SECONDS_PER_BLOCK = 1.0
FIRST_BLOCK = 50
MIN_SAMPLES = 1000  # draws a chain before stopping is considered; fewer make poor pictures
MAX_LIVE = 40  # parameters watched by the live line; the verdict looks at all


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
    key: jax.Array
    buffer: int = field(init=False)

    def __post_init__(self):
        num_chains = len(self.start.points)
        self.kernel = NUTS(
            potential_fn=self.target.potential,
            dense_mass=self.start.dense,
            inverse_mass_matrix=jnp.asarray(self.start.inverse_mass),
            target_accept_prob=self.target_accept_prob,
            max_tree_depth=self.max_tree_depth,
        )
        keys = jax.random.split(self.key, num_chains)
        # One chain's kernel, mapped here: NumPyro would otherwise map it over chains by itself, in lock-step.
        self.state = jax.jit(jax.vmap(lambda key, point: self.kernel.init(key, self.num_warmup, point, (), {})))(
            keys, jnp.asarray(self.start.points)
        )
        devices = jax.local_devices()
        num_devices = max(n for n in range(1, len(devices) + 1) if num_chains % n == 0)
        mesh = Mesh(np.asarray(devices[:num_devices]), ("chain",))
        spread = PartitionSpec("chain")
        self.num_devices = num_devices
        self.buffer = int(np.clip(BUFFER_BYTES / (8.0 * num_chains * self.target.size), 50, 2000))
        one_by_one = devices[0].platform == "cpu"

        def advance(state, num_draws):
            def chain(state):
                return self._advance_chain(state, num_draws)

            return jax.lax.map(chain, state) if one_by_one else jax.vmap(chain)(state)

        sharded = jax.shard_map(
            advance, mesh=mesh, in_specs=(spread, PartitionSpec()), out_specs=spread, check_vma=False
        )
        started = time.perf_counter()
        self._advance = jax.jit(sharded).lower(self.state, jnp.asarray(0)).compile()
        self.compile_seconds = time.perf_counter() - started

    def _advance_chain(self, state, num_draws):
        """Advance one chain; writes draws into a buffer of fixed size, so that one program serves every length."""

        def record(state):
            return Block(
                state.z, state.potential_energy, state.energy, state.num_steps, state.accept_prob, state.diverging
            )

        def step(index, carry):
            state, buffers = carry
            state = self.kernel.sample(state, (), {})
            buffers = jax.tree.map(lambda buffer, new: buffer.at[index].set(new), buffers, record(state))
            return state, buffers

        empty = jax.tree.map(lambda x: jnp.zeros((self.buffer, *jnp.shape(x)), jnp.result_type(x)), record(state))
        return jax.lax.fori_loop(0, num_draws, step, (state, empty))

    def advance(self, num_draws: int) -> Block:
        """Advance every chain by ``num_draws`` (at most ``buffer``) and return the draws."""
        state, buffers = self._advance(self.state, jnp.asarray(num_draws))
        block = jax.tree.map(lambda buffer: np.asarray(buffer)[:, :num_draws], buffers)
        self.state = state
        return Block(*block)

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
        self._constrain = jax.jit(jax.vmap(self.target.constrain))

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


def sample(
    program: Callable,
    *args: Any,
    seed: int = 0,
    num_chains: int = 4,
    num_warmup: int | None = None,
    num_samples: int | None = None,
    max_num_samples: int = 20_000,
    target_accept_prob: float = 0.8,
    max_tree_depth: int = 10,
    dtype: str = "float64",
    progress: bool = True,
    dims: Mapping[str, list[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
) -> Fit:
    """Sample the posterior of a NumPyro program with NUTS until it is good.

    Parameters
    ----------
    program : callable
        A model of hbm_jax or any NumPyro program.
    *args
        What the program is called with, first of all its data.
    seed : int
        Seed of everything random; the same seed on the same machine gives the same draws.
    num_chains : int
        Chains, spread over the local devices (as many of them as divide the number of chains).
    num_warmup : int, optional
        Warm-up draws a chain; 400 from a Laplace approximation, 1000 otherwise.
    num_samples : int, optional
        Draws a chain, exactly. Where omitted, drawing goes on until R-hat and effective sample sizes are good.
    max_num_samples : int
        The budget of draws a chain where ``num_samples`` is omitted.
    target_accept_prob, max_tree_depth
        As in `numpyro.infer.NUTS`.
    dtype : str
        ``"float64"``, or ``"float32"`` on request: faster on a GPU, with a log density good to some 1e-6 relative. The
        caller's JAX settings are left as they are.
    progress : bool
        Whether to show the live line.
    dims, coords : mapping, optional
        Dimensions of sites and labels of dimensions, beyond the plates and what the program itself says.

    Returns
    -------
    Fit
        Draws, verdict, provenance. Ctrl-C while drawing stops early and keeps what is done.

    Raises
    ------
    StartError
        If no starting point has a finite density.
    ValueError
        For options out of range.

    Examples
    --------
    >>> import numpyro, numpyro.distributions as dist
    >>> fit = sample(lambda: numpyro.sample("x", dist.Normal(0, 1)), progress=False)
    >>> fit.verdict.usable
    True
    """
    if num_chains < 1 or (num_samples is not None and num_samples < 4) or max_num_samples < 4:
        raise ValueError(
            "sample: expected num_chains >= 1, num_samples >= 4 and max_num_samples >= 4; found "
            f"{num_chains}, {num_samples}, {max_num_samples}."
        )
    if not (0 < target_accept_prob < 1 and max_tree_depth >= 1 and (num_warmup is None or num_warmup >= 0)):
        raise ValueError(
            "sample: expected target_accept_prob between 0 and 1, max_tree_depth >= 1 and num_warmup >= 0; found "
            f"{target_accept_prob}, {max_tree_depth}, {num_warmup}."
        )
    if dtype not in ("float64", "float32"):
        raise ValueError(f"sample: expected dtype 'float64' or 'float32'; found {dtype!r}.")
    clock = time.perf_counter()
    timing: dict[str, float] = {}

    def lap(name):
        nonlocal clock
        timing[name] = time.perf_counter() - clock
        clock = time.perf_counter()

    with LiveLine(progress) as live, jax.enable_x64(dtype == "float64"):
        key_target, key_start, key_chains = jax.random.split(jax.random.key(seed), 3)
        live.show("tracing the model")
        target = build_target(program, args, key_target)
        lap("trace")
        live.show(f"searching the mode of {target.size} parameters")
        start = choose_start(target, num_chains, key_start)
        lap("start")
        num_warmup = num_warmup if num_warmup is not None else (400 if start.laplace else 1000)
        live.show("compiling the sampler")
        chains = Chains(target, start, num_warmup, target_accept_prob, max_tree_depth, key_chains)
        draws = Draws(target)
        draws.compile()
        lap("compile")
        loop = _Loop(chains, draws, live, num_samples, max_num_samples)
        loop.warm_up(num_warmup)
        lap("warmup")
        stopped = loop.draw()
        lap("sampling")
        fit = assemble(
            program,
            args,
            target=target,
            sites=loop.draws.sites(),
            sample_stats={
                "diverging": loop.draws.raw("diverging"),
                "energy": loop.draws.raw("energy"),
                "lp": -loop.draws.raw("potential_energy"),
                "n_steps": loop.draws.raw("num_steps"),
                "acceptance_rate": loop.draws.raw("accept_prob"),
                "tree_depth": np.ceil(np.log2(loop.draws.raw("num_steps") + 1)).astype(int),
                "step_size": np.broadcast_to(chains.step_size[:, None], loop.draws.raw("energy").shape),
            },
            positions=loop.draws.raw("position"),
            dims=dims,
            coords=coords,
            timing=timing,
            run={
                "seed": seed,
                "num_chains": num_chains,
                "num_warmup": num_warmup,
                "num_samples": loop.draws.num_draws,
                "target_accept_prob": target_accept_prob,
                "max_tree_depth": max_tree_depth,
                "dtype": dtype,
                "num_devices": chains.num_devices,
                "start": start.note,
                "stopped": stopped,
            },
        )
        lap("judging")
        fit.timing.update(timing)
        live.close(f"{stopped}: {num_chains} x {loop.draws.num_draws} draws in {timing['sampling']:.1f} s")
    return fit


class _Loop:
    """Blocks of warm-up and of draws, with the live line and the stop rule."""

    def __init__(self, chains: Chains, draws: Draws, live: LiveLine, num_samples: int | None, max_num_samples: int):
        self.chains, self.draws, self.live = chains, draws, live
        self.goal = num_samples or max_num_samples
        self.until_good = num_samples is None
        self.seconds_per_draw = SECONDS_PER_BLOCK / FIRST_BLOCK
        # The parameters with the fewest elements first: the global ones are the slow ones to watch.
        names = [label.split("[")[0] for label in chains.target.labels]
        self.watched = np.argsort([names.count(name) for name in names], kind="stable")[:MAX_LIVE]

    def _block(self, most: int) -> Block:
        """Advance by about a second's worth of draws, ``most`` at most."""
        length = int(np.clip(SECONDS_PER_BLOCK / self.seconds_per_draw, 1, min(most, self.chains.buffer)))
        started = time.perf_counter()
        block = self.chains.advance(length)
        self.seconds_per_draw = (time.perf_counter() - started) / length
        return block

    def warm_up(self, num_warmup: int):
        """Adapt step size and metric."""
        done = 0
        while done < num_warmup:
            block = self._block(num_warmup - done)
            done += block.energy.shape[1]
            left = (num_warmup - done) * self.seconds_per_draw
            self.live.show(f"warm-up {done}/{num_warmup}, {_rate(self.seconds_per_draw, block)}, {_time(left)} left")

    def draw(self) -> str:
        """Draw until good, or until the goal; returns what ended it."""
        next_check = MIN_SAMPLES
        try:
            while self.draws.num_draws < self.goal:
                wanted = next_check if self.until_good else self.goal
                block = self._block(min(wanted, self.goal) - self.draws.num_draws)
                self.draws.blocks.append(block)
                r_hat, ess = self._report(block)
                num_draws = self.draws.num_draws
                if self.until_good and num_draws >= next_check:
                    if r_hat < diagnostics.MAX_R_HAT and ess >= diagnostics.MIN_ESS and self._good():
                        return "stopped: R-hat and effective sample sizes are good"
                    # As many more draws as the slowest parameter needs, between a tenth and double.
                    factor = np.clip(1.1 * diagnostics.MIN_ESS / max(ess, 1.0), 1.1, 2.0)
                    next_check = int(np.ceil(num_draws * factor))
        except KeyboardInterrupt:
            if self.draws.num_draws < 4:
                raise
            return "interrupted"
        return "stopped: all the draws asked for are done" if not self.until_good else "stopped: the budget is spent"

    def _report(self, block: Block) -> tuple[float, float]:
        """Show the live line; returns the largest R-hat and the smallest ESS of the watched parameters."""
        if self.draws.num_draws < 20:
            return np.inf, 0.0
        position = self.draws.raw("position")[..., self.watched]
        labels = np.asarray(self.chains.target.labels)[self.watched]
        r_hat = np.ones(len(labels))
        with np.errstate(divide="ignore", invalid="ignore"):  # of chains that are stuck
            if len(position) > 1:
                r_hat = np.atleast_1d(array_stats.rhat(position, chain_axis=0, draw_axis=1))
            ess = np.atleast_1d(array_stats.ess(position, chain_axis=0, draw_axis=1))
        num_draws = self.draws.num_draws
        needed = num_draws * (diagnostics.MIN_ESS / max(ess.min(), 1.0)) if self.until_good else self.goal
        left = max(min(max(needed, MIN_SAMPLES if self.until_good else 0), self.goal) - num_draws, 0)
        self.live.show(
            f"{len(position)} x {num_draws} draws, {_rate(self.seconds_per_draw, block)}, "
            f"{int(self.draws.raw('diverging').sum())} divergences, "
            f"worst R-hat {r_hat.max():.3f} ({labels[r_hat.argmax()]}), smallest ESS {ess.min():.0f} "
            f"({labels[ess.argmin()]}), {_time(left * self.seconds_per_draw)} left"
        )
        return float(r_hat.max()), float(ess.min())

    def _good(self) -> bool:
        """Whether R-hat and effective sample sizes of everything a person will read are good."""
        posterior = {
            name: xr.DataArray(value, dims=["chain", "draw", *(f"{name}_{i}" for i in range(value.ndim - 2))])
            for name, value in self.draws.sites().items()
        }
        table = diagnostics.diagnose(posterior)
        converged = not (table["r_hat"] >= diagnostics.MAX_R_HAT).any()
        return converged and not (table[["ess_bulk", "ess_tail"]] < diagnostics.MIN_ESS).any(axis=None)


def _rate(seconds_per_draw: float, block: Block) -> str:
    rate = len(block.energy) / seconds_per_draw
    return f"{rate:,.0f} draws/s" if rate >= 10 else f"{rate:.2g} draws/s"


def _time(seconds: float) -> str:
    for limit, unit, length in ((90, "s", 1), (5400, "min", 60)):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 3600:.1f} h"
