"""Metadata of the package agree with each other and with the code; the workflow does what .ci/run does."""

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import hbm_jax

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REPOSITORY = PROJECT["project"]["urls"]["Repository"]
# Modules with another name than that of their distribution.
MODULES = {"pillow": "PIL"}


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def module(requirement):
    """Name of the module that a requirement installs: ``arviz-stats[xarray]>=0.8`` is arviz_stats."""
    name = re.match(r"[\w.-]+", requirement).group()
    return MODULES.get(name, name.replace("-", "_"))


def foreign(source):
    """Packages that a source imports from elsewhere, at its top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names} - {"hbm_jax"} - sys.stdlib_module_names


def test_every_import_is_declared():
    extras = PROJECT["project"]["optional-dependencies"]
    taken = PROJECT["project"]["dependencies"], *(extras[name] for name in ("plots", "dask", "download", "nutpie"))
    requirements = [requirement for group in taken for requirement in group]
    imported = set().union(*(foreign(path.read_text()) for path in (ROOT / "hbm_jax").rglob("*.py")))
    assert {"jax", "scipy", "matplotlib"} <= imported
    assert imported - {module(requirement) for requirement in requirements} == set()


def test_type_checkers_see_the_annotations():
    """The wheel holds all of the package's folder that git does not ignore, so also the marker of typed packages."""
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["hbm_jax"]}
    assert (ROOT / "hbm_jax" / "py.typed").read_bytes() == b""
    assert not any(line.strip("*/") in ("py.typed", ".typed") for line in read(".gitignore").splitlines())


def test_the_wheel_holds_marker_and_data(tmp_path):
    builder = pytest.importorskip("hatchling.builders.wheel")
    names = {item.distribution_path for item in builder.WheelBuilder(str(ROOT)).recurse_included_files()}
    expected = {"hbm_jax/py.typed", "hbm_jax/__main__.py", "hbm_jax/cli/__main__.py"}
    expected |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "hbm_jax" / "templates").iterdir()}
    assert expected <= names
    assert not any("test" in name for name in names if not name.startswith("hbm_jax/"))


def test_the_package_runs_as_the_console_command():
    name, _, function = PROJECT["project"]["scripts"]["hbm-jax"].partition(":")
    assert callable(getattr(importlib.import_module(name), function))
    done = subprocess.run([sys.executable, "-m", "hbm_jax", "--version"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == hbm_jax.__version__


def test_version_and_address_are_the_same_everywhere():
    version = hbm_jax.__version__
    codemeta = json.loads(read("codemeta.json"))
    assert codemeta["version"] == json.loads(read(".zenodo.json"))["version"] == version
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert str(ROOT / PROJECT["tool"]["hatch"]["version"]["path"]) == hbm_jax.__file__
    assert re.search(r"^## (\d\S+),", read("CHANGELOG.md"), re.MULTILINE).group(1) == version
    assert re.search(r"^version: (\S+)$", read("CITATION.cff"), re.MULTILINE).group(1) == version
    assert codemeta["codeRepository"] == REPOSITORY
    for name in ("README.md", "CONTRIBUTING.md"):
        assert f"git clone {REPOSITORY}" in read(name)


def test_descriptions_of_the_project_agree():
    codemeta, zenodo = (json.loads(read(name)) for name in ("codemeta.json", ".zenodo.json"))
    assert codemeta["keywords"] == zenodo["keywords"] == PROJECT["project"]["keywords"]
    assert codemeta["description"] == PROJECT["project"]["description"]
    assert {zenodo["license"], codemeta["license"].rpartition("/")[2]} == {PROJECT["project"]["license"]}
    assert f'title: "{zenodo["title"]}"' in read("CITATION.cff")


def workflow():
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(read(".github/workflows/tests.yml"))


def test_the_workflow_does_what_ci_does():
    jobs = workflow()["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = {re.match(r"make ([\w-]+)", command).group(1) for command in commands if command.startswith("make ")}
    assert targets >= set(re.findall(r"^make ([\w-]+)", read(".ci/run"), re.MULTILINE)) == {
        "demo", "test", "test-long", "lint",
    }  # fmt: skip
    assert targets <= set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))


def test_the_workflow_runs_on_each_python_and_system():
    jobs = workflow()["jobs"]
    classifiers = " ".join(PROJECT["project"]["classifiers"])
    pythons = re.findall(r"Python :: (3\.\d+)", classifiers)
    for name in ("unix", "windows"):
        assert jobs[name]["strategy"]["matrix"]["python"] == pythons
    systems = {*jobs["unix"]["strategy"]["matrix"]["os"], jobs["windows"]["runs-on"]}
    assert systems == {"ubuntu-latest", "macos-latest", "windows-latest"}
    for job in jobs.values():
        assert job["timeout-minutes"] <= 90
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])


def test_forms_and_build_of_the_documentation():
    yaml = pytest.importorskip("yaml")
    for name in ("bug", "question"):
        form = yaml.safe_load(read(f".github/ISSUE_TEMPLATE/{name}.yml"))
        assert form["name"]
        assert form["description"]
        assert {entry["type"] for entry in form["body"]} <= {"textarea", "input", "dropdown", "markdown"}
        assert len({entry["id"] for entry in form["body"]}) == len(form["body"])
    build = yaml.safe_load(read(".readthedocs.yaml"))
    assert (ROOT / build["sphinx"]["configuration"]).exists()
    (install,) = build["python"]["install"]
    assert set(install["extra_requirements"]) <= set(PROJECT["project"]["optional-dependencies"])
