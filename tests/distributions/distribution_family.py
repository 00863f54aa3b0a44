"""What the catalogue says of a distribution, and how parameters of several objects are laid out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from normal_oracles import draw_normal, log_normal

NUM_VALUES = 2  # of each object


@dataclass(frozen=True)
class Family:
    """One distribution.

    Attributes
    ----------
    build : callable
        The distribution of a dictionary of arrays, whose leading dimensions broadcast if ``batched``.
    one : callable
        ``one(rng)``: parameters of one object.
    log_density, draw : callable
        ``log_density(parameters, value)`` and ``draw(rng, parameters, num)`` of one object, without JAX.
    moments : callable, optional
        Mean, and where the class has them variance and covariance, of one object, by the names of the properties.
    batched : bool
        Whether parameters may have leading dimensions; otherwise objects are mapped over.
    shared : tuple of str
        Parameters that may have none.
    constant : tuple of str
        Parameters, or ``value``, by which nothing is differentiated.
    known : dict
        Parameters that are constants of the program, of each object the same.
    forward : bool
        Whether it is to be differentiated forward as well.
    rebuilds : bool
        Whether JAX takes it apart and puts it together as an argument of a compiled function.
    draws, single : bool
        Whether it draws, and is to be tested in single precision.
    many_values, many_draws : bool
        Whether one call takes several values of one object, and draws several.
    invalid : dict
        Parameters that NumPyro has to refuse when asked to check them, with their bad values.
    rtol, slope_rtol : float
        Of the log density and of derivatives, against the reference.
    """

    build: Callable
    one: Callable
    log_density: Callable
    draw: Callable
    moments: Callable | None = None
    batched: bool = True
    shared: tuple[str, ...] = ()
    constant: tuple[str, ...] = ()
    known: dict = field(default_factory=dict)
    forward: bool = False
    rebuilds: bool = True
    draws: bool = True
    single: bool = True
    many_values: bool = True
    many_draws: bool = True
    invalid: dict = field(default_factory=dict)
    rtol: float = 1e-11
    slope_rtol: float = 1e-6

    @cached_property
    def ranks(self) -> dict[str, int]:
        """Number of dimensions of each parameter of one object."""
        return {name: np.ndim(value) for name, value in self.one(np.random.default_rng(0)).items()}


def lay_out(family: Family, seed: int = 0):
    """Parameters with batch dimensions that only together make the batch (2, 3), and values (2, 2, 3, ...).

    Objects of what cannot be batched have one dimension, 3.
    """
    rng = np.random.default_rng([7, seed])
    drawn = [{name: np.asarray(v) for name, v in family.one(rng).items()} for _ in range(5)]
    parameters = {}
    for place, name in enumerate(drawn[0]):
        each = [one[name] for one in drawn]
        if name in family.shared:
            parameters[name] = each[0]
        elif not family.batched:
            parameters[name] = np.stack(each[:3])
        elif len(drawn[0]) == 1:
            parameters[name] = np.stack(each[:3])[None] * np.array([1.0, 1.5])[:, None]
        else:
            parameters[name] = np.stack(each[:2])[:, None] if place % 2 else np.stack(each[2:])
    batch = (2, 3) if family.batched else (3,)
    values = np.array([family.draw(rng, at(family, parameters, i), NUM_VALUES) for i in np.ndindex(batch)])
    return parameters, np.moveaxis(values.reshape(*batch, *values.shape[1:]), len(batch), 0)


def at(family: Family, parameters: dict, index: tuple[int, ...]) -> dict:
    """Parameters of one object."""
    found = {}
    for name, value in parameters.items():
        leading = value.shape[: value.ndim - family.ranks[name]]
        places = index[len(index) - len(leading) :]
        found[name] = value[tuple(0 if size == 1 else i for i, size in zip(places, leading, strict=True))]
    return found | family.known


def normal_family(build, one, moments_of, **more):
    """Family of normals with a mean and a covariance."""
    return Family(
        build,
        one,
        lambda p, value: log_normal(value, *moments_of(p)[:2]),
        lambda rng, p, num: draw_normal(rng, *moments_of(p)[:2], num),
        **more,
    )
