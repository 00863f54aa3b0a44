"""Expected counts of a population of absorbed power laws, with precomputed responses and absorption tables.

For sources of known redshift the response is reduced to a few quadrature nodes (`hbm_jax.spectra.compress`). Where the
redshift is a parameter the absorption edges of the host move, so those sources are folded on all energy bins of their
response, with cross sections averaged over each bin.
"""

import dataclasses
import functools
import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax import constants
from hbm_jax.absorption import WhimIons, WhimTable
from hbm_jax.absorption.domain import MAX_ENERGY, MIN_ENERGY
from hbm_jax.cosmology import Cosmology
from hbm_jax.data import Afterglows
from hbm_jax.models.xray.source_information import SourceInformation
from hbm_jax.precomputation import on_every_core
from hbm_jax.spectra.folding.compression import TOLERANCE, compress, neutral_at
from hbm_jax.spectra.statistics.joint import AnyStatistic

NUM_BLOCKS = 8  # of groups, in a response on nodes
FAINT = 1e-10  # fraction of a source's expected counts below which the counts of a group are negligible
NUM_REDSHIFTS = 6  # nodes at which the WHIM is tabulated over the range of an uncertain redshift
REACH = 4.0  # standard deviations at which an uncertain redshift is truncated
_CELLS = 16384  # of the grid in ln E of the integrated neutral cross section


