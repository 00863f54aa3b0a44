"""Engines of the contestants; each runs two chains, one per core, in double precision."""

import math
import os
import re
import shutil
import time

import numpy as np
from result import Result

CHAINS = 2


def ours(model, data, names, options, shifts=None, sampler=("NUTS", {}), **settings) -> Result:
    """Run hbm_jax: in the first round as it ends by itself, for the time to its verdict; then for some draws."""
    import hbm_jax as hbm

    hbm.use_every_core()
    kind, sampler_options = sampler
    common = {"seed": options.seed, "num_chains": CHAINS, "progress": False} | settings
    common["sampler"] = getattr(hbm, kind)(**sampler_options)
    verdict_seconds, note = math.nan, ""
    if options.seed == 1 and kind == "NUTS" and not settings and not options.quick:
        began = time.perf_counter()
        first = hbm.sample(model, data, **common)
        verdict_seconds = time.perf_counter() - began
        note = "" if first.verdict.usable else f"verdict: {'; '.join(first.verdict.reasons)}"
    longer = options.longer * (5 if kind == "IndependentProposals" else 1)  # seconds are too short else
    fit = hbm.sample(model, data, num_samples=options.draws * longer, **common)
    stats = fit.tree["sample_stats"]
    found = fit.tree["posterior"]
    given_up = kind == "IndependentProposals" and not fit.run["proposals_used"]
    return Result(
        {
            # The search for the mode stands for a part of the warm-up.
            "compile": fit.timing["compile"] + fit.timing["trace"] + fit.timing.get("centering", 0.0),
            "warmup": fit.timing["warmup"] + fit.timing["start"],
            "sampling": fit.timing["sampling"],
        },
        {name: found[name].transpose("chain", "draw").to_numpy() - (shifts or {}).get(name, 0.0) for name in names},
        int(np.maximum(stats["n_steps"], 1).sum()),  # a proposal costs a density, and counts as a gradient
        int(stats["diverging"].sum()),
        note,
        verdict_seconds,
        failure="proposals too seldom accepted, so the same as with a fixed length" if given_up else "",
    )


def numpyro(program, names, options) -> Result:
    """Plain NumPyro: its NUTS kernel from the priors' medians, a chain on each of two devices, compiled beforehand.

    `numpyro.infer.MCMC` runs the same kernel, but compiles it anew at every call, so that its phases cannot be timed.
    As there one program warms up and draws: the kernel adapts as long as its warm-up lasts.
    """
    import jax
    import jax.numpy as jnp
    from numpyro.infer import NUTS, init_to_median

    jax.config.update("jax_enable_x64", True)
    kernel = NUTS(program, init_strategy=init_to_median)
    began = time.perf_counter()
    keys = jax.random.split(jax.random.key(options.seed), CHAINS)
    states = [kernel.init(key, options.draws, None, (), {}) for key in keys]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    def draw(state):
        def one(s, _):
            s = kernel.sample(s, (), {})
            return s, (s.z, s.num_steps, s.diverging)

        return jax.lax.scan(one, state, None, options.draws)

    run = jax.pmap(draw).lower(state).compile()
    compiled = time.perf_counter()
    state, _ = jax.block_until_ready(run(state))
    warmed = time.perf_counter()
    _, (positions, steps, divergent) = jax.block_until_ready(run(state))
    done = time.perf_counter()
    sites = jax.jit(jax.vmap(jax.vmap(kernel.postprocess_fn((), {}))))(positions)
    return Result(
        {"compile": compiled - began, "warmup": warmed - compiled, "sampling": done - warmed},
        {name: np.asarray(sites[name]) for name in names},
        int(steps.sum()),
        int(divergent.sum()),
    )


