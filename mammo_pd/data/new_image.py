"""An image without a store: what the reading of new studies hands to a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class NewImage:
    """One image of a new study, recorded and ready for a model.

    Attributes:
        image_id: its name in the record.
        pixels: (h, w) uint16, the pyramid level that the model reads: the breast, cropped, air 0,
            the chest wall on the left.
        columns: of the manifest, as they are recorded.
    """

    image_id: str
    pixels: npt.NDArray[np.uint16] = field(repr=False)
    columns: Mapping[str, Any]
