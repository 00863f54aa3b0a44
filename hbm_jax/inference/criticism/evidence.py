"""Evidence (marginal likelihood) of a model by bridge sampling."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from arviz_stats.base import array_stats
from numpyro import distributions as dist
from scipy.linalg import solve_triangular
from scipy.optimize import brentq
from scipy.special import expit

from hbm_jax.inference.arguments import prior_trace
from hbm_jax.inference.blinding.blinding import unconstrained_draws
from hbm_jax.inference.compilation.chunks import map_in_chunks
from hbm_jax.inference.criticism.pointwise import CHUNK, program_of
from hbm_jax.inference.results import Fit
from hbm_jax.inference.sampler.target import build_target, is_observation

DRAWS_PER_PARAMETER = 10  # draws in the first halves of the chains, from which the covariance is estimated
NUM_PRIOR_DRAWS = 1000  # from which the widths of the priors are computed
MAX_SIZE = 20  # elements of the largest site in `Evidence.table`; this leaves out the latents of a large population
NOTABLE_ERROR = 0.1  # error of the log evidence above which a note is written
INTERVAL = (0.16, 0.84)  # quantiles whose distance is twice a width


@dataclass(frozen=True)
class Evidence:
    """Evidence of a model: the probability density of the data, averaged over the prior.

    Attributes
    ----------
    log_evidence : float
        Its natural logarithm.
    error : float
        Monte Carlo standard error of `log_evidence`, with the autocorrelation of the chains.
    num_draws, num_parameters : int
        Number of posterior draws, and of unconstrained parameters.
    table : pandas.DataFrame
        One row per parameter: ``prior_width`` and ``posterior_width``, half of the 68 % intervals, and their ``ratio``.
        If the ratio is large, a prior k times as wide lowers `log_evidence` by ln k.
    notes : tuple of str
        Remarks for the reader, one clause each.
    """

    log_evidence: float
    error: float
    num_draws: int
    num_parameters: int
    table: pd.DataFrame
    notes: tuple[str, ...] = ()

    def __str__(self):
        text = (
            f"log evidence {self.log_evidence:.2f} ± {self.error:.2g}, of {self.num_parameters} parameters. It depends "
            "on the widths of the priors: one k times as wide lowers it by ln k if the data determine the parameter"
        )
        ratios = self.table["ratio"].sort_values(ascending=False)
        wide_priors = ", ".join(f"{name} ({ratio:.2g})" for name, ratio in ratios[ratios > 2].head(5).items())
        text += f". Priors are wider than posteriors, by factors, for {wide_priors}." if wide_priors else "."
        return " ".join([text, *(f"Note: {note}." for note in self.notes)])


def evidence(fit: Fit, *, seed: int = 0, chunk: int = CHUNK) -> Evidence:
    """Compute the evidence of a fitted model by bridge sampling.

    Parameters
    ----------
    fit : Fit
        Fit with its program and data. All priors must be proper and normalised.
    seed : int
        Seed of the proposals.
    chunk : int
        Densities evaluated in one batch.

    Raises
    ------
    TypeError
        If ``fit`` is not a `Fit`, such as the result of `fit_each`, which keeps no draws of the latents.
    ValueError
        If the fit was loaded without its program or with another one; if it has no data, an improper prior, a masked
        latent, or a site scaled by `numpyro.handlers.scale`; if there are fewer than 20 draws for each unconstrained
        parameter.

    Notes
    -----
    The estimator is the optimal bridge of Meng & Wong (1996, Statistica Sinica 6, 831) between the posterior, in
    unconstrained parameters, and a normal proposal. The first halves of the chains give the mean and covariance of the
    proposal, and the second halves the draws of the bridge. The posterior is made symmetric about the mean, which
    preserves its integral and removes skewness (Warp-III, Meng & Schilling 2002, JCGS 11, 552; Gronau et al. 2017, J.
    Math. Psychol. 81, 80). The error is that of Fruehwirth-Schnatter (2004, Econometrics Journal 7, 143); it is valid
    if the chains cover the posterior.

    The likelihood is the product of observed sites and `numpyro.factor` terms as they are. Constants that they omit,
    such as a function of the counts in a statistic, are missing in the evidence, but cancel in differences between
    models of the same data.

    Examples
    --------
    >>> print(evidence(fit))  # doctest: +SKIP
    """
    if not isinstance(fit, Fit):
        raise TypeError(
            f"evidence: expected a Fit, as returned by hbm_jax.sample; found {type(fit).__name__}, which does not have "
            "the draws of all parameters."
        )
    program, args = program_of(fit, "evidence"), fit.bound_args
    draws = unconstrained_draws(fit)
    positions = draws.to_numpy().astype(float)
    half = positions.shape[1] // 2
    first, second = positions[:, :half].reshape(-1, positions.shape[-1]), positions[:, half:]
    _require_draws(*first.shape)
    with jax.enable_x64(True):
        target = build_target(program, args, None)
        if tuple(map(str, draws["parameter"].to_numpy())) != target.labels:
            raise ValueError(
                f"evidence: expected the program of the draws, with {positions.shape[-1]} unconstrained parameters; "
                f"found another, with {target.size}."
            )
        factors = _require_normalised(program, args)
        log_density = _batched_log_density(target.potential, chunk)
        log_evidence, error = bridge(log_density, first, second, np.random.default_rng(seed))
        table = _widths(program, args, fit)
    notes = [f"the terms of numpyro.factor are taken as they are ({', '.join(factors)})"] if factors else []
    if not error < NOTABLE_ERROR:
        notes.append(f"an error above {NOTABLE_ERROR} is itself uncertain: draw more samples")
    if not fit.verdict.usable:
        notes.append("the draws are not usable, according to the verdict of the fit")
    return Evidence(log_evidence, error, positions[..., 0].size, target.size, table, tuple(notes))


def _require_draws(num: int, size: int) -> None:
    """Raise ValueError if there are too few draws to estimate a covariance."""
    if num < DRAWS_PER_PARAMETER * size:
        raise ValueError(
            f"evidence: expected {2 * DRAWS_PER_PARAMETER * size} draws or more for {size} unconstrained parameters; "
            f"found {2 * num}. Draw more samples, or integrate latents out in the program."
        )


def bridge(
    log_density: Callable[[np.ndarray], np.ndarray], first: np.ndarray, second: np.ndarray, rng: np.random.Generator
) -> tuple[float, float]:
    """Compute the logarithm of the integral of a density, and its standard error, by bridge sampling.

    Parameters
    ----------
    log_density : callable
        (num, size) -> (num,), the logarithm of the density to be integrated.
    first : (num, size)
        Draws from which the proposal is made.
    second : (chain, draw, size)
        Other draws, for the bridge. As many proposals are drawn.
    rng : numpy.random.Generator
        Generator of the proposals.

    Raises
    ------
    ValueError
        If the covariance of the first draws is singular, or the density is not finite at all second draws.
    """
    num_chains, num_draws, size = second.shape
    mean = first.mean(axis=0)
    try:
        factor = np.linalg.cholesky(np.atleast_2d(np.cov(first, rowvar=False)))
    except np.linalg.LinAlgError:
        raise ValueError(
            "evidence: expected draws whose covariance is positive definite; found parameters that do not vary, or are "
            "functions of others."
        ) from None
    log_det = np.log(np.diag(factor)).sum()

    def log_ratio(standardised):
        """Log ratio of the density, symmetrised and standardised, to the standard normal; NaN counts as zero."""
        shift = standardised @ factor.T
        log_sum = np.logaddexp(*(np.nan_to_num(log_density(mean + x), nan=-np.inf) for x in (shift, -shift)))
        log_normal = -0.5 * (standardised**2).sum(axis=-1) - 0.5 * size * np.log(2.0 * np.pi)
        return log_sum - np.log(2.0) + log_det - log_normal

    flat = (second - mean).reshape(-1, size)
    draw_ratios = log_ratio(solve_triangular(factor, flat.T, lower=True).T)
    proposal_ratios = log_ratio(rng.normal(size=(len(flat), size)))
    if not np.isfinite(draw_ratios).all():
        raise ValueError(
            f"evidence: expected a finite density at all draws; found {(~np.isfinite(draw_ratios)).sum()} others."
        )
    ess = float(array_stats.ess(draw_ratios.reshape(num_chains, num_draws), chain_axis=0, draw_axis=1, method="mean"))
    fraction = ess / (ess + len(flat))  # of the bridge that belongs to the posterior
    shift = np.log(fraction / (1.0 - fraction))

    def terms(log_integral):
        return expit(proposal_ratios - log_integral + shift) / fraction, expit(log_integral - draw_ratios - shift) / (
            1 - fraction
        )

    def imbalance(log_integral):
        proposals, draws = terms(log_integral)
        return draws.mean() - proposals.mean()

    finite = np.concatenate([draw_ratios, proposal_ratios[np.isfinite(proposal_ratios)]])
    log_integral = brentq(imbalance, finite.min() - 50.0, finite.max() + 50.0, xtol=1e-9)
    proposals, draws = terms(log_integral)
    ess = float(array_stats.ess(draws.reshape(num_chains, num_draws), chain_axis=0, draw_axis=1, method="mean"))
    variance = np.var(proposals) / proposals.mean() ** 2 / len(proposals) + np.var(draws) / draws.mean() ** 2 / ess
    return float(log_integral), float(np.sqrt(variance))


def _batched_log_density(potential: Callable, chunk: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return the log density of many positions (num, size), compiled once for batches of ``chunk``."""
    if chunk < 1:
        raise ValueError(f"chunk: expected 1 or more at a time; found {chunk}.")
    run = jax.jit(jax.vmap(lambda flat: -potential(flat)))
    return lambda positions: map_in_chunks(run, chunk, positions)


