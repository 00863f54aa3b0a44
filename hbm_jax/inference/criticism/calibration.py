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

import numpy as np
import pandas as pd
from scipy import stats

from hbm_jax.files import atomic_write
from hbm_jax.inference.batch.fit_each import INTERRUPTED, fit_each
from hbm_jax.inference.criticism.replicates import LOG_LIKELIHOOD, Replicates
from hbm_jax.inference.results import describe, provenance
from hbm_jax.inference.sampler.fingerprint import identify
from hbm_jax.inference.sampler.loop import Interrupted
from hbm_jax.names import did_you_mean

LEVEL = 0.01  # probability that a correct program fails, over all its parameters together
RANKS = 100  # number of possible ranks: 99 draws of each posterior are kept
SIMULATIONS = 100_000  # simulated sets of uniform ranks, for the bands
LARGEST_SITE = 20  # elements of the largest site ranked by default; this leaves out the latents of a large population
FIT_OPTIONS = tuple(inspect.signature(fit_each).parameters)


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
            suggestion = did_you_mean(name, (*inspect.signature(calibrate).parameters, *FIT_OPTIONS))
            raise TypeError(f"calibrate: unknown option {name!r}{suggestion}.")
    fitted = fitted or program
    design = Replicates.of(program, args, fitted)
    truths, data, log_density = design.simulate(num_replicates, seed)
    if parameters is None:
        parameters = [name for name, values in truths.items() if values[0].size <= LARGEST_SITE]
    unknown = [name for name in parameters if name not in truths]
    if unknown:
        raise ValueError(f"calibrate: expected parameters among {', '.join(truths)}; found {', '.join(unknown)}.")
    fitted_program, objects = design.fit_tasks(data)
    density_site = "lp" if design.observing is None else LOG_LIKELIHOOD
    fits = fit_each(
        fitted_program,
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
    true_values = {name: truths[name] for name in parameters}
    true_sites = {name: name for name in parameters}
    if design.density_label is not None:
        true_values[design.density_label], true_sites[design.density_label] = log_density, density_site
    ranks = _ranks(fits.kept, true_values, true_sites, seed)
    identity = identify(program, args, {"seed": seed, "num_replicates": num_replicates, "num_chains": num_chains})
    run = identity | {"about": describe(program, args[0] if args else None)} | provenance() | {"cost": fits.cost}
    if fitted is not program:
        run["fitted"] = identify(fitted, args, {})["program"]
    return Calibration(ranks, judge_ranks(ranks, seed), int((~fits.usable).sum()), run)


def _ranks(kept: Mapping[int, Mapping[str, np.ndarray]], true_values, sites, seed: int) -> pd.DataFrame:
    """Return `Calibration.ranks` of true values by label among the kept draws of the site of each."""
    rng = np.random.default_rng(seed)
    columns: dict[str, np.ndarray | None] = {}
    replicates = sorted(kept)
    for name, values in true_values.items():
        draws, values = np.stack([_thinned(kept[i][sites[name]]) for i in replicates]), values[replicates]
        for index in np.ndindex(values.shape[1:]):
            label = f"{name}[{', '.join(map(str, index))}]" if index else name
            columns[label] = _rank(draws[(slice(None), slice(None), *index)], values[(slice(None), *index)], rng)
    return pd.DataFrame({name: ranks for name, ranks in columns.items() if ranks is not None}, index=replicates)


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
