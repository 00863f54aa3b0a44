"""Base class of the laws of the supernova model, and the populations that laws of stretch and colour return."""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, TypeAlias

import jax.numpy as jnp

from hbm_jax.models.priors import Prior
from hbm_jax.models.registration import choose_registered
from hbm_jax.models.symbols import SYMBOLS

Axis: TypeAlias = Callable[[Any], Any]
"""Function that places values along the axis of the mixture's components that belongs to a law."""


class Law:
    """A choice of the supernova model with parameters of its own.

    A law is a frozen dataclass. A subclass with a ``name`` is registered when it is defined, so that the name chooses
    it in Python, in configuration files and on the command line, and restores it from run folders.

    Attributes
    ----------
    kind : str
        Subject of the law, for messages.
    name : str
        Name of the choice.
    registry : dict of str to type
        Laws of this kind by name.
    priors : mapping of str to Distribution or float
        Default priors of the parameters that the law adds.
    units : mapping of str to str
        Units of parameters that are not dimensionless.
    symbols : mapping of str to str
        Symbols of the parameters in figures.
    by_survey : tuple of str
        Parameters that have one value for each survey.
    columns : tuple of str
        Columns of the data that the law needs, passed as `columns_of` returns them beside the values of the parameters.
    gaussian : bool
        Whether the model with this law is a single Gaussian for each supernova, without the mixture.
    widths, fractions : tuple of str
        Positive parameters, and fractions, that ``population_shapes=True`` lets depend on redshift and host.
    """

    kind: ClassVar[str] = "law"
    name: ClassVar[str] = ""
    registry: ClassVar[dict[str, type]] = {}
    priors: ClassVar[Mapping[str, Prior]] = {}
    units: ClassVar[Mapping[str, str]] = {}
    symbols: ClassVar[Mapping[str, str]] = {}
    by_survey: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[tuple[str, ...]] = ()
    gaussian: ClassVar[bool] = False
    widths: ClassVar[tuple[str, ...]] = ()
    fractions: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls):
        super().__init_subclass__()
        SYMBOLS.update(cls.symbols)
        if "registry" not in cls.__dict__ and cls.__dict__.get("name"):
            other = cls.registry.get(cls.name)
            if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(f"{cls.kind}: expected a new name; found {cls.name!r}, which is {other.__qualname__}.")
            cls.registry[cls.name] = cls

    @classmethod
    def named(cls, choice: Any) -> Any:
        """Return the law with this name; a law is returned unchanged.

        Raises
        ------
        ValueError
            For an unknown name; the message suggests the nearest.
        """
        if isinstance(choice, cls):
            return choice
        return cls.registry[choose_registered(cls.kind, choice, cls.registry)]()

    def columns_of(self, data: Any) -> dict[str, Any]:
        """Return the columns of the data that the law needs, (N,) each, by name."""
        return {name: getattr(data, name) for name in self.columns}

    @property
    def is_registered(self) -> bool:
        """True if the law can be restored from its name."""
        registered = self.registry.get(self.name)
        return registered is type(self) and self == registered()

    def to_config(self) -> str:
        """Return the name stored in run folders."""
        return self.name if self.is_registered else f"own: {type(self).__module__}.{type(self).__qualname__}"


class Latent(NamedTuple):
    """Positive latent t of a population, with a density proportional to exp(-rate t - precision t^2 / 2).

    Attributes
    ----------
    quantity, magnitude : array
        Change of stretch or colour, and of the magnitude [mag], per unit of t.
    rate, precision : array
        As in `hbm_jax.distributions.HalfLine`.
    """

    quantity: Any
    magnitude: Any
    rate: Any
    precision: Any = None


class Population(NamedTuple):
    """Population of stretch or colour: a normal distribution, or a mixture of them along the axis of the law.

    Attributes
    ----------
    loc, scale : array
        Mean and standard deviation.
    slope : array
        Change of the magnitude per unit of stretch or colour [mag].
    log_weight : array
        Log weights of the components of a mixture.
    latent : Latent, optional
        Positive latent that is added to the normal distribution.
    """

    loc: Any
    scale: Any
    slope: Any
    log_weight: Any = 0.0
    latent: Latent | None = None


def skewed(mean, std, shape) -> tuple[Any, Any, Any]:
    """Return loc, scale and slope such that loc + slope |n| + scale n' is skew normal for standard normal n and n'.

    ``mean``, ``std`` and ``shape`` are the mean, standard deviation and shape parameter of the skew normal, scalars or
    arrays that broadcast with each other; loc, scale and slope have the unit of ``mean``.
    """
    delta = shape / jnp.sqrt(1.0 + shape**2)
    scale = std / jnp.sqrt(1.0 - 2.0 / math.pi * delta**2)
    return mean - scale * math.sqrt(2.0 / math.pi) * delta, scale / jnp.sqrt(1.0 + shape**2), scale * delta