def _require_normalised(program: Callable, args: tuple) -> list[str]:
    """Return the names of factors; raise ValueError if a prior is not normalised or nothing is observed."""
    sites: dict[str, list[str]] = {"observed": [], "factors": []}

    def record(key):
        for name, site in prior_trace(program, args, key).items():
            if site["type"] != "sample":
                continue
            if site["scale"] is not None:
                raise ValueError(f"evidence: expected a density without numpyro.handlers.scale; found it at {name!r}.")
            if site["is_observed"]:
                sites["observed" if is_observation(site) else "factors"].append(name)
            elif problem := _improper(site["fn"]):
                raise ValueError(
                    f"evidence: expected proper priors, because an improper one has no evidence; found {problem} of "
                    f"{name!r}."
                )
        return 0

    jax.eval_shape(record, jax.random.key(0))
    if not any(sites.values()):
        raise ValueError("evidence: expected a program with data; found no observed site, so that the evidence is 1.")
    return [name for name in sites["factors"] if not name.startswith("_")]


def _improper(fn: Any) -> str:
    """Describe the part of a prior that does not integrate to one; empty if it does."""
    while fn is not None:
        if isinstance(fn, dist.ImproperUniform):
            return "the improper prior"
        if isinstance(fn, dist.MaskedDistribution):
            return "a mask in place of the prior"
        fn = getattr(fn, "base_dist", None)
    return ""


