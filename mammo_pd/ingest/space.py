"""How much room a run will take on the disk, told from a few headers before anything is decoded."""

import io
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom import config

from mammo_pd.data.kept_levels import levels_of
from mammo_pd.data.store import StorePaths
from mammo_pd.errors import InputError
from mammo_pd.imaging.raster import RASTER_SUFFIXES, read_raster_header
from mammo_pd.ingest.add_levels import bytes_of
from mammo_pd.terms import Compression, Frames

# Headers that are read, evenly spread over the files.
_SAMPLE = 64
# Of a file only its first bytes are read, so that no file, however made, costs time or memory.
_HEAD = 2**18
# Of the pixels' bytes where they are compressed: benchmarks/results/store_compression_*.
_COMPRESSED_SHARE = 0.75
# What the crop keeps of a frame's width.
_CROP_SHARE = 0.6


@dataclass(frozen=True)
class Space:
    """Bytes that a run will add to a store.

    Attributes:
        likely: where crops have their usual share of the frame.
        most: where nothing is cropped.
    """

    likely: int
    most: int


def expected_space(
    files: Sequence[Path],
    frames: Frames,
    kept: Sequence[str],
    compression: Compression = Compression.NONE,
    *,
    is_left_out: Callable[[Path], bool] = lambda _: False,
) -> Space:
    """Estimate what some files will take in a store.

    Args:
        files: to be decoded.
        frames: what is taken of files of several frames.
        kept: the levels that the store keeps.
        compression: of what is written.
        is_left_out: whether a file, though it is decoded, will not be stored.

    Returns:
        0 for files whose header cannot be read, or whose frames are not taken.
    """
    sample = files[:: max(1, -(-len(files) // _SAMPLE))]
    likely = most = 0
    for file in sample:
        height, width, count = (0, 0, 0) if is_left_out(file) else _frame_shape(file)
        taken = {Frames.EXCLUDE: int(count == 1), Frames.EACH: count}.get(frames, min(count, 1))
        for share in (_CROP_SHARE, 1.0):
            crop = height, max(1, round(width * share))
            size = taken * bytes_of(crop, levels_of(max(crop), kept)) if height and width else 0
            likely, most = (likely + size, most) if share < 1 else (likely, most + size)
    scale = len(files) / max(1, len(sample))
    share = 1.0 if compression == Compression.NONE else _COMPRESSED_SHARE
    return Space(round(likely * scale * share), round(most * scale))


def tell_space(paths: StorePaths, space: Space) -> str:
    """A line on the expected size.

    Raises:
        InputError: the disk has less room than is likely to be needed.
    """
    free = shutil.disk_usage(paths.root).free
    needed = f"about {_in_words(space.likely)}, at most {_in_words(space.most)}"
    if space.likely > free:
        raise InputError(
            f"the store {paths.root} is expected to take {needed} more, and its disk has "
            f"{_in_words(free)} free; free some space, name another --out, or keep fewer levels, "
            "such as --levels 1024 for training at --res 1024."
        )
    may_fill = f"; warning: the disk has {_in_words(free)} free" if space.most > free else ""
    return f"expected size of the pixels: {needed}{may_fill}"


def _frame_shape(file: Path) -> tuple[int, int, int]:
    """Height, width and number of frames; zeros if the header does not tell."""
    try:
        if file.suffix.lower() in RASTER_SUFFIXES:
            return *read_raster_header(file).size, 1
        with file.open("rb") as opened:
            head = io.BytesIO(opened.read(_HEAD))
        tags = ["Rows", "Columns", "NumberOfFrames"]
        # Warnings would quote values of the header.
        with warnings.catch_warnings(), config.disable_value_validation():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(head, stop_before_pixels=True, specific_tags=tags, force=True)
            return int(header.Rows), int(header.Columns), int(header.get("NumberOfFrames") or 1)
    except Exception:  # a bad file can raise almost anything; its worker will say what is wrong
        return 0, 0, 0


def _in_words(size: int) -> str:
    value = float(size)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB" if value < 1000 else f"{value / 1000:.1f} TB"
