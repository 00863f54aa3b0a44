import base64
import dataclasses
import html
import re
import sys
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from made_up_verdicts import unusable, with_verdict
from PIL import Image
from stored_fits import load

import hbm_jax as hbm
from hbm_jax import report as report_module
from hbm_jax.inference import judge
from hbm_jax.inference.sampler.kernels import selection
from hbm_jax.inference.verdict import MAX_R_HAT, MIN_ESS
from hbm_jax.notation import quote
from hbm_jax.report import MAX_PARAMETERS, SAMPLERS, bibliography, figures_for, methods_paragraph, write_report

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Nesting(HTMLParser):
    """Fails where an element is closed that is not the innermost open one."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def pictures(text):
    return [base64.b64decode(p, validate=True) for p in re.findall(r'src="data:image/png;base64,([^"]+)"', text)]


@pytest.fixture(scope="module")
def supernova_page(tmp_path_factory):
    """Two of its five figures; all of them are drawn for the browser."""
    folder = tmp_path_factory.mktemp("a report")
    (folder / "config.toml").write_text('[model]\nname = "supernova"\n')
    every = figures_for(load("supernova"))
    assert list(every) == ["hubble_diagram", "populations", "hubble_residuals", "corner", "trace"]
    some = {name: every[name] for name in ("hubble_diagram", "populations")}
    return write_report(load("supernova"), folder / "report", some, configuration=folder / "config.toml")


@pytest.fixture(scope="module")
def supernova_report(supernova_page):
    return supernova_page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def own_page(tmp_path_factory):
    return write_report(load("own"), tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def own_report(own_page):
    return own_page.read_text(encoding="utf-8")


@pytest.mark.parametrize(("report", "count"), [("supernova_report", 2), ("own_report", 2)])
def test_figures_are_inside_and_decode(report, count, request):
    text = request.getfixturevalue(report)
    assert "could not be drawn" not in text
    found = pictures(text)
    assert len(found) == count
    for content in found:
        image = Image.open(BytesIO(content))
        image.load()
        assert image.format == "PNG"
        assert image.width > 300


@pytest.mark.parametrize("report", ["supernova_report", "own_report"])
def test_page_is_whole_and_needs_nothing_else(report, request):
    text = request.getfixturevalue(report)
    assert text.startswith("<!DOCTYPE html>")
    parser = Nesting()
    parser.feed(text)
    assert parser.open == []
    without_pictures = re.sub(r"base64,[^\"]+", "", text)
    # Remarks of the script and the addresses of software in the BibTeX entries are text.
    assert "//" not in re.sub(r"\n *// .*|howpublished = {https://[^}\s]*}", "", without_pictures)
    assert not re.search(r"<(script [^>]*src|link|iframe)|url\(|@import", without_pictures)
    assert "default-src 'none'; img-src data:" in text  # a browser refuses anything from elsewhere
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]*)"', text))
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text


@pytest.mark.parametrize(("report", "fit"), [("supernova_report", "supernova"), ("own_report", "own")])
def test_every_number_of_the_summary_is_there(report, fit, request):
    text = re.sub(r"<svg.*?</svg>| data-copy=\"[^\"]*\"", "", html.unescape(request.getfixturevalue(report)))
    units = '<th class="text">Unit</th>' in text
    assert units == any(load(fit).summary()["unit"])
    for name, row in load(fit).summary().iterrows():
        quoted = quote(row["median"], row["lower_68"], row["upper_68"])
        cells = (
            f'<th scope="row"><span class="symbol"></span>{name}</th><td>{quoted.median.replace("-", "−")}</td>'
            f'<td class="plus"><span class="error"><span>+{quoted.plus}</span><span>−{quoted.minus}</span></span></td>'
            + (f'<td class="text">{row["unit"]}</td>' if units else "")
        )
        good = [row["r_hat"] < MAX_R_HAT, row["ess_bulk"] >= MIN_ESS, row["ess_tail"] >= MIN_ESS]
        shown = [f"{row['r_hat']:.3f}", f"{row['ess_bulk']:.0f}", f"{row['ess_tail']:.0f}"]
        cells += "".join(
            f"<td>{number}</td>" if fine else f'<td class="bad">{number}</td>'
            for number, fine in zip(shown, good, strict=True)
        )
        assert cells in text


def test_parameters_have_the_symbols_of_the_figures(supernova_report, own_report):
    names = re.findall(r'<span class="symbol">(<svg.*?</svg>)?</span>(.*?)</th>', supernova_report)
    assert all(symbol for symbol, _ in names)
    assert len({symbol for symbol, _ in names}) == len(load("supernova").summary())
    own = re.findall(r'<span class="symbol">(<svg.*?</svg>)?</span>(.*?)</th>', own_report)
    assert {name: bool(symbol) for symbol, name in own} == {"my_slope": False, "sigma": True}


def test_parameters_in_latex(supernova_report):
    latex = re.search(r"<code>(\\begin\{tabular\}.*?)</code>", html.unescape(supernova_report), re.DOTALL)[1]
    head, *lines, foot, end = latex.split("\n")[3:]
    assert (head, foot, end) == (r"\hline", r"\hline", r"\end{tabular}")
    summary = load("supernova").summary()
    assert len(lines) == len(summary)
    row = summary.loc["M0"]
    quoted = quote(row["median"], row["lower_68"], row["upper_68"])
    assert rf"$M_0$ & ${quoted.median}^{{+{quoted.plus}}}_{{-{quoted.minus}}}$ & mag \\" in lines


def test_latex_of_a_users_name_is_escaped(own_report):
    assert r"my\_slope &amp; $" in own_report


def test_verdict_comes_first_usable(tmp_path):
    fit = with_verdict(load("own"), usable=True, reasons=(), advice=(), notes=("sigma leans on the edge <0>",))
    fit = with_verdict(fit, modes="8 of 8 searches ended in one mode")

    text = write_report(fit, tmp_path / "r.html", figures={}).read_text(encoding="utf-8")
    assert "This posterior is usable" in text
    assert "<li>Modes: 8 of 8 searches ended in one mode.</li>" in text
    name, r_hat = fit.verdict.worst_r_hat
    assert f'{r_hat:.3f}</dd><dd class="of">{name}</dd>' in text
    assert "sigma leans on the edge &lt;0&gt;" in text
    assert text.index("This posterior is usable") < text.index("<table")


def test_verdict_comes_first_not_usable(tmp_path):
    fit = unusable()
    text = write_report(fit, tmp_path / "r.html", figures={}).read_text(encoding="utf-8")
    assert "This posterior is not usable" in text
    assert "This posterior is usable" not in text
    for part in ("R-hat is 1.2 for a", "3 divergent", "Draw more."):
        assert f"<li>{part}</li>" in text
    assert '<dd class="value bad">3</dd>' in text
    assert '<dd class="value bad">400</dd>' not in text  # the draws, which have no limit


@pytest.fixture(scope="module")
def misfit():
    """The fit of a straight line, with other data in its place: the last points are off."""
    fit = load("own")
    x, y = fit.args
    other = hbm.Fit(fit.tree, fit.verdict, fit.program, (x, y + 3.0 * (x > 0.8)), fit.run)
    assert other.model_check.passed is False
    return other


def test_check_of_the_model_comes_second(misfit, tmp_path):
    text = write_report(misfit, tmp_path / "r.html").read_text(encoding="utf-8")
    first, second = "This posterior is usable", "The data do not look like draws from this model"
    assert text.index(first) < text.index(second) < text.index("<table")
    sentence = misfit.verdict.model.sentence
    assert f"<p>The data{html.escape(sentence.removeprefix('the data'))}.</p>" in text
    assert all(f"<li>{html.escape(remedy)}</li>" in text for remedy in misfit.verdict.model.remedies)
    assert len(pictures(text)) == 3
    assert list(figures_for(misfit)) == ["model_residuals", "corner", "trace"]
    nesting = Nesting()
    nesting.feed(text)
    assert nesting.open == []


def test_a_model_that_passes_or_was_not_checked_has_no_figure(misfit, tmp_path):
    for passed, shown in ((True, "The data look like draws from this model"), (None, "The model was not checked")):
        fit = with_verdict(misfit, model=dataclasses.replace(misfit.verdict.model, passed=passed))
        assert shown in write_report(fit, tmp_path / "r.html", figures={}).read_text(encoding="utf-8")
        assert list(figures_for(fit)) == ["corner", "trace"]


def test_supernova_report_tells_data_model_and_provenance(supernova_report):
    fit, text = load("supernova"), html.unescape(supernova_report)
    assert f"<h1>{fit.run['description']}</h1>" in text
    assert fit.run["data"] in text
    for prior in fit.run["config"]["priors"].values():
        assert prior in text
    for value in (*fit.run["versions"].values(), fit.run["machine"], str(fit.run["num_warmup"])):
        assert value in text
    assert "xarray.open_datatree('posterior.nc'" in text
    assert re.search(r"hbm-jax fit --config '.*a report.*config.toml' --out again", text)  # quoted for a shell
    assert '[model]\nname = "supernova"' in text
    assert text.index(fit.run["versions"]["jax"]) > text.index("<h2>Configuration and versions</h2>")


def test_own_report_has_no_empty_sections(own_report):
    assert "<h2>Data</h2>" not in own_report
    assert "Prior, or fixed value" not in own_report
    assert "Verdict on the model" not in own_report
    assert "hbm-jax fit" not in own_report
    assert "own_model" in own_report


def test_many_parameters_are_restricted_and_the_caption_says_so():
    rng = np.random.default_rng(0)
    fit = load("own")
    values = {f"p{i:02d}": (("chain", "draw"), rng.normal(size=(4, 200))) for i in range(15)}
    values["p14"] = (("chain", "draw"), rng.normal(size=(4, 200)) + np.arange(4)[:, None])  # mixes worst
    tree = fit.tree.copy()
    tree["posterior"] = xr.DataTree(xr.Dataset(values, coords={"chain": range(4), "draw": range(200)}))
    verdict = judge(tree["posterior"].to_dataset(), tree["sample_stats"].to_dataset())
    many = dataclasses.replace(fit, tree=tree, verdict=verdict)
    figures = figures_for(many)
    assert "The first 12 of 15 parameters." in figures["corner"][0]
    assert "The 12 of 15 parameters that mix worst." in figures["trace"][0]
    trace = figures["trace"][1](many)
    assert len(trace.axes) == 2 * MAX_PARAMETERS
    assert trace.axes[0].get_ylabel() == "p14"


def test_a_figure_that_fails_leaves_the_rest(tmp_path):
    def broken(fit):
        raise ValueError("no <such> thing")

    text = write_report(load("own"), tmp_path / "r.html", figures={"x": ("A caption.", broken)}).read_text("utf-8")
    assert "This figure could not be drawn. ValueError: no &lt;such&gt; thing" in text
    assert "my_slope" in text


def test_figures_are_files_too(tmp_path):
    figures = {"corner": figures_for(load("own"))["corner"]}
    text = write_report(load("own"), tmp_path / "r.html", figures, figure_folder=tmp_path).read_text("utf-8")
    whole, few = Image.open(tmp_path / "corner.png"), Image.open(BytesIO(pictures(text)[0]))
    assert whole.size == few.size
    apart = np.asarray(whole.convert("RGB"), float) - np.asarray(few.convert("RGB"), float)
    assert np.linalg.norm(apart, axis=-1).max() < 30  # of 441


def test_file_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "report.html"
    write_report(load("own"), path, figures={})
    write_report(load("own"), path, figures={}, posterior="runs/a.nc")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert "hbm_jax.load('runs/a.nc')" in html.unescape(path.read_text("utf-8"))


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ModuleNotFoundError, match=r"write_report: expected the package jinja2.*hbm_jax\[plots\]"):
        write_report(load("own"), tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_names_and_text_of_a_result_are_no_markup(tmp_path):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 191 }}'
    fit = load("own")
    changed = dict.fromkeys(("description", "data", "program", "device"), evil)
    changed |= {"config": {"priors": {evil: evil}, evil: evil}, "versions": {evil: evil}}
    fit = dataclasses.replace(fit, run=fit.run | changed, verdict=dataclasses.replace(fit.verdict, notes=(evil,)))

    def fail(fit):
        raise ValueError(evil)

    text = write_report(fit, tmp_path / "report", {"evil": (evil, fail)}, posterior=evil).read_text("utf-8")
    assert "alert(1)" in text
    assert not re.search(r"<script>alert|<img src=x|1337", text)


@pytest.mark.parametrize("name", ["supernova", "afterglow", "golenetskii", "own"])
def test_paragraph_on_methods_cites_entries_that_exist(name):
    fit = load(name)
    text, entries = methods_paragraph(fit), bibliography(fit)
    cited = {key for group in re.findall(r"\\cite[pt]\{([^}]+)\}", text) for key in group.split(",")}
    assert set(re.findall(r"^@\w+\{(\w+),", entries, re.MULTILINE)) == cited
    assert {"hbm_jax", "jax", "Phan2019", "Kumar2019", "Vehtari2021", "Hoffman2014"} <= cited
    assert ({"Verner1996", "Wilms2000"} <= cited) == (name == "afterglow")
    assert ("Golenetskii1983" in cited) == (name == "golenetskii")
    assert entries.count("{") == entries.count("}")
    numbers = f"at most {fit.verdict.worst_r_hat[1]:.3f} and at least {fit.verdict.smallest_ess[1]:.0f}"
    assert numbers in text
    assert ("do not meet" in text) == (not fit.verdict.usable)


def test_other_abundances_are_not_said_to_be_those_of_the_default():
    fit = load("afterglow")
    fit.run["config"] = fit.run["config"] | {"abundances": "angr"}
    assert "Wilms2000" not in methods_paragraph(fit)


def test_every_sampler_has_a_name_in_the_paragraph():
    assert set(SAMPLERS) == set(selection.SAMPLERS) - {"automatic"}
    entries = (Path(report_module.__file__).parent / "templates/references.bib").read_text()
    for words in SAMPLERS.values():
        assert all(f"{{{key}," in entries for key in re.findall(r"\\citep\{(\w+)\}", words))


def test_report_has_the_paragraph_and_the_references(supernova_report):
    text = html.unescape(supernova_report)
    assert methods_paragraph(load("supernova")) in text
    assert bibliography(load("supernova")) in text
