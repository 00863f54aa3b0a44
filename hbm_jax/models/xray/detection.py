"""Selection of X-ray sources: by the true flux, by the observed counts of each source, by a function, or by injections.

Detected sources are a part of the population. With a limit of the flux it is the mean of a normal distribution function
over normal fluxes, in closed form, and with a function of index and flux a quadrature. With a cut in counts it depends
on exposure, response, redshift and Galactic column of each source, and on flux, photon index and column of the host.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import lax
from jax.scipy.special import gammainc, log_ndtr, logsumexp
from numpyro import distributions as dist

from hbm_jax.data.xray.afterglows import LIMIT
from hbm_jax.distributions.detected import Detected, DrawnFromInjections
from hbm_jax.distributions.selection import FoundInjections
from hbm_jax.models.efficiency import DetectionFunction, Efficiency, Injections, refuse_narrow
from hbm_jax.validation import DataError, OptionError, Remedy

INDEX, FLUX, COUNTS, COLUMN = "photon_index", "log10_flux", "counts", "log10_nh"
# Table of counts: range and degree of the photon index; grid of log10 of the column of the host [1e22 cm^-2].
INDICES, DEGREE = (-1.0, 5.0), 17
LOWEST, STEP, NUM_COLUMNS = -3.0, 0.1, 71
REFERENCE = -11.0  # log10 flux [erg/cm^2/s] of the table
# Quadrature over the population: trapezoidal rules over the column, with a step of 0.5 standard deviations (0.25 for
# populations that are not normal), and over the logarithm of the time of the last required count, and a Gauss rule over
# the photon index.
REACH, COLUMN_NODES, INDEX_NODES, TIME_NODES = 6.0, 25, 6, 20
FEWEST_COUNTS, MOST_BACKGROUND = 50, 0.2  # required counts, and background in units of these, of an accurate rule
NO_COUNTS = 1e-300
ENERGY_NODES = 24


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class CountLimit:
    """Detected fraction of sources of which a number of counts was observed at least.

    Attributes
    ----------
    least : (N,)
        Smallest number of counts of a detected source, background included.
    log10_counts : (N, DEGREE + 1, NUM_COLUMNS + 2)
        log10 of the expected counts for a photon spectrum of E^-index: coefficients of Chebyshev polynomials of the
        photon index and of cubic splines of the log10 column. Expected counts differ from those of the fold by less
        than 1e-5 (``tests/models/test_afterglow_detection.py``).
    log_band : (N, 2)
        Logarithms of the ends of the band of the flux [keV].
    background : (N,)
        Expected counts of the background.
    thresholds, weights : (N, TIME_NODES)
        log10 of expected source counts above which a source is detected, and their weights.

    Notes
    -----
    The probability of n counts or more of a Poisson variable of mean m is that of a Gamma variable T of shape n below
    m. The detected fraction of a normal population of log10 flux is therefore the mean over T of a normal distribution
    function. This mean, and those over photon index and column, are quadratures with fixed nodes
    (``tests/models/test_afterglow_detection.py``). The background of a source is taken as known. For fluxes with a
    width of 0.05 dex or more, whose mean is up to 4 widths below the limit, the log of the detected fraction has an
    error of 6e-5 for 50 required counts, and of 2e-8 for 100 or more. The rule is not accurate for fewer counts, or for
    a background above a fifth of them.
    """

    least: Any
    log10_counts: Any
    log_band: Any
    background: Any
    thresholds: Any
    weights: Any

    @classmethod
    def of(cls, bound: Any, limit: float, band: tuple[float, float]) -> "CountLimit":
        """Return the detection of the sources of `AbsorbedCounts`, ``bound``, with more than ``limit`` counts each."""
        num, least = len(bound.z), int(np.floor(limit)) + 1
        background = np.where(bound.statistic.used, np.asarray(bound.statistic.background_moments()[0]), 0.0).sum(
            axis=1
        )
        excessive = background > MOST_BACKGROUND * least
        if excessive.any():
            raise DataError(
                f"selection by counts: expected a background of at most {MOST_BACKGROUND:g} times the {least} counts "
                f"that are required; found {background[excessive][0]:.0f} counts in source "
                f"{int(excessive.argmax()) + 1}."
            )
        T, weights = _gamma_nodes(least)
        thresholds = np.log10(np.maximum(T - background[:, None], NO_COUNTS))
        return cls(
            least=np.full(num, float(least)),
            log10_counts=_table(bound, band),
            log_band=np.tile(np.log(band), (num, 1)),
            background=background,
            thresholds=thresholds,
            weights=np.broadcast_to(weights, thresholds.shape).copy(),
        )

    def log10_counts_at(self, index: Any, log10_nh: Any) -> Any:
        """Return log10 of expected counts per unit of flux (N,) at photon indices and log10 columns of the sources."""
        table = jnp.einsum("nk,nkl,nl->n", chebyshev(index), self.log10_counts, splines(log10_nh))
        return table - log10_energy(index, self.log_band[0])

    def detected(self, log10_counts: Any, std: Any) -> Any:
        """Return the detected fraction of normal fluxes whose mean has given log10 counts (N, ...)."""
        extra = (1,) * (jnp.ndim(log10_counts) - 1)
        thresholds = jnp.reshape(self.thresholds, (len(self.thresholds), *extra, -1))
        weights = jnp.reshape(self.weights, thresholds.shape)
        # Accurate where few are detected, at a quarter of the cost of log_ndtr.
        return jnp.sum(weights * 0.5 * lax.erfc((thresholds - log10_counts[..., None]) / (np.sqrt(2.0) * std)), axis=-1)

    def detected_given_column(self, log10_nh: Any, p: Any) -> Any:
        """Return the detected fraction of sources of given log10 columns (N,), over photon index and flux."""
        index, weights = _index_nodes(p)
        at_column = jnp.einsum("nkl,nl->nk", self.log10_counts, splines(log10_nh))
        counts = jnp.einsum("ik,nk->ni", chebyshev(index), at_column) - log10_energy(index, self.log_band[0])
        return self.detected(counts + p["log10_flux_mean"], p["log10_flux_std"]) @ weights

    def log_detected_fraction(self, population: Any, p: Any) -> Any:
        """Return the log of the detected fraction of the population, (N,).

        Parameters
        ----------
        population : Distribution
            Population of log10 of the columns.
        p : mapping of str to scalar
            Means and standard deviations of the populations.
        """
        num = COLUMN_NODES if isinstance(population, dist.Normal) else 2 * COLUMN_NODES - 1
        log10_nh = p["log10_nh_mean"] + p["log10_nh_std"] * np.linspace(-REACH, REACH, num)
        column_weights = jax.nn.softmax(population.log_prob(log10_nh))
        index, index_weights = _index_nodes(p)
        at_index = jnp.einsum("ik,nkl->nil", chebyshev(index), self.log10_counts)
        counts = jnp.einsum("nil,jl->nij", at_index, splines(log10_nh))
        counts = counts - log10_energy(index, self.log_band[0])[:, None]
        fraction = self.detected(counts + p["log10_flux_mean"], p["log10_flux_std"])
        fraction = jnp.einsum("i,j,nij->n", index_weights, column_weights, fraction)
        return jnp.log(jnp.maximum(fraction, jnp.finfo(fraction.dtype).tiny))

    def probability(self, expected: Any) -> Any:
        """Return the probability that sources with expected counts (N,) are detected."""
        return gammainc(self.least, expected + self.background)


@dataclass(frozen=True)
class SourceDetection:
    """Distributions of the latents and the counts of detected sources, for given parameters of the population.

    Attributes
    ----------
    selection : Selection, Efficiency, DetectionFunction or Injections
        The selection.
    p : mapping of str to scalar
        Means and standard deviations of the populations, and the parameters of the selection.
    counts : CountLimit or None
        Limit of counts; None for a limit of the flux.
    found : FoundInjections or None
        Found injections with weights in the population, if the selection is by them.
    first_site : str
        Latent whose density is divided by the detected fraction of injections.
    drawn : mapping of str to array (N,), or None
        True values of injections drawn for the sources of a simulation, by site.
    """

    selection: Any
    p: Any
    counts: CountLimit | None = field(default=None)
    found: FoundInjections | None = field(default=None)
    first_site: str = ""
    drawn: Mapping[str, Any] | None = field(default=None)

    def with_injections(self, sites: Sequence[str], num: int, population: Any = None) -> "SourceDetection":
        """Return the selection of ``num`` sources by injections, with the ``population`` of columns if not normal."""
        injected, p = self.selection.selection(sites), self.p
        values = lax.optimization_barrier(jnp.asarray(injected.values))  # as `InjectedSelection.found`
        populations = [dist.Normal(p[f"{site}_mean"], p[f"{site}_std"]) for site in sites]
        if population is not None:
            populations[-1] = population
        log_density = sum(each.log_prob(values[:, k]) for k, each in enumerate(populations))
        found = FoundInjections(values, log_density - injected.log_density, injected.num, num)
        key = numpyro.prng_key()  # None outside simulations
        drawn = None if key is None else dict(zip(sites, found.sample(key, (num,)).T, strict=True))
        return dataclasses.replace(self, found=found, first_site=sites[0], drawn=drawn)

    def column(self, population: Any, num: int) -> Any:
        """Return the distribution of log10 of the columns of detected sources, from that of all sources."""
        if self.found is not None:
            drawn = None if self.drawn is None else self.drawn[COLUMN]
            return DrawnFromInjections(population.expand((num,)), drawn)
        if self.counts is None:
            return population
        limit, p = self.counts, self.p
        log_fraction = limit.log_detected_fraction(population, p)
        return Detected(
            population.expand((num,)), lambda log10_nh: limit.detected_given_column(log10_nh, p), log_fraction
        )

    def standardised(self, site: str, prior: Any, log10_nh: Any) -> Any:
        """Return the distribution of a standardised latent of detected sources, or a function that returns it.

        The result is as in `hbm_jax.models.partial_centering.Coordinate`.

        Parameters
        ----------
        site : str
            Name of the latent.
        prior : Distribution
            Its standardised population, (N,).
        log10_nh : (N,) or None
            log10 of the columns.
        """
        p, limit = self.p, self.counts
        if self.found is not None:
            drawn = None if self.drawn is None else (self.drawn[site] - p[f"{site}_mean"]) / p[f"{site}_std"]
            return DrawnFromInjections(prior, drawn, self.found.log_normalisation if site == self.first_site else 0.0)
        if site == FLUX and isinstance(self.selection, Efficiency):
            mean, std = p["log10_flux_mean"], p["log10_flux_std"]
            table = self.selection.detection({}, np.ones(1))
            fraction_of_table = jnp.broadcast_to(table.log_detected([mean], [[std**2]]), prior.batch_shape)

            def log_efficiency_of_table(v):
                return table.log_probability((mean + std * v)[..., None])

            return Detected(
                prior, lambda v: jnp.exp(log_efficiency_of_table(v)), fraction_of_table, log_efficiency_of_table
            )
        if isinstance(self.selection, DetectionFunction):
            return self._by_function(site, prior)
        if site == FLUX and limit is None:
            name, name_of_width = self.selection.names
            margin = (p["log10_flux_mean"] - p[name]) / p["log10_flux_std"]
            width = p[name_of_width] / p["log10_flux_std"]
            log_fraction = jnp.broadcast_to(log_ndtr(margin / jnp.sqrt(1.0 + width**2)), prior.batch_shape)

            def log_efficiency(v):
                return log_ndtr((v + margin) / width)

            return Detected(prior, lambda v: jnp.exp(log_efficiency(v)), log_fraction, log_efficiency)
        if limit is None:
            return prior
        if site == FLUX:

            def flux_distribution(values):
                offset = p["log10_flux_mean"] + limit.log10_counts_at(values["photon_index"], log10_nh)
                return Detected(prior, lambda v: limit.probability(10.0 ** (offset + p["log10_flux_std"] * v)))

            return flux_distribution

        def detected_at_index(v):
            index = p["photon_index_mean"] + p["photon_index_std"] * v
            counts = limit.log10_counts_at(index, log10_nh)
            return limit.detected(counts + p["log10_flux_mean"], p["log10_flux_std"])

        return Detected(prior, detected_at_index)

    def _by_function(self, site: str, prior: Any) -> Any:
        """Return the result of `standardised` for a function of photon index and flux."""
        p, function = self.p, self.selection.detection({}, None)
        moments = [(p[f"{name}_mean"], p[f"{name}_std"]) for name in (INDEX, FLUX)]
        (index_mean, index_std), (flux_mean, flux_std) = moments
        if site == INDEX:
            covariance = [[index_std**2], [0.0, flux_std**2]]
            fraction = jnp.broadcast_to(function.log_detected([index_mean, flux_mean], covariance), prior.batch_shape)
            return Detected(
                prior, lambda v: function.probability_given_first(index_mean + index_std * v, *moments[1]), fraction
            )
        if site != FLUX:
            return prior

        def flux_distribution(values):
            def efficiency(v):
                return function.function(values[INDEX], flux_mean + flux_std * v)

            return Detected(prior, efficiency, log_efficiency=lambda v: jnp.log(efficiency(v)))

        return flux_distribution

    def observed_counts(self, distribution: Any) -> Any:
        """Return the distribution of the observed counts of detected sources, from that of all sources."""
        limit = self.counts
        if limit is None:
            return distribution
        return Detected(distribution, lambda counts: (jnp.sum(counts, axis=-1) >= limit.least).astype(counts.dtype))


def chebyshev(index: Any) -> Any:
    """Return the Chebyshev polynomials, (..., DEGREE + 1), at photon indices that are clipped to their range."""
    low, high = INDICES
    x = jnp.clip((2.0 * jnp.asarray(index) - low - high) / (high - low), -1.0, 1.0)
    terms = [jnp.ones_like(x), x]
    for _ in range(DEGREE - 1):  # T_(n + 1) = 2 x T_n - T_(n - 1)
        terms.append(2.0 * x * terms[-1] - terms[-2])
    return jnp.stack(terms, axis=-1)


def log10_energy(index: Any, log_band: Any) -> Any:
    """Return log10 of the integral of E^(1 - index) dE over a band with limits in ln(E / keV), by a Gauss rule."""
    nodes, weights = np.polynomial.legendre.leggauss(ENERGY_NODES)
    middle, half = 0.5 * (log_band[0] + log_band[1]), 0.5 * (log_band[1] - log_band[0])
    exponent = (2.0 - jnp.asarray(index))[..., None] * (middle + half * nodes)
    return logsumexp(exponent + np.log(weights), axis=-1) / np.log(10.0) + jnp.log10(half)


def splines(log10_nh: Any) -> Any:
    """Return uniform cubic B-splines, (..., NUM_COLUMNS + 2), at log10 columns that are clipped to their range."""
    position = jnp.clip((jnp.asarray(log10_nh) - LOWEST) / STEP, 0.0, NUM_COLUMNS - 1.0)
    distance = jnp.abs(position[..., None] - np.arange(-1, NUM_COLUMNS + 1))
    # The cubic B-spline as a function of the distance d from its centre, in steps: two polynomials, 0 for d >= 2.
    within_one_step = 4.0 - 6.0 * distance**2 + 3.0 * distance**3
    beyond = jnp.maximum(2.0 - distance, 0.0) ** 3
    return jnp.where(distance < 1.0, within_one_step, beyond) / 6.0


def _index_nodes(p: Any) -> tuple[Any, np.ndarray]:
    """Return photon indices of a Gauss rule over the population, and their weights."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(INDEX_NODES)
    return p["photon_index_mean"] + p["photon_index_std"] * nodes, weights / weights.sum()


