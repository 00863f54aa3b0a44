"""Formulas and tables of regressions: what is read, what comes back, and what is refused with which words."""

import numpy as np
import pandas as pd
import pytest

import hbm_jax as hbm
from hbm_jax.data import DataError, RegressionData, read_regression
from hbm_jax.data.protocol import Container
from hbm_jax.data.regression.grammar import GroupTerm, parse


def table(num=30, seed=0):
    rng = np.random.default_rng(seed)
    of = np.arange(num) % 5
    age = np.array([1.0, 3.0, 2.0, 5.0, 4.0])
    return {
        "x": rng.normal(size=num), "z": rng.normal(3.0, 2.0, num), "y": rng.normal(size=num) + of, "age": age[of],
        "kind": np.array(["a", "b", "c"])[np.arange(num) % 3], "g": [f"g{j}" for j in of], "t": np.arange(num) // 3,
        "n": np.full(num, 9), "k": np.arange(num) % 9, "e": np.full(num, 0.3),
    }  # fmt: skip


def test_formulas_are_taken_apart():
    parsed = parse("log(y) ~ x * I(z + 1) + (1 + x || a:b) + (1 | g) + (0 + x | walk(t))")
    assert parsed.response == "log(y)"
    assert parsed.fixed == "x * I(z + 1)"
    assert parsed.groups == (
        GroupTerm("1 + x", ("a", "b"), correlated=False),
        GroupTerm("1", ("g",)),
        GroupTerm("0 + x", ("t",), walk=True),
    )
    assert parse("y ~ (1 | g) + x").fixed == "x"
    assert parse("y ~ (1 | g)").fixed == "1"
    assert parse("y ~ 0 + (1 | g) + x").fixed == "0 + x"


@pytest.mark.parametrize(
    ("formula", "words"),
    [
        ("y", ["expected '~' after the response", "its end at character 2", "y[here]"]),
        ("y ~ x ~ z", ["found '~' at character 7", "y ~ x [here]~ z"]),
        ("y ~ (1 | a/b)", ["(1 | a/b)", "Write (1 | a/b) as (1 | a) + (1 | a:b)"]),
        ("y ~ x * (1 | g)", ["'+' before a group term", "y ~ x * [here](1 | g)"]),
        ("y ~ (1 | g", ["(1 + x | group), (1 | a:b)", "its end at character 11"]),
        ("y ~ (x | walk(g:t))", ["walk(t) of one column"]),
    ],
)
def test_bad_formulas(formula, words):
    with pytest.raises(DataError) as error:
        parse(formula)
    for word in words:
        assert word in str(error.value)


def test_designs():
    data = RegressionData.from_columns(table(), "y ~ x + C(kind) + age + x:age + (1 + x | g)", error="e")
    assert isinstance(data, Container)
    assert data.terms == ("Intercept", "x", "C(kind)[T.b]", "C(kind)[T.c]", "age", "x:age")
    columns = table()
    np.testing.assert_array_equal(data.X[:, 5], columns["x"] * columns["age"])
    np.testing.assert_array_equal(data.X[:, 2], np.array(columns["kind"]) == "b")
    # What is constant in a group is what its intercepts are centred on; x and its product with age, its slopes.
    assert list(data.within) == [0, 0, 1, 1, 0, 0]
    (group,) = data.groups
    assert group.columns == ("Intercept", "x")
    np.testing.assert_allclose(group.group_predictors[:, 0, 4], [1.0, 3.0, 2.0, 5.0, 4.0])
    np.testing.assert_allclose(group.group_predictors[:, 1, 5], [1.0, 3.0, 2.0, 5.0, 4.0])
    # In the coordinates of the basis the predictors, less their means, are orthogonal.
    centred = (data.X - np.append(0, data.means[1:])) @ np.diag(np.ones(6))
    shift = np.eye(6)
    shift[0] += data.means
    orthogonal = centred @ shift @ data.basis
    np.testing.assert_allclose(orthogonal.T @ orthogonal / 30, np.eye(6), atol=1e-10)
    assert (data.error == 0.3).all()
    assert "5 g" in data.describe()


def test_walks_have_the_covariance_of_a_walk_less_its_mean():
    data = RegressionData.from_columns(table(), "y ~ x + (0 + x | walk(t))")
    modes = data.groups[0].modes
    steps = np.random.default_rng(1).normal(size=(200_000, 9))
    walk = np.cumsum(np.concatenate([np.zeros((200_000, 1)), steps], axis=1), axis=1)
    walk -= walk.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(modes @ modes.T, np.cov(walk.T), atol=0.02 * np.var(walk, axis=0).max())
    np.testing.assert_allclose(modes.sum(axis=0), 0.0, atol=1e-12)


def test_tables_come_back(tmp_path):
    data = RegressionData.from_columns(table(), "k ~ x + kind + (1 | g)", trials="n")
    data.to_table().write(tmp_path / "points.ecsv")
    again = read_regression(tmp_path / "points.ecsv", formula="k ~ x + kind + (1 | g)", trials="n")
    changed = data.replace_observations(data.y[::-1])
    stored = RegressionData.from_dict(changed.to_dict())
    np.testing.assert_array_equal(stored.y, changed.y)
    assert stored.y_mean == data.y_mean
    for other in (again, stored):
        assert (other.terms, other.groups[0].labels) == (data.terms, data.groups[0].labels)
        for key in ("X", "basis", "trials", "scales"):
            np.testing.assert_array_equal(getattr(other, key), getattr(data, key))
    part = data.subset(np.arange(12))
    assert len(part) == 12
    assert part.name == data.name[:12]
    np.testing.assert_array_equal(part.y, data.y[:12])
    named = read_regression(table(), columns={"L": "y"}, formula="L ~ x", name="g")
    assert named.response == "L"
    assert named.name[:2] == ("g0", "g1")


