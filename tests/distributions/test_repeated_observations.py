"""Several measurements of one object: joint densities by dense normals, and detection in all of them by SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from monte_carlo import seed
from scipy import stats

from hbm_jax.distributions import HalfLine, LinearGaussian, ObservedMixture, ProbitSelection
from hbm_jax.distributions.normal.repeated_observations import RepeatedObservations, bind_repeats
from hbm_jax.distributions.normal.repeated_offsets import RepeatedOffsetGaussian, bind_repeated

INDEX = np.array([0, 1, 0, 2, 2, 2, 3])  # two, one, three and one measurements


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(3)
    a = rng.normal(size=(7, 3, 3)) * np.array([0.3, 0.05, 0.06])[:, None]
    covariance = a @ a.transpose(0, 2, 1) + np.diag([0.02, 4e-4, 1e-3])
    common = np.array([np.diag([0.0, 0.0, v]) for v in (0.003, 0.002, 0.004, 0.001)])
    loc = np.array([0.1, 0.0, 20.0]) + np.array([0, 0, 1])[None] * np.array([0.0, 0.5, 1.0, 1.5])[:, None]
    scale = np.array([[1.0, 0, 0], [0, 0.1, 0], [-0.14, 0.31, 0.12]])
    value = loc[INDEX] + rng.normal(size=(7, 3)) * [0.5, 0.1, 0.3]
    return rng, covariance, common, loc, scale, value


def joint(rows, covariance, common, scale):
    """Covariance of the measurements of one object."""
    truth = scale @ scale.T + common
    return np.kron(np.ones((len(rows), len(rows))), truth) + _block_diagonal(covariance[rows])


def _block_diagonal(blocks):
    out = np.zeros((3 * len(blocks),) * 2)
    for k, block in enumerate(blocks):
        out[3 * k : 3 * k + 3, 3 * k : 3 * k + 3] = block
    return out


def test_density_is_the_joint_normal(drawn):
    rng, covariance, common, loc, scale, value = drawn
    repeats = bind_repeats(INDEX, covariance)
    shift = 0.1 * rng.normal(size=(7, 3))

    @jax.jit
    def log_prob(value):
        objects = LinearGaussian(loc, scale, repeats.combined + common)
        return RepeatedObservations(objects, repeats, shift=shift).log_prob(value)

    with jax.enable_x64(True):
        found = log_prob(value)
    expected = np.zeros(7)
    for index in range(4):
        rows = np.flatnonzero(index == INDEX)
        normal = stats.multivariate_normal(
            np.tile(loc[index], len(rows)), joint(rows, covariance, common[index], scale)
        )
        expected[rows[0]] = normal.logpdf((value - shift)[rows].ravel())
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_offsets_are_integrated_out(drawn, monte_carlo):
    rng, covariance, common, loc, scale, value = drawn
    sensitivity = 0.1 * rng.normal(size=(7, 4, 3))
    sensitivity[:, 3] = 0.0
    sensitivity[INDEX == 1, 3] = 0.2  # an offset on which no difference depends
    repeats = bind_repeats(INDEX, covariance)
    rows = sensitivity.transpose(0, 2, 1).reshape(21, 4)
    total = rows @ rows.T
    for index in range(4):
        members = np.flatnonzero(index == INDEX)
        places = (3 * members[:, None] + np.arange(3)).ravel()
        total[np.ix_(places, places)] += joint(members, covariance, common[index], scale)
    residual = (value - loc[INDEX]).ravel()
    offsets = bind_repeated(sensitivity, repeats)

    @jax.jit
    def both(value, keys):
        objects = LinearGaussian(loc, scale, repeats.combined + common)
        distribution = RepeatedOffsetGaussian(objects, repeats, offsets)
        return distribution.log_prob(value), jax.vmap(lambda key: distribution.conditional_offsets(key, value))(keys)

    with jax.enable_x64(True):
        found, draws = both(value, jax.random.split(jax.random.key(seed(1)), 10_000))
    np.testing.assert_allclose(found, stats.multivariate_normal(np.zeros(21), total).logpdf(residual), rtol=1e-10)
    mean = rows.T @ np.linalg.solve(total, residual)
    posterior = np.eye(4) - rows.T @ np.linalg.solve(total, rows)
    for k in range(4):
        monte_carlo.mean(np.asarray(draws)[:, k], mean[k], independent=True, name=f"offset {k}")
        monte_carlo.std(np.asarray(draws)[:, k], np.sqrt(posterior[k, k]), independent=True, name=f"offset {k}")


def mixture_of(drawn, half_line=None):
    _, covariance, common, loc, scale, _ = drawn
    repeats = bind_repeats(INDEX, covariance)
    log_weights = np.log(np.array([[0.8, 0.2]])) * np.ones((4, 1))
    wide = np.array(scale)
    wide[2, 2] = 0.7  # a second component, of outliers
    scales = tuple(tuple(np.array([[scale[i, k], wide[i, k]]]) for k in range(3)) for i in range(3))
    locs = tuple(np.repeat(loc[:, [i]], 2, axis=1) for i in range(3))
    return ObservedMixture(log_weights, locs, scales, repeats.combined + common, half_line=half_line), repeats, wide


SELECTION = ProbitSelection(
    np.array([20.2, 20.0, 19.8, 21.3, 21.0, 21.5, 21.0]),
    np.array([0.2, 0.3, 0.25, 0.3, 0.2, 0.5, 0.4]),
    np.stack([np.zeros(7), np.array([-1.5, 0.2, 0.4, -1.0, 0.3, 0.1, 0.0]), np.ones(7)], axis=-1),
)


@pytest.mark.long
def test_probability_that_all_measurements_are_detected(drawn):
    rng, covariance, common, loc, scale, value = drawn
    shift = 0.05 * rng.normal(size=(7, 3))
    with jax.enable_x64(True):
        objects, repeats, wide = mixture_of(drawn)
        distribution = RepeatedObservations(objects, repeats, shift=shift, selection=SELECTION)
        found, density = distribution.log_detected, distribution.log_prob(value)
        plain = RepeatedObservations(objects, repeats, shift=shift).log_prob(value)
    for index in range(4):
        rows, expected = np.flatnonzero(index == INDEX), 0.0
        for weight, factor in ((0.8, scale), (0.2, wide)):
            slope = _block_diagonal_rows(SELECTION.slope[rows])
            total = slope @ joint(rows, covariance, common[index], factor) @ slope.T
            total += np.diag(SELECTION.width[rows] ** 2)
            margin = SELECTION.limit[rows] - np.sum(SELECTION.slope[rows] * (loc[index] + shift[rows]), axis=1)
            normal = stats.multivariate_normal(np.zeros(len(rows)), total, abseps=1e-8, maxpts=10**6, seed=1)
            expected += weight * normal.cdf(margin)
        assert float(found[index]) == pytest.approx(np.log(expected), abs=2e-6)
    own = stats.norm.logcdf((SELECTION.limit - np.sum(SELECTION.slope * value, axis=1)) / SELECTION.width)
    np.testing.assert_allclose(np.sum(density - plain), np.sum(own) - np.sum(found), rtol=1e-10)


def _block_diagonal_rows(slopes):
    out = np.zeros((len(slopes), 3 * len(slopes)))
    for k, slope in enumerate(slopes):
        out[k, 3 * k : 3 * k + 3] = slope
    return out


@pytest.mark.long
def test_detection_with_an_exponential_latent_and_draws(drawn, monte_carlo):
    """The closed form for two equal measurements of no error, and simulated measurements against the probability."""
    _, covariance, common, loc, scale, _ = drawn
    tail = HalfLine((np.zeros((1, 2)), np.ones((1, 2)), np.full((1, 2), 4.0)), np.full((1, 2), 10.0))
    with jax.enable_x64(True):
        objects, repeats, wide = mixture_of(drawn, tail)
        distribution = RepeatedObservations(objects, repeats, selection=SELECTION)
        found = distribution.log_detected
        rng = np.random.default_rng(1)
        num = 200_000
        factor = np.where(rng.uniform(size=num)[:, None, None] < 0.8, scale, wide)
        truth = np.einsum("nij,nj->ni", factor, rng.normal(size=(num, 3)))
        truth += rng.exponential(0.1, num)[:, None] * [0, 1, 4.0]
        for index in (0, 2):
            rows = np.flatnonzero(index == INDEX)
            common_error = rng.normal(size=(num, 1)) * np.sqrt(np.diagonal(common[index]))
            probability = np.ones(num)
            for row in rows:
                error = rng.multivariate_normal(np.zeros(3), covariance[row], num)
                margin = SELECTION.limit[row] - (loc[index] + truth + common_error + error) @ SELECTION.slope[row]
                probability *= stats.norm.cdf(margin / SELECTION.width[row])
            error = np.std(probability) / np.sqrt(num)
            monte_carlo.within(np.exp(float(found[index])), probability.mean(), error, name=f"object {index}")
        draws = jax.jit(lambda key: distribution.sample(key, (500,)))(jax.random.key(1))
        gradient = jax.grad(
            lambda limit: jnp.sum(
                RepeatedObservations(objects, repeats, selection=SELECTION._replace(limit=limit)).log_detected
            )
        )(jnp.asarray(SELECTION.limit))
    assert draws.shape == (500, 7, 3)
    assert ((np.asarray(gradient) > 0.0) & (np.asarray(gradient) < np.inf)).all()
    # Detected measurements of one object share its truth: their magnitudes are correlated, those of others are not.
    correlation = np.corrcoef(np.asarray(draws)[:, :, 2].T)
    assert correlation[0, 2] > 0.5
    assert abs(correlation[0, 1]) < 0.25
