from collections.abc import Iterator
from pathlib import Path

import pytest

from mammo_pd.data.labels import LabelTable, read_labels
from mammo_pd.data.record import ImageOrigin, Record, RecordedImage
from mammo_pd.data.store import create_or_match
from mammo_pd.errors import InputError
from mammo_pd.ingest.label_join import LabelChanges, join_labels, refuse_losing_labels


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    """Of a folder with three images and a duplicate, of which the first two have a label."""
    with Record(create_or_match(tmp_path / "s", {})) as record:
        for number, name in enumerate(("a", "b", "c", "d")):
            path = tmp_path / "d" / f"{name}.dcm"
            reason = {"reason": "duplicate_image"} if name == "d" else {}
            image = RecordedImage(ImageOrigin(path), name, {"status": "ok", **reason}, {}, 1)
            record.put(path, (number, 1), [image])
            record.put_labels(path, {"label": [1, 0, None, 1][number]})
        yield record


def table(tmp_path: Path, rows: str) -> LabelTable:
    path = tmp_path / "t.csv"
    path.write_text("path,label\n" + rows)
    return read_labels(path)


@pytest.mark.parametrize(
    ("rows", "removed", "turned"),
    [
        ("a.dcm,1\n", 1, 0),  # a table of a part of the images
        ("a.dcm,1\nb.dcm,\nc.dcm,1\n", 1, 0),
        ("a.dcm,0\nb.dcm,1\n", 0, 2),
        ("a.dcm,0\nc.dcm,0\n", 1, 1),
    ],
)
def test_a_table_that_loses_labels_says_how_many_and_asks(
    tmp_path: Path, record: Record, rows: str, removed: int, turned: int
) -> None:
    folder, labels = tmp_path / "d", table(tmp_path, rows)
    before = [dict(image.labels) for image in record.rows()]
    message = (
        rf"of 2 images with a label, .*t\.csv removes the label of {removed} and reverses it "
        f"for {turned}; .* --replace-labels"
    )
    with pytest.raises(InputError, match=message):
        refuse_losing_labels(labels, folder, record)
    with pytest.raises(InputError, match=message):
        join_labels(labels, folder, record, replace=False)
    assert [dict(image.labels) for image in record.rows()] == before
    _, changes = join_labels(labels, folder, record, replace=True)
    assert changes == LabelChanges(2, removed, turned)
    assert [image.labels.get("label") for image in record.rows()] != [1, 0, None]


@pytest.mark.parametrize("rows", ["a.dcm,1\nb.dcm,0\n", "a.dcm,1\nb.dcm,0\nc.dcm,1\n"])
def test_a_table_that_only_adds_labels_is_not_asked_about(
    tmp_path: Path, record: Record, rows: str
) -> None:
    labels = table(tmp_path, rows)
    refuse_losing_labels(labels, tmp_path / "d", record)
    unmatched, changes = join_labels(labels, tmp_path / "d", record, replace=False)
    assert (unmatched, bool(changes)) == (0, False)


def test_a_table_of_none_of_the_images_is_told_so(tmp_path: Path, record: Record) -> None:
    labels = table(tmp_path, "none.dcm,1\n")
    refuse_losing_labels(labels, tmp_path / "d", record)
    with pytest.raises(InputError, match=r"no row of .*t\.csv names an image"):
        join_labels(labels, tmp_path / "d", record, replace=True)


def test_images_of_another_folder_are_not_asked_about(tmp_path: Path, record: Record) -> None:
    other = tmp_path / "other" / "e.dcm"
    record.put(other, (1, 1), [RecordedImage(ImageOrigin(other), "e", {"status": "ok"}, {}, 1)])
    join_labels(table(tmp_path, "e.dcm,1\n"), other.parent, record, replace=False)
    assert [image.labels.get("label") for image in record.rows()] == [1, 0, None, 1, 1]
