"""Shapes of spectra against their textbook formulas, at every point where a formula changes, and how they compose."""

import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import integrate
from scipy.stats import norm

from hbm_jax import constants
from hbm_jax.absorption import WhimTable, neutral_cross_section
from hbm_jax.cosmology import Cosmology
from hbm_jax.distributions.notation import distribution_from_text
from hbm_jax.spectra.model import shapes
from hbm_jax.spectra.model.components import (
    Absorption,
    Band,
    BlackBody,
    BrokenPowerLaw,
    Constant,
    CutoffPowerLaw,
    GaussianLine,
    PowerLaw,
    Whim,
    photons,
)

KEV = 1.602176634e-9  # erg
FLAT = Cosmology.flat(H0=70.0, Om0=0.3)
ENERGY = np.array([0.3, 0.77, 1.0, 2.0, 3.3, 10.0, 60.0])


def power_law(E, photon_index):
    return E**-photon_index


def broken(E, photon_index, photon_index_high, energy_break):
    above = energy_break ** (photon_index_high - photon_index) * E**-photon_index_high
    return np.where(energy_break >= E, E**-photon_index, above)


def cutoff(E, photon_index, e_cut):
    return E**-photon_index * np.exp(-E / e_cut)


def peaked(E, photon_index, e_peak):
    return E**-photon_index * np.exp(-E * (2 - photon_index) / e_peak)


def band(E, alpha, beta, e_peak):
    E0 = e_peak / (2 + alpha)
    low = (E / 100) ** alpha * np.exp(-E / E0)
    high = ((alpha - beta) * E0 / 100) ** (alpha - beta) * np.exp(beta - alpha) * (E / 100) ** beta
    return np.where((alpha - beta) * E0 > E, low, high)


def line(E, energy, sigma):
    return np.exp(-0.5 * ((E - energy) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))


def black_body(E, kT):
    return 1.0344e-3 * E**2 / (np.exp(E / kT) - 1)


# Component, textbook formula, values of its shape: some at which a formula changes.
CASES = {
    "power law": (PowerLaw, power_law, {"photon_index": [2.0, 1.0, 0.0, -1.3, 3.7]}),
    "broken power law": (
        BrokenPowerLaw,
        broken,
        {
            "photon_index": [2.0, 1.0, 0.7, 1.5, 1.5],
            "photon_index_high": [1.0, 2.0, 2.9, 1.5, 2.5],
            "energy_break": [1.0, 2.0, 0.1, 3.0, 90.0],
        },
    ),
    "cutoff": (CutoffPowerLaw, cutoff, {"photon_index": [2.0, 1.0, -1.0, 2.5], "e_cut": [1.0, 30.0, 5.0, 1e5]}),
    "peak": (
        lambda **choices: CutoffPowerLaw(peak=True, **choices),
        peaked,
        {"photon_index": [2.0, 1.0, -1.0, 1.9], "e_peak": [1.0, 30.0, 5.0, 1e4]},
    ),
    "Band": (
        Band,
        band,
        {
            "alpha": [-1.0, -0.5, 0.5, -1.9, -1.0],
            "beta": [-2.0, -2.5, -4.0, -2.2, -3.0],
            "e_peak": [2.0, 60.0, 1.0, 300.0, 1e4],
        },
    ),
    "line": (GaussianLine, line, {"energy": [6.4, 1.0, 3.3], "sigma": [3.0, 5.0, 8.0]}),
    "black body": (BlackBody, black_body, {"kT": [1.0, 0.1, 30.0, 2.0]}),
}


@pytest.fixture(params=CASES, scope="module")
def case(request):
    make, formula, values = CASES[request.param]
    return make, formula, {name: np.array(column) for name, column in values.items()}


def cross_section(energy):
    """The cross section at up to 200 energies, by one program."""
    padded = np.pad(energy, (0, 200 - len(energy)), constant_values=1.0)
    return np.asarray(neutral_cross_section(padded))[: len(energy)]


