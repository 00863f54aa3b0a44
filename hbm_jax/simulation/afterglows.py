"""``hbm-jax simulate afterglow``: a population of afterglows, written as a catalogue and a folder of OGIP files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hbm_jax.configuration import ConfigError, read_value
from hbm_jax.simulation.configuration import fields_of, in_words, number_of, refuse_design, refuse_full_folder

NUM = 50
WHIM = {"log10_n0": -7.0}  # of --whim without a density: half of the cosmic baryons
PAIRS = ("photon_index", "log10_flux", "log10_nh")  # of which a population has mean and standard deviation
SCALARS = ("log10_n0", "log10_T", "metallicity")
SHARED = ("whim", "abundances")  # options of the model that mean something without data


def simulate(
    config: Mapping[str, Any], folder: Path, *, num: int | None, rmf: str | None, arf: str | None, overwrite: bool
) -> str:
    """Draw a population and write it.

    Parameters
    ----------
    config : mapping
        Of the command line: ``[population]`` holds fields of `AfterglowPopulation`, ``[truth]`` parameters by the names
        of the model.
    folder : path
        To write into; new or empty unless to be overwritten.
    num : int, optional
        Number of sources, 50 by default.
    rmf, arf : path, optional
        Response of the instrument; an idealised one by default.
    overwrite : bool
        Whether to replace files that are there.

    Returns
    -------
    str
        What was written where, and the truth.

    Raises
    ------
    ConfigError
        For a design, an unknown name, a value of the wrong kind.
    FileExistsError
        If there is something in the folder.
    """
    from hbm_jax.data.xray.writing import SPECTRA, write_afterglows

    refuse_design(
        config,
        "simulate afterglow: expected no --design, because counts drawn on one are of groups of channels, for which "
        "PHA files have no place; found {found}. Simulate a population (--num, --rmf, --arf, --set "
        "population.exposure=5000), or draw in Python with hbm_jax.models.Afterglow().simulate(key, data), whose "
        "sample can be fitted.",
    )
    num = number_of(num, NUM)
    drawn_from = population(config)
    response = response_of(rmf, arf)
    refuse_full_folder(folder, overwrite)
    sample = drawn_from.draw(num, seed=config["sample"]["seed"], response=response)
    catalog = write_afterglows(folder, sample, overwrite=overwrite)
    num_drawn = int(sample.truth["num_drawn"])
    whim = " --whim" if drawn_from.log10_n0 is not None else ""
    return (
        f"{len(sample.spectra)} simulated afterglows in {catalog}, spectra in {folder / SPECTRA}\n"
        f"of {num_drawn} drawn, those with {drawn_from.min_counts} counts or more\n"
        f"{in_words(sample.truth)}\n"
        f"fit them with: hbm-jax fit afterglow --catalog {catalog} --spectra {folder / SPECTRA}{whim}"
    )


def population(config: Mapping[str, Any]):
    """Return the `AfterglowPopulation` that a configuration describes.

    Raises
    ------
    ConfigError
        For an option or true value that a population has no place for.
    ValueError
        For an unknown name, and what the population refuses.
    """
    from hbm_jax.data.xray.simulation import AfterglowPopulation

    if config["population"].get("host") == "cloud":
        for key in config["truth"]:
            if key.startswith("log10_nh_"):
                raise ConfigError(
                    f"truth.{key}: expected none with population.host=cloud, which population.log10_nh describes."
                )
    fields = fields_of(config, AfterglowPopulation, what="afterglows", pairs=PAIRS, scalars=SCALARS, shared=SHARED)
    options = config["model"]
    if "abundances" in options:
        fields["abundances"] = str(options["abundances"])
    whim = read_value(options["whim"], bool, "model.whim") if "whim" in options else None
    if whim is False and fields.get("log10_n0") is not None:
        raise ConfigError(f"log10_n0: expected none with --no-whim; found {fields['log10_n0']:g}.")
    return AfterglowPopulation(**((WHIM if whim else {}) | fields))


def response_of(rmf: str | None, arf: str | None):
    """Return the response that a command names; an idealised one like that of Swift's XRT where it names none."""
    from hbm_jax.spectra import xrt_like_arf, xrt_like_rmf
    from hbm_jax.spectra.folding.response import Response
    from hbm_jax.spectra.ogip.responses import area_warnings, read_arf, read_rmf
    from hbm_jax.validation import tell

    if rmf is None:
        if arf is not None:
            raise ConfigError(f"--arf: expected --rmf with it; found {arf!r} alone.")
        ideal = xrt_like_rmf()
        return Response.of(ideal, xrt_like_arf(ideal))
    redistribution, area = read_rmf(rmf), None if arf is None else read_arf(arf)
    tell(area_warnings(redistribution, area))
    return Response.of(redistribution, area)
