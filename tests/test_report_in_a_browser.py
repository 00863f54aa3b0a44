"""The report in a browser: it opens, can be read on a phone and in the dark, its buttons work, it prints."""

import os
import re

import numpy as np
import pytest
from browser import NoBrowser, View, look
from made_up_verdicts import unwieldy
from stored_fits import load

from hbm_jax.notation import quote
from hbm_jax.report import write_report

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def supernova_page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a report")
    (folder / "config.toml").write_text('[model]\nname = "supernova"\n')
    return write_report(load("supernova"), folder / "report", configuration=folder / "config.toml")


@pytest.fixture(scope="module")
def own_page(tmp_path_factory):
    return write_report(load("own"), tmp_path_factory.mktemp("report") / "report.html")


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
    intervals: [...document.querySelectorAll(".parameters tbody td.plus")]
      .map((cell) => cell.getBoundingClientRect().right),
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
        unwieldy(), tmp_path_factory.mktemp("unusable") / "report.html", figures={"x": ("No.", no_figure)}
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
    usable = {"supernova": load("supernova").verdict.usable, "own": load("own").verdict.usable, "unusable": False}[page]
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
    # Medians and intervals are on the screen before any scrolling, however long the names of parameters are.
    assert all(right <= 390 for right in seen[page, "light", "phone"].value["intervals"])
    if page != "unusable":  # whose words are wider than a desktop, too
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
    assert view.text == expected_copy(load("supernova"))
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
