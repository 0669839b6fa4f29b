"""Silences Lightning's and torch's messages that do not help the user of a run."""

import logging
import warnings

IGNORED = (
    ".*treespec, LeafSpec.*deprecated",
    "Checkpoint directory .* exists and is not empty",
    ".*does not have many workers",
    "Found .* module.* in eval mode at the start of training",  # frozen modules
    "The `srun` command is available on your system but is not used",
    ".*sync_dist=True",  # the logged values are already those of all processes
    ".*number of training batches .* is smaller than the logging interval",
)
"""Patterns of the warnings that `quiet_lightning` filters out."""


def quiet_lightning() -> None:
    """Hides Lightning's banners and tips; its errors and all other warnings stay."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # torch.compile looks for CUDA and warns about a toolkit on a machine without a device.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    for pattern in IGNORED:
        warnings.filterwarnings("ignore", pattern)
