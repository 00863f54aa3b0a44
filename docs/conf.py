"""Sphinx: guide pages in Markdown, the notebooks with the outputs they were committed with, and the docstrings."""

import base64
import importlib
import inspect
import json
import shutil
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util.nodes import make_refnode

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

import hbm_jax  # noqa: E402, of this source tree

project = "hbm_jax"
author = copyright = "the hbm_jax developers"
version = release = hbm_jax.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc", "myst_nb"]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
html_theme = "furo"
html_title = f"hbm_jax {version}"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["hbm_jax.css"]

# Notebooks are run by the tests and by `make notebooks`, which keeps their outputs; here they are only shown.
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3

# Docstrings write `name` for a name of Python's.
default_role = "py:obj"
add_module_names = False
autosummary_generate = False  # the tables link to the entries below them
autodoc_member_order = "groupwise"
autodoc_typehints = "none"  # types are in the docstrings, with shapes and units
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
nitpicky = True

# Sphinx reads what is below its folder.
shutil.rmtree(HERE / "notebooks", ignore_errors=True)
shutil.copytree(ROOT / "notebooks", HERE / "notebooks", ignore=shutil.ignore_patterns("*.py", ".ipynb_checkpoints"))
for _path in (HERE / "notebooks").rglob("*.ipynb"):
    # Links to these pages start from the notebook's folder in the repository, and here from that of the copy.
    _text = _path.read_text(encoding="utf-8")
    _path.write_text(_text.replace("](../docs/", "](../").replace("](../../docs/", "](../../"), encoding="utf-8")


def _last_figure(notebook):
    """Return the last figure of a notebook, as PNG."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    data = [
        output["data"] for cell in cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    return base64.b64decode("".join(data[-1]["image/png"]))


(HERE / "figures").mkdir(exist_ok=True)
(HERE / "figures" / "first.png").write_bytes(_last_figure(ROOT / "notebooks" / "00_five_minutes.ipynb"))


def _results():
    """Show every file that a benchmark has written: figures, then text as it stands."""
    for path in sorted((ROOT / "benchmarks" / "results").rglob("*")):
        name = path.relative_to(ROOT / "benchmarks" / "results").as_posix()
        place = f"../benchmarks/results/{name}"
        if path.suffix == ".png":
            yield f"```{{figure}} {place}\n{name}\n```\n"
        elif path.suffix in (".txt", ".md", ".csv"):
            yield f"## {name}\n\n```{{literalinclude}} {place}\n:language: text\n```\n"


(HERE / "results.inc").write_text("\n".join(_results()), encoding="utf-8")

# One page for each public module, from its __all__, so that no name can be forgotten.
PAGES = {
    "cosmology": "Distances and times", "absorption": "Absorption of X-rays", "spectra": "X-ray spectra",
    "data": "Data", "distributions": "Distributions", "models": "Models", "inference": "Inference",
    "plotting": "Figures",
}  # fmt: skip


def _page(module, title):
    """Write a table of all public names, then each with its docstring."""
    names = "\n".join(f"   {name}" for name in importlib.import_module(module).__all__)
    heading = f"{title}: ``{module}``"
    return (
        f"{heading}\n{'=' * len(heading)}\n\n.. automodule:: {module}\n\n.. currentmodule:: {module}\n\n"
        f".. autosummary::\n   :nosignatures:\n\n{names}\n\n"
        + "".join(_entry(module, name) for name in importlib.import_module(module).__all__)
    )


def _entry(module, name):
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value):
        inherited = "   :inherited-members:\n" if hasattr(value, "to_dict") or hasattr(value, "to_latex") else ""
        return f".. autoclass:: {name}\n   :members:\n{inherited}\n"
    return f".. autofunction:: {name}\n\n" if callable(value) else f".. autodata:: {name}\n   :no-value:\n\n"


for _module, _title in PAGES.items():
    (HERE / "api" / f"{_module}.rst").write_text(_page(f"hbm_jax.{_module}", _title))

# Public names by their last word: docstrings name each other by it, from whatever module they are in.
PUBLIC = {
    name: f"hbm_jax.{module}.{name}"
    for module in PAGES
    for name in importlib.import_module(f"hbm_jax.{module}").__all__
}
OTHERS = ("arviz", "astropy", "dask", "jax", "matplotlib", "numpy", "numpyro", "optax", "pandas", "scipy", "xarray")


def _find(app, env, node, content):
    """Resolve what a docstring names by the last words of its path, or by a path that is not the public one.

    What does not exist stays a warning, which is an error. Bare lower-case words are arguments, columns and fields, and
    stay text, as do names of other packages and of parts of ours that are not public.
    """
    target = node.get("reftarget", "").removesuffix("()")
    words = target.split(".")
    if words[0] in OTHERS or words[0] in sys.stdlib_module_names:
        return content
    here = importlib.import_module(node.get("py:module") or "hbm_jax")
    if len(words) == 1 and words[0] not in PUBLIC:
        return content if words[0].islower() or hasattr(here, words[0]) else None
    owner, name = _owner(words)
    if owner is None:
        return content if _exists(words, here) else None
    if name is not None and not _has(getattr(importlib.import_module(owner.rpartition(".")[0]), words[-2]), name):
        return None
    entries = env.get_domain("py").find_obj(env, None, None, f"{owner}.{name}" if name else owner, None, 0)
    entries = entries or env.get_domain("py").find_obj(env, None, None, owner, None, 0)
    if not entries:
        return None
    entry = entries[0][1]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content)


def _owner(words):
    """Return the public path of the class or function named, and the name of its member, if that is meant."""
    if words[-1] in PUBLIC:
        return PUBLIC[words[-1]], None
    if len(words) > 1 and words[-2] in PUBLIC:
        return PUBLIC[words[-2]], words[-1]
    return None, None


def _has(owner, name):
    return (
        hasattr(owner, name) or name in getattr(owner, "__dataclass_fields__", {}) or f"{name}" in (owner.__doc__ or "")
    )


def _exists(words, here):
    """Whether a dotted path exists: as it stands, or from the module that speaks of it."""
    for found, rest in (
        (importlib.import_module("hbm_jax"), words[1:] if words[0] == "hbm_jax" else words),
        (here, words),
    ):
        for word in rest:
            if inspect.ismodule(found) and not hasattr(found, word):
                try:
                    importlib.import_module(f"{found.__name__}.{word}")
                except ImportError:
                    break
            if not hasattr(found, word):
                break
            found = getattr(found, word)
        else:
            return True
    return False


def _mathml(self, node):
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _mathml_block(self, node):
    self.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app):
    """Formulas as MathML, which browsers draw by themselves: no script from elsewhere, and pages work offline."""
    app.add_html_math_renderer("mathml", (_mathml, None), (_mathml_block, None))
    app.connect("missing-reference", _find)


html_math_renderer = "mathml"
