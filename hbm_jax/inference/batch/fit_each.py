"""Sampling of many independent posteriors in one compiled program.

Objects wait in a queue for a fixed number of slots (`slots`). One that has converged or has spent its budget of draws
leaves its slot to the next. Objects share nothing but the program: one that fails is marked unusable and does not
affect the others.
"""

import functools
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from hbm_jax.inference import verdict
from hbm_jax.inference.arguments import arguments_with_nan, plain_objects
from hbm_jax.inference.batch import executor as tasks
from hbm_jax.inference.batch.chees import Draw, Options
from hbm_jax.inference.batch.diagnostics import diagnose_many, unresolved
from hbm_jax.inference.batch.results import Fits, element_labels
from hbm_jax.inference.batch.slots import BLOCK, Slots
from hbm_jax.inference.batch.stacking import Stack, bound_stack, objects_of
from hbm_jax.inference.options import require_known, with_options
from hbm_jax.inference.program import binds
from hbm_jax.inference.results import UNOBSERVED, bounds_of, notes_without_draws
from hbm_jax.inference.sampler import stopping
from hbm_jax.inference.sampler.progress import Progress, ProgressLine
from hbm_jax.names import renamed_keyword

INTERRUPTED = "interrupted before it was done"
NO_START = "no starting point with a finite density was found"
MEMORY = 2e9  # bytes: limit on the draws of unfinished objects
MIN_DRAWS = 800  # of all chains before the first check for convergence; R-hat is too noisy with fewer
RULE = stopping.StopRule()
MAX_HALVINGS = 4  # of the step size of an object after divergences, each with a restart of its draws


