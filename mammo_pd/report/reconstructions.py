"""The page of a pretraining's reconstructions: pictures go in, one HTML document comes out."""

import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from mammo_pd.report.render import render_template


@dataclass(frozen=True)
class ReconstructionRow:
    """One image in its four views.

    Attributes:
        views: (h, w) uint8 each, in the order of the page's columns: the image, what was kept, what
            was predicted, and each dropped patch's mean.
        error: of the prediction; NaN where nothing was to be predicted.
        share: of the patches with breast, how many were kept.
    """

    views: Sequence[npt.NDArray[np.uint8]]
    error: float
    share: float


def reconstructions_page(
    rows: Sequence[ReconstructionRow], *, run_id: str, model: str, made_with: str, phantom: bool
) -> str:
    """A self-contained page.

    Args:
        rows: of the images.
        run_id: of the run.
        model: timm's name.
        made_with: in a few words, such as the epochs and the share of patches that were kept.
        phantom: whether the images are phantoms.
    """
    return render_template(
        "reconstructions.html",
        rows=[
            {
                "views": [_data_url(view) for view in row.views],
                "size": row.views[0].shape,
                "error": None if np.isnan(row.error) else row.error,
                "share": row.share,
            }
            for row in rows
        ],
        run_id=run_id,
        model=model,
        made_with=made_with,
        phantom=phantom,
    )


def _data_url(view: npt.NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(view).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode('ascii')}"
