"""Phantom mammograms: women, breasts and lesions made from a seed, written as true DICOM files.

In: a few settings. Out: an archive of Digital Mammography X-Ray Images (For Presentation), both
breasts in CC and MLO for each woman, and the table of their labels. Six invented vendors differ in
photometric interpretation, bits, VOI transformation, transfer syntax, padding and matrix, and some
leave out what real archives leave out.

Phantoms stand in for real images so that every stage can be run and tested anywhere. Results on
them say nothing of results on women.

Everything is a function of (seed, patient, laterality, view), and each part (body, tissue, lesion,
noise) draws from a stream of its own: a woman with her lesion and the same woman without it differ
only where the lesion lies.

Lengths are in mm and grey is in [0, 1] as a viewer should show it, until the vendor's stored values
are made. Images are drawn with the chest wall on the left and turned at the end.
"""

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
import scipy.fft
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import DigitalMammographyXRayImageStorageForPresentation, generate_uid
from scipy import ndimage
from scipy.special import expit

from mammo_pd.errors import InputError
from mammo_pd.files import atomic_write
from mammo_pd.phantoms.vendors import (
    PIXEL_PADDING_VALUE,
    VENDORS,
    Vendor,
    add_pixel_data,
    add_voi,
    stored_values,
)
from mammo_pd.terms import Laterality

VIEWS = ("CC", "MLO")
LABEL_TABLE = "labels.csv"

_FloatImage = NDArray[np.float32]
_Lengths = NDArray[np.floating]


class LesionKind(StrEnum):
    """What a lesion is; the label table says ``none`` where there is none."""

    MASS = "mass"
    CALCIFICATION = "calcification"


@dataclass(frozen=True)
class PhantomSettings:
    """Which women to make, and how finely.

    Attributes:
        patients: number of women, four images each.
        seed: another seed, other women.
        scale: of the matrix; 1 is native (about 2560 x 2048 pixels of 0.1 mm), 0.4 gives pixels of
            0.25 mm. The field of view stays; a calcification keeps its width in pixels.
        prevalence: probability that a woman has a lesion, which then lies in one breast.

    Raises:
        InputError: a value lies outside its range.
    """

    patients: int = 60
    seed: int = 0
    scale: float = 1.0
    prevalence: float = 0.45

    def __post_init__(self) -> None:
        if self.patients < 1:
            raise InputError(f"patients is {self.patients}: ask for at least one woman.")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}: give a whole number from 0 up.")
        if not 0.1 <= self.scale <= 1:
            raise InputError(f"scale is {self.scale}: give a number from 0.1 to 1 (native).")
        if not 0 <= self.prevalence <= 1:
            raise InputError(f"prevalence is {self.prevalence}: give a number from 0 to 1.")


@dataclass(frozen=True)
class Lesion:
    """Where a lesion lies in one image.

    Attributes:
        kind: mass or cluster of calcifications.
        row: of the centre, in pixels of the stored image, from 0 at the top.
        column: of the centre, likewise from the left.
        radius: in pixels, of the mass without its spicules, or of the cluster.
    """

    kind: LesionKind
    row: float
    column: float
    radius: float


