"""Lines of any width keep their photons: in bins, in several spectra, in a population, with absorbers and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from hbm_jax.spectra import (
    Absorption,
    BrokenPowerLaw,
    CutoffPowerLaw,
    GaussianLine,
    Parameter,
    PowerLaw,
    Response,
    component,
    fold,
    photons,
    xrt_like_arf,
    xrt_like_rmf,
)
from hbm_jax.spectra.folding.expected_counts import ExpectedCounts
from hbm_jax.spectra.model.absorbers import precise_cross_section
from hbm_jax.spectra.model.shapes import gaussian_line_fractions, gaussian_line_moments, sum_of_gaussian_lines

SIGMAS = [0.0, 1e-15, 1e-12, 1e-9, 1e-6, 1e-4, 1e-3, 1e-2, 0.1, 1.0]
EDGES = np.linspace(0.3, 10.0, 971)  # bins of 10 eV


@component(
    {
        "centre": Parameter("keV", "LogNormal(1.5, 0.7)", "centre"),
        "log10_amplitude": Parameter("", "Normal(-3, 1)", ""),
    },
    antiderivative=lambda energy, **p: 10.0 ** p["log10_amplitude"] * jax.nn.sigmoid((energy - p["centre"]) * 1e5),
)
def spike(energy, centre, log10_amplitude):
    """Line with a width of 10 meV and a profile that is not Gaussian."""
    return 10.0**log10_amplitude * 1e5 * 0.25 / jnp.cosh(0.5e5 * (energy - centre)) ** 2


@pytest.mark.parametrize("energy", [2.0003, 2.0, EDGES[331], 5.6789])
@pytest.mark.parametrize("double", [True, False])
def test_no_photon_is_lost_or_counted_twice(energy, double):
    """Also not those of a line on an edge of two bins."""
    dtype = jnp.float64 if double else jnp.float32
    with jax.enable_x64(double):
        values = {"energy": energy, "sigma": jnp.array(SIGMAS, dtype), "log10_amplitude": jnp.zeros((), dtype)}
        in_bins = np.asarray(jax.jit(photons(GaussianLine(), EDGES))(values), float)
    assert (in_bins >= 0).all()
    inside = [1.0 if s < 1e-3 else np.diff(stats.norm(energy, s).cdf([0.3, 10.0]))[0] for s in SIGMAS]
    np.testing.assert_allclose(in_bins.sum(axis=1), inside, rtol=1e-12 if double else 1e-5)


def test_gradients_are_finite_at_any_width_and_right():
    in_bins = photons(GaussianLine() * Absorption(), EDGES)
    weights = np.random.default_rng(0).uniform(0.5, 1.5, len(EDGES) - 1)

    @jax.jit
    def counts(x):
        return jnp.sum(weights * in_bins({"energy": x[0], "sigma": x[1], "log10_amplitude": x[2], "nh": x[3]}))

    slope = jax.jit(jax.grad(counts))
    for sigma in SIGMAS:
        x = np.array([2.0003, sigma, 0.3, 0.5])
        found = np.asarray(slope(x))
        assert np.isfinite(found).all()
        for i in range(4):
            step = 1e-6 * max(x[i], 1e-3) if sigma > 1e-9 or i > 1 else 0.0
            if step and (sigma > 1e-4 or i > 1):
                moved = [float(counts(x + step * sign * np.eye(4)[i])) for sign in (1, -1)]
                assert found[i] == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-4, abs=1e-5)
    assert np.isfinite(np.asarray(slope(np.array([EDGES[331], 0.0, 0.3, 0.5])))).all()
    assert np.isnan(float(counts(np.array([2.0, -0.1, 0.3, 0.5]))))


MANY_EDGES = np.linspace(0.5, 12.5, 6001)


MANY_WEIGHTS = np.random.default_rng(0).normal(size=len(MANY_EDGES) - 1)


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def in_many_bins(x):
    """Return a weighted sum of the fractions of a line, the fractions, and the gradient, for centre and sigma."""
    fractions = gaussian_line_fractions(jnp.asarray(MANY_EDGES), x[:1], x[1:])
    return jnp.sum(MANY_WEIGHTS * fractions), fractions


in_many_bins_batched = jax.jit(jax.vmap(in_many_bins))


@pytest.mark.parametrize("centre", [0.1, 0.5, 0.8, 6.0005, 12.4, 14.0])
@pytest.mark.parametrize("sigma", [0.0, 0.02, 0.06, 50.0])
def test_a_line_in_many_bins_is_the_same_in_a_window_and_beyond(centre, sigma):
    """Lines of 10 to 25 000 bins, also at and beyond the ends of the band; alone and batched."""
    x = jnp.array([centre, sigma])
    (_, fractions), slope = in_many_bins(x)
    if sigma == 0.0:
        expected = np.histogram(centre, MANY_EDGES)[0]
        assert fractions.sum() == expected.sum() * (0.5 if centre == 0.5 else 1.0)
    else:
        line = stats.norm(centre, sigma)
        above = MANY_EDGES[:-1] > centre
        expected = np.where(above, -np.diff(line.sf(MANY_EDGES)), np.diff(line.cdf(MANY_EDGES)))
        np.testing.assert_allclose(fractions, expected, rtol=1e-9, atol=1e-16)
        u = (MANY_EDGES - centre) / sigma
        density = -stats.norm.pdf(u) / sigma * np.stack([np.ones_like(u), u])
        np.testing.assert_allclose(slope, np.diff(density) @ MANY_WEIGHTS, rtol=1e-8, atol=1e-12)
    (_, batched), slopes = in_many_bins_batched(jnp.stack([x, x + 1e-3]))
    np.testing.assert_allclose(batched[0], fractions, rtol=1e-12, atol=1e-16)
    np.testing.assert_allclose(slopes[0], slope, rtol=1e-10, atol=1e-12)


SIX_LINES = np.array([[3.0, 2.0, 0.5, 1.0, 4.0, 2.5], [0.5, 2.0, 2.04, 6.0005, 9.0, 12.4]])  # photons, centres


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def sum_in_many_bins(lines):
    """Return a weighted sum of the photons of lines, the photons, and the gradient, for (photons, centre, sigma)."""
    photons = sum_of_gaussian_lines(jnp.asarray(MANY_EDGES), *lines)
    return jnp.sum(MANY_WEIGHTS * photons), photons


@pytest.mark.parametrize("sigmas", [[0.01] * 6, [0.01, 1e-3, 0.5, 0.02, 3.0, 0.01]], ids=["narrow", "two wide"])
def test_lines_in_many_bins_are_added_in_windows_and_beyond(sigmas):
    """Lines with overlapping windows and at the ends of the band; values and derivatives, one of them forward."""
    lines = np.stack([*SIX_LINES, sigmas])
    counts, centre, sigma = lines[:, :, None]
    (_, photons), gradient = sum_in_many_bins(lines)
    u = (MANY_EDGES - centre) / sigma
    np.testing.assert_allclose(photons, (counts * np.diff(stats.norm.cdf(u))).sum(axis=0), rtol=1e-9, atol=1e-14)
    density = -counts * stats.norm.pdf(u) / sigma
    expected = np.diff(np.stack([stats.norm.cdf(u), density, density * u])) @ MANY_WEIGHTS
    np.testing.assert_allclose(gradient, expected, rtol=1e-8, atol=1e-11)
    forward = jax.jvp(lambda x: sum_in_many_bins(x)[0][0], (lines,), (np.ones_like(lines),))[1]
    np.testing.assert_allclose(forward, expected.sum(), rtol=1e-8, atol=1e-10)


def test_bins_of_any_width_are_integrated():
    """Bins narrower than a twentieth of the line by a Taylor series, wider ones by error functions."""
    edges = np.geomspace(0.05, 50.0, 6001)  # the last is 0.058 keV wide
    fractions = jax.jit(lambda centre, sigma: gaussian_line_fractions(jnp.asarray(edges), centre, sigma))
    for centre, sigma in ((0.3, 0.05), (20.0, 1.2), (1.0, 5.0)):
        line = stats.norm(centre, sigma)
        expected = np.where(edges[:-1] > centre, -np.diff(line.sf(edges)), np.diff(line.cdf(edges)))
        np.testing.assert_allclose(fractions(centre, sigma), expected, rtol=2e-9, atol=1e-16)


@pytest.mark.parametrize("double", [pytest.param(True, marks=pytest.mark.long), False])
def test_second_derivatives_are_finite_however_few_photons_are_in_a_bin(double):
    """Also of fractions whose third power underflows, as in bins far below a line."""
    with jax.enable_x64(double):
        edges = jnp.asarray(6.4 - 0.05 * np.linspace(40.0, 2.0, 400))

        def moments(line):
            fractions, means = gaussian_line_moments(edges, line[0], line[1])
            return jnp.stack([fractions, *means])

        curvature = jax.jit(jax.jacfwd(jax.jacrev(moments)))(jnp.array([6.4, 0.05]))
    assert np.isfinite(np.asarray(curvature)).all()
    u = (np.asarray(edges, float) - 6.4) / 0.05
    expected = -np.diff(u * stats.norm.pdf(u)) / 0.05**2
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if double else {"rtol": 2e-3, "atol": 1e-3}
    np.testing.assert_allclose(np.asarray(curvature)[0, :, 0, 0], expected, **tolerance)


@pytest.mark.parametrize("sigma", [s if s == 0.1 else pytest.param(s, marks=pytest.mark.long) for s in SIGMAS])
def test_a_line_is_absorbed_at_its_own_energies(sigma):
    line, nh = GaussianLine() * Absorption(), 1.5
    values = {"sigma": sigma, "log10_amplitude": 0.0, "nh": nh}

    @jax.jit
    def in_bins_and_in_all(values):
        return photons(line, EDGES)(values).sum(), line.integral(values, 0.3, 10.0)

    for energy in (2.0003, 4.123, 1.8387):  # the last within 1 eV of the K edge of silicon
        x, w = np.polynomial.hermite_e.hermegauss(80)
        if sigma > 1e-3:  # over the whole line, in pieces that end at edges
            pieces = np.unique(np.concatenate([np.linspace(0.3, 10.0, 5000), line.discontinuities(0.3, 10.0)]))
            t, v = np.polynomial.legendre.leggauss(4)
            half = 0.5 * np.diff(pieces)[:, None]
            nodes = (0.5 * (pieces[1:] + pieces[:-1])[:, None] + half * t).ravel()
            density = stats.norm(energy, sigma).pdf(nodes) * (half * v).ravel()
        else:
            nodes, density = energy + sigma * x, w / w.sum()
        exact = density @ np.exp(-nh * precise_cross_section(nodes))
        found, total = (float(x) for x in in_bins_and_in_all(values | {"energy": energy}))
        assert found == pytest.approx(exact, rel=2e-5 if abs(energy - 1.8387) > 0.1 or sigma < 1e-4 else 1e-4)
        assert total == pytest.approx(found, rel=2e-4)


def test_a_broken_power_law_has_no_error_where_it_breaks():
    """Its break lies anywhere in a bin, with an absorber."""
    spectrum = BrokenPowerLaw(norm="amplitude") * Absorption()
    values = {"photon_index": 1.0, "photon_index_high": 4.0, "energy_break": 2.0037, "log10_amplitude": 0.0, "nh": 0.5}
    pieces = np.unique(np.concatenate([EDGES, spectrum.discontinuities(0.3, 10.0), [2.0037]]))
    x, w = np.polynomial.legendre.leggauss(8)
    half = 0.5 * np.diff(pieces)[:, None]
    nodes = 0.5 * (pieces[1:] + pieces[:-1])[:, None] + half * x
    density = np.where(nodes < 2.0037, 1.0 / nodes, 2.0037**3 / nodes**4) * np.exp(-0.5 * precise_cross_section(nodes))
    exact = np.bincount(np.searchsorted(EDGES, nodes[:, 0]) - 1, (density * half * w).sum(axis=1))
    np.testing.assert_allclose(np.asarray(jax.jit(photons(spectrum, EDGES))(values)), exact, rtol=2e-6)


def test_a_component_with_an_antiderivative_keeps_its_photons():
    values = {"centre": jnp.array([2.0003, EDGES[331], 7.1]), "log10_amplitude": 0.5}
    total = np.asarray(jax.jit(photons(spike(), EDGES))(values)).sum(axis=1)
    np.testing.assert_allclose(total, 10**0.5, rtol=1e-12)
    absorbed = np.asarray(jax.jit(photons(spike() * Absorption(), EDGES))(values | {"nh": 0.5})).sum(axis=1)
    np.testing.assert_allclose(absorbed, total * np.exp(-0.5 * precise_cross_section(values["centre"])), rtol=0.01)
    with pytest.raises(ValueError, match="expected no antiderivative of a multiplicative component"):
        component({}, kind="multiplicative", antiderivative=lambda energy: energy)


@pytest.fixture(scope="module")
def instrument():
    """Energies, response to groups of ten channels, and counts."""
    rmf = xrt_like_rmf(400, 512)
    response = Response.of(rmf, xrt_like_arf(rmf))
    groups = np.where((response.e_min > 0.5) & (response.e_max < 9.0), np.arange(512) // 10, -1)
    groups -= groups[groups >= 0].min() * (groups >= 0)
    matrix = response.in_groups(groups)
    return response.energy, matrix, np.full(matrix.shape[1], 10.0)


def trials(**more):
    rng = np.random.default_rng(1)
    return {
        "photon_index": rng.normal(1.8, 0.4, 16), "log10_amplitude": np.zeros(16),
        "fe_sigma": 10.0 ** rng.uniform(-6, -1, 16),
        "fe_energy": rng.uniform(1.0, 7.0, 16), "fe_log10_amplitude": np.full(16, -0.5), **more,
    }  # fmt: skip


@pytest.mark.long
def test_a_population_of_lines_is_folded_exactly(instrument):
    """Three sources at their redshifts, each with a line of its own width; a host absorbs all of them."""
    energy, matrix, counts = instrument
    z = (0.0, 0.7, 1.9)
    spectrum = (PowerLaw(norm="amplitude") + GaussianLine("fe")) * Absorption(z=z)
    found = ExpectedCounts.of(
        spectrum, [(energy, matrix)] * 3, [counts] * 3, trials(nh=np.full(16, 0.3)), tolerance=1e-8
    )
    assert (found.errors <= 1e-8).all()
    values = {
        "photon_index": np.array([1.5, 2.0, 2.5]), "log10_amplitude": 0.0, "fe_sigma": np.array([0.0, 1e-5, 0.3]),
        "fe_energy": np.array([6.4, 3.7654, 2.2]), "fe_log10_amplitude": np.array([-1.0, 0.0, 0.5]),
        "nh": np.array([0.1, 0.5, 2.0]),
    }  # fmt: skip
    expected = np.asarray(jax.jit(lambda f, v: f(v))(found, values))
    for row in range(3):
        source, own = spectrum.of_source(row), {k: v if np.ndim(v) == 0 else v[row] for k, v in values.items()}
        np.testing.assert_allclose(expected[row], np.asarray(jax.jit(photons(source, energy))(own)) @ matrix, rtol=1e-6)
    slopes = jax.jit(jax.grad(lambda v, f: jnp.sum(jnp.log(f(v)))))(
        {k: jnp.asarray(v) for k, v in values.items()}, found
    )
    assert all(np.isfinite(np.asarray(slope)).all() for slope in slopes.values())


def test_nodes_that_miss_a_line_say_so(instrument):
    """Their error is measured against the bins, not against other nodes that miss it as well."""
    energy, matrix, counts = instrument
    spectrum = PowerLaw(norm="amplitude") + GaussianLine("fe")
    tried = trials() | {"fe_sigma": np.full(16, 1e-7)}
    on_nodes = fold(spectrum, energy, matrix, counts, tried, tolerance=1e-4)
    assert on_nodes.errors[0] > 1.0
    assert on_nodes.exact_errors[0] < 1e-9


@pytest.mark.long
def test_where_nodes_do_not_suffice_the_bins_are_folded(instrument):
    energy, matrix, counts = instrument
    tried = trials(photon_index_high=np.full(16, 4.0), energy_break=np.linspace(0.8, 6.0, 16))
    spectrum = BrokenPowerLaw(norm="amplitude") * Absorption(z=0.5)
    tried["nh"] = np.full(16, 0.3)
    found = ExpectedCounts.of(spectrum, [(energy, matrix)], [100.0 * counts], tried, tolerance=1e-3)
    assert found.density is None
    assert found.errors[0] < 1e-3
    one = {name: value[3] for name, value in tried.items()}
    exact = np.asarray(jax.jit(photons(spectrum, energy))(one)) @ matrix
    np.testing.assert_allclose(np.asarray(found(one))[0], exact, rtol=1e-7)


@pytest.mark.long
def test_the_reference_of_smooth_spectra_is_that_of_the_bins(instrument):
    """With a tolerance that no level reaches, nodes are the reference of all others."""
    energy, matrix, counts = instrument
    spectrum = CutoffPowerLaw(norm="amplitude") * Absorption("mw") * Absorption("host", z=1.3)
    tried = {name: trials()[name] for name in ("photon_index", "log10_amplitude")}
    tried |= {"e_cut": np.geomspace(1.0, 50.0, 16), "mw_nh": np.full(16, 0.1), "host_nh": np.geomspace(0.01, 10.0, 16)}
    found = fold(spectrum, energy, matrix, counts, tried, tolerance=0.0)
    one = {name: value[::5] for name, value in tried.items()}
    exact = np.asarray(jax.jit(photons(spectrum, energy))(one)) @ matrix
    on_nodes = np.asarray(spectrum.on(found.nodes.energy)(one)) @ found.nodes.matrix.T
    np.testing.assert_allclose(on_nodes, exact, rtol=1e-8, atol=1e-9 * exact.max())
    assert max(found.errors[0], found.exact_errors[0]) < 1e-7
