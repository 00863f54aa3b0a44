"""Selection of whole bursts by injections: simulated bursts of several intervals, found or not.

The density of a simulated burst in the population is that of the peak energies and fluxes of its intervals, with the
line of the burst integrated out. It is multivariate normal, and depends on the redshift of the burst in the sample for
which the detected fraction is estimated.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import lax, random
from numpyro import distributions as dist

from hbm_jax.data.injections import BurstInjections
from hbm_jax.distributions.detected import DrawnFromInjections
from hbm_jax.distributions.selection import FoundInjections
from hbm_jax.models.selection import record_effective
from hbm_jax.validation import DataError

PIVOT = 2.0  # log10 of 100 keV
LOG_2PI = float(np.log(2.0 * np.pi))


class Population(NamedTuple):
    """Population of peak energies and fluxes of the intervals of bursts.

    Attributes
    ----------
    x_mean, group_scale, x_scale : array (...)
        Mean of x = log10_E_peak - 2, and its standard deviations between bursts and between the intervals of one.
    line : (array, array)
        Means of offset and slope of the lines, (...) each.
    covariance : (array, array, array)
        Variance of the offset, covariance with the slope, and variance of the slope, (...) each.
    scatter : array (...)
        Standard deviation of fluxes about a line.
    """

    x_mean: Any
    group_scale: Any
    x_scale: Any
    line: tuple[Any, Any]
    covariance: tuple[Any, Any, Any]
    scatter: Any

    @classmethod
    def of(cls, p: Mapping[str, Any]) -> "Population":
        """Return the population with parameters of `hbm_jax.models.Golenetskii` with partial pooling."""
        offset, slope = p["log10_N_std"], p["gamma_std"]
        return cls(
            p["log10_E_peak_mean"] - PIVOT, p["log10_E_peak_std"], p["log10_E_peak_scatter"],
            (p["log10_N_mean"], p["gamma_mean"]), (offset**2, p.get("correlation", 0.0) * offset * slope, slope**2),
            p["intrinsic_scatter"],
        )  # fmt: skip

    def evaluate(self, x, y, used) -> tuple[Any, Any, tuple[Any, Any, Any]]:
        """Return log density, and mean and covariance of the line given the intervals, of bursts (..., J).

        ``used`` (..., J) is 0 for padding, else 1. Parameters have one axis less than x and y.
        """
        num = jnp.sum(used, axis=-1)

        def total(values):
            return jnp.sum(used * values, axis=-1)

        variance, between = self.x_scale**2, self.group_scale**2
        dx = x - jnp.asarray(self.x_mean)[..., None]
        chi2 = (total(dx**2) - between * total(dx) ** 2 / (variance + num * between)) / variance
        log_determinant = (num - 1.0) * jnp.log(variance) + jnp.log(variance + num * between)
        # The line given the intervals: M = 1 + V A and u = V b, with A and b of the regression of y on 1 and x.
        offset, slope = (jnp.asarray(mean)[..., None] for mean in self.line)
        residual, weight = y - offset - slope * x, 1.0 / self.scatter**2
        a00, a01, a11 = (weight * total(values) for values in (jnp.ones_like(x), x, x**2))
        b0, b1 = (weight * total(values) for values in (residual, residual * x))
        v00, v01, v11 = self.covariance
        m00, m01 = 1.0 + v00 * a00 + v01 * a01, v00 * a01 + v01 * a11
        m10, m11 = v01 * a00 + v11 * a01, 1.0 + v01 * a01 + v11 * a11
        determinant = m00 * m11 - m01 * m10
        u0, u1 = v00 * b0 + v01 * b1, v01 * b0 + v11 * b1
        mean = (m11 * u0 - m01 * u1) / determinant, (m00 * u1 - m10 * u0) / determinant
        covariance = (
            (m11 * v00 - m01 * v01) / determinant,
            (m11 * v01 - m01 * v11) / determinant,
            (m00 * v11 - m10 * v01) / determinant,
        )
        chi2 = chi2 + weight * total(residual**2) - b0 * mean[0] - b1 * mean[1]
        log_determinant = log_determinant - num * jnp.log(weight) + jnp.log(determinant)
        line = self.line[0] + mean[0], self.line[1] + mean[1]
        return -0.5 * (chi2 + log_determinant) - num * LOG_2PI, line, covariance


class InjectedBursts(NamedTuple):
    """Injections of whole bursts as the selection of B bursts of a sample.

    Attributes
    ----------
    injections : BurstInjections
        Found injections, (I, J) intervals, of observed log10_E_peak, log10_flux and further values.
    num_intervals : (B,)
        Number of intervals of each burst of the sample, whose detected fraction is that of injections with as many.
    x_shift : (B, 1)
        Observed log10_E_peak at x = 0.
    intercept : (B, J) or (B, 1)
        log10 of flux over luminosity of the intervals; beyond those of a burst any number.
    """

    injections: BurstInjections
    num_intervals: Any
    x_shift: Any
    intercept: Any

    def found(self, population: Population, others: Mapping[int, tuple[Any, Any]] | None = None) -> FoundInjections:
        """Return found injections with weights in the population of each burst, (B, I).

        ``others`` are means and standard deviations of further values, by their index in the injections.
        """
        values, log_drawn = lax.optimization_barrier(  # as `InjectedSelection.found`
            (jnp.asarray(self.injections.values), jnp.asarray(self.injections.log_density))
        )
        x, y, used = self._standard(values[None], self.injections.used[None])
        population = jax.tree.map(lambda a: a[..., None] if jnp.ndim(a) else a, population)
        log_density, _, _ = population.evaluate(x, y, used)
        for index, (mean, std) in (others or {}).items():
            log_density += jnp.sum(used * dist.Normal(mean, std).log_prob(values[..., index]), axis=-1)
        num = jnp.asarray(self.num_intervals, int)
        same = jnp.asarray(self.injections.used.sum(axis=1)) == num[:, None]
        log_weights = jnp.where(same, log_density - log_drawn, -jnp.inf)
        num_drawn = jnp.asarray(self.injections.num_drawn)[num]
        return FoundInjections(values, log_weights, num_drawn, jnp.ones(len(num)), num)

    def _standard(self, values, used):
        """Return x and y in the units of the lines, (B, I, J) or (B, J), and the mask of intervals."""
        num = values.shape[-2]
        intercept = jnp.asarray(self.intercept)
        width = intercept.shape[-1]
        if width > 1:  # the j-th interval of an injection is observed in the band of the j-th of the burst
            intercept = jnp.pad(intercept[:, :num], ((0, 0), (0, max(num - width, 0))), mode="edge")
        x_shift = jnp.asarray(self.x_shift)
        if values.ndim > 3:
            x_shift, intercept = x_shift[:, None], intercept[:, None]
        return values[..., 0] - x_shift, values[..., 1] - intercept, jnp.asarray(used, values.dtype)

    def lines(self, values, population: Population):
        """Return means and covariances of offset and slope of bursts with true values (B, J, 2+)."""
        used = np.arange(values.shape[1]) < jnp.asarray(self.num_intervals)[:, None]
        _, line, covariance = population.evaluate(*self._standard(values, used))
        return line, covariance


class InjectedDetection(NamedTuple):
    """Detection of whole bursts by injections, of which measured values are (B, J, 2).

    Attributes
    ----------
    bursts : InjectedBursts
        Injections and bursts of the sample.
    """

    bursts: InjectedBursts

    def slopes(self, found: FoundInjections, population: Population, prior: Any, gamma: Any) -> DrawnFromInjections:
        """Return the distribution of standardised slopes of detected bursts; ``gamma`` maps them to slopes."""
        key, drawn = numpyro.prng_key(), None  # None outside simulations
        if key is not None:
            keys = random.split(key)
            values = found.sample(keys[0], np.shape(self.bursts.num_intervals))
            (_, mean), (_, _, variance) = self.bursts.lines(values, population)
            slope = mean + jnp.sqrt(jnp.maximum(variance, 0.0)) * random.normal(keys[1], jnp.shape(mean))
            drawn = _coordinate(gamma, slope)
        return DrawnFromInjections(prior, drawn, found.log_normalisation)

    def detected(self, relation: Any) -> DrawnFromInjections:
        """Return the distribution of the measured values of detected bursts, given their slopes, from that of all."""
        key, drawn = numpyro.prng_key(), None
        if key is not None:
            keys = random.split(key)
            population = Population(
                relation.group_loc, relation.group_scale, relation.x_scale, (relation.offset_loc, relation.slope),
                (relation.offset_scale**2, 0.0, 0.0), relation.scatter,
            )  # fmt: skip
            shape = np.shape(relation.used)
            values = self.bursts.found(population).sample(keys[0], shape[:1])[..., : shape[1], :]
            values = jnp.pad(values, ((0, 0), (0, shape[1] - values.shape[1]), (0, 0)))
            xx, xy, yy = jnp.moveaxis(jnp.asarray(relation.errors), -1, 0)
            noise = random.normal(keys[1], (2, *shape))
            std = jnp.sqrt(xx)
            factor = jnp.where(xx > 0.0, xy / jnp.where(xx > 0.0, std, 1.0), 0.0)
            errors = [std * noise[0], factor * noise[0] + jnp.sqrt(jnp.maximum(yy - factor**2, 0.0)) * noise[1]]
            drawn = jnp.where(relation.used[..., None], values + jnp.stack(errors, axis=-1), 0.0)
        return DrawnFromInjections(relation, drawn)


class InjectedSpectra(NamedTuple):
    """Latents of the I intervals of detected bursts, whose spectra are fitted to counts.

    Attributes
    ----------
    log_fraction : (B,)
        Log of the detected fraction of the population of each burst.
    of_burst : (I, B)
        1 where an interval belongs to a burst, else 0.
    drawn : dict of str to (I,), or None
        Values of injections drawn for the bursts of a simulation, by site.
    """

    log_fraction: Any
    of_burst: Any
    drawn: Mapping[str, Any] | None

    @classmethod
    def of(cls, injections: Any, sites: Sequence[str], p: Mapping[str, Any], folded: Any) -> "InjectedSpectra":
        """Return the latents for injections of bursts with these ``sites``, peak energy and flux first.

        ``p`` are the parameters of the population, and ``folded`` the `FoldedBursts`. Records effective numbers.
        """
        of_burst = jnp.asarray(folded.of_burst)
        num = jnp.sum(of_burst, axis=0)
        stretch, area = ((row @ of_burst / num)[:, None] for row in (folded.log10_stretch, folded.log10_sphere_area))
        bursts = InjectedBursts(injections.bursts(sites), num, PIVOT - stretch, -area)
        population = Population(
            p["log10_E_peak_mean"] - PIVOT, 0.0, p["log10_E_peak_std"], (p["log10_N_mean"], p["gamma_mean"]),
            (p["log10_N_std"] ** 2, 0.0, p["gamma_std"] ** 2), p["intrinsic_scatter"],
        )  # fmt: skip
        others = {2 + k: (p[f"{name}_mean"], p[f"{name}_std"]) for k, name in enumerate(sites[2:])}
        found = bursts.found(population, others)
        record_effective(found)
        key, drawn = numpyro.prng_key(), None  # None outside simulations
        if key is not None:
            values = found.sample(key, np.shape(num))
            row, position = (
                jnp.argmax(of_burst, axis=1),
                jnp.sum((jnp.cumsum(of_burst, axis=0) - 1.0) * of_burst, axis=1),
            )
            drawn = dict(zip(sites, values[row, position.astype(int)].T, strict=True))
            drawn[sites[0]] += folded.log10_stretch
        return cls(found.log_normalisation, of_burst, drawn)

    def of_site(self, name: str) -> Any:
        """Return a function that gives the distribution of a site, as `sample_partially_centred` expects."""

        def detected(prior: Any, latent: Any) -> DrawnFromInjections:
            drawn = None if self.drawn is None else _coordinate(latent, self.drawn[name])
            # The factor of a burst is shared equally among its intervals.
            share = self.of_burst @ (self.log_fraction / jnp.sum(self.of_burst, axis=0))
            return DrawnFromInjections(prior, drawn, share if name == "log10_E_peak" else 0.0)

        return detected

    def of_fluxes(self, fluxes: Any) -> DrawnFromInjections:
        """Return the distribution of the fluxes (I,) of detected bursts, from that of all bursts."""
        return DrawnFromInjections(fluxes, None if self.drawn is None else fluxes.value(self.drawn["log10_flux"]))


def _coordinate(latent: Any, value: Any) -> Any:
    """Return the argument at which a linear function has a value."""
    zero, one = latent(jnp.zeros_like(value)), latent(jnp.ones_like(value))
    return (value - zero) / (one - zero)


def check_intervals(injections: Any, names: Sequence[str], num_intervals: Any, model: str) -> None:
    """Raise DataError for a burst with another number of intervals than any simulated burst that was found."""
    available = injections.bursts(names).used.sum(axis=1)
    missing = ~np.isin(num_intervals, available)
    if missing.any():
        num = int(np.asarray(num_intervals)[missing][0])
        raise DataError(
            f"{model}: selection {injections}: expected found injections of bursts with {num} intervals, as in the "
            f"data; found bursts of {', '.join(map(str, np.unique(available)))}."
        )
