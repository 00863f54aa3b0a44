"""Sample the posterior of a NumPyro program (`sample`), and continue a stopped run from its checkpoint (`resume`)."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hbm_jax.inference.arguments import plain_arguments
from hbm_jax.inference.blinding.blinding import Blinding, blinding_of
from hbm_jax.inference.distributed import processes_for
from hbm_jax.inference.options import RunOptions, arguments_named, require_known, selected, with_options
from hbm_jax.inference.program import binds, target_accept_prob_of
from hbm_jax.inference.results import Fit
from hbm_jax.inference.run import Run, Settings
from hbm_jax.inference.sampler.checkpoint import Checkpoint, CheckpointError
from hbm_jax.inference.sampler.fingerprint import differences, identify
from hbm_jax.inference.sampler.kernels.automatic import Automatic
from hbm_jax.inference.sampler.kernels.protocol import Sampler
from hbm_jax.inference.sampler.kernels.selection import REPLACED, without_replaced
from hbm_jax.inference.sampler.progress import Progress
from hbm_jax.inference.sampler.stopping import StopRule
from hbm_jax.inference.storage import plain_labels


@with_options(RunOptions, StopRule)
def sample(
    program: Callable,
    *args: Any,
    sampler: Sampler | None = None,
    init: Any = None,
    checkpoint: str | os.PathLike | None = None,
    progress: Progress = True,
    split: str | int | None = None,
    dims: Mapping[str, list[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
    blind: bool | Sequence[str] | Blinding = False,
    **options: Any,
) -> Fit:
    """Sample the posterior of a NumPyro program until it has converged.

    Parameters
    ----------
    program : callable
        A model of hbm_jax or any NumPyro program.
    *args
        Arguments of the program; the first is its data. They may be given by name if no option has that name.
    sampler : Sampler, optional
        ``hbm_jax.NUTS(...)``, ``hbm_jax.HMC(trajectory_length=...)``, ``hbm_jax.IndependentProposals(...)``,
        ``hbm_jax.WALNUTS(...)`` for funnels, ``hbm_jax.ChEES(...)`` for 64 to 4096 chains, or ``hbm_jax.Nutpie(...)``,
        with the options of each. Default: HMC with a length of 1.5 where the searches find that the posterior is close
        to normal, else NUTS; ``fit.run["trajectories"]`` is the one used.
    init : Fit, mapping of str to array, or sequence of such mappings, optional
        Start of the chains, instead of a search. Values by name of latent sites: of the shape of the site, for all
        chains; with a leading axis, one value per chain; or one mapping per chain. Sites without a value start at the
        median of the prior. With an earlier `Fit` of the same latent sites, chains start at its draws, with the metric
        of their covariance and its step size.
    seed : int
        Random seed; the same seed on the same machine gives the same draws.
    num_chains : int
        Number of chains. They are distributed over the largest number of local devices that divides it.
    num_warmup : int, optional
        Warm-up draws per chain. Default: 200 if the searches find that the posterior is close to normal, 400 if the
        start comes from another approximation of it, 1000 otherwise; 100 or 300 for `hbm_jax.ChEES`.
    num_samples : int, optional
        Exact number of draws per chain. If omitted, sampling continues until R-hat and the effective sample sizes meet
        the criteria of the verdict.
    until : float or mapping of str to float, optional
        Effective sample size (bulk and tail) to reach, by default 10 % above the 400 of the verdict: for every
        parameter, or for the named ones, as in ``{"Om0": 2000}``. Other parameters then do not prolong the run, but
        count in the verdict.
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
    progress : bool or callable
        Whether to show the progress line; or a function that is called with each of its texts. If `logging` shows
        messages of the level INFO, they go to the logger ``hbm_jax``.
    split : str or int, optional
        Name of the plate, or number of objects, to split over the processes of `jax.distributed`; see
        `hbm_jax.inference.distributed`. Only process 0 writes the checkpoint and shows the progress line.
    dims, coords : mapping, optional
        Dimensions of sites and coordinates of dimensions, in addition to the plates and to those of the program.
    blind : bool, list of str or Blinding
        Parameters whose values are hidden until `Fit.unblind`: True for those that the program names
        (``program.blinded``; the cosmological ones of supernova models), a list of names of sites, or the ``blinding``
        of an earlier fit, whose shifts are then the same; parameters that only this program names are hidden too. Draws
        of these are stored with a constant shift of a few standard deviations, unknown to the user. Widths,
        correlations and differences between draws are as they are.

    Returns
    -------
    Fit
        Draws, verdict and provenance; ``fit.run["stopped"]`` is the reason why the run ended. Ctrl-C during sampling
        stops after the current block and keeps the draws; a second Ctrl-C stops at once.

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
    TypeError
        For an unknown option, or if ``sampler`` is not a sampler.
    ValueError
        For options out of range, and for names, dimensions or labels that cannot be stored; raised before sampling.

    Examples
    --------
    >>> import numpyro, numpyro.distributions as dist
    >>> fit = sample(lambda: numpyro.sample("x", dist.Normal(0, 1)), progress=False)
    >>> fit.verdict.usable
    True
    """
    deprecated = without_replaced("sample", options | {"sampler": sampler})
    options = {name: value for name, value in options.items() if name not in REPLACED}
    if not binds(program):
        keywords = {name: options.pop(name) for name in arguments_named(program, options, sample)}
        args = plain_arguments(program, args, keywords)
    require_known(sample, options)
    if sampler is not None and (isinstance(sampler, type) or not isinstance(sampler, Sampler)):
        raise TypeError(f"sample: expected a sampler such as hbm_jax.NUTS(); found {sampler!r}.")
    resolved = (sampler or deprecated or Automatic()).resolved(target_accept_prob_of(program))
    resolved.require_options(options | {"checkpoint": checkpoint, "split": split})
    settings = Settings(
        RunOptions(**selected(options, RunOptions)),
        resolved,
        StopRule(**selected(options, StopRule)),
        _plain_lists("dims", dims),
        _plain_lists("coords", coords),
        blinding_of(blind, program),
    )
    processes = processes_for(split)
    if settings.blind is not None and split is not None:  # one key for all processes
        key = settings.blind.key
        settings = replace(settings, blind=replace(settings.blind, key=processes.lead(lambda: key)))
    run = Run(program, args, settings, processes=processes, split=split, progress=progress, init=init)
    if checkpoint is None:
        return run.fit()
    run.store = processes.open(Checkpoint, checkpoint)
    try:
        run.describe_in(run.store)
        return run.fit()
    finally:
        run.store.close()


def resume(
    checkpoint: str | os.PathLike,
    program: Callable,
    *args: Any,
    num_samples: int | None = None,
    until: float | Mapping[str, float] | None = None,
    max_num_samples: int | None = None,
    max_seconds: float | None = None,
    progress: Progress = True,
    split: str | int | None = None,
) -> Fit:
    """Continue a run from its checkpoint, with the draws that the uninterrupted run would have had.

    Parameters
    ----------
    checkpoint : path
        Folder passed to `sample`.
    program, *args
        The program and arguments of the original run, by position; their fingerprints are compared with those in the
        checkpoint.
    num_samples, until, max_num_samples, max_seconds : optional
        New stopping criteria, as in `sample`, to draw more or to stop earlier than the original run. If ``max_seconds``
        is omitted, this call has the time budget of the previous one.
    progress : bool or callable
        Whether to show the progress line, or a function that is called with its texts.
    split : str or int, optional
        As in `sample`. It may differ from the original run; the draws then differ by rounding.

    Returns
    -------
    Fit
        All draws, of this and of earlier sessions. For a run that has already ended, the result is assembled again. A
        blinded run stays blinded.

    Raises
    ------
    CheckpointError
        If there is no checkpoint, or it belongs to a different program, data or options; the message names each
        difference.
    """
    if not binds(program):
        args = plain_arguments(program, args)
    processes = processes_for(split)
    store = processes.open(Checkpoint.existing, checkpoint)
    try:
        settings = _stored_settings(store, program, args)
        budgets = {"max_num_samples": max_num_samples, "max_seconds": max_seconds}
        changes: dict[str, Any] = {name: value for name, value in budgets.items() if value is not None}
        if num_samples is not None or until is not None:
            changes |= {"num_samples": num_samples, "until": until}
        settings = replace(settings, rule=replace(settings.rule, **changes))
        if changes:
            store.update(stop=settings.rule.to_dict())
        run = Run(program, args, settings, processes=processes, split=split, progress=progress, store=store)
        return run.fit(check_now="until" in changes)
    finally:
        store.close()


def _stored_settings(store, program: Callable, args: tuple) -> Settings:
    """Return the settings of a checkpoint; raise CheckpointError if it belongs to another program or other data."""
    stored_run = store.run
    try:
        settings = Settings.from_run(stored_run)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{store.folder}: expected the options and stopping rule of a run; found some that cannot be read "
            f"({error!r}). They are damaged, or were written by another version of hbm_jax."
        ) from None
    stored_run["options"] = settings.options()  # with defaults of options that are newer than the run
    differing = differences(identify(program, args, settings.options()), stored_run)
    if differing:
        raise CheckpointError(
            f"{store.folder}: expected the program and the data of the original run; found that {'; '.join(differing)}."
        )
    return settings


def _plain_lists(argument: str, labels) -> dict[str, list] | None:
    """Convert the values of ``dims`` or ``coords`` to lists of labels."""
    return None if labels is None else {n: plain_labels(value, f"{argument}[{n!r}]") for n, value in labels.items()}
