"""Runs that are stopped, killed, damaged or mistaken for others: what is on disk, and what comes out in the end."""

import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import numpyro
import pytest
import xarray as xr
from killed import OPTIONS, SIGMA, Y
from numpyro import distributions as dist
from programs import eight_schools, tiny

import hbm_jax as hbm
from hbm_jax.inference import CheckpointError, Interrupted, resume
from hbm_jax.inference import run as run_module
from hbm_jax.inference.checksum import DamageWarning, append_checksum
from hbm_jax.inference.sampler import chains, checkpoint, loop, stopping

HERE = Path(__file__).parent
GROUPS = ("posterior", "unconstrained_posterior", "sample_stats")


# Trajectories of one length compile in half the time of NUTS; what is on disk is the same.
OF_ONE_LENGTH = {"seed": 4, "num_warmup": 60, "num_samples": 90, "sampler": hbm.HMC(trajectory_length=1.5)}


def run(**options):
    return hbm.sample(eight_schools, Y, SIGMA, **({"progress": False} | OF_ONE_LENGTH | options))


def go_on(folder, **options):
    return resume(folder, eight_schools, Y, SIGMA, **({"progress": False} | options))


@pytest.fixture(scope="module")
def whole():
    """A run that nothing interrupts, of more draws than the others."""
    return run(num_samples=130)


@pytest.fixture
def blocks(monkeypatch):
    """Cuts what is drawn into blocks of 20 draws at most; the lengths, one after the other."""
    lengths, advance = [], chains.Chains.advance

    def cut(self, num_draws):
        lengths.append(min(num_draws, 20))
        return advance(self, lengths[-1])

    monkeypatch.setattr(chains.Chains, "advance", cut)
    return lengths


@pytest.fixture
def stop_after(monkeypatch, blocks):
    """Makes the call to `Chains.advance` after so many draws a chain raise, once."""

    def stop(num_draws, error=KeyboardInterrupt):
        advance, before = chains.Chains.advance, sum(blocks)

        def advance_or_stop(self, wanted):
            if sum(blocks) - before >= num_draws:
                monkeypatch.setattr(chains.Chains, "advance", advance)
                raise error
            return advance(self, wanted)

        monkeypatch.setattr(chains.Chains, "advance", advance_or_stop)

    return stop


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 90 draws a chain with its folder, in blocks of 20."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        advance = chains.Chains.advance
        patch.setattr(chains.Chains, "advance", lambda self, num_draws: advance(self, min(num_draws, 20)))
        return run(checkpoint=folder), folder


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(finished[1], tmp_path / "copy")


def assert_same_draws(fit, other, num_draws=None):
    """All draws of `fit` are those of `other`, of which only the first `num_draws` may be meant."""
    for group in GROUPS:
        expected = other.tree[group].to_dataset().isel(draw=slice(num_draws))
        xr.testing.assert_equal(fit.tree[group].to_dataset(), expected)


# Bit for bit


@pytest.mark.long
def test_checkpoints_change_nothing_and_the_settings_of_the_caller_survive(whole, finished):
    fit, folder = finished
    assert_same_draws(fit, whole, 90)
    assert len(list(folder.glob("block-*.npz"))) == 3 + 5
    assert fit.run["checkpoint"] == str(folder)
    assert fit.run["stopped"] == "stopped: all requested draws are done"
    with jax.enable_x64(False):
        again = go_on(folder)
        assert not jax.config.jax_enable_x64
    assert again.posterior["mu"].dtype == np.float64
    assert_same_draws(again, whole, 90)
    assert again.run["seed"] == 4
    assert again.run["num_warmup"] == 60
    assert again.run["trajectory_length"] == 1.5


@pytest.mark.parametrize("draws", [pytest.param(0, marks=pytest.mark.long), 60])
def test_a_stopped_run_goes_on_bit_for_bit(whole, stop_after, tmp_path, draws):
    stop_after(draws, MemoryError)
    with pytest.raises(MemoryError):
        run(checkpoint=tmp_path)
    assert_same_draws(go_on(tmp_path), whole, 90)


