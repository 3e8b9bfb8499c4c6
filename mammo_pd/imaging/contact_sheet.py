"""Contact sheets: many mammograms to a page, each with its crop box, to be looked at."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mammo_pd.imaging.geometry import Box

_CELL = 256
_CAPTION = 14
_COLUMNS, _ROWS = 8, 5


def draw_contact_sheet(
    items: Iterable[tuple[np.ndarray, Box | None, str]], path: Path
) -> list[Path]:
    """Draw thumbnails with their boxes, 40 to a page.

    Args:
        items: (thumbnail, box, caption) of each image: (h, w) uint8 or uint16 of the full frame;
            the crop scaled to it, or None; a word or two.
        path: the image file to write, PNG or JPEG by its ending. Further pages get a number:
            ``sheet.png``, ``sheet-2.png``, ...

    Returns:
        The files written, none where there are no items.
    """
    written: list[Path] = []
    page: Image.Image | None = None
    for number, (thumbnail, box, caption) in enumerate(items):
        place = number % (_COLUMNS * _ROWS)
        if place == 0:
            _save(page, path, written)
            page = Image.new("RGB", (_COLUMNS * _CELL, _ROWS * (_CELL + _CAPTION)))
        corner = (place % _COLUMNS * _CELL, place // _COLUMNS * (_CELL + _CAPTION))
        assert page is not None
        page.paste(_cell(thumbnail, box, caption), corner)
    _save(page, path, written)
    return written


def _cell(thumbnail: np.ndarray, box: Box | None, caption: str) -> Image.Image:
    grey = thumbnail if thumbnail.dtype == np.uint8 else (thumbnail >> 8).astype(np.uint8)
    image = Image.fromarray(grey).convert("RGB")
    if box is not None:
        corners = (box.left, box.top, box.right - 1, box.bottom - 1)
        ImageDraw.Draw(image).rectangle(corners, outline=(255, 200, 0))
    image.thumbnail((_CELL, _CELL))
    cell = Image.new("RGB", (_CELL, _CELL + _CAPTION), (40, 40, 60))
    cell.paste(image, (0, _CAPTION))
    ImageDraw.Draw(cell).text((2, 1), caption[:42], fill=(255, 255, 255))
    return cell


def _save(page: Image.Image | None, path: Path, written: list[Path]) -> None:
    if page is None:
        return
    number = len(written) + 1
    target = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(target)
    written.append(target)
