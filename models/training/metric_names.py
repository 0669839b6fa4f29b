"""The names of the metrics, apart from their code, so that settings are checked without importing torch."""

from datamodules.schema import Task

CLASSES = (
    "accuracy",
    "balanced_accuracy",
    "f1",
    "auroc",
    "average_precision",
    "log_loss",
    "calibrated_log_loss",
    "calibration_error",
)
NUMBERS = ("rmse", "mae", "r2", "mape")

NAMES: dict[Task, tuple[str, ...]] = {"binary": CLASSES, "multiclass": CLASSES, "regression": NUMBERS}
"""Logged after `val/` or `test/` beside `loss`; for classes also `f1/<class>`."""

THRESHOLD_FOR = ("accuracy", "balanced_accuracy", "f1")
"""What `threshold` of two classes may be chosen for; also `f1/<class>`."""

HIGHER_IS_BETTER = frozenset({"accuracy", "balanced_accuracy", "f1", "auroc", "average_precision", "r2"})
