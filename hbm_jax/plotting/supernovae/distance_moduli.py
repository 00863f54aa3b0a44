"""Figures of distance-level samples: the Hubble diagram, and residuals against all that is known of the objects."""

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
CHUNK = 50  # cosmologies evaluated side by side
BANDS = (0.025, 0.16, 0.5, 0.84, 0.975)
MIN_PER_BIN = 5  # fewer objects give no useful mean
NUM_BINS = 8
MANY = 100  # objects from which on means in bins are drawn
MARKERS = ("o", "s", "^", "D", "v", "P")
NAMED = 6  # surveys with a colour and a name of their own; the others are grey


def modulus_draws(fit: Fit, data: DistanceModuli, num_draws: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Moduli of objects, and offsets, for posterior draws.

    Parameters
    ----------
    fit : Fit
        Of `hbm_jax.models.HubbleDiagram`, with its program and data.
    data : DistanceModuli
        N objects: those of the fit, or others.
    num_draws : int
        Posterior draws used, spread evenly over all of them.

    Returns
    -------
    array (draw, N), array (draw,)
        [mag] Moduli of the model's ``distmod``, and M0 drawn from its exact conditional.
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
    """Hubble diagram of a distance-level sample with the posterior's band, and residuals.

    Parameters
    ----------
    fit : Fit
        Of `hbm_jax.models.HubbleDiagram`, with its program and data.
    num_draws : int
        Posterior draws behind the band.

    Returns
    -------
    matplotlib.figure.Figure
        Above, the modulus of every object by survey, the posterior median of M0 taken out; calibrators, which have no
        place in a diagram against redshift, are left out. Below, the same less the posterior median. Grey: the
        posterior's 68 and 95 % band of modulus and M0 together, about the median M0. Errors are the roots of the
        covariance's diagonal: they are correlated, so that points may lie to one side together.

    Raises
    ------
    ValueError
        If the fit is not one of `HubbleDiagram` or was loaded without its program and data.

    Examples
    --------
    >>> distance_diagram(fit).savefig("hubble.pdf")  # doctest: +SKIP
    """
    program_of(fit, HubbleDiagram, DistanceModuli, "distance_diagram")
    data: Any = fit.data
    flow = ~data.is_calibrator
    shown = data.subset(flow)
    z = np.geomspace(shown.z_cmb.min(), shown.z_cmb.max(), NUM_GRID)
    columns = {"z_cmb": z, "mu": np.zeros(NUM_GRID), "sigma": np.ones(NUM_GRID)}
    curve, offset = modulus_draws(fit, DistanceModuli.from_columns(columns), num_draws)
    middle = float(np.median(offset))
    bands = np.quantile(curve + (offset - middle)[:, None], BANDS, axis=0)
    own, _ = modulus_draws(fit, shown, num_draws)
    residual = shown.mu - np.median(own + offset[:, None], axis=0)
    mu = residual + np.interp(np.log(shown.z_cmb), np.log(z), bands[2])
    error = np.sqrt(shown.sigma**2 + _scatter(fit) ** 2)
    with house_style():
        figure = Figure(figsize=(6.4, 6.2), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1.0))
        for here, text, colour, marker in _surveys(shown):
            style: dict[str, Any] = {"fmt": marker, "color": colour, "markeredgewidth": 0, "zorder": 2}
            few = len(shown) < MANY
            style |= {"markersize": 4.0 if few else 2.6, "elinewidth": 0.8 if few else 0.5}
            upper.errorbar(shown.z_cmb[here], mu[here], error[here], label=text, alpha=0.9 if few else 0.6, **style)
            lower.errorbar(shown.z_cmb[here], residual[here], error[here], alpha=0.9 if few else 0.3, **style)
        for axes, centre in ((upper, 0.0), (lower, bands[2])):
            axes.fill_between(z, bands[0] - centre, bands[4] - centre, color=BAND_95, lw=0, label="95 %", zorder=1)
            axes.fill_between(z, bands[1] - centre, bands[3] - centre, color=BAND_68, lw=0, label="68 %", zorder=1.1)
            axes.plot(z, bands[2] - centre, color=BLACK, lw=1.0, zorder=3, label="posterior median")
        if len(shown) >= MANY:
            where = binned_means(np.log(shown.z_cmb), residual, error)
            lower.errorbar(np.exp(where[0]), *where[1:], **_MEANS)
        upper.set_ylabel(f"distance modulus {label('mu', 'mag')}")
        lower.set_ylabel(r"$\mu - \mu_\mathrm{median}$ [mag]")
        lower.set_xlabel(r"redshift $z_\mathrm{CMB}$")
        lower.set_xscale("log")
        reach = 1.1 * np.quantile(np.abs(residual) + error, 0.99)
        lower.set_ylim(-reach, reach)
        _plain_decades(lower)
        upper.legend(loc="upper left", ncols=2)
        figure.align_ylabels()
    return figure


_MEANS: dict[str, Any] = {
    "fmt": "o", "color": BLACK, "markersize": 3.6, "markerfacecolor": "white", "elinewidth": 1.1, "zorder": 5,
    "label": "weighted mean in bins",
}  # fmt: skip


