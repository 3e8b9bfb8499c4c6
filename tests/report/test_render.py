import json
import re
import time
import tomllib
from base64 import b64decode, b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from browser import browser, missing
from prediction_tables import made_up

import mammo_pd
from mammo_pd.evaluation.compare import FOR_PAIRED_DELONG
from mammo_pd.evaluation.metric_names import METRICS
from mammo_pd.evaluation.thresholds import Reader
from mammo_pd.report.content import ReportContext
from mammo_pd.report.evaluate import compare_predictions, evaluate_predictions
from mammo_pd.report.guidelines import CLAIM, STARD_AI, TRIPOD_AI

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
        title="Cancer <on> phantoms & films: site_of_a_name_that_no_phone_can_hold_in_one_line",
        phantom=True,
        exclusions={"no_breast_found": 3},
        parts=[{"part": "train", "patients": 300, "images": 1200}],
        notes=["A note <of> the caller."],
        pictures="Images are shown as acquired.",
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
        thumbnail=lambda image_id: () if image_id.endswith("7") else (pixel, pixel),
        reader=Reader(0.85, 0.9),
        within=["view", "laterality"],
    )
    return out


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The folder of a page of real images without thresholds."""
    out = tmp_path_factory.mktemp("plain") / "report"
    context = ReportContext(
        study={"intended_use": "A second reader.", "follow_up": None},
        provenance={"version": "9.9", "command": "mammo-pd evaluate"},
    )
    evaluate_predictions(made_up(30), out, context=context)
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
        self.opened, self.ids, self.tags, self.links, self.shown = [], [], set(), [], []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if (tag, name) == ("a", "href")]
        if tag not in {"meta", "link", "br", "img", "input", "wbr"}:
            self.opened.append(tag)

    def handle_data(self, data):
        self.text += data

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        self.shown += [value for name, value in attrs if (tag, name) == ("use", "href")]

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag


def parsed(page):
    parser = Balanced()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser


def test_the_guidelines_have_their_published_numbers_of_items():
    # As the publications count them: 44; 27 in 52 rows; 40 in 48 rows.
    for guideline, items, rows in ((CLAIM, 44, 44), (TRIPOD_AI, 27, 52), (STARD_AI, 40, 48)):
        numbers = [number for number, _, _ in guideline.items]
        assert len(numbers) == len(set(numbers)) == rows
        whole = [int(number.rstrip("abcdefg")) for number in numbers]
        assert whole == sorted(whole)
        assert set(whole) == set(range(1, items + 1))


def test_the_markup_is_whole_and_every_section_can_be_reached(report):
    page = parsed(report / "index.html")
    assert page.opened == []
    assert len(page.ids) == len(set(page.ids))
    sections = re.findall(r'<section id="([^"]+)"', (report / "index.html").read_text())
    assert page.links[: len(sections) + 1] == [f"#{key}" for key in (sections[0], *sections)]
    assert {link.removeprefix("#") for link in page.links} == set(sections)
    # A publication is named and not linked: the page leads nowhere but to itself.
    assert all(f"doi:{guideline.doi}" in page.text for guideline in (CLAIM, TRIPOD_AI, STARD_AI))
    assert len(sections) > 5
    # A panel is a window on its figure's drawing.
    assert set(page.shown) <= {f"#{name}" for name in page.ids}
    assert len(page.shown) > 10


def test_nothing_that_is_handed_in_becomes_markup(tmp_path):
    table = made_up(40)
    table["split"] = ["val"] * 80 + ["test"] * 80
    table["site"] = HOSTILE
    table["lesion_type"] = HOSTILE
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
        study={"intended_use": HOSTILE},
        provenance={HOSTILE: HOSTILE},
        notes=[HOSTILE],
        pictures=HOSTILE,
        created=HOSTILE,
    )
    out = tmp_path / "report"
    evaluate_predictions(table, out, context=context, thumbnail=lambda _: (b"png",))
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


@pytest.mark.usefixtures("blank_figures")
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
    for metric in METRICS:
        assert metric.title in text, f"no part of the page shows {metric.name}"


def test_the_templates_are_shipped():
    # The tests run from the sources, where a template that no wheel contains is found all the same.
    package = Path(mammo_pd.__file__).parent
    checkout = Path(__file__).parents[2]
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["mammo_pd"]
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    templates = [p for p in (package / "report" / "templates").rglob("*") if p.is_file()]
    assert templates
    assert set(templates) <= shipped


def test_errors_are_whole_exams_on_their_side_of_the_threshold(report):
    errors = pd.read_csv(report / "errors.csv")
    exams = pd.read_csv(report / "predictions_exam.csv").set_index("exam_id")
    points = json.loads((report / "metrics.json").read_text())["exam"]["operating_points"]
    (threshold,) = {row["threshold"] for row in points if row["code"] == "specificity_90"}
    assert set(errors["exam_threshold"]) == {threshold}
    assert set(errors["kind"]) == {"false alarm", "miss"}
    for (kind, _), images in errors.groupby(["kind", "place"]):
        exam = exams.loc[images["exam_id"].iloc[0]]
        assert len(images) == exam["n_images"] == 4
        assert set(images["exam_score"]) == {exam["score"]}
        if kind == "miss":
            assert (exam["label"], exam["score"] < threshold) == (1, True)
        else:
            assert (exam["label"], exam["score"] >= threshold) == (0, True)
    for kind, positive in (("false alarm", 0), ("miss", 1)):
        of_class = exams[exams["label"] == positive]["score"]
        clearest = of_class.max() if kind == "false alarm" else of_class.min()
        assert errors[(errors["kind"] == kind) & (errors["place"] == 1)]["exam_score"].iloc[0] == (
            clearest
        )


def test_right_hangs_beside_left_only_where_sides_are_known(report, tmp_path):
    assert "the right breast next to that of the left" in (report / "index.html").read_text()
    table = made_up(40).drop(columns="laterality")
    context = ReportContext(title="T", pictures="Images are shown as acquired.")
    evaluate_predictions(table, tmp_path, context=context, thumbnail=lambda _: (b"png",))
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "the right breast next to that of the left" not in text
    assert "nothing says which breast they show" in text


def test_errors_are_pictured_where_there_is_a_picture(report):
    text = (report / "index.html").read_text(encoding="utf-8")
    errors = pd.read_csv(report / "errors.csv")
    pictured = re.findall(r'<img [^>]*src="data:image/png;base64,[^"]+" alt="([^"]+)"', text)
    # Each image, and what the model attended to in it, which is folded up.
    assert len(pictured) == 2 * (~errors["image_id"].str.endswith("7")).sum() > 24
    assert len(re.findall(r'<details class="picture"><summary>.*?<img', text)) == len(pictured) / 2
    assert text.count("no picture") == errors["image_id"].str.endswith("7").sum() > 0
    assert re.match(r"false alarm, R CC, score 0\.\d{3}", pictured[0])


def test_the_moving_threshold_says_where_it_begins(report, plain):
    """At the one chosen for 90 % specificity; without it, where about a tenth is recalled."""
    for folder, said in (
        (report, "shown first at the threshold chosen for 90 % specificity."),
        (plain, "shown first where the share recalled is nearest to one in ten, as no"),
    ):
        page = (folder / "index.html").read_text(encoding="utf-8")
        assert said in page
        start = int(re.search(r'type="range"[^>]* value="(\d+)"', page)[1])
        sweep = pd.read_csv(folder / "thresholds.csv")
        if folder is plain:
            assert start == (sweep["recall_rate"] - 0.1).abs().argmin()
        else:
            points = json.loads((folder / "metrics.json").read_text())["exam"]["operating_points"]
            (value,) = [row["threshold"] for row in points if row["code"] == "specificity_90"]
            assert sweep["threshold"][start] == pytest.approx(value, rel=1e-9)


def test_a_column_of_one_value_is_named_and_not_drawn(tmp_path):
    """There is nothing to compare; the figures keep their row."""
    table = made_up(30).assign(manufacturer="GE", density=["b", "c", "b"] * 40)
    table["lesion_type"] = table["label"].map({1: "mass", 0: None})
    for out, columns, drawn in (
        (tmp_path / "some", None, ["view", "laterality", "density"]),
        (tmp_path / "none", ["manufacturer", "lesion_type"], []),
    ):
        metrics = evaluate_predictions(table, out, context=ReportContext(), stratify_by=columns)
        assert {row["column"] for row in metrics["strata"]} >= {"manufacturer", "lesion_type"}
        page = (out / "index.html").read_text(encoding="utf-8")
        said = "manufacturer is GE for every breast; lesion type is mass for every positive breast."
        assert f"Nothing to compare: {said}" in page
        groups = page.partition('<section id="strata"')[2].partition("</section>")[0]
        cells = set(re.findall(r'<th scope="row"[^>]*>([a-z ]+)</th>', groups))
        assert cells == set(drawn)
        assert ("<svg" in groups) == bool(drawn)
        assert parsed(out / "index.html").opened == []


def test_without_a_threshold_nothing_is_called_an_error(plain):
    assert set(pd.read_csv(plain / "errors.csv")["kind"]) == {"high negative", "low positive"}
    text = (plain / "index.html").read_text(encoding="utf-8")
    assert "no threshold was chosen, so nothing is decided" in text
    assert "False alarms" not in text


def test_nothing_is_fetched_from_anywhere(report):
    text = (report / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script[^>]*src|@import|src=(?!\"data:)|url\((?!#)", text)
    assert all(link.startswith(("#", "data:")) for link in re.findall(r'href="([^"]*)"', text))
    # No script runs but this one, and it asks for nothing.
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = b64encode(sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert not re.search(r"fetch|XMLHttp|import|WebSocket|Beacon|https?:|eval|innerHTML", script)


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


def test_no_phantom_banner_on_real_images(plain):
    assert "phantom" not in (plain / "index.html").read_text(encoding="utf-8").split("<body>")[1]


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
        "return [...document.querySelectorAll('figure[id]')].map(figure => {"
        " const boxes = [...figure.querySelectorAll('.panels svg use')].map("
        "  use => use.parentNode.getBoundingClientRect());"
        " return [figure.id, boxes.length > 0 && boxes.every(b => b.width > 300 && b.height > 150),"
        "  figure.querySelectorAll('path').length > 8] })"
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


def resized(chromium, width):
    chromium.command(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=900,
        deviceScaleFactor=1,
        mobile=False,
    )


@pytest.mark.parametrize("width", [390, 1100])
def test_the_page_does_not_scroll_sideways(report, chromium, width):
    resized(chromium, width)
    chromium.open(report / "index.html")
    assert chromium.run("return document.documentElement.scrollWidth") <= width
    # A wide table scrolls within its frame; the caption says in view what it is.
    outside = chromium.run(
        "return [...document.querySelectorAll('.scroll caption')].filter(caption =>"
        " caption.getBoundingClientRect().right"
        " > caption.closest('.scroll').getBoundingClientRect().right + 1)"
        ".map(caption => caption.textContent)"
    )
    assert outside == []


def test_the_text_of_charts_can_be_read_on_a_phone(report, chromium):
    resized(chromium, 400)
    chromium.open(report / "index.html")
    sizes = chromium.run(
        "return [...document.querySelectorAll('.panels svg')].flatMap(svg => {"
        " const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;"
        " const drawing = document.querySelector(svg.querySelector('use').getAttribute('href'));"
        " return [...drawing.querySelectorAll('text')].map("
        "  text => scale * parseFloat(getComputedStyle(text).fontSize)) })"
    )
    assert len(sizes) > 100
    assert min(sizes) >= 9


def test_the_threshold_moves_everything_together(report, chromium):
    chromium.open(report / "index.html")
    table = pd.read_csv(report / "thresholds.csv")
    show = (
        "const shown = {};"
        "for (const e of document.querySelectorAll('[data-shows]')) shown[e.dataset.shows]"
        " = e.textContent; return shown"
    )
    before = chromium.run(show)
    points = json.loads((report / "metrics.json").read_text())["exam"]["operating_points"]
    (fixed,) = [row for row in points if row["code"] == "specificity_90"]
    assert before["threshold"] == f"{fixed['threshold']:.4g}"
    assert [int(before[name]) for name in ("tp", "fp", "fn", "tn")] == [
        fixed[name] for name in ("tp", "fp", "fn", "tn")
    ]
    for place in (0, 17, len(table) - 1):
        chromium.run(
            "const slider = document.querySelector('.explorer input');"
            f"slider.value = {place}; slider.dispatchEvent(new Event('input'))"
        )
        shown, row = chromium.run(show), table.iloc[place]
        assert float(shown["threshold"]) == pytest.approx(row["threshold"], rel=1e-3)
        for name in ("tp", "fp", "fn", "tn"):
            assert int(shown[name]) == row[name]
        for name in ("sensitivity", "specificity", "ppv"):
            expected = "–" if pd.isna(row[name]) else f"{row[name]:.3f}"
            assert shown[name] == expected
        recalled = float(shown["recalled"].replace(",", ""))
        assert recalled == pytest.approx(1000 * row["recall_rate"], abs=0.51)
    assert chromium.run("return document.querySelector('.control').hidden") is False


def test_the_page_is_complete_without_its_script(report, chromium, tmp_path):
    text = (report / "index.html").read_text(encoding="utf-8")
    without, count = re.subn(r"<script>.*?</script>", "", text, flags=re.S)
    assert count == 1
    page = tmp_path / "without.html"
    page.write_text(without, encoding="utf-8")
    chromium.open(page)
    shown = chromium.run(
        "return [document.querySelector('.control').hidden, "
        "[...document.querySelectorAll('.explorer [data-shows]')].filter(e => "
        " !e.closest('.control') && !e.textContent.trim()).length,"
        "document.querySelectorAll('thead button').length]"
    )
    assert shown == [True, 0, 0]


def test_tables_are_sorted_by_value(report, chromium):
    chromium.open(report / "index.html")
    column = chromium.run(
        "const table = document.querySelector('#screening table.sortable');"
        "const head = table.tHead.rows[0].cells[1]; const read = () => [...table.tBodies[0].rows]"
        " .map(row => row.cells[1].childNodes[0].textContent.trim());"
        "head.querySelector('button').click(); const rising = read();"
        "const said = head.getAttribute('aria-sort'); head.querySelector('button').click();"
        "return [rising, said, read(), head.getAttribute('aria-sort')]"
    )
    rising, said, falling, said_then = column
    assert (said, said_then) == ("ascending", "descending")
    values = [float(text.replace(",", "")) for text in rising]
    assert values == sorted(values)
    assert len(set(values)) > 3
    assert [float(text.replace(",", "")) for text in falling] == values[::-1]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The folders of pages on two and on three models."""
    out, table = tmp_path_factory.mktemp("compared"), made_up(30)
    models = dict.fromkeys(("model of text alone", "another model", "a third"), table)
    compare_predictions(dict(list(models.items())[:2]), out / "two", context=ReportContext())
    compare_predictions(models, out / "three", context=ReportContext())
    return out


