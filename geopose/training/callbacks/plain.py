"""The last epochs of a run without augmentation: when they begin."""

from typing import Any

from catalyst.core.callback import Callback

from geopose.training.callbacks.stop import TimeBudget


class PlainEpochsCallback(Callback):
    """Tells the training samples before every epoch whether to be mere crops.

    An epoch is plain if it ends within the last `plain_epochs` of `epochs`, or, with a limit of
    time, is expected to end within the same share of it, going by the epochs before. A resumed
    epoch is judged anew: by the epochs alone that gives the same; the clock, which the learning
    rate follows too, may have it begin earlier.

    Args:
        plain_epochs: how many. epochs: of the run.
        budget: the clock of `train.max_minutes`.
    """

    def __init__(self, plain_epochs: int, epochs: int, budget: TimeBudget) -> None:
        super().__init__(order=0)
        self._plain, self._epochs, self._budget = plain_epochs, epochs, budget

    def on_epoch_start(self, runner: Any) -> None:
        """All ranks read the clock together."""
        self._budget.update()
        runner.loaders["train"].dataset.set_plain(self.is_plain(runner.epoch_step))

    def is_plain(self, epoch: int) -> bool:
        """Whether an epoch that is about to start, counted from 1, is one of the last."""
        if epoch > self._epochs - self._plain:
            return True
        expected = self._budget.share_used * epoch / max(1, epoch - 1)
        return expected > 1.0 - self._plain / self._epochs
