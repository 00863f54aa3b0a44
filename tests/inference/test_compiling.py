"""Large constants of a program become its arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hbm_jax.inference.compiling import LARGE, Compiled, compiled


@pytest.mark.parametrize("num", [10, LARGE // 8 + 1], ids=["small", "large"])
def test_a_closure_gives_what_it_gave(num):
    data, key = np.random.default_rng(0).normal(size=num), jax.random.key(3)

    def of(x, parts):
        noise = jax.random.normal(key)
        return {"sum": jnp.sum(jnp.asarray(data) * x) + noise, "parts": parts["a"] * 2.0}

    given = 1.5, {"a": jnp.arange(3.0)}
    found = compiled(of, *given)(*given)
    np.testing.assert_allclose(found["sum"], of(*given)["sum"], rtol=1e-12)
    np.testing.assert_array_equal(found["parts"], [0.0, 2.0, 4.0])


def test_it_is_compiled_once():
    traced = []

    def of(x):
        traced.append(1)
        return x + jnp.asarray(np.ones(LARGE)).sum()

    program = Compiled(of)
    assert program(1.0) == 1.0 + LARGE
    assert program(2.0) == 2.0 + LARGE
    assert len(traced) == 1
