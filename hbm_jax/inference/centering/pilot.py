"""How centred each group of a hierarchical program should be, chosen element by element from a short pilot run.

With a Gaussian prior of location m and scale t for a latent u, and data of information I about it (the curvature of the
log likelihood), the x that is sampled in its place (see `location_scale`) depends a posteriori, to first order around
t = t0, neither on m nor with its width on t exactly where its centredness is

    c = t^2 I / (1 + t^2 I),

the fraction of the prior's variance that the data take away: 0 without data, 1 where the data say all.
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

from hbm_jax.inference.centering.location_scale import Form, Recentred, find_sites, is_log, location_scale
from hbm_jax.inference.compilation.constants_as_arguments import Compiled
from hbm_jax.inference.sampler.target import StartError

MAX_ROUNDS = 6
SETTLED = 0.1  # change of every centredness from one round to the next
MODE_STEPS = 200
PILOT_TREE_DEPTH = 5  # a pilot in a bad form takes long trees, and needs no independent draws
PILOT = 0x70696C6F  # makes the pilot's key of the seed; a small number would give one of the splits that chains have
NEAR = 0.05  # of 0 or 1: what the table calls non-centred or centred


@dataclass(frozen=True)
class Centering:
    """What `centre` chose, and why.

    Attributes
    ----------
    program : callable
        The program to sample: a recentred one, or the one given where it has no location-scale site.
    table : pandas.DataFrame
        One row an element: ``site, element, prior_scale, information, centredness, form``. ``prior_scale`` is t0 and
        ``information`` the mean curvature of the log likelihood, the inverse square of an error (both of the logarithm
        where the site is log-normal); ``form`` says the centredness in words.
    note : str
        What was done, in a sentence.
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
) -> Centering:
    """Choose how centred each element of each location-scale site is sampled.

    Location-scale sites are latent sites of a family with a location and a scale (normal, Student's t, Laplace, Cauchy,
    logistic, Gumbel, log-normal and their like), one of which depends on another latent. At the mode of the non-centred
    form the curvature of the log density without the site's own prior is taken by Hessian-vector products with random
    signs (exact where the site's elements do not interact). A short run of NUTS in the forms that this gives follows,
    with the curvature at each of its draws, and is repeated until the forms no longer change, because a run in a bad
    form may not have found the posterior.
    Sites are treated in reverse order of the program, so that what a group learns from a group below it is seen in the
    form chosen for that one: the curvature with the lower latents integrated out.

    Parameters
    ----------
    program : callable
        A NumPyro program. One that writes its non-centred form by hand has no location-scale site and stays as it is.
    *args
        What it is called with.
    seed : int
        Seed of the pilot.
    sites : collection of str, optional
        The sites to treat; all by default.
    num_warmup, num_pilots : int
        Warm-up draws and draws of each run of the pilot, one chain.

    Returns
    -------
    Centering
        ``.program`` is sampled in place of the program and has the same posterior under the same names.

    Raises
    ------
    ValueError
        If a name in ``sites`` is not a location-scale site, or a latent is discrete.
    StartError
        If the pilot finds no finite density.

    Examples
    --------
    >>> import numpy as np, numpyro, numpyro.distributions as dist
    >>> def program(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     with numpyro.plate("group", len(y)):
    ...         theta = numpyro.sample("theta", dist.Normal(mu, 2.0))
    ...         numpyro.sample("y", dist.Normal(theta, np.array([0.1, 2.0, 40.0])), obs=y)
    >>> centre(program, np.zeros(3)).table["centredness"].round(2).tolist()
    [1.0, 0.5, 0.0]
    """
    with jax.enable_x64(True):
        key_find, key_start, key_rounds = jax.random.split(jax.random.fold_in(jax.random.key(seed), PILOT), 3)
        shapes = find_sites(program, args, key_find)
        unknown = [name for name in sites or () if name not in shapes]
        if unknown:
            raise ValueError(
                f"centre: expected names among the location-scale sites {list(shapes)}; found {', '.join(unknown)}."
            )
        shapes = {name: shape for name, shape in shapes.items() if sites is None or name in sites}
        if not shapes:
            return Centering(program, _table((), {}), "no latent site has a location or scale that is itself latent")
        forms = tuple(Form(name, np.zeros(shape), np.ones(shape)) for name, shape in shapes.items())
        pilot = Pilot(program, args, num_warmup, num_pilots)
        params = pilot.mode(forms, key_start)
        # A first choice from the curvature there: latents that are known well take long trees in the non-centred form.
        here = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_pilots, *x.shape)), params)
        draws = jax.device_get(pilot.look(forms, here))
        forms, _ = pilot.choose(forms, draws, key_rounds)
        params = pilot.last(forms, here, draws)
        for rounds in range(1, MAX_ROUNDS + 1):
            before = forms
            key_run, key_signs = jax.random.split(jax.random.fold_in(key_rounds, rounds))
            params, diverging = pilot.run(forms, params, key_run)
            draws = jax.device_get(pilot.look(forms, params))
            forms, information = pilot.choose(forms, draws, key_signs)
            params = pilot.last(forms, params, draws)
            pairs = zip(before, forms, strict=True)
            change = max(float(np.abs(new.centredness - old.centredness).max()) for old, new in pairs)
            if change < SETTLED:
                break
    several = f"{rounds} round{'s' * (rounds > 1)} of {num_pilots} pilot draws"
    note = (
        f"from the last of {several}, {int(diverging.sum())} of them divergent; it changed no centredness by more than "
        f"{change:.2g}"
    )
    return Centering(Recentred(program, forms), _table(forms, information), note)


