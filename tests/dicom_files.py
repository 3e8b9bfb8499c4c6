"""Tiny DICOM files for the tests of this folder."""

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

# {transfer syntax: (pixels, Bits Stored) to one frame}
ENCODERS = {
    uid.JPEGLossless: lambda a, bits: imagecodecs.jpeg8_encode(
        a, lossless=True, predictor=4, bitspersample=bits
    ),
    uid.JPEGLosslessSV1: lambda a, bits: imagecodecs.jpeg8_encode(
        a, lossless=True, bitspersample=bits
    ),
    uid.JPEGLSLossless: lambda a, bits: imagecodecs.jpegls_encode(a),
    uid.JPEG2000Lossless: lambda a, bits: imagecodecs.jpeg2k_encode(
        a, codecformat="j2k", reversible=True, bitspersample=bits
    ),
    uid.HTJ2KLossless: lambda a, bits: imagecodecs.htj2k_encode(a, reversible=True),
    uid.HTJ2KLosslessRPCL: lambda a, bits: imagecodecs.htj2k_encode(a, reversible=True),
}
LOSSY_ENCODERS = {
    uid.JPEGBaseline8Bit: lambda a, bits: imagecodecs.jpeg8_encode(a, level=95),
    uid.JPEGExtended12Bit: lambda a, bits: imagecodecs.jpeg8_encode(a, level=95, bitspersample=12),
    uid.JPEGLSNearLossless: lambda a, bits: imagecodecs.jpegls_encode(a, level=2),
    uid.JPEG2000: lambda a, bits: imagecodecs.jpeg2k_encode(
        a, codecformat="j2k", level=60, bitspersample=bits
    ),
    uid.HTJ2K: lambda a, bits: imagecodecs.htj2k_encode(a, reversible=False),
}


def half_disk(shape: tuple[int, int] = (96, 64), *, side: str = "left") -> np.ndarray:
    """A breast of sorts: a bright half ellipse on black, its straight side on one edge."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    inside = ((rows - shape[0] / 2) / (0.4 * shape[0])) ** 2 + (columns / (0.6 * shape[1])) ** 2 < 1
    ripple = 1500 + 600 * np.sin(rows / 5) * np.cos(columns / 7)
    pixels = np.where(inside, ripple, 0).astype(np.uint16)
    return pixels if side == "left" else pixels[:, ::-1].copy()


def make_dataset(
    pixels: np.ndarray, syntax: str = uid.ExplicitVRLittleEndian, **tags: Any
) -> Dataset:
    """A mammogram's dataset; a tag set to None is left out."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    bits = 8 * pixels.dtype.itemsize
    for keyword, value in {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.2",
        "SOPInstanceUID": "1.2.3.4",
        "StudyInstanceUID": "1.2.3",
        "PatientID": "SECRET-ID",
        "PatientName": "Secret^Name",
        "Modality": "MG",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": 12 if bits == 16 else bits,
        "HighBit": 11 if bits == 16 else bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        **tags,
    }.items():
        if value is not None:
            setattr(dataset, keyword, value)
    if uid.UID(syntax).is_encapsulated:
        frame = {**ENCODERS, **LOSSY_ENCODERS}[uid.UID(syntax)](pixels, dataset.BitsStored)
        dataset.PixelData = encapsulate([frame])
        dataset["PixelData"].is_undefined_length = True
    else:
        order = "<" if uid.UID(syntax).is_little_endian else ">"
        dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    dataset["PixelData"].VR = "OW" if bits == 16 else "OB"
    return dataset


def write_dicom(path: Path, dataset: Dataset) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path
