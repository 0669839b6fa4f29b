"""Cross-validation: one run per fold, the mean of their metrics, and the out-of-fold predictions."""

import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from omegaconf import DictConfig, OmegaConf

from datamodules.readers.read import FILE, LINE
from inference.writers import writing
from models.layers.text_bag import VECTORS
from models.training.prediction_head import labels, to_units
from trainer.evaluation import report
from trainer.export.average_artifacts import average
from trainer.folders import run_folder
from trainer.multirun.child_runs import check_unchanged, child_config, child_run_context, summary
from trainer.multirun.process_pool import run_all
from trainer.run.run import Outcome, run_once

log = logging.getLogger(__name__)

WORD_VECTORS = "model.inputs.text.vectors"
"""Setting with the folder of the run that trained the initial word vectors."""
MODEL = "model.pt"
PREDICTIONS, OUT_OF_FOLD = "predictions.parquet", "out_of_fold.parquet"


def cross_validate(config: DictConfig, folder: Path, begun: Callable[[], None]) -> dict[str, float]:
    """Trains one run per fold, in fold_0, fold_1 and so on. Finished folds are skipped, interrupted ones resume.

    Returns the mean of each metric under its name, and the standard deviation between folds (n - 1) under NAME/std.
    Writes them to metrics.json, the prediction for each row by the fold that tested it to out_of_fold.parquet
    (`predictions` and `fold`), and the mean of the models to model.pt. Word2Vec makes no predictions: its folds write
    vectors, and a cross-validation that starts from them uses those of the same fold. Raises ConfigError if a fold was
    started with other settings.
    """
    started = time.perf_counter()
    check_unchanged(config, folder)
    run_folder.write_begun(folder, config)
    begun()
    folders = [folder / f"fold_{fold}" for fold in range(config.cross_validate)]
    runs = {each: partial(_run_fold, config, fold, each) for fold, each in enumerate(folders)}
    run_all(runs, config, forward=(log, report.log))
    answers = [
        pl.read_parquet(each / PREDICTIONS).with_columns(fold=pl.lit(fold))
        for fold, each in enumerate(folders)
        if (each / PREDICTIONS).exists()
    ]
    if answers:
        with writing(str(folder / OUT_OF_FOLD)) as write:
            write(pl.concat(answers).sort("file", "line"))
    metrics = summary([json.loads((each / "metrics.json").read_text()) for each in folders])
    artifacts = [each / MODEL for each in folders]
    if all(artifact.exists() for artifact in artifacts):
        plain: Any = OmegaConf.to_container(config, resolve=True)
        average(folder / MODEL, artifacts, metrics, plain)
    run_folder.write_metrics(folder, metrics)
    log.info("%s", report.cross_validation(folder, metrics, len(folders), time.perf_counter() - started))
    return metrics


def predictions(outcome: Outcome) -> pl.DataFrame:
    """Predictions for the test rows: `file`, `line`, `target`, `prediction`, and for classes `probability_<class>`."""
    module, datamodule, target = outcome.module, outcome.datamodule, outcome.datamodule.target
    output, target_values = outcome.trainer.outputs(module, datamodule.test_dataloader())
    answers, truth = module.predict(output).cpu(), target_values.cpu()
    rows = (
        datamodule.row_locations("test")
        .head(len(answers))
        .select(pl.col(FILE).alias("file"), pl.col(LINE).alias("line"))
    )
    if target.task == "regression":
        return rows.with_columns(
            target=pl.Series(to_units(truth.double(), target).numpy()), prediction=pl.Series(answers.numpy())
        )
    label = labels(answers, target.task, module.threshold)
    names = np.array(target.classes)
    return rows.with_columns(
        pl.Series("target", names[truth.numpy()]),
        pl.Series("prediction", names[label.numpy()]),
        *(pl.Series(f"probability_{name}", answers[:, code].numpy()) for code, name in enumerate(target.classes)),
    )


def _run_fold(config: DictConfig, fold: int, folder: Path) -> None:
    log.info("fold %d of %d, %s", fold, config.cross_validate, folder.name)
    with child_run_context(folder):
        changes = {"cross_validate": None, "data.split.folds": config.cross_validate, "data.split.fold": fold}
        vectors = OmegaConf.select(config, WORD_VECTORS)
        if vectors is not None and (Path(vectors) / folder.name).is_dir():
            changes[WORD_VECTORS] = str(Path(vectors) / folder.name)
        of_fold = child_config(config, folder, changes)
        if (folder / PREDICTIONS).exists() or (folder / VECTORS).exists():
            log.info("%s is already done", folder.name)
            return
        outcome = run_once(of_fold, folder, describe=fold == 0)
        log.info("%s: %s", folder.name, report.reached(outcome.metrics, config.monitor))
        if not outcome.module.answers_rows:
            return
        answers = predictions(outcome)
        # Written last, because it marks the fold as done, as the vectors do for Word2Vec.
        with writing(str(folder / PREDICTIONS)) as write:
            write(answers)
