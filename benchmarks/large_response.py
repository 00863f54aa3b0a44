"""Power law with ten lines through a response of 60 000 energies and 60 000 channels, as of a microcalorimeter.

Aims: largest memory of the process at most 1 GB; value and gradient of the log likelihood in at most the time of three
products with the sparse response, by SciPy. Times are CPU times of one thread, medians of evaluations that take turns.
Option --wide gives one line a width of 0.3 keV, too wide for the window of bins in which narrow lines are evaluated.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse
from scipy.special import ndtr

from hbm_jax.spectra import GaussianLine, PowerLaw
from hbm_jax.spectra.folding.expected_counts import ExpectedCounts

NUM_LINES, REPEATS = 10, 25
OFFSETS = np.arange(-18, 19)  # channels of a row of the matrix


def redistribution(num: int) -> tuple[np.ndarray, sparse.csr_matrix]:
    """Return edges of the energy bins [keV], and area times redistribution [cm^2], whose width grows with energy."""
    edges = np.linspace(0.5, 12.5, num + 1)
    sigma = 2.0 + 1.5 * np.arange(num) / num  # channels
    values = np.diff(ndtr(np.arange(-18.5, 19) / sigma[:, None]), axis=1) * 50.0 * edges[:-1, None] ** -0.5
    channel = np.arange(num)[:, None] + OFFSETS
    inside = (channel >= 0) & (channel < num)
    starts = np.append(0, np.cumsum(inside.sum(axis=1)))
    return edges, sparse.csr_matrix((values[inside], channel[inside], starts), shape=(num, num))


def seconds(*functions) -> list[float]:
    """Return the median CPU times of functions that take turns [s]."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(REPEATS):
        for taken, function in zip(times, functions, strict=True):
            start = time.process_time()
            function()
            taken.append(time.process_time() - start)
    return [statistics.median(taken) for taken in times]


def main() -> None:
    """Run the benchmark and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=60_000, help="number of energies and of channels")
    parser.add_argument("--wide", action="store_true", help="make the last line 0.3 keV wide")
    arguments = parser.parse_args()
    num = arguments.num
    jax.config.update("jax_enable_x64", True)
    edges, matrix = redistribution(num)
    model = PowerLaw(norm="amplitude")
    values = {"photon_index": 1.8, "log10_amplitude": -2.0}
    for number in range(NUM_LINES):
        model = model + GaussianLine(f"l{number}")
        values |= {f"l{number}_energy": 1.0 + number, f"l{number}_sigma": 0.003, f"l{number}_log10_amplitude": -4.0}
    if arguments.wide:
        values[f"l{NUM_LINES - 1}_sigma"] = 0.3
    rate = 1e5 * (edges[:-1] ** -1.8 * np.diff(edges) * 1e-2) @ matrix
    counts = np.random.default_rng(0).poisson(rate).astype(float)
    trials = {"photon_index": np.array([1.5, 2.5]), "log10_amplitude": np.zeros(2)}
    start = time.perf_counter()
    source = ExpectedCounts.of(model, [(edges, 1e5 * matrix)], [counts], trials, tolerance=1e-3)
    set_up = time.perf_counter() - start

    def log_likelihood(values, source):
        expected = source(values)[0]
        return jnp.sum(jnp.asarray(counts) * jnp.log(expected) - expected)

    values = {name: jnp.asarray(value) for name, value in values.items()}
    gradient = jax.jit(jax.value_and_grad(log_likelihood))
    start = time.perf_counter()
    compiled = gradient.lower(values, source).compile()
    compile_time = time.perf_counter() - start
    source = jax.device_put(source)
    photons = edges[:-1] ** -1.8
    transposed = sparse.csr_matrix(matrix.T)
    product, transposed_product, taken = seconds(
        lambda: photons @ matrix, lambda: transposed @ photons, lambda: jax.block_until_ready(compiled(values, source))
    )
    peak = 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])  # Linux only
    stored = sum(np.asarray(array).nbytes for array in jax.tree.leaves(source))
    print(
        json.dumps(
            {
                "energies": num, "elements": matrix.nnz, "wide line": arguments.wide,
                "stored [MB]": round(stored * 1e-6, 1), "peak [MB]": round(peak * 1e-6, 1),
                "set-up [s]": round(set_up, 2), "compile [s]": round(compile_time, 2),
                "sparse product [ms]": round(1e3 * product, 2),
                "sparse product, transposed [ms]": round(1e3 * transposed_product, 2),
                "value and gradient [ms]": round(1e3 * taken, 2),
                "ratio to one sparse product": round(taken / product, 2),
                "load": round(os.getloadavg()[0], 1), "jax": jax.__version__, "device": jax.devices()[0].platform,
                "processor": platform.processor() or platform.machine(), "dtype": "float64",
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
