"""Rest-frame Golenetskii relation of gamma-ray bursts from counts, in all intervals and detectors simultaneously.

The spectrum in interval j of burst i is a Band function, or a power law with an exponential cut-off. Its energy flux
follows its rest-frame peak energy E_peak,

    log10_flux_ij ~ N(log10_N_i - log10(4 pi d_L(z_i)^2) + gamma_i (log10_E_peak_ij - 2), intrinsic_scatter^2),
    gamma_i ~ N(gamma_mean, gamma_std^2),    log10_N_i ~ N(log10_N_mean, log10_N_std^2),
    log10_E_peak_ij ~ N(log10_E_peak_mean, log10_E_peak_std^2),    alpha_ij, beta_ij likewise.

The spectrum is folded through the response of every detector and multiplied by the effective-area factor of the
detector. (Golenetskii et al. 1983, Nature 306, 451; Burgess 2019, MNRAS 488, 1.)
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
from hbm_jax.models.base import configuration, simulated
from hbm_jax.models.bursts.fluxes import BurstFluxes, Coordinates, Line
from hbm_jax.models.bursts.folded import FRAMES, SHAPES, TOLERANCE, FoldedBursts
from hbm_jax.models.bursts.interval_fits import fit_intervals
from hbm_jax.models.fold_errors import fold_cautions
from hbm_jax.models.partial_centering import centring_weight, sample_partially_centred
from hbm_jax.models.priors import Prior, complete_priors, sample_prior
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
HINGE = 0.05  # width of the smooth clip of an index at the bound of its domain


def _soft_positive(x):
    """Return a smooth positive function, about x for x well above 0 and about 0 for x below 0 (softplus)."""
    return HINGE * jnp.logaddexp(x / HINGE, 0.0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class PreparedBursts:
    """Precomputed quantities of `GolenetskiiCounts` that depend on the data alone.

    Attributes
    ----------
    folded : FoldedBursts
        Responses on quadrature nodes, and the fit statistic.
    center : (I, P)
        Peak energy, alpha, (beta,) and flux in fits of single intervals. They change the coordinates of the sampler
        only.
    slopes : (I, P, P)
        Regression coefficients of each parameter on those before it, from the covariance of the single fits; strictly
        lower triangular.
    level : (B,)
        Mean of log10_E_peak - 2 in each burst.
    lines : (B, 2)
        log10 of the luminosity at ``level``, and slope, of a line fitted to the fluxes of each burst.
    forms : dict of str to (array, float)
        Weight of partial non-centring of each element of a site, and the reference scale; see
        `hbm_jax.inference.centre`.
    """

    folded: FoldedBursts
    center: Any
    slopes: Any
    level: Any
    lines: Any
    forms: dict[str, tuple[Any, Any]]

    def trend(self, values: Mapping[str, Any]) -> Any:
        """Return the linear trend of the next parameter with the ``values`` of those before it, (I,)."""
        k = len(values)
        deviations = (value - self.center[:, j] for j, value in enumerate(values.values()))
        return sum(self.slopes[:, k, j] * deviation for j, deviation in enumerate(deviations))


# Cache for the lifetime of a sample, because a program is traced many times.
_PREPARED: weakref.WeakKeyDictionary[BurstSpectra, dict[Any, PreparedBursts]] = weakref.WeakKeyDictionary()


def _lines_and_centring(
    folded: FoldedBursts, values, covariance, conditional_variance, level
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a line through the fluxes of each burst, and weights of the partial non-centring, from single fits."""
    names = ("log10_E_peak", "alpha", "beta", "log10_flux") if values.shape[1] == 4 else NAMES_CUTOFF
    centring_weights = {}
    for k, name in enumerate(names[:-1]):
        variance = np.var(values[:, k]) - np.median(covariance[:, k, k])
        centring_weights[name] = centring_weight(1.0 / conditional_variance[:, k], np.sqrt(max(variance, 0.05**2)))
    # Lines with a common slope give the scatter.
    of_burst = np.asarray(folded.of_burst)
    num = of_burst.sum(axis=0)
    x = values[:, 0] - 2.0 - of_burst @ level
    luminosity = values[:, -1] + np.asarray(folded.log10_sphere_area)
    mean = of_burst.T @ luminosity / num
    y = luminosity - of_burst @ mean
    slope = (x @ y) / max(x @ x, 1e-12)
    scatter_variance = max(np.mean((y - slope * x) ** 2) - np.median(conditional_variance[:, -1]), 0.03**2)
    centring_weights["log10_flux"] = centring_weight(1.0 / conditional_variance[:, -1], np.sqrt(scatter_variance))
    # Slopes of individual bursts, shrunk towards their mean.
    information = np.maximum(of_burst.T @ x**2 / scatter_variance, 1e-6)
    slopes = of_burst.T @ (x * y) / np.maximum(of_burst.T @ x**2, 1e-12)
    weights = information / information.sum()
    excess = weights @ (slopes - weights @ slopes) ** 2 - len(num) / information.sum()
    centring_weights["gamma"] = centring_weight(information, np.sqrt(max(excess, 0.1**2)), few=True)
    centring_weights["log10_luminosity"] = centring_weight(
        num / scatter_variance, max(float(np.std(mean - slope * level)), 0.1), few=True
    )
    signal_to_noise = information * max(excess, 0.1**2)
    slopes = weights @ slopes + signal_to_noise / (1.0 + signal_to_noise) * (slopes - weights @ slopes)
    return np.stack([mean, slopes], axis=1), centring_weights


