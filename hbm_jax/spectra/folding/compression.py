"""Folding of absorbed power laws with few quadrature nodes, chosen for a given error of the log likelihood.

The error is measured on trial spectra that bracket the population, and bounded for other brightnesses.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from hbm_jax.absorption import neutral_cross_section, whim_optical_depth
from hbm_jax.absorption.domain import LOG10_T
from hbm_jax.cosmology import Cosmology
from hbm_jax.precomputation import precomputed
from hbm_jax.spectra.folding.panels import Fold, absorption_edges, fold_of, num_nodes_of, panel_edges, whim_edges
from hbm_jax.spectra.folding.reduced_basis import interpolated

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
_NUM_SPECTRA, _NUM_TEMPERATURES = 1200, 40
_STEP = 3e-4  # step in ln E of the second differences that measure the strength of a kink
_CHUNK = 512  # energies per compiled evaluation
# Trial spectra that bracket those of afterglows: photon index, column densities of host and Milky Way [1e22 cm^-2].
_INDICES, _HOSTS, _GALACTIC = (0.0, 2.0, 4.0), (0.0, 0.1, 1.0, 10.0, 100.0, 1e3), (0.02, 1.0)
# Trial media: log10 of n0 [cm^-3], log10 of T [K], metallicity.
_WHIMS = ((-6.0, 4.5, 1.0), (-6.0, 5.5, 1.0), (-6.0, 6.2, 1.0), (-6.0, 6.8, 1.0), (-6.0, 7.4, 0.1), (-7.0, 6.0, 0.3))


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
    energy: ArrayLike,
    matrix: ArrayLike,
    counts: ArrayLike,
    *,
    z: float = 0.0,
    whim: bool = False,
    abundances: str = "wilm",
    mode: str = "photo+collisional",
    log10_xi: float | None = 0.0,
    metallicity: float | None = 0.3,
    tolerance: float = TOLERANCE,
) -> Compressed:
    """Return a fold for absorbed power laws with few nodes that preserves the log likelihood within a tolerance.

    Parameters
    ----------
    energy : (num_energies + 1,)
        Edges of the energy bins of the response [keV].
    matrix : (num_energies, num_groups)
        Response times exposure [cm^2 s].
    counts : (num_groups,)
        Observed counts, at least one in total.
    z : float
        Redshift of the host.
    whim : bool
        Whether the warm-hot intergalactic medium absorbs too; it adds slope discontinuities at many energies.
    abundances, mode : str
        Abundance table of the absorbers; ionisation mode of the medium.
    log10_xi : float or None
        Base-10 logarithm of the ionisation parameter of the medium. None if it is a free parameter: all nodes of the
        level are then kept.
    metallicity : float or None
        Metallicity of the medium; None if it is a free parameter.
    tolerance : float
        Largest allowed change of the log likelihood.

    Returns
    -------
    Compressed
        A subset of the nodes of the coarsest level within the tolerance. If no level is, the fold is not compressed: it
        has six nodes in each panel, with panels at most 2.5 % wide that end at every edge and kink.

    Notes
    -----
    The first step represents the spectrum by polynomials between absorption edges (`fold_of`). The second
    (`interpolated`) chooses a subset of their nodes from 1200 random spectra, with photon indices from -0.5 to 4.5,
    host columns up to 1e26 cm^-2, Milky Way columns up to 1.5e22 cm^-2, and media of densities up to 2e-6 cm^-3 and
    temperatures of 10^4 to 10^8 K; another 600 such spectra measure the error of this step.

    The error is measured on trial spectra, each scaled to the total observed counts: photon indices 0, 2 and 4, host
    columns up to 1e25 cm^-2, Milky Way columns up to 1e22 cm^-2 and, with ``whim``, media of up to five times the
    cosmic baryon density at six temperatures. Each is compared with its uncompressed fold. If that is the result, its
    own error is measured against eight nodes in panels half as wide. ``Compressed.bound`` covers spectra of other
    brightness, and ``tests/spectra/test_compression.py`` tests random spectra.
    """
    trials = _Trials(energy, matrix, counts, z=z, whim=whim, abundances=abundances)
    best = _coarsest_level(trials, _LEVEL_FRACTION * tolerance)
    if best is None:
        return trials.uncompressed_error()
    if log10_xi is None:
        return best
    family = Family(
        best.fold.energy, z, whim=whim, abundances=abundances, mode=mode, log10_xi=log10_xi, metallicity=metallicity
    )
    return _subset_of_nodes(trials, best, family, tolerance) or best


class _Trials:
    """Trial spectra folded with a response, and the errors of folds with few nodes relative to an uncompressed fold."""

    def __init__(self, energy, matrix, counts, *, z, whim, abundances):
        self.energy, self.matrix, self.counts = (np.asarray(values, float) for values in (energy, matrix, counts))
        self.band = float(self.energy[0]), float(self.energy[-1])
        self.edges = absorption_edges(*self.band, (0.0, z))
        self.kinks = whim_edges(*self.band, z) if whim else np.zeros(0)
        self.strengths = _kink_strengths(self.kinks, z, abundances)
        self.spectra = functools.partial(trial_spectra, z=z, whim=whim, abundances=abundances)
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
        return self.spectra(fold.energy) @ fold.matrix.T

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


def _subset_of_nodes(trials: _Trials, level: Compressed, family: "Family", tolerance: float) -> Compressed | None:
    """Return the fold on the smallest subset of nodes within the tolerance, or None if it saves less than 30 %."""
    training, test = (
        spectra / (spectra @ level.fold.matrix.T).sum(axis=1, keepdims=True) for spectra in family.draw(_NUM_SPECTRA)
    )
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


class Family:
    """Random absorbed power laws at fixed energies [keV]; see `compress`."""

    def __init__(self, energy, z, *, whim, abundances, mode, log10_xi, metallicity):
        self.log_energy = np.log(energy)
        self.galactic, self.host = neutral_at(energy, abundances), neutral_at(energy * (1.0 + z), abundances)
        self.depths = []
        self.metallicity = metallicity
        if whim:
            # Optical depths for 1e-6 cm^-3; if the metallicity is free, at 0 and 1, as they are linear in it.
            log10_T = np.linspace(*LOG10_T, 2 * _NUM_TEMPERATURES)
            media = np.full(len(log10_T), -6.0), log10_T
            args = {"abundances": abundances, "mode": mode, "log10_xi": log10_xi}
            amounts = (0.0, 1.0) if metallicity is None else (metallicity,)
            self.depths = [whim_at(energy, z, *media, np.full(len(log10_T), m), **args) for m in amounts]

    def draw(self, num: int) -> tuple[Floats, Floats]:
        """Return training spectra, (num, num_energies), and half as many test spectra; the seed is fixed."""
        rng = np.random.default_rng(0)
        samples = []
        for sample, size in enumerate((num, num // 2)):
            index = rng.uniform(-0.5, 4.5, size)[:, None]
            host_column, galactic_column = (
                10.0 ** rng.uniform(*ends, size)[:, None] for ends in ((-2.5, 4.0), (-2.5, 0.18))
            )
            log_spectra = -index * self.log_energy - host_column * self.host - galactic_column * self.galactic
            if self.depths:
                # Training and test spectra have different temperatures.
                row = 2 * rng.integers(_NUM_TEMPERATURES, size=size) + sample
                n0, metallicity = 10.0 ** rng.uniform(-3.0, 0.3, size)[:, None], rng.uniform(0.0, 1.0, size)[:, None]
                depth = self.depths[0][row]
                if self.metallicity is None:
                    depth = depth + metallicity * (self.depths[1][row] - depth)
                log_spectra = log_spectra - n0 * depth
            samples.append(np.exp(log_spectra - log_spectra.max(axis=1, keepdims=True)))
        return samples[0], samples[1]


def _kink_strengths(kinks: Floats, z: float, abundances: str) -> Floats:
    """Return the largest change of slope in ln E of the transmission at each kink, over the trial media."""
    if not len(kinks):
        return kinks
    energy = kinks * np.exp(_STEP * np.array([-1.0, 0.0, 1.0]))[:, None]
    log10_n0, log10_T, metallicity = zip(*_WHIMS, strict=True)
    tau = whim_at(energy.ravel(), z, log10_n0, log10_T, metallicity, abundances).reshape(-1, *energy.shape)
    change = np.abs(tau[:, 0] - 2.0 * tau[:, 1] + tau[:, 2]) * np.exp(-tau[:, 1]) / _STEP
    return np.maximum(np.max(change, axis=0), 1e-12)


def _shape_likelihood(counts: Floats, expected: Floats) -> Floats:
    """Return the Poisson log likelihood, up to a constant, of spectra scaled to the total observed counts."""
    observed = counts > 0
    return np.log(expected[:, observed] / expected.sum(axis=-1, keepdims=True)) @ counts[observed]


def trial_spectra(energy: Floats, z: float, *, whim: bool, abundances: str = "wilm") -> Floats:
    """Return absorbed power laws that bracket those of afterglows, (num_trials, num_energies)."""
    galactic_sigma, host_sigma = neutral_at(energy, abundances), neutral_at(energy * (1.0 + z), abundances)
    index, column, galactic = (a.ravel()[:, None] for a in np.meshgrid(_INDICES, _HOSTS, _GALACTIC, indexing="ij"))
    neutral = np.exp(-index * np.log(energy) - column * host_sigma - galactic * galactic_sigma)
    if not whim:
        return neutral
    log10_n0, log10_T, metallicity = zip(*_WHIMS, strict=True)
    tau = whim_at(energy, z, log10_n0, log10_T, metallicity, abundances)
    # All spectra without a medium, and those of the middle photon index with every medium.
    middle_index = neutral[(index.ravel() == 2.0) & (galactic.ravel() == _GALACTIC[0])]
    return np.concatenate([neutral, (middle_index[:, None, :] * np.exp(-tau)).reshape(-1, len(energy))])


def neutral_at(energy: Floats, abundances: str) -> Floats:
    """Return `neutral_cross_section` in double precision, for energies of any shape."""
    energy = np.asarray(energy, float)
    flat = energy.ravel()
    num = -(-len(flat) // _CHUNK) * _CHUNK
    chunks = np.concatenate([flat, np.ones(num - len(flat))]).reshape(-1, _CHUNK)
    sigma = precomputed(lambda: [np.asarray(_neutral_cross_section(chunk, abundances)) for chunk in chunks])
    return np.concatenate(sigma)[: len(flat)].reshape(energy.shape)


@functools.partial(jax.jit, static_argnums=1)
def _neutral_cross_section(energy, abundances):
    return neutral_cross_section(energy, abundances=abundances)


def whim_at(
    energy: Floats,
    z: float,
    log10_n0: ArrayLike,
    log10_T: ArrayLike,
    metallicity: ArrayLike,
    abundances: str = "wilm",
    mode: str = "photo+collisional",
    log10_xi: float = 0.0,
) -> Floats:
    """Return `whim_optical_depth` in double precision for several media, (num_media, num_energies).

    Parameters
    ----------
    energy : (num_energies,)
        Observed photon energies [keV].
    z : float
        Redshift of the source, in a flat LCDM cosmology with H0 = 70 km/s/Mpc and Om0 = 0.3.
    log10_n0, log10_T, metallicity : (num_media,)
        Base-10 logarithms of the density [cm^-3] and temperature [K], and metallicity of each medium.
    abundances, mode : str
        Abundance table and ionisation mode.
    log10_xi : float
        Base-10 logarithm of the ionisation parameter.
    """
    num = -(-len(energy) // _CHUNK) * _CHUNK
    chunks = np.concatenate([energy, np.full(num - len(energy), energy[-1])]).reshape(-1, _CHUNK)
    media = np.stack([10.0 ** np.asarray(log10_n0, float), log10_T, metallicity], axis=-1)
    options = float(log10_xi), abundances, mode
    # One medium and one chunk at a time, so that a single program is compiled.
    tau = precomputed(
        lambda: [
            [np.asarray(_whim_optical_depth(chunk, float(z), *medium, *options)) for chunk in chunks]
            for medium in media
        ]
    )
    return np.reshape(tau, (len(media), num))[:, : len(energy)]


@functools.partial(jax.jit, static_argnums=(6, 7))
def _whim_optical_depth(energy, z, n0, log10_T, metallicity, log10_xi, abundances, mode):
    return whim_optical_depth(
        energy, z, n0=n0, log10_T=log10_T, metallicity=metallicity, log10_xi=log10_xi, abundances=abundances,
        mode=mode, cosmology=Cosmology.flat(H0=70.0, Om0=0.3),
    )  # fmt: skip
