"""Blinding: no surface shows the values, all say that they are shifted, and everything else is as without it."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import arviz_stats
import matplotlib.text
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from stored_fits import load

import hbm_jax as hbm
from hbm_jax import plotting, runs
from hbm_jax.cli import main
from hbm_jax.inference.blinding.blinding import Blinding, blinding_of, revealed
from hbm_jax.inference.modes.look import _descriptions
from hbm_jax.inference.sampler.checkpoint import read_run
from hbm_jax.models import CorrelatedSupernova, HubbleDiagram, Normal, Supernova
from hbm_jax.report import write_report

SHORT = {"num_warmup": 100, "num_samples": 60, "num_chains": 2, "progress": False}
SHORT |= {"sampler": hbm.HMC(trajectory_length=1.5)}  # which compiles in half the time of NUTS
KEY = "0123"


def blinded(name="supernova", names=("Om0",)):
    """Return a stored fit, and the same blinded as `sample` does it."""
    plain = load(name)  # one object for all tests
    hidden = copy.copy(plain)
    hidden.run = dict(plain.run)
    blinding = Blinding(names, KEY).measured_in(hidden.posterior)
    hidden.tree = blinding.hide(hidden.tree, {"Om0": (0.0, 1.0)})
    hidden.verdict = replace(hidden.verdict, notes=(blinding.note, *hidden.verdict.notes))
    hidden.run |= {"blind": ", ".join(names)}
    described = {"hbm_jax_run": json.dumps(hidden.run), "hbm_jax_notes": json.dumps(list(hidden.verdict.notes))}
    hidden.tree.attrs |= described
    return plain, hidden


def test_shifts_are_constant_of_a_few_deviations_and_come_off_again():
    plain, hidden = blinded()
    for name in plain.posterior:
        difference = (hidden.posterior[name] - plain.posterior[name]).to_numpy()
        if name != "Om0":
            np.testing.assert_array_equal(difference, 0.0)
            continue
        deviation = float(plain.posterior[name].std())
        assert np.ptp(difference) < 1e-14
        assert 0.5 * deviation < abs(difference.mean()) < 4 * np.sqrt(2) * deviation
    positions, shifted = (fit.tree["unconstrained_posterior"]["position"].to_numpy() for fit in (plain, hidden))
    differences = (shifted - positions).reshape(-1, positions.shape[-1])
    assert np.ptp(differences, axis=0).max() < 1e-12
    deviations = positions.std(axis=(0, 1))
    assert (np.abs(differences.mean(axis=0)) > 1e-3 * deviations).all()
    assert (np.abs(differences.mean(axis=0)) < 4 * np.sqrt(2) * deviations).all()
    back = revealed(hidden)
    np.testing.assert_allclose(back.tree["unconstrained_posterior"]["position"], positions, rtol=0, atol=1e-13)
    np.testing.assert_allclose(back.posterior["Om0"], plain.posterior["Om0"], rtol=0, atol=1e-15)
    assert Blinding.of(hidden.tree) == hidden.blinding is not None
    assert hidden.blinding.offset("Om0") != replace(hidden.blinding, key="4567").offset("Om0")
    assert revealed(plain) is plain


def texts_of(figure):
    return " ".join(artist.get_text() for artist in figure.findobj(matplotlib.text.Text))


def test_tables_and_files_show_shifted_values_and_say_so(tmp_path):
    plain, hidden = blinded()
    expected = float(plain.posterior["Om0"].median() + hidden.blinding.offset("Om0"))
    true, shown = (fit.summary().loc["Om0"] for fit in (plain, hidden))
    np.testing.assert_allclose(shown["median"], expected, rtol=1e-12)
    np.testing.assert_allclose([shown["sd"], shown["r_hat"]], [true["sd"], true["r_hat"]], rtol=1e-9)
    assert hidden.summary()["unit"]["Om0"] == "blinded"
    assert hidden.units["M0"] == "mag"
    number = f"{true['median']:.3f}"
    assert number in plain.table()
    hidden.save(tmp_path / "fit.nc")
    files = hidden.save_getdist(tmp_path / "chain")
    surfaces = {
        "verdict": str(hidden.verdict),
        "repr": repr(hidden),
        "table": hidden.table(),
        "latex": hidden.to_latex(),
        "summary": hidden.summary().to_string(),
        "astropy": "\n".join(hidden.to_table().pformat(max_width=-1)),
        "getdist": files[0].read_text(),
        "stored": str(xr.open_datatree(tmp_path / "fit.nc", engine="h5netcdf").attrs),
        "frame": str(hidden.to_dataframe().attrs),
    }
    for name, text in surfaces.items():
        assert "blinded" in text, name
        assert number[1:] not in text, name
    frame, plain_frame = hidden.to_dataframe(), plain.to_dataframe()
    np.testing.assert_allclose(frame["Om0"] - plain_frame["Om0"], expected - true["median"], rtol=1e-9)
    ranges = next(file for file in files if file.suffix == ".ranges").read_text()
    assert "Om0" not in ranges
    assert "alpha" in files[0].read_text()
    chain = np.loadtxt(next(file for file in files if file.name == "chain_1.txt"))
    column = files[0].read_text().splitlines().index(next(x for x in files[0].read_text().splitlines() if "Om0" in x))
    np.testing.assert_allclose(chain[:, 2 + column].mean(), float(hidden.posterior["Om0"][0].mean()), rtol=1e-6)
    means = arviz_stats.summary(
        xr.open_datatree(tmp_path / "fit.nc", engine="h5netcdf"), var_names=["Om0"], round_to="none"
    )
    assert abs(float(means["mean"].iloc[0]) - expected) < true["sd"]
    again = runs.load(tmp_path / "fit.nc")
    assert again.blinding == hidden.blinding
    assert "blinded" in again.table()


def test_figures_show_shifted_values_or_are_not_drawn():
    plain, hidden = blinded()
    number = plotting.corner(plain, ["Om0", "alpha"])
    title = re.search(r"\$\\Omega[^=]*= *([\d.]+)", texts_of(number))
    drawn = texts_of(plotting.corner(hidden, ["Om0", "alpha"]))
    assert "blinded" in drawn
    assert title is None or title[1] not in drawn
    trace = plotting.trace(hidden, ["Om0"])
    assert "blinded" in texts_of(trace)
    line = trace.axes[0].get_lines()[0].get_ydata()
    np.testing.assert_allclose(line, hidden.posterior["Om0"][0], rtol=1e-12)
    with pytest.raises(ValueError, match=r"values of Om0, .*blinded.*fit.unblind\(\)"):
        plotting.hubble_diagram(hidden)
    (before, after) = (plotting.hubble_residuals(fit).axes[0].get_lines()[0].get_ydata() for fit in (plain, hidden))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-9)
    alpha = blinded(names=("alpha",))[1]
    with pytest.raises(ValueError, match="values of alpha"):
        plotting.hubble_residuals(alpha)


@pytest.mark.long
def test_figures_of_the_expansion_history():
    plain, hidden = blinded("hubble_diagram", ("Om0", "w_1"))
    for figure in (plotting.hubble_diagram, plotting.equation_of_state):
        figure(plain)
        with pytest.raises(ValueError, match="blinded"):
            figure(hidden)
    contour = plotting.expansion_contour(hidden, ("Om0", "w_1"))
    assert texts_of(contour).count("blinded") >= 2
    centre = np.mean(contour.axes[0].get_xlim())
    shown = float(hidden.posterior["Om0"].median())
    assert abs(centre - shown) < 4 * float(plain.posterior["Om0"].std())
    (before, after) = (plotting.distance_residuals(fit).axes[0].get_lines()[0].get_ydata() for fit in (plain, hidden))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-9)


def test_figures_of_other_models_are_not_computed_from_hidden_values():
    for stored, name, figure in (("regression", "coef", plotting.coefficients), ("relation", "beta", plotting.lines)):
        _, hidden = blinded(stored, (name,) if name in load(stored).posterior else tuple(load(stored).posterior))
        with pytest.raises(ValueError, match=r"found a fit in which they are blinded"):
            figure(hidden)
        assert "blinded" in texts_of(plotting.trace(hidden, [str(next(iter(hidden.blinding.names)))]))


def test_figures_read_draws_of_parameters_in_one_way():
    """Either shifted, by `named_draws`, or by `parameter` and `require_values`, which refuse blinded ones."""
    for path in (Path(hbm.__file__).parent / "plotting").rglob("*.py"):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if re.search(r"fit\.posterior\[", line) and path.name != "draws.py":
                before = "\n".join(lines[max(number - 4, 0) : number + 1])
                assert "require_values(" in before or ".ndim" in line, f"{path}: {line}"


def test_descriptions_of_modes_have_no_blinded_values():
    """They are kept with the fit, also after `unblind`."""
    values = np.array([[0.0, 1.0], [0.1, 1.1], [5.0, 1.0], [5.1, 1.1]])
    in_mode = np.array([[True, False], [True, False], [False, True], [False, True]])
    assert _descriptions(values, in_mode, ["x[a]", "y"]) == ["x[a] = 0.05", "x[a] = 5.05"]
    assert _descriptions(values, in_mode, ["x[a]", "y"], ("x",)) == 2 * ["a blinded value of x[a]"]


def test_report(tmp_path):
    plain, hidden = blinded()
    hidden.run["config"] = dict(hidden.run.get("config", {}))
    figures = {"corner": ("The corner.", lambda fit: plotting.corner(fit, ["Om0"]))}
    text = write_report(hidden, tmp_path / "report.html", figures).read_text()
    true, shown = (f"{float(fit.posterior['Om0'].median()):.3f}" for fit in (plain, hidden))
    text = re.sub(r"data:image[^\"]*", "", text)
    assert text.count("blinded") >= 3
    assert true not in text
    assert KEY not in text
    assert shown.rstrip("0") in text


@pytest.mark.long
def test_predictions_and_criticism_use_the_values():
    plain, hidden = blinded()
    before, after = (hbm.posterior_predictive(fit, num_draws=20) for fit in (plain, hidden))
    np.testing.assert_allclose(after["observed"], before["observed"], rtol=1e-9, atol=1e-9)
    before, after = (hbm.inference.log_likelihood(fit, num_draws=10) for fit in (plain, hidden))
    np.testing.assert_allclose(after["observed"], before["observed"], rtol=1e-9)
    assert hbm.check_model(hidden).p_value == pytest.approx(hbm.check_model(plain).p_value)


def test_unconstrained_draws_are_read_through_one_function():
    """A reader that does not use `revealed` would compute with shifted draws."""
    root = Path(hbm.__file__).parent
    exempt = {"results.py", "storage.py", "blinding.py"}
    for path in root.rglob("*.py"):
        text = path.read_text()
        readers = [match.start() for match in re.finditer(r'\["unconstrained_posterior"\]', text)]
        if path.name not in exempt and "fit = revealed(fit)" not in text:
            assert all("revealed(fit)" in text[start - 50 : start] for start in readers), path


def uniform(data=None):
    """A parameter that leans on the edge of its prior, and one that does not."""
    numpyro.sample("x", dist.Uniform(0.0, 1.0))
    y = numpyro.sample("y", dist.Normal(0.0, 1.0))
    numpyro.sample("observed", dist.Normal(y, 1.0), obs=data)


def test_sampling_resuming_and_unblinding(tmp_path):
    plain = hbm.sample(uniform, 0.3, **SHORT)
    hidden = hbm.sample(uniform, 0.3, blind=["x"], checkpoint=tmp_path / "run", **SHORT)
    offset = hidden.blinding.offset("x")
    np.testing.assert_allclose(hidden.posterior["x"] - offset, plain.posterior["x"], rtol=0, atol=1e-14)
    np.testing.assert_array_equal(hidden.posterior["y"], plain.posterior["y"])
    assert any("edge of the prior" in note for note in plain.verdict.notes)
    assert not any("edge of the prior" in note for note in hidden.verdict.notes)
    assert hidden.run["blind"] == "x"
    assert "0x" not in repr(hidden.blinding)
    assert hidden.blinding.key not in repr(hidden)
    assert read_run(tmp_path / "run")["blind"]["exponents"] == hidden.blinding.exponents
    again = hbm.resume(tmp_path / "run", uniform, 0.3, progress=False)
    assert again.blinding == hidden.blinding
    wider = plain.posterior.assign(x=4.0 * plain.posterior["x"])  # another fit with the same blinding
    assert hidden.blinding.measured_in(wider).offset("x") == offset
    assert replace(hidden.blinding, exponents={}).measured_in(wider).offset("x") == 4.0 * offset
    hidden.unblind()
    np.testing.assert_allclose(hidden.posterior["x"], plain.posterior["x"], rtol=0, atol=1e-14)
    assert hidden.verdict.notes == plain.verdict.notes
    assert hidden.units == plain.units
    assert hidden.blinding is None
    assert hidden.run["unblinded"].startswith("x at ")
    hidden.save(tmp_path / "fit.nc")
    loaded = hbm.load(tmp_path / "fit.nc")
    assert loaded.blinding is None
    assert "blinded:" not in str(loaded.verdict)
    with pytest.raises(ValueError, match="found one that is not blinded"):
        hidden.unblind()


def test_the_blinding_of_another_model():
    """Shared parameters have the same shift; those that only one of the models has are hidden in that one."""
    plain, hidden = blinded()
    taken = blinding_of(hidden.blinding, Supernova(cosmology="wcdm"))
    assert taken.names == ("Om0", "w0")
    taken.require_sites(["Om0", "w0", "_x"])
    with pytest.raises(ValueError, match="among Om0; found w0"):
        taken.require_sites(["Om0"])
    draws = plain.posterior[["Om0"]].assign(w0=plain.posterior["M0"])
    both = taken.measured_in(draws)
    assert both.offset("Om0") == hidden.blinding.offset("Om0")
    assert both.offset("w0") != both.offset("Om0")
    back = blinding_of(both, Supernova())
    back.require_sites(["Om0", "alpha"])
    assert back.measured_in(plain.posterior[["Om0"]]).names == ("Om0",)
    with pytest.raises(ValueError, match="among alpha; found Om0, w0"):
        back.require_sites(["alpha"])


@pytest.mark.parametrize(
    ("blind", "message"),
    [
        (["z"], r"sites of the program, among x, y.*; found z"),
        (True, r"attribute `blinded`.*Name them: blind=\['Om0'\]"),
        ("x", r"a list of names.*found 'x'"),
        (3, r"a list of names.*found 3"),
    ],
)
def test_bad_requests(blind, message):
    with pytest.raises(ValueError, match=message):
        hbm.sample(uniform, 0.3, blind=blind, **SHORT)


def test_parameters_that_models_hide():
    assert Supernova(cosmology="wcdm").blinded == ("Om0", "w0")
    assert Supernova(cosmology="olcdm", priors={"H0": dist.Normal(70, 5)}).blinded == ("H0", "Om0", "Ode0", "Ok0", "M0")
    assert CorrelatedSupernova().blinded == ("Om0",)
    acoustic = hbm.data.load_constraints("desi-dr2-bao")
    names = HubbleDiagram(cosmology="w0wacdm", constraints=acoustic).blinded
    assert set(names) >= {"Om0", "w0", "wa", "r_d"} or set(names) >= {"Om0", "w0", "wa", "omega_b"}
    assert "M0" not in names
    assert not hasattr(Normal(), "blinded")


@pytest.mark.long
def test_run_folders(tmp_path, capsys):
    plain, hidden = blinded()
    runs.write(hidden, tmp_path / "run", None)
    assert "blinded" in (tmp_path / "run" / runs.SUMMARY).read_text()
    main(["unblind", str(tmp_path / "run"), "--no-report"])
    assert "blinded:" not in capsys.readouterr().out
    shown = runs.load(tmp_path / "run")
    np.testing.assert_allclose(shown.posterior["Om0"], plain.posterior["Om0"], rtol=0, atol=1e-15)
    assert main(["unblind", str(tmp_path / "run")]) == 2
    assert "found one that is not blinded" in capsys.readouterr().err
    assert main(["fit", "normal", "--data", "eight-schools", "--blind", "--out", str(tmp_path / "other")]) == 2
    assert "blind=True: expected a program with free parameters" in capsys.readouterr().err
