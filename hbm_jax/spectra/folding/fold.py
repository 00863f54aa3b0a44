"""Folding of model expressions through responses on few quadrature nodes, with a measured error.

The error is measured on trial spectra, for which the fold must be right. Where it is above the tolerance, the nodes are
refined.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from hbm_jax.precomputation import precomputed
from hbm_jax.spectra.folding.panels import Fold, fold_on_panels, num_nodes_of, panel_edges
from hbm_jax.spectra.folding.reduced_basis import interpolated
from hbm_jax.spectra.model.composition import Component

Floats = NDArray[np.float64]
# From coarse to fine: error of a panel (`num_nodes_of`), its width, and the error due to a kink within a panel.
LEVELS = (
    *((1e-2, 0.8, 1e-3), (6e-4, 0.6, 1e-3), (5e-5, 0.45, 1e-3), (5e-6, 0.35, 3e-4)),
    *((1e-5, 0.3, 1e-4), (1e-6, 0.15, 1e-5), (1e-7, 0.15, 1e-6), (1e-8, 0.1, 3e-7), (1e-9, 0.1, 1e-7)),
    *((1e-9, 0.1, 1e-8), (1e-10, 0.1, 1e-9), (1e-11, 0.1, 0.0), (1e-13, 0.1, 0.0), (1e-15, 0.05, 0.0)),
)
# Nodes per panel and panel width, with a panel edge at every kink: the fold if no level is accurate enough, and the
# reference that measures its error.
_UNCOMPRESSED, _FINER = (6, 0.025), (8, 0.0125)
# Nodes per panel and panel width where a feature has a free energy, so that panels cannot be cut there. The reference
# has six nodes in panels half as wide.
_FEATURES = ((4, 0.02), (5, 0.01), (5, 0.005))
_LEVEL_FRACTION = 0.5  # of the tolerance, for the level; the rest is for choosing a subset of its nodes
RESOLUTIONS = np.array([1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7])  # tried for `interpolated`, in units of the tolerance
_STEP = 3e-4  # step in ln E of the second differences that measure the strength of a kink
_CHUNK = 512  # energies per compiled evaluation
Values = Mapping[str, ArrayLike]


class Folded(NamedTuple):
    """Response on quadrature nodes, with the measured error.

    Attributes
    ----------
    nodes : Fold
        Nodes and matrix.
    errors : (num_spectra,)
        Largest error of each spectrum over the trial spectra; inf where expected counts on the nodes are not positive.
    relative : float
        Largest relative change of the total expected counts of the trial spectra.
    """

    nodes: Fold
    errors: Floats
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
            ``errors + observed relative^2 + abs(observed - expected) relative``. For expected counts M s_g in group g,
            with shape s_g and total M, and C observed counts in total, the log likelihood is
            sum_g C_g ln s_g + C ln M - M. The sum changes by at most ``errors``, the rest by
            C ln(1 + relative) - M relative.
        """
        return self.errors.max() + observed * self.relative**2 + np.abs(observed - np.asarray(expected)) * self.relative


def fold(
    spectrum: Component,
    energy: ArrayLike,
    matrix: ArrayLike,
    counts: ArrayLike,
    values: Values,
    *,
    tolerance: float,
    background: ArrayLike | None = None,
    draws: tuple[Values, Values] | None = None,
) -> Folded:
    """Fold a model expression through a response on as few nodes as the error of the counts allows.

    Parameters
    ----------
    spectrum : Component
        Model expression of one source, without lines; they are folded on all energy bins.
    energy : (num_energies + 1,)
        Edges of the energy bins of the response [keV].
    matrix : (num_energies, num_groups)
        Response, up to a constant factor.
    counts : (num_groups,) or (num_spectra, num_groups)
        Observed counts of the spectra with this response.
    values : mapping of str to (num_trials,) array
        Parameters of trial spectra, for which the fold must be right. Trial spectra that are invalid, or without counts
        in some group, are ignored.
    tolerance : float
        Largest allowed error of each spectrum.
    background : (num_spectra, num_groups), optional
        Expected background counts. With it the error is that of the expected counts in standard deviations of the data
        (`deviation`); without it the change of the log likelihood (`likelihood_change`).
    draws : two mappings of str to array, optional
        Parameters of random spectra, from which a subset of the nodes is chosen and with which it is tested. By default
        all nodes of the level are kept.

    Returns
    -------
    Folded
        The nodes of the coarsest level within the tolerance, or a subset. If no level is, six nodes in each panel, with
        panels at most 2.5 % wide that end at every edge and kink. If a feature has a free energy, the panels are
        narrower, at the narrowest 0.5 %, and the fold with the smallest error is returned.

    Notes
    -----
    The first step represents the spectrum by polynomials between its discontinuities (`fold_on_panels`), and the second
    (`interpolated`) chooses a subset of their nodes. The error is measured on the trial spectra, each scaled to the
    observed counts and compared with its uncompressed fold. If that is the result, its own error is measured against
    eight nodes in panels half as wide. ``Folded.bound`` covers spectra of other brightness, and
    ``tests/spectra/test_compression.py`` tests random spectra.
    """
    precise = spectrum.mapped(lambda part: part.in_double_precision())
    trials = _Trials(precise, energy, matrix, counts, background, values)
    if has_free_features(spectrum):
        return trials.narrow_panels(tolerance)
    trials.uncompressed, trials.reference = trials.folded(trials.panels(_UNCOMPRESSED[1]), _UNCOMPRESSED[0])
    best = _coarsest_level(trials, tolerance if draws is None else _LEVEL_FRACTION * tolerance)
    if best is None:
        return trials.uncompressed_error()
    return best if draws is None else _subset_of_nodes(trials, best, draws, tolerance) or best


