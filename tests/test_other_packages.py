"""Models of other packages: the package of docs/another_package.md, installed beside a broken one, and used."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from commands import refused, run

import hbm_jax as hbm
from hbm_jax import cli
from hbm_jax.cli import commands
from hbm_jax.registry import BUILT_IN, MODELS, Entry, ModelImportError, Models, entry_of_stored, named

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "another_package.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder of installed packages, as pip would leave them: modules and their metadata."""
    site = tmp_path_factory.mktemp("site")
    source = re.search(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL).group(1)
    (site / "straight_lines.py").write_text(source)
    (site / "broken_lines.py").write_text("import no_such_module\n")
    entries = re.search(r"hbm_jax\.models\"\]\n(\w+) = \"(.*?)\"", PAGE).groups()
    packages = {
        "straight-lines": ("1.0", "straight lines through points whose scatter is unknown", " = ".join(entries)),
        "broken-lines": ("0.1", "does not work", "bent = broken_lines:ENTRY"),
        "greedy-lines": ("0.2", "takes names", "relation = straight_lines:ENTRY\nwrong = straight_lines:Line"),
    }
    for name, (version, summary, points) in packages.items():
        folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: {summary}\n"
        )
        (folder / "entry_points.txt").write_text(f"[hbm_jax.models]\n{points}\n")
    return site


