"""The largest batch that fits in a GPU, found by running steps of small ones and one large one."""

from collections.abc import Callable

_SMALL = (2, 6)
# The allocator's blocks do not fit together without gaps.
_FILL = 0.92
_TRIES = 8


def largest_batch(
    measure: Callable[[int], int | None], memory: int, *, most: int, share: int = 1
) -> int:
    """Find how many images a step can take.

    Memory grows by the same amount for each image, so two small batches tell where the limit lies;
    that batch is then run, and made smaller until it fits.

    Args:
        measure: runs a step of so many images and gives the most bytes it held, or None if they
            did not fit.
        memory: bytes there are.
        most: images there are to train on.
        share: the result is a multiple of it.

    Returns:
        The number of images, a multiple of ``share`` and, where it is above 16 and ``share``
        divides 8, of 8; 0 if not even ``share`` fit.
    """
    limit = memory * _FILL
    few, more = (min(most, size * share) for size in _SMALL)
    held, held_more = measure(few), measure(more)
    if held is None or held_more is None or more == few:
        found = share if held is None else more if held_more is not None else more - share
        return _first_fit(measure, found, limit, share)
    each = max(1.0, (held_more - held) / (more - few))
    found = min(most, int(few + (limit - held) / each))
    return _first_fit(measure, found, limit, share)


def _first_fit(measure: Callable[[int], int | None], batch: int, limit: float, share: int) -> int:
    for _ in range(_TRIES):
        unit = 8 if batch > 16 and 8 % share == 0 else share
        batch -= batch % unit
        if batch < share:
            return 0
        held = measure(batch)
        if held is not None and held <= limit:
            return batch
        batch = min(batch - share, int(batch * 0.9))
    return 0
