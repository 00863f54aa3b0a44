"""Gradient of the log density of 100 afterglows with WHIM, next to dense folds that are not compressed; compilation.

Claims: at least 5 times as fast as a dense fold of each source by its own 1024-channel response, vmapped over
sources, in the same run, with the log likelihood of all sources together changed by less than 0.01 over draws from
the prior; and the time to compile for 200 sources at most 1.5 times that for 10. A careful user shares the
redistribution between sources and groups its channels beforehand; this contestant is included too.

The dense contestants evaluate the spectrum at three nodes of every response bin (and not at the edges within bins, as a
straightforward program does not); all have the same priors, groups, statistic and tables of cross sections.

With `--beside CHECKOUT` this version of the package is compared with that of another checkout instead, in processes
that take turns: CPU time to set up, trace, lower and compile, and to evaluate value and gradient, of afterglows, of
bursts from counts and of a single spectrum, from the same files.
"""

import argparse
import dataclasses
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.util import potential_energy

from hbm_jax.data import Afterglows
from hbm_jax.data.xray.simulation import AfterglowPopulation
from hbm_jax.inference.compilation.constants_as_arguments import compiled
from hbm_jax.models import Afterglow
from hbm_jax.models.xray.absorbed_counts import AbsorbedCounts
from hbm_jax.spectra.folding.grouping import group, noticed
from hbm_jax.spectra.folding.idealised import xrt_like_arf, xrt_like_rmf
from hbm_jax.spectra.folding.response import Response
from hbm_jax.spectra.stack import SpectrumStack

jax.config.update("jax_enable_x64", True)

CLAIM, MOST_CHANGE, COMPILE_CLAIM, MOST_MEMORY = 5.0, 0.01, 1.5, 4.0
NUM_ENERGIES = 2400  # of the response, as of Swift-XRT's
BAND = (0.3, 10.0)
NODES, WEIGHTS = np.polynomial.legendre.leggauss(3)


def population(num):
    """Return a simulated sample, grouped optimally."""
    rmf = xrt_like_rmf(NUM_ENERGIES)
    response = Response.of(rmf, xrt_like_arf(rmf))
    drawn = AfterglowPopulation(log10_n0=-6.9, log10_flux=(-11.4, 0.35), exposure=8000.0).draw(
        num, seed=5, response=response
    )
    masks = [noticed(s, BAND) for s in drawn.spectra]
    grouped = [group(s, "optimal", noticed=m) for s, m in zip(drawn.spectra, masks, strict=True)]
    return Afterglows.from_spectra(SpectrumStack.of(grouped, masks), z=drawn.columns["z"], nh_mw=drawn.columns["nh_mw"])


@dataclasses.dataclass
class Dense:
    """Fold of every bin, by the matrix of each source to all channels or, if shared, by grouped responses."""

    density: object
    matrix: object
    members: object
    shared: bool

    def expected(self, p):
        """Return expected counts, as `AbsorbedCounts.expected` does."""
        from hbm_jax.models.xray.absorbed_counts import values_of

        density = self.density(values_of(p, slice(None)))
        photons = jnp.sum(density.reshape(len(density), -1, 3) * self.bin_weights, axis=-1)
        if self.shared:
            return jnp.einsum("ne,neg->ng", photons, self.matrix)
        channels = jax.vmap(lambda one, response: one @ response)(photons, self.matrix)
        return jnp.einsum("nc,ncg->ng", channels, self.members)


def dense(data, model, prepared, shared):
    """Return a dense fold of the spectra of a sample; ``shared`` as in `Dense`."""
    spectra = data.spectra
    edges = spectra.responses[0].energy
    half = 0.5 * np.diff(edges)[:, None]
    energy = (0.5 * (edges[1:] + edges[:-1])[:, None] + half * NODES).ravel()
    many = np.repeat(energy[None], len(data), axis=0)
    num_groups = np.shape(spectra.counts)[1]
    if shared:
        matrix = np.zeros((len(data), len(edges) - 1, num_groups))
        for row in range(len(data)):
            response = spectra.grouped_response(row)[1]
            matrix[row, :, : response.shape[1]] = response
        members = np.zeros(0)
    else:
        matrix = np.stack([r.matrix.toarray() * t for r, t in zip(spectra.responses, spectra.exposure, strict=True)])
        members = np.zeros((len(data), matrix.shape[2], num_groups))
        for row, group_of_channel in enumerate(spectra.grouping):
            used = np.flatnonzero(group_of_channel >= 0)
            members[row, used, group_of_channel[used]] = 1.0
    density = model.medium.spectrum(np.asarray(data.z), model.band).on(many)
    contestant = Dense(density, matrix, members, shared)
    contestant.bin_weights = half * WEIGHTS
    return contestant


