"""What the memory estimate says about a run: advice only, since the estimate is good to 15 %.

A step that the estimate says is too large is tried all the same; see `training_bytes` for what the
estimate assumes.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mammo_pd.errors import InputError
from mammo_pd.perf.cost import largest_fitting, shape_of, training_bytes
from mammo_pd.training.batch_size import DoesNotFitError
from mammo_pd.training.devices import memory_of
from mammo_pd.training.setup import RunSetup
from mammo_pd.wording import counted

# Of the estimate over the device's memory: beyond the error of the estimate.
_WARN_ABOVE = 1.2
# The rest is for the CUDA context and for fragmentation.
_USABLE = 0.9


@dataclass(frozen=True)
class StepMemory:
    """The estimated memory of one kind of step, on each device.

    Attributes:
        num_keep: K.
        most_parts: forward and backward passes that a step is cut into, if it has enough images.
        bytes: peak.
    """

    num_keep: int
    most_parts: int
    bytes: int


def estimate_steps(setup: RunSetup, batch_size: int) -> list[StepMemory]:
    """Estimate the memory of a run's steps.

    Args:
        setup: of the run.
        batch_size: images per step over all devices.

    Returns:
        The step of most epochs; then, if there is one, that of the last epochs, which keep every
        patch. It is computed in more parts, but one image can be too large, or one unit of images
        that are judged together.
    """
    return [
        StepMemory(
            num_keep,
            most_parts,
            training_bytes(
                shape_of(setup.config.model.name, setup.config.model.global_pool),
                setup.img_size,
                num_keep,
                setup.most_at_once(batch_size, most_parts),
                checkpointing=setup.config.model.checkpointing,
            ),
        )
        for num_keep, most_parts in setup.kinds_of_step
    ]


def memory_warning(setup: RunSetup, memory: int | None = None) -> str | None:
    """Warn of a run that will probably not fit, before it starts.

    Args:
        setup: of the run, its batch size resolved.
        memory: bytes of each device; None to ask the device.

    Returns:
        One line; None if the run may fit, or on a CPU.
    """
    if memory is None:
        if setup.device.type != "cuda":
            return None
        memory = memory_of(setup.device)
    batch_size = setup.config.training.known_batch_size
    largest = max(estimate_steps(setup, batch_size), key=lambda step: step.bytes)
    if largest.bytes <= _WARN_ABOVE * memory:
        return None
    which = "a step"
    if largest.num_keep != setup.num_keep:
        which = f"a step of the last epochs, which keep all {largest.num_keep} patches,"
    return (
        f"warning: {which} is estimated to take {largest.bytes / 2**30:.1f} GiB, and the device "
        f"has {memory / 2**30:.1f}; trying anyway. {suggest_batch(setup, memory)}"
    )


def suggest_batch(setup: RunSetup, memory: int | None = None) -> str:
    """Suggest what to try for a run that does not fit.

    Args:
        setup: of the run; its batch size may be ``auto``.
        memory: bytes of each device; None to ask the device.

    Returns:
        One sentence; empty on a CPU, whose steps are not estimated.
    """
    if memory is None:
        if setup.device.type != "cuda":
            return ""
        memory = memory_of(setup.device)
    base, *last = (_largest_batch(setup, *kind, memory) for kind in setup.kinds_of_step)
    if not base:
        return (
            f"According to the estimate, not even {setup.least_at_once} per device fits with "
            f"{setup.num_keep} patches kept: lower --res or --keep, choose a smaller --model, or "
            "set model.checkpointing=true."
        )
    if last and not last[0]:
        return (
            f"According to the estimate, not even {setup.least_at_once} per device fits in the "
            f"last epochs, in which --keep {setup.config.patch_dropout.keep_rate} keeps all "
            f"{setup.backbone.num_tokens} patches: drop those epochs, lower --res, or set "
            "model.checkpointing=true."
        )
    fits, given = min([base, *last]), setup.config.training.batch_size
    if isinstance(given, int) and fits < given:
        found = counted(fits, "image fits", "images fit")
        return f"According to the estimate, {found}: try --batch-size {fits} first."
    return (
        f"According to the estimate, {counted(fits, 'image')} should fit: another process may be "
        "using the memory, or this model needs more than estimated."
    )


@contextmanager
def memory_advice() -> Iterator[None]:
    """Add `suggest_batch` to the error of a run that ran out of memory.

    Raises:
        InputError: instead of DoesNotFitError.
    """
    try:
        yield
    except DoesNotFitError as error:
        raise InputError(f"{error} {suggest_batch(error.setup)}".rstrip()) from error


def _largest_batch(setup: RunSetup, num_keep: int, most_parts: int, memory: int) -> int:
    """The largest batch over all devices that should fit; 0 if there is none."""
    model = setup.config.model
    world_size: int = setup.fabric.world_size
    at_once = largest_fitting(
        shape_of(model.name, model.global_pool),
        setup.img_size,
        num_keep,
        _USABLE * memory,
        checkpointing=model.checkpointing,
    )
    batch, together = at_once * most_parts * world_size, setup.largest_unit
    if together > 1:
        # As `most_at_once` has it, the other way round; one unit for each device is the least.
        shared = world_size > 1 or most_parts > 1
        batch = max((at_once - shared * together) * most_parts, together) * world_size
        if at_once < together:
            return 0
    # Every device takes an equal share; multiples of 8 suit the kernels.
    unit = math.lcm(8, world_size) if batch > 16 * world_size else world_size
    return batch - batch % unit
