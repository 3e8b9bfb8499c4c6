"""Check Python, its packages, torch against driver and card, the compiler, and memory."""

import os
import platform
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from mammo_pd.cores import available_cores
from mammo_pd.doctor.finding import Finding, fails, ok, warning
from mammo_pd.errors import cause_of
from mammo_pd.wording import counted

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_LEAST_PYTHON = (3, 11)
# NCCL maps some tens of MB per pair of GPUs; Docker's default is 64 MiB in total.
_SHARED_MEMORY_OF_GPUS = 2**29
_LEAST_SHARED_MEMORY = 2**23
# Files that training keeps open: levels being read, sockets, logs.
_OPEN_FILES = 512
# Memory of a preprocess worker with a full-resolution image, and a reserve for everything else.
_MEMORY_OF_A_WORKER = 1.5e9
# Control groups, and those that this process is in.
_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_ABSENT = "absent"
# What each extra is for; dev is for people who change mammo-pd.
EXTRAS = {
    "cluster": "preprocess on a Dask cluster (--scheduler)",
    "gpu": "lossless JPEG 2000 decoded on an NVIDIA GPU (preprocess, inspect, predict)",
    "dicom": "results for a PACS (predict --dicom)",
    "onnx": "models for onnxruntime (export --onnx)",
    "bundle": "running what export --bundle writes with python -m monai.bundle",
    "docs": "building the documentation (make docs)",
}


def check_python() -> Iterator[Finding]:
    """Check Python's version and word size."""
    found = f"{platform.python_implementation()} {platform.python_version()}"
    if sys.version_info < _LEAST_PYTHON or sys.maxsize < 2**32:
        yield fails("Python", found, "install 64-bit CPython 3.11 or newer.")
    else:
        yield ok("Python", f"{found} on {platform.system()} {platform.machine()}")


def check_packages() -> Iterator[Finding]:
    """Check that every dependency is installed in a compatible version."""
    try:
        base = _requirements("")
    except metadata.PackageNotFoundError:
        yield fails("packages", "mammo-pd itself is not installed", "pip install mammo-pd")
        return
    wrong = _unmet(base)
    if wrong:
        found = ", ".join(f"{one.name} {version} ({one.specifier})" for one, version in wrong)
        names = " ".join(f"'{one.name}{one.specifier}'" for one, _ in wrong)
        yield fails("packages", found, f"pip install {names}")
    else:
        yield ok("packages", f"all {len(base)} are installed in compatible versions")


def check_extras() -> Iterator[Finding]:
    """List which extras are installed and what they are for; none is required."""
    try:
        base = {str(requirement) for requirement in _requirements("")}
    except metadata.PackageNotFoundError:
        return  # that is told of by `check_packages`
    for extra, purpose in EXTRAS.items():
        own = [one for one in _requirements(extra) if str(one) not in base]
        wrong = _unmet(own)
        name, install = f"extra {extra}", f"pip install 'mammo-pd[{extra}]'"
        if not own:
            cause = "this mammo-pd installation is older than the extra"
            yield warning(name, f"not known, for {purpose}: {cause}", install)
        elif not wrong:
            yield ok(name, f"installed: {purpose}")
        elif all(version == _ABSENT for _, version in wrong):
            yield ok(name, f"not installed; for {purpose}: {install}")
        else:
            found = ", ".join(f"{one.name} {version} ({one.specifier})" for one, version in wrong)
            yield warning(name, f"incomplete or too old, for {purpose}: {found}", install)


