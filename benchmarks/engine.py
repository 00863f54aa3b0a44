"""Effective draws per gradient: our samplers against nutpie, NumPyro's NUTS and BlackJAX's, on the same log densities.

The smallest bulk effective sample size of any unconstrained parameter per 1000 gradients of the density: of the draws
alone, and in brackets with the gradients of the warm-up and, for ours, of the searches for a start. Counts of gradients
do not depend on the load of the machine. Every engine gets the density of the same target. "ours" is `hbm_jax.NUTS`
with 400 warm-up draws, and "ours-default" what `hbm_jax.sample` does by default: HMC after 200 warm-up draws where the
posterior is close to normal, else NUTS after 400, or 1000 without an approximation of the posterior. The warm-up of
nutpie is its default, and 1000 draws for NumPyro's and BlackJAX's.

A column beside them is the largest difference between an engine's posterior means and those of all other engines
together, in Monte Carlo errors.

    python benchmarks/engine.py [--models logistic jla ...] [--engines ours nutpie ...] [--seeds 3] [--output FILE]
"""

import argparse
import datetime
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from arviz_stats.base import array_stats
from jax import monitoring
from numpyro import distributions as dist

import hbm_jax as hbm
from hbm_jax.inference.program import bound_args
from hbm_jax.inference.sampler.checkpoint import Checkpoint
from hbm_jax.inference.sampler.target import Target, build_target

CHAINS, DRAWS, WARMUP = 4, 1000, 1000
OUR_WARMUP = 400


# Models


def logistic():
    """Logistic regression, 25 covariates with correlations of 0.9 between neighbours."""
    rng = np.random.default_rng(0)
    factor = np.linalg.cholesky(0.9 ** np.abs(np.subtract.outer(np.arange(25), np.arange(25))))
    x = rng.normal(size=(500, 25)) @ factor.T
    y = rng.random(500) < 1.0 / (1.0 + np.exp(-(0.5 + x @ rng.normal(0.0, 0.5, 25))))

    def program():
        intercept = numpyro.sample("intercept", dist.Normal(0.0, 2.5))
        slopes = numpyro.sample("slopes", dist.Normal(0.0, 2.5).expand([25]).to_event(1))
        numpyro.sample("y", dist.Bernoulli(logits=intercept + x @ slopes), obs=y.astype(float))

    return program, ()


def hierarchy():
    """Sixty groups of three values each, centred, with unknown scatters."""
    rng = np.random.default_rng(1)
    y = rng.normal(1.0, 1.0, 60)[:, None] + rng.normal(0.0, 1.0, (60, 3))

    def program():
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfNormal(2.0))
        sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
        with numpyro.plate("group", 60):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta[:, None], sigma).to_event(2), obs=y)

    return program, ()


def item_response():
    """1PL: sixty persons and twenty items."""
    rng = np.random.default_rng(2)
    logits = rng.normal(0.0, 1.2, 60)[:, None] - rng.normal(0.0, 1.0, 20)
    y = rng.random((60, 20)) < 1.0 / (1.0 + np.exp(-logits))

    def program():
        sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
        with numpyro.plate("person", 60):
            ability = numpyro.sample("ability", dist.Normal(0.0, sigma))
        with numpyro.plate("item", 20):
            difficulty = numpyro.sample("difficulty", dist.Normal(0.0, 2.0))
        logits = ability[:, None] - difficulty
        numpyro.sample("y", dist.Bernoulli(logits=logits).to_event(2), obs=y.astype(float))

    return program, ()


def gaussian_process():
    """Forty values of a Gaussian process; amplitude, length and noise are unknown."""
    rng = np.random.default_rng(3)
    x = np.linspace(0.0, 10.0, 40)
    y = np.sin(x) + 0.3 * rng.normal(size=40)

    def program():
        amplitude = numpyro.sample("amplitude", dist.LogNormal(0.0, 1.0))
        length = numpyro.sample("length", dist.LogNormal(0.0, 1.0))
        noise = numpyro.sample("noise", dist.LogNormal(-1.0, 1.0))
        kernel = amplitude**2 * jnp.exp(-0.5 * ((x[:, None] - x) / length) ** 2)
        numpyro.sample("y", dist.MultivariateNormal(0.0, kernel + (noise**2 + 1e-8) * jnp.eye(40)), obs=y)

    return program, ()


