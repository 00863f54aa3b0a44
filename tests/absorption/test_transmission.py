"""Averages over bins against dense sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lines_of_sight import FLAT

from hbm_jax.absorption import EnergyBins, neutral_cross_section, transmission, whim_optical_depth
from hbm_jax.absorption.transmission import edges_of_ions, edges_of_neutral_matter

average = jax.jit(lambda bins, values: bins.average(values))


CHUNK = 2048
cross_section = jax.jit(neutral_cross_section)


def in_chunks(function, energy):
    """Evaluate a function at any number of energies by one program, in NumPy."""
    flat = np.ravel(energy)
    padded = np.pad(flat, (0, -len(flat) % CHUNK), mode="edge").reshape(-1, CHUNK)
    return np.concatenate([np.asarray(function(row)) for row in padded])[: len(flat)].reshape(np.shape(energy))


def bin_means(function, edges, cuts):
    """Means over bins by Gauss and Legendre in a third of each bin, cut at absorption edges."""
    x, w = np.polynomial.legendre.leggauss(12)
    thirds = np.interp(np.arange(3 * len(edges) - 2) / 3.0, np.arange(len(edges)), edges)
    pieces = np.unique(np.concatenate([thirds, edges, cuts]))
    half = 0.5 * np.diff(pieces)[:, None]
    sums = np.sum(half * w * function(pieces[:-1, None] + half * (1 + x)), axis=1)
    return np.add.reduceat(sums, np.searchsorted(pieces, edges[:-1])) / np.diff(edges)


@pytest.mark.parametrize(("width", "nh"), [(0.02, 1.0), (0.05, 0.1), (0.05, 10.0)])
def test_transmission_is_the_mean_over_each_bin(width, nh):
    edges = np.arange(0.3, 10.0, width)
    z = 1.3
    bins = EnergyBins(edges, redshifts=(0.0, z))

    def depth(energy):
        return 0.1 * nh * in_chunks(cross_section, energy) + nh * in_chunks(cross_section, energy * (1 + z))

    found = np.asarray(average(bins, np.exp(-depth(bins.energy))))
    cuts = [edges_of_neutral_matter(0.3 * (1 + at), edges[-1] * (1 + at)) / (1 + at) for at in (0.0, z)]
    expected = bin_means(lambda energy: np.exp(-depth(energy)), edges, np.concatenate(cuts))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    centre = np.exp(-depth(0.5 * (edges[1:] + edges[:-1])))
    if nh == 10.0:
        assert np.abs(centre - expected).max() > 20 * np.abs(found - expected).max()
        np.testing.assert_allclose(jax.jit(transmission)(bins, depth(bins.energy)), found, rtol=1e-12)


@pytest.mark.parametrize(("z", "n0"), [(0.003, 1e-6), (0.2, 1e-5), (1.0, 1e-6), (6.0, 1e-6)])
def test_transmission_of_the_whim_is_the_mean_over_each_bin(z, n0):
    edges = np.arange(0.3, 3.0, 0.05)

    def absorbed(energy):
        tau = in_chunks(lambda row: whim_optical_depth(row, z, n0=n0, log10_T=6.0, cosmology=FLAT), energy)
        return np.exp(-tau)

    bins = EnergyBins(edges, whim_redshifts=(z,))
    found = np.asarray(average(bins, absorbed(bins.energy)))
    cuts = np.concatenate([edges_of_ions(0.3, 3.0), edges_of_ions(0.3 * (1 + z), 3.0 * (1 + z)) / (1 + z)])
    np.testing.assert_allclose(found, bin_means(absorbed, edges, cuts[cuts < edges[-1]]), atol=1e-5)


def test_constants_and_lines_are_exact_in_every_bin():
    edges = np.geomspace(0.1, 20.0, 60)  # several edges in one bin
    bins = EnergyBins(edges, redshifts=(0.0, 0.5, 6.0))
    np.testing.assert_allclose(average(bins, np.ones_like(bins.energy)), 1.0, rtol=1e-14)
    np.testing.assert_allclose(average(bins, bins.energy), 0.5 * (edges[1:] + edges[:-1]), rtol=1e-13)
    # A step at an edge is exact too.
    for z in (0.0, 0.5, 6.0):
        for edge in edges_of_neutral_matter(0.1 * (1 + z), 20.0 * (1 + z)) / (1 + z):
            exact = average(bins, np.asarray(bins.energy > edge, float))
            np.testing.assert_allclose(exact, bins_above(edges, edge), atol=1e-12)


def bins_above(edges, energy):
    return np.clip((edges[1:] - energy) / np.diff(edges), 0.0, 1.0)


def test_bins_are_arguments_and_carry_leading_axes():
    bins = EnergyBins(np.linspace(0.5, 8.0, 40))
    values = np.random.default_rng(0).uniform(size=(3, 2, len(bins.energy)))
    found = average(bins, values)
    assert found.shape == (3, 2, 39)
    np.testing.assert_allclose(found[1, 0], average(bins, values[1, 0]), rtol=1e-13)
    single = average(bins, values.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, found, rtol=1e-5)
    assert repr(bins) == f"EnergyBins(39 bins, {len(bins.energy)} energies)"
    text = jax.jit(jax.grad(lambda v: jnp.sum(bins.average(v) ** 2))).lower(values[0, 0]).as_text()
    assert "scatter" not in text


@pytest.mark.parametrize("edges", [[1.0], [1.0, 0.5], [0.0, 1.0], [[1.0, 2.0]], [1.0, np.nan]])
def test_errors(edges):
    with pytest.raises(ValueError, match="at least two positive edges"):
        EnergyBins(np.array(edges))


def test_other_errors():
    with pytest.raises(ValueError, match=r"redshifts above -1; found \[-2\.0\] and \[\]"):
        EnergyBins(np.array([1.0, 2.0]), redshifts=(-2.0,))
    bins = EnergyBins(np.array([0.5, 0.6]))
    with pytest.raises(ValueError, match=r"values at the \d+ energies of the bins; found an array of shape \(1,\)"):
        bins.average(np.ones(1))
