"""The relation of peak luminosity and peak energy of gamma-ray bursts of two instruments, with and without a selection.

Konus-Wind bursts (Tsvetkova et al. 2017, ApJ 850, 161, bundled) beside Fermi GBM bursts of known redshift (1 s peak,
Band fits, 10 keV to 1 MeV; table with the columns of `read_bursts`, von Kienlin et al. 2020, ApJ 893, 46). One line for
all bursts of a sample, log10 L = log10_N + gamma log10(E_peak (1 + z) / 100 keV) with scatter. Bursts are detected by
their flux, so that the limit in luminosity rises with redshift. Fits of each sample: without selection; with a smooth
limit of the flux whose position and width are inferred; with a sharp limit, the faintest flux of the sample. Both
samples together: without selection, and with the sharp limit of each instrument; bursts in both count as those of
Konus-Wind.

The trend is the mean of log10 of measured over predicted luminosity of the nearer half of the bursts minus that of the
more distant half [dex], at the posterior means, and beside it its mean and standard deviation in 40 samples simulated
with these parameters and the same selection. With a limit of the flux the distant bursts are the luminous ones. The
last column is the p-value of the model check.

Without a table: CPU time of the gradient of the log density with a selection of whole bursts or of afterglows, relative
to that without, in turns in one process.

    python benchmarks/burst_selection.py TABLE [--output benchmarks/results/burst_selection.txt]
    python benchmarks/burst_selection.py [--output benchmarks/results/burst_selection_gradient.txt]
"""

import argparse
import datetime
import os
import platform
import statistics
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

# One thread, so that the CPU time is that of the evaluation.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()

import numpy as np

REPLICATES = 40
ROUNDS, EVALUATIONS = 15, 20
AFTERGLOWS = {"limit of the flux": "log10_flux > -11.6 +- 0.15", "60 counts or more": "counts > 59"}
SMOOTH = "log10_flux > Normal({limit:.1f}, 0.5) +- HalfNormal(0.3)"


def samples(path):
    """Return the bursts of both instruments, and of both together, by name, with limits in their columns."""
    import hbm_jax as hbm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        konus = hbm.data.load_konus("yonetoku")
        fermi = hbm.data.read_bursts(path, leave_out="bad")
    tables = []
    for bursts in (konus, fermi):
        columns = {name: np.asarray(values) for name, values in bursts.to_table().items()}
        columns |= {name: columns.get(name, np.full(len(bursts), np.nan)) for name in ("band_low", "band_high", "beta")}
        columns["log10_flux_limit"] = np.full(len(bursts), columns["log10_flux"].min() - 1e-6)
        tables.append(columns)
    seen = {(name[3:9], round(float(z), 1)) for name, z in zip(tables[0]["burst"], tables[0]["z"], strict=True)}
    new = [
        (name[3:9], round(float(z), 1)) not in seen for name, z in zip(tables[1]["burst"], tables[1]["z"], strict=True)
    ]
    common = tables[0].keys() & tables[1].keys()
    together = {name: np.concatenate([tables[0][name], tables[1][name][new]]) for name in sorted(common)}
    named = {"Konus-Wind": tables[0], "Fermi GBM": tables[1], "both": together}
    return {name: hbm.data.Bursts.from_columns(columns) for name, columns in named.items()}


def trends(model, data, parameters):
    """Return the change of the mean residual from the nearer to the more distant bursts, and those of simulations."""
    import jax

    conversion, z = np.asarray(model.bind(data).flux_over_luminosity)[:, 0], np.asarray(data.z)
    near = z < np.median(z)

    def trend(measured):
        x, y = measured[..., 0] + np.log10(1.0 + z) - 2.0, measured[..., 1] - conversion
        residual = y - parameters["log10_N"] - parameters["gamma"] * x
        return residual[..., near].mean(axis=-1) - residual[..., ~near].mean(axis=-1)

    design = data.subset(np.tile(np.arange(len(data)), REPLICATES))
    simulated, _ = model.simulate(jax.random.key(1), design, parameters)
    measured = np.asarray(simulated.observed).reshape(REPLICATES, len(data), 2)
    return trend(np.asarray(data.observed)[:, 0]), trend(measured)


