"""Many independent posteriors in one compiled program.

Objects wait in a queue and take turns in a fixed number of places (`lanes`); whoever is good, or has spent the budget,
leaves, and the next one moves in. Nothing is shared between objects but the program, so one that fails is marked and
spoils nothing.
"""

import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import jax
import numpy as np

from hbm_jax.inference import verdict
from hbm_jax.inference.batch import executor as tasks
from hbm_jax.inference.batch.chees import Options
from hbm_jax.inference.batch.diagnostics import diagnose_many
from hbm_jax.inference.batch.results import Fits, element_labels
from hbm_jax.inference.batch.slots import BLOCK, Lanes
from hbm_jax.inference.batch.stacking import Stack, objects_of, stack
from hbm_jax.inference.results import UNOBSERVED, bounds_of, notes_before
from hbm_jax.inference.sampler.progress import LiveLine

INTERRUPTED = "interrupted before it was done"
MEMORY = 2e9  # bytes that draws of a block, and of objects under way, may take
MIN_SAMPLES = 200  # draws a chain before an object is judged for the first time
GROWTH = 1.4  # draws at the next judgement, relative to this one
SHORTER = 4  # times that the step is halved and the draws begin anew, where some diverge


class Done(NamedTuple):
    """What is kept of an object.

    Attributes
    ----------
    number : int
        Which object.
    sites : dict of str to array
        For each site (..., statistic): quantiles 16, 50, 84 %, mean, standard deviation, R-hat, bulk and tail ESS.
    num_draws, num_divergences : int
        Over all chains.
    bfmi : float
        Smallest E-BFMI over chains.
    num_steps : float
        Leapfrog steps a draw.
    why : str
        Empty if usable.
    notes : tuple of str
        As of a `Verdict`.
    draws : dict of str to array or None
        (chain, draw, ...), where they were asked for.
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


def fit_each(
    program: Callable,
    data: Any,
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
    num_chains: int = 8,
    num_warmup: int = 300,
    num_samples: int | None = None,
    until: float = verdict.MIN_ESS,
    max_num_samples: int = 2000,
    target_accept_prob: float = 0.8,
    max_steps: int = 256,
    dtype: str = "float64",
    keep_draws: bool | Sequence[str] = False,
    max_bytes: float = MEMORY,
    num_lanes: int | None = None,
    executor: Executor | None = None,
    progress: bool = True,
) -> Fits:
    """Sample the posterior of every object of a population on its own.

    Parameters
    ----------
    program : callable
        A NumPyro program of one object's data. The arrays that differ between objects are traced; what is equal in all
        of them stays concrete.
    data : list, or a pytree of arrays
        One entry for each object: its first argument, or a tuple of all its arguments. Or arrays that all have the
        objects along their first axis. Objects may differ in the number of data: shorter ones are padded, and the
        padding does not count. That is checked, by the log density of an object with and without it: the entries of
        data and of latents along them have to be independent of each other.
    names : sequence of str, optional
        Names of the objects; their numbers otherwise.
    seed : int
        Seed; the draws of an object depend, but for rounding, on it and on the object's place in ``data`` alone.
    num_chains, num_warmup : int
        Chains of each object, and their warm-up.
    num_samples : int, optional
        Draws a chain, exactly (rounded up to a multiple of 50). Where omitted, each object is drawn until it is usable.
    until : float
        Effective sample size, bulk and tail, at which an object is usable. R-hat of chains with few effective draws is
        larger than 1 by chance alone: less than 400 are judged by a bound that is wider in proportion.
    max_num_samples : int
        Budget of draws a chain where ``num_samples`` is omitted.
    target_accept_prob : float
        Mean acceptance probability that the step size is adapted to.
    max_steps : int
        Most leapfrog steps a draw.
    dtype : str
        ``"float64"`` or ``"float32"``.
    keep_draws : bool or sequence of str
        Whether to keep the draws, not only their summaries, of every site or of those named.
    max_bytes : float
        Memory that draws under way may take; it sets the number of lanes.
    num_lanes : int, optional
        Objects sampled side by side; by default as many as suit the device and fit into ``max_bytes``.
    executor : concurrent.futures.Executor, optional
        Where to send shares of the objects; this process otherwise. A share whose worker dies is done again.
    progress : bool
        Whether to show the live line.

    Returns
    -------
    Fits
        Summaries and verdicts of all objects. Ctrl-C returns those that are done; the others are marked.

    Raises
    ------
    ValueError
        For options out of range, objects of different structure, or a program in which the padding counts.

    Notes
    -----
    The sampler is Hamiltonian Monte Carlo with trajectories of a learnt common length (`many_chains`): side by side it
    wastes less than NUTS, whose trees differ from draw to draw. Its metric is dense where that costs little beside the
    gradient. Where draws of an object diverge its step is halved and its draws begin anew, four times at most.

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
    _check(num_chains, num_warmup, num_samples, max_num_samples, target_accept_prob, max_steps, dtype)
    objects = objects_of(data)
    whole = stack(objects)
    labels = list(range(len(whole))) if names is None else [str(name) for name in names]
    if len(labels) != len(whole) or len(set(labels)) != len(labels):
        raise ValueError(
            f"fit_each: expected {len(whole)} different names, one for each object; found {len(labels)}, "
            f"{len(set(labels))} of them different."
        )
    notes = [notes_before(program, args) for args in objects]
    options = Options(num_warmup, target_accept_prob, max_steps)
    work = functools.partial(
        _fit_share,
        program,
        seed=seed,
        num_chains=num_chains,
        options=options,
        num_samples=num_samples,
        until=until,
        max_num_samples=max_num_samples,
        dtype=dtype,
        keep_draws=keep_draws,
        max_bytes=max_bytes,
        num_lanes=num_lanes,
    )
    began = time.perf_counter()
    with LiveLine(progress) as live:
        if executor is None:
            done, cost = work(whole, np.arange(len(whole)), live=live)
        else:
            done, cost = tasks.spread(executor, work, whole, live)
        live.close(
            f"{sum(not d.why for d in done)} of {len(whole)} objects usable in {time.perf_counter() - began:.1f} s"
        )
    done = [d._replace(notes=(*notes[d.number], *d.notes)) for d in done]
    return Fits.assemble(labels, done, cost, {"seed": seed, "num_chains": num_chains, "num_warmup": num_warmup})


