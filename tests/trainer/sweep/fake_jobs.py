"""`train.py` with jobs of `cluster=local` that take no time: they print their command and write their status."""

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

import train
from trainer.main import run_command
from trainer.sweep import local_launcher

CODE = """
import sys
print(*sys.argv[2:])
open("status.json", "w").write(sys.argv[1])
sys.exit("seed=1" in sys.argv)
"""


def start(job: local_launcher.Job, share: dict[str, str]) -> "subprocess.Popen[bytes]":
    job.folder.mkdir(parents=True, exist_ok=True)
    status = {"monitor": "val/loss", "mode": "min", "state": "done", "value": 0.5, "seconds": 1.0}
    if "seed=1" in job.overrides:
        status |= {"state": "failed", "value": None, "error": "RuntimeError: asked to fail", "exit_code": 1}
    command = [sys.executable, "-IS", "-c", CODE, json.dumps(status), *job.command()]
    with (job.folder / local_launcher.OUTPUT).open("ab") as output:
        return subprocess.Popen(command, cwd=job.folder, stdout=output, stderr=subprocess.STDOUT)


local_launcher.Job.start = start  # type: ignore[method-assign]
sys.exit(run_command(train.start, sys.argv[1:]))
