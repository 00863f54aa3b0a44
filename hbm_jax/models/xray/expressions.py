"""Model expressions of the source and of the background of a spectral fit."""

from typing import Any

from hbm_jax.spectra.model.components import Component
from hbm_jax.spectra.model.composition import Parameter
from hbm_jax.spectra.model.text import spectrum_from_text, spectrum_to_text


def additive(spectrum: Any) -> Component:
    """Return an additive expression, given itself or as text."""
    component = spectrum_from_text(spectrum) if isinstance(spectrum, str) else spectrum
    if not isinstance(component, Component):
        raise ValueError(f"SpectralFit: expected a spectrum of hbm_jax.spectra, or its text; found {component!r}.")
    if component.kind != "additive":
        raise ValueError(f"SpectralFit: expected a spectrum with an additive component; found {component}.")
    return component


def joined_parameters(spectrum: Component, background: Component | None) -> dict[str, Parameter]:
    """Return the parameters of both expressions; raise ValueError if they share a name."""
    parameters = {} if background is None else background.parameters
    shared = [name for name in parameters if name in spectrum.parameters]
    if shared:
        raise ValueError(
            f"SpectralFit: expected other names of parameters in the background's spectrum than in the source's; found "
            f"{shared[0]!r} in both. Give its component a label, as in powerlaw(bkg)."
        )
    return spectrum.parameters | parameters


def text_of(spectrum: Component) -> str:
    """Return a model expression as text, also if it cannot be read again."""
    try:
        return spectrum_to_text(spectrum)
    except ValueError:
        return str(spectrum)
