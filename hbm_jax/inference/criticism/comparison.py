"""Comparison of models by their leave-one-out predictive densities and their evidences."""

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from arviz_stats import compare as arviz_compare

from hbm_jax.inference.criticism.evidence import Evidence, evidence
from hbm_jax.inference.criticism.leave_out import Loo, loo
from hbm_jax.inference.results import Fit

# Differences of elpd below this are negligible, whatever their error (Sivula et al. 2025, arXiv:2008.10296).
SMALL_DIFFERENCE = 4.0
SURE = 2.0  # standard errors below which a difference is not significant
ROUNDING = 1e-6  # relative difference allowed between the observations of two fits, for float32


@dataclass(frozen=True)
class Comparison:
    """Models ranked by their expected log predictive density (elpd).

    Attributes
    ----------
    table : pandas.DataFrame
        One row per model, the best first: ``elpd``; ``se``, its standard error; ``p``, the effective number of
        parameters; ``elpd_diff``, the difference to the best model (zero or negative); ``dse``, the standard error of
        this difference, from paired units; ``weight``, for stacking of predictive distributions (Yao et al. 2018);
        ``num_bad_k``, the number of units with a bad Pareto k; ``log_evidence`` and ``log_evidence_error``, NaN if the
        evidence was not computed.
    loos : dict of str to Loo
        Leave-one-out results of the models.
    evidences : dict of str to Evidence
        Evidences of the models, where they were computed.
    no_evidence : dict of str to str
        Reason why a model has no evidence, by model.
    """

    table: pd.DataFrame
    loos: dict[str, Loo]
    evidences: dict[str, Evidence] = field(default_factory=dict)
    no_evidence: dict[str, str] = field(default_factory=dict)

    def __str__(self):
        best, *other_names = self.table.index
        clauses = [self._clause(name) for name in other_names]
        text = f"{best} predicts best; {'; '.join(clauses)}."
        num_bad = self.table["num_bad_k"]
        if num_bad.any():
            counts = ", ".join(f"{name} ({count})" for name, count in num_bad[num_bad > 0].items())
            text += f" Not reliable: units with a bad Pareto k in {counts}; see the `loos` of these models."
        return " ".join(
            [text, *self._evidence_clauses(), *(f"No evidence of {n}: {r}" for n, r in self.no_evidence.items())]
        )

    def _evidence_clauses(self) -> list[str]:
        """Return a sentence that compares the evidences; an empty list if there are fewer than two."""
        if len(self.evidences) < 2:
            return []
        best, *others = sorted(self.evidences, key=lambda name: -self.evidences[name].log_evidence)
        clauses = []
        for name in others:
            largest, smaller = self.evidences[best], self.evidences[name]
            error = np.hypot(largest.error, smaller.error)
            clause = f"that of {name} is lower by {largest.log_evidence - smaller.log_evidence:.2f} ± {error:.2g}"
            differing = sorted(set(largest.table.index) ^ set(smaller.table.index))
            if differing:
                clause += f", which depends on the widths of the priors of {', '.join(differing)}"
            clauses.append(clause)
        return [f"{best} has the largest log evidence; {'; '.join(clauses)}."]

    def _clause(self, name) -> str:
        """Return a clause that compares the elpd of a model with the best."""
        difference, error = -self.table.loc[name, "elpd_diff"], self.table.loc[name, "dse"]
        if difference < SMALL_DIFFERENCE:
            comment = "a negligible difference"
        elif difference < SURE * error:
            comment = "which is not significant"
        else:
            comment = f"{difference / error:.1f} standard errors" if error > 0 else "which is significant"
        return f"the elpd of {name} is lower by {difference:.1f} ± {error:.1f}, {comment}"


