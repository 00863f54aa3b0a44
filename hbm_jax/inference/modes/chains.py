"""Chains in different modes, and components of a mixture that are exchanged between or within chains."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr

from hbm_jax.inference.sampler.ensemble.convergence import r_hat_and_ess

MODE_SEPARATION = 3.0  # half of the smallest distance of two modes, in standard deviations within chains
# R-hat of a vector whose components are exchanged: at least the first, and at most the second if each draw is sorted.
EXCHANGED, SORTED = 1.1, 1.05
MAX_COMPONENTS = 50  # longer vectors are not those of a mixture
# Parameters that are compared together, and draws for each: otherwise their covariance is not known well enough.
MAX_TOGETHER, DRAWS_PER_PARAMETER = 300, 10
DRIFT = 0.2  # largest distance between the halves of a chain, relative to that of two modes; slow chains have more
RIDGE = 1e-6  # added to unit variances: parameters may be functions of each other


def scalars(posterior: Mapping[Any, xr.DataArray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and draws, (chain, draw), of every scalar parameter that varies."""
    for name, variable in posterior.items():
        if variable.ndim == 2:
            values = variable.transpose("chain", "draw").to_numpy().astype(float)
            if np.ptp(values) > 0:
                yield str(name), values


def separate_groups(posterior: Mapping[Any, xr.DataArray], label: str, values: np.ndarray | None) -> str:
    """Describe two groups of chains in different modes of a parameter; empty if the chains are not separate.

    Modes that overlap in each parameter may be separate in all parameters together, as two modes 4 standard deviations
    apart in each of twenty.

    Parameters
    ----------
    posterior : xarray.Dataset or mapping of str to DataArray
        Draws, dimensions ``chain, draw, ...``; its scalars are tried after the parameter, and then all together.
    label : str
        Name of the parameter.
    values : (chain, draw), optional
        Its draws.
    """
    for name, draws in [*([] if values is None else [(label, values)]), *scalars(posterior)]:
        groups = _split(draws)
        if groups is not None:
            return _description(groups, name, draws)
    return _separate_together(posterior)


def _split(draws: np.ndarray) -> tuple[list[int], list[int]] | None:
    """Split chains into two groups whose draws (chain, draw) do not overlap; return None if they cannot be split."""
    means, within = draws.mean(1), draws.std(1)
    order = np.argsort(means)
    gaps = np.diff(means[order])
    if not len(gaps):
        return None
    cut = int(np.argmax(gaps)) + 1
    # Chains that never move are also separated, but that is no evidence of modes.
    if within.min() > 0 and gaps[cut - 1] > MODE_SEPARATION * 2 * within.max():
        return sorted(order[:cut].tolist()), sorted(order[cut:].tolist())
    return None


def _description(groups: tuple[list[int], list[int]], name: str, draws: np.ndarray) -> str:
    """Describe groups of chains by their means of a parameter, whose draws are (chain, draw)."""
    return " and ".join(
        f"chain{'s' * (len(group) > 1)} {', '.join(map(str, group))} near {name} = {draws[group].mean():.3g}"
        for group in groups
    )


def _separate_together(posterior: Mapping[Any, xr.DataArray]) -> str:
    """Describe groups of chains that are separate along the direction in which the means of chains differ most.

    Distances are in units of the standard deviations within chains. Chains that move slowly differ too, in many
    parameters by as much as modes do, but so do the halves of each of them.
    """
    labels, columns = _columns(posterior)
    num_chains, num_draws, size = columns.shape
    too_few = num_chains * num_draws < DRAWS_PER_PARAMETER * size
    if num_chains < 2 or num_draws < 2 or not 1 < size <= MAX_TOGETHER or too_few or not np.isfinite(columns).all():
        return ""
    residuals = columns - columns.mean(axis=1, keepdims=True)
    scale = residuals.std(axis=(0, 1))
    if not (residuals.std(axis=1) > 0).all():
        return ""
    residuals = (residuals / scale).reshape(-1, size)
    factor = np.linalg.cholesky(residuals.T @ residuals / len(residuals) + RIDGE * np.eye(size))
    white = np.linalg.solve(factor, ((columns - columns.mean(axis=(0, 1))) / scale).reshape(-1, size).T).T
    white = white.reshape(columns.shape)
    means = white.mean(axis=1)
    groups = _split(white @ np.linalg.svd(means, full_matrices=False)[2][0])
    if groups is None:
        return ""
    # Along the difference of the groups, which is the direction that separates them best.
    difference = means[groups[1]].mean(axis=0) - means[groups[0]].mean(axis=0)
    half = num_draws // 2
    drift = np.linalg.norm(white[:, :half].mean(axis=1) - white[:, half:].mean(axis=1), axis=1).max()
    if drift > DRIFT * np.linalg.norm(difference) or _split(white @ difference) is None:
        return ""
    distances = (columns[groups[1]].mean(axis=(0, 1)) - columns[groups[0]].mean(axis=(0, 1))) / scale
    farthest = int(np.argmax(np.abs(distances)))
    text = _description(groups, labels[farthest], columns[..., farthest])
    return f"{text}, and separate in all parameters together"


def _columns(posterior: Mapping[Any, xr.DataArray]) -> tuple[list[str], np.ndarray]:
    """Return labels of the elements that vary, and their draws (chain, draw, element); empty if there are too many."""
    labels, columns = [], []
    variables = {str(name): variable.transpose("chain", "draw", ...) for name, variable in posterior.items()}
    shape = next((variable.shape[:2] for variable in variables.values()), (0, 0))
    if sum(np.prod(variable.shape[2:], dtype=int) for variable in variables.values()) > MAX_TOGETHER:
        return [], np.zeros((*shape, 0))
    for name, variable in variables.items():
        values = variable.to_numpy().astype(float)
        for index in np.ndindex(values.shape[2:]):
            if np.ptp(values[(..., *index)]) > 0:
                coordinates = [variable[d].to_numpy()[i] for d, i in zip(variable.dims[2:], index, strict=True)]
                labels.append(f"{name}[{', '.join(map(str, coordinates))}]" if index else name)
                columns.append(values[(..., *index)])
    return labels, np.stack(columns, axis=-1) if columns else np.zeros((*shape, 0))


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
                float(np.max(r_hat_and_ess(np.moveaxis(values, -1, 0))[0]))
                for values in (draws, np.sort(draws, axis=-1))
            )
        if as_drawn >= EXCHANGED and ordered <= SORTED:
            sorted_r_hat[str(name)] = ordered
    return sorted_r_hat