class Pilot:
    """A short run of a program in forms that are arguments of what is compiled, so that changing them costs nothing."""

    def __init__(self, program: Callable, args: tuple, num_warmup: int, num_pilots: int):
        self.program, self.args = program, args
        self.num_warmup, self.num_pilots = num_warmup, num_pilots
        self.mode, self.run, self.look = Compiled(self._mode), Compiled(self._run), Compiled(self._look)
        self.curvature = jax.jit(self._curvature, static_argnums=0)

    def _mode(self, forms, key):
        """Go towards the joint mode, unconstrained, from the prior's median.

        In the non-centred form it exists; in the centred one it is a scale of zero. Without this, the fall from the
        prior to the data can fling a chain to where a scale is so small that the data are not felt.
        """
        recentred = Recentred(self.program, forms)
        initial = handlers.substitute(handlers.seed(recentred, key), substitute_fn=init_to_median())
        trace = handlers.trace(initial).get_trace(*self.args)
        free = {n: s["value"] for n, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}
        potential = partial(self.potential, forms)
        value_and_grad = optax.value_and_grad_from_state(potential)
        solver = optax.lbfgs()

        def step(carry, _):
            params, state = carry
            value, grad = value_and_grad(params, state=state)
            updates, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=potential)
            return (optax.apply_updates(params, updates), state), None

        start = unconstrain_fn(recentred, self.args, {}, free)
        (params, _), _ = jax.lax.scan(step, (start, solver.init(start)), length=MODE_STEPS)
        found = jnp.isfinite(potential(params))
        return jax.tree.map(lambda new, old: jnp.where(found, new, old), params, start)

    def potential(self, forms, params):
        """Minus the log density of unconstrained parameters."""
        return potential_energy(Recentred(self.program, forms), self.args, {}, params)

    def _run(self, forms, params, key):
        """Warm up and draw; returns the draws, unconstrained, and whether each diverged."""
        kernel = NUTS(potential_fn=partial(self.potential, forms), max_tree_depth=PILOT_TREE_DEPTH)

        def step(state, _):
            state = kernel.sample(state, (), {})
            return state, (state.z, state.diverging)

        state = kernel.init(key, self.num_warmup, params, (), {})
        _, drawn = jax.lax.scan(step, state, length=self.num_warmup + self.num_pilots)
        return jax.tree.map(lambda x: x[self.num_warmup :], drawn)

    def _look(self, forms, params):
        """Return what `choose` needs at each draw: values of other sites; value, location and scale of each group."""

        def one(params):
            recentred = Recentred(self.program, forms)
            sites = constrain_fn(recentred, self.args, {}, params, return_deterministic=True)
            trace = handlers.trace(handlers.substitute(self.program, sites)).get_trace(*self.args)
            groups = {}
            for form in forms:
                fn = trace[form.site]["fn"]
                value = jnp.log(sites[form.site]) if is_log(fn) else sites[form.site]
                groups[form.site] = (value, *location_scale(fn))
            helpers = [form.helper for form in forms]
            return {"plain": {name: sites[name] for name in params if name not in helpers}, "groups": groups}

        return jax.lax.map(one, params)

    def _curvature(self, helper, forms, draws, keys):
        """Curvature of minus the log density without the helper's own prior, at each draw and for each element."""
        recentred = Recentred(self.program, forms)

        def one(draw, key):
            free = {form.helper: form.free(*draw["groups"][form.site]) for form in forms}

            def without_prior(x):
                density, trace = log_density(recentred, self.args, {}, draw["plain"] | free | {helper: x})
                return jnp.sum(trace[helper]["fn"].log_prob(x)) - density

            signs = jax.random.rademacher(key, free[helper].shape, free[helper].dtype)
            return signs * jax.jvp(jax.grad(without_prior), (free[helper],), (signs,))[1]

        return jax.lax.map(lambda both: one(*both), (draws, keys))

    def choose(self, forms, draws, key):
        """Return better forms, chosen last site first, and the information about each element."""
        scales = {form.site: draws["groups"][form.site][2] for form in forms}
        chosen = {n: Form(n, np.ones(s.shape[1:]), np.exp(np.log(s).mean(axis=0))) for n, s in scales.items()}
        keys = jax.random.split(key, self.num_pilots)
        for name, form in chosen.items():
            if not np.isfinite(form.reference).all():
                raise StartError(f"centre: expected a pilot run with finite scales; found others for {name!r}.")
        information = {}
        for name in reversed(chosen):  # the order of the program: what depends on a site comes after it
            curvatures = np.asarray(self.curvature(chosen[name].helper, tuple(chosen.values()), draws, keys))
            # Averaged before anything is made of it: with interacting elements each draw's is noisy.
            information[name] = np.ma.filled(np.ma.masked_invalid(curvatures).mean(axis=0), np.nan)
            known = scales[name] ** 2 * np.maximum(information[name], 0.0)
            centredness = np.nan_to_num((known / (1.0 + known)).mean(axis=0))
            chosen[name] = Form(name, centredness, chosen[name].reference)
        return tuple(chosen.values()), information

    def last(self, forms, params, draws):
        """Return the last draw, unconstrained, in other forms."""
        helpers = {f.helper: f.free(*(part[-1] for part in draws["groups"][f.site])) for f in forms}
        return {name: helpers.get(name, value[-1]) for name, value in params.items()}


def _table(forms, information: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Return the audit: one row an element."""
    rows = []
    for form in forms:
        for index in np.ndindex(form.centredness.shape):
            c = form.centredness[index]
            words = "non-centred" if c < NEAR else "centred" if c > 1.0 - NEAR else "in between"
            element = f"{form.site}[{','.join(map(str, index))}]" if index else form.site
            rows.append((form.site, element, form.reference[index], information[form.site][index], c, words))
    return pd.DataFrame(rows, columns=["site", "element", "prior_scale", "information", "centredness", "form"])
