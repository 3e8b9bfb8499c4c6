"""What a DICOM header says of a mammogram: from a dataset to the facts the manifest wants.

Archives put the same fact in different places, and any element can hold a value that cannot be
converted; so each fact is looked for in every place it is known to be, and a value that cannot be
read counts as absent.
"""

import re
import warnings
from dataclasses import dataclass
from datetime import date
from typing import Any

from pydicom import config
from pydicom.dataset import Dataset

from mammo_pd.errors import ImageError
from mammo_pd.terms import Laterality, Reason

# CID 4014 "View for Mammography": SNOMED CT, SNOMED RT and the codes of earlier editions, with
# the ACR abbreviation that View Position (0018,5101) uses.
VIEW_OF_CODE = {
    **dict.fromkeys(("399162004", "R-10242"), "CC"),
    **dict.fromkeys(("399368009", "R-10226"), "MLO"),
    **dict.fromkeys(("399260004", "R-10224"), "ML"),
    **dict.fromkeys(("399352003", "R-10228"), "LM"),
    **dict.fromkeys(("399099002", "R-10230"), "LMO"),
    **dict.fromkeys(("399196006", "R-10244"), "FB"),
    **dict.fromkeys(("399188001", "R-102D0"), "SIO"),
    **dict.fromkeys(("441555000", "R-40AAA"), "ISO"),
    **dict.fromkeys(("399192008", "R-1024A", "Y-X1770"), "XCCL"),
    **dict.fromkeys(("399101009", "R-1024B", "Y-X1771"), "XCCM"),
    **dict.fromkeys(("127457009", "G-8310"), "SPECIMEN"),
}

# CID 4015 "View Modifier for Mammography".
VIEW_MODIFIER_OF_CODE = {
    **dict.fromkeys(("399161006", "R-102D2"), "cleavage"),
    **dict.fromkeys(("399011000", "R-102D1"), "axillary_tail"),
    **dict.fromkeys(("399197002", "R-102D3"), "rolled_lateral"),
    **dict.fromkeys(("399226006", "R-102D4"), "rolled_medial"),
    **dict.fromkeys(("414493004", "R-102CA"), "rolled_inferior"),
    **dict.fromkeys(("415670009", "R-102C9"), "rolled_superior"),
    **dict.fromkeys(("399209000", "R-102D5"), "implant_displaced"),
    **dict.fromkeys(("399163009", "R-102D6"), "magnification"),
    **dict.fromkeys(("399055006", "R-102D7"), "spot_compression"),
    **dict.fromkeys(("399110001", "R-102C2"), "tangential"),
    **dict.fromkeys(("442581004", "R-40AB3"), "nipple_in_profile"),
    **dict.fromkeys(("441752004", "P2-00161"), "anterior_compression"),
    **dict.fromkeys(("442593008", "R-40ABE"), "infra_mammary_fold"),
    **dict.fromkeys(("442580003", "R-40AB2"), "axillary_tissue"),
}

_VIEWS = frozenset(VIEW_OF_CODE.values()) | {"XCC", "AT", "CV"}
# Views that no other body part has: CC and ML do not occur outside the breast either, but two
# letters in a free text are weak evidence.
_VIEW_PATTERN = "|".join(sorted(_VIEWS - {"AT", "CV", "FB", "SPECIMEN"}, key=len, reverse=True))
_SIDE_AND_VIEW = re.compile(
    rf"(?<![A-Z])(?P<side>L|R|LEFT|RIGHT)?[\s_^,/.-]*(?P<view>{_VIEW_PATTERN})"
    r"[\s_^,/.-]*(?P<side_after>LEFT|RIGHT|L|R)?(?![A-Z])"
)

# Free texts where acquisition stations put "R CC" or "MLO L" when View Position is empty. Fujifilm
# names the exposure menu in the first (reginabarzilaygroup/Mirai, pull request 11).
_TEXTS_WITH_VIEW = (
    "AcquisitionDeviceProcessingDescription",
    "AcquisitionDeviceProcessingCode",
    "ProtocolName",
    "SeriesDescription",
    "PerformedProcedureStepDescription",
)

