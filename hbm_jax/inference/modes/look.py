"""A tempered search for the modes of a posterior, with their masses, and comparison with the draws of a fit."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from numpyro.primitives import Messenger
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from hbm_jax.inference.arguments import unsampled_sites
from hbm_jax.inference.blinding.blinding import unconstrained_draws
from hbm_jax.inference.compilation.chunks import map_in_chunks
from hbm_jax.inference.modes.tempering import Tempered
from hbm_jax.inference.sampler.progress import ProgressLine
from hbm_jax.inference.sampler.target import Target, build_target

PARTICLES_GROUPED, DRAWS_GROUPED = 300, 100  # particles of each run, and draws of each chain, grouped into modes
PER_PARAMETER = 4  # fewest particles per parameter; moves are along differences of particles
NEIGHBOURS = 8  # nearest points to which each point may be joined
# Two neighbours are joined if the log density between them is nowhere lower than this below the lower of both. It is
# evaluated at these fractions of their distance.
VALLEY = 3.0
FRACTIONS = (0.25, 0.5, 0.75)
# Smallest fraction of the points in a separate mode, and of the mass in a mode whose absence from draws is reported.
SMALLEST = 0.01
MODES_NAMED = 5  # in a sentence
WIDER = 10.0  # ratio of the width of the reference to that of the draws, if a prior cannot be sampled


@dataclass(frozen=True)
class Modes:
    """Modes of a posterior, from `look_for_modes`.

    Attributes
    ----------
    table : pandas.DataFrame
        ``mass``, the fraction of the posterior mass in each mode, its standard error ``mass_error``, and
        ``share_of_draws``, the fraction of the draws of the fit that are in the mode; the heaviest mode first.
    locations : pandas.DataFrame
        Mean of each parameter or element of the posterior, one row per mode.
    draws : dict of str to array
        Draws of the tempered run, (draw, ...), of every site of the posterior, in proportion to the masses.
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
    fit: Any, *, num_particles: int = 1000, num_runs: int = 4, seed: int = 0, progress: bool = True
) -> Modes:
    """Look for modes of a posterior by tempered runs from its prior, and compare them with the draws of a fit.

    R-hat compares chains with each other; it cannot detect a mode that no chain has visited. Here particles are drawn
    from the prior and moved to the posterior through tempered densities. Modes are groups of particles and draws
    between which the density does not fall. A mode is found if it attracts particles before it separates from the
    others; one that attracts less than about one in ``num_particles`` may be missed.

    Parameters
    ----------
    fit : Fit
        A fit with its program. The outcome is added to its verdict, which `Fit.save` stores; the verdict becomes "not
        usable" if a mode with more than 1 % of the mass is missing from the draws.
    num_particles : int
        Particles of each run, at least 20 and at least 4 per parameter, rounded up to an even number. The cost is about
        10 to 60 densities for each particle and each of 5 to 50 steps.
    num_runs : int
        Independent runs, at least 2; the errors of the masses come from their differences.
    seed : int
        Seed of the runs.
    progress : bool
        Whether to show a progress line.

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
        rng = np.random.default_rng(seed)
        positions, log_evidence = [], []
        for run in range(num_runs):
            progress_line.show(f"tempered run {run + 1} of {num_runs}, {num_particles} particles")
            particles, evidence = tempered.run(reference.draw(num_particles, rng), int(rng.integers(2**31)))
            positions.append(particles.position)
            log_evidence.append(evidence)
        progress_line.show("grouping particles and draws")
        grouped = [rng.permutation(position)[:PARTICLES_GROUPED] for position in positions]
        thinned = draws[:, np.linspace(0, draws.shape[1] - 1, min(DRAWS_GROUPED, draws.shape[1])).astype(int)]
        points = np.concatenate([*grouped, thinned.reshape(-1, target.size)])
        groups = _groups(points, tempered)
        weights = np.exp(np.array(log_evidence) - max(log_evidence))
        modes = _modes(fit, target, points, groups, weights / weights.sum(), positions, rng)
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


def _groups(points: np.ndarray, tempered: Tempered) -> np.ndarray:
    """Return the group of each point, (num,), which joins neighbours between which the density does not fall."""
    num, scale = len(points), points.std(axis=0)
    scaled = points / np.where(scale > 0, scale, 1.0)
    ends = _log_posterior(tempered, points)

    def join(first, second):
        """Return the pairs between which the density does not fall."""
        step = points[second] - points[first]
        between = np.min([_log_posterior(tempered, points[first] + f * step) for f in FRACTIONS], axis=0)
        keep = (between >= np.minimum(ends[first], ends[second]) - VALLEY) | (step == 0).all(axis=1)
        return first[keep], second[keep]

    neighbours = KDTree(scaled).query(scaled, k=min(NEIGHBOURS + 1, num))[1][:, 1:]
    first, second = join(np.repeat(np.arange(num), neighbours.shape[1]), neighbours.ravel())
    groups = _components(first, second, num)
    while groups.max():
        # Also try the nearest pairs between each group and the others, because neighbours alone may not connect it.
        pairs = []
        for group in range(groups.max() + 1):
            inside, outside = np.flatnonzero(groups == group), np.flatnonzero(groups != group)
            distances, nearest = KDTree(scaled[outside]).query(scaled[inside])
            closest = np.argsort(distances)[:NEIGHBOURS]
            pairs.append((inside[closest], outside[nearest[closest]]))
        new_first, new_second = join(*(np.concatenate(part) for part in zip(*pairs, strict=True)))
        if not len(new_first):
            break
        first, second = np.concatenate([first, new_first]), np.concatenate([second, new_second])
        groups = _components(first, second, num)
    is_large = (np.bincount(groups) >= SMALLEST * num)[groups]
    if is_large.any() and not is_large.all():
        nearest = KDTree(scaled[is_large]).query(scaled[~is_large])[1]
        groups[~is_large] = groups[is_large][nearest]
    return np.unique(groups, return_inverse=True)[1]


def _components(first: np.ndarray, second: np.ndarray, num: int) -> np.ndarray:
    """Return the connected component of each of ``num`` points that pairs join, (num,)."""
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(num, num))
    return connected_components(graph, directed=False)[1]


def _log_posterior(tempered: Tempered, points: np.ndarray) -> np.ndarray:
    """Return the log density at any number of points."""
    return map_in_chunks(lambda chunk: tempered.evaluate(chunk).log_posterior, tempered.num_particles, points)


def _modes(fit, target: Target, points, groups, weights, positions, rng) -> Modes:
    """Return masses, locations and draws of the modes."""
    num_runs, num_grouped = len(positions), min(PARTICLES_GROUPED, len(positions[0]))
    in_mode = groups[:, None] == np.arange(groups.max() + 1)
    in_run = in_mode[: num_runs * num_grouped].reshape(num_runs, num_grouped, -1).mean(axis=1)
    mass = weights @ in_run
    between_runs = num_runs / (num_runs - 1) * (weights**2) @ (in_run - mass) ** 2
    table = pd.DataFrame(
        {
            "mass": mass,
            "mass_error": np.sqrt(np.maximum(between_runs, mass * (1 - mass) / (num_runs * num_grouped))),
            "share_of_draws": in_mode[num_runs * num_grouped :].mean(axis=0),
        }
    )
    constrain = jax.jit(jax.vmap(target.constrain))
    names = [str(name) for name in fit.posterior]
    hidden = fit.blinding
    shifted = dict if hidden is None else hidden.shifted
    sites = shifted({name: np.asarray(values) for name, values in constrain(points).items() if name in names})
    values = np.concatenate([sites[name].reshape(len(points), -1) for name in names if name in sites], axis=1)
    labels = list(fit.verdict.table.index)
    locations = pd.DataFrame([values[is_in].mean(axis=0) for is_in in in_mode.T], columns=labels)
    runs = rng.choice(num_runs, len(positions[0]), p=weights)
    draws = constrain(np.stack([positions[run][i] for i, run in enumerate(runs)]))
    draws = shifted({name: np.asarray(draws[name]) for name in sites})
    order = np.argsort(-mass, kind="stable")
    table, locations = (frame.iloc[order].reset_index(drop=True) for frame in (table, locations))
    names_hidden = () if hidden is None else hidden.names
    descriptions = _descriptions(values, in_mode[:, order], labels, names_hidden)
    return Modes(
        table,
        locations,
        draws,
        _outcome(table, descriptions, num_runs, len(positions[0])),
        _missing(table, descriptions),
    )


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


def _percent(row) -> str:
    """Format the mass of a mode with its error."""
    return f"{100 * row.mass:.0f} +- {max(100 * row.mass_error, 1):.0f} %"


def _outcome(table: pd.DataFrame, descriptions: list[str], num_runs: int, num_particles: int) -> str:
    """Describe the modes of the particles, and modes of the draws that the particles missed."""
    modes = table[table["mass"] > 0]
    text = f"{num_runs} tempered runs of {num_particles} particles found "
    if len(modes) == 1:
        text += "one mode"
    else:
        masses = ", ".join(_percent(row) for row in modes.head(MODES_NAMED).itertuples())
        rest = " and less" if len(modes) > MODES_NAMED else ""
        text += f"{len(modes)} modes, with {masses}{rest} of the mass"
    missed = [
        f"one with {100 * table.loc[i, 'share_of_draws']:.0f} % of the draws near {descriptions[i]}"
        for i in table.index[table["mass"] == 0]
    ]
    return f"{text}, but missed {', '.join(missed[:MODES_NAMED])}: more particles are needed" if missed else text


def _missing(table: pd.DataFrame, descriptions: list[str]) -> str:
    """Return the modes of which the draws have none, as text; empty if the draws have all modes."""
    is_missing = (table["share_of_draws"] == 0) & (table["mass"] > np.maximum(SMALLEST, 2 * table["mass_error"]))
    return "; ".join(
        f"a mode with {_percent(table.loc[i])} of the mass near {descriptions[i]} is missing from the draws"
        for i in table.index[is_missing][:MODES_NAMED]
    )
