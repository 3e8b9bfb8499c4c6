"""A masked autoencoder: predict dropped patches from the kept ones; no label is needed.

The kept patches alone are encoded. Of the dropped ones some that hold breast are read through the
same map, and their pixels, normalised within each patch, are what a light decoder is to predict.

Shapes: B images, K kept patches of each, M predicted ones, N of the whole grid, P the patch size.

Source: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from mammo_pd.backbones.base import Backbone
from mammo_pd.batch import ImageBatch
from mammo_pd.config import TrainingSettings
from mammo_pd.errors import InputError
from mammo_pd.patches.draw import draw_dropped
from mammo_pd.patches.sampler import Kept, PatchSampler, Placement
from mammo_pd.training.objectives.base import Objective
from mammo_pd.training.objectives.pixel_decoder import PixelDecoder

# Of the grid, so many patches are predicted: as many as are kept at a rate of .25. Breast is some
# six tenths of the input (RSNA, mini-MIAS at 518x392), so these are about half of its dropped
# patches; all of them would double the reading and the decoder for the same images.
_PREDICTED_SHARE = 0.25
# Of the standardised pixels' variance. It keeps the noise of patches without any contrast, less
# than about two of 256 grey levels, from being blown up to that of the others.
_FLOOR = 1e-3


class MaskedAutoencoder(Objective):
    """Mean squared error of the predicted patches that hold breast, each image's own mean.

    The error of a prediction of nothing but each patch's mean is just below 1.

    Args:
        settings: of the run; ``monitor`` is read.

    Raises:
        InputError: there is no such metric to monitor.
    """

    num_outputs = 0
    target_columns = ()
    score_columns = ("error",)
    monitor = "val_loss"
    is_pretext = True

    def __init__(self, settings: TrainingSettings) -> None:
        if settings.monitor not in (None, self.monitor):
            raise InputError(
                f"training.monitor {settings.monitor!r} does not exist for a masked autoencoder, "
                "which uses no labels; drop it (val_loss is used)."
            )

    def targets(self, rows: pd.DataFrame) -> npt.NDArray[np.float32]:
        """(rows, 0): nothing but the images themselves."""
        return np.empty((len(rows), 0), np.float32)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean over the images of each image's error; one without a patch that counts adds 0.

        Args:
            outputs: (B, M, P * P) predictions.
            targets: (B, M, P * P), from `training_inputs`.
        """
        total, count = _errors(outputs, targets)
        return (total / count.clamp(min=1)).mean()

    def scores(self, outputs: Tensor) -> Tensor:
        """The errors that the model has computed in evaluation."""
        return outputs

    def metrics(self, rows: pd.DataFrame, scores: npt.NDArray[np.float64]) -> dict[str, float]:
        """The mean error over the images that have any; infinite if none has."""
        known = scores[~np.isnan(scores)]
        return {"val_loss": float(known.mean()) if known.size else float("inf")}

    def build_model(self, backbone: Backbone) -> nn.Module:
        """The backbone with a decoder of pixels.

        Raises:
            InputError: the backbone pools by attention, for which there is nothing to learn from,
                or merges its tokens.
        """
        if backbone.window is not None:
            raise InputError(
                "pretraining predicts patches from tokens of their own, and this model merges "
                "them; choose a ViT (docs/models.md)."
            )
        if backbone.timm_model.attn_pool is not None:
            raise InputError(
                "this model pools by attention, and pretraining pools nothing, so that the pooling "
                "would learn nothing; choose another pooling: --set model.global_pool=avg"
            )
        backbone.class_token_alone = False
        return Autoencoder(backbone)

    def training_inputs(
        self, sampler: PatchSampler, batch: ImageBatch, keys: Tensor, num_keep: int
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Read the kept patches and those to predict, and nothing else.

        Returns:
            The kept patches (B, K, P * P), their positions (B, K), the keys and the positions to
            predict (B, M); and the pixels there (B, M, P * P), normalised within each patch, NaN
            for patches that do not count, as they hold no breast.
        """
        return self._read(sampler, batch, keys, sampler.place(batch, keys), num_keep)

    def evaluation_inputs(
        self, sampler: PatchSampler, batch: ImageBatch, kept: Kept | None = None
    ) -> tuple[Tensor, ...]:
        """The same of the images as they are, and the pixels with them.

        Raises:
            InputError: every patch is to be kept.
        """
        if kept is None:
            raise InputError(
                "a masked autoencoder is judged on patches that were dropped, and none was; it "
                "gives no score of a whole image."
            )
        placement = sampler.place(batch, None)
        inputs, pixels = self._read(sampler, batch, kept.keys, placement, kept.num_keep)
        return (*inputs, pixels)

    def _read(
        self,
        sampler: PatchSampler,
        batch: ImageBatch,
        keys: Tensor,
        placement: Placement,
        num_keep: int,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        rows, columns = sampler.grid_size
        count = count_predicted(rows * columns, num_keep)
        kept = sampler.draw(batch, keys, placement, num_keep)
        tissue = sampler.tissue(batch, placement)
        asked, counts = draw_dropped(keys, kept, tissue, count)
        pixels = normalise_patches(sampler.read(batch, placement, asked))
        pixels = torch.where(counts[:, :, None], pixels, torch.nan)
        return (sampler.read(batch, placement, kept), kept, keys, asked), pixels


class Autoencoder(nn.Module):
    """A backbone that sees the kept patches, and a decoder that predicts others from its tokens.

    Args:
        backbone: encodes; it must give every token (`Backbone.class_token_alone` is off).
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = PixelDecoder(backbone.embed_dim, backbone.grid_size, backbone.patch_size)

    def forward(
        self,
        patches: Tensor,
        kept: Tensor,
        keys: Tensor,
        asked: Tensor,
        pixels: Tensor | None = None,
    ) -> Tensor:
        """Predict some patches; given their pixels too, say how far off each image's are.

        Args:
            patches: (B, K, P * P) standardised pixels of the kept patches.
            kept: (B, K) int64, their positions.
            keys: (B,) int64.
            asked: (B, M) int64, the positions to predict.
            pixels: (B, M, P * P), what is there, NaN in patches that do not count.

        Returns:
            Predictions (B, M, P * P); with ``pixels`` errors (B, 1), NaN where no patch counts.
        """
        tokens = self.backbone.encode(patches, kept, keys)
        # Where a model has its last norm after pooling, each token takes it.
        tokens = self.backbone.timm_model.fc_norm(tokens)
        predicted: Tensor = self.decoder(tokens, kept, asked)
        if pixels is None:
            return predicted
        total, count = _errors(predicted.float(), pixels)
        return torch.where(count > 0, total / count, torch.nan)[:, None]


def count_predicted(num_tokens: int, num_keep: int) -> int:
    """M of N patches, of which K are kept: the same for every image, so that shapes are static."""
    return min(round(num_tokens * _PREDICTED_SHARE), num_tokens - num_keep)


def normalise_patches(pixels: Tensor) -> Tensor:
    """Give each patch a mean of 0 and a deviation of about 1: (B, M, P * P), as it comes."""
    mean, std = mean_and_deviation(pixels)
    return (pixels - mean) / std


def mean_and_deviation(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """What each patch is normalised by: two of (B, M, 1) from (B, M, P * P) standardised pixels."""
    variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True, correction=0)
    return mean, (variance + _FLOOR).sqrt()


def _errors(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sums (B,) of the squared errors of the patches that count, and how many (B,) do."""
    counts = ~targets[:, :, 0].isnan()
    errors = (outputs - torch.where(counts[:, :, None], targets, 0.0)).square().mean(dim=-1)
    return torch.where(counts, errors, 0.0).sum(dim=1), counts.sum(dim=1)
