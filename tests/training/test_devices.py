import logging
import os
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.accelerators import cuda
from lightning.fabric.utilities.rank_zero import rank_zero_info

from mammo_pd.config import DeviceSettings, RunConfig
from mammo_pd.training.devices import make_fabric, seed_generators, should_compile


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
