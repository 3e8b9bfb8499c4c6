"""How many new studies `mammo-pd predict` scores a second, and what reading and scoring take of it.

    python benchmarks/predict.py [FOLDER] [--model NAME] [--res RES] [--women N]

FOLDER holds DICOM files; without one, phantoms of the size of real mammograms are written, in six
transfer syntaxes. The model has random weights: what it says means nothing, and takes as long.
First the stages alone, in processor time, which other work on the machine does not change much:
reading (decoding, crop, pyramid) of one process, and scoring on all patches. Then the command as it
is typed, in wall-clock time, which other work does change.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from mammo_pd.cli.app import main as mammo_pd
from mammo_pd.config import load_config
from mammo_pd.cores import available_cores
from mammo_pd.inference.trained_model import TrainedModel
from mammo_pd.ingest.new_images import ReadJob, read_file
from mammo_pd.ingest.preprocess import file_version
from mammo_pd.ingest.walk import find_images
from mammo_pd.phantoms import PhantomSettings, write_phantoms
from mammo_pd.training.checkpoint import weights_of
from mammo_pd.training.setup import RunSetup


def write_untrained(place: Path, model: str, res: str) -> Path:
    """A checkpoint as a run begins with, of a store of a few small phantoms."""
    dicom, store = place / "small", place / "store"
    labels = write_phantoms(dicom, PhantomSettings(patients=12, scale=0.15), processes=1)
    mammo_pd(["preprocess", str(dicom), "--labels", str(labels), "--out", str(store)])
    wanted = {"data.res": res, "model.name": model, "training.batch_size": 2}
    setup = RunSetup.build(store, load_config(None, wanted))
    contents = weights_of(setup.model, setup.backbone.timm_model, {"epoch": 0}, setup.card)
    contents.write(place / "untrained.safetensors")
    return place / "untrained.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--res", default="1024")
    parser.add_argument("--women", type=int, default=6)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        folder = given.folder
        if folder is None:
            folder = place / "phantoms"
            write_phantoms(
                folder, PhantomSettings(patients=given.women), processes=available_cores()
            )
        checkpoint = write_untrained(place, given.model, given.res)
        measure(checkpoint, folder, place)


def measure(checkpoint: Path, folder: Path, place: Path) -> None:
    """Print the rate of each stage and of the command."""
    model = TrainedModel.load(checkpoint)
    files = find_images(folder).images
    jobs = [ReadJob(f, file_version(f), model.settings, model.card.img_size) for f in files]
    read_file(jobs[0])  # imports
    started = time.process_time()
    outcomes = [outcome for job in jobs for outcome in read_file(job)]
    reading = (time.process_time() - started) / len(jobs)
    images = [outcome.level for outcome in outcomes if outcome.level is not None]

    on_gpu = model.fabric.device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    model.score(images[:1])
    started = clock()
    model.score(images)
    scoring = (clock() - started) / len(images)

    print(f"\n{len(files)} files, {len(images)} of them images to score; {available_cores()} cores")
    print(f"reading: {1 / reading:.2f} files/s of one core ({reading:.2f} s of it a file)")
    unit = f"on {torch.cuda.get_device_name()}" if on_gpu else "of one core"
    print(f"scoring: {1 / scoring:.3g} images/s {unit} ({scoring:.3g} s an image)")
    mammo_pd(["predict", str(checkpoint), str(folder), "--out", str(place / "out")])


if __name__ == "__main__":
    main()
