"""Expected counts of bursts in many intervals and detectors, from precomputed responses on quadrature nodes.

Spectra with the same response and the same grouping share one matrix, so that an evaluation multiplies one small matrix
per instrument, not per spectrum.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.cosmology import Cosmology
from hbm_jax.data.bursts.spectra import BurstSpectra
from hbm_jax.models.bursts.peaked import PeakedSpectrum
from hbm_jax.precomputation import precomputed
from hbm_jax.spectra.folding.expected_counts import ExpectedCounts
from hbm_jax.spectra.model.energetics import log10_sphere_area
from hbm_jax.spectra.statistics.joint import AnyStatistic

TOLERANCE = 1e-2  # of `FoldedBursts.errors`, in standard deviations
MIN_EXPECTED = 1e-20  # lower bound of expected counts
# Blocks of groups without the nodes to which they do not respond; value and gradient take 0.87 of the time with one.
NUM_BLOCKS = 4


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class FoldedBursts:
    """Spectra of bursts with precomputed responses: B bursts, I intervals, D detectors, N spectra in at most G groups.

    There are R instruments (a response with a grouping), with at most S spectra each.

    Attributes
    ----------
    statistic : Statistic or JointStatistic
        Fit statistic of all N spectra, which holds the counts.
    source : ExpectedCounts
        Counts per second, (R, S, G), as a function of the parameters (R, S).
    exposure : (R S,)
        Exposure time [s]; 0 in padding.
    of_interval, of_detector : (R S, I), (R S, D)
        1 where a spectrum belongs to an interval or a detector, else 0. Multiplying by these matrices, instead of
        indexing, maps parameters to spectra with a derivative that is a matrix product too.
    order : (N,)
        Index of each spectrum among the R S slots.
    num_instruments : int
        R.
    in_order : bool
        Whether ``order`` is the identity.
    of_burst : (I, B)
        1 where an interval belongs to a burst, else 0.
    reference, of_free : (D,), (D, F)
        1 for reference detectors, whose effective area is fixed; 1 where a detector has one of the F free effective
        areas.
    low, high : (I,)
        Observed band of the energy flux [keV].
    log10_stretch, log10_sphere_area : (I,)
        log10 of 1 + z, and of 4 pi d_L^2 [cm^2].
    errors : (N,)
        Error of the expected counts in standard deviations, see `hbm_jax.spectra.folding.fold.deviation`. The log
        likelihood changes by about this number where the model fits the data.
    spectrum : PeakedSpectrum
        Model expression.
    """

    statistic: AnyStatistic
    source: ExpectedCounts
    exposure: Any
    of_interval: Any
    of_detector: Any
    order: Any
    of_burst: Any
    reference: Any
    of_free: Any
    low: Any
    high: Any
    log10_stretch: Any
    log10_sphere_area: Any
    errors: Any
    spectrum: PeakedSpectrum = field(metadata={"static": True})
    num_instruments: int = field(metadata={"static": True})
    in_order: bool = field(metadata={"static": True})

    @classmethod
    def of(
        cls,
        data: BurstSpectra,
        *,
        spectrum: PeakedSpectrum | str = "band",
        band: tuple[float, float] = (1.0, 1e4),
        frame: str = "rest",
        statistic: str | None = None,
        H0: float = 70.0,
        Om0: float = 0.3,
        tolerance: float = TOLERANCE,
    ) -> "FoldedBursts":
        """Precompute the responses on nodes and everything else that depends on the data alone.

        Parameters
        ----------
        data : BurstSpectra
            The bursts.
        spectrum, band, frame, statistic, H0, Om0
            As in `hbm_jax.models.GolenetskiiCounts`.
        tolerance : float
            Upper limit of ``errors``. Where no nodes meet it, all bins are folded if that is more accurate.
        """
        stack, spectrum = data.spectra, PeakedSpectrum.of(spectrum)
        instruments = _spectra_by_instrument(stack)
        source = _folded(spectrum, stack, instruments, tolerance)
        errors = np.zeros(len(stack))
        errors[np.concatenate(instruments)] = source.errors
        num_slots = max(map(len, instruments))  # of each instrument
        slots = np.concatenate([np.pad(rows, (0, num_slots - len(rows)), constant_values=-1) for rows in instruments])
        used = slots >= 0
        order = np.empty(len(stack), int)
        order[slots[used]] = np.flatnonzero(used)
        z = np.asarray(data.z)[data.interval_burst]
        stretch = 1.0 + z if frame == "rest" else np.ones(len(z))
        free = np.flatnonzero(np.asarray(data.reference) == 0)
        sphere = precomputed(lambda: np.asarray(log10_sphere_area(np.asarray(data.z), Cosmology.flat(H0=H0, Om0=Om0))))
        return cls(
            statistic=stack.statistic(statistic),
            source=source,
            exposure=np.where(used, np.asarray(stack.exposure)[slots], 0.0),
            of_interval=_one_hot(np.where(used, np.asarray(data.spectrum_interval)[slots], 0), len(z)),
            of_detector=_one_hot(np.where(used, np.asarray(data.spectrum_detector)[slots], 0), len(data.detector)),
            order=order,
            of_burst=_one_hot(data.interval_burst, len(data)),
            reference=np.asarray(data.reference, float),
            of_free=_one_hot(free, len(data.detector)).T,
            low=band[0] / stretch,
            high=band[1] / stretch,
            log10_stretch=np.log10(1.0 + z),
            log10_sphere_area=sphere[data.interval_burst],
            errors=errors,
            spectrum=spectrum,
            num_instruments=len(instruments),
            in_order=np.array_equal(order, np.arange(len(slots))),
        )

    def expected(self, values: Mapping[str, Any]) -> jax.Array:
        """Return the expected counts of the bursts without background, (N, G).

        Parameters
        ----------
        values : mapping of str to (I,) array
            Values of the sites ``spectrum.names``: ``log10_E_peak`` in the rest frame [keV]; the other parameters, such
            as ``alpha`` and ``beta``; ``log10_flux`` in the band [erg/cm^2/s]. Optional: ``effective_area`` (F,), of
            the non-reference detectors relative to the reference detectors; 1 where omitted.
        """
        parameters = self.spectrum.parameters(values, self.log10_stretch, self.low, self.high)
        # One matrix product maps all parameters from intervals to spectra.
        columns = (self.of_interval @ jnp.stack(list(parameters.values()), axis=1)).T
        in_slots = columns.reshape(len(parameters), self.num_instruments, -1)
        counts = self.source(dict(zip(parameters, in_slots, strict=True))).reshape(len(self.exposure), -1)
        factor = self.exposure
        if "effective_area" in values:
            factor = factor * (self.of_detector @ (self.reference + self.of_free @ values["effective_area"]))
        # Far above a cut-off the interpolating polynomial can be negative, by 1e-8 counts.
        counts = jnp.maximum(counts * factor[:, None], MIN_EXPECTED)
        return counts if self.in_order else counts[self.order]

    def per_interval(self, values) -> jax.Array:
        """Return the sum over spectra and groups of each interval, (..., N, G) -> (..., I)."""
        return jnp.sum(values, axis=-1) @ self.of_interval[self.order]


def _folded(spectrum: PeakedSpectrum, stack, instruments: list[list[int]], tolerance: float) -> ExpectedCounts:
    """Fold the spectrum through the response of each instrument, per second of exposure."""
    responses, counts, backgrounds = [], [], []
    for rows in instruments:
        responses.append(stack.grouped_response(rows[0], per_second=True))
        groups = slice(responses[-1][1].shape[1])
        counts.append(np.asarray(stack.counts[rows])[:, groups])
        backgrounds.append(np.maximum(np.asarray(stack.background[rows] / stack.ratio[rows])[:, groups], 0.0))
    return ExpectedCounts.of(
        spectrum.expression,
        responses,
        counts,
        spectrum.trials,
        tolerance=tolerance,
        trial_spectrum=spectrum.trial_expression,
        backgrounds=backgrounds,
        num_groups=np.shape(stack.counts)[1],
        num_blocks=NUM_BLOCKS,
    )


def _spectra_by_instrument(stack) -> list[list[int]]:
    """Return the indices of the spectra that share response, effective area, grouping and area scaling."""
    instruments: dict[Any, list[int]] = {}
    for row in range(len(stack)):
        response, scale = stack.responses[row], np.asarray(stack.areascal[row])
        key = (id(response.rmf), response.area.tobytes(), stack.grouping[row].tobytes(), scale.tobytes())
        instruments.setdefault(key, []).append(row)
    return list(instruments.values())


def _one_hot(index, num: int) -> np.ndarray:
    """Return the matrix (len(index), num) with 1 at each index, else 0."""
    return (np.asarray(index)[:, None] == np.arange(num)).astype(float)