@pytest.mark.long
def test_a_run_of_a_version_without_sampler_objects_goes_on_bit_for_bit(whole, copied):
    """Its options are flat, and the sampler has no name."""
    for path in sorted(copied.glob("block-*.npz"))[3:]:
        path.unlink()
    with contextlib.closing(checkpoint.Checkpoint.existing(copied)) as store:
        options = store.run["options"]
        assert options.pop("sampler") == "hmc"
        store.update(options=options | {"independent_proposals": False})
    assert_same_draws(go_on(copied), whole, 90)


@pytest.mark.long
@pytest.mark.parametrize("sampler", [hbm.NUTS(), hbm.WALNUTS(max_energy_error=0.1)], ids=["nuts", "walnuts"])
def test_trees_go_on_bit_for_bit(sampler, stop_after, tmp_path):
    options = {"sampler": sampler, "num_samples": 60}
    uninterrupted = run(**options)
    stop_after(100, MemoryError)
    with pytest.raises(MemoryError):
        run(checkpoint=tmp_path, **options)
    fit = go_on(tmp_path)
    assert_same_draws(fit, uninterrupted)
    assert len(np.unique(fit.tree["sample_stats"]["n_steps"])) > 1


@pytest.mark.long
def test_ctrl_c_in_the_warm_up_says_how_to_resume(whole, stop_after, tmp_path):
    stop_after(40)
    how = rf'interrupted after 40 of 60 warm-up draws; hbm_jax\.resume\("{tmp_path}"\) continues from there'
    with pytest.raises(Interrupted, match=how):
        run(checkpoint=tmp_path)
    assert_same_draws(go_on(tmp_path), whole, 90)


@pytest.mark.long
def test_ctrl_c_while_drawing_keeps_what_is_done_and_says_how_to_resume(whole, stop_after, tmp_path, capsys):
    stop_after(100)
    fit = run(checkpoint=tmp_path, progress=True)
    assert fit.run["stopped"] == "interrupted"
    assert fit.posterior.sizes["draw"] == 40
    assert f'hbm_jax.resume("{tmp_path}") continues' in capsys.readouterr().err
    assert_same_draws(go_on(tmp_path, progress=True), whole, 90)
    assert "hbm_jax.resume" not in capsys.readouterr().err


@pytest.mark.long
def test_drawing_until_good_ends_at_the_same_draw(stop_after, monkeypatch, tmp_path):
    monkeypatch.setattr(stopping, "MIN_SAMPLES", 100)
    until = {"num_samples": None, "until": {"mu": 1500.0}}  # more than any 400 draws are worth
    until |= {"sampler": hbm.NUTS(target_accept_prob=0.99)}  # no divergence ends the run
    uninterrupted = run(**until)
    stop_after(180, MemoryError)
    with pytest.raises(MemoryError):
        run(checkpoint=tmp_path, **until)
    fit = go_on(tmp_path)
    assert_same_draws(fit, uninterrupted)
    assert fit.run["stopped"] == "stopped: the requested effective sample sizes are reached (1500 for mu)"
    assert uninterrupted.run["stopped"] == fit.run["stopped"]
    assert fit.posterior.sizes["draw"] > 100  # looked at more than once


@pytest.mark.long
def test_a_finished_run_can_be_given_another_end(whole, copied):
    more = go_on(copied, num_samples=130)
    assert_same_draws(more, whole)
    # The new end is the run's own from then on.
    stop = json.loads((copied / "run.json").read_text())["stop"]
    assert stop == {"num_samples": 130, "until": None, "max_num_samples": 20_000, "max_seconds": None}
    longer = go_on(copied, until={"mu": 400.0})
    for group in GROUPS:
        first = longer.tree[group].to_dataset().isel(draw=slice(130))
        xr.testing.assert_equal(first, whole.tree[group].to_dataset())
    assert longer.verdict.table.loc["mu", ["ess_bulk", "ess_tail"]].min() >= 400
    assert longer.run["stopped"] == "stopped: the requested effective sample sizes are reached (400 for mu)"


