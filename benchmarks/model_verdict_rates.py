"""Error rates of the check of the model: alarms with the right model, and planted misfits that are found.

    python benchmarks/model_verdict_rates.py [--systems relation normal] [--null 100] [--planted 10] [--others 20]

Each simulated sample is fitted with `hbm_jax.fit_each` and checked at draws of its posterior, as `hbm_jax.check_model`
does. True parameters are the same in all samples of a system. Results are kept in ``--state``, so that a run that was
stopped continues; rows of the former table that were not run again are kept. Planted misfits:

contaminants: 5 % of the values are 5 standard deviations too large; cut: values below a limit are not measured;
errors: the true errors are those stated divided by 0.7, where the scatter is fixed; trend: a curve in x, redshift or
energy, or a drift with the order of the groups; group: one survey, group, burst or source is off. Those of relation and
hierarchy are simulated with NumPy, those of the others change samples that the model's own program draws. Five
afterglows are too few to show a cut, and Poisson counts have no errors.
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
from numpyro import handlers
from numpyro.distributions import biject_to

import hbm_jax as hbm
from hbm_jax.inference.criticism.replicates import ReplacedData
from hbm_jax.inference.model_check import check as model_check
from hbm_jax.inference.model_check import replicates

PER_SAMPLE = 12  # samples of the model from which one with a misfit is made
KINDS = ("contaminants", "cut", "errors", "trend", "group")
STRONG = 3.0  # standard deviations by which a misfit moves a parameter of the population, as it must be found
HERE = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class System:
    """A model, its design, the true parameters, and misfits.

    ``planted`` simulates values of the site, (rng, kind) -> values; ``changed`` makes them from ``PER_SAMPLE`` samples
    of the model, (rng, kind, samples) -> values.
    """

    model: Any
    design: Any
    site: str
    truth: dict[str, float]
    planted: Callable | None = None
    changed: Callable | None = None
    kinds: tuple[str, ...] = KINDS


def first_passing(draw: Callable, passes: Callable, num: int) -> np.ndarray:
    """Draw each value of a design again until it passes."""
    values = draw()
    for _ in range(1000):
        failing = ~passes(values)
        if not failing.any():
            break
        values = np.where(failing.reshape(num, *(1,) * (values.ndim - 1)), draw(), values)
    return values


def relation() -> System:
    """300 points of five surveys about one line."""
    rng, num = np.random.default_rng(1), 300
    columns = {
        "x": rng.normal(1.0, 1.0, num), "y": rng.normal(2.0, 1.5, num), "sigma_x": rng.uniform(0.1, 0.5, num),
        "sigma_y": rng.uniform(0.1, 0.4, num), "group": [f"survey {i % 5}" for i in range(num)],
    }  # fmt: skip
    data = hbm.data.PointsInGroups.from_columns(columns)
    row, survey = np.asarray(data.row).ravel(), np.repeat(np.arange(5), 60)
    sigma_x, sigma_y = (columns[f"sigma_{name}"][row] for name in "xy")

    def planted(rng, kind):
        def draw():
            widen = 1.0 / 0.7 if kind == "errors" else 1.0
            x = rng.normal(1.0, 1.0, num)
            y = 2.0 + 1.5 * (x - 1.0) + 0.3 * rng.normal(size=num)
            y += 0.18 * ((x - 1.0) ** 2 - 1.0) * (kind == "trend") + 0.5 * (survey == 3) * (kind == "group")
            error = np.hypot(0.3, sigma_y)
            y += 5.0 * error * (rng.uniform(size=num) < 0.05) * (kind == "contaminants")
            return np.stack(
                [x + widen * sigma_x * rng.normal(size=num), y + widen * sigma_y * rng.normal(size=num)], axis=-1
            )

        passes = (lambda v: v[:, 1] > 1.0) if kind == "cut" else (lambda v: np.ones(num, bool))
        return first_passing(draw, passes, num).reshape(5, 60, 2)

    truth = {"alpha": 1.5, "beta": 2.0, "intrinsic_scatter": 0.3, "x_mean": 1.0, "x_std": 1.0}
    return System(hbm.models.Relation(pooling="complete", pivot=1.0), data, "observed", truth, planted)


def normal() -> System:
    """30 groups of four values with known errors."""
    rng, num = np.random.default_rng(2), 120
    group = np.repeat(np.arange(30), 4)
    sigma = rng.uniform(0.3, 0.8, num)
    data = hbm.data.ValuesInGroups.from_columns(
        {"y": rng.normal(size=num), "sigma_y": sigma, "group": [f"group {k:02d}" for k in group]}
    )

    def planted(rng, kind):
        theta = rng.normal(size=30)
        theta += 2.0 * np.linspace(-1.0, 1.0, 30) * (kind == "trend") + 6.5 * (np.arange(30) == 12) * (kind == "group")
        wrong = 5.0 * sigma * (rng.uniform(size=num) < 0.05) * (kind == "contaminants")

        def draw():
            width = sigma / 0.7 if kind == "errors" else sigma
            return theta[group] + wrong + width * rng.normal(size=num)

        if kind == "cut":
            # A group is lost if no value can pass, so that true values are bounded too.
            theta = first_passing(lambda: rng.normal(size=30), lambda t: t > -1.5, 30)
            values = first_passing(draw, lambda v: v > -0.3, num)
        else:
            values = draw()
        return values.reshape(30, 4, 1)

    return System(hbm.models.Normal(), data, "y", {"mu": 0.0, "tau": 1.0}, planted)


def supernovae() -> System:
    """200 supernovae with the design of JLA."""
    data = hbm.data.load_jla()
    data = data.subset(np.linspace(0, len(data) - 1, 200).round().astype(int))
    truth = {
        "Om0": 0.3, "M0": -19.05, "alpha": 0.14, "beta": 3.1, "delta_M": -0.06, "sigma_int": 0.1, "x1_mean": 0.0,
        "x1_std": 1.0, "c_mean": 0.0, "c_std": 0.08,
    }  # fmt: skip
    z, survey = data.z_cmb, np.array(data.survey)
    error = np.sqrt(data.covariance[:, 0, 0] + 0.1**2)

    def changed(rng, kind, samples):
        y = samples[0].copy()
        if kind == "contaminants":
            y[:, 2] += 5.0 * error * (rng.uniform(size=len(z)) < 0.05)
        elif kind == "cut":  # beyond z = 0.3, only the brighter half is found
            passes = (samples[..., 2] < np.median(samples[..., 2], axis=0)) | (z < 0.3)
            y = samples[passes.argmax(axis=0), np.arange(len(z))]
        elif kind == "trend":
            y[:, 2] += 0.15 * np.cos(2.0 * np.pi * np.log10(z / 0.01))
        elif kind == "group":
            y[survey == survey[np.argmin(z)], 2] += 0.15
        return y

    return System(hbm.models.Supernova(), data, "observed", truth, changed=changed)


def golenetskii() -> System:
    """20 bursts of eight intervals."""
    data = hbm.data.BurstPopulation(num_intervals=8).draw(20, seed=3).data
    truth = {
        "gamma_mean": 1.5, "gamma_std": 0.2, "log10_N_mean": 52.0, "log10_N_std": 0.3, "intrinsic_scatter": 0.1,
        "log10_E_peak_mean": 2.6, "log10_E_peak_std": 0.3, "log10_E_peak_scatter": 0.25,
    }  # fmt: skip
    error = np.sqrt(np.asarray(data.errors)[..., 2] + 0.1**2)

    def changed(rng, kind, samples):
        y = samples[0].copy()
        energy = y[..., 0] - y[..., 0].mean()
        if kind == "contaminants":
            y[..., 1] += 5.0 * error * (rng.uniform(size=error.shape) < 0.05)
        elif kind == "cut":  # bursts with intervals below a flux limit are not found
            passing = (samples[..., 1] > np.median(samples[..., 1])).sum(axis=2)
            y = samples[passing.argmax(axis=0), np.arange(len(error))]
        elif kind == "trend":
            y[..., 1] += 1.5 * (energy**2 - (energy**2).mean())
        elif kind == "group":
            y[3, :, 1] += 2.5
        return y

    return System(hbm.models.Golenetskii(), data, "observed", truth, changed=changed)


def afterglows() -> System:
    """Five afterglows."""
    from hbm_jax.spectra import SpectrumStack, group, noticed

    drawn = hbm.data.AfterglowPopulation(log10_flux=(-11.3, 0.3), exposure=3000.0, min_counts=20).draw(5, seed=5)
    masks = [noticed(s, (0.3, 10.0)) for s in drawn.spectra]
    grouped = [group(s, "optimal", noticed=m) for s, m in zip(drawn.spectra, masks, strict=True)]
    stack = SpectrumStack.of(grouped, masks)
    data = hbm.data.Afterglows.from_spectra(stack, z=drawn.columns["z"], nh_mw=drawn.columns["nh_mw"])
    truth = {
        "photon_index_mean": 2.0, "photon_index_std": 0.15, "log10_flux_mean": -11.3, "log10_flux_std": 0.3,
        "log10_nh_mean": -0.3, "log10_nh_std": 0.5,
    }  # fmt: skip
    used = np.asarray(stack.counts) >= 0

    def changed(rng, kind, samples):
        y = samples[0].copy()
        channel = np.linspace(0.0, 1.0, y.shape[1])
        if kind == "contaminants":
            y += np.round(5.0 * np.sqrt(np.maximum(y, 1.0)) * (rng.uniform(size=y.shape) < 0.05))
        elif kind == "trend":  # a bump in energy
            y += rng.poisson(0.7 * y * ((channel > 0.4) & (channel < 0.7)))
        elif kind == "group":  # a source with three times the counts at high energies
            y[2] += rng.poisson(2.0 * y[2] * (channel > 0.5))
        return y * used

    kinds = ("contaminants", "trend", "group")
    return System(hbm.models.Afterglow(), data, "counts", truth, changed=changed, kinds=kinds)


SYSTEMS = {
    "relation": relation, "normal": normal, "supernovae": supernovae, "golenetskii": golenetskii,
    "afterglows": afterglows,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Exposed:
    """A program of observed values that records its hidden latents under visible names."""

    program: Callable

    def __call__(self, values):
        """Run the program."""
        with handlers.trace() as trace:
            self.program(values)
        for name, site in trace.items():
            if name.startswith("_") and site["type"] == "sample" and not site["is_observed"]:
                numpyro.deterministic(f"hidden{name}", site["value"])


def simulate_null(system: System, num: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Simulate samples by the model's own program, with the true parameters."""
    model = dataclasses.replace(system.model, priors=dict(system.model.priors) | system.truth)
    latents = "sampled" if type(model).__name__ == "Golenetskii" else None
    model = dataclasses.replace(model, latents=latents) if latents else model

    def draw(key):
        trace = handlers.trace(handlers.seed(model, key)).get_trace(system.design, observed=False)
        return trace[system.site]["value"]

    with jax.enable_x64(True):
        drawn = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(seed), num)))
    return [{system.site: values} for values in drawn]


