"""Any composed spectrum on one observed spectrum or on several together: the everyday fit of X-ray astronomy.

Parameters of the spectrum are shared by all observed spectra, but for those that each has for itself; each spectrum
after the first may have a factor of its own, for the calibration of one instrument against another.
"""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist

from hbm_jax.distributions.counts import Counts
from hbm_jax.distributions.notation import distribution_from_text
from hbm_jax.models.fold_errors import fold_cautions
from hbm_jax.models.priors import Prior, complete_priors, sample_prior
from hbm_jax.models.protocol import configuration, simulated
from hbm_jax.models.xray.folded import TOLERANCE, FoldedSpectra
from hbm_jax.names import choose
from hbm_jax.precomputation import precomputed
from hbm_jax.spectra.model.components import Component
from hbm_jax.spectra.model.text import spectrum_from_text, spectrum_to_text
from hbm_jax.spectra.stack import SpectrumStack
from hbm_jax.spectra.statistics.goodness import Goodness, goodness_of_fit
from hbm_jax.spectra.statistics.statistic import STATISTICS
from hbm_jax.validation import DataError

CALIBRATION: dict[str, Prior] = {"calibration": dist.LogNormal(0.0, 0.1)}
NUM_TRIALS = 32  # draws of the prior at which the error of the folds is measured
RESERVED = ("calibration", "counts", "spectrum", "group", "calibrated_spectrum")  # sites and plates of the program


class Deviance(NamedTuple):
    """How far data are from a model.

    Attributes
    ----------
    groups : (N, G)
        Statistic of each group, as XSPEC prints it; 0 in padding.
    spectra : (N,)
        Sum of each spectrum.
    total : float
        Sum of all.
    degrees_of_freedom : int
        Groups less free parameters.
    """

    groups: np.ndarray
    spectra: np.ndarray
    total: float
    degrees_of_freedom: int


