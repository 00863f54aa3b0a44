"""Messages between processes hold plain values, arrays, records and errors, and no code."""

import dataclasses
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from hbm_jax.inference import CheckpointError, Interrupted, StartError
from hbm_jax.inference.messages import pack, unpack
from hbm_jax.inference.sampler.checkpoint import Saved
from hbm_jax.inference.sampler.initialisation import Start
from hbm_jax.inference.sampler.kernels.protocol import Block
from hbm_jax.inference.sampler.metric import Metric


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        -0.1,
        math.inf,
        'text with \u03bc, quotes " and \\',
        Path("a/b"),
        (True, (1.25, "stuck")),
        [1, [2, (3,)], {}],
        {"run": {"seed": 2**62, "until": {"Om0": 0.1}}, 3: "an integer as a key"},
    ],
)
def test_plain_values_come_as_they_were_sent(value):
    received = unpack(pack((True, value)))
    assert received == (True, value)
    assert type(received[1]) is type(value)


@pytest.mark.parametrize(
    "array",
    [
        np.array([[1.0, np.nan], [np.inf, -0.0]]),
        np.arange(3, dtype=np.uint32),
        np.zeros((0, 2), np.float32),
        np.array(["a", "bc"]),
        np.array(True),
        np.float64(0.1),
        np.int32(7),
    ],
)
def test_arrays_come_bit_for_bit(array):
    received = unpack(pack({"array": array}))["array"]
    assert type(received) is type(array)
    assert received.dtype == array.dtype
    assert received.tobytes() == array.tobytes()
    assert received.shape == array.shape


def test_arrays_of_jax_come_as_those_of_numpy():
    np.testing.assert_array_equal(unpack(pack([jnp.arange(3)]))[0], np.arange(3))


def test_records_come_as_records():
    block = Block(*(np.full((2, 3), float(i)) for i in range(6)))
    saved = unpack(pack([Saved(block, {".z": np.ones(2)}, True, {"seconds": 1.5})]))[0]
    assert type(saved) is Saved
    assert type(saved.block) is Block
    np.testing.assert_array_equal(saved.block.energy, block.energy)
    assert (saved.warmup, saved.progress) == (True, {"seconds": 1.5})
    start = Start(np.ones((2, 3)), Metric("diagonal", np.arange(3.0), "why"), True, "a note", "a caution")
    received = unpack(pack(start))
    assert type(received) is Start
    assert type(received.metric) is Metric
    for item in dataclasses.fields(Start):
        if item.name != "metric":
            np.testing.assert_array_equal(getattr(received, item.name), getattr(start, item.name))
    np.testing.assert_array_equal(received.metric.inverse_mass, start.metric.inverse_mass)


@pytest.mark.parametrize(
    "error",
    [ValueError("wrong"), KeyboardInterrupt(), CheckpointError("a folder"), StartError("none"), Interrupted("budget")],
)
def test_errors_come_with_type_and_text(error):
    succeeded, received = unpack(pack((False, error)))
    assert not succeeded
    assert type(received) is type(error)
    assert str(received) == str(error)


class OwnError(Exception):
    pass


@pytest.mark.parametrize("error", [OwnError("odd"), UnicodeDecodeError("utf-8", b"a", 0, 1, "odd")])
def test_other_errors_are_named(error):
    received = unpack(pack(error))
    assert type(received) is RuntimeError
    assert str(received).startswith(f"process 0: {type(error).__name__}: ")
    assert str(received).endswith("odd")


@pytest.mark.parametrize("value", [len, {"x": object()}, np.array([None]), [OwnError], {1, 2}])
def test_nothing_else_can_be_sent(value):
    with pytest.raises(TypeError, match="expected plain values or arrays in a message; found a "):
        pack(value)
