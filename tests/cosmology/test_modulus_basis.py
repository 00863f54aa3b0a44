"""Moduli from a few nodes, dark energy in bins and of one's own, compressed CMB and BAO, against plain integration."""

import itertools

import astropy.cosmology
import astropy.units as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from hbm_jax.cosmology import (
    BinnedDarkEnergy,
    Cosmology,
    CustomDarkEnergy,
    DistanceFunction,
    RedshiftGrid,
    RedshiftMatrix,
    distmod,
    luminosity_distance,
    modulus_basis,
    transverse_comoving_distance,
)
from hbm_jax.cosmology.compressed import (
    STANDARD_RADIATION,
    compressed,
    decoupling_redshift,
    drag_horizon,
    sound_horizon,
)

Z = np.geomspace(0.001, 2.3, 60)
EDGES, W = (0.2, 0.5, 1.0), np.array([-1.2, -0.5, -2.0, 0.3])


# One program for all universes of a kind.
values_of = jax.jit(lambda basis, cosmology: basis.values(cosmology))
few = jax.jit(distmod)
of_lines = jax.jit(lambda lines, cosmology: (lines.transverse_comoving_distance(cosmology), lines.distmod(cosmology)))
density = jax.jit(lambda dark_energy, u: dark_energy.density(u))


def from_basis(cosmology, breaks=()):
    basis = modulus_basis(Z, breaks=breaks)
    return basis.fixed + basis.matrix @ np.asarray(values_of(basis, cosmology))


def few_at_a_time(cosmology):
    """Direct integration, six redshifts at a time."""
    return np.concatenate([np.asarray(few(Z[i : i + 6], cosmology)) for i in range(0, len(Z), 6)])


def by_quad(z, om, density):
    """Transverse distance in c / H0 of a flat universe, by adaptive integration between the edges."""
    points = [edge for edge in EDGES if edge < z]
    return quad(lambda x: (om * (1 + x) ** 3 + (1 - om) * density(x)) ** -0.5, 0.0, z, points=points, epsrel=1e-12)[0]


@pytest.mark.parametrize(
    ("om", "w0", "bound"),
    [(0.3, -1, 1e-12), (0.3, -0.9, 1e-12), (0.5, -0.1, 1e-12), (0.99, -3, 1e-12), (0.05, -2.9, 1e-8), (1e-3, -3, 1e-6)],
)
def test_moduli_of_flat_universes(om, w0, bound):
    cosmology = Cosmology.flat(70.0, om, w0)
    assert np.abs(from_basis(cosmology) - few_at_a_time(cosmology)).max() < bound
    expected = astropy.cosmology.FlatwCDM(70.0, om, w0=w0).distmod(Z).value
    assert np.abs(from_basis(cosmology) - expected).max() < max(bound, 1e-9)


@pytest.mark.parametrize(
    "cosmology",
    [
        Cosmology(70.0, 0.3, 0.8),
        Cosmology(70.0, 0.1, 1.1),
        Cosmology(65.0, 1.0, 0.0),
        Cosmology.flat(70, 0.3, -0.9, -2.0),
    ],
)
def test_moduli_of_other_universes(cosmology):
    assert np.abs(from_basis(cosmology) - few_at_a_time(cosmology)).max() < 1e-11


def test_heliocentric_redshifts_enter_the_fixed_part_only():
    plain, shifted = modulus_basis(Z), modulus_basis(Z, Z + 0.002)
    np.testing.assert_allclose(shifted.fixed - plain.fixed, 5 * np.log10((1.002 + Z) / (1 + Z)), atol=1e-13)
    np.testing.assert_array_equal(shifted.matrix, plain.matrix)


