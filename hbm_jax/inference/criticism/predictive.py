"""Prior and posterior predictive draws, and draws of latents that were integrated out."""

import functools
from collections.abc import Callable

import jax
import numpy as np
import xarray as xr
from numpyro import handlers
from numpyro.distributions import Unit

from hbm_jax.inference.arguments import by_position, naming_arguments, plain_arguments
from hbm_jax.inference.blinding.blinding import revealed, unconstrained_draws
from hbm_jax.inference.compilation.chunks import map_in_chunks
from hbm_jax.inference.compilation.constants_as_arguments import Compiled, compiled
from hbm_jax.inference.criticism.pointwise import program_of
from hbm_jax.inference.program import bound_args, coords_of, dims_of, integrated_in, recovers, unobserved
from hbm_jax.inference.results import Fit
from hbm_jax.inference.sampler.target import build_target, plate_dims
from hbm_jax.xla_options import QUICK

BATCH = 50  # draws computed in one batch, which limits the memory and the time until Ctrl-C takes effect


def prior_predictive(program: Callable | Fit, *args, num_draws: int = 500, seed: int = 0, **kwargs) -> xr.Dataset:
    """Draw parameters from the prior and data from the program.

    Parameters
    ----------
    program : callable or Fit
        A NumPyro program, or a fit with its program and data. If the program has an argument ``observed=True`` it is
        called with False; otherwise its observed sites are drawn from their distributions.
    *args, **kwargs
        Arguments of the program; the data define the design.
    num_draws, seed : int
        Number of draws, and seed.

    Returns
    -------
    xarray.Dataset
        Every site, first dimension ``sample``.

    Raises
    ------
    ValueError
        If the shape of a drawn site differs from that of the data, because the program fixes its shape.
    """
    if isinstance(program, Fit):
        args = args or program.args
        program = program_of(program, "prior_predictive")
    keywords = by_position(program, kwargs)
    args = plain_arguments(program, args, keywords)
    kwargs = {name: value for name, value in kwargs.items() if name not in keywords}
    with jax.enable_x64(True):
        drawn, _ = _run(unobserved(program), bound_args(program, args), kwargs, {}, num_draws, seed, dict)
        return _labelled(drawn, dims_of(program), coords_of(program, args))


def posterior_predictive(fit: Fit, *, num_draws: int = 500, seed: int = 0) -> xr.Dataset:
    """Draw replicated data from the posterior predictive distribution.

    Parameters
    ----------
    fit : Fit
        With its program and data.
    num_draws : int
        Number of posterior draws to use, evenly spaced.
    seed : int
        Seed.

    Returns
    -------
    xarray.Dataset
        Every site that is not a parameter, first dimension ``sample``.

    Raises
    ------
    ValueError
        If the fit was loaded without its program or with another one, or if the shape of a drawn site differs from that
        of the data.
    """
    program = program_of(fit, "posterior_predictive")
    # Parameters that were integrated out are drawn from their posterior, not from their prior.
    integrated = None
    if names := integrated_in(program):
        drawn = _from_posterior(fit, program, {"recover": True}, num_draws, seed)
        integrated = {name: drawn[name].to_numpy() for name in names}
    return _from_posterior(fit, unobserved(program), {}, num_draws, seed, integrated)


def latents(fit: Fit, *, num_draws: int = 500, seed: int = 0) -> xr.Dataset:
    """Return posterior draws of the latents of every object, including those that were integrated out.

    Parameters
    ----------
    fit : Fit
        With its program and data. If the program has an argument ``recover``, calling it with True draws the latents
        that were integrated out.
    num_draws : int
        Number of posterior draws to use, evenly spaced.
    seed : int
        Seed of the draws from the exact conditional distribution.

    Returns
    -------
    xarray.Dataset
        Latents of objects such as ``x1_true``, and parameters that were integrated out; first dimension ``sample``.

    Raises
    ------
    ValueError
        As `posterior_predictive`.
    """
    program = program_of(fit, "latents")
    sampled = fit.posterior.stack(sample=("chain", "draw"), create_index=False).transpose("sample", ...)
    sampled = sampled.isel(sample=_evenly_spaced(sampled.sizes["sample"], num_draws)).drop_vars(
        ["chain", "draw"], errors="ignore"
    )
    sampled = sampled[[name for name, variable in sampled.items() if variable.ndim > 1]]
    if not recovers(program):
        return sampled
    recovered = _from_posterior(fit, program, {"recover": True}, num_draws, seed)
    return sampled.merge(recovered)


