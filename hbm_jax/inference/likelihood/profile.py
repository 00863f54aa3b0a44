"""The point where a program's likelihood is largest, and errors there: by the curvature or by profile likelihood.

The priors of the program give the starts of the searches and the bounds of the parameters, and nothing else. Searches
run in the unconstrained space of the supports, by L-BFGS. What follows runs in the parameters themselves, by Newton
steps that stop at bounds, so that a maximum at a bound is one like any other.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from scipy.stats import chi2

from hbm_jax.inference.likelihood.function import Likelihood
from hbm_jax.inference.results import program_cautions, rounded
from hbm_jax.inference.sampler.initialisation import minimise
from hbm_jax.inference.sampler.progress import LiveLine
from hbm_jax.inference.sampler.target import StartError

ERRORS = ("profile", "curvature", None)
NEWTON_STEPS = 60
DECREMENT = 1e-10  # of the log likelihood that a Newton step promises, below which there is no need for it
CLOSE = 10.0  # of the log likelihood: searches that ended farther below the best one are not followed up
SAME = 1e-3  # of the log likelihood, within which two searches found the same maximum; more is a better maximum
FLAT = 1e-8  # smallest eigenvalue of the scaled curvature, below which the data do not determine a direction
CROSSING = 1e-5  # of an error bar: how well the ends of a profile interval are found
PROFILE_STEPS = 60
FAR = 1e6  # error bars after which a side is open
RESTARTS = 3  # where a profile finds a better maximum


@dataclass(frozen=True)
class MaximumLikelihood:
    """What `maximum_likelihood` returns.

    Attributes
    ----------
    table : pandas.DataFrame
        One row a parameter or element: ``value``; ``std`` by the curvature, NaN where there is none (a maximum at a
        bound, a direction that the data do not determine); ``lower, upper``, the ends of the interval, NaN where none
        was asked for; ``lower_open, upper_open``, whether the likelihood has not fallen enough up to the bound of the
        prior, which then is the end.
    log_likelihood : float
        At the maximum.
    parameters : dict of str to array
        Values at the maximum by site, in the shapes of the sites.
    covariance, correlation : pandas.DataFrame
        Inverse of the curvature of minus the log likelihood; NaN as ``std``.
    num_data : int or None
        Number of observed values, padding not counted where the program knows of it (``num_data``).
    level : float
        Probability content of the interval of one parameter.
    converged : bool
        Whether the searches ended at a maximum and all of its errors were found.
    note : str
        What was done, and what was not found.
    """

    table: pd.DataFrame
    log_likelihood: float
    parameters: dict[str, np.ndarray] = field(repr=False)
    covariance: pd.DataFrame = field(repr=False)
    correlation: pd.DataFrame = field(repr=False)
    num_data: int | None
    level: float
    converged: bool
    note: str

    def __repr__(self) -> str:
        lines = [f"{'parameter':<20} {'value':>12} {f'{100 * self.level:.4g} % interval':>26} {'std':>10}"]
        for name, row in self.table.iterrows():
            ends = row["lower"], row["upper"]
            if np.isfinite(ends).all() and ends[0] < row["value"] < ends[1]:
                value, lower, upper = rounded(row["value"], *ends)
            else:
                value, lower, upper = (f"{number:.5g}" for number in (row["value"], *ends))
            left, right = "(" * bool(row["lower_open"]), ")" * bool(row["upper_open"])
            interval = f"{left}{lower} to {upper}{right}" if not np.isnan(ends).all() else "-"
            lines.append(f"{name:<20} {value:>12} {interval:>26} {row['std']:>10.4g}")
        data = "" if self.num_data is None else f" of {self.num_data} data"
        state = "converged" if self.converged else "NOT CONVERGED"
        lines.append(f"log likelihood{data} {self.log_likelihood:.4f}; {state}: {self.note}")
        if self.table[["lower_open", "upper_open"]].to_numpy().any():
            lines.append("In brackets: the bound of the prior, up to which the likelihood has not fallen enough.")
        return "\n".join(lines)


def maximum_likelihood(
    program: Callable,
    *args: Any,
    seed: int = 0,
    num_starts: int = 8,
    errors: str | None = "profile",
    level: float = 0.683,
    progress: bool = False,
) -> MaximumLikelihood:
    """Maximise the likelihood of a NumPyro program over its parameters, within the supports of their priors.

    Parameters
    ----------
    program : callable
        A NumPyro program. Its likelihood is that of all observed sites and factors; priors are left out.
    *args
        What it is called with.
    seed : int
        Seed of the starts.
    num_starts : int
        Number of searches, each from a draw of the prior.
    errors : {"profile", "curvature", None}
        ``"profile"``: the values on either side where twice the log likelihood has fallen by the quantile of chi-square
        with one degree of freedom, all other parameters at their best. ``"curvature"``: value plus and minus as many
        standard deviations. None: standard deviations alone.
    level : float
        Of the interval: 0.683 is a fall by 1.00, 0.9 by 2.706.
    progress : bool
        Whether to show the live line.

    Returns
    -------
    MaximumLikelihood
        Also where a search failed: then ``converged`` is False and ``note`` says why.

    Raises
    ------
    ValueError
        For a hierarchical program, in which the prior of a latent depends on another one: the maximum over latents of a
        population is not a useful estimate, so sample it. Also for discrete latents, latents that are not plain
        numbers (simplexes, matrices) or whose names begin with ``_``, and a program without observed sites.
    StartError
        If no draw of the prior has a finite likelihood and gradient.

    Notes
    -----
    Models of hbm_jax that are sampled in coordinates (of cosmologies, of regressions) are run in the parameters that
    their priors are stated for: maxima, intervals and bounds are of Om0 and w0.

    A hierarchical program in a form written by hand, whose priors do not depend on each other, cannot be told from
    others. Its maximum is usually at a bound, or the data do not determine it; ``note`` says so.

    Examples
    --------
    >>> import numpy as np, numpyro, numpyro.distributions as dist
    >>> def program(y):
    ...     mean = numpyro.sample("mean", dist.Uniform(-10.0, 10.0))
    ...     with numpyro.plate("datum", len(y)):
    ...         numpyro.sample("y", dist.Normal(mean, 2.0), obs=y)
    >>> best = maximum_likelihood(program, np.array([1.0, 2.0, 3.0, 4.0]))
    >>> best.table.loc["mean", ["value", "upper"]].round(2).tolist()
    [2.5, 3.5]
    """
    if errors not in ERRORS:
        raise ValueError(f"maximum_likelihood: errors: expected 'profile', 'curvature' or None; found {errors!r}.")
    if not 0 < level < 1:
        raise ValueError(f"maximum_likelihood: level: expected a number between 0 and 1; found {level}.")
    if num_starts < 1:
        raise ValueError(f"maximum_likelihood: num_starts: expected at least 1; found {num_starts}.")
    rise = 0.5 * float(chi2.ppf(level, 1))
    with jax.enable_x64(True), LiveLine(progress) as live:
        likelihood = Likelihood(program, args, seed, num_starts)
        best, notes = _search(likelihood, live)
        restarts = 0
        for _ in range(RESTARTS + 1):
            covariance, weak = _covariance(likelihood, best)
            table, failures, better = _table(likelihood, best, covariance, errors, rise, live)
            if better is None:
                break
            best = _newton(likelihood, better.x)
            restarts += 1
        if restarts:
            notes.append(f"{restarts} times a profile found a better maximum, and all began again there")
        if better is not None:
            covariance, weak = _covariance(likelihood, best)
            table, failures, _ = _table(likelihood, best, covariance, None, rise, live)
            failures.append("profiles went on to find better maxima, so there are no intervals")
        parameters = {name: np.asarray(value) for name, value in likelihood.unravel(best.x).items()}
    at_bound = [label for label, bound in zip(likelihood.labels, likelihood.at_bound(best.x), strict=True) if bound]
    if at_bound:
        notes.append(f"at a bound of its prior: {', '.join(at_bound)}")
    notes += program_cautions(program, args)
    if weak:
        failures.append(f"the data do not determine {', '.join(weak)} (the curvature is singular)")
    if not best.settled:
        failures.append("the best search did not end at a maximum")
    names = pd.Index(likelihood.labels, name="parameter")
    std = np.sqrt(np.diagonal(covariance))
    return MaximumLikelihood(
        table=table,
        log_likelihood=-best.value,
        parameters=parameters,
        covariance=pd.DataFrame(covariance, names, names),
        correlation=pd.DataFrame(covariance / (std[:, None] * std), names, names),
        num_data=likelihood.num_data,
        level=level,
        converged=not failures,
        note="; ".join(failures + notes),
    )


@dataclass(frozen=True)
class _Point:
    """Where a descent ended."""

    x: np.ndarray
    value: float
    settled: bool


def _search(likelihood: Likelihood, live: LiveLine) -> tuple[_Point, list[str]]:
    """L-BFGS from every start, Newton steps from the ends that are near the best."""

    def value_and_grad(u):
        x, slope = likelihood.constrained(np.asarray(u))
        value, gradient = likelihood.value_and_grad(x)
        # A trial far out may have no gradient; the line search turns such a value down.
        with np.errstate(invalid="ignore"):
            return value, jnp.asarray(gradient * slope)

    ends: list[tuple[float, np.ndarray]] = []
    for number, start in enumerate(likelihood.starts, 1):
        u = likelihood.unconstrained(start)
        value, gradient = value_and_grad(u)
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            continue
        u, value, _ = minimise(value_and_grad, u)
        ends.append((value, likelihood.constrained(u)[0]))
        live.show(f"search {number} of {len(likelihood.starts)}: log likelihood {-min(v for v, _ in ends):.3f}")
    if not ends:
        raise StartError(
            f"maximum_likelihood: expected a finite likelihood and gradient at some of {len(likelihood.starts)} draws "
            "of the prior; found none. Check the priors' supports and the data for impossible values."
        )
    lowest = min(value for value, _ in ends)
    points = [_newton(likelihood, x) for value, x in ends if value <= lowest + CLOSE]
    best = min(points, key=lambda point: point.value - SAME * point.settled)
    same = sum(point.value < best.value + SAME for point in points)
    return best, [f"{same} of {len(likelihood.starts)} searches ended at this maximum"]


def _newton(likelihood: Likelihood, x: np.ndarray, held: int | None = None) -> _Point:
    """Go downhill by Newton steps within the bounds, one parameter held where asked for."""
    x = np.clip(x, likelihood.lower, likelihood.upper)
    value, gradient = likelihood.value_and_grad(x)
    if not (np.isfinite(value) and np.isfinite(gradient).all()):
        return _Point(x, np.inf, False)
    for _ in range(NEWTON_STEPS):
        outwards = ((x <= likelihood.lower) & (gradient > 0)) | ((x >= likelihood.upper) & (gradient < 0))
        free = ~outwards
        if held is not None:
            free[held] = False
        if not free.any():
            return _Point(x, value, True)
        hessian = likelihood.hessian(x)[np.ix_(free, free)]
        if not np.isfinite(hessian).all():
            return _Point(x, value, False)
        newton, steepest, lowest = _directions(hessian, gradient[free])
        promised = -0.5 * float(newton @ gradient[free])
        if promised < DECREMENT and lowest > -FLAT:
            return _Point(x, value, True)
        for direction in (newton, steepest):
            trial = _downhill(likelihood, x, value, gradient, free, direction)
            if trial is not None:
                break
        else:
            # Rounding of the log likelihood itself ends a descent too.
            return _Point(x, value, promised < 1e-6)
        x, value, gradient = trial
    return _Point(x, value, False)


def _directions(hessian: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Newton's step, made to go downhill; a scaled steepest one; the lowest eigenvalue in scaled parameters."""
    diagonal = np.abs(np.diagonal(hessian))
    scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    eigenvalues, vectors = np.linalg.eigh(hessian * scale[:, None] * scale)
    positive = np.maximum(np.abs(eigenvalues), FLAT)
    newton = -scale * (vectors @ ((vectors.T @ (scale * gradient)) / positive))
    return newton, -(scale**2) * gradient, float(eigenvalues[0])


