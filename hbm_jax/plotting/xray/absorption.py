"""Figures of X-ray absorption: cross sections, ion fractions and transmission."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib import colormaps
from numpy.typing import ArrayLike

from hbm_jax.absorption import IONS, ion_fractions, ion_name, neutral_cross_section, whim_optical_depth
from hbm_jax.absorption.abundances import ELEMENTS
from hbm_jax.absorption.domain import LOG10_T
from hbm_jax.cosmology import Cosmology
from hbm_jax.plotting.style import BLACK, SERIES, Figure, house_style

ENERGY = np.geomspace(0.2, 10.0, 2000)  # keV
SHOWN = 0.03  # peak ion fraction below which an ion has no label
ALL_ABSORBERS = "all absorbers"  # label of the product of all transmissions
LINES = ("-", "--", ":", "-.")  # line styles, changed each time all colours have been used


def neutral_cross_sections(abundances: Sequence[str] = ("wilm", "angr", "aspl", "lodd"), *, model="tbabs") -> Figure:
    """Plot the cross section of cold interstellar matter for several abundance tables.

    Parameters
    ----------
    abundances : sequence of str
        Names of abundance tables; the first is the reference of the lower panel.
    model : str
        ``"tbabs"`` or ``"phabs"``.

    Returns
    -------
    matplotlib.figure.Figure
        Upper panel: sigma E^3 against energy. Lower panel, if there are several tables: ratio to the first.
    """
    with jax.enable_x64(True):
        curves = {name: np.asarray(neutral_cross_section(ENERGY, model=model, abundances=name)) for name in abundances}
    with house_style():
        figure = Figure(figsize=(5.5, 4.5), layout="constrained")
        rows = 2 if len(curves) > 1 else 1
        axes = figure.subplots(rows, 1, sharex=True, height_ratios=(2, 1)[:rows], squeeze=False)[:, 0]
        reference = curves[abundances[0]]
        for (name, curve), style in zip(curves.items(), _line_styles(len(curves)), strict=True):
            axes[0].plot(ENERGY, curve * ENERGY**3, label=name, lw=1.0, **style)
            if rows > 1:
                axes[1].plot(ENERGY, curve / reference, lw=1.0, **style)
                axes[1].set_ylabel(f"relative to {abundances[0]}")
        axes[0].set_ylabel(r"$\sigma E^3$ [$10^{-22}$ cm$^2$ keV$^3$ / H]")
        axes[0].legend(title=model, ncols=2)
        energy_axis(axes[-1], label="energy [keV]")
    return figure


def ionization(element: str = "O", log10_xi: Sequence[float] = (-1.0, 1.0, 2.0)) -> Figure:
    """Plot the ion fractions of an element against temperature, for collisional ionisation and with photoionisation.

    Parameters
    ----------
    element : str
        H, He, C, N, O, Ne, Mg, Si, S or Fe.
    log10_xi : sequence of float
        log10 of the ionisation parameters [erg cm/s] of the panels with photoionisation.

    Returns
    -------
    matplotlib.figure.Figure
        One panel for collisional ionisation and one for each ionisation parameter; abundant ions are labelled at their
        peaks.

    Raises
    ------
    ValueError
        For any other element.
    """
    ions = [i for i, (Z, _) in enumerate(IONS) if ELEMENTS[Z - 1] == element]
    if not ions:
        available = ", ".join(dict.fromkeys(ELEMENTS[Z - 1] for Z, _ in IONS))
        raise ValueError(f"ionization: expected an element among {available}; found {element!r}.")
    log10_T = np.linspace(*LOG10_T, 401)
    with jax.enable_x64(True):
        panels = {"collisional": np.asarray(ion_fractions(log10_T, 0.0, mode="collisional"))[:, ions]}
        for xi in log10_xi:
            panels[rf"$\log_{{10}}\,\xi = {xi:g}$"] = np.asarray(ion_fractions(log10_T, xi))[:, ions]
    # A continuous colour map where there are more ions than categorical colours.
    few = len(ions) <= len(SERIES)
    colours = list(SERIES[: len(ions)]) if few else [*colormaps["turbo"](np.linspace(0.05, 0.95, len(ions)))]
    with house_style():
        figure = Figure(figsize=(6.0, 0.6 + 1.5 * len(panels)), layout="constrained")
        axes = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axis, (title, fractions) in zip(axes, panels.items(), strict=True):
            for column, colour in enumerate(colours):
                axis.plot(log10_T, fractions[:, column], color=colour, lw=1.0)
            _name_ions(axis, log10_T, fractions, [ion_name(*IONS[ion]).split()[1] for ion in ions], colours)
            axis.set_title(title, loc="right", pad=3.0, fontsize=9.0)
        axes[0].set_xlim(log10_T[0], log10_T[-1])
        axes[0].set_ylim(0.0, 1.18)
        axes[-1].set_xlabel(r"$\log_{10}\,T$ [K]")
        figure.supylabel(f"ion fraction of {element}", fontsize=11.0)
    return figure


def _name_ions(axis, log10_T, fractions, names, colours) -> None:
    """Label the ions at their peaks, the most abundant first, without overlapping labels."""
    placed: list[tuple[float, float]] = []
    peaks = np.argmax(fractions, axis=0)
    for column in np.argsort(-fractions.max(axis=0)):
        x, peak = log10_T[peaks[column]], fractions[peaks[column], column]
        x = float(np.clip(x, log10_T[0] + 0.15, log10_T[-1] - 0.15))
        # In data units a letter is about 0.04 wide in log T, and a line of text 0.15 high in ion fraction.
        no_overlap = all(abs(x - u) > 0.05 * len(names[column]) + 0.06 or abs(peak - v) > 0.15 for u, v in placed)
        if peak > SHOWN and no_overlap:
            placed.append((x, float(peak)))
            axis.text(x, peak + 0.03, names[column], color=colours[column], ha="center")


def whim_transmission(
    vary: Mapping[str, Sequence[Any]] | None = None, *, energy: ArrayLike = ENERGY, **fixed
) -> Figure:
    """Plot the transmission of the warm-hot intergalactic medium for several values of its parameters.

    Parameters
    ----------
    vary : mapping of str to sequence
        Arguments of `hbm_jax.absorption.whim_optical_depth` with their values, such as ``{"z": (1, 2)}`` or
        ``{"mode": ("photo", "collisional")}``, one panel for each; by default z, n0 and log10_T.
    energy : (num_energies,)
        Observed energies [keV].
    **fixed
        All other arguments of `hbm_jax.absorption.whim_optical_depth`; by default z = 2, n0 = 1e-7, log10_T = 6 and a
        flat cosmology with Om0 = 0.3, H0 = 70.

    Returns
    -------
    matplotlib.figure.Figure
        One panel for each varied parameter.

    Raises
    ------
    ValueError
        For a parameter whose values are not a sequence.
    """
    vary = vary or {"z": (0.5, 1.0, 2.0, 5.0), "n0": (5e-8, 1e-7, 3e-7, 1e-6), "log10_T": (5.0, 6.0, 6.5, 7.0)}
    common: dict[str, Any] = {
        "z": 2.0,
        "n0": 1e-7,
        "log10_T": 6.0,
        "cosmology": Cosmology.flat(H0=70.0, Om0=0.3),
    } | fixed
    for name, values in vary.items():
        if isinstance(values, str) or not np.iterable(values):
            raise ValueError(f"whim_transmission: {name}: expected several values, such as (1, 2); found {values!r}.")
    symbols = {
        "z": "$z$ = {}", "log10_T": r"$\log_{{10}}\,T$ = {}", "log10_xi": r"$\log_{{10}}\,\xi$ = {}",
        "metallicity": "metallicity {}",
    }  # fmt: skip
    with house_style():
        figure = Figure(figsize=(5.5, 0.5 + 2.0 * len(vary)), layout="constrained")
        axes = figure.subplots(len(vary), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axis, (name, values) in zip(axes, vary.items(), strict=True):
            for value, style in zip(values, _line_styles(len(values)), strict=True):
                with jax.enable_x64(True):
                    options = common | {name: value}
                    tau = np.asarray(whim_optical_depth(np.asarray(energy), options.pop("z"), **options))
                formatted = value if isinstance(value, str) else f"{value:g}"
                text = symbols.get(name, name.replace("_", " ") + " {}").format(formatted)
                text = rf"$n_0$ = {_power(value)} cm$^{{-3}}$" if name == "n0" else text
                axis.plot(energy, np.exp(-tau), label=text, lw=1.0, **style)
            axis.legend(loc="lower right")
        axes[0].set_ylim(0.0, 1.03)
        figure.supylabel("transmission", fontsize=11.0)
        energy_axis(axes[-1], np.min(energy), np.max(energy))
    return figure


def transmissions(energy: ArrayLike, absorbers: Mapping[str, ArrayLike]) -> Figure:
    """Plot the transmission of several absorbers and their product.

    Parameters
    ----------
    energy : (num_energies,)
        Observed energies [keV].
    absorbers : mapping of str to (num_energies,)
        Optical depths by name.

    Returns
    -------
    matplotlib.figure.Figure
        One curve for each absorber with positive optical depth, and their product in black.

    Raises
    ------
    ValueError
        If there is no absorber.
    """
    depths = {name: np.asarray(tau, dtype=float) for name, tau in absorbers.items()}
    if not depths:
        raise ValueError("transmissions: expected at least one absorber; found none.")
    shown = {name: tau for name, tau in depths.items() if (tau > 0).any()} or depths
    with house_style():
        figure = Figure(figsize=(5.5, 3.4), layout="constrained")
        axis = figure.subplots()
        for (name, tau), style in zip(shown.items(), _line_styles(len(shown)), strict=True):
            axis.plot(energy, np.exp(-tau), label=name, lw=1.0, **style)
        if len(shown) > 1:
            axis.plot(energy, np.exp(-sum(shown.values())), color=BLACK, label=ALL_ABSORBERS, lw=1.4)
        axis.set_ylim(0.0, 1.03)
        axis.set_ylabel("transmission")
        axis.legend(loc="lower right")
        energy_axis(axis, np.min(energy), np.max(energy))
    return figure


def _power(value: float) -> str:
    """Return a number in scientific notation, 5 x 10^-8, as TeX."""
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    ten = rf"10^{{{int(exponent)}}}"
    return f"${ten}$" if float(mantissa) == 1 else rf"${float(mantissa):g}\times {ten}$"


def _line_styles(num: int) -> list[dict[str, Any]]:
    """Return colours, with another line style each time all colours have been used."""
    cycles = [divmod(i, len(SERIES)) for i in range(num)]
    return [{"color": SERIES[colour], "linestyle": LINES[cycle % len(LINES)]} for cycle, colour in cycles]


def energy_axis(axis, low=ENERGY[0], high=ENERGY[-1], label="observed energy [keV]"):
    """Set up an energy axis, logarithmic for wide ranges, with plain numbers at the ticks."""
    axis.set_xlabel(label)
    axis.set_xlim(low, high)
    if high < 4 * low:
        return
    axis.set_xscale("log")
    ticks = [m * 10.0**k for k in range(-2, 4) for m in (1, 2, 5)]
    shown = [tick for tick in ticks if low <= tick * (1 + 1e-9) and tick <= high * (1 + 1e-9)]
    axis.set_xticks(shown, [f"{tick:g}" for tick in shown])
    axis.set_xticks([], minor=True)
