"""Sample the posterior of a NumPyro program (`sample`), and continue a stopped run from its checkpoint (`resume`)."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import numpy as np

from hbm_jax.inference.batch.chees import operations
from hbm_jax.inference.centering.location_scale import with_partial_centring
from hbm_jax.inference.centering.pilot import centre
from hbm_jax.inference.compilation.devices import advice
from hbm_jax.inference.distributed import number_of_objects, processes_for, split_over_processes
from hbm_jax.inference.options import RunOptions, field_names, require_known, selected, with_options
from hbm_jax.inference.results import UNOBSERVED, Fit, ResultsError, assemble, describe, provenance
from hbm_jax.inference.sampler.chains import Chains, Draws
from hbm_jax.inference.sampler.checkpoint import RUN_ID, START, Checkpoint, CheckpointError
from hbm_jax.inference.sampler.fingerprint import differences, identify
from hbm_jax.inference.sampler.initialisation import Start, choose_start
from hbm_jax.inference.sampler.kernels.nuts import NUTS
from hbm_jax.inference.sampler.kernels.protocol import Sampler
from hbm_jax.inference.sampler.kernels.selection import REPLACED, options_of, sampler_of, without_replaced
from hbm_jax.inference.sampler.loop import Interrupted, Loop
from hbm_jax.inference.sampler.progress import ProgressLine
from hbm_jax.inference.sampler.stopping import StopRule
from hbm_jax.inference.sampler.target import build_target
from hbm_jax.inference.storage import arrays_of, check_storable, plain_labels

DEFAULT_ACCEPT_PROB = 0.8  # of trajectories, where neither sampler nor program gives one
SAME_DENSITY = 1e-6  # relative and absolute tolerance on the log density at the start when a run is resumed


@dataclass(frozen=True)
class Settings:
    """All options that determine the draws of a run."""

    run: RunOptions
    sampler: Sampler

    def to_dict(self) -> dict[str, Any]:
        """Return the options as flat plain values, for fingerprints, checkpoints and `Fit.run`."""
        return asdict(self.run) | options_of(self.sampler)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> "Settings":
        """Return the settings that `to_dict` stored, in this or an earlier version; raise ValueError for others."""
        unknown = set(options) - {"sampler", *REPLACED, *field_names(RunOptions)}
        if unknown:
            raise ValueError(f"unknown options: {', '.join(map(repr, sorted(unknown)))}")
        return cls(RunOptions(**selected(options, RunOptions)), sampler_of(options))


@with_options(RunOptions, StopRule)
def sample(
    program: Callable,
    *args: Any,
    sampler: Sampler | None = None,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = True,
    split: str | int | None = None,
    dims: Mapping[str, list[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
    **options: Any,
) -> Fit:
    """Sample the posterior of a NumPyro program until it has converged.

    Parameters
    ----------
    program : callable
        A model of hbm_jax or any NumPyro program.
    *args
        Arguments of the program; the first is its data.
    sampler : Sampler, optional
        ``hbm_jax.NUTS(...)``, the default, ``hbm_jax.HMC(trajectory_length=...)`` or
        ``hbm_jax.IndependentProposals(...)``, with the options of each.
    seed : int
        Random seed; the same seed on the same machine gives the same draws.
    num_chains : int
        Number of chains. They are distributed over the largest number of local devices that divides it.
    num_warmup : int, optional
        Warm-up draws per chain. Default: 400 if the start comes from an approximation of the posterior, 1000 otherwise.
    num_samples : int, optional
        Exact number of draws per chain. If omitted, sampling continues until R-hat and the effective sample sizes meet
        the criteria of the verdict.
    until : float or mapping of str to float, optional
        Effective sample size (bulk and tail) to reach instead of the default of 400: for every parameter, or for the
        named ones, as in ``{"Om0": 2000}``. Other parameters then do not delay the end of the run, but still count in
        the verdict.
    max_num_samples : int
        Largest number of draws per chain if ``num_samples`` is omitted.
    max_seconds : float, optional
        Time budget of this call in seconds, compilation included. The current block is always completed. If time runs
        out during warm-up, the warm-up draws are saved; without ``checkpoint=``, in a temporary folder named in the
        error.
    dtype : str
        ``"float64"`` or ``"float32"``. float32 is faster on a GPU; its log density has a relative error of about 1e-6.
        The caller's JAX settings are not changed.
    centering : bool, optional
        Whether to choose the partial non-centring of each latent of a location-scale group by a pilot run (see
        `centre`); the posterior does not change. Default: ``program.chooses_centering`` if the program has it (models
        of hbm_jax with sampled latents do), else False.
    checkpoint : path, optional
        Folder in which every block of draws is saved as soon as it is complete. `resume` continues from it and gives
        bitwise the same draws.
    progress : bool
        Whether to show the progress line.
    split : str or int, optional
        Name of the plate, or number of objects, to split over the processes of `jax.distributed`; see
        `hbm_jax.inference.distributed`. Only process 0 writes the checkpoint and shows the progress line.
    dims, coords : mapping, optional
        Dimensions of sites and coordinates of dimensions, in addition to the plates and to those of the program.

    Returns
    -------
    Fit
        Draws, verdict and provenance; ``fit.run["stopped"]`` says what ended the run. Ctrl-C during sampling stops
        after the current block and keeps the draws; a second Ctrl-C stops at once.

    Raises
    ------
    StartError
        If no starting point has a finite log density and gradient.
    CheckpointError
        If the checkpoint folder holds another run or cannot be written.
    Interrupted
        On Ctrl-C before the first draws, or if the time budget ends before them.
    ResultsError
        If the `Fit` cannot be assembled from the draws; the exception holds the draws. With a checkpoint the original
        exception is raised, with a note that the draws are on disk.
    ValueError
        For options out of range, and for names, dimensions or labels that cannot be stored; raised before sampling.

    Examples
    --------
    >>> import numpyro, numpyro.distributions as dist
    >>> fit = sample(lambda: numpyro.sample("x", dist.Normal(0, 1)), progress=False)
    >>> fit.verdict.usable
    True
    """
    former = without_replaced("sample", options | {"sampler": sampler})
    options = {name: value for name, value in options.items() if name not in REPLACED}
    require_known(sample, options)
    if sampler is not None and (isinstance(sampler, type) or not isinstance(sampler, Sampler)):
        raise TypeError(f"sample: expected a sampler such as hbm_jax.NUTS(); found {sampler!r}.")
    chosen = (sampler or former or NUTS()).resolved(getattr(program, "target_accept_prob", DEFAULT_ACCEPT_PROB))
    settings = Settings(RunOptions(**selected(options, RunOptions)), chosen)
    rule = StopRule(**selected(options, StopRule))
    labels = {"dims": _plain_lists("dims", dims), "coords": _plain_lists("coords", coords)}
    processes = processes_for(split)
    if checkpoint is None:
        return _run(program, args, settings, rule, labels, None, progress, processes, split)
    store = processes.open(Checkpoint, checkpoint)
    try:
        _write_run(store, program, args, settings, rule, labels)
        return _run(program, args, settings, rule, labels, store, progress, processes, split)
    finally:
        store.close()


def resume(
    checkpoint: str | os.PathLike,
    program: Callable,
    *args: Any,
    num_samples: int | None = None,
    until: float | Mapping[str, float] | None = None,
    max_num_samples: int | None = None,
    max_seconds: float | None = None,
    progress: bool = True,
    split: str | int | None = None,
) -> Fit:
    """Continue a run from its checkpoint, with the draws that the uninterrupted run would have had.

    Parameters
    ----------
    checkpoint : path
        Folder passed to `sample`.
    program, *args
        The program and arguments of the original run; their fingerprints are compared with those in the checkpoint.
    num_samples, until, max_num_samples, max_seconds : optional
        New stopping criteria, as in `sample`, to draw more or to stop earlier than the original run. If ``max_seconds``
        is omitted, this call has the time budget of the previous one.
    progress : bool
        Whether to show the progress line.
    split : str or int, optional
        As in `sample`. It may differ from the original run; the draws then differ by rounding.

    Returns
    -------
    Fit
        All draws, of this and of earlier sessions. For a run that has already ended, the result is assembled again.

    Raises
    ------
    CheckpointError
        If there is no checkpoint, or it belongs to a different program, data or options; the message names each
        difference.
    """
    processes = processes_for(split)
    store = processes.open(Checkpoint.existing, checkpoint)
    try:
        stored_run = store.run
        try:
            settings, original_rule = Settings.from_dict(stored_run["options"]), StopRule(**stored_run["stop"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{checkpoint}: expected the options and stopping rule of a run; found some that cannot be read "
                f"({error!r}). They are damaged, or were written by another version of hbm_jax."
            ) from None
        stored_run["options"] = settings.to_dict()  # a run older than an option has its default
        differing = differences(identify(program, args, settings.to_dict()), stored_run)
        if differing:
            raise CheckpointError(
                f"{checkpoint}: expected the program and the data of the original run; found that "
                f"{'; '.join(differing)}."
            )
        budgets = {"max_num_samples": max_num_samples, "max_seconds": max_seconds}
        changes: dict[str, Any] = {name: value for name, value in budgets.items() if value is not None}
        if num_samples is not None or until is not None:
            changes |= {"num_samples": num_samples, "until": until}
        rule = replace(original_rule, **changes)
        if changes:
            store.update(stop=rule.to_dict())
        labels = {name: stored_run.get(name) for name in ("dims", "coords")}
        check_now = "until" in changes
        return _run(program, args, settings, rule, labels, store, progress, processes, split, check_now=check_now)
    finally:
        store.close()


def _write_run(store: Checkpoint, program, args, settings: Settings, rule: StopRule, labels) -> None:
    """Write options, fingerprints, provenance and data of a new run."""
    run = identify(program, args, settings.to_dict()) | {"stop": rule.to_dict()} | labels
    run |= {"about": describe(program, args[0] if args else None), "begun": provenance()}
    store.begin(run, arrays_of(args[0]) if args else None)


def _plain_lists(what: str, labels) -> dict[str, list] | None:
    """Convert the values of ``dims`` or ``coords`` to lists of labels."""
    return None if labels is None else {n: plain_labels(value, f"{what}[{n!r}]") for n, value in labels.items()}


def _run(
    program,
    args,
    settings: Settings,
    rule,
    labels,
    store: Checkpoint | None,
    progress,
    processes,
    split,
    check_now=False,
) -> Fit:
    """Start or continue a run, and return its fit."""
    clock = start_time = time.perf_counter()
    timing: dict[str, float] = {}

    def lap(name):
        nonlocal clock
        timing[name] = time.perf_counter() - clock
        clock = time.perf_counter()

    shown = progress and processes.leads
    with ProgressLine(shown) as live, jax.enable_x64(settings.run.dtype == "float64"), processes.listening():
        key_target, key_start, key_chains = jax.random.split(jax.random.key(settings.run.seed), 3)
        stored = None if store is None else store.read_start()
        original_program = program

        def check(target):
            rule.check_names(target.names)
            check_storable(program, args, target, labels["dims"], labels["coords"])
            describe(program, args[0] if args else None)

        program, centering_note = _choose_centering(program, args, settings, stored, live, processes, check)
        lap("centering")
        live.show("tracing the model")
        target = build_target(program, args, key_target)
        if split is not None:
            target = split_over_processes(target, number_of_objects(program, args, split), processes)
        check(target)
        lap("trace")
        if stored is not None:
            start = _stored_start(stored)
        else:
            live.show(f"searching for starting points ({target.size} parameters)")
            start = processes.choose_start(choose_start, target, settings.run.num_chains, key_start)
        lap("start")
        num_warmup = (
            settings.run.num_warmup if settings.run.num_warmup is not None else (400 if start.informed else 1000)
        )
        live.show("compiling the sampler")
        chains = Chains(target, start, num_warmup, settings.sampler, key_chains)
        start_arrays = _start_arrays(start, chains, getattr(program, "forms", ()))
        if store is not None:
            _save_or_check_start(store, start_arrays, stored)
        draws = Draws(target)
        draws.compile()
        lap("compile")
        loop = Loop(chains, draws, live, rule, chains.num_warmup_draws, store, start_time, check_now)
        with loop.processes.drawing(), _keeping_draws(chains, draws, loop):
            try:
                loop.warm_up()
            except Interrupted as interruption:
                # Without a checkpoint, save the warm-up that the time budget ended.
                if not loop.unsaved or split is not None:
                    raise
                with contextlib.closing(Checkpoint(tempfile.mkdtemp(prefix="hbm_jax-"))) as new_store:
                    _write_run(new_store, original_program, args, settings, rule, labels)
                    _save_or_check_start(new_store, start_arrays, None)
                    loop.save_warm_up(new_store)
                raise loop.interrupted(interruption.reason) from None
            lap("warmup")
            stopped = loop.draw()
            lap("sampling")
        with _keeping_draws(chains, draws, loop):
            cautions = (start.caution, "" if target.observed else UNOBSERVED, _device_caution(target, settings))
            fit = assemble(
                program,
                args,
                target=target,
                sites=draws.sites(),
                sample_stats=_sample_stats(chains, draws),
                positions=draws.raw("position"),
                dims=labels["dims"],
                coords=labels["coords"],
                cautions=tuple(filter(None, cautions)),
                timing=timing,
                run=_run_record(settings, num_warmup, chains, draws, split, start, centering_note, stopped, store),
            )
            lap("judging")
            fit.note_timing(timing)
        hint = "" if store is None or loop.ended else f'; hbm_jax.resume("{store.folder}") continues'
        live.close(f"{stopped}: {len(chains.step_size)} x {draws.num_draws} draws in {timing['sampling']:.1f} s{hint}")
    return fit


def _run_record(
    settings: Settings, num_warmup, chains: Chains, draws: Draws, split, start: Start, centering_note, stopped, store
) -> dict[str, Any]:
    """Return the options and the outcome of a run, for `Fit.run`."""
    run = settings.to_dict() | {
        "num_warmup": num_warmup,
        "num_samples": draws.num_draws,
        "num_devices": chains.num_devices,
        **({} if split is None else {"split": split}),
        "start": start.note,
        **chains.sampler.outcome(chains.fitted),
        **({"centering_note": centering_note} if centering_note else {}),
        "stopped": stopped,
    }
    return run | ({} if store is None else {"checkpoint": str(store.folder), RUN_ID: store.run_id})


def _sample_stats(chains: Chains, draws: Draws) -> dict[str, np.ndarray]:
    """Return the sampler statistics of each draw, with the names of ArviZ."""
    return {
        "diverging": draws.raw("diverging"),
        "energy": draws.raw("energy"),
        "lp": -draws.raw("potential_energy"),
        "n_steps": draws.raw("num_steps"),
        "acceptance_rate": draws.raw("accept_prob"),
        "tree_depth": np.ceil(np.log2(draws.raw("num_steps") + 1)).astype(int),
        "step_size": np.broadcast_to(chains.step_size[:, None], draws.raw("energy").shape),
    }


@contextlib.contextmanager
def _keeping_draws(chains: Chains, draws: Draws, loop: Loop):
    """If an exception occurs after sampling, attach the draws to it, or name the checkpoint that holds them."""
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


def _device_caution(target, settings: Settings) -> str:
    """Return a caution if the density is too small for the accelerator in use, else an empty string."""
    platform = jax.devices()[0].platform
    if platform == "cpu":
        return ""
    value_and_grad = jax.vmap(jax.value_and_grad(target.potential))
    return advice(platform, operations(value_and_grad, target.size, settings.run.num_chains))


def _choose_centering(program, args, settings: Settings, stored, live, processes, check) -> tuple[Callable, str]:
    """Return the program with the partial non-centring of its latents, and a note on the choice.

    The choice is read from the checkpoint if there is one, else made by a pilot run. ``check`` raises before the pilot
    run if the draws cannot be stored.
    """
    enabled = getattr(program, "chooses_centering", False) if settings.run.centering is None else settings.run.centering
    if not enabled:
        return program, ""
    if stored is not None:
        return with_partial_centring(program, stored), "as chosen when the run was started"
    check(build_target(program, args, None))
    live.show("choosing the partial non-centring of each latent")

    def pilot():
        centering = centre(program, *args, seed=settings.run.seed)
        forms = () if centering.program is program else getattr(centering.program, "forms", ())
        return {name: value for form in forms for name, value in form.to_arrays().items()}, centering.note

    arrays, note = processes.lead(pilot)
    return with_partial_centring(program, arrays), note


def _stored_start(arrays: Mapping[str, np.ndarray]) -> Start:
    """Return starting points and metric of a checkpoint; raise CheckpointError if any of its arrays is missing."""
    try:
        start, _ = Start.from_arrays(arrays), arrays["potential"]
    except KeyError as error:
        raise CheckpointError(
            f"{START}: expected starting points and metric; found no {error}. It is damaged."
        ) from None
    return start


def _start_arrays(start: Start, chains: Chains, forms) -> dict[str, np.ndarray]:
    """Return the starting points, the metric, the potential and the partial non-centring as plain arrays."""
    arrays = start.to_arrays() | {"potential": np.asarray(chains.state.potential_energy)}
    return arrays | {name: value for form in forms for name, value in form.to_arrays().items()}


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
