"""Populations of any model expression: likelihood against plain sums, redshifts of sources, and recovery of truth."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro.infer.util import compute_log_probs
from scipy import stats

import hbm_jax as hbm
from hbm_jax.data import SourceSpectra, read_source_spectra
from hbm_jax.data.drawn_spectra import ungrouped
from hbm_jax.models import SpectralPopulation
from hbm_jax.spectra import Response, SpectrumStack, photons, write_arf, write_pha, write_rmf, write_table_model
from hbm_jax.spectra.folding.grouping import group, noticed
from hbm_jax.spectra.folding.idealised import xrt_like_arf, xrt_like_rmf
from hbm_jax.spectra.model.text import spectrum_from_text
from hbm_jax.validation import DataError

BAND = (0.5, 7.0)


def design(num: int, *, source=None, exposure=20_000.0, factors=None, **columns) -> SourceSpectra:
    """Return empty spectra of sources, of a response with 200 energies, to be simulated."""
    rmf = xrt_like_rmf(200)
    responses = [Response.of(rmf, dataclasses.replace(arf := xrt_like_arf(rmf), area=arf.area * (f or 1.0)))
                 for f in (factors or (1.0,) * num)]  # fmt: skip
    spectra = []
    for row, response in enumerate(responses):
        counts = np.zeros(len(response.channels))
        empty = ungrouped(f"s{row}", response.channels, exposure, counts, response=response)
        spectra.append(group(empty, "channels_per_group", 20, noticed=noticed(empty, BAND)))
    return SourceSpectra.from_spectra(SpectrumStack.of(spectra), source=source, **columns)


def plasma(energy, kT, abundance):
    """Return the photons of a plasma-like spectrum: a continuum and a line complex at 6.7 keV."""
    continuum = np.diff(-np.exp(-energy / kT) / kT**0.5) * 3.0
    line = np.diff(stats.norm.cdf(energy, 6.7, 0.05)) * abundance * 0.1 * np.exp(-6.7 / kT)
    return continuum + line


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Table model of the plasma."""
    path = tmp_path_factory.mktemp("table") / "gas.mod"
    grid = {"kT": np.geomspace(0.8, 15.0, 25), "abundance": [0.0, 1.0]}
    write_table_model(path, plasma, np.geomspace(0.3, 20.0, 301), grid, logarithmic=["kT"], units={"kT": "keV"})
    return str(path)


def test_the_likelihood_is_a_plain_sum_over_spectra(table):
    """Known, common, per-source and per-spectrum parameters, redshifts and factors of instruments."""
    source, z = ["a", "a", "b", "c"], [0.1, 0.1, 0.6, 0.3]
    instrument = ["pn", "mos", "mos", "pn"]
    empty = design(4, source=source, z=z, instrument=instrument, known={"mw_nh": [0.02, 0.02, 0.1, 0.05]})
    text = f"tbabs(mw) * tbabs(host) * (atable({table!r}, gas) + powerlaw(agn))"
    model = SpectralPopulation(
        spectrum=text, own="agn_log10_flux", common="gas_abundance", known="mw_nh", calibration=True, band=(0.5, 2.0)
    )
    assert [v.site for v in model.sites] == [
        "log10_host_nh", "log10_gas_kT", "gas_log10_amplitude", "agn_photon_index", "agn_log10_flux"
    ]  # fmt: skip
    truth = {"gas_log10_amplitude_mean": -2.0, "gas_log10_amplitude_std": 0.2, "agn_log10_flux_mean": -11.5}
    truth |= {"agn_log10_flux_std": 0.3, "agn_photon_index_mean": 1.8, "log10_gas_kT_mean": 0.5, "calibration": 1.2}
    truth |= {"log10_gas_kT_std": 0.1, "log10_host_nh_mean": -1.0, "log10_host_nh_std": 0.1, "gas_abundance": 0.4}
    data, drawn = model.simulate(jax.random.key(1), empty, truth | {"agn_photon_index_std": 0.1})
    assert np.shape(drawn["agn_log10_flux"]) == (4,)
    assert np.shape(drawn["log10_gas_kT"]) == (3,)
    bound = model.prepare(data)
    assert model.cautions(data, bound) == ()
    seeded = handlers.seed(SpectralPopulation(**model.to_config()), 0)
    with jax.enable_x64(True):
        trace = handlers.trace(seeded).get_trace(bound)
        log_probs, _ = compute_log_probs(model, (bound,), {}, {k: s["value"] for k, s in trace.items()})
    values = {name: np.asarray(site["value"]) for name, site in trace.items()}
    index = np.array([0, 0, 1, 2])
    total = 0.0
    for row in range(4):
        expression = (
            f"tbabs(mw) * tbabs(host, z={z[row]}) * (atable({table!r}, gas, z={z[row]}) + "
            f"PowerLaw('agn', norm=(0.5, 2.0), z={z[row]}))"
        )
        edges, response = data.spectra.grouped_response(row)
        p = {"mw_nh": data.known["mw_nh"][row], "host_nh": 10 ** values["log10_host_nh"][index[row]]}
        p |= {"gas_kT": 10 ** values["log10_gas_kT"][index[row]], "gas_abundance": values["gas_abundance"]}
        p |= {name: values[name][index[row]] for name in ("gas_log10_amplitude", "agn_photon_index")}
        p |= {"agn_log10_flux": values["agn_log10_flux"][row]}
        factor = values["calibration"][0] if instrument[row] == "mos" else 1.0
        with jax.enable_x64(True):
            expected = factor * np.asarray(photons(spectrum_from_text(expression), edges)(p)) @ response
        total += stats.poisson.logpmf(np.asarray(data.spectra.counts)[row, : len(expected)], expected).sum()
    constant = stats.poisson.logpmf(0, 0.0)
    assert float(jnp.sum(log_probs["counts"])) == pytest.approx(total + constant, rel=1e-6)


def recovered(fit, truth: dict, names: list[str], monte_carlo, tolerance: float = 4.0) -> None:
    """Assert that the posterior means of parameters are within ``tolerance`` posterior standard deviations of truth."""
    assert fit.verdict.sampler.passed if hasattr(fit.verdict, "sampler") else fit.verdict
    for name in names:
        draws = np.asarray(fit.posterior[name])
        assert abs(draws.mean() - truth[name]) < tolerance * draws.std(), name
