"""The log likelihood of every observation at posterior draws, computed in chunks and only when asked for."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import xarray as xr
from numpyro import distributions as dist
from numpyro import handlers

from hbm_jax.inference.criticism.predictive import own_coords
from hbm_jax.inference.results import Fit
from hbm_jax.inference.sampler.target import build_target, plate_dims

CHUNK = 50  # draws computed side by side, which bounds the memory beyond what is returned


@dataclass(frozen=True)
class Structure:
    """What a program's sites are, besides numbers.

    Attributes
    ----------
    observed : dict of str to array
        Observed sites with their values. `numpyro.factor` is not among them: it says nothing of which observation it
        belongs to.
    latents : dict of str to tuple of str
        Sampled sites, with the plates each is in.
    plates : dict of str to tuple of str
        Plates of each observed site.
    correlated : tuple of str
        Observed sites whose elements are correlated.
    factors : tuple of str
        Factor sites, apart from those whose name begins with ``_``.
    dims : dict of str to list of str
        Dimensions of sites that are in plates.
    """

    observed: dict[str, np.ndarray] = field(default_factory=dict)
    latents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    plates: dict[str, tuple[str, ...]] = field(default_factory=dict)
    correlated: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()
    dims: dict[str, list[str]] = field(default_factory=dict)


class Replay:
    """A fit's program, run again at its posterior draws.

    Parameters
    ----------
    fit : Fit
        With its program and data.
    what : str
        Who asks, for messages.

    Raises
    ------
    ValueError
        If the fit was loaded without its program, or its draws are of another program.
    """

    def __init__(self, fit: Fit, what: str):
        if fit.program is None:
            raise ValueError(
                f"{what}: expected a fit with its program and data, found one without. Pass them to load()."
            )
        self.program: Callable = fit.program
        self.args = fit.args
        positions = fit.tree["unconstrained_posterior"]["position"].transpose("chain", "draw", "parameter")
        self.positions = positions.to_numpy()
        with jax.enable_x64(True):
            self._target = build_target(self.program, fit.args, jax.random.key(0))
        if tuple(map(str, positions["parameter"].to_numpy())) != self._target.labels:
            raise ValueError(
                f"{what}: expected the program the draws are of, with {len(positions['parameter'])} unconstrained "
                f"parameters; found another, with {self._target.size}."
            )
        self.structure = self._look()

    def _trace(self, flat, key, args, free=()):
        """Trace of the program with its latent sites at a position; the sites named in ``free`` are drawn anew."""
        values = {name: v for name, v in self._target.sites(flat).items() if name not in free}
        # A deterministic site follows from the latent ones, and may have another length where the data are others.
        latent = {name: v for name, v in values.items() if name in self.structure.latents} if free else values
        return handlers.trace(handlers.substitute(handlers.seed(self.program, key), latent)).get_trace(*args)

    def _look(self) -> Structure:
        found: dict[str, Any] = {}

        def once(flat):
            trace = self._trace(flat, jax.random.key(0), self.args)
            sites = {name: site for name, site in trace.items() if site["type"] == "sample"}
            found["latents"] = {n: _plates(site) for n, site in sites.items() if not site["is_observed"]}
            found["plates"] = {n: _plates(site) for n, site in sites.items() if is_observation(site)}
            found["correlated"] = tuple(n for n in found["plates"] if correlated(sites[n]))
            found["factors"] = tuple(
                n for n, s in sites.items() if s["is_observed"] and not is_observation(s) and n[0] != "_"
            )
            found["dims"] = plate_dims(trace) | dict(getattr(self.program, "dims", {}))
            return {name: sites[name]["value"] for name in found["plates"]}

        with jax.enable_x64(True):
            observed = jax.device_get(jax.jit(once)(self.positions[0, 0]))
        return Structure(observed=observed, **found)

    def __call__(self, pick: Callable, *, chunk=CHUNK, num_draws=None, args=None, free=()) -> dict[str, np.ndarray]:
        """Evaluate at posterior draws what ``pick`` takes from the program's trace.

        Parameters
        ----------
        pick : callable
            Trace -> dict of str to array.
        chunk : int
            Draws computed side by side.
        num_draws : int, optional
            Draws to use, of all chains together; see `thinned`.
        args : tuple, optional
            Other arguments to call the program with.
        free : tuple of str
            Latent sites that are drawn from their distribution instead of taken from the draws.

        Returns
        -------
        dict of str to array (chain, draw, ...)
        """
        if chunk < 1:
            raise ValueError(f"chunk: expected 1 or more draws at a time; found {chunk}.")
        positions = self.positions[:, thinned(self.positions.shape, num_draws)]
        num_chains, draws, size = positions.shape
        flat = positions.reshape(-1, size)
        args = self.args if args is None else args
        with jax.enable_x64(True):
            run = jax.jit(
                jax.vmap(lambda flat, key: pick(self._trace(flat, jax.random.wrap_key_data(key), args, free)))
            )
            # As plain numbers, of which NumPy takes the rows.
            keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(0), len(flat))))
            chunk = min(chunk, len(flat))
            # Chunks of one size, so that one compiled function serves all of them.
            rows = np.minimum(np.arange(-(-len(flat) // chunk) * chunk), len(flat) - 1).reshape(-1, chunk)
            parts = [jax.device_get(run(flat[r], keys[r])) for r in rows]
        joined = {name: np.concatenate([part[name] for part in parts])[: len(flat)] for name in parts[0]}
        return {name: v.reshape(num_chains, draws, *v.shape[1:]) for name, v in joined.items()}


def _plates(site) -> tuple[str, ...]:
    return tuple(frame.name for frame in site["cond_indep_stack"])


def is_observation(site) -> bool:
    """Whether a sample site holds data; a factor does not."""
    fn = getattr(site["fn"], "base_dist", site["fn"]) if isinstance(site["fn"], dist.MaskedDistribution) else site["fn"]
    return site["is_observed"] and not isinstance(fn, dist.Unit)


def log_prob(site):
    """Log density of a site over its batch shape, with the weight the program gives it."""
    value = site["fn"].log_prob(site["value"])
    return value if site["scale"] is None else site["scale"] * value


def correlated(site) -> bool:
    """Whether a site is one event of correlated elements that knows the density of each given all others."""
    return hasattr(site["fn"], "log_prob_given_others")


def log_prob_of_each(site):
    """Log density of a site over its batch shape; of correlated elements, that of each given all others."""
    if not correlated(site):
        return log_prob(site)
    value = site["fn"].log_prob_given_others(site["value"])
    return value if site["scale"] is None else site["scale"] * value


def thinned(shape, num_draws: int | None) -> np.ndarray:
    """Return the draws of each chain, spread evenly, that make up some ``num_draws`` together; None is all of them."""
    chains, draws = shape[:2]
    if num_draws is None:
        return np.arange(draws)
    if num_draws < 1:
        raise ValueError(f"num_draws: expected 1 or more; found {num_draws}.")
    return np.linspace(0, draws - 1, min(-(-num_draws // chains), draws)).round().astype(int)


def log_likelihood(fit: Fit, *, chunk: int = CHUNK, num_draws: int | None = None) -> xr.Dataset:
    """Log likelihood of every observation at posterior draws.

    Parameters
    ----------
    fit : Fit
        With its program and data.
    chunk : int
        Draws computed side by side: less needs less memory. What is returned takes 8 bytes a draw and observation.
    num_draws : int, optional
        Draws used, spread evenly over each chain; all where omitted.

    Returns
    -------
    xarray.Dataset
        One variable an observed site, over its batch shape: ``chain, draw`` and the site's dimensions. Of a vector
        observed as one event there is one number. Factors (`numpyro.factor`) are left out and named in
        ``attrs["factors_left_out"]``: they belong to no observation. Where latents were integrated out this is the
        marginal likelihood; where they were sampled, it is the likelihood given them.

        With all draws it is kept as ``fit.tree["log_likelihood"]``, with ``fit.tree["observed_data"]`` beside it, where
        ArviZ looks for it and `Fit.save` stores it.

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
    """Log likelihood and observed values: those a fit keeps, else computed and not kept."""
    kept = [fit.tree[name].to_dataset() for name in ("log_likelihood", "observed_data") if name in fit.tree]
    if len(kept) == 2:
        shape = (kept[0].sizes["chain"], kept[0].sizes["draw"])
        return kept[0].isel(draw=thinned(shape, num_draws)), kept[1]
    return evaluate(fit, chunk, num_draws)


