"""Many spectra side by side: ragged numbers of groups padded to one shape, responses that are shared held once."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.tree_util import register_dataclass
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from hbm_jax.spectra.folding.grouping import groups
from hbm_jax.spectra.folding.response import Response, Rmf
from hbm_jax.spectra.folding.spectrum import Spectrum
from hbm_jax.spectra.statistics.joint import AnyStatistic, JointStatistic
from hbm_jax.spectra.statistics.marginal import neighbouring_mean
from hbm_jax.spectra.statistics.statistic import Statistic, prepare
from hbm_jax.validation import DataError, frozen_array

Floats = NDArray[np.float64]
NO_BACKGROUND = 1e12  # ratio of a region so large that its zero counts leave none in the source region
SAME_RATIO = 0.01  # largest relative spread of the ratio within a group that W and marginal take for one ratio
SAME_AREA = 1e-9  # largest relative spread of AREASCAL within a group that is left to the mean
ARRAYS = (
    "exposure", "counts", "background", "ratio", "ratio_spread", "background_error", "background_mean", "areascal",
    "e_min", "e_max", "used",
)  # fmt: skip


@register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class SpectrumStack:
    """Spectra in groups of channels, ready to be folded and compared together.

    Build one with `of`. N spectra; G groups, as many as the spectrum with the most of them has. A pytree: the arrays
    are leaves, names, responses and the grouping are static.

    Attributes
    ----------
    name : tuple of str
        Of the spectra.
    responses : tuple of Response
        One each; those made of one redistribution matrix hold the same object. Where AREASCAL varies within a group,
        the response of every channel is multiplied by it here.
    grouping : tuple of (num_channels,) int
        Number of the group of each channel, -1 where it is not used.
    exposure : (N,)
        [s].
    counts, background : (N, G)
        Counts of source and background region; 0 where a spectrum has no background.
    ratio : (N, G)
        Counts of the background region for each background count in the source region, mean over a group; 1e12
        without background.
    ratio_spread : (N, G)
        Largest less smallest ratio of the channels of a group, relative to the mean.
    background_error : (N, G)
        Standard deviation of a background that is not Poisson; NaN where it is, or where there is none.
    background_mean : (N, G)
        Background counts that the neighbourhood of the channels would lead one to expect.
    areascal : (N, G)
        Scale of the effective area of all channels of a group; 1 where the response has it already.
    e_min, e_max : (N, G)
        Nominal energies of the groups [keV].
    used : (N, G)
        False for padding.
    warnings : tuple of str
        What is unusual in the files, a sentence each.
    """

    name: tuple[str, ...] = field(metadata={"static": True})
    responses: tuple[Response, ...] = field(metadata={"static": True})
    grouping: tuple[NDArray[np.int64], ...] = field(metadata={"static": True})
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
    warnings: tuple[str, ...] = field(default=(), metadata={"static": True})

    @classmethod
    def of(cls, spectra: Sequence[Spectrum], noticed: Sequence[ArrayLike] | None = None) -> "SpectrumStack":
        """Stack spectra in the groups that they have.

        Parameters
        ----------
        spectra : sequence of Spectrum
            Each with its response.
        noticed : sequence of (num_channels,) bool, optional
            Channels to use of each, from `hbm_jax.spectra.noticed`; all good ones by default.

        Raises
        ------
        DataError
            For no spectra, one without a response or without channels in use, counts that are not Poisson, a channel
            in use without a number of counts, or a background scale of 0.
        """
        if not spectra:
            raise DataError("spectra: expected at least one; found none.")
        masks = [s.quality == 0 for s in spectra] if noticed is None else [np.asarray(m, bool) for m in noticed]
        rows = [_row(spectrum, groups(spectrum, mask)) for spectrum, mask in zip(spectra, masks, strict=True)]
        shared: dict[Any, Response] = {}
        responses = [_scaled(spectrum, row, shared) for spectrum, row in zip(spectra, rows, strict=True)]
        num = max(len(row["counts"]) for row in rows)
        padding = {"ratio": 1.0, "background_error": np.nan, "background_mean": 1.0, "areascal": 1.0}
        padding |= {"e_min": np.nan, "e_max": np.nan}
        arrays = {
            key: np.stack([_padded(row[key], num, padding.get(key, 0)) for row in rows])
            for key in ARRAYS
            if key != "exposure"
        }
        return cls(
            name=tuple(s.name for s in spectra),
            responses=tuple(responses),
            grouping=tuple(row["grouping"] for row in rows),
            warnings=tuple(dict.fromkeys(text for s in spectra for text in s.warnings)),
            **{"exposure": frozen_array([s.exposure for s in spectra])}
            | {key: _frozen(value) for key, value in arrays.items()},
        )

    def __len__(self) -> int:
        return len(self.name)

    def __repr__(self) -> str:
        return f"SpectrumStack({len(self)} spectra, {self.counts.shape[-1]} groups at most)"

    @property
    def has_background(self) -> NDArray[np.bool_]:
        """Whether each spectrum has a background, (N,)."""
        return np.asarray(self.ratio)[:, 0] != NO_BACKGROUND

    @property
    def has_gaussian_background(self) -> NDArray[np.bool_]:
        """Whether the background of each spectrum has Gaussian errors, (N,)."""
        return np.isfinite(self.background_error).any(axis=1)

    @property
    def default_statistic(self) -> str:
        """``pgstat`` where backgrounds have Gaussian errors, ``marginal`` where they are Poisson, else ``cstat``.

        ``pgstat and marginal`` where there are both.
        """
        gaussian = self.has_gaussian_background
        if gaussian.any():
            return "pgstat and marginal" if (self.has_background & ~gaussian).any() else "pgstat"
        return "marginal" if self.has_background.any() else "cstat"

    def statistic(self, name: str | None = None) -> AnyStatistic:
        """Prepare a statistic of all spectra together; `default_statistic` where none is named.

        Where some backgrounds have Gaussian errors and others are Poisson, each spectrum keeps the statistic that suits
        it: pgstat, and for the others the one that is named, or marginal.

        Raises
        ------
        ValueError
            For an unknown name, or a statistic that does not suit the backgrounds: cstat with any; wstat or marginal
            where all have Gaussian errors, pgstat where none has, chi-square where any has. For wstat and marginal
            also where the ratio of a Poisson background differs by more than 1 % within a group.
        """
        gaussian = self.has_gaussian_background
        poisson = self.has_background & ~gaussian
        name = name or ("marginal" if poisson.any() else self.default_statistic)
        if name == "cstat":
            self._refuse(name, self.has_background, "spectra without background; found one", "wstat or marginal")
            return prepare(name, self.counts, used=self.used)
        if name.startswith("chi2") or (name in ("wstat", "marginal") and not poisson.any()):
            self._refuse(name, gaussian, "Poisson backgrounds; found one with Gaussian errors", "pgstat")
        if name == "pgstat" and not gaussian.any():
            self._refuse(name, poisson, "backgrounds with Gaussian errors; found a Poisson one", "wstat or marginal")
        if not gaussian.any():
            return self._prepared(name, self.used)
        if not poisson.any():
            return self._prepared("pgstat", self.used)
        name = "marginal" if name == "pgstat" else name
        used = gaussian[:, None] & self.used
        return JointStatistic.of((self._prepared("pgstat", used), self._prepared(name, self.used & ~used)))

    def _prepared(self, name: str, used: Any) -> Statistic:
        """Prepare one statistic for some of the spectra."""
        given = {"background": self.background, "ratio": self.ratio, "used": used}
        if name == "pgstat":
            given["background_error"] = np.where(np.isfinite(self.background_error), self.background_error, 0.0)
        if name == "marginal":
            given["prior_mean"] = self.background_mean
        if name in ("wstat", "marginal"):
            mixed = (np.asarray(self.ratio_spread) > SAME_RATIO) & used
            if mixed.any():
                row, place = np.argwhere(mixed)[0]
                raise ValueError(
                    f"{name}, {self.name[row]}: expected one ratio of the background to the source region in each "
                    f"group; found ratios that differ by {self.ratio_spread[row, place]:.3g} of their mean from "
                    f"{self.e_min[row, place]:.4g} to {self.e_max[row, place]:.4g} keV. Group fewer channels, or none "
                    "(grouping='none')."
                )
        return prepare(name, self.counts, **given)

    def _refuse(self, name: str, bad: NDArray[np.bool_], expected: str, instead: str) -> None:
        if bad.any():
            raise ValueError(f"{name}: expected {expected}, of {self.name[int(bad.argmax())]}. Use {instead}.")

    def grouped_response(self, row: int) -> tuple[Floats, Floats]:
        """Energy edges [keV], (E + 1,), and the response of one spectrum in its groups [cm^2 s], (E, G of its own)."""
        response, used = self.responses[row], np.asarray(self.used[row])
        matrix = response.grouped(self.grouping[row])
        return response.energy, matrix * (self.exposure[row] * np.asarray(self.areascal[row])[used])

    def subset(self, rows: ArrayLike) -> "SpectrumStack":
        """Return the spectra picked by integer indices."""
        index = [int(i) for i in np.asarray(rows)]
        most = int(np.asarray(self.used)[index].sum(axis=1).max())
        return dataclasses.replace(
            self,
            name=tuple(self.name[i] for i in index),
            responses=tuple(self.responses[i] for i in index),
            grouping=tuple(self.grouping[i] for i in index),
            exposure=_frozen(self.exposure[index]),
            **{key: _frozen(getattr(self, key)[index][:, :most]) for key in ARRAYS if key != "exposure"},  # type: ignore[arg-type]
        )

    def describe(self) -> str:
        """Return one paragraph: how many spectra, with how many counts at which energies."""
        counts, groups = np.asarray(self.counts).sum(axis=1), np.asarray(self.used).sum(axis=1)
        parts = [
            f"{name}: {total:.0f} counts in {time:.6g} s, {num} groups of channels from {low:.3g} to {high:.3g} keV"
            f"{', with a background' if behind else ''}"
            for name, total, time, num, low, high, behind in zip(
                self.name, counts, self.exposure, groups,
                np.nanmin(self.e_min, axis=1), np.nanmax(self.e_max, axis=1), self.has_background, strict=True,
            )
        ]  # fmt: skip
        return " ".join(["; ".join(parts) + ".", *(f"Warning: {text}." for text in self.warnings)])

    def to_table(self):
        """Return an astropy ``Table``, one row a spectrum."""
        from astropy.table import Table

        sums = {key: np.asarray(getattr(self, key)).sum(axis=1) for key in ("counts", "background", "used")}
        ranges = {"e_min": np.nanmin(self.e_min, axis=1), "e_max": np.nanmax(self.e_max, axis=1)}
        return Table(
            {"name": list(self.name), "exposure": np.array(self.exposure)}
            | {"counts": sums["counts"], "background": sums["background"], "groups": sums["used"]}
            | ranges
        )

    def replace_observations(self, counts: ArrayLike) -> "SpectrumStack":
        """Return a copy with other counts in the source region, (N, G).

        Raises
        ------
        DataError
            For another shape, or counts that are negative or not whole.
        """
        counts = np.asarray(counts, float)
        if counts.shape != np.shape(self.counts):
            raise DataError(f"counts: expected an array of shape {np.shape(self.counts)}; found {counts.shape}.")
        bad = np.asarray(self.used) & ~((counts >= 0) & (counts % 1 == 0))
        if bad.any():
            row = int(bad.any(axis=1).argmax())
            found = counts[bad][0]
            raise DataError(f"counts, {self.name[row]}: expected whole numbers, 0 or more; found {found:g}.")
        return dataclasses.replace(self, counts=_frozen(np.where(self.used, counts, 0.0)))

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return plain arrays, redistributions once each, for storage."""
        rmfs = list({id(r.rmf): r.rmf for r in self.responses}.values())
        which = np.array([next(i for i, rmf in enumerate(rmfs) if rmf is r.rmf) for r in self.responses])
        num_bins, num_channels = (
            max(len(v) for v in values) for values in ([r.area for r in self.responses], self.grouping)
        )
        stored = {"spectrum_name": np.array(self.name), "rmf_number": which}
        stored |= {key: np.array(getattr(self, key)) for key in ARRAYS}
        if self.warnings:
            stored["warnings"] = np.array(self.warnings)
        stored["area"] = np.stack([_padded(r.area, num_bins, 0.0) for r in self.responses])
        stored["grouping"] = np.stack([_padded(g, num_channels, -1) for g in self.grouping])
        for number, rmf in enumerate(rmfs):
            parts = {"energy": rmf.energy, "channels": rmf.channels, "e_min": rmf.e_min, "e_max": rmf.e_max}
            parts |= {"values": rmf.matrix.data, "columns": rmf.matrix.indices, "row_starts": rmf.matrix.indptr}
            stored |= {f"rmf{number}_{key}": np.array(value) for key, value in parts.items()}
            stored[f"rmf{number}_name"] = np.array(rmf.name)
        return stored

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "SpectrumStack":
        """Build the stack from what `to_dict` returned; every value comes back exactly."""
        rmfs: list[Rmf] = []
        while f"rmf{len(rmfs)}_energy" in stored:
            part = {key: stored[f"rmf{len(rmfs)}_{key}"] for key in ("energy", "channels", "e_min", "e_max", "name")}
            values, columns, starts = (stored[f"rmf{len(rmfs)}_{key}"] for key in ("values", "columns", "row_starts"))
            shape = (len(part["energy"]) - 1, len(part["channels"]))
            matrix = sparse.csr_matrix((values, columns, starts), shape=shape)
            rmfs.append(Rmf(part["energy"], matrix, part["channels"], part["e_min"], part["e_max"], str(part["name"])))
        responses, grouping = [], []
        for number, area, group in zip(stored["rmf_number"], stored["area"], stored["grouping"], strict=True):
            rmf = rmfs[int(number)]
            responses.append(Response.from_area(rmf, np.asarray(area[: rmf.matrix.shape[0]])))
            grouping.append(np.asarray(group[: len(rmf.channels)]))
        stored = {"ratio_spread": np.zeros(np.shape(stored["ratio"]))} | dict(stored)  # older ones are without it
        arrays = {key: _frozen(stored[key]) for key in ARRAYS}
        return cls(
            tuple(str(n) for n in stored["spectrum_name"]), tuple(responses), tuple(grouping), **arrays,
            warnings=tuple(str(text) for text in stored.get("warnings", ())),
        )  # fmt: skip


