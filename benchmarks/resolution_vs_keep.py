"""Does a higher resolution with fewer patches beat a lower one with all, for the same compute?

    python benchmarks/resolution_vs_keep.py make STORE [--train-images 4000] [--difficulty 1]
    python benchmarks/resolution_vs_keep.py plan PLAN.json
    python benchmarks/resolution_vs_keep.py train STORE PLAN.json OUT [--minutes 8]
    python benchmarks/resolution_vs_keep.py table OUT [OUT ...] [--picture FILE]
    python benchmarks/resolution_vs_keep.py read STORE [--threads 8]

The paper's claim, tested on phantoms (`phantom_store.py`) and on real images (a store whose split
has folds). What is trained and scored is what `mammo-pd train` and `mammo-pd evaluate` train and
score; the weights of the last epoch are scored, on all patches, so that nothing is chosen on the
validation images. A PLAN lists cells in the order of their worth; each GPU takes the next one whose
reckoned time is left of `--minutes`. What is finished is not done twice, and what was stopped goes
on when the same command is typed again on the same machine. MLflow need not be installed.

OUT gets two files to keep: results.jsonl, one line a cell, and predictions.parquet, the scores of
all of them. `table` prints everything from these two alone.

On a machine with four GPUs (a store in memory waits for no disk; 6,200 images take 40 GB):

    # The plans name dinov2_vits14.safetensors in the current folder; --weights FILE names another.
    # the pilot: other women than the grid's, who may be looked at
    python benchmarks/resolution_vs_keep.py make /dev/shm/pilot --processes 64 --seed 100 \
        --train-images 4000 --test-women 300
    python benchmarks/resolution_vs_keep.py train /dev/shm/pilot \
        benchmarks/recipes/phantoms_pilot.json /tmp/pilot --minutes 7
    # the grid
    python benchmarks/resolution_vs_keep.py make /dev/shm/phantoms --processes 64 --seed 1
    python benchmarks/resolution_vs_keep.py train /dev/shm/phantoms \
        benchmarks/recipes/phantoms_resolution.json /tmp/grid --minutes 8.5
    # the real images
    python benchmarks/resolution_vs_keep.py train /tmp/store \
        benchmarks/recipes/rsna_640_resolution.json /tmp/rsna --minutes 8.5
    cp /tmp/grid/results.jsonl /tmp/grid/predictions.parquet "$OUT"

Under torchrun (`torchrun --nproc-per-node 8 benchmarks/resolution_vs_keep.py train ...`) its
processes train one cell after another together: cells that one GPU has no time or memory for.
"""

import argparse
import gc
import json
import multiprocessing
import os
import shutil
import signal
import time
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from gpus import see_only

from mammo_pd.orphans import end_with_parent
from mammo_pd.wording import percent

if TYPE_CHECKING:
    from mammo_pd.patches.sampler import PatchSampler

