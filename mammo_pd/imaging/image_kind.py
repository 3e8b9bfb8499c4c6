"""How a mammogram was made: full-field digital, computed from tomosynthesis, or tomosynthesis.

What the standard codes decides: SOP class, number of frames, Image Type, what was calculated and
from what. Free text, such as Series Description, decides nothing: sites rename it, and one of a
whole combined exam stands on each of its images.
"""

import re

from pydicom import uid
from pydicom.dataset import Dataset

from mammo_pd.imaging.header import functional_group, items, number_of_frames, text, value
from mammo_pd.terms import ImageKind

# The modalities and SOP classes of film that was scanned and of computed radiography.
_OTHER_MODALITIES = frozenset({"RG", "CR", "RF", "SC", "OT", "XA", "HC"})
_OTHER_SOP_CLASSES = frozenset(
    {uid.ComputedRadiographyImageStorage, uid.SecondaryCaptureImageStorage}
    | {uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage}
    | {uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage}
)
_PROJECTIONS = frozenset(
    {
        uid.BreastProjectionXRayImageStorageForPresentation,
        uid.BreastProjectionXRayImageStorageForProcessing,
    }
)
# Image Type of a single projection of a tomosynthesis scan.
_TOMO_PROJECTION = "TOMO_PROJ"
_TOMOSYNTHESIS = frozenset({"TOMOSYNTHESIS", _TOMO_PROJECTION})
_GENERATED = "GENERATED_2D"
# Names of products that make two-dimensional images out of tomosynthesis, in free text.
_PRODUCTS = re.compile(
    r"(?<![A-Z])(?:C-?VIEW|S-?VIEW|V-?PREVIEW|INTELLIGENT[ _-]?2D|INSIGHT[ _-]?2D|SYNTHETIC"
    r"|SYNTHESI[SZ]ED|GENERATED[ _-]?2D|SYNTH[ _-]?2D)(?![A-Z])"
)
_TEXTS = (
    "SeriesDescription",
    "ProtocolName",
    "AcquisitionDeviceProcessingDescription",
    "DerivationDescription",
)


def find_image_kind(header: Dataset) -> ImageKind:
    """Find how an image was made.

    Computed two-dimensional: Image Type or Frame Type hold GENERATED_2D; or it is one frame whose
    Volume Based Calculation Technique is a projection of a volume; or its Source Image Sequence
    names images of the tomosynthesis SOP class.

    Args:
        header: of the file.

    Source: DICOM PS3.3 C.8.11.7.1.4 and table C.8-74d (Image Type of mammograms), C.8.21.6.1.1
        (of tomosynthesis), C.8.16.2.1.3 and C.8.21.1.1.3 (Volume Based Calculation Technique).
    """
    sop_class = text(header, "SOPClassUID")
    types = _image_types(header)
    single = number_of_frames(header) == 1
    if _GENERATED in types:
        return ImageKind.SYNTHETIC
    if sop_class == uid.BreastTomosynthesisImageStorage:
        projected = text(header, "VolumeBasedCalculationTechnique") in ("MAX_IP", "MIN_IP")
        return ImageKind.SYNTHETIC if single and projected else ImageKind.TOMOSYNTHESIS
    if sop_class in _PROJECTIONS or types & _TOMOSYNTHESIS or not single:
        return ImageKind.TOMOSYNTHESIS
    if any(
        text(source, "ReferencedSOPClassUID") == uid.BreastTomosynthesisImageStorage
        for source in items(header, "SourceImageSequence")
    ):
        return ImageKind.SYNTHETIC
    if sop_class in _OTHER_SOP_CLASSES or text(header, "Modality") in _OTHER_MODALITIES:
        return ImageKind.OTHER
    return ImageKind.FFDM


def names_synthetic_product(header: Dataset) -> bool:
    """Whether free text names software that makes two-dimensional images out of tomosynthesis.

    A hint for people that the codes may be incomplete; `find_image_kind` does not ask it.
    """
    return any(_PRODUCTS.search((text(header, keyword) or "").upper()) for keyword in _TEXTS)


def _image_types(header: Dataset) -> set[str]:
    """The values of Image Type, and of the first frame's Frame Type."""
    frame = functional_group(header, "XRay3DFrameTypeSequence")
    found: set[str] = set()
    for holder, keyword in ((header, "ImageType"), (frame, "FrameType")):
        given = None if holder is None else value(holder, keyword)
        if isinstance(given, str):
            found.add(given.strip())
        elif given is not None and hasattr(given, "__iter__"):
            found |= {str(entry).strip() for entry in given}
    return found
