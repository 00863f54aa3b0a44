"""Common offsets integrated out, against one dense normal distribution by SciPy and NumPy."""

import re

import jax
import numpy as np
import pytest
from monte_carlo import seed
from scipy import stats

from hbm_jax.distributions.normal import block_arrow, offset_groups
from hbm_jax.distributions.normal.block_arrow import inverse_by_halves, solve_block_arrow
from hbm_jax.distributions.normal.common_offsets import OffsetGaussian, log_density
from hbm_jax.distributions.normal.linear_gaussian import LinearGaussian
from hbm_jax.distributions.normal.offset_groups import bind_offsets

NUM, OFFSETS = 14, 9
RNG = np.random.default_rng(5)


def made_up():
    """Offsets of some objects each, two of them linearly dependent, one of a single component, one of no effect."""
    sensitivity = RNG.normal(0.0, 0.4, (NUM, OFFSETS, 3))
    sensitivity[:6, :4] = sensitivity[6:, 4:8] = sensitivity[12:] = 0.0
    sensitivity[:, 3] = 2.0 * sensitivity[:, 2]
    sensitivity[:, 7, :2] = sensitivity[:, 8] = 0.0
    factors = RNG.normal(size=(NUM, 3, 3))
    noise = 0.1 * factors @ factors.transpose(0, 2, 1) + 0.2 * np.eye(3)
    loc, scale = RNG.normal(size=(NUM, 3)), np.array([[0.6, 0.0, 0.0], [0.0, 0.4, 0.0], [0.3, -0.5, 0.2]])
    return sensitivity, loc, scale, noise, RNG.normal(size=(NUM, 3))


SENSITIVITY, LOC, SCALE, NOISE, VALUE = made_up()
COVARIANCE = NOISE + SCALE @ SCALE.T


def dense(covariance=COVARIANCE):
    """Covariance of all values, (3 N, 3 N)."""
    rows = SENSITIVITY.transpose(0, 2, 1).reshape(-1, OFFSETS)
    total = rows @ rows.T
    for n in range(NUM):
        total[3 * n : 3 * n + 3, 3 * n : 3 * n + 3] += covariance[n]
    return total


def distribution(offsets):
    return OffsetGaussian(LinearGaussian(tuple(LOC.T), tuple(map(tuple, SCALE)), NOISE), offsets)


@jax.jit
def evaluated(value, offsets):
    residual = [value[:, i] - LOC[:, i] for i in range(3)]
    covariance = [[COVARIANCE[:, i, j] for j in range(i + 1)] for i in range(3)]
    slopes = jax.grad(log_density, argnums=(0, 1))(residual, covariance, offsets)
    fn = distribution(offsets)
    return fn.log_prob(value), slopes, fn.log_prob_given_others(value)


@pytest.fixture(
    scope="module",
    params=["grouped", "offsets of the last component", pytest.param("not grouped", marks=pytest.mark.long)],
)
def found(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offset_groups, "_OVERHEAD", 7000)  # several groups of these few objects
        patch.setattr(offset_groups, "_FEW", 1 if request.param == "offsets of the last component" else 8)
        patch.setattr(block_arrow, "_OVERHEAD", 1)
        patch.setattr(block_arrow, "_BLOCK", 4)
        offsets = bind_offsets(SENSITIVITY, request.param != "not grouped")
    assert offsets.basis.shape == (OFFSETS, OFFSETS if request.param == "not grouped" else 7)
    assert len(offsets.last) == (1 if request.param == "offsets of the last component" else 0)
    if request.param == "grouped":
        assert max(len(batch.objects) for batch in offsets.groups) > 1
    assert len(offsets.blocks) == (0 if request.param == "not grouped" else 2)
    return evaluated(VALUE, offsets)


def test_density_and_gradient_are_those_of_a_dense_normal_distribution(found):
    residual, covariance = (VALUE - LOC).ravel(), dense()
    expected = stats.multivariate_normal(np.zeros(3 * NUM), covariance).logpdf(residual)
    assert float(found[0]) == pytest.approx(expected, rel=1e-12)
    inverse = np.linalg.inv(covariance)
    g = inverse @ residual
    slopes, slopes_of_covariance = found[1]
    np.testing.assert_allclose(np.stack(slopes, axis=-1).ravel(), -g, rtol=1e-10, atol=1e-12)
    for i in range(3):
        for j in range(i + 1):
            exact = (g[i::3] * g[j::3] - inverse[np.arange(i, 3 * NUM, 3), np.arange(j, 3 * NUM, 3)]) / (1 + (i == j))
            np.testing.assert_allclose(slopes_of_covariance[i][j], exact, rtol=1e-10, atol=1e-11)


def test_each_object_given_all_others(found):
    covariance, mean = dense(), LOC.ravel()
    for n in range(NUM):
        own = np.arange(3 * n, 3 * n + 3)
        rest = np.setdiff1d(np.arange(3 * NUM), own)
        weights = np.linalg.solve(covariance[np.ix_(rest, rest)], covariance[np.ix_(rest, own)])
        loc = mean[own] + (VALUE.ravel() - mean)[rest] @ weights
        left = covariance[np.ix_(own, own)] - covariance[np.ix_(own, rest)] @ weights
        expected = stats.multivariate_normal(loc, left).logpdf(VALUE[n])
        assert found[2][n] == pytest.approx(expected, rel=1e-10)


