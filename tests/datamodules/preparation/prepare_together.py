"""Prepares a table in several processes: python -m torch.distributed.run --nproc-per-node 2 prepare_together.py ..."""

import sys
from pathlib import Path

import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[3]))

from datamodules.readers import read
from datamodules.tabular import TableDataModule

if __name__ == "__main__":
    path, target, cache = sys.argv[1:]
    read.CHUNK = 500
    dist.init_process_group("gloo")
    datamodule = TableDataModule(path, target, cache=cache)
    datamodule.setup()
    dist.destroy_process_group()
