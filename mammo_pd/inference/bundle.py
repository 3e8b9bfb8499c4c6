"""A MONAI bundle: a checkpoint goes in, a folder that ``python -m monai.bundle`` runs comes out.

DIR/
configs/metadata.json     what MONAI asks of a bundle: versions, task, shapes of input and output
configs/inference.json    DICOM_DIR to scores, by our dictionary transforms and MONAI's own classes
configs/train.json        a store to a run that starts from these weights, by our own training
models/model.safetensors  the checkpoint
docs/README.md            how it is run, and that it is for research only
"""

import json
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from torch import Tensor, nn

from mammo_pd import __version__
from mammo_pd.config import EARLIER_DEFAULTS, DeviceSettings, Given, StudySettings, load_config
from mammo_pd.errors import ImageError, InputError
from mammo_pd.files import atomic_write, write_text
from mammo_pd.inference.trained_model import TrainedModel
from mammo_pd.inference.whole_image import WholeImageModel
from mammo_pd.table_file import write_rows
from mammo_pd.terms import Frames
from mammo_pd.training.checkpoint import open_checkpoint
from mammo_pd.training.train import train

_SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
# The configuration last: without it, there is no bundle.
_PARTS = ("models", "docs", "configs")
_UNFINISHED = ".unfinished"
# What MONAI evaluates as Python, looks up in the configuration, or reads from another file.
_EVALUATED = ("$", "@", "%")


def write_bundle(checkpoint: Path, folder: Path) -> None:
    """Write a bundle.

    Args:
        checkpoint: a run's model.safetensors.
        folder: new or empty, or one that a killed command has left unfinished.

    Raises:
        InputError: the folder holds something, the model cannot be run by other tools, or its
            checkpoint holds what MONAI would run as code.
    """
    # Within it, since it may be a mount, which no other folder can be renamed to.
    new = folder / _UNFINISHED
    if folder.exists() and not new.is_dir() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty; name a new or empty folder.")
    with open_checkpoint(checkpoint) as opened:
        model = TrainedModel.read(opened)
        WholeImageModel.of(model)
        if model.settings.frames is Frames.EACH:
            raise InputError(
                "the model was trained on each frame of a file as its own image, which a bundle "
                "cannot reproduce."
            )
        if model.settings.steps:
            raise InputError(
                f"the model was trained on images prepared with steps of your own "
                f"({', '.join(model.settings.steps)}), which a bundle does not hold; score files "
                "with predict, from the program that adds them."
            )
        configs = {
            "metadata": _metadata(model),
            "inference": _inference(model),
            "train": _train(model),
        }
        # It is there for as long as the bundle is not, so that a killed command can be told.
        new.mkdir(parents=True, exist_ok=True)
        for name in _PARTS:
            for leftover in (folder / name, new / name):
                shutil.rmtree(leftover, ignore_errors=True)
            (new / name).mkdir()
        shutil.copyfile(opened.held, new / "models" / "model.safetensors")
        (new / "docs" / "README.md").write_text(_readme(model), encoding="utf-8")
        for name, content in configs.items():
            write_text(new / "configs" / f"{name}.json", json.dumps(content, indent=2) + "\n")
        for name in _PARTS:
            (new / name).rename(folder / name)
        new.rmdir()


def _as_text(value: Any) -> Any:
    """What a checkpoint holds, to be written into a configuration, where none of it may be code.

    Raises:
        InputError: MONAI would evaluate a text in it.
    """
    if isinstance(value, str) and value.startswith(_EVALUATED):
        raise InputError(
            f"the checkpoint holds the text {value!r}, which MONAI would run as code or look up, "
            "as it begins with $, @ or %: if it is the name of a column of yours, rename that and "
            "train again; if the checkpoint is from others, do not trust it."
        )
    if isinstance(value, Mapping):
        return {_as_text(name): _as_text(one) for name, one in value.items()}
    return [*map(_as_text, value)] if isinstance(value, (list, tuple)) else value


def _metadata(model: TrainedModel) -> dict[str, Any]:
    names = _as_text(model.objective.score_columns)
    probabilities = len(model.objective.target_columns) == len(names)
    target = model.card.label_definition or "the label that the model was trained on"
    return {
        "schema": _SCHEMA,
        "version": __version__,
        "changelog": {__version__: "written by mammo-pd export"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"mammo-pd": __version__},
        "name": "mammo-pd model",
        "task": f"Score of mammograms: {target}",
        "description": f"{model.card.model}, trained with PatchDropout; weights {model.digest}",
        "authors": "those who trained it",
        "copyright": "those who trained it",
        "data_type": "dicom",
        "intended_use": "Research only, not a medical device",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": "MG",
                    "num_channels": 1,
                    "spatial_shape": ["*", "*"],
                    "dtype": "float32",
                    "value_range": [0, 65535],
                    "is_patch_data": False,
                    "channel_def": {"0": "breast, cropped, chest wall on the left"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "probabilities" if probabilities else "scores",
                    "format": "classification" if probabilities else "regression",
                    "num_channels": len(names),
                    "spatial_shape": [],
                    "dtype": "float32",
                    # Empty where values are not restricted.
                    "value_range": [0, 1] if probabilities else [],
                    "is_patch_data": False,
                    "channel_def": {str(place): name for place, name in enumerate(names)},
                }
            },
        },
    }


