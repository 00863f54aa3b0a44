"""``hbm-jax absorption``: transmission of host galaxy, Milky Way and WHIM."""

from pathlib import Path

from hbm_jax.cli.arguments import Parser
from hbm_jax.configuration import ConfigError

FIGURES = (".png", ".pdf", ".svg")
MAX_COLUMN = 1e4  # 1e26 cm^-2, which is opaque; a larger column must be in other units
PRINTED = (0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)  # keV


def parser() -> Parser:
    """Return the parser of ``absorption``."""
    from hbm_jax.absorption import ABUNDANCES, MODES

    absorption = Parser(
        "hbm-jax absorption",
        "[options]",
        "Print and draw the transmission of host galaxy, Milky Way and the WHIM.",
        "example:\n  hbm-jax absorption --nh 1 --z 2 --nh-mw 0.03 --n0 1e-7 --log10-T 6 --plot out.png",
    )
    for flag, default, text in (
        ("--nh", 0.0, "column density of the host galaxy [1e22 cm^-2]"),
        ("--z", 0.0, "redshift of the source, 0 to 10"),
        ("--nh-mw", 0.0, "column density of the Milky Way [1e22 cm^-2]"),
        ("--n0", 0.0, "density of the WHIM at redshift 0 [cm^-3]"),
        ("--log10-T", 6.0, "log10 of the temperature of the WHIM [K], 4 to 8"),
        ("--log10-xi", 0.0, "log10 of the ionisation parameter of the WHIM [erg cm/s], -12 to 8"),
        ("--metallicity", 1.0, "metallicity of the WHIM, relative to the abundance table"),
        ("--H0", 70.0, "Hubble constant [km/s/Mpc]"),
        ("--Om0", 0.3, "matter density of the flat LCDM cosmology"),
    ):
        absorption.add_argument(
            flag, metavar="NUMBER", type=float, default=default, help=f"{text}; default {default:g}"
        )
    absorption.add_argument("--model", default="tbabs", help="model of neutral absorption: tbabs (default) or phabs")
    absorption.add_argument(
        "--abundances", metavar="TABLE", default="wilm", help=f"abundance table: {', '.join(ABUNDANCES)}; default wilm"
    )
    absorption.add_argument(
        "--mode",
        default="photo+collisional",
        help=f"ionisation balance of the WHIM: {', '.join(MODES)}; default photo+collisional",
    )
    absorption.add_argument(
        "--energies", metavar="KEV", type=float, nargs=2, default=(0.3, 10.0), help="energy range; default 0.3 10"
    )
    absorption.add_argument("--plot", metavar="FILE", type=Path, help="figure to write, as png, pdf or svg")
    return absorption


def run(arguments) -> int:
    """Print the transmissions and draw the figure."""
    import jax
    import numpy as np

    from hbm_jax.absorption import neutral_cross_section, whim_optical_depth
    from hbm_jax.absorption.domain import MAX_ENERGY
    from hbm_jax.cosmology import Cosmology

    low, high = arguments.energies
    if not 0 < low < high:
        raise ConfigError(
            f"--energies: expected two positive energies [keV] in increasing order; found {low:g} {high:g}."
        )
    if high * (1.0 + arguments.z) > MAX_ENERGY:
        raise ConfigError(
            f"--energies: expected no more than {MAX_ENERGY / (1.0 + arguments.z):g} keV, which is {MAX_ENERGY:g} keV "
            f"at the redshift {arguments.z:g} of the source; found {high:g}."
        )
    if arguments.plot and arguments.plot.suffix not in FIGURES:
        raise ConfigError(f"--plot: expected a name ending in {', '.join(FIGURES)}; found {str(arguments.plot)!r}.")
    if arguments.plot and not arguments.plot.parent.is_dir():
        raise ConfigError(f"--plot: expected an existing folder; found {str(arguments.plot.parent)!r}.")
    if arguments.n0 > 0 and arguments.z == 0:
        raise ConfigError(
            "--n0: expected the redshift of the source with it, such as --z 2, to which WHIM absorption is integrated; "
            "found --z 0."
        )
    for name in ("nh", "nh_mw"):
        if getattr(arguments, name) > MAX_COLUMN:
            raise ConfigError(
                f"--{name.replace('_', '-')}: expected a column density in units of 1e22 cm^-2, up to {MAX_COLUMN:g}; "
                f"found {getattr(arguments, name):g}."
            )
    for name in ("nh", "nh_mw", "Om0"):
        if not 0 <= getattr(arguments, name) < np.inf:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag}: expected a number of at least 0; found {getattr(arguments, name)}.")
    if not 0 < arguments.H0 < np.inf:
        raise ConfigError(f"--H0: expected a positive number [km/s/Mpc]; found {arguments.H0}.")
    cold = {"model": arguments.model, "abundances": arguments.abundances}

    def depths(energy):
        """Return the optical depth of each absorber."""
        with jax.enable_x64(True):
            optical_depths = {
                "host": arguments.nh * neutral_cross_section(energy * (1.0 + arguments.z), **cold),
                "Milky Way": arguments.nh_mw * neutral_cross_section(energy, **cold),
                "WHIM": whim_optical_depth(
                    energy, arguments.z, n0=arguments.n0, log10_T=arguments.log10_T, log10_xi=arguments.log10_xi,
                    metallicity=arguments.metallicity, abundances=arguments.abundances, mode=arguments.mode,
                    cosmology=Cosmology.flat(H0=arguments.H0, Om0=arguments.Om0),
                ),
            }  # fmt: skip
            return {name: np.asarray(tau) for name, tau in optical_depths.items()}

    energies = np.array([e for e in PRINTED if low <= e <= high] or [low, high])
    tau_at = depths(energies)
    print(f"transmission\n{'E [keV]':>8}" + "".join(f"{name:>12}" for name in (*tau_at, "total")))
    for i, energy in enumerate(energies):
        values = [tau[i] for tau in tau_at.values()]
        print(f"{energy:8.2f}" + "".join(f"{np.exp(-tau):12.4f}" for tau in (*values, sum(values))))
    if arguments.plot:
        from hbm_jax.plotting import transmissions

        energy = np.geomspace(low, high, 2000)
        transmissions(energy, depths(energy)).savefig(arguments.plot)
        print(f"figure     {arguments.plot}")
    return 0