def _widths(program: Callable, args: tuple, fit: Fit) -> pd.DataFrame:
    """Return widths of prior and posterior of the parameters, as in `Evidence.table`; empty without prior draws."""

    def draw(key):
        return {
            name: jnp.ravel(site["value"])
            for name, site in prior_trace(program, args, key).items()
            if name in fit.posterior.data_vars
            and not site.get("cond_indep_stack")
            and np.size(site["value"]) <= MAX_SIZE
        }

    keys = jax.random.split(jax.random.key(0), NUM_PRIOR_DRAWS)
    prior = jax.device_get(jax.jit(jax.vmap(draw))(keys))
    rows = {}
    for name, draws in prior.items():
        variable = fit.posterior[name].transpose("chain", "draw", ...)
        posterior = variable.to_numpy().reshape(-1, draws.shape[-1])
        labels = [name] if variable.ndim == 2 else [f"{name}[{k}]" for k in range(draws.shape[-1])]
        for label, *columns in zip(labels, draws.T, posterior.T, strict=True):
            widths = [float(np.diff(np.nanquantile(column, INTERVAL))[0] / 2.0) for column in columns]
            if all(width > 0 for width in widths):
                rows[label] = [*widths, widths[0] / widths[1]]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["prior_width", "posterior_width", "ratio"])
