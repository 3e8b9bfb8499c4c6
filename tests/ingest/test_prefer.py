"""``preprocess --prefer``: one kind of image for each view, whichever order files come in."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from dicom_files import half_disk, make_dataset, write_dicom
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from mammo_pd.data.labels import read_labels
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.record import Record
from mammo_pd.data.store import StorePaths
from mammo_pd.ingest import preprocess as module
from mammo_pd.terms import Prefer, Reason, Status

SYNTHETIC = ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "GENERATED_2D"]
EXPOSURE = ["ORIGINAL", "PRIMARY", ""]
KEY = bytes(32)


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(jobs: list[Any], work: Callable[[Any], Any], _: int) -> Iterator[tuple[Any, Any]]:
        return ((job, work(job)) for job in jobs)

    monkeypatch.setattr(module, "run_in_processes", run)


def write(path: Path, number: int, **tags: Any) -> None:
    pixels = half_disk()
    pixels[:, :9] += number  # no two are copies
    tags = {
        "SOPInstanceUID": f"1.9.{number}",
        "StudyInstanceUID": "1.1",
        "ImageLaterality": "L",
        "ViewPosition": "CC",
        "ImageType": EXPOSURE,
        **tags,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_dicom(path, make_dataset(pixels, **tags))


def run(folder: Path, out: Path, prefer: Prefer | None = None, **options: Any) -> Any:
    return module.preprocess(folder, out, prefer=prefer, key=KEY, say=lambda _: None, **options)


def taken(out: Path) -> dict[str, bool]:
    """By image_id whether it is taken, which depends on UIDs and the key alone."""
    rows = read_manifest(out / "manifest.parquet", status=None)
    left = rows.loc[rows["status"] != Status.OK]
    assert set(left["reason"]) <= {Reason.NOT_PREFERRED}
    return dict(zip(rows["image_id"], rows["status"] == Status.OK, strict=True))


def kinds(out: Path) -> pd.Series:
    return read_manifest(out / "manifest.parquet")["image_kind"].value_counts()


def test_neither_order_nor_folders_nor_runs_matter(tmp_path: Path) -> None:
    """The two images of a view, by every order of names, in one run and in two."""
    tags = ({"ImageType": EXPOSURE}, {"ImageType": SYNTHETIC})
    outcomes = []
    for number, order in enumerate(itertools.permutations((0, 1))):
        folder, out = tmp_path / f"one{number}", tmp_path / f"store{number}"
        for name, which in enumerate(order):
            write(folder / f"{name}.dcm", which, **tags[which])
        run(folder, out, Prefer.FFDM)
        outcomes.append(taken(out))
        out = tmp_path / f"two{number}"
        for which in order:
            write(tmp_path / f"{number}{which}" / "a.dcm", which, **tags[which])
            run(tmp_path / f"{number}{which}", out, Prefer.FFDM)
        outcomes.append(taken(out))
        assert kinds(out).to_dict() == {"ffdm": 1}
    assert all(outcome == outcomes[0] for outcome in outcomes)
    assert sorted(outcomes[0].values()) == [False, True]


def test_what_is_one_view_and_what_is_not(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "store"
    spot = Dataset()
    spot.CodeValue, spot.CodingSchemeDesignator = codes.cid4015.SpotCompression.value, "SCT"
    spot.CodeMeaning = "spot compression"
    write(folder / "a.dcm", 1)
    write(folder / "b.dcm", 2)  # a repeated exposure
    write(folder / "c.dcm", 3, ImageType=SYNTHETIC)  # the only one that is left out
    write(folder / "d.dcm", 4, ImageType=SYNTHETIC, ViewModifierCodeSequence=[spot])
    write(folder / "e.dcm", 5, ImageType=SYNTHETIC, ViewPosition="MLO")
    write(folder / "f.dcm", 6, ImageType=SYNTHETIC, StudyInstanceUID="1.2")
    write(folder / "g.dcm", 7, ImageType=SYNTHETIC, ImageLaterality=None)
    write(folder / "h.dcm", 8, SeriesDescription="L CC C-View")  # free text decides nothing
    summary = run(folder, out, Prefer.FFDM)
    assert sorted(taken(out).values()) == [False] + [True] * 7
    assert (summary.ok, summary.by_status["excluded", "not_preferred"]) == (7, 1)
    assert summary.repeated_views == 1
    assert summary.views_of_both == 1
    run(folder, out, Prefer.SYNTHETIC)
    assert kinds(out).to_dict() == {"synthetic": 5}
    # Several of the other kind stay, too, where there is none that is preferred.
    write(folder / "i.dcm", 9, ImageType=SYNTHETIC, ViewPosition="MLO")
    assert run(folder, out, Prefer.FFDM).repeated_views == 2


def test_only_an_image_that_can_be_used_takes_the_place_of_another(tmp_path: Path) -> None:
    """A copy that was left out is of no use to the view that it names."""
    folder, out = tmp_path / "in", tmp_path / "store"
    write(folder / "a.dcm", 1)
    write(folder / "b.dcm", 1, SOPInstanceUID="1.9.2", StudyInstanceUID="1.2")  # the same pixels
    write(folder / "c.dcm", 3, StudyInstanceUID="1.2", ImageType=SYNTHETIC)
    summary = run(folder, out, Prefer.FFDM)
    assert summary.by_status == {("ok", ""): 2, ("excluded", "duplicate_image"): 1}
    assert kinds(out).to_dict() == {"ffdm": 1, "synthetic": 1}


def test_choice_is_kept_can_be_changed_and_decodes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "in", tmp_path / "store"
    write(folder / "a.dcm", 1)
    write(folder / "b.dcm", 2, ImageType=SYNTHETIC)
    table = tmp_path / "labels.csv"
    table.write_text("sop_instance_uid,label\n1.9.2,1\n")
    run(folder, out)
    assert all(taken(out).values())

    def never(_: Any) -> Any:
        raise AssertionError("a file was decoded again")

    monkeypatch.setattr(module, "process_file", never)
    first = run(folder, out, Prefer.FFDM, labels=read_labels(table))
    # The label was on the image that is left out.
    assert (first.only_label, first.labelled) == (1, 0)
    assert kinds(out).to_dict() == {"ffdm": 1}
    run(folder, out)  # remembers it
    assert kinds(out).to_dict() == {"ffdm": 1}
    second = run(folder, out, Prefer.SYNTHETIC)
    assert (second.only_label, second.labelled) == (0, 1)
    assert kinds(out).to_dict() == {"synthetic": 1}
    run(folder, out, Prefer.BOTH)
    assert all(taken(out).values())


def test_store_of_an_earlier_version_learns_the_kinds_from_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "in", tmp_path / "store"
    write(folder / "a.dcm", 1)
    write(folder / "b.dcm", 2, ImageType=SYNTHETIC)
    run(folder, out)
    with Record(StorePaths(out)) as record:
        record._database.execute("UPDATE images SET facts = json_remove(facts, '$.image_kind')")
    monkeypatch.setattr(module, "process_file", None)
    summary = run(folder, out, Prefer.SYNTHETIC)
    assert (summary.ok, summary.unknown_kind) == (1, 0)
    assert kinds(out).to_dict() == {"synthetic": 1}


def test_manifest_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "store"
    write(folder / "a.dcm", 1)
    run(folder, out)
    file = out / "manifest.parquet"
    pd.read_parquet(file).drop(columns="image_kind").to_parquet(file)
    assert read_manifest(file)["image_kind"].isna().all()