# Of a cell that was told to stop: to write its checkpoint.
_GRACE = 40
# Reckoned for each cell beside its training: model, compilation, capture and checkpoints.
_OVERHEAD_SECONDS = 30.0
# A step is launched no faster than this, however few patches it reads.
_LEAST_SECONDS = 1 / 8000
# Set by torchrun: which of how many processes.
_RANK = int(os.environ.get("RANK", "0"))
_WORLD_SIZE = int(os.environ.get("WORLD_SIZE", "1"))
_FACTS = ["image_id", "patient_id", "exam_id", "laterality", "view", "label", "split"]


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        height: nominal, of the input, in pixels.
        size: HEIGHTxWIDTH that the model sees.
        keep: rate in training.
        draw: of the patches.
        variant: of the recipe; empty for the plan's own.
        seed: of the run.
        fold: that is tested; None for a split without folds.
        settings: by the keys of the configuration.
        trial: of `ideas_patches.TRIALS`, or None.
    """

    height: int
    size: str
    keep: float
    draw: str
    variant: str
    seed: int
    fold: int | None
    settings: dict[str, Any] = field(repr=False, hash=False, compare=False)
    trial: str | None = None

    @property
    def name(self) -> str:
        """Of all seeds and folds of this cell."""
        of_variant = f".{self.variant}" if self.variant else ""
        return f"{self.height}.keep{100 * self.keep:g}.{self.draw}{of_variant}"

    def __str__(self) -> str:
        fold = "" if self.fold is None else f".fold{self.fold}"
        return f"{self.name}{fold}.seed{self.seed}"


def read_plan(file: Path) -> tuple[list[Cell], dict[str, Any]]:
    """The cells of a plan in the order of their worth, and the plan itself.

    The file: ``split``, ``folds`` (None or how many), ``images`` to train on and ``scored`` (for
    the estimate alone), ``sizes`` (the input's HEIGHTxWIDTH by nominal height), ``set`` (settings
    by the keys of the configuration), and ``cells``: ``height, keep``, and ``draw`` (uniform),
    ``seeds`` ([0]), ``variant`` and its ``set``, and ``trial``, a draw of `ideas_patches.TRIALS`,
    which its variant begins with.
    """
    plan = json.loads(file.read_text())
    folds = [None] if plan.get("folds") is None else list(range(plan["folds"]))
    cells = []
    for given in plan["cells"]:
        for seed in given.get("seeds", [0]):
            for fold in folds:
                own = {
                    "data.split": plan["split"],
                    "data.res": plan["sizes"][str(given["height"])],
                    "patch_dropout.keep_rate": given["keep"],
                    "patch_dropout.draw": given.get("draw", "uniform"),
                    "training.seed": seed,
                }
                if fold is not None:
                    own["data.fold"] = fold
                cells.append(
                    Cell(
                        height=given["height"],
                        size=plan["sizes"][str(given["height"])],
                        keep=float(given["keep"]),
                        draw=own["patch_dropout.draw"],
                        variant="-".join(
                            given[name] for name in ("trial", "variant") if name in given
                        ),
                        trial=given.get("trial"),
                        seed=seed,
                        fold=fold,
                        settings={**plan["set"], **own, **given.get("set", {})},
                    )
                )
    if len(set(map(str, cells))) < len(cells):
        raise SystemExit(f"{file} names a cell twice")
    return cells, plan


def reckon_seconds(cell: Cell, plan: dict[str, Any]) -> float:
    """What a cell takes on one H200, roughly: training, scoring, and what is beside."""
    from mammo_pd.perf.cost import estimate_seconds, keep_of, shape_of

    shape = shape_of(cell.settings["model.name"])
    height, width = map(int, cell.size.split("x"))
    kept, every = (keep_of(shape, (height, width), keep) for keep in (cell.keep, 1.0))
    step = max(_LEAST_SECONDS, estimate_seconds(shape, kept))
    training = plan["images"] * cell.settings["training.epochs"] * step
    # Scoring is not compiled: its forward pass takes about half of what a training step would.
    return training + plan["scored"] * estimate_seconds(shape, every) / 2 + _OVERHEAD_SECONDS


def tell_plan(plan: Path) -> str:
    """Markdown: the cells in order, what each is reckoned to take, and the sum so far."""
    cells, given = read_plan(plan)
    rows = [["cell", "input", "reckoned GPU s", "sum"], ["---"] * 4]
    total = 0.0
    for cell in cells:
        seconds = reckon_seconds(cell, given)
        total += seconds
        rows.append([str(cell), cell.size, f"{seconds:.0f}", f"{total:.0f}"])
    return _markdown(rows)


# ---- training


def _work(gpu: int | None, jobs: Any, answers: Any, slot: int, store: Path, out: Path) -> None:
    """Train and score one cell after another, until there is none or one has failed."""
    os.environ["OMP_NUM_THREADS"] = "1"
    end_with_parent()
    if gpu is not None:
        see_only(gpu)
    import torch
    from ideas_patches import trying

    while True:
        cell = jobs.get()
        if cell is None:
            answers.put((slot, None, None))
            return
        line = _describe(cell)
        try:
            torch._dynamo.reset()  # type: ignore[no-untyped-call]
            gc.collect()
            if gpu is not None:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            with trying(cell.trial) as sampler:
                line |= _run(cell, store, out, sampler) or {}
        except KeyboardInterrupt:
            return
        except Exception:
            line["error"] = traceback.format_exc()[-2000:]
        answers.put((slot, cell, line))
        if "error" in line:
            # What has failed may have spoilt the device's state: a new process takes the next.
            return


def _train_together(cell: Cell, store: Path, out: Path) -> None:
    """Train one cell in all of torchrun's processes, and score it in the first."""
    from ideas_patches import trying

    with trying(cell.trial) as sampler:
        found = _run(cell, store, out, sampler)
    if found is not None:
        _take(out, {**_describe(cell), **found, "at_once": 1, "gpus": 1})


