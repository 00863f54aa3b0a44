"""The report of a fit: one HTML file that needs nothing else, with the verdict first."""

import base64
import dataclasses
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hbm_jax.inference import Fit
from hbm_jax.registry import of_fit

MAX_PARAMETERS = 12  # in one corner plot or trace; more cannot be read

Figures = Mapping[str, tuple[str, Callable[[Fit], Any]]]


def figures_for(fit: Fit) -> dict[str, tuple[str, Callable[[Fit], Any]]]:
    """Figures that suit a fit.

    Parameters
    ----------
    fit : Fit
        Of any model.

    Returns
    -------
    dict of str to (caption, function)
        Each function takes the fit and returns a matplotlib Figure. Those of the fit's own domain come first, where it
        was made with one of hbm_jax's models; the corner plot and the traces every fit gets. A fit of more than twelve
        parameters shows the model's first twelve in the corner plot and the twelve that mix worst as traces.
    """
    from hbm_jax import plotting
    from hbm_jax.plotting.draws import named_draws

    entry = of_fit(fit)
    figures = dict(entry.figures(fit)) if entry is not None else {}
    names = list(named_draws(fit))
    if names:
        some = len(names) > MAX_PARAMETERS
        first, worst = names[:MAX_PARAMETERS], _worst_mixed(fit, names)[:MAX_PARAMETERS] if some else names
        figures["corner"] = (
            "Marginal posteriors of the parameters and of their pairs. Contours hold 68 and 95 %; titles give the "
            "median and the 68 % interval." + (f" The first {len(first)} of {len(names)} parameters." if some else ""),
            lambda fit: plotting.corner(fit, first),
        )
        figures["trace"] = (
            "Left, the draws of every chain in order. Right, the ranks of each chain's draws among all draws: chains "
            "that agree stay about within the grey band."
            + (f" The {len(worst)} of {len(names)} parameters that mix worst." if some else ""),
            lambda fit: plotting.trace(fit, worst),
        )
    return figures


def write_report(
    fit: Fit, path: str | os.PathLike, figures: Figures | None = None, *, posterior: str | os.PathLike | None = None
) -> Path:
    """Write one self-contained HTML file about a fit, all of it or nothing.

    Parameters
    ----------
    fit : Fit
        Of any model.
    path : path
        File to write; ``.html`` is appended where there is no suffix. An existing file is replaced.
    figures : mapping of str to (caption, function), optional
        Each function takes the fit and returns a matplotlib Figure. None: those of `figures_for`. A figure that fails
        is replaced by its error, so that the rest can still be read.
    posterior : path, optional
        Where the draws are stored, for the instructions on loading them.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    ModuleNotFoundError
        Without the packages of ``hbm_jax[plots]``.

    Examples
    --------
    >>> write_report(fit, "report.html")  # doctest: +SKIP
    """
    from hbm_jax import plotting  # noqa: F401 - says what to install where matplotlib is missing

    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "write_report: expected the package jinja2; found it is not installed. "
            "Install hbm_jax[plots]: pip install 'hbm_jax[plots]'.",
            name=error.name,
        ) from error
    path = Path(path)
    path = path if path.suffix else path.with_suffix(".html")
    environment = Environment(
        loader=PackageLoader("hbm_jax"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = [_draw(fit, name, *entry) for name, entry in (figures_for(fit) if figures is None else figures).items()]
    text = environment.get_template("report.html").render(
        title=fit.run.get("description", "Posterior"),
        program=fit.run.get("program", ""),
        data=fit.run.get("data", ""),
        verdict=fit.verdict,
        sentence=str(dataclasses.replace(fit.verdict, notes=())),
        rows=_rows(fit),
        left_out=_left_out(fit),
        figures=drawn,
        priors=fit.run.get("config", {}).get("priors", {}),
        choices={k: v for k, v in fit.run.get("config", {}).items() if k != "priors"},
        sections=_provenance(fit),
        posterior=str(posterior) if posterior is not None else "posterior.nc",
        stored=posterior is not None,
    )
    _write(path, text)
    return path


def _worst_mixed(fit: Fit, names: list[str]) -> list[str]:
    """Names in the order of their R-hat, the largest first; one without R-hat comes first."""
    r_hat = fit.verdict.table["r_hat"].reindex(names).fillna(math.inf)
    return list(r_hat.sort_values(ascending=False, kind="stable").index)


def _draw(fit: Fit, name: str, caption: str, function: Callable[[Fit], Any]) -> dict[str, str]:
    from hbm_jax.plotting.style import to_png

    try:
        picture = base64.b64encode(to_png(function(fit), dpi=130)).decode("ascii")
    except Exception as error:  # whatever a figure meets in an odd posterior, the verdict and the table must come out
        return {"name": name, "caption": caption, "picture": "", "error": f"{type(error).__name__}: {error}"}
    return {"name": name, "caption": caption, "picture": picture, "error": ""}


def _rows(fit: Fit) -> list[dict[str, str]]:
    """Write the summary as text, in the model's order, each number with the digits its error allows."""
    from hbm_jax.plotting.labels import quote

    summary = fit.summary()
    order = {name: index for index, name in enumerate(fit.run.get("config", {}).get("priors", {}))}
    labels = sorted(summary.index, key=lambda label: order.get(str(label).partition("[")[0], len(order)))
    rows = []
    for label in labels:
        row = summary.loc[label]
        quoted = quote(row["median"], row["lower_68"], row["upper_68"])
        power = f" ×10^{quoted.exponent}" if quoted.exponent else ""
        rows.append(
            {
                "name": str(label),
                "median": quoted.median.replace("-", "−") + power,
                "plus": f"+{quoted.plus}",
                "minus": f"−{quoted.minus}",
                "unit": str(row["unit"]),
                "r_hat": _number(row["r_hat"], ".3f"),
                "ess_bulk": _number(row["ess_bulk"], ".0f"),
                "ess_tail": _number(row["ess_tail"], ".0f"),
            }
        )
    return rows


def _left_out(fit: Fit) -> list[str]:
    """Variables that are too large for the table."""
    shown = {str(label).partition("[")[0] for label in fit.summary().index}
    return [str(name) for name in fit.posterior if str(name) not in shown]


def _number(value: float, spec: str) -> str:
    return format(value, spec) if np.isfinite(value) else "–"


def _provenance(fit: Fit) -> dict[str, dict[str, str]]:
    """Everything else that a repetition needs: options, timing, versions and machine."""
    apart = ("config", "data", "description", "versions", "device", "machine", "finished", "program")
    timing = {name: f"{seconds:.2f} s" for name, seconds in fit.timing.items()}
    if timing:
        timing["total"] = f"{sum(fit.timing.values()):.2f} s"
    machine = {name: str(fit.run[name]) for name in ("device", "machine", "finished") if name in fit.run}
    sections = {
        "Run": {name: str(value) for name, value in fit.run.items() if name not in apart},
        "Timing": timing,
        "Versions": {name: str(value) for name, value in fit.run.get("versions", {}).items()},
        "Machine": machine,
    }
    return {title: entries for title, entries in sections.items() if entries}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)  # mkstemp's file is its owner's alone; a report is to be read by others
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
