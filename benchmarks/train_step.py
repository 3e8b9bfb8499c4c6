"""Measure the training step on this machine's GPU: timm as it is, and mammo-pd, side by side.

One run, one machine, one precision (bf16 autocast), fused AdamW, random pixels. Prints a table and
writes it to a file if one is named:

    python benchmarks/train_step.py [benchmarks/results/train_step_GPU_DATE.md]

A step here is everything from pixels on the device to the optimiser's step. timm's starts from the
augmented canvas in bf16, as a loader would hand it over; ours starts from the stored uint16 image
and holds the draw and the augmentation as well.
"""

import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from mammo_pd.models.augment import AugmentSettings, RaggedImages
from mammo_pd.models.patch_dropout import image_key
from mammo_pd.models.sampler import PatchSampler
from mammo_pd.models.vit import build_vit

WARM_UP, STEPS = 5, 12


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    model: str
    canvas: tuple[int, int]
    keep_rate: float
    batch: int
    who: str


VIT_S, VIT_B = "vit_small_patch16_224", "vit_base_patch16_224"
CASES = [
    Case(VIT_S, (1024, 1024), 1.0, 32, "timm, eager"),
    Case(VIT_S, (1024, 1024), 0.25, 128, "timm patch_drop_rate, eager"),
    Case(VIT_S, (1024, 1024), 0.25, 128, "mammo-pd, eager"),
    Case(VIT_S, (1024, 1024), 0.25, 128, "mammo-pd, compiled"),
    Case(VIT_B, (1024, 1024), 0.25, 64, "timm patch_drop_rate, eager"),
    Case(VIT_B, (1024, 1024), 0.25, 64, "mammo-pd, compiled"),
    Case(VIT_S, (3328, 2560), 1.0, 2, "timm, eager"),
    Case(VIT_S, (3328, 2560), 0.25, 8, "timm patch_drop_rate, eager"),
    Case(VIT_S, (3328, 2560), 0.25, 8, "mammo-pd, compiled"),
]


def forward_flops(case: Case) -> float:
    """Twice the multiply-accumulates of one image, as in the paper's own count."""
    width, depth = (384, 12) if case.model == VIT_S else (768, 12)
    patches = (case.canvas[0] // 16) * (case.canvas[1] // 16)
    tokens = max(1, int(patches * case.keep_rate)) + 1
    blocks = depth * (12 * tokens * width**2 + 2 * tokens**2 * width)
    return 2.0 * (blocks + tokens * 256 * width)


def step_of(case: Case) -> Callable[[], None]:
    """Build the case's training step."""
    torch.manual_seed(0)
    if case.who.startswith("timm"):
        model = timm.create_model(
            case.model,
            img_size=case.canvas,
            in_chans=1,
            num_classes=1,
            patch_drop_rate=1 - case.keep_rate,
        ).cuda()
        canvas = torch.randn(case.batch, 1, *case.canvas, device="cuda", dtype=torch.bfloat16)

        def logits() -> Tensor:
            return model(canvas)  # type: ignore[no-any-return]

    else:
        model = build_vit(case.model, case.canvas).cuda()
        compiled = case.who.endswith("compiled")
        sampler = PatchSampler(case.canvas, 16, compiled=compiled)
        size = case.canvas[0] * case.canvas[1]
        images = RaggedImages(
            torch.randint(-32768, 32768, (case.batch * size,), dtype=torch.int16, device="cuda"),
            torch.arange(case.batch, device="cuda") * size,
            torch.full((case.batch,), case.canvas[0], device="cuda"),
            torch.full((case.batch,), case.canvas[1], device="cuda"),
        )
        keys = torch.tensor([image_key(0, 0, str(i)) for i in range(case.batch)], device="cuda")
        augment = AugmentSettings()
        if compiled:
            model.compile()

        def logits() -> Tensor:
            return model(*sampler.for_training(images, keys, case.keep_rate, augment))  # type: ignore[no-any-return]

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    labels = (torch.arange(case.batch, device="cuda") % 2).float()

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            scored = logits()
        F.binary_cross_entropy_with_logits(scored[:, 0].float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def seconds_of(step: Callable[[], None], steps: int = STEPS) -> float:
    """Mean seconds of a step, after warming up."""
    for _ in range(WARM_UP):
        step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def matmul_ceiling() -> float:
    """FLOP/s of a large bf16 product on random data, here and now."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / seconds_of(lambda: torch.mm(a, b))


def main() -> None:
    """Run all cases and print the table."""
    ceiling = matmul_ceiling()
    lines = [
        f"# Training step, {date.today()}",
        "",
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, timm {timm.__version__}, "
        f"Python {platform.python_version()}, bf16 autocast, fused AdamW; measured matmul ceiling "
        f"{ceiling / 1e12:.0f} TFLOP/s.",
        "",
        "| model | canvas | keep | batch | who | images/s | peak GiB | GiB per image | ceiling |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for case in CASES:
        torch.compiler.reset()
        torch.cuda.empty_cache()
        step = step_of(case)
        seconds_of(step, 1)
        torch.cuda.reset_peak_memory_stats()
        rate = case.batch / seconds_of(step)
        peak = torch.cuda.max_memory_allocated() / 2**30
        share = 3 * forward_flops(case) * rate / ceiling
        line = (
            f"| {case.model.removesuffix('_224')} | {case.canvas[0]}x{case.canvas[1]} "
            f"| {case.keep_rate} | {case.batch} | {case.who} | {rate:.0f} | {peak:.1f} "
            f"| {peak / case.batch:.3f} | {share:.2f} |"
        )
        lines.append(line)
        print(line, flush=True)
        del step
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
