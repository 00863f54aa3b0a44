"""The Golenetskii relation from counts: from files of simulated bursts to a usable verdict, and from catalogue values.

Bursts of several intervals in four detectors (128 channels, 140 energies each) are simulated and written as OGIP files
(PHA II, background PHA II, RSP), then read, and fitted by `GolenetskiiCounts` until the posterior is usable. Printed:
the time from files to the verdict and of each phase, the smallest ESS per second, and the distance of the posterior
from the true values in standard deviations. Beside it, where the package has it, the same relation from the values and
errors of single-interval fits (`interval_fits`), as one would take them from a catalogue.
"""

import argparse
import datetime
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

NAMES = ("gamma_mean", "gamma_std", "log10_N_mean", "log10_N_std", "log10_E_peak_mean", "log10_E_peak_std",
         "alpha_mean", "alpha_std", "beta_mean", "beta_std", "intrinsic_scatter")  # fmt: skip
RELATION = ("gamma_mean", "gamma_std", "log10_N_mean", "log10_N_std", "intrinsic_scatter")  # names of both levels
LATENTS = ("gamma", "log10_N", "log10_E_peak", "alpha", "beta", "log10_flux", "effective_area")


def against_truth(fit, truth, names):
    """Yield a line for each parameter, with its posterior and its true value."""
    lines = []
    for name in names:
        if name in truth and name in fit.posterior:
            draws = np.asarray(fit.posterior[name]).ravel()
            pull = (draws.mean() - truth[name]) / draws.std()
            lines.append(
                f"  {name:<20} {draws.mean():8.3f} +- {draws.std():.3f}  true {truth[name]:8.3f} ({pull:+.1f})"
            )
    return lines


def latents(fit, truth):
    """Return the root mean square and the largest distance of latents from the truth, in standard deviations."""
    import hbm_jax as hbm

    lines, drawn = [], hbm.latents(fit, num_draws=1000)
    for name in LATENTS:
        if name in truth and name in drawn:
            draws = np.asarray(drawn[name])
            pull = (draws.mean(axis=0) - truth[name]) / draws.std(axis=0)
            lines.append(f"  {name:<20} rms {np.sqrt(np.mean(pull**2)):.2f}, largest {np.abs(pull).max():.1f} sd")
    return lines


def catalogue(data):
    """Return the fit from catalogue values, or why there is none."""
    import hbm_jax as hbm
    from hbm_jax.models import interval_fits

    table = interval_fits(data)
    try:
        from hbm_jax.data import read_bursts
        from hbm_jax.models import Golenetskii
    except ImportError:
        return None, "no catalogue level in this version"
    began = time.perf_counter()
    fit = hbm.sample(Golenetskii(), read_bursts(table), seed=1, progress=False)
    return fit, f"{time.perf_counter() - began:.1f} s; {fit.verdict}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bursts", type=int, default=10)
    parser.add_argument("--intervals", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-seconds", type=float, default=900.0)
    parser.add_argument("--target-accept-prob", type=float, default=0.9)
    parser.add_argument("--output", type=Path, help="also write the text to this file")
    options = parser.parse_args()
    # As the command line does.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    import jax

    import hbm_jax as hbm
    from hbm_jax.data import BurstSpectraPopulation, read_burst_spectra, write_burst_spectra
    from hbm_jax.inference import use_every_core
    from hbm_jax.models import GolenetskiiCounts

    use_every_core()
    population = BurstSpectraPopulation(num_intervals=options.intervals)
    sample = population.draw(options.bursts, seed=options.seed)
    with tempfile.TemporaryDirectory() as folder:
        catalog = write_burst_spectra(folder, sample)
        began = time.perf_counter()
        data = read_burst_spectra(catalog)
        read = time.perf_counter() - began
    model = GolenetskiiCounts()
    prepared = model.prepare(data)
    ready = time.perf_counter() - began
    given = {"sampler": hbm.NUTS(target_accept_prob=options.target_accept_prob), "max_seconds": options.max_seconds}
    fit = hbm.sample(model, data, seed=1, progress=False, **given)
    total = time.perf_counter() - began
    summary = fit.summary()
    ess = float(summary[["ess_bulk", "ess_tail"]].min(axis=None))
    other, why = catalogue(data)
    lines = [
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].platform}, float64; "
        f"jax {version('jax')}, numpyro {version('numpyro')}",
        data.describe(),
        f"nodes of a fold {prepared.folded.matrix.shape[1]}, largest distance from a finer one "
        f"{prepared.folded.errors.max():.2g} sd",
        f"files to verdict {total:.0f} s (reading {read:.1f} s, prepared after {ready:.1f} s); smallest ESS {ess:.0f}, "
        f"{ess / total:.2f} a second of all",
        f"of which {', '.join(f'{what} {seconds:.0f} s' for what, seconds in fit.timing.items())}",
        str(fit.verdict),
        "population, from counts:",
        *against_truth(fit, sample.truth, NAMES),
        "latents against truth:",
        *latents(fit, sample.truth),
        f"from catalogue values of single fits: {why}",
        *([] if other is None else against_truth(other, sample.truth, RELATION)),
    ]
    text = "\n".join(lines)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
