"""Detection of supernovae as a function of their observed magnitude and colour."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from numpyro import distributions as dist

from hbm_jax.data import DataError, Supernovae
from hbm_jax.distributions import ProbitSelection
from hbm_jax.distributions.selection import BothSelections, FunctionSelection
from hbm_jax.models.efficiency import DetectionFunction, Efficiency, Injections, efficiency_from_text
from hbm_jax.models.priors import Prior
from hbm_jax.models.selection import Selection, as_selections
from hbm_jax.models.supernovae.laws.base import Law
from hbm_jax.validation import OptionError, Remedy

MEASURED = ("x1", "c", "m_b")
_AND_COLOUR = " and colour"


class SelectionLaw(Law):
    """Detection probability as a function of the observed (x1, c, m_b). A subclass defines `detection`."""

    kind = "selection"
    registry: ClassVar[dict[str, type]] = {}

    @classmethod
    def named(cls, choice: Any) -> Any:
        """Return the law with this name, or of a limit, an efficiency, a function or injections; a law is unchanged."""
        if isinstance(choice, str) and choice.endswith(_AND_COLOUR):
            return WithColourCut(super().named(choice.removesuffix(_AND_COLOUR)))
        if isinstance(choice, str) and any(sign in choice for sign in "<>"):
            (choice,) = as_selections(choice, "Supernova")
        elif isinstance(choice, str):
            choice = efficiency_from_text(choice) or choice
        if isinstance(choice, Selection):
            return MeasuredLimit(choice)
        return (
            DetectedBy(choice)
            if isinstance(choice, Efficiency | DetectionFunction | Injections)
            else super().named(choice)
        )

    def moved_inside(self, data: Supernovae) -> Supernovae:
        """Return the design of a simulation, without values that are never detected."""
        return data

    def detection(self, p: Mapping[str, Any]) -> Any:
        """Return the detection probability for values of the parameters, numbers or (N,); None if all are detected.

        The `columns` of the law are in ``p`` too.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class NoSelection(SelectionLaw):
    """Every supernova is in the sample."""

    name = "none"
    gaussian = True

    def detection(self, p: Mapping[str, Any]) -> None:
        """Return None."""
        return


@dataclass(frozen=True)
class CommonLimit(SelectionLaw):
    """Detection probability Phi((m_lim + m_lim_colour c - m_b) / m_lim_width), the same for all surveys."""

    name = "common"
    limit: ClassVar[Selection] = Selection("m", "above", dist.Normal(24.0, 2.0), dist.LogNormal(-1.2, 0.5), unit="mag")
    units = limit.units
    symbols: ClassVar[Mapping[str, str]] = limit.symbols | {"m_lim_colour": r"$\kappa_\mathrm{lim}$"}
    priors: ClassVar[Mapping[str, Prior]] = limit.priors | {"m_lim_colour": 0.0}

    def detection(self, p: Mapping[str, Any]) -> ProbitSelection:
        """Return the detection probability."""
        slope = jnp.stack([jnp.zeros(()), -jnp.asarray(p["m_lim_colour"]) * 1.0, jnp.ones(())])
        return self.limit.detection({name: jnp.asarray(p[name]) for name in self.limit.names}, slope)


@dataclass(frozen=True)
class SurveyLimits(CommonLimit):
    """Detection probability as `CommonLimit`, with m_lim and m_lim_width for each survey."""

    name = "survey"
    by_survey = ("m_lim", "m_lim_width")


