"""Averages over bins against dense sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hbm_jax.absorption import EnergyBins, neutral_cross_section, transmission, whim_optical_depth
from hbm_jax.absorption.transmission import edges_of_ions, edges_of_neutral_matter
from hbm_jax.cosmology import Cosmology


@pytest.mark.parametrize(("width", "nh"), [(0.02, 1.0), (0.05, 0.1), (0.05, 10.0)])
def test_transmission_is_the_mean_over_each_bin(width, nh):
    edges = np.arange(0.3, 10.0, width)
    z = 1.3
    bins = EnergyBins(edges, redshifts=(0.0, z))

    @jax.jit
    def depth(energy):
        return 0.1 * nh * neutral_cross_section(energy) + nh * neutral_cross_section(energy * (1 + z))

    found = np.asarray(transmission(bins, depth(bins.energy)))
    fine = 400
    inside = edges[:-1, None] + width * (np.arange(fine) + 0.5) / fine
    expected = np.exp(-np.asarray(depth(inside))).mean(1)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    centre = np.exp(-np.asarray(depth(0.5 * (edges[1:] + edges[:-1]))))
    if nh == 10.0:
        assert np.abs(centre - expected).max() > 20 * np.abs(found - expected).max()


@pytest.mark.parametrize(("z", "n0"), [(0.003, 1e-6), (0.2, 1e-5), (1.0, 1e-6), (6.0, 1e-6)])
def test_transmission_of_the_whim_is_the_mean_over_each_bin(z, n0):
    edges = np.arange(0.3, 3.0, 0.05)
    flat = Cosmology.flat(H0=70.0, Om0=0.3)
    depth = jax.jit(lambda energy: whim_optical_depth(energy, z, n0=n0, log10_T=6.0, cosmology=flat))
    bins = EnergyBins(edges, whim_redshifts=(z,))
    found = np.asarray(transmission(bins, depth(bins.energy)))
    cuts = np.concatenate([edges_of_ions(0.3, 3.0), edges_of_ions(0.3 * (1 + z), 3.0 * (1 + z)) / (1 + z)])
    x, w = np.polynomial.legendre.leggauss(12)
    own = np.unique([*np.linspace(edges[0], edges[-1], 3 * (len(edges) - 1) + 1), *edges, *cuts])
    half = 0.5 * np.diff(own)[:, None]
    pieces = np.sum(half * w * np.exp(-np.asarray(depth(own[:-1, None] + half * (1 + x)))), axis=1)
    expected = np.add.reduceat(pieces, np.searchsorted(own, edges[:-1])) / 0.05
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_constants_and_lines_are_exact_in_every_bin():
    edges = np.geomspace(0.1, 20.0, 60)  # several edges in one bin
    bins = EnergyBins(edges, redshifts=(0.0, 0.5, 6.0))
    np.testing.assert_allclose(bins.average(jnp.ones_like(bins.energy)), 1.0, rtol=1e-14)
    np.testing.assert_allclose(bins.average(bins.energy), 0.5 * (edges[1:] + edges[:-1]), rtol=1e-13)
    # A step at an edge is exact too.
    for z in (0.0, 0.5, 6.0):
        for edge in edges_of_neutral_matter(0.1 * (1 + z), 20.0 * (1 + z)) / (1 + z):
            exact = bins.average(jnp.asarray(bins.energy > edge, float))
            np.testing.assert_allclose(exact, bins_above(edges, edge), atol=1e-12)


def bins_above(edges, energy):
    return np.clip((edges[1:] - energy) / np.diff(edges), 0.0, 1.0)


def test_bins_are_arguments_and_carry_leading_axes():
    bins = EnergyBins(np.linspace(0.5, 8.0, 40))
    values = np.random.default_rng(0).uniform(size=(3, 2, len(bins.energy)))
    found = jax.jit(lambda b, v: b.average(v))(bins, values)
    assert found.shape == (3, 2, 39)
    np.testing.assert_allclose(found[1, 0], bins.average(values[1, 0]), rtol=1e-13)
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
