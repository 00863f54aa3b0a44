"""Numbers behind the figures of spectra: the folded model at posterior draws, channels joined to be seen."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from hbm_jax.data import Afterglows, BurstSpectra
from hbm_jax.inference import Fit
from hbm_jax.inference.results import model_of
from hbm_jax.models import Afterglow, GolenetskiiCounts, SpectralFit
from hbm_jax.plotting.draws import program_of, spread
from hbm_jax.spectra.stack import SpectrumStack
from hbm_jax.spectra.statistics.joint import AnyStatistic, JointStatistic
from hbm_jax.spectra.statistics.kernels import gaussian_background, profiled_background

Floats = NDArray[np.float64]
NUM_DRAWS = 100
FEWEST = 5.0  # counts in a bin of a figure
GAS = ("log10_T", "log10_xi", "metallicity")
CHUNK = 10  # draws folded side by side


class Folded(NamedTuple):
    """Expected counts of the groups of every source at posterior draws, (draw, N, G), as the statistic has them.

    Attributes
    ----------
    source : (draw, N, G)
        Of the sources alone.
    background : (draw, N, G)
        In the source region.
    """

    source: Floats
    background: Floats


def folded(fit: Fit, what: str = "folded", num_draws: int = NUM_DRAWS) -> Folded:
    """Return expected counts at posterior draws, by the model's own kernels.

    Parameters
    ----------
    fit : Fit
        Of `hbm_jax.models.Afterglow`, `SpectralFit` or `GolenetskiiCounts`, with its program and data.
    what : str
        Who asks, for messages.
    num_draws : int
        Posterior draws, spread evenly over all of them.

    Returns
    -------
    Folded
        The background is the best one for each draw (wstat, pgstat), the mean of its posterior given the background
        region (marginal), that region's counts, scaled (chi-square), or none (cstat).
    """
    chosen = spread(fit.posterior.sizes["chain"] * fit.posterior.sizes["draw"], num_draws)
    program: Any = model_of(fit)
    draws: Any
    prepared: Any
    if isinstance(program, SpectralFit) and isinstance(fit.data, SpectrumStack):
        draws, prepared = _draws(fit, program.all_priors, chosen), program._prepared(fit.data)

        def expected(draw):
            return program._expected(prepared, draw)

    elif isinstance(program, GolenetskiiCounts) and isinstance(fit.data, BurstSpectra):
        names = ("log10_E_peak", "alpha", "beta", "log10_flux", "effective_area")
        draws, prepared = _draws(fit, names, chosen), program._prepared(fit.data).folded

        def expected(draw):
            return program.expected(prepared, draw)

    else:
        program = program_of(fit, Afterglow, Afterglows, what)
        prepared, draws = program._prepared(fit.data), parameters(fit, num_draws)

        def expected(draw):
            return prepared.expected(draw, program.band)

    with jax.enable_x64(True):
        run = jax.jit(lambda draws: jax.lax.map(expected, draws, batch_size=CHUNK))
        source = np.asarray(run(draws))
    s = prepared.statistic
    return Folded(source, np.where(s.used, _background(s, source, stack_of(fit.data)), 0.0))


def _draws(fit: Fit, names: Iterable[str], chosen) -> dict[str, Floats]:
    """Those of the names that the posterior has, each (draw, ...)."""
    found = {}
    for name in set(names) & set(fit.posterior):
        variable = fit.posterior[name].transpose("chain", "draw", ...)
        found[name] = variable.to_numpy().reshape(-1, *variable.shape[2:])[chosen]
    return found


def values_of(fit: Fit, priors: Mapping[str, Any], num_draws: int, row: int) -> dict[str, Floats]:
    """Values of the parameters of one spectrum of a `SpectralFit` at posterior draws, each (draw,)."""
    chosen = spread(fit.posterior.sizes["chain"] * fit.posterior.sizes["draw"], num_draws)
    drawn = _draws(fit, priors, chosen)
    held = {name: np.full(len(chosen), float(prior)) for name, prior in priors.items() if name not in drawn}
    return held | {n: v[:, row] if v.ndim == 2 else v for n, v in drawn.items() if n != "calibration"}


def stack_of(data: Any) -> SpectrumStack:
    """Spectra of a sample of afterglows or bursts, or those that are the sample."""
    return data if isinstance(data, SpectrumStack) else data.spectra


def _background(s: AnyStatistic, source: Floats, seen: SpectrumStack) -> Floats:
    if isinstance(s, JointStatistic):
        return np.sum([np.where(part.used, _background(part, source, seen), 0.0) for part in s.parts], axis=0)
    with jax.enable_x64(True):
        if s.name == "wstat":
            return np.asarray(profiled_background(s.counts, source, s.background, s.ratio)[1])
        if s.name == "pgstat":
            return np.asarray(gaussian_background(s.counts, source, s.background, s.background_error)[1])
    if s.name == "marginal":
        return np.broadcast_to(s.shape / s.rate, source.shape)
    if s.name.startswith("chi2"):
        return np.broadcast_to(np.asarray(seen.background) / np.asarray(seen.ratio), source.shape)
    return np.zeros_like(source)


class Joined(NamedTuple):
    """Groups of channels of one spectrum, joined to bins that hold enough counts to be seen.

    Attributes
    ----------
    low, high : (B,)
        Energies [keV].
    first : (B,)
        First group of each bin.
    """

    low: Floats
    high: Floats
    first: NDArray[np.int64]

    def total(self, values: Any) -> Floats:
        """Sum over the groups of each bin, (..., G of the spectrum) to (..., B)."""
        return np.add.reduceat(np.asarray(values, float), self.first, axis=-1)

    def of_groups(self, values: Any, num: int) -> Floats:
        """Value of its bin for each of ``num`` groups, (..., B) to (..., num)."""
        return np.repeat(values, np.diff(np.append(self.first, num)), axis=-1)


def joined(counts: Floats, e_min: Floats, e_max: Floats) -> Joined:
    """Join neighbouring groups until a bin holds enough counts; what remains at the end goes to the last one.

    Parameters
    ----------
    counts, e_min, e_max : (G,)
        Of the groups in use of one spectrum.
    """
    enough = max(float(np.sqrt(counts.sum())), FEWEST)  # as many counts in a bin as there are bins
    first, held = [0], 0.0
    for place, number in enumerate(counts):
        if held >= enough:
            first, held = [*first, place], 0.0
        held += number
    if held < enough and len(first) > 1:
        first.pop()
    start = np.array(first)
    return Joined(np.minimum.reduceat(e_min, start), np.maximum.reduceat(e_max, start), start)


class Points(NamedTuple):
    """Data of one spectrum in joined bins.

    Attributes
    ----------
    bins : Joined
        The bins.
    counts : (B,)
        Of the source region.
    below, above : (B,)
        Their errors (Gehrels 1986, ApJ 303, 336, equations 7 and 11 at one standard deviation).
    background : (B,)
        Counts of the background region, scaled to the source region.
    """

    bins: Joined
    counts: Floats
    below: Floats
    above: Floats
    background: Floats


def points(s: SpectrumStack, row: int) -> Points:
    """Join the groups of one source."""
    used = np.asarray(s.used[row])
    counts = np.asarray(s.counts[row])[used]
    bins = joined(counts, np.asarray(s.e_min[row])[used], np.asarray(s.e_max[row])[used])
    total = bins.total(counts)
    behind = bins.total((np.asarray(s.background[row]) / np.asarray(s.ratio[row]))[used])
    below = total - _lower_limit(total)
    return Points(bins, total, below, 1.0 + np.sqrt(total + 0.75), behind)


def _lower_limit(n: Floats) -> Floats:
    safe = np.maximum(n, 1.0)
    return np.where(n > 0, safe * (1.0 - 1.0 / (9.0 * safe) - 1.0 / (3.0 * np.sqrt(safe))) ** 3, 0.0)


def parameters(fit: Fit, num_draws: int = NUM_DRAWS) -> dict[str, Floats]:
    """Parameters of all sources at posterior draws, by the names that the kernels give them.

    Returns
    -------
    dict of str to array
        ``photon_index, log10_flux, nh, nh_mw, z`` (draw, N); with a WHIM ``log10_T, log10_xi, metallicity`` (draw,) and
        ``log10_n0`` (draw,), or (draw, N) where each line of sight has its own.
    """
    posterior, data = fit.posterior, fit.data
    chosen = spread(posterior.sizes["chain"] * posterior.sizes["draw"], num_draws)
    priors = program_of(fit, Afterglow, Afterglows, "parameters").all_priors
    found: dict[str, Floats] = {}
    for name in ("photon_index", "log10_flux", "log10_nh", "nh_mw", "z", "log10_n0", *GAS):
        if name in posterior:
            variable = posterior[name].transpose("chain", "draw", ...)
            found[name] = variable.to_numpy().reshape(-1, *variable.shape[2:])[chosen]
        elif isinstance(priors.get(name), int | float):
            found[name] = np.full(len(chosen), float(priors[name]))
    found["nh"] = 10.0 ** found.pop("log10_nh")
    galactic = found.get("nh_mw", data.nh_mw)
    held = galactic[:, None] if "nh_mw" in found and galactic.ndim == 1 else galactic
    found["nh_mw"] = np.broadcast_to(held, found["nh"].shape)
    z = np.array(np.broadcast_to(data.z, found["nh"].shape))
    if "z" in found:
        z[:, ~data.knows_redshift] = found["z"]
    return found | {"z": z}


def of_source(fit: Fit, row: int, num_draws: int = NUM_DRAWS) -> dict[str, Floats]:
    """Parameters of one source at posterior draws, each (draw,); see `parameters`."""
    return {name: v[:, row] if v.ndim == 2 else v for name, v in parameters(fit, num_draws).items()}


def rows_of(data: Any, names, max_num: int, what: str) -> list[int]:
    """Rows of sources by name, in the order of the data; by default those with the most counts.

    Of bursts, names are those of spectra, and by default the brightest intervals in all their detectors are taken, one
    a burst.

    Raises
    ------
    ValueError
        For a name that is not among the sources.
    """
    known = stack_of(data).name if isinstance(data, BurstSpectra) else data.name
    if names is None and isinstance(data, BurstSpectra):
        return _brightest(data, max_num)
    if names is None:
        total = np.asarray(stack_of(data).counts).sum(axis=1)
        return sorted(int(row) for row in np.argsort(-total, kind="stable")[:max_num])
    wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in known:
            raise ValueError(f"{what}: expected names of sources, some of {', '.join(known[:20])}; found {name!r}.")
    return [known.index(name) for name in wanted[:max_num]]


def _brightest(data: BurstSpectra, max_num: int) -> list[int]:
    """All spectra of the brightest interval of each burst, the brightest bursts first, as long as they fit."""
    s, of = data.spectra, np.asarray(data.spectrum_interval)
    counts = np.bincount(of, np.asarray(s.counts).sum(axis=1)) / np.bincount(of, np.asarray(s.exposure))
    burst = np.asarray(data.interval_burst)
    best = [max(np.flatnonzero(burst == b), key=lambda i: counts[i]) for b in range(len(data))]
    rows: list[int] = []
    for interval in sorted(best, key=lambda i: -counts[i]):
        own = np.flatnonzero(of == interval)
        if rows and len(rows) + len(own) > max_num:
            break
        rows += [int(row) for row in own]
    return rows[:max_num]
