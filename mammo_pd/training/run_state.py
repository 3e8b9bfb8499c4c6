"""The state of a run in training: what a checkpoint holds, and saving it within an epoch."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

import torch

from mammo_pd.stopping import FollowedError, Request, StopSignals
from mammo_pd.training.averaging import WeightAverage
from mammo_pd.training.checkpoint import (
    Contents,
    is_finite,
    load_state,
    newest_state,
    state_of,
    weights_of,
)
from mammo_pd.training.checkpoint_writer import CheckpointWriter
from mammo_pd.training.epoch_meter import EpochProgress
from mammo_pd.training.runs import RunFolder
from mammo_pd.training.setup import RunSetup
from mammo_pd.training.shared_request import SharedRequest
from mammo_pd.wording import counted


class RunState:
    """What a checkpoint holds: weights, their average, the optimiser's state and the history.

    Args:
        setup: of the run, with its model already on the device.
        optimizer: the original one, not Fabric's wrapper.

    Attributes:
        history: the metrics of each finished epoch.
        average: the moving average of the weights.
    """

    def __init__(self, setup: RunSetup, optimizer: torch.optim.Optimizer) -> None:
        self.history: list[dict[str, float]] = []
        self.average = WeightAverage(setup.model, setup.config.training.ema_decay)
        self._setup = setup
        self._optimizer = optimizer
        self._card = setup.card

    def restore(self, run: RunFolder, optimizer: torch.optim.Optimizer) -> EpochProgress:
        """Load the run's newest checkpoint, if it has one, into model, optimiser and this state.

        Args:
            run: that holds the checkpoints.
            optimizer: Fabric's wrapper of the optimiser.

        Returns:
            How far the next epoch to train has already come.
        """
        newest = newest_state(run.last, run.midway)
        if newest is None:
            return EpochProgress()
        setup = self._setup
        state = load_state(newest, setup.model, optimizer, self.average)
        self.history.extend(state["history"])
        progress = EpochProgress(**state.get("progress", {}))
        # Checkpoints of earlier versions lack the scale of the loss in fp16.
        if state.get("precision"):
            setup.fabric.strategy.precision.load_state_dict(state["precision"])
        setup.say(_where(len(self.history), setup.config.training.epochs, progress.steps))
        return progress

    def after_epoch(self) -> Contents:
        """The state between two epochs."""
        return self.within_epoch(EpochProgress())

    def within_epoch(self, progress: EpochProgress) -> Contents:
        """The state after some steps of the epoch that follows the history."""
        facts = {
            "history": self.history,
            "progress": asdict(progress),
            "precision": self._setup.fabric.strategy.precision.state_dict(),
        }
        return state_of(self._setup.model, self._optimizer, self.average, facts, self._card)

    def weights(self, metrics: dict[str, float]) -> Contents:
        """The weights that are in the model now, not copied, with their epoch's metrics."""
        timm_model = self._setup.backbone.timm_model
        return weights_of(self._setup.model, timm_model, metrics, self._card)


def _where(finished: int, epochs: int, steps: int) -> str:
    """Where training goes on, after some finished epochs and some steps of the next."""
    if finished == epochs:
        return f"resuming after the last of {counted(epochs, 'epoch')}"
    place = f"after {counted(steps, 'step')}" if steps else "from its start"
    return f"resuming in epoch {finished + 1} of {epochs}, {place}"


class MidwaySaver:
    """Saves within an epoch: when a signal asks for it, or the last save was too long ago.

    Args:
        setup: of the run.
        run: where the checkpoint is written.
        state: what is saved.
        writer: of the checkpoints between epochs, which may still hold unwritten weights.
        signals: of this process.
    """

    def __init__(
        self,
        setup: RunSetup,
        run: RunFolder,
        state: RunState,
        writer: CheckpointWriter,
        signals: StopSignals,
    ) -> None:
        minutes = setup.config.training.checkpoint_minutes
        self._setup = setup
        self._run = run
        self._state = state
        self._writer = writer
        self._signals = signals
        self._seconds = math.inf if minutes is None else 60 * minutes
        self._shared = SharedRequest(setup.fabric.world_size, setup.device)
        self._saved = time.perf_counter()

    def after_epoch(self) -> None:
        """Count the epoch's own checkpoint as the one requested, and end if that was requested.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM; `FollowedError` in all processes but the
                first.
        """
        asked = self._shared.now(self._signals.take_request())
        self._saved = time.perf_counter()
        self._end_if(asked)

    def after_step(
        self, steps: int, progress: Callable[[int], EpochProgress], *, last: bool = False
    ) -> None:
        """Save if it is time, and end the training if a signal asked for it.

        Args:
            steps: completed in this epoch.
            progress: describes the epoch after that many steps.
            last: whether the epoch has no further step, so that what is asked must be done now.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM; `FollowedError` in all processes but the
                first.
        """
        # The first steps compile, and each kind of step may.
        self._signals.take_back()
        own = max(self._signals.take_request(), self._due())
        asked = self._shared.now(own) if last else self._shared.after_step(own)
        if asked:
            self._save(progress(steps))
            self._saved = time.perf_counter()
            # What was asked meanwhile is answered by what was just saved. The others wait here
            # until the first has written it.
            asked = max(asked, self._shared.now(self._signals.take_request()))
        self._end_if(asked)

    def _end_if(self, asked: Request) -> None:
        try:
            asked.raise_if_ending()
        except KeyboardInterrupt:
            if self._setup.fabric.is_global_zero:
                raise
            raise FollowedError from None

    def _due(self) -> Request:
        # One clock for all processes. Counted anew from when it is asked, which is answered later.
        now = time.perf_counter()
        if not self._setup.fabric.is_global_zero or now - self._saved <= self._seconds:
            return Request.NOTHING
        self._saved = now
        return Request.SAVE

    def _save(self, progress: EpochProgress) -> None:
        # Weights that are no longer finite are not saved; the loop will soon report the loss.
        if self._setup.fabric.is_global_zero and is_finite(self._setup.model):
            with self._signals.saving():
                # First the kept weights: no saved history may name an epoch whose weights are lost.
                self._writer.flush_chosen()
                self._state.within_epoch(progress).write(self._run.midway)

    @contextmanager
    def saving_if_interrupted(self, done: EpochProgress) -> Iterator[None]:
        """Save the finished epoch if its validation, the block, is interrupted."""
        try:
            yield
        except KeyboardInterrupt:
            self._save(done)
            raise
