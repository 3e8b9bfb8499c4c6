"""What a DICOM header says of a mammogram: a dataset in, the fields of the manifest out.

Archives store the same information in different places, and any element can hold a value that
cannot be converted. So each field is looked for in every place where it is known to occur, and a
value that cannot be read counts as absent. Codes are those of pydicom's code dictionary.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Any

from pydicom import config, uid
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.tag import BaseTag, Tag

from mammo_pd.errors import ImageError
from mammo_pd.imaging.orientation import upright_column
from mammo_pd.machines import OTHER, known_manufacturer, known_model
from mammo_pd.terms import VIEWS, Laterality, Reason

# CID 4014 "View for Mammography", in the ACR abbreviations that View Position (0018,5101) uses.
_VIEW_CODES = {
    codes.cid4014.CranioCaudal: "CC",
    codes.cid4014.MedioLateralObliqueProjection: "MLO",
    codes.cid4014.MedioLateralProjection: "ML",
    codes.cid4014.LateroMedial: "LM",
    codes.cid4014.LateroMedialOblique: "LMO",
    codes.cid4014.CaudoCranial: "FB",
    codes.cid4014.SuperolateralToInferomedialOblique: "SIO",
    codes.cid4014.InferomedialToSuperolateralOblique: "ISO",
    codes.cid4014.CranioCaudalExaggeratedLaterally: "XCCL",
    codes.cid4014.CranioCaudalExaggeratedMedially: "XCCM",
    codes.cid4014.TissueSpecimenFromBreast: "SPECIMEN",
    # From editions of SNOMED before those that pydicom maps.
    Code("Y-X1770", "SRT", "cranio-caudal exaggerated laterally"): "XCCL",
    Code("Y-X1771", "SRT", "cranio-caudal exaggerated medially"): "XCCM",
}

# CID 4015 "View Modifier for Mammography": pydicom's keyword SpotCompression as spot_compression.
_VIEW_MODIFIER_CODES = {
    code: re.sub(r"(?<!^)(?=[A-Z])", "_", keyword).lower()
    for keyword, code in codes.cid4015.concepts.items()
}

# In free text AT, CV and FB are too short, and SPECIMEN too general, to be taken for a view.
_VIEW_PATTERN = "|".join(sorted(VIEWS - {"AT", "CV", "FB", "SPECIMEN"}, key=len, reverse=True))
_SIDE_AND_VIEW = re.compile(
    rf"(?<![A-Z])(?P<side>L|R|LEFT|RIGHT)?[\s_^,/.-]*(?P<view>{_VIEW_PATTERN})"
    r"[\s_^,/.-]*(?P<side_after>LEFT|RIGHT|L|R)?(?![A-Z])"
)

# Free text where acquisition stations write "R CC" or "MLO L" when View Position is empty. Fujifilm
# puts the name of the exposure menu into the first (reginabarzilaygroup/Mirai, pull request 11).
_TEXTS_WITH_VIEW = (
    "AcquisitionDeviceProcessingDescription",
    "AcquisitionDeviceProcessingCode",
    "ProtocolName",
    "SeriesDescription",
    "PerformedProcedureStepDescription",
)

_PRESENTATION_INTENT_OF_SOP_CLASS: dict[str, str] = {
    uid.DigitalMammographyXRayImageStorageForPresentation: "FOR PRESENTATION",
    uid.DigitalMammographyXRayImageStorageForProcessing: "FOR PROCESSING",
    uid.BreastProjectionXRayImageStorageForPresentation: "FOR PRESENTATION",
    uid.BreastProjectionXRayImageStorageForProcessing: "FOR PROCESSING",
}
_MAMMOGRAPHY_SOP_CLASSES = frozenset(
    {*_PRESENTATION_INTENT_OF_SOP_CLASS, uid.BreastTomosynthesisImageStorage}
)
# Views that other parts of the body are taken in too, by the same names and codes (CID 4010).
_SHARED_VIEWS = frozenset({"ML", "LM", "LMO", "FB", "CV", "AT"})
_BREAST_WORDS = re.compile(
    r"(?<![A-Z])(?:BREASTS?|MAMMAE?|MAMMO(?:GRAPHY)?|MAMA|BRUST|SEINS?)(?![A-Z])"
)
# Image storage of machines that take no mammograms.
_OTHER_SOP_CLASSES = frozenset(
    {
        uid.CTImageStorage,
        uid.EnhancedCTImageStorage,
        uid.MRImageStorage,
        uid.EnhancedMRImageStorage,
        uid.UltrasoundImageStorage,
        uid.UltrasoundMultiFrameImageStorage,
        uid.NuclearMedicineImageStorage,
        uid.PositronEmissionTomographyImageStorage,
        uid.DigitalIntraOralXRayImageStorageForPresentation,
        uid.DigitalIntraOralXRayImageStorageForProcessing,
        uid.OphthalmicPhotography8BitImageStorage,
        uid.VLWholeSlideMicroscopyImageStorage,
        uid.SegmentationStorage,
        uid.RTImageStorage,
        uid.RTDoseStorage,
    }
)
# CID 33 "Modality".
_MODALITIES = frozenset(code.value for code in codes.cid33.concepts.values())
_PHOTOMETRICS = frozenset({"MONOCHROME1", "MONOCHROME2"})
_PRESENTATION_INTENTS = frozenset(_PRESENTATION_INTENT_OF_SOP_CLASS.values())
# Modalities under which digitised film and computed radiography of the breast are archived.
_PROJECTION_MODALITIES = frozenset({"RG", "CR", "DX", "RF", "SC", "OT", "XA", "HC"})

_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)

_DIGITS = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_NUMBER = re.compile(_DIGITS)
_NUMBER_AND_UNIT = re.compile(rf"({_DIGITS})(?:\s*[^\W\d_]+|\s*%)?")
_COMMA_NUMBER = re.compile(r"[+-]?[0-9]*,[0-9]+(\s*[^\W\d_]+)?")
_MAYBE_THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2},[0-9]{3}(\s*[^\W\d_]+)?")


@dataclass(frozen=True)
class HeaderFields:
    """What the tags say of one image; None where they say nothing.

    Attributes:
        laterality: Image Laterality, from wherever it is given.
        view: View Position as the ACR abbreviates it (CC, MLO, ...).
        view_modifiers: the modifiers of CID 4015, such as ``spot_compression``, sorted.
        rows: Rows.
        columns: Columns.
        number_of_frames: Number of Frames, 1 where it is not given.
        photometric_interpretation: Photometric Interpretation.
        lossy_image_compression: Lossy Image Compression: whether the pixels ever were compressed
            with loss.
        imager_pixel_spacing: (row, column) mm at the detector.
        manufacturer: Manufacturer by its known name, else ``other``: the header's is free text.
        model: Manufacturer's Model Name, the same.
        age: Patient's Age in years.
        presentation_intent: Presentation Intent Type, FOR PRESENTATION or FOR PROCESSING.
        burned_in_annotation: Burned In Annotation.
        implant: Breast Implant Present.
        phantom: Quality Control Image, the tag of phantom images.
        patient_orientation: Patient Orientation, the directions of a row and of a column.
    """

    laterality: Laterality | None
    view: str | None
    view_modifiers: tuple[str, ...]
    rows: int | None
    columns: int | None
    number_of_frames: int | None
    photometric_interpretation: str | None
    lossy_image_compression: bool | None
    imager_pixel_spacing: tuple[float, float] | None
    manufacturer: str | None
    model: str | None
    age: float | None
    presentation_intent: str | None
    burned_in_annotation: bool | None
    implant: bool | None
    phantom: bool | None
    patient_orientation: tuple[str, str] | None


def read_header_fields(header: Dataset) -> HeaderFields:
    """Read the fields of the manifest from a header; what cannot be read is None."""
    return HeaderFields(
        laterality=find_laterality(header),
        view=find_view(header),
        view_modifiers=find_view_modifiers(header),
        rows=integer(header, "Rows"),
        columns=integer(header, "Columns"),
        number_of_frames=number_of_frames(header),
        photometric_interpretation=_code(header, "PhotometricInterpretation", _PHOTOMETRICS),
        lossy_image_compression={"00": False, "01": True}.get(
            text(header, "LossyImageCompression") or ""
        ),
        imager_pixel_spacing=find_imager_pixel_spacing(header),
        manufacturer=_known(header, "Manufacturer", known_manufacturer),
        model=_known(header, "ManufacturerModelName", known_model),
        age=find_age(header),
        presentation_intent=find_presentation_intent(header),
        burned_in_annotation=_yes_or_no(header, "BurnedInAnnotation"),
        implant=_yes_or_no(header, "BreastImplantPresent"),
        phantom=_yes_or_no(header, "QualityControlImage"),
        patient_orientation=find_patient_orientation(header),
    )


def read_identifiers(header: Dataset) -> dict[str, str]:
    """Read what identifies image, exam and patient, or may, exactly as the header gives it.

    Returns:
        sop_instance_uid, study_instance_uid, series_instance_uid, patient_id, accession_number,
        manufacturer and model (free text), each only where present. To be hashed or looked up in
        a table of known names, or written to the owner-only record, and to go nowhere else.
    """
    found = {
        "sop_instance_uid": whole_text(header, "SOPInstanceUID"),
        "study_instance_uid": whole_text(header, "StudyInstanceUID"),
        "series_instance_uid": whole_text(header, "SeriesInstanceUID"),
        "patient_id": whole_text(header, "PatientID"),
        "accession_number": whole_text(header, "AccessionNumber"),
        "manufacturer": text(header, "Manufacturer"),
        "model": text(header, "ManufacturerModelName"),
    }
    return {name: value for name, value in found.items() if value}


def check_is_mammogram(header: Dataset, *, assume_mammogram: bool = False) -> None:
    """Refuse what is not a mammogram.

    Modality MG or a mammographic SOP class suffices. Where Modality is absent, or is one under
    which film and computed radiography are archived, something else must name the breast: body
    part, organ, region, positioner, or a view that no other part of the body has. With no Modality
    at all the laterality suffices, as in the RSNA 2022 set, unless a body part says otherwise. Of
    the SOP classes those of other machines, such as CT's, are refused under any of these.

    Args:
        header: the dataset.
        assume_mammogram: the user's own table lists this image, so the header need not name the
            breast; another modality is still refused.

    Raises:
        ImageError: it is not a mammogram (``not_mammography``).
    """
    modality = text(header, "Modality")
    if modality == "MG" or text(header, "SOPClassUID") in _MAMMOGRAPHY_SOP_CLASSES:
        return
    if modality is not None and modality not in _PROJECTION_MODALITIES:
        raise ImageError(
            Reason.NOT_MAMMOGRAPHY, f"Modality is {_shown(modality)}; only mammograms are taken."
        )
    sop_class = text(header, "SOPClassUID") or ""
    if sop_class in _OTHER_SOP_CLASSES:
        raise ImageError(
            Reason.NOT_MAMMOGRAPHY,
            f"The SOP class is {uid.UID(sop_class).name}; only mammograms are taken.",
        )
    if assume_mammogram or _names_the_breast(header):
        return
    if (
        modality is None
        and text(header, "ImageLaterality") in set(Laterality)
        and text(header, "BodyPartExamined") is None
    ):
        return
    given = "absent" if modality is None else modality
    raise ImageError(
        Reason.NOT_MAMMOGRAPHY,
        f"Modality is {given} and no tag names the breast or a mammographic view.",
    )


def find_laterality(header: Dataset) -> Laterality | None:
    """Find the side: Image, Frame or Series Laterality, view and free text, then orientation.

    Source: DICOM PS3.3 C.8.11.7 (Image Laterality), C.7.6.16.2.8 (Frame Anatomy), C.7.3.1.
    """
    anatomy = functional_group(header, "FrameAnatomySequence")
    candidates = [text(header, "ImageLaterality")]
    if anatomy is not None:
        candidates.append(text(anatomy, "FrameLaterality"))
    candidates.append(text(header, "Laterality"))
    for candidate in candidates:
        if candidate in set(Laterality):
            return Laterality(candidate)
    side, _ = _side_and_view_from_texts(header)
    return side or _from_orientation(header)[0]


def find_view(header: Dataset) -> str | None:
    """Find the view: View Position, View Code Sequence, free text, then Patient Orientation.

    Source: DICOM PS3.16 CID 4014; PS3.3 C.8.11.7, C.7.6.1.1.1. Fujifilm's view in Acquisition
        Device Processing Description (0018,1400): reginabarzilaygroup/Mirai, pull request 11.
    """
    given = text(header, "ViewPosition")
    if given is not None:
        if given in VIEWS:
            return given
        match = _SIDE_AND_VIEW.fullmatch(given)
        if match:
            return match["view"]
    for item in items(header, "ViewCodeSequence"):
        code = _find_code(item, _VIEW_CODES)
        if code is not None:
            return _VIEW_CODES[code]
    _, view = _side_and_view_from_texts(header)
    return view or _from_orientation(header)[1]


def find_patient_orientation(header: Dataset) -> tuple[str, str] | None:
    """Find Patient Orientation, the frame's own first: the directions of a row and of a column.

    Source: DICOM PS3.3 C.7.6.1.1.1, C.7.6.16.2.15.
    """
    group = functional_group(header, "PatientOrientationInFrameSequence")
    given = value(header if group is None else group, "PatientOrientation")
    try:
        row, column = (str(entry).strip() for entry in given)
    except (TypeError, ValueError):
        return None
    # Anything else is no direction, and may be anything.
    is_direction = re.compile(r"[AFHLPR]{1,3}").fullmatch
    return (row, column) if is_direction(row) and is_direction(column) else None


def find_view_modifiers(header: Dataset) -> tuple[str, ...]:
    """Find the view's modifiers (spot compression, magnification, implant displaced, ...).

    Source: DICOM PS3.16 CID 4015.
    """
    found = set()
    for holder in (header, *items(header, "ViewCodeSequence")):
        for item in items(holder, "ViewModifierCodeSequence"):
            code = _find_code(item, _VIEW_MODIFIER_CODES)
            if code is not None:
                found.add(_VIEW_MODIFIER_CODES[code])
    return tuple(sorted(found))


def find_imager_pixel_spacing(header: Dataset) -> tuple[float, float] | None:
    """Find the (row, column) distance in mm between pixel centres at the detector or film.

    Source: DICOM PS3.3 C.8.7.10 (Imager Pixel Spacing), C.8.11.7.2 (Nominal Scanned).
    """
    for keyword in ("ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        spacing = numbers(header, keyword)
        if len(spacing) == 2 and min(spacing) > 0:
            return spacing[0], spacing[1]
    return None


def find_age(header: Dataset) -> float | None:
    """Find the age in years: Patient's Age, else the time from birth to the exam.

    An age of zero is what de-identification leaves behind, and counts as absent.

    Source: DICOM PS3.5 6.2 (AS: nnnD, nnnW, nnnM, nnnY).
    """
    match = re.fullmatch(r"(\d{1,3})([DWMY])", text(header, "PatientAge") or "")
    if match:
        years = int(match[1]) / {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}[match[2]]
        return round(years, 2) if years > 0 else None
    born = _day(text(header, "PatientBirthDate"))
    exam = _day(text(header, "StudyDate")) or _day(text(header, "AcquisitionDate"))
    if born is None or exam is None:
        return None
    years = (exam - born).days / 365.25
    return round(years, 2) if 0 < years < 120 else None


def find_presentation_intent(header: Dataset) -> str | None:
    """Find the Presentation Intent Type, by the SOP class where the tag is absent."""
    given = _code(header, "PresentationIntentType", _PRESENTATION_INTENTS)
    if given is not None:
        return given
    return _PRESENTATION_INTENT_OF_SOP_CLASS.get(text(header, "SOPClassUID") or "")


def number_of_frames(header: Dataset) -> int:
    """Number of Frames, 1 where it is not given or is no number."""
    return max(integer(header, "NumberOfFrames") or 1, 1)


def header_of_frame(header: Dataset, frame: int) -> Dataset:
    """The header of one frame: of the per-frame functional groups, only that frame's is kept.

    Args:
        header: of the whole file.
        frame: counted from 0.

    Returns:
        A new dataset that shares its elements with ``header``, without the private ones.

    Source: DICOM PS3.3 C.7.6.16.1 (Multi-frame Functional Groups).
    """
    # pydicom's update() would convert every private element, and fail at one bad value.
    single = Dataset({entry.tag: entry for entry in header.elements() if not entry.tag.is_private})
    single.file_meta = header.file_meta
    groups = items(header, "PerFrameFunctionalGroupsSequence")
    if groups:
        # A new element: assigning to the old one would change it in ``header`` too.
        own = groups[frame : frame + 1]
        single.add_new("PerFrameFunctionalGroupsSequence", "SQ", own)
    return single


def functional_group(header: Dataset, keyword: str) -> Dataset | None:
    """The first item of a functional group sequence: the shared one, else the first frame's.

    Source: DICOM PS3.3 C.7.6.16.1.
    """
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for holder in items(header, groups)[:1]:
            for item in items(holder, keyword):
                return item
    return None


@contextmanager
def reading_quietly() -> Iterator[None]:
    """Suppress pydicom's warnings about bad values, which can quote them, and its validation.

    `value` does so for each element; around many of them, once is a sixth faster.
    """
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        before = _QUIET.set(True)
        try:
            yield
        finally:
            _QUIET.reset(before)


def value(header: Dataset, keyword: str) -> Any:
    """The element's value, or None where it is absent or cannot be converted."""
    tag = _tag_of(keyword)
    try:
        # Not by the keyword, which takes pydicom 10 times as long where the element is absent.
        if tag not in header:
            return None
        if _QUIET.get():
            return header[tag].value
        with reading_quietly():
            return header[tag].value
    except Exception:  # pydicom converts on access, and a bad value can raise almost anything
        return None


