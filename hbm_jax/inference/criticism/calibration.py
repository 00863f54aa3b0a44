"""Simulation-based calibration: a test of whether the posteriors of a model are unbiased and of the right width.

Parameters are drawn from the prior, data are simulated from the parameters, and the posterior of each data set is
sampled. If program and sampler are correct, the rank of each true value among the draws of its posterior is uniform
(Talts et al. 2018, arXiv:1804.06788). The log density is ranked as well, as Modrak et al. 2023, Bayesian Analysis,
doi:10.1214/23-BA1404 advise.

This tests the computation: the sampler, and the density against the simulator, which are the same program. It does not
test whether the program describes measured data; predictive checks do.
"""

import functools
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pandas as pd
from numpyro import handlers
from numpyro.distributions import Unit, biject_to
from numpyro.infer.initialization import init_to_sample
from numpyro.infer.util import potential_energy
from numpyro.primitives import Messenger
from scipy import stats

from hbm_jax.files import atomic_write
from hbm_jax.inference.batch.fit_each import INTERRUPTED, fit_each
from hbm_jax.inference.criticism.predictive import unobserved
from hbm_jax.inference.results import describe, provenance
from hbm_jax.inference.sampler.fingerprint import identify
from hbm_jax.inference.sampler.loop import Interrupted
from hbm_jax.names import did_you_mean

LEVEL = 0.01  # probability that a correct program fails, over all its parameters together
RANKS = 100  # number of possible ranks: 99 draws of each posterior are kept
SIMULATIONS = 100_000  # simulated sets of uniform ranks, for the bands
LARGEST_SITE = 20  # elements of the largest site ranked by default; this leaves out the latents of a large population
LOG_DENSITY = "log density"
LOG_LIKELIHOOD = "log likelihood"
FIT_OPTIONS = tuple(inspect.signature(fit_each).parameters)
ARGUMENTS = (
    "num_replicates",
    "seed",
    "parameters",
    "num_chains",
    "num_warmup",
    "max_num_samples",
    "executor",
    "fitted",
)


@dataclass(frozen=True)
class ReplacedData:
    """A program with the values of its observed sites as argument.

    Attributes
    ----------
    program : callable
        The program.
    args : tuple
        Arguments of the program. Their observations are replaced.
    """

    program: Callable
    args: tuple

    def __call__(self, values: Mapping[str, Any]):
        """Run the program with ``values`` of the observed sites, by name."""
        with _WithObservations(values):
            return self.program(*self.args)


@dataclass(frozen=True)
class _WithLikelihood:
    """A program that also records the log likelihood of its observed sites."""

    program: Callable

    def __call__(self, *args):
        with handlers.trace() as trace:
            result = self.program(*args)
        log_likelihood = _log_likelihood(trace, [name for name, site in trace.items() if _is_data(site)])
        numpyro.deterministic(LOG_LIKELIHOOD, log_likelihood)
        return result


class _WithObservations(Messenger):
    """Handler that replaces the values of observed sites."""

    def __init__(self, values):
        super().__init__(None)
        self.values = values

    def process_message(self, msg):
        """Replace the value of an observed site."""
        if msg["type"] == "sample" and msg["is_observed"] and msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]


