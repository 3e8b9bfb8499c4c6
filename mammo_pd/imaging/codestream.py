"""What a compressed frame tells of itself undecoded: kind, size, precision, whether it is whole."""

from collections.abc import Iterator
from dataclasses import dataclass, field

_JPEG_START = b"\xff\xd8"
_JPEG_2000_START = b"\xff\x4f\xff\x51"
_JPEG_2000_BOX = b"\x00\x00\x00\x0cjP  "
# Start-of-frame markers of ISO/IEC 10918-1, without DHT (C4), JPG (C8) and DAC (CC).
_START_OF_FRAME = frozenset(set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC})
_START_OF_FRAME_JPEG_LS = 0xF7
# Of them those without a discrete cosine transform (SOF3, 7, 11, 15).
_LOSSLESS_FRAME = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_SEQUENTIAL_HUFFMAN = frozenset({0xC0, 0xC1, 0xC3})
_HUFFMAN_TABLES, _SCAN = 0xC4, 0xDA
# JPEG 2000's COD and COC, SOT and SOD.
_CODING_STYLE, _CODING_STYLE_OF_COMPONENT = 0x52, 0x53
_TILE_PART, _TILE_DATA = 0x90, 0x93
# Those that OpenJPEG knows: ISO/IEC 15444-1 A.2 and, of part 2, what it reads.
_JPEG_2000_MARKERS = frozenset(
    bytes.fromhex("50 51 52 53 55 57 58 59 5c 5d 5e 5f 60 61 63 64 74 75 77 78 90 93 d9")
)
_END = b"\xff\xd9"
# Bytes of zeros that a file's missing piece has at least: a block of a disk.
_HOLE = 4096
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_JPEG_XL_START = b"\xff\x0a"
_JPEG_XL_BOX = b"\0\0\0\x0cJXL \r\n\x87\n"
# Container boxes that hold the codestream, with the bytes before it: jxlp begins with an index.
_JPEG_XL_CODESTREAM_BOXES = {b"jxlc": 0, b"jxlp": 4}
# Width to height, where the header stores a ratio instead of a width.
_JPEG_XL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


@dataclass(frozen=True)
class CodestreamSize:
    """The size that a codestream declares.

    Attributes:
        kind: ``jpeg``, ``jpeg_ls``, ``jpeg_2000`` (HTJ2K included) or ``jpeg_xl``.
        rows: number of rows.
        columns: number of columns.
        components: samples per pixel.
        precision: bits per sample.
        lossy: whether it was coded with loss; None where that does not show in its head.
    """

    kind: str
    rows: int
    columns: int
    components: int
    precision: int
    lossy: bool | None = field(default=None, compare=False)


def read_codestream_size(frame: bytes) -> CodestreamSize | None:
    """Read the size that one compressed frame declares, without decoding it.

    Args:
        frame: one frame's codestream.

    Returns:
        What the codestream declares, or None where it is not JPEG, JPEG-LS, JPEG 2000 or JPEG XL,
        or is cut off before its size.

    Source: ISO/IEC 10918-1 B.2.2 (SOF), ISO/IEC 14495-1 C.2.2, ISO/IEC 15444-1 A.5.1 (SIZ),
        ISO/IEC 18181-1 D.2 (SizeHeader), D.3 (ImageMetadata). Loss: ISO/IEC 14495-1 C.2.3 (NEAR),
        ISO/IEC 15444-1 A.6.1 (COD).
    """
    if frame.startswith(_JPEG_START):
        return _read_jpeg(frame)
    start = 0
    if frame.startswith(_JPEG_2000_BOX):
        start = frame.find(_JPEG_2000_START)
    if start >= 0 and frame.startswith(_JPEG_2000_START, start):
        return _read_jpeg_2000(frame[start : start + 2**16])
    if frame.startswith(_JPEG_XL_BOX):
        frame = _codestream_of_container(frame)
    if frame.startswith(_JPEG_XL_START):
        return _read_jpeg_xl(frame[2:66])
    return None


def begins_codestream(head: bytes) -> bool:
    """Whether bytes are the first of a JPEG, JPEG-LS, JPEG 2000 or JPEG XL codestream or file."""
    return head.startswith(
        (_JPEG_START, _JPEG_2000_START, _JPEG_2000_BOX, _JPEG_XL_START, _JPEG_XL_BOX)
    )


def is_whole(frame: bytes) -> bool:
    """Whether a JPEG, JPEG-LS or JPEG 2000 codestream has its end marker.

    Whatever follows does not matter. Within coded data the marker cannot occur: there a byte FF is
    followed by one below 90, or by a restart marker.
    """
    return _END in frame


def can_skip_a_difference(frame: bytes) -> bool:
    """Whether the Huffman tables of a lossless JPEG hold category 16.

    After a difference of that category some encoders write additional bits, which the standard
    does not allow; decoders then lose synchronisation without noticing.

    Source: ISO/IEC 10918-1 B.2.4.2 (DHT), H.1.2.2 (category 16 has no additional bits).
    """
    return any(16 in categories for categories in _huffman_tables(frame))


