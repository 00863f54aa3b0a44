"""Choice of the partial non-centring of each element of a hierarchical program, from a short pilot run.

Let a latent u have a Gaussian prior of location m and scale t, and let the data have Fisher information I about it (the
curvature of the log likelihood). To first order around t = t0, the mean and the width of the posterior of the
reparametrised x (see `location_scale`) are independent of m and t if the weight is

    c = t^2 I / (1 + t^2 I).

This is the fraction of the prior variance that the data remove: 0 without data, 1 where the data dominate.
(Papaspiliopoulos, Roberts & Skold 2007, Statistical Science 22, 59; Betancourt & Girolami 2013, arXiv:1312.0906.)
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from numpyro import handlers
from numpyro.infer import NUTS
from numpyro.infer.initialization import init_to_median
from numpyro.infer.util import constrain_fn, log_density, potential_energy, unconstrain_fn

from hbm_jax.inference.arguments import (
    arguments_with_nan,
    latents_of,
    plain_arguments,
    prior_trace,
    without_support_warnings,
)
from hbm_jax.inference.centering.location_scale import (
    PartialNonCentring,
    ReparametrisedProgram,
    find_sites,
    is_log,
    location_scale,
)
from hbm_jax.inference.compilation.constants_as_arguments import Compiled
from hbm_jax.inference.program import bound_args
from hbm_jax.inference.sampler.diagnosis import diagnose
from hbm_jax.inference.sampler.target import StartError

MAX_ROUNDS = 6
SETTLED = 0.1  # largest change of any weight between rounds at which the choice has converged
MODE_STEPS = 200
PILOT_TREE_DEPTH = 5  # limits the long trees of a poor parametrisation; independent draws are not needed
PILOT = 0x70696C6F  # folded into the key of the seed; a small number would repeat the key of a chain
NEAR = 0.05  # distance of the weight from 0 or 1 below which the table calls it non-centred or centred


@dataclass(frozen=True)
class Centering:
    """Partial non-centring chosen by `centre`.

    Attributes
    ----------
    program : callable
        The program to sample: reparametrised, or unchanged if it has no location-scale site.
    table : pandas.DataFrame
        One row per element: ``site, element, prior_scale, information, weight, parametrisation``. ``prior_scale`` is
        t0; ``information`` is the mean curvature of the log likelihood, the inverse square of a measurement error (both
        of the logarithm where the site is log-normal). ``weight`` is c, and ``parametrisation`` describes it as
        "centred", "non-centred" or "in between".
    note : str
        Summary of the pilot run, in one sentence.
    """

    program: Callable
    table: pd.DataFrame
    note: str


def centre(
    program: Callable,
    *args: Any,
    seed: int = 0,
    sites: Collection[str] | None = None,
    num_warmup: int = 150,
    num_pilots: int = 100,
    **keywords: Any,
) -> Centering:
    """Choose the partial non-centring of each element of each location-scale site.

    Location-scale sites are latent sites of a location-scale family (normal, Student's t, Laplace, Cauchy, logistic,
    Gumbel, log-normal and similar) whose location or scale depends on another latent. A first choice follows from the
    curvature of the log density, without the prior of the site, at the joint mode of the non-centred program. The
    curvature is estimated by Hessian-vector products with random signs, which is exact if the elements of the site do
    not interact. Then a short NUTS run with this choice gives the mean curvature over its draws, and a new choice. This
    is repeated until the choice no longer changes, because a poorly parametrised run may not reach the posterior.
    Sites are treated in reverse order of the program: the curvature of a group is then evaluated with the groups below
    it in their chosen parametrisation, which amounts to integrating their latents out.

    Parameters
    ----------
    program : callable
        A NumPyro program. One that is non-centred by hand has no location-scale site and is returned unchanged.
    *args, **keywords
        Arguments of the program, by position or by name.
    seed : int
        Seed of the pilot run.
    sites : collection of str, optional
        Sites to treat; all location-scale sites by default.
    num_warmup, num_pilots : int
        Numbers of warm-up draws and of draws of each pilot run, of one chain.

    Returns
    -------
    Centering
        ``.program`` is to be sampled in place of the program; it has the same posterior and the same site names.

    Raises
    ------
    ValueError
        If a name in ``sites`` is not a location-scale site, or a latent is discrete.
    StartError
        If the data have NaN, or the pilot run finds no finite density, so that its scales are not finite.

    Examples
    --------
    >>> import numpy as np, numpyro, numpyro.distributions as dist
    >>> def program(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     with numpyro.plate("group", len(y)):
    ...         theta = numpyro.sample("theta", dist.Normal(mu, 2.0))
    ...         numpyro.sample("y", dist.Normal(theta, np.array([0.1, 2.0, 40.0])), obs=y)
    >>> centre(program, np.zeros(3)).table["weight"].round(2).tolist()
    [1.0, 0.5, 0.0]
    """
    args = bound_args(program, plain_arguments(program, args, keywords))
    return choose_centering(program, args, seed, sites, num_warmup, num_pilots)


def choose_centering(
    program: Callable,
    args: tuple,
    seed: int,
    sites: Collection[str] | None = None,
    num_warmup: int = 150,
    num_pilots: int = 100,
) -> Centering:
    """Choose the partial non-centring of a program with bound arguments; see `centre`."""
    with jax.enable_x64(True), without_support_warnings():
        key_sites, key_start, key_rounds = jax.random.split(jax.random.fold_in(jax.random.key(seed), PILOT), 3)
        shapes = find_sites(program, args, key_sites)
        unknown = [name for name in sites or () if name not in shapes]
        if unknown:
            raise ValueError(
                f"centre: expected names among the location-scale sites {list(shapes)}; found {', '.join(unknown)}."
            )
        shapes = {name: shape for name, shape in shapes.items() if sites is None or name in sites}
        if not shapes:
            return Centering(program, _table((), {}), "no latent site has a location or scale that is itself latent")
        reparams = tuple(PartialNonCentring(name, np.zeros(shape), np.ones(shape)) for name, shape in shapes.items())
        pilot = Pilot(program, args, num_warmup, num_pilots)
        params, is_finite = pilot.mode(reparams, key_start)
        if not is_finite:
            pilot.require_data_without_nan(reparams, params)
        # First choice from the curvature at the mode: well-measured latents need long trees if non-centred.
        repeated = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_pilots, *x.shape)), params)
        draws = jax.device_get(pilot.evaluate(reparams, repeated))
        reparams, _ = pilot.choose(reparams, draws, key_rounds)
        params = pilot.last(reparams, repeated, draws)
        for num_rounds in range(1, MAX_ROUNDS + 1):
            previous = reparams
            key_run, key_probes = jax.random.split(jax.random.fold_in(key_rounds, num_rounds))
            params, diverging = pilot.run(reparams, params, key_run)
            draws = jax.device_get(pilot.evaluate(reparams, params))
            reparams, information = pilot.choose(reparams, draws, key_probes)
            params = pilot.last(reparams, params, draws)
            pairs = zip(previous, reparams, strict=True)
            change = max(float(np.abs(new.weight - old.weight).max()) for old, new in pairs)
            if change < SETTLED:
                break
    rounds = f"{num_rounds} round{'s' * (num_rounds > 1)} of {num_pilots} pilot draws"
    note = (
        f"from the last of {rounds}, {int(diverging.sum())} of them divergent; it changed no weight by more "
        f"than {change:.2g}"
    )
    return Centering(ReparametrisedProgram(program, reparams), _table(reparams, information), note)


class Pilot:
    """Compiled steps of the pilot run. Reparametrisations are arguments: changing them does not recompile."""

    def __init__(self, program: Callable, args: tuple, num_warmup: int, num_pilots: int):
        self.program, self.args = program, args
        self.num_warmup, self.num_pilots = num_warmup, num_pilots
        self.mode, self.run, self.evaluate = Compiled(self._mode), Compiled(self._run), Compiled(self._evaluate)
        self.curvature = jax.jit(self._curvature, static_argnums=0)

    def _mode(self, reparams, key):
        """Return parameters near the joint mode, searched from the prior median, and whether their density is finite.

        The parameters are unconstrained, and those of the median if the density is not finite at the end of the search.
        The mode exists for the non-centred program; centred, the density is unbounded at a scale of zero. A chain
        started from the prior instead can end at a scale so small that the data no longer influence it.
        """
        program = ReparametrisedProgram(self.program, reparams)
        latents = latents_of(prior_trace(program, self.args, key, init_to_median()))
        median = {name: site["value"] for name, site in latents.items()}
        potential = partial(self.potential, reparams)
        value_and_grad = optax.value_and_grad_from_state(potential)
        solver = optax.lbfgs()

        def step(carry, _):
            params, state = carry
            value, grad = value_and_grad(params, state=state)
            updates, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=potential)
            return (optax.apply_updates(params, updates), state), None

        start = unconstrain_fn(program, self.args, {}, median)
        (params, _), _ = jax.lax.scan(step, (start, solver.init(start)), length=MODE_STEPS)
        is_finite = jnp.isfinite(potential(params))
        return jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), params, start), is_finite

    def require_data_without_nan(self, reparams, params):
        """Raise StartError if the density is not finite, and an observed site or an argument has NaN."""
        if jnp.isfinite(jax.jit(self.potential)(reparams, params)):
            return
        program = ReparametrisedProgram(self.program, reparams)
        sites = partial(constrain_fn, program, self.args, {}, params)
        diagnosis = diagnose(self.program, program, self.args, sites)
        if with_nan := diagnosis.observed or arguments_with_nan(self.program, self.args):
            raise StartError(f"centre: expected data with a finite log density; found NaN. {with_nan.strip()}")

    def potential(self, reparams, params):
        """Return minus the log density of unconstrained parameters."""
        return potential_energy(ReparametrisedProgram(self.program, reparams), self.args, {}, params)

    def _run(self, reparams, params, key):
        """Run NUTS; return the unconstrained draws and whether each diverged."""
        kernel = NUTS(potential_fn=partial(self.potential, reparams), max_tree_depth=PILOT_TREE_DEPTH)

        def step(state, _):
            state = kernel.sample(state, (), {})
            return state, (state.z, state.diverging)

        state = kernel.init(key, self.num_warmup, params, (), {})
        _, draws = jax.lax.scan(step, state, length=self.num_warmup + self.num_pilots)
        return jax.tree.map(lambda x: x[self.num_warmup :], draws)

    def _evaluate(self, reparams, params):
        """Return, for each draw, value, location and scale of each reparametrised site, and the other latents."""

        def at_draw(params):
            program = ReparametrisedProgram(self.program, reparams)
            sites = constrain_fn(program, self.args, {}, params, return_deterministic=True)
            trace = handlers.trace(handlers.substitute(self.program, sites)).get_trace(*self.args)
            reparametrised = {}
            for reparam in reparams:
                fn = trace[reparam.site]["fn"]
                value = jnp.log(sites[reparam.site]) if is_log(fn) else sites[reparam.site]
                reparametrised[reparam.site] = (value, *location_scale(fn))
            sampled_sites = [reparam.sampled_site for reparam in reparams]
            others = {name: sites[name] for name in params if name not in sampled_sites}
            return {"others": others, "sites": reparametrised}

        return jax.lax.map(at_draw, params)

    def _curvature(self, sampled_site, reparams, draws, keys):
        """Return the curvature of minus the log density, without the prior of a site, at each draw and element.

        Random signs s estimate the diagonal of a Hessian H: it is the mean of s H s.
        """
        program = ReparametrisedProgram(self.program, reparams)

        def at_draw(draw, key):
            latent_values = _sampled_values(reparams, draw["sites"])

            def without_prior(x):
                density, trace = log_density(program, self.args, {}, draw["others"] | latent_values | {sampled_site: x})
                return jnp.sum(trace[sampled_site]["fn"].log_prob(x)) - density

            x = latent_values[sampled_site]
            signs = jax.random.rademacher(key, x.shape, x.dtype)
            return signs * jax.jvp(jax.grad(without_prior), (x,), (signs,))[1]

        return jax.lax.map(lambda draw_and_key: at_draw(*draw_and_key), (draws, keys))

    def choose(self, reparams, draws, key):
        """Return new reparametrisations, chosen from the last site to the first, and each element's information."""
        scales = {reparam.site: draws["sites"][reparam.site][2] for reparam in reparams}
        new = {
            name: PartialNonCentring(name, np.ones(scale.shape[1:]), np.exp(np.log(scale).mean(axis=0)))
            for name, scale in scales.items()
        }
        keys = jax.random.split(key, self.num_pilots)
        for name, reparam in new.items():
            if not np.isfinite(reparam.reference).all():
                raise StartError(
                    f"centre: expected a pilot run with finite scales; found NaN or infinity for {name!r}."
                )
        information = {}
        for name in reversed(new):  # the program samples dependent sites later
            curvatures = np.asarray(self.curvature(new[name].sampled_site, tuple(new.values()), draws, keys))
            # Averaged first, because with interacting elements the estimate from a single draw is noisy.
            information[name] = np.ma.filled(np.ma.masked_invalid(curvatures).mean(axis=0), np.nan)
            precision_ratio = scales[name] ** 2 * np.maximum(information[name], 0.0)
            weight = np.nan_to_num((precision_ratio / (1.0 + precision_ratio)).mean(axis=0))
            new[name] = PartialNonCentring(name, weight, new[name].reference)
        return tuple(new.values()), information

    def last(self, reparams, params, draws):
        """Return the last draw, unconstrained, in the parametrisation of ``reparams``."""
        last_params, last_groups = jax.tree.map(lambda values: values[-1], (params, draws["sites"]))
        return last_params | _sampled_values(reparams, last_groups)


def _sampled_values(reparams, groups) -> dict[str, Any]:
    """Return the sampled value x of each site, from its value, location and scale in ``groups``."""
    return {reparam.sampled_site: reparam.sampled_value(*groups[reparam.site]) for reparam in reparams}


def _table(reparams, information: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Return `Centering.table`."""
    rows = []
    for reparam in reparams:
        for index in np.ndindex(reparam.weight.shape):
            c = reparam.weight[index]
            description = "non-centred" if c < NEAR else "centred" if c > 1.0 - NEAR else "in between"
            element = f"{reparam.site}[{','.join(map(str, index))}]" if index else reparam.site
            scale, curvature = reparam.reference[index], information[reparam.site][index]
            rows.append((reparam.site, element, scale, curvature, c, description))
    return pd.DataFrame(rows, columns=["site", "element", "prior_scale", "information", "weight", "parametrisation"])
