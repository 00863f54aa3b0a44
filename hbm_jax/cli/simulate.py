"""``hbm-jax simulate``: data drawn with the design of a sample, or a population without one."""

from pathlib import Path

from hbm_jax.cli.exit_status import USABLE
from hbm_jax.cli.inputs import configuration_of, model_and_data
from hbm_jax.configuration import ConfigError, read_value
from hbm_jax.simulation.configuration import format_truth, refuse_bad_table, write_table


def simulate(arguments) -> int:
    """Simulate a population, or data with the design of a sample."""
    import jax

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
    _refuse_population(arguments, config)
    model, design = model_and_data(config)
    refuse_bad_table(out, arguments.overwrite)
    true_values = {key: _true_value(model, key, value) for key, value in config["truth"].items()}
    simulated, truth = model.simulate(jax.random.key(config["sample"]["seed"]), design, true_values)
    write_table(simulated.to_table(), truth, out)
    print(f"{len(simulated)} simulated objects in {out}\n{format_truth(truth)}")
    return USABLE


def _refuse_population(arguments, config) -> None:
    """Raise `ConfigError` for options that apply only to populations without a design."""
    flags = [(name, value) for name, value in vars(arguments).items() if name.startswith("simulator.")]
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
