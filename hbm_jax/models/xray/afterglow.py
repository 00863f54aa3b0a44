"""Population of X-ray afterglows: power laws absorbed by host galaxy, warm-hot intergalactic medium and Milky Way.

Source i has a photon index, an energy flux and a host column,

    photon_index_i ~ N(photon_index_mean, photon_index_std^2),    log10_flux_i ~ N(log10_flux_mean, log10_flux_std^2),
    log10_nh_i ~ N(log10_nh_mean, log10_nh_std^2), or skew-normal with that mean and standard deviation,

and its photon spectrum K_i E^-photon_index_i exp[-nh_i sigma(E (1 + z_i)) - nh_mw_i sigma(E) - tau(E, z_i; n0, T)] is
folded through the response of the instrument and compared with the observed counts (Starling et al. 2013, MNRAS 431,
3159).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist

from hbm_jax.absorption import ABUNDANCES, MODES
from hbm_jax.data import Afterglows, DataError
from hbm_jax.distributions import CoordinatePriors, LogOrLinear
from hbm_jax.distributions.counts import Counts
from hbm_jax.distributions.notation import distribution_from_text
from hbm_jax.distributions.skew_normal import SkewNormal
from hbm_jax.models.efficiency import DetectionFunction, Efficiency, Injections
from hbm_jax.models.fold_cautions import fold_cautions
from hbm_jax.models.priors import Prior, in_stated_parameters, sample_prior
from hbm_jax.models.selection import NONE, Selection, SelectiveModel, as_selections, record_effective, stored
from hbm_jax.models.xray.absorbed_counts import TOLERANCE, AbsorbedCounts, Medium
from hbm_jax.models.xray.detection import check_options as check_selection
from hbm_jax.models.xray.detection import detection_of, with_selection
from hbm_jax.models.xray.source_information import SourceInformation
from hbm_jax.names import choose
from hbm_jax.precomputation import precomputed
from hbm_jax.spectra.folding.area_errors import AreaErrors
from hbm_jax.spectra.model.components import Absorption, Component, Whim
from hbm_jax.spectra.model.composition import components_of
from hbm_jax.spectra.model.text import spectrum_from_text, spectrum_to_text
from hbm_jax.spectra.statistics.statistic import STATISTICS
from hbm_jax.validation import Remedy, energy_band

COUNTS = tuple(name for name in STATISTICS if not name.startswith("chi2"))

SKEW: dict[str, Prior] = {"log10_nh_shape": dist.Normal(0.0, 3.0)}
# The cosmic density of hydrogen is 1.9e-7 cm^-3, log10 -6.7; a third to half of it is expected in the WHIM.
WHIM: dict[str, Prior] = {"log10_n0": dist.Normal(-7.0, 0.5)}
SIGHTLINES: dict[str, Prior] = {"log10_n0_mean": dist.Normal(-7.0, 0.5), "log10_n0_std": dist.HalfNormal(0.3)}
GAS: dict[str, Prior] = {"log10_T": dist.Uniform(4.5, 7.5), "log10_xi": 0.0, "metallicity": 0.3}
FREE_GALACTIC: dict[str, Prior] = {"nh_mw": dist.LogNormal(-2.6, 1.0)}

UNITS = {
    "nh_mw": "1e22/cm^2",
    "log10_n0": "1/cm^3",
    "log10_n0_mean": "1/cm^3",
    "log10_n0_std": "dex",
    "log10_T": "K",
    "log10_xi": "erg cm/s",
}


@dataclass(frozen=True, kw_only=True)
class Afterglow(SelectiveModel):
    """Hierarchical model of absorbed afterglow spectra; calling it with data is a NumPyro program.

    Raises ValueError for an unknown option or prior name; the message suggests the nearest known one.

    Parameters
    ----------
    spectrum : Component or str, optional
        Model expression of the sources, such as ``"tbabs(mw) * ztbabs(host) * cutoffpl"``; by default
        ``"tbabs(mw) * ztbabs(host) * powerlaw"``, with ``whim`` among the factors if the WHIM absorbs. Absorbers are
        labelled ``mw`` (Milky Way) or ``host`` (at the redshift of the source). Components of hbm_jax are normalised by
        their energy flux in ``band``. Each parameter of the expression has a normal population, of its logarithm if its
        default prior is log-normal, of its logit if that is uniform from 0 to 1; see `Afterglow.all_priors`.
    common : sequence of str, or str
        Parameters of the expression with one value for all sources, and the prior of their component.
    whim : bool
        Whether the warm-hot intergalactic medium absorbs. Its parameters log10_n0 (density of hydrogen at redshift 0)
        and log10_T are common to all lines of sight; log10_xi and metallicity are fixed at 0 and 0.3 unless they have
        priors.
    sightlines : bool
        Whether log10_n0 differs between lines of sight, normal with mean log10_n0_mean and standard deviation
        log10_n0_std.
    galactic : str
        Column of the Milky Way: ``"fixed"`` at the value of the catalogue, ``"error"`` normal about it with the
        error of the catalogue, ``"free"`` with the prior ``nh_mw`` for each source.
    host : str
        Population of log10_nh: ``"normal"`` or ``"skew-normal"``, which adds log10_nh_shape.
    statistic : str, optional
        ``"cstat"``, ``"wstat"``, ``"pgstat"`` or ``"marginal"``, see `hbm_jax.spectra.prepare`. The default depends on
        the backgrounds: ``marginal`` where background counts were measured.
    selection : str, Selection, Efficiency, DetectionFunction or Injections
        Sources that are missing because they are faint: ``"log10_flux > -12 +- 0.1"`` for a smooth limit of the
        unabsorbed flux, whose position and width may have priors, see `hbm_jax.models.selection`;
        ``"log10_flux > log10_flux_limit +- 0.1"`` for limits of the sources in a column;
        ``"log10_flux from efficiency.csv"`` for an efficiency tabulated in the flux, above 0, or a function of photon
        index and flux (`hbm_jax.models.DetectionFunction`); ``"counts > 99"`` for sources with 100 counts or more in
        the groups of the fit, background included, which depends on exposure, response, redshift and columns of each
        source. The latter expects absorbed power laws at known redshifts, no WHIM and fixed Galactic columns.
        ``"injections from injections.csv"``: the detected fraction is that of simulated sources, see
        `hbm_jax.models.Injections`.
    abundances : str
        Abundance table of host, Milky Way and WHIM; see `hbm_jax.absorption.abundance_table`.
    ionization : str
        Ionisation of the WHIM: ``"photo+collisional"``, ``"photo"`` or ``"collisional"``.
    band : (float, float)
        Energy range of the unabsorbed flux [keV], in the observer's frame.
    H0, Om0 : float
        Flat cosmology of the line-of-sight integral of the WHIM.
    priors : mapping of str to Distribution, float or str
        Priors that replace the defaults, by parameter name; a number fixes the parameter. The defaults are in
        `Afterglow.all_priors`.

    Notes
    -----
    Redshifts with an error in the catalogue are parameters ``z``, normal and truncated at four standard deviations.
    Responses are reduced to a few quadrature nodes. The largest change of the log likelihood by this is measured for
    every source (``AbsorbedCounts.errors``) and kept below 1e-4 for columns up to 1e25 cm^-2, or, with another
    ``spectrum``, for spectra whose log likelihood is at most 50 below the largest; the table of the WHIM changes it by
    another 4e-4 or so (``tests/models/test_afterglow.py``). n0 is degenerate with the metallicity, and with T along a
    curve.

    Examples
    --------
    >>> Afterglow(whim=True, priors={"metallicity": "Uniform(0, 1)"}).all_priors["log10_T"].low
    4.5
    """

    Bound: ClassVar[type] = AbsorbedCounts
    dims: ClassVar[dict[str, list[str]]] = {"counts": ["source", "group"]}

    spectrum: Any = field(default=None, metadata={"help": 'such as "tbabs(mw) * ztbabs(host) * cutoffpl"'})
    common: tuple[str, ...] | str = field(default=(), metadata={"help": "parameters with one value for all sources"})
    whim: bool = field(default=False, metadata={"help": "whether the warm-hot intergalactic medium absorbs"})
    sightlines: bool = field(default=False, metadata={"help": "whether the density differs between lines of sight"})
    galactic: Literal["fixed", "error", "free"] = field(default="fixed", metadata={"help": "fixed, error, free"})
    host: Literal["normal", "skew-normal"] = field(default="normal", metadata={"help": "normal, skew-normal"})
    statistic: str | None = field(default=None, metadata={"help": ", ".join(COUNTS)})
    selection: str | Selection | Efficiency | DetectionFunction | Injections = field(
        default=NONE, metadata={"help": "sources that are missing, as in 'log10_flux > -12 +- 0.1' or 'counts > 99'"}
    )
    abundances: str = field(default="wilm", metadata={"help": ", ".join(ABUNDANCES)})
    ionization: str = field(default="photo+collisional", metadata={"help": ", ".join(MODES)})
    band: tuple[float, float] = field(default=(0.3, 10.0), metadata={"help": "energy range of the flux [keV]"})
    H0: float = field(default=70.0, metadata={"help": "km/s/Mpc"})
    Om0: float = field(default=0.3, metadata={"help": "matter density"})

    def check_options(self) -> None:
        """Raise ValueError for an invalid expression, name or band, or sightlines without a WHIM."""
        self._read_expression()
        choose("table of abundances", self.abundances, ABUNDANCES)
        choose("ionisation", self.ionization, MODES)
        if self.statistic is not None:
            choose("statistic", self.statistic, COUNTS)
        if self.sightlines and not self.whim:
            raise ValueError("Afterglow: expected whim=True with sightlines=True; found whim=False.")
        object.__setattr__(self, "band", energy_band(self.band, "Afterglow: band"))
        object.__setattr__(self, "selection", stored(as_selections(self.selection, "Afterglow", limits_only=False)))
        check_selection(self)

    @cached_property
    def _stated_selections(self) -> tuple[Any, ...]:
        """The selection as the option defines it; ``priors`` may replace the priors of its parameters."""
        return precomputed(lambda: as_selections(self.selection, "Afterglow", limits_only=False))

    def _read_expression(self) -> None:
        """Check the model expression and store it as text."""
        object.__setattr__(self, "common", (self.common,) if isinstance(self.common, str) else tuple(self.common))
        if self.spectrum is None:
            return
        spectrum = spectrum_from_text(self.spectrum) if isinstance(self.spectrum, str) else self.spectrum
        if not isinstance(spectrum, Component) or spectrum.kind != "additive":
            raise ValueError(f"Afterglow: expected a spectrum with an additive component; found {spectrum}.")
        parts = components_of(spectrum)
        labels = [part.label for part in parts if isinstance(part, Absorption)]
        if not set(labels) <= {"mw", "host"}:
            raise ValueError(f"Afterglow: expected absorbers labelled mw or host; found {', '.join(labels)}.")
        instrument = [name for part in parts if isinstance(part, AreaErrors) for name in part.parameters]
        common = (*self.common, *(name for name in instrument if name not in self.common))
        object.__setattr__(self, "common", common)
        object.__setattr__(self, "spectrum", spectrum_to_text(spectrum))
        object.__setattr__(self, "whim", any(isinstance(part, Whim) for part in parts))

    @property
    def default_priors(self) -> dict[str, Prior]:
        """Default prior of every parameter by name; a number fixes a parameter."""
        medium = self._medium(None, None)
        defaults = {name: prior for varying in medium.sites for name, prior in varying.priors.items()}
        for name in self.common:
            choose("parameter of the spectrum", name, tuple(medium.table))
            defaults[name] = distribution_from_text(medium.table[name].prior, f"prior.{name}")
        if self.host == "skew-normal":
            defaults |= SKEW
        if self.whim:
            defaults |= (SIGHTLINES if self.sightlines else WHIM) | GAS
        if self.galactic == "free":
            defaults |= FREE_GALACTIC
        for part in self._stated_selections:
            defaults |= part.priors
        return defaults

    @cached_property
    def medium(self) -> Medium:
        """Options of the absorbers."""
        fixed = {k: v if isinstance(v, float | int) else None for k, v in self.all_priors.items() if k in GAS}
        return self._medium(fixed.get("log10_xi"), fixed.get("metallicity"))

    def _medium(self, log10_xi: float | None, metallicity: float | None) -> Medium:
        """Return the options of the absorbers, with these properties of the WHIM; None if they are sampled."""
        return Medium(
            abundances=self.abundances,
            whim=self.whim,
            mode=self.ionization,
            log10_xi=log10_xi,
            metallicity=metallicity,
            H0=self.H0,
            Om0=self.Om0,
            expression=None if self.spectrum is None else spectrum_from_text(self.spectrum),
            common=tuple(self.common),
        )

    @property
    def selected_values(self) -> tuple[str, ...]:
        """Names of the true values of injections: the parameters of the sources that have populations."""
        return tuple(varying.site for varying in self.medium.sites)

    def prepare(self, data: Afterglows, tolerance: float = TOLERANCE) -> AbsorbedCounts:
        """Precompute responses on nodes, cross sections and tables of the WHIM, which depend on the data alone.

        As `hbm_jax.models.base.PopulationModel.bind`, with the largest change of the log likelihood of a source by the
        choice of nodes as ``tolerance``. Also raises DataError if a required Galactic column, or its error, is missing.
        In `hbm_jax.fit_each` with ``AbsorbedCounts.each`` the arrays of the result are traced.
        """
        self.check_container(data, Afterglows, "Read them with hbm_jax.data.read_afterglows.")
        self._require_columns(data)
        bound = AbsorbedCounts.of(data, self.medium, self.band, self.statistic, tolerance)
        return with_selection(self, bound, data)

    bind = prepare

    def cautions(self, data: Afterglows | AbsorbedCounts, bound: AbsorbedCounts | None = None) -> tuple[str, ...]:
        """Return notes for the verdict, on folds whose error exceeds the tolerance."""
        errors = self.bound(data if bound is None else bound).errors
        return fold_cautions(errors, TOLERANCE, getattr(data, "name", ()), "the log likelihood")

    def _require_columns(self, data: Afterglows) -> None:
        """Raise DataError if a required Galactic column, or its error, is missing."""
        if self.galactic == "free":
            return
        columns = [("the Galactic column nh_mw", ~np.isfinite(np.asarray(data.nh_mw)), "free")]
        if self.galactic == "error":
            columns.append(("a positive sigma_nh_mw", np.asarray(data.sigma_nh_mw) <= 0, "fixed"))
        for column, missing, other in columns:
            if missing.any():
                raise DataError(
                    f"Afterglow(galactic={self.galactic!r}): expected {column} of every source; found none for "
                    f"{int(missing.sum())} of {len(data)}, the first being {data.name[int(missing.argmax())]}. Add it, "
                    f"or use galactic={other!r}.",
                    [Remedy("galactic", other)],
                )

    def program(self, bound: AbsorbedCounts, observed: bool, recover: bool) -> None:
        """Run the NumPyro program; with ``observed=False`` the counts of the source regions are drawn."""
        priors = self.all_priors
        degenerate = self._degenerate_parameters(priors)
        separate = {"nh_mw", *degenerate}
        p: dict[str, Any] = {name: sample_prior(name, prior) for name, prior in priors.items() if name not in separate}
        p |= self._sample_whim({name: priors[name] for name in degenerate}, bound)
        num, num_groups = np.shape(bound.statistic.counts)
        columns, detection = self._population_of_columns(p), detection_of(self.selections, p, bound)
        if detection is not None and isinstance(detection.selection, Injections):
            detection = detection.with_injections(self.selected_values, num, columns)
            record_effective(detection.found)
        with numpyro.plate("source", num, dim=-1):
            latents: dict[str, Any] = {"nh_mw": self._galactic(bound)}
            if self.sightlines:
                latents["log10_n0"] = numpyro.sample("log10_n0", dist.Normal(p["log10_n0_mean"], p["log10_n0_std"]))
            latents |= self._sample_sources(p | latents, bound, columns, detection)
        latents["z"] = self._redshifts(bound)
        expected = bound.expected(p | latents)
        counts = bound.statistic.counts if observed else None
        distribution = Counts(expected, bound.statistic)
        with numpyro.plate("source", num, dim=-2), numpyro.plate("group", num_groups, dim=-1):
            measured = distribution if detection is None else detection.observed_counts(distribution)
            numpyro.sample("counts", measured, obs=counts)

    def _degenerate_parameters(self, priors) -> tuple[str, ...]:
        """Return the names of temperature and density of the WHIM, which are degenerate, if both are free."""
        names = ("log10_T", "log10_n0_mean" if self.sightlines else "log10_n0")
        return names if self.whim and all(isinstance(priors[name], dist.Distribution) for name in names) else ()

    def _sample_whim(self, priors, bound: AbsorbedCounts) -> dict[str, Any]:
        """Sample temperature and density of the WHIM, the density relative to the curve of their degeneracy."""
        if in_stated_parameters() or not priors:
            return {name: numpyro.sample(name, prior) for name, prior in priors.items()}
        _, density = priors

        def location_and_scale(sampled):
            curve = bound.degenerate_density  # relative to the density of the prior, at 10^6 K
            return -7.0 + curve(sampled["log10_T"]) - curve(6.0), 1.0

        to_v = LogOrLinear.of(jnp.sum(bound.source_information.density_information) ** -0.5, 1.0)
        coordinates = CoordinatePriors(priors, {density: location_and_scale}, transforms={density: to_v.inv})
        values = coordinates.parameters(numpyro.sample("_whim", coordinates))
        return {name: numpyro.deterministic(name, values[name]) for name in priors}

    def _population_of_columns(self, p) -> Any:
        """Return the population of log10 of the columns of the hosts, if they are parameters."""
        if "log10_nh_mean" not in p:
            return None
        if self.host == "skew-normal":
            return SkewNormal.standardised(p["log10_nh_mean"], p["log10_nh_std"], p["log10_nh_shape"])
        return dist.Normal(p["log10_nh_mean"], p["log10_nh_std"])

    def _sample_sources(self, p, bound: AbsorbedCounts, columns, detection) -> dict[str, Any]:
        """Sample the varying parameters of every source, in coordinates from `SourceInformation`.

        ``columns`` is the population of the columns of the hosts, and ``detection`` a `SourceDetection` or None.
        """
        varying = bound.medium.sites  # the column of the host, if it is a parameter, is the last
        means, stds = ([p[f"{v.site}_{moment}"] for v in varying] for moment in ("mean", "std"))
        depth = None
        if bound.depth is not None:
            n0 = jnp.broadcast_to(10.0 ** p["log10_n0"], np.shape(bound.z))
            depth = bound.depth(n0, p["log10_T"])
            if bound.medium.metallicity is None:
                depth = depth * p["metallicity"] / bound.medium.depth_metallicity
        if detection is not None and columns is not None:
            columns = detection.column(columns, len(bound.z))
        values = bound.source_information.sample(depth, p["nh_mw"], varying, means, stds, columns, detection)
        parameters = {v.parameter: v.value(values[v.site]) for v in varying}
        return parameters | ({"nh": parameters["host_nh"]} if "host_nh" in parameters else {})

    def _galactic(self, bound: AbsorbedCounts):
        """Return the columns of the Milky Way, sampled unless fixed; to be called within the plate of the sources."""
        if self.galactic == "fixed":
            return jnp.asarray(bound.nh_mw)
        if self.galactic == "error":
            return numpyro.sample("nh_mw", dist.TruncatedNormal(bound.nh_mw, bound.sigma_nh_mw, low=0.0))
        return jnp.broadcast_to(sample_prior("nh_mw", self.all_priors["nh_mw"]), np.shape(bound.z))

    def _redshifts(self, bound: AbsorbedCounts):
        """Return the redshifts of all sources; sample the uncertain ones."""
        if bound.uncertain is None:
            return bound.z
        rows, (low, high) = bound.uncertain_rows, bound.redshift_range
        with numpyro.plate("uncertain_redshift", len(rows)):
            drawn = numpyro.sample("z", dist.TruncatedNormal(bound.z[rows], bound.sigma_z[rows], low=low, high=high))
        return jnp.concatenate([bound.z[bound.known_rows], drawn])[bound.order]

    # The remaining members of the protocol that inference, command line and reports use.

    def observing(self, values: Mapping[str, Any], data: Afterglows | AbsorbedCounts) -> tuple[AbsorbedCounts]:
        """Return the model's arguments with other counts, and coordinates chosen for these."""
        bound = self.bound(data)
        with jax.enable_x64(True):
            statistic = jax.device_get(bound.statistic.with_counts(values["counts"]))
        bound = dataclasses.replace(bound, statistic=statistic)
        return (dataclasses.replace(bound, source_information=SourceInformation.of(bound)),)

    def coords(self, data: Afterglows) -> dict[str, list]:
        """Return the labels of the dimensions."""
        uncertain = [name for name, is_known in zip(data.name, data.knows_redshift, strict=True) if not is_known]
        return {"source": list(data.name)} | ({"uncertain_redshift": uncertain} if uncertain else {})

    @property
    def units(self) -> dict[str, str]:
        """Units of the parameters; dimensionless ones are absent."""
        medium = self._medium(None, None)
        units = {name: unit for varying in medium.sites for name, unit in varying.units.items()}
        return units | UNITS | {name: medium.table[name].unit for name in self.common if medium.table[name].unit}

    @property
    def chooses_centering(self) -> bool:
        """True if `hbm_jax.sample` chooses the partial non-centring of the densities of the lines of sight."""
        return self.sightlines

    @property
    def description(self) -> str:
        """One line for reports."""
        whim = "WHIM of each line of sight" if self.sightlines else "global WHIM" if self.whim else "no WHIM"
        hosts = f"{self.host} host columns, " if "log10_nh_mean" in self.all_priors else ""
        spectra = self.spectrum or "absorbed power laws"
        selected = f", selected by {self.selection}" if self.selections else ""
        return f"X-ray afterglows, {spectra}, {hosts}{whim}, Galactic columns {self.galactic}{selected}"
