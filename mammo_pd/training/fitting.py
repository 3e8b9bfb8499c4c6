"""Which batch a device takes: found by measuring, or refused with the one that fits."""

import copy
import gc
import math
from collections.abc import Callable

import torch
from lightning.fabric import Fabric

from mammo_pd.backbones.base import Backbone
from mammo_pd.config import RunConfig
from mammo_pd.data.dataset import MammogramDataset
from mammo_pd.errors import InputError
from mammo_pd.perf.cost import largest_fitting, shape_of, training_bytes
from mammo_pd.training.batch_size import largest_batch
from mammo_pd.training.devices import memory_of
from mammo_pd.training.loop import can_fuse, train_step
from mammo_pd.training.steps import count_step_parts, keys_of, parts_of, sampler_of

# The memory model is good to 15 %: what lies further above the device's memory cannot fit.
_SURELY_TOO_LARGE = 1.2


def find_batch_size(
    fabric: Fabric,
    model: Backbone,
    train_set: MammogramDataset,
    img_size: tuple[int, int],
    config: RunConfig,
    compiled: bool,
) -> int:
    """The largest batch that fits, measured on the largest images; the model is left as it was."""
    device = fabric.device
    if device.type != "cuda":
        raise InputError(
            "--batch-size auto measures a GPU's memory, and there is none here; give a number."
        )
    share = fabric.world_size * config.training.grad_accum_steps
    memory = memory_of(device)
    measure = step_memory(fabric, model, train_set, img_size, config, compiled, share)
    found = largest_batch(measure, memory, most=len(train_set), share=share)
    del measure
    # The copy of the model is part of a cycle, and would stay beside the one that is trained.
    gc.collect()
    if compiled:
        # Code for any batch size is slower than code for one.
        torch.compiler.reset()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    if not found:
        raise InputError(does_not_fit(device, config, img_size, model, fabric.world_size))
    return found