def checks(system: System, samples: list, seed: int) -> list[dict[str, Any]]:
    """Fit and check each sample; return p-value, sentence and largest shift of a parameter."""
    program = ReplacedData(system.model, (system.design,))
    with jax.enable_x64(True):
        structure = replicates.inspect_program(system.model, (system.design,))
    kept = {name: f"hidden{name}" if name.startswith("_") else name for name in structure.latents}
    options = {"num_chains": 4, "num_warmup": 300, "num_samples": 200, "max_steps": 64, "progress": False}
    fits = hbm.fit_each(Exposed(program), samples, seed=seed, keep_draws=list(kept.values()), **options)
    num = replicates.number_of_replicates(structure.size)

    def unconstrained(values, observed):
        seeded = handlers.substitute(handlers.seed(program, jax.random.key(0)), data=values)
        trace = handlers.trace(seeded).get_trace(observed)
        return {name: biject_to(trace[name]["fn"].support).inv(trace[name]["value"]) for name in structure.latents}

    def pool(values, observed, key):
        latents = unconstrained(values, observed)
        return replicates.replicator(program, (observed,), structure, num)(latents, key)

    run = jax.jit(pool)
    results = []
    table = fits.summary()
    for i, observed in enumerate(samples):
        draws = fits.kept[i]
        rng = np.random.default_rng([seed, i])
        shape = next(iter(draws.values())).shape[:2]
        pools = []
        with jax.enable_x64(True):
            for k in range(model_check.NUM_DRAWS):
                chain, row = k % shape[0], rng.integers(0, shape[1])
                values = {name: np.asarray(draws[stored][chain, row], float) for name, stored in kept.items()}
                key = np.asarray(jax.random.key_data(jax.random.key(1000 * i + k)))
                pools.append(jax.device_get(run(values, observed, key)))
        check = model_check.judge_pools(pools, structure, (system.design,))
        row = table.loc[i]
        shifts = {
            name: (row.loc[name, "mean"] - true) / row.loc[name, "sd"]
            for name, true in system.truth.items() if name in row.index
        }  # fmt: skip
        moved = max(shifts, key=lambda name: abs(shifts[name]))
        results.append({
            "p": check.p_value, "says": str(check), "usable": bool(fits.verdicts["usable"].iloc[i]), "moved": moved,
            "shift": float(shifts[moved]),
        })  # fmt: skip
    return results


