"""Run folders: what is written, what `hbm_jax.load` makes of it, and what is not overwritten."""

import dataclasses
import json
import resource

import h5py
import numpy as np
import pytest
from stored_fits import load, own_model

import hbm_jax as hbm
from hbm_jax import runs
from hbm_jax.configuration import ConfigError, defaults
from hbm_jax.inference import CheckpointError, ResultFileError
from hbm_jax.inference.checksum import DamageWarning
from hbm_jax.inference.sampler.fingerprint import identify


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "sne"
    config = defaults() | {"model": {"name": "supernova"}}
    runs.write(load("supernova"), path, config)
    return path


@pytest.mark.parametrize("form", ["folder", "file", "without suffix", "text"])
def test_model_and_data_are_rebuilt_exactly(folder, form):
    forms = {
        "folder": folder,
        "file": folder / "posterior.nc",
        "without suffix": folder / "posterior",
        "text": str(folder),
    }
    fit, back = load("supernova"), hbm.load(forms[form])
    assert isinstance(back.program, hbm.models.Supernova)
    assert back.program.to_config() == fit.program.to_config()
    assert back.program.cosmology == "lcdm"
    assert back.program.all_priors.keys() == fit.program.all_priors.keys()
    for field in dataclasses.fields(fit.data):
        mine, other = getattr(back.data, field.name), getattr(fit.data, field.name)
        if isinstance(other, tuple):
            assert mine == other
            assert all(type(text) is str for text in mine)
        else:
            np.testing.assert_array_equal(mine, other)
            assert mine.dtype == np.float64
    assert back.posterior.equals(fit.posterior)
    assert str(back.verdict) == str(fit.verdict)


def test_priors_that_were_changed_come_back(tmp_path):
    fit = load("supernova")
    model = hbm.models.Supernova(
        cosmology="wcdm", mass_step=False, priors={"w0": "TruncatedNormal(-1, 0.2, high=0)", "H0": 73, "alpha": 0.14}
    )
    copy = dataclasses.replace(fit, tree=fit.tree.copy(), run=fit.run | {"config": model.to_config()})
    copy.tree.attrs["hbm_jax_run"] = json.dumps(copy.run)
    back = hbm.load(copy.save(tmp_path / "other")).program
    assert back.to_config() == model.to_config()
    assert back.all_priors["w0"].base_dist.scale == 0.2
    assert back.all_priors["H0"] == 73.0
    assert "delta_M" not in back.all_priors


def test_files_of_a_run_folder(folder):
    assert {path.name for path in folder.iterdir()} == {"posterior.nc", "config.toml", "summary.csv"}
    rows = (folder / "summary.csv").read_text().splitlines()
    assert rows[0].startswith("parameter,median,lower_68,upper_68,mean,sd,unit")
    assert [row.split(",")[0] for row in rows[1:]] == list(load("supernova").posterior)
    text = (folder / "config.toml").read_text()
    assert "num_warmup" not in text  # what is None is left out
    assert 'name = "supernova"' in text


def test_replacing_a_run_leaves_no_report_of_the_old_one(tmp_path):
    folder = tmp_path / "run"
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "corner.png").write_bytes(b"old")
    (folder / "report.html").write_text("old")
    (folder / "notes.txt").write_text("mine")
    (folder / runs.REPLACED).mkdir()
    runs.write(load("own"), folder, defaults())
    assert {path.name for path in folder.iterdir()} == {"posterior.nc", "config.toml", "summary.csv", "notes.txt"}


def test_no_room_for_the_posterior(tmp_path):
    (tmp_path / "posterior.nc").write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"expected room for a posterior of 1 MB; found: File too large\.$"):
            runs.write(load("own"), tmp_path, defaults())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["posterior.nc"]
    assert (tmp_path / "posterior.nc").read_text() == "old"


def test_a_users_own_program_is_not_stored(tmp_path):
    path = load("own").save(tmp_path / "own")
    back = hbm.load(path)
    assert back.program is None
    assert back.data is None
    for predict in (hbm.posterior_predictive, hbm.latents):
        with pytest.raises(ValueError, match=r"expected a fit with its program and data, found one without"):
            predict(back)
    given = hbm.load(path, own_model, load("own").args)
    assert given.program is own_model
    assert given.args is load("own").args


def class_of_that_name():
    """A user's own model that happens to have our model's name."""
    return type("Supernova", (hbm.models.Supernova,), {"__module__": "mine"})


def test_a_users_class_of_the_same_name_is_not_taken_for_ours(tmp_path):
    fit = load("supernova")
    config = class_of_that_name()().to_config()
    copy = dataclasses.replace(fit, tree=fit.tree.copy(), run=fit.run | {"config": config})
    copy.tree.attrs["hbm_jax_run"] = json.dumps(copy.run)
    path = copy.save(tmp_path / "other")
    back = hbm.load(path)
    assert back.run["program"] == "Supernova"
    assert back.program is None
    assert hbm.load(path, class_of_that_name()(), fit.args).data is fit.data


def test_files_of_older_versions_are_still_ours(tmp_path):
    # They have the bare name of the class, and perhaps not every option of today's.
    fit = load("supernova")
    config = {name: value for name, value in fit.run["config"].items() if name != "mass_step"}
    copy = dataclasses.replace(fit, tree=fit.tree.copy(), run=fit.run | {"config": config})
    copy.tree.attrs["hbm_jax_run"] = json.dumps(copy.run)
    assert hbm.load(copy.save(tmp_path / "older")).program.to_config() == fit.program.to_config()


# What is continued

OPTIONS = {"num_warmup": 10, "num_chains": 1, "progress": False}


