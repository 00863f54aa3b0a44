"""Selections that are not limits: tabulated efficiencies, functions of two measured quantities, and injections."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import Any, ClassVar

import numpy as np

from hbm_jax.data.injections import AllInjections, BurstInjections, read_injections
from hbm_jax.data.tables import read_table
from hbm_jax.distributions.selection import ENOUGH, FunctionSelection, InjectedSelection, TabulatedSelection
from hbm_jax.models.priors import Prior
from hbm_jax.validation import DataError, OptionError, float_vector

TEXT = re.compile(r"\s*(?P<quantity>\w+)\s+efficiency\s+(?P<pairs>.+)")
FILE = re.compile(r"\s*(?P<quantity>\w+)\s+from\s+(?P<path>.+)")


class _Fixed:
    """Base class of selections without parameters and limits, with the attributes of `Selection`."""

    by_group: ClassVar[bool] = False
    is_step: ClassVar[bool] = False
    of_objects: ClassVar[bool] = False
    priors: ClassVar[dict[str, Prior]] = {}

    def with_priors(self, priors: Mapping[str, Prior]) -> Any:
        """Return the selection, which has no parameters."""
        return self

    def sample(self, num_groups: int = 1) -> dict[str, Any]:
        """Sample no parameters."""
        return {}


@dataclass(frozen=True)
class Efficiency(_Fixed):
    """Detection probability as a tabulated function of one measured quantity, linear between the values of the table.

    Parameters
    ----------
    quantity : str
        Name of the quantity, such as ``"x"``.
    at : sequence of float (K,)
        Values of the quantity, increasing.
    probability : sequence of float (K,)
        Detection probability at each, from 0 to 1; constant beyond the first and the last.

    Raises
    ------
    OptionError
        For fewer than two values, values that do not increase, and probabilities outside 0 to 1 or all 0.

    Notes
    -----
    As text it is ``"x efficiency 0.5:0 1:0.3 2:1"``; the text ``"x from efficiency.csv"`` reads the first two columns
    of a table, such as those of published efficiencies.

    Examples
    --------
    >>> Efficiency("x", (0.5, 1.0, 2.0), (0.0, 0.3, 1.0))
    Efficiency('x efficiency 0.5:0.0 1.0:0.3 2.0:1.0')
    """

    quantity: str
    at: Sequence[float]
    probability: Sequence[float]

    def __post_init__(self):
        at, probability = (tuple(float(value) for value in values) for values in (self.at, self.probability))
        label = f"Efficiency in {self.quantity}"
        if len(at) != len(probability) or len(at) < 2 or not (np.diff(at) > 0).all():
            raise OptionError(f"{label}: expected two or more increasing values with a probability each; found {at}.")
        if not (min(probability) >= 0.0 and 0.0 < max(probability) <= 1.0):
            raise OptionError(f"{label}: expected probabilities from 0 to 1, not all 0; found {probability}.")
        object.__setattr__(self, "at", at)
        object.__setattr__(self, "probability", probability)

    def __str__(self):
        pairs = zip(self.at, self.probability, strict=True)
        return f"{self.quantity} efficiency " + " ".join(f"{value!r}:{probability!r}" for value, probability in pairs)

    def __repr__(self):
        return f"Efficiency({str(self)!r})"

    def probability_at(self, values: Any) -> np.ndarray:
        """Return the detection probability at values of the quantity."""
        return np.interp(values, self.at, self.probability)

    def moved_inside(self, values: Any) -> np.ndarray:
        """Return values with those that are never detected moved to where most are."""
        return np.where(self.probability_at(values) > 0.0, values, self.at[int(np.argmax(self.probability))])

    def detection(self, values: Mapping[str, Any], slope: Any, limit: Any = None) -> TabulatedSelection:
        """Return the detection probability as a function of an observed vector, whose product with slope is given."""
        return TabulatedSelection(np.array(self.at), np.array(self.probability), slope)


@dataclass(frozen=True)
class DetectionFunction(_Fixed):
    """Detection probability as a user's function of two measured quantities.

    Parameters
    ----------
    function : callable
        Function of two measured quantities, arrays of any common shape, that returns the detection probability, with
        `jax.numpy`: of x and y for `hbm_jax.models.Relation`; of log10_E_peak (observer's frame) and log10_flux for
        `Golenetskii`; of c and m_b for `Supernova`; of the true photon_index and log10_flux for `Afterglow`, above 0.
        It should be smooth: the detected fraction is a quadrature with an error below 1e-6 for a normal distribution
        function whose width is 0.3 standard deviations of the measured population or more, and of several per cent for
        a step.
    name : str
        Name in descriptions and files.
    """

    function: Callable[[Any, Any], Any]
    name: str = "a function of x and y"
    quantity: ClassVar[str] = "x and y"
    is_registered: ClassVar[bool] = False

    def __str__(self):
        return self.name

    def to_config(self) -> str:
        """Return the name, under which runs are stored."""
        return self.name

    def detection(self, values: Mapping[str, Any], slope: Any, limit: Any = None) -> FunctionSelection:
        """Return the detection probability as a function of an observed vector, by its first two elements."""
        return FunctionSelection(self.function)


@dataclass(frozen=True, eq=False)
class Injections(_Fixed):
    """Detection of simulated objects, which estimates the detected fraction of a population.

    Parameters
    ----------
    source : path or table
        One row per simulated object, found or not: its true values; ``density``, the probability density of the
        distribution from which they were drawn, per unit of every value; and ``found``, 1 or 0. The values are
        log10_E_peak (observer's frame) and log10_flux of an interval for `hbm_jax.models.Golenetskii`; x1, c and m_b
        for `Supernova`; and for `Afterglow` and `SpectralPopulation` the parameters of the sources that have
        populations, such as photon_index, log10_flux and log10_nh. Whole bursts have one row per interval, with the
        name of their ``burst``; ``density`` is that of the values of all intervals together, and it and ``found`` are
        the same in all rows of a burst. `GolenetskiiCounts` takes whole bursts only, with log10_E_peak (observer's
        frame), log10_flux and all other parameters of the spectrum, such as alpha and beta.

    Notes
    -----
    As text it is ``"injections from injections.csv"``. Every found injection has a weight, the ratio of the density of
    the population to ``density``, see `hbm_jax.distributions.selection.FoundInjections`. For bursts and supernovae the
    population is that at the redshift of each object, so that detection should depend on redshift by these values only;
    for X-ray sources it is that of all sources, whose redshifts, exposures and responses the injections should have.
    The detected fraction of a burst of several intervals is that of simulated bursts with as many.
    `hbm_jax.models.Relation` takes its injections with the data.
    """

    source: Any
    quantity: ClassVar[str] = "injections"

    def __str__(self):
        return f"injections from {self.source if self.is_registered else 'a table'}"

    @property
    def is_registered(self) -> bool:
        """True for the path of a table, which the text restores."""
        return isinstance(self.source, str | PathLike)

    def to_config(self) -> str:
        """Return the text."""
        return str(self)

    @cached_property
    def _read(self) -> dict[tuple[str, ...], AllInjections]:
        """Injections, found or not, by names of the values."""
        return {}

    def every(self, names: Sequence[str]) -> AllInjections:
        """Return the injections, found or not, with these values; raises as `selection`."""
        key = tuple(names)
        if key not in self._read:
            self._read[key] = read_injections(self.source, key)
        return self._read[key]

    @cached_property
    def of_bursts(self) -> bool:
        """True for a table of whole bursts: it has a column ``burst``."""
        return "burst" in read_table(self.source).resolve(("burst",), None, {})

    def bursts(self, names: Sequence[str]) -> BurstInjections:
        """Return the found bursts with these values of each interval; raises as `selection`."""
        return BurstInjections.of(self.every(names))

    def num_found(self, names: Sequence[str]) -> int:
        """Return the number of found injections."""
        return len(self.bursts(names).values) if self.of_bursts else int(self.every(names).found.sum())

    def selection(self, names: Sequence[str], objects: Any = 1.0) -> InjectedSelection:
        """Return the injections as the selection of objects with these values.

        Raises
        ------
        DataError
            For missing columns, densities that are not positive, and tables in which none is found.
        """
        if self.of_bursts:  # those of one interval each
            bursts = self.bursts(names)
            single = bursts.used.sum(axis=1) == 1
            values = bursts.values[single, 0], bursts.log_density[single], float(bursts.num_drawn[1])
            return InjectedSelection(*values, objects)
        every = self.every(names)
        return InjectedSelection(
            every.values[every.found], every.log_density[every.found], float(len(every.found)), objects
        )


def refuse_narrow(option: str, priors: Mapping[str, Prior], names: Sequence[str]) -> None:
    """Raise OptionError for standard deviations fixed at 0, with which a population has no density."""
    for name in names:
        if isinstance(value := priors.get(name), float | int) and value <= 0.0:
            raise OptionError(f"{option} expects {name} above 0, without which the population has no density; found 0.")


def effective_injections(num_found: int, num_objects: int, posterior: Any) -> list[str]:
    """Return a sentence about the smallest effective number of injections over the draws of a posterior."""
    smallest = float(np.min(posterior["effective_injections"].to_numpy()))
    error = num_objects / np.sqrt(smallest)
    sentence = (
        f"The detected fraction is estimated from {num_found} found injections; their effective number is "
        f"{smallest:.3g} or more, {smallest / num_objects:.2g} times the {num_objects} objects, and the Monte Carlo "
        f"error of the log likelihood is up to {error:.2g}"
    )
    enough = smallest >= ENOUGH * num_objects
    if "injections_per_object" in posterior:
        own = float(np.min(posterior["injections_per_object"].to_numpy()))
        sentence += f". For single objects the effective number is {own:.3g} or more"
        enough &= own >= ENOUGH
    conclusion = f"; {ENOUGH:g} times are enough"
    if not enough:
        conclusion = f", too few: {ENOUGH:g} times are needed, and with fewer the selection is partly left out"
    return [sentence + conclusion]


def efficiency_from_text(text: str) -> Efficiency | Injections | None:
    """Return the efficiency, or the injections, that a text describes; None for the text of another selection.

    Raises
    ------
    OptionError
        For pairs that are not numbers.
    DataError
        For a table that has no two columns of numbers.
    """
    if match := TEXT.fullmatch(text):
        pairs = [pair.split(":") for pair in match["pairs"].split()]
        try:
            at, probability = zip(*(map(float, pair) for pair in pairs), strict=True)
        except ValueError as error:
            expected = "pairs of a value and a probability, as in 'x efficiency 0.5:0 2:1'"
            raise OptionError(f"selection: expected {expected}; found {text!r}.") from error
        return Efficiency(match["quantity"], at, probability)
    if match := FILE.fullmatch(text):
        if match["quantity"] == Injections.quantity:
            return Injections(match["path"].strip())
        table = read_table(match["path"].strip())
        names = list(table.columns)[:2]
        if len(names) < 2:
            raise DataError(f"{table.origin}: expected two columns, values and probabilities; found {len(names)}.")
        return Efficiency(match["quantity"], *(float_vector(table.values(name), name).tolist() for name in names))
    return None