def test_words_begin_at_the_left_and_headers_stand_above_their_cells(report, compared, chromium):
    for page in (report, compared / "two", compared / "three"):
        chromium.open(page / "index.html")
        columns = chromium.run(
            "return [...document.querySelectorAll('main table')].flatMap(table =>"
            " [...table.tHead.rows[0].cells].map((head, i) => {"
            "  const cells = [...table.tBodies[0].rows].map(row => row.cells[i]);"
            "  const align = e => getComputedStyle(e).textAlign;"
            "  return [table.caption?.textContent + ': ' + head.textContent, align(head),"
            "   cells.map(align), cells.map(cell => cell.textContent.trim())] }))"
        )
        assert len(columns) > 5
        for name, head, cells, texts in columns:
            assert set(cells) <= {head}, name
            words = [text for text in texts if re.search("[A-Za-z]{3}", text)]
            if words and len(words) == sum(text not in {"", "–"} for text in texts):
                assert head in {"left", "start"}, name


def test_two_models_are_named_once_above_their_differences(compared):
    two, three = (parsed(compared / name / "index.html").text for name in ("two", "three"))
    assert "AUC of model of text alone minus that of another model, with 95 % intervals" in two
    assert "AUC of the first model minus that of the second, with 95 % intervals" in three


def test_the_page_says_how_many_of_a_class_delongs_test_takes(compared):
    for name in ("two", "three"):
        text = parsed(compared / name / "index.html").text
        assert f"every patient is one unit and each class has {FOR_PAIRED_DELONG};" in text


