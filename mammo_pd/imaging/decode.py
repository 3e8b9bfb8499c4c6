"""Decoding: from a dataset to the stored values of its frames.

Whatever is wrong with the pixel data comes out as an ``ImageError`` with a reason code, whose
sentence quotes neither a path nor an identifier.
"""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from pydicom import config, uid
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import Decoder

from mammo_pd.errors import ImageError, InputError
from mammo_pd.imaging.codestream import (
    CodestreamSize,
    has_hole,
    is_whole,
    most_coded_parts,
    read_codestream_size,
)
from mammo_pd.imaging.decoders import (
    imagecodecs_plugin,
    nvimgcodec_plugin,
    simpleitk_plugin,
)
from mammo_pd.imaging.encapsulation import read_codestream
from mammo_pd.imaging.header import integer, number_of_frames, text, value
from mammo_pd.imaging.stored_bits import check_layout, check_sign, keep_stored_bits
from mammo_pd.registry import refuse_another
from mammo_pd.terms import Reason

# The largest film, 24 x 30 cm, digitised at 25 micrometres has 115 million pixels.
MAX_PIXELS = 2**27
# Three times the slices of a thick breast's tomosynthesis scan at 1 mm.
MAX_FRAMES = 512
# Two bytes of a replicate run decode to at most 128 bytes (PS3.5 G.3.1).
_MAX_RLE_RATIO = 64
# Six times those of the largest image in the usual code-blocks of 32 x 32; .4 GB in OpenJPEG.
_MOST_CODED_PARTS = 2**20

# pydicom's decoder plugins by name, in the order in which they are asked. A program adds its own by
# `add_decoder` (docs/extending.md).
DECODERS = [
    nvimgcodec_plugin.PLUGIN,
    imagecodecs_plugin.PLUGIN,
    "pylibjpeg",
    simpleitk_plugin.PLUGIN,
    "pydicom",
    "gdcm",
    "pyjpegls",
    "pillow",
]

# {name: (the function, pydicom's decoders that have it)} of the plugins that programs have added.
_ADDED: dict[str, tuple[Callable[..., Any], list[Decoder]]] = {}


def add_decoder(name: str, module: str, function: str = "decode_frame") -> None:
    """Add a decoder plugin to pydicom, and to `DECODERS` ahead of all others.

    One that is added again, by a module that is reloaded, takes its own place.

    Args:
        name: of the plugin.
        module: the name of the module that is written as pydicom's plugins are: with
            ``is_available(UID)`` and ``DECODER_DEPENDENCIES``, whose keys are the transfer syntaxes
            that it is for.
        function: the name of the one that decodes a frame.

    Raises:
        InputError: another decoder has this name, or pydicom does not know a transfer syntax.

    Source: pydicom's guide to decoder plugins.
    """
    plugin = import_module(module)
    decode_one = getattr(plugin, function)
    if name in _ADDED:
        refuse_another(f"the decoder {name!r}", _ADDED[name][0], decode_one)
    elif name in DECODERS:
        raise InputError(
            f"{name!r} is a decoder of pydicom's or of mammo-pd's, and {module}.{function} would "
            "take its place; give it another name."
        )
    syntaxes = list(plugin.DECODER_DEPENDENCIES)
    decoders = [one for one in map(imagecodecs_plugin.find_decoder, syntaxes) if one is not None]
    if len(decoders) < len(syntaxes):
        raise InputError(
            f"pydicom has no decoder for each transfer syntax of {module}.DECODER_DEPENDENCIES; "
            "name those that it has."
        )
    _, before = _ADDED.pop(name, (None, []))
    for decoder in before:
        decoder.remove_plugin(name)
    for decoder in decoders:
        decoder.add_plugin(name, (module, function))
    _ADDED[name] = decode_one, decoders
    if name not in DECODERS:
        DECODERS.insert(0, name)


