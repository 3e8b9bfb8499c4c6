"""A checkpoint as MLflow loads it: ``mlflow.pyfunc.load_model`` calls `_load_pyfunc`."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mammo_pd.backbones.build import build_backbone
from mammo_pd.errors import InputError
from mammo_pd.inference.score import batches_of, scoring_sampler
from mammo_pd.terms import Level, ScoredPatches
from mammo_pd.training.checkpoint import OpenCheckpoint, open_checkpoint
from mammo_pd.training.objectives import build_objective
from mammo_pd.training.scoring import score_batches


class ScoringModel:
    """Scores images as `mammo_pd.inference.predict` does, from a checkpoint's file alone.

    Args:
        checkpoint: a run's model.safetensors.

    Raises:
        InputError: not a checkpoint, or one of a version that did not say what it is.
    """

    def __init__(self, checkpoint: Path) -> None:
        with open_checkpoint(checkpoint) as opened:
            self._read(opened)

    def _read(self, opened: OpenCheckpoint) -> None:
        card, checkpoint = opened.header().card, opened.path
        if card is None:
            raise InputError(
                f"{checkpoint} was made by an earlier version and does not record its model; train "
                "again, or score its run: mammo-pd evaluate RUN"
            )
        config = card.run_config()
        self._objective = build_objective(config.training)
        if self._objective.judged is not Level.IMAGE:
            raise InputError(
                f"{checkpoint} judges all images of one {self._objective.judged} together "
                "(training.fusion), and MLflow gives images one by one; score them by mammo-pd "
                "predict."
            )
        backbone = build_backbone(
            card.model,
            card.img_size,
            num_outputs=self._objective.num_outputs,
            global_pool=config.model.global_pool,
        )
        model = self._objective.build_model(backbone)
        opened.load_into(model, backbone.timm_model)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.eval().to(self._device)
        self._sampler = scoring_sampler(
            backbone,
            card.img_size,
            card.normalization,
            ScoredPatches(config.patch_dropout.score_on),
        )

    def predict(
        self, model_input: npt.NDArray[np.uint16], params: dict[str, Any] | None = None
    ) -> npt.NDArray[np.float64]:
        """Score images.

        Args:
            model_input: (B, height, width) uint16 as a store has them: cropped to the breast, air
                0, the chest wall on the left; of any one size, which is scaled to the model's.
            params: MLflow's; there are none.

        Returns:
            (B, T) scores.
        """
        scores = np.empty((len(model_input), len(self._objective.score_columns)))
        batches = batches_of(list(model_input))
        for rows, found in score_batches(
            self._model, self._sampler, self._objective, batches, self._device
        ):
            scores[rows.numpy()] = found.cpu().numpy()
        return scores


def _load_pyfunc(path: str) -> ScoringModel:
    return ScoringModel(Path(path))
