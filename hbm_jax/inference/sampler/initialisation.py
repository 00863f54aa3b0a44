"""Starting points and initial metric of the chains, from several short searches.

Searches work in units of the prior, so that multiplying parameters and data by powers of two does not change the
start; the sampler works in units of the widths of the start.

Up to `MAX_DENSE` parameters, the searches look for modes, whose curvature gives a Laplace approximation. An
approximation is judged by the density at draws from it, because a mode may hold none of the posterior mass: a hierarchy
has modes where its scatter is zero. Where that fails, a mean-field approximation and those along the paths of the
searches compete, by their evidence lower bounds. Beyond `MAX_DENSE`, the mean-field approximation is used. The last
resort is always a dispersed start near the prior.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from hbm_jax.inference.sampler.approximations import (
    VARIATIONAL_DRAWS,
    VARIATIONAL_SEARCHES,
    Approximation,
    ImportanceSample,
    along_path,
    curvature_along,
    importance_sample,
    is_finite,
    mean_field_fits,
    minimise,
    mode_at,
    search_from,
)
from hbm_jax.inference.sampler.diagnosis import Diagnosis
from hbm_jax.inference.sampler.metric import MAX_DENSE, Metric, curvature_metric, power_of_two, scaled_metric
from hbm_jax.inference.sampler.target import StartError, Target

SEARCHES = 6  # started at the median and at draws of the prior; if they find several modes, all draws are used
MAX_GRADIENT_NORM = 0.1  # in units of the widths, of a converged search of many parameters or mean-field fit
CANDIDATES = 20  # starting points drawn per chain
SAME_POINT = 0.1  # distance in standard deviations below which a search has ended at a known mode
SAME_MODE = 5.0  # distance in standard deviations below which two modes are the same
NEGLIGIBLE = 10.0  # difference in log evidence beyond which a mode is discarded: a weight below 5e-5
MAX_LOSS = (3.0, 0.25)  # largest loss of log evidence of an accepted approximation, and its growth per parameter
MAX_DISTANCE = 1e3  # spreads of the prior from its median beyond which a search follows an unbounded density
PRIOR_SPREADS = (1.0, 2.0, 0.5, 4.0, 0.1, 8.0)  # factors of prior draws about their median, in search of finite points
PRIOR_TRIES = 300  # prior draws of each spread
MAX_MEASURED = 1000  # parameters up to which widths are measured near the prior, by two gradients each
# Largest departure of a posterior that is nearly normal. In eleven systems below it, HMC has 1.6 to 4.3 times the
# effective draws per gradient of NUTS (benchmarks/results/default_sampler.txt).
MAX_DEPARTURE = 0.5
BETTER = 1.0  # increase of the log density at another starting point of which the verdict warns
NUM_NAMED = 3  # parameters named there
SHRINKAGE = 40  # halvings of a step from a finite point


@dataclass(frozen=True)
class Start:
    """Starting points and metric.

    Attributes
    ----------
    points : (num_chains, size)
        One starting point per chain.
    metric : Metric
        Initial metric of the warm-up.
    informed : bool
        Whether points and metric come from an approximation of the posterior, so that a short warm-up suffices.
    note : str
        How points and metric were chosen, for the provenance of a fit.
    caution : str
        Note for the verdict; empty if there is none.
    step_size : float
        Step size in the variables of the sampler at which its adaptation begins.
    modes : str
        Outcome of the searches for modes, for the verdict.
    departure : float
        Departure of the posterior from the normal distribution at which the chains start, see
        `ImportanceSample.departure`; infinite if they start elsewhere, or at several modes.
    """

    points: np.ndarray
    metric: Metric
    informed: bool
    note: str
    caution: str = ""
    step_size: float = 1.0
    modes: str = ""
    departure: float = np.inf

    @property
    def nearly_normal(self) -> bool:
        """True if the departure from normal is at most `MAX_DEPARTURE`."""
        return self.departure <= MAX_DEPARTURE

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return all fields, with those of the metric, as arrays."""
        arrays = {"points": self.points, "informed": np.asarray(self.informed)}
        arrays |= {"note": np.asarray(self.note), "caution": np.asarray(self.caution)}
        arrays |= {"step_size": np.asarray(self.step_size), "modes": np.asarray(self.modes)}
        arrays["departure"] = np.asarray(self.departure)
        return arrays | self.metric.to_arrays()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Start":
        """Return the start that `to_arrays` stored."""
        metric, informed = Metric.from_arrays(arrays), bool(arrays["informed"])
        texts = str(arrays["note"]), str(arrays["caution"])
        # Older versions did not store these.
        added = float(arrays.get("step_size", 1.0)), str(arrays.get("modes", ""))
        departure = float(arrays.get("departure", np.inf))
        return cls(arrays["points"], metric, informed, *texts, *added, departure)


