"""What is settled on the validation rows once the weights are: members, temperature, threshold."""

import logging
import math

from datamodules.tabular import TableDataModule
from models.architectures.tabm import TabM, choose_members
from models.training.calibration import CLOSE, LIMIT, best_temperature, log_loss_at
from models.training.lightning_module import SupervisedModule
from models.training.prediction_head import all_logits, combine
from models.training.thresholds import best_threshold
from trainer.loop.trainer import Trainer

log = logging.getLogger(__name__)


def postprocess(
    trainer: Trainer, module: SupervisedModule, datamodule: TableDataModule, *, calibrate: bool = True
) -> dict[str, float]:
    """Chooses the members that stay, the temperature and the threshold, where they are asked for, and says so.

    Returns `fit/members`, `fit/temperature` and `fit/threshold` of those.
    """
    network, target = module.network, module.target
    keep = network.keep if isinstance(network, TabM) else None
    calibrate = calibrate and target.task != "regression"
    if keep is None and not calibrate and module.chosen_for is None:
        return {}
    output, truth = trainer.outputs(module, datamodule.val_dataloader())
    settled: dict[str, float] = {}
    if isinstance(network, TabM) and keep is not None:
        chosen = choose_members(output, truth, module.loss, target.task, keep)
        network.select(chosen)
        log.info("members: %d of %d stay", keep, output.shape[1])
        output = output[:, chosen]
        settled["fit/members"] = float(keep)
    if calibrate:
        logits = all_logits(combine(output, target.task)).double()
        module.answer.temperature = temperature = best_temperature(logits, truth)
        before, after = log_loss_at(logits, truth, 1.0), log_loss_at(logits, truth, temperature)
        end = ", as far as it may go" if abs(math.log(temperature)) > LIMIT - CLOSE else ""
        log.info("temperature: %.4g%s (val/log_loss %.5g, %.5g without)", temperature, end, after, before)
        settled["fit/temperature"] = temperature
    if module.chosen_for is not None:
        probability = module.predict(output)[:, 1]
        module.threshold, value = best_threshold(probability, truth, module.chosen_for, target.classes)
        log.info("threshold: %.4g (val/%s %.5g)", module.threshold, module.chosen_for, value)
        settled["fit/threshold"] = module.threshold
    return settled
