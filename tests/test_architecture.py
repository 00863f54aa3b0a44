"""Holds the table of storeys: imports go down, never up, also those inside functions."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hbm_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

ROOMS = {
    1: ("constants", "validation", "files", "working_out", "cosmology", "absorption", "spectra", "data"),
    2: ("distributions", "models"),
    3: ("inference",),
    4: ("cli", "report", "plotting", "runs", "registry", "configuration", "doctor"),
}
STOREY = {room: storey for storey, rooms in ROOMS.items() for room in rooms}
PHYSICS = ROOMS[1] + ROOMS[2]
FIGURES = ("matplotlib", "corner", "jinja2", "arviz_plots")
# Packages a storey must do without, whoever else uses them.
FOREIGN = {
    1: ("numpyro", "optax", "arviz", "arviz_base", "arviz_stats", "xarray", *FIGURES),
    2: ("optax", "arviz", "arviz_base", "arviz_stats", "xarray", *FIGURES),
    3: ("astropy", *FIGURES),
    4: (),
}
# hbm_jax's own rooms each room may use, itself aside.
ALLOWED = (
    {room: set(ROOMS[1]) for room in ROOMS[1]}
    | {"distributions": set(ROOMS[1]), "models": {*ROOMS[1], "distributions"}, "inference": set()}
    | {room: set(STOREY) for room in ROOMS[4]}
)
LIMIT = 500
EMPTY_NAMES = ("utils", "util", "misc", "helpers", "helper", "common", "tools")


def imported(source: str, module: str, is_package: bool = False) -> list[tuple[int, str]]:
    """Line and full dotted name of everything a source imports, at its top or inside functions."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                above = parts[: len(parts) - node.level + is_package]
                base = ".".join([*above, base] if base else above)
            # `from hbm_jax import models` imports a room, `from hbm_jax.models import x` names the room before.
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func)
            if called in ("importlib.import_module", "import_module", "__import__"):
                found.append((node.lineno, str(node.args[0].value)))
    return found


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """Imports of a module of hbm_jax that the table forbids."""
    room = module.split(".")[1]
    storey, wrong = STOREY[room], []
    for line, name in imported(source, module, is_package):
        package, _, rest = name.partition(".")
        if package != "hbm_jax":
            bad = package in FOREIGN[storey]
        else:
            target = rest.split(".")[0]
            bad = target != room and target not in ALLOWED[room]
        if bad:
            wrong.append(f"{module}:{line} (storey {storey}) imports {name}")
    return wrong


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_every_module_is_in_a_room():
    assert len(FILES) > 30
    rooms = {module_name(path).split(".")[1] for path in FILES if path != PACKAGE / "__init__.py"}
    assert rooms <= set(STOREY), f"{rooms - set(STOREY)}: give the new room a storey in ARCHITECTURE and here"


def test_imports_go_down():
    found = []
    for path in FILES:
        if path != PACKAGE / "__init__.py":
            found += violations(path.read_text(), module_name(path), path.name == "__init__.py")
    assert found == []


def test_the_package_itself_imports_nothing():
    names = {name.split(".")[0] for _, name in imported((PACKAGE / "__init__.py").read_text(), "hbm_jax", True)}
    assert names == {"importlib"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("hbm_jax.cosmology.x", "import numpyro.distributions as dist"),
        ("hbm_jax.cosmology.x", "from numpyro import distributions"),
        ("hbm_jax.data.x", "def f():\n    import matplotlib.pyplot as plt"),
        ("hbm_jax.data.x", "def f():\n    if True:\n        from arviz_base import from_dict"),
        ("hbm_jax.data.x", "from hbm_jax import models"),
        ("hbm_jax.data.x", "from ..models import Supernova"),
        ("hbm_jax.data.x", "from .. import models"),
        ("hbm_jax.data.x", "import hbm_jax"),
        ("hbm_jax.spectra.x", "import importlib\nimportlib.import_module('hbm_jax.inference')"),
        ("hbm_jax.models.x", "from hbm_jax.inference import sample"),
        ("hbm_jax.models.x", "from hbm_jax import sample"),
        ("hbm_jax.models.x", "import arviz"),
        ("hbm_jax.models.x", "from hbm_jax.plotting.style import colour"),
        ("hbm_jax.distributions.x", "from hbm_jax.models import Supernova"),
        ("hbm_jax.inference.x", "from hbm_jax.data import Supernovae"),
        ("hbm_jax.inference.x", "from hbm_jax import cosmology"),
        ("hbm_jax.inference.x", "from hbm_jax.distributions import LinearGaussian"),
        ("hbm_jax.inference.x", "import hbm_jax.plotting"),
        ("hbm_jax.inference.x", "from hbm_jax.runs import load"),
    ],
)
def test_a_planted_violation_is_found(module, source):
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("hbm_jax.data.x", "import jax\nfrom astropy.table import Table\nfrom hbm_jax.constants import c"),
        ("hbm_jax.data.x", "from .validation import DataError\nfrom ..cosmology import Cosmology"),
        ("hbm_jax.models.x", "import numpyro\nfrom hbm_jax import data, distributions"),
        ("hbm_jax.inference.x", "import optax, arviz_stats\nfrom hbm_jax.inference.target import Target"),
        ("hbm_jax.cli", "import matplotlib\nfrom hbm_jax import inference, models, runs"),
    ],
)
def test_what_the_table_allows_is_not_reported(module, source):
    assert violations(source, module) == []


def test_relative_import_in_a_package_file():
    assert violations("from .inner import x", "hbm_jax.data", is_package=True) == []
    assert violations("from ..models import x", "hbm_jax.data", is_package=True) != []


def test_files_are_of_a_readable_size_and_say_what_they_are():
    assert [module_name(path) for path in FILES if len(path.read_text().splitlines()) > LIMIT] == []
    names = {path: {part.removesuffix(".py") for part in path.relative_to(PACKAGE).parts} for path in FILES}
    assert [module_name(path) for path, parts in names.items() if parts & set(EMPTY_NAMES)] == []