@dataclass(frozen=True)
class Phantom:
    """One image and the facts about it.

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


def make_phantom(
    settings: PhantomSettings, patient: int, laterality: Laterality, view: str
) -> Phantom:
    """Make one image.

    Args:
        settings: which women, and how finely.
        patient: index of the woman, from 0.
        laterality: side of the breast.
        view: CC or MLO.

    Raises:
        ValueError: the view is neither CC nor MLO, or there is no such woman.
    """
    if view not in VIEWS:
        raise ValueError(f"view is {view!r}: phantoms have {' and '.join(VIEWS)}.")
    if not 0 <= patient < settings.patients:
        raise ValueError(f"patient is {patient}: these are {settings.patients}, counted from 0.")
    woman = _draw_woman(settings, patient)
    vendor = woman.vendor
    frame = _Frame(
        rows=round(vendor.rows * settings.scale),
        columns=round(vendor.columns * settings.scale),
        spacing=vendor.imager_pixel_spacing / settings.scale,
    )

    # 1. The breast on the detector.
    body = _draw_body(settings, patient, laterality, view)
    grey = _breast(
        body, frame, woman.density, _stream(settings, patient, _Stream.TISSUE, laterality, view)
    )
    grey += _air(frame, vendor)

    # 2. Her lesion, if this is the side.
    lesions: tuple[Lesion, ...] = ()
    if woman.case_laterality is laterality:
        placed = _place_lesion(settings, patient, laterality)
        row, column = (mm / frame.spacing - 0.5 for mm in placed.centre[view])
        lesions = (Lesion(woman.lesion_kind, row, column, placed.radius / frame.spacing),)
        rng = _stream(settings, patient, _Stream.LESION, laterality, view)
        if woman.lesion_kind is LesionKind.MASS:
            _add_mass(grey, lesions[0], placed.spiculated, frame, rng)
        else:
            _add_calcifications(grey, lesions[0], rng)

    # 3. Noise, then what is burnt in, then the vendor's stored values.
    noise = _stream(settings, patient, _Stream.NOISE, laterality, view)
    grey += _quantum_noise(grey, frame, noise)
    _burn_in_marker(grey, f"{laterality} {view}", frame, mirrored=laterality is Laterality.RIGHT)
    pixels = stored_values(grey, vendor)
    if vendor.padding:
        pixels[_outside_collimation(frame)] = PIXEL_PADDING_VALUE

    # 4. The chest wall to its side.
    if _chest_wall_right(laterality, vendor):
        pixels = np.ascontiguousarray(pixels[:, ::-1])
        lesions = tuple(
            Lesion(lesion.kind, lesion.row, frame.columns - 1 - lesion.column, lesion.radius)
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
        imager_pixel_spacing=(frame.spacing, frame.spacing),
        lesions=lesions,
    )


def _chest_wall_right(laterality: Laterality, vendor: Vendor) -> bool:
    # As radiologists hang them, the left breast's chest wall is on the left of the image.
    return (laterality is Laterality.RIGHT) is not vendor.mirrored


# --- Drawing women ------------------------------------------------------------------------------


class _Stream(IntEnum):
    """What a stream of random numbers is for. Streams know nothing of one another."""

    WOMAN = 0
    CASE = 1
    BODY = 2
    TISSUE = 3
    PLACE = 4
    LESION = 5
    NOISE = 6
    VENDOR = 7


def _stream(
    settings: PhantomSettings,
    patient: int,
    part: _Stream,
    laterality: Laterality | None = None,
    view: str | None = None,
) -> np.random.Generator:
    side = 0 if laterality is None else 1 + list(Laterality).index(laterality)
    projection = 0 if view is None else 1 + VIEWS.index(view)
    return np.random.default_rng([settings.seed, patient, part, side, projection])


@dataclass(frozen=True)
class _Woman:
    vendor: Vendor
    age: int
    density: str
    half_height: float  # of the breast in CC, mm
    depth: float  # chest wall to nipple, mm
    case_laterality: Laterality | None
    lesion_kind: LesionKind


_DENSITY_SHARES = MappingProxyType({"A": 0.15, "B": 0.40, "C": 0.35, "D": 0.10})
_MASS_SHARE = 0.75


def _draw_woman(settings: PhantomSettings, patient: int) -> _Woman:
    rng = _stream(settings, patient, _Stream.WOMAN)
    # Apart, so that nothing of the woman depends on whether she is a case.
    case = _stream(settings, patient, _Stream.CASE)
    is_case = case.random() < settings.prevalence
    side = list(Laterality)[case.integers(2)]
    kind = LesionKind.MASS if case.random() < _MASS_SHARE else LesionKind.CALCIFICATION
    return _Woman(
        vendor=_draw_vendor(settings, patient),
        age=int(rng.integers(40, 80)),
        density=str(rng.choice(list(_DENSITY_SHARES), p=list(_DENSITY_SHARES.values()))),
        half_height=rng.uniform(50, 78),
        depth=rng.uniform(60, 100),
        case_laterality=side if is_case else None,
        lesion_kind=kind,
    )


def _draw_vendor(settings: PhantomSettings, patient: int) -> Vendor:
    # Every six women meet all six, in an order of their own.
    turn, place = divmod(patient, len(VENDORS))
    order = np.random.default_rng([settings.seed, turn, _Stream.VENDOR]).permutation(len(VENDORS))
    return VENDORS[order[place]]


@dataclass(frozen=True)
class _Body:
    """The outline of one breast in one view, mm from the image's top left corner.

    CC is a half ellipse. MLO hangs from the axilla at the image's top edge, with the pectoral
    muscle as a triangle in the corner.
    """

    view: str
    nipple_y: float
    half_height: float
    depth: float
    axilla: float = 0.0  # width at the top edge, MLO
    pectoral_width: float = 0.0
    pectoral_height: float = 0.0

    def edge(self, y: _Lengths) -> _Lengths:
        """Distance from the chest wall to the skin at height ``y``; negative beside the breast."""
        t = (y - self.nipple_y) / self.half_height
        outline = self.depth * np.clip(1 - np.abs(t) ** 2.2, 0, None) ** 0.55
        if self.view == "MLO":
            above = np.clip(-y / self.nipple_y + 1, 0, 1)  # 0 at the nipple, 1 at the top
            hanging = self.depth + (self.axilla - self.depth) * np.sin(above * np.pi / 2) ** 2
            outline = np.where(y < self.nipple_y, hanging, outline)
        return np.where(outline > 0, outline, -1.0)

    def pectoral(self, y: _Lengths) -> _Lengths:
        """Distance from the chest wall to the muscle's edge at height ``y``; negative below it."""
        if self.view == "CC":
            return np.full_like(y, -10.0)
        return self.pectoral_width * (1 - y / self.pectoral_height)


