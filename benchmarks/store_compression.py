"""Measure what lossless compression of a store's levels saves, and how fast it is undone.

    python benchmarks/store_compression.py STORE [--levels 1024 2048] [--out RESULTS.md]

STORE must have its private folder, for the sizes of the original files. Images of which it is
doubtful what is breast are left out. Each level is cut into strips of 64 rows, which are compressed
by themselves, so that a reader can take some of them; "whole" is one strip. Speeds are of one core,
in processor time, of uint16 bytes that go in or come out; the best of five passes over all images,
which are in memory. The page cache's is that of a copy into memory, as the loader makes it.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

from mammo_pd.data.image_file import find_levels
from mammo_pd.data.record import Record
from mammo_pd.data.store import open_store
from mammo_pd.terms import Status
from mammo_pd.wording import percent

_ROUNDS = 5
_ROWS = 64


@dataclass(frozen=True)
class Codec:
    """A way to compress (h, w) uint16 to bytes and back."""

    name: str
    encode: Callable[[np.ndarray], Any]
    decode: Callable[[Any, tuple[int, int]], np.ndarray]
    rows: int | None = _ROWS


def _as_array(data: Any, shape: tuple[int, int]) -> np.ndarray:
    return np.frombuffer(data, np.uint16).reshape(shape)


def _blosc2(compressor: str, level: int, shuffle: str) -> dict[str, Any]:
    return {
        "encode": lambda a: imagecodecs.blosc2_encode(
            a, level=level, compressor=compressor, shuffle=shuffle, typesize=2, numthreads=1
        ),
        "decode": lambda d, s: _as_array(imagecodecs.blosc2_decode(d, numthreads=1), s),
    }


def _across(pixels: np.ndarray) -> np.ndarray:
    """Each row's difference from the row above, modulo 2^16."""
    different = pixels.copy()
    different[1:] -= pixels[:-1]
    return different


def _back(different: np.ndarray) -> np.ndarray:
    return np.cumsum(different, axis=0, dtype=np.uint16)


def codecs() -> list[Codec]:
    """What is measured."""
    found = [
        Codec(
            f"zstd {level}",
            partial(imagecodecs.zstd_encode, level=level),
            lambda d, s: _as_array(imagecodecs.zstd_decode(d), s),
        )
        for level in (1, 3)
    ]
    found.append(Codec("zstd 1, whole", found[0].encode, found[0].decode, None))
    for compressor, level in (("lz4", 1), ("zstd", 1), ("zstd", 5)):
        for shuffle in ("shuffle", "bitshuffle"):
            name = f"blosc2 {compressor} {level}, {shuffle}"
            found.append(Codec(name, **_blosc2(compressor, level, shuffle)))
    for compressor in ("lz4", "zstd"):
        plain = _blosc2(compressor, 1, "bitshuffle")
        found.append(
            Codec(
                f"rows' differences, blosc2 {compressor} 1, bitshuffle",
                lambda a, plain=plain: plain["encode"](_across(a)),
                lambda d, s, plain=plain: _back(plain["decode"](d, s)),
            )
        )
    htj2k = partial(imagecodecs.htj2k_encode, reversible=True)
    pcodec = partial(imagecodecs.pcodec_decode, dtype=np.uint16)
    found += [
        Codec("pcodec 4", partial(imagecodecs.pcodec_encode, level=4), lambda d, s: pcodec(d, s)),
        Codec(
            "png 1",
            partial(imagecodecs.png_encode, level=1),
            lambda d, _: imagecodecs.png_decode(d),
        ),
        Codec("htj2k", htj2k, lambda d, _: imagecodecs.htj2k_decode(d)),
        Codec("jpegls", imagecodecs.jpegls_encode, lambda d, _: imagecodecs.jpegls_decode(d)),
        Codec("ljpeg", imagecodecs.ljpeg_encode, lambda d, _: imagecodecs.ljpeg_decode(d)),
    ]
    return found


def strips(pixels: np.ndarray, rows: int | None) -> list[np.ndarray]:
    """Cut a level into strips of rows."""
    step = rows or len(pixels)
    return [np.ascontiguousarray(pixels[top : top + step]) for top in range(0, len(pixels), step)]


