"""Stores that keep some levels only, and what is told of their size before anything is decoded."""

import os
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from dicom_files import half_disk, make_dataset, write_dicom
from format_1 import as_format_1
from PIL import Image
from safetensors.numpy import load

from mammo_pd.cli.app import main
from mammo_pd.data.dataset import MammogramDataset
from mammo_pd.data.image_file import write_image_file
from mammo_pd.data.kept_levels import ALL_LEVELS
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.store import open_store, read_pyramid_level, read_store_info
from mammo_pd.errors import InputError
from mammo_pd.ingest import preprocess as stage
from mammo_pd.ingest.preprocess import preprocess
from mammo_pd.ingest.process import Job, Outcome
from mammo_pd.ingest.space import expected_space
from mammo_pd.terms import Compression, Frames

KEY = b"k" * 32


def made(folder: Path, out: Path, levels: tuple[str, ...] | None = None, **more: object) -> list:
    said: list[str] = []
    options = {"workers": 1, "key": KEY, "levels": levels, "say": said.append, **more}
    preprocess(folder, out, **options)  # type: ignore[arg-type]
    return said


def pixels(out: Path) -> dict[str, bytes]:
    """Every file of the store's pixels but what is not in its place yet, in whole."""
    files = [file for file in out.glob("pixels/??/**/*") if file.is_file()]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def levels(out: Path) -> dict[tuple[str, str], bytes]:
    """Every level by image and name, read with the format's own library."""
    return {
        (name, level): pixels.tobytes()
        for name, file in pixels(out).items()
        if name.endswith(".safetensors")
        for level, pixels in load(file).items()
        if not level.startswith("padding.")
    }


