"""Which public data set a folder looks like, and the command that reads its own table."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from mammo_pd.wording import counted

if TYPE_CHECKING:
    from mammo_pd.data.sources.recognise import Recognised

# Files by whose names it is told.
_LOOKED_AT = 500


def look_like(folder: Path) -> "Recognised | None":
    """Guess which public set a folder holds, by the names of some files; None if it is none."""
    from mammo_pd.data.sources.recognise import recognise
    from mammo_pd.ingest.walk import some_images

    folder = folder.resolve()
    return recognise(folder, some_images(folder, _LOOKED_AT))


def in_words(recognised: "Recognised") -> str:
    """A line on what was recognised."""
    from mammo_pd.data.sources import SOURCES

    title = SOURCES[recognised.source].title
    table = (
        f"its own table is {recognised.table}"
        if recognised.table is not None
        else f"its own table ({SOURCES[recognised.source].table}) is not with the images"
    )
    return (
        f"{recognised.named} of {counted(recognised.of, 'file')} have names like those of {title}, "
        f"and {table}: --source {recognised.source}"
    )


def labels_of(recognised: "Recognised | None") -> str:
    """The options that name a label table, to append to a suggested command."""
    if recognised is None:
        return " --labels TABLE.csv"
    table = "TABLE" if recognised.table is None else shlex.quote(str(recognised.table))
    return f" --labels {table} --source {recognised.source}"
