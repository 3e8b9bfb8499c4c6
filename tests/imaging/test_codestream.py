import numpy as np
import pytest
from dicom_files import ENCODERS, half_disk
from pydicom import uid

from mammo_pd.imaging.codestream import CodestreamSize, is_whole, read_codestream_size

KINDS = {
    uid.JPEGLossless: "jpeg",
    uid.JPEGLosslessSV1: "jpeg",
    uid.JPEGLSLossless: "jpeg_ls",
    uid.JPEG2000Lossless: "jpeg_2000",
    uid.HTJ2KLossless: "jpeg_2000",
    uid.HTJ2KLosslessRPCL: "jpeg_2000",
}


@pytest.mark.parametrize("syntax", ENCODERS)
def test_the_size_is_read_and_a_cut_is_seen(syntax):
    frame = ENCODERS[syntax](half_disk((96, 64)), 12)
    size = read_codestream_size(frame)
    assert size is not None
    assert (size.kind, size.rows, size.columns, size.components) == (KINDS[syntax], 96, 64, 1)
    assert is_whole(frame)
    assert is_whole(frame + b"\0")
    assert not is_whole(frame[:-10])


def test_precision_of_jpeg_lossless():
    frame = ENCODERS[uid.JPEGLosslessSV1](half_disk(), 12)
    assert read_codestream_size(frame) == CodestreamSize("jpeg", 96, 64, 1, 12)


def test_what_is_no_codestream_has_no_size():
    noise = np.random.default_rng(0).bytes(200)
    for frame in (b"", b"\xff\xd8", b"\xff\xd8\xff\xc0", b"\xff\x4f\xff\x51\0", noise):
        assert read_codestream_size(frame) is None
