"""Log densities in the parameters that have priors, and likelihoods compared with plain integrals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import distributions as dist
from numpyro.infer.util import log_density

from hbm_jax.distributions import CoordinatePriors
from hbm_jax.inference.likelihood.function import StatedParameters
from hbm_jax.models.expansion import named
from hbm_jax.models.supernovae.degeneracy import supernova_degeneracy


def coordinates_of(model, ridge=supernova_degeneracy):
    """Return the coordinates of the free parameters of a model's expansion history; None if there are none."""
    values = {name: model.all_priors[name] for name in named(model.cosmology).parameters}
    free = {name: prior for name, prior in values.items() if isinstance(prior, dist.Distribution)}
    fixed = {name: value for name, value in values.items() if name not in free}
    return CoordinatePriors(free, *(ridge(free, fixed) if ridge else ({}, {}))) if free else None


class LogDensity:
    """Log density of a model in its parameters, compiled once for all points; Jacobians of coordinates by autodiff.

    Called with the value of every free parameter, and with latents by the names of their sites. With `data=None` the
    data are an argument of the compiled function.
    """

    def __init__(self, model, data=None, ridge=supernova_degeneracy):
        self.data = data

        def of(data, parameters):
            return self._sum(data, model, ridge, parameters)

        self._density, self._both = jax.jit(of), jax.jit(jax.value_and_grad(of, argnums=1))

    def _sum(self, data, model, ridge, parameters):
        block = coordinates_of(model, ridge)
        names = () if block is None else tuple(block.priors)
        sites = {name: value for name, value in parameters.items() if name not in names}
        log_jacobian = 0.0
        if names:
            y = block.coordinates({name: parameters[name] for name in names})
            sites["_cosmology"] = y
            slopes = jax.jacfwd(lambda y: jnp.stack(list(block.parameters(y).values())))(y)
            log_jacobian = jnp.linalg.slogdet(slopes)[1]
        # Calibration offsets themselves, not their coordinates, for a fixed cosmology.
        program = StatedParameters(model) if "calibration" in sites else model
        return log_density(program, (self.data if data is None else data,), {}, sites)[0] - log_jacobian

    def __call__(self, parameters, data=None):
        return float(self._density(data, _as_arrays(parameters)))

    def with_gradient(self, parameters):
        """Value, and derivative by every parameter."""
        value, gradient = self._both(None, _as_arrays(parameters))
        return float(value), {name: np.asarray(slope) for name, slope in gradient.items()}


def _as_arrays(parameters):
    return {name: np.asarray(value, float) for name, value in parameters.items()}


def compare_with_integral(model, data, truth, plain_log_likelihood):
    """Compare the likelihood of the site ``observed`` with a plain integral to 1e-8, and its gradient to 1e-6.

    ``plain_log_likelihood`` is a function of values by name; its derivatives are by Richardson's extrapolation.
    """
    bound = model.bind(data)

    def likelihood(values):
        site = log_density(model, (bound,), {}, values)[1]["observed"]
        return site["fn"].log_prob(site["value"]).sum()

    with jax.enable_x64(True):
        found, gradient = jax.jit(jax.value_and_grad(likelihood))({name: np.float64(v) for name, v in truth.items()})
    assert float(found) == pytest.approx(plain_log_likelihood(truth), rel=0, abs=1e-8)
    for name, value in truth.items():

        def slope(step, name=name, value=value):
            above, below = (plain_log_likelihood(truth | {name: value + h}) for h in (step, -step))
            return (above - below) / (2.0 * step)

        far, near = slope(4e-3), slope(2e-3)
        assert float(gradient[name]) == pytest.approx((4.0 * near - far) / 3.0, rel=1e-6, abs=1e-6), name
