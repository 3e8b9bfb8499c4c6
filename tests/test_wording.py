"""One image, two images, 12 %: no message counts one thing in the plural, or writes 12%."""

import ast
import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import mammo_pd
from mammo_pd.report.notes import _NOTES
from mammo_pd.wording import counted, on_one_line, percent

# What messages count; a rate (images/s) is none of it.
_COUNTED = {
    "images",
    "files",
    "folders",
    "patients",
    "runs",
    "rows",
    "exams",
    "epochs",
    "seeds",
    "checks",
    "copies",
    "views",
    "levels",
    "processes",
    "scores",
    "cells",
    "links",
    "steps",
    "values",
    "tensors",
    "channels",
    "threads",
    "cores",
    "sets",
    "stores",
}
# What is never 1 there, or no count of them.
_SEVERAL = frozenset(
    {
        ("load.py", "channels"),
        ("parts.py", "length"),
        ("cv.py", "len(scored)"),
        ("cv.py", "len(seeds)"),
        ("cv.py", "parallel"),
        ("evaluate_stores.py", "stores"),
        ("image_file.py", "len(levels)"),
        ("labels.py", "len(repeated)"),
        ("predictions.py", "count"),
        ("label_join.py", "most"),
        ("loop.py", "epochs"),
        ("swin.py", "self.window"),
        ("parts.py", "weight.shape[1]"),
        ("preprocess_summary.py", "summary.patients"),
        ("measures.py", "len(score)"),
        ("uncertainty.py", "units.patients"),
        ("unit_batches.py", "largest"),
        ("uncertainty.py", "self._negatives.patients"),
        ("imagecodecs_plugin.py", "frame.dtype"),
        ("nvimgcodec_plugin.py", "frame.dtype"),
        ("raster.py", "pixels.dtype"),
        ("render.py", "images"),
        ("setup.py", "most"),
        ("setup.py", "schedule.full_epochs"),
    }
)


def test_counted() -> None:
    assert [counted(count, "image") for count in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [counted(count, "copy was", "copies were") for count in (1, 3)] == [
        "1 copy was",
        "3 copies were",
    ]


def test_what_is_counted_agrees_with_its_number() -> None:
    """Of every message: a number that may be 1 goes through `counted`."""
    files = sorted(Path(mammo_pd.__file__).parent.rglob("*.py"))
    found = {(file.name, value): text for file in files for value, text in _plurals(file)}
    assert len(files) > 200 and found.keys() >= _SEVERAL
    assert not {key: text for key, text in found.items() if key not in _SEVERAL}


def test_percent_has_its_space_wherever_a_user_reads_it() -> None:
    """Messages, reports, benchmarks' tables and pages; not what a data set's own table says."""
    assert [percent(0.125, 1), percent(0.9)] == ["12.5 %", "90 %"]
    root = Path(__file__).parents[1]
    package = Path(mammo_pd.__file__).parent
    pages = [*root.glob("*.md"), *(root / "docs").rglob("*.md")]
    programs = [*package.rglob("*.py"), *(root / "benchmarks").glob("*.py")]
    templates = [*package.rglob("templates/**/*.html")]
    assert min(map(len, (pages, programs, templates))) > 5
    found = [
        f"{file.name}: {line.strip()}"
        for file in (*pages, *programs, *templates)
        for line in file.read_text(encoding="utf-8").splitlines()
        if re.search(r"[0-9}]%(?!\w)|\.[0-9]%|(?<! )%%", line)
        and file.name != "kau_bcmd.py"
        and "width: 100%" not in line  # style, not text
    ]
    assert not found


def test_notes_of_a_report_read_alike_for_one_and_many() -> None:
    for note in _NOTES.values():
        assert not re.search(r"\{\w+\} [a-z]", note.replace("{count} of {exams}", "{count}"))


def _plurals(file: Path) -> Iterator[tuple[str, str]]:
    """Each number in a message, as it is written, before a plural of something that is counted."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        parts = node.values if isinstance(node, ast.JoinedStr) else []
        for value, text in pairwise(parts):
            if not (isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant)):
                continue
            words = re.match(
                r" (?:(?:of|more|other|usable|different) )*([a-z]+)(?!/)\b", text.value
            )
            name = ast.unparse(value.value)
            if words and words[1] in _COUNTED and not name.isupper():
                yield name, text.value


def test_every_control_character_is_a_space_and_nothing_else_changes() -> None:
    for code in range(0x3000):
        control = unicodedata.category(chr(code)) == "Cc"
        assert on_one_line(f"a{chr(code)}b") == ("a b" if control else f"a{chr(code)}b")
    assert on_one_line("a\r\n\x1bb\n") == "a b "
