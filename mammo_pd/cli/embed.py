"""``mammo-pd embed``: features of each image, for those who fit their own models."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from mammo_pd.cli.early_checks import (
    check_keep_rates,
    check_models,
    check_output_file,
    check_resolutions,
    check_store,
    check_weights_file,
)
from mammo_pd.cli.options import (
    DEFAULT_RUNS,
    NamedStoreOption,
    RunsOption,
    WholeNumber,
    default_store,
    find_run,
)
from mammo_pd.errors import InputError
from mammo_pd.wording import counted

if TYPE_CHECKING:
    from mammo_pd.inference.embed import Encoder
    from mammo_pd.training.runs import RunFolder


def embed(
    run_or_weights: Annotated[
        str | None, Parameter(name="RUN|WEIGHTS", show_default="the latest run")
    ] = None,
    /,
    *,
    store: NamedStoreOption = None,
    out: Annotated[Path, Parameter(metavar="FILE")] = Path("features.parquet"),
    keep: Annotated[float, Parameter(metavar="RATE")] = 1.0,
    model: Annotated[str | None, Parameter(metavar="NAME", show_default=False)] = None,
    res: Annotated[str | None, Parameter(metavar="RES", show_default="1024")] = None,
    checkpoint: Literal["model", "last"] = "model",
    batch_size: Annotated[WholeNumber, Parameter(metavar="N")] = 8,
    runs: RunsOption = DEFAULT_RUNS,
) -> None:
    """Write the features of each image in a store to a Parquet file.

    The features are the class token and the mean of the patch tokens from timm's
    forward_features, over all patches unless --keep says fewer.

    For example:

        mammo-pd embed runs/RUN --store store --out features.parquet
        mammo-pd embed dinov2.safetensors --model vit_small_patch14_dinov2 --res 518

    Args:
        run_or_weights: A run, its model.safetensors, or weights as for train: a file, timm or a
            timm name.
        store: The store that preprocess made.
        out: The Parquet file to write.
        keep: Fraction of the patches to read; which ones follows from the image_id.
        model: timm name of the model that WEIGHTS belong to; a run has its own.
        res: Input size for WEIGHTS, as for train; a run has its own.
        checkpoint: Use the weights of the run's model, or those of its last epoch.
        batch_size: Images per step.
        runs: The folder of runs.
    """
    check_output_file("--out", out)
    check_keep_rates([keep])
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size} is below 1.")
    if out.suffix.lower() != ".parquet":
        raise InputError(f"--out {out} must end in .parquet, the format that embed writes.")
    if res is not None:
        check_resolutions([res])
    if model is not None:
        check_models([model])
    images = store or default_store()
    check_store(images)
    run = _run_or_none(run_or_weights, runs)
    from mammo_pd.inference.embed import embed as write_features

    encoder = _encoder(run, run_or_weights, images, model, res, checkpoint)
    done = write_features(encoder, images, out, keep_rate=keep, batch_size=batch_size)
    columns = "class_token and patch_mean" if done.has_class_token else "patch_mean"
    print(
        f"\nwrote {out}: {columns} of {counted(done.images, 'image')}, {done.width} numbers each, "
        f"from {done.num_keep} of {done.num_tokens} patches"
    )
    code = f"import pandas; print(pandas.read_parquet({json.dumps(str(out))}))"
    print(f"next: python -c {shlex.quote(code)}")


def _run_or_none(named: str | None, runs: Path) -> "RunFolder | None":
    """The run, or None for weights; one that is not there is refused before torch is imported."""
    if named is None or Path(named).is_dir() or (runs / named).is_dir():
        return find_run(runs, None if named is None else Path(named))
    if not Path(named).exists() and "/" in named and ":" not in named:
        raise InputError(f"there is no run, checkpoint or weights file {named}.")
    check_weights_file(named)
    return None


def _encoder(
    run: "RunFolder | None",
    named: str | None,
    store: Path,
    model: str | None,
    res: str | None,
    checkpoint: Literal["model", "last"],
) -> "Encoder":
    from mammo_pd.inference.embed import (
        encoder_of_checkpoint,
        encoder_of_run,
        encoder_of_weights,
        is_checkpoint,
    )

    file = None if named is None else Path(named)
    if run is not None or (file is not None and file.is_file() and is_checkpoint(file)):
        if model is not None or res is not None:
            raise InputError(
                "a run brings its own model and input size; drop --model and --res, which are for "
                "other weights."
            )
        if run is not None:
            return encoder_of_run(run, checkpoint)
        assert file is not None
        return encoder_of_checkpoint(file)
    assert named is not None
    if model is None and (named == "timm" or Path(named).is_file()):
        raise InputError(
            f"{named} does not say which model it belongs to; name it with --model, such as "
            "vit_small_patch16_224 (docs/models.md lists those that work)."
        )
    return encoder_of_weights(named, model or named, res or "1024", store)
