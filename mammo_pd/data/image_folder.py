"""One image's levels as stores of format 1 hold them: a folder of ``native.npy``, ``1024.npy``, ….

They are read only. Whatever is written of an image becomes one file (`image_file`), and its folder
goes.
"""

import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mammo_pd.data.image_file import LevelPlace, version_of

_CHUNK = 2**20


def find_level(handle: int) -> LevelPlace:
    """Find the pixels in an open file of one level.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no level's file.
    """
    with os.fdopen(handle, "rb", closefd=False) as stream:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("another version of the format")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
        if fortran_order or dtype != np.uint16 or len(shape) != 2:
            raise ValueError(f"{dtype} of shape {shape}")
        size = 2 * shape[0] * shape[1]
        return LevelPlace(*shape, stream.tell(), size, False, version_of(os.fstat(handle)))


def stored_bytes(folder: Path) -> int:
    """The total size of an image's levels; 0 if there are none."""
    return sum(file.stat().st_size for file in folder.glob("*.npy"))


def is_damaged(folder: Path, checksums: Mapping[str, int]) -> bool:
    """Whether a level is missing, cannot be read, or no longer has its checksum."""
    return any(_crc_of(folder / f"{name}.npy") != crc for name, crc in checksums.items())


def _crc_of(file: Path) -> int | None:
    found = 0
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                found = zlib.crc32(chunk, found)
    except OSError:  # a bad sector, too
        return None
    return found
