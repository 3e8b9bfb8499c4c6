"""imagecodecs as a pixel-decoder plugin of pydicom: one grey codestream in, its bytes out.

Written as pydicom's own plugins are (pydicom/pixels/decoders). Importing this module registers it,
and the transfer syntaxes of JPEG XL where pydicom does not know them yet. Frames in colour are left
to the plugins behind it.
"""

from collections.abc import Callable

import imagecodecs
import numpy as np
from pydicom import uid
from pydicom._uid_dict import UID_dictionary
from pydicom.pixels.decoders.base import Decoder, DecodeRunner, get_decoder

from mammo_pd.imaging.codestream import can_skip_a_difference

PLUGIN = "imagecodecs"
# Marks a refusal that asking another decoder cannot mend: the header itself is wrong.
CONTRADICTION = "the header says"

JPEG_XL_LOSSLESS = uid.UID("1.2.840.10008.1.2.4.110")
JPEG_XL_RECOMPRESSION = uid.UID("1.2.840.10008.1.2.4.111")
JPEG_XL = uid.UID("1.2.840.10008.1.2.4.112")
# {transfer syntax: (name, keyword)}, as in DICOM PS3.6 A.
_JPEG_XL_NAMES = {
    JPEG_XL_LOSSLESS: ("JPEG XL Lossless", "JPEGXLLossless"),
    JPEG_XL_RECOMPRESSION: ("JPEG XL JPEG Recompression", "JPEGXLJPEGRecompression"),
    JPEG_XL: ("JPEG XL", "JPEGXL"),
}

# {transfer syntax: (codec of imagecodecs, its decode function)}
_CODECS: dict[str, tuple[str, str]] = {
    uid.JPEGBaseline8Bit: ("JPEG8", "jpeg8_decode"),
    uid.JPEGExtended12Bit: ("JPEG8", "jpeg8_decode"),
    uid.JPEGLossless: ("JPEG8", "jpeg8_decode"),
    uid.JPEGLosslessSV1: ("JPEG8", "jpeg8_decode"),
    uid.JPEGLSLossless: ("JPEGLS", "jpegls_decode"),
    uid.JPEGLSNearLossless: ("JPEGLS", "jpegls_decode"),
    uid.JPEG2000Lossless: ("JPEG2K", "jpeg2k_decode"),
    uid.JPEG2000: ("JPEG2K", "jpeg2k_decode"),
    # OpenJPEG here too: OpenJPH, as imagecodecs calls it, returns damaged frames as if sound.
    uid.HTJ2KLossless: ("JPEG2K", "jpeg2k_decode"),
    uid.HTJ2KLosslessRPCL: ("JPEG2K", "jpeg2k_decode"),
    uid.HTJ2K: ("JPEG2K", "jpeg2k_decode"),
    JPEG_XL_LOSSLESS: ("JPEGXL", "jpegxl_decode"),
    JPEG_XL_RECOMPRESSION: ("JPEGXL", "jpegxl_decode"),
    JPEG_XL: ("JPEGXL", "jpegxl_decode"),
    uid.RLELossless: ("DICOMRLE", "dicomrle_decode"),
}

DECODER_DEPENDENCIES = dict.fromkeys(_CODECS, ("imagecodecs>=2024.9.22",))


def is_available(uid: str) -> bool:
    """Return True where the installed imagecodecs holds the codec for this transfer syntax."""
    codec = getattr(imagecodecs, _CODECS[uid][0], None) if uid in _CODECS else None
    return codec is not None and bool(codec.available)


def _decode_frame(src: bytes, runner: DecodeRunner) -> bytes | memoryview:
    if runner.samples_per_pixel != 1:
        # Any error makes pydicom ask the next plugin, which knows what the colours mean.
        raise ValueError(f"{runner.samples_per_pixel} samples per pixel, and grey has one")
    syntax = runner.transfer_syntax
    if syntax == uid.RLELossless:
        return _decode_rle(src, runner)
    decode: Callable[[bytes], np.ndarray] = getattr(imagecodecs, _CODECS[syntax][1])
    frame = decode(src)
    if frame.shape != (runner.rows, runner.columns):
        raise ValueError(
            f"the codestream holds {frame.shape}, {CONTRADICTION} ({runner.rows}, {runner.columns})"
        )
    if frame.dtype.kind not in "iu":
        raise ValueError(f"the codestream holds {frame.dtype} values")
    lossless_jpeg = syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1)
    if lossless_jpeg and can_skip_a_difference(src):
        # libjpeg-turbo conceals lost synchronisation; a second decoder reveals it.
        second: np.ndarray = imagecodecs.jpegsof3_decode(src)
        if not np.array_equal(frame, second):
            raise ValueError("two decoders disagree on the codestream")
    # The container is as wide as the codestream's precision asks, not as Bits Allocated says.
    runner.set_option("bits_allocated", 8 * frame.dtype.itemsize)
    # A view of the bytes: copying them would add a sixth to the decoding time.
    return np.ascontiguousarray(frame).data.cast("B")


def _decode_rle(src: bytes, runner: DecodeRunner) -> bytes:
    width = runner.bits_allocated // 8
    expected = runner.rows * runner.columns * width
    frame = bytes(imagecodecs.dicomrle_decode(src, dtype=f"<u{width}"))
    if len(frame) >= expected + runner.columns * width:
        raise ValueError(f"the codestream holds {len(frame)} bytes, {CONTRADICTION} {expected}")
    if len(frame) != expected:
        raise ValueError(f"the codestream holds {len(frame)} bytes instead of {expected}")
    return frame


def find_decoder(syntax: str) -> Decoder | None:
    """Find pydicom's decoder for a transfer syntax, or ours; None where neither has one."""
    try:
        return get_decoder(syntax)
    except NotImplementedError:  # how pydicom says that it has none
        return _OWN_DECODERS.get(syntax)


_OWN_DECODERS: dict[str, Decoder] = {}


def _register() -> None:
    for jpeg_xl, (name, keyword) in _JPEG_XL_NAMES.items():
        # pydicom looks up in its dictionary what is a transfer syntax, and which are encapsulated.
        UID_dictionary.setdefault(jpeg_xl, (name, "Transfer Syntax", "", "", keyword))
        _OWN_DECODERS[jpeg_xl] = Decoder(jpeg_xl)
    for syntax in _CODECS:
        decoder = find_decoder(uid.UID(syntax))
        assert decoder is not None, f"pydicom has no decoder for {syntax} any more"
        if PLUGIN not in decoder.available_plugins and is_available(syntax):
            decoder.add_plugin(PLUGIN, (__name__, "_decode_frame"))


_register()
