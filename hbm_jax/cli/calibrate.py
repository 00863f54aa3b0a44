"""``hbm-jax calibrate``: simulation-based calibration of a model."""

from pathlib import Path

from hbm_jax.cli.arguments import CALIBRATION_OPTIONS, assignments, flags
from hbm_jax.cli.exit_status import NOT_USABLE, USABLE
from hbm_jax.cli.inputs import configuration_of, model_and_data
from hbm_jax.configuration import ConfigError, defaults

CERTIFICATE, FIGURE = "certificate.json", "calibration.png"


def calibrate(arguments) -> int:
    """Run simulation-based calibration of a model; write the certificate and its figure."""
    from hbm_jax import inference, plotting, runs  # plotting: if an extra is missing, fail before sampling

    config = configuration_of(arguments)
    model, design = model_and_data(config)
    folder = Path(arguments.out or f"runs/{config['model']['name']}-{Path(config['data']['source']).stem}-calibration")
    runs.check_run_folder(folder, arguments.overwrite)
    if arguments.subset is not None:
        design = _evenly_spaced(design, arguments.subset)
    default_options = defaults()["sample"]
    given_keys = {key for key, _ in [*flags(arguments), *assignments("set", arguments.set)]}
    options = {
        name: value
        for name, value in config["sample"].items()
        if value != default_options[name] or f"sample.{name}" in given_keys or name == "seed"
    }
    for name in options:
        if name not in CALIBRATION_OPTIONS:
            raise ConfigError(
                f"sample.{name}: expected one of {', '.join(CALIBRATION_OPTIONS)} for calibrate; found {name!r}."
            )
    print(f"{model.description}\n{design.describe()}\n", flush=True)
    result = inference.calibrate(
        model, design, num_replicates=arguments.num_replicates, progress=not arguments.quiet, **options
    )
    certificate = result.save(folder / CERTIFICATE)
    plotting.calibration(result).savefig(folder / FIGURE, dpi=200)
    table = result.table.to_string(formatters={"p": "{:.2g}".format}, float_format="{:.3f}".format)
    print(f"\n{result}\n\n{table}\n\ncertificate  {certificate}\nfigure       {folder / FIGURE}")
    return USABLE if result.calibrated else NOT_USABLE


def _evenly_spaced(sample, num: int):
    """Return `num` objects of a sample, evenly spaced in its order."""
    if not 1 <= num <= len(sample):
        raise ConfigError(f"--subset: expected 1 to {len(sample)}, the number of objects; found {num}.")
    last = max(num - 1, 1)
    return sample.subset([i * (len(sample) - 1) // last for i in range(num)])
