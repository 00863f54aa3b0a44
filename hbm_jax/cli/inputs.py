"""Configuration, model and data of a command that takes a model."""

import argparse
import shlex
from collections.abc import Mapping
from typing import Any

from hbm_jax.cli.arguments import TABLES, configuration


def model_and_data(config: dict[str, Any]) -> tuple[Any, Any]:
    """Build the model and read its data, so that errors in either are raised before sampling."""
    from hbm_jax import registry

    entry = registry.named(config["model"].get("name"))
    options = {key: value for key, value in config["model"].items() if key != "name"}
    model = entry.build(options, config["prior"])
    config["data"].setdefault("source", entry.default_source)  # recorded in the configuration of the run
    return model, entry.load(config["data"], config["columns"])


def configuration_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the configuration of a command that takes a model."""
    config = configuration(arguments)
    config["model"] = {"name": arguments.model} | {
        key: value for key, value in config["model"].items() if key != "name"
    }
    return config


def message_in_flags(error: BaseException) -> str:
    """Return the message of an error, with its remedies written as flags of the command line."""
    text = str(error)
    cause: BaseException | None = error
    while cause is not None:
        for remedy in getattr(cause, "remedies", ()):
            text = text.replace(str(remedy), flags_of(remedy.option, remedy.value))
        cause = cause.__cause__
    return text


def flags_of(option: str, value: Any) -> str:
    """Return the flags that set an option."""
    flag = option.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    if isinstance(value, Mapping):
        return " ".join(f"--{TABLES[option][0]} {key}=NAME" for key in value)
    values = value if isinstance(value, list | tuple) else [value]
    return " ".join(f"--{flag} {shlex.quote(str(part))}" for part in values)
