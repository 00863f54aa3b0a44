"""Simulation of bursts (``hbm-jax simulate golenetskii``, ``golenetskii-counts``), as a table or as OGIP files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hbm_jax.configuration import read_value
from hbm_jax.simulation.configuration import (
    fields_of,
    format_truth,
    number_of,
    refuse_bad_table,
    refuse_design,
    refuse_full_folder,
    write_table,
)

NUM, NUM_SPECTRA = 30, 10  # default numbers of bursts
PAIRS = ("gamma", "log10_N", "log10_E_peak")  # quantities given by mean and standard deviation


def simulate(config: Mapping[str, Any], table: Path, *, num: int | None, overwrite: bool) -> str:
    """Draw a population of bursts at catalogue level and write it as a table: CSV, ECSV or FITS.

    ``[population]`` of the configuration contains fields of `BurstPopulation`. Arguments, result and errors are those
    of `hbm_jax.simulation.afterglows.simulate`, with a table in place of the folder, 30 bursts by default, and no
    response.
    """
    from hbm_jax.data import BurstPopulation

    num = number_of(num, NUM)
    scalars = ("correlation", "intrinsic_scatter", "log10_E_peak_scatter")
    fields = fields_of(config, BurstPopulation, objects="bursts", pairs=PAIRS, scalars=scalars)
    refuse_bad_table(table, overwrite)
    population = BurstPopulation(**fields)
    sample = population.draw(num, seed=config["sample"]["seed"])
    write_table(sample.data.to_table(), sample.truth, table)
    truncated = " --truncated" if population.log10_flux_limit is not None else ""
    correlated = " --correlated" if population.correlation else ""
    return (
        f"{len(sample.data)} simulated bursts with {sample.data.num_intervals} intervals in {table}\n"
        f"{format_truth(sample.truth)}\n"
        f"fit them with: hbm-jax fit golenetskii --data {table}{truncated}{correlated}"
    )


def simulate_spectra(config: Mapping[str, Any], folder: Path, *, num: int | None, overwrite: bool) -> str:
    """Draw a population of bursts with counts and write a catalogue and one folder of OGIP files for each burst.

    As `simulate`, with a folder in place of the table, fields of `BurstSpectraPopulation`, 10 bursts by default, and
    the option ``spectrum`` of the model.
    """
    from hbm_jax.data import BurstSpectraPopulation, write_burst_spectra

    refuse_design(
        config,
        "simulate golenetskii-counts: expected no --design; found {found}. Simulate a population (--num, --set "
        "population.num_intervals=8), or draw a sample in Python with "
        "hbm_jax.models.GolenetskiiCounts().simulate(key, data).",
    )
    num = number_of(num, NUM_SPECTRA)
    names = {"pairs": (*PAIRS, "alpha", "beta"), "scalars": ("intrinsic_scatter",), "shared": ("spectrum",)}
    fields = fields_of(config, BurstSpectraPopulation, objects="bursts", **names)
    if "spectrum" in config["model"]:
        fields["spectrum"] = read_value(config["model"]["spectrum"], str, "model.spectrum")
    refuse_full_folder(folder, overwrite)
    population = BurstSpectraPopulation(**fields)
    sample = population.draw(num, seed=config["sample"]["seed"])
    catalog = write_burst_spectra(folder, sample, overwrite=overwrite)
    spectrum = "" if population.spectrum == "band" else f" --spectrum {population.spectrum}"
    return (
        f"{len(sample.bursts)} simulated bursts in {catalog}, with one folder for each next to it\n"
        f"selected from {int(sample.truth['num_drawn'])} drawn: those with a signal-to-noise ratio of at least "
        f"{population.threshold:g}\n"
        f"{format_truth(sample.truth)}\n"
        f"fit them with: hbm-jax fit golenetskii-counts --catalog {catalog}{spectrum}"
    )
