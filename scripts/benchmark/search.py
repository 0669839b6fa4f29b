"""A search with Optuna and two workers that is killed and resumed; and the time that pruning saves.

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


def run_search(folder: Path, command: list[str], kill: int | None) -> list[float]:
    """Wall seconds of the search, or of its two parts if it is killed after `kill` trials have started, and resumed."""
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
    """Number of epochs of a trial; the study has each epoch of a pruned one."""
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
            ("with pruning, killed and resumed", "median", given.kill),
            ("with pruning", "median", None),
            ("without pruning", "none", None),
        ):
            folder = Path(name, str(len(figures)))
            command = [sys.executable, "train.py", "search=mlp", "data=titanic", f"search.n_trials={given.trials}"]
            command += ["search.n_jobs=2", f"search.pruner={pruner}", f"hydra.sweep.dir={folder}", "logger=none"]
            command += [f"trainer.max_epochs={given.epochs}", f"paths.data={Path(given.data).resolve()}"]
            seconds = run_search(folder, command, kill)
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
        f"{markdown(headings, rows)}\n\nA study of `search=mlp` on titanic with two workers, early stopping and at"
        f" most {given.epochs} epochs per trial. The search in the first row was killed (SIGKILL) when trial"
        f" {given.kill} had started, and its command was repeated: the seconds are those before and after the kill."
    )
    publish("A search, killed and pruned", COMMAND, body, figures, given.json)


if __name__ == "__main__":
    main()
