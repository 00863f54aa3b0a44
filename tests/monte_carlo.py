"""Comparison of draws with expected values, in Monte Carlo errors: the only bounds on random results in the tests.

A test uses the fixture `monte_carlo`. Each comparison requires enough effective draws, and then a difference of at most
`SIGMAS` standard errors, so that other seeds or rounding hardly ever make it fail: one comparison in a million fails by
chance. If HBM_JAX_DISTANCES names a file, the standardised differences are written to it. `make test-seeds` repeats the
tests with other seeds (HBM_JAX_TEST_SEED) and compares the standard deviation of these differences with 1.
"""

import json
import math
import os
from pathlib import Path

import numpy as np
from arviz_stats.base import array_stats
from scipy import stats

SIGMAS = 5.0
MIN_ESS = 400.0
AXES = {"chain_axis": 0, "draw_axis": 1}
_SHIFT = 1_000_003 * int(os.environ.get("HBM_JAX_TEST_SEED", "0"))


def seed(number: int) -> int:
    """Return the seed `number`, shifted if HBM_JAX_TEST_SEED is set."""
    return number + _SHIFT


class MonteCarlo:
    """Comparisons of one test. Draws are (chain, draw), or with `independent=True` (draw,)."""

    def __init__(self, test: str):
        self.test = test
        self.file = os.environ.get("HBM_JAX_DISTANCES")

    def within(self, estimate, expected, error, *, name: str = "") -> None:
        """Require that two numbers differ by less than `SIGMAS` times `error`, the standard error of the difference."""
        assert error > 0, f"{name}: expected a positive standard error; found {error}"
        self._judge((float(estimate) - float(expected)) / float(error), name, estimate, expected)

    def mean(self, draws, expected, *, expected_error=0.0, name="", independent=False, min_ess=MIN_ESS) -> None:
        """Require that the mean of draws is `expected`, whose standard error is `expected_error`."""
        x = _as_chains(draws, independent)
        error = x.std() / math.sqrt(_ess(x, "mean", independent, min_ess, name))
        self.within(x.mean(), expected, math.hypot(error, expected_error), name=name)

    def std(self, draws, expected, *, expected_error=0.0, name="", independent=False, min_ess=MIN_ESS) -> None:
        """Require that the standard deviation of draws is `expected`."""
        x = _as_chains(draws, independent)
        squares = (x - x.mean()) ** 2
        error = squares.std() / math.sqrt(_ess(squares, "mean", independent, min_ess, name)) / (2.0 * x.std())
        self.within(x.std(), expected, math.hypot(error, expected_error), name=name)

    def share(self, events, expected, *, expected_error=0.0, name="", independent=False, min_ess=MIN_ESS) -> None:
        """Require that the fraction of True among booleans, such as draws below a quantile, is `expected`."""
        x = _as_chains(events, independent).astype(float)
        error = math.sqrt(expected * (1.0 - expected) / _ess(x, "mean", independent, min_ess, name))
        self.within(x.mean(), expected, math.hypot(error, expected_error), name=name)

    def same_mean(self, draws, others, *, name="", min_ess=MIN_ESS) -> None:
        """Require that two sets of chains have the same mean."""
        y = _as_chains(others, False)
        error = y.std() / math.sqrt(_ess(y, "mean", False, min_ess, name))
        self.mean(draws, y.mean(), expected_error=error, name=name, min_ess=min_ess)

    def same_std(self, draws, others, *, name="", min_ess=MIN_ESS) -> None:
        """Require that two sets of chains have the same standard deviation."""
        y = _as_chains(others, False)
        squares = (y - y.mean()) ** 2
        error = squares.std() / math.sqrt(_ess(squares, "mean", False, min_ess, name)) / (2.0 * y.std())
        self.std(draws, y.std(), expected_error=error, name=name, min_ess=min_ess)

    def distribution(self, draws, cdf, *, name="", args=()) -> None:
        """Require that independent draws have a distribution, by the test of Kolmogorov and Smirnov."""
        draws = np.ravel(np.asarray(draws, dtype=float))
        assert draws.size >= 100, f"{name}: expected 100 draws or more; found {draws.size}"
        self.p_value(stats.kstest(draws, cdf, args=args).pvalue, name=name)

    def p_value(self, p: float, *, name="") -> None:
        """Require that a p-value, uniform under the hypothesis, is not too small."""
        self._judge(max(float(stats.norm.isf(p)), -SIGMAS), name, f"p = {p:.3g}", "a uniform p")

    def _judge(self, distance: float, name: str, estimate, expected) -> None:
        if self.file:
            with Path(self.file).open("a", encoding="utf-8") as file:
                file.write(json.dumps([self.test, name, distance]) + "\n")
        text = f"{name}: found {estimate}, expected {expected}, {distance:.1f} Monte Carlo errors apart"
        assert -SIGMAS <= distance < SIGMAS, text


def _as_chains(draws, independent: bool) -> np.ndarray:
    x = np.asarray(draws)
    x = x[None] if independent else x
    assert x.ndim == 2, f"expected draws of shape {'(draw,)' if independent else '(chain, draw)'}; found {x.shape}"
    return x


def _ess(x: np.ndarray, method: str, independent: bool, least: float, name: str) -> float:
    size = float(x.size) if independent else float(array_stats.ess(x, method=method, **AXES))
    assert size >= least, f"{name}: expected {least:.0f} effective draws to compare with; found {size:.0f}"
    return size
