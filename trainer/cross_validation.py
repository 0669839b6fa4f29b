"""Cross-validation: a run for each fold, what they come to, and how each row was answered when it was tested."""

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from datamodules.read import FILE, LINE
from models.texts import VECTORS
from models.word2vec import Word2VecModule
from serving.write import writing
from trainer import folder as run_folder
from trainer import report
from trainer.problems import ConfigError
from trainer.resume import LAST
from trainer.run import Outcome, carry_out

log = logging.getLogger(__name__)

START = "model.inputs.text.vectors"
"""The setting of a run whose vectors words start from."""
PREDICTIONS, OUT_OF_FOLD = "predictions.parquet", "out_of_fold.parquet"


def cross_validate(config: DictConfig, folder: Path) -> dict[str, float]:
    """A run for each fold, in fold_0, fold_1 and so on; those that are done are left out, a broken one goes on.

    Returns the mean of each metric under its name, and the deviation between the folds (n - 1) under NAME/std. Writes
    them as metrics.json, and as out_of_fold.parquet the answer to each row in the fold that tested it (`predictions`,
    and `fold`). Word2Vec answers nothing: its folds have vectors, and a cross-validation whose words start from them
    takes those of the same fold. Raises ConfigError where a fold was begun with other settings.
    """
    started = time.perf_counter()
    run_folder.write_config(folder, config)
    run_folder.write_environment(folder)
    folders = [folder / f"fold_{fold}" for fold in range(config.cross_validate)]
    for fold, each in enumerate(folders):
        log.info("fold %d of %d, %s", fold, len(folders), each.name)
        _carry_out_fold(config, fold, each)
    answers = [
        pl.read_parquet(each / PREDICTIONS).with_columns(fold=pl.lit(fold))
        for fold, each in enumerate(folders)
        if (each / PREDICTIONS).exists()
    ]
    if answers:
        with writing(str(folder / OUT_OF_FOLD)) as write:
            write(pl.concat(answers).sort("file", "line"))
    metrics = summary([json.loads((each / "metrics.json").read_text()) for each in folders])
    run_folder.write_metrics(folder, metrics)
    log.info("%s", report.cross_validation(folder, metrics, len(folders), time.perf_counter() - started))
    return metrics


def summary(folds: list[dict[str, float | None]]) -> dict[str, float]:
    """Mean and deviation of each metric, NaN where a fold has none."""
    metrics: dict[str, float] = {}
    for name in dict.fromkeys(name for fold in folds for name in fold):
        values = [math.nan if (value := fold.get(name)) is None else value for fold in folds]
        metrics[name] = float(np.mean(values))
        metrics[f"{name}/std"] = float(np.std(values, ddof=1))
    return metrics


def predictions(outcome: Outcome) -> pl.DataFrame:
    """Of each test row `file`, `line`, `target`, `prediction`, and for classes `probability_<class>`."""
    module, datamodule, target = outcome.module, outcome.datamodule, outcome.datamodule.target
    outputs: Any = outcome.trainer.predict(module, dataloaders=datamodule.test_dataloader())
    answers = torch.cat([module.predict(output) for output in outputs]).cpu().numpy()
    truth = torch.cat([batch["target"] for batch in datamodule.test_dataloader()]).cpu().numpy()[: len(answers)]
    rows = datamodule.places("test").head(len(answers)).select(pl.col(FILE).alias("file"), pl.col(LINE).alias("line"))
    if target.task == "regression":
        return rows.with_columns(
            target=pl.Series(truth.astype(np.float64) * target.scale + target.mean), prediction=pl.Series(answers)
        )
    label = answers[:, 1] >= module.threshold if target.task == "binary" else answers.argmax(1)
    names = np.array(target.classes)
    return rows.with_columns(
        pl.Series("target", names[truth]),
        pl.Series("prediction", names[label.astype(int)]),
        *(pl.Series(f"probability_{name}", answers[:, code]) for code, name in enumerate(target.classes)),
    )


def _carry_out_fold(config: DictConfig, fold: int, folder: Path) -> None:
    with _run_folder(folder):
        own = config.copy()
        OmegaConf.update(own, "data.split.folds", config.cross_validate, force_add=True)
        OmegaConf.update(own, "data.split.fold", fold, force_add=True)
        own.cross_validate = None
        vectors = OmegaConf.select(own, START)
        if vectors is not None and (Path(vectors) / folder.name).is_dir():
            OmegaConf.update(own, START, str(Path(vectors) / folder.name))
        own.resume = str(folder / LAST) if (folder / LAST).exists() else None
        _check_same(own, folder)
        if (folder / PREDICTIONS).exists() or (folder / VECTORS).exists():
            log.info("was done before")
            return
        folder.mkdir(exist_ok=True)
        outcome = carry_out(own, folder, describe=fold == 0)
        if isinstance(outcome.module, Word2VecModule):
            return
        answers = predictions(outcome)
        # Last of all: it says of a fold that it is done, as its vectors do of Word2Vec's.
        with writing(str(folder / PREDICTIONS)) as write:
            write(answers)


@contextmanager
def _run_folder(folder: Path) -> Iterator[None]:
    """`${hydra:runtime.output_dir}`, where callbacks and loggers write, is this folder."""
    instance = HydraConfig.instance()
    before: Any = instance.cfg
    changed = before.copy()
    with read_write(changed.hydra), open_dict(changed.hydra):
        changed.hydra.runtime.output_dir = str(folder)
    instance.set_config(changed)
    try:
        yield
    finally:
        instance.cfg = before


def _check_same(config: DictConfig, folder: Path) -> None:
    if not (folder / "config.yaml").exists():
        return
    before: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    now: Any = OmegaConf.to_container(config, resolve=True)
    keys = sorted((before.keys() | now.keys()) - {"resume"})
    changed = [key for key in keys if before.get(key) != now.get(key)]
    if changed:
        raise ConfigError(
            f"cross_validate: {folder} was begun with other settings of {', '.join(changed)} (its config.yaml): leave"
            " them as they were, or choose another hydra.run.dir."
        )
