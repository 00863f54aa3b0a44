import base64
import dataclasses
import html
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from plotting.small_fits import own_fit, supernova_fit

from hbm_jax.inference import judge
from hbm_jax.plotting.labels import quote
from hbm_jax.report import MAX_PARAMETERS, figures_for, write_report

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
def supernova_report(tmp_path_factory):
    return write_report(supernova_fit(), tmp_path_factory.mktemp("report") / "report").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def own_report(tmp_path_factory):
    return write_report(own_fit(), tmp_path_factory.mktemp("report") / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("report", "count"), [("supernova_report", 5), ("own_report", 2)])
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
    assert "http" not in without_pictures
    assert not re.search(r"<(script|link|iframe)|url\(|@import", without_pictures)
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]*)"', text))
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text


@pytest.mark.parametrize(("report", "fit"), [("supernova_report", supernova_fit), ("own_report", own_fit)])
def test_every_number_of_the_summary_is_there(report, fit, request):
    text = html.unescape(request.getfixturevalue(report))
    for name, row in fit().summary().iterrows():
        quoted = quote(row["median"], row["lower_68"], row["upper_68"])
        cells = (
            f'<th scope="row">{name}</th><td>{quoted.median.replace("-", "−")}</td><td><span class="error">'
            f"<span>+{quoted.plus}</span><span>−{quoted.minus}</span></span></td>"
            f'<td class="text">{row["unit"]}</td><td>{row["r_hat"]:.3f}</td><td>{row["ess_bulk"]:.0f}</td>'
        )
        assert cells in text


def with_verdict(fit, **changes):
    return dataclasses.replace(fit, verdict=dataclasses.replace(fit.verdict, **changes))


def test_verdict_comes_first_usable(tmp_path):
    fit = with_verdict(own_fit(), usable=True, reasons=(), advice=(), notes=("sigma leans on the edge <0>",))
    text = write_report(fit, tmp_path / "r.html", figures={}).read_text(encoding="utf-8")
    assert "This posterior is usable" in text
    sentence = str(dataclasses.replace(fit.verdict, notes=()))
    assert sentence in html.unescape(text)
    assert "sigma leans on the edge &lt;0&gt;" in text
    assert text.index("This posterior is usable") < text.index("<table>")


def test_verdict_comes_first_not_usable(tmp_path):
    fit = with_verdict(own_fit(), usable=False, reasons=("R-hat is 1.2 for a", "3 divergent"), advice=("Draw more.",))
    text = write_report(fit, tmp_path / "r.html", figures={}).read_text(encoding="utf-8")
    assert "This posterior is not usable" in text
    assert "This posterior is usable" not in text
    for part in ("R-hat is 1.2 for a", "3 divergent", "Draw more."):
        assert f"<li>{part}</li>" in text


def test_supernova_report_tells_data_model_and_provenance(supernova_report):
    fit, text = supernova_fit(), html.unescape(supernova_report)
    assert f"<h1>{fit.run['description']}</h1>" in text
    assert fit.data.describe() in text
    for prior in fit.run["config"]["priors"].values():
        assert prior in text
    for value in (*fit.run["versions"].values(), fit.run["machine"], str(fit.run["num_warmup"])):
        assert value in text
    assert "xarray.open_datatree('posterior.nc'" in text


def test_own_report_has_no_empty_sections(own_report):
    assert "<h2>Data</h2>" not in own_report
    assert "Prior, or the value" not in own_report
    assert "own_model" in own_report


def test_many_parameters_are_restricted_and_the_caption_says_so():
    rng = np.random.default_rng(0)
    fit = own_fit()
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

    text = write_report(own_fit(), tmp_path / "r.html", figures={"x": ("A caption.", broken)}).read_text("utf-8")
    assert "This figure could not be drawn. ValueError: no &lt;such&gt; thing" in text
    assert "my_slope" in text


def test_file_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "report.html"
    write_report(own_fit(), path, figures={})
    write_report(own_fit(), path, figures={}, posterior="runs/a.nc")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert "hbm_jax.load('runs/a.nc')" in html.unescape(path.read_text("utf-8"))