@dataclass(frozen=True)
class ColourCut(SelectionLaw):
    """Cut of the sample at an observed colour c_lim: redder supernovae are missing.

    The detection probability is Phi((c_lim - c) / c_lim_width), for observed c. By default c_lim is 0.3, as in many
    published samples, and c_lim_width 1e-3 mag: practically a step. A cut on the blue side, where such samples have no
    supernovae, is left out.
    """

    name = "colour"
    units: ClassVar[Mapping[str, str]] = {"c_lim": "mag", "c_lim_width": "mag"}
    symbols: ClassVar[Mapping[str, str]] = {
        "c_lim": r"$c_\mathrm{lim}$",
        "c_lim_width": r"$\sigma_{c,\mathrm{lim}}$",
    }
    priors: ClassVar[Mapping[str, Prior]] = {"c_lim": 0.3, "c_lim_width": 1e-3}

    def detection(self, p: Mapping[str, Any]) -> ProbitSelection:
        """Return the detection probability."""
        return ProbitSelection(jnp.asarray(p["c_lim"]), jnp.asarray(p["c_lim_width"]), jnp.array([0.0, 1.0, 0.0]))


@dataclass(frozen=True)
class MeasuredLimit(SelectionLaw):
    """Limit of an observed quantity, such as ``"m_b < Normal(24, 0.5) +- 0.2"`` or ``"c < 0.3"``.

    Parameters
    ----------
    limit : Selection
        Limit of m_b, c or x1, with ``by_group`` of every survey.

    Raises
    ------
    OptionError
        For a limit of another quantity, and one that is a column.
    """

    limit: Selection

    def __post_init__(self):
        if self.limit.quantity not in MEASURED or self.limit.of_objects:
            raise OptionError(
                f"Supernova: selection {self}: expected a number or a prior as limit of one of {', '.join(MEASURED)}; "
                f"found {self.limit.limit if self.limit.of_objects else self.limit.quantity!r}."
            )

    def __str__(self):
        return str(self.limit)

    @property
    def priors(self) -> Mapping[str, Prior]:  # type: ignore[override]
        """Priors, or values, of limit and width."""
        return self.limit.priors

    @property
    def by_survey(self) -> tuple[str, ...]:  # type: ignore[override]
        """Name of a limit that differs between surveys."""
        return self.limit.names[:1] if self.limit.by_group else ()

    @property
    def units(self) -> Mapping[str, str]:  # type: ignore[override]
        """Units of limit and width."""
        return {} if self.limit.quantity == "x1" else dict.fromkeys(self.limit.priors, "mag")

    @property
    def is_registered(self) -> bool:
        """True: the text restores it."""
        return True

    def to_config(self) -> str:
        """Return the text."""
        return str(self.limit)

    @property
    def _slope(self) -> np.ndarray:
        """Unit vector of the quantity among the observed values."""
        return np.array([float(name == self.limit.quantity) for name in MEASURED])

    def detection(self, p: Mapping[str, Any]) -> ProbitSelection:
        """Return the detection probability."""
        return self.limit.detection({name: jnp.asarray(p[name]) for name in self.limit.priors}, self._slope)

    def _missing(self, data: Supernovae) -> np.ndarray:
        """Return True for supernovae beyond a known sharp limit, (N,)."""
        values, limit = np.asarray(getattr(data, self.limit.quantity)), self.limit.limit
        if not (self.limit.is_step and isinstance(limit, float | int)):
            return np.zeros(len(values), bool)
        return values < limit if self.limit.missing == "below" else values > limit

    def columns_of(self, data: Supernovae) -> dict[str, Any]:
        """Return no columns; raise DataError for a supernova beyond a sharp limit."""
        missing = self._missing(data)
        if missing.any():
            row = int(missing.argmax())
            raise DataError(
                f"Supernova: selection {self}: expected none beyond the limit; found {missing.sum()}, the first "
                f"{data.name[row]}. Leave them out, or give the limit a width, such as +- 0.1."
            )
        return {}

    def moved_inside(self, data: Supernovae) -> Supernovae:
        """Return the design of a simulation, with values beyond a sharp limit moved to it."""
        columns = {name: np.array(getattr(data, name)) for name in MEASURED}
        if (missing := self._missing(data)).any():
            columns[self.limit.quantity][missing] = self.limit.limit
        return data.replace_observations(**columns)


