"""Claims: tables of the WHIM against the contraction over 102 ions, and against slabs.

The optical depth towards 200 sources at 1000 energies each, at one density and temperature after the other, in one
process and precision, contestants taking turns of 20 evaluations as a sampler would call them, at temperatures within
0.1 of each other:

- table: `hbm_jax.absorption.WhimTable` with a metallicity that is a parameter;
- table, Z fixed: the same with a metallicity that is given, as in most fits: n0 and metallicity are degenerate;
- direct: `hbm_jax.absorption.whim_optical_depth` mapped over the sources, for redshifts that are parameters: fractions
  of the 102 ions contracted with their running integrals, which are then read at every energy and cell;
- stored ions: the precomputed integral of each of the 102 ions at every energy, contracted with the ion fractions. It
  reads and writes 824 bytes for each energy, the table 40, or 24 with Z fixed. Both are limited by the memory
  bandwidth, so that the ratio cannot be much above 20, or 34;
- slabs: cross sections of all ions at the middle of slabs 0.02 wide in redshift, in NumPy, as published codes do;
  timed on a few sources.

    python benchmarks/absorption.py [--sources 200] [--energies 1000] [--output benchmarks/results/absorption.txt]
"""

import argparse
import datetime
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

REPEATS, TURN = 10, 20
SLAB = 0.02
SLAB_SOURCES = 3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, default=200)
    parser.add_argument("--energies", type=int, default=1000)
    parser.add_argument("--output", type=Path, help="also write the text to this file")
    options = parser.parse_args()
    import jax
    import jax.numpy as jnp

    from hbm_jax.absorption import WhimTable, abundance_table, ion_fractions, whim_optical_depth
    from hbm_jax.absorption.cross_sections import evaluate, fit_coefficients
    from hbm_jax.absorption.rates import ABSORBING
    from hbm_jax.absorption.running_integrals import RunningIntegrals, running_integrals
    from hbm_jax.absorption.whim import ABSORBING_INDEX, COLUMN, parabolic_cells, weighted_integral, weights_of
    from hbm_jax.cosmology import Cosmology
    from hbm_jax.inference.compilation.devices import use_every_core

    use_every_core()  # as in every fit from the command line: each chain, and so each operation, on a core of its own
    jax.config.update("jax_enable_x64", True)
    flat = Cosmology.flat(H0=70.0, Om0=0.3)
    energy = np.geomspace(0.3, 10.0, options.energies)
    z = np.random.default_rng(0).uniform(0.05, 6.0, options.sources)

    running_integrals()
    set_up = []
    for source in z[:5]:
        began = time.process_time()
        WhimTable(energy, source, cosmology=flat)
        set_up.append(time.process_time() - began)
    began = time.perf_counter()
    table = jax.block_until_ready(jax.device_put(WhimTable(energy, z, cosmology=flat)))
    all_of_them = time.perf_counter() - began
    of_metallicity = jax.device_put(WhimTable(energy, z, cosmology=flat, metallicity=1.0))

    numbers = abundance_table("wilm")[np.array([Z for Z, _ in ABSORBING]) - 1]

    @jax.jit
    def of_each_ion(z):
        weight, _ = weights_of(flat, 0.0, 1.0, 0.0)
        cells = parabolic_cells(z, weight, 20)
        tables = running_integrals()
        ion = jax.vmap(
            lambda *c: weighted_integral(cells, RunningIntegrals(jnp.asarray(tables.node), *c), jnp.log(energy)),
            in_axes=1,
            out_axes=-1,
        )
        return ion(*(jnp.asarray(column) for column in tables[1:]))

    integrals = jnp.stack([of_each_ion(redshift) for redshift in z])  # (sources, energies, ions)
    direct = jax.jit(
        lambda integrals, n0, T: n0 * COLUMN / 70.0 * (integrals @ (ion_fractions(T, 0.0)[ABSORBING_INDEX] * numbers))
    )
    from_table = jax.jit(lambda table, n0, T: table(n0, T))
    integral = jax.jit(
        jax.vmap(lambda z, n0, T: whim_optical_depth(energy, z, n0=n0, log10_T=T, cosmology=flat), (0, None, None))
    )

    def slabs(z, n0, T):
        edges = np.append(np.arange(0.0, z, SLAB), z)
        middle, width = 0.5 * (edges[1:] + edges[:-1]), np.diff(edges)
        shares = np.asarray(ion_fractions(T, 0.0))[ABSORBING_INDEX] * numbers
        tau = np.zeros(len(energy))
        for at, dz in zip(middle, width, strict=True):
            sigma = evaluate(energy * (1 + at), fit_coefficients(ABSORBING))
            tau += shares @ sigma * (1 + at) ** 2 / np.sqrt(0.3 * (1 + at) ** 3 + 0.7) * dz
        return n0 * COLUMN / 70.0 * tau

    def with_gradient(depth):
        def total(fixed, x):
            return jnp.sum(jnp.exp(-depth(fixed, 1e-7 * x[0], x[1])))

        return jax.jit(jax.value_and_grad(total, argnums=1))

    table_slope, direct_slope = with_gradient(from_table), with_gradient(direct)
    slopes = {
        "table": lambda T: table_slope(table, jnp.array([1.0, T])),
        "table, Z fixed": lambda T: table_slope(of_metallicity, jnp.array([1.0, T])),
        "stored ions": lambda T: direct_slope(integrals, jnp.array([1.0, T])),
    }
    contestants = {
        "table": lambda n0, T: from_table(table, n0, T),
        "table, Z fixed": lambda n0, T: from_table(of_metallicity, n0, T),
        "stored ions": lambda n0, T: direct(integrals, n0, T),
        "direct": lambda n0, T: integral(z, n0, T),
    }
    results = {name: np.asarray(run(1e-7, 6.02)) for name, run in contestants.items()}
    difference = {name: np.abs(np.exp(-depth) - np.exp(-results["direct"])).max() for name, depth in results.items()}
    for run in slopes.values():
        jax.block_until_ready(run(6.02))
    seconds = {name: [] for name in (*contestants, "slabs")}
    with_slopes = {name: [] for name in slopes}
    for repeat in range(REPEATS):
        temperatures = 5.2 + 0.16 * repeat + 0.1 * np.random.default_rng(repeat).uniform(size=TURN)
        for name, run in contestants.items():
            for T in temperatures[: 2 if name == "direct" else TURN]:
                began = time.perf_counter()
                jax.block_until_ready(run(1e-7, T))
                seconds[name].append(time.perf_counter() - began)
        for name, run in slopes.items():
            for T in temperatures:
                began = time.perf_counter()
                jax.block_until_ready(run(T))
                with_slopes[name].append(time.perf_counter() - began)
    for source in np.quantile(z, np.linspace(0.2, 0.8, SLAB_SOURCES)):
        began = time.perf_counter()
        slabs(source, 1e-7, 6.0)
        seconds["slabs"].append((time.perf_counter() - began) * options.sources)
    exact = np.asarray(whim_optical_depth(energy, z[0], n0=1e-7, log10_T=6.02, cosmology=flat))
    difference["slabs"] = np.abs(np.exp(-slabs(z[0], 1e-7, 6.02)) - np.exp(-exact)).max()
    median = {name: statistics.median(times) for name, times in seconds.items()}
    lines = [
        f"optical depth of the WHIM, {options.sources} sources x {options.energies} energies, float64 on CPU",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"hbm_jax {version('hbm_jax')}, jax {version('jax')}, numpy {version('numpy')}",
        f"set-up of the tables: {statistics.median(set_up):.3f} s of one core a source, {all_of_them:.1f} s for all",
        "",
        f"{'':20}{'ms (median)':>14}{'slowest':>10}{'ratio':>10}{'difference of exp(-tau)':>26}",
    ]
    for name, times in seconds.items():
        lines.append(
            f"{name:20}{1e3 * median[name]:14.2f}{1e3 * max(times):10.2f}{median[name] / median['table']:10.1f}"
            f"{difference[name]:26.1e}"
        )
    lines += ["", "sum of exp(-tau) with its gradient in n0 and T:"]
    slope = {name: statistics.median(times) for name, times in with_slopes.items()}
    for name, time_with_slope in slope.items():
        lines.append(f"{name:20}{1e3 * time_with_slope:14.2f}{'':10}{time_with_slope / slope['table']:10.1f}")
    lines.append("")
    for name in ("table", "table, Z fixed"):
        stored = median["stored ions"] / median[name]
        lines.append(
            f"{'PASS' if stored >= 50 else 'MISS'}  at least 50 times faster than the contraction of stored ions, "
            f"{name}: {stored:.0f}"
        )
    direct, slab = median["direct"] / median["table"], median["slabs"] / median["table"]
    for claim, met in (
        (f"at least 50 times faster than the contraction over 102 ions, direct: {direct:.0f}", direct >= 50),
        (f"at least 1000 times faster than slabs: {slab:.0f}", slab >= 1000),
        ("set-up under 0.3 s a source on one core", statistics.median(set_up) < 0.3),
    ):
        lines.append(f"{'PASS' if met else 'MISS'}  {claim}")
    text = "\n".join(lines)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