_MAMMOGRAPHY_SOP_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.1.2",  # Digital Mammography X-Ray, for presentation
        "1.2.840.10008.5.1.4.1.1.1.2.1",  # Digital Mammography X-Ray, for processing
        "1.2.840.10008.5.1.4.1.1.13.1.3",  # Breast Tomosynthesis
        "1.2.840.10008.5.1.4.1.1.13.1.4",  # Breast Projection X-Ray, for presentation
        "1.2.840.10008.5.1.4.1.1.13.1.5",  # Breast Projection X-Ray, for processing
    }
)
# Modalities under which digitised film and computed radiography of the breast are archived.
_PROJECTION_MODALITIES = frozenset({"RG", "CR", "DX", "RF", "SC", "OT", "XA", "HC"})
_BREAST_REGION_CODES = frozenset({"T-04000", "76752008"})


@dataclass(frozen=True)
class HeaderFields:
    """What the tags say of one image; None where they do not.

    Attributes:
        laterality: Image Laterality, from wherever it is given.
        view: View Position in ACR's abbreviation (CC, MLO, ...).
        view_modifiers: CID 4015 modifiers in words, sorted.
        rows: Rows.
        columns: Columns.
        number_of_frames: Number of Frames, 1 where it is not given.
        photometric_interpretation: Photometric Interpretation.
        imager_pixel_spacing: (row, column) mm at the detector.
        manufacturer: Manufacturer.
        model: Manufacturer's Model Name.
        age: Patient's Age in years.
        presentation_intent: Presentation Intent Type, FOR PRESENTATION or FOR PROCESSING.
        burned_in_annotation: Burned In Annotation.
        implant: Breast Implant Present.
        phantom: Quality Control Image, the tag of phantom images.
    """

    laterality: Laterality | None
    view: str | None
    view_modifiers: tuple[str, ...]
    rows: int | None
    columns: int | None
    number_of_frames: int | None
    photometric_interpretation: str | None
    imager_pixel_spacing: tuple[float, float] | None
    manufacturer: str | None
    model: str | None
    age: float | None
    presentation_intent: str | None
    burned_in_annotation: bool | None
    implant: bool | None
    phantom: bool | None


def read_header_fields(header: Dataset) -> HeaderFields:
    """Read from a header what the manifest wants. Never raises: what cannot be read is None."""
    return HeaderFields(
        laterality=find_laterality(header),
        view=find_view(header),
        view_modifiers=find_view_modifiers(header),
        rows=integer(header, "Rows"),
        columns=integer(header, "Columns"),
        number_of_frames=number_of_frames(header),
        photometric_interpretation=text(header, "PhotometricInterpretation"),
        imager_pixel_spacing=find_imager_pixel_spacing(header),
        manufacturer=text(header, "Manufacturer"),
        model=text(header, "ManufacturerModelName"),
        age=find_age(header),
        presentation_intent=_presentation_intent(header),
        burned_in_annotation=_yes_or_no(header, "BurnedInAnnotation"),
        implant=_yes_or_no(header, "BreastImplantPresent"),
        phantom=_yes_or_no(header, "QualityControlImage"),
    )


def read_identifiers(header: Dataset) -> dict[str, str]:
    """Read what identifies image, exam and patient, as it stands in the header.

    Returns:
        sop_instance_uid, study_instance_uid, series_instance_uid, patient_id and
        accession_number, each only where present. Only for hashing and for the owner-only record.
    """
    found = {
        "sop_instance_uid": text(header, "SOPInstanceUID"),
        "study_instance_uid": text(header, "StudyInstanceUID"),
        "series_instance_uid": text(header, "SeriesInstanceUID"),
        "patient_id": text(header, "PatientID"),
        "accession_number": text(header, "AccessionNumber"),
    }
    return {name: value for name, value in found.items() if value}