def _requirements(extra: str) -> "list[Requirement]":
    """The requirements of one of mammo-pd's extras; of the base package for an empty name."""
    from packaging.requirements import Requirement

    wanted = [Requirement(text) for text in metadata.requires("mammo-pd") or []]
    return [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": extra})]


def _unmet(requirements: "list[Requirement]") -> "list[tuple[Requirement, str]]":
    """The requirements that are not met, each with the installed version, if any."""
    unmet = []
    for requirement in requirements:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            unmet.append((requirement, _ABSENT))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            unmet.append((requirement, version))
    return unmet


def check_torch() -> Iterator[Finding]:
    """Check that torch and torchvision match."""
    import torch

    try:
        import torchvision  # type: ignore[import-untyped]
        from torchvision.ops import nms  # type: ignore[import-untyped]

        nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise  # importing it makes a folder for caches; a library that does not fit has none
        yield fails(
            "torch and torchvision",
            f"torch {torch.__version__}: torchvision does not fit it ({cause_of(error)})",
            "install both from one index: pip install --force-reinstall torch torchvision",
        )
        return
    yield ok("torch and torchvision", f"{torch.__version__} and {torchvision.__version__}")


def check_gpu() -> Iterator[Finding]:
    """Check driver, card and torch's CUDA against each other; multiply matrices on each card."""
    import torch

    name = "GPU"
    driver = _driver()
    if driver is None:
        if torch.version.cuda and _has_nvidia_device():
            yield fails(
                name,
                "there is an NVIDIA device, but its driver does not respond",
                "install the driver, or start the container with --gpus all; nvidia-smi must work.",
            )
        else:
            yield ok(name, "no NVIDIA driver: training, scoring and embedding run on the CPU")
        return
    version, newest, cards = driver
    found = (
        f"driver {version} (CUDA up to {newest[0]}.{newest[1]}), {', '.join(cards) or 'no card'}"
    )
    built = torch.version.cuda
    if built is None:
        yield fails(
            name,
            f"{found}, but torch {torch.__version__} is a CPU-only build",
            "install torch and torchvision from https://download.pytorch.org/whl/ for this CUDA.",
        )
        return
    # From CUDA 11 on, an older driver runs programs of a newer toolkit of the same major version.
    if int(built.split(".")[0]) > newest[0]:
        yield fails(
            name,
            f"{found}, but torch needs CUDA {built}",
            f"update the driver, or install torch for CUDA {newest[0]}.",
        )
        return
    if not torch.cuda.is_available():
        yield fails(
            name,
            f"{found}, and torch for CUDA {built} sees no GPU",
            "check CUDA_VISIBLE_DEVICES and the container's --gpus; nvidia-smi must work.",
        )
        return
    yield ok(name, f"{found}, torch for CUDA {built}")
    for device in range(torch.cuda.device_count()):
        yield _check_card(device)


def _check_card(device: int) -> Finding:
    import torch

    properties = torch.cuda.get_device_properties(device)
    name = f"GPU {device}"
    card = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    capability = f"{properties.major}{properties.minor}"
    try:
        ones = torch.ones(64, 64, device=f"cuda:{device}")
        right = bool(((ones @ ones) == 64).all())
    except RuntimeError as error:
        return fails(
            name,
            f"{card}, compute capability {capability}: {str(error).splitlines()[0][:120]}",
            f"torch is built for {', '.join(torch.cuda.get_arch_list())}; install a build for this "
            "card, or stop whatever is using its memory.",
        )
    if not right:
        return fails(name, f"{card}: a matrix product of ones is wrong", "have the card checked.")
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return ok(name, f"{card}: computes correctly; no bf16, so training runs in fp16")
    return ok(name, f"{card}: computes correctly, with bf16")


def check_compiler() -> Iterator[Finding]:
    """Check what torch.compile needs on a GPU: a working C compiler and Python's headers."""
    import torch

    from mammo_pd.training.devices import what_hinders_compiling

    name = "compiler"
    if not torch.cuda.is_available():
        yield ok(name, "not needed without a GPU")
        return
    hindrance = what_hinders_compiling()
    if hindrance is not None:
        yield warning(
            name, hindrance[0] + ": training runs uncompiled, which is slower", hindrance[1]
        )
        return
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        yield warning(
            name,
            "Python.h is missing; Triton compiles against it",
            "install Python's headers (python3-dev); without them training runs uncompiled, which "
            "is slower.",
        )
        return
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or "cc"
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "a"
        compiled = subprocess.run(
            [compiler, "-x", "c", "-", "-o", str(program)],
            input="int main(void) { return 0; }",
            capture_output=True,
            text=True,
        )
        works = compiled.returncode == 0 and subprocess.run([program]).returncode == 0
    if works:
        yield ok(name, f"{compiler} compiles programs that run")
    else:
        yield warning(
            name,
            f"{compiler} cannot compile a program ({compiled.stderr.strip()[:120]})",
            "install gcc with the C library's headers; without them training runs uncompiled, "
            "which is slower.",
        )


def check_memory() -> Iterator[Finding]:
    """Check cores, memory, shared memory, and the limit on open files."""
    cores, (available, total) = available_cores(), _memory()
    found = f"{counted(cores, 'core')}, {available / 1e9:.1f} of {total / 1e9:.1f} GB free"
    if available < cores * _MEMORY_OF_A_WORKER:
        fitting = max(1, int(available / _MEMORY_OF_A_WORKER))
        yield warning(
            "memory",
            f"{found}: too little for one worker per core",
            f"free some memory, or run preprocess with --workers {fitting}.",
        )
    else:
        yield ok("memory", found)
    yield _check_shared_memory()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _OPEN_FILES:
        yield warning(
            "open files", f"at most {soft}", f"ulimit -n {min(hard, 4096)} before the command."
        )
    else:
        yield ok("open files", f"at most {soft}")


def _memory() -> tuple[int, int]:
    """Bytes of memory that are free, and in all: the machine's, or a container's or job's limit.

    Source: the kernel's documentation of cgroups, version 1 (memory.rst) and 2 (cgroup-v2.rst).
    """
    import psutil  # type: ignore[import-untyped]

    memory = psutil.virtual_memory()
    available, total = memory.available, memory.total
    for line in _OWN_GROUPS.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = _GROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = _GROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # A limit on a group holds for those within it. In a container the path may be the host's,
        # and the base the container's own group.
        group = base / path.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(base):
                break
            try:
                limit, used = (int((folder / name).read_text()) for name in names[:2])
                stat = dict(map(str.split, (folder / "memory.stat").read_text().splitlines()))
            except (OSError, ValueError):  # no limit, which version 2 calls "max"
                continue
            # Cached files make room for whatever asks for it.
            free = limit - used + int(stat.get(names[2], 0))
            available, total = min(available, max(free, 0)), min(total, limit)
    return available, total


def _check_shared_memory() -> Finding:
    import torch

    name, folder = "shared memory", Path("/dev/shm")
    remedy = "in Docker: --shm-size 1g; in Kubernetes: an emptyDir of medium Memory at /dev/shm."
    try:
        # Semaphores of worker processes live there.
        get_context("forkserver").Lock()
    except OSError as error:
        return fails(name, f"semaphores cannot be created ({error.strerror})", remedy)
    if not folder.is_dir():
        return ok(name, "no /dev/shm, but semaphores work")
    free = shutil.disk_usage(folder).free
    found = f"{free / 2**20:.0f} MiB free"
    if free < _LEAST_SHARED_MEMORY:
        return fails(name, found, remedy)
    if torch.cuda.device_count() > 1 and free < _SHARED_MEMORY_OF_GPUS:
        return fails(name, f"{found}, too little for several GPUs", remedy)
    return ok(name, found)


def _driver() -> tuple[str, tuple[int, int], list[str]] | None:
    """The driver's version, the newest CUDA that it runs, and its cards; None without a driver."""
    import pynvml  # type: ignore[import-untyped]

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        newest = int(pynvml.nvmlSystemGetCudaDriverVersion())
        cards = [
            _text(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index)))
            for index in range(pynvml.nvmlDeviceGetCount())
        ]
        version = _text(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()
    return version, (newest // 1000, newest % 1000 // 10), cards


def _text(given: str | bytes) -> str:
    return given.decode() if isinstance(given, bytes) else given


def _has_nvidia_device() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))
