"""Posterior draws by parameter label, and the program of a fit."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
import xarray as xr
from numpyro import handlers

from hbm_jax.distributions.detected import DrawnFromInjections
from hbm_jax.inference import Fit, latents
from hbm_jax.inference.results import model_of
from hbm_jax.names import did_you_mean
from hbm_jax.plotting.labels import label

Model = TypeVar("Model")
Data = TypeVar("Data")

MAX_ELEMENTS = 20  # largest vector parameter that is shown by default where a fit has no scalar parameter


def named_draws(fit: Fit, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Return the draws of parameters, one entry for each scalar parameter or element.

    Parameters
    ----------
    fit : Fit
        A sampled posterior.
    names : iterable of str, optional
        Names of parameters (all elements of those that are not scalar), or of single elements such as ``"theta[3]"``.
        By default every scalar parameter that varies, in the order of the model; if there is none, the elements of
        parameters with at most 20 elements.

    Returns
    -------
    dict of str to array (chain, draw)

    Raises
    ------
    ValueError
        If the fit has no parameter of that name.
    """
    posterior = fit.posterior
    labels = iter(fit.verdict.table.index)
    elements: dict[str, dict[str, np.ndarray]] = {}
    for name, variable in posterior.items():
        values = variable.transpose("chain", "draw", ...).to_numpy()
        values = values.reshape(*values.shape[:2], -1)
        elements[str(name)] = {next(labels): values[..., index] for index in range(values.shape[2])}
    if names is not None:
        available = elements | {label: {label: v} for group in elements.values() for label, v in group.items()}
        requested = [names] if isinstance(names, str) else list(names)
        for name in requested:
            if name not in available:
                raise ValueError(
                    f"the fit has no parameter {name!r}{did_you_mean(name, available)}: expected names among "
                    f"{', '.join(elements)}."
                )
        return {label: values for name in requested for label, values in available[name].items()}
    position = {name: index for index, name in enumerate(fit.run.get("config", {}).get("priors", {}))}
    ordered = sorted(elements, key=lambda name: position.get(name, len(position)))
    scalars = [name for name in ordered if posterior[name].ndim == 2]
    selected = scalars or [name for name in ordered if len(elements[name]) <= MAX_ELEMENTS]
    draws = {label: values for name in selected for label, values in elements[name].items()}
    return {label: values for label, values in draws.items() if np.isfinite(values).any() and np.ptp(values) != 0}


def unit_of(fit: Fit, label: str) -> str:
    """Return the unit of a parameter or of an element of it; empty if it has no unit."""
    return fit.units.get(label.partition("[")[0], "")


def label_of(fit: Fit, name: str, labels: Mapping[str, str] | None = None, *, unit: bool = True) -> str:
    """Return the symbol of a parameter or element, from ``labels`` or the program if they have one, and its unit."""
    return label(name, unit_of(fit, name) if unit else "", fit.symbols | dict(labels or {}))


def parameter(fit: Fit, name: str, default: float | None = None) -> np.ndarray:
    """Return the draws of a parameter, (draw, ...), all chains together; the value of a fixed one as a single draw.

    Raises
    ------
    ValueError
        If the fit has no such parameter and no default is given, or if the parameter is blinded.
    """
    if name in fit.posterior:
        require_values(fit, name)
        draws = fit.posterior[name].transpose("chain", "draw", ...).to_numpy()
        return draws.reshape(-1, *draws.shape[2:])
    priors: Mapping = getattr(fit.program, "all_priors", {})
    value = priors.get(name, default)
    if value is None:
        raise ValueError(
            f"the fit has no parameter {name!r}{did_you_mean(name, map(str, fit.posterior))}: expected names among "
            f"{', '.join(map(str, fit.posterior))}."
        )
    return np.array([float(value)])


def require_values(fit: Fit, *names: str) -> None:
    """Raise ValueError if a parameter is blinded: a figure computed from its values would reveal them."""
    hidden = () if fit.blinding is None else fit.blinding.names
    if blinded := [name for name in names if name in hidden]:
        raise ValueError(
            f"expected the values of {', '.join(blinded)}, from which this figure is computed; found a fit in which "
            "they are blinded. The figure can be drawn after fit.unblind()."
        )


def true_values(fit: Fit, num_draws: int) -> xr.Dataset:
    """Return the draws of `hbm_jax.latents`.

    Raises
    ------
    ValueError
        If a parameter is blinded that is not in ``blinded`` of the model: the true values may reveal it.
    """
    if fit.blinding is not None:
        require_values(fit, *(set(fit.blinding.names) - set(getattr(model_of(fit), "blinded", ()))))
    return latents(fit, num_draws=num_draws)


def evenly_spaced(total: int, num: int) -> np.ndarray:
    """Return evenly spaced indices of at most ``num`` of ``total`` draws."""
    return np.linspace(0, total - 1, min(num, total)).round().astype(int)


def found_objects(model: Any, data: Any, repeats: int, seed: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return a design of repeated data, observed values of found injections on it, and detected fractions of objects.

    ``model`` has a selection by injections, and numbers as priors. Fractions have the shape of the objects, (N,) or of
    the intervals of bursts, (B, J).
    """

    def trace_of(bound):
        """Return observed values and the log of the detected fractions."""
        trace = handlers.trace(handlers.seed(model, jax.random.key(seed))).get_trace(bound, observed=False)
        log_fraction: Any = 0.0
        for site in trace.values():
            distribution = site.get("fn")
            while hasattr(distribution, "base_dist"):
                distribution = distribution.base_dist
            if isinstance(distribution, DrawnFromInjections):
                log_fraction = log_fraction + distribution.log_detected_fraction
            elif (found := getattr(distribution, "found", None)) is not None:
                log_fraction = found.log_normalisation
        return trace["observed"]["value"], log_fraction

    design = data.subset(np.tile(np.arange(len(data)), repeats))
    with jax.enable_x64(True):
        values = np.asarray(jax.jit(trace_of)(model.bound(design))[0])
        # Whether there are enough injections depends on the number of objects, which is that of the data.
        fraction = np.exp(np.asarray(jax.jit(trace_of)(model.bound(data))[1]))
    return design, values, np.tile(fraction, (repeats, *(1,) * (fraction.ndim - 1)))


def model_and_data(fit: Fit, model: type[Model], container: type[Data], caller: str) -> tuple[Model, Data]:
    """Return model and data of a fit; raise ValueError, in the name of ``caller``, unless they have these classes."""
    program: Any = model_of(fit)
    if isinstance(program, model) and isinstance(fit.data, container):
        return program, fit.data
    description = fit.run.get("program", "none") if program is not None else "a fit loaded without its program"
    raise ValueError(
        f"{caller}: expected a fit of hbm_jax.models.{model.__name__} with its program and data; found {description}."
    )
