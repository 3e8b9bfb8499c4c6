"""Which files a later ``predict`` reads again."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dicom_files import half_disk, make_dataset, write_dicom

from mammo_pd.data.record import Record
from mammo_pd.data.store import StorePaths
from mammo_pd.imaging.settings import ImagingSettings
from mammo_pd.ingest import new_images
from mammo_pd.ingest.walk import find_images


def test_a_file_is_read_again_if_it_changed_or_its_image_lacks_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    def run(jobs: list[Any], work: Callable[[Any], Any], _: int) -> Iterator[tuple[Any, Any]]:
        names.extend(job.source.name for job in jobs)
        return ((job, work(job)) for job in jobs)

    monkeypatch.setattr(new_images, "run_in_processes", run)
    folder = tmp_path / "in"
    folder.mkdir()
    good = write_dicom(folder / "good.dcm", make_dataset(half_disk(), ImageLaterality="L"))
    spine = write_dicom(folder / "spine.dcm", make_dataset(half_disk(), Modality="MR"))

    def read(lacks: Callable[[str], bool] = lambda _: False) -> list[str]:
        names.clear()
        with Record(StorePaths(tmp_path / "out")) as record:
            files = new_images.read_new_images(
                *(find_images(folder), folder, record, ImagingSettings(), (96, 64)),
                lacks=lacks,
                say=lambda _: None,
            )
            assert sum(map(len, files)) == names.count("good.dcm")
        return names

    assert read() == ["good.dcm", "spine.dcm"]
    assert read() == []
    # Only an image that is scored can lack its picture.
    assert read(lacks=lambda _: True) == ["good.dcm"]
    for file in (good, spine):
        before = file.stat()
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
        assert read() == [file.name]
        # As when a copy keeps the times.
        file.write_bytes(file.read_bytes() + bytes(2))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
        assert read() == [file.name]
        assert read() == []