def samples_of(system: System, kind: str, num: int) -> tuple[System, list]:
    """Return the system as fitted and simulated samples."""
    if kind == "null":
        return system, simulate_null(system, num, 11)
    fitted, simulated = system, system
    scatter = next((name for name in ("intrinsic_scatter", "sigma_int") if name in system.truth), None)
    if kind == "errors" and scatter:
        priors = {scatter: f"LogNormal({np.log(system.truth[scatter]):.3f}, 0.01)"}  # as good as fixed
        fitted = dataclasses.replace(system, model=dataclasses.replace(system.model, priors=priors))
        field = "errors" if hasattr(system.design, "errors") else "covariance"
        if hasattr(system.design, field):
            wide = {field: getattr(system.design, field) / 0.7**2}
            simulated = dataclasses.replace(system, design=dataclasses.replace(system.design, **wide))
    rngs = [np.random.default_rng([KINDS.index(kind), i]) for i in range(num)]
    if system.planted:
        return fitted, [{system.site: system.planted(rng, kind)} for rng in rngs]
    drawn = [values[system.site] for values in simulate_null(simulated, PER_SAMPLE * num, 12)]
    samples = np.reshape(drawn, (num, PER_SAMPLE, *np.shape(drawn[0])))
    return fitted, [{system.site: system.changed(rng, kind, own)} for rng, own in zip(rngs, samples, strict=True)]