def has_free_features(spectrum: Component) -> bool:
    """Return whether a break, line or edge has a free energy or redshift, so that panels cannot be cut there."""
    parts = getattr(spectrum, "parts", None)
    if parts is not None:
        return any(has_free_features(part) for part in parts)
    return any(name == "z" or name.startswith("energy") for name in spectrum.own_parameters)


def likelihood_change(counts: Floats, expected: Floats, reference: Floats) -> Floats:
    """Return the change of the Poisson log likelihood of spectra scaled to the total observed counts, (num_trials,)."""
    observed = counts > 0
    scale = expected.sum(axis=-1) / reference.sum(axis=-1)
    with np.errstate(invalid="ignore"):  # the caller handles negative expected counts
        return np.log(expected[:, observed] / reference[:, observed] / scale[:, None]) @ counts[observed]


def deviation(counts: Floats, background: Floats, expected: Floats, reference: Floats) -> Floats:
    """Return the error of expected counts in standard deviations of the data, (num_trials,).

    It is the square root of the sum of (difference from the reference)^2 / (expected counts with background), with
    spectra scaled to the observed net counts, and bounds the shift of any fitted parameter in units of its error.
    """
    net = max(counts.sum() - background.sum(), np.sqrt(counts.sum() + 1.0))
    scale = net / reference.sum(axis=-1, keepdims=True)
    total = np.maximum(scale * reference + background, 1e-300)
    return np.sqrt(((scale * (expected - reference)) ** 2 / total).sum(axis=1))


class _Trials:
    """Trial spectra folded with a response, and the errors of folds with few nodes relative to an uncompressed fold."""

    uncompressed: Fold
    reference: Floats

    def __init__(self, spectrum, energy, matrix, counts, background, values):
        self.energy, self.matrix = np.asarray(energy, float), np.asarray(matrix, float)
        self.counts = np.atleast_2d(np.asarray(counts, float))
        self.background = None if background is None else np.asarray(background, float)
        self.sensitive = self.matrix.any(axis=0)  # other groups have no expected counts for any spectrum
        self.spectrum, self.values = spectrum, values
        self.band = float(self.energy[0]), float(self.energy[-1])
        self.edges, self.kinks = spectrum.discontinuities(*self.band), spectrum.slope_discontinuities(*self.band)
        self.strengths = _kink_strengths(spectrum, self.kinks, values)

    def panels(self, width: float, kink_error: float = 0.0) -> Floats:
        """Return panel edges at all absorption edges, and at the kinks whose error would exceed `kink_error`."""
        gap = np.sqrt(kink_error / self.strengths)
        kept = gap < width
        return panel_edges(*self.band, self.edges, self.kinks[kept], width=width, gap=gap[kept])

    def folded(self, panels: Floats, num_nodes: ArrayLike) -> tuple[Fold, Floats]:
        """Return the fold with these panels and nodes, and the expected counts of the trial spectra."""
        fold = fold_on_panels(self.energy, self.matrix, panels, num_nodes)
        return fold, self.expected(fold)

    def expected(self, fold: Fold) -> Floats:
        """Return the expected counts of the trial spectra, (num_trials, num_groups)."""
        return spectra_at(self.spectrum, fold.energy, self.values) @ fold.matrix.T

    def at_level(self, level: int) -> Folded:
        """Return the fold of a level with its error."""
        panel_error, width, kink_error = LEVELS[level]
        panels = self.panels(width, kink_error)
        return self.compared(*self.folded(panels, num_nodes_of(panels, panel_error)), self.reference)

    def narrow_panels(self, tolerance: float) -> Folded:
        """Return the fold with the widest of narrow panels within the tolerance, or that of the smallest error."""
        candidates = []
        for num_nodes, width in _FEATURES:
            _, reference = self.folded(self.panels(0.5 * width), _UNCOMPRESSED[0])
            candidates.append(self.compared(*self.folded(self.panels(width), num_nodes), reference))
            if candidates[-1].errors.max() <= tolerance:
                break
        return min(candidates, key=lambda candidate: candidate.errors.max())

    def uncompressed_error(self) -> Folded:
        """Return the uncompressed fold with its error relative to a finer one."""
        _, finer = self.folded(self.panels(_FINER[1]), _FINER[0])
        return self.compared(self.uncompressed, self.reference, finer)

    def compared(self, fold: Fold, expected: Floats, reference: Floats) -> Folded:
        """Return a fold with the errors of its expected counts relative to a reference."""
        with np.errstate(invalid="ignore", divide="ignore"):
            relative = np.abs(expected.sum(axis=-1) / reference.sum(axis=-1) - 1.0)
        return Folded(fold, self.errors(expected, reference), float(np.nanmax(relative, initial=0.0)))

    def errors(self, expected: Floats, reference: Floats) -> Floats:
        """Return the largest error of each spectrum over the valid trial spectra, (num_spectra,)."""
        expected, reference = expected[:, self.sensitive], reference[:, self.sensitive]
        valid = np.isfinite(reference).all(axis=1) & np.isfinite(expected).all(axis=1)
        counts = self.counts[:, self.sensitive]
        if self.background is None:
            valid &= (reference > 0).all(axis=1)
        # Weights may be negative, and a logarithm needs positive counts.
        if not valid.any() or (self.background is None and not (expected[valid] > 0).all()):
            return np.full(len(counts), np.inf)
        if self.background is not None:
            both = zip(counts, self.background[:, self.sensitive], strict=True)
            return np.array([deviation(*one, expected[valid], reference[valid]).max() for one in both])
        changes = (likelihood_change(one, expected[valid], reference[valid]) for one in counts)
        return np.array([np.abs(change).max() for change in changes])


