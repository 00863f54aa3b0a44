"""Start of the chains given by the user: values of the latent sites, or an earlier fit."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from hbm_jax.inference.blinding.blinding import unconstrained_draws
from hbm_jax.inference.sampler.approximations import Approximation, is_finite
from hbm_jax.inference.sampler.initialisation import Start, in_units, uninformed_metric
from hbm_jax.inference.sampler.metric import MAX_DENSE, Metric, curvature_metric, power_of_two
from hbm_jax.inference.sampler.target import StartError, Target

DRAWS_PER_PARAMETER = 10  # fewest draws of an earlier fit per parameter from which a covariance is computed


def given_start(target: Target, init: Any, num_chains: int) -> Start:
    """Return a start at given values, or at draws of an earlier fit with its covariance and step size.

    Parameters
    ----------
    target : Target
        The posterior.
    init : Fit, mapping of str to array, or sequence of such mappings
        Values by name of latent sites: of the shape of the site, for all chains; with a leading axis, one value per
        chain; or one mapping per chain. Sites without a value start at the median of the prior. With a `Fit` of the
        same latent sites, chains start at draws spread over its chains.
    num_chains : int
        Number of chains.

    Raises
    ------
    TypeError
        If ``init`` is of another type.
    ValueError
        For sites that the program does not sample, for other shapes, and for values outside the support of a prior.
    StartError
        If the log density or its gradient is not finite at a start.
    """
    is_fit = hasattr(init, "tree")
    if is_fit:
        start = _start_from_fit(target, init, num_chains)
        points = start.points
    else:
        points = np.stack([_position(target, values) for values in _one_set_per_chain(target, init, num_chains)])
    for chain, point in enumerate(points):
        value, gradient = target.value_and_grad(point)
        if not is_finite(value, gradient):
            raise StartError(
                f"init: expected a finite log density and gradient at the start of chain {chain}; found a log density "
                f"of {-float(value):g}."
            )
    if is_fit:
        return start
    reason = "the values were given"
    with np.errstate(all="ignore"):  # at edges of supports
        metric = uninformed_metric(in_units(target.value_and_grad, target.unit), points[0] / target.unit, reason)
    return Start(points, metric.in_units(target.unit), False, f"values that were given; {metric.kind} metric")


def _one_set_per_chain(target: Target, init: Any, num_chains: int) -> list[dict[str, Any]]:
    """Return the values of each chain by site; raise TypeError or ValueError for invalid forms, names or shapes."""
    shapes = target.latent_shapes
    is_shared = isinstance(init, Mapping)  # one set for all chains
    sets = [init] if is_shared else init
    if not isinstance(sets, Sequence) or isinstance(sets, str) or not all(isinstance(s, Mapping) for s in sets):
        raise TypeError(
            "init: expected values by site name, a sequence of these with one for each chain, or an earlier fit; found "
            f"{type(init).__name__}."
        )
    if not is_shared and len(sets) != num_chains:
        raise ValueError(f"init: expected one set of values for each of {num_chains} chains; found {len(sets)}.")
    chains: list[dict[str, Any]] = [{} for _ in range(num_chains)]
    for number, values in enumerate(sets):
        for name, value in values.items():
            if name not in shapes:
                raise ValueError(f"init: expected latent sites among {', '.join(shapes)}; found {name!r}.")
            array, shape = np.asarray(value, float), shapes[name]
            per_chain = is_shared and array.shape == (num_chains, *shape)
            if array.shape != shape and not per_chain:
                alternative = f", or {(num_chains, *shape)} with one value per chain" if is_shared else ""
                raise ValueError(f"init: expected {name!r} of shape {shape}{alternative}; found {array.shape}.")
            for chain in range(num_chains) if is_shared else [number]:
                chains[chain][name] = array[chain] if per_chain else array
    return chains


def _position(target: Target, values: Mapping[str, Any]) -> np.ndarray:
    """Return the unconstrained position of values by site; the others are at the median of the prior."""
    if target.unconstrain is None:
        raise TypeError("init: expected a target of a program; found one without the transform of its sites.")
    at_median = jax.jit(target.sites)(target.start)
    # Compiled, because NumPyro raises errors of its own for concrete values.
    point = np.asarray(jax.jit(target.unconstrain)({n: values.get(n, at_median[n]) for n in target.latent_shapes}))
    for label, x in zip(target.labels, point, strict=True):
        if not np.isfinite(x):
            name = label.split("[")[0]
            raise ValueError(
                f"init: expected {name!r} inside the support of its prior; found {np.asarray(values.get(name))}."
            )
    return point


def _start_from_fit(target: Target, fit: Any, num_chains: int) -> Start:
    """Return a start at draws of a fit of the same sites, else raise ValueError; with its covariance and step size."""
    draws = unconstrained_draws(fit) if "unconstrained_posterior" in fit.tree else None
    labels = () if draws is None else tuple(map(str, draws["parameter"].to_numpy()))
    if draws is None or labels != target.labels:
        differing = sorted(set(labels) ^ set(target.labels))[:5]
        raise ValueError(
            f"init: expected a fit of the same latent sites, {len(target.labels)} parameters; found one of "
            f"{len(labels)}; not in both: {', '.join(differing)}. Give values by site name instead."
        )
    positions = draws.to_numpy().astype(float)
    chains = np.arange(num_chains)
    num_fitted, num_draws, size = positions.shape
    # The last draw of each chain; with more chains than were fitted, also draws evenly spaced before it.
    rounds = -(-num_chains // num_fitted)
    points = positions[chains % num_fitted, num_draws - 1 - (chains // num_fitted) * (num_draws // rounds)]
    flat = positions.reshape(-1, size)
    spread = np.where(flat.std(axis=0) > 0, flat.std(axis=0), target.unit)
    has_covariance = size <= MAX_DENSE and len(flat) >= DRAWS_PER_PARAMETER * size
    approximation = None
    if has_covariance:
        approximation = Approximation.from_covariance(flat.mean(axis=0), np.atleast_2d(np.cov(flat.T)))
    if approximation is not None:
        metric = curvature_metric(approximation.vectors, approximation.stretch, approximation.width)
    else:
        unit = power_of_two(spread)
        metric = Metric("diagonal", (spread / unit) ** 2, "variances of an earlier fit", unit)
    steps = np.asarray(fit.tree["sample_stats"]["step_size"], float)
    step_size = float(np.exp(np.log(steps).mean())) if np.isfinite(steps).all() and (steps > 0).all() else 1.0
    note = f"draws of an earlier fit; {metric.kind} metric of their covariance, step size {step_size:.2g}"
    return Start(points, metric, True, note, step_size=step_size)
