"""Fit of a model expression to one observed spectrum or to several jointly.

Parameters are tied between the observed spectra except for those that are declared untied. Each spectrum after the
first may have a calibration factor relative to the first.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist

from hbm_jax.distributions.counts import Counts
from hbm_jax.distributions.notation import distribution_from_text
from hbm_jax.models.base import PopulationModel
from hbm_jax.models.fold_cautions import fold_cautions
from hbm_jax.models.priors import Prior, sample_prior
from hbm_jax.models.ties import Tie, ordered_ties, prior_from_text
from hbm_jax.models.xray.expressions import additive, joined_parameters, text_of
from hbm_jax.models.xray.folded import TOLERANCE, FoldedSpectra
from hbm_jax.models.xray.folded_regions import FoldedRegions
from hbm_jax.names import choose, listed
from hbm_jax.precomputation import precomputed
from hbm_jax.spectra.background_regions import RegionStack
from hbm_jax.spectra.folding.area_errors import AreaErrors
from hbm_jax.spectra.model.composition import Parameter, components_of
from hbm_jax.spectra.model.text import spectrum_to_text
from hbm_jax.spectra.stack import SpectrumStack
from hbm_jax.spectra.statistics.feature_scan import Feature, feature_starts
from hbm_jax.spectra.statistics.goodness import Goodness, goodness_of_fit
from hbm_jax.spectra.statistics.statistic import STATISTICS
from hbm_jax.validation import DataError
from hbm_jax.xla_options import QUICK

CALIBRATION: dict[str, Prior] = {"calibration": dist.LogNormal(0.0, 0.1)}
NUM_REPEATED = 2  # times one data set of `fit_each` may be repeated
NUM_TRIALS = 32  # draws from the prior at which the error of the folds is measured
RESERVED = ("calibration", "counts", "spectrum", "group", "calibrated_spectrum")  # sites and plates of the program


class Deviance(NamedTuple):
    """Deviance of data from a model.

    Attributes
    ----------
    groups : (N, G)
        Statistic of each group, as XSPEC prints it; 0 in padding.
    spectra : (N,)
        Sum over the groups of each spectrum.
    total : float
        Sum over all spectra.
    degrees_of_freedom : int
        Number of groups less number of free parameters.
    """

    groups: np.ndarray
    spectra: np.ndarray
    total: float
    degrees_of_freedom: int


@dataclass(frozen=True)
class SpectralFit(PopulationModel):
    """Model expression fitted to one or several observed spectra; calling it with data is a NumPyro program.

    Raises ValueError for an expression without additive component, or an unknown statistic, parameter or prior; for a
    formula with an unknown parameter, and formulas that depend on each other.

    Parameters
    ----------
    spectrum : Component or str
        Additive model expression of `hbm_jax.spectra`, or its text, ``"PowerLaw() * Absorption('mw')"``; see
        `hbm_jax.spectra.model.text.spectrum_from_text`.
    statistic : str or sequence of str, optional
        As in `hbm_jax.spectra.prepare`, including chi-square; of several, one for each spectrum. The default depends on
        counts and backgrounds, see `SpectrumStack.default_statistic`.
    calibration : bool
        Whether each spectrum after the first has a calibration factor, ``calibration``.
    own : sequence of str, or str
        Untied parameters, with one value for each spectrum (for those of the background, for each background region).
    background_spectrum : Component or str, optional
        Model expression of the background, which is fitted together with the source, with Poisson statistics for both
        regions. Needs a `hbm_jax.spectra.RegionStack`. Its rates are those in the background region.
    priors : mapping of str to Distribution, float or str
        Priors that replace those of the components, by parameter name. A number fixes the parameter; the limits of a
        distribution such as ``"Uniform(0, 10)"`` are hard limits. A formula of other parameters, such as
        ``"2 * a_nh"``, ties the parameter to them; see `hbm_jax.models.ties.Tie`. A formula that names an untied
        parameter has a value for each spectrum.

    Notes
    -----
    Sample the model with `hbm_jax.sample`, or maximise its likelihood with `hbm_jax.maximum_likelihood`, which ignores
    all priors, also that of the calibration, except those of `AreaErrors`. Lines are folded on all bins of the
    response, without further error. The continuum is evaluated on a few quadrature nodes; the largest change of the log
    likelihood by this is measured for each spectrum at 32 draws from the prior (``prepare(data).errors``) and is below
    1e-3 if no feature has a free energy. A free break energy takes up to 5000 nodes, and so does a free redshift of an
    absorber, which moves its edges within the panels; with 10^4 counts the remaining errors were 5e-4 and 0.1,
    respectively. Errors above 1e-3 are reported in the notes of verdicts and of maximum-likelihood fits (`cautions`).

    Examples
    --------
    >>> model = SpectralFit("PowerLaw() * Absorption()", priors={"nh": "Uniform(0, 10)"})
    >>> model.all_priors["nh"].high
    10.0
    """

    Bound: ClassVar[type] = FoldedSpectra
    dims: ClassVar[dict[str, list[str]]] = {"counts": ["spectrum", "group"]}
    read_prior = staticmethod(prior_from_text)

    spectrum: Any = field(metadata={"help": 'such as "powerlaw * tbabs(mw) * tbabs(host, z=1.3)"'})
    statistic: str | tuple[str, ...] | None = field(
        default=None, metadata={"help": f"{', '.join(STATISTICS)}; may be repeated, for each spectrum"}
    )
    calibration: bool = field(default=False, metadata={"help": "whether spectra after the first have a factor"})
    own: tuple[str, ...] | str = field(default=(), metadata={"help": "untied parameters, one value for each spectrum"})
    background_spectrum: Any = field(
        default=None, metadata={"help": "model of the background regions, if these were read as spectra"}
    )

    def check_options(self) -> None:
        """Raise ValueError for an invalid expression, or an unknown statistic or untied parameter."""
        spectrum = additive(self.spectrum)
        background = None if self.background_spectrum is None else additive(self.background_spectrum)
        parameters = joined_parameters(spectrum, background)
        if self.statistic is not None and not isinstance(self.statistic, str):
            object.__setattr__(self, "statistic", tuple(self.statistic))
        for name in self._statistics:
            choose("statistic", name, STATISTICS)
        reserved = [name for name in parameters if name in RESERVED]
        if reserved:
            raise ValueError(f"SpectralFit: expected no parameter named {reserved[0]!r}; give its component a label.")
        untied = (self.own,) if isinstance(self.own, str) else tuple(self.own)
        for name in untied:
            choose("parameter of the spectrum", name, tuple(parameters))
        object.__setattr__(self, "spectrum", spectrum)
        object.__setattr__(self, "background_spectrum", background)
        object.__setattr__(self, "own", untied)

    @property
    def _statistics(self) -> tuple[str, ...]:
        """Statistics set by the user, of any spectrum."""
        return (self.statistic,) if isinstance(self.statistic, str) else (self.statistic or ())

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        """Parameters of the model expressions of source and background by name."""
        return joined_parameters(self.spectrum, self.background_spectrum)

    @property
    def default_priors(self) -> dict[str, Prior]:
        """Default prior of every parameter by name."""
        table = self.parameters.items()
        defaults: dict[str, Prior] = {name: distribution_from_text(p.prior, f"prior.{name}") for name, p in table}
        return defaults | (CALIBRATION if self.calibration else {})

    @cached_property
    def all_priors(self) -> dict[str, Prior]:
        """Every parameter with its prior; a number fixes a parameter, a formula ties it to others."""
        priors = super().all_priors
        for name in ordered_ties(priors, self.parameters):
            if name in self.own:
                raise ValueError(f"own: expected parameters that are not tied to others; found {name!r}, which is.")
        return priors

    @cached_property
    def ties(self) -> dict[str, Tie]:
        """Tied parameters with their formulas, in an order in which they can be computed."""
        return ordered_ties(self.all_priors, self.parameters)

    @cached_property
    def auxiliary(self) -> frozenset[str]:
        """Parameters whose priors are results of other measurements, and are kept in best fits."""
        spectra = (self.spectrum,) if self.background_spectrum is None else (self.spectrum, self.background_spectrum)
        parts = [part for spectrum in spectra for part in components_of(spectrum)]
        return frozenset(name for part in parts if isinstance(part, AreaErrors) for name in part.parameters)

    def complete(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameter values with those of fixed and of tied parameters added.

        Raises ValueError if the value of a parameter to which another is tied is missing.

        Parameters
        ----------
        parameters : mapping of str to () or (N,) array
            Values of the free parameters by name; for example the ``parameters`` of `hbm_jax.maximum_likelihood`.
        """
        fixed = {name: prior for name, prior in self.all_priors.items() if isinstance(prior, int | float)}
        values: dict[str, Any] = fixed | {name: jnp.asarray(value) for name, value in parameters.items()}
        for name, tie in self.ties.items():
            missing = [other for other in tie.parameters if other not in values]
            if name not in values and missing:
                raise ValueError(
                    f"SpectralFit: expected a value of {missing[0]!r}, to which {name!r} is tied; found values of "
                    f"{listed(values) or 'none'}."
                )
            if name not in values:
                values[name] = tie(values)
        return values

    def prepare(self, data: SpectrumStack, tolerance: float = TOLERANCE) -> FoldedSpectra:
        """Precompute responses on nodes, cross sections and tables, which depend on the data alone.

        As `hbm_jax.models.base.PopulationModel.bind`, with the largest change of the log likelihood of a spectrum by
        the choice of nodes as ``tolerance``.
        """
        self.check_container(data, SpectrumStack, "Build one with SpectrumStack.of.")
        if self.background_spectrum is not None or isinstance(data, RegionStack):
            if self.background_spectrum is None or not isinstance(data, RegionStack):
                expected = "a model of the background" if self.background_spectrum is None else "background regions"
                raise DataError(
                    f"SpectralFit: expected {expected}; found none. Fit background_spectrum= to spectra that were read "
                    "with background_response=, or neither."
                )
            expressions = self.spectrum, self.background_spectrum
            return FoldedRegions.of_regions(*expressions, data, self.statistic, self.trials, tolerance=tolerance)
        return FoldedSpectra.of(self.spectrum, data, self.statistic, self.trials, tolerance=tolerance)

    bind = prepare

    def bind_alike(self, data: Sequence[SpectrumStack]) -> list[FoldedSpectra]:
        """Return bound data of several data sets, with arrays of the same shapes, for `hbm_jax.fit_each`.

        Raises ValueError if the data sets differ in their number of spectra, and for large responses with lines.
        """
        if self.background_spectrum is not None or any(isinstance(entry, RegionStack) for entry in data):
            return [self.bound(entry) for entry in data]
        sizes = {len(entry) for entry in data}
        if len(sizes) > 1:
            raise ValueError(f"fit_each: expected as many spectra in each data set; found {sorted(sizes)}.")
        for num_repeated in range(NUM_REPEATED + 1):
            bound = self._divided([*data, *num_repeated * [data[-1]]], next(iter(sizes)))
            if bound is not None:
                return bound[: len(data)]
        raise ValueError(f"fit_each: {len(data)} data sets of this model cannot be divided; fit them in groups.")

    def _divided(self, data: list[SpectrumStack], size: int) -> list[FoldedSpectra] | None:
        """Return bound data of each data set from those of all together; None if an expected count then differs.

        The axis of the spectra is found by its length, which another axis may have too.
        """
        joined, num = SpectrumStack.joined(data), len(data)
        statistic = self._statistics * num if isinstance(self.statistic, tuple) else self.statistic
        together = precomputed(
            lambda: FoldedSpectra.of(self.spectrum, joined, statistic, self.trials, num_together=size)
        )
        bound = together.each(size)
        values = {name: value[0] for name, value in self.trials.items() if name in self.spectrum.parameters}
        with jax.enable_x64(True):
            whole = np.asarray(_fold(together, values, None))
            try:
                parts = np.concatenate([_fold(part, values, None) for part in bound])
            except (TypeError, ValueError):  # arrays of shapes that do not match
                return None
        return bound if np.allclose(whole, parts, rtol=1e-9, atol=0.0) else None

    @cached_property
    def trials(self) -> dict[str, np.ndarray]:
        """Draws from the priors of all parameters, (NUM_TRIALS,) each."""
        run: Any
        try:
            hash(self)
            run = functools.partial(_drawn_trials, self)
        except (TypeError, ValueError):  # a user-defined prior may have no hash
            run = jax.jit(functools.partial(_draw_trials, self), compiler_options=QUICK)
        return precomputed(lambda: {name: np.asarray(value) for name, value in run(jax.random.key(0)).items()})

    def program(self, bound: FoldedSpectra, observed: bool, recover: bool) -> None:
        """Run the NumPyro program; with ``observed=False`` the counts of the source regions are drawn."""
        num, num_groups = np.shape(bound.statistic.counts)
        values: dict[str, Any] = {}
        for name, prior in self.all_priors.items():
            if name in self.own:
                with self._plate(name, bound):
                    values[name] = sample_prior(name, prior, auxiliary=name in self.auxiliary)
            elif name != "calibration" and name not in self.ties:
                values[name] = sample_prior(name, prior, auxiliary=name in self.auxiliary)
        for name, tie in self.ties.items():
            plate = self._plate(name, bound) if jnp.ndim(tie(values)) else contextlib.nullcontext()
            with plate:
                values[name] = numpyro.deterministic(name, tie(values))
        expected = bound.expected(values, self._factors(bound.num_sources))
        counts = bound.statistic.counts if observed else None
        with numpyro.plate("spectrum", num, dim=-2), numpyro.plate("group", num_groups, dim=-1):
            numpyro.sample("counts", Counts(expected, bound.statistic), obs=counts)

    def _plate(self, name: str, bound: FoldedSpectra):
        """Return the plate of an untied parameter: all spectra, or source or background regions."""
        if self.background_spectrum is None:
            return numpyro.plate("spectrum", len(bound.errors), dim=-1)
        if name in self.spectrum.parameters:
            return numpyro.plate("source_region", bound.num_sources, dim=-1)
        return numpyro.plate("background_region", len(bound.errors) - bound.num_sources, dim=-1)

    def _factors(self, num: int):
        """Return the calibration factors of the spectra, 1 for the first; None without calibration."""
        if not self.calibration or num < 2:
            return None
        with numpyro.plate("calibrated_spectrum", num - 1, dim=-1):
            factors = sample_prior("calibration", self.all_priors["calibration"])
        return jnp.append(1.0, jnp.broadcast_to(factors, num - 1))

    def expected(self, data: SpectrumStack | FoldedSpectra, parameters: Mapping[str, Any]) -> np.ndarray:
        """Return the expected counts of the source without background, (N, G); of both with a model of the background.

        Raises ValueError for a missing value.

        Parameters
        ----------
        data : SpectrumStack or FoldedSpectra
            The spectra, or the result of `prepare`, which need not be computed again in every call.
        parameters : mapping of str to () or (N,) array
            Values by name, such as the ``parameters`` of `hbm_jax.maximum_likelihood`; ``calibration`` is (N - 1,).
            Fixed and tied parameters may be omitted.
        """
        bound = self.bound(data)
        with jax.enable_x64(True):
            return np.asarray(self._expected(bound, parameters))

    def _expected(self, bound: FoldedSpectra, parameters: Mapping[str, Any]):
        """Return the expected counts at given values, with fixed and tied parameters added."""
        return _fold(bound, *self.values_and_factors(bound, parameters))

    def _parts(self, bound: FoldedRegions, parameters: Mapping[str, Any]):
        """Return the expected counts of the source and of the background in all regions, as `FoldedRegions.parts`."""
        return _fold_parts(bound, *self.values_and_factors(bound, parameters))

    def values_and_factors(self, bound: FoldedSpectra, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        """Return values with fixed and tied parameters added, and calibration factors or None."""
        values, num = self.complete(parameters), bound.num_sources
        if not self.calibration or num < 2:
            return values, None
        if "calibration" not in values:
            raise ValueError("SpectralFit: expected a value of 'calibration' for each spectrum after the first.")
        return values, jnp.append(1.0, jnp.broadcast_to(jnp.asarray(values["calibration"]), num - 1))

    def deviance(self, data: SpectrumStack | FoldedSpectra, parameters: Mapping[str, Any]) -> Deviance:
        """Return the deviance of the data from the model; the arguments are those of `expected`."""
        bound = self.bound(data)
        with jax.enable_x64(True):
            groups = np.asarray(_deviance(bound.statistic, self._expected(bound, parameters)))
        num, num_free = bound.num_sources, 0
        for name, prior in self.all_priors.items():
            if isinstance(prior, dist.Distribution) and name not in self.auxiliary:
                if name in self.own:  # one for each source, or for each background region
                    num_free += num if name in self.spectrum.parameters else len(groups) - num
                else:
                    num_free += num - 1 if name == "calibration" else 1
        spectra = groups.sum(axis=1)
        return Deviance(groups, spectra, float(spectra.sum()), self.num_data(bound) - num_free)

    def goodness(
        self,
        data: SpectrumStack | FoldedSpectra,
        parameters: Mapping[str, Any],
        *,
        seed: int,
        num_simulations: int = 1000,
    ) -> Goodness:
        """Compare the deviance of the data with those of data simulated from the model.

        Data and parameters are those of `expected`; for the other arguments and the limits of the p-values see
        `hbm_jax.spectra.statistics.goodness.goodness_of_fit`.
        """
        bound = self.bound(data)
        with jax.enable_x64(True):
            expected = np.asarray(self._expected(bound, parameters))
            return goodness_of_fit(bound.statistic, expected, seed=seed, num_simulations=num_simulations)

    def num_data(self, data: SpectrumStack | FoldedSpectra) -> int:
        """Return the number of groups of channels, without padding."""
        return int(np.asarray(self.bound(data).statistic.used).sum())

    def simulate(self, key, data: SpectrumStack, parameters: Mapping[str, float] | None = None):
        """Draw spectra as `hbm_jax.models.base.PopulationModel.simulate`.

        True values are the same for all spectra. Raises ValueError with a chi-square statistic, whose data are not
        counts.
        """
        gaussian = [name for name in self._statistics if name.startswith("chi2_")]
        if gaussian:
            raise ValueError(f"simulate: expected a statistic of counts; found {gaussian[0]}, whose data are Gaussian.")
        return super().simulate(key, data, parameters)

    @cached_property
    def _features(self) -> list[Feature]:
        """Lines and edges with free energy and strength."""
        free = [name for name, prior in self.all_priors.items() if isinstance(prior, dist.Distribution)]
        features = []
        for part in components_of(self.spectrum):
            names = list(part.parameters) if part.localised else []
            if names and names[0] in free and names[-1] in free:
                width = next((name for name in names[1:-1] if name in free), None)
                features.append(Feature(names[0], names[-1], width))
        return features

    @property
    def further_starts(self) -> Callable | None:
        """Starting points with lines and edges at the energies that fit the data best; None without free energies.

        See `hbm_jax.spectra.statistics.feature_scan.feature_starts`.
        """
        if not self._features:
            return None
        names = [name for feature in self._features for name in feature if name is not None]
        bounds = {name: _bounds(self.all_priors[name]) for name in names}
        return functools.partial(feature_starts, self._features, self.trials, bounds, self.own, self.values_and_factors)

    # The remaining members of the protocol that inference, command line and reports use.

    def cautions(self, data: SpectrumStack | FoldedSpectra, bound: FoldedSpectra | None = None) -> tuple[str, ...]:
        """Return notes for the verdict, on folds whose error exceeds the tolerance."""
        errors = self.bound(data if bound is None else bound).errors
        return fold_cautions(errors, TOLERANCE, getattr(data, "name", ()), "the log likelihood")

    def coords(self, data: SpectrumStack) -> dict[str, list]:
        """Return the labels of the dimensions."""
        names = list(getattr(data, "name", ()))
        if isinstance(data, RegionStack):
            sources, backgrounds = names[: data.num_sources], names[data.num_sources :]
            regions = {"source_region": sources, "background_region": backgrounds}
            return {"spectrum": names, "calibrated_spectrum": sources[1:]} | regions
        return {"spectrum": names, "calibrated_spectrum": names[1:]} if names else {}

    @property
    def units(self) -> dict[str, str]:
        """Units of the parameters; dimensionless ones are absent."""
        return {name: p.unit for name, p in self.parameters.items() if p.unit}

    @property
    def description(self) -> str:
        """One line for reports."""
        text = text_of(self.spectrum)
        if self.background_spectrum is not None:
            text += f" with the background {text_of(self.background_spectrum)}"
        untied = f", {', '.join(self.own)} of each spectrum" if self.own else ""
        return f"Spectral fit of {text}{untied}{', with calibration factors' if self.calibration else ''}"

    def to_config(self) -> dict:
        """Return the options as plain values, spectrum and priors as text; ``SpectralFit(**config)`` is the same model.

        Raises ValueError for a component that is not registered, or a prior that cannot be written as text.
        """
        statistic = list(self.statistic) if isinstance(self.statistic, tuple) else self.statistic
        texts = {"spectrum": spectrum_to_text(self.spectrum), "own": list(self.own), "statistic": statistic}
        if self.background_spectrum is not None:
            texts["background_spectrum"] = spectrum_to_text(self.background_spectrum)
        return super().to_config() | texts


def _draw_trials(model: SpectralFit, key: jax.Array) -> dict[str, Any]:
    """Return draws from the priors of all parameters, (NUM_TRIALS,) each."""
    drawn = {}
    prior_keys = jax.random.split(key, len(model.all_priors))
    for prior_key, (name, prior) in zip(prior_keys, model.all_priors.items(), strict=True):
        if name in model.ties:
            continue
        if isinstance(prior, dist.Distribution):
            drawn[name] = prior.sample(prior_key, (NUM_TRIALS,))
        else:
            drawn[name] = np.full(NUM_TRIALS, float(prior))
    return drawn | {name: model.complete(drawn)[name] for name in model.ties}


# Compiled once for all equal models. Evaluated operation by operation, it takes four times as long.
_drawn_trials = jax.jit(_draw_trials, static_argnums=0, compiler_options=QUICK)


# Compiled once for all spectra of one shape.
_fold = jax.jit(lambda bound, values, factors: bound.expected(values, factors))
_fold_parts = jax.jit(lambda bound, values, factors: bound.parts(values, factors))
_deviance = jax.jit(lambda statistic, expected: statistic.deviance(expected))


def _bounds(prior: Any) -> tuple[float, float]:
    """Return the bounds of the support of a prior; infinite where there are none."""
    support = prior.support
    return float(getattr(support, "lower_bound", -np.inf)), float(getattr(support, "upper_bound", np.inf))