def check_is_mammogram(header: Dataset, *, assume_mammogram: bool = False) -> None:
    """Refuse what is not a mammogram.

    Modality MG or a mammographic SOP class is one. Where Modality is absent, or is one under
    which film and computed radiography are archived, the breast must be named somewhere else: as
    body part, organ, region, view or positioner; or the side must be given with no modality at
    all, as in the RSNA 2022 set.

    Args:
        header: the dataset.
        assume_mammogram: the user's own table names this image, so silence is no obstacle.

    Raises:
        ImageError: it is none (``not_mammography``).
    """
    modality = text(header, "Modality")
    if modality == "MG" or text(header, "SOPClassUID") in _MAMMOGRAPHY_SOP_CLASSES:
        return
    if modality is not None and modality not in _PROJECTION_MODALITIES:
        raise ImageError(
            Reason.NOT_MAMMOGRAPHY, f"Modality is {_shown(modality)}; only mammograms are taken."
        )
    if assume_mammogram or _names_the_breast(header):
        return
    if modality is None and text(header, "ImageLaterality") in set(Laterality):
        return
    given = "absent" if modality is None else modality
    raise ImageError(
        Reason.NOT_MAMMOGRAPHY,
        f"Modality is {given} and no tag names the breast or a mammographic view.",
    )


def find_laterality(header: Dataset) -> Laterality | None:
    """Find the side: Image, Frame or Series Laterality, view and free texts, then orientation.

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
    """Find the view: View Position, View Code Sequence, free texts, then Patient Orientation.

    Source: DICOM PS3.16 CID 4014; PS3.3 C.8.11.7, C.7.6.1.1.1. Fujifilm's view in Acquisition
        Device Processing Description (0018,1400): reginabarzilaygroup/Mirai, pull request 11.
    """
    given = text(header, "ViewPosition")
    if given is not None:
        if given in _VIEWS:
            return given
        match = _SIDE_AND_VIEW.fullmatch(given)
        if match:
            return match["view"]
    for item in items(header, "ViewCodeSequence"):
        view = VIEW_OF_CODE.get(text(item, "CodeValue") or "")
        if view is not None:
            return view
    _, view = _side_and_view_from_texts(header)
    return view or _from_orientation(header)[1]


def find_view_modifiers(header: Dataset) -> tuple[str, ...]:
    """Find the view's modifiers (spot compression, magnification, implant displaced, ...).

    Source: DICOM PS3.16 CID 4015.
    """
    found = set()
    for holder in (header, *items(header, "ViewCodeSequence")):
        for item in items(holder, "ViewModifierCodeSequence"):
            word = VIEW_MODIFIER_OF_CODE.get(text(item, "CodeValue") or "")
            if word is not None:
                found.add(word)
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


def number_of_frames(header: Dataset) -> int:
    """Number of Frames, 1 where it is not given or is no number."""
    return max(integer(header, "NumberOfFrames") or 1, 1)


def header_of_frame(header: Dataset, frame: int) -> Dataset:
    """The header as it stands for one frame: of the per-frame groups, only that frame's is left.

    Args:
        header: of the whole file.
        frame: which, from 0.

    Returns:
        A new dataset that shares its elements, but for the private ones, with ``header``.

    Source: DICOM PS3.3 C.7.6.16.1 (Multi-frame Functional Groups).
    """
    # pydicom's update() would convert every private element, and fall over one bad value.
    single = Dataset({entry.tag: entry for entry in header.elements() if not entry.tag.is_private})
    single.file_meta = header.file_meta
    groups = items(header, "PerFrameFunctionalGroupsSequence")
    if groups:
        # A new element: to assign would change the one that is shared.
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


def value(header: Dataset, keyword: str) -> Any:
    """The element's value, or None where it is absent or cannot be converted."""
    try:
        # pydicom warns of a bad value in words that can quote it.
        with warnings.catch_warnings(), config.disable_value_validation():
            warnings.simplefilter("ignore")
            return header.get(keyword)
    except Exception:  # pydicom converts on access, and a bad value can raise almost anything
        return None


def text(header: Dataset, keyword: str) -> str | None:
    """The element's first value as text in capitals' own case, stripped; None where empty."""
    given = value(header, keyword)
    if given is None or isinstance(given, bytes):
        return None
    if not isinstance(given, str) and hasattr(given, "__iter__"):
        given = next(iter(given), None)
    stripped = "" if given is None else str(given).replace("\0", "").strip()
    return stripped or None


