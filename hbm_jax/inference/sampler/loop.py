"""The one loop: warm up, draw in blocks, keep each block, report, stop when the rule says enough."""

import time

import numpy as np
import xarray as xr
from arviz_stats.base import array_stats

from hbm_jax.inference.sampler.chains import Block, Chains, Draws
from hbm_jax.inference.sampler.checkpoint import Checkpoint, CheckpointError, Saved
from hbm_jax.inference.sampler.progress import LiveLine
from hbm_jax.inference.sampler.stopping import MIN_SAMPLES, StopRule
from hbm_jax.inference.verdict import MIN_ESS, diagnose_sampled

SECONDS_PER_BLOCK = 1.0
LONGEST_BLOCK = (
    20.0  # times that: blocks grow with the age of a run, so that a long one does not leave ten thousand files
)
FIRST_BLOCK = 50
MAX_LIVE = 40  # parameters watched by the live line; the verdict looks at all
LIVE_SHARE = 0.02  # of the time that may go into working out the live line


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or the end of a time budget, before there is a fit; says where the run stood and how to resume it."""

    def __init__(self, reason: str, how_on: str = ""):
        super().__init__(f"{reason}{how_on}")
        self.reason = reason


class Loop:
    """Blocks of warm-up and of draws, with the live line, the checkpoint and the stop rule."""

    def __init__(
        self,
        chains: Chains,
        draws: Draws,
        live: LiveLine,
        rule: StopRule,
        num_warmup: int,
        store: Checkpoint | None,
        began: float,
        look_now: bool,
    ):
        self.chains, self.draws, self.live, self.rule, self.store = chains, draws, live, rule, store
        self.num_warmup, self.warmed = num_warmup, 0
        self.processes = chains.target.processes
        self.next_check = MIN_SAMPLES
        self.began = began
        self.seconds_per_draw = SECONDS_PER_BLOCK / FIRST_BLOCK
        self.seconds_before = 0.0  # of earlier sessions
        self.live_cost = self.live_shown = 0.0
        self.ended = False
        self.drawing = False  # whether this session has drawn a block
        # Of a warm-up that a time budget may end, and that nothing keeps on disk.
        self.unsaved: list[Block] = []
        # The parameters with the fewest elements first: the global ones are the slow ones to watch.
        names = [label.split("[")[0] for label in chains.target.labels]
        self.watched = np.argsort([names.count(name) for name in names], kind="stable")[:MAX_LIVE]
        if store is not None:
            self._replay(store, look_now)

    def _replay(self, store: Checkpoint, look_now: bool):
        """Take in what earlier sessions have drawn."""
        last = None
        for saved in store.blocks():
            last = saved
            self.chains.saw(saved.block)
            if saved.warmup:
                self.warmed += saved.block.energy.shape[1]
            else:
                self.draws.blocks.append(saved.block)
        if last is None:
            return
        self.chains.restore(last.state)
        self.seconds_before = last.progress["seconds"]
        self.seconds_per_draw = last.progress["seconds_per_draw"]
        self.next_check = max(MIN_SAMPLES, self.draws.num_draws) if look_now else int(last.progress["next_check"])
        self.live.show(f"resumed after {self.warmed} warm-up draws and {self.draws.num_draws} draws")

    @property
    def seconds(self) -> float:
        """Age of the run, over all its sessions."""
        return self.seconds_before + time.perf_counter() - self.began

    @property
    def _seconds_left(self) -> float:
        """Rest of the time budget of this session."""
        limit = self.rule.max_seconds
        return np.inf if limit is None else limit - (time.perf_counter() - self.began)

    @property
    def _out_of_time(self) -> bool:
        """Whether the budget is spent; every session draws one block, so that a run goes on however short they are."""
        return (
            self.rule.max_seconds is not None and self.drawing and self.processes.lead(lambda: self._seconds_left <= 0)
        )

    def _block(self, most: int, warmup: bool) -> Block:
        """Advance by a block's worth of draws, ``most`` at most, and keep them."""
        seconds = SECONDS_PER_BLOCK * min(max(1.0, self.seconds / 100), LONGEST_BLOCK)
        seconds = min(seconds, max(self._seconds_left, 0.0 if self.drawing else SECONDS_PER_BLOCK))
        length = np.clip(seconds / self.seconds_per_draw, 1, min(most, self.chains.buffer))
        length = self.processes.lead(lambda: int(length))
        started = time.perf_counter()
        block = self.chains.advance(length)
        drawn, self.drawing = block.energy.shape[1], True
        self.seconds_per_draw = (time.perf_counter() - started) / drawn
        if warmup:
            self.warmed += drawn
        else:
            self.draws.blocks.append(block)
        if self.store is not None:
            self._write(self.store, block, warmup)
        elif warmup and self.rule.max_seconds is not None:
            self.unsaved.append(block)
        return block

    def _write(self, store: Checkpoint, block: Block, warmup: bool):
        progress = {"seconds": self.seconds, "seconds_per_draw": self.seconds_per_draw, "next_check": self.next_check}
        store.write_block(Saved(block, self.chains.state_arrays(), warmup, progress))

    def save_warm_up(self, store: Checkpoint):
        """Keep what there is of a warm-up that was not kept on the way."""
        for block in self.unsaved:
            self._write(store, block, warmup=True)
        self.store = store

    def warm_up(self):
        """Adapt step size and metric.

        Raises
        ------
        Interrupted
            On Ctrl-C, and where the time budget ends; its attribute `reason` is which, and how far the warm-up came.
        """
        why = "interrupted"
        try:
            while self.warmed < self.num_warmup:
                if self._out_of_time:
                    why = f"the time budget of {self.rule.max_seconds:g} s ended"
                    raise KeyboardInterrupt
                block = self._block(self.num_warmup - self.warmed, warmup=True)
                left = (self.num_warmup - self.warmed) * self.seconds_per_draw
                self.live.show(
                    f"warm-up {self.warmed}/{self.num_warmup}, {_rate(self.seconds_per_draw, block)}, "
                    f"{_time(left)} left"
                )
        except KeyboardInterrupt:
            raise self.interrupted(f"{why} after {self.warmed} of {self.num_warmup} warm-up draws") from None
        self.unsaved.clear()

    def interrupted(self, reason: str) -> Interrupted:
        """Return the error that says what interrupted the run and how it goes on."""
        return Interrupted(reason, self.how_on)

    @property
    def how_on(self) -> str:
        """What to say of how an interrupted run goes on."""
        if self.store is None:
            return "; nothing was kept, because sample was called without checkpoint=DIR."
        return f'; hbm_jax.resume("{self.store.folder}") goes on from there.'

    def draw(self) -> str:
        """Draw until the rule says enough; returns what ended it."""
        try:
            while True:
                ended = self._enough()
                if ended:
                    self.ended = True
                    return ended
                if self._out_of_time and self.draws.num_draws >= 4:
                    return f"stopped: the time budget of {self.rule.max_seconds:g} s is spent"
                wanted = min(self.next_check, self.rule.goal) if self.rule.adaptive else self.rule.goal
                block = self._block(wanted - self.draws.num_draws, warmup=False)
                self._report(block)
        except CheckpointError as error:
            # What is in memory is worth more than the rule that every block is on disk.
            if self.draws.num_draws < 4:
                raise
            return f"stopped because {error}"
        except KeyboardInterrupt:
            if self.draws.num_draws < 4:
                raise self.interrupted("interrupted before the first draws") from None
            return "interrupted"

    def _enough(self) -> str | None:
        """Return what ends the run now, if anything; looks at the draws only at counts that do not depend on blocks."""
        num_draws = self.draws.num_draws
        if self.rule.adaptive and num_draws >= min(self.next_check, self.rule.goal) and num_draws >= 4:
            shortfall, unresolved = self.processes.lead(self._look)
            if unresolved:
                return f"stopped: {unresolved}"
            if shortfall <= 1.0:
                return self.rule.reached
            self.next_check = self.rule.next_check(num_draws, shortfall)
        return self.rule.spent if num_draws >= self.rule.goal else None

    def _look(self) -> tuple[float, str]:
        """How many times the draws there are would be needed, and what no draws would help; as the verdict judges."""
        posterior = {
            name: xr.DataArray(value, dims=["chain", "draw", *(f"{name}_{i}" for i in range(value.ndim - 2))])
            for name, value in self.draws.sites().items()
        }
        dims, labels = ["chain", "draw", "parameter"], list(self.chains.target.labels)
        positions = xr.DataArray(self.draws.raw("position"), {"parameter": labels}, dims)
        sampled = diagnose_sampled(posterior, positions)
        unresolved = ""
        for labels, what in ((sampled.coarse, "moved in coarse steps"), (sampled.stuck, "never moved")):
            unresolved = f"{', '.join(labels[:5])} {what}" if labels else unresolved
        return self.rule.shortfall(sampled.table), unresolved

    def _report(self, block: Block):
        """Show the live line, as often as it is cheap beside the drawing."""
        now = time.perf_counter()
        if self.draws.num_draws < 20 or now - self.live_shown < self.live_cost / LIVE_SHARE:
            return
        position = self.draws.raw("position")[..., self.watched]
        labels = np.asarray(self.chains.target.labels)[self.watched]
        r_hat = np.ones(len(labels))
        with np.errstate(divide="ignore", invalid="ignore"):  # of chains that are stuck
            if len(position) > 1:
                r_hat = np.atleast_1d(array_stats.rhat(position, chain_axis=0, draw_axis=1))
            ess = np.atleast_1d(array_stats.ess(position, chain_axis=0, draw_axis=1))
        num_draws = self.draws.num_draws
        needed = max(num_draws * MIN_ESS / max(ess.min(), 1.0), MIN_SAMPLES)
        left = max(min(needed if self.rule.adaptive else self.rule.goal, self.rule.goal) - num_draws, 0)
        self.live.show(
            f"{len(position)} x {num_draws} draws, {_rate(self.seconds_per_draw, block)}, "
            f"{int(self.draws.raw('diverging').sum())} divergences, "
            f"worst R-hat {r_hat.max():.3f} ({labels[r_hat.argmax()]}), smallest ESS {ess.min():.0f} "
            f"({labels[ess.argmin()]}), {_time(left * self.seconds_per_draw)} left"
        )
        self.live_shown = time.perf_counter()
        self.live_cost = self.live_shown - now


def _rate(seconds_per_draw: float, block: Block) -> str:
    rate = len(block.energy) / seconds_per_draw
    return f"{rate:,.0f} draws/s" if rate >= 10 else f"{rate:.2g} draws/s"


def _time(seconds: float) -> str:
    for limit, unit, length in ((90, "s", 1), (5400, "min", 60)):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 3600:.1f} h"