def kill_and_resume(tmp_path, num_kills, seed, num_samples=OPTIONS["num_samples"]):
    """Kill a run at random moments, resuming it each time; returns its draws and those of a run left alone."""
    environment = os.environ | {
        "HBM_JAX_TEST_CACHE": str(tmp_path / "cache"),
        "HBM_JAX_TEST_DRAWS": str(num_samples),
        "PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parent, HERE.parents[1]))),
    }
    command = [sys.executable, str(HERE / "killed.py")]
    subprocess.run([*command, "sample", tmp_path / "alone", tmp_path / "alone.npz"], env=environment, check=True)
    folder, out = tmp_path / "killed", tmp_path / "killed.npz"
    rng = np.random.default_rng(seed)
    kills = 0
    while not out.exists():
        begun = (folder / checkpoint.START).exists()
        process = subprocess.Popen([*command, "resume" if begun else "sample", folder, out], env=environment)
        if kills < num_kills:
            before = len(list(folder.glob("block-*.npz")))
            wanted = before + rng.integers(0, 4)  # blocks more, then any moment of the one in flight
            while process.poll() is None and len(list(folder.glob("block-*.npz"))) <= wanted:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.03))
            process.kill()
            kills += process.wait() == -9
            if not begun and not (folder / checkpoint.START).exists():
                checkpoint_files = list(folder.glob("*"))
                raise AssertionError(checkpoint_files)
        else:
            assert process.wait() == 0
    assert kills == num_kills
    return np.load(out), np.load(tmp_path / "alone.npz")


@pytest.mark.long
def test_three_kills_lose_nothing(tmp_path):
    killed, alone = kill_and_resume(tmp_path, 3, seed=1)
    assert killed["position"].shape == (4, OPTIONS["num_samples"], 10)
    for name in alone.files:
        np.testing.assert_array_equal(killed[name], alone[name])


@pytest.mark.slow
def test_fifty_kills_lose_nothing(tmp_path):
    killed, alone = kill_and_resume(tmp_path, 50, seed=2, num_samples=40_000)
    for name in alone.files:
        np.testing.assert_array_equal(killed[name], alone[name])


# Faults of the disk


def test_a_damaged_block_is_set_aside_and_drawn_again(whole, copied):
    damaged = sorted(copied.glob("block-*.npz"))[-3]
    content = bytearray(damaged.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 256] = b"\xff" * 256  # one byte may be one that no sum covers
    damaged.write_bytes(content)
    with pytest.warns(DamageWarning, match=r"block-000005\.npz: expected the draws after the first 100 of a chain"):
        fit = go_on(copied)
    assert_same_draws(fit, whole, 90)
    assert [path.stem for path in sorted(copied.glob("*.damaged"))] == ["block-000005", "block-000006", "block-000007"]


@pytest.mark.long
def test_blocks_behind_a_missing_one_are_not_spliced_in(whole, copied):
    kept = copied.parent / "kept.npz"
    (copied / "block-000005.npz").rename(kept)
    later = (copied / "block-000006.npz").read_bytes()
    with pytest.warns(
        DamageWarning, match=r"block-000005\.npz: .* found that the file is missing\. This and later blocks are"
    ):
        fit = go_on(copied, num_samples=50)  # a first block of 10 draws, which are half of the missing one
    assert_same_draws(fit, whole, 50)
    (copied / "block-000006.npz").write_bytes(later)  # as a tool that restores files may do
    with pytest.warns(
        DamageWarning, match=r"block-000006\.npz: .* found that the file cannot be used \(it follows other draws\)"
    ):
        fit = go_on(copied, num_samples=80)
    assert_same_draws(fit, whole, 80)
    shutil.copy(kept, copied / "block-000007.npz")
    with pytest.warns(DamageWarning, match=r"block-000007\.npz: .* \(it was written as block-000005\.npz\)"):
        fit = go_on(copied, num_samples=90)
    assert_same_draws(fit, whole, 90)


