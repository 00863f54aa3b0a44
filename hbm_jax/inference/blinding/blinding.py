"""Hidden shifts of parameters, by which a fit is analysed before its values are known.

The stored draws are shifted, so that every reader of a fit, of hbm_jax, of ArviZ or of a user, finds shifted values.
Computations that need the values (predictions, criticism, a start at the draws) take them from `revealed`.
"""

import copy
import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xarray as xr

from hbm_jax.inference.program import blinded_in

ATTRIBUTE = "hbm_jax_blinding"  # of the stored tree
WIDEST = 4.0  # largest shift, in the power of two nearest to the standard deviation
POSITIONS = "unconstrained draws"  # name under which their shifts are drawn, which no site can have
WORD = "blinded"


@dataclass(frozen=True)
class Blinding:
    """Shifts of the draws of parameters, constant for each element and unknown to the user.

    Attributes
    ----------
    names : tuple of str
        Sites whose values are shifted. Those of an earlier fit that another program does not have are left out there.
        All unconstrained draws are shifted too, because other coordinates of the same parameters may be among them.
    key : str
        Random key from which the shifts are drawn, uniform between -4 and 4 units.
    exponents : mapping of str to int or nested list of int
        Units of the shifts, as exponents of 2, by site: those nearest to the posterior standard deviations of the fit
        that was blinded first. They make the shifts of another fit equal to those of this one.
    """

    names: tuple[str, ...]
    key: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    exponents: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def note(self) -> str:
        """Sentence for the verdict."""
        return f"{WORD}: the values of {', '.join(self.names)} are shifted by hidden offsets until fit.unblind()"

    def require_sites(self, sites: Iterable[str]) -> None:
        """Raise ValueError if a name is not a site of the program, unless it is one of an earlier fit."""
        known = [name for name in sites if not name.startswith("_")]
        unknown = [name for name in self.names if name not in known]
        if set(unknown) - set(self.exponents) or len(unknown) == len(self.names):
            raise ValueError(
                f"sample: expected blind to name sites of the program, among {', '.join(known)}; found "
                f"{', '.join(unknown)}."
            )

    def measured_in(self, posterior: xr.Dataset) -> "Blinding":
        """Return this blinding of the sites of a fit, with the units of its shifts, unless it has them."""
        names = tuple(name for name in self.names if name in posterior)
        measured = {name: _exponents(_draws_first(posterior[name])) for name in names}
        known = {
            name: units
            for name, units in self.exponents.items()
            if name not in measured or np.shape(units) == measured[name].shape
        }
        return replace(self, names=names, exponents={name: units.tolist() for name, units in measured.items()} | known)

    def offset(self, name: str) -> np.ndarray:
        """Return the shift of each element of a site, (...)."""
        return self._offset(name, np.asarray(self.exponents[name]))

    def shifted(self, values: Mapping[str, np.ndarray], sign: float = 1.0) -> dict[str, np.ndarray]:
        """Return the values with those of blinded sites shifted; the last axis is that of the elements of a site."""
        return {
            name: array + sign * self.offset(name) if name in self.names else array for name, array in values.items()
        }

    def hide(self, tree: xr.DataTree, bounds: Mapping[str, Any]) -> xr.DataTree:
        """Return a tree with shifted draws and, in its attributes, this blinding and the bounds of priors by site."""
        hidden = self._moved(tree, 1.0)
        ends = {name: [float(end) for end in bounds[name]] for name in self.names if name in bounds}
        stored = {"names": list(self.names), "key": self.key, "exponents": dict(self.exponents), "bounds": ends}
        hidden.attrs[ATTRIBUTE] = json.dumps(stored)
        return hidden

    def reveal(self, tree: xr.DataTree) -> xr.DataTree:
        """Return a tree with the draws as they were sampled, up to rounding, and without the blinding."""
        plain = self._moved(tree, -1.0)
        del plain.attrs[ATTRIBUTE]
        return plain

    @classmethod
    def of(cls, tree: xr.DataTree) -> "Blinding | None":
        """Return the blinding of a stored tree; None if its draws are not shifted."""
        if ATTRIBUTE not in tree.attrs:
            return None
        stored = json.loads(tree.attrs[ATTRIBUTE])
        return cls(tuple(map(str, stored["names"])), str(stored["key"]), dict(stored["exponents"]))

    @staticmethod
    def bounds_in(tree: xr.DataTree) -> dict[str, list[float]]:
        """Return the bounds of the priors of the blinded parameters that `hide` stored."""
        return json.loads(tree.attrs[ATTRIBUTE])["bounds"]

    def _offset(self, name: str, exponents: np.ndarray) -> np.ndarray:
        """Return shifts in units of powers of two."""
        digest = hashlib.sha256(f"{self.key}:{name}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "big"))
        return np.ldexp(rng.uniform(-WIDEST, WIDEST, exponents.shape), exponents)

    def _moved(self, tree: xr.DataTree, sign: float) -> xr.DataTree:
        """Return a copy of a tree whose draws are shifted by the offsets times a sign."""
        moved = tree.copy(deep=False)
        posterior = tree["posterior"].to_dataset()
        changed = {}
        for name in self.names:
            variable = posterior[name]
            aligned = variable.transpose("chain", "draw", ...)
            data = aligned.to_numpy().astype(float) + sign * self.offset(name)
            changed[name] = aligned.copy(data=data).transpose(*variable.dims)
            changed[name].attrs = {k: v for k, v in variable.attrs.items() if k != WORD} | (
                {WORD: 1} if sign > 0 else {}
            )
        moved["posterior"] = xr.DataTree(posterior.assign(changed))
        unconstrained = tree["unconstrained_posterior"].to_dataset()
        position = unconstrained["position"].transpose("chain", "draw", "parameter")
        values = position.to_numpy().astype(float)
        data = values + sign * self._offset(POSITIONS, _exponents(values))
        moved["unconstrained_posterior"] = xr.DataTree(unconstrained.assign(position=position.copy(data=data)))
        return moved


def blinding_of(blind: Any, program: Any) -> Blinding | None:
    """Return the blinding for a value of the option ``blind`` of `hbm_jax.sample`; None for no blinding.

    Raises
    ------
    ValueError
        If ``blind`` is True and the program names no parameters to blind, and for values of another type.
    """
    if blind is None or blind is False:
        return None
    if isinstance(blind, Blinding):
        return replace(blind, names=tuple(dict.fromkeys((*blind.names, *blinded_in(program)))))
    if blind is True:
        names: Sequence[str] = blinded_in(program)
        if not names:
            raise ValueError(
                "sample: blind=True: expected a program with free parameters in its attribute `blinded`, such as "
                "the cosmological ones of the supernova models; found none. Name them: blind=['Om0']."
            )
        return Blinding(tuple(names))
    is_sequence = not isinstance(blind, str | Mapping) and hasattr(blind, "__iter__")
    names = list(blind) if is_sequence else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(
            "sample: expected blind to be True, a list of names of parameters, or the `blinding` of another fit; "
            f"found {blind!r}."
        )
    return Blinding(tuple(dict.fromkeys(names)))


def revealed(fit: Any) -> Any:
    """Return a fit with the draws as they were sampled, for computations that need the values; itself if not blinded.

    Nothing that it returns may show the values of blinded parameters to the user.
    """
    blinding = Blinding.of(fit.tree)
    if blinding is None:
        return fit
    if fit.program is not None:
        fit.bound_args  # noqa: B018 - computed once, for the copies too
    plain = copy.copy(fit)
    plain.tree = blinding.reveal(fit.tree)
    return plain


def unconstrained_draws(fit: Any) -> xr.DataArray:
    """Return the unconstrained draws as they were sampled, (chain, draw, parameter), with labels; see `revealed`."""
    return revealed(fit).tree["unconstrained_posterior"]["position"].transpose("chain", "draw", "parameter")


def _draws_first(variable: xr.DataArray) -> np.ndarray:
    """Return draws as (chain, draw, ...)."""
    return variable.transpose("chain", "draw", ...).to_numpy().astype(float)


def _exponents(draws: np.ndarray) -> np.ndarray:
    """Return the exponents of the powers of two nearest to the standard deviations of (chain, draw, ...), 0 for none.

    They are the same for shifted draws: a constant shift changes a standard deviation by rounding only.
    """
    finite = np.isfinite(draws).all(axis=(0, 1))
    kept = np.where(finite, draws, 0.0)
    deviation = np.where(np.ptp(kept, axis=(0, 1)) > 0, kept.std(axis=(0, 1)), 1.0)
    return np.round(np.log2(np.where(deviation > 0, deviation, 1.0))).astype(int)
