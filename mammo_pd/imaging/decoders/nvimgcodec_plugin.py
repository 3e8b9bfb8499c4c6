"""nvImageCodec as a pixel-decoder plugin of pydicom: lossless JPEG 2000 and HTJ2K on a GPU.

For machines with an NVIDIA GPU and ``pip install mammo-pd[gpu]``. Only what is lossless by its
transfer syntax and by its own wavelet goes to the GPU: of that every sound decoder gives the same
values, so that a store does not depend on the machine that made it. Whatever it refuses, or has no
memory for, the plugins behind it decode, file by file. Importing this module registers it and
touches no GPU: each process that decodes makes a context of its own, with its first frame.

Source: https://docs.nvidia.com/cuda/nvimagecodec/py_api.html
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder

from mammo_pd.imaging.codestream import read_codestream_size
from mammo_pd.imaging.decoders.imagecodecs_plugin import CONTRADICTION

PLUGIN = "nvimgcodec"

DECODER_DEPENDENCIES = dict.fromkeys(
    (uid.JPEG2000Lossless, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL),
    ("nvidia-nvimgcodec-cu13[all]>=0.8",),
)


def is_available(uid: str) -> bool:
    """Return True where nvImageCodec is installed; whether a GPU is there shows at first use."""
    if uid not in DECODER_DEPENDENCIES or find_spec("nvidia") is None:
        return False
    return find_spec("nvidia.nvimgcodec") is not None


def _decode_frame(src: bytes, runner: DecodeRunner) -> memoryview:
    if runner.samples_per_pixel != 1:
        # Any error makes pydicom ask the next plugin, which knows what the colours mean.
        raise ValueError(f"{runner.samples_per_pixel} samples per pixel, and grey has one")
    declared = read_codestream_size(src)
    if declared is None or declared.lossy is not False:
        # Some files lie about it, and what is rounded differs between decoders.
        raise ValueError("the codestream is lossy, whatever the transfer syntax says")
    frame = _on_gpu(src)
    if frame.shape != (runner.rows, runner.columns):
        raise ValueError(
            f"the codestream holds {frame.shape}, {CONTRADICTION} ({runner.rows}, {runner.columns})"
        )
    if frame.dtype.kind not in "iu":
        raise ValueError(f"the codestream holds {frame.dtype} values")
    # The container is as wide as the codestream's precision asks, not as Bits Allocated says.
    runner.set_option("bits_allocated", 8 * frame.dtype.itemsize)
    return np.ascontiguousarray(frame).data.cast("B")


def _on_gpu(src: bytes) -> np.ndarray:
    """(H, W) integers of a grey codestream."""
    # Within a worker of Dask, which works in a thread, it was seen to come to a stand.
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(f"{PLUGIN}: not in a thread")
    # A process that found no GPU asks no more.
    decoder, params = _make_decoder()
    if decoder is None:
        raise RuntimeError(f"{PLUGIN}: no GPU that it can use")
    image = decoder.decode(src, params=params)
    if image is None:
        raise RuntimeError(f"{PLUGIN}: refuses the codestream")
    frame = np.asarray(image.cpu())
    return frame[..., 0] if frame.ndim == 3 and frame.shape[-1] == 1 else frame


@cache
def _make_decoder() -> tuple[Any, Any]:
    import torch

    if not torch.cuda.is_available():
        return None, None
    # It tells of each codec that is not installed.
    with _without_errors_of_libraries():
        from nvidia import nvimgcodec

        kinds = (nvimgcodec.GPU_ONLY, nvimgcodec.HYBRID_CPU_GPU)
        params = nvimgcodec.DecodeParams(
            allow_any_depth=True, color_spec=nvimgcodec.ColorSpec.UNCHANGED
        )
        decoder = nvimgcodec.Decoder(
            max_num_cpu_threads=1, backends=[nvimgcodec.Backend(kind) for kind in kinds]
        )
    return decoder, params


@contextmanager
def _without_errors_of_libraries() -> Iterator[None]:
    before = os.dup(2)
    try:
        with open(os.devnull, "w") as nothing:  # noqa: PTH123
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _register() -> None:
    for syntax in DECODER_DEPENDENCIES:
        decoder = get_decoder(syntax)
        if PLUGIN not in decoder.available_plugins and is_available(syntax):
            decoder.add_plugin(PLUGIN, (__name__, "_decode_frame"))


_register()
