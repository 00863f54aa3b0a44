"""Whether the padding of ragged data counts in a program, found by computing an object with and without it.

Latents of the data, one for each datum, are padded with the data, and those of the padding are drawn from their prior.
They change nothing where the padded log density is that of the object alone plus the log of their prior, which is
normalised, whatever their values: integrated over them, the posterior is that of the object alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.infer.util import log_density

from hbm_jax.inference.batch.stacking import Stack, masked
from hbm_jax.inference.sampler.target import prior_value

ADVICE = "Give all objects the same number of data, or call fit_each for each number."
POINTS = 3  # draws of the prior at which the densities are compared
TRIED = 30  # draws, and
ROWS = 5  # objects among which a finite density is looked for

Axes = tuple[tuple[int, int], ...]
"""Ragged axes of a site: which of its axes, and which of the ragged axes of the data that is."""


def ragged_axes(program: Callable, stack: Stack) -> dict[str, Axes]:
    """Return the ragged axes of each latent and deterministic site, after a check that padding counts in none.

    Parameters
    ----------
    program : callable
        A NumPyro program of one object's data.
    stack : Stack
        Data of all objects.

    Raises
    ------
    ValueError
        If the log density or a deterministic site of an object is another one padded, or that cannot be known.
    """
    short = stack.lengths < np.asarray(stack.padded)
    finite = np.ones(len(stack), bool)
    for leaf in stack.leaves:
        finite &= np.isfinite(leaf).reshape(len(stack), -1).all(axis=1)
    order = np.lexsort((-short.sum(axis=1), ~finite))  # objects without invalid data, of them the shortest ones
    axes: dict[str, Axes] = {}
    seen = np.zeros(len(stack.padded), bool)
    for which in range(len(stack.padded)):
        rows = order[short[order, which]]
        for row in rows[:ROWS]:
            if seen[which]:
                break
            try:
                comparison = _Comparison(program, stack, int(row))
                finite_density = comparison.finite()
            except (AttributeError, IndexError, KeyError, TypeError) as error:
                raise ValueError(
                    "fit_each: the objects differ in their number of data; expected a program that runs with padded "
                    f"data; found that it does not with those of object {row}: {type(error).__name__}: {error}. "
                    f"{ADVICE}"
                ) from error
            axes = {n: tuple(dict.fromkeys((*axes.get(n, ()), *found))) for n, found in comparison.axes.items()}
            if finite_density:
                seen |= short[row]
        # Without a finite density an object has no starting point, and is marked.
        if not seen[which] and len(rows) > ROWS:
            raise ValueError(
                "fit_each: the objects differ in their number of data, and whether this program counts the padding is "
                f"not known: {ROWS} of the shorter ones have no finite log density at {TRIED} draws of the prior. "
                f"{ADVICE}"
            )
    return axes


class _Comparison:
    """One object alone and padded."""

    def __init__(self, program: Callable, stack: Stack, row: int):
        self.row, self.padded = row, stack.padded
        self.lengths = [int(length) for length in stack.lengths[row]]
        self.program, self.masked = program, masked(program, stack.padded, self.lengths)
        self.stack, self.args = stack, stack.without_padding(row)
        flat = jax.tree.leaves(self.args)
        # Traced, as in the batch.
        self.data = [flat[place] for place in stack.varying], [leaf[row] for leaf in stack.leaves]
        key = jax.random.key(0)
        shapes = jax.eval_shape(lambda data: [_values(*which, key) for which in self._both(data)], self.data)
        if list(shapes[0]) != list(shapes[1]):
            odd = sorted(set(shapes[0]) ^ set(shapes[1]))
            raise ValueError(
                f"fit_each: the objects differ in their number of data; expected object {row} to have the same sites "
                f"alone and padded, found {', '.join(odd)} in one of them only. {ADVICE}"
            )
        self.axes = {name: self._axes(name, shapes[0][name].shape, shapes[1][name].shape) for name in shapes[0]}

    def _both(self, data) -> tuple[tuple[Callable, tuple], tuple[Callable, tuple]]:
        """Program and arguments, of the object alone and padded."""
        alone, filled = data
        return (self.program, self.stack.args(alone, self.args)), (self.masked, self.stack.args(filled))

    def _axes(self, name: str, alone: tuple, filled: tuple) -> Axes:
        """Return the axes of a site that the padding makes longer."""
        longer = [axis for axis, (a, b) in enumerate(zip(alone, filled, strict=False)) if a != b]
        known = dict(zip(self.padded, enumerate(self.lengths), strict=True))
        found = tuple((axis, known[filled[axis]][0]) for axis in longer if filled[axis] in known)
        if len(alone) != len(filled) or [self.lengths[which] for _, which in found] != [alone[a] for a in longer]:
            raise ValueError(
                f"fit_each: the objects differ in their number of data; the site {name!r} of object {self.row} has "
                f"shape {alone} alone and {filled} padded, expected axes as long as those of the data. {ADVICE}"
            )
        return found

    def _cut(self, name: str) -> tuple[slice, ...]:
        """Return what is no padding of a site."""
        lengths = {axis: self.lengths[which] for axis, which in self.axes[name]}
        return tuple(slice(lengths.get(axis)) for axis in range(max(lengths, default=-1) + 1))

    def _densities(self, key, data):
        """Log density alone, padded less the prior of the padding, sum of their sizes; deterministic sites of both."""
        key_alone, key_filled = jax.random.split(key)
        object_alone, object_filled = self._both(data)
        latents = {n: s["value"] for n, s in _drawn(*object_alone, key_alone).items() if s["type"] == "sample"}

        def extended(site):
            drawn = prior_value(site)
            if drawn is None or not self.axes[site["name"]]:
                return None if drawn is None else latents[site["name"]]
            return drawn.at[self._cut(site["name"])].set(latents[site["name"]])

        values = {
            n: s["value"] for n, s in _drawn(*object_filled, key_filled, extended).items() if s["type"] == "sample"
        }
        alone, trace_alone = log_density(*object_alone, {}, latents)
        filled, trace_filled = log_density(*object_filled, {}, values)
        prior = sum((self._prior_of_padding(name, trace_filled[name]) for name in values if self.axes[name]), 0.0)
        shown = [n for n, s in trace_alone.items() if s["type"] == "deterministic" and not n.startswith("_")]
        recorded = {n: (trace_alone[n]["value"], jnp.asarray(trace_filled[n]["value"])[self._cut(n)]) for n in shown}
        return alone, filled - prior, jnp.abs(alone) + jnp.abs(filled) + jnp.abs(prior), recorded

    def _prior_of_padding(self, name: str, site):
        """Log prior of the padding of a latent site; refuse where it cannot be told from that of the rest."""
        fn = site["fn"]
        while isinstance(fn, dist.Independent):
            fn = fn.base_dist
        log_prob = fn.log_prob(site["value"])
        while isinstance(fn, dist.Independent | dist.ExpandedDistribution):
            fn = fn.base_dist
        if (
            isinstance(fn, dist.ImproperUniform)
            or site["scale"] is not None
            or any(axis >= log_prob.ndim for axis, _ in self.axes[name])
        ):
            raise ValueError(
                f"fit_each: the objects differ in their number of data, and so does their latent site {name!r}; "
                f"expected it to have independent entries in a plate, of a proper prior that is not scaled. {ADVICE}"
            )
        inside = jnp.zeros(log_prob.shape, bool).at[self._cut(name)].set(True)
        return jnp.where(inside, 0.0, log_prob).sum()

    def finite(self) -> bool:
        """Whether a finite density was found to compare; refuse a program in which the padding counts."""
        densities = jax.jit(self._densities)  # so that one compilation takes the place of one per operation
        tolerance = 1e3 * np.finfo(jnp.zeros(0).dtype).eps
        compared = 0
        for i in range(TRIED):
            expected, found, size, recorded = jax.device_get(densities(jax.random.key(i), self.data))
            if not (np.isfinite(expected) or np.isfinite(found)):
                continue
            if not (np.isfinite(size) and abs(found - expected) <= tolerance * size):
                raise ValueError(
                    "fit_each: the objects differ in their number of data, and this program counts the padding: object "
                    f"{self.row} has a log density of {expected:.6g} alone and of {found:.6g} padded. Only observed "
                    "sites along the data are masked; expected no numpyro.factor, and no sum, mean, difference or "
                    f"length of the data or of latents along them in the program. {ADVICE}"
                )
            for name, (alone, filled) in recorded.items():
                largest = np.max(np.abs(alone), initial=0.0, where=np.isfinite(alone))
                if not np.allclose(filled, alone, rtol=tolerance, atol=tolerance * largest, equal_nan=True):
                    raise ValueError(
                        "fit_each: the objects differ in their number of data, and the deterministic site "
                        f"{name!r} counts the padding: object {self.row} has another value of it padded than alone. "
                        f"{ADVICE}"
                    )
            compared += 1
            if compared == POINTS:
                break
        return compared > 0


def _drawn(program, args, key, fill=prior_value) -> dict:
    """Latent and deterministic sites of a draw of the prior."""
    trace = handlers.trace(handlers.substitute(handlers.seed(program, key), substitute_fn=fill)).get_trace(*args)
    return {
        name: site
        for name, site in trace.items()
        if site["type"] == "deterministic" or (site["type"] == "sample" and not site["is_observed"])
    }


def _values(program, args, key) -> dict:
    """Values of latent and deterministic sites, in the order of their names."""
    return {name: jnp.asarray(site["value"]) for name, site in sorted(_drawn(program, args, key).items())}
