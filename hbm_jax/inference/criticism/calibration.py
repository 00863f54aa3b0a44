"""Simulation-based calibration: a test of whether the posteriors of a model are unbiased and of the right width.

Parameters are drawn from the prior, data are simulated from the parameters, and the posterior of each data set is
sampled. If program and sampler are correct, the rank of each true value among the draws of its posterior is uniform
(Talts et al. 2018, arXiv:1804.06788). The log density is ranked as well, as Modrak et al. 2023, Bayesian Analysis,
doi:10.1214/23-BA1404 advise.

This tests the computation: the sampler, and the density against the simulator, which are the same program. It does not
test whether the program describes measured data; predictive checks do.
"""

import inspect
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hbm_jax.files import atomic_write
from hbm_jax.inference.arguments import naming_arguments, plain_arguments
from hbm_jax.inference.batch.fit_each import INTERRUPTED, fit_each
from hbm_jax.inference.batch.results import element_labels
from hbm_jax.inference.criticism.rank_tests import LEVEL, RANKS, Detectable, detectable_errors, judge_ranks
from hbm_jax.inference.criticism.replicates import LOG_LIKELIHOOD, Replicates
from hbm_jax.inference.options import arguments_named
from hbm_jax.inference.program import binds
from hbm_jax.inference.results import describe, provenance
from hbm_jax.inference.sampler.fingerprint import identify
from hbm_jax.inference.sampler.loop import Interrupted
from hbm_jax.inference.sampler.progress import Progress
from hbm_jax.names import did_you_mean, renamed_keyword, require_parameters

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
        One row per parameter: ``p``, the p-value of uniform ranks, combined from tests of the mean and the mean square
        of their normal scores and of the ECDF; ``bias`` and ``width``, for normal posteriors their displacement in
        standard deviations (0 if calibrated) and the ratio of their width to the right one (1 if calibrated);
        ``verdict``.
    num_failed : int
        Number of replicates without a usable posterior. Their ranks are included where there are draws.
    run : dict
        Program, data, seeds and versions; ``unusable``, the reasons why posteriors are not usable, by replicate.
    cautions : tuple of str
        Reasons why ranks need not be uniform although program and sampler are correct; also given as warnings.
    """

    ranks: pd.DataFrame
    table: pd.DataFrame
    num_failed: int
    run: dict[str, Any] = field(repr=False)
    cautions: tuple[str, ...] = ()

    @property
    def calibrated(self) -> bool:
        """True if the ranks of all parameters are uniform, at a family-wise level of 1 %."""
        return not (self.table["p"] < LEVEL / len(self.table)).any()

    @property
    def detectable(self) -> Detectable:
        """Smallest errors of one posterior that this number of replicates detects with a probability of 90 %."""
        return detectable_errors(len(self.ranks), len(self.table))

    def __str__(self):
        num_replicates = len(self.ranks)
        if self.calibrated:
            text = f"calibrated: the ranks of {len(self.table)} quantities in {num_replicates} replicates are uniform"
        else:
            failing = self.table[self.table["p"] < LEVEL / len(self.table)].sort_values("p")
            clauses = "; ".join(f"{name} is {row['verdict']}" for name, row in failing.head(5).iterrows())
            text = f"not calibrated, according to {num_replicates} replicates: {clauses}"
        if self.num_failed:
            reasons = pd.Series(list(self.run.get("unusable", {}).values()), dtype=str)
            reasons = reasons.str.replace(r" ?(?<!\w)[\d.]+", "", regex=True).str.strip().mode()
            reason = f", most often because of {reasons.iloc[0]}" if len(reasons) else ""
            text += f" ({self.num_failed} replicates gave no usable posterior{reason})"
        text += f". Found with 90 % probability, in any one quantity: {self.detectable}."
        return "\n".join([text, *(f"Caution: {caution}." for caution in self.cautions)])

    def save(self, path: str | os.PathLike) -> Path:
        """Write a certificate as JSON: program, versions, seeds, verdict and all ranks."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        certificate = {
            "certificate": "simulation-based calibration",
            "calibrated": self.calibrated,
            "verdict": str(self),
            "level": LEVEL,
            "detectable": self.detectable._asdict(),
            "possible_ranks": RANKS,
            "table": self.table.reset_index(names="parameter").to_dict("records"),
            "num_failed": self.num_failed,
            "cautions": list(self.cautions),
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
            ranks, cautions = pd.DataFrame(certificate["ranks"]), tuple(certificate.get("cautions", ()))
            return cls(ranks, table, certificate["num_failed"], certificate["run"], cautions)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: expected a calibration certificate; found something else ({error}).") from None


