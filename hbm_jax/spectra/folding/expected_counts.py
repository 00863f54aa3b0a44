"""Expected counts of a model expression in several spectra, folded on quadrature nodes or exactly on energy bins."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from scipy import sparse

from hbm_jax.precomputation import on_every_core
from hbm_jax.spectra.folding.banded import BandedResponse, is_large
from hbm_jax.spectra.folding.fold import Folded, fold
from hbm_jax.spectra.folding.panels import Fold
from hbm_jax.spectra.model.composition import Component, Line, split_terms
from hbm_jax.spectra.model.photons import exact_terms
from hbm_jax.spectra.model.quadrature import LINE_WIDTH, integrals, padded_edges, pieces

NUM_BLOCKS = 8  # blocks of groups for a population; for a few spectra they would double the compile time
_MANY_GROUPS = 8192  # groups of a response that is always divided into blocks
_PADDING = 1e-4  # width in ln E of padding bins, if the spectrum is averaged over bins


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ExpectedCounts:
    """Expected counts of spectra with N responses to at most G groups, as a function of the parameters; a pytree.

    Each response folds one spectrum, or S spectra of parameters (N, S).

    Attributes
    ----------
    density : callable or None
        Maps parameter values to photons/cm^2/s/keV at K quadrature nodes, (N, K) or (N, S, K). None if the whole
        spectrum is folded exactly, or if ``photons`` includes those of the smooth part.
    blocks : tuple of (N, G_b, K - first_b)
        Matrices from the density at the nodes to expected counts, one for each block of groups. Nodes of low energy to
        which no group of a block responds are left out. This removes more than half of the elements, because photons
        are not counted far above their energy and most nodes have low energies.
    photons : callable or None
        Maps parameter values to photons/cm^2/s in energy bins, (N, E) or (N, S, E), of the components that are folded
        exactly; None without such parts. With lines and large responses, those of the smooth part are added, from its
        density at quadrature nodes: the response is then multiplied once. With free redshifts, the mean density in the
        bins [photons/cm^2/s/keV].
    response : BandedResponse or None
        Maps photons in the bins to expected counts.
    errors : (N,), or (number of spectra,)
        Error of each spectrum, the largest over the trial spectra; see `hbm_jax.spectra.fold`.
    first : tuple of int
        First node of each block.
    """

    density: Any
    blocks: Any
    photons: Any
    response: BandedResponse | None
    errors: Any
    first: tuple[int, ...] = field(default=(), metadata={"static": True})

    @classmethod
    def of(
        cls,
        spectrum: Component,
        responses: Sequence[tuple[Any, Any]],
        counts: Sequence[Any],
        trials: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        tolerance: float,
        trial_spectrum: Component | None = None,
        backgrounds: Sequence[Any] | None = None,
        draws: Any = None,
        num_groups: int | None = None,
        num_blocks: int = 1,
        num_together: int | None = None,
    ) -> "ExpectedCounts":
        """Fold a model expression through each response.

        Parameters
        ----------
        spectrum : Component
            Additive model expression, for one source or for as many sources as responses. Lines, and other components
            that may be narrower than the bins, are folded exactly.
        responses, backgrounds, draws
            Pairs (energy, matrix), expected background counts of each response, and random spectra, as in `fold`.
        counts : sequence of (num_groups,) or (num_spectra, num_groups) arrays
            Observed counts. With two axes, each response folds several spectra, and parameter values are (N, S).
        trials : mapping of str to (num_trials,) array
            Parameters of the trial spectra, for which the fold must be accurate; or one such mapping for each response.
        tolerance : float
            Largest error. If the nodes of a spectrum exceed it, all spectra are folded on all energy bins, unless that
            is less accurate.
        trial_spectrum : Component, optional
            Expression of the trial spectra, if it has other parameters.
        num_groups, num_blocks : int
            G, by default the largest number of groups of a response, and the number of blocks of groups on nodes.
        num_together : int, optional
            Number of responses that are multiplied together, by default all: the others belong to other data sets.
        """
        num_groups, shared = num_groups or max(matrix.shape[1] for _, matrix in responses), np.ndim(counts[0]) == 2
        if num_groups > _MANY_GROUPS:
            num_blocks = max(num_blocks, NUM_BLOCKS)
        smooth, lines = split_terms(spectrum)
        smooth_trial, _ = split_terms(spectrum if trial_spectrum is None else trial_spectrum)
        # Instruments of a kind have the same energies: the photons of their trial spectra are computed once.
        same_trials = (
            isinstance(trials, Mapping) and smooth_trial is not None and smooth_trial.of_source(0) == smooth_trial
        )
        cache: dict | None = {} if same_trials else None

        def folded(row, tolerance=tolerance):
            """Fold the smooth part of the spectrum through one response."""
            background = None if backgrounds is None else backgrounds[row]
            # `folded` is called only if the spectrum has a smooth part.
            (energy, matrix), source = responses[row], smooth_trial.of_source(row)  # type: ignore[union-attr]
            options = {"tolerance": tolerance, "background": background, "draws": draws, "cache": cache}
            values = trials if isinstance(trials, Mapping) else trials[row]
            return fold(source, energy, matrix, counts[row], values, **options)

        folds = [] if smooth is None else _with_exact_errors(folded, len(responses))
        errors = np.concatenate([f.errors for f in folds] or [np.zeros(len(np.atleast_2d(c))) for c in counts])
        if folds and folds[0].exact_errors is not None:
            exact_errors = np.concatenate([f.exact_errors for f in folds])
            if exact_errors.max() < errors.max():
                folds, errors, lines = [], exact_errors, ()
        expected = cls(None, (), None, None, errors)
        large = is_large(num_together or len(responses), max(len(energy) - 1 for energy, _ in responses), num_groups)
        if lines and large and folds and all(f.in_bins is not None for f in folds):
            # One product with a large response, instead of one for the lines and one for the nodes.
            photons, response = _in_bins(spectrum, lines, responses, num_groups, shared, large, (smooth, folds))
            return replace(expected, photons=photons, response=response)
        if folds and smooth is not None:
            nodes = [f.nodes for f in folds]
            expected = replace(cls.on_nodes(smooth, nodes, num_groups, num_blocks, shared), errors=errors)
        if lines or not folds:
            exact_lines = lines if folds or smooth is None else None  # None: fold the whole spectrum in bins
            photons, response = _in_bins(spectrum, exact_lines, responses, num_groups, shared, large)
            expected = replace(expected, photons=photons, response=response)
        return expected

    @classmethod
    def on_nodes(
        cls, spectrum: Component, folds: Sequence[Fold], num_groups: int, num_blocks: int = 1, shared: bool = False
    ) -> "ExpectedCounts":
        """Stack responses on nodes, and precompute the tables of an expression without lines.

        The field ``errors`` is 0. With ``shared`` each response folds several spectra, with parameter values (N, S).
        """
        energy = _padded_nodes(folds)
        num_nodes = energy.shape[1]
        matrix = np.zeros((len(folds), num_groups, num_nodes))
        for row, f in enumerate(folds):
            matrix[row, : f.matrix.shape[0], num_nodes - f.matrix.shape[1] :] = f.matrix
        blocks, first = _in_blocks(matrix, num_blocks)
        density = spectrum.on(energy[:, None] if shared else energy)
        return cls(density, blocks, None, None, np.zeros(len(folds)), first)

    @classmethod
    def averaged(cls, spectrum: Component, responses: Sequence[tuple[Any, Any]], num_groups: int) -> "ExpectedCounts":
        """Fold an expression with free redshifts on all energy bins; errors are not measured and are set to 0.

        The expression is averaged over the bins (`Component.averaged`). The photons of lines are exact, and multiplied
        by the mean transmission of the bin.
        """
        edges = padded_edges([np.asarray(energy, float) for energy, _ in responses], _PADDING)
        smooth, lines = split_terms(spectrum)
        average = None if smooth is None else smooth.averaged(edges)
        in_bins = tuple(
            (integrals(None, [Line(line, None)], edges), None if factor is None else factor.averaged(edges))
            for line, factor in lines
        )
        photons = Partial(_averaged, average, in_bins, np.diff(edges))
        matrices = [sparse.csr_matrix(sparse.diags(np.diff(energy)) @ matrix) for energy, matrix in responses]
        response = BandedResponse.of(matrices, edges.shape[1] - 1, num_groups)
        return cls(None, (), photons, response, np.zeros(len(responses)))

    def __call__(self, values: Mapping[str, Any]) -> jax.Array:
        """Return the expected counts (N, G) for parameter values () or (N,), or (N, S, G) for values (N, S)."""
        parts = []
        if self.density is not None:
            density = self.density(values)
            subscripts = "ngk,nsk->nsg" if density.ndim == 3 else "ngk,nk->ng"
            counts = [
                jnp.einsum(subscripts, jnp.asarray(block, density.dtype), density[..., start:])
                for block, start in zip(self.blocks, self.first, strict=True)
            ]
            parts.append(counts[0] if len(counts) == 1 else jnp.concatenate(counts, axis=-1))
        if self.response is not None:
            photons = self.photons(values)
            if photons.ndim < 3:
                photons = jnp.broadcast_to(photons, (len(self.errors), photons.shape[-1]))
            parts.append(_product(self.response, photons))
        return functools.reduce(jnp.add, parts)


def _padded_nodes(folds: Sequence[Fold]) -> np.ndarray:
    """Return the energies of the nodes of all folds (N, K), padded to equal length.

    Padding is at low energies, which aligns the nodes of high energy: blocks then leave out more nodes.
    """
    num_nodes = max(len(f.energy) for f in folds)
    return np.stack([np.pad(f.energy, (num_nodes - len(f.energy), 0), mode="edge") for f in folds])


def _averaged(average, lines, widths, values):
    """Return the mean density in bins of a smooth spectrum and of lines, each with its mean transmission."""
    densities = [] if average is None else [average(values)]
    photons = (in_bins(values) * (1.0 if factor is None else factor(values)) for in_bins, factor in lines)
    return functools.reduce(jnp.add, [*densities, *(line / jnp.asarray(widths, line.dtype) for line in photons)])


def _with_exact_errors(folded: Callable[..., Folded], num: int) -> list[Folded]:
    """Fold on nodes through each response; if one error exceeds the tolerance, add the errors of all exact folds."""
    folds = on_every_core(folded, range(num))
    if all(f.exact_errors is None for f in folds):
        return folds
    # With a tolerance of 0, `fold` measures the errors of the exact fold too.
    return [folded(row, 0.0) if f.exact_errors is None else f for row, f in enumerate(folds)]


def _in_blocks(matrix: np.ndarray, num: int) -> tuple[tuple[np.ndarray, ...], tuple[int, ...]]:
    """Divide responses on nodes (N, G, K) into blocks of groups; leave out the leading nodes of zero weight."""
    if num == 1:
        return (matrix,), (0,)
    ends = np.linspace(0, matrix.shape[1], min(num, matrix.shape[1]) + 1).astype(int)
    limits = list(itertools.pairwise(ends.tolist()))
    used = [np.flatnonzero(np.any(matrix[:, low:high] != 0, axis=(0, 1))) for low, high in limits]
    first = tuple(int(nodes[0]) if nodes.size else matrix.shape[2] - 1 for nodes in used)
    blocks = (matrix[:, low:high, start:] for (low, high), start in zip(limits, first, strict=True))
    return tuple(np.ascontiguousarray(block) for block in blocks), first


def _product(response: BandedResponse, photons: jax.Array) -> jax.Array:
    """Return the product of responses with photons (N, E) or (N, S, E)."""
    return jax.vmap(response, 1, 1)(photons) if photons.ndim == 3 else response(photons)


def _in_bins(
    spectrum: Component, lines, responses, num_groups: int, shared: bool, divided: bool, on_nodes: Any = None
) -> tuple[Any, BandedResponse]:
    """Return a function for the photons in pieces of bins, and the response to them.

    The photons are those of the lines, or of the whole spectrum if ``lines`` is None. ``on_nodes`` are a smooth part
    and its folds, whose photons are added. A ``divided`` response is stored in blocks.
    """
    smooth = None
    if lines is None:
        smooth, lines, _ = exact_terms(spectrum, responses[0][0])
        cuts = [exact_terms(spectrum.of_source(row), energy)[2] for row, (energy, _) in enumerate(responses)]
    elif any(line.factor is not None for line in lines):
        cuts = [pieces(spectrum.of_source(row), energy, LINE_WIDTH) for row, (energy, _) in enumerate(responses)]
    else:
        cuts = [energy for energy, _ in responses]
    matrices = []
    for (energy, matrix), edges in zip(responses, cuts, strict=True):
        in_bin = np.searchsorted(energy, np.sqrt(edges[1:] * edges[:-1])) - 1
        matrices.append(sparse.csr_matrix(matrix)[in_bin])
    edges = padded_edges(cuts)
    photons = integrals(smooth, lines, edges[:, None] if shared else edges)
    if on_nodes is not None:
        smooth_part, folds = on_nodes
        photons = _with_nodes(photons, smooth_part, folds, responses, cuts, shared)
    return photons, BandedResponse.of(matrices, edges.shape[1] - 1, num_groups, divided=divided)


def _with_nodes(photons, smooth: Component, folds: Sequence[Folded], responses, cuts, shared: bool) -> Partial:
    """Return a function that adds to photons in pieces of bins those of a smooth part, from its values at nodes.

    All photons of a bin are added to its first piece: the response to the pieces of a bin is the same.
    """
    energy = _padded_nodes([f.nodes for f in folds])
    num_nodes, num_pieces = energy.shape[1], max(map(len, cuts)) - 1
    matrices = []
    for folded, (bins, _), edges in zip(folds, responses, cuts, strict=True):
        in_bins = sparse.coo_matrix(folded.in_bins)
        first_piece = np.searchsorted(edges, np.asarray(bins)[:-1])
        nodes = in_bins.col + num_nodes - in_bins.shape[1]
        shape = num_nodes, num_pieces
        matrices.append(sparse.csr_matrix((in_bins.data, (nodes, first_piece[in_bins.row])), shape=shape))
    from_nodes = BandedResponse.of(matrices, num_nodes, num_pieces, divided=True)
    return Partial(_sum_with_nodes, smooth.on(energy[:, None] if shared else energy), from_nodes, photons)


def _sum_with_nodes(density, from_nodes, photons, values):
    """Return the photons in pieces of a smooth part, from its density at nodes, and of the other parts."""
    at_nodes = density(values)
    return photons(values) + _product(from_nodes, at_nodes)
