"""Holds the house together: imports go down, never up or in circles, also those inside functions."""

import ast
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hbm_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# Storey 0 is plain Python that every storey may use.
ROOMS = {
    0: ("blas", "files", "names", "notation", "xla_options"),
    1: ("constants", "validation", "reading", "precomputation", "cosmology", "absorption", "spectra", "data"),
    2: ("distributions", "models"),
    3: ("inference",),
    4: ("simulation", "plotting", "best_fits", "configuration", "registry", "runs", "report", "cli", "__main__"),
}
STOREY = {room: storey for storey, rooms in ROOMS.items() for room in rooms}
PHYSICS = ROOMS[1] + ROOMS[2]
FIGURES = ("matplotlib", "jinja2", "arviz_plots")
# Packages a storey must do without, whoever else uses them.
FOREIGN = {
    0: ("jax", "numpyro", "optax", "arviz", "arviz_base", "arviz_stats", "xarray", "astropy", *FIGURES),
    1: ("numpyro", "optax", "arviz", "arviz_base", "arviz_stats", "xarray", *FIGURES),
    2: ("optax", "arviz", "arviz_base", "arviz_stats", "xarray", *FIGURES),
    3: ("astropy", *FIGURES),
    4: (),
}
# hbm_jax's own rooms each room may use, itself aside.
ALLOWED = (
    {room: set(ROOMS[0]) for room in ROOMS[0]}
    | {room: {*ROOMS[0], *ROOMS[1]} for room in ROOMS[1]}
    | {"distributions": {*ROOMS[0], *ROOMS[1]}, "models": {*ROOMS[0], *ROOMS[1], "distributions"}}
    | {"inference": set(ROOMS[0])}
    | {room: set(STOREY) for room in ROOMS[4]}
)
# A format of results, in the files that have these.
EXPORTED = {(f"hbm_jax.inference.{file}", "astropy.table") for file in ("exports", "batch.results")}
DOMAINS = {"supernovae", "bursts", "xray", "linear", "regression"}
DYNAMIC = ("importlib.import_module", "import_module", "__import__")
LIMIT = 500  # lines of a file
MAX_FILES = 13  # of a folder, without __main__.py
EMPTY_NAMES = ("utils", "util", "misc", "helpers", "helper", "common", "tools")


@cache
def imported(source: str, module: str, is_package: bool = False) -> list[tuple[int, str]]:
    """Line and full dotted name of everything a source imports, at its top or inside functions."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                above = parts[: len(parts) - node.level + is_package]
                base = ".".join([*above, base] if base else above)
            # `from hbm_jax import models` imports a room, `from hbm_jax.models import x` names the room before.
            names += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and ast.unparse(node.func) in DYNAMIC:
            names.append((node.lineno, _leading_text(node.args[0])))
    return names


def _leading_text(argument: ast.expr) -> str:
    """Text of a constant, or what an f-string begins with: ``f"hbm_jax.cli.{name}"`` imports from hbm_jax.cli."""
    if isinstance(argument, ast.JoinedStr):
        argument = argument.values[0]
    return str(argument.value) if isinstance(argument, ast.Constant) else "?"


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """Imports of a module of hbm_jax that the table forbids."""
    room = module.split(".")[1]
    storey, wrong = STOREY[room], []
    for line, name in imported(source, module, is_package):
        package, _, rest = name.partition(".")
        if package != "hbm_jax":
            exported = any(module == file and name.startswith(format_) for file, format_ in EXPORTED)
            bad = (package in FOREIGN[storey] and not exported) or (package == "?" and storey < 4)
        else:
            target = rest.split(".")[0]
            bad = target not in (room, "__version__") and target not in ALLOWED[room]
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
    assert names - {"hbm_jax", "?"} == {"importlib"}, "other modules are imported on first use, by importlib"


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
        ("hbm_jax.data.x", "import importlib\nimportlib.import_module(f'hbm_jax.plotting.{name}')"),
        ("hbm_jax.data.x", "import importlib\nimportlib.import_module(name)"),
        ("hbm_jax.names", "from hbm_jax.validation import DataError"),
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
        ("hbm_jax.inference.x", "from hbm_jax.files import atomic_write"),
        ("hbm_jax.inference.x", "import optax, arviz_stats\nfrom hbm_jax.inference.sampler.target import Target"),
        ("hbm_jax.cli", "import matplotlib\nfrom hbm_jax import inference, models, runs"),
    ],
)
def test_what_the_table_allows_is_not_reported(module, source):
    assert violations(source, module) == []


def test_relative_import_in_a_package_file():
    assert violations("from .inner import x", "hbm_jax.data", is_package=True) == []
    assert violations("from ..models import x", "hbm_jax.data", is_package=True) != []


@cache
def arrows() -> dict[str, set[str]]:
    """Modules of hbm_jax that each module imports; a package's names are those of its `__init__`."""
    modules = {module_name(path): path for path in FILES}
    return {
        name: {_longest(target, modules) for _, target in imported(path.read_text(), name, path.name == "__init__.py")}
        & set(modules) - {name}
        for name, path in modules.items()
        if name != "hbm_jax"
    }


def _longest(target: str, modules) -> str:
    """Return the module that a dotted name is, or is in."""
    while target and target not in modules:
        target = target.rpartition(".")[0]
    return target


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of nodes that reach each other."""
    reach = {node: set(targets) for node, targets in edges.items()}
    for middle in edges:
        for targets in reach.values():
            if middle in targets:
                targets |= reach[middle]
    in_circle = {node for node in edges if node in reach[node]}
    groups = {frozenset(n for n in in_circle if n in reach[node] and node in reach[n]) for node in in_circle}
    return sorted(sorted(group) for group in groups)


def test_no_module_imports_itself_by_way_of_others():
    edges = arrows()
    # A storey's `__init__` lists the public names of its modules, which is no import of theirs.
    assert circles({name: targets - {"hbm_jax"} for name, targets in edges.items()}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_rooms_of_a_domain_do_not_import_those_of_another():
    """Code that two domains use is outside their folders."""

    def domain(module: str) -> str:
        parts = [*module.split("."), "", ""]
        return parts[2] if parts[1] in ("data", "models", "plotting") and parts[2] in DOMAINS else ""

    pairs = [(name, target) for name, targets in arrows().items() for target in targets]
    crossing = [pair for pair in pairs if len({domain(pair[0]), domain(pair[1]), ""}) == 3]
    assert crossing == []


def test_folders_are_small():
    folders = Counter(path.parent.relative_to(PACKAGE) for path in FILES if path.name != "__main__.py")
    assert {str(folder): count for folder, count in folders.items() if count > MAX_FILES} == {}


def test_files_are_of_a_readable_size_and_say_what_they_are():
    assert [module_name(path) for path in FILES if len(path.read_text().splitlines()) > LIMIT] == []
    names = {path: {part.removesuffix(".py") for part in path.relative_to(PACKAGE).parts} for path in FILES}
    assert [module_name(path) for path, parts in names.items() if parts & set(EMPTY_NAMES)] == []