@pytest.mark.parametrize("name", ["start.npz", "data.npz"])
@pytest.mark.parametrize(
    ("damage", "why"), [("emptied", ""), ("cut", ""), ("date", "its checksum differs"), ("sum cut", "checksum differs")]
)
def test_damaged_arrays_are_named(name, damage, why, copied):
    with contextlib.closing(checkpoint.Checkpoint(copied)) as store:
        store._write_arrays(name, {"x": np.arange(3.0)})
    content = bytearray((copied / name).read_bytes())
    if damage == "date":  # that the sums of zip files do not cover
        content[10] ^= 1
    else:
        content = content[: {"emptied": 0, "cut": len(content) // 2, "sum cut": -1}[damage]]
    (copied / name).write_bytes(content)
    with contextlib.closing(checkpoint.Checkpoint(copied)) as store:
        read = store.read_data if name == "data.npz" else store.read_start
        with pytest.raises(
            CheckpointError, match=rf"{name}: expected arrays of this run .* damaged, .*{why}.* Restore"
        ):
            read()


@pytest.fixture
def of_another_run(finished, tmp_path, monkeypatch):
    """Return a function that exchanges a file of a folder for the same file of another run, with all its numbers."""

    def exchange(folder, name):
        with contextlib.closing(checkpoint.Checkpoint(tmp_path / "other")) as other:
            (tmp_path / "other" / "run.json").unlink(missing_ok=True)
            other.begin({"program": {}, "data": {}, "options": {}}, None)
            with np.load(folder / name) as arrays:
                other._write_arrays(name, {key: arrays[key] for key in arrays.files if key != checkpoint.RUN_ID})
        shutil.copy(tmp_path / "other" / name, folder / name)

    return exchange


def test_files_of_another_run_are_not_taken_for_its_own(whole, copied, of_another_run):
    of_another_run(copied, "block-000005.npz")
    with pytest.warns(DamageWarning, match=r"block-000005\.npz: .* cannot be used \(it belongs to another run\)"):
        assert_same_draws(go_on(copied), whole, 90)
    of_another_run(copied, "start.npz")
    with pytest.raises(
        CheckpointError, match=r"start\.npz: expected arrays of this run .*\(it belongs to another run\)"
    ):
        go_on(copied)


def without_run_id(path):
    """Write a file of a checkpoint as older versions did."""
    if path.suffix == ".json":
        run = json.loads(path.read_text())
        path.write_text(json.dumps({name: run[name] for name in run if name not in ("sha256", checkpoint.RUN_ID)}))
        return
    with np.load(path) as arrays:
        kept = {name: arrays[name] for name in arrays.files if name != checkpoint.RUN_ID}
    np.savez(path, **kept)


@pytest.mark.long
def test_checkpoints_of_older_versions_go_on(whole, copied):
    for path in [copied / "run.json", *copied.glob("*.npz")]:
        without_run_id(path)
    assert_same_draws(go_on(copied, num_samples=110), whole, 110)


@pytest.mark.long
@pytest.mark.parametrize("num_blocks", [2, 3, 4])
def test_a_warm_up_without_gradients_goes_on_only_if_it_is_complete(whole, copied, num_blocks):
    """Versions before the metric was learnt from gradients did not store them."""
    blocks = sorted(copied.glob("block-*.npz"))
    for path in blocks[num_blocks:]:
        path.unlink()
    for path in blocks[:num_blocks]:
        with np.load(path) as arrays:
            kept = {n: arrays[n] for n in arrays.files if n not in (checkpoint.RUN_ID, "draws/gradient")}
        np.savez(path, **kept)
    without_run_id(copied / "run.json")
    for name in ("start.npz", "data.npz"):
        if (copied / name).exists():
            without_run_id(copied / name)
    if num_blocks == 4:  # three of warm-up, whose end sets the last step size
        assert_same_draws(go_on(copied), whole, 90)
    else:
        with pytest.raises(CheckpointError, match=r"expected the gradients of the [46]0 warm-up draws.*start it again"):
            go_on(copied)


@pytest.mark.long
def test_a_state_of_another_version_is_named_with_what_to_do(copied):
    for path in [copied / "run.json", *copied.glob("*.npz")]:
        without_run_id(path)
    last = max(copied.glob("block-*.npz"))
    with np.load(last) as arrays:
        other = {n: a[..., 0] if n.endswith("inverse_mass_matrix") else a for n, a in arrays.items()}
    np.savez(last, **other)
    with pytest.raises(CheckpointError, match=r"copy: .*inverse_mass_matrix of .*another version.* in another folder"):
        go_on(copied)


def test_arrays_that_are_compressed_are_refused(copied):
    np.savez_compressed(copied / "start.npz", points=np.zeros(10**6))
    assert (copied / "start.npz").stat().st_size < 10**4
    with (
        contextlib.closing(checkpoint.Checkpoint(copied)) as store,
        pytest.raises(CheckpointError, match=r"start\.npz: .*\(its arrays are compressed\)"),
    ):
        store.read_start()


def test_a_start_that_is_gone_is_not_searched_anew(copied):
    (copied / "start.npz").unlink()
    with pytest.raises(CheckpointError, match=r"expected start\.npz beside the draws; found none"):
        go_on(copied)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"options": {"seed": 5}}, r"run\.json: .* found one that was changed or is damaged: its checksum differs"),
        ({"sha256": None, "options": None}, r"run\.json: expected a description of the run; found no options"),
        (
            {"sha256": None, "stop": None},
            "expected the options and stopping rule of a run; found some that cannot be read",
        ),
        ({"sha256": None, "options": {"speed": 5}}, "expected the options and stopping rule of a run; found .*'speed'"),
        ({"sha256": None, "format": None}, r"run\.json: expected JSON written by hbm_jax; found other JSON"),
    ],
)
def test_a_changed_description_of_the_run_is_named(changed, message, copied):
    run = json.loads((copied / "run.json").read_text()) | changed
    if "sha256" in changed:  # as of an older version
        del run[checkpoint.RUN_ID]
    (copied / "run.json").write_text(json.dumps({name: value for name, value in run.items() if value is not None}))
    with pytest.raises(CheckpointError, match=message):
        go_on(copied)


