"""Selection of bursts: checks of single intervals, and the detection of whole bursts by their brightest interval.

The flux of the brightest interval is the measured one in `hbm_jax.models.Golenetskii`, and the true one in
`hbm_jax.models.GolenetskiiCounts`, whose spectra are fitted to counts.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import lax
from jax.scipy.special import log_ndtr, logsumexp

from hbm_jax.data.bursts.bursts import Bursts
from hbm_jax.distributions.detected import Detected
from hbm_jax.models.bursts.fluxes import BurstFluxes, Line
from hbm_jax.models.bursts.injected import PIVOT, InjectedBursts, InjectedDetection, Population, check_intervals
from hbm_jax.models.efficiency import DetectionFunction, Efficiency, Injections, refuse_narrow
from hbm_jax.models.partial_centering import sample_whitened
from hbm_jax.models.selection import NONE, Selection, record_effective
from hbm_jax.validation import DataError, OptionError, Remedy

INTERVALS, WHOLE = "log10_flux", "log10_peak_flux"
MEASURED = ("log10_E_peak", INTERVALS)  # of every interval
TRUNCATION = f"{INTERVALS} > {INTERVALS}_limit"  # with the limits of the bursts in the data
NO_LIMIT = -1e3  # log10 of a flux
# Quadrature over the luminosity of a burst (`_luminosities`): range in standard deviations, nodes, and distance from
# the limit, in widths of the edge, within which nodes are equidistant. Gauss-Hermite rule over the slope.
REACH, NODES, EQUIDISTANT, SLOPES = 6.5, 24, 2.5, 6
FAR = 40.0  # standard deviations below the limit of an interval that is padding


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
    x : (B, J), optional
        Known values that are added to x.
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
    x: Any = 0.0


class BurstDetection(NamedTuple):
    """Detection of bursts of which any interval is above a limit of the flux.

    Attributes
    ----------
    limit : (B, 1) or scalar
        Limit of log10 of the measured flux.
    width : scalar or None
        Width of a smooth limit, for each interval separately; None for a step.
    used : (B, J)
        False for padding. Or the number of intervals of the same distribution.

    Notes
    -----
    Given the slope g of a burst, the fluxes of its intervals have a common normal term u = g m + c, and are independent
    given u. The detected fraction is therefore the mean over u of 1 - prod_j Phi((limit - mean_j - u) / sd_j), by a
    quadrature over u; that of the population is its mean over g. Nodes of u are dense where the detected fraction rises
    from 0 to 1. Its log has an error of 2e-7 for bursts of 20 intervals whose fluxes scatter about u by 0.28 of the
    spread of u, of 2e-5 for 0.15, and of 6e-4 for 0.05 (``tests/models/test_burst_detection.py``).
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
        """Return the log of the detected fraction of bursts of given slopes (..., B)."""
        offset_loc, offset_scale = lines.offset(slope)
        centre = (slope * lines.group_loc + offset_loc)[..., None]
        spread = jnp.sqrt((slope * lines.group_scale) ** 2 + offset_scale**2)[..., None]
        smooth = 0.0 if self.width is None else self.width**2
        std = jnp.sqrt((slope * lines.x_scale)[..., None] ** 2 + lines.scatter**2 + lines.variance + smooth)
        margin = self.limit - lines.intercept - slope[..., None] * lines.x - centre
        fixed = lax.stop_gradient((margin, std, spread))  # the nodes have no derivative
        u, weights, log_scale = _luminosities(fixed[0], fixed[1], fixed[2], self.used)
        z = (margin[..., None, :] - (spread * u)[..., None]) / std[..., None, :]
        used = self.used[:, None, :]
        above = _any_above(jnp.where(used > 0, z, FAR), lax.stop_gradient(used * jnp.ones(())))
        return log_scale + jnp.log(jnp.maximum(jnp.sum(weights * above, axis=-1), jnp.finfo(above.dtype).tiny))

    def log_detected_fraction(self, lines: LinesOfBursts):
        """Return the log of the detected fraction of the population of each burst, (B,)."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(SLOPES)
        slope = lines.slope_loc + lines.slope_scale * nodes[:, None]
        slope = jnp.broadcast_to(slope, (SLOPES, len(self.used)))
        return logsumexp(self.log_detected(slope, lines) + np.log(weights / weights.sum())[:, None], axis=0)


class PeakFluxDetection(NamedTuple):
    """Detection of bursts by the true flux of their brightest interval, in which intervals have no other selection.

    Attributes
    ----------
    limit, width : scalar
        Limit of log10 of the flux, and width of the smooth limit of each interval.
    line : Line
        Population of the lines.
    x_mean, x_std : scalar
        Population of log10_E_peak - 2 of the intervals.
    of_burst : (I, B)
        1 where an interval belongs to a burst, else 0.
    log10_sphere_area : (I,)
        log10 of 4 pi d_L^2 [cm^2].
    """

    limit: Any
    width: Any
    line: Line
    x_mean: Any
    x_std: Any
    of_burst: Any
    log10_sphere_area: Any

    def _lines(self, x_mean, x_std, x: Any = 0.0) -> LinesOfBursts:
        """Return the lines of bursts in flux, for peak energies N(x_mean, x_std^2), or known ones x."""
        line = self.line
        area = (self.log10_sphere_area @ self.of_burst / jnp.sum(self.of_burst, axis=0))[:, None]

        def offset(slope):
            return line.log10_N_mean, line.log10_N_std

        population = line.gamma_mean, line.gamma_std, offset, x_mean, 0.0, x_std
        return LinesOfBursts(*population, line.scatter, -area, jnp.zeros_like(area), x)

    def log_detected_fraction(self):
        """Return the log of the detected fraction of the population of each burst, (B,)."""
        num_intervals = jnp.sum(self.of_burst, axis=0)[:, None]
        lines = self._lines(self.x_mean, self.x_std)
        return BurstDetection(self.limit, self.width, num_intervals).log_detected_fraction(lines)

    def log_probability(self, flux):
        """Return the log probability that bursts whose intervals have log10 fluxes (I,) are detected, (B,)."""
        return _log_any(log_ndtr((self.limit - flux) / self.width) @ self.of_burst)

    def of_site(self, name: str) -> Callable | None:
        """Return a function that gives the distribution of a site of detected bursts; None for that of all bursts."""
        return self.of_peak_energies if name == "log10_E_peak" else None

    def of_peak_energies(self, prior, log10_E_peak: Callable) -> Detected:
        """Return the distribution of the peak energies (I,) of detected bursts.

        ``prior`` is that of all bursts in the coordinates of the sampler, which ``log10_E_peak`` maps to peak energies.
        """

        def detected_fraction(value):
            lines = self._lines(0.0, 0.0, log10_E_peak(value) - PIVOT)
            whole = BurstDetection(self.limit, self.width, jnp.asarray(self.of_burst).T)
            return jnp.exp(whole.log_detected_fraction(lines))

        return Detected(prior, detected_fraction, objects=self.of_burst)

    def of_fluxes(self, fluxes: BurstFluxes) -> Detected:
        """Return the distribution of the fluxes (I,) of detected bursts, from that of all bursts."""

        def log_efficiency(value):
            return self.log_probability(fluxes.flux(value))

        def probability(value):
            return jnp.exp(log_efficiency(value))

        return Detected(fluxes, probability, self.log_detected_fraction(), log_efficiency, objects=self.of_burst)


def _luminosities(margin, std, spread, used):
    """Return nodes of a standard normal variable u and their weights, (..., B, NODES) each, and a scale of the weights.

    The integrand is the detected fraction of bursts with the luminosity ``spread`` u, which rises near the limit over
    about the width of the brightest of the intervals. The rule is the trapezoidal one in t, with
    u = edge + width sinh(t). Weights are to be multiplied by the exponential of the scale (..., B),
    which may be far below 0.

    Limits of the intervals relative to the mean luminosity, ``margin``, and standard deviations about the luminosity,
    ``std``, are (..., B, J). ``spread`` (..., B, 1) is the standard deviation of the luminosities, and ``used`` (B, J)
    is False for padding, or the number of intervals.
    """
    num, used = jnp.sum(used, axis=-1, keepdims=True), used > 0
    # Approximate height of the brightest of num intervals above the mean, in standard deviations.
    brightest = 0.75 * jnp.sqrt(2.0 * jnp.log(num))
    smallest_std = jnp.min(jnp.where(used, std, jnp.inf), axis=-1, keepdims=True)
    largest_std = jnp.max(jnp.where(used, std, 0.0), axis=-1, keepdims=True)
    spread = jnp.maximum(spread, 1e-6 * smallest_std)
    edge = (jnp.min(jnp.where(used, margin, jnp.inf), axis=-1, keepdims=True) - brightest * smallest_std) / spread
    width, ratio = smallest_std / (1.0 + 0.5 * brightest) / spread, (largest_std / spread) ** 2
    centre, scale = edge / (1.0 + ratio), jnp.sqrt(ratio / (1.0 + ratio))  # of u of detected bursts above a high limit
    low, high = jnp.maximum(-REACH, centre - REACH * scale), jnp.maximum(REACH, centre + REACH * scale + 3.5)
    # A limit that most bursts exceed needs no dense nodes.
    width = EQUIDISTANT * jnp.hypot(width, 0.15 * jnp.minimum(edge, 0.0))
    edge = jnp.maximum(edge, -3.0)
    first, last = jnp.arcsinh((low - edge) / width), jnp.arcsinh((high - edge) / width)
    step = (last - first) / (NODES - 1)
    t = first + step * np.arange(NODES)
    exponential = 0.5 * jnp.exp(t)
    sinh, cosh = exponential - 0.25 / exponential, exponential + 0.25 / exponential
    u = edge + width * sinh
    log_scale = lax.stop_gradient(-0.5 * jnp.min(u**2, axis=-1))  # the integral does not depend on it
    density = jnp.exp(-0.5 * u**2 - log_scale[..., None]) / np.sqrt(2.0 * np.pi)
    return u, step * width * cosh * density, log_scale


@jax.custom_jvp
def _any_above(z, num):
    """Return the probability that any of ``num`` standard normal variables is above its z, (..., J) -> (...)."""
    return -jnp.expm1(jnp.sum(num * jnp.log1p(-_above(z)), axis=-1))


@_any_above.defjvp
def _any_above_jvp(primals, tangents):
    """Return value and derivative, without the derivatives of logarithms."""
    (z, num), (dz, _) = primals, tangents
    any_above = _any_above(z, num)
    density = jnp.exp(-0.5 * z**2) / np.sqrt(2.0 * np.pi)
    slopes = (1.0 - any_above)[..., None] * num * density / (1.0 - _above(z))
    return any_above, -jnp.sum(slopes * dz, axis=-1)


def _above(z):
    """Return the probability of a standard normal variable above z, below 1.

    Where few bursts are detected, all z are large and erfc is accurate, at a quarter of the cost of log_ndtr.
    """
    return jnp.minimum(0.5 * lax.erfc(z / np.sqrt(2.0)), 1.0 - jnp.finfo(z.dtype).eps)


def _log_any(log_none):
    """Return log(1 - p) from log p, finite with its derivative where p is 1."""
    log_none = jnp.minimum(log_none, -jnp.finfo(jnp.result_type(log_none)).tiny)
    near_one = log_none > -0.7  # p above 1/2; each branch is accurate on its side
    small, large = jnp.where(near_one, log_none, -1.0), jnp.where(near_one, -1.0, log_none)
    return jnp.where(near_one, jnp.log(-jnp.expm1(small)), jnp.log1p(-jnp.exp(large)))


def offsets(p: Mapping[str, Any], gamma: Any) -> tuple[Any, Any]:
    """Return mean and standard deviation of log10_N of bursts of given slopes."""
    loc, scale = p["log10_N_mean"], p["log10_N_std"]
    if "correlation" in p:
        loc = loc + p["correlation"] * scale * (gamma - p["gamma_mean"]) / p["gamma_std"]
        scale = scale * jnp.sqrt(1.0 - p["correlation"] ** 2)
    return loc, scale


def sample_slopes(p: Mapping[str, Any], intercept: Any, bound: Any, whole: Any) -> Any:
    """Sample the slopes of all bursts, (B,); with a selection of whole bursts those of detected ones.

    Parameters
    ----------
    p : mapping of str to scalar
        Parameters of the population.
    intercept : (B, J)
        log10 of measured flux over luminosity.
    bound : BoundBursts
        The bursts.
    whole : BurstDetection, InjectedDetection or None
        Selection of whole bursts.
    """

    def detected_slopes(whole: BurstDetection, prior, gamma):
        """Return the distribution of standardised slopes of detected bursts; ``gamma`` maps them to slopes."""
        lines = LinesOfBursts(
            slope_loc=p["gamma_mean"],
            slope_scale=p["gamma_std"],
            offset=lambda slope: offsets(p, slope),
            group_loc=p["log10_E_peak_mean"] - PIVOT,
            group_scale=p["log10_E_peak_std"],
            x_scale=p["log10_E_peak_scatter"],
            scatter=p["intrinsic_scatter"],
            intercept=intercept,
            variance=jnp.asarray(bound.errors)[..., 2],
        )
        log_fraction = whole.log_detected_fraction(lines)
        return Detected(prior, lambda x: jnp.exp(whole.log_detected(gamma(x), lines)), log_fraction)

    detected = None if whole is None else partial(detected_slopes, whole)
    if isinstance(whole, InjectedDetection):
        population = Population.of(p)
        found = whole.bursts.found(population)
        record_effective(found)
        detected = partial(whole.slopes, found, population)
    with numpyro.plate("burst", len(bound.used)):
        return sample_whitened("gamma", p["gamma_mean"], p["gamma_std"], bound.slopes, detected=detected)


def whole_detection(selections: Sequence[Any], bound: Any, values: Any, x_shift: Any, intercept: Any) -> Any:
    """Return the selection of whole bound bursts, or None.

    ``x_shift`` (B, 1) and ``intercept`` (B, J) convert fluxes and peak energies as in `InjectedBursts`.
    """
    if not selects_whole_bursts(selections):
        return None
    if isinstance(selections[0], Injections):
        injections = selections[0].bursts(MEASURED)
        return InjectedDetection(InjectedBursts(injections, jnp.sum(bound.used, axis=1), x_shift, intercept))
    return BurstDetection(*detection_of(selections, bound, values), bound.used)


def detection_of(selections: Sequence[Any], bound: Any, values: Any) -> tuple[Any, Any]:
    """Return limit and width of the selection of bound bursts, (B, 1) or numbers; None for one that is not used."""
    if not selections or not isinstance(selections[0], Selection):
        return None, None
    (part,) = selections
    limit, width = part.names
    limits = bound.log10_flux_limit if part.quantity == INTERVALS else bound.log10_peak_flux_limit
    # Bursts without a limit have a finite one far below, because the derivatives at minus infinity are undefined.
    value = jnp.maximum(limits, NO_LIMIT)[:, None] if part.of_objects else values[limit]
    return value, None if part.is_step else values[width]


def efficiency_of(selections: Sequence[Any], used: Any = None) -> Any:
    """Return the detection probability of measured (log10_E_peak, log10_flux), or None if the selection has none.

    Injections are for intervals that are ``used`` (B, J).
    """
    if not selections or isinstance(selections[0], Selection):
        return None
    if isinstance(selections[0], Injections):
        return selections[0].selection(MEASURED, used)
    return selections[0].detection({}, np.array([float(name == selections[0].quantity) for name in MEASURED]))


def check_options(model: Any) -> None:
    """Raise OptionError for a selection that `hbm_jax.models.Golenetskii` does not support."""
    option = "truncated=True" if model.truncated else f"selection={model.selection!r}"
    if model.truncated and model.selection != NONE:
        raise OptionError(f"Golenetskii: {option} expects no other selection; found {model.selection!r}.")
    for part in model.selections:
        if isinstance(part, Efficiency) and part.quantity not in MEASURED:
            raise OptionError(
                f"Golenetskii: {option}: expected an efficiency in a measured quantity of intervals, one of "
                f"{', '.join(MEASURED)}; found {part.quantity!r}."
            )
        if isinstance(part, Injections):
            part.selection(MEASURED)  # raises for a table that cannot be read
            spread = "log10_E_peak_scatter" if model.pooling == "partial" else "log10_E_peak_std"
            refuse_narrow(f"Golenetskii: {option}", model.all_priors, ("intrinsic_scatter", spread))
        if not isinstance(part, Selection):
            continue
        is_supported = part.quantity in (INTERVALS, WHOLE) and part.missing == "below"
        if len(model.selections) > 1 or not is_supported or part.by_group:
            raise OptionError(
                f"Golenetskii: {option}: expected one limit such as '{INTERVALS} > -6.5', of every interval, or "
                f"'{WHOLE} > -6.5', of the brightest one."
            )
    if model.selections and model.latents == "sampled":
        raise OptionError(f"Golenetskii: {option} expects latents='marginal'; found 'sampled'.")


def check_options_of_counts(model: Any) -> None:
    """Raise OptionError for a selection that `hbm_jax.models.GolenetskiiCounts` does not support."""
    option = f"GolenetskiiCounts: selection={model.selection!r}"
    for part in model._stated_selections:
        if isinstance(part, Injections):
            if not part.of_bursts:
                raise OptionError(f"{option} expects a column 'burst', with the name of the burst of every interval.")
            part.bursts(model.selected_values)  # raises for a table that cannot be read
            names = ("intrinsic_scatter", *(f"{name}_std" for name in model.peaked.names[:-1]))
            refuse_narrow(option, model.all_priors, names)
        elif not isinstance(part, Selection):
            raise OptionError(f"{option}: expected a limit, or injections; found {str(part)!r}.")
        elif (
            len(model.selections) > 1
            or (part.quantity, part.missing) != (WHOLE, "below")
            or part.by_group
            or part.of_objects
        ):
            raise OptionError(f"{option}: expected one limit of the brightest interval, such as '{WHOLE} > -6 +- 0.1'.")
        elif part.is_step:
            raise OptionError(
                f"{option} expects a width, such as '+- 0.05', because true fluxes are parameters, and a step of their "
                "density cannot be sampled; found a width of 0."
            )
        for name, value in {"latents": "marginal", "scatter": True}.items():
            if getattr(model, name) != value:
                message = f"{option} expects {name}={value!r}; found {getattr(model, name)!r}."
                raise OptionError(message, [Remedy(name, value)])


def _check_probability(data: Bursts, selection: Efficiency | DetectionFunction) -> None:
    """Raise DataError for intervals that a table or a function does not detect."""
    probability = np.asarray(efficiency_of([selection]).probability(np.asarray(data.observed)))
    wrong = np.asarray(data.used) & ~((probability > 0.0) & (probability <= 1.0))
    if wrong.any():
        row = int(wrong.any(axis=1).argmax())
        raise DataError(
            f"Golenetskii: selection {selection}: expected a probability above 0 and up to 1 at every interval; found "
            f"{probability[row][wrong[row]][0]:.6g} in {data.name[row]}."
        )


def _expect_lines_of_bursts(data: Bursts, option: str, model: Any) -> None:
    """Raise DataError for a common line of bursts with several intervals."""
    if model.pooling == "complete" and np.shape(data.used)[1] > 1:
        raise DataError(
            f"{option}: expected pooling='partial', or bursts of one interval each; found pooling='complete' and "
            f"{data.num_intervals} intervals of {len(data)} bursts.",
            [Remedy("pooling", "partial")],
        )


def check_selected(data: Bursts, selection: Any, model: Any) -> None:
    """Raise DataError where the data have no limits, or values that the selection does not detect."""
    if isinstance(selection, Injections):
        if selection.of_bursts:
            _expect_lines_of_bursts(data, f"Golenetskii: selection {selection}", model)
            check_intervals(selection, MEASURED, np.asarray(data.used).sum(axis=1), "Golenetskii")
        return
    if not isinstance(selection, Selection):
        _check_probability(data, selection)
        return
    truncated, whole = model.truncated, selection.quantity == WHOLE
    option = "Golenetskii(truncated=True)" if truncated else f"Golenetskii: selection {selection}"
    if whole:
        _expect_lines_of_bursts(data, option, model)
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
        expected = "no burst whose fluxes are all below the limit" if whole else "no flux below the limit"
        raise DataError(
            f"{option}: expected {expected}; found {num}, the first in {data.name[int(below.argmax())]}. "
            "Leave them out, or give the limit a width, such as +- 0.1."
        )


def moved_to_limit(data: Bursts, selections: Sequence[Any]) -> Bursts:
    """Return bursts as the design of a simulation: values that are never detected are moved to where they are."""
    observed = np.array(data.observed)
    for part in selections:
        if isinstance(part, Efficiency):
            column = MEASURED.index(part.quantity)
            observed[..., column] = np.where(data.used, part.moved_inside(observed[..., column]), observed[..., column])
        if part.is_step and not part.of_objects:
            flux = np.where(np.asarray(data.used), observed[..., 1], -np.inf)
            flux = flux.max(axis=1, keepdims=True) if part.quantity == WHOLE else flux
            observed[..., 1] += np.where(np.isfinite(flux), np.maximum(float(part.limit) - flux, 0.0), 0.0)
    return data.replace_observations(observed)


def selects_whole_bursts(selections: Sequence[Any]) -> bool:
    """Return True if bursts are missing with all of their intervals."""
    return any(part.quantity == WHOLE or (isinstance(part, Injections) and part.of_bursts) for part in selections)
