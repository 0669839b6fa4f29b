"""Trains in a container of Amazon SageMaker or Google Vertex AI: python scripts/cloud_train.py train [KEY=VALUE ...]

It reads settings, data paths and machines from the files or variables of the cloud, runs train.py in a folder that the
cloud saves, and copies model.pt to the folder of the model. A job that is restarted after preemption resumes.

|                | SageMaker                                           | Vertex AI                             |
| -------------- | --------------------------------------------------- | ------------------------------------- |
| settings       | the command, then hyperparameters.json              | the command                           |
| data.path      | channel train or training, or the only channel      | AIP_TRAINING_DATA_URI                 |
| data.test_path | channel test                                        | AIP_TEST_DATA_URI                     |
| machines       | resourceconfig.json                                 | CLUSTER_SPEC                          |
| run folder     | checkpoints                                         | AIP_CHECKPOINT_DIR or AIP_MODEL_DIR   |
| curves         | in the run folder                                   | AIP_TENSORBOARD_LOG_DIR               |
| model.pt       | model                                               | AIP_MODEL_DIR                         |
| other files    | output/data, except checkpoints                     | stay in the run folder                |
| error message  | output/failure                                      | the log                               |

The folders of SageMaker are in /opt/ml, or in SAGEMAKER_BASE_DIR; gs://BUCKET of Vertex AI is mounted as /gcs/BUCKET.
The exit code is the exit code of train.py.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.errors import EXIT_CODE, InputError
from trainer.config.settings import ROOT, Setting, quoted
from trainer.folders import status

ARTIFACT = "model.pt"
ADDED = ("sagemaker_", "_")
"""Prefixes of hyperparameters that SageMaker and its tuner add."""
LAST_LINES = 40
"""Number of printed lines that are kept for the failure file."""
PORT = 29400
"""Port of the first machine, if the cloud does not give one."""
INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


@dataclass(frozen=True)
class Machines:
    """Number of machines, rank of this one, and address of the first one."""

    count: int = 1
    rank: int = 0
    first: str = "127.0.0.1"
    port: int = PORT


@dataclass(frozen=True)
class Job:
    """A training job. `run`, `model`: folders; `rest`: folder for all files except model and checkpoints; None leaves
    them in the run folder; `variables`: environment variables of train.py."""

    settings: list[str]
    machines: Machines
    run: Path
    model: Path
    rest: Path | None = None
    variables: Mapping[str, str] = field(default_factory=dict)

    def command(self) -> list[str]:
        """Returns the command of train.py, started by torchrun if there are several machines."""
        keys = {Setting(line).key: line for line in self.settings}
        settings = [*self.settings, f"hydra.run.dir={quoted(self.run)}", "resume=auto"]
        if self.machines.count == 1:
            return [sys.executable, str(ROOT / "train.py"), *settings]
        devices = keys["trainer.devices"].partition("=")[2] if "trainer.devices" in keys else str(gpus() or 1)
        ddp = [] if "trainer" in keys else ["trainer=ddp"]
        torchrun = [
            "-m",
            "torch.distributed.run",
            f"--nnodes={self.machines.count}",
            f"--node-rank={self.machines.rank}",
        ]
        torchrun += [
            f"--nproc-per-node={devices}",
            f"--master-addr={self.machines.first}",
            f"--master-port={self.machines.port}",
        ]
        several = [f"trainer.devices={devices}", f"trainer.num_nodes={self.machines.count}"]
        return [sys.executable, *torchrun, str(ROOT / "train.py"), *ddp, *settings, *several]


def sagemaker(base: Path, command: list[str]) -> Job:
    """Returns the job described by the files in `base`. Raises InputError for a channel that cannot be used."""
    config, data = base / "input" / "config", base / "input" / "data"
    given = {name: text for name, text in read(config / "hyperparameters.json").items() if not name.startswith(ADDED)}
    settings = [*command, *(f"{name}={bare(text)}" for name, text in sorted(given.items()))]
    resources = read(config / "resourceconfig.json")
    hosts = sorted(resources.get("hosts", ["localhost"]))
    channels = read(config / "inputdataconfig.json")
    for name, channel in channels.items():
        if channel.get("TrainingInputMode") == "Pipe":
            raise InputError(
                f"channel {name}: mode Pipe is not supported, because rows are read repeatedly. Use File or FastFile."
            )
        if channel.get("S3DistributionType") == "ShardedByS3Key" and len(hosts) > 1:
            raise InputError(f"channel {name}: every machine needs all files. Use FullyReplicated.")
    training = [name for name in channels if name in ("train", "training")] or [
        name for name in channels if name != "test"
    ]
    if len(training) > 1:
        raise InputError(f"several channels ({', '.join(training)}): name the training channel train.")
    paths = {"data.path": training[:1], "data.test_path": [name for name in channels if name == "test"]}
    found = {key: files(data / name) for key, names in paths.items() for name in names}
    interface = resources.get("network_interface_name")
    return Job(
        with_data(settings, found),
        Machines(len(hosts), hosts.index(resources.get("current_host", hosts[0])), hosts[0]),
        run=base / "checkpoints",
        model=base / "model",
        rest=base / "output" / "data",
        variables={} if interface is None else {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface},
    )


def vertex(variables: Mapping[str, str], command: list[str]) -> Job:
    """Returns the job described by the variables of Vertex AI. Raises InputError if the data are not in files."""
    if variables.get("AIP_DATA_FORMAT", "").startswith("bigquery"):
        raise InputError("AIP_DATA_FORMAT=bigquery: is not supported. Export the table as CSV or Parquet.")
    names = {"data.path": "AIP_TRAINING_DATA_URI", "data.test_path": "AIP_TEST_DATA_URI"}
    found = {key: quoted(mounted(variables[name])) for key, name in names.items() if variables.get(name)}
    model = mounted(variables["AIP_MODEL_DIR"])
    settings = with_data(command, found)
    curves = variables.get("AIP_TENSORBOARD_LOG_DIR")
    if curves and not any(Setting(line).key.startswith("logger") for line in settings):
        settings.append(f"logger.tensorboard.save_dir={quoted(mounted(curves))}")
    checkpoints = variables.get("AIP_CHECKPOINT_DIR")
    return Job(settings, cluster(variables), mounted(checkpoints) if checkpoints else model / "run", model)


def cluster(variables: Mapping[str, str]) -> Machines:
    """Returns the machines of CLUSTER_SPEC: the first is in the first worker pool, the others are in the second."""
    spec = json.loads(variables.get("CLUSTER_SPEC") or "{}")
    pools = {name: at for name, at in spec.get("cluster", {}).items() if name in ("workerpool0", "workerpool1")}
    machines = [machine for _, pool in sorted(pools.items()) for machine in pool]
    if len(machines) < 2:
        return Machines()
    first, _, port = machines[0].partition(":")
    before = len(pools["workerpool0"]) if spec["task"]["type"] == "workerpool1" else 0
    return Machines(len(machines), before + int(spec["task"]["index"]), first, int(port or PORT))


def with_data(settings: list[str], found: Mapping[str, str]) -> list[str]:
    """Adds the data paths that the settings do not have, and data=table if they do not choose the data."""
    keys = {Setting(line).key for line in settings}
    paths = [f"{key}={path}" for key, path in found.items() if key not in keys]
    return [*([] if not paths or keys & {"data", "experiment"} else ["data=table"]), *settings, *paths]


def files(folder: Path) -> str:
    """Returns the value of data.path for a channel: its file, its files, or the folder if it has subfolders."""
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if not inside:
        raise InputError(f"{folder}: is empty. The channel has no files.")
    if any(path.is_dir() for path in inside):
        return quoted(folder)
    return quoted(inside[0]) if len(inside) == 1 else f"[{','.join(map(quoted, inside))}]"


def mounted(uri: str) -> Path:
    """Returns the path at which Vertex AI mounts a location in Cloud Storage."""
    return Path(uri.replace("gs://", "/gcs/", 1))


def bare(text: str) -> str:
    """Removes the quotes that the estimators of SageMaker add to strings."""
    return str(json.loads(text)) if text.startswith('"') else text


def read(path: Path) -> dict[str, Any]:
    """Reads a JSON object; empty if there is no such file."""
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content


def gpus() -> int:
    import torch  # here, because it is slow and rarely needed

    return torch.cuda.device_count()


def run(job: Job) -> tuple[int, str]:
    """Runs the command and prints its output. Returns the exit code and the last lines of the output. Signals are
    forwarded; the exit code is then that of the signal, since torchrun would exit as for an error."""
    job.run.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        job.command(), env=os.environ | job.variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    received: list[int] = []

    def forward(number: int, frame: object) -> None:
        received.append(number)
        process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    last: deque[str] = deque(maxlen=LAST_LINES)
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        last.append(line)
    code = process.wait()
    return 128 + received[0] if received and code else code, "".join(last)


def copy_results(job: Job) -> None:
    """Copies the model and the other results to the folders that the cloud saves."""
    job.model.mkdir(parents=True, exist_ok=True)
    if (job.run / ARTIFACT).exists():
        shutil.copyfile(job.run / ARTIFACT, job.model / ARTIFACT)
    if job.rest is not None:
        ignored = shutil.ignore_patterns("checkpoints", ARTIFACT, ".lock")
        shutil.copytree(job.run, job.rest, ignore=ignored, dirs_exist_ok=True)


def main(arguments: list[str]) -> int:
    if arguments[:1] != ["train"]:
        raise InputError(f"unknown command {' '.join(arguments[:1]) or '(none)'}. Use train [KEY=VALUE ...].")
    base = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))
    on_sagemaker = (base / "input" / "config").is_dir()
    if not on_sagemaker and not os.environ.get("AIP_MODEL_DIR"):
        raise InputError(
            f"found neither {base}/input/config of SageMaker nor AIP_MODEL_DIR of Vertex AI. Elsewhere, use train.py."
        )
    try:
        job = sagemaker(base, arguments[1:]) if on_sagemaker else vertex(os.environ, arguments[1:])
        code, output = run(job)
    except InputError as error:
        print(error, file=sys.stderr)
        code, output = EXIT_CODE, str(error)
    else:
        ended = status.read(job.run)
        output = f"{ended.error}\n\n{output}" if ended is not None and ended.error else output
        if code == 0 and job.machines.rank == 0:
            copy_results(job)
    if on_sagemaker and code not in (0, *INTERRUPTED):
        (base / "output").mkdir(exist_ok=True)
        (base / "output" / "failure").write_text(output)
    return code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_CODE)
