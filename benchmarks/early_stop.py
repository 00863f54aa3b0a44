"""How often a run ends as converged although it is not, by the rule that looks early and by that of 1000 draws.

Chains are simulated from processes whose integrated autocorrelation time is known, so that the effective sample size of
the mean at the end of a run is known too. An end is false if it is below 400. ``python benchmarks/early_stop.py``
"""

import argparse
from collections.abc import Callable

import numpy as np
import xarray as xr
from scipy.signal import lfilter

from hbm_jax.inference.sampler.stopping import EARLY_LOOKS, EARLY_MARGIN, MIN_SAMPLES, StopRule
from hbm_jax.inference.verdict import MIN_ESS, diagnose

CHAINS, MAX_DRAWS = 4, 5000


def autoregressive(phi: float, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw stationary normal chains (chain, draw, ...) with autocorrelation ``phi**lag``."""
    noise = rng.normal(size=shape)
    noise[:, 1:] *= np.sqrt(1.0 - phi**2)
    return lfilter([1.0], [1.0, -phi], noise, axis=1)


def switching(rate: float, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw stationary chains of two normal modes, three widths from their mean, that switch at a rate per draw."""
    start = rng.integers(0, 2, (shape[0], 1, *shape[2:]))
    mode = (start + (rng.random(shape) < rate).cumsum(axis=1)) % 2
    return 6.0 * mode - 3.0 + rng.normal(size=shape)


def of_autoregression(phi: float, num: int, transform: Callable = lambda x: x):
    """Return draws of ``num`` parameters, and the integrated autocorrelation time of the slowest."""
    return lambda draws, rng: transform(autoregressive(phi, (CHAINS, draws, num), rng)), (1.0 + phi) / (1.0 - phi)


def of_modes(rate: float):
    """Return draws that switch between modes, and their integrated autocorrelation time."""
    return lambda draws, rng: switching(rate, (CHAINS, draws, 1), rng), 1.0 + 2.0 * 0.9 * (1.0 - 2.0 * rate) / (
        2.0 * rate
    )


CASES = {
    "independent, 1 parameter": of_autoregression(0.0, 1),
    "autocorrelation 0.5, 1": of_autoregression(0.5, 1),
    "autocorrelation 0.8, 1": of_autoregression(0.8, 1),
    "autocorrelation 0.9, 1": of_autoregression(0.9, 1),
    "autocorrelation 0.8, 10": of_autoregression(0.8, 10),
    "skew (exp), 0.8, 1": of_autoregression(0.8, 1, np.exp),
    "modes, 0.03 switches a draw": of_modes(0.03),
    "modes, 0.01": of_modes(0.01),
    "modes, 0.001": of_modes(0.001),
    "modes, 0.0003": of_modes(0.0003),
}


def end_of(values: np.ndarray, early: bool) -> int:
    """Return the number of draws per chain at which a run ends."""
    rule = StopRule()

    def shortfall(num: int) -> float:
        return rule.shortfall(diagnose({"x": xr.DataArray(values[:, :num], dims=("chain", "draw", "parameter"))}))

    for num in EARLY_LOOKS if early else ():
        if EARLY_MARGIN * shortfall(num) <= 1.0:
            return num
    num = MIN_SAMPLES
    while num < values.shape[1]:
        missing = shortfall(num)
        if missing <= 1.0:
            break
        num = min(rule.next_check(num, missing), values.shape[1])
    return num


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    runs = parser.parse_args().runs
    print(f"{runs} runs of {CHAINS} chains; false: the known effective sample size at the end is below {MIN_ESS:.0f}")
    print(f"{'':28s}{'early looks':>28s}{'from 1000 draws on':>28s}")
    print(f"{'':28s}" + 2 * f"{'false':>9s}{'mean draws':>11s}{'ESS':>8s}")
    for name, (draw, time) in CASES.items():
        text = f"{name:28s}"
        chains = [draw(MAX_DRAWS, np.random.default_rng(k)) for k in range(runs)]
        for early in (True, False):
            ends = np.array([end_of(values, early) for values in chains])
            sizes = CHAINS * ends / time
            text += f"{100 * (sizes < MIN_ESS).mean():7.1f} %{ends.mean():11.0f}{sizes.mean():8.0f}"
        print(text, flush=True)


if __name__ == "__main__":
    main()
