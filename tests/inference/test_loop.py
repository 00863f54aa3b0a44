"""How long blocks are, what the live line says, and how a run ends that is interrupted or out of time."""

import logging
import re
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from programs import tiny

import hbm_jax as hbm
from hbm_jax.inference import run as run_module
from hbm_jax.inference import verdict as verdict_module
from hbm_jax.inference.sampler import chains as chains_module
from hbm_jax.inference.sampler import loop as loop_module
from hbm_jax.inference.sampler import progress as progress_module
from hbm_jax.inference.sampler.ensemble import statistics as statistics_module
from hbm_jax.inference.sampler.progress import ProgressLine
from hbm_jax.inference.sampler.stopping import MARGIN, MIN_ESS, StopRule
from hbm_jax.inference.sampler.target import OneProcess

SEPARATE = {"sampler": hbm.NUTS(), "restarts_lost": False, "num_superchains": 0}  # of chains with a start each


class Recorder:
    """Stands in for the live line and keeps what it was told."""

    lines: ClassVar[list[str]] = []

    def __init__(self, enabled):
        self.enabled = enabled

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def show(self, text):
        self.lines.append(text)

    def close(self, text):
        self.lines.append(text)


@pytest.fixture
def interrupted(monkeypatch):
    """Runs `tiny` with Ctrl-C in the block after `draws` draws a chain."""

    def run(draws):
        advance = chains_module.Chains.advance
        done = 0

        def stop_later(self, num_draws):
            nonlocal done
            if done >= 30 + draws:
                raise KeyboardInterrupt
            num_draws = min(num_draws, 10)
            done += num_draws
            return advance(self, num_draws)

        monkeypatch.setattr(chains_module.Chains, "advance", stop_later)
        monkeypatch.setattr(progress_module, "MAX_PROGRESS_FRACTION", np.inf)
        monkeypatch.setattr(run_module, "ProgressLine", Recorder)
        monkeypatch.setattr(Recorder, "lines", [])
        return hbm.sample(
            tiny, num_chains=1, num_warmup=30, num_samples=1000, seed=5, sampler=hbm.HMC(trajectory_length=1.5)
        )

    return run


def test_ctrl_c_keeps_what_is_done(interrupted):
    fit = interrupted(40)
    assert fit.run["stopped"] == "interrupted"
    assert fit.posterior.sizes == {"chain": 1, "draw": 40}
    assert fit.run["num_devices"] == 1
    assert fit.run["num_samples"] == 40
    assert not fit.verdict.usable
    assert any("no site of the program is observed" in note for note in fit.verdict.notes)
    np.testing.assert_allclose(
        fit.summary()["sd"], [fit.posterior[n].to_numpy().std(ddof=1) for n in fit.summary().index]
    )
    # What the live line said on the way.
    lines = Recorder.lines
    assert lines[0] == "tracing the model"
    assert lines[1] == "searching for starting points (2 parameters)"
    assert lines[2] == "compiling the sampler"
    assert lines[3].startswith("warm-up 10/30, ")
    live = [line for line in lines if "divergences" in line]
    assert live[-1].startswith("1 x 40 draws, ")
    for part in ("draws/s, 0 divergences, worst R-hat ", "smallest ESS ", " left"):
        assert part in live[-1]
    assert lines[-1].startswith("interrupted: 1 x 40 draws in ")


def test_ctrl_c_before_the_first_draws_is_passed_on():
    def advance(num_draws):
        raise KeyboardInterrupt

    chains = SimpleNamespace(
        target=SimpleNamespace(labels=("a",), processes=OneProcess()),
        buffer=50,
        advance=advance,
        num_warmup=0,
        **SEPARATE,
    )
    draws = SimpleNamespace(num_draws=0, blocks=[])
    loop = loop_module.Loop(chains, draws, Recorder(False), StopRule(num_samples=100), 100, None, 0.0, False)
    for what in (loop.warm_up, loop.draw):
        with pytest.raises(hbm.inference.Interrupted, match="nothing was saved, because sample was called without"):
            what()


def stand_in(seconds_per_draw, clock, buffer=1000):
    """Chains that take a known time for each draw, and the lengths of their blocks."""
    lengths = []

    def advance(num_draws):
        lengths.append(num_draws)
        clock.now += seconds_per_draw * num_draws
        return chains_module.Block(np.zeros((1, num_draws, 1)), *[np.zeros((1, num_draws))] * 5)

    target = SimpleNamespace(labels=("a",), processes=OneProcess())
    return SimpleNamespace(target=target, buffer=buffer, advance=advance, num_warmup=0, **SEPARATE), lengths


