"""Expected counts of bursts in many intervals and detectors: what depends on the data alone, worked out once.

Spectra with the same response and the same groups share one fold, whatever their number: a step of a sampler multiplies
as many small matrices as there are different instruments, not spectra.
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
from hbm_jax.spectra.folding.panels import Fold, fold_of, panel_edges
from hbm_jax.spectra.model import shapes
from hbm_jax.spectra.model.components import Band, CutoffPowerLaw
from hbm_jax.spectra.model.energetics import log10_sphere
from hbm_jax.spectra.statistics.joint import AnyStatistic

TOLERANCE = 1e-2  # standard deviations, see `FoldedBursts.errors`
PIVOT = 100.0  # keV
LEAST = 1e-20  # expected counts
SHAPES = ("band", "cutoff")
FRAMES = ("rest", "observer")
# Nodes of a panel and its width in ln E, from coarse to fine; the reference has more nodes in half the width.
LEVELS = ((4, 0.8), (4, 0.6), (4, 0.45), (4, 0.35), (4, 0.3), (4, 0.25), (4, 0.2), (4, 0.15), (4, 0.1), (5, 0.05))
REFERENCE = (6, 0.5)
# Spectra that bracket those of bursts: peak energies as observed [keV], indices.
_PEAKS, _ALPHAS, _BETAS = (20.0, 60.0, 200.0, 600.0, 2000.0), (-1.6, -1.0, -0.3), (-3.5, -2.6, -2.1)
_LN10 = math.log(10.0)
_UNIT = math.log(constants.kev_in_erg) + 2.0 * math.log(PIVOT)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class FoldedBursts:
    """Bursts ready to be compared with spectra: B bursts, I intervals, D detectors, N spectra in at most G groups.

    R instruments (a response with its groups) have K nodes each and at most S spectra each.

    Attributes
    ----------
    statistic : Statistic or JointStatistic
        Of all N spectra, with the data.
    log_energy : (R, 1, K)
        Nodes, ln of the energy over 100 keV.
    matrix : (R, K, G)
        From photons/cm^2/s/keV at the nodes to counts per second.
    exposure : (R S,)
        [s]; 0 in padding.
    of_interval, of_detector : (R S, I), (R S, D)
        1 where a spectrum is of an interval or a detector: a product with these takes parameters to spectra, and its
        derivative is a product too.
    order : (N,)
        Where each spectrum stands among the R S.
    in_order : bool
        Whether they stand as they are.
    of_burst : (I, B)
        1 where an interval is of a burst.
    reference, of_free : (D,), (D, F)
        1 for the detectors whose effective area is given, and which of the F free ones each other detector has.
    middle, width : (I,)
        The band of the energy flux as observed, in ln of the energy over 100 keV.
    log10_stretch, log10_sphere : (I,)
        log10 of 1 + z, and of 4 pi d_L^2 [cm^2].
    errors : (N,)
        Distance between the fold and a finer one, the root of the sum of (difference of expected counts)^2 / (expected
        counts with background), the largest over trial spectra with the observed net counts. No parameter fitted to
        the spectrum is shifted by more than that part of its error, and the log likelihood of data that the spectrum
        explains changes by about as much.
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
    log10_sphere: Any
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
        """Work everything out.

        Parameters
        ----------
        data : BurstSpectra
            The bursts.
        shape : str
            ``"band"`` or ``"cutoff"``.
        band : (float, float)
            Of the energy flux [keV].
        frame : str
            Where the band is: ``"rest"`` or ``"observer"``.
        statistic : str, optional
            As in `SpectrumStack.statistic`.
        H0, Om0 : float
            The universe, flat.
        tolerance : float
            Largest of ``errors``; the finest level is taken where none keeps it.
        """
        stack = data.spectra
        instruments: dict[Any, list[int]] = {}
        for row in range(len(stack)):
            response, scale = stack.responses[row], np.asarray(stack.areascal[row])
            key = (id(response.rmf), response.area.tobytes(), stack.grouping[row].tobytes(), scale.tobytes())
            instruments.setdefault(key, []).append(row)
        folds, errors = [], np.zeros(len(stack))
        known: dict[Any, np.ndarray] = {}
        for rows in instruments.values():
            fold, found = _fine_enough(data, rows, shape, tolerance, known)
            folds.append(fold)
            errors[rows] = found
        num_nodes, num_groups = max(len(f.energy) for f in folds), np.shape(stack.counts)[1]
        most = max(map(len, instruments.values()))
        matrix = np.zeros((len(folds), num_nodes, num_groups))
        energy = np.stack([np.pad(f.energy, (0, num_nodes - len(f.energy)), mode="edge") for f in folds])
        for place, fold in enumerate(folds):
            matrix[place, : fold.matrix.shape[1], : fold.matrix.shape[0]] = fold.matrix.T
        table = np.full((len(folds), most), -1)
        for place, rows in enumerate(instruments.values()):
            table[place, : len(rows)] = rows
        slots = table.ravel()
        used = slots >= 0
        order = np.empty(len(stack), int)
        order[slots[used]] = np.flatnonzero(used)
        z = np.asarray(data.z)[data.interval_burst]
        stretch = 1.0 + z if frame == "rest" else np.ones(len(z))
        low, high = (np.log(end / stretch / PIVOT) for end in band)
        free = np.flatnonzero(np.asarray(data.reference) == 0)
        sphere = precomputed(lambda: np.asarray(log10_sphere(np.asarray(data.z), Cosmology.flat(H0=H0, Om0=Om0))))
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
            log10_sphere=sphere[data.interval_burst],
            errors=errors,
            shape=shape,
            in_order=bool((order == np.arange(len(slots))).all()) if len(order) == len(slots) else False,
        )

    @property
    def num_parameters(self) -> int:
        """Parameters of a spectrum: peak energy, alpha, with Band's function beta, and flux."""
        return 4 if self.shape == "band" else 3

    def inside(self, alpha, beta) -> jax.Array:
        """Whether the indices are such that there is a spectrum, (I,): alpha > -2, and beta < alpha."""
        return (alpha > -2.0) & (beta < alpha) if self.shape == "band" else alpha > -2.0

    def expected(self, log10_E_peak, alpha, beta, log10_flux, effective_area=None) -> jax.Array:
        """Return expected counts of the bursts alone.

        Parameters
        ----------
        log10_E_peak : (I,)
            Peak energy at rest [keV].
        alpha, beta : (I,)
            Indices of the photon spectrum, with their sign; beta is not used by a cut-off power law.
        log10_flux : (I,)
            Energy flux in the band [erg/cm^2/s].
        effective_area : (F,), optional
            Of the detectors beside the references, relative to those; 1 where left out.

        Returns
        -------
        (N, G)
            NaN for the intervals whose indices are outside of the domain (see `inside`).
        """
        e_peak = 10.0 ** (log10_E_peak - self.log10_stretch) / PIVOT
        shape, integral = _functions(self.shape)
        indices = (alpha, beta, e_peak) if self.shape == "band" else (-alpha, (2.0 + alpha) / e_peak)
        scale = _LN10 * log10_flux - _UNIT - integral(self.middle, self.width, 1, *indices)
        # As many rows as parameters, so that one product takes all of them to the spectra.
        own = self.of_interval @ jnp.stack([scale, *indices], axis=1)
        R = len(self.matrix)
        scale, *indices = (column.reshape(R, -1, 1) for column in own.T)  # type: ignore[assignment]
        density = jnp.exp(scale + shape(self.log_energy, jnp.exp(self.log_energy), *indices))
        counts = jnp.einsum("rsk,rkg->rsg", density, self.matrix).reshape(len(self.exposure), -1)
        factor = self.exposure
        if effective_area is not None:
            factor = factor * (self.of_detector @ (self.reference + self.of_free @ effective_area))
        # Where a cut-off leaves next to nothing, a polynomial through the nodes may fall below zero by 1e-8 of a count.
        counts = jnp.maximum(counts * factor[:, None], LEAST)
        return counts if self.in_order else counts[self.order]

    def per_interval(self, values) -> jax.Array:
        """Sum over the spectra and groups of each interval, (..., N, G) -> (..., I)."""
        return jnp.sum(values, axis=-1) @ self.of_interval[self.order]


