"""Draws from a program: the prior and the posterior predictive, and latents that were integrated out."""

import inspect
from collections.abc import Callable

import jax
import numpy as np
import xarray as xr
from numpyro import handlers

from hbm_jax.inference.results import Fit
from hbm_jax.inference.target import build_target, plate_dims

BATCH = 50  # draws computed side by side, which bounds the memory and shows Ctrl-C a way in


def prior_predictive(program: Callable, *args, num_draws: int = 500, seed: int = 0, **kwargs) -> xr.Dataset:
    """Draw parameters from the prior and data from the program.

    Parameters
    ----------
    program : callable
        A NumPyro program; called with ``observed=False`` if it takes that argument.
    *args, **kwargs
        What it is called with.
    num_draws, seed : int
        Number of draws and seed.

    Returns
    -------
    xarray.Dataset
        Every site, first dimension ``sample``.
    """
    with jax.enable_x64(True):
        return _run(program, args, _unobserved(program) | kwargs, None, num_draws, seed)


def posterior_predictive(fit: Fit, *, num_draws: int = 500, seed: int = 0) -> xr.Dataset:
    """Draw replicated data from the posterior predictive distribution.

    Parameters
    ----------
    fit : Fit
        With its program and data.
    num_draws : int
        Posterior draws used, spread evenly over all of them.
    seed : int
        Seed.

    Returns
    -------
    xarray.Dataset
        Every site that is not a parameter, first dimension ``sample``.

    Raises
    ------
    ValueError
        If the fit was loaded without its program, or the program cannot run unobserved.
    """
    kwargs = _unobserved(_program_of(fit, "posterior_predictive"))
    if not kwargs:
        raise ValueError(
            "posterior_predictive: expected a program with an argument observed=True that draws its data when False; "
            f"found none in {fit.run['program']}."
        )
    return _from_posterior(fit, kwargs, num_draws, seed)


def latents(fit: Fit, *, num_draws: int = 500, seed: int = 0) -> xr.Dataset:
    """Posterior draws of every object's latent quantities, also where they were integrated out.

    Parameters
    ----------
    fit : Fit
        With its program and data.
    num_draws : int
        Posterior draws used, spread evenly over all of them.
    seed : int
        Seed of the draws from the exact conditional.

    Returns
    -------
    xarray.Dataset
        Per-object variables such as ``x1_true``, first dimension ``sample``.
    """
    program = _program_of(fit, "latents")
    kwargs = {"recover": True} if "recover" in inspect.signature(program).parameters else {}
    sampled = fit.posterior.stack(sample=("chain", "draw"), create_index=False).transpose("sample", ...)
    sampled = sampled.isel(sample=_spread(sampled.sizes["sample"], num_draws))
    names = [name for name, variable in sampled.items() if variable.ndim > 1]
    if names or not kwargs:
        return sampled[names].drop_vars(["chain", "draw"], errors="ignore")
    drawn = _from_posterior(fit, kwargs, num_draws, seed)
    return drawn[[name for name, v in drawn.items() if v.ndim > 1 and name not in ("observed",)]]


def _program_of(fit: Fit, what: str) -> Callable:
    if fit.program is None:
        raise ValueError(f"{what}: expected a fit with its program and data, found one without. Pass them to load().")
    return fit.program


def _unobserved(program) -> dict:
    return {"observed": False} if "observed" in inspect.signature(program).parameters else {}


def _spread(total: int, wanted: int) -> np.ndarray:
    return np.linspace(0, total - 1, min(wanted, total)).round().astype(int)


def _from_posterior(fit, kwargs, num_draws, seed):
    """Run a fit's program with its parameters at posterior draws."""
    with jax.enable_x64(True):
        target = build_target(fit.program, fit.args, jax.random.key(0))
        positions = fit.tree["unconstrained_posterior"]["position"].to_numpy().reshape(-1, target.size)
        positions = positions[_spread(len(positions), num_draws)]
        sites = jax.device_get(jax.jit(jax.vmap(target.sites))(positions))
        return _run(fit.program, fit.args, kwargs, sites, len(positions), seed)


def _run(program, args, kwargs, parameters, num_draws, seed) -> xr.Dataset:
    """Sites of many runs of a program, parameters substituted where given."""
    dims = {}

    def once(pair):
        key, values = pair
        trace = handlers.trace(handlers.substitute(handlers.seed(program, key), values)).get_trace(*args, **kwargs)
        dims.update(plate_dims(trace))
        return {
            name: site["value"]
            for name, site in trace.items()
            if site["type"] in ("sample", "deterministic") and name not in (values or {}) and not name.startswith("_")
        }

    keys = jax.random.split(jax.random.key(seed), num_draws)
    # Chunks of one size, so that one program serves all of them.
    run = jax.jit(jax.vmap(once))
    rows = np.minimum(np.arange(-(-num_draws // BATCH) * BATCH), num_draws - 1).reshape(-1, BATCH)
    chunks = [jax.device_get(run(jax.tree.map(lambda x, r=r: x[r], (keys, parameters or {})))) for r in rows]
    sites = jax.tree.map(lambda *parts: np.concatenate(parts)[:num_draws], *chunks)
    dims = dims | dict(getattr(program, "dims", {}))
    coords = program.coords(args[0]) if hasattr(program, "coords") else {}
    variables = {}
    for name, value in sites.items():
        own = dims.get(name, [])
        own = own + [f"{name}_dim_{i}" for i in range(len(own), value.ndim - 1)]
        variables[name] = (["sample", *own], value)
    used = {dim for names, _ in variables.values() for dim in names}
    return xr.Dataset(variables, coords={name: labels for name, labels in coords.items() if name in used})
