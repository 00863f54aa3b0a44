"""``hbm-jax absorption``: transmission of host galaxy, Milky Way and WHIM."""

import math
from pathlib import Path

from hbm_jax.cli.arguments import Parser
from hbm_jax.cli.exit_status import USABLE
from hbm_jax.configuration import ConfigError

FIGURES = (".png", ".pdf", ".svg")
MAX_COLUMN = 1e4  # 1e26 cm^-2, which is opaque; a larger column must be in other units
PRINTED = (0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)  # keV
NUMBERS = (  # flag, default and help
    ("--nh", 0.0, "column density of the host galaxy [1e22 cm^-2]"),
    ("--z", 0.0, "redshift of the source, 0 to 10"),
    ("--nh-mw", 0.0, "column density of the Milky Way [1e22 cm^-2]"),
    ("--n0", 0.0, "density of the WHIM at redshift 0 [cm^-3]"),
    ("--log10-T", 6.0, "log10 of the temperature of the WHIM [K], 4 to 8"),
    ("--log10-xi", 0.0, "log10 of the ionisation parameter of the WHIM [erg cm/s], -12 to 8"),
    ("--metallicity", 1.0, "metallicity of the WHIM, relative to the abundance table"),
    ("--H0", 70.0, "Hubble constant [km/s/Mpc]"),
    ("--Om0", 0.3, "matter density of the flat LCDM cosmology"),
)


def parser() -> Parser:
    """Return the parser of ``absorption``."""
    from hbm_jax.absorption import ABUNDANCES, MODES

    about = "Print and draw the transmission of host galaxy, Milky Way and the WHIM."
    example = "example:\n  hbm-jax absorption --nh 1 --z 2 --nh-mw 0.03 --n0 1e-7 --log10-T 6 --plot out.png"
    absorption = Parser("hbm-jax absorption", "[options]", about, example)
    for flag, number, text in NUMBERS:
        absorption.add_argument(flag, metavar="NUMBER", type=float, default=number, help=f"{text}; default {number:g}")
    for flag, default, text in (
        ("--model", "tbabs", "model of neutral absorption: tbabs or phabs"),
        ("--abundances", "wilm", f"abundance table: {', '.join(ABUNDANCES)}"),
        ("--mode", "photo+collisional", f"ionisation balance of the WHIM: {', '.join(MODES)}"),
    ):
        absorption.add_argument(flag, default=default, help=f"{text}; default {default}")
    absorption.add_argument(
        "--energies", metavar="KEV", type=float, nargs=2, default=(0.3, 10.0), help="energy range; default 0.3 10"
    )
    absorption.add_argument("--plot", metavar="FILE", type=Path, help="figure to write, as png, pdf or svg")
    return absorption


def run(arguments) -> int:
    """Print the transmissions and draw the figure."""
    import numpy as np

    _check(arguments)
    low, high = arguments.energies
    energies = np.array([e for e in PRINTED if low <= e <= high] or [low, high])
    depths = _optical_depths(arguments, energies)
    print(f"transmission\n{'E [keV]':>8}" + "".join(f"{name:>12}" for name in (*depths, "total")))
    for i, energy in enumerate(energies):
        values = [tau[i] for tau in depths.values()]
        print(f"{energy:8.2f}" + "".join(f"{np.exp(-tau):12.4f}" for tau in (*values, sum(values))))
    if arguments.plot:
        from hbm_jax.plotting import transmissions

        energy = np.geomspace(low, high, 2000)
        transmissions(energy, _optical_depths(arguments, energy)).savefig(arguments.plot)
        print(f"figure     {arguments.plot}")
    return USABLE


def _check(arguments) -> None:
    """Raise `ConfigError` for the first invalid argument; the kernels check the others."""
    from hbm_jax.absorption.domain import MAX_ENERGY

    (low, high), plot = arguments.energies, arguments.plot
    limit = MAX_ENERGY / (1.0 + max(arguments.z, 0.0))  # [keV] in the frame of the observer
    columns = {"nh": arguments.nh, "nh-mw": arguments.nh_mw}
    not_negative = columns | {"Om0": arguments.Om0}
    column_text = f"a column density in units of 1e22 cm^-2, up to {MAX_COLUMN:g}"
    redshift_text = "the redshift of the source with it, such as --z 2, to which WHIM absorption is integrated"
    energy_text = (
        f"no more than {limit:g} keV, which is {MAX_ENERGY:g} keV at the redshift {arguments.z:g} of the source"
    )
    for flag, valid, expected, actual in (
        ("energies", 0 < low < high, "two positive energies [keV] in increasing order", f"{low:g} {high:g}"),
        ("energies", not high > limit, energy_text, f"{high:g}"),
        ("plot", not plot or plot.suffix in FIGURES, f"a name ending in {', '.join(FIGURES)}", repr(str(plot))),
        ("plot", not plot or plot.parent.is_dir(), "an existing folder", repr(str(plot and plot.parent))),
        ("n0", not (arguments.n0 > 0 and arguments.z == 0), redshift_text, "--z 0"),
        *((flag, not value > MAX_COLUMN, column_text, f"{value:g}") for flag, value in columns.items()),
        *((flag, 0 <= value < math.inf, "a number of at least 0", value) for flag, value in not_negative.items()),
        ("H0", 0 < arguments.H0 < math.inf, "a positive number [km/s/Mpc]", arguments.H0),
    ):
        if not valid:
            raise ConfigError(f"--{flag}: expected {expected}; found {actual}.")


def _optical_depths(arguments, energy) -> dict:
    """Return the optical depth of each absorber at the energies [keV]."""
    import jax
    import numpy as np

    from hbm_jax.absorption import neutral_cross_section, whim_optical_depth
    from hbm_jax.cosmology import Cosmology

    neutral = {"model": arguments.model, "abundances": arguments.abundances}
    whim_names = ("n0", "log10_T", "log10_xi", "metallicity", "abundances", "mode")
    whim = {name: getattr(arguments, name) for name in whim_names}
    with jax.enable_x64(True):
        cosmology = Cosmology.flat(H0=arguments.H0, Om0=arguments.Om0)
        depths = {
            "host": arguments.nh * neutral_cross_section(energy * (1.0 + arguments.z), **neutral),
            "Milky Way": arguments.nh_mw * neutral_cross_section(energy, **neutral),
            "WHIM": whim_optical_depth(energy, arguments.z, **whim, cosmology=cosmology),
        }
        return {name: np.asarray(tau) for name, tau in depths.items()}
