"""Data of the figures of spectra: the folded model at posterior draws, and rebinned counts."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from hbm_jax.data import Afterglows, BurstSpectra, SourceSpectra
from hbm_jax.inference import Fit
from hbm_jax.inference.results import model_of
from hbm_jax.models import Afterglow, GolenetskiiCounts, SpectralFit, SpectralPopulation
from hbm_jax.models.xray.folded_regions import FoldedRegions
from hbm_jax.plotting.draws import evenly_spaced, model_and_data, parameter
from hbm_jax.spectra.background_regions import RegionStack
from hbm_jax.spectra.stack import SpectrumStack

Floats = NDArray[np.float64]
NUM_DRAWS = 100
FEWEST = 5.0  # smallest number of counts in a bin of a figure
GAS = ("log10_T", "log10_xi", "metallicity")
CHUNK = 10  # draws folded in one batch


class ExpectedCounts(NamedTuple):
    """Expected counts of every source at posterior draws, in the groups of channels of the statistic.

    Attributes
    ----------
    source : (draw, N, G)
        Expected counts of the sources without background.
    background : (draw, N, G)
        Expected background counts in the source region.
    """

    source: Floats
    background: Floats


def folded(fit: Fit, caller: str = "folded", num_draws: int = NUM_DRAWS) -> ExpectedCounts:
    """Return the expected counts at posterior draws, computed as in the model.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Afterglow`, `SpectralPopulation`, `SpectralFit` or `GolenetskiiCounts`, with its program
        and data.
    caller : str
        Name of the calling function, for error messages.
    num_draws : int
        Number of posterior draws, spread evenly over the chains.

    Returns
    -------
    ExpectedCounts
        The background is the best-fitting one at each draw (wstat, pgstat), its posterior mean given the background
        region (marginal), the scaled counts of the background region (chi-square), or 0 (cstat).
    """
    chosen = evenly_spaced(fit.posterior.sizes["chain"] * fit.posterior.sizes["draw"], num_draws)
    program: Any = model_of(fit)
    draws: Any
    prepared: Any
    if isinstance(program, SpectralFit) and isinstance(fit.data, SpectrumStack):
        draws, prepared = _draws(fit, program.all_priors, chosen), fit.bound_args[0]

        def expected(draw):
            return program._expected(prepared, draw)

        if isinstance(prepared, FoldedRegions):
            return _expected_in_regions(program, prepared, draws)

    elif isinstance(program, GolenetskiiCounts) and isinstance(fit.data, BurstSpectra):
        names = (*program.peaked.names, "effective_area")
        draws, prepared = _draws(fit, names, chosen), fit.bound_args[0].folded

        def expected(draw):
            return prepared.expected(draw)

    elif isinstance(program, SpectralPopulation) and isinstance(fit.data, SourceSpectra):
        names = (*(v.site for v in program.sites), *program.common_parameters, "calibration")
        draws, prepared = _draws(fit, names, chosen), fit.bound_args[0]

        def expected(draw):
            return program.expected(prepared, draw)

    else:
        model_and_data(fit, Afterglow, Afterglows, caller)
        prepared, draws = fit.bound_args[0], parameters(fit, num_draws)

        def expected(draw):
            return prepared.expected(draw)

    with jax.enable_x64(True):
        run = jax.jit(lambda draws: jax.lax.map(expected, draws, batch_size=CHUNK))
        source = np.asarray(run(draws))
    statistic = prepared.statistic
    background = stack_of(fit.data).expected_background(source, statistic)
    return ExpectedCounts(source, np.where(statistic.used, background, 0.0))


def _expected_in_regions(program: SpectralFit, prepared: FoldedRegions, draws: dict[str, Floats]) -> ExpectedCounts:
    """Return the expected counts of a fit with a model of the background."""
    with jax.enable_x64(True):
        run = jax.jit(lambda draws: jax.lax.map(lambda d: program._parts(prepared, d), draws, batch_size=CHUNK))
        source, background = (np.asarray(part) for part in run(draws))
    return ExpectedCounts(source, np.where(prepared.statistic.used, background, 0.0))


def _draws(fit: Fit, names: Iterable[str], chosen) -> dict[str, Floats]:
    """Return the chosen draws of all ``names`` that are in the posterior, (draw, ...) each."""
    return {name: parameter(fit, name)[chosen] for name in set(names) & set(fit.posterior)}


def values_of(fit: Fit, priors: Mapping[str, Any], num_draws: int, row: int) -> dict[str, Floats]:
    """Return the parameters of one spectrum of a `SpectralFit` at posterior draws, (draw,) each."""
    chosen = evenly_spaced(fit.posterior.sizes["chain"] * fit.posterior.sizes["draw"], num_draws)
    draws = _draws(fit, priors, chosen)
    fixed = {name: np.full(len(chosen), float(prior)) for name, prior in priors.items() if name not in draws}
    return fixed | {n: v[:, row] if v.ndim == 2 else v for n, v in draws.items() if n != "calibration"}


def stack_of(data: Any) -> SpectrumStack:
    """Return the spectra of a sample of afterglows or bursts, or the sample itself if it is a `SpectrumStack`."""
    return data if isinstance(data, SpectrumStack) else data.spectra


class FigureBins(NamedTuple):
    """Bins of a figure, each of one or several groups of channels of one spectrum.

    Attributes
    ----------
    low, high : (B,)
        Lower and upper energies [keV].
    first : (B,)
        Index of the first group of each bin.
    """

    low: Floats
    high: Floats
    first: NDArray[np.int64]

    def total(self, values: Any) -> Floats:
        """Return sums over the groups of each bin, (..., B), of values of the groups, (..., G)."""
        return np.add.reduceat(np.asarray(values, float), self.first, axis=-1)

    def at_groups(self, values: Any, num: int) -> Floats:
        """Return values (..., B) of the bins repeated for each of the ``num`` groups of channels, (..., num)."""
        return np.repeat(values, np.diff(np.append(self.first, num)), axis=-1)


def bins_of_enough_counts(counts: Floats, e_min: Floats, e_max: Floats) -> FigureBins:
    """Join neighbouring groups to bins of enough counts; the remainder at the end is added to the last bin.

    Parameters
    ----------
    counts, e_min, e_max : (G,)
        Counts and energies [keV] of the used groups of one spectrum.
    """
    # With the square root of the total, there are about as many bins as counts in a bin.
    min_counts = max(float(np.sqrt(counts.sum())), FEWEST)
    first, in_bin = [0], 0.0
    for index, number in enumerate(counts):
        if in_bin >= min_counts:
            first, in_bin = [*first, index], 0.0
        in_bin += number
    if in_bin < min_counts and len(first) > 1:
        first.pop()
    start = np.array(first)
    return FigureBins(np.minimum.reduceat(e_min, start), np.maximum.reduceat(e_max, start), start)


class Points(NamedTuple):
    """Data of one spectrum in the bins of a figure.

    Attributes
    ----------
    bins : FigureBins
        The bins.
    counts : (B,)
        Counts of the source region.
    below, above : (B,)
        Lower and upper errors of the counts (Gehrels 1986, ApJ 303, 336, equations 7 and 11 at one standard deviation).
    background : (B,)
        Counts of the background region, scaled to the source region.
    error : (B,) or None
        Standard deviations of counts with Gaussian errors, from which the background is subtracted already.
    """

    bins: FigureBins
    counts: Floats
    below: Floats
    above: Floats
    background: Floats
    error: Floats | None = None


def points(stack: SpectrumStack, row: int) -> Points:
    """Return the data of one source, rebinned for a figure."""
    used = np.asarray(stack.used[row])
    counts, error = np.asarray(stack.counts[row])[used], np.asarray(stack.error[row])[used]
    if stack.has_gaussian_counts[row]:
        bins = FigureBins(
            np.asarray(stack.e_min[row])[used], np.asarray(stack.e_max[row])[used], np.arange(len(counts))
        )
        return Points(bins, counts, error, error, np.zeros(len(counts)), error)
    bins = bins_of_enough_counts(counts, np.asarray(stack.e_min[row])[used], np.asarray(stack.e_max[row])[used])
    total = bins.total(counts)
    background = bins.total((np.asarray(stack.background[row]) / np.asarray(stack.ratio[row]))[used])
    below = total - _lower_limit(total)
    return Points(bins, total, below, 1.0 + np.sqrt(total + 0.75), background)


def _lower_limit(n: Floats) -> Floats:
    """Return the lower limit of a Poisson mean from n counts, at one standard deviation (Gehrels 1986, equation 11)."""
    safe = np.maximum(n, 1.0)
    return np.where(n > 0, safe * (1.0 - 1.0 / (9.0 * safe) - 1.0 / (3.0 * np.sqrt(safe))) ** 3, 0.0)


def parameters(fit: Fit, num_draws: int = NUM_DRAWS) -> dict[str, Floats]:
    """Return the parameters of all afterglows at posterior draws, by their names in `AbsorbedCounts.expected`.

    Returns
    -------
    dict of str to array
        ``photon_index, log10_flux, nh, nh_mw, z`` (draw, N); with a WHIM ``log10_T, log10_xi, metallicity`` (draw,) and
        ``log10_n0`` (draw,), or (draw, N) if it differs between lines of sight.
    """
    program, data = model_and_data(fit, Afterglow, Afterglows, "parameters")
    posterior = fit.posterior
    chosen = evenly_spaced(posterior.sizes["chain"] * posterior.sizes["draw"], num_draws)
    priors, sites = program.all_priors, program.medium.sites
    names = (*(v.site for v in sites), *program.common, "nh_mw", "z", "log10_n0", *GAS)
    fixed = {n: np.full(len(chosen), float(priors[n])) for n in names if isinstance(priors.get(n), int | float)}
    values = fixed | _draws(fit, names, chosen)
    drawn = {v.site: values.pop(v.site) for v in sites}
    with jax.enable_x64(True):
        values |= {v.parameter: np.asarray(v.value(drawn[v.site])) for v in sites}
    shape = values[sites[0].parameter].shape
    if "host_nh" in values:
        values["nh"] = values.pop("host_nh")
    # Galactic columns are those of the data (N,), a parameter of each source (draw, N), or a number (draw,).
    galactic = values.get("nh_mw", data.nh_mw)
    by_draw = galactic[:, None] if "nh_mw" in values and galactic.ndim == 1 else galactic
    values["nh_mw"] = np.broadcast_to(by_draw, shape)
    z = np.array(np.broadcast_to(data.z, shape))
    if "z" in values:
        z[:, ~data.knows_redshift] = values["z"]
    return values | {"z": z}


def source_parameters(fit: Fit, row: int, num_draws: int = NUM_DRAWS) -> dict[str, Floats]:
    """Return the parameters of one afterglow at posterior draws, (draw,) each; see `parameters`."""
    return {name: v[:, row] if v.ndim == 2 else v for name, v in parameters(fit, num_draws).items()}


def rows_of(data: Any, names, max_num: int, caller: str) -> list[int]:
    """Return the indices of sources by name; by default of those with the most counts, in the order of the data.

    For bursts, the names are those of spectra; the default is the brightest interval of each of the brightest bursts,
    in all detectors.

    Raises
    ------
    ValueError
        For a name that is not among the sources.
    """
    available = stack_of(data).name if isinstance(data, BurstSpectra | SourceSpectra) else data.name
    if names is None and isinstance(data, BurstSpectra):
        return _brightest(data, max_num)
    if names is None:
        total = np.asarray(stack_of(data).counts).sum(axis=1)
        if max_num == 1 and isinstance(data, RegionStack):
            total = total[: data.num_sources]
        return sorted(int(row) for row in np.argsort(-total, kind="stable")[:max_num])
    selected = [names] if isinstance(names, str) else list(names)
    for name in selected:
        if name not in available:
            raise ValueError(f"{caller}: expected names among {', '.join(available[:20])}; found {name!r}.")
    return [available.index(name) for name in selected[:max_num]]


def _brightest(data: BurstSpectra, max_num: int) -> list[int]:
    """Return all spectra of the brightest interval of each burst, brightest bursts first, up to ``max_num`` spectra."""
    stack, interval_of = data.spectra, np.asarray(data.spectrum_interval)
    counts, exposures = np.asarray(stack.counts).sum(axis=1), np.asarray(stack.exposure)
    rate = np.bincount(interval_of, counts) / np.bincount(interval_of, exposures)
    burst = np.asarray(data.interval_burst)
    brightest = [max(np.flatnonzero(burst == b), key=lambda i: rate[i]) for b in range(len(data))]
    rows: list[int] = []
    for interval in sorted(brightest, key=lambda i: -rate[i]):
        in_interval = np.flatnonzero(interval_of == interval)
        if rows and len(rows) + len(in_interval) > max_num:
            break
        rows += [int(row) for row in in_interval]
    return rows[:max_num]
