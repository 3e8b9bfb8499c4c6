"""The devices of a run: how many, at which precision, with how much memory, compiled or not."""

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from lightning.fabric.utilities.rank_zero import rank_zero_module
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mammo_pd.config import RunConfig
from mammo_pd.errors import InputError
from mammo_pd.wording import counted


def count_devices(config: RunConfig) -> tuple[int, int]:
    """Devices of each machine, and machines: torchrun's where it started us, else --devices.

    Raises:
        InputError: the two disagree.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return config.device.devices, 1
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if config.device.devices not in (1, local):
        raise InputError(
            f"--devices {config.device.devices} contradicts torchrun, which started "
            f"{counted(local, 'process', 'processes')} on this machine; drop --devices."
        )
    return local, world // local


# Buffers are constants here (rotation tables, zero biases). DDP would broadcast them in every
# forward pass, and hang when one rank alone runs a validation batch. Since torch 2.15 the old name
# brings a warning.
_KEEP_BUFFERS = {
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers": False
}


_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def make_fabric(config: RunConfig, *, devices: int = 1, nodes: int = 1) -> Fabric:
    """Lightning Fabric for a configuration, in bf16 where the device has it."""
    device = config.device
    precision = device.precision
    if precision == "auto":
        on_gpu = device.accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()
        # Older GPUs emulate bf16, at no gain; they are fast in fp16.
        bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16-mixed" if bf16 else "16-mixed" if on_gpu else "32-true"
    strategy = DDPStrategy(**_KEEP_BUFFERS) if devices * nodes > 1 else "auto"
    _hush_lightning()
    try:
        return Fabric(
            accelerator=device.accelerator,
            strategy=strategy,
            devices=devices,
            num_nodes=nodes,
            precision=precision,
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"Lightning Fabric cannot use accelerator {device.accelerator}, devices "
            f"{devices}, precision {precision}: {error}"
        ) from error


def _hush_lightning() -> None:
    """Keep Lightning from naming the precision, and it and torch from advising on float32.

    The precision is told with the device. No user of the command line could heed the advice on how
    to multiply in float32, and in bf16 nothing large is multiplied so.
    """
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    rank_zero_module.log.addFilter(_is_worth_telling)


def _is_worth_telling(record: logging.LogRecord) -> bool:
    told = record.getMessage()
    return "set_float32_matmul_precision" not in told and "Automatic Mixed Precision" not in told


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the CPU's and the device's generator, as ``torch.manual_seed`` does, for a single step.

    That one also formats a traceback for each kind of device that the machine lacks, which looks
    up the source of every function on the stack.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def should_compile(config: RunConfig, say: Callable[[str], None]) -> bool:
    """Whether to compile: as configured, else on a GPU if it can be done, saying so if not."""
    if config.device.compile is not None:
        return config.device.compile
    on_gpu = config.device.accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()
    if not on_gpu:
        return False
    hindrance = what_hinders_compiling()
    if hindrance is None:
        return True
    problem, remedy = hindrance
    say(f"warning: {problem}: training runs uncompiled, which is slower. {remedy}")
    return False


def what_hinders_compiling() -> tuple[str, str] | None:
    """Why ``torch.compile`` cannot work on this machine, and the remedy; None if it can."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return (
            "no C compiler is found, and torch.compile needs one at run time",
            "Install gcc, or name a compiler in CC.",
        )
    cache = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or tempfile.gettempdir())
    if _is_noexec(cache):
        return (
            f"compiled code cannot be executed in {cache}, which is mounted noexec",
            "In Docker, write --tmpfs /tmp:exec; elsewhere name another folder in "
            "TORCHINDUCTOR_CACHE_DIR and TRITON_CACHE_DIR.",
        )
    return None


@contextmanager
def deterministic_kernels(config: RunConfig) -> Iterator[None]:
    """Within the block, equal training gives equal weights to the bit, if the run asks for that.

    A GPU's fastest kernels add up in any order; compiled ones in one that was found by timing; and
    code for any size in another than code for one, of which the sizes that this process has seen
    before decide.

    Source: https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    if not config.device.deterministic:
        yield
        return
    from torch._dynamo import config as dynamo
    from torch._functorch import config as functorch
    from torch._inductor import config as inductor

    # Torch refuses without it; cuBLAS heeds it when it is first used.
    workspace = os.environ.get(_WORKSPACE)
    os.environ[_WORKSPACE] = workspace or ":4096:8"
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    # Nothing of ours reads memory before it has been written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        with (
            dynamo.patch(automatic_dynamic_shapes=False),
            inductor.patch(deterministic=True),
            # Settings of the compiler hold in one thread, and GPUs have threads of their own for
            # backward passes, in which these would be compiled.
            functorch.patch(force_non_lazy_backward_lowering=True),
        ):
            yield
    finally:
        if workspace is None:
            del os.environ[_WORKSPACE]
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


@contextmanager
def compiled_for_any_size(*, wanted: bool) -> Iterator[None]:
    """Within the block, what is compiled takes any size, from the first one on."""
    if not wanted:
        yield
        return
    from torch._dynamo import config as dynamo

    with dynamo.patch(assume_static_by_default=False):
        yield


def compile_blocks(model: nn.Module) -> None:
    """Compile the blocks of what is trained: of its backbone, and of what has some beside that."""
    for module in model.modules():
        compile_own = getattr(module, "compile_blocks", None)
        if compile_own is not None:
            compile_own()


def _is_noexec(folder: Path) -> bool:
    """Whether nothing can be executed in a folder, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return bool(os.statvfs(folder).f_flag & os.ST_NOEXEC)


def held_by_others(device: torch.device) -> int:
    """Bytes of a GPU's memory that other processes hold, and this one's own code."""
    free, total = torch.cuda.mem_get_info(device)
    return max(0, total - free - torch.cuda.memory_reserved(device))


def memory_of(device: torch.device) -> int:
    """Bytes of a GPU's memory that this process may take."""
    total: int = torch.cuda.get_device_properties(device).total_memory
    return int(total * torch.cuda.get_per_process_memory_fraction(device))