def jla():
    """JLA's 740 supernovae, flat wCDM, the model of hbm_jax."""
    return hbm.models.Supernova(cosmology="wcdm"), (hbm.data.load_jla(),)


MODELS = {f.__name__: f for f in (logistic, hierarchy, item_response, gaussian_process, jla)}


# Engines


class Outcome(NamedTuple):
    """Draws and costs of an engine for one target.

    Attributes
    ----------
    draws : (chain, draw, size)
        Unconstrained positions.
    gradients, gradients_before : int
        Gradients of the draws, and of the warm-up and the searches for a start.
    divergences : int
        Divergent transitions among the draws.
    seconds, seconds_of_draws : float
        CPU time with compilation and warm-up, and of the draws alone.
    detail : str
        Warm-up and step sizes.
    fit : Fit or None
        Result of hbm_jax.
    """

    draws: np.ndarray
    gradients: int
    gradients_before: int
    divergences: int
    seconds: float
    seconds_of_draws: float
    detail: str = ""
    fit: hbm.Fit | None = None


class Stopwatch:
    """CPU time of a block of code, in total and without tracing and compilation by JAX.

    Elapsed times, which depend on the load of the machine, only divide the CPU time between the parts of the block.
    """

    def __enter__(self):
        self.spans: list[tuple[float, float]] = []
        self.began, self.cpu_began = time.time(), time.process_time()
        monitoring.register_event_duration_secs_listener(self._note)
        return self

    def __exit__(self, *_):
        self.wall, self.seconds = time.time() - self.began, time.process_time() - self.cpu_began
        monitoring.unregister_event_duration_listener(self._note)

    def _note(self, event, seconds, **_):
        if event.startswith("/jax/core/compile/"):
            self.spans.append((time.time() - seconds, time.time()))

    def part(self, wall):
        """Return the CPU time of a part of the block whose elapsed time is ``wall`` seconds."""
        return self.seconds * wall / self.wall

    @property
    def running(self) -> float:
        """CPU time without compilation; compilations that contain others are counted once."""
        compiling, end = 0.0, -np.inf
        for first, last in sorted(self.spans):
            compiling += max(0.0, last - max(first, end))
            end = max(end, last)
        return self.part(self.wall - compiling)


def ours(target: Target, program, args, seed: int):
    """Run our NUTS, with our starting points and warm-up."""
    return sampled(program, args, seed, sampler=hbm.NUTS(), num_warmup=OUR_WARMUP)


def ours_by_default(target: Target, program, args, seed: int):
    """Run the sampler and the warm-up that `hbm_jax.sample` chooses."""
    return sampled(program, args, seed)


def sampled(program, args, seed: int, **options):
    """Return the outcome of `hbm_jax.sample`, with the gradients of the searches counted."""
    calls = [0]
    original = Target.value_and_grad.func

    class Counted:
        """Descriptor that counts the gradients of the searches."""

        def __get__(self, instance, owner=None):
            if "_counted" not in vars(instance):
                evaluate = original(instance)

                def counted(*arguments):
                    calls[0] += 1
                    return evaluate(*arguments)

                vars(instance)["_counted"] = counted
            return vars(instance)["_counted"]

    previous, Target.value_and_grad = Target.value_and_grad, Counted()
    try:
        with tempfile.TemporaryDirectory() as folder:
            with Stopwatch() as watch:
                fit = hbm.sample(
                    program,
                    *args,
                    seed=seed,
                    num_chains=CHAINS,
                    num_samples=DRAWS,
                    progress=False,
                    checkpoint=folder,
                    **options,
                )
            store = Checkpoint.existing(folder)
            before = sum(int(saved.block.num_steps.sum()) for saved in store.blocks() if saved.warmup)
            store.close()
    finally:
        Target.value_and_grad = previous
    stats = fit.tree["sample_stats"]
    kind, note = fit.run.get("trajectories") or fit.run.get("sampler") or "nuts", fit.run["start"][:70]
    detail = f"{kind}, start {calls[0]}, warm-up {before} of {fit.run['num_warmup']}; {note}"
    steps, accepted = stats["step_size"].to_numpy()[:, -1], float(stats["acceptance_rate"].mean())
    detail += f"; steps {np.round(steps, 3)}, accepted {accepted:.3f}"
    return Outcome(
        fit.tree["unconstrained_posterior"]["position"].to_numpy(),
        int(stats["n_steps"].sum()),
        before + calls[0],
        int(stats["diverging"].sum()),
        watch.seconds,
        watch.part(fit.timing["sampling"]),
        detail,
        fit,
    )