_NO_LIMIT = 100.0  # limit, in widths, of surveys without one: their detection probability is 1


@dataclass(frozen=True)
class BandLimits(SelectionLaw):
    """Detection limits of the surveys in observed bands, where m_obs = m_b + c2(z) + c3(z) c.

    A supernova is detected with probability Phi((m_lim - m_obs) / width), for observed m_b and c. The limit is that of
    the data (``band_limit``) plus m_lim_shift, and the width that of the data (``band_limit_width``) times
    m_lim_width_ratio, with both parameters for each survey; c2 and c3 are ``band_offset`` and ``band_colour`` of the
    data. The prior of the limit is that of UNITY (Rubin et al. 2023, arXiv:2311.12098), N(limit, 0.5 mag). Supernovae
    of surveys without a limit are all detected; the parameters of these surveys keep their priors.
    """

    name = "band"
    units: ClassVar[Mapping[str, str]] = {"m_lim_shift": "mag"}
    symbols: ClassVar[Mapping[str, str]] = {
        "m_lim_shift": r"$\Delta m_\mathrm{lim}$",
        "m_lim_width_ratio": r"$\sigma_\mathrm{lim} / \sigma_\mathrm{lim,0}$",
    }
    priors: ClassVar[Mapping[str, Prior]] = {
        "m_lim_shift": dist.Normal(0.0, 0.5),
        "m_lim_width_ratio": dist.LogNormal(0.0, 0.5),
    }
    by_survey = ("m_lim_shift", "m_lim_width_ratio")
    columns = ("band_limit", "band_limit_width", "band_offset", "band_colour")

    def columns_of(self, data: Supernovae) -> dict[str, Any]:
        """Return limits, widths and coefficients of the bands, and ``has_limit``, 1 where there is a limit.

        Raises
        ------
        DataError
            If no supernova has a limit.
        """
        has_limit = np.isfinite(data.band_limit)
        if not has_limit.any():
            raise DataError(
                "Supernova: selection='band' expects detection limits of surveys (columns band_limit and "
                "band_limit_width, or limits= of the reader); found none.",
                [Remedy("selection", "common"), Remedy("selection", "none")],
            )
        filled = {name: np.where(has_limit, getattr(data, name), 1.0) for name in self.columns}
        return filled | {"has_limit": has_limit * 1.0}

    def detection(self, p: Mapping[str, Any]) -> ProbitSelection:
        """Return the detection probability of every supernova, as a function of its observed (x1, c, m_b)."""
        has_limit = jnp.asarray(p["has_limit"])
        limit = p["band_limit"] + p["m_lim_shift"] - p["band_offset"]
        width = p["band_limit_width"] * p["m_lim_width_ratio"]
        slope = jnp.stack([jnp.zeros_like(has_limit), has_limit * p["band_colour"], has_limit], axis=-1)
        # A slope of 0 without a limit: density and gradients do not depend on the parameters.
        return ProbitSelection(
            jnp.where(has_limit > 0.0, limit, _NO_LIMIT), jnp.where(has_limit > 0.0, width, 1.0), slope
        )


