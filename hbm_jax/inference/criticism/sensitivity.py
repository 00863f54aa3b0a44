"""Sensitivity of the posterior to prior and likelihood, by power scaling."""

from dataclasses import dataclass

import jax
import numpy as np
import pandas as pd
import xarray as xr
from arviz_stats import psense
from numpyro.infer.inspect import get_dependencies

from hbm_jax.inference.criticism.pointwise import CHUNK, Replay, log_prob, thinned
from hbm_jax.inference.exports import labelled_draws
from hbm_jax.inference.results import Fit

THRESHOLD = 0.05  # sensitivity that is considered relevant: Kallioinen et al. 2024
MAX_SIZE = 20  # elements of the largest variable tested; this excludes the latents of a large population

CONFLICT = "possible conflict of prior and data"
STRONG_PRIOR = "the prior dominates: strong prior or weak data"
DATA = "the data dominate"
NEITHER = "neither prior nor data dominate"


@dataclass(frozen=True)
class Sensitivity:
    """Changes of the posterior of each parameter when prior or likelihood is raised to a power near one.

    Attributes
    ----------
    table : pandas.DataFrame
        One row per parameter: ``prior`` and ``likelihood``, the sensitivities, relevant if 0.05 or more;
        ``strongest_prior``, the prior whose scaling alone changes the parameter most (empty if all priors are flat);
        ``diagnosis``.
    by_prior : pandas.DataFrame
        Sensitivity of each parameter (rows) to each prior alone (columns).
    flat : tuple of str
        Flat priors, which power scaling does not change.
    left_out : tuple of str
        Latent sites whose distributions were treated as part of the model and not scaled.
    """

    table: pd.DataFrame
    by_prior: pd.DataFrame
    flat: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def flagged(self) -> pd.DataFrame:
        """Parameters that are sensitive to their priors, the most sensitive first."""
        return self.table[self.table["prior"] >= THRESHOLD].sort_values("prior", ascending=False)

    def __str__(self):
        if self.flagged.empty:
            text = f"the priors matter little: none of {len(self.table)} parameters has a sensitivity of {THRESHOLD}."
        else:
            clauses = [
                f"{name}: {row['diagnosis']} (prior {row['prior']:.2f}, mostly that of {row['strongest_prior']}; "
                f"likelihood {row['likelihood']:.2f})"
                for name, row in self.flagged.iterrows()
            ]
            text = (
                f"the priors matter for {len(self.flagged)} of {len(self.table)} parameters. {'; '.join(clauses)}. To "
                "try: check whether these priors express prior knowledge; if so, state them with the result; if not, "
                "widen them."
            )
        notes = []
        if self.flat:
            notes.append(
                f"Note: the priors of {', '.join(self.flat)} are flat, which power scaling does not change; see the "
                "verdict for posteriors at their bounds."
            )
        if self.left_out:
            notes.append(
                f"Note: the distributions of {', '.join(self.left_out)} are treated as part of the model and not "
                "scaled."
            )
        return " ".join([text, *notes])


def prior_sensitivity(
    fit: Fit, *, sites: list[str] | None = None, chunk: int = CHUNK, num_draws: int | None = None
) -> Sensitivity:
    """Compute the sensitivity of the posterior to its priors and to the likelihood, without refitting.

    Parameters
    ----------
    fit : Fit
        With its program and data.
    sites : list of str, optional
        Latent sites whose distributions are the priors to scale. By default the hyperpriors: sites outside every plate
        whose distribution depends on no other latent site. Distributions that depend on them, such as those of the
        latents of objects, are part of the model.
    chunk, num_draws : int
        As in `log_likelihood`.

    Raises
    ------
    ValueError
        If the fit was loaded without its program, if there is no observed site, or if there is no prior to scale.

    Notes
    -----
    The joint prior, and the likelihood, are raised to powers 0.99 and 1.01 by importance sampling. The sensitivity is
    the change of the cumulative Jensen-Shannon distance of the posterior of a parameter with the base-2 logarithm of
    the power (Kallioinen et al. 2024, Statistics and Computing 34, 57). It is also computed for each prior alone.

    A prior is the stated density of the parameter itself. A distribution that samples several parameters in other
    coordinates and has ``priors`` and ``parameters(value)``, as `hbm_jax.distributions.CoordinatePriors`, contributes
    one factor per parameter, without Jacobian. If latents are sampled, the likelihood is conditional on them.

    Examples
    --------
    >>> print(prior_sensitivity(fit))  # doctest: +SKIP
    """
    replay = Replay(fit, "prior_sensitivity")
    structure = replay.structure
    if not structure.observed:
        raise ValueError("prior_sensitivity: expected a program with observed sites; found none.")
    prior_sites = _priors(replay, sites)

    def log_densities(trace):
        factors = {name: value for site in prior_sites for name, value in _factors(site, trace[site]).items()}
        likelihood = sum(log_prob(trace[name]).sum() for name in structure.observed)
        return {"likelihood": likelihood} | {f"prior {name}": value for name, value in factors.items()}

    densities = replay(log_densities, chunk=chunk, num_draws=num_draws)
    likelihood = densities.pop("likelihood")
    factors = {name.removeprefix("prior "): value for name, value in densities.items()}
    flat = tuple(name for name, value in factors.items() if _is_flat(value))
    varying = {name: value for name, value in factors.items() if name not in flat}
    labels, draws = _parameters(fit, num_draws)
    by_prior = {name: _power_scaling_sensitivity(draws, value) for name, value in varying.items()}
    table = pd.DataFrame(
        {
            "prior": _power_scaling_sensitivity(draws, sum(varying.values(), np.zeros(likelihood.shape))),
            "likelihood": _power_scaling_sensitivity(draws, likelihood),
        },
        index=pd.Index(labels, name="parameter"),
    )
    by_prior_table = pd.DataFrame(by_prior, index=table.index, columns=list(varying))
    table["strongest_prior"] = by_prior_table.idxmax(axis=1) if varying else ""
    table["diagnosis"] = [_diagnose(*row) for row in table[["prior", "likelihood"]].to_numpy()]
    left_out = tuple(name for name in structure.latents if name not in prior_sites)
    return Sensitivity(table, by_prior_table, flat, left_out)