def test_binned_dark_energy_is_exact():
    dark_energy = BinnedDarkEnergy(EDGES, W)

    def by_integration(z):  # of w itself
        cuts = [0.0, *(edge for edge in EDGES if edge < z), z]
        exponent = 0.0
        for low, high in itertools.pairwise(cuts):
            w = W[np.searchsorted(EDGES, 0.5 * (low + high))]
            exponent += 3 * (1 + w) * np.log((1 + high) / (1 + low))
        return np.exp(exponent)

    at = np.array([0.0, 0.1, 0.2, 0.3, 0.7, 1.5])
    found = density(dark_energy, np.log1p(at))
    np.testing.assert_allclose(found, [by_integration(z) for z in at], rtol=1e-13)
    assert dark_energy.breaks == EDGES
    slope = jax.jit(jax.grad(lambda u: jnp.log(dark_energy.density(u))))
    assert float(slope(0.0)) == pytest.approx(3 * (1 + W[0]))
    cosmology = Cosmology.flat(70.0, 0.3, dark_energy=dark_energy)
    some = Z[::6]
    mine = np.asarray(of_lines(RedshiftMatrix(some, breaks=EDGES), cosmology)[0]) / cosmology.hubble_distance
    np.testing.assert_allclose(mine, [by_quad(z, 0.3, by_integration) for z in some], rtol=1e-10)
    assert np.abs(from_basis(cosmology, EDGES) - few_at_a_time(cosmology)).max() < 1e-10
    # Without the breaks a kink is smoothed over: what the panels are for.
    assert np.abs(from_basis(cosmology) - few_at_a_time(cosmology)).max() > 1e-5
    # Panels of 0.005 see little of it.
    assert np.abs(np.asarray(of_lines(RedshiftGrid(Z), cosmology)[1]) - few_at_a_time(cosmology)).max() < 2e-6
    flat = Cosmology.flat(70.0, 0.3, dark_energy=BinnedDarkEnergy(EDGES, np.full(4, -0.8)))
    np.testing.assert_allclose(from_basis(flat, EDGES), from_basis(Cosmology.flat(70.0, 0.3, -0.8)), atol=1e-11)


def test_ones_own_equation_of_state():
    def w(z, p):
        return p["w0"] + p["wa"] * z / (1 + z)

    mine = Cosmology(70.0, 0.3, 0.75, dark_energy=CustomDarkEnergy(w, {"w0": -0.9, "wa": -0.4}))
    known = Cosmology(70.0, 0.3, 0.75, -0.9, -0.4)
    np.testing.assert_allclose(from_basis(mine), from_basis(known), atol=1e-12)
    far = jax.jit(lambda mine, known: [transverse_comoving_distance(1100.0, c) for c in (mine, known)])(mine, known)
    assert float(far[0]) == pytest.approx(float(far[1]), rel=1e-12)

    def step(z, p):
        return jnp.where(z < 0.5, p["low"], p["high"])

    stepped = CustomDarkEnergy(step, {"low": -1.2, "high": -0.5}, (0.5,))
    binned = BinnedDarkEnergy((0.5,), np.array([-1.2, -0.5]))
    at = np.linspace(0.0, 1.2, 30)
    np.testing.assert_allclose(density(stepped, at), density(binned, at), rtol=1e-13)
    assert stepped.breaks == (0.5,)
    with pytest.raises(ValueError, match="dark_energy: expected none"):
        mine.to_astropy()


def test_ones_own_distances():
    own = DistanceFunction(lambda z, p: 299792.458 / p["H0"] * 2 * (1 - (1 + z) ** -0.5), {"H0": 70.0})
    einstein_de_sitter = Cosmology.flat(70.0, 1.0)
    np.testing.assert_allclose(from_basis(own), from_basis(einstein_de_sitter), atol=1e-11)
    both = jax.jit(lambda own, eds: [luminosity_distance(Z, c) for c in (own, eds)])(own, einstein_de_sitter)
    np.testing.assert_allclose(*both, rtol=1e-9)


def test_derivatives():
    def mean(w):
        cosmology = Cosmology.flat(70.0, 0.3, dark_energy=BinnedDarkEnergy(EDGES, w))
        return jnp.mean(modulus_basis(Z, breaks=EDGES).values(cosmology))

    all_of = jax.jit(lambda w: (mean(w), jax.jacfwd(mean)(w), jax.jacrev(mean)(w)))
    _, forward, reverse = all_of(W)
    np.testing.assert_allclose(forward, reverse, rtol=1e-10)
    step = 1e-5 * np.eye(4)
    numbers = [(float(all_of(W + h)[0]) - float(all_of(W - h)[0])) / 2e-5 for h in step]
    np.testing.assert_allclose(forward, numbers, rtol=1e-6)


