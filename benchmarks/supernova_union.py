"""2085 supernovae of Union3.1 with 378 calibration offsets and 100 modes of bulk flows, one option at a time.

    python benchmarks/supernova_union.py --data FOLDER [--only NAME ...] [--out FILE] [--num-samples 250 ...]

FOLDER holds ``supernovae.csv.gz``, ``sensitivity.npz``, ``mag_cut.csv`` and ``selection/`` (`read_union`): the inputs
of UNITY1.8 (Rubin et al. 2026, arXiv:2601.19424; rubind/union3), which are not distributed with hbm_jax. Published for
flat LCDM: Om0 = 0.356 +0.028 -0.026 (UNITY1.5) and 0.334 +0.025 -0.024 (UNITY1.8).

For each configuration: time of one evaluation of log density and gradient, time of the fit, verdict, and Om0. Rows are
written as they are made; configurations that the output has already are left out.
"""

import argparse
import json
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
CONFIGURATIONS = {  # nuisances, options
    "no offsets": (NONE, {}),
    "offsets": ("offsets", NORMAL),
    "offsets and flows": (ALL, NORMAL),
    "no mass step": (ALL, NORMAL | {"mass_step": False}),
    "beta of massive hosts": (ALL, NORMAL | {"host_beta": True}),
    "drifting populations": (ALL, NORMAL | {"drift": True}),
    "scatter of each survey": (ALL, NORMAL | {"survey_scatter": True}),
    "populations of massive hosts": (ALL, NORMAL | {"host_populations": True}),
    "evolving mass step": (ALL, NORMAL | {"step_evolution": True}),
    "shared scatter": (ALL, NORMAL | {"scatter": "shared"}),
    "free distances": (ALL, NORMAL | {"cosmology": "nodes"}),
    "limits in bands, no offsets": (NONE, {"selection": "band"}),
    "limits in bands, sampled offsets": ("offsets", {"selection": "band"}),
    "as published, sampled offsets": (
        "offsets",
        {
            "selection": "band",
            "outliers": True,
            "mass_error": True,
            "stretch": "tail",
            "colour": "dust",
            "scatter": "shared",
            "drift": True,
            "host_populations": True,
            "step_evolution": True,
        },
    ),
    "outliers, no offsets": (NONE, {"outliers": True}),
    "common limit, no offsets": (NONE, {"selection": "common"}),
    "dust, no offsets": (NONE, {"colour": "dust"}),
    "dust and common limit, no offsets": (NONE, {"colour": "dust", "selection": "common"}),
    "tails, no offsets": (NONE, {"stretch": "tail", "colour": "tail"}),
    "tails and common limit, no offsets": (NONE, {"stretch": "tail", "colour": "tail", "selection": "common"}),
    "tails, common limit and outliers, no offsets": (
        NONE,
        {"stretch": "tail", "colour": "tail", "selection": "common", "outliers": True},
    ),
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


def row_of(name: str, folder: Path, **options_of_sampling) -> dict:
    """Fit one configuration and return what is reported of it."""
    nuisances, options = CONFIGURATIONS[name]
    start = time.perf_counter()
    data = read_union(folder, nuisances)
    model = Supernova(**options)
    bound = model.bound(data)
    bind = time.perf_counter() - start
    evaluation = evaluation_time(model, bound)
    start = time.perf_counter()
    fit = hbm.sample(model, data, progress=False, **options_of_sampling)
    seconds = time.perf_counter() - start
    summary, verdict = fit.summary(), fit.verdict
    row = {"configuration": name, "read_and_bind_s": bind, "evaluation_ms": evaluation, "fit_s": seconds}
    row |= {"verdict": str(verdict), "draws": int(np.prod(list(fit.posterior["Om0"].shape)))}
    for parameter in ("Om0", "alpha", "beta", "delta_M", "sigma_int"):
        if parameter in summary.index:
            row[parameter] = [float(summary.loc[parameter, key]) for key in ("mean", "sd")]
    if has_nodes(model.cosmology):  # flat LCDM fitted to the distances
        nodes = distance_nodes(model.cosmology, fit.posterior)
        distances = hbm.sample(HubbleDiagram(), nodes, progress=False, **options_of_sampling).posterior["Om0"]
        row["Om0"] = [float(distances.mean()), float(distances.std())]
    return row | {"max_r_hat": float(summary["r_hat"].max()), "min_ess_bulk": float(summary["ess_bulk"].min())}


def table(rows: list[dict]) -> str:
    """Return one line for each configuration."""
    lines = [f"{'configuration':34} {'gradient':>9} {'bind':>6} {'fit':>7} {'R-hat':>6} {'ESS':>6}  Om0"]
    for row in rows:
        mean, sd = row["Om0"]
        lines.append(
            f"{row['configuration']:34} {row['evaluation_ms']:6.2f} ms {row['read_and_bind_s']:4.1f} s "
            f"{row['fit_s']:5.0f} s {row['max_r_hat']:6.3f} {row['min_ess_bulk']:6.0f}  {mean:.3f} +- {sd:.3f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the configurations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the sample")
    parser.add_argument("--only", nargs="*", default=list(CONFIGURATIONS), help="configurations")
    parser.add_argument("--out", type=Path, help="JSON lines file to which rows are added")
    for option, default in (("seed", 0), ("num-chains", 4), ("num-warmup", 1000), ("num-samples", 1000)):
        parser.add_argument(f"--{option}", type=int, default=default)
    given = parser.parse_args()
    stored = given.out.read_text().splitlines() if given.out and given.out.exists() else []
    done = {json.loads(line)["configuration"] for line in stored}
    for name in [name for name in given.only if name not in done]:
        names = ("seed", "num_chains", "num_warmup", "num_samples")
        row = row_of(name, given.data, **{option: getattr(given, option) for option in names})
        print(json.dumps(row), flush=True)
        if given.out:
            with given.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
        stored.append(json.dumps(row))
    print(table([json.loads(line) for line in stored]))


if __name__ == "__main__":
    main()
