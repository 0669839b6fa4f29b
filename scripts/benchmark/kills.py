"""Runs that are killed (SIGKILL) at random moments and gone on with by `resume=auto`: have they the same weights?

python scripts/benchmark/kills.py [--kills 100] [--seed 0] [--json FILE]
"""

import argparse
import multiprocessing
import os
import random
import runpy
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.benchmark.page import ROOT, markdown, publish

COMMAND = "python scripts/benchmark/kills.py"
RUN = [
    *("data=breast_cancer", "data.batch_size=64", "model.hidden=[64,64]", "model.dropout=0.2", "callbacks=ema"),
    *("trainer.max_epochs=16", "baselines=false"),
]
MOST = 4
"""Kills of one run."""
SAME = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")
FILES = ("checkpoints/last.ckpt", "checkpoints/best.ckpt")


def start(arguments: Sequence[str], log: Path) -> ForkServerProcess:
    """`python train.py ARGUMENTS` in a process of its own, forked from one that has imported everything: a start takes
    a tenth of the time. What it prints goes to `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "pytorch_lightning"])  # no Polars, whose threads a fork breaks
    process = context.Process(target=_train, args=(list(arguments), str(log)))
    process.start()
    return process


def _train(arguments: list[str], log: str) -> None:
    with open(log, "a") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    sys.argv = ["train.py", *arguments]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


def equal(one: Any, other: Any) -> bool:
    """Of tensors, bit for bit, in dicts and lists."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def differing(first: Path, second: Path) -> list[str]:
    """Files of two runs whose weights, or what training goes on with, are not the same."""
    found = []
    for name in FILES:
        one, other = (torch.load(folder / name, weights_only=True, map_location="cpu") for folder in (first, second))
        if not all(equal(one[key], other[key]) for key in SAME):
            found.append(name)
    one, other = (folder / "model.pt" for folder in (first, second))
    if one.exists() and not (
        other.exists() and equal(*(dict(torch.jit.load(str(path)).state_dict()) for path in (one, other)))
    ):
        found.append("model.pt")
    return found


def moment(folder: Path) -> str:
    """What a run was at when it was killed."""
    if any(folder.rglob("*.unfinished")):
        return "while a file was written"
    if not (folder / FILES[0]).exists():
        return "before the first checkpoint"
    return "after training" if (folder / "metrics.json").exists() else "in training or measuring"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    moments: Counter[str] = Counter()
    differ, unreadable, runs = [], [], 0
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        # The data are read and encoded anew each time.
        whole, log = [*RUN, "data.cache=null", f"paths.output={place}"], place / "log"
        start([*whole, f"hydra.run.dir={place}/warm"], log).join()
        began = time.perf_counter()
        start([*whole, f"hydra.run.dir={place}/whole"], log).join()
        seconds = time.perf_counter() - began
        while moments.total() < given.kills:
            folder, log = place / f"run{runs}", place / f"log{runs}"
            command, left = [*whole, f"hydra.run.dir={folder}", "resume=auto"], MOST
            while True:
                process = start(command, log)
                if left and moments.total() < given.kills:
                    left -= 1
                    process.join(draw.uniform(0, seconds))
                    at_a_write = draw.random() < 0.5
                    while at_a_write and process.is_alive() and not any(folder.rglob("*.unfinished")):
                        pass
                    if process.is_alive():
                        process.kill()
                        process.join()
                        moments[moment(folder)] += 1
                        continue
                process.join()
                break
            runs += 1
            if process.exitcode != 0:
                unreadable.append(log.read_text())
            elif wrong := differing(place / "whole", folder):
                differ.append(wrong)
    rows = [[what, str(count)] for what, count in sorted(moments.items())]
    rows += [["**kills**", f"**{moments.total()}**"], ["runs that were killed, up to four times each", str(runs)]]
    rows += [
        ["runs that ended with other weights", str(len(differ))],
        ["folders that could not be gone on with", str(len(unreadable))],
    ]
    figures = {"kills": moments, "runs": runs, "differing": differ, "unreadable": unreadable, "seconds": seconds}
    body = (
        f"{markdown(['killed', 'times'], rows)}\n\n`{' '.join(RUN)}`, {seconds:.1f} s without a kill. Compared bit for"
        " bit: the weights and the optimizer's state in best.ckpt and last.ckpt, and the weights in model.pt."
    )
    publish("Kills", COMMAND, body, figures, given.json)


if __name__ == "__main__":
    main()
