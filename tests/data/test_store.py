import json
import os
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mammo_pd.data.image_file import write_image_file
from mammo_pd.data.store import (
    FORMAT,
    choose_pyramid_level,
    create_or_match,
    find_pyramid_level,
    is_damaged,
    open_store,
    read_pyramid_level,
    read_pyramid_level_into,
    read_store_info,
    take_in,
)
from mammo_pd.errors import InputError

SETTINGS = {"voi": "auto", "algorithm": 1}


def test_store_of_other_settings_is_refused_and_names_them(tmp_path: Path) -> None:
    create_or_match(tmp_path / "s", SETTINGS)
    create_or_match(tmp_path / "s", SETTINGS)
    with pytest.raises(
        InputError, match=r"voi was 'auto', is 'raw': fingerprint \w{16}, now \w{16}"
    ):
        create_or_match(tmp_path / "s", SETTINGS | {"voi": "raw"})
    # In whatever order they come; also one that earlier versions did not have, or that is no more.
    create_or_match(tmp_path / "s", dict(reversed(SETTINGS.items())))
    with pytest.raises(InputError, match=r"\(algorithm was 1, is None; new was None, is 7: finger"):
        create_or_match(tmp_path / "s", {"voi": "auto", "new": 7})


@pytest.mark.parametrize("found", [0, FORMAT + 1, str(FORMAT), None, 1.5])
def test_another_format_is_refused(tmp_path: Path, found: object) -> None:
    paths = create_or_match(tmp_path / "s", SETTINGS)
    paths.info.write_text(json.dumps({**read_store_info(paths), "format": found}))
    with pytest.raises(InputError, match=f"has store format {found}, and this version reads 1 and"):
        read_store_info(paths)


def test_a_path_in_which_no_parquet_can_be_written_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not text in UTF-8.*name another --out"):
        create_or_match(tmp_path / "Gr\udcf6\udcdfe" / "store", SETTINGS)
    assert not [*tmp_path.iterdir()]
    create_or_match(tmp_path / "Größe" / "store", SETTINGS)


def test_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(InputError, match="is not a mammo-pd store"):
        create_or_match(tmp_path, SETTINGS)
    assert list(tmp_path.iterdir()) == [tmp_path / "thesis.txt"]


def test_missing_store_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mammo-pd preprocess DICOM_DIR"):
        open_store(tmp_path / "none")


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        ("nothing", "there is no store at"),
        ("folder", "there is no store at"),
        ("file", "is not a mammo-pd store; name one with --store"),
        ("full folder", "is not a mammo-pd store; name one with --store"),
    ],
)
def test_what_is_in_the_place_of_a_store_is_told(made: str, sentence: str, tmp_path: Path) -> None:
    """The advice to make one there is one that preprocess follows."""
    place = tmp_path / "place"
    if made == "file":
        place.touch()
    elif made != "nothing":
        place.mkdir()
    if made == "full folder":
        (place / "thesis.txt").touch()
    with pytest.raises(InputError, match=sentence):
        open_store(place)
    if "no store" in sentence:
        create_or_match(place, SETTINGS)
        assert open_store(place).root == place
    else:
        with pytest.raises(InputError, match="exists and is not a mammo-pd store"):
            create_or_match(place, SETTINGS)


def test_levels_are_read_back_memory_mapped(tmp_path: Path) -> None:
    paths = create_or_match(tmp_path / "s", SETTINGS)
    native = np.arange(12, dtype=np.uint16).reshape(3, 4)
    paths.partial.mkdir(parents=True)
    write_image_file(paths.partial / "x", {"native": native})
    take_in(paths, paths.partial / "x", "abcd")
    pixels = read_pyramid_level(paths, "abcd", "native")
    assert isinstance(pixels, np.memmap)
    assert np.array_equal(pixels, native)
    with pytest.raises(InputError, match="run the same mammo-pd preprocess again"):
        read_pyramid_level(paths, "abcd", "512")


