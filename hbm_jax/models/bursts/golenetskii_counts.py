"""The rest-frame Golenetskii relation from counts: every interval of every burst in every detector, fitted together.

In burst i at interval j the spectrum is Band's function, or a power law with an exponential cut-off, whose energy flux
follows its peak energy (at rest, E_peak),

    log10_flux_ij ~ N(log10_N_i - log10(4 pi d_L(z_i)^2) + gamma_i (log10_E_peak_ij - 2), intrinsic_scatter^2),
    gamma_i ~ N(gamma_mean, gamma_std^2),    log10_N_i ~ N(log10_N_mean, log10_N_std^2),
    log10_E_peak_ij ~ N(log10_E_peak_mean, log10_E_peak_std^2),    alpha_ij, beta_ij likewise,

folded through the response of every detector, times the detector's effective area, and compared with counts.
(Golenetskii et al. 1983, Nature 306, 451; Burgess 2019, MNRAS 488, 1.)
"""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist

from hbm_jax.data.bursts.spectra import BurstSpectra
from hbm_jax.distributions.counts import Counts
from hbm_jax.models.bursts.fluxes import BurstFluxes, Coordinates, Line
from hbm_jax.models.bursts.folded import FRAMES, SHAPES, TOLERANCE, FoldedBursts
from hbm_jax.models.bursts.interval_fits import fit_intervals
from hbm_jax.models.fold_errors import fold_cautions
from hbm_jax.models.partial_centering import form, sample_centred
from hbm_jax.models.priors import Prior, complete_priors, sample_prior
from hbm_jax.models.protocol import configuration, simulated
from hbm_jax.names import choose
from hbm_jax.spectra.statistics.statistic import STATISTICS
from hbm_jax.validation import DataError

LATENTS = ("marginal", "sampled")
COUNTS = tuple(name for name in STATISTICS if not name.startswith("chi2"))
POPULATION: dict[str, Prior] = {
    "gamma_mean": dist.Normal(1.5, 0.5),
    "gamma_std": dist.HalfNormal(0.5),
    "log10_N_mean": dist.Normal(52.0, 1.0),
    "log10_N_std": dist.HalfNormal(1.0),
    "log10_E_peak_mean": dist.Normal(2.6, 0.5),
    "log10_E_peak_std": dist.HalfNormal(0.5),
    "alpha_mean": dist.Normal(-0.8, 0.4),
    "alpha_std": dist.HalfNormal(0.4),
}
BETA: dict[str, Prior] = {"beta_mean": dist.Normal(-2.5, 0.4), "beta_std": dist.HalfNormal(0.4)}
SCATTER: dict[str, Prior] = {"intrinsic_scatter": dist.HalfNormal(0.3)}
AREA: dict[str, Prior] = {"effective_area": dist.LogNormal(0.0, 0.1)}
UNITS = {
    "log10_N": "erg/s",
    "log10_N_mean": "erg/s",
    "log10_N_std": "dex",
    "log10_luminosity": "erg/s",
    "log10_E_peak": "keV",
    "log10_E_peak_mean": "keV",
    "log10_E_peak_std": "dex",
    "log10_flux": "erg/cm^2/s",
    "intrinsic_scatter": "dex",
}


NAMES_CUTOFF = ("log10_E_peak", "alpha", "log10_flux")
HINGE = 0.05  # width over which an index bends at the bound of its domain


