import base64
import dataclasses
import html
import os
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import xarray as xr
from browser import NoBrowser, View, look
from PIL import Image
from plotting.small_fits import own_fit, supernova_fit

from hbm_jax.inference import judge
from hbm_jax.inference.diagnostics import MAX_R_HAT, MIN_ESS
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
def supernova_page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a report")
    (folder / "config.toml").write_text('[model]\nname = "supernova"\n')
    return write_report(supernova_fit(), folder / "report", configuration=folder / "config.toml")


@pytest.fixture(scope="module")
def supernova_report(supernova_page):
    return supernova_page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def own_page(tmp_path_factory):
    return write_report(own_fit(), tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def own_report(own_page):
    return own_page.read_text(encoding="utf-8")


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
    assert "//" not in re.sub(r"\n *// .*", "", without_pictures)  # the remarks of the script apart
    assert not re.search(r"<(script [^>]*src|link|iframe)|url\(|@import", without_pictures)
    assert "default-src 'none'; img-src data:" in text  # a browser refuses anything from elsewhere
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]*)"', text))
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text


@pytest.mark.parametrize(("report", "fit"), [("supernova_report", supernova_fit), ("own_report", own_fit)])
def test_every_number_of_the_summary_is_there(report, fit, request):
    text = re.sub(r"<svg.*?</svg>| data-copy=\"[^\"]*\"", "", html.unescape(request.getfixturevalue(report)))
    units = '<th class="text">Unit</th>' in text
    assert units == any(fit().summary()["unit"])
    for name, row in fit().summary().iterrows():
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
    assert len({symbol for symbol, _ in names}) == len(supernova_fit().summary())
    own = re.findall(r'<span class="symbol">(<svg.*?</svg>)?</span>(.*?)</th>', own_report)
    assert {name: bool(symbol) for symbol, name in own} == {"my_slope": False, "sigma": True}


def test_parameters_in_latex(supernova_report):
    latex = re.search(r"<code>(\\begin\{tabular\}.*?)</code>", html.unescape(supernova_report), re.DOTALL)[1]
    head, *lines, foot, end = latex.split("\n")[3:]
    assert (head, foot, end) == (r"\hline", r"\hline", r"\end{tabular}")
    summary = supernova_fit().summary()
    assert len(lines) == len(summary)
    row = summary.loc["M0"]
    quoted = quote(row["median"], row["lower_68"], row["upper_68"])
    assert rf"$M_0$ & ${quoted.median}^{{+{quoted.plus}}}_{{-{quoted.minus}}}$ & mag \\" in lines


def test_latex_of_a_users_name_is_escaped(own_report):
    assert r"my\_slope &amp; $" in own_report


def with_verdict(fit, **changes):
    return dataclasses.replace(fit, verdict=dataclasses.replace(fit.verdict, **changes))


def unusable():
    reasons = ("R-hat is 1.2 for a", "3 divergent")
    return with_verdict(own_fit(), usable=False, reasons=reasons, advice=("Draw more.",), num_divergences=3)


def unwieldy():
    """Not usable, and full of words that are wider than a phone."""
    word, fit = "word_without_an_end_" * 15, unusable()
    names = [word + str(name) for name in fit.verdict.table.index]
    broad = with_verdict(
        fit, reasons=(word,), advice=(word,), notes=(word,), table=fit.verdict.table.set_axis(names, axis=0)
    )
    config = {"latents": word, "priors": {word: f"Normal({word})"}}
    return dataclasses.replace(
        broad, run=fit.run | {"description": word, "data": word, "stopped": word, "config": config}
    )


def test_verdict_comes_first_usable(tmp_path):
    fit = with_verdict(own_fit(), usable=True, reasons=(), advice=(), notes=("sigma leans on the edge <0>",))
    text = write_report(fit, tmp_path / "r.html", figures={}).read_text(encoding="utf-8")
    assert "This posterior is usable" in text
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


def test_supernova_report_tells_data_model_and_provenance(supernova_report):
    fit, text = supernova_fit(), html.unescape(supernova_report)
    assert f"<h1>{fit.run['description']}</h1>" in text
    assert fit.data.describe() in text
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
    assert "Prior, or the value" not in own_report
    assert "hbm-jax fit" not in own_report
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


def test_figures_are_files_too(tmp_path):
    figures = {"corner": figures_for(own_fit())["corner"]}
    text = write_report(own_fit(), tmp_path / "r.html", figures, figure_folder=tmp_path).read_text("utf-8")
    whole, few = Image.open(tmp_path / "corner.png"), Image.open(BytesIO(pictures(text)[0]))
    assert whole.size == few.size
    apart = np.asarray(whole.convert("RGB"), float) - np.asarray(few.convert("RGB"), float)
    assert np.linalg.norm(apart, axis=-1).max() < 30  # of 441


