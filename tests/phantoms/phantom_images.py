"""A few small phantoms, and the grey scale that pydicom makes of them."""

from collections.abc import Iterator

import numpy as np
import pydicom
from pydicom.pixels.processing import apply_voi_lut

from mammo_pd.phantoms import (
    VIEWS,
    Phantom,
    PhantomSettings,
    Vendor,
    Voi,
    dicom_dataset,
    make_phantom,
)
from mammo_pd.terms import Laterality

SMALL = PhantomSettings(patients=6, scale=0.15)


def shown(settings: PhantomSettings, phantom: Phantom) -> np.ndarray:
    """The grey scale in [0, 1] that pydicom makes of an image."""
    return voi(phantom.pixels, phantom.vendor, dicom_dataset(settings, phantom))


def voi(pixels: np.ndarray, vendor: Vendor, ds: pydicom.Dataset) -> np.ndarray:
    highest = 4095 if vendor.voi is Voi.LUT else vendor.maximum
    grey = apply_voi_lut(pixels, ds) / highest
    return 1 - grey if vendor.photometric_interpretation == "MONOCHROME1" else grey


def images(settings: PhantomSettings) -> Iterator[Phantom]:
    for patient in range(settings.patients):
        for laterality in Laterality:
            for view in VIEWS:
                yield make_phantom(settings, patient, laterality, view)