def with_fold(model, prepared, contestant):
    """Return the model's program with another fold."""

    class Other(AbsorbedCounts):
        def expected(self, p):
            return contestant.expected(p)

    fields = {f.name: getattr(prepared, f.name) for f in dataclasses.fields(prepared)}
    other = Other(**fields)
    return lambda: model(other)


def fine(data, model, prepared):
    """Return bound data with a fold of six nodes in panels of 2.5 %, divided at every edge."""
    from hbm_jax.spectra.folding.expected_counts import NUM_BLOCKS, ExpectedCounts
    from hbm_jax.spectra.folding.panels import Fold, integrals_of, panel_edges

    folds, spectrum = [], model.medium.spectrum(np.asarray(data.z), model.band)
    for row in range(len(data)):
        energy, response = data.spectra.grouped_response(row)
        low, high, source = energy[0], energy[-1], spectrum.of_source(row)
        cuts = source.discontinuities(low, high), source.slope_discontinuities(low, high)
        nodes, integrals = integrals_of(energy, panel_edges(low, high, *cuts, width=0.025, gap=0.0), 6)
        folds.append(Fold(nodes, (integrals.T @ response).T))
    known = ExpectedCounts.on_nodes(spectrum, folds, np.shape(data.spectra.counts)[1], NUM_BLOCKS)
    return dataclasses.replace(prepared, known=known)


def density_of(program):
    """Return the potential of a program over a dict of unconstrained values, and a draw of its prior."""
    trace = handlers.trace(handlers.seed(program, 0)).get_trace()
    return lambda values: potential_energy(program, (), {}, values), trace


def draws_of_prior(model, prepared, num):
    """Return draws of the parameters that `expected` takes."""
    draws = []
    for seed in range(num):
        trace = handlers.trace(handlers.seed(lambda: model(prepared, observed=False), seed)).get_trace()
        p = {name: site["value"] for name, site in trace.items() if site["type"] != "plate"}
        p |= {name: value for name, value in model.all_priors.items() if isinstance(value, float)}
        p |= {"nh": 10.0 ** p["log10_nh"], "nh_mw": jnp.asarray(prepared.nh_mw), "z": prepared.z}
        draws.append({k: jnp.asarray(v) for k, v in p.items() if k != "counts" and k[0] != "_"})
    return draws


# Ten afterglows, each of them ten times in the density; ten bursts; the spectrum of the first afterglow.
CASES = ("afterglows", "bursts", "spectrum")
# What is measured: its name, its unit, and the largest ratio to the other version that is asked for.
MEASURED = {
    "set-up of a source or burst, cold": ("s", 0.5),
    "bound again": ("s", 0.5),
    "trace": ("s", 0.9),
    "trace, lower and compile": ("s", 0.9),
    "value and gradient": ("ms", 1.05),
}


def write_samples(folder, num_sources):
    """Write the afterglows and bursts that both versions read."""
    from hbm_jax.data import BurstSpectraPopulation, write_afterglows, write_burst_spectra

    rmf = xrt_like_rmf(NUM_ENERGIES)
    response = Response.of(rmf, xrt_like_arf(rmf))
    design = AfterglowPopulation(log10_n0=-6.9, log10_flux=(-11.4, 0.35), exposure=8000.0)
    write_afterglows(folder / "afterglows", design.draw(num_sources, seed=5, response=response))
    write_burst_spectra(folder / "bursts", BurstSpectraPopulation(num_intervals=8).draw(10, seed=1))


def case_of(name, folder):
    """Return the model of a case, its data, their number, and how often each is repeated in the density."""
    from hbm_jax.data import read_afterglows, read_burst_spectra
    from hbm_jax.models import GolenetskiiCounts, SpectralFit

    if name == "bursts":
        bursts = read_burst_spectra(folder / "bursts" / "bursts.ecsv")
        return GolenetskiiCounts(), bursts, len(bursts), 1
    spectra = folder / "afterglows" / "spectra"
    afterglows = read_afterglows(folder / "afterglows" / "catalog.ecsv", spectra=spectra, grouping="optimal")
    if name == "spectrum":
        spectrum = afterglows.subset([0]).spectra
        return SpectralFit("PowerLaw() * Absorption('mw')"), spectrum, 1, 1
    return Afterglow(whim=True), afterglows, len(afterglows), 10


def repeated(bound, num, times):
    """Return bound data with each of the sources several times."""

    def of_leaf(leaf):
        leaf = np.asarray(leaf)
        if num not in leaf.shape:
            return leaf
        is_index = leaf.ndim == 1 and np.issubdtype(leaf.dtype, np.integer)
        return np.arange(num * times) if is_index else np.concatenate([leaf] * times, axis=leaf.shape.index(num))

    return jax.tree.map(of_leaf, bound)


