"""``mammo-pd bench``: this machine's training speed and memory."""

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mammo_pd.cli.early_checks import (
    check_keep_rates,
    check_models,
    check_output_folder,
    check_resolutions,
    check_store,
)
from mammo_pd.cli.options import (
    DEFAULT_RUNS,
    KeepRatesOption,
    ModelsOption,
    ResolutionsOption,
    RunsOption,
    WholeNumber,
)


def bench(
    *,
    res: ResolutionsOption = ("1024", "2048x1664", "3328x2560"),
    keep: KeepRatesOption = (0.25, 1.0),
    model: ModelsOption = ("vit_small_patch16_224",),
    batch_size: Annotated[
        WholeNumber | None,
        Parameter(metavar="N", show_default="fills 20 GiB, at most 128; 2 on a CPU"),
    ] = None,
    pretrain: bool = False,
    epochs: Annotated[bool | None, Parameter(negative="--no-epochs")] = None,
    store: Annotated[Path | None, Parameter(metavar="STORE", show_default="random pixels")] = None,
    out: Annotated[Path, Parameter(metavar="DIR")] = Path("bench"),
    mlflow: bool = False,
    runs: RunsOption = DEFAULT_RUNS,
) -> None:
    """Measure training steps on this machine, beside timm's patch_drop_rate.

    Reports images/s, memory, host time and waiting time for steps with a full and a
    small batch, and for whole epochs.

    For example:

        mammo-pd bench --res 512 1024 3328x2560 --keep 0.25 1 --store store

    Args:
        res: Input sizes, as of train.
        keep: Fractions of the patches kept, each constant.
        model: timm model names.
        batch_size: Images per step.
        pretrain: Also measure steps of pretrain.
        epochs: Measure whole epochs, with validation and checkpoints, on noise images; on by
            default on a GPU.
        store: Read the images of this store.
        out: Where to write the results.
        mlflow: Also log to the MLflow database of --runs.
        runs: The folder of runs.
    """
    check_output_folder("--out", out)
    check_resolutions(res)
    check_keep_rates(keep)
    check_models(model)
    if store is not None:
        check_store(store)
    from mammo_pd.perf import bench as perf

    table = perf.bench(
        out,
        resolutions=list(res),
        keep_rates=list(keep),
        models=list(model),
        batch_size=batch_size,
        pretraining=pretrain,
        epochs=epochs,
        store=store,
        runs=runs if mlflow else None,
    )
    print((out / "bench.md").read_text())
    print(f"wrote {out}: bench.json, bench.md, bench.png")
    if mlflow:
        print(f"logged: mlflow ui --backend-store-uri sqlite:///{runs / 'mlflow.db'}")
    # A CPU has no GPU memory for budget to go by.
    memory = "" if table["peak_gib"].notna().any() else " --memory 24GB"
    print(f"next: mammo-pd budget --bench {shlex.quote(str(out / 'bench.json'))}{memory}")