@dataclass(frozen=True)
class Calibration:
    """Result of `calibrate`.

    Attributes
    ----------
    ranks : pandas.DataFrame
        Rank of the true value, 0 to 99, of each parameter (columns) in each replicate (rows).
    table : pandas.DataFrame
        One row per parameter: ``p``, the p-value of uniform ranks, combined from tests of the ECDF, the mean and the
        spread; ``mean_rank``, the mean of the ranks scaled to 0 to 1, expected 0.5; ``spread``, their standard
        deviation relative to that of a uniform distribution, expected 1; ``verdict``.
    num_failed : int
        Number of replicates without a usable posterior. Their ranks are included where there are draws.
    run : dict
        Program, data, seeds and versions.
    """

    ranks: pd.DataFrame
    table: pd.DataFrame
    num_failed: int
    run: dict[str, Any] = field(repr=False)

    @property
    def calibrated(self) -> bool:
        """Whether the ranks of all parameters are uniform, at a family-wise level of 1 %."""
        return not (self.table["p"] < LEVEL / len(self.table)).any()

    def __str__(self):
        num_replicates = len(self.ranks)
        if self.calibrated:
            text = f"calibrated: the ranks of {len(self.table)} quantities in {num_replicates} replicates are uniform"
        else:
            failing = self.table[self.table["p"] < LEVEL / len(self.table)].sort_values("p")
            clauses = "; ".join(f"{name} is {row['verdict']}" for name, row in failing.head(5).iterrows())
            text = f"not calibrated, according to {num_replicates} replicates: {clauses}"
        if self.num_failed:
            text += f" ({self.num_failed} replicates gave no usable posterior)"
        return text + "."

    def save(self, path: str | os.PathLike) -> Path:
        """Write a certificate as JSON: program, versions, seeds, verdict and all ranks."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        certificate = {
            "certificate": "simulation-based calibration",
            "calibrated": self.calibrated,
            "verdict": str(self),
            "level": LEVEL,
            "possible_ranks": RANKS,
            "table": self.table.reset_index(names="parameter").to_dict("records"),
            "num_failed": self.num_failed,
            "run": self.run,
            "ranks": {name: column.tolist() for name, column in self.ranks.items()},
        }
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(certificate, indent=1))
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Calibration":
        """Read a certificate.

        Raises
        ------
        ValueError
            If the file is not a calibration certificate.
        """
        try:
            certificate = json.loads(Path(path).read_text())
            table = pd.DataFrame(certificate["table"]).set_index("parameter")
            return cls(pd.DataFrame(certificate["ranks"]), table, certificate["num_failed"], certificate["run"])
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: expected a calibration certificate; found something else ({error}).") from None


def calibrate(
    program: Callable,
    *args: Any,
    num_replicates: int = 512,
    seed: int = 0,
    parameters: Sequence[str] | None = None,
    num_chains: int = 4,
    num_warmup: int = 200,
    max_num_samples: int = 1000,
    executor: Executor | None = None,
    progress: bool = True,
    fitted: Callable | None = None,
    **options: Any,
) -> Calibration:
    """Test whether the posteriors of a program are calibrated, on data simulated by it.

    Parameters
    ----------
    program : callable
        A model of hbm_jax or any NumPyro program.
    *args
        Arguments of the program: the design. The values of observed sites are replaced by simulated ones. Anything else
        that the program computes from the observations, such as a prior from their scatter, would still use those in
        ``args`` and make the test invalid.
    num_replicates : int
        Number of simulated data sets, 20 or more.
    seed : int
        Seed.
    parameters : sequence of str, optional
        Sites to rank; by default all with at most 20 elements. The log density is ranked as well if ``fitted`` has the
        same latent sites.
    num_chains, num_warmup, max_num_samples, executor
        As in `fit_each`.
    progress : bool
        Whether to show a progress line.
    fitted : callable, optional
        Another program with the same sites to fit to the data of ``program``, to see the effect of a wrong model.
    **options
        Further options of `fit_each`.

    Returns
    -------
    Calibration
        Ranks, and a verdict for every parameter.

    Raises
    ------
    Interrupted
        On Ctrl-C.
    TypeError
        If an option is unknown.
    ValueError
        If the program has no observed sites, or a numpyro.factor, which cannot be simulated; if ``parameters`` has an
        unknown name; if more than half of the simulated data sets are invalid.

    Notes
    -----
    A program whose parametrisation depends on the data (``program.observing(values, *args)``) is reparametrised for
    every replicate. The density of the parameters then differs between replicates, so that the log likelihood is ranked
    in place of the log density.
    """
    if num_replicates < 20:
        raise ValueError(f"calibrate: expected num_replicates >= 20; found {num_replicates}.")
    for name in options:
        if name not in FIT_OPTIONS or name in ("data", "names", "until", "num_samples", "keep_draws"):
            suggestion = did_you_mean(name, (*ARGUMENTS, *FIT_OPTIONS))
            raise TypeError(f"calibrate: unknown option {name!r}{suggestion}.")
    fitted = fitted or program
    truths, data, log_density = _simulate(program, args, fitted, num_replicates, seed)
    observing = getattr(fitted, "observing", None)
    density_site, density_label = ("lp", LOG_DENSITY) if observing is None else (LOG_LIKELIHOOD, LOG_LIKELIHOOD)
    if parameters is None:
        parameters = [name for name, values in truths.items() if values[0].size <= LARGEST_SITE]
    unknown = [name for name in parameters if name not in truths]
    if unknown:
        raise ValueError(f"calibrate: expected parameters among {', '.join(truths)}; found {', '.join(unknown)}.")
    objects: list[Any] = [{name: values[i] for name, values in data.items()} for i in range(num_replicates)]
    if observing is not None:
        objects = [observing(values, *args) for values in objects]
    fits = fit_each(
        ReplacedData(fitted, args) if observing is None else _WithLikelihood(fitted),
        objects,
        seed=seed + 1,
        num_chains=num_chains,
        num_warmup=num_warmup,
        until=1.2 * (RANKS - 1),
        max_num_samples=max_num_samples,
        executor=executor,
        progress=progress,
        keep_draws=[*parameters, density_site],
        **options,
    )
    if fits.verdicts["why"].str.startswith(INTERRUPTED).any():
        # The replicates that finish first are the easy ones: their ranks alone would not be uniform.
        raise Interrupted(f"calibrate: interrupted with {len(fits.kept)} of {num_replicates} replicates done.")
    rng = np.random.default_rng(seed)
    columns: dict[str, np.ndarray | None] = {}
    replicates = [i for i in range(num_replicates) if i in fits.kept]
    for name in parameters:
        draws = np.stack([_thinned(fits.kept[i][name]) for i in replicates])
        true_values = truths[name][replicates]
        for index in np.ndindex(true_values.shape[1:]):
            label = f"{name}[{', '.join(map(str, index))}]" if index else name
            columns[label] = _rank(draws[(slice(None), slice(None), *index)], true_values[(slice(None), *index)], rng)
    if log_density is not None:
        densities = np.stack([_thinned(fits.kept[i][density_site]) for i in replicates])
        columns[density_label] = _rank(densities, log_density[replicates], rng)
    columns = {name: ranks for name, ranks in columns.items() if ranks is not None}
    ranks = pd.DataFrame(columns, index=replicates)
    identity = identify(program, args, {"seed": seed, "num_replicates": num_replicates, "num_chains": num_chains})
    run = identity | {"about": describe(program, args[0] if args else None)} | provenance() | {"cost": fits.cost}
    if fitted is not program:
        run["fitted"] = identify(fitted, args, {})["program"]
    return Calibration(ranks, judge_ranks(ranks, seed), int((~fits.usable).sum()), run)


def _simulate(program, args, fitted, num_replicates, seed):
    """Simulate true values and data, and evaluate the log density of the fitted program at the true values.

    The density is None if the fitted program has other latents. It is the log likelihood if the parametrisation of the
    fitted program depends on the data.
    """
    simulator = unobserved(program)
    data_names: list[str] = []  # observed sites
    site_order: list[str] = []  # named sites in the order of the program
    latents: set[str] = set()
    fitted_latents: set[str] = set()
    factors: list[str] = []

    def inspect_sites():
        trace = _trace(program, args)
        simulated = handlers.trace(handlers.seed(simulator, jax.random.key(0))).get_trace(*args)
        factors.extend(
            name
            for name, site in simulated.items()
            if site["type"] == "sample" and isinstance(site["fn"], Unit) and not name.startswith("_")
        )
        data_names.extend(name for name, site in trace.items() if _is_data(site))
        latents.update(name for name, site in trace.items() if site["type"] == "sample" and not site["is_observed"])
        fitted_latents.update(
            name for name, site in _trace(fitted, args).items() if site["type"] == "sample" and not site["is_observed"]
        )
        return 0

    with jax.enable_x64(True):
        jax.eval_shape(inspect_sites)
        if factors:
            raise ValueError(
                f"calibrate: expected a program whose data can be simulated; found numpyro.factor {factors[0]!r}, "
                "which simulated parameters and data do not follow. Write it as a prior or as an observed site."
            )
        if not data_names:
            raise ValueError("calibrate: expected a program with observed sites; found none.")
        same_latents, reparametrised_by_data = latents == fitted_latents, hasattr(fitted, "observing")

        def replicate(key):
            trace = handlers.trace(handlers.seed(simulator, key)).get_trace(*args)
            sites = {name: site for name, site in trace.items() if site["type"] in ("sample", "deterministic")}
            data = {name: sites[name]["value"] for name in data_names}
            truth = {
                name: site["value"]
                for name, site in sites.items()
                if name not in data_names and not name.startswith("_") and not isinstance(site.get("fn"), Unit)
            }
            unconstrained = {
                name: biject_to(site["fn"].support).inv(site["value"])
                for name, site in sites.items()
                if site["type"] == "sample" and name not in data_names and not site["is_observed"]
            }
            site_order[:] = truth
            density = jnp.zeros(())
            if reparametrised_by_data:
                density = _log_likelihood(sites, data_names)
            elif same_latents:
                density = -potential_energy(ReplacedData(fitted, args), (data,), {}, unconstrained)
            return truth, data, density

        run = jax.jit(jax.vmap(replicate))
        keys = jax.random.split(jax.random.key(seed), 2 * num_replicates)
        truth, data, density = jax.device_get(run(keys))
        # A prior may allow parameters without data (a universe without a big bang): their density is not finite.
        valid = np.flatnonzero(
            np.isfinite(density) & np.all([np.isfinite(v).reshape(len(v), -1).all(1) for v in data.values()], axis=0)
        )
        if len(valid) < num_replicates:
            raise ValueError(
                f"calibrate: expected at least half of the prior draws to give finite data and densities; found "
                f"{len(valid)} of {len(keys)}. The first that does not is number "
                f"{np.setdiff1d(np.arange(len(keys)), valid)[0]}."
            )
        rows = valid[:num_replicates]
        truth = {name: truth[name][rows] for name in site_order}
        data = {name: data[name][rows] for name in data_names}
        return truth, data, density[rows] if same_latents or reparametrised_by_data else None


def _trace(program, args):
    seeded = handlers.seed(program, jax.random.key(0))
    return handlers.trace(handlers.substitute(seeded, substitute_fn=init_to_sample())).get_trace(*args)


def _log_likelihood(sites, names) -> jax.Array:
    """Return the log likelihood of the observed sites of a trace."""
    return sum((jnp.sum(sites[name]["fn"].log_prob(sites[name]["value"])) for name in names), jnp.zeros(()))


def _is_data(site) -> bool:
    return site["type"] == "sample" and site["is_observed"] and not isinstance(site["fn"], Unit)


def _rank(draws, true_values, rng) -> np.ndarray | None:
    """Rank each true value among draws (replicate, draw), with ties broken at random; None for a constant."""
    num_equal = (draws == true_values[:, None]).sum(1)
    if (num_equal == draws.shape[1]).all():
        return None
    return (draws < true_values[:, None]).sum(1) + rng.integers(0, num_equal + 1)


def _thinned(draws):
    """Return 99 draws, spread evenly over (chain, draw, ...)."""
    flat = draws.reshape(-1, *draws.shape[2:])
    return flat[np.linspace(0, len(flat) - 1, RANKS - 1).round().astype(int)]


def judge_ranks(ranks: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Test whether ranks are uniform.

    Parameters
    ----------
    ranks : DataFrame
        Ranks from 0 to 99, (replicate, parameter).
    seed : int
        Seed of the simulated uniform ranks.

    Returns
    -------
    pandas.DataFrame
        As `Calibration.table`.
    """
    reference = band_statistics(len(ranks), seed)
    rows = {}
    for name, column in ranks.items():
        unevenness = _unevenness(np.bincount(column, minlength=RANKS)[None])[0]
        fractions = (np.asarray(column) + 0.5) / RANKS
        mean_z = (fractions.mean() - 0.5) * np.sqrt(12 * len(fractions))
        spread = fractions.std() * np.sqrt(12)
        # The relative standard error of the variance of n uniform values is sqrt(0.8 / n).
        spread_z = (spread**2 - 1) / np.sqrt(0.8 / len(fractions))
        p_ecdf = (1 + np.sum(reference <= unevenness)) / (1 + len(reference))
        # An error of a fifth in the width bends the whole ECDF a little: the spread is the most sensitive test of it.
        p = min(1.0, 3 * min(p_ecdf, *(2 * stats.norm.sf(abs(z)) for z in (mean_z, spread_z))))
        verdict = _describe(p, mean_z, spread_z)
        rows[name] = {"p": p, "mean_rank": fractions.mean(), "spread": spread, "verdict": verdict}
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.loc[table["p"] >= LEVEL / len(table), "verdict"] = "uniform"
    return table


