"""Rest-frame Golenetskii relation of gamma-ray bursts from counts, in all intervals and detectors simultaneously.

The spectrum in interval j of burst i is a Band function, a power law with an exponential cut-off, or any other model
expression with a peak energy. Its energy flux follows its rest-frame peak energy E_peak,

    log10_flux_ij ~ N(log10_N_i - log10(4 pi d_L(z_i)^2) + gamma_i (log10_E_peak_ij - 2), intrinsic_scatter^2),
    gamma_i ~ N(gamma_mean, gamma_std^2),    log10_N_i ~ N(log10_N_mean, log10_N_std^2),
    log10_E_peak_ij ~ N(log10_E_peak_mean, log10_E_peak_std^2),    alpha_ij, beta_ij likewise.

The spectrum is folded through the response of every detector and multiplied by the effective-area factor of the
detector. (Golenetskii et al. 1983, Nature 306, 451; Burgess 2019, MNRAS 488, 1.)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist

from hbm_jax.data.bursts.spectra import BurstSpectra
from hbm_jax.distributions.counts import Counts
from hbm_jax.models.bursts.detection import PeakFluxDetection, check_options_of_counts
from hbm_jax.models.bursts.fluxes import LINES, SCATTER, UNITS, BurstFluxes, Coordinates, Line
from hbm_jax.models.bursts.folded import TOLERANCE, FoldedBursts
from hbm_jax.models.bursts.injected import InjectedSpectra, check_intervals
from hbm_jax.models.bursts.interval_fits import fit_intervals
from hbm_jax.models.bursts.peaked import PeakedSpectrum
from hbm_jax.models.efficiency import Injections
from hbm_jax.models.fold_cautions import fold_cautions
from hbm_jax.models.partial_centering import CentringWeight, centring_weight, sample_partially_centred
from hbm_jax.models.priors import Prior, sample_prior
from hbm_jax.models.selection import NONE, Selection, SelectiveModel, as_selections, stored
from hbm_jax.names import choose
from hbm_jax.precomputation import precomputed
from hbm_jax.spectra.model.components import Component
from hbm_jax.spectra.model.text import spectrum_to_text
from hbm_jax.spectra.statistics.statistic import STATISTICS
from hbm_jax.validation import energy_band

COUNTS = tuple(name for name in STATISTICS if not name.startswith("chi2"))
FIT_STEPS = 24  # of the fits that choose coordinates; all but a few per cent have converged by then
AREA: dict[str, Prior] = {"effective_area": dist.LogNormal(0.0, 0.1)}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class PreparedBursts:
    """Precomputed quantities of `GolenetskiiCounts` that depend on the data alone.

    Attributes
    ----------
    folded : FoldedBursts
        Responses on quadrature nodes, and the fit statistic.
    center : (I, P)
        Sites of the spectra, the flux last, in fits of single intervals. They change the coordinates of the sampler
        only.
    slopes : (I, P, P)
        Regression coefficients of each site on those before it, from the covariance of the single fits; strictly lower
        triangular.
    level : (B,)
        Mean of log10_E_peak - 2 in each burst.
    lines : (B, 2)
        log10 of the luminosity at ``level``, and slope, of a line fitted to the fluxes of each burst.
    centring : dict of str to (array, float)
        Weight of partial non-centring of each element of a site, and the reference scale; see
        `hbm_jax.models.partial_centering.sample_partially_centred`.
    """

    folded: FoldedBursts
    center: Any
    slopes: Any
    level: Any
    lines: Any
    centring: dict[str, CentringWeight]

    def trend(self, values: Mapping[str, Any]) -> Any:
        """Return the linear trend of the next site with the ``values`` of those before it, (I,)."""
        k = len(values)
        deviations = (value - self.center[:, j] for j, value in enumerate(values.values()))
        return sum(self.slopes[:, k, j] * deviation for j, deviation in enumerate(deviations))


def _lines_and_centring(
    folded: FoldedBursts, values, covariance, conditional_variance, level
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return ``lines`` and ``centring`` of `PreparedBursts` from fits of the I intervals of B bursts.

    Best-fit sites ``values`` (I, P), the flux last, have the ``covariance`` (I, P, P), and each of them the
    ``conditional_variance`` (I, P) given those before it; ``level`` (B,) is the mean of log10_E_peak - 2.
    """
    centring_weights = {}
    for k, varying in enumerate(folded.spectrum.sites):
        std = np.sqrt(max(np.var(values[:, k]) - np.median(covariance[:, k, k]), varying.min_std**2))
        centring_weights[varying.site] = centring_weight(1.0 / conditional_variance[:, k], std)
    # The scatter about lines with a common slope. Widths of populations are at least 0.03 or 0.1 dex, because the
    # differences of variances below may be negative.
    membership = np.asarray(folded.of_burst)
    num_intervals = membership.sum(axis=0)
    x = values[:, 0] - 2.0 - membership @ level
    luminosity = values[:, -1] + np.asarray(folded.log10_sphere_area)
    mean = membership.T @ luminosity / num_intervals
    y = luminosity - membership @ mean
    slope = (x @ y) / max(x @ x, 1e-12)
    scatter_variance = max(np.mean((y - slope * x) ** 2) - np.median(conditional_variance[:, -1]), 0.03**2)
    centring_weights["log10_flux"] = centring_weight(1.0 / conditional_variance[:, -1], np.sqrt(scatter_variance))
    # Slopes of individual bursts, shrunk towards their mean.
    information = np.maximum(membership.T @ x**2 / scatter_variance, 1e-6)
    slopes = membership.T @ (x * y) / np.maximum(membership.T @ x**2, 1e-12)
    weights = information / information.sum()
    slope_variance = weights @ (slopes - weights @ slopes) ** 2 - len(num_intervals) / information.sum()
    slope_variance = max(slope_variance, 0.1**2)
    centring_weights["gamma"] = centring_weight(information, np.sqrt(slope_variance), few=True)
    centring_weights["log10_luminosity"] = centring_weight(
        num_intervals / scatter_variance, max(float(np.std(mean - slope * level)), 0.1), few=True
    )
    signal_to_noise = information * slope_variance
    slopes = weights @ slopes + signal_to_noise / (1.0 + signal_to_noise) * (slopes - weights @ slopes)
    return np.stack([mean, slopes], axis=1), centring_weights


