"""A rectangle of whole pixels, in (row, column) order."""

from dataclasses import dataclass
from typing import Self

import numpy as np


@dataclass(frozen=True)
class Box:
    """A rectangle of whole pixels.

    Attributes:
        top: first row.
        left: first column.
        height: number of rows, at least 1.
        width: number of columns, at least 1.
    """

    top: int
    left: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"A box needs at least one pixel, not {self.height} x {self.width}.")

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Self:
        """The box of a whole (H, W) image."""
        return cls(0, 0, shape[0], shape[1])

    @property
    def bottom(self) -> int:
        """The row after the last."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """The column after the last."""
        return self.left + self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """For indexing an (H, W) array."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def scaled(self, factor: float, shape: tuple[int, int]) -> "Box":
        """The smallest box around this one after scaling, within an (H, W) frame."""
        top, left = int(self.top * factor), int(self.left * factor)
        bottom = min(int(np.ceil(self.bottom * factor)), shape[0])
        right = min(int(np.ceil(self.right * factor)), shape[1])
        top, left = min(top, shape[0] - 1), min(left, shape[1] - 1)
        return Box(top, left, max(bottom - top, 1), max(right - left, 1))

    def overlap(self, other: "Box") -> float:
        """Intersection over union with another box."""
        rows = min(self.bottom, other.bottom) - max(self.top, other.top)
        columns = min(self.right, other.right) - max(self.left, other.left)
        both = max(rows, 0) * max(columns, 0)
        return both / (self.height * self.width + other.height * other.width - both)
