"""What a DICOM file may ask for before it is parsed: memory for deflated data, time for items."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pydicom import uid
from pydicom.filereader import read_dataset, read_preamble
from pydicom.tag import BaseTag

from mammo_pd.errors import ImageError
from mammo_pd.terms import Reason

# Bytes of an inflated dataset: tomosynthesis of sixty uncompressed frames takes half of it.
MOST_INFLATED = 2**30
# Sequence items before the pixels: pydicom takes 20 microseconds and kilobytes for each, and a
# hundred frames with ten functional groups have a thousand.
MOST_ITEMS = 100_000
# Elements before and behind them, those of all items together.
MOST_ELEMENTS = 1_000_000
# Bytes looked through at once.
_CHUNK = 2**20
_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
_PIXEL_DATA = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")
_FILE_META_GROUP = 2
# Bytes of an element's or item's tag and length, which pydicom reads at once.
_TAG_AND_LENGTH = 8


def refuse_unbounded(path: Path) -> None:
    """Refuse a file that is small and would take gigabytes, or minutes, to be parsed.

    Args:
        path: the file.

    Raises:
        ImageError: its deflated dataset is larger than `MOST_INFLATED`, or more than `MOST_ITEMS`
            sequence items come before its pixels (``unreadable_file``).
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        deflated = _is_deflated(file)
        if not deflated:
            file.seek(0)
        chunks = _inflated(file) if deflated else iter(lambda: file.read(_CHUNK), b"")
        items = 0
        for chunk in chunks:
            items += sum(map(chunk.count, _ITEMS))
            _refuse_more_than(MOST_ITEMS, items, "sequence items")
            if not deflated and any(tag in chunk for tag in _PIXEL_DATA):
                break


class BoundedFile:
    """A DICOM file for pydicom to read, that ends the reading after too many elements or items.

    `refuse_unbounded` sees in time most files that hold so many; this holds wherever they are:
    behind the pixels, or behind bytes that look like the pixels' tag. Deflated data, which pydicom
    inflates on its own, are bounded by their size and their items alone.

    Args:
        file: open, and to be kept open while it is read.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.name = file.name
        self._file = file
        self._elements = self._items = 0
        self._is_pixels = False

    def read(self, size: int = -1, /) -> bytes:
        """Read as a file does.

        Raises:
            ImageError: more than `MOST_ITEMS` or `MOST_ELEMENTS` have been read.
        """
        data = self._file.read(size)
        if size == _TAG_AND_LENGTH:
            self._is_pixels = data[:4] in _PIXEL_DATA
            self._elements += 1
        if not self._is_pixels:  # in which items are few, or chance
            self._items += sum(map(data.count, _ITEMS))
        _refuse_more_than(MOST_ITEMS, self._items, "sequence items")
        _refuse_more_than(MOST_ELEMENTS, self._elements, "elements")
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Seek as a file does."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Tell as a file does."""
        return self._file.tell()


def _refuse_more_than(most: int, count: int, what: str) -> None:
    if count > most:
        raise ImageError(
            Reason.UNREADABLE, f"The header holds more than {most} {what}; is it damaged?"
        )


def _is_deflated(file: BinaryIO) -> bool:
    """Whether pydicom will inflate a file; it then stands where its deflated dataset begins.

    The file meta information is read to its end, as pydicom does: it may be of any length.
    """
    read_preamble(file, force=True)
    meta = read_dataset(
        file, is_implicit_VR=False, is_little_endian=True, stop_when=_is_behind_meta
    )
    syntax: object = meta.get("TransferSyntaxUID")
    return syntax == uid.DeflatedExplicitVRLittleEndian


def _inflated(file: BinaryIO) -> Iterator[bytes]:
    """The dataset of a deflated file, from where it begins, piece by piece, none of it held.

    Source: DICOM PS3.5 A.5.
    """
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    size = 0
    while rest := inflate.unconsumed_tail or file.read(_CHUNK):
        piece = inflate.decompress(rest, _CHUNK)
        size += len(piece)
        if size > MOST_INFLATED:
            raise ImageError(
                Reason.UNREADABLE,
                f"The deflated dataset is larger than {MOST_INFLATED >> 20} MiB; is it damaged?",
            )
        yield piece
        if inflate.eof:
            return


def _is_behind_meta(tag: BaseTag, *_: object) -> bool:
    return tag.group != _FILE_META_GROUP