def test_the_table_of_contents_follows(report, chromium):
    resized(chromium, 1200)
    chromium.open(report / "index.html")
    # A busy machine takes its time, and figures that come late move what was scrolled to.
    current = (
        "const shown = () => document.querySelector('nav a[aria-current]')?.hash ?? null;"
        "const end = performance.now() + 5000;"
        "return new Promise(done => {"
        " const look = () => {"
        "  if (shown() === '#calibration' || performance.now() > end) return done(shown());"
        "  document.getElementById('calibration').scrollIntoView();"
        "  setTimeout(look, 50); };"
        " look(); })"
    )
    assert chromium.run(current) == "#calibration"


def test_nothing_is_cut_off_in_print(report, chromium):
    chromium.command("Emulation.setEmulatedMedia", media="print")
    resized(chromium, 700)  # A4 less its margins, in CSS pixels
    try:
        chromium.open(report / "index.html")
        wide = chromium.run(
            "return [...document.querySelectorAll('table, figure')]"
            ".filter(e => e.getBoundingClientRect().right > 701).length"
        )
        bars = chromium.run(
            "return [...document.querySelectorAll('.scroll')].filter("
            "e => getComputedStyle(e).overflowX !== 'visible').length"
        )
    finally:
        chromium.command("Emulation.setEmulatedMedia", media="")
    assert (wide, bars) == (0, 0)


