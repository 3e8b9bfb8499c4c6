"""One kind of image for each view: the exposure, or what was computed from tomosynthesis.

Combined exams hold both of one breast in one view: two images that show the same, of which a model
that counts exams or breasts should see one. Which is left out is decided once all files are in the
record, from the record alone, so the order in which files or folders come does not matter, and
another choice decodes nothing again.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mammo_pd.data.manifest_row import manifest_row
from mammo_pd.data.record import Record, RecordedImage
from mammo_pd.errors import ImageError
from mammo_pd.imaging.dicom_file import read_header
from mammo_pd.imaging.image_kind import find_image_kind
from mammo_pd.imaging.raster import RASTER_SUFFIXES
from mammo_pd.terms import ImageKind, Prefer, Status

_OTHER_KIND = {Prefer.FFDM: ImageKind.SYNTHETIC, Prefer.SYNTHETIC: ImageKind.FFDM}


@dataclass(frozen=True)
class LeftOut:
    """What a choice leaves out.

    Attributes:
        details: for each image_id that is left out, the sentence for the manifest.
        only_label: of these, those that have a label which the image taken instead lacks.
        both: views that have images of both kinds; None where both are taken.
        repeated: views of which several images of one kind stay.
        unknown: images of which it is not known how they were made.
    """

    details: Mapping[str, str]
    only_label: int = 0
    both: int | None = None
    repeated: int = 0
    unknown: int = 0


def leave_out(record: Record, prefer: Prefer) -> LeftOut:
    """Choose the images of all views that have both kinds.

    A view is one breast of one exam with one View Position and the same view modifiers, by the
    label table where that names them. Images without side, view or exam are all taken, and so are
    several of one kind: repeated exposures, or parts of a breast that one exposure does not hold.

    Args:
        record: of the store. Images of an earlier version, which recorded no kind, get theirs from
            the headers of their files.
        prefer: which kind to take.
    """
    if prefer == Prefer.BOTH:
        return LeftOut({})
    unknown = _add_kinds(record)
    views: dict[tuple[str, ...], list[tuple[str, str, bool]]] = defaultdict(list)
    for image in _usable(record):
        row = manifest_row(image, record.hasher)
        kind = row.get("image_kind")
        if kind in (ImageKind.FFDM, ImageKind.SYNTHETIC):
            names = [row.get(name) for name in ("patient_id", "exam_id", "laterality", "view")]
            if all(names):
                key = *map(str, names), row.get("view_modifiers") or ""
                views[key].append((kind, image.image_id, row["label"] is not None))
    details: dict[str, str] = {}
    only_label = both = repeated = 0
    detail = f"the view also has an image of the kind that --prefer {prefer} takes"
    for images in views.values():
        taken = [labelled for kind, _, labelled in images if kind == prefer]
        others = [entry for entry in images if entry[0] == _OTHER_KIND[prefer]]
        repeated += len(taken or others) > 1
        if taken and others:
            both += 1
            details |= {image_id: detail for _, image_id, _ in others}
            only_label += 0 if any(taken) else sum(labelled for _, _, labelled in others)
    return LeftOut(details, only_label, both, repeated, unknown)


def _usable(record: Record) -> Iterator[RecordedImage]:
    return (image for image in record.rows() if image.columns["status"] == Status.OK)


def _add_kinds(record: Record) -> int:
    """Find the kind of images that were recorded without; how many stay unknown."""
    lacking = [
        image.source.path
        for image in _usable(record)
        if "image_kind" not in image.columns
        and image.source.path.suffix.lower() not in RASTER_SUFFIXES
    ]
    unknown = 0
    for path in lacking:
        try:
            kind = find_image_kind(read_header(path).dataset)
        except ImageError:
            unknown += 1
            continue
        record.put_column(path, "image_kind", str(kind))
    return unknown
