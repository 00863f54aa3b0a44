"""A tempered search for the modes of a posterior, with their masses, and comparison with the draws of a fit."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from numpyro.primitives import Messenger

from hbm_jax.inference.arguments import unsampled_sites
from hbm_jax.inference.blinding.blinding import unconstrained_draws
from hbm_jax.inference.compilation.chunks import map_in_chunks
from hbm_jax.inference.modes.groups import Groups, group
from hbm_jax.inference.modes.masses import Masses, masses_of
from hbm_jax.inference.modes.searches import MAX_SIZE, NUM_SEARCHES, points_of_modes
from hbm_jax.inference.modes.tempering import Tempered
from hbm_jax.inference.sampler.initialisation import in_units
from hbm_jax.inference.sampler.progress import Progress, ProgressLine
from hbm_jax.inference.sampler.target import Target, build_target

PARTICLES_GROUPED, DRAWS_GROUPED = 300, 100  # particles of each run, and draws of each chain, grouped into modes
PER_PARAMETER = 4  # fewest particles per parameter; moves are along differences of particles
MISSED = 0.01  # smallest mass of a mode whose absence from the draws is reported
MODES_NAMED = 5  # in a sentence
WIDER = 10.0  # ratio of the width of the reference to that of the draws, if a prior cannot be sampled


@dataclass(frozen=True)
class Modes:
    """Modes of a posterior, from `look_for_modes`.

    Attributes
    ----------
    table : pandas.DataFrame
        ``mass``, the fraction of the posterior mass in each mode, its standard error ``mass_error``, and
        ``share_of_draws``, the fraction of the draws of the fit that are in the mode; the heaviest mode first. Masses
        that cannot be determined are NaN; ``outcome`` gives the reason.
    locations : pandas.DataFrame
        Mean of each parameter or element of the posterior, one row per mode.
    draws : dict of str to array
        Draws of every site of the posterior, (draw, ...), as many as particles of a run, in proportion to the masses;
        empty if these cannot be determined.
    outcome : str
        Number of runs and modes, with the masses of the modes, for the verdict.
    missing : str
        Modes that the draws of the fit do not contain, for the verdict; empty if they contain all.
    """

    table: pd.DataFrame
    locations: pd.DataFrame = field(repr=False)
    draws: dict[str, np.ndarray] = field(repr=False)
    outcome: str
    missing: str

    def __str__(self):
        return ". ".join(text[:1].upper() + text[1:] for text in (self.outcome, self.missing) if text) + "."


def look_for_modes(
    fit: Any, *, num_particles: int = 1000, num_runs: int = 4, seed: int = 0, progress: Progress = True
) -> Modes:
    """Look for modes of a posterior by tempered runs from its prior, and compare them with the draws of a fit.

    R-hat compares chains with each other; it cannot detect a mode that no chain has visited. Here particles are drawn
    from the prior and moved to the posterior through tempered densities. Modes are groups of particles and draws
    between which the density does not fall. A mode is found if it attracts particles before it separates from the
    others; one that attracts less than one in a hundred may be missed, such as one of width 0.3 with 30 % of the mass
    beside others of widths 1 and 2, of five parameters with priors of width 10. If there is more than one, chains of
    `hbm_jax.sample` start in each mode, and the density is integrated over it by bridge sampling (see `evidence`). No
    masses are given if the chains in a mode do not mix, or an integral has a relative error above 0.3.

    Parameters
    ----------
    fit : Fit
        A fit with its program. The outcome is added to its verdict, which `Fit.save` stores; the verdict becomes "not
        usable" if a mode with more than 1 % of the mass is missing from the draws.
    num_particles : int
        Particles of each run, at least 20 and at least 4 per parameter, rounded up to an even number. The cost is about
        10 to 60 densities for each particle and each of 5 to 50 steps, and a fit for each mode if there are several.
    num_runs : int
        Independent runs, at least 2.
    seed : int
        Seed of the runs.
    progress : bool or callable
        Whether to show a progress line, or a function that is called with its texts.

    Raises
    ------
    ValueError
        If the fit has no program, for options out of range, if the density vanishes at all draws of the prior, and if
        the particles do not reach the posterior.

    Notes
    -----
    If the prior of a site cannot be sampled, particles start from a normal distribution ten times as wide as the draws,
    in the unconstrained parameters.

    Examples
    --------
    >>> import numpyro, numpyro.distributions as dist
    >>> from hbm_jax import sample
    >>> fit = sample(lambda: numpyro.sample("x", dist.Normal(0, 1)), num_samples=100, progress=False)
    >>> float(look_for_modes(fit, num_particles=100, progress=False).table["mass"].iloc[0])
    1.0
    """
    for name, value, least in (("num_particles", num_particles, 20), ("num_runs", num_runs, 2)):
        if value < least:
            raise ValueError(f"look_for_modes: expected {name} >= {least}; found {value}.")
    if fit.program is None:
        raise ValueError(
            "look_for_modes: expected a fit with its program; found one that was loaded without. Give hbm_jax.load the "
            "program and its arguments."
        )
    num_particles += num_particles % 2
    with jax.enable_x64(fit.run.get("dtype", "float64") == "float64"), ProgressLine(progress) as progress_line:
        target = build_target(fit.program, fit.bound_args, jax.random.key(seed))
        if num_particles < PER_PARAMETER * target.size:
            raise ValueError(
                f"look_for_modes: expected num_particles >= {PER_PARAMETER * target.size}, {PER_PARAMETER} for each of "
                f"{target.size} parameters; found {num_particles}."
            )
        draws = unconstrained_draws(fit).to_numpy().astype(float)
        reference = _Reference.of(fit.program, fit.bound_args, target, draws)
        tempered = Tempered(reference.log_density, lambda x: -target.potential(x), num_particles, target.size)
        log_density = partial(_log_posterior, tempered)
        rng = np.random.default_rng(seed)
        positions, visited = [], list[np.ndarray]()
        for run in range(num_runs):
            progress_line.show(f"tempered run {run + 1} of {num_runs}, {num_particles} particles")
            particles, _ = tempered.run(reference.draw(num_particles, rng), int(rng.integers(2**31)), visited)
            positions.append(particles.position)
        grouped = [rng.permutation(position)[:PARTICLES_GROUPED] for position in positions]
        if target.size <= MAX_SIZE:
            progress_line.show("searches from particles at all temperatures")
            starts = rng.permutation(np.concatenate(visited))[:NUM_SEARCHES]
            grouped.append(
                target.unit * points_of_modes(in_units(target.value_and_grad, target.unit), starts / target.unit, rng)
            )
        progress_line.show("grouping particles and draws")
        thinned = draws[:, np.linspace(0, draws.shape[1] - 1, min(DRAWS_GROUPED, draws.shape[1])).astype(int)]
        points = np.concatenate([*grouped, thinned.reshape(-1, target.size)])
        groups = Groups(points, group(points, log_density), sum(map(len, grouped)), len(draws))
        if groups.num == 1:
            drawn = rng.permutation(np.concatenate(positions))[:num_particles]
            masses = Masses(np.ones(1), np.zeros(1), drawn, "")
        else:
            masses = masses_of(fit, target, groups, log_density, num_particles, rng, progress_line.show)
        modes = _modes(fit, target, groups, masses, f"{num_runs} tempered runs of {num_particles} particles")
    fit.note_modes(modes.outcome, modes.missing)
    return modes


class _WithoutObservations(Messenger):
    """Handler under which the log density of a program is that of its prior."""

    def process_message(self, msg):
        """Mask an observed site."""
        if msg["type"] == "sample" and msg["is_observed"]:
            msg["fn"] = msg["fn"].mask(False)


@dataclass(frozen=True)
class _Reference:
    """Reference distribution in the unconstrained parameters: log density, and ``draw(num, rng)``, (num, size)."""

    log_density: Callable
    draw: Callable

    @classmethod
    def of(cls, program: Callable, args: tuple, target: Target, draws: np.ndarray) -> "_Reference":
        """Return the prior or, if it cannot be sampled, a wide normal distribution around draws."""
        # Target.draw_prior does not sample standard components; it returns their declared starts.
        if not unsampled_sites(program, args) and not target.standard.any():
            prior = build_target(_WithoutObservations(program), args, None)
            return cls(lambda x: -prior.potential(x), target.draw_prior)
        mean, width = draws.mean(axis=(0, 1)), WIDER * draws.std(axis=(0, 1))
        width = np.where(width > 0, width, 1.0)
        return cls(
            lambda x: -0.5 * jnp.sum(((x - mean) / width) ** 2),
            lambda num, rng: mean + width * rng.normal(size=(num, len(mean))),
        )


def _log_posterior(tempered: Tempered, points: np.ndarray) -> np.ndarray:
    """Return the log density at any number of points."""
    return map_in_chunks(lambda chunk: tempered.evaluate(chunk).log_posterior, tempered.num_particles, points)


def _modes(fit: Any, target: Target, groups: Groups, masses: Masses, runs: str) -> Modes:
    """Return masses, locations and draws of the modes."""
    share = groups.share_of_draws
    # An undetermined mass counts as large.
    is_missing = (share == 0) & ~(masses.mass <= np.maximum(MISSED, 2 * masses.error))
    table = pd.DataFrame({"mass": masses.mass, "mass_error": masses.error, "share_of_draws": share})
    constrain = jax.jit(jax.vmap(target.constrain))
    names = [str(name) for name in fit.posterior]
    hidden = fit.blinding
    shifted = dict if hidden is None else hidden.shifted
    points = groups.points
    sites = shifted({name: np.asarray(values) for name, values in constrain(points).items() if name in names})
    values = np.concatenate([sites[name].reshape(len(points), -1) for name in names if name in sites], axis=1)
    labels = list(fit.verdict.table.index)
    locations = pd.DataFrame([values[is_in].mean(axis=0) for is_in in groups.in_mode.T], columns=labels)
    draws: dict[str, np.ndarray] = {}
    if len(masses.draws):
        drawn = constrain(masses.draws)
        draws = shifted({name: np.asarray(drawn[name]) for name in sites})
    order = np.lexsort([-share, -np.nan_to_num(masses.mass)])
    table, locations = (frame.iloc[order].reset_index(drop=True) for frame in (table, locations))
    descriptions = _descriptions(values, groups.in_mode[:, order], labels, () if hidden is None else hidden.names)
    outcome = _outcome(table, descriptions, runs, masses.reason, groups.is_found[order])
    return Modes(table, locations, draws, outcome, _missing(table[is_missing[order]], descriptions))


def _descriptions(
    values: np.ndarray, in_mode: np.ndarray, labels: list[str], hidden: Collection[str] = ()
) -> list[str]:
    """Describe the location of each mode by the parameter that separates it best from the other points.

    Shifted values of ``hidden`` parameters are left out, because the description is kept after `Fit.unblind`.
    """
    texts = []
    for is_in in in_mode.T:
        if is_in.all():
            return [""]
        inside, outside = values[is_in], values[~is_in]
        width = inside.std(axis=0) + outside.std(axis=0)
        distance = np.abs(inside.mean(axis=0) - outside.mean(axis=0)) / np.where(width > 0, width, np.inf)
        best = int(np.argmax(np.nan_to_num(distance)))
        is_hidden = labels[best].partition("[")[0] in hidden
        value = f"{labels[best]} = {inside[:, best].mean():.3g}"
        texts.append(f"a blinded value of {labels[best]}" if is_hidden else value)
    return texts


def _percent(row: Any) -> str:
    """Format the mass of a mode with its error."""
    return f"{100 * row.mass:.0f} +- {max(100 * row.mass_error, 1):.0f} %"


def _outcome(table: pd.DataFrame, descriptions: list[str], runs: str, reason: str, is_found: np.ndarray) -> str:
    """Describe the modes of the search and of the draws, and those of the draws that the search missed."""
    named = descriptions[:MODES_NAMED]
    rest = " and others" if len(descriptions) > MODES_NAMED else ""
    if len(table) == 1:
        text = f"{runs} found one mode"
    elif reason:
        text = f"{runs} found {len(table)} modes, near {', '.join(named)}{rest}; their masses are unknown: {reason}"
    else:
        masses = ", ".join(_percent(row) for row in table.head(MODES_NAMED).itertuples())
        text = f"{runs} found {len(table)} modes, with {masses}{rest} of the mass in these"
    missed = [place for place, found in zip(descriptions, is_found, strict=True) if not found]
    if not missed:
        return text
    return f"{text}; they missed the mode of draws near {', '.join(missed[:MODES_NAMED])}, and may miss others"


def _missing(missing: pd.DataFrame, descriptions: list[str]) -> str:
    """Return the modes of which the draws have none, as text; empty if the draws have all modes."""
    texts = [
        f"a mode with {_percent(row)} of the mass found, near {descriptions[row.Index]}, is missing from the draws"
        if np.isfinite(row.mass)
        else f"a mode of unknown mass, near {descriptions[row.Index]}, is missing from the draws"
        for row in missing.head(MODES_NAMED).itertuples()
    ]
    return "; ".join(texts)
