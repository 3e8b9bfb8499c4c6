from pathlib import Path

import pytest

from mammo_pd.data.manifest_row import manifest_row
from mammo_pd.data.record import Hasher, ImageOrigin, RecordedImage


@pytest.mark.parametrize(
    ("tag", "table", "written"),
    [(61.0, None, 61.0), (89.0, None, 89.0), (93.0, None, 90.0), (61.0, 104.0, 90.0)],
)
def test_ages_above_89_are_one_class(tag: float, table: float | None, written: float) -> None:
    origin = ImageOrigin(Path("a.dcm"))
    image = RecordedImage(origin, "i", {"status": "ok", "age": tag}, {}, 0, {"age": table})
    assert manifest_row(image, Hasher(b"k" * 32))["age"] == written


def row_of(
    *,
    identifiers: dict[str, str] | None = None,
    columns: dict[str, object] | None = None,
    labels: dict[str, object] | None = None,
    key: bytes = b"k" * 32,
) -> dict[str, object]:
    origin = ImageOrigin(Path("a.dcm"))
    given = {"status": "ok", **(columns or {})}
    image = RecordedImage(origin, "i", given, identifiers or {}, 0, labels or {})
    return manifest_row(image, Hasher(key))


def test_machines_are_named_from_a_table_and_others_hashed_with_the_stores_key() -> None:
    known = {"manufacturer": "HOLOGIC, Inc.", "model": "Selenia Dimensions for Dr. Doe"}
    row = row_of(identifiers=known, columns={"manufacturer": "Hologic", "model": "other"})
    assert (row["manufacturer"], row["model"]) == ("Hologic", "Selenia Dimensions")
    # As stores of earlier versions have it recorded.
    assert row_of(columns=known) | {"status": ""} == row | {"status": ""}
    unknown = {"manufacturer": "Dr. Doe's garage", "model": "7"}
    row = row_of(identifiers=unknown)
    assert str(row["manufacturer"]).startswith("other-")
    assert row == row_of(identifiers={**unknown, "manufacturer": "DR DOE'S GARAGE"})
    other_key = row_of(identifiers=unknown, key=b"l" * 32)
    assert row["manufacturer"] != other_key["manufacturer"]
    assert row_of()["manufacturer"] is None


def test_machines_of_a_label_table_go_the_same_way_and_fill_in_what_a_file_lacks() -> None:
    further = {
        "vendor": "GE HEALTHCARE",
        "Scanner": "Dr. Doe",
        "machine_id": "SN 4711",
        "site": "x",
    }
    row = row_of(labels={"model": "Senographe Pristina", "further": further})
    assert (row["model"], row["vendor"], row["site"]) == ("Senographe Pristina", "GE", "x")
    assert all(str(row[name]).startswith("other-") for name in ("Scanner", "machine_id"))
    row = row_of(identifiers={"model": "L30"}, labels={"model": "Senographe Pristina"})
    assert row["model"] == "MicroDose L30"
    # As stores of earlier versions have it recorded.
    assert row_of(labels={"further": {"machine_id": 29.0}})["machine_id"] == "29"


@pytest.mark.parametrize(
    ("given", "written"),
    [("CC", "CC"), ("mlo", "MLO"), ("XCC-L", "XCCL"), ("of Jane Doe", "other")],
)
def test_view_of_a_label_table_is_a_code(given: str, written: str) -> None:
    assert row_of(labels={"view": given})["view"] == written