def choose_start(
    target: Target,
    num_chains: int,
    key: jax.Array,
    value_and_grad: Callable | None = None,
    num_searches: int = SEARCHES,
) -> Start:
    """Choose starting points and metric: from searches, or from the prior if all searches fail.

    Parameters
    ----------
    target : Target
        The posterior.
    num_chains : int
        Number of chains.
    key : jax.Array
        Random key.
    value_and_grad : callable, optional
        Replaces ``target.value_and_grad``, for processes that must evaluate the density together.
    num_searches : int
        Number of searches for modes while they find a single one; 16 at most.

    Raises
    ------
    StartError
        If no point with a finite density is found.
    """
    evaluate = in_units(value_and_grad or target.value_and_grad, target.unit)
    # NumPy random numbers need no compilation.
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    # The searches handle unbounded densities and edges of supports, of which NumPy would warn.
    with np.errstate(all="ignore"):
        start = _Search(evaluate, target, num_chains, rng, num_searches).run()
    return replace(start, points=target.unit * start.points, metric=start.metric.in_units(target.unit))


def in_units(value_and_grad: Callable, unit: np.ndarray) -> Callable:
    """Return value and gradient as a function of positions divided by `unit`, (size,)."""

    def evaluate(z):
        value, gradient = value_and_grad(unit * z)
        return np.asarray(value), unit * np.asarray(gradient)

    return evaluate


