"""Draws from a program: the prior and the posterior predictive, and latents that were integrated out."""

import functools
import inspect
from collections.abc import Callable

import jax
import numpy as np
import xarray as xr
from numpyro import handlers
from numpyro.distributions import Unit

from hbm_jax.inference.results import Fit
from hbm_jax.inference.sampler.target import build_target, plate_dims

BATCH = 50  # draws computed side by side, which bounds the memory and shows Ctrl-C a way in


def prior_predictive(program: Callable, *args, num_draws: int = 500, seed: int = 0, **kwargs) -> xr.Dataset:
    """Draw parameters from the prior and data from the program.

    Parameters
    ----------
    program : callable
        A NumPyro program. One with an argument ``observed=True`` is called with False; of any other, the observed
        sites are drawn from their distributions.
    *args, **kwargs
        What it is called with; the data give the design.
    num_draws, seed : int
        Number of draws and seed.

    Returns
    -------
    xarray.Dataset
        Every site, first dimension ``sample``.

    Raises
    ------
    ValueError
        If a drawn site has not the shape of the data: its distribution does not say how many there are.
    """
    with jax.enable_x64(True):
        drawn = _run(unobserved(program), args, kwargs, None, num_draws, seed)
        return _labelled(drawn, getattr(program, "dims", {}), own_coords(program, args))


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
        If the fit was loaded without its program, its program is not the one that was fitted, or a drawn site has not
        the shape of the data.
    """
    program = _program_of(fit, "posterior_predictive")
    # A parameter that was integrated out is drawn from its posterior, not from its prior.
    again = None
    if names := getattr(program, "integrated", ()):
        drawn = _from_posterior(fit, program, {"recover": True}, num_draws, seed)
        again = {name: drawn[name].to_numpy() for name in names}
    return _from_posterior(fit, unobserved(program), {}, num_draws, seed, again)


def latents(fit: Fit, *, num_draws: int = 500, seed: int = 0) -> xr.Dataset:
    """Posterior draws of every object's latent quantities, also where they were integrated out.

    Parameters
    ----------
    fit : Fit
        With its program and data. Latents that were integrated out are drawn by calling a program that has an argument
        ``recover`` with True.
    num_draws : int
        Posterior draws used, spread evenly over all of them.
    seed : int
        Seed of the draws from the exact conditional.

    Returns
    -------
    xarray.Dataset
        Per-object variables such as ``x1_true``, and parameters that were integrated out; first dimension ``sample``.

    Raises
    ------
    ValueError
        As `posterior_predictive`.
    """
    program = _program_of(fit, "latents")
    sampled = fit.posterior.stack(sample=("chain", "draw"), create_index=False).transpose("sample", ...)
    sampled = sampled.isel(sample=_spread(sampled.sizes["sample"], num_draws)).drop_vars(
        ["chain", "draw"], errors="ignore"
    )
    sampled = sampled[[name for name, variable in sampled.items() if variable.ndim > 1]]
    if "recover" not in inspect.signature(program).parameters:
        return sampled
    recovered = _from_posterior(fit, program, {"recover": True}, num_draws, seed)
    return sampled.merge(recovered)


def unobserved(program: Callable) -> Callable:
    """Return the program that draws its data: with ``observed=False`` where it knows that, else unconditioned."""
    parameter = inspect.signature(program).parameters.get("observed")
    if parameter is not None and parameter.default is True:
        return functools.partial(program, observed=False)
    return handlers.uncondition(program)


def own_coords(program: Callable, args: tuple) -> dict:
    """Labels of dimensions that a program has for its data."""
    return dict(program.coords(args[0])) if hasattr(program, "coords") else {}


def _program_of(fit: Fit, what: str) -> Callable:
    if fit.program is None:
        raise ValueError(f"{what}: expected a fit with its program and data, found one without. Pass them to load().")
    return fit.program


def _spread(total: int, wanted: int) -> np.ndarray:
    return np.linspace(0, total - 1, min(wanted, total)).round().astype(int)


def _from_posterior(fit, program, kwargs, num_draws, seed, more=None):
    """Run a program with a fit's parameters at posterior draws, and with ``more`` values, one for each draw."""
    with jax.enable_x64(True):
        target = build_target(fit.program, fit.args, jax.random.key(0))
        stored = fit.tree["unconstrained_posterior"]["position"]
        labels = [str(label) for label in stored["parameter"].to_numpy()]
        if labels != list(target.labels):
            raise ValueError(
                f"expected the program that was fitted, with the parameters {', '.join(labels[:8])} ...; found one "
                f"with {', '.join(target.labels[:8])} ..."
            )
        positions = stored.to_numpy().reshape(-1, target.size)
        rows = _spread(len(positions), num_draws)
        sites = jax.device_get(jax.jit(jax.vmap(target.sites))(positions[rows]))
        for name, variable in fit.posterior.items():
            drawn = variable.transpose("chain", "draw", ...).to_numpy()
            drawn = drawn.reshape(-1, *drawn.shape[2:])[rows]
            if not np.allclose(drawn, sites[str(name)], rtol=1e-4, atol=1e-6, equal_nan=True):
                raise ValueError(
                    f"expected the program and the data that were fitted; found others, for which {name} is not what "
                    "it was. Pass the right ones to load()."
                )
        return _labelled(
            _run(program, fit.args, kwargs, sites | (more or {}), len(rows), seed),
            target.dims
            | dict(getattr(fit.program, "dims", {}))
            | {str(n): v.dims[2:] for n, v in fit.posterior.items()},
            own_coords(fit.program, fit.args) | {str(n): v.to_numpy() for n, v in fit.posterior.coords.items()},
        )