def numbers(header: Dataset, keyword: str) -> list[float]:
    """The element's values as floats; empty where absent, or where one is no finite number."""
    given = value(header, keyword)
    if given is None:
        return []
    if isinstance(given, str) or not hasattr(given, "__iter__"):
        given = [given]
    try:
        converted = [float(entry) for entry in given]
    except (TypeError, ValueError):
        return []
    return converted if all(abs(entry) < float("inf") for entry in converted) else []


def integer(header: Dataset, keyword: str) -> int | None:
    """The element's value as an integer; None where it is absent, several, or no whole number."""
    given = numbers(header, keyword)
    return int(given[0]) if len(given) == 1 and given[0] == int(given[0]) else None


def items(header: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; empty where it is absent or cannot be read."""
    given = value(header, keyword)
    try:
        return [item for item in given or [] if isinstance(item, Dataset)]
    except Exception:  # a sequence is parsed while it is walked
        return []


def _names_the_breast(header: Dataset) -> bool:
    for keyword in ("BodyPartExamined", "OrganExposed"):
        if "BREAST" in (text(header, keyword) or "").upper():
            return True
    if text(header, "PositionerType") == "MAMMOGRAPHIC":
        return True
    for item in items(header, "AnatomicRegionSequence"):
        if text(item, "CodeValue") in _BREAST_REGION_CODES:
            return True
    if any(text(item, "CodeValue") in VIEW_OF_CODE for item in items(header, "ViewCodeSequence")):
        return True
    given = text(header, "ViewPosition") or ""
    return given in _VIEWS - {"AT"} or _SIDE_AND_VIEW.fullmatch(given) is not None


def _side_and_view_from_texts(header: Dataset) -> tuple[Laterality | None, str | None]:
    for keyword in ("ViewPosition", *_TEXTS_WITH_VIEW):
        given = text(header, keyword)
        match = _SIDE_AND_VIEW.search(given.upper()) if given else None
        if match:
            side = match["side"] or match["side_after"]
            return (Laterality(side[0]) if side else None), match["view"]
    return None, None


def _from_orientation(header: Dataset) -> tuple[Laterality | None, str | None]:
    # Mammograms are shown with the axilla or the lateral side on top, so the columns of a right
    # breast run towards the patient's left. What the two values mean: PS3.3 C.7.6.1.1.1.
    group = functional_group(header, "PatientOrientationInFrameSequence")
    given = value(header if group is None else group, "PatientOrientation")
    try:
        row, column = (str(entry).strip() for entry in given)
    except (TypeError, ValueError):
        return None, None
    if row not in {"A", "P"}:
        return None, None
    side = {"L": Laterality.RIGHT, "R": Laterality.LEFT}.get(column[-1:])
    if column in {"L", "R"}:
        return side, "CC"
    if column in {"FL", "FR"}:
        return side, "MLO"
    return None, None


def _presentation_intent(header: Dataset) -> str | None:
    given = text(header, "PresentationIntentType")
    if given is not None:
        return given
    return {
        "1.2.840.10008.5.1.4.1.1.1.2": "FOR PRESENTATION",
        "1.2.840.10008.5.1.4.1.1.1.2.1": "FOR PROCESSING",
        "1.2.840.10008.5.1.4.1.1.13.1.4": "FOR PRESENTATION",
        "1.2.840.10008.5.1.4.1.1.13.1.5": "FOR PROCESSING",
    }.get(text(header, "SOPClassUID") or "")


def _yes_or_no(header: Dataset, keyword: str) -> bool | None:
    return {"YES": True, "NO": False}.get(text(header, keyword) or "")


def _day(given: str | None) -> date | None:
    match = re.fullmatch(r"(\d{4})[.-]?(\d{2})[.-]?(\d{2})", given or "")
    try:
        return date(int(match[1]), int(match[2]), int(match[3])) if match else None
    except ValueError:
        return None


def _shown(given: str) -> str:
    # A modality is a code of at most 16 capitals; anything else could be anything.
    return given if re.fullmatch(r"[A-Z0-9_ ]{1,16}", given) else "no code of the standard"
