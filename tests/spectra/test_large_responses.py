"""Responses of 60 000 energies and channels are read, grouped and folded within a gigabyte, and exactly."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from scipy import sparse

from hbm_jax.spectra import Absorption, GaussianLine, PowerLaw, photons
from hbm_jax.spectra.folding import banded
from hbm_jax.spectra.folding.expected_counts import ExpectedCounts

PROGRAM = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from scipy import sparse
from scipy.special import ndtr
from hbm_jax import spectra
from hbm_jax.spectra import GaussianLine, PowerLaw, Rmf, Spectrum, SpectrumStack
from hbm_jax.spectra.folding.expected_counts import ExpectedCounts

num, path = int(sys.argv[1]), sys.argv[2]
edges = np.linspace(0.5, 12.5, num + 1)
offset = np.arange(-18, 19)
sigma = 2.0 + 1.5 * np.arange(num) / num  # channels
values = np.diff(ndtr((np.arange(-18.5, 19) + 0.0) / sigma[:, None]), axis=1)
columns = np.arange(num)[:, None] + offset
inside = (columns >= 0) & (columns < num)
rows = np.append(0, np.cumsum(inside.sum(axis=1)))
matrix = sparse.csr_matrix((values[inside], columns[inside], rows), shape=(num, num))
del values, columns, inside
spectra.write_rmf(path, Rmf(edges, matrix, np.arange(num), edges[:-1], edges[1:]))
rmf = spectra.read_rmf(path)
assert abs(rmf.matrix - matrix).max() == 0.0
del matrix
ones = np.ones(num)
spectrum = Spectrum("fine", np.full(num, 3.0), rmf.channels, 1e4, ones, ones, np.zeros(num, int), np.zeros(num, int),
                    response=spectra.Response.from_area(rmf, 50.0 * edges[:-1] ** -0.5))
mask = spectra.noticed(spectrum, [(0.6, 5.0), (5.5, 12.0)])
stack = SpectrumStack.of([spectra.group(spectrum, "min_counts", 6.0, noticed=mask)], [mask])
energy, response = stack.sparse_response(0)
model = PowerLaw(norm="amplitude")
for number in range(10):
    model = model + GaussianLine(f"l{number}")
trials = {"photon_index": np.array([1.5, 2.5]), "log10_amplitude": np.zeros(2)}
values = {"photon_index": 1.8, "log10_amplitude": -2.0}
for number in range(10):
    own = {"energy": 1.0 + number, "sigma": 10.0 ** (-number), "log10_amplitude": -2.0}
    values |= {f"l{number}_{name}": value for name, value in own.items()}
counts = np.asarray(stack.counts[0])
with jax.enable_x64(True):
    source = ExpectedCounts.of(model, [(energy, response)], [counts], trials, tolerance=1e-8)
    values = {name: jnp.asarray(value) for name, value in values.items()}
    def score(v, source):
        expected = source(v)[0]
        return jnp.sum(counts * jnp.log(expected) - expected), expected
    (value, expected), slope = jax.jit(jax.value_and_grad(score, has_aux=True))(values, source)
    bins = np.asarray(spectra.photons(model, energy)(values))
    plain = bins @ response
    folded = np.asarray(jax.jit(lambda response, bins: response(bins))(source.response, bins[None]))[0]
# Of this process alone: what getrusage tells includes the process that started it.
peak = 1024 * int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
print(json.dumps({
    "peak": peak, "groups": len(plain), "errors": source.errors[0],
    "banded": float(np.max(np.abs(folded / (bins @ response) - 1.0))),
    "whole": float(np.max(np.abs(np.asarray(expected) / plain - 1.0))),
    "value": float(value), "plain": float(np.sum(counts * np.log(plain) - plain)),
    "finite": all(bool(np.isfinite(s)) for s in slope.values()),
    "stored": sum(block.nbytes for block in source.response.blocks),
}))
"""


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the largest memory from /proc")
@pytest.mark.parametrize("num", [6000, 60_000])
def test_sixty_thousand_energies_and_channels_stay_sparse(num, tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(num), str(tmp_path / "fine.rmf")]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert found["groups"] > 0.4 * num
    assert found["peak"] < 1e9
    assert found["stored"] < 350 * num  # bytes; whole, 480 000 for each energy
    assert found["banded"] < 1e-12
    assert found["errors"] < 1e-8
    assert found["whole"] < 1e-7  # the power law is on nodes
    assert found["value"] == pytest.approx(found["plain"], rel=1e-9)
    assert found["finite"]


@pytest.mark.parametrize("absorbed", [False, True])
def test_lines_and_continuum_of_large_responses_take_one_product(absorbed, monkeypatch):
    """Two responses with different energies; with absorbed lines, bins are divided into pieces."""
    monkeypatch.setattr(banded, "SMALL", 0)
    model = PowerLaw(norm="amplitude") + GaussianLine("fe") + GaussianLine("ni", z=0.2)
    values = {"photon_index": 1.8, "log10_amplitude": -1.0, "nh": 0.4}
    values |= {"fe_energy": 3.3, "fe_sigma": 0.01, "fe_log10_amplitude": -2.0}
    values |= {"ni_energy": 7.8, "ni_sigma": 0.2, "ni_log10_amplitude": -2.5}
    trials = {"photon_index": np.array([1.5, 2.5]), "log10_amplitude": np.zeros(2), "nh": np.array([0.1, 1.0])}
    model = model * Absorption() if absorbed else model
    rng = np.random.default_rng(0)
    responses = [
        (np.linspace(0.5, 9.5, num + 1), sparse.random(num, 50, density=0.3, random_state=rng, format="csr"))
        for num in (120, 90)
    ]
    found = ExpectedCounts.of(model, responses, [np.full(50, 9.0)] * 2, trials, tolerance=1e-10)
    assert found.density is None
    assert found.response.order is not None
    expected = np.asarray(jax.jit(lambda source, values: source(values))(found, values))
    for row, (energy, matrix) in enumerate(responses):
        plain = np.asarray(jax.jit(photons(model, energy))(values)) @ matrix
        np.testing.assert_allclose(expected[row], plain, rtol=1e-9)


fold = jax.jit(lambda response, photons: response(photons))


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (300, 40), (40, 300)])
@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("largest_array", [0, 10**6])
def test_any_responses_are_what_their_matrices_are(shape, density, largest_array, monkeypatch):
    monkeypatch.setattr(banded, "SMALL", largest_array)
    rng = np.random.default_rng(0)
    sizes = [shape, (max(shape[0] // 2, 1), max(shape[1] // 3, 1)), shape]
    matrices = [sparse.random(*size, density=density, random_state=rng, format="csr") for size in sizes]
    matrices[2] = sparse.csr_matrix(np.tril(matrices[2].toarray()))  # as with a tail to low energies
    response = banded.BandedResponse.of(matrices, *shape)
    assert (response.order is None) == (largest_array > 0)
    photons = rng.uniform(size=(3, shape[0]))
    found = np.asarray(fold(response, photons))
    for row, matrix in enumerate(matrices):
        exact = np.zeros(shape[1])
        exact[: matrix.shape[1]] = photons[row, : matrix.shape[0]] @ matrix
        np.testing.assert_allclose(found[row], exact, rtol=1e-6, atol=1e-6)
