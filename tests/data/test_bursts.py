"""Bursts at catalogue level: what goes in comes back, what is wrong is named; Konus-Wind; simulated populations."""

import jax
import numpy as np
import pytest
from monte_carlo import seed

from hbm_jax.cosmology import Cosmology
from hbm_jax.data import BurstPopulation, Bursts, DataError, load_konus, read_bursts
from hbm_jax.data.bursts.tables import KONUS_COSMOLOGY
from hbm_jax.data.tables import read_table
from hbm_jax.spectra.model.components import Band, CutoffPowerLaw
from hbm_jax.spectra.model.energetics import isotropic_energy, k_correction, log10_sphere_area

UNIVERSE = Cosmology.flat(H0=70.0, Om0=0.3)
sphere = jax.jit(log10_sphere_area)
energy = jax.jit(isotropic_energy)


def columns(**changed):
    given = {
        "burst": ["a", "a", "b", "a"],
        "z": [1.0, 1.0, np.nan, 1.0],
        "log10_E_peak": [2.5, 2.3, 2.2, 2.0],
        "log10_flux": [-5.0, -5.2, -5.5, -5.6],
        "sigma_log10_E_peak": [0.05, 0.04, 0.03, 0.06],
        "sigma_log10_flux": [0.02, 0.03, 0.04, 0.05],
    }
    return {key: value for key, value in (given | changed).items() if value is not None}


def test_rows_become_bursts():
    data = Bursts.from_columns(columns(correlation=[0.5, 0.0, np.nan, -0.2], log10_flux_limit=[-6, -6, np.nan, -6]))
    assert data.name == ("a", "b")
    assert data.used.tolist() == [[True, True, True], [True, False, False]]
    np.testing.assert_array_equal(data.log10_E_peak, [[2.5, 2.3, 2.0], [2.2, 0, 0]])
    np.testing.assert_allclose(data.errors[0, 0], [0.05**2, 0.5 * 0.05 * 0.02, 0.02**2])
    assert data.log10_flux_limit.tolist() == [-6, -np.inf]
    assert data.knows_redshift.tolist() == [True, False]
    assert "2 gamma-ray bursts at redshift 1 to 1; 1 redshifts are known, 1 unknown" in data.describe()
    assert data.subset([1]).name == ("b",)
    assert np.isnan(data.without_redshifts(["a"]).z).all()


def test_linear_values_and_asymmetric_errors():
    given = columns(log10_E_peak=None, sigma_log10_E_peak=None)
    given |= {"E_peak": [100.0] * 4, "E_peak_err_lo": [10.0] * 4, "E_peak_err_hi": [20.0] * 4}
    data = Bursts.from_columns(given)
    assert data.log10_E_peak[0, 0] == 2
    assert np.sqrt(data.errors[0, 0, 0]) == pytest.approx(0.5 * (np.log10(120) - np.log10(90)))


def test_a_column_may_be_called_by_an_alias():
    given = columns()
    table = {"GRB": given.pop("burst"), "zspec": given.pop("z"), **given}
    data = read_bursts(table, columns={"name": "GRB", "redshift": "zspec"})
    assert data.name == ("a", "b")
    np.testing.assert_array_equal(data.z, [1.0, np.nan])
    with pytest.raises(DataError, match="unknown key in columns 'names': expected one of burst, z"):
        read_bursts(table, columns={"names": "GRB", "z": "zspec"})