def _run(program, args, kwargs, parameters, num_draws, seed) -> dict[str, tuple[list[str], np.ndarray]]:
    """Dimensions and values of the sites of many runs of a program, parameters substituted where given."""
    dims: dict[str, list[str]] = {}

    def once(pair):
        key, values = pair
        seeded = handlers.substitute(handlers.seed(program, key), values)
        trace = handlers.trace(seeded).get_trace(*args, **kwargs)
        dims.update(plate_dims(trace))
        sites = {}
        for name, site in trace.items():
            if site["type"] not in ("sample", "deterministic") or name in (values or {}) or name.startswith("_"):
                continue
            if site.get("is_observed") or isinstance(site.get("fn"), Unit):
                continue
            data = site.get("infer", {}).get("obs")
            if data is not None and np.shape(data) != site["value"].shape:
                raise ValueError(
                    f"the site {name!r} was observed with shape {np.shape(data)}, and drawing it gives "
                    f"{site['value'].shape}: expected the same. Put it in a plate of the data's length."
                )
            sites[name] = site["value"]
        return sites

    keys = jax.random.split(jax.random.key(seed), num_draws)
    # Chunks of one size, so that one program serves all of them.
    run = jax.jit(jax.vmap(once))
    rows = np.minimum(np.arange(-(-num_draws // BATCH) * BATCH), num_draws - 1).reshape(-1, BATCH)
    chunks = [jax.device_get(run(jax.tree.map(lambda x, r=r: x[r], (keys, parameters or {})))) for r in rows]
    sites = jax.tree.map(lambda *parts: np.concatenate(parts)[:num_draws], *chunks)
    return {name: (dims.get(name, []), value) for name, value in sites.items()}


def _labelled(sites, dims, coords) -> xr.Dataset:
    variables = {}
    for name, (plates, value) in sites.items():
        own = list(dims.get(name) or plates)
        own = own + [f"{name}_dim_{i}" for i in range(len(own), value.ndim - 1)]
        variables[name] = (["sample", *own], value)
    sizes = {dim: n for own, value in variables.values() for dim, n in zip(own[1:], value.shape[1:], strict=True)}
    return xr.Dataset(
        variables, coords={name: labels for name, labels in coords.items() if sizes.get(name) == len(labels)}
    )