def _row(spectrum: Spectrum, grouping: NDArray[np.int64]) -> dict[str, Any]:
    """Everything of one spectrum, in its groups."""
    name, num = spectrum.name, int(grouping.max(initial=-1)) + 1
    if spectrum.response is None:
        raise DataError(f"{name}: expected a response; found none. Name one (rmf=PATH, arf=PATH).")
    if spectrum.error is not None:
        raise DataError(f"{name}: expected counts, which are Poisson; found rates with errors of their own.")
    if not num:
        raise DataError(f"{name}: expected channels in use; found none.")
    of = grouping >= 0
    place = grouping[of]

    for kind, one in (("", spectrum), (" of the background", spectrum.background)):
        if one is not None and np.isnan(one.counts[of]).any():
            channel = one.channels[of][np.isnan(one.counts[of])][0]
            raise DataError(f"{name}: expected counts{kind} in every channel used; found NaN in channel {channel}.")

    def total(values):
        return np.bincount(place, np.asarray(values, float)[of], minlength=num)

    def extent(values):
        low, high = np.full(num, np.inf), np.full(num, -np.inf)
        np.minimum.at(low, place, values[of])
        np.maximum.at(high, place, values[of])
        return low, high

    width = total(np.ones(len(grouping)))
    e_min, e_max = extent(spectrum.response.e_min)[0], extent(spectrum.response.e_max)[1]
    row: dict[str, Any] = {
        "grouping": grouping,
        "counts": total(spectrum.counts),
        "areascal": total(spectrum.areascal) / width,
        "e_min": e_min,
        "e_max": e_max,
        "used": np.ones(num, bool),
        "background": np.zeros(num),
        "ratio": np.full(num, NO_BACKGROUND),
        "ratio_spread": np.zeros(num),
        "background_error": np.full(num, np.nan),
        "background_mean": np.ones(num),
    }
    behind = spectrum.background
    if behind is None:
        return row
    ratio = spectrum.background_ratio
    if not (np.isfinite(ratio[of]) & (ratio[of] > 0)).all():
        raise DataError(
            f"{name}: expected positive BACKSCAL and AREASCAL of spectrum and background in every channel used; found "
            f"a ratio of {ratio[of][~(ratio[of] > 0)][:1]}."
        )
    row["background"] = total(behind.counts)
    row["ratio"] = total(ratio) / width
    low, high = extent(ratio)
    row["ratio_spread"] = (high - low) / row["ratio"]
    if behind.error is not None:
        # Each channel by its own ratio.
        share = _spread(of, row["ratio"][place] / ratio[of])
        row["background"] = total(share * behind.counts)
        row["background_error"] = np.sqrt(total((share * behind.error) ** 2))
    else:
        row["background_mean"] = total(_spread(of, neighbouring_mean(behind.counts[of])))
    return row