@dataclass(frozen=True)
class SpectralFit:
    """One composed spectrum on one or several observed ones; calling it with data is a NumPyro program.

    Parameters
    ----------
    spectrum : Component or str
        Of `hbm_jax.spectra`, with light in it; or its text, ``"PowerLaw() * Absorption('mw')"``, see
        `hbm_jax.spectra.model.text.spectrum_from_text`.
    statistic : str, optional
        As in `hbm_jax.spectra.prepare`, chi-square included. By default the one that suits the backgrounds, see
        `SpectrumStack.default_statistic`.
    calibration : bool
        Whether each spectrum after the first has a factor, ``calibration``.
    own : sequence of str, or str
        Parameters that every spectrum has for itself.
    priors : mapping of str to Distribution, float or str
        Overrides of the components' priors by parameter name; a number holds the parameter fixed.

    Raises
    ------
    ValueError
        For a spectrum without light, an unknown statistic, parameter or prior.

    Notes
    -----
    Sample it with `hbm_jax.sample`, or take `hbm_jax.maximum_likelihood`, which leaves out all priors, also that of the
    calibration. Lines are folded on all bins of the response, as exactly as it has them. Everything else is folded by
    few energies; the largest change of a log likelihood by that is measured for each spectrum at 32 draws of the prior
    (``prepare(data).errors``) and kept below 1e-3, where no feature has a free energy. A free break, and still more a
    free redshift of an absorber, whose edges then lie within panels, is folded by up to 5000 energies; with 10^4
    counts 5e-4 and 0.1 were left. What is above 1e-3 is told in the notes of verdicts and maxima (`cautions`).

    Examples
    --------
    >>> model = SpectralFit("PowerLaw() * Absorption()", priors={"nh": "Uniform(0, 10)"})
    >>> model.all_priors["nh"].high
    10.0
    """

    spectrum: Any = field(metadata={"help": 'such as "powerlaw * tbabs(mw) * tbabs(host, z=1.3)"'})
    statistic: str | None = field(default=None, metadata={"help": ", ".join(STATISTICS)})
    calibration: bool = field(default=False, metadata={"help": "whether each spectrum after the first has a factor"})
    own: tuple[str, ...] | str = field(default=(), metadata={"help": "parameters that every spectrum has for itself"})
    priors: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self):
        spectrum = spectrum_from_text(self.spectrum) if isinstance(self.spectrum, str) else self.spectrum
        if not isinstance(spectrum, Component):
            raise ValueError(f"SpectralFit: expected a spectrum of hbm_jax.spectra, or its text; found {spectrum!r}.")
        if spectrum.kind != "additive":
            raise ValueError(f"SpectralFit: expected a spectrum with an additive component; found {spectrum}.")
        if self.statistic is not None:
            choose("statistic", self.statistic, STATISTICS)
        taken = [name for name in spectrum.parameters if name in RESERVED]
        if taken:
            raise ValueError(f"SpectralFit: expected a parameter not called {taken[0]!r}; give its component a label.")
        own = (self.own,) if isinstance(self.own, str) else tuple(self.own)
        for name in own:
            choose("parameter of the spectrum", name, tuple(spectrum.parameters))
        object.__setattr__(self, "spectrum", spectrum)
        object.__setattr__(self, "own", own)
        object.__setattr__(self, "priors", dict(self.priors))
        object.__setattr__(self, "_kept", {})
        self.all_priors  # noqa: B018 - raises for unknown names

    @property
    def all_priors(self) -> dict[str, Prior]:
        """Every parameter with its prior; a number is a parameter held fixed."""
        table = self.spectrum.parameters.items()
        defaults: dict[str, Prior] = {name: distribution_from_text(p.prior, f"prior.{name}") for name, p in table}
        return complete_priors(defaults | (CALIBRATION if self.calibration else {}), self.priors, "SpectralFit")

    def prepare(self, data: SpectrumStack, tolerance: float = TOLERANCE) -> FoldedSpectra:
        """Work out what depends on the data alone: few energies to fold by, cross sections and tables there.

        Done by itself when the model is called with data. What it returns can take their place.

        Parameters
        ----------
        data : SpectrumStack
            The spectra.
        tolerance : float
            Largest change of a log likelihood by the choice of energies.

        Raises
        ------
        DataError
            For something else than a stack of spectra.
        """
        if not isinstance(data, SpectrumStack):
            raise DataError(
                f"SpectralFit: expected a SpectrumStack; found {type(data).__name__}. Make one with SpectrumStack.of."
            )
        return FoldedSpectra.of(self.spectrum, data, self.statistic, self._trials(), tolerance=tolerance)

    def _trials(self) -> dict[str, np.ndarray]:
        """Draws of the prior of the spectrum's parameters, (NUM_TRIALS,)."""

        def drawn():
            keys = jax.random.split(jax.random.key(0), len(self.all_priors))
            return {
                name: np.asarray(prior.sample(key, (NUM_TRIALS,)))
                if isinstance(prior, dist.Distribution)
                else np.full(NUM_TRIALS, float(prior))
                for key, (name, prior) in zip(keys, self.all_priors.items(), strict=True)
            }

        return precomputed(drawn)

    def _prepared(self, data) -> FoldedSpectra:
        if isinstance(data, FoldedSpectra):
            return data
        kept = self._kept.get("last")  # type: ignore[attr-defined]
        if kept is None or kept[0]() is not data:
            kept = weakref.ref(data), self.prepare(data)
            self._kept["last"] = kept  # type: ignore[attr-defined]
        return kept[1]

    def __call__(self, data: SpectrumStack | FoldedSpectra, observed: bool = True, recover: bool = False):
        """Run the NumPyro program.

        Parameters
        ----------
        data : SpectrumStack or FoldedSpectra
            The spectra, or what `prepare` returned. With ``observed=False`` everything but the counts of the source
            regions is the design, and these are drawn.
        observed : bool
            Whether to condition on the observed counts.
        recover : bool
            Without effect: no latent is integrated out.
        """
        prepared = self._prepared(data)
        num, num_groups = np.shape(prepared.statistic.counts)
        values: dict[str, Any] = {}
        for name, prior in self.all_priors.items():
            if name in self.own:
                with numpyro.plate("spectrum", num, dim=-1):
                    values[name] = sample_prior(name, prior)
            elif name != "calibration":
                values[name] = sample_prior(name, prior)
        expected = prepared.expected(values, self._factors(num))
        counts = prepared.statistic.counts if observed else None
        with numpyro.plate("spectrum", num, dim=-2), numpyro.plate("group", num_groups, dim=-1):
            numpyro.sample("counts", Counts(expected, prepared.statistic), obs=counts)

    def _factors(self, num: int):
        """One factor a spectrum, 1 for the first; None where there are none."""
        if not self.calibration or num < 2:
            return None
        with numpyro.plate("calibrated_spectrum", num - 1, dim=-1):
            factors = sample_prior("calibration", self.all_priors["calibration"])
        return jnp.append(1.0, jnp.broadcast_to(factors, num - 1))

    def expected(self, data: SpectrumStack | FoldedSpectra, parameters: Mapping[str, Any]) -> np.ndarray:
        """Fold the spectrum: expected counts of the source alone, (N, G).

        Parameters
        ----------
        data : SpectrumStack or FoldedSpectra
            The spectra.
        parameters : mapping of str to () or (N,) array
            Values by name; ``calibration`` is (N - 1,). Those held fixed may be left out.

        Raises
        ------
        ValueError
            For a value that is missing.
        """
        prepared = self._prepared(data)
        with jax.enable_x64(True):
            return np.asarray(self._expected(prepared, parameters))

    def _expected(self, prepared: FoldedSpectra, parameters: Mapping[str, Any]):
        fixed = {name: prior for name, prior in self.all_priors.items() if not isinstance(prior, dist.Distribution)}
        values = fixed | {name: jnp.asarray(value) for name, value in parameters.items()}
        factors, num = None, len(prepared.errors)
        if self.calibration and num > 1:
            if "calibration" not in values:
                raise ValueError("SpectralFit: expected a value of 'calibration' for each spectrum after the first.")
            factors = jnp.append(1.0, jnp.broadcast_to(jnp.asarray(values["calibration"]), num - 1))
        return _fold(prepared, values, factors)

    def deviance(self, data: SpectrumStack | FoldedSpectra, parameters: Mapping[str, Any]) -> Deviance:
        """How far the data are from the model.

        Parameters
        ----------
        data, parameters
            As for `expected`; for example the ``parameters`` that `hbm_jax.maximum_likelihood` found.

        Returns
        -------
        Deviance
        """
        prepared = self._prepared(data)
        with jax.enable_x64(True):
            groups = np.asarray(_deviance(prepared.statistic, self._expected(prepared, parameters)))
        num, free = len(groups), 0
        for name, prior in self.all_priors.items():
            if isinstance(prior, dist.Distribution):
                free += num if name in self.own else num - 1 if name == "calibration" else 1
        spectra = groups.sum(axis=1)
        return Deviance(groups, spectra, float(spectra.sum()), self.num_data(prepared) - free)

    def goodness(
        self,
        data: SpectrumStack | FoldedSpectra,
        parameters: Mapping[str, Any],
        *,
        seed: int,
        num_simulations: int = 1000,
    ) -> Goodness:
        """Compare the deviance of the data with those of data simulated from the model.

        Parameters
        ----------
        data, parameters
            As for `expected`.
        seed, num_simulations : int
            As in `hbm_jax.spectra.statistics.goodness.goodness_of_fit`, whose notes say what such p-values miss.

        Returns
        -------
        Goodness
        """
        prepared = self._prepared(data)
        with jax.enable_x64(True):
            expected = np.asarray(self._expected(prepared, parameters))
            return goodness_of_fit(prepared.statistic, expected, seed=seed, num_simulations=num_simulations)

    def num_data(self, data: SpectrumStack | FoldedSpectra) -> int:
        """Count the groups of channels, without the padding."""
        return int(np.asarray(self._prepared(data).statistic.used).sum())

    def simulate(self, key, data: SpectrumStack, parameters: Mapping[str, float] | None = None):
        """Draw simulated spectra on the design of ``data``.

        Parameters
        ----------
        key : jax.Array
            Random key.
        data : SpectrumStack
            Gives instruments, exposures and backgrounds.
        parameters : mapping of str to float, optional
            True values by name, the same for all spectra; those not named are drawn from their priors.

        Returns
        -------
        SpectrumStack, dict
            The spectra with new counts, and the true value of every parameter.

        Raises
        ------
        ValueError
            With a chi-square statistic: its data are no counts.
        """
        if (self.statistic or "").startswith("chi2"):
            raise ValueError(
                f"simulate: expected a statistic of counts; found {self.statistic}, whose data are normal."
            )
        observed, truth = simulated(self, key, data, parameters)
        return data.replace_observations(observed["counts"]), truth

    # What the inference and the surfaces ask of a program, beside calling it.

    def cautions(self, data: SpectrumStack | FoldedSpectra) -> tuple[str, ...]:
        """Return notes for a verdict: a fold whose error is above its tolerance."""
        errors = self._prepared(data).errors
        return fold_cautions(errors, TOLERANCE, getattr(data, "name", ()), "the log likelihood")

    @property
    def dims(self) -> dict[str, list[str]]:
        """Dimensions of the data site, which are those of its plates."""
        return {"counts": ["spectrum", "group"]}

    def coords(self, data: SpectrumStack) -> dict[str, list]:
        """Labels of the dimensions."""
        names = list(getattr(data, "name", ()))
        return {"spectrum": names, "calibrated_spectrum": names[1:]} if names else {}

    @property
    def units(self) -> dict[str, str]:
        """Units of the parameters; absent where dimensionless."""
        return {name: p.unit for name, p in self.spectrum.parameters.items() if p.unit}

    @property
    def description(self) -> str:
        """One line for reports."""
        try:
            text = spectrum_to_text(self.spectrum)
        except ValueError:
            text = str(self.spectrum)
        own = f", {', '.join(self.own)} of each spectrum" if self.own else ""
        return f"Spectral fit of {text}{own}{', with calibration factors' if self.calibration else ''}"

    def to_config(self) -> dict:
        """Choices as plain values, spectrum and priors as text; ``SpectralFit(**config)`` is the same model.

        Raises
        ------
        ValueError
            For a component of one's own, and a prior that cannot be written as text.
        """
        return configuration(self) | {"spectrum": spectrum_to_text(self.spectrum), "own": list(self.own)}


# Compiled once for the spectra of one shape.
_fold = jax.jit(FoldedSpectra.expected)
_deviance = jax.jit(lambda statistic, expected: statistic.deviance(expected))