def test_sound_horizon_and_the_microwave_background():
    h0, om, omega_b = 67.36, 0.3153, 0.02237
    cosmology = Cosmology.flat(h0, om, radiation=STANDARD_RADIATION)

    @jax.jit
    def all_of(cosmology, omega_b):
        z_star = decoupling_redshift(cosmology.Om0 * (cosmology.H0 / 100) ** 2, omega_b)
        names = ["R", "l_A", "omega_b", "omega_m", "r_d"]
        return (
            z_star,
            sound_horizon(z_star, cosmology, omega_b),
            compressed(names, np.zeros(5), cosmology, omega_b, 147.0),
        )

    z_star, horizon, found = (np.asarray(x) for x in all_of(cosmology, omega_b))
    z_star = float(z_star)
    assert z_star == pytest.approx(
        1092.0, abs=0.5
    )  # of Planck's best fit by this formula; recombination codes give 1090
    loading = 31500 * omega_b * (2.7255 / 2.7) ** -4
    reference = astropy.cosmology.FlatLambdaCDM(h0, om, Tcmb0=2.7255, Neff=2.9923, m_nu=0 * u.eV)

    def integrand(a):
        return 1 / (a**2 * reference.efunc(1 / a - 1) * np.sqrt(3 * (1 + loading * a)))

    expected = 299792.458 / h0 * quad(integrand, 0.0, 1 / (1 + z_star), epsrel=1e-11)[0]
    assert float(horizon) == pytest.approx(expected, rel=1e-8)
    shift, scale, baryons, matter, ruler = found
    across = reference.comoving_transverse_distance(z_star).value
    assert float(shift) == pytest.approx(np.sqrt(om) * h0 / 299792.458 * across, rel=1e-8)
    assert float(scale) == pytest.approx(np.pi * across / expected, rel=1e-8)
    assert (baryons, ruler) == (omega_b, 147.0)
    assert matter == pytest.approx(om * (h0 / 100) ** 2, rel=1e-14)
    # Planck's own best fit is near the compressed values; l_A is known to 3e-4, H0 of the best fit to 8e-3.
    assert float(shift) == pytest.approx(1.7502, abs=1.5 * 0.0046)
    assert float(scale) == pytest.approx(301.471, abs=5.0 * 0.09)
    equal = float(om / (cosmology.Ogamma0 + cosmology.Onu0)) - 1.0
    assert equal == pytest.approx(2.5e4 * om * (h0 / 100) ** 2 * (2.7255 / 2.7) ** -4, rel=1e-3)


def test_the_sound_horizon_needs_radiation():
    with pytest.raises(ValueError, match="sound_horizon: expected a cosmology with radiation; found one without"):
        sound_horizon(1090.0, Cosmology.flat(70.0, 0.3), 0.022)


def test_the_sound_horizon_at_the_drag_epoch_is_the_published_fit():
    assert drag_horizon(0.1432, 0.02236, 3.04) == pytest.approx(147.05, rel=1e-12)
    for change, power in (((2.0, 1.0, 1.0), -0.23), ((1.0, 2.0, 1.0), -0.13), ((1.0, 1.0, 2.0), -0.1)):
        omega_m, omega_b, Neff = np.array([0.1432, 0.02236, 3.04]) * change
        assert drag_horizon(omega_m, omega_b, Neff) == pytest.approx(147.05 * 2.0**power, rel=1e-12)


def test_acoustic_oscillations():
    reference = astropy.cosmology.wCDM(70.0, 0.3, 0.75, w0=-0.9)
    cosmology = Cosmology(70.0, 0.3, 0.75, -0.9)
    names = ["DM_over_rd", "DH_over_rd", "DV_over_rd", "H0", "Om0"]
    at = np.array([0.5, 0.7, 0.9, 0.0, 0.0])
    found = jax.jit(lambda c: compressed(names, at, c, None, 147.0))(cosmology)
    across = reference.comoving_transverse_distance([0.5, 0.9]).value
    along = 299792.458 / reference.H([0.7, 0.9]).value
    expected = [across[0] / 147, along[0] / 147, np.cbrt(0.9 * across[1] ** 2 * along[1]) / 147, 70.0, 0.3]
    np.testing.assert_allclose(found, expected, rtol=1e-9)

    @jax.jit
    def predicted_and_slope(om):
        def total(om):
            p = compressed(names, np.full(5, 1.5), Cosmology(70.0, om, 2.5), None, 147.0)
            return jnp.where(jnp.isfinite(p).all(), p, 0.0).sum(), p

        return jax.grad(total, has_aux=True)(om)

    slope, predicted = predicted_and_slope(0.01)
    assert np.isnan(predicted).all()  # no big bang
    assert float(slope) == 0.0
