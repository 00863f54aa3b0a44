"""A small made-up instrument, its spectrum and its background."""

import numpy as np
from scipy import sparse

from hbm_jax.spectra.folding.response import Arf, Response, Rmf
from hbm_jax.spectra.folding.spectrum import Spectrum

NUM_CHANNELS, NUM_ENERGIES = 12, 8


def small_rmf(first=3, seed=0):
    """Rows of one run of channels, of two, and of none."""
    rng = np.random.default_rng(seed)
    matrix = rng.uniform(0.01, 1.0, (NUM_ENERGIES, NUM_CHANNELS)) * (rng.random((NUM_ENERGIES, NUM_CHANNELS)) < 0.7)
    matrix[5] = 0
    matrix /= np.maximum(matrix.sum(axis=1, keepdims=True), 1e-300)
    bounds = np.geomspace(0.2, 11.0, NUM_CHANNELS + 1)
    channels = np.arange(first, first + NUM_CHANNELS)
    energy = np.geomspace(0.1, 12.0, NUM_ENERGIES + 1)
    return Rmf(energy, sparse.csr_matrix(matrix), channels, bounds[:-1], bounds[1:], "small")


def small_arf(seed=1):
    return Arf(small_rmf().energy, np.random.default_rng(seed).uniform(10, 300, NUM_ENERGIES), "small")


def small_spectrum(first=3, seed=2, **changes):
    rng = np.random.default_rng(seed)
    ones = np.ones(NUM_CHANNELS)
    values = {
        "name": "small",
        "counts": rng.poisson(6.0, NUM_CHANNELS).astype(float),
        "channels": np.arange(first, first + NUM_CHANNELS),
        "exposure": 1234.5678901234,
        "backscal": 0.0123456789 * ones,
        "areascal": ones,
        "quality": np.zeros(NUM_CHANNELS, int),
        "grouping": np.zeros(NUM_CHANNELS, int),
    }
    return Spectrum(**{**values, **changes})


def small_observation():
    """With a background and a response."""
    background = small_spectrum(seed=3, backscal=np.full(NUM_CHANNELS, 0.5), exposure=2000.0)
    return small_spectrum(background=background, response=Response.of(small_rmf(), small_arf()))


def spoilt(data, rng):
    """Cut short, with bits turned, or with a card of a header given another value, the keyword changed too at times."""
    kind = rng.integers(0, 4)
    if kind == 0:
        return data[: rng.integers(1, len(data))]
    changed = bytearray(data)
    if kind == 1:
        for at in rng.integers(0, len(data), 5):
            changed[at] ^= 1 << int(rng.integers(0, 8))
        return bytes(changed)
    cards = [at for at in range(0, len(data), 80) if data[at + 8 : at + 10] == b"= "]
    at = cards[rng.integers(0, len(cards))]
    value = rng.choice(["0", "-1", "1", "1E300", "-1E-300", "'x'", "", "T", "99999", "'NaN'", "2.5"])
    changed[at + 10 : at + 80] = f"{value:>20}".encode().ljust(70)
    if kind == 3:
        changed[at + int(rng.integers(0, 8))] ^= 1 << int(rng.integers(0, 5))
    return bytes(changed)