def columns(values):
    return {name: column[:, None] for name, column in values.items()}


def test_densities_are_the_textbook_formula_in_both_precisions(case):
    make, formula, values = case
    on_grid = make(norm="amplitude").on(ENERGY)
    values_of_both = values | {"log10_amplitude": np.linspace(-4, 1, len(next(iter(values.values()))))}
    expected = 10.0 ** values_of_both["log10_amplitude"][:, None] * formula(ENERGY, **columns(values))
    call = jax.jit(on_grid)
    np.testing.assert_allclose(call(values_of_both), expected, rtol=1e-13)
    single = call({name: column.astype(np.float32) for name, column in values_of_both.items()})
    assert single.dtype == jnp.float32
    # exp(-y) is good to y roundings, and 1e-30 is near the smallest number there is.
    held = expected > 1e-30
    np.testing.assert_allclose(np.asarray(single)[held], expected[held], rtol=3e-5)


def test_the_norm_is_the_energy_flux_in_its_band(case):
    make, formula, values = case
    low, high = 0.5, 40.0
    flux = np.linspace(-12, -8, len(next(iter(values.values()))))
    found = jax.jit(make(norm=(low, high)).on(ENERGY))(values | {"log10_flux": flux})
    breaks = {name: column for name, column in values.items() if name == "energy_break"}
    for i, row in enumerate(np.asarray(found)):
        one = {name: column[i] for name, column in values.items()}
        points = [np.log(b[i]) for b in breaks.values() if low < b[i] < high]
        integral = integrate.quad(
            lambda u, one=one: np.exp(2 * u) * formula(np.exp(u), **one),
            *np.log([low, high]),
            points=points or None,
            epsabs=0,
            epsrel=1e-11,
            limit=200,
        )[0]
        np.testing.assert_allclose(row, 10 ** flux[i] / KEV / integral * formula(ENERGY, **one), rtol=1e-9)


def test_forward_and_reverse_slopes_are_those_of_the_formula(case):
    make, formula, values = case
    names = list(values)
    on_grid = make(norm="amplitude").on(ENERGY)

    def log_density(x):
        return jnp.log(on_grid(dict(zip(names, x, strict=True)) | {"log10_amplitude": 0.0}))

    points = np.stack(list(values.values()), axis=-1)
    forward, reverse = jax.jit(jax.vmap(lambda x: (jax.jacfwd(log_density)(x), jax.jacrev(log_density)(x))))(points)
    np.testing.assert_allclose(forward, reverse, rtol=1e-12, atol=1e-12)
    assert np.isfinite(forward).all()
    for i, name in enumerate(names):
        step = 1e-5 * np.maximum(np.abs(points[:, i]), 1)
        up, down = (values | {name: points[:, i] + sign * step} for sign in (1, -1))
        with np.errstate(divide="ignore"):
            rise = np.log(formula(ENERGY, **columns(up))) - np.log(formula(ENERGY, **columns(down)))
        expected = rise / (2 * step[:, None])
        # Where the energy is the break of a broken power law, both are the mean of the two sides.
        known = np.isfinite(expected)
        np.testing.assert_allclose(np.asarray(forward)[..., i][known], expected[known], rtol=1e-5, atol=1e-5)


def exact_power_law(index, low, high, power):
    """∫ E^power E^-index dE in 40 digits."""
    with mpmath.workdps(40):
        s = mpmath.mpf(power + 1) - mpmath.mpf(index)
        low, high = mpmath.mpf(low), mpmath.mpf(high)
        return float(mpmath.log(high / low) if s == 0 else (high**s - low**s) / s)


def test_derivatives_of_absorbed_lines_are_without_that_of_a_minimum():
    # It is 0 / 0 where XLA computes the values twice and rounds them differently.
    line = Absorption() * GaussianLine()
    in_bins = photons(line, np.linspace(0.3, 2.0, 20))
    gradient = jax.grad(lambda values: in_bins(values).sum())
    assert "reduce_min" not in str(jax.make_jaxpr(gradient)(dict.fromkeys(line.parameters, 0.5)))