def _check(num_chains, num_warmup, num_samples, max_num_samples, target_accept_prob, max_steps, dtype):
    for name, value, least in (
        ("num_chains", num_chains, 2),
        ("num_warmup", num_warmup, 50),
        ("num_samples", num_samples, 4),
        ("max_num_samples", max_num_samples, 4),
        ("max_steps", max_steps, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"fit_each: expected {name} >= {least}; found {value}.")
    if not 0 < target_accept_prob < 1:
        raise ValueError(f"fit_each: expected target_accept_prob between 0 and 1; found {target_accept_prob}.")
    if dtype not in ("float64", "float32"):
        raise ValueError(f"fit_each: expected dtype 'float64' or 'float32'; found {dtype!r}.")


def _fit_share(
    program,
    mine: Stack,
    rows: np.ndarray,
    *,
    seed,
    num_chains,
    options: Options,
    num_samples,
    until,
    max_num_samples,
    dtype,
    keep_draws,
    max_bytes,
    num_lanes,
    live=None,
) -> tuple[list[Done], dict[str, float]]:
    """Fit some of the objects in this process; returns what came out and what it cost."""
    live = live or LiveLine(False)
    with jax.enable_x64(dtype == "float64"):
        live.show(f"compiling for {len(rows)} objects")
        keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(seed), int(rows.max()) + 1)))[rows]
        began = time.perf_counter()
        lanes = Lanes(program, mine, num_lanes, num_chains, options, max_bytes)
        if not isinstance(keep_draws, bool):
            unknown = [name for name in keep_draws if name not in (*lanes.target.names, "lp")]
            if unknown:
                raise ValueError(
                    f"fit_each: expected keep_draws among {', '.join(lanes.target.names)}; found {', '.join(unknown)}."
                )
        queue = _Queue(lanes, keys, num_samples, max_num_samples, until, keep_draws, bounds_of(program, lanes.target))
        done: list[Done] = []
        compiled = None
        try:
            while len(done) < len(rows):
                done += queue.turn()
                compiled = compiled or time.perf_counter()
                rate = len(done) / max(time.perf_counter() - compiled, 1e-9)
                left = f", {(len(rows) - len(done)) / rate:.0f} s left" if done else ""
                failed = sum(bool(d.why) for d in done)
                live.show(f"{len(done)}/{len(rows)} objects, {rate:.3g} objects/s, {failed} not usable{left}")
        except KeyboardInterrupt:
            here = {d.number for d in done}
            done += [_nothing(i, INTERRUPTED) for i in range(len(rows)) if i not in here]
    cost = {
        "compile_seconds": (compiled or time.perf_counter()) - began,
        "seconds": time.perf_counter() - began,
        "lanes": lanes.num_lanes,
        "steps": queue.steps,
        "steps_waited_for": queue.waited,
    }
    return [d._replace(number=int(rows[d.number])) for d in done], cost