def _describe(cell: Cell) -> dict[str, Any]:
    names = ("name", "size", "height", "keep", "draw", "variant", "seed", "fold")
    return {"cell": str(cell), **{name: getattr(cell, name) for name in names}}


def _run(
    cell: Cell, store: Path, out: Path, sampler: "type[PatchSampler]"
) -> dict[str, Any] | None:
    """Train a cell and score it; None in all of torchrun's processes but the first."""
    import torch
    from ideas_patches import score_again

    from mammo_pd.config import load_config
    from mammo_pd.inference.predict import predict
    from mammo_pd.training.loop import fit
    from mammo_pd.training.runs import RunFolder
    from mammo_pd.training.setup import RunSetup
    from mammo_pd.training.train import reopen_run, start_run

    started = time.perf_counter()
    folder = out / "runs" / str(cell)
    if (folder / "run.json").is_file() and RunFolder.open(folder).has_checkpoint:
        setup, run = reopen_run(folder, store=store, say=lambda _: None)
    else:
        if _RANK == 0:
            shutil.rmtree(folder, ignore_errors=True)
        trial = {} if cell.trial is None else {"patch_dropout.draw": cell.trial}
        config = load_config(None, cell.settings | trial)
        setup = RunSetup.build(store, config, say=lambda _: None)
        run = start_run(folder.parent, setup, run_id=folder.name)
    history = fit(setup, run)
    if _RANK > 0:
        return None
    fitted = time.perf_counter()
    run = RunFolder.open(run.path)
    scored = predict(run, store=store, checkpoint="last", say=lambda _: None)
    table = scored.table
    if cell.trial == "context":
        table = table.assign(score=score_again("with context", scored, run, sampler))
    kept = [name for name in (*_FACTS, "lesion_type", "lesion_contrast") if name in table]
    table[[*kept, "score"]].to_csv(folder / "scored.csv", index=False)
    for file in (run.chosen, run.last, run.midway):
        file.unlink(missing_ok=True)
    images = sum(e["epoch_images_per_second"] * e["epoch_seconds"] for e in history)
    # The first epoch compiles and captures; of several later ones the median. Of each GPU.
    rates = pd.Series([e["train_images_per_second"] for e in history[1:] or history]) / _WORLD_SIZE
    return {
        "images": round(images),
        "devices": _WORLD_SIZE,
        "images_per_second": float(rates.median()),
        # At the steady rate: without compilation, validation and checkpoints.
        "train_seconds": float(images / rates.median()),
        "fit_seconds": sum(epoch["epoch_seconds"] for epoch in history),
        "score_seconds": time.perf_counter() - fitted,
        "seconds": time.perf_counter() - started,
        "wait_share": float(pd.Series([e["train_wait_share"] for e in history]).median()),
        # Of all GPUs, each of which holds the model.
        "gib": _WORLD_SIZE * max(epoch["train_memory_gib"] for epoch in history),
        "val_auc_image": run.info.validation["val_auc_image"],
        "loss": [round(epoch["train_loss"], 4) for epoch in history],
        "num_tokens": run.info.num_tokens,
        "num_keep": run.info.num_keep,
        "device": run.info.environment["device"],
        "epochs": setup.config.training.epochs,
        "model": setup.config.model.name,
        "torch": torch.__version__,
    }


