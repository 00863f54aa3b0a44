"""Populations of absorbed sources: a model expression, and the populations of its parameters."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from hbm_jax.absorption import WhimTable
from hbm_jax.cosmology import Cosmology
from hbm_jax.models.varying import Varying, varying_of
from hbm_jax.spectra.model.components import Absorption, Component, Parameter, PowerLaw, Whim

# Broad within the physical range: published samples have columns of about 10^21.7 cm^-2 with a spread of half a dex
# (Campana et al. 2012, MNRAS 421, 1697); no afterglow would be detected through more than 10^25 cm^-2.
HOST = Varying("host_nh", "log10_nh", "log10", "1e22/cm^2", (-0.5, 0.75), 0.5, 1.0, 0.2)
POPULATIONS = {
    "photon_index": Varying("photon_index", "photon_index", "linear", "", (2.0, 0.5), 0.3, 1.0, 0.1),
    "log10_flux": Varying("log10_flux", "log10_flux", "linear", "erg/cm^2/s", (-11.5, 0.75), 0.5, 3.0, 0.1),
}


@dataclass(frozen=True)
class Medium:
    """Options of the absorbers: host galaxy, Milky Way and WHIM.

    Attributes
    ----------
    abundances, whim, H0, Om0, common
        As in `hbm_jax.models.Afterglow`.
    mode : str
        Ionisation of the WHIM.
    log10_xi, metallicity : float or None
        Ionisation parameter and metallicity of the WHIM; None if they are sampled.
    expression : Component or None
        Model expression; None: a power law absorbed by Milky Way, host and, with ``whim``, WHIM.
    """

    abundances: str = "wilm"
    whim: bool = False
    mode: str = "photo+collisional"
    log10_xi: float | None = 0.0
    metallicity: float | None = 0.3
    H0: float = 70.0
    Om0: float = 0.3
    expression: Component | None = None
    common: tuple[str, ...] = ()

    def spectrum(self, z: Any, band: tuple[float, float], z_range: Any = None) -> Component:
        """Return the model expression of sources at redshifts ``z`` (N,).

        With ``z_range``, the lowest and highest redshift of each source, (N,) each, the redshifts are parameters.
        """
        source_z = z if z_range is None else None

        def completed(part):
            """Return a component with the redshifts, abundances and band of this population."""
            if isinstance(part, Absorption):
                z_absorber = part.z if part.label == "mw" else source_z
                return dataclasses.replace(part, abundances=self.abundances, z=z_absorber)
            if isinstance(part, Whim):
                return self._whim(z if z_range is None else z_range, self.log10_xi, self.metallicity)
            return dataclasses.replace(part, norm=band) if hasattr(part, "norm") else part

        return self._expression.mapped(completed)

    @property
    def _expression(self) -> Component:
        """The model expression, or the default one, without redshifts."""
        if self.expression is not None:
            return self.expression
        cold = Absorption("mw") * Absorption("host")
        return (cold * Whim() if self.whim else cold) * PowerLaw()

    @property
    def has_power_laws(self) -> bool:
        """True for absorbed power laws without common parameters, the default."""
        return tuple(v.parameter for v in self.sites) == ("photon_index", "log10_flux", "host_nh") and not self.common

    @functools.cached_property
    def table(self) -> dict[str, Parameter]:
        """Parameters of the expression at a known redshift, with the flux in any band."""
        return self.spectrum(0.0, (0.3, 10.0)).parameters

    @functools.cached_property
    def sites(self) -> tuple[Varying, ...]:
        """Parameters of the expression with a population; the column of the host, if there is one, is the last."""
        others = {"mw_nh", "host_z", "host_nh", *self.common, *Whim(log10_xi=None).own_parameters}
        varying = [POPULATIONS.get(name) or varying_of(name, p) for name, p in self.table.items() if name not in others]
        return (*varying, *([HOST] if "host_nh" in self.table else []))

    @functools.cached_property
    def common_sites(self) -> tuple[Varying, ...]:
        """Common parameters, with the populations that they would have if they varied."""
        return tuple(POPULATIONS.get(name) or varying_of(name, self.table[name]) for name in self.common)

    def depth_table(self, z: np.ndarray) -> WhimTable | None:
        """Return a table of the WHIM at five energies between 0.4 and 1.3 keV; None without a WHIM.

        Sampled parameters are fixed: log10_xi at 0 and the metallicity at `depth_metallicity`.
        """
        if not self.whim:
            return None
        whim = self._whim(z, self.log10_xi or 0.0, self.depth_metallicity)
        return whim._table(np.array([0.4, 0.6, 0.8, 1.0, 1.3]), np.asarray(z))  # type: ignore[return-value]

    @property
    def depth_metallicity(self) -> float:
        """Metallicity of the table that `depth_table` returns."""
        return 0.3 if self.metallicity is None else self.metallicity

    def _whim(self, z, log10_xi: float | None, metallicity: float | None) -> Whim:
        """Return the WHIM in front of sources at redshifts (N,), with these values or None for parameters."""
        return Whim(
            z=z,
            cosmology=Cosmology.flat(H0=self.H0, Om0=self.Om0),
            metallicity=metallicity,
            mode=self.mode,
            abundances=self.abundances,
            log10_xi=log10_xi,
        )
