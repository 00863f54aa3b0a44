"""Table models: written, read, interpolated, folded and differentiated; among them a plasma with narrow lines."""

import jax
import numpy as np
import pytest
from astropy.io import fits
from scipy.special import ndtr
from small_ogip import small_rmf, small_spectrum

from hbm_jax.models import SpectralFit
from hbm_jax.spectra import Response, SpectrumStack, energy_flux, photons, read_table_model, write_table_model
from hbm_jax.spectra.model.text import spectrum_from_text, spectrum_to_text
from hbm_jax.validation import DataError

EDGES = np.concatenate([np.geomspace(0.05, 0.98, 60), np.linspace(0.9801, 1.02, 40), np.geomspace(1.0201, 20.0, 60)])
KT, METALS = np.geomspace(0.2, 5.0, 24), np.linspace(0.0, 2.0, 3)


def plasma(energy, kT, metals):
    """Photons of a continuum, and of a line of 1 eV that is linear in the abundance."""
    continuum = -np.diff(np.exp(-energy / kT)) / np.sqrt(kT)
    return continuum + 0.5 * metals * kT**-0.5 * np.diff(ndtr((energy - 1.0) / 0.001))


def extra(energy, kT, metals):
    return np.diff(energy) * kT


@pytest.fixture(scope="module")
def plasma_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "plasma.mod"
    grid = {"kT": KT, "metals": METALS}
    options = {"logarithmic": ["kT"], "units": {"kT": "keV"}, "additional": {"more": (extra, 0.0, 1.0)}}
    return path, write_table_model(path, plasma, EDGES, grid, **options)


@pytest.fixture(scope="module")
def depth_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "depth.mod"
    error = write_table_model(
        path, lambda energy, nh: nh * (0.5 * (energy[1:] + energy[:-1])) ** -2.5, EDGES, {"nh": [0.0, 1.0, 4.0]},
        additive=False, energy_scale=True,
    )  # fmt: skip
    assert error < 1e-9  # linear in nh; the largest depth is 7000
    return path


def interpolated(kT, metals, more):
    """By hand: linear in ln kT between two spectra, exact in the abundance."""
    upper = np.searchsorted(KT, kT)
    t = np.log(kT / KT[upper - 1]) / np.log(KT[upper] / KT[upper - 1])
    parts = [plasma(EDGES, k, metals) + more * extra(EDGES, k, metals) for k in KT[upper - 1 : upper + 1]]
    return (1 - t) * parts[0] + t * parts[1]


def test_a_table_is_read_as_it_was_written(plasma_file):
    path, error = plasma_file
    table = read_table_model(path)
    assert [p.name for p in table.parameters] == ["kT", "metals", "more"]
    assert table.parameters[0].logarithmic
    assert not table.parameters[1].logarithmic
    np.testing.assert_allclose(table.energy, EDGES, rtol=1e-15)
    np.testing.assert_allclose(table.spectra[3 * 5 + 2], plasma(EDGES, KT[5], METALS[2]), rtol=1e-14)
    truth = plasma(EDGES, np.sqrt(KT[0] * KT[1]), 0.5)
    found = interpolated(np.sqrt(KT[0] * KT[1]) * (1 + 1e-12), 0.5, 0.0)
    assert 0.0 < np.abs(found - truth).sum() / truth.sum() <= error * (1 + 1e-6)
    assert table.error == pytest.approx(error)
    assert error < 0.01
    with fits.open(path) as hdus:
        assert hdus[0].header["HDUCLAS1"] == "XSPEC TABLE MODEL"
        assert hdus["PARAMETERS"].header["NINTPARM"] == 2
        assert hdus["PARAMETERS"].header["NADDPARM"] == 1


def test_photons_density_and_flux_are_those_of_the_interpolated_spectrum(plasma_file):
    path, _ = plasma_file
    fixed, free = (
        spectrum_from_text(f"atable('{path}', gas, z=0.5)"),
        spectrum_from_text(f"atable('{path}', gas, z=None)"),
    )
    assert spectrum_from_text(spectrum_to_text(fixed * spectrum_from_text("wabs"))).parts[0] == fixed
    assert list(free.parameters) == ["gas_kT", "gas_metals", "gas_more", "gas_z", "gas_log10_amplitude"]
    values = {"gas_kT": 0.7, "gas_metals": 0.6, "gas_more": 0.3, "gas_log10_amplitude": -2.0}
    bins = np.array([0.02, 0.3, 0.5, 0.655, 0.681, 1.0, 30.0])  # none at an edge of the table
    spectrum = interpolated(0.7, 0.6, 0.3)
    cumulative = np.append(0.0, np.cumsum(spectrum))
    expected = 0.01 * np.diff(np.interp(1.5 * bins, EDGES, cumulative)) / 1.5
    density = 0.01 * spectrum / np.diff(EDGES)
    energy = np.array([0.04, 0.6, 0.6667, 3.0])

    def every(x):
        point = values | {"gas_kT": x[0], "gas_metals": x[1], "gas_z": x[2]}
        return (
            photons(fixed, bins)(point), photons(free, bins)(point), fixed.on(energy)(point), free.on(energy)(point),
            energy_flux(fixed, point, 0.5, 2.0), energy_flux(free, point, 0.5, 2.0),
        )  # fmt: skip

    found, slopes = jax.jit(lambda x: (every(x), jax.jacfwd(lambda x: every(x)[1])(x)))(np.array([0.7, 0.6, 0.5]))
    for index in (0, 1):
        np.testing.assert_allclose(found[index], expected, rtol=1e-9, atol=1e-15)
        assert found[index].sum() == pytest.approx(0.01 * spectrum.sum() / 1.5, rel=1e-9)
        own = np.where(1.5 * energy < EDGES[0], 0.0, density[np.searchsorted(EDGES, 1.5 * energy) - 1])
        np.testing.assert_allclose(found[2 + index], own, rtol=1e-9)
    inside = np.clip(EDGES, 0.75, 3.0)
    flux = 1.602176634e-9 * (density * np.diff(inside**2) / 2).sum() / 1.5**2
    np.testing.assert_allclose(found[4:], flux, rtol=1e-9)

    def by_hand(kT, metals, z):
        total = np.append(0.0, np.cumsum(interpolated(kT, metals, 0.3)))
        return 0.01 * np.diff(np.interp((1 + z) * bins, EDGES, total)) / (1 + z)

    point = np.array([0.7, 0.6, 0.5])
    for column, step in enumerate(1e-5 * np.eye(3)):
        difference = (by_hand(*(point + step)) - by_hand(*(point - step))) / 2e-5
        np.testing.assert_allclose(slopes[:, column], difference, rtol=1e-4, atol=1e-8)


