"""Photons of a model in energy bins, and their smoothing by a Gaussian."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jax.typing import ArrayLike

from hbm_jax.spectra.model.composition import Component, Line, Parameter, Values, components_of, floating, split_terms
from hbm_jax.spectra.model.quadrature import LINE_WIDTH, NUM_NODES, WIDTH, density_weights, in_bins, integrals, pieces

__all__ = ["GaussianSmoothing", "exact_terms", "photons"]

_STEP = 0.004  # in ln E of the bins whose photons are smoothed
_MARGIN = 1.5  # factor in energy by which these bins extend beyond the bins of the result
_LOWEST = 0.0301  # keV, lowest energy of these bins, within the domain of absorbers
_PIVOT = 6.0  # keV, energy at which the width is given, as in XSPEC's gsmooth


def photons(spectrum: Component, edges: ArrayLike) -> Callable[[Values], jax.Array]:
    """Return a function that computes the photons in energy bins [photons/cm^2/s], (..., num_bins).

    Power laws, broken power laws, lines and their sums have closed forms. Other spectra are integrated in ln E with
    four Gauss-Legendre nodes per bin; bins are divided at discontinuities in value and slope, and where they are wider
    than 0.1 in ln E. The error of an absorbed power law is below 1e-9 of the photons in a bin where the optical depth
    is 5 or less, and below 1e-9 of the total photons in every bin (``tests/spectra/test_components.py``,
    ``test_energetics.py``). For absorbed lines and broken power laws the transmission is interpolated by a cubic in
    each bin and averaged over the photons there. Raises ValueError if the edges are not positive and increasing. The
    function is a pytree, and takes parameter values as in `Component.on`.

    Parameters
    ----------
    spectrum : Component
        Additive model. A multiplicative model is integrated in the same way.
    edges : (num_bins + 1,)
        Edges of the bins [keV], positive and increasing.

    Examples
    --------
    >>> from hbm_jax.spectra import Absorption, PowerLaw
    >>> in_bins = photons(PowerLaw() * Absorption(), np.linspace(0.3, 10.0, 98))
    >>> in_bins({"photon_index": 2.0, "log10_flux": -11.0, "nh": 0.1}).shape
    (97,)
    """
    edges = np.asarray(edges, dtype=float)
    if edges.ndim != 1 or len(edges) < 2 or not edges[0] > 0 or not (np.diff(edges) > 0).all():
        raise ValueError(
            f"edges: expected at least two positive, increasing energies [keV]; found {edges.tolist()[:5]}."
        )
    smooth, lines, cuts = exact_terms(spectrum, edges)
    function = integrals(smooth, lines, cuts)
    return function if len(cuts) == len(edges) else in_bins(function, cuts, edges)


def exact_terms(spectrum: Component, edges: np.ndarray) -> tuple[Component | None, tuple[Line, ...], np.ndarray]:
    """Return the arguments of `integrals` for photons in bins: the smooth part, the lines, and the edges of the pieces.

    The edges [keV] of the bins are (num_bins + 1,). If every term has a closed form and no factor, all terms are
    returned as lines, and bins are not divided.
    """
    smooth, lines = split_terms(spectrum, lambda part: part.integrable and not part.smooth)
    remainder, closed_forms = (None, ()) if smooth is None else split_terms(smooth, lambda part: part.integrable)
    if remainder is None and all(term.factor is None for term in (*closed_forms, *lines)):
        return None, (*closed_forms, *lines), edges
    are_absorbed = any(line.factor is not None for line in lines)
    return smooth, lines, pieces(spectrum, edges, LINE_WIDTH if are_absorbed else WIDTH)


def _integral_of_ndtr(u):
    """Return the integral of the cumulative normal distribution up to u."""
    return u * ndtr(u) + jnp.exp(-0.5 * u * u) / math.sqrt(2.0 * math.pi)


def require_source(spectrum: Any, owner: str, name: str) -> None:
    """Raise ValueError unless a spectrum, in the parentheses of ``name``, is additive and without instrument errors."""
    if not isinstance(spectrum, Component) or spectrum.kind != "additive":
        raise ValueError(
            f"{owner}: expected an additive expression in parentheses, as in {name}(powerlaw); found {spectrum!r}."
        )
    if any(part.of_instrument for part in components_of(spectrum)):
        raise ValueError(
            f"{owner}: expected errors of the instrument outside its parentheses, as in "
            f"{name}(powerlaw) * AreaErrors('a.fits'); found {spectrum}."
        )


@dataclass(frozen=True)
class GaussianSmoothing(Component):
    """Additive expression smoothed by a Gaussian of standard deviation sigma (E / 6 keV)^index, XSPEC's gsmooth.

    The photons of the expression are computed in bins of 0.4 % in energy, from 1/1.5 to 1.5 times the energies of the
    response, and smoothed as if uniform in each bin. Photons from outside this range are missing, and lines are at
    least as wide as these bins. Domain: sigma >= 0. Raises ValueError if the expression is not additive, or has a
    parameter of the same name.

    Parameters
    ----------
    label : str
        Prefix of the parameter name.
    of : Component
        The additive expression. In text: ``gsmooth(powerlaw + gauss)``, ``gsmooth(powerlaw, label, index=1)``.
    index : float
        Power of the energy with which the width grows.

    Examples
    --------
    >>> from hbm_jax.spectra.model.components import GaussianLine
    >>> list(GaussianSmoothing("blur", of=GaussianLine()).parameters)
    ['blur_sigma', 'energy', 'sigma', 'log10_amplitude']
    """

    narrow: ClassVar[bool] = True
    integrable: ClassVar[bool] = True
    own_parameters: ClassVar[dict[str, Parameter]] = {
        "sigma": Parameter("keV", "HalfNormal(0.1)", "standard deviation of the smoothing at 6 keV")
    }
    _: KW_ONLY
    of: Any = None
    index: float = 0.0

    def __post_init__(self):
        require_source(self.of, "GaussianSmoothing", "gsmooth")
        if set(self.of.parameters) & {self._prefixed(name) for name in self.own_parameters}:
            raise ValueError(
                "gsmooth: expected a name for its parameter that the expression does not have; found 'sigma' in both. "
                "Give it a label."
            )

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The width, and the parameters of the expression."""
        return super().parameters | self.of.parameters

    def mapped(self, change):
        """Return the component with each component of its expression changed."""
        return change(dataclasses.replace(self, of=self.of.mapped(change)))

    def _without_absorbers(self):
        return dataclasses.replace(self, of=self.of.unabsorbed)

    def _unsmoothed(self, energy: Any) -> tuple[Any, np.ndarray]:
        """Return the function for the photons of the expression in fine bins, and the edges of these bins."""
        low, high = float(np.min(energy)), float(np.max(energy)) * _MARGIN
        low = max(low / _MARGIN, min(low, _LOWEST))  # the margin stays within the domain of absorbers
        grid = np.geomspace(low, high, math.ceil(math.log(high / low) / _STEP) + 1)
        return photons(self.of, grid), grid

    def _smoothed(self, tables, values, kernel: Callable) -> tuple[jax.Array, jax.Array]:
        """Return the smoothed photons at energies (..., K), as sums over the fine bins of photons times a mean kernel.

        ``kernel`` is the antiderivative of the kernel, a function of (energy - photon energy) / width. The first result
        is the sum for this kernel, the second for the kernel divided by the width.
        """
        energy, (unsmoothed, grid) = tables
        params = floating(self, values)
        count = unsmoothed(params)
        edges = jnp.asarray(grid, count.dtype)
        middle = 0.5 * (edges[1:] + edges[:-1])
        width = params[self._prefixed("sigma")][..., None] * (middle / _PIVOT) ** self.index
        smallest = 1e-3 * _STEP * middle
        width = jnp.where(width > smallest, width, jnp.where(width >= 0.0, smallest, jnp.nan))[..., None, :]
        column = jnp.asarray(energy, count.dtype)[..., :, None]
        upper, lower = kernel((column - edges[:-1]) / width), kernel((column - edges[1:]) / width)
        mean = (upper - lower) / jnp.diff(edges)
        return jnp.sum(mean * width * count[..., None, :], axis=-1), jnp.sum(mean * count[..., None, :], axis=-1)

    def _tables(self, energy):
        """Return the energies, and the result of `_unsmoothed`."""
        return energy, self._unsmoothed(energy)

    def _evaluate(self, tables, values):
        return self._smoothed(tables, values, ndtr)[1]

    def _limits(self, edges):
        """Return the edges of the bins, and the result of `_unsmoothed`."""
        return edges, self._unsmoothed(edges)

    def _integrals(self, limits, values):
        return jnp.diff(self._smoothed(limits, values, _integral_of_ndtr)[0])

    def _weight_tables(self, edges):
        return None

    def _integrals_and_weights(self, limits, tables, values):
        photons_in_bins = self._integrals(limits, values)
        return photons_in_bins, density_weights(jnp.repeat(jnp.ones_like(photons_in_bins), NUM_NODES, axis=-1))