def test_a_power_law_at_index_two_and_one_and_near_them_in_both_precisions():
    near = np.array([0.0, 1e-12, -1e-9, 1e-6, -1e-6, 1e-4, -0.01, 0.3, -0.4])
    index = np.concatenate([2 + near, 1 + near, [-30.0, 40.0]])
    edges = np.array([0.3, 0.31, 1.0, 10.0])
    in_bins = photons(PowerLaw(norm="amplitude"), edges)
    on_grid = PowerLaw(norm=(0.3, 10.0)).on([1.0])

    @jax.jit
    def both(index):
        flux = jax.vmap(lambda g: on_grid({"photon_index": g, "log10_flux": jnp.zeros_like(g)})[0])(index)
        return flux, in_bins({"photon_index": index, "log10_amplitude": jnp.zeros_like(index)})

    for dtype, accuracy in ((np.float64, 2e-14), (np.float32, 4e-6)):
        given = index.astype(dtype)
        usable = np.abs(given) < 5 if dtype == np.float32 else np.full(len(given), True)
        flux, counts = both(given)
        expected = [1 / KEV / exact_power_law(float(g), 0.3, 10.0, 1) for g in given]
        np.testing.assert_allclose(np.asarray(flux)[usable], np.array(expected)[usable], rtol=accuracy)
        expected = [[exact_power_law(float(g), a, b, 0) for a, b in itertools.pairwise(edges)] for g in given]
        np.testing.assert_allclose(np.asarray(counts)[usable], np.array(expected)[usable], rtol=10 * accuracy)


def test_slope_and_curvature_of_a_power_law_at_index_two():
    # The logarithm of the integral of exp(s x) has slope (middle) and curvature (width^2 / 12) at s = 0.
    energy = np.array([0.3, 1.0, 7.0])
    on_grid = PowerLaw(norm=(0.3, 10.0)).on(energy)
    middle, width = 0.5 * np.log(3.0), np.log(10 / 0.3)

    def log_density(index):
        return jnp.log(on_grid({"photon_index": index, "log10_flux": -11.0}))

    @jax.jit
    def slopes(index):
        return jax.jacfwd(log_density)(index), jax.jacrev(log_density)(index), jax.hessian(log_density)(index)

    for dtype, accuracy in ((jnp.float64, 1e-13), (jnp.float32, 3e-6)):
        # 1e-6 from it the slope is another by 1e-6, and single precision rounds by more.
        for off in (0.0, 1e-6, -1e-6) if dtype == jnp.float32 else (0.0,):
            forward, reverse, curvature = slopes(np.asarray(2.0 + off, dtype))
            np.testing.assert_allclose(forward, middle - np.log(energy), atol=accuracy)
            np.testing.assert_allclose(reverse, middle - np.log(energy), atol=accuracy)
            np.testing.assert_allclose(curvature, -(width**2) / 12, rtol=10 * accuracy)


def test_log_sinhc_is_smooth_where_its_formula_changes():
    y = np.array([0.0, 1e-8, 0.1, 0.5 - 1e-9, 0.5, 0.5 + 1e-9, 3.0, 800.0])
    points = np.concatenate([y, -y])
    value, slope, bend = jax.jit(
        jax.vmap(lambda y: (shapes.log_sinhc(y), jax.grad(shapes.log_sinhc)(y), jax.hessian(shapes.log_sinhc)(y)))
    )(points)
    with mpmath.workdps(60):

        def exact(y):
            return mpmath.log(mpmath.sinh(y) / y) if y else mpmath.mpf(0)

        for i, point in enumerate(points):
            p = mpmath.mpf(point)
            expected = (
                [0, 0, mpmath.mpf(1) / 3]
                if not p
                else [exact(p), mpmath.coth(p) - 1 / p, 1 / p**2 - mpmath.csch(p) ** 2]
            )
            assert float(value[i]) == pytest.approx(float(expected[0]), rel=1e-14, abs=1e-15)
            assert float(slope[i]) == pytest.approx(float(expected[1]), rel=1e-13, abs=1e-14)
            assert float(bend[i]) == pytest.approx(float(expected[2]), rel=1e-12, abs=1e-13)


