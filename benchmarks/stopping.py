"""Stopping rule of `hbm_jax.sample`, on chains whose effective sample size is known.

    python benchmarks/stopping.py [--runs 500] [--cases "AR(1) 0.85" ...] [--first 400] [--output FILE]

A run has four chains from the stationary distribution, and is checked and continued as `StopRule` says, with its margin
and without, first after ``--first`` draws: 1000, or as few as 400 where a draw is expensive and the posterior close to
normal. Printed for each: the number of draws per chain, the fractions of runs whose true effective sample size (the
smaller of bulk and tail) is below 400, 320 and 200 when they stop, the smallest, and the root mean square of the errors
of the mean in units of those of 400 independent draws. Where chains need 4000 / 320 draws for an effective one, a run
is just too short at the first check, which is where most stop too soon.

AR(1) x: autoregressive of first order with coefficient x. two modes p: standard normal about two points 6 apart,
changed with probability p at each draw, weights 1:1 or 9:1. scale x: independent draws of a normal distribution whose
logarithmic scale is autoregressive with coefficient x, so that tails are heavy and visited seldom, but for long.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from arviz_stats.base import array_stats
from scipy import signal, stats

from hbm_jax.inference.sampler import stopping
from hbm_jax.inference.sampler.stopping import FEWEST_SAMPLES, MIN_ESS, MIN_SAMPLES, StopRule

CHAINS, MOST, BATCH = 4, 8000, 50
TAIL = (0.05, 0.95)
LAGS, SAMPLE = 60, 400_000


def autoregressive(rng, coefficient, num):
    """Return stationary chains (CHAINS, num) of unit variance."""
    noise = rng.normal(size=(CHAINS, num)) * np.sqrt(1.0 - coefficient**2)
    noise[:, 0] = rng.normal(size=CHAINS)
    return signal.lfilter([1.0], [1.0, -coefficient], noise, axis=1)


def ar1(coefficient):
    """Return a function that draws chains, draws per effective one, mean and standard deviation."""
    # A quantile of a Gaussian process decorrelates sooner than its mean.
    return lambda rng, num: autoregressive(rng, coefficient, num), (1 + coefficient) / (1 - coefficient), 0.0, 1.0


def two_modes(change, minor=0.5):
    """Return the same for two modes, the second of weight ``minor``; ``change`` is the probability to leave it."""
    leave = np.array([change * minor / (1 - minor), change])
    remain = 1.0 - leave.sum()  # correlation of the mode at successive draws

    def draw(rng, num):
        modes = np.empty((CHAINS, num))
        for chain in modes:
            first, pairs = int(rng.random() < minor), int(num * leave.sum()) + 50
            lengths = np.stack([rng.geometric(leave[first], pairs), rng.geometric(leave[1 - first], pairs)], axis=1)
            chain[:] = np.repeat(np.tile([first, 1 - first], pairs), lengths.ravel())[:num]
        return 6.0 * modes + rng.normal(size=modes.shape)

    mode = np.arange(SAMPLE) < minor * SAMPLE
    x = 6.0 * mode + np.random.default_rng(0).normal(size=SAMPLE)
    scores = stats.norm.ppf((stats.rankdata(x) - 0.5) / SAMPLE)
    between = [
        minor * (1 - minor) * (f[mode].mean() - f[~mode].mean()) ** 2 / f.var()
        for f in (scores, *(1.0 * (x < q) for q in np.quantile(x, TAIL)))
    ]
    return draw, 1.0 + 2.0 * max(between) * remain / (1.0 - remain), x.mean(), x.std()


def varying_scale(coefficient):
    """Return the same for draws of varying scale; the tail needs the most draws."""
    rng = np.random.default_rng(0)
    logarithm = rng.normal(size=SAMPLE)
    quantile = np.quantile(np.exp(logarithm) * rng.normal(size=SAMPLE), TAIL[0])
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    below = weights / weights.sum() * stats.norm.cdf(quantile / np.exp(nodes))
    polynomial, previous, time = nodes, np.ones_like(nodes), 1.0  # Hermite polynomials of unit norm
    for n in range(1, LAGS):
        time += 2 * (below @ polynomial) ** 2 / (TAIL[0] * TAIL[1]) * coefficient**n / (1 - coefficient**n)
        previous, polynomial = polynomial, (nodes * polynomial - np.sqrt(n) * previous) / np.sqrt(n + 1)
    return (
        lambda rng, num: np.exp(autoregressive(rng, coefficient, num)) * rng.normal(size=(CHAINS, num)),
        time, 0.0, np.exp(1.0),
    )  # fmt: skip


CASES = {
    # The second is just too short after 400 draws, the fourth after 1000.
    **{f"AR(1) {x}": (ar1, x) for x in (0.0, 0.6667, 0.8, 0.8524, 0.86, 0.9, 0.95)},
    **{f"two modes {p}": (two_modes, p) for p in (0.12, 0.048, 0.01)},
    "two modes 0.08, 9:1": (two_modes, 0.08, 0.1),
    **{f"scale {x}": (varying_scale, x) for x in (0.975, 0.99)},
}


def diagnostics(draws):
    """Return R-hat, bulk and tail ESS of draws (chain, draw, n), as (n, 3)."""
    axes = {"chain_axis": 0, "draw_axis": 1}
    columns = (
        array_stats.rhat(draws, **axes), array_stats.ess(draws, **axes),
        array_stats.ess(draws, method="tail", prob=TAIL, **axes),
    )  # fmt: skip
    return np.stack(columns, axis=-1)


def stopped_at(draws, at_first, first):
    """Return the number of draws at which a run stops; ``at_first`` are the diagnostics at the first check."""
    rule, num, found = StopRule(max_num_samples=MOST), first, at_first
    while True:
        shortfall = rule.shortfall(pd.DataFrame(found[None], columns=["r_hat", "ess_bulk", "ess_tail"]), num)
        if shortfall <= 1.0 or num >= MOST:
            return num
        num = min(rule.next_check(num, shortfall), MOST)
        found = diagnostics(draws[:, :num, None])[0]


def measure(name, runs, first):
    """Return a row for each margin."""
    make, *options = CASES[name]
    draw, time, mean, std = make(*options)
    rng, default, rows = np.random.default_rng(1), stopping.MARGIN, []
    nums: dict[float, list] = {default: [], 1.0: []}
    errors: dict[float, list] = {default: [], 1.0: []}
    for begun in range(0, runs, BATCH):
        batch = np.stack([draw(rng, MOST) for _ in range(min(BATCH, runs - begun))], axis=-1)
        at_first = diagnostics(batch[:, :first])
        for margin in nums:
            stopping.MARGIN = margin
            for i in range(batch.shape[-1]):
                num = stopped_at(batch[..., i], at_first[i], first)
                nums[margin].append(num)
                errors[margin].append((batch[:, :num, i].mean() - mean) / std * np.sqrt(MIN_ESS))
    stopping.MARGIN = default
    for margin, counts in nums.items():
        true = CHAINS * np.array(counts) / time
        below = "".join(f"{np.mean(true < limit):9.4f}" for limit in (400, 320, 200))
        error = np.sqrt(np.mean(np.square(errors[margin])))
        rows.append(
            f"{name:22s}{margin:7.2f}{CHAINS * first / time:9.0f}{np.mean(counts):9.0f}{below}{true.min():9.0f}"
            f"{error:9.2f}"
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--first", type=int, default=MIN_SAMPLES, help=f"down to {FEWEST_SAMPLES}")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    columns = "margin", f"at {options.first}", "draws", "< 400", "< 320", "< 200", "least", "error"
    lines = [f"{f'{options.runs} runs':22s}{columns[0]:>7s}" + "".join(f"{column:>9s}" for column in columns[1:])]
    print(lines[0])
    for name in options.cases:
        rows = measure(name, options.runs, options.first)
        lines += rows
        print("\n".join(rows), flush=True)
    if options.output is not None:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