def blackjax(program, names, options) -> Result:
    """BlackJAX: its window adaptation and NUTS on the log density of the plain NumPyro program, compiled beforehand."""
    import blackjax as bj
    import jax
    from numpyro import handlers
    from numpyro.distributions import biject_to
    from numpyro.infer import init_to_median
    from numpyro.infer.util import constrain_fn, potential_energy

    jax.config.update("jax_enable_x64", True)
    keys = jax.random.split(jax.random.key(options.seed), 3 * CHAINS).reshape(3, CHAINS)

    def start(key):
        medians = handlers.substitute(handlers.seed(program, key), substitute_fn=init_to_median)
        sites = handlers.trace(medians).get_trace().items()
        latent = {name: s for name, s in sites if s["type"] == "sample" and not s["is_observed"]}
        return {name: biject_to(s["fn"].support).inv(s["value"]) for name, s in latent.items()}

    def log_density(position):
        return -potential_energy(program, (), {}, position)

    starts = jax.jit(jax.vmap(start))(keys[0])

    def warm(key, position):
        adaptation = bj.window_adaptation(bj.nuts, log_density)
        (state, parameters), _ = adaptation.run(key, position, num_steps=options.draws)
        return state, parameters

    def draw(key, state, parameters):
        kernel = bj.nuts(log_density, **parameters).step

        def one(state, key):
            state, info = kernel(key, state)
            return state, (state.position, info.num_integration_steps, info.is_divergent)

        return jax.lax.scan(one, state, jax.random.split(key, options.draws))[1]

    began = time.perf_counter()
    lowered = jax.pmap(warm).lower(keys[1], starts)
    mapped = lowered.compile()
    sampler = jax.pmap(draw).lower(keys[2], *lowered.out_info).compile()
    compiled = time.perf_counter()
    state = jax.block_until_ready(mapped(keys[1], starts))
    warmed = time.perf_counter()
    positions, steps, divergent = jax.block_until_ready(sampler(keys[2], *state))
    done = time.perf_counter()
    sites = jax.jit(jax.vmap(jax.vmap(lambda position: constrain_fn(program, (), {}, position))))(positions)
    return Result(
        {"compile": compiled - began, "warmup": warmed - compiled, "sampling": done - warmed},
        {name: np.asarray(sites[name]) for name in names},
        int(steps.sum()),
        int(divergent.sum()),
    )


def pymc(model, names, options) -> Result:
    """PyMC, sampled by nutpie; the seconds of its phases are divided by the fraction of gradients in each."""
    import nutpie

    began = time.perf_counter()
    compiled = nutpie.compile_pymc_model(model)
    middle = time.perf_counter()
    trace = nutpie.sample(
        compiled, draws=options.draws, tune=options.draws, chains=CHAINS, cores=CHAINS, seed=options.seed,
        progress_bar=False, save_warmup=True,
    )  # fmt: skip
    seconds = time.perf_counter() - middle
    steps, before = (
        trace[group]["n_steps"].transpose("chain", "draw").to_numpy()
        for group in ("sample_stats", "warmup_sample_stats")
    )
    share = steps.sum() / (steps.sum() + before.sum())
    return Result(
        {"compile": middle - began, "warmup": (1 - share) * seconds, "sampling": share * seconds},
        {name: trace["posterior"][name].transpose("chain", "draw").to_numpy() for name in names},
        int(steps.sum()),
        int(trace["sample_stats"]["diverging"].sum()),
    )


def build_stan(program, given, seed):
    """Compile a Stan program with the data that it declares, or take it from where PyStan keeps those it compiled."""
    import stan as pystan

    text = program.read_text()
    declared = text.split("parameters {")[0]
    given = {name: value for name, value in given.items() if re.search(rf"\b{name};", declared)}
    os.environ.setdefault("CFLAGS", "-g0")  # the flags of Python ask for debugging symbols: a third of the time
    return pystan.build(text, data=given, random_seed=seed)


def stan(program, given, starts, names, options) -> Result:
    """Run Stan (PyStan 3); seconds are those it reports itself, of the slowest chain."""
    import httpstan.cache
    import httpstan.models

    text = program.read_text()
    folder = httpstan.cache.model_directory(httpstan.models.calculate_model_name(text))
    note = ""
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        note = "compiled before"
    began = time.perf_counter()
    model = build_stan(program, given, options.seed)
    compiled = time.perf_counter() - began
    shutil.rmtree(folder / "fits", ignore_errors=True)  # the same seed would come out of the cache in no time
    fit = model.sample(num_chains=CHAINS, num_warmup=options.draws, num_samples=options.draws, init=starts)
    seconds = [
        max(float(re.search(rb"([0-9.eE+-]+) seconds \(%s\)" % phase, out)[1]) for out in fit.stan_outputs)
        for phase in (b"Warm-up", b"Sampling")
    ]
    return Result(
        {"compile": compiled, "warmup": seconds[0], "sampling": seconds[1]},
        {name: fit[name].reshape(options.draws, CHAINS).T for name in names},
        int(fit["n_leapfrog__"].sum()),
        int(fit["divergent__"].sum()),
        note,
    )
