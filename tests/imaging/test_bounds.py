"""Files that are small and ask for much: refused or read, and always quickly."""

import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_files import ENCODERS, half_disk, make_dataset, write_dicom
from pydicom import uid
from pydicom.encaps import encapsulate

from mammo_pd.errors import ImageError
from mammo_pd.imaging import bounds, dicom_file
from mammo_pd.imaging.decode import decode
from mammo_pd.imaging.decoders import imagecodecs_plugin
from mammo_pd.imaging.dicom_file import read_dataset, read_header
from mammo_pd.imaging.raster import read_raster
from mammo_pd.terms import Reason

_OPEN, _CLOSE = b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\xfe\xff\x0d\xe0\0\0\0\0"
_END = b"\xfe\xff\xdd\xe0\0\0\0\0"
_SEQUENCE = b"\x09\x00\x10\x10SQ\0\0\xff\xff\xff\xff"
_UNKNOWN = b"\x09\x00\x10\x10UN\0\0\xff\xff\xff\xff"


def nested(count: int) -> bytes:
    return (_SEQUENCE + _OPEN) * count + (_CLOSE + _END) * count


def nested_with_lengths(count: int) -> bytes:
    inner = b""
    for _ in range(count):
        item = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(inner)) + inner
        inner = b"\x09\x00\x10\x10SQ\0\0" + struct.pack("<I", len(item)) + item
    return inner


def with_private(path: Path, elements: bytes) -> Path:
    """A mammogram with further elements before the patient's name."""
    content = write_dicom(path, make_dataset(half_disk())).read_bytes()
    place = content.index(b"\x10\x00\x10\x00PN")
    path.write_bytes(content[:place] + elements + content[place:])
    return path


@pytest.mark.parametrize(
    "elements",
    [
        nested(200_000),
        nested(2_000),
        _SEQUENCE + (_OPEN + _CLOSE) * 200_000 + _END,
        _UNKNOWN + _OPEN + (b"\x09\x00\x10\x10\xff\xff\xff\xff" + _OPEN) * 200_000,
    ],
    ids=["nested", "deep", "siblings", "unknown"],
)
def test_sequences_without_end_are_refused_quickly(tmp_path: Path, elements: bytes) -> None:
    path = with_private(tmp_path / "a.dcm", elements)
    started = time.monotonic()
    with pytest.raises(ImageError) as refused:
        read_dataset(path)
    assert refused.value.reason == Reason.UNREADABLE
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("elements", [nested(50), nested_with_lengths(2_000)])
def test_sequences_that_can_be_read_are(tmp_path: Path, elements: bytes) -> None:
    dataset = read_dataset(with_private(tmp_path / "a.dcm", elements))
    np.testing.assert_array_equal(decode(dataset, None).values, half_disk())


_MANY = 3_000
_ITEMS = (_OPEN + _CLOSE) * _MANY
_LOOKS_LIKE_PIXELS = b"\x09\x00\x01\x10OB\0\0" + struct.pack("<I", 2**21 + 8) + b"\xe0\x7f\x10\x00"
_VIEW_CODE = b"\x54\x00\x20\x02SQ\0\0"


@pytest.mark.parametrize("read", [read_dataset, read_header])
@pytest.mark.parametrize(
    ("elements", "what"),
    [
        (_SEQUENCE + _ITEMS + _END, "sequence items"),
        (_VIEW_CODE + struct.pack("<I", len(_ITEMS)) + _ITEMS, "sequence items"),
        (b"".join(struct.pack("<HH", 0x0B, n) + b"LO\0\0" for n in range(_MANY)), "elements"),
    ],
    ids=["without length", "with length", "elements"],
)
def test_bytes_that_look_like_pixels_hide_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[Path], object],
    elements: bytes,
    what: str,
) -> None:
    hidden = _LOOKS_LIKE_PIXELS + bytes(2**21 + 4) + elements
    path = with_private(tmp_path / "a.dcm", hidden)
    assert read(path)
    limit = "MOST_ELEMENTS" if what == "elements" else "MOST_ITEMS"
    monkeypatch.setattr(bounds, limit, 1_000)
    with pytest.raises(ImageError, match=f"more than 1000 {what}"):
        read(path)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.JPEGLSLossless])
