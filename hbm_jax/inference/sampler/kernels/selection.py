"""Conversion of samplers from and to the flat options of configurations, checkpoints and `Fit.run`."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from hbm_jax.inference.options import field_names
from hbm_jax.inference.sampler.kernels.automatic import Automatic
from hbm_jax.inference.sampler.kernels.chees import ChEES
from hbm_jax.inference.sampler.kernels.hmc import HMC
from hbm_jax.inference.sampler.kernels.independent_proposals import IndependentProposals
from hbm_jax.inference.sampler.kernels.nutpie import Nutpie
from hbm_jax.inference.sampler.kernels.nuts import NUTS
from hbm_jax.inference.sampler.kernels.protocol import Sampler
from hbm_jax.inference.sampler.kernels.walnuts import WALNUTS
from hbm_jax.names import choose, did_you_mean

SAMPLERS: dict[str, type] = {
    kind.name: kind for kind in (Automatic, NUTS, HMC, IndependentProposals, ChEES, Nutpie, WALNUTS)
}
# Samplers of run folders, which need checkpoints.
IN_RUNS: dict[str, type] = {name: kind for name, kind in SAMPLERS.items() if kind is not Nutpie}
DEFAULTS = {item.name: item.default for kind in SAMPLERS.values() for item in fields(kind)}
FLAG = "independent_proposals"  # option of older configurations and checkpoints, without the name of a sampler
OPTIONS = tuple(dict.fromkeys(name for kind in SAMPLERS.values() for name in field_names(kind)))
REPLACED = (*OPTIONS, FLAG)  # keywords of `hbm_jax.sample` before samplers were objects


def sampler_of(options: Mapping[str, Any]) -> Sampler:
    """Return the sampler described by flat options; options of a run among them are ignored.

    Parameters
    ----------
    options : mapping
        ``sampler``, the name, and the options of the sampler; None means the default. Without a name, the sampler is
        `IndependentProposals` if ``independent_proposals`` is true, `HMC` if ``trajectory_length`` is given, and
        `Automatic` otherwise.

    Raises
    ------
    ValueError
        For an unknown name, or an option that the sampler does not have.
    """
    values = {name: options[name] for name in OPTIONS if options.get(name) is not None}
    requested = options.get("sampler")
    default = FLAG if options.get(FLAG) else "hmc" if "trajectory_length" in values else Automatic.name
    name = default if requested is None else choose("sampler", requested, SAMPLERS)
    if options.get(FLAG) and name != FLAG:
        raise ValueError(f"sampler {name!r}: expected no {FLAG}; found {options[FLAG]!r}.")
    known = field_names(SAMPLERS[name])
    for option in [option for option in values if option not in known]:
        if values.pop(option) != DEFAULTS[option]:  # configurations hold the defaults of all samplers
            raise ValueError(
                f"sampler {name!r}: unknown option {option!r}{did_you_mean(option, known)}; expected one of "
                f"{', '.join(known)}."
            )
    if name == "hmc" and "trajectory_length" not in values:
        raise ValueError("sampler 'hmc': expected a trajectory_length; found none.")
    return SAMPLERS[name](**values)


def options_of(sampler: Sampler) -> dict[str, Any]:
    """Return name and options of a sampler as flat plain values; inverse of `sampler_of`."""
    return {"sampler": sampler.name} | asdict(sampler)  # type: ignore[call-overload]


def without_replaced(caller: str, options: dict[str, Any], stacklevel: int = 3) -> Sampler | None:
    """Remove the former keywords of samplers from options, with a FutureWarning; return the sampler they describe.

    Raises
    ------
    TypeError
        If ``options`` also has a sampler.
    """
    deprecated = {name: options.pop(name) for name in REPLACED if name in options}
    if not deprecated:
        return None
    if options.get("sampler") is not None:
        raise TypeError(
            f"{caller}: expected options of the sampler within sampler={type(options['sampler']).__name__}(...); found "
            f"also {', '.join(deprecated)}."
        )
    sampler = sampler_of({"sampler": NUTS.name if set(deprecated) <= set(field_names(NUTS)) else None} | deprecated)
    warnings.warn(
        f"{caller}: {', '.join(deprecated)} are options of samplers now, and will be refused in the next release. Use "
        f"sampler=hbm_jax.{_call(sampler)}.",
        FutureWarning,
        stacklevel=stacklevel,
    )
    return sampler


def _call(sampler: Sampler) -> str:
    """Return the Python call that constructs a sampler, without options that have their defaults."""
    kind = type(sampler)
    defaults = {name: getattr(kind, name, None) for name in field_names(kind)}
    values = {name: value for name, value in asdict(sampler).items() if value != defaults[name]}  # type: ignore[call-overload]
    return f"{kind.__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"
