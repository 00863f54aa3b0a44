"""Selection of the objects in the data by the measured value of one of their quantities.

A model with a selection multiplies the density of each object by its detection probability and divides it by the
expected fraction of detected objects; simulations draw detected objects only. The detection probability is a step at a
limit, or a normal distribution function of some width about it. Limit and width are known or parameters with priors, or
every object has a known limit in a column of the data.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpyro
from numpyro import distributions as dist

from hbm_jax.distributions import ProbitSelection, distribution_from_text, distribution_to_text
from hbm_jax.distributions.selection import FoundInjections
from hbm_jax.models.base import PopulationModel
from hbm_jax.models.efficiency import (
    DetectionFunction,
    Efficiency,
    Injections,
    effective_injections,
    efficiency_from_text,
)
from hbm_jax.models.priors import Prior, sample_prior
from hbm_jax.models.symbols import SYMBOLS
from hbm_jax.names import choose
from hbm_jax.precomputation import precomputed
from hbm_jax.validation import OptionError

NONE = "none"
EXPECTED = (
    "'x > 1', 'y < Normal(2, 0.5) +- 0.1', 'x > cut_x' with a column of limits, 'x > Normal(1, 1) +- 0.1 by group', or "
    "two of them with 'and' between"
)
TEXT = re.compile(
    r"\s*(?P<quantity>\w+)\s*(?P<sign>[<>])\s*(?P<limit>.+?)(\s*\+-\s*(?P<width>.+?))?(?P<group>\s+by group)?\s*"
)


@dataclass(frozen=True)
class Selection:
    """Detection probability as a function of one measured quantity.

    Parameters
    ----------
    quantity : str
        Name of the quantity, such as ``"x"``.
    missing : str
        Objects that are missing: those with values ``"below"`` the limit, or ``"above"`` it.
    limit : Distribution, float or str
        Value at which half of the objects are detected, its prior, or the column of the data with the limit of every
        object.
    width : Distribution or float
        Standard deviation of the normal distribution function that is the detection probability, or its prior; 0 for a
        step at the limit.
    by_group : bool
        Whether the limit, if it has a prior, is a parameter of every group.
    unit : str
        Unit of the quantity.

    Raises
    ------
    OptionError
        For a limit with a prior and a width of 0, whose density would jump where the limit passes a measured value; for
        a width below 0; and for ``by_group`` without a prior of the limit.

    Notes
    -----
    `as_selections` restores a selection from its ``str``, such as ``"x > 1.0"`` for values missing below 1.

    Examples
    --------
    >>> Selection("x", "below", 1.0)
    Selection('x > 1.0')
    >>> sorted(Selection("y", "above", dist.Normal(2.0, 0.5), 0.1).priors)
    ['y_lim', 'y_lim_width']
    """

    quantity: str
    missing: Literal["below", "above"]
    limit: Prior | str
    width: Prior = 0.0
    by_group: bool = False
    unit: str = ""

    def __post_init__(self):
        choose("missing of Selection", self.missing, ("below", "above"))
        width = self.width
        smallest = getattr(width.support, "lower_bound", -math.inf) if isinstance(width, dist.Distribution) else width
        if smallest < 0:
            text = distribution_to_text(width)
            raise OptionError(f"Selection in {self.quantity}: expected a width of 0 or more; found {text}.")
        has_prior = isinstance(self.limit, dist.Distribution)
        if self.by_group and not has_prior:
            raise OptionError(f"Selection in {self.quantity}: by_group expects a prior of the limit; found none.")
        if has_prior and self.is_step:
            raise OptionError(
                f"Selection in {self.quantity}: a limit with a prior expects a width, such as '+- 0.1', because the "
                "density of a step jumps where the limit passes a measured value; found a width of 0."
            )
        SYMBOLS.update(self.symbols)

    def __str__(self):
        text = f"{self.quantity} {'>' if self.missing == 'below' else '<'} "
        text += self.limit if isinstance(self.limit, str) else distribution_to_text(self.limit)
        text += "" if self.is_step else f" +- {distribution_to_text(self.width)}"
        return text + (" by group" if self.by_group else "")

    def __repr__(self):
        return f"Selection({str(self)!r})"

    @property
    def is_step(self) -> bool:
        """True for a detection probability that jumps from 0 to 1 at the limit."""
        return not isinstance(self.width, dist.Distribution) and self.width == 0

    @property
    def of_objects(self) -> bool:
        """True if the limits of the objects are a column of the data."""
        return isinstance(self.limit, str)

    @property
    def names(self) -> tuple[str, str]:
        """Names of limit and width."""
        return f"{self.quantity}_lim", f"{self.quantity}_lim_width"

    @property
    def priors(self) -> dict[str, Prior]:
        """Priors, or values, of the parameters."""
        limit, width = self.names
        limits = {} if isinstance(self.limit, str) else {limit: self.limit}
        return limits | ({} if self.is_step else {width: self.width})

    @property
    def units(self) -> dict[str, str]:
        """Units of the parameters; empty for a quantity without one."""
        return dict.fromkeys(self.priors, self.unit) if self.unit else {}

    @property
    def symbols(self) -> dict[str, str]:
        """Symbols of the parameters in figures."""
        subscript = "lim" if len(self.quantity) == 1 else rf"lim,\ {self.quantity}".replace("_", r"\_")
        letter = self.quantity if len(self.quantity) == 1 else "q"
        limit, width = rf"${letter}_\mathrm{{{subscript}}}$", rf"$\sigma_\mathrm{{{subscript}}}$"
        return {name: symbol for name, symbol in zip(self.names, (limit, width), strict=True) if name in self.priors}

    def with_priors(self, priors: Mapping[str, Prior]) -> "Selection":
        """Return the selection with the priors, or fixed values, of its parameters taken from a mapping by name.

        A column of limits and a step have no parameter and are unchanged.
        """
        name_of_limit, name_of_width = self.names
        limit = self.limit if self.of_objects else priors[name_of_limit]
        width = self.width if self.is_step else priors[name_of_width]
        by_group = self.by_group and isinstance(limit, dist.Distribution)
        return dataclasses.replace(self, limit=limit, width=width, by_group=by_group)

    def sample(self, num_groups: int = 1) -> dict[str, Any]:
        """Sample the parameters; return numbers, or with `by_group` a limit (J,)."""
        values = {}
        for name, prior in self.priors.items():
            if self.by_group and name == self.names[0]:
                with numpyro.plate("group", num_groups):
                    values[name] = sample_prior(name, prior)
            else:
                values[name] = sample_prior(name, prior)
        return values

    def detection(self, values: Mapping[str, Any], slope: Any, limit: Any = None) -> ProbitSelection:
        """Return the detection probability as a function of an observed vector.

        Parameters
        ----------
        values : mapping of str to array (...)
            Values of the parameters.
        slope : array (..., n)
            Vector whose product with the observed vector is the quantity.
        limit : array (...), optional
            Limits of the objects, in place of the parameter.
        """
        sign = 1.0 if self.missing == "above" else -1.0
        limit = values[self.names[0]] if limit is None else limit
        return ProbitSelection(sign * limit, None if self.is_step else values[self.names[1]], sign * slope)


def as_selections(choice: Any, model: str, *, limits_only: bool = True) -> tuple[Any, ...]:
    """Return the selections that a text describes, such as ``"x > 1"`` or ``"x > 1 and y < 2 +- 0.3"``.

    Parameters
    ----------
    choice : str, Selection, Efficiency, DetectionFunction, Injections, or sequence of them
        Each part of the text is a quantity, ``>`` or ``<``, a limit, and optionally ``+-`` and a width. Limit and width
        are numbers or priors; the limit may be the name of a column, and may end with ``by group``. ``"none"`` is no
        selection, ``"x efficiency 0.5:0 2:1"`` or ``"x from efficiency.csv"`` a `hbm_jax.models.Efficiency`, and
        ``"injections from injections.csv"`` `hbm_jax.models.Injections`.
    model : str
        Name of the model in messages.
    limits_only : bool
        Whether the model takes limits only.

    Raises
    ------
    OptionError
        For text of another form, two selections in one quantity, and an efficiency or a function beside another
        selection or in a model that takes limits only.

    Examples
    --------
    >>> as_selections("x > 1 and y < Normal(2, 0.5) +- 0.1", "Relation")
    (Selection('x > 1.0'), Selection('y < Normal(loc=2.0, scale=0.5) +- 0.1'))
    """
    chosen: tuple[Any, ...]
    if isinstance(choice, Selection | Efficiency | DetectionFunction | Injections):
        chosen = (choice,)
    elif isinstance(choice, str):
        parts = [] if choice.strip() in ("", NONE) else re.split(r"\s+and\s+", choice)
        chosen = tuple(_from_text(part, model) for part in parts)
    else:
        chosen = tuple(choice)
    others = [selection for selection in chosen if not isinstance(selection, Selection)]
    if others and (limits_only or len(chosen) > 1):
        expected = "limits" if limits_only else f"{others[0]} alone"
        raise OptionError(f"{model}: selection: expected {expected}; found {selections_to_text(chosen)!r}.")
    quantities = [selection.quantity for selection in chosen]
    if len(set(quantities)) < len(quantities):
        raise OptionError(f"{model}: selection: expected one limit for each quantity; found {choice!r}.")
    return chosen


def stored(chosen: Sequence[Any]) -> Any:
    """Return selections as a model stores them: as text, or the object of a user's function or of injections."""
    objects = (part for part in chosen if isinstance(part, DetectionFunction | Injections))
    return next(objects, selections_to_text(chosen))