def train(
    store: Path,
    plan: Path,
    out: Path,
    *,
    at_once: int | None,
    minutes: float,
    weights: str | None,
) -> None:
    """Train and score what there is time for; say what had none, or has failed."""
    import torch

    end = time.monotonic() + 60 * minutes
    gpus = torch.cuda.device_count()
    at_once = at_once or max(1, gpus)
    cells, given = read_plan(plan)
    if weights is not None:
        cells = [replace(c, settings={**c.settings, "model.weights": weights}) for c in cells]
    out.mkdir(parents=True, exist_ok=True)
    done = _finished(out)
    waiting = [cell for cell in cells if str(cell) not in done]
    if _WORLD_SIZE > 1:
        # Processes that looked at the time might disagree on what there is time for.
        for cell in waiting:
            _train_together(cell, store, out)
        return
    print(f"{len(cells) - len(waiting)} of {len(cells)} cells are done; {gpus} GPUs", flush=True)
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    queues, processes, current = {}, {}, {}

    def start(slot: int) -> None:
        """A new process with its first cell, or none if there is no time for any."""
        queues[slot] = context.Queue()
        gpu = slot % gpus if gpus else None
        processes[slot] = context.Process(
            target=_work, args=(gpu, queues[slot], answers, slot, store, out)
        )
        if hand_out(slot):
            processes[slot].start()
        else:
            del processes[slot]

    def hand_out(slot: int) -> bool:
        left = end - time.monotonic()
        # Several processes share a GPU, each at its share of the speed.
        share = max(1.0, at_once / max(1, gpus))

        def fits(cell: Cell) -> bool:
            # On a CPU nothing is reckoned, and of what was begun less is left than is reckoned.
            begun = any((out / "runs" / str(cell)).glob("*.safetensors"))
            return not gpus or begun or share * reckon_seconds(cell, given) < left

        cell = next(filter(fits, waiting), None) if left > 0 else None
        queues[slot].put(cell)
        if cell is not None:
            waiting.remove(cell)
            current[slot] = cell
        return cell is not None

    for slot in range(at_once):
        start(slot)
    while processes and time.monotonic() < end:
        try:
            slot, cell, line = answers.get(timeout=0.5)
        except Exception:
            for slot in [s for s, process in processes.items() if not process.is_alive()]:
                if answers.empty():
                    print(f"{current.pop(slot)}: its process has died", flush=True)
                    start(slot)
            continue
        if cell is None:
            processes.pop(slot).join()
            continue
        current.pop(slot)
        _take(out, {**line, "at_once": at_once, "gpus": gpus})
        if "error" in line:
            processes[slot].join()
            start(slot)
        else:
            hand_out(slot)
    for process in processes.values():
        # Each saves where it is.
        os.kill(process.pid, signal.SIGTERM)
    stop = time.monotonic() + _GRACE
    for process in processes.values():
        process.join(max(0.0, stop - time.monotonic()))
        process.kill()
    done = _finished(out)
    left = [str(cell) for cell in cells if str(cell) not in done]
    print(f"{len(left)} of {len(cells)} cells are not done: {' '.join(left)}" if left else "done")


def _take(out: Path, line: dict[str, Any]) -> None:
    """Write a cell's line, and its scores beside those of the others."""
    if "error" not in line:
        new = pd.read_csv(out / "runs" / line["cell"] / "scored.csv", dtype=_TEXT)
        new = new.assign(cell=line["cell"], name=line["name"], seed=line["seed"], fold=line["fold"])
        file = out / "predictions.parquet"
        before = [pd.read_parquet(file)] if file.is_file() else []
        before = [table[table["cell"] != line["cell"]] for table in before]
        beside = file.with_suffix(".partial")
        pd.concat([*before, new], ignore_index=True).to_parquet(beside, compression="zstd")
        beside.replace(file)
    with (out / "results.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    told = line.get("error") or (
        f"{line['seconds']:.0f} s, of these training {line['train_seconds']:.0f}; "
        f"{line['images_per_second']:.0f} images/s, {line['gib']:.1f} GiB, waiting "
        f"{percent(line['wait_share'])}; loss {line['loss'][0]:.3f} to {line['loss'][-1]:.3f}, "
        f"val_auc_image {line['val_auc_image']:.3f}"
    )
    print(f"{line['cell']}: {told}", flush=True)