def distance_residuals(fit: Fit, num_draws: int = 200) -> Figure:
    """Hubble residuals against redshift, survey and every covariate of a distance-level sample.

    Parameters
    ----------
    fit : Fit
        Of `hbm_jax.models.HubbleDiagram`, with its program and data.
    num_draws : int
        Posterior draws behind the median.

    Returns
    -------
    matplotlib.figure.Figure
        A panel each: modulus less the posterior median of modulus and M0, and weighted means in bins that hold equal
        numbers of objects, or of each survey. Weights are those of the covariance's diagonal alone.

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
    own, offset = modulus_draws(fit, data, num_draws)
    residual = data.mu - np.median(own + offset[:, None], axis=0)
    error = np.sqrt(data.sigma**2 + _scatter(fit) ** 2)
    panels = {r"$\log_{10}\,z_\mathrm{CMB}$": np.log10(data.z_cmb)}
    panels |= {label(key): value for key, value in data.covariates.items() if np.isfinite(value).sum() > 1}
    surveys = list(data.survey_counts) if len(data.survey_counts) > 1 else []
    num = len(panels) + bool(surveys)
    columns = min(num, 3)
    with house_style():
        figure = Figure(figsize=(0.6 + 2.6 * columns, 0.5 + 2.3 * -(-num // columns)), layout="constrained")
        axes = np.atleast_1d(figure.subplots(-(-num // columns), columns, sharey=True)).ravel()
        points: dict[str, Any] = {"fmt": "o", "color": GREY, "markersize": 3.0, "markeredgewidth": 0, "elinewidth": 0.6}
        for axis, (text, values) in zip(axes, panels.items(), strict=False):
            good = np.isfinite(values)
            if good.sum() < MANY:
                axis.errorbar(values[good], residual[good], error[good], **points)
            else:  # error bars would hide everything
                axis.plot(values[good], residual[good], ".", color=GREY, markersize=2.0, markeredgewidth=0, alpha=0.5)
                axis.errorbar(*binned_means(values[good], residual[good], error[good]), **_MEANS)
            axis.set_xlabel(text)
        if surveys:
            axis = axes[len(panels)]
            for place, survey in enumerate(surveys):
                here = np.array([one == survey for one in data.survey])
                weight = 1.0 / error[here] ** 2
                mean = float(np.sum(weight * residual[here]) / weight.sum())
                axis.errorbar(place, mean, weight.sum() ** -0.5, **_MEANS)
            axis.set_xticks(range(len(surveys)), surveys, rotation=90, fontsize=7.0)
            axis.tick_params(axis="x", which="minor", bottom=False, top=False)
        for axis in axes:
            axis.axhline(0.0, color=BLACK, lw=0.6, zorder=4)
        for axis in axes[num:]:
            axis.set_visible(False)
        few = len(residual) < MANY
        reach = 1.1 * np.quantile(np.abs(residual) + (error if few else 0.0), 0.98)
        axes[0].set_ylim(-reach, reach)
        figure.supylabel(r"$\mu - \mu_\mathrm{median}$ [mag]")
    return figure


def _scatter(fit: Fit) -> float:
    return float(np.median(parameter(fit, "sigma_int"))) if "sigma_int" in fit.posterior else 0.0


def _surveys(data: DistanceModuli):
    """Mask, name, colour and marker of each survey, those with few objects together."""
    names = np.array(data.survey)
    counts = data.survey_counts
    alone = list(counts)[:NAMED] if len(counts) > NAMED else list(counts)
    for index, name in enumerate(alone):
        text = f"{name} ({counts[name]})" if name != "unknown" else f"{len(data)} objects"
        yield names == name, text, SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)]
    rest = ~np.isin(names, alone)
    if rest.any():
        yield rest, f"{len(counts) - len(alone)} others ({int(rest.sum())})", GREY, "o"


def binned_means(x: np.ndarray, residual: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Place, inverse-variance weighted mean and its error in bins of equal numbers of objects."""
    edges = np.unique(np.quantile(x, np.linspace(0.0, 1.0, NUM_BINS + 1)))
    index = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, max(len(edges) - 2, 0))
    rows = []
    for here in (index == i for i in range(max(len(edges) - 1, 1))):
        if here.sum() >= MIN_PER_BIN:
            weight = 1.0 / error[here] ** 2
            total = weight.sum()
            rows.append((np.sum(weight * x[here]) / total, np.sum(weight * residual[here]) / total, total**-0.5))
    centres, means, errors = np.array(rows).T if rows else np.zeros((3, 0))
    return centres, means, errors


def _plain_decades(axes) -> None:
    """Write redshifts as 0.01, 0.02, 0.05, 0.1 and so on."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


FIGURES = {
    "hubble_diagram": (
        "Hubble diagram. Above, the distance modulus of every object with M0 at its posterior median, and the model's "
        "posterior (median, 68 and 95 % bands). Below, the same less the posterior median. Errors are the roots of "
        "the covariance's diagonal and are correlated.",
        distance_diagram,
    ),
    "hubble_residuals": (
        "Hubble residuals against what is known of the objects, with weighted means.",
        distance_residuals,
    ),
}
CONTOUR = (
    "Expansion history: contours hold 68 and 95 % of the posterior; dashed, the prior, or its edges where it is flat.",
    expansion_contour,
)
EQUATION_OF_STATE = (
    "Equation of state of dark energy: median, 68 and 95 % bands; dashed, the 95 % band of the prior.",
    equation_of_state,
)


def figures(fit: Fit):
    """Figures of a fit of a Hubble diagram: those that its cosmology has."""
    model: Any = model_of(fit)
    found: dict[str, Any] = dict(FIGURES)
    if any(set(pair) <= set(map(str, fit.posterior)) for pair in PLANES):
        found["expansion_contour"] = CONTOUR
    if has_equation_of_state(model):
        found["equation_of_state"] = EQUATION_OF_STATE
    return found
