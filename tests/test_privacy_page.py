"""docs/privacy.md names every element that is read; an element that is added must be told there."""

import ast
import re
from pathlib import Path

from pydicom.datadict import tag_for_keyword

import mammo_pd

ROOT = Path(mammo_pd.__file__).parent


def keywords_read() -> set[str]:
    """Keywords of elements in the code that sees headers, as texts and as attributes."""
    found = set()
    for folder in ("imaging", "ingest"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
                elif isinstance(node, ast.Attribute):
                    found.add(node.attr)
    return {word for word in found if word.isidentifier() and tag_for_keyword(word)}


def test_every_element_that_is_read_is_on_the_page() -> None:
    page = (Path(__file__).parents[1] / "docs" / "privacy.md").read_text(encoding="utf-8")
    read = keywords_read()
    assert {"PatientID", "PatientBirthDate", "PixelData"} <= read
    assert not {word for word in read if not re.search(rf"\b{word}\b", page)}
