"""Populations of absorbed sources: a model expression, and which of its parameters differ between sources."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpyro import distributions as dist

from hbm_jax.absorption import WhimTable
from hbm_jax.absorption.domain import LOG10_T
from hbm_jax.cosmology import Cosmology
from hbm_jax.distributions.notation import distribution_from_text
from hbm_jax.spectra.model.components import Absorption, Component, Parameter, PowerLaw, Whim

# Trial spectra that bracket those of afterglows: photon index, column densities of host and Milky Way [1e22 cm^-2].
_INDICES, _HOSTS, _GALACTIC = (0.0, 2.0, 4.0), (0.0, 0.1, 1.0, 10.0, 100.0, 1e3), (0.02, 1.0)
# Trial media: log10 of n0 [cm^-3], log10 of T [K], metallicity.
_WHIMS = ((-6.0, 4.5, 1.0), (-6.0, 5.5, 1.0), (-6.0, 6.2, 1.0), (-6.0, 6.8, 1.0), (-6.0, 7.4, 0.1), (-7.0, 6.0, 0.3))
_NO_WHIM = (-30.0, 6.0, 0.3)
_NUM_SPECTRA, _NUM_TEMPERATURES = 1200, 40
_NUM_TRIALS = 48
_LN10 = math.log(10.0)


@dataclass(frozen=True)
class Varying:
    """A parameter of a model expression whose values in the sources are normal, in some scale.

    Attributes
    ----------
    parameter, site : str
        Its name in the expression, and the name of what is normal: the parameter, its log10 or its logit.
    scale : str
        ``"linear"``, ``"log10"`` or ``"logit"``.
    unit : str
        Unit of the parameter.
    mean : (float, float)
        Location and scale of the normal prior of the mean of the population.
    std : float
        Scale of the half-normal prior of its standard deviation.
    start_std, min_std : float
        Standard deviation of the population at the start of `SourceInformation.of`, and the smallest one there.
    """

    parameter: str
    site: str
    scale: str
    unit: str
    mean: tuple[float, float]
    std: float
    start_std: float
    min_std: float = 0.1

    def value(self, x):
        """Return the parameter at values of the site."""
        return {"linear": lambda x: x, "log10": lambda x: 10.0**x, "logit": jax.nn.sigmoid}[self.scale](x)

    @property
    def priors(self) -> dict[str, Any]:
        """Priors of mean and standard deviation of the population."""
        return {f"{self.site}_mean": dist.Normal(*self.mean), f"{self.site}_std": dist.HalfNormal(self.std)}

    @property
    def units(self) -> dict[str, str]:
        """Units of the site, its mean and its standard deviation."""
        unit = "" if self.scale == "logit" else self.unit
        dex = "dex" if self.site.startswith("log10_") else unit
        return {self.site: unit, f"{self.site}_mean": unit, f"{self.site}_std": dex}


# Broad within the physical range: published samples have columns of about 10^21.7 cm^-2 with a spread of half a dex
# (Campana et al. 2012, MNRAS 421, 1697); no afterglow would be detected through more than 10^25 cm^-2.
HOST = Varying("host_nh", "log10_nh", "log10", "1e22/cm^2", (-0.5, 0.75), 0.5, 1.0, 0.2)
KNOWN = {
    "photon_index": Varying("photon_index", "photon_index", "linear", "", (2.0, 0.5), 0.3, 1.0),
    "log10_flux": Varying("log10_flux", "log10_flux", "linear", "erg/cm^2/s", (-11.5, 0.75), 0.5, 3.0),
}


def varying_of(name: str, parameter: Parameter) -> Varying:
    """Return the population of a parameter, from its default prior.

    The logarithm of a positive parameter is normal, and the logit of one between 0 and 1. The mean of the population
    has the prior of the parameter, and its standard deviation a half-normal prior of half that width.
    """
    if name in KNOWN:
        return KNOWN[name]
    prior: Any = distribution_from_text(parameter.prior, name)
    if isinstance(prior, dist.LogNormal):
        loc, width, scale = float(prior.loc) / _LN10, float(prior.scale) / _LN10, "log10"
    elif isinstance(prior, dist.Uniform) and (float(prior.low), float(prior.high)) == (0.0, 1.0):
        loc, width, scale = 0.0, 1.5, "logit"
    elif isinstance(prior, dist.Normal):
        loc, width, scale = float(prior.loc), float(prior.scale), "linear"
    elif hasattr(prior, "base_dist"):  # a truncated normal distribution
        loc, width, scale = float(prior.base_dist.loc), float(prior.base_dist.scale), "linear"
    else:
        raise ValueError(
            f"{name}: expected a normal, log-normal or truncated normal default prior, or a uniform one from 0 to 1, "
            f"for a parameter with a population; found {parameter.prior}."
        )
    site = name if scale == "linear" else f"{scale}_{name}"
    return Varying(name, site, scale, parameter.unit, (loc, width), 0.5 * width, 2.0 * width, 0.1 * width)


def _spread(medium: "Medium", spectrum: Component) -> dict[str, np.ndarray]:
    """Return parameters of trial spectra of any expression, spread over the prior of the population."""
    rng, number = np.random.default_rng(0), np.arange(_NUM_TRIALS)
    media = np.array([_NO_WHIM, *_WHIMS])[number % (1 + len(_WHIMS))].T
    values = dict(zip(("log10_n0", "log10_T", "metallicity"), media, strict=True))
    values |= {"log10_xi": 0.0 * number, "mw_nh": np.where(number % 2, *_GALACTIC[::-1])}
    table = spectrum.parameters
    for varying in (*medium.sites, *(varying_of(name, table[name]) for name in medium.common)):
        width = 2.0 * math.hypot(varying.mean[1], varying.std)  # two standard deviations of the population's prior
        drawn = varying.mean[0] + width * rng.uniform(-1.0, 1.0, _NUM_TRIALS)
        values[varying.parameter] = np.asarray(varying.value(drawn))
    return values | {"host_nh": np.array(_HOSTS)[number // 2 % len(_HOSTS)]}


@dataclass(frozen=True)
class Medium:
    """Options of the absorbers: host galaxy, Milky Way and WHIM.

    Attributes
    ----------
    abundances : str
        Abundance table of all three absorbers.
    whim : bool
        Whether the WHIM absorbs.
    mode : str
        Ionisation of the WHIM, as in `hbm_jax.absorption.whim_optical_depth`.
    log10_xi : float or None
        Ionisation parameter of the WHIM; None if it is sampled.
    metallicity : float or None
        Metallicity of the WHIM; None if it is sampled.
    H0, Om0 : float
        Flat cosmology of the line-of-sight integral.
    expression : Component or None
        Model expression; None: a power law absorbed by Milky Way, host and, with ``whim``, WHIM.
    common : tuple of str
        Parameters of the expression with one value for all sources.
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

    def spectrum(self, z: Any, band: tuple[float, float], reach: Any = None) -> Component:
        """Return the model expression of sources at redshifts (N,), or at free redshifts within a reach."""
        at_source = z if reach is None else None

        def completed(part):
            if isinstance(part, Absorption):
                z_absorber = part.z if part.label == "mw" else at_source
                return dataclasses.replace(part, abundances=self.abundances, z=z_absorber)
            if isinstance(part, Whim):
                return self._whim(z if reach is None else reach, self.log10_xi, self.metallicity)
            return dataclasses.replace(part, norm=band) if hasattr(part, "norm") else part

        return self._expression.mapped(completed)

    @property
    def _expression(self) -> Component:
        if self.expression is not None:
            return self.expression
        cold = Absorption("mw") * Absorption("host")
        return (cold * Whim() if self.whim else cold) * PowerLaw()

    @property
    def of_power_laws(self) -> bool:
        """Whether the expression is that of the default, absorbed power laws."""
        return tuple(v.parameter for v in self.sites) == ("photon_index", "log10_flux", "host_nh") and not self.common

    @property
    def sites(self) -> tuple["Varying", ...]:
        """Parameters of the expression with a population; the column of the host, if there is one, is the last."""
        given = {"mw_nh", "host_z", "host_nh", *self.common}
        whim = Whim(log10_xi=None).own_parameters
        table = self.spectrum(0.0, (0.3, 10.0)).parameters
        varying = [varying_of(name, p) for name, p in table.items() if name not in given and name not in whim]
        return (*varying, *([HOST] if "host_nh" in table else []))

    @property
    def common_values(self) -> dict[str, float]:
        """Central value of the prior of each common parameter."""
        table = self.spectrum(0.0, (0.3, 10.0)).parameters
        common = [varying_of(name, table[name]) for name in self.common]
        return {v.parameter: float(v.value(v.mean[0])) for v in common}

    def guide(self, z: np.ndarray) -> WhimTable | None:
        """Return a table of the WHIM at five energies between 0.4 and 1.3 keV; None without a WHIM.

        Sampled parameters are fixed: log10_xi at 0 and the metallicity at `guided`.
        """
        if not self.whim:
            return None
        whim = self._whim(z, self.log10_xi or 0.0, self.guided)
        return whim._table(np.array([0.4, 0.6, 0.8, 1.0, 1.3]), np.asarray(z))  # type: ignore[return-value]

    @property
    def guided(self) -> float:
        """Metallicity of the table that `guide` returns."""
        return 0.3 if self.metallicity is None else self.metallicity

    def _whim(self, z, log10_xi: float | None, metallicity: float | None) -> Whim:
        return Whim(
            z=z,
            cosmology=Cosmology.flat(H0=self.H0, Om0=self.Om0),
            metallicity=metallicity,
            mode=self.mode,
            abundances=self.abundances,
            log10_xi=log10_xi,
        )