@dataclass(frozen=True, kw_only=True)
class GolenetskiiCounts:
    """Hierarchical model of the spectra of gamma-ray bursts; an instance is a NumPyro program of the data.

    Parameters
    ----------
    spectrum : str
        ``"band"``: Band function (Band et al. 1993). ``"cutoff"``: power law with an exponential cut-off (no beta).
    band : (float, float)
        Band of the energy flux [keV].
    frame : str
        Frame of ``band``: ``"rest"`` (observed at E / (1 + z)) or ``"observer"``.
    scatter : bool
        Whether fluxes scatter about the line of their burst, with the standard deviation intrinsic_scatter.
    latents : str
        ``"marginal"``: gamma_i and log10_N_i are integrated out, and drawn by `hbm_jax.latents`. ``"sampled"``: they
        are sampled; without scatter they always are. Both give the same posterior.
    calibration : bool
        Whether the effective area of each detector, except the reference detector of its burst, has a free factor with
        the prior ``effective_area``.
    statistic : str, optional
        ``"cstat"``, ``"wstat"``, ``"pgstat"`` or ``"marginal"``, see `hbm_jax.spectra.prepare`. By default it
        follows the background: ``"pgstat"`` for Gaussian errors, ``"marginal"`` for counts.
    H0, Om0 : float
        Hubble constant [km/s/Mpc] and matter density of a flat universe.
    priors : mapping of str to Distribution, float or str
        Priors by parameter name that replace the defaults; a number fixes the parameter.

    Raises
    ------
    ValueError
        For an unknown option, parameter or prior, or an invalid band.

    Notes
    -----
    The peak energies of all intervals form one population: ``log10_E_peak_std`` is their total scatter, while in
    `Golenetskii` it is the scatter of the means of the bursts.

    The spectrum is defined for alpha_ij > -2 and beta_ij < alpha_ij, but the normal populations extend further. Outside
    the domain the spectrum at its bound is used: alpha + 2 and alpha - beta are softly clipped to positive values. The
    clip changes them by less than 3e-6 where they are above 0.5, and the density is smooth everywhere.

    The sampled coordinates follow from fits of single intervals (``PreparedBursts``): alpha, beta and flux are sampled
    minus their linear trend with the parameters before them in the interval, and the line of a burst is sampled at its
    mean peak energy instead of at 100 keV. These shifts do not change the density. Each of these sites has a location
    and a scale, and the weight of its partial non-centring is chosen from the fits.

    Examples
    --------
    >>> GolenetskiiCounts(spectrum="cutoff", priors={"intrinsic_scatter": 0.1}).all_priors["intrinsic_scatter"]
    0.1
    """

    spectrum: str = field(default="band", metadata={"help": ", ".join(SHAPES)})
    band: tuple[float, float] = field(default=(1.0, 1e4), metadata={"help": "band of the energy flux [keV]"})
    frame: str = field(default="rest", metadata={"help": ", ".join(FRAMES)})
    scatter: bool = field(default=True, metadata={"help": "whether fluxes scatter about the line of their burst"})
    latents: str = field(default="marginal", metadata={"help": ", ".join(LATENTS)})
    calibration: bool = field(default=True, metadata={"help": "whether the effective areas of detectors are free"})
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
            raise ValueError(f"band: expected two positive energies [keV] in increasing order; found {self.band}.")
        object.__setattr__(self, "band", (float(low), float(high)))
        object.__setattr__(self, "priors", dict(self.priors))
        width = self.all_priors.get("intrinsic_scatter", 1.0)
        if isinstance(width, float | int) and not width > 0:
            raise ValueError(f"intrinsic_scatter: expected a number above 0, or scatter=False; found {width}.")

    @property
    def all_priors(self) -> dict[str, Prior]:
        """Priors of all parameters; a number fixes a parameter."""
        defaults = dict(POPULATION)
        defaults |= BETA if self.spectrum == "band" else {}
        defaults |= SCATTER if self.scatter else {}
        defaults |= AREA if self.calibration else {}
        return complete_priors(defaults, self.priors, "GolenetskiiCounts")

    def prepare(self, data: BurstSpectra, tolerance: float = TOLERANCE) -> PreparedBursts:
        """Precompute what depends on the data alone: responses on quadrature nodes, and fits of single intervals.

        A call of the model does this automatically and accepts the result in place of the data.

        Parameters
        ----------
        data : BurstSpectra
            The bursts.
        tolerance : float
            Largest error of the expected counts in standard deviations; see ``FoldedBursts.errors``.

        Raises
        ------
        DataError
            If ``data`` are not burst spectra.
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
        conditional_variance = np.diagonal(covariance, axis1=1, axis2=2).copy()  # given the parameters before
        for k in range(1, covariance.shape[1]):
            slopes[:, k, :k] = np.linalg.solve(covariance[:, :k, :k], covariance[:, :k, k, None])[..., 0]
            conditional_variance[:, k] -= np.einsum("ij,ij->i", slopes[:, k, :k], covariance[:, k, :k])
        weights = np.asarray(folded.of_burst)
        level = weights.T @ (values[:, 0] - 2.0) / weights.sum(axis=0)
        lines, centring_weights = _lines_and_centring(folded, values, covariance, conditional_variance, level)
        return PreparedBursts(folded, values, slopes, level, lines, centring_weights)

    def _prepared(self, data) -> PreparedBursts:
        """Return the precomputed quantities of the data, from the cache if possible."""
        if isinstance(data, PreparedBursts):
            return data
        if not isinstance(data, BurstSpectra):
            return self.prepare(data)  # raises a DataError
        cache = _PREPARED.setdefault(data, {})
        options = (self.spectrum, self.band, self.frame, self.statistic, self.H0, self.Om0)
        if options not in cache:
            cache[options] = self.prepare(data)
        return cache[options]

    def cautions(self, data: BurstSpectra | PreparedBursts) -> tuple[str, ...]:
        """Return warnings for the verdict about responses whose error exceeds the tolerance."""
        errors = self._prepared(data).folded.errors
        return fold_cautions(errors, TOLERANCE, (), "expected counts, in standard deviations of the data,")

    def __call__(self, data: BurstSpectra | PreparedBursts, observed: bool = True, recover: bool = False):
        """Run the NumPyro program.

        Parameters
        ----------
        data : BurstSpectra or PreparedBursts
            The sample, or the result of `prepare`. With ``observed=False`` the counts in the source regions are drawn,
            on the design of the sample.
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
            spectra = self._sample_spectra(p, prepared)
            spectra["log10_flux"] = self._sample_fluxes(p, spectra, prepared, draw_lines=recover or not observed)
        else:
            with numpyro.plate("burst", len(prepared.level), dim=-1):
                gamma = sample_partially_centred("gamma", p["gamma_mean"], p["gamma_std"], prepared.forms["gamma"])
                loc = p["log10_N_mean"] + gamma * prepared.level
                luminosity = sample_partially_centred(
                    "log10_luminosity", loc, p["log10_N_std"], prepared.forms["log10_luminosity"]
                )
                log10_N = numpyro.deterministic("log10_N", luminosity - gamma * prepared.level)
            spectra = self._sample_spectra(p, prepared)
            flux = folded.of_burst @ log10_N - folded.log10_sphere_area
            flux += folded.of_burst @ gamma * (spectra["log10_E_peak"] - 2.0)
            with numpyro.plate("interval", len(prepared.center), dim=-1):
                if self.scatter:
                    centering, trend = prepared.forms["log10_flux"], prepared.trend(spectra)
                    spectra["log10_flux"] = sample_partially_centred(
                        "log10_flux", flux, p["intrinsic_scatter"], centering, trend
                    )
                else:
                    spectra["log10_flux"] = numpyro.deterministic("log10_flux", flux)
        expected = self.expected(folded, spectra | self._effective_areas(folded, priors))
        num, num_groups = np.shape(folded.statistic.counts)
        values = folded.statistic.counts if observed else None
        with numpyro.plate("spectrum", num, dim=-2), numpyro.plate("group", num_groups, dim=-1):
            numpyro.sample("counts", Counts(expected, folded.statistic), obs=values)

    def _sample_spectra(self, p, prepared: PreparedBursts) -> dict[str, Any]:
        """Sample peak energy and indices of each interval, each minus its trend with those before it."""
        spectra: dict[str, Any] = {}
        with numpyro.plate("interval", len(prepared.center), dim=-1):
            for name in ("log10_E_peak", "alpha", *(["beta"] if self.spectrum == "band" else [])):
                centering, trend = prepared.forms[name], prepared.trend(spectra)
                spectra[name] = sample_partially_centred(name, p[f"{name}_mean"], p[f"{name}_std"], centering, trend)
        return spectra

    def _sample_fluxes(self, p, spectra, prepared: PreparedBursts, draw_lines: bool):
        """Sample the fluxes of each burst jointly; optionally draw its line given the fluxes."""
        x, of_burst = spectra["log10_E_peak"] - 2.0, prepared.folded.of_burst
        sphere = prepared.folded.log10_sphere_area
        level, slope = prepared.lines.T
        guess = of_burst @ (level - slope * prepared.level) + of_burst @ slope * x - sphere
        line = Line(p["log10_N_mean"], p["log10_N_std"], p["gamma_mean"], p["gamma_std"], p["intrinsic_scatter"])
        coordinates = Coordinates(guess, prepared.trend(spectra), *prepared.forms["log10_flux"])
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
        """Sample the free effective areas."""
        num = np.shape(folded.of_free)[1]
        if not (self.calibration and num):
            return {}
        with numpyro.plate("calibrated_detector", num, dim=-1):
            area = sample_prior("effective_area", priors["effective_area"])
            return {"effective_area": jnp.broadcast_to(area, num)}

    def expected(self, folded: FoldedBursts, values: Mapping[str, Any]):
        """Return the expected counts of the bursts in all spectra and groups, without background, (N, G).

        Parameters
        ----------
        folded : FoldedBursts
            Precomputed responses, from `prepare`.
        values : mapping of str to array
            ``log10_E_peak, alpha, beta, log10_flux`` (I,), and ``effective_area`` (F,) if it is free.
        """
        alpha = -2.0 + _soft_positive(values["alpha"] + 2.0)
        beta = alpha - _soft_positive(alpha - values.get("beta", -3.0))
        area = values.get("effective_area")
        return folded.expected(values["log10_E_peak"], alpha, beta, values["log10_flux"], area)

    def simulate(self, key, data: BurstSpectra, parameters: Mapping[str, float] | None = None):
        """Draw a simulated sample on the design of ``data``.

        Parameters
        ----------
        key : jax.Array
            Random key.
        data : BurstSpectra
            Design of the sample: redshifts, intervals, instruments, exposures and backgrounds.
        parameters : mapping of str to float, optional
            True values by name. The other parameters are drawn from their priors.

        Returns
        -------
        BurstSpectra, dict
            The sample with new counts, and the true value of every parameter and latent.
        """
        observed, truth = simulated(self, key, data, parameters)
        return data.replace_observations(observed["counts"]), truth

    # Interface to inference, command line and report.

    @property
    def dims(self) -> dict[str, list[str]]:
        """Dimensions of the data site, the same as its plates."""
        return {"counts": ["spectrum", "group"]}

    def coords(self, data: BurstSpectra) -> dict[str, list]:
        """Return the labels of the dimensions."""
        if not isinstance(data, BurstSpectra):
            return {}
        free = [name for name, fixed in zip(data.detector_name, data.reference, strict=True) if not fixed]
        labels = {"burst": list(data.name), "interval": list(data.interval_name), "spectrum": list(data.spectra.name)}
        return labels | ({"calibrated_detector": free} if self.calibration and free else {})

    @property
    def units(self) -> dict[str, str]:
        """Units of the parameters that are not dimensionless."""
        return UNITS

    @property
    def target_accept_prob(self) -> float:
        """Default for `hbm_jax.sample`: short steps, because few bursts allow population widths near zero."""
        return 0.9

    @property
    def chooses_centering(self) -> bool:
        """Whether a pilot run chooses the partial non-centring; fits of single intervals determine it already."""
        return False

    @property
    def description(self) -> str:
        """Description of the model in one line, for reports."""
        shape = "Band functions" if self.spectrum == "band" else "cut-off power laws"
        scatter = "with intrinsic scatter" if self.scatter else "without scatter"
        band = f"{self.band[0]:g} to {self.band[1]:g} keV ({self.frame} frame)"
        areas = ", effective areas free" if self.calibration else ""
        return f"Rest-frame Golenetskii relation from counts, {shape}, flux {band}, {scatter}{areas}"

    def to_config(self) -> dict:
        """Return the options as plain values, priors as text; ``GolenetskiiCounts(**config)`` is the same model."""
        return configuration(self)
