"""Ends a trial of a search that is worse than the others."""

from typing import Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from models.training.lightning_module import SupervisedModule
from trainer.folders.status import Pruned
from trainer.search.study import open_study


class Pruning(Callback):
    """Reports the best monitored value so far to the study after each epoch; raises `Pruned` if its pruner says so.

    Does nothing without `trial`, the number in the study, or with the pruner "none". A resumed trial does not report
    an epoch twice.
    """

    def __init__(
        self,
        *,
        pruner: Literal["median", "hyperband", "none"] = "median",
        storage: str | None = None,
        study: str | None = None,
        trial: int | None = None,
    ) -> None:
        self.active = trial is not None and pruner != "none"
        self.pruner, self.storage, self.study, self.number = pruner, storage, study, trial

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.active or not trainer.is_global_zero:
            return
        from optuna.trial import Trial  # here, because only searches need it

        assert self.storage is not None
        assert self.study is not None
        assert self.number is not None
        study = open_study(self.storage, self.study, pruner=self.pruner, epochs=trainer.max_epochs)
        frozen = study.trials[self.number]
        self.active = not frozen.state.is_finished()  # the run is resumed after the search
        self.reported = dict(frozen.intermediate_values)
        self.trial = Trial(study, frozen._trial_id)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, SupervisedModule)
        behind = trainer.is_global_zero and self._is_behind(trainer, pl_module)
        if trainer.strategy.reduce_boolean_decision(behind, all=False):
            value = float(trainer.callback_metrics[pl_module.monitor])
            raise Pruned(f"pruned after epoch {trainer.current_epoch + 1}: {pl_module.monitor} {value:.4g} is behind")

    def _is_behind(self, trainer: pl.Trainer, module: SupervisedModule) -> bool:
        epoch, measured = trainer.current_epoch, trainer.callback_metrics.get(module.monitor)
        if not self.active or epoch in self.reported or measured is None:
            return False
        pick = min if module.mode == "min" else max
        self.reported[epoch] = pick([float(measured), *self.reported.values()])
        self.trial.report(self.reported[epoch], epoch)
        return self.trial.should_prune()
