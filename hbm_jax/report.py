"""Report of a fit as one self-contained HTML file."""

import base64
import gc
import math
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hbm_jax.files import atomic_write
from hbm_jax.inference import Fit
from hbm_jax.inference.blinding.blinding import WORD
from hbm_jax.inference.exports import tabular
from hbm_jax.inference.verdict import MAX_R_HAT, MIN_BFMI, MIN_ESS
from hbm_jax.notation import escaped, quote
from hbm_jax.registry import entry_of_fit

MAX_ELEMENT = 12  # letters of an element, such as a group's name, beyond which its symbol leaves it out
MAX_PARAMETERS = 12  # in a corner or trace plot; more would be illegible
# Figures have more pixels than CSS pixels, for print and high-density screens. A palette of 256 colours reduces
# those of JLA from 2.9 MB to 0.9 MB without visible difference.
SHOWN_DPI, DPI, COLOURS = 120, 200, 256

Figures = Mapping[str, tuple[str, Callable[[Fit], Any]]]


def figures_for(fit: Fit) -> dict[str, tuple[str, Callable[[Fit], Any]]]:
    """Return the figures for the report of a fit.

    Parameters
    ----------
    fit : Fit
        Fit of any model.

    Returns
    -------
    dict of str to (caption, function)
        Each function takes the fit and returns a matplotlib Figure. Residuals come first if ``fit.model_check`` was
        computed and does not pass, then figures specific to a model of hbm_jax, a corner plot and a trace plot. For
        more than twelve parameters, the corner plot shows the first twelve of the model, and the trace plot the twelve
        with the largest R-hat.
    """
    from hbm_jax import plotting
    from hbm_jax.plotting.draws import named_draws

    figures: dict[str, tuple[str, Callable[[Fit], Any]]] = {}
    check = fit.verdict.model
    if check is not None and check.passed is False and check.worst is not None:
        figures["model_residuals"] = (
            "Residuals in which the data look least like draws from the model. Bands contain the means, and the "
            "numbers by size, of 68 and 95 % of replicated data.",
            lambda _: plotting.model_residuals(check),
        )
    entry = entry_of_fit(fit)
    figures |= entry.figures_of(fit) if entry is not None else {}
    names = list(named_draws(fit))
    if names:
        restricted = len(names) > MAX_PARAMETERS
        first, worst_mixed = names[:MAX_PARAMETERS], _worst_mixed(fit, names)[:MAX_PARAMETERS] if restricted else names
        figures["corner"] = (
            "Marginal posteriors of the parameters and of their pairs. Contours contain 68 and 95 %; titles give the "
            "median and the 68 % interval."
            + (f" The first {len(first)} of {len(names)} parameters." if restricted else ""),
            lambda fit: plotting.corner(fit, first),
        )
        figures["trace"] = (
            "Left: draws of every chain in order. Right: ranks of each chain's draws among all draws; if the chains "
            "agree, the ranks stay mostly within the grey band."
            + (f" The {len(worst_mixed)} of {len(names)} parameters that mix worst." if restricted else ""),
            lambda fit: plotting.trace(fit, worst_mixed),
        )
    return figures


