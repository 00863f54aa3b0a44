"""2085 supernovae of Union3.1 with 378 calibration offsets and 100 modes of bulk flows, one option at a time.

    python benchmarks/supernova_union.py --data FOLDER [--only NAME ...] [--out FILE] [--num-samples 250 ...]

FOLDER holds ``supernovae.csv.gz``, ``sensitivity.npz``, ``mag_cut.csv`` and ``selection/`` (`read_union`): the inputs
of UNITY1.8 (Rubin et al. 2026, arXiv:2601.19424; rubind/union3), which are not distributed with hbm_jax. Published for
flat LCDM: Om0 = 0.356 +0.028 -0.026 (UNITY1.5) and 0.334 +0.025 -0.024 (UNITY1.8).

One command from the table of light-curve parameters to Om0, w0-wa and distances at nodes, with both lines of the
verdict, what each option changes, and the influence of each survey (of the configurations of ``--influence``).

For each configuration: time of one evaluation of log density and gradient, time of the fit, verdict, and Om0. Rows are
written as they are made; configurations that the output has already are left out.
"""

import argparse
import json
import os
import time
from pathlib import Path

import jax
import numpy as np

import hbm_jax as hbm
from hbm_jax.data import Supernovae, read_table, with_survey_limits
from hbm_jax.inference.sampler.target import build_target
from hbm_jax.models import HubbleDiagram, Supernova
from hbm_jax.models.expansion import distance_nodes, has_nodes

ALL, NONE = "offsets and flows", "none"
NORMAL = {"offsets": "marginal"}
TAILS = {"stretch": "tail", "colour": "dust", "host_beta": True}  # two slopes of colour, that of dust by host
HOSTS = {"mass_error": True, "drift": True, "host_populations": True, "step_evolution": True}
SCATTER = {"outliers": True, "survey_scatter": True}
PUBLISHED = TAILS | HOSTS | SCATTER | {"scatter": "shared", "selection": "band"}
CONFIGURATIONS = {  # nuisances, options
    "no offsets": (NONE, {}),
    "outliers, no offsets": (NONE, {"outliers": True}),
    "scatter of each survey, no offsets": (NONE, {"survey_scatter": True}),
    "outliers, scatter of each survey, no offsets": (NONE, SCATTER),
    "shared scatter, no offsets": (NONE, {"scatter": "shared"}),
    "tails and two slopes, no offsets": (NONE, TAILS),
    "hosts and redshifts, no offsets": (NONE, HOSTS),
    "hosts and redshifts, widths too, no offsets": (NONE, HOSTS | {"population_shapes": True}),
    "tails and two slopes, hosts and redshifts, widths too, no offsets": (
        NONE,
        TAILS | HOSTS | {"population_shapes": True},
    ),
    "common limit, no offsets": (NONE, {"selection": "common"}),
    "cut in colour, no offsets": (NONE, {"selection": "colour"}),
    "two slopes, no offsets": (NONE, TAILS | {"stretch": "normal"}),
    "two slopes and cut in colour, no offsets": (NONE, TAILS | {"stretch": "normal", "selection": "colour"}),
    "limits in bands, no offsets": (NONE, {"selection": "band"}),
    "limits in bands and outliers, no offsets": (NONE, {"selection": "band", "outliers": True}),
    "two slopes and two populations of stretch, no offsets": (NONE, TAILS | {"stretch": "two"}),
    "two slopes, limits and outliers, no offsets": (
        NONE,
        TAILS | {"stretch": "normal", "selection": "band", "outliers": True},
    ),
    "all but limits, no offsets": (NONE, {name: PUBLISHED[name] for name in PUBLISHED if name != "selection"}),
    "all but tails, no offsets": (NONE, {name: PUBLISHED[name] for name in PUBLISHED if name not in TAILS}),
    "all but the tail of stretch, no offsets": (NONE, PUBLISHED | {"stretch": "normal"}),
    "all, with two populations of stretch, no offsets": (NONE, PUBLISHED | {"stretch": "two"}),
    "all, no offsets": (NONE, PUBLISHED),
    "limits in bands and cut in colour, no offsets": (NONE, {"selection": "band and colour"}),
    "limits in bands, cut in colour and outliers, no offsets": (
        NONE,
        {"selection": "band and colour", "outliers": True},
    ),
    "all but the tail of stretch, sampled offsets": ("offsets", PUBLISHED | {"stretch": "normal"}),
    "all but the tail of stretch, sampled offsets and flows": (ALL, PUBLISHED | {"stretch": "normal"}),
    "all with sampled offsets": ("offsets", PUBLISHED),
    "all with sampled offsets and flows": (ALL, PUBLISHED),
    "limits in bands, sampled offsets": ("offsets", {"selection": "band"}),
    "limits in bands, sampled offsets and flows": (ALL, {"selection": "band"}),
    "offsets": ("offsets", NORMAL),
    "offsets and flows": (ALL, NORMAL),
    "normal populations of hosts, offsets and flows": (
        ALL,
        NORMAL | {"survey_scatter": True, "drift": True, "host_populations": True, "step_evolution": True},
    ),
    "no mass step": (ALL, NORMAL | {"mass_step": False}),
    "beta of massive hosts": (ALL, NORMAL | {"host_beta": True}),
    "scatter of each survey": (ALL, NORMAL | {"survey_scatter": True}),
    "shared scatter": (ALL, NORMAL | {"scatter": "shared"}),
    "w0wa, no offsets": (NONE, {"cosmology": "w0wacdm"}),
    "free distances, no offsets": (NONE, {"cosmology": "nodes"}),
    "w0wa": (ALL, NORMAL | {"cosmology": "w0wacdm"}),
    "free distances": (ALL, NORMAL | {"cosmology": "nodes"}),
}