@pytest.mark.parametrize("quantity", ["flux", "fluence"])
def test_what_is_written_is_read_again(tmp_path, quantity):
    shape = {"alpha": [-1.0] * 4, "beta": [-2.5, -2.5, np.nan, -2.3], "band_low": [10.0] * 4, "band_high": [1e3] * 4}
    data = Bursts.from_columns(columns(covariance=[1e-4, 0, 0, -1e-4], **shape), quantity=quantity)
    data.to_table().write(tmp_path / "bursts.ecsv")
    for again in (read_bursts(tmp_path / "bursts.ecsv"), Bursts.from_dict(data.to_dict())):
        assert again.quantity == quantity
        for key, value in data.to_dict().items():
            if value.dtype.kind == "f":
                np.testing.assert_allclose(again.to_dict()[key], value, rtol=1e-14, err_msg=key)
            else:
                assert again.to_dict()[key].tolist() == value.tolist(), key


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"z": None}, "column 'z' is missing"),
        ({"log10_flux": None}, "column 'log10_flux' is missing: expected 'log10_flux' or 'flux'"),
        (
            {"sigma_log10_flux": [0.02, 0.0, 0.1, 0.1]},
            r"sigma_log10_flux, row 1 \(a\): expected an error above 0, found 0",
        ),
        ({"z": [1.0, 1.1, 2.0, 1.0]}, r"z, row 1 \(a\): expected one value in all intervals of a burst, found 1.1"),
        (
            {"z": [-1.0, -1.0, 2.0, -1.0]},
            r"z, row 0 \(a\): expected a redshift between 0 and 20 .*missing=-1\), found -1",
        ),
        ({"correlation": [0.0, 1.0, 0.0, 0.0]}, r"correlation, row 1 \(a\): expected a correlation between"),
        ({"covariance": [0.1, 0, 0, 0], "correlation": [0.1, 0, 0, 0]}, "expected one of the two columns"),
        ({"log10_E_peak": [2.5, np.nan, 2.2, 2.0]}, r"log10_E_peak, row 1 \(a\): expected a finite number"),
        (
            {"log10_E_peak": [250.0, 2.3, 2.2, 2.0]},
            r"log10_E_peak, row 0 \(a\): expected a logarithm of keV between -1 and 6, found 250",
        ),
        ({"log10_flux_limit": [-5.1] * 4}, r"log10_flux, row 1 \(a\): expected a flux above the burst's"),
        ({"band_low": [10.0] * 4}, "band_low, band_high: expected both columns or none"),
        ({"band_low": [10.0] * 4, "band_high": [1e3] * 4}, "expected the photon index alpha"),
        ({"alpha": [-2.5] * 4}, r"alpha, row 0 \(a\): expected a photon index between -2 and 10"),
        ({"alfa": [1.0] * 4}, r"unknown column 'alfa' \(did you mean 'alpha'\?\)"),
        ({"log10_flux": [-5.0, -5.2]}, "columns of different length"),
    ],
)
def test_bad_rows(changed, message):
    with pytest.raises(DataError, match=message):
        Bursts.from_columns(columns(**changed))


def test_a_bad_table_is_named(tmp_path):
    (tmp_path / "bad.csv").write_text("name,redshift,Ep\na,1.0,200\n")
    with pytest.raises(DataError, match=r"bad.csv: column 'log10_E_peak' is missing"):
        read_bursts(tmp_path / "bad.csv")
    with pytest.raises(DataError, match=r"column 'z' is missing: expected 'z', or columns=\{'z':"):
        read_bursts({"burst": ["a"]})


def test_corrections_to_the_bursts_frame():
    shape = {"alpha": [-0.9, -0.9, -0.9, np.nan], "beta": [-2.4, np.nan, np.nan, np.nan]}
    band = {"band_low": [10.0, 10.0, 10.0, np.nan], "band_high": [1e3, 1e3, 1e3, np.nan]}
    data = Bursts.from_columns(columns(z=[1.0, 1.0, 1.0, 1.0], **shape, **band))
    found = np.asarray(jax.jit(data.log10_k)(data.z))

    def expected(spectrum, values):
        k = jax.jit(lambda values: k_correction(spectrum, values, 1.0, rest=(1.0, 1e4), observed=(10.0, 1e3)))(values)
        return pytest.approx(float(np.log10(k)), abs=1e-12)

    band, cut = Band(norm="amplitude"), CutoffPowerLaw(norm="amplitude", peak=True)
    values = {"alpha": -0.9, "beta": -2.4, "photon_index": 0.9, "log10_amplitude": 0.0}
    assert found[0, 0] == expected(band, values | {"e_peak": 10**2.5})
    assert found[0, 1] == expected(cut, values | {"e_peak": 10**2.3})
    assert found[0, 2] == 0
    assert found[1, 1] == 0


# Konus-Wind: Tsvetkova et al. 2017


def test_konus_is_seen_from_its_redshift():
    amati, yonetoku = load_konus(), load_konus("yonetoku")
    assert (len(amati), len(yonetoku)) == (137, 108)
    cosmology = Cosmology.flat(**KONUS_COSMOLOGY)
    first = amati.name.index("970828")
    found = energy(10.0 ** amati.log10_flux[first, 0], 0.9578, cosmology)
    assert float(found) == pytest.approx(262.2e51, rel=1e-12)
    first = yonetoku.name.index("970828")
    luminosity = yonetoku.log10_flux[first, 0] + float(sphere(0.9578, cosmology))
    assert 10.0 ** (luminosity - 51.0) == pytest.approx(30.9, rel=1e-10)
    with pytest.raises(ValueError, match="relation: expected one of amati, yonetoku; found 'amatti'"):
        load_konus("amatti")


def published(path):
    """Fluence and peak flux [erg/cm^2, 64 ms at rest], E_iso and L_iso of the paper's energetics table."""
    rows = {}
    for line in path.read_text().splitlines():
        if line.startswith("GRB"):
            parts = [line[a:b].strip() for a, b in ((3, 10), (16, 24), (109, 116), (131, 140), (150, 158))]
            rows[parts[0]] = [float(x) if x else np.nan for x in parts[1:]]
    return rows