@renamed_keyword("num_lanes", "num_slots")
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
    progress: Progress = True,
    fitted: Callable | None = None,
    **options: Any,
) -> Calibration:
    """Test whether the posteriors of a program are calibrated, on data simulated by it.

    Parameters
    ----------
    program : callable
        A model of hbm_jax or any NumPyro program.
    *args
        Arguments of the program: the design. The values of observed sites are replaced by simulated ones. Other
        quantities that the program computes from the observations, such as a prior from their scatter, would still be
        those of ``args`` and make the test invalid. They may be given by name if no option has that name.
    num_replicates : int
        Number of simulated data sets, 20 or more.
    seed : int
        Seed.
    parameters : sequence of str, optional
        Sites to rank; by default all of the fitted program with at most 20 elements. Parameters that it integrates
        out have no draws, and are not ranked. The log density is ranked as well if ``fitted`` has the
        same latent sites.
    num_chains, num_warmup, max_num_samples, executor
        As in `fit_each`.
    progress : bool or callable
        Whether to show a progress line, or a function that is called with its texts.
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

    A distribution whose draws do not follow its density can say so with an attribute ``calibration_caution``, a
    sentence that is empty otherwise. It is a warning, and stays with the result. Counts with the statistics ``wstat``
    and ``pgstat``, which have the most likely background, do so where errors of backgrounds matter.
    """
    if not binds(program):
        keywords = {name: options.pop(name) for name in arguments_named(program, options, calibrate)}
        args = plain_arguments(program, args, keywords)
    _require_options(num_replicates, options)
    fitted = fitted or program
    with naming_arguments(program, args):
        design = Replicates.of(program, args, fitted)
    for caution in design.cautions:
        warnings.warn(f"calibrate: {caution}", stacklevel=3)
    truths, data, log_density = design.simulate(num_replicates, seed)
    truths = {name: values for name, values in truths.items() if name in design.fitted_names}
    if parameters is None:
        parameters = [name for name, values in truths.items() if values[0].size <= LARGEST_SITE]
    require_parameters(parameters, truths, "calibrate")
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
        # Replicates that converge quickly finish first, and their ranks alone are not uniform.
        raise Interrupted(f"calibrate: interrupted with {len(fits.kept)} of {num_replicates} replicates done.")
    true_values, true_sites = {name: truths[name] for name in parameters}, {name: name for name in parameters}
    if design.density_label is not None:
        true_values[design.density_label], true_sites[design.density_label] = log_density, density_site
    ranks = _ranks(fits.kept, true_values, true_sites, seed)
    identity = identify(program, args, {"seed": seed, "num_replicates": num_replicates, "num_chains": num_chains})
    run = identity | {"about": describe(program, args[0] if args else None)} | provenance() | {"cost": fits.cost}
    run["unusable"] = {str(replicate): str(why) for replicate, why in enumerate(fits.verdicts["why"]) if why}
    if fitted is not program:
        run["fitted"] = identify(fitted, args, {})["program"]
    return Calibration(ranks, judge_ranks(ranks, seed), int((~fits.usable).sum()), run, design.cautions)


def _require_options(num_replicates: int, options: Mapping[str, Any]) -> None:
    """Raise ValueError for too few replicates, TypeError for an unknown option."""
    if num_replicates < 20:
        raise ValueError(f"calibrate: expected num_replicates >= 20; found {num_replicates}.")
    for name in options:
        if name not in FIT_OPTIONS or name in ("data", "names", "until", "num_samples", "keep_draws"):
            suggestion = did_you_mean(name, (*inspect.signature(calibrate).parameters, *FIT_OPTIONS))
            raise TypeError(f"calibrate: unknown option {name!r}{suggestion}.")


def _ranks(kept: Mapping[int, Mapping[str, np.ndarray]], true_values, sites, seed: int) -> pd.DataFrame:
    """Return `Calibration.ranks` of true values by label; ``sites`` has the site of the kept draws for each label."""
    rng = np.random.default_rng(seed)
    columns: dict[str, np.ndarray | None] = {}
    replicates = sorted(kept)
    for name, values in true_values.items():
        draws, values = np.stack([_thin(kept[i][sites[name]]) for i in replicates]), values[replicates]
        for label, index in zip(element_labels(name, values.shape[1:]), np.ndindex(values.shape[1:]), strict=True):
            columns[label] = _rank(draws[(slice(None), slice(None), *index)], values[(slice(None), *index)], rng)
    return pd.DataFrame({name: ranks for name, ranks in columns.items() if ranks is not None}, index=replicates)


def _rank(draws, true_values, rng) -> np.ndarray | None:
    """Rank each true value among draws (replicate, draw), with ties broken at random; None for a constant."""
    num_equal = (draws == true_values[:, None]).sum(1)
    if (num_equal == draws.shape[1]).all():
        return None
    return (draws < true_values[:, None]).sum(1) + rng.integers(0, num_equal + 1)


def _thin(draws):
    """Return 99 draws, spread evenly over (chain, draw, ...)."""
    flat = draws.reshape(-1, *draws.shape[2:])
    return flat[np.linspace(0, len(flat) - 1, RANKS - 1).round().astype(int)]