def start_of(model, bound):
    """Return an unconstrained point: the prior mean of population parameters, near 0 for all others."""
    point = {}
    for name, site in handlers.trace(handlers.seed(model, 0)).get_trace(bound).items():
        if site["type"] == "sample" and not site["is_observed"]:
            transform = biject_to(site["fn"].support)
            shape = transform.inverse_shape(site["fn"].shape())
            noise = 0.1 * np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
            has_mean = not name.startswith("_") and not shape
            point[name] = jnp.asarray(transform.inv(site["fn"].mean) if has_mean else noise)
    return point


def measure(name, folder, repeats):
    """Print the CPU times of a case and its log density, as JSON."""

    def timed(work):
        start = time.process_time()
        result = work()
        return result, time.process_time() - start

    model, data, num, times = case_of(name, folder)
    (bound, cold), (_, again) = (timed(lambda: model.prepare(data)) for _ in range(2))
    bound = bound if times == 1 else repeated(bound, num, times)
    point = start_of(model, bound)
    density = jax.value_and_grad(lambda p: potential_energy(model, (bound,), {}, p))
    tracing = timed(lambda: jax.make_jaxpr(density)(point))[1]
    jax.clear_caches()
    run, compiling = timed(lambda: compiled(density, point))
    value = float(jax.block_until_ready(run(point))[0])
    runs = [timed(lambda: jax.block_until_ready(run(point)))[1] for _ in range(repeats)]
    seconds = (cold / num, again / num, tracing, compiling, 1e3 * statistics.median(runs))
    print(json.dumps({"value": value, **dict(zip(MEASURED, seconds, strict=True))}))


