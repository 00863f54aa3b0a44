"""Throughput of `hbm_jax.fit_each` over single absorbed power laws, next to a loop over NumPyro's MCMC.run, in one run.

Simulated Swift-like spectra of some hundred counts with background (``marginal``), each fitted on its own: photon
index, flux and host column with the priors of a population held fixed. Both have the same program and compressed folds,
so that the comparison is one of the samplers. ``fit_each`` draws until every object is usable; the loop takes four
chains of 500 warm-up and 500 draws from the median of the prior (``jit_model_args=True``, so that it compiles once).
The time to prepare the spectra is given too.
"""

import argparse
import datetime
import os
import platform
import statistics
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np

HELD = {
    "photon_index_mean": 2.0,
    "photon_index_std": 0.5,
    "log10_flux_mean": -11.3,
    "log10_flux_std": 1.0,
    "log10_nh_mean": -0.5,
    "log10_nh_std": 1.0,
}
NAMES = ("photon_index", "log10_flux", "log10_nh")


def population(num):
    """Return a simulated sample, grouped optimally, and its true parameters."""
    from hbm_jax.data import AfterglowPopulation, Afterglows
    from hbm_jax.spectra import SpectrumStack, group, noticed

    drawn = AfterglowPopulation(log10_flux=(-11.3, 0.3), exposure=3000.0, min_counts=20).draw(num, seed=5)
    masks = [noticed(s, (0.3, 10.0)) for s in drawn.spectra]
    grouped = [group(s, "optimal", noticed=m) for s, m in zip(drawn.spectra, masks, strict=True)]
    data = Afterglows.from_spectra(SpectrumStack.of(grouped, masks), z=drawn.columns["z"], nh_mw=drawn.columns["nh_mw"])
    return data, {name: np.asarray(drawn.truth[name]) for name in NAMES}


def smallest_ess(sites):
    """Return the smallest bulk or tail ESS of arrays (chain, draw, 1)."""
    from hbm_jax.inference.batch.diagnostics import diagnose_many

    diagnostics = [diagnose_many(np.moveaxis(np.asarray(sites[name]), (0, 1), (-2, -1))) for name in NAMES]
    return min(float(min(np.min(d.ess_bulk), np.min(d.ess_tail))) for d in diagnostics)


def loop(model, singles, chain_method):
    """Fit one spectrum after the other; return the time of compilation, and time and smallest ESS of each."""
    import jax
    from numpyro.infer import MCMC, NUTS, init_to_median

    mcmc = MCMC(
        NUTS(model, init_strategy=init_to_median), num_warmup=500, num_samples=500, num_chains=4,
        chain_method=chain_method, progress_bar=False,
        jit_model_args=True,
    )  # fmt: skip
    seconds, ess = [], []
    for i, single in enumerate(singles):
        began = time.perf_counter()
        mcmc.run(jax.random.key(i), single)
        samples = jax.device_get(mcmc.get_samples(group_by_chain=True))
        seconds.append(time.perf_counter() - began)
        ess.append(smallest_ess(samples))
    return seconds[0] - statistics.median(seconds[1:]), seconds[1:], ess[1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=1000)
    parser.add_argument("--loop", type=int, default=16, help="spectra the loops are timed on")
    parser.add_argument("--output", type=Path, help="also write the text to this file")
    options = parser.parse_args()
    import jax

    import hbm_jax as hbm
    from hbm_jax.models import Afterglow

    hbm.use_every_core()
    jax.config.update("jax_enable_x64", True)
    warnings.filterwarnings("ignore", message="There are not enough devices")
    data, truth = population(options.objects)
    model = Afterglow(priors=HELD)
    began = time.perf_counter()
    singles = model.prepare(data).each()
    preparing = time.perf_counter() - began
    fits = hbm.fit_each(model, [(single,) for single in singles], names=list(data.name), seed=1, progress=False)
    ours = fits.cost["seconds"] - fits.cost["compile_seconds"]
    each = ours / options.objects
    table = fits.summary()
    ours_ess = table[["ess_bulk", "ess_tail"]].min(axis=1).groupby("object").min().to_numpy()
    counts = np.asarray(data.spectra.counts).sum(axis=1)
    device = jax.devices()[0]
    lines = [
        f"{options.objects} simulated spectra of {int(counts.min())} to {int(counts.max())} counts (median "
        f"{int(np.median(counts))}), 3 parameters each, float64 on {device.platform} ({device.device_kind})",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"hbm_jax {version('hbm_jax')}, jax {version('jax')}, numpyro {version('numpyro')}",
        f"compilation is not counted; preparing the folds took {1e3 * preparing / options.objects:.0f} ms a spectrum",
        "",
        f"{'':28s}{'compile s':>10s}{'ms a spectrum':>14s}{'smallest ESS':>14s}{'ratio':>8s}{'ratio by ESS':>14s}",
    ]

    def row(name, compile_seconds, seconds, ess):
        by_ess = (seconds / np.median(ess)) / (each / np.median(ours_ess))
        lines.append(
            f"{name:28s}{compile_seconds:10.1f}{1e3 * seconds:14.1f}{np.median(ess):14.0f}{seconds / each:8.1f}"
            f"{by_ess:14.1f}"
        )

    row("fit_each", fits.cost["compile_seconds"], each, ours_ess)
    for method in ("vectorized", "sequential"):
        jax.clear_caches()  # each MCMC.run keeps a thousand mapped sections of memory, and a process may have 65 530
        compile_seconds, seconds, ess = loop(model, singles[: options.loop + 1], method)
        row(f"MCMC.run, {method} chains", compile_seconds, statistics.median(seconds), ess)
    pulls = []
    for name in NAMES:
        rows = table.xs(f"{name}[0]", level=1)
        true = truth[name][[data.name.index(label) for label in rows.index]]
        pulls.append(np.mean(np.abs(rows["mean"] - true) < rows["sd"]))
    inside = ", ".join(f"{name} {100 * share:.0f} %" for name, share in zip(NAMES, pulls, strict=True))
    lines += [
        "",
        f"fit_each: {int(fits.usable.sum())} of {options.objects} usable, "
        f"{fits.verdicts['num_draws'].median():.0f} draws (median), {fits.cost['num_slots']} slots",
        f"true values within one standard deviation of the mean: {inside}",
    ]
    text = "\n".join(lines)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
