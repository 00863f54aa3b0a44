"""Figures of the expansion history: contours of its parameters, and the equation of state of dark energy."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import distributions as dist

from hbm_jax.cosmology import Cosmology
from hbm_jax.cosmology.expansion import dark_energy_density
from hbm_jax.inference import Fit
from hbm_jax.inference.results import model_of
from hbm_jax.models import HubbleDiagram, Supernova, expansion
from hbm_jax.plotting.contours import joint_posterior, levels_of_draws, shown_range, smoothed
from hbm_jax.plotting.draws import evenly_spaced, named_draws, parameter
from hbm_jax.plotting.labels import label
from hbm_jax.plotting.style import BLACK, BLUE, GREY, QUANTILES, SERIES, Figure, fill_bands, house_style

PLANES = (("w0", "wa"), ("Om0", "w0"), ("Om0", "Ode0"))
NUM_GRID = 200
NUM_DRAWS = 1000


def expansion_contour(
    fit: Fit, names: tuple[str, str] | None = None, others: Mapping[str, Fit] | None = None, name: str = ""
) -> Figure:
    """Draw the joint posterior of two parameters of the expansion history, with their priors.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.HubbleDiagram` or `Supernova`, with its program.
    names : pair of str, optional
        Parameters; by default the first free pair of w0 and wa, Om0 and w0, and Om0 and Ode0.
    others : mapping of str to Fit, optional
        Other fits with the same parameters, by legend entry, drawn as contour lines.
    name : str
        Legend entry of ``fit``.

    Returns
    -------
    matplotlib.figure.Figure
        Contours contain 68 and 95 % of the posterior. Dashed: contours of the prior, or its edges where it is flat. The
        side panels show the marginal posterior and prior densities.

    Raises
    ------
    ValueError
        If the fit is not of one of these models, or does not have two such free parameters.
    """
    model = _model(fit, "expansion_contour")
    free = [key for key, prior in model.all_priors.items() if isinstance(prior, dist.Distribution)]
    planes = [pair for pair in PLANES if set(pair) <= set(free)]
    chosen = tuple(names) if names is not None else (planes[0] if planes else ())
    if len(chosen) != 2 or not set(chosen) <= set(free):
        raise ValueError(
            f"expansion_contour: expected two free parameters, such as {', '.join(free)}; found "
            f"{', '.join(chosen) or 'none'}."
        )
    draws = np.stack([_displayed(fit, key) for key in chosen])
    priors = [model.all_priors[key] for key in chosen]
    other_draws = {text: np.stack([_displayed(other, key) for key in chosen]) for text, other in (others or {}).items()}
    combined = np.concatenate([draws, *other_draws.values()], axis=1)
    ranges = [shown_range(values, prior) for values, prior in zip(combined, priors, strict=True)]
    joint = joint_posterior(draws, priors, ranges)
    with house_style():
        edges = [np.linspace(*limits, 61) for limits in ranges]
        centres = [0.5 * (e[1:] + e[:-1]) for e in edges]
        for index, (text, values) in enumerate(other_draws.items()):
            colour = SERIES[(index + 1) % len(SERIES)]
            density = smoothed(values, edges)
            joint.main.contour(
                *centres, density.T, levels_of_draws(density, values, centres), colors=[colour], linewidths=1.2
            )
            joint.main.plot([], [], color=colour, label=text)
            for axes, row, orientation in ((joint.above, 0, "vertical"), (joint.beside, 1, "horizontal")):
                marginal = np.histogram(values[row], edges[row][::2], density=True)
                axes.stairs(*marginal, color=colour, lw=1.0, orientation=orientation)
        if name or other_draws:
            joint.main.plot([], [], color=BLUE, lw=4, alpha=0.75, label=name or "this fit")
            joint.main.legend(loc="best")
        joint.main.set_xlabel(label(chosen[0], fit.units.get(chosen[0], "")))
        joint.main.set_ylabel(label(chosen[1], fit.units.get(chosen[1], "")))
        joint.above.legend(loc="best")
    return joint.figure


def _prior_draws(prior: Any, key: jax.Array, num: int) -> np.ndarray:
    """Return draws of a prior, or copies of a fixed value, (num,)."""
    return np.asarray(prior.sample(key, (num,))) if isinstance(prior, dist.Distribution) else np.full(num, prior)


def equation_of_state(fit: Fit, z_max: float | None = None, num_draws: int = NUM_DRAWS) -> Figure:
    """Draw the posterior and the prior of the equation of state of dark energy as a function of redshift.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.HubbleDiagram` or `Supernova`, with its program and data.
    z_max : float, optional
        Largest redshift; by default that of the data.
    num_draws : int
        Number of draws from which the bands are computed.

    Returns
    -------
    matplotlib.figure.Figure
        Median and 68 and 95 % bands of w(z) at every redshift. Dashed: the 95 % band of the prior. For any dark energy
        w is computed from its density: w = -1 + (1/3) d log(density) / d log(1 + z).

    Raises
    ------
    ValueError
        If the fit is not of one of these models, or its cosmology is defined by distances only.
    """
    model = _model(fit, "equation_of_state")
    z = np.linspace(0.0, float(np.max(fit.data.z_cmb)) if z_max is None else z_max, NUM_GRID)
    names = ("H0", *expansion.named(model.cosmology).parameters)
    values = {key: parameter(fit, key) for key in names}
    total = max(len(v) for v in values.values())
    rows = evenly_spaced(total, num_draws)
    posterior_w = _w(model, z, {key: np.broadcast_to(v, (total,))[rows] for key, v in values.items()})
    keys = jax.random.split(jax.random.key(0), len(names))
    with jax.enable_x64(True):
        prior_draws = {
            name: _prior_draws(model.all_priors[name], key, num_draws) for name, key in zip(names, keys, strict=True)
        }
    prior_w = _w(model, z, prior_draws)
    bands = np.quantile(posterior_w, QUANTILES, axis=0)
    with house_style():
        figure = Figure(figsize=(5.6, 3.8), layout="constrained")
        axis = figure.subplots()
        fill_bands(axis, z, bands)
        axis.plot(z, bands[2], color=BLACK, lw=1.2, label="posterior median")
        for edge, text in zip(np.quantile(prior_w, (0.025, 0.975), axis=0), ("prior, 95 %", ""), strict=True):
            axis.plot(z, edge, "--", color=GREY, lw=0.9, label=text)
        axis.axhline(-1.0, color=BLUE, lw=0.8, ls=":", label="cosmological constant")
        axis.set_xlim(z[0], z[-1])
        axis.set_xlabel("redshift $z$")
        axis.set_ylabel("equation of state $w$")
        axis.legend(loc="best", ncols=2)
    return figure


def has_equation_of_state(model: Any) -> bool:
    """Return True if the dark energy of a model has a free parameter."""
    chosen = expansion.named(model.cosmology)
    free = [key for key in chosen.parameters if isinstance(model.all_priors[key], dist.Distribution)]
    return isinstance(_built(chosen), Cosmology) and bool(set(free) - {"Om0", "Ode0"})


def _displayed(fit: Fit, name: str) -> np.ndarray:
    """Return the draws of a scalar parameter, (draw,), shifted if the parameter is blinded."""
    if name not in fit.posterior:
        return parameter(fit, name)
    return named_draws(fit, [name])[name].ravel()


def _built(chosen):
    """Return the cosmology of an expansion history for arbitrary parameter values, to inspect its type."""
    return chosen.build({"H0": 70.0} | dict.fromkeys(chosen.parameters, 0.3))


def _w(model, z, values) -> np.ndarray:
    """Return the equation of state at redshifts z, (draw, z), for draws of the parameters."""
    chosen = expansion.named(model.cosmology)
    if not isinstance(_built(chosen), Cosmology):
        raise ValueError(
            f"equation_of_state: expected a cosmology with dark energy; found {chosen.name}, which only has distances."
        )
    with jax.enable_x64(True):
        u = jnp.log1p(jnp.asarray(z))

        def w(draw):
            """Return w = -1 + (1/3) d ln(density) / d ln(1 + z), from the conservation of energy."""
            cosmology = chosen.build(draw)
            slope = jax.vmap(jax.grad(lambda log1p_z: jnp.log(dark_energy_density(log1p_z, cosmology))))(u)
            return -1.0 + slope / 3.0

        return np.asarray(jax.jit(jax.vmap(w))({key: jnp.asarray(v) for key, v in values.items()}))


def _model(fit: Fit, figure: str) -> Any:
    """Return the model of a fit, or raise an error for one without a cosmology."""
    model = model_of(fit)
    if not isinstance(model, HubbleDiagram | Supernova):
        program = fit.run.get("program", "none") if model is not None else "a fit loaded without its program"
        raise ValueError(f"{figure}: expected a fit of HubbleDiagram or Supernova with its program; found {program}.")
    return model
