"""Runs that are stopped, killed, damaged or mistaken for others: what is on disk, and what comes out in the end."""

import contextlib
import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import numpyro
import pytest
import xarray as xr
from killed import OPTIONS, SIGMA, Y
from numpyro import distributions as dist
from programs import eight_schools, tiny

import hbm_jax as hbm
from hbm_jax.inference import CheckpointError, Interrupted, chains, checkpoint, loop, resume

HERE = Path(__file__).parent
GROUPS = ("posterior", "unconstrained_posterior", "sample_stats")


def run(**options):
    return hbm.sample(eight_schools, Y, SIGMA, seed=4, progress=False, **options)


@pytest.fixture(scope="module")
def whole():
    return run(num_samples=400, num_warmup=300)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(loop, "SECONDS_PER_BLOCK", 0.003)
    monkeypatch.setattr(loop, "FIRST_BLOCK", 20)


@pytest.fixture
def stop_after(monkeypatch):
    """Makes the call to `Chains.advance` after so many draws a chain raise."""

    def stop(num_draws, error=KeyboardInterrupt):
        advance, done = chains.Chains.advance, [0]

        def advance_or_stop(self, wanted):
            if done[0] >= num_draws:
                monkeypatch.setattr(chains.Chains, "advance", advance)
                raise error
            done[0] += wanted
            return advance(self, wanted)

        monkeypatch.setattr(chains.Chains, "advance", advance_or_stop)

    return stop


def assert_same_draws(fit, other):
    for group in GROUPS:
        xr.testing.assert_equal(fit.tree[group].to_dataset(), other.tree[group].to_dataset())


# Bit for bit


def test_checkpoints_change_nothing(whole, small_blocks, tmp_path):
    fit = run(num_samples=400, num_warmup=300, checkpoint=tmp_path / "run")
    assert_same_draws(fit, whole)
    assert len(list((tmp_path / "run").glob("block-*.npz"))) > 10
    assert fit.run["checkpoint"] == str(tmp_path / "run")
    assert_same_draws(resume(tmp_path / "run", eight_schools, Y, SIGMA, progress=False), whole)


@pytest.mark.parametrize("draws", [0, 100, 300, 500])
def test_a_stopped_run_goes_on_bit_for_bit(whole, small_blocks, stop_after, tmp_path, draws):
    stop_after(draws, MemoryError)
    with pytest.raises(MemoryError):
        run(num_samples=400, num_warmup=300, checkpoint=tmp_path)
    assert_same_draws(resume(tmp_path, eight_schools, Y, SIGMA, progress=False), whole)


def test_ctrl_c_in_the_warm_up_says_how_to_resume(whole, small_blocks, stop_after, tmp_path):
    stop_after(60)
    with pytest.raises(Interrupted, match=r'of 300 warm-up draws; hbm_jax\.resume\(".*"\) goes on from there'):
        run(num_samples=400, num_warmup=300, checkpoint=tmp_path)
    assert_same_draws(resume(tmp_path, eight_schools, Y, SIGMA, progress=False), whole)


def test_ctrl_c_while_drawing_keeps_what_is_done_and_says_how_to_resume(
    whole, small_blocks, stop_after, tmp_path, capsys
):
    stop_after(400)
    fit = hbm.sample(eight_schools, Y, SIGMA, seed=4, num_samples=400, num_warmup=300, checkpoint=tmp_path)
    assert fit.run["stopped"] == "interrupted"
    assert 100 <= fit.posterior.sizes["draw"] < 400
    assert f'hbm_jax.resume("{tmp_path}") goes on' in capsys.readouterr().err
    assert_same_draws(resume(tmp_path, eight_schools, Y, SIGMA, progress=False), whole)


@pytest.mark.long
def test_drawing_until_good_ends_at_the_same_draw(small_blocks, stop_after, tmp_path):
    uninterrupted = run(until=2000)
    stop_after(800, MemoryError)
    with pytest.raises(MemoryError):
        run(until=2000, checkpoint=tmp_path)
    fit = resume(tmp_path, eight_schools, Y, SIGMA, progress=False)
    assert_same_draws(fit, uninterrupted)
    assert fit.run["stopped"] == uninterrupted.run["stopped"]
    assert fit.posterior.sizes["draw"] > 1000


