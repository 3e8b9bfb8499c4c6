"""What a compressed frame says of itself: kind, size, components, precision."""

from dataclasses import dataclass

_JPEG_START = b"\xff\xd8"
_JPEG_2000_START = b"\xff\x4f\xff\x51"
_JPEG_2000_BOX = b"\x00\x00\x00\x0cjP  "
# Start-of-frame markers of ISO/IEC 10918-1, without DHT (C4), JPG (C8) and DAC (CC).
_START_OF_FRAME = frozenset(set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC})
_START_OF_FRAME_JPEG_LS = 0xF7
_HUFFMAN_TABLES, _SCAN = 0xC4, 0xDA
_END = b"\xff\xd9"
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})


@dataclass(frozen=True)
class CodestreamSize:
    """The size that a codestream declares.

    Attributes:
        kind: ``jpeg``, ``jpeg_ls`` or ``jpeg_2000`` (HTJ2K included).
        rows: number of rows.
        columns: number of columns.
        components: samples per pixel.
        precision: bits per sample.
    """

    kind: str
    rows: int
    columns: int
    components: int
    precision: int


def read_codestream_size(frame: bytes) -> CodestreamSize | None:
    """Read the size that one compressed frame declares, without decoding it.

    Args:
        frame: one frame's codestream.

    Returns:
        What the codestream declares, or None where it is none of JPEG, JPEG-LS, JPEG 2000, or is
        cut off before its size.

    Source: ISO/IEC 10918-1 B.2.2 (SOF), ISO/IEC 14495-1 C.2.2, ISO/IEC 15444-1 A.5.1 (SIZ).
    """
    if frame.startswith(_JPEG_START):
        return _read_jpeg(frame)
    start = 0
    if frame.startswith(_JPEG_2000_BOX):
        start = frame.find(_JPEG_2000_START)
    if start >= 0 and frame.startswith(_JPEG_2000_START, start):
        return _read_jpeg_2000(frame[start : start + 64])
    return None


def is_whole(frame: bytes) -> bool:
    """Whether a JPEG, JPEG-LS or JPEG 2000 codestream has its end marker, padding aside."""
    return _END in frame[-4:]


def can_skip_a_difference(frame: bytes) -> bool:
    """Whether the Huffman tables of a lossless JPEG hold category 16.

    Some writers add bits after a difference of that category that the standard does not have;
    decoders then go astray without noticing.

    Source: ISO/IEC 10918-1 B.2.4.2 (DHT), H.1.2.2 (category 16 has no additional bits).
    """
    offset = 2
    while offset + 4 <= len(frame) and frame[offset] == 0xFF and frame[offset + 1] != _SCAN:
        end = offset + 2 + int.from_bytes(frame[offset + 2 : offset + 4], "big")
        if frame[offset + 1] == _HUFFMAN_TABLES:
            table = offset + 4
            while table + 17 <= end:
                count = sum(frame[table + 1 : table + 17])
                if 16 in frame[table + 17 : table + 17 + count]:
                    return True
                table += 17 + count
        offset = end
    return False


def _read_jpeg(frame: bytes) -> CodestreamSize | None:
    offset = 2
    while offset + 10 <= len(frame):
        if frame[offset] != 0xFF:
            return None
        marker = frame[offset + 1]
        if marker == 0xFF:  # fill byte
            offset += 1
        elif marker in _WITHOUT_LENGTH:
            offset += 2
        elif marker in _START_OF_FRAME or marker == _START_OF_FRAME_JPEG_LS:
            return CodestreamSize(
                kind="jpeg_ls" if marker == _START_OF_FRAME_JPEG_LS else "jpeg",
                precision=frame[offset + 4],
                rows=int.from_bytes(frame[offset + 5 : offset + 7], "big"),
                columns=int.from_bytes(frame[offset + 7 : offset + 9], "big"),
                components=frame[offset + 9],
            )
        else:
            offset += 2 + int.from_bytes(frame[offset + 2 : offset + 4], "big")
    return None


def _read_jpeg_2000(head: bytes) -> CodestreamSize | None:
    if len(head) < 43:
        return None

    def number(start: int, length: int) -> int:
        return int.from_bytes(head[start : start + length], "big")

    return CodestreamSize(
        kind="jpeg_2000",
        columns=number(8, 4) - number(16, 4),
        rows=number(12, 4) - number(20, 4),
        components=number(40, 2),
        precision=(head[42] & 0x7F) + 1,
    )