def trials(medium: Medium, spectrum: Component) -> dict[str, np.ndarray]:
    """Return parameters that bracket those of the population, (num_trials,) each."""
    if not medium.of_power_laws:
        return _spread(medium, spectrum)
    index, host, galactic = (a.ravel() for a in np.meshgrid(_INDICES, _HOSTS, _GALACTIC, indexing="ij"))
    media = np.array(_NO_WHIM)[:, None]
    if "log10_T" in spectrum.parameters:
        # All spectra without a medium, and those of the middle photon index with every medium.
        middle = np.flatnonzero((index == 2.0) & (galactic == _GALACTIC[0]))
        rows = np.append(np.arange(len(index)), np.repeat(middle, len(_WHIMS)))
        media = np.concatenate([np.tile(media.T, (len(index), 1)), np.tile(_WHIMS, (len(middle), 1))]).T
        index, host, galactic = index[rows], host[rows], galactic[rows]
    return _parameters(index, host, galactic, *media)


def random_draws(whim: bool, num: int = _NUM_SPECTRA) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return parameters of random spectra, (num,) to choose nodes and half as many to test them; the seed is fixed.

    Photon indices are from -0.5 to 4.5, host columns up to 1e26 cm^-2, Milky Way columns up to 1.5e22 cm^-2, and media
    have densities up to 2e-6 cm^-3 and temperatures of 10^4 to 10^8 K, which differ between the two samples.
    """
    rng, samples = np.random.default_rng(0), []
    for sample, size in enumerate((num, num // 2)):
        index = rng.uniform(-0.5, 4.5, size)
        host, galactic = (10.0 ** rng.uniform(*ends, size) for ends in ((-2.5, 4.0), (-2.5, 0.18)))
        media: Any = _NO_WHIM
        if whim:
            row = 2 * rng.integers(_NUM_TEMPERATURES, size=size) + sample
            log10_T = np.linspace(*LOG10_T, 2 * _NUM_TEMPERATURES)[row]
            media = rng.uniform(-9.0, -5.7, size), log10_T, rng.uniform(0.0, 1.0, size)
        samples.append(_parameters(index, host, galactic, *media))
    return samples[0], samples[1]


def _parameters(index, host, galactic, log10_n0, log10_T, metallicity) -> dict[str, np.ndarray]:
    """Return parameters of the expression, all of the length of the photon indices."""
    values = {"photon_index": index, "log10_flux": -11.0, "host_nh": host, "mw_nh": galactic, "log10_n0": log10_n0}
    values |= {"log10_T": log10_T, "log10_xi": 0.0, "metallicity": metallicity}
    return {name: np.broadcast_to(value, np.shape(index)) for name, value in values.items()}