def lines(path):
    """Yield the lines of the result."""
    import hbm_jax as hbm
    from hbm_jax.models import Golenetskii

    hbm.use_every_core()
    for name, data in samples(path).items():
        flux = np.asarray(data.log10_flux)
        yield from ("", f"{name}: {data.describe().split(';')[0]}, log10 flux {flux.min():.2f} to {flux.max():.2f}")
        fits = {"without selection": {}}
        if name != "both":
            fits["smooth limit, inferred"] = {"selection": SMOOTH.format(limit=np.quantile(flux, 0.05))}
        fits["sharp limit, faintest flux"] = {"truncated": True}
        yield f"    {'':28s} {'gamma':>14s} {'log10_N':>16s} {'scatter':>14s} {'limit':>15s}  trend (simulated) check"
        for label, options in fits.items():
            model = Golenetskii(pooling="complete", **options)
            fit = hbm.sample(model, data, seed=1, progress=False)
            summary = fit.summary()
            cells = [
                f"{summary.loc[key, 'mean']:.{places}f} +- {summary.loc[key, 'sd']:.{places}f}"
                for key, places in (("gamma", 2), ("log10_N", 2), ("intrinsic_scatter", 3), ("log10_flux_lim", 2))
                if key in summary.index
            ]
            cells += [""] * (4 - len(cells))
            usable = "" if fit.verdict.usable else "  not usable"
            names = [key for key, prior in model.all_priors.items() if key in summary.index and key != "z"]
            step, simulated = trends(model, data, {key: float(summary.loc[key, "mean"]) for key in names})
            yield (
                f"    {label:28s} {cells[0]:>14s} {cells[1]:>16s} {cells[2]:>14s} {cells[3]:>15s} {step:+6.2f}"
                f"  ({simulated.mean():+.2f} +- {simulated.std():.2f})  {fit.model_check.p_value:.3f}{usable}"
            )


def contestants():
    """Yield the name of a sample, and models with their data by name, the one without a selection first."""
    from hbm_jax.data import AfterglowPopulation, BurstPopulation, read_afterglows, write_afterglows
    from hbm_jax.models import Afterglow, Golenetskii
    from hbm_jax.models.xray.detection import with_selection

    for text, num_intervals in (("3", 3), ("3 to 8", [3, 4, 5, 6, 7, 8])):
        data = BurstPopulation(num_intervals=num_intervals).draw(30, seed=2).data
        limit = np.where(data.used, data.log10_flux, -np.inf).max(axis=1).min() - 0.1
        texts = {
            "without": "none",
            "whole bursts, sharp limit": f"log10_peak_flux > {limit:.3f}",
            "whole bursts, inferred limit": f"log10_peak_flux > Normal({limit:.3f}, 0.2) +- 0.1",
        }
        models = {name: Golenetskii(selection=text) for name, text in texts.items()}
        yield f"30 bursts of {text} intervals", {name: (model, model.bind(data)) for name, model in models.items()}
    with tempfile.TemporaryDirectory() as folder:
        design = AfterglowPopulation(redshift=(0.5, 5.0), log10_flux=(-11.2, 0.1), exposure=2500.0, min_counts=60)
        catalog = write_afterglows(folder, design.draw(12, seed=5))
        data = read_afterglows(catalog, spectra=Path(folder) / "spectra")
    models = {name: Afterglow(selection=text) for name, text in (("without", "none"), *AFTERGLOWS.items())}
    bound = models["without"].prepare(data)
    yield (
        f"12 afterglows, {np.shape(bound.statistic.counts)[1]} groups",
        {name: (model, with_selection(model, bound, data)) for name, model in models.items()},
    )


def gradients():
    """Yield the lines of the cost of gradients."""
    import jax
    from numpyro.infer.util import initialize_model, potential_energy

    jax.config.update("jax_enable_x64", True)
    for name, models in contestants():
        yield from ("", f"{name}: CPU time of value and gradient of the log density")
        functions = {}
        for label, (model, bound) in models.items():
            start = initialize_model(jax.random.key(0), model, model_args=(bound,), validate_grad=False).param_info.z
            value = jax.jit(jax.value_and_grad(lambda q, m=model, b=bound: potential_energy(m, (b,), {}, q)))
            functions[label] = lambda value=value, start=start: jax.block_until_ready(value(start))
            functions[label]()
        times = {label: [] for label in functions}
        for _ in range(ROUNDS):
            for label, function in functions.items():
                began = time.process_time()
                for _ in range(EVALUATIONS):
                    function()
                times[label].append((time.process_time() - began) / EVALUATIONS)
        medians = {label: statistics.median(values) for label, values in times.items()}
        for label, median in medians.items():
            yield f"    {label:32s} {1e6 * median:7.0f} us  {median / medians['without']:5.2f} times"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, nargs="?", help="Fermi bursts with redshifts, gbm_peak_band_with_z.csv")
    parser.add_argument("--output", type=Path, help="also write the text to this file")
    options = parser.parse_args()
    began, cpu = time.perf_counter(), time.process_time()
    written = [
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores (shared), "
        f"Python {platform.python_version()}, hbm_jax {version('hbm_jax')}, jax {version('jax')}"
    ]
    print(written[0], flush=True)
    if options.table is None:
        written[0] += f", load {os.getloadavg()[0]:.1f}"
    for line in lines(options.table) if options.table else gradients():
        written.append(line)
        print(line, flush=True)
    written += ["", f"{time.perf_counter() - began:.0f} s ({time.process_time() - cpu:.0f} s of CPU)"]
    if options.output:
        options.output.write_text("\n".join(written) + "\n")


if __name__ == "__main__":
    main()
