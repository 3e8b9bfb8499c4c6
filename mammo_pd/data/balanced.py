"""Which images an epoch draws where positives are to have a set share of them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class BalancedDraw:
    """Draws an epoch's images so that a set share of them is positive.

    With groups, the share is the same within each, so that the group tells nothing of the label. A
    group takes part by its size; one in which a class is missing cannot, and is never drawn.

    Attributes:
        positive: (images,) bool.
        share: of the positives, in (0, 1).
        groups: (images,) codes, such as of the machine; None for one group.
    """

    positive: npt.NDArray[np.bool_]
    share: float
    groups: npt.NDArray[np.int64] | None = None

    @property
    def drawn(self) -> npt.NDArray[np.bool_]:
        """(images,) bool: which are in a group that has both classes."""
        if self.groups is None:
            both = self.positive.any() and not self.positive.all()
            return np.full(len(self.positive), both)
        count = np.bincount(self.groups)
        positives = np.bincount(self.groups, weights=self.positive)
        both_classes = (positives > 0) & (positives < count)
        taken: npt.NDArray[np.bool_] = both_classes[self.groups]
        return taken

    def draw(self, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Draw one epoch: as many images as there are, each class in turns of a permutation.

        No image comes a second time before all of its class and group have come once.
        """
        groups = np.zeros(len(self.positive), np.int64) if self.groups is None else self.groups
        taken = np.flatnonzero(self.drawn)
        codes, sizes = np.unique(groups[taken], return_counts=True)
        parts = []
        for code, size in zip(codes, _share_out(len(self.positive), sizes), strict=True):
            members = taken[groups[taken] == code]
            positives = round(self.share * size)
            for wanted, of_class in ((positives, True), (size - positives, False)):
                parts.append(_in_turns(members[self.positive[members] == of_class], wanted, rng))
        return rng.permutation(np.concatenate(parts))


def _share_out(count: int, sizes: npt.NDArray[np.int64]) -> list[int]:
    """Whole numbers in proportion to sizes whose sum is ``count``."""
    edges = np.rint(np.concatenate([[0], np.cumsum(sizes)]) * (count / sizes.sum()))
    shares: list[int] = np.diff(edges).astype(int).tolist()
    return shares


def _in_turns(
    rows: npt.NDArray[np.int64], wanted: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    turns = [rng.permutation(rows) for _ in range(-(-wanted // len(rows)))]
    return np.concatenate([rows[:0], *turns])[:wanted]