def quantised(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Round to fewer bits; air stays 0 and tissue stays above it."""
    step = 1 << (16 - bits)
    rounded = np.minimum((pixels.astype(np.uint32) + step // 2) // step, (1 << bits) - 1)
    return np.where(pixels, np.maximum(rounded, 1), 0).astype(np.uint16)


def noise_of(pixels: np.ndarray) -> float:
    """The noise of breast pixels, as a robust standard deviation, in units of uint16.

    Of the second differences of triples of neighbours in a row, whose variance is 6 times the
    noise's; structure only adds to it, so the median over the image's quietest tenth of blocks is
    taken.
    """
    wide = pixels.astype(np.float64)
    second = wide[:, :-2] - 2 * wide[:, 1:-1] + wide[:, 2:]
    inside = (pixels[:, :-2] > 0) & (pixels[:, 1:-1] > 0) & (pixels[:, 2:] > 0)
    # A saturated region has no noise, and says nothing.
    inside &= (pixels[:, 1:-1] < 65535) & (second != 0)
    found = []
    for top in range(0, second.shape[0] - 15, 16):
        for left in range(0, second.shape[1] - 15, 16):
            block = inside[top : top + 16, left : left + 16]
            if block.mean() > 0.9:
                there = second[top : top + 16, left : left + 16][block]
                found.append(1.4826 * np.median(np.abs(there)) / 6**0.5)
    return float(np.quantile(found, 0.1)) if found else float("nan")


def images(store: Path, level: str) -> list[tuple[np.ndarray, int]]:
    """The level's pixels and the size of the file of each image that counts."""
    paths, found = open_store(store.resolve()), []
    with Record(paths) as record:
        for image in record.rows():
            columns = image.columns
            file = image.source.path
            is_whole_file = image.source.frame is None and file.is_file()
            if (columns["status"], columns.get("breast_verdict")) != (Status.OK, "ok"):
                continue
            if not is_whole_file:
                continue
            with paths.image(image.image_id).open("rb") as opened:
                place = find_levels(opened.fileno()).get(level)
                if place is not None:
                    size = 2 * place.height * place.width
                    data = os.pread(opened.fileno(), size, place.start)
                    pixels = np.frombuffer(data, np.uint16).reshape(place[:2])
                    found.append((pixels, file.stat().st_size))
    return found


def fastest(work: Callable[[], object]) -> float:
    """Seconds of processor time, the least of some rounds."""
    taken = []
    for _ in range(_ROUNDS):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return min(taken)


def measure(codec: Codec, levels: list[np.ndarray]) -> tuple[float, float, float]:
    """The ratio, and bytes per second of encoding and decoding."""
    cut = [strip for pixels in levels for strip in strips(pixels, codec.rows)]
    size = sum(strip.nbytes for strip in cut)
    packed = [codec.encode(strip) for strip in cut]
    for strip, data in zip(cut, packed, strict=True):
        assert np.array_equal(codec.decode(data, strip.shape), strip), codec.name
    encoding = fastest(lambda: [codec.encode(strip) for strip in cut])
    shapes = [strip.shape for strip in cut]
    decoding = fastest(
        lambda: [codec.decode(data, shape) for data, shape in zip(packed, shapes, strict=True)]
    )
    return size / sum(map(len, packed)), size / encoding, size / decoding


def copy_speed(levels: list[np.ndarray], scratch: Path) -> float:
    """Bytes per second of reading files that lie in the page cache."""
    files = []
    for number, pixels in enumerate(levels):
        file = scratch / f"level-{number}"
        file.write_bytes(pixels.tobytes())
        files.append(os.open(file, os.O_RDONLY))
        file.unlink()
    buffer = memoryview(bytearray(max(pixels.nbytes for pixels in levels)))
    sizes = [pixels.nbytes for pixels in levels]

    def read() -> None:
        for handle, size in zip(files, sizes, strict=True):
            os.preadv(handle, [buffer[:size]], 0)

    speed = sum(sizes) / fastest(read)
    for handle in files:
        os.close(handle)
    return speed


def table(store: Path, level: str) -> list[str]:
    """The lines on one level."""
    found = images(store, level)
    levels = [pixels for pixels, _ in found]
    size, originals = sum(a.nbytes for a in levels), sum(original for _, original in found)
    air = sum(int((a == 0).sum()) for a in levels) / sum(a.size for a in levels)
    lines = [
        f"## Level {level}",
        "",
        f"{len(levels)} images, {size / 1e6:.1f} MB, which is {size / originals:.2f} times their "
        f"original files; {percent(air)} of the pixels are air. Read from the page cache: "
        f"{copy_speed(levels, store) / 1e6:.0f} MB/s.",
        "",
        "| codec | ratio | bytes over the original files | compress, MB/s | decode, MB/s |",
        "|---|---|---|---|---|",
    ]
    for codec in codecs():
        ratio, packing, unpacking = measure(codec, levels)
        lines.append(
            f"| {codec.name} | {ratio:.2f} | {size / originals / ratio:.2f} "
            f"| {packing / 1e6:.0f} | {unpacking / 1e6:.0f} |"
        )
        print(lines[-1], flush=True)
    noise = [noise_of(pixels) for pixels in levels]
    lines += [
        "",
        "Noise of single images, quietest tenth of their blocks, in steps of 16 bits: "
        + ", ".join(f"{value:.0f}" for value in sorted(noise))
        + ". Rounded to fewer bits, with zstd 1 and with bitshuffle:",
        "",
        "| bits | error of rounding, steps | over the noise of the quietest, the median image "
        "| ratio, zstd 1 | ratio, blosc2 zstd 1 bitshuffle |",
        "|---|---|---|---|---|",
    ]
    by_name = {codec.name: codec for codec in codecs()}
    for bits in (14, 13, 12, 11, 10):
        fewer = [quantised(pixels, bits) for pixels in levels]
        ratios = [
            measure(by_name[name], fewer)[0] for name in ("zstd 1", "blosc2 zstd 1, bitshuffle")
        ]
        error = 2 ** (16 - bits) / 12**0.5
        quiet, usual = np.nanmin(noise), np.nanmedian(noise)
        lines.append(
            f"| {bits} | {error:.1f} | {error / quiet:.2f}, {error / usual:.2f} | {ratios[0]:.2f} "
            f"| {ratios[1]:.2f} |"
        )
        print(lines[-1], flush=True)
    return [*lines, ""]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--levels", nargs="+", default=["1024", "2048", "native"])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    lines = [f"# Compression of a store's levels, {date.today()}", ""]
    lines += [f"imagecodecs {imagecodecs.version().split(',')[0]}, one core.", ""]
    for level in given.levels:
        lines += table(given.store, level)
    text = "\n".join(lines)
    print(text)
    if given.out is not None:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