@cache
def _tag_of(keyword: str) -> BaseTag:
    return Tag(keyword)


def text(header: Dataset, keyword: str) -> str | None:
    """The element's first value as stripped text, case preserved; None where empty."""
    given = value(header, keyword)
    if given is None or isinstance(given, bytes):
        return None
    if not isinstance(given, str) and hasattr(given, "__iter__"):
        given = next(iter(given), None)
    return _as_text(given)


def whole_text(header: Dataset, keyword: str) -> str | None:
    """The element's text with the backslashes that it should not hold; None where empty.

    For identifiers: two that differ behind a backslash are two patients, whom the first value
    alone would make one.
    """
    given = value(header, keyword)
    if given is None or isinstance(given, str | bytes) or not hasattr(given, "__iter__"):
        return text(header, keyword)
    return _as_text("\\".join(map(str, given)))


def _as_text(given: object) -> str | None:
    stripped = "" if given is None else str(given).replace("\0", "").strip()
    if not stripped.isascii():
        # pydicom takes any of Python's codecs for a character set, and some of them decode to
        # surrogates, which can be neither hashed nor written.
        stripped = stripped.encode("utf-8", "backslashreplace").decode("utf-8")
    return stripped or None


def readable_numbers(header: Dataset, keyword: str) -> tuple[list[float | None], bool]:
    """The element's values as floats, as far as they can be read.

    A decimal comma is read as a point, unless it may separate thousands, and a unit behind a number
    is dropped.

    Returns:
        One entry for each value, None where it is no finite number, and whether every value was
        written as the standard demands (PS3.5 6.2, DS). The list is empty where the element is
        absent or empty.
    """
    given = value(header, keyword)
    if given is None or given == "":
        return [], True
    if isinstance(given, str | bytes) or not hasattr(given, "__iter__"):
        given = [given]
    written = [str(entry).replace("\0", "").strip() for entry in given]
    read = [_read_number(entry) for entry in written]
    return read, all(_NUMBER.fullmatch(entry) for entry in written) and None not in read


