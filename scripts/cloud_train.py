"""Trains in a container of Amazon SageMaker or Google Vertex AI: python scripts/cloud_train.py train [KEY=VALUE ...]

It reads where the cloud puts settings, data and machines, runs train.py in a folder that the cloud keeps, and puts
model.pt where the cloud looks for it. A job that is started again, after its machine was taken away, goes on there.

|                | SageMaker                                           | Vertex AI                             |
| -------------- | --------------------------------------------------- | ------------------------------------- |
| settings       | the command, then hyperparameters.json              | the command                           |
| data.path      | the channel train or training, or the only one      | AIP_TRAINING_DATA_URI                 |
| data.test_path | the channel test                                    | AIP_TEST_DATA_URI                     |
| machines       | resourceconfig.json                                 | CLUSTER_SPEC                          |
| run folder     | checkpoints                                         | AIP_CHECKPOINT_DIR or AIP_MODEL_DIR   |
| curves         | in the run folder                                   | AIP_TENSORBOARD_LOG_DIR               |
| model.pt       | model                                               | AIP_MODEL_DIR                         |
| all else       | output/data, but checkpoints                        | stays in the run folder               |
| why it failed  | output/failure                                      | the log                               |

SageMaker's folders lie in /opt/ml, or in SAGEMAKER_BASE_DIR; Vertex AI's gs://BUCKET is /gcs/BUCKET. Exits as train.py
does.
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
"""How hyperparameters begin that SageMaker and its tuner add."""
LAST_LINES = 40
"""Of what was printed, for the failure file."""
PORT = 29400
"""Where the machines meet, if the cloud does not say."""
INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


@dataclass(frozen=True)
class Machines:
    """How many there are, which of them this is, and where the first one is met."""

    count: int = 1
    this: int = 0
    first: str = "127.0.0.1"
    port: int = PORT


@dataclass(frozen=True)
class Job:
    """What the cloud asks for. `rest`: where all goes but the model and the checkpoints, if it is to leave the run
    folder."""

    settings: list[str]
    machines: Machines
    run: Path
    model: Path
    rest: Path | None = None
    variables: Mapping[str, str] = field(default_factory=dict)

    def command(self) -> list[str]:
        """train.py, by torchrun where there are several machines."""
        keys = {Setting(line).key: line for line in self.settings}
        settings = [*self.settings, f"hydra.run.dir={quoted(self.run)}", "resume=auto"]
        if self.machines.count == 1:
            return [sys.executable, str(ROOT / "train.py"), *settings]
        devices = keys["trainer.devices"].partition("=")[2] if "trainer.devices" in keys else str(gpus() or 1)
        ddp = [] if "trainer" in keys else ["trainer=ddp"]
        by = ["-m", "torch.distributed.run", f"--nnodes={self.machines.count}", f"--node-rank={self.machines.this}"]
        by += [
            f"--nproc-per-node={devices}",
            f"--master-addr={self.machines.first}",
            f"--master-port={self.machines.port}",
        ]
        several = [f"trainer.devices={devices}", f"trainer.num_nodes={self.machines.count}"]
        return [sys.executable, *by, str(ROOT / "train.py"), *ddp, *settings, *several]


def sagemaker(base: Path, command: list[str]) -> Job:
    """The job that the folders in `base` describe. Raises InputError where a channel cannot be trained on."""
    config, data = base / "input" / "config", base / "input" / "data"
    given = {name: text for name, text in read(config / "hyperparameters.json").items() if not name.startswith(ADDED)}
    settings = [*command, *(f"{name}={bare(text)}" for name, text in sorted(given.items()))]
    resources = read(config / "resourceconfig.json")
    hosts = sorted(resources.get("hosts", ["localhost"]))
    channels = read(config / "inputdataconfig.json")
    for name, channel in channels.items():
        if channel.get("TrainingInputMode") == "Pipe":
            raise InputError(f"channel {name}: Pipe gives rows once, training needs them again: take File or FastFile.")
        if channel.get("S3DistributionType") == "ShardedByS3Key" and len(hosts) > 1:
            raise InputError(f"channel {name}: every machine must see all files: take FullyReplicated.")
    training = [name for name in channels if name in ("train", "training")] or [
        name for name in channels if name != "test"
    ]
    if len(training) > 1:
        raise InputError(f"there are several channels ({', '.join(training)}): call the one to train on train.")
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
    """The job that Vertex AI's variables describe. Raises InputError where the data lie in no files."""
    if variables.get("AIP_DATA_FORMAT", "").startswith("bigquery"):
        raise InputError("AIP_DATA_FORMAT=bigquery: training reads files: export the table as CSV or Parquet.")
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
    """Of CLUSTER_SPEC: the first worker pool has the first machine, the second one the others."""
    spec = json.loads(variables.get("CLUSTER_SPEC") or "{}")
    pools = {name: at for name, at in spec.get("cluster", {}).items() if name in ("workerpool0", "workerpool1")}
    machines = [machine for _, pool in sorted(pools.items()) for machine in pool]
    if len(machines) < 2:
        return Machines()
    first, _, port = machines[0].partition(":")
    before = len(pools["workerpool0"]) if spec["task"]["type"] == "workerpool1" else 0
    return Machines(len(machines), before + int(spec["task"]["index"]), first, int(port or PORT))


