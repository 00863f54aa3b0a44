"""Mixtures with a positive latent and a selection: half lines, normalisation, draws of what is integrated out.

Density, derivatives and draws in general: `test_distribution_laws`.
"""

from functools import partial

import jax
import mpmath
import numpy as np
import numpyro
import pytest
from draw_comparison import same_distribution
from monte_carlo import seed
from normal_oracles import draw_mixture_truth, draw_normal, log_mixture
from scipy import integrate, stats

from hbm_jax.distributions import HalfLine, ObservedMixture, ProbitSelection, Quadrant
from hbm_jax.distributions.half_line import log_half_line, truncated
from hbm_jax.distributions.selection import log_detected_fraction

# Where integrals begin: whether SciPy's truncated density counts at 0 itself is a matter of rounding.
ABOVE_ZERO = 1e-11
HALF_LINES = {
    "exponential": ((4.0, None), stats.expon(scale=0.25)),
    "half normal": ((0.0, 1.0), stats.halfnorm()),
    "truncated": ((2.0, 3.0), stats.truncnorm(2 / 3 * np.sqrt(3), np.inf, -2 / 3, 1 / np.sqrt(3))),
    "hardly truncated": ((-9.0, 3.0), stats.truncnorm(-3 * np.sqrt(3), np.inf, 3, 1 / np.sqrt(3))),
}
LINEAR, QUADRATIC = np.array([0.3, -40.0, 25.0]), np.array([2.0, 0.5, 6.0])
ROOM, ALONG = np.array([0.5, -3.0, 2.0]), np.array([0.4, -0.8, 1.5])


@jax.jit
def of_half_line(rate, precision, number):
    half_line = HalfLine(None, rate, precision)
    keys = jax.random.split(jax.random.key(number))
    shares = jax.vmap(lambda margin, slope: log_detected_fraction(margin, jax.numpy.asarray(0.3), half_line, slope))(
        ROOM, ALONG
    )
    conditional = half_line.conditional(keys[1], np.full(4000, 3.0), np.full(4000, 2.0))
    integral = half_line.log_integral(LINEAR, QUADRATIC)
    nodes = None if precision is None else half_line.nodes()
    return integral, nodes, shares, half_line.sample(keys[0], (4000,)), conditional


@pytest.mark.parametrize("name", HALF_LINES)
def test_half_line_is_integrated(name):
    parameters, scipy = HALF_LINES[name]
    integral, quadrature, shares, _, _ = of_half_line(*parameters, 0)
    t = np.linspace(ABOVE_ZERO, 12, 40001)
    log_density = scipy.logpdf(t)
    for found, b, q in zip(integral, LINEAR, QUADRATIC, strict=True):
        log_integrand = log_density + b * t - 0.5 * q * t * t
        top = log_integrand.max()
        expected = top + np.log(integrate.simpson(np.exp(log_integrand - top), x=t))
        np.testing.assert_allclose(found, expected, rtol=1e-8)
    for power in range(4 if quadrature else 0):
        moment = np.exp(quadrature[1]) @ np.asarray(quadrature[0]) ** power
        np.testing.assert_allclose(moment, scipy.moment(power) if power else 1.0, rtol=1e-9)
    density = np.exp(log_density)
    for found, margin, slope in zip(shares, ROOM, ALONG, strict=True):
        expected = integrate.simpson(density * stats.norm.cdf((margin - slope * t) / np.sqrt(0.3)), x=t)
        np.testing.assert_allclose(np.exp(found), expected, rtol=1e-7)


@pytest.mark.parametrize("name", HALF_LINES)
def test_half_line_draws(name, monte_carlo):
    (rate, precision), scipy = HALF_LINES[name]
    *_, drawn, conditional = of_half_line(rate, precision, seed(1))
    monte_carlo.distribution(drawn, scipy.cdf, name="all")
    total = 2.0 + (precision or 0.0)
    mean, std = (3.0 - rate) / total, 1 / np.sqrt(total)
    monte_carlo.distribution(conditional, stats.truncnorm(-mean / std, np.inf, mean, std).cdf, name="conditional")