def test_nothing_hides_behind_the_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str
) -> None:
    path = write_dicom(tmp_path / "a.dcm", make_dataset(half_disk(), syntax))
    padding = b"\xfc\xff\xfc\xffOB\0\0" + struct.pack("<I", 2**21) + bytes(2**21)
    signatures = b"\xfa\xff\xfa\xffSQ\0\0\xff\xff\xff\xff"
    path.write_bytes(path.read_bytes() + padding + signatures + _ITEMS + _END)
    np.testing.assert_array_equal(decode(read_dataset(path), None).values, half_disk())
    monkeypatch.setattr(bounds, "MOST_ITEMS", 1_000)
    with pytest.raises(ImageError, match="more than 1000 sequence items"):
        read_dataset(path)


def deflated(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """A deflated mammogram whose dataset is changed before it is deflated."""
    syntax = uid.DeflatedExplicitVRLittleEndian
    content = write_dicom(path, make_dataset(half_disk(), syntax)).read_bytes()
    meta = 144 + struct.unpack("<I", content[140:144])[0]
    deflate = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    changed = change(zlib.decompress(content[meta:], -zlib.MAX_WBITS))
    path.write_bytes(content[:meta] + deflate.compress(changed) + deflate.flush())
    return path


def test_deflated_data_are_bounded_before_they_are_inflated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = read_dataset(deflated(tmp_path / "a.dcm", lambda content: content))
    np.testing.assert_array_equal(decode(dataset, None).values, half_disk())
    monkeypatch.setattr(bounds, "MOST_INFLATED", 2**22)
    monkeypatch.setattr(dicom_file.pydicom, "dcmread", lambda *_, **__: pytest.fail("parsed"))
    bomb = deflated(tmp_path / "b.dcm", lambda content: content + bytes(2**23))
    assert bomb.stat().st_size < 2**15
    with pytest.raises(ImageError, match="deflated dataset is larger than 4 MiB"):
        read_dataset(bomb)
    many = deflated(tmp_path / "c.dcm", lambda content: nested(200_000) + content)
    with pytest.raises(ImageError, match="sequence items"):
        read_dataset(many)


@pytest.mark.parametrize("read", [read_dataset, read_header])
@pytest.mark.parametrize(
    ("before", "preamble"), [(5_000, True), (5_000, False), (70_000, True), (2**21, True)]
)
def test_a_long_file_meta_information_hides_no_deflated_data(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[Path], object],
    before: int,
    preamble: bool,
) -> None:
    """The transfer syntax stands behind elements of any length."""
    syntax = uid.DeflatedExplicitVRLittleEndian
    version = b"\x02\x00\x01\x00OB\0\0"

    def lengthen(path: Path) -> Path:
        content = path.read_bytes()
        place = content.index(version)
        long = version + struct.pack("<I", before) + bytes(before)
        content = content[:place] + long + content[place + len(version) + 6 :]
        assert content.index(syntax.encode()) > before
        path.write_bytes(content if preamble else content[132:])
        return path

    sound = lengthen(deflated(tmp_path / "a.dcm", lambda content: content))
    np.testing.assert_array_equal(decode(read_dataset(sound), None).values, half_disk())
    assert read(sound)
    monkeypatch.setattr(bounds, "MOST_INFLATED", 2**22)
    bomb = lengthen(deflated(tmp_path / "b.dcm", lambda content: content + bytes(2**23)))
    with pytest.raises(ImageError, match="deflated dataset is larger than 4 MiB"):
        read(bomb)


@pytest.mark.parametrize(
    "syntax",
    [uid.ExplicitVRLittleEndian, uid.JPEGLSLossless, uid.DeflatedExplicitVRLittleEndian],
)
def test_large_private_elements_stay_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str
) -> None:
    dataset = make_dataset(half_disk(), syntax)
    block = dataset.private_block(0x0009, "VENDOR", create=True)
    block.add_new(0x10, "OB", bytes(10**6))
    path = write_dicom(tmp_path / "a.dcm", dataset)
    monkeypatch.setattr(dicom_file, "_LARGE_FILE", 1000)
    monkeypatch.setattr(dicom_file, "_DEFERRED", 1000)
    dataset = read_dataset(path)
    # get_item would read it.
    assert dataset._dict[block.get_tag(0x10)].value is None
    np.testing.assert_array_equal(decode(dataset, None).values, half_disk())


