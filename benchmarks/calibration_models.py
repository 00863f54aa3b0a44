"""Claim: the posteriors of the models that no other file of calibrations covers are calibrated.

128 replicates of each, with made-up designs of 40 to 60 objects: distance moduli, supernovae with a joint covariance,
regressions with group effects, rates, lines with outliers and with Student's t errors, one spectrum with a known
response, and a population of six of them.

    python benchmarks/calibration_models.py [--output benchmarks/results/calibration_models.txt] [--only NAME]
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from calibration_normal import certificate

MODULI = {"Om0": "Normal(0.3, 0.1)", "w0": "Normal(-1, 0.2)"}
LIGHT_CURVES = {
    "Om0": "Normal(0.3, 0.1)", "M0": "Normal(-19.1, 0.1)", "alpha": "Normal(0.14, 0.03)", "beta": "Normal(3, 0.3)",
    "delta_M": "Normal(0, 0.1)",
}  # fmt: skip
EFFECTS = {"intercept": "Normal(0.5, 0.5)", "coef": "Normal(0, 0.3)", "sd": "HalfNormal(0.4)"}
POINTS = {
    "alpha": "Normal(1, 0.4)", "beta": "Normal(1, 0.4)", "intrinsic_scatter": "HalfNormal(0.4)",
    "x_mean": "Normal(0, 0.3)", "x_std": "LogNormal(0, 0.2)",
}  # fmt: skip
SPECTRUM = {"photon_index": "Normal(2, 0.2)", "log10_flux": "Normal(-11.5, 0.2)", "nh": "LogNormal(-1, 0.5)"}
SOURCES = {
    "photon_index_mean": "Normal(2, 0.2)", "photon_index_std": "HalfNormal(0.2)",
    "log10_flux_mean": "Normal(-11.5, 0.2)", "log10_flux_std": "HalfNormal(0.3)",
}  # fmt: skip


def spectra(num: int):
    """Return a stack of empty spectra of 30 groups of channels, with a response of 200 energies."""
    from hbm_jax.data.drawn_spectra import ungrouped
    from hbm_jax.spectra import Response, SpectrumStack
    from hbm_jax.spectra.folding.grouping import group, noticed
    from hbm_jax.spectra.folding.idealised import xrt_like_arf, xrt_like_rmf

    rmf = xrt_like_rmf(200)
    response = Response.of(rmf, xrt_like_arf(rmf))
    counts = np.zeros(len(response.channels))
    empty = [ungrouped(f"s{row}", response.channels, 5000.0, counts, response=response) for row in range(num)]
    grouped = [group(one, "channels_per_group", 20, noticed=noticed(one, (0.5, 7.0))) for one in empty]
    return SpectrumStack.of(grouped, [noticed(one, (0.5, 7.0)) for one in grouped])


def cases() -> Iterator[tuple[str, object, object]]:
    """Name, model and design."""
    from hbm_jax import models
    from hbm_jax.data import SourceSpectra
    from hbm_jax.simulation import designs

    def of(design, model, num, **options):
        return model, design(model, num, np.random.default_rng(1), **options).data

    moduli = models.HubbleDiagram(cosmology="wcdm", priors=MODULI)
    yield "HubbleDiagram, flat wCDM", *of(designs.hubble_diagram, moduli, 60)
    correlated = models.CorrelatedSupernova(priors=LIGHT_CURVES)
    yield "CorrelatedSupernova, flat LCDM", *of(designs.supernova_correlated, correlated, 60)
    for family, extra in (("normal", {"sigma": "HalfNormal(0.5)"}), ("poisson", {}), ("binomial", {})):
        model = models.Regression(family=family, priors=EFFECTS | extra)
        yield f"Regression, {family}, effects of groups", *of(designs.regression, model, 40)
    for family, mean in (("binomial", "Beta(3, 9)"), ("poisson", "LogNormal(0, 0.7)")):
        model = models.Rates(family=family, priors={"mean": mean})
        yield f"Rates, {family}", *of(designs.rates, model, 20)
    outliers = models.Relation(pooling="complete", outliers=True, priors=POINTS)
    yield "Relation, one line, outliers", *of(designs.relation, outliers, 40)
    student = models.Relation(pooling="complete", student_t=True, priors=POINTS)
    yield "Relation, one line, Student's t", *of(designs.relation, student, 40)
    yield "SpectralFit, absorbed power law", models.SpectralFit("PowerLaw() * tbabs()", priors=SPECTRUM), spectra(1)
    population = models.SpectralPopulation(spectrum="PowerLaw()", priors=SOURCES)
    yield "SpectralPopulation, power laws", population, SourceSpectra.from_spectra(spectra(6))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=128)
    parser.add_argument("--output", type=Path, help="also write the text to this file")
    parser.add_argument("--only", default="", help="cases whose name begins with this text")
    arguments = parser.parse_args()
    chosen = (case for case in cases() if case[0].startswith(arguments.only))
    certificate(chosen, arguments.replicates, arguments.output)
