"""The description of a public data set: licence, counts, and how its tables become label rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd


@dataclass(frozen=True)
class Source:
    """A data set with a table of its own: a public one, or your archive.

    Attributes:
        name: its name on the command line.
        title: its common name.
        table: name of the set's own table, for errors and help.
        licence: a pointer, not legal advice; "not found stated" if we found none.
        reference: the publication that describes it.
        definitions: by name, a sentence on what makes an image positive; the first is the default.
        read: from the table (a file, or a folder of several) and the name of a definition to rows
            with the columns of the label table; every cell is text, empty if unknown, and
            ``label`` is "1", "0" or "".
        locate: from those rows and the folder of images to one row per image, with its ``path``;
            only for sets whose tables do not name the image files.
        images: number of images, counted in the table or stated by the authors; None if unknown.
        patients: number of women, likewise.
        positives: number of positive images by the default definition, likewise.
        uid_ends_in_image_id: the set's SOP Instance UIDs end in its image numbers, so that a file
            is found whatever its name.
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
    uid_ends_in_image_id: bool = False
