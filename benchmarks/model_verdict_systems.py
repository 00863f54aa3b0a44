"""Systems of `model_verdict_rates`: models with their designs, and samples of them with planted misfits."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from numpyro import handlers
from scipy.stats import poisson

import hbm_jax as hbm

FOLD_TOLERANCE = 0.1  # largest change of the log likelihood of an afterglow by the nodes of its response, at any column
NUM_SOURCES = 100  # draws of each source, of which one above a limit is taken


@dataclasses.dataclass(frozen=True)
class System:
    """A model, its design, the true parameters, and misfits.

    Attributes
    ----------
    model, design
        Model, and data whose observed values are replaced.
    site : str
        Observed site.
    truth : dict of str to float
        True parameters, the same in all samples.
    strengths : dict of str to float
        Kinds of misfit with their strengths, whose meaning depends on the kind.
    planted : callable
        (rng, kind, strength) -> observed values with a misfit.
    options : dict of str to int
        Options of `hbm_jax.fit_each`.
    columns : callable, optional
        Observed values of the site -> arguments of ``design.replace_observations``.
    bound : pytree, optional
        Bound design of a model whose coordinates depend on the observed values (`Program.observing`).
    """

    model: Any
    design: Any
    site: str
    truth: dict[str, float]
    strengths: dict[str, float]
    planted: Callable
    options: dict[str, int] = dataclasses.field(
        default_factory=lambda: {"num_warmup": 300, "num_samples": 200, "max_steps": 64}
    )
    columns: Callable | None = None
    bound: Any = None

    def measured(self, values: np.ndarray) -> Any:
        """Return the design with the values of a sample, which are then no covariates of their own residuals."""
        columns = self.columns(values) if self.columns else {}
        return self.design.replace_observations(**columns) if columns else self.design.replace_observations(values)


def first_passing(draw: Callable, passes: Callable, num: int) -> np.ndarray:
    """Draw each value of a design again until it passes."""
    values = draw()
    for _ in range(50_000):
        failing = ~passes(values)
        if not failing.any():
            break
        values = np.where(failing.reshape(num, *(1,) * (values.ndim - 1)), draw(), values)
    return values


def relation() -> System:
    """300 points of five surveys about one line."""
    rng, num = np.random.default_rng(1), 300
    columns = {
        "x": rng.normal(1.0, 1.0, num), "y": rng.normal(2.0, 1.5, num), "sigma_x": rng.uniform(0.1, 0.5, num),
        "sigma_y": rng.uniform(0.1, 0.4, num), "group": [f"survey {i % 5}" for i in range(num)],
    }  # fmt: skip
    data = hbm.data.PointsInGroups.from_columns(columns)
    row, survey = np.asarray(data.row).ravel(), np.repeat(np.arange(5), 60)
    sigma_x, sigma_y = (columns[f"sigma_{name}"][row] for name in "xy")

    def planted(rng, kind, strength):
        def draw():
            widen = strength if kind == "errors" else 1.0
            x = rng.normal(1.0, 1.0, num)
            y = 2.0 + 1.5 * (x - 1.0) + 0.3 * rng.normal(size=num)
            y += strength * ((x - 1.0) ** 2 - 1.0) * (kind == "trend") + strength * (survey == 3) * (kind == "group")
            wrong = strength * np.hypot(0.3, sigma_y) * (rng.uniform(size=num) < 0.05)
            y += wrong * (kind == "contaminants")
            return np.stack(
                [x + widen * sigma_x * rng.normal(size=num), y + widen * sigma_y * rng.normal(size=num)], axis=-1
            )

        passes = (lambda v: v[:, 1] > strength) if kind == "cut" else (lambda v: np.ones(num, bool))
        return first_passing(draw, passes, num).reshape(5, 60, 2)

    truth = {"alpha": 1.5, "beta": 2.0, "intrinsic_scatter": 0.3, "x_mean": 1.0, "x_std": 1.0}
    strengths = {"contaminants": 5.0, "cut": 0.0, "errors": 3.0, "trend": 0.25, "group": 0.6}
    return System(hbm.models.Relation(pooling="complete", pivot=1.0), data, "observed", truth, strengths, planted)


def normal() -> System:
    """30 groups of four values with known errors."""
    rng, num = np.random.default_rng(2), 120
    group = np.repeat(np.arange(30), 4)
    sigma = rng.uniform(0.3, 0.8, num)
    data = hbm.data.ValuesInGroups.from_columns(
        {"y": rng.normal(size=num), "sigma_y": sigma, "group": [f"group {k:02d}" for k in group]}
    )

    def planted(rng, kind, strength):
        theta = rng.normal(size=30)
        theta += strength * np.linspace(-1.0, 1.0, 30) * (kind == "trend")
        theta += strength * (np.arange(30) == 12) * (kind == "group")
        wrong = strength * sigma * (rng.uniform(size=num) < 0.05) * (kind == "contaminants")

        def draw():
            width = sigma * strength if kind == "errors" else sigma
            return theta[group] + wrong + width * rng.normal(size=num)

        if kind == "cut":
            # A group is lost if no value can pass, so that true values are bounded too.
            theta = first_passing(lambda: rng.normal(size=30), lambda t: t > strength - 1.2, 30)
            values = first_passing(draw, lambda v: v > strength, num)
        else:
            values = draw()
        return values.reshape(30, 4, 1)

    strengths = {"contaminants": 40.0, "cut": -0.3, "errors": 5.0, "trend": 2.5, "group": 9.0}
    return System(hbm.models.Normal(), data, "y", {"mu": 0.0, "tau": 1.0}, strengths, planted)


def supernovae() -> System:
    """200 supernovae with the design of JLA."""
    data = hbm.data.load_jla()
    data = data.subset(np.linspace(0, len(data) - 1, 200).round().astype(int))
    truth = {
        "Om0": 0.3, "M0": -19.05, "alpha": 0.14, "beta": 3.1, "delta_M": -0.06, "sigma_int": 0.1, "x1_mean": 0.0,
        "x1_std": 1.0, "c_mean": 0.0, "c_std": 0.08,
    }  # fmt: skip
    z, survey = data.z_cmb, np.array(data.survey)
    error = np.sqrt(data.covariance[:, 0, 0] + 0.1**2)
    model = hbm.models.Supernova()
    draw = program_draws(model, data, "observed", truth)

    def planted(rng, kind, strength):
        if kind == "errors":
            wide = dataclasses.replace(data, covariance=data.covariance * strength**2)
            return program_draws(model, wide, "observed", truth)(rng, 1)[0]
        samples = draw(rng, 12)
        y = samples[0].copy()
        if kind == "contaminants":
            y[:, 2] += strength * error * (rng.uniform(size=len(z)) < 0.05)
        elif kind == "cut":  # beyond a redshift, only the brighter half is found
            passes = (samples[..., 2] < np.median(samples[..., 2], axis=0)) | (z < strength)
            y = samples[passes.argmax(axis=0), np.arange(len(z))]
        elif kind == "trend":
            y[:, 2] += strength * np.cos(2.0 * np.pi * np.log10(z / 0.01))
        elif kind == "group":
            y[survey == survey[np.argmin(z)], 2] += strength
        return y

    def columns(values):
        return dict(zip(("x1", "c", "m_b"), np.moveaxis(values, -1, 0), strict=True))

    strengths = {"contaminants": 5.0, "cut": 0.2, "errors": 2.0, "trend": 0.15, "group": 0.2}
    return System(model, data, "observed", truth, strengths, planted, columns=columns)


def golenetskii() -> System:
    """20 bursts of eight intervals."""
    data = hbm.data.BurstPopulation(num_intervals=8).draw(20, seed=3).data
    truth = {
        "gamma_mean": 1.5, "gamma_std": 0.2, "log10_N_mean": 52.0, "log10_N_std": 0.3, "intrinsic_scatter": 0.1,
        "log10_E_peak_mean": 2.6, "log10_E_peak_std": 0.3, "log10_E_peak_scatter": 0.25,
    }  # fmt: skip
    model = hbm.models.Golenetskii()
    conversion, z = np.asarray(model.bind(data).flux_over_luminosity), np.asarray(data.z)
    variance = np.asarray(data.errors)  # of energy, their covariance, and that of flux
    covariance = np.stack([variance[..., :2], variance[..., 1:]], axis=-1)
    root = np.linalg.cholesky(covariance)

    def bursts(rng, num, widen=1.0):
        """Draw ``num`` intervals of each burst, (burst, interval, 2)."""
        mean, slope, line = (rng.normal(truth[f"{n}_mean"], truth[f"{n}_std"], (20, 1)) for n in
                             ("log10_E_peak", "gamma", "log10_N"))  # fmt: skip
        energy = mean + truth["log10_E_peak_scatter"] * rng.normal(size=(20, num))
        flux = line + slope * (energy - 2.0) + 0.1 * rng.normal(size=(20, num)) + conversion[:, :1]
        true = np.stack([energy - np.log10(1.0 + z)[:, None], flux], axis=-1)
        return true + widen * np.einsum("bjkl,bjl->bjk", root[:, np.arange(num) % 8], rng.normal(size=true.shape))

    def enough(y, limit):
        return (y[..., 1] > limit).reshape(20, 10, 8).any(axis=1)

    limits = np.quantile(bursts(np.random.default_rng(0), 10_000)[..., 1], np.linspace(0.0, 1.0, 101))

    def planted(rng, kind, strength):
        if kind == "whole":  # bursts are lost unless their brightest interval is above a flux
            limit = limits[int(strength)]
            return first_passing(lambda: bursts(rng, 8), lambda y: (y[..., 1] > limit).any(axis=1), 20)
        if kind == "cut":  # fainter intervals are not measured; bursts with too few of 80 above the limit are lost
            limit = limits[int(strength)]
            y = first_passing(lambda: bursts(rng, 80), lambda y: enough(y, limit).all(axis=1), 20)
            passing = (
                (y[..., 1] > limit).reshape(20, 10, 8).argmax(axis=1)
            )  # the first with the errors of each interval
            return np.take_along_axis(y.reshape(20, 10, 8, 2), passing[:, None, :, None], axis=1)[:, 0]
        y = bursts(rng, 8, strength if kind == "errors" else 1.0)
        if kind == "contaminants":
            error = np.sqrt(variance[..., 2] + 0.1**2)
            y[..., 1] += strength * error * (rng.uniform(size=error.shape) < 0.05)
        elif kind == "trend":
            energy = y[..., 0] - y[..., 0].mean()
            y[..., 1] += strength * (energy**2 - (energy**2).mean())
        elif kind == "group":
            y[3, :, 1] += strength
        return y

    strengths = {"contaminants": 5.0, "cut": 40, "errors": 4.0, "trend": 1.5, "group": 3.5, "whole": 75}
    return System(model, data, "observed", truth, strengths, planted)


def afterglows() -> System:
    """20 afterglows of some ten groups of channels, without background."""
    from hbm_jax.spectra import SpectrumStack, group, noticed

    population = hbm.data.AfterglowPopulation(
        redshift=(0.5, 3.0), log10_flux=(-11.3, 0.3), exposure=800.0, min_counts=60, background=1e-9
    )
    drawn = population.draw(20, seed=5)
    spectra = [dataclasses.replace(s, background=None) for s in drawn.spectra]
    masks = [noticed(s, (0.3, 10.0)) for s in spectra]
    grouped = [group(s, "min_counts", 15, noticed=m) for s, m in zip(spectra, masks, strict=True)]
    stack = SpectrumStack.of(grouped, masks)
    data = hbm.data.Afterglows.from_spectra(stack, z=drawn.columns["z"], nh_mw=drawn.columns["nh_mw"])
    truth = {
        "photon_index_mean": 2.0, "photon_index_std": 0.15, "log10_flux_mean": -11.3, "log10_flux_std": 0.3,
        "log10_nh_mean": -0.3, "log10_nh_std": 0.5,
    }  # fmt: skip
    used = np.asarray(stack.used)
    place = np.arange(used.shape[1]) / np.maximum(used.sum(axis=1, keepdims=True) - 1, 1)  # in energy, from 0 to 1
    model = hbm.models.Afterglow()
    draw = program_draws(model, data, "counts", truth)
    draw_expected = program_draws(model, data, "counts", truth, expected=True)

    def planted(rng, kind, strength):
        if kind == "whole":  # sources with fewer counts are lost
            many = draw(rng, NUM_SOURCES)
            detected = (many * used).sum(axis=-1) >= strength
            return np.take_along_axis(many, detected.argmax(axis=0)[None, :, None], axis=0)[0] * used
        expected = np.maximum(draw_expected(rng, 1)[0], 1e-3)
        y = rng.poisson(expected).astype(float)
        if kind == "contaminants":
            y += np.round(strength * np.sqrt(np.maximum(y, 1.0)) * (rng.uniform(size=y.shape) < 0.05))
        elif kind == "cut":  # groups with fewer counts are not used
            log_p = poisson.logpmf(strength + np.arange(500)[:, None, None], expected)
            share = np.exp(log_p - log_p.max(axis=0)).cumsum(axis=0)
            y = strength + (share < rng.uniform(size=y.shape) * share[-1]).sum(axis=0).astype(float)
        elif kind == "errors":  # variances larger than those of Poisson counts by this factor squared
            y = np.round(np.maximum(0.0, y + np.sqrt((strength**2 - 1.0) * y) * rng.normal(size=y.shape)))
        elif kind == "trend":  # a bump in energy
            y += rng.poisson(strength * y * ((place > 0.4) & (place < 0.7)))
        elif kind == "group":  # a source with more counts at high energies
            y[2] += rng.poisson(strength * y[2] * (place[2] > 0.5))
        return np.where(used, y, 0.0)

    strengths = {"contaminants": 20.0, "cut": 20, "errors": 3.0, "trend": 0.8, "group": 12.0, "whole": 120}
    options = {"num_warmup": 300, "num_samples": 200, "max_steps": 64}
    with jax.enable_x64(True):
        bound = model.prepare(data, tolerance=FOLD_TOLERANCE)
    return System(model, data, "counts", truth, strengths, planted, options, bound=bound)


def program_draws(model: Any, design: Any, site: str, truth: dict, expected: bool = False) -> Callable:
    """Return a function (rng, num) -> values that the program draws at the true parameters, (num, ...).

    With ``expected``, the means of the values are returned, given the latents of the objects.
    """
    model = dataclasses.replace(model, priors=dict(model.priors) | truth)
    if type(model).__name__ == "Golenetskii":
        model = dataclasses.replace(model, latents="sampled")
    bound = model.bind(design)

    def draw(key):
        found = handlers.trace(handlers.seed(model, key)).get_trace(bound, observed=False)[site]
        return getattr(found["fn"], "base_dist", found["fn"]).mean if expected else found["value"]

    run = jax.jit(jax.vmap(draw))

    def drawn(rng, num):
        with jax.enable_x64(True):
            return np.asarray(run(jax.random.split(jax.random.key(int(rng.integers(2**31))), num)))

    return drawn


SYSTEMS = {
    "relation": relation, "normal": normal, "supernovae": supernovae, "golenetskii": golenetskii,
    "afterglows": afterglows,
}  # fmt: skip
