"""The comparison with other packages: what it makes of results, and that `hbm-jax bench` finds it."""

import argparse
import importlib
import importlib.util
import math
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from hbm_jax import cli
from hbm_jax.cli import bench

SUITE = Path(__file__).resolve().parents[1] / "benchmarks" / "suite"


@pytest.fixture
def suite(monkeypatch):
    """The modules of the suite, which are a program and no package."""
    monkeypatch.syspath_prepend(str(SUITE))
    names = ("result", "report")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield [importlib.import_module(name) for name in names]
    for name in names:
        sys.modules.pop(name, None)


def result(module, seed, mean=1.0, num=1000, seconds=2.0):
    draws = np.random.default_rng(seed).normal(mean, 2.0, (2, num))
    return module.Result({"compile": 3.0, "warmup": 1.0, "sampling": seconds}, {"a": draws}, 10_000, 0)


def test_effective_draws_of_independent_ones_are_all_of_them(suite):
    module, _ = suite
    row = module.Row.of("s", "hbm_jax", 1, result(module, 1))
    assert row.slowest == "a"
    assert row.ess == pytest.approx(2000, rel=0.25)  # bulk or tail, the smaller
    assert row.converged
    assert row.rate == pytest.approx(row.ess / 2.0)
    assert row.per_gradient == pytest.approx(row.ess / 10_000)
    assert row.to_verdict == pytest.approx(4.0 + 400 / row.rate)
    mean, error = row.means["a"]
    assert error == pytest.approx(2.0 / math.sqrt(2000), rel=0.1)
    assert abs(mean - 1.0) < 4 * error


def test_chains_that_sit_apart_have_no_speed(suite):
    module, report = suite
    apart = result(module, 2)
    apart.draws["a"][1] += 5.0
    rows = [module.Row.of("s", "hbm_jax", 1, result(module, 1)), module.Row.of("s", "Stan, centred", 1, apart)]
    assert not rows[1].converged
    assert report.ratios(report.summaries(rows, "s"))["Stan"] is None
    assert "Stan, centred *" in report.text(rows, {"s": "a system"}, ABOUT, "")


def test_another_posterior_has_no_speed_either(suite):
    module, report = suite
    rows = [
        module.Row.of("s", "hbm_jax", 1, result(module, 1)),
        module.Row.of("s", "PyMC, centred", 1, result(module, 2, mean=2.0)),
        module.Row.of("s", "NumPyro, centred", 1, result(module, 3, seconds=8.0)),
        module.Row("s", "Stan, centred", 1, failure="not finished after 60 s"),
    ]
    found = {s.name: s for s in report.summaries(rows, "s")}
    assert found["PyMC, centred"].apart > 10
    assert not found["PyMC, centred"].speed
    assert found["NumPyro, centred"].apart < 4
    ratios = report.ratios(list(found.values()))
    assert ratios["PyMC"] is None
    assert ratios["Stan"] is None
    assert ratios["NumPyro"][0] == pytest.approx(4.0, rel=0.3)
    text = report.text(rows, {"s": "a system"}, ABOUT, "")
    assert "not finished after 60 s" in text
    assert "| did not converge |" in report.markdown(rows, {"s": "a system"})


def test_a_way_that_was_given_up_has_no_speed_of_its_own(suite):
    module, report = suite
    given_up = result(module, 1)
    given_up.failure = "proposals too seldom accepted"
    rows = [
        module.Row.of("s", "hbm_jax", 1, result(module, 3, seconds=8.0)),
        module.Row.of("s", "hbm_jax, fixed length", 1, result(module, 2)),
        module.Row.of("s", "hbm_jax, independent", 1, given_up),
    ]
    assert report.best(report.summaries(rows, "s"), "hbm_jax", ours=True).name == "hbm_jax, fixed length"
    assert "proposals too seldom accepted" in report.text(rows, {"s": "a system"}, ABOUT, "")


def test_medians_and_spreads_are_over_rounds(suite, tmp_path):
    module, report = suite
    rows = [module.Row.of("s", "hbm_jax", i, result(module, i, seconds=s)) for i, s in enumerate((1.0, 2.0, 4.0))]
    (found,) = report.summaries(rows, "s")
    assert found.rate == rows[1].rate
    assert found.spread == (rows[2].rate, rows[0].rate)
    report.keep("s", "an older one", rows[:1], ABOUT["s"], tmp_path)
    report.keep("s", "a system", rows, ABOUT["s"], tmp_path)
    report.keep_kernels("kernels", tmp_path)
    before = (tmp_path / "suite.txt").read_text()
    assert before.count("a system") == 1
    assert "an older one" not in before
    assert "3 round(s)" in before
    report.render(tmp_path / "suite.json")
    assert (tmp_path / "suite.txt").read_text() == before
    assert (tmp_path / "suite.png").stat().st_size > 1000


ABOUT = {"s": {"date": "today", "machine": "this", "device": "CPU", "versions": {"jax": "1"}, "settings": "few"}}


@pytest.fixture
def program(suite):
    """The program itself."""
    spec = importlib.util.spec_from_file_location("suite_program", SUITE / "__main__.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program


def known(failure=""):
    problem = Future()
    problem.set_result(failure)
    return problem


@pytest.mark.parametrize(
    ("failure", "seconds", "shown"),
    [
        ("", 1.0, "not run: the 8 minutes were up"),
        ("the problem could not be worked out: OSError: no space", 100.0, "OSError: no space"),
    ],
)
def test_what_was_not_run_is_shown_with_its_reason(suite, program, tmp_path, failure, seconds, shown):
    options = argparse.Namespace(seconds=45.0, end=time.monotonic() + seconds)
    row = program.run("normal", "hbm_jax", 1, options, tmp_path, known(failure))
    assert row.failure.endswith(shown)
    module, report = suite
    assert row.failure in report.text([module.Row(**vars(row))], {"normal": "a system"}, {"normal": ABOUT["s"]}, "")


def test_a_process_has_its_time_and_no_more(program, tmp_path):
    """Nor have those it began, which would go on by themselves."""
    alive = tmp_path / "alive"
    text = f"(sleep 0.6; touch {alive}) & echo 'ValueError: because'; wait"
    status, said = program.run_within(["sh", "-c", text], 0.3, tmp_path / "log")
    assert status == -9
    assert program.error_in(said, status) == "ValueError: because"
    time.sleep(0.8)
    assert not alive.exists()
    assert program.run_within(["sh", "-c", "exit 3"], 60.0, tmp_path / "log") == (3, [])
    assert program.error_in([], 3) == "exit status 3"


def test_the_command_hands_over_to_the_suite(monkeypatch):
    found = []
    monkeypatch.setattr(bench.subprocess, "call", lambda command: found.append(command) or 0)
    assert cli.main(["bench", "--quick", "--systems", "normal", "--out", "there"]) == 0
    assert found[0][1:] == [str(SUITE), "--quick", "--systems", "normal", "--out", "there"]


def test_without_a_clone_the_command_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "hbm_jax" / "cli" / "bench.py"))
    assert cli.main(["bench"]) == 2
    assert "not installed from a clone of its repository" in " ".join(capsys.readouterr().err.split())