def _downhill(likelihood, x, value, gradient, free, direction):
    """Backtrack along a direction that is bent at the bounds, to Armijo's condition; None where nothing is lower."""
    step = 1.0
    while step > 1e-9:
        trial = x.copy()
        trial[free] += step * direction
        trial = np.clip(trial, likelihood.lower, likelihood.upper)
        found, slope = likelihood.value_and_grad(trial)
        if found < value + 1e-4 * min(float(gradient @ (trial - x)), 0.0) and np.isfinite(slope).all():
            return trial, found, slope
        step *= 0.4
    return None


def _covariance(likelihood: Likelihood, best: _Point) -> tuple[np.ndarray, list[str]]:
    """Inverse of the curvature, and the parameters in directions that it does not determine."""
    covariance = np.full((likelihood.size, likelihood.size), np.nan)
    free = np.flatnonzero(~likelihood.at_bound(best.x))
    hessian = likelihood.hessian(best.x)[np.ix_(free, free)]
    if not free.size or not np.isfinite(hessian).all():
        return covariance, []
    diagonal = np.diagonal(hessian)
    flat = [likelihood.labels[i] for i, curvature in zip(free, diagonal, strict=True) if not curvature > 0]
    if flat:
        return covariance, flat
    scale = 1.0 / np.sqrt(diagonal)
    eigenvalues, vectors = np.linalg.eigh(hessian * scale[:, None] * scale)
    if eigenvalues[0] < FLAT:
        return covariance, [
            likelihood.labels[i] for i, part in zip(free, vectors[:, 0], strict=True) if abs(part) > 0.1
        ]
    covariance[np.ix_(free, free)] = (vectors / eigenvalues) @ vectors.T * scale[:, None] * scale
    return covariance, []


