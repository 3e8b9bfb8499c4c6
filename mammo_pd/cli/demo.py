"""``mammo-pd demo``: the whole job on phantoms, by the commands that a user would type."""

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mammo_pd.cli.early_checks import check_output_folder

# What a tiny model learns within minutes on two cores.
_PATIENTS = 120
_SCALE = 0.3
_SPLIT = "--fractions 0.6 0.1 0.3"
_TRAINING = "--res 384x304 --keep 0.25 --model test_vit --epochs 30 --batch-size 16 --lr 5e-4"


def demo(*, out: Annotated[Path, Parameter(metavar="DIR")] = Path("demo")) -> None:
    """Run the whole pipeline on phantoms: DICOM files, store, training, report.

    Takes a few minutes on two CPU cores.

    Args:
        out: Where to write everything.
    """
    check_output_folder("--out", out)
    from mammo_pd.cli.app import app
    from mammo_pd.cores import available_cores
    from mammo_pd.files import write_text
    from mammo_pd.phantoms import PhantomSettings, write_phantoms

    dicom, store, runs = out / "dicom", out / "store", out / "runs"
    cores = available_cores()
    print(f"writing phantom mammograms as DICOM files to {dicom}")
    # Phantoms need no secret; with one fixed key, every demo has the same split and patch draws.
    key = out / "key"
    write_text(key, f"{'phantoms need no secret key':<32}")
    table = write_phantoms(
        dicom, PhantomSettings(patients=_PATIENTS, scale=_SCALE), processes=cores
    )
    for command in (
        ["preprocess", dicom, "--labels", table, "--out", store, "--key", key],
        ["split", store, *_SPLIT.split()],
        ["train", "--store", store, "--runs", runs, *_TRAINING.split()],
        ["evaluate", "--store", store, "--runs", runs],
    ):
        words = [str(word) for word in command]
        print(f"\n$ mammo-pd {shlex.join(words)}")
        app(words)
    print("\nThese are phantoms: the results show that the tool runs, nothing about cancer.")
    print("next: mammo-pd inspect DICOM_DIR   # mammograms of your own")
