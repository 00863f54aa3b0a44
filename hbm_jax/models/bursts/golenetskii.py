"""Rest-frame Golenetskii relation of gamma-ray bursts, from catalogue values of flux and peak energy.

In interval j of burst i, with x_ij = log10 of the rest-frame peak energy over 100 keV,

    log10 flux_ij = log10_N_i - log10(4 pi d_L(z_i)^2) + gamma_i x_ij + N(0, intrinsic_scatter^2),
    gamma_i ~ N(gamma_mean, gamma_std^2),    log10_N_i ~ N(log10_N_mean, log10_N_std^2),
    x_ij + 2 ~ N(log10_E_peak_burst_i, log10_E_peak_scatter^2),
    log10_E_peak_burst_i ~ N(log10_E_peak_mean, log10_E_peak_std^2),

and flux and peak energy are measured with errors. With ``pooling="complete"`` all points share one line, as in the
relations of Amati and of Yonetoku, which have one point per burst. (Golenetskii et al. 1983, Nature 306, 451; Burgess
2019, MNRAS 488, 1.)
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist
from numpyro import handlers

from hbm_jax.cosmology import Cosmology
from hbm_jax.data.bursts.bursts import BOLOMETRIC, MAX_REDSHIFT, Bursts
from hbm_jax.data.bursts.flux_bands import FluxBands
from hbm_jax.distributions import GroupedLinearRelation, LinearRelation
from hbm_jax.models import expansion
from hbm_jax.models.bursts.detection import (
    MEASURED,
    PIVOT,
    TRUNCATION,
    check_options,
    check_selected,
    detection_of,
    efficiency_of,
    moved_to_limit,
    offsets,
    sample_slopes,
    selects_whole_bursts,
    whole_detection,
)
from hbm_jax.models.bursts.fluxes import LINES, SCATTER
from hbm_jax.models.bursts.fluxes import UNITS as LINE_UNITS
from hbm_jax.models.efficiency import DetectionFunction, Efficiency, Injections
from hbm_jax.models.partial_centering import GaussianLikelihood, sample_whitened, slopes_of_groups
from hbm_jax.models.priors import Prior, sample_prior
from hbm_jax.models.selection import NONE, Selection, SelectiveModel, as_selections, record_effective, stored
from hbm_jax.names import choose
from hbm_jax.precomputation import padded_axis, padded_size, precomputed
from hbm_jax.spectra.model.energetics import log10_sphere_area
from hbm_jax.validation import DataError, Remedy, energy_band

COMPLETE: dict[str, Prior] = {"gamma": dist.Normal(1.5, 0.5), "log10_N": dist.Normal(52.0, 1.0)}
CORRELATED: dict[str, Prior] = {"correlation": dist.Uniform(-1.0, 1.0)}
PEAKS: dict[str, Prior] = {"log10_E_peak_mean": dist.Normal(2.6, 0.5), "log10_E_peak_std": dist.HalfNormal(0.5)}
WITHIN: dict[str, Prior] = {"log10_E_peak_scatter": dist.HalfNormal(0.5)}
# Matches bursts of known redshift: median 1.6, 95 per cent between 0.5 and 5.3.
REDSHIFT: dict[str, Prior] = {"z": dist.LogNormal(0.5, 0.6)}
OBSERVABLES = ("log10_E_peak", "log10_flux")

UNITS = LINE_UNITS | {
    "log10_E_peak": "keV",
    "log10_E_peak_burst": "keV",
    "log10_E_peak_mean": "keV",
    "log10_E_peak_std": "dex",
    "log10_E_peak_scatter": "dex",
    "H0": "km/s/Mpc",
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class BoundBursts:
    """Bursts bound to a `Golenetskii` model: measured values, and quantities precomputed from the design.

    Attributes
    ----------
    observed, errors, used, log10_flux_limit, log10_peak_flux_limit, quantity
        As in `Bursts`.
    known_z, uncertain_z : (number known,), (number uncertain, 4)
        Redshifts without error; measured redshifts with their errors and the bounds of their distributions.
    order : (B,)
        Index of each burst in the concatenation of known, unknown and uncertain redshifts.
    bands : FluxBands or None
        Bands and spectral shapes of the fluxes; None if all are bolometric.
    slopes : GaussianLikelihood
        Least-squares estimate of gamma of each burst, and its information, (B,) each.
    peak_information : (B, J)
        Inverse variance of log10_E_peak; 0 in padding.
    num_intervals, mean_errors : (B,), (B, 3)
        Number of intervals of each burst, and the mean of their ``errors``.
    flux_over_luminosity : (B, J) or None
        log10 of measured flux over luminosity; None if it depends on parameters.
    num_unknown : int
        Number of unknown redshifts.
    """

    observed: Any
    errors: Any
    used: Any
    log10_flux_limit: Any
    log10_peak_flux_limit: Any
    known_z: Any
    uncertain_z: Any
    order: Any
    bands: FluxBands | None
    slopes: GaussianLikelihood
    peak_information: Any
    num_intervals: Any
    mean_errors: Any
    flux_over_luminosity: Any
    num_unknown: int = field(metadata={"static": True})
    quantity: str = field(metadata={"static": True})

    @classmethod
    def of(cls, data: Bursts) -> "BoundBursts":
        """Return the arrays of a sample, without ``flux_over_luminosity``, which depends on the model."""
        z, used, errors = np.asarray(data.z), np.asarray(data.used), np.asarray(data.errors)
        known, unknown = np.flatnonzero(data.knows_redshift), np.flatnonzero(np.isnan(z))
        uncertain = np.flatnonzero(np.asarray(data.sigma_z) > 0)
        center, error = z[uncertain], np.asarray(data.sigma_z)[uncertain]
        bounds = np.maximum(center - 4.0 * error, 0.01), np.minimum(center + 4.0 * error, MAX_REDSHIFT)
        slopes = slopes_of_groups(np.asarray(data.log10_E_peak)[..., None], data.log10_flux, errors[..., :1], used)
        num_intervals = used.sum(axis=1)
        return cls(
            observed=data.observed,
            errors=errors,
            used=used,
            log10_flux_limit=np.asarray(data.log10_flux_limit),
            log10_peak_flux_limit=np.asarray(data.log10_peak_flux_limit),
            known_z=z[known],
            uncertain_z=np.stack([center, error, *bounds], axis=1),
            order=np.argsort(np.concatenate([known, unknown, uncertain])),
            bands=FluxBands.of(data),
            slopes=slopes.likelihood(0, [slopes.product[:, 0]]),
            peak_information=np.where(used, 1.0 / errors[..., 0], 0.0),
            num_intervals=num_intervals,
            mean_errors=np.where(used[..., None], errors, 0.0).sum(axis=1) / np.maximum(num_intervals, 1)[:, None],
            flux_over_luminosity=None,
            num_unknown=len(unknown),
            quantity=data.quantity,
        )

    def padded(self, num_bursts: int, num_intervals: int) -> "BoundBursts":
        """Return the sample with unused intervals, and bursts of known redshift without intervals, added."""

        def of_bursts(array, value=None):
            return padded_axis(array, num_bursts, value=value)

        def of_intervals(array, value=None):
            return padded_axis(of_bursts(array, value), num_intervals, 1, value)

        num_known, num_added = len(self.known_z), num_bursts - len(self.used)
        order = np.where(self.order < num_known, self.order, self.order + num_added)
        return dataclasses.replace(
            self,
            observed=of_intervals(self.observed),
            errors=of_intervals(self.errors),
            used=of_intervals(self.used, False),
            log10_flux_limit=of_bursts(self.log10_flux_limit),
            log10_peak_flux_limit=of_bursts(self.log10_peak_flux_limit),
            known_z=padded_axis(self.known_z, num_known + num_added),
            order=np.concatenate([order, num_known + np.arange(num_added)]),
            bands=jax.tree.map(of_intervals, self.bands),
            slopes=GaussianLikelihood(of_bursts(self.slopes.estimate), of_bursts(self.slopes.information, 0.0)),
            peak_information=of_intervals(self.peak_information, 0.0),
            num_intervals=of_bursts(self.num_intervals, 0),
            mean_errors=of_bursts(self.mean_errors),
            flux_over_luminosity=None if self.flux_over_luminosity is None else of_intervals(self.flux_over_luminosity),
        )

    def mean_of_bursts(self, values):
        """Return the mean over the intervals of each burst, (B,), of values (B, J)."""
        return jnp.where(self.used, values, 0.0).sum(axis=1) / jnp.maximum(self.num_intervals, 1)


@dataclass(frozen=True, kw_only=True)
class Golenetskii(SelectiveModel):
    """Hierarchical model of the Golenetskii relation; an instance is a NumPyro program of the data.

    Uncertain redshifts are sample sites: ``z`` for unknown redshifts, ``z_measured`` for redshifts with an error. For
    fluences instead of fluxes, energies take the place of luminosities, and log10_N is in erg. Raises ValueError for an
    unknown option or prior name (the message suggests the nearest known name), or incompatible options.

    Parameters
    ----------
    pooling : str
        ``"partial"``: each burst has its line, drawn from a population of lines; bursts of one
        interval each share one line, and the verdict says so. ``"complete"``: all bursts share one line.
    latents : str
        ``"marginal"``: true peak energies and fluxes are integrated out exactly, and without selection also log10_N
        and the mean peak energy of each burst. ``"sampled"``: they are sample sites.
    correlated : bool
        Whether gamma and log10_N are correlated among bursts (partial pooling).
    truncated : bool
        Whether the data contain only intervals above the flux limit `Bursts.log10_flux_limit`: the selection
        ``"log10_flux > log10_flux_limit"``.
    selection : str, Selection, Efficiency, DetectionFunction or Injections
        Intervals that are missing because of their measured flux: ``"log10_flux > -6.5"``, or ``"log10_flux >
        Normal(-6.5, 0.2) +- 0.1"`` for a smooth limit with a prior, see `hbm_jax.models.selection`. The density of each
        interval is then that of detected intervals. Or bursts that are missing with all of their intervals, because
        none of them is bright enough: ``"log10_peak_flux > -6"``, or ``"log10_peak_flux > log10_peak_flux_limit"`` for
        the limits of the bursts in the data. Limits are fluxes in the band of the measured ones, so that the limit in
        luminosity depends on redshift. Intervals may be selected by an efficiency tabulated in log10_flux or in the
        observed log10_E_peak, ``"log10_flux from efficiency.csv"``, or by a function of measured log10_E_peak and
        log10_flux (`hbm_jax.models.DetectionFunction`). Or ``"injections from injections.csv"``: the detected fraction
        is that of simulated intervals, or of simulated bursts, see `hbm_jax.models.Injections`.
    cosmology : str, optional
        Cosmology with free parameters, one of ``lcdm, olcdm, wcdm, owcdm, w0wacdm``, which makes the relation a
        distance indicator. Fixed and flat by default.
    H0, Om0 : float
        Hubble constant [km/s/Mpc] and matter density of the fixed cosmology. With a free cosmology H0 stays fixed
        unless it has a prior: it shifts all log10_N by the same amount, so it is degenerate with log10_N_mean.
    band : (float, float)
        Rest-frame band of the luminosity [keV]. Fluxes in other bands are k-corrected to it.
    priors : mapping of str to Distribution, float or str
        Priors by parameter name that replace the defaults of `Golenetskii.all_priors`; a number fixes the parameter.
        ``z`` is the prior of every unknown redshift.

    Examples
    --------
    >>> sorted(Golenetskii(pooling="complete").all_priors)[:3]
    ['gamma', 'intrinsic_scatter', 'log10_E_peak_mean']
    """

    Bound: ClassVar[type] = BoundBursts
    selected_values = MEASURED
    dims: ClassVar[dict[str, list[str]]] = {"observed": ["burst", "interval", "observable"]}
    units: ClassVar[dict[str, str]] = UNITS
    remedies: ClassVar[dict[str, str]] = {
        "trend": "truncated=True or selection=, if faint intervals are missing, or another cosmology=",
        "groups": 'pooling="partial", if bursts differ',
    }

    pooling: Literal["partial", "complete"] = field(default="partial", metadata={"help": "partial, complete"})
    latents: Literal["marginal", "sampled"] = field(default="marginal", metadata={"help": "marginal, sampled"})
    correlated: bool = field(default=False, metadata={"help": "whether gamma and log10_N are correlated"})
    truncated: bool = field(default=False, metadata={"help": "whether intervals below the flux limit are missing"})
    selection: str | Selection | Efficiency | DetectionFunction | Injections = field(
        default=NONE,
        metadata={"help": "intervals or bursts that are missing, as in 'log10_flux > -6.5' or 'log10_peak_flux > -6'"},
    )
    cosmology: str | None = field(default=None, metadata={"help": ", ".join(expansion.FREE) + "; fixed by default"})
    H0: float = field(default=70.0, metadata={"help": "Hubble constant of the fixed cosmology [km/s/Mpc]"})
    Om0: float = field(default=0.3, metadata={"help": "matter density of the fixed cosmology"})
    band: tuple[float, float] = field(default=BOLOMETRIC, metadata={"help": "rest-frame band of the luminosity [keV]"})

    def check_options(self) -> None:
        """Raise ValueError for an unknown cosmology, options that exclude each other, or an invalid band."""
        if self.cosmology is not None:
            choose("cosmology", self.cosmology, expansion.FREE)
        if self.correlated and self.pooling == "complete":
            raise ValueError("Golenetskii: correlated=True expects pooling='partial'; found 'complete'.")
        object.__setattr__(self, "selection", stored(as_selections(self.selection, "Golenetskii", limits_only=False)))
        check_options(self)
        object.__setattr__(self, "band", energy_band(self.band, "Golenetskii: band"))

    @cached_property
    def _stated_selections(self) -> tuple[Any, ...]:
        """The selection as the option defines it; ``priors`` may replace the priors of its parameters."""
        text = TRUNCATION if self.truncated else self.selection
        return precomputed(lambda: as_selections(text, "Golenetskii", limits_only=False))

    @property
    def default_priors(self) -> dict[str, Prior]:
        """Default prior of every parameter; a number fixes a parameter."""
        partial = self.pooling == "partial"
        defaults = dict(LINES if partial else COMPLETE) | (CORRELATED if self.correlated else {}) | SCATTER | PEAKS
        defaults |= (WITHIN if partial else {}) | REDSHIFT
        if self.cosmology is not None:
            defaults |= expansion.default_priors(self.cosmology) | {"H0": self.H0}
        for part in self._stated_selections:
            defaults |= part.priors
        return defaults

    def bind(self, data: Bursts) -> BoundBursts:
        """Return measured values, indices of known and unknown redshifts, and conversions of fluxes to luminosities.

        Raises DataError if the data are not `Bursts`, have no flux limit with ``truncated``, or fluxes below a known
        limit.
        """
        self.check_container(data, Bursts, "Read them with hbm_jax.data.read_bursts, or use Bursts.from_columns.")
        self.cautions(data)
        for part in self.selections:
            check_selected(data, part, self)
        bound = BoundBursts.of(data)
        if self.cosmology is not None or not np.all(data.knows_redshift):
            return bound
        # Padded, so that samples of other sizes have the same program.
        (rows, columns), sizes = np.shape(bound.used), [padded_size(size) for size in np.shape(bound.used)]
        padded = bound.padded(*sizes)
        program = jax.jit(lambda bound, z: self._flux_over_luminosity(bound, z, self._fixed_cosmology))
        conversion = precomputed(lambda: np.asarray(program(padded, padded.known_z))[:rows, :columns])
        return dataclasses.replace(bound, flux_over_luminosity=conversion)

    def padded(self, bound: BoundBursts) -> tuple[BoundBursts, dict[str, int]]:
        """Return the bursts with unused ones added, as `hbm_jax.models.base.PopulationModel.padded`.

        Nothing is added where true values are sampled, where whole bursts are selected, and without a known redshift.
        """
        rows, columns = np.shape(bound.used)
        if self.latents == "sampled" or selects_whole_bursts(self.selections) or not len(bound.known_z):
            return bound, {}
        return bound.padded(padded_size(rows), padded_size(columns)), {"burst": rows, "interval": columns}

    def num_selected(self, data: Bursts | BoundBursts) -> int:
        """Return the number of intervals, or of bursts that are selected with all of their intervals."""
        return len(data.used) if selects_whole_bursts(self.selections) else int(np.sum(data.used))

    def pooled_for(self, data: Bursts | BoundBursts) -> "Golenetskii":
        """Return the model with complete pooling for bursts of one interval each, else itself."""
        one_interval = self.pooling == "partial" and np.shape(data.used)[1] == 1
        return dataclasses.replace(self, pooling="complete") if one_interval else self

    def cautions(self, data: Bursts) -> list[str]:
        """Return a note if every burst has one interval; raise DataError for options that need several."""
        if self.pooling == "complete" or np.shape(data.used)[1] > 1:
            return []
        num = f"{len(data)} bursts of one interval each"
        needs_intervals = [f"a prior of {name}" for name in (LINES | CORRELATED | WITHIN) if name in self.priors]
        if needs_intervals or self.correlated:
            raise DataError(
                f"Golenetskii: {[*needs_intervals, 'correlated=True'][0]} expects bursts with several intervals; found "
                f"{num}. Leave this out and use pooling='complete'.",
                [Remedy("pooling", "complete")],
            )
        return [
            f"The sample is {num}, so that one line, with slope gamma and normalisation log10_N, is fitted to all "
            "points. pooling='complete' gives the same fit without this note"
        ]

    def program(self, bound: BoundBursts, observed: bool, recover: bool) -> None:
        """Run the NumPyro program; with ``observed=False`` measured values are drawn on the design of the sample."""
        if (model := self.pooled_for(bound)) is not self:
            model.program(bound, observed, recover)
            return
        priors = self.all_priors
        skipped = {"z", *(("H0", *expansion.FREE[self.cosmology]) if self.cosmology else ())}
        p: dict[str, Any] = {name: sample_prior(name, prior) for name, prior in priors.items() if name not in skipped}
        z, intercept = self._redshifts_and_conversions(bound)
        shift = (PIVOT - jnp.log10(1.0 + z))[:, None]  # log10 of the observed energy [keV] at x = 0, 100 keV at rest
        values = jnp.asarray(bound.observed) if observed else None
        limit, width = detection_of(self.selections, bound, p)
        if self.pooling == "partial":
            whole = whole_detection(self.selections, bound, p, shift, intercept)
            gamma = sample_slopes(p, intercept, bound, whole)
            N_loc, N_scale = offsets(p, gamma)
            if self.latents == "marginal" and (whole is not None or not self.selections):
                self._sample_grouped(p, gamma, N_loc, N_scale, shift, intercept, bound, values, recover, whole)
                return
            x_mean, log10_N = self._sample_lines(p, gamma, N_loc, N_scale, shift, intercept, bound)
        else:
            gamma, log10_N = jnp.asarray(p["gamma"]), p["log10_N"]
            x_mean = p["log10_E_peak_mean"] - PIVOT
        gamma, log10_N, x_mean = (jnp.broadcast_to(a, np.shape(z))[:, None] for a in (gamma, log10_N, x_mean))
        x_scale = p["log10_E_peak_scatter"] if self.pooling == "partial" else p["log10_E_peak_std"]
        intercept, scatter = intercept + log10_N - gamma * shift, p["intrinsic_scatter"]
        num, max_intervals = np.shape(bound.used)
        with numpyro.plate("burst", num, dim=-2), numpyro.plate("interval", max_intervals, dim=-1):
            center = shift + x_mean
            if self.latents == "sampled":
                likelihood = GaussianLikelihood(bound.observed[..., 0] - shift + PIVOT, bound.peak_information)
                x = sample_whitened("log10_E_peak", x_mean + PIVOT, x_scale, likelihood)
                center, x_scale = shift + x - PIVOT, 0.0
            relation = LinearRelation(
                center, x_scale, intercept, gamma, scatter, jnp.asarray(bound.errors), limit, width,
                efficiency_of(self.selections, jnp.asarray(bound.used)),
            )  # fmt: skip
            with handlers.mask(mask=bound.used):
                drawn = numpyro.sample("observed", relation, obs=values)
        record_effective(relation.found)
        if recover:
            self._record_intervals(relation.conditional(drawn), shift, center if self.latents == "sampled" else None)

    def _redshifts_and_conversions(self, bound: BoundBursts):
        """Return the redshifts (B,) and log10 of measured flux over luminosity (B, J)."""
        z = self._sample_redshifts(bound)
        if bound.flux_over_luminosity is not None:
            return z, jnp.asarray(bound.flux_over_luminosity)
        cosmology = self._fixed_cosmology
        if self.cosmology is not None:
            cosmology = expansion.sample_cosmology(self.cosmology, self.all_priors)
        return z, self._flux_over_luminosity(bound, z, cosmology)

    @property
    def _fixed_cosmology(self) -> Cosmology:
        """The flat cosmology with the values of H0 and Om0."""
        return Cosmology.flat(H0=self.H0, Om0=self.Om0)

    def _flux_over_luminosity(self, bound: BoundBursts, z, cosmology: Cosmology):
        """Return log10 of measured flux over luminosity, or of fluence over energy, (B, J)."""
        log10_area = log10_sphere_area(z, cosmology)
        if bound.quantity == "fluence":
            log10_area = log10_area - jnp.log10(1.0 + z)
        log10_k = jnp.zeros(np.shape(bound.used)) if bound.bands is None else bound.bands.log10_k(z, self.band)
        return -log10_area[:, None] - log10_k

    def _sample_redshifts(self, bound: BoundBursts):
        """Return all redshifts (B,); unknown and uncertain ones are sampled."""
        parts = [jnp.asarray(bound.known_z)]
        if bound.num_unknown:
            with numpyro.plate("unknown_redshift", bound.num_unknown):
                parts.append(jnp.broadcast_to(sample_prior("z", self.all_priors["z"]), (bound.num_unknown,)))
        if len(bound.uncertain_z):
            center, error, low, high = bound.uncertain_z.T
            with numpyro.plate("uncertain_redshift", len(bound.uncertain_z)):
                parts.append(numpyro.sample("z_measured", dist.TruncatedNormal(center, error, low=low, high=high)))
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)[bound.order]

    def _sample_lines(self, p, gamma, N_loc, N_scale, shift, intercept, bound: BoundBursts):
        """Sample the mean peak energy and log10_N of each burst.

        The sampled variable is the luminosity at the mean peak energy, where the data constrain the line best.
        """
        num, (xx, xy, yy) = bound.num_intervals, bound.mean_errors.T
        x = bound.mean_of_bursts(bound.observed[..., 0] - shift)
        y = bound.mean_of_bursts(bound.observed[..., 1] - intercept)
        with numpyro.plate("burst", len(bound.used)):
            likelihood = GaussianLikelihood(x + PIVOT, num / (p["log10_E_peak_scatter"] ** 2 + xx))
            mean = sample_whitened("log10_E_peak_burst", p["log10_E_peak_mean"], p["log10_E_peak_std"], likelihood)
            x_mean = mean - PIVOT
            variance = p["intrinsic_scatter"] ** 2 + yy - 2.0 * gamma * xy + gamma**2 * xx
            likelihood = GaussianLikelihood(y + gamma * (x_mean - x), num / variance)
            luminosity = sample_whitened("log10_luminosity", N_loc + gamma * x_mean, N_scale, likelihood)
            return x_mean, numpyro.deterministic("log10_N", luminosity - gamma * x_mean)

    def _sample_grouped(self, p, gamma, N_loc, N_scale, shift, intercept, bound: BoundBursts, values, recover, whole):
        """Sample the measured values with the lines integrated out; with ``recover`` draw the lines and true values.

        With a selection of whole bursts, measured values are those of detected ones.
        """
        relation = GroupedLinearRelation(
            p["log10_E_peak_mean"] - PIVOT,
            p["log10_E_peak_std"],
            N_loc,
            N_scale,
            gamma,
            p["log10_E_peak_scatter"],
            p["intrinsic_scatter"],
            shift,
            intercept,
            jnp.asarray(bound.errors),
            bound.used,
        )
        measured = relation if whole is None else whole.detected(relation)
        with numpyro.plate("burst", len(bound.used)):
            drawn = numpyro.sample("observed", measured, obs=values)
        if recover:
            groups = relation.groups(drawn).sample(numpyro.prng_key())
            with numpyro.plate("burst", len(bound.used)):
                numpyro.deterministic("log10_E_peak_burst", groups[..., 0] + PIVOT)
                numpyro.deterministic("log10_N", groups[..., 1])
            self._record_intervals(relation.conditional(drawn, groups), shift, None)

    def _record_intervals(self, distribution, shift, sampled_E_peak):
        """Draw and record the true rest-frame peak energies and fluxes of all intervals from their distribution."""
        drawn = distribution.sample(numpyro.prng_key())
        num, max_intervals = drawn.shape[:2]
        with numpyro.plate("burst", num, dim=-2), numpyro.plate("interval", max_intervals, dim=-1):
            if sampled_E_peak is None:
                numpyro.deterministic("log10_E_peak", drawn[..., 0] - shift + PIVOT)
            numpyro.deterministic("log10_flux", drawn[..., 1])

    def simulate(self, key, data: Bursts, parameters: Mapping[str, float] | None = None):
        """Draw a simulated sample as `hbm_jax.models.base.PopulationModel.simulate`.

        The truth contains all latents; with a selection, it lacks true fluxes and peak energies of intervals.
        """
        model = self if self.selections else dataclasses.replace(self, latents="sampled")
        return SelectiveModel.simulate(model, key, moved_to_limit(data, self.selections), parameters)

    def coords(self, data: Bursts) -> dict[str, list]:
        """Return the labels of the dimensions."""
        names = np.asarray(data.name)
        labels = {"burst": names.tolist(), "observable": list(OBSERVABLES)}
        for dim, mask in (("unknown", np.isnan(data.z)), ("uncertain", np.asarray(data.sigma_z) > 0)):
            if mask.any():
                labels[f"{dim}_redshift"] = names[mask].tolist()
        return labels

    @property
    def target_accept_prob(self) -> float:
        """Default of `hbm_jax.sample`; higher where a limit of the selection is inferred."""
        priors = [prior for part in self.selections for prior in part.priors.values()]
        inferred = any(isinstance(prior, dist.Distribution) for prior in priors)
        return 0.95 if inferred else 0.8

    @property
    def description(self) -> str:
        """Description of the model in one line, for reports."""
        history = "" if self.cosmology is None else f", {expansion.DESCRIPTIONS[self.cosmology]}"
        limit = f", selected by {self.selections[0]}" if self.selections else ""
        return f"Golenetskii relation of bursts, {self.pooling} pooling, {self.latents} latents{limit}{history}"