def _table(likelihood: Likelihood, best: _Point, covariance: np.ndarray, errors, rise: float, live: LiveLine):
    """Values with their errors, what failed, and a better maximum than the best where a profile found one."""
    std = np.sqrt(np.diagonal(covariance))
    ends, is_open = np.full((likelihood.size, 2), np.nan), np.zeros((likelihood.size, 2), bool)
    bounds = np.stack([likelihood.lower, likelihood.upper], axis=1)
    failures: list[str] = []
    if errors == "curvature":
        ends = best.x[:, None] + std[:, None] * np.sqrt(2.0 * rise) * np.array([-1.0, 1.0])
        is_open = np.stack([ends[:, 0] < bounds[:, 0], ends[:, 1] > bounds[:, 1]], axis=1)
        ends = np.where(is_open, bounds, ends)
    if errors == "profile":
        for place in range(likelihood.size):
            for side, sign in enumerate((-1.0, 1.0)):
                live.show(f"profile of {likelihood.labels[place]}, {('lower', 'upper')[side]} end")
                found = _Profile(likelihood, best, place, sign, covariance, rise).end()
                if isinstance(found, _Point):
                    return None, failures, found
                ends[place, side], is_open[place, side], settled = found
                if not settled:
                    failures.append(f"the {('lower', 'upper')[side]} end of {likelihood.labels[place]} was not found")
    columns = {"value": best.x, "std": std, "lower": ends[:, 0], "upper": ends[:, 1]}
    columns |= {"lower_open": is_open[:, 0], "upper_open": is_open[:, 1]}
    return pd.DataFrame(columns, index=pd.Index(likelihood.labels, name="parameter")), failures, None