def _coarsest_level(trials: _Trials, tolerance: float) -> Folded | None:
    """Return the fold of the coarsest level within the tolerance by bisection, as errors decrease with the level."""
    best, coarser, finer = None, -1, len(LEVELS)
    while finer - coarser > 1:
        middle = (coarser + finer) // 2
        candidate = trials.at_level(middle)
        if candidate.errors.max() <= tolerance:
            best, finer = candidate, middle
        else:
            coarser = middle
    return best


def _subset_of_nodes(trials: _Trials, level: Folded, draws, tolerance: float) -> Folded | None:
    """Return the fold on the smallest subset of nodes within the tolerance, or None if it saves less than 30 %."""
    densities = _densities(trials.spectrum, level.nodes.energy)
    at_nodes, *drawn = (_values_at(densities, trials.spectrum, values) for values in (trials.values, *draws))
    at_nodes, *drawn = (spectra[:, : len(level.nodes.energy)] for spectra in (at_nodes, *drawn))
    training, test = (spectra / (spectra @ level.nodes.matrix.T).sum(axis=1, keepdims=True) for spectra in drawn)
    exact_counts, max_nodes = test @ level.nodes.matrix.T, 0.7 * len(level.nodes.energy)
    for subset in interpolated(level.nodes, training, tolerance * RESOLUTIONS):
        if len(subset.energy) > max_nodes:
            return None
        kept = np.isin(level.nodes.energy, subset.energy)
        folded = trials.compared(subset, at_nodes[:, kept] @ subset.matrix.T, trials.reference)
        counts = test[:, kept] @ subset.matrix.T
        errors = np.maximum(folded.errors, level.errors + trials.errors(counts, exact_counts))
        if errors.max() <= tolerance:
            relative = float(np.max(np.abs(counts.sum(axis=1) / exact_counts.sum(axis=1) - 1.0)))
            return folded._replace(errors=errors, relative=max(folded.relative, level.relative + relative))
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
    return _values_at(_densities(spectrum, energy), spectrum, values)[:, : len(energy)]


def _densities(spectrum: Component, energy: Floats) -> list:
    """Return the spectrum at chunks of energies, as functions of its parameters; the last chunk is padded."""
    chunks = np.pad(energy, (0, -len(energy) % _CHUNK), mode="edge").reshape(-1, _CHUNK)
    return [spectrum.on(chunk) for chunk in chunks]


def _values_at(densities: list, spectrum: Component, values: Values) -> Floats:
    """Return the values of a spectrum at chunks of energies, for parameters (num,)."""
    parameters = {name: np.asarray(values[name], float) for name in spectrum.parameters}
    parts = precomputed(lambda: [np.asarray(_evaluate(density, parameters)) for density in densities])
    return np.concatenate(parts, axis=-1)


# Compiled once for all spectra that differ in their tables alone.
_evaluate = jax.jit(lambda density, values: density(values))