def test_far_tail_is_finite_and_exponential(monte_carlo):
    @jax.jit
    def far_out(number):
        values, slopes = jax.vmap(lambda b: jax.value_and_grad(log_half_line)(b, 1.0))(np.array([-1e6, -100.0]))
        return values, slopes, truncated(jax.random.key(number), -50.0, 1.0, (4000,))

    values, slopes, far = map(np.asarray, far_out(seed(2)))
    # The integral is 1 / 1e6, to a part in 1e12; of its logarithm 5e11 cancels to a rounding of 1e-4.
    assert values[0] == pytest.approx(-np.log(1e6), abs=1e-3)
    assert np.isfinite(slopes[0])  # 1e-6 is lost in the same rounding
    with mpmath.workdps(40):
        exact = mpmath.log(mpmath.sqrt(mpmath.pi / 2) * mpmath.exp(5000) * mpmath.erfc(100 / mpmath.sqrt(2)))
        mean = 1 / (mpmath.exp(exact)) - 100
    assert values[1] == pytest.approx(float(exact), abs=1e-10)
    assert slopes[1] == pytest.approx(float(mean), rel=1e-6)
    assert (far > 0).all()
    monte_carlo.mean(far, 0.02, expected_error=0.02 / 50**2, independent=True)


def test_a_share_without_a_half_line_is_a_normal_probability():
    found = jax.jit(lambda room: log_detected_fraction(room, 0.3))(ROOM)
    np.testing.assert_allclose(found, stats.norm.logcdf(ROOM / np.sqrt(0.3)), rtol=1e-10)


# Two objects, two components, two observed values.
PARTS = {
    "log_weights": np.log([0.3, 0.7]),
    "loc": np.array([[0.0, 0.2], [1.0, -0.5]]),
    "scale_tril": np.array([[[0.5, 0.0], [0.2, 0.4]], [[0.3, 0.0], [-0.1, 0.8]]]),
    "noise_covariance": np.array([[[0.2, 0.05], [0.05, 0.1]], [[0.05, 0.0], [0.0, 0.3]]]),
    "offset": np.array([[0.1, 0.0], [0.0, -0.1]]),
}
DIRECTION = np.array([0.5, -1.0])
SECOND_DIRECTION, SECOND_RATE = np.array([0.8, 0.6]), 1.5
SELECTION = {"limit": np.array(0.4), "width": np.array(0.3), "slope": np.array([0.2, 1.0])}


def mixture(name=None, selected=False):
    half_line = None if name is None else HalfLine(DIRECTION, *HALF_LINES[name.removeprefix("two, ")][0])
    half_line = Quadrant(half_line, HalfLine(SECOND_DIRECTION, SECOND_RATE)) if "two" in (name or "") else half_line
    selection = ProbitSelection(**{key: jax.numpy.asarray(v) for key, v in SELECTION.items()}) if selected else None
    return ObservedMixture(**PARTS, half_line=half_line, selection=selection)


def reference(name, object_number, selected=False):
    """The same as the independent densities and draws take it."""
    name = None if name == "none" else name
    p = dict(PARTS, offset=PARTS["offset"][object_number], noise_covariance=PARTS["noise_covariance"][object_number])
    if name is not None:
        rate, precision = HALF_LINES[name.removeprefix("two, ")][0]
        p |= {"direction": np.tile(DIRECTION, (2, 1)), "rate": np.full(2, rate)}
        p |= {} if precision is None else {"precision": np.full(2, precision)}
        if "two" in name:
            p |= {"second_direction": np.tile(SECOND_DIRECTION, (2, 1)), "second_rate": np.full(2, SECOND_RATE)}
    return p | (SELECTION if selected else {})