def test_what_keeps_to_the_next_thing_in_print_has_one(report, chromium):
    # On a last child "break-after: avoid" passes to its parent; the chain got so long that
    # Chromium left headings alone at the foot of a page.
    chromium.command("Emulation.setEmulatedMedia", media="print")
    try:
        chromium.open(report / "index.html")
        keeping, last = chromium.run(
            "const kept = [...document.querySelectorAll('main *')].filter("
            " e => e.checkVisibility() && getComputedStyle(e).breakAfter === 'avoid');"
            "return [kept.map(e => e.tagName), kept.filter(e => !e.nextElementSibling)"
            " .map(e => e.outerHTML.slice(0, 80))]"
        )
    finally:
        chromium.command("Emulation.setEmulatedMedia", media="")
    assert {"H2", "H3", "TR"} <= set(keeping)
    assert last == []


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


def test_all_that_the_page_shows_lies_beside_it(report):
    metrics = json.loads((report / "metrics.json").read_text())
    programme = metrics["programme"]
    for name, rows in (
        ("per_thousand", programme["per_thousand"]),
        ("decision_curve", programme["decision_curve"]),
        ("flow", metrics["context"]["flow"]),
        ("characteristics", metrics["context"]["characteristics"]),
        ("strata", metrics["strata"]),
        ("within", metrics["within"]),
    ):
        table = pd.read_csv(report / f"{name}.csv")
        assert len(table) == len(rows) > 0
        assert list(table) == list(rows[0])
    assert len(pd.read_csv(report / "thresholds.csv")) > 10


def test_what_authors_state_is_stated_and_the_rest_is_not(plain):
    text = (plain / "index.html").read_text(encoding="utf-8")
    stated = dict(re.findall(r"<dt>(.*?)</dt><dd>(?:<code>)?(.*?)(?:</code>)?</dd>", text))
    assert stated["Intended use"] == "A second reader."
    assert (
        stated["Reference standard"] == stated["Follow-up of those without cancer"] == "not stated"
    )
    assert stated["version"] == "9.9"
    items = dict(
        re.findall(r'<th scope="row">(\w+)</th><td>[^<]*</td><td>(.*?)</td>', text, re.S)[:42]
    )
    assert list(items) == [str(number) for number in range(1, 43)]  # CLAIM
    assert items["3"] == '<a href="#data">under Data</a>'
    assert items["42"] == "not stated: for the authors"
    assert items["14"] == "not stated: for the authors"
