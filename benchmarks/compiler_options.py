"""Measure whether options of the compiler, or another GELU, make our step faster, side by side.

    python benchmarks/compiler_options.py [OUT.md]
    python benchmarks/compiler_options.py --small    # the same path at a tiny size, on a CPU too

A trial: nothing of it is in the package. ViT-S at 1024x1024, keep .25, batch 128, with heads of
width 64 and with what is fastest (heads of width 128, a residual stream in bf16); timm's own step
before and after. OUT is written anew after each row. --options takes some of them alone.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from ideas_gelu import replace_gelu
from torch._inductor import config as inductor

from mammo_pd.backbones.base import Backbone
from mammo_pd.config import RunConfig
from mammo_pd.perf.measure import Bench
from mammo_pd.perf.rows import BenchRow, as_markdown

_GELU = "GELU of one exponential"
OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    _GELU: {},
    "dependent launches": {"triton.enable_pdl": True},
    "reductions in stages": {"triton.mix_order_reduction_allow_multi_stages": True},
    "tiles tuned": {"coordinate_descent_tuning": True},
    "products tuned": {"max_autotune_gemm": True, "max_autotune_gemm_backends": "ATEN,TRITON"},
}


def _as_it_is(_: Backbone) -> None:
    pass


MODELS: dict[str, tuple[str, Callable[[Backbone], object]]] = {
    "": ("vit_small_patch16_224", _as_it_is),
    ", bf16 residual": ("vit_small_patch16_hd128_224", Backbone.narrow_residual),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    given = parser.parse_args()
    small: bool = given.small
    img_size, batch_size = ((96, 64), 4) if small else ((1024, 1024), 128)
    # On a CPU a step is in float32 by default.
    device = RunConfig().device.replace(precision="bf16-mixed")
    rows: list[BenchRow] = []
    compiling: list[float] = []
    with Bench(RunConfig().replace(device=device), steps=2 if small else 20) as machine:
        head = [f"# Options of the compiler, {date.today()}", ""]
        head += [machine.describe_machine()["summary"], ""]

        def keep(row: BenchRow, started: float) -> None:
            rows.append(row)
            compiling.append(time.perf_counter() - started)
            ratio = row.images_per_second / rows[0].images_per_second
            print(f"{row.who}: {row.step_ms:.2f} ms, {ratio:.3f} of timm's", flush=True)
            took = [f"| {one.who} | {t:.0f} |" for one, t in zip(rows, compiling, strict=True)]
            lines = [*head, as_markdown(rows), ""]
            lines += ["| who | s to compile and measure |", "|---|---|", *took, ""]
            if given.out is not None:
                given.out.write_text("\n".join(lines))

        def timm() -> None:
            started = time.perf_counter()
            keep(machine.timm("vit_small_patch16_224", img_size, 0.25, batch_size), started)

        timm()
        for what, (name, change) in reversed(MODELS.items()):
            for option in given.options:

                def changed(
                    backbone: Backbone,
                    option: str = option,
                    change: Callable[[Backbone], object] = change,
                ) -> None:
                    if option == _GELU:
                        replace_gelu(backbone)
                    change(backbone)

                started = time.perf_counter()
                with inductor.patch(OPTIONS[option]):
                    row = machine.ours(
                        name,
                        img_size,
                        0.25,
                        batch_size,
                        compiled=machine.on_gpu,
                        end_to_end=False,
                        change=changed,
                    )
                keep(replace(row, who=f"{row.who}{what}, {option}"), started)
        timm()


if __name__ == "__main__":
    main()
