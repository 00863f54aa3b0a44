"""To and from `astropy.cosmology`. Astropy is imported only when one of these functions is called."""

from typing import TYPE_CHECKING

import numpy as np

from hbm_jax.cosmology.background import Cosmology, FlatCosmology, Radiation

if TYPE_CHECKING:
    from astropy.cosmology import FLRW

REPRESENTABLE = ("LambdaCDM", "FlatLambdaCDM", "wCDM", "FlatwCDM", "w0waCDM", "Flatw0waCDM")


def from_astropy(cosmology: "FLRW") -> Cosmology:
    """Convert an `astropy.cosmology` object, its radiation and neutrinos included.

    Parameters
    ----------
    cosmology : astropy.cosmology.FLRW
        One of LambdaCDM, FlatLambdaCDM, wCDM, FlatwCDM, w0waCDM, Flatw0waCDM; astropy's presets are among them.

    Returns
    -------
    Cosmology
        A `FlatCosmology` for astropy's flat classes. The baryon share Ob0, the name and the metadata are dropped: no
        distance depends on them.

    Raises
    ------
    TypeError
        If the class is another one: its dark energy, or what a subclass may have changed, is not representable.

    Examples
    --------
    >>> from astropy.cosmology import Planck18
    >>> from_astropy(Planck18).radiation
    Radiation(Tcmb0=2.7255, Neff=3.046, m_nu=(0.0, 0.0, 0.06))
    """
    import astropy.cosmology

    kind = type(cosmology).__name__
    if type(cosmology) not in [getattr(astropy.cosmology, name) for name in REPRESENTABLE]:
        raise TypeError(
            f"cosmology: expected one of astropy's {', '.join(REPRESENTABLE)}, where w = w0 + wa z / (1 + z);"
            f" found {type(cosmology).__module__}.{kind}, which is not representable."
        )
    radiation = None
    if cosmology.Tcmb0.value > 0:
        masses = None if cosmology.m_nu is None else tuple(float(m) for m in cosmology.m_nu.to_value("eV"))
        radiation = Radiation(float(cosmology.Tcmb0.to_value("K")), float(cosmology.Neff), masses)
    common = {
        "H0": float(cosmology.H0.to_value("km/(s Mpc)")),
        "Om0": float(cosmology.Om0),
        "w0": float(getattr(cosmology, "w0", -1.0)),
        "wa": float(getattr(cosmology, "wa", 0.0)),
    }
    if kind.startswith("Flat"):
        return FlatCosmology(**common, radiation=radiation)
    return Cosmology(**common, Ode0=float(cosmology.Ode0), radiation=radiation)


def to_astropy(cosmology: Cosmology) -> "FLRW":
    """Convert to the simplest `astropy.cosmology` class that holds the cosmology.

    Parameters
    ----------
    cosmology : Cosmology
        With concrete scalar values.

    Returns
    -------
    astropy.cosmology.FLRW
        LambdaCDM if w0 = -1 and wa = 0, wCDM if wa = 0, else w0waCDM; with Flat in front for a `FlatCosmology`.

    Raises
    ------
    ValueError
        If a field is not a scalar: an astropy object holds one universe. If the dark energy is not that of w0 and wa.

    Examples
    --------
    >>> to_astropy(Cosmology.flat(H0=70.0, Om0=0.3))
    FlatLambdaCDM(H0=<Quantity 70. km / (Mpc s)>, Om0=0.3, ...)
    """
    import astropy.cosmology

    if cosmology.dark_energy is not None:
        raise ValueError(
            "dark_energy: expected none, because astropy's classes hold w0 and wa; found "
            f"{type(cosmology.dark_energy).__name__}."
        )
    flat = isinstance(cosmology, FlatCosmology)
    names = ["H0", "Om0", "w0", "wa"] if flat else ["H0", "Om0", "Ode0", "w0", "wa"]
    for name in names:
        shape = np.shape(getattr(cosmology, name))
        if shape != ():
            raise ValueError(f"{name}: expected a scalar, because an astropy cosmology is one universe; found {shape}.")
    values = {name: float(getattr(cosmology, name)) for name in names}
    w0, wa = values["w0"], values["wa"]
    kind = "w0waCDM" if wa != 0 else "wCDM" if w0 != -1 else "LambdaCDM"
    if kind != "w0waCDM":
        del values["wa"]
    if kind == "LambdaCDM":
        del values["w0"]
    radiation = cosmology.radiation
    extra = {}
    if radiation is not None:
        masses = 0.0 if radiation.m_nu is None else np.array([float(m) for m in radiation.m_nu])
        extra = {"Tcmb0": float(radiation.Tcmb0), "Neff": float(radiation.Neff), "m_nu": masses}
    return getattr(astropy.cosmology, ("Flat" if flat else "") + kind)(**values, **extra)
