"""The classic hierarchical models: seconds after compilation, divergences, verdict of each at default settings.

    python benchmarks/gallery.py                        # the table
    python benchmarks/gallery.py --long tests/models/gallery_long_runs.json

The second draws until every parameter has 4000 effective draws and writes their means and quantiles, for tests.
"""

import argparse
import json
import os
import threading
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

import hbm_jax as hbm

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "hierarchical" / "posteriordb"
LIMIT = 20.0  # seconds after compilation, on two cores


def regression(source, formula, **options):
    """Return a regression model and its data, from options of the reader and of the model."""
    reader = {key: options.pop(key) for key in ("trials", "exposure", "error", "name") if key in options}
    table = hbm.data.load_example(source) if isinstance(source, str) else source
    return hbm.models.Regression(**options), hbm.data.read_regression(table, formula=formula, **reader)


def rates(source, formula, **options):
    """Conjugate rates and data."""
    reader = {key: options.pop(key) for key in ("trials", "exposure", "name") if key in options}
    data = hbm.data.read_regression(hbm.data.load_example(source), formula=formula, **reader)
    return hbm.models.Rates(**options), data


def dugongs():
    """Growth that levels off, as of Carlin & Gelfand 1991: length = alpha - beta gamma^age."""
    import jax.numpy as jnp
    import numpyro
    from numpyro import distributions as dist

    def growth(age, length):
        alpha = numpyro.sample("alpha", dist.TruncatedNormal(0.0, 1000.0, low=0.0))
        beta = numpyro.sample("beta", dist.TruncatedNormal(0.0, 1000.0, low=0.0))
        gamma = numpyro.sample("gamma", dist.Uniform(0.5, 1.0))
        sigma = numpyro.sample("sigma", dist.LogUniform(1e-3, 1e2))
        with numpyro.plate("animal", len(length)):
            numpyro.sample("length", dist.Normal(alpha - beta * jnp.power(gamma, age), sigma), obs=length)

    table = hbm.data.load_example("dugongs")
    return growth, np.asarray(table["age"], float), np.asarray(table["length"], float)


def hogg():
    """Line of Hogg, Bovy & Lang 2010 with a fraction of outliers, errors of y alone."""
    table = hbm.data.load_example("hogg_line")
    columns = {key: np.asarray(table[key], float) for key in ("x", "y", "sigma_y")}
    model = hbm.models.Relation(pooling="complete", scatter=False, outliers=True, pivot=0.0)
    return model, hbm.data.read_relation(columns)


def stored(name, formula, rename=None, **options):
    """Regression of a data set of posteriordb, which is not bundled; None where it is not there."""
    path = SHARED / name
    if not path.exists():
        return None
    import gzip

    content = json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_text())
    columns = {key: np.asarray(value) for key, value in content.items() if isinstance(value, list)}
    columns["row"] = np.arange(len(next(iter(columns.values()))))
    return regression({(rename or {}).get(key, key): value for key, value in columns.items()}, formula, **options)


