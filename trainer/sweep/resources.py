"""What a job of a sweep needs of a cluster or of this machine, told by the settings of the trainer."""

import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from trainer.config.hydra_internals import BasicLauncher
from omegaconf import DictConfig, ListConfig

from trainer.config.composer import Composition
from trainer.config.errors import ConfigError, Problem
from trainer.config.validate_processes import validate_launch
from trainer.folders.status import Status

LOCAL, SLURM = "hydra_plugins.lathe.Local", "hydra_plugins.lathe.Slurm"
GPUS = ("gpu", "cuda")
"""Accelerators that ask for a GPU; `auto` takes one where it finds one."""


@dataclass(frozen=True)
class Resources:
    """A process for each device on each node; `gpus` on each node."""

    nodes: int
    devices: int
    gpus: int


def resources(trainer: DictConfig) -> Resources:
    """Raises ConfigError where the number of devices is left open."""
    devices = len(trainer.devices) if isinstance(trainer.devices, ListConfig) else trainer.devices
    if not isinstance(devices, int) or devices < 1:
        raise ConfigError(f"{devices} leaves open what a job is to ask for: give a number.")
    return Resources(trainer.num_nodes, devices, devices if trainer.accelerator in GPUS else 0)


def validate_resources(base: Composition, jobs: list[Composition]) -> Iterator[Problem]:
    """Why the jobs of a sweep, or a run, could not be placed."""
    launcher, search = base.config.hydra.launcher._target_, base.config.search
    if "joblib" in launcher and base.config.hydra.launcher.n_jobs == 1 and search and search.n_jobs > 1:
        what = (
            f"must be {search.n_jobs}, as search.n_jobs: with 1 joblib works in the search's own process, where trials"
        )
        what += " at once would take each other's settings."
        yield Problem(base.where("hydra.launcher.n_jobs"), "hydra.launcher.n_jobs", what)
    if launcher == LOCAL and search and base.config.hydra.launcher.n_jobs is not None:
        what = "is for sweeps: search.n_jobs is how many trials are carried out at once."
        yield Problem(base.where("hydra.launcher.n_jobs"), "hydra.launcher.n_jobs", what)
    for job in jobs:
        found = [] if launcher == SLURM else list(validate_launch(job.config))
        if launcher in (LOCAL, SLURM) or (launcher.endswith(f".{BasicLauncher.__name__}") and search):
            try:
                resources(job.config.trainer)
            except ConfigError as error:
                found.append(("trainer.devices", str(error)))
        yield from (Problem(job.where(key), key, what) for key, what in found)
    if launcher == SLURM and shutil.which("sbatch") is None:
        yield Problem(
            base.where("hydra.mode"),
            "cluster",
            "slurm needs Slurm's sbatch, which is not here: give the command on a machine of the cluster, or take"
            " cluster=local.",
        )


def told(status: Status | None) -> str:
    """How a job ended, in a line."""
    if status is None:
        return "it did not begin"
    if status.state == "done":
        value = "not finite" if status.value is None else f"{status.value:.6g}"
        return f"done in {status.seconds:.0f} s, {status.monitor} {value}"
    return f"{status.state}: {status.error}"


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """While it lasts SIGTERM ends a sweep as Ctrl-C does. Only the main thread is told of signals."""

    def end(number: int, frame: object) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
