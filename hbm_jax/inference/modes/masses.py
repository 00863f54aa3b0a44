"""Masses of modes by bridge sampling, from chains that start in each of them.

The number of particles that a tempered run leaves in a mode is not its mass: after the modes separate, resampling
errors accumulate from step to step and are common to all particles of a run. Here the density is integrated over each
mode by itself, with chains that sample it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import logsumexp

from hbm_jax.inference.blinding.blinding import unconstrained_draws
from hbm_jax.inference.criticism.evidence import DRAWS_PER_PARAMETER, bridge
from hbm_jax.inference.modes.groups import Groups
from hbm_jax.inference.sampler.ensemble.convergence import r_hat_and_ess
from hbm_jax.inference.sampler.target import StartError, Target
from hbm_jax.inference.sampling import sample

NUM_CHAINS = 4
ATTEMPTS = 3  # to start chains in a mode that do not leave it
MAX_DRAWS = 2000  # of each chain
MAX_MODES = 12  # in which chains are run
MAX_R_HAT = 1.05  # of the chains in a mode
MAX_ERROR = 0.3  # of the logarithm of an integral
SHARE = 0.25  # smallest share of the draws of a chain in a mode for which it is used there
VISITED = 0.02  # fraction of the draws in other modes up to which they are taken for the tails of a mode


class Masses(NamedTuple):
    """Masses of the modes and draws from them.

    Attributes
    ----------
    mass, error : (num_modes,)
        Fraction of the posterior mass in each mode, and its standard error; NaN if undetermined.
    draws : (num, size)
        Unconstrained draws in proportion to the masses; none if these are undetermined.
    reason : str
        Why the masses are undetermined; empty if they are determined.
    """

    mass: np.ndarray
    error: np.ndarray
    draws: np.ndarray
    reason: str


def undetermined(num_modes: int, size: int, reason: str) -> Masses:
    """Return the result for masses that cannot be determined."""
    unknown = np.full(num_modes, np.nan)
    return Masses(unknown, unknown, np.zeros((0, size)), reason)


def masses_of(
    fit: Any,
    target: Target,
    groups: Groups,
    log_density: Callable[[np.ndarray], np.ndarray],
    num_draws: int,
    rng: np.random.Generator,
    show: Callable[[str], None],
) -> Masses:
    """Integrate the posterior over each mode, by bridge sampling from the draws of chains in it.

    Parameters
    ----------
    fit : Fit
        The fit; its chains are used for a mode that they did not leave.
    target : Target
        Its posterior.
    groups : Groups
        Points of each mode.
    log_density : callable
        (num, size) -> (num,).
    num_draws : int
        Number of draws to return.
    rng : numpy.random.Generator
        Generator of starts and proposals.
    show : callable
        Shows a line about the progress.
    """
    num_modes, size = groups.num, target.size
    if num_modes > MAX_MODES:
        return undetermined(num_modes, size, f"there are more than {MAX_MODES}")
    chains = []
    for mode in range(num_modes):
        show(f"sampling in mode {mode + 1} of {num_modes}")
        positions = _chains_of_fit(fit, groups.chains_within(mode))
        if positions is None:
            positions = _chains_from(fit, target, groups, mode, rng)
        if positions is None:
            return undetermined(num_modes, size, "no chain could be started in one of them")
        chains.append(positions)
    show("integrating over the modes")
    return _integrate(chains, groups, log_density, num_draws, rng)


def _chains_of_fit(fit: Any, within: np.ndarray) -> np.ndarray | None:
    """Return the draws of the chains of a fit that stay within a mode, if there are enough of them; else None."""
    if within.sum() < 2:
        return None
    positions = unconstrained_draws(fit).to_numpy().astype(float)[within]
    return positions if _smallest_ess(positions) >= 400.0 and _largest_r_hat(positions) < MAX_R_HAT else None


def _chains_from(fit: Any, target: Target, groups: Groups, mode: int, rng: np.random.Generator) -> np.ndarray | None:
    """Return draws (chain, draw, size) of chains that start at points of a mode; None if they cannot start.

    They start again if they have left the mode, which the long steps of an early warm-up can do.
    """
    points, positions = groups.points[groups.labels == mode], None
    for _ in range(ATTEMPTS):
        starts = points[rng.choice(len(points), NUM_CHAINS, replace=len(points) < NUM_CHAINS)]
        sites = jax.device_get(jax.jit(jax.vmap(target.sites))(starts))
        try:
            run = sample(
                fit.program,
                *fit.args,
                init={name: sites[name] for name in target.latent_shapes},
                seed=int(rng.integers(2**31)),
                num_chains=NUM_CHAINS,
                max_num_samples=MAX_DRAWS,
                dtype=fit.run.get("dtype", "float64"),
                centering=False,
                progress=False,
            )
        except (StartError, ValueError):
            continue
        positions = unconstrained_draws(run).to_numpy().astype(float)
        if (groups.nearest(positions.reshape(-1, target.size)) == mode).mean() > 2 * SHARE:
            break
    return positions


class _Normal(NamedTuple):
    """Normal distribution with the moments of draws: mean (size,), Cholesky factor (size, size)."""

    mean: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, draws: np.ndarray) -> "_Normal":
        """Return that of draws (num, size); raise ValueError if they are too few or do not vary."""
        if len(draws) < 2 * DRAWS_PER_PARAMETER * draws.shape[1]:
            raise ValueError("too few draws")
        try:
            return cls(draws.mean(axis=0), np.linalg.cholesky(np.atleast_2d(np.cov(draws, rowvar=False))))
        except np.linalg.LinAlgError as error:
            raise ValueError("draws that do not vary") from error

    def log_density(self, points: np.ndarray) -> np.ndarray:
        """Return its log density up to a constant, (num,), at points (num, size)."""
        standardised = solve_triangular(self.factor, (points - self.mean).T, lower=True)
        return -0.5 * (standardised**2).sum(axis=0) - np.log(np.diag(self.factor)).sum()


def _integrate(
    chains: Sequence[np.ndarray], groups: Groups, log_density: Callable, num_draws: int, rng: np.random.Generator
) -> Masses:
    """Return the masses of the modes from draws of chains (chain, draw, size) that start in each.

    Space is divided between the modes: a point belongs to that whose normal distribution, of the draws in the mode, is
    the densest there. Draws of a chain in a mode are draws of the posterior in this part of space, also if the chain
    moves between modes.
    """
    num_modes, size = len(chains), chains[0].shape[-1]
    flat = np.concatenate([draws.reshape(-1, size) for draws in chains])
    nearest = groups.nearest(flat)
    try:
        normals = [_Normal.of(flat[nearest == mode]) for mode in range(num_modes)]
    except ValueError:
        return undetermined(num_modes, size, "chains leave one of them at once, or hardly move in it")

    def mode_of(points):
        """Return the mode of each point (..., size)."""
        flat = points.reshape(-1, size)
        return np.argmax([normal.log_density(flat) for normal in normals], axis=0).reshape(points.shape[:-1])

    log_integrals, errors, in_modes = [], [], []
    modes_of_draws = [mode_of(draws) for draws in chains]
    for mode in range(num_modes):
        inside = _inside(chains, [modes == mode for modes in modes_of_draws])
        if _largest_r_hat(inside) >= MAX_R_HAT:
            return undetermined(num_modes, size, "chains in one of them do not mix")

        def restricted(points, mode=mode):
            return np.where(mode_of(points) == mode, log_density(points), -np.inf)

        half = inside.shape[1] // 2
        try:
            log_integral, error = bridge(restricted, inside[:, :half].reshape(-1, size), inside[:, half:], rng)
        except ValueError:
            return undetermined(num_modes, size, "the density could not be integrated over one of them")
        # The few draws elsewhere of chains that do not leave their mode are in its tails.
        fraction = float((modes_of_draws[mode] == mode).mean())
        if fraction > 1.0 - VISITED:
            log_integral -= np.log(fraction)
            error = float(np.hypot(error, 1.0 - fraction))
        if not error < MAX_ERROR:
            return undetermined(num_modes, size, f"the integral over one of them has a relative error of {error:.1g}")
        log_integrals.append(log_integral)
        errors.append(error)
        in_modes.append(inside)
    mass = np.exp(np.array(log_integrals) - logsumexp(log_integrals))
    # Error of m_k = Z_k / sum Z from the relative errors e of Z: m_k^2 ((1 - 2 m_k) e_k^2 + sum m_j^2 e_j^2).
    variances = np.square(errors)
    mass_error = mass * np.sqrt((1.0 - 2.0 * mass) * variances + np.sum(mass**2 * variances))
    drawn = [
        draws.reshape(-1, size)[rng.integers(draws[..., 0].size, size=num)]
        for draws, num in zip(in_modes, rng.multinomial(num_draws, mass), strict=True)
    ]
    return Masses(mass, mass_error, rng.permutation(np.concatenate(drawn)), "")


def _inside(chains: Sequence[np.ndarray], is_in: Sequence[np.ndarray]) -> np.ndarray:
    """Return the draws in a mode, (chain, draw, size), of chains with at least a quarter of their draws there.

    They are as many of each chain, evenly spaced; none if there are fewer than two such chains.
    """
    parts = [
        chain[keep]
        for draws, keeps in zip(chains, is_in, strict=True)
        for chain, keep in zip(draws, keeps, strict=True)
        if keep.mean() > SHARE
    ]
    if len(parts) < 2:
        return np.zeros((0, 0, chains[0].shape[-1]))
    num = min(map(len, parts))
    return np.stack([part[np.linspace(0, len(part) - 1, num).astype(int)] for part in parts])


def _largest_r_hat(draws: np.ndarray) -> float:
    """Return the largest R-hat of the components of draws (chain, draw, size); infinite if it cannot be computed."""
    if draws.shape[1] < 4:
        return np.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        r_hat = np.max(r_hat_and_ess(np.moveaxis(draws, -1, 0))[0])
    return float(r_hat) if np.isfinite(r_hat) else np.inf


def _smallest_ess(draws: np.ndarray) -> float:
    """Return the smallest bulk effective sample size of the components of draws (chain, draw, size)."""
    if draws.shape[1] < 4:
        return 0.0
    return float(np.min(r_hat_and_ess(np.moveaxis(draws, -1, 0))[1]))