def test_photons_of_a_line_are_exact_however_narrow():
    edges = np.linspace(5.0, 8.0, 301)
    in_bins = photons(GaussianLine() + GaussianLine("other", norm=(5.0, 7.0)), edges)
    held = {"other_energy": 6.0, "other_sigma": 0.05, "other_log10_flux": -90.0}

    def found(x):
        return in_bins(held | {"energy": x[0], "sigma": x[1], "log10_amplitude": -4.0})

    all_of = jax.jit(lambda x: (found(x), jax.jacfwd(found)(x), jax.jacrev(found)(x)))
    for sigma in (1e-5, 1e-2, 0.3):
        distance = (edges - 6.403) / sigma
        value, forward, reverse = all_of(np.array([6.403, sigma]))
        np.testing.assert_allclose(value, 1e-4 * np.diff(norm.cdf(distance)), rtol=1e-9, atol=1e-16)
        np.testing.assert_allclose(forward, reverse, rtol=1e-9, atol=1e-12)
        density = norm.pdf(distance) / sigma
        slopes = -1e-4 * np.diff(np.stack([density, distance * density], axis=1), axis=0)
        np.testing.assert_allclose(forward, slopes, rtol=1e-8, atol=1e-12)


def test_the_flux_of_a_line_in_a_band_far_in_its_tail():
    line_of = GaussianLine(pivot=2.0)
    values = {"energy": 6.4, "sigma": 0.3, "log10_amplitude": -4.0}
    low, high = np.array([(5.0, 8.0), (9.5, 10.0), (1.0, 2.0)]).T
    found = jax.jit(lambda values: [line_of.integral(values, low, high, power) for power in (0, 1)])(values)
    for power in (0, 1):
        for i, (a, b) in enumerate(zip(low, high, strict=True)):
            exact = integrate.quad(lambda E, p=power: E**p * line(E, 6.4, 0.3), a, b, epsabs=0, epsrel=1e-11)[0]
            assert float(found[power][i]) == pytest.approx(1e-4 * exact, rel=1e-9)


def test_band_at_its_break_and_at_the_ends_of_its_domain():
    names = ("alpha", "beta", "e_peak")
    # E = 50 keV is the break of the first.
    points = np.array(
        [
            [-1.0, -2.5, 50.0 / 1.5],
            [-2.0, -2.5, 80.0],  # no cut-off: E^-2
            [-1.5, -1.5, 80.0],  # nothing below the break: E^-1.5
            [-2.0, -2.0, 80.0],
            [-2.1, -2.5, 80.0],  # from here out of the domain
            [-1.5, -1.4, 80.0],
            [-1.0, -2.5, -80.0],
        ]
    )
    energy = np.array([50.0, 20.0, 500.0])
    on_grid = Band(norm=(10.0, 1000.0)).on(energy)

    def density(x):
        return on_grid(dict(zip(names, x, strict=True)) | {"log10_flux": -6.0})

    def all_of(x):
        return density(x), jax.jacfwd(density)(x), jax.jacrev(density)(x)

    call = jax.jit(jax.vmap(all_of))
    value, forward, reverse = (np.asarray(x) for x in call(points))
    assert np.isnan(value[4:]).all()
    assert np.isfinite(value[:4]).all()
    assert np.isfinite(forward[:4]).all()
    np.testing.assert_allclose(forward[:4], reverse[:4], rtol=1e-10, atol=1e-20)
    for row, index in ((1, 2.0), (2, 1.5), (3, 2.0)):
        expected = 1e-6 / KEV / exact_power_law(index, 10.0, 1000.0, 1) * energy**-index
        np.testing.assert_allclose(value[row], expected, rtol=1e-12)
    # Continuous: a little inside are nearly the same value and slopes. The slope of alpha at alpha = beta is the slope
    # of an ever smaller part of the spectrum, 0.
    inside = points[:3] + 1e-7 * np.array([[1.0, 0, 0], [1.0, 0, 0], [1.0, 0, 0]])
    near, near_forward, _ = (np.asarray(x) for x in call(np.concatenate([inside, points[3:]])))
    np.testing.assert_allclose(near[:3], value[:3], rtol=1e-5)
    np.testing.assert_allclose(near_forward[:3], forward[:3], rtol=1e-4, atol=1e-5 * np.abs(forward[:3]).max())