def test_a_description_without_a_checksum_is_that_of_an_older_version(copied):
    run = json.loads((copied / "run.json").read_text())
    assert len(run.pop("sha256")) == 64
    (copied / "run.json").write_text(json.dumps(run))
    with contextlib.closing(checkpoint.Checkpoint(copied)) as store, pytest.raises(CheckpointError, match="checksum"):
        _ = store.run
    del run[checkpoint.RUN_ID]
    (copied / "run.json").write_text(json.dumps(run))
    with contextlib.closing(checkpoint.Checkpoint(copied)) as store:
        assert store.run == run


def test_a_full_disk_keeps_the_draws_in_memory(whole, blocks, monkeypatch, tmp_path):
    write, written = checkpoint.np.savez, []

    def full(file, **arrays):
        if "warmup" in arrays:
            written.append(arrays)
            if len(written) > 6:
                raise OSError(28, "No space left on device")
        write(file, **arrays)

    monkeypatch.setattr(checkpoint.np, "savez", full)
    fit = run(checkpoint=tmp_path)
    assert fit.run["stopped"].startswith(f"stopped because {tmp_path}: ")
    assert "could not be written: No space left on device" in fit.run["stopped"]
    assert_same_draws(fit, whole, 80)
    with contextlib.closing(checkpoint.Checkpoint(tmp_path)) as store:
        on_disk = [saved.block.energy.shape[1] for saved in store.blocks() if not saved.warmup]
    assert on_disk == [20, 20, 20]
    assert not list(tmp_path.glob(".*part*"))