def _draw_body(settings: PhantomSettings, patient: int, laterality: Laterality, view: str) -> _Body:
    woman = _draw_woman(settings, patient)
    rng = _stream(settings, patient, _Stream.BODY, laterality, view)
    height = woman.vendor.rows * woman.vendor.imager_pixel_spacing
    half_height = woman.half_height * rng.uniform(0.96, 1.04)
    depth = woman.depth * rng.uniform(0.97, 1.05)
    if view == "CC":
        return _Body(view, height * rng.uniform(0.46, 0.54), half_height, depth)
    axilla = depth * rng.uniform(0.5, 0.7)
    return _Body(
        view,
        nipple_y=half_height * rng.uniform(1.45, 1.7),
        half_height=half_height,
        depth=depth,
        axilla=axilla,
        pectoral_width=axilla * rng.uniform(0.6, 0.85),
        pectoral_height=half_height * rng.uniform(1.2, 1.7),
    )


@dataclass(frozen=True)
class _PlacedLesion:
    centre: Mapping[str, tuple[float, float]]  # view to (y, x) in mm
    radius: float
    spiculated: bool


def _place_lesion(settings: PhantomSettings, patient: int, laterality: Laterality) -> _PlacedLesion:
    """Draw one place in the breast and find it in both views.

    A lesion lies as far behind the nipple in CC as in MLO: the rule by which radiologists match
    the two views.
    """
    woman = _draw_woman(settings, patient)
    bodies = {view: _draw_body(settings, patient, laterality, view) for view in VIEWS}
    rng = _stream(settings, patient, _Stream.PLACE, laterality)
    mass = woman.lesion_kind is LesionKind.MASS
    radius = rng.uniform(4, 10) if mass else rng.uniform(3, 5)
    spiculated = bool(rng.random() < 0.5)
    for _ in range(1000):
        behind_nipple = woman.depth * rng.uniform(0.25, 0.75)
        centre = {
            view: (
                body.nipple_y + body.half_height * rng.uniform(-0.6, 0.6),
                body.depth - behind_nipple,
            )
            for view, body in bodies.items()
        }
        if all(_lies_in_breast(bodies[view], *centre[view], radius) for view in VIEWS):
            return _PlacedLesion(centre, radius, spiculated)
    raise AssertionError("no place in this breast for its lesion")


def _lies_in_breast(body: _Body, y: float, x: float, radius: float) -> bool:
    reach = np.array([y - radius, y, y + radius])
    return bool(
        x - radius > 3
        and np.all(x + radius + 3 < body.edge(reach))
        and np.all(x - radius - 2 > body.pectoral(reach))
    )


