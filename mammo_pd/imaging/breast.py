"""Where the breast is: a grey image in; its mask, box, chest-wall side and a verdict out.

Works on a copy reduced to a long side of about 256 pixels. The background need not be zero: film
is scanned with padding, markers, tape, bright edges and noise around the breast.

Thresholds, distance maps, components and their statistics are SimpleITK's. Arrays here are
(row, column); SimpleITK's indices and boxes are (x, y), and are turned where they are read.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from scipy.ndimage import uniform_filter
from scipy.spatial import ConvexHull, QhullError

from mammo_pd.errors import ImageError
from mammo_pd.imaging.box import Box
from mammo_pd.imaging.pyramid import block_mean
from mammo_pd.terms import Reason

REDUCED_LONG_SIDE = 256

# Lengths as a share of the frame's long side.
_OPENING = 0.03  # half the width of what counts as a strip, a marker or a line of text
_GROWTH = 0.08  # how far dim skin may reach beyond the bright part
_MARGIN = 0.008  # air kept around the skin, so that it is never cut

# Levels above the background, as a share of the breast's own height above it.
_DIM = 0.12
_SKIN = 0.04

# The core is taken for an implant if the breast around it is this much larger and this bright.
# Film base in the corpus reaches up to 0.11 of the breast's own brightness.
_MUCH_LARGER = 1.3
_TISSUE_BESIDE_IMPLANT = 0.15
# Beside an implant at the end of the range, which no film shows, tissue may be nearly black.
_SATURATED = 0.9  # share of the core that is white
_TISSUE_BESIDE_SATURATED_IMPLANT = 0.004

_BLACK = 0.004  # up to here: padding around a film
_WHITE = 0.97  # beyond: burnt-in text, tape or a strip rather than tissue

_SMALLEST_AREA = 0.01  # below: no breast at all
_SMALL_AREA = 0.05
_FILLING_AREA = 0.93
_LOWEST_SOLIDITY = 0.8  # breasts of the corpus have 0.85 or more
# In the corpus the chest wall's side has 0.81 or more, the other 0.44 or less.
_WALL_CONTACT = 0.55
_STRAIGHT_WALL = 0.8

# Another part of the body, or a bright line, at the upper or lower edge of the frame hangs together
# with the breast by a neck: at most so wide as a share of what lies on either side of it, and at
# most that share of the tissue is taken away. Above may lie the axilla, whose neck is wide.
_NECK_BELOW, _LARGEST_BELOW = 0.87, 0.35
_NECK_ABOVE, _LARGEST_ABOVE = 0.75, 0.25
_BRIGHTEST_AIR = 0.3  # of the tissue; a breast in an image still inverted has 0.5 of its air

# A second breast has at least this share of the first one's area; of 768 women of the corpus whose
# two images were put on one, one has less. What else has a breast's shape there (an abdomen, an
# arm) has 0.32 at most, beside the smallest of 2,500 breasts; no strip of film has that shape. It
# is searched for only where enough is as bright as a breast, which spares nearly all images that.
_SECOND_AREA = 1 / 3
_WORTH_A_SEARCH = 0.1
_SHAPES_OF_A_SECOND = ("ok", "small", "no_chest_wall")


@dataclass(frozen=True)
class BreastRegion:
    """The breast in one image.

    Attributes:
        mask: (h, w) bool, True on the breast and a margin around it; one pixel stands for
            ``block`` x ``block`` pixels of the full frame.
        block: see ``mask``.
        box: the crop in the full frame; the whole frame where the verdict is doubtful.
        side: ``left`` or ``right``, where the chest wall lies in the image.
        area_fraction: breast pixels (without margin) per frame pixels.
        solidity: breast area divided by the area of its convex hull.
        verdict: ``ok``, or why the result is doubtful: ``fills_frame``, ``small``,
            ``looks_inverted`` (the bright region surrounds something rounder), ``not_solid``,
            ``no_chest_wall`` (no side is cut straight, as in a spot view), ``two_sided`` (both
            are), ``two_breasts`` (another breast lies beside the one found, as where two films
            were scanned together). A doubtful image is kept whole.
    """

    mask: np.ndarray
    block: int
    box: Box
    side: str
    area_fraction: float
    solidity: float
    verdict: str

    def cut_out(self, pixels: np.ndarray) -> np.ndarray:
        """Crop the full frame to the box and set everything outside the mask to 0.

        Args:
            pixels: (H, W), the frame that was searched.

        Returns:
            (box.height, box.width), a copy.
        """
        if self.verdict != "ok":
            return pixels.copy()
        return np.asarray(pixels[self.box.slices] * self._inside())

    def sample(self, pixels: np.ndarray) -> np.ndarray:
        """Every fourth pixel, each way, of what lies on the breast: (n,).

        Args:
            pixels: (H, W), the frame that was searched.
        """
        found: np.ndarray = pixels[self.box.slices][::4, ::4][self._inside(step=4)]
        return found

    def _inside(self, step: int = 1) -> np.ndarray:
        """The mask on the box's pixels, or on one in each ``step`` x ``step`` of them."""
        # The mask drops the rows and columns left over by the blocks; they repeat its last ones.
        rows = np.arange(self.box.top, self.box.bottom, step) // self.block
        columns = np.arange(self.box.left, self.box.right, step) // self.block
        height, width = self.mask.shape
        inside = self.mask[np.minimum(rows, height - 1)][:, np.minimum(columns, width - 1)]
        return np.asarray(inside)