def test_energies_and_luminosities_of_konus_follow_from_its_spectra(shared_data):
    table = published(shared_data("grb/tsvetkova2017_table4_mrt.txt"))
    bursts = read_table(shared_data("grb/konus_wind_bursts.csv"))
    redshift = dict(zip(bursts.values("grb"), bursts.values("z").astype(float), strict=True))
    spectra = read_table(shared_data("grb/konus_wind_spectra.csv"))
    column = {name: spectra.values(name) for name in ("grb", "interval", "model", "alpha", "beta", "e_peak")}
    cosmology = Cosmology.flat(**KONUS_COSMOLOGY)
    ratios = {"i": [], "p": []}
    for row, name in list(enumerate(column["grb"]))[::3]:
        if name not in table:
            continue
        fluence, flux, e_iso, l_iso = table[name]
        z, kind = redshift[name], column["interval"][row]
        values = {"alpha": float(column["alpha"][row]), "e_peak": float(column["e_peak"][row]), "log10_amplitude": 0.0}
        if column["model"][row] == "band":
            spectrum, values = Band(norm="amplitude"), values | {"beta": float(column["beta"][row])}
        else:
            spectrum, values = CutoffPowerLaw(norm="amplitude", peak=True), values | {"photon_index": -values["alpha"]}
        # The paper's band: from 1 / (1 + z) keV, and to 10 MeV as observed.
        k = float(k_correction(spectrum, values, z, rest=(1.0, 1e4 * (1 + z)), observed=(10.0, 1e4)))
        area = 10.0 ** (float(sphere(z, cosmology)) - 51.0)
        if kind == "i":
            ratios["i"].append(area * fluence * 1e-6 * k / (1 + z) / e_iso)
        elif np.isfinite(flux):
            ratios["p"].append(area * flux * 1e-6 * k / l_iso)
    for kind, num in (("i", 43), ("p", 33)):
        found = np.array(ratios[kind])
        assert len(found) > num
        assert np.abs(found - 1).max() < 0.03
        assert abs(np.median(found) - 1) < 0.002


# Simulation


def test_a_population_obeys_its_relation(monte_carlo):
    population = BurstPopulation(num_intervals=40, gamma=(1.4, 0.0), log10_N=(52.2, 0.0), intrinsic_scatter=0.0)
    data, truth = population.draw(60, seed=seed(2))
    away = np.asarray(sphere(data.z, UNIVERSE))
    np.testing.assert_allclose(
        truth["log10_flux"] + away[:, None], 52.2 + 1.4 * (truth["log10_E_peak"] - 2.0), rtol=1e-13
    )
    pull = (data.log10_E_peak - truth["log10_E_peak"] + np.log10(1 + data.z)[:, None]) / np.sqrt(data.errors[..., 0])
    other = (data.log10_flux - truth["log10_flux"]) / np.sqrt(data.errors[..., 2])
    for name, one in (("E_peak", pull.ravel()), ("flux", other.ravel())):
        monte_carlo.within((one**2).mean(), 1.0, (2.0 / one.size) ** 0.5, name=f"variance of {name}")
        monte_carlo.distribution(one, "norm", name=name)
    monte_carlo.within((pull * other).mean(), 0.3, (1.09 / pull.size) ** 0.5, name="correlation")
    assert (np.diff(truth["log10_E_peak"], axis=1) <= 0).all()
    tracking = BurstPopulation(evolution="tracking", num_intervals=12).draw(5, seed=1).truth["log10_E_peak"]
    assert (tracking.argmax(axis=1) == 4).all()


def test_limits_and_unknown_redshifts():
    data, truth = BurstPopulation(log10_flux_limit=-6.0, unknown=0.25).draw(8, seed=4)
    assert (data.log10_flux[data.used] >= -6.0).all()
    assert truth["num_drawn"] > data.num_intervals
    assert np.isnan(data.z).tolist() == [False] * 6 + [True] * 2
    assert np.isfinite(truth["z"]).all()
    with pytest.raises(DataError, match=r"expected 12 intervals of sim001 .* above log10_flux_limit = 0.0; found 0"):
        BurstPopulation(log10_flux_limit=0.0).draw(2, seed=1)
    with pytest.raises(ValueError, match="evolution: expected one of"):
        BurstPopulation(evolution="soft to hard")


def test_a_quantity_is_a_flux_or_a_fluence():
    with pytest.raises(DataError, match="quantity: expected one of flux, fluence; found 'power'"):
        Bursts.from_columns({"name": ["GRB 1"]}, quantity="power")