def test_a_folder_that_cannot_be_written_is_said_before_any_work(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(run_module, "build_target", None)
    with pytest.raises(CheckpointError, match="expected a folder that can be written for the checkpoint; found: "):
        run(checkpoint=tmp_path / "file" / "run")


# Taken for another


@pytest.mark.parametrize(
    ("program", "args", "named"),
    [
        (eight_schools, (Y, SIGMA + 1), r"found that the data args\[1\] differs\.$"),
        (eight_schools, (Y[:4], SIGMA[:4]), r"the data args\[0\] differs; the data args\[1\] differs"),
        (eight_schools, (Y,), r"the data args\[1\] differs"),
        (tiny, (), "program name was 'eight_schools' and is 'tiny'"),
        (functools.partial(eight_schools, sigma=SIGMA), (Y,), "the code of the program differs"),
    ],
)
def test_another_program_or_other_data_are_refused_by_name(finished, program, args, named):
    with pytest.raises(CheckpointError, match=named):
        resume(finished[1], program, *args, progress=False)


def test_another_option_of_a_model_is_named(tmp_path, monkeypatch):
    sne = hbm.data.load_jla().subset(np.arange(0, 740, 60))
    monkeypatch.setattr(
        run_module.Run, "fit", lambda *args, **options: None
    )  # who the run is is written before any work
    hbm.sample(hbm.models.Supernova(), sne, checkpoint=tmp_path, progress=False)
    with contextlib.closing(checkpoint.Checkpoint(tmp_path)) as store:
        stored = store.read_data()
    for name, value in sne.to_dict().items():
        np.testing.assert_array_equal(stored[name], value)
    resume(tmp_path, hbm.models.Supernova(), sne, progress=False)
    other = hbm.models.Supernova(priors={"Om0": "Normal(0.3, 0.1)"})
    with pytest.raises(
        CheckpointError, match=r"program config\.priors\.Om0 was 'Uniform.*' and is 'Normal\(loc=0\.3, scale=0\.1\)'"
    ):
        resume(tmp_path, other, sne, progress=False)
    shifted = sne.replace_observations(m_b=sne.m_b + 1.0, x1=sne.x1, c=sne.c)
    with pytest.raises(CheckpointError, match=r"found that the data args\[0\]\.m_b differs\.$"):
        resume(tmp_path, hbm.models.Supernova(), shifted, progress=False)


def test_what_no_fingerprint_sees_is_seen_in_the_density(copied):
    arrays = dict(np.load(copied / "start.npz"))
    was = arrays["potential"][2]
    arrays["potential"][2] += 1e-4 * abs(was)
    np.savez(copied / "start.npz", **arrays)
    append_checksum(copied / "start.npz")
    with pytest.raises(
        CheckpointError, match=r"expected a log density of .* at the starting point of chain 2, as"
    ) as told:
        go_on(copied)
    numbers = re.search(r"density of (\S+) at .* found (\S+)\. Something", str(told.value)).groups()
    assert [float(number) for number in numbers] == pytest.approx([-arrays["potential"][2], -was], rel=1e-8)


def test_comments_and_layout_are_not_the_program(tmp_path):
    from hbm_jax.inference.sampler.fingerprint import identify

    namespace = {"numpyro": numpyro, "dist": dist}
    texts = [
        "def f():\n    numpyro.sample('x', dist.Normal(0, 1))\n",
        "def f():\n    # a comment\n    numpyro.sample('x',\n        dist.Normal(0, 1))\n",
        "def f():\n    numpyro.sample('x', dist.Normal(0, 2))\n",
    ]
    codes = []
    for number, text in enumerate(texts):
        path = tmp_path / f"f{number}.py"
        path.write_text(text)
        exec(compile(text, path, "exec"), namespace)
        codes.append(identify(namespace["f"], (), {})["program"]["code"])
    assert codes[0] == codes[1] != codes[2]


def test_a_second_run_in_the_same_folder_is_refused(finished):
    with pytest.raises(CheckpointError, match=r'found another run in it\. Continue that one with hbm_jax\.resume\("'):
        run(checkpoint=finished[1])


def test_two_processes_do_not_share_a_folder(finished):
    held = checkpoint.Checkpoint(finished[1])
    with pytest.raises(CheckpointError, match="expected a checkpoint that is not in use"):
        go_on(finished[1])
    held.close()
    with contextlib.closing(checkpoint.Checkpoint(finished[1])):  # let go of, also by the one that was refused
        pass


def test_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected a checkpoint folder holding run\.json; found none"):
        go_on(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_checkpoint_that_is_no_json_or_newer_is_refused(tmp_path):
    (tmp_path / "run.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"run\.json: expected JSON written by hbm_jax; found something else: "):
        go_on(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run\.json: expected JSON written by hbm_jax; found something else: "):
        go_on(tmp_path)
    (tmp_path / "run.json").write_text('{"format": 2}')
    with pytest.raises(CheckpointError, match=r"run\.json: expected format 1; found 2, of a newer hbm_jax\."):
        go_on(tmp_path)


def test_nothing_on_disk_is_code(finished):
    _, folder = finished
    assert {path.name for path in folder.iterdir()} == {
        "run.json", "start.npz", "lock", *(f"block-{i:06d}.npz" for i in range(8))
    }  # fmt: skip
    for path in folder.glob("*.npz"):
        with np.load(path, allow_pickle=False) as file:
            assert all(not file[name].dtype.hasobject for name in file.files)
    about = json.loads((folder / "run.json").read_text())
    assert about["options"]["seed"] == 4
    assert about["stop"]["num_samples"] == 90


# Budgets


@pytest.mark.long
def test_every_session_has_a_budget_of_time(whole, monkeypatch, tmp_path):
    seconds, lengths, advance = [0.0], [], chains.Chains.advance

    def take_time(self, num_draws):
        lengths.append(num_draws)
        seconds[0] += 0.125 * num_draws
        return advance(self, num_draws)

    clock = SimpleNamespace(perf_counter=lambda: seconds[0])
    monkeypatch.setattr(chains.Chains, "advance", take_time)
    monkeypatch.setattr(run_module, "time", clock)
    monkeypatch.setattr(loop, "time", clock)
    fit = run(max_seconds=11.2, checkpoint=tmp_path)
    assert fit.run["stopped"] == "stopped: the time budget of 11.2 s is spent"
    # A first block, then blocks of a second each, to the end of the warm-up and of the budget.
    assert lengths == [50, 8, 2, 8, 8, 8, 5, 1]
    assert_same_draws(fit, whole, 30)
    # Each session has a budget of its own, by default that of the one before, and draws a block at least.
    assert_same_draws(go_on(tmp_path, max_seconds=2.2), whole, 48)
    assert_same_draws(go_on(tmp_path), whole, 66)
    more = go_on(tmp_path, max_seconds=0)
    assert lengths[8:] == [8, 8, 1, 1] * 2 + [8]
    assert_same_draws(more, whole, 74)
    assert more.run["stopped"] == "stopped: the time budget of 0 s is spent"


@pytest.mark.long
def test_a_budget_that_ends_in_the_warm_up_keeps_it(whole, blocks, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(Interrupted, match="the time budget of 0 s ended after 20 of 60 warm-up draws; hbm_jax") as told:
        run(max_seconds=0)
    (folder,) = tmp_path.iterdir()
    assert str(told.value).endswith(f'; hbm_jax.resume("{folder}") continues from there.')
    assert_same_draws(go_on(folder, max_seconds=1000), whole, 90)
    assert blocks == [20] * 3 + [20] * 4 + [10]


def test_recursive_functions_have_fingerprints():
    from hbm_jax.inference.sampler.fingerprint import identify

    def code_of(step):
        def even(n):
            return n == 0 or odd(n - step)

        def odd(n):
            return n != 0 and even(n - step)

        return identify(even, (), {})["program"]["code"]

    assert code_of(1) == code_of(1) != code_of(2)