def evaluate(fit: Fit, chunk: int, num_draws: int | None) -> tuple[xr.Dataset, xr.Dataset]:
    """Compute log likelihood and observed values as Datasets with dimensions and labels."""
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
    rows = thinned((posterior.sizes["chain"], posterior.sizes["draw"]), num_draws)
    coords = {"chain": posterior["chain"].to_numpy(), "draw": posterior["draw"].to_numpy()[rows]}
    variables, data = {}, {}
    for name, value in values.items():
        seen = structure.observed[name]
        dims = list(structure.dims.get(name, []))
        dims += [f"{name}_dim_{i}" for i in range(len(dims), max(seen.ndim, value.ndim - 2))]
        variables[name] = (["chain", "draw", *dims[: value.ndim - 2]], value)
        data[name] = (dims[: seen.ndim], seen)
    result = xr.Dataset(variables, coords=coords)
    labels = _labels(fit, dict(result.sizes) | dict(xr.Dataset(data).sizes))
    result = result.assign_coords({dim: label for dim, label in labels.items() if dim in result.dims})
    for name in values:
        own = [n for n, plates in structure.latents.items() if set(plates) & set(structure.plates[name])]
        others = [n for n, plates in structure.latents.items() if plates and n not in own]
        # As text, which every netCDF file can hold.
        result[name].attrs["correlated"] = name if name in structure.correlated else ""
        result[name].attrs |= {"sampled_latents": ", ".join(own), "sampled_elsewhere": ", ".join(others)}
    result.attrs["factors_left_out"] = ", ".join(structure.factors)
    dataset = xr.Dataset(data)
    return result, dataset.assign_coords({dim: label for dim, label in labels.items() if dim in dataset.dims})


def _labels(fit: Fit, sizes: dict) -> dict[str, Any]:
    """Labels of dimensions, from the program and from what the posterior knows."""
    known = {str(dim): fit.posterior[dim].to_numpy() for dim in fit.posterior.dims if dim in fit.posterior.coords}
    if fit.program is not None:
        known |= own_coords(fit.program, fit.args)
    return {
        dim: np.asarray(label)
        for dim, label in known.items()
        if dim not in ("chain", "draw") and sizes.get(dim) == len(label)
    }
