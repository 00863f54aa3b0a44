"""Claim: posteriors of the supernova model are calibrated, by default and with each option of Union3.1 added alone.

    python benchmarks/supernova_union_calibration.py --data FOLDER [--replicates 16] [--only NAME ...]
        [--out benchmarks/results/supernova_union_calibration.jsonl]

FOLDER is that of `supernova_union.py`. For each configuration, parameters are drawn from the priors, the values of 300
of the supernovae are simulated with their errors, redshifts, hosts, surveys and limits, and the posterior is sampled.
Ranks of the true values are to be uniform (p above 1e-3 of all replicates together), and (mean - truth) / sd of Om0,
alpha and beta to have a mean within 0.3 of 0 and a standard deviation of 0.8 to 1.2. One line of JSON for each
replicate is written as blocks of replicates are done; those that the file has are not repeated.
"""

import argparse
import datetime
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from numpyro.distributions import Distribution
from supernova_union import ALL, NONE, read_union

import hbm_jax as hbm
from hbm_jax.data import Supernovae
from hbm_jax.inference.criticism.rank_tests import RANKS, judge_ranks
from hbm_jax.models import Supernova

NUM = 300  # supernovae
BLOCK = 8  # replicates that are fitted together
STANDARDISED = ("Om0", "alpha", "beta")
# Narrow enough that every simulated supernova can be detected, and that a step away from the truth would be seen.
PRIORS = {
    "Om0": "Uniform(0.1, 0.6)", "M0": "Normal(-19.1, 0.1)", "alpha": "Normal(0.14, 0.05)", "beta": "Normal(3.1, 0.5)",
    "delta_M": "Normal(-0.1, 0.1)", "sigma_int": "LogNormal(-2.2, 0.3)", "x1_mean": "Normal(0, 0.5)",
    "x1_std": "LogNormal(0, 0.3)", "c_mean": "Normal(0, 0.05)", "c_std": "LogNormal(-2.5, 0.3)",
    "outlier_fraction": "Beta(2, 18)", "outlier_scatter": "LogNormal(0, 0.3)", "x1_tail": "LogNormal(-0.5, 0.3)",
    "c_dust": "LogNormal(-2.5, 0.3)", "beta_dust": "Normal(4, 0.5)", "m_lim_width_ratio": "LogNormal(0, 0.3)",
}  # fmt: skip
CONFIGURATIONS = {
    "default": {},
    "outliers": {"outliers": True},
    "scatter of each survey": {"survey_scatter": True},
    "shared scatter": {"scatter": "shared"},
    "tail of stretch": {"stretch": "tail"},
    "two slopes of colour": {"colour": "dust", "host_beta": True},
    "hosts and redshifts": {"mass_error": True, "drift": True, "host_populations": True, "step_evolution": True},
    "limits in bands": {"selection": "band"},
    "offsets and flows": {"offsets": "marginal"},
}


def design_of(name: str, folder: Path) -> Supernovae:
    """Return 300 supernovae, evenly spread in the order of redshift."""
    data = read_union(folder, ALL if name == "offsets and flows" else NONE)
    in_order = np.argsort(data.z_cmb, kind="stable")
    return data.subset(np.sort(in_order[np.linspace(0, len(data) - 1, NUM).round().astype(int)]))


def model_of(name: str) -> Supernova:
    """Return the model of a configuration with the priors of this benchmark."""
    model = Supernova(**CONFIGURATIONS[name])
    return Supernova(priors={key: PRIORS[key] for key in PRIORS if key in model.all_priors}, **CONFIGURATIONS[name])


def rows_of(name: str, design: Supernovae, replicates: range) -> list[dict]:
    """Simulate and fit some replicates of one configuration; return truth, mean, standard deviation and rank."""
    start, cpu = time.perf_counter(), time.process_time()
    model = model_of(name)
    ranked = [key for key, prior in model.all_priors.items() if isinstance(prior, Distribution)]
    ranked = [key for key in ranked if key not in model.by_survey]
    keys = [jax.random.fold_in(jax.random.key(list(CONFIGURATIONS).index(name)), k) for k in replicates]
    samples, truths = zip(*(model.simulate(key, design) for key in keys), strict=True)
    fits = hbm.fit_each(model, list(samples), seed=replicates.start, keep_draws=ranked, until=200, progress=False)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    rows = []
    for i, replicate in enumerate(replicates):
        row = {"configuration": name, "replicate": replicate, "usable": bool(fits.usable.iloc[i])}
        row |= {"why": str(fits.verdicts["why"].iloc[i]), "parameters": {}}
        row |= {"block_s": seconds, "block_cpu_s": cpu, "load": os.getloadavg()[0]}
        for key in ranked if i in fits.kept else ():
            draws, truth = np.asarray(fits.kept[i][key]).ravel(), float(truths[i][key])
            thinned = draws[np.linspace(0, len(draws) - 1, RANKS - 1).round().astype(int)]
            numbers = truth, float(draws.mean()), float(draws.std()), int((thinned < truth).sum())
            row["parameters"][key] = dict(zip(("truth", "mean", "sd", "rank"), numbers, strict=True))
        rows.append(row)
    return rows