_TEXT = dict.fromkeys(("image_id", "patient_id", "exam_id", "laterality", "view", "split"), str)


def _finished(out: Path) -> dict[str, dict[str, Any]]:
    """The lines of the cells that are done, by cell; of several the last."""
    file = out / "results.jsonl"
    if not file.is_file():
        return {}
    lines = map(json.loads, file.read_text().splitlines())
    return {line["cell"]: line for line in lines if "error" not in line}


# ---- how fast a store is read


def read(store: Path, *, sizes: list[str], threads: int, batch: int, images: int) -> str:
    """Markdown: images/s and GB/s of the loader alone, the second pass (from the page cache)."""
    import torch

    from mammo_pd.data.cohort import Cohort
    from mammo_pd.data.dataset import MammogramDataset
    from mammo_pd.data.store import open_store
    from mammo_pd.training.setup import make_loader

    paths = open_store(store)
    rows = Cohort.read(paths, "default").part("train")[:images]  # type: ignore[arg-type]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table = [["input", "threads", "images/s", "GB/s"], ["---"] * 4]
    for size in sizes:
        height, width = map(int, size.split("x"))
        dataset = MammogramDataset(paths, rows, (height, width))
        batches = [list(range(n, n + batch)) for n in range(0, len(rows) - batch + 1, batch)]
        for _ in range(2):
            started = time.perf_counter()
            count = sum(len(b) for b in make_loader(dataset, batches, threads, device))
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - started
        size_read = dataset.stored_bytes(range(count)) / 1e9
        table.append([size, f"{threads}", f"{count / seconds:.0f}", f"{size_read / seconds:.2f}"])
    return _markdown(table)


def _markdown(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    of_make, of_plan, of_train, of_table, of_read = map(
        commands.add_parser, ("make", "plan", "train", "table", "read")
    )
    of_make.add_argument("out", type=Path)
    of_make.add_argument("--processes", type=int, default=os.cpu_count())
    of_make.add_argument("--train-images", type=int, default=4000)
    of_make.add_argument("--val-women", type=int, default=100)
    of_make.add_argument("--test-women", type=int, default=1000)
    of_make.add_argument("--difficulty", type=float, default=1.0)
    of_make.add_argument("--seed", type=int, default=1)
    of_plan.add_argument("plan", type=Path)
    for name in ("store", "plan", "out"):
        of_train.add_argument(name, type=Path)
    of_train.add_argument("--at-once", type=int, help="processes; one a GPU by default")
    of_train.add_argument("--minutes", type=float, default=600.0)
    of_train.add_argument("--weights", help="the file that the plan calls otherwise")
    of_table.add_argument("out", type=Path, nargs="+")
    of_table.add_argument("--picture", type=Path, help="SVG and PNG, by this name")
    of_read.add_argument("store", type=Path)
    of_read.add_argument(
        "--sizes", nargs="+", default=["252x154", "504x308", "1022x616", "2044x1232"]
    )
    of_read.add_argument("--threads", type=int, default=8)
    of_read.add_argument("--batch", type=int, default=64)
    of_read.add_argument("--images", type=int, default=2048)
    given = vars(parser.parse_args())
    command = given.pop("command")
    if command == "make":
        from phantom_store import counts, make_store

        sizes = [given.pop(name) for name in ("train_images", "val_women", "test_women")]
        make_store(images=counts(*sizes), **given)
    elif command == "plan":
        print(tell_plan(**given))
    elif command == "train":
        train(**given)
    elif command == "read":
        print(read(**given))
    else:
        from resolution_table import tell

        print(tell(**given))


if __name__ == "__main__":
    main()
