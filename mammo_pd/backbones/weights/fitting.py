"""Weights on their way into a model, and what has become of each so far."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mammo_pd.backbones.weights.report import WeightsRow
from mammo_pd.backbones.weights.source import SourceWeights

PROJECTION = "patch_embed.proj.weight"
BIAS = "patch_embed.proj.bias"
POSITIONS = "pos_embed"
RELATIVE_POSITIONS = "relative_position_bias_table"
# Each family's names for the factors on a block's branches, and the layer that a branch ends in.
LAYER_SCALE = {
    "ls1.gamma": "attn.proj",
    "gamma_1": "attn.proj",
    "ls2.gamma": "mlp.fc2",
    "gamma_2": "mlp.fc2",
}


@dataclass
class Fitting:
    """Weights that take on the model's names and shapes, step by step.

    Attributes:
        model: timm's, that is to take them; not changed.
        name: timm's name of it.
        source: as they were given.
        state: as they are now.
        looks_like: the source's architecture in words, once its names are timm's.
        offset: (D,) what is to be added to each embedded patch, where the model's patch embedding
            has no bias for it.
        remarks: rows of the report on what no tensor tells.
    """

    model: Any
    name: str
    source: SourceWeights
    state: dict[str, Tensor]
    looks_like: str = ""
    offset: Tensor | None = None
    remarks: list[WeightsRow] = field(default_factory=list)
    _outcomes: dict[str, tuple[str, str]] = field(default_factory=dict)
    _dropped: Counter[tuple[str, str]] = field(default_factory=Counter)

    @classmethod
    def of(cls, source: SourceWeights, model: Any, name: str) -> "Fitting":
        """Begin with the source's tensors under its own names."""
        fitting = cls(model, name, source, dict(source.tensors))
        for part, tensors in source.elsewhere.items():
            fitting._dropped[part, "not of the encoder"] += tensors
        return fitting

    def note(self, key: str, outcome: str, detail: str = "") -> None:
        """Say what became of a tensor of the model, or of one that is now a part of others."""
        self._outcomes[key] = (outcome, detail)

    def note_dropped(self, key: str, why: str) -> None:
        """Say that a tensor of the source was left out."""
        self._dropped[_part(key), why] += 1

    def drop(self, key: str, why: str) -> None:
        """Leave a tensor of the source out."""
        del self.state[key]
        self.note_dropped(key, why)

    def rows(self) -> tuple[WeightsRow, ...]:
        """The report: parts in the model's order, then what was dropped."""
        outcomes = dict.fromkeys(self.model.state_dict(), ("loaded", "")) | self._outcomes
        counted = Counter((_part(key), *outcome) for key, outcome in outcomes.items())
        taken = [WeightsRow(part, n, *outcome) for (part, *outcome), n in counted.items()]
        dropped = [WeightsRow(part, n, "dropped", why) for (part, why), n in self._dropped.items()]
        return (*taken, *dropped, *self.remarks)


def is_layer_scale(key: str) -> bool:
    """Whether a name is that of factors on a branch of a block."""
    return key.startswith("blocks.") and key.endswith(tuple(LAYER_SCALE))


def _part(key: str) -> str:
    return "layer scale" if is_layer_scale(key) else key.split(".")[0]
