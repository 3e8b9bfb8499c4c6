from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalMammographyXRayImageStorageForPresentation, ExplicitVRLittleEndian

from mammo_pd.data.sources import read_source
from mammo_pd.errors import InputError

HEADER = "ID1,LeftRight,Age,number,abnormality,classification,subtype\n"


def table(folder: Path, rows: str) -> Path:
    path = folder / "CMMD_clinicaldata_revision.csv"
    path.write_text(HEADER + rows)
    return path


def image(path: Path, woman: str, side: str) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.PatientID = woman
    if side:
        dataset.ImageLaterality = side
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path.resolve()


def test_a_row_of_a_breast_becomes_a_row_of_each_of_its_images(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "D1-0001,R,44,2,calcification,Benign,\n"
        "D1-0001,L,44,2,mass,Malignant,\n"
        "D2-0001, L ,64,2,Calcification,malignant,Luminal B\n"
        "D2-0002,R,50,2,both,Malignant,\n",
    )
    images = tmp_path / "CMMD"
    files = [
        image(images / "D1-0001" / "1-1.dcm", "D1-0001", "R"),
        image(images / "D1-0001" / "1-2.dcm", "D1-0001", "R"),
        image(images / "D1-0001" / "1-3.dcm", "D1-0001", "L"),
        # The other breast has images and no row: unlabelled, not negative.
        image(images / "D2-0001" / "1-1.dcm", "D2-0001", "R"),
        image(images / "D2-0001" / "1-2.dcm", "D2-0001", "L"),
        image(images / "D2-0001" / "1-3.dcm", "D2-0001", ""),
    ]
    (images / "broken.dcm").write_bytes(b"no DICOM")
    (images / "LICENSE.txt").write_text("CC BY")
    labels = read_source("cmmd", path, images)
    found = [labels.find(file) for file in files]
    assert [None if row is None else labels.rows[row]["label"] for row in found] == [
        0,
        0,
        1,
        None,
        1,
        None,
    ]
    assert found[3] is None
    assert found[5] is None
    # A breast without images is left as a row that matches none.
    assert len(labels.rows) == 5
    row = labels.rows[found[4]]
    assert (row["patient_id"], row["laterality"], row["age"]) == ("D2-0001", "L", 64.0)
    assert row["further"] == {
        "lesion_type": "calcification",
        "subtype": "Luminal B",
        "cohort": "D2",
    }


def test_what_cannot_be_joined_is_refused(tmp_path: Path) -> None:
    images = tmp_path / "images"
    image(images / "1-1.dcm", "D9-0001", "L")
    with pytest.raises(InputError, match="has a Patient ID"):
        read_source("cmmd", table(tmp_path, "D1-0001,R,44,2,mass,Benign,\n"), images)
    twice = "D1-0001,R,44,2,mass,Benign,\nD1-0001,r,44,2,mass,Malignant,\n"
    with pytest.raises(InputError, match="1 row repeats a woman and side, the first is row 3"):
        read_source("cmmd", table(tmp_path, twice), images)
    with pytest.raises(InputError, match="row 2: the classification is neither"):
        read_source("cmmd", table(tmp_path, "D1-0001,R,44,2,mass,Normal,\n"), images)


def test_no_value_of_a_header_is_quoted_in_a_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    file = image(tmp_path / "i" / "a.dcm", "D1-0001", "R")
    dataset = dcmread(file)
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.save_as(file)
    file.write_bytes(file.read_bytes().replace(b"ISO_IR 100", b"HER_NAME_1"))
    recwarn.clear()
    read_source("cmmd", table(tmp_path, "D1-0001,R,44,2,mass,Benign,\n"), tmp_path / "i")
    assert [str(warning.message) for warning in recwarn] == []
