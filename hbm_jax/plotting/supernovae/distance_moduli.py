"""Figures of samples of distance moduli: the Hubble diagram, and residuals against covariates."""

from typing import Any

import jax
import numpy as np

from hbm_jax.data import DistanceModuli
from hbm_jax.inference import Fit, latents
from hbm_jax.inference.results import model_of
from hbm_jax.models import HubbleDiagram, expansion
from hbm_jax.plotting.draws import parameter, program_of, spread
from hbm_jax.plotting.labels import label
from hbm_jax.plotting.style import BAND_68, BAND_95, BLACK, GREY, SERIES, Figure, house_style
from hbm_jax.plotting.supernovae.dark_energy import PLANES, equation_of_state, expansion_contour, has_equation_of_state

NUM_GRID = 120  # redshifts at which the band is evaluated
CHUNK = 50  # cosmologies evaluated in one batch
BANDS = (0.025, 0.16, 0.5, 0.84, 0.975)
MIN_PER_BIN = 5  # fewer objects give no useful mean
NUM_BINS = 8
MIN_BINNED = 100  # objects from which means in bins are drawn
MARKERS = ("o", "s", "^", "D", "v", "P")
MAX_SURVEYS = 6  # surveys drawn separately; the others are grey


def modulus_draws(fit: Fit, data: DistanceModuli, num_draws: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Return distance moduli of objects, and offsets M0, for posterior draws.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.HubbleDiagram`, with its program and data.
    data : DistanceModuli
        N objects: those of the fit, or others.
    num_draws : int
        Number of evenly spaced posterior draws used.

    Returns
    -------
    array (draw, N), array (draw,)
        [mag] Moduli from ``model.distmod``, and M0 drawn from its exact conditional distribution.
    """
    model = program_of(fit, HubbleDiagram, DistanceModuli, "modulus_draws")
    values = {name: parameter(fit, name) for name in ("H0", *expansion.named(model.cosmology).parameters)}
    total = fit.posterior.sizes["chain"] * fit.posterior.sizes["draw"]
    rows = spread(total, num_draws)
    values = {name: np.broadcast_to(v, (total,))[rows] for name, v in values.items()}
    if "M0" in model.integrated:
        offset = latents(fit, num_draws=num_draws)["M0"].to_numpy()
    else:
        offset = np.full(len(rows), float(model.all_priors["M0"]))
    with jax.enable_x64(True):

        @jax.jit
        def moduli(draws):
            def modulus(draw):
                return model.distmod(data, expansion.cosmology_from(model.cosmology, draw))

            return jax.lax.map(modulus, draws, batch_size=CHUNK)

        return np.asarray(moduli(values)), offset


def distance_diagram(fit: Fit, num_draws: int = 200) -> Figure:
    """Draw the Hubble diagram of a sample of distance moduli and its residuals, with posterior bands.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.HubbleDiagram`, with its program and data.
    num_draws : int
        Number of posterior draws for the bands.

    Returns
    -------
    matplotlib.figure.Figure
        Top: modulus of every object by survey, with the posterior median of M0 subtracted; calibrators, whose distances
        do not come from redshifts, are omitted. Bottom: residuals from the posterior median. Grey: 68 and 95 % bands
        of the posterior of modulus plus M0, relative to the median M0. Errors are square roots of the diagonal of the
        covariance; they are correlated, so residuals may be offset together.

    Raises
    ------
    ValueError
        If the fit is of another model, or was loaded without its program and data.

    Examples
    --------
    >>> distance_diagram(fit).savefig("hubble.pdf")  # doctest: +SKIP
    """
    program_of(fit, HubbleDiagram, DistanceModuli, "distance_diagram")
    data: Any = fit.data
    in_hubble_flow = ~data.is_calibrator
    shown = data.subset(in_hubble_flow)
    z = np.geomspace(shown.z_cmb.min(), shown.z_cmb.max(), NUM_GRID)
    columns = {"z_cmb": z, "mu": np.zeros(NUM_GRID), "sigma": np.ones(NUM_GRID)}
    curve, offset = modulus_draws(fit, DistanceModuli.from_columns(columns), num_draws)
    middle = float(np.median(offset))
    bands = np.quantile(curve + (offset - middle)[:, None], BANDS, axis=0)
    moduli, _ = modulus_draws(fit, shown, num_draws)
    residual = shown.mu - np.median(moduli + offset[:, None], axis=0)
    mu = residual + np.interp(np.log(shown.z_cmb), np.log(z), bands[2])
    error = np.sqrt(shown.sigma**2 + _scatter(fit) ** 2)
    with house_style():
        figure = Figure(figsize=(6.4, 6.2), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1.0))
        for mask, text, colour, marker in _survey_styles(shown):
            style: dict[str, Any] = {"fmt": marker, "color": colour, "markeredgewidth": 0, "zorder": 2}
            few = len(shown) < MIN_BINNED
            style |= {"markersize": 4.0 if few else 2.6, "elinewidth": 0.8 if few else 0.5}
            upper.errorbar(shown.z_cmb[mask], mu[mask], error[mask], label=text, alpha=0.9 if few else 0.6, **style)
            lower.errorbar(shown.z_cmb[mask], residual[mask], error[mask], alpha=0.9 if few else 0.3, **style)
        for axes, centre in ((upper, 0.0), (lower, bands[2])):
            axes.fill_between(z, bands[0] - centre, bands[4] - centre, color=BAND_95, lw=0, label="95 %", zorder=1)
            axes.fill_between(z, bands[1] - centre, bands[3] - centre, color=BAND_68, lw=0, label="68 %", zorder=1.1)
            axes.plot(z, bands[2] - centre, color=BLACK, lw=1.0, zorder=3, label="posterior median")
        if len(shown) >= MIN_BINNED:
            means = binned_means(np.log(shown.z_cmb), residual, error)
            lower.errorbar(np.exp(means[0]), *means[1:], **_MEANS)
        upper.set_ylabel(f"distance modulus {label('mu', 'mag')}")
        lower.set_ylabel(r"$\mu - \mu_\mathrm{median}$ [mag]")
        lower.set_xlabel(r"redshift $z_\mathrm{CMB}$")
        lower.set_xscale("log")
        limit = 1.1 * np.quantile(np.abs(residual) + error, 0.99)
        lower.set_ylim(-limit, limit)
        _plain_decades(lower)
        upper.legend(loc="upper left", ncols=2)
        figure.align_ylabels()
    return figure


_MEANS: dict[str, Any] = {
    "fmt": "o", "color": BLACK, "markersize": 3.6, "markerfacecolor": "white", "elinewidth": 1.1, "zorder": 5,
    "label": "weighted mean in bins",
}  # fmt: skip


def distance_residuals(fit: Fit, num_draws: int = 200) -> Figure:
    """Draw Hubble residuals against redshift, every covariate and survey of a sample of distance moduli.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.HubbleDiagram`, with its program and data.
    num_draws : int
        Number of posterior draws for the median.

    Returns
    -------
    matplotlib.figure.Figure
        One panel per quantity: modulus minus the posterior median of modulus plus M0, with weighted means in bins of
        equal numbers of objects, or of each survey. Weights use only the diagonal of the covariance.

    Raises
    ------
    ValueError
        As `distance_diagram`.

    Examples
    --------
    >>> distance_residuals(fit).savefig("residuals.pdf")  # doctest: +SKIP
    """
    program_of(fit, HubbleDiagram, DistanceModuli, "distance_residuals")
    data: Any = fit.data
    moduli, offset = modulus_draws(fit, data, num_draws)
    residual = data.mu - np.median(moduli + offset[:, None], axis=0)
    error = np.sqrt(data.sigma**2 + _scatter(fit) ** 2)
    panels = {r"$\log_{10}\,z_\mathrm{CMB}$": np.log10(data.z_cmb)}
    panels |= {label(key): value for key, value in data.covariates.items() if np.isfinite(value).sum() > 1}
    surveys = list(data.survey_counts) if len(data.survey_counts) > 1 else []
    num = len(panels) + bool(surveys)
    num_columns = min(num, 3)
    with house_style():
        figure = Figure(figsize=(0.6 + 2.6 * num_columns, 0.5 + 2.3 * -(-num // num_columns)), layout="constrained")
        axes = np.atleast_1d(figure.subplots(-(-num // num_columns), num_columns, sharey=True)).ravel()
        points: dict[str, Any] = {"fmt": "o", "color": GREY, "markersize": 3.0, "markeredgewidth": 0, "elinewidth": 0.6}
        for axis, (text, values) in zip(axes, panels.items(), strict=False):
            finite = np.isfinite(values)
            if finite.sum() < MIN_BINNED:
                axis.errorbar(values[finite], residual[finite], error[finite], **points)
            else:  # error bars would hide everything
                axis.plot(
                    values[finite], residual[finite], ".", color=GREY, markersize=2.0, markeredgewidth=0, alpha=0.5
                )
                axis.errorbar(*binned_means(values[finite], residual[finite], error[finite]), **_MEANS)
            axis.set_xlabel(text)
        if surveys:
            axis = axes[len(panels)]
            for index, survey in enumerate(surveys):
                mask = np.array([name == survey for name in data.survey])
                weights = 1.0 / error[mask] ** 2
                mean = float(np.sum(weights * residual[mask]) / weights.sum())
                axis.errorbar(index, mean, weights.sum() ** -0.5, **_MEANS)
            axis.set_xticks(range(len(surveys)), surveys, rotation=90, fontsize=7.0)
            axis.tick_params(axis="x", which="minor", bottom=False, top=False)
        for axis in axes:
            axis.axhline(0.0, color=BLACK, lw=0.6, zorder=4)
        for axis in axes[num:]:
            axis.set_visible(False)
        is_small = len(residual) < MIN_BINNED
        limit = 1.1 * np.quantile(np.abs(residual) + (error if is_small else 0.0), 0.98)
        axes[0].set_ylim(-limit, limit)
        figure.supylabel(r"$\mu - \mu_\mathrm{median}$ [mag]")
    return figure


def _scatter(fit: Fit) -> float:
    """Return the posterior median of the intrinsic scatter [mag]; 0 if it is not a parameter."""
    return float(np.median(parameter(fit, "sigma_int"))) if "sigma_int" in fit.posterior else 0.0


def _survey_styles(data: DistanceModuli):
    """Yield mask, name, colour and marker of each survey; surveys beyond the first six are one group."""
    names = np.array(data.survey)
    counts = data.survey_counts
    shown = list(counts)[:MAX_SURVEYS] if len(counts) > MAX_SURVEYS else list(counts)
    for index, name in enumerate(shown):
        text = f"{name} ({counts[name]})" if name != "unknown" else f"{len(data)} objects"
        yield names == name, text, SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)]
    others = ~np.isin(names, shown)
    if others.any():
        yield others, f"{len(counts) - len(shown)} others ({int(others.sum())})", GREY, "o"


def binned_means(x: np.ndarray, residual: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return centre, inverse-variance weighted mean and its error in bins of equal numbers of objects."""
    edges = np.unique(np.quantile(x, np.linspace(0.0, 1.0, NUM_BINS + 1)))
    index = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, max(len(edges) - 2, 0))
    rows = []
    for mask in (index == i for i in range(max(len(edges) - 1, 1))):
        if mask.sum() >= MIN_PER_BIN:
            weights = 1.0 / error[mask] ** 2
            total = weights.sum()
            rows.append((np.sum(weights * x[mask]) / total, np.sum(weights * residual[mask]) / total, total**-0.5))
    centres, means, errors = np.array(rows).T if rows else np.zeros((3, 0))
    return centres, means, errors


def _plain_decades(axes) -> None:
    """Label redshifts as 0.01, 0.02, 0.05, 0.1 and so on."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


FIGURES = {
    "hubble_diagram": (
        "Hubble diagram. Top: distance modulus of every object with M0 at its posterior median, and the posterior of "
        "the model (median, 68 and 95 % bands). Bottom: residuals from the posterior median. Errors are square roots "
        "of the diagonal of the covariance and are correlated.",
        distance_diagram,
    ),
    "hubble_residuals": (
        "Hubble residuals against redshift, covariates and survey, with weighted means.",
        distance_residuals,
    ),
}
CONTOUR = (
    "Expansion history: contours contain 68 and 95 % of the posterior; dashed, the prior, or its bounds if uniform.",
    expansion_contour,
)
EQUATION_OF_STATE = (
    "Equation of state of dark energy: median, 68 and 95 % bands; dashed, the 95 % band of the prior.",
    equation_of_state,
)


def figures(fit: Fit):
    """Return the figures of a fit of a Hubble diagram, by its cosmology."""
    model: Any = model_of(fit)
    chosen: dict[str, Any] = dict(FIGURES)
    if any(set(pair) <= set(map(str, fit.posterior)) for pair in PLANES):
        chosen["expansion_contour"] = CONTOUR
    if has_equation_of_state(model):
        chosen["equation_of_state"] = EQUATION_OF_STATE
    return chosen
