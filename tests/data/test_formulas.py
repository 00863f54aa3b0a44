"""Formulas: what the grammar reads, what it refuses and where, and that nothing of a formula is ever run."""

import dataclasses

import numpy as np
import pytest
from stored_fits import load

import hbm_jax
from hbm_jax.data import DataError, RegressionData
from hbm_jax.data.regression.grammar import GroupTerm, parse
from hbm_jax.inference import ResultFileError


def table():
    rng = np.random.default_rng(0)
    columns = {name: rng.normal(size=30) for name in ("x", "z", "y", "class", "np", "ｎp", "log", "a b", "c.d")}
    return columns | {"k": np.array(list("abc") * 10), "n": np.arange(30), "p": rng.uniform(1.0, 2.0, 30)}


@pytest.mark.parametrize(
    ("formula", "response", "fixed", "groups"),
    [
        ("y ~ x", "y", "x", []),
        ("y~x*z-1", "y", "x * z - 1", []),
        ("y ~ -1 + x", "y", "-1 + x", []),
        ("y ~ (1 | g)", "y", "1", [GroupTerm("1", ("g",))]),
        ("y ~ 0 + (1 | g) + x", "y", "0 + x", [GroupTerm("1", ("g",))]),
        ("y ~ (1 | g) + x", "y", "x", [GroupTerm("1", ("g",))]),
        ("y ~ x + (1 + x || a:b)", "y", "x", [GroupTerm("1 + x", ("a", "b"), correlated=False)]),
        ("y ~ (0 + x | walk(t))", "y", "1", [GroupTerm("0 + x", ("t",), walk=True)]),
        ("log(y) ~ log(a * b / 2) + C(k):x", "log(y)", "log(a * b / 2) + C(k):x", []),
        ("`a b` ~ `c d` + e.f", "a b", "`c d` + `e.f`", []),
        ("y ~ (x + z)**2 / C(k)", "y", "(x + z)**2 / C(k)", []),
        ("y ~ I(-x**2 + 007e0) + poly(x, 3)", "y", "I(-x ** 2 + 007e0) + poly(x, 3)", []),
    ],
)
def test_a_formula_is_taken_apart(formula, response, fixed, groups):
    parsed = parse(formula)
    assert (parsed.response, parsed.fixed, list(parsed.groups)) == (response, fixed, groups)


@pytest.mark.parametrize(
    ("formula", "words"),
    [
        ("y ~ x + {np.f2py.os.system('touch {file}')+x}", "found '{' at character 9.*I\\(x - 1\\)"),
        ("y ~ np.save('{file}', x)", 'found "\'" at character 13'),
        ("y ~ np.save(x, x)", "expected a function, one of C, I, .*found 'np.save' at character 5"),
        ("y ~ np.memmap(x)", "found 'np.memmap'"),
        ("y ~ x.to_csv(p)", "found 'x.to_csv'"),
        ("y ~ I(x.to_csv(p))", "found 'x.to_csv'"),
        ("y ~ I(np.save(p, x))", "found 'np.save'"),
        ("y ~ __import__(os)", "found '__import__'"),
        ("y ~ I(open(p))", "found 'open'"),
        ("y ~ Q(p)", "found 'Q'"),
        ("y ~ hashed(p)", "found 'hashed'"),
        ("y ~ x[0]", r"found '\[' at character 6"),
        ("y ~ C(k, levels=2)", "found '='"),
        ("y ~ C(k, contr.treatment)", "expected 1 argument of C; found 2"),
        ("y ~ I(x if x else x)", r"expected '\)'; found 'if'"),
        ("y ~ I(lambda: 0)", "found ':'"),
        ("y ~ I(x == 1)", "found '='"),
        ('y ~ "x"', "`a name` for a column"),
        ("y ~ x; z", "found ';'"),
        ("y ~ x %in% z", "found '%'"),
        ("y ~ .", "found '.'"),
        ("y", "expected '~' after the response; found its end at character 2"),
        ("", r"formula: expected one, such as .*; found none"),
        ("~ x", "expected the name of a column; found '~'"),
        ("y + z ~ x", r"expected '~' after the response; found '\+'"),
        ("y ~ x ~ z", r"found '~' at character 7: y ~ x \[here\]~ z"),
        ("y ~ x|x", r"found '\|' at character 6: y ~ x\[here\]\|x"),
        ("y ~ x +", "found its end at character 8"),
        ("y ~ x z", "expected an operator or the end; found 'z'"),
        ("y ~ x * (1 | g)", r"expected '\+' before a group term"),
        ("y ~ x - (1 | g)", "expected"),
        ("y ~ (1 | g", "found its end"),
        ("y ~ (1 | a/b)", r"Write \(1 \| a/b\) as \(1 \| a\) \+ \(1 \| a:b\)"),
        ("y ~ (x | walk(g:t))", "walk.t. of one column"),
        ("y ~ 2 * x", r"expected 0 \(no intercept\) or 1"),
        ("y ~ log(x, z)", "expected 1 argument of log; found 2"),
        ("y ~ poly(x, z)", "n from 1 to 10; found z"),
        ("y ~ log(C(k))", "found 'C'"),
        ("y ~ C(k + 1)", r"expected '\)'; found '\+'"),
        ("y ~ x ** z", "expected a power from 1 to 10; found 'z'"),
    ],
)
def test_what_is_no_formula_is_refused_where_it_is_not(formula, words, tmp_path):
    file = tmp_path / "touched"
    with pytest.raises(DataError, match=words):
        RegressionData.from_columns(table(), formula.replace("{file}", str(file)))
    assert not file.exists()


