"""Figures of single spectra: counts with the folded model, and the unfolded spectrum with its absorbers."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter
from scipy.special import kl_div

from hbm_jax import constants
from hbm_jax.data import Afterglows, BurstSpectra, SourceSpectra
from hbm_jax.inference import Fit
from hbm_jax.inference.results import model_of
from hbm_jax.models import Afterglow, SpectralFit
from hbm_jax.models.xray.absorbed_counts import values_of as values_in_expression
from hbm_jax.plotting.draws import model_and_data
from hbm_jax.plotting.folded_draws import (
    ExpectedCounts,
    Floats,
    Points,
    folded,
    points,
    rows_of,
    source_parameters,
    stack_of,
    values_of,
)
from hbm_jax.plotting.labels import object_name
from hbm_jax.plotting.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, Figure, house_style, panels
from hbm_jax.plotting.xray.absorption import ALL_ABSORBERS, energy_axis
from hbm_jax.spectra.folding.area_errors import without_instrument
from hbm_jax.spectra.model.composition import Component, Product

BAND = (0.16, 0.5, 0.84)
LABELS = {"mw": "Milky Way", "Whim": "WHIM"}
MAX_NUM = 12  # sources that are legible on one page
COLUMNS = 3
NUM_ENERGIES = 600
LOWEST = 2e-4  # lower limit of the axis relative to the highest point
MODEL, BACKGROUND, UNABSORBED = VERMILION, GREY, BLUE


def spectra(
    fit: Fit, names: Iterable[str] | None = None, max_num: int = MAX_NUM, *, expected: ExpectedCounts | None = None
) -> Figure:
    """Plot counts, folded model and residuals of several sources.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Afterglow`, `SpectralPopulation`, `SpectralFit` or `GolenetskiiCounts`, with its program
        and data.
    names : iterable of str, optional
        Sources to show; by default those with the most counts. For bursts and populations, names of spectra
        (``fit.data.spectra.name``); for bursts the default is the brightest interval of each, in all detectors.
    max_num : int
        Largest number of sources.
    expected : ExpectedCounts, optional
        Result of `hbm_jax.plotting.folded_draws.folded`; by default it is computed.

    Returns
    -------
    matplotlib.figure.Figure
        Two panels for each source. Upper panel: counts per second and keV with errors of one standard deviation
        (Gehrels 1986), in bins of at least 5 counts and at least the square root of the total counts. Red: posterior
        median and 68 % band of source and background in the source region; grey: scaled counts of the background
        region. Lower panel: square root of Cash's C of each bin, with the sign of data minus median.

    Raises
    ------
    ValueError
        If the fit is not one of spectra or was loaded without its program and data, or for an unknown source.
    """
    model = folded(fit, "spectra") if expected is None else expected
    rows = rows_of(fit.data, names, max_num, "spectra")
    num_columns = min(COLUMNS, len(rows))
    num_lines = -(-len(rows) // num_columns)
    width, cell_height = (7.4, 2.25) if num_columns > 1 else (5.0, 3.6)
    height = cell_height * num_lines + 0.92
    with house_style():
        figure = Figure(figsize=(width, height))
        cells = figure.add_gridspec(
            num_lines, num_columns, left=0.62 / width, right=1.0 - 0.08 / width,
            bottom=0.42 / height, top=1.0 - 0.5 / height,
            hspace=0.45 / (cell_height - 0.45), wspace=0.25 if num_columns > 1 else 0.0,
        )  # fmt: skip
        for index, row in enumerate(rows):
            panels = cells[divmod(index, num_columns)].subgridspec(2, 1, height_ratios=(2.6, 1.0), hspace=0.0)
            upper = figure.add_subplot(panels[0])
            lower = figure.add_subplot(panels[1], sharex=upper)
            _draw_counts(upper, lower, fit.data, row, model)
            if index + num_columns >= len(rows):
                lower.set_xlabel("energy [keV]")
            if index % num_columns == 0:
                upper.set_ylabel(r"counts s$^{-1}$ keV$^{-1}$")
                lower.set_ylabel("residual")
        handles: dict[str, Any] = {}
        for axes in figure.axes:
            handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
        texts = [text for start in ("data", "model", "background") for text in handles if text.startswith(start)]
        figure.legend([handles[text] for text in texts], texts, loc="upper center", ncols=len(texts))
        figure.align_ylabels()
    return figure


def residuals(counts: Floats, expected: Floats) -> Floats:
    """Return the square root of Cash's C of each bin, with the sign of data minus model."""
    deviance = 2.0 * kl_div(counts, expected)  # not by JAX, which would compile it for every number of bins
    return np.sign(counts - expected) * np.sqrt(np.maximum(deviance, 0.0))


def _draw_counts(upper, lower, data: Any, row: int, model: ExpectedCounts) -> None:
    """Draw counts, model and background of one spectrum in the upper axes, and residuals in the lower."""
    stack = stack_of(data)
    used = np.asarray(stack.used[row])
    low, high = np.asarray(stack.e_min[row])[used], np.asarray(stack.e_max[row])[used]
    binned = points(stack, row)
    exposure = float(stack.exposure[row])
    scale = 1.0 / (exposure * binned.bins.total(high - low))  # from counts in a bin to counts/s/keV
    _draw_points(upper, binned, scale)
    # The background of single groups is noisy, so the background of each bin is distributed over its groups.
    background = binned.bins.total(model.background[:, row, used])
    background_density = binned.bins.at_groups(background * scale, len(low))
    source_density = model.source[:, row, used] / (exposure * (high - low))
    band = np.quantile(source_density + background_density, BAND, axis=0)
    _steps(upper, low, high, band)
    top = np.max(band[1])
    floor = 0.3 * np.min(band[1])
    if binned.background.any():
        values = np.where(binned.background > 0, binned.background, np.nan) * scale
        _outline(upper, binned.bins.low, binned.bins.high, values, color=BACKGROUND, lw=0.8, label="background, scaled")
        floor = min(floor, 0.6 * np.nanmin(values))
    expected = np.median(binned.bins.total(model.source[:, row, used]) + background, axis=0)
    error = binned.error
    residual = residuals(binned.counts, expected) if error is None else (binned.counts - expected) / error
    middle = np.sqrt(binned.bins.low * binned.bins.high)
    lower.axhline(0.0, color=MODEL, lw=0.9)
    lower.errorbar(
        middle, residual, 1.0, (middle - binned.bins.low, binned.bins.high - middle),
        fmt="o", color=BLACK, markersize=1.6, elinewidth=0.6, markeredgewidth=0,
    )  # fmt: skip
    lower.set_yticks([-2, 0, 2])
    limit = max(3.4, 1.1 * float(np.abs(residual).max()) + 1.0)
    lower.set_ylim(-limit, limit)
    upper.set_yscale("log")
    upper.set_ylim(max(floor, LOWEST * top), 4.0 * top)
    upper.tick_params(labelbottom=False)
    total = int(np.asarray(stack.counts[row]).sum())
    name = object_name((stack.name if isinstance(data, BurstSpectra | SourceSpectra) else data.name)[row])
    z = data.z[row] if isinstance(data, Afterglows) else data.z[data.source[row]] if _has_redshifts(data) else None
    redshift = "" if z is None else f", $z$ = {float(z):.3g}"
    upper.set_title(f"{name}{redshift}, {total} counts", fontsize=8.0, pad=2.5, y=1.0)
    _few_ticks(lower, low.min(), high.max())


def _has_redshifts(data: Any) -> bool:
    """Return whether the data are spectra of sources with redshifts."""
    return isinstance(data, SourceSpectra) and bool(np.any(data.z))


def _draw_points(axis, data: Points, scale: Floats, label="data") -> None:
    """Draw bins with counts as points with errors, and empty bins as arrows at the upper error."""
    low, high = data.bins.low, data.bins.high
    middle = np.sqrt(low * high)
    occupied = data.counts > 0
    axis.errorbar(
        middle[occupied], (data.counts * scale)[occupied],
        ((data.below * scale)[occupied], (data.above * scale)[occupied]),
        ((middle - low)[occupied], (high - middle)[occupied]),
        fmt="o", color=BLACK, markersize=1.8, markeredgewidth=0, elinewidth=0.6, label=label, zorder=3,
    )  # fmt: skip
    if not occupied.all():
        upper = (data.above + (0.0 if data.error is None else data.counts)) * scale
        axis.plot(middle[~occupied], upper[~occupied], "v", color=BLACK, markersize=2.5, zorder=3)


def _steps(axis, low, high, band) -> None:
    """Draw median and band of the model as step functions, constant in each group."""
    for start, stop in _runs(low, high):
        edges = np.append(low[start:stop], high[stop - 1])
        lower, median, upper = (np.append(values[start:stop], values[stop - 1]) for values in band)
        axis.fill_between(edges, lower, upper, step="post", color=MODEL, alpha=0.35, lw=0, zorder=4)
        text = "model, median and 68 %" if start == 0 else None
        axis.step(edges, median, where="post", color=MODEL, lw=0.9, label=text, zorder=5)


def _runs(low, high):
    """Return start and stop of runs of groups without gaps in energy; single groups if energies are not increasing."""
    if (np.diff(low) < 0).any():
        return [(i, i + 1) for i in range(len(low))]
    gaps = np.flatnonzero(low[1:] > high[:-1] * (1.0 + 1e-6)) + 1
    ends = [0, *(int(g) for g in gaps), len(low)]
    return list(itertools.pairwise(ends))


def _outline(axis, low, high, values, **style) -> None:
    """Draw the outline of a histogram."""
    edges = np.column_stack([low, high]).ravel()
    axis.plot(edges, np.repeat(values, 2), zorder=2, **style)


def _few_ticks(axis, low: float, high: float) -> None:
    """Set up a logarithmic energy axis with few plain numbers, for small axes."""
    ends = low / 1.05, high * 1.05
    energy_axis(axis, *ends, label="")
    if high > 4 * low:
        one_three = [tick for tick in (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0) if ends[0] <= tick <= ends[1]]
        one_two_five = [m * 10.0**k for k in range(-1, 3) for m in (1, 2, 5) if ends[0] <= m * 10.0**k <= ends[1]]
        major = one_three if len(one_three) > 2 else one_two_five
        axis.set_xticks(major, [f"{tick:g}" for tick in major])
        minor = [m * 10.0**k for k in range(-2, 3) for m in range(2, 10)]
        axis.set_xticks([e for e in minor if ends[0] < e < ends[1] and e not in major], minor=True)
        axis.tick_params(which="minor", labelbottom=False)


def unfolded_spectrum(
    fit: Fit, name: str | None = None, num_draws: int = 100, *, expected: ExpectedCounts | None = None
) -> Figure:
    """Plot the unfolded spectrum of one source, with and without absorption, and the transmission of each absorber.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Afterglow` or `SpectralFit`, with its program and data.
    name : str, optional
        Name of the source or spectrum; by default the one with the most counts.
    num_draws : int
        Number of posterior draws from which the bands are computed.
    expected : ExpectedCounts, optional
        Result of `hbm_jax.plotting.folded_draws.folded`; by default it is computed.

    Returns
    -------
    matplotlib.figure.Figure
        Upper panel: E^2 dN/dE of the absorbed and of the unabsorbed model (medians and 68 % bands), and of the data.
        The data are the ratio of the counts less background to the expected counts, times the absorbed model, and so
        depend on the model. Lower panel: transmission of each absorber (for afterglows the Milky Way, the host and the
        WHIM; for a spectral fit, absorbers that multiply the whole expression), and of all of them.

    Raises
    ------
    ValueError
        If the fit is not one of spectra or was loaded without its program and data, or for an unknown source.
    """
    if not isinstance(model_of(fit), SpectralFit):
        model_and_data(fit, Afterglow, Afterglows, "unfolded_spectrum")
    (row,) = rows_of(fit.data, name, 1, "unfolded_spectrum")
    stack = stack_of(fit.data)
    used = np.asarray(stack.used[row])
    binned = points(stack, row)
    low, high = binned.bins.low.min(), binned.bins.high.max()
    energy = np.geomspace(low, high, NUM_ENERGIES)
    unabsorbed, absorbed, transmissions = unfolded(fit, row, energy, num_draws)
    transmission = np.divide(absorbed, unabsorbed, out=np.ones_like(unabsorbed), where=unabsorbed > 0)
    model = folded(fit, "unfolded_spectrum", num_draws) if expected is None else expected
    source = np.median(binned.bins.total(model.source[:, row, used]), axis=0)
    background = np.median(binned.bins.total(model.background[:, row, used]), axis=0)
    net, scale = unfolded_points(binned, source, background, energy, absorbed.mean(axis=0))
    with house_style():
        figure, axes = panels(
            2, 1, (5.6, 5.6), margins=(0.85, 0.12, 0.48, 0.3), gaps=(0.0, 0.1), sharex=True, height_ratios=(1.9, 1.0)
        )
        upper, lower = axes[:, 0]
        _draw_points(upper, net, scale, "data, unfolded with the model")
        for text, values, colour in (("unabsorbed", unabsorbed, UNABSORBED), ("absorbed", absorbed, MODEL)):
            band = np.quantile(values, BAND, axis=0)
            upper.fill_between(energy, band[0], band[2], color=colour, alpha=0.3, lw=0)
            upper.plot(energy, band[1], color=colour, lw=1.1, label=text)
        shown = (net.counts * scale)[net.counts > 0]
        top = max(np.quantile(unabsorbed, 0.84, axis=0).max(), shown.max(initial=0.0))
        bottom = max(0.4 * shown.min(initial=top), LOWEST * top)
        _logarithmic(upper, bottom, 2.0 * top)
        upper.set_ylabel(r"$E^2\, \mathrm{d}N/\mathrm{d}E$ [erg cm$^{-2}$ s$^{-1}$]")
        source_name = object_name(fit.data.name[row])
        redshift = f", $z$ = {float(fit.data.z[row]):.3g}" if isinstance(fit.data, Afterglows) else ""
        upper.set_title(source_name + redshift)
        handles, texts = upper.get_legend_handles_labels()
        upper.legend(handles[::-1], texts[::-1], loc="lower right")
        _draw_transmissions(lower, energy, transmissions | {ALL_ABSORBERS: transmission})
        lower.set_ylabel("transmission")
        _few_ticks(lower, low, high)
        lower.set_xlabel("observed energy [keV]")
        figure.align_ylabels()
    return figure


def unfolded_points(
    binned: Points, source: Floats, background: Floats, energy: Floats, model: Floats
) -> tuple[Points, Floats]:
    """Return counts less background, and the factor that converts them to E^2 dN/dE [erg/cm^2/s].

    Parameters
    ----------
    binned : Points
        Data of a spectrum in B bins.
    source, background : (B,)
        Expected counts.
    energy, model : (E,)
        Energies [keV] and E^2 dN/dE of the model, whose mean in a bin corresponds to the expected counts.
    """
    cumulative = np.append(0.0, np.cumsum(np.diff(energy) * 0.5 * (model[1:] + model[:-1])))
    start, end = (np.interp(edge, energy, cumulative) for edge in (binned.bins.low, binned.bins.high))
    scale = (end - start) / (binned.bins.high - binned.bins.low) / np.maximum(source, 1e-300)
    return binned._replace(counts=np.where(binned.counts > background, binned.counts - background, 0.0)), scale


def _logarithmic(axis, bottom: float, top: float) -> None:
    """Make the y axis logarithmic, with more numbers where it spans little more than a decade."""
    axis.set_yscale("log")
    axis.set_ylim(bottom, top)
    if top < 60.0 * bottom:
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(10.0, 10.0)))
        axis.yaxis.set_minor_formatter(NullFormatter())


def _draw_transmissions(axis, energy, transmissions: Mapping[str, Floats]) -> None:
    """Draw median and band of the transmission of each absorber, and the median of their product."""
    colours = iter((GREEN, ORANGE, PURPLE, BLUE, GREY))
    for name, values in transmissions.items():
        low, median, high = np.quantile(values, BAND, axis=0)
        if name == ALL_ABSORBERS:
            axis.plot(energy, median, color=BLACK, lw=1.2, label=name)
            continue
        colour = next(colours, GREY)
        axis.fill_between(energy, low, high, color=colour, alpha=0.3, lw=0)
        axis.plot(energy, median, color=colour, lw=1.0, label=name)
    axis.set_ylim(0.0, 1.05)
    axis.legend(loc="lower right", ncols=2)


class Unfolded(NamedTuple):
    """Photon spectrum of one source at posterior draws.

    Attributes
    ----------
    unabsorbed, absorbed : (draw, E)
        Unabsorbed and absorbed E^2 dN/dE [erg/cm^2/s].
    transmissions : dict of str to (draw, E)
        Transmission of each absorber.
    """

    unabsorbed: Floats
    absorbed: Floats
    transmissions: dict[str, Floats]


def unfolded(fit: Fit, row: int, energy: Floats, num_draws: int) -> Unfolded:
    """Return the spectrum of a source in a fit of `Afterglow` or `SpectralFit` at observed energies (E,) [keV]."""
    program: Any = model_of(fit)
    if isinstance(program, SpectralFit):
        priors = {n: p for n, p in program.all_priors.items() if n in program.spectrum.parameters}
        values = values_of(fit, priors, num_draws, row)
        return _expression_spectrum(program.spectrum.of_source(row), values, energy)
    p = source_parameters(fit, row, num_draws)
    spectrum = program.medium.spectrum(float(np.median(p["z"])), program.band)
    if np.ptp(p["z"]) > 0:  # z=None: the host is at the redshift of each draw; the WHIM stays at the median redshift
        spectrum = spectrum.mapped(lambda part: replace(part, z=None) if part.label == "host" else part)
    result = _expression_spectrum(spectrum, values_in_expression(p, slice(None)), energy)
    return result._replace(transmissions={LABELS.get(name, name): v for name, v in result.transmissions.items()})


def _expression_spectrum(spectrum: Component, values: Mapping[str, Floats], energy: Floats) -> Unfolded:
    """Return the photon spectrum of a model expression at posterior draws of its parameters, before the instrument."""
    spectrum = without_instrument(spectrum)
    parts = spectrum.parts if isinstance(spectrum, Product) else (spectrum,)
    absorbers = {part.label or type(part).__name__: part for part in parts if part.absorbs}
    components = [spectrum.unabsorbed, spectrum, *absorbers.values()]
    with jax.enable_x64(True):
        evaluate = jax.jit(lambda values: [component.on(energy)(values) for component in components])
        unabsorbed, absorbed, *transmissions = (np.asarray(result) for result in evaluate(dict(values)))
    factor = constants.kev_in_erg * energy**2
    return Unfolded(factor * unabsorbed, factor * absorbed, dict(zip(absorbers, transmissions, strict=True)))
