"""`train.py` with trials of a search that take no time: each writes the files of a run, in the process of the search.

A learning rate of 0 is a rejected setting, one above 1 an error, one below 0 a loss that is not finite.
"""

import json
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

import train
from trainer.folders import status
from trainer.main import run_command
from trainer.search import sweeper, trial_workers


class InlineWorker:
    """Replaces a worker process and its function."""

    def __init__(self, *_: Any) -> None:
        pass

    def submit(self, folder: Path, arguments: list[str]) -> Future[None]:
        future: Future[None] = Future()
        trial_workers._run(run_trial, folder, arguments)
        future.set_result(None)
        return future


def run_trial(arguments: list[str]) -> None:
    given = dict(line.lstrip("+").partition("=")[::2] for line in arguments)
    folder = Path(given["hydra.run.dir"].strip("'"))
    folder.mkdir()
    rate = float(given.get("optimizer.lr", "0.1"))
    found = status.Status("val/loss", "min", seconds=1.0)
    if rate == 0:
        found.end("failed", 2, "optimizer.lr: must be positive.")
    elif rate > 1:
        found.end("failed", 1, "RuntimeError: asked to fail")
    else:
        found.end("done", 0)
        found.value = float("nan") if rate < 0 else abs(rate - 0.01)
    (folder / "metrics.json").write_text(json.dumps({"val/loss": found.value, "latency_ms": 1 - rate}))
    (folder / "arguments").write_text("\n".join(arguments))
    status.write(folder, found)


sweeper.Worker = InlineWorker  # type: ignore[assignment, misc]
sys.exit(run_command(train.start, sys.argv[1:]))
