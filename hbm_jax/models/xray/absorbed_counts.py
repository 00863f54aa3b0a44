"""Expected counts of a population of absorbed power laws, with precomputed responses and absorption tables.

For sources of known redshift the response is reduced to a few quadrature nodes (`hbm_jax.spectra.fold`). Where the
redshift is a parameter the absorption edges of the host move, so those sources are folded on all energy bins of their
response, with cross sections averaged over each bin.
"""

import dataclasses
import itertools
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.absorption import WhimIons, WhimTable
from hbm_jax.data import Afterglows
from hbm_jax.models.xray.population import Medium, random_draws, trials
from hbm_jax.models.xray.source_information import SourceInformation
from hbm_jax.precomputation import on_every_core
from hbm_jax.spectra.folding.fold import fold
from hbm_jax.spectra.statistics.joint import AnyStatistic

TOLERANCE = 3e-5  # largest change of the log likelihood of a spectrum
NUM_BLOCKS = 8  # of groups, in a response on nodes
FAINT = 1e-10  # fraction of a source's expected counts below which the counts of a group are negligible
REACH = 4.0  # standard deviations at which an uncertain redshift is truncated
# Parameters of the expression that have other names in the population.
NAMES = {"mw_nh": "nh_mw", "host_nh": "nh", "host_z": "z"}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class KnownRedshifts:
    """n sources whose responses to G groups are given on K quadrature nodes.

    Attributes
    ----------
    rows : (n,)
        Indices of the sources in the population.
    density : callable
        Model expression at the nodes, (n, K), as a function of its parameters.
    blocks : tuple of (n, G_b, K - first_b)
        Response in blocks of groups, each without the nodes of low energy to which it does not respond. Photons are not
        counted far above their energy and most nodes have low energies, so the blocks hold less than half of the
        matrix.
    first : tuple of int
        First node of each block.
    """

    rows: Any
    density: Any
    blocks: Any
    first: tuple[int, ...] = field(metadata={"static": True})

    @classmethod
    def of(
        cls, data: Afterglows, rows: np.ndarray, medium: Medium, band: tuple[float, float], tolerance: float
    ) -> "tuple[KnownRedshifts, np.ndarray]":
        """Reduce the responses to quadrature nodes; return them and the error of each log likelihood, (n,)."""
        spectrum = medium.spectrum(np.asarray(data.z)[rows], band)
        # Without a WHIM there are few nodes already; a free ionisation parameter has no random draws.
        draws = None if medium.log10_xi is None or not medium.of_power_laws else random_draws(medium.whim)

        # Trial media have an ionisation parameter of 1, for which a table is faster than the integrals of all ions.
        tried = medium if medium.log10_xi is not None else dataclasses.replace(medium, log10_xi=0.0, metallicity=None)
        trial_spectrum = tried.spectrum(np.asarray(data.z)[rows], band)

        def compressed(index):
            energy, response = data.spectra.grouped_response(rows[index])
            counts = np.asarray(data.spectra.counts[rows[index]])[: response.shape[1]]
            source = trial_spectrum.of_source(index)
            return fold(source, energy, response, counts, trials(medium, source), draws=draws, tolerance=tolerance)

        results = on_every_core(compressed, range(len(rows)))
        folds, errors = [result.nodes for result in results], [result.errors[0] for result in results]
        num_nodes, num_groups = max(len(f.energy) for f in folds), np.shape(data.spectra.counts)[1]
        # Padded at low energies, which aligns the nodes of high energy: blocks then leave out more nodes.
        energy = np.stack([np.append(np.full(num_nodes - len(f.energy), f.energy[0]), f.energy) for f in folds])
        matrix = np.zeros((len(rows), num_groups, num_nodes))
        for index, f in enumerate(folds):
            matrix[index, : f.matrix.shape[0], num_nodes - f.matrix.shape[1] :] = f.matrix
        blocks, first = in_blocks(matrix)
        return cls(rows, spectrum.on(energy), blocks, first), np.array(errors)

    def expected(self, p: dict[str, Any]) -> jax.Array:
        """Return the expected counts of the sources without background, (n, G)."""
        density = self.density(values_of(p, self.rows))
        parts = zip(self.blocks, self.first, strict=True)
        folded = [jnp.einsum("ngk,nk->ng", m, density[:, start:]) for m, start in parts]
        return positive(jnp.concatenate(folded, axis=1))


def values_of(p: dict[str, Any], rows) -> dict[str, Any]:
    """Return the parameters of the expression for some sources of the population."""
    values = {name: value[rows] if jnp.ndim(value) else value for name, value in p.items()}
    return values | {name: values[own] for name, own in NAMES.items() if own in values}


