"""Values of groups with the true value integrated out: against SciPy's normal of all values of a group at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from hbm_jax.distributions import GroupedNormal


def case(components, seed=0):
    rng = np.random.default_rng(seed)
    used = np.array([[True, True, True], [True, False, False], [True, True, False]])
    root = rng.normal(size=(3, 3, components, components))
    noise = root @ np.swapaxes(root, -1, -2) + 0.3 * np.eye(components)
    loc, tril = rng.normal(size=components), np.tril(rng.normal(size=(components, components)))
    tril[np.diag_indices(components)] = np.abs(np.diagonal(tril)) + 0.2
    return loc, tril, noise, used, rng.normal(size=(3, 3, components)) * used[..., None]


def of_all_values(loc, tril, noise, used, values, k):
    """Normal of all values of group k at once."""
    num, size = int(used[k].sum()), len(loc)
    cov = np.kron(np.ones((num, num)), tril @ tril.T)
    for m, place in enumerate(np.flatnonzero(used[k])):
        cov[m * size : (m + 1) * size, m * size : (m + 1) * size] += noise[k, place]
    return np.tile(loc, num), cov, values[k, used[k]].ravel()


@pytest.mark.parametrize("components", [1, 2, 3])
@pytest.mark.parametrize("known", [True, False])
def test_log_density_is_that_of_a_normal_of_all_values(components, known):
    loc, tril, noise, used, values = case(components)
    found = GroupedNormal(loc, tril, noise if known else jnp.asarray(noise), used).log_prob(jnp.asarray(values))
    for k in range(3):
        mean, cov, given = of_all_values(loc, tril, noise, used, values, k)
        assert float(found[k]) == pytest.approx(stats.multivariate_normal(mean, cov).logpdf(given), rel=1e-11)
    # A true value that is known: independent values.
    known_true = GroupedNormal(loc, 0.0 * tril, noise, used).log_prob(jnp.asarray(values))
    for k in range(3):
        each = [stats.multivariate_normal(loc, noise[k, m]).logpdf(values[k, m]) for m in np.flatnonzero(used[k])]
        assert float(known_true[k]) == pytest.approx(sum(each), rel=1e-11)


def test_it_is_the_integral_over_the_true_value():
    loc, tril, noise, used, values = case(1, seed=3)
    found = GroupedNormal(loc, tril, noise, used).log_prob(jnp.asarray(values))
    for k in range(3):

        def density(theta, k=k):
            given = [
                stats.norm(theta, np.sqrt(noise[k, m, 0, 0])).pdf(values[k, m, 0]) for m in np.flatnonzero(used[k])
            ]
            return stats.norm(loc[0], tril[0, 0]).pdf(theta) * np.prod(given)

        integral = integrate.quad(density, -40.0, 40.0, points=[values[k, 0, 0]], epsabs=0.0, epsrel=1e-10, limit=300)[
            0
        ]
        assert float(found[k]) == pytest.approx(np.log(integral), abs=1e-8)


def test_true_values_are_drawn_back_from_their_conditional():
    loc, tril, noise, used, values = case(2, seed=4)
    conditional = GroupedNormal(loc, tril, noise, used).conditional(jnp.asarray(values))
    for k in range(3):
        precision = np.linalg.inv(tril @ tril.T)
        weighted = precision @ loc
        for m in np.flatnonzero(used[k]):
            weighted = weighted + np.linalg.solve(noise[k, m], values[k, m])
            precision = precision + np.linalg.inv(noise[k, m])
        np.testing.assert_allclose(conditional.mean[k], np.linalg.solve(precision, weighted), rtol=1e-9)
        np.testing.assert_allclose(conditional.covariance_matrix[k], np.linalg.inv(precision), rtol=1e-9, atol=1e-12)


def test_draws_have_the_moments_of_the_density():
    loc, tril, noise, used, values = case(2, seed=5)
    drawn = np.asarray(GroupedNormal(loc, tril, noise, used).sample(jax.random.key(1), (40_000,)))
    assert (drawn[:, ~used] == 0).all()
    for k in range(3):
        mean, cov, _ = of_all_values(loc, tril, noise, used, values, k)
        flat = drawn[:, k, used[k]].reshape(len(drawn), -1)
        assert (np.abs(flat.mean(0) - mean) < 4.5 * np.sqrt(np.diag(cov) / len(drawn))).all()
        np.testing.assert_allclose(np.cov(flat.T), cov, atol=0.05 * np.diag(cov).max())


def test_gradients_where_the_population_has_no_spread():
    loc, _, noise, used, values = case(1, seed=6)

    def density(tau):
        return GroupedNormal(jnp.asarray(loc), tau * jnp.eye(1), noise, used).log_prob(jnp.asarray(values)).sum()

    # Even in tau: the slope at 0 is 0.
    assert float(jax.grad(density)(0.0)) == pytest.approx(0.0, abs=1e-12)
    step = 1e-5
    slope = (density(0.7 + step) - density(0.7 - step)) / (2 * step)
    assert float(jax.grad(density)(0.7)) == pytest.approx(float(slope), rel=1e-6)
