"""Numbers behind the figures of spectra: the folded model at posterior draws, channels joined to be seen."""

from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from hbm_jax.data import Afterglows
from hbm_jax.inference import Fit
from hbm_jax.models import Afterglow, SpectralFit
from hbm_jax.plotting.draws import program_of, spread
from hbm_jax.registry import model_of
from hbm_jax.spectra.likelihood import Statistic
from hbm_jax.spectra.stack import SpectrumStack
from hbm_jax.spectra.statistics import gaussian_background, profiled_background

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
        Of `hbm_jax.models.Afterglow` or `SpectralFit`, with its program and data.
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
    if isinstance(program, SpectralFit) and isinstance(fit.data, SpectrumStack):
        draws: Any = {}
        for name in set(program.all_priors) & set(fit.posterior):
            variable = fit.posterior[name].transpose("chain", "draw", ...)
            draws[name] = variable.to_numpy().reshape(-1, *variable.shape[2:])[chosen]
        prepared: Any = program._prepared(fit.data)

        def expected(draw):
            return program._expected(prepared, draw)

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


def stack_of(data: Afterglows | SpectrumStack) -> SpectrumStack:
    """Spectra of a sample, or those that are the sample."""
    return data.spectra if isinstance(data, Afterglows) else data


def _background(s: Statistic, source: Floats, seen: SpectrumStack) -> Floats:
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
    """Rows of sources by name; by default those with the most counts, in the order of the data.

    Raises
    ------
    ValueError
        For a name that is not among the sources.
    """
    if names is None:
        total = np.asarray(stack_of(data).counts).sum(axis=1)
        return sorted(int(row) for row in np.argsort(-total, kind="stable")[:max_num])
    wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in data.name:
            raise ValueError(f"{what}: expected names of sources, some of {', '.join(data.name[:20])}; found {name!r}.")
    return [data.name.index(name) for name in wanted[:max_num]]
