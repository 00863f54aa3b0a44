"""The command simulate without a sample: made-up designs of every model of tables, and the fit that it names."""

import json
import shlex

import pytest
from commands import handed_to_the_sampler, refused, run

FROM_NOTHING = {
    "relation": ("--pooling", "complete"),
    "normal": (),
    "regression": (),
    "rates": (),
    "hubble-diagram": (),
    "supernova": (),
    "supernova-correlated": (),
    "normal-vectors": (),
}


def simulate(capsys, name, out, *options):
    """Simulate 40 objects; return the true values in the file beside them, and the words of the fit that is named."""
    status, text, err = run(capsys, "simulate", name, "--num", 40, "--out", out, *options)
    assert status == 0, err
    truth = json.loads(out.with_name(f"{out.stem}_truth.json").read_text())
    return truth, shlex.split(text.splitlines()[-1].partition("hbm-jax ")[2])


@pytest.mark.parametrize("name", FROM_NOTHING)
def test_a_sample_from_nothing_is_read_by_the_fit_that_is_named(name, tmp_path, capsys, monkeypatch):
    truth, command = simulate(capsys, name, tmp_path / "drawn.ecsv", *FROM_NOTHING[name])
    model, data, _ = handed_to_the_sampler(capsys, monkeypatch, *command, "--out", tmp_path / "run")
    assert getattr(data, "num_points", len(data)) == 40
    assert {key.partition("[")[0] for key in truth} <= {*model.all_priors, "sd"}


def test_a_true_value_that_is_given_replaces_the_typical_one(tmp_path, capsys):
    typical, _ = simulate(capsys, "relation", tmp_path / "a.csv", "--pooling", "complete")
    given, _ = simulate(capsys, "relation", tmp_path / "b.csv", "--pooling", "complete", "--truth", "alpha=3")
    assert (typical["alpha"], given["alpha"]) == (1.5, 3.0)
    assert {key: value for key, value in typical.items() if key != "alpha"} == {
        key: value for key, value in given.items() if key != "alpha"
    }


def test_what_is_refused(tmp_path, capsys):
    out = ["--out", tmp_path / "a.csv"]
    assert "--num: expected 1 or more" in refused(capsys, "simulate", "normal", "--num", "0", *out)
    design = ["--design", "eight-schools", "--num", "3"]
    assert "expected no options of populations" in refused(capsys, "simulate", "normal", *design, *out)
    assert "data.format" in refused(capsys, "simulate", "normal", "--format", "csv", *out)
    formula = ["--formula", "log(y) ~ x"]
    assert "expected a column as the response" in refused(capsys, "simulate", "regression", *formula, *out)


RECOVERED = {
    "relation": {"alpha", "beta", "intrinsic_scatter"},
    "normal": {"mu", "tau"},
    "regression": {"coef[x]", "sigma"},
    "rates": {"mean", "dispersion"},
    "hubble-diagram": {"Om0"},
    "supernova": {"Om0", "alpha", "beta"},
}


@pytest.mark.long
@pytest.mark.parametrize("name", RECOVERED)
def test_the_fit_recovers_the_truth(name, tmp_path, capsys):
    from hbm_jax import runs

    truth, command = simulate(capsys, name, tmp_path / "drawn.ecsv", *FROM_NOTHING[name])
    status, _, err = run(capsys, *command, "--out", tmp_path / "run", "--no-report", "--quiet")
    assert status in (0, 4), err
    posterior = runs.load(tmp_path / "run").posterior
    for key in RECOVERED[name]:
        site, _, label = key.rstrip("]").partition("[")
        draws = posterior[site]
        if label:
            (dim,) = set(draws.dims) - {"chain", "draw"}
            draws = draws.sel({dim: label})
        assert 0.0 < abs(float(draws.mean()) - truth[key]) < 4.0 * float(draws.std()), key
