import pytest
from dicom_files import half_disk, make_dataset, write_dicom

from mammo_pd.ingest.walk import looks_like_image


@pytest.mark.parametrize("name", ["a.dcm", "A.DCM", "b.dicom", "c.IMA", "d.png", "e.TIFF", "f.pgm"])
def test_by_ending(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    assert looks_like_image(tmp_path / name)


def test_by_content(tmp_path):
    assert looks_like_image(write_dicom(tmp_path / "IM0001", make_dataset(half_disk())))
    assert looks_like_image(write_dicom(tmp_path / "1.2.840.1", make_dataset(half_disk())))


@pytest.mark.parametrize("name", ["labels.csv", "README", ".hidden.dcm"])
def test_what_is_no_image(tmp_path, name):
    (tmp_path / name).write_bytes(b"x" * 200)
    assert not looks_like_image(tmp_path / name)


def test_an_index_of_images_is_none(tmp_path):
    path = write_dicom(tmp_path / "x", make_dataset(half_disk())).rename(tmp_path / "DICOMDIR")
    assert not looks_like_image(path)
    assert not looks_like_image(tmp_path / "absent")
