"""Contact sheets: pages of thumbnails with their crop boxes, for visual inspection."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mammo_pd.imaging.box import Box

_CELL = 256
_CAPTION = 14
_COLUMNS, _ROWS = 8, 5
_GROUND = (40, 40, 60)


def draw_contact_sheet(
    items: Iterable[tuple[np.ndarray, Box | None, str]], path: Path, *, last_line: str = ""
) -> list[Path]:
    """Draw thumbnails with their boxes, 40 to a page.

    Args:
        items: (thumbnail, box, caption) of each image: (h, w) uint8 or uint16 of the full frame;
            the crop in its pixels, or None; a short text.
        path: the image file to write, PNG or JPEG by its ending. Further pages are numbered:
            ``sheet.png``, ``sheet-2.png``, ...
        last_line: below all images, on a line of its own.

    Returns:
        The files written, none where there are no items.
    """
    written: list[Path] = []
    cells = (_cell(*item) for item in items)
    page = list(islice(cells, _COLUMNS * _ROWS))
    while page:
        following = list(islice(cells, _COLUMNS * _ROWS))
        number = len(written) + 1
        target = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        path.parent.mkdir(parents=True, exist_ok=True)
        _compose(page, "" if following else last_line).save(target)
        written.append(target)
        page = following
    return written


def _cell(thumbnail: np.ndarray, box: Box | None, caption: str) -> Image.Image:
    grey = thumbnail if thumbnail.dtype == np.uint8 else (thumbnail >> 8).astype(np.uint8)
    image = Image.fromarray(grey).convert("RGB")
    if box is not None:
        corners = (box.left, box.top, box.right - 1, box.bottom - 1)
        ImageDraw.Draw(image).rectangle(corners, outline=(255, 200, 0))
    image.thumbnail((_CELL, _CELL))
    cell = Image.new("RGB", (_CELL, _CELL + _CAPTION), _GROUND)
    cell.paste(image, (0, _CAPTION))
    ImageDraw.Draw(cell).text((2, 1), caption[:42], fill=(255, 255, 255))
    return cell


def _compose(cells: list[Image.Image], last_line: str) -> Image.Image:
    """Place cells in rows, on a page as high as they need, and a line below them."""
    height = _CELL + _CAPTION
    below = -(-len(cells) // _COLUMNS) * height
    page = Image.new("RGB", (_COLUMNS * _CELL, below + _CAPTION * bool(last_line)), _GROUND)
    ImageDraw.Draw(page).text((2, below + 1), last_line, fill=(255, 255, 255))
    for place, cell in enumerate(cells):
        page.paste(cell, (place % _COLUMNS * _CELL, place // _COLUMNS * height))
    return page
