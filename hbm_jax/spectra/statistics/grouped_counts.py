"""Grouped counts of several spectra with their backgrounds, and the statistic that suits them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from hbm_jax.names import choose, listed
from hbm_jax.spectra.folding.group_sums import NO_BACKGROUND
from hbm_jax.spectra.statistics.gaussian_marginal import truncated_mean
from hbm_jax.spectra.statistics.joint import AnyStatistic, JointStatistic
from hbm_jax.spectra.statistics.statistic import STATISTICS, Statistic, prepare
from hbm_jax.validation import DataError, Floats, Remedy

SAME_RATIO = 0.01  # largest relative spread within a group for which W and marginal use the mean ratio


@dataclass(frozen=True, eq=False, repr=False)
class GroupedCounts:
    """Counts of N spectra in up to G groups of channels, with their backgrounds.

    Attributes
    ----------
    name : tuple of str
        Names of the spectra.
    exposure : (N,)
        Exposure times [s].
    counts, background : (N, G)
        Counts in the source and the background region; 0 for a spectrum without a background.
    ratio : (N, G)
        Ratio of the background counts expected in the background region to those in the source region, averaged over a
        group; 1e12 without a background.
    ratio_spread : (N, G)
        Range of the ratio over the channels of a group, relative to the mean.
    background_error : (N, G)
        Standard deviation of a background with Gaussian errors; NaN if the background is Poisson or absent.
    background_mean : (N, G)
        Background counts expected from the mean of neighbouring channels, the prior mean of the statistic ``marginal``.
    areascal : (N, G)
        Scale of the effective area, averaged over a group; 1 where it is multiplied into the response.
    e_min, e_max : (N, G)
        Nominal energy limits of the groups [keV].
    used : (N, G)
        False for padding.
    error : (N, G)
        Standard deviation of counts with Gaussian errors, including systematic errors; the background is subtracted
        from these counts. NaN for Poisson counts.
    systematic : (N, G)
        Systematic error of Poisson counts, used by chi-square statistics.
    """

    name: tuple[str, ...] = field(metadata={"static": True})
    exposure: Any
    counts: Any
    background: Any
    ratio: Any
    ratio_spread: Any
    background_error: Any
    background_mean: Any
    areascal: Any
    e_min: Any
    e_max: Any
    used: Any
    error: Any
    systematic: Any

    def __len__(self) -> int:
        return len(self.name)

    @property
    def has_background(self) -> NDArray[np.bool_]:
        """Mask (N,) of the spectra with a background."""
        return np.asarray(self.ratio)[:, 0] != NO_BACKGROUND

    @property
    def has_gaussian_background(self) -> NDArray[np.bool_]:
        """Mask (N,) of the spectra whose background has Gaussian errors."""
        return np.isfinite(self.background_error).any(axis=1)

    @property
    def has_gaussian_counts(self) -> NDArray[np.bool_]:
        """Mask (N,) of the spectra whose counts have Gaussian errors."""
        return np.isfinite(self.error).any(axis=1)

    @property
    def default_statistic(self) -> str:
        """Name of the statistic for these counts and backgrounds; several, joined by "and", if the spectra differ.

        ``chi2`` for counts with Gaussian errors, ``pgstat`` for backgrounds with Gaussian errors, ``marginal`` for
        Poisson backgrounds, and ``cstat`` without backgrounds.
        """
        gaussian_background = self.has_gaussian_background
        poisson_background = self.has_background & ~gaussian_background
        names = []
        if self.has_gaussian_counts.any():
            names.append("chi2")
        if gaussian_background.any():
            names.append("pgstat")
        if poisson_background.any():
            names.append("marginal")
        elif not gaussian_background.any() and not self.has_gaussian_counts.all():
            names.append("cstat")
        return " and ".join(names)

    def statistic(self, name: str | Sequence[str] | None = None) -> AnyStatistic:
        """Prepare the statistic of all spectra together.

        Parameters
        ----------
        name : str or sequence of str, optional
            One of `hbm_jax.spectra.STATISTICS`, or one for each spectrum; default: `default_statistic`.

        Raises
        ------
        ValueError
            If the name is unknown, or the statistic does not suit the data: cstat if any spectrum has a background;
            wstat if all backgrounds have Gaussian errors; wstat and marginal if the ratio of a Poisson background
            varies by more than 1 % within a group; pgstat if no background has Gaussian errors; chi2 if no counts have
            them; the other chi-square statistics if any background has them.

        Notes
        -----
        Spectra whose counts have Gaussian errors always use chi2. If some backgrounds have Gaussian errors and others
        are Poisson, the spectra with Gaussian backgrounds use pgstat and the others the named statistic, by default
        marginal; but ``marginal``, if named, is for all.
        """
        if name is None or isinstance(name, str):
            parts = self._parts(name, np.ones(len(self), bool))
        else:
            names = np.array(list(name))
            if len(names) != len(self):
                raise ValueError(
                    f"statistic: expected one, or one for each of {len(self)} spectra; found {len(names)}: "
                    f"{listed(names)}."
                )
            parts = tuple(part for key in dict.fromkeys(names) for part in self._parts(str(key), names == key))
        return parts[0] if len(parts) == 1 else JointStatistic.of(parts)

    def _parts(self, name: str | None, rows: NDArray[np.bool_]) -> tuple[Statistic, ...]:
        """Prepare the statistics of the spectra in the mask `rows`."""
        gaussian_counts = self.has_gaussian_counts & rows
        poisson_counts = rows & ~gaussian_counts
        if name == "chi2":
            if not gaussian_counts.any():
                self._reject(
                    name, rows, "counts with errors; found Poisson counts", "chi2_gehrels, chi2_data or chi2_model"
                )
            name = None  # spectra with Poisson counts have their default statistic
        if not gaussian_counts.any():
            return self._poisson_parts(name, poisson_counts)
        if name is not None and not poisson_counts.any():
            choose("statistic", name, STATISTICS)
            self._reject(name, gaussian_counts, "Poisson counts; found counts with Gaussian errors", "chi2")
        used = gaussian_counts[:, None] & self.used
        chi2 = prepare("chi2", self.counts, error=np.where(used, self.error, 1.0), used=used)
        return (chi2, *self._poisson_parts(name, poisson_counts)) if poisson_counts.any() else (chi2,)

    def _poisson_parts(self, name: str | None, rows: NDArray[np.bool_]) -> tuple[Statistic, ...]:
        """Prepare the statistics of the spectra in the mask `rows`, whose counts are Poisson."""
        used = rows[:, None] & self.used
        gaussian_background = self.has_gaussian_background & rows
        poisson_background = self.has_background & rows & ~gaussian_background
        for_gaussian = "marginal" if name == "marginal" else "pgstat"
        if name is None:
            name = "marginal" if poisson_background.any() else "pgstat" if gaussian_background.any() else "cstat"
        if name == "cstat":
            has_background = self.has_background & rows
            self._reject(name, has_background, "spectra without a background; found one", "wstat or marginal")
            return (prepare(name, self.counts, used=used),)
        if name.startswith("chi2") or (name == "wstat" and not poisson_background.any()):
            self._reject(name, gaussian_background, "Poisson backgrounds; found Gaussian errors", "pgstat or marginal")
        if name == "pgstat" and not gaussian_background.any():
            expected = "backgrounds with Gaussian errors; found a Poisson background"
            self._reject(name, poisson_background, expected, "wstat or marginal")
        if not gaussian_background.any():
            return (self._prepare(name, used),)
        if not poisson_background.any():
            return (self._prepare(for_gaussian, used, gaussian=True),)
        # Both kinds of background: the named statistic for the Poisson ones.
        name = "marginal" if name == "pgstat" else name
        with_errors = gaussian_background[:, None] & used
        gaussian = self._prepare(for_gaussian, with_errors, gaussian=True)
        return gaussian, self._prepare(name, used & ~with_errors)

    def _prepare(self, name: str, used: Any, *, gaussian: bool = False) -> Statistic:
        """Prepare a statistic of the groups in the mask `used`; ``gaussian`` if their backgrounds have errors."""
        arguments = {"background": self.background, "ratio": self.ratio, "used": used}
        if gaussian or name == "pgstat":
            arguments["background_error"] = np.where(np.isfinite(self.background_error), self.background_error, 0.0)
            return prepare(name, self.counts, **arguments)
        if name == "marginal":
            arguments["prior_mean"] = self.background_mean
        if name.startswith("chi2"):
            arguments["error"] = self.systematic
        if name in ("wstat", "marginal"):
            mixed = (np.asarray(self.ratio_spread) > SAME_RATIO) & used
            if mixed.any():
                row, column = np.argwhere(mixed)[0]
                ungrouped = Remedy("grouping", "none")
                raise DataError(
                    f"{name}, {self.name[row]}: expected one ratio of background to source region in each group; "
                    f"found ratios that differ by {self.ratio_spread[row, column]:.3g} of their mean from "
                    f"{self.e_min[row, column]:.4g} to {self.e_max[row, column]:.4g} keV. Group fewer channels, "
                    f"or none ({ungrouped}).",
                    [ungrouped],
                )
        return prepare(name, self.counts, **arguments)

    def _reject(self, name: str, rows: NDArray[np.bool_], expected: str, alternative: str) -> None:
        """Raise ValueError for the first spectrum in the mask `rows`, if any: the statistic does not suit it."""
        if rows.any():
            raise ValueError(f"{name}: expected {expected} in {self.name[int(rows.argmax())]}. Use {alternative}.")

    def expected_background(self, source: Floats, statistic: AnyStatistic) -> Floats:
        """Return the background counts expected in the source region, for expected counts of the source (..., N, G).

        They are the most likely background (wstat, pgstat), its posterior mean given the background region (marginal),
        the scaled counts of the background region (chi-square), or 0. ``statistic`` is the result of `statistic`.
        """
        if isinstance(statistic, JointStatistic):
            parts = [np.where(part.used, self.expected_background(source, part), 0.0) for part in statistic.parts]
            return np.sum(parts, axis=0)
        if statistic.name in ("wstat", "pgstat"):
            with jax.enable_x64(True):
                return np.asarray(statistic.most_likely_background(source))
        if statistic.name == "marginal" and statistic.shape is None:
            mean = truncated_mean(statistic.background, statistic.background_error)
            return np.broadcast_to(mean, source.shape)
        if statistic.name == "marginal":
            return np.broadcast_to(statistic.shape / statistic.rate, source.shape)
        if statistic.name.startswith("chi2"):
            return np.broadcast_to(np.asarray(self.background) / np.asarray(self.ratio), source.shape)
        return np.zeros_like(source)
