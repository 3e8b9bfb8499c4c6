"""Lesions: a place that fits both views, then a mass or a calcification cluster drawn into them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from mammo_pd.phantoms.settings import VIEWS, PhantomSettings, Stream, random_stream
from mammo_pd.phantoms.tissue import FloatImage, PixelGrid
from mammo_pd.phantoms.women import Body, Lengths, LesionKind, draw_body, draw_woman
from mammo_pd.terms import Laterality

_MASS_CONTRAST = (0.3, 0.42)  # lowest and highest, in grey
_SPICULE_REACH = 1.9  # longest spicule, as a multiple of the mass's radius


@dataclass(frozen=True)
class Lesion:
    """Where a lesion lies in one image.

    Attributes:
        kind: mass or calcification cluster.
        row: of the centre, in pixels of the stored image, from 0 at the top.
        column: of the centre, likewise from the left.
        radius: in pixels, of the mass without its spicules, or of the cluster.
    """

    kind: LesionKind
    row: float
    column: float
    radius: float


@dataclass(frozen=True)
class LesionSite:
    """Where a lesion lies in a breast.

    Attributes:
        centre: for each view (y, x) in mm from the image's top left corner.
        radius: in mm.
        spiculated: whether a mass has spicules.
    """

    centre: Mapping[str, tuple[float, float]]
    radius: float
    spiculated: bool


def draw_lesion_site(settings: PhantomSettings, patient: int, laterality: Laterality) -> LesionSite:
    """Draw a place in the breast that both views show.

    A lesion lies at the same distance behind the nipple in CC and MLO: the rule by which
    radiologists match the two views.

    Args:
        settings: which women, and at what resolution.
        patient: index of the woman, from 0.
        laterality: side of the breast.
    """
    woman = draw_woman(settings, patient)
    bodies = {view: draw_body(settings, patient, laterality, view) for view in VIEWS}
    rng = random_stream(settings, patient, Stream.PLACE, laterality)
    mass = woman.lesion_kind is LesionKind.MASS
    radius = rng.uniform(4, 10) if mass else rng.uniform(3, 5)
    spiculated = bool(rng.random() < 0.5)
    # Rejection sampling: most places fit, so the limit is only reached by a bug.
    for _ in range(1000):
        behind_nipple = woman.depth * rng.uniform(0.25, 0.75)
        centre = {
            view: (
                body.nipple_y + body.half_height * rng.uniform(-0.6, 0.6),
                body.depth - behind_nipple,
            )
            for view, body in bodies.items()
        }
        if all(_fits(bodies[view], *centre[view], radius) for view in VIEWS):
            return LesionSite(centre, radius, spiculated)
    raise AssertionError("no place in this breast for its lesion")


def _fits(body: Body, y: float, x: float, radius: float) -> bool:
    """Whether a disc lies inside the breast, clear of chest wall, skin and muscle."""
    heights = np.array([y - radius, y, y + radius])
    return bool(
        x - radius > 3
        and np.all(x + radius + 3 < body.edge(heights))
        and np.all(x - radius - 2 > body.pectoral(heights))
    )


def add_mass(
    grey: FloatImage,
    lesion: Lesion,
    spiculated: bool,
    grid: PixelGrid,
    rng: np.random.Generator,
) -> None:
    """Add a soft-edged mass, lobulated or spiculated, in place."""
    window, rows, columns = _window_around(grey, lesion, _SPICULE_REACH * lesion.radius)
    radius = np.hypot(rows, columns) / lesion.radius
    angle = np.arctan2(rows, columns)
    # A circle whose radius is modulated by a few lobes at random phases.
    outline = np.ones_like(radius)
    for lobes in (2, 3, 5):
        outline += rng.uniform(0.02, 0.3 / lobes) * np.cos(
            lobes * angle + rng.uniform(0, 2 * np.pi)
        )
    density = expit((outline - radius) / 0.1)
    if spiculated:
        width = 0.4 / (lesion.radius * grid.spacing)  # 0.4 mm, as a share of the radius
        for direction in rng.uniform(0, 2 * np.pi, rng.integers(10, 18)):
            along = radius * np.cos(angle - direction)
            across = radius * np.sin(angle - direction)
            length = rng.uniform(1.4, _SPICULE_REACH)
            fade = np.clip(1 - along / length, 0, 1) * (along > 0)
            density = np.maximum(density, 0.8 * fade * np.exp(-((across / width) ** 2)))
    window += (rng.uniform(*_MASS_CONTRAST) * density).astype(np.float32)


def add_calcifications(grey: FloatImage, lesion: Lesion, rng: np.random.Generator) -> None:
    """Add a cluster of 5 to 15 specks, each 2 to 5 pixels wide, in place."""
    window, rows, columns = _window_around(grey, lesion, lesion.radius + 5)
    cluster = np.zeros_like(window)
    for _ in range(rng.integers(5, 16)):
        # The square root makes the specks uniform over the disc, not crowded at its centre.
        distance = lesion.radius * np.sqrt(rng.random())
        direction = rng.uniform(0, 2 * np.pi)
        half_width = rng.uniform(2, 5) / 2
        from_speck = np.hypot(
            rows - distance * np.sin(direction), columns - distance * np.cos(direction)
        )
        speck = rng.uniform(0.35, 0.5) * np.exp(-((from_speck / half_width) ** 4))
        cluster = np.maximum(cluster, speck.astype(np.float32))
    window += cluster


def _window_around(
    grey: FloatImage, lesion: Lesion, reach: float
) -> tuple[FloatImage, Lengths, Lengths]:
    """A view of the image within ``reach`` pixels, with row and column offsets from the centre."""
    top = max(0, int(lesion.row - reach))
    left = max(0, int(lesion.column - reach))
    window = grey[top : int(lesion.row + reach) + 2, left : int(lesion.column + reach) + 2]
    rows = np.arange(window.shape[0])[:, None] + top - lesion.row
    columns = np.arange(window.shape[1])[None] + left - lesion.column
    return window, rows, columns
