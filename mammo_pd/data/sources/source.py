"""What one public data set is: its licence, its counts, how its own tables become label rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd


@dataclass(frozen=True)
class Source:
    """A public data set.

    Attributes:
        name: as on the command line.
        title: as people call it.
        table: what the set's own table is called, for errors and help.
        licence: a pointer, not legal advice; "not found stated" where we found nothing.
        reference: where the set is described.
        definitions: what makes an image positive, a sentence for each way in use; the first is the
            default.
        read: takes the table (a file, or the folder that holds several) and the name of a
            definition; gives rows in the columns of the label table, every cell text and empty
            where unknown, with ``label`` "1", "0" or "".
        locate: takes those rows and the folder of images, and gives one row for each image, with
            its ``path``. Only for sets whose tables do not name the image files.
        images: how many images the set's table names, or the set states; None where not known.
        patients: the same of women.
        positives: positive images by the default definition.
    """

    name: str
    title: str
    table: str
    licence: str
    reference: str
    definitions: Mapping[str, str]
    read: Callable[[Path, str], pd.DataFrame]
    locate: Callable[[pd.DataFrame, Path], pd.DataFrame] | None = None
    images: int | None = None
    patients: int | None = None
    positives: int | None = None
