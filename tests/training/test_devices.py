import logging
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.accelerators import cuda
from lightning.fabric.utilities.rank_zero import rank_zero_info

from mammo_pd.config import DeviceSettings, RunConfig
from mammo_pd.training.devices import (
    compiled_for_any_size,
    deterministic_kernels,
    make_fabric,
    seed_generators,
    should_compile,
)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A GPU and a compiler; the folder of what is compiled, which does not exist yet."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CC", "gcc")
    cache = tmp_path / "cache" / "torchinductor"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
    return cache


def test_on_a_gpu_training_is_compiled(on_gpu: Path) -> None:
    said: list[str] = []
    assert should_compile(RunConfig(), said.append)
    assert not said


def test_without_a_compiler_it_is_not_and_says_so(
    on_gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    said: list[str] = []
    assert not should_compile(RunConfig(), said.append)
    assert "no C compiler" in said[0]


def test_where_nothing_can_be_executed_it_is_not_and_says_so(
    on_gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in /tmp of docker run --tmpfs /tmp, where torch.compile would end the training."""
    asked: list[Path] = []

    def statvfs(folder: Path) -> SimpleNamespace:
        asked.append(folder)
        return SimpleNamespace(f_flag=os.ST_NOEXEC | os.ST_NOSUID)

    monkeypatch.setattr(os, "statvfs", statvfs)
    said: list[str] = []
    assert not should_compile(RunConfig(), said.append)
    assert said[0].startswith(f"warning: compiled code cannot be executed in {on_gpu}")
    assert "--tmpfs /tmp:exec" in said[0]
    # The nearest folder that exists.
    assert asked == [on_gpu.parents[1]]
    insisted = RunConfig().replace(device=RunConfig().device.replace(compile=True))
    assert should_compile(insisted, said.append)


DETERMINISTIC = RunConfig().replace(device=DeviceSettings(deterministic=True))


def settings_of_torch() -> tuple[object, ...]:
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor

    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        dynamo.automatic_dynamic_shapes,
        inductor.deterministic,
    )


@pytest.fixture
def _as_torch_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # So that it is put back, too.
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_as_torch_was")
def test_deterministic_kernels_end_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings_of_torch()
    with deterministic_kernels(RunConfig()):
        assert settings_of_torch() == before
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with pytest.raises(ZeroDivisionError), deterministic_kernels(DETERMINISTIC):
        assert settings_of_torch() == (True, False, False, False, True)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        _ = 1 / 0
    assert settings_of_torch() == before
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    # What a user's own program asks for stays, and so does a workspace of their own.
    torch.use_deterministic_algorithms(True, warn_only=True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic_kernels(RunConfig()):
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    with deterministic_kernels(DETERMINISTIC):
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()


@pytest.mark.usefixtures("_as_torch_was")
def test_backward_passes_are_compiled_as_deterministic_ones_too() -> None:
    """A GPU's run in a thread of torch's own, where no setting of this one holds."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd
    from torch._inductor import config as inductor

    found: list[bool] = []

    def keep(module: torch.fx.GraphModule, _: object) -> object:
        found.append(inductor.deterministic)
        return make_boxed_func(module.forward)

    torch.compiler.reset()
    layer = torch.nn.Linear(4, 4)
    layer.compile(backend=aot_autograd(fw_compiler=keep, bw_compiler=keep))
    with deterministic_kernels(DETERMINISTIC):
        total = layer(torch.ones(3, 4)).sum()
        backward = threading.Thread(target=total.backward)
        backward.start()
        backward.join()
    assert layer.weight.grad is not None
    assert found == [True, True]


class Compiled:
    """What is compiled of a block: the sizes of each graph's input, in place of machine code."""

    def __init__(self) -> None:
        torch.compiler.reset()
        self.sizes: list[tuple[int | torch.SymInt, ...]] = []
        self.block = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU())
        self.block.compile(backend=self.keep)

    def keep(self, module: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        (given,) = (
            value.shape
            for node in module.graph.nodes
            if getattr(value := node.meta.get("example_value"), "ndim", 0) == 3
            and node.op == "placeholder"
        )
        self.sizes.append(tuple(given))
        return module.forward

    def run(self, *sizes: tuple[int, int]) -> None:
        for images, tokens in sizes:
            self.block(torch.zeros(images, tokens, 4))

    @property
    def concrete(self) -> list[tuple[int | torch.SymInt, ...]]:
        """Sizes that code was made for alone."""
        return [size for size in self.sizes if all(isinstance(number, int) for number in size)]


@pytest.mark.usefixtures("_as_torch_was")
def test_which_code_runs_does_not_depend_on_what_ran_before() -> None:
    """Code for any size adds up in another order than code for one."""
    with deterministic_kernels(DETERMINISTIC):
        compiled = Compiled()
        compiled.run((8, 5), (3, 5), (8, 17), (8, 5), (3, 5))
        assert compiled.sizes == compiled.concrete == [(8, 5, 4), (3, 5, 4), (8, 17, 4)]
        with compiled_for_any_size(wanted=True):
            compiled = Compiled()
            compiled.run((8, 5), (3, 5), (8, 17), (8, 6))
            assert len(compiled.sizes) == 1
            assert not compiled.concrete
        with compiled_for_any_size(wanted=False):
            compiled = Compiled()
            compiled.run((8, 5))
            assert compiled.concrete
    # The oracle: otherwise it does.
    compiled = Compiled()
    compiled.run((8, 5), (3, 5), (2, 5))
    assert len(compiled.sizes) == 2
    assert len(compiled.concrete) == 1


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_generators_are_seeded_as_torch_does_it(device: str, seed: int) -> None:
    drawn = []
    for seed_them in (torch.manual_seed, lambda seed: seed_generators(seed, torch.device(device))):
        seed_them(seed)
        drawn.append((torch.rand(5), torch.rand(5, device=device).cpu()))
    assert all(torch.equal(*pair) for pair in zip(*drawn, strict=True))


def test_lightning_says_nothing_that_is_told_or_that_no_command_can_heed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_fabric(RunConfig())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(cuda, "_is_ampere_or_later", lambda _: True)
    asked = []
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: asked.append(0) or "highest")
    with caplog.at_level(logging.INFO), warnings.catch_warnings(record=True) as warned:
        cuda._check_cuda_matmul_precision.__wrapped__(torch.device("cpu"))
        make_fabric(
            RunConfig().replace(device=DeviceSettings(accelerator="cpu", precision="bf16-mixed"))
        )
        rank_zero_info("All distributed processes registered.")
        # As torch 2.11 words it, when it compiles.
        warnings.warn("TensorFloat32 tensor cores are available but not enabled.", stacklevel=1)
    assert asked
    assert caplog.messages == ["All distributed processes registered."]
    assert not warned
