import re
from base64 import b64decode
from html.parser import HTMLParser

import pandas as pd
import pytest
from browser import browser, missing
from prediction_tables import made_up

from mammo_pd.report.content import ReportContext
from mammo_pd.report.evaluate import evaluate_predictions

FIGURES = ["roc", "pr", "scores", "calibration", "strata", "folds"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page with every section in it."""
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
        resamples=100,
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
        self.opened, self.ids = [], []

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in {"meta", "link", "br", "img"}:
            self.opened.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag


def test_the_markup_is_whole(report):
    text = (report / "index.html").read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(text)
    assert parser.opened == []
    assert len(parser.ids) == len(set(parser.ids))
    assert "Cancer &lt;on&gt; phantoms &amp; films" in text
    assert "A note &lt;of&gt; the caller." in text
    assert "<on>" not in text


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


def test_what_the_reader_must_know(report):
    text = (report / "index.html").read_text(encoding="utf-8")
    assert "These images are phantoms" in text
    assert "For research only" in text
    for name in FIGURES:
        figure = re.search(rf'<figure id="figure-{name}".*?</figure>', text, re.S).group()
        assert re.search(r'aria-label="[^"]{20,}"', figure)
        assert 'class="how"' in figure
        assert "var(--model)" in figure


def test_no_phantom_banner_on_real_images(tmp_path):
    evaluate_predictions(made_up(20), tmp_path / "r", context=ReportContext(), resamples=10)
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
def test_every_figure_is_drawn_and_can_be_told_from_the_ground(report, chromium, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    chromium.command("Emulation.setEmulatedMedia", features=features)
    chromium.open(report / "index.html")
    drawn = chromium.run(
        "return [...document.querySelectorAll('figure svg')].map(svg => {"
        " const box = svg.getBoundingClientRect();"
        " return [svg.parentNode.id, box.width > 300 && box.height > 200,"
        "  svg.querySelectorAll('path').length > 10] })"
    )
    assert sorted(drawn) == sorted([f"figure-{name}", True, True] for name in FIGURES)
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
    assert any("heard" in message for message in chromium.console())
    assert "http://127.0.0.1:9/x.png" in chromium.requested()
