"""Folding of a model expression with few quadrature nodes, chosen for a given error of the log likelihood.

The error is measured on trial spectra that bracket the population, and bounded for other brightnesses.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from hbm_jax.precomputation import precomputed
from hbm_jax.spectra.folding.panels import Fold, fold_of, num_nodes_of, panel_edges
from hbm_jax.spectra.folding.reduced_basis import interpolated
from hbm_jax.spectra.model.composition import Component

Floats = NDArray[np.float64]
TOLERANCE = 3e-5  # largest change of the log likelihood of a spectrum
# From coarse to fine: error of a panel (`num_nodes_of`), its width, and the error due to a kink within a panel.
LEVELS = (
    *((1e-5, 0.3, 1e-4), (1e-6, 0.15, 1e-5), (1e-7, 0.15, 1e-6), (1e-8, 0.1, 3e-7), (1e-9, 0.1, 1e-7)),
    *((1e-9, 0.1, 1e-8), (1e-10, 0.1, 1e-9), (1e-11, 0.1, 0.0), (1e-13, 0.1, 0.0), (1e-15, 0.05, 0.0)),
)
# Nodes per panel and panel width, with a panel edge at every kink: the fold if no level is accurate enough, and the
# reference that measures its error.
_UNCOMPRESSED, _FINER = (6, 0.025), (8, 0.0125)
_LEVEL_FRACTION = 0.5  # of the tolerance, for the level; the rest is for choosing a subset of its nodes
RESOLUTIONS = np.array([1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7])  # tried for `interpolated`, in units of the tolerance
_STEP = 3e-4  # step in ln E of the second differences that measure the strength of a kink
_CHUNK = 512  # energies per compiled evaluation
Values = Mapping[str, ArrayLike]


class Compressed(NamedTuple):
    """Fold on few nodes with its measured error.

    Attributes
    ----------
    fold : Fold
        Nodes and matrix.
    error : float
        Largest change of the log likelihood over the trial spectra, each scaled to the total observed counts.
    relative : float
        Largest relative change of the total expected counts of the trial spectra.
    """

    fold: Fold
    error: float
    relative: float

    def bound(self, expected: ArrayLike, observed: float) -> Floats:
        """Return a bound on the change of the Poisson log likelihood of the trial spectra, scaled to any brightness.

        Parameters
        ----------
        expected : (...)
            Total expected counts to which the spectra are scaled.
        observed : float
            Total observed counts.

        Returns
        -------
        (...)
            ``error + observed relative^2 + abs(observed - expected) relative``. For expected counts M s_g in group g,
            with shape s_g and total M, and C observed counts in total, the log likelihood is
            sum_g C_g ln s_g + C ln M - M. The sum changes by at most ``error``, the rest by
            C ln(1 + relative) - M relative.
        """
        return self.error + observed * self.relative**2 + np.abs(observed - np.asarray(expected)) * self.relative


def compress(
    spectrum: Component,
    energy: ArrayLike,
    matrix: ArrayLike,
    counts: ArrayLike,
    *,
    trials: Values,
    draws: tuple[Values, Values] | None = None,
    tolerance: float = TOLERANCE,
) -> Compressed:
    """Return a fold with few nodes that preserves the log likelihood of a model expression within a tolerance.

    Parameters
    ----------
    spectrum : Component
        Model expression of one source.
    energy : (num_energies + 1,)
        Edges of the energy bins of the response [keV].
    matrix : (num_energies, num_groups)
        Response times exposure [cm^2 s].
    counts : (num_groups,)
        Observed counts, at least one in total.
    trials : mapping of str to (num_trials,) array
        Parameters of trial spectra, which bracket those for which the fold is used; their error is measured.
    draws : two mappings of str to array, optional
        Parameters of random spectra, from which a subset of the nodes is chosen and with which it is tested. By default
        all nodes of the level are kept.
    tolerance : float
        Largest allowed change of the log likelihood.

    Returns
    -------
    Compressed
        A subset of the nodes of the coarsest level within the tolerance. If no level is, the fold is not compressed: it
        has six nodes in each panel, with panels at most 2.5 % wide that end at every edge and kink.

    Notes
    -----
    The first step represents the spectrum by polynomials between its discontinuities (`fold_of`), and the second
    (`interpolated`) chooses a subset of their nodes. The error is measured on the trial spectra, each scaled to the
    total observed counts and compared with its uncompressed fold. If that is the result, its own error is measured
    against eight nodes in panels half as wide. ``Compressed.bound`` covers spectra of other brightness, and
    ``tests/spectra/test_compression.py`` tests random spectra.
    """
    trial_spectra = _Trials(spectrum.mapped(lambda part: part.in_double_precision()), energy, matrix, counts, trials)
    best = _coarsest_level(trial_spectra, _LEVEL_FRACTION * tolerance)
    if best is None:
        return trial_spectra.uncompressed_error()
    return best if draws is None else _subset_of_nodes(trial_spectra, best, draws, tolerance) or best


class _Trials:
    """Trial spectra folded with a response, and the errors of folds with few nodes relative to an uncompressed fold."""

    def __init__(self, spectrum, energy, matrix, counts, values):
        self.energy, self.matrix, self.counts = (np.asarray(array, float) for array in (energy, matrix, counts))
        self.spectrum, self.values = spectrum, values
        self.band = float(self.energy[0]), float(self.energy[-1])
        self.edges, self.kinks = spectrum.jumps(*self.band), spectrum.kinks(*self.band)
        self.strengths = _kink_strengths(spectrum, self.kinks, values)
        self.uncompressed, self.reference = self.folded(self.panels(_UNCOMPRESSED[1]), _UNCOMPRESSED[0])

    def panels(self, width: float, kink_error: float = 0.0) -> Floats:
        """Return panel edges at all absorption edges, and at the kinks whose error would exceed `kink_error`."""
        gap = np.sqrt(kink_error / self.strengths)
        kept = gap < width
        return panel_edges(*self.band, self.edges, self.kinks[kept], width=width, gap=gap[kept])

    def folded(self, panels: Floats, num_nodes: ArrayLike) -> tuple[Fold, Floats]:
        """Return the fold with these panels and nodes, and the expected counts of the trial spectra."""
        fold = fold_of(self.energy, self.matrix, panels, num_nodes)
        return fold, self.expected(fold)

    def expected(self, fold: Fold) -> Floats:
        """Return the expected counts of the trial spectra, (num_trials, num_groups)."""
        return spectra_at(self.spectrum, fold.energy, self.values) @ fold.matrix.T

    def at_level(self, level: int) -> Compressed:
        """Return the fold of a level with its error."""
        panel_error, width, kink_error = LEVELS[level]
        panels = self.panels(width, kink_error)
        return self.compared(*self.folded(panels, num_nodes_of(panels, panel_error)), self.reference)

    def uncompressed_error(self) -> Compressed:
        """Return the uncompressed fold with its error relative to a finer one."""
        _, finer = self.folded(self.panels(_FINER[1]), _FINER[0])
        return self.compared(self.uncompressed, self.reference, finer)

    def compared(self, fold: Fold, expected: Floats, reference: Floats) -> Compressed:
        """Return a fold with the error of its expected counts relative to a reference."""
        relative = expected.sum(axis=-1) / reference.sum(axis=-1) - 1.0
        return Compressed(fold, self.likelihood_change(expected, reference), float(np.max(np.abs(relative))))

    def likelihood_change(self, expected: Floats, reference: Floats) -> float:
        """Return the largest change of the log likelihood between two sets of expected counts."""
        change = np.abs(_shape_likelihood(self.counts, expected) - _shape_likelihood(self.counts, reference))
        return float(np.max(change)) if (expected[reference > 0] > 0).all() else np.inf  # weights may be negative


def _coarsest_level(trials: _Trials, tolerance: float) -> Compressed | None:
    """Return the fold of the coarsest level within the tolerance by bisection, as errors decrease with the level."""
    best, coarser, finer = None, -1, len(LEVELS)
    while finer - coarser > 1:
        middle = (coarser + finer) // 2
        candidate = trials.at_level(middle)
        if candidate.error <= tolerance:
            best, finer = candidate, middle
        else:
            coarser = middle
    return best


def _subset_of_nodes(trials: _Trials, level: Compressed, draws, tolerance: float) -> Compressed | None:
    """Return the fold on the smallest subset of nodes within the tolerance, or None if it saves less than 30 %."""
    drawn = (spectra_at(trials.spectrum, level.fold.energy, values) for values in draws)
    training, test = (spectra / (spectra @ level.fold.matrix.T).sum(axis=1, keepdims=True) for spectra in drawn)
    exact_counts, max_nodes = test @ level.fold.matrix.T, 0.7 * len(level.fold.energy)
    for resolution in tolerance * RESOLUTIONS:
        fold = interpolated(level.fold, training, resolution)
        if len(fold.energy) > max_nodes:
            return None
        compressed = trials.compared(fold, trials.expected(fold), trials.reference)
        counts = test[:, np.isin(level.fold.energy, fold.energy)] @ fold.matrix.T
        error = max(compressed.error, level.error + trials.likelihood_change(counts, exact_counts))
        if error <= tolerance:
            relative = float(np.max(np.abs(counts.sum(axis=1) / exact_counts.sum(axis=1) - 1.0)))
            return compressed._replace(error=error, relative=max(compressed.relative, level.relative + relative))
    return None


def _kink_strengths(spectrum: Component, kinks: Floats, values: Values) -> Floats:
    """Return the largest change of slope in ln E of the transmission at each kink, over the trial spectra."""
    if not len(kinks):
        return kinks
    energy = kinks * np.exp(_STEP * np.array([-1.0, 0.0, 1.0]))[:, None]
    absorbed, unabsorbed = (spectra_at(part, energy.ravel(), values) for part in (spectrum, spectrum.unabsorbed))
    below, transmission, above = np.moveaxis((absorbed / unabsorbed).reshape(-1, *energy.shape), 1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):  # where nothing is transmitted
        change = np.abs(np.log(below * above / transmission**2)) * transmission / _STEP
    return np.maximum(np.max(np.nan_to_num(change), axis=0), 1e-12)


def spectra_at(spectrum: Component, energy: Floats, values: Values) -> Floats:
    """Return a spectrum at known energies (num_energies,) and parameters (num,) in double precision."""
    chunks = np.pad(energy, (0, -len(energy) % _CHUNK), mode="edge").reshape(-1, _CHUNK)
    parameters = {name: np.asarray(values[name], float) for name in spectrum.parameters}
    parts = precomputed(lambda: [np.asarray(_evaluate(spectrum.on(chunk), parameters)) for chunk in chunks])
    return np.concatenate(parts, axis=-1)[:, : len(energy)]


# Compiled once for all spectra that differ in their tables alone.
_evaluate = jax.jit(lambda density, values: density(values))


def _shape_likelihood(counts: Floats, expected: Floats) -> Floats:
    """Return the Poisson log likelihood, up to a constant, of spectra scaled to the total observed counts."""
    observed = counts > 0
    return np.log(expected[:, observed] / expected.sum(axis=-1, keepdims=True)) @ counts[observed]