def record_effective(found: FoundInjections | None) -> None:
    """Record the effective number of injections, if any, and the smallest one of single objects, as sites."""
    if found is None:
        return
    numpyro.deterministic("effective_injections", found.effective_number)
    if jnp.ndim(found.log_weights) > 1:
        numpyro.deterministic("injections_per_object", found.smallest_number)


class SelectiveModel(PopulationModel):
    """Base class of models with the option ``selection``, which states the objects that are missing in the data."""

    selection: Any
    selected_values: ClassVar[Any] = ()  # names of the true values of injections

    @cached_property
    def selections(self) -> tuple[Any, ...]:
        """The selection of the model, if it has one, with the priors of its parameters."""
        return tuple(part.with_priors(self.all_priors) for part in self._stated_selections)

    @cached_property
    def _stated_selections(self) -> tuple[Selection, ...]:
        """The selection as the option defines it; ``priors`` may replace the priors of its parameters."""
        return precomputed(lambda: as_selections(self.selection, self.label))

    def cautions_of_draws(self, data: Any, posterior: Any) -> list[str]:
        """Return a sentence about the effective number of injections over the draws of a posterior."""
        if "effective_injections" not in posterior:
            return []
        num_found = self.selections[0].num_found(self.selected_values)
        return effective_injections(num_found, self.num_selected(data), posterior)

    def num_selected(self, data: Any) -> int:
        """Return the number of objects, or intervals of bursts, in the data or bound data."""
        return len(data.z)


def selections_to_text(chosen: Sequence[Any]) -> str:
    """Return the text of selections, which `as_selections` reads."""
    return " and ".join(map(str, chosen)) or NONE


def _from_text(text: str, model: str) -> Any:
    """Return the selection that one part of a text describes."""
    if (efficiency := efficiency_from_text(text)) is not None:
        return efficiency
    match = TEXT.fullmatch(text)
    if match is None:
        raise OptionError(f"{model}: selection: expected text such as {EXPECTED}; found {text!r}.")
    name, width = match["quantity"], match["width"]
    missing: Any = "below" if match["sign"] == ">" else "above"
    limit: Any = match["limit"]
    if not limit.isidentifier():
        limit = distribution_from_text(limit, f"limit of {name}")
    width = 0.0 if width is None else distribution_from_text(width, f"width of {name}")
    return Selection(name, missing, limit, width, bool(match["group"]))