def _line(p: Mapping[str, Any]) -> Line:
    """Return the population of the lines."""
    return Line(p["log10_N_mean"], p["log10_N_std"], p["gamma_mean"], p["gamma_std"], p["intrinsic_scatter"])


@dataclass(frozen=True, kw_only=True)
class GolenetskiiCounts(SelectiveModel):
    """Hierarchical model of the spectra of gamma-ray bursts; an instance is a NumPyro program of the data.

    Raises ValueError for an unknown option, parameter or prior, or an invalid band.

    Parameters
    ----------
    spectrum : Component or str
        ``"band"``: Band function (Band et al. 1993). ``"cutoff"``: power law with an exponential cut-off (no beta). Or
        a model expression in which one component has a peak energy, such as ``"Band() + BlackBody(bb)"``: the energy
        flux of that component follows its peak energy, and each other parameter has a normal population, of its
        logarithm if its default prior is log-normal.
    band : (float, float)
        Band of the energy flux of the component with the peak [keV].
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
    selection : str, Selection or Injections
        Bursts that are missing because they are faint: ``"log10_peak_flux > -6 +- 0.1"`` for a smooth limit of the true
        flux, in ``band``, of the brightest interval. Position and width may have priors, see
        `hbm_jax.models.selection`. Or ``"injections from injections.csv"``: simulated bursts, found or not, see
        `hbm_jax.models.Injections`. Both expect ``latents="marginal"``.
    H0, Om0 : float
        Hubble constant [km/s/Mpc] and matter density of a flat universe.
    priors : mapping of str to Distribution, float or str
        Priors by parameter name that replace the defaults; a number fixes the parameter.

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

    Bound: ClassVar[type] = PreparedBursts
    dims: ClassVar[dict[str, list[str]]] = {"counts": ["spectrum", "group"]}
    target_accept_prob: ClassVar[float] = 0.9  # short steps, because few bursts allow population widths near zero

    spectrum: Any = field(default="band", metadata={"help": "band, cutoff, or an expression with a peak energy"})
    band: tuple[float, float] = field(default=(1.0, 1e4), metadata={"help": "band of the energy flux [keV]"})
    frame: Literal["rest", "observer"] = field(default="rest", metadata={"help": "rest, observer"})
    scatter: bool = field(default=True, metadata={"help": "whether fluxes scatter about the line of their burst"})
    latents: Literal["marginal", "sampled"] = field(default="marginal", metadata={"help": "marginal, sampled"})
    calibration: bool = field(default=True, metadata={"help": "whether the effective areas of detectors are free"})
    statistic: str | None = field(default=None, metadata={"help": ", ".join(COUNTS)})
    selection: str | Selection | Injections = field(
        default=NONE, metadata={"help": "bursts that are missing, as in 'log10_peak_flux > -6 +- 0.1'"}
    )
    H0: float = field(default=70.0, metadata={"help": "Hubble constant [km/s/Mpc]"})
    Om0: float = field(default=0.3, metadata={"help": "matter density of the flat universe"})

    def check_options(self) -> None:
        """Raise ValueError for an invalid spectrum or band, an unknown statistic, or a scatter that is fixed at 0."""
        if isinstance(self.spectrum, Component):
            object.__setattr__(self, "spectrum", spectrum_to_text(self.spectrum))
        self.peaked  # noqa: B018 - raises for a spectrum without a peak energy
        if self.statistic is not None:
            choose("statistic", self.statistic, COUNTS)
        object.__setattr__(self, "band", energy_band(self.band, "GolenetskiiCounts: band"))
        width = self.all_priors.get("intrinsic_scatter", 1.0)
        if isinstance(width, float | int) and not width > 0:
            raise ValueError(f"intrinsic_scatter: expected a number above 0, or scatter=False; found {width}.")
        object.__setattr__(self, "selection", stored(self._stated_selections))
        check_options_of_counts(self)

    @cached_property
    def _stated_selections(self) -> tuple[Any, ...]:
        """The selection as the option defines it; ``priors`` may replace the priors of its parameters."""
        return precomputed(lambda: as_selections(self.selection, "GolenetskiiCounts", limits_only=False))

    @property
    def selected_values(self) -> tuple[str, ...]:
        """Names of the true values of each interval of injections, peak energy and flux first."""
        first, *others, flux = self.peaked.names
        return (first, flux, *others)

    def num_selected(self, data: Any) -> int:
        """Return the number of bursts in the data or bound data."""
        return len(data.level) if isinstance(data, PreparedBursts) else len(data)

    @cached_property
    def peaked(self) -> PeakedSpectrum:
        """Model expression with its peak energy and the populations of its parameters."""
        return PeakedSpectrum.of(self.spectrum)

    @property
    def default_priors(self) -> dict[str, Prior]:
        """Default prior of every parameter; a number fixes a parameter."""
        defaults = dict(LINES)
        for varying in self.peaked.sites:
            defaults |= varying.priors
        defaults |= SCATTER if self.scatter else {}
        for part in self._stated_selections:
            defaults |= part.priors
        return defaults | (AREA if self.calibration else {})

    def prepare(self, data: BurstSpectra, tolerance: float = TOLERANCE) -> PreparedBursts:
        """Precompute responses on quadrature nodes and fits of single intervals, which depend on the data alone.

        As `hbm_jax.models.base.PopulationModel.bind`, with the largest error of the expected counts in standard
        deviations, ``FoldedBursts.errors``, as ``tolerance``.
        """
        self.check_container(data, BurstSpectra, "Read them with hbm_jax.data.read_burst_spectra.")
        for part in self.selections:
            if isinstance(part, Injections):
                num_intervals = np.bincount(data.interval_burst)
                check_intervals(part, self.selected_values, num_intervals, "GolenetskiiCounts")
        options: dict[str, Any] = {name: getattr(self, name) for name in ("band", "frame", "statistic", "H0", "Om0")}
        folded = FoldedBursts.of(data, spectrum=self.peaked, tolerance=tolerance, **options)
        values, covariance, _ = fit_intervals(folded, num_steps=FIT_STEPS)
        slopes = np.zeros_like(covariance)
        conditional_variance = np.diagonal(covariance, axis1=1, axis2=2).copy()  # given the parameters before
        for k in range(1, covariance.shape[1]):
            slopes[:, k, :k] = np.linalg.solve(covariance[:, :k, :k], covariance[:, :k, k, None])[..., 0]
            conditional_variance[:, k] -= np.einsum("ij,ij->i", slopes[:, k, :k], covariance[:, k, :k])
        membership = np.asarray(folded.of_burst)
        level = membership.T @ (values[:, 0] - 2.0) / membership.sum(axis=0)
        lines, centring_weights = _lines_and_centring(folded, values, covariance, conditional_variance, level)
        return PreparedBursts(folded, values, slopes, level, lines, centring_weights)

    bind = prepare

    def cautions(self, data: BurstSpectra | PreparedBursts, bound: PreparedBursts | None = None) -> tuple[str, ...]:
        """Return warnings for the verdict about responses whose error exceeds the tolerance."""
        errors = self.bound(data if bound is None else bound).folded.errors
        names = data.spectra.name if isinstance(data, BurstSpectra) else ()
        return fold_cautions(errors, TOLERANCE, names, "expected counts, in standard deviations of the data,")

    def program(self, bound: PreparedBursts, observed: bool, recover: bool) -> None:
        """Run the NumPyro program; with marginal latents ``recover`` draws the lines of the bursts exactly."""
        folded = bound.folded
        priors = self.all_priors
        p: dict[str, Any] = {n: sample_prior(n, prior) for n, prior in priors.items() if n != "effective_area"}
        if self.scatter and self.latents == "marginal":
            detection = self._detection(p, folded)
            spectra = self._sample_spectra(p, bound, detection)
            draw_lines = recover or not observed
            spectra["log10_flux"] = self._sample_fluxes(p, spectra, bound, draw_lines, detection)
        else:
            with numpyro.plate("burst", len(bound.level), dim=-1):
                gamma = sample_partially_centred("gamma", p["gamma_mean"], p["gamma_std"], bound.centring["gamma"])
                loc = p["log10_N_mean"] + gamma * bound.level
                luminosity = sample_partially_centred(
                    "log10_luminosity", loc, p["log10_N_std"], bound.centring["log10_luminosity"]
                )
                log10_N = numpyro.deterministic("log10_N", luminosity - gamma * bound.level)
            spectra = self._sample_spectra(p, bound)
            flux = folded.of_burst @ log10_N - folded.log10_sphere_area
            flux += folded.of_burst @ gamma * (spectra["log10_E_peak"] - 2.0)
            with numpyro.plate("interval", len(bound.center), dim=-1):
                if self.scatter:
                    weight, trend = bound.centring["log10_flux"], bound.trend(spectra)
                    spectra["log10_flux"] = sample_partially_centred(
                        "log10_flux", flux, p["intrinsic_scatter"], weight, trend
                    )
                else:
                    spectra["log10_flux"] = numpyro.deterministic("log10_flux", flux)
        expected = folded.expected(spectra | self._effective_areas(folded, priors))
        num, num_groups = np.shape(folded.statistic.counts)
        values = folded.statistic.counts if observed else None
        with numpyro.plate("spectrum", num, dim=-2), numpyro.plate("group", num_groups, dim=-1):
            numpyro.sample("counts", Counts(expected, folded.statistic), obs=values)

    def _detection(self, p, folded: FoldedBursts) -> PeakFluxDetection | InjectedSpectra | None:
        """Return the selection at parameters of the population; None without one."""
        if not self.selections:
            return None
        if isinstance(self.selections[0], Injections):
            return InjectedSpectra.of(self.selections[0], self.selected_values, p, folded)
        limit, width = (p[name] for name in self.selections[0].names)
        peaks = p["log10_E_peak_mean"] - 2.0, p["log10_E_peak_std"]
        return PeakFluxDetection(limit, width, _line(p), *peaks, folded.of_burst, folded.log10_sphere_area)

    def _sample_spectra(self, p, bound: PreparedBursts, detection: Any = None) -> dict[str, Any]:
        """Sample the peak energy and the indices of each interval, (I,) by name.

        Each is partially non-centred about its linear trend with the parameters sampled before it.
        """
        spectra: dict[str, Any] = {}
        with numpyro.plate("interval", len(bound.center), dim=-1):
            for name in self.peaked.names[:-1]:
                centering, trend = bound.centring[name], bound.trend(spectra)
                spectra[name] = sample_partially_centred(
                    name,
                    p[f"{name}_mean"],
                    p[f"{name}_std"],
                    centering,
                    trend,
                    None if detection is None else detection.of_site(name),
                )
        return spectra

    def _sample_fluxes(self, p, spectra, bound: PreparedBursts, draw_lines: bool, detection: Any):
        """Sample the fluxes of each burst jointly; optionally draw its line given the fluxes."""
        x, of_burst = spectra["log10_E_peak"] - 2.0, bound.folded.of_burst
        sphere = bound.folded.log10_sphere_area
        level, slope = bound.lines.T
        guess = of_burst @ (level - slope * bound.level) + of_burst @ slope * x - sphere
        coordinates = Coordinates(guess, bound.trend(spectra), *bound.centring["log10_flux"])  # type: ignore[arg-type]
        fluxes = BurstFluxes(x, sphere, of_burst, _line(p), coordinates)
        measured = fluxes if detection is None else detection.of_fluxes(fluxes)
        flux = fluxes.flux(numpyro.sample("_log10_flux", measured))
        with numpyro.plate("interval", len(bound.center), dim=-1):
            numpyro.deterministic("log10_flux", flux)
        if draw_lines:
            noise = numpyro.sample("_noise", dist.Normal(jnp.zeros((2, len(bound.level))), 1.0).to_event(2))
            with numpyro.plate("burst", len(bound.level), dim=-1):
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
        units = {name: unit for varying in self.peaked.sites for name, unit in varying.units.items()}
        return UNITS | units

    @property
    def description(self) -> str:
        """Description of the model in one line, for reports."""
        shape = {"band": "Band functions", "cutoff": "cut-off power laws"}.get(self.spectrum, self.spectrum)
        scatter = "with intrinsic scatter" if self.scatter else "without scatter"
        band = f"{self.band[0]:g} to {self.band[1]:g} keV ({self.frame} frame)"
        areas = ", effective areas free" if self.calibration else ""
        selected = f", selected by {self.selection}" if self.selections else ""
        return f"Rest-frame Golenetskii relation from counts, {shape}, flux {band}, {scatter}{areas}{selected}"