@dataclass(frozen=True)
class WithColourCut(SelectionLaw):
    """Detection limits of magnitude, with the cut of `ColourCut` beside them: supernovae in the sample pass both.

    The names are ``"band and colour"``, ``"survey and colour"`` and ``"common and colour"``. The fraction that passes
    is a bivariate normal distribution function.

    Parameters
    ----------
    limit : CommonLimit, SurveyLimits or BandLimits
        The detection limits.

    Raises
    ------
    OptionError
        For another law.
    """

    limit: SelectionLaw
    cut: ClassVar[ColourCut] = ColourCut()

    def __post_init__(self):
        if not isinstance(self.limit, CommonLimit | BandLimits):
            raise OptionError(
                f"Supernova: selection={self.to_config()!r}: expected common, survey or band limits beside the cut in "
                f"colour; found {self.limit.name!r}."
            )

    def __str__(self):
        return repr(self.to_config())

    @property
    def is_registered(self) -> bool:
        """True if the limits can be restored from their name."""
        return self.limit.is_registered

    def to_config(self) -> str:
        """Return the name stored in run folders."""
        return self.limit.to_config() + _AND_COLOUR

    @property
    def priors(self) -> dict[str, Prior]:  # type: ignore[override]
        """Default priors of both."""
        return {**self.limit.priors, **self.cut.priors}

    @property
    def units(self) -> dict[str, str]:  # type: ignore[override]
        """Units of both."""
        return {**self.limit.units, **self.cut.units}

    @property
    def by_survey(self) -> tuple[str, ...]:  # type: ignore[override]
        """Parameters of the limits that have one value for each survey."""
        return self.limit.by_survey

    def columns_of(self, data: Supernovae) -> dict[str, Any]:
        """Return the columns of the limits."""
        return self.limit.columns_of(data)

    def detection(self, p: Mapping[str, Any]) -> BothSelections:
        """Return the probability to pass both."""
        return BothSelections(self.limit.detection(p), self.cut.detection(p))


@dataclass(frozen=True)
class DetectedBy(SelectionLaw):
    """Detection probability that is tabulated in m_b, c or x1, a function of measured c and m_b, or from injections.

    Parameters
    ----------
    choice : Efficiency, DetectionFunction or Injections
        The table, the function, or simulated supernovae with true x1, c and m_b.

    Raises
    ------
    OptionError
        For a table in another quantity.
    """

    choice: Efficiency | DetectionFunction | Injections

    def __post_init__(self):
        if isinstance(self.choice, Efficiency) and self.choice.quantity not in MEASURED:
            raise OptionError(
                f"Supernova: selection {self.choice}: expected an efficiency in one of {', '.join(MEASURED)}; found "
                f"{self.choice.quantity!r}."
            )
        if isinstance(self.choice, Injections):
            self.choice.selection(MEASURED)  # raises for a table that cannot be read

    def __str__(self):
        return str(self.choice)

    @property
    def is_registered(self) -> bool:
        """True for a table, which its text restores."""
        return getattr(self.choice, "is_registered", True)

    def to_config(self) -> str:
        """Return the text of the table, or the name of the function."""
        return str(self.choice)

    def detection(self, p: Mapping[str, Any]) -> Any:
        """Return the detection probability."""
        if isinstance(self.choice, Injections):
            return self.choice.selection(MEASURED)
        if isinstance(self.choice, DetectionFunction):
            return FunctionSelection(self.choice.function, (MEASURED.index("c"), MEASURED.index("m_b")))
        return self.choice.detection(p, np.array([float(name == self.choice.quantity) for name in MEASURED]))

    def columns_of(self, data: Supernovae) -> dict[str, Any]:
        """Return no columns; raise DataError for a supernova that is never detected."""
        if isinstance(self.choice, Injections):
            return {}
        values = np.stack([np.asarray(getattr(data, name)) for name in MEASURED], axis=-1)
        probability = np.broadcast_to(np.asarray(self.detection({}).probability(values)), len(values))
        wrong = ~((probability > 0.0) & (probability <= 1.0))
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(
                f"Supernova: selection {self}: expected a probability above 0 and up to 1 at every supernova; found "
                f"{probability[row]:.6g} for {data.name[row]}."
            )
        return {}

    def moved_inside(self, data: Supernovae) -> Supernovae:
        """Return the design of a simulation, without values that are never detected."""
        if not isinstance(self.choice, Efficiency):
            return data
        columns = {name: np.asarray(getattr(data, name)) for name in MEASURED}
        columns[self.choice.quantity] = self.choice.moved_inside(columns[self.choice.quantity])
        return data.replace_observations(**columns)