def test_a_selection_without_width_is_a_step():
    """The detected fraction is a normal probability, and values beyond the limit have no density."""
    slope, limit = SELECTION["slope"], SELECTION["limit"]
    step = ObservedMixture(**PARTS, selection=ProbitSelection(limit, None, slope))
    fraction = np.zeros(2)
    for k, weight in enumerate(np.exp(PARTS["log_weights"])):
        mean = PARTS["loc"][k] + PARTS["offset"]
        covariance = PARTS["scale_tril"][k] @ PARTS["scale_tril"][k].T + PARTS["noise_covariance"]
        fraction += weight * stats.norm.cdf((limit - mean @ slope) / np.sqrt(slope @ covariance @ slope))
    points = np.array([[[0.0, 0.3]], [[0.0, 0.5]]])  # below and above the limit
    log_detected, (below, above), (plain, _) = jax.jit(
        lambda: (step.log_detected, step.log_prob(points), ObservedMixture(**PARTS).log_prob(points))
    )()
    np.testing.assert_allclose(log_detected, np.log(fraction), rtol=1e-12)
    np.testing.assert_allclose(below, plain - np.log(fraction))
    assert (np.asarray(above) == -np.inf).all()


CASES = [
    (None, False),
    ("half normal", False),
    ("truncated", True),
    ("two, exponential", True),
    *(pytest.param(name, True, marks=pytest.mark.long) for name in (None, "exponential", "two, truncated")),
]
X = np.linspace(-7, 9, 129)
GRID = np.stack(np.meshgrid(X, X, indexing="ij"), axis=-1)


@partial(jax.jit, static_argnums=(1, 2))
def on_a_grid(grid, name, selected):
    """Densities of both objects."""
    return mixture(name, selected).log_prob(grid[:, :, None, :])


@pytest.mark.parametrize(("name", "selected"), CASES)
def test_density_is_normalised_and_that_of_the_reference(name, selected):
    log_density = np.asarray(on_a_grid(GRID, name, selected))
    np.testing.assert_allclose(np.exp(log_density).sum(axis=(0, 1)) * (X[1] - X[0]) ** 2, 1.0, rtol=1e-4)
    for n in range(2):
        p = reference(name, n, selected)
        for i, j in [(50, 60), (60, 50), (66, 55)]:
            assert log_density[i, j, n] == pytest.approx(log_mixture(p, GRID[i, j]), abs=1e-7)


NUM = 4000


@partial(jax.jit, static_argnums=2)
def drawn_back(number, values, name):
    """Components and true values given observed ones, and the probability of components."""
    keys = jax.random.split(jax.random.key(number), NUM)
    d = mixture(None if name == "none" else name)
    which, truth = jax.vmap(d.conditional_sample)(keys, values)
    return which, truth, jax.vmap(d.probabilities)(values), d.sample(keys[0], (NUM,)), d.log_detected


DRAWN_BACK = pytest.mark.parametrize(
    "name",
    [*(pytest.param(n, marks=pytest.mark.long) for n in ("none", "exponential")), "half normal", "two, exponential"],
)


@DRAWN_BACK
def test_what_is_integrated_out_is_drawn_back(name, monte_carlo):
    """Truth and observation drawn forward by NumPy, then the truth drawn back: both have one distribution."""

    def forward(rng, name, n, num):
        p = reference(name, n)
        which, truth = draw_mixture_truth(rng, p, num)
        return which, truth, p["offset"] + truth + draw_normal(rng, np.zeros(2), p["noise_covariance"], num)

    rng = np.random.default_rng(seed(4))
    values = np.stack([forward(rng, name, n, NUM)[2] for n in range(2)], axis=1)
    which, truth, probabilities, drawn, log_detected = map(np.asarray, drawn_back(seed(5), values, name))
    assert drawn.shape == (NUM, 2, 2)
    np.testing.assert_array_equal(log_detected, 0.0)
    for n in range(2):
        p = reference(name, n)
        other_which, other_truth, other_values = forward(rng, name, n, 20_000)
        same_distribution(monte_carlo, drawn[:, n], other_values, f"data {n}")
        for component in range(2):
            monte_carlo.share(
                which[:, n] == component, np.exp(p["log_weights"][component]), independent=True, name="component"
            )
            found, expected = which[:, n] == component, other_which == component
            columns = np.column_stack([truth[:, n], values[:, n]])[found]
            others = np.column_stack([other_truth, other_values])[expected]
            same_distribution(monte_carlo, columns, others, f"truth of object {n}, component {component}")
        for k in range(3):
            each = [p["log_weights"][c] + log_mixture(_only(p, c), values[k, n]) for c in range(2)]
            expected = np.exp(each - np.logaddexp(*each))
            np.testing.assert_allclose(probabilities[k, n], expected, rtol=1e-7)


