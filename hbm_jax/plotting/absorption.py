"""Figures of X-ray absorption: cross sections, ionisation, and what is left of a spectrum."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from hbm_jax.absorption import IONS, ion_fractions, ion_name, neutral_cross_section, whim_optical_depth
from hbm_jax.absorption.abundances import ELEMENTS
from hbm_jax.absorption.domain import LOG10_T
from hbm_jax.cosmology import Cosmology
from hbm_jax.plotting.style import BLACK, BLUE, GREEN, GREY, ORANGE, SERIES, Figure, house_style

ENERGY = np.geomspace(0.2, 10.0, 2000)  # keV
TICKS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SHOWN = 0.03  # an ion that is nowhere more abundant has no label


def neutral_cross_sections(abundances: Sequence[str] = ("wilm", "angr", "aspl", "lodd"), *, model="tbabs") -> Figure:
    """Cross section of cold interstellar matter for several abundance tables.

    Parameters
    ----------
    abundances : sequence of str
        Names of tables, the first of which the others are compared with.
    model : str
        ``"tbabs"`` or ``"phabs"``.

    Returns
    -------
    matplotlib.figure.Figure
        Above, sigma E^3 against energy; below, each relative to the first.

    Examples
    --------
    >>> neutral_cross_sections().savefig("cross_sections.pdf")  # doctest: +SKIP
    """
    with jax.enable_x64(True):
        curves = {name: np.asarray(neutral_cross_section(ENERGY, model=model, abundances=name)) for name in abundances}
    with house_style():
        figure = Figure(figsize=(5.5, 4.5), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        reference = curves[abundances[0]]
        for (name, curve), colour in zip(curves.items(), _colours(len(curves)), strict=True):
            upper.plot(ENERGY, curve * ENERGY**3, color=colour, label=name, lw=1.0)
            lower.plot(ENERGY, curve / reference, color=colour, lw=1.0)
        upper.set_ylabel(r"$\sigma E^3$ [$10^{-22}$ cm$^2$ keV$^3$ / H]")
        upper.legend(title=model, ncols=2)
        lower.set_ylabel(f"relative to {abundances[0]}")
        _energy_axis(lower)
    return figure


def ionization(element: str = "O", log10_xi: Sequence[float] = (-1.0, 1.0, 2.0)) -> Figure:
    """Ion fractions of one element against temperature: by collisions alone, and with light of several strengths.

    Parameters
    ----------
    element : str
        H, He, C, N, O, Ne, Mg, Si, S or Fe.
    log10_xi : sequence of float
        Ionisation parameters [erg cm/s] of the panels with light.

    Returns
    -------
    matplotlib.figure.Figure
        One panel for no light and one for each xi; ions that matter are named at their peaks.

    Examples
    --------
    >>> ionization("O").savefig("ionization.pdf")  # doctest: +SKIP
    """
    own = [i for i, (Z, _) in enumerate(IONS) if ELEMENTS[Z - 1] == element]
    if not own:
        known = ", ".join(dict.fromkeys(ELEMENTS[Z - 1] for Z, _ in IONS))
        raise ValueError(f"ionization: expected an element among {known}; found {element!r}.")
    log10_T = np.linspace(*LOG10_T, 401)
    with jax.enable_x64(True):
        panels = {"no light": np.asarray(ion_fractions(log10_T, 0.0, mode="collisional"))[:, own]}
        for xi in log10_xi:
            panels[rf"$\log_{{10}}\,\xi = {xi:g}$"] = np.asarray(ion_fractions(log10_T, xi))[:, own]
    with house_style():
        figure = Figure(figsize=(6.0, 0.6 + 1.5 * len(panels)), layout="constrained")
        axes = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axis, (title, fractions) in zip(axes, panels.items(), strict=True):
            for column, ion in enumerate(own):
                curve = fractions[:, column]
                colour = SERIES[column % len(SERIES)]
                axis.plot(log10_T, curve, color=colour, lw=1.0)
                peak = int(np.argmax(curve))
                if curve[peak] > SHOWN:
                    inside = np.clip(log10_T[peak], log10_T[0] + 0.12, log10_T[-1] - 0.12)
                    axis.text(inside, curve[peak] + 0.03, ion_name(*IONS[ion]).split()[1], color=colour, ha="center")
            axis.set_title(title, loc="right", pad=3.0, fontsize=9.0)
        axes[0].set_xlim(log10_T[0], log10_T[-1])
        axes[0].set_ylim(0.0, 1.18)
        axes[-1].set_xlabel(r"$\log_{10}\,T$ [K]")
        figure.supylabel(f"share of {element}", fontsize=11.0)
    return figure


def whim_transmission(vary: Mapping[str, Sequence[float]] | None = None, **fixed) -> Figure:
    """Transmission of the warm-hot intergalactic medium, as one of its parameters after the other changes.

    Parameters
    ----------
    vary : mapping of str to sequence of float
        Arguments of `hbm_jax.absorption.whim_optical_depth` and their values, a panel for each; by default z, n0 and
        log10_T.
    **fixed
        Arguments of `hbm_jax.absorption.whim_optical_depth` otherwise; by default z = 2, n0 = 1e-7, log10_T = 6 and a
        flat universe of Om0 = 0.3, H0 = 70.

    Returns
    -------
    matplotlib.figure.Figure
        One panel for each parameter that varies.

    Examples
    --------
    >>> whim_transmission({"z": (0.5, 1, 2, 5)}).savefig("whim.pdf")  # doctest: +SKIP
    """
    vary = vary or {"z": (0.5, 1.0, 2.0, 5.0), "n0": (5e-8, 1e-7, 3e-7, 1e-6), "log10_T": (5.0, 6.0, 6.5, 7.0)}
    common: dict[str, Any] = {
        "z": 2.0,
        "n0": 1e-7,
        "log10_T": 6.0,
        "cosmology": Cosmology.flat(H0=70.0, Om0=0.3),
    } | fixed
    names = {
        "z": "$z$ = {:g}", "log10_T": r"$\log_{{10}}\,T$ = {:g}",
        "log10_xi": r"$\log_{{10}}\,\xi$ = {:g}", "metallicity": "{:g} of solar metals",
    }  # fmt: skip
    with house_style():
        figure = Figure(figsize=(5.5, 0.5 + 2.0 * len(vary)), layout="constrained")
        axes = figure.subplots(len(vary), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axis, (name, values) in zip(axes, vary.items(), strict=True):
            for value, colour in zip(values, _colours(len(values)), strict=True):
                with jax.enable_x64(True):
                    options = common | {name: value}
                    tau = np.asarray(whim_optical_depth(ENERGY, options.pop("z"), **options))
                text = names.get(name, name + " = {:g}").format(value)
                text = rf"$n_0$ = {_power(value)} cm$^{{-3}}$" if name == "n0" else text
                axis.plot(ENERGY, np.exp(-tau), color=colour, label=text, lw=1.0)
            axis.legend(loc="lower right")
        axes[0].set_ylim(0.0, 1.03)
        figure.supylabel("transmission", fontsize=11.0)
        _energy_axis(axes[-1])
    return figure


def transmissions(energy: ArrayLike, absorbers: Mapping[str, ArrayLike]) -> Figure:
    """Transmission of several absorbers, and of all of them together.

    Parameters
    ----------
    energy : (num_energies,)
        Observed energies [keV].
    absorbers : mapping of str to (num_energies,)
        Optical depths by name.

    Returns
    -------
    matplotlib.figure.Figure
        One curve each, the product in black.

    Examples
    --------
    >>> transmissions(energy, {"host": tau_host, "Milky Way": tau_mw}).savefig("t.pdf")  # doctest: +SKIP
    """
    depths = {name: np.asarray(tau, dtype=float) for name, tau in absorbers.items()}
    with house_style():
        figure = Figure(figsize=(5.5, 3.4), layout="constrained")
        axis = figure.subplots()
        for (name, tau), colour in zip(depths.items(), (BLUE, ORANGE, GREEN, GREY), strict=False):
            axis.plot(energy, np.exp(-tau), color=colour, label=name, lw=1.0)
        if len(depths) > 1:
            axis.plot(energy, np.exp(-sum(depths.values())), color=BLACK, label="together", lw=1.4)
        axis.set_ylim(0.0, 1.03)
        axis.set_ylabel("transmission")
        axis.legend(loc="lower right")
        _energy_axis(axis, np.min(energy), np.max(energy))
    return figure


def _power(value: float) -> str:
    """Write a number as 5 x 10^-8."""
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    ten = rf"10^{{{int(exponent)}}}"
    return f"${ten}$" if float(mantissa) == 1 else rf"${float(mantissa):g}\times {ten}$"


def _colours(num: int) -> tuple[str, ...]:
    return tuple(SERIES[i % len(SERIES)] for i in range(num))


def _energy_axis(axis, low=ENERGY[0], high=ENERGY[-1]):
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    inside = [tick for tick in TICKS if low <= tick <= high]
    if len(inside) > 1:
        axis.set_xticks(inside, [f"{tick:g}" for tick in inside])
        axis.set_xticks([], minor=True)
    axis.set_xlabel("observed energy [keV]")
