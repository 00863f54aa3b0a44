"""Comparison of models by how well they predict data left out."""

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from arviz_stats import compare as arviz_compare

from hbm_jax.inference.criticism.leave_out import Loo, loo
from hbm_jax.inference.results import Fit

SAME = 4.0  # elpd differences below this are small whatever their error: Sivula et al. 2025, arXiv:2008.10296
SURE = 2.0  # standard errors
ROUNDING = 1e-6  # relative, by which observations may differ: those of float32


@dataclass(frozen=True)
class Comparison:
    """Models in the order of how well they predict.

    Attributes
    ----------
    table : pandas.DataFrame
        One row a model, the best first: ``elpd``, its ``se``, ``p`` (effective number of parameters), ``elpd_diff`` to
        the best model (zero or negative), ``dse`` (the standard error of that difference, from pairs of the same unit),
        ``weight`` (stacking of predictive distributions, Yao et al. 2018), ``num_bad_k``.
    loos : dict of str to Loo
        What it was made from.
    """

    table: pd.DataFrame
    loos: dict[str, Loo]

    def __str__(self):
        best, *others = self.table.index
        clauses = [self._clause(name) for name in others]
        text = f"{best} predicts best; {'; '.join(clauses)}."
        bad = self.table["num_bad_k"]
        if bad.any():
            named = ", ".join(f"{name} ({count})" for name, count in bad[bad > 0].items())
            text += f" Not reliable: units with a bad Pareto k in {named}; see the loos of these models."
        return text

    def _clause(self, name):
        difference, error = -self.table.loc[name, "elpd_diff"], self.table.loc[name, "dse"]
        if difference < SAME:
            judgement = "which is practically the same"
        elif difference < SURE * error:
            judgement = "which the data cannot tell apart"
        else:
            judgement = f"{difference / error:.1f} standard errors" if error > 0 else "for certain"
        return f"{name} is behind by {difference:.1f} ± {error:.1f}, {judgement}"


def compare(fits: Mapping[str, Fit | Loo], *, site: str | None = None, group=None) -> Comparison:
    """Compare models of the same observations by PSIS-LOO.

    Parameters
    ----------
    fits : mapping of str to Fit or Loo
        At least two, by name. A `Loo`, perhaps with refitted units, is taken as it is.
    site, group
        As in `loo`.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        If there are fewer than two, or if they are not of the same observations, left out in the same units: the first
        difference is named.

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
    loos = {n: fit if isinstance(fit, Loo) else loo(fit, site=site, group=group) for n, fit in fits.items()}
    first, *others = loos
    for name in others:
        difference = _difference(loos[first], loos[name], first, name)
        if difference:
            raise ValueError(f"compare: expected fits to the same observations; found that {difference}.")
    pointwise = np.stack([result.table["elpd"].to_numpy() for result in loos.values()])
    # Differences and weights do not change with what all models share, while densities themselves may underflow.
    shift = pointwise.max(axis=0)
    shifted = {
        name: replace(
            result.elpd_data,
            elpd=float((row - shift).sum()),
            elpd_i=result.elpd_data.elpd_i.copy(data=row - shift),
        )
        for (name, result), row in zip(loos.items(), pointwise, strict=True)
    }
    # From 1.0 on ArviZ rounds unless told not to, and has differences with the other sign.
    unrounded = {"round_to": "none"} if "round_to" in inspect.signature(arviz_compare).parameters else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The inplace keyword")  # ArviZ 0.8 with pandas 3.1
        found = arviz_compare(shifted, **unrounded)
    columns = {
        "elpd": [loos[name].elpd for name in found.index],
        "se": [loos[name].se for name in found.index],
        "p": [loos[name].p for name in found.index],
        "elpd_diff": -found["elpd_diff"].abs().astype(float),
        "dse": found["dse"].astype(float),
        "weight": found["weight"].astype(float),
        "num_bad_k": [len(loos[name].bad) for name in found.index],
    }
    return Comparison(pd.DataFrame(columns, index=found.index), loos)


def _difference(a: Loo, b: Loo, name_a: str, name_b: str) -> str:
    """Return the first difference in what two results are of; empty where there is none."""
    if a.sites != b.sites:
        return f"{name_a} has the observed sites {', '.join(a.sites)}, {name_b} has {', '.join(b.sites)}"
    for site in a.sites:
        x, y = a.observed[site], b.observed[site]
        if x.shape != y.shape:
            return f"{site} has shape {x.shape} in {name_a} and {y.shape} in {name_b}"
        differing = np.argwhere(~np.isclose(x, y, rtol=ROUNDING, atol=0.0, equal_nan=True))
        if len(differing):
            at = tuple(int(i) for i in differing[0])
            return f"{site}[{', '.join(map(str, at))}] is {x[at]:g} in {name_a} and {y[at]:g} in {name_b}"
    if list(a.table.index) != list(b.table.index):
        return (
            f"{name_a} leaves out {len(a.table)} x {a.unit}, {name_b} {len(b.table)} x {b.unit}, differently labelled"
        )
    return ""