def test_arrays():
    columns = table()
    X = np.stack([columns["x"], columns["z"]], axis=1)
    data = RegressionData.from_arrays(
        columns["y"], X, groups={"g": columns["g"]}, varying=["x2"], exposure=columns["n"]
    )
    same = RegressionData.from_columns(columns, "y ~ x + z + (1 + z | g)", exposure="n")
    assert data.terms == ("Intercept", "x1", "x2")
    np.testing.assert_array_equal(data.X, same.X)
    np.testing.assert_allclose(data.offset, np.log(9.0))
    np.testing.assert_array_equal(data.groups[0].values, same.groups[0].values)
    spaced = RegressionData.from_arrays(columns["y"], {"my x": columns["x"]}, intercept=False)
    assert spaced.terms == ("my x",)
    with pytest.raises(DataError, match="x1: expected 3 values, as in y; found 2"):
        RegressionData.from_arrays(np.arange(3.0), [1.0, 2.0])


def with_nan(values):
    return [np.nan if i == 4 else value for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("formula", "change", "options", "words"),
    [
        ("y ~ xx", {}, {}, ["'xx' is not in the table (did you mean 'x'?)", "found 'xx'"]),
        ("y ~ x + (1 | gg)", {}, {}, ["'gg' is not in the table"]),
        ("yy ~ x", {}, {}, ["'yy' is not in the table"]),
        ("y ~ foo(x)", {}, {}, ["expected a function, one of C, I, ", "found 'foo' at character 5"]),
        ("y ~ x +", {}, {}, ["expected the name of a column", "its end at character 8"]),
        ("y ~ scale(w)", {}, {}, ["'w'"]),
        ("", {}, {}, ["formula: expected one", "'y ~ x + (1 | group)'"]),
        ("y ~ x", {"x": np.full(30, 2.0)}, {}, ["x: expected a predictor that is not constant", "2 in all 30 rows"]),
        (
            "y ~ x + z",
            {"z": "2x"},
            {},
            ["z: expected predictors that are linearly independent", "combination of Intercept, x"],
        ),
        ("y ~ x", {"x": "nan"}, {}, ["x, row 4", "expected a value", "nan"]),
        ("y ~ x", {"y": "nan"}, {}, ["y, row 4"]),
        ("y ~ log(z)", {"z": np.arange(30.0)}, {}, ["log(z), row 0", "finite"]),
        ("y ~ x + (1 | g)", {"g": ["a"] * 30}, {}, ["g: expected two groups or more", "'a'"]),
        ("y ~ x + (1 | walk(g))", {}, {}, ["walk(g): expected numbers", "'g0'"]),
        ("k ~ x", {"n": np.full(30, 4)}, {"trials": "n"}, ["response", "0 to the number of trials (n)", "row 5"]),
        ("k ~ x", {"n": np.zeros(30)}, {"trials": "n"}, ["trials n", "positive", "row 0"]),
        ("y ~ x", {"e": np.zeros(30)}, {"error": "e"}, ["error e", "positive"]),
        ("y ~ x", {}, {"error": "sigma"}, ["error: 'sigma' is not in the table"]),
        ("kind ~ x", {"kind": ["a"] * 30}, {}, ["kind: expected two categories or more"]),
    ],
)
def test_bad_tables(formula, change, options, words):
    columns = table()
    for key, value in change.items():
        if isinstance(value, str):
            columns[key] = with_nan(columns[key]) if value == "nan" else 2.0 * columns["x"] + 1.0
        else:
            columns[key] = value
    with pytest.raises(DataError) as error:
        RegressionData.from_columns(columns, formula, **options)
    for word in words:
        assert word in str(error.value), str(error.value)


def test_a_group_without_points_is_named():
    frame = pd.DataFrame(table())
    frame["g"] = pd.Categorical(frame["g"], categories=["g0", "g1", "g2", "g3", "g4", "empty"])
    with pytest.raises(DataError, match="g: expected points in every group; found none in empty"):
        read_regression(frame, formula="y ~ x + (1 | g)")


def test_the_classic_data_sets():
    rows = {
        "baseball": 18, "dugongs": 27, "eight_schools": 8, "hogg_line": 20, "pumps": 10, "radon": 919, "rat_tumor": 71,
        "rats": 150, "surgical": 12,
    }  # fmt: skip
    assert rows.keys() == hbm.data.EXAMPLES.keys()
    for name, num in rows.items():
        example = hbm.data.load_example(name)
        assert len(example) == num
        assert any("Source" in line for line in example.meta["comments"])
    assert list(hbm.data.load_example("rats")[1]) == [1, 15, 199]
    with pytest.raises(DataError, match="unknown data set 'radonn'"):
        hbm.data.load_example("radonn")
