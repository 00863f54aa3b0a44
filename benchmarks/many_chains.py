"""Many chains adapted together, `hbm_jax.ChEES`: false verdicts on known posteriors, and gradients in sequence.

``rates``: runs on posteriors whose means are known exactly, among them slow chains (at most two leapfrog steps per
draw) and separate modes. A usable verdict is false if a mean is more than 5 of the stated Monte Carlo errors from the
exact one.

``gradients``: gradients in sequence from the start to a usable verdict, for chains that advance in lock-step (each draw
costs as many as its longest trajectory), searches included, beside those of NUTS with four chains; for the five systems
of the suite and the posteriors of posteriordb (HBM_JAX_TEST_DATA is the folder of the data). Nothing depends on the
load of the machine.

    python benchmarks/many_chains.py rates --rows rates.jsonl [--chains 64] [--seeds 30] [--output FILE]
    python benchmarks/many_chains.py gradients --rows gradients.jsonl [--chains 64] [--names ...] [--output FILE]

A row is written as soon as it is computed; rows that are there already are not computed again.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
import warnings
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import numpyro
from numpyro import distributions as dist

import hbm_jax as hbm
from hbm_jax.inference.sampler.checkpoint import Checkpoint
from hbm_jax.inference.sampler.target import Target

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(Path(__file__).parent / "suite"), str(ROOT / "tests" / "models")]
SYSTEMS = ("supernovae", "relation", "golenetskii", "normal", "afterglows")
ERRORS = 5.0  # Monte Carlo errors within which means agree
SLOW = {"max_tree_depth": 1}

# Known posteriors: program, exact means of its sites, options of the sampler


def gaussian(size, condition, seed=0):
    """Return a normal distribution whose variances differ by a factor, in rotated axes."""
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]
    scale = np.logspace(0.0, 0.5 * np.log10(condition), size)
    mean = np.arange(size, dtype=float)
    return lambda: numpyro.sample("x", dist.MultivariateNormal(mean, (rotation * scale**2) @ rotation.T)), {"x": mean}


def hierarchy(num):
    """Return groups with known scatters: a normal posterior."""
    y, error = np.random.default_rng(1).normal(1.0, 1.5, num), np.linspace(0.3, 3.0, num)
    precision = 1.0 / (1.0 + error**2)
    mean = (precision * y).sum() / (precision.sum() + 0.01)
    theta = (y / error**2 + mean) / (1.0 / error**2 + 1.0)

    def program():
        mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
        with numpyro.plate("group", num):
            x = numpyro.sample("theta", dist.Normal(mu, 1.0))
            numpyro.sample("y", dist.Normal(x, error), obs=y)

    return program, {"mu": mean, "theta": theta}


def normal_gamma():
    """Return mean and precision of 20 values with the conjugate prior."""
    y = np.random.default_rng(2).normal(3.0, 2.0, 20)
    shape, rate = 2.0 + 10.0, 2.0 + 0.5 * ((y - y.mean()) ** 2).sum() + 0.5 * 20 / 21 * y.mean() ** 2

    def program():
        precision = numpyro.sample("precision", dist.Gamma(2.0, 2.0))
        mu = numpyro.sample("mu", dist.Normal(0.0, precision**-0.5))
        numpyro.sample("y", dist.Normal(mu, precision**-0.5).expand([20]).to_event(1), obs=y)

    return program, {"precision": shape / rate, "mu": 20 * y.mean() / 21}


def banana(bend, width):
    """Return a parabola of some width."""

    def program():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(bend * x**2, width))

    return program, {"x": 0.0, "y": bend}


def mixture(distance, size=2, weight=0.3):
    """Return two modes of unit width at a distance along the first axis, of unequal masses."""
    centres = np.zeros((2, size))
    centres[1, 0] = distance
    modes = dist.Independent(dist.Normal(centres, 1.0), 1)
    mean = np.zeros(size)
    mean[0] = (1.0 - weight) * distance
    return (
        lambda: numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(np.array([weight, 1.0 - weight])), modes)),
        {"x": mean},
    )


def heavy_tail(freedom, size=4):
    """Return independent Student's t distributions."""
    return lambda: numpyro.sample("x", dist.StudentT(freedom).expand([size]).to_event(1)), {"x": np.zeros(size)}


