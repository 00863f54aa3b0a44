"""Simulation of a population of X-ray sources (``hbm-jax simulate spectra``), written as a table and OGIP files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hbm_jax.configuration import ConfigError, build_model, read_value
from hbm_jax.names import choose
from hbm_jax.simulation.afterglows import response_of
from hbm_jax.simulation.configuration import format_truth, number_of, refuse_design, refuse_full_folder

NUM = 10  # default number of sources
EXPOSURE, REDSHIFT = 20_000.0, 0.0  # defaults; exposure in s
TABLE, MATRIX, AREA = "sources.csv", "response.rmf", "response.arf"


def simulate(
    config: Mapping[str, Any], folder: Path, *, num: int | None, rmf: str | None, arf: str | None, overwrite: bool
) -> str:
    """Draw a population of sources with one spectrum each, without background, and write it.

    ``[model]`` of the configuration contains the options of the model, ``[truth]`` or numbers in ``[prior]`` its
    parameters; others are drawn from their priors. ``[population]`` contains the exposure [s], the redshift ``z``, and
    the values of known parameters. Arguments, result and errors are those of `hbm_jax.simulation.afterglows.simulate`.
    """
    import jax
    from astropy.table import Table

    from hbm_jax.data import SourceSpectra
    from hbm_jax.data.drawn_spectra import ungrouped
    from hbm_jax.models import SpectralPopulation
    from hbm_jax.spectra import SpectrumStack, write_arf, write_pha, write_rmf
    from hbm_jax.spectra.folding.response import Arf

    refuse_design(config, "simulate spectra: expected no --design; found {found}. Set --num, --rmf and --arf.")
    num = number_of(num, NUM)
    options = {key: value for key, value in config["model"].items() if key != "name"}
    model = build_model(SpectralPopulation, options, config["prior"])
    if model.own or model.calibration:
        raise ConfigError("simulate spectra: expected one spectrum for each source, without own= and calibration=.")
    values = _population(config["population"], model.known)
    truth = {name: read_value(value, float, f"truth.{name}") for name, value in config["truth"].items()}
    response = response_of(rmf, arf)
    refuse_full_folder(folder, overwrite)
    names, nothing = [f"sim{row + 1:03d}" for row in range(num)], np.zeros(len(response.channels))
    spectra = [ungrouped(name, response.channels, values["exposure"], nothing, response=response) for name in names]
    known = {name: values[name] for name in model.known}
    design = SourceSpectra.from_spectra(SpectrumStack.of(spectra), z=values["z"], known=known)
    sample, drawn = model.simulate(jax.random.key(config["sample"]["seed"]), design, truth)
    folder.mkdir(parents=True, exist_ok=True)
    write_rmf(folder / MATRIX, response.rmf, overwrite=overwrite)
    write_arf(folder / AREA, Arf(response.rmf.energy, response.area), overwrite=overwrite)
    for name, counts in zip(names, np.asarray(sample.spectra.counts), strict=True):
        spectrum = ungrouped(name, response.channels, values["exposure"], counts)
        write_pha(folder / f"{name}.pha", spectrum, rmf=MATRIX, arf=AREA, overwrite=overwrite)
    columns = {"name": names, "spectrum": [f"{name}.pha" for name in names], "z": np.full(num, values["z"])}
    columns |= {name: np.full(num, value) for name, value in known.items()}
    columns |= {f"true_{v.site}": drawn[v.site] for v in model.sites}
    Table(columns).write(folder / TABLE, overwrite=overwrite)
    flags = "".join(f" --{role} {name}" for role in ("common", "known") for name in getattr(model, role))
    return (
        f"{num} simulated sources in {folder / TABLE}\n{format_truth(drawn)}\n"
        f'fit them with: hbm-jax fit spectra --catalog {folder / TABLE} --spectrum "{model.spectrum}"{flags}'
    )


def _population(options: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, float]:
    """Return exposure, redshift and known parameters; raise ConfigError for a missing or unknown one."""
    for name in options:
        choose("option of [population]", name, ("exposure", "z", *known))
    values = {"exposure": EXPOSURE, "z": REDSHIFT}
    values |= {name: read_value(value, float, f"population.{name}") for name, value in options.items()}
    missing = [name for name in known if name not in values]
    if missing:
        raise ConfigError(f"population.{missing[0]}: expected the known value; found none.")
    if not 0 < values["exposure"] < np.inf:
        raise ConfigError(f"population.exposure: expected a positive time [s]; found {values['exposure']:g}.")
    return values
