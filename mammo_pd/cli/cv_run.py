"""``mammo-pd cv-run``: one run of a cross-validation; ``mammo-pd cv`` starts it as a process."""

import signal
from pathlib import Path
from typing import Literal

from mammo_pd.cli.train import fit_with_advice


def cv_run(
    folder: Path, fold: int, seed: int, /, *, checkpoint: Literal["model", "last"] = "model"
) -> None:
    """Train or resume one run of a cross-validation, and score it.

    Args:
        folder: The cross-validation's, begun by mammo-pd cv.
        fold: That is tested.
        seed: Of the run.
        checkpoint: Weights that are scored.
    """
    from mammo_pd.orphans import signal_when_parent_dies

    # It saves what it can of the epoch, and the same `mammo-pd cv` goes on from there. Before the
    # imports, which take seconds in which the parent may die.
    signal_when_parent_dies(signal.SIGTERM)
    from mammo_pd.inference.predict import predict
    from mammo_pd.training.cross_validation import CrossValidation
    from mammo_pd.training.runs import RunFolder

    validation = CrossValidation.open(folder)
    trained = fit_with_advice(lambda: validation.prepare_run(fold, seed))
    # Beside other processes of the same run, one cannot set a device up for itself; `cv` scores.
    if trained is not None and validation.config.device.devices == 1:
        predict(
            RunFolder.open(trained),
            store=Path(validation.info.store),
            checkpoint=checkpoint,
            reuse=True,
        )