def _priors(replay: Replay, sites) -> list[str]:
    """Return the latent sites whose distributions are priors."""
    latents = replay.structure.latents
    if sites is not None:
        sites = [sites] if isinstance(sites, str) else sites
        unknown = [name for name in sites if name not in latents]
        if unknown or not sites:
            raise ValueError(
                f"prior_sensitivity: expected sites among {', '.join(latents)}; found {', '.join(unknown) or 'none'}."
            )
        return list(sites)
    with jax.enable_x64(True):
        dependencies = get_dependencies(lambda: replay.program(*replay.args))["prior_dependencies"]
    hyperpriors = [name for name, plates in latents.items() if not plates and set(dependencies[name]) <= {name}]
    if not hyperpriors:
        raise ValueError(
            "prior_sensitivity: expected a sampled site outside every plate that depends on no other; found none. Name "
            f"the priors to scale with sites=, among {', '.join(latents)}."
        )
    return hyperpriors


def _factors(name, site) -> dict:
    """Return the log densities of the stated priors of a site, by parameter."""
    fn, value = site["fn"], site["value"]
    if not hasattr(fn, "priors") or not hasattr(fn, "parameters"):
        return {name: fn.log_prob(value).sum()}
    parameters = fn.parameters(value)
    return {parameter: prior.log_prob(parameters[parameter]).sum() for parameter, prior in fn.priors.items()}


def _parameters(fit, num_draws) -> tuple[list[str], np.ndarray]:
    """Return labels and draws (chain, draw, parameter) of variables that vary and have at most `MAX_SIZE` elements."""
    labels, columns = [], []
    for _, elements, draws in labelled_draws(fit.posterior, fit.verdict):
        if len(elements) > MAX_SIZE:
            continue
        values = draws[:, thinned(draws.shape, num_draws)].astype(float)
        varies = np.ptp(values, axis=(0, 1)) > 0
        labels += [label for label, is_varying in zip(elements, varies, strict=True) if is_varying]
        columns.append(values[..., varies])
    return labels, np.concatenate(columns, axis=-1)


def _power_scaling_sensitivity(draws: np.ndarray, log_density: np.ndarray) -> np.ndarray:
    """Return the sensitivity (ArviZ) of each parameter to a density whose logarithm at the draws is (chain, draw)."""
    if _is_flat(log_density):
        return np.zeros(draws.shape[-1])
    coords = {"chain": np.arange(draws.shape[0]), "draw": np.arange(draws.shape[1])}
    posterior = xr.Dataset({"value": (("chain", "draw", "parameter"), draws)}, coords=coords)
    density = xr.Dataset({"density": (("chain", "draw"), log_density)}, coords=coords)
    tree = xr.DataTree.from_dict({"posterior": posterior, "log_prior": density})
    return psense(tree, group="prior")["value"].to_numpy()


def _is_flat(log_density) -> bool:
    """Return whether a log density is constant up to rounding."""
    return float(np.ptp(log_density)) <= 1e-9 * max(1.0, float(np.abs(log_density).max()))


def _diagnose(prior: float, likelihood: float) -> str:
    """Return the diagnosis for the sensitivities to prior and likelihood."""
    if prior >= THRESHOLD:
        return CONFLICT if likelihood >= THRESHOLD else STRONG_PRIOR
    return DATA if likelihood >= THRESHOLD else NEITHER
