"""Distribution of the observed (x1, c, m_b) of each supernova, its true values integrated out."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from hbm_jax.distributions import HalfLine, LinearGaussian, ObservedMixture, ProbitSelection

OBSERVABLES = ("x1", "c", "m_b")  # the order in which the loading matrix is triangular


def tripp(parameters: Mapping[str, Any], x1, c):
    """Magnitude that stretch and colour add [mag]."""
    return parameters["beta"] * c - parameters["alpha"] * x1


def marginal(p: Mapping[str, Any], magnitude, noise, offset=None) -> LinearGaussian:
    """Distribution with one Gaussian population; parameters are numbers or (N,)."""
    mean_m_b = magnitude + tripp(p, p["x1_mean"], p["c_mean"])
    loc = (p["x1_mean"], p["c_mean"], mean_m_b)
    return LinearGaussian(loc, _scale_tril(p, p["x1_std"], p["c_std"], p["sigma_int"]), noise, offset=offset)


def _scale_tril(p, x1_std, c_std, sigma_int):
    """Factor of the covariance of the true (x1, c, m_b), (..., 3, 3)."""
    zero = 0.0
    rows = [[x1_std, zero, zero], [zero, c_std, zero], [-p["alpha"] * x1_std, p["beta"] * c_std, sigma_int]]
    shape = np.broadcast_shapes(*(jnp.shape(entry) for row in rows for entry in row))
    if shape == ():
        return jnp.array(rows)
    return jnp.stack([jnp.stack([jnp.broadcast_to(e, shape) for e in row], axis=-1) for row in rows], axis=-2)


class Populations(NamedTuple):
    """The mixture of each supernova's populations, and which of the components are what.

    Attributes
    ----------
    observed : ObservedMixture
        Batch (N,), K components, values (x1, c, m_b).
    massive, outlier : (K,)
        Whether a component is of massive hosts, or of outliers.
    """

    observed: ObservedMixture
    massive: np.ndarray
    outlier: np.ndarray


def populations(
    model, p: Mapping[str, Any], magnitude, log_nodes, massive, noise, offset=None, selection=None
) -> Populations:
    """Distribution with everything that the options of `hbm_jax.models.Supernova` add.

    Parameters
    ----------
    model : Supernova
        Its ``stretch``, ``colour``, ``host_beta``, ``mass_error`` and ``outliers`` count.
    p : mapping
        Parameters, numbers or (N,).
    magnitude : (N, Z)
        Magnitude of a supernova with x1 = c = 0 in a host of low mass, at each node in redshift.
    log_nodes : (N, Z)
        Log weights of these.
    massive : (N,) or None
        What `massive_hosts` says; None without host effects.
    noise : (N, 3, 3)
        Covariance of the errors.
    offset : (N, 3), optional
        What the calibration adds to the observed values.
    selection : ProbitSelection, optional
        In the observed values.
    """
    # Axes of the components: supernova, redshift, host, stretch, side of the broken colour law, outlier.
    p = {name: jnp.reshape(jnp.asarray(value), (-1, 1, 1, 1, 1, 1)) for name, value in p.items()}
    weights = [_along(log_nodes, 1)]
    host: Any = 0.0
    if massive is not None and model.mass_error:
        host = _axis([0.0, 1.0], 2)
        share = jnp.stack([1.0 - massive, massive], axis=-1)
        positive = share > 0.0
        weights.append(_along(jnp.where(positive, jnp.log(jnp.where(positive, share, 1.0)), -jnp.inf), 2))
    elif massive is not None:
        host = jnp.reshape(massive, (-1, 1, 1, 1, 1, 1))
    p |= host_relation(model, p, host)
    side: Any = 1.0
    if model.colour == "broken":
        side = _axis([-1.0, 1.0], 4)
        weights.append(log_ndtr(side * p["c_mean"] / p["c_std"]))
        p["beta"] = jnp.where(side > 0, p["beta_red"], p["beta"])
    x1_loc, x1_scale, stretch_weight = _stretch(model, p)
    sigma: Any = p["sigma_int"]
    outlier_weight: Any = 0.0
    if model.outliers:
        is_outlier = _axis([0.0, 1.0], 5)
        sigma = jnp.sqrt(sigma**2 + is_outlier * p["outlier_scatter"] ** 2)
        outlier_weight = jnp.log(jnp.where(is_outlier > 0, p["outlier_fraction"], 1.0 - p["outlier_fraction"]))
    weights += [stretch_weight, outlier_weight]
    half, x1_loc, x1_scale, c_loc, c_scale = _half_line(model, p, side, x1_loc, x1_scale)
    mean_m_b = _along(magnitude, 1) + p["host_magnitude"] + tripp(p, x1_loc, c_loc)
    shape = np.broadcast_shapes(*(jnp.shape(a) for a in (mean_m_b, sigma, x1_scale, c_scale, *weights)))

    def flat(array):
        # What is the same for all supernovae stays one row: its products and derivatives are then of numbers.
        array = jnp.reshape(array, jnp.shape(array) or (1,) * len(shape))
        return jnp.broadcast_to(array, (array.shape[0], *shape[1:])).reshape(array.shape[0], -1)

    half_line = None
    if half is not None:
        precision = None if half.precision is None else flat(half.precision)
        half_line = HalfLine(tuple(flat(part) for part in half.direction), flat(half.rate), precision)
    zero, alpha, beta = 0.0, p["alpha"], p["beta"]
    rows = ((x1_scale, zero, zero), (zero, c_scale, zero), (-alpha * x1_scale, beta * c_scale, sigma))
    observed = ObservedMixture(
        flat(sum(weights[1:], weights[0])),
        tuple(flat(part) for part in (x1_loc, c_loc, mean_m_b)),
        tuple(tuple(flat(entry) for entry in row) for row in rows),
        noise,
        offset=offset,
        half_line=half_line,
        selection=selection,
    )
    own = np.zeros(shape[1:], bool)
    masks = []
    for axis, present in ((1, massive is not None and model.mass_error), (4, model.outliers)):
        mask = own.copy()
        if present:
            np.moveaxis(mask, axis, 0)[1] = True
        masks.append(mask.ravel())
    return Populations(observed, *masks)


def host_relation(model, p: Mapping[str, Any], massive) -> dict[str, Any]:
    """Parameters that depend on the host, for a share ``massive`` of the high-mass side."""
    found = {"host_magnitude": p["delta_M"] * massive if "delta_M" in p else 0.0}
    if "delta_beta" in p:
        for slope in {"dust": ("beta_dust",), "broken": ("beta", "beta_red")}.get(model.colour, ("beta",)):
            found[slope] = p[slope] + p["delta_beta"] * massive
    return found


def selection_of(p: Mapping[str, Any]) -> ProbitSelection:
    """Return the detection probability Phi((m_lim + m_lim_colour c - m_b) / m_lim_width) in the observed values."""
    slope = jnp.stack([jnp.zeros(()), -jnp.asarray(p["m_lim_colour"]) * 1.0, jnp.ones(())])
    return ProbitSelection(jnp.asarray(p["m_lim"]), jnp.asarray(p["m_lim_width"]), slope)


def _stretch(model, p):
    """Mean, standard deviation and log weight of the normal populations of stretch."""
    if model.stretch != "two":
        return p["x1_mean"], p["x1_std"], 0.0
    low = _axis([0.0, 1.0], 3)
    loc = p["x1_mean"] - low * p["x1_shift"]
    scale = jnp.where(low > 0, p["x1_std_low"], p["x1_std"])
    return loc, scale, jnp.log(jnp.where(low > 0, p["x1_fraction_low"], 1.0 - p["x1_fraction_low"]))


def _half_line(model, p, side, x1_loc, x1_scale):
    """Positive latent, its direction as a tuple, and what is left of the Gaussian populations of stretch and colour."""
    c_loc, c_scale = p["c_mean"], p["c_std"]
    if model.stretch == "skewed":
        x1_loc, x1_scale, lean = _skewed(x1_loc, x1_scale, p["x1_skew"])
        return HalfLine((lean, 0.0, -p["alpha"] * lean), 0.0, 1.0), x1_loc, x1_scale, c_loc, c_scale
    if model.colour == "skewed":
        c_loc, c_scale, lean = _skewed(c_loc, c_scale, p["c_skew"])
        return HalfLine((0.0, lean, p["beta"] * lean), 0.0, 1.0), x1_loc, x1_scale, c_loc, c_scale
    if model.colour == "dust":
        return HalfLine((0.0, 1.0, p["beta_dust"]), 1.0 / p["c_dust"]), x1_loc, x1_scale, c_loc, c_scale
    if model.colour == "broken":
        # c = side t: what is normal in c is, on either side of 0, a truncated normal in t.
        precision = c_scale**-2
        half = HalfLine((0.0, side, p["beta"] * side), -side * c_loc * precision, precision)
        return half, x1_loc, x1_scale, 0.0, 0.0
    return None, x1_loc, x1_scale, c_loc, c_scale


def _skewed(mean, std, shape):
    """Location, scale and lean of loc + lean |n| + scale n': skew normal of that mean and standard deviation."""
    delta = shape / jnp.sqrt(1.0 + shape**2)
    scale = std / jnp.sqrt(1.0 - 2.0 / math.pi * delta**2)
    return mean - scale * math.sqrt(2.0 / math.pi) * delta, scale / jnp.sqrt(1.0 + shape**2), scale * delta


def _axis(values, axis):
    """Values along one of the six axes."""
    return np.reshape(values, [-1 if i == axis else 1 for i in range(6)])


def _along(array, axis):
    """(N, size) with the second index on one of the six axes."""
    array = jnp.asarray(array)
    return array.reshape([array.shape[0] if i == 0 else array.shape[1] if i == axis else 1 for i in range(6)])