def _inference(model: TrainedModel) -> dict[str, Any]:
    settings = model.settings
    return {
        "imports": ["$import pathlib", "$import mammo_pd.inference.bundle", "$import mammo_pd"],
        "bundle_root": ".",
        "dataset_dir": "/workspace/data",
        "output_dir": "$@bundle_root + '/eval'",
        "checkpoint": "$@bundle_root + '/models/model.safetensors'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": "mammo_pd.inference.whole_image.load_network",
            "checkpoint": "@checkpoint",
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "mammo_pd.ingest.transforms.model_transforms",
            "img_size": list(model.card.img_size),
            "voi": str(settings.voi),
            "frames": str(settings.frames),
            "bits_stored": settings.bits_stored,
        },
        "found": {
            "_target_": "mammo_pd.ingest.walk.find_images",
            "folder": "$pathlib.Path(@dataset_dir)",
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in @found.images]",
            "transform": "@preprocessing",
        },
        "inferer": {"_target_": "SimpleInferer"},
        "score_names": _as_text(model.objective.score_columns),
        "run": [
            "$mammo_pd.inference.bundle.write_scores(@dataset, @inferer, @network, @device, "
            "@score_names, @dataset_dir, @output_dir)"
        ],
    }


def _train(model: TrainedModel) -> dict[str, Any]:
    """The run's own settings, but for what its data and its machine were."""
    config = model.card.run_config()
    data = config.data.replace(
        split="default", fold=None, res="x".join(map(str, model.card.img_size)), workers=None
    )
    changed = config.replace(data=data, device=DeviceSettings(), study=StudySettings())
    settings: dict[str, Any] = _as_text(changed.model_dump(mode="json"))
    often = ("epochs", "batch_size", "lr", "seed")
    told = {name: settings["training"][name] for name in often}
    settings["training"] |= {name: f"@{name}" for name in often}
    settings["model"]["weights"] = "@checkpoint"
    return {
        "imports": ["$import mammo_pd.inference.bundle", "$import mammo_pd"],
        "bundle_root": ".",
        "store": "/workspace/store",
        "runs": "$@bundle_root + '/runs'",
        "checkpoint": "$@bundle_root + '/models/model.safetensors'",
        **told,
        "settings": settings,
        "run": ["$mammo_pd.inference.bundle.fine_tune(@store, @runs, @settings)"],
    }


def _readme(model: TrainedModel) -> str:
    return f"""# {model.card.model}

Research use only: not a medical device. Needs `pip install 'mammo-pd[bundle]'`. From this folder:

```sh
python -m monai.bundle run --config_file configs/inference.json --dataset_dir DICOM_DIR
```

writes eval/scores.csv: each file's path and its scores. `mammo-pd predict models/model.safetensors
DICOM_DIR` gives the same scores (on a GPU up to rounding: it computes in bfloat16 there, a bundle
in float32), also of breasts, exams and patients, with verdicts, and leaves out images that come
twice.

```sh
python -m monai.bundle run --config_file configs/train.json --store STORE
```

fine-tunes the model, with a new head, on a store that `mammo-pd preprocess` made, and writes a run
to runs/, which `mammo-pd evaluate` and `predict` take. The settings are those that the model was
trained with; change them by name: `--epochs 10 --lr 1e-4 --settings#patch_dropout#keep_rate 0.5`.
The split is the store's `default`; on the store that these weights learnt from, name theirs:
`--settings#data#split NAME`.
"""


def fine_tune(store: str, runs: str, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Train on a store, from the bundle's weights: what ``configs/train.json`` runs.

    Args:
        store: made by preprocess.
        runs: the folder that takes the run.
        settings: every section of a `RunConfig`, as the configuration has them; the bundle may be
            of an earlier version.

    Raises:
        SystemExit: something given cannot be used; MONAI would print three stack traces for it.
    """
    overrides = {
        f"{section}.{name}": Given(value, f"--settings#{section}#{name}")
        for section, of_section in settings.items()
        for name, value in of_section.items()
    }
    try:
        config = load_config(overrides=overrides, defaults=EARLIER_DEFAULTS)
        run = train(Path(store), Path(runs), config)
    except InputError as error:
        raise SystemExit(f"mammo-pd: error: {error}") from error
    if run is not None:
        print(f"\nwrote {run.path}: model.safetensors, last.safetensors, history.csv, config.yaml")
        print(f"next: mammo-pd evaluate {shlex.quote(str(run.path))}")


def write_scores(
    dataset: Sequence[Mapping[Any, Any]],
    inferer: Callable[[Tensor, nn.Module], Tensor],
    network: nn.Module,
    device: torch.device,
    names: Sequence[str],
    dataset_dir: str,
    output_dir: str,
) -> None:
    """Score a data set image by image, and write ``scores.csv``, for the owner: it names files.

    Args:
        dataset: MONAI's, with our transforms; each item holds ``image``, (1, h, w) float32.
        inferer: MONAI's.
        network: a `WholeImageModel`.
        device: of the network.
        names: of the scores.
        dataset_dir: the files' folder.
        output_dir: takes the table.
    """
    network.eval()
    files = [Path(item["image"]) for item in dataset.data]  # type: ignore[attr-defined]
    with (
        atomic_write(Path(output_dir) / "scores.csv", mode=0o600) as beside,
        beside.open("w", newline="", encoding="utf-8", errors="backslashreplace") as opened,
        torch.no_grad(),
    ):
        write_rows(opened, [("file", *names, "reason")])
        for number, file in enumerate(files):
            shown = str(file.relative_to(dataset_dir))
            try:
                image = torch.as_tensor(dataset[number]["image"])[None].to(device)
            except Exception as error:  # MONAI wraps whatever a transform raises
                write_rows(opened, [(shown, *("" for _ in names), _reason(error))])
                continue
            scores = inferer(image, network)[0].double().cpu().tolist()
            write_rows(opened, [(shown, *scores, "")])


def _reason(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ImageError):
            return str(cause.reason)
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__
