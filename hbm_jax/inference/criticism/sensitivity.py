"""How much the posterior depends on its priors: power scaling of prior and likelihood."""

from dataclasses import dataclass

import jax
import numpy as np
import pandas as pd
import xarray as xr
from arviz_stats import psense
from numpyro.infer.inspect import get_dependencies

from hbm_jax.inference.criticism.pointwise import CHUNK, Replay, log_prob, thinned
from hbm_jax.inference.results import Fit

THRESHOLD = 0.05  # Kallioinen et al. 2024
MAX_SIZE = 20  # elements of a variable that is judged; the latents of a large population are not

CONFLICT = "possible conflict of prior and data"
STRONG_PRIOR = "the prior decides: strong prior or weak data"
DATA = "the data decide"
NEITHER = "neither prior nor data decide"


@dataclass(frozen=True)
class Sensitivity:
    """How much each parameter's posterior moves when prior or likelihood are raised to a power near one.

    Attributes
    ----------
    table : pandas.DataFrame
        One row a parameter: ``prior`` and ``likelihood`` (sensitivities; above 0.05 they matter),
        ``strongest_prior`` (the one whose scaling alone moves it most; empty where none does), ``diagnosis``.
    by_prior : pandas.DataFrame
        Sensitivity of each parameter (row) to each prior alone (column).
    flat : tuple of str
        Priors that are flat, which no power changes.
    left_out : tuple of str
        Sampled sites whose distributions were taken for a part of the model, not scaled.
    """

    table: pd.DataFrame
    by_prior: pd.DataFrame
    flat: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def flagged(self) -> pd.DataFrame:
        """Parameters whose prior matters, the most sensitive first."""
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
                "try: ask whether these priors are what is known; if so, say so beside the result; if not, widen them."
            )
        notes = []
        if self.flat:
            notes.append(
                f"Note: the priors of {', '.join(self.flat)} are flat, which no power changes; whether their bounds "
                "matter is for the verdict to say."
            )
        if self.left_out:
            notes.append(
                f"Note: the distributions of {', '.join(self.left_out)} are taken for a part of the model, not scaled."
            )
        return " ".join([text, *notes])


def prior_sensitivity(
    fit: Fit, *, sites: list[str] | None = None, chunk: int = CHUNK, num_draws: int | None = None
) -> Sensitivity:
    """Sensitivity of the posterior to its priors and to the likelihood, without refitting.

    Parameters
    ----------
    fit : Fit
        With its program and data.
    sites : list of str, optional
        Sampled sites whose distributions are the priors to scale. Where omitted: those outside every plate whose
        distribution depends on no other sampled site, that is the hyperpriors; what is drawn from them, such as the
        latents of objects, is the model.
    chunk, num_draws : int
        As in `log_likelihood`.

    Returns
    -------
    Sensitivity

    Raises
    ------
    ValueError
        If the fit was loaded without its program, if there is no observed site, or no prior to scale.

    Notes
    -----
    The joint prior, and the likelihood, are raised to powers 0.99 and 1.01 by importance sampling; the sensitivity is
    the change of the cumulative Jensen-Shannon distance of a parameter's posterior with the base-2 logarithm of the
    power (Kallioinen et al. 2024, Statistics and Computing 34, 57). It is also computed for each prior alone. A prior
    is the stated density of the parameter itself: a distribution that samples several parameters in other coordinates
    and offers ``priors`` and ``parameters(value)``, as `hbm_jax.distributions.CoordinatePriors` does, is one factor a
    parameter without Jacobian. With sampled latents the likelihood is the one given them.

    Examples
    --------
    >>> print(prior_sensitivity(fit))  # doctest: +SKIP
    """
    replay = Replay(fit, "prior_sensitivity")
    structure = replay.structure
    if not structure.observed:
        raise ValueError("prior_sensitivity: expected a program with observed sites; found none.")
    chosen = _priors(replay, sites)

    def pick(trace):
        factors = {name: value for site in chosen for name, value in _factors(site, trace[site]).items()}
        likelihood = sum(log_prob(trace[name]).sum() for name in structure.observed)
        return {"likelihood": likelihood} | {f"prior {name}": value for name, value in factors.items()}

    densities = replay(pick, chunk=chunk, num_draws=num_draws)
    likelihood = densities.pop("likelihood")
    factors = {name.removeprefix("prior "): value for name, value in densities.items()}
    flat = tuple(name for name, value in factors.items() if _is_flat(value))
    varying = {name: value for name, value in factors.items() if name not in flat}
    labels, draws = _parameters(fit, likelihood.shape, num_draws)
    by_prior = {name: _power_scaled(draws, value) for name, value in varying.items()}
    table = pd.DataFrame(
        {
            "prior": _power_scaled(draws, sum(varying.values(), np.zeros(likelihood.shape))),
            "likelihood": _power_scaled(draws, likelihood),
        },
        index=pd.Index(labels, name="parameter"),
    )
    alone = pd.DataFrame(by_prior, index=table.index, columns=list(varying))
    table["strongest_prior"] = alone.idxmax(axis=1) if varying else ""
    table["diagnosis"] = [_diagnose(*row) for row in table[["prior", "likelihood"]].to_numpy()]
    left_out = tuple(name for name in structure.latents if name not in chosen)
    return Sensitivity(table, alone, flat, left_out)


