"""One image's file: the levels of its pyramid behind one another, in the safetensors format.

    bytes 0 to 7        length of the header, 4088, little-endian
    bytes 8 to 4095     the header: JSON with each level's name, shape and place; then spaces
    from byte 4096 on   the levels, (height, width) uint16, little-endian, row by row

Each level begins on a page of 4096 bytes. The format allows no gaps, so what fills a level's last
page is a tensor as well, named ``padding.LEVEL``. Any reader of safetensors reads the file, for
instance ``safetensors.safe_open(FILE, "numpy").get_slice("1024")[200:300]``.

A compressed level is a tensor of bytes, its strips of 64 rows behind one another (`strips`), and
the header's ``__metadata__`` has its ``HEIGHTxWIDTH``. Beside that it has the checksum of each
level's pixels, ``crc32.LEVEL``, by which what has been damaged on the disk is told when it is read;
files of earlier versions have none.

The library itself neither aligns tensors to pages nor keeps their order, so the header is written
here. The file follows from the levels to the byte: it is the same whether a level was made with the
image or added later.

Source: https://huggingface.co/docs/safetensors, "Format".
"""

import io
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mammo_pd.data import strips
from mammo_pd.files import load_json

SUFFIX = ".safetensors"

_PAGE = 4096
_PADDING = "padding."
_METADATA = "__metadata__"
_CHECKSUM = "crc32."
# As many as imaging decodes: a damaged header must not ask for more memory than there is.
_MOST_PIXELS = 2**27
# Bytes of a level read at once to sum them up.
_CHUNK = 2**20


class LevelPlace(NamedTuple):
    """Where the pixels of one level lie.

    Attributes:
        height: pixels.
        width: pixels.
        start: offset in the file, in bytes.
        size: in the file, in bytes.
        compressed: whether the pixels are compressed there.
        version: of the file, from `version_of`, by which another one in its place is noticed.
        checksum: of its pixels, as `level_checksum` gives it; None where the file does not say.
    """

    height: int
    width: int
    start: int
    size: int
    compressed: bool
    version: tuple[int, int, int]
    checksum: int | None = None


def version_of(status: os.stat_result) -> tuple[int, int, int]:
    """What tells a file from another in its place, also one written within the same tick."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def write_image_file(
    file: Path, levels: Mapping[str, npt.NDArray[np.uint16]], *, compressed: bool = False
) -> dict[str, int]:
    """Write the levels of one image, and wait until they are on the disk.

    Without that wait a power cut could leave a file of the right size and of zeros, which the
    record, written later, says to be done.

    Args:
        file: to be written.
        levels: (height, width) uint16 by name, in the order in which they are to lie.
        compressed: whether to compress them, without loss.

    Returns:
        The checksum of each level, as `level_checksum` gives it.
    """
    stored = {
        name: strips.compress(pixels, by_bits=name == "native")
        if compressed
        else np.ascontiguousarray(pixels, "<u2").data
        for name, pixels in levels.items()
    }
    checksums = {name: level_checksum(pixels) for name, pixels in levels.items()}
    header, starts = _layout(
        {
            name: _Stored(
                pixels.shape[0],
                pixels.shape[1],
                memoryview(stored[name]).nbytes,
                compressed,
                checksums[name],
            )
            for name, pixels in levels.items()
        }
    )
    with file.open("wb") as stream:
        stream.write(header)
        for content, start in zip(stored.values(), starts, strict=True):
            stream.write(bytes(start - stream.tell()))
            stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    return checksums


def level_checksum(pixels: npt.NDArray[np.uint16]) -> int:
    """The CRC-32 of the file that ``numpy.save`` makes of a level: of its pixels and its shape."""
    return zlib.crc32(np.ascontiguousarray(pixels, "<u2").data, _crc_of_shape(pixels.shape))


def has_checksum(pixels: memoryview, place: LevelPlace) -> bool:
    """Whether a level that was read is what was written; True where the file does not say.

    Args:
        pixels: the bytes of its (height, width) uint16 pixels.
        place: where it was read from.
    """
    if place.checksum is None:
        return True
    return zlib.crc32(pixels, _crc_of_shape((place.height, place.width))) == place.checksum


def find_levels(handle: int) -> dict[str, LevelPlace]:
    """Find the levels in an open file.

    Args:
        handle: file descriptor; its position does not matter and stays.

    Returns:
        The places by name, in their order in the file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no image's file, or cut short.
    """
    status, page = os.fstat(handle), os.pread(handle, _PAGE, 0)
    places: dict[str, LevelPlace] = {}
    try:
        if int.from_bytes(page[:8], "little") != _PAGE - 8:
            raise ValueError("another length")
        tensors = load_json(page[8:])
        told = tensors.pop(_METADATA, {})
        for name, tensor in tensors.items():
            if not name.startswith(_PADDING):
                checksum = told.get(_CHECKSUM + name)
                places[name] = _place_of(
                    tensor,
                    told.get(name),
                    version_of(status),
                    None if checksum is None else int(checksum),
                )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("its header is damaged") from error
    if max((place.start + place.size for place in places.values()), default=0) > status.st_size:
        raise ValueError("it is too short")
    return places


def read_level_into(handle: int, place: LevelPlace, out: memoryview) -> None:
    """Copy a level's pixels from an open file, or the page cache, into allocated memory.

    Args:
        handle: file descriptor.
        place: of the level.
        out: the bytes of its (height, width) uint16 pixels.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    rest, start = out, place.start
    if place.compressed:
        rest = memoryview(bytearray(place.size))
    stored = rest
    while rest:
        # Releases the interpreter lock while it copies, which a page fault does not.
        count = os.preadv(handle, [rest], start)
        if not count:
            raise ValueError("it is too short")
        rest, start = rest[count:], start + count
    if place.compressed:
        strips.decompress(stored, place.width, out)


