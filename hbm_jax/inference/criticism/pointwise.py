"""Pointwise log likelihood at posterior draws, computed in chunks and only on request."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import xarray as xr
from numpyro import handlers

from hbm_jax.inference.blinding.blinding import unconstrained_draws
from hbm_jax.inference.compilation.chunks import map_in_chunks
from hbm_jax.inference.program import bound_args, coords_of, dims_of
from hbm_jax.inference.results import Fit
from hbm_jax.inference.sampler.target import build_target, is_observation, plate_dims

CHUNK = 50  # draws evaluated in one batch, which limits the memory needed besides the result


@dataclass(frozen=True)
class Structure:
    """Structure of a program: its sites, plates and dimensions.

    Attributes
    ----------
    observed : dict of str to array
        Observed sites with their values, without `numpyro.factor`, which is not associated with an observation.
    latents : dict of str to tuple of str
        Plates of each latent site.
    plates : dict of str to tuple of str
        Plates of each observed site.
    correlated : tuple of str
        Observed sites with correlated elements.
    factors : tuple of str
        Factor sites whose names do not begin with ``_``.
    dims : dict of str to list of str
        Names of the dimensions of sites in plates.
    """

    observed: dict[str, np.ndarray] = field(default_factory=dict)
    latents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    plates: dict[str, tuple[str, ...]] = field(default_factory=dict)
    correlated: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()
    dims: dict[str, list[str]] = field(default_factory=dict)


def program_of(fit: Fit, caller: str) -> Callable:
    """Return the program of a fit; raise ValueError if the fit was loaded without it."""
    if fit.program is None:
        raise ValueError(f"{caller}: expected a fit with its program and data, found one without. Pass them to load().")
    return fit.program


class Replay:
    """Evaluation of the program of a fit at its posterior draws.

    Parameters
    ----------
    fit : Fit
        With its program and data.
    caller : str
        Name of the calling function, for error messages.

    Raises
    ------
    ValueError
        If the fit was loaded without its program, or if its draws belong to another program.
    """

    def __init__(self, fit: Fit, caller: str):
        self.program = program_of(fit, caller)
        self.args = fit.bound_args
        draws = unconstrained_draws(fit)
        self.positions = draws.to_numpy()
        with jax.enable_x64(True):
            self._target = build_target(self.program, self.args, jax.random.key(0))
        if tuple(map(str, draws["parameter"].to_numpy())) != self._target.labels:
            raise ValueError(
                f"{caller}: expected the program of the draws, with {len(draws['parameter'])} unconstrained "
                f"parameters; found another, with {self._target.size}."
            )
        self.structure = self._inspect()

    def _trace(self, flat, key, args, free=()):
        """Return a trace of the program with its latent sites at a position; the sites in ``free`` are drawn anew."""
        values = {name: value for name, value in self._target.sites(flat).items() if name not in free}
        # With other data a deterministic site may have another length: it is recomputed from the latent sites.
        latent = {name: value for name, value in values.items() if name in self.structure.latents} if free else values
        return handlers.trace(handlers.substitute(handlers.seed(self.program, key), latent)).get_trace(*args)

    def _inspect(self) -> Structure:
        """Return the structure of the program, from a trace at the first draw."""
        structure: dict[str, Any] = {}

        def record_sites(flat):
            trace = self._trace(flat, jax.random.key(0), self.args)
            sites = {name: site for name, site in trace.items() if site["type"] == "sample"}
            structure["latents"] = {n: _plates(site) for n, site in sites.items() if not site["is_observed"]}
            structure["plates"] = {n: _plates(site) for n, site in sites.items() if is_observation(site)}
            structure["correlated"] = tuple(n for n in structure["plates"] if correlated(sites[n]))
            structure["factors"] = tuple(
                n for n, s in sites.items() if s["is_observed"] and not is_observation(s) and n[0] != "_"
            )
            structure["dims"] = plate_dims(trace) | dims_of(self.program)
            return {name: sites[name]["value"] for name in structure["plates"]}

        with jax.enable_x64(True):
            observed = jax.device_get(jax.jit(record_sites)(self.positions[0, 0]))
        return Structure(observed=observed, **structure)

    def __call__(self, pick: Callable, *, chunk=CHUNK, num_draws=None, args=None, free=()) -> dict[str, np.ndarray]:
        """Evaluate a function of the trace of the program at posterior draws.

        Parameters
        ----------
        pick : callable
            Trace -> dict of str to array.
        chunk : int
            Draws evaluated in one batch.
        num_draws : int, optional
            Number of draws to use, over all chains; see `thinned`.
        args : tuple, optional
            Arguments of the program; by default those of the fit.
        free : tuple of str
            Latent sites that are sampled from their distribution instead of fixed at the draws.

        Returns
        -------
        dict of str to array (chain, draw, ...)
        """
        if chunk < 1:
            raise ValueError(f"chunk: expected 1 or more draws at a time; found {chunk}.")
        positions = self.positions[:, thinned(self.positions.shape, num_draws)]
        num_chains, draws_per_chain, size = positions.shape
        flat = positions.reshape(-1, size)
        args = self.args if args is None else bound_args(self.program, args)
        with jax.enable_x64(True):
            run = jax.jit(
                jax.vmap(lambda flat, key: pick(self._trace(flat, jax.random.wrap_key_data(key), args, free)))
            )
            # Key data, not keys, so that NumPy can index the rows.
            keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(0), len(flat))))
            values = map_in_chunks(run, min(chunk, len(flat)), flat, keys)
        return {name: value.reshape(num_chains, draws_per_chain, *value.shape[1:]) for name, value in values.items()}


def _plates(site) -> tuple[str, ...]:
    """Return the names of the plates of a site."""
    return tuple(frame.name for frame in site["cond_indep_stack"])


def log_prob(site):
    """Return the log density of a site over its batch shape, multiplied by the scale of the site."""
    value = site["fn"].log_prob(site["value"])
    return value if site["scale"] is None else site["scale"] * value


def correlated(site) -> bool:
    """Return whether a site is one event of correlated elements, with a density of each given the others."""
    return hasattr(site["fn"], "log_prob_given_others")


def log_prob_of_each(site):
    """Return the log density of a site over its batch shape; for correlated elements, of each given all others.

    Raises
    ------
    ValueError
        For data of detected objects, whose density is normalised together with that of their latents only.
    """
    if getattr(site["fn"], "normalised_with_latents", False):
        raise ValueError(
            f"{site['name']}: expected a likelihood that is normalised for given latents; found that of detected "
            "objects, which is so only together with their latents. Predictions of objects left out are not available "
            "for this selection."
        )
    if not correlated(site):
        return log_prob(site)
    value = site["fn"].log_prob_given_others(site["value"])
    return value if site["scale"] is None else site["scale"] * value


def thinned(shape, num_draws: int | None) -> np.ndarray:
    """Return evenly spaced indices of draws per chain, ``num_draws`` or slightly more over all chains; None for all."""
    num_chains, draws_per_chain = shape[:2]
    if num_draws is None:
        return np.arange(draws_per_chain)
    if num_draws < 1:
        raise ValueError(f"num_draws: expected 1 or more; found {num_draws}.")
    return np.linspace(0, draws_per_chain - 1, min(-(-num_draws // num_chains), draws_per_chain)).round().astype(int)


def log_likelihood(fit: Fit, *, chunk: int = CHUNK, num_draws: int | None = None) -> xr.Dataset:
    """Compute the log likelihood of every observation at posterior draws.

    Parameters
    ----------
    fit : Fit
        With its program and data.
    chunk : int
        Draws evaluated in one batch; a smaller number needs less memory. The result takes 8 bytes per draw and
        observation.
    num_draws : int, optional
        Number of draws to use, evenly spaced in each chain; all by default.

    Returns
    -------
    xarray.Dataset
        One variable per observed site, with dimensions ``chain, draw`` and those of its batch shape; a vector observed
        as one event has a single value. Factors (`numpyro.factor`) belong to no observation: they are excluded, and
        named in ``attrs["factors_left_out"]``. If latents were integrated out, this is the marginal likelihood; if they
        were sampled, the likelihood given the latents.

        If all draws are used, the result is also stored in the fit, as ``fit.tree["log_likelihood"]`` with
        ``fit.tree["observed_data"]``, the groups that ArviZ expects and `Fit.save` writes.

    Raises
    ------
    ValueError
        If the fit was loaded without its program, or the program has no observed site.

    Examples
    --------
    >>> log_likelihood(fit)["observed"].sizes  # doctest: +SKIP
    """
    if num_draws is None and "log_likelihood" in fit.tree:
        return fit.tree["log_likelihood"].to_dataset()
    values, observed = evaluate(fit, chunk, num_draws)
    if num_draws is None:
        fit.tree["log_likelihood"] = xr.DataTree(values)
        fit.tree["observed_data"] = xr.DataTree(observed)
    return values


def pointwise(fit: Fit, chunk: int = CHUNK, num_draws: int | None = None) -> tuple[xr.Dataset, xr.Dataset]:
    """Return log likelihood and observed values: those stored in the fit, or computed without storing them."""
    stored = [fit.tree[name].to_dataset() for name in ("log_likelihood", "observed_data") if name in fit.tree]
    if len(stored) == 2:
        shape = (stored[0].sizes["chain"], stored[0].sizes["draw"])
        return stored[0].isel(draw=thinned(shape, num_draws)), stored[1]
    return evaluate(fit, chunk, num_draws)


def evaluate(fit: Fit, chunk: int, num_draws: int | None) -> tuple[xr.Dataset, xr.Dataset]:
    """Compute log likelihood and observed values, as Datasets with dimensions and labels."""
    replay = Replay(fit, "log_likelihood")
    structure = replay.structure
    if not structure.observed:
        factors = f", but factors ({', '.join(structure.factors)})" if structure.factors else ""
        raise ValueError(
            f"log_likelihood: expected a program with observed sites, numpyro.sample(..., obs=...); found none{factors}"
            f" in {fit.run.get('program', 'the program')}."
        )
    values = replay(
        lambda trace: {name: log_prob_of_each(trace[name]) for name in structure.observed},
        chunk=chunk,
        num_draws=num_draws,
    )
    posterior = fit.posterior
    draws = thinned((posterior.sizes["chain"], posterior.sizes["draw"]), num_draws)
    coords = {"chain": posterior["chain"].to_numpy(), "draw": posterior["draw"].to_numpy()[draws]}
    variables, observed_variables = {}, {}
    for name, value in values.items():
        observed = structure.observed[name]
        dims = list(structure.dims.get(name, []))
        dims += [f"{name}_dim_{i}" for i in range(len(dims), max(observed.ndim, value.ndim - 2))]
        variables[name] = (["chain", "draw", *dims[: value.ndim - 2]], value)
        observed_variables[name] = (dims[: observed.ndim], observed)
    result = xr.Dataset(variables, coords=coords)
    labels = _labels(fit, dict(result.sizes) | dict(xr.Dataset(observed_variables).sizes))
    result = result.assign_coords({dim: label for dim, label in labels.items() if dim in result.dims})
    for name in values:
        latents_of_site = [
            latent for latent, plates in structure.latents.items() if set(plates) & set(structure.plates[name])
        ]
        latents_elsewhere = [
            latent for latent, plates in structure.latents.items() if plates and latent not in latents_of_site
        ]
        # As strings, which every netCDF format can store.
        result[name].attrs["correlated"] = name if name in structure.correlated else ""
        result[name].attrs |= {
            "sampled_latents": ", ".join(latents_of_site),
            "sampled_elsewhere": ", ".join(latents_elsewhere),
        }
    result.attrs["factors_left_out"] = ", ".join(structure.factors)
    observed_data = xr.Dataset(observed_variables)
    return result, observed_data.assign_coords(
        {dim: label for dim, label in labels.items() if dim in observed_data.dims}
    )


def _labels(fit: Fit, sizes: dict) -> dict[str, Any]:
    """Return the labels of dimensions, from the program and from the posterior."""
    candidates = {str(dim): fit.posterior[dim].to_numpy() for dim in fit.posterior.dims if dim in fit.posterior.coords}
    if fit.program is not None:
        candidates |= coords_of(fit.program, fit.args)
    return {
        dim: np.asarray(label)
        for dim, label in candidates.items()
        if dim not in ("chain", "draw") and sizes.get(dim) == len(label)
    }
