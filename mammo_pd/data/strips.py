"""Lossless compression of a level: strips of rows, each a Blosc2 chunk that is read by itself.

A shuffle, then LZ4. By bytes: smooth high bytes and air shrink, noisy low bytes are copied, so a
core undoes it at 4 GB/s. By bits, at 2 GB/s: it gains on native pixels, whose 10 to 14 stored bits
are spread over 16, and nothing on averages of them. What else was measured is in
benchmarks/results/store_compression_2cpu_2026-11-26.md.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

ROWS = 64
"""Of each strip; the last one has what is left."""

# A chunk begins with its own header, in which this is its size: Blosc2's "Chunk Format".
_CHUNK_HEADER = 32
_CHUNK_SIZE = slice(12, 16)


def compress(pixels: npt.NDArray[np.uint16], *, by_bits: bool) -> bytes:
    """Compress (height, width) uint16: its strips behind one another.

    Args:
        pixels: of the level.
        by_bits: whether to shuffle by bits and not by bytes; each strip says so itself.
    """
    # Not at the top: most readers have nothing to do with it.
    from imagecodecs import blosc2_encode

    return b"".join(
        blosc2_encode(
            np.ascontiguousarray(pixels[top : top + ROWS], "<u2"),  # type: ignore[arg-type]  # any buffer
            level=1,
            compressor="lz4",
            shuffle="bitshuffle" if by_bits else "shuffle",
            typesize=2,
            numthreads=1,
        )
        for top in range(0, len(pixels), ROWS)
    )


def decompress(data: memoryview, width: int, out: memoryview) -> None:
    """Undo `compress`; the interpreter's lock is free meanwhile.

    Args:
        data: bytes of the strips.
        width: of the level, pixels.
        out: bytes of the level's pixels.

    Raises:
        ValueError: the strips are damaged.
    """
    from imagecodecs import Blosc2Error, blosc2_decode

    strip = 2 * ROWS * width
    chunks = _chunks(data)
    try:
        for start in range(0, len(out), strip):
            pixels = out[start : start + strip]
            # Given more room than the chunk fills, it returns the part that was filled.
            found: Any = blosc2_decode(next(chunks), out=pixels, numthreads=1)  # type: ignore[arg-type]
            if len(found) != len(pixels):
                raise ValueError("a strip of another size")
        if next(chunks, None) is not None:
            raise ValueError("more strips than rows")
    except (Blosc2Error, StopIteration) as error:
        raise ValueError("its strips are damaged") from error


def _chunks(data: memoryview) -> Iterator[memoryview]:
    start = 0
    while start < len(data):
        size = int.from_bytes(data[start:][_CHUNK_SIZE], "little")
        if not _CHUNK_HEADER <= size <= len(data) - start:
            raise ValueError("its strips are damaged")
        yield data[start : start + size]
        start += size
