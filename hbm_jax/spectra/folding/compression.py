"""How few energies will do: folds whose error in the log likelihood is measured where it is largest, and bounded."""

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
TOLERANCE = 3e-5  # of the log likelihood of a spectrum
# Error of a panel (`num_nodes_of`), its width, and the error of a kink that is not cut, from coarse to fine.
LEVELS = (
    *((1e-5, 0.3, 1e-4), (1e-6, 0.15, 1e-5), (1e-7, 0.15, 1e-6), (1e-8, 0.1, 3e-7), (1e-9, 0.1, 1e-7)),
    *((1e-9, 0.1, 1e-8), (1e-10, 0.1, 1e-9), (1e-11, 0.1, 0.0), (1e-13, 0.1, 0.0), (1e-15, 0.05, 0.0)),
)
# Nodes of every panel and its width, cut at every kink: where no level will do, and what that is compared with.
_UNCOMPRESSED, _FINER = (6, 0.025), (8, 0.0125)
_SHARE = 0.5  # of the tolerance, for the nodes that others are chosen from
RESOLUTIONS = np.array([1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7])  # tried for `interpolated`, for a tolerance of 1
_NUM_SPECTRA, _NUM_TEMPERATURES = 1200, 40
_STEP = 3e-4  # in ln E, of the second differences by which a kink is known
_CHUNK = 512  # energies a compiled evaluation takes
# Spectra that bracket those of afterglows: photon index, columns of host and Milky Way [1e22 cm^-2].
_INDICES, _HOSTS, _GALACTIC = (0.0, 2.0, 4.0), (0.0, 0.1, 1.0, 10.0, 100.0, 1e3), (0.02, 1.0)
# log10 of n0 [cm^-3], log10 of T [K], metallicity.
_WHIMS = ((-6.0, 4.5, 1.0), (-6.0, 5.5, 1.0), (-6.0, 6.2, 1.0), (-6.0, 6.8, 1.0), (-6.0, 7.4, 0.1), (-7.0, 6.0, 0.3))


