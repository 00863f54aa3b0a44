"""``hbm-jax simulate``: data drawn with the design of a sample, with a made-up one, or a population without one."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hbm_jax.cli.exit_status import USABLE
from hbm_jax.cli.inputs import configuration_of, flags_of, model_and_data
from hbm_jax.configuration import ConfigError, read_value
from hbm_jax.simulation.configuration import (
    format_truth,
    number_of,
    refuse_bad_table,
    write_arrays,
    write_table,
)

NUM = 100  # default number of objects of a made-up design


def simulate(arguments) -> int:
    """Simulate a population, or data with the design of a sample or a made-up one."""
    from hbm_jax import registry

    config = configuration_of(arguments)
    entry = registry.named(arguments.model)
    if arguments.out is None:
        raise ConfigError("--out: expected the file or folder to write, found none.")
    out = Path(arguments.out)
    if entry.simulate is not None and not (entry.takes_design and config["data"]):
        options = dict.fromkeys(entry.simulator_options)
        for name, kind in entry.simulator_options.items():
            text = vars(arguments)[f"simulator.{name}"]
            if text is not None:
                options[name] = read_value(text, kind, f"--{name}")
        print(entry.simulate(config, out, **options, overwrite=arguments.overwrite))
        return USABLE
    print(_simulate_sample(arguments, config, entry, out))
    return USABLE


def _simulate_sample(arguments, config: dict[str, Any], entry, out: Path) -> str:
    """Draw and write a sample with the design of another, or a made-up one; return the text to print."""
    import jax

    num = vars(arguments).get("simulator.num")
    made_up = entry.design is not None and not config["data"].get("source") and (num or not entry.default_source)
    _refuse_population(arguments, config, made_up)
    refuse_bad_table(out, arguments.overwrite)
    seed = config["sample"]["seed"]
    if made_up:
        model, design, typical, arrays = _made_up(entry, config, num)
    else:
        model, design = model_and_data(config)
        typical, arrays = {}, {}
    given = {key: _true_value(model, key, value) for key, value in config["truth"].items()}
    simulated, truth = model.simulate(jax.random.key(seed), design, typical | given)
    vectors = [name for name in truth if name.partition("[")[0] in model.all_priors]
    beside = write_table(simulated.to_table(), truth, out, vectors)
    number = getattr(simulated, "num_points", len(simulated))
    if made_up:
        config["data"] |= {option: str(file) for option, file in write_arrays(arrays, out).items()}
    return (
        f"{number} simulated objects in {out}, the true values in {beside}\n{format_truth(truth, vectors)}\n"
        f"fit them with: {_fit_command(config, entry, out)}"
    )


def _made_up(entry, config: dict[str, Any], num: str | None):
    """Return model, made-up design, typical true values of its parameters, and arrays to write beside the sample.

    Options of the reader are set in the configuration.
    """
    import numpy as np

    options = {key: value for key, value in config["model"].items() if key != "name"}
    model = entry.build(options, config["prior"])
    kinds = entry.reader_options
    for name in config["data"]:
        if name not in entry.design_options:
            known = f"only {', '.join(entry.design_options)}" if entry.design_options else "none"
            raise ConfigError(
                f"data.{name}: expected {known} of the options of the reader without --design; found "
                f"{config['data'][name]!r}."
            )
    values = {name: read_value(value, kinds[name], f"data.{name}") for name, value in config["data"].items()}
    number = number_of(None if num is None else read_value(num, int, "--num"), NUM)
    design = entry.design(model, number, np.random.default_rng(config["sample"]["seed"]), **values)
    config["data"] = dict(design.options)
    names = {name for name in design.truth if name.partition("[")[0] in model.all_priors}
    typical = {name: design.truth[name] for name in names if name not in model.priors}
    return model, design.data, typical, design.arrays


def _fit_command(config: Mapping[str, Any], entry, out: Path) -> str:
    """Return the command that fits a simulated sample with the same model."""
    source = f"--data {shlex.quote(str(out))}"
    words = ["hbm-jax fit", config["model"]["name"], source]
    words += [flags_of(name, value) for name, value in config["model"].items() if name != "name"]
    words += [flags_of(name, value) for name, value in config["data"].items() if name in entry.options_of_samples]
    words += [f"--prior {shlex.quote(f'{name}={value}')}" for name, value in config["prior"].items()]
    return " ".join(words)


def _refuse_population(arguments, config, made_up: bool) -> None:
    """Raise `ConfigError` for options that apply only to populations; a made-up design has a number of objects."""
    flags = [(name, value) for name, value in vars(arguments).items() if name.startswith("simulator.")]
    flags = [] if made_up else flags
    names = [f"--{name.partition('.')[2]}" for name, value in flags if value is not None]
    names += [f"population.{name}" for name in config["population"]]
    if names:
        raise ConfigError(
            f"{names[0]}: expected no options of populations for {arguments.model}, which is simulated with the design "
            f"of a sample (--design); found {', '.join(names)}."
        )


def _true_value(model, key, value) -> float:
    """Return a true value as a number within the support of its prior; the model rejects unknown names."""
    prior = model.all_priors.get(key)
    try:
        number = float(value)
        if not hasattr(prior, "support") or bool(prior.support(number)):
            return number
    except (TypeError, ValueError):
        pass
    raise ConfigError(f"truth.{key}: expected a number within the support of its prior, found {value!r}.")
