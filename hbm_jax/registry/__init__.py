"""Models that can be named on the command line, each with its container, reader, options and figures.

A model of another package is found by the entry-point group ``hbm_jax.models``: its name is the name of the model, and
its object an `Entry`.
"""

from collections.abc import Mapping
from typing import Any

from hbm_jax.configuration import ConfigError
from hbm_jax.names import choose
from hbm_jax.registry.built_in import BUILT_IN
from hbm_jax.registry.entry import Entry
from hbm_jax.registry.installed import ModelImportError, Models

__all__ = ["BUILT_IN", "MODELS", "Entry", "ModelImportError", "Models", "entry_of_fit", "entry_of_stored", "named"]

MODELS = Models(BUILT_IN)


def named(name: str | None) -> Entry:
    """Return the entry of a model by name.

    Raises
    ------
    ValueError
        If no model has that name; the message suggests the nearest.
    ModelImportError
        If the model of an installed package cannot be imported.
    """
    if not name:
        raise ConfigError(
            f"No model named: expected one of {', '.join(MODELS)}, as in 'hbm-jax fit {next(iter(MODELS))}'."
        )
    return MODELS[name if name in MODELS else choose("model", name, tuple(MODELS))]


def entry_of_fit(fit) -> Entry | None:
    """Return the entry of the model (or of a base class of it) and the data of a fit; None if there is none."""
    from hbm_jax.inference.results import model_of

    for kind in type(model_of(fit)).__mro__:
        for entry in MODELS.with_class(kind.__name__, kind.__module__):
            if entry.model is kind and isinstance(fit.data, entry.container):
                return entry
    return None


def entry_of_stored(name: str, config: Mapping[str, Any] | None) -> Entry | None:
    """Return the entry of a stored model by its class name and configuration; None if there is none."""
    if not isinstance(config, Mapping):
        return None
    module = str(config.get("class") or __name__)
    return next((entry for entry in MODELS.with_class(name, module) if entry.made(name, config)), None)
