"""``mammo-pd budget``: what fits on a GPU, and how long it takes."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mammo_pd.cli.early_checks import check_keep_rates, check_models, check_resolutions
from mammo_pd.cli.options import KeepRatesOption, ModelsOption, ResolutionsOption, WholeNumber
from mammo_pd.errors import InputError
from mammo_pd.perf.memory_size import parse_memory


def budget(
    *,
    memory: Annotated[
        str | None,
        Parameter(metavar="SIZE", show_default="that of the --bench file, else this machine's"),
    ] = None,
    hours: Annotated[float | None, Parameter(metavar="H")] = None,
    images: Annotated[WholeNumber | None, Parameter(metavar="N")] = None,
    bench: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    res: ResolutionsOption = ("512", "1024", "1536", "2048x1664", "3328x2560"),
    keep: KeepRatesOption = (0.1, 0.25, 0.5, 1.0),
    model: ModelsOption = ("vit_small_patch16_224", "vit_base_patch16_224"),
) -> None:
    """Estimate which resolution, model and keep rate a GPU can train, and how fast.

    For example:

        mammo-pd budget --memory 24GB --hours 12 --images 100000

    Args:
        memory: GPU memory, such as 24GB or 22GiB.
        hours: Hours available for training; goes with --images.
        images: Number of training images; goes with --hours.
        bench: bench.json of this GPU, for its measured speed.
        res: Input sizes, as of train.
        keep: Fractions of the patches kept, each constant.
        model: timm model names.
    """
    check_resolutions(res)
    check_keep_rates(keep)
    check_models(model)
    if memory is not None:
        parse_memory(memory)
    if bench is not None and not bench.is_file():
        raise InputError(f"there is no bench at {bench}; make one with: mammo-pd bench")
    from mammo_pd.perf import budget as perf

    text, best = perf.budget(
        memory,
        hours=hours,
        images=images,
        bench=bench,
        models=list(model),
        resolutions=list(res),
        keep_rates=list(keep),
    )
    print(text)
    print(f"next: {best}")
