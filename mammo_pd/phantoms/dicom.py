"""The DICOM data set of a phantom: a Digital Mammography X-Ray Image, For Presentation."""

from types import MappingProxyType

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import DigitalMammographyXRayImageStorageForPresentation, generate_uid

from mammo_pd.phantoms.phantom import Phantom
from mammo_pd.phantoms.settings import VIEWS, PhantomSettings
from mammo_pd.phantoms.vendors import PIXEL_PADDING_VALUE, add_pixel_data, add_voi
from mammo_pd.terms import Laterality

_VIEW_CODES = MappingProxyType(
    {"CC": codes.cid4014.CranioCaudal, "MLO": codes.cid4014.MedioLateralObliqueProjection}
)


def dicom_dataset(settings: PhantomSettings, phantom: Phantom) -> Dataset:
    """Make the DICOM data set of one image, file meta information included.

    Args:
        settings: those that made the image.
        phantom: the image.

    Returns:
        A data set ready for ``save_as(..., enforce_file_format=True)``. Its identifiers depend only
        on the settings, patient, side and view; its pixel data are in the vendor's transfer syntax.

    Source: DICOM PS3.3 A.26.2 (Digital Mammography X-Ray Image IOD), PS3.5 8.2 (encapsulation).
    """
    vendor = phantom.vendor
    number = phantom.patient + 1
    # Settings that change the pixels change the identifiers: two images never share a UID.
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
    ds.Manufacturer = vendor.name
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
    ds.QualityControlImage = "YES"  # marks images of phantoms
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

    if "ImageLaterality" in vendor.omitted:
        # Only where the image does not say it itself (PS3.3 C.7.3.1).
        ds.Laterality = phantom.laterality
    # As real archives do, some vendors leave out what a reader would like to rely on.
    for keyword in vendor.omitted:
        delattr(ds, keyword)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    add_pixel_data(ds, phantom.pixels, vendor)
    return ds


def _code_item(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme_designator
    item.CodeMeaning = code.meaning
    return item


def _patient_orientation(phantom: Phantom) -> list[str]:
    """Directions in which rows and columns run.

    Source: DICOM PS3.3 C.7.6.1.1.1.
    """
    right = phantom.laterality is Laterality.RIGHT
    along_rows = "P" if phantom.chest_wall_right else "A"
    medial = "L" if right else "R"
    return [along_rows, medial if phantom.view == "CC" else f"F{medial}"]
