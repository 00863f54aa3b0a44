"""Time of a best fit with profile errors and fluxes: absorbed power law, a CCD spectrum of some 5000 counts.

From a started Python with this package imported and the spectrum read: cold (nothing compiled, no cache on disk) and
repeated for other counts of the same spectrum. Aims: 5 s and 0.5 s. ``--goodness`` includes 1000 simulated data sets.
"""

import os

os.environ["HBM_JAX_CACHE"] = "off"

import argparse
import datetime
import platform
import statistics
import time

import jax
import numpy as np

import hbm_jax as hbm
from hbm_jax.data import AfterglowPopulation
from hbm_jax.spectra import SpectrumStack, group, noticed

AIMS = {"cold": 5.0, "repeated": 0.5}  # s


def spectrum() -> SpectrumStack:
    """Return a simulated spectrum of a CCD, grouped optimally, with its background."""
    population = AfterglowPopulation(
        redshift=[0.0], photon_index=(1.9, 0.0), log10_flux=(-10.4, 0.0), log10_nh=(-0.5, 0.0), exposure=8000.0
    )
    (drawn,) = population.draw(1, seed=1).spectra
    channels = noticed(drawn, (0.3, 10.0))
    return SpectrumStack.of([group(drawn, "optimal", noticed=channels)], [channels])


def main() -> None:
    """Time one cold and several repeated fits, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--goodness", action="store_true", help="with 1000 simulated data sets")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    data, model = spectrum(), hbm.models.SpectralFit("tbabs * powerlaw")
    rng, times = np.random.default_rng(2), []
    for _ in range(options.repeats + 1):
        start, cpu = time.perf_counter(), time.process_time()
        best = hbm.best_fit(model, data, level=0.9, num_simulations=1000 * options.goodness)
        times.append((time.perf_counter() - start, time.process_time() - cpu))
        assert best.likelihood.converged
        data = data.replace_observations(rng.poisson(data.counts).astype(float))
    repeated = [statistics.median(column) for column in zip(*times[1:], strict=True)]
    today, load = datetime.date.today(), os.getloadavg()[0]
    print(
        f"{today}, {platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, jax {jax.__version__}, float64; "
        f"{np.sum(data.counts):.0f} counts{', with goodness' if options.goodness else ''}"
    )
    print(f"{'best fit':12s}{'seconds':>10s}{'CPU s':>10s}{'aim s':>8s}")
    for name, (seconds, cpu) in (("cold", times[0]), ("repeated", repeated)):
        print(f"{name:12s}{seconds:10.2f}{cpu:10.2f}{AIMS[name]:8.1f}{'' if seconds <= AIMS[name] else '  MISS'}")


if __name__ == "__main__":
    main()
