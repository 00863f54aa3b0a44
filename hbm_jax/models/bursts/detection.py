"""Selection of bursts: checks of single intervals, and the detection of whole bursts by their brightest interval."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
from jax import lax
from jax.scipy.special import log_ndtr, logsumexp

from hbm_jax.data.bursts.bursts import Bursts
from hbm_jax.distributions.detected import Detected
from hbm_jax.models.partial_centering import sample_whitened
from hbm_jax.models.selection import NONE, Selection
from hbm_jax.validation import DataError, OptionError, Remedy

INTERVALS, WHOLE = "log10_flux", "log10_peak_flux"
TRUNCATION = f"{INTERVALS} > {INTERVALS}_limit"  # with the limits of the bursts in the data
PIVOT = 2.0  # log10 of 100 keV
NO_LIMIT = -1e3  # log10 of a flux
# Trapezoidal rule over the luminosity of a burst: range on each side in standard deviations, and nodes. The step is
# 0.12 standard deviations. Gauss-Hermite rule over the slope.
REACH, NODES, SLOPES = 7.5, 128, 10


class LinesOfBursts(NamedTuple):
    """Population of the lines of bursts given their slopes, and the intervals of each burst.

    Attributes
    ----------
    slope_loc, slope_scale : scalar
        Mean and standard deviation of the slopes.
    offset : callable
        From slopes (..., B) to mean and standard deviation of the offsets of the lines.
    group_loc, group_scale : scalar
        Mean and standard deviation of x of the bursts.
    x_scale, scatter : scalar
        Standard deviations of x about that of the burst, and of y about the line.
    intercept : (B, J)
        Constants in y.
    variance : (B, J)
        Variances of the errors of y.
    """

    slope_loc: Any
    slope_scale: Any
    offset: Callable
    group_loc: Any
    group_scale: Any
    x_scale: Any
    scatter: Any
    intercept: Any
    variance: Any


class BurstDetection(NamedTuple):
    """Detection of bursts of which any interval is above a limit of the flux.

    Attributes
    ----------
    limit : (B, 1) or scalar
        Limit of log10 of the measured flux.
    width : scalar or None
        Width of a smooth limit, for each interval separately; None for a step.
    used : (B, J)
        False for padding.

    Notes
    -----
    Given the slope g of a burst, fluxes of its intervals share u = g m + c, which is normal, and are independent given
    u, so that the detected share is the mean over u of 1 - prod_j Phi((limit - mean_j - u) / sd_j): a fixed quadrature
    over u, and over g for the share of the population (``tests/models/test_burst_detection.py``).
    The step in u is not fine enough where fluxes scatter much less about u than u does: the log share of bursts of 20
    intervals has an error of 1e-8 for scatters of 0.28, 3e-4 for 0.15 and 0.01 for 0.08 of the spread of u.
    """

    limit: Any
    width: Any
    used: Any

    def log_probability(self, observed):
        """Return the log probability that bursts with measured values (B, J, 2) are detected, (B,)."""
        margin = observed[..., 1] - self.limit
        if self.width is None:
            return jnp.where(jnp.any(self.used & (margin >= 0.0), axis=-1), 0.0, -jnp.inf)
        return _log_any(jnp.sum(jnp.where(self.used, log_ndtr(-margin / self.width), 0.0), axis=-1))

    def probability(self, observed):
        """Return the probability that bursts with measured values (B, J, 2) are detected, (B,)."""
        return jnp.exp(self.log_probability(observed))

    def detected(self, relation: Any) -> Detected:
        """Return the distribution of the measured values (B, J, 2) of detected bursts."""
        return Detected(relation, self.probability, log_efficiency=self.log_probability)

    def log_detected(self, slope, lines: LinesOfBursts):
        """Return the log detected share of bursts of given slopes (..., B)."""
        nodes = np.linspace(-REACH, REACH, NODES)
        log_weights = -0.5 * nodes**2 - np.log(np.sum(np.exp(-0.5 * nodes**2)))
        offset_loc, offset_scale = lines.offset(slope)
        centre = slope * lines.group_loc + offset_loc
        spread = jnp.sqrt((slope * lines.group_scale) ** 2 + offset_scale**2)
        u = (centre[..., None] + spread[..., None] * nodes)[..., None]
        smooth = 0.0 if self.width is None else self.width**2
        variance = (slope * lines.x_scale)[..., None] ** 2 + lines.scatter**2 + lines.variance + smooth
        margin = self.limit - lines.intercept
        z = (margin[:, None, :] - u) / jnp.sqrt(variance)[..., None, :]
        # Where few bursts are detected, all z are large and erfc is accurate, at a quarter of the cost of log_ndtr.
        above = jnp.minimum(0.5 * lax.erfc(z / np.sqrt(2.0)), 1.0 - jnp.finfo(z.dtype).eps)
        below = jnp.sum(jnp.where(self.used[:, None, :], jnp.log1p(-above), 0.0), axis=-1)
        return logsumexp(log_weights + _log_any(below), axis=-1)

    def log_share(self, lines: LinesOfBursts):
        """Return the log detected share of the population of each burst, (B,)."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(SLOPES)
        slope = lines.slope_loc + lines.slope_scale * nodes[:, None]
        slope = jnp.broadcast_to(slope, (SLOPES, len(self.used)))
        return logsumexp(self.log_detected(slope, lines) + np.log(weights / weights.sum())[:, None], axis=0)