def read_union(folder: Path, nuisances: str = ALL) -> Supernovae:
    """Read the sample with detection limits, calibration offsets and, as further offsets, the modes of bulk flows.

    Hosts without a mass (placeholders of -99 and 0) have 10 +- 1, as others in the table: on the low-mass side.
    """
    table = read_table(folder / "supernovae.csv.gz")
    numbers = [name for name in table.columns if name not in ("name", "survey", "ra", "dec")]
    columns = {name: table.values(name, text=True) for name in ("name", "survey")}
    columns |= {name: table.values(name) for name in numbers}
    mass = np.asarray(columns["log10_mass"], dtype=float)
    columns["sigma_log10_mass"] = np.where(mass > 0.0, columns["sigma_log10_mass"], 1.0)
    columns["log10_mass"] = np.where(mass > 0.0, mass, 10.0)
    if nuisances != NONE:
        stored = np.load(folder / "sensitivity.npz")
        sensitivity, names = np.moveaxis(stored["sensitivity"].astype(float), 1, 2), list(map(str, stored["names"]))
        if nuisances == ALL:
            flows = stored["bulk_flow"].astype(float)
            flows = np.stack([flows, np.zeros_like(flows), np.zeros_like(flows)], axis=-1)
            sensitivity = np.concatenate([sensitivity, flows], axis=1)
            names += [f"bulk flow {mode}" for mode in range(flows.shape[1])]
        columns |= {"sensitivity": sensitivity, "offset_name": names}
    return with_survey_limits(Supernovae.from_columns(columns), folder / "mag_cut.csv")


def evaluation_time(model: Supernova, bound, num: int = 100) -> float:
    """Return the smallest time of log density and gradient [ms]."""
    with jax.enable_x64(True):
        target = build_target(model, (bound,), jax.random.key(0))
        both = jax.jit(jax.value_and_grad(target.potential))
        position = jax.numpy.asarray(target.start)
        jax.block_until_ready(both(position))
        times = []
        for _ in range(num):
            start = time.perf_counter()
            jax.block_until_ready(both(position))
            times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def thinned(data: Supernovae, every: int) -> Supernovae:
    """Return every n-th supernova in the order of redshift."""
    return data if every == 1 else data.subset(np.sort(np.argsort(data.z_cmb, kind="stable")[::every]))


def fitted(model: Supernova, data: Supernovae, checkpoint: Path | None, **options) -> hbm.Fit:
    """Fit the model, or continue the fit that a killed process left in the folder of its checkpoint."""
    if checkpoint is not None and checkpoint.exists():
        return hbm.resume(checkpoint, model, data, progress=False)
    return hbm.sample(model, data, checkpoint=checkpoint, progress=False, **options)


def row_of(name: str, folder: Path, every: int, checkpoints: Path | None = None, **options_of_sampling) -> dict:
    """Fit one configuration and return what is reported of it."""
    nuisances, options = CONFIGURATIONS[name]
    start = time.perf_counter()
    data = thinned(read_union(folder, nuisances), every)
    model = Supernova(**options)
    bound = model.bound(data)
    row = {"configuration": name, "supernovae": len(data), "read_and_bind_s": time.perf_counter() - start}
    row["evaluation_ms"] = evaluation_time(model, bound)
    start = time.perf_counter()
    checkpoint = None if checkpoints is None else checkpoints / name.replace(" ", "_").replace(",", "")
    row["continued"] = checkpoint is not None and checkpoint.exists()  # then fit_s is of the last process alone
    fit = fitted(model, data, checkpoint, **options_of_sampling)
    row["fit_s"] = time.perf_counter() - start
    start = time.perf_counter()
    check = fit.model_check
    row |= {"check_s": time.perf_counter() - start, "check": str(check), "model_passed": check.passed}
    row |= {"verdict": str(fit.verdict), "usable": fit.verdict.usable, "draws": fit.verdict.num_draws}
    row |= {"divergences": fit.verdict.num_divergences, "load": os.getloadavg()[0]}
    row |= {"worst_r_hat": fit.verdict.worst_r_hat, "smallest_ess": fit.verdict.smallest_ess}
    summary = fit.summary(max_size=30)
    row["parameters"] = {
        str(parameter): [float(summary.loc[parameter, key]) for key in ("mean", "sd", "mcse_mean")]
        for parameter in summary.index
    }
    if has_nodes(model.cosmology):  # flat LCDM and w0wa fitted to the distances
        nodes = distance_nodes(model.cosmology, fit.posterior)
        for cosmology in ("lcdm", "w0wacdm"):
            distances = hbm.sample(HubbleDiagram(cosmology=cosmology), nodes, progress=False)
            table_of = distances.summary()
            row[f"nodes {cosmology}"] = {
                str(parameter): [float(table_of.loc[parameter, key]) for key in ("mean", "sd", "mcse_mean")]
                for parameter in table_of.index
            }
        row["parameters"]["Om0"] = row["nodes lcdm"]["Om0"]
    if model.offsets == "sampled" and nuisances == NONE:  # else the density does not split into supernovae
        score = hbm.loo(fit, num_draws=400)
        row |= {"elpd": float(score.elpd), "elpd_se": float(score.se), "num_bad_k": len(score.bad)}
    return row


