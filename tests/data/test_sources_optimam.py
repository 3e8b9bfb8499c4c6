import json
from pathlib import Path
from typing import Any

import pytest

from mammo_pd.data.sources import read_source
from mammo_pd.errors import InputError


def client(
    data: Path, name: str, episodes: dict[str, Any], studies: dict[str, tuple[str, dict[str, str]]]
) -> None:
    """Write a woman's files; a study is its episode and the side of each of its images."""
    folder = data / name
    folder.mkdir(parents=True)
    (folder / f"nbss_{name}.json").write_text(json.dumps({"ClientID": name, **episodes}))
    listed = {}
    for study, (episode, images) in studies.items():
        listed[study] = {
            "StudyDate": "20120101",
            "EpisodeID": episode,
            f"{study}.9": dict.fromkeys(images),
        }
        (folder / study).mkdir()
        for image, side in images.items():
            header = {"00185101": {"vr": "CS", "Value": ["CC"]}, "00101010": {"Value": ["062Y"]}}
            if side:
                header["00200062"] = {"vr": "CS", "Value": [side]}
            (folder / study / f"{image}.json").write_text(json.dumps(header))
    (folder / f"imagedb_{name}.json").write_text(json.dumps({"Site": "adde", "STUDIES": listed}))


def episode(closed: str = "Y", kind: str = "R", **events: dict[str, str]) -> dict[str, Any]:
    return {"EpisodeIsClosed": closed, "EpisodeType": kind, **events}


def labels_of(folder: Path) -> dict[str, int | None]:
    labels = read_source("optimam", folder, folder)
    found = {}
    for path in sorted(folder.rglob("*.json")):
        if path.stem.startswith("1."):
            # The DICOM file of the same name elsewhere, found by its SOP Instance UID.
            row = labels.find(Path("images") / f"{path.stem}.dcm", path.stem)
            found[path.stem] = None if row is None else labels.rows[row]["label"]
    return found


def test_a_breast_is_positive_in_the_episode_that_proved_it(tmp_path: Path) -> None:
    client(
        tmp_path / "data",
        "optm1",
        {
            "1": episode(),
            "2": episode(SURGERY={"left_opinion": "OM", "right_opinion": ""}),
            "3": episode(closed="N"),
        },
        {
            "1.1": ("1", {"1.1.1": "L", "1.1.2": "R"}),
            "1.2": ("2", {"1.2.1": "L", "1.2.2": "R", "1.2.3": ""}),
            "1.3": ("3", {"1.3.1": "R"}),
            "1.4": ("", {"1.4.1": "R"}),
        },
    )
    client(
        tmp_path / "data",
        "demd2",
        {"1": episode(BIOPSYWIDE={"right_opinion": "OB"}, ASSESSMENT={"left_opinion": "OM"})},
        {"1.5": ("1", {"1.5.1": "L", "1.5.2": "R"})},
    )
    # An interval cancer, and nothing says in which breast.
    client(
        tmp_path / "data",
        "optm3",
        {"1": episode(), "2": episode(kind="CI")},
        {"1.6": ("1", {"1.6.1": "L", "1.6.2": "R"})},
    )
    expected = {
        # Her left breast's cancer may have been there at the earlier screening, or not.
        **{"1.1.1": None, "1.1.2": 0},
        **{"1.2.1": 1, "1.2.2": 0, "1.2.3": None},
        **{"1.3.1": None, "1.4.1": None},
        # What the assessment suspected, the biopsy did not confirm.
        **{"1.5.1": 0, "1.5.2": 0},
        **{"1.6.1": None, "1.6.2": None},
    }
    assert labels_of(tmp_path) == expected
    assert labels_of(tmp_path / "data") == expected
    row = read_source("optimam", tmp_path, tmp_path).rows[0]
    assert (row["patient_id"], row["exam_id"], row["age"]) == ("demd2", "1.5", 62.0)


def test_what_is_no_optimam_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="holds no study of a woman"):
        read_source("optimam", tmp_path, tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        read_source("optimam", tmp_path / "absent", tmp_path)
    client(tmp_path, "optm1", {"1": episode()}, {"1.1": ("1", {"1.1.1": "L"})})
    (tmp_path / "optm1" / "nbss_optm1.json").write_text("{")
    client(tmp_path, "optm0", {}, {})
    with pytest.raises(InputError, match=r"nbss_….json of folder 2 of 2 .* as JSON") as refused:
        read_source("optimam", tmp_path, tmp_path)
    assert "optm1" not in str(refused.value)
