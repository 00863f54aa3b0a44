"""Components and spectra to which the rows of tables of a fit belong."""

from typing import Any

import jax
import numpy as np

from hbm_jax.inference import Fit
from hbm_jax.models import SpectralFit
from hbm_jax.spectra.background_regions import RegionStack
from hbm_jax.spectra.model.composition import Component, split_terms

# Columns of the tables, which cannot be names of components.
RESERVED = ("spectrum", "e_min", "e_max", "counts", "error", "source", "background", "total")


def terms_of(spectrum: Component) -> dict[str, Component]:
    """Return each additive component of an expression, with the factors that multiply it, by label or name."""
    _, lines = split_terms(spectrum, lambda part: part.kind == "additive")
    terms: dict[str, Component] = {}
    for line in lines:
        kind = type(line.component).__name__
        name = line.component.label or kind
        name = f"{name} ({kind})" if name in RESERVED or name in terms else name
        terms[name] = line.component if line.factor is None else line.factor * line.component
    return terms


def names_of_spectra(model: Any, data: Any) -> tuple[str, ...]:
    """Return the names of the spectra of sources that have parameters of their own, or ``("all",)``."""
    if not any(name in model.spectrum.parameters for name in model.own):
        return ("all",)
    return data.name[: data.num_sources] if isinstance(data, RegionStack) else data.name


def spectra_of_draws(fit: Fit, name: str) -> tuple[Any, tuple[str, ...], list[dict[str, np.ndarray]]]:
    """Return the model, the names of the spectra, and values (draw,) of the source's parameters for each of these.

    Raises TypeError, with the name of the calling function, if the fit is not one of a `SpectralFit` with its program.
    """
    model: Any = fit.program
    if not isinstance(model, SpectralFit):
        raise TypeError(f"{name}: expected a fit of a SpectralFit with its program; found {model!r}.")
    names = names_of_spectra(model, fit.data)
    draws = {site: fit.posterior[site].to_numpy() for site in fit.posterior.data_vars if site in model.parameters}
    if names != ("all",):  # (chain, draw) -> (chain, draw, 1), to be combined with those of each spectrum
        draws = {site: value[..., None] if value.ndim == 2 else value for site, value in draws.items()}
    with jax.enable_x64(True):
        values = {n: np.asarray(v, float) for n, v in model.complete(draws).items() if n in model.spectrum.parameters}
    return model, names, [_of_spectrum(values, index) for index in range(len(names))]


def _of_spectrum(values: dict[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    """Return the values (draw,) or () of a spectrum, of values (), (chain, draw) or (chain, draw, 1 or spectrum)."""
    last = {n: v[..., min(index, v.shape[-1] - 1)] if v.ndim == 3 else v for n, v in values.items()}
    return {name: value.ravel() if value.ndim else value for name, value in last.items()}
