"""Two trials beside the tissue draw: ragged draws, and draws that favour what an early exit finds.

    python benchmarks/ideas_draws.py check [OUT.md]
    python benchmarks/ideas_draws.py speed [OUT.md] --store STORE [--rows tissue varlen ...]
    python benchmarks/ideas_draws.py train STORE RECIPES.json OUT [--at-once 14] [--minutes 8]
    python benchmarks/ideas_draws.py speed --small    # the same path, tiny; on a CPU too

`check` tells how far each attention over a row of images is from a mask over all of its pairs, in
float64. `speed` measures training steps of equal numbers of tokens in one process; OUT is written
anew after each row. `train` is that of `recipes.py`, whose table it feeds: recipes choose a trial
by `training.objective` (`ragged_tissue`, `salient_draw`). What the two are: `ragged.py` and
`early_exit.py`.
"""

import argparse
import os
import sys
from dataclasses import replace
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import recipes
import torch
from early_exit import SalientDraw
from gpus import see_only
from ragged import Attention, Ragged, RaggedTissue
from torch import Tensor
from torch.nn import functional as F

from mammo_pd.backbones.build import build_backbone
from mammo_pd.config import RunConfig
from mammo_pd.perf.measure import Bench
from mammo_pd.perf.rows import BenchRow, as_markdown
from mammo_pd.terms import Draw
from mammo_pd.training.objectives import OBJECTIVES, build_objective

# Rows of `speed`, by the objective that each trains; the first is what the others are beside.
ROWS = {
    "tissue": "binary_label",
    "varlen": "ragged_varlen",
    "salient": "salient_draw",
    "flex": "ragged_flex",
    "cudnn": "ragged_cudnn",
}
CASES = (
    ("vit_small_patch14_dinov2", (518, 392), 64),
    ("vit_small_patch16_224", (1024, 1024), 128),
)
# The tokens of a batch are whole tiles of 128, for FlexAttention.
SMALL_CASES = (("vit_tiny_patch16_224", (96, 64), 128),)
_KEEP = 0.25
# What a kernel, or a version of torch that lacks it, may raise.
_REFUSALS = (RuntimeError, AssertionError, TypeError, AttributeError)


def register() -> None:
    """Let this process train the trials by name."""
    OBJECTIVES["ragged_tissue"] = RaggedTissue
    OBJECTIVES["salient_draw"] = SalientDraw
    for kind in Attention:
        OBJECTIVES[f"ragged_{kind}"] = type(
            f"Ragged{kind.title()}", (RaggedTissue,), {"attention": kind}
        )


# ---- AUC


def _work(gpu: int | None, *others: Any) -> None:
    """A process of `recipes.train` that knows the trials."""
    if gpu is not None:
        see_only(gpu)
        gpu = 0
    register()
    recipes._work(gpu, *others)


def train(**given: Any) -> None:
    """Train and score, as `recipes.train` does."""
    theirs, recipes._work = recipes._work, _work
    try:
        recipes.train(**given)
    finally:
        recipes._work = theirs


# ---- speed


def speed(
    out: Path | None, *, store: Path | None, chosen: list[str], cases: list[int], small: bool
) -> bool:
    """Measure steps, and say whether all rows were."""
    register()
    found: dict[tuple[str, tuple[int, int]], BenchRow] = {}
    failed: list[str] = []
    with Bench(steps=2 if small else 20, store=store) as machine:
        head = [
            f"# Ragged draws and draws by an early exit: training steps, {date.today()}",
            "",
            f"{machine.describe_machine()['summary']} {len(os.sched_getaffinity(0))} cores.",
            "",
        ]

        def page() -> str:
            lines = [*head, as_markdown(list(found.values())), ""]
            lines += ["| | images/s over equal K's |", "|---|---|"]
            for (kind, img_size), row in found.items():
                equal = found.get(("tissue", img_size))
                if equal is not None:
                    share = row.images_per_second / equal.images_per_second
                    lines.append(f"| {kind}, {img_size[0]}x{img_size[1]} | {share:.3f} |")
            return "\n".join([*lines, "", *failed, ""])

        sizes = SMALL_CASES if small else [CASES[case] for case in cases]
        # What cuDNN does with a row is not documented: if it takes the process with it, be it last.
        order = sorted(product(sizes, chosen), key=lambda pair: pair[1] == "cudnn")
        for (name, img_size, batch), kind in order:
            objective, label = ROWS[kind], kind
            if objective.startswith("ragged") and not machine.on_gpu:
                objective, label = "ragged_masked", f"masked in place of {kind}"
            machine._objective = build_objective(RunConfig().training.replace(objective=objective))
            try:
                row = machine.ours(
                    name,
                    img_size,
                    _KEEP,
                    batch,
                    draw=Draw.TISSUE,
                    compiled=machine.on_gpu,
                    end_to_end=False,
                )
            # What a kernel refuses must not cost the rows of the others.
            except _REFUSALS as error:
                told = f"{type(error).__name__}: {str(error)[:500]}"
                failed.append(f"{kind} at {img_size[0]}x{img_size[1]} failed: {told}")
                print(failed[-1], file=sys.stderr, flush=True)
            else:
                found[kind, img_size] = replace(row, who=f"{row.who}, {label}")
                print(as_markdown([found[kind, img_size]]).splitlines()[2], flush=True)
            if out is not None:
                out.write_text(page())
        print(page())
    return not failed


