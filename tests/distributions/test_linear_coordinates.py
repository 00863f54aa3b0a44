"""Linear coordinates of coefficients with an improper prior; proper ones are in `test_distribution_laws`."""

import jax
import numpy as np
import numpyro.distributions as dist
from monte_carlo import seed
from scipy import stats

from hbm_jax.distributions.linear.linear_coordinates import LinearCoordinates, Piece

MATRIX, LOC = np.array([[2.0, 0.3, 0.0], [0.0, 1.5, 0.4], [0.2, 0.0, 0.7]]), np.array([1.0, -1.0, 0.5])
WIDTH = np.array([3.0, 0.5])


def test_an_improper_prior_counts_for_nothing_and_is_drawn_widely(monte_carlo):
    @jax.jit
    def everything(z, number):
        pieces = [Piece(np.array([0, 2]), None, WIDTH), Piece(np.array([1]), dist.Normal(np.array([0.3]), 1.2))]
        d = LinearCoordinates(pieces, MATRIX, LOC)
        drawn = d.sample(jax.random.key(number), (4000,))
        return d.log_prob(z), d.coefficients(z), drawn

    z = np.random.default_rng(0).normal(size=(5, 3))
    log_prob, coefficients, drawn = map(np.asarray, everything(z, seed(1)))
    c = LOC + z @ MATRIX.T
    np.testing.assert_allclose(coefficients, c, rtol=1e-12, atol=1e-13)
    expected = stats.norm(0.3, 1.2).logpdf(c[:, 1]) + np.log(np.linalg.det(MATRIX))
    np.testing.assert_allclose(log_prob, expected, rtol=1e-12)
    drawn = LOC + drawn @ MATRIX.T
    for column, width in zip((0, 2), WIDTH, strict=True):
        monte_carlo.distribution(drawn[:, column], stats.uniform(-2 * width, 4 * width).cdf, name=f"{column}")
    monte_carlo.distribution(drawn[:, 1], stats.norm(0.3, 1.2).cdf, name="normal")
