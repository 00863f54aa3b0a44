"""Maximum likelihood of a program, with errors from the curvature or from the profile likelihood.

The priors serve only to draw starting points and to bound the parameters. SciPy's L-BFGS-B searches in unconstrained
parameters, because a likelihood may be infinite at a bound; Newton steps and profiles run in the parameters themselves
and stop at bounds, so that a maximum at a bound needs no special treatment. MINOS (iminuit) is not used for the
profiles: it transforms bounds away, expects a parabolic minimum within them, and does not use exact Hessians.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from scipy.special import ndtri

from hbm_jax.blas import one_blas_thread
from hbm_jax.inference.arguments import arguments_with_nan, naming_arguments, plain_arguments
from hbm_jax.inference.likelihood.function import Likelihood
from hbm_jax.inference.likelihood.search import SAME, Point, Search, covariance_at, newton
from hbm_jax.inference.program import cautions_of
from hbm_jax.inference.sampler.progress import Progress, ProgressLine
from hbm_jax.notation import rounded

ERRORS = ("profile", "curvature", None)
CROSSING = 1e-5  # accuracy of the ends of a profile interval, relative to the error bar
PROFILE_STEPS = 60
FAR = 1e6  # error bars from the maximum beyond which a side of the interval is open
RESTARTS = 3  # times the fit restarts when a profile finds a better maximum


@dataclass(frozen=True)
class MaximumLikelihood:
    """Maximum of a likelihood, with errors.

    Attributes
    ----------
    table : pandas.DataFrame
        One row per parameter or element: ``value``; ``std`` from the curvature, NaN if undefined (a maximum at a bound,
        or a direction that the data do not determine); ``lower, upper``, the ends of the interval, NaN if no interval
        was requested; ``lower_open, upper_open``, whether the interval is open: the likelihood has not fallen enough at
        the bound of the prior, and the bound is then the end.
    log_likelihood : float
        Log likelihood at the maximum.
    parameters : dict of str to array
        Values at the maximum by site, in the shapes of the sites.
    covariance, correlation : pandas.DataFrame
        Inverse Hessian of minus the log likelihood; NaN where ``std`` is.
    num_data : int or None
        Number of observed values; from ``program.num_data`` if it exists, which does not count padding.
    level : float
        Confidence level of the interval of one parameter.
    converged : bool
        Whether the best search ended at a maximum and all errors were found.
    note : str
        Number of searches that agree, failures, and cautions.
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
            opening, closing = "(" if row["lower_open"] else "", ")" if row["upper_open"] else ""
            interval = "-" if np.isnan(ends).all() else f"{opening}{lower} to {upper}{closing}"
            lines.append(f"{name:<20} {value:>12} {interval:>26} {row['std']:>10.4g}")
        data = "" if self.num_data is None else f" of {self.num_data} data"
        state = "converged" if self.converged else "NOT CONVERGED"
        lines.append(f"log likelihood{data} {self.log_likelihood:.4f}; {state}: {self.note}")
        if self.table[["lower_open", "upper_open"]].to_numpy().any():
            lines.append(
                "In brackets: open ends, at the bound of the prior; the likelihood has not fallen enough there."
            )
        return "\n".join(lines)


