import json
import os
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from mammo_pd.data.image_file import (
    find_levels,
    has_checksum,
    is_damaged,
    level_checksum,
    read_level_into,
    version_of,
    write_image_file,
)
from mammo_pd.data.strips import compress, decompress
from mammo_pd.imaging.decode import MAX_PIXELS

SHAPES = {"native": (1500, 601), "1024": (1024, 2), "512": (512, 204)}


@pytest.fixture
def levels() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.integers(0, 65536, size, np.uint16) for name, size in SHAPES.items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.safetensors"


def test_the_formats_own_library_reads_what_is_written(
    file: Path, levels: dict[str, np.ndarray]
) -> None:
    write_image_file(file, levels)
    found = load_file(file)
    # A level whose last page is full, as that of 1024x2 is, needs no padding.
    assert found.keys() - levels.keys() == {"padding.native"}
    for name, pixels in levels.items():
        assert np.array_equal(found[name], pixels)
        assert found[name].dtype == np.uint16
    with safe_open(file, "numpy") as opened:
        assert np.array_equal(opened.get_slice("512")[100:120], levels["512"][100:120])


def test_each_level_begins_on_a_page_and_is_found_there(
    file: Path, levels: dict[str, np.ndarray]
) -> None:
    write_image_file(file, levels)
    with file.open("rb") as opened:
        places = find_levels(opened.fileno())
    assert list(places) == list(levels)
    for name, place in places.items():
        assert place.start % 4096 == 0
        assert (place.height, place.width) == SHAPES[name]
        size = 2 * place.height * place.width
        there = np.frombuffer(file.read_bytes()[place.start : place.start + size], "<u2")
        assert np.array_equal(there, levels[name].ravel())


def test_the_checksum_is_that_of_the_file_that_numpy_saves(
    tmp_path: Path, file: Path, levels: dict[str, np.ndarray]
) -> None:
    checksums = write_image_file(file, levels)
    for name, pixels in levels.items():
        np.save(tmp_path / "level.npy", pixels)
        crc = zlib.crc32((tmp_path / "level.npy").read_bytes())
        assert checksums[name] == crc == level_checksum(pixels[:, :])


