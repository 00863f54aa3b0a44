"""Cosmological parameters and the expansion rate E(z).

The structure of a cosmology is static; its values may be traced. Whether space is flat (`FlatCosmology`) and whether
there is radiation (``radiation=None``) are part of the type of the object, so JAX compiles no term that is always zero.
The same holds for ``w0`` and ``wa`` while they are the Python numbers -1 and 0.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hbm_jax import constants
from hbm_jax.cosmology.radiation import Radiation, Scalar

if TYPE_CHECKING:
    from astropy.cosmology import FLRW

# Classes of astropy.cosmology that can be converted
REPRESENTABLE = ("LambdaCDM", "FlatLambdaCDM", "wCDM", "FlatwCDM", "w0waCDM", "Flatw0waCDM")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cosmology:
    """A Friedmann-Lemaitre-Robertson-Walker cosmology with dark energy of w(z) = w0 + wa z / (1 + z).

    Parameters
    ----------
    H0 : scalar
        Hubble constant [km/s/Mpc], above 0.
    Om0, Ode0 : scalar
        Density parameters today of non-relativistic matter (without neutrinos) and of dark energy.
    w0, wa : scalar
        Equation of state of dark energy (Chevallier & Polarski 2001, Linder 2003).
    radiation : Radiation, optional
        Photons and neutrinos. None: no radiation.
    dark_energy : object, optional
        Dark energy with another equation of state, instead of w0 and wa: `BinnedDarkEnergy`, `CustomDarkEnergy`, or any
        object with their ``density`` and ``breaks``.

    Notes
    -----
    Every field may be a traced JAX value, so values are not validated: where E(z)^2 is not positive, results are NaN. A
    field that is a Python number is a constant of the compiled program if the object is built inside that program.

    With x = 1 + z,

    E(z)^2 = Om0 x^3 + Ok0 x^2 + Or(z) x^4 + Ode0 x^(3 (1 + w0 + wa)) exp(-3 wa z / x).

    See Also
    --------
    Cosmology.flat : exactly zero curvature. `Cosmology.from_astropy`, `Cosmology.to_astropy` : conversion.

    Examples
    --------
    >>> Cosmology(H0=70.0, Om0=0.3, Ode0=0.75).Ok0
    -0.050000000000000044
    """

    H0: Scalar
    Om0: Scalar
    Ode0: Scalar
    w0: Scalar = -1.0
    wa: Scalar = 0.0
    radiation: Radiation | None = None
    dark_energy: Any = None

    @staticmethod
    def flat(
        H0: Scalar,
        Om0: Scalar,
        w0: Scalar = -1.0,
        wa: Scalar = 0.0,
        radiation: Radiation | None = None,
        dark_energy: Any = None,
    ) -> "FlatCosmology":
        """Return a cosmology with exactly zero curvature, whose Ode0 follows from the other densities."""
        return FlatCosmology(H0=H0, Om0=Om0, w0=w0, wa=wa, radiation=radiation, dark_energy=dark_energy)  # type: ignore[call-arg]

    @staticmethod
    def from_astropy(cosmology: "FLRW") -> "Cosmology":
        """Convert an `astropy.cosmology` object; see `hbm_jax.cosmology.from_astropy`."""
        return from_astropy(cosmology)

    def to_astropy(self) -> "FLRW":
        """Convert to an `astropy.cosmology` object; see `hbm_jax.cosmology.to_astropy`."""
        return to_astropy(self)

    @property
    def Ogamma0(self) -> Scalar:
        """Density parameter of photons today."""
        return 0.0 if self.radiation is None else self.radiation.photon_density(self.H0)

    @property
    def Onu0(self) -> Scalar:
        """Density parameter of neutrinos today."""
        return 0.0 if self.radiation is None else self.Ogamma0 * self.radiation.neutrinos_per_photon(1.0)

    @property
    def Ok0(self) -> Scalar:
        """Density parameter of curvature today, positive for an open universe."""
        return 1.0 - self.Om0 - self.Ode0 - self.Ogamma0 - self.Onu0

    @property
    def hubble_distance(self) -> Scalar:
        """Hubble distance c / H0 [Mpc]."""
        return constants.speed_of_light_km_s / self.H0

    @property
    def hubble_time(self) -> Scalar:
        """Hubble time 1 / H0 [Gyr]."""
        return constants.hubble_time_gyr / self.H0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FlatCosmology(Cosmology):
    """A spatially flat `Cosmology`; Ode0 is not a field but follows from the other densities.

    Flatness is part of the type, so distances compile without curvature, and gradients with respect to the object keep
    the universe flat. Build it with `Cosmology.flat`. Its fields are those of `Cosmology` except Ode0.

    Examples
    --------
    >>> Cosmology.flat(H0=70.0, Om0=0.3, w0=-0.9).Ode0
    0.7
    """

    # A ClassVar removes the inherited field from the constructor and from the pytree.
    Ode0: ClassVar[Any] = property(  # type: ignore[misc]
        lambda self: 1.0 - self.Om0 - self.Ogamma0 - self.Onu0, doc="Density parameter of dark energy today."
    )
    Ok0: ClassVar[Any] = 0.0


def is_exactly(value: Any, number: float) -> bool:
    """Return True if a field is a Python number equal to `number`, so that code may branch on it."""
    return isinstance(value, int | float) and value == number


def e_squared(u: Scalar, cosmology: Cosmology) -> Scalar:
    """Return E(z)^2 at ``u = log(1 + z)``, any shape; it may be negative."""
    x = jnp.exp(u)
    lower_powers = cosmology.Om0 * x
    if not is_exactly(cosmology.Ok0, 0):
        lower_powers = lower_powers + cosmology.Ok0
    if cosmology.radiation is not None:
        relativistic = cosmology.Ogamma0 * (1.0 + cosmology.radiation.neutrinos_per_photon(x))
        lower_powers = lower_powers + relativistic * x**2
    return x**2 * lower_powers + cosmology.Ode0 * dark_energy_density(u, cosmology)


def dark_energy_density(u: Scalar, cosmology: Cosmology) -> Scalar:
    """Return the density of dark energy at ``u = log(1 + z)``, any shape, relative to today."""
    if cosmology.dark_energy is not None:
        return cosmology.dark_energy.density(u)
    w0, wa = cosmology.w0, cosmology.wa
    if is_exactly(wa, 0):
        return 1.0 if is_exactly(w0, -1) else jnp.exp(3.0 * (1.0 + w0) * u)
    return jnp.exp(3.0 * ((1.0 + w0 + wa) * u + wa * jnp.expm1(-u)))


def guarded_inverse_e(u: Scalar, cosmology: Cosmology) -> tuple[jax.Array, jax.Array]:
    """Return 1/E at ``u = log(1 + z)``, and the mask E^2 > 0.

    1/E is 1 where the mask is False, so that no gradient is NaN.
    """
    squared = jnp.asarray(e_squared(u, cosmology))
    positive = squared > 0
    return 1.0 / jnp.sqrt(jnp.where(positive, squared, 1.0)), positive


def as_floating(z: ArrayLike, cosmology: Cosmology | None = None) -> jax.Array:
    """Return redshifts as a JAX array of the common floating type of redshifts and cosmology."""
    return jnp.asarray(z, jnp.result_type(float, jnp.result_type(z, *jax.tree.leaves(cosmology))))


def inv_efunc(z: ArrayLike, cosmology: Cosmology) -> jax.Array:
    """Return the inverse of the expansion rate, 1/E(z) = H0/H(z).

    Parameters
    ----------
    z : array of any shape
        Redshift, above -1.
    cosmology : Cosmology

    Returns
    -------
    array of the shape of z
        NaN where E(z)^2 is not positive.

    Examples
    --------
    >>> inv_efunc(1.0, Cosmology.flat(H0=70.0, Om0=1.0))  # 2^(-3/2)
    """
    value, positive = guarded_inverse_e(jnp.log1p(as_floating(z, cosmology)), cosmology)
    return jnp.where(positive, value, np.nan)


def efunc(z: ArrayLike, cosmology: Cosmology) -> jax.Array:
    """Return the expansion rate relative to today, E(z) = H(z)/H0 (Hogg 1999, arXiv:astro-ph/9905116, equation 14).

    Parameters
    ----------
    z : array of any shape
        Redshift, above -1.
    cosmology : Cosmology

    Returns
    -------
    array of the shape of z
        NaN where E(z)^2 is not positive. Agrees with astropy to 1e-13 (``tests/cosmology/test_astropy.py``).

    Examples
    --------
    >>> efunc(1.0, Cosmology.flat(H0=70.0, Om0=1.0))  # 2^(3/2)
    """
    return 1.0 / inv_efunc(z, cosmology)


def from_astropy(cosmology: "FLRW") -> Cosmology:
    """Convert an `astropy.cosmology` object, including its radiation and neutrinos.

    Parameters
    ----------
    cosmology : astropy.cosmology.FLRW
        One of LambdaCDM, FlatLambdaCDM, wCDM, FlatwCDM, w0waCDM, Flatw0waCDM; astropy's presets are among them.

    Returns
    -------
    Cosmology
        A `FlatCosmology` for flat astropy classes. Ob0, the name and the metadata are dropped: no distance depends on
        them.

    Raises
    ------
    TypeError
        For any other class, including subclasses, whose dark energy or methods may differ.

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
    """Convert to the simplest `astropy.cosmology` class that represents the cosmology.

    Parameters
    ----------
    cosmology : Cosmology
        With concrete scalar values.

    Returns
    -------
    astropy.cosmology.FLRW
        LambdaCDM if w0 = -1 and wa = 0, wCDM if only wa = 0, otherwise w0waCDM; the Flat class for a `FlatCosmology`.

    Raises
    ------
    ValueError
        If a field is not a scalar, or if the dark energy is not described by w0 and wa.

    Examples
    --------
    >>> to_astropy(Cosmology.flat(H0=70.0, Om0=0.3))
    FlatLambdaCDM(H0=<Quantity 70. km / (Mpc s)>, Om0=0.3, ...)
    """
    import astropy.cosmology

    if cosmology.dark_energy is not None:
        raise ValueError(
            "dark_energy: expected none, because the astropy classes describe it by w0 and wa; found "
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
