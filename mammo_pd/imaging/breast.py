"""Where the breast is: grey image in; mask, box, side of the chest wall and a verdict out.

Works on a copy reduced to a long side of about 256 pixels. The background need not be zero: film
is scanned with padding, markers, tape, bright edges and noise around the breast.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from mammo_pd.errors import ImageError
from mammo_pd.imaging.box import Box
from mammo_pd.imaging.pyramid import block_mean
from mammo_pd.terms import Reason

REDUCED_LONG_SIDE = 256

# Lengths as a share of the frame's long side.
_OPENING = 0.03  # half the width of what counts as a strip, a marker or a line of text
_GROWTH = 0.08  # how far the dim skin may reach beyond the bright part
_MARGIN = 0.008  # air kept around the skin, so that it is never cut

# Levels above the background, as a share of the breast's own height above it.
_DIM = 0.12
_SKIN = 0.04

# A core of implant: the breast is this much larger, and this bright beside it. Over the corpus film
# base has up to 0.11 of the breast's own brightness.
_MUCH_LARGER = 1.3
_TISSUE_BESIDE_IMPLANT = 0.15

_SMALLEST_AREA = 0.01  # below: no breast at all
_SMALL_AREA = 0.05
_FILLING_AREA = 0.93
_LOWEST_SOLIDITY = 0.8  # 0.85 or more over the corpus
# Over the corpus the wall's side has 0.81 or more, the other 0.44 or less.
_WALL_CONTACT = 0.55
_STRAIGHT_WALL = 0.8


@dataclass(frozen=True)
class BreastRegion:
    """The breast in one image.

    Attributes:
        mask: (h, w) bool, True where there is breast with a margin; one pixel stands for
            ``block`` x ``block`` of the full frame.
        block: see ``mask``.
        box: the crop in the full frame; the whole frame where the verdict is doubtful.
        side: ``left`` or ``right``, where the chest wall lies in the image.
        area_fraction: breast pixels (without margin) per frame pixels.
        solidity: breast area per area of its convex hull.
        verdict: ``ok``, or why the finding is doubtful: ``fills_frame``, ``small``,
            ``looks_inverted`` (what is bright is the surroundings of something rounder),
            ``not_solid``, ``no_chest_wall`` (no side is cut straight, as in a spot view),
            ``two_sided`` (both are). A doubtful image is kept whole.
    """

    mask: np.ndarray
    block: int
    box: Box
    side: str
    area_fraction: float
    solidity: float
    verdict: str

    def cut_out(self, pixels: np.ndarray) -> np.ndarray:
        """Crop the full frame to the box and set air to 0.

        Args:
            pixels: (H, W) of the frame that was searched.

        Returns:
            (box.height, box.width), a copy.
        """
        if self.verdict != "ok":
            return pixels.copy()
        rows = np.arange(self.box.top, self.box.bottom) // self.block
        columns = np.arange(self.box.left, self.box.right) // self.block
        height, width = self.mask.shape
        inside = self.mask[np.minimum(rows, height - 1)][:, np.minimum(columns, width - 1)]
        return np.asarray(pixels[self.box.slices] * inside)


def find_breast(pixels: np.ndarray) -> BreastRegion:
    """Find the breast in a grey image.

    Runs after the grey scale. A bright core is found first, by Otsu's threshold and an opening
    that drops strips, markers and letters; it then grows by a bounded distance down to the
    background's own noise, so that dim skin is kept whatever lies far from it.

    Args:
        pixels: (H, W) uint16, breast bright on dark; best before a window has clipped dim skin.

    Returns:
        The region; the pectoral muscle counts as breast.

    Raises:
        ImageError: nothing in the image is as large and solid as a breast (``no_breast_found``).

    Source: N. Otsu, A threshold selection method from gray-level histograms, 1979.
    """
    frame = (pixels.shape[0], pixels.shape[1])
    block = max(-(-max(frame) // REDUCED_LONG_SIDE), 1)
    if min(frame) < 8 * block:
        raise ImageError(Reason.NO_BREAST, f"The image is {frame[0]} x {frame[1]}: too narrow.")
    grey = block_mean(pixels, block)
    has_no_background = np.percentile(grey, 5) > 0.3 * np.median(grey)
    grey = (grey - grey.min()) / max(float(np.ptp(grey)), 1.0)
    long_side = max(grey.shape)
    core = _find_core(grey, _OPENING * long_side)
    if core.mean() < _SMALLEST_AREA:
        if not has_no_background:
            raise ImageError(
                Reason.NO_BREAST, "Nothing in the image is as large and solid as a breast."
            )
        core[:] = True
    tissue = _grow_to_skin(grey, core, long_side)

    area_fraction = float(tissue.mean())
    solidity = _solidity(tissue)
    left, right = _wall_contact(tissue)
    verdict = "ok"
    if area_fraction > _FILLING_AREA:
        verdict = "fills_frame"
    elif area_fraction < _SMALL_AREA:
        verdict = "small"
    elif min(left, right) > _WALL_CONTACT:
        verdict = "two_sided"
    elif _looks_inverted(tissue, area_fraction, solidity):
        verdict = "looks_inverted"
    elif solidity < _LOWEST_SOLIDITY:
        verdict = "not_solid"
    elif max(left, right) < _WALL_CONTACT:
        verdict = "no_chest_wall"
    mask = ndimage.distance_transform_edt(~tissue) <= max(_MARGIN * long_side, 2)
    box = Box.whole(frame) if verdict != "ok" else _box_around(mask, block, frame)
    side = "left" if left >= right else "right"
    return BreastRegion(mask, block, box, side, area_fraction, solidity, verdict)


def _find_core(grey: np.ndarray, opening: float) -> np.ndarray:
    """The bright part of the breast: the largest solid piece that is no white strip; or nothing."""
    film = _without_padding(grey)
    # The root lifts dim fat above the background's class without pulling noise up to it.
    bright = grey > _otsu(np.sqrt(grey[film])) ** 2
    labels, count = ndimage.label(_opened(bright, opening))
    if count == 0:
        return np.zeros(grey.shape, bool)
    not_white = 1 - 0.9 * (grey > 0.97)
    score = ndimage.sum_labels(not_white, labels, np.arange(1, count + 1))
    core: np.ndarray = labels == int(np.argmax(score)) + 1
    around = _breast_around(grey, film, bright, core, opening)
    return core if around is None else around


def _breast_around(
    grey: np.ndarray,
    film: tuple[slice, slice],
    bright: np.ndarray,
    core: np.ndarray,
    opening: float,
) -> np.ndarray | None:
    """The breast around a core that is only what is brightest in it, as an implant; else None.

    A second threshold, among what the first left dark, parts tissue from air or film base from
    padding. Film base and a detector's lit air reach the frame's far side, and the surroundings
    of a spot view have no straight wall.
    """
    dark = np.sqrt(grey[film][~bright[film]])
    if dark.size == 0 or np.ptp(dark) < 0.01:
        return None  # plain air: nothing to part
    lit = (grey > _otsu(dark) ** 2) | core
    around = _pieces_touching(_opened(lit, opening) | core, core)
    tissue = around & ~core
    if around.sum() < _MUCH_LARGER * core.sum() or not tissue.any():
        return None
    if np.median(grey[tissue]) < _TISSUE_BESIDE_IMPLANT * np.median(grey[core]):
        return None
    far, wall = sorted(_wall_contact(around))
    return around if far < _WALL_CONTACT and wall > _STRAIGHT_WALL else None


def _grow_to_skin(grey: np.ndarray, core: np.ndarray, long_side: int) -> np.ndarray:
    """Grow the core twice: over dim tissue that is solid, then to where the background begins."""
    reach = _GROWTH * long_side
    background, noise = _background(grey, core, reach)
    inside = float(np.median(grey[core]))
    dim = grey > background + max(6 * noise, _DIM * (inside - background))
    solid = _opened(dim | core, _OPENING * long_side) | core
    solid = _pieces_touching(solid, core)
    skin = ndimage.uniform_filter(grey, 3) > background + max(
        4 * noise, _SKIN * (inside - background)
    )
    # Padding beside a film is no skin, however bright its neighbour.
    skin &= grey > 0
    near = ndimage.distance_transform_edt(~solid) <= reach
    # The film's own edges are lines of two pixels at most.
    grown = _opened(solid | (skin & near), 2) | core
    filled: np.ndarray = ndimage.binary_fill_holes(_pieces_touching(grown, core))
    return filled


def _background(grey: np.ndarray, core: np.ndarray, reach: float) -> tuple[float, float]:
    """Level and noise of what lies around the breast, both 0 where that is plain black."""
    far = ndimage.distance_transform_edt(~core) > reach
    lit = grey[far & (grey > 0)]
    # Air need not be near black: a detector's can lie at a quarter of the range.
    lowest = float(np.percentile(lit, 5)) if lit.size else 0.0
    dark = far & (grey < 0.5 * (lowest + float(np.median(grey[core]))))
    film = dark & (grey > 0)
    if film.sum() < 0.05 * dark.sum() or not film.any():
        return 0.0, 0.0
    # Dim tissue may be in there too, so level and spread are read off the lower end: in a normal
    # distribution the 5th and 20th centiles lie 1.645 and 0.842 deviations below the mean.
    fifth, twentieth = np.percentile(grey[film], [5, 20])
    noise = float(twentieth - fifth) / (1.645 - 0.842)
    return float(twentieth) + 0.842 * noise, noise


def _pieces_touching(mask: np.ndarray, core: np.ndarray) -> np.ndarray:
    labels, _ = ndimage.label(mask)
    touching = np.zeros(int(labels.max()) + 1, bool)
    touching[labels[core]] = True
    touching[0] = False
    return np.asarray(touching[labels])


def _without_padding(grey: np.ndarray) -> tuple[slice, slice]:
    """The frame without rows and columns of plain black around a film."""
    lit = grey > 0.004
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _otsu(values: np.ndarray) -> float:
    """The threshold that parts 0..1 values into the two tightest classes."""
    counts, edges = np.histogram(values, bins=256, range=(0, 1))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[int(np.nanargmax(between)) + 1])


def _opened(mask: np.ndarray, radius: float) -> np.ndarray:
    """Opening by a disk; the frame's outside counts as air."""
    eroded: np.ndarray = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1] > radius
    if not eroded.any():
        return eroded
    return np.asarray(ndimage.distance_transform_edt(~eroded) <= radius)


