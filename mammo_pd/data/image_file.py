"""One image's file: the levels of its pyramid behind one another, in the safetensors format.

    bytes 0 to 7        length of the header, 4088, little-endian
    bytes 8 to 4095     the header: JSON with each level's name, shape and place; then spaces
    from byte 4096 on   the levels, (height, width) uint16, little-endian, row by row

Each level begins on a page of 4096 bytes. The format allows no gaps, so what fills a level's last
page is a tensor as well, named ``padding.LEVEL``. Any reader of safetensors reads the file, for
instance ``safetensors.safe_open(FILE, "numpy").get_slice("1024")[200:300]``.

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

SUFFIX = ".safetensors"

_PAGE = 4096
_PADDING = "padding."
# Bytes of a level read at once to sum them up.
_CHUNK = 2**20


class LevelPlace(NamedTuple):
    """Where the pixels of one level lie.

    Attributes:
        height: pixels.
        width: pixels.
        start: offset of the pixels in the file, in bytes.
        written: modification time of the file in ns, by which another one in its place is noticed.
    """

    height: int
    width: int
    start: int
    written: int


def write_image_file(file: Path, levels: Mapping[str, npt.NDArray[np.uint16]]) -> dict[str, int]:
    """Write the levels of one image, and wait until they are on the disk.

    Without that wait a power cut could leave a file of the right size and of zeros, which the
    record, written later, says to be done.

    Args:
        file: to be written.
        levels: (height, width) uint16 by name, in the order in which they are to lie.

    Returns:
        The checksum of each level, as `level_checksum` gives it.
    """
    header, starts = _layout({name: pixels.shape for name, pixels in levels.items()})
    with file.open("wb") as stream:
        stream.write(header)
        for pixels, start in zip(levels.values(), starts, strict=True):
            stream.write(bytes(start - stream.tell()))
            stream.write(np.ascontiguousarray(pixels, "<u2").data)
        stream.flush()
        os.fsync(stream.fileno())
    return {name: level_checksum(pixels) for name, pixels in levels.items()}


def level_checksum(pixels: npt.NDArray[np.uint16]) -> int:
    """The CRC-32 of the file that ``numpy.save`` makes of a level: of its pixels and its shape."""
    return zlib.crc32(np.ascontiguousarray(pixels, "<u2").data, _crc_of_shape(pixels.shape))


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
        for name, tensor in json.loads(page[8:]).items():
            if not name.startswith(_PADDING):
                (height, width), (start, end) = tensor["shape"], tensor["data_offsets"]
                if not 0 <= start < end == start + 2 * height * width or tensor["dtype"] != "U16":
                    raise ValueError("no level")
                places[name] = LevelPlace(height, width, _PAGE + start, status.st_mtime_ns)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("its header is damaged") from error
    ends = (place.start + 2 * place.height * place.width for place in places.values())
    if max(ends, default=0) > status.st_size:
        raise ValueError("it is too short")
    return places


def is_damaged(file: Path, checksums: Mapping[str, int]) -> bool:
    """Whether a file is missing, cannot be read, or is not in every byte as it was written.

    Args:
        file: of an image.
        checksums: of its levels. It may hold further ones, which a killed run had just added.
    """
    try:
        with file.open("rb") as stream:
            places = find_levels(stream.fileno())
            shapes = {name: (place.height, place.width) for name, place in places.items()}
            header, starts = _layout(shapes)
            if not checksums.keys() <= places.keys() or stream.read(_PAGE) != header:
                return True
            for (name, shape), start in zip(shapes.items(), starts, strict=True):
                if any(stream.read(start - stream.tell())):
                    return True
                found = _crc_of_next(stream, 2 * shape[0] * shape[1], _crc_of_shape(shape))
                if found != checksums.get(name, found):
                    return True
            return bool(stream.read(1))
    except (OSError, ValueError):  # OSError: a bad sector, too
        return True


def _layout(shapes: Mapping[str, tuple[int, ...]]) -> tuple[bytes, list[int]]:
    """The first page of a file, and where each of its levels begins."""
    tensors: dict[str, Any] = {}
    starts = []
    end, before = 0, ""
    for name, shape in shapes.items():
        if gap := -end % _PAGE:
            tensors[_PADDING + before] = {
                "dtype": "U8",
                "shape": [gap],
                "data_offsets": [end, end + gap],
            }
        start = end + gap
        end, before = start + 2 * shape[0] * shape[1], name
        tensors[name] = {"dtype": "U16", "shape": [*shape], "data_offsets": [start, end]}
        starts.append(_PAGE + start)
    header = json.dumps(tensors, separators=(",", ":")).encode().ljust(_PAGE - 8)
    assert len(header) == _PAGE - 8, "five levels and their padding take a quarter of a page"
    return len(header).to_bytes(8, "little") + header, starts


def _crc_of_shape(shape: tuple[int, ...]) -> int:
    header = io.BytesIO()
    content = {"descr": "<u2", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, content)
    return zlib.crc32(header.getvalue())


def _crc_of_next(stream: io.BufferedReader, size: int, found: int) -> int:
    while size:
        chunk = stream.read(min(size, _CHUNK))
        if not chunk:
            raise ValueError("it is too short")
        found, size = zlib.crc32(chunk, found), size - len(chunk)
    return found