def has_hole(frame: bytes) -> bool:
    """Whether a piece of a JPEG or JPEG 2000 codestream never came: zeros that nobody encoded.

    Files are set up whole and filled piece by piece when they are copied; decoders make an image
    of what is not filled. Where zeros may be the code of a flat image this cannot tell, and is
    false; JPEG-LS and HTJ2K are left to their decoders, which notice.

    Args:
        frame: one frame's codestream.

    Source: ISO/IEC 15444-1 B.10 (packet headers), ISO/IEC 10918-1 B.2.4.2, F.1.2, H.1.2 (codes).
    """
    end = max(frame.rfind(_END), 0)
    if frame.find(bytes(_HOLE), 0, end) < 0:  # as of almost all, in a millisecond
        return False
    start = frame.find(_JPEG_2000_START)
    if frame.startswith((_JPEG_2000_START, _JPEG_2000_BOX)) and start >= 0:
        most = _most_zeros(frame[start : start + 2**16])
        return most is not None and frame.find(bytes(max(most + 1, _HOLE)), start, end) >= 0
    if any(frame[at + 1] in _SEQUENTIAL_HUFFMAN for at in _segments(frame)):
        # A table's shortest code is all zeros. If it stands for no change in every table, zeros
        # are a flat image; if not, each block or pixel of them is darker than the one before.
        return any(symbols[:1] != b"\0" for symbols in _huffman_tables(frame))
    return False


def most_coded_parts(frame: bytes) -> int:
    """How many precincts and code-blocks a JPEG 2000 decoder sets up for one tile, at most.

    It needs some hundred bytes for each, whatever follows: with the smallest ones a codestream of
    hundreds of bytes takes tens of gigabytes. 0 for other codestreams.

    Source: ISO/IEC 15444-1 A.4.2 (SOT), A.6.1 (COD), A.6.2 (COC), B.6 and B.7 (their sizes).
    """
    start = frame.find(_JPEG_2000_START)
    if start < 0 or not frame.startswith((_JPEG_2000_START, _JPEG_2000_BOX)):
        return 0
    tile = _tile_size(frame[start : start + 40])
    return max(
        (sum(map(sum, _parts(style, *tile))) for style in _coding_styles(frame, start)), default=0
    )


def _segments(frame: bytes) -> Iterator[int]:
    """Where the marker segments of a JPEG file lie that come before its first scan."""
    offset = 2
    while offset + 4 <= len(frame) and frame[offset] == 0xFF and frame[offset + 1] != _SCAN:
        yield offset
        offset += 2 + int.from_bytes(frame[offset + 2 : offset + 4], "big")


def _huffman_tables(frame: bytes) -> Iterator[bytes]:
    """The symbols of each Huffman table of a JPEG file, that of the shortest code first."""
    for offset in _segments(frame):
        if frame[offset + 1] != _HUFFMAN_TABLES:
            continue
        end = offset + 2 + int.from_bytes(frame[offset + 2 : offset + 4], "big")
        table = offset + 4
        while table + 17 <= end:
            count = sum(frame[table + 1 : table + 17])
            yield frame[table + 17 : table + 17 + count]
            table += 17 + count


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
            is_ls = marker == _START_OF_FRAME_JPEG_LS
            return CodestreamSize(
                kind="jpeg_ls" if is_ls else "jpeg",
                lossy=_is_near_lossless(frame, offset) if is_ls else marker not in _LOSSLESS_FRAME,
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
        lossy=_is_irreversible(head),
    )


def _is_near_lossless(frame: bytes, offset: int) -> bool | None:
    """Whether the scan of a JPEG-LS codestream, whose frame header is at ``offset``, has loss."""
    while offset + 10 <= len(frame) and frame[offset] == 0xFF:
        if frame[offset + 1] == _SCAN:
            near = offset + 5 + 2 * frame[offset + 4]
            return frame[near] > 0 if near < len(frame) else None
        offset += 2 + int.from_bytes(frame[offset + 2 : offset + 4], "big")
    return None


def _is_irreversible(head: bytes) -> bool | None:
    """Whether a JPEG 2000 codestream uses the irreversible 9-7 wavelet."""
    style = _coding_style(head)
    return None if style is None else style[9] == 0


def _coding_style(head: bytes) -> bytes | None:
    """The parameters of a JPEG 2000 codestream's COD segment, from Scod on; None without one."""
    offset = 2
    while offset + 14 <= len(head) and head[offset] == 0xFF:
        length = int.from_bytes(head[offset + 2 : offset + 4], "big")
        if head[offset + 1] == _CODING_STYLE:
            return head[offset + 4 : offset + 2 + length]
        offset += 2 + length
    return None


