"""SimpleITK as a pixel-decoder plugin of pydicom: one grey codestream in, its bytes out.

Written as pydicom's own plugins are (pydicom/pixels/decoders); importing this module registers it.
SimpleITK decodes with the GDCM that it contains, which reads files and not codestreams, so each
frame is wrapped in a minimal DICOM file in a temporary folder. Frames in colour are left to the
plugins behind it.
"""

import tempfile
from pathlib import Path

import SimpleITK as sitk  # noqa: N813
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder

from mammo_pd.imaging.codestream import read_codestream_size
from mammo_pd.imaging.decoders.imagecodecs_plugin import CONTRADICTION

PLUGIN = "simpleitk"

# GDCM knows RLE too, but is left out of it: it kills the process at a frame that declares no
# segments, and pydicom's own decoder, which is always there, takes a seventh of the time.
DECODER_DEPENDENCIES = dict.fromkeys(
    (
        uid.JPEGBaseline8Bit,
        uid.JPEGExtended12Bit,
        uid.JPEGLossless,
        uid.JPEGLosslessSV1,
        uid.JPEGLSLossless,
        uid.JPEGLSNearLossless,
        uid.JPEG2000Lossless,
        uid.JPEG2000,
    ),
    ("SimpleITK>=2.4",),
)


def is_available(uid: str) -> bool:
    """Return True where the installed SimpleITK reads DICOM files of this transfer syntax."""
    readers = sitk.ImageFileReader().GetRegisteredImageIOs()
    return uid in DECODER_DEPENDENCIES and "GDCMImageIO" in readers


def _decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    if runner.samples_per_pixel != 1:
        # Any error makes pydicom ask the next plugin, which knows what the colours mean.
        raise ValueError(f"{runner.samples_per_pixel} samples per pixel, and grey has one")
    file = _wrap(src, runner)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frame.dcm"
        file.save_as(path, enforce_file_format=True)
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(path))
        reader.SetNumberOfThreads(1)
        frame = sitk.GetArrayFromImage(reader.Execute())
    # The container is as wide as the codestream's precision asks, not as Bits Allocated says.
    runner.set_option("bits_allocated", 8 * frame.dtype.itemsize)
    return bytes(frame.tobytes())


def _wrap(src: bytes, runner: DecodeRunner) -> Dataset:
    """A DICOM file of this one frame, with nothing in it but what GDCM needs to decode it."""
    size = read_codestream_size(src)
    if size is None or size.precision > 16:
        raise ValueError("no codestream of up to 16 bits")
    # GDCM would take the header's word for it, and fold the rows anew.
    if (size.rows, size.columns) != (runner.rows, runner.columns):
        raise ValueError(
            f"the codestream holds {size.rows} x {size.columns}, "
            f"{CONTRADICTION} {runner.rows} x {runner.columns}"
        )
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = runner.transfer_syntax
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = uid.SecondaryCaptureImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = uid.generate_uid()
    file.Rows, file.Columns = runner.rows, runner.columns
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    # The codestream's own depth: at a smaller one GDCM would cut off bits without a word.
    file.BitsAllocated = 8 if size.precision <= 8 else 16
    file.BitsStored, file.HighBit = size.precision, size.precision - 1
    file.PixelRepresentation = runner.pixel_representation
    file.PixelData = encapsulate([src])
    file["PixelData"].VR = "OB"
    file["PixelData"].is_undefined_length = True
    return file


def _register() -> None:
    for syntax in DECODER_DEPENDENCIES:
        decoder = get_decoder(syntax)
        if PLUGIN not in decoder.available_plugins and is_available(syntax):
            decoder.add_plugin(PLUGIN, (__name__, "_decode_frame"))


_register()
