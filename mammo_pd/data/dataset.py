"""Images of a store as batches for training: levels read end to end into one buffer."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from mammo_pd.batch import ImageBatch
from mammo_pd.data.image_file import LevelPlace
from mammo_pd.data.kept_levels import refuse_missing_levels
from mammo_pd.data.store import (
    StorePaths,
    choose_pyramid_level,
    find_pyramid_level,
    open_store,
    read_pyramid_level_into,
)


class MammogramDataset:
    """The images of some rows of a manifest, at the smallest level that serves the input size.

    They differ in size, so a batch is read as one: by `mammo_pd.data.loader.BatchLoader`, or by
    torch's ``DataLoader(range(len(dataset)), batch_size=8, collate_fn=dataset.read)``.

    Args:
        store: opened, or its folder.
        rows: manifest rows with ``image_id``, ``crop_height`` and ``crop_width``.
        img_size: (height, width) in pixels that the model sees.
        targets: (rows, T) float32, NaN where one is missing; None where there are no labels.
        views: (rows, 3) int64 where images are judged together: the unit of each, numbered from 0,
            its breast within the unit and its kind of view; None where each is judged by itself.

    Raises:
        InputError: no such store, or one that does not keep a level that this input size needs.
    """

    def __init__(
        self,
        store: StorePaths | Path | str,
        rows: pd.DataFrame,
        img_size: tuple[int, int],
        targets: npt.NDArray[np.float32] | None = None,
        views: npt.NDArray[np.int64] | None = None,
    ) -> None:
        paths = store if isinstance(store, StorePaths) else open_store(store)
        self._paths = paths
        self.views = views
        self.image_ids: list[str] = rows["image_id"].tolist()
        if targets is None:
            targets = np.full((len(rows), 1), np.nan, np.float32)
        # A copy: pandas hands out read-only arrays.
        self.targets = torch.tensor(targets)
        heights, widths = rows["crop_height"].tolist(), rows["crop_width"].tolist()
        self._levels = [
            choose_pyramid_level(height, width, img_size)
            for height, width in zip(heights, widths, strict=True)
        ]
        long_sides = map(max, zip(heights, widths, strict=True))
        refuse_missing_levels(
            paths,
            zip(self._levels, long_sides, strict=True),
            f"an input of {img_size[0]}x{img_size[1]} pixels (--res)",
        )
        self.most_pixels = max(map(_most_pixels, heights, widths, self._levels), default=0)
        """Of any one image, at the level that is read; a little more, by rounding."""
        # Once they were looked up.
        self._places: list[LevelPlace | None] = [None] * len(self.image_ids)
        # What was read once and had its checksum is not checked in each epoch again.
        self._checked = np.zeros(len(self.image_ids), bool)

    def __len__(self) -> int:
        return len(self.image_ids)

    def by_size(self) -> list[int]:
        """Rows in the order of their pixels, the largest first."""
        sizes = [place.height * place.width for place in map(self._place, range(len(self)))]
        return sorted(range(len(self)), key=lambda row: -sizes[row])

    def stored_bytes(self, rows: Sequence[int]) -> int:
        """What these rows' levels take in their files."""
        return sum(self._place(row).size for row in rows)

    def read(
        self,
        rows: Sequence[int],
        *,
        buffer: Callable[[int], Tensor] | None = None,
        executor: Executor | None = None,
        tasks: int = 1,
    ) -> ImageBatch:
        """Read some images, each file straight to its place in the batch.

        Args:
            rows: of the dataset.
            buffer: gives memory for so many pixels, int16; new memory by default.
            executor: what reads; the caller's own thread by default.
            tasks: that the executor is given.

        Raises:
            InputError: a level is missing or damaged; at its first reading also one whose pixels
                no longer have their checksum.
        """
        # Not a task for each file: each is handed out under the interpreter's lock, which the
        # training step wants meanwhile.
        lanes = range(min(tasks, len(rows)))
        each = map if executor is None else executor.map

        def look_up(lane: int) -> None:
            for row in rows[lane :: len(lanes)]:
                self._place(row)

        if any(self._places[row] is None for row in rows):
            list(each(look_up, lanes))
        places = [self._place(row) for row in rows]
        sizes = [place.height * place.width for place in places]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        count = int(offsets[-1])
        pixels = torch.empty(count, dtype=torch.int16) if buffer is None else buffer(count)
        flat = pixels.numpy()

        def fill(lane: int) -> None:
            for turn in range(lane, len(rows), len(lanes)):
                row, place = rows[turn], places[turn]
                out = flat[offsets[turn] : offsets[turn + 1]]
                read_pyramid_level_into(
                    self._paths,
                    self.image_ids[row],
                    self._levels[row],
                    place,
                    out,
                    check=not self._checked[row],
                )
                self._checked[row] = True

        # Exhausted, so that an error in a thread is raised here.
        list(each(fill, lanes))
        views, units = self._views_of(rows)
        return ImageBatch(
            pixels=pixels,
            offsets=torch.from_numpy(offsets[:-1]),
            heights=torch.tensor([place.height for place in places]),
            widths=torch.tensor([place.width for place in places]),
            targets=self.targets[list(rows)],
            rows=torch.tensor(list(rows)),
            views=views,
            units=units,
        )

    @property
    def judged_targets(self) -> Tensor:
        """Targets (n, T) of what is judged: of each breast once where views are fused."""
        if self.views is None:
            return self.targets
        _, first = np.unique(self.views[:, :2], axis=0, return_index=True)
        return self.targets[np.sort(first)]

    def _views_of(self, rows: Sequence[int]) -> tuple[Tensor | None, tuple[int, ...] | None]:
        """Of a batch, as `ImageBatch` has it. A unit that comes twice is two."""
        if self.views is None:
            return None, None
        views = self.views[list(rows)]
        number, before = -1, None
        own: set[int] = set()
        sizes: list[int] = []
        for place, (row, unit) in enumerate(zip(rows, views[:, 0].tolist(), strict=True)):
            if unit != before or row in own:
                number, before = number + 1, unit
                own = set()
                sizes.append(0)
            own.add(row)
            sizes[-1] += 1
            views[place, 0] = number
        return torch.from_numpy(views), tuple(sizes)

    def _place(self, row: int) -> LevelPlace:
        known = self._places[row]
        if known is None:
            known = find_pyramid_level(self._paths, self.image_ids[row], self._levels[row])
            self._places[row] = known
        return known