def _evenly_spaced(num_total: int, num: int) -> np.ndarray:
    """Return ``num`` evenly spaced indices of ``num_total`` entries; all if there are fewer."""
    return np.linspace(0, num_total - 1, min(num, num_total)).round().astype(int)


def _from_posterior(fit, program, kwargs, num_draws, seed, extra_values=None):
    """Run a program at posterior draws of a fit, with ``extra_values`` of further sites, one for each draw."""
    fit = revealed(fit)
    with jax.enable_x64(True):
        target = build_target(fit.program, fit.bound_args, None)
        draws = unconstrained_draws(fit)
        labels = [str(label) for label in draws["parameter"].to_numpy()]
        if labels != list(target.labels):
            raise ValueError(
                f"expected the program that was fitted, with the parameters {', '.join(labels[:8])} ...; found one "
                f"with {', '.join(target.labels[:8])} ..."
            )
        positions = draws.to_numpy().reshape(-1, target.size)
        rows = _evenly_spaced(len(positions), num_draws)
        values = {"position": positions[rows], "extra": extra_values or {}}
        drawn, parameters = _run(
            program, fit.bound_args, kwargs, values, len(rows), seed,
            lambda values: target.sites(values["position"]) | values["extra"],
        )  # fmt: skip
        for name, variable in fit.posterior.items():
            expected = variable.transpose("chain", "draw", ...).to_numpy()
            expected = expected.reshape(-1, *expected.shape[2:])[rows]
            if not np.allclose(expected, parameters[str(name)], rtol=1e-4, atol=1e-6, equal_nan=True):
                raise ValueError(
                    f"expected the program and data of the fit; found others, for which {name} has other values. "
                    "Pass the original ones to load()."
                )
        return _labelled(
            drawn,
            target.dims | dims_of(fit.program) | {str(n): v.dims[2:] for n, v in fit.posterior.items()},
            coords_of(fit.program, fit.args) | {str(n): v.to_numpy() for n, v in fit.posterior.coords.items()},
        )


def _run(program, args, kwargs, values, num_draws, seed, parameters_of: Callable):
    """Run a program many times with parameters substituted; return dimensions and values of its sites, and parameters.

    ``parameters_of`` computes the parameters of a run from its ``values``, in the same compiled program.
    """
    dims: dict[str, list[str]] = {}

    def draw_sites(key, values):
        parameters = parameters_of(values)
        seeded = handlers.substitute(handlers.seed(program, key), parameters)
        trace = handlers.trace(seeded).get_trace(*args, **kwargs)
        dims.update(plate_dims(trace))
        sites = {}
        for name, site in trace.items():
            if site["type"] not in ("sample", "deterministic") or name in parameters or name.startswith("_"):
                continue
            if site.get("is_observed") or isinstance(site.get("fn"), Unit):
                continue
            data = site.get("infer", {}).get("obs")
            if data is not None and np.shape(data) != site["value"].shape:
                raise ValueError(
                    f"the site {name!r} was observed with shape {np.shape(data)} but is drawn with shape "
                    f"{site['value'].shape}; expected the same. Put it in a plate of the length of the data."
                )
            sites[name] = site["value"]
        return sites, parameters

    def draw_chunk(seed, rows, values):
        return jax.vmap(draw_sites)(jax.random.split(jax.random.key(seed), num_draws)[rows], values)

    program_of_chunk = Compiled(draw_chunk, functools.partial(compiled, compiler_options=QUICK))

    def draw_rows(rows):
        return program_of_chunk(seed, rows, jax.tree.map(lambda array: array[rows], values))

    with naming_arguments(program, args):
        sites, parameters = map_in_chunks(draw_rows, BATCH, np.arange(num_draws))
    return {name: (dims.get(name, []), value) for name, value in sites.items()}, parameters


def _labelled(sites, dims, coords) -> xr.Dataset:
    """Return the draws of sites as a Dataset with dimensions and coordinates; first dimension ``sample``."""
    variables = {}
    for name, (plates, value) in sites.items():
        names = list(dims.get(name) or plates)
        names = names + [f"{name}_dim_{i}" for i in range(len(names), value.ndim - 1)]
        variables[name] = (["sample", *names], value)
    sizes = {dim: n for names, value in variables.values() for dim, n in zip(names[1:], value.shape[1:], strict=True)}
    return xr.Dataset(
        variables, coords={name: labels for name, labels in coords.items() if sizes.get(name) == len(labels)}
    )
