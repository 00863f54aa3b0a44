"""Change of the populations with redshift, and of their widths, tails and fractions with redshift and host."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from numpyro import distributions as dist

from hbm_jax.models.priors import Prior
from hbm_jax.models.supernovae.laws.base import Law

SYMBOLS_OF_SHAPES = {
    "x1_std": r"\sigma_{x_1}",
    "x1_tail": r"\tau_{x_1}",
    "x1_fraction_low": r"f_\mathrm{low}",
    "c_std": r"\sigma_c",
    "c_tail": r"\tau_c",
    "c_dust": r"\langle c_\mathrm{dust} \rangle",
}


@dataclass(frozen=True)
class Shapes:
    """Widths and fractions of the populations that change with redshift or host.

    A width is multiplied by ratio^x, and the odds f / (1 - f) of a fraction f likewise, where x is the redshift, or 1
    for a massive host. The parameter ``x1_std_drift`` is the ratio of x1_std per unit redshift, ``x1_std_host`` that
    between massive and other hosts, and so on.

    Parameters
    ----------
    widths, fractions : tuple of str
        Parameters that change.
    """

    widths: tuple[str, ...] = ()
    fractions: tuple[str, ...] = ()

    @classmethod
    def of(cls, laws: Iterable[Law]) -> "Shapes":
        """Return the widths and fractions of several laws."""
        laws = list(laws)
        return cls(*(tuple(n for law in laws for n in getattr(law, kind)) for kind in ("widths", "fractions")))

    def priors(self, suffix: str, scale: float) -> dict[str, Prior]:
        """Return the default priors of the ratios, log normal about 1, for ``suffix`` ``"drift"`` or ``"host"``."""
        return {f"{name}_{suffix}": dist.LogNormal(0.0, scale) for name in (*self.widths, *self.fractions)}

    def changed(self, p: Mapping[str, Any], suffix: str, x: Any) -> dict[str, Any]:
        """Return the widths and fractions at x, which broadcasts with the parameters."""
        factors = {name: p[f"{name}_{suffix}"] ** x for name in (*self.widths, *self.fractions)}
        values = {name: p[name] * factors[name] for name in self.widths}
        for name in self.fractions:
            odds = p[name] * factors[name]
            values[name] = odds / (1.0 - p[name] + odds)
        return values


NO_SHAPES = Shapes()


@dataclass(frozen=True)
class Drift(Law):
    """Means of stretch and colour that are linear in redshift: x1_mean + x1_drift z, c_mean + c_drift z.

    Parameters
    ----------
    shapes : Shapes
        Widths and fractions that change too.
    """

    shapes: Shapes = NO_SHAPES

    kind = "drift"
    gaussian = True
    units: ClassVar[Mapping[str, str]] = {"c_drift": "mag"}
    symbols: ClassVar[Mapping[str, str]] = {
        "x1_drift": r"$\mathrm{d} x_1 / \mathrm{d} z$",
        "c_drift": r"$\mathrm{d} c / \mathrm{d} z$",
    } | {f"{name}_drift": rf"$r_z({symbol})$" for name, symbol in SYMBOLS_OF_SHAPES.items()}

    @property
    def priors(self) -> Mapping[str, Prior]:  # type: ignore[override]
        """Default priors of the parameters that the law adds."""
        return {"x1_drift": dist.Normal(0.0, 1.0), "c_drift": dist.Normal(0.0, 0.2)} | self.shapes.priors("drift", 1.0)

    def populations(self, p: Mapping[str, Any], z: Any) -> dict[str, Any]:
        """Return the mean stretch and colour, and the shapes that change, at redshifts (N,)."""
        means = {f"{name}_mean": p[f"{name}_mean"] + p[f"{name}_drift"] * z for name in ("x1", "c")}
        return means | self.shapes.changed(p, "drift", z)