@pytest.mark.parametrize(
    "formula",
    [
        "y ~ (x + n)**200",
        "y ~ " + " + ".join(f"x{i}" for i in range(20_000)),
        "y ~ " + " + ".join(f"x{i}" for i in range(1500)),
        "y ~ " + " * ".join(f"x{i}" for i in range(40)),
        "y ~ (" + " + ".join(f"x{i}" for i in range(40)) + ")**10",
        "y ~ " + "(" * 3000 + "x" + ")" * 3000,
        "y ~ " + "log(" * 2000 + "x" + ")" * 2000,
        "y ~ I(9**9**9**9 + x)",
        "y ~ I(((9)**9)**9 + x)",
        "y ~ I(x**9**9**9)",
        "y ~ I(x + " + "9" * 5000 + ")",
        "y ~ C(n):C(k)",
        "y ~ C(n)*C(n):C(k)*C(n)",
    ],
    ids=lambda formula: formula[:20],
)
def test_cost_is_bounded(formula):
    # Without the bounds most of these would not end, or fill the memory.
    with pytest.raises(DataError, match="expected"):
        RegressionData.from_columns(table(), formula)


def test_columns_may_be_called_anything():
    evil = "x'); import os; os.system('touch file"
    columns = table() | {evil: np.random.default_rng(1).normal(size=30)}
    data = RegressionData.from_columns(
        columns, f"y ~ class + np + I(ｎp**2) + `a b` + c.d + I(c.d**2) + `{evil}` + I(log*2)"
    )
    assert data.terms[1:] == ("class", "np", "I(ｎp ** 2)", "a b", "c.d", "I(c.d ** 2)", evil, "I(log * 2)")
    expected = [columns[name] for name in ("class", "np")] + [columns["ｎp"] ** 2]
    np.testing.assert_allclose(data.X[:, 1:4].T, expected)
    np.testing.assert_allclose(data.X[:, -1], 2.0 * columns["log"])
    assert RegressionData.from_columns(columns, "c.d ~ x").response == "c.d"


def test_functions_are_those_of_numpy():
    columns = table()
    data = RegressionData.from_columns(columns, "sqrt(p) ~ log1p(p) + tanh(x) + abs(z) + I((x - 1) / -p**2 + 3e-1*x)")
    np.testing.assert_allclose(data.y, np.sqrt(columns["p"]))
    x, p = columns["x"], columns["p"]
    expected = [np.log1p(p), np.tanh(x), np.abs(columns["z"]), (x - 1) / -(p**2) + 0.3 * x]
    np.testing.assert_allclose(data.X[:, 1:].T, expected)


@pytest.mark.parametrize("formula", ["y ~ I(k * 2)", "y ~ log(k)", "y ~ center(k)", "log(k) ~ x"])
def test_text_is_not_computed_with(formula):
    with pytest.raises(DataError, match=r"k: expected numbers to compute with; found text such as 'a'"):
        RegressionData.from_columns(table(), formula)


@pytest.mark.parametrize("formula", ["y ~ I(1/0 + x)", "y ~ log(x)", "y ~ I(x + 1e400)"])
def test_what_has_no_value_is_an_error(formula):
    with pytest.raises(DataError, match=r"cannot be evaluated|a finite number"):
        RegressionData.from_columns(table(), formula)


def test_a_stored_formula_is_read_by_the_same_grammar(tmp_path):
    data = RegressionData.from_columns(table(), "y ~ x + log(p) + (1 | k)")
    stored = data.to_dict()
    assert RegressionData.from_dict(stored).terms == data.terms
    stored["formula"] = np.asarray(f"y ~ x + {{np.f2py.os.system('touch {tmp_path}/touched')+x}}")
    with pytest.raises(DataError, match=r"found '{' at character 9"):
        RegressionData.from_dict(stored)
    assert list(tmp_path.iterdir()) == []


def test_a_stored_result_with_code_in_its_formula_is_refused(tmp_path):
    fit = load("regression")
    tree = fit.tree.copy(deep=True)
    (name,) = [name for name in tree["constant_data"].data_vars if name == "formula"]
    tree["constant_data"][name] = tree["constant_data"][name].copy(
        data=np.asarray(f"y ~ x + {{np.f2py.os.system('touch {tmp_path}/touched')+x}}")
    )
    path = dataclasses.replace(fit, tree=tree).save(tmp_path / "posterior.nc")
    with pytest.raises(ResultFileError, match=r"posterior\.nc: .* found '{' at character 9"):
        hbm_jax.load(path)
    assert not (tmp_path / "touched").exists()