@pytest.mark.long
def test_few_objects_with_many_offsets_and_offsets_without_effect(monkeypatch):
    """Offsets of different objects, more than the data of these, are combined to as many as there are data."""
    monkeypatch.setattr(block_arrow, "_OVERHEAD", 1)
    monkeypatch.setattr(block_arrow, "_BLOCK", 16)
    sensitivity = np.zeros((NUM, 75, 3))
    for first, objects in ((0, slice(0, 6)), (30, slice(6, 12))):
        drawn = RNG.normal(0.0, 0.3, (6, 30, 3)) * (RNG.uniform(size=(6, 30, 1)) < 0.5)
        sensitivity[objects, first : first + 30] = drawn
    sensitivity[:, 60, 0] = 0.1
    sensitivity[:, 61:, 2] = RNG.normal(0.0, 0.3, (NUM, 14))
    offsets = bind_offsets(sensitivity)
    rows = sensitivity.transpose(0, 2, 1).reshape(-1, 75)
    assert np.linalg.matrix_rank(rows) <= offsets.basis.shape[1] < 70  # 75 without combinations
    assert len(offsets.last) == 14
    np.testing.assert_allclose(offsets.basis.T @ offsets.basis, np.eye(offsets.basis.shape[1]), atol=1e-12)
    covariance = rows @ rows.T + dense() - dense(0.0 * COVARIANCE)
    expected = stats.multivariate_normal(np.zeros(3 * NUM), covariance).logpdf((VALUE - LOC).ravel())
    assert float(distribution(offsets).log_prob(VALUE)) == pytest.approx(expected, rel=1e-12)
    values = RNG.normal(size=75)
    np.testing.assert_allclose(offsets.shift(values, NUM), (rows @ values).reshape(NUM, 3), atol=1e-12)
    nothing = bind_offsets(np.zeros((NUM, 4, 3)))
    assert nothing.basis.shape == (4, 0)
    alone = distribution(nothing).objects.log_prob(VALUE).sum()
    assert float(distribution(nothing).log_prob(VALUE)) == pytest.approx(float(alone), rel=1e-12)
    np.testing.assert_array_equal(nothing.shift(np.ones(4), NUM), np.zeros((NUM, 3)))


@pytest.mark.long
def test_draws(monte_carlo):
    """Offsets given the data, and data with offsets, by whitening with the dense covariances."""

    @jax.jit
    def draw(number):
        fn, keys = distribution(bind_offsets(SENSITIVITY)), jax.random.split(jax.random.key(number))
        offsets = jax.vmap(lambda key: fn.conditional_offsets(key, VALUE))(jax.random.split(keys[0], 20_000))
        return offsets, fn.sample(keys[1], (20_000,))

    offsets, values = map(np.asarray, draw(seed(3)))
    rows = SENSITIVITY.transpose(0, 2, 1).reshape(-1, OFFSETS)
    gain = np.linalg.solve(dense(), rows).T
    left = np.linalg.inv(np.linalg.cholesky(np.eye(OFFSETS) - gain @ rows))
    whitened = [
        (offsets - gain @ (VALUE - LOC).ravel()) @ left.T,
        np.linalg.solve(np.linalg.cholesky(dense()), (values - LOC).reshape(-1, 3 * NUM).T),
    ]
    for name, drawn in zip(("offsets", "values"), whitened, strict=True):
        monte_carlo.distribution(drawn.ravel(), stats.norm.cdf, name=name)


def test_an_inverse_by_blocks():
    for size in (1, 200):
        factor = RNG.normal(size=(size, size + 5))
        matrix = factor @ factor.T + np.eye(size)
        inverse, log_det = jax.jit(inverse_by_halves)(matrix)
        np.testing.assert_allclose(inverse, np.linalg.inv(matrix), rtol=1e-9, atol=1e-12)
        assert float(log_det) == pytest.approx(np.linalg.slogdet(matrix)[1], rel=1e-12)


def test_matrices_of_a_batch_are_factorised_one_after_the_other():
    """Batched factorisations that run at once wait for each other for ever in jaxlib 0.10: none has a batch."""
    factors = np.random.default_rng(1).normal(size=(3, 70, 80))
    matrices = factors @ factors.swapaxes(1, 2)
    inverses, log_dets = jax.jit(jax.vmap(inverse_by_halves))(matrices)
    np.testing.assert_allclose(inverses, np.linalg.inv(matrices), rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(log_dets, np.linalg.slogdet(matrices)[1], rtol=1e-12)
    program = str(jax.make_jaxpr(jax.vmap(inverse_by_halves))(matrices))
    shapes = set(re.findall(r":f64\[([\d,]*)\] = cholesky", program))
    assert shapes
    assert all(shape.count(",") == 1 for shape in shapes)


def test_blocks_of_rows_are_eliminated(monkeypatch):
    """Rows of four groups that share a few others: the elements of the inverse between coupled rows are exact."""
    monkeypatch.setattr(block_arrow, "_OVERHEAD", 100)
    loadings = np.zeros((400, 200))
    for group in range(4):
        members = np.concatenate([np.arange(40 * group, 40 * group + 40), 160 + np.arange(10 * group, 10 * group + 10)])
        loadings[100 * group : 100 * group + 100, members] = RNG.normal(size=(100, 50))
    loadings[:, 199] = RNG.normal(size=400)
    shuffled = loadings[:, RNG.permutation(200)]
    order, blocks = block_arrow.block_arrow((shuffled != 0.0).T.astype(float) @ (shuffled != 0.0) > 0.0)
    assert sorted(order) == list(range(200))
    assert len(blocks) > 2
    matrix, right = shuffled[:, order].T @ shuffled[:, order] + np.eye(200), RNG.normal(size=200)
    solution = jax.jit(solve_block_arrow)(matrix, right, blocks)
    coupled, inverse = matrix != 0.0, np.linalg.inv(matrix)
    np.testing.assert_allclose(np.asarray(solution.inverse)[coupled], inverse[coupled], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(solution.x, inverse @ right, rtol=1e-9, atol=1e-12)
    assert float(solution.log_det) == pytest.approx(np.linalg.slogdet(matrix)[1], rel=1e-12)
