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
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist
from numpyro import handlers

from hbm_jax.cosmology import Cosmology
from hbm_jax.data.bursts.bursts import BOLOMETRIC, MAX_REDSHIFT, Bursts
from hbm_jax.distributions import GroupedLinearRelation, LinearRelation
from hbm_jax.models import expansion
from hbm_jax.models.base import configuration, simulated
from hbm_jax.models.partial_centering import GaussianLikelihood, sample_whitened, slopes_of_groups
from hbm_jax.models.priors import Prior, complete_priors, sample_prior
from hbm_jax.names import choose
from hbm_jax.precomputation import precomputed
from hbm_jax.spectra.model.energetics import log10_sphere_area
from hbm_jax.validation import DataError

POOLING = ("partial", "complete")
LATENTS = ("marginal", "sampled")
PIVOT = 2.0  # log10 of 100 keV

PARTIAL: dict[str, Prior] = {
    "gamma_mean": dist.Normal(1.5, 0.5),
    "gamma_std": dist.HalfNormal(0.5),
    "log10_N_mean": dist.Normal(52.0, 1.0),
    "log10_N_std": dist.HalfNormal(1.0),
}
COMPLETE: dict[str, Prior] = {"gamma": dist.Normal(1.5, 0.5), "log10_N": dist.Normal(52.0, 1.0)}
CORRELATED: dict[str, Prior] = {"correlation": dist.Uniform(-1.0, 1.0)}
PEAKS: dict[str, Prior] = {"log10_E_peak_mean": dist.Normal(2.6, 0.5), "log10_E_peak_std": dist.HalfNormal(0.5)}
WITHIN: dict[str, Prior] = {"log10_E_peak_scatter": dist.HalfNormal(0.5)}
SCATTER: dict[str, Prior] = {"intrinsic_scatter": dist.HalfNormal(0.3)}
# Matches bursts of known redshift: median 1.6, 95 per cent between 0.5 and 5.3.
REDSHIFT: dict[str, Prior] = {"z": dist.LogNormal(0.5, 0.6)}
OBSERVABLES = ("log10_E_peak", "log10_flux")

# Cache of `_flux_over_luminosity` for samples with known redshifts in a fixed cosmology, for the lifetime of the
# sample, because a program is traced many times.
_CONVERSIONS: weakref.WeakKeyDictionary[Bursts, dict[Any, np.ndarray]] = weakref.WeakKeyDictionary()

UNITS = {
    "log10_N": "erg/s",
    "log10_N_mean": "erg/s",
    "log10_N_std": "dex",
    "log10_luminosity": "erg/s",
    "log10_E_peak": "keV",
    "log10_E_peak_burst": "keV",
    "log10_E_peak_mean": "keV",
    "log10_E_peak_std": "dex",
    "log10_E_peak_scatter": "dex",
    "log10_flux": "erg/cm^2/s",
    "intrinsic_scatter": "dex",
    "H0": "km/s/Mpc",
}


