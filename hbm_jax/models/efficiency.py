"""Selections that are not limits: efficiencies tabulated in a measured quantity, and functions of two of them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hbm_jax.data.tables import read_table
from hbm_jax.distributions.selection import FunctionSelection, TabulatedSelection
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
        `Golenetskii`; of c and m_b for `Supernova`. It should be smooth: the detected fraction is a quadrature with an
        error below 1e-6 for a normal distribution function whose width is 0.3 standard deviations of the measured
        population or more, and of several per cent for a step.
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


def efficiency_from_text(text: str) -> Efficiency | None:
    """Return the efficiency that a text describes, or None for the text of another selection.

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
        table = read_table(match["path"].strip())
        names = list(table.columns)[:2]
        if len(names) < 2:
            raise DataError(f"{table.origin}: expected two columns, values and probabilities; found {len(names)}.")
        return Efficiency(match["quantity"], *(float_vector(table.values(name), name).tolist() for name in names))
    return None
