"""From a program and its data to a judged posterior: `sample`, and `resume` for a run that was stopped."""

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
from hbm_jax.inference.centering.location_scale import with_forms
from hbm_jax.inference.centering.pilot import centre
from hbm_jax.inference.compilation.devices import advice
from hbm_jax.inference.distributed import number_of_objects, processes_for, split_over_processes
from hbm_jax.inference.results import UNOBSERVED, Fit, ResultsError, assemble, describe, provenance
from hbm_jax.inference.sampler.chains import Chains, Draws
from hbm_jax.inference.sampler.checkpoint import RUN_ID, START, Checkpoint, CheckpointError
from hbm_jax.inference.sampler.fingerprint import differences, identify
from hbm_jax.inference.sampler.initialisation import Start, choose_start
from hbm_jax.inference.sampler.loop import Interrupted, Loop
from hbm_jax.inference.sampler.progress import LiveLine
from hbm_jax.inference.sampler.stopping import StopRule, real_number, whole_number
from hbm_jax.inference.sampler.target import build_target
from hbm_jax.inference.storage import arrays_of, plain_labels, rehearse

SAME_DENSITY = 1e-6  # relative, between the log density of a run and that of the program it is resumed with


@dataclass(frozen=True)
class Options:
    """Options that decide which draws come out; those of `sample`, where they are described."""

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
        with contextlib.suppress(TypeError):  # no type of NumPy's: refused below
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
        Warm-up draws a chain; 400 from an approximation of the posterior, 1000 without.
    num_samples : int, optional
        Draws a chain, exactly. Where omitted, drawing goes on until R-hat and effective sample sizes are good.
    until : float or mapping of str to float, optional
        Effective sample size (bulk and tail) to reach instead of the verdict's 400: for every parameter, or for those
        named, as in ``{"Om0": 2000}``; the others are then judged but not waited for.
    max_num_samples : int
        The budget of draws a chain where ``num_samples`` is omitted.
    max_seconds : float, optional
        The budget of time of this call, compilation included; the block under way is finished. Where it ends in the
        warm-up, the warm-up is kept, without ``checkpoint=`` in a temporary folder that the error names.
    target_accept_prob : float, optional
        As in `numpyro.infer.NUTS`: the higher, the shorter the steps. By default what the program asks for
        (``program.target_accept_prob``), as some models of hbm_jax do, else 0.8.
    max_tree_depth : int
        As in `numpyro.infer.NUTS`. A trajectory of ``trajectory_length`` is shortened to ``2**max_tree_depth`` leapfrog
        steps where it would take more.
    trajectory_length : float, optional
        Hamiltonian Monte Carlo with trajectories of this mean length, in standard deviations, in place of NUTS. Their
        lengths are spread evenly from 0 to twice that. 1.5 suits a posterior close to normal, as most with latents
        integrated out are, and takes a half to two thirds of the gradients for as many effective draws; where a
        posterior is far from normal the chains mix badly, and the verdict says so.
    independent_proposals : bool
        Whether draws between trajectories (one in 16 is one) are proposed from a normal distribution, fitted to 4800
        more warm-up draws, independently of where a chain is, and accepted or not by Metropolis and Hastings. For many
        draws of a few parameters, 100 at most, whose posterior is close to normal: a draw then costs one density. Where
        fewer than 0.4 of the proposals are accepted, all draws are trajectories (``fit.run["proposals_used"]``).
    dtype : str
        ``"float64"``, or ``"float32"`` on request: faster on a GPU, with a log density good to some 1e-6 relative. The
        caller's JAX settings are left as they are.
    centering : bool, optional
        Whether to choose by a pilot how centred each latent of a location-scale group is sampled (`centre`); the
        posterior is the same. By default where the program asks for it (``program.chooses_centering``), as models of
        hbm_jax do whose latents are sampled.
    checkpoint : path, optional
        Folder in which every block is kept as soon as it is drawn; `resume` continues from there, bit for bit.
    progress : bool
        Whether to show the live line.
    split : str or int, optional
        Plate whose objects, or number of objects that, the processes of `jax.distributed` share; see
        `hbm_jax.inference.distributed`. Process 0 alone writes the checkpoint and shows the live line.
    dims, coords : mapping, optional
        Dimensions of sites and labels of dimensions, beyond the plates and what the program itself says.

    Returns
    -------
    Fit
        Draws, verdict, provenance; ``fit.run["stopped"]`` says what ended the run. Ctrl-C while drawing stops after the
        block under way and keeps what is done; a second one stops at once.

    Raises
    ------
    StartError
        If no starting point has a finite density.
    CheckpointError
        If the checkpoint folder holds another run or cannot be written.
    Interrupted
        On Ctrl-C before the first draws, and where a time budget ends before them.
    ResultsError
        If results cannot be made of the draws; it holds them. With a checkpoint the error is what it was, and says that
        they are on disk.
    ValueError
        For options out of range, and names, dimensions or labels that cannot be stored; before any work.

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
        _begin(store, program, args, options, rule, labels)
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
    """Continue a run from its checkpoint; the draws are those the uninterrupted run would have had.

    Parameters
    ----------
    checkpoint : path
        Folder given to `sample`.
    program, *args
        The same program and data as then; they are compared with what the checkpoint knows of them.
    num_samples, until, max_num_samples, max_seconds : optional
        Another end than the one the run was begun with, as in `sample`: to draw more, or to stop at less. Where
        ``max_seconds`` is omitted, this call has as much time as the one before.
    progress : bool
        Whether to show the live line.
    split : str or int, optional
        As in `sample`, whatever it was when the run was begun: other processes may go on, and rounding differs.

    Returns
    -------
    Fit
        All draws, of this and of earlier sessions. A run that had already ended is put together again.

    Raises
    ------
    CheckpointError
        If there is no checkpoint, or it belongs to another program, other data or other options; each is named.
    """
    processes = processes_for(split)
    store = processes.open(Checkpoint.existing, checkpoint)
    try:
        about = store.run
        try:
            options, begun = Options(**about["options"]), StopRule(**about["stop"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{checkpoint}: expected options and end of the run; found some that cannot be read ({error!r}). They "
                "are damaged, or of another version of hbm_jax."
            ) from None
        about["options"] = asdict(options)  # a run begun before an option existed has its default
        differing = differences(identify(program, args, asdict(options)), about)
        if differing:
            raise CheckpointError(
                f"{checkpoint}: expected the program and the data the run was begun with; found that "
                f"{'; '.join(differing)}."
            )
        budgets = {"max_num_samples": max_num_samples, "max_seconds": max_seconds}
        given: dict[str, Any] = {name: value for name, value in budgets.items() if value is not None}
        if num_samples is not None or until is not None:
            given |= {"num_samples": num_samples, "until": until}
        rule = replace(begun, **given)
        if given:
            store.update(stop=rule.to_dict())
        labels = {name: about.get(name) for name in ("dims", "coords")}
        now = "until" in given
        return _run(program, args, options, rule, labels, store, progress, processes, split, look_now=now)
    finally:
        store.close()


def _begin(store: Checkpoint, program, args, options: Options, rule: StopRule, labels) -> None:
    """Write what a run is."""
    about = identify(program, args, asdict(options)) | {"stop": rule.to_dict()} | labels
    about |= {"about": describe(program, args[0] if args else None), "begun": provenance()}
    store.begin(about, arrays_of(args[0]) if args else None)


def _plain_lists(what: str, labels) -> dict[str, list] | None:
    return None if labels is None else {n: plain_labels(value, f"{what}[{n!r}]") for n, value in labels.items()}


def _run(
    program, args, options: Options, rule, labels, store: Checkpoint | None, progress, processes, split, look_now=False
) -> Fit:
    """Take a run from wherever it stands to its end."""
    clock = began = time.perf_counter()
    timing: dict[str, float] = {}

    def lap(name):
        nonlocal clock
        timing[name] = time.perf_counter() - clock
        clock = time.perf_counter()

    shown = progress and processes.leads
    with LiveLine(shown) as live, jax.enable_x64(options.dtype == "float64"), processes.listening():
        key_target, key_start, key_chains = jax.random.split(jax.random.key(options.seed), 3)
        stored = None if store is None else store.read_start()
        as_given = program

        def check(target):
            rule.check_names(target.names)
            rehearse(program, args, target, labels["dims"], labels["coords"])
            describe(program, args[0] if args else None)

        program, chosen = _centred(program, args, options, stored, live, processes, check)
        lap("centering")
        live.show("tracing the model")
        target = build_target(program, args, key_target)
        if split is not None:
            target = split_over_processes(target, number_of_objects(program, args, split), processes)
        check(target)
        lap("trace")
        if stored is not None:
            try:
                start, _ = Start.from_arrays(stored), stored["potential"]
            except KeyError as error:
                raise CheckpointError(
                    f"{START}: expected starting points and metric; found no {error}. It is damaged."
                ) from None
        else:
            live.show(f"searching starting points for {target.size} parameters")
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
        begun = _start_arrays(start, chains, getattr(program, "forms", ()))
        if store is not None:
            _settle_start(store, begun, stored)
        draws = Draws(target)
        draws.compile()
        lap("compile")
        loop = Loop(chains, draws, live, rule, chains.num_warmup_draws, store, began, look_now)
        with loop.processes.drawing(), _given_back(chains, draws, loop):
            try:
                loop.warm_up()
            except Interrupted as interruption:
                if not loop.unsaved or split is not None:
                    raise
                with contextlib.closing(Checkpoint(tempfile.mkdtemp(prefix="hbm_jax-"))) as kept:
                    _begin(kept, as_given, args, options, rule, labels)
                    _settle_start(kept, begun, None)
                    loop.save_warm_up(kept)
                raise loop.interrupted(interruption.reason) from None
            lap("warmup")
            stopped = loop.draw()
            lap("sampling")
        with _given_back(chains, draws, loop):
            fit = assemble(
                program,
                args,
                target=target,
                sites=draws.sites(),
                sample_stats=_sample_stats(chains, draws),
                positions=draws.raw("position"),
                dims=labels["dims"],
                coords=labels["coords"],
                cautions=tuple(
                    filter(None, (start.caution, "" if target.observed else UNOBSERVED, _advice(target, options)))
                ),
                timing=timing,
                run=asdict(options)
                | {
                    "num_warmup": num_warmup,
                    "num_samples": draws.num_draws,
                    "num_devices": chains.num_devices,
                    **({} if split is None else {"split": split}),
                    "start": start.note,
                    **({"proposals_used": bool(chains.proposals.used)} if options.independent_proposals else {}),
                    **({"centering_note": chosen} if chosen else {}),
                    "stopped": stopped,
                }
                | ({} if store is None else {"checkpoint": str(store.folder), RUN_ID: store.run_id}),
            )
            lap("judging")
            fit.note_timing(timing)
        more = "" if store is None or loop.ended else f'; hbm_jax.resume("{store.folder}") goes on'
        live.close(f"{stopped}: {len(chains.step_size)} x {draws.num_draws} draws in {timing['sampling']:.1f} s{more}")
    return fit


def _sample_stats(chains: Chains, draws: Draws) -> dict[str, np.ndarray]:
    """Return the sampler's statistics of each draw, by ArviZ's names."""
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
def _given_back(chains: Chains, draws: Draws, loop: Loop):
    """Where something fails once there are draws, give them back: in the error, or where they are on disk."""
    try:
        yield
    except (Interrupted, CheckpointError):
        raise
    except KeyboardInterrupt:
        raise loop.interrupted("interrupted while the results were put together") from None
    except Exception as error:
        if not draws.num_draws:
            raise
        if loop.store is not None:
            error.add_note(f'All draws are on disk; hbm_jax.resume("{loop.store.folder}") goes on from there.')
            raise
        raise ResultsError(
            f"sample: expected results of {draws.num_draws} draws a chain; found {type(error).__name__}: {error}. The "
            "draws are in the attribute `draws` of this error.",
            {"position": draws.raw("position")} | _sample_stats(chains, draws),
            chains.target.labels,
        ) from error


def _advice(target, options: Options) -> str:
    """Say so where the density is too small for the accelerator that it was sampled on."""
    platform = jax.devices()[0].platform
    if platform == "cpu":
        return ""
    slopes = jax.vmap(jax.value_and_grad(target.potential))
    return advice(platform, operations(slopes, target.size, options.num_chains))


def _centred(program, args, options: Options, stored, live, processes, check) -> tuple[Callable, str]:
    """Return the program in the forms its latents are to be sampled in, of the checkpoint if there is one, and why.

    What cannot be stored is found by ``check`` before the pilot draws.
    """
    wanted = getattr(program, "chooses_centering", False) if options.centering is None else options.centering
    if not wanted:
        return program, ""
    if stored is not None:
        return with_forms(program, stored), "as chosen when the run was begun"
    check(build_target(program, args, None))
    live.show("choosing how centred each latent is sampled")

    def pilot():
        found = centre(program, *args, seed=options.seed)
        forms = () if found.program is program else getattr(found.program, "forms", ())
        return {name: value for form in forms for name, value in form.to_arrays().items()}, found.note

    arrays, note = processes.lead(pilot)
    return with_forms(program, arrays), note


def _start_arrays(start: Start, chains: Chains, forms) -> dict[str, np.ndarray]:
    """Return where chains begin, with the density there, as plain arrays."""
    arrays = start.to_arrays() | {"potential": np.asarray(chains.state.potential_energy)}
    return arrays | {name: value for form in forms for name, value in form.to_arrays().items()}


def _settle_start(store: Checkpoint, begun: Mapping[str, np.ndarray], stored):
    """Keep the start of a new run; for an old one, see that the density there is still the same."""
    if stored is None:
        store.write_start(dict(begun))
        return
    potential, was = begun["potential"], stored["potential"]
    if not np.allclose(potential, was, rtol=SAME_DENSITY, atol=SAME_DENSITY):
        worst = int(np.argmax(np.nan_to_num(np.abs(potential - was), nan=np.inf)))
        raise CheckpointError(
            f"{store.folder}: expected a log density of {-was[worst]:.9g} at the starting point of chain {worst}, as "
            f"when the run was begun; found {-potential[worst]:.9g}. Something the program uses has changed."
        )
