"""Weights that cannot be used end in one sentence that names them; none is loaded in part."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from mammo_pd.backbones.build import build_backbone
from mammo_pd.backbones.weights.source import find_weights
from mammo_pd.errors import InputError

TINY = "vit_tiny_patch16_224"
IMG_SIZE = (96, 64)


def state_of(name: str = TINY, **options: Any) -> dict[str, Tensor]:
    # Names and shapes are what is refused; drawing a large model's weights takes a second.
    with torch.device("meta"):
        state = timm.create_model(name, **options).state_dict()
    return {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in state.items()}


def write_text(file: Path) -> None:
    file.write_text("not weights at all\n" * 50)


def write_nothing(file: Path) -> None:
    file.touch()


def write_half(file: Path) -> None:
    save_file(state_of(), file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def write_half_a_pth(file: Path) -> None:
    torch.save(state_of(), file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def write_header_that_lies(file: Path) -> None:
    file.write_bytes((10**12).to_bytes(8, "little") + b'{"a":{}}')


def write_whole_model(file: Path) -> None:
    torch.save(timm.create_model(TINY), file)


def write_tensor(file: Path) -> None:
    torch.save(torch.zeros(3), file)


def write_list(file: Path) -> None:
    torch.save([torch.zeros(3)], file)


def write_numbered(file: Path) -> None:
    torch.save({0: torch.zeros(3)}, file)


def write_torchscript(file: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), file)


def write_npz(file: Path) -> None:
    with file.open("wb") as opened:
        np.savez(opened, weights=np.zeros(3))


UNREADABLE = {
    "text": (write_text, "w.pth", "without running code"),
    "text, called safetensors": (write_text, "w.safetensors", "truncated, damaged"),
    "empty": (write_nothing, "w.pth", "without running code"),
    "cut short": (write_half, "w.safetensors", "truncated, damaged"),
    "cut short, PyTorch's": (write_half_a_pth, "w.pth", "without running code"),
    "header that lies": (write_header_that_lies, "w.safetensors", "truncated, damaged"),
    "whole pickled model": (write_whole_model, "w.pth", "without running code"),
    "one tensor": (write_tensor, "w.pth", "without running code"),
    "a list": (write_list, "w.pth", "without running code"),
    "numbers for names": (write_numbered, "w.pth", "without running code"),
    "TorchScript": (write_torchscript, "w.pt", "without running code"),
    "another npz": (write_npz, "w.npz", "as Google writes them"),
    "text, called npz": (write_text, "w.npz", "as Google writes them"),
}


@pytest.mark.parametrize(("write", "name", "message"), UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*TorchScript")
def test_files_that_cannot_be_read_are_named(
    write: Callable[[Path], None], name: str, message: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    refuse(tmp_path / name, f"{re.escape(name)}.*{message}")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_of_anything_is_refused_whatever_it_begins_with(tmp_path: Path) -> None:
    """Each letter is some instruction to the unpickler, which fails at it in its own way."""
    file = tmp_path / "notes.txt"
    for first in range(256):
        file.write_bytes(bytes([first]) + b"unk")
        with pytest.raises(InputError, match=r"notes\.txt cannot be read as safetensors or as"):
            find_weights(str(file), TINY)


def refuse(weights: Path | str, message: str, model: str = TINY) -> None:
    with pytest.raises(InputError, match=message) as raised:
        build_backbone(model, IMG_SIZE, weights=str(weights))
    text = str(raised.value)
    assert "\n" not in text
    assert len(text) < 600


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "ran",)

    for content in (Payload(), {"model": Payload()}, state_of() | {"args": Payload()}):
        torch.save(content, tmp_path / "w.pth")
        refuse(tmp_path / "w.pth", "without running code")
    assert not (tmp_path / "ran").exists()


OTHERS = [
    ("resnet18", TINY, "no vision transformer that timm knows.*bn1"),
    ("convnext_atto", TINY, "no vision transformer that timm knows"),
    ("swin_tiny_patch4_window7_224", TINY, "not those of a plain vision transformer"),
    (
        "vit_small_patch32_224",
        TINY,
        f"look like vit_small_patch32: width 384, depth 12; you asked for {TINY}: "
        "width 192, depth 12",
    ),
    (TINY, "vit_small_patch16_224", "look like vit_tiny_patch16: width 192"),
    ("vit_xsmall_patch16_clip_224", "vit_medium_patch16_clip_224", "patch size 16: width 256"),
    ("vit_small_patch16_dinov3", "vit_small_patch16_224", "they have no pos_embed"),
    ("vit_small_patch16_224", "vit_small_patch16_dinov3", "blocks.0.attn.qkv.bias"),
    ("vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3", "blocks.0.mlp.fc1"),
]


@pytest.mark.parametrize(("source", "model", "message"), OTHERS)
def test_another_architecture_is_refused_by_name(
    source: str, model: str, message: str, tmp_path: Path
) -> None:
    save_file(state_of(source), tmp_path / "w.safetensors")
    refuse(tmp_path / "w.safetensors", f"w.safetensors.*{message}", model)


def without_a_block(state: dict[str, Tensor]) -> None:
    for key in [key for key in state if key.startswith("blocks.5.")]:
        del state[key]


def without_patches(state: dict[str, Tensor]) -> None:
    del state["patch_embed.proj.weight"]


def with_nan(state: dict[str, Tensor]) -> None:
    state["blocks.3.mlp.fc1.weight"][0, 0] = float("nan")


def with_two_channels(state: dict[str, Tensor]) -> None:
    state["patch_embed.proj.weight"] = torch.zeros(192, 2, 16, 16)


def with_other_hidden_width(state: dict[str, Tensor]) -> None:
    state["blocks.0.mlp.fc1.weight"] = torch.zeros(700, 192)


def with_norms_of_queries(state: dict[str, Tensor]) -> None:
    state["blocks.0.attn.q_norm.weight"] = torch.ones(64)


def with_norm_before_the_blocks(state: dict[str, Tensor]) -> None:
    state["norm_pre.weight"] = torch.ones(192)


def with_odd_positions(state: dict[str, Tensor]) -> None:
    state["pos_embed"] = torch.zeros(1, 1 + 15, 192)[:, :13]


BROKEN = {
    "a block is missing": (without_a_block, r"they have no blocks\.5\."),
    "no patch embedding": (without_patches, "no vision transformer"),
    "NaN": (with_nan, r"not finite, in 1 tensor \(blocks\.3\.mlp\.fc1\.weight\)"),
    "two channels": (with_two_channels, "take 2 channels"),
    "hidden width": (with_other_hidden_width, "700x192 there and 768x192"),
    "norms of queries": (with_norms_of_queries, "q_norm"),
    "norm before the blocks": (with_norm_before_the_blocks, "they have norm_pre"),
    "positions of no square": (with_odd_positions, "13 rows"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_weights_that_would_be_loaded_in_part_are_refused(
    change: Callable[[dict[str, Tensor]], None], message: str, tmp_path: Path
) -> None:
    state = state_of()
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    refuse(tmp_path / "w.safetensors", message)


def test_biases_that_timm_would_lose_are_refused(tmp_path: Path) -> None:
    state = state_of("vit_small_patch16_dinov3", img_size=96)
    state["storage_tokens"] = state.pop("reg_token")
    bias = {"blocks.0.attn.qkv.bias": torch.ones(3 * 384)}
    torch.save(state | bias, tmp_path / "w.pth")
    refuse(tmp_path / "w.pth", "vit_small_patch16_dinov3_qkvb", "vit_small_patch16_dinov3")


def test_what_is_no_file_and_no_name_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "none.safetensors", "does not exist; give a local file")
    refuse(tmp_path, "is a folder; give a local file")
    refuse("no_such_model", "does not exist")
    refuse("timm/vit_tiny_patch16_224", "does not exist.*hf-hub:OWNER/NAME")


@pytest.mark.parametrize(
    "weights", ["timm", "hf-hub:timm/vit_small_patch14_dinov2.lvd142m", f"{TINY}.augreg_in21k"]
)
def test_no_network_is_one_sentence(
    weights: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refuse(weights, "cannot be fetched.*download them elsewhere and give the file: --weights FILE")


def test_tag_that_timm_does_not_know_is_refused(tmp_path: Path) -> None:
    save_file(state_of(), tmp_path / "w.safetensors")
    refuse(f"{TINY}.nonsense", "cannot be fetched.*nonsense")
    refuse(tmp_path / "w.safetensors", f"no model '{TINY}.nonsense'", f"{TINY}.nonsense")
