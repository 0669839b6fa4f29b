"""Weight decay and dropout that decrease during the run."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import nn

from common.errors import InputError
from models.training.lightning_module import SupervisedModule
from models.training.lr_schedules import flat_cos


class Anneal(Callback):
    """Multiplies weight decay and dropout by `flat_cos` of the fraction of the run: 1 in the first half, 0 at the end.

    The initial decay is kept in the optimizer's groups, like the initial learning rate. A resumed run, whose optimizer
    has the decay of the last step, therefore continues exactly. After the run the dropout rates are restored.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, SupervisedModule)
        if trainer.estimated_stepping_batches == float("inf"):
            raise InputError("Anneal needs the length of the run: set trainer.max_epochs or trainer.max_steps.")
        self.groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        for group in self.groups:
            group.setdefault("initial_weight_decay", group.get("weight_decay", 0.0))
        self.dropouts = [(m, m.p) for m in pl_module.network.modules() if isinstance(m, nn.Dropout)]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        factor = flat_cos(min(trainer.global_step / trainer.estimated_stepping_batches, 1.0))
        for group in self.groups:
            group["weight_decay"] = factor * group["initial_weight_decay"]
        for dropout, rate in self.dropouts:
            dropout.p = factor * rate

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for dropout, rate in self.dropouts:
            dropout.p = rate