def test_a_tiff_of_200_000_pages_is_refused_quickly(tmp_path: Path) -> None:
    tags = [
        (256, 1),
        (257, 1),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 0),
        (277, 1),
        (278, 1),
        (279, 1),
    ]
    size = 2 + 12 * len(tags) + 4
    page = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags
    )
    pages = b"".join(
        page + struct.pack("<I", 8 + size * number if number < 200_000 else 0)
        for number in range(1, 200_001)
    )
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + pages)
    started = time.monotonic()
    with pytest.raises(ImageError, match="more than one page") as refused:
        read_raster(tmp_path / "a.tif")
    assert refused.value.reason == Reason.MULTI_FRAME
    assert time.monotonic() - started < 2


def test_a_cut_off_large_file_is_still_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_file, "_LARGE_FILE", 100)
    monkeypatch.setattr(dicom_file, "_DEFERRED", 100)
    dataset = make_dataset(half_disk(), uid.JPEGLSLossless)
    dataset.PixelData = encapsulate([bytes(5000)])
    content = write_dicom(tmp_path / "a.dcm", dataset).read_bytes()
    (tmp_path / "a.dcm").write_bytes(content[:-3000])
    with pytest.raises(ImageError):
        decode(read_dataset(tmp_path / "a.dcm"), None)


def with_pieces(codestream: bytes, size: tuple[int, int], place: str, style: bytes) -> bytes:
    """A JPEG 2000 codestream that says it is of another size, and how it is divided up.

    Args:
        codestream: as imagecodecs writes it.
        size: rows, columns.
        place: of the coding style: in the main header, for its component, or in a tile-part's.
        style: levels, code-blocks' sizes, their style, wavelet and precincts.
    """
    rows, columns = (side.to_bytes(4, "big") for side in size)
    codestream = codestream[:8] + columns + rows + codestream[16:]
    codestream = codestream[:24] + columns + rows + codestream[32:]
    cod, sot = codestream.index(b"\xff\x52"), codestream.index(b"\xff\x90")
    content = b"\1\0\0\1\0" + style
    if place == "COC":
        segment = b"\xff\x53" + (len(style) + 4).to_bytes(2, "big") + b"\0\1" + style
    else:
        segment = b"\xff\x52" + (len(content) + 2).to_bytes(2, "big") + content
    if place == "COD":
        length = 2 + int.from_bytes(codestream[cod + 2 : cod + 4], "big")
        return codestream[:cod] + segment + codestream[cod + length :]
    if place == "COC":
        return codestream[:sot] + segment + codestream[sot:]
    if place.startswith("COD behind "):
        return codestream[:cod] + bytes.fromhex(place[-4:]) + segment + codestream[sot:]
    # Tile-parts of no data come before the one that says it.
    empty = b"\xff\x90\0\x0a\0\0" + (14).to_bytes(4, "big") + b"\0\3\xff\x93"
    last = b"\xff\x90\0\x0a\0\0" + bytes(4) + b"\1\3" + segment
    return codestream[:sot] + empty + last + codestream[sot + 12 :]


@pytest.mark.parametrize("place", ["COD", "COC", "tile", "COD behind ff30", "COD behind ff20"])
@pytest.mark.parametrize(
    ("style", "sound"),
    [
        (b"\5\4\4\0\1" + b"\xff" * 6, True),  # as usual: code-blocks of 64 x 64
        (b"\5\3\3\0\1" + b"\x77" * 6, True),  # of 32 x 32, in precincts of 128 x 128
        (b"\5\4\4\0\1" + b"\x11" * 6, False),  # precincts of 2 x 2
        (b"\0\4\4\0\1\0", False),  # of 1 x 1
        (b"\1\0\0\0\1" + b"\xff" * 2, False),  # code-blocks of 4 x 4
    ],
)
def test_jpeg_2000_is_not_divided_into_pieces_without_end(
    monkeypatch: pytest.MonkeyPatch, place: str, style: bytes, sound: bool
) -> None:
    """A kilobyte of such a file takes OpenJPEG up to tens of gigabytes."""
    small = ENCODERS[uid.JPEG2000Lossless](half_disk(), 12)
    size = (8000, 8000)
    codestream = with_pieces(bytes(small), size, place, style)
    dataset = make_dataset(half_disk(), Rows=size[0], Columns=size[1])
    dataset.file_meta.TransferSyntaxUID = uid.JPEG2000Lossless
    dataset.PixelData = encapsulate([codestream])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    asked: list[object] = []
    decoder = imagecodecs_plugin.find_decoder(uid.JPEG2000Lossless)
    monkeypatch.setattr(decoder, "as_array", lambda *_, **__: asked.append(_) or 1 / 0)
    with pytest.raises(ImageError, match="No decoder" if sound else "more pieces than memory"):
        decode(dataset)
    assert bool(asked) == sound