@dataclass(frozen=True, kw_only=True)
class Golenetskii:
    """Hierarchical model of the Golenetskii relation; an instance is a NumPyro program of the data.

    Parameters
    ----------
    pooling : str
        ``"partial"``: each burst has its line, drawn from a population of lines. ``"complete"``: all bursts share one
        line.
    latents : str
        ``"marginal"``: true peak energies and fluxes are integrated out exactly, and without truncation also log10_N
        and the mean peak energy of each burst. ``"sampled"``: they are sample sites.
    correlated : bool
        Whether gamma and log10_N are correlated among bursts (partial pooling).
    truncated : bool
        Whether the data contain only intervals above the flux limit `Bursts.log10_flux_limit`. The density of each
        interval is then conditional on a flux above the limit. Bursts without any interval above it are not modelled.
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

    Raises
    ------
    ValueError
        For an unknown option or prior name (the message suggests the nearest known name), or incompatible options.

    Notes
    -----
    Uncertain redshifts are sample sites: ``z`` for unknown redshifts, ``z_measured`` for redshifts with an error. For
    fluences instead of fluxes, energies take the place of luminosities, and log10_N is in erg.

    Examples
    --------
    >>> sorted(Golenetskii(pooling="complete").all_priors)[:3]
    ['gamma', 'intrinsic_scatter', 'log10_E_peak_mean']
    """

    pooling: str = field(default="partial", metadata={"help": ", ".join(POOLING)})
    latents: str = field(default="marginal", metadata={"help": ", ".join(LATENTS)})
    correlated: bool = field(default=False, metadata={"help": "whether gamma and log10_N are correlated"})
    truncated: bool = field(default=False, metadata={"help": "whether intervals below the flux limit are missing"})
    cosmology: str | None = field(default=None, metadata={"help": ", ".join(expansion.FREE) + "; fixed by default"})
    H0: float = field(default=70.0, metadata={"help": "Hubble constant of the fixed cosmology [km/s/Mpc]"})
    Om0: float = field(default=0.3, metadata={"help": "matter density of the fixed cosmology"})
    band: tuple[float, float] = field(default=BOLOMETRIC, metadata={"help": "rest-frame band of the luminosity [keV]"})
    priors: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self):
        choose("pooling", self.pooling, POOLING)
        choose("treatment of the latents", self.latents, LATENTS)
        if self.cosmology is not None:
            choose("cosmology", self.cosmology, expansion.FREE)
        if self.correlated and self.pooling == "complete":
            raise ValueError("Golenetskii: correlated=True expects pooling='partial'; found 'complete'.")
        if self.truncated and self.latents == "sampled":
            raise ValueError("Golenetskii: truncated=True expects latents='marginal'; found 'sampled'.")
        low, high = self.band
        if not 0 < low < high:
            raise ValueError(
                f"Golenetskii: band: expected two positive energies [keV] in increasing order; found {self.band}."
            )
        object.__setattr__(self, "band", (float(low), float(high)))
        object.__setattr__(self, "priors", dict(self.priors))
        self.all_priors  # noqa: B018 - raises for unknown names

    @property
    def all_priors(self) -> dict[str, Prior]:
        """Priors of all parameters; a number fixes a parameter."""
        partial = self.pooling == "partial"
        defaults = dict(PARTIAL if partial else COMPLETE) | (CORRELATED if self.correlated else {}) | SCATTER | PEAKS
        defaults |= (WITHIN if partial else {}) | REDSHIFT
        if self.cosmology is not None:
            defaults |= expansion.default_priors(self.cosmology) | {"H0": self.H0}
        return complete_priors(defaults, self.priors, "Golenetskii")

    def __call__(self, data: Bursts, observed: bool = True, recover: bool = False):
        """Run the NumPyro program.

        Parameters
        ----------
        data : Bursts
            The sample. With ``observed=False`` the measured values are drawn, on the design of the sample.
        observed : bool
            Whether to condition on the measured values.
        recover : bool
            Whether to draw the latents that are integrated out.

        Raises
        ------
        DataError
            If ``truncated`` is set and the data have no flux limit.
        """
        if self.truncated and not data.has_limit:
            raise DataError(
                "Golenetskii(truncated=True): expected bursts with a log10_flux_limit; found none. Set the limit, or "
                "use truncated=False."
            )
        priors = self.all_priors
        skipped = {"z", *(("H0", *expansion.FREE[self.cosmology]) if self.cosmology else ())}
        p: dict[str, Any] = {name: sample_prior(name, prior) for name, prior in priors.items() if name not in skipped}
        z, intercept = self._redshifts_and_conversions(data, priors)
        shift = (PIVOT - jnp.log10(1.0 + z))[:, None]
        values = jnp.asarray(data.observed) if observed else None
        if self.pooling == "partial":
            gamma = self._sample_gamma(p, data)
            N_scale = p["log10_N_std"]
            N_loc = p["log10_N_mean"]
            if self.correlated:
                N_loc = N_loc + p["correlation"] * N_scale * (gamma - p["gamma_mean"]) / p["gamma_std"]
                N_scale = N_scale * jnp.sqrt(1.0 - p["correlation"] ** 2)
            if not self.truncated and self.latents == "marginal":
                self._sample_grouped(p, gamma, N_loc, N_scale, shift, intercept, data, values, recover)
                return
            x_mean, log10_N = self._sample_lines(p, gamma, N_loc, N_scale, shift, intercept, data)
        else:
            gamma, log10_N = jnp.asarray(p["gamma"]), p["log10_N"]
            x_mean = p["log10_E_peak_mean"] - PIVOT
        gamma, log10_N, x_mean = (jnp.broadcast_to(a, np.shape(z))[:, None] for a in (gamma, log10_N, x_mean))
        x_scale = p["log10_E_peak_scatter"] if self.pooling == "partial" else p["log10_E_peak_std"]
        intercept, scatter = intercept + log10_N - gamma * shift, p["intrinsic_scatter"]
        limit = jnp.asarray(data.log10_flux_limit)[:, None] if self.truncated else None
        num, max_intervals = np.shape(data.used)
        with numpyro.plate("burst", num, dim=-2), numpyro.plate("interval", max_intervals, dim=-1):
            center = shift + x_mean
            if self.latents == "sampled":
                likelihood = GaussianLikelihood(
                    data.log10_E_peak - shift + PIVOT, np.where(data.used, 1.0 / data.errors[..., 0], 0.0)
                )
                x = sample_whitened("log10_E_peak", x_mean + PIVOT, x_scale, likelihood)
                center, x_scale = shift + x - PIVOT, 0.0
            relation = LinearRelation(center, x_scale, intercept, gamma, scatter, jnp.asarray(data.errors), limit)
            with handlers.mask(mask=np.asarray(data.used)):
                drawn = numpyro.sample("observed", relation, obs=values)
        if recover:
            self._record_intervals(relation.conditional(drawn), shift, center if self.latents == "sampled" else None)

    def _redshifts_and_conversions(self, data: Bursts, priors):
        """Return the redshifts (B,) and log10 of measured flux over luminosity (B, J)."""
        constant = not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(data))
        if self.cosmology is None and constant and np.all(data.knows_redshift):
            cache, key = _CONVERSIONS.setdefault(data, {}), (self.H0, self.Om0, self.band)
            if key not in cache:
                program = jax.jit(lambda z: self._flux_over_luminosity(data, z, self._fixed_cosmology))
                cache[key] = precomputed(lambda: np.asarray(program(np.asarray(data.z))))
            return jnp.asarray(data.z), jnp.asarray(cache[key])
        z = self._sample_redshifts(data, priors)
        cosmology = (
            self._fixed_cosmology if self.cosmology is None else expansion.sample_cosmology(self.cosmology, priors)
        )
        return z, self._flux_over_luminosity(data, z, cosmology)

    @property
    def _fixed_cosmology(self) -> Cosmology:
        """The flat cosmology with the values of H0 and Om0."""
        return Cosmology.flat(H0=self.H0, Om0=self.Om0)

    def _flux_over_luminosity(self, data: Bursts, z, cosmology: Cosmology):
        """Return log10 of measured flux over luminosity, or of fluence over energy, (B, J)."""
        log10_area = log10_sphere_area(z, cosmology)
        if data.quantity == "fluence":
            log10_area = log10_area - jnp.log10(1.0 + z)
        return -log10_area[:, None] - data.log10_k(z, self.band)

    def _sample_redshifts(self, data: Bursts, priors):
        """Return all redshifts (B,); unknown and uncertain ones are sampled."""
        unknown = np.flatnonzero(np.isnan(data.z))
        measured = np.flatnonzero(np.asarray(data.sigma_z) > 0)
        known = np.flatnonzero(data.knows_redshift)
        parts, order = [jnp.asarray(data.z)[known]], [known]
        if len(unknown):
            with numpyro.plate("unknown_redshift", len(unknown)):
                parts.append(jnp.broadcast_to(sample_prior("z", priors["z"]), (len(unknown),)))
            order.append(unknown)
        if len(measured):
            center, error = np.asarray(data.z)[measured], np.asarray(data.sigma_z)[measured]
            low, high = np.maximum(center - 4.0 * error, 0.01), np.minimum(center + 4.0 * error, MAX_REDSHIFT)
            with numpyro.plate("uncertain_redshift", len(measured)):
                parts.append(numpyro.sample("z_measured", dist.TruncatedNormal(center, error, low=low, high=high)))
            order.append(measured)
        if len(parts) == 1:
            return parts[0]
        return jnp.concatenate(parts)[np.argsort(np.concatenate(order))]

    def _sample_gamma(self, p, data: Bursts):
        """Sample the slope of each burst, (B,)."""
        with numpyro.plate("burst", len(data)):
            return sample_whitened("gamma", p["gamma_mean"], p["gamma_std"], _gamma_estimates(data))

    def _sample_lines(self, p, gamma, N_loc, N_scale, shift, intercept, data: Bursts):
        """Sample the mean peak energy and log10_N of each burst.

        The sampled variable is the luminosity at the mean peak energy, where the data constrain the line best.
        """
        used, errors = np.asarray(data.used), jnp.asarray(data.errors)
        num = used.sum(axis=1)
        x = _mean_of_bursts(data.log10_E_peak - shift, used)
        y = _mean_of_bursts(data.log10_flux - intercept, used)
        xx, xy, yy = (_mean_of_bursts(errors[..., k], used) for k in range(3))
        with numpyro.plate("burst", len(data)):
            likelihood = GaussianLikelihood(x + PIVOT, num / (p["log10_E_peak_scatter"] ** 2 + xx))
            mean = sample_whitened("log10_E_peak_burst", p["log10_E_peak_mean"], p["log10_E_peak_std"], likelihood)
            x_mean = mean - PIVOT
            variance = p["intrinsic_scatter"] ** 2 + yy - 2.0 * gamma * xy + gamma**2 * xx
            likelihood = GaussianLikelihood(y + gamma * (x_mean - x), num / variance)
            luminosity = sample_whitened("log10_luminosity", N_loc + gamma * x_mean, N_scale, likelihood)
            return x_mean, numpyro.deterministic("log10_N", luminosity - gamma * x_mean)

    def _sample_grouped(self, p, gamma, N_loc, N_scale, shift, intercept, data: Bursts, values, recover):
        """Sample the measured values with the lines integrated out; with ``recover`` draw the lines and true values."""
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
            jnp.asarray(data.errors),
            np.asarray(data.used),
        )
        with numpyro.plate("burst", len(data)):
            drawn = numpyro.sample("observed", relation, obs=values)
        if recover:
            groups = relation.groups(drawn).sample(numpyro.prng_key())
            with numpyro.plate("burst", len(data)):
                numpyro.deterministic("log10_E_peak_burst", groups[..., 0] + PIVOT)
                numpyro.deterministic("log10_N", groups[..., 1])
            self._record_intervals(relation.conditional(drawn, groups), shift, None)

    def _record_intervals(self, true, shift, sampled_E_peak):
        """Draw and record the true rest-frame peak energies and fluxes of all intervals."""
        drawn = true.sample(numpyro.prng_key())
        num, max_intervals = drawn.shape[:2]
        with numpyro.plate("burst", num, dim=-2), numpyro.plate("interval", max_intervals, dim=-1):
            if sampled_E_peak is None:
                numpyro.deterministic("log10_E_peak", drawn[..., 0] - shift + PIVOT)
            numpyro.deterministic("log10_flux", drawn[..., 1])

    def simulate(self, key, data: Bursts, parameters: Mapping[str, float] | None = None):
        """Draw a simulated sample on the design of ``data``.

        Parameters
        ----------
        key : jax.Array
            Random key.
        data : Bursts
            Design of the sample: redshifts, errors, flux limits, and number of intervals.
        parameters : mapping of str to float, optional
            True values by name. The other parameters are drawn from their priors.

        Returns
        -------
        Bursts, dict
            The sample with new measured values, and the true value of every parameter and latent.
        """
        model = self if self.truncated else dataclasses.replace(self, latents="sampled")
        observed, truth = simulated(model, key, data, parameters)
        return data.replace_observations(observed["observed"]), truth

    # Interface to inference, command line and report.

    @property
    def dims(self) -> dict[str, list[str]]:
        """Dimensions of the data site, including those not named by plates."""
        return {"observed": ["burst", "interval", "observable"]}

    def coords(self, data: Bursts) -> dict[str, list]:
        """Return the labels of the dimensions."""
        names = np.asarray(data.name)
        labels = {"burst": names.tolist(), "observable": list(OBSERVABLES)}
        for dim, mask in (("unknown", np.isnan(data.z)), ("uncertain", np.asarray(data.sigma_z) > 0)):
            if mask.any():
                labels[f"{dim}_redshift"] = names[mask].tolist()
        return labels

    @property
    def units(self) -> dict[str, str]:
        """Units of the parameters that are not dimensionless."""
        return UNITS

    @property
    def description(self) -> str:
        """Description of the model in one line, for reports."""
        history = "" if self.cosmology is None else f", {expansion.DESCRIPTIONS[self.cosmology]}"
        limit = ", above a flux limit" if self.truncated else ""
        return f"Golenetskii relation of bursts, {self.pooling} pooling, {self.latents} latents{limit}{history}"

    def to_config(self) -> dict:
        """Return the options as plain values, priors as text; ``Golenetskii(**config)`` is the same model."""
        return configuration(self)


def _gamma_estimates(data: Bursts) -> GaussianLikelihood:
    """Return the least-squares estimate of gamma of each burst, and its information."""
    noise = data.errors[..., :1]
    slopes = slopes_of_groups(data.log10_E_peak[..., None], data.log10_flux, noise, np.asarray(data.used))
    return slopes.likelihood(0, [slopes.product[:, 0]])


def _mean_of_bursts(values, used):
    """Return the mean over the intervals of each burst, (B,)."""
    return jnp.where(used, values, 0.0).sum(axis=1) / np.maximum(used.sum(axis=1), 1)
