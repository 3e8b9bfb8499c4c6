"""The largest batch that a GPU takes, found by running true training steps."""

import copy
import gc
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from mammo_pd.errors import InputError
from mammo_pd.training.devices import compile_blocks, memory_of
from mammo_pd.training.step import TrainingStep, can_fuse, image_keys
from mammo_pd.wording import counted

if TYPE_CHECKING:
    from mammo_pd.training.setup import RunSetup

_SMALL = (2, 6)
# The allocator's blocks leave gaps.
_FILL = 0.92
_TRIES = 8


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
        super().__init__(
            f"a batch of {counted(training.known_batch_size, 'image')} of {height}x{width} with "
            f"{setup.num_keep} patches kept does not fit in the memory{memory}; give a smaller "
            "--batch-size (or auto, to measure the largest), compute it in parts (--set "
            "training.grad_accum_steps=4), lower --keep or --res, choose a smaller --model, or "
            "recompute activations (--set model.checkpointing=true)."
        )


def find_batch_size(setup: "RunSetup") -> int:
    """Measure the largest global batch of a run whose ``batch_size`` is ``auto``.

    The model is left as it was.

    Raises:
        InputError: there is no GPU to measure.
        DoesNotFitError: not even one image fits in each part of a step.
    """
    device = setup.device
    if device.type != "cuda":
        raise InputError(
            "--batch-size auto measures a GPU's memory, and there is none here; give a number."
        )
    share = setup.fabric.world_size * setup.config.training.grad_accum_steps
    measure = step_memory(setup, share)
    most = len(setup.train_set)
    if most < share:
        raise InputError(
            f"--batch-size auto has to share each batch between {share} devices and parts, and "
            f"there is no more than {counted(most, 'training image')}; use fewer devices or a "
            "smaller training.grad_accum_steps."
        )
    # Every rank must come to the same batch, so the smallest memory counts where GPUs differ.
    memories = setup.fabric.all_gather(torch.tensor(memory_of(device), device=device))
    found = largest_batch(measure, int(memories.min()), most=most, share=share)
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


def step_memory(setup: "RunSetup", share: int) -> Callable[[int], int | None]:
    """Make a function that runs steps on a copy of the model and measures their memory.

    Args:
        setup: of the run.
        share: parts that a global batch is cut into, over devices and accumulation.

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
    # The second part of a step finds the gradients of the first in memory.
    parts = min(2, setup.most_parts)

    def measure(batch_size: int) -> int | None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        at_once = batch_size // share
        try:
            for _ in range(2):
                batch = setup.train_set.read(largest[:at_once] * parts)
                keys = image_keys(setup.train_set, batch.rows, 0, 0, device)
                # No exchange of gradients: a process that runs out of memory must not leave the
                # others waiting.
                with fabric.no_backward_sync(module, enabled=fabric.world_size > 1):
                    step(batch, keys, setup.num_keep, parts)
            # In training the whole batch and the next one lie on the device; here so many parts do.
            of_part = batch.pixels.nbytes / parts
            ahead = of_part * (2 * setup.config.training.grad_accum_steps - parts)
            held = float(torch.cuda.max_memory_allocated(device) + ahead)
        except torch.OutOfMemoryError:
            held = math.inf
        optimizer.zero_grad(set_to_none=True)
        # The maximum across ranks counts.
        most = fabric.all_gather(torch.tensor(held, device=device, dtype=torch.float64)).max()
        return int(most) if math.isfinite(most) else None

    return measure


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