def with_data(settings: list[str], found: Mapping[str, str]) -> list[str]:
    """The settings and the paths of data that they do not give themselves; a table, if they do not say what it is."""
    keys = {Setting(line).key for line in settings}
    paths = [f"{key}={path}" for key, path in found.items() if key not in keys]
    return [*([] if not paths or keys & {"data", "experiment"} else ["data=table"]), *settings, *paths]


def files(folder: Path) -> str:
    """A channel as a value of data.path: its file, its files, or the folder where it has folders of its own."""
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if not inside:
        raise InputError(f"{folder} is empty: the channel holds no file.")
    if any(path.is_dir() for path in inside):
        return quoted(folder)
    return quoted(inside[0]) if len(inside) == 1 else f"[{','.join(map(quoted, inside))}]"


def mounted(uri: str) -> Path:
    """Where Vertex AI shows a place in Cloud Storage."""
    return Path(uri.replace("gs://", "/gcs/", 1))


def bare(text: str) -> str:
    """A hyperparameter as it was meant: SageMaker's own estimators write a string with its quotes."""
    return str(json.loads(text)) if text.startswith('"') else text


def read(path: Path) -> dict[str, Any]:
    """Empty where there is no such file."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def gpus() -> int:
    import torch

    return torch.cuda.device_count()


def carry_out(job: Job) -> tuple[int, str]:
    """Trains; the exit code, and the end of what was printed, which is printed too. A signal to end is handed on, and
    the exit code is its own then: torchrun's would be that of an error."""
    job.run.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        job.command(), env=os.environ | job.variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    asked: list[int] = []

    def hand_on(number: int, frame: object) -> None:
        asked.append(number)
        process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, hand_on)
    last: deque[str] = deque(maxlen=LAST_LINES)
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        last.append(line)
    code = process.wait()
    return 128 + asked[0] if asked and code else code, "".join(last)


def hand_over(job: Job) -> None:
    """The model, and what else is to be kept, to where the cloud takes them from."""
    job.model.mkdir(parents=True, exist_ok=True)
    if (job.run / ARTIFACT).exists():
        shutil.copyfile(job.run / ARTIFACT, job.model / ARTIFACT)
    if job.rest is not None:
        left = shutil.ignore_patterns("checkpoints", ARTIFACT, ".lock")
        shutil.copytree(job.run, job.rest, ignore=left, dirs_exist_ok=True)


def main(arguments: list[str]) -> int:
    if arguments[:1] != ["train"]:
        raise InputError(f"unknown command {' '.join(arguments[:1]) or '(none)'}: give train [KEY=VALUE ...].")
    base = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))
    of_sagemaker = (base / "input" / "config").is_dir()
    if not of_sagemaker and not os.environ.get("AIP_MODEL_DIR"):
        raise InputError(
            f"here is neither SageMaker's {base}/input/config nor Vertex AI's AIP_MODEL_DIR: run train.py."
        )
    try:
        job = sagemaker(base, arguments[1:]) if of_sagemaker else vertex(os.environ, arguments[1:])
        code, said = carry_out(job)
    except InputError as error:
        print(error, file=sys.stderr)
        code, said = EXIT_CODE, str(error)
    else:
        ended = status.read(job.run)
        said = f"{ended.error}\n\n{said}" if ended is not None and ended.error else said
        if code == 0 and job.machines.this == 0:
            hand_over(job)
    if of_sagemaker and code not in (0, *INTERRUPTED):
        (base / "output").mkdir(exist_ok=True)
        (base / "output" / "failure").write_text(said)
    return code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_CODE)
