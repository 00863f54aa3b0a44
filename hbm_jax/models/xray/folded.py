"""Spectra ready to be compared with one composed spectrum: nodes, folds and tables, precomputed; error measured."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.precomputation import precomputed
from hbm_jax.spectra.folding.panels import Fold, fold_of, panel_edges
from hbm_jax.spectra.model.components import Component
from hbm_jax.spectra.model.composition import Line, separated
from hbm_jax.spectra.model.lines import in_bins
from hbm_jax.spectra.stack import SpectrumStack
from hbm_jax.spectra.statistics.joint import AnyStatistic

TOLERANCE = 1e-3  # of the log likelihood of a spectrum
# Nodes of a panel and its width in ln E, from coarse to fine. The last ones are for features whose energy is free.
LEVELS = ((4, 0.05), (5, 0.03), (4, 0.02), (5, 0.01), (5, 0.005))
REFERENCE = (6, 0.5)  # nodes, and width relative to that of the level
FEATURES = 2  # level to begin with where a feature's energy is free


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class FoldedSpectra:
    """N spectra in at most G groups, folded by K nodes, and lines on the E bins of their responses; a pytree.

    Attributes
    ----------
    statistic : Statistic or JointStatistic
        Of all spectra, with the data.
    density : callable or None
        Parameter values -> photons/cm^2/s/keV at the nodes, (N, K); `Component.on` them. None for lines alone.
    matrix : (N, G, K)
        From those to expected counts.
    lines : tuple of callable
        Parameter values -> photons/cm^2/s of each line in the bins, (N, E).
    line_matrix : (N, G, E) or None
        From those to expected counts; None without lines.
    errors : (N,)
        Largest change of the log likelihood by the choice of nodes, over the trial parameters; inf where a fold
        expects less than nothing.
    """

    statistic: AnyStatistic
    density: Any
    matrix: Any
    lines: tuple[Any, ...]
    line_matrix: Any
    errors: Any

    @classmethod
    def of(
        cls,
        spectrum: Component,
        data: SpectrumStack,
        statistic: str | None,
        trials: Mapping[str, np.ndarray],
        *,
        tolerance: float = TOLERANCE,
    ) -> "FoldedSpectra":
        """Precompute everything.

        Parameters
        ----------
        spectrum : Component
            Additive.
        data : SpectrumStack
            The data.
        statistic : str, optional
            As in `SpectrumStack.statistic`.
        trials : dict of str to (num_trials,) array
            Parameters at which the error is measured, each scaled to the observed counts.
        tolerance : float
            Largest change of a log likelihood; the finest level is taken where none keeps it.
        """
        responses = [data.grouped_response(row) for row in range(len(data))]
        smooth, lines = separated(spectrum)
        of_lines, line_matrix = _on_bins(lines, responses, np.shape(data.counts)[1])
        prepared = data.statistic(statistic)
        if smooth is None:
            empty = np.zeros((*np.shape(data.counts), 0))
            return cls(prepared, None, empty, of_lines, line_matrix, np.zeros(len(data)))
        folds, errors = [], []
        done: dict[Any, np.ndarray] = {}
        start = FEATURES if has_free_features(smooth) else 0
        for row, (energy, response) in enumerate(responses):
            one = smooth.of_source(row)
            counts = np.asarray(data.counts[row])[: response.shape[1]]
            fold, error = _fine_enough(one, energy, response, counts, trials, start, tolerance, done)
            folds.append(fold)
            errors.append(error)
        num_nodes, num_groups = max(len(f.energy) for f in folds), np.shape(data.counts)[1]
        matrix = np.zeros((len(folds), num_groups, num_nodes))
        for place, fold in enumerate(folds):
            matrix[place, : fold.matrix.shape[0], : fold.matrix.shape[1]] = fold.matrix
        energy = np.stack([np.pad(f.energy, (0, num_nodes - len(f.energy)), mode="edge") for f in folds])
        return cls(prepared, smooth.on(energy), matrix, of_lines, line_matrix, np.array(errors))

    def expected(self, values: Mapping[str, Any], factor: Any = None) -> jax.Array:
        """Fold: expected counts of the source alone.

        Parameters
        ----------
        values : mapping of str to () or (N,) array
            Parameters of the spectrum.
        factor : (N,), optional
            What each spectrum is multiplied by.

        Returns
        -------
        (N, G)
        """
        parts = [] if self.density is None else [(self.matrix, self.density(values))]
        parts += [(self.line_matrix, line(values)) for line in self.lines]
        folded = (jnp.einsum("ngk,nk->ng", jnp.asarray(matrix, flux.dtype), flux) for matrix, flux in parts)
        total = functools.reduce(jnp.add, folded)
        return total if factor is None else total * factor[:, None]


def _on_bins(lines: tuple[Line, ...], responses, num_groups: int) -> tuple[tuple[Any, ...], np.ndarray | None]:
    """Lines on the bins of all responses, padded to the longest with its last bin, which nothing is counted from."""
    if not lines:
        return (), None
    num_bins = max(len(energy) - 1 for energy, _ in responses)
    matrix = np.zeros((len(responses), num_groups, num_bins))
    for row, (_, response) in enumerate(responses):
        matrix[row, : response.shape[1], : response.shape[0]] = response.T
    low, high = (
        np.stack([np.pad(e, (0, num_bins - len(e)), mode="edge") for e in ends])
        for ends in zip(*((energy[:-1], energy[1:]) for energy, _ in responses), strict=True)
    )
    return tuple(in_bins(line, low, high) for line in lines), matrix


def has_free_features(spectrum: Component) -> bool:
    """Whether the energy of a feature is a parameter, so that no panel can end there."""
    parts = getattr(spectrum, "parts", None)
    if parts is not None:
        return any(has_free_features(part) for part in parts)
    return any(name == "z" or name.startswith("energy") for name in spectrum.own_parameters)


def _fine_enough(spectrum, energy, response, counts, trials, start, tolerance, done) -> tuple[Fold, float]:
    """Coarsest fold that keeps the log likelihood, and its error; ``done`` holds what is known of earlier spectra."""
    answering = response.any(axis=0)  # groups without response expect nothing of any spectrum
    for level in LEVELS[start:]:
        fold, small = _fold(spectrum, energy, response, level, done, trials)
        finer = REFERENCE[0], REFERENCE[1] * level[1]
        _, reference = _fold(spectrum, energy, response, finer, done, trials)
        small, reference = small[:, answering], reference[:, answering]
        usable = np.isfinite(reference).all(axis=1) & (reference > 0).all(axis=1) & np.isfinite(small).all(axis=1)
        change = _likelihood_change(counts[answering], small[usable], reference[usable])
        error = float(np.max(np.abs(change), initial=0.0)) if usable.any() and (small[usable] > 0).all() else np.inf
        if error <= tolerance:
            break
    return fold, error


def _fold(spectrum, energy, response, level, done, trials) -> tuple[Fold, np.ndarray]:
    """Fold of a level, and expected counts of the trials, (num_trials, num_groups)."""
    low, high = float(energy[0]), float(energy[-1])
    panels = panel_edges(low, high, spectrum.jumps(low, high), spectrum.kinks(low, high), width=level[1])
    fold = fold_of(energy, response, panels, level[0])
    # Spectra of one instrument have the same nodes.
    key = spectrum, fold.energy.tobytes()
    if key not in done:
        done[key] = precomputed(lambda: np.asarray(jax.jit(spectrum.on(fold.energy))(trials)))
    return fold, done[key] @ fold.matrix.T


def _likelihood_change(counts, expected, reference) -> np.ndarray:
    """Change of the Poisson log likelihood of spectra that are scaled to the observed counts."""
    some, total = counts > 0, expected.sum(axis=-1) / reference.sum(axis=-1)
    with np.errstate(invalid="ignore"):  # less than nothing is expected: the caller sees that
        return np.log(expected[:, some] / reference[:, some] / total[:, None]) @ counts[some]