def test_black_body_from_far_below_to_far_above_its_temperature():
    energy, kT = np.array([1e-6, 1.0, 50.0, 2e4]), np.array([1.0, 1e-3, 1e5])
    on_grid = BlackBody(norm="amplitude").on(energy)

    def density(kT):
        return on_grid({"kT": kT, "log10_amplitude": jnp.zeros_like(kT)})

    call = jax.jit(jax.vmap(lambda kT: (density(kT), jax.jacfwd(density)(kT), jax.jacrev(density)(kT))))
    for dtype, accuracy in ((np.float64, 1e-11), (np.float32, 1e-4)):
        value, forward, reverse = (np.asarray(a, float) for a in call(kT.astype(dtype)))
        np.testing.assert_allclose(forward, reverse, rtol=accuracy, atol=1e-37)
        for i, T in enumerate(kT.astype(dtype).astype(float)):
            for j, E in enumerate(energy):
                with mpmath.workdps(40):
                    y = mpmath.mpf(E) / mpmath.mpf(T)
                    exact = mpmath.mpf("1.0344e-3") * E**2 / mpmath.expm1(y)
                    slope = exact * y / T * mpmath.exp(y) / mpmath.expm1(y)
                assert value[i, j] == pytest.approx(float(exact), rel=accuracy, abs=1e-37)
                assert forward[i, j] == pytest.approx(float(slope), rel=accuracy, abs=1e-37)