# Runs commands, or Python between them, one after the other; prints the status and the texts of each.
SESSION = """
import contextlib, io, json, sys
from hbm_jax import cli
results = []
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = exec(words) if isinstance(words, str) else cli.main(words)
        except SystemExit as ended:
            status = ended.code
    results.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def session(installed):
    """Run commands in a process in which the packages are installed."""

    def run(*commands):
        root = str(Path(hbm.__file__).resolve().parents[1])
        path = os.pathsep.join([str(installed), root])
        environment = os.environ | {"PYTHONPATH": path, "HBM_JAX_CACHE": "off", "COLUMNS": "120"}
        listed = [words if isinstance(words, str) else [str(word) for word in words] for words in commands]
        words = [sys.executable, "-c", SESSION, json.dumps(listed)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=250, env=environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="module")
def points_csv(tmp_path_factory):
    rng = np.random.default_rng(0)
    x = np.linspace(-1.0, 1.0, 20)
    path = tmp_path_factory.mktemp("points") / "points.csv"
    lines = [f"{a},{2.0 * a + 1.0 + e}" for a, e in zip(x, 0.1 * rng.normal(size=20), strict=True)]
    path.write_text("x,y\n" + "\n".join(lines))
    return path


@pytest.fixture(scope="module")
def fitted(session, points_csv, tmp_path_factory):
    """The folder of a run, and what was said when it was made and when a sample was simulated."""
    folder = tmp_path_factory.mktemp("line") / "run"
    short = ["--num-samples", "40", "--num-warmup", "60", "--num-chains", "2", "--quiet"]
    options = ["--data", points_csv, "--scale", "3", "--prior", "sigma=HalfNormal(2)", "--out", folder]
    truth = ["--truth", "c0=0", "--truth", "c1=3", "--truth", "sigma=0.001", "--out", folder.parent / "simulated.csv"]
    return folder, session(["fit", "line", *options, *short], ["simulate", "line", "--design", points_csv, *truth])


@pytest.mark.long
def test_it_is_fitted_and_reported(fitted):
    folder, ((status, out, err), _) = fitted
    assert status in (cli.USABLE, cli.MISFIT, cli.NOT_USABLE), err
    assert out.startswith("Straight line\n20 points.\n")
    assert {path.name for path in (folder / "figures").iterdir()} == {"line.png", "corner.png", "trace.png"}
    assert "The points." in (folder / "report.html").read_text()
    assert 'name = "line"' in (folder / "config.toml").read_text()
    # A name that hbm_jax has is not taken, which is said, and nothing else.
    assert err.count("\n") == 1
    assert err.startswith("hbm-jax: warning: model 'relation' of greedy-lines 0.2 (entry point straight_lines:ENTRY)")
    assert "hbm_jax has one of this name" in err


@pytest.mark.long
def test_it_is_simulated(fitted):
    folder, (_, (status, _, err)) = fitted
    assert status == cli.USABLE, err
    x, y = np.loadtxt(folder.parent / "simulated.csv", delimiter=",", skiprows=1, usecols=(1, 2), unpack=True)
    np.testing.assert_allclose(y, 3 * x, atol=0.01)


@pytest.mark.long
def test_it_is_reloaded_reported_and_resumed(fitted, session):
    folder, _ = fitted
    load = f"import hbm_jax; fit = hbm_jax.load({str(folder)!r})\n"
    loaded = load + "print(type(fit.program).__module__, fit.program.to_config()['priors']['sigma'], len(fit.data))\n"
    loaded += "print(fit.units, abs(float(fit.posterior['c1'].mean()) - 6.0) < 1.0, 'broken_lines' in sys.modules)"
    (folder / "figures" / "line.png").unlink()
    results = session(
        loaded,
        ["report", folder],
        f"from pathlib import Path; print((Path({str(folder)!r}) / 'figures' / 'line.png').exists())",
        ["resume", folder, "--num-samples", "50", "--quiet", "--no-report"],
        load + "print(fit.posterior.sizes['draw'])",
        ["doctor"],
    )
    found, reported, drawn, resumed, again, examined = results
    assert found[1] == "straight_lines HalfNormal(scale=2.0) 20\n{'sigma': 'mag'} True False\n", found[2]
    assert reported[0] in (cli.USABLE, cli.MISFIT, cli.NOT_USABLE), reported[2]
    assert drawn[1] == "True\n", reported[1]
    assert resumed[0] in (cli.USABLE, cli.MISFIT, cli.NOT_USABLE), resumed[2]
    assert again[1] == "50\n", again[2]
    assert examined[0] == cli.BAD_INPUT
    assert "problem: model 'bent' of broken-lines 0.1" in examined[1]
    assert re.search(r"^models +13 of hbm_jax; line of straight-lines 1.0", examined[1], re.MULTILINE)


@pytest.mark.long
def test_without_the_package_the_draws_are_still_there(fitted):
    fit = hbm.load(fitted[0])
    assert fit.program is None
    assert fit.run["config"]["class"] == "straight_lines.Line"
    assert "c1" in fit.posterior


@pytest.mark.long
def test_help_imports_neither_the_package_nor_jax(session):
    help_, imported = session(["fit", "--help"], "print('straight_lines' in sys.modules, 'jax' in sys.modules)")
    assert "(straight-lines)" in help_[1]
    assert imported[1] == "False False\n"


@pytest.fixture
def with_packages(installed, monkeypatch):
    """Install the packages in this process."""
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.setattr("hbm_jax.registry.MODELS", Models(BUILT_IN))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delitem(sys.modules, "straight_lines", raising=False)
    yield
    sys.modules.pop("straight_lines", None)


@pytest.mark.filterwarnings("ignore:model 'relation' of greedy-lines 0.2")
@pytest.mark.usefixtures("with_packages")
def test_help_and_errors(capsys):
    def page(*words):
        with pytest.raises(SystemExit):
            run(capsys, *words)
        return capsys.readouterr().out

    listing = page("fit", "--help")
    assert re.search(r"line  +straight lines through points whose scatter is unknown \(straight-lines\)", listing)
    assert "  bent  " in listing
    assert "straight_lines" not in sys.modules
    options = page("fit", "line", "--help")
    for words in ("--degree N", "--scatter {normal,cauchy}", "--scale NUMBER", "by which y is multiplied", "  c1 "):
        assert words in options, words
    bent, wrong = (refused(capsys, "fit", name, one_line=False) for name in ("bent", "wrong"))
    message = "hbm-jax: model 'bent' of broken-lines 0.1 (entry point broken_lines:ENTRY): expected an Entry; found "
    assert message + "ModuleNotFoundError: No module named 'no_such_module'" in bent
    assert "model 'wrong' of greedy-lines 0.2 (entry point straight_lines:Line): expected an Entry; found" in wrong
    shown = [line.split()[2:] for line in re.findall(r"^\$ .*", PAGE, re.MULTILINE) if "--help" not in line]
    commands_shown = [commands.parsed(words)[0] for words in shown]
    assert commands_shown == ["fit", "report", "resume", "simulate", "calibrate"]


# Without a process


@pytest.fixture
def models(monkeypatch):
    found = Models(BUILT_IN)
    points = {"own": EntryPoint("own", "test_other_packages:OWN", "hbm_jax.models"),
              "bent": EntryPoint("bent", "no_such_module:ENTRY", "hbm_jax.models")}  # fmt: skip
    monkeypatch.setitem(vars(found), "_installed", points)
    monkeypatch.setitem(sys.modules, "test_other_packages", sys.modules[__name__])
    return found


class Own:
    pass


OWN = Entry(Own, dict, dict, summary="of one's own")


def test_models_are_a_mapping_that_loads_what_is_read(models):
    assert [*models][-2:] == ["own", "bent"]
    assert len(models) == len(BUILT_IN) + 2
    assert models.summaries()["bent"] == ""
    assert "bent" in models
    assert models["own"] is OWN
    with pytest.raises(ModelImportError, match="model 'bent' of another package"):
        models["bent"]
    with pytest.raises(KeyError):
        models["bend"]


def test_classes_of_another_package_are_sought_in_all(models):
    with pytest.warns(UserWarning, match="model 'bent' of another package"):
        assert list(models.with_class("Own", "elsewhere")) == [OWN]
    assert list(models.with_class("Own", "hbm_jax.models.linear")) == [OWN]  # that is loaded by now


@pytest.mark.parametrize("name", list(MODELS))
def test_what_entries_refer_to_exists(name):
    entry = named(name)
    assert entry.model.__name__ == entry.class_name
    assert callable(entry.read)
    assert hasattr(entry.container, "from_dict")
    assert entry.figures is None or entry.figures
    assert (entry.simulate is None) == (entry.population is None and not entry.population_options)
    assert set(entry.population_options) <= set(entry.options)
    if entry.class_name not in ("SpectralFit", "SpectralPopulation"):
        assert entry_of_stored(entry.class_name, entry.build({}, {}).to_config()) is entry
    assert set(entry.help) <= {*entry.reader_options, *entry.simulator_options}