def compare(
    fits: Mapping[str, Fit | Loo], *, site: str | None = None, group=None, with_evidence: bool = True
) -> Comparison:
    """Compare models of the same observations by PSIS-LOO and by their evidences.

    Parameters
    ----------
    fits : mapping of str to Fit or Loo
        At least two fits by name, or their `Loo` results, which may include refitted units.
    site, group
        As in `loo`.
    with_evidence : bool
        Whether to compute also the `evidence` of each fit; results of `loo` have none.

    Raises
    ------
    ValueError
        If there are fewer than two fits, or if their observations or units differ; the message names the first
        difference.

    Examples
    --------
    >>> print(compare({"flat LCDM": lcdm, "flat wCDM": wcdm}))  # doctest: +SKIP
    """
    if not isinstance(fits, Mapping) or not all(isinstance(fit, Fit | Loo) for fit in fits.values()):
        raise ValueError(
            "compare: expected a dictionary of fits or results of loo by name, as {'line': fit, 'flat': other}; found "
            + (
                ", ".join(sorted({type(f).__name__ for f in fits.values()}))
                if isinstance(fits, Mapping)
                else type(fits).__name__
            )
            + "."
        )
    if len(fits) < 2:
        raise ValueError(f"compare: expected at least two fits; found {len(fits)}.")
    loos = {name: fit if isinstance(fit, Loo) else loo(fit, site=site, group=group) for name, fit in fits.items()}
    first, *other_names = loos
    for name in other_names:
        difference = _difference(loos[first], loos[name], first, name)
        if difference:
            raise ValueError(f"compare: expected fits to the same observations; found that {difference}.")
    pointwise = np.stack([result.table["elpd"].to_numpy() for result in loos.values()])
    # A common shift changes neither differences nor weights, and avoids underflow of the densities.
    shift = pointwise.max(axis=0)
    shifted = {
        name: replace(
            result.elpd_data,
            elpd=float((row - shift).sum()),
            elpd_i=result.elpd_data.elpd_i.copy(data=row - shift),
        )
        for (name, result), row in zip(loos.items(), pointwise, strict=True)
    }
    # From version 1.0 on ArviZ rounds by default, and its differences have the opposite sign.
    unrounded = {"round_to": "none"} if "round_to" in inspect.signature(arviz_compare).parameters else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The inplace keyword")  # ArviZ 0.8 with pandas 3.1
        comparison = arviz_compare(shifted, **unrounded)
    evidences, no_evidence = _evidences(fits if with_evidence else {})
    columns = {
        "elpd": [loos[name].elpd for name in comparison.index],
        "se": [loos[name].se for name in comparison.index],
        "p": [loos[name].p for name in comparison.index],
        "elpd_diff": -comparison["elpd_diff"].abs().astype(float),
        "dse": comparison["dse"].astype(float),
        "weight": comparison["weight"].astype(float),
        "num_bad_k": [len(loos[name].bad) for name in comparison.index],
        "log_evidence": [getattr(evidences.get(name), "log_evidence", np.nan) for name in comparison.index],
        "log_evidence_error": [getattr(evidences.get(name), "error", np.nan) for name in comparison.index],
    }
    return Comparison(pd.DataFrame(columns, index=comparison.index), loos, evidences, no_evidence)


def _evidences(fits: Mapping[str, Fit | Loo]) -> tuple[dict[str, Evidence], dict[str, str]]:
    """Return the evidences of fits, and the reasons why others have none."""
    evidences, reasons = {}, {}
    for name, fit in fits.items():
        if isinstance(fit, Fit):
            try:
                evidences[name] = evidence(fit)
            except ValueError as error:
                reasons[name] = str(error).removeprefix("evidence: ")
    return evidences, reasons


def _difference(a: Loo, b: Loo, name_a: str, name_b: str) -> str:
    """Return the first difference between the observations or units of two results; empty if there is none."""
    if a.sites != b.sites:
        return f"{name_a} has the observed sites {', '.join(a.sites)}, {name_b} has {', '.join(b.sites)}"
    for site in a.sites:
        values_a, values_b = a.observed[site], b.observed[site]
        if values_a.shape != values_b.shape:
            return f"{site} has shape {values_a.shape} in {name_a} and {values_b.shape} in {name_b}"
        differing = np.argwhere(~np.isclose(values_a, values_b, rtol=ROUNDING, atol=0.0, equal_nan=True))
        if len(differing):
            index = tuple(int(i) for i in differing[0])
            element = f"{site}[{', '.join(map(str, index))}]"
            return f"{element} is {values_a[index]:g} in {name_a} and {values_b[index]:g} in {name_b}"
    if list(a.table.index) != list(b.table.index):
        return (
            f"{name_a} leaves out {len(a.table)} x {a.unit}, {name_b} {len(b.table)} x {b.unit}, differently labelled"
        )
    return ""
