"""Measure training steps whose blocks multiply in FP8 (torchao), beside bf16 in the same run.

    python benchmarks/fp8.py [OUT.md] [--models vit_base_patch16_224 vit_large_patch16_224]
    python benchmarks/fp8.py --small    # the same path at a tiny size; on a CPU FP8 is emulated

A trial: nothing of it is in the package. torchao is needed. All linear layers of the blocks but the
last, of which the class token alone is computed, take FP8 with dynamic scales: one for each tensor,
or one for each row. Beside the speed stands how far a gradient is from that in float64. OUT is
written anew after each row.
"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
from torch import nn
from torchao.float8 import Float8LinearConfig, convert_to_float8_training
from train_step import gradient

from mammo_pd.backbones.base import Backbone
from mammo_pd.perf.measure import Bench
from mammo_pd.perf.rows import BenchRow, as_markdown

KEEP = 0.25
BATCHES = {"vit_base_patch16_224": 64, "vit_large_patch16_224": 32}
RECIPES = ("tensorwise", "rowwise")


def to_fp8(backbone: Backbone, recipe: str) -> None:
    """Let the linear layers of all blocks but the last multiply in FP8."""
    last = f"{len(backbone.timm_model.blocks) - 1}."
    config = Float8LinearConfig.from_recipe_name(recipe)
    if not torch.cuda.is_available():
        config = replace(config, emulate=True)

    def is_meant(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and not name.startswith(last)

    convert_to_float8_training(backbone.timm_model.blocks, module_filter_fn=is_meant, config=config)


def errors(name: str, img_size: tuple[int, int], device: torch.device) -> list[str]:
    """Lines of a table: how far gradients are from that in float64, relative to its norm."""
    exact = gradient(name, img_size, device, exact=True)
    lines = []
    for what in ("bf16", *RECIPES):

        def change(backbone: Backbone, what: str = what) -> None:
            if what != "bf16":
                to_fp8(backbone, what)

        found = gradient(name, img_size, device, exact=False, change=change)
        apart = float((found - exact).norm() / exact.norm())
        label = what if what == "bf16" else f"FP8, {what}"
        lines.append(f"| {name} | {label} | {apart:.4f} |")
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--models", nargs="+", default=list(BATCHES))
    options = parser.parse_args()
    img_size, models, steps = (1024, 1024), options.models, 20
    if options.small:
        img_size, models, steps = (96, 64), ["vit_tiny_patch16_224"], 2
    rows: list[BenchRow] = []
    apart: list[str] = []
    failed: list[str] = []
    with Bench(steps=steps) as machine:
        summary = machine.describe_machine()["summary"]

        def page() -> str:
            return "\n".join(
                [
                    f"# Blocks in FP8, {date.today()}",
                    "",
                    f"{summary} {len(os.sched_getaffinity(0))} cores.",
                    "",
                    as_markdown(rows),
                    "",
                    "| model | products in | gradient's error relative to float64 |",
                    "|---|---|---|",
                    *apart,
                    "",
                    *failed,
                ]
            )

        def measure(name: str, recipe: str | None) -> None:
            def change(backbone: Backbone) -> None:
                if recipe is not None:
                    to_fp8(backbone, recipe)

            row = machine.ours(
                name,
                img_size,
                KEEP,
                BATCHES.get(name, 4),
                compiled=machine.on_gpu,
                end_to_end=False,
                change=change,
            )
            who = f"{row.who}, " + ("bf16" if recipe is None else f"FP8 {recipe}")
            rows.append(replace(row, who=who))
            print(as_markdown(rows[-1:]).splitlines()[2], flush=True)

        work: list[tuple[str, Callable[[], object]]] = []
        for name in models:
            for recipe in (None, *RECIPES):
                what = f"{name}, {recipe}"
                work.append((what, lambda name=name, recipe=recipe: measure(name, recipe)))
        for name in models:
            what = f"gradients of {name}"
            work.append(
                (what, lambda name=name: apart.extend(errors(name, img_size, machine.device)))
            )
        for what, do in work:
            try:
                do()
            # What a kernel refuses must not cost the rows of the others.
            except (RuntimeError, AssertionError, TypeError, AttributeError) as error:
                failed.append(f"{what} failed: {type(error).__name__}: {str(error)[:500]}")
                print(failed[-1], file=sys.stderr, flush=True)
            if options.out is not None:
                options.out.write_text(page())
        print(page())
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
