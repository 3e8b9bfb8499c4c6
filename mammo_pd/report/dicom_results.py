"""Results for a PACS: scores of one exam go in, a structured report and pictures come out.

Both are instances of the exam's own study, so they hold what identifies the woman: they belong in
the owner-only folder, and to nobody but the archive that her images come from. Needs highdicom.

Source: DICOM PS3.16 TID 1500 (Measurement Report), PS3.3 A.8.1 (Secondary Capture Image).
"""

import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image, ImageDraw, ImageFont
from pydicom import config
from pydicom.datadict import dictionary_has_tag, dictionary_VM
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.tag import BaseTag
from pydicom.valuerep import DA, STR_VR, TM, VR, validate_value

from mammo_pd import __version__
from mammo_pd.errors import InputError
from mammo_pd.files import atomic_write
from mammo_pd.terms import Laterality

RESEARCH_ONLY = "Research use only, not a medical device"
# For what no code of the standard says; schemes for local use begin with 99 (PS3.16 section 8).
_SCHEME = "99MAMMOPD"
_MANUFACTURER = "mammo-pd"
# Laterality belongs to a series, so pictures of the two sides are in two.
_SERIES_NUMBERS = {"SR": 9701, "SC": 9702, "SC L": 9703, "SC R": 9704}
# Of type 2 in the modules that highdicom copies: they may be empty and must be there.
_REQUIRED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"),
    *("StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
# What an archive knows a woman by, and all UIDs, stay as her images have them, valid or not.
_IDENTITY = ("PatientID", "IssuerOfPatientID", "PatientName")
_SIDES = {Laterality.LEFT.value: codes.SCT.Left, Laterality.RIGHT.value: codes.SCT.Right}
# What a picture of an image has of it.
_OF_PIXELS = (
    *("BurnedInAnnotation", "LossyImageCompression"),
    *("LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
_DEFAULT_SET = "ISO 2022 IR 6"
# Not the first of several character sets.
_MULTI_BYTE = ("ISO 2022 IR 87", "ISO 2022 IR 159", "ISO 2022 IR 149", "ISO 2022 IR 58")
_MARGIN = 6


@dataclass(frozen=True)
class Verdict:
    """What a model says about one target in a unit.

    Attributes:
        target: name.
        score: in [0, 1].
        flagged: whether it reaches the threshold; None without one.
        rule: of the threshold, in words; empty without one.
        threshold: the lowest score that is flagged; None without one.
        recalibrated: the score after the locked calibration; None without one.
    """

    target: str
    score: float
    flagged: bool | None = None
    rule: str = ""
    threshold: float | None = None
    recalibrated: float | None = None


@dataclass(frozen=True)
class ScoredImage:
    """One image of an exam.

    Attributes:
        source: its file.
        frame: number of the frame, from 1; None where the file is one image.
        laterality: L or R, if known.
        view: as the ACR abbreviates it, if known.
        verdicts: one for each target.
        saliency: a PNG of where the model looked, as the image was acquired; None for none.
        upright: whether the picture's rows run as the file's do.
    """

    source: Path
    frame: int | None
    laterality: str | None
    view: str | None
    verdicts: Sequence[Verdict]
    saliency: Path | None = None
    upright: bool = True


@dataclass(frozen=True)
class ScoredExam:
    """One exam.

    Attributes:
        images: at least one.
        breasts: verdicts on each side that is known.
        verdicts: on the whole.
    """

    images: Sequence[ScoredImage]
    breasts: dict[str, Sequence[Verdict]]
    verdicts: Sequence[Verdict]


@dataclass(frozen=True)
class ScoringModel:
    """The model that made the scores.

    Attributes:
        name: timm's, with the input size.
        weights: SHA-256 of the weights.
        definition: what a positive is; None if unknown.
    """

    name: str
    weights: str
    definition: str | None


class NoResultError(ValueError):
    """No result can be made of an exam; the message says why in words that quote no header."""


def require_highdicom() -> None:
    """Check that highdicom is installed.

    Raises:
        InputError: it is not installed.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise InputError(
            "--dicom needs highdicom; install it with: pip install 'mammo-pd[dicom]'"
        ) from error


def write_exam(exam: ScoredExam, model: ScoringModel, folder: Path) -> list[Path]:
    """Write the structured report of an exam, and a secondary capture of each saliency picture.

    What is there already is left as it is; results of other scores are removed. UIDs follow from
    the study and the content, so the same result is the same instance.

    Args:
        exam: whose files are still there.
        model: that scored it.
        folder: of this exam's results alone, for the owner.

    Returns:
        The files.

    Raises:
        NoResultError: the files are gone, lack what a result needs (the UIDs of study and image),
            or are of a private SOP class, of which no standard says what a result has of it.
    """
    try:
        headers = [_read_header(image.source) for image in exam.images]
    except OSError as error:
        raise NoResultError("a file can no longer be read") from error
    if len({str(header.StudyInstanceUID) for header in headers}) != 1:
        raise NoResultError("the images are of several studies")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    wanted = [_write_report(exam, headers, model, folder)]
    for number, (image, header) in enumerate(zip(exam.images, headers, strict=True), start=1):
        if image.saliency is not None:
            wanted.append(_write_capture(image, header, model, folder, number))
    for file in folder.glob("*.dcm"):
        if file not in wanted:
            file.unlink()
    return wanted


def _read_header(path: Path) -> Dataset:
    with _tolerant():
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        for keyword in ("SOPInstanceUID", "SOPClassUID"):
            told = getattr(header, "file_meta", Dataset()).get(f"MediaStorage{keyword}")
            if not header.get(keyword) and told:
                setattr(header, keyword, told)
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
            if not header.get(keyword):
                raise NoResultError("a file lacks the UID of its study, series, image or SOP class")
        if pydicom.uid.UID(header.SOPClassUID).is_private:
            raise NoResultError("a file is of a private SOP class")
        _name_character_set(header)
        for tag in [*header.keys()]:
            if not _may_be_copied(header, tag):
                del header[tag]
        for keyword in _REQUIRED:
            if keyword not in header:
                setattr(header, keyword, "")
    return header


def _name_character_set(header: Dataset) -> None:
    """Keep the file's character sets, or use UTF-8 where they are not the standard's.

    Source: DICOM PS3.3 C.12.1.1.2. The first of several may be empty, for ISO 2022 IR 6.
    """
    from highdicom import SpecificCharacterSetValues

    given = header.get("SpecificCharacterSet")
    if not given:
        return
    sets = [given] if isinstance(given, str) else [one or _DEFAULT_SET for one in given]
    known = {one.value for one in SpecificCharacterSetValues}
    if not known.issuperset(sets) or (
        len(sets) > 1
        and (sets[0] in _MULTI_BYTE or not all(one.startswith("ISO 2022") for one in sets))
    ):
        header.decode()
        sets = ["ISO_IR 192"]
    header.SpecificCharacterSet = sets


def _may_be_copied(header: Dataset, tag: BaseTag) -> bool:
    """Whether an element can stand in a result: archives hold birthdays of zeros and long IDs."""
    try:
        element = header[tag]
        if element.keyword in _IDENTITY or element.VR == VR.UI:
            return True
        if element.VR == VR.SQ:
            return all(map(_is_whole, element.value))
        if not header.get("SpecificCharacterSet") and not str(element.value).isascii():
            return False
        return _is_valid(element)
    except Exception:  # pydicom can raise almost anything of a value that is none of its kind
        return False


def _is_whole(item: Dataset) -> bool:
    """Whether an item holds valid values alone; which of them might be empty is not looked up."""
    return len(item) > 0 and all(
        all(map(_is_whole, element.value))
        if element.VR == VR.SQ
        else not element.is_empty and _is_valid(element)
        for element in item
    )


def _is_valid(element: DataElement) -> bool:
    """Whether a value is valid for its kind. Source: DICOM PS3.5 6.2, PS3.6 6."""
    if element.is_empty:
        return True
    values = element.value if element.VM > 1 else [element.value]
    if element.VM > 1 and dictionary_has_tag(element.tag) and dictionary_VM(element.tag) == "1":
        return False
    for value in values:
        # Names and numbers are types of pydicom's own, which it does not check.
        validate_value(element.VR, str(value) if element.VR in STR_VR else value, config.RAISE)
        # The calendar's and the clock's rules are those of the types alone.
        if element.VR == VR.DA:
            DA(value)
        elif element.VR == VR.TM:
            TM(value)
    return element.keyword != "PatientSex" or element.value in ("M", "F", "O")


@contextmanager
def _tolerant() -> Iterator[None]:
    """Accept values that archives hold, whatever their form; pydicom's warnings quote them."""
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def _uid(*parts: object) -> str:
    """A UID that follows from what it names. Source: DICOM PS3.5 B.2, ITU-T X.667."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, repr(parts)).int}"


def _common(header: Dataset, model: ScoringModel, kind: str, content: object) -> dict[str, Any]:
    """What both kinds of instance are made with."""
    study = str(header.StudyInstanceUID)
    return {
        "series_instance_uid": _uid(study, kind, model.weights),
        "series_number": _SERIES_NUMBERS[kind],
        "sop_instance_uid": _uid(study, kind, model.weights, __version__, content),
        "manufacturer": _MANUFACTURER,
        "manufacturer_model_name": model.name[:64],
        "software_versions": __version__,
        "device_serial_number": model.weights[:16],
        "series_description": f"mammo-pd: {RESEARCH_ONLY}",
    }


# ---- structured report


def _write_report(
    exam: ScoredExam, headers: Sequence[Dataset], model: ScoringModel, folder: Path
) -> Path:
    from highdicom import sr

    common = _common(headers[0], model, "SR", _content(exam, headers))
    path = folder / f"{common['sop_instance_uid']}.dcm"
    if path.is_file():
        return path
    observer = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=_uid(model.weights),
            name="mammo-pd",
            manufacturer_name=_MANUFACTURER,
            model_name=model.name,
            serial_number=model.weights[:16],
        ),
    )
    groups: list[Any] = []
    study = str(headers[0].StudyInstanceUID)
    every = list(zip(exam.images, headers, strict=True))
    for image, header in every:
        name = " ".join(filter(None, ("image", image.laterality, image.view)))
        identity = (str(header.SOPInstanceUID), image.frame)
        groups += _groups(
            name, image.laterality, image.verdicts, [(image, header)], model, (study, *identity)
        )
    for side, verdicts in exam.breasts.items():
        of_side = [(image, header) for image, header in every if image.laterality == side]
        groups += _groups(f"breast {side}", side, verdicts, of_side, model, (study, side))
    groups += _groups("exam", None, exam.verdicts, every, model, (study,))
    with _tolerant():
        report = sr.MeasurementReport(
            observation_context=sr.ObservationContext(observer_device_context=observer),
            procedure_reported=Code("71651007", "SCT", "Mammography"),
            imaging_measurements=groups,
            title=codes.DCM.ImagingMeasurementReport,
        )
        document = sr.ComprehensiveSR(
            evidence=_distinct(headers),
            content=report,
            instance_number=1,
            is_complete=True,
            is_final=False,
            is_verified=False,
            coding_schemes=[_coding_scheme()],
            **common,
        )
        for keyword in ("StudyDescription", "PatientAge"):
            if keyword in headers[0]:
                document[keyword] = headers[0][keyword]
        _save(document, path)
    return path


def _content(exam: ScoredExam, headers: Sequence[Dataset]) -> object:
    """Everything that makes one result another than the next."""
    images = [
        (str(header.SOPInstanceUID), image.frame, [*map(_values, image.verdicts)])
        for image, header in zip(exam.images, headers, strict=True)
    ]
    breasts = [(side, [*map(_values, of)]) for side, of in sorted(exam.breasts.items())]
    return images, breasts, [*map(_values, exam.verdicts)]


def _values(verdict: Verdict) -> tuple[object, ...]:
    return (
        verdict.target,
        verdict.score,
        verdict.flagged,
        verdict.rule,
        verdict.threshold,
        verdict.recalibrated,
    )


def _distinct(headers: Sequence[Dataset]) -> list[Dataset]:
    """The frames of one file are one piece of evidence."""
    return list({str(header.SOPInstanceUID): header for header in headers}.values())


def _coding_scheme() -> Any:
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    return CodingSchemeIdentificationItem(
        designator=_SCHEME, name="Codes of mammo-pd", version=__version__
    )


def _code(value: str, meaning: str) -> Code:
    return Code(value, _SCHEME, meaning)


def _groups(
    name: str,
    laterality: str | None,
    verdicts: Sequence[Verdict],
    images: Sequence[tuple[ScoredImage, Dataset]],
    model: ScoringModel,
    identity: tuple[object, ...],
) -> list[Any]:
    """TID 1501: one group of measurements for each target."""
    from highdicom import sr

    sites = (
        [sr.FindingSite(codes.SCT.Breast, laterality=_SIDES[laterality])]
        if laterality in _SIDES
        else None
    )
    groups = []
    for verdict in verdicts:
        evaluations = [
            sr.QualitativeEvaluation(_code("use", "Intended use"), _code("research", RESEARCH_ONLY))
        ]
        if verdict.flagged is not None:
            value = (
                _code("flagged", "At or above the locked threshold")
                if verdict.flagged
                else _code("not_flagged", "Below the locked threshold")
            )
            evaluations.append(
                sr.QualitativeEvaluation(_code("verdict", "Verdict at the locked threshold"), value)
            )
        measurements = [_measurement("score", "Score of the model, 0 to 1", verdict.score)]
        if verdict.recalibrated is not None:
            meaning = "Score after the locked calibration, 0 to 1"
            measurements.append(_measurement("recalibrated", meaning, verdict.recalibrated))
        groups.append(
            sr.MeasurementsAndQualitativeEvaluations(
                tracking_identifier=sr.TrackingIdentifier(
                    uid=_uid(*identity, verdict.target, model.weights),
                    identifier=f"{verdict.target}, {name}",
                ),
                algorithm_id=sr.AlgorithmIdentification(
                    name=f"mammo-pd {model.name}",
                    version=f"{__version__}, weights {model.weights[:16]}",
                    parameters=_parameters(verdict, model),
                    manufacturer=_MANUFACTURER,
                ),
                finding_sites=sites,
                measurements=measurements,
                qualitative_evaluations=evaluations,
                source_images=[
                    sr.SourceImageForMeasurementGroup(
                        str(header.SOPClassUID),
                        str(header.SOPInstanceUID),
                        None if image.frame is None else [image.frame],
                    )
                    for image, header in images
                ],
            )
        )
    return groups


def _parameters(verdict: Verdict, model: ScoringModel) -> list[str]:
    told = [RESEARCH_ONLY, f"weights, SHA-256: {model.weights}"]
    if model.definition:
        told.append(f"target: {model.definition}")
    if verdict.threshold is not None:
        told.append(f"threshold: {verdict.threshold:.6g} ({verdict.rule})")
    return told


def _measurement(value: str, meaning: str, number: float) -> Any:
    from highdicom import sr

    # A decimal string of DICOM holds 16 characters.
    return sr.Measurement(_code(value, meaning), round(number, 10), codes.UCUM.NoUnits)


# ---- secondary capture


def _write_capture(
    image: ScoredImage, header: Dataset, model: ScoringModel, folder: Path, number: int
) -> Path:
    from highdicom.sc import SCImage

    assert image.saliency is not None
    pixels = _draw_capture(image, model)
    content = (str(header.SOPInstanceUID), image.frame, [*map(_values, image.verdicts)])
    kind = f"SC {image.laterality}" if image.laterality in _SIDES else "SC"
    common = _common(header, model, kind, content)
    path = folder / f"{common['sop_instance_uid']}.dcm"
    if path.is_file():
        return path
    with _tolerant():
        capture = SCImage.from_ref_dataset(
            header,
            pixels,
            "RGB",
            8,
            "PATIENT",
            instance_number=number,
            laterality=image.laterality,
            # highdicom asks for one and knows no oblique ones; the file's own follows.
            patient_orientation=("A", "F"),
            transfer_syntax_uid=pydicom.uid.ExplicitVRLittleEndian,
            **common,
        )
        given = header.get("PatientOrientation")
        if image.laterality not in _SIDES:
            # Type 2C (PS3.3 C.7.3.1): empty says that the side is not known.
            capture.Laterality = None
        capture.PatientOrientation = given if image.upright and given else None
        capture.ConversionType = "WSD"
        # As a report does; an archive may know a woman by her ID and its issuer together.
        capture.copy_patient_and_study_information(header)
        # The picture shows the image, with whatever was burnt into or lost from it.
        for keyword in _OF_PIXELS:
            if keyword in header:
                capture[keyword] = header[keyword]
        capture.DerivationDescription = (
            "Attention roll-out of a vision transformer over the image, cropped to the breast. "
            f"{RESEARCH_ONLY}."
        )
        source = Dataset()
        source.ReferencedSOPClassUID = header.SOPClassUID
        source.ReferencedSOPInstanceUID = header.SOPInstanceUID
        if image.frame is not None:
            source.ReferencedFrameNumber = image.frame
        purpose = Dataset()
        purpose.CodeValue, purpose.CodingSchemeDesignator = "121322", "DCM"
        purpose.CodeMeaning = "Source image for image processing operation"
        source.PurposeOfReferenceCodeSequence = [purpose]
        capture.SourceImageSequence = [source]
        _save(capture, path)
    return path


def _draw_capture(image: ScoredImage, model: ScoringModel) -> np.ndarray:
    """(h, w, 3) uint8: the saliency, under a strip that says what it is and covers no breast."""
    assert image.saliency is not None
    with Image.open(image.saliency) as opened:
        picture = opened.convert("RGB")
    lines = [
        RESEARCH_ONLY,
        # No marker of the side need have been in the crop.
        f"{image.laterality or 'side not known'} {image.view or 'view not known'}",
        "Orange: where the model looked, which is no finding",
        *(f"Score of {one.target}: {one.score:.3f}{_said(one)}" for one in image.verdicts),
        f"mammo-pd {__version__}, {model.name}",
    ]
    font = ImageFont.load_default(size=max(12, picture.height // 50))
    strip = ImageDraw.Draw(picture)
    boxes = [strip.textbbox((0, 0), line, font=font) for line in lines]
    step = max(int(box[3]) for box in boxes) + _MARGIN
    width = max(picture.width, *(int(box[2]) + 2 * _MARGIN for box in boxes))
    drawn = Image.new("RGB", (width, picture.height + step * len(lines) + _MARGIN))
    draw = ImageDraw.Draw(drawn)
    for place, line in enumerate(lines):
        draw.text((_MARGIN, _MARGIN // 2 + step * place), line, font=font, fill=(255, 255, 255))
    drawn.paste(picture, (0, drawn.height - picture.height))
    return np.asarray(drawn)


def _said(verdict: Verdict) -> str:
    if verdict.flagged is None:
        return ""
    side = "at or above" if verdict.flagged else "below"
    return f", {side} the threshold of {verdict.threshold:.3f}"


def _save(instance: Dataset, path: Path) -> None:
    sets = instance.get("SpecificCharacterSet")
    if isinstance(sets, MultiValue) and sets[0] == _DEFAULT_SET:
        # As the images have it: not every archive that reads those knows the name.
        instance.SpecificCharacterSet = ["", *sets[1:]]
    with atomic_write(path, mode=0o600) as beside:
        instance.save_as(beside, enforce_file_format=True)
