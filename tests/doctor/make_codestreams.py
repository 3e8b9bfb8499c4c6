"""Make ``mammo_pd/doctor/codestreams.json``: python tests/doctor/make_codestreams.py

Each is the drawn image of ``mammo_pd.doctor.codecs``, encoded by imagecodecs (libjpeg-turbo,
CharLS, OpenJPEG, OpenJPH, libjxl) or, for RLE, by pydicom.
"""

import base64
import json
from pathlib import Path

import imagecodecs
import numpy as np
from dicom_files import ENCODERS, LOSSY_ENCODERS
from pydicom import uid
from pydicom.pixels.encoders import RLELosslessEncoder

from mammo_pd.doctor.codecs import CODESTREAMS, drawn_image
from mammo_pd.imaging.decoders.imagecodecs_plugin import (
    JPEG_XL,
    JPEG_XL_LOSSLESS,
    JPEG_XL_RECOMPRESSION,
)


def main() -> None:
    pixels = drawn_image()
    eight = (pixels >> 4).astype(np.uint8)
    rows, columns = pixels.shape
    made = {}
    for syntax, encode in {**ENCODERS, **LOSSY_ENCODERS}.items():
        made[syntax] = encode(eight if syntax == uid.JPEGBaseline8Bit else pixels, 12)
    made[uid.RLELossless] = RLELosslessEncoder.encode(
        pixels,
        rows=rows,
        columns=columns,
        samples_per_pixel=1,
        bits_allocated=16,
        bits_stored=12,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
        number_of_frames=1,
    )
    made[JPEG_XL_LOSSLESS] = imagecodecs.jpegxl_encode(pixels, lossless=True, bitspersample=12)
    made[JPEG_XL] = imagecodecs.jpegxl_encode(pixels, distance=1.0, bitspersample=12)
    made[JPEG_XL_RECOMPRESSION] = imagecodecs.jpegxl_encode_jpeg(
        imagecodecs.jpeg8_encode(eight, level=95)
    )
    text = {str(syntax): base64.b64encode(bytes(frame)).decode() for syntax, frame in made.items()}
    path = Path(str(CODESTREAMS))
    path.write_text(json.dumps(text, indent=1) + "\n")
    print({syntax: len(frame) for syntax, frame in made.items()}, path.stat().st_size)


if __name__ == "__main__":
    main()
