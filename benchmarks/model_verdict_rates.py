"""Error rates of the check of the model: alarms with the right model, and planted misfits that are found.

    python benchmarks/model_verdict_rates.py [--systems relation normal] [--null 200] [--planted 40] [--kinds cut trend]

Each simulated sample (`model_verdict_systems`) is fitted with `hbm_jax.fit_each` and checked at draws of its posterior,
as `hbm_jax.check_model` does. Samples and draws are kept in ``--state``, a folder, in blocks, so that a run that was
stopped continues, and that they can be checked again. Planted misfits are as strong as to move a parameter of the
population by about 3 standard deviations or more in the median sample:

contaminants: 5 % of the values are 5 standard deviations too large, or more; cut: values below a limit are not
measured; errors: the true errors are larger than stated, by a third or more, where the scatter is fixed; trend: a curve
in x, redshift or energy, or a drift with the order of the groups; group: one survey, group, burst or source is off;
whole: bursts whose brightest interval is below a limit are lost.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpyro
from model_verdict_systems import SYSTEMS, System, program_draws
from numpyro import handlers
from numpyro.distributions import biject_to

import hbm_jax as hbm
from hbm_jax.inference.criticism.replicates import ReplacedData
from hbm_jax.inference.model_check import check as model_check
from hbm_jax.inference.model_check import replicates

KINDS = ("null", "contaminants", "cut", "errors", "trend", "group", "whole")
STRONG = 3.0  # standard deviations by which a misfit moves a parameter of the population, as it must be found
BLOCK = 40  # samples of a kind that are fitted together
HEADER = 6  # lines of the table before its rows
KEPT = 10  # posterior draws kept of each sample
HERE = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Exposed:
    """A program that records its hidden latents under visible names."""

    program: Callable

    def __call__(self, *args):
        """Run the program."""
        with handlers.trace() as trace:
            self.program(*args)
        for name, site in trace.items():
            if name.startswith("_") and site["type"] == "sample" and not site["is_observed"]:
                numpyro.deterministic(f"hidden{name}", site["value"])


def as_fitted(system: System, kind: str) -> System:
    """Return the system with the model that is fitted: for wrong errors, its scatter is as good as fixed."""
    scatter = next((name for name in ("intrinsic_scatter", "sigma_int") if name in system.truth), None)
    if kind != "errors" or scatter is None:
        return system
    priors = {scatter: f"LogNormal({np.log(system.truth[scatter]):.3f}, 0.01)"}
    return dataclasses.replace(system, model=dataclasses.replace(system.model, priors=priors))


def samples_of(system: System, kind: str, num: int, block: int, strength: float) -> list[dict[str, np.ndarray]]:
    """Return the simulated samples of a block."""
    if kind == "null":
        draw = program_draws(system.model, system.design, system.site, system.truth)
        return [{system.site: y} for y in draw(np.random.default_rng([11, block]), num)]
    rngs = [np.random.default_rng([KINDS.index(kind), block, i]) for i in range(num)]
    return [{system.site: system.planted(rng, kind, strength)} for rng in rngs]


def program_and_args(system: System, samples: list) -> tuple[Callable, list[tuple]]:
    """Return the program that is fitted, and its arguments for each sample.

    The coordinates of a model with a method ``observing`` are chosen for the observed values of each sample.
    """
    if system.bound is None:
        return ReplacedData(system.model, (system.design,)), [(sample,) for sample in samples]
    return system.model, [system.model.observing(sample, system.bound) for sample in samples]


def structure_of(system: System) -> replicates.Structure:
    """Return the sites of the model."""
    with jax.enable_x64(True):
        return replicates.inspect_program(system.model, (system.design if system.bound is None else system.bound,))


def fits_of(system: System, samples: list, seed: int) -> dict[str, np.ndarray]:
    """Fit samples; return draws of latents, the largest shift of a free parameter, its name, R-hat and usability."""
    program, args = program_and_args(system, samples)
    structure = structure_of(system)
    kept = {name: f"hidden{name}" if name.startswith("_") else name for name in structure.latents}
    options = {"num_chains": 4, "progress": False, **system.options}
    fits = hbm.fit_each(Exposed(program), args, seed=seed, keep_draws=list(kept.values()), **options)
    table = fits.summary()
    moved, shifts = [], []
    for i in range(len(samples)):
        row = table.loc[i]
        by_name = {
            name: (row.loc[name, "mean"] - true) / row.loc[name, "sd"]
            for name, true in system.truth.items() if name in row.index and name not in system.model.priors
        }  # fmt: skip
        moved.append(max(by_name, key=lambda name: abs(by_name[name])))
        shifts.append(by_name[moved[-1]])
    draws = {}
    for name, stored in kept.items():
        values = [np.asarray(fits.kept[i][stored], float) for i in range(len(samples))]
        fractions = np.random.default_rng(seed).uniform(size=KEPT)  # of a chain, whose length depends on the sample
        draws[f"draws {name}"] = np.stack(
            [v[np.arange(KEPT) % v.shape[0], (fractions * v.shape[1]).astype(int)] for v in values]
        )
    observed = {system.site: np.stack([sample[system.site] for sample in samples])}
    diagnostics = {
        "r_hat": table["r_hat"].groupby(level="object").max().to_numpy(),
        "usable": fits.usable.to_numpy(bool), "num_draws": fits.verdicts["num_draws"].to_numpy(),
    }  # fmt: skip
    return observed | draws | {"moved": np.array(moved), "shift": np.array(shifts, float)} | diagnostics


def checks(system: System, block: dict[str, np.ndarray], number: int) -> list[dict[str, Any]]:
    """Check each sample of a block at draws of its posterior; return p-value, sentence and shift."""
    samples = [{system.site: values} for values in block[system.site]]
    program, args = program_and_args(system, samples)
    structure = structure_of(system)
    num = replicates.number_of_replicates(structure.size)

    def pool(values, args, key, normals):
        seeded = handlers.substitute(handlers.seed(program, jax.random.key(0)), data=values)
        trace = handlers.trace(seeded).get_trace(*args)
        latents = {name: biject_to(trace[name]["fn"].support).inv(trace[name]["value"]) for name in structure.latents}
        return replicates.replicator(program, args, structure, num)(latents, key, normals)

    run = jax.jit(pool)
    results = []
    for i in range(len(block["shift"])):
        pools = []
        rng = np.random.default_rng([number, i])
        with jax.enable_x64(True):
            for k in range(model_check.NUM_DRAWS):
                values = {name: block[f"draws {name}"][i, k] for name in structure.latents}
                key = np.asarray(jax.random.key_data(jax.random.key(100_000 * number + 1000 * i + k)))
                pools.append(run(values, args[i], key, structure.standard_normals(rng, num)))
        check = model_check.judge_pools(pools, structure, (system.measured(block[system.site][i]),))
        results.append({
            "p": check.p_value, "says": str(check), "moved": str(block["moved"][i]), "shift": float(block["shift"][i]),
            **{name: block[name][i].item() for name in ("r_hat", "usable", "num_draws") if name in block},
        })  # fmt: skip
    return results


def results_of(name: str, system: System, kind: str, num: int, first: int, folder: Path) -> list[dict[str, Any]]:
    """Return the results of the samples of a kind, from blocks ``first`` and on that are stored or made now."""
    results: list[dict[str, Any]] = []
    strength = system.strengths.get(kind, 0.0)
    for number in range(first, first - (-num // BLOCK)):
        size = min(BLOCK, num - (number - first) * BLOCK)
        path = folder / f"{name} {kind} {strength:.4g} {number} {size}.npz"
        fitted = as_fitted(system, kind)
        began = time.perf_counter()
        if not path.exists():
            samples = samples_of(system, kind, size, number, strength)
            np.savez_compressed(path, **fits_of(fitted, samples, 7 + number))
        done = path.with_suffix(".json")
        if not done.exists():
            with np.load(path) as stored:
                done.write_text(json.dumps(checks(fitted, dict(stored), number), indent=1))
        print(f"{path.stem}: {time.perf_counter() - began:.0f} s", flush=True)
        results += json.loads(done.read_text())
    return results


def report(state: dict[str, list], output: Path) -> None:
    """Write the table."""
    lines = [
        f"level {model_check.LEVEL}, {model_check.NUM_DRAWS} posterior draws, {replicates.NUM_REPLICATES} replicates;",
        "short runs of hbm_jax.fit_each (4 chains of 300 warm-up and 200 draws, at most 64 steps each) in place of",
        "hbm_jax.sample: few of them have the 400 effective draws of a usable posterior. Largest R-hat of a sample:",
        "its median and its largest value over the samples, where it was recorded",
        "",
        f"{'system':<12} {'samples':<13} {'alarms':>10} {'p<0.01':>7} {'p<0.05':>7} {'p<0.1':>7} {'p<0.5':>7}  "
        f"{'shift >= 3 sd':<13} {'shift (median, in sd)':<24} R-hat",
    ]  # fmt: skip
    former = output.read_text().splitlines() if output.exists() else []
    for line in former[HEADER:]:
        if (words := line.split()) and f"{words[0]}/{words[1]}" not in state:
            lines.append(line.rstrip())
    for key, results in state.items():
        system, kind = key.split("/")
        p = np.array([result["p"] for result in results])
        fractions = " ".join(f"{(p < level).mean():7.2f}" for level in (0.01, 0.05, 0.1, 0.5))
        moved = max({r["moved"] for r in results}, key=[r["moved"] for r in results].count)
        shift = f"{np.median([abs(r['shift']) for r in results]):.1f} ({moved})" if kind != "null" else ""
        alarm = p < model_check.LEVEL
        strong = np.array([abs(r["shift"]) >= STRONG for r in results]) & (kind != "null")
        alarms, of_strong = (f"{int(alarm[which].sum())} of {int(which.sum())}" for which in (p <= 1.0, strong))
        of_strong = of_strong if kind != "null" else ""
        r_hat = [r["r_hat"] for r in results if "r_hat" in r]
        converged = f"{np.median(r_hat):.2f} {max(r_hat):.2f}" if r_hat else ""
        row = f"{system:<12} {kind:<13} {alarms:>10} {fractions}  {of_strong:<13} {shift:<24} {converged}"
        lines.append(row.rstrip())
    order = [f"{system} {kind}" for system in SYSTEMS for kind in KINDS]
    lines[HEADER:] = sorted(lines[HEADER:], key=lambda line: order.index(" ".join(line.split()[:2])))
    output.write_text("\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="*", default=list(SYSTEMS))
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    parser.add_argument("--null", type=int, default=200, help="samples of the model itself")
    parser.add_argument("--planted", type=int, default=40, help="samples with each misfit")
    parser.add_argument("--first", type=int, default=0, help="number of the first block of samples, for other samples")
    parser.add_argument("--state", type=Path, default=HERE.parent / "runs" / "model_verdict_rates")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "model_verdict_rates.txt")
    options = parser.parse_args()
    hbm.inference.use_compilation_cache()
    options.state.mkdir(parents=True, exist_ok=True)
    state = {}
    for name in options.systems:
        system = SYSTEMS[name]()
        for kind in options.kinds:
            if kind == "null" or kind in system.strengths:
                num = options.null if kind == "null" else options.planted
                if num == 0:
                    continue
                state[f"{name}/{kind}"] = results_of(name, system, kind, num, options.first, options.state)
                report(state, options.output)


if __name__ == "__main__":
    main()