def _scaled(spectrum: Spectrum, row: dict[str, Any], shared: dict[Any, Response]) -> Response:
    """Response of a spectrum; multiplied by AREASCAL in each channel where that varies within a group."""
    response, grouping = spectrum.response, row["grouping"]
    assert response is not None
    used = grouping >= 0
    mean = row["areascal"][grouping[used]]
    if (np.abs(spectrum.areascal[used] - mean) <= SAME_AREA * mean).all():
        return response
    key = id(response.rmf), response.area.tobytes(), spectrum.areascal.tobytes()
    if key not in shared:
        rmf = response.rmf
        matrix = sparse.csr_matrix(rmf.matrix @ sparse.diags(spectrum.areascal))
        shared[key] = Response.from_area(dataclasses.replace(rmf, matrix=matrix), response.area)
    row["areascal"] = np.ones(len(row["areascal"]))
    return shared[key]


def _spread(of, values) -> Floats:
    """Values of the channels in use, in an array of all channels."""
    whole = np.zeros(len(of))
    whole[of] = values
    return whole


def _padded(values, num: int, padding) -> np.ndarray:
    values = np.asarray(values)
    return np.concatenate([values, np.full(num - len(values), padding, values.dtype)])


def _frozen(values) -> np.ndarray:
    out = np.array(values)
    out.flags.writeable = False
    return out