@pytest.mark.parametrize("compressed", [False, True])
def test_what_is_read_cannot_be_written_to(tmp_path: Path, compressed: bool) -> None:
    paths = create_or_match(tmp_path / "s", SETTINGS)
    paths.image("abcd").parent.mkdir(parents=True)
    native = np.ones((3, 4), np.uint16)
    write_image_file(paths.image("abcd"), {"native": native}, compressed=compressed)
    pixels = read_pyramid_level(paths, "abcd", "native")
    assert np.array_equal(pixels, native)
    with pytest.raises(ValueError, match="read-only"):
        pixels[0, 0] = 2


@pytest.mark.parametrize(
    ("size", "img_size", "level"),
    [
        ((3328, 1700), (1024, 816), "1024"),
        ((3328, 1700), (1040, 832), "2048"),
        ((3328, 1700), (512, 408), "512"),
        ((3328, 1700), (3328, 2656), "native"),
        ((1000, 600), (1024, 816), "native"),
        # A wide image: the canvas's width decides.
        ((1500, 3000), (1024, 816), "1024"),
        ((1500, 3000), (1024, 1040), "2048"),
        # 1024.3 pixels are wanted, of which the level's rounded width of 512 is as many as fit.
        ((3001, 1500), (4000, 512), "1024"),
        # An image has no level of its native size.
        ((1024, 600), (1024, 600), "native"),
    ],
)
def test_level_is_the_smallest_that_is_as_fine_as_the_canvas(
    size: tuple[int, int], img_size: tuple[int, int], level: str
) -> None:
    assert choose_pyramid_level(*size, img_size) == level


def test_a_file_that_took_another_ones_place_within_a_tick_of_the_clock_is_noticed(
    tmp_path: Path,
) -> None:
    paths = create_or_match(tmp_path / "store", {})
    file = paths.image("ab12")
    file.parent.mkdir(parents=True)
    native = np.arange(6, dtype=np.uint16).reshape(2, 3)
    write_image_file(file, {"native": native})
    before = file.stat()
    place = find_pyramid_level(paths, "ab12", "native")
    # A level in front of it, so that it lies elsewhere.
    beside = file.with_name("beside")
    write_image_file(beside, {"4096": native + 9, "native": native})
    os.utime(beside, ns=(before.st_atime_ns, before.st_mtime_ns))
    beside.replace(file)
    out = np.empty(6, np.int16)
    read_pyramid_level_into(paths, "ab12", "native", place, out)
    assert out.tolist() == native.ravel().tolist()


@pytest.mark.parametrize("shape", [(2, 4), (3, 3)])
def test_an_image_that_was_rebuilt_with_another_size_is_refused(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    paths = create_or_match(tmp_path / "store", {})
    file = paths.image("ab12")
    file.parent.mkdir(parents=True)
    write_image_file(file, {"native": np.ones((2, 3), np.uint16)})
    place = find_pyramid_level(paths, "ab12", "native")
    file.unlink()
    write_image_file(file, {"native": np.ones(shape, np.uint16)})
    with pytest.raises(InputError, match="rebuilt with another size while it was in use"):
        read_pyramid_level_into(paths, "ab12", "native", place, np.empty(6, np.int16))


@pytest.mark.parametrize("compressed", [False, True])
def test_no_file_stays_open(tmp_path: Path, compressed: bool) -> None:
    """Thousands of images are read in one process, and some of them cannot be."""
    paths = create_or_match(tmp_path / "store", {})
    for image_id in ("good", "bad!"):
        paths.image(image_id).parent.mkdir(parents=True)
        levels = {"native": np.ones((2, 3), np.uint16)}
        write_image_file(paths.image(image_id), levels, compressed=compressed)
    place = find_pyramid_level(paths, "good", "native")
    os.truncate(paths.image("bad!"), 4096)
    out = np.empty(6, np.int16)
    handles = Path("/proc/self/fd")
    before = sorted(handle.name for handle in handles.iterdir())
    for image_id, level in (("good", "native"), ("good", "512"), ("bad!", "native"), ("no", "512")):
        for read in (
            partial(read_pyramid_level, paths, image_id, level),
            partial(find_pyramid_level, paths, image_id, level),
            partial(read_pyramid_level_into, paths, image_id, level, place, out),
            partial(is_damaged, paths, image_id, {level: 0}),
        ):
            with suppress(InputError):
                read()
    assert sorted(handle.name for handle in handles.iterdir()) == before
