"""Which pyramid levels a store keeps: all, or those that `preprocess --levels` asked for.

The levels of a store are named in ``store.json``; a store that names none keeps all. An image that
is smaller than one of them keeps its native pixels in that level's place.
"""

import shlex
from collections.abc import Iterable

from mammo_pd.data.store import StorePaths, read_store_info, write_store_info
from mammo_pd.errors import InputError
from mammo_pd.terms import PYRAMID_LONG_SIDES
from mammo_pd.wording import counted

NATIVE = "native"
ALL_LEVELS = (NATIVE, *map(str, PYRAMID_LONG_SIDES))


def parse_levels(text: str) -> tuple[str, ...]:
    """Read names of levels, separated by commas.

    Returns:
        The names, the largest level first.

    Raises:
        InputError: one is no level.
    """
    named = {name.strip() for name in text.split(",")}
    unknown = sorted(named - {*ALL_LEVELS})
    if unknown:
        raise InputError(
            f"--levels {text}: there is no level {unknown[0]!r}; choose from "
            f"{', '.join(ALL_LEVELS)}, separated by commas."
        )
    return tuple(level for level in ALL_LEVELS if level in named)


def kept_levels(paths: StorePaths) -> tuple[str, ...]:
    """The levels that a store keeps, the largest first."""
    # Noise written for a benchmark has no store.json.
    info = read_store_info(paths) if paths.info.is_file() else {}
    return tuple(info.get("levels", ALL_LEVELS))


def keep_levels(paths: StorePaths, levels: tuple[str, ...]) -> None:
    """Write down which levels a store keeps from now on; nothing where these are what it kept."""
    if levels != kept_levels(paths):
        write_store_info(paths, {**read_store_info(paths), "levels": levels})


def levels_of(long_side: int, kept: Iterable[str]) -> list[str]:
    """The levels of one image.

    Args:
        long_side: of its native pixels.
        kept: the levels that the store keeps.

    Returns:
        Those of them that are smaller than the image, and ``native`` if that is kept or stands in
        for a level that is not smaller.
    """
    sides = [int(level) for level in kept if level != NATIVE]
    smaller = [str(side) for side in sorted(sides, reverse=True) if side < long_side]
    return [NATIVE, *smaller] if NATIVE in kept or len(smaller) < len(sides) else smaller


def refuse_missing_levels(
    paths: StorePaths, wanted: Iterable[tuple[str, int]], purpose: str
) -> None:
    """Refuse to read levels that a store does not keep.

    Args:
        paths: the store.
        wanted: of each image the level that is wanted and its native long side.
        purpose: what wants them, to begin the sentence with.

    Raises:
        InputError: some are not kept; it names the command that adds them.
    """
    kept = kept_levels(paths)
    if kept == ALL_LEVELS:
        return
    count = 0
    missing: set[str] = set()
    for level, long_side in wanted:
        if level not in levels_of(long_side, kept):
            count += 1
            missing.add(_that_adds(level, long_side))
    if missing:
        to_add = ",".join(level for level in ALL_LEVELS if level in missing)
        raise InputError(
            f"{purpose} needs the level {to_add} of {counted(count, 'image')}, and the store "
            f"{paths.root} keeps {', '.join(kept)} only; add it with: mammo-pd preprocess "
            f"DICOM_DIR --out {shlex.quote(str(paths.root))} --levels {to_add}"
        )


def _that_adds(level: str, long_side: int) -> str:
    """The smallest level by which an image gets the one that it lacks."""
    if level != NATIVE:
        return level
    standing_in = [side for side in sorted(PYRAMID_LONG_SIDES) if side >= long_side]
    return str(standing_in[0]) if standing_in else NATIVE
