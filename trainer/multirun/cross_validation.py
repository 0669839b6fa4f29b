"""Cross-validation: a run for each fold, what they come to, and how each row was answered when it was tested."""

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
from models.architectures.word2vec import Word2VecModule
from models.layers.text_bag import VECTORS
from models.training.prediction_head import labels, to_units
from trainer.evaluation import report
from trainer.export.average_artifacts import average
from trainer.folders import run_folder
from trainer.multirun.child_runs import check_begun, child_config, child_run_context, summary
from trainer.multirun.process_pool import run_all
from trainer.run.run import Outcome, run_once

log = logging.getLogger(__name__)

START = "model.inputs.text.vectors"
"""The setting of a run whose vectors words start from."""
MODEL = "model.pt"
PREDICTIONS, OUT_OF_FOLD = "predictions.parquet", "out_of_fold.parquet"


def cross_validate(config: DictConfig, folder: Path, begun: Callable[[], None]) -> dict[str, float]:
    """A run for each fold, in fold_0, fold_1 and so on; those that are done are left out, a broken one goes on.

    Returns the mean of each metric under its name, and the deviation between the folds (n - 1) under NAME/std. Writes
    them as metrics.json, and as out_of_fold.parquet the answer to each row in the fold that tested it (`predictions`,
    and `fold`), as model.pt the mean of the folds' models. Word2Vec answers nothing: its folds have vectors, and a
    cross-validation whose words start from them takes those of the same fold. Raises ConfigError where a fold was begun
    with other settings.
    """
    started = time.perf_counter()
    check_begun(config, folder)
    run_folder.write_begun(folder, config)
    begun()
    folders = [folder / f"fold_{fold}" for fold in range(config.cross_validate)]
    run_all({each: partial(_carry_out_fold, config, fold, each) for fold, each in enumerate(folders)}, config)
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
    """Of each test row `file`, `line`, `target`, `prediction`, and for classes `probability_<class>`."""
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


def _carry_out_fold(config: DictConfig, fold: int, folder: Path) -> None:
    log.info("fold %d of %d, %s", fold, config.cross_validate, folder.name)
    with child_run_context(folder):
        changes = {"cross_validate": None, "data.split.folds": config.cross_validate, "data.split.fold": fold}
        vectors = OmegaConf.select(config, START)
        if vectors is not None and (Path(vectors) / folder.name).is_dir():
            changes[START] = str(Path(vectors) / folder.name)
        own = child_config(config, folder, changes)
        if (folder / PREDICTIONS).exists() or (folder / VECTORS).exists():
            log.info("%s was done before", folder.name)
            return
        outcome = run_once(own, folder, describe=fold == 0)
        log.info("%s: %s", folder.name, report.reached(outcome.metrics, config.monitor))
        if isinstance(outcome.module, Word2VecModule):
            return
        answers = predictions(outcome)
        # Last of all: it says of a fold that it is done, as its vectors do of Word2Vec's.
        with writing(str(folder / PREDICTIONS)) as write:
            write(answers)