def test_a_compressed_level_is_the_same_and_smaller(
    file: Path, levels: dict[str, np.ndarray]
) -> None:
    """Half of each is air, and in the rest a byte of two is noise."""
    for pixels in levels.values():
        pixels[:, : pixels.shape[1] // 2] = 0
        pixels &= 0x0FF0
    whole = write_image_file(file, levels)
    size = file.stat().st_size
    assert write_image_file(file, levels, compressed=True) == whole
    assert file.stat().st_size < 0.7 * size
    assert not is_damaged(file, whole)
    with file.open("rb") as opened:
        places = find_levels(opened.fileno())
        for name, pixels in levels.items():
            assert (places[name].start % 4096, places[name].compressed) == (0, True)
            out = np.zeros(SHAPES[name], np.uint16)
            read_level_into(opened.fileno(), places[name], out.data.cast("B"))
            assert np.array_equal(out, pixels)
    # Each strip by itself, as the codec's own library reads it.
    strip = imagecodecs.blosc2_decode(load_file(file)["512"].tobytes())
    assert np.array_equal(np.frombuffer(strip, "<u2"), levels["512"][:64].ravel())
    content = file.read_bytes()
    for place in (0, 7, 30, 200, 4095, places["512"].start + 200, len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= 1
        file.write_bytes(changed)
        assert is_damaged(file, whole), place
    for other in (content[:-1], content + b"0", content[:-500] + bytes(500)):
        file.write_bytes(other)
        assert is_damaged(file, whole)


@pytest.mark.parametrize("rows", [-1, 0, 1])
def test_strips_that_do_not_make_up_the_level_are_refused(rows: int) -> None:
    data = bytearray(compress(np.ones((64, 9), np.uint16), by_bits=False) * (2 + rows))
    out = memoryview(bytearray(2 * 128 * 9))
    if rows:
        with pytest.raises(ValueError, match="strips"):
            decompress(memoryview(data), 9, out)
    else:
        decompress(memoryview(data), 9, out)
        assert bytes(out) == np.ones((128, 9), "<u2").tobytes()
    data[12:16] = bytes(4)
    with pytest.raises(ValueError, match="damaged"):
        decompress(memoryview(data), 9, out)


def test_every_byte_that_changes_is_damage(file: Path, levels: dict[str, np.ndarray]) -> None:
    checksums = write_image_file(file, levels)
    assert not is_damaged(file, checksums)
    assert not is_damaged(file, {"512": checksums["512"]})
    whole = file.read_bytes()
    native_end = 4096 + 2 * 1500 * 601
    for place in (0, 7, 8, 30, 200, 4095, 4096, native_end - 1, native_end, -1, len(whole) // 2):
        content = bytearray(whole)
        content[place] ^= 1
        file.write_bytes(content)
        assert is_damaged(file, checksums), place
        # Of a level that a killed run had just added the record knows no checksum.
        assert is_damaged(file, {}), place
    for content in (whole[:-1], whole + b"0", whole[:5000], b"", bytes(len(whole))):
        file.write_bytes(content)
        assert is_damaged(file, checksums)
    file.write_bytes(whole)
    assert is_damaged(file, {**checksums, "2048": 0})
    # Whole, and of another image.
    assert is_damaged(file, {**checksums, "512": checksums["512"] ^ 1})
    file.unlink()
    assert is_damaged(file, checksums)
    file.mkdir()
    assert is_damaged(file, checksums)


def test_a_file_of_an_earlier_version_holds_no_checksums_and_is_whole(
    file: Path, levels: dict[str, np.ndarray]
) -> None:
    checksums = write_image_file(file, levels)
    content = bytearray(file.read_bytes())
    header = json.loads(content[8:4096])
    del header["__metadata__"]
    content[8:4096] = json.dumps(header, separators=(",", ":")).encode().ljust(4088)
    file.write_bytes(content)
    with file.open("rb") as opened:
        for name, place in find_levels(opened.fileno()).items():
            out = np.zeros(SHAPES[name], np.uint16)
            read_level_into(opened.fileno(), place, out.data.cast("B"))
            assert np.array_equal(out, levels[name])
            assert place.checksum is None and has_checksum(out.data.cast("B"), place)
    # In the record there may be some, which were made when a level was added.
    for recorded in ({}, checksums):
        assert not is_damaged(file, recorded)
    content[-1] ^= 1
    file.write_bytes(content)
    assert is_damaged(file, checksums)


@pytest.mark.parametrize("more", [0, 1])
def test_a_level_has_no_more_pixels_than_imaging_decodes(file: Path, more: int) -> None:
    """A few compressed bytes may claim any number."""
    size = f"{2**14}x{MAX_PIXELS // 2**14 + more}"
    header = {
        "__metadata__": {"native": size},
        "native": {"dtype": "U8", "shape": [16], "data_offsets": [0, 16]},
    }
    file.write_bytes((4088).to_bytes(8, "little") + json.dumps(header).encode().ljust(4088))
    with file.open("ab") as opened:
        opened.write(bytes(16))
    with file.open("rb") as opened:
        if more:
            with pytest.raises(ValueError, match="header is damaged"):
                find_levels(opened.fileno())
        else:
            (place,) = find_levels(opened.fileno()).values()
            assert place.height * place.width == MAX_PIXELS


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 4088,
        b"\xff",
        b'{"native": 3}',
        b'{"native": {}}',
        *(
            b'{"__metadata__":%s,"native":{"dtype":"U8","shape":[16],"data_offsets":[0,16]}}' % told
            for told in (b"[]", b'{"native":4}', b'{"native":"4x2","crc32.native":"x"}')
        ),
        *(
            b'{"__metadata__":{"native":"%s"},"native":'
            b'{"dtype":"U8","shape":[16],"data_offsets":[0,16]}}' % size
            for size in (b"4", b"4x", b"axb", b"0x4", b"-2x-4", b"9999999x9999999", b"2x2x2")
        ),
        b'{"__metadata__":{"native":"4x2"},"native":'
        b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
        *(
            json.dumps({"native": {"dtype": dtype, "shape": shape, "data_offsets": ends}}).encode()
            for dtype, shape, ends in [
                ("U16", [4, 2, 1], [0, 16]),
                ("U8", [4, 2], [0, 16]),
                ("U16", [4, 2], [0, 15]),
                ("U16", [3, 2], [0, 16]),
                ("U16", [-4, 2], [0, -16]),
                ("U16", [4, 2], [-8, 8]),
                ("U16", [4, 2], [0.0, 16.0]),
                ("U16", [4.0, 2], [0, 16]),
                ("U16", [True, 8], [0, 16]),
                ("U16", [2**40, 2**20], [0, 2**61]),
            ]
        ),
    ],
)
def test_a_header_that_no_level_can_have_is_refused(file: Path, header: bytes) -> None:
    file.write_bytes((4088).to_bytes(8, "little") + header.ljust(4088) + bytes(16))
    handle = os.open(file, os.O_RDONLY)
    try:
        with pytest.raises(ValueError, match=r"header is damaged|too short"):
            find_levels(handle)
    finally:
        os.close(handle)


@pytest.mark.parametrize("changed", ["file", "size", "time"])
def test_each_way_to_write_a_file_anew_makes_another_version(file: Path, changed: str) -> None:
    """Clocks tick slowly, file systems reuse inodes, and levels have one size."""
    file.write_bytes(b"level")
    before = file.stat()
    if changed == "file":
        other = file.with_name("other")
        other.write_bytes(b"lever")
        other.replace(file)
    elif changed == "size":
        file.write_bytes(b"levels")
    later = before.st_mtime_ns + (10**9 if changed == "time" else 0)
    os.utime(file, ns=(before.st_atime_ns, later))
    assert version_of(file.stat()) != version_of(before)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_level_is_read_whole_in_pieces_and_refused_if_it_shrinks(
    file: Path,
    levels: dict[str, np.ndarray],
    compressed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A read may give less than was asked for: of more than 2 GiB, or from a network disk."""
    write_image_file(file, levels, compressed=compressed)
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda at, to, start: read(at, [to[0][:1000]], start))
    out = np.zeros(SHAPES["512"], np.uint16)
    with file.open("r+b") as opened:
        place = find_levels(opened.fileno())["512"]
        read_level_into(opened.fileno(), place, out.data.cast("B"))
        assert np.array_equal(out, levels["512"])
        opened.truncate(place.start + place.size - 1)
        with pytest.raises(ValueError, match="too short"):
            read_level_into(opened.fileno(), place, out.data.cast("B"))


@pytest.mark.parametrize("compressed", [False, True])
def test_a_level_that_is_cut_short_is_not_found(
    file: Path, levels: dict[str, np.ndarray], compressed: bool
) -> None:
    write_image_file(file, levels, compressed=compressed)
    os.truncate(file, file.stat().st_size - 1)
    with file.open("rb") as opened, pytest.raises(ValueError, match="too short"):
        find_levels(opened.fileno())


def test_a_file_of_more_levels_than_a_page_names_is_damaged(file: Path) -> None:
    ends = {
        str(at): {"dtype": "U16", "shape": [1, 1], "data_offsets": [at, at + 2]} for at in range(50)
    }
    header = json.dumps(ends, separators=(",", ":")).encode()
    file.write_bytes((4088).to_bytes(8, "little") + header.ljust(4088) + bytes(52))
    assert len(header) < 4088
    assert is_damaged(file, {})
    with pytest.raises(ValueError, match="50 levels are too many for one page"):
        write_image_file(file, dict.fromkeys(ends, np.ones((1, 1), np.uint16)))