def test_depths_and_factors(depth_file, tmp_path):
    text = f"etable('{depth_file}') * mtable('{depth_file}', m, z=1) * po"
    energy = np.array([1.0, 1.01, 3.0, 8.0])
    spectrum = spectrum_from_text(text)
    assert spectrum.parameters["energy_scale"].prior == "1.0"
    values = {"nh": 0.3, "energy_scale": 2.0, "m_nh": 2.5, "m_energy_scale": 1.0}
    found = jax.jit(spectrum.on(energy))(values | {"photon_index": 0.0, "log10_amplitude": 0.0})
    middle = 0.5 * (EDGES[1:] + EDGES[:-1])
    depth, factor = (np.interp(target, middle, middle**-2.5) for target in (energy / 2.0, energy * 2.0))
    np.testing.assert_allclose(found, np.exp(-0.3 * depth) * 2.5 * factor, rtol=1e-9)
    outside = jax.jit(spectrum.on(energy))(values | {"nh": 5.0, "photon_index": 0.0, "log10_amplitude": 0.0})
    assert np.isnan(outside).all()


def test_a_table_is_folded_exactly_with_its_lines(plasma_file):
    path, _ = plasma_file
    stack = SpectrumStack.of([small_spectrum(response=Response.of(small_rmf()))])
    model = SpectralFit(f"atable('{path}') * highecut", priors={"more": 0.0, "e_cut": 30.0, "e_fold": 10.0})
    bound = model.prepare(stack)
    energy, matrix = stack.grouped_response(0)
    values = {"kT": 1.3, "metals": 1.5, "log10_amplitude": 0.0}
    cumulative = np.append(0.0, np.cumsum(interpolated(1.3, 1.5, 0.0)))
    np.testing.assert_allclose(
        model.expected(bound, values)[0], np.diff(np.interp(energy, EDGES, cumulative)) @ matrix, rtol=1e-6
    )


def test_errors_name_the_file_and_what_was_found(plasma_file, depth_file, tmp_path):
    path, _ = plasma_file
    for text, words in (
        (f"atable('{depth_file}')", r"depth.mod: expected an additive table \(atable\); found factors"),
        (
            f"etable('{path}')",
            r"plasma.mod: expected factors or optical depths \(mtable or etable\); found an additive",
        ),
        ("atable('nowhere.mod')", "nowhere.mod: expected a table model; the file does not exist"),
        (f"atable('{path}', z=-3)", "z: expected a redshift above -1"),
    ):
        with pytest.raises(ValueError, match=words):
            spectrum_from_text(text)
    for extension, change, words in (
        ("SPECTRA", lambda hdu: fits.BinTableHDU(hdu.data[:-1], name="SPECTRA"), "expected 72 spectra"),
        ("SPECTRA", lambda hdu: fits.BinTableHDU(hdu.data[[0, *range(71)]], name="SPECTRA"), "every point of the grid"),
        ("PARAMETERS", lambda hdu: fits.ImageHDU(name="X"), "expected an extension PARAMETERS"),
    ):
        with fits.open(path) as hdus:
            number = hdus.index_of(extension)
            changed = fits.HDUList([hdu if i != number else change(hdu) for i, hdu in enumerate(hdus)])
            changed.writeto(tmp_path / "changed.mod", overwrite=True)
        with pytest.raises(DataError, match=words):
            read_table_model(tmp_path / "changed.mod")
    with pytest.raises(DataError, match="kT: expected at least two increasing values"):
        write_table_model(tmp_path / "a.mod", plasma, EDGES, {"kT": [1.0]})
    with pytest.raises(DataError, match="finite numbers from the function"):
        write_table_model(tmp_path / "a.mod", lambda energy, kT: energy, EDGES, {"kT": [1.0, 2.0]})


def test_soft_spectra_have_no_negative_photons(tmp_path):
    """A thermal spectrum that falls by forty decades within the response, at a fixed and at a free redshift."""
    edges = np.geomspace(0.1, 20.0, 801)

    def thermal(energy, kT):
        return -np.diff(np.exp(-energy / kT))

    path = tmp_path / "soft.mod"
    write_table_model(path, thermal, edges, {"kT": [0.1, 0.2, 0.3]})
    bins = np.linspace(0.3, 10.0, 500)
    values = {"kT": 0.1, "log10_amplitude": 0.0, "z": 0.5}
    exact = -np.diff(np.exp(-bins * 1.5 / 0.1)) / 1.5
    for z in (0.5, None):
        with jax.enable_x64(True):
            found = np.asarray(photons(spectrum_from_text(f"atable('{path}', z={z})"), bins)(values))
        assert (found > 0).all()
        np.testing.assert_allclose(found, exact, rtol=0.5)  # photons are uniform in a bin of the table
