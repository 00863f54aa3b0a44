"""Folding of model expressions through responses on few quadrature nodes, with a measured error.

The error is measured on trial spectra, for which the fold must be accurate. Where it is above the tolerance, the nodes
are refined. For expressions that are smooth between known energies, the reference is a fine quadrature between these.
For all others, such as those with lines, breaks or edges at free energies, it is exact in the bins of the response.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse

from hbm_jax.precomputation import precomputed
from hbm_jax.spectra.folding.panels import Fold, dense, integrals_of, num_nodes_of, panel_edges
from hbm_jax.spectra.folding.reduced_basis import interpolated
from hbm_jax.spectra.model.composition import Component, Values, components_of, split_terms
from hbm_jax.spectra.model.photons import exact_terms
from hbm_jax.spectra.model.quadrature import integrals, padded_edges
from hbm_jax.validation import Floats
from hbm_jax.xla_options import OLDER_EMITTERS

# From coarse to fine: error and width of a panel (`num_nodes_of`), and allowed error of a discontinuity in slope in it.
LEVELS = (
    *((1e-2, 0.8, 1e-3), (6e-4, 0.6, 1e-3), (5e-5, 0.45, 1e-3), (5e-6, 0.35, 3e-4)),
    *((1e-5, 0.3, 1e-4), (1e-6, 0.15, 1e-5), (1e-7, 0.15, 1e-6), (1e-8, 0.1, 3e-7), (1e-9, 0.1, 1e-7)),
    *((1e-9, 0.1, 1e-8), (1e-10, 0.1, 1e-9), (1e-11, 0.1, 0.0), (1e-13, 0.1, 0.0), (1e-15, 0.05, 0.0)),
)
# Nodes per panel and panel width, with panel edges at all discontinuities: the fold if no level is accurate enough, and
# the reference for its error.
_UNCOMPRESSED, _FINER = (6, 0.025), (8, 0.0125)
# Nodes per panel and panel width where a feature has a free energy, so that it cannot be a panel edge.
_FEATURES = ((4, 0.02), (5, 0.01), (5, 0.005))
# A tolerance, the level tried first for larger tolerances, and that for smaller ones. Most folds use a level near them.
_LIKELY = (1e-3, 3, 11)
_LEVEL_FRACTION = 0.5  # fraction of the tolerance for the level; the rest is for choosing a subset of its nodes
RESOLUTIONS = np.array([1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7])  # of `interpolated`, in units of the tolerance
SPARSE = 0.2  # largest fraction of non-zero elements of a response that is multiplied as a sparse matrix
_STEP = 3e-4  # step in ln E of the second differences that measure a change of slope
_CHUNK = 512  # energies per compiled evaluation


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
    exact_errors : (num_spectra,) or None
        Errors of a fold on all energy bins; measured only if errors on the nodes exceed the tolerance.
    in_bins : (num_energies, num_nodes) sparse matrix or None
        Photons/cm^2/s in each energy bin for 1 photon/cm^2/s/keV at a node; None for a subset of the nodes of a level.
    """

    nodes: Fold
    errors: Floats
    relative: float
    exact_errors: Floats | None = None
    in_bins: Any = None

    def bound(self, expected: ArrayLike, observed: float) -> Floats:
        """Return a bound on the change of the Poisson log likelihood for trial spectra scaled to any expected counts.

        It is ``errors + observed relative^2 + abs(observed - expected) relative``, (...). For expected counts M s_g in
        group g, with shape s_g and total M, and C observed counts in total, the log likelihood is
        sum_g C_g ln s_g + C ln M - M. The sum changes by at most ``errors``, the rest by
        C ln(1 + relative) - M relative.

        Parameters
        ----------
        expected : (...)
            Total expected counts of the scaled spectra.
        observed : float
            Total observed counts.
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
    cache: dict | None = None,
) -> Folded:
    """Fold a model expression through a response on as few nodes as a tolerance allows.

    Parameters
    ----------
    spectrum : Component
        Model expression of one source. Lines need `hbm_jax.spectra.folding.expected_counts`, which folds them on all
        energy bins; on nodes their errors are large.
    energy : (num_energies + 1,)
        Edges of the energy bins of the response [keV].
    matrix : (num_energies, num_groups), may be a SciPy sparse matrix
        Response, up to a constant factor.
    counts : (num_groups,) or (num_spectra, num_groups)
        Observed counts of the spectra with this response.
    values : mapping of str to (num_trials,) array
        Parameters of trial spectra, for which the fold must be accurate. Trial spectra that are invalid, or without
        counts in some group, are ignored.
    tolerance : float
        Largest allowed error of each spectrum.
    background : (num_spectra, num_groups), optional
        Expected background counts. If given, the error is that of the expected counts in standard deviations of the
        data (`deviation`), otherwise the change of the log likelihood (`likelihood_change`).
    draws : two mappings of str to array, optional
        Parameters of random spectra: the first set is used to choose a subset of the nodes, the second to test it. By
        default all nodes of the level are kept.
    cache : dict, optional
        Cache of the photons of the trial spectra. Pass the same dictionary for all responses with this spectrum and
        these values.

    Returns
    -------
    Folded
        The nodes of the coarsest level within the tolerance, or a subset of them. If no level is within the tolerance:
        six nodes in each panel, with panels at most 2.5 % wide that end at every discontinuity. If a feature has a free
        energy: panels of 2 %, 1 % or 0.5 %, the widest within the tolerance or those with the smallest error.

    Notes
    -----
    The first step represents the spectrum by polynomials between its discontinuities (`integrals_of`), and the second
    (`interpolated`) chooses a subset of their nodes. The error is measured on the trial spectra, each scaled to the
    observed counts and compared with a reference: the fold on six nodes in panels of 2.5 % that end at every
    discontinuity, if every component is smooth elsewhere, and integrals over the energy bins otherwise.
    ``Folded.bound`` covers spectra of other brightness, and ``tests/spectra/test_compression.py`` tests random spectra.
    """
    precise = spectrum.mapped(lambda part: part.in_double_precision())
    trials = _Trials(precise, energy, matrix, counts, background, values, {} if cache is None else cache)
    if has_free_features(spectrum):
        return trials.with_exact_errors(trials.narrow_panels(tolerance), tolerance)
    best = _coarsest_level(trials, tolerance if draws is None else _LEVEL_FRACTION * tolerance)
    if best is None:
        return trials.with_exact_errors(trials.uncompressed_error(), tolerance)
    return best if draws is None else _subset_of_nodes(trials, best, draws, tolerance) or best


def has_free_features(spectrum: Component, *, lines: bool = True) -> bool:
    """Return True if a break, line or edge has a free energy or redshift, so that it cannot be a panel edge.

    With ``lines=False`` lines do not count, because `hbm_jax.spectra.folding.expected_counts` folds them on all bins.
    """
    smooth = spectrum if lines else split_terms(spectrum)[0]
    parts = () if smooth is None else components_of(smooth)
    names = (name for part in parts for name in part.own_parameters)
    if any(part.has_moving_feature for part in parts):
        return True
    return any(name == "z" or name.startswith("energy") for name in names)


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
    """Trial spectra folded with a response, and the errors of folds with few nodes relative to a reference."""

    def __init__(self, spectrum, energy, matrix, counts, background, values, cache):
        self.energy, self.cache = np.asarray(energy, float), cache
        is_sparse = sparse.issparse(matrix) and matrix.nnz < SPARSE * np.prod(matrix.shape)
        self.matrix = sparse.csr_matrix(matrix) if is_sparse else dense(matrix)
        self.counts = np.atleast_2d(np.asarray(counts, float))
        self.background = None if background is None else np.asarray(background, float)
        self.sensitive = np.asarray(abs(self.matrix).sum(axis=0)).ravel() > 0  # groups with a non-zero response
        self.spectrum, self.values = spectrum, {name: np.asarray(values[name], float) for name in spectrum.parameters}
        self.tabulated = spectrum.mapped(lambda part: part.tabulated_for(self.values))
        self.band = float(self.energy[0]), float(self.energy[-1])
        self.discontinuities = spectrum.discontinuities(*self.band)
        self.slope_discontinuities = spectrum.slope_discontinuities(*self.band)
        self.slope_changes = _slope_changes(self.tabulated, self.slope_discontinuities, self.values)
        self.smooth = all(part.smooth for part in components_of(spectrum))
        self.free_redshift = any("z" in part.own_parameters for part in components_of(spectrum))
        if self.smooth:
            _, self.reference = self.on_panels(*_UNCOMPRESSED)
        else:
            self.reference = self.exact_at_known_redshifts() if self.free_redshift else self.exact()

    def panels(self, width: float, slope_error: float = 0.0) -> Floats:
        """Return panel edges: all discontinuities, and those in slope whose error would exceed `slope_error`.

        Within a panel, the error of a change of slope is about this change times the squared distance to an edge.
        """
        gap = np.sqrt(slope_error / self.slope_changes)
        kept = gap < width
        slope_edges = self.slope_discontinuities[kept]
        return panel_edges(*self.band, self.discontinuities, slope_edges, width=width, gap=gap[kept])

    def folded(self, panels: Floats, num_nodes: ArrayLike) -> tuple[Any, Floats]:
        """Return the nodes with these panels and their integrals, and the expected counts of the trial spectra."""
        key = self.energy.tobytes(), panels.tobytes(), np.asarray(num_nodes).tobytes()
        if key not in self.cache:
            nodes, in_bins = integrals_of(self.energy, panels, num_nodes)
            self.cache[key] = (nodes, in_bins), spectra_at(self.tabulated, nodes, self.values) @ in_bins.T
        fold, photons = self.cache[key]
        return fold, np.asarray(photons @ self.matrix)

    def on_panels(self, num_nodes: int, width: float) -> tuple[Any, Floats]:
        """Return the result of `folded` on panels of at most this width, with edges at all discontinuities."""
        return self.folded(self.panels(width), num_nodes)

    def exact(self, divisions: int = 1) -> Floats:
        """Return the expected counts of the trial spectra from integrals over `divisions` parts of each energy bin."""
        photons = photons_in_bins(self.tabulated, self.energy, self.values, divisions)
        return np.asarray(photons @ self.matrix)

    def exact_at_known_redshifts(self) -> Floats:
        """Return the result of `exact` for a free redshift: each trial spectrum has its own absorption edges.

        NaN for trial spectra with energies outside the domain of an absorber.
        """
        photons = []
        for row in range(len(next(iter(self.values.values())))):
            values = {name: value[row : row + 1] for name, value in self.values.items()}
            spectrum = self.tabulated.mapped(lambda part, values=values: part.at_redshift(values))
            try:
                photons.append(photons_in_bins(spectrum, self.energy, values))
            except ValueError:  # an energy outside the domain of the absorber
                photons.append(np.full((1, len(self.energy) - 1), np.nan))
        return np.asarray(np.concatenate(photons) @ self.matrix)

    def with_exact_errors(self, folded: Folded, tolerance: float) -> Folded:
        """Return a fold with the errors of exact integrals over bins, relative to bins divided into three.

        With free redshifts the reference is `exact_at_known_redshifts`. Within the tolerance these errors are not
        measured.
        """
        if folded.errors.max() <= tolerance:
            return folded
        reference = self.reference if self.free_redshift else self.exact(3)
        return folded._replace(exact_errors=self.errors(self.exact(), reference))

    def at_level(self, level: int) -> tuple[Any, Floats]:
        """Return the nodes of a level, and the expected counts of the trial spectra."""
        panel_error, width, slope_error = LEVELS[level]
        panels = self.panels(width, slope_error)
        return self.folded(panels, num_nodes_of(panels, panel_error))

    def narrow_panels(self, tolerance: float) -> Folded:
        """Return the fold on the widest narrow panels within the tolerance, or that with the smallest error."""
        candidates = []
        for num_nodes, width in _FEATURES:
            candidates.append(self.on_panels(num_nodes, width))
            if self.errors(candidates[-1][1], self.reference).max() <= tolerance:
                break
        return self.compared(*min(candidates, key=lambda candidate: self.errors(candidate[1], self.reference).max()))

    def uncompressed_error(self) -> Folded:
        """Return the uncompressed fold with its errors.

        The reference of a smooth spectrum is this fold itself; a finer one takes its place.
        """
        fold, expected = self.on_panels(*_UNCOMPRESSED)
        if self.smooth:
            _, self.reference = self.on_panels(*_FINER)
        return self.compared(fold, expected)

    def compared(self, nodes: Any, expected: Floats) -> Folded:
        """Return a fold with the errors of its expected counts relative to the reference.

        ``nodes`` are a `Fold`, or the nodes and their integrals over the energy bins as from `folded`.
        """
        in_bins = None
        if isinstance(nodes, Fold):
            fold = nodes
        else:
            energy, in_bins = nodes
            fold = Fold(energy, dense(in_bins.T @ self.matrix).T.copy())
        with np.errstate(invalid="ignore", divide="ignore"):
            relative = np.abs(expected.sum(axis=-1) / self.reference.sum(axis=-1) - 1.0)
        errors = self.errors(expected, self.reference)
        return Folded(fold, errors, float(np.nanmax(relative, initial=0.0)), in_bins=in_bins)

    def errors(self, expected: Floats, reference: Floats) -> Floats:
        """Return the largest error of each spectrum over the valid trial spectra, (num_spectra,).

        It is inf without valid trial spectra, and where a logarithm would need positive expected counts.
        """
        expected, reference = expected[:, self.sensitive], reference[:, self.sensitive]
        valid = np.isfinite(reference).all(axis=1) & np.isfinite(expected).all(axis=1)
        counts = self.counts[:, self.sensitive]
        if self.background is None:
            valid &= (reference > 0).all(axis=1)
        # Expected counts may be negative, because the weights of nodes may be.
        if not valid.any() or (self.background is None and not (expected[valid] > 0).all()):
            return np.full(len(counts), np.inf)
        if self.background is not None:
            pairs = zip(counts, self.background[:, self.sensitive], strict=True)
            return np.array([deviation(*pair, expected[valid], reference[valid]).max() for pair in pairs])
        changes = (likelihood_change(observed, expected[valid], reference[valid]) for observed in counts)
        return np.array([np.abs(change).max() for change in changes])


def _coarsest_level(trials: _Trials, tolerance: float) -> Folded | None:
    """Return the fold of the coarsest level within the tolerance, None if there is none.

    Errors decrease from level to level. The search begins at a likely level and its neighbour, then bisects.
    """
    best = None
    too_coarse, sufficient = -1, len(LEVELS)  # the finest level known to be too coarse, the coarsest that is not
    limit, above_limit, below_limit = _LIKELY
    level = first = min(above_limit if tolerance > limit else below_limit, sufficient - 1)
    while sufficient - too_coarse > 1:
        candidate = trials.at_level(level)
        if trials.errors(candidate[1], trials.reference).max() <= tolerance:
            best, sufficient, neighbour = candidate, level, level - 1
        else:
            too_coarse, neighbour = level, level + 1
        level = neighbour if level == first else (too_coarse + sufficient) // 2
    return None if best is None else trials.compared(*best)


def _subset_of_nodes(trials: _Trials, level: Folded, draws, tolerance: float) -> Folded | None:
    """Return the fold on the smallest subset of nodes within the tolerance, or None if it saves less than 30 %."""
    sets = (trials.values, *draws)  # trial spectra, spectra to choose nodes, spectra to test them
    values = {name: np.concatenate([np.asarray(s[name], float) for s in sets]) for name in trials.values}
    tabulated = trials.spectrum.mapped(lambda part: part.tabulated_for(values))
    ends = np.cumsum([len(next(iter(s.values()))) for s in sets])
    at_nodes, *drawn = np.split(spectra_at(tabulated, level.nodes.energy, values), ends[:-1])
    # Spectra scaled to one expected count in total.
    weight = level.nodes.matrix.sum(axis=0)
    training, test = (spectra / (spectra @ weight)[:, None] for spectra in drawn)
    exact_counts, max_nodes = test @ level.nodes.matrix.T, 0.7 * len(level.nodes.energy)
    for subset in interpolated(level.nodes, training, tolerance * RESOLUTIONS):
        if len(subset.energy) > max_nodes:
            return None
        kept = np.isin(level.nodes.energy, subset.energy)
        folded = trials.compared(subset, at_nodes[:, kept] @ subset.matrix.T)
        counts = test[:, kept] @ subset.matrix.T
        errors = np.maximum(folded.errors, level.errors + trials.errors(counts, exact_counts))
        if errors.max() <= tolerance:
            relative = float(np.max(np.abs(counts.sum(axis=1) / exact_counts.sum(axis=1) - 1.0)))
            return folded._replace(errors=errors, relative=max(folded.relative, level.relative + relative))
    return None


def _slope_changes(spectrum: Component, discontinuities: Floats, values: Values) -> Floats:
    """Return the change in slope (in ln E) of the transmission at each discontinuity, the largest of the trials."""
    if not len(discontinuities):
        return discontinuities
    energy = discontinuities * np.exp(_STEP * np.array([-1.0, 0.0, 1.0]))[:, None]
    absorbed, unabsorbed = (spectra_at(part, energy.ravel(), values) for part in (spectrum, spectrum.unabsorbed))
    below, transmission, above = np.moveaxis((absorbed / unabsorbed).reshape(-1, *energy.shape), 1, 0)
    # The second difference of ln T, divided by the step, is the change of d ln T / d ln E; times T it is that of T.
    with np.errstate(divide="ignore", invalid="ignore"):  # where nothing is transmitted
        change = np.abs(np.log(below * above / transmission**2)) * transmission / _STEP
    return np.maximum(np.max(np.nan_to_num(change), axis=0), 1e-12)


def photons_in_bins(spectrum: Component, energy: Floats, values: Values, divisions: int = 1) -> Floats:
    """Return the photons in energy bins, (num, num_energies), each integrated as `divisions` parts."""
    edges = energy
    if divisions > 1:
        inner = edges[:-1, None] * (edges[1:] / edges[:-1])[:, None] ** (np.arange(divisions) / divisions)
        edges = np.append(inner.ravel(), edges[-1])
    smooth, lines, cuts = exact_terms(spectrum, edges)
    photons = []
    for start in range(0, len(cuts) - 1, _CHUNK):
        chunk = padded_edges([cuts[start : start + _CHUNK + 1], np.ones(_CHUNK + 1)])[0]
        photons.append(_values(integrals(smooth, lines, chunk), values)[:, : len(cuts) - 1 - start])
    in_bin = np.searchsorted(energy, np.sqrt(cuts[1:] * cuts[:-1])) - 1
    entries = np.ones(len(in_bin)), (np.arange(len(in_bin)), in_bin)
    return np.concatenate(photons, axis=1) @ sparse.csr_matrix(entries, shape=(len(in_bin), len(energy) - 1))


def spectra_at(spectrum: Component, energy: Floats, values: Values) -> Floats:
    """Return a spectrum (num, num_energies) at energies (num_energies,) for parameters (num,), in double precision."""
    chunks = np.pad(energy, (0, -len(energy) % _CHUNK), mode="edge").reshape(-1, _CHUNK)
    parameters = {name: np.asarray(values[name], float) for name in spectrum.parameters}
    spectra = [_values(spectrum.on(chunk), parameters) for chunk in chunks]
    return np.concatenate(spectra, axis=-1)[:, : len(energy)]


def _values(function: Any, parameters: Values) -> Floats:
    """Evaluate a function of the parameters in double precision."""
    return precomputed(lambda: np.asarray(_evaluate(function, parameters)))


# Compiled once for all spectra that differ only in their tables.
_evaluate = jax.jit(lambda density, values: density(values), compiler_options=OLDER_EMITTERS)
