"""Large constants of a program become its arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hbm_jax.inference.compilation.constants_as_arguments import LARGE, Compiled, compiled
from hbm_jax.xla_options import QUICK, sampling_options


@pytest.mark.parametrize("num", [10, LARGE // 8 + 1], ids=["small", "large"])
def test_a_closure_gives_what_it_gave(num):
    data, key = np.random.default_rng(0).normal(size=num), jax.random.key(3)
    more = np.random.default_rng(1).normal(size=num)

    def of(x, parts):
        noise = jax.random.normal(key)
        return {
            "sum": jnp.sum(jnp.asarray(data) * x) + noise, "noise": noise, "parts": parts["a"] * 2.0,
            "more": jnp.sum(jnp.asarray(more)),
        }  # fmt: skip

    given = 1.5, {"a": np.arange(3.0)}
    program = compiled(of, *given)
    found = program(*given)
    np.testing.assert_allclose(found["sum"] - found["noise"], 1.5 * data.sum(), rtol=1e-9)
    np.testing.assert_allclose(found["more"], more.sum(), rtol=1e-9)
    np.testing.assert_array_equal(found["parts"], [0.0, 2.0, 4.0])
    again = program(-2.0, {"a": np.ones(3)})
    np.testing.assert_allclose(again["sum"] - again["noise"], -2.0 * data.sum(), rtol=1e-9)
    assert again["noise"] == found["noise"]


@pytest.mark.parametrize(("platform", "expected"), [("cpu", sampling_options("cpu")), ("gpu", {})])
def test_programs_that_draw_have_options_of_the_platform(platform, expected, monkeypatch):
    found = []
    original = jax.stages.Lowered.compile

    def recorded(program, options):
        found.append(options)
        return original(program, options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", recorded)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert compiled(jnp.sin, 0.0)(0.0) == 0.0
    assert compiled(jnp.sin, 0.0, compiler_options=QUICK)(0.0) == 0.0
    assert found == [expected, QUICK]
    assert QUICK["xla_backend_optimization_level"] == 0
    assert "xla_backend_optimization_level" not in sampling_options("cpu")  # draws by fully optimised code


def test_it_is_compiled_once():
    traced = []

    def of(x):
        traced.append(1)
        return x + jnp.asarray(np.ones(LARGE)).sum()

    program = Compiled(of)
    assert program(1.0) == 1.0 + LARGE
    assert program(2.0) == 2.0 + LARGE
    assert len(traced) == 1