# --- Drawing images -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frame:
    """A grid of pixels over the detector, ``spacing`` in mm."""

    rows: int
    columns: int
    spacing: float

    @property
    def y(self) -> _Lengths:
        """Pixel centres from the top, (rows, 1), mm."""
        return ((np.arange(self.rows) + 0.5) * self.spacing)[:, None]

    @property
    def x(self) -> _Lengths:
        """Pixel centres from the chest wall, (1, columns), mm."""
        return ((np.arange(self.columns) + 0.5) * self.spacing)[None]

    def coarser(self, spacing: float) -> "_Frame":
        """A grid of that spacing or this one's, whichever is coarser, over at least this field."""
        ratio = max(spacing / self.spacing, 1.0)
        return _Frame(
            int(np.ceil(self.rows / ratio)),
            int(np.ceil(self.columns / ratio)),
            self.spacing * ratio,
        )

    def resample(self, image: _FloatImage, spacing: float, margin: float = 0.0) -> _FloatImage:
        """Read an image of another spacing, begun ``margin`` mm above and left, on this grid."""
        first = (0.5 * self.spacing + margin) / spacing - 0.5
        ratio = self.spacing / spacing
        resampled: _FloatImage = ndimage.affine_transform(
            image,
            [ratio, ratio],
            offset=first,
            output_shape=(self.rows, self.columns),
            order=1,
            mode="nearest",
        )
        return resampled


# Above this threshold of the noise, tissue is glandular.
_GLAND_THRESHOLD = MappingProxyType({"A": 2.4, "B": 1.3, "C": 0.4, "D": -0.4})
_LARGEST_STRUCTURE = 60.0  # mm; the spectrum is flat for what is larger
_TISSUE_SPACING = 0.2  # mm; finer detail of f^-3 noise drowns in quantum noise


def _breast(
    body: _Body, image_frame: _Frame, density: str, rng: np.random.Generator
) -> _FloatImage:
    """The breast without lesion: fat, glandular tissue, muscle, skin; 0 beside it."""
    frame = image_frame.coarser(_TISSUE_SPACING)
    y, x = frame.y, frame.x
    coarse, texture = _anatomical_noise(frame, rng)
    distance = _distance_to_skin(body, frame)

    disc = (
        1
        - ((x - 0.5 * body.depth) / (0.5 * body.depth)) ** 2
        - ((y - body.nipple_y) / (0.8 * body.half_height)) ** 2
    )
    gland = expit((1.5 * disc + coarse - _GLAND_THRESHOLD[density]) / 0.5)
    strands = np.exp(-np.abs(texture) / 0.15)
    tissue = 0.24 + 0.21 * gland + 0.04 * texture + 0.04 * strands
    muscle = expit(body.pectoral(y) - x)
    tissue += muscle * (0.46 + 0.02 * texture - tissue)

    # The compressed breast thins out towards the skin, round like the edge of a cushion.
    thickness = np.sqrt(1 - (1 - np.clip(distance / (0.3 * body.depth), 0, 1)) ** 2)
    skin = 0.1 * np.exp(-(((distance - 1) / 0.8) ** 2)) * (distance > 0)
    grey: _FloatImage = (thickness * tissue + skin).astype(np.float32)
    return image_frame.resample(grey, frame.spacing)


def _distance_to_skin(body: _Body, frame: _Frame) -> _FloatImage:
    """Depth below the skin line in mm, 0 beside the breast. Chest wall and axilla have no skin."""
    step, margin = 0.5, 40.0
    coarse = _Frame(
        round((frame.rows * frame.spacing + margin) / step),
        round((frame.columns * frame.spacing + margin) / step),
        step,
    )
    inside = coarse.x - margin < body.edge(np.clip(coarse.y - margin, 0.0, None))
    distance = ndimage.distance_transform_edt(inside, sampling=step).astype(np.float32)
    return frame.resample(ndimage.gaussian_filter(distance, 1.0), step, margin)