def write_report(
    fit: Fit,
    path: str | os.PathLike,
    figures: Figures | None = None,
    *,
    posterior: str | os.PathLike | None = None,
    configuration: str | os.PathLike | None = None,
    figure_folder: str | os.PathLike | None = None,
) -> Path:
    """Write the report of a fit as one self-contained HTML file. If writing fails, no partial file is left.

    The report shows the check of the model if ``fit.model_check`` has been computed.

    Parameters
    ----------
    fit : Fit
        Fit of any model.
    path : path
        File to write; ``.html`` is appended if there is no suffix. An existing file is replaced.
    figures : mapping of str to (caption, function), optional
        Each function takes the fit and returns a matplotlib Figure; default `figures_for`. If a function raises an
        exception, the report shows its message in place of the figure.
    posterior : path, optional
        File of the draws, for the instructions on loading them.
    configuration : path, optional
        TOML file with which ``hbm-jax fit`` repeats the run; its text is included.
    figure_folder : path, optional
        Existing folder in which each figure is also saved as a PNG file, in full colour.

    Returns
    -------
    pathlib.Path
        The written file.

    Raises
    ------
    ModuleNotFoundError
        If packages of ``hbm_jax[plots]`` are not installed.

    Examples
    --------
    >>> write_report(fit, "report.html")  # doctest: +SKIP
    """
    template = _template()
    path = Path(path)
    path = path if path.suffix else path.with_suffix(".html")
    figures = figures_for(fit) if figures is None else figures
    with _few_objects_collected():
        drawn = [_draw(fit, name, *entry, figure_folder) for name, entry in figures.items()]
    rows = _rows(fit)
    units = any(row["unit"] for row in rows)
    configuration = Path(configuration) if configuration is not None else None
    text = template.render(
        title=fit.run.get("description", "Posterior"),
        program=fit.run.get("program", ""),
        data=fit.run.get("data", ""),
        verdict=fit.verdict,
        facts=_diagnostics(fit),
        limits={"r_hat": MAX_R_HAT, "ess": f"{MIN_ESS:.0f}", "bfmi": MIN_BFMI},
        rows=rows,
        units=units,
        symbols=any(row["symbol"] for row in rows),
        latex=tabular(_summary(fit), _symbols(fit)),
        left_out=_variables_not_in_table(fit),
        figures=drawn,
        priors=fit.run.get("config", {}).get("priors", {}),
        methods=methods_paragraph(fit),
        bibliography=bibliography(fit),
        sections=_provenance(fit),
        posterior=str(posterior) if posterior is not None else "posterior.nc",
        stored=posterior is not None,
        configuration=configuration,
        command=f"hbm-jax fit --config {shlex.quote(str(configuration))} --out again",
        toml=configuration.read_text(encoding="utf-8") if configuration else "",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


@contextmanager
def _few_objects_collected() -> Iterator[None]:
    """Exempt the objects that exist from garbage collection within the block.

    JAX creates about a million objects. While matplotlib creates and frees its own, Python collects garbage dozens of
    times, and visiting all objects each time took a sixth of the time of a report.
    """
    frozen_before = gc.get_freeze_count() > 0  # by the caller, which has to unfreeze them itself
    gc.freeze()
    try:
        yield
    finally:
        if not frozen_before:
            gc.unfreeze()


def _template() -> Any:
    """Return the template of the page; raise ModuleNotFoundError that names the extra if a package is missing."""
    from hbm_jax import plotting  # noqa: F401 - raises an error that names the extra if matplotlib is missing

    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "write_report: expected the package jinja2; found that it is not installed. "
            "Install hbm_jax[plots]: pip install 'hbm_jax[plots]'.",
            name=error.name,
        ) from error
    options: dict[str, Any] = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=PackageLoader("hbm_jax"), undefined=StrictUndefined, **options)
    return environment.get_template("report.html")


def _worst_mixed(fit: Fit, names: list[str]) -> list[str]:
    """Return names in order of decreasing R-hat; those with undefined R-hat come first."""
    r_hat = fit.verdict.table["r_hat"].reindex(names).fillna(math.inf)
    return list(r_hat.sort_values(ascending=False, kind="stable").index)


def _draw(
    fit: Fit, name: str, caption: str, function: Callable[[Fit], Any], folder: str | os.PathLike | None
) -> dict[str, Any]:
    """Draw a figure; return its caption and encoded image, or the message of the exception it raised."""
    from hbm_jax.plotting.style import in_all_colours, in_few_colours, to_pixels

    drawn = {"name": name, "caption": caption, "picture": "", "width": 0, "height": 0, "error": ""}
    try:
        figure = function(fit)
        if fit.blinding is not None:
            figure.text(0.995, 0.995, WORD, ha="right", va="top", fontsize=8.0)
        pixels = to_pixels(figure, DPI)
        if folder is not None:
            (Path(folder) / f"{name}.png").write_bytes(in_all_colours(pixels))
        picture = base64.b64encode(in_few_colours(pixels, COLOURS)).decode("ascii")
        width, height = (round(float(inches) * SHOWN_DPI) for inches in figure.get_size_inches())
    except Exception as error:  # a failing figure must not prevent verdict and table
        return drawn | {"error": f"{type(error).__name__}: {error}"}
    return drawn | {"picture": picture, "width": width, "height": height}


