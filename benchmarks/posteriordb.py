"""Our NUTS, nutpie, NumPyro's NUTS and BlackJAX's on the 33 posteriors of posteriordb with reference draws.

Of each engine, on the same log density: the smallest bulk effective sample size of any unconstrained parameter per 1000
gradients and per second of CPU time, of the draws alone and with the warm-up and start; and the largest difference
between means and standard deviations of its draws and of the reference draws, in Monte Carlo errors of both. Warm-ups
are the defaults of ours and of nutpie, 1000 draws for NumPyro's and BlackJAX's. ``--check`` compares the density of
each posterior with the reference draws, by Stein's identity. The data are not part of the repository;
HBM_JAX_TEST_DATA is their folder.

    python benchmarks/posteriordb.py --rows rows.jsonl [--output FILE --figure FILE] [--posteriors ...] [--seeds 2]

A row is written as soon as it is computed; rows that are there already are not computed again.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import traceback
from importlib.metadata import version
from pathlib import Path

import engine
import jax
import numpy as np
from arviz_stats.base import array_stats
from engine import ENGINES, smallest_ess

from hbm_jax.inference.program import bound_args
from hbm_jax.inference.sampler.target import build_target

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "models"))
from posterior_programs import NAMES, case_of, columns, reference_draws, stein_distances  # noqa: E402

DATA = Path(os.environ.get("HBM_JAX_TEST_DATA", ROOT.parent / "shared" / "data"))
ERRORS = 5.0  # Monte Carlo errors within which posteriors agree
OTHERS = ("nutpie", "numpyro", "blackjax-dense", "blackjax")
AXES = {"chain_axis": 0, "draw_axis": 1}


def locate(relative):
    """Return the path of a file of the data."""
    return DATA / relative


def moments(draws):
    """Means and standard deviations of draws (chain, draw, n), (2, n), and their Monte Carlo errors."""
    squares = (draws - draws.mean(axis=(0, 1))) ** 2
    std = np.sqrt(squares.mean(axis=(0, 1)))
    ess = [array_stats.ess(x, method="mean", **AXES) for x in (draws, squares)]
    return np.stack([draws.mean(axis=(0, 1)), std]), np.stack(
        [std / np.sqrt(ess[0]), squares.std(axis=(0, 1)) / np.sqrt(ess[1]) / (2.0 * std)]
    )


def difference_from_reference(case, target, draws, reference):
    """Return the largest difference of moments from those of reference draws, in Monte Carlo errors, and its column."""
    sites = jax.jit(jax.vmap(jax.vmap(lambda z: columns(case, target.sites(z), 0))))(draws)
    pair = np.asarray(sites), reference
    (values, errors), (known, known_errors) = (moments(np.log(x) if case.heavy_tails else x) for x in pair)
    z = np.abs(values - known) / np.hypot(errors, known_errors)
    z = np.where(np.isfinite(z), z, np.inf)
    return float(z.max()), int(z.max(axis=0).argmax())


def row_of(name, kind, seed):
    """Run one engine on one posterior."""
    case = case_of(locate, name)
    reference, labels = reference_draws(locate, name)
    with jax.enable_x64(True):
        target = build_target(case.program, bound_args(case.program, case.args), jax.random.key(0))
        row = {"posterior": name, "engine": kind, "seed": seed, "size": target.size}
        try:
            outcome = ENGINES[kind](target, case.program, case.args, seed)
        except Exception as error:  # an engine that fails is a result
            traceback.print_exc()
            return row | {"failed": f"{type(error).__name__}: {error}"[:200]}
        ess, worst, _ = smallest_ess(outcome.draws)
        distance, column = difference_from_reference(case, target, outcome.draws, reference)
    row |= {
        "ess": ess if np.isfinite(ess) else 0.0,
        "worst": target.labels[worst],
        "gradients": outcome.gradients,
        "gradients_before": outcome.gradients_before,
        "seconds": outcome.seconds,
        "seconds_of_draws": outcome.seconds_of_draws,
        "divergences": outcome.divergences,
        "errors": distance,
        "differs": labels[column],
        "detail": outcome.detail,
    }
    if outcome.fit is not None:
        row["verdict"] = "; ".join(outcome.fit.verdict.reasons) or "usable"
        row["advice"] = " ".join(outcome.fit.verdict.advice)
    return row


# The table


def read_rows(path):
    """Return the rows of all seeds, by posterior and engine."""
    rows = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        rows.setdefault((row["posterior"], row["engine"]), []).append(row)
    return rows


FIGURES = {
    "per 1000 gradients": lambda r: 1e3 * r["ess"] / r["gradients"],
    "per 1000 gradients, all": lambda r: 1e3 * r["ess"] / (r["gradients"] + r["gradients_before"]),
    "per second": lambda r: r["ess"] / r["seconds_of_draws"],
    "per second, all": lambda r: r["ess"] / r["seconds"],
}


def median_of(rows, name, kind, figure):
    """Return the median over the seeds of a quantity; NaN where the engine failed or was not run."""
    values = [FIGURES[figure](row) if "failed" not in row else 0.0 for row in rows.get((name, kind), ())]
    return float(np.median(values)) if values else np.nan


def ratios(rows, figure, kind):
    """Return the ratio of ours to another engine for each posterior; infinite where the other failed."""
    with np.errstate(divide="ignore"):
        pairs = ((median_of(rows, n, "ours", figure), median_of(rows, n, kind, figure)) for n in NAMES)
        return np.array([np.divide(a, b) for a, b in pairs])


def number(x):
    """Format a number with at most three digits."""
    return "-" if not np.isfinite(x) else f"{x:.0f}" if x >= 10 else f"{x:.2g}"


def efficiency_table(rows, unit, kinds):
    """Lines of the table of effective draws per gradient or second, of the draws and (all)."""
    yield f"{'Smallest bulk ESS ' + unit + ', draws (all)':<50}" + "".join(f"{kind:>19}" for kind in kinds)
    for name in NAMES:
        size = next((r[0]["size"] for (n, _), r in rows.items() if n == name), 0)
        pairs = [[median_of(rows, name, kind, f"{unit}{end}") for end in ("", ", all")] for kind in kinds]
        cells = (f"{number(alone)} ({number(whole)})" for alone, whole in pairs)
        yield f"{name + f' ({size})':<50}" + "".join(f"{cell:>19}" for cell in cells)


def agreement_table(rows, kinds):
    """Lines of the table of differences from the reference, divergences and our verdict."""
    head = "Largest difference from the reference, in errors"
    yield f"{head:<50}" + "".join(f"{kind:>19}" for kind in kinds) + "   verdict on ours"
    for name in NAMES:
        cells, verdict = [], ""
        for kind in kinds:
            found = rows.get((name, kind), [])
            failed = [row["failed"] for row in found if "failed" in row]
            worst = max((row for row in found if "failed" not in row), key=lambda row: row["errors"], default=None)
            diverged = sum(row.get("divergences", 0) for row in found)
            text = "failed" if failed else "-" if worst is None else f"{worst['errors']:.1f}"
            cells.append(text + (f" ({diverged} div.)" if diverged else ""))
            if kind == "ours":
                verdict = " | ".join(dict.fromkeys(row.get("verdict", row.get("failed", "")) for row in found))
                advice = dict.fromkeys(row["advice"] for row in found if row.get("advice"))
                verdict += "".join(f". To try: {text}" for text in advice)
        yield f"{name:<50}" + "".join(f"{cell:>19}" for cell in cells) + f"   {verdict}"


def agreement(rows):
    """Lines that say how many posteriors of ours agree with the reference, and which the verdict does not accept."""
    ours = {name: [row for row in rows.get((name, "ours"), ()) if "failed" not in row] for name in NAMES}
    largest = {name: max(row["errors"] for row in found) for name, found in ours.items() if found}
    if not largest:
        return
    far = [f"{name} ({errors:.1f})" for name, errors in largest.items() if errors > ERRORS]
    refused = [name for name, found in ours.items() if any(row["verdict"] != "usable" for row in found)]
    yield (
        f"ours within {ERRORS:g} Monte Carlo errors of the reference: {len(largest) - len(far)} of {len(NAMES)}, at "
        f"most {max(largest.values()):.1f}; not within: {', '.join(far) or 'none'}"
    )
    names = ", ".join(refused) or "none"
    yield f"usable by the verdict: {len(largest) - len(refused)} of {len(NAMES)}; not usable: {names}"


def summary(rows, kinds):
    """Lines of the medians over posteriors."""
    for figure in FIGURES:
        for kind in kinds:
            if kind != "ours":
                found = ratios(rows, figure, kind)
                found = found[~np.isnan(found)]
                if not len(found):
                    continue
                yield (
                    f"ours / {kind:<18}{figure:<25} median {np.median(found):6.2f}, quartiles "
                    f"{number(np.quantile(found, 0.25))} and {number(np.quantile(found, 0.75))}, smallest "
                    f"{number(found.min())}, below 0.7: {int((found < 0.7).sum())} of {len(found)}"
                )


def table(rows, kinds, seeds):
    """All lines of the results."""
    names = ("jax", "numpyro", "nutpie", "blackjax")
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    lines = [
        f"Posteriors of posteriordb, {engine.CHAINS} x {engine.DRAWS} draws; number of seeds: {seeds}",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, {packages}",
        "",
        *agreement(rows),
        "",
        *summary(rows, kinds),
        "",
        *efficiency_table(rows, "per 1000 gradients", kinds),
        "",
        *efficiency_table(rows, "per second", kinds),
        "",
        *agreement_table(rows, kinds),
    ]
    return [line.rstrip() for line in lines]


def draw_figure(rows, kinds, path):
    """Draw the ratio of ours to each other engine, a dot per posterior."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    others = [kind for kind in kinds if kind != "ours"]
    order = np.argsort(np.nan_to_num(ratios(rows, "per 1000 gradients, all", "nutpie")))
    fig, ax = plt.subplots(figsize=(7, 7), layout="constrained")
    for kind, marker in zip(others, "osD^", strict=False):
        ratio = ratios(rows, "per 1000 gradients, all", kind)
        label = f"{kind}, median {np.nanmedian(ratio):.2f}"
        ax.plot(ratio[order], np.arange(len(NAMES)), marker, ms=5, alpha=0.8, label=label)
    ax.axvline(1.0, color="black", lw=0.8)
    ax.set(xscale="log", xlabel="smallest ESS per gradient, warm-up counted: ours / other")
    ax.grid(axis="y", lw=0.3)
    fig.legend(fontsize=8, loc="outside upper center", ncols=len(others))
    ax.set_yticks(np.arange(len(NAMES)), [NAMES[i] for i in order], fontsize=6)
    fig.savefig(path, dpi=80)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--posteriors", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME")
    parser.add_argument("--engines", nargs="*", choices=ENGINES, default=["ours", *OTHERS])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--draws", type=int, default=engine.DRAWS)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--check", action="store_true", help="only compare densities with the reference draws")
    options = parser.parse_args()
    engine.DRAWS = options.draws
    if options.check:
        for name in options.posteriors:
            with jax.enable_x64(True):
                found = stein_distances(locate, name)
            print(f"{name:<50}{np.abs(found).max():6.1f} errors in {found.size} identities", flush=True)
        return
    for seed in range(1, options.seeds + 1):
        for name in options.posteriors:
            for kind in options.engines:
                if any(row["seed"] == seed for row in read_rows(options.rows).get((name, kind), ())):
                    continue
                row = row_of(name, kind, seed)
                print(json.dumps(row), flush=True)
                with options.rows.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            jax.clear_caches()
    rows = read_rows(options.rows)
    kinds = [kind for kind in ("ours", *OTHERS) if any(k == kind for _, k in rows)]
    text = "\n".join(table(rows, kinds, options.seeds))
    print(text)
    if options.output:
        options.output.write_text(text + "\n")
    if options.figure:
        draw_figure(rows, kinds, options.figure)


if __name__ == "__main__":
    main()