def test_a_finished_run_can_be_given_another_end(whole, tmp_path):
    run(num_samples=200, num_warmup=300, checkpoint=tmp_path)
    more = resume(tmp_path, eight_schools, Y, SIGMA, num_samples=400, progress=False)
    assert_same_draws(more, whole)
    # The new end is the run's own from then on.
    assert_same_draws(resume(tmp_path, eight_schools, Y, SIGMA, progress=False), whole)
    longer = resume(tmp_path, eight_schools, Y, SIGMA, until={"mu": 1200.0}, progress=False)
    assert longer.verdict.table.loc["mu", ["ess_bulk", "ess_tail"]].min() >= 1200
    assert longer.run["stopped"] == "stopped: the effective sample sizes asked for are reached (1200 for mu)"


def kill_and_resume(tmp_path, num_kills, seed, num_samples=OPTIONS["num_samples"]):
    """Kill a run at random moments, resuming it each time; returns its draws and those of a run left alone."""
    environment = os.environ | {
        "HBM_JAX_TEST_CACHE": str(tmp_path / "cache"),
        "HBM_JAX_TEST_DRAWS": str(num_samples),
        "PYTHONPATH": str(HERE),
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


def test_a_damaged_block_is_set_aside_and_drawn_again(whole, small_blocks, tmp_path):
    run(num_samples=400, num_warmup=300, checkpoint=tmp_path)
    blocks = sorted(tmp_path.glob("block-*.npz"))
    content = bytearray(blocks[-3].read_bytes())
    middle = len(content) // 2
    content[middle : middle + 256] = b"\xff" * 256  # one byte may be one that no sum covers
    blocks[-3].write_bytes(content)
    assert_same_draws(resume(tmp_path, eight_schools, Y, SIGMA, progress=False), whole)
    assert len(list(tmp_path.glob("*.damaged"))) == 3


def test_a_full_disk_keeps_the_draws_in_memory(whole, small_blocks, monkeypatch, tmp_path):
    write, written = checkpoint.np.savez, []

    def full(file, **arrays):
        if "warmup" in arrays:
            written.append(arrays)
            if len(written) > 12:
                raise OSError(28, "No space left on device")
        write(file, **arrays)

    monkeypatch.setattr(loop, "SECONDS_PER_BLOCK", 0.02)
    monkeypatch.setattr(checkpoint.np, "savez", full)
    fit = run(num_samples=100_000, num_warmup=30, checkpoint=tmp_path)
    assert fit.run["stopped"].startswith("stopped because ")
    assert "could not be written: No space left on device" in fit.run["stopped"]
    drawn = fit.posterior.sizes["draw"]
    with contextlib.closing(checkpoint.Checkpoint(tmp_path)) as store:
        on_disk = sum(saved.block.energy.shape[1] for saved in store.blocks() if not saved.warmup)
    assert drawn > on_disk > 0
    assert not list(tmp_path.glob(".*.part"))


def test_a_folder_that_cannot_be_written_is_said_before_any_work(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(hbm.inference.sampling, "build_target", None)
    with pytest.raises(CheckpointError, match="expected a folder that can be written for the checkpoint; found: "):
        run(checkpoint=tmp_path / "file" / "run")


# Taken for another


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun") / "run"
    run(num_samples=8, num_warmup=8, checkpoint=folder)
    return folder


@pytest.mark.parametrize(
    ("program", "args", "named"),
    [
        (eight_schools, (Y, SIGMA + 1), r"the data args\[1\] differs"),
        (eight_schools, (Y[:4], SIGMA[:4]), r"the data args\[0\] differs; the data args\[1\] differs"),
        (tiny, (), "program name was 'eight_schools' and is 'tiny'"),
        (functools.partial(eight_schools, sigma=SIGMA), (Y,), "the code of the program differs"),
    ],
)
def test_another_program_or_other_data_are_refused_by_name(begun, program, args, named):
    with pytest.raises(CheckpointError, match=named):
        resume(begun, program, *args, progress=False)


def test_another_option_of_a_model_is_named(tmp_path):
    sne = hbm.data.load_jla().subset(np.arange(0, 740, 60))
    hbm.sample(hbm.models.Supernova(), sne, num_samples=8, num_warmup=8, checkpoint=tmp_path, progress=False)
    other = hbm.models.Supernova(priors={"Om0": "Normal(0.3, 0.1)"})
    with pytest.raises(
        CheckpointError, match=r"program config\.priors\.Om0 was 'Uniform.*' and is 'Normal\(loc=0\.3, scale=0\.1\)'"
    ):
        resume(tmp_path, other, sne, progress=False)
    shifted = sne.replace_observations(m_b=sne.m_b + 1.0, x1=sne.x1, c=sne.c)
    with pytest.raises(CheckpointError, match=r"found that the data args\[0\]\.m_b differs\.$"):
        resume(tmp_path, hbm.models.Supernova(), shifted, progress=False)


def test_what_no_fingerprint_sees_is_seen_in_the_density(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "WIDTH", 1.0)

    def program():
        numpyro.sample("x", dist.Normal(0.0, WIDTH))  # noqa: F821

    hbm.sample(program, num_samples=8, num_warmup=8, checkpoint=tmp_path, progress=False)
    resume(tmp_path, program, progress=False)
    monkeypatch.setitem(globals(), "WIDTH", 1.1)
    with pytest.raises(
        CheckpointError, match=r"expected a log density of .* at the starting point of chain ., as when"
    ):
        resume(tmp_path, program, progress=False)


def test_comments_and_layout_are_not_the_program(tmp_path):
    from hbm_jax.inference.identity import identify

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


def test_a_second_run_in_the_same_folder_is_refused(begun):
    with pytest.raises(CheckpointError, match=r'found another run in it\. Continue that one with hbm_jax\.resume\("'):
        run(checkpoint=begun)


def test_two_processes_do_not_share_a_folder(begun):
    held = checkpoint.Checkpoint(begun)
    with pytest.raises(CheckpointError, match="expected a checkpoint no one else is using"):
        resume(begun, eight_schools, Y, SIGMA)
    held.close()


def test_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected a checkpoint folder holding run\.json; found none"):
        resume(tmp_path / "nowhere", eight_schools, Y, SIGMA)
    assert not (tmp_path / "nowhere").exists()


def test_nothing_on_disk_is_code(begun):
    names = {path.name for path in begun.iterdir()}
    assert names == {"run.json", "start.npz", "lock", *(f"block-{i:06d}.npz" for i in range(len(names) - 3))}
    for path in begun.glob("*.npz"):
        with np.load(path, allow_pickle=False) as file:
            assert all(not file[name].dtype.hasobject for name in file.files)
    about = json.loads((begun / "run.json").read_text())
    assert about["options"]["seed"] == 4
    assert about["stop"]["num_samples"] == 8


# Budgets


def test_a_budget_of_time(tmp_path):
    fit = run(num_samples=10_000_000, num_warmup=0, max_seconds=6, checkpoint=tmp_path)
    assert fit.run["stopped"] == "stopped: the time budget of 6 s is spent"
    assert 4 <= fit.posterior.sizes["draw"] < 10_000_000
    again = resume(tmp_path, eight_schools, Y, SIGMA, progress=False)
    assert_same_draws(again, fit)  # spent over all sessions


def test_a_budget_of_time_that_ends_in_the_warm_up():
    with pytest.raises(Interrupted, match=r"the time budget of 0\.01 s ended after 0 of 400 warm-up draws"):
        run(max_seconds=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": -1}, "expected until to be an effective sample size above 0"),
        ({"until": {"mu": "many"}}, "expected until to be an effective sample size above 0"),
        ({"until": {}}, "expected until to be an effective sample size above 0"),
        ({"until": {"nu": 100}}, "until names 'nu'; expected one of mu, tau, theta"),
        ({"until": 500, "num_samples": 100}, "expected either num_samples or until; found both, 100 and 500"),
        ({"max_seconds": -1}, "expected max_seconds >= 0; found -1"),
    ],
)
def test_bad_rules(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


def test_settings_of_the_caller_survive_a_resume(begun):
    with jax.enable_x64(False):
        fit = resume(begun, eight_schools, Y, SIGMA, progress=False)
        assert not jax.config.jax_enable_x64
    assert fit.posterior["mu"].dtype == np.float64
