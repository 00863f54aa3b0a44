"""Simulation of the counts of a model expression (``hbm-jax simulate spectrum``), written as OGIP files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hbm_jax.configuration import ConfigError, build_model, read_value
from hbm_jax.names import choose
from hbm_jax.simulation.afterglows import response_of
from hbm_jax.simulation.configuration import format_truth, refuse_design, refuse_full_folder

EXPOSURE = 20_000.0  # default [s]
OPTIONS = ("exposure",)  # options of [population]
NAMES = "source.pha", "response.rmf", "response.arf"


def simulate(config: Mapping[str, Any], folder: Path, *, rmf: str | None, arf: str | None, overwrite: bool) -> str:
    """Draw the counts of a model expression, without background, and write them with the response.

    ``[model]`` of the configuration contains the model expression, ``[truth]`` or numbers in ``[prior]`` its
    parameters, and ``population.exposure`` the exposure [s]. Arguments, result and errors are those of
    `hbm_jax.simulation.afterglows.simulate`, without a number of sources.
    """
    from hbm_jax.data.drawn_spectra import channel_rates, ungrouped
    from hbm_jax.models import SpectralFit
    from hbm_jax.spectra import write_arf, write_pha, write_rmf
    from hbm_jax.spectra.folding.response import Arf

    refuse_design(
        config,
        "simulate spectrum: expected no --design; found {found}. Set the response (--rmf, --arf) and the exposure "
        "(--set population.exposure=5000).",
    )
    for name in config["population"]:
        choose("option of [population]", name, OPTIONS)
    exposure = read_value(config["population"].get("exposure", EXPOSURE), float, "population.exposure")
    if not 0 < exposure < np.inf:
        raise ConfigError(f"population.exposure: expected a positive time [s]; found {exposure:g}.")
    options = {key: value for key, value in config["model"].items() if key != "name"}
    model = build_model(SpectralFit, options, config["prior"])
    truth = _values(model, config["truth"])
    response = response_of(rmf, arf)
    refuse_full_folder(folder, overwrite)
    rate = channel_rates(model.spectrum, response, {name: [value] for name, value in truth.items()})[0]
    counts = np.random.default_rng(config["sample"]["seed"]).poisson(rate * exposure)
    spectrum = ungrouped(Path(NAMES[0]).stem, response.channels, exposure, counts, response=response)
    folder.mkdir(parents=True, exist_ok=True)
    pha, matrix, area = (folder / name for name in NAMES)
    write_rmf(matrix, response.rmf, overwrite=overwrite)
    write_arf(area, Arf(response.rmf.energy, response.area), overwrite=overwrite)
    write_pha(pha, spectrum, rmf=matrix.name, arf=area.name, overwrite=overwrite)
    return (
        f"{spectrum.counts.sum():.0f} counts in {exposure:g} s in {pha}\n{format_truth(truth)}\n"
        f'fit it with: hbm-jax fit spectrum --data {pha} --spectrum "{model.to_config()["spectrum"]}"'
    )


def _values(model, truth: Mapping[str, Any]) -> dict[str, np.float64]:
    """Return the value of every parameter of the spectrum: its true value, or the number at which it is fixed."""
    parameters = model.spectrum.parameters
    for name in truth:
        choose("true value of a simulated spectrum", name, tuple(parameters))
    fixed = {name: prior for name, prior in model.all_priors.items() if isinstance(prior, float | int)}
    values = fixed | {name: read_value(value, float, f"truth.{name}") for name, value in truth.items()}
    missing = [name for name in parameters if name not in values and name not in model.ties]
    if missing:
        descriptions = "; ".join(
            f"{name} ({', '.join(filter(None, (parameters[name].help, parameters[name].unit)))})" for name in missing
        )
        raise ConfigError(
            f"truth: expected a value of every parameter, as in --set truth.{missing[0]}=1; found none of "
            f"{descriptions}."
        )
    values = model.complete(values)
    return {name: np.float64(values[name]) for name in parameters}