def read_rows(path: Path) -> list[dict]:
    """Return the stored replicates."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def report(rows: list[dict]) -> str:
    """Return the tables of ranks and of standardised estimates, and the verdicts."""
    kept = [row for row in rows if row["parameters"]]
    ranks = pd.DataFrame([{key: value["rank"] for key, value in row["parameters"].items()} for row in kept])
    common = [key for key in ranks if ranks[key].notna().all()]
    tests = judge_ranks(ranks[common].astype(int))
    errors = pd.DataFrame(
        {key: [(v["mean"] - v["truth"]) / v["sd"] for v in (row["parameters"][key] for row in kept)] for key in common}
    )
    errors["configuration"] = [row["configuration"] for row in kept]
    blocks = {(row["block_s"], row["block_cpu_s"]) for row in rows}
    loads = [row["load"] for row in rows]
    unusable = [row for row in rows if not row["usable"]]
    lines = [
        f"{NUM} supernovae of Union3.1, flat LCDM, {len(rows)} replicates of {errors['configuration'].nunique()} "
        f"configurations, {len(unusable)} without a usable posterior (their ranks are included if there are draws)",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"hbm_jax {version('hbm_jax')}, jax {version('jax')}, float64",
        f"{sum(b[0] for b in blocks):.0f} s, {sum(b[1] for b in blocks):.0f} s of CPU, load {min(loads):.1f} to "
        f"{max(loads):.1f}",
        "",
        "Ranks of the parameters of all configurations (bias in posterior standard deviations, ratio of widths):",
        tests.round(3).to_string(),
        "",
        "Parameters that some configurations have:",
    ]
    for key in [key for key in ranks if key not in common]:
        there = ranks[key].dropna().astype(int)
        test = judge_ranks(there.to_frame()).iloc[0]
        lines.append(f"{key:20} {len(there):4} replicates  p {test['p']:.3f}  bias {test['bias']:+.2f}")
    lines += ["", "(mean - truth) / sd, mean and standard deviation of the replicates:"]
    groups = [("all", errors), *errors.groupby("configuration", sort=False)]
    for label, group in groups:
        values = "   ".join(f"{key} {group[key].mean():+.2f} {group[key].std():.2f}" for key in STANDARDISED)
        lines.append(f"{label:24} {len(group):4}   {values}")
    lines += ["", *(f"not usable: {r['configuration']}, replicate {r['replicate']}: {r['why']}" for r in unusable)]
    means, widths = errors[list(STANDARDISED)].mean(), errors[list(STANDARDISED)].std()
    claims = {
        "ranks uniform: p above 1e-3": (tests["p"] > 1e-3).all(),
        "means of the standardised estimates within 0.3": (means.abs() < 0.3).all(),
        "standard deviations of 0.8 to 1.2": widths.between(0.8, 1.2).all(),
    }
    return "\n".join([*lines, *(f"{'PASS' if true else 'MISS'}  {claim}" for claim, true in claims.items())])


def main() -> None:
    """Run the configurations, some replicates of each in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the sample")
    parser.add_argument("--replicates", type=int, default=16, help="of each configuration, a multiple of 8")
    parser.add_argument("--only", nargs="*", default=list(CONFIGURATIONS), help="configurations")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/supernova_union_calibration.jsonl")
    given = parser.parse_args()
    hbm.use_every_core()
    done = {(row["configuration"], row["replicate"]) for row in read_rows(given.out)}
    for first in range(0, given.replicates, BLOCK):
        for name in given.only:
            if (name, first) in done:
                continue
            new = rows_of(name, design_of(name, given.data), range(first, first + BLOCK))
            with given.out.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in new)
            usable = sum(row["usable"] for row in new)
            print(f"{name}, {first}: {new[0]['block_s']:.0f} s, {usable} of {BLOCK} usable", flush=True)
    text = report(read_rows(given.out))
    print(text)
    given.out.with_suffix(".txt").write_text(text + "\n")


if __name__ == "__main__":
    main()
