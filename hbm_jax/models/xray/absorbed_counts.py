"""Expected counts of a population of absorbed sources, with precomputed responses and absorption tables.

For sources of known redshift the response is reduced to a few quadrature nodes. Where the redshift is a parameter the
absorption edges of the host move, so those sources are folded on all energy bins of their response, with cross sections
averaged over each bin (`hbm_jax.spectra.folding.expected_counts`).
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.absorption import WhimIons, WhimTable
from hbm_jax.data import Afterglows
from hbm_jax.models.xray.detection import CountLimit
from hbm_jax.models.xray.population import Medium
from hbm_jax.models.xray.source_information import SourceInformation
from hbm_jax.models.xray.trial_spectra import possible_trials, random_draws, trials
from hbm_jax.spectra.folding.expected_counts import NUM_BLOCKS, ExpectedCounts
from hbm_jax.spectra.statistics.joint import AnyStatistic

TOLERANCE = 3e-5  # largest change of the log likelihood of a spectrum
APPROXIMATE = 0.1  # the same for a first fold, with which the spectra that the counts allow are found
FAINT = 1e-10  # fraction of a source's expected counts below which the counts of a group are negligible
REACH = 4.0  # standard deviations at which an uncertain redshift is truncated
# Parameters of the expression that have other names in the population.
NAMES = {"mw_nh": "nh_mw", "host_nh": "nh", "host_z": "z"}
CATALOGUE = ("z", "sigma_z", "nh_mw", "sigma_nh_mw")


def at_known_redshifts(
    data: Afterglows,
    rows: np.ndarray,
    medium: Medium,
    band: tuple[float, float],
    tolerance: float,
    trials_of_sources: list[dict[str, np.ndarray]] | None = None,
) -> ExpectedCounts:
    """Fold the sources of known redshift ``rows`` on quadrature nodes, or exactly where these do not suffice.

    The trial spectra of each source are those of ``trials_of_sources``, by default those of `trials` for all. All other
    arguments are those of `AbsorbedCounts.of`.
    """
    z = np.asarray(data.z)[rows]
    # Trial media have an ionisation parameter of 1, for which a table is faster than the integrals of all ions.
    fixed_xi = medium if medium.log10_xi is not None else dataclasses.replace(medium, log10_xi=0.0, metallicity=None)
    trial_spectrum = fixed_xi.spectrum(z, band)
    responses = [data.spectra.sparse_response(row) for row in rows]
    counts = np.asarray(data.spectra.counts)[rows]
    return ExpectedCounts.of(
        medium.spectrum(z, band),
        responses,
        [source_counts[: matrix.shape[1]] for source_counts, (_, matrix) in zip(counts, responses, strict=True)],
        trials_of_sources or trials(medium, trial_spectrum),
        tolerance=tolerance,
        trial_spectrum=trial_spectrum,
        num_groups=np.shape(data.spectra.counts)[1],
        num_blocks=NUM_BLOCKS,
        # Without a WHIM there are few nodes already; a free ionisation parameter has no random draws.
        draws=None if medium.log10_xi is None or not medium.has_power_laws else random_draws(medium.whim),
    )


def values_of(p: dict[str, Any], rows) -> dict[str, Any]:
    """Return the parameters of the expression for some sources of the population."""
    values = {name: value[rows] if jnp.ndim(value) else value for name, value in p.items()}
    return values | {name: values[other] for name, other in NAMES.items() if other in values}


def positive(expected: jax.Array) -> jax.Array:
    """Return expected counts (n, G) with small negative values replaced by positive ones, smoothly.

    Quadrature weights may be negative. For columns of 1e26 cm^-2 and more, beyond the range for which the nodes are
    chosen, the expected counts of groups without photons may therefore be negative. Counts far above 1e-10 of the total
    of their source are unchanged: expected counts of 1e-7 of the total change by less than one part in 10^6.
    """
    faint = FAINT * jnp.sum(jnp.abs(expected), axis=1, keepdims=True)
    # Where all expected counts are zero: the gradient of a log likelihood has their third power in a denominator.
    faint = faint + jnp.finfo(expected.dtype).tiny ** 0.25
    # (x + sqrt(x^2 + f^2)) / 2 for expected counts x, in a form without cancellation for negative x.
    size = jnp.abs(expected) + jnp.sqrt(expected**2 + faint**2)
    return 0.5 * jnp.where(expected > 0, size, faint**2 / size)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class AbsorbedCounts:
    """Counts of a population, with responses and tables precomputed for spectra absorbed by host, WHIM and Milky Way.

    Attributes
    ----------
    statistic : Statistic or JointStatistic
        Statistic of all sources, with the data.
    known, uncertain : ExpectedCounts or None
        Folds of the sources of known and of uncertain redshift; None if there are no such sources.
    known_rows, uncertain_rows : (number known,), (number uncertain,)
        Indices of these sources.
    order : (N,)
        Index of each source in the concatenation of both.
    z, sigma_z, nh_mw, sigma_nh_mw : (N,)
        Redshifts and Galactic columns of the catalogue [1e22 cm^-2], with standard deviations.
    redshift_range : (2, number uncertain)
        Lowest and highest value of each uncertain redshift.
    errors : (N,)
        Largest change of the log likelihood by the reduction to quadrature nodes; 0 for uncertain redshifts.
    depth : WhimTable or None
        Table of the optical depth to all sources at five energies, for the choice of the sampler's coordinates; None
        without a WHIM.
    source_information : SourceInformation
        Gaussian approximation of each source's likelihood, for the same choice.
    medium : Medium
        Options of the absorbers.
    detection : CountLimit or None
        Detected fraction of the sources, with a selection by counts.
    flux_limit : (N,) or None
        log10 of the limit of the flux of each source, with a selection by these.
    """

    statistic: AnyStatistic
    known: ExpectedCounts | None
    uncertain: ExpectedCounts | None
    known_rows: Any
    uncertain_rows: Any
    order: Any
    z: Any
    sigma_z: Any
    nh_mw: Any
    sigma_nh_mw: Any
    redshift_range: Any
    errors: Any
    depth: WhimTable | None
    source_information: SourceInformation
    medium: Medium = field(metadata={"static": True})
    detection: CountLimit | None = None
    flux_limit: Any = None

    @classmethod
    def of(
        cls,
        data: Afterglows,
        medium: Medium,
        band: tuple[float, float],
        statistic: str | None = None,
        tolerance: float = TOLERANCE,
    ) -> "AbsorbedCounts":
        """Precompute responses and tables, which depend on the data and the options of the model alone.

        ``band`` is the energy range of the fluxes [keV]; ``statistic`` is as in `SpectrumStack.statistic`, and
        ``tolerance`` as in `hbm_jax.spectra.fold`.
        """
        known_rows, uncertain_rows = (np.flatnonzero(mask) for mask in (data.knows_redshift, ~data.knows_redshift))
        known, uncertain, errors = None, None, np.zeros(len(data))
        if len(known_rows):
            first_tolerance = tolerance if medium.has_power_laws else max(tolerance, APPROXIMATE)
            known = at_known_redshifts(data, known_rows, medium, band, first_tolerance)
            errors[known_rows] = known.errors
        if len(uncertain_rows):
            spectrum = medium.spectrum(None, band, z_range=redshift_range(data, uncertain_rows))
            responses = [data.spectra.sparse_response(int(row)) for row in uncertain_rows]
            uncertain = ExpectedCounts.averaged(spectrum, responses, np.shape(data.spectra.counts)[1])
        bound = cls(
            statistic=data.spectra.statistic(statistic),
            known=known,
            uncertain=uncertain,
            known_rows=known_rows,
            uncertain_rows=uncertain_rows,
            order=np.argsort(np.concatenate([known_rows, uncertain_rows])),
            **{key: np.asarray(getattr(data, key)) for key in CATALOGUE},  # type: ignore[arg-type]
            redshift_range=np.stack(redshift_range(data, uncertain_rows)),
            errors=errors,
            depth=medium.depth_table(np.asarray(data.z)),
            source_information=None,  # type: ignore[arg-type] # computed from all other fields
            medium=medium,
        )
        bound = dataclasses.replace(bound, source_information=SourceInformation.of(bound))
        if known is None or medium.has_power_laws:
            return bound
        trials_of_sources = possible_trials(bound, known_rows)
        known = at_known_redshifts(data, known_rows, medium, band, tolerance, trials_of_sources)
        errors[known_rows] = known.errors
        return dataclasses.replace(bound, known=known)

    def degenerate_density(self, log10_T) -> jax.Array:
        """Return log10 of the density [cm^-3] at which the mean optical depth of the WHIM is 1, at temperatures (...).

        Density and temperature are degenerate along this curve.
        """
        return jnp.vectorize(lambda T: -jnp.log10(jnp.mean(self.depth(1.0, T))))(log10_T)  # type: ignore[misc]

    def each(self) -> "list[AbsorbedCounts]":
        """Return one `AbsorbedCounts` for each source, all of the same shapes, for `hbm_jax.fit_each`.

        Raises ValueError if a redshift is uncertain, or the response to lines is stored by blocks of all sources.
        """
        if self.uncertain is not None or self.known is None:
            raise ValueError("AbsorbedCounts.each: expected known redshifts; found uncertain ones.")
        if self.known.response is not None and self.known.response.order is not None:
            raise ValueError(
                "AbsorbedCounts.each: expected the responses to lines of each source; found blocks of all sources. "
                "Bind the sources one by one."
            )
        tables = WhimTable, WhimIons

        def single(row):
            """Return the source with this index, with axes of length 1."""

            def select(leaf):
                if isinstance(leaf, tables):
                    return leaf.only(row)
                return np.asarray(leaf)[row : row + 1] if np.ndim(leaf) else leaf  # a number holds for every source

            names = (
                "statistic",
                "known",
                "depth",
                "source_information",
                "errors",
                "detection",
                "flux_limit",
                *CATALOGUE,
            )
            is_table = {"is_leaf": lambda leaf: isinstance(leaf, tables)}
            fields = {name: jax.tree.map(select, getattr(self, name), **is_table) for name in names}
            return dataclasses.replace(self, known_rows=np.zeros(1, int), order=np.zeros(1, int), **fields)

        return [single(row) for row in range(len(self.z))]

    def expected(self, p: dict[str, Any]) -> jax.Array:
        """Return the expected counts of the sources without background, (N, G).

        Parameters are ``photon_index, log10_flux, nh, nh_mw`` (N,), and with uncertain redshifts ``z`` (N,); with a
        WHIM ``log10_n0`` () or (N,), ``log10_T, log10_xi, metallicity`` ().
        """
        parts = []
        if self.known is not None:
            parts.append(positive(self.known(values_of(p, self.known_rows))))
        if self.uncertain is not None:
            parts.append(self.uncertain(values_of(p, self.uncertain_rows)))
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)[self.order]


def redshift_range(data: Any, rows) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of uncertain redshifts: four standard deviations from the catalogue, within 0 and 10."""
    z, sigma = np.asarray(data.z)[rows], np.asarray(data.sigma_z)[rows]
    return np.maximum(z - REACH * sigma, 0.0), np.minimum(z + REACH * sigma, 10.0)
