"""One phantom image: breast, lesion, noise, marker, then the vendor's stored values."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mammo_pd.phantoms.lesions import Lesion, add_calcifications, add_mass, draw_lesion_site
from mammo_pd.phantoms.settings import VIEWS, PhantomSettings, Stream, random_stream
from mammo_pd.phantoms.tissue import (
    PixelGrid,
    burn_in_marker,
    draw_air,
    draw_breast,
    outside_collimation,
    quantum_noise,
)
from mammo_pd.phantoms.vendors import PIXEL_PADDING_VALUE, Vendor, stored_values
from mammo_pd.phantoms.women import LesionKind, draw_body, draw_woman
from mammo_pd.terms import Laterality


@dataclass(frozen=True)
class Phantom:
    """One image and what is known about it.

    Attributes:
        pixels: (rows, columns) uint16, stored values.
        patient: index of the woman, from 0.
        laterality: side of the breast.
        view: CC or MLO.
        label: 1 where this breast has a lesion, which both its views show.
        age: in years.
        density: BI-RADS breast composition, A (fatty) to D (extremely dense).
        vendor: who made the image.
        imager_pixel_spacing: (row, column) in mm at the detector.
        lesions: those in this image.
    """

    pixels: NDArray[np.uint16]
    patient: int
    laterality: Laterality
    view: str
    label: int
    age: int
    density: str
    vendor: Vendor
    imager_pixel_spacing: tuple[float, float]
    lesions: tuple[Lesion, ...]

    @property
    def chest_wall_right(self) -> bool:
        """Whether the chest wall lies on the right of the stored image."""
        return _chest_wall_right(self.laterality, self.vendor)


def make_phantom(
    settings: PhantomSettings, patient: int, laterality: Laterality, view: str
) -> Phantom:
    """Make one image.

    Args:
        settings: which women, and at what resolution.
        patient: index of the woman, from 0.
        laterality: side of the breast.
        view: CC or MLO.

    Raises:
        ValueError: the view is neither CC nor MLO, or there is no such woman.
    """
    if view not in VIEWS:
        raise ValueError(f"view is {view!r}: phantoms have {' and '.join(VIEWS)}.")
    if not 0 <= patient < settings.patients:
        raise ValueError(f"patient is {patient}: there are {settings.patients}, numbered from 0.")
    woman = draw_woman(settings, patient)
    vendor = woman.vendor
    grid = PixelGrid(
        rows=round(vendor.rows * settings.scale),
        columns=round(vendor.columns * settings.scale),
        spacing=vendor.imager_pixel_spacing / settings.scale,
    )

    # 1. The breast on the detector.
    body = draw_body(settings, patient, laterality, view)
    tissue = random_stream(settings, patient, Stream.TISSUE, laterality, view)
    grey = draw_breast(body, grid, woman.density, tissue)
    grey += draw_air(grid, vendor)

    # 2. Her lesion, if this is the side.
    lesions: tuple[Lesion, ...] = ()
    if woman.case_laterality is laterality:
        site = draw_lesion_site(settings, patient, laterality)
        row, column = (mm / grid.spacing - 0.5 for mm in site.centre[view])
        lesions = (Lesion(woman.lesion_kind, row, column, site.radius / grid.spacing),)
        rng = random_stream(settings, patient, Stream.LESION, laterality, view)
        if woman.lesion_kind is LesionKind.MASS:
            add_mass(grey, lesions[0], site.spiculated, grid, rng)
        else:
            add_calcifications(grey, lesions[0], rng)

    # 3. Noise, then the marker (which has none), then the vendor's stored values.
    noise = random_stream(settings, patient, Stream.NOISE, laterality, view)
    grey += quantum_noise(grey, grid, noise)
    burn_in_marker(grey, f"{laterality} {view}", grid, mirrored=laterality is Laterality.RIGHT)
    pixels = stored_values(grey, vendor)
    if vendor.padding:
        pixels[outside_collimation(grid)] = PIXEL_PADDING_VALUE

    # 4. Everything so far has its chest wall on the left; mirror it where the vendor does not.
    if _chest_wall_right(laterality, vendor):
        pixels = np.ascontiguousarray(pixels[:, ::-1])
        lesions = tuple(
            Lesion(lesion.kind, lesion.row, grid.columns - 1 - lesion.column, lesion.radius)
            for lesion in lesions
        )
    return Phantom(
        pixels=pixels,
        patient=patient,
        laterality=laterality,
        view=view,
        label=int(woman.case_laterality is laterality),
        age=woman.age,
        density=woman.density,
        vendor=vendor,
        imager_pixel_spacing=(grid.spacing, grid.spacing),
        lesions=lesions,
    )


def _chest_wall_right(laterality: Laterality, vendor: Vendor) -> bool:
    # As radiologists hang them, a left breast has its chest wall on the left of the image.
    return (laterality is Laterality.RIGHT) is not vendor.mirrored
