"""Sampling loop: warm-up, draws in blocks, checkpoint after each block, progress line and stopping rule."""

import time
from collections.abc import Mapping

import numpy as np
import xarray as xr

from hbm_jax.inference.sampler.chains import Chains, Draws
from hbm_jax.inference.sampler.checkpoint import Checkpoint, CheckpointError, Saved
from hbm_jax.inference.sampler.ensemble.statistics import element_statistics, superchains_of
from hbm_jax.inference.sampler.kernels.protocol import Block
from hbm_jax.inference.sampler.progress import DrawingLine, ProgressLine, duration, rate
from hbm_jax.inference.sampler.stopping import MIN_SAMPLES, StopRule
from hbm_jax.inference.sampler.warmup.lost_chains import LostChains, with_restarted
from hbm_jax.inference.verdict import diagnose_sampled, groups_of_chains

SECONDS_PER_BLOCK = 1.0
# Largest length of a block, in SECONDS_PER_BLOCK. Blocks grow with the age of a run, so that a long run does not write
# ten thousand files.
LONGEST_BLOCK = 20.0
FIRST_BLOCK = 50  # draws
FEWEST_DRAWS = 4  # per chain, for diagnostics and a `Fit`
# Draws per chain, before the first check for convergence, at which an adaptive run ends if more than this fraction of
# the transitions diverged.
DIVERGENCE_CHECKS, MANY_DIVERGENCES = (100, 200, 400), 0.01


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or the end of the time budget, before a `Fit` exists; the message says how to resume."""

    def __init__(self, reason: str, resume_hint: str = ""):
        super().__init__(f"{reason}{resume_hint}")
        self.reason = reason


class Loop:
    """Sampling of one run in blocks, with progress line, checkpoint and stopping rule."""

    def __init__(
        self,
        chains: Chains,
        draws: Draws,
        progress_line: ProgressLine,
        rule: StopRule,
        num_warmup: int,
        store: Checkpoint | None,
        start_time: float,
        check_now: bool,
    ):
        self.chains, self.draws, self.rule, self.store = chains, draws, rule, store
        self.progress_line, self.drawing_line = progress_line, DrawingLine(progress_line, chains.target.labels)
        self.num_warmup, self.warmed = num_warmup, 0
        self.lead = chains.target.processes.lead  # evaluates a decision in process 0, with one result for all
        self.next_check = chains.sampler.first_check or MIN_SAMPLES
        self.check_now = False  # as early as a run is checked first
        self.start_time = start_time
        self.seconds_per_draw = SECONDS_PER_BLOCK / FIRST_BLOCK
        self.seconds_before = 0.0  # duration of earlier sessions
        self.ended = False
        self.drawing = False  # whether this session has drawn a block
        # Warm-up blocks of a run without checkpoint, for `save_warm_up` if the time budget ends the warm-up.
        self.unsaved: list[Block] = []
        self.lost = LostChains(chains.num_warmup if chains.restarts_lost else 0)
        self.notes: list[str] = []  # for the verdict
        self.checked: tuple[int, dict[str, np.ndarray]] = (0, {})  # draws at the last check, statistics of the sites
        if store is not None:
            self._restore_blocks(store, check_now)

    def _restore_blocks(self, store: Checkpoint, check_now: bool):
        """Read the blocks of earlier sessions and restore the state of the sampler."""
        last = None
        for saved in store.blocks():
            last = saved
            if saved.warmup and self.lost.due:
                self.chains.adaptation.leave_out(self._lost_chains())
            self.chains.count_draws(saved.block)
            if saved.warmup:
                self._count_warm_up(saved.block)
            else:
                self.draws.blocks.append(saved.block)
        if last is None:
            return
        if self.chains.count <= self.chains.num_warmup and not self.chains.adaptation.has_gradients:
            raise CheckpointError(
                f"{store.folder}: expected the gradients of the {self.warmed} warm-up draws, from which the warm-up "
                "continues; found none. A run that an older version of hbm_jax interrupted in its warm-up cannot be "
                "resumed: start it again in another folder."
            )
        try:
            self.chains.restore(last.state)
        except ValueError as error:
            raise CheckpointError(
                f"{store.folder}: {error} Resume with that version, or start the run again in another folder."
            ) from None
        self.seconds_before = last.progress["seconds"]
        self.seconds_per_draw = last.progress["seconds_per_draw"]
        self.next_check = self.draws.num_draws if check_now else int(last.progress["next_check"])
        self.check_now = check_now
        self.progress_line.show(f"resumed after {self.warmed} warm-up draws and {self.draws.num_draws} draws")

    @property
    def seconds(self) -> float:
        """Duration of the run in seconds, over all sessions."""
        return self.seconds_before + time.perf_counter() - self.start_time

    @property
    def _seconds_left(self) -> float:
        """Remaining time budget of this session in seconds; infinite without a budget."""
        limit = self.rule.max_seconds
        return np.inf if limit is None else limit - (time.perf_counter() - self.start_time)

    @property
    def _out_of_time(self) -> bool:
        """True if the time budget is spent; False before the first block, so that every session makes progress."""
        return self.rule.max_seconds is not None and self.drawing and self.lead(lambda: self._seconds_left <= 0)

    def _draw_block(self, max_draws: int, warmup: bool) -> Block:
        """Draw one block of at most ``max_draws`` draws, and save it."""
        seconds = SECONDS_PER_BLOCK * min(max(1.0, self.seconds / 100), LONGEST_BLOCK)
        seconds = min(seconds, max(self._seconds_left, 0.0 if self.drawing else SECONDS_PER_BLOCK))
        length = np.clip(seconds / self.seconds_per_draw, 1, min(max_draws, self.chains.buffer))
        length = self.lead(lambda: int(length))
        started = time.perf_counter()
        block = self.chains.advance(length)
        self.drawing = True
        self.seconds_per_draw = (time.perf_counter() - started) / block.energy.shape[1]
        if warmup:
            self._count_warm_up(block)
        else:
            self.draws.blocks.append(block)
        if self.store is not None:
            self._write(self.store, block, warmup)
        elif warmup and self.rule.max_seconds is not None:
            self.unsaved.append(block)
        return block

    def _count_warm_up(self, block: Block) -> None:
        """Count the draws of a warm-up block, and keep it for the comparison of the chains."""
        self.warmed += block.energy.shape[1]
        self.lost.add(block)

    def _lost_chains(self) -> dict[int, int]:
        """Return the chains to restart, each with the chain from which it is restarted."""
        return self.lost.compare(self.chains.start.metric.from_position)

    def _write(self, store: Checkpoint, block: Block, warmup: bool):
        """Write a block, with the state of sampler and loop, to a checkpoint."""
        progress = {"seconds": self.seconds, "seconds_per_draw": self.seconds_per_draw, "next_check": self.next_check}
        store.write_block(Saved(block, self.chains.state_arrays(), warmup, progress))

    def save_warm_up(self, store: Checkpoint):
        """Write the warm-up blocks so far to a checkpoint, and use it from now on."""
        for block in self.unsaved:
            self._write(store, block, warmup=True)
        self.store = store

    def warm_up(self):
        """Adapt step size and metric.

        Raises
        ------
        Interrupted
            On Ctrl-C, or when the time budget ends; its attribute `reason` describes it, with the number of draws.
        """
        reason = "interrupted"
        try:
            while self.warmed < self.num_warmup:
                if self._out_of_time:
                    reason = f"the time budget of {self.rule.max_seconds:g} s ended"
                    raise KeyboardInterrupt
                if self.lost.due:
                    lost = self._lost_chains()
                    self.chains.adaptation.leave_out(lost)
                    self.chains.state = with_restarted(self.chains.state, lost)
                block = self._draw_block(self.lost.draws_before_comparison(self.num_warmup - self.warmed), warmup=True)
                seconds_left = (self.num_warmup - self.warmed) * self.seconds_per_draw
                self.progress_line.show(
                    f"warm-up {self.warmed}/{self.num_warmup}, {rate(len(block.energy) / self.seconds_per_draw)}, "
                    f"{duration(seconds_left)} left"
                )
        except KeyboardInterrupt:
            raise self.interrupted(f"{reason} after {self.warmed} of {self.num_warmup} warm-up draws") from None
        self.unsaved.clear()

    def interrupted(self, reason: str) -> Interrupted:
        """Return the exception for an interrupted run, whose message includes how to resume it."""
        return Interrupted(reason, self.resume_hint)

    @property
    def resume_hint(self) -> str:
        """Clause on how to resume an interrupted run."""
        if self.store is None:
            return "; nothing was saved, because sample was called without checkpoint=DIR."
        return f'; hbm_jax.resume("{self.store.folder}") continues from there.'

    def draw(self) -> str:
        """Draw until the stopping rule is met, and return the reason for stopping."""
        if self.rule.adaptive and (self.check_now or not self.draws.num_draws):
            first = self.chains.sampler.first_check or self.rule.first_check(
                self.chains.cost_of_draw(), self.chains.start.nearly_normal
            )
            self.next_check = max(first, self.draws.num_draws)
        try:
            while True:
                reason = self._reason_to_stop()
                if reason:
                    self.ended = True
                    return reason
                if self._out_of_time and self.draws.num_draws >= FEWEST_DRAWS:
                    return f"stopped: the time budget of {self.rule.max_seconds:g} s is spent"
                next_stop = self.rule.largest_num_samples
                if self.rule.adaptive:
                    next_stop = min(
                        next_stop, self.next_check, *(n for n in DIVERGENCE_CHECKS if n > self.draws.num_draws)
                    )
                block = self._draw_block(next_stop - self.draws.num_draws, warmup=False)
                draws_per_second = len(block.energy) / self.seconds_per_draw
                self.drawing_line.show(self.draws, self.chains.num_superchains, draws_per_second, self._seconds_to_end)
        except CheckpointError as error:
            # Return the draws in memory, although the last block is not on disk.
            if self.draws.num_draws < FEWEST_DRAWS:
                raise
            return f"stopped because {error}"
        except KeyboardInterrupt:
            if self.draws.num_draws < FEWEST_DRAWS:
                raise self.interrupted("interrupted before the first draws") from None
            return "interrupted"

    def _seconds_to_end(self, smallest_ess: float) -> float:
        """Return the estimated time until the rule ends the run, in seconds."""
        return self.seconds_per_draw * self.rule.remaining_draws(self.draws.num_draws, smallest_ess, self.next_check)

    def _reason_to_stop(self) -> str | None:
        """Return the reason to stop, or None.

        The numbers of draws at which an adaptive run is checked do not depend on the lengths of its blocks.
        """
        num_draws, largest, adaptive = self.draws.num_draws, self.rule.largest_num_samples, self.rule.adaptive
        if adaptive and num_draws in DIVERGENCE_CHECKS and self.draws.raw("diverging").mean() > MANY_DIVERGENCES:
            return self._stopped_by_divergences()
        if adaptive and num_draws >= max(FEWEST_DRAWS, min(self.next_check, largest)):
            shortfall, immobile, in_different_modes = self.lead(self._check_convergence)
            if immobile:
                return f"stopped: {immobile}"
            if shortfall <= 1.0:
                return self.rule.reason_converged
            if num_draws < largest and self.draws.raw("diverging").any():
                return self._stopped_by_divergences()
            if num_draws < largest and in_different_modes:
                self._note_decided("chains in different modes")
                return "stopped: chains in different modes decide the verdict"
            self.next_check = self.rule.next_check(num_draws, shortfall)
        return self.rule.reason_exhausted if num_draws >= largest else None

    def _stopped_by_divergences(self) -> str:
        """Return the reason to stop because of divergences, which more draws cannot remove, and add a note."""
        self._note_decided("divergent transitions")
        return f"stopped: {int(self.draws.raw('diverging').sum())} divergent transitions decide the verdict"

    def _note_decided(self, cause: str) -> None:
        """Add a note that something decided the verdict before the end of the run."""
        self.notes.append(
            f"sampling ended after {self.draws.num_draws} draws per chain, because {cause} had decided the verdict"
        )

    def _check_convergence(self) -> tuple[float, str, bool]:
        """Diagnose the draws so far.

        Returns
        -------
        float
            Required number of draws, relative to the current one.
        str
            Description of parameters that never moved or moved in coarse steps; empty without any.
        bool
            True if the chains are in different modes. False if ``until`` names parameters: modes of others do not
            end the run.
        """
        posterior = _posterior(self.draws)
        labels = list(self.chains.target.labels)
        position = xr.DataArray(self.draws.raw("position"), {"parameter": labels}, ["chain", "draw", "parameter"])
        num_superchains = self.chains.num_superchains
        known = {name: element_statistics(variable, num_superchains) for name, variable in posterior.items()}
        self.checked = self.draws.num_draws, known
        sampled = diagnose_sampled(posterior, position, num_superchains=num_superchains, known=known)
        immobile = ""
        for names, problem in ((sampled.stuck, "never moved"), (sampled.coarse, "moved in coarse steps")):
            if names and not immobile:
                immobile = f"{', '.join(names[:5])} {problem}"
        in_different_modes = not isinstance(self.rule.until, Mapping) and groups_of_chains(
            superchains_of(posterior, num_superchains), sampled.table
        )
        num_draws = MIN_SAMPLES if num_superchains else self.draws.num_draws  # no larger margin for superchains
        return self.rule.shortfall(sampled.table, num_draws), immobile, bool(in_different_modes)

    @property
    def statistics(self) -> dict[str, np.ndarray]:
        """Statistics of the sites, as in `hbm_jax.inference.verdict.diagnose`; empty if draws came after the check."""
        num_draws, known = self.checked
        return known if num_draws == self.draws.num_draws else {}


def _posterior(draws: Draws) -> dict[str, xr.DataArray]:
    """Return the draws so far of every site."""
    return {
        name: xr.DataArray(value, dims=["chain", "draw", *(f"{name}_{i}" for i in range(value.ndim - 2))])
        for name, value in draws.sites().items()
    }
