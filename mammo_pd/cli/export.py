"""``mammo-pd export``: a model for other tools to run."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mammo_pd.cli.options import DEFAULT_RUNS, RunsOption, find_checkpoint


def export(
    run: Annotated[Path, Parameter(name="RUN|FILE")],
    /,
    *,
    onnx: Annotated[Path, Parameter(metavar="FILE")],
    runs: RunsOption = DEFAULT_RUNS,
) -> None:
    """Write a model as ONNX, which runs on a CPU without torch.

    Its input is an image as a store has it, at any size; its output are the scores
    of predict, on all patches. Needs mammo-pd[onnx].

    For example:

        mammo-pd export runs/RUN --onnx model.onnx

    Args:
        run: A run, whose best epoch is taken, or a checkpoint's file.
        onnx: Where to write the model.
        runs: The folder of runs.
    """
    from mammo_pd.inference.onnx_export import export_onnx
    from mammo_pd.inference.trained_model import TrainedModel

    export_onnx(TrainedModel.load(find_checkpoint(runs, run)), onnx)
    print(f"wrote {onnx}: {onnx.stat().st_size / 2**20:.0f} MiB; research use only")