LOSSY_SYNTAXES = frozenset(
    {
        uid.JPEGBaseline8Bit,
        uid.JPEGExtended12Bit,
        uid.JPEGLSNearLossless,
        uid.JPEG2000,
        uid.HTJ2K,
        imagecodecs_plugin.JPEG_XL_RECOMPRESSION,
        imagecodecs_plugin.JPEG_XL,
    }
)
_KINDS = {
    **dict.fromkeys(uid.JPEGTransferSyntaxes, "jpeg"),
    **dict.fromkeys(uid.JPEGLSTransferSyntaxes, "jpeg_ls"),
    **dict.fromkeys(uid.JPEG2000TransferSyntaxes, "jpeg_2000"),
    imagecodecs_plugin.JPEG_XL_LOSSLESS: "jpeg_xl",
    imagecodecs_plugin.JPEG_XL_RECOMPRESSION: "jpeg_xl",
    imagecodecs_plugin.JPEG_XL: "jpeg_xl",
}


@dataclass(frozen=True)
class StoredValues:
    """The stored values of one frame.

    Attributes:
        values: (H, W) integers as stored, before any grey-scale transformation.
        decoder: the library that decoded it.
    """

    values: np.ndarray
    decoder: str


class StoredFrames:
    """All frames of a file, decoded one at a time, so that only one is ever in memory.

    Iterating yields each frame's (Rows, Columns) stored values, as ``decode`` returns them, except
    that a constant frame is no error: tomosynthesis may begin and end with one.

    Attributes:
        shape: (frames, Rows, Columns).
        decoder: the library that decoded the first frame.
    """

    def __init__(self, dataset: Dataset) -> None:
        """Decode the first frame.

        Args:
            dataset: as returned by ``read_dataset``.

        Raises:
            ImageError: as raised by ``decode``; the iteration raises it too.
        """
        self._dataset = dataset
        first = _decode_quietly(dataset, 0)
        self._first = first.values
        self.decoder = first.decoder
        self.shape = (number_of_frames(dataset), *first.values.shape)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames in order."""
        yield self._first
        for frame in range(1, self.shape[0]):
            yield _decode_quietly(self._dataset, frame).values


def decode(dataset: Dataset, frame: int | None = None) -> StoredValues:
    """Decode one grey frame of a dataset.

    Decoders are tried in turn: nvImageCodec where there is a GPU, imagecodecs, pylibjpeg,
    SimpleITK, then the others that pydicom finds installed; of what imagecodecs refuses two of
    those behind it must give the same. Size, components and depth are checked against the
    codestream's own before anything is allocated.

    Args:
        dataset: as returned by ``read_dataset``.
        frame: counted from 0; without it, the file must hold a single frame.

    Returns:
        (Rows, Columns) stored values, signed where Pixel Representation says so.

    Raises:
        ImageError: several frames, colour, no pixel data, a contradiction between header and pixel
            data, no decoder that succeeds, or a constant image.
    """
    stored = _decode_quietly(dataset, frame)
    if stored.values.min() == stored.values.max():
        raise ImageError(Reason.EMPTY_PIXELS, f"Every pixel has the value {stored.values.flat[0]}.")
    return stored


def check_frames(dataset: Dataset) -> None:
    """Refuse a file of which no frame can be used, before any of them is decoded.

    Args:
        dataset: as returned by ``read_dataset``.

    Raises:
        ImageError: fewer frames than Number of Frames claims, or more than any scan has; or, as
            from ``decode``, colour, no pixel data, an impossible header.
    """
    with _quiet():
        frames = number_of_frames(dataset)
        if frames > MAX_FRAMES:
            raise ImageError(
                Reason.HEADER_CONTRADICTS,
                f"The header claims {frames} frames, more than any tomosynthesis has.",
            )
        data = value(dataset, "PixelData")
        length = len(data) if isinstance(data, bytes) else 0
        _check_pixels(dataset, length)
        if not _decoder(dataset).is_encapsulated:
            _check_native_length(dataset, length)
            _decode_native(dataset, 0)
            return
        try:
            read_codestream(dataset, frames - 1)
        except ImageError as error:
            raise ImageError(
                Reason.HEADER_CONTRADICTS,
                f"The header claims {frames} frames; the pixel data hold fewer.",
            ) from error


def _decode_quietly(dataset: Dataset, frame: int | None) -> StoredValues:
    with _quiet():
        return _decode(dataset, frame)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        try:
            yield
        except ImageError:
            raise
        except Exception as error:  # an element can hold a value of any kind
            raise ImageError(
                Reason.UNREADABLE, f"The header cannot be read ({type(error).__name__})."
            ) from error


def _decode(dataset: Dataset, frame: int | None) -> StoredValues:
    data = value(dataset, "PixelData")
    length = len(data) if isinstance(data, bytes) else 0
    rows, columns = _check_before_decoding(dataset, frame, length)
    frame = frame or 0
    if _decoder(dataset).is_encapsulated:
        stored = _decode_encapsulated(dataset, frame, rows, columns)
    else:
        stored = _decode_native(dataset, frame)
    # Big-endian files decode to big-endian arrays; everything downstream assumes native order.
    stored = StoredValues(
        stored.values.astype(stored.values.dtype.newbyteorder("="), copy=False), stored.decoder
    )
    if stored.values.shape != (rows, columns):
        raise ImageError(
            Reason.HEADER_CONTRADICTS,
            f"The header says {rows} x {columns}, the pixel data give "
            f"{' x '.join(map(str, stored.values.shape))}.",
        )
    lossy = dataset.file_meta.TransferSyntaxUID in LOSSY_SYNTAXES
    values = keep_stored_bits(stored.values, dataset, lossy=lossy)
    check_sign(values, dataset)
    check_layout(values, dataset)
    return StoredValues(values, stored.decoder)


def check_before_decoding(
    dataset: Dataset, pixel_bytes: int, codestream: bytes = b"", codestream_bytes: int = 0
) -> None:
    """Refuse an image that its header shows to be unusable, as ``decode`` does before it decodes.

    Args:
        dataset: the header; its pixel data are not looked at.
        pixel_bytes: length of the pixel data; 0 where there are none.
        codestream: the first bytes of compressed pixel data, as far as they were read.
        codestream_bytes: how many there are of the one image; 0 if unknown.

    Raises:
        ImageError: as ``decode`` raises it.
    """
    with _quiet():
        rows, columns = _check_before_decoding(dataset, None, pixel_bytes)
        if not _decoder(dataset).is_encapsulated:
            return
        if dataset.file_meta.TransferSyntaxUID == uid.RLELossless:
            if codestream_bytes:
                _check_rle_length(dataset, codestream_bytes, rows, columns)
            return
        size = read_codestream_size(codestream)
        # Without one the size may lie behind what was read.
        if size is not None:
            _check_codestream_size(dataset, size, rows, columns)


def _check_before_decoding(
    dataset: Dataset, frame: int | None, pixel_bytes: int
) -> tuple[int, int]:
    """(Rows, Columns), after checking all that is known without looking at the pixel data."""
    frames = number_of_frames(dataset)
    if frame is None and frames > 1:
        raise ImageError(
            Reason.MULTI_FRAME,
            f"The file holds {frames} frames; by default only single projections are used. "
            "--frames chooses what to use of such files.",
        )
    rows, columns = _check_pixels(dataset, pixel_bytes)
    if not _decoder(dataset).is_encapsulated:
        _check_native_length(dataset, pixel_bytes)
    return rows, columns


def _check_pixels(dataset: Dataset, pixel_bytes: int) -> tuple[int, int]:
    """(Rows, Columns), after checking that there are pixels and that the header is plausible."""
    if not pixel_bytes:
        raise ImageError(Reason.NO_PIXELS, "The file holds no pixel data.")
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "SamplesPerPixel"):
        if (integer(dataset, keyword) or 0) < 1:
            raise ImageError(
                Reason.UNREADABLE, f"The header gives no usable {keyword}; the image is lost."
            )
    photometric = text(dataset, "PhotometricInterpretation")
    if photometric is None:
        raise ImageError(
            Reason.UNREADABLE,
            "The header gives no PhotometricInterpretation, so black and white are unknown.",
        )
    if integer(dataset, "SamplesPerPixel") != 1 or not photometric.startswith("MONOCHROME"):
        raise ImageError(Reason.COLOUR, "The image is in colour; a mammogram is grey.")
    rows, columns = integer(dataset, "Rows") or 0, integer(dataset, "Columns") or 0
    if rows * columns > MAX_PIXELS:
        raise ImageError(
            Reason.HEADER_CONTRADICTS,
            f"The header claims {rows} x {columns} pixels, more than any mammogram has.",
        )
    return rows, columns


def _decode_native(dataset: Dataset, frame: int) -> StoredValues:
    options: Any = {"allow_excess_frames": False, "correct_unused_bits": False}
    try:
        values, _ = _decoder(dataset).as_array(dataset, index=frame, **options)
    except (Exception, MemoryError) as error:
        reason, sentence = (
            Reason.DECODE_FAILED,
            f"The pixel data cannot be read ({type(error).__name__}).",
        )
        if "number of bytes of pixel data is less than expected" in str(error):
            reason = Reason.HEADER_CONTRADICTS
            sentence = "The pixel data are shorter than the header says; the file may be cut off."
        raise ImageError(reason, sentence) from error
    return StoredValues(values, "pydicom")


def _check_native_length(dataset: Dataset, found: int) -> None:
    """Refuse pixel data that are too short, or hold rows more than the header says.

    Of those more, of which frame would they be?
    """
    rows, columns = integer(dataset, "Rows") or 0, integer(dataset, "Columns") or 0
    bits = integer(dataset, "BitsAllocated") or 16
    expected = (rows * columns * bits * number_of_frames(dataset) + 7) // 8
    if found < expected:
        raise ImageError(
            Reason.HEADER_CONTRADICTS,
            "The pixel data are shorter than the header says; the file may be cut off.",
        )
    # Some writers pad to whole blocks.
    if found - expected >= max(2, columns * bits // 8) and expected:
        raise ImageError(
            Reason.HEADER_CONTRADICTS,
            f"The header says {rows} x {columns} pixels of {bits} bits, {expected} bytes; the "
            f"pixel data are {found}.",
        )


def _decode_encapsulated(dataset: Dataset, frame: int, rows: int, columns: int) -> StoredValues:
    decoder = _decoder(dataset)
    _check_codestream(dataset, read_codestream(dataset, frame), rows, columns)

    refusals: list[str] = []
    answers: list[StoredValues] = []
    needed = 1
    options: Any = {"correct_unused_bits": False}
    plugins = [name for name in DECODERS if name in decoder.available_plugins]
    for tried, plugin in enumerate(plugins, start=1):
        try:
            values, _ = decoder.as_array(dataset, index=frame, decoding_plugin=plugin, **options)
        except (Exception, MemoryError) as error:
            # A header of the wrong size is wrong for every decoder, and some would not notice.
            if imagecodecs_plugin.CONTRADICTION in str(error):
                raise ImageError(
                    Reason.HEADER_CONTRADICTS, "Header and pixel data disagree on the size."
                ) from error
            refusals.append(_cause(error, plugin))
            if plugin == imagecodecs_plugin.PLUGIN:
                # It refuses what is damaged, of which others make an image all the same. So two
                # of them must give the same one, where two are left.
                needed = min(2, len(plugins) - tried)
            continue
        alike = [answer for answer in answers if _are_alike(answer.values, values, dataset)]
        answers.append(StoredValues(values, plugin))
        if len(alike) + 1 >= needed:
            return (*alike, answers[-1])[0]
    refusals += [f"{answer.decoder}: gives values that no other gives" for answer in answers]
    raise ImageError(
        Reason.DECODE_FAILED,
        f"No decoder reads this {decoder.UID.name} codestream: {'; '.join(refusals) or 'none'}.",
    )


def _are_alike(one: np.ndarray, other: np.ndarray, dataset: Dataset) -> bool:
    """Whether two decoders give one image: to the bit, but that lossy ones round."""
    rounding = 2 if dataset.file_meta.TransferSyntaxUID in LOSSY_SYNTAXES else 0
    return one.shape == other.shape and bool(
        (np.abs(one.astype(np.int64) - other) <= rounding).all()
    )


def _check_codestream(dataset: Dataset, frame: bytes, rows: int, columns: int) -> None:
    """Compare header and codestream."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == uid.RLELossless:
        _check_rle_length(dataset, len(frame), rows, columns)
        return
    size = read_codestream_size(frame)
    if size is None:
        raise ImageError(
            Reason.DECODE_FAILED, f"The pixel data do not begin as {syntax.name} does."
        )
    _check_codestream_size(dataset, size, rows, columns)
    if most_coded_parts(frame) > _MOST_CODED_PARTS:
        raise ImageError(
            Reason.DECODE_FAILED,
            "The pixel data are divided into more pieces than memory should be taken for; are "
            "they damaged?",
        )
    # JPEG XL has no end marker; its decoder itself notices truncation.
    if size.kind != "jpeg_xl" and not is_whole(frame):
        raise ImageError(
            Reason.DECODE_FAILED, "The pixel data have no end marker; the file may be cut off."
        )
    if has_hole(frame):
        raise ImageError(
            Reason.DECODE_FAILED,
            "A piece of the pixel data is missing; copy the file again from its source.",
        )