def _only(p, component):
    """The same with one component."""
    names = ("loc", "scale_tril", "direction", "rate", "precision", "second_direction", "second_rate")
    return p | {name: p[name][component : component + 1] for name in names if name in p} | {"log_weights": np.zeros(1)}


@partial(jax.jit, static_argnums=1)
def detected_draws(number, name):
    """Draws of detected objects."""
    return mixture(None if name == "none" else name, True).sample(jax.random.key(number), (NUM,))


@pytest.mark.parametrize(
    "name",
    [*(pytest.param(n, marks=pytest.mark.long) for n in ("none", "exponential", "half normal")), "two, exponential"],
)
def test_detected_objects_are_drawn_as_by_rejection(name, monte_carlo):
    rng = np.random.default_rng(seed(6))
    drawn = np.asarray(detected_draws(seed(7), name))
    for n in range(2):
        p = reference(name, n)
        truth = draw_mixture_truth(rng, p, 60_000)[1]
        values = p["offset"] + truth + draw_normal(rng, np.zeros(2), p["noise_covariance"], len(truth))
        chance = stats.norm.cdf((SELECTION["limit"] - values @ SELECTION["slope"]) / SELECTION["width"])
        assert 0.05 < chance.mean() < 0.95
        same_distribution(monte_carlo, drawn[:, n], values[rng.uniform(size=len(values)) < chance], f"data {n}")


@jax.jit
def faint(limit, number):
    """Draws of unit normal objects with unit errors, of which those below a limit are detected."""
    plain = (np.zeros(1), np.zeros((1, 1)), np.ones((1, 1, 1)), np.ones((1, 1, 1)))
    unseen = ProbitSelection(limit, jax.numpy.array(0.1), jax.numpy.ones(1))
    return ObservedMixture(*plain, selection=unseen).sample(jax.random.key(number), (NUM,))[..., 0, 0]


def test_rarely_detected_objects_are_drawn_and_those_that_cannot_be_are_nan(monte_carlo):
    drawn = np.asarray(faint(-8.0, seed(8)))
    grid = np.linspace(-20.0, 0.0, 20_001)
    density = stats.norm.pdf(grid, scale=np.sqrt(2.0)) * stats.norm.cdf((-8.0 - grid) / 0.1)
    monte_carlo.mean(drawn, np.average(grid, weights=density), independent=True, name="value")
    assert np.isnan(faint(-40.0, 0)).all()


def test_a_component_may_have_no_weight():
    """NumPyro's validation lets it pass, and what is no weight not."""
    arguments = np.array([[0.0, 1.0], [3.0, -1.0]]), np.stack([np.eye(2)] * 2), np.eye(2)
    value = np.array([0.3, 0.2])
    with numpyro.validation_enabled():
        found = ObservedMixture(np.array([0.0, -np.inf]), *arguments).log_prob(value)
        for wrong in (np.nan, np.inf):
            with pytest.raises(ValueError, match="got invalid log_weights parameter"):
                ObservedMixture(np.array([0.0, wrong]), *arguments)
    expected = stats.multivariate_normal([0.0, 1.0], 2.0 * np.eye(2)).logpdf(value)
    assert float(found) == pytest.approx(expected, rel=1e-12)