def _log_any(log_none):
    """Return log(1 - p) from log p, finite with its derivative where p is 1."""
    log_none = jnp.minimum(log_none, -jnp.finfo(jnp.result_type(log_none)).tiny)
    near_one = log_none > -0.7
    small, large = jnp.where(near_one, log_none, -1.0), jnp.where(near_one, -1.0, log_none)
    return jnp.where(near_one, jnp.log(-jnp.expm1(small)), jnp.log1p(-jnp.exp(large)))


def offsets(p: Mapping[str, Any], gamma: Any) -> tuple[Any, Any]:
    """Return mean and standard deviation of log10_N of bursts of given slopes."""
    loc, scale = p["log10_N_mean"], p["log10_N_std"]
    if "correlation" in p:
        loc = loc + p["correlation"] * scale * (gamma - p["gamma_mean"]) / p["gamma_std"]
        scale = scale * jnp.sqrt(1.0 - p["correlation"] ** 2)
    return loc, scale


def sample_slopes(p: Mapping[str, Any], intercept: Any, bound: Any, whole: "BurstDetection | None") -> Any:
    """Sample the slopes of all bursts, (B,); with a selection of whole bursts those of detected ones.

    Parameters
    ----------
    p : mapping of str to scalar
        Parameters of the population.
    intercept : (B, J)
        log10 of measured flux over luminosity.
    bound : BoundBursts
        The bursts.
    whole : BurstDetection or None
        Selection of whole bursts.
    """

    def of_detected(whole: BurstDetection, prior, gamma):
        lines = LinesOfBursts(
            p["gamma_mean"],
            p["gamma_std"],
            lambda slope: offsets(p, slope),
            p["log10_E_peak_mean"] - PIVOT,
            p["log10_E_peak_std"],
            p["log10_E_peak_scatter"],
            p["intrinsic_scatter"],
            intercept,
            jnp.asarray(bound.errors)[..., 2],
        )
        return Detected(prior, lambda x: jnp.exp(whole.log_detected(gamma(x), lines)), whole.log_share(lines))

    with numpyro.plate("burst", len(bound.used)):
        detected = None if whole is None else partial(of_detected, whole)
        return sample_whitened("gamma", p["gamma_mean"], p["gamma_std"], bound.slopes, detected=detected)


