import re
import time
import tomllib
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from browser import browser, missing
from prediction_tables import made_up

import mammo_pd
from mammo_pd.evaluation.thresholds import Reader
from mammo_pd.report.content import ReportContext
from mammo_pd.report.evaluate import compare_predictions, evaluate_predictions

# Text that would be an element of its own, were it not escaped.
HOSTILE = "<x-evil a=\"'>&$x_{$"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder of a page with every section in it."""
    out = tmp_path_factory.mktemp("page") / "report"
    table = made_up(120)
    table["split"] = ["val"] * 160 + ["test"] * 320
    table["fold"] = table.index // 4 % 3
    context = ReportContext(
        title="Cancer <on> phantoms & films",
        phantom=True,
        exclusions={"no_breast_found": 3},
        parts=[{"part": "train", "patients": 300, "images": 1200}],
        notes=["A note <of> the caller."],
    )
    # One transparent pixel.
    pixel = b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5E"
        "rkJggg=="
    )
    evaluate_predictions(
        table,
        out,
        context=context,
        thumbnail=lambda image_id: None if image_id.endswith("7") else pixel,
    )
    return out


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if lacking := missing():
        pytest.skip(f"the page is not opened in a browser: {lacking}")
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


class Balanced(HTMLParser):
    """Every element that is opened is closed, in order."""

    def __init__(self):
        super().__init__()
        self.opened, self.ids, self.tags, self.links = [], [], set(), []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if (tag, name) == ("a", "href")]
        if tag not in {"meta", "link", "br", "img"}:
            self.opened.append(tag)

    def handle_data(self, data):
        self.text += data

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag


def parsed(page):
    parser = Balanced()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser


def test_the_markup_is_whole_and_every_section_can_be_reached(report):
    page = parsed(report / "index.html")
    assert page.opened == []
    assert len(page.ids) == len(set(page.ids))
    sections = re.findall(r'<section id="([^"]+)"', (report / "index.html").read_text())
    assert page.links == [f"#{key}" for key in sections]
    assert len(sections) > 5


def test_nothing_that_is_handed_in_becomes_markup(tmp_path):
    table = made_up(40)
    table["split"] = ["val"] * 80 + ["test"] * 80
    table["site"] = HOSTILE
    table["image_id"] = HOSTILE + table["image_id"]
    context = ReportContext(
        title=HOSTILE,
        model=HOSTILE,
        run_id=HOSTILE,
        split_name=HOSTILE,
        split_hash=HOSTILE,
        split_part=HOSTILE,
        store_fingerprint=HOSTILE,
        label_definition=HOSTILE,
        exclusions={HOSTILE: 3},
        parts=[{HOSTILE: HOSTILE, "images": 3}],
        notes=[HOSTILE],
        pictures=HOSTILE,
        created=HOSTILE,
    )
    out = tmp_path / "report"
    evaluate_predictions(table, out, context=context, thumbnail=lambda _: b"png")
    page = parsed(out / "index.html")
    assert "x-evil" not in page.tags
    assert page.opened == []
    # Twelve texts of the context, the site in table and figure, and the errors' image IDs.
    assert page.text.count(HOSTILE) >= 14

    models = {HOSTILE: table, "b": table}
    compare_predictions(models, tmp_path / "c", context=context)
    page = parsed(tmp_path / "c" / "index.html")
    assert "x-evil" not in page.tags
    assert page.text.count(HOSTILE) > 4


def test_a_prevalence_and_readers_are_named(tmp_path):
    table = made_up(40)
    table["split"] = ["val"] * 80 + ["test"] * 80
    evaluate_predictions(
        table,
        tmp_path / "r",
        context=ReportContext(),
        prevalence=0.006,
        reader=Reader(0.8, 0.9),
    )
    text = parsed(tmp_path / "r" / "index.html").text
    assert "re-weighted to a prevalence of 0.006" in text
    assert "Specificity at the radiologists' sensitivity" in text


def test_the_templates_are_shipped():
    # The tests run from the sources, where a template that no wheel contains is found all the same.
    package = Path(mammo_pd.__file__).parent
    project = tomllib.loads((package.parent / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["mammo_pd"]
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    templates = [p for p in (package / "report" / "templates").rglob("*") if p.is_file()]
    assert templates
    assert set(templates) <= shipped


def test_errors_are_pictured_where_there_is_a_picture(report):
    text = (report / "index.html").read_text(encoding="utf-8")
    errors = pd.read_csv(report / "errors.csv")
    pictured = re.findall(r'<img src="data:image/png;base64,[^"]+" alt="([^"]+)"', text)
    assert len(pictured) == (~errors["image_id"].str.endswith("7")).sum() > 12
    assert pictured[0].startswith("false alarm, ")
    worst = errors[errors["kind"] == "miss"]["score"].iloc[0]
    assert errors[errors["label"] == 1]["score"].min() == worst


def test_nothing_is_fetched_from_anywhere(report):
    text = (report / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script|@import|src=(?!\"data:)|url\((?!#)", text)
    assert all(link.startswith(("#", "data:")) for link in re.findall(r'href="([^"]*)"', text))


def drawn_in(report):
    """The names of the figures beside the page, each of which the page must show."""
    names = {path.stem for path in report.glob("*.svg")}
    assert names >= {"roc", "pr", "calibration"}
    return names


def test_what_the_reader_must_know(report):
    text = (report / "index.html").read_text(encoding="utf-8")
    banners = re.findall(r'role="note">(.*?)</p>', text, re.S)
    assert ["phantom" in banners[0], "research" in banners[1]] == [True, True]
    for name in drawn_in(report):
        figure = re.search(rf'<figure id="figure-{name}".*?</figure>', text, re.S).group()
        assert re.search(r'aria-label="[^"]{20,}"', figure)
        assert 'class="how"' in figure
        assert "var(--model)" in figure


def test_no_phantom_banner_on_real_images(tmp_path):
    evaluate_predictions(made_up(20), tmp_path / "r", context=ReportContext())
    assert "phantom" not in (tmp_path / "r" / "index.html").read_text().split("<body>")[1]


def test_it_opens_without_error_or_request(report, chromium):
    chromium.requested()
    page = report / "index.html"
    chromium.open(page)
    assert chromium.console() == []
    # chrome:// is the browser's own new tab, before the page.
    asked = [
        url
        for url in chromium.requested()
        if not url.startswith(("data:", "chrome:", "chrome-untrusted:"))
    ]
    assert asked == [page.as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn_and_all_text_has_contrast(report, chromium, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    chromium.command("Emulation.setEmulatedMedia", features=features)
    chromium.open(report / "index.html")
    drawn = chromium.run(
        "return [...document.querySelectorAll('figure svg')].map(svg => {"
        " const box = svg.getBoundingClientRect();"
        " return [svg.parentNode.id, box.width > 300 && box.height > 200,"
        "  svg.querySelectorAll('path').length > 10] })"
    )
    assert sorted(drawn) == sorted([f"figure-{name}", True, True] for name in drawn_in(report))
    # WCAG 2.2, 1.4.3: text against what it stands on, at least 4.5 to 1.
    contrasts = chromium.run(
        "const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(v => { v /= 255;"
        "  return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4 });"
        "  return .2126 * r + .7152 * g + .0722 * b };"
        "const ground = e => { for (; e; e = e.parentElement) {"
        "  const c = getComputedStyle(e).backgroundColor;"
        "  if (c !== 'rgba(0, 0, 0, 0)') return c } return 'rgb(255, 255, 255)' };"
        "return [...document.querySelectorAll('h1, p, td, th, caption, figcaption, a, small, li')]"
        ".map(e => { const a = light(getComputedStyle(e).color), b = light(ground(e));"
        "  return (Math.max(a, b) + .05) / (Math.min(a, b) + .05) })"
    )
    assert min(contrasts) >= 4.5
    dark = chromium.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", dark))) < 300) == (scheme == "dark")


@pytest.mark.parametrize("width", [390, 1100])
def test_the_page_does_not_scroll_sideways(report, chromium, width):
    chromium.command(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=900,
        deviceScaleFactor=1,
        mobile=False,
    )
    chromium.open(report / "index.html")
    assert chromium.run("return document.documentElement.scrollWidth") <= width


def test_the_browser_would_tell(tmp_path, chromium):
    # Without this the tests above could pass because nothing is ever heard.
    page = tmp_path / "bad.html"
    page.write_text('<img src="http://127.0.0.1:9/x.png"><script>console.error("heard")</script>')
    chromium.requested()
    chromium.open(page)
    # The driver hands messages over as they come, on a busy machine after the page has loaded.
    heard, deadline = [], time.monotonic() + 10
    while not any("heard" in message for message in heard) and time.monotonic() < deadline:
        heard += chromium.console()
    assert any("heard" in message for message in heard)
    assert "http://127.0.0.1:9/x.png" in chromium.requested()
