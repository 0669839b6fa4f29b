"""Names of the metrics, in a module of their own so that settings are checked without importing torch."""

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
"""Logged with the prefix `val/` or `test/`, in addition to `loss`; for classes also `f1/<class>`."""

THRESHOLD_FOR = ("accuracy", "balanced_accuracy", "f1")
"""Metrics for which `threshold` of a binary target can be chosen; also `f1/<class>`."""

HIGHER_IS_BETTER = frozenset({"accuracy", "balanced_accuracy", "f1", "auroc", "average_precision", "r2"})
