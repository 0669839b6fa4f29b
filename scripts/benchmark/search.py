"""A search by Optuna with two workers, killed on its way and gone on with; and what pruning saves.

python scripts/benchmark/search.py --data DIR [--trials 40] [--kill 15] [--epochs 100] [--json FILE]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from optuna.trial import FrozenTrial

from scripts.benchmark.page import ROOT, markdown, publish
from trainer.search.study import JOURNAL, best_trials, open_study

COMMAND = "python scripts/benchmark/search.py --data DIR"


def carry_out(folder: Path, command: list[str], kill: int | None) -> list[float]:
    """Wall seconds of the search: until it is killed after so many trials have begun, and of the one that goes on."""
    seconds = []
    while True:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while process.poll() is None and not (kill is not None and (folder / f"trial_{kill}").exists()):
            time.sleep(0.05)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        code = process.wait()
        seconds.append(time.perf_counter() - started)
        if kill is None:
            if code != 0:
                raise SystemExit(f"{' '.join(command)} ended with {code}")
            return seconds
        kill = None


def epochs(folder: Path, trial: FrozenTrial) -> float:
    """That a trial has trained; a pruned one told the study of each."""
    metrics = folder / f"trial_{trial.number}" / "metrics.json"
    return json.loads(metrics.read_text())["fit/epochs"] if metrics.exists() else len(trial.intermediate_values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--kill", type=int, default=15)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        for what, pruner, kill in (
            ("with pruning, killed and gone on with", "median", given.kill),
            ("with pruning", "median", None),
            ("without pruning", "none", None),
        ):
            folder = Path(name, str(len(figures)))
            command = [sys.executable, "train.py", "search=mlp", "data=titanic", f"search.n_trials={given.trials}"]
            command += ["search.n_jobs=2", f"search.pruner={pruner}", f"hydra.sweep.dir={folder}", "logger=none"]
            command += [f"trainer.max_epochs={given.epochs}", f"paths.data={Path(given.data).resolve()}"]
            seconds = carry_out(folder, command, kill)
            study = open_study(str(folder / JOURNAL), folder.name)
            best = best_trials(study)[0]
            figures[what] = {
                "seconds": seconds,
                "states": dict(Counter(trial.state.name for trial in study.trials)),
                "epochs": sum(epochs(folder, trial) for trial in study.trials),
                "best": best.value,
            }
    rows = [
        [
            what,
            str(sum(each["states"].values())),
            *(str(each["states"].get(state, 0)) for state in ("COMPLETE", "PRUNED", "FAIL")),
            f"{each['epochs']:,.0f}",
            " + ".join(f"{seconds:.0f}" for seconds in each["seconds"]),
            f"{each['best']:.4f}",
        ]
        for what, each in figures.items()
    ]
    headings = ["search", "trials", "completed", "pruned", "failed", "epochs", "wall, s", "best val/loss"]
    body = (
        f"{markdown(headings, rows)}\n\nA study of `search=mlp` on titanic by two workers, with early stopping and"
        f" at most {given.epochs} epochs a trial. That in the first row was killed (SIGKILL) when trial"
        f" {given.kill} had begun, and the same command given again: its seconds are those before and after."
    )
    publish("A search, killed and pruned", COMMAND, body, figures, given.json)


if __name__ == "__main__":
    main()