def _anatomical_noise(frame: _Frame, rng: np.random.Generator) -> tuple[_FloatImage, _FloatImage]:
    """Two independent fields of mean 0 and variance 1 whose power falls as f^-3.

    Source: Burgess, Jacobson and Judy, Human observer detection experiments with mammograms and
    power-law noise, Medical Physics 28 (2001).
    """
    shape = (scipy.fft.next_fast_len(frame.rows), scipy.fft.next_fast_len(frame.columns))
    f_squared = (
        np.fft.fftfreq(shape[0], frame.spacing)[:, None] ** 2
        + np.fft.fftfreq(shape[1], frame.spacing)[None] ** 2
    )
    f_squared += _LARGEST_STRUCTURE**-2
    f_squared[0, 0] = np.inf
    amplitude = (f_squared**-0.75).astype(np.float32)
    white = rng.standard_normal((*shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
    both = scipy.fft.ifft2(white * amplitude)[: frame.rows, : frame.columns]
    return both.real / both.real.std(), both.imag / both.imag.std()


_PADDLE_EDGE = 0.72  # of the image's width


def _air(frame: _Frame, vendor: Vendor) -> _FloatImage:
    """What the detector reads without breast: little, uneven, never exactly nothing."""
    y = np.linspace(-1, 1, frame.rows, dtype=np.float32)[:, None]
    x = np.linspace(0, 1, frame.columns, dtype=np.float32)[None]
    air = 0.02 + 0.008 * x * y**2
    if vendor.paddle_edge:
        air += 0.05 * np.exp(-(((x - _PADDLE_EDGE) * frame.columns * frame.spacing / 0.6) ** 2))
    return air


def _quantum_noise(grey: _FloatImage, frame: _Frame, rng: np.random.Generator) -> _FloatImage:
    """Noise whose variance grows with the grey: the whiter the pixel, the fewer quanta.

    Its deviation falls with the pixel's side, as the quanta of a larger pixel are more.
    """
    deviation = 0.1 / frame.spacing * (0.003 + 0.02 * np.sqrt(np.clip(grey, 0, 1)))
    return deviation.astype(np.float32) * rng.standard_normal(grey.shape, dtype=np.float32)


def _window_around(
    grey: _FloatImage, lesion: Lesion, reach: float
) -> tuple[_FloatImage, _Lengths, _Lengths]:
    """The part of the image within ``reach`` pixels, with its rows and columns from the centre."""
    top = max(0, int(lesion.row - reach))
    left = max(0, int(lesion.column - reach))
    part = grey[top : int(lesion.row + reach) + 2, left : int(lesion.column + reach) + 2]
    rows = np.arange(part.shape[0])[:, None] + top - lesion.row
    columns = np.arange(part.shape[1])[None] + left - lesion.column
    return part, rows, columns


_MASS_CONTRAST = (0.3, 0.42)  # lowest and highest
_SPICULE_REACH = 1.9  # of the mass's radius


def _add_mass(
    grey: _FloatImage,
    lesion: Lesion,
    spiculated: bool,
    frame: _Frame,
    rng: np.random.Generator,
) -> None:
    """Add a soft-edged mass, lobulated or spiculated, in place."""
    part, rows, columns = _window_around(grey, lesion, _SPICULE_REACH * lesion.radius)
    radius = np.hypot(rows, columns) / lesion.radius
    angle = np.arctan2(rows, columns)
    outline = np.ones_like(radius)
    for lobes in (2, 3, 5):
        outline += rng.uniform(0.02, 0.3 / lobes) * np.cos(
            lobes * angle + rng.uniform(0, 2 * np.pi)
        )
    density = expit((outline - radius) / 0.1)
    if spiculated:
        width = 0.4 / (lesion.radius * frame.spacing)
        for direction in rng.uniform(0, 2 * np.pi, rng.integers(10, 18)):
            along = radius * np.cos(angle - direction)
            beside = radius * np.sin(angle - direction)
            length = rng.uniform(1.4, _SPICULE_REACH)
            fade = np.clip(1 - along / length, 0, 1) * (along > 0)
            density = np.maximum(density, 0.8 * fade * np.exp(-((beside / width) ** 2)))
    part += (rng.uniform(*_MASS_CONTRAST) * density).astype(np.float32)


def _add_calcifications(grey: _FloatImage, lesion: Lesion, rng: np.random.Generator) -> None:
    """Add a cluster of 5 to 15 specks, 2 to 5 pixels wide each, in place."""
    part, rows, columns = _window_around(grey, lesion, lesion.radius + 5)
    cluster = np.zeros_like(part)
    for _ in range(rng.integers(5, 16)):
        distance = lesion.radius * np.sqrt(rng.random())
        direction = rng.uniform(0, 2 * np.pi)
        half_width = rng.uniform(2, 5) / 2
        from_speck = np.hypot(
            rows - distance * np.sin(direction), columns - distance * np.cos(direction)
        )
        speck = rng.uniform(0.35, 0.5) * np.exp(-((from_speck / half_width) ** 4))
        cluster = np.maximum(cluster, speck.astype(np.float32))
    part += cluster


# The letters of the lead markers, 5 pixels wide and 7 high.
_LETTERS = MappingProxyType(
    {
        "L": "10000 10000 10000 10000 10000 10000 11111",
        "R": "11110 10001 10001 11110 10100 10010 10001",
        "C": "01111 10000 10000 10000 10000 10000 01111",
        "M": "10001 11011 10101 10101 10001 10001 10001",
        "O": "01110 10001 10001 10001 10001 10001 01110",
        " ": "00000 00000 00000 00000 00000 00000 00000",
    }
)


def _burn_in_marker(grey: _FloatImage, text: str, frame: _Frame, mirrored: bool) -> None:
    """Write the marker into the air near the axilla, in place."""
    letters = [
        np.array([[int(dot) for dot in line] + [0] for line in _LETTERS[letter].split()])
        for letter in text
    ]
    dots = np.hstack(letters)
    if mirrored:  # since the whole image will be
        dots = dots[:, ::-1]
    side = max(1, round(0.9 / frame.spacing))
    marker = np.kron(dots, np.ones((side, side)))
    top = round(0.06 * frame.rows)
    left = round(0.95 * frame.columns) - marker.shape[1]
    part = grey[top : top + marker.shape[0], left : left + marker.shape[1]]
    part[marker > 0] = 0.95


def _outside_collimation(frame: _Frame) -> NDArray[np.bool_]:
    rim = round(3.0 / frame.spacing)
    outside = np.ones((frame.rows, frame.columns), bool)
    outside[:-rim, :-rim] = False
    return outside


# --- The DICOM header -----------------------------------------------------------------------------


def dicom_dataset(settings: PhantomSettings, phantom: Phantom) -> Dataset:
    """Make the DICOM data set of one image, file meta information included.

    Returns:
        a data set ready for ``save_as(..., enforce_file_format=True)``. Its identifiers are
        functions of the seed, the patient, the side and the view; its pixel data are encoded
        in the vendor's transfer syntax.

    Source: DICOM PS3.3 A.26.2 (Digital Mammography X-Ray Image IOD), PS3.5 8.2 (encapsulation).
    """
    vendor = phantom.vendor
    number = phantom.patient + 1
    # What changes the pixels changes the identifiers.
    made = f"{settings.seed} {settings.scale} {settings.prevalence}"
    key = ["mammo-pd phantom", made, str(number)]
    image_key = [*key, phantom.laterality, phantom.view]
    rows, columns = phantom.pixels.shape
    ds = Dataset()

    # SOP Common, Patient, Study, Series, Equipment
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    ds.SOPInstanceUID = generate_uid(entropy_srcs=[*image_key, "instance"])
    ds.StudyInstanceUID = generate_uid(entropy_srcs=[*key, "study"])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=[*image_key, "series"])
    ds.PatientName = f"PHANTOM^{number:04d}"
    ds.PatientID = f"PHANTOM{number:04d}"
    ds.PatientBirthDate = ""
    ds.PatientSex = "F"
    ds.PatientAge = f"{phantom.age:03d}Y"
    ds.StudyDate = ds.ContentDate = "20000101"
    ds.StudyTime = ds.ContentTime = "000000"
    ds.AccessionNumber = ""
    ds.ReferringPhysicianName = ""
    ds.StudyID = f"{number}"
    ds.StudyDescription = "PHANTOM, NOT A PATIENT"
    ds.Modality = "MG"
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.SeriesNumber = 1 + 2 * list(Laterality).index(phantom.laterality) + VIEWS.index(phantom.view)
    ds.Laterality = phantom.laterality
    ds.Manufacturer = vendor.name
    ds.QualityControlImage = "YES"  # the tag by which a phantom says that it is one
    ds.ManufacturerModelName = "Phantom"

    # Image, Anatomy Imaged, Positioning, Mammography Image
    ds.ImageType = ["DERIVED", "PRIMARY", ""]
    ds.InstanceNumber = 1
    ds.BodyPartExamined = "BREAST"
    ds.OrganExposed = "BREAST"
    ds.AnatomicRegionSequence = [_code_item(codes.SCT.Breast)]
    ds.ImageLaterality = phantom.laterality
    ds.ViewPosition = phantom.view
    view = _code_item(_VIEW_CODES[phantom.view])
    view.ViewModifierCodeSequence = []
    ds.ViewCodeSequence = [view]
    ds.PatientOrientation = _patient_orientation(phantom)
    ds.PositionerType = "MAMMOGRAPHIC"
    ds.PositionerPrimaryAngle = 0 if phantom.view == "CC" else 45
    ds.BreastImplantPresent = "NO"
    ds.PartialView = "NO"
    ds.QualityControlImage = "YES"  # DICOM's word for an image of a phantom
    ds.DetectorType = "DIRECT"
    ds.ImagerPixelSpacing = [f"{mm:.6g}" for mm in phantom.imager_pixel_spacing]
    ds.AcquisitionContextSequence = []

    # Image Pixel, DX Image, VOI LUT
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = vendor.photometric_interpretation
    ds.Rows = rows
    ds.Columns = columns
    ds.BitsAllocated = 16
    ds.BitsStored = vendor.bits_stored
    ds.HighBit = vendor.bits_stored - 1
    ds.PixelRepresentation = 0
    if vendor.padding:
        ds.PixelPaddingValue = PIXEL_PADDING_VALUE
    ds.BurnedInAnnotation = "NO"
    ds.LossyImageCompression = "00"
    ds.PixelIntensityRelationship = "LOG"
    inverse = vendor.photometric_interpretation == "MONOCHROME1"
    ds.PixelIntensityRelationshipSign = 1 if inverse else -1
    ds.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    ds.RescaleIntercept = 0
    ds.RescaleSlope = 1
    ds.RescaleType = "US"
    add_voi(ds, vendor)

    for keyword in vendor.omitted:
        delattr(ds, keyword)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    add_pixel_data(ds, phantom.pixels, vendor)
    return ds


_VIEW_CODES = MappingProxyType(
    {"CC": codes.cid4014.CranioCaudal, "MLO": codes.cid4014.MedioLateralObliqueProjection}
)


def _code_item(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme_designator
    item.CodeMeaning = code.meaning
    return item


def _patient_orientation(phantom: Phantom) -> list[str]:
    """Directions in which rows and columns run (PS3.3 C.7.6.1.1.1)."""
    right = phantom.laterality is Laterality.RIGHT
    along_rows = "P" if _chest_wall_right(phantom.laterality, phantom.vendor) else "A"
    medial = "L" if right else "R"
    return [along_rows, medial if phantom.view == "CC" else f"F{medial}"]


# --- The archive --------------------------------------------------------------------------------


def write_phantoms(folder: Path, settings: PhantomSettings, processes: int) -> Path:
    """Write all the women's images as DICOM files, then the table of their labels.

    The same settings give the same files, byte for byte. The table is written last, so where it
    is, all that it names is.

    Args:
        folder: where PATIENT/DATE/IMAGE.dcm and labels.csv go; made if absent.
        settings: which women, and how finely.
        processes: worker processes; 1 works in this one.

    Returns:
        path of the table. Columns: path (relative to ``folder``), sop_instance_uid, patient_id,
        exam_id (the Study Instance UID), laterality, view, label, lesion (none, mass or
        calcification), density, vendor, and lesion_row, lesion_column, lesion_radius in pixels of
        the stored image, empty where there is no lesion.
    """
    write = partial(_write_patient, folder, settings)
    patients = range(settings.patients)
    if processes == 1:
        written = [write(patient) for patient in patients]
    else:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            written = list(pool.map(write, patients))
    table = pd.DataFrame([row for rows in written for row in rows])
    path = folder / LABEL_TABLE
    with atomic_write(path) as beside:
        table.to_csv(beside, index=False)
    return path


def _write_patient(
    folder: Path, settings: PhantomSettings, patient: int
) -> list[dict[str, object]]:
    rows = []
    for laterality in Laterality:
        for view in VIEWS:
            phantom = make_phantom(settings, patient, laterality, view)
            ds = dicom_dataset(settings, phantom)
            path = Path(ds.PatientID, ds.StudyDate, f"{laterality}_{view}.dcm")
            with atomic_write(folder / path) as beside:
                ds.save_as(beside, enforce_file_format=True)
            lesion = phantom.lesions[0] if phantom.lesions else None
            rows.append(
                {
                    "path": path.as_posix(),
                    "sop_instance_uid": ds.SOPInstanceUID,
                    "patient_id": ds.PatientID,
                    "exam_id": ds.StudyInstanceUID,
                    "laterality": laterality.value,
                    "view": view,
                    "label": phantom.label,
                    "lesion": lesion.kind.value if lesion else "none",
                    "density": phantom.density,
                    "vendor": phantom.vendor.name,
                    "lesion_row": round(lesion.row, 1) if lesion else None,
                    "lesion_column": round(lesion.column, 1) if lesion else None,
                    "lesion_radius": round(lesion.radius, 1) if lesion else None,
                }
            )
    return rows
