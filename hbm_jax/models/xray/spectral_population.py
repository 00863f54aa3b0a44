"""Population of X-ray sources with spectra of any model expression, with one spectrum each or with several.

Parameter p of source i has a normal population in its own scale (`hbm_jax.models.varying.Varying`), such as that of its
logarithm,

    log10_p_i ~ N(log10_p_mean, log10_p_std^2),

unless it is known, common to all sources, or has a value for each epoch, which then has the population. The photon
spectrum is folded through the response of each spectrum and compared with the observed counts.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist

from hbm_jax.data import DataError, SourceSpectra
from hbm_jax.distributions.counts import Counts
from hbm_jax.distributions.notation import distribution_from_text
from hbm_jax.models.efficiency import Injections, refuse_narrow
from hbm_jax.models.fold_cautions import fold_cautions
from hbm_jax.models.priors import Prior, sample_prior
from hbm_jax.models.selection import NONE, SelectiveModel, as_selections, record_effective, stored
from hbm_jax.models.varying import Varying, varying_of
from hbm_jax.models.xray.detection import SourceDetection
from hbm_jax.models.xray.folded import TOLERANCE, FoldedSpectra
from hbm_jax.models.xray.population import POPULATIONS
from hbm_jax.models.xray.spectrum_information import SpectrumInformation
from hbm_jax.names import choose, listed
from hbm_jax.precomputation import precomputed
from hbm_jax.spectra.folding.area_errors import AreaErrors
from hbm_jax.spectra.model.components import Component
from hbm_jax.spectra.model.composition import Parameter, components_of
from hbm_jax.spectra.model.factors import FluxScale
from hbm_jax.spectra.model.text import spectrum_from_text, spectrum_to_text
from hbm_jax.spectra.statistics.statistic import STATISTICS
from hbm_jax.validation import OptionError, energy_band

COUNTS = tuple(name for name in STATISTICS if not name.startswith("chi2"))
CALIBRATION: dict[str, Prior] = {"calibration": dist.LogNormal(0.0, 0.1)}
MILKY_WAY = "mw"  # label of absorbers at redshift 0
NUM_TRIALS = 32  # draws from the priors at which the error of the folds is measured
RESERVED = ("calibration", "counts", "source", "epoch", "spectrum", "group", "calibrated_instrument")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class FoldedSources:
    """Sources with responses and tables precomputed for one model expression; a pytree.

    Attributes
    ----------
    spectra : FoldedSpectra
        The S spectra, with the data.
    source, epoch, instrument : (S,) int
        Index of the source, of the epoch and of the instrument of each spectrum.
    known : dict of str to (S,) array
        Known parameters of the expression.
    information : SpectrumInformation
        Gaussian approximation of each epoch's likelihood, for the coordinates.
    num_sources, num_instruments : int
        Number of sources, N, and of instruments.
    """

    spectra: FoldedSpectra
    source: Any
    epoch: Any
    instrument: Any
    known: dict[str, Any]
    information: SpectrumInformation
    num_sources: int = field(metadata={"static": True})
    num_instruments: int = field(metadata={"static": True})

    @property
    def statistic(self):
        """Statistic of all spectra, with the data."""
        return self.spectra.statistic

    @property
    def errors(self):
        """Largest change of the log likelihood of each spectrum by the fold, (S,)."""
        return self.spectra.errors


@dataclass(frozen=True, kw_only=True)
class SpectralPopulation(SelectiveModel):
    """Hierarchical model of X-ray sources with any model expression; calling it with data is a NumPyro program.

    Raises ValueError for an unknown option or prior name, an expression without an additive component, or a parameter
    whose default prior has no population.

    Parameters
    ----------
    spectrum : Component or str
        Additive model expression of the sources, such as ``"tbabs(mw) * atable('gas.mod', gas)"``. Components whose
        redshift is 0 or None are in the frame of their source, except those with the label ``mw``, which are in the
        Milky Way; other redshifts are kept. Additive components of hbm_jax are normalised by their energy flux in
        ``band``, unless `cflux` or `clumin` scales the expression; ``clumin(po, z=None)`` is at the redshift of the
        source.
    common : sequence of str, or str
        Parameters with one value for all sources, and the prior of their component.
    own : sequence of str, or str
        Parameters with a value for each epoch of a source, such as the flux; the epochs are those of the data, by
        default one for each spectrum. These values have one population, whatever their source.
    known : sequence of str, or str
        Parameters with known values: columns of the data with their names, `SourceSpectra.known`.
    calibration : bool
        Whether each instrument after the first has a factor ``calibration``, the same for all sources.
    statistic : str, optional
        As in `SpectralFit`; of counts.
    selection : str or Injections
        Sources that are missing: ``"injections from injections.csv"``, simulated sources that were found or not, with
        the true values of all parameters that have populations, see `hbm_jax.models.Injections`. It expects one value
        of each parameter for a source.
    band : (float, float)
        Observed energy range of fluxes [keV].
    priors : mapping of str to Distribution, float or str
        Priors that replace the defaults in `SpectralPopulation.all_priors`, by parameter name; a number fixes the
        parameter.

    Notes
    -----
    The population is normal in the parameter, its logarithm or its logit, according to the default prior of its
    component; see `hbm_jax.models.varying.varying_of`. Outside the grid of a table model the likelihood is 0. Folds and
    their measured errors are those of `SpectralFit`. The coordinates are those in which the posterior would be standard
    normal if the likelihood of each spectrum were. Limits as in `Afterglow` are refused, because an expression need
    not have a flux that a survey measures: the detection of its sources is simulated instead. Without a selection the
    population is that of the sources in the sample.

    Examples
    --------
    >>> model = SpectralPopulation(spectrum="tbabs(mw) * bremss(gas)", known="mw_nh")
    >>> list(model.all_priors)
    ['log10_gas_kT_mean', 'log10_gas_kT_std', 'gas_log10_flux_mean', 'gas_log10_flux_std']
    """

    Bound: ClassVar[type] = FoldedSources
    dims: ClassVar[dict[str, list[str]]] = {"counts": ["spectrum", "group"]}

    spectrum: Any = field(metadata={"help": "such as \"tbabs(mw) * atable('gas.mod', gas)\""})
    common: tuple[str, ...] | str = field(default=(), metadata={"help": "parameters with one value for all sources"})
    own: tuple[str, ...] | str = field(default=(), metadata={"help": "parameters with a value for each epoch"})
    known: tuple[str, ...] | str = field(default=(), metadata={"help": "parameters with known values in the table"})
    calibration: bool = field(default=False, metadata={"help": "whether instruments after the first have a factor"})
    statistic: str | None = field(default=None, metadata={"help": ", ".join(COUNTS)})
    selection: str | Injections = field(
        default=NONE, metadata={"help": "sources that are missing, 'injections from injections.csv'"}
    )
    band: tuple[float, float] = field(default=(0.3, 10.0), metadata={"help": "energy range of the flux [keV]"})

    def check_options(self) -> None:
        """Raise ValueError for an invalid expression, parameter, statistic or band."""
        object.__setattr__(self, "band", energy_band(self.band, "SpectralPopulation: band"))
        spectrum = spectrum_from_text(self.spectrum) if isinstance(self.spectrum, str) else self.spectrum
        if not isinstance(spectrum, Component) or spectrum.kind != "additive":
            raise ValueError(f"SpectralPopulation: expected a spectrum with an additive component; found {spectrum}.")
        object.__setattr__(self, "spectrum", spectrum_to_text(spectrum))
        if self.statistic is not None:
            choose("statistic", self.statistic, COUNTS)
        roles: dict[str, str] = {}
        for role in ("common", "own", "known"):
            value = getattr(self, role)
            names = (value,) if isinstance(value, str) else tuple(value)
            for name in names:
                choose("parameter of the spectrum", name, tuple(self.table))
                if roles.setdefault(name, role) != role:
                    raise ValueError(
                        f"{role}: expected other parameters than in {roles[name]}; found {name!r} in both."
                    )
            object.__setattr__(self, role, names)
        reserved = [name for name in self.table if name in RESERVED]
        if reserved:
            raise ValueError(f"SpectralPopulation: expected no parameter {reserved[0]!r}; give its component a label.")
        object.__setattr__(
            self, "selection", stored(as_selections(self.selection, "SpectralPopulation", limits_only=False))
        )
        self._check_selection()

    def _check_selection(self) -> None:
        """Raise OptionError for a selection other than by injections, or with values for each epoch."""
        option = f"SpectralPopulation: selection={str(self.selection)!r}"
        for part in self._stated_selections:
            if not isinstance(part, Injections):
                raise OptionError(f"{option}: expected injections, 'injections from injections.csv'; found {part}.")
            if self.own:
                raise OptionError(f"{option} expects own=(), one value for each source; found {listed(self.own)}.")
            part.selection(self.selected_values)  # raises for a table that cannot be read
            refuse_narrow(option, self.all_priors, [f"{site}_std" for site in self.selected_values])

    @cached_property
    def _stated_selections(self) -> tuple[Any, ...]:
        """The selection as the option defines it."""
        return precomputed(lambda: as_selections(self.selection, "SpectralPopulation", limits_only=False))

    @property
    def selected_values(self) -> tuple[str, ...]:
        """Names of the true values of injections: the parameters of the sources that have populations."""
        return tuple(varying.site for varying in self.sites)

    def num_selected(self, data: Any) -> int:
        """Return the number of sources in the data or bound data."""
        return data.num_sources if isinstance(data, FoldedSources) else len(data)

    def expression(self, z: Any) -> Component:
        """Return the model expression of spectra of sources at redshifts ``z``, a number or (S,)."""
        z = float(z) if np.ndim(z) == 0 else tuple(np.asarray(z, float).tolist())
        spectrum = spectrum_from_text(self.spectrum)
        is_scaled = any(isinstance(part, FluxScale) for part in components_of(spectrum))

        def completed(part: Component) -> Component:
            """Return a component at the redshift of its source, normalised in the band of this population."""
            if hasattr(part, "z") and not part.z and part.label != MILKY_WAY:
                part = dataclasses.replace(part, z=z)  # type: ignore[call-arg]
            if hasattr(part, "norm") and not is_scaled:
                part = dataclasses.replace(part, norm=self.band)  # type: ignore[call-arg]
            return part

        return spectrum.mapped(completed)

    @cached_property
    def table(self) -> dict[str, Parameter]:
        """Parameters of the model expression by name."""
        return self.expression(1.0).parameters

    @cached_property
    def fixed(self) -> tuple[str, ...]:
        """Parameters whose default is a number, such as those that a table model fixes; priors may free them."""
        numbers = [name for name in self._remaining if not isinstance(self._default(name), dist.Distribution)]
        return tuple(name for name in numbers if name not in self.own)

    @property
    def instrumental(self) -> tuple[str, ...]:
        """Parameters of errors of the instruments, which are common to all sources."""
        parts = components_of(spectrum_from_text(self.spectrum))
        return tuple(name for part in parts if isinstance(part, AreaErrors) for name in part.parameters)

    @property
    def _remaining(self) -> list[str]:
        """Parameters that are neither common nor known."""
        return [name for name in self.table if name not in (*self.common, *self.known, *self.instrumental)]

    def _default(self, name: str) -> Prior:
        """Return the default prior of a parameter of the expression."""
        return distribution_from_text(self.table[name].prior, f"prior.{name}")

    @cached_property
    def common_parameters(self) -> tuple[str, ...]:
        """Parameters with one value for all sources, or fixed."""
        return tuple(dict.fromkeys([*self.common, *self.instrumental, *self.fixed]))

    @cached_property
    def sites(self) -> tuple[Varying, ...]:
        """Parameters with a population: first those with a value for each source, then those for each epoch."""
        names = [name for name in self._remaining if name not in self.fixed]
        names = [name for name in names if name not in self.own] + [name for name in names if name in self.own]
        return tuple(POPULATIONS.get(name) or varying_of(name, self.table[name]) for name in names)

    @property
    def num_per_source(self) -> int:
        """Number of parameters with a value for each source."""
        return sum(varying.parameter not in self.own for varying in self.sites)

    @property
    def default_priors(self) -> dict[str, Prior]:
        """Default prior of every parameter by name; a number fixes a parameter."""
        defaults = {name: prior for varying in self.sites for name, prior in varying.priors.items()}
        defaults |= {name: self._default(name) for name in self.common_parameters}
        return defaults | (CALIBRATION if self.calibration else {})

    def prepare(self, data: SourceSpectra, tolerance: float = TOLERANCE) -> FoldedSources:
        """Precompute responses on nodes, cross sections and tables, which depend on the data alone.

        As `hbm_jax.models.base.PopulationModel.bind`, with the largest change of the log likelihood of a spectrum by
        the choice of nodes as ``tolerance``. Also raises DataError if values of known parameters are missing, or
        instruments have no names.
        """
        self.check_container(data, SourceSpectra, "Build one with SourceSpectra.from_spectra.")
        missing = [name for name in self.known if name not in data.known]
        if missing:
            raise DataError(
                f"SpectralPopulation: expected values of {missing[0]!r} in the data; found "
                f"{listed(data.known) or 'none'}."
            )
        if self.calibration and not all(data.instrument):
            raise DataError("SpectralPopulation: expected the instrument of each spectrum with calibration=True.")
        source = np.asarray(data.source)
        draws = self._draws()
        # Known parameters have values of their own in each spectrum, and trials are the same for all.
        known = {name: np.asarray(data.known[name]) for name in self.known}
        trials = draws | {name: np.resize(values, NUM_TRIALS) for name, values in known.items()}
        spectrum = self.expression(np.asarray(data.z)[source])
        spectra = FoldedSpectra.of(spectrum, data.spectra, self.statistic, trials, tolerance=tolerance)
        instruments = list(dict.fromkeys(data.instrument))
        middle = {name: np.median(draws[name]) for name in self.common_parameters}
        means = np.array([np.median(draws[f"{varying.site}_mean"]) for varying in self.sites])
        return FoldedSources(
            spectra=spectra,
            source=source,
            epoch=data.epoch_index,
            instrument=np.array([instruments.index(entry) for entry in data.instrument]),
            known=known,
            information=SpectrumInformation.of(spectra, self.sites, means, middle | known, source, data.epoch_index),
            num_sources=len(data),
            num_instruments=len(instruments),
        )

    bind = prepare

    def _draws(self) -> dict[str, np.ndarray]:
        """Return draws from the priors of all parameters and from the populations, (NUM_TRIALS,) each."""

        def draw() -> dict[str, np.ndarray]:
            drawn: dict[str, Any] = {}
            keys = jax.random.split(jax.random.key(0), len(self.all_priors) + len(self.sites))
            priors: dict[str, Any] = dict(self.all_priors)
            for key, (name, prior) in zip(keys, priors.items(), strict=False):
                is_random = isinstance(prior, dist.Distribution)
                drawn[name] = np.asarray(prior.sample(key, (NUM_TRIALS,)) if is_random else np.full(NUM_TRIALS, prior))
            for key, varying in zip(keys[len(self.all_priors) :], self.sites, strict=True):
                normal = np.asarray(jax.random.normal(key, (NUM_TRIALS,)))
                value = drawn[f"{varying.site}_mean"] + drawn[f"{varying.site}_std"] * normal
                drawn[varying.parameter] = np.asarray(varying.value(value))
            return drawn

        return precomputed(draw)

    def program(self, bound: FoldedSources, observed: bool, recover: bool) -> None:
        """Run the NumPyro program; with ``observed=False`` the counts of the source regions are drawn."""
        num, num_groups = np.shape(bound.statistic.counts)
        names = [name for name in self.all_priors if name != "calibration"]
        p = {name: sample_prior(name, self.all_priors[name], auxiliary=name in self.instrumental) for name in names}
        values = {name: p[name] for name in self.common_parameters} | bound.known
        values |= self._sample_varying(p, bound)
        expected = bound.spectra.expected(values, self._factors(bound))
        counts = bound.statistic.counts if observed else None
        with numpyro.plate("spectrum", num, dim=-2), numpyro.plate("group", num_groups, dim=-1):
            numpyro.sample("counts", Counts(expected, bound.statistic), obs=counts)

    def _sample_varying(self, p: Mapping[str, Any], bound: FoldedSources) -> dict[str, Any]:
        """Sample the parameters with a population; return a value for each spectrum, (S,)."""
        means, stds = ([p[f"{v.site}_{moment}"] for v in self.sites] for moment in ("mean", "std"))
        num = self.num_per_source
        of_source, of_epoch = bound.information.coordinates(means, stds, num, bound.num_sources)
        values: dict[str, Any] = {}
        V = []
        detection = None
        for part in self.selections:
            detection = SourceDetection(part, p).with_injections(self.selected_values, bound.num_sources)
            record_effective(detection.found)
        with numpyro.plate("source", bound.num_sources, dim=-1):
            sampled = of_source.sample(self.sites[:num], means[:num], stds[:num], detection)
        for varying, x, mean, std in zip(self.sites[:num], sampled, means[:num], stds[:num], strict=True):
            V.append(((x - mean) / std)[bound.information.source])
            values[varying.parameter] = varying.value(x)[bound.source]
        with numpyro.plate("epoch", len(bound.information.source), dim=-1):
            sampled = of_epoch.given(V).sample(self.sites[num:], means[num:], stds[num:])
        return values | {v.parameter: v.value(x)[bound.epoch] for v, x in zip(self.sites[num:], sampled, strict=True)}

    def _factors(self, bound: FoldedSources, factors: Any = None) -> Any:
        """Return the factor of the instrument of each spectrum, 1 for the first; None without calibration.

        The factors of the other instruments are sampled where they are not given.
        """
        if not self.calibration or bound.num_instruments < 2:
            return None
        if factors is None:
            with numpyro.plate("calibrated_instrument", bound.num_instruments - 1, dim=-1):
                factors = sample_prior("calibration", self.all_priors["calibration"])
        return jnp.append(1.0, jnp.broadcast_to(factors, bound.num_instruments - 1))[bound.instrument]

    def expected(self, bound: FoldedSources, parameters: Mapping[str, Any]) -> jax.Array:
        """Return the expected counts of the sources without background, (S, G).

        ``parameters`` are the values of one draw: of the sites of sources (N,) and of epochs (E,), of common parameters
        and of ``calibration``. Fixed parameters may be omitted.
        """
        values = dict(bound.known)
        values |= {name: parameters.get(name, self.all_priors[name]) for name in self.common_parameters}
        for varying in self.sites:
            index = bound.epoch if varying.parameter in self.own else bound.source
            values[varying.parameter] = varying.value(jnp.asarray(parameters[varying.site]))[index]
        factors = parameters.get("calibration", self.all_priors.get("calibration"))
        return bound.spectra.expected(values, self._factors(bound, factors))

    # The remaining members of the protocol that inference, command line and reports use.

    def cautions(self, data: SourceSpectra | FoldedSources, bound: FoldedSources | None = None) -> tuple[str, ...]:
        """Return notes for the verdict, on folds whose error exceeds the tolerance."""
        errors = self.bound(data if bound is None else bound).errors
        names = data.spectra.name if isinstance(data, SourceSpectra) else ()
        return fold_cautions(errors, TOLERANCE, names, "the log likelihood")

    def coords(self, data: SourceSpectra) -> dict[str, list]:
        """Return the labels of the dimensions."""
        instruments = list(dict.fromkeys(data.instrument))
        coords = {"source": list(data.name), "spectrum": list(data.spectra.name)}
        coords["epoch"] = [" ".join(pair) for pair in data.epochs]
        return coords | {"calibrated_instrument": instruments[1:]}

    @property
    def units(self) -> dict[str, str]:
        """Units of the parameters; dimensionless ones are absent."""
        units = {name: unit for varying in self.sites for name, unit in varying.units.items()}
        return units | {name: self.table[name].unit for name in self.common_parameters if self.table[name].unit}

    @property
    def description(self) -> str:
        """One line for reports."""
        untied = f", {', '.join(self.own)} of each epoch" if self.own else ""
        factors = ", with factors of the instruments" if self.calibration else ""
        selected = f", selected by {self.selection}" if self.selections else ""
        return f"Population of X-ray sources, {self.spectrum}{untied}{factors}{selected}"