@dataclass(frozen=True)
class Medium:
    """Options of the absorbers: host galaxy, Milky Way and WHIM.

    Attributes
    ----------
    abundances : str
        Abundance table of all three absorbers.
    whim : bool
        Whether the WHIM absorbs.
    mode : str
        Ionisation of the WHIM, as in `hbm_jax.absorption.whim_optical_depth`.
    log10_xi : float or None
        Ionisation parameter of the WHIM; None if it is sampled.
    metallicity : float or None
        Metallicity of the WHIM; None if it is sampled.
    H0, Om0 : float
        Flat cosmology of the line-of-sight integral.
    """

    abundances: str = "wilm"
    whim: bool = False
    mode: str = "photo+collisional"
    log10_xi: float | None = 0.0
    metallicity: float | None = 0.3
    H0: float = 70.0
    Om0: float = 0.3

    def towards(self, energy: np.ndarray, z: np.ndarray) -> WhimTable | WhimIons | None:
        """Return tables of the WHIM for energies (N, K) and redshifts (N,); None without a WHIM."""
        if not self.whim:
            return None
        if self.log10_xi is None:
            cosmology = Cosmology.flat(H0=self.H0, Om0=self.Om0)
            return WhimIons(energy, z, cosmology=cosmology, abundances=self.abundances, mode=self.mode)
        return self._table(energy, z, self.log10_xi, self.metallicity)

    def guide(self, z: np.ndarray) -> WhimTable | None:
        """Return a table of the WHIM at five energies between 0.4 and 1.3 keV; None without a WHIM.

        Sampled parameters are fixed: log10_xi at 0 and the metallicity at `guided`.
        """
        if not self.whim:
            return None
        return self._table(np.array([0.4, 0.6, 0.8, 1.0, 1.3]), z, self.log10_xi or 0.0, self.guided)

    @property
    def guided(self) -> float:
        """Metallicity of the table that `guide` returns."""
        return 0.3 if self.metallicity is None else self.metallicity

    def _table(self, energy, z, log10_xi: float, metallicity: float | None) -> WhimTable:
        """Return a table of the WHIM at a fixed ionisation parameter."""
        return WhimTable(
            energy,
            z,
            log10_xi=log10_xi,
            metallicity=metallicity,
            abundances=self.abundances,
            mode=self.mode,
            cosmology=Cosmology.flat(H0=self.H0, Om0=self.Om0),
        )

    def optical_depth(self, table: WhimTable | WhimIons, p: dict[str, Any], rows: Any) -> jax.Array:
        """Return the optical depth of the WHIM for a table whose sources are ``rows`` of the population."""
        n0 = 10.0 ** p["log10_n0"]
        n0 = n0[rows] if jnp.ndim(n0) else n0
        if isinstance(table, WhimIons):
            return table(n0, p["log10_T"], p["log10_xi"], p["metallicity"])
        return table(n0, p["log10_T"], *([p["metallicity"]] if self.metallicity is None else []))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class KnownRedshifts:
    """n sources whose responses to G groups are given on K quadrature nodes.

    Attributes
    ----------
    rows : (n,)
        Indices of the sources in the population.
    log_energy : (n, K)
        Natural logarithm of the energy [keV] of the nodes.
    blocks : tuple of (n, G_b, K - first_b)
        Response in blocks of groups, each without the nodes of low energy to which it does not respond. Photons are not
        counted far above their energy and most nodes have low energies, so the blocks hold less than half of the
        matrix.
    first : tuple of int
        First node of each block.
    galactic, host : (n, K)
        Cross sections at the nodes, in the observer's and in the host's frame [1e-22 cm^2].
    whim : WhimTable or WhimIons or None
        Tables of the WHIM at the nodes.
    """

    rows: Any
    log_energy: Any
    blocks: Any
    first: tuple[int, ...] = field(metadata={"static": True})
    galactic: Any
    host: Any
    whim: Any

    @classmethod
    def of(
        cls, data: Afterglows, rows: np.ndarray, medium: Medium, tolerance: float
    ) -> "tuple[KnownRedshifts, np.ndarray]":
        """Reduce the responses to quadrature nodes; return them and the error of each log likelihood, (n,)."""

        def compressed(row):
            energy, response = data.spectra.grouped_response(row)
            counts = np.asarray(data.spectra.counts[row])[: response.shape[1]]
            return compress(
                energy,
                response,
                counts,
                tolerance=tolerance,
                z=float(data.z[row]),
                whim=medium.whim,
                abundances=medium.abundances,
                mode=medium.mode,
                log10_xi=medium.log10_xi,
                metallicity=medium.metallicity,
            )

        results = on_every_core(compressed, rows)
        folds, errors = [result.fold for result in results], [result.error for result in results]
        num_nodes, num_groups = max(len(f.energy) for f in folds), np.shape(data.spectra.counts)[1]
        # Padded at low energies, which aligns the nodes of high energy: blocks then leave out more nodes.
        energy = np.stack([np.append(np.full(num_nodes - len(f.energy), f.energy[0]), f.energy) for f in folds])
        matrix = np.zeros((len(rows), num_groups, num_nodes))
        for index, f in enumerate(folds):
            matrix[index, : f.matrix.shape[0], num_nodes - f.matrix.shape[1] :] = f.matrix
        z = np.asarray(data.z)[rows]
        blocks, first = in_blocks(matrix)
        sources = cls(
            rows=rows,
            log_energy=np.log(energy),
            blocks=blocks,
            first=first,
            galactic=neutral_at(energy, medium.abundances),
            host=neutral_at(energy * (1.0 + z[:, None]), medium.abundances),
            whim=medium.towards(energy, z),
        )
        return sources, np.array(errors)

    def expected(self, p: dict[str, Any], log_norm: jax.Array, medium: Medium) -> jax.Array:
        """Return the expected counts of the sources without background, (n, G)."""
        rows = self.rows
        tau = p["nh_mw"][rows, None] * self.galactic + p["nh"][rows, None] * self.host
        if self.whim is not None:
            tau = tau + medium.optical_depth(self.whim, p, rows)
        density = jnp.exp(log_norm[rows, None] - p["photon_index"][rows, None] * self.log_energy - tau)
        parts = zip(self.blocks, self.first, strict=True)
        folded = [jnp.einsum("ngk,nk->ng", m, density[:, start:]) for m, start in parts]
        return positive(jnp.concatenate(folded, axis=1))


def positive(expected: jax.Array) -> jax.Array:
    """Return expected counts (n, G) with small negative values replaced by positive ones, smoothly.

    Quadrature weights may be negative. For columns of 1e26 cm^-2 and more, beyond the range for which the nodes are
    chosen, the expected counts of groups without photons may therefore be negative. Counts far above 1e-10 of the total
    of their source are unchanged: expected counts of 1e-7 of the total change by less than one part in 10^6.
    """
    faint = FAINT * jnp.sum(jnp.abs(expected), axis=1, keepdims=True)
    faint = faint + jnp.sqrt(jnp.finfo(expected.dtype).tiny)  # where all expected counts are zero
    size = jnp.abs(expected) + jnp.sqrt(expected**2 + faint**2)
    return 0.5 * jnp.where(expected > 0, size, faint**2 / size)


