"""OPTIMAM (OMI-DB, Royal Surrey): a folder of JSON files for each woman, and no table.

- Licence: on application to the OPTIMAM steering committee (medphys.royalsurrey.nhs.uk/omidb).
- Counts: a site gets a part of the database; none stated in a source that we could read. We had
  no files.
- Label, for a breast in an episode: ``cancer``, where surgery or a biopsy judged it malignant
  (SURGERY, BIOPSYWIDE or BIOPSYFINE with the side's opinion OM). No label for that breast in her
  other episodes, for either breast of a woman with an interval cancer whose breast nothing names,
  in episodes that are not closed, and for images whose side no header gives. All other breasts of
  closed episodes are negative.
- Known faults: an episode of NBSS and a study of IMAGEDB are linked by the study's EpisodeID; a
  study without one has no label. Images of the assessment (magnifications, biopsies) are in the
  same episode as the screening images, and so are surgical specimens. A negative episode is not
  followed up here: an interval cancer that the database does not know of is a false negative.
- Format: ``data/optm1/nbss_optm1.json``, ``data/optm1/imagedb_optm1.json``,
  ``data/optm1/STUDY/IMAGE.json`` (the header as DICOM JSON), where IMAGE is the SOP Instance UID
  and the name of ``images/optm1/STUDY/IMAGE.dcm``: as the package omidb, the database's own, has
  it (docs/source/structure.rst, client_parser.py and episode.py). Halling-Brown et al., Radiology:
  Artificial Intelligence 3:e200103 (2021), describes the database.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mammo_pd.data.sources.source import Source
from mammo_pd.errors import InputError, cause_of
from mammo_pd.files import load_json

_TABLE = "OPTIMAM's folder data, with a folder such as optm1 for each woman"
_CLIENT = re.compile(r"(optm|demd)\d+")
_UID = re.compile(r"[\d.]+")
# Procedures whose opinion is a diagnosis.
_PROVEN_BY = ("SURGERY", "BIOPSYWIDE", "BIOPSYFINE")
_OPINIONS = {"L": "left_opinion", "R": "right_opinion"}
# The database holds codes, and in some versions their names.
_MALIGNANT, _INTERVAL = ("OM", "Malignant"), ("CI", "Interval case")
_LATERALITY = ("00200062", "00200060")
_VIEW, _AGE = "00185101", "00101010"


def read(table: Path, definition: str) -> pd.DataFrame:
    """Read all women's files into one label row per image, matched by ``sop_instance_uid``.

    Args:
        table: the folder ``data``, or the one that holds it.
        definition: ``cancer``, the only one.

    Raises:
        InputError: no woman's folder, or a file that is no JSON.
    """
    if not table.is_dir():
        raise InputError(f"{table} is not a folder; give {_TABLE}.")
    data = table / "data" if (table / "data").is_dir() else table
    clients = sorted(one for one in data.iterdir() if one.is_dir() and _CLIENT.fullmatch(one.name))
    rows = [
        row
        for place, client in enumerate(clients, start=1)
        for row in _images_of(client, f"folder {place} of {len(clients)} (by name) in {data}")
    ]
    if not rows:
        raise InputError(f"{table} holds no study of a woman; give {_TABLE}.")
    return pd.DataFrame(rows, dtype=str)


def _images_of(client: Path, called: str) -> Iterator[dict[str, str]]:
    nbss = _read_json(client, "nbss", called)
    cancers = {
        (episode, side)
        for episode, events in nbss.items()
        if isinstance(events, dict)
        for side, opinion in _OPINIONS.items()
        if any(_found(events, event, opinion) in _MALIGNANT for event in _PROVEN_BY)
    }
    intervals = {
        episode
        for episode, events in nbss.items()
        if isinstance(events, dict) and events.get("EpisodeType") in _INTERVAL
    }
    # An interval cancer that no procedure names lies in either breast.
    unplaced = intervals - {episode for episode, _ in cancers}
    studies = _read_json(client, "imagedb", called).get("STUDIES")
    for study, content in (studies if isinstance(studies, dict) else {}).items():
        if not _UID.fullmatch(study) or not isinstance(content, dict):
            continue
        episode = str(content.get("EpisodeID") or "")
        events = nbss.get(episode)
        events = events if isinstance(events, dict) else {}
        closed = events.get("EpisodeIsClosed") == "Y"
        for image in _image_uids(content):
            header = _header(client / study, image)
            side = next((text for tag in _LATERALITY if (text := _text(header, tag))), "")
            label = ""
            if side in _OPINIONS and closed:
                if (episode, side) in cancers:
                    label = "1"
                elif not unplaced and side not in {breast for _, breast in cancers}:
                    label = "0"
            yield {
                "sop_instance_uid": image,
                "patient_id": client.name,
                "exam_id": study,
                "laterality": side,
                "view": _text(header, _VIEW),
                "label": label,
                "age": _years(_text(header, _AGE)),
                "episode_type": str(events.get("EpisodeType") or ""),
            }


def _image_uids(study: Mapping[str, Any]) -> Iterator[str]:
    for series, images in study.items():
        if _UID.fullmatch(series) and isinstance(images, dict):
            yield from (image for image in images if _UID.fullmatch(image))


def _found(events: Mapping[str, Any], event: str, key: str) -> Any:
    content = events.get(event)
    return content.get(key) if isinstance(content, dict) else None


def _header(folder: Path, image: str) -> dict[str, Any]:
    """The image's header as DICOM JSON; empty where there is none, or it is damaged."""
    # Both endings are in use.
    for name in (f"{image}.json", f"{image}.dcm.json"):
        try:
            header = load_json((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return header if isinstance(header, dict) else {}
    return {}


def _text(header: Mapping[str, Any], tag: str) -> str:
    element = header.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return str(values[0]).strip() if isinstance(values, list) and values else ""


def _years(age: str) -> str:
    """Years of an Age String such as 062Y."""
    found = re.fullmatch(r"0*(\d{1,3})Y?", age)
    return found[1] if found else ""


def _read_json(client: Path, kind: str, called: str) -> dict[str, Any]:
    for name in (f"{kind}_{client.name}.json", f"{kind.upper()}_{client.name}.json"):
        path = client / name
        if not path.is_file():
            continue
        try:
            content = load_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"the file {kind}_….json of {called} cannot be read as JSON ({cause_of(error)}); "
                "fetch it again, or take that folder out."
            ) from error
        return content if isinstance(content, dict) else {}
    return {}


SOURCE = Source(
    name="optimam",
    title="OPTIMAM",
    table=_TABLE,
    licence="on application to the OPTIMAM steering committee",
    reference="Halling-Brown et al., Radiology: Artificial Intelligence 3:e200103 (2021)",
    definitions={
        "cancer": "positive where surgery or a biopsy found this breast malignant in the image's "
        "episode; no label for that breast in other episodes"
    },
    read=read,
)
