"""Leave-one-out and leave-one-group-out prediction by importance sampling."""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from arviz_stats import loo as arviz_loo
from arviz_stats.base import array_stats

from hbm_jax.inference.criticism.observed_units import choose_sites, into_units
from hbm_jax.inference.criticism.pointwise import CHUNK, pointwise
from hbm_jax.inference.results import Fit

FEW_UNITS = 10  # below which the standard error of the sum is hardly known
NAMED = 5  # of the worst, in a sentence


@dataclass(frozen=True)
class Loo:
    """How well a model predicts what it has not seen: each unit (object or group) left out in turn.

    Attributes
    ----------
    elpd_data : arviz_stats ELPDData
        ArviZ's own result with its pointwise values, for any of its functions; without the log weights.
    table : pandas.DataFrame
        One row a unit, in the order of the data: ``elpd`` (log predictive density when left out), ``pareto_k`` of the
        importance weights, ``num_observations``, ``refitted``.
    unit : str
        What was left out, such as ``"supernova"`` or ``"survey"``.
    sites : tuple of str
        Observed sites whose log likelihoods were added up.
    dim : str
        Dimension of the data along which units were left out; empty where there are several.
    members : tuple of arrays
        Positions along ``dim`` of each unit's observations.
    notes : tuple of str
        What a reader should know, one clause each.
    observed : dict of str to array
        The observations, by which a comparison sees that two fits are of the same data.
    """

    elpd_data: Any
    table: pd.DataFrame
    unit: str
    sites: tuple[str, ...]
    dim: str
    members: tuple[np.ndarray, ...]
    notes: tuple[str, ...]
    observed: dict[str, np.ndarray]

    @property
    def elpd(self) -> float:
        """Sum of the log predictive densities of all units; larger is better."""
        return float(self.table["elpd"].sum())

    @property
    def se(self) -> float:
        """Standard error of `elpd`, from the scatter between units."""
        return float(np.sqrt(len(self.table)) * self.table["elpd"].std(ddof=0))

    @property
    def p(self) -> float:
        """Effective number of parameters: how much better the data are fitted than predicted."""
        return float(self.elpd_data.p)

    @property
    def good_k(self) -> float:
        """Largest Pareto k at which importance sampling is good, min(1 - 1 / log10(draws), 0.7)."""
        return float(self.elpd_data.good_k)

    @property
    def bad(self) -> pd.DataFrame:
        """Units whose importance weights cannot be trusted and that were not refitted, the worst first."""
        wrong = ~(self.table["pareto_k"] <= self.good_k) & ~self.table["refitted"]
        return self.table[wrong].sort_values("pareto_k", ascending=False)

    @property
    def reliable(self) -> bool:
        """Whether every unit's predictive density can be trusted."""
        return self.bad.empty

    def __str__(self):
        head = (
            f"elpd {self.elpd:.1f} ± {self.se:.1f}, each {self.unit} left out in turn ({len(self.table)}); "
            f"effective number of parameters {self.p:.1f}."
        )
        if self.reliable:
            worst = self.table["pareto_k"].idxmax()
            done = int(self.table["refitted"].sum())
            verdict = f"Reliable: {done} refitted, the others " if done else "Reliable: every one "
            verdict += f"with Pareto k below {self.good_k:.2f}."
            verdict += "" if done else f" The largest is {self.table['pareto_k'][worst]:.2f}, of {worst}."
        else:
            named = [f"{name} ({k:.2f})" for name, k in self.bad["pareto_k"].head(NAMED).items()]
            more = f" and {len(self.bad) - NAMED} more" if len(self.bad) > NAMED else ""
            verdict = (
                f"Not reliable: Pareto k is above {self.good_k:.2f} for {len(self.bad)}: {', '.join(named)}{more}. "
                "The posterior would be too different without them. Look at their data first, then to try: "
                f"{_advice(self)}"
            )
        return " ".join([head, verdict, *(f"Note: {note}." for note in self.notes)])


def _advice(result: Loo) -> str:
    tries = []
    if any("are sampled" in note for note in result.notes):
        tries.append("integrate the latents out;")
    tries.append("refit without them, with hbm_jax.inference.refit, if they are few;")
    tries.append("a likelihood with heavier tails, if they are outliers.")
    return " ".join(tries)


