import numpy as np
import pytest
from dicom_files import make_dataset
from pydicom import uid
from pydicom.dataset import Dataset

from mammo_pd.imaging.image_kind import find_image_kind, names_synthetic_product
from mammo_pd.terms import ImageKind

TOMO = uid.BreastTomosynthesisImageStorage
PROJECTION = uid.BreastProjectionXRayImageStorageForPresentation


def of_class(sop_class: str) -> list[Dataset]:
    source = Dataset()
    source.ReferencedSOPClassUID = sop_class
    return [source]


# Image Types as they are seen in archives, and the standard's defined terms.
@pytest.mark.parametrize(
    ("tags", "kind"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", ""]}, ImageKind.FFDM),
        ({"ImageType": ["DERIVED", "PRIMARY"]}, ImageKind.FFDM),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "", "", "", "", "", "", "150000"]}, ImageKind.FFDM),
        ({"ImageType": ["DERIVED", "PRIMARY", "POST_CONTRAST", "SUBTRACTION"]}, ImageKind.FFDM),
        ({}, ImageKind.FFDM),
        (
            {"ImageType": ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "GENERATED_2D"]},
            ImageKind.SYNTHETIC,
        ),
        (
            {"ImageType": ["DERIVED", "PRIMARY", "TOMO", "GENERATED_2D", "", "150000"]},
            ImageKind.SYNTHETIC,
        ),
        (
            {
                "SOPClassUID": TOMO,
                "ImageType": ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "GENERATED_2D"],
                "NumberOfFrames": 1,
            },
            ImageKind.SYNTHETIC,
        ),
        (
            {"SOPClassUID": TOMO, "VolumeBasedCalculationTechnique": "MAX_IP"},
            ImageKind.SYNTHETIC,
        ),
        (
            {
                "SOPClassUID": TOMO,
                "VolumeBasedCalculationTechnique": "MAX_IP",
                "NumberOfFrames": 9,
            },
            ImageKind.TOMOSYNTHESIS,  # slabs
        ),
        (
            {"ImageType": ["DERIVED", "PRIMARY", ""], "SourceImageSequence": of_class(TOMO)},
            ImageKind.SYNTHETIC,
        ),
        ({"SourceImageSequence": of_class("1.2.3")}, ImageKind.FFDM),
        (
            {"SOPClassUID": TOMO, "ImageType": ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "NONE"]},
            ImageKind.TOMOSYNTHESIS,
        ),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "TOMO_PROJ", "RIGHT"]}, ImageKind.TOMOSYNTHESIS),
        ({"SOPClassUID": PROJECTION, "NumberOfFrames": 15}, ImageKind.TOMOSYNTHESIS),
        ({"NumberOfFrames": 60}, ImageKind.TOMOSYNTHESIS),
        ({"SOPClassUID": uid.SecondaryCaptureImageStorage}, ImageKind.OTHER),
        ({"Modality": "CR", "SOPClassUID": uid.ComputedRadiographyImageStorage}, ImageKind.OTHER),
    ],
)
def test_what_the_codes_say(tags, kind):
    assert find_image_kind(make_dataset(np.zeros((4, 4), np.uint16), **tags)) == kind


@pytest.mark.parametrize(
    ("text", "hinted"),
    [
        ("L CC C-View", True),
        ("R MLO S-View", True),
        ("V-Preview LCC", True),
        ("Insight 2D", True),
        ("L CC Tomosynthesis combo", False),  # stands on the exposure of a combined exam, too
        ("L CC", False),
        ("Review", False),
    ],
)
def test_free_text_is_a_hint_and_decides_nothing(text, hinted):
    dataset = make_dataset(np.zeros((4, 4), np.uint16), SeriesDescription=text)
    assert names_synthetic_product(dataset) == hinted
    assert find_image_kind(dataset) == ImageKind.FFDM
