"""Encapsulated pixel data: the codestream of one frame, whatever the offset tables say.

Source: DICOM PS3.5 A.4 (encapsulation), PS3.3 C.7.6.3.1.8 (Extended Offset Table).
"""

from io import BytesIO
from itertools import pairwise

from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import (
    encapsulate,
    generate_fragments,
    get_frame,
    parse_basic_offsets,
    parse_fragments,
)

from mammo_pd.errors import ImageError
from mammo_pd.imaging.codestream import begins_codestream
from mammo_pd.imaging.header import number_of_frames, value
from mammo_pd.terms import Reason

_EXTENDED_TABLE = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
# Bytes before the item of a fragment's own content: its tag and length.
_ITEM_HEADER = 8


def read_codestream(dataset: Dataset, frame: int) -> bytes:
    """The codestream of one frame.

    Args:
        dataset: as ``read_dataset`` returns it. Offset tables that point elsewhere than to the
            fragments are taken out of it, since decoders would follow them.
        frame: counted from 0.

    Raises:
        ImageError: the fragments cannot be told apart, or there is no such frame
            (``decode_failed``); they hold more frames than the header says
            (``header_contradicts_pixels``).
    """
    frames = number_of_frames(dataset)
    try:
        _drop_wrong_tables(dataset, frames)
        given = [value(dataset, keyword) for keyword in _EXTENDED_TABLE]
        found = get_frame(
            dataset.PixelData,
            frame,
            number_of_frames=frames,
            extended_offsets=None if None in given else (given[0], given[1]),
        )
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(
            Reason.DECODE_FAILED, "The encapsulated pixel data are damaged."
        ) from error
    return found


def _drop_wrong_tables(dataset: Dataset, frames: int) -> None:
    data = BytesIO(dataset.PixelData)
    offsets = parse_basic_offsets(data)
    count, positions = parse_fragments(data)  # from behind the table, and does not move on
    starts = [position - positions[0] for position in positions]
    if frames == 1 and count > 1:
        _refuse_further_frames(dataset, positions)
    if offsets and not _lead_to(starts, offsets, frames):
        dataset.PixelData = encapsulate(list(generate_fragments(data)), has_bot=False)
        dataset["PixelData"].is_undefined_length = True
    table = value(dataset, _EXTENDED_TABLE[0])
    if table is None:
        return
    extended = [int.from_bytes(table[at : at + 8], "little") for at in range(0, len(table), 8)]
    if not _lead_to(starts, extended, frames):
        for keyword in _EXTENDED_TABLE:
            if keyword in dataset:
                delattr(dataset, keyword)


def _lead_to(starts: list[int], offsets: list[int], frames: int) -> bool:
    """Whether offsets lead, in order, from each frame to the next, the first included."""
    known = set(starts)
    return (
        len(offsets) == frames
        and offsets[0] == 0
        and all(offset in known for offset in offsets)
        and all(one < next_ for one, next_ in pairwise(offsets))
    )


def _refuse_further_frames(dataset: Dataset, positions: list[int]) -> None:
    """Refuse the frames of a scan under a header of a single image: which would it be?"""
    data = dataset.PixelData
    if dataset.file_meta.TransferSyntaxUID == uid.RLELossless:
        held = len(positions)  # a frame is one fragment (PS3.5 A.4.2)
    else:
        heads = (data[at + _ITEM_HEADER : at + _ITEM_HEADER + 12] for at in positions)
        held = sum(begins_codestream(head) for head in heads)
    if held > 1:
        raise ImageError(
            Reason.HEADER_CONTRADICTS,
            f"The header says one frame; the pixel data hold {held}.",
        )
