"""Decode a small test image in every transfer syntax, with the decoders that preprocess uses."""

import base64
import json
from collections.abc import Iterator
from importlib.resources import files
from io import BytesIO
from time import perf_counter

import numpy as np
import numpy.typing as npt
from pydicom import dcmread, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from mammo_pd.doctor.finding import Finding, fails, ok, warning
from mammo_pd.errors import ImageError
from mammo_pd.imaging.decode import LOSSY_SYNTAXES, decode
from mammo_pd.imaging.decoders.imagecodecs_plugin import JPEG_XL_RECOMPRESSION, PLUGIN

# {transfer syntax: base64 of the frame}, as tests/doctor/make_codestreams.py encodes the image.
CODESTREAMS = files("mammo_pd.doctor") / "codestreams.json"
_NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
)
_SHAPE = (96, 64)
# A lossy decoder may be off by this fraction of the range.
_LOSSY_ERROR = 0.05
# How long each image is decoded repeatedly, to measure the speed.
_SECONDS = 0.05


def drawn_image() -> npt.NDArray[np.uint16]:
    """(96, 64) uint16 of 12 bits: a smooth half ellipse with a texture that any codec can hold."""
    rows, columns = np.mgrid[: _SHAPE[0], : _SHAPE[1]].astype(np.int64)
    distance = ((rows - 48) ** 2) / 40**2 + columns**2 / 50**2
    texture = 8 * ((rows // 8 + columns // 8) % 2)
    inside = 900 + 2600 * np.clip(1 - distance, 0, 1) + texture
    pixels: npt.NDArray[np.uint16] = np.where(distance < 1, inside, 0).astype(np.uint16)
    return pixels


def check_codecs() -> Iterator[Finding]:
    """Decode the drawn image from each transfer syntax, and compare it with the original."""
    frames = {
        uid.UID(syntax): base64.b64decode(text)
        for syntax, text in json.loads(CODESTREAMS.read_text(encoding="utf-8")).items()
    }
    for syntax in (*_NATIVE, *frames):
        yield _check_codec(syntax, frames.get(syntax))


def _check_codec(syntax: uid.UID, frame: bytes | None) -> Finding:
    name = f"decode {syntax.name.partition(' (')[0]} ({syntax})"
    eight = syntax in (uid.JPEGBaseline8Bit, JPEG_XL_RECOMPRESSION)
    expected = (drawn_image() >> 4).astype(np.uint16) if eight else drawn_image()
    remedy = (
        "reinstall the decoders: pip install --force-reinstall imagecodecs pylibjpeg "
        "pylibjpeg-libjpeg pylibjpeg-openjpeg"
    )
    try:
        count, spent = 0, 0.0
        while spent < _SECONDS:
            dataset = _dataset(expected, syntax, frame, bits=8 if eight else 12)
            started = perf_counter()
            stored = decode(dataset)
            spent += perf_counter() - started
            count += 1
    except ImageError as error:
        return fails(name, error.detail, remedy)
    # If several decoders exist, the first that succeeds is used, and its values must be right.
    most = int(np.abs(stored.values.astype(np.int64) - expected.astype(np.int64)).max())
    allowed = _LOSSY_ERROR * (256 if eight else 4096) if syntax in LOSSY_SYNTAXES else 0
    if most > allowed:
        return fails(name, f"{stored.decoder} gives values that are off by {most}", remedy)
    # For a small image, whose header costs as much as its pixels: large ones decode faster.
    speed = f"{stored.decoder}, {1e3 * spent / count:.1f} ms for {_SHAPE[0]} x {_SHAPE[1]} pixels"
    if frame is not None and stored.decoder != PLUGIN:
        return warning(name, f"{speed}: not the fastest decoder", remedy)
    return ok(name, speed)


def _dataset(
    pixels: npt.NDArray[np.uint16], syntax: uid.UID, frame: bytes | None, *, bits: int
) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = uid.DigitalMammographyXRayImageStorageForPresentation
    dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = 8 if bits == 8 else 16
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, 0
    if frame is None:
        order = "<" if syntax.is_little_endian else ">"
        dataset.PixelData = pixels.astype(f"{order}u2").tobytes()
        dataset["PixelData"].VR = "OW"
        # Written and read back: deflating and byte order are part of these transfer syntaxes.
        written = BytesIO()
        dataset.save_as(written, enforce_file_format=True)
        return dcmread(BytesIO(written.getvalue()))
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dataset