def step_memory(
    fabric: Fabric,
    model: Backbone,
    train_set: MammogramDataset,
    img_size: tuple[int, int],
    config: RunConfig,
    compiled: bool,
    share: int,
) -> Callable[[int], int | None]:
    """Make what runs a step of so many images, on a copy of the model, and measures its memory."""
    device = fabric.device
    probe = copy.deepcopy(model)
    if compiled:
        probe.compile_blocks()
    sampler = sampler_of(img_size, model, config, compiled)
    # A rate of 0 changes no weight.
    optimizer = torch.optim.AdamW(probe.parameters(), lr=0.0, fused=can_fuse(fabric))
    module, optimizer = fabric.setup(probe, optimizer)
    module.train()
    base = config.patch_dropout.schedule.base
    num_keep = model.allowed_keep(base)
    largest = train_set.by_size()
    # A second part finds the gradients of the first in memory.
    parts_at_most = count_step_parts(
        config, 1.0 if config.patch_dropout.schedule.full_epochs else base
    )

    def measure(batch_size: int) -> int | None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            for _ in range(2):
                batch = train_set.read(largest[: batch_size // share])
                keys = keys_of(train_set, batch.rows, 0, 0, device)
                parts = parts_of(batch, keys, num_keep, sampler, 1, device)
                # Each process by itself: if one runs out of memory, none waits for it.
                with fabric.no_backward_sync(module, enabled=fabric.world_size > 1):
                    train_step(
                        fabric, module, optimizer, parts * min(2, parts_at_most), clip_norm=1.0
                    )
            # The whole batch lies there, and the next one, while a part is computed.
            ahead = batch.pixels.nbytes * (2 * config.training.grad_accum_steps - 1)
            held = float(torch.cuda.max_memory_allocated(device) + ahead)
        except torch.OutOfMemoryError:
            held = math.inf
        optimizer.zero_grad(set_to_none=True)
        # All processes go by the fullest.
        most = fabric.all_gather(torch.tensor(held, device=device, dtype=torch.float64)).max()
        return int(most) if math.isfinite(most) else None

    return measure


def refuse_too_large(
    fabric: Fabric, config: RunConfig, img_size: tuple[int, int], model: Backbone
) -> None:
    """Refuse at once what cannot fit by far; what only may not is tried."""
    if fabric.device.type != "cuda":
        return
    memory = memory_of(fabric.device)
    stages = memory_of_stages(config, img_size, model, fabric.world_size)
    if max(held for _, held in stages) > _SURELY_TOO_LARGE * memory:
        raise InputError(does_not_fit(fabric.device, config, img_size, model, fabric.world_size))


def memory_of_stages(
    config: RunConfig, img_size: tuple[int, int], model: Backbone, world: int = 1
) -> list[tuple[int, int]]:
    """K and the predicted bytes of a step: of most epochs, and of the last that keep every patch.

    Args:
        config: of the run.
        img_size: (height, width) in pixels.
        model: of the run.
        world: devices that share a batch.
    """
    schedule = config.patch_dropout.schedule
    share = math.ceil(config.training.known_batch_size / world)
    stages = []
    for rate in (schedule.base, 1.0) if schedule.full_epochs else (schedule.base,):
        num_keep = model.allowed_keep(rate)
        at_a_time = math.ceil(share / min(share, count_step_parts(config, rate)))
        held = training_bytes(
            shape_of(config.model.name, config.model.global_pool),
            img_size,
            num_keep,
            at_a_time,
            checkpointing=config.model.checkpointing,
        )
        stages.append((num_keep, held))
    return stages


def does_not_fit(
    device: torch.device, config: RunConfig, img_size: tuple[int, int], model: Backbone, world: int
) -> str:
    """`what_fits` of a GPU that is here."""
    name = torch.cuda.get_device_name(device)
    memory = memory_of(device)
    return what_fits(config, img_size, model, memory, name, world)


def what_fits(
    config: RunConfig,
    img_size: tuple[int, int],
    model: Backbone,
    memory: int,
    name: str,
    world: int = 1,
) -> str:
    """The sentence that refuses a batch and says which one fits.

    Args:
        config: of the run.
        img_size: (height, width) in pixels.
        model: of the run.
        memory: of the device, in bytes.
        name: of the device.
        world: how many of it.
    """
    training = config.training
    usable = 0.9 * memory
    each = f"{world} devices of " if world > 1 else ""
    where = f"in {each}{memory / 2**30:.0f} GiB ({name})"
    size = f"{training.batch_size} images of {img_size[0]}x{img_size[1]}"
    other = (
        "lower --keep or --res, choose a smaller --model, or compute blocks anew in the backward "
        "pass (--set model.checkpointing=true)"
    )
    if isinstance(training.batch_size, int):
        (_, held), *last = memory_of_stages(config, img_size, model, world)
        if last and held <= usable < last[0][1]:
            return (
                f"a batch of {size} does not fit {where} in the last epochs, in which --keep "
                f"{config.patch_dropout.keep_rate} keeps all {last[0][0]} patches of an image; "
                f"leave these epochs away, {other}."
            )
    schedule = config.patch_dropout.schedule
    num_keep = model.allowed_keep(schedule.base)
    fits = world * training.grad_accum_steps
    fits *= largest_fitting(
        shape_of(config.model.name, config.model.global_pool),
        img_size,
        num_keep,
        usable,
        checkpointing=config.model.checkpointing,
    )
    said = f"a batch of {size} with {num_keep} patches kept does not fit {where}"
    if not fits:
        return f"{said}: not even one image fits; {other}."
    parts = "keep the batch and compute it in parts (--set training.grad_accum_steps=4)"
    if isinstance(training.batch_size, int) and fits >= training.batch_size:
        return (
            f"{said}, though about {fits} should: something else takes part of that memory, or "
            "this model needs more than predicted. Free it, give half the batch or --batch-size "
            f"auto, or {parts}."
        )
    return (
        f"{said}: about {fits} fit (--batch-size {fits}, or auto to measure it); for more, "
        f"{parts}, or lower --keep or --res."
    )
