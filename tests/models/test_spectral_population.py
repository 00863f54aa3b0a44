"""Populations of any model expression: likelihood against plain sums, redshifts of sources, and recovery of truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from monte_carlo import seed
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


def design(num: int, *, source=None, exposure=20_000.0, **columns) -> SourceSpectra:
    """Return empty spectra of sources, of a response with 200 energies, to be simulated."""
    rmf = xrt_like_rmf(200)
    response = Response.of(rmf, xrt_like_arf(rmf))
    counts = np.zeros(len(response.channels))
    empty = [ungrouped(f"s{row}", response.channels, exposure, counts, response=response) for row in range(num)]
    spectra = [group(one, "channels_per_group", 20, noticed=noticed(one, BAND)) for one in empty]
    masks = [noticed(spectrum, BAND) for spectrum in spectra]
    return SourceSpectra.from_spectra(SpectrumStack.of(spectra, masks), source=source, **columns)


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


@pytest.mark.long
def test_the_likelihood_is_a_plain_sum_over_spectra(table):
    """Known, common, per-source and per-spectrum parameters, redshifts and factors of instruments."""
    source, z = ["a", "a", "b", "c"], [0.1, 0.1, 0.6, 0.3]
    instrument = ["pn", "mos", "mos", "pn"]
    epoch = [1, 1, 1, 1]
    empty = design(4, source=source, z=z, epoch=epoch, instrument=instrument, known={"mw_nh": [0.02, 0.02, 0.1, 0.05]})
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
    assert np.shape(drawn["agn_log10_flux"]) == (3,)
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
        p |= {"agn_log10_flux": values["agn_log10_flux"][index[row]]}
        factor = values["calibration"][0] if instrument[row] == "mos" else 1.0
        with jax.enable_x64(True):
            expected = factor * np.asarray(photons(spectrum_from_text(expression), edges)(p)) @ response
        total += stats.poisson.logpmf(np.asarray(data.spectra.counts)[row, : len(expected)], expected).sum()
    constant = stats.poisson.logpmf(0, 0.0)
    assert float(jnp.sum(log_probs["counts"])) == pytest.approx(total + constant, rel=1e-6)


@pytest.mark.long
def test_several_redshifts_are_those_of_each_source():
    """Densities and integrals of components at one redshift per row, against those of each source alone."""
    z = "z=(0.1, 0.6)"
    energy = np.array([np.linspace(0.5, 7.0, 20), np.linspace(0.4, 5.0, 20)])
    values = {"gas_kT": np.array([2.0, 5.0]), "gas_log10_amplitude": np.array([-3.0, -2.0]), "host_nh": np.full(2, 0.2)}
    values |= {"fe_energy": np.full(2, 6.7), "fe_sigma": np.array([0.1, 0.2]), "fe_log10_amplitude": np.full(2, -4.0)}
    values |= {"log10_luminosity": np.array([44.0, 45.0]), "e_cut": np.array([5.0, 9.0])}
    values |= {"photon_index": np.array([1.5, 2.5]), "log10_flux": np.array([-11.0, -12.0])}
    additive = f"CutoffPowerLaw({z}) + bremss(gas, {z}) + gauss(fe, {z})"
    scaled = f"ztbabs(host, {z}) * clumin(bremss(gas, {z}) + gauss(fe, {z}), {z})"
    with jax.enable_x64(True):
        for text in (additive, scaled):
            spectrum = spectrum_from_text(text)
            together = spectrum.on(energy)(values)
            for row in range(2):
                alone, own = spectrum.of_source(row), {name: value[row] for name, value in values.items()}
                np.testing.assert_allclose(together[row], alone.on(energy[row])(own), rtol=1e-12)
                if text is additive:
                    band = spectrum.integral(values, 0.5, 8.0, 1)
                    np.testing.assert_allclose(band[row], alone.integral(own, 0.5, 8.0, 1), rtol=1e-12)


def check_recovery(model, empty, truth, monte_carlo, key=1):
    """Simulate, fit, and compare the populations and the values of all sources with the truth."""
    data, drawn = model.simulate(jax.random.key(seed(key)), empty, truth)
    fit = hbm.sample(model, data, seed=seed(key))
    assert fit.verdict.usable, fit.verdict
    for name, value in truth.items():
        draws = np.asarray(fit.posterior[name])
        monte_carlo.within(draws.mean(), value, draws.std(), name=name)
    for varying in model.sites:
        draws = np.asarray(fit.posterior[varying.site])
        distance = (draws.mean((0, 1)) - drawn[varying.site]) / draws.std((0, 1))
        # The mean square of standard normal numbers; the shrinkage to the population only makes it smaller.
        num = distance.size
        monte_carlo.p_value(stats.chi2.sf(np.sum(distance**2), num), name=f"sources, {varying.site}")
    return data, fit


@pytest.mark.long
def test_cutoff_power_laws_with_two_phases_of_absorbers(tmp_path, monte_carlo):
    """A cold and a warm absorber in the frame of each source; the warm one is a table of optical depths."""

    def depth(energy, log10_column):
        """Return an optical depth with edges of O VII and O VIII."""
        middle = 0.5 * (energy[1:] + energy[:-1])
        edges = sum(tau * np.where(middle > e, (middle / e) ** -3, 0.0) for e, tau in ((0.739, 1.0), (0.871, 0.7)))
        return 10.0 ** (log10_column - 21.5) * edges

    path = tmp_path / "warm.mod"
    grid = {"log10_column": np.linspace(20.0, 23.0, 31)}
    write_table_model(path, depth, np.geomspace(0.3, 30.0, 401), grid, additive=False)
    z = np.tile([0.05, 0.2, 0.4, 0.1], 3)
    empty = design(12, z=z, exposure=40_000.0, known={"mw_nh": 0.03})
    model = SpectralPopulation(
        spectrum=f"tbabs(mw) * tbabs(host) * etable({str(path)!r}, warm) * cutoffpl", known="mw_nh", common="e_cut",
        priors={"e_cut": "LogNormal(2, 0.5)", "warm_log10_column_mean": "Normal(21.5, 0.5)"},
    )  # fmt: skip
    truth = {"photon_index_mean": 1.6, "photon_index_std": 0.15, "log10_flux_mean": -10.8, "log10_flux_std": 0.2}
    truth |= {"log10_host_nh_mean": -0.9, "log10_host_nh_std": 0.2, "warm_log10_column_mean": 21.7}
    check_recovery(model, empty, truth | {"warm_log10_column_std": 0.3, "e_cut": 5.0}, monte_carlo)


@pytest.mark.long
def test_thermal_sources(monte_carlo):
    empty = design(10, z=np.linspace(0.05, 0.6, 10), known={"mw_nh": 0.03})
    model = SpectralPopulation(spectrum="tbabs(mw) * clumin(bbodyrad(gas), z=None, band=(0.5, 2))", known="mw_nh",
                               common="gas_log10_amplitude", priors={"gas_log10_amplitude": 0.0})  # fmt: skip
    truth = {"log10_gas_kT_mean": -0.2, "log10_gas_kT_std": 0.15}
    check_recovery(model, empty, truth | {"log10_luminosity_mean": 44.5, "log10_luminosity_std": 0.3}, monte_carlo)


@pytest.mark.long
def test_epochs_seen_by_two_instruments(monte_carlo):
    """Flux and index of each epoch, column of each source, and the factor between two instruments."""
    num = 16
    empty = design(
        num, source=[f"x{row // 4}" for row in range(num)], epoch=[row // 2 for row in range(num)],
        instrument=["pn", "mos"] * (num // 2), exposure=5000.0,
    )  # fmt: skip
    model = SpectralPopulation(
        spectrum="tbabs * powerlaw", own=("photon_index", "log10_flux"), calibration=True,
        priors={"log10_nh_mean": "Normal(-0.5, 0.5)"},
    )  # fmt: skip
    truth = {"photon_index_mean": 2.0, "photon_index_std": 0.2, "log10_flux_mean": -11.0, "log10_flux_std": 0.4}
    truth |= {"log10_nh_mean": -0.3, "log10_nh_std": 0.3, "calibration": 1.1}
    check_recovery(model, empty, truth, monte_carlo)


@pytest.mark.long
def test_time_resolved_afterglows(monte_carlo):
    """Intervals of afterglows, whose host column is that of the burst."""
    num = 18
    empty = design(
        num, source=[f"grb{row // 3}" for row in range(num)], z=np.repeat([0.5, 1.0, 1.5, 2.0, 0.8, 1.2], 3),
        exposure=3000.0, known={"mw_nh": np.repeat([0.02, 0.05, 0.1, 0.03, 0.04, 0.02], 3)},
    )  # fmt: skip
    model = SpectralPopulation(
        spectrum="tbabs(mw) * tbabs(host) * powerlaw", own=("photon_index", "log10_flux"), known="mw_nh"
    )
    truth = {"photon_index_mean": 2.0, "photon_index_std": 0.15, "log10_flux_mean": -10.8, "log10_flux_std": 0.4}
    check_recovery(model, empty, truth | {"log10_host_nh_mean": 0.0, "log10_host_nh_std": 0.4}, monte_carlo)


@pytest.mark.long
def test_clusters_of_galaxies_by_a_table(table, monte_carlo):
    empty = design(12, z=np.linspace(0.05, 0.7, 12), known={"mw_nh": 0.02})
    model = SpectralPopulation(spectrum=f"tbabs(mw) * atable({table!r}, gas)", known="mw_nh", common="gas_abundance")
    truth = {"log10_gas_kT_mean": 0.6, "log10_gas_kT_std": 0.1, "gas_log10_amplitude_mean": -2.0}
    data, fit = check_recovery(
        model, empty, truth | {"gas_log10_amplitude_std": 0.3, "gas_abundance": 0.3}, monte_carlo
    )
    restored = SourceSpectra.from_dict(data.to_dict())
    assert restored.name == data.name
    np.testing.assert_array_equal(restored.known["mw_nh"], data.known["mw_nh"])
    assert fit.posterior["log10_gas_kT"].dims[-1] == "source"


def test_tables_and_files_are_read(tmp_path):
    rmf = xrt_like_rmf(200)
    write_rmf(tmp_path / "a.rmf", rmf)
    write_arf(tmp_path / "a.arf", xrt_like_arf(rmf))
    for row in range(3):
        spectrum = ungrouped(f"s{row}", rmf.channels, 1000.0, np.full(len(rmf.channels), row + 1))
        write_pha(tmp_path / f"s{row}.pha", spectrum, rmf="a.rmf", arf="a.arf")
    (tmp_path / "t.csv").write_text(
        "source,pha,redshift,instrument,mw_nh\na,s0.pha,0.1,pn,0.02\na,s1.pha,0.1,mos,0.02\nb,s2.pha,0.3,pn,0.05\n"
    )
    data = read_source_spectra(tmp_path / "t.csv", energies=BAND, grouping="none")
    assert data.name == ("a", "b")
    assert list(data.source) == [0, 0, 1]
    assert data.instrument == ("pn", "mos", "pn")
    np.testing.assert_array_equal(data.z, [0.1, 0.3])
    np.testing.assert_array_equal(data.known["mw_nh"], [0.02, 0.02, 0.05])
    assert "2 sources at redshift 0.1 to 0.3 with 3 spectra, 1 to 2 each, from pn, mos" in data.describe()
    other = data.subset([1])
    assert other.spectra.name == ("s2.pha",)
    assert list(other.source) == [0]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"source": ["a", "a"], "z": [0.1, 0.2]}, "z: expected one redshift for all spectra of a; found 0.1 and 0.2"),
        ({"source": ["a"]}, "source: expected an entry for each of 2 spectra; found 1"),
        ({"z": [0.1, -0.2]}, "z, s1: expected a redshift of 0 or more; found -0.2"),
        ({"known": {"mw_nh": [0.1, 0.2, 0.3]}}, "mw_nh: expected a value for each of 2 spectra; found 3"),
    ],
)
def test_bad_columns(columns, words):
    with pytest.raises(DataError, match=words):
        SourceSpectra.from_spectra(design(2).spectra, **columns)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"spectrum": "tbabs(mw)"}, "expected a spectrum with an additive component"),
        ({"spectrum": "powerlaw", "own": "index"}, "parameter of the spectrum 'index'"),
        ({"spectrum": "powerlaw", "own": "log10_flux", "common": "log10_flux"}, "expected other parameters than in"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        SpectralPopulation(**options)


def test_missing_columns_of_the_data_are_named():
    empty = design(2)
    with pytest.raises(DataError, match="expected values of 'nh' in the data; found none"):
        SpectralPopulation(spectrum="tbabs * powerlaw", known="nh").prepare(empty)
    with pytest.raises(DataError, match="expected the instrument of each spectrum with calibration=True"):
        SpectralPopulation(spectrum="powerlaw", calibration=True).prepare(empty)
