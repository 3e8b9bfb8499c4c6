"""What a checkpoint says of itself: its model, data and settings, without paths or patients."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from mammo_pd.backbones.weights.report import CARD_KEY
from mammo_pd.config import EARLIER_DEFAULTS, RunConfig, load_config
from mammo_pd.errors import InputError, cause_of
from mammo_pd.evaluation.operating_points import OperatingPoints
from mammo_pd.files import load_json
from mammo_pd.machines import machine_key
from mammo_pd.normalization import Normalization
from mammo_pd.wording import on_one_line

if TYPE_CHECKING:
    import pandas as pd


_KIND_COLUMNS = ("manufacturer", "model", "presentation_intent", "voi_applied")

# The key in the header of a checkpoint's file; older files have it too.
METADATA_KEY = "facts"
# The key of the operating points, by target.
POINTS_KEY = "operating_points"


@dataclass(frozen=True)
class ModelCard:
    """What a model was made with, as the header of its checkpoint holds it.

    Attributes:
        model: timm's name.
        img_size: (height, width) in pixels.
        num_tokens: N.
        num_keep: K of most epochs.
        grid_size: (rows, columns) of patches.
        normalization: of the input.
        weights: what became of the initial ones, as `WeightsReport` makes it; None for random ones.
        objective: name.
        label_definition: what the labels mean; None if the label table does not say.
        split: name.
        split_hash: of its content.
        labels_hash: of which images are labelled, and how.
        fold: that is tested; None for a split without folds.
        counts: of each part, by its name: patients, images, and positives by target.
        store_fingerprint: of what decided the store's pixels.
        preprocessing: the settings of that store.
        config: the whole configuration; weights are named without their folder.
        environment: versions and device.
        trained_on: images of the training part by ``machine``, ``presentation_intent`` and
            ``voi`` (the kind of grey scale); None in files of earlier versions.
    """

    model: str
    img_size: tuple[int, int]
    num_tokens: int
    num_keep: int
    grid_size: tuple[int, int]
    normalization: Normalization
    weights: dict[str, Any] | None
    objective: str
    label_definition: str | None
    split: str
    split_hash: str
    labels_hash: str
    fold: int | None
    counts: dict[str, dict[str, Any]]
    store_fingerprint: str
    preprocessing: dict[str, Any]
    config: dict[str, Any]
    environment: dict[str, Any]
    trained_on: dict[str, dict[str, int]] | None = None

    def run_config(self) -> RunConfig:
        """The configuration, checked; of an earlier version, as that version trained.

        Raises:
            InputError: a later version made it, with settings that this one does not know.
        """
        values = {
            f"{section}.{name}": value
            for section, of_section in self.config.items()
            for name, value in of_section.items()
        }
        return load_config(overrides=values, defaults=EARLIER_DEFAULTS)

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class CheckpointHeader:
    """What a checkpoint's file says before its weights.

    Attributes:
        card: None in files of earlier versions.
        metrics: of its epoch; empty before the first.
        operating_points: by target, as `OperatingPoints` dumps them; empty where none were locked.
    """

    card: ModelCard | None
    metrics: dict[str, Any]
    operating_points: dict[str, Any] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """How many were over when it was written."""
        return int(self.metrics.get("epoch", 0))

    @classmethod
    def read(cls, path: Path, held: Path | None = None) -> "CheckpointHeader":
        """Read the header of model.safetensors or last.safetensors; no weights are read.

        Args:
            path: of the file, as errors name it.
            held: the path to read it by, if it is held open.

        Raises:
            InputError: no such file, damaged, or not one of ours.
        """
        if not path.is_file():
            raise InputError(f"there is no checkpoint at {path}; name a run that has one.")
        try:
            with safe_open(held or path, "np") as file:
                header = file.metadata() or {}
            metadata: dict[str, Any] = _load_json(header[METADATA_KEY])
            history = metadata.get("history", [metadata])
            card = _load(header[CARD_KEY]) if CARD_KEY in header else None
            points = _load_json(header.get(POINTS_KEY, "{}"))
            for given in points.values():
                OperatingPoints.load(given)
            return cls(card, history[-1] if history else {}, points)
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, OSError) as error:
            raise InputError(
                f"{path} is not a checkpoint of mammo-pd, or is damaged ({cause_of(error)}); name "
                "a run, "
                "or its model.safetensors or last.safetensors."
            ) from error


def count_kinds(rows: "pd.DataFrame") -> dict[str, dict[str, int]]:
    """Images by what may make a model see others than it knows.

    Args:
        rows: of a manifest.

    Returns:
        Counts by ``machine`` (manufacturer and model by their known names), ``presentation_intent``
        and ``voi``, the kind of grey scale; what is not known is not counted.
    """
    kinds = [kinds_of(row) for row in rows[list(_KIND_COLUMNS)].to_dict("records")]
    return {
        kind: dict(Counter(found[kind] for found in kinds if kind in found).most_common())
        for kind in ("machine", "presentation_intent", "voi")
    }


def kinds_of(row: Mapping[Any, Any]) -> dict[str, str]:
    """What `count_kinds` counts, of one row; only what is known."""
    manufacturer, model, intent, voi = (
        value if isinstance(value := row.get(name), str) else None for name in _KIND_COLUMNS
    )
    found = {
        "machine": machine_key(manufacturer, model),
        "presentation_intent": intent,
        "voi": voi and voi.partition(":")[0],
    }
    return {kind: value for kind, value in found.items() if value}


def _load(text: str) -> ModelCard:
    given = _load_json(text)
    # A later version may say more, an earlier one less.
    card = {
        one.name: given[one.name]
        for one in fields(ModelCard)
        if one.name in given or one.default is MISSING
    }
    for name in ("img_size", "grid_size"):
        first, second = card[name]
        card[name] = (int(first), int(second))
    return ModelCard(**{**card, "normalization": Normalization(**card["normalization"])})


def _load_json(text: str) -> Any:
    """Read JSON whose texts are printed, drawn and written into DICOM: each of them on one line."""
    try:
        return _on_one_line(load_json(text))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _on_one_line(value: Any) -> Any:
    if isinstance(value, str):
        return on_one_line(value)
    if isinstance(value, dict):
        return {on_one_line(name): _on_one_line(one) for name, one in value.items()}
    return [_on_one_line(one) for one in value] if isinstance(value, list) else value


def without_paths(config: RunConfig) -> RunConfig:
    """The configuration as others may see it: paths of this machine stay on it."""
    weights = config.model.weights
    if weights in (None, "timm"):
        return config
    return config.replace(model=config.model.replace(weights=Path(str(weights)).name))
