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
from hbm_jax.inference.results import UNOBSERVED, Fit, ResultsError, assemble, describe, provenance
from hbm_jax.inference.sampler.chains import Chains, Draws
from hbm_jax.inference.sampler.checkpoint import RUN_ID, START, Checkpoint, CheckpointError
from hbm_jax.inference.sampler.fingerprint import differences, identify
from hbm_jax.inference.sampler.initialisation import Start, choose_start
from hbm_jax.inference.sampler.loop import Interrupted, Loop
from hbm_jax.inference.sampler.progress import ProgressLine
from hbm_jax.inference.sampler.stopping import StopRule, real_number, whole_number
from hbm_jax.inference.sampler.target import build_target
from hbm_jax.inference.storage import arrays_of, check_storable, plain_labels

SAME_DENSITY = 1e-6  # relative and absolute tolerance on the log density at the start when a run is resumed


@dataclass(frozen=True)
class Options:
    """Options of `sample` that determine the draws; `sample` documents them."""

    seed: int = 0
    num_chains: int = 4
    num_warmup: int | None = None
    target_accept_prob: float = 0.8
    max_tree_depth: int = 10
    dtype: str = "float64"
    centering: bool | None = None
    trajectory_length: float | None = None
    independent_proposals: bool = False

    def __post_init__(self):
        for name in ("seed", "num_chains", "num_warmup", "max_tree_depth"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name)))
        for name in ("target_accept_prob", "trajectory_length"):
            object.__setattr__(self, name, real_number(name, getattr(self, name)))
        object.__setattr__(self, "independent_proposals", bool(self.independent_proposals))
        object.__setattr__(self, "centering", None if self.centering is None else bool(self.centering))
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"sample: expected a seed of at most 64 bits; found {self.seed}.")
        if self.num_chains < 1:
            raise ValueError(f"sample: expected num_chains >= 1; found {self.num_chains}.")
        if self.num_warmup is not None and self.num_warmup < 0:
            raise ValueError(f"sample: expected num_warmup >= 0; found {self.num_warmup}.")
        if not 0 < self.target_accept_prob < 1:
            raise ValueError(f"sample: expected target_accept_prob between 0 and 1; found {self.target_accept_prob}.")
        if self.max_tree_depth < 1:
            raise ValueError(f"sample: expected max_tree_depth >= 1; found {self.max_tree_depth}.")
        if self.trajectory_length is not None and not 0 < self.trajectory_length < np.inf:
            raise ValueError(f"sample: expected trajectory_length above 0; found {self.trajectory_length}.")
        with contextlib.suppress(TypeError):  # not a NumPy dtype: rejected below
            object.__setattr__(self, "dtype", np.dtype(self.dtype).name)
        if self.dtype not in ("float64", "float32"):
            raise ValueError(f"sample: expected dtype 'float64' or 'float32'; found {self.dtype!r}.")