def test_file_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "report.html"
    write_report(own_fit(), path, figures={})
    write_report(own_fit(), path, figures={}, posterior="runs/a.nc")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert "hbm_jax.load('runs/a.nc')" in html.unescape(path.read_text("utf-8"))


# What is looked at in a browser. Text is every piece that is shown, with its size in pixels and the contrast of its
# colour with the nearest background (WCAG 2.2, section 1.4.3).
MEASURE = """
(() => {
  for (const details of document.querySelectorAll("details")) details.open = true;
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => channels(colour).slice(0, 3).map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
  const background = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if ((channels(colour)[3] ?? 1) > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const [text, element] = [walker.currentNode.textContent.trim(), walker.currentNode.parentElement];
    if (!text || !element.checkVisibility() || element.tagName === "SCRIPT") continue;
    const style = getComputedStyle(element);
    const [dark, light] = [luminance(style.color), luminance(background(element))].sort((a, b) => a - b);
    texts.push([text, parseFloat(style.fontSize), (light + 0.05) / (dark + 0.05)]);
  }
  return {
    screen: innerWidth,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    texts,
    paper: getComputedStyle(document.body).backgroundColor,
    headings: [...document.querySelectorAll("h1, h2")].map((heading) => heading.textContent),
    verdict: document.querySelector(".verdict").getBoundingClientRect().bottom,
    figures: [...document.images].map((image) => {
      const [box, place] = [image.parentElement.getBoundingClientRect(), image.getBoundingClientRect()];
      return { name: image.closest("figure").id, natural: [image.naturalWidth, image.naturalHeight],
        shown: [place.width, place.height], inside: place.left >= box.left && place.right <= box.right,
        card: getComputedStyle(image.parentElement).backgroundColor, box: [box.left, box.top, box.right, box.bottom] };
    }),
    tables: [...document.querySelectorAll("table")].map((table) => {
      const box = table.parentElement;
      return { wide: table.scrollWidth > box.clientWidth, scrolls: getComputedStyle(box).overflowX === "auto",
        right: box.getBoundingClientRect().right };
    }),
    buttons: [...document.querySelectorAll("button.copy")].filter((button) => button.checkVisibility()).length,
    copyable: document.querySelectorAll("table, pre").length,
  };
})()
"""
# After a click on a button that copies: what it says, and what is selected.
COPIED = """
new Promise((resolve) => {
  const button = document.querySelector("#the-parameters button.copy");
  const answer = () => button.textContent === "Copy" ? setTimeout(answer, 10)
    : resolve([button.textContent, getSelection().toString()]);
  answer();
})
"""
REFUSED = "document.execCommand = () => false;"
NO_CLIPBOARD = "delete Navigator.prototype.clipboard;"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SCREENS = [
    (page, scheme, screen)
    for page in ("supernova", "own", "unusable")
    for scheme in ("light", "dark")
    for screen in ("desktop", "phone")
]


@pytest.fixture(scope="module")
def seen(supernova_page, own_page, tmp_path_factory):
    """Every look at a report that the tests below need, in one browser."""
    bad = write_report(
        unusable(), tmp_path_factory.mktemp("unusable") / "report.html", figures={"x": ("No.", no_figure)}
    )
    pages = {"supernova": supernova_page, "own": own_page, "unusable": bad}
    sizes = {"desktop": DESKTOP, "phone": PHONE}
    views = {
        (page, scheme, screen): View(
            pages[page], **sizes[screen], scheme=scheme, script=MEASURE, picture=(page, screen) == ("own", "phone")
        )
        for page, scheme, screen in SCREENS
    }
    views["print"] = View(supernova_page, **DESKTOP, scheme="dark", media="print", script=MEASURE)
    button = "#the-parameters button.copy"
    for name, before in (("usual", ""), ("modern", REFUSED), ("old", NO_CLIPBOARD), ("none", REFUSED + NO_CLIPBOARD)):
        views["copy", name] = View(supernova_page, click=button, before=before, script=COPIED)
    views["code"] = View(supernova_page, click="#the-posterior button.copy")
    large = """(() => {
        const [image, button] = ["#corner img", "#corner button"].map((part) => document.querySelector(part));
        return [image.clientWidth, Number(image.getAttribute("width")), document.documentElement.scrollWidth,
          button.textContent]; })()"""
    for part in (".card", "button.size"):
        views["large", part] = View(supernova_page, **PHONE, click=f"#corner {part}", script=large)
    try:
        found = look(list(views.values()))
    except NoBrowser as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    return dict(zip(views, found, strict=True))


def no_figure(fit):
    raise ValueError("no_figure" * 50)