def loo(fit: Fit, *, site: str | None = None, group=None, chunk: int = CHUNK, num_draws: int | None = None) -> Loo:
    """Leave-one-out predictive densities by Pareto-smoothed importance sampling (PSIS-LOO).

    Parameters
    ----------
    fit : Fit
        With its program and data, or with the log likelihood it kept; see `log_likelihood`.
    site : str, optional
        Observed site. Where omitted: the only one, or the sum of all if they have the same dimensions, so that an
        object is left out with all that was measured of it.
    group : array or str, optional
        Leave whole groups out: one label for each entry of a dimension of the site, or the name of that dimension, of
        a coordinate, or of a field of the data. Log likelihoods are added up within each group first.
    chunk, num_draws : int
        As in `log_likelihood`.

    Returns
    -------
    Loo
        Prints as a sentence: how well, whether that can be trusted, whose Pareto k is bad and what to try.

    Raises
    ------
    ValueError
        If there is no such site, or several that do not match; if there is a single log likelihood for all data, so
        that nothing can be left out; if group labels do not fit; if a log likelihood is not finite.

    Notes
    -----
    The elpd is the sum over units u of log p(y_u | all others), an integral over everything that is not data, latents
    of the unit included. It is therefore the same quantity whether these were integrated out or sampled, and with
    groups it asks how well a *new* group is predicted, without groups how well a new observation of known groups. What
    differs is how well importance sampling can do it. With latents integrated out, the log likelihood is marginal and
    leaving one unit out moves the global parameters a little. With sampled latents it is conditional on them: leaving
    the unit out must carry its latents from what its data say all the way back to the population, and Pareto k will be
    bad for precise data and for nearly every group. Use marginal latents (or `refit`) then. That groups are
    conditionally independent given the global parameters is assumed: a latent that observations of several groups
    share stays known when one is left out.

    Elements of one correlated observation (`CorrelatedNormal`) are predicted given all others, whose noise they share;
    groups of them cannot be left out here.

    References: Vehtari, Gelman & Gabry 2017, Statistics and Computing 27, 1413; Vehtari et al. 2024, JMLR 25, 72.

    Examples
    --------
    >>> print(loo(fit, group="survey"))  # doctest: +SKIP
    """
    values, observed = pointwise(fit, chunk, num_draws)
    chosen, sites = choose_sites(values, site)
    together = [name for name in sites if values[name].attrs.get("correlated")]
    if together and group is not None:
        raise ValueError(
            f"loo: expected no groups for {', '.join(together)}, whose elements are correlated: densities given all "
            "others do not add up to those of groups. Fit the data without each group instead."
        )
    units = into_units(chosen, group, fit)
    numbers = units.numbers
    finite = np.isfinite(numbers).all(axis=(0, 1))
    if not finite.all():
        first = units.labels[int(np.argmin(finite))]
        raise ValueError(
            f"loo: expected finite log likelihoods; found {int((~finite).sum())} {units.name} with others, the first "
            f"being {first}."
        )
    notes = _notes(values, sites, units, group is not None)
    informative = np.ptp(numbers, axis=(0, 1)) > 0
    if not informative.all():
        notes.append(f"{int((~informative).sum())} without any bearing on the parameters (masked?) were left aside")
        units = units.only(informative)
        numbers = units.numbers
    if numbers.shape[-1] < 2:
        raise ValueError(
            f"loo: expected the log likelihood of at least two units; found {numbers.shape[-1]} ({units.name})."
        )
    if numbers.shape[-1] < FEW_UNITS:
        notes.append(f"with {numbers.shape[-1]} units the standard error is itself uncertain")
    elpd_data = _psis(numbers, units)
    table = pd.DataFrame(
        {
            "elpd": elpd_data.elpd_i.to_numpy(),
            "pareto_k": elpd_data.pareto_k.to_numpy(),
            "num_observations": units.counts,
            "refitted": False,
        },
        index=pd.Index(units.labels, name=units.name),
    )
    seen = {name: observed[name].to_numpy() for name in sites}
    return Loo(elpd_data, table, units.name, sites, units.dim, units.members, tuple(notes), seen)


def _psis(numbers, units):
    """ArviZ's PSIS-LOO of log likelihoods (chain, draw, unit)."""
    likelihood = np.exp(numbers - numbers.max(axis=(0, 1)))
    efficiency = array_stats.ess(likelihood, chain_axis=0, draw_axis=1, method="mean", relative=True)
    array = xr.DataArray(numbers, dims=("chain", "draw", "unit"), name="log_likelihood")
    array = array.assign_coords({dim: np.arange(n) for dim, n in array.sizes.items()} | {"unit": units.labels})
    tree = xr.DataTree.from_dict({"log_likelihood": array.to_dataset()})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Estimated shape parameter")  # the result says so, with names
        result = arviz_loo(tree, pointwise=True, reff=float(np.mean(efficiency)))
    return replace(result, log_weights=None)  # as large as the log likelihood itself


def _notes(values, sites, units, grouped) -> list[str]:
    notes = []
    if len(sites) > 1:
        notes.append(f"{', '.join(sites)} are left out together")
    kinds = ("sampled_latents", "sampled_elsewhere") if grouped else ("sampled_latents",)
    texts = [values[site].attrs.get(kind, "") for site in sites for kind in kinds]
    sampled = list(dict.fromkeys(name for text in texts for name in text.split(", ") if name))
    if sampled:
        notes.append(
            f"the latents {', '.join(sampled)} are sampled, not integrated out, so that the likelihood is conditional "
            f"on them: leaving a {units.name} out has to carry its latents back to the population, which importance "
            "sampling does badly, and too kindly"
        )
    if any(values[site].attrs.get("correlated") for site in sites):
        notes.append(f"each {units.name} is predicted given all others, whose noise it shares")
    if values.attrs.get("factors_left_out"):
        notes.append(f"the factors {values.attrs['factors_left_out']} belong to no observation and are not in it")
    return notes
