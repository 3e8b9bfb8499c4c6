"""``mammo-pd export``: a model for other tools to run."""

import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mammo_pd.cli.early_checks import check_output_file, check_output_folder
from mammo_pd.cli.options import DEFAULT_RUNS, RunsOption, find_checkpoint
from mammo_pd.errors import InputError


def export(
    run: Annotated[Path, Parameter(name="RUN|FILE")],
    /,
    *,
    onnx: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    bundle: Annotated[Path | None, Parameter(metavar="DIR")] = None,
    runs: RunsOption = DEFAULT_RUNS,
) -> None:
    """Export a model for other tools, as ONNX or as a MONAI bundle.

    The input is an image as stored by preprocess, of any size; the output is the
    scores that predict gives, using all patches.

    For example:

        mammo-pd export runs/RUN --onnx model.onnx
        mammo-pd export model.safetensors --bundle bundle

    Args:
        run: A run, whose model is used, or a checkpoint file.
        onnx: Write it as ONNX, which runs on a CPU without torch. Needs mammo-pd[onnx].
        bundle: Write a MONAI bundle, which python -m monai.bundle runs on a folder of DICOM files.
        runs: The folder of runs.
    """
    if onnx is None and bundle is None:
        raise InputError("nothing to write; give --onnx FILE, --bundle DIR, or both.")
    check_output_file("--onnx", onnx)
    check_output_folder("--bundle", bundle)
    checkpoint = find_checkpoint(runs, run)
    if onnx is not None:
        from mammo_pd.inference.onnx_export import export_onnx
        from mammo_pd.inference.trained_model import TrainedModel

        export_onnx(TrainedModel.load(checkpoint), onnx)
        print(f"wrote {onnx}: {onnx.stat().st_size / 2**20:.0f} MiB; research use only")
        code = f"import onnxruntime as o; print(o.InferenceSession({str(onnx)!r}).get_inputs()[0])"
        if bundle is None:
            print(f"next: python -c {shlex.quote(code)}")
    if bundle is not None:
        from mammo_pd.inference.bundle import write_bundle

        write_bundle(checkpoint, bundle)
        print(f"wrote {bundle}: a MONAI bundle; research use only")
        if find_spec("fire") is None:
            print("python -m monai.bundle needs fire: pip install 'mammo-pd[bundle]'")
        print(
            f"next: cd {shlex.quote(str(bundle))} && python -m monai.bundle run --config_file "
            "configs/inference.json --dataset_dir DICOM_DIR"
        )