def in_blocks(matrix: np.ndarray, num: int = NUM_BLOCKS) -> tuple[tuple[np.ndarray, ...], tuple[int, ...]]:
    """Divide responses on nodes (n, G, K) into blocks of groups, without the leading nodes of zero weight."""
    ends = np.linspace(0, matrix.shape[1], min(num, matrix.shape[1]) + 1).astype(int)
    blocks, first = [], []
    for low, high in itertools.pairwise(ends):
        used = np.flatnonzero(np.any(matrix[:, low:high] != 0, axis=(0, 1)))
        first.append(int(used[0]) if used.size else matrix.shape[2] - 1)
        blocks.append(np.ascontiguousarray(matrix[:, low:high, first[-1] :]))
    return tuple(blocks), tuple(first)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class UncertainRedshifts:
    """n sources whose redshift is a parameter, folded on all K energy bins of their responses to G groups.

    Attributes
    ----------
    rows : (n,)
        Indices of the sources in the population.
    log_edges : (n, K + 1)
        Natural logarithm of the energy [keV] of the bin edges.
    matrix : (n, G, K)
        Expected counts for 1 photon/cm^2/s/keV in each bin.
    galactic : (n, K)
        Mean cross section of neutral matter in each bin, in the observer's frame [1e-22 cm^2].
    integral : (16385,)
        From `neutral_integral`.
    whim : WhimTable or WhimIons or None
        Tables of the WHIM at the bin centres, for ``NUM_REDSHIFTS`` redshifts of each source.
    log_redshifts : (n, NUM_REDSHIFTS)
        ln(1 + z) of those redshifts: Chebyshev nodes.
    """

    rows: Any
    log_edges: Any
    matrix: Any
    galactic: Any
    integral: Any
    whim: Any
    log_redshifts: Any

    @classmethod
    def of(cls, data: Afterglows, rows: np.ndarray, medium: Medium) -> "UncertainRedshifts":
        """Precompute edges, responses, cross sections and tables of the WHIM."""
        responses = [data.spectra.grouped_response(row) for row in rows]
        num_bins, num_groups = max(len(e) - 1 for e, _ in responses), np.shape(data.spectra.counts)[1]
        edges = np.stack([np.append(e, e[-1] * 1.01 ** np.arange(1, num_bins + 2 - len(e))) for e, _ in responses])
        matrix = np.zeros((len(rows), num_groups, num_bins))
        for index, (energy, response) in enumerate(responses):
            matrix[index, : response.shape[1], : response.shape[0]] = (response * np.diff(energy)[:, None]).T
        low, high = redshift_range(data, rows)
        chebyshev = 0.5 - 0.5 * np.cos(np.pi * (np.arange(NUM_REDSHIFTS) + 0.5) / NUM_REDSHIFTS)
        u = np.log1p(low)[:, None] + (np.log1p(high) - np.log1p(low))[:, None] * chebyshev
        middle = np.sqrt(edges[:, 1:] * edges[:, :-1])
        return cls(
            rows=rows,
            log_edges=np.log(edges),
            matrix=matrix,
            galactic=bin_average(neutral_integral(medium.abundances), np.log(edges), np),
            integral=neutral_integral(medium.abundances),
            whim=medium.towards(np.repeat(middle, NUM_REDSHIFTS, axis=0), np.expm1(u).ravel()),
            log_redshifts=u,
        )

    def expected(self, p: dict[str, Any], log_norm: jax.Array, medium: Medium) -> jax.Array:
        """Return the expected counts of the sources without background, (n, G)."""
        rows, u = self.rows, jnp.log1p(p["z"][self.rows])
        host = bin_average(self.integral, self.log_edges + u[:, None], jnp)
        tau = p["nh_mw"][rows, None] * self.galactic + p["nh"][rows, None] * host
        if self.whim is not None:
            at_nodes = medium.optical_depth(self.whim, p, np.repeat(rows, NUM_REDSHIFTS))
            weights = _lagrange(self.log_redshifts, u)
            tau = tau + jnp.einsum("nr,nrk->nk", weights, at_nodes.reshape(*weights.shape, -1))
        middle = 0.5 * (self.log_edges[:, 1:] + self.log_edges[:, :-1])
        density = jnp.exp(log_norm[rows, None] - p["photon_index"][rows, None] * middle - tau)
        return jnp.einsum("ngk,nk->ng", self.matrix, density)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class AbsorbedCounts:
    """Counts of a population, with all that is precomputed for power laws absorbed by host, WHIM and Milky Way.

    Attributes
    ----------
    statistic : Statistic or JointStatistic
        Statistic of all sources, with the data.
    known, uncertain : KnownRedshifts, UncertainRedshifts
        Sources of known and of uncertain redshift; None if there are no such sources.
    order : (N,)
        Index of each source in the concatenation of ``known`` and ``uncertain``.
    z, sigma_z, nh_mw, sigma_nh_mw : (N,)
        Redshifts and Galactic columns of the catalogue [1e22 cm^-2], with standard deviations.
    errors : (N,)
        Largest change of the log likelihood by the reduction to quadrature nodes; 0 for uncertain redshifts.
    depth : WhimTable or None
        Table of the optical depth to all sources at five energies, for the choice of the sampler's coordinates; None
        without a WHIM.
    source_information : SourceInformation
        Gaussian approximation of each source's likelihood, for the same choice.
    medium : Medium
        Options of the absorbers.
    """

    statistic: AnyStatistic
    known: KnownRedshifts | None
    uncertain: UncertainRedshifts | None
    order: Any
    z: Any
    sigma_z: Any
    nh_mw: Any
    sigma_nh_mw: Any
    errors: Any
    depth: WhimTable | None
    source_information: SourceInformation
    medium: Medium = field(metadata={"static": True})

    @classmethod
    def of(
        cls,
        data: Afterglows,
        medium: Medium,
        band: tuple[float, float],
        statistic: str | None = None,
        tolerance: float = TOLERANCE,
    ) -> "AbsorbedCounts":
        """Precompute all that depends on the data alone.

        Parameters
        ----------
        data : Afterglows
            The sample.
        medium : Medium
            Options of the absorbers.
        band : (float, float)
            Energy range of the fluxes [keV].
        statistic : str, optional
            As in `SpectrumStack.statistic`.
        tolerance : float
            As in `hbm_jax.spectra.compress`.
        """
        is_known = data.knows_redshift
        rows = np.flatnonzero(is_known), np.flatnonzero(~is_known)
        known, errors = KnownRedshifts.of(data, rows[0], medium, tolerance) if len(rows[0]) else (None, np.zeros(0))
        all_errors = np.zeros(len(data))
        all_errors[rows[0]] = errors
        prepared = cls(
            statistic=data.spectra.statistic(statistic),
            known=known,
            uncertain=UncertainRedshifts.of(data, rows[1], medium) if len(rows[1]) else None,
            order=np.argsort(np.concatenate(rows)),
            **{key: np.asarray(getattr(data, key)) for key in ("z", "sigma_z", "nh_mw", "sigma_nh_mw")},
            errors=all_errors,
            depth=medium.guide(np.asarray(data.z)),
            source_information=None,  # type: ignore[arg-type] # computed from all other fields
            medium=medium,
        )
        return dataclasses.replace(prepared, source_information=SourceInformation.of(prepared, band))

    def degenerate_density(self, log10_T) -> jax.Array:
        """Return log10 of the density at which the mean optical depth of the WHIM is 1, by temperature.

        Density and temperature are degenerate along this curve.
        """
        return jnp.vectorize(lambda T: -jnp.log10(jnp.mean(self.depth(1.0, T))))(log10_T)  # type: ignore[misc]

    @property
    def redshift_range(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest value of each uncertain redshift."""
        if self.uncertain is None:
            raise ValueError("AbsorbedCounts.redshift_range: expected uncertain redshifts; found none.")
        return redshift_range(self, self.uncertain.rows)

    def each(self) -> "list[AbsorbedCounts]":
        """Return one `AbsorbedCounts` for each source, all of the same shapes, for `hbm_jax.fit_each`.

        Raises
        ------
        ValueError
            If a redshift is uncertain.
        """
        all_known = self.known
        if self.uncertain is not None or all_known is None:
            raise ValueError("AbsorbedCounts.each: expected known redshifts; found uncertain ones.")

        def single(row):
            def select(leaf):
                return np.asarray(leaf)[row : row + 1]

            known = jax.tree.map(select, dataclasses.replace(all_known, whim=None, rows=np.arange(len(self.z))))
            whim = None if all_known.whim is None else all_known.whim.only(row)
            known = dataclasses.replace(known, rows=np.zeros(1, int), whim=whim)
            fields = {key: select(getattr(self, key)) for key in ("z", "sigma_z", "nh_mw", "sigma_nh_mw", "errors")}
            fields |= {key: jax.tree.map(select, getattr(self, key)) for key in ("statistic", "source_information")}
            depth = None if self.depth is None else self.depth.only(row)
            return dataclasses.replace(self, known=known, depth=depth, order=np.zeros(1, int), **fields)

        return [single(row) for row in range(len(self.z))]

    def expected(self, p: dict[str, Any], band: tuple[float, float]) -> jax.Array:
        """Return the expected counts of the sources without background.

        Parameters
        ----------
        p : dict of str to array
            ``photon_index, log10_flux, nh, nh_mw`` (N,), and with uncertain redshifts ``z`` (N,); with a WHIM
            ``log10_n0`` () or (N,), ``log10_T, log10_xi, metallicity`` ().
        band : (float, float)
            Energy range of the flux [keV].

        Returns
        -------
        (N, G)
        """
        log_norm = log_amplitude(p["photon_index"], p["log10_flux"], band)
        parts = [
            batch.expected(p, log_norm, self.medium) for batch in (self.known, self.uncertain) if batch is not None
        ]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)[self.order]


def log_amplitude(photon_index, log10_flux, band: tuple[float, float]):
    """Return ln of a power law at 1 keV [photons/cm^2/s/keV], from its energy flux in a band [erg/cm^2/s, keV].

    The integral of E^(1 - photon_index) is low^a (e^(a L) - 1) / a with a = 2 - photon_index and L = ln(high / low).
    """
    a, length = 2.0 - photon_index, math.log(band[1] / band[0])
    return (
        math.log(10.0) * log10_flux
        - math.log(constants.electron_volt * 1e10)
        - a * math.log(band[0])
        - jnp.log(length * exprel(a * length))
    )


def exprel(x):
    """Return (e^x - 1) / x, with its limit 1 at 0."""
    small = jnp.abs(x) < 1e-4
    safe = jnp.where(small, 1.0, x)
    return jnp.where(small, 1.0 + x / 2.0 + x * x / 6.0, jnp.expm1(safe) / safe)


def redshift_range(data: Any, rows) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of uncertain redshifts: four standard deviations from the catalogue, within 0 and 10."""
    z, sigma = np.asarray(data.z)[rows], np.asarray(data.sigma_z)[rows]
    return np.maximum(z - REACH * sigma, 0.0), np.minimum(z + REACH * sigma, 10.0)


@functools.cache
def neutral_integral(abundances: str) -> np.ndarray:
    """Integrate the neutral cross section over ln E, from each node of a uniform grid to its end, (16385,)."""
    edges = np.linspace(np.log(MIN_ENERGY), np.log(MAX_ENERGY), _CELLS + 1)
    x, w = np.polynomial.legendre.leggauss(3)
    half = 0.5 * (edges[1] - edges[0])
    energy = np.exp(0.5 * (edges[1:] + edges[:-1])[:, None] + half * x)
    cells = half * neutral_at(np.clip(energy, MIN_ENERGY, MAX_ENERGY), abundances) @ w
    return np.append(np.cumsum(cells[::-1])[::-1], 0.0)


def bin_average(integral, log_edges, xp):
    """Return the mean over ln E of the neutral cross section in bins, (..., K), from their edges, (..., K + 1)."""
    step = (math.log(MAX_ENERGY) - math.log(MIN_ENERGY)) / _CELLS
    position = (log_edges - math.log(MIN_ENERGY)) / step
    cell = xp.clip(xp.floor(position).astype(int), 0, _CELLS - 1)
    t = position - cell
    integral = xp.asarray(integral)
    values = (1.0 - t) * integral[cell] + t * integral[cell + 1]
    return (values[..., :-1] - values[..., 1:]) / (log_edges[..., 1:] - log_edges[..., :-1])


def _lagrange(nodes, u):
    """Return Lagrange weights (n, R) of nodes (n, R) for interpolation at u (n,)."""
    nodes = jnp.asarray(nodes)
    products = []
    for i in range(nodes.shape[1]):
        others = np.delete(np.arange(nodes.shape[1]), i)
        factors = (u[:, None] - nodes[:, others]) / (nodes[:, i, None] - nodes[:, others])
        products.append(jnp.prod(factors, axis=1))
    return jnp.stack(products, axis=1)