def _functions(shape: str) -> tuple[Callable, Callable]:
    """Shape and integral of a spectrum in `hbm_jax.spectra.model.shapes`."""
    if shape == "band":
        return shapes.band, shapes.band_integral
    return shapes.cutoff_power_law, shapes.cutoff_power_law_integral


def component(shape: str, band: tuple[float, float]) -> Band | CutoffPowerLaw:
    """Return the spectrum as a component of `hbm_jax.spectra`, with the energy flux in a band as observed [keV]."""
    if shape == "band":
        return Band(norm=band, pivot=PIVOT)
    return CutoffPowerLaw(norm=band, pivot=PIVOT, peak=True)


def _one_hot(index, num: int) -> np.ndarray:
    return (np.asarray(index)[:, None] == np.arange(num)).astype(float)


def _fine_enough(data: BurstSpectra, rows, shape: str, tolerance: float, known) -> tuple[Fold, np.ndarray]:
    """Coarsest fold that is near enough for all spectra of an instrument, and the error of each."""
    stack = data.spectra
    energy, response = stack.grouped_response(rows[0])
    response = response / stack.exposure[rows[0]]
    for num_nodes, width in LEVELS:
        fold, small = _fold(energy, response, num_nodes, width, shape, known)
        _, large = _fold(energy, response, REFERENCE[0], REFERENCE[1] * width, shape, known)
        errors = np.array([_distance(stack, row, small, large) for row in rows])
        if errors.max() <= tolerance:
            break
    return fold, errors


