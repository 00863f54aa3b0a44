"""Funnels with equal steps (NUTS) and with steps that are divided where the curvature is large (WALNUTS).

Three funnels in centred form, with known quantiles of the scale, and two ordinary posteriors. The smallest bulk
effective sample size of any unconstrained parameter per 1000 gradients of the density, of the draws alone and in
brackets with those of the warm-up; gradients of the searches for a start, the same for both, are not counted. Counts of
gradients do not depend on the load of the machine, and have those of steps that were divided further.

    python benchmarks/funnel_steps.py [--models funnel jla ...] [--seeds 2] [--output FILE]
"""

import argparse
import contextlib
import datetime
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import numpyro
from arviz_stats.base import array_stats
from engine import jla, largest_difference, logistic, smallest_ess
from numpyro import distributions as dist
from scipy import stats

import hbm_jax as hbm
from hbm_jax.inference.sampler.checkpoint import Checkpoint

PROBABILITIES = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99)
SAMPLERS = {"NUTS": hbm.NUTS(), "WALNUTS": hbm.WALNUTS()}


def funnel():
    """Neal's funnel of ten parameters."""

    def program():
        y = numpyro.sample("log_scale", dist.Normal(0.0, 3.0))
        numpyro.sample("x", dist.Normal(0.0, jnp.exp(0.5 * y)).expand([9]).to_event(1))

    return program, stats.norm.ppf(PROBABILITIES, 0.0, 3.0)


def schools():
    """Eight schools, centred."""
    effect = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    return centred(effect, np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]), 1.0)


def groups():
    """Thirty groups of one value each, centred."""
    rng = np.random.default_rng(5)
    return centred(rng.normal(0.0, 0.7, 30) + rng.normal(size=30), np.ones(30), 0.0)


def centred(value, error, median):
    """Return the centred hierarchy with a log-normal scale of width 2, and the quantiles of its logarithm."""

    def program():
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        log_scale = numpyro.sample("log_scale", dist.Normal(median, 2.0))
        with numpyro.plate("group", len(value)):
            theta = numpyro.sample("theta", dist.Normal(mu, jnp.exp(log_scale)))
            numpyro.sample("value", dist.Normal(theta, error), obs=value)

    # The posterior of the scale, with the mean and the groups integrated out.
    grid = np.linspace(median - 14.0, median + 10.0, 20_001)
    variance = error**2 + np.exp(2.0 * grid[:, None])
    precision, weighted = (1.0 / variance).sum(axis=1) + 1.0 / 25.0, (value / variance).sum(axis=1)
    log_density = stats.norm.logpdf(grid, median, 2.0) + 0.5 * (
        weighted**2 / precision - np.log(precision) - (np.log(variance) + value**2 / variance).sum(axis=1)
    )
    cumulative = np.cumsum(np.exp(log_density - log_density.max()))
    return program, np.interp(PROBABILITIES, cumulative / cumulative[-1], grid)


FUNNELS = {f.__name__: f for f in (funnel, schools, groups)}
ORDINARY = {f.__name__: f for f in (logistic, jla)}


def run(program, args, sampler, seed, num_samples):
    """Return a fit, and the number of gradients of its warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        fit = hbm.sample(
            program, *args, sampler=sampler, seed=seed, num_samples=num_samples, progress=False, checkpoint=folder
        )
        with contextlib.closing(Checkpoint.existing(folder)) as store:
            return fit, sum(int(saved.block.num_steps.sum()) for saved in store.blocks() if saved.warmup)


def row(fit, before):
    """Return the figures of a fit: draws, and a text."""
    draws, statistics = fit.tree["unconstrained_posterior"]["position"].to_numpy(), fit.tree["sample_stats"]
    ess, during = smallest_ess(draws)[0], int(statistics["n_steps"].sum())
    text = f"{1e3 * ess / during:8.3f} ({1e3 * ess / (during + before):.3f}){during / draws[..., 0].size:7.1f} a draw"
    return draws, text + f"{ess:7.0f} effective{int(statistics['diverging'].sum()):5d} divergences"


def shares(fit, quantiles):
    """Return the shares of the draws of the scale below its quantiles, and their distances in Monte Carlo errors."""
    draws = fit.posterior["log_scale"].to_numpy()
    r_hat = float(array_stats.rhat(draws, chain_axis=0, draw_axis=1))
    texts = []
    for p, quantile in zip(PROBABILITIES, quantiles, strict=True):
        below = (draws < quantile).astype(float)
        ess = float(array_stats.ess(below, method="mean", chain_axis=0, draw_axis=1)) if below.any() else np.nan
        texts.append(f"{below.mean():.4f} ({(below.mean() - p) / np.sqrt(p * (1 - p) / ess):+.1f})")
    return f"R-hat {r_hat:.3f}, lowest {draws.min():.1f}, shares below: {', '.join(texts)}"


def lines_of(name, seeds):
    """Yield the lines of one posterior."""
    yield f"{name}" + (f", shares below the quantiles {PROBABILITIES}" if name in FUNNELS else "")
    for seed in range(1, seeds + 1):
        last = {}
        for label, sampler in SAMPLERS.items():
            if name in FUNNELS:
                program, quantiles = FUNNELS[name]()
                fit, before = run(program, (), sampler, seed, 4000)
            else:
                program, args = ORDINARY[name]()
                fit, before = run(program, args, sampler, seed, 1000)
            last[label], text = row(fit, before)
            yield f"  {label:<9}{text}" + (f"; {shares(fit, quantiles)}" if name in FUNNELS else "")
        if name in ORDINARY:
            yield f"  means differ by at most {largest_difference(last['NUTS'], [last['WALNUTS']]):.1f} errors"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=FUNNELS | ORDINARY, default=[*FUNNELS, *ORDINARY])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    lines = [
        "Smallest bulk ESS per 1000 gradients (with warm-up); 4 chains of 4000 draws (others: 1000); a line per seed",
        f"{datetime.date.today()}, {platform.machine()}, jax {version('jax')}, numpyro {version('numpyro')}",
    ]
    for name in arguments.models:
        for line in lines_of(name, arguments.seeds):
            print(line, flush=True)
            lines.append(line)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
