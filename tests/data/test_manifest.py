import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mammo_pd.data.manifest import MANIFEST_SCHEMA, read_manifest, write_manifest
from mammo_pd.errors import InputError

NOTHING = pa.schema([])


def row(number: int, **facts: object) -> dict[str, object]:
    return {"image_id": f"{number:020x}", "status": "ok", **facts}


def test_rows_come_back_sorted_typed_and_with_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "manifest.parquet"
    rows = [row(2, label=1, flipped=True), row(1, site="A"), row(0, status="failed")]
    assert write_manifest(file, iter(rows), pa.schema([("site", pa.string())])) == 3
    manifest = read_manifest(file)
    assert manifest["image_id"].tolist() == [f"{1:020x}", f"{2:020x}"]
    assert manifest["label"].isna().tolist() == [True, False]
    assert manifest["label"].dtype == pd.Int8Dtype()
    assert manifest["site"].dropna().tolist() == ["A"]
    assert len(read_manifest(file, status=None)) == 3
    assert list(manifest.columns) == [*MANIFEST_SCHEMA.names, "site"]


def test_a_column_of_an_older_store_has_its_new_name(tmp_path: Path) -> None:
    file = tmp_path / "manifest.parquet"
    write_manifest(file, [row(1, presentation_intent="FOR PROCESSING")], NOTHING)
    table = pq.read_table(file)
    old = ["processing" if name == "presentation_intent" else name for name in table.column_names]
    pq.write_table(table.rename_columns(old), file)
    manifest = read_manifest(file)
    assert manifest["presentation_intent"].tolist() == ["FOR PROCESSING"]
    assert list(manifest.columns) == MANIFEST_SCHEMA.names


def test_a_label_tables_own_column_processing_stays(tmp_path: Path) -> None:
    file = tmp_path / "manifest.parquet"
    rows = [row(1, presentation_intent="FOR PROCESSING", processing="B")]
    write_manifest(file, rows, pa.schema([("processing", pa.string())]))
    manifest = read_manifest(file)
    assert manifest["processing"].tolist() == ["B"]
    assert manifest["presentation_intent"].tolist() == ["FOR PROCESSING"]


def test_a_generator_that_fails_leaves_the_old_manifest(tmp_path: Path) -> None:
    file = tmp_path / "manifest.parquet"
    write_manifest(file, [row(1)], NOTHING)
    before = file.read_bytes()

    def broken() -> object:
        yield row(2)
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_manifest(file, broken(), NOTHING)  # type: ignore[arg-type]
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_what_is_no_manifest_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "manifest.parquet"
    with pytest.raises(InputError, match=r"there is no manifest.*preprocess DICOM_DIR --out "):
        read_manifest(file)
    file.write_text("no parquet")
    with pytest.raises(InputError, match="is not a manifest"):
        read_manifest(file)


# Rows as full as real ones: about 900 bytes each as JSON. Memory is that over what the imports
# alone took, in MiB.
def test_free_text_of_machines_in_an_older_store_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "manifest.parquet"
    makers = ["Dr. Doe", "HOLOGIC, Inc.", "Dr. Smith", None, "Dr. Doe", "other-0123abcd"]
    write_manifest(
        file,
        (
            row(number, manufacturer=maker, model="Senographe DS")
            for number, maker in enumerate(makers)
        ),
        NOTHING,
    )
    manifest = read_manifest(file)
    read = manifest["manufacturer"]
    assert read.fillna("").tolist() == [
        *("other-1", "Hologic", "other-2", "", "other-1", "other-0123abcd")
    ]
    assert set(manifest["model"]) == {"Senographe DS"}


MEASURE = """
import re, sys
from pathlib import Path
import pyarrow as pa
from mammo_pd.data.manifest import read_manifest, write_manifest

def peak():
    # Not ru_maxrss, which a process takes over from the one that started it.
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

def rows(number):
    for i in range(number):
        yield {
            "image_id": f"{i * 7919 % number:020x}", "patient_id": f"{i // 4:020x}",
            "exam_id": f"{i // 4 + 1:020x}", "laterality": "LR"[i % 2],
            "view": ("CC", "MLO")[i // 2 % 2], "view_modifiers": None, "label": int(i % 50 == 0),
            "status": "ok" if i % 20 else "failed", "reason": None if i % 20 else "decode_failed",
            "detail": None if i % 20 else f"No decoder reads this codestream: sentence {i}.",
            "decoder": "imagecodecs", "transfer_syntax": "1.2.840.10008.1.2.4.70",
            "photometric_interpretation": "MONOCHROME2", "voi_applied": "window:LINEAR",
            "rows": 3328, "columns": 2560, "number_of_frames": 1, "crop_top": i % 100,
            "crop_left": 0, "crop_height": 2500 + i % 97, "crop_width": 1200 + i % 89,
            "flipped": bool(i % 2), "image_side": "left", "laterality_agrees": True,
            "breast_verdict": "ok", "breast_area_fraction": 0.3 + i % 1000 / 5000,
            "breast_solidity": 0.95, "imager_pixel_spacing_row": 0.07,
            "imager_pixel_spacing_column": 0.07, "manufacturer": "Maker", "model": "Model",
            "age": float(40 + i % 40), "presentation_intent": "FOR PRESENTATION",
            "pixel_hash": f"{i * 31:020x}", "fingerprint": "0123456789abcdef",
        }

what, number, file = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
write_manifest(file.with_name("warm.parquet"), rows(10), pa.schema([]))
read_manifest(file.with_name("warm.parquet"))
before = peak()
if what == "write":
    assert write_manifest(file, rows(number), pa.schema([])) == number
else:
    manifest = read_manifest(file, status=None)
    assert len(manifest) == number
    assert manifest["image_id"].is_monotonic_increasing and manifest["image_id"].is_unique
    assert int((manifest["status"] == "failed").sum()) == number // 20
print(peak() - before)
"""


def measure(what: str, number: int, file: Path) -> float:
    command = [sys.executable, "-c", MEASURE, what, str(number), str(file)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(run.stdout)


@pytest.mark.slow
def test_200_000_rows_are_written_and_read_within_bounded_memory(tmp_path: Path) -> None:
    written = {
        number: measure("write", number, tmp_path / f"{number}.parquet")
        for number in (50_000, 200_000)
    }
    # Four times the rows take no more memory to write: a group at a time is held, never the whole.
    assert written[200_000] < 200
    assert written[200_000] < written[50_000] * 1.3 + 20
    read = measure("read", 200_000, tmp_path / "200000.parquet")
    print(f"MiB beside the imports: {written} to write, {read:.0f} to read 200,000 rows")
    assert read < 500


@pytest.mark.parametrize("image_id", ["../../secret", "/etc/secret", "..", ".", "", "a\0b", "..ab"])
def test_a_path_in_place_of_an_images_name_is_refused(tmp_path: Path, image_id: str) -> None:
    file = tmp_path / "manifest.parquet"
    write_manifest(file, [row(1), row(2) | {"image_id": image_id}], NOTHING)
    with pytest.raises(InputError, match=r"leads away from its pixels; .*do not trust the store"):
        read_manifest(file)
