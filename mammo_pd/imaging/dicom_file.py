"""DICOM files: from a path to a dataset, or to its header alone, whose transfer syntax is known.

Whatever is wrong with a file comes out as an ``ImageError`` with a reason code, whose sentence
quotes neither a path nor an identifier.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom import config, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag

from mammo_pd.errors import ImageError
from mammo_pd.imaging.bounds import BoundedFile, refuse_unbounded
from mammo_pd.imaging.header import number_of_frames
from mammo_pd.terms import Reason

# Bytes of a file in which elements are read only when they are asked for, and of those elements.
_LARGE_FILE = 2**28
_DEFERRED = 2**26
# Bytes that hold the header of most files, private elements included, and those of a fragment
# that hold its size.
_HEAD, _FRAGMENT_HEAD = 2**16, 2**12
# Pixel Data and its kin of floating point, and the functional groups of each frame.
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_PER_FRAME = 0x52009230
_UNDEFINED = 0xFFFFFFFF


def read_dataset(path: Path) -> Dataset:
    """Read a DICOM file, with or without preamble and file meta information.

    Args:
        path: the file.

    Returns:
        The dataset, pixel data included. Its file meta information always names a transfer
        syntax: if the file names none, the one the dataset turned out to be encoded in.

    Raises:
        ImageError: the file is not DICOM, or cannot be parsed (``not_an_image``,
            ``unreadable_file``).
    """
    with _parsing():
        refuse_unbounded(path)
        # Large private elements stay on the disk until they are asked for, which nobody does.
        defer = _DEFERRED if path.stat().st_size > _LARGE_FILE else None
        with path.open("rb") as file:
            try:
                dataset = pydicom.dcmread(BoundedFile(file), defer_size=defer)
            except InvalidDicomError:
                file.seek(0)
                dataset = pydicom.dcmread(BoundedFile(file), force=True)
                _refuse_other_formats(dataset)
        if isinstance(dataset.buffer, BoundedFile):  # deflated data are read from memory
            # What was left on the disk is read from there.
            dataset.fileobj_type, dataset.buffer = open, None
        _refuse_empty(dataset)
        _complete_file_meta(dataset)
    return dataset


@dataclass(frozen=True)
class DicomHeader:
    """What a file says in front of its pixel data.

    Attributes:
        dataset: the elements before the pixel data; of a file of several frames, those before the
            functional groups of each frame. Its file meta information names a transfer syntax.
        pixel_start: where the value of Pixel Data begins in the file, in bytes.
        pixel_bytes: how long it is at most, item headers of compressed data included; 0 where the
            file holds none. Of several frames unknown, and 0 too.
        codestream: the first bytes of the first compressed fragment, as far as they were read.
        codestream_bytes: length of that fragment; 0 where nothing is compressed.
    """

    dataset: Dataset = field(repr=False)
    pixel_start: int
    pixel_bytes: int
    codestream: bytes = field(default=b"", repr=False)
    codestream_bytes: int = 0


def read_header(path: Path) -> DicomHeader:
    """Read a file's header without its pixel data: some tens of kilobytes of most files.

    Args:
        path: the file.

    Raises:
        ImageError: as ``read_dataset`` raises it, as far as the header shows it.
    """
    with _parsing():
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(_HEAD)
        # The beginning of deflated data cannot be inflated alone.
        deflated = uid.DeflatedExplicitVRLittleEndian.encode() in head
        header = None if deflated else _parse_head(BytesIO(head), head, size)
        if header is None:  # or the header is longer than what was read
            refuse_unbounded(path)
            with path.open("rb") as file:
                header = _parse_head(BoundedFile(file), b"", size)
        assert header is not None
        _refuse_empty(header.dataset)
        _complete_file_meta(header.dataset)
    return header


def _parse_head(file: BinaryIO | BoundedFile, head: bytes, size: int) -> DicomHeader | None:
    """Parse a header; None where it goes on behind ``head``, which is empty for the whole file."""
    found: list[tuple[int, int]] = []  # tag and length of the element that ended the reading

    def is_behind(tag: BaseTag, _: str | None, length: int) -> bool:
        # int's own comparison: pydicom's costs more than reading the element.
        if int.__lt__(tag, _PER_FRAME):
            return False
        if int(tag) in _PIXELS or (int(tag) == _PER_FRAME and not single):
            found.append((tag, length))
            return True
        return False

    # Functional groups of each frame are most of a tomosynthesis header, and tell nothing that
    # the file's first elements do not; but a file of one frame may say there how it was taken.
    single = False
    dataset = _read_until(file, is_behind)
    if found and found[-1][0] == _PER_FRAME and number_of_frames(dataset) == 1:
        single = True
        file.seek(0)
        dataset = _read_until(file, is_behind)
    if dataset.file_meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
        # Where it ends in the inflated data says nothing about the file.
        return DicomHeader(dataset, 0, found[-1][1] if found else 0)
    if not found or found[-1][0] == _PER_FRAME:
        # Without pixels, or cut off by the end of what was read.
        return None if not found and head and len(head) < size else DicomHeader(dataset, 0, 0)
    implicit, little = dataset.original_encoding
    start = file.tell() + (8 if implicit else 12)
    length = found[-1][1]
    rest = max(0, size - start)
    if length != _UNDEFINED:
        return DicomHeader(dataset, start, min(length, rest))
    file.seek(start)
    codestream, codestream_bytes = _first_fragment(file.read(_FRAGMENT_HEAD), little is not False)
    return DicomHeader(dataset, start, rest, codestream, codestream_bytes)


def _read_until(file: BinaryIO | BoundedFile, stop: object) -> Dataset:
    try:
        return read_partial(file, stop_when=stop)  # type: ignore[arg-type]
    except InvalidDicomError:
        file.seek(0)
        dataset = read_partial(file, stop_when=stop, force=True)  # type: ignore[arg-type]
        _refuse_other_formats(dataset)
        return dataset


def _first_fragment(data: bytes, little: bool) -> tuple[bytes, int]:
    """The first bytes of the fragment behind the Basic Offset Table, and its length.

    Source: DICOM PS3.5 A.4.
    """
    order = "little" if little else "big"
    table = int.from_bytes(data[4:8], order)  # type: ignore[arg-type]
    start = 8 + table
    if len(data) < start + 8:
        return b"", 0
    length = int.from_bytes(data[start + 4 : start + 8], order)  # type: ignore[arg-type]
    return data[start + 8 : start + 8 + length], length


@contextmanager
def _parsing() -> Iterator[None]:
    """Turn whatever a bad file raises into an ``ImageError``, and drop warnings that quote it."""
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        try:
            yield
        except ImageError:
            raise
        except FileNotFoundError:
            raise ImageError(Reason.UNREADABLE, "The file is no longer there.") from None
        except PermissionError:
            raise ImageError(
                Reason.UNREADABLE, "Permission to read the file is denied; grant it."
            ) from None
        except (Exception, RecursionError) as error:  # a bad file can raise almost anything
            if isinstance(error.__context__, ImageError):  # of `BoundedFile`, in a sequence
                raise error.__context__ from None
            raise ImageError(
                Reason.UNREADABLE, f"pydicom cannot parse the file ({type(error).__name__})."
            ) from error


def _refuse_other_formats(dataset: Dataset) -> None:
    if "SOPClassUID" not in dataset and "Rows" not in dataset:
        raise ImageError(Reason.NOT_AN_IMAGE, "The file holds no DICOM dataset.") from None


def _refuse_empty(dataset: Dataset) -> None:
    if not len(dataset):
        # pydicom returns an empty dataset where compressed pixel data are cut off.
        raise ImageError(Reason.UNREADABLE, "The file is cut off; copy it again from its source.")


def _complete_file_meta(dataset: Dataset) -> None:
    if getattr(dataset, "file_meta", None) is None:
        dataset.file_meta = FileMetaDataset()
    if dataset.file_meta.get("TransferSyntaxUID"):
        return
    implicit, little = dataset.original_encoding
    dataset.file_meta.TransferSyntaxUID = (
        uid.ImplicitVRLittleEndian
        if implicit
        else uid.ExplicitVRLittleEndian
        if little
        else uid.ExplicitVRBigEndian
    )
