"""Exact predictive densities of the few units for which importance sampling fails: fits without them."""

from dataclasses import replace
from typing import Any

import numpy as np

from hbm_jax.inference.centering.location_scale import Recentred
from hbm_jax.inference.criticism.leave_out import Loo
from hbm_jax.inference.criticism.pointwise import Replay, log_prob
from hbm_jax.inference.results import Fit
from hbm_jax.inference.sampling import sample

QUIETLY = {"progress": False, "centering": False}
OPTIONS = (
    "num_chains",
    "num_warmup",
    "num_samples",
    "target_accept_prob",
    "max_tree_depth",
    "trajectory_length",
    "independent_proposals",
    "dtype",
)


def refit(fit: Fit, result: Loo, *, max_refits: int = 10, **options: Any) -> Loo:
    """Replace the predictive densities of badly sampled units by those of fits without them.

    Parameters
    ----------
    fit : Fit
        The fit that ``result`` is of, with its program and data. The data container needs ``subset(indices)``, as those
        of hbm_jax have; other arguments of the program are passed on as they are.
    result : Loo
        From `loo`.
    max_refits : int
        More bad units than this are refused.
    **options
        Of `hbm_jax.sample`, in place of those of the fit.

    Returns
    -------
    Loo
        With ``refitted`` set and exact ``elpd`` (up to Monte Carlo error) where Pareto k was bad. Sampled latents of
        the objects left out are drawn from the population, one for each draw, which is noisy where these objects are
        measured precisely.

    Raises
    ------
    ValueError
        If there are too many bad units, or the data cannot be subset along the dimension that was left out.

    Examples
    --------
    >>> refit(fit, loo(fit)).reliable  # doctest: +SKIP
    True
    """
    bad = [result.table.index.get_loc(label) for label in result.bad.index]
    if not bad:
        return result
    if len(bad) > max_refits:
        raise ValueError(
            f"refit: expected at most max_refits={max_refits} bad units; found {len(bad)}. Allow more, or change the "
            "model."
        )
    if fit.program is None:
        raise ValueError("refit: expected a fit with its program and data, found one without. Pass them to load().")
    if together := [name for name in result.sites if name in Replay(fit, "refit").structure.correlated]:
        raise ValueError(
            f"refit: expected observations that are independent given the parameters; found {', '.join(together)}, "
            "whose elements are correlated."
        )
    # The forms chosen for all objects are not those of fewer: the program as it was written.
    program = fit.program.program if isinstance(fit.program, Recentred) else fit.program
    size = sum(len(members) for members in result.members)
    if not hasattr(fit.data, "subset") or not result.dim or len(fit.data) < size:
        raise ValueError(
            "refit: expected data with subset(indices) whose objects are what was left out; found "
            f"{type(fit.data).__name__}" + (f", dimension {result.dim}." if result.dim else ", several dimensions.")
        )
    chosen = {name: fit.run[name] for name in OPTIONS if name in fit.run} | {"seed": fit.run.get("seed", 0) + 1}
    table, notes = result.table.copy(), list(result.notes)
    for index in bad:
        held = np.asarray(result.members[index])
        kept = np.setdiff1d(np.arange(len(fit.data)), held)
        others = fit.args[1:]
        new = sample(program, fit.data.subset(kept), *others, **(QUIETLY | chosen | options))
        replay = Replay(new, "refit")
        free = tuple(name for name, plates in replay.structure.latents.items() if result.dim in plates)
        predicted = replay(
            lambda trace: {"": sum(log_prob(trace[name]).sum() for name in result.sites)},
            args=(fit.data.subset(held), *others),
            free=free,
        )[""].ravel()
        label = table.index[index]
        table.loc[label, "elpd"] = np.logaddexp.reduce(predicted) - np.log(len(predicted))
        table.loc[label, "refitted"] = True
        if not new.verdict.usable:
            notes.append(f"the fit without {label} is {new.verdict}")
    return replace(result, table=table, notes=tuple(notes), elpd_data=_updated(result.elpd_data, table))


def _updated(elpd_data, table):
    """ArviZ's result with the pointwise values of a table; the effective number of parameters follows."""
    elpd_i = elpd_data.elpd_i.copy(data=table["elpd"].to_numpy())
    elpd = float(elpd_i.sum())
    se = float(np.sqrt(elpd_i.size) * elpd_i.std())
    k = elpd_data.pareto_k.where(~table["refitted"].to_numpy(), 0.0)
    return replace(
        elpd_data,
        elpd=elpd,
        se=se,
        p=elpd_data.p + elpd_data.elpd - elpd,
        elpd_i=elpd_i,
        pareto_k=k,
        warning=bool((k > elpd_data.good_k).any()),
    )
