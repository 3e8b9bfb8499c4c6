"""Look-up tables of a DICOM header: an item of a LUT sequence in, output values out.

Source: DICOM PS3.3 C.11.1.1.1 (modality LUT), C.11.2.1.1 (VOI LUT).
"""

from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from mammo_pd.errors import ImageError
from mammo_pd.imaging.header import numbers, value
from mammo_pd.terms import Reason


@dataclass(frozen=True)
class LookUpTable:
    """One table, read.

    Attributes:
        first: the input value that the first entry is for.
        entries: (n,) float64, the output values.
        depth: bits of the output range, 1 to 16: those declared, or more if the entries need more.
        oddities: how the table departs from its own descriptor, such as ``holds_12_of_16_bits``;
            empty if it does not.
    """

    first: int
    entries: np.ndarray
    depth: int
    oddities: tuple[str, ...]

    def apply(self, values: np.ndarray) -> np.ndarray:
        """The outputs of input values; those outside the table take its first or last entry."""
        index = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1)
        return np.asarray(self.entries[index.astype(np.intp)])

    def reversal(self, values: np.ndarray) -> float:
        """How far the outputs turn back while the input values increase.

        Args:
            values: (n,) input values, in any order.

        Returns:
            Share of the outputs' span, 0 for a table that only rises or only falls.
        """
        outputs = self.apply(np.sort(values))
        span = float(np.ptp(outputs))
        if span == 0:
            return 0.0
        fall = (np.maximum.accumulate(outputs) - outputs).max()
        rise = (outputs - np.minimum.accumulate(outputs)).max()
        return float(min(fall, rise)) / span


def read_lut(item: Dataset, header: Dataset, input_range: tuple[float, float]) -> LookUpTable:
    """Read an item of Modality LUT Sequence or VOI LUT Sequence.

    Entry count and first value mapped are 16-bit words, whichever of US and SS the file gives as
    their VR: the count is unsigned, and the first value has the sign of the values that the table
    is applied to.

    Args:
        item: of the sequence.
        header: the image's dataset, for its byte order.
        input_range: lowest and highest value that the table can be applied to.

    Raises:
        ImageError: the table is incomplete, or holds fewer entries than it declares.
    """
    descriptor = [int(entry) for entry in numbers(item, "LUTDescriptor")]
    words = _words(value(item, "LUTData"), header)
    if len(descriptor) != 3 or words is None:
        raise ImageError(Reason.UNREADABLE, "A look-up table of the header is incomplete.")
    count, depth = descriptor[0] % 2**16 or 2**16, descriptor[2]
    if not 1 <= depth <= 16:
        raise ImageError(
            Reason.UNREADABLE, f"A look-up table of the header declares {depth} bits, not 1 to 16."
        )
    if depth <= 8 and len(words) == (count + 1) // 2 != count:
        words = words.view(np.uint8)[:count]  # two entries in each word
    if len(words) < count:
        raise ImageError(
            Reason.UNREADABLE,
            f"A look-up table of the header declares {count} entries and holds {len(words)}.",
        )
    oddities = []
    if len(words) > count:
        oddities.append(f"holds_{len(words)}_of_{count}_entries")
        words = words[:count]
    used = int(words.max()).bit_length()
    if used != depth and words.max() > 0:
        oddities.append(f"holds_{used}_of_{depth}_bits")
    first = _first_value(descriptor[1], count, input_range)
    return LookUpTable(first, words.astype(np.float64), max(depth, used), tuple(oddities))


def _words(data: object, header: Dataset) -> np.ndarray | None:
    """LUT Data as (n,) little-endian 16-bit words; None where there are none."""
    if isinstance(data, bytes):
        little = header.file_meta.TransferSyntaxUID.is_little_endian
        whole = data[: len(data) // 2 * 2]
        words = np.frombuffer(whole, dtype="<u2" if little else ">u2").astype("<u2")
    else:
        try:
            words = np.atleast_1d(np.asarray(data, dtype=np.int64)).astype("<u2")
        except (TypeError, ValueError, OverflowError):
            return None
    return words if words.size else None


def _first_value(given: int, count: int, input_range: tuple[float, float]) -> int:
    """The first value mapped, its sign being that of the range of the input values."""
    low, high = input_range
    unsigned = given % 2**16
    signed = unsigned - 2**16 if unsigned >= 2**15 else unsigned
    by_standard, other = (signed, unsigned) if low < 0 else (unsigned, signed)

    def meets_the_range(first: int) -> bool:
        return first <= high and first + count > low

    # A table may begin below a range that is never negative; read unsigned, it would lie above it.
    return other if not meets_the_range(by_standard) and meets_the_range(other) else by_standard