def _diagnostics(fit: Fit) -> list[dict[str, Any]]:
    """List the diagnostics of the verdict: value, parameter, and whether the value is within its limit."""
    verdict = fit.verdict
    (r_name, r_hat), (e_name, ess) = verdict.worst_r_hat, verdict.smallest_ess
    seconds = sum(fit.timing.values())
    rows = [
        ("draws", str(verdict.num_draws), f"{fit.posterior.sizes['chain']} chains", True),
        ("divergent", str(verdict.num_divergences), "", verdict.num_divergences == 0),
        ("largest R-hat", _number(r_hat, ".3f"), r_name, not r_hat >= MAX_R_HAT),
        ("smallest ESS", _number(ess, ".0f"), e_name, not ess < MIN_ESS),
        ("smallest E-BFMI", _number(verdict.min_bfmi, ".2f"), "", not verdict.min_bfmi <= MIN_BFMI),
    ]
    if seconds:
        rows.append(("time", f"{seconds:.1f} s" if seconds < 600 else f"{seconds / 60:.0f} min", "", True))
    return [dict(zip(("name", "value", "detail", "within_limit"), row, strict=True)) for row in rows]


def _rows(fit: Fit) -> list[dict[str, Any]]:
    """Format the rows of the summary in the order of the model, with digits that match the errors."""
    rows = []
    for label, row in _summary(fit).iterrows():
        quoted = quote(row["median"], row["lower_68"], row["upper_68"])
        rows.append(
            {
                "name": str(label),
                "symbol": _outline(fit, str(label)),
                "quoted": quoted,
                "median": quoted.median.replace("-", "−"),
                "power": f"e{quoted.exponent}" if quoted.exponent else "",
                "unit": str(row["unit"]),
                "r_hat": _number(row["r_hat"], ".3f"),
                "ess_bulk": _number(row["ess_bulk"], ".0f"),
                "ess_tail": _number(row["ess_tail"], ".0f"),
                "bad": {
                    "r_hat": row["r_hat"] >= MAX_R_HAT,
                    "ess_bulk": row["ess_bulk"] < MIN_ESS,
                    "ess_tail": row["ess_tail"] < MIN_ESS,
                },
            }
        )
    return rows


def _summary(fit: Fit) -> pd.DataFrame:
    """Return the summary in the order of the model."""
    order = {name: index for index, name in enumerate(fit.run.get("config", {}).get("priors", {}))}
    summary = fit.summary()
    return summary.loc[sorted(summary.index, key=lambda label: order.get(str(label).partition("[")[0], len(order)))]


def _symbols(fit: Fit) -> dict[str, str]:
    """Return the symbols of parameters by name, those of the program before those of the catalogue."""
    from hbm_jax.models.symbols import SYMBOLS

    return SYMBOLS | fit.symbols


def _outline(fit: Fit, name: str) -> dict[str, str] | None:
    """Return the SVG outline of a parameter's symbol as in the figures, in units of 1/16 of the font size."""
    from matplotlib.textpath import TextPath

    from hbm_jax.plotting.draws import label_of
    from hbm_jax.plotting.style import house_style

    base, _, element = name.partition("[")
    if base not in _symbols(fit):
        return None
    name = name if len(element) <= MAX_ELEMENT else base  # the whole name stands beside it
    with house_style():
        outline = TextPath((0.0, 0.0), label_of(fit, name, unit=False), size=16)
    # The corners of polygons along the curves: their exact extents take ten times as long as the outline.
    corners = np.concatenate(outline.to_polygons(closed_only=False))
    (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
    commands = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}  # of SVG, by matplotlib's code of a segment; 79 closes a path
    segments = (
        commands[int(code)] + ("" if code == 79 else " ".join(f"{value:.1f}" for value in vertices))
        for vertices, code in outline.iter_segments(simplify=False)
    )
    return {
        "d": "".join(segments),
        "box": f"{x0 - 0.5:.1f} {-y1 - 0.5:.1f} {x1 - x0 + 1:.1f} {y1 - y0 + 1:.1f}",
        "height": f"{(y1 - y0 + 1) / 16:.3f}em",
        "drop": f"{(y0 - 0.5) / 16:.3f}em",
    }


def _variables_not_in_table(fit: Fit) -> list[str]:
    """Return the variables that are too large for the table."""
    in_table = {str(label).partition("[")[0] for label in fit.summary().index}
    return [str(name) for name in fit.posterior if str(name) not in in_table]


def _number(value: float, spec: str) -> str:
    """Format a number; a dash if it is not finite."""
    return format(value, spec) if np.isfinite(value) else "–"