def _most_zeros(head: bytes) -> int | None:
    """The most bytes of zeros that an encoder can write one after another; None if unknown.

    Coded coefficients hold no such stretch. Empty packets do, a byte each, and so do the headers
    of others, a bit or so for each code-block that they leave out.
    """
    style = _coding_style(head)
    high_throughput = head[6] & 0x40  # Rsiz: its coefficients can be zeros
    if style is None or len(style) < 10 or high_throughput:
        return None
    layers = int.from_bytes(style[2:4], "big")
    parts = _parts(style, *_tile_size(head))
    return sum(layers * (precincts + blocks // 4) for precincts, blocks in parts)


def _tile_size(head: bytes) -> tuple[int, int]:
    """Width and height of the largest tile of a JPEG 2000 codestream, in pixels."""
    width, height, left, top, tile_width, tile_height = (
        int.from_bytes(head[at : at + 4], "big") for at in range(8, 32, 4)
    )
    return min(tile_width, width - left), min(tile_height, height - top)


def _parts(style: bytes, width: int, height: int) -> Iterator[tuple[int, int]]:
    """Precincts and code-blocks of each resolution of a tile, at most."""
    levels = style[5]
    for level in range(levels + 1):
        precinct = style[10 + level] if style[0] & 1 and len(style) > 10 + level else 0xFF
        scale = levels - level

        def cells(right: int, down: int, scale: int = scale) -> int:
            return ((width >> scale + right) + 2) * ((height >> scale + down) + 2)

        right, down = precinct & 15, precinct >> 4
        yield cells(right, down), cells(min(right, style[6] + 2), min(down, style[7] + 2))


def _coding_styles(frame: bytes, start: int) -> Iterator[bytes]:
    """The parameters of each COD of a JPEG 2000 codestream, and of each COC as if it were one."""
    offset = start + 2
    tile_part, size = 0, 0
    while offset + 4 <= len(frame):
        if frame[offset] != 0xFF or frame[offset + 1] not in _JPEG_2000_MARKERS:
            # As OpenJPEG does, which looks for the next marker that it knows.
            offset += 2
            continue
        marker, length = frame[offset + 1], int.from_bytes(frame[offset + 2 : offset + 4], "big")
        content = frame[offset + 4 : offset + 2 + length]
        if marker == _TILE_DATA:
            if size <= offset - tile_part:  # 0: the last one
                return
            offset = tile_part + size
            continue
        if marker == _TILE_PART:
            tile_part, size = offset, int.from_bytes(content[2:6], "big")
        elif marker == _CODING_STYLE_OF_COMPONENT:
            # Of the first component, the only one of a grey image.
            content = content[1:2] + bytes(4) + content[2:]
        if marker in (_CODING_STYLE, _CODING_STYLE_OF_COMPONENT) and len(content) >= 10:
            yield content
        offset += 2 + length


def _codestream_of_container(frame: bytes) -> bytes:
    """The codestream, or its first piece, in a JPEG XL container; empty where there is none."""
    offset = 0
    while offset + 8 <= len(frame):
        length, kind = int.from_bytes(frame[offset : offset + 4], "big"), frame[offset + 4 :][:4]
        if kind in _JPEG_XL_CODESTREAM_BOXES:
            return frame[offset + 8 + _JPEG_XL_CODESTREAM_BOXES[kind] :]
        if length < 8:  # the last box, or one of over 4 GB
            break
        offset += length
    return b""


class _Bits:
    """A bit reader, lowest bit of the first byte first; reads zeros beyond the end."""

    def __init__(self, data: bytes) -> None:
        self._bits = int.from_bytes(data, "little")

    def read(self, count: int) -> int:
        taken = self._bits & ((1 << count) - 1)
        self._bits >>= count
        return taken

    def choose(self, *options: tuple[int, int]) -> int:
        """One of four (offset, number of further bits): U32 of ISO/IEC 18181-1 B.2.2."""
        offset, count = options[self.read(2)]
        return offset + self.read(count)


def _read_jpeg_xl_size(bits: _Bits) -> tuple[int, int]:
    """(rows, columns)."""
    small = bits.read(1)

    def length() -> int:
        return 8 * (bits.read(5) + 1) if small else bits.choose((1, 9), (1, 13), (1, 18), (1, 30))

    rows, ratio = length(), bits.read(3)
    if ratio == 0:
        return rows, length()
    width, height = _JPEG_XL_RATIOS[ratio - 1]
    return rows, rows * width // height


def _read_jpeg_xl(head: bytes) -> CodestreamSize | None:
    bits = _Bits(head)
    rows, columns = _read_jpeg_xl_size(bits)
    if bits.read(1):  # all metadata at their defaults
        return CodestreamSize("jpeg_xl", rows, columns, 3, 8)
    if bits.read(1):
        bits.read(3)  # orientation
        if bits.read(1):
            _read_jpeg_xl_size(bits)
        if bits.read(2):  # a preview or an animation: not a single image
            return None
    is_float = bits.read(1)
    if is_float:
        return None
    precision = bits.choose((8, 0), (10, 0), (12, 0), (1, 6))
    bits.read(1)  # whether 16-bit buffers suffice
    further_channels = bits.choose((0, 0), (1, 0), (2, 4), (1, 12))
    if further_channels:
        return None
    bits.read(1)  # whether XYB-encoded
    default_colour = bits.read(1)
    is_grey = False
    if not default_colour:
        bits.read(1)  # whether an ICC profile follows
        is_grey = bits.choose((0, 0), (1, 0), (2, 4), (18, 6)) == 1
    return CodestreamSize("jpeg_xl", rows, columns, 1 if is_grey else 3, precision)
