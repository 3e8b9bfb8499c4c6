import os
import socket
from contextlib import closing
from pathlib import Path

import pytest
from dicom_files import half_disk, make_dataset, write_dicom

from mammo_pd.errors import InputError
from mammo_pd.ingest.walk import PassedOver, find_images, why_no_image


@pytest.mark.parametrize("name", ["a.dcm", "A.DCM", "b.dicom", "c.IMA", "d.png", "e.TIFF", "f.pgm"])
def test_by_ending(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    assert why_no_image(tmp_path / name) is None


@pytest.mark.parametrize("name", ["IM0001", "1.2.840.1", "IM.001", "x.bak"])
def test_by_content(tmp_path, name):
    assert why_no_image(write_dicom(tmp_path / name, make_dataset(half_disk()))) is None


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("name", ["IM0001", "1.2.840.1"])
def test_a_dataset_without_preamble_by_content(tmp_path, name, implicit):
    dataset = make_dataset(half_disk())
    del dataset.file_meta
    dataset.save_as(tmp_path / name, implicit_vr=implicit, little_endian=True)
    assert why_no_image(tmp_path / name) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("labels.csv", PassedOver.OTHER),
        ("README", PassedOver.NO_ENDING),
        ("1.2.840.7", PassedOver.NO_ENDING),
        (".hidden.dcm", PassedOver.HIDDEN),
        ("DICOMDIR", PassedOver.INDEX),
    ],
)
def test_what_is_no_image(tmp_path, name, reason):
    (tmp_path / name).write_bytes(b"x" * 200)
    assert why_no_image(tmp_path / name) is reason


def test_what_cannot_be_opened_is_told_apart(tmp_path):
    assert why_no_image(tmp_path / "absent") is PassedOver.UNREADABLE
    # By its name an image: the worker records why it cannot be read.
    assert why_no_image(tmp_path / "absent.dcm") is None


@pytest.mark.parametrize("name", ["a.dcm", "a", "a.png"])
def test_pipes_devices_sockets_and_links_to_them_are_no_files(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)  # a socket's path may be 107 bytes long
    for kind in ("pipe", "device", "socket", "link"):
        Path(kind).mkdir()
    os.mkfifo(Path("pipe", name))
    Path("device", name).symlink_to("/dev/zero")
    with closing(socket.socket(socket.AF_UNIX)) as opened:
        opened.bind(f"socket/{name}")
    Path("link", name).symlink_to(tmp_path / "pipe" / name)
    with pytest.raises(InputError, match=r"\(4 no file but a pipe, socket or device\)"):
        find_images(tmp_path)


def test_linked_folders_are_read_once_and_loops_cut(tmp_path):
    folder, outside = tmp_path / "d", tmp_path / "outside"
    for file in (folder / "a" / "1.dcm", outside / "deep" / "2.dcm", tmp_path / "3.dcm"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    for link, target in (
        (folder / "b", outside),
        (folder / "c", outside),  # the same once more
        (folder / "d", outside / "deep"),  # a part of it
        (folder / "e", folder / "a"),  # read anyway
        (folder / "a" / "up", tmp_path),  # a folder around this one
        (outside / "back", folder),
        (outside / "self", outside),
    ):
        link.symlink_to(target)
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    found = find_images(folder)
    assert found.images == [folder / "a" / "1.dcm", folder / "b" / "deep" / "2.dcm"]
    assert found.repeated_folders == 6
    assert found.passed_over == {PassedOver.UNREADABLE: 1}


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    for name in ("notes.txt", "IM1", "IM2"):
        (tmp_path / name).write_text("nothing")
    with pytest.raises(InputError, match=r"among 3 files \(2 without an ending .*, 1 of another"):
        find_images(tmp_path)