def find_breast(pixels: np.ndarray) -> BreastRegion:
    """Find the breast in a grey image.

    Runs after the grey scale. A bright core is found first, by Otsu's threshold and an opening
    that removes strips, markers and letters; it then grows by a bounded distance down to the
    noise of the background, so that dim skin is kept whatever lies further away.

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
    lowest, contrast = grey.min(), float(np.ptp(grey))
    if contrast < 1:
        raise ImageError(Reason.NO_BREAST, "The image is plain: it shows no breast.")
    dark, middle = np.percentile(grey, [5, 50])
    has_no_background = dark > 0.3 * middle
    grey = (grey - lowest) / contrast
    long_side = max(grey.shape)
    core = _find_core(grey, _OPENING * long_side)
    if core.mean() < _SMALLEST_AREA:
        if not has_no_background:
            raise ImageError(
                Reason.NO_BREAST, "Nothing in the image is as large and solid as a breast."
            )
        # A magnified breast without air around it has no bright part to tell from a dark one.
        core[:] = True
    whole, shape = _shapes_around(grey, core)
    mask = _within(shape.tissue, max(_MARGIN * long_side, 2))
    verdict = shape.verdict
    # Other parts of the body that were cut off are known, and no breast.
    if verdict == "ok" and _is_breast_beside(grey, mask | whole.tissue, int(shape.tissue.sum())):
        verdict = "two_breasts"
    box = Box.whole(frame) if verdict != "ok" else _box_around(mask, block, frame)
    return BreastRegion(mask, block, box, shape.side, shape.area_fraction, shape.solidity, verdict)


@dataclass(frozen=True)
class _Shape:
    """A mask of tissue and what its shape says of it, in the terms of `BreastRegion`."""

    tissue: np.ndarray
    side: str
    area_fraction: float
    solidity: float
    verdict: str

    @classmethod
    def of(cls, tissue: np.ndarray) -> "_Shape":
        area_fraction = float(tissue.mean())
        solidity = _solidity(tissue)
        left, right = _wall_contact(tissue)
        verdict = "ok"
        # From the plainest sign to the weakest: the first that applies names the doubt.
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
        side = "left" if left >= right else "right"
        return cls(tissue, side, area_fraction, solidity, verdict)


_MAY_HOLD_ANOTHER_PART = ("two_sided", "looks_inverted", "not_solid", "no_chest_wall")


def _shapes_around(grey: np.ndarray, core: np.ndarray) -> tuple[_Shape, _Shape]:
    """All that grows out of the core, and the same without other parts of the body."""
    whole = _Shape.of(_grow_to_skin(grey, core, max(grey.shape)))
    if whole.verdict in _MAY_HOLD_ANOTHER_PART and _is_dark_around(grey, whole.tissue):
        return whole, _without_other_parts(whole)
    return whole, whole


def _is_breast_beside(grey: np.ndarray, known: np.ndarray, area: int) -> bool:
    """Whether another breast lies beside the one that was found.

    What was found is painted over with the background, and the rest is searched like an image of
    its own.

    Args:
        grey: (h, w) float64, 0 to 1.
        known: (h, w) bool, the breast found, its margin, and what was cut off it.
        area: of the breast found, in pixels.
    """
    bright = _above_otsu(np.sqrt(grey), _without_padding(grey)) & ~known
    if bright.sum() < _WORTH_A_SEARCH * area:
        return False
    dark = ~known & ~bright
    rest = np.where(known, np.median(grey[dark]) if dark.any() else 0.0, grey)
    rest /= rest.max()
    core = _find_core(rest, _OPENING * max(grey.shape))
    if not core.any():
        return False
    _, shape = _shapes_around(rest, core)
    return shape.verdict in _SHAPES_OF_A_SECOND and bool(shape.tissue.sum() >= _SECOND_AREA * area)


def _is_dark_around(grey: np.ndarray, tissue: np.ndarray) -> bool:
    """Whether the rest is air; where the image is still inverted, the tissue found is that."""
    level = np.median(grey[tissue])
    return bool(level <= _WHITE and np.median(grey[~tissue]) < _BRIGHTEST_AIR * level)


def _without_other_parts(whole: _Shape) -> _Shape:
    """The tissue less what hangs on to it at the upper or lower edge of the frame.

    An abdomen, an arm, a chin or a bright line there is as wide as it likes, and where it meets the
    breast the skin turns in: the mask has a neck. It is cut at the deepest that leaves one breast
    beyond doubt; if possible below, where no axilla can be lost; and nowhere if none does.
    """
    area, height = int(whole.tissue.sum()), len(whole.tissue)
    above = _necks(whole.tissue, _NECK_ABOVE, _LARGEST_ABOVE * area)
    below = _necks(whole.tissue[::-1], _NECK_BELOW, _LARGEST_BELOW * area)
    cuts = [(0, last) for last in below] + [(first, 0) for first in above]
    for first, last in [*cuts, *product(above, below)]:
        kept = np.zeros_like(whole.tissue)
        kept[first : height - last] = whole.tissue[first : height - last]
        shape = _Shape.of(_largest_piece(kept))
        if shape.verdict == "ok":
            return shape
    return whole


def _necks(tissue: np.ndarray, widest: float, largest: float) -> list[int]:
    """How many rows could be cut off at the upper edge, the deepest neck first.

    Args:
        tissue: (h, w) bool.
        widest: width of a neck by that of what lies on either side of it, at most.
        largest: what may be cut off, in pixels.
    """
    widths = tissue.sum(axis=1)
    lost = np.cumsum(widths)
    depths: dict[int, float] = {}
    if not widths[0]:
        return []
    for row in range(1, len(widths) - 1):
        if lost[row - 1] > largest:
            break
        # The last row of a level stretch: as little as can be is left of what hangs on.
        is_lowest = widths[row] <= widths[row - 1] and widths[row] < widths[row + 1]
        beside = min(widths[:row].max(), widths[row + 1 :].max())
        if is_lowest and widths[row] < widest * beside:
            depths[row] = float(widths[row] / beside)
    # Steps on the way out of a neck are none themselves.
    deep = 1.15 * min(depths.values(), default=0.0)
    return sorted((row for row in depths if depths[row] <= deep), key=depths.__getitem__)


def _largest_piece(mask: np.ndarray) -> np.ndarray:
    labels = _run(sitk.ConnectedComponentImageFilter(), mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def _find_core(grey: np.ndarray, opening: float) -> np.ndarray:
    """The bright part of the breast: the largest solid piece that is no white strip; or nothing."""
    film = _without_padding(grey)
    # The root lifts dim fat above the background's class without pulling noise up to it.
    brightness = np.sqrt(grey)
    bright = _above_otsu(brightness, film)
    pieces = sitk.ConnectedComponentImageFilter()
    labels = _run(pieces, _opened(bright, opening))
    if pieces.GetObjectCount() == 0:
        return np.zeros(grey.shape, bool)
    # The largest piece, but white counts a tenth, so that a strip of tape loses to a breast.
    white = np.bincount(labels[grey > _WHITE], minlength=pieces.GetObjectCount() + 1)
    shapes = _measure_shapes(labels)
    core: np.ndarray = labels == max(
        shapes.GetLabels(), key=lambda label: shapes.GetNumberOfPixels(label) - 0.9 * white[label]
    )
    around = _breast_around(grey, brightness, film & ~bright, core, opening)
    return core if around is None else around


def _breast_around(
    grey: np.ndarray,
    brightness: np.ndarray,
    dark: np.ndarray,
    core: np.ndarray,
    opening: float,
) -> np.ndarray | None:
    """The breast around a core that is only its brightest part, such as an implant; else None.

    A second threshold, within what the first left dark, separates tissue from air, or film base
    from padding. Film base and a detector's lit air reach the far side of the frame, and the
    surroundings of a spot view have no straight wall.
    """
    core_area = int(core.sum())
    is_saturated = float((grey[core] > _WHITE).mean()) > _SATURATED
    bright_enough = float(np.median(grey[core])) * (
        _TISSUE_BESIDE_SATURATED_IMPLANT if is_saturated else _TISSUE_BESIDE_IMPLANT
    )
    # At least half of the tissue added below has to be that bright. Most images have too little
    # of it to reach the required size, which saves them the rest.
    candidates = np.count_nonzero(~core & (grey >= bright_enough))
    if core_area + 2 * candidates < _MUCH_LARGER * core_area:
        return None
    if not dark.any() or np.ptp(brightness[dark]) < 0.01:
        return None  # plain air: nothing to separate
    # Joined to the core before the opening, which a thin rim of tissue would not survive alone.
    lit = _above_otsu(brightness, dark) | core
    around = _touching(core, _opened(lit, opening) | core)
    tissue = around & ~core
    if around.sum() < _MUCH_LARGER * core_area or not tissue.any():
        return None
    if np.median(grey[tissue]) < bright_enough:
        return None
    far, wall = sorted(_wall_contact(around))
    return around if far < _WALL_CONTACT and wall > _STRAIGHT_WALL else None


def _grow_to_skin(grey: np.ndarray, core: np.ndarray, long_side: int) -> np.ndarray:
    """Grow the core twice: over dim tissue that is solid, then to where the background begins."""
    reach = _GROWTH * long_side
    inside = float(np.median(grey[core]))
    background, noise = _background(grey, core, inside, reach)
    height = inside - background
    # First over what is clearly brighter than the background, and thick.
    dim = grey > background + max(6 * noise, _DIM * height)
    solid = _touching(core, _opened(dim | core, _OPENING * long_side) | core)
    # Then over faint skin: averaging 3 x 3 pixels lets the threshold lie nearer to the noise.
    # Not by SimpleITK's mean, which takes three times as long and rounds differently: stores made
    # before would no longer be reproduced.
    skin = uniform_filter(grey, 3) > background + max(4 * noise, _SKIN * height)
    # Padding beside a film is no skin, however bright its neighbour.
    skin &= grey > 0
    # Openings remove the film's own edges, lines of two pixels at most.
    grown = _opened(solid | (skin & _within(solid, reach)), 2) | core
    return _filled(_touching(core, grown))


def _background(
    grey: np.ndarray, core: np.ndarray, inside: float, reach: float
) -> tuple[float, float]:
    """Level and noise of what lies around a core of level ``inside``; both 0 for plain black."""
    far = ~_within(core, reach)
    lit = grey[far & (grey > 0)]
    # Air need not be near black: a detector's can lie at a quarter of the range.
    lowest = float(np.percentile(lit, 5)) if lit.size else 0.0
    dark = far & (grey < 0.5 * (lowest + inside))
    film = dark & (grey > 0)
    if film.sum() < 0.05 * dark.sum() or not film.any():
        return 0.0, 0.0
    # Dim tissue may be in there too, so level and spread are read off the lower end: in a normal
    # distribution the 5th and 20th centiles lie 1.645 and 0.842 deviations below the mean.
    fifth, twentieth = np.percentile(grey[film], [5, 20])
    noise = float(twentieth - fifth) / (1.645 - 0.842)
    return float(twentieth) + 0.842 * noise, noise


def _without_padding(grey: np.ndarray) -> np.ndarray:
    """True on the film: the box around all that is not plain black."""
    film = np.zeros(grey.shape, bool)
    film[_bounding_box(grey > _BLACK).slices] = True
    return film


def _above_otsu(brightness: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Where 0..1 values exceed Otsu's threshold, which is found ``among`` some pixels alone."""
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.SetInsideValue(0)
    otsu.SetOutsideValue(1)
    otsu.SetMaskValue(1)
    otsu.SetMaskOutput(False)
    # Of an 8-bit image the histogram has one bin for each value from 0 to 255; of any other type
    # its range would depend on the image's own minimum and maximum.
    otsu.SetNumberOfHistogramBins(256)
    eight_bits = np.minimum(brightness * 256, 255).astype(np.uint8)
    return _run(otsu, eight_bits, among).astype(bool)