def _gamma_nodes(shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights of a trapezoidal rule over the logarithm of a variable of a Gamma distribution."""
    width = 1.0 / np.sqrt(shape)
    # 7 standard deviations below and 6 above the maximum, and more below, because ln T is skewed towards small values.
    log_ratio = np.linspace(-7.0 * width - 12.25 * width**2, 6.0 * width, TIME_NODES)
    # Density of ln(T / shape), up to a constant: T^shape exp(-T).
    density = np.exp(shape * (log_ratio - np.expm1(log_ratio)))
    return shape * np.exp(log_ratio), density / density.sum()


def _table(bound: Any, band: tuple[float, float]) -> np.ndarray:
    """Return the coefficients of `CountLimit.log10_counts`."""
    x = np.cos(np.pi * (np.arange(DEGREE + 1) + 0.5) / (DEGREE + 1))
    indices = 0.5 * (INDICES[0] + INDICES[1] + (INDICES[1] - INDICES[0]) * x)
    columns = LOWEST + STEP * np.arange(NUM_COLUMNS)
    used = np.asarray(bound.statistic.used)

    @jax.jit
    def log10_counts(bound, log10_nh):
        """Return log10 of the expected counts less log10 flux, (indices, N), for one column of the host."""

        def at_index(index):
            """Return the difference of the logarithms for one photon index, (N,)."""
            values = {"photon_index": index, "log10_flux": REFERENCE, "nh": 10.0**log10_nh}
            values |= {"nh_mw": bound.nh_mw, "z": bound.z}
            p = {name: jnp.broadcast_to(value, np.shape(bound.z)) for name, value in values.items()}
            return jnp.log10(jnp.sum(jnp.where(used, bound.expected(p), 0.0), axis=1)) - REFERENCE

        return lax.map(at_index, jnp.asarray(indices))

    values = np.array([np.asarray(log10_counts(bound, column)) for column in columns])  # (columns, indices, N)
    # Counts per photon rate at 1 keV instead of per flux; `log10_counts_at` converts them back for any band.
    values = values + np.asarray(log10_energy(indices, np.log(band)))[:, None]
    # Interpolation, with no second derivative at both ends of the columns.
    at_ends = np.zeros((2, NUM_COLUMNS + 2))
    at_ends[0, :3] = at_ends[1, -3:] = (1.0, -2.0, 1.0)
    system = np.concatenate([np.asarray(splines(columns)), at_ends])
    coefficients = np.linalg.inv(system)[:, :NUM_COLUMNS]
    from_index = np.linalg.inv(np.polynomial.chebyshev.chebvander(x, DEGREE))
    return np.einsum("ki,jin,lj->nkl", from_index, values, coefficients)


def detection_of(selections: Sequence[Any], p: Any, bound: Any) -> SourceDetection | None:
    """Return the selection of detected sources at parameters of the population; None without a selection."""
    if not selections:
        return None
    limits = {} if bound.flux_limit is None else {selections[0].names[0]: bound.flux_limit}
    return SourceDetection(selections[0], p | limits, bound.detection)


def with_selection(model: Any, bound: Any, data: Any) -> Any:
    """Return bound sources with the detected fraction of each, for a selection by counts.

    Raises DataError for a source with fewer counts than the selection requires, or a redshift with an error, and where
    the limits of the fluxes are a column that the data do not have.
    """
    if not model.selections:
        return bound
    option = f"Afterglow: selection={model.selection!r}"
    if model.selections[0].of_objects:
        if (unknown := ~np.isfinite(data.log10_flux_limit)).any():
            raise DataError(
                f"{option} expects the column {LIMIT} with the limit of every source; found none for "
                f"{int(unknown.sum())} of {len(unknown)} sources, the first {data.name[int(unknown.argmax())]}."
            )
        return dataclasses.replace(bound, flux_limit=np.asarray(data.log10_flux_limit))
    if model.selections[0].quantity != COUNTS:
        return bound
    if bound.uncertain is not None:
        raise DataError(f"{option} expects redshifts without errors; found {len(bound.uncertain_rows)} with one.")
    detection = CountLimit.of(bound, float(model.selections[0].limit), model.band)
    counts = np.where(bound.statistic.used, np.asarray(bound.statistic.counts), 0.0).sum(axis=1)
    too_faint = counts < detection.least
    if too_faint.any():
        row = int(too_faint.argmax())
        raise DataError(
            f"{option}: expected {detection.least[row]:.0f} counts or more of every source; found "
            f"{int(too_faint.sum())} with fewer, the first {data.name[row]} with {counts[row]:.0f}."
        )
    return dataclasses.replace(bound, detection=detection)


def _check_efficiency(part: Efficiency, option: str, sites: Sequence[str]) -> None:
    """Raise OptionError for an efficiency in another quantity, of 0, or of spectra without the flux."""
    if part.quantity != FLUX or FLUX not in sites:
        raise OptionError(f"{option}: expected an efficiency in {FLUX}, a parameter of the spectrum; found {part}.")
    if min(part.probability) == 0.0:
        raise OptionError(
            f"{option} expects probabilities above 0, such as 0.001, because the true flux of a source is a parameter, "
            "and its density cannot be sampled up to where it is 0; found 0."
        )


def check_options(model: Any) -> None:
    """Raise OptionError for a selection that `hbm_jax.models.Afterglow` does not support."""
    if not model.selections:
        return
    option = f"Afterglow: selection={str(model.selection)!r}"
    part, sites = model.selections[0], model.selected_values
    if isinstance(part, Injections):
        part.selection(sites)  # raises for a table that cannot be read
        refuse_narrow(option, model.all_priors, [f"{site}_std" for site in sites])
        return
    if isinstance(part, Efficiency):
        _check_efficiency(part, option, sites)
        return
    if isinstance(part, DetectionFunction):
        if tuple(site for site in sites if site in (INDEX, FLUX)) != (INDEX, FLUX):
            raise OptionError(f"{option}: expected a spectrum with {INDEX} and {FLUX}; found {', '.join(sites)}.")
        refuse_narrow(option, model.all_priors, [f"{INDEX}_std", f"{FLUX}_std"])
        return
    is_supported = part.quantity in (FLUX, COUNTS) and part.missing == "below" and not part.by_group
    if part.of_objects:
        is_supported = is_supported and part.quantity == FLUX and part.limit == LIMIT
    if len(model.selections) > 1 or not is_supported:
        raise OptionError(
            f"{option}: expected one limit such as '{FLUX} > -12 +- 0.1', '{FLUX} > {LIMIT} +- 0.1' for a column of "
            f"limits, or '{COUNTS} > 99'."
        )
    if part.quantity == FLUX:
        if part.is_step:
            raise OptionError(
                f"{option} expects a width, such as '+- 0.05', because the true flux of a source is a parameter, and a "
                "step of its density cannot be sampled; found a width of 0."
            )
        if FLUX not in sites:
            raise OptionError(f"{option} expects a spectrum with {FLUX} and its population; found {', '.join(sites)}.")
        return
    if not part.is_step or not isinstance(part.limit, float | int):
        raise OptionError(f"{option} expects a number of counts, such as '{COUNTS} > 99'.")
    if np.floor(part.limit) + 1 < FEWEST_COUNTS:
        raise OptionError(
            f"{option} expects {FEWEST_COUNTS} required counts or more ('{COUNTS} > {FEWEST_COUNTS - 1}'), below which "
            f"the detected fraction is not accurate; found {np.floor(part.limit) + 1:.0f}."
        )
    spectrum = {} if model.medium.has_power_laws and not model.common else {"spectrum": None, "common": ()}
    for name, value in ({"whim": False, "galactic": "fixed"} | spectrum).items():
        if getattr(model, name) != value:
            message = f"{option} expects {name}={value!r}; found {getattr(model, name)!r}."
            raise OptionError(message, [Remedy(name, value)])
