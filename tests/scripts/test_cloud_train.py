"""Training as SageMaker and Vertex AI start it, with their folders and variables on this machine."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from sklearn.datasets import load_iris

from common.errors import InputError
from inference.artifact import Artifact
from scripts import cloud_train
from scripts.cloud_train import Job, Machines, bare, cluster, files, mounted, sagemaker, vertex
from tests.conftest import ROOT, run_script

SHORT = {"data.target": "target", "trainer.max_epochs": "2", "logger": "none", "baselines": "false"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table as a CSV file."""
    path = tmp_path_factory.mktemp("rows") / "iris.csv"
    numbers, target = load_iris(return_X_y=True)
    pl.DataFrame({**{f"x{at}": column for at, column in enumerate(numbers.T)}, "target": target}).write_csv(path)
    return path


def lay_out(base: Path, hyperparameters: dict[str, str], channels: dict[str, Path], **resources: Any) -> Path:
    """Creates the folders and files of a SageMaker container."""
    config = base / "input" / "config"
    config.mkdir(parents=True)
    (config / "hyperparameters.json").write_text(json.dumps(hyperparameters))
    (config / "resourceconfig.json").write_text(
        json.dumps({"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "lo", **resources})
    )
    described = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated", "RecordWrapperType": "None"}
    (config / "inputdataconfig.json").write_text(json.dumps(dict.fromkeys(channels, described)))
    for name, path in channels.items():
        (base / "input" / "data" / name).mkdir(parents=True)
        (base / "input" / "data" / name / path.name).write_bytes(path.read_bytes())
    return base


def train(*command: str, **variables: object) -> subprocess.CompletedProcess[str]:
    given = os.environ | {name: str(value) for name, value in variables.items()}
    return run_script("scripts/cloud_train.py", *command, env=given)


@pytest.mark.parametrize("code", [0, 1, 143])
def test_results_or_the_error_message_are_saved(
    tmp_path: Path, rows: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = lay_out(tmp_path, SHORT, {"train": rows})

    def run(job: Job) -> tuple[int, str]:
        job.run.mkdir()
        for name in ("model.pt", "metrics.json"):
            (job.run / name).write_text(name)
        return code, "the last lines\n"

    monkeypatch.setattr(cloud_train, "run", run)
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(base))
    assert cloud_train.main(["train"]) == code
    copies = [path for path in (base / "model" / "model.pt", base / "output/data/metrics.json") if path.exists()]
    assert len(copies) == (2 if code == 0 else 0)
    assert not (base / "output" / "data" / "model.pt").exists()
    failure = base / "output" / "failure"
    assert (failure.read_text() if failure.exists() else "") == ("the last lines\n" if code == 1 else "")


@pytest.mark.slow
def test_sagemaker_gets_its_model_and_a_restarted_job_resumes(tmp_path: Path, rows: Path) -> None:
    base = lay_out(tmp_path, {**SHORT, "model": '"linear"', "sagemaker_region": "x"}, {"train": rows, "test": rows})
    done = train("train", SAGEMAKER_BASE_DIR=base)
    assert done.returncode == 0, done.stdout + done.stderr
    assert Artifact.load(base / "model" / "model.pt").spec["target"]["name"] == "target"
    kept = {path.name for path in (base / "output" / "data").iterdir()}
    assert {"metrics.json", "config.yaml", "status.json", "train.log", ".hydra"} <= kept
    assert not kept & {"checkpoints", "model.pt"}
    assert not (base / "output" / "failure").exists()

    (base / "checkpoints" / "metrics.json").unlink()  # as after preemption
    again = train("train", "trainer.max_epochs=3", SAGEMAKER_BASE_DIR=base)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"resume: resuming {base}/checkpoints\n" in again.stdout


def test_the_failure_file_has_the_error_message(tmp_path: Path, rows: Path) -> None:
    base = lay_out(tmp_path, {**SHORT, "modle": "mlp"}, {"train": rows})
    done = train("train", SAGEMAKER_BASE_DIR=base)
    assert done.returncode == 2
    message = "A setting is wrong:\n  command line: modle: unknown key. Did you mean mode?\n"
    assert (base / "output" / "failure").read_text() == message
    assert done.stdout == message


@pytest.mark.slow
def test_the_error_of_the_run_comes_first_in_the_failure_file(tmp_path: Path, rows: Path) -> None:
    base = lay_out(tmp_path, {**SHORT, "data.target": "tarjet"}, {"train": rows})
    assert train("train", SAGEMAKER_BASE_DIR=base).returncode == 2
    assert "tarjet" in (base / "output" / "failure").read_text().splitlines()[0]


def test_several_machines_are_started_by_torchrun(tmp_path: Path, rows: Path) -> None:
    hosts = {"current_host": "algo-2", "hosts": ["algo-1", "algo-2"], "network_interface_name": "eth0"}
    job = sagemaker(lay_out(tmp_path, {"trainer.devices": "4"}, {"rows": rows}, **hosts), ["model=mlp"])
    data = f"data.path={tmp_path}/input/data/rows/iris.csv"
    torchrun = ["--nnodes=2", "--node-rank=1", "--nproc-per-node=4", "--master-addr=algo-1", "--master-port=29400"]
    several = ["trainer.devices=4", "trainer.num_nodes=2"]
    assert job.command() == [
        *(sys.executable, "-m", "torch.distributed.run", *torchrun, str(ROOT / "train.py"), "trainer=ddp"),
        *("data=table", "model=mlp", "trainer.devices=4", data),
        *(f"hydra.run.dir={tmp_path}/checkpoints", "resume=auto", *several),
    ]
    assert job.variables == {"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "eth0"}


@pytest.mark.slow
def test_preemption_is_not_a_failure(tmp_path: Path, rows: Path) -> None:
    hosts = {"current_host": "127.0.0.1", "hosts": ["127.0.0.1", "algo-2"]}
    base = lay_out(tmp_path, {"trainer.devices": "2"}, {"train": rows}, **hosts)
    variables = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, str(ROOT / "scripts" / "cloud_train.py"), "train"]
    with subprocess.Popen(command, env={**variables, "SAGEMAKER_BASE_DIR": str(base)}, stdout=subprocess.PIPE) as job:
        assert job.stdout is not None
        assert any(b"OMP_NUM_THREADS" in line for line in job.stdout)  # printed by torchrun, which waits for algo-2
        job.send_signal(signal.SIGTERM)
        job.communicate(timeout=60)
    assert job.returncode == 143
    assert not (base / "output" / "failure").exists()


@pytest.mark.parametrize(
    ("channel", "problem"),
    [
        (
            {"TrainingInputMode": "Pipe"},
            "mode Pipe is not supported, because rows are read repeatedly. Use File or FastFile.",
        ),
        ({"S3DistributionType": "ShardedByS3Key"}, "every machine needs all files. Use FullyReplicated."),
    ],
)
def test_unsupported_channels_are_rejected(tmp_path: Path, rows: Path, channel: dict[str, str], problem: str) -> None:
    base = lay_out(tmp_path, {}, {"train": rows}, hosts=["algo-1", "algo-2"])
    (base / "input" / "config" / "inputdataconfig.json").write_text(json.dumps({"train": channel}))
    with pytest.raises(InputError) as caught:
        sagemaker(base, [])
    assert str(caught.value) == f"channel train: {problem}"


def test_ambiguous_channels_are_rejected(tmp_path: Path, rows: Path) -> None:
    base = lay_out(tmp_path, {}, {"a": rows, "b": rows})
    with pytest.raises(InputError) as caught:
        sagemaker(base, [])
    assert str(caught.value) == "several channels (a, b): name the training channel train."


def test_a_channel_may_hold_files_or_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        files(tmp_path)
    assert str(caught.value) == f"{tmp_path}: is empty. The channel has no files."
    (tmp_path / "b.csv").touch()
    (tmp_path / "a.csv").touch()
    assert files(tmp_path) == f"[{tmp_path}/a.csv,{tmp_path}/b.csv]"
    (tmp_path / "cats").mkdir()
    assert files(tmp_path) == str(tmp_path)


@pytest.mark.slow
def test_vertex_gets_its_model_and_a_restarted_job_resumes(tmp_path: Path, rows: Path) -> None:
    places = {"AIP_MODEL_DIR": "model", "AIP_CHECKPOINT_DIR": "checkpoints", "AIP_TENSORBOARD_LOG_DIR": "logs"}
    variables = {name: tmp_path / folder for name, folder in places.items()}
    variables |= {"AIP_TRAINING_DATA_URI": rows, "SAGEMAKER_BASE_DIR": tmp_path / "none"}
    settings = [f"{key}={value}" for key, value in SHORT.items() if key != "logger"]
    done = train("train", *settings, "model=linear", **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    Artifact.load(tmp_path / "model" / "model.pt")
    assert list((tmp_path / "logs" / "tensorboard").glob("events*"))

    (tmp_path / "checkpoints" / "metrics.json").unlink()
    again = train("train", *settings, "trainer.max_epochs=3", **variables)
    assert f"resume: resuming {tmp_path}/checkpoints\n" in again.stdout


def test_vertex_machines_are_numbered_across_pools() -> None:
    spec = {
        "cluster": {"workerpool0": ["w0-0:2222"], "workerpool1": ["w1-0:2222", "w1-1:2222"]},
        "environment": "cloud",
        "task": {"type": "workerpool1", "index": 1},
    }
    assert cluster({"CLUSTER_SPEC": json.dumps(spec)}) == Machines(3, 2, "w0-0", 2222)
    spec = {"cluster": {"workerpool0": ["w0-0:2222"]}, "task": {"type": "workerpool0", "index": 0}}
    assert cluster({"CLUSTER_SPEC": json.dumps(spec)}) == Machines()
    assert cluster({}) == Machines()


def test_vertex_locations_are_mounted() -> None:
    assert mounted("gs://bucket/a/b") == Path("/gcs/bucket/a/b")
    job = vertex({"AIP_MODEL_DIR": "gs://b/model", "AIP_TRAINING_DATA_URI": "gs://b/rows-*.csv"}, ["data.target=y"])
    assert (job.model, job.run) == (Path("/gcs/b/model"), Path("/gcs/b/model/run"))
    assert job.settings == ["data=table", "data.target=y", "data.path='/gcs/b/rows-*.csv'"]
    with pytest.raises(InputError) as caught:
        vertex({"AIP_MODEL_DIR": "gs://b/model", "AIP_DATA_FORMAT": "bigquery"}, [])
    assert str(caught.value) == "AIP_DATA_FORMAT=bigquery: is not supported. Export the table as CSV or Parquet."


def test_quotes_of_hyperparameters_are_removed() -> None:
    assert [bare(text) for text in ("5", '"mlp"', "[1,2]", "a b")] == ["5", "mlp", "[1,2]", "a b"]


def test_a_command_outside_the_cloud_is_rejected(tmp_path: Path) -> None:
    done = train("train", SAGEMAKER_BASE_DIR=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        f"found neither {tmp_path}/input/config of SageMaker nor AIP_MODEL_DIR of Vertex AI. Elsewhere, use"
        " train.py.\n",
    )
    assert train("serve").stderr == "unknown command serve. Use train [KEY=VALUE ...].\n"
