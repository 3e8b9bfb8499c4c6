"""Batches of whole units, such as all images of a breast, where these are judged together."""

from collections.abc import Callable, Iterator
from itertools import chain, count, islice

import numpy as np
import numpy.typing as npt

from mammo_pd.errors import InputError
from mammo_pd.wording import counted

# So many units may wait for a batch with room for them, while smaller ones fill it up.
_MOST_WAITING = 256


class UnitBatches:
    """The batches of one epoch for one process, as `EpochBatches`, but of whole units.

    A global batch holds as many images as were asked for, or a few less where no unit fits into
    what is left; so nearly all have one shape, for which code is compiled and captured. Units come
    in the order drawn, except where another one fills a batch up. The number of batches is that of
    the complete ones of one draw; should an epoch's draw fill fewer, a further draw goes on.

    Args:
        units: (images,) the unit of each image, numbered from 0.
        batch_size: images in a global batch, at most.
        seed: of the shuffle.
        rank: this process.
        world_size: processes.
        draw: draws the units of an epoch, some perhaps more than once; by default each comes once.

    Raises:
        InputError: some process would have no unit in some batch; see `check_units`.
    """

    def __init__(
        self,
        units: npt.NDArray[np.int64],
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        draw: Callable[[np.random.Generator], npt.NDArray[np.int64]] | None = None,
    ) -> None:
        check_units(units, batch_size, world_size)
        self._members = members_of(units)
        self._sizes = [len(rows) for rows in self._members]
        self._batch_size = min(batch_size, len(units))
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._draw = draw or (lambda rng: rng.permutation(len(self._members)))
        self.epoch = 0
        self.first = 0
        """Batches of the epoch that are passed over: they were trained on before."""
        once = self._draw(np.random.default_rng((seed, 0))).tolist()
        packed = list(self._pack(iter(once)))
        # The last one was not filled: the draw was over.
        self._count = max(1, len(packed) - 1)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        for batch in islice(self._batches(), self.first, None):
            yield [row for place in self._own(batch) for row in self._members[batch[place]]]

    def sizes(self) -> list[int]:
        """Images of each step, over all processes."""
        return [sum(self._sizes[unit] for unit in batch) for batch in self._batches()]

    def turns(self) -> list[list[int]]:
        """Of each image of each batch, how often it has come in the epoch before."""
        come = [0] * len(self._members)
        found = []
        for batch in self._batches():
            turns = []
            for unit in batch:
                turns.append(come[unit])
                come[unit] += 1
            own = self._own(batch)
            found.append([turns[place] for place in own for _ in self._members[batch[place]]])
        return found

    def _own(self, batch: list[int]) -> list[int]:
        """Which units of a global batch this process takes: each goes to who has fewest images."""
        loads = [0] * self._world_size
        own = []
        for place in sorted(range(len(batch)), key=lambda place: -self._sizes[batch[place]]):
            rank = loads.index(min(loads))
            loads[rank] += self._sizes[batch[place]]
            if rank == self._rank:
                own.append(place)
        return own

    def _batches(self) -> list[list[int]]:
        """The units of each global batch."""
        rng = np.random.default_rng((self._seed, self.epoch))
        draws = (self._draw(rng).tolist() for _ in count())
        return list(islice(self._pack(chain.from_iterable(draws)), self._count))

    def _pack(self, units: Iterator[int]) -> Iterator[list[int]]:
        waiting: list[int] = []
        more = True
        while more:
            room, taken, passed = self._batch_size, list[int](), list[int]()
            held = iter(waiting)
            while room and len(passed) < _MOST_WAITING:
                unit = next(held, None)
                if unit is None:
                    unit = next(units, None)
                if unit is None:
                    more = bool(passed)
                    break
                if self._sizes[unit] <= room:
                    taken.append(unit)
                    room -= self._sizes[unit]
                else:
                    passed.append(unit)
            if room:
                self._swap_to_fill(taken, passed, room)
            waiting = [*passed, *held]
            yield taken

    def _swap_to_fill(self, taken: list[int], passed: list[int], room: int) -> None:
        """Take a waiting unit in place of one of just so many images less, if there is one."""
        places = {self._sizes[unit]: place for place, unit in enumerate(taken)}
        for number, unit in enumerate(passed):
            place = places.get(self._sizes[unit] - room)
            if place is not None:
                taken[place], passed[number] = unit, taken[place]
                return


def check_units(units: npt.NDArray[np.int64], batch_size: int | None, world_size: int = 1) -> None:
    """Check that each process has a unit in each batch, whichever units come together.

    Args:
        units: (images,) the unit of each image, numbered from 0.
        batch_size: images in a global batch, at most; None where that is yet to be measured.
        world_size: processes.

    Raises:
        InputError: a unit may have more images than each process's share of a batch, or of all
            images there are.
    """
    largest = largest_unit(units)
    if len(units) < world_size * largest:
        raise InputError(
            f"{world_size} devices cannot share {counted(len(units), 'training image')}, of which "
            f"up to {largest} are judged together (training.fusion) and must stay together; use at "
            f"most {len(units) // largest}."
        )
    if batch_size is not None and batch_size < world_size * largest:
        beside = f" on {world_size} devices" if world_size > 1 else ""
        raise InputError(
            f"--batch-size {batch_size} is too small: {largest} images are judged together "
            "(training.fusion) and must stay together; give at least "
            f"{world_size * largest}{beside}."
        )


def largest_unit(units: npt.NDArray[np.int64]) -> int:
    """The most images of one unit."""
    return int(np.bincount(units).max())


def members_of(units: npt.NDArray[np.int64]) -> list[list[int]]:
    """The rows of each unit, numbered from 0."""
    order = np.argsort(units, kind="stable")
    edges = np.cumsum(np.bincount(units))[:-1]
    return [rows.tolist() for rows in np.split(order, edges)]


def batches_of_units(
    units: npt.NDArray[np.int64], size: int, *, rank: int = 0, world_size: int = 1
) -> list[list[int]]:
    """All rows, each once, in batches that tear no unit.

    Args:
        units: (rows,) the unit of each, numbered from 0.
        size: rows of a batch, at most; a larger unit is a batch of its own.
        rank: this process.
        world_size: processes, each of which takes its share of the units.
    """
    batches: list[list[int]] = []
    for rows in members_of(units)[rank::world_size]:
        if batches and len(batches[-1]) + len(rows) <= size:
            batches[-1].extend(rows)
        else:
            batches.append(list(rows))
    return batches