def is_damaged(file: Path, checksums: Mapping[str, int]) -> bool:
    """Whether a file is missing, cannot be read, or holds anything else than what was written.

    Args:
        file: of an image.
        checksums: of its levels. It may hold further ones, which a killed run had just added.
    """
    try:
        with file.open("rb") as stream:
            places = find_levels(stream.fileno())
            header, starts = _layout(
                {
                    name: _Stored(
                        place.height, place.width, place.size, place.compressed, place.checksum
                    )
                    for name, place in places.items()
                }
            )
            if not checksums.keys() <= places.keys() or stream.read(_PAGE) != header:
                return True
            for (name, place), start in zip(places.items(), starts, strict=True):
                if any(stream.read(start - stream.tell())):
                    return True
                found = _checksum_of_next(stream, place)
                if found != checksums.get(name, found) or place.checksum not in (None, found):
                    return True
            return bool(stream.read(1))
    except (OSError, ValueError):  # OSError: a bad sector, too
        return True


class _Stored(NamedTuple):
    """What the header tells of a level, but where it begins."""

    height: int
    width: int
    size: int
    compressed: bool
    checksum: int | None


def _layout(levels: Mapping[str, _Stored]) -> tuple[bytes, list[int]]:
    """The first page of a file, and where each of its levels begins."""
    tensors: dict[str, Any] = {}
    sizes = {name: f"{one.height}x{one.width}" for name, one in levels.items() if one.compressed}
    checksums = {
        _CHECKSUM + name: str(one.checksum)
        for name, one in levels.items()
        if one.checksum is not None
    }
    if sizes or checksums:
        tensors[_METADATA] = sizes | checksums
    starts = []
    end, before = 0, ""
    for name, level in levels.items():
        if gap := -end % _PAGE:
            tensors[_PADDING + before] = _tensor("U8", [gap], end, gap)
        start, before = end + gap, name
        tensors[name] = (
            _tensor("U8", [level.size], start, level.size)
            if level.compressed
            else _tensor("U16", [level.height, level.width], start, level.size)
        )
        starts.append(_PAGE + start)
        end = start + level.size
    header = json.dumps(tensors, separators=(",", ":")).encode().ljust(_PAGE - 8)
    if len(header) != _PAGE - 8:
        # Five levels and their padding take a quarter of a page; a made-up header can have more.
        raise ValueError(f"{len(levels)} levels are too many for one page")
    return len(header).to_bytes(8, "little") + header, starts


def _tensor(dtype: str, shape: list[int], start: int, size: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}


def _place_of(
    tensor: Mapping[str, Any],
    size: str | None,
    version: tuple[int, int, int],
    checksum: int | None,
) -> LevelPlace:
    """Where a level lies by its entry of the header; ``size`` is the metadata's, if compressed."""
    start, end = tensor["data_offsets"]
    height, width = tensor["shape"] if size is None else map(int, size.split("x"))
    if {type(number) for number in (start, end, height, width)} != {int}:
        raise ValueError("no whole numbers")
    is_sound = 0 <= start < end and min(height, width) > 0 and height * width <= _MOST_PIXELS
    is_whole = size is not None or end - start == 2 * height * width
    if not (is_sound and is_whole) or tensor["dtype"] != ("U16" if size is None else "U8"):
        raise ValueError("no level")
    return LevelPlace(
        height, width, _PAGE + start, end - start, size is not None, version, checksum
    )


def _crc_of_shape(shape: tuple[int, ...]) -> int:
    header = io.BytesIO()
    content = {"descr": "<u2", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, content)
    return zlib.crc32(header.getvalue())


def _checksum_of_next(stream: io.BufferedReader, place: LevelPlace) -> int:
    """The checksum of the level at which a file stands."""
    found = _crc_of_shape((place.height, place.width))
    if place.compressed:
        pixels = memoryview(bytearray(2 * place.height * place.width))
        strips.decompress(memoryview(stream.read(place.size)), place.width, pixels)
        return zlib.crc32(pixels, found)
    size = place.size
    while size:
        chunk = stream.read(min(size, _CHUNK))
        if not chunk:
            raise ValueError("it is too short")
        found, size = zlib.crc32(chunk, found), size - len(chunk)
    return found