def _describe(p, mean_z, spread_z) -> str:
    if abs(mean_z) > 3 and abs(mean_z) > abs(spread_z):
        return "biased: posteriors lie too " + ("low" if mean_z > 0 else "high")
    if spread_z > 3:
        return "overconfident: posteriors are too narrow"
    if spread_z < -3:
        return "underconfident: posteriors are too wide"
    return f"uneven (p = {p:.1g})"


@functools.lru_cache(maxsize=8)
def band_statistics(num_replicates: int, seed: int = 0) -> np.ndarray:
    """Simulate the test statistic of the ECDF for uniform ranks; return its values in ascending order.

    The quantile at ``1 - coverage`` is the pointwise level of a band that contains the whole ECDF with that coverage
    (Sailynoja, Burkner & Vehtari 2022, Statistics and Computing 32, 32).
    """
    rng = np.random.default_rng(seed)
    probabilities = np.full(RANKS, 1.0 / RANKS)
    return np.sort(
        np.concatenate(
            [_unevenness(rng.multinomial(num_replicates, probabilities, 1000)) for _ in range(SIMULATIONS // 1000)]
        )
    )


def _unevenness(histograms):
    """Return the smallest two-sided binomial p-value of the ECDF over all ranks, (set, rank) -> (set,)."""
    num_replicates = histograms[0].sum()
    counts = histograms.cumsum(axis=1)[:, :-1]
    fractions = np.arange(1, RANKS) / RANKS
    cdf = _binomial_cdf(num_replicates, fractions)
    rank = np.arange(RANKS - 1)
    low = cdf[rank, counts]
    high = 1.0 - np.where(counts > 0, cdf[rank, np.maximum(counts - 1, 0)], 0.0)
    return (2.0 * np.minimum(low, high)).min(axis=1)


def _binomial_cdf(num_replicates, fractions):
    """Return the binomial CDF, (rank, count)."""
    return stats.binom.cdf(np.arange(num_replicates + 1), num_replicates, fractions[:, None])


def band(num_replicates: int, coverage: float = 0.95, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the simultaneous band of the ECDF of uniform ranks.

    Returns
    -------
    fractions, lower, upper : (99,)
        Expected ECDF at each rank, and bounds of the difference between the ECDF and its expectation.
    """
    level = np.quantile(band_statistics(num_replicates, seed), 1.0 - coverage)
    fractions = np.arange(1, RANKS) / RANKS
    lower = stats.binom.ppf(level / 2, num_replicates, fractions) / num_replicates
    upper = stats.binom.ppf(1 - level / 2, num_replicates, fractions) / num_replicates
    return fractions, lower - fractions, upper - fractions