def nutpie_low_rank(target: Target, program, args, seed: int):
    """Run nutpie with its low-rank metric, on our compiled value and gradient."""
    import nutpie

    size, evaluate = target.size, target.value_and_grad

    def logp(x, **_):
        with jax.enable_x64(True):  # an option of each thread
            value, gradient = evaluate(x)
        return -float(value), -np.asarray(gradient)

    with Stopwatch() as watch:
        compiled = nutpie.compiled_pyfunc.from_pyfunc(
            size,
            lambda: logp,
            lambda *_: lambda x, **_: {"position": x},
            [np.dtype("float64")],
            [(size,)],
            ["position"],
            make_initial_point_fn=lambda seed: target.start + np.random.default_rng(seed).uniform(-1.0, 1.0, size),
        )
        trace = nutpie.sample(
            compiled,
            chains=CHAINS,
            draws=DRAWS,
            seed=seed,
            cores=1,
            progress_bar=False,
            low_rank_modified_mass_matrix=True,
        )
    stats, warmup = trace.sample_stats, trace.warmup_sample_stats
    during, before = int(stats["n_steps"].sum()), int(warmup["n_steps"].sum())
    steps, accepted = stats["step_size"].to_numpy()[:, -1], float(stats["mean_tree_accept"].mean())
    detail = f"warm-up {before} of {warmup.sizes['draw']}; steps {np.round(steps, 3)}, accepted {accepted:.3f}"
    # One call makes all draws; a gradient takes as long in both parts.
    of_draws = watch.running * during / (during + before)
    positions = trace.posterior["position"].to_numpy()
    return Outcome(positions, during, before, int(stats["diverging"].sum()), watch.seconds, of_draws, detail)


def dispersed_points(target: Target, key):
    """Return starting points of NumPyro's and BlackJAX's chains, (chain, size)."""
    return target.start + jax.random.uniform(key, (CHAINS, target.size), minval=-1.0, maxval=1.0)


def numpyro_nuts(target: Target, program, args, seed: int, dense: bool = False):
    """Run NumPyro's NUTS with a diagonal metric."""
    from numpyro.infer import MCMC, NUTS

    key = jax.random.key(seed)
    fields = ("num_steps", "diverging")
    with Stopwatch() as whole:
        kernel = NUTS(potential_fn=target.potential, dense_mass=dense)
        mcmc = MCMC(
            kernel,
            num_warmup=WARMUP,
            num_samples=DRAWS,
            num_chains=CHAINS,
            chain_method="sequential",
            progress_bar=False,
            jit_model_args=True,
        )
        init = dispersed_points(target, key)
        mcmc.warmup(key, init_params=init, extra_fields=fields, collect_warmup=True)
        before = int(mcmc.get_extra_fields()["num_steps"].sum())
        with Stopwatch() as drawing:
            mcmc.run(mcmc.post_warmup_state.rng_key, extra_fields=fields)
            stats = mcmc.get_extra_fields()
            draws = np.asarray(mcmc.get_samples(group_by_chain=True))
    counts = int(stats["num_steps"].sum()), before, int(stats["diverging"].sum())
    return Outcome(draws, *counts, whole.seconds, drawing.running)


def numpyro_dense(target: Target, program, args, seed: int):
    """Run NumPyro's NUTS with a dense metric."""
    return numpyro_nuts(target, program, args, seed, dense=True)


