"""The part of a function that depends on data alone is computed once; programs serve other data of these shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hbm_jax.inference.compilation.constants_as_arguments import lowered
from hbm_jax.inference.compilation.separation import Separated, separated


@jax.custom_vjp
def square(x, factor):
    return factor * x**2


square.defvjp(
    lambda x, factor: (square(x, factor), (x, factor)), lambda saved, ct: (7.0 * saved[0] * saved[1] * ct, 0.0)
)


def density(x, data):
    used = jnp.where(data["y"] > 0.0, jnp.log(jnp.abs(data["y"])), 0.0)  # depends on the data alone
    total = jax.lax.fori_loop(0, 3, lambda i, s: s + x[0] * used.sum(), 0.0)
    return square(x[1], data["scale"]) + total + (used * x[2]).sum()


def data_of(seed, num=5):
    rng = np.random.default_rng(seed)
    return {"y": rng.normal(size=num), "scale": float(rng.uniform(1.0, 2.0)), "unused": "text"}


def test_value_and_gradient_are_those_of_the_function_with_its_own_derivatives():
    x, data = np.array([0.3, -1.2, 2.0]), data_of(0)
    function = Separated(density, x, data)
    value, gradient = jax.jit(jax.value_and_grad(function))(x)
    logarithms = np.log(np.where(data["y"] > 0, data["y"], 1.0)).sum()
    np.testing.assert_allclose(value, data["scale"] * 1.44 + 0.9 * logarithms + 2.0 * logarithms, rtol=1e-6)
    np.testing.assert_allclose(gradient, [3 * logarithms, -8.4 * data["scale"], logarithms], rtol=1e-6)


def test_programs_are_those_of_other_data_of_the_same_shapes():
    x, texts = np.zeros(3), []
    for data in (data_of(0), data_of(1), data_of(1, num=6)):
        function = Separated(density, x, data)
        program, arguments = lowered(jax.value_and_grad(function), x, arrays=function.arrays)
        texts.append(program.as_text())
        assert "log" not in texts[-1].replace("logistic", "")  # of the data
        assert len(arguments) == len(function.arrays)
    assert texts[0] == texts[1] != texts[2]


def test_division_by_data_is_multiplication_by_a_reciprocal_as_with_constants():
    x, data = np.array([0.3, -1.2, 2.0]), data_of(0, num=3)

    def quotients(x, data):
        return (x / data["scale"]).sum() + (x / data["y"]).sum() + 1.0 / (x / data["scale"]).max()

    function = Separated(quotients, x, data)
    expected = (x / data["scale"]).sum() + (x / data["y"]).sum() + data["scale"] / 2.0
    np.testing.assert_allclose(jax.jit(function)(x), expected, rtol=1e-6)
    program, _ = lowered(function, x, arrays=function.arrays)
    assert program.as_text().count("stablehlo.divide") == 1  # by the parameters


def test_results_of_the_data_are_known():
    function = Separated(lambda x, y: (x + y.sum(), y.max(), 2.5), np.zeros(2), np.arange(4.0))
    of_both, largest, number = function.of_data()
    assert of_both is None
    assert (largest, number) == (3.0, 2.5)


@pytest.mark.parametrize("choices", [[], [3.0], [3.0, np.array(3.0)]])
def test_data_whose_values_decide_are_constants(choices):
    def chosen(x, num):
        return x * num if num > 2 else x

    function = separated(chosen, np.zeros(()), choices, 3.0)
    assert not function.traced
    assert float(jax.jit(function)(2.0)) == 6.0
    assert function.arrays == []


def test_the_first_form_of_the_data_that_can_be_traced():
    def scaled(x, data):
        factor, largest = data
        return x * factor if largest is None or factor < largest else x

    function = separated(scaled, np.zeros(()), [(3.0, 4.0), (3.0, None)], None)
    assert function.traced
    assert function.data == (3.0, None)