def maximum_likelihood(
    program: Callable,
    *args: Any,
    seed: int = 0,
    num_starts: int = 8,
    errors: str | None = "profile",
    level: float = 0.683,
    progress: Progress = False,
    **keywords: Any,
) -> MaximumLikelihood:
    """Maximise the likelihood of a NumPyro program over its parameters, within the supports of their priors.

    Parameters
    ----------
    program : callable
        A NumPyro program. The likelihood is that of all observed sites and factors, without priors but those of latent
        sites with ``infer={"auxiliary": True}``, which are results of other measurements, such as calibrations.
    *args, **keywords
        Arguments of the program, by position or by name.
    seed : int
        Random seed of the starting points.
    num_starts : int
        Number of searches, each started at a draw of the prior.
    errors : {"profile", "curvature", None}
        ``"profile"``: values on either side at which twice the log likelihood, maximised over all other parameters, has
        fallen by the quantile of chi-square with one degree of freedom. ``"curvature"``: value plus and minus the
        square root of that quantile times the standard deviation. None: standard deviations only.
    level : float
        Confidence level of the interval: 0.683 is a fall by 1.00, 0.9 by 2.706.
    progress : bool or callable
        Whether to show the progress line, or a function that is called with its texts.

    Returns
    -------
    MaximumLikelihood
        Returned even if the fit fails: then ``converged`` is False and ``note`` has the reason.

    Raises
    ------
    ValueError
        For a hierarchical program, in which the prior of a latent depends on another latent: the joint maximum over the
        latents of a population is not a useful estimate, so sample it. Also for discrete latents, for latents with
        multivariate supports (simplexes, matrices) or names that begin with ``_``, for a program without latent or
        observed sites, and for options out of range.
    StartError
        If no draw of the prior has a finite likelihood and gradient.

    Notes
    -----
    Models of hbm_jax that are sampled in a reparametrisation (cosmologies, regressions) are maximised in the parameters
    of their priors: maxima, intervals and bounds are, for example, those of Om0 and w0.

    A hierarchical program that is non-centred by hand, so that its priors do not depend on each other, is not
    recognised. Its maximum is usually at a bound, or the data do not determine it; ``note`` mentions this.

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
    rise = 0.5 * float(ndtri(0.5 + 0.5 * level)) ** 2
    args = plain_arguments(program, args, keywords)
    with jax.enable_x64(True), one_blas_thread(), ProgressLine(progress) as progress_line:
        with naming_arguments(program, args):
            likelihood = Likelihood(program, args, seed, num_starts)
            search = Search(program, likelihood, progress_line)
            best, notes = search.best(arguments_with_nan(program, args))
        best, covariance, undetermined, table, failures = _with_errors(
            likelihood, best, errors, rise, progress_line, notes
        )
        parameters = {name: np.asarray(value) for name, value in likelihood.unravel(best.x).items()}
    at_bounds = [label for label, bound in zip(likelihood.labels, likelihood.at_bound(best.x), strict=True) if bound]
    if at_bounds:
        notes.append(f"at a bound of its prior: {', '.join(at_bounds)}")
    notes += cautions_of(program, args, likelihood.args)
    if undetermined:
        failures.append(f"the data do not determine {', '.join(undetermined)} (the curvature is singular)")
    if search.unfinished:
        failures.append(search.unfinished)
    if not best.converged:
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


def _with_errors(
    likelihood: Likelihood, best: Point, errors, rise: float, progress_line: ProgressLine, notes: list[str]
):
    """Return maximum, covariance, undetermined parameters, table, failures; restart at better maxima of profiles."""
    restarts = 0
    for _ in range(RESTARTS + 1):
        covariance, undetermined = covariance_at(likelihood, best)
        table, failures, better = _table(likelihood, best, covariance, errors, rise, progress_line)
        if better is None:
            break
        best = newton(likelihood, better.x)
        restarts += 1
    if restarts:
        notes.append(f"{restarts} times a profile found a better maximum, and the fit restarted there")
    if better is not None:
        covariance, undetermined = covariance_at(likelihood, best)
        table, failures, _ = _table(likelihood, best, covariance, None, rise, progress_line)
        failures.append("profiles kept finding better maxima, so there are no intervals")
    return best, covariance, undetermined, table, failures


def _table(
    likelihood: Likelihood, best: Point, covariance: np.ndarray, errors, rise: float, progress_line: ProgressLine
):
    """Return (table, failures, None), with the values and errors of the parameters in the table.

    If a profile finds a higher likelihood than that of the best fit, return (None, failures, better maximum).
    """
    std = np.sqrt(np.diagonal(covariance))
    ends, is_open = np.full((likelihood.size, 2), np.nan), np.zeros((likelihood.size, 2), bool)
    bounds = np.stack([likelihood.lower, likelihood.upper], axis=1)
    failures: list[str] = []
    if errors == "curvature":
        ends = best.x[:, None] + std[:, None] * np.sqrt(2.0 * rise) * np.array([-1.0, 1.0])
        is_open = np.stack([ends[:, 0] < bounds[:, 0], ends[:, 1] > bounds[:, 1]], axis=1)
        ends = np.where(is_open, bounds, ends)
    if errors == "profile":
        for index in range(likelihood.size):
            for side, sign in enumerate((-1.0, 1.0)):
                progress_line.show(f"profile of {likelihood.labels[index]}, {('lower', 'upper')[side]} end")
                end = _Profile(likelihood, best, index, sign, covariance, rise).end()
                if isinstance(end, Point):
                    return None, failures, end
                ends[index, side], is_open[index, side], converged = end
                if not converged:
                    failures.append(f"the {('lower', 'upper')[side]} end of {likelihood.labels[index]} was not found")
    columns = {"value": best.x, "std": std, "lower": ends[:, 0], "upper": ends[:, 1]}
    columns |= {"lower_open": is_open[:, 0], "upper_open": is_open[:, 1]}
    return pd.DataFrame(columns, index=pd.Index(likelihood.labels, name="parameter")), failures, None


class _Trial(NamedTuple):
    """Maximum of the likelihood with one parameter fixed."""

    value: float  # of this parameter
    root: float  # square root of the rise in -2 log likelihood
    parameters: np.ndarray


class _Profile:
    """Search for one end of the profile-likelihood interval of one parameter."""

    def __init__(self, likelihood: Likelihood, best: Point, index: int, sign: float, covariance, rise: float):
        self.likelihood, self.best, self.index, self.sign, self.rise = likelihood, best, index, sign, rise
        self.limit = float((likelihood.lower if sign < 0 else likelihood.upper)[index])
        self.slope = np.zeros(likelihood.size)  # change of all parameters per unit of this one near the best fit
        variance = covariance[index, index]
        if variance > 0:
            self.width = float(np.sqrt(variance))
            self.slope = np.nan_to_num(covariance[:, index] / variance)
        else:
            self.width = self._guess_width()

    def _guess_width(self) -> float:
        """Guess the error bar without a covariance, from the gradient, the curvature or the width of the prior."""
        gradient = self.likelihood.value_and_grad(self.best.x)[1][self.index]
        curvature = self.likelihood.hessian(self.best.x)[self.index, self.index]
        prior_width = self.likelihood.upper[self.index] - self.likelihood.lower[self.index]
        widths = [0.1 * prior_width if np.isfinite(prior_width) else max(abs(self.best.x[self.index]), 1.0)]
        if abs(gradient) > 1e-6:
            widths.append(self.rise / abs(gradient))
        if curvature > 0:
            widths.append(1.0 / np.sqrt(curvature))
        return float(min(widths))

    def end(self) -> Point | tuple[float, bool, bool]:
        """Return the end of the interval, whether it is open and whether the search converged; or a better maximum."""
        center, target = float(self.best.x[self.index]), np.sqrt(2.0 * self.rise)
        inner, outer = _Trial(center, 0.0, self.best.x), None
        if center == self.limit:
            return self.limit, True, True
        x = center + self.sign * self.width * target
        for _ in range(PROFILE_STEPS):
            x = self.sign * min(self.sign * x, self.sign * self.limit)
            point = self._maximise_at(x, inner)
            if point.value < self.best.value - SAME:
                return point
            # Interpolate the square root of the rise in -2 log likelihood: it is nearly linear in the parameter.
            root = np.sqrt(2.0 * max(point.value - self.best.value, 0.0))
            if abs(root - target) < CROSSING * target:
                return x, False, point.converged
            if root < target:
                if x == self.limit:
                    return x, True, point.converged
                inner = _Trial(x, root, point.x if point.converged else inner.parameters)
                if outer is None:
                    if abs(x - center) > FAR * self.width:
                        return self.limit, True, True
                    x = center + (x - center) * np.clip(1.05 * target / max(root, 1e-300), 1.1, 3.0)
                    continue
            else:
                outer = _Trial(x, root, point.x)
            gap = outer.value - inner.value
            if abs(gap) < 1e-9 * abs(outer.value - center):
                return outer.value, outer.value == self.limit, False
            fraction = (target - inner.root) / (outer.root - inner.root) if np.isfinite(outer.root) else 0.5
            x = inner.value + gap * np.clip(fraction, 0.02, 0.98)
        return x, False, False

    def _maximise_at(self, value: float, inner: _Trial) -> Point:
        """Maximise with the parameter fixed, starting along the degeneracy direction, then from the inner trial."""
        start = inner.parameters + self.slope * (value - inner.parameters[self.index])
        start[self.index] = value
        point = newton(self.likelihood, start, self.index)
        if not point.converged:
            start = inner.parameters.copy()
            start[self.index] = value
            restarted = newton(self.likelihood, start, self.index)
            point = restarted if restarted.value < point.value or restarted.converged else point
        return point
