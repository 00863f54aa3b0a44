"""Exact leave-one-out predictive densities, by refitting without the units for which importance sampling fails.

`arviz_stats.reloo` is not used: it leaves out single entries, not groups of them, keeps the log likelihood of all
entries in memory, and its wrapper of a sampler would be as long as the loop here.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from arviz_stats.base import array_stats

from hbm_jax.inference.centering.location_scale import ReparametrisedProgram
from hbm_jax.inference.criticism.leave_out import Loo
from hbm_jax.inference.criticism.pointwise import Replay, log_prob, program_of
from hbm_jax.inference.program import subset_of
from hbm_jax.inference.results import Fit
from hbm_jax.inference.sampler.kernels.selection import sampler_of, without_replaced
from hbm_jax.inference.sampling import sample

QUIET = {"progress": False, "centering": False}
OPTIONS = ("num_chains", "num_warmup", "num_samples", "dtype")


def refit(fit: Fit, result: Loo, *, max_refits: int = 10, **options: Any) -> Loo:
    """Replace unreliable predictive densities of units, `Loo.bad`, by those from fits without them.

    Parameters
    ----------
    fit : Fit
        The fit of ``result``, with its program and data. The data container needs a method ``subset(indices)``, as
        those of hbm_jax have; other arguments of the program are passed on unchanged.
    result : Loo
        Result of `loo`.
    max_refits : int
        Largest number of bad units to refit.
    **options
        Options of `hbm_jax.sample`, in place of those of the fit.

    Returns
    -------
    Loo
        With exact ``elpd``, up to its Monte Carlo error ``mc_error``, and ``refitted`` set for these units. Units whose
        error is above 0.1, because they are far in the tail, are still not reliable; another call, with more draws,
        refits them again. Sampled latents of the objects left out are drawn from the population, once per posterior
        draw, which is noisy if these objects are measured precisely.

    Raises
    ------
    ValueError
        If there are more than ``max_refits`` bad units, if the fit was loaded without its program, if observations are
        correlated, or if the data cannot be subset along the dimension that was left out.

    Examples
    --------
    >>> refit(fit, loo(fit)).reliable  # doctest: +SKIP
    True
    """
    bad_rows = [result.table.index.get_loc(label) for label in result.bad.index]
    if not bad_rows:
        return result
    if len(bad_rows) > max_refits:
        raise ValueError(
            f"refit: expected at most max_refits={max_refits} bad units; found {len(bad_rows)}. Allow more, or change "
            "the model."
        )
    if correlated := [name for name in result.sites if name in Replay(fit, "refit").structure.correlated]:
        raise ValueError(
            f"refit: expected observations that are independent given the parameters; found {', '.join(correlated)}, "
            "whose elements are correlated."
        )
    # The original program, because weights of partial non-centring chosen for all objects do not apply to fewer.
    program = program_of(fit, "refit")
    program = program.program if isinstance(program, ReparametrisedProgram) else program
    num_left_out = sum(len(members) for members in result.members)
    if (subset := subset_of(fit.data)) is None or not result.dim or len(fit.data) < num_left_out:
        raise ValueError(
            "refit: expected data with subset(indices) along the dimension that was left out; found "
            f"{type(fit.data).__name__}" + (f", dimension {result.dim}." if result.dim else ", several dimensions.")
        )
    fit_options = {name: fit.run[name] for name in OPTIONS if name in fit.run} | {"seed": fit.run.get("seed", 0) + 1}
    # Blinded like the fit, because the notes may quote values from the verdict of a new fit.
    fit_options |= {} if fit.blinding is None else {"blind": fit.blinding}
    deprecated = without_replaced("refit", options)
    options["sampler"] = options.get("sampler") or deprecated or sampler_of(fit.run)
    table, notes = result.table.copy(), list(result.notes)
    for row in bad_rows:
        held_out = np.asarray(result.members[row])
        remaining = np.setdiff1d(np.arange(len(fit.data)), held_out)
        other_args = fit.args[1:]
        new_fit = sample(program, subset(remaining), *other_args, **(QUIET | fit_options | options))
        replay = Replay(new_fit, "refit")
        redrawn = tuple(name for name, plates in replay.structure.latents.items() if result.dim in plates)
        log_densities = replay(
            lambda trace: {"": sum(log_prob(trace[name]).sum() for name in result.sites)},
            args=(subset(held_out), *other_args),
            free=redrawn,
        )[""]
        label = table.index[row]
        table.loc[label, ["elpd", "mc_error"]] = log_mean_density(log_densities)
        table.loc[label, "refitted"] = True
        if not new_fit.verdict.usable:
            notes.append(f"the fit without {label} is {new_fit.verdict}")
    return replace(result, table=table, notes=tuple(notes), elpd_data=_updated(result.elpd_data, table))


def log_mean_density(log_densities: np.ndarray) -> tuple[float, float]:
    """Return the logarithm of the mean density over draws (chain, draw), and its Monte Carlo error.

    The error is that of the mean density divided by the mean, with the effective number of the draws; it is infinite if
    a single draw has all of the density.
    """
    highest = log_densities.max()
    density = np.exp(log_densities - highest)
    mean = density.mean()
    num = array_stats.ess(density, chain_axis=0, draw_axis=1, method="mean") if np.ptp(density) > 0 else density.size
    error = density.std() / mean / np.sqrt(min(float(num), density.size))
    behind = density.sum() ** 2 / (density**2).sum()
    return float(np.log(mean) + highest), float(error) if behind > 1.5 else np.inf


def _updated(elpd_data, table):
    """Return ArviZ's result with the pointwise values of a table, and all quantities that follow from them."""
    elpd_i = elpd_data.elpd_i.copy(data=table["elpd"].to_numpy())
    elpd = float(elpd_i.sum())
    se = float(np.sqrt(elpd_i.size) * elpd_i.std())
    pareto_k = elpd_data.pareto_k.where(~table["refitted"].to_numpy(), 0.0)
    return replace(
        elpd_data,
        elpd=elpd,
        se=se,
        p=elpd_data.p + elpd_data.elpd - elpd,
        elpd_i=elpd_i,
        pareto_k=pareto_k,
        warning=bool((pareto_k > elpd_data.good_k).any()),
    )
