"""What became of each part of a pretrained model: the table that train prints and a run keeps."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from mammo_pd.normalization import Normalization

# Where a checkpoint of ours says in its header what it is.
CARD_KEY = "model_card"


@dataclass(frozen=True)
class WeightsRow:
    """One part of the model, or of the file.

    Attributes:
        part: such as ``patch_embed``, ``blocks`` or ``head``.
        tensors: how many; 0 for a remark on what no tensor tells.
        outcome: ``loaded``, ``resampled``, ``summed``, ``folded``, ``moved``, ``set``, ``dropped``
            or ``at random``; several joined by commas. ``not known`` of a remark.
        detail: what changed, in words; may be empty.
    """

    part: str
    tensors: int
    outcome: str
    detail: str = ""


@dataclass(frozen=True)
class LearntFrom:
    """The patients that a run learnt from: all but those of the test part.

    Attributes:
        split: name of the split.
        split_hash: of its content.
        fold: that was tested; None for a split without folds.
    """

    split: str
    split_hash: str
    fold: int | None


@dataclass(frozen=True)
class WeightsReport:
    """How pretrained weights came into a model.

    Attributes:
        source: the file's name, without its folder, or the name on a hub.
        looks_like: the architecture that its tensors have, in words.
        stored_as: dtype in the file.
        model: timm's name of the model that took them.
        normalization: of the input, that the model was given with them.
        normalization_origin: why that one, in words.
        rows: every tensor of the file and of the model is in one of them.
        learnt_from: what the run that made them learnt from, then the run that it started from,
            and so on; empty where the file does not say.
    """

    source: str
    looks_like: str
    stored_as: str
    model: str
    normalization: Normalization
    normalization_origin: str
    rows: tuple[WeightsRow, ...]
    learnt_from: tuple[LearntFrom, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `as_dict` made."""
        plain = dict(values)
        plain["normalization"] = Normalization(**plain["normalization"])
        plain["rows"] = tuple(WeightsRow(**row) for row in plain["rows"])
        # Runs of earlier versions do not say.
        plain["learnt_from"] = tuple(LearntFrom(**one) for one in plain.get("learnt_from", ()))
        return cls(**plain)

    def lines(self) -> Iterable[str]:
        """The table, line by line."""
        yield f"weights {self.source} ({self.looks_like}, {self.stored_as}) into {self.model}:"
        cells = [(row.part, str(row.tensors or ""), row.outcome, row.detail) for row in self.rows]
        grey = self.normalization
        values = f"mean {grey.mean:.4g}, std {grey.std:.4g}"
        cells.append(("input", "", values, self.normalization_origin))
        widths = [max(len(cell[column]) for cell in cells) for column in range(3)]
        for part, tensors, outcome, detail in cells:
            columns = (part.ljust(widths[0]), tensors.rjust(widths[1]), outcome.ljust(widths[2]))
            yield "  ".join(("", *columns, detail)).rstrip()
