"""Links of README, guide and notebooks lead to files; public names are in the reference; Sphinx has no complaint."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = ("absorption", "cosmology", "data", "distributions", "inference", "models", "plotting", "spectra")
LINK = re.compile(r"\]\(([^)\s]+)\)|\{doc\}`[^`<]*<?([^`>]+)>?`|\{(?:figure|include|literalinclude)\} (\S+)")
MADE = {"docs/figures/first.png", "docs/results.inc", *(f"docs/api/{name}" for name in MODULES)}  # by docs/conf.py


def texts():
    """Every Markdown text, with the folder that its links start from."""
    for path in [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs/api").glob("*.md"),
    ]:
        yield path, path.read_text(encoding="utf-8")
    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        if ".ipynb_checkpoints" not in path.parts:
            cells = nbformat.read(path, as_version=4).cells
            yield path, "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def targets(text):
    for match in LINK.finditer(text):
        target = next(group for group in match.groups() if group).partition("#")[0]
        if target and not re.match(r"[a-z]+:", target):
            yield target


def exists(path, target):
    """Return whether a link leads to a file of the repository, or to one that docs/conf.py copies."""
    found = (path.parent / target).resolve()
    if not found.is_relative_to(ROOT):
        return False
    relative = found.relative_to(ROOT)
    if relative.parts[:2] == ("docs", "notebooks"):
        found = ROOT.joinpath(*relative.parts[1:])
    return str(relative) in MADE or any(Path(f"{found}{suffix}").exists() for suffix in ("", ".md", ".rst", ".ipynb"))


def test_every_relative_link_leads_to_a_file():
    links = [(path, target) for path, text in texts() for target in targets(text)]
    assert len(links) > 60
    assert [f"{path.relative_to(ROOT)}: {target}" for path, target in links if not exists(path, target)] == []


def test_the_link_check_finds_a_broken_link():
    text = "[good](README.md) [bad](no/such.md) [outside](https://example.org) {doc}`run folders <api/extending>`"
    assert list(targets(text)) == ["README.md", "no/such.md", "api/extending"]
    assert not exists(ROOT / "README.md", "no/such.md")
    assert exists(ROOT / "docs" / "index.md", "notebooks/01_relation.ipynb")


def test_every_notebook_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    names = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "notebooks").rglob("*.ipynb")]
    assert [str(name) for name in names if ".ipynb_checkpoints" not in name.parts and f"\n{name}\n" not in index] == []


def test_every_xspec_name_and_statistic_is_in_the_table():
    from hbm_jax.absorption import ABUNDANCES
    from hbm_jax.spectra import STATISTICS
    from hbm_jax.spectra.model.text import XSPEC

    page = (ROOT / "docs" / "coming_from.md").read_text(encoding="utf-8")
    names = set(XSPEC) - {"gaussian", "constant"} | set(ABUNDANCES) | set(STATISTICS)
    assert [name for name in sorted(names) if f"`{name}`" not in page and f'"{name}"' not in page] == []


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The pages, built as `make docs` does: warnings, also of names that do not exist, are errors."""
    if not os.environ.get("CI"):
        pytest.importorskip("myst_nb")
    folder = tmp_path_factory.mktemp("docs")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        str(ROOT / "docs"),
        str(folder),
    ]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return folder


@pytest.mark.long
def test_every_public_name_is_in_the_reference(built):
    from sphinx.util.inventory import InventoryFile

    with open(built / "objects.inv", "rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, uri: base + uri)
    known = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    expected = {
        f"hbm_jax.{module}.{name}"
        for module in MODULES
        for name in importlib.import_module(f"hbm_jax.{module}").__all__
    }
    assert sorted(expected - known) == []


@pytest.mark.long
def test_pages_need_nothing_from_elsewhere(built):
    """No script, style or font from another site: pages read the same offline."""
    for page in built.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?://[^\"]+)", page.read_text(encoding="utf-8")
        )
        assert loaded == [], page.name


@pytest.mark.long
def test_formulas_and_figures_are_in_the_pages(built):
    page = (built / "notebooks" / "02_funnel.html").read_text(encoding="utf-8")
    assert page.count("<math") > 10
    assert "$" not in re.sub(r"<(pre|script|style).*?</\1>", "", page, flags=re.DOTALL)
    assert page.count("image/png") + page.count('.png"') >= 2


@pytest.mark.long
def test_every_result_of_a_benchmark_is_shown(built):
    page = (built / "benchmarks.html").read_text(encoding="utf-8")
    results = [path.name for path in (ROOT / "benchmarks" / "results").glob("*.txt")]
    assert len(results) > 20
    assert [name for name in results if f"<h2>{name}" not in page] == []


def certificates(text):
    """Return (quantities, replicates, without a usable posterior, smallest p-value) of each block of a result file."""
    for block in re.split(r"^calibrated: ", text, flags=re.MULTILINE)[1:]:
        numbers = re.match(r"the ranks of (\d+) quantities in (\d+) replicates are uniform", block).groups()
        without = re.search(r"\((\d+) replicates gave no usable posterior", block.splitlines()[0])
        p_values = [float(p) for p in re.findall(r"^\S.*?\s+(\d\.\d{4}) .* uniform$", block, re.MULTILINE)]
        yield *map(int, numbers), int(without[1]) if without else 0, min(p_values)


def test_certificates_of_calibration_are_those_of_the_results():
    text = (ROOT / "docs/measured.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \| `(calibration\w*\.txt)` \|$", text, re.MULTILINE)
    assert len(rows) > 20
    for *numbers, p, file in rows:
        measured = certificates((ROOT / "benchmarks/results" / file).read_text(encoding="utf-8"))
        same = [smallest for *found, smallest in measured if found == list(map(int, numbers))]
        assert any(abs(smallest - float(p)) <= 0.06 * float(p) for smallest in same), (file, numbers, p)
    files = (ROOT / "benchmarks/results").glob("calibration*.txt")
    total = sum(len(list(certificates(path.read_text(encoding="utf-8")))) for path in files)
    assert len(rows) == total  # each certificate has a row


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").rglob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_begin_with_their_aim_and_end_with_what_to_read_next(path):
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    assert cells[0].startswith("# ")
    assert "You learn" in cells[0]
    assert re.search(r"It (takes|took) .*(s|min)", cells[0])
    assert "**What next:** " in cells[-1]