def sample(
    program: Callable,
    *args: Any,
    seed: int = 0,
    num_chains: int = 4,
    num_warmup: int | None = None,
    num_samples: int | None = None,
    until: float | Mapping[str, float] | None = None,
    max_num_samples: int = 20_000,
    max_seconds: float | None = None,
    target_accept_prob: float | None = None,
    max_tree_depth: int = 10,
    trajectory_length: float | None = None,
    independent_proposals: bool = False,
    dtype: str = "float64",
    centering: bool | None = None,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = True,
    split: str | int | None = None,
    dims: Mapping[str, list[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
) -> Fit:
    """Sample the posterior of a NumPyro program with NUTS until it has converged.

    Parameters
    ----------
    program : callable
        A model of hbm_jax or any NumPyro program.
    *args
        Arguments of the program; the first is its data.
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
    target_accept_prob : float, optional
        Target acceptance probability, as in `numpyro.infer.NUTS`; a higher value gives a smaller step size. Default:
        ``program.target_accept_prob`` if the program has it (some models of hbm_jax do), else 0.8.
    max_tree_depth : int
        Largest depth of the NUTS trees, as in `numpyro.infer.NUTS`. Trajectories of ``trajectory_length`` have at most
        ``2**max_tree_depth`` leapfrog steps.
    trajectory_length : float, optional
        If set, use Hamiltonian Monte Carlo with trajectories of this mean length, in posterior standard deviations,
        instead of NUTS. Lengths are spread evenly between 0 and twice the mean. A value of 1.5 suits a posterior close
        to normal, such as most posteriors with the latents marginalised, and needs a half to two thirds of the
        gradients for the same effective sample size. If the posterior is far from normal the chains mix badly, and the
        verdict reports it.
    independent_proposals : bool
        Whether to use independent Metropolis-Hastings proposals for 15 of every 16 draws; the sixteenth is a
        trajectory. Proposals come from a normal distribution fitted to 4800 additional warm-up draws per chain. This
        suits many draws of at most 100 parameters with a posterior close to normal: a draw then costs one evaluation of
        the density. If fewer than 0.4 of the proposals are accepted, all draws are trajectories, which
        ``fit.run["proposals_used"]`` records.
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
    if target_accept_prob is None:
        target_accept_prob = getattr(program, "target_accept_prob", Options.target_accept_prob)
    options = Options(
        seed=seed,
        num_chains=num_chains,
        num_warmup=num_warmup,
        target_accept_prob=target_accept_prob,
        max_tree_depth=max_tree_depth,
        dtype=dtype,
        centering=centering,
        trajectory_length=trajectory_length,
        independent_proposals=independent_proposals,
    )
    rule = StopRule(num_samples, until, max_num_samples, max_seconds)
    labels = {"dims": _plain_lists("dims", dims), "coords": _plain_lists("coords", coords)}
    processes = processes_for(split)
    if checkpoint is None:
        return _run(program, args, options, rule, labels, None, progress, processes, split)
    store = processes.open(Checkpoint, checkpoint)
    try:
        _write_run(store, program, args, options, rule, labels)
        return _run(program, args, options, rule, labels, store, progress, processes, split)
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
            options, original_rule = Options(**stored_run["options"]), StopRule(**stored_run["stop"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{checkpoint}: expected the options and stopping rule of a run; found some that cannot be read "
                f"({error!r}). They are damaged, or were written by another version of hbm_jax."
            ) from None
        stored_run["options"] = asdict(options)  # a run older than an option has its default
        differing = differences(identify(program, args, asdict(options)), stored_run)
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
        return _run(program, args, options, rule, labels, store, progress, processes, split, check_now=check_now)
    finally:
        store.close()


def _write_run(store: Checkpoint, program, args, options: Options, rule: StopRule, labels) -> None:
    """Write options, fingerprints, provenance and data of a new run."""
    run = identify(program, args, asdict(options)) | {"stop": rule.to_dict()} | labels
    run |= {"about": describe(program, args[0] if args else None), "begun": provenance()}
    store.begin(run, arrays_of(args[0]) if args else None)


def _plain_lists(what: str, labels) -> dict[str, list] | None:
    """Convert the values of ``dims`` or ``coords`` to lists of labels."""
    return None if labels is None else {n: plain_labels(value, f"{what}[{n!r}]") for n, value in labels.items()}


def _run(
    program, args, options: Options, rule, labels, store: Checkpoint | None, progress, processes, split, check_now=False
) -> Fit:
    """Start or continue a run, and return its fit."""
    clock = start_time = time.perf_counter()
    timing: dict[str, float] = {}

    def lap(name):
        nonlocal clock
        timing[name] = time.perf_counter() - clock
        clock = time.perf_counter()

    shown = progress and processes.leads
    with ProgressLine(shown) as live, jax.enable_x64(options.dtype == "float64"), processes.listening():
        key_target, key_start, key_chains = jax.random.split(jax.random.key(options.seed), 3)
        stored = None if store is None else store.read_start()
        original_program = program

        def check(target):
            rule.check_names(target.names)
            check_storable(program, args, target, labels["dims"], labels["coords"])
            describe(program, args[0] if args else None)

        program, centering_note = _choose_centering(program, args, options, stored, live, processes, check)
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
            start = processes.choose_start(choose_start, target, options.num_chains, key_start)
        lap("start")
        num_warmup = options.num_warmup if options.num_warmup is not None else (400 if start.informed else 1000)
        live.show("compiling the sampler")
        settings = (
            options.target_accept_prob,
            options.max_tree_depth,
            options.trajectory_length,
            options.independent_proposals,
        )
        chains = Chains(target, start, num_warmup, *settings, key_chains)
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
                    _write_run(new_store, original_program, args, options, rule, labels)
                    _save_or_check_start(new_store, start_arrays, None)
                    loop.save_warm_up(new_store)
                raise loop.interrupted(interruption.reason) from None
            lap("warmup")
            stopped = loop.draw()
            lap("sampling")
        with _keeping_draws(chains, draws, loop):
            cautions = (start.caution, "" if target.observed else UNOBSERVED, _device_caution(target, options))
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
                run=_run_record(options, num_warmup, chains, draws, split, start, centering_note, stopped, store),
            )
            lap("judging")
            fit.note_timing(timing)
        hint = "" if store is None or loop.ended else f'; hbm_jax.resume("{store.folder}") continues'
        live.close(f"{stopped}: {len(chains.step_size)} x {draws.num_draws} draws in {timing['sampling']:.1f} s{hint}")
    return fit


def _run_record(
    options: Options, num_warmup, chains: Chains, draws: Draws, split, start: Start, centering_note, stopped, store
) -> dict[str, Any]:
    """Return the options and the outcome of a run, for `Fit.run`."""
    run = asdict(options) | {
        "num_warmup": num_warmup,
        "num_samples": draws.num_draws,
        "num_devices": chains.num_devices,
        **({} if split is None else {"split": split}),
        "start": start.note,
        **({"proposals_used": bool(chains.proposals.used)} if options.independent_proposals else {}),
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


def _device_caution(target, options: Options) -> str:
    """Return a caution if the density is too small for the accelerator in use, else an empty string."""
    platform = jax.devices()[0].platform
    if platform == "cpu":
        return ""
    value_and_grad = jax.vmap(jax.value_and_grad(target.potential))
    return advice(platform, operations(value_and_grad, target.size, options.num_chains))


def _choose_centering(program, args, options: Options, stored, live, processes, check) -> tuple[Callable, str]:
    """Return the program with the partial non-centring of its latents, and a note on the choice.

    The choice is read from the checkpoint if there is one, else made by a pilot run. ``check`` raises before the pilot
    run if the draws cannot be stored.
    """
    enabled = getattr(program, "chooses_centering", False) if options.centering is None else options.centering
    if not enabled:
        return program, ""
    if stored is not None:
        return with_partial_centring(program, stored), "as chosen when the run was started"
    check(build_target(program, args, None))
    live.show("choosing the partial non-centring of each latent")

    def pilot():
        centering = centre(program, *args, seed=options.seed)
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
