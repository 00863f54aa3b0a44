"""Expected counts of bursts in many intervals and detectors, from precomputed responses on quadrature nodes.

Spectra with the same response and the same grouping share one matrix, so that an evaluation multiplies one small matrix
per instrument, not per spectrum.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax import constants
from hbm_jax.cosmology import Cosmology
from hbm_jax.data.bursts.spectra import BurstSpectra
from hbm_jax.precomputation import precomputed
from hbm_jax.spectra.folding.fold import fold
from hbm_jax.spectra.model import shapes
from hbm_jax.spectra.model.components import Band, CutoffPowerLaw
from hbm_jax.spectra.model.energetics import log10_sphere_area
from hbm_jax.spectra.statistics.joint import AnyStatistic

TOLERANCE = 1e-2  # of `FoldedBursts.errors`, in standard deviations
PIVOT = 100.0  # keV
MIN_EXPECTED = 1e-20  # lower bound of expected counts
# Trial spectra, which bracket those of bursts: observed peak energies [keV], and indices.
_PEAKS, _ALPHAS, _BETAS = (20.0, 60.0, 200.0, 600.0, 2000.0), (-1.6, -1.0, -0.3), (-3.5, -2.6, -2.1)
_LN10 = math.log(10.0)
_UNIT = math.log(constants.kev_in_erg) + 2.0 * math.log(PIVOT)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class FoldedBursts:
    """Spectra of bursts with precomputed responses: B bursts, I intervals, D detectors, N spectra in at most G groups.

    There are R instruments (a response with a grouping), with K nodes and at most S spectra each.

    Attributes
    ----------
    statistic : Statistic or JointStatistic
        Fit statistic of all N spectra, which holds the counts.
    log_energy : (R, 1, K)
        ln of the energy of the nodes over 100 keV.
    matrix : (R, K, G)
        Counts per second for 1 photon/cm^2/s/keV at each node.
    exposure : (R S,)
        Exposure time [s]; 0 in padding.
    of_interval, of_detector : (R S, I), (R S, D)
        1 where a spectrum belongs to an interval or a detector, else 0. Multiplying by these matrices, instead of
        indexing, maps parameters to spectra with a derivative that is a matrix product too.
    order : (N,)
        Index of each spectrum among the R S slots.
    in_order : bool
        Whether ``order`` is the identity.
    of_burst : (I, B)
        1 where an interval belongs to a burst, else 0.
    reference, of_free : (D,), (D, F)
        1 for reference detectors, whose effective area is fixed; 1 where a detector has one of the F free effective
        areas.
    middle, width : (I,)
        Middle and width of the observed band of the energy flux, in ln of the energy over 100 keV.
    log10_stretch, log10_sphere_area : (I,)
        log10 of 1 + z, and of 4 pi d_L^2 [cm^2].
    errors : (N,)
        Error of the expected counts in standard deviations, see `hbm_jax.spectra.folding.fold.deviation`. The log
        likelihood changes by about this number where the model fits the data.
    shape : str
        ``"band"`` or ``"cutoff"``.
    """

    statistic: AnyStatistic
    log_energy: Any
    matrix: Any
    exposure: Any
    of_interval: Any
    of_detector: Any
    order: Any
    of_burst: Any
    reference: Any
    of_free: Any
    middle: Any
    width: Any
    log10_stretch: Any
    log10_sphere_area: Any
    errors: Any
    shape: str = field(metadata={"static": True})
    in_order: bool = field(metadata={"static": True})

    @classmethod
    def of(
        cls,
        data: BurstSpectra,
        *,
        shape: str = "band",
        band: tuple[float, float] = (1.0, 1e4),
        frame: str = "rest",
        statistic: str | None = None,
        H0: float = 70.0,
        Om0: float = 0.3,
        tolerance: float = TOLERANCE,
    ) -> "FoldedBursts":
        """Precompute the responses on nodes and everything else that depends on the data alone.

        Parameters
        ----------
        data : BurstSpectra
            The bursts.
        shape : str
            ``"band"`` or ``"cutoff"``.
        band : (float, float)
            Band of the energy flux [keV].
        frame : str
            Frame of the band: ``"rest"`` or ``"observer"``.
        statistic : str, optional
            As in `SpectrumStack.statistic`.
        H0, Om0 : float
            Hubble constant [km/s/Mpc] and matter density of a flat universe.
        tolerance : float
            Upper limit of ``errors``. Where no level meets it, the finest is used.
        """
        stack = data.spectra
        instruments = _spectra_by_instrument(stack)
        folds, errors = [], np.zeros(len(stack))
        for rows in instruments:
            energy, response = stack.grouped_response(rows[0])
            groups = slice(response.shape[1])
            background = np.asarray(stack.background[rows] / stack.ratio[rows])[:, groups]
            folded = fold(
                component(shape, (1.0, 1e4)),
                energy,
                response / stack.exposure[rows[0]],
                np.asarray(stack.counts[rows])[:, groups],
                trials(shape),
                background=np.maximum(background, 0.0),
                tolerance=tolerance,
            )
            folds.append(folded.nodes)
            errors[rows] = folded.errors
        num_nodes, num_groups = max(len(f.energy) for f in folds), np.shape(stack.counts)[1]
        max_spectra = max(map(len, instruments))
        matrix = np.zeros((len(folds), num_nodes, num_groups))
        energy = np.stack([np.pad(f.energy, (0, num_nodes - len(f.energy)), mode="edge") for f in folds])
        for index, nodes in enumerate(folds):
            matrix[index, : nodes.matrix.shape[1], : nodes.matrix.shape[0]] = nodes.matrix.T
        table = np.full((len(folds), max_spectra), -1)
        for index, rows in enumerate(instruments):
            table[index, : len(rows)] = rows
        slots = table.ravel()
        used = slots >= 0
        order = np.empty(len(stack), int)
        order[slots[used]] = np.flatnonzero(used)
        z = np.asarray(data.z)[data.interval_burst]
        stretch = 1.0 + z if frame == "rest" else np.ones(len(z))
        low, high = (np.log(end / stretch / PIVOT) for end in band)
        free = np.flatnonzero(np.asarray(data.reference) == 0)
        sphere = precomputed(lambda: np.asarray(log10_sphere_area(np.asarray(data.z), Cosmology.flat(H0=H0, Om0=Om0))))
        return cls(
            statistic=stack.statistic(statistic),
            log_energy=np.log(energy / PIVOT)[:, None, :],
            matrix=matrix,
            exposure=np.where(used, np.asarray(stack.exposure)[slots], 0.0),
            of_interval=_one_hot(np.where(used, np.asarray(data.spectrum_interval)[slots], 0), len(z)),
            of_detector=_one_hot(np.where(used, np.asarray(data.spectrum_detector)[slots], 0), len(data.detector)),
            order=order,
            of_burst=_one_hot(data.interval_burst, len(data)),
            reference=np.asarray(data.reference, float),
            of_free=_one_hot(free, len(data.detector)).T,
            middle=0.5 * (low + high),
            width=high - low,
            log10_stretch=np.log10(1.0 + z),
            log10_sphere_area=sphere[data.interval_burst],
            errors=errors,
            shape=shape,
            in_order=bool((order == np.arange(len(slots))).all()) if len(order) == len(slots) else False,
        )

    @property
    def num_parameters(self) -> int:
        """Number of parameters of a spectrum: peak energy, alpha, beta (Band function only), and flux."""
        return 4 if self.shape == "band" else 3

    def inside(self, alpha, beta) -> jax.Array:
        """Return whether the indices are in the domain of the spectrum, (I,): alpha > -2, and beta < alpha."""
        return (alpha > -2.0) & (beta < alpha) if self.shape == "band" else alpha > -2.0

    def expected(self, log10_E_peak, alpha, beta, log10_flux, effective_area=None) -> jax.Array:
        """Return the expected counts of the bursts, without background.

        Parameters
        ----------
        log10_E_peak : (I,)
            log10 of the rest-frame peak energy [keV].
        alpha, beta : (I,)
            Photon indices with their sign (usually negative); beta is ignored by a cut-off power law.
        log10_flux : (I,)
            log10 of the energy flux in the band [erg/cm^2/s].
        effective_area : (F,), optional
            Effective areas of the non-reference detectors relative to the reference detectors; 1 where omitted.

        Returns
        -------
        (N, G)
            NaN for intervals whose indices are outside the domain (see `inside`).
        """
        e_peak = 10.0 ** (log10_E_peak - self.log10_stretch) / PIVOT
        shape, integral = _functions(self.shape)
        indices = (alpha, beta, e_peak) if self.shape == "band" else (-alpha, (2.0 + alpha) / e_peak)
        scale = _LN10 * log10_flux - _UNIT - integral(self.middle, self.width, 1, *indices)
        # One matrix product maps all parameters from intervals to spectra.
        parameters = self.of_interval @ jnp.stack([scale, *indices], axis=1)
        R = len(self.matrix)
        scale, *indices = (column.reshape(R, -1, 1) for column in parameters.T)  # type: ignore[assignment]
        density = jnp.exp(scale + shape(self.log_energy, jnp.exp(self.log_energy), *indices))
        counts = jnp.einsum("rsk,rkg->rsg", density, self.matrix).reshape(len(self.exposure), -1)
        factor = self.exposure
        if effective_area is not None:
            factor = factor * (self.of_detector @ (self.reference + self.of_free @ effective_area))
        # Far above a cut-off the interpolating polynomial can be negative, by 1e-8 counts.
        counts = jnp.maximum(counts * factor[:, None], MIN_EXPECTED)
        return counts if self.in_order else counts[self.order]

    def per_interval(self, values) -> jax.Array:
        """Return the sum over spectra and groups of each interval, (..., N, G) -> (..., I)."""
        return jnp.sum(values, axis=-1) @ self.of_interval[self.order]


def _spectra_by_instrument(stack) -> list[list[int]]:
    """Return the indices of the spectra that share response, effective area, grouping and area scaling."""
    instruments: dict[Any, list[int]] = {}
    for row in range(len(stack)):
        response, scale = stack.responses[row], np.asarray(stack.areascal[row])
        key = (id(response.rmf), response.area.tobytes(), stack.grouping[row].tobytes(), scale.tobytes())
        instruments.setdefault(key, []).append(row)
    return list(instruments.values())


def _functions(shape: str) -> tuple[Callable, Callable]:
    """Return the shape of a spectrum and its integral, from `hbm_jax.spectra.model.shapes`."""
    if shape == "band":
        return shapes.band, shapes.band_integral
    return shapes.cutoff_power_law, shapes.cutoff_power_law_integral


def component(shape: str, band: tuple[float, float]) -> Band | CutoffPowerLaw:
    """Return the spectral component of `hbm_jax.spectra`, normalised by the energy flux in an observed band [keV]."""
    if shape == "band":
        return Band(norm=band, pivot=PIVOT)
    return CutoffPowerLaw(norm=band, pivot=PIVOT, peak=True)


def _one_hot(index, num: int) -> np.ndarray:
    """Return the matrix (len(index), num) with 1 at each index, else 0."""
    return (np.asarray(index)[:, None] == np.arange(num)).astype(float)


def trials(shape: str) -> dict[str, np.ndarray]:
    """Return parameters of spectra that bracket those of bursts, (num_trials,) each."""
    grid = np.meshgrid(_PEAKS, _ALPHAS, _BETAS if shape == "band" else (0.0,), indexing="ij")
    peak, alpha, beta = (axis.ravel() for axis in grid)
    values = {"e_peak": peak, "log10_flux": np.full(len(peak), -6.0)}
    return values | ({"alpha": alpha, "beta": beta} if shape == "band" else {"photon_index": -alpha})
