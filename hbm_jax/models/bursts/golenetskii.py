"""The rest-frame Golenetskii relation of gamma-ray bursts, from catalogue values of flux and peak energy.

In interval j of burst i, with x_ij = log10 of the peak energy in the burst's frame over 100 keV,

    log10 flux_ij = log10_N_i - log10(4 pi d_L(z_i)^2) + gamma_i x_ij + N(0, intrinsic_scatter^2),
    gamma_i ~ N(gamma_mean, gamma_std^2),    log10_N_i ~ N(log10_N_mean, log10_N_std^2),
    x_ij + 2 ~ N(log10_E_peak_burst_i, log10_E_peak_scatter^2),
    log10_E_peak_burst_i ~ N(log10_E_peak_mean, log10_E_peak_std^2),

and flux and peak energy are measured with errors. With ``pooling="complete"`` all points are on one line: the relations
of Amati and of Yonetoku, one point a burst. (Golenetskii et al. 1983, Nature 306, 451; Burgess 2019, MNRAS 488, 1.)
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
from hbm_jax.models.partial_centering import Own, sample_whitened, slopes_of_groups
from hbm_jax.models.priors import Prior, complete_priors, sample_prior
from hbm_jax.models.protocol import configuration, simulated
from hbm_jax.names import choose
from hbm_jax.precomputation import precomputed
from hbm_jax.spectra.model.energetics import log10_sphere
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
# Median 1.6, and 95 per cent from 0.5 to 5.3: the bursts of known redshift.
REDSHIFT: dict[str, Prior] = {"z": dist.LogNormal(0.5, 0.6)}
OBSERVABLES = ("log10_E_peak", "log10_flux")

# Of a sample with known redshifts in a known universe, `_away`, as long as that lives: a program is traced many times.
_AWAY: weakref.WeakKeyDictionary[Bursts, dict[Any, np.ndarray]] = weakref.WeakKeyDictionary()

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
    """Hierarchical model of the Golenetskii relation; calling it with data is a NumPyro program.

    Parameters
    ----------
    pooling : str
        ``"partial"``: every burst has a line of its own, from a population of lines. ``"complete"``: one line for all.
    latents : str
        ``"marginal"``: true peak energies and fluxes are integrated out exactly, and where no limit of flux forbids it,
        so are log10_N and the mean peak energy of each burst. ``"sampled"``: they are sites.
    correlated : bool
        Whether gamma and log10_N are correlated among bursts (partial pooling).
    truncated : bool
        Whether the data have only intervals above a limit of flux, that of `Bursts.log10_flux_limit`: each has then the
        density of its measured values given that the flux is above. Bursts without any interval above it are not
        modelled.
    cosmology : str, optional
        Expansion history with free parameters, one of ``lcdm, olcdm, wcdm, owcdm, w0wacdm``: the relation as a distance
        ladder. Fixed and flat by default.
    H0, Om0 : float
        Of the fixed one. With a free one H0 stays fixed unless it is given a prior: it shifts every log10_N by the
        same, so without a calibrated log10_N_mean the two cannot be told apart.
    band : (float, float)
        Rest-frame band of the luminosity [keV], to which fluxes with a band of their own are corrected.
    priors : mapping of str to Distribution, float or str
        Overrides by parameter name; a number holds the parameter fixed. See `Golenetskii.all_priors` for the defaults;
        ``z`` is that of every burst of unknown redshift.

    Raises
    ------
    ValueError
        For an unknown choice or prior name (the nearest known one is offered), and choices that exclude each other.

    Notes
    -----
    Redshifts that are not known are sites: ``z`` where nothing is known, ``z_measured`` where there is an error. Of
    fluences instead of fluxes the relation is one of energies, and log10_N is in erg.

    Examples
    --------
    >>> sorted(Golenetskii(pooling="complete").all_priors)[:3]
    ['gamma', 'intrinsic_scatter', 'log10_E_peak_mean']
    """

    pooling: str = field(default="partial", metadata={"help": ", ".join(POOLING)})
    latents: str = field(default="marginal", metadata={"help": ", ".join(LATENTS)})
    correlated: bool = field(default=False, metadata={"help": "whether gamma and log10_N are correlated"})
    truncated: bool = field(default=False, metadata={"help": "whether intervals below the limit of flux are missing"})
    cosmology: str | None = field(default=None, metadata={"help": ", ".join(expansion.FREE) + "; fixed by default"})
    H0: float = field(default=70.0, metadata={"help": "km/s/Mpc, of the fixed cosmology"})
    Om0: float = field(default=0.3, metadata={"help": "matter density of the fixed cosmology"})
    band: tuple[float, float] = field(default=BOLOMETRIC, metadata={"help": "keV, of the luminosity, rest frame"})
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
            raise ValueError(f"Golenetskii: band: expected two positive energies [keV] in order; found {self.band}.")
        object.__setattr__(self, "band", (float(low), float(high)))
        object.__setattr__(self, "priors", dict(self.priors))
        self.all_priors  # noqa: B018 - raises for unknown names

    @property
    def all_priors(self) -> dict[str, Prior]:
        """Every parameter with its prior; a number is a parameter held fixed."""
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
            The sample. With ``observed=False`` everything but the measured values is the design, and these are drawn.
        observed : bool
            Whether to condition on the measured values.
        recover : bool
            Whether to draw the latents that were integrated out.
        """
        if self.truncated and not data.has_limit:
            raise DataError(
                "Golenetskii(truncated=True): expected bursts with a log10_flux_limit; found none. Give it, or use "
                "truncated=False."
            )
        priors = self.all_priors
        skipped = {"z", *(("H0", *expansion.FREE[self.cosmology]) if self.cosmology else ())}
        p: dict[str, Any] = {name: sample_prior(name, prior) for name, prior in priors.items() if name not in skipped}
        z, intercept = self._known(data, priors)
        shift = (PIVOT - jnp.log10(1.0 + z))[:, None]
        values = jnp.asarray(data.observed) if observed else None
        if self.pooling == "partial":
            gamma = self._slopes(p, data)
            spread = p["log10_N_std"]
            location = p["log10_N_mean"]
            if self.correlated:
                location = location + p["correlation"] * spread * (gamma - p["gamma_mean"]) / p["gamma_std"]
                spread = spread * jnp.sqrt(1.0 - p["correlation"] ** 2)
            if not self.truncated and self.latents == "marginal":
                self._grouped(p, gamma, location, spread, shift, intercept, data, values, recover)
                return
            level, line = self._lines(p, gamma, location, spread, shift, intercept, data)
        else:
            gamma, line = jnp.asarray(p["gamma"]), p["log10_N"]
            level = p["log10_E_peak_mean"] - PIVOT
        gamma, line, level = (jnp.broadcast_to(a, np.shape(z))[:, None] for a in (gamma, line, level))
        within = p["log10_E_peak_scatter"] if self.pooling == "partial" else p["log10_E_peak_std"]
        intercept, scatter = intercept + line - gamma * shift, p["intrinsic_scatter"]
        limit = jnp.asarray(data.log10_flux_limit)[:, None] if self.truncated else None
        num, most = np.shape(data.used)
        with numpyro.plate("burst", num, dim=-2), numpyro.plate("interval", most, dim=-1):
            center = shift + level
            if self.latents == "sampled":
                own = Own(data.log10_E_peak - shift + PIVOT, np.where(data.used, 1.0 / data.errors[..., 0], 0.0))
                x = sample_whitened("log10_E_peak", level + PIVOT, within, own)
                center, within = shift + x - PIVOT, 0.0
            relation = LinearRelation(center, within, intercept, gamma, scatter, jnp.asarray(data.errors), limit)
            with handlers.mask(mask=np.asarray(data.used)):
                drawn = numpyro.sample("observed", relation, obs=values)
        if recover:
            self._record(relation.conditional(drawn), shift, center if self.latents == "sampled" else None)

    def _known(self, data: Bursts, priors):
        """Redshifts, and what takes the logarithm of a luminosity to that of the measured flux, (B,) and (B, J)."""
        numbers = not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(data))
        if self.cosmology is None and numbers and np.all(data.knows_redshift):
            kept, choices = _AWAY.setdefault(data, {}), (self.H0, self.Om0, self.band)
            if choices not in kept:
                program = jax.jit(lambda z: self._away(data, z, self._fixed))
                kept[choices] = precomputed(lambda: np.asarray(program(np.asarray(data.z))))
            return jnp.asarray(data.z), jnp.asarray(kept[choices])
        z = self._redshifts(data, priors)
        universe = self._fixed if self.cosmology is None else expansion.sample_cosmology(self.cosmology, priors)
        return z, self._away(data, z, universe)

    @property
    def _fixed(self) -> Cosmology:
        return Cosmology.flat(H0=self.H0, Om0=self.Om0)

    def _away(self, data: Bursts, z, universe: Cosmology):
        away = log10_sphere(z, universe)
        if data.quantity == "fluence":
            away = away - jnp.log10(1.0 + z)
        return -away[:, None] - data.log10_k(z, self.band)

    def _redshifts(self, data: Bursts, priors):
        unknown = np.flatnonzero(np.isnan(data.z))
        measured = np.flatnonzero(np.asarray(data.sigma_z) > 0)
        parts, order = [jnp.asarray(data.z)[np.flatnonzero(data.knows_redshift)]], [np.flatnonzero(data.knows_redshift)]
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

    def _slopes(self, p, data: Bursts):
        with numpyro.plate("burst", len(data)):
            return sample_whitened("gamma", p["gamma_mean"], p["gamma_std"], _slopes_of_bursts(data))

    def _lines(self, p, gamma, location, spread, shift, intercept, data: Bursts):
        """Mean peak energy and log10_N of each burst; sampled is the luminosity at that energy, which data know."""
        used, errors = np.asarray(data.used), jnp.asarray(data.errors)
        num = used.sum(axis=1)
        x = _mean_of_bursts(data.log10_E_peak - shift, used)
        y = _mean_of_bursts(data.log10_flux - intercept, used)
        xx, xy, yy = (_mean_of_bursts(errors[..., k], used) for k in range(3))
        with numpyro.plate("burst", len(data)):
            own = Own(x + PIVOT, num / (p["log10_E_peak_scatter"] ** 2 + xx))
            mean = sample_whitened("log10_E_peak_burst", p["log10_E_peak_mean"], p["log10_E_peak_std"], own)
            level = mean - PIVOT
            variance = p["intrinsic_scatter"] ** 2 + yy - 2.0 * gamma * xy + gamma**2 * xx
            own = Own(y + gamma * (level - x), num / variance)
            bright = sample_whitened("log10_luminosity", location + gamma * level, spread, own)
            return level, numpyro.deterministic("log10_N", bright - gamma * level)

    def _grouped(self, p, gamma, location, spread, shift, intercept, data: Bursts, values, recover):
        relation = GroupedLinearRelation(
            p["log10_E_peak_mean"] - PIVOT,
            p["log10_E_peak_std"],
            location,
            spread,
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
            self._record(relation.conditional(drawn, groups), shift, None)

    def _record(self, true, shift, known):
        """Draw the true peak energies (at rest) and fluxes of all intervals."""
        drawn = true.sample(numpyro.prng_key())
        num, most = drawn.shape[:2]
        with numpyro.plate("burst", num, dim=-2), numpyro.plate("interval", most, dim=-1):
            if known is None:
                numpyro.deterministic("log10_E_peak", drawn[..., 0] - shift + PIVOT)
            numpyro.deterministic("log10_flux", drawn[..., 1])

    def simulate(self, key, data: Bursts, parameters: Mapping[str, float] | None = None):
        """Draw a simulated sample on the design of ``data``.

        Parameters
        ----------
        key : jax.Array
            Random key.
        data : Bursts
            Gives redshifts, errors, limits, and how many intervals there are.
        parameters : mapping of str to float, optional
            True values by name; those not named are drawn from their priors.

        Returns
        -------
        Bursts, dict
            The sample with new measured values, and the true value of every parameter and latent.
        """
        model = self if self.truncated else dataclasses.replace(self, latents="sampled")
        observed, truth = simulated(model, key, data, parameters)
        return data.replace_observations(observed["observed"]), truth

    # What the inference and the surfaces ask of a program, beside calling it.

    @property
    def dims(self) -> dict[str, list[str]]:
        """Dimensions of the data site, beyond what the plates say."""
        return {"observed": ["burst", "interval", "observable"]}

    def coords(self, data: Bursts) -> dict[str, list]:
        """Labels of the dimensions."""
        names = np.asarray(data.name)
        found = {"burst": names.tolist(), "observable": list(OBSERVABLES)}
        for dim, which in (("unknown", np.isnan(data.z)), ("uncertain", np.asarray(data.sigma_z) > 0)):
            if which.any():
                found[f"{dim}_redshift"] = names[which].tolist()
        return found

    @property
    def units(self) -> dict[str, str]:
        """Units of the parameters; absent where dimensionless."""
        return UNITS

    @property
    def description(self) -> str:
        """One line for reports."""
        history = "" if self.cosmology is None else f", {expansion.DESCRIPTIONS[self.cosmology]}"
        limit = ", above a limit of flux" if self.truncated else ""
        return f"Golenetskii relation of bursts, {self.pooling} pooling, {self.latents} latents{limit}{history}"

    def to_config(self) -> dict:
        """Choices as plain values, priors as text; ``Golenetskii(**config)`` is the same model."""
        return configuration(self)


def _slopes_of_bursts(data: Bursts) -> Own:
    """Return what the intervals of each burst say of its gamma."""
    noise = data.errors[..., :1]
    each = slopes_of_groups(data.log10_E_peak[..., None], data.log10_flux, noise, np.asarray(data.used))
    return each.own(0, [each.product[:, 0]])


def _mean_of_bursts(values, used):
    """Mean over the intervals of each burst, (B,)."""
    return jnp.where(used, values, 0.0).sum(axis=1) / np.maximum(used.sum(axis=1), 1)