def _fold(energy, response, num_nodes: int, width: float, shape: str, known) -> tuple[Fold, np.ndarray]:
    """Fold of a level, and expected counts per second of the trials, (num_trials, num_groups)."""
    fold = fold_of(energy, response, panel_edges(float(energy[0]), float(energy[-1]), width=width), num_nodes)
    key = shape, fold.energy.tobytes()
    if key not in known:  # detectors of one kind have the same nodes
        known[key] = trial_spectra(fold.energy, shape)
    return fold, known[key] @ fold.matrix.T


def trial_spectra(energy: np.ndarray, shape: str) -> np.ndarray:
    """Spectra that bracket those of bursts, (num_trials, num_energies), in photons but for a factor."""
    grid = np.meshgrid(_PEAKS, _ALPHAS, _BETAS if shape == "band" else (0.0,), indexing="ij")
    peak, alpha, beta = (axis.ravel()[:, None] / unit for axis, unit in zip(grid, (PIVOT, 1.0, 1.0), strict=True))
    x = np.log(energy / PIVOT)
    if shape == "cutoff":
        return np.exp(alpha * x - (2.0 + alpha) * np.exp(x) / peak)
    rate = (2.0 + alpha) / peak
    place = np.log((alpha - beta) / rate)
    above = beta * x + (alpha - beta) * (place - 1.0)
    return np.exp(np.where(x < place, alpha * x - rate * np.exp(x), above))


def _distance(stack, row: int, small: np.ndarray, large: np.ndarray) -> float:
    """Largest distance between two folds of the trials, each scaled to the counts above the background."""
    used = np.asarray(stack.used[row])
    counts = np.asarray(stack.counts[row])[used]
    behind = np.maximum(np.asarray(stack.background[row] / stack.ratio[row])[used], 0.0)
    net = max(counts.sum() - behind.sum(), np.sqrt(counts.sum() + 1.0))
    mu, nu = (net / large.sum(axis=1, keepdims=True) * expected for expected in (large, small))
    total = np.maximum(mu + behind, 1e-300)
    return float(np.sqrt(((nu - mu) ** 2 / total).sum(axis=1).max()))