KNOWN = {
    "normal, 5 parameters": (lambda: gaussian(5, 1.0), {}),
    "normal, 20 parameters, condition 1e4": (lambda: gaussian(20, 1e4), {}),
    "normal, 20 parameters, slow chains": (lambda: gaussian(20, 1e2), SLOW),
    "hierarchy of 30 groups": (lambda: hierarchy(30), {}),
    "mean and precision": (normal_gamma, {}),
    "banana": (lambda: banana(0.5, 0.5), {}),
    "narrow banana, slow chains": (lambda: banana(1.0, 0.3), SLOW),
    "two modes, 4 apart": (lambda: mixture(4.0), {}),
    "two modes, 6 apart": (lambda: mixture(6.0), {}),
    "two modes, 12 apart": (lambda: mixture(12.0), {}),
    "two modes, 4 apart, slow chains": (lambda: mixture(4.0), SLOW),
    "Student's t, 5 degrees of freedom": (lambda: heavy_tail(5.0), {}),
}


def known_row(name, seed, num_chains):
    """Run the sampler on a known posterior; return its verdict and the largest distance of a mean in errors."""
    make, options = KNOWN[name]
    program, exact = make()
    sampler = hbm.ChEES(target_accept_prob=0.8, **options)
    fit = hbm.sample(program, sampler=sampler, num_chains=num_chains, seed=seed, progress=False, max_num_samples=250)
    table, distance = fit.verdict.table, 0.0
    for site, mean in exact.items():
        rows = table[[label.split("[")[0] == site for label in table.index]]
        drawn = fit.posterior[site].mean(("chain", "draw")).to_numpy().ravel()
        distance = max(distance, float(np.abs((drawn - np.ravel(mean)) / rows["mcse_mean"]).max()))
    row = {"name": name, "seed": seed, "chains": num_chains, "usable": fit.verdict.usable, "distance": distance}
    row |= {"draws": fit.posterior.sizes["draw"], "gradients": fit.run["sequential_gradients"]}
    row |= {"reasons": "; ".join(fit.verdict.reasons)}
    return row | {"r_hat": fit.verdict.worst_r_hat[1], "ess": fit.verdict.smallest_ess[1]}


# Gradients in sequence


def case(name):
    """Return program and arguments of a system or of a posterior of posteriordb."""
    if name in SYSTEMS:
        system = import_module(f"systems.{name}")
        return system.ours(system.problem(**system.SIZES), next(iter(system.OURS.values())))
    from posterior_programs import case_of

    data = Path(os.environ.get("HBM_JAX_TEST_DATA", ROOT.parent / "shared" / "data"))
    found = case_of(lambda relative: data / relative, name)
    return found.program, *found.args


class CountedSearches:
    """Context that counts the gradients that the searches evaluate one after the other."""

    def __enter__(self):
        self.number, self._descriptor = 0, Target.value_and_grad
        original, counter = self._descriptor.func, self

        class Counted:
            def __get__(self, instance, owner=None):
                if "_counted" not in vars(instance):
                    evaluate = original(instance)

                    def counted(*arguments):
                        counter.number += 1
                        return evaluate(*arguments)

                    vars(instance)["_counted"] = counted
                return vars(instance)["_counted"]

        Target.value_and_grad = Counted()
        return self

    def __exit__(self, *_):
        Target.value_and_grad = self._descriptor


def gradients_row(name, kind, seed, num_chains):
    """Return the gradients in sequence of a run until its verdict."""
    program, *args = case(name)
    options = {"sampler": hbm.ChEES(), "num_chains": num_chains} if kind == "chees" else {"num_chains": 4}
    with CountedSearches() as searches, tempfile.TemporaryDirectory() as folder:
        fit = hbm.sample(program, *args, seed=seed, progress=False, checkpoint=folder, **options)
        store = Checkpoint.existing(folder)
        warmup = sum(int(b.block.num_steps.max(axis=0).sum()) for b in store.blocks() if b.warmup)
        store.close()
    steps = fit.tree["sample_stats"]["n_steps"].transpose("chain", "draw").to_numpy()
    row = {"name": name, "kind": kind, "seed": seed, "chains": len(steps), "usable": fit.verdict.usable}
    row |= {"searches": searches.number, "warmup": warmup, "drawing": int(steps.max(axis=0).sum())}
    row |= {"draws": steps.shape[1], "reasons": "; ".join(fit.verdict.reasons)}
    means = fit.summary()[["mean", "mcse_mean"]]
    return row | {"means": {str(k): [float(x) for x in v] for k, v in zip(means.index, means.to_numpy(), strict=True)}}


