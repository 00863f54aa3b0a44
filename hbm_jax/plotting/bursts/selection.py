"""Figure of the selection of bursts: measured fluxes and luminosities, and a simulated population."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.ticker import NullFormatter
from scipy.special import log_ndtr

from hbm_jax.cosmology import Cosmology
from hbm_jax.data import Bursts, BurstSpectra
from hbm_jax.inference import Fit
from hbm_jax.inference.results import model_of
from hbm_jax.models import Golenetskii, GolenetskiiCounts
from hbm_jax.models.bursts.detection import MEASURED, WHOLE, selects_whole_bursts
from hbm_jax.models.efficiency import DetectionFunction, Efficiency, Injections
from hbm_jax.plotting.draws import found_objects, model_and_data, parameter
from hbm_jax.plotting.style import (
    BLACK,
    MAX_DOTS,
    MIN_SIMULATED,
    Figure,
    draw_distribution,
    draw_efficiency,
    draw_simulated,
    house_style,
)
from hbm_jax.spectra.model.energetics import log10_sphere_area

SEED = 0


class Shown(NamedTuple):
    """Redshifts and fluxes in the figure.

    Attributes
    ----------
    z, flux, probability : (n,)
        Of simulated intervals or brightest intervals, with the probability that each is detected. For injections 1 for
        found ones, beside all of the population.
    measured_z, measured : (m,)
        Of the sample.
    limit : float or None
        Limit of the flux, if the selection is one.
    log10_E_peak, measured_log10_E_peak : (n,), (m,), optional
        Peak energies in the observer's frame, where the selection is tabulated in them.
    """

    z: np.ndarray
    flux: np.ndarray
    probability: np.ndarray
    measured_z: np.ndarray
    measured: np.ndarray
    limit: float | None
    log10_E_peak: np.ndarray | None = None
    measured_log10_E_peak: np.ndarray | None = None


SHOWN_Z = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
TEXT = {
    "flux": (r"flux $\log_{10}\,F$ [erg cm$^{-2}$ s$^{-1}$]", r"luminosity $\log_{10}\,L$ [erg s$^{-1}$]"),
    "fluence": (r"fluence $\log_{10}\,S$ [erg cm$^{-2}$]", r"energy $\log_{10}\,E_\mathrm{iso}$ [erg]"),
}
PEAK_TEXT = r"peak energy $\log_{10}\,E_\mathrm{peak}$ [keV]"


def selected_bursts(fit: Fit) -> Figure:
    """Plot luminosities against redshift with a simulated population, of which the selection detects a part.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Golenetskii` with a selection, a fixed cosmology and known redshifts, or of
        `GolenetskiiCounts` with a limit, with its program and data.

    Returns
    -------
    matplotlib.figure.Figure
        Left: luminosities of all intervals, or of the brightest one of each burst where the selection is one of whole
        bursts, at the redshifts of the sample: measured (from counts, posterior medians) in black; simulated at the
        posterior means of the parameters, detected ones in blue and missing ones in grey; dashed: the limit of a
        bolometric flux, or from counts of one in the band of the model. Right: distribution of
        the fluxes, measured, simulated detected ones, and all, scaled to the number of detected ones; of observed peak
        energies for an efficiency tabulated in them. Dashed: the limit, or the efficiency. For injections, detected are
        found ones, drawn in proportion to their weights, beside all of the population instead of missing ones.

    Raises
    ------
    ValueError
        If the fit is of another model, has no selection, a free cosmology or unknown or uncertain redshifts.
    """
    counts = isinstance(model_of(fit), GolenetskiiCounts)
    model: Any
    data: Any
    model, data = model_and_data(
        fit, GolenetskiiCounts if counts else Golenetskii, BurstSpectra if counts else Bursts, "selected_bursts"
    )
    if not drawable(model, data):
        raise ValueError(
            "selected_bursts: expected a fit with a selection (from counts, a limit), a fixed cosmology and known "
            f"redshifts; found {model.description}."
        )
    shown = _from_counts(fit, model, data) if counts else _from_catalogue(fit, model.pooled_for(data), data)
    quantity = "flux" if counts else data.quantity
    whole = selects_whole_bursts(model.selections)
    others = "all" if isinstance(model.selections[0], Injections) else "missing"
    detected = np.random.default_rng(SEED).random(len(shown.z)) < shown.probability
    flux_text, text = TEXT[quantity]
    with house_style():
        figure = Figure(figsize=(7.3, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1.5, 1.0])
        order = np.random.default_rng(SEED).permutation(len(shown.z))[:MAX_DOTS]
        z = shown.z[order]
        draw_simulated(left, z, shown.flux[order] + _log10_conversion(model, quantity, z), detected[order], others)
        luminosity = shown.measured + _log10_conversion(model, quantity, shown.measured_z)
        left.plot(shown.measured_z, luminosity, "o", color=BLACK, ms=2.2, mew=0.0, label="measured")
        grid = np.geomspace(shown.z.min(), shown.z.max(), 200)
        if shown.limit is not None:
            left.plot(grid, shown.limit + _log10_conversion(model, quantity, grid), color=BLACK, lw=0.8, ls="--")
        left.set(xscale="log", xlabel="redshift", ylabel=text)
        ticks = [value for value in SHOWN_Z if shown.z.min() <= value <= shown.z.max()]
        left.set_xticks(ticks, [f"{value:g}" for value in ticks])
        left.xaxis.set_minor_formatter(NullFormatter())
        left.legend(loc="lower right", markerscale=2.0)
        if shown.log10_E_peak is None:
            draw_distribution(right, shown.measured, shown.flux, detected, shown.limit, others)
        else:
            flux_text = PEAK_TEXT
            draw_distribution(right, shown.measured_log10_E_peak, shown.log10_E_peak, detected, None)
        single = whole or data.num_intervals == len(data)
        right.set(xlabel=flux_text, ylabel="bursts" if single else "intervals")
        right.set_ylim(top=1.25 * right.get_ylim()[1])  # room for the legend
        if isinstance(part := model.selections[0], Efficiency):
            draw_efficiency(right, part.at, part.probability)
        right.legend(loc="upper right")
    return figure


def _from_catalogue(fit: Fit, model: Golenetskii, data: Bursts) -> Shown:
    """Return measured fluxes, and those simulated at the posterior means of the parameters."""
    (part,) = model.selections
    whole = part.quantity == WHOLE
    unselected = dataclasses.replace(
        model, selection="none", truncated=False, priors={k: v for k, v in model.priors.items() if k not in part.priors}
    )
    names = [name for name in (*unselected.all_priors, *part.priors) if name != "z"]
    means = {name: float(parameter(fit, name).mean()) for name in names}
    repeats = -(-MIN_SIMULATED // data.num_intervals)
    design = data.subset(np.tile(np.arange(len(data)), repeats))
    parameters = {name: means[name] for name in unselected.all_priors if name != "z"}
    drawn, _ = unselected.simulate(jax.random.key(SEED), design, parameters)
    if isinstance(part, Injections):
        return _with_found(dataclasses.replace(model, priors={**model.priors, **parameters}), drawn, data, repeats)
    if isinstance(part, Efficiency | DetectionFunction):
        (z, peak, flux), (measured_z, measured_peak, measured) = _intervals(drawn), _intervals(data)
        peaks: Any = (peak, measured_peak) if part.quantity == MEASURED[0] else (None, None)
        return Shown(z, flux, _probability(part, peak, flux), measured_z, measured, None, *peaks)
    z, flux, probability = _detected(drawn, part, means, whole)
    measured_z, measured, _ = _detected(data, part, means, whole)
    return Shown(z, flux, probability, measured_z, measured, float(np.median(_limits(part, data, means))))


def _with_found(model: Golenetskii, drawn: Bursts, data: Bursts, repeats: int) -> Shown:
    """Return what is shown for injections, beside all simulated bursts ``drawn``."""
    design, observed, fraction = found_objects(model, data, repeats, SEED)
    kept = np.random.default_rng(SEED).random(np.shape(fraction)) < fraction
    found = design.replace_observations(observed)
    if selects_whole_bursts(model.selections):
        kept = kept.reshape(len(design))
        every, detected, measured = (_brightest(sample) for sample in (drawn, found, data))
    else:
        kept = np.broadcast_to(kept, np.shape(design.used))[np.asarray(design.used)]
        every, detected, measured = (_intervals(sample)[::2] for sample in (drawn, found, data))
    z, flux = (np.append(a, b[kept]) for a, b in zip(every, detected, strict=True))
    return Shown(z, flux, 1.0 * (np.arange(len(z)) >= len(every[0])), *measured, None)


def _brightest(data: Bursts) -> tuple[np.ndarray, np.ndarray]:
    """Return redshifts, and measured fluxes of the brightest intervals, of all bursts."""
    return np.asarray(data.z), np.where(np.asarray(data.used), np.asarray(data.log10_flux), -np.inf).max(axis=1)


def _from_counts(fit: Fit, model: GolenetskiiCounts, data: BurstSpectra) -> Shown:
    """Return posterior medians of the flux of the brightest interval of each burst, and simulated ones."""
    (part,) = model.selections
    means = {
        name: float(parameter(fit, name).mean()) for name in model.all_priors if name not in ("effective_area", "z")
    }
    burst, z = np.asarray(data.interval_burst), np.asarray(data.z)
    rng, repeats = np.random.default_rng(SEED), -(-MIN_SIMULATED // len(burst))
    names = ("gamma", "log10_N")
    gamma, log10_N = (rng.normal(means[f"{n}_mean"], means[f"{n}_std"], (repeats, len(z)))[:, burst] for n in names)
    peak = rng.normal(means["log10_E_peak_mean"], means["log10_E_peak_std"], gamma.shape)
    flux = log10_N + gamma * (peak - 2.0) - _log10_conversion(model, "flux", z)[burst]
    flux = flux + means["intrinsic_scatter"] * rng.normal(size=flux.shape)
    limit, width = (means[name] for name in part.names)
    missed = np.exp(log_ndtr((limit - flux) / width))

    def by_burst(values, reduce):
        """Return the values of each burst reduced over its intervals, (..., B)."""
        return np.stack([reduce(values[..., burst == row], axis=-1) for row in range(len(z))], axis=-1)

    measured = by_burst(np.median(parameter(fit, "log10_flux"), axis=0), np.max)
    probability = 1.0 - by_burst(missed, np.prod)
    return Shown(np.tile(z, repeats), by_burst(flux, np.max).ravel(), probability.ravel(), z, measured, limit)


def drawable(model: Any, data: Any) -> bool:
    """Return True if `selected_bursts` can draw a fit of this model and these data."""
    if not model.selections:
        return False
    if isinstance(model, GolenetskiiCounts):
        return not isinstance(model.selections[0], Injections)
    return model.cosmology is None and bool(np.all(data.knows_redshift))


def _log10_conversion(model: Any, quantity: str, z: np.ndarray) -> np.ndarray:
    """Return log10 of luminosity over bolometric flux, or of energy over fluence, at redshifts (n,)."""
    with jax.enable_x64(True):
        area = np.asarray(log10_sphere_area(z, Cosmology.flat(H0=model.H0, Om0=model.Om0)))
    return area - (np.log10(1.0 + z) if quantity == "fluence" else 0.0)


def _limits(part: Any, data: Bursts, means: dict[str, float]) -> np.ndarray:
    """Return the limit of each burst, (B,)."""
    if not part.of_objects:
        return np.full(len(data), means[part.names[0]])
    return np.asarray(data.log10_peak_flux_limit if part.quantity == WHOLE else data.log10_flux_limit)


def _intervals(data: Bursts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return redshifts, measured peak energies and measured fluxes of all intervals."""
    used = np.asarray(data.used)
    z = np.broadcast_to(np.asarray(data.z)[:, None], used.shape)
    return z[used], np.asarray(data.log10_E_peak)[used], np.asarray(data.log10_flux)[used]


def _probability(part: Efficiency | DetectionFunction, log10_E_peak: np.ndarray, flux: np.ndarray) -> np.ndarray:
    """Return the detection probability of intervals from a table or a function."""
    if isinstance(part, Efficiency):
        return part.probability_at(log10_E_peak if part.quantity == MEASURED[0] else flux)
    return np.broadcast_to(np.asarray(part.function(log10_E_peak, flux)), flux.shape)


def _detected(data: Bursts, part: Any, means: dict[str, float], whole: bool) -> tuple[np.ndarray, ...]:
    """Return redshifts, fluxes and detection probabilities of intervals, or of the brightest ones of whole bursts."""
    used, flux = np.asarray(data.used), np.asarray(data.log10_flux)
    margin = flux - _limits(part, data, means)[:, None]
    log_missed = np.where(margin >= 0.0, -np.inf, 0.0) if part.is_step else log_ndtr(-margin / means[part.names[1]])
    z = np.broadcast_to(np.asarray(data.z)[:, None], used.shape)
    if whole:
        missed = np.where(used, log_missed, 0.0).sum(axis=1)
        return np.asarray(data.z), np.where(used, flux, -np.inf).max(axis=1), -np.expm1(missed)
    return z[used], flux[used], -np.expm1(log_missed[used])
