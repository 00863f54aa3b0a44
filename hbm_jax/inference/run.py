"""One run of `hbm_jax.sample`: its settings, its phases from tracing to judging, and its checkpoint."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np

from hbm_jax.inference.batch.chees import operations
from hbm_jax.inference.blinding.blinding import Blinding
from hbm_jax.inference.centering.location_scale import with_partial_centring
from hbm_jax.inference.centering.pilot import choose_centering
from hbm_jax.inference.compilation.devices import advice
from hbm_jax.inference.distributed import Processes, number_of_objects, split_over_processes
from hbm_jax.inference.options import RunOptions, field_names, selected
from hbm_jax.inference.program import arrays_of_reparametrisations, bound_args, chooses_centering, padded_of
from hbm_jax.inference.results import UNOBSERVED, Fit, ResultsError, assemble, describe, provenance
from hbm_jax.inference.sampler.chains import Chains, Draws
from hbm_jax.inference.sampler.checkpoint import RUN_ID, START, Checkpoint, CheckpointError
from hbm_jax.inference.sampler.fingerprint import identify
from hbm_jax.inference.sampler.given_start import given_start
from hbm_jax.inference.sampler.initialisation import Start, choose_start
from hbm_jax.inference.sampler.kernels.protocol import Sampler
from hbm_jax.inference.sampler.kernels.selection import REPLACED, options_of, sampler_of
from hbm_jax.inference.sampler.loop import Interrupted, Loop
from hbm_jax.inference.sampler.progress import Progress, ProgressLine
from hbm_jax.inference.sampler.stopping import StopRule
from hbm_jax.inference.sampler.target import OneProcess, Padded, Target, build_target
from hbm_jax.inference.storage import arrays_of, check_storable
from hbm_jax.inference.verdict import LOOK
from hbm_jax.xla_options import QUICK

SAME_DENSITY = 1e-6  # relative and absolute tolerance on the log density at the start when a run is resumed
PADDING = "padding"  # in a checkpoint: whether the data are padded to sizes in steps


@dataclass(frozen=True)
class Settings:
    """Options of a run, its sampler, its stopping rule, and the labels of its draws."""

    run: RunOptions
    sampler: Sampler
    rule: StopRule
    dims: Mapping[str, list[str]] | None = None
    coords: Mapping[str, Any] | None = None
    blind: Blinding | None = None

    def options(self) -> dict[str, Any]:
        """Return the options that determine the draws as flat plain values."""
        return asdict(self.run) | options_of(self.sampler)

    def to_run(self) -> dict[str, Any]:
        """Return entries for the description of a run in a checkpoint, beside its fingerprints."""
        blind = {} if self.blind is None else {"blind": asdict(self.blind)}
        return {"stop": self.rule.to_dict(), "dims": self.dims, "coords": self.coords} | blind

    @classmethod
    def from_run(cls, run: Mapping[str, Any]) -> "Settings":
        """Return the settings stored in a checkpoint, by this or an earlier version; raise ValueError for others."""
        options = run["options"]
        unknown = set(options) - {"sampler", *REPLACED, *field_names(RunOptions)}
        if unknown:
            raise ValueError(f"unknown options: {', '.join(map(repr, sorted(unknown)))}")
        options, rule = RunOptions(**selected(options, RunOptions)), StopRule(**run["stop"])
        stored = run.get("blind")
        blind = None if stored is None else Blinding(**stored | {"names": tuple(stored["names"])})
        return cls(options, sampler_of(run["options"]), rule, run.get("dims"), run.get("coords"), blind)


@dataclass
class Run:
    """One run: program, arguments and settings, and the methods of its phases.

    Attributes
    ----------
    program, args
        The program and its arguments. Labels, fingerprints and stored data are those of the arguments; the program is
        traced with `bound`.
    settings : Settings
        Options of the run.
    processes : OneProcess
        The processes that evaluate the density.
    split : str, int or None
        Plate, or number of objects, that is split over the processes.
    progress : bool or callable
        Whether to show the progress line.
    store : Checkpoint or None
        Its checkpoint.
    init
        Start given by the user, as in `hbm_jax.sample`; None for a search.
    """

    program: Callable
    args: tuple
    settings: Settings
    processes: OneProcess
    split: str | int | None
    progress: Progress
    store: Any = None
    init: Any = None
    timing: dict[str, float] = field(default_factory=dict, init=False)
    centering_note: str = field(default="", init=False)

    @cached_property
    def bound(self) -> tuple:
        """Arguments with which the program is traced."""
        return bound_args(self.program, self.args)

    def describe_in(self, store) -> None:
        """Write options, fingerprints, provenance and data of a new run to a checkpoint."""
        run = identify(self.program, self.args, self.settings.options()) | self.settings.to_run()
        run |= {"about": describe(self.program, self.args[0] if self.args else None), "begun": provenance()}
        store.begin(run, arrays_of(self.args[0]) if self.args else None)

    def fit(self, check_now: bool = False) -> Fit:
        """Start or continue the run, and return its fit; ``check_now`` checks for convergence before the first draw."""
        self.start_time = self._lap_start = time.perf_counter()
        in_double = jax.enable_x64(self.settings.run.dtype == "float64")
        with (
            ProgressLine(self.progress if self.processes.leads else False) as self.progress_line,
            in_double,
            self.processes.listening(),
        ):
            key_target, key_start, key_chains = _keys(np.int64(self.settings.run.seed))
            stored = None if self.store is None else self.store.read_start()
            program = self._reparametrise(stored)
            target = self._trace(program, stored, key_target)
            start = self._choose_start(target, stored, key_start)
            chains, draws, arrays = self._compile(program, target, start, key_chains)
            if self.store is not None:
                _save_or_check_start(self.store, arrays, stored)
            loop = Loop(
                chains,
                draws,
                self.progress_line,
                self.settings.rule.at_most(chains.max_draws),
                chains.num_warmup_draws,
                self.store,
                self.start_time,
                check_now,
            )
            with self.processes.drawing(), _keeping_draws(chains, draws, loop):
                self._warm_up(loop, arrays)
                stopped = loop.draw()
                self._record_duration("sampling")
            with _keeping_draws(chains, draws, loop):
                fit = self._assemble(program, loop, start, stopped)
            hint = "" if self.store is None or loop.ended else f'; hbm_jax.resume("{self.store.folder}") continues'
            rate = f"{len(chains.step_size)} x {draws.num_draws} draws in {self.timing['sampling']:.1f} s"
            self.progress_line.close(f"{stopped}: {rate}{hint}")
        return fit

    def _record_duration(self, phase: str) -> None:
        """Record the duration of a phase."""
        now = time.perf_counter()
        self.timing[phase], self._lap_start = now - self._lap_start, now

    def _check(self, program: Callable, target: Target) -> None:
        """Raise ValueError if draws of the target cannot be stored, or the stopping rule names none of its sites."""
        self.settings.rule.check_names(target.names)
        if self.settings.blind is not None:
            self.settings.blind.require_sites(target.shapes)
        check_storable(program, self.args, target, self.settings.dims, self.settings.coords)
        describe(program, self.args[0] if self.args else None)

    def _reparametrise(self, stored: Mapping[str, np.ndarray] | None) -> Callable:
        """Return the program with the partial non-centring of its latents, from the checkpoint or a pilot run."""
        options = self.settings.run
        enabled = chooses_centering(self.program) if options.centering is None else options.centering
        program = self.program
        if enabled and stored is not None:
            program, self.centering_note = with_partial_centring(program, stored), "as chosen when the run was started"
        elif enabled:
            self._check(program, build_target(program, self.bound, None))
            self.progress_line.show("choosing the partial non-centring of each latent")

            def pilot():
                centering = choose_centering(program, self.bound, options.seed)
                if centering.program is program:
                    return {}, centering.note
                return arrays_of_reparametrisations(centering.program), centering.note

            arrays, self.centering_note = self.processes.lead(pilot)
            program = with_partial_centring(program, arrays)
        self._record_duration("centering")
        return program

    def _padded(self, program: Callable, stored: Mapping[str, np.ndarray] | None) -> Padded | None:
        """Return padded data, with which compiled programs serve data of other sizes; None where nothing is padded.

        Nothing is padded for several processes, for a given start, for latents whose non-centring was chosen, and for a
        checkpoint without padding.
        """
        unpadded = stored is not None and not bool(stored.get(PADDING, False))
        given = self.init is not None or self.split is not None or program is not self.program
        padded = None if unpadded or given else padded_of(program, self.bound)
        return None if padded is None else Padded(*padded)

    def _trace(self, program: Callable, stored: Mapping[str, np.ndarray] | None, key: jax.Array) -> Target:
        """Trace the program."""
        self.progress_line.show("tracing the model")
        target = replace(
            build_target(program, self.bound, key, self._padded(program, stored)), processes=self.processes
        )
        if isinstance(self.processes, Processes) and self.split is not None:
            target = split_over_processes(target, number_of_objects(program, self.bound, self.split), self.processes)
        self._check(program, target)
        self._record_duration("trace")
        return target

    def _choose_start(self, target: Target, stored: Mapping[str, np.ndarray] | None, key: jax.Array) -> Start:
        """Return starting points and metric, from the checkpoint or by searches."""
        if stored is not None:
            start = _stored_start(stored)
        else:
            self.progress_line.show(f"searching for starting points ({len(target.real_labels)} parameters)")
            num_chains = self.settings.sampler.num_starts(self.settings.run.num_chains)
            if self.init is not None:
                start = given_start(target, self.init, num_chains)
            else:
                choose = choose_start
                if (num_searches := self.settings.sampler.num_searches) is not None:
                    choose = partial(choose_start, num_searches=num_searches)
                start = self.processes.choose_start(choose, target, num_chains, key)
        self._record_duration("start")
        return start

    def _compile(self, program: Callable, target: Target, start: Start, key: jax.Array):
        """Return compiled chains and draws, and the arrays of the start for the checkpoint."""
        num_warmup = self.settings.run.num_warmup
        if num_warmup is None:
            close, informed, uninformed = self.settings.sampler.warmups
            num_warmup = (close if start.nearly_normal else informed) if start.informed else uninformed
        self.progress_line.show("compiling the sampler")
        sampler, draws = self.settings.sampler.chosen(start.nearly_normal), Draws(target)
        numbers = self.settings.run.num_chains, self.settings.rule.largest_num_samples
        chains = sampler.chains(target, start, num_warmup, key, *numbers)
        if chains is None:
            chains = Chains(target, start, num_warmup, sampler, key)
        draws.compile()
        self._record_duration("compile")
        arrays = {"potential": chains.start_potential, PADDING: np.asarray(len(target.sizes) > 0)}
        return chains, draws, start.to_arrays() | arrays | arrays_of_reparametrisations(program)

    def _warm_up(self, loop: Loop, start_arrays: Mapping[str, np.ndarray]) -> None:
        """Warm up; if the time budget ends a warm-up without checkpoint, save it to a temporary checkpoint."""
        try:
            loop.warm_up()
        except Interrupted as interruption:
            if not loop.unsaved or self.split is not None:
                raise
            with contextlib.closing(Checkpoint(tempfile.mkdtemp(prefix="hbm_jax-"))) as new_store:
                self.describe_in(new_store)
                _save_or_check_start(new_store, start_arrays, None)
                loop.save_warm_up(new_store)
            raise loop.interrupted(interruption.reason) from None
        self._record_duration("warmup")

    def _assemble(self, program: Callable, loop: Loop, start: Start, stopped: str) -> Fit:
        """Assemble and judge the draws."""
        chains, draws = loop.chains, loop.draws
        unobserved, device = "" if chains.target.observed else UNOBSERVED, _device_caution(chains)
        sampler_notes = chains.sampler.notes(chains.fitted)
        fit = assemble(
            program,
            self.args,
            self.bound,
            target=chains.target,
            sites=draws.sites(),
            sample_stats=_sample_stats(chains, draws),
            positions=chains.target.without_padding(draws.raw("position")),
            dims=self.settings.dims,
            coords=self.settings.coords,
            cautions=tuple(
                filter(None, (start.caution, *loop.lost.notes, *loop.notes, *sampler_notes, unobserved, device))
            ),
            timing=self.timing,
            run=self._record(chains, draws, start, stopped),
            blinding=self.settings.blind,
            known=loop.statistics,
        )
        vars(fit)["bound_args"] = self.bound  # the value of a cached property
        if self.store is not None and fit.blinding is not None:  # more draws have the same shifts
            self.store.update(blind=asdict(fit.blinding))
        self._record_duration("judging")
        fit.note_timing(self.timing)
        return fit

    def _record(self, chains: Chains, draws: Draws, start: Start, stopped: str) -> dict[str, Any]:
        """Return the options and the outcome of the run, for `Fit.run`."""
        run = self.settings.options() | {
            "num_warmup": chains.num_warmup,
            "num_samples": draws.num_draws,
            "num_devices": chains.num_devices,
            **({} if self.split is None else {"split": self.split}),
            "start": start.note,
            **({"modes": f"{start.modes} ({LOOK} looks for more)"} if start.modes else {}),
            **({"trajectories": chains.sampler.name} if chains.sampler.name != self.settings.sampler.name else {}),
            **chains.sampler.outcome(chains.fitted),
            **({"centering_note": self.centering_note} if self.centering_note else {}),
            "stopped": stopped,
        }
        return run | ({} if self.store is None else {"checkpoint": str(self.store.folder), RUN_ID: self.store.run_id})


@partial(jax.jit, compiler_options=QUICK)  # one program in place of one per operation
def _keys(seed: np.int64) -> tuple[jax.Array, ...]:
    """Return the random keys of tracing, of the start and of the chains."""
    return tuple(jax.random.split(jax.random.key(seed), 3))


def _sample_stats(chains: Chains, draws: Draws) -> dict[str, np.ndarray]:
    """Return the sampler statistics of each draw, with the names of ArviZ."""
    num_steps = draws.raw("num_steps")
    depth = {"tree_depth": np.ceil(np.log2(num_steps + 1)).astype(int)} if chains.sampler.equal_steps else {}
    return {
        "diverging": draws.raw("diverging"),
        "energy": draws.raw("energy"),
        "lp": -draws.raw("potential_energy"),
        "n_steps": num_steps,
        "acceptance_rate": draws.raw("accept_prob"),
        **depth,
        "step_size": np.broadcast_to(chains.step_size[:, None], draws.raw("energy").shape),
    }


@contextlib.contextmanager
def _keeping_draws(chains: Chains, draws: Draws, loop: Loop):
    """Context that adds the draws, or the name of the checkpoint that holds them, to an exception after sampling."""
    try:
        yield
    except (Interrupted, CheckpointError):
        raise
    except KeyboardInterrupt:
        raise loop.interrupted("interrupted while the results were assembled") from None
    except Exception as error:
        if not draws.num_draws:
            raise
        if loop.store is not None:
            error.add_note(f'All draws are on disk; hbm_jax.resume("{loop.store.folder}") continues from there.')
            raise
        raise ResultsError(
            f"sample: expected results of {draws.num_draws} draws per chain; found {type(error).__name__}: {error}. "
            "The draws are in the attribute `draws` of this error.",
            {"position": draws.raw("position")} | _sample_stats(chains, draws),
            chains.target.labels,
        ) from error


def _device_caution(chains: Chains) -> str:
    """Return a caution if the density is too small for the accelerator in use, else an empty string."""
    platform, target = jax.devices()[0].platform, chains.target
    if platform == "cpu":
        return ""
    value_and_grad = jax.vmap(jax.value_and_grad(target.potential))
    return advice(platform, operations(value_and_grad, target.size, len(chains.step_size)))


def _stored_start(arrays: Mapping[str, np.ndarray]) -> Start:
    """Return starting points and metric of a checkpoint; raise CheckpointError if any of its arrays is missing."""
    try:
        if "potential" not in arrays:
            raise KeyError("potential")
        return Start.from_arrays(arrays)
    except KeyError as error:
        raise CheckpointError(
            f"{START}: expected starting points and metric; found no {error}. It is damaged."
        ) from None


def _save_or_check_start(store: Checkpoint, start_arrays: Mapping[str, np.ndarray], stored):
    """Save the start of a new run; for a resumed run, check that the log density there has not changed."""
    if stored is None:
        store.write_start(dict(start_arrays))
        return
    potential, stored_potential = start_arrays["potential"], stored["potential"]
    if not np.allclose(potential, stored_potential, rtol=SAME_DENSITY, atol=SAME_DENSITY):
        worst = int(np.argmax(np.nan_to_num(np.abs(potential - stored_potential), nan=np.inf)))
        raise CheckpointError(
            f"{store.folder}: expected a log density of {-stored_potential[worst]:.9g} at the starting point of chain "
            f"{worst}, as when the run was started; found {-potential[worst]:.9g}. Something that the program "
            "uses has changed."
        )