# ---- that attention is what it should be


def output_and_gradient(
    attention: Attention | None, *, exact: bool, small: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """A model's outputs on a ragged batch of noise, and the gradient of its weights, in float64.

    Args:
        attention: of the row; None for each image by itself, in the model as it is.
        exact: in float64 instead of bf16-mixed.
        small: a smaller model.
        device: where.
    """
    torch.manual_seed(0)
    name = "vit_tiny_patch16_224" if small else "vit_small_patch14_dinov2"
    backbone = build_backbone(name, (128, 128) if small else (518, 392), num_outputs=1)
    dtype = torch.float64 if exact else torch.float32
    model = Ragged(backbone, attention or Attention.MASKED).to(device, dtype).train()
    if device.type == "cuda" and not exact:
        model.compile_blocks()
    # Unequal, and one of them nothing but its class token; whole tiles of tokens in all.
    counts = [0, 1, 20, 34, 9, 58] if small else [0, 1, 200, 381, 101, 335]
    generator = torch.Generator().manual_seed(1)
    patches = torch.randn(sum(counts), backbone.patch_size**2, generator=generator)
    patches = patches.to(device, dtype)
    positions = [torch.randperm(backbone.num_tokens, generator=generator)[:k] for k in counts]
    where = torch.cat(positions).to(device)
    keys = torch.arange(len(counts), device=device)
    images = torch.repeat_interleave(torch.tensor(counts)).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=not exact):
        if attention is None:
            parts = zip(patches.split(counts), where.split(counts), strict=True)
            outputs = torch.cat([backbone(one[None], at[None], keys[:1]) for one, at in parts])
        else:
            outputs = model(patches, where, images, torch.tensor(counts, device=device), keys)
    targets = torch.arange(len(counts), device=device)[:, None].to(outputs) % 2
    F.binary_cross_entropy_with_logits(outputs.to(dtype), targets.to(dtype)).backward()
    learnt = [weight.grad for weight in backbone.parameters() if weight.grad is not None]
    return outputs.detach().double(), torch.cat([one.flatten().double() for one in learnt])


def check(out: Path | None, *, small: bool) -> None:
    """Print how far each attention is from each image by itself, in float64."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    true = output_and_gradient(None, exact=True, small=small, device=device)
    lines = [
        "| attention | output's error, relative | gradient's error, relative |",
        "|---|---|---|",
    ]

    def add(label: str, attention: Attention | None, *, exact: bool) -> None:
        try:
            given = output_and_gradient(attention, exact=exact, small=small, device=device)
        except _REFUSALS as error:
            lines.append(f"| {label} | failed: {type(error).__name__}: {str(error)[:300]} | |")
        else:
            pairs = zip(given, true, strict=True)
            apart = [float((one - other).norm() / other.norm()) for one, other in pairs]
            lines.append(f"| {label} | {apart[0]:.1e} | {apart[1]:.1e} |")
        print(lines[-1], flush=True)
        if out is not None:
            out.write_text("\n".join(lines) + "\n")

    add("masked, float64", Attention.MASKED, exact=True)
    add("each image by itself, bf16", None, exact=False)
    on_gpu = [Attention.VARLEN, Attention.FLEX, Attention.CUDNN] if device.type == "cuda" else []
    for kind in [Attention.MASKED, *on_gpu]:
        add(f"{kind}, bf16", kind, exact=False)


def main() -> None:
    """Do what the command says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    of_check, of_speed = commands.add_parser("check"), commands.add_parser("speed")
    for command in (of_check, of_speed):
        command.add_argument("out", nargs="?", type=Path)
        command.add_argument("--small", action="store_true")
    of_speed.add_argument("--store", type=Path)
    of_speed.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), dest="chosen")
    of_speed.add_argument("--cases", nargs="+", type=int, default=list(range(len(CASES))))
    of_train = commands.add_parser("train")
    for name in ("store", "recipes", "out"):
        of_train.add_argument(name, type=Path)
    of_train.add_argument("--split", default="five")
    of_train.add_argument("--at-once", type=int, default=1)
    of_train.add_argument("--minutes", type=float, default=600.0)
    given = vars(parser.parse_args())
    command = given.pop("command")
    if command == "train":
        train(**given)
    elif command == "check":
        check(**given)
    elif not speed(**given):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
