"""A model as other tools run it: a stored image of any size goes in, its scores come out.

Shapes: B images, T scores.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mammo_pd.backbones.base import Backbone
from mammo_pd.errors import InputError
from mammo_pd.inference.trained_model import TrainedModel
from mammo_pd.normalization import Normalization
from mammo_pd.patches.affine import fit_to_image_size
from mammo_pd.terms import Level, ScoredPatches
from mammo_pd.training.objectives import Objective


class WholeImageModel(nn.Module):
    """From a stored image to scores, all in one module: what a file for other tools computes.

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

    @classmethod
    def of(cls, model: TrainedModel) -> "WholeImageModel":
        """The module of a trained model, in evaluation mode.

        Raises:
            InputError: it scores images on tissue alone, or its objective reads images in a way of
                its own.
        """
        objective = model.objective
        if (score_on := model.card.run_config().patch_dropout.score_on) != ScoredPatches.ALL:
            raise InputError(
                f"the model scores images on {score_on} alone (patch_dropout.score_on), as many "
                "patches as each has, and other tools give it all of them; score with mammo-pd "
                "predict, or train with patch_dropout.score_on=all."
            )
        if objective.judged is not Level.IMAGE:
            raise InputError(
                f"the model judges all images of one {objective.judged} together "
                "(training.fusion), and other tools pass them one by one; score them with "
                "mammo-pd predict."
            )
        if type(objective).evaluation_inputs is not Objective.evaluation_inputs:
            raise InputError(
                f"the objective {model.card.objective} reads images in its own way, which other "
                "tools cannot reproduce."
            )
        card = model.card
        return cls(
            model.trained, model.backbone, objective, card.img_size, card.normalization
        ).eval()

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


def load_network(checkpoint: str) -> WholeImageModel:
    """Build the module out of a checkpoint's file, on the CPU: a MONAI bundle names this function.

    Raises:
        InputError: not a checkpoint that can be scored with.
    """
    return WholeImageModel.of(TrainedModel.load(Path(checkpoint))).cpu()
