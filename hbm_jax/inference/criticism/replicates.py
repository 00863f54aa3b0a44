"""Data sets simulated by a program, with true values and log densities for calibration."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import handlers
from numpyro.distributions import Unit, biject_to
from numpyro.infer.util import potential_energy
from numpyro.primitives import Messenger

from hbm_jax.inference.arguments import arguments_with_nan, latents_of, prior_trace
from hbm_jax.inference.program import bound_args, bound_objects, observing_of, unobserved

LOG_DENSITY = "log density"
LOG_LIKELIHOOD = "log likelihood"


@dataclass(frozen=True)
class ReplacedData:
    """A program with the values of its observed sites as its argument.

    Attributes
    ----------
    program : callable
        The program.
    args : tuple
        Arguments of the program, whose observations are replaced.
    """

    program: Callable
    args: tuple

    def __call__(self, values: Mapping[str, Any]):
        """Run the program with ``values`` of the observed sites, by name."""
        with _WithObservations(values):
            return self.program(*self.args)


@dataclass(frozen=True)
class _WithLikelihood:
    """A program that also records the log likelihood of its observed sites."""

    program: Callable

    def __call__(self, *args):
        with handlers.trace() as trace:
            result = self.program(*args)
        log_likelihood = _log_likelihood(trace, [name for name, site in trace.items() if _is_data(site)])
        numpyro.deterministic(LOG_LIKELIHOOD, log_likelihood)
        return result


class _WithObservations(Messenger):
    """Handler that replaces the values of observed sites."""

    def __init__(self, values):
        super().__init__(None)
        self.values = values

    def process_message(self, msg):
        """Replace the value of an observed site."""
        if msg["type"] == "sample" and msg["is_observed"] and msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]


@dataclass(frozen=True)
class Replicates:
    """Simulated replicates: program and fitted program with bound arguments, and properties of their traces.

    Attributes
    ----------
    data_names : tuple of str
        Observed sites.
    fitted_names : tuple of str
        Sites of the fitted program; a parameter that it integrates out is none of them.
    same_latents : bool
        Whether both programs have the same latent sites, so that the log density can be ranked.
    observing : callable or None
        `Program.observing` of the fitted program; the log likelihood is then ranked in place of the log density.
    cautions : tuple of str
        Sentences of observed distributions of the fitted program whose draws do not follow their density.
    """

    program: Callable
    args: tuple
    fitted: Callable
    fitted_args: tuple
    data_names: tuple[str, ...]
    fitted_names: tuple[str, ...]
    same_latents: bool
    observing: Callable | None
    cautions: tuple[str, ...] = ()

    @classmethod
    def of(cls, program: Callable, args: tuple, fitted: Callable) -> "Replicates":
        """Bind the arguments and inspect the programs; raise ValueError if data cannot be simulated."""
        bound = bound_args(program, args)
        fitted_bound = bound if fitted is program else bound_args(fitted, args)
        structure: dict[str, Any] = {}

        def inspect_sites():
            key = jax.random.key(0)
            trace, fitted_trace = prior_trace(program, bound, key), prior_trace(fitted, fitted_bound, key)
            simulated = handlers.trace(handlers.seed(unobserved(program), key)).get_trace(*bound)
            structure["factors"] = [n for n, site in simulated.items() if _is_factor(site) and not n.startswith("_")]
            structure["data"] = tuple(name for name, site in trace.items() if _is_data(site))
            structure["fitted_names"] = tuple(fitted_trace)
            cautions = (_caution(site["fn"]) for site in fitted_trace.values() if _is_data(site))
            structure["cautions"] = tuple(dict.fromkeys(text for text in cautions if text))
            structure["same_latents"] = latents_of(trace).keys() == latents_of(fitted_trace).keys()
            return 0

        with jax.enable_x64(True):
            jax.eval_shape(inspect_sites)
        if structure["factors"]:
            raise ValueError(
                "calibrate: expected a program whose data can be simulated; found numpyro.factor "
                f"{structure['factors'][0]!r}, which simulated parameters and data do not follow. Write it as a prior "
                "or as an observed site."
            )
        if not structure["data"]:
            raise ValueError("calibrate: expected a program with observed sites; found none.")
        names = structure["data"], structure["fitted_names"]
        observing = observing_of(fitted)
        same_latents, cautions = structure["same_latents"], structure["cautions"]
        return cls(program, bound, fitted, fitted_bound, *names, same_latents, observing, cautions)

    @property
    def density_label(self) -> str | None:
        """Label of the density that is ranked; None if no density is ranked."""
        if self.observing is not None:
            return LOG_LIKELIHOOD
        return LOG_DENSITY if self.same_latents else None

    def replicate(self, key: jax.Array):
        """Return true values, data, and the log density of `density_label` at the true values; 0 without one."""
        trace = handlers.trace(handlers.seed(unobserved(self.program), key)).get_trace(*self.args)
        sites = {name: site for name, site in trace.items() if site["type"] in ("sample", "deterministic")}
        data = {name: sites[name]["value"] for name in self.data_names}
        unobserved_sites = {name: site for name, site in sites.items() if name not in self.data_names}
        truth = {n: s["value"] for n, s in unobserved_sites.items() if not n.startswith("_") and not _is_factor(s)}
        if self.density_label == LOG_LIKELIHOOD:
            return truth, data, _log_likelihood(sites, self.data_names)
        if self.density_label is None:
            return truth, data, jnp.zeros(())
        latents = {n: biject_to(s["fn"].support).inv(s["value"]) for n, s in latents_of(unobserved_sites).items()}
        replaced = ReplacedData(self.fitted, self.fitted_args)
        return truth, data, -potential_energy(replaced, (data,), {}, latents)

    def simulate(self, num_replicates: int, seed: int):
        """Return true values, data and densities of prior draws with finite data and density."""
        site_order: list[str] = []  # of the program; a compiled function returns its output sorted by name

        def replicate(key):
            truth, data, density = self.replicate(key)
            site_order[:] = truth
            return truth, data, density

        with jax.enable_x64(True):
            keys = jax.random.split(jax.random.key(seed), 2 * num_replicates)
            truth, data, density = jax.device_get(jax.jit(jax.vmap(replicate))(keys))
        # A prior may allow parameters without data (a universe without a big bang): their density is not finite.
        is_finite = [np.isfinite(values).reshape(len(keys), -1).all(1) for values in (density, *data.values())]
        rows = np.flatnonzero(np.all(is_finite, axis=0))
        if len(rows) < num_replicates:
            raise ValueError(
                f"calibrate: expected at least half of the prior draws to give finite data and densities; found "
                f"{len(rows)} of {len(keys)}. The first that does not is number "
                f"{np.setdiff1d(np.arange(len(keys)), rows)[0]}. "
                f"{arguments_with_nan(self.program, self.args)}".rstrip()
            )
        rows = rows[:num_replicates]
        return (
            {name: truth[name][rows] for name in site_order},
            {name: data[name][rows] for name in self.data_names},
            density[rows],
        )

    def fit_tasks(self, data: Mapping[str, np.ndarray]) -> tuple[Callable, list]:
        """Return the program to fit to each replicate, and its argument for each."""
        num_replicates = len(next(iter(data.values())))
        values = [{name: column[i] for name, column in data.items()} for i in range(num_replicates)]
        if self.observing is None:
            return ReplacedData(self.fitted, self.fitted_args), values
        objects = [self.observing(replicate, *self.fitted_args) for replicate in values]
        objects = [args if isinstance(args, tuple) else (args,) for args in objects]
        return _WithLikelihood(self.fitted), bound_objects(self.fitted, objects)


def _log_likelihood(sites, names) -> jax.Array:
    """Return the log likelihood of the observed sites of a trace."""
    return sum((jnp.sum(sites[name]["fn"].log_prob(sites[name]["value"])) for name in names), jnp.zeros(()))


def _caution(fn: Any) -> str:
    """Return the attribute ``calibration_caution`` of a distribution or of the one that it wraps; empty without it."""
    while fn is not None:
        caution = getattr(fn, "calibration_caution", "")
        if caution:
            return caution
        fn = getattr(fn, "base_dist", getattr(fn, "base", None))
    return ""


def _is_factor(site) -> bool:
    """Return whether a site is a `numpyro.factor`."""
    return isinstance(site.get("fn"), Unit)


def _is_data(site) -> bool:
    """Return whether a site is observed and not a factor."""
    return site["type"] == "sample" and site["is_observed"] and not _is_factor(site)
