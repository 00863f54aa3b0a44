"""Claim: the most likely background (W, PG-statistic) displaces posteriors of faint sources, by measured amounts.

The amplitude of a source of known shape, equal in all channels, has a log-normal prior of 0.3. It is inferred on a
grid, without a sampler. Each row has two experiments of many replicates. In the first, true backgrounds are known and
the same in all channels, and the data of the source and of the background region are both drawn: this happens to
measured data, with no prior of the background. The second is `hbm_jax.calibrate`: the data of the background region
are those of one design, and only the counts of the source region are drawn (`hbm_jax.distributions.Counts`). Bias and
width are those of `hbm_jax.inference.Calibration`: the displacement of the posterior in its standard deviations, and
the ratio of its width to the right one. Their Monte Carlo errors are given above the table. The last column is the
estimate by which `hbm_jax.calibrate` decides whether to warn (`Statistic.displacement_by_profile`).

    python benchmarks/background_statistics.py [--replicates 1000] [--only marginal] [--output FILE]
"""

import argparse
import datetime
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

CHANNELS, PRIOR_STD, DESIGN_SEED = 30, 0.3, 8
AMPLITUDES = np.exp(np.linspace(-4.0 * PRIOR_STD, 4.0 * PRIOR_STD, 161))
# Counts of source and background per channel, ratio of the background region to the source region, or 1 / 900 of it.
CASES = (
    (0.3, 0.5, 5.0),
    (1.0, 1.0, 1.0),
    (1.0, 1.0, 5.0),
    (1.0, 1.0, 30.0),
    (3.0, 3.0, 1.0),
    (3.0, 3.0, 5.0),
    (10.0, 10.0, 1.0),
    (10.0, 10.0, 5.0),
    (3.0, 30.0, 1.0),
    (3.0, 30.0, 5.0),
    (3.0, 30.0, 50.0),
    (10.0, 300.0, 5.0),
)
STATISTICS = {"wstat": False, "marginal": False, "pgstat": True, "marginal of Gaussian errors": True}


def prepared(name, counts, background, ratio, error):
    """Prepare a statistic of counts (..., G)."""
    from hbm_jax.spectra import prepare

    if STATISTICS[name]:
        return prepare(name.split()[0], counts, background, background_error=np.full(np.shape(counts), error))
    return prepare(name, counts, background, ratio)


def ranks(log_likelihood, truth, rng):
    """Rank each true amplitude among 99 draws of its posterior, from log likelihoods (replicate, amplitude)."""
    x = np.log(AMPLITUDES)
    log_posterior = log_likelihood - 0.5 * (x / PRIOR_STD) ** 2
    weights = np.exp(log_posterior - log_posterior.max(axis=1, keepdims=True))
    below = np.cumsum(weights, axis=1) - 0.5 * weights
    below /= weights.sum(axis=1, keepdims=True)
    probability = [np.interp(np.log(a), x, row) for a, row in zip(truth, below, strict=True)]
    return rng.binomial(99, np.clip(probability, 0.0, 1.0))


def experiment(name, source, background, ratio, num):
    """Return ranks of both experiments."""
    import jax
    import jax.numpy as jnp

    rng, size = np.random.default_rng(1), (num, CHANNELS)
    truth = np.exp(PRIOR_STD * rng.standard_normal(num))
    error = np.sqrt(background / ratio)

    def measured(rng, size):
        if STATISTICS[name]:
            return background + error * rng.standard_normal(size)
        return rng.poisson(background * ratio, size).astype(float)

    counts = rng.poisson(truth[:, None] * source + background, size).astype(float)
    statistic = prepared(name, counts, measured(rng, size), ratio, error)

    @jax.jit
    def log_likelihoods(statistic):
        def at(amplitude):
            return statistic.log_likelihood(jnp.full(size, amplitude * source)).sum(axis=-1)

        return jax.lax.map(at, AMPLITUDES).T

    fixed = ranks(np.asarray(log_likelihoods(statistic)), truth, rng)
    design_rng = np.random.default_rng(DESIGN_SEED)
    once = design_rng.poisson(source + background, CHANNELS).astype(float), measured(design_rng, CHANNELS)
    design = prepared(name, *(np.broadcast_to(x, size) for x in once), ratio, error)

    @jax.jit
    def simulated(design, key):
        return design.with_counts(design.draw_counts(key, truth[:, None] * np.full(size, source)))

    replicates = simulated(design, jax.random.key(2))
    one = prepared(
        name, *(x[:1] for x in map(np.asarray, (design.counts, np.broadcast_to(once[1], size)))), ratio, error
    )
    return fixed, ranks(np.asarray(log_likelihoods(replicates)), truth, rng), one.displacement_by_profile()


def main():
    """Run all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", choices=STATISTICS, help="one statistic")
    arguments = parser.parse_args()
    import jax
    import pandas as pd

    from hbm_jax.inference.criticism.rank_tests import judge_ranks

    num = arguments.replicates
    lines = [
        f"float64; {datetime.date.today()}, {platform.machine()}, Python {platform.python_version()}, "
        f"hbm_jax {version('hbm_jax')}, jax {version('jax')}",
        f"{num} replicates of {CHANNELS} channels; Monte Carlo errors: bias {num**-0.5:.3f}, "
        f"width {(2 * num) ** -0.5:.3f}",
        "",
        f"{'':27s}  counts per channel           |  both regions drawn  |      calibrate",
        f"{'statistic':27s}  source  background  its sd |   bias  width      p |   bias  width      p | estimate",
    ]
    print("\n".join(lines), flush=True)
    start = time.process_time()
    with jax.enable_x64(True):
        for name in [arguments.only] if arguments.only else STATISTICS:
            for source, background, ratio in CASES:
                *both, estimate = experiment(name, source, background, ratio, num)
                table = judge_ranks(pd.DataFrame(dict(enumerate(both))))
                cells = " | ".join(f"{row.bias:+6.2f} {row.width:6.2f} {row.p:6.2g}" for row in table.itertuples())
                error = np.sqrt(background / ratio)
                line = f"{name:27s}  {source:6.1f}  {background:10.1f}  {error:6.2f} | {cells} | {estimate:.2f}"
                lines.append(line)
                print(line, flush=True)
    lines.append(f"{time.process_time() - start:.0f} s of CPU on a busy machine")
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