def simulated(kind):
    """Regressions of simulated data."""
    rng = np.random.default_rng(1)
    x, group = rng.normal(size=400), np.arange(400) % 20
    mean = np.exp(1.0 + 0.5 * x + 0.5 * rng.normal(size=20)[group])
    if kind == "poisson":
        return regression({"x": x, "y": rng.poisson(mean), "g": group}, "y ~ x + (1 | g)", family="poisson")
    if kind == "negative_binomial":
        y = rng.poisson(mean * rng.gamma(2.0, 0.5, 400))
        return regression({"x": x, "y": y, "g": group}, "y ~ x + (1 | g)", family="negative_binomial")
    if kind == "categorical":
        eta = np.stack([0 * x, 0.5 + x, -0.5 - x], axis=1)
        y = np.array(["low", "middle", "high"])[(eta + rng.gumbel(size=eta.shape)).argmax(1)]
        return regression({"x": x, "y": y}, "y ~ x", family="categorical")
    time_, slope = np.arange(400), 1.0 + np.cumsum(0.05 * rng.normal(size=400))
    y = slope * x + np.cumsum(0.03 * rng.normal(size=400)) + 0.3 * rng.normal(size=400)
    return regression({"week": time_ // 7, "x": x, "y": y}, "y ~ x + (1 + x | walk(week))")


WELLS = "switched ~ I(dist / 100) * arsenic"
SCHOOLS = {"sigma": 0.0, "intercept": "Normal(0, 5)", "sd": "HalfCauchy(5)"}
GALLERY = {
    "eight schools": lambda: regression(
        "eight_schools", "effect ~ 1 + (1 | school)", error="std_err", name="school", priors=SCHOOLS
    ),
    "radon, complete pooling": lambda: regression("radon", "log_radon ~ floor"),
    "radon, no pooling": lambda: regression("radon", "log_radon ~ 0 + floor + C(county)"),
    "radon, varying intercept": lambda: regression("radon", "log_radon ~ floor + (1 | county)"),
    "radon, group predictor": lambda: regression("radon", "log_radon ~ floor + log_uranium + (1 | county)"),
    "radon, varying slope": lambda: regression("radon", "log_radon ~ floor + (1 + floor | county)"),
    "radon, all of it": lambda: regression("radon", "log_radon ~ floor * log_uranium + (1 + floor | county)"),
    "rat tumour": lambda: rates("rat_tumor", "tumors ~ 1", trials="rats"),
    "baseball": lambda: rates("baseball", "hits ~ 1", trials="at_bats", name="player"),
    "baseball, logistic": lambda: regression(
        "baseball", "hits ~ 1 + (1 | player)", trials="at_bats", family="binomial"
    ),
    "pumps": lambda: rates("pumps", "failures ~ 1", exposure="time", family="poisson", parameters="shape"),
    "surgical": lambda: regression("surgical", "deaths ~ 1 + (1 | hospital)", trials="operations", family="binomial"),
    "surgical, conjugate": lambda: rates("surgical", "deaths ~ 1", trials="operations", name="hospital"),
    "rats": lambda: regression("rats", "weight ~ day + (1 + day | rat)"),
    "dugongs": dugongs,
    "hogg line, outliers": hogg,
    "hogg line, Student t": lambda: regression("hogg_line", "y ~ x", family="student_t"),
    "seeds": lambda: stored(
        "seeds_data.json", "germinated ~ x1 * x2 + (1 | row)", {"n": "germinated", "N": "planted"},
        trials="planted", family="binomial",
    ),
    "wells, logit": lambda: stored("wells_data.json.gz", WELLS, family="bernoulli"),
    "wells, probit": lambda: stored("wells_data.json.gz", WELLS, family="bernoulli", link="probit"),
    "Poisson, groups": lambda: simulated("poisson"),
    "negative binomial, groups": lambda: simulated("negative_binomial"),
    "multi-logit": lambda: simulated("categorical"),
    "rolling regression": lambda: simulated("rolling"),
}  # fmt: skip


LONG = (
    "seeds", "surgical", "rats", "dugongs", "wells, logit", "radon, varying intercept", "baseball, logistic",
    "hogg line, Student t",
)  # fmt: skip


def judged(name, until=None, seed=1):
    """Fit of a model of the gallery; None where its data are not there."""
    case = GALLERY[name]()
    return None if case is None else hbm.sample(*case, seed=seed, progress=False, until=until)


class ProcessorTime:
    """CPU time of this process as a function of elapsed time, because elapsed times depend on the load."""

    def __enter__(self):
        self.stamps, self.done = [], threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self):
        """Take stamps until it is done."""
        while not self.done.wait(0.05):
            self.stamps.append((time.perf_counter(), time.process_time()))

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()
        self.stamps.append((time.perf_counter(), time.process_time()))

    def of_the_last(self, fit):
        """Seconds that warm-up and draws took."""
        clock, used = np.array(self.stamps).T
        end = clock[-1] - fit.timing["judging"]
        begin = end - fit.timing["sampling"] - fit.timing["warmup"]
        return float(np.diff(np.interp([begin, end], clock, used))[0])


def summary_of(fit):
    """Mean, sd, quantiles and effective sample size of every element of the small parameters."""
    columns = {
        "mean": "mean",
        "sd": "sd",
        "lower_68": "q16",
        "median": "q50",
        "upper_68": "q84",
        "ess_bulk": "ess_bulk",
    }
    table = fit.summary(max_size=6)[list(columns)].rename(columns=columns)
    return {str(label): {key: float(f"{value:.6g}") for key, value in row.items()} for label, row in table.iterrows()}


def long_runs(path):
    """Write long runs of the models that have no other reference posterior in the tests."""
    versions = {name: version(name) for name in ("jax", "numpyro")}
    made = {"made_by": "python benchmarks/gallery.py --long FILE", "seed": 2, "until": 4000, "versions": versions}
    made["models"] = {}
    for name in LONG:
        fit = judged(name, until=4000, seed=2)
        if fit is None:
            continue
        made["models"][name] = summary_of(fit)
        print(name, fit.verdict, flush=True)
        path.write_text(json.dumps(made, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--long", type=Path)
    parser.add_argument("--only", nargs="*", default=list(GALLERY))
    arguments = parser.parse_args()
    hbm.use_every_core()
    if arguments.long:
        long_runs(arguments.long)
        return
    print(f"{'model':<26} {'dim':>4} {'clock':>6} {'CPU':>6} {'ESS/CPU s':>9} {'steps':>6} {'div.':>4}  verdict")
    for name in arguments.only:
        with ProcessorTime() as watched:
            fit = judged(name)
        if fit is None:
            print(f"{name:<26} its data are not here")
            continue
        after, clock = watched.of_the_last(fit), fit.timing["warmup"] + fit.timing["sampling"]
        stats = fit.tree["sample_stats"]
        size = fit.tree["unconstrained_posterior"]["position"].sizes["parameter"]
        ess = float(fit.verdict.table[["ess_bulk", "ess_tail"]].min().min())
        word = "usable" if fit.verdict.usable else "NOT usable"
        word += "" if min(after, clock) < LIMIT else ", SLOW"
        print(
            f"{name:<26} {size:4d} {clock:5.1f}s {after:5.1f}s {ess / after:9.0f} "
            f"{float(stats['n_steps'].mean()):6.1f} {int(stats['diverging'].sum()):4d}  {word}",
            flush=True,
        )
    print(
        "\nclock, CPU: seconds of warm-up and draws, after compilation; CPU is that of both processors together, and\n"
        "bounds the clock where they have nothing else to do. ESS: the smallest, bulk or tail, of any parameter or\n"
        "effect. steps: leapfrog steps a draw."
    )
    print(
        f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.0f}; "
        f"jax {version('jax')}, numpyro {version('numpyro')}"
    )


if __name__ == "__main__":
    main()