def influence(name: str, folder: Path, every: int, **options_of_sampling) -> str:
    """Return Om0 of all supernovae and without each survey in turn, one line each, fitted in one batch."""
    nuisances, options = CONFIGURATIONS[name]
    data = thinned(read_union(folder, nuisances), every)
    start = time.perf_counter()
    fits = hbm.leave_groups_out(Supernova(**options), data, data.survey, progress=False, **options_of_sampling)
    seconds = time.perf_counter() - start
    counts = data.survey_counts
    lines = [f"{name}: Om0 without each survey; {len(fits)} fits in {seconds:.0f} s, load {os.getloadavg()[0]:.1f}"]
    rows = fits.summary(["Om0"]).xs("Om0", level="parameter")
    for label, row in rows.iterrows():
        count = counts.get(label.removeprefix("without "), len(data))
        lines.append(
            f"{label:24} {count:5} {row['mean']:.4f} +- {row['sd']:.4f} {row['mean'] - rows.loc['all', 'mean']:+.4f}  "
            f"{'usable' if fits.usable[label] else 'not usable'}"
        )
    return "\n".join(lines)


def table(rows: list[dict]) -> str:
    """Return one line for each configuration: Om0 with its standard deviation and Monte Carlo error."""
    lines = [
        f"{'configuration':54} {'Om0':>16} {'MC err.':>7} {'elpd':>8}  {'sampler':10} {'R-hat':>6} {'ESS':>5} "
        f"{'draws':>5} {'gradient':>9} {'fit':>6} {'check':>5} {'load':>4}  model"
    ]
    for row in rows:
        mean, sd, error = row["parameters"]["Om0"]
        elpd = f"{row['elpd']:8.1f}" if "elpd" in row else " " * 8
        lines.append(
            f"{row['configuration']:54} {mean:.3f} +- {sd:.3f} {error:8.4f} {elpd}  "
            f"{'usable' if row['usable'] else 'not usable':10} {row['worst_r_hat'][1]:6.3f} "
            f"{row['smallest_ess'][1]:5.0f} {row['draws']:5} {row['evaluation_ms']:6.2f} ms "
            f"{row['fit_s']:4.0f} s {row['check_s']:3.0f} s "
            f"{row['load']:4.1f}  {'passed' if row['model_passed'] else 'failed'}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the configurations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the sample")
    parser.add_argument("--only", nargs="*", default=list(CONFIGURATIONS), help="configurations")
    parser.add_argument("--out", type=Path, help="JSON lines file to which rows are added")
    parser.add_argument("--checkpoints", type=Path, help="folder of unfinished fits, which another call continues")
    parser.add_argument("--influence", nargs="*", default=["no offsets"], help="configurations without each survey")
    for option, default in (("seed", 0), ("num-chains", 4), ("every", 1)):
        parser.add_argument(f"--{option}", type=int, default=default)
    for option in ("num-warmup", "num-samples", "max-seconds"):
        parser.add_argument(f"--{option}", type=int, help="default: that of hbm_jax.sample")
    given = parser.parse_args()
    hbm.use_every_core()
    stored = given.out.read_text().splitlines() if given.out and given.out.exists() else []
    done = {json.loads(line)["configuration"] for line in stored}
    names = ("seed", "num_chains", "num_warmup", "num_samples", "max_seconds")
    options = {option: getattr(given, option) for option in names if getattr(given, option) is not None}
    for name in [name for name in given.only if name not in done]:
        row = row_of(name, given.data, given.every, given.checkpoints, **options)
        print(json.dumps(row), flush=True)
        if given.out:
            with given.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
        stored.append(json.dumps(row))
    print(table([json.loads(line) for line in stored]))
    options.pop("max_seconds", None)
    for name in given.influence:
        print(influence(name, given.data, given.every, **options), flush=True)


if __name__ == "__main__":
    main()