def beside(checkout, options, say):
    """Compare this version with that of another checkout, in processes that take turns."""
    here = Path(__file__).resolve().parents[1]
    say(f"this version beside that of another checkout; CPU time, medians of {options.rounds} processes each")
    with tempfile.TemporaryDirectory() as folder:
        write_samples(Path(folder), 10)
        for case in options.cases:
            results = {"this": [], "other": []}
            for _ in range(options.rounds):
                for version, path in (("this", here), ("other", checkout.resolve())):
                    command = [sys.executable, __file__, "--measure", case, folder, "--repeats", str(options.repeats)]
                    environment = os.environ | {"PYTHONPATH": str(path)}
                    run = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
                    results[version].append(json.loads(run.stdout.splitlines()[-1]))
            this, other = results["this"], results["other"]
            say(f"\n{case}: -log density {this[0]['value']:.10g}, of the other {other[0]['value']:.10g}")
            say(f"{'':36s}{'this':>9s}{'other':>9s}{'ratio':>8s}{'range of ratios':>18s}{'asked':>7s}")
            for what, (unit, most) in MEASURED.items():
                a, b = ([one[what] for one in version] for version in (this, other))
                ratios = [x / y for x, y in zip(a, b, strict=True)]
                ratio = statistics.median(a) / statistics.median(b)
                limits = f"{min(ratios):.2f} to {max(ratios):.2f}"
                verdict = "PASS" if ratio <= most else "MISS"
                say(
                    f"{verdict} {what + ' [' + unit + ']':31s}{statistics.median(a):9.3f}{statistics.median(b):9.3f}"
                    f"{ratio:8.2f}{limits:>18s}{most:7.2f}"
                )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-sources", type=int, default=100)
    parser.add_argument("--num-draws", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path, help="also write the text to this file")
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="compare with the version of this checkout")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each version, with --beside")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="with --beside")
    parser.add_argument("--measure", nargs=2, metavar=("CASE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], Path(options.measure[1]), options.repeats)
        return
    lines = []

    def say(text=""):
        print(text, flush=True)
        lines.append(text)

    say(f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores, JAX on {jax.devices()[0]}")
    say(f"versions: python {platform.python_version()}, jax {jax.__version__}, numpyro {numpyro.__version__}; float64")
    if options.beside:
        beside(options.beside, options, say)
    else:
        against_dense(options, say)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


def against_dense(options, say):
    """Compare with dense folds, and compilation for 10 and for 200 sources."""
    data = population(200)
    model = Afterglow(whim=True)

    def gradient(program, size):
        rng = np.random.default_rng(1)
        # What is sampled in place of the latents, and of density and temperature.
        names = ("_photon_index", "_log10_flux", "_log10_nh")
        point = {name: jnp.asarray(rng.normal(size=size)) for name in names} | {"_whim": [0.1, 0.2]}
        point |= {"photon_index_mean": 2.0, "photon_index_std": -1.5, "log10_flux_mean": -11.4, "log10_flux_std": -1.0}
        point |= {"log10_nh_mean": -0.3, "log10_nh_std": -0.7}
        point = {name: jnp.asarray(value) for name, value in point.items()}
        start = time.perf_counter()
        run = compiled(jax.value_and_grad(lambda p: potential_energy(program, (), {}, p)), point)
        seconds = time.perf_counter() - start
        return (lambda: jax.block_until_ready(run(point))), seconds

    few, some = data.subset(range(10)), data.subset(range(options.num_sources))
    compile_times = {}
    for name, sample in (("10", few), ("200", data)):
        prepared = model.prepare(sample)
        seconds = []
        for _ in range(3):
            jax.clear_caches()
            seconds.append(gradient(lambda prepared=prepared: model(prepared), len(sample))[1])
        compile_times[name] = statistics.median(seconds)
        kept = sum(block.nbytes for block in prepared.known.blocks) / 2**30
        del prepared
    # Kilobytes on Linux. All of this process so far: samples drawn, prepared, compiled and run.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    ratio = compile_times["200"] / compile_times["10"]
    say(
        f"\ncompiling value and gradient: {compile_times['10']:.2f} s for 10 sources, "
        f"{compile_times['200']:.2f} s for 200"
    )
    say(f"{'PASS' if ratio <= COMPILE_CLAIM else 'MISS'}: ratio {ratio:.2f}, claimed at most {COMPILE_CLAIM}")
    say(
        f"\n200 sources of {NUM_ENERGIES} energies by 1024 channels: their folds take {kept:.3f} GiB, one matrix for "
        f"each would take {200 * NUM_ENERGIES * 1024 * 8 / 2**30:.1f} GiB"
    )
    say(f"{'PASS' if peak <= MOST_MEMORY else 'MISS'}: {peak:.1f} GiB at most so far, claimed {MOST_MEMORY:g}")

    prepared = model.prepare(some)
    num_groups, known = np.shape(prepared.statistic.counts)[1], prepared.known
    num_nodes = known.first[0] + known.blocks[0].shape[2]
    say(
        f"\n{len(some)} sources, {num_groups} groups at most, folded by {num_nodes} energies at most; "
        f"dense: 3 in each of {NUM_ENERGIES} bins"
    )
    runs = {"ours": gradient(lambda: model(prepared), len(some))[0]}
    for name, shared in (("dense, own responses", False), ("dense, grouped before", True)):
        contestant = dense(some, model, prepared, shared)
        runs[name] = gradient(with_fold(model, prepared, contestant), len(some))[0]
    values = {name: float(run()[0]) for name, run in runs.items()}
    times = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(t) for name, t in times.items()}
    say(f"\n{'':24s}{'median ms':>10s}{'min':>8s}{'max':>8s}{'ours is':>10s}{'-log density':>16s}")
    for name, t in times.items():
        say(
            f"{name:24s}{median[name] * 1e3:10.2f}{min(t) * 1e3:8.2f}{max(t) * 1e3:8.2f}"
            f"{median[name] / median['ours']:9.1f}x{values[name]:16.4f}"
        )
    fast = median["dense, own responses"] / median["ours"]
    say(f"{'PASS' if fast >= CLAIM else 'MISS'}: {fast:.1f} times as fast as the vmapped dense fold, claimed {CLAIM:g}")

    reference = fine(some, model, prepared)

    @jax.jit
    def both(p, prepared, reference):
        counts = prepared.expected(p), reference.expected(p)
        values = [jnp.sum(prepared.statistic.log_likelihood(mu)) for mu in counts]
        return (*values, jnp.sum(jnp.where(prepared.statistic.used, counts[1], 0.0)))

    draws = draws_of_prior(model, prepared, options.num_draws)
    say(
        f"\nchange of the log likelihood of all {len(some)} sources together over {options.num_draws} draws of the "
        f"default prior,\nclaimed less than {MOST_CHANGE}; {int(prepared.statistic.counts.sum())} counts are observed"
    )
    values = np.array([both(p, prepared, reference) for p in draws])
    change, value, counts = np.abs(values[:, 0] - values[:, 1]), values[:, 1], values[:, 2]
    for low, high in itertools.pairwise((0.0, 1e6, 1e7, np.inf)):
        part = (counts >= low) & (counts < high)
        if part.any():
            most = change[part].max()
            say(
                f"{'PASS' if most < MOST_CHANGE else 'MISS'}: {low:.0e} to {high:.0e} counts expected, "
                f"{part.sum()} draws: median {np.median(change[part]):.1e}, largest {most:.1e} (of a log "
                f"likelihood of {value[part][np.argmax(change[part])]:.1e}), "
                f"{np.count_nonzero(change[part] > MOST_CHANGE)} above the claim"
            )


if __name__ == "__main__":
    main()
