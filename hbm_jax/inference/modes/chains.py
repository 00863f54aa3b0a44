"""Chains in different modes, and components of a mixture that are exchanged between or within chains."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr
from arviz_stats.base import array_stats

MODE_SEPARATION = 3.0  # half of the smallest distance of two modes, in standard deviations within chains
# R-hat of a vector whose components are exchanged: at least the first, and at most the second if each draw is sorted.
EXCHANGED, SORTED = 1.1, 1.05
MAX_COMPONENTS = 50  # longer vectors are not those of a mixture


def scalars(posterior: Mapping[Any, xr.DataArray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and draws, (chain, draw), of every scalar parameter that varies."""
    for name, variable in posterior.items():
        if variable.ndim == 2:
            values = variable.transpose("chain", "draw").to_numpy().astype(float)
            if np.ptp(values) > 0:
                yield str(name), values


def separate_groups(posterior: Mapping[Any, xr.DataArray], label: str, values: np.ndarray | None) -> str:
    """Describe two groups of chains in different modes of a parameter; empty if the chains are not separate.

    Parameters
    ----------
    posterior : xarray.Dataset or mapping of str to DataArray
        Draws, dimensions ``chain, draw, ...``; its scalars are tried after the parameter.
    label : str
        Name of the parameter.
    values : (chain, draw), optional
        Its draws.
    """
    for name, draws in [*([] if values is None else [(label, values)]), *scalars(posterior)]:
        means, within = draws.mean(1), draws.std(1)
        order = np.argsort(means)
        gaps = np.diff(means[order])
        if not len(gaps):
            return ""
        cut = int(np.argmax(gaps)) + 1
        # Chains that never move are also separated, but that is no evidence of modes.
        if within.min() > 0 and gaps[cut - 1] > MODE_SEPARATION * 2 * within.max():
            groups = [sorted(int(c) for c in group) for group in (order[:cut], order[cut:])]
            return " and ".join(
                f"chain{'s' * (len(group) > 1)} {', '.join(map(str, group))} near {name} = {draws[group].mean():.3g}"
                for group in groups
            )
    return ""


def exchanged(posterior: Mapping[Any, xr.DataArray], unmixed: Collection[str]) -> dict[str, float]:
    """Return the vectors whose chains agree if the components of each draw are sorted, with the R-hat of these.

    The labels of the components of a mixture are arbitrary: its posterior has a mode for each of their permutations.

    Parameters
    ----------
    posterior : xarray.Dataset or mapping of str to DataArray
        Draws, dimensions ``chain, draw, ...``.
    unmixed : collection of str
        Names of variables with an R-hat that fails.
    """
    sorted_r_hat = {}
    for name in unmixed:
        variable = posterior.get(name)
        if variable is None or variable.ndim != 3 or not 2 <= variable.shape[-1] <= MAX_COMPONENTS:
            continue
        draws = variable.transpose("chain", "draw", ...).to_numpy().astype(float)
        if not np.isfinite(draws).all() or (np.ptp(draws, axis=(0, 1)) == 0).any():
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            as_drawn, ordered = (
                float(np.max(array_stats.rhat(values, chain_axis=0, draw_axis=1)))
                for values in (draws, np.sort(draws, axis=-1))
            )
        if as_drawn >= EXCHANGED and ordered <= SORTED:
            sorted_r_hat[str(name)] = ordered
    return sorted_r_hat
