"""Kills runs (SIGKILL) at random moments, resumes them with `resume=auto`, and checks that the weights are the same.

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
MAX_KILLS = 4
"""Maximum number of kills per run."""
COMPARED = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")
FILES = ("checkpoints/last.ckpt", "checkpoints/best.ckpt")


def start(arguments: Sequence[str], log: Path) -> ForkServerProcess:
    """Starts `python train.py ARGUMENTS` in a process forked from one that has imported everything, which takes a tenth
    of the time. Its output is appended to `log`."""
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
    """Returns whether two nested dicts and lists are equal, with tensors compared bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def differing(first: Path, second: Path) -> list[str]:
    """Returns the files of two runs that differ in their weights or training state."""
    found = []
    for name in FILES:
        one, other = (torch.load(folder / name, weights_only=True, map_location="cpu") for folder in (first, second))
        if not all(equal(one[key], other[key]) for key in COMPARED):
            found.append(name)
    one, other = (folder / "model.pt" for folder in (first, second))
    if one.exists() and not (
        other.exists() and equal(*(dict(torch.jit.load(str(path)).state_dict()) for path in (one, other)))
    ):
        found.append("model.pt")
    return found


def stage(folder: Path) -> str:
    """Returns what a run was doing when it was killed."""
    if any(folder.rglob("*.unfinished")):
        return "while writing a file"
    if not (folder / FILES[0]).exists():
        return "before the first checkpoint"
    return "after training" if (folder / "metrics.json").exists() else "during training or evaluation"


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
        # The data are read and encoded again by each run.
        whole, log = [*RUN, "data.cache=null", f"paths.output={place}"], place / "log"
        start([*whole, f"hydra.run.dir={place}/warm"], log).join()
        began = time.perf_counter()
        start([*whole, f"hydra.run.dir={place}/whole"], log).join()
        seconds = time.perf_counter() - began
        while moments.total() < given.kills:
            folder, log = place / f"run{runs}", place / f"log{runs}"
            command, left = [*whole, f"hydra.run.dir={folder}", "resume=auto"], MAX_KILLS
            while True:
                process = start(command, log)
                if left and moments.total() < given.kills:
                    left -= 1
                    process.join(draw.uniform(0, seconds))
                    during_write = draw.random() < 0.5
                    while during_write and process.is_alive() and not any(folder.rglob("*.unfinished")):
                        pass
                    if process.is_alive():
                        process.kill()
                        process.join()
                        moments[stage(folder)] += 1
                        continue
                process.join()
                break
            runs += 1
            if process.exitcode != 0:
                unreadable.append(log.read_text())
            elif wrong := differing(place / "whole", folder):
                differ.append(wrong)
    rows = [[what, str(count)] for what, count in sorted(moments.items())]
    rows += [["**kills**", f"**{moments.total()}**"], ["killed runs, up to four kills each", str(runs)]]
    rows += [
        ["runs with different final weights", str(len(differ))],
        ["folders that could not be resumed", str(len(unreadable))],
    ]
    figures = {"kills": moments, "runs": runs, "differing": differ, "unreadable": unreadable, "seconds": seconds}
    body = (
        f"{markdown(['killed', 'times'], rows)}\n\n`{' '.join(RUN)}`, {seconds:.1f} s without a kill. Compared bit"
        " for bit: the weights and the optimizer state in best.ckpt and last.ckpt, and the weights in model.pt."
    )
    publish("Kills", COMMAND, body, figures, given.json)


if __name__ == "__main__":
    main()
