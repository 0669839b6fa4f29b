"""Choices made on the validation rows after training: ensemble members, temperature, threshold."""

import logging
import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from datamodules.tabular import TableDataModule
from models.training.calibration import CLOSE, LIMIT, best_temperature, log_loss_at
from models.training.lightning_module import SupervisedModule
from models.training.members import choose_members
from models.training.prediction_head import all_logits, combine
from models.training.thresholds import best_threshold
from trainer.loop.trainer import Trainer

log = logging.getLogger(__name__)


@runtime_checkable
class MemberSelection(Protocol):
    """A network of several members, such as TabM, that can drop some of them after training."""

    keep: int | None
    """Number of members to keep; None keeps all."""

    def select(self, members: Sequence[int]) -> None:
        """Keeps only these members."""


def postprocess(
    trainer: Trainer, module: SupervisedModule, datamodule: TableDataModule, *, calibrate: bool = True
) -> dict[str, float]:
    """Selects members, fits the temperature and chooses the threshold, if the settings ask for them.

    Returns `fit/members`, `fit/temperature` and `fit/threshold`, each only if it was set here.
    """
    network, target = module.network, module.target
    keep = network.keep if isinstance(network, MemberSelection) else None
    calibrate = calibrate and target.task != "regression"
    if keep is None and not calibrate and module.chosen_for is None:
        return {}
    output, truth = trainer.outputs(module, datamodule.val_dataloader())
    metrics: dict[str, float] = {}
    if isinstance(network, MemberSelection) and keep is not None:
        chosen = choose_members(output, truth, module.loss, target.task, keep)
        network.select(chosen)
        log.info("members: kept %d of %d", keep, output.shape[1])
        output = output[:, chosen]
        metrics["fit/members"] = float(keep)
    if calibrate:
        logits = all_logits(combine(output, target.task)).double()
        module.answer.temperature = temperature = best_temperature(logits, truth)
        before, after = log_loss_at(logits, truth, 1.0), log_loss_at(logits, truth, temperature)
        limit = ", the limit of its range" if abs(math.log(temperature)) > LIMIT - CLOSE else ""
        log.info("temperature: %.4g%s (val/log_loss %.5g, %.5g without)", temperature, limit, after, before)
        metrics["fit/temperature"] = temperature
    if module.chosen_for is not None:
        probability = module.predict(output)[:, 1]
        module.threshold, value = best_threshold(probability, truth, module.chosen_for, target.classes)
        log.info("threshold: %.4g (val/%s %.5g)", module.threshold, module.chosen_for, value)
        metrics["fit/threshold"] = module.threshold
    return metrics
