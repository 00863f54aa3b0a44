"""Speed and accuracy of luminosity distances at 1e5 redshifts, next to astropy.

Claims: with redshifts traced at least 100 times, and with `RedshiftGrid` at least 1000 times as fast as astropy's
`FlatwCDM.luminosity_distance` on a NumPy array, at equal or better accuracy. All contestants take turns in one run.
"""

import argparse
import os
import platform
import statistics
import time
from pathlib import Path

import astropy
import astropy.cosmology
import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate

from hbm_jax import constants
from hbm_jax.cosmology import Cosmology, RedshiftGrid, luminosity_distance

jax.config.update("jax_enable_x64", True)

H0, OM0, W0 = 70.0, 0.3, -0.9
ROUNDING = 1e-14  # relative error below which two float64 integrals count as equally accurate
CALLS_PER_TURN = 20  # as a sampler calls it; a single call after astropy's turn finds cold caches and sleeping threads
CLAIMS = {"traced redshifts": 100, "RedshiftGrid": 1000}


def flat_wcdm(om0, w0):
    return Cosmology.flat(H0=H0, Om0=om0, w0=w0)


def reference(z):
    def integrand(z):
        return 1 / np.sqrt(OM0 * (1 + z) ** 3 + (1 - OM0) * (1 + z) ** (3 * (1 + W0)))

    value = [scipy.integrate.quad(integrand, 0, a, epsabs=0, epsrel=2e-14)[0] for a in z]
    return constants.speed_of_light_km_s / H0 * (1 + z) * np.array(value)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-redshifts", type=int, default=100_000)
    parser.add_argument("--z-max", type=float, default=2.3)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, help="also write the text to this file")
    options = parser.parse_args()
    lines = []

    def say(text=""):
        print(text, flush=True)
        lines.append(text)

    z = np.sort(np.random.default_rng(1).uniform(0.001, options.z_max, options.num_redshifts))
    grid, z_device = RedshiftGrid(z), jax.device_put(z)
    astropy_cosmology = astropy.cosmology.FlatwCDM(H0=H0, Om0=OM0, w0=W0)
    values = (jnp.float64(OM0), jnp.float64(W0))
    say(f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores, JAX on {jax.devices()[0]}")
    say(f"versions: python {platform.python_version()}, jax {jax.__version__}, numpy {np.__version__},")
    say(f"          astropy {astropy.__version__}; float64; {z.size} sorted redshifts to {options.z_max:g}, flat wCDM")
    say(f"turns: {options.repeats} for each, alternating; a turn is 1 call of astropy, {CALLS_PER_TURN} of ours")

    start = time.perf_counter()
    traced = jax.jit(lambda z, *p: luminosity_distance(z, flat_wcdm(*p))).lower(z_device, *values).compile()
    compile_traced = time.perf_counter() - start
    start = time.perf_counter()
    grid_device = jax.device_put(grid)
    fixed = jax.jit(lambda grid, *p: grid.luminosity_distance(flat_wcdm(*p))).lower(grid_device, *values).compile()
    compile_fixed = time.perf_counter() - start
    contestants = {
        "astropy": (lambda: astropy_cosmology.luminosity_distance(z).value, 0.0),
        "traced redshifts": (lambda: traced(z_device, *values).block_until_ready(), compile_traced),
        "RedshiftGrid": (lambda: fixed(grid_device, *values).block_until_ready(), compile_fixed),
    }

    results = {name: np.asarray(run()) for name, (run, _) in contestants.items()}
    subset = np.unique(np.linspace(0, z.size - 1, 2000).astype(int))
    truth = reference(z[subset])
    errors = {name: np.max(np.abs(value[subset] / truth - 1)) for name, value in results.items()}
    times = {name: [] for name in contestants}
    for _ in range(options.repeats):
        for name, (run, _) in contestants.items():
            calls = 1 if name == "astropy" else CALLS_PER_TURN
            start = time.perf_counter()
            for _ in range(calls):
                run()
            times[name].append((time.perf_counter() - start) / calls)

    median = {name: statistics.median(t) for name, t in times.items()}
    say()
    say(f"{'':18s}{'compile s':>10s}{'median ms':>11s}{'min ms':>9s}{'max ms':>9s}{'ratio':>8s}{'max rel. error':>16s}")
    for name, (_, compile_time) in contestants.items():
        t = times[name]
        say(
            f"{name:18s}{compile_time:10.2f}{median[name] * 1e3:11.3f}{min(t) * 1e3:9.3f}{max(t) * 1e3:9.3f}"
            f"{median['astropy'] / median[name]:8.0f}{errors[name]:16.1e}"
        )
    say()
    for name, target in CLAIMS.items():
        ratio = median["astropy"] / median[name]
        fast = ratio >= target
        accurate = errors[name] <= max(errors["astropy"], ROUNDING)
        say(f"{'PASS' if fast else 'MISS'}: {name} {ratio:.0f} times as fast as astropy, claimed {target}")
        say(
            f"{'PASS' if accurate else 'MISS'}: {name} error {errors[name]:.1e}, astropy {errors['astropy']:.1e} "
            f"(equal means at most astropy's or {ROUNDING:g})"
        )
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
