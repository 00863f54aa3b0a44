"""Configuration, model and data of a command that takes a model."""

import argparse
from typing import Any

from hbm_jax.cli.arguments import configuration


def model_and_data(config: dict[str, Any]) -> tuple[Any, Any]:
    """Build the model and read its data, so that errors in either are raised before sampling."""
    from hbm_jax import registry
    from hbm_jax.validation import DataError

    name = config["model"].get("name")
    entry = registry.named(name)
    options = {key: value for key, value in config["model"].items() if key != "name"}
    model = entry.build(options, config["prior"])
    config["data"].setdefault("source", entry.default_source)  # recorded in the configuration of the run
    try:
        return model, entry.load(config["data"], config["columns"])
    except DataError as error:
        hints = [hint for pattern, hint in _HINTS.items() if pattern in str(error)]
        if not hints:
            raise
        separator = "\n" if "\n" in str(error) else " "
        raise DataError(f"{error}{separator}On the command line: {' '.join(hints)}") from error


# Command-line equivalents of the remedies that errors propose in Python.
_HINTS = {
    "leave_out=": "--leave-out NAME for each, or --leave-out bad.",
    "columns={": "--set columns.KEY=NAME for each.",
    "mass_step=False": "--no-mass-step.",
}


def configuration_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the configuration of a command that takes a model."""
    config = configuration(arguments)
    config["model"] = {"name": arguments.model} | {
        key: value for key, value in config["model"].items() if key != "name"
    }
    return config