def report(state: dict[str, list], output: Path) -> None:
    """Write the table."""
    lines = [
        f"level {model_check.LEVEL}, {model_check.NUM_DRAWS} posterior draws, {replicates.NUM_REPLICATES} replicates;",
        "short runs of hbm_jax.fit_each (4 chains of 300 warm-up and 200 draws, at most 64 steps each) in place of",
        "hbm_jax.sample: few of them have the 400 effective draws of a usable posterior",
        "",
        f"{'system':<12} {'samples':<13} {'alarms':>10} {'p<0.01':>7} {'p<0.05':>7} {'p<0.1':>7} {'p<0.5':>7}  "
        f"{'shift >= 3 sd':<13} shift (median, in sd)",
    ]  # fmt: skip
    former = output.read_text().splitlines() if output.exists() else []
    for line in former[5:]:
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
        lines.append(f"{system:<12} {kind:<13} {alarms:>10} {fractions}  {of_strong:<13} {shift}".rstrip())
    order = [f"{system} {kind}" for system in SYSTEMS for kind in ("null", *KINDS)]
    lines[5:] = sorted(lines[5:], key=lambda line: order.index(" ".join(line.split()[:2])))
    output.write_text("\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="*", default=list(SYSTEMS))
    parser.add_argument("--null", type=int, default=100, help="null samples of relation and hierarchy")
    parser.add_argument("--others", type=int, default=20, help="null samples of the other systems")
    parser.add_argument("--planted", type=int, default=10)
    parser.add_argument("--state", type=Path, default=HERE.parent / "runs" / "model_verdict_rates.json")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "model_verdict_rates.txt")
    options = parser.parse_args()
    hbm.inference.use_compilation_cache()
    state = json.loads(options.state.read_text()) if options.state.exists() else {}
    for name in options.systems:
        system = SYSTEMS[name]()
        for kind in ("null", *system.kinds):
            num = options.planted if kind != "null" else options.null if system.planted else options.others
            if len(state.get(f"{name}/{kind}", ())) >= num:
                continue
            began = time.perf_counter()
            fitted, samples = samples_of(system, kind, num)
            state[f"{name}/{kind}"] = checks(fitted, samples, 7)
            options.state.parent.mkdir(parents=True, exist_ok=True)
            options.state.write_text(json.dumps(state, indent=1))
            print(f"{name}/{kind}: {time.perf_counter() - began:.0f} s", flush=True)
            report(state, options.output)


if __name__ == "__main__":
    main()
