"""A decoder as pydicom's plugins are written: lossless JPEG by imagecodecs' strict `jpegsof3`.

The module is imported by every worker of ``preprocess``, since `own_parts.py` imports it.
"""

import imagecodecs
from pydicom import uid
from pydicom.pixels.decoders.base import DecodeRunner

from mammo_pd.api import add_decoder

NAME = "jpegsof3"
DECODER_DEPENDENCIES = {uid.JPEGLosslessSV1: ("imagecodecs",)}


def is_available(syntax: str) -> bool:
    """Tell pydicom whether the codec is there."""
    return syntax == uid.JPEGLosslessSV1 and bool(imagecodecs.JPEGSOF3.available)


def decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    """Decode one codestream; an error has the next decoder asked."""
    frame = imagecodecs.jpegsof3_decode(src)
    if frame.shape != (runner.rows, runner.columns):
        raise ValueError(f"the codestream holds {frame.shape}")
    runner.set_option("bits_allocated", 8 * frame.dtype.itemsize)
    return bytes(frame.tobytes())


add_decoder(NAME, __name__)
