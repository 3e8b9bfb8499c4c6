"""Which cells of a table a message may quote: words for findings and small numbers.

What is printed ends up in logs, and by mistake any column can be named where one of findings is
meant. By its look a name is no different from a word, so these are an allow list; of all other
cells a message says how many there are, and where.
"""

import re
from collections.abc import Iterable

from mammo_pd.wording import counted

# Of labels, in the words of the public data sets and of tables of one's own. No word that is
# mostly a name, such as Low.
_WORDS = frozenset(
    """
    benign malignant malignancy cancer carcinoma dcis ductal lobular invasive in situ
    normal abnormal healthy control negative positive yes no true false unknown maybe
    possible possibly probable probably uncertain indeterminate suspicious high without
    with callback recall recalled screening interval biopsy proven confirmed pending
    missing none mass calcification calc asymmetry distortion lesion density bi rads
    birads acr class category finding findings left right bilateral l r cc mlo train
    training validation development test holdout fold
    """.split()  # noqa: SIM905
)
# Grades such as D, 4A and 2. More digits, or two numbers, may be a date or a part of an identifier.
_GRADE = re.compile(r"[a-z]|\d{1,2}[a-z]?")
_NUMBER = re.compile(r"[+-]?(?:\d{1,2}(?:\.0{1,3})?|[01]?[.,]\d{1,4}|\d[.,]\d)\s?%?")
_MOST_QUOTED = 10


def may_be_quoted(cell: str) -> bool:
    """Whether a cell can hold nothing but a finding, a grade or a small number."""
    if _NUMBER.fullmatch(cell):
        return True
    words = [word for word in re.split(r"[\W_]+", cell.lower()) if word]
    grades = [word for word in words if word not in _WORDS]
    return bool(words) and len(grades) <= 1 and all(map(_GRADE.fullmatch, grades))


def such_as(cells: Iterable[object], most: int = 3) -> str:
    """Examples to append to a sentence: `` (such as B, D)``, or nothing where none may be quoted.

    Args:
        cells: that are at fault.
        most: of them to quote.
    """
    examples = sorted({text for text in map(str, cells) if may_be_quoted(text)})[:most]
    return f" (such as {', '.join(examples)})" if examples else ""


def values_in_words(cells: Iterable[str], first_line: int = 2) -> str:
    """The different values of a column: ``0, 1 and 1 other value (line 57)``.

    Args:
        cells: of the column, in order; empty ones are no value.
        first_line: of the file, on which the first of them stands.
    """
    lines: dict[str, int] = {}
    for line, cell in enumerate(cells, start=first_line):
        if cell:
            lines.setdefault(cell, line)
    quoted = sorted(filter(may_be_quoted, lines))
    if not lines:
        return "nothing"
    if len(lines) > _MOST_QUOTED:
        return counted(len(lines), "different value")
    others = sorted(lines[cell] for cell in lines if cell not in quoted)
    if not others:
        return ", ".join(quoted)
    word = "line" if len(others) == 1 else "lines"
    where = f"({word} {', '.join(map(str, others))})"
    kind = "other value" if quoted else "different value" if len(others) > 1 else "value"
    told = f"{counted(len(others), kind)} {where}"
    return f"{', '.join(quoted)} and {told}" if quoted else told
