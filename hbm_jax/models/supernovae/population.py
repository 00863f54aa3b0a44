"""Marginal distribution of the observed (x1, c, m_b) of each supernova, with its true values integrated out."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from hbm_jax.distributions import HalfLine, LinearGaussian, ObservedMixture, Quadrant
from hbm_jax.models.supernovae.laws import ColourLaw, Latent, Law, MassStep, Outliers, Population, StretchLaw
from hbm_jax.models.supernovae.laws.drift import Drift
from hbm_jax.models.supernovae.laws.redshifts import RedshiftLaw
from hbm_jax.models.supernovae.laws.scatter import Scatter, ScatterLaw, scale_rows
from hbm_jax.models.supernovae.laws.selection import SelectionLaw

OBSERVABLES = ("x1", "c", "m_b")  # the order in which the loading matrix is triangular


def tripp(parameters: Mapping[str, Any], x1, c):
    """Return the magnitude offset due to stretch and colour, beta c - alpha x1 [mag]."""
    return parameters["beta"] * c - parameters["alpha"] * x1


def marginal(scatter: Scatter, p: Mapping[str, Any], magnitude, noise, offset=None) -> LinearGaussian:
    """Return the marginal distribution for one Gaussian population; parameters and scatter are numbers or (N,)."""
    mean_m_b = magnitude + tripp(p, p["x1_mean"], p["c_mean"])
    loc = (p["x1_mean"], p["c_mean"], mean_m_b)
    scale = scale_rows(scatter, p["x1_std"], p["c_std"], -p["alpha"], p["beta"])
    return LinearGaussian(loc, scale, noise, offset=offset)


class Laws(NamedTuple):
    """Laws of a supernova model, in the order in which their parameters are tabulated; None where an option is off."""

    stretch: StretchLaw
    colour: ColourLaw
    host: MassStep | None
    drift: Drift | None
    outliers: Outliers | None
    scatter: ScatterLaw
    selection: SelectionLaw
    redshifts: RedshiftLaw

    @property
    def used(self) -> tuple[Law, ...]:
        """Laws that are not off."""
        return tuple(law for law in self if law is not None)

    @property
    def gaussian(self) -> bool:
        """True if the populations are Gaussian and completely observed, so that no mixture is needed."""
        return all(law.gaussian for law in self.used)


class Populations(NamedTuple):
    """Mixture distribution of the observed values of each supernova, with the meaning of its components.

    Attributes
    ----------
    observed : ObservedMixture
        Distribution of (x1, c, m_b), batch shape (N,), with K components.
    massive, outlier : (K,)
        True for components of massive hosts, and for components of outliers.
    """

    observed: ObservedMixture
    massive: np.ndarray
    outlier: np.ndarray


# Axes of the components of the mixture, and of the supernovae.
_NUM_AXES = 6
_REDSHIFT, _HOST, _STRETCH, _COLOUR, _OUTLIER = range(1, _NUM_AXES)


def populations(laws: Laws, p: Mapping[str, Any], magnitude, log_nodes, massive, noise, prob_ia=None) -> Populations:
    """Return the marginal distribution, without calibration offsets and selection, as a mixture.

    Parameters
    ----------
    laws : Laws
        Laws of the model.
    p : mapping
        Parameters, numbers or (N,).
    magnitude : (N, Z)
        Magnitude of a supernova with x1 = c = 0 in a low-mass host, at each redshift node.
    log_nodes : (N, Z)
        Log weights of the redshift nodes.
    massive : (N,) or None
        Weight of the high-mass side of the step, from `MassStep.massive`; None without a step.
    noise : (N, 3, 3)
        Covariance of the errors.
    prob_ia : (N,), optional
        Probability of type Ia of each object; None for 1.
    """
    p = {name: jnp.reshape(jnp.asarray(value), (-1, *[1] * (_NUM_AXES - 1))) for name, value in p.items()}
    log_weights = [_along(log_nodes, axis=_REDSHIFT)]
    host_magnitude: Any = 0.0
    if laws.host is not None:
        rows = partial(_along, axis=_HOST)
        side, log_weight = laws.host.sides(massive, partial(_axis, axis=_HOST), rows)
        relation = laws.host.relation(p, side, laws.colour.slopes)
        host_magnitude = relation.pop("host_magnitude")
        p |= relation
        log_weights.append(log_weight)
    c = laws.colour.population(p, partial(_axis, axis=_COLOUR))
    x1 = laws.stretch.population(p, partial(_axis, axis=_STRETCH))
    scatter, outlier_log_weight = laws.scatter.scatter(p), 0.0
    if laws.outliers is not None:
        m_std, outlier_log_weight = laws.outliers.scatter(
            p | {"sigma_int": scatter.m_std},
            partial(_axis, axis=_OUTLIER),
            None if prob_ia is None else _along(prob_ia[:, None], axis=_OUTLIER),
        )
        scatter = scatter._replace(m_std=m_std)
    scale = scale_rows(scatter, x1.scale, c.scale, x1.slope, c.slope)
    log_weights += [c.log_weight, x1.log_weight, outlier_log_weight]
    mean_m_b = _along(magnitude, axis=_REDSHIFT) + host_magnitude + (c.slope * c.loc + x1.slope * x1.loc)
    shape = np.broadcast_shapes(*(jnp.shape(a) for a in (mean_m_b, scale[2][2], x1.scale, c.scale, *log_weights)))
    flat = partial(_flat, shape=shape)
    observed = ObservedMixture(
        flat(sum(log_weights[1:], log_weights[0])),
        tuple(flat(part) for part in (x1.loc, c.loc, mean_m_b)),
        tuple(tuple(entry if k > i else flat(entry) for k, entry in enumerate(row)) for i, row in enumerate(scale)),
        noise,
        half_line=_half_line(x1, c, flat),
    )
    two_sides = laws.host is not None and laws.host.error
    is_massive = _second_half(shape[1:], _HOST, two_sides)
    is_outlier = _second_half(shape[1:], _OUTLIER, laws.outliers is not None)
    return Populations(observed, is_massive, is_outlier)


def _half_line(x1: Population, c: Population, flat) -> HalfLine | Quadrant | None:
    """Return the positive latents of the populations of stretch and colour along (x1, c, m_b), or None."""

    def along(latent: Latent, axis: int) -> HalfLine:  # 0 for stretch, 1 for colour
        direction = (*(latent.quantity if i == axis else 0.0 for i in range(2)), latent.magnitude)
        precision = None if latent.precision is None else flat(latent.precision)
        return HalfLine(tuple(flat(part) for part in direction), flat(latent.rate), precision)

    latents = [along(x1.latent, 0)] if x1.latent is not None else []
    latents += [along(c.latent, 1)] if c.latent is not None else []
    return Quadrant(*latents) if len(latents) == 2 else latents[0] if latents else None


def _second_half(shape: tuple[int, ...], axis: int, present: bool) -> np.ndarray:
    """Return the mask (K,) of the second half of the components along an axis; False where it has one component."""
    mask = np.zeros(shape, bool)
    if present:
        np.moveaxis(mask, axis - 1, 0)[1] = True
    return mask.ravel()


def _flat(array, shape):
    """Return an array that broadcasts to ``shape``, (N, ...), with one axis for all components, (N or 1, K).

    Arrays common to all supernovae keep a first axis of length 1, so that they are not computed N times.
    """
    array = jnp.reshape(array, jnp.shape(array) or (1,) * len(shape))
    return jnp.broadcast_to(array, (array.shape[0], *shape[1:])).reshape(array.shape[0], -1)


def _axis(values, axis):
    """Return values along one of the axes."""
    return np.reshape(values, [-1 if i == axis else 1 for i in range(_NUM_AXES)])


def _along(array, axis):
    """Return an array (N, size) with `_NUM_AXES` axes, its second axis moved to ``axis`` and the others of length 1."""
    array = jnp.asarray(array)
    return array.reshape([array.shape[0] if i == 0 else array.shape[1] if i == axis else 1 for i in range(_NUM_AXES)])
