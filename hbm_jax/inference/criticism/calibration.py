"""Simulation-based calibration: whether the posteriors of a model are as wide as they say, and where they should be.

It tests the computation: the sampler, and the density against the simulator, which are the same program. It does not
test whether the program describes any data that were measured; predictive checks do.

Parameters are drawn from the prior, data from the parameters, and the posterior of each data set is sampled. The rank
of a true value among the draws of its posterior is then uniform (Talts et al. 2018, arXiv:1804.06788; Modrak et al.
2023, Bayesian Analysis, doi:10.1214/23-BA1404, whose advice to rank the log density too is followed), for every
parameter of a right program with a right sampler.
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

from hbm_jax.files import written_whole
from hbm_jax.inference.batch.fit_each import INTERRUPTED, fit_each
from hbm_jax.inference.criticism.predictive import unobserved
from hbm_jax.inference.results import describe, provenance
from hbm_jax.inference.sampler.fingerprint import identify
from hbm_jax.inference.sampler.loop import Interrupted
from hbm_jax.names import did_you_mean

LEVEL = 0.01  # chance that a right program fails, over all its parameters together
RANKS = 100  # possible ranks: 99 draws are kept of each posterior
SIMULATIONS = 100_000  # of uniform ranks, for the bands
LARGEST_SITE = 20  # elements; the latents of a large population are left out unless asked for
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
    """A program whose observed sites have other values, given as its argument.

    Attributes
    ----------
    program : callable
        The program.
    args : tuple
        What it is called with; its own observations are not used.
    """

    program: Callable
    args: tuple

    def __call__(self, values: Mapping[str, Any]):
        """Run the program on ``values``, by site."""
        with _Observing(values):
            return self.program(*self.args)


@dataclass(frozen=True)
class _WithLikelihood:
    """A program that also records the log likelihood of its observed sites."""

    program: Callable

    def __call__(self, *args):
        with handlers.trace() as trace:
            found = self.program(*args)
        total = _log_likelihood(trace, [name for name, site in trace.items() if _is_data(site)])
        numpyro.deterministic(LOG_LIKELIHOOD, total)
        return found


class _Observing(Messenger):
    """Gives observed sites other values."""

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
        One row a parameter: ``p`` (chance of ranks as uneven as these from a right program: of the ECDF, the mean or
        the spread, three tests in one), ``mean_rank`` and ``spread`` (of the ranks between 0 and 1; 0.5 and 1 are
        right), ``verdict``.
    num_failed : int
        Replicates that gave no usable posterior; their ranks are used all the same where there are draws.
    run : dict
        Program, data, seeds, versions.
    """

    ranks: pd.DataFrame
    table: pd.DataFrame
    num_failed: int
    run: dict[str, Any] = field(repr=False)

    @property
    def calibrated(self) -> bool:
        """Whether no parameter is uneven, at a family-wise level of 1 %."""
        return not (self.table["p"] < LEVEL / len(self.table)).any()

    def __str__(self):
        num = len(self.ranks)
        if self.calibrated:
            text = f"calibrated: the ranks of {len(self.table)} quantities in {num} replicates are uniform"
        else:
            bad = self.table[self.table["p"] < LEVEL / len(self.table)].sort_values("p")
            named = "; ".join(f"{name} is {row['verdict']}" for name, row in bad.head(5).iterrows())
            text = f"not calibrated, by {num} replicates: {named}"
        if self.num_failed:
            text += f" ({self.num_failed} replicates gave no usable posterior)"
        return text + "."

    def save(self, path: str | os.PathLike) -> Path:
        """Write the certificate: what was tested, with which versions and seeds, and every rank, as JSON."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
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
        with written_whole(path) as part:
            part.write_text(json.dumps(content, indent=1))
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Calibration":
        """Read a certificate.

        Raises
        ------
        ValueError
            If it is not one.
        """
        try:
            content = json.loads(Path(path).read_text())
            table = pd.DataFrame(content["table"]).set_index("parameter")
            return cls(pd.DataFrame(content["ranks"]), table, content["num_failed"], content["run"])
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
    """Test whether the posteriors of a program are calibrated, on data it simulates itself.

    Parameters
    ----------
    program : callable
        A model of hbm_jax or any NumPyro program.
    *args
        What it is called with: the design. The values of observed sites are replaced; what else the program computes
        from the observations, as a prior from their spread, stays that of those given here and is a mistake.
    num_replicates : int
        Simulated data sets.
    seed : int
        Seed.
    parameters : sequence of str, optional
        Sites to rank; by default all with at most 20 elements. The log density is ranked as well, if ``fitted`` has the
        same latent sites.
    num_chains, num_warmup, max_num_samples, executor
        As in `fit_each`.
    progress : bool
        Whether to show the live line.
    fitted : callable, optional
        Another program to fit to the data of ``program``, with the same sites: what a wrong one does to the answers.
    **options
        Further options of `fit_each`.

    Notes
    -----
    A program that chooses its coordinates by the data (``program.observing(values, *args)``, see
    `hbm_jax.models.protocol.Model`) is given those of every replicate, and as each has a density of its own then, the
    log likelihood is ranked in place of the log density.

    Returns
    -------
    Calibration
        Ranks, and a verdict for every parameter.

    Raises
    ------
    Interrupted
        On Ctrl-C.
    ValueError
        If the program has no observed sites, or a numpyro.factor, which cannot be simulated.
    """
    if num_replicates < 20:
        raise ValueError(f"calibrate: expected num_replicates >= 20; found {num_replicates}.")
    for name in options:
        if name not in FIT_OPTIONS or name in ("data", "names", "until", "num_samples", "keep_draws"):
            near = did_you_mean(name, (*ARGUMENTS, *FIT_OPTIONS))
            raise TypeError(f"calibrate: unknown option {name!r}{near}.")
    fitted = fitted or program
    truth, data, log_density = _simulate(program, args, fitted, num_replicates, seed)
    observing = getattr(fitted, "observing", None)
    kept_density, density_name = ("lp", LOG_DENSITY) if observing is None else (LOG_LIKELIHOOD, LOG_LIKELIHOOD)
    if parameters is None:
        parameters = [name for name, values in truth.items() if values[0].size <= LARGEST_SITE]
    unknown = [name for name in parameters if name not in truth]
    if unknown:
        raise ValueError(f"calibrate: expected parameters among {', '.join(truth)}; found {', '.join(unknown)}.")
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
        keep_draws=[*parameters, kept_density],
        **options,
    )
    if fits.verdicts["why"].str.startswith(INTERRUPTED).any():
        # Those that are done are those that were easy: their ranks alone would not be uniform.
        raise Interrupted(f"calibrate: interrupted with {len(fits.kept)} of {num_replicates} replicates done.")
    rng = np.random.default_rng(seed)
    columns: dict[str, np.ndarray | None] = {}
    replicates = [i for i in range(num_replicates) if i in fits.kept]
    for name in parameters:
        kept = np.stack([_thinned(fits.kept[i][name]) for i in replicates])
        true = truth[name][replicates]
        for place in np.ndindex(true.shape[1:]):
            label = f"{name}[{', '.join(map(str, place))}]" if place else name
            columns[label] = _rank(kept[(slice(None), slice(None), *place)], true[(slice(None), *place)], rng)
    if log_density is not None:
        densities = np.stack([_thinned(fits.kept[i][kept_density]) for i in replicates])
        columns[density_name] = _rank(densities, log_density[replicates], rng)
    columns = {name: ranks for name, ranks in columns.items() if ranks is not None}
    ranks = pd.DataFrame(columns, index=replicates)
    about = identify(program, args, {"seed": seed, "num_replicates": num_replicates, "num_chains": num_chains})
    run = about | {"about": describe(program, args[0] if args else None)} | provenance() | {"cost": fits.cost}
    if fitted is not program:
        run["fitted"] = identify(fitted, args, {})["program"]
    return Calibration(ranks, judge_ranks(ranks, seed), int((~fits.usable).sum()), run)


def _simulate(program, args, fitted, num_replicates, seed):
    """Draw true values and data; also the log density of the fitted program there, if it has the same latents.

    Of a program that chooses its coordinates by the data, the log likelihood.
    """
    drawing = unobserved(program)
    names: list[str] = []  # of the data
    order: list[str] = []  # of what a person reads, as the program declares it
    latents: set[str] = set()
    fitted_latents: set[str] = set()
    factors: list[str] = []

    def note_sites():
        trace = _trace(program, args)
        drawn = handlers.trace(handlers.seed(drawing, jax.random.key(0))).get_trace(*args)
        factors.extend(
            name
            for name, site in drawn.items()
            if site["type"] == "sample" and isinstance(site["fn"], Unit) and not name.startswith("_")
        )
        names.extend(name for name, site in trace.items() if _is_data(site))
        latents.update(name for name, site in trace.items() if site["type"] == "sample" and not site["is_observed"])
        fitted_latents.update(
            name for name, site in _trace(fitted, args).items() if site["type"] == "sample" and not site["is_observed"]
        )
        return 0

    with jax.enable_x64(True):
        jax.eval_shape(note_sites)
        if factors:
            raise ValueError(
                f"calibrate: expected a program whose data can be simulated; found numpyro.factor {factors[0]!r}, "
                "which no draw of the prior and the data obeys. Write it as a prior or as an observed site."
            )
        if not names:
            raise ValueError("calibrate: expected a program with observed sites; found none.")
        comparable, adapts = latents == fitted_latents, hasattr(fitted, "observing")

        def replicate(key):
            trace = handlers.trace(handlers.seed(drawing, key)).get_trace(*args)
            sites = {name: site for name, site in trace.items() if site["type"] in ("sample", "deterministic")}
            data = {name: sites[name]["value"] for name in names}
            truth = {
                name: site["value"]
                for name, site in sites.items()
                if name not in names and not name.startswith("_") and not isinstance(site.get("fn"), Unit)
            }
            free = {
                name: biject_to(site["fn"].support).inv(site["value"])
                for name, site in sites.items()
                if site["type"] == "sample" and name not in names and not site["is_observed"]
            }
            order[:] = truth
            density = jnp.zeros(())
            if adapts:
                density = _log_likelihood(sites, names)
            elif comparable:
                density = -potential_energy(ReplacedData(fitted, args), (data,), {}, free)
            return truth, data, density

        run = jax.jit(jax.vmap(replicate))
        keys = jax.random.split(jax.random.key(seed), 2 * num_replicates)
        truth, data, density = jax.device_get(run(keys))
        # A prior may allow what has no data (a universe without a big bang); the program's own density says so.
        possible = np.flatnonzero(
            np.isfinite(density) & np.all([np.isfinite(v).reshape(len(v), -1).all(1) for v in data.values()], axis=0)
        )
        if len(possible) < num_replicates:
            raise ValueError(
                f"calibrate: expected the prior to give possible data sets at least every other time; found "
                f"{len(possible)} of {len(keys)}. The first impossible one is number "
                f"{np.setdiff1d(np.arange(len(keys)), possible)[0]}."
            )
        rows = possible[:num_replicates]
        truth = {name: truth[name][rows] for name in order}
        return truth, {name: data[name][rows] for name in names}, density[rows] if comparable or adapts else None


def _trace(program, args):
    seeded = handlers.seed(program, jax.random.key(0))
    return handlers.trace(handlers.substitute(seeded, substitute_fn=init_to_sample())).get_trace(*args)


def _log_likelihood(sites, names) -> jax.Array:
    """Log likelihood of the data in a trace."""
    return sum((jnp.sum(sites[name]["fn"].log_prob(sites[name]["value"])) for name in names), jnp.zeros(()))


def _is_data(site) -> bool:
    return site["type"] == "sample" and site["is_observed"] and not isinstance(site["fn"], Unit)


def _rank(draws, true, rng) -> np.ndarray | None:
    """Rank of each true value among (replicate, draw), ties broken by chance; None for what never varies."""
    equal = (draws == true[:, None]).sum(1)
    if (equal == draws.shape[1]).all():
        return None
    return (draws < true[:, None]).sum(1) + rng.integers(0, equal + 1)


def _thinned(draws):
    """99 draws spread evenly over (chain, draw, ...)."""
    flat = draws.reshape(-1, *draws.shape[2:])
    return flat[np.linspace(0, len(flat) - 1, RANKS - 1).round().astype(int)]


def judge_ranks(ranks: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Test ranks for uniformity.

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
        found = _unevenness(np.bincount(column, minlength=RANKS)[None])[0]
        share = (np.asarray(column) + 0.5) / RANKS
        centre = (share.mean() - 0.5) * np.sqrt(12 * len(share))
        spread = share.std() * np.sqrt(12)
        # Standard error of the variance of a uniform variable, relative: sqrt(4/5 / n).
        wide = (spread**2 - 1) / np.sqrt(0.8 / len(share))
        curve = (1 + np.sum(reference <= found)) / (1 + len(reference))
        # A width that is wrong by a fifth bends the whole curve a little: the spread alone sees it best.
        p = min(1.0, 3 * min(curve, *(2 * stats.norm.sf(abs(z)) for z in (centre, wide))))
        rows[name] = {"p": p, "mean_rank": share.mean(), "spread": spread, "verdict": _words(p, centre, wide)}
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.loc[table["p"] >= LEVEL / len(table), "verdict"] = "uniform"
    return table


def _words(p, centre, wide) -> str:
    if abs(centre) > 3 and abs(centre) > abs(wide):
        return "biased: posteriors lie too " + ("low" if centre > 0 else "high")
    if wide > 3:
        return "overconfident: posteriors are too narrow"
    if wide < -3:
        return "underconfident: posteriors are too wide"
    return f"uneven (p = {p:.1g})"


@functools.lru_cache(maxsize=8)
def band_statistics(num_replicates: int, seed: int = 0) -> np.ndarray:
    """Unevenness of many sets of uniform ranks, in order: what a right program gives.

    Its quantile at ``1 - coverage`` is the pointwise level of a band that holds the whole ECDF with that coverage
    (Sailynoja, Burkner & Vehtari 2022, Statistics and Computing 32, 32).
    """
    rng = np.random.default_rng(seed)
    even = np.full(RANKS, 1.0 / RANKS)
    return np.sort(
        np.concatenate([_unevenness(rng.multinomial(num_replicates, even, 1000)) for _ in range(SIMULATIONS // 1000)])
    )


def _unevenness(histograms):
    """Smallest two-sided binomial probability of the ECDF over all ranks, (set, rank) to (set,)."""
    num = histograms[0].sum()
    counts = histograms.cumsum(axis=1)[:, :-1]
    share = np.arange(1, RANKS) / RANKS
    below = _binomial(num, share)
    at = np.arange(RANKS - 1)
    low = below[at, counts]
    high = 1.0 - np.where(counts > 0, below[at, np.maximum(counts - 1, 0)], 0.0)
    return (2.0 * np.minimum(low, high)).min(axis=1)


def _binomial(num, share):
    """Cumulative probabilities, (rank, count)."""
    return stats.binom.cdf(np.arange(num + 1), num, share[:, None])


def band(num_replicates: int, coverage: float = 0.95, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Simultaneous band of the ECDF of uniform ranks.

    Returns
    -------
    share, lower, upper : (99,)
        Fractions of the ranks, and the bounds of the difference of the ECDF from them.
    """
    level = np.quantile(band_statistics(num_replicates, seed), 1.0 - coverage)
    share = np.arange(1, RANKS) / RANKS
    lower = stats.binom.ppf(level / 2, num_replicates, share) / num_replicates
    upper = stats.binom.ppf(1 - level / 2, num_replicates, share) / num_replicates
    return share, lower - share, upper - share
