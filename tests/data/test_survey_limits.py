"""Detection limits of surveys in observed bands and sensitivities to calibration, read from the files of Union3.1."""

import dataclasses

import numpy as np
import pytest

from hbm_jax.data import DataError, DataWarning, Supernovae, load_jla, read_supernovae, with_survey_limits
from hbm_jax.data.supernovae.surveys.limits import read_band
from hbm_jax.data.supernovae.surveys.sensitivities import with_sensitivities

BAND = "# m_obs = m_b + c2 + c3 c\nredshift,c2,c3\n0.0,0.5,-2.0\n0.2,0.1,-1.0\n0.6,-0.3,0.4\n"


@pytest.fixture
def files(tmp_path):
    (tmp_path / "selection").mkdir()
    (tmp_path / "selection" / "R.csv").write_text(BAND)
    (tmp_path / "cut.csv").write_text("survey,kc_file,est_mobs_cuts,est_mobs_sigmas\nsnls,R,23.8,0.5\nother,X,17,1\n")
    return tmp_path


@pytest.fixture
def sne():
    """Two supernovae of SNLS, one of them beyond the table of the band, and one of SDSS."""
    jla = load_jla()
    rows = [jla.survey.index("snls"), jla.survey.index("sdss"), jla.survey.index("snls") + 1]
    few = jla.subset(rows)
    return dataclasses.replace(few, z_hel=np.array([0.3, 0.3, 0.7]), z_cmb=np.array([0.3, 0.3, 0.7]))


def test_limits_and_coefficients_of_each_survey(files, sne):
    with pytest.warns(DataWarning, match=r"band R: 1 supernovae are beyond its redshifts, 0 to 0.6"):
        limited = with_survey_limits(sne, files / "cut.csv")
    np.testing.assert_array_equal(limited.band_limit, [23.8, np.nan, 23.8])
    np.testing.assert_array_equal(limited.band_limit_width, [0.5, np.nan, 0.5])
    np.testing.assert_allclose(limited.band_offset, [0.0, 0.0, -0.3], atol=1e-15)  # a quarter of the way at z = 0.3
    np.testing.assert_allclose(limited.band_colour, [-0.65, 0.0, 0.4])
    assert "beyond its redshifts" in limited.warnings[-1]
    restored = Supernovae.from_dict(limited.to_dict())
    np.testing.assert_array_equal(restored.band_limit, limited.band_limit)
    with pytest.warns(DataWarning, match="beyond its redshifts"):
        again = read_supernovae(sne.to_table(), limits=str(files / "cut.csv"))
    np.testing.assert_array_equal(again.band_offset, limited.band_offset)
    np.testing.assert_array_equal(read_supernovae(limited.to_table()).band_colour, limited.band_colour)
    assert not {"band_limit", "band_offset"} & {*sne.to_dict(), *sne.to_table().colnames}


def test_limits_in_m_b(sne):
    limited = with_survey_limits(sne, {"survey": ["sdss"], "limit": [21.0], "width": [0.3]})
    np.testing.assert_array_equal(limited.band_limit, [np.nan, 21.0, np.nan])
    assert not limited.band_offset.any()


def test_refusals(files, sne):
    table = {"survey": ["snls"], "limit": [23.0], "width": [0.3]}
    for changed, message in (
        ({"survey": ["SNLS"]}, "expected limits of snls, sdss; found those of SNLS"),
        ({"width": [0.0]}, "widths above 0"),
        ({"band": ["R"]}, "bands: expected the folder"),
    ):
        with pytest.raises(DataError, match=message):
            with_survey_limits(sne, table | changed)
    with pytest.raises(DataError, match="expected one row for each survey"):
        with_survey_limits(sne, {name: 2 * value for name, value in table.items()})
    with pytest.raises(FileNotFoundError):
        with_survey_limits(sne, table | {"band": ["Z"]}, files / "selection")
    (files / "bad.csv").write_text("redshift,c2,c3\n0.2,0,0\n0.1,0,0\n")
    with pytest.raises(DataError, match="redshifts or more, which increase"):
        read_band(files / "bad.csv")
    with pytest.raises(DataError, match=r"band_limit.*a band_limit_width beside it"):
        Supernovae.from_dict(sne.to_dict() | {"band_limit": np.array([20.0, 20.0, 20.0])})


def test_sensitivities_of_a_file(tmp_path, sne):
    rng = np.random.default_rng(1)
    offsets, flows = rng.normal(size=(3, 3, 5)), rng.normal(size=(3, 2))
    path = tmp_path / "s.npz"
    np.savez(path, sensitivity=offsets, names=list("grizy"), bulk_flow=flows)
    read = read_supernovae(sne.to_table(), sensitivity=str(path), leave_out=[sne.name[1]])
    np.testing.assert_array_equal(read.sensitivity[:, :5], np.moveaxis(offsets, 1, 2)[[0, 2]])
    np.testing.assert_array_equal(read.sensitivity[:, 5:, 0], flows[[0, 2]])
    assert not read.sensitivity[:, 5:, 1:].any()
    assert read.offset_name == (*"griz", "y", "bulk flow 0", "bulk flow 1")
    with pytest.raises(DataError, match="expected one row for each of 2 supernovae; found 3 rows"):
        with_sensitivities(sne.subset([0, 1]), path)
    with pytest.raises(DataError, match="distinct names"):
        with_sensitivities(with_sensitivities(sne, path), path)
    np.savez(path, sensitivity=offsets[:, :2])
    with pytest.raises(DataError, match=r"expected shape \(M, 3, J\) or \(M, J, 3\); found \(3, 2, 5\)"):
        with_sensitivities(sne, path)


def test_the_command_line_and_a_configuration_read_limits_and_options(files, sne):
    """Flags, the configuration that they make, and the model and data that it restores."""
    from hbm_jax.cli import commands, inputs

    rows = sne.subset([0, 1])
    rows.to_table().write(files / "table.ecsv")
    np.savez(files / "s.npz", sensitivity=0.01 * np.ones((2, 3, 4)), names=list("griz"))
    flags = ["--limits", str(files / "cut.csv"), "--sensitivity", str(files / "s.npz"), "--selection", "band"]
    flags += ["--scatter", "shared", "--host-populations", "--step-evolution", "--observations", "joint"]
    flags += ["--cosmology", "nodes(0.1, 0.5, 1)", "--prior", "m_lim_width_ratio=1.0"]
    arguments = commands.parsed(["fit", "supernova", "--data", str(files / "table.ecsv"), *flags])[1]
    model, data = inputs.model_and_data(inputs.configuration_of(arguments))
    assert (model.selection, model.scatter, model.observations) == ("band", "shared", "joint")
    assert model.host_populations
    assert model.step_evolution
    assert model.all_priors["m_lim_width_ratio"] == 1.0
    assert {"dmu_3", "x1_host", "delta_M_ratio", "scatter_m", "m_lim_shift"} <= {*model.all_priors}
    assert data.band_limit[0] == 23.8
    assert data.offset_name == tuple("griz")
    assert model.bind(data).columns["has_limit"].tolist() == [1.0, 0.0]
