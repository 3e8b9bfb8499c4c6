"""Public data sets: each module turns one set's own table, as downloaded, into label rows.

Nothing is downloaded. The head of each module says what the set is, what makes an image positive
and which faults are known; ``data_manifests/README.md`` has a summary.
"""

from collections.abc import Mapping
from pathlib import Path

from mammo_pd.data.labels import LabelTable, label_table, read_as
from mammo_pd.data.sources import (
    bmcd,
    cbis_ddsm,
    cdd_cesm,
    cmmd,
    csaw_cc,
    dmid,
    embed,
    inbreast,
    kau_bcmd,
    mias,
    nlbs,
    optimam,
    rsna,
    vindr,
)
from mammo_pd.data.sources.source import Source
from mammo_pd.errors import InputError
from mammo_pd.registry import Registry

# By the name that --source takes; a program may add its own (docs/extending.md).
SOURCES: Registry[str, Source] = Registry(
    "SOURCES",
    {
        module.SOURCE.name: module.SOURCE
        for module in (
            *(bmcd, cbis_ddsm, cdd_cesm, cmmd, csaw_cc, dmid, embed, inbreast),
            *(kau_bcmd, mias, nlbs, optimam, rsna, vindr),
        )
    },
    defined_by=lambda source: source.read,
)
_LABELS = {"1": 1, "0": 0, "": None}


def read_source(
    name: str,
    table: Path,
    images: Path,
    *,
    definition: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> LabelTable:
    """Read a public data set's own table.

    Args:
        name: one of `SOURCES`.
        table: the set's table, or the folder with its tables.
        images: the folder of images; searched only for sets whose table names no files.
        definition: name of one of the set's definitions of positive; by default the first.
        columns: which column to read as what the set leaves open; see `read_as`.

    Returns:
        The label table.

    Raises:
        InputError: no such set, definition or column, a table of something else, or no image of the
            set.
    """
    source = SOURCES.get(name)
    if source is None:
        raise InputError(
            f"there is no data set {name!r}; choose one of {', '.join(SOURCES)}; one of your own "
            "exists only in the program that adds it (docs/extending.md)."
        )
    definition = definition or next(iter(source.definitions))
    if definition not in source.definitions:
        raise InputError(
            f"{source.title} has no label {definition!r}; choose one of "
            f"{', '.join(source.definitions)}."
        )
    rows = source.read(table, definition)
    if source.locate is not None:
        rows = source.locate(rows, images)
    rows = read_as(rows, columns or {}, table)
    for line, value in enumerate(rows["label"], start=2):
        if value not in _LABELS:
            raise InputError(
                f"{table}, line {line}: the label is neither 0 nor 1; give "
                f"{source.table} as it was downloaded."
            )
    return label_table(
        rows,
        [_LABELS[value] for value in rows["label"]],
        source=table,
        definition=f"{source.title}: {source.definitions[definition]}",
        uid_ends_in_image_id=source.uid_ends_in_image_id,
    )


__all__ = ["SOURCES", "Source", "read_source"]