def _priors(replay: Replay, sites) -> list[str]:
    """Return the sampled sites whose distributions are priors."""
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
        above = get_dependencies(lambda: replay.program(*replay.args))["prior_dependencies"]
    chosen = [name for name, plates in latents.items() if not plates and set(above[name]) <= {name}]
    if not chosen:
        raise ValueError(
            "prior_sensitivity: expected a sampled site outside every plate that depends on no other; found none. Name "
            f"the priors to scale with sites=, among {', '.join(latents)}."
        )
    return chosen


def _factors(name, site) -> dict:
    """Log densities of the stated priors behind a site, by parameter."""
    fn, value = site["fn"], site["value"]
    if not hasattr(fn, "priors") or not hasattr(fn, "parameters"):
        return {name: fn.log_prob(value).sum()}
    parameters = fn.parameters(value)
    return {parameter: prior.log_prob(parameters[parameter]).sum() for parameter, prior in fn.priors.items()}


def _parameters(fit, shape, num_draws) -> tuple[list[str], np.ndarray]:
    """Labels and draws (chain, draw, parameter) of what varies and is not too large."""
    names = iter(fit.verdict.table.index)
    labels, columns = [], []
    for variable in fit.posterior.values():
        values = variable.to_numpy().astype(float)
        values = values[:, thinned(values.shape, num_draws)].reshape(*shape, -1)
        own = [next(names) for _ in range(values.shape[-1])]
        if len(own) > MAX_SIZE:
            continue
        varies = np.ptp(values, axis=(0, 1)) > 0
        labels += [str(label) for label, chosen in zip(own, varies, strict=True) if chosen]
        columns.append(values[..., varies])
    return labels, np.concatenate(columns, axis=-1)


def _power_scaled(draws: np.ndarray, log_density: np.ndarray) -> np.ndarray:
    """ArviZ's sensitivity of each parameter to a power of a density given at the draws (chain, draw)."""
    if _is_flat(log_density):
        return np.zeros(draws.shape[-1])
    coords = {"chain": np.arange(draws.shape[0]), "draw": np.arange(draws.shape[1])}
    posterior = xr.Dataset({"value": (("chain", "draw", "parameter"), draws)}, coords=coords)
    density = xr.Dataset({"density": (("chain", "draw"), log_density)}, coords=coords)
    tree = xr.DataTree.from_dict({"posterior": posterior, "log_prior": density})
    return psense(tree, group="prior")["value"].to_numpy()


def _is_flat(log_density) -> bool:
    return float(np.ptp(log_density)) <= 1e-9 * max(1.0, float(np.abs(log_density).max()))


def _diagnose(prior: float, likelihood: float) -> str:
    if prior >= THRESHOLD:
        return CONFLICT if likelihood >= THRESHOLD else STRONG_PRIOR
    return DATA if likelihood >= THRESHOLD else NEITHER