class _Profile:
    """One side of the profile likelihood of one parameter."""

    def __init__(self, likelihood: Likelihood, best: _Point, place: int, sign: float, covariance, rise: float):
        self.likelihood, self.best, self.place, self.sign, self.rise = likelihood, best, place, sign, rise
        self.limit = float((likelihood.lower if sign < 0 else likelihood.upper)[place])
        self.slope = np.zeros(likelihood.size)
        variance = covariance[place, place]
        if variance > 0:
            self.width = float(np.sqrt(variance))
            self.slope = np.nan_to_num(covariance[:, place] / variance)
        else:
            self.width = self._guess()

    def _guess(self) -> float:
        """Width without a covariance: by slope or curvature along the parameter alone, or of the prior."""
        gradient, curvature = (
            self.likelihood.value_and_grad(self.best.x)[1][self.place],
            self.likelihood.hessian(self.best.x)[self.place, self.place],
        )
        widths = [self.rise / abs(gradient)] if abs(gradient) > 1e-6 else []
        widths += [1.0 / np.sqrt(curvature)] if curvature > 0 else []
        prior = self.likelihood.upper[self.place] - self.likelihood.lower[self.place]
        return float(min([*widths, 0.1 * prior if np.isfinite(prior) else max(abs(self.best.x[self.place]), 1.0)]))

    def end(self) -> "_Point | tuple[float, bool, bool]":
        """End of the interval, whether it is open there, and whether all went well; or a better maximum."""
        center, wanted = float(self.best.x[self.place]), np.sqrt(2.0 * self.rise)
        inner, outer = (center, 0.0, self.best.x), None
        if center == self.limit:
            return self.limit, True, True
        at = center + self.sign * self.width * wanted
        for _ in range(PROFILE_STEPS):
            at = self.sign * min(self.sign * at, self.sign * self.limit)
            point = self._best_at(at, inner)
            if point.value < self.best.value - SAME:
                return point
            # The root is nearly linear in the parameter.
            root = np.sqrt(2.0 * max(point.value - self.best.value, 0.0))
            if abs(root - wanted) < CROSSING * wanted:
                return at, False, point.settled
            if root < wanted:
                if at == self.limit:
                    return at, True, point.settled
                inner = (at, root, point.x if point.settled else inner[2])
                if outer is None:
                    if abs(at - center) > FAR * self.width:
                        return self.limit, True, True
                    at = center + (at - center) * np.clip(1.05 * wanted / max(root, 1e-300), 1.1, 3.0)
                    continue
            else:
                outer = (at, root)
            gap = outer[0] - inner[0]
            if abs(gap) < 1e-9 * abs(outer[0] - center):
                return outer[0], outer[0] == self.limit, False
            share = (wanted - inner[1]) / (outer[1] - inner[1]) if np.isfinite(outer[1]) else 0.5
            at = inner[0] + gap * np.clip(share, 0.02, 0.98)
        return at, False, False

    def _best_at(self, at: float, inner) -> _Point:
        """Highest likelihood with the parameter held, begun along the ridge."""
        start = inner[2] + self.slope * (at - inner[2][self.place])
        start[self.place] = at
        point = _newton(self.likelihood, start, self.place)
        if not point.settled:
            start = inner[2].copy()
            start[self.place] = at
            again = _newton(self.likelihood, start, self.place)
            point = again if again.value < point.value or again.settled else point
        return point