def _most_pixels(height: int, width: int, level: str) -> int:
    if level == "native":
        return height * width
    scale = int(level) / max(height, width)
    return math.ceil(height * scale + 1) * math.ceil(width * scale + 1)


class EpochBatches:
    """The batches of one epoch for one process: drawn by (seed, epoch) alone.

    A global batch is cut into equal shares, so that two processes see together what one would see.
    The last, incomplete global batch is left out, unless it is the only one.

    Args:
        count: images in the dataset.
        batch_size: images in a global batch, a multiple of ``world_size``.
        seed: of the shuffle.
        rank: this process.
        world_size: processes.
        draw: draws ``count`` images of an epoch, some more than once; by default each comes once.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        draw: Callable[[np.random.Generator], npt.NDArray[np.int64]] | None = None,
    ) -> None:
        self._count = count
        self._batch_size = min(batch_size, count - count % world_size)
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._draw = draw or (lambda rng: rng.permutation(count))
        self.epoch = 0
        """Counted from 0; to be set before each."""
        self.first = 0
        """Batches of the epoch that are passed over: they were trained on before."""

    def __len__(self) -> int:
        return self._count // self._batch_size

    def __iter__(self) -> Iterator[list[int]]:
        yield from itertools.islice(self._shares(self._order()), self.first, None)

    def sizes(self) -> list[int]:
        """Images of each step, over all processes."""
        return [self._batch_size] * len(self)

    def turns(self) -> list[list[int]]:
        """Of each image of each batch, how often it has come in the epoch before."""
        order = pd.Series(self._order())
        return list(self._shares(order.groupby(order).cumcount().to_numpy().astype(np.int64)))

    def _order(self) -> npt.NDArray[np.int64]:
        return self._draw(np.random.default_rng((self._seed, self.epoch)))

    def _shares(self, values: npt.NDArray[np.int64]) -> Iterator[list[int]]:
        for start in range(0, len(self) * self._batch_size, self._batch_size):
            yield values[start : start + self._batch_size][self._rank :: self._world_size].tolist()