def positive(expected: jax.Array) -> jax.Array:
    """Return expected counts (n, G) with small negative values replaced by positive ones, smoothly.

    Quadrature weights may be negative. For columns of 1e26 cm^-2 and more, beyond the range for which the nodes are
    chosen, the expected counts of groups without photons may therefore be negative. Counts far above 1e-10 of the total
    of their source are unchanged: expected counts of 1e-7 of the total change by less than one part in 10^6.
    """
    faint = FAINT * jnp.sum(jnp.abs(expected), axis=1, keepdims=True)
    # Where all expected counts are zero: the gradient of a log likelihood has their third power in a denominator.
    faint = faint + jnp.finfo(expected.dtype).tiny ** 0.25
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
    density : callable
        Model expression averaged over the bins, (n, K), as a function of its parameters.
    matrix : (n, G, K)
        Expected counts for 1 photon/cm^2/s/keV in each bin.
    """

    rows: Any
    density: Any
    matrix: Any

    @classmethod
    def of(cls, data: Afterglows, rows: np.ndarray, medium: Medium, band: tuple[float, float]) -> "UncertainRedshifts":
        """Precompute responses, cross sections and tables of the WHIM."""
        responses = [data.spectra.grouped_response(row) for row in rows]
        num_bins, num_groups = max(len(e) - 1 for e, _ in responses), np.shape(data.spectra.counts)[1]
        edges = np.stack([np.append(e, e[-1] * 1.01 ** np.arange(1, num_bins + 2 - len(e))) for e, _ in responses])
        matrix = np.zeros((len(rows), num_groups, num_bins))
        for index, (energy, response) in enumerate(responses):
            matrix[index, : response.shape[1], : response.shape[0]] = (response * np.diff(energy)[:, None]).T
        spectrum = medium.spectrum(None, band, reach=redshift_range(data, rows))
        return cls(rows, spectrum.averaged(edges), matrix)

    def expected(self, p: dict[str, Any]) -> jax.Array:
        """Return the expected counts of the sources without background, (n, G)."""
        return jnp.einsum("ngk,nk->ng", self.matrix, self.density(values_of(p, self.rows)))


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
            As in `hbm_jax.spectra.fold`.
        """
        is_known = data.knows_redshift
        rows = np.flatnonzero(is_known), np.flatnonzero(~is_known)
        known, errors = None, np.zeros(0)
        if len(rows[0]):
            known, errors = KnownRedshifts.of(data, rows[0], medium, band, tolerance)
        all_errors = np.zeros(len(data))
        all_errors[rows[0]] = errors
        prepared = cls(
            statistic=data.spectra.statistic(statistic),
            known=known,
            uncertain=UncertainRedshifts.of(data, rows[1], medium, band) if len(rows[1]) else None,
            order=np.argsort(np.concatenate(rows)),
            **{key: np.asarray(getattr(data, key)) for key in ("z", "sigma_z", "nh_mw", "sigma_nh_mw")},
            errors=all_errors,
            depth=medium.guide(np.asarray(data.z)),
            source_information=None,  # type: ignore[arg-type] # computed from all other fields
            medium=medium,
        )
        return dataclasses.replace(prepared, source_information=SourceInformation.of(prepared))

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

        tables = WhimTable, WhimIons

        def single(row):
            def select(leaf):
                return leaf.only(row) if isinstance(leaf, tables) else np.asarray(leaf)[row : row + 1]

            known = jax.tree.map(select, all_known, is_leaf=lambda leaf: isinstance(leaf, tables))
            known = dataclasses.replace(known, rows=np.zeros(1, int))
            fields = {key: select(getattr(self, key)) for key in ("z", "sigma_z", "nh_mw", "sigma_nh_mw", "errors")}
            fields |= {key: jax.tree.map(select, getattr(self, key)) for key in ("statistic", "source_information")}
            depth = None if self.depth is None else self.depth.only(row)
            return dataclasses.replace(self, known=known, depth=depth, order=np.zeros(1, int), **fields)

        return [single(row) for row in range(len(self.z))]

    def expected(self, p: dict[str, Any]) -> jax.Array:
        """Return the expected counts of the sources without background.

        Parameters
        ----------
        p : dict of str to array
            ``photon_index, log10_flux, nh, nh_mw`` (N,), and with uncertain redshifts ``z`` (N,); with a WHIM
            ``log10_n0`` () or (N,), ``log10_T, log10_xi, metallicity`` ().

        Returns
        -------
        (N, G)
        """
        parts = [batch.expected(p) for batch in (self.known, self.uncertain) if batch is not None]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)[self.order]


def redshift_range(data: Any, rows) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of uncertain redshifts: four standard deviations from the catalogue, within 0 and 10."""
    z, sigma = np.asarray(data.z)[rows], np.asarray(data.sigma_z)[rows]
    return np.maximum(z - REACH * sigma, 0.0), np.minimum(z + REACH * sigma, 10.0)