def test_blocks_take_a_second_and_longer_as_a_run_grows_old(monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(loop_module, "time", clock)
    chains, lengths = stand_in(0.125, clock)
    loop = loop_module.Loop(chains, None, Recorder(False), StopRule(num_samples=100), 6000, None, 0.0, False)
    loop.warm_up()
    assert lengths[:3] == [50, 8, 8]
    assert sum(lengths) == loop.warmed == 6000
    ages = np.cumsum([0, *lengths[:-1]]) * 0.125
    expected = [int(max(1.0, age / 100) / 0.125) for age in ages[1:-1]]
    assert lengths[1:-1] == expected
    assert max(lengths[1:]) > 40
    chains, lengths = stand_in(0.001, clock, buffer=300)
    loop = loop_module.Loop(chains, None, Recorder(False), StopRule(num_samples=100), 1000, None, clock.now, False)
    loop.warm_up()
    assert lengths == [50, 300, 300, 300, 50]


def test_a_budget_of_time_may_end_in_the_warm_up(monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(loop_module, "time", clock)
    chains, lengths = stand_in(0.125, clock)
    rule = StopRule(num_samples=100, max_seconds=7.0)
    loop = loop_module.Loop(chains, None, Recorder(False), rule, 60, None, 0.0, False)
    with pytest.raises(hbm.inference.Interrupted, match="budget of 7 s ended after 56 of 60 warm-up draws; no"):
        loop.warm_up()
    assert lengths == [50, 6]


def test_live_line_of_stuck_chains_warns_of_nothing(monkeypatch):
    monkeypatch.setattr(Recorder, "lines", [])
    stuck = np.repeat(np.arange(4.0)[:, None], 30, axis=1)
    block = chains_module.Block(stuck[..., None], *[stuck] * 5)
    draws = SimpleNamespace(num_draws=30, raw=lambda name: getattr(block, name))
    line = progress_module.DrawingLine(Recorder(True), ["a"])
    line.show(draws, 0, 10.0, lambda smallest_ess: 60.0)
    assert float(re.search(r"worst R-hat (\S+) \(a\)", Recorder.lines[-1])[1]) > 1e6


def test_rates_and_times_are_readable():
    assert progress_module.rate(4000.0) == "4,000 draws/s"
    assert progress_module.rate(0.4) == "0.4 draws/s"
    assert [progress_module.duration(t) for t in (3.2, 89, 600, 7200)] == ["3 s", "89 s", "10 min", "2.0 h"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": -1}, "expected until to be an effective sample size above 0"),
        ({"until": {"mu": "many"}}, "expected until to be an effective sample size above 0"),
        ({"until": {"mu": True}}, "expected until to be an effective sample size above 0"),
        ({"until": {}}, "expected until to be an effective sample size above 0"),
        ({"until": {"nu": 100}}, "until names 'nu'; expected one of a, b"),
        ({"until": 500, "num_samples": 100}, "expected either num_samples or until; found both, 100 and 500"),
        ({"max_seconds": -1}, "expected max_seconds >= 0; found -1"),
    ],
)
def test_bad_rules(options, message):
    with pytest.raises(ValueError, match=message):
        hbm.sample(tiny, progress=False, **options)


@pytest.mark.parametrize(
    ("rule", "num_draws", "num_divergent", "stops"),
    [
        (StopRule(), 100, 40, True),
        (StopRule(), 100, 3, False),  # too few to judge early
        (StopRule(), 150, 100, False),  # the number of draws does not depend on the length of the blocks
        (StopRule(), 1000, 3, True),
        (StopRule(), 1000, 0, False),
        (StopRule(num_samples=2000), 1000, 500, False),  # as many as were asked for
        (StopRule(max_num_samples=1000), 1000, 3, True),
    ],
)
def test_divergences_that_decide_the_verdict_end_an_adaptive_run(rule, num_draws, num_divergent, stops):
    loop = loop_module.Loop.__new__(loop_module.Loop)
    loop.rule, loop.next_check, loop.notes, loop.lead = rule, 1000, [], lambda work: work()
    flags = np.zeros((4, num_draws), bool)
    flags.flat[:num_divergent] = True
    loop.draws = SimpleNamespace(num_draws=num_draws, raw={"diverging": flags}.get)
    loop._check_convergence = lambda: (3.0, "", False)
    reason = loop._reason_to_stop()
    if num_draws == rule.max_num_samples:
        assert reason == rule.reason_exhausted
    elif stops:
        assert reason == f"stopped: {num_divergent} divergent transitions decide the verdict"
        assert f"sampling ended after {num_draws} draws per chain" in loop.notes[0]
    else:
        assert reason is None


@pytest.mark.parametrize(
    ("rule", "distance", "stops"),
    [
        (StopRule(), 8.0, True),
        (StopRule(), 4.0, False),  # chains may still move between them
        (StopRule(until={"b": 500}), 8.0, False),
        (StopRule(max_num_samples=1000), 8.0, False),
    ],
)
def test_chains_in_different_modes_end_an_adaptive_run(rule, distance, stops):
    a, b = np.random.default_rng(3).normal(size=(2, 4, 1000))
    a[2:] += distance
    sites = {"a": a, "b": np.cumsum(b, axis=1)}
    loop = loop_module.Loop.__new__(loop_module.Loop)
    loop.rule, loop.next_check, loop.notes, loop.lead = rule, 1000, [], lambda work: work()
    loop.chains = SimpleNamespace(target=SimpleNamespace(labels=("a", "b")), **SEPARATE)
    raw = {"position": np.stack(list(sites.values()), axis=-1), "diverging": np.zeros((4, 1000), bool)}
    loop.draws = SimpleNamespace(num_draws=1000, sites=lambda: sites, raw=raw.get)
    reason = loop._reason_to_stop()
    if stops:
        assert reason == "stopped: chains in different modes decide the verdict"
        assert loop.notes == [
            "sampling ended after 1000 draws per chain, because chains in different modes had decided the verdict"
        ]
    else:
        assert reason in (None, rule.reason_exhausted)
        assert not loop.notes


def test_statistics_of_the_last_check_are_those_of_the_verdict(monkeypatch):
    elements, statistics = [], statistics_module.statistics

    def counted(draws, *args):
        elements.append(draws.shape[-1])
        return statistics(draws, *args)

    monkeypatch.setattr(statistics_module, "statistics", counted)
    fit = hbm.sample(tiny, seed=1, progress=False)
    assert fit.run["num_samples"] == 1000  # one check
    assert sum(elements) == len(fit.verdict.table)
    pd.testing.assert_frame_equal(verdict_module.diagnose(fit.posterior), fit.verdict.table)


def test_sites_that_are_not_shown_decide_when_a_run_stops():
    rng = np.random.default_rng(0)
    shown, walk = rng.normal(size=(4, 1000)), rng.normal(size=(4, 1000)).cumsum(axis=1)

    def look(hidden):
        loop = loop_module.Loop.__new__(loop_module.Loop)
        loop.rule = StopRule()
        loop.chains = SimpleNamespace(target=SimpleNamespace(labels=("_slow", "a")), **SEPARATE)
        positions = np.stack([hidden, shown], axis=-1)
        loop.draws = SimpleNamespace(num_draws=1000, sites=lambda: {"a": shown}, raw=lambda name: positions)
        return loop._check_convergence()

    assert look(rng.normal(size=(4, 1000))) == (pytest.approx(0.1, abs=0.03), "", False)
    assert look(walk)[0] > 10.0
    assert look(0.0 * walk)[1] == "_slow never moved"


@pytest.mark.parametrize(
    ("rule", "ess", "r_hat", "stops"),
    [
        (StopRule(), 0.99 * MARGIN * MIN_ESS, 1.0, False),  # the verdict holds, but perhaps by chance
        (StopRule(), 1.01 * MARGIN * MIN_ESS, 1.0, True),
        (StopRule(), 1.01 * MARGIN * MIN_ESS, 1.02, False),
        (StopRule(until=MIN_ESS), MIN_ESS, 1.0, True),
        (StopRule(until={"a": 900.0}), 899.0, 1.0, False),
    ],
)
@pytest.mark.parametrize("kind", ["ess_bulk", "ess_tail"])
def test_a_run_goes_on_until_its_estimates_exceed_the_verdict_by_a_margin(rule, ess, r_hat, stops, kind):
    table = pd.DataFrame({"r_hat": [r_hat], "ess_bulk": [2000.0], "ess_tail": [2000.0]}, index=["a"])
    table[kind] = ess
    assert (rule.shortfall(table) <= 1.0) == stops
    assert MARGIN > 1.0


def test_the_progress_line_in_a_log_file_has_a_line_for_each_text(capsys):
    with ProgressLine(True, every=0.0) as line:
        line.show("warm-up 10/30, 2 s left")
        line.close("stopped: all requested draws are done")
    assert capsys.readouterr().err == "warm-up 10/30, 2 s left\nstopped: all requested draws are done\n"
    with ProgressLine(True) as line:
        line.show("too soon after the start for a line")
        line.close("stopped")
    assert capsys.readouterr().err == "stopped\n"
    with ProgressLine(False, every=0.0) as line:
        line.show("not shown")
        line.close("not shown")
    assert capsys.readouterr().err == ""


def test_progress_goes_to_logging_where_it_is_set_up_and_to_a_function(caplog, capsys):
    with caplog.at_level(logging.INFO, logger="hbm_jax"), ProgressLine(True, every=0.0) as line:
        line.show("warm-up 10/30")
        line.close("stopped")
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("hbm_jax", "warm-up 10/30"),
        ("hbm_jax", "stopped"),
    ]
    texts = []
    with ProgressLine(texts.append) as line:
        line.show("warm-up 10/30")
        line.close("stopped")
    assert texts == ["warm-up 10/30", "stopped"]
    assert capsys.readouterr().err == ""
