"""The women of a phantom archive, and the outline of each breast in each view.

In: settings and the index of a woman. Out: her age, density, vendor and lesion status, and for each
breast and view the skin line and the edge of the pectoral muscle, in mm.
"""

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from mammo_pd.phantoms.settings import PhantomSettings, Stream, random_stream
from mammo_pd.phantoms.vendors import Vendor
from mammo_pd.terms import Laterality

Lengths = NDArray[np.floating]

_DENSITY_SHARES = MappingProxyType({"A": 0.15, "B": 0.40, "C": 0.35, "D": 0.10})
_MASS_SHARE = 0.75


class LesionKind(StrEnum):
    """What a lesion is; the label table says ``none`` where there is none."""

    MASS = "mass"
    CALCIFICATION = "calcification"


@dataclass(frozen=True)
class Woman:
    """What all four images of a woman share.

    Attributes:
        vendor: who made her images.
        age: in years.
        density: BI-RADS breast composition, A (fatty) to D (extremely dense).
        half_height: half the height of the breast in CC, mm.
        depth: chest wall to nipple, mm.
        case_laterality: the breast with the lesion; None for a healthy woman.
        lesion_kind: of her lesion, or of the one that she would have.
    """

    vendor: Vendor
    age: int
    density: str
    half_height: float
    depth: float
    case_laterality: Laterality | None
    lesion_kind: LesionKind


def draw_woman(settings: PhantomSettings, patient: int) -> Woman:
    """Draw one woman.

    Args:
        settings: which women, and at what resolution.
        patient: her index, from 0.
    """
    rng = random_stream(settings, patient, Stream.WOMAN)
    # A stream of its own, so that nothing else about her depends on whether she is a case.
    case = random_stream(settings, patient, Stream.CASE)
    is_case = case.random() < settings.prevalence
    side = list(Laterality)[case.integers(2)]
    kind = LesionKind.MASS if case.random() < _MASS_SHARE else LesionKind.CALCIFICATION
    return Woman(
        vendor=_draw_vendor(settings, patient),
        age=int(rng.integers(40, 80)),
        density=str(rng.choice(list(_DENSITY_SHARES), p=list(_DENSITY_SHARES.values()))),
        half_height=rng.uniform(50, 78),
        depth=rng.uniform(60, 100),
        case_laterality=side if is_case else None,
        lesion_kind=kind,
    )


def _draw_vendor(settings: PhantomSettings, patient: int) -> Vendor:
    # Women come in blocks that hold every vendor once, shuffled: equal shares in any archive.
    block, place = divmod(patient, len(settings.vendors))
    rng = np.random.default_rng([settings.seed, block, Stream.VENDOR])
    order: list[int] = rng.permutation(len(settings.vendors)).tolist()
    return settings.vendors[order[place]]


@dataclass(frozen=True)
class Body:
    """The outline of one breast in one view, in mm from the image's top left corner.

    CC is a half ellipse. MLO hangs from the axilla at the image's top edge, with the pectoral
    muscle as a triangle in the corner.

    Attributes:
        view: CC or MLO.
        nipple_y: height of the nipple, from the top.
        half_height: half the height of the breast.
        depth: chest wall to nipple.
        axilla: width of the breast at the top edge; MLO only, as the following.
        pectoral_width: of the muscle at the top edge.
        pectoral_height: of the muscle along the chest wall.
    """

    view: str
    nipple_y: float
    half_height: float
    depth: float
    axilla: float = 0.0
    pectoral_width: float = 0.0
    pectoral_height: float = 0.0

    def edge(self, y: Lengths) -> Lengths:
        """Distance from the chest wall to the skin at height ``y``; negative beyond the breast."""
        t = (y - self.nipple_y) / self.half_height
        # Exponents near those of an ellipse (2 and 0.5), a little fuller.
        outline = self.depth * np.clip(1 - np.abs(t) ** 2.2, 0, None) ** 0.55
        if self.view == "MLO":
            above = np.clip(-y / self.nipple_y + 1, 0, 1)  # 0 at the nipple, 1 at the top
            hanging = self.depth + (self.axilla - self.depth) * np.sin(above * np.pi / 2) ** 2
            outline = np.where(y < self.nipple_y, hanging, outline)
        return np.where(outline > 0, outline, -1.0)

    def pectoral(self, y: Lengths) -> Lengths:
        """Distance from the chest wall to the muscle's edge at height ``y``; negative below it."""
        if self.view == "CC":
            return np.full_like(y, -10.0)
        return self.pectoral_width * (1 - y / self.pectoral_height)


def draw_body(settings: PhantomSettings, patient: int, laterality: Laterality, view: str) -> Body:
    """Draw the outline of one breast as it is compressed for one view.

    Args:
        settings: which women, and at what resolution.
        patient: index of the woman, from 0.
        laterality: side of the breast.
        view: CC or MLO.
    """
    woman = draw_woman(settings, patient)
    rng = random_stream(settings, patient, Stream.BODY, laterality, view)
    height = woman.vendor.rows * woman.vendor.imager_pixel_spacing
    # No two compressions are alike: the same breast varies a little between sides and views.
    half_height = woman.half_height * rng.uniform(0.96, 1.04)
    depth = woman.depth * rng.uniform(0.97, 1.05)
    if view == "CC":
        return Body(view, height * rng.uniform(0.46, 0.54), half_height, depth)
    axilla = depth * rng.uniform(0.5, 0.7)
    return Body(
        view,
        nipple_y=half_height * rng.uniform(1.45, 1.7),
        half_height=half_height,
        depth=depth,
        axilla=axilla,
        pectoral_width=axilla * rng.uniform(0.6, 0.85),
        pectoral_height=half_height * rng.uniform(1.2, 1.7),
    )