def numbers(header: Dataset, keyword: str) -> list[float]:
    """The element's values as floats; empty where absent or any cannot be read."""
    read, _ = readable_numbers(header, keyword)
    found = [entry for entry in read if entry is not None]
    return found if len(found) == len(read) else []


def integer(header: Dataset, keyword: str) -> int | None:
    """The element's value as an integer; None where absent, multiple or not a whole number."""
    found = value(header, keyword)
    if type(found) is int:  # as of most; IS and DS are classes of pydicom's own
        return found
    given = numbers(header, keyword)
    return int(given[0]) if len(given) == 1 and given[0] == int(given[0]) else None


def items(header: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; empty where it is absent or cannot be read."""
    given = value(header, keyword)
    try:
        return [item for item in given or [] if isinstance(item, Dataset)]
    except Exception:  # a sequence is parsed only while it is walked
        return []


def _read_number(written: str) -> float | None:
    if _COMMA_NUMBER.fullmatch(written) and not _MAYBE_THOUSANDS.fullmatch(written):
        written = written.replace(",", ".")
    match = _NUMBER_AND_UNIT.fullmatch(written)
    read = float(match[1]) if match else float("nan")
    return read if abs(read) < float("inf") else None


def _names_the_breast(header: Dataset) -> bool:
    for keyword in ("BodyPartExamined", "OrganExposed"):
        if _BREAST_WORDS.search((text(header, keyword) or "").upper()):
            return True
    if text(header, "PositionerType") == "MAMMOGRAPHIC":
        return True
    own_codes = [code for code, view in _VIEW_CODES.items() if view not in _SHARED_VIEWS]
    for keyword, known in (
        ("AnatomicRegionSequence", [codes.SCT.Breast]),
        ("ViewCodeSequence", own_codes),
    ):
        if any(_find_code(item, known) is not None for item in items(header, keyword)):
            return True
    given = text(header, "ViewPosition") or ""
    match = _SIDE_AND_VIEW.fullmatch(given)
    return (match["view"] if match else given) in VIEWS - _SHARED_VIEWS


def _find_code(item: Dataset, known: Iterable[Code]) -> Code | None:
    """Which of the known codes an item of a code sequence holds; None where none of them.

    The item's Coding Scheme Designator is not consulted: archives name SNOMED in many ways. pydicom
    takes a SNOMED RT code for equal to the SNOMED CT code that replaced it.
    """
    given = text(item, "CodeValue") or ""
    candidates = [Code(given, scheme, "") for scheme in ("SCT", "SRT")]
    return next((code for code in known if code in candidates), None)


def _side_and_view_from_texts(header: Dataset) -> tuple[Laterality | None, str | None]:
    for keyword in ("ViewPosition", *_TEXTS_WITH_VIEW):
        given = text(header, keyword)
        match = _SIDE_AND_VIEW.search(given.upper()) if given else None
        if match:
            side = match["side"] or match["side_after"]
            return (Laterality(side[0]) if side else None), match["view"]
    return None, None


def _from_orientation(header: Dataset) -> tuple[Laterality | None, str | None]:
    # The two values give the directions of a row and of a column (PS3.3 C.7.6.1.1.1). Mammograms
    # are shown with the axilla or the lateral side on top, so the columns of a right breast run
    # towards the patient's left.
    row, column = find_patient_orientation(header) or ("", "")
    if row not in {"A", "P"}:
        return None, None
    column = upright_column(column)
    side = {"L": Laterality.RIGHT, "R": Laterality.LEFT}.get(column[-1:])
    if column in {"L", "R"}:
        return side, "CC"
    if column in {"FL", "FR"}:
        return side, "MLO"
    return None, None


def _code(header: Dataset, keyword: str, known: frozenset[str]) -> str | None:
    """A value that the standard defines; anything else could be anything, and counts as absent."""
    given = text(header, keyword)
    return given if given in known else None


def _known(header: Dataset, keyword: str, find: Callable[[str], str | None]) -> str | None:
    given = text(header, keyword)
    return None if given is None else find(given) or OTHER


def _yes_or_no(header: Dataset, keyword: str) -> bool | None:
    return {"YES": True, "NO": False}.get(text(header, keyword) or "")


def _day(given: str | None) -> date | None:
    match = re.fullmatch(r"(\d{4})[.-]?(\d{2})[.-]?(\d{2})", given or "")
    try:
        return date(int(match[1]), int(match[2]), int(match[3])) if match else None
    except ValueError:
        return None


def _shown(modality: str) -> str:
    # Anything else might identify the patient.
    return modality if modality in _MODALITIES else "no code of the standard"
