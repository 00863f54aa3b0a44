"""Simulation of afterglows (``hbm-jax simulate afterglow``), written as a catalogue and a folder of OGIP files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hbm_jax.configuration import ConfigError, read_value
from hbm_jax.simulation.configuration import fields_of, format_truth, number_of, refuse_design, refuse_full_folder

NUM = 50  # default number of sources
WHIM = {"log10_n0": -7.0}  # default of --whim: half of the cosmic baryons
PAIRS = ("photon_index", "log10_flux", "log10_nh")  # quantities given by mean and standard deviation
SCALARS = ("log10_n0", "log10_T", "metallicity")  # quantities given by one value
SHARED = ("whim", "abundances")  # options of the model that also apply to a population


def simulate(
    config: Mapping[str, Any], folder: Path, *, num: int | None, rmf: str | None, arf: str | None, overwrite: bool
) -> str:
    """Draw a population of afterglows and write it.

    Parameters
    ----------
    config : mapping
        Configuration of the command line: ``[population]`` contains fields of `AfterglowPopulation`, ``[truth]``
        parameters of the model.
    folder : path
        Output folder; must be new or empty unless ``overwrite``.
    num : int, optional
        Number of sources; 50 by default.
    rmf, arf : path, optional
        Response of the instrument; by default an idealised response.
    overwrite : bool
        Whether to replace existing files.

    Returns
    -------
    str
        Report: files written, true values, and the command that fits them.

    Raises
    ------
    ConfigError
        For a design, an unknown name, or a value of the wrong type.
    FileExistsError
        If the folder is not empty.
    """
    from hbm_jax.data.xray.writing import SPECTRA, write_afterglows

    refuse_design(
        config,
        "simulate afterglow: expected no --design, because counts drawn for a design belong to groups of channels, "
        "which PHA files cannot represent; found {found}. Simulate a population (--num, --rmf, --arf, --set "
        "population.exposure=5000), or draw a sample in Python with hbm_jax.models.Afterglow().simulate(key, data).",
    )
    num = number_of(num, NUM)
    source_population = population(config)
    response = response_of(rmf, arf)
    refuse_full_folder(folder, overwrite)
    sample = source_population.draw(num, seed=config["sample"]["seed"], response=response)
    catalog = write_afterglows(folder, sample, overwrite=overwrite)
    num_drawn = int(sample.truth["num_drawn"])
    whim = " --whim" if source_population.log10_n0 is not None else ""
    return (
        f"{len(sample.spectra)} simulated afterglows in {catalog}, spectra in {folder / SPECTRA}\n"
        f"selected from {num_drawn} drawn: those with at least {source_population.min_counts} counts\n"
        f"{format_truth(sample.truth)}\n"
        f"fit them with: hbm-jax fit afterglow --catalog {catalog} --spectra {folder / SPECTRA}{whim}"
    )


def population(config: Mapping[str, Any]):
    """Return the `AfterglowPopulation` described by a configuration.

    Raises
    ------
    ConfigError
        For an option or true value that does not apply to a population.
    ValueError
        For an unknown name or a value that `AfterglowPopulation` rejects.
    """
    from hbm_jax.data.xray.simulation import AfterglowPopulation

    if config["population"].get("host") == "cloud":
        for key in config["truth"]:
            if key.startswith("log10_nh_"):
                raise ConfigError(
                    f"truth.{key}: expected none with population.host=cloud; set population.log10_nh instead."
                )
    fields = fields_of(config, AfterglowPopulation, objects="afterglows", pairs=PAIRS, scalars=SCALARS, shared=SHARED)
    options = config["model"]
    if "abundances" in options:
        fields["abundances"] = str(options["abundances"])
    whim = read_value(options["whim"], bool, "model.whim") if "whim" in options else None
    if whim is False and fields.get("log10_n0") is not None:
        raise ConfigError(f"log10_n0: expected none with --no-whim; found {fields['log10_n0']:g}.")
    return AfterglowPopulation(**((WHIM if whim else {}) | fields))


def response_of(rmf: str | None, arf: str | None):
    """Read the response of --rmf and --arf; without them return an idealised response similar to that of Swift-XRT."""
    from hbm_jax.spectra import xrt_like_arf, xrt_like_rmf
    from hbm_jax.spectra.folding.response import Response, summed_response
    from hbm_jax.spectra.ogip.response_files import PLUS
    from hbm_jax.spectra.ogip.responses import area_warnings, read_arf, read_rmf
    from hbm_jax.validation import warn_unusual

    if rmf is None:
        if arf is not None:
            raise ConfigError(f"--arf: expected --rmf with it; found {arf!r} alone.")
        matrix = xrt_like_rmf()
        return Response.of(matrix, xrt_like_arf(matrix))
    rmfs, arfs = rmf.split(PLUS), [None] * len(rmf.split(PLUS)) if arf is None else arf.split(PLUS)
    if len(rmfs) != len(arfs):
        raise ConfigError(f"--arf: expected one for each of {len(rmfs)} response files; found {len(arfs)}.")
    parts = []
    for matrix_file, area_file in zip(rmfs, arfs, strict=True):
        matrix, area = read_rmf(matrix_file.strip()), None if area_file is None else read_arf(area_file.strip())
        warn_unusual(area_warnings(matrix, area))
        parts.append(Response.of(matrix, area))
    return summed_response(parts)