class _ProgramStarts:
    """Further starting points that a program gives, see `Program.further_starts`, in units of the prior."""

    def __init__(self, value_and_grad: Callable, target: Target):
        self.value_and_grad, self.target = value_and_grad, target

    def near(self, point: np.ndarray, refit: Callable | None = None) -> list[np.ndarray]:
        """Return the further starting points with a finite density, given a point (size,).

        ``refit`` takes values of the latent sites and names of sites to hold constant, and returns values; by default
        those of highest density nearby, see `refitted`.
        """
        if self.target.further_starts is None:
            return []
        starts = self.target.further_starts(self.values(point), refit or self.refitted)
        points = [self.position(values) for values in starts]
        return [start for start in points if is_finite(*self.value_and_grad(start))]

    def better_than(self, point: np.ndarray) -> str:
        """Return a caution if a further starting point, given the best mode, is clearly better; else an empty text."""
        value = float(self.value_and_grad(point)[0])
        for start in self.near(point, lambda values, constant: values):
            gain = value - float(self.value_and_grad(start)[0])
            if gain > BETTER:
                moved = np.flatnonzero(np.abs(start - point) > 1e-3)[:NUM_NAMED]
                names = ", ".join(self.target.labels[i] for i in moved)
                return f"at other values of {names} the log density is higher by {gain:.1f} than at the starting points"
        return ""

    def values(self, point: np.ndarray) -> dict[str, np.ndarray]:
        """Return the values of the latent sites at a point, (size,)."""
        sites = jax.jit(self.target.sites)(self.target.unit * point)
        return {name: np.asarray(sites[name]) for name in self.target.latent_shapes}

    def position(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the point (size,) of values of the latent sites."""
        return np.asarray(jax.jit(self.target.unconstrain)(dict(values))) / self.target.unit  # type: ignore[arg-type]

    def refitted(self, values: Mapping[str, np.ndarray], constant: set[str]) -> dict[str, np.ndarray]:
        """Return the values of highest density near given ones, with the named sites held constant."""
        is_free = np.array([label.split("[")[0] not in constant for label in self.target.labels])

        def value_and_grad(point):
            value, gradient = self.value_and_grad(point)
            return value, np.where(is_free, gradient, 0.0)

        return self.values(minimise(value_and_grad, self.position(values))[0])


class _Search:
    """Search for starting points, in units of the prior."""

    def __init__(
        self,
        value_and_grad: Callable,
        target: Target,
        num_chains: int,
        rng: np.random.Generator,
        num_searches: int = SEARCHES,
    ):
        self.value_and_grad, self.target, self.num_chains = value_and_grad, target, num_chains
        self.num_searches = num_searches
        self.program_starts = _ProgramStarts(value_and_grad, target)
        # Separate random numbers for each purpose, independent of the numbers of steps of the others.
        self.rng, self.along_rng, self.mean_field_rng, self.dispersed_rng = rng.spawn(4)
        self.size = target.size
        self.center = target.start / target.unit
        self.prior_draws = target.prior_draws.reshape(-1, self.size) / target.unit
        self.candidates = [p for p in (self.center, *self.prior_draws) if is_finite(*value_and_grad(p))]

    def run(self) -> Start:
        """Return the best start that can be found: from approximations of the posterior, else dispersed."""
        dispersed = None
        if not self.candidates:
            dispersed = self.dispersed_points()
            self.candidates = list(dispersed)
        self.candidates[:0] = self.program_starts.near(self.candidates[0])
        if self.size <= MAX_DENSE:
            start = self.from_modes_and_paths()
        else:
            start = self.from_best_mode() if self.target.standard.any() else None
            if start is None:
                start = self.from_mean_field(-np.inf, np.inf)
        if start is not None:
            return start
        return _dispersed_start(self.value_and_grad, self.dispersed_points() if dispersed is None else dispersed)

    # Few parameters

    def from_modes_and_paths(self) -> Start | None:
        """Start around the modes or, if these do not hold the posterior mass, from the best other approximation."""
        modes, failed, searches = self.search_modes()
        samples = [self.importance_sample(mode) for mode, _ in modes]
        accepted = [sample for sample in samples if self.loss(sample) <= self.max_loss]
        rejected = [
            (sample, path)
            for sample, (_, path) in zip(samples, modes, strict=True)
            if self.loss(sample) > self.max_loss
        ]
        paths = failed + [path for _, path in rejected]
        path_fits = [along_path(self.value_and_grad, path, self.along_rng) for path in paths]
        not_escaped = [
            sample
            for sample in path_fits
            if sample and np.abs(sample.approximation.point - self.center).max() < MAX_DISTANCE
        ]
        alternatives = sorted(not_escaped + [sample for sample, _ in rejected], key=lambda sample: -sample.bound)
        best_bound = alternatives[0].bound if alternatives else -np.inf
        if accepted and max(sample.bound for sample in accepted) >= best_bound - NEGLIGIBLE:
            start = self.around_modes(accepted, len(modes), len(failed), searches)
            better = self.program_starts.better_than(accepted[0].approximation.point)
            return start and replace(start, caution="; ".join(filter(None, (start.caution, better))))
        start = self.from_mean_field(best_bound - NEGLIGIBLE, MAX_GRADIENT_NORM) or self.along_paths(alternatives)
        return start and replace(start, modes=f"{searches} searches ended in no mode that holds the posterior mass")

    @property
    def max_loss(self) -> float:
        """Largest difference between log evidence and its lower bound for an approximation to be accepted."""
        return MAX_LOSS[0] + MAX_LOSS[1] * self.size

    def importance_sample(self, approximation: Approximation) -> ImportanceSample:
        """Return draws from an approximation, with their log weights."""
        return importance_sample(self.value_and_grad, approximation, self.rng)

    def loss(self, sample: ImportanceSample) -> float:
        """Return the difference between Laplace's log evidence and its lower bound."""
        return sample.approximation.log_evidence - sample.bound

    def search_modes(self) -> tuple[list[tuple[Approximation, list]], list[list], int]:
        """Return modes with the paths to them, the best first, paths of failed searches and the number of searches."""
        modes: list[tuple[Approximation, list]] = []
        failed: list[list] = []
        searches = 0
        for candidate in self.candidates:
            if searches >= self.num_searches and len(modes) < 2:
                break
            searches += 1
            point, value, path = search_from(self.value_and_grad, candidate, modes[0][0] if modes else None)
            if any(mode.distance(point) < SAME_POINT for mode, _ in modes):
                continue
            mode = mode_at(self.value_and_grad, point, value)
            if mode is None:
                failed.append(path)
            # In units of the widths of both, because a narrow mode may lie within a wide one.
            elif not any(max(other.distance(mode.point), mode.distance(other.point)) < SAME_MODE for other, _ in modes):
                modes.append((mode, path))
        return sorted(modes, key=lambda pair: -pair[0].log_evidence), failed, searches

    def around_modes(
        self, samples: Sequence[ImportanceSample], num_modes: int, failed: int, searches: int
    ) -> Start | None:
        """Draw starting points around each mode of significant evidence."""
        best = samples[0].approximation
        significant = [
            sample for sample in samples if sample.approximation.log_evidence > best.log_evidence - NEGLIGIBLE
        ]
        metric = curvature_metric(best.vectors, best.stretch, best.width)
        note = f"Laplace approximation at the mode (gradient norm {best.gradient_norm:.1g}), "
        note += f"{metric.kind} metric ({metric.why})"
        if len(significant) > 1:
            note += f"; {len(significant)} modes were found, and the chains distributed over them"
        if discarded := num_modes - len(significant) + failed:
            note += f"; {discarded} of {searches} searches ended at no mode of significant evidence"
        caution = ""
        if num_modes > 1:
            caution = (
                f"{searches} searches before sampling found {num_modes} separate modes, {len(significant)} with "
                "significant evidence; R-hat cannot detect a mode that no chain has visited"
            )
        ends = "one mode" if num_modes == 1 else f"{num_modes} modes"
        modes = f"{searches - failed} of {searches} searches ended in {ends}"
        points = self.typical_points(significant)
        departure = samples[0].departure if len(significant) == 1 else np.inf
        return None if points is None else Start(points, metric, True, note, caution, modes=modes, departure=departure)

    def along_paths(self, samples: Sequence[ImportanceSample]) -> Start | None:
        """Draw starting points from the best approximations that were not accepted, at modes or along paths."""
        best_fits = [sample for sample in samples if sample.bound > max(samples[0].bound - NEGLIGIBLE, -1e300)]
        if not best_fits:
            return None
        best = samples[0].approximation
        metric = curvature_metric(best.vectors, best.stretch, best.width)
        note = f"best of the approximations along the paths of the searches ({len(best_fits)}), {metric.kind} metric"
        points = self.typical_points(best_fits)
        return None if points is None else Start(points, metric, False, note)

    def typical_points(self, samples: Sequence[ImportanceSample]) -> np.ndarray | None:
        """Return typical draws of approximations, (num_chains, size), the same number of each.

        If the number of chains is not a multiple, the first approximations get one more. None if too few draws have a
        finite density.
        """
        num_chains = np.bincount(np.arange(self.num_chains) % len(samples), minlength=len(samples))
        draws = []
        for sample, num_points in zip(samples, num_chains, strict=True):
            typical = sample.typical(self.max_loss)
            for _ in range(CANDIDATES):
                if len(typical) >= num_points:
                    break
                typical = np.concatenate([typical, self.importance_sample(sample.approximation).typical(self.max_loss)])
            draws.append(typical[:num_points])
        points = np.concatenate(draws)
        return points if len(points) == self.num_chains else None

    # Many parameters

    def from_best_mode(self) -> Start | None:
        """Start at the best mode of a posterior whose ``standard`` components are about standard normal."""
        standard, candidates = self.target.standard, self.candidates[:VARIATIONAL_SEARCHES]
        searches = [minimise(self.value_and_grad, candidate) for candidate in candidates]
        for point, value, _ in sorted(searches, key=lambda search: search[1]):
            scale = np.ones(self.size)
            for i in np.flatnonzero(~standard):
                curvature = curvature_along(self.value_and_grad, point, int(i))[i]
                if curvature > 0:
                    scale[i] = curvature**-0.5
            norm = float(np.linalg.norm(scale * self.gradient(point)))
            if np.isfinite(value) and norm < MAX_GRADIENT_NORM:
                break
        else:
            return None
        metric = scaled_metric(self.gradient, point[None], scale, self.rng)
        noise = self.rng.normal(size=(CANDIDATES * self.num_chains, self.size))
        points = point + (metric.to_position(noise) if metric.kind == "low-rank" else scale * noise)
        note = f"around the mode (gradient norm {norm:.1g}), {metric.kind} metric ({metric.why})"
        worse = sum(not search[1] <= value + NEGLIGIBLE for search in searches)
        if worse:
            note += f"; {worse} of {len(searches)} searches were worse and discarded"
        finite = self.first_finite(points)
        return Start(np.stack(finite), metric, True, note) if len(finite) == self.num_chains else None

    def from_mean_field(self, min_bound: float, max_gradient_norm: float) -> Start | None:
        """Start from the best mean-field approximation; None if its evidence bound is below ``min_bound``.

        Approximations with a gradient norm above ``max_gradient_norm`` are left out, because their optimisation did not
        converge, as happens if the density cannot be normalised.
        """
        self.rng = self.mean_field_rng
        fits = mean_field_fits(self.value_and_grad, self.candidates, self.rng)
        fits = [fit for fit in fits if fit.gradient_norm <= max_gradient_norm]
        if not fits:
            return None
        sample = self.importance_sample(Approximation.mean_field(fits[0].point, fits[0].scale))
        points = self.typical_points([sample])
        if points is None or sample.bound < min_bound:
            return None
        metric = scaled_metric(self.gradient, sample.points[: VARIATIONAL_DRAWS // 2], fits[0].scale, self.rng)
        note = f"mean-field normal approximation, {metric.kind} metric ({metric.why})"
        worse = sum(fit.value > fits[0].value + NEGLIGIBLE for fit in fits)
        if worse:
            note += f"; {worse} of {min(VARIATIONAL_SEARCHES, len(self.candidates))} searches were worse and discarded"
        return Start(points, metric, True, note)

    def gradient(self, point: np.ndarray) -> np.ndarray:
        """Return the gradient of minus the log density."""
        return np.asarray(self.value_and_grad(point)[1])

    def first_finite(self, points) -> list[np.ndarray]:
        """Return the first points, at most one per chain, at which density and gradient are finite."""
        finite: list[np.ndarray] = []
        for point in points:
            if len(finite) == self.num_chains:
                break
            if is_finite(*self.value_and_grad(point)):
                finite.append(point)
        return finite

    # The last resort

    def dispersed_points(self) -> np.ndarray:
        """Return dispersed points with a finite density, one per chain, (num_chains, size).

        Points near the median of the prior and draws of the prior are tried first, then prior draws with other spreads
        about the median. If some chains still have none, random steps from the finite points are halved until they end
        at finite ones.
        """
        jitter = self.dispersed_rng.uniform(-0.5, 0.5, size=(CANDIDATES * self.num_chains, self.size))
        points = np.concatenate([self.center + jitter, self.prior_draws])
        finite, tried = self.first_finite(points), len(points)
        diagnosis = _diagnosis(self.target) if not finite else None
        for spread in PRIOR_SPREADS:
            if len(finite) >= self.num_chains or (diagnosis and diagnosis.observed):
                break
            draws = self.target.draw_prior(PRIOR_TRIES, self.dispersed_rng) / self.target.unit
            finite += self.first_finite(self.center + spread * (draws - self.center))
            tried += len(draws)
        finite = finite[: self.num_chains]
        if not finite:
            raise StartError(
                f"No starting points were found: expected {self.num_chains} with a finite log density and gradient "
                f"among {tried} near the start, found 0. {''.join(diagnosis or ())}Check the priors' supports and the "
                "data for impossible values."
            )
        num_finite = len(finite)
        while len(finite) < self.num_chains:
            origin = finite[len(finite) % num_finite]
            step = self.dispersed_rng.normal(size=self.size)
            trials = (origin + 0.5**k * step for k in range(SHRINKAGE))
            finite.append(next((point for point in trials if is_finite(*self.value_and_grad(point))), origin))
        return np.stack(finite)


def _diagnosis(target: Target) -> Diagnosis | None:
    """Return the diagnosis of the log density at the median of the prior; None if it cannot be made."""
    with contextlib.suppress(Exception):  # a program may fail without compilation, for example on several processes
        return target.diagnose(target.start) if target.diagnose else None
    return None


def _dispersed_start(value_and_grad: Callable, points: np.ndarray) -> Start:
    """Return an uninformed start at dispersed points, with a metric in units of the widths there."""
    why = "no search found a mode at which to estimate it"
    metric = uninformed_metric(value_and_grad, points[0], why)
    note = f"jittered median of the prior, because {why}; {metric.kind} metric, adapted from the unit matrix"
    return Start(points, metric, False, note)


def uninformed_metric(value_and_grad: Callable, point: np.ndarray, why: str) -> Metric:
    """Return a unit metric in units of the widths of the components at a point.

    Widths are measured by the curvature, are at most 1, and 1 beyond `MAX_MEASURED` parameters. ``why`` is the reason
    for an uninformed metric, for the provenance of a fit.
    """
    size = len(point)
    widths = np.ones(size)
    for i in range(size if size <= MAX_MEASURED else 0):
        curvature = curvature_along(value_and_grad, point, i)[i]
        if curvature > 1.0:
            widths[i] = power_of_two(curvature**-0.5)
    if size <= MAX_DENSE:
        return Metric("dense", np.eye(size), why, widths)
    return Metric("diagonal", np.ones(size), why, widths)
