"""The target: its specification, its distribution in each split, and its encoding."""

from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from datamodules.schema import DataError, TargetSpec, Task
from datamodules.split import SPLITS


def describe_target(name: str, task: Task, values: pl.Series, split: np.ndarray) -> TargetSpec:
    """The target of the training rows (`split` is 0). Raises DataError if they all have the same value."""
    train = values.filter(split == 0)
    if train.n_unique() == 1:
        raise DataError(
            f"data.target={name}: every training row has {train[0]!r}; there is nothing to learn. Change"
            " data.split, or give other training rows"
        )
    if task == "regression":
        numbers = train.to_numpy()
        low, high = float(numbers.min()), float(numbers.max())
        return TargetSpec(name, task, mean=float(numbers.mean()), scale=float(numbers.std()) or 1.0, low=low, high=high)
    classes = sorted(values.filter(split >= 0).unique().cast(pl.String).to_list(), key=_natural)
    counts = _counts(train)
    return TargetSpec(name, task, tuple(classes), tuple(counts.get(each, 0) for each in classes))


def describe_splits(values: pl.Series, split: np.ndarray, target: TargetSpec) -> dict[str, dict[str, Any]]:
    """The number of rows of each split, and the rows of each class or the mean and standard deviation of the target."""
    described: dict[str, dict[str, Any]] = {}
    for code, name in enumerate(SPLITS):
        part = values.filter(split == code)
        described[name] = {"rows": len(part)}
        if target.task == "regression":
            numbers = part.to_numpy()
            described[name] |= {"mean": float(numbers.mean()), "deviation": float(numbers.std())}
        else:
            described[name]["classes"] = _counts(part)
    return described


def encode_target(values: pl.Series, target: TargetSpec) -> Tensor:
    """Class codes, int64 (rows,), or standardized values, float32 (rows,)."""
    if target.task == "regression":
        return torch.from_numpy((values.to_numpy() - target.mean) / target.scale).float()
    codes = values.replace_strict(list(target.classes), range(len(target.classes)), return_dtype=pl.Int64)
    return torch.from_numpy(codes.to_numpy().copy())


def _counts(values: pl.Series) -> dict[str, int]:
    return {str(name): rows for name, rows in values.value_counts().iter_rows()}


def _natural(name: str) -> tuple[bool, float, str]:
    """Sort key: classes that are numbers in numeric order, then the others by name."""
    try:
        return (False, float(name), name)
    except ValueError:
        return (True, 0.0, name)