def _check_rle_length(dataset: Dataset, length: int, rows: int, columns: int) -> None:
    bits_allocated = integer(dataset, "BitsAllocated") or 16
    if rows * columns * bits_allocated // 8 > _MAX_RLE_RATIO * length:
        raise ImageError(
            Reason.HEADER_CONTRADICTS,
            f"The header says {rows} x {columns}, more than the pixel data can hold.",
        )


def _check_codestream_size(dataset: Dataset, size: CodestreamSize, rows: int, columns: int) -> None:
    syntax = dataset.file_meta.TransferSyntaxUID
    bits_allocated = integer(dataset, "BitsAllocated") or 16
    expected = CodestreamSize(_KINDS.get(syntax, size.kind), rows, columns, 1, size.precision)
    if size != expected:
        raise ImageError(
            Reason.HEADER_CONTRADICTS,
            f"The header says {expected.kind}, {rows} x {columns}, 1 sample; the codestream says "
            f"{size.kind}, {size.rows} x {size.columns}, {size.components}.",
        )
    bits_stored = integer(dataset, "BitsStored") or 16
    lossy = syntax in LOSSY_SYNTAXES if size.lossy is None else size.lossy
    if lossy and size.precision < bits_stored:
        # Of a lossless stream the header may well say more: nothing is lost. This one was made
        # anew, and its values are not on the scale that the header's window is on.
        raise ImageError(
            Reason.HEADER_CONTRADICTS,
            f"The header says {bits_stored} bits, the lossy codestream holds {size.precision}.",
        )
    if size.precision > bits_allocated:
        raise ImageError(
            Reason.HEADER_CONTRADICTS,
            f"The header allocates {bits_allocated} bits, the codestream holds {size.precision}.",
        )


def _decoder(dataset: Dataset) -> Decoder:
    syntax = dataset.file_meta.TransferSyntaxUID
    decoder = imagecodecs_plugin.find_decoder(syntax)
    if decoder is None:
        known = syntax.name if syntax.is_transfer_syntax else "it names"
        raise ImageError(Reason.DECODE_FAILED, f"No decoder knows the transfer syntax {known}.")
    return decoder


def _cause(error: BaseException, plugin: str) -> str:
    """The decoder's own message, or only the error's type: pydicom's can quote the header."""
    line = str(error).strip().rpartition("\n")[2].strip()
    if isinstance(error, RuntimeError) and line.startswith(f"{plugin}:"):
        # Paths, such as that of a decoder's temporary file, go nowhere.
        return re.sub(r"\S*[/\\]\S*", "…", line)[:160]
    return f"{plugin}: {type(error).__name__}"