@pytest.fixture(scope="module")
def own_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "run"
    x = np.linspace(0.0, 1.0, 5)
    y = 2.0 * x + np.array([0.1, -0.2, 0.1, 0.2, -0.1])  # scatter, or the density has no maximum
    hbm.sample(own_model, x, y, num_samples=10, checkpoint=folder / "checkpoint", **OPTIONS)
    return folder, x, y


def test_a_users_own_program_is_continued_with_it(own_checkpoint):
    folder, x, y = own_checkpoint
    fit = hbm.resume(str(folder / "checkpoint"), own_model, x, y, num_samples=15, progress=False)
    assert fit.posterior.sizes["draw"] == 15
    assert fit.program is own_model


def test_a_users_own_program_is_asked_for(own_checkpoint):
    folder, x, _ = own_checkpoint
    with pytest.raises(CheckpointError, match=r"expected the program of the run, own_model, and its data, because"):
        hbm.resume(folder)
    with pytest.raises(CheckpointError, match=r"found that the data args\[1\] differs"):
        hbm.resume(folder, own_model, x, 3.0 * x)


@pytest.mark.long
def test_our_model_is_continued_without_it(tmp_path):
    schools = hbm.data.load_eight_schools()
    model = hbm.models.Normal(latents="noncentred", priors={"mu": 8.0, "tau": "HalfNormal(5)"})
    hbm.sample(model, schools, num_samples=5, checkpoint=tmp_path / "run", **OPTIONS)
    fit = hbm.resume(tmp_path / "run", num_samples=10, progress=False)
    assert fit.posterior.sizes["draw"] == 10
    assert fit.program.to_config() == model.to_config()
    np.testing.assert_array_equal(fit.data.values, schools.values)


def test_a_subclass_is_not_continued_as_ours(tmp_path):
    sne = hbm.data.load_jla().subset(np.arange(0, 740, 100))
    Own = class_of_that_name()
    about = identify(Own(), (sne,), {})
    (tmp_path / "run.json").write_text(json.dumps({"format": 1} | about))
    np.savez(tmp_path / "data.npz", **sne.to_dict())
    with pytest.raises(CheckpointError, match=r"expected the program of the run, Supernova, and its data"):
        hbm.resume(tmp_path)


def test_there_is_nothing_to_continue(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected a checkpoint folder holding run\.json; found none"):
        hbm.resume(tmp_path / "nothing")


def test_folder_without_a_posterior(tmp_path):
    with pytest.raises(ResultFileError, match=r"expected a run folder holding posterior\.nc, found none in it"):
        hbm.load(tmp_path)


def test_missing_run(tmp_path):
    with pytest.raises(ResultFileError, match="found no such file"):
        hbm.load(tmp_path / "nothing")


@pytest.mark.long
def test_a_posterior_beside_the_checkpoint_of_another_run(tmp_path):
    schools, model = hbm.data.load_eight_schools(), hbm.models.Normal(priors={"mu": 8.0, "tau": "HalfNormal(5)"})
    for name in ("run", "other"):
        fit = hbm.sample(model, schools, num_samples=5, checkpoint=tmp_path / name / "checkpoint", **OPTIONS)
        runs.write(fit, tmp_path / name, defaults())
    assert hbm.load(tmp_path / "run").posterior.equals(fit.posterior)
    (tmp_path / "other" / "posterior.nc").rename(tmp_path / "run" / "posterior.nc")
    with pytest.warns(DamageWarning, match=r"run/posterior\.nc: expected the posterior of the run in .* another run"):
        hbm.load(tmp_path / "run")


def test_a_small_file_that_holds_too_much(tmp_path):
    path = tmp_path / "posterior.nc"
    with h5py.File(path, "w") as file:  # zeros that are not written take no room
        file.create_dataset("x", (10**6, 10**6), float)
    assert path.stat().st_size < 10_000
    with pytest.raises(
        ResultFileError, match=r"expected at most 1024 MB of numbers in a result file of .* MB; found 76"
    ):
        hbm.load(path)


def test_a_configuration_that_was_changed_is_not_shown_as_that_of_the_run(folder):
    path = folder / "config.toml"
    text = path.read_text()
    assert runs.config_of(folder) == path
    for changed in (text.replace("seed = 0", "seed = 1"), text[:-9]):
        path.write_text(changed)
        with pytest.raises(ConfigError, match=r"config\.toml: expected the configuration of the run as it was written"):
            runs.config_of(folder)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"config\.toml: expected TOML, found something else"):
        runs.config_of(folder)
    path.write_text(text.partition("\n")[2])  # as an older version wrote it
    assert runs.config_of(folder) == path
    path.write_text('model = "supernova"')  # one line
    assert runs.config_of(folder) == path
    for empty in ("", "\n\n", text.partition("\n")[0]):
        path.write_text(empty)
        with pytest.raises(ConfigError, match=r"expected the configuration of the run; found an empty file"):
            runs.config_of(folder)
    path.write_text(text)


# What is not overwritten


def test_new_and_empty_folders_are_fine(tmp_path):
    runs.check_run_folder(tmp_path / "new", overwrite=False)
    runs.check_run_folder(tmp_path, overwrite=False)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("name", "what"), [("posterior.nc", "another run"), ("thesis.tex", "other files")])
def test_folders_that_hold_something(tmp_path, name, what):
    (tmp_path / name).write_text("")
    with pytest.raises(FileExistsError, match=f"expected a new or empty folder for the run, found {what} in it"):
        runs.check_run_folder(tmp_path, overwrite=False)
    runs.check_run_folder(tmp_path, overwrite=True)


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_file_where_the_folder_should_be(tmp_path, overwrite):
    (tmp_path / "run").write_text("")
    with pytest.raises(FileExistsError, match="expected a folder for the run, found a file of that name"):
        runs.check_run_folder(tmp_path / "run", overwrite)