class _Queue:
    """Objects on their way through the lanes."""

    def __init__(self, lanes: Lanes, keys, num_samples, max_num_samples, until, keep_draws, bounds):
        self.lanes, self.keys, self.until, self.bounds = lanes, keys, until, bounds
        self.keep = set() if keep_draws is False else None if keep_draws is True else set(keep_draws)
        self.exact = num_samples is not None
        self.budget = -(-(num_samples or max_num_samples) // BLOCK) * BLOCK
        self.warmup = -(-lanes.options.num_warmup // BLOCK)  # blocks
        self.next = 0
        self.blocks: list[list] = [[] for _ in range(lanes.num_lanes)]
        self.age = np.zeros(lanes.num_lanes, int)  # blocks, warm-up included
        self.check = np.zeros(lanes.num_lanes, int)  # draws a chain at the next judgement
        self.shorter = np.zeros(lanes.num_lanes, int)  # how often the step was halved
        self.steps = self.waited = 0

    def turn(self) -> list[Done]:
        """Fill empty lanes, advance all by a block, and take out who is done."""
        lanes = self.lanes
        empty = np.flatnonzero(lanes.object < 0)[: len(self.keys) - self.next]
        if len(empty):
            lanes.fill(empty, np.arange(self.next, self.next + len(empty)), self.keys)
            self.next += len(empty)
            self.age[empty] = self.shorter[empty] = 0
            self._begin(empty)
        draws, sites = lanes.advance()
        used = np.flatnonzero(lanes.object >= 0)
        steps = draws.num_steps[used][..., 0]
        self.steps += int(steps.sum())
        self.waited += int(steps.max(0).sum()) * len(used)
        self.age[used] += 1
        for lane in used:
            if self.age[lane] > self.warmup:
                self.blocks[lane].append(jax.tree.map(lambda x, lane=lane: x[lane], (draws, sites)))
        diverging = draws.diverging[used].any(axis=(1, 2)) & (self.age[used] > self.warmup)
        again = used[diverging & (self.shorter[used] < SHORTER)]
        if len(again):
            lanes.shorten(again)
            self.shorter[again] += 1
            self.age[again] = self.warmup
            self._begin(again)
        return self._judge(used, draws)

    def _begin(self, places):
        """Let the draws of some places begin."""
        self.check[places] = self.budget if self.exact else min(MIN_SAMPLES, self.budget)
        for lane in places:
            self.blocks[lane] = []

    def _judge(self, used, draws) -> list[Done]:
        """Judge the lanes that have enough draws; those that are done leave."""
        drawn = (self.age - self.warmup) * BLOCK
        done = []
        # An object without a possible starting point never moves.
        for lane in used:
            if not np.isfinite(draws.potential_energy[lane]).all():
                done.append(_nothing(self._leave(lane), "no starting point with a finite density was found"))
        due = [lane for lane in used if self.lanes.object[lane] >= 0 and drawn[lane] >= self.check[lane]]
        for length in sorted({int(drawn[lane]) for lane in due}):
            group = [lane for lane in due if drawn[lane] == length]
            for lane, result in zip(group, self._summarise(group), strict=True):
                # Divergences that a short step did not prevent stay, however many draws there are.
                if result.why and drawn[lane] < self.budget and not result.num_divergences:
                    self.check[lane] = min(-(-int(GROWTH * length) // BLOCK) * BLOCK, self.budget)
                    continue
                done.append(result._replace(number=self._leave(lane)))
        return done

    def _leave(self, lane: int) -> int:
        index = int(self.lanes.object[lane])
        self.lanes.object[lane] = -1
        self.blocks[lane] = []
        return index

    def _summarise(self, group) -> list[Done]:
        """Statistics of the lanes of a group, which all have the same number of draws."""
        joined = [jax.tree.map(lambda *parts: np.concatenate(parts), *self.blocks[lane]) for lane in group]
        draws, sites = jax.tree.map(lambda *lanes: np.stack(lanes), *joined)
        table = {name: _statistics(values) for name, values in sites.items()}
        labels = np.array([label.split("[")[0] for label in self.lanes.target.labels])
        hidden = {
            name: _statistics(draws.position[..., labels == name])
            for name in dict.fromkeys(labels)
            if name not in sites
        }
        unresolved = _unresolved(draws.position, sites, labels)
        energy = np.swapaxes(draws.energy, 1, 2)
        bfmi = np.min(np.square(np.diff(energy)).mean(-1) / energy.var(-1), axis=1)
        results = []
        for i, lane in enumerate(group):
            cut = functools.partial(self.lanes.without_padding, number=int(self.lanes.object[lane]))
            own = {name: cut(name, values[i], first=0) for name, values in table.items()}
            divergences = int(draws.diverging[i].sum())
            drawn = {
                name: cut(name, np.swapaxes(values[i], 0, 1), first=2)
                for name, values in (*sites.items(), ("lp", -draws.potential_energy))
                if self.keep is None or name in self.keep or name in self.bounds
            }
            kept = {name: values for name, values in drawn.items() if self.keep is None or name in self.keep}
            total = int(np.prod(draws.energy[i].shape))
            judged = own | {name: values[i] for name, values in hidden.items()}
            why = ", ".join(filter(None, (unresolved[i], _why(judged, divergences, float(bfmi[i]), self.until))))
            notes = () if self.lanes.target.observed else (UNOBSERVED,)
            leaning = (
                text
                for name, ends in self.bounds.items()
                if name in drawn
                for text in verdict.edge_notes(element_labels(name, drawn[name].shape[2:]), drawn[name], ends)
            )
            steps = float(draws.num_steps[i].mean())
            results.append(
                Done(-1, own, total, divergences, float(bfmi[i]), steps, why, kept or None, (*notes, *leaning))
            )
        return results


def _statistics(values: np.ndarray) -> np.ndarray:
    """Numbers of `Done.sites` for draws of shape (lane, draw, chain, ...)."""
    ordered = np.moveaxis(values, (2, 1), (-2, -1)).astype(float)  # (lane, ..., chain, draw)
    flat = ordered.reshape(*ordered.shape[:-2], -1)
    quantiles = np.quantile(flat, [0.16, 0.5, 0.84], axis=-1)
    return np.stack([*quantiles, flat.mean(-1), flat.std(-1, ddof=1), *diagnose_many(ordered)], axis=-1)


def _unresolved(positions: np.ndarray, sites: dict[str, np.ndarray], labels: np.ndarray) -> list[str]:
    """Say what each lane's sampled parameters did not resolve; empty where they all did.

    Parameters
    ----------
    positions : (lane, draw, chain, size)
        Unconstrained draws.
    sites : dict of str to array (lane, draw, chain, ...)
        Draws of sites.
    labels : (size,) of str
        Site of each component of the positions.
    """
    num = len(positions)
    names = dict.fromkeys(labels)
    draws = {name: positions[..., labels == name] for name in names}
    # Of plain numbers the values are looked at as well: a transform may lose what the position resolves.
    plain = [n for n in names if n in sites and sites[n][0, 0, 0].size == (labels == n).sum()]
    texts: list[list[str]] = [[] for _ in range(num)]
    for name, values in (*draws.items(), *((name, sites[name]) for name in plain)):
        still, coarse = verdict.resolution(values.reshape(num, -1, (labels == name).sum()))
        for lane in range(num):
            for true, text in ((still[lane].any(), "never moved"), (coarse[lane].any(), "moved in coarse steps")):
                if true:
                    texts[lane].append(f"{name} {text}")
    return [", ".join(dict.fromkeys(found)) for found in texts]


def _why(sites, divergences: int, bfmi: float, until: float) -> str:
    """Why a posterior is not usable, by the rules of `verdict.judge`; empty if it is."""
    r_hat = max((np.nanmax(v[..., 5], initial=1.0) for v in sites.values()), default=1.0)
    ess = min((np.nanmin(v[..., 6:], initial=np.inf) for v in sites.values()), default=np.inf)
    reasons = []
    if not all(np.isfinite(v[..., :5]).all() for v in sites.values()):
        reasons.append("draws that are not finite")
    if r_hat >= 1.0 + (verdict.MAX_R_HAT - 1.0) * max(verdict.MIN_ESS / until, 1.0):
        reasons.append(f"R-hat {r_hat:.3f}")
    if ess < until:
        reasons.append(f"effective sample size {ess:.0f}")
    if divergences:
        reasons.append(f"{divergences} divergences")
    if not bfmi > verdict.MIN_BFMI:
        reasons.append(f"E-BFMI {bfmi:.2f}")
    return ", ".join(reasons)


def _nothing(index: int, why: str) -> Done:
    return Done(index, {}, 0, 0, float("nan"), float("nan"), why, None)