def detection_of(selections: Sequence[Selection], bound: Any, values: Any) -> tuple[Any, Any]:
    """Return limit and width of the selection of bound bursts, (B, 1) or numbers; None for one that is not used."""
    if not selections:
        return None, None
    (part,) = selections
    limit, width = part.names
    limits = bound.log10_flux_limit if part.quantity == INTERVALS else bound.log10_peak_flux_limit
    # Bursts without a limit have a finite one far below, because the derivatives at minus infinity are undefined.
    value = jnp.maximum(limits, NO_LIMIT)[:, None] if part.of_objects else values[limit]
    return value, None if part.is_step else values[width]


def check_options(model: Any) -> None:
    """Raise OptionError for a selection of a `hbm_jax.models.Golenetskii` that cannot be integrated."""
    option = "truncated=True" if model.truncated else f"selection={model.selection!r}"
    if model.truncated and model.selection != NONE:
        raise OptionError(f"Golenetskii: {option} expects no other selection; found {model.selection!r}.")
    for part in model.selections:
        known = part.quantity in (INTERVALS, WHOLE) and part.missing == "below"
        if len(model.selections) > 1 or not known or part.by_group:
            raise OptionError(
                f"Golenetskii: {option}: expected one limit such as '{INTERVALS} > -6.5', of every interval, or "
                f"'{WHOLE} > -6.5', of the brightest one."
            )
    if model.selections and model.latents == "sampled":
        raise OptionError(f"Golenetskii: {option} expects latents='marginal'; found 'sampled'.")


def check_selected(data: Bursts, selection: Selection, model: Any) -> None:
    """Raise DataError where the data have no limits, or fluxes below the limit of a step."""
    truncated, whole = model.truncated, selection.quantity == WHOLE
    option = "Golenetskii(truncated=True)" if truncated else f"Golenetskii: selection {selection}"
    if whole and model.pooling == "complete" and np.shape(data.used)[1] > 1:
        raise DataError(
            f"{option}: expected pooling='partial', or bursts of one interval each; found pooling='complete' and "
            f"{data.num_intervals} intervals of {len(data)} bursts.",
            [Remedy("pooling", "partial")],
        )
    limits = data.log10_peak_flux_limit if whole else data.log10_flux_limit
    if selection.of_objects:
        column = f"{selection.quantity}_limit"
        if selection.limit != column or not np.isfinite(limits).any():
            remedy = Remedy("truncated", False) if truncated else Remedy("selection", NONE)
            raise DataError(
                f"{option}: expected bursts with a {column}; found none. Set the limit, or use {remedy}.", [remedy]
            )
        return
    if not selection.is_step:
        return
    flux = np.where(np.asarray(data.used), np.asarray(data.log10_flux), -np.inf if whole else np.inf)
    below = (flux.max(axis=1) if whole else flux.min(axis=1)) < float(selection.limit)
    if below.any():
        num = int(below.sum()) if whole else int((flux < float(selection.limit)).sum())
        what = "no burst whose fluxes are all below the limit" if whole else "no flux below the limit"
        raise DataError(
            f"{option}: expected {what}; found {num}, the first in {data.name[int(below.argmax())]}. "
            "Leave them out, or give the limit a width, such as +- 0.1."
        )


def inside(data: Bursts, selections: Sequence[Selection]) -> Bursts:
    """Return the design of a simulation, with fluxes that a step leaves out moved to its limit."""
    observed = np.array(data.observed)
    for part in selections:
        if part.is_step and not part.of_objects:
            flux = np.where(np.asarray(data.used), observed[..., 1], -np.inf)
            flux = flux.max(axis=1, keepdims=True) if part.quantity == WHOLE else flux
            observed[..., 1] += np.where(np.isfinite(flux), np.maximum(float(part.limit) - flux, 0.0), 0.0)
    return data.replace_observations(observed)


def whole_bursts(selections: Sequence[Selection]) -> bool:
    """Return whether the selection is one of whole bursts."""
    return any(part.quantity == WHOLE for part in selections)
