"""Pretrained weights: a local file or timm's hub, read without running code."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mammo_pd.errors import InputError

HUB = "timm"


def weights_options(weights: str | None) -> dict[str, Any]:
    """Translate ``weights`` to arguments of `timm.create_model`.

    timm resamples the position embedding to the image size, sums three input channels to one, and
    leaves the head out.

    Args:
        weights: None for random weights; a local file (safetensors, a PyTorch state dict, or one
            of Google's ``.npz``); or ``"timm"`` for what timm's hub has under the model's name.

    Raises:
        InputError: the file does not exist.
    """
    if weights is None:
        return {}
    if weights == HUB:
        return {"pretrained": True}
    file = Path(weights)
    if not file.is_file():
        raise InputError(
            f"the weights file {file} does not exist; give a local file, or 'timm' for the weights "
            "of timm's hub where there is a network."
        )
    # timm reads these with weights_only; Google's .npz checkpoints have a loader of their own.
    overlay = {"file": str(file), "custom_load": file.suffix == ".npz"}
    return {"pretrained": True, "pretrained_cfg_overlay": overlay}


@contextmanager
def explain_weight_errors(name: str, weights: str | None) -> Iterator[None]:
    """Turn what timm raises when weights cannot be had or do not fit into one sentence.

    Raises:
        InputError: the weights cannot be loaded.
    """
    try:
        yield
    except (RuntimeError, OSError, pickle.UnpicklingError) as error:
        if weights is None:
            raise
        raise InputError(
            f"the weights {weights!r} cannot be loaded into {name!r}: "
            f"{str(error).splitlines()[0][:300]}. Give a file saved from the same architecture, "
            "or, where there is no network, download it elsewhere and name the file."
        ) from error