def _bent(x):
    """Return the softplus function: x where it is well above 0, and next to 0 where it is below."""
    return HINGE * jnp.logaddexp(x / HINGE, 0.0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class PreparedBursts:
    """What `GolenetskiiCounts.prepare` returns: all that depends on the data alone.

    Attributes
    ----------
    folded : FoldedBursts
        Responses, folded, and the statistic.
    center : (I, P)
        Where single fits have peak energy, alpha, (beta,) and flux. It steers the sampler and nothing else.
    slopes : (I, P, P)
        How each of these follows those before it, by the covariance of the single fits: lower triangles.
    level : (B,)
        Mean of log10_E_peak - 2 in each burst.
    lines : (B, 2)
        log10 of the luminosity there, and slope, of a line through each burst's fluxes.
    forms : dict of str to (array, float)
        Centredness of each element of a site, and the scale it refers to; see `hbm_jax.inference.centre`.
    """

    folded: FoldedBursts
    center: Any
    slopes: Any
    level: Any
    lines: Any
    forms: dict[str, tuple[Any, Any]]

    def trend(self, own: Mapping[str, Any]) -> Any:
        """How the parameter that comes after those in ``own`` follows them, in order, (I,)."""
        k = len(own)
        away = (value - self.center[:, j] for j, value in enumerate(own.values()))
        return sum(self.slopes[:, k, j] * one for j, one in enumerate(away))


# What was worked out for a sample, as long as that lives: a program is traced many times.
_PREPARED: weakref.WeakKeyDictionary[BurstSpectra, dict[Any, PreparedBursts]] = weakref.WeakKeyDictionary()


def _forms(folded: FoldedBursts, values, covariance, left, level) -> tuple[np.ndarray, dict[str, Any]]:
    """Lines through the fluxes, and how centred each element is to be, by what single fits know of it."""
    names = ("log10_E_peak", "alpha", "beta", "log10_flux") if values.shape[1] == 4 else NAMES_CUTOFF
    forms = {}
    for k, name in enumerate(names[:-1]):
        own = np.var(values[:, k]) - np.median(covariance[:, k, k])
        forms[name] = form(1.0 / left[:, k], np.sqrt(max(own, 0.05**2)))
    # A line for each burst, of one slope, through its fluxes.
    of = np.asarray(folded.of_burst)
    num = of.sum(axis=0)
    x = values[:, 0] - 2.0 - of @ level
    bright = values[:, -1] + np.asarray(folded.log10_sphere)
    mean = of.T @ bright / num
    y = bright - of @ mean
    slope = (x @ y) / max(x @ x, 1e-12)
    variance = max(np.mean((y - slope * x) ** 2) - np.median(left[:, -1]), 0.03**2)
    forms["log10_flux"] = form(1.0 / left[:, -1], np.sqrt(variance))
    known = np.maximum(of.T @ x**2 / variance, 1e-6)
    slopes = of.T @ (x * y) / np.maximum(of.T @ x**2, 1e-12)
    weights = known / known.sum()
    excess = weights @ (slopes - weights @ slopes) ** 2 - len(num) / known.sum()
    forms["gamma"] = form(known, np.sqrt(max(excess, 0.1**2)), few=True)
    forms["log10_luminosity"] = form(num / variance, max(float(np.std(mean - slope * level)), 0.1), few=True)
    drawn_in = known * max(excess, 0.1**2)
    slopes = weights @ slopes + drawn_in / (1.0 + drawn_in) * (slopes - weights @ slopes)
    return np.stack([mean, slopes], axis=1), forms


@dataclass(frozen=True, kw_only=True)
class GolenetskiiCounts:
    """Hierarchical model of the spectra of gamma-ray bursts; calling it with data is a NumPyro program.

    Parameters
    ----------
    spectrum : str
        ``"band"``: the function of Band et al. 1993, or ``"cutoff"``: a power law with exponential cut-off (no beta).
    band : (float, float)
        Band of the energy flux [keV].
    frame : str
        Whether it is a band at rest (``"rest"``, seen at E / (1 + z)) or as observed (``"observer"``).
    scatter : bool
        Whether fluxes scatter about a burst's relation, with standard deviation intrinsic_scatter.
    latents : str
        ``"marginal"``: gamma_i and log10_N_i are integrated out, and drawn by `hbm_jax.latents`; ``"sampled"``: they
        are sampled, as they always are without scatter. Both have the same posterior.
    calibration : bool
        Whether each detector but the reference of its burst has an effective area of its own, relative to that of its
        response, with the prior ``effective_area``.
    statistic : str, optional
        ``"cstat"``, ``"wstat"``, ``"pgstat"`` or ``"marginal"``, see `hbm_jax.spectra.prepare`. By default the one that
        the backgrounds ask for: ``"pgstat"`` where they have Gaussian errors, ``"marginal"`` where they are counts.
    H0, Om0 : float
        The universe, flat.
    priors : mapping of str to Distribution, float or str
        Overrides by parameter name; a number holds the parameter fixed.

    Raises
    ------
    ValueError
        For an unknown choice, parameter or prior, or a band that is none.

    Notes
    -----
    The peak energies of all intervals are one population: ``log10_E_peak_std`` is their total scatter, where that of
    `Golenetskii` is of the bursts' means.

    There is a spectrum of that peak energy only where alpha_ij > -2, and beta_ij < alpha_ij; the normal populations go
    beyond. There the spectrum is the one at the bound: alpha + 2 and alpha - beta are bent to stay above 0, by less
    than 3e-6 where they are above 0.5, so that the density is smooth everywhere. How the sampler walks follows from
    fits of single intervals (``PreparedBursts``): alpha, beta, flux are sampled less their trend with what comes
    before them in an interval, and a burst's relation at its mean peak energy instead of at 100 keV. These are shifts,
    so no density changes, and all of them are sites with a location and a scale, of which `hbm_jax.sample` chooses how
    centred each is.

    Examples
    --------
    >>> GolenetskiiCounts(spectrum="cutoff", priors={"intrinsic_scatter": 0.1}).all_priors["intrinsic_scatter"]
    0.1
    """

    spectrum: str = field(default="band", metadata={"help": ", ".join(SHAPES)})
    band: tuple[float, float] = field(default=(1.0, 1e4), metadata={"help": "of the energy flux [keV]"})
    frame: str = field(default="rest", metadata={"help": ", ".join(FRAMES)})
    scatter: bool = field(default=True, metadata={"help": "whether fluxes scatter about a burst's relation"})
    latents: str = field(default="marginal", metadata={"help": ", ".join(LATENTS)})
    calibration: bool = field(default=True, metadata={"help": "whether detectors have effective areas of their own"})
    statistic: str | None = field(default=None, metadata={"help": ", ".join(COUNTS)})
    H0: float = 70.0
    Om0: float = 0.3
    priors: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self):
        choose("spectrum", self.spectrum, SHAPES)
        choose("frame", self.frame, FRAMES)
        choose("latents", self.latents, LATENTS)
        if self.statistic is not None:
            choose("statistic", self.statistic, COUNTS)
        low, high = self.band
        if not 0 < low < high < np.inf:
            raise ValueError(f"band: expected two positive energies [keV] in order; found {self.band}.")
        object.__setattr__(self, "band", (float(low), float(high)))
        object.__setattr__(self, "priors", dict(self.priors))
        width = self.all_priors.get("intrinsic_scatter", 1.0)
        if isinstance(width, float | int) and not width > 0:
            raise ValueError(f"intrinsic_scatter: expected a number above 0, or scatter=False; found {width}.")

    @property
    def all_priors(self) -> dict[str, Prior]:
        """Every parameter with its prior; a number is a parameter held fixed."""
        defaults = dict(POPULATION)
        defaults |= BETA if self.spectrum == "band" else {}
        defaults |= SCATTER if self.scatter else {}
        defaults |= AREA if self.calibration else {}
        return complete_priors(defaults, self.priors, "GolenetskiiCounts")

    def prepare(self, data: BurstSpectra, tolerance: float = TOLERANCE) -> PreparedBursts:
        """Work out what depends on the data alone: few energies to fold by, and fits of single intervals.

        Done by itself when the model is called with data. What it returns can take their place.

        Parameters
        ----------
        data : BurstSpectra
            The bursts.
        tolerance : float
            Largest distance between the fold and a finer one, in standard deviations: ``FoldedBursts.errors``.

        Raises
        ------
        DataError
            For something else than burst spectra.
        """
        if not isinstance(data, BurstSpectra):
            raise DataError(
                f"GolenetskiiCounts: expected BurstSpectra; found {type(data).__name__}. Read them with "
                "hbm_jax.data.read_burst_spectra."
            )
        folded = FoldedBursts.of(
            data,
            shape=self.spectrum,
            band=self.band,
            frame=self.frame,
            statistic=self.statistic,
            H0=self.H0,
            Om0=self.Om0,
            tolerance=tolerance,
        )
        values, covariance, _ = fit_intervals(folded)
        slopes = np.zeros_like(covariance)
        left = np.diagonal(covariance, axis1=1, axis2=2).copy()  # variances, what comes before being known
        for k in range(1, covariance.shape[1]):
            slopes[:, k, :k] = np.linalg.solve(covariance[:, :k, :k], covariance[:, :k, k, None])[..., 0]
            left[:, k] -= np.einsum("ij,ij->i", slopes[:, k, :k], covariance[:, k, :k])
        weights = np.asarray(folded.of_burst)
        level = weights.T @ (values[:, 0] - 2.0) / weights.sum(axis=0)
        return PreparedBursts(folded, values, slopes, level, *_forms(folded, values, covariance, left, level))

    def _prepared(self, data) -> PreparedBursts:
        if isinstance(data, PreparedBursts):
            return data
        if not isinstance(data, BurstSpectra):
            return self.prepare(data)  # which says what is wrong
        kept = _PREPARED.setdefault(data, {})
        choices = (self.spectrum, self.band, self.frame, self.statistic, self.H0, self.Om0)
        if choices not in kept:
            kept[choices] = self.prepare(data)
        return kept[choices]

    def cautions(self, data: BurstSpectra | PreparedBursts) -> tuple[str, ...]:
        """Return notes for a verdict: a fold whose error is above its tolerance."""
        errors = self._prepared(data).folded.errors
        return fold_cautions(errors, TOLERANCE, (), "expected counts, in standard deviations of the data,")

    def __call__(self, data: BurstSpectra | PreparedBursts, observed: bool = True, recover: bool = False):
        """Run the NumPyro program.

        Parameters
        ----------
        data : BurstSpectra or PreparedBursts
            The sample, or what `prepare` returned. With ``observed=False`` everything but the counts of the source
            regions is the design, and these are drawn.
        observed : bool
            Whether to condition on the observed counts.
        recover : bool
            With marginal latents, also draw gamma and log10_N of each burst from their exact conditional.
        """
        prepared = self._prepared(data)
        folded = prepared.folded
        priors = self.all_priors
        p: dict[str, Any] = {n: sample_prior(n, prior) for n, prior in priors.items() if n != "effective_area"}
        if self.scatter and self.latents == "marginal":
            own = self._sample_spectra(p, prepared)
            own["log10_flux"] = self._sample_fluxes(p, own, prepared, draw_lines=recover or not observed)
        else:
            with numpyro.plate("burst", len(prepared.level), dim=-1):
                gamma = sample_centred("gamma", p["gamma_mean"], p["gamma_std"], prepared.forms["gamma"])
                location = p["log10_N_mean"] + gamma * prepared.level
                at_level = sample_centred(
                    "log10_luminosity", location, p["log10_N_std"], prepared.forms["log10_luminosity"]
                )
                log10_N = numpyro.deterministic("log10_N", at_level - gamma * prepared.level)
            own = self._sample_spectra(p, prepared)
            flux = folded.of_burst @ log10_N - folded.log10_sphere
            flux += folded.of_burst @ gamma * (own["log10_E_peak"] - 2.0)
            with numpyro.plate("interval", len(prepared.center), dim=-1):
                if self.scatter:
                    chosen, trend = prepared.forms["log10_flux"], prepared.trend(own)
                    own["log10_flux"] = sample_centred("log10_flux", flux, p["intrinsic_scatter"], chosen, trend)
                else:
                    own["log10_flux"] = numpyro.deterministic("log10_flux", flux)
        expected = self.expected(folded, own | self._effective_areas(folded, priors))
        num, num_groups = np.shape(folded.statistic.counts)
        values = folded.statistic.counts if observed else None
        with numpyro.plate("spectrum", num, dim=-2), numpyro.plate("group", num_groups, dim=-1):
            numpyro.sample("counts", Counts(expected, folded.statistic), obs=values)

    def _sample_spectra(self, p, prepared: PreparedBursts) -> dict[str, Any]:
        """Sample peak energy and indices of each interval, each less its trend with those before it."""
        own: dict[str, Any] = {}
        with numpyro.plate("interval", len(prepared.center), dim=-1):
            for name in ("log10_E_peak", "alpha", *(["beta"] if self.spectrum == "band" else [])):
                chosen, trend = prepared.forms[name], prepared.trend(own)
                own[name] = sample_centred(name, p[f"{name}_mean"], p[f"{name}_std"], chosen, trend)
        return own

    def _sample_fluxes(self, p, own, prepared: PreparedBursts, draw_lines: bool):
        """Sample the fluxes of each burst together, and with them known its line."""
        x, of_burst = own["log10_E_peak"] - 2.0, prepared.folded.of_burst
        sphere = prepared.folded.log10_sphere
        level, slope = prepared.lines.T
        guess = of_burst @ (level - slope * prepared.level) + of_burst @ slope * x - sphere
        line = Line(p["log10_N_mean"], p["log10_N_std"], p["gamma_mean"], p["gamma_std"], p["intrinsic_scatter"])
        coordinates = Coordinates(guess, prepared.trend(own), *prepared.forms["log10_flux"])
        fluxes = BurstFluxes(x, sphere, of_burst, line, coordinates)
        flux = fluxes.flux(numpyro.sample("_log10_flux", fluxes))
        with numpyro.plate("interval", len(prepared.center), dim=-1):
            numpyro.deterministic("log10_flux", flux)
        if draw_lines:
            noise = numpyro.sample("_noise", dist.Normal(jnp.zeros((2, len(prepared.level))), 1.0).to_event(2))
            with numpyro.plate("burst", len(prepared.level), dim=-1):
                for name, value in zip(("log10_N", "gamma"), fluxes.lines(flux, noise), strict=True):
                    numpyro.deterministic(name, value)
        return flux

    def _effective_areas(self, folded: FoldedBursts, priors) -> dict[str, Any]:
        num = np.shape(folded.of_free)[1]
        if not (self.calibration and num):
            return {}
        with numpyro.plate("calibrated_detector", num, dim=-1):
            area = sample_prior("effective_area", priors["effective_area"])
            return {"effective_area": jnp.broadcast_to(area, num)}

    def expected(self, folded: FoldedBursts, values: Mapping[str, Any]):
        """Return the counts expected of the bursts in each spectrum's groups, without background, (N, G).

        Parameters
        ----------
        folded : FoldedBursts
            Of `prepare`.
        values : mapping of str to array
            ``log10_E_peak, alpha, beta, log10_flux`` (I,) of the intervals, ``effective_area`` (F,) if it is free.
        """
        alpha = -2.0 + _bent(values["alpha"] + 2.0)
        beta = alpha - _bent(alpha - values.get("beta", -3.0))
        area = values.get("effective_area")
        return folded.expected(values["log10_E_peak"], alpha, beta, values["log10_flux"], area)

    def simulate(self, key, data: BurstSpectra, parameters: Mapping[str, float] | None = None):
        """Draw a simulated sample on the design of ``data``.

        Parameters
        ----------
        key : jax.Array
            Random key.
        data : BurstSpectra
            Gives redshifts, intervals, instruments, exposures and backgrounds.
        parameters : mapping of str to float, optional
            True values by name; those not named are drawn from their priors.

        Returns
        -------
        BurstSpectra, dict
            The sample with new counts, and the true value of every parameter and latent.
        """
        observed, truth = simulated(self, key, data, parameters)
        return data.replace_observations(observed["counts"]), truth

    # What the inference and the surfaces ask of a program, beside calling it.

    @property
    def dims(self) -> dict[str, list[str]]:
        """Dimensions of the data site, which are those of its plates."""
        return {"counts": ["spectrum", "group"]}

    def coords(self, data: BurstSpectra) -> dict[str, list]:
        """Labels of the dimensions."""
        if not isinstance(data, BurstSpectra):
            return {}
        free = [n for n, of in zip(data.detector_name, data.reference, strict=True) if not of]
        labels = {"burst": list(data.name), "interval": list(data.interval_name), "spectrum": list(data.spectra.name)}
        return labels | ({"calibrated_detector": free} if self.calibration and free else {})

    @property
    def units(self) -> dict[str, str]:
        """Units of the parameters; absent where dimensionless."""
        return UNITS

    @property
    def target_accept_prob(self) -> float:
        """What `hbm_jax.sample` takes by default: short steps, for few groups whose spread may be next to nothing."""
        return 0.9

    @property
    def chooses_centering(self) -> bool:
        """Whether `hbm_jax.sample` is to choose the form of the latents; single fits have said what a pilot would."""
        return False

    @property
    def description(self) -> str:
        """One line for reports."""
        shape = "Band functions" if self.spectrum == "band" else "cut-off power laws"
        scatter = "with intrinsic scatter" if self.scatter else "without scatter"
        band = f"{self.band[0]:g} to {self.band[1]:g} keV ({self.frame} frame)"
        areas = ", effective areas free" if self.calibration else ""
        return f"Rest-frame Golenetskii relation from counts, {shape}, flux {band}, {scatter}{areas}"

    def to_config(self) -> dict:
        """Choices as plain values, priors as text; ``GolenetskiiCounts(**config)`` is the same model."""
        return configuration(self)