@pytest.mark.parametrize(("page", "scheme", "screen"), SCREENS)
def test_page_opens_and_can_be_read(seen, page, scheme, screen):
    view = seen[page, scheme, screen]
    assert view.console == []
    assert len(view.addresses) == 1  # its own
    value = view.value
    assert value["screen"] == {"desktop": 1280, "phone": 390}[screen]
    assert value["overflow"] == 0
    assert len(value["texts"]) > 80
    assert [text for text in value["texts"] if text[1] < 14.0] == []
    assert [text for text in value["texts"] if text[2] < 4.5] == []
    usable = {"supernova": supernova_fit().verdict.usable, "own": own_fit().verdict.usable, "unusable": False}[page]
    assert value["headings"][1] == f"This posterior is {'' if usable else 'not '}usable"
    assert value["headings"][-1] == "Configuration and versions"
    assert page == "unusable" or value["verdict"] < 844  # all of it without scrolling
    assert value["buttons"] == value["copyable"]


@pytest.mark.parametrize(("page", "scheme", "screen"), SCREENS)
def test_plots_are_present_on_light_cards(seen, page, scheme, screen):
    names = {
        "supernova": ["hubble_diagram", "populations", "hubble_residuals", "corner", "trace"],
        "own": ["corner", "trace"],
        "unusable": [],
    }
    figures = seen[page, scheme, screen].value["figures"]
    assert [figure["name"] for figure in figures] == names[page]
    for figure in figures:
        natural, shown = figure["natural"], figure["shown"]
        assert min(natural) > 300
        assert shown[0] >= (300 if screen == "phone" else 400)
        assert shown[0] / shown[1] == pytest.approx(natural[0] / natural[1], rel=0.01)
        assert figure["inside"]
        assert figure["card"] == "rgb(255, 255, 255)"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_picture_of_the_page_has_the_scheme_and_light_figures(seen, scheme):
    view = seen["own", scheme, "phone"]
    picture = view.picture.convert("L")
    assert picture.width == 390
    paper = picture.getpixel((3, 3))
    assert paper > 240 if scheme == "light" else paper < 40
    for figure in view.value["figures"]:
        shades = np.asarray(picture.crop([round(edge) for edge in figure["box"]]), float)
        assert shades.mean() > 180
        assert shades.min() < 120  # something is drawn


@pytest.mark.parametrize("page", ["supernova", "own", "unusable"])
def test_tables_scroll_in_their_own_box_on_a_phone(seen, page):
    tables = seen[page, "light", "phone"].value["tables"]
    assert all(table["right"] <= 390 for table in tables)
    assert all(table["scrolls"] for table in tables if table["wide"])
    assert tables[0]["wide"] == tables[0]["scrolls"] == True  # noqa: E712 - the parameters, in seven columns
    assert not any(table["wide"] for table in seen[page, "light", "desktop"].value["tables"])


def expected_copy(fit):
    lines = ["Parameter\tMedian\tupper error (68 %)\tlower error (68 %)\tUnit\tR-hat\tESS bulk\tESS tail"]
    summary = fit.summary()
    for name in (name for name in fit.run["config"]["priors"] if name in summary.index):
        row = summary.loc[name]
        quoted = quote(row["median"], row["lower_68"], row["upper_68"])
        numbers = [f"{row['r_hat']:.3f}", f"{row['ess_bulk']:.0f}", f"{row['ess_tail']:.0f}"]
        lines.append("\t".join([name, quoted.median, quoted.plus, quoted.minus, row["unit"], *numbers]))
    assert len(lines) == len(summary) + 1
    return "\n".join(lines)


@pytest.mark.parametrize("way", ["usual", "modern", "old"])
def test_a_click_copies_the_table(seen, way):
    view = seen["copy", way]
    assert view.console == []
    assert view.value == ["Copied", ""]
    assert view.text == expected_copy(supernova_fit())
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", view.html)]
    assert cells == [line.split("\t") for line in view.text.split("\n")]


def test_where_copying_is_refused_the_table_is_selected(seen):
    view = seen["copy", "none"]
    assert view.console == []
    said, selected = view.value
    assert said == "Selected: press Ctrl+C"
    assert "Om0" in selected
    assert "ESS tail" in selected
    assert view.text == ""


def test_a_click_copies_the_code(seen):
    assert seen["code"].text.startswith("import hbm_jax\nfit = hbm_jax.load('posterior.nc')\n")
    assert seen["code"].html == ""


@pytest.mark.parametrize("part", [".card", "button.size"])
def test_a_click_shows_a_figure_in_full(seen, part):
    shown, full, page, button = seen["large", part].value
    assert shown == full
    assert full > 390
    assert page == 390
    assert button == "Shrink"


def test_print_is_dark_on_white_without_controls(seen):
    value = seen["print"].value
    assert value["paper"] == "rgb(255, 255, 255)"
    assert value["buttons"] == 0
    assert "Configuration and versions" not in [text for text, *_ in value["texts"][:20]]  # no contents
    assert [text for text in value["texts"] if text[2] < 4.5] == []
    assert len(value["figures"]) == 5