def _solidity(mask: np.ndarray) -> float:
    # The outline's pixels, at their corners, have the same hull as all of them.
    outline = np.argwhere(mask & ~ndimage.binary_erosion(mask))
    corners = (outline[:, None] + np.array([[0, 0], [0, 1], [1, 0], [1, 1]])).reshape(-1, 2)
    try:
        return float(mask.sum() / ConvexHull(corners).volume)
    except QhullError:
        return 1.0


def _looks_inverted(mask: np.ndarray, area_fraction: float, solidity: float) -> bool:
    """Whether the mask is rather the air around a breast than a breast."""
    if area_fraction < 0.5:
        return False
    # A breast leaves the corners beyond the nipple free; air has at least three.
    inner = _bounding(mask)
    rows, columns = max(inner.shape[0] // 25, 1), max(inner.shape[1] // 25, 1)
    corners = [
        inner[vertical, horizontal].mean() > 0.5
        for vertical in (slice(rows), slice(-rows, None))
        for horizontal in (slice(columns), slice(-columns, None))
    ]
    if sum(corners) > 2:
        return True
    # And a breast is rounder than the air around it, which it cuts a bay into.
    labels, count = ndimage.label(~mask)
    if count == 0:
        return False
    sizes = np.bincount(labels.ravel())[1:]
    return _solidity(labels == int(np.argmax(sizes)) + 1) > solidity - 0.06


def _bounding(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _wall_contact(mask: np.ndarray) -> tuple[float, float]:
    """Share of the breast's rows that reach its left and its right edge: 1 where cut straight."""
    inner = _bounding(mask)
    edge = max(inner.shape[1] // 20, 1)
    return float(inner[:, :edge].any(axis=1).mean()), float(inner[:, -edge:].any(axis=1).mean())


def _box_around(mask: np.ndarray, block: int, frame: tuple[int, int]) -> Box:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    # The last block stands also for what was left over when the frame was reduced.
    bottom = frame[0] if rows[-1] == mask.shape[0] - 1 else (rows[-1] + 1) * block
    right = frame[1] if columns[-1] == mask.shape[1] - 1 else (columns[-1] + 1) * block
    top, left = int(rows[0]) * block, int(columns[0]) * block
    return Box(top, left, int(bottom) - top, int(right) - left)