def blackjax_low_rank(target: Target, program, args, seed: int, low_rank: bool = True):
    """Run BlackJAX's NUTS with its low-rank metric, which is similar to that of nutpie."""
    import blackjax

    def density(z):
        return -target.potential(z)

    if low_rank:
        adaptation = blackjax.window_adaptation_low_rank(blackjax.nuts, density)
    else:
        adaptation = blackjax.window_adaptation(blackjax.nuts, density, is_mass_matrix_diagonal=False)

    def warm_up(key, z):
        (state, parameters), info = adaptation.run(key, z, num_steps=WARMUP)
        return state, parameters, info.info.num_integration_steps.sum()

    def draw(key, state, parameters):
        step = blackjax.nuts(density, **parameters).step

        def advance(state, key):
            state, info = step(key, state)
            return state, (state.position, info.num_integration_steps, info.is_divergent)

        return jax.lax.scan(advance, state, jax.random.split(key, DRAWS))[1]

    keys = jax.random.split(jax.random.key(seed), CHAINS + 1)
    with Stopwatch() as whole:
        compiled = jax.jit(warm_up)
        warmed = [compiled(k, z) for k, z in zip(keys, dispersed_points(target, keys[-1]), strict=False)]
        compiled = jax.jit(draw)
        with Stopwatch() as drawing:
            drawn = [compiled(jax.random.fold_in(k, 1), *w[:2]) for k, w in zip(keys, warmed, strict=False)]
            positions, steps, diverging = map(np.stack, zip(*jax.device_get(drawn), strict=True))
    before = sum(int(w[2]) for w in warmed)
    counts = int(steps.sum()), before, int(diverging.sum())
    return Outcome(positions, *counts, whole.seconds, drawing.running)


def blackjax_dense(target: Target, program, args, seed: int):
    """Run BlackJAX's NUTS with a dense metric and Stan's adaptation windows."""
    return blackjax_low_rank(target, program, args, seed, low_rank=False)


ENGINES = {
    "ours": ours,
    "nutpie": nutpie_low_rank,
    "numpyro": numpyro_nuts,
    "numpyro-dense": numpyro_dense,
    "blackjax": blackjax_low_rank,
    "blackjax-dense": blackjax_dense,
    "ours-default": ours_by_default,
}


def smallest_ess(draws):
    """Return the smallest bulk effective sample size of draws (chain, draw, size), its index, and all sizes."""
    ess = np.atleast_1d(array_stats.ess(draws, chain_axis=0, draw_axis=1, method="bulk"))
    return float(ess.min()), int(ess.argmin()), ess


def largest_difference(draws, others):
    """Return the largest difference between means of draws and of other engines' draws, in Monte Carlo errors."""
    z = [0.0]
    for other in others:
        variances = [d.var(axis=(0, 1)) / smallest_ess(d)[2] for d in (draws, other)]
        z.append(np.abs((draws.mean(axis=(0, 1)) - other.mean(axis=(0, 1))) / np.sqrt(sum(variances))).max())
    return float(max(z))


def compare(name, engines, seeds):
    """Yield the lines of one model."""
    program, args = MODELS[name]()
    with jax.enable_x64(True):
        target = build_target(program, bound_args(program, args), jax.random.key(0))
        last = {}
        rows = {}
        for engine in engines:
            for seed in range(1, seeds + 1):
                outcome = ENGINES[engine](target, program, args, seed)
                ess, worst, _ = smallest_ess(outcome.draws)
                during, whole = outcome.gradients, outcome.gradients + outcome.gradients_before
                figures = 1e3 * ess / during, 1e3 * ess / whole, during / (CHAINS * DRAWS), outcome.divergences
                rows.setdefault(engine, []).append((*figures, ess, target.labels[worst]))
                last[engine] = outcome.draws
                label = target.labels[worst]
                print("   ", name, engine, seed, f"{ess:.0f}", np.round(figures, 1), label, outcome.detail)
    yield f"{name} ({target.size})"
    for engine, values in rows.items():
        numbers = np.array([value[:5] for value in values])
        alone, whole, steps, divergences, ess = np.median(numbers, axis=0)
        others = [draws for other, draws in last.items() if other != engine]
        yield (
            f"  {engine:<14}{alone:7.0f} ({whole:.0f}){'':4}{steps:6.1f} steps a draw{ess:8.0f} effective"
            f"{divergences:5.0f} divergences  {largest_difference(last[engine], others):5.1f} errors  {values[0][5]}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES)[:4])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    names = ("jax", "numpyro", *(("nutpie",) if "nutpie" in arguments.engines else ()))
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    lines = [
        f"Smallest bulk ESS per 1000 gradients (with warm-up), {CHAINS} x {DRAWS} draws, median of {arguments.seeds}",
        f"{datetime.date.today()}, {platform.machine()}, {packages}",
        "",
    ]
    for name in arguments.models:
        for line in compare(name, arguments.engines, arguments.seeds):
            print(line, flush=True)
            lines.append(line)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
