"""A model as one ONNX file: a stored image of any size goes in, its scores come out.

Placing the image in the model's input, normalisation, every patch, the transformer and the scores
are all in the graph, so whoever runs it needs nothing of ours but the image as a store has it.
Needs onnx and onnxscript to write, and onnxruntime to read.
"""

import json
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mammo_pd import __version__
from mammo_pd.backbones.base import Backbone
from mammo_pd.errors import InputError
from mammo_pd.files import atomic_write
from mammo_pd.inference.trained_model import TrainedModel
from mammo_pd.normalization import Normalization
from mammo_pd.patches.affine import fit_to_image_size
from mammo_pd.training.objectives import Objective

# GridSample, by which the image is placed, came with 16, and its 5-D form with 20.
_OPSET = 20
# Of the image that the graph is traced with; it takes any other.
_TRACED = (97, 61)


class WholeImageModel(nn.Module):
    """What the file computes, as a module.

    Args:
        model: as it was trained, in evaluation mode.
        backbone: within it.
        objective: reads the scores.
        img_size: (height, width) in pixels.
        normalization: of the input.
    """

    def __init__(
        self,
        model: nn.Module,
        backbone: Backbone,
        objective: Objective,
        img_size: tuple[int, int],
        normalization: Normalization,
    ) -> None:
        super().__init__()
        self.model = model
        self._patch_size = backbone.patch_size
        self._objective = objective
        self._img_size = img_size
        self._normalization = normalization
        self.register_buffer("positions", torch.arange(backbone.num_tokens), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Score images of one size.

        Args:
            image: (B, 1, h, w) float32 in [0, 65535]: the breast, cropped, air 0, the chest wall on
                the left; at any resolution that is no smaller than the input.

        Returns:
            (B, T) float32.
        """
        rows, columns, side = *self._img_size, self._patch_size
        placed = self._place(image) / 65535
        normal = (placed - self._normalization.mean) / self._normalization.std
        grid = normal.reshape(-1, rows // side, side, columns // side, side)
        patches = grid.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)
        assert isinstance(self.positions, Tensor)
        positions = self.positions.expand(image.shape[0], -1)
        return self._objective.scores(self.model(patches, positions))

    def _place(self, image: Tensor) -> Tensor:
        """Read the model's input from the image, bilinearly, as `PatchSampler` does."""
        height = torch.ones(1, device=image.device) * image.shape[2]
        width = torch.ones(1, device=image.device) * image.shape[3]
        matrix = fit_to_image_size(height, width, self._img_size)[0]
        row = torch.arange(self._img_size[0], device=image.device) + 0.5
        column = torch.arange(self._img_size[1], device=image.device) + 0.5
        # From pixels to the unit of grid_sample, where the edges of the image lie at -1 and 1.
        down = (row * matrix[0, 0] + matrix[0, 2]) / height * 2 - 1
        across = (column * matrix[1, 1] + matrix[1, 2]) / width * 2 - 1
        grid = torch.stack(
            [across.expand(len(row), -1), down[:, None].expand(-1, len(column))], dim=-1
        )
        grid = grid.expand(image.shape[0], -1, -1, -1)
        return F.grid_sample(image, grid, padding_mode="zeros", align_corners=False)


def export_onnx(model: TrainedModel, file: Path) -> None:
    """Write a model as ONNX.

    The file's metadata hold what a reader must know: the names of the scores, the operating points,
    the settings of preprocessing, and that it is for research only.

    Args:
        model: to be written.
        file: replaced when the new one is complete.

    Raises:
        InputError: onnx is not installed, or the objective reads its images in a way of its own.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            "--onnx needs onnx and onnxscript; install them with: pip install 'mammo-pd[onnx]'"
        ) from error
    objective = model.objective
    if type(objective).evaluation_inputs is not Objective.evaluation_inputs:
        raise InputError(
            f"the objective {model.card.objective} reads images in a way of its own, which is not "
            "written as ONNX."
        )
    whole = WholeImageModel(
        model.trained, model.backbone, objective, model.card.img_size, model.card.normalization
    )
    whole = whole.eval().cpu().float()
    image = torch.zeros(2, 1, *_TRACED)
    dynamic = {axis: torch.export.Dim(name) for axis, name in ((0, "B"), (2, "h"), (3, "w"))}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        # Without strict tracing the size of the batch is fixed.
        traced = torch.export.export(whole, (image,), dynamic_shapes=(dynamic,), strict=True)
        program = torch.onnx.export(
            traced,
            dynamo=True,
            opset_version=_OPSET,
            input_names=["image"],
            output_names=["scores"],
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, _facts(model))
    with atomic_write(file) as beside:
        onnx.save(proto, beside)


def _facts(model: TrainedModel) -> dict[str, str]:
    card = model.card
    return {
        "producer": f"mammo-pd {__version__}",
        "research_use_only": "not a medical device",
        "input": "(B, 1, h, w) float32, 0 to 65535: the breast as a mammo-pd store has it",
        "score_names": json.dumps(model.objective.score_columns),
        "model": card.model,
        "img_size": json.dumps(card.img_size),
        "weights_sha256": model.digest,
        "preprocessing": json.dumps(card.preprocessing),
        "trained_on": json.dumps(card.trained_on),
        "operating_points": json.dumps(
            {target: points.dump() for target, points in model.operating_points.items()}
        ),
    }