def total(row):
    """Return all gradients of a row in sequence."""
    return row["searches"] + row["warmup"] + row["drawing"]


# Tables


def read_rows(path):
    """Return all rows of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def rates_table(rows):
    """Yield the lines of the table of verdicts."""
    yield f"{'':<42}{'runs':>6}{'usable':>8}{'false':>7}{'largest distance':>18}{'median draws':>14}"
    for name in KNOWN:
        found = [row for row in rows if row["name"] == name]
        if found:
            usable = [row for row in found if row["usable"]]
            false = [row for row in usable if row["distance"] > ERRORS]
            largest = max((row["distance"] for row in usable), default=np.nan)
            draws = np.median([row["draws"] for row in found])
            yield f"{name:<42}{len(found):>6}{len(usable):>8}{len(false):>7}{largest:>18.2f}{draws:>14.0f}"
    usable = [row for row in rows if row["usable"]]
    false = [row for row in usable if row["distance"] > ERRORS]
    yield f"{'all':<42}{len(rows):>6}{len(usable):>8}{len(false):>7}"
    yield ""
    yield f"false: usable, and a mean is more than {ERRORS:g} stated Monte Carlo errors from the exact one"


def difference(a, b):
    """Return the largest difference of the means of two rows, in Monte Carlo errors of both."""
    pairs = ((a["means"][k], b["means"][k]) for k in a["means"] if k in b["means"])
    z = [abs(x[0] - y[0]) / np.hypot(x[1], y[1]) for x, y in pairs if np.hypot(x[1], y[1]) > 0]
    return max(z, default=np.nan)


def gradients_table(rows):
    """Yield the lines of the table of gradients in sequence."""
    yield f"{'':<50}{'NUTS':>9}{'ChEES':>9}{'ratio':>8}{'searches':>10}{'draws':>7}{'differ':>8}   verdicts"
    ratios = []
    for name in dict.fromkeys(row["name"] for row in rows):
        found = {row["kind"]: row for row in rows if row["name"] == name}
        if len(found) < 2:
            continue
        nuts, ours = found["nuts"], found["chees"]
        ratio = total(ours) / total(nuts)
        ratios.append(ratio if ours["usable"] or not nuts["usable"] else np.inf)
        verdicts = " / ".join("usable" if row["usable"] else row["reasons"][:60] for row in (nuts, ours))
        yield (
            f"{name:<50}{total(nuts):>9}{total(ours):>9}{ratio:>8.3f}{ours['searches']:>10}{ours['draws']:>7}"
            f"{difference(nuts, ours):>8.1f}   {verdicts}"
        )
    yield ""
    yield f"median ratio {np.median(ratios):.3f} of {len(ratios)}; not usable where NUTS is counts as infinite"
    yield "differ: largest difference of the means, in Monte Carlo errors of both"


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rates", "gradients"))
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--chains", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--names", nargs="+")
    parser.add_argument("--table", action="store_true", help="only print the table of the rows that are there")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Found chain dimension to be longer")
    if options.what == "rates":
        names = options.names or list(KNOWN)
        work = [(n, {"seed": s}, known_row) for s in range(options.seeds) for n in names]
    else:
        from posterior_programs import NAMES

        names = options.names or [*SYSTEMS, *NAMES]
        kinds = [(n, {"kind": k, "seed": s}) for s in range(options.seeds) for n in names for k in ("chees", "nuts")]
        work = [(name, key, gradients_row) for name, key in kinds]
    for name, key, run in () if options.table else work:
        if any(row["name"] == name and all(row[k] == v for k, v in key.items()) for row in read_rows(options.rows)):
            continue
        row = run(name, **key, num_chains=options.chains)
        print({k: v for k, v in row.items() if k != "means"}, flush=True)
        with options.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
        jax.clear_caches()
    rows = read_rows(options.rows)
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "numpyro"))
    title = {"rates": "Verdicts on known posteriors", "gradients": "Gradients in sequence until the verdict"}
    chains = ", ".join(map(str, sorted({row["chains"] for row in rows})))
    lines = [
        f"{title[options.what]}; chains: {chains}; {datetime.date.today()}, {platform.machine()}, {packages}",
        "",
        *(rates_table(rows) if options.what == "rates" else gradients_table(rows)),
    ]
    text = "\n".join(line.rstrip() for line in lines) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
