"""The doctor's findings."""

from importlib.metadata import PackageNotFoundError

import jax
import pytest

from hbm_jax.cli import doctor
from hbm_jax.cli.doctor import PACKAGES, examine, installed, known_problems


@pytest.mark.parametrize(
    ("versions", "platforms", "words"),
    [
        ({"jaxlib": "0.10.2"}, {"gpu"}, ["jaxlib 0.10.2", "scatter-add"]),
        ({"jaxlib": "0.11.0"}, {"cpu", "gpu"}, ["jaxlib 0.11.0"]),
        ({"jaxlib": "0.10.3"}, {"gpu"}, ["jaxlib 0.10.3"]),
        ({"jaxlib": "0.10.1"}, {"gpu"}, []),
        ({"jaxlib": "0.11.1"}, {"gpu"}, []),
        ({"jaxlib": "0.10.2"}, {"cpu"}, []),
        ({"arviz-plots": "0.8.0", "matplotlib": "3.11.0"}, {"cpu"}, ["arviz-plots 0.8.0", "matplotlib<3.11"]),
        ({"arviz-plots": "0.8.0", "matplotlib": "3.10.9"}, {"cpu"}, []),
        ({"arviz-plots": "0.9.1", "matplotlib": "3.11.2"}, {"cpu"}, []),
        ({"arviz-plots": None, "matplotlib": "3.11.2"}, {"cpu"}, []),
        ({"arviz-plots": "0.8.0", "matplotlib": None}, {"cpu"}, []),
        ({"jaxlib": "0.12.0.dev20260101", "arviz-plots": "0.8.0rc1", "matplotlib": "3.9.1.post1"}, {"gpu"}, []),
        ({}, {"gpu"}, []),
    ],
)
def test_known_problems(versions, platforms, words):
    problems = known_problems(versions, platforms)
    assert len(problems) == bool(words)
    for word in words:
        assert word in problems[0]


def test_both_problems_are_said():
    versions = {"jaxlib": "0.10.2", "arviz-plots": "0.8.0", "matplotlib": "3.11.0"}
    assert len(known_problems(versions, {"gpu"})) == 2


def test_examination_of_this_installation():
    lines, problems = examine()
    assert problems == []
    starts = {line.split()[0] for line in lines}
    assert {"python", "hbm_jax", "cores", "device", "float64", "kernels", *PACKAGES} <= starts
    (line,) = (line for line in lines if line.startswith("jax "))
    assert line.split()[1] == jax.__version__
    assert sum(line.startswith("device") for line in lines) == len(jax.devices())
    (line,) = (line for line in lines if line.startswith("float64"))
    assert "works; JAX's default is on" in line


def test_missing_figures_are_said(monkeypatch):
    def version(package):
        if package in ("matplotlib", "jinja2"):
            raise PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(doctor, "version", version)
    assert installed()["matplotlib"] is None
    lines, problems = examine()
    assert problems == []
    assert any("not available: matplotlib, jinja2 missing; pip install 'hbm_jax[plots]'" in line for line in lines)
    assert "matplotlib    not installed" in lines