def _opened(mask: np.ndarray, radius: float) -> np.ndarray:
    """Opening by a disk; outside the frame counts as air.

    By distance maps, since SimpleITK's own opening has disks of whole pixels only: the radius is a
    share of the frame, from 3.8 to 7.7 pixels.
    """
    opened = np.zeros(mask.shape, bool)
    if mask.any():
        box = _bounding_box(mask).slices  # no opening reaches beyond its mask
        eroded = ~_within(~np.pad(mask[box], 1), radius)[1:-1, 1:-1]
        opened[box] = _within(eroded, radius)
    return opened


def _within(mask: np.ndarray, distance: float) -> np.ndarray:
    """True where the nearest True pixel of the mask is at most that many pixels away."""
    to_mask = sitk.SignedMaurerDistanceMapImageFilter()
    to_mask.SetUseImageSpacing(False)
    # Squared distances are whole numbers, so no rounding decides; inside they are negative.
    to_mask.SetSquaredDistance(True)
    # Where every pixel is in the mask, SimpleITK has no distance to give, hence the union.
    return mask | (_run(to_mask, mask) <= distance**2)


def _touching(core: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Those pieces of the mask that hold a pixel of the core, itself a part of the mask."""
    touching = np.zeros(mask.shape, bool)
    box = _bounding_box(mask).slices
    labels = _run(sitk.ConnectedComponentImageFilter(), mask[box])
    wanted = np.zeros(int(labels.max()) + 1, bool)
    wanted[labels[core[box]]] = True
    touching[box] = wanted[labels]
    return touching


def _filled(mask: np.ndarray) -> np.ndarray:
    filled = np.zeros(mask.shape, bool)
    box = _bounding_box(mask).slices
    fill = sitk.BinaryFillholeImageFilter()
    fill.SetForegroundValue(1)
    filled[box] = _run(fill, mask[box])
    return filled


def _solidity(mask: np.ndarray) -> float:
    # SimpleITK's label shapes have no convex hull. The ends of each row, at the corners of their
    # pixels, have the same hull as the whole mask.
    rows = np.flatnonzero(mask.any(axis=1))
    first = mask[rows].argmax(axis=1)
    last = mask.shape[1] - mask[rows, ::-1].argmax(axis=1)
    corners = [np.column_stack([edge, end]) for edge in (rows, rows + 1) for end in (first, last)]
    try:
        return float(mask.sum() / ConvexHull(np.concatenate(corners)).volume)
    except QhullError:
        return 1.0


def _looks_inverted(mask: np.ndarray, area_fraction: float, solidity: float) -> bool:
    """Whether the mask is the air around a breast rather than a breast."""
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
    labels = _run(sitk.ConnectedComponentImageFilter(), ~mask)
    shapes = _measure_shapes(labels)
    if shapes.GetNumberOfLabels() == 0:
        return False
    largest = max(shapes.GetLabels(), key=shapes.GetNumberOfPixels)
    return _solidity(labels == largest) > solidity - 0.06


def _wall_contact(mask: np.ndarray) -> tuple[float, float]:
    """Share of the breast's rows that reach its left and its right edge: 1 where cut straight."""
    inner = _bounding(mask)
    edge = max(inner.shape[1] // 20, 1)
    return float(inner[:, :edge].any(axis=1).mean()), float(inner[:, -edge:].any(axis=1).mean())


def _bounding(mask: np.ndarray) -> np.ndarray:
    return mask[_bounding_box(mask).slices]


def _bounding_box(mask: np.ndarray) -> Box:
    # Not SimpleITK's label shapes, which take ten times as long; it is asked for often.
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return Box(top, left, int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left)


def _box_around(mask: np.ndarray, block: int, frame: tuple[int, int]) -> Box:
    """The box of a mask of blocks, in pixels of the frame."""
    box = _bounding_box(mask)
    # The last block also stands for the rows and columns left over when the frame was reduced.
    bottom = frame[0] if box.bottom == mask.shape[0] else box.bottom * block
    right = frame[1] if box.right == mask.shape[1] else box.right * block
    top, left = box.top * block, box.left * block
    return Box(top, left, bottom - top, right - left)


def _run(image_filter: Any, *arrays: np.ndarray) -> np.ndarray:
    """Run a SimpleITK filter on (h, w) arrays; bool becomes uint8."""
    # One thread: there is a worker for each core, and images this small gain nothing by more.
    image_filter.SetNumberOfThreads(1)
    found = image_filter.Execute(*map(_to_image, arrays))
    return np.asarray(sitk.GetArrayFromImage(found))


def _measure_shapes(labels: np.ndarray) -> Any:
    """SimpleITK's shape statistics of an (h, w) array of labels, without background 0."""
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.SetNumberOfThreads(1)
    shapes.SetComputePerimeter(False)
    shapes.Execute(_to_image(labels))
    return shapes


def _to_image(array: np.ndarray) -> Any:
    return sitk.GetImageFromArray(array.view(np.uint8) if array.dtype == bool else array)
