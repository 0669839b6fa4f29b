"""Time from launch to help, to a config error, to the printed config and to the first training step; and of imports.

python scripts/benchmark/startup.py --data DIR [--table adult] [--repeats 7] [--json FILE]
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.benchmark.page import ROOT, markdown, publish

COMMAND = "python scripts/benchmark/startup.py --data DIR"
MARK = "seconds since 1970, of CPU:"
COMPOSE = """
from hydra import compose, initialize_config_dir
with initialize_config_dir({conf!r}, version_base="1.3"):
    compose("train")
"""
PRINT_MARK = f"""
import time
print({MARK!r}, time.time(), time.process_time())
"""
FLOORS = {
    "import Hydra and compose the config": COMPOSE.format(conf=str(ROOT / "conf")),
    "`import torch`": "import torch",
    "`import pytorch_lightning`": "import pytorch_lightning",
    "the same, as imported by `train.py`": (
        "from trainer.config.fast_imports import fast_imports\nwith fast_imports(): import pytorch_lightning"
    ),
}
FIRST_STEP = ["+callbacks.clock._target_=scripts.benchmark.clock.Clock", "allowed_targets=[scripts]"]
FIRST_STEP += ["trainer.max_epochs=1", "baselines=false", "export=none", "test=false"]


def launch(arguments: Sequence[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a process until its end, or until it prints MARK."""
    # Byte code is written, as in an installation by the README.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.time()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    wall = time.time() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != (2 if "model.hiden=64" in arguments else 0):
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
    if (found := re.search(f"{MARK} (.+) (.+)", done.stdout)) is not None:
        return float(found[1]) - started, float(found[2])
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data")
    parser.add_argument("--table", default="adult")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = [f"paths.data={Path(given.data).resolve()}", f"paths.cache={folder}/cache", f"paths.output={folder}"]
        launches = {
            "`python train.py --help`": ["train.py", "--help"],
            "`model.hiden=64`, a misspelled setting": ["train.py", "model.hiden=64"],
            "`python train.py --cfg job`": ["train.py", "--cfg", "job"],
            f"`python train.py data={given.table}`, to the end of the first step": [
                *("train.py", f"data={given.table}", *run, *FIRST_STEP)
            ],
            **{what: ["-c", code + PRINT_MARK] for what, code in FLOORS.items()},
        }
        for arguments in launches.values():
            launch(arguments)  # writes byte code, prepared data and cached signatures
        # Alternating, so that other work on the machine affects all alike.
        measured = [{what: launch(arguments) for what, arguments in launches.items()} for _ in range(given.repeats)]
    figures = {what: [each[what] for each in measured] for what in launches}
    rows = []
    for what, seconds in figures.items():
        cells = [f"{median(times):.2f} ({min(times):.2f} to {max(times):.2f})" for times in zip(*seconds, strict=True)]
        rows.append([what, *cells])
    body = (
        f"{markdown(['launch', 'wall, s', 'CPU, s'], rows)}\n\nMedian (range) of {given.repeats}, with existing"
        " byte code and prepared data. CPU seconds estimate the time on an idle machine."
    )
    publish("Start-up", COMMAND, body, figures, given.json)


if __name__ == "__main__":
    main()