def test_a_broken_power_law_has_smooth_photons_at_its_break():
    edges = np.array([0.5, 1.0, 2.0])
    in_bins = photons(BrokenPowerLaw(norm="amplitude"), edges)
    on_break = BrokenPowerLaw(norm="amplitude").on([1.5])
    fixed = {"photon_index": 1.0, "photon_index_high": 2.0, "log10_amplitude": 0.0}
    place = np.array([1.5, 1.0, 0.5, 2.0, 0.4, 2.5])

    def both(b):
        values = fixed | {"energy_break": b}
        return in_bins(values), on_break(values)

    all_of = jax.jit(jax.vmap(lambda b: (both(b), jax.jacfwd(both)(b), jax.jacrev(both)(b))))
    value, slope, back = jax.tree.map(np.asarray, all_of(place))
    for i, b in enumerate(place):
        expected, rise = [], []
        for low, high in ((0.5, 1.0), (1.0, 2.0)):
            cut = np.clip(b, low, high)
            expected.append(np.log(cut / low) + b * (1 / cut - 1 / high))
            rise.append(1 / cut - 1 / high)
        np.testing.assert_allclose(value[0][i], expected, rtol=1e-13)
        np.testing.assert_allclose(slope[0][i], rise, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(back[0][i], rise, rtol=1e-12, atol=1e-14)
    # The density itself has a kink there: a slope between 0 and that of b / E^2.
    assert 0 <= float(slope[1][0, 0]) <= 1 / 1.5**2


def test_photons_in_bins_are_integrals():
    thin = np.append(np.linspace(0.3, 0.6, 5), [0.9, 4.0, 10.0])
    absorption = Absorption("mw") * Absorption("host", z=1.3)
    cases = [
        (PowerLaw(norm="amplitude") * absorption, {"photon_index": 1.9, "mw_nh": 0.1, "host_nh": 1.0}, 1e-9),
        (CutoffPowerLaw(norm="amplitude"), {"photon_index": 1.0, "e_cut": 2.0}, 1e-10),
        (Band(norm="amplitude", pivot=1.0), {"alpha": -1.0, "beta": -2.5, "e_peak": 1.5}, 1e-6),
        (BlackBody(norm="amplitude"), {"kT": 0.3}, 1e-9),
        (PowerLaw(norm="amplitude") + BrokenPowerLaw("b", norm="amplitude", pivot=3.0), {
            "photon_index": 1.0, "b_photon_index": 1.0, "b_photon_index_high": 3.0, "b_energy_break": 2.0,
            "b_log10_amplitude": 0.0,
        }, 1e-12),
    ]  # fmt: skip
    for spectrum, values, accuracy in cases:
        values = values | {"log10_amplitude": 0.3}
        found = np.asarray(jax.jit(photons(spectrum, thin))(values))
        # Gauss and Legendre between all edges, breaks and 2000 points more, in NumPy.
        low, high = thin[0], thin[-1]
        breaks = [2.0, 1.5 * 1.5]
        cuts = np.unique(
            np.concatenate([np.geomspace(low, high, 500), thin, breaks, spectrum.discontinuities(low, high)])
        )
        x, w = np.polynomial.legendre.leggauss(4)
        half = 0.5 * np.diff(cuts)[:, None]
        energy = 0.5 * (cuts[1:] + cuts[:-1])[:, None] + half * x
        density = np.asarray(jax.jit(spectrum.on(energy.ravel()))(values)).reshape(energy.shape)
        pieces = (density * half * w).sum(-1)
        expected = np.add.reduceat(pieces, np.searchsorted(cuts, thin[:-1]))
        np.testing.assert_allclose(found, expected, rtol=accuracy)


def test_photons_of_a_power_law_in_single_precision_and_narrow_bins():
    edges = np.linspace(0.3, 10.0, 2001)
    values = {"photon_index": np.float32(1.7), "log10_amplitude": np.float32(0.0)}
    found = jax.jit(photons(PowerLaw(norm="amplitude"), edges))(values)
    assert found.dtype == jnp.float32
    g = float(np.float32(1.7))
    expected = (edges[1:] ** (1 - g) - edges[:-1] ** (1 - g)) / (1 - g)
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_sums_and_products_are_that_of_their_parts():
    energy = np.array([0.4, 1.0, 5.0])
    spectrum = (PowerLaw() + BlackBody("thermal")) * Constant("epic") * Absorption("mw") * Absorption("host", z=2.0)
    assert list(spectrum.parameters) == [
        "photon_index", "log10_flux", "thermal_kT", "thermal_log10_flux", "epic_factor", "mw_nh", "host_nh",
    ]  # fmt: skip
    values = {"photon_index": 1.8, "log10_flux": -11.0, "thermal_kT": 0.2, "thermal_log10_flux": -12.0}
    factors = {"epic_factor": 1.1, "mw_nh": 0.05, "host_nh": 0.8}
    parts = [one.on(energy) for one in (PowerLaw(), BlackBody("thermal"), spectrum, spectrum.unabsorbed)]
    plain, thermal, whole, bare = jax.jit(lambda v: [part(v) for part in parts])(values | factors)
    tau = 0.05 * cross_section(energy) + 0.8 * cross_section(3 * energy)
    np.testing.assert_allclose(whole, 1.1 * (plain + thermal) * np.exp(-tau), rtol=1e-12)
    np.testing.assert_allclose(bare, 1.1 * (plain + thermal), rtol=1e-14)
    assert spectrum == (PowerLaw() + BlackBody("thermal")) * Constant("epic") * Absorption("mw") * Absorption(
        "host", z=2.0
    )
    assert hash(spectrum) == hash(
        eval(repr(spectrum), globals() | {"Sum": type(spectrum.parts[0]), "Product": type(spectrum)})
    )


def test_draws_broadcast_and_programs_are_reused():
    energy = np.array([0.4, 1.0, 5.0])
    spectrum = PowerLaw() * Absorption(z=None)
    traces = []

    @jax.jit
    def density(on_grid, values):
        traces.append(1)
        return on_grid(values)

    rng = np.random.default_rng(3)
    draws = {
        "photon_index": rng.normal(2, 0.3, (4, 3)), "log10_flux": rng.normal(-11, 1, 3),
        "nh": rng.uniform(0, 1, (4, 1)), "z": np.float64(1.5),
    }  # fmt: skip
    found = density(spectrum.on(energy), draws)
    assert found.shape == (4, 3, 3)
    density(spectrum.on(2 * energy), draws)
    assert len(traces) == 1
    full = {name: np.broadcast_to(value, (4, 3)).ravel() for name, value in draws.items()}
    fixed = PowerLaw() * Absorption(z=1.5)
    each = jax.jit(jax.vmap(fixed.on(energy)))(full)
    np.testing.assert_allclose(found.reshape(12, 3), each, rtol=1e-11)


def test_set_up_inside_a_compiled_function_and_without_double_precision():
    with jax.enable_x64(False):
        transmission = jax.jit(lambda nh: Absorption().on([0.5, 1.0])({"nh": nh}))(np.float32(0.1))
        assert transmission.dtype == jnp.float32
        sigma = Absorption().on([0.5, 1.0]).args[0]
        assert isinstance(sigma, np.ndarray)
        assert sigma.dtype == np.float64
    np.testing.assert_allclose(sigma, cross_section(np.array([0.5, 1.0])), rtol=1e-14)
    np.testing.assert_allclose(transmission, np.exp(-0.1 * sigma), rtol=1e-6)


def test_whim_is_the_optical_depth_along_the_line_of_sight():
    energy, z = np.array([0.35, 0.7, 2.0]), (0.5, 2.0)
    whim = Whim(z=z, cosmology=FLAT, metallicity=None)
    assert list(whim.parameters) == ["log10_n0", "log10_T", "metallicity"]
    on_rows = whim.on(np.stack([energy, energy]))
    draws = {"log10_n0": np.array([[-6.0], [-5.5]]), "log10_T": np.array([6.0, 5.5]), "metallicity": 0.3}
    scalars = {"log10_n0": -6.0, "log10_T": 6.0, "metallicity": 0.3}
    found, plain, single = jax.jit(
        lambda on, a, b: (on(a), on(b), on(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), a)))
    )(on_rows, draws, scalars)
    assert found.shape == (2, 2, 3)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, found, rtol=1e-5)
    found, plain = np.asarray(found), np.asarray(plain)
    # The table is held against the integral in tests/absorption/test_whim.py; here one for both lines of sight.
    table = WhimTable(energy, np.array(z), cosmology=FLAT)
    depths = jax.jit(lambda table, n0: table(n0, np.array([6.0, 5.5]), 0.3))
    for row, n0 in zip(found, (1e-6, 10**-5.5), strict=True):
        tau = np.asarray(depths(table, n0))
        np.testing.assert_allclose(row, np.exp(-tau), rtol=1e-12)
        assert (row[:, 0] < 0.9).all()
    np.testing.assert_allclose(plain[0], found[0, 0], rtol=1e-12)
    assert whim.of_source(1).z == 2.0
    assert (PowerLaw() * whim * Absorption(z=z)).of_source(0).parts[2].z == 0.5