def refuse(job: Job) -> list[Outcome]:
    raise AssertionError("decoded")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image of every size: above 2048, above 1024, and below all levels."""
    folder = tmp_path_factory.mktemp("sizes")
    for number, shape in enumerate([(2600, 900), (1300, 500), (400, 300)]):
        dataset = make_dataset(half_disk(shape), SOPInstanceUID=f"1.2.{number}")
        write_dicom(folder / f"{number}.dcm", dataset)
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "s"
    made(folder, out)
    return out


def test_a_store_takes_what_is_asked_of_it_and_the_same_pixels(
    folder: Path, whole: Path, tmp_path: Path
) -> None:
    made(folder, tmp_path / "s", ("1024",))
    some = levels(tmp_path / "s")
    assert sorted(level for _, level in some) == ["1024", "1024", "native"]
    assert some.items() <= levels(whole).items()
    assert len(pixels(whole)) == 3
    # The next run keeps to it, for a new image too.
    assert made(folder, tmp_path / "s")[-1].startswith("3 images in")
    assert levels(tmp_path / "s") == some


def test_a_level_is_added_out_of_a_larger_one_without_decoding(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(folder, tmp_path / "s", ("2048",))
    monkeypatch.setattr(stage, "process_file", refuse)
    said = made(folder, tmp_path / "s", ("1024", "512"))
    assert (
        "2 images get further levels, computed from larger ones, and are not decoded again" in said
    )
    some = levels(tmp_path / "s")
    assert some.items() <= levels(whole).items()
    assert len(some) == 3 + 3 + 1
    assert any("only adds levels" in line for line in made(folder, tmp_path / "s", ("512",)))
    assert levels(tmp_path / "s") == some


def test_only_what_no_level_gives_is_decoded(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, one = tmp_path / "s", tmp_path / "one"
    made(folder, out, ("1024",))
    one.mkdir()
    (one / "a.dcm").symlink_to(folder / "2.dcm")
    summary = preprocess(one, out, levels=("2048",), workers=1, say=lambda _: None)
    # The smallest image has its native pixels already; those of another folder are counted.
    assert (summary.done_before, summary.lacking) == (0, 2)
    said = made(folder, out)
    assert "3 images in" in said[0]
    assert "1 of them done before" in said[0]
    made(folder, out, ALL_LEVELS)
    assert pixels(out) == pixels(whole)


def test_a_larger_level_that_is_damaged_is_not_made_more_of(
    folder: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    made(folder, out, ("native",))
    for file in (out / "pixels").rglob("*.safetensors"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    made(folder, out, ALL_LEVELS)
    damaged = [name for name, content in pixels(out).items() if content != pixels(whole)[name]]
    # Nothing was to be made of the smallest image, so nothing was seen there.
    assert len(damaged) <= 1
    assert pixels(out).keys() == pixels(whole).keys()


def test_training_at_a_size_for_which_levels_are_missing_names_the_command(
    folder: Path, tmp_path: Path
) -> None:
    made(folder, tmp_path / "s", ("1024",))
    paths = open_store(tmp_path / "s")
    rows = read_manifest(paths.manifest)
    assert len(MammogramDataset(paths, rows, (1024, 816)).read([0, 1, 2]).offsets) == 3
    with pytest.raises(InputError, match=r"2048x1640 .* level 2048 of 2 .* keeps 1024 only") as no:
        MammogramDataset(paths, rows, (2048, 1640))
    command = str(no.value).split("mammo-pd ")[1].replace("DICOM_DIR", str(folder))
    assert main(command.split()) == 0
    MammogramDataset(paths, rows, (2048, 1640)).read([0, 1, 2])


def test_a_killed_run_that_added_levels_is_completed(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s"
    made(folder, out, ("native",))
    taken = stage.take_in_levels

    def one_and_no_more(results: Iterator[object]) -> Iterator[object]:
        yield next(results)
        raise KeyboardInterrupt

    monkeypatch.setattr(
        stage, "take_in_levels", lambda results, *more: taken(one_and_no_more(results), *more)
    )
    with pytest.raises(KeyboardInterrupt):
        made(folder, out, ALL_LEVELS)
    monkeypatch.undo()
    assert 3 < len(levels(out)) < len(levels(whole))
    made(folder, out)  # without --levels: what was begun is known
    assert pixels(out) == pixels(whole)


def test_a_store_of_format_1_is_read_and_goes_on(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s"
    made(folder, out, ("2048",))
    paths, now = open_store(out), levels(out)
    data = MammogramDataset(paths, read_manifest(paths.manifest), (2048, 1640))
    before = data.read([0, 1, 2]).pixels
    as_format_1(out)
    old = pixels(out)
    # The same data set, whose files have become others, and one of its own.
    for reads in (data, MammogramDataset(paths, read_manifest(paths.manifest), (2048, 1640))):
        assert torch.equal(reads.read([0, 1, 2]).pixels, before)
    monkeypatch.setattr(stage, "process_file", refuse)
    said = made(folder, out, verify=True)
    assert "--verify: 0 images of the store have damaged or lost levels" in said
    assert (pixels(out), read_store_info(paths)["format"]) == (old, 2)
    # A damaged level is noticed as before, and what is made anew is one file.
    monkeypatch.undo()
    damaged = out / sorted(old)[0]
    damaged.write_bytes(bytes(len(old[sorted(old)[0]])))
    made(folder, out, verify=True)
    assert not damaged.parent.exists()
    assert len(pixels(out)) == 3
    assert len(levels(out)) == 1
    assert levels(out).items() <= now.items()


def test_a_compressed_store_reads_the_same_and_stays_compressed(
    folder: Path, whole: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "s", tmp_path / "other"
    made(folder, out, ("native",), compression=Compression.LZ4)
    # The store knows: a level that is added is compressed, and no image is made anew.
    assert any("further levels" in line for line in made(folder, out, ALL_LEVELS, verify=True))
    made(folder, other, compression=Compression.LZ4)
    assert pixels(out) == pixels(other)
    assert sum(map(len, pixels(out).values())) < 0.7 * sum(map(len, pixels(whole).values()))
    for size in ((3328, 2656), (1024, 816)):
        plain, compressed = (
            MammogramDataset(open_store(store), read_manifest(store / "manifest.parquet"), size)
            for store in (whole, out)
        )
        assert torch.equal(compressed.read([0, 1, 2]).pixels, plain.read([0, 1, 2]).pixels)
    image_id = plain.image_ids[0]
    levels = [read_pyramid_level(open_store(store), image_id, "512") for store in (whole, out)]
    assert np.array_equal(*levels)
    with pytest.raises(ValueError, match="read-only"):
        levels[1][:] = 0
    # One that is damaged is made anew; what changes the rule changes no image.
    damaged = open_store(out).image(image_id)
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    said = made(folder, out, verify=True)
    assert "--verify: 1 image of the store has damaged or lost levels" in said
    assert pixels(out) == pixels(other)
    said = made(folder, out, compression=Compression.NONE)
    assert any("those already in the store stay as they are" in line for line in said)
    assert pixels(out) == pixels(other)


@pytest.mark.parametrize("is_killed", [False, True])
def test_levels_that_are_added_turn_a_folder_of_format_1_into_one_file(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_killed: bool
) -> None:
    out = tmp_path / "s"
    made(folder, out, ("native",))
    as_format_1(out)
    if is_killed:  # when the file is in its place, and the folder not yet removed

        def killed(folder: Path, **_: object) -> None:
            if folder.name != ".partial":
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(shutil, "rmtree", killed)
            made(folder, out, ALL_LEVELS)
        assert len(list(out.glob("pixels/??/*"))) == 4
    made(folder, out, ALL_LEVELS)
    small = next(name for name in pixels(out) if name.endswith(".npy"))
    assert {Path(small).parent.name} == {Path(n).stem for n in pixels(whole).keys() - pixels(out)}
    made(folder, out, verify=True)
    shutil.rmtree((out / small).parent)
    made(folder, out)
    assert pixels(out) == pixels(whole)


def test_a_training_reads_on_while_levels_are_added(
    folder: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    made(folder, out, ("native", "512"))
    paths = open_store(out)
    data = MammogramDataset(paths, read_manifest(paths.manifest), (512, 408))
    before = data.read([0, 1, 2]).pixels
    made(folder, out, ALL_LEVELS)
    assert torch.equal(data.read([0, 1, 2]).pixels, before)
    write_image_file(paths.image(data.image_ids[0]), {"512": np.ones((512, 3), np.uint16)})
    with pytest.raises(InputError, match="it was rebuilt with another size while"):
        data.read([0])


def test_the_expected_size_is_told_and_a_full_disk_foreseen(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(folder.iterdir())
    space = expected_space(files, Frames.EXCLUDE, ALL_LEVELS)
    taken = sum(map(len, pixels(whole).values()))
    assert 0.5 * taken < space.likely < 1.5 * taken
    assert space.likely < space.most
    assert taken < space.most
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(space.likely - 1))
    with (
        monkeypatch.context() as patch,
        pytest.raises(InputError, match=r"MB free; free some space,"),
    ):
        patch.setattr(stage, "process_file", refuse)
        made(folder, tmp_path / "s")
    # What the error advises works, and takes the levels that are named then.
    said = made(folder, tmp_path / "s", ("1024",))
    assert any(line.startswith("expected size of the pixels: about ") for line in said)
    assert len(pixels(tmp_path / "s")) == 3
    with pytest.raises(InputError, match="keep fewer levels"):
        made(folder, tmp_path / "t", ALL_LEVELS)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(space.most - 1))
    assert any("warning: the disk has" in line for line in made(folder, tmp_path / "t"))


def test_no_value_of_a_header_is_quoted_in_a_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    scan = make_dataset(np.zeros((10, 10), np.uint16), NumberOfFrames=12)
    scan.SpecificCharacterSet = "ISO_IR 100"
    written = write_dicom(tmp_path / "a.dcm", scan).read_bytes()
    for true, false in ((b"IS\x02\x0012", b"IS\x02\x001A"), (b"ISO_IR 100", b"HER_NAME_1")):
        assert true in written
        written = written.replace(true, false)
    (tmp_path / "a.dcm").write_bytes(written)
    recwarn.clear()
    assert expected_space([tmp_path / "a.dcm"], Frames.EXCLUDE, ALL_LEVELS).most == 0
    assert [str(warning.message) for warning in recwarn] == []


def test_no_file_however_odd_keeps_the_size_from_being_told(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(os.urandom(500))
    (tmp_path / "b.dcm").touch()
    (tmp_path / "c.png").write_text("no image")
    assert expected_space(sorted(tmp_path.iterdir()), Frames.EXCLUDE, ALL_LEVELS).most == 0
    Image.fromarray(np.zeros((30, 20), np.uint16)).save(tmp_path / "d.png")
    one = expected_space([tmp_path / "d.png"], Frames.EXCLUDE, ALL_LEVELS)
    assert (one.likely, one.most) == (30 * 12 * 2, 30 * 20 * 2)
    scan = make_dataset(np.zeros((10, 10), np.uint16), NumberOfFrames=7)
    write_dicom(tmp_path / "e.dcm", scan)
    taken = {
        frames: expected_space([tmp_path / "e.dcm"], frames, ALL_LEVELS).most for frames in Frames
    }
    assert taken == {"exclude": 0, "middle": 200, "mip": 200, "each": 1400}