class ObjectResult(NamedTuple):
    """Result for one object.

    Attributes
    ----------
    number : int
        Index of the object.
    sites : dict of str to array
        For each site (..., statistic): quantiles 16, 50, 84 %, mean, standard deviation, R-hat, bulk and tail ESS.
    num_draws, num_divergences : int
        Over all chains.
    bfmi : float
        Smallest E-BFMI over chains.
    num_steps : float
        Mean number of leapfrog steps per draw.
    why : str
        Reasons why the posterior is not usable; empty if it is.
    draws : dict of str to array or None
        Kept draws of each site, (chain, draw, ...); None if none are kept.
    notes : tuple of str
        As in `Verdict`.
    ess : float
        Smallest bulk or tail ESS, of sites that are not kept too.
    """

    number: int
    sites: dict[str, np.ndarray]
    num_draws: int
    num_divergences: int
    bfmi: float
    num_steps: float
    why: str
    draws: dict[str, np.ndarray] | None
    notes: tuple[str, ...] = ()
    ess: float = float("nan")


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """Options of a batch that determine its draws and its memory; `fit_each` documents them."""

    seed: int = 0
    num_chains: int = 4
    num_warmup: int = 300
    num_samples: int | None = None
    until: float = verdict.MIN_ESS
    max_num_samples: int = 2000
    target_accept_prob: float = 0.8
    max_steps: int = 256
    dtype: str = "float64"
    keep_draws: bool | Sequence[str] = False
    max_bytes: float = MEMORY
    num_slots: int | None = None

    def __post_init__(self):
        least = {"num_chains": 2, "num_warmup": 50, "num_samples": 4, "max_num_samples": 4, "max_steps": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ValueError(f"fit_each: expected {name} >= {smallest}; found {value}.")
        if not 0 < self.target_accept_prob < 1:
            raise ValueError(f"fit_each: expected target_accept_prob between 0 and 1; found {self.target_accept_prob}.")
        if self.dtype not in ("float64", "float32"):
            raise ValueError(f"fit_each: expected dtype 'float64' or 'float32'; found {self.dtype!r}.")


@renamed_keyword("num_lanes", "num_slots")
@with_options(BatchOptions)
def fit_each(
    program: Callable,
    data: Any,
    *,
    names: Sequence[str] | None = None,
    executor: Executor | None = None,
    progress: Progress = True,
    **options: Any,
) -> Fits:
    """Sample the posterior of each object of a population independently.

    Parameters
    ----------
    program : callable
        A NumPyro program of the data of one object. Arrays that differ between objects are traced; arguments equal for
        all objects remain concrete. A program with a method ``bind`` is called with the bound data of the object.
    data : list, or a pytree of arrays
        One entry for each object: its first argument, or a tuple of all its arguments. Or arrays that all have the
        objects along their first axis. Objects may differ in the number of data: the shorter ones are padded and the
        padding is masked. This requires that the entries of the data, and of latents along them, are independent of
        each other; it is checked by comparing the log density of an object with and without padding.
    names : sequence of str, optional
        Names of the objects; by default their indices.
    seed : int
        Seed. The draws of an object depend, up to rounding, on the seed and the index of the object in ``data`` alone.
    num_chains, num_warmup : int
        Number of chains of each object, 2 or more, and of warm-up draws per chain, 50 or more.
    num_samples : int, optional
        Draws per chain, rounded up to a multiple of 50. By default each object is sampled until it is usable.
    until : float
        Bulk and tail effective sample size required for an object to be usable. An object is sampled to 10 % more, if
        its budget of draws allows, because the size is an estimate that is checked repeatedly. Below 400,
        the limit on the excess of R-hat over 1 is larger in inverse proportion, because R-hat exceeds 1 by chance.
    max_num_samples : int
        Largest number of draws per chain if ``num_samples`` is omitted.
    target_accept_prob : float
        Mean acceptance probability to which the step size is adapted.
    max_steps : int
        Largest number of leapfrog steps per draw.
    dtype : str
        ``"float64"`` or ``"float32"``.
    keep_draws : bool or sequence of str
        Whether to keep draws besides summaries: of every site, or of the sites named.
    max_bytes : float
        Limit on the memory of the draws of unfinished objects, which limits the number of slots.
    num_slots : int, optional
        Number of slots of the batch, that is, of objects sampled at the same time; by default as many as suit the
        device and fit into ``max_bytes``.
    executor : concurrent.futures.Executor, optional
        Executor that runs tasks of several objects each; by default all run in this process. A task that fails is
        submitted again, three attempts in all.
    progress : bool or callable
        Whether to show a progress line, or a function that is called with its texts.

    Returns
    -------
    Fits
        Summaries and verdicts of all objects. After Ctrl-C, those of the finished objects; the others are marked.

    Raises
    ------
    TypeError
        For an unknown option.
    ValueError
        If an option is out of range, objects differ in structure, or padding changes the log density of the program.
    TaskError
        If a task of an executor failed on three attempts.

    Notes
    -----
    The sampler is Hamiltonian Monte Carlo with an adapted common trajectory length (`batch.chees`). The chains of an
    object take the same number of steps; an object hardly waits for the trajectories of others (`batch.interleaving`).
    The metric is dense if that costs little compared with the gradient. If draws of an object diverge, its step size is
    halved and its draws are restarted, at most four times.

    Examples
    --------
    >>> import numpyro, numpyro.distributions as dist
    >>> def source(counts):
    ...     rate = numpyro.sample("rate", dist.Gamma(2.0, 0.1))
    ...     with numpyro.plate("bin", len(counts)):
    ...         numpyro.sample("counts", dist.Poisson(rate), obs=counts)
    >>> fits = fit_each(source, [np.array([12, 9]), np.array([30, 28, 35])], progress=False)
    >>> float(fits.summary().loc[(1, "rate"), "median"].round(-1))
    30.0
    """
    require_known(fit_each, options)
    settings = BatchOptions(**options)
    objects = objects_of(data) if binds(program) else plain_objects(program, objects_of(data))
    stacked = bound_stack(program, objects)
    labels = list(range(len(stacked))) if names is None else [str(name) for name in names]
    if len(labels) != len(stacked) or len(set(labels)) != len(labels):
        raise ValueError(
            f"fit_each: expected {len(stacked)} distinct names, one for each object; found {len(labels)}, "
            f"of which {len(set(labels))} are distinct."
        )
    notes = [
        notes_without_draws(program, args, stacked.args([leaf[row] for leaf in stacked.leaves]))
        for row, args in enumerate(objects)
    ]
    token = "" if executor is None else uuid.uuid4().hex
    fit_task = functools.partial(_fit_task, program, settings, token)
    start = time.perf_counter()
    with ProgressLine(progress) as progress_line:
        if executor is None:
            results, cost = fit_task(stacked, np.arange(len(stacked)), progress_line=progress_line)
        else:
            results, cost = tasks.run_tasks(executor, fit_task, stacked, progress_line)
        num_usable = sum(not result.why for result in results)
        progress_line.close(f"{num_usable} of {len(stacked)} objects usable in {time.perf_counter() - start:.1f} s")
    for i, result in enumerate(results):
        # Not part of the reason, because equal reasons are counted.
        with_nan = arguments_with_nan(program, objects[result.number]) if result.why == NO_START else ""
        notes_of_object = (*notes[result.number], *result.notes, *([with_nan.strip(". ")] if with_nan else []))
        results[i] = result._replace(notes=notes_of_object)
    run = {name: getattr(settings, name) for name in ("seed", "num_chains", "num_warmup")}
    return Fits.assemble(labels, results, cost, run)


# Slots of the latest call of `fit_each` through an executor that are not in use, by the token of the call: a worker
# compiles once, not for every task.
_idle_slots: dict[str, Slots] = {}


def _slots_for(program, options: BatchOptions, token: str, stacked: Stack) -> Slots:
    """Return slots for a stack of objects: those of an earlier task of the same call if there are any."""
    slots = _idle_slots.pop(token, None)
    if slots is not None:
        slots.replace_stack(stacked)
        return slots
    sampler = Options(options.num_warmup, options.target_accept_prob, options.max_steps)
    return Slots(program, stacked, options.num_slots, options.num_chains, sampler, options.max_bytes)


def _fit_task(
    program, options: BatchOptions, token: str, stacked: Stack, rows: np.ndarray, progress_line=None
) -> tuple[list[ObjectResult], dict[str, float]]:
    """Fit a stack of objects in this process; return their results and the costs.

    ``token`` identifies the call of `fit_each` if it is divided into tasks; otherwise it is empty.
    """
    progress_line = progress_line or ProgressLine(False)
    with jax.enable_x64(options.dtype == "float64"):
        progress_line.show(f"compiling for {len(rows)} objects")
        keys = jax.random.split(jax.random.key(options.seed), int(rows.max()) + 1)
        keys = np.asarray(jax.random.key_data(keys))[rows]
        start = time.perf_counter()
        slots = _slots_for(program, options, token, stacked)
        if not isinstance(options.keep_draws, bool):
            unknown = [name for name in options.keep_draws if name not in (*slots.target.names, "lp")]
            if unknown:
                raise ValueError(
                    f"fit_each: expected keep_draws among {', '.join(slots.target.names)}; found {', '.join(unknown)}."
                )
        queue = _Queue(slots, keys, options, bounds_of(program, slots.target))
        done: list[ObjectResult] = []
        first_block = None
        try:
            while len(done) < len(rows):
                done += queue.advance()
                first_block = first_block or time.perf_counter()
                rate = len(done) / max(time.perf_counter() - first_block, 1e-9)
                remaining = f", {(len(rows) - len(done)) / rate:.0f} s left" if done else ""
                failed = sum(bool(result.why) for result in done)
                progress_line.show(
                    f"{len(done)}/{len(rows)} objects, {rate:.3g} objects/s, {failed} not usable{remaining}"
                )
        except KeyboardInterrupt:
            finished = {result.number for result in done}
            done += [_without_draws(i, INTERRUPTED) for i in range(len(rows)) if i not in finished]
    if token:
        _idle_slots.clear()
        _idle_slots[token] = slots
    cost = {
        "compile_seconds": (first_block or time.perf_counter()) - start,
        "seconds": time.perf_counter() - start,
        "num_slots": slots.num_slots,
        "steps": queue.steps,
        "steps_waited_for": queue.waited,
    }
    return [result._replace(number=int(rows[result.number])) for result in done], cost


class _Queue:
    """Queue of objects that pass through the slots of a batch."""

    def __init__(self, slots: Slots, keys, options: BatchOptions, bounds):
        self.slots, self.keys, self.until, self.bounds = slots, keys, options.until, bounds
        keep_draws, num_samples = options.keep_draws, options.num_samples
        # Names of the sites whose draws are kept; None for all.
        self.keep = None if keep_draws is True else set() if keep_draws is False else set(keep_draws)
        self.exact = num_samples is not None
        self.budget = _whole_blocks(num_samples or options.max_num_samples)
        self.first_check = min(_whole_blocks(MIN_DRAWS / slots.num_chains), self.budget)
        self.warmup = slots.options.num_warmup
        self.next_object = 0
        self.draws: list[list] = [[] for _ in range(slots.num_slots)]
        self.sites: list[list] = [[] for _ in range(slots.num_slots)]  # of whole blocks
        self.age = np.zeros(slots.num_slots, int)  # draws per chain, warm-up included
        self.next_check = np.zeros(slots.num_slots, int)  # draws per chain at the next check
        self.num_halvings = np.zeros(slots.num_slots, int)  # of the step size
        self.steps = self.waited = 0

    def advance(self) -> list[ObjectResult]:
        """Fill empty slots, advance all slots, and return the results of finished objects."""
        slots = self.slots
        empty = np.flatnonzero(slots.object < 0)[: len(self.keys) - self.next_object]
        if len(empty):
            slots.fill(empty, np.arange(self.next_object, self.next_object + len(empty)), self.keys)
            self.next_object += len(empty)
            self.age[empty] = self.num_halvings[empty] = 0
            self._reset_draws(empty)
        is_occupied = slots.object >= 0
        draws, steps, waited = slots.advance(np.where(is_occupied, self.warmup + self.next_check - self.age, 0))
        self.steps += int(steps[is_occupied].sum())
        self.waited += int(waited.max() * is_occupied.sum())  # devices wait for each other at the end of a call
        done = []
        for slot in np.flatnonzero(is_occupied).tolist():
            # The potential remains infinite if no starting point had a finite density.
            if not np.isfinite(draws[slot].potential_energy).all():
                done.append(_without_draws(self._release(slot), NO_START))
            else:
                self._add(slot, draws[slot])
        return done + self._judge()

    def _add(self, slot: int, draws):
        """Add draws (draw, chain, ...) of a slot, or begin anew with smaller steps if some of them diverge."""
        in_warmup = int(np.clip(self.warmup - self.age[slot], 0, len(draws.energy)))
        self.age[slot] += len(draws.energy)
        draws = Draw(*(x[in_warmup:] for x in draws))
        if draws.diverging.any() and self.num_halvings[slot] < MAX_HALVINGS:
            self.slots.shorten(np.array([slot]))
            self.num_halvings[slot] += 1
            self.age[slot] = self.warmup - 1  # the trajectory under way has the former step size
            self._reset_draws([slot])
        elif len(draws.energy):
            self.draws[slot].append(draws)

    def _reset_draws(self, slots):
        """Discard the draws of some slots and schedule their first check."""
        self.next_check[slots] = self.budget if self.exact else self.first_check
        for slot in slots:
            self.draws[slot], self.sites[slot] = [], []

    def _judge(self) -> list[ObjectResult]:
        """Check the slots that have enough draws; release finished objects and return their results."""
        num_drawn = self.age - self.warmup
        due_slots = np.flatnonzero((self.slots.object >= 0) & (num_drawn >= self.next_check))
        self._compute_sites(due_slots)
        done = []
        for num_draws in sorted(set(num_drawn[due_slots].tolist())):
            group = [int(slot) for slot in due_slots if num_drawn[slot] == num_draws]
            for slot, result in zip(group, self._summarise(group), strict=True):
                shortfall = _shortfall(result, self.until)
                # More draws cannot remove divergences.
                if shortfall > 1.0 and num_draws < self.budget and not result.num_divergences:
                    self.next_check[slot] = min(_whole_blocks(RULE.next_check(num_draws, shortfall)), self.budget)
                    continue
                done.append(result._replace(number=self._release(slot)))
        return done

    def _release(self, slot: int) -> int:
        """Empty a slot, and return the index of its object."""
        index = int(self.slots.object[slot])
        self.slots.object[slot] = -1
        self.draws[slot], self.sites[slot] = [], []
        return index

    def _compute_sites(self, due_slots: np.ndarray) -> None:
        """Compute the values of the sites of new draws of some slots, which have whole blocks."""
        rows, blocks = [], []
        for slot in due_slots.tolist():
            position = np.concatenate([draws.position for draws in self.draws[slot]])
            position = position.reshape(-1, BLOCK, *position.shape[1:])[len(self.sites[slot]) :]
            rows += [slot] * len(position)
            blocks += list(position)
        if rows:
            values = self.slots.sites(rows, np.stack(blocks))
            for row, slot in enumerate(rows):
                self.sites[slot].append({name: array[row] for name, array in values.items()})

    def _summarise(self, group) -> list[ObjectResult]:
        """Return the results of a group of slots, which all have the same number of draws."""
        joined = [Draw(*map(np.concatenate, zip(*self.draws[slot], strict=True))) for slot in group]
        draws = Draw(*map(np.stack, zip(*joined, strict=True)))
        names = self.sites[group[0]][0]
        sites = {
            name: np.stack([np.concatenate([part[name] for part in self.sites[slot]]) for slot in group])
            for name in names
        }
        labels = np.array([label.split("[")[0] for label in self.slots.target.labels])
        hidden = {name: draws.position[..., labels == name] for name in dict.fromkeys(labels) if name not in sites}
        site_statistics = _statistics(sites | hidden)
        hidden_statistics = {name: site_statistics.pop(name) for name in hidden}
        for name in sites:  # as in `verdict.diagnose_sampled`
            if name.endswith(verdict.UNWRAPPED) and name.removesuffix(verdict.UNWRAPPED) in sites:
                site_statistics[name][..., 5:] = np.nan
        unresolved_texts = unresolved(draws.position, sites, labels)
        energy = np.swapaxes(draws.energy, 1, 2)
        bfmi = np.min(np.square(np.diff(energy)).mean(-1) / energy.var(-1), axis=1)
        results = []
        for i, slot in enumerate(group):
            without_padding = functools.partial(self.slots.without_padding, number=int(self.slots.object[slot]))
            statistics = {name: without_padding(name, values[i], first=0) for name, values in site_statistics.items()}
            num_divergences = int(draws.diverging[i].sum())
            needed = {
                name: without_padding(name, np.swapaxes(values[i], 0, 1), first=2)
                for name, values in (*sites.items(), ("lp", -draws.potential_energy))
                if self.keep is None or name in self.keep or name in self.bounds
            }
            kept = {name: values for name, values in needed.items() if self.keep is None or name in self.keep}
            num_draws = int(np.prod(draws.energy[i].shape))
            judged = statistics | {name: values[i] for name, values in hidden_statistics.items()}
            reasons = ", ".join(
                filter(None, (unresolved_texts[i], _reasons(judged, num_divergences, float(bfmi[i]), self.until)))
            )
            notes = () if self.slots.target.observed else (UNOBSERVED,)
            edge_notes = (
                text
                for name, bounds in self.bounds.items()
                if name in needed
                for text in verdict.edge_notes(element_labels(name, needed[name].shape[2:]), needed[name], bounds)
            )
            numbers = num_draws, num_divergences, float(bfmi[i]), float(draws.num_steps[i].mean())
            notes = (*notes, *edge_notes)
            results.append(ObjectResult(-1, statistics, *numbers, reasons, kept or None, notes, _smallest_ess(judged)))
        return results


def _whole_blocks(num_draws: float) -> int:
    """Return a number of draws, rounded up to whole blocks."""
    return int(-(-num_draws // BLOCK)) * BLOCK


def _shortfall(result: ObjectResult, until: float) -> float:
    """Return the required number of draws relative to the current one, as `StopRule.shortfall`; 1 if none are needed.

    The effective sample size at which an object is done is 10 % above that required: see `StopRule`.
    """
    factor = stopping.MARGIN * until / max(result.ess, 1.0)
    return max(factor, stopping.GROWTH[0]) if result.why and factor <= 1.0 else factor


def _statistics(sites: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the statistics of `ObjectResult.sites` for draws of each site, (slot, draw, chain, ...).

    All elements are computed together: for single numbers, calls of NumPy take longer than what they compute.
    """
    if not sites:
        return {}
    parts = [values.reshape(*values.shape[:3], -1) for values in sites.values()]
    ordered = np.moveaxis(np.concatenate(parts, axis=-1, dtype=float), (2, 1), (-2, -1))  # (slot, element, chain, draw)
    flat = ordered.reshape(*ordered.shape[:2], -1)
    quantiles = np.quantile(flat, [0.16, 0.5, 0.84], axis=-1)
    table = np.stack([*quantiles, flat.mean(-1), flat.std(-1, ddof=1), *diagnose_many(ordered)], axis=-1)
    tables = np.split(table, np.cumsum([part.shape[-1] for part in parts])[:-1], axis=1)
    return {
        name: of_site.reshape(len(of_site), *values.shape[3:], table.shape[-1])
        for (name, values), of_site in zip(sites.items(), tables, strict=True)
    }


def _reasons(sites, num_divergences: int, bfmi: float, until: float) -> str:
    """Return the reasons why a posterior is not usable, by the criteria of `verdict.judge`; empty if it is usable."""
    r_hat = max((np.nanmax(values[..., 5], initial=1.0) for values in sites.values()), default=1.0)
    ess = _smallest_ess(sites)
    reasons = []
    if not all(np.isfinite(values[..., :5]).all() for values in sites.values()):
        reasons.append("draws that are not finite")
    # R-hat - 1 falls as 1 / ESS, so fewer effective draws than those of the verdict may have a larger R-hat.
    if r_hat >= 1.0 + (verdict.MAX_R_HAT - 1.0) * max(verdict.MIN_ESS / until, 1.0):
        reasons.append(f"R-hat {r_hat:.3f}")
    if ess < until:
        reasons.append(f"effective sample size {ess:.0f}")
    if num_divergences:
        reasons.append(f"{num_divergences} divergences")
    if not bfmi > verdict.MIN_BFMI:
        reasons.append(f"E-BFMI {bfmi:.2f}")
    return ", ".join(reasons)


def _smallest_ess(sites) -> float:
    """Return the smallest bulk or tail ESS; infinite if nothing varies."""
    return float(min((np.nanmin(values[..., 6:], initial=np.inf) for values in sites.values()), default=np.inf))


def _without_draws(index: int, why: str) -> ObjectResult:
    """Return the result of an object without draws."""
    return ObjectResult(index, {}, 0, 0, float("nan"), float("nan"), why, None)