SAMPLERS = {  # words for the sampler, with its citation, by its name in `fit.run`
    "nuts": r"the No-U-Turn sampler \citep{Hoffman2014}",
    "hmc": r"Hamiltonian Monte Carlo \citep{Duane1987}",
    "walnuts": r"the within-orbit adaptive No-U-Turn sampler \citep{BouRabee2025}",
    "chees": r"Hamiltonian Monte Carlo with adapted trajectory lengths \citep{Hoffman2021}",
    "nutpie": r"the No-U-Turn sampler \citep{Hoffman2014} of nutpie",
    "independent_proposals": "a Metropolis-Hastings sampler with independent proposals",
}
ABSORBED = "bsor|tbabs|phabs"
OTHER_ABUNDANCES = r"abundances'?[=:] ?'(?!wilm')"
PHYSICS = {  # sentences on the physics of a model, by a pattern in its description
    "Golenetskii": r"The relation is that of \citet{Golenetskii1983}.",
    ABSORBED: r"Photoelectric absorption has the cross sections of \citet{Verner1996}.",
}


def methods_paragraph(fit: Fit) -> str:
    r"""Return a paragraph in LaTeX on how the posterior was computed, for the section on methods of a paper.

    Its citations have the keys of `bibliography`. What the priors are and where the data come from is left to the
    authors.

    Examples
    --------
    >>> print(methods_paragraph(fit))  # doctest: +SKIP
    The posterior of the model (Type Ia supernovae, flat wCDM, marginal latents) was sampled with hbm\_jax 0.2.0 ...
    """
    run, verdict = fit.run, fit.verdict
    name = run.get("trajectories") or run.get("sampler") or "nuts"
    name = "independent_proposals" if run.get("independent_proposals") else name
    description = run.get("description", run.get("program", ""))
    version = run.get("versions", {}).get("hbm_jax", "")
    r_hat, ess = verdict.worst_r_hat[1], verdict.smallest_ess[1]
    sentences = [
        rf"The posterior of the model ({escaped(description)}) was sampled with hbm\_jax {version} \citep{{hbm_jax}}, "
        r"which is based on JAX \citep{jax} and NumPyro \citep{Phan2019}, by "
        f"{SAMPLERS.get(name, SAMPLERS['nuts'])}, with {run.get('num_chains')} chains and {verdict.num_draws} draws in "
        "total after the warm-up.",
        r"The rank-normalised $\hat{R}$ and the effective sample size \citep{Vehtari2021}, defined as by ArviZ "
        rf"\citep{{Kumar2019}}, were at most {r_hat:.3f} and at least {ess:.0f} for all parameters, and "
        f"{verdict.num_divergences or 'no'} transitions diverged.",
    ]
    if not verdict.usable:
        sentences.append("These values do not meet the usual criteria of convergence.")
    sentences += [sentence for pattern, sentence in PHYSICS.items() if re.search(pattern, description)]
    if re.search(ABSORBED, description) and not re.search(OTHER_ABUNDANCES, str(run.get("config", ""))):
        sentences.append(r"Abundances are those of \citet{Wilms2000}.")
    return "\n".join(sentences)


def bibliography(fit: Fit) -> str:
    """Return the BibTeX entries of all that `methods_paragraph` cites."""
    text = (Path(__file__).parent / "templates" / "references.bib").read_text(encoding="utf-8")
    entries = {entry.partition("{")[2].partition(",")[0]: entry for entry in re.split(r"\n(?=@)", text.strip())}
    groups = re.findall(r"\\cite[pt]\{([^}]+)\}", methods_paragraph(fit))
    cited = dict.fromkeys(key for group in groups for key in group.split(","))
    version = str(fit.run.get("versions", {}).get("hbm_jax", ""))
    return "\n".join(entries[key] for key in cited).replace("VERSION", version)


def _provenance(fit: Fit) -> dict[str, dict[str, str]]:
    """Return the provenance of the fit by section: options of model and sampler, timing, versions and machine."""
    shown_elsewhere = ("config", "data", "description", "versions", "device", "machine", "finished", "program")
    model = {"program": fit.run.get("program", "")} | fit.run.get("config", {})
    timing = {name: f"{seconds:.2f} s" for name, seconds in fit.timing.items()}
    if timing:
        timing["total"] = f"{sum(fit.timing.values()):.2f} s"
    machine = {name: str(fit.run[name]) for name in ("device", "machine", "finished") if name in fit.run}
    sections = {
        "Model": {name: str(value) for name, value in model.items() if name != "priors"},
        "Sampling": {
            name: str(value).removeprefix(f"{name}: ") for name, value in fit.run.items() if name not in shown_elsewhere
        },
        "Timing": timing,
        "Versions": {name: str(value) for name, value in fit.run.get("versions", {}).items()},
        "Machine": machine,
    }
    return {title: entries for title, entries in sections.items() if entries}
