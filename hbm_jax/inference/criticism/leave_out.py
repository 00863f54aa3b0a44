"""Leave-one-out and leave-one-group-out cross-validation by importance sampling."""

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

FEW_UNITS = 10  # units below which the standard error of the elpd is itself poorly known
NAMED = 5  # worst units named in the summary
# Monte Carlo error of the log predictive density of a refitted unit, above which it is not reliable: about 100
# effective draws behind the mean density. With fewer, in the far tail, the error itself is underestimated.
MAX_ERROR = 0.1


@dataclass(frozen=True)
class Loo:
    """Leave-one-out predictive densities of a model, with each unit (object or group) left out in turn.

    Attributes
    ----------
    elpd_data : arviz_stats ELPDData
        Result of ArviZ with pointwise values, for use with its functions; without the log weights.
    table : pandas.DataFrame
        One row per unit, in the order of the data: ``elpd`` (log predictive density given the other units),
        ``pareto_k`` of the importance weights, ``num_observations``, ``refitted``, and ``mc_error``, the Monte Carlo
        error of the ``elpd`` of a refitted unit; NaN of others.
    unit : str
        Name of the unit, such as ``"supernova"`` or ``"survey"``.
    sites : tuple of str
        Observed sites whose log likelihoods were summed.
    dim : str
        Dimension of the data along which units were left out; empty if there are several.
    members : tuple of arrays
        Positions along ``dim`` of each unit's observations.
    notes : tuple of str
        Remarks for the reader, one clause each.
    observed : dict of str to array
        The observations; `compare` uses them to check that two fits are to the same data.
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
        """Effective number of parameters: log predictive density of the data within the fit, minus `elpd`."""
        return float(self.elpd_data.p)

    @property
    def good_k(self) -> float:
        """Largest Pareto k at which importance sampling is reliable, min(1 - 1 / log10(draws), 0.7)."""
        return float(self.elpd_data.good_k)

    @property
    def bad(self) -> pd.DataFrame:
        """Units whose predictive density is unreliable, the worst first.

        Those with bad importance weights that were not refitted, and those refitted whose observation is so far in the
        tail of the other fit that its mean density is that of a few draws: with a Monte Carlo error above 0.1.
        """
        is_bad = ~(self.table["pareto_k"] <= self.good_k) & ~self.table["refitted"]
        uncertain = (self.table["mc_error"] > MAX_ERROR) | self.table["elpd"].isna()
        is_bad |= self.table["refitted"] & uncertain
        return self.table[is_bad].sort_values(["refitted", "pareto_k"], ascending=[True, False])

    @property
    def reliable(self) -> bool:
        """True if the predictive densities of all units are reliable."""
        return self.bad.empty

    def __str__(self):
        summary = (
            f"elpd {self.elpd:.1f} ± {self.se:.1f}, each {self.unit} left out in turn ({len(self.table)}); "
            f"effective number of parameters {self.p:.1f}."
        )
        if self.reliable:
            unit = self.table["pareto_k"].idxmax()
            num_refitted = int(self.table["refitted"].sum())
            verdict = f"Reliable: {num_refitted} refitted, the others " if num_refitted else "Reliable: every one "
            verdict += f"with Pareto k below {self.good_k:.2f}."
            verdict += "" if num_refitted else f" The largest is {self.table['pareto_k'][unit]:.2f}, of {unit}."
        else:
            verdict = f"Not reliable: {'. '.join(_reasons(self))}. Inspect their data first. Then try: {_advice(self)}"
        return " ".join([summary, verdict, *(f"Note: {note}." for note in self.notes)])


def _reasons(result: Loo) -> list[str]:
    """Return sentences that name the units whose predictive densities are not reliable."""
    refitted = result.bad["refitted"]
    weights, tail = result.bad[~refitted]["pareto_k"], result.bad[refitted]["mc_error"]
    reasons = []
    for values, text in ((weights, f"Pareto k is above {result.good_k:.2f}"),
                         (tail, f"the Monte Carlo error after refitting is above {MAX_ERROR:g}")):  # fmt: skip
        if len(values):
            units = ", ".join(f"{name} ({value:.2f})" for name, value in values.head(NAMED).items())
            rest = f" and {len(values) - NAMED} more" if len(values) > NAMED else ""
            reasons.append(f"{text} for {len(values)}: {units}{rest}")
    if len(weights):
        reasons.insert(1, "The posterior without them differs too much")
    if len(tail):
        reasons.append("They are so far in the tail that the mean density is that of a few draws")
    return [reason[0].upper() + reason[1:] if i else reason for i, reason in enumerate(reasons)]


def _advice(result: Loo) -> str:
    """Return suggestions for a result that is not reliable."""
    suggestions = []
    if any("are sampled" in note for note in result.notes):
        suggestions.append("integrate the latents out;")
    if not result.bad["refitted"].all():
        suggestions.append("refit without them, with hbm_jax.inference.refit, if they are few;")
    if result.bad["refitted"].any():
        suggestions.append("refit again with more draws, num_samples=;")
    suggestions.append("a likelihood with heavier tails, if they are outliers.")
    return " ".join(suggestions)


def loo(fit: Fit, *, site: str | None = None, group=None, chunk: int = CHUNK, num_draws: int | None = None) -> Loo:
    """Compute leave-one-out predictive densities by Pareto-smoothed importance sampling (PSIS-LOO).

    Parameters
    ----------
    fit : Fit
        With its program and data, or with a stored log likelihood; see `log_likelihood`.
    site : str, optional
        Observed site. By default the only one, or the sum of all if they have the same dimensions, so that an object is
        left out with all its measurements.
    group : array or str, optional
        Leave out whole groups: one label for each entry of a dimension of the site, or the name of that dimension, of
        a coordinate, or of a field of the data. Log likelihoods are first summed within each group.
    chunk, num_draws : int
        As in `log_likelihood`.

    Returns
    -------
    Loo
        Its ``str`` states the elpd, whether it is reliable, the units with a bad Pareto k, and suggestions.

    Raises
    ------
    ValueError
        If there is no such site, or if several have different dimensions; if there is a single log likelihood for all
        data, so that nothing can be left out; if the number of group labels is wrong; if sites with correlated elements
        are to be grouped; if a log likelihood is not finite.

    Notes
    -----
    The elpd is the sum over units u of ``log p(y_u | y_-u)``, where ``y_-u`` are the data of all other units and the
    density is integrated over all parameters and latents, those of the unit included. It is therefore the same quantity
    whether latents were integrated out or sampled. With groups it measures the prediction of a *new* group; without
    groups, that of a new observation of known groups.

    The accuracy of importance sampling does depend on the latents. If they were integrated out, the log likelihood is
    marginal, and leaving out one unit changes the global parameters a little. If they were sampled, it is conditional
    on them: without the data of the unit its latents follow the population, far from their posterior, and Pareto k is
    bad for precise data and for nearly every group. Then integrate the latents out, or use `refit`.

    Groups are assumed to be conditionally independent given the global parameters: a latent shared by observations of
    several groups stays known when one of these groups is left out. Elements of one correlated observation
    (`CorrelatedNormal`) are predicted given all others, whose noise they share; groups of them cannot be left out here.

    References: Vehtari, Gelman & Gabry 2017, Statistics and Computing 27, 1413; Vehtari et al. 2024, JMLR 25, 72.

    Examples
    --------
    >>> print(loo(fit, group="survey"))  # doctest: +SKIP
    """
    values, observed = pointwise(fit, chunk, num_draws)
    total, sites = choose_sites(values, site)
    correlated = [name for name in sites if values[name].attrs.get("correlated")]
    if correlated and group is not None:
        raise ValueError(
            f"loo: expected no groups for {', '.join(correlated)}, whose elements are correlated: densities given all "
            "others do not add up to those of groups. Fit the data without each group instead."
        )
    units = into_units(total, group, fit)
    log_likelihood = units.log_likelihood
    finite = np.isfinite(log_likelihood).all(axis=(0, 1))
    if not finite.all():
        first_label = units.labels[int(np.argmin(finite))]
        raise ValueError(
            f"loo: expected finite log likelihoods; found {int((~finite).sum())} {units.name} with NaN or infinity, "
            f"the first being {first_label}."
        )
    notes = _notes(values, sites, units, group is not None)
    informative = np.ptp(log_likelihood, axis=(0, 1)) > 0
    if not informative.all():
        notes.append(
            f"{int((~informative).sum())} excluded because the likelihood does not depend on the parameters (masked?)"
        )
        units = units.only(informative)
        log_likelihood = units.log_likelihood
    if log_likelihood.shape[-1] < 2:
        raise ValueError(
            f"loo: expected the log likelihood of at least two units; found {log_likelihood.shape[-1]} ({units.name})."
        )
    if log_likelihood.shape[-1] < FEW_UNITS:
        notes.append(f"with {log_likelihood.shape[-1]} units the standard error is itself uncertain")
    elpd_data = _psis(log_likelihood, units)
    table = pd.DataFrame(
        {
            "elpd": elpd_data.elpd_i.to_numpy(),
            "pareto_k": elpd_data.pareto_k.to_numpy(),
            "num_observations": units.counts,
            "refitted": False,
            "mc_error": np.nan,
        },
        index=pd.Index(units.labels, name=units.name),
    )
    observed_values = {name: observed[name].to_numpy() for name in sites}
    return Loo(elpd_data, table, units.name, sites, units.dim, units.members, tuple(notes), observed_values)


def _psis(log_likelihood, units):
    """Return ArviZ's PSIS-LOO result for log likelihoods (chain, draw, unit)."""
    likelihood = np.exp(log_likelihood - log_likelihood.max(axis=(0, 1)))
    efficiency = array_stats.ess(likelihood, chain_axis=0, draw_axis=1, method="mean", relative=True)
    array = xr.DataArray(log_likelihood, dims=("chain", "draw", "unit"), name="log_likelihood")
    array = array.assign_coords({dim: np.arange(n) for dim, n in array.sizes.items()} | {"unit": units.labels})
    tree = xr.DataTree.from_dict({"log_likelihood": array.to_dataset()})
    with warnings.catch_warnings():
        # `Loo` reports bad shape parameters, with the names of the units.
        warnings.filterwarnings("ignore", message="Estimated shape parameter")
        result = arviz_loo(tree, pointwise=True, reff=float(np.mean(efficiency)))
    return replace(result, log_weights=None)  # dropped: they take as much memory as the log likelihood


def _notes(values, sites, units, grouped) -> list[str]:
    """Return notes on the sites, their latents and correlations, and on factors."""
    notes = []
    if len(sites) > 1:
        notes.append(f"{', '.join(sites)} are left out together")
    kinds = ("sampled_latents", "sampled_elsewhere") if grouped else ("sampled_latents",)
    texts = [values[site].attrs.get(kind, "") for site in sites for kind in kinds]
    sampled = list(dict.fromkeys(name for text in texts for name in text.split(", ") if name))
    if sampled:
        notes.append(
            f"the latents {', '.join(sampled)} are sampled, not integrated out, so the likelihood is conditional "
            f"on them: without the data of a {units.name} its latents follow the population, which importance sampling "
            "approximates poorly, and the elpd is overestimated"
        )
    if any(values[site].attrs.get("correlated") for site in sites):
        notes.append(f"each {units.name} is predicted given all others, whose noise it shares")
    if values.attrs.get("factors_left_out"):
        notes.append(f"the factors {values.attrs['factors_left_out']} belong to no observation and are not included")
    return notes