class Compressed(NamedTuple):
    """A fold and what it costs in accuracy.

    Attributes
    ----------
    fold : Fold
        Nodes and matrix.
    error : float
        Largest change of the log likelihood over the spectra tried, each scaled to the observed counts.
    relative : float
        Largest relative change of their expected counts in all.
    """

    fold: Fold
    error: float
    relative: float

    def bound(self, expected: ArrayLike, observed: float) -> Floats:
        """Largest change of the Poisson log likelihood of a spectrum tried, however bright.

        Parameters
        ----------
        expected : (...)
            Counts in all that it is scaled to.
        observed : float
            Counts observed in all.

        Returns
        -------
        (...)
            ``error + observed relative^2 + abs(observed - expected) relative``. With expected counts M s_g of a shape
            s_g, the log likelihood is the sum of the observed counts times ln s_g, plus C ln M - M: the first part
            changes by at most the first term, the second by C ln(1 + relative) - M relative.
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
    """Fold an absorbed power law by as few energies as keep the log likelihood.

    Parameters
    ----------
    energy : (num_energies + 1,)
        Edges of the response's energy bins [keV].
    matrix : (num_energies, num_groups)
        Response times exposure [cm^2 s].
    counts : (num_groups,)
        Observed counts; at least one is assumed in all.
    z : float
        Redshift of the host.
    whim : bool
        Whether the warm-hot intergalactic medium absorbs too: it bends the spectrum at many more energies.
    abundances, mode : str
        Of the trial spectra; what ionises the medium.
    log10_xi : float or None
        Ionisation parameter of the medium; None where it is not known, and nodes are not chosen by a family of spectra.
    metallicity : float or None
        Of the medium; None where it is not known.
    tolerance : float
        Largest change of the log likelihood to allow.

    Returns
    -------
    Compressed
        The coarsest level that keeps the tolerance over the trial spectra, and of its nodes those by which all spectra
        of the family are known. Where no level does, there is no compression: six nodes in panels cut at every edge and
        kink, 2.5 % wide at most.

    Notes
    -----
    First a spectrum is a polynomial between absorption edges, with nodes in every piece (`fold_of`); then nodes are
    chosen by 1200 spectra, of photon indices from -0.5 to 4.5, host columns up to 1e26 cm^-2, Milky Way columns up to
    1.5e22 cm^-2, and media of densities up to 2e-6 cm^-3 and of 10^4 to 10^8 K (`interpolated`), and 600 others of that
    family say what this changes. The error is measured, not estimated: photon indices 0, 2 and 4 times host columns up
    to 1e25 cm^-2, Milky Way columns up to 1e22 cm^-2, and where asked for a medium of five times the cosmic density of
    baryons, at six temperatures, each spectrum scaled to the observed counts, is compared with its uncompressed fold,
    and that with one of eight nodes in panels half as wide. ``Compressed.bound`` is for spectra of another brightness,
    and ``tests/spectra/test_compression.py`` for spectra drawn at random.
    """
    energy, matrix = np.asarray(energy, float), np.asarray(matrix, float)
    counts = np.asarray(counts, float)

    def folded(panels, num_nodes):
        fold = fold_of(energy, matrix, panels, num_nodes)
        return fold, trial_spectra(fold.energy, z, whim=whim, abundances=abundances) @ fold.matrix.T

    def change(found, truth):
        exact = _shape_likelihood(counts, truth)
        moved = np.abs(_shape_likelihood(counts, found) - exact)
        return float(np.max(moved)) if (found[truth > 0] > 0).all() else np.inf  # weights may be negative

    def compared(fold, found, truth):
        relative = found.sum(axis=-1) / truth.sum(axis=-1) - 1.0
        return Compressed(fold, change(found, truth), float(np.max(np.abs(relative))))

    low, high = float(energy[0]), float(energy[-1])
    edges = absorption_edges(low, high, (0.0, z))
    kinks = whim_edges(low, high, z) if whim else np.zeros(0)
    strength = _strength(kinks, z, abundances)

    def panels_of(width, skipped):
        gap = np.sqrt(skipped / strength)
        some = gap < width
        return panel_edges(low, high, edges, kinks[some], width=width, gap=gap[some])

    def at_level(number):
        width, skipped = LEVELS[number][1:]
        panels = panels_of(width, skipped)
        fold, found = folded(panels, num_nodes_of(panels, LEVELS[number][0]))
        return compared(fold, found, truth)

    whole, truth = folded(panels_of(_UNCOMPRESSED[1], 0.0), _UNCOMPRESSED[0])
    best, below, above = None, -1, len(LEVELS)  # errors fall from level to level
    while above - below > 1:
        middle = (below + above) // 2
        one = at_level(middle)
        if one.error <= _SHARE * tolerance:
            best, above = one, middle
        else:
            below = middle
    if best is None:
        _, finer = folded(panels_of(_FINER[1], 0.0), _FINER[0])
        return compared(whole, truth, finer)
    if log10_xi is None:
        return best
    family = Family(
        best.fold.energy, z, whim=whim, abundances=abundances, mode=mode, log10_xi=log10_xi, metallicity=metallicity
    )
    spectra, others = (s / (s @ best.fold.matrix.T).sum(axis=1, keepdims=True) for s in family.draw(_NUM_SPECTRA))
    exact, largest = others @ best.fold.matrix.T, 0.7 * len(best.fold.energy)
    for resolution in tolerance * RESOLUTIONS:
        fold = interpolated(best.fold, spectra, resolution)
        if len(fold.energy) > largest:
            break
        trials = trial_spectra(fold.energy, z, whim=whim, abundances=abundances) @ fold.matrix.T
        few = others[:, np.isin(best.fold.energy, fold.energy)] @ fold.matrix.T
        found = compared(fold, trials, truth)
        error = max(found.error, best.error + change(few, exact))
        if error <= tolerance:
            relative = float(np.max(np.abs(few.sum(axis=1) / exact.sum(axis=1) - 1.0)))
            return found._replace(error=error, relative=max(found.relative, best.relative + relative))
    return best


class Family:
    """Absorbed power laws drawn at random, at given energies [keV]; see `compress`."""

    def __init__(self, energy, z, *, whim, abundances, mode, log10_xi, metallicity):
        self.log_energy = np.log(energy)
        self.here, self.host = neutral_at(energy, abundances), neutral_at(energy * (1.0 + z), abundances)
        self.depths = []
        self.metallicity = metallicity
        if whim:
            # Of a medium of 1e-6 cm^-3: with its metals, or without any and what they add.
            log10_T = np.linspace(*LOG10_T, 2 * _NUM_TEMPERATURES)
            media = np.full(len(log10_T), -6.0), log10_T
            args = {"abundances": abundances, "mode": mode, "log10_xi": log10_xi}
            amounts = (0.0, 1.0) if metallicity is None else (metallicity,)
            self.depths = [whim_at(energy, z, *media, np.full(len(log10_T), m), **args) for m in amounts]

    def draw(self, num: int) -> tuple[Floats, Floats]:
        """Spectra to choose by, (num, num_energies), and half as many others to judge by; always the same."""
        rng = np.random.default_rng(0)
        both = []
        for part, size in enumerate((num, num // 2)):
            index = rng.uniform(-0.5, 4.5, size)[:, None]
            column, galactic = (10.0 ** rng.uniform(*ends, size)[:, None] for ends in ((-2.5, 4.0), (-2.5, 0.18)))
            log = -index * self.log_energy - column * self.host - galactic * self.here
            if self.depths:
                place = 2 * rng.integers(_NUM_TEMPERATURES, size=size) + part  # at other temperatures
                n0, metallicity = 10.0 ** rng.uniform(-3.0, 0.3, size)[:, None], rng.uniform(0.0, 1.0, size)[:, None]
                depth = self.depths[0][place]
                if self.metallicity is None:
                    depth = depth + metallicity * (self.depths[1][place] - depth)
                log = log - n0 * depth
            both.append(np.exp(log - log.max(axis=1, keepdims=True)))
        return both[0], both[1]


def _strength(kinks: Floats, z: float, abundances: str) -> Floats:
    """Change of slope of the transmitted spectrum in ln E at each kink, the largest of the trial media."""
    if not len(kinks):
        return kinks
    around = kinks * np.exp(_STEP * np.array([-1.0, 0.0, 1.0]))[:, None]
    log10_n0, log10_T, metallicity = zip(*_WHIMS, strict=True)
    tau = whim_at(around.ravel(), z, log10_n0, log10_T, metallicity, abundances).reshape(-1, *around.shape)
    change = np.abs(tau[:, 0] - 2.0 * tau[:, 1] + tau[:, 2]) * np.exp(-tau[:, 1]) / _STEP
    return np.maximum(np.max(change, axis=0), 1e-12)


def _shape_likelihood(counts: Floats, expected: Floats) -> Floats:
    """Poisson log likelihood of spectra that are scaled to the observed counts, but for a constant."""
    some = counts > 0
    return np.log(expected[:, some] / expected.sum(axis=-1, keepdims=True)) @ counts[some]


def trial_spectra(energy: Floats, z: float, *, whim: bool, abundances: str = "wilm") -> Floats:
    """Absorbed power laws that bracket those of afterglows, (num_trials, num_energies)."""
    here, host = neutral_at(energy, abundances), neutral_at(energy * (1.0 + z), abundances)
    index, column, galactic = (a.ravel()[:, None] for a in np.meshgrid(_INDICES, _HOSTS, _GALACTIC, indexing="ij"))
    cold = np.exp(-index * np.log(energy) - column * host - galactic * here)
    if not whim:
        return cold
    log10_n0, log10_T, metallicity = zip(*_WHIMS, strict=True)
    tau = whim_at(energy, z, log10_n0, log10_T, metallicity, abundances)
    # Every medium with the spectra of the middle index; all spectra without.
    behind = cold[(index.ravel() == 2.0) & (galactic.ravel() == _GALACTIC[0])]
    return np.concatenate([cold, (behind[:, None, :] * np.exp(-tau)).reshape(-1, len(energy))])


def neutral_at(energy: Floats, abundances: str) -> Floats:
    """Cross section of `neutral_cross_section` in double precision, at energies of any number and shape."""
    energy = np.asarray(energy, float)
    flat = energy.ravel()
    num = -(-len(flat) // _CHUNK) * _CHUNK
    chunks = np.concatenate([flat, np.ones(num - len(flat))]).reshape(-1, _CHUNK)
    found = precomputed(lambda: [np.asarray(_neutral(chunk, abundances)) for chunk in chunks])
    return np.concatenate(found)[: len(flat)].reshape(energy.shape)


@functools.partial(jax.jit, static_argnums=1)
def _neutral(energy, abundances):
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
    """Optical depths of several media, (num_media, num_energies), by `whim_optical_depth` in double precision.

    Parameters
    ----------
    energy : (num_energies,)
        [keV].
    z : float
        Redshift of the source, in a flat universe of H0 = 70 km/s/Mpc and Om0 = 0.3.
    log10_n0, log10_T, metallicity : (num_media,)
        As in `whim_optical_depth`.
    abundances, mode : str
        Table; what ionises.
    log10_xi : float
        Ionisation parameter.
    """
    num = -(-len(energy) // _CHUNK) * _CHUNK
    chunks = np.concatenate([energy, np.full(num - len(energy), energy[-1])]).reshape(-1, _CHUNK)
    media = np.stack([10.0 ** np.asarray(log10_n0, float), log10_T, metallicity], axis=-1)
    more = float(log10_xi), abundances, mode
    # One medium and a chunk at a time: one program for any number of either.
    found = precomputed(lambda: [[np.asarray(_whim(c, float(z), *one, *more)) for c in chunks] for one in media])
    return np.reshape(found, (len(media), num))[:, : len(energy)]


@functools.partial(jax.jit, static_argnums=(6, 7))
def _whim(energy, z, n0, log10_T, metallicity, log10_xi, abundances, mode):
    return whim_optical_depth(
        energy, z, n0=n0, log10_T=log10_T, metallicity=metallicity, log10_xi=log10_xi, abundances=abundances,
        mode=mode, cosmology=Cosmology.flat(H0=70.0, Om0=0.3),
    )  # fmt: skip
