"""The largest batch that a GPU takes, found by running true training steps."""

import copy
import gc
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from mammo_pd.errors import InputError
from mammo_pd.training.devices import compile_blocks, held_by_others, memory_of
from mammo_pd.training.step import TrainingStep, can_fuse, image_keys
from mammo_pd.wording import counted

if TYPE_CHECKING:
    from mammo_pd.training.setup import RunSetup

_SMALL = (2, 6)
# The allocator's blocks leave gaps.
_FILL = 0.92
_TRIES = 8
# CUDA's own, in each process; what is held beside it belongs to others.
_OWN_CODE = 2 * 2**30


class DoesNotFitError(InputError):
    """A batch that a device's memory does not hold.

    Attributes:
        setup: of the run.
    """

    def __init__(self, setup: "RunSetup") -> None:
        self.setup = setup
        training, (height, width) = setup.config.training, setup.img_size
        memory = ""
        if setup.device.type == "cuda":
            name = torch.cuda.get_device_name(setup.device)
            memory = f" of {memory_of(setup.device) / 2**30:.0f} GiB ({name})"
            others = held_by_others(setup.device)
            if others > _OWN_CODE:
                memory += f", of which others hold {others / 2**30:.0f} GiB (see nvidia-smi)"
        where = f"{height}x{width} with {setup.num_keep} patches kept"
        remedies = (
            "lower --keep or --res, choose a smaller --model, or recompute activations (--set "
            "model.checkpointing=true)."
        )
        if training.batch_size == "auto":
            super().__init__(
                f"not even {setup.least_at_once} per device fits in the memory{memory} at {where}; "
                + remedies
            )
        else:
            super().__init__(
                f"a batch of {counted(training.batch_size, 'image')} of {where} does not fit in "
                f"the memory{memory}; give a smaller --batch-size (or auto, to measure the "
                "largest), compute it in parts (--set training.grad_accum_steps=4), " + remedies
            )


def find_batch_size(setup: "RunSetup") -> int:
    """Measure the largest global batch of a run whose ``batch_size`` is ``auto``.

    The model is left as it was.

    Raises:
        InputError: there is no GPU to measure.
        DoesNotFitError: not even one image fits in each part of a step, or one unit of those that
            are judged together on each device.
    """
    device = setup.device
    if device.type != "cuda":
        raise InputError(
            "--batch-size auto measures a GPU's memory, and there is none here; give a number."
        )
    share = setup.fabric.world_size * setup.config.training.grad_accum_steps
    measure = step_memory(setup)
    most = len(setup.train_set)
    if most < share and setup.train_set.views is None:
        raise InputError(
            f"--batch-size auto has to share each batch between {share} devices and parts, and "
            f"there is no more than {counted(most, 'training image')}; use fewer devices or a "
            "smaller training.grad_accum_steps."
        )
    # Every rank must come to the same batch, so the smallest memory counts where GPUs differ.
    memories = setup.fabric.all_gather(torch.tensor(memory_of(device), device=device))
    memory = int(memories.min())
    if setup.train_set.views is None:
        found = largest_batch(measure, memory, most=most, share=share)
    else:  # units are not shared evenly in any case
        least = setup.fabric.world_size * setup.largest_unit
        found = largest_batch(measure, memory, most=most, least=least)
    del measure
    # The probe is part of a reference cycle: without this it would stay beside the trained model.
    gc.collect()
    if setup.compiled:
        # Code compiled for any batch size is slower than code for one.
        torch.compiler.reset()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    if not found:
        raise DoesNotFitError(setup)
    return found


def step_memory(setup: "RunSetup") -> Callable[[int], int | None]:
    """Make a function that runs steps on a copy of the model and measures their memory.

    Args:
        setup: of the run.

    Returns:
        From a global batch size, the most bytes that a step held on any device; None if one ran
        out of memory.
    """
    fabric, device = setup.fabric, setup.device
    probe = copy.deepcopy(setup.model)
    if setup.compiled:
        compile_blocks(probe)
    # With a learning rate of 0, repeated steps do not drift.
    optimizer = torch.optim.AdamW(probe.parameters(), lr=0.0, fused=can_fuse(fabric))
    module, optimizer = fabric.setup(probe, optimizer)
    step = TrainingStep(fabric, module.train(), optimizer, setup.sampler, setup.objective, 1.0)
    largest = setup.train_set.by_size()

    def run(batch_size: int, num_keep: int, most_parts: int) -> int:
        """Run two steps; the bytes that such a step's images take beside those that are here."""
        at_once = setup.most_at_once(batch_size, most_parts)
        # The second part of a step finds the gradients of the first in memory.
        parts = min(2, most_parts)
        for _ in range(2):
            batch = setup.train_set.read(largest[:at_once] * parts)
            keys = image_keys(setup.train_set, batch.rows, 0, 0, device)
            # No exchange of gradients: a process that runs out of memory must not leave the others
            # waiting.
            with fabric.no_backward_sync(module, enabled=fabric.world_size > 1):
                step(batch, keys, num_keep, parts)
        # In training the whole batch and the next one lie on the device; here so many images do.
        own: int = math.ceil(batch_size / fabric.world_size)
        return batch.pixels.nbytes * (2 * own - len(batch)) // len(batch)

    def measure(batch_size: int) -> int | None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            ahead = max(run(batch_size, *kind) for kind in setup.kinds_of_step)
            held = float(torch.cuda.max_memory_allocated(device) + max(0, ahead))
        except torch.OutOfMemoryError:
            held = math.inf
        optimizer.zero_grad(set_to_none=True)
        # The maximum across ranks counts.
        most = fabric.all_gather(torch.tensor(held, device=device, dtype=torch.float64)).max()
        return int(most) if math.isfinite(most) else None

    return measure


def largest_batch(
    measure: Callable[[int], int | None],
    memory: int,
    *,
    most: int,
    share: int = 1,
    least: int | None = None,
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
        least: the smallest batch that is of use, by default ``share``.

    Returns:
        The number of images, a multiple of ``share`` and, where it is above 16 and ``share``
        divides 8, of 8; 0 if not even ``least`` fit.
    """
    limit, least = memory * _FILL, least or share
    few, more = (min(most, size * least) for size in _SMALL)
    held, held_more = measure(few), measure(more)
    if held is None or held_more is None or more == few:
        found = least if held is None else more if held_more is not None else more - least
        return _first_fit(measure, found, limit, share, least)
    each = max(1.0, (held_more - held) / (more - few))
    found = min(most, int(few + (limit - held) / each))
    return _first_fit(measure, found, limit, share, least)


def _first_fit(
    measure: Callable[[int], int | None], batch: int, limit: float, share: int, least: int
) -> int:
    for _ in range(_TRIES):
        unit = 8 if batch > 16 and 8 % share == 0 else share
        batch = max(least, batch - batch % unit)
        held = measure(batch)
        if held is not None and held <= limit:
            return batch
        if batch == least:
            return 0
        batch = max(least, int(batch * 0.9))
    return 0
