"""Resources that a job of a sweep needs from a cluster or from this machine, according to its trainer settings."""

import shutil
import signal
import sys
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from omegaconf import DictConfig, ListConfig

from trainer.config.composer import Composition
from trainer.config.errors import ConfigError, Problem
from trainer.config.hydra_internals import BasicLauncher
from trainer.config.validate_processes import validate_launch
from trainer.folders.status import Status

T = TypeVar("T")
LOCAL, SLURM = "hydra_plugins.lathe.Local", "hydra_plugins.lathe.Slurm"
GPUS = ("gpu", "cuda")
"""Accelerators that require a GPU; `auto` uses one if there is one."""


POLL = 0.5
"""Maximum number of seconds before a wait of the main thread notices Ctrl-C."""


@dataclass(frozen=True)
class Resources:
    """One process per device on each node; `gpus` is per node."""

    nodes: int
    devices: int
    gpus: int


def resources(trainer: DictConfig) -> Resources:
    """Returns the resources of a job. Raises ConfigError if the number of devices is not given."""
    devices = len(trainer.devices) if isinstance(trainer.devices, ListConfig) else trainer.devices
    if not isinstance(devices, int) or devices < 1:
        raise ConfigError(f"{devices} does not say what a job requests: give a number.")
    return Resources(trainer.num_nodes, devices, devices if trainer.accelerator in GPUS else 0)


def validate_resources(base: Composition, jobs: list[Composition]) -> Iterator[Problem]:
    """Finds settings that prevent the launcher from starting the run or the jobs of the sweep."""
    launcher, search = base.config.hydra.launcher._target_, base.config.search
    if "joblib" in launcher and base.config.hydra.launcher.n_jobs == 1 and search and search.n_jobs > 1:
        what = (
            f"must be {search.n_jobs}, like search.n_jobs: with 1 joblib runs all trials in the process of the search,"
            " where they would mix up their settings."
        )
        yield Problem(base.where("hydra.launcher.n_jobs"), "hydra.launcher.n_jobs", what)
    if launcher == LOCAL and search and base.config.hydra.launcher.n_jobs is not None:
        what = "applies to sweeps: search.n_jobs is the number of concurrent trials."
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
            "slurm needs Slurm's sbatch, which is not installed here: run the command on a machine of the cluster, or"
            " use cluster=local.",
        )


def describe_ending(status: Status | None) -> str:
    """Describes in a line how a job ended."""
    if status is None:
        return "not started"
    if status.state == "done":
        value = "not finite" if status.value is None else f"{status.value:.6g}"
        return f"done in {status.seconds:.0f} s, {status.monitor} {value}"
    return f"{status.state}: {status.error}"


def wait_for_any(futures: Collection[Future[T]]) -> set[Future[T]]:
    """Waits until at least one of the futures is done, and returns those that are.

    Unlike a wait without a timeout, it can be interrupted by Ctrl-C after Polars has been imported, which installs a
    handler that restarts system calls.
    """
    while not (done := wait(futures, POLL, FIRST_COMPLETED).done):
        pass
    return done


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Makes SIGTERM end a sweep as Ctrl-C does. Only the main thread receives signals."""

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