def test_jumps_and_kinks_are_where_absorbers_have_edges():
    iron, oxygen = 7.124, 0.5380  # keV, K edges of the fits of Verner et al. 1996
    spectrum = PowerLaw() * Absorption("mw") * Absorption("host", z=1.0) * Absorption("free", z=None)
    jumps = spectrum.discontinuities(0.2, 10.0)
    assert (np.diff(jumps) > 0).all()
    for edge in (iron, oxygen):
        assert np.abs(jumps - edge).min() < 1e-3
        assert np.abs(jumps - edge / 2).min() < 1e-3
    (low, high), (low_host, high_host) = (
        [cross_section(stretch * jumps * (1 + side)) for side in (-1e-7, 1e-7)] for stretch in (1, 2)
    )
    assert (np.maximum(high / low, high_host / low_host) > 1).mean() > 0.9
    assert spectrum.slope_discontinuities(0.2, 10.0).size == 0
    kinks = Whim(z=1.0, cosmology=FLAT).slope_discontinuities(0.2, 10.0)
    assert np.abs(kinks - 0.870 / 2).min() < 2e-3  # O VIII
    assert np.abs(kinks - 0.870).min() < 2e-3


def test_every_default_prior_can_be_read():
    components = [make(norm=norm) for make, _, _ in CASES.values() for norm in ("amplitude", (0.3, 10.0))]
    components += [Absorption(z=None), Constant(), Whim(z=1.0, cosmology=FLAT, metallicity=None)]
    for component in components:
        for name, parameter in component.parameters.items():
            assert not isinstance(distribution_from_text(parameter.prior, name), float)
            assert parameter.help
    assert Band().parameters["log10_flux"].help == "unabsorbed energy flux in the observed band 10 to 1000 keV"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: PowerLaw() + PowerLaw(), r"'photon_index' belongs to both PowerLaw\(.*\) and PowerLaw\(.*label"),
        (lambda: PowerLaw() * Absorption() * Absorption(z=1.0), "'nh' belongs to both Absorption"),
        (lambda: PowerLaw() * BlackBody(), "at most one additive"),
        (lambda: PowerLaw() + Absorption(), "multiplicative"),
        (lambda: Absorption().unabsorbed, "with an additive component"),
        (lambda: PowerLaw(norm="flux"), "norm: expected 'amplitude' or a band"),
        (lambda: PowerLaw(norm=(10.0, 0.3)), "norm: expected two energies"),
        (lambda: PowerLaw(pivot=0.0), "pivot: expected a positive energy"),
        (lambda: PowerLaw().on([0.0, 1.0]), r"energy: expected .* found 0"),
        (lambda: PowerLaw().on(1.0), "energy: expected an array"),
        (lambda: PowerLaw().on([1.0])({"log10_flux": 0.0, "photon_indx": 2.0}), "did you mean 'photon_indx'"),
        (lambda: Absorption(model="tbab"), "unknown model 'tbab'"),
        (lambda: Absorption(z=-1.0), "z: expected"),
        (lambda: Absorption(abundances="wlim"), "wlim"),
        (lambda: Absorption().on([0.01]), "0.03 and 500 keV at the absorber; found 0.01"),
        (lambda: Absorption(z=[1.0, 2.0]).on([1.0]), "a row for each of 2 redshifts"),
        (lambda: Whim(z=11.0, cosmology=FLAT), "z: expected 0 to 10"),
        (lambda: Whim(z=1.0, cosmology="flat"), "expected a Cosmology"),
        (lambda: photons(PowerLaw(), [1.0, 1.0]), "edges: expected"),
        (lambda: photons(PowerLaw(), [0.0, 1.0]), "edges: expected"),
    ],
)
def test_errors_say_what_was_expected_and_found(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
    assert constants.kev_in_erg == pytest.approx(KEV, rel=1e-15)


def test_bins_so_narrow_that_none_is_split():
    edges = np.geomspace(10.0, 11.0, 5)
    values = {"alpha": -0.9, "beta": -2.4, "e_peak": 300.0, "log10_amplitude": 0.0}
    shape = Band(norm="amplitude")
    both = photons(shape * Absorption(), edges), photons(shape, edges)
    found, expected = jax.jit(lambda values: [part(values) for part in both])(values | {"nh": 0.0})
    np.testing.assert_allclose(found, expected, rtol=1e-8)
