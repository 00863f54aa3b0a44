"""Two processes on this machine share the objects of one posterior; what they find is what one process finds."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import CASES, ERROR, OPTIONS, Y, densities, marginal, population

import hbm_jax as hbm
from hbm_jax.inference import CheckpointError, resume
from hbm_jax.inference.distributed import Processes, number_of_objects, split_over_processes
from hbm_jax.inference.sampler.checkpoint import Checkpoint, Saved
from hbm_jax.inference.sampler.initialisation import StartError
from hbm_jax.inference.sampler.kernels.protocol import Block
from hbm_jax.inference.sampler.target import build_target

SECONDS = 200  # before the two processes are given up; they take 35 on two idle cores
SHARES = {"jla": (740, 370), "population": (1000, 500), "uneven": (997, 499)}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes has found, and the folder of their checkpoint."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
    }
    script = Path(__file__).with_name("processes.py")
    logs = [folder / f"{i}.log" for i in range(2)]
    processes = []
    for i, log in enumerate(logs):
        command = [sys.executable, script, address, "2", str(i), folder / f"{i}.npz", folder / "checkpoint"]
        with open(log, "w") as file:
            processes.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    return [np.load(folder / f"{i}.npz") for i in range(2)], folder / "checkpoint"


@pytest.fixture(scope="module")
def one_process_fit():
    return hbm.sample(marginal, Y, ERROR, num_samples=300, **OPTIONS)


def close(found, expected):
    """Largest difference, relative to the largest component: one far below it is a difference of large sums."""
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.long
def test_two_processes_have_the_density_of_one(two, name):
    values, gradients, _ = densities(name, split=False)
    for found in two[0]:
        np.testing.assert_allclose(found[f"{name}_value"], values, rtol=1e-11)
        assert max(map(close, found[f"{name}_gradient"], gradients)) < 1e-11
    for part in ("value", "gradient"):
        np.testing.assert_array_equal(*(found[f"{name}_{part}"] for found in two[0]))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.long
def test_each_device_computes_for_its_share(two, name):
    num_objects, share = SHARES[name]
    text = str(two[0][0][f"{name}_text"])
    assert "all-reduce(" in text
    arrays = re.findall(r"= f64\[([\d,]+)\]\S* (\S+)\(", text)
    of_share = [operation for shape, operation in arrays if str(share) in shape.split(",")]
    assert len(of_share) > 10
    assert "parameter" in of_share
    if name == "jla":  # whose parameters are global, so that nothing has the length of all objects
        assert not [shape for shape, _ in arrays if str(num_objects) in shape.split(",")]


@pytest.mark.long
def test_draws_of_two_processes_are_those_of_one(two, one_process_fit, monte_carlo):
    found, _ = two
    np.testing.assert_array_equal(found[0]["draws"], found[1]["draws"])
    draws, expected = found[0]["draws"], one_process_fit.tree["unconstrained_posterior"]["position"].values
    assert draws.shape == expected.shape == (2, 300, 2)
    # The same numbers until rounding has grown; the same posterior after that.
    np.testing.assert_allclose(draws[:, :3], expected[:, :3], rtol=1e-5)
    for i in range(2):
        monte_carlo.same_mean(draws[..., i], expected[..., i], name=f"mean {i}", min_ess=100)


@pytest.mark.long
def test_process_0_measures_time(two):
    found, _ = two
    assert found[0]["more"].shape[1] > 300
    np.testing.assert_array_equal(found[0]["more"], found[1]["more"])
    np.testing.assert_array_equal(found[0]["more"][:, :300], found[0]["draws"])
    assert "time budget" in str(found[1]["stopped"])
    assert found[0]["stopped"] == found[1]["stopped"]


@pytest.mark.long
def test_errors_of_one_process_are_those_of_all(two):
    for found in two[0]:
        assert "found another run in it" in str(found["refused"])
        assert "The processes differ" in str(found["apart"])
        assert "process 1" in str(found["apart"])


@pytest.mark.long
def test_one_process_goes_on_where_two_have_stopped(two):
    found, folder = two
    num_samples = found[0]["more"].shape[1] + 20
    more = {"num_samples": num_samples, "max_seconds": 1e6}
    fit = resume(folder, marginal, Y, ERROR, progress=False, **more)
    positions = fit.tree["unconstrained_posterior"]["position"].values
    np.testing.assert_array_equal(positions[:, :-20], found[0]["more"])


def test_a_single_process_splits_over_its_own_devices():
    # The two CPU devices of the tests; nothing is said to other processes.
    values, gradients, _ = densities("uneven", split=False)
    found_values, found_gradients, text = densities("uneven", split=True)
    np.testing.assert_allclose(found_values, values, rtol=1e-11)
    assert max(map(close, found_gradients, gradients)) < 1e-11
    assert "all-reduce(" in text


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match=r"plate of the program; found 'supernova'\. Its plates: galaxy"):
        hbm.sample(population, Y, ERROR, split="supernova", progress=False)
    with pytest.raises(ValueError, match=r"axis of 77 objects; found arrays of shape \(1000,\)"):
        hbm.sample(population, Y, ERROR, split=77, progress=False)


def test_outside_of_split_programs_the_potential_is_as_before():
    target = build_target(population, (Y, ERROR), jax.random.key(1))
    split = split_over_processes(target, number_of_objects(population, (Y, ERROR), 1000))
    assert jax.jit(split.potential)(target.start) == jax.jit(target.potential)(target.start)


def test_an_interruption_waits_for_the_next_decision():
    processes = Processes()
    with processes.listening():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            processes.lead(lambda: 1)
        assert processes.lead(lambda: 1) == 1
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_shared_checkpoint_has_the_methods_that_a_run_uses(tmp_path):
    store = Processes().open(Checkpoint, tmp_path / "run")
    store.begin({"program": {"name": "x"}, "data": {}, "options": {"seed": 1}}, None)
    store.update(stop={"num_samples": 4})
    assert store.run["stop"] == {"num_samples": 4}
    assert store.run_id == store.run["run_id"]
    assert store.folder == tmp_path / "run"
    assert store.read_start() is None
    store.write_start({"potential": np.ones(2)})
    np.testing.assert_array_equal(store.read_start()["potential"], [1.0, 1.0])
    block = Block(*(np.zeros((2, 3)) for _ in range(6)))
    store.write_block(Saved(block, {}, False, {"seconds": 1.0}))
    (saved,) = store.blocks()
    assert saved.block.energy.shape == (2, 3)
    with pytest.raises(CheckpointError, match="another process is using it"):
        Processes().open(Checkpoint, tmp_path / "run")
    store.close()
    with pytest.raises(AttributeError):
        store.begun  # noqa: B018 - not of a run


def test_a_search_without_a_start_says_so():
    target = build_target(population, (Y, ERROR), jax.random.key(1))
    split = split_over_processes(target, 1000)

    def choose(target, num_chains, key, value_and_grad):
        value, _ = value_and_grad(target.start)
        np.testing.assert_allclose(value, jax.jit(target.potential)(target.start), rtol=1e-11)
        raise StartError("none")

    with pytest.raises(StartError, match="none"):
        split.processes.choose_start(choose, split, 4, jax.random.key(0))
