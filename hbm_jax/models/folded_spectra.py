"""Spectra ready to be compared with one composed spectrum: nodes, folds and tables, worked out once, error measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.spectra.components import Component
from hbm_jax.spectra.folding import Fold, fold_of, panel_edges
from hbm_jax.spectra.likelihood import Statistic
from hbm_jax.spectra.stack import SpectrumStack
from hbm_jax.working_out import worked_out

TOLERANCE = 1e-3  # of the log likelihood of a spectrum
# Nodes of a panel and its width in ln E, from coarse to fine. The last ones are for features whose energy is free.
LEVELS = ((4, 0.05), (5, 0.03), (4, 0.02), (5, 0.01), (5, 0.005))
REFERENCE = (6, 0.5)  # nodes, and width relative to that of the level
FEATURES = 2  # level to begin with where a feature's energy is free


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class FoldedSpectra:
    """N spectra in at most G groups, folded by K nodes; a pytree.

    Attributes
    ----------
    statistic : Statistic
        Of all spectra, with the data.
    density : callable
        Parameter values -> photons/cm^2/s/keV at the nodes, (N, K); `Component.on` them.
    matrix : (N, G, K)
        From those to expected counts.
    errors : (N,)
        Largest change of the log likelihood by the choice of nodes, over the trial parameters.
    """

    statistic: Statistic
    density: Any
    matrix: Any
    errors: Any

    @classmethod
    def of(
        cls,
        spectrum: Component,
        data: SpectrumStack,
        statistic: str | None,
        trials: Mapping[str, np.ndarray],
        *,
        features: bool = False,
        tolerance: float = TOLERANCE,
    ) -> "FoldedSpectra":
        """Work everything out.

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
        features : bool
            Whether the energy of a feature is a parameter, so that no panel can end there.
        tolerance : float
            Largest change of a log likelihood; the finest level is taken where none keeps it.
        """
        folds, errors = [], []
        done: dict[Any, np.ndarray] = {}
        for row in range(len(data)):
            energy, response = data.grouped_response(row)
            one = spectrum.of_source(row)
            counts = np.asarray(data.counts[row])[: response.shape[1]]
            start = FEATURES if features else 0
            fold, error = _fine_enough(one, energy, response, counts, trials, start, tolerance, done)
            folds.append(fold)
            errors.append(error)
        num_nodes, num_groups = max(len(f.energy) for f in folds), np.shape(data.counts)[1]
        matrix = np.zeros((len(folds), num_groups, num_nodes))
        for place, fold in enumerate(folds):
            matrix[place, : fold.matrix.shape[0], : fold.matrix.shape[1]] = fold.matrix
        energy = np.stack([np.pad(f.energy, (0, num_nodes - len(f.energy)), mode="edge") for f in folds])
        return cls(
            statistic=data.statistic(statistic),
            density=spectrum.on(energy),
            matrix=matrix,
            errors=np.array(errors),
        )

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
        density = self.density(values)
        density = density if factor is None else density * factor[:, None]
        return jnp.einsum("ngk,nk->ng", jnp.asarray(self.matrix, density.dtype), density)


def _fine_enough(spectrum, energy, response, counts, trials, start, tolerance, done) -> tuple[Fold, float]:
    """Coarsest fold that keeps the log likelihood, and its error; ``done`` holds what is known of earlier spectra."""
    for level in LEVELS[start:]:
        fold, small = _fold(spectrum, energy, response, level, done, trials)
        finer = REFERENCE[0], REFERENCE[1] * level[1]
        _, reference = _fold(spectrum, energy, response, finer, done, trials)
        usable = np.isfinite(reference).all(axis=1) & (reference > 0).all(axis=1) & np.isfinite(small).all(axis=1)
        change = _shape_likelihood(counts, small[usable]) - _shape_likelihood(counts, reference[usable])
        error = float(np.max(np.abs(change), initial=0.0)) if (small[usable] > 0).all() else np.inf
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
        done[key] = worked_out(lambda: np.asarray(jax.jit(spectrum.on(fold.energy))(trials)))
    return fold, done[key] @ fold.matrix.T


def _shape_likelihood(counts, expected) -> np.ndarray:
    """Poisson log likelihood of spectra that are scaled to the observed counts, but for a constant."""
    some = counts > 0
    return np.log(expected[:, some] / expected.sum(axis=-1, keepdims=True)) @ counts[some]
