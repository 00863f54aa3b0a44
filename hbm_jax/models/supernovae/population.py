"""Marginal distribution of the observed (x1, c, m_b) of each supernova, with its true values integrated out."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from hbm_jax.distributions import HalfLine, LinearGaussian, ObservedMixture, ProbitSelection

OBSERVABLES = ("x1", "c", "m_b")  # the order in which the loading matrix is triangular


def tripp(parameters: Mapping[str, Any], x1, c):
    """Return the magnitude offset due to stretch and colour, beta c - alpha x1 [mag]."""
    return parameters["beta"] * c - parameters["alpha"] * x1


def marginal(p: Mapping[str, Any], magnitude, noise, offset=None) -> LinearGaussian:
    """Return the marginal distribution for one Gaussian population; parameters are numbers or (N,)."""
    mean_m_b = magnitude + tripp(p, p["x1_mean"], p["c_mean"])
    loc = (p["x1_mean"], p["c_mean"], mean_m_b)
    return LinearGaussian(loc, _scale_tril(p, p["x1_std"], p["c_std"], p["sigma_int"]), noise, offset=offset)


def _scale_tril(p, x1_std, c_std, sigma_int):
    """Return the lower triangular factor of the covariance of the true (x1, c, m_b), (..., 3, 3)."""
    zero = 0.0
    rows = [[x1_std, zero, zero], [zero, c_std, zero], [-p["alpha"] * x1_std, p["beta"] * c_std, sigma_int]]
    shape = np.broadcast_shapes(*(jnp.shape(entry) for row in rows for entry in row))
    if shape == ():
        return jnp.array(rows)
    return jnp.stack([jnp.stack([jnp.broadcast_to(e, shape) for e in row], axis=-1) for row in rows], axis=-2)


class Populations(NamedTuple):
    """Mixture distribution of the observed values of each supernova, with the meaning of its components.

    Attributes
    ----------
    observed : ObservedMixture
        Distribution of (x1, c, m_b), batch shape (N,), with K components.
    massive, outlier : (K,)
        Whether a component describes massive hosts, and whether it describes outliers.
    """

    observed: ObservedMixture
    massive: np.ndarray
    outlier: np.ndarray


def populations(
    model, p: Mapping[str, Any], magnitude, log_nodes, massive, noise, offset=None, selection=None
) -> Populations:
    """Return the marginal distribution with the options of `hbm_jax.models.Supernova`, as a mixture.

    Parameters
    ----------
    model : Supernova
        The options ``stretch``, ``colour``, ``host_beta``, ``mass_error`` and ``outliers`` of this model are used.
    p : mapping
        Parameters, numbers or (N,).
    magnitude : (N, Z)
        Magnitude of a supernova with x1 = c = 0 in a low-mass host, at each redshift node.
    log_nodes : (N, Z)
        Log weights of the redshift nodes.
    massive : (N,) or None
        Weight of the high-mass side of the step, from `massive_hosts`; None without host effects.
    noise : (N, 3, 3)
        Covariance of the errors.
    offset : (N, 3), optional
        Calibration offsets of the observed values.
    selection : ProbitSelection, optional
        Detection probability as a function of the observed values.
    """
    # Axes of the components: supernova, redshift, host, stretch, side of the broken colour law, outlier.
    p = {name: jnp.reshape(jnp.asarray(value), (-1, 1, 1, 1, 1, 1)) for name, value in p.items()}
    log_weights = [_along(log_nodes, 1)]
    host: Any = 0.0
    if massive is not None and model.mass_error:
        host = _axis([0.0, 1.0], 2)
        probability = jnp.stack([1.0 - massive, massive], axis=-1)
        positive = probability > 0.0
        log_weights.append(_along(jnp.where(positive, jnp.log(jnp.where(positive, probability, 1.0)), -jnp.inf), 2))
    elif massive is not None:
        host = jnp.reshape(massive, (-1, 1, 1, 1, 1, 1))
    p |= host_relation(model, p, host)
    side: Any = 1.0
    if model.colour == "broken":
        side = _axis([-1.0, 1.0], 4)
        log_weights.append(log_ndtr(side * p["c_mean"] / p["c_std"]))
        p["beta"] = jnp.where(side > 0, p["beta_red"], p["beta"])
    x1_loc, x1_scale, stretch_log_weight = _stretch(model, p)
    scatter: Any = p["sigma_int"]
    outlier_log_weight: Any = 0.0
    if model.outliers:
        is_outlier = _axis([0.0, 1.0], 5)
        scatter = jnp.sqrt(scatter**2 + is_outlier * p["outlier_scatter"] ** 2)
        outlier_log_weight = jnp.log(jnp.where(is_outlier > 0, p["outlier_fraction"], 1.0 - p["outlier_fraction"]))
    log_weights += [stretch_log_weight, outlier_log_weight]
    latent, x1_loc, x1_scale, c_loc, c_scale = _half_line(model, p, side, x1_loc, x1_scale)
    mean_m_b = _along(magnitude, 1) + p["host_magnitude"] + tripp(p, x1_loc, c_loc)
    shape = np.broadcast_shapes(*(jnp.shape(a) for a in (mean_m_b, scatter, x1_scale, c_scale, *log_weights)))

    def flat(array):
        # Arrays common to all supernovae keep a first axis of length 1, so that they are not computed N times.
        array = jnp.reshape(array, jnp.shape(array) or (1,) * len(shape))
        return jnp.broadcast_to(array, (array.shape[0], *shape[1:])).reshape(array.shape[0], -1)

    half_line = None
    if latent is not None:
        precision = None if latent.precision is None else flat(latent.precision)
        half_line = HalfLine(tuple(flat(part) for part in latent.direction), flat(latent.rate), precision)
    zero, alpha, beta = 0.0, p["alpha"], p["beta"]
    rows = ((x1_scale, zero, zero), (zero, c_scale, zero), (-alpha * x1_scale, beta * c_scale, scatter))
    observed = ObservedMixture(
        flat(sum(log_weights[1:], log_weights[0])),
        tuple(flat(part) for part in (x1_loc, c_loc, mean_m_b)),
        tuple(tuple(flat(entry) for entry in row) for row in rows),
        noise,
        offset=offset,
        half_line=half_line,
        selection=selection,
    )
    masks = []
    for axis, present in ((1, massive is not None and model.mass_error), (4, model.outliers)):
        mask = np.zeros(shape[1:], bool)
        if present:
            np.moveaxis(mask, axis, 0)[1] = True
        masks.append(mask.ravel())
    return Populations(observed, *masks)


def host_relation(model, p: Mapping[str, Any], massive) -> dict[str, Any]:
    """Return the parameters that depend on the host, for a weight ``massive`` of the high-mass side of the step."""
    relation = {"host_magnitude": p["delta_M"] * massive if "delta_M" in p else 0.0}
    if "delta_beta" in p:
        for slope in {"dust": ("beta_dust",), "broken": ("beta", "beta_red")}.get(model.colour, ("beta",)):
            relation[slope] = p[slope] + p["delta_beta"] * massive
    return relation


def selection_of(p: Mapping[str, Any]) -> ProbitSelection:
    """Return the detection probability Phi((m_lim + m_lim_colour c - m_b) / m_lim_width) of observed c and m_b."""
    slope = jnp.stack([jnp.zeros(()), -jnp.asarray(p["m_lim_colour"]) * 1.0, jnp.ones(())])
    return ProbitSelection(jnp.asarray(p["m_lim"]), jnp.asarray(p["m_lim_width"]), slope)


def _stretch(model, p):
    """Return the mean, standard deviation and log weight of the normal populations of stretch."""
    if model.stretch != "two":
        return p["x1_mean"], p["x1_std"], 0.0
    low = _axis([0.0, 1.0], 3)
    loc = p["x1_mean"] - low * p["x1_shift"]
    scale = jnp.where(low > 0, p["x1_std_low"], p["x1_std"])
    return loc, scale, jnp.log(jnp.where(low > 0, p["x1_fraction_low"], 1.0 - p["x1_fraction_low"]))


def _half_line(model, p, side, x1_loc, x1_scale):
    """Return the non-Gaussian part of the populations and the locations and scales of the Gaussian part of x1 and c.

    The non-Gaussian part is a positive latent along a direction in (x1, c, m_b), or None.
    """
    c_loc, c_scale = p["c_mean"], p["c_std"]
    if model.stretch == "skewed":
        x1_loc, x1_scale, slope = _skewed(x1_loc, x1_scale, p["x1_skew"])
        return HalfLine((slope, 0.0, -p["alpha"] * slope), 0.0, 1.0), x1_loc, x1_scale, c_loc, c_scale
    if model.colour == "skewed":
        c_loc, c_scale, slope = _skewed(c_loc, c_scale, p["c_skew"])
        return HalfLine((0.0, slope, p["beta"] * slope), 0.0, 1.0), x1_loc, x1_scale, c_loc, c_scale
    if model.colour == "dust":
        return HalfLine((0.0, 1.0, p["beta_dust"]), 1.0 / p["c_dust"]), x1_loc, x1_scale, c_loc, c_scale
    if model.colour == "broken":
        # c = side t with t > 0: the normal distribution of c is a truncated normal of t on either side of 0.
        precision = c_scale**-2
        half_line = HalfLine((0.0, side, p["beta"] * side), -side * c_loc * precision, precision)
        return half_line, x1_loc, x1_scale, 0.0, 0.0
    return None, x1_loc, x1_scale, c_loc, c_scale


def _skewed(mean, std, shape):
    """Return loc, scale and slope such that loc + slope |n| + scale n', n, n' ~ N(0, 1), is the given skew normal.

    ``mean`` and ``std`` are its mean and standard deviation, ``shape`` its shape parameter.
    """
    delta = shape / jnp.sqrt(1.0 + shape**2)
    scale = std / jnp.sqrt(1.0 - 2.0 / math.pi * delta**2)
    return mean - scale * math.sqrt(2.0 / math.pi) * delta, scale / jnp.sqrt(1.0 + shape**2), scale * delta


def _axis(values, axis):
    """Return values along one of the six axes."""
    return np.reshape(values, [-1 if i == axis else 1 for i in range(6)])


def _along(array, axis):
    """Return an array (N, size) with its second index along one of the six axes."""
    array = jnp.asarray(array)
    return array.reshape([array.shape[0] if i == 0 else array.shape[1] if i == axis else 1 for i in range(6)])