def rest_frame(**changed):
    given = {
        "burst": ["a", "b", "c"], "z": [0.4, 1.0, 3.0], "log10_E_peak_rest": [2.5, 2.8, 3.0],
        "sigma_log10_E_peak_rest": [0.05, 0.1, 0.04], "E_iso": [1e52, 3e53, 2e54], "E_iso_err_lo": [1e51, 2e52, 3e53],
        "E_iso_err_hi": [2e51, 3e52, 3e53],
    }  # fmt: skip
    return {key: value for key, value in (given | changed).items() if value is not None}


def test_tables_of_isotropic_energies_and_luminosities():
    """What the model multiplies by the sphere is the value of the table, in the cosmology of the table."""
    z, E = np.array([0.4, 1.0, 3.0]), np.array([1e52, 3e53, 2e54])
    cosmology = Cosmology.flat(H0=67.3, Om0=0.315)
    data = read_bursts(rest_frame(), H0=67.3, Om0=0.315)
    assert data.quantity == "fluence"
    assert data.num_intervals == len(data) == 3
    away = np.asarray(sphere(z, cosmology))
    np.testing.assert_allclose(data.log10_flux[:, 0] + away - np.log10(1.0 + z), np.log10(E), rtol=1e-12)
    np.testing.assert_allclose(data.log10_E_peak[:, 0] + np.log10(1.0 + z), [2.5, 2.8, 3.0], rtol=1e-12)
    np.testing.assert_allclose(np.sqrt(data.errors[:, 0, 0]), [0.05, 0.1, 0.04])
    np.testing.assert_allclose(np.sqrt(data.errors[0, 0, 2]), 0.5 * (np.log10(1.2) - np.log10(0.9)))
    names = {"E_iso": None, "E_iso_err_lo": None, "E_iso_err_hi": None, "E_peak_rest": [300.0, 600.0, 1000.0]}
    names |= {"E_peak_rest_err_lo": [30.0] * 3, "E_peak_rest_err_hi": [30.0] * 3, "log10_E_peak_rest": None}
    names |= {"sigma_log10_E_peak_rest": None, "lum": [51.0, 52.0, 53.0], "sigma_log10_L_iso": [0.1] * 3}
    other = read_bursts(rest_frame(**names), columns={"log10_L_iso": "lum"})
    assert other.quantity == "flux"
    np.testing.assert_allclose(other.log10_flux[:, 0] + np.asarray(sphere(z, UNIVERSE)), [51.0, 52.0, 53.0], rtol=1e-12)
    np.testing.assert_allclose(10.0 ** other.log10_E_peak[:, 0], np.array([300.0, 600.0, 1000.0]) / (1.0 + z))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"z": [0.4, np.nan, 3.0]}, "expected the redshift of every burst.*found none of b"),
        ({"E_iso": [1e52, -3e53, 2e54]}, "E_iso, row 1.*expected E_iso in erg"),
        ({"flux": [1e-5, 1e-5, 1e-5]}, "E_iso: expected it or flux; found both"),
        ({"E_iso": None}, "column 'log10_flux' is missing"),
    ],
)
def test_wrong_values_in_the_rest_frame_are_named(changed, words):
    with pytest.raises(DataError, match=words):
        read_bursts(rest_frame(**changed), quantity="fluence")


def test_a_cosmology_that_is_none_is_named():
    with pytest.raises(DataError, match=r"expected H0 > 0.*found H0=-3"):
        read_bursts(rest_frame(), H0=-3.0)
    with pytest.raises(DataError, match=r"expected H0 > 0.*found H0=70.0 and Om0=1.3"):
        read_bursts(columns(), Om0=1.3)
    with pytest.raises(DataError, match=r"z: expected redshifts above 0.*found 0"):
        read_bursts(rest_frame(z=[0.0, 1.0, 3.0]))


def test_energies_and_luminosities_in_one_table_are_a_choice():
    both = rest_frame(L_iso=[1e51, 1e52, 1e53])
    with pytest.raises(DataError, match=r"found E_iso and L_iso\. Choose by quantity='flux', which uses L_iso"):
        read_bursts(both)
    assert read_bursts(both, quantity="fluence").quantity == "fluence"


def test_a_table_of_fluxes_may_hold_isotropic_energies_that_are_not_used():
    table = columns() | {"E_iso": [1e52] * len(columns()["burst"])}
    with pytest.raises(DataError, match=r"found E_iso and log10_flux\. Choose by quantity='flux'"):
        read_bursts(table)
    used, alone = read_bursts(table, quantity="flux"), read_bursts(columns())
    np.testing.assert_array_equal(used.log10_flux, alone.log10_flux)
