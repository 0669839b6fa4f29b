"""`cluster=local`: several jobs of a sweep at once on this machine, each a process `python train.py`."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write

from common.errors import EXIT_CODE, InputError
from common.hardware import available_cores
from trainer.config.composer import parse_arguments
from trainer.config.settings import ROOT, Setting, quoted
from trainer.folders import status
from trainer.folders.layout import LAST
from trainer.sweep.resources import describe_ending, exit_on_sigterm, resources, wait_for_any
from trainer.sweep.sweep import done_before

log = logging.getLogger(__name__)

OUTPUT = "output.log"
"""File with the output of a job, in its folder."""
OWN = ("cluster", "hydra.launcher", "hydra/launcher", "hydra.mode", "hydra.run", "hydra.sweep", "hydra/sweep")
"""Key prefixes of settings of the sweep that are not passed to its jobs."""


@dataclass(frozen=True)
class Job:
    """`hydra_overrides` are common to all jobs; `before` is the status of a job that is already done."""

    number: int
    overrides: list[str]
    hydra_overrides: list[str]
    folder: Path
    before: status.Status | None

    def command(self) -> list[str]:
        """Returns the command that runs the job alone on this machine."""
        settings = [line for line in (*self.overrides, *self.hydra_overrides) if not Setting(line).key.startswith(OWN)]
        resume = ["resume=auto"] if (self.folder / LAST).exists() else []
        number = f"hydra.job.num={self.number}"
        start = ["hydra.mode=RUN", f"hydra.run.dir={quoted(self.folder)}", number, *resume]
        return [sys.executable, str(ROOT / "train.py"), *config_flags(), *settings, *start]

    def start(self, share: dict[str, str]) -> subprocess.Popen[bytes]:
        """Starts the job in its own process group, so that Ctrl-C reaches it only through the sweep."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / OUTPUT).open("ab") as output:
            return subprocess.Popen(
                self.command(), env=os.environ | share, stdout=output, stderr=subprocess.STDOUT, process_group=0
            )


class LocalLauncher(Launcher):
    """Runs `n_jobs` jobs at once, each with its share of the machine; None: as many as GPUs, or as cores."""

    def __init__(self, n_jobs: int | None = None) -> None:
        self.n_jobs = n_jobs
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.stopped = False
        self.starting = Lock()

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config
        self.shares = shares(resources(config.trainer).devices, config.trainer.accelerator, self.n_jobs)
        self.free: SimpleQueue[dict[str, str]] = SimpleQueue()
        for share in self.shares:
            self.free.put(share)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        try:
            jobs = [self._job(number, list(given)) for number, given in enumerate(job_overrides, initial_job_idx)]
        except InputError as error:  # Hydra would print its traceback
            log.error("%s", error)
            sys.exit(EXIT_CODE)
        each = ", ".join(f"{name}={value}" for name, value in self.shares[0].items())
        log.info("%d jobs, %d at once (%s)", len(jobs), min(len(jobs), len(self.shares)), each)

        def run(job: Job) -> JobReturn:
            share = self.free.get()
            try:
                return self._run(job, share)
            finally:
                self.free.put(share)

        with ThreadPoolExecutor(len(self.shares)) as pool, exit_on_sigterm():
            try:
                futures = [pool.submit(run, job) for job in jobs]
                for future in futures:
                    wait_for_any([future])
                return [future.result() for future in futures]
            except BaseException:
                with self.starting:
                    self.stopped = True  # waiting jobs do not start
                running = dict(self.running)
                for process in running.values():
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGTERM)
                log.info("stopping %s: each writes a checkpoint", " ".join(f"#{number}" for number in running))
                raise

    def _job(self, number: int, overrides: list[str]) -> Job:
        setup_globals()
        config = self.context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.num = number
            config.hydra.job.id = str(number)
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(config)
        try:
            folder = Path(config.hydra.sweep.dir, config.hydra.sweep.subdir).absolute()
            with read_write(config.hydra):
                config.hydra.runtime.output_dir = str(folder)
            HydraConfig.instance().set_config(config)
            with open_dict(config):
                del config["hydra"]
            hydra_overrides = list(self.config.hydra.overrides.hydra)
            return Job(number, overrides, hydra_overrides, folder, done_before(folder, config))
        finally:
            HydraConfig.instance().cfg = before

    def _run(self, job: Job, share: dict[str, str]) -> JobReturn:
        done = JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED)
        before = job.before or status.read(job.folder)
        if before is not None and before.state == "running":
            log.info("#%d: waiting for process %d of an earlier sweep", job.number, before.pid)
        while before is not None and before.state == "running" and not self.stopped:
            time.sleep(1)
            before = status.read(job.folder)
        if before is not None and before.state in status.DONE:
            done.return_value = before.value
            return done
        with self.starting:
            if self.stopped:
                return done
            log.info("#%d: %s", job.number, " ".join(filter_overrides(job.overrides)))
            self.running[job.number] = process = job.start(share)
        code = process.wait()
        del self.running[job.number]
        ended = status.read(job.folder)
        if ended is not None:
            done.return_value = ended.value
        where = "" if code == 0 else f": {job.folder / OUTPUT}"
        log.log(logging.ERROR if code else logging.INFO, "#%d: %s%s", job.number, describe_ending(ended), where)
        return done


def config_flags() -> list[str]:
    """Returns the options of this command that choose its config files, for the commands of its jobs."""
    options = vars(parse_arguments())
    names = ("config_path", "config_name", "config_dir")
    return [f"--{name.replace('_', '-')}={options[name]}" for name in names if options[name] is not None]


def shares(devices: int, accelerator: str, n_jobs: int | None) -> list[dict[str, str]]:
    """Returns for each concurrent job the environment variables that give it a share of the machine."""
    cores = available_cores()
    gpus = visible_gpus() if accelerator != "cpu" else []
    at_once = n_jobs or (max(1, len(gpus) // devices) if gpus else cores)
    threads = str(max(1, cores // at_once))
    found = []
    for number in range(at_once):
        share = {"OMP_NUM_THREADS": threads, "POLARS_MAX_THREADS": threads}
        if gpus:
            mine = [gpus[(number * devices + device) % len(gpus)] for device in range(devices)]
            share["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        found.append(share)
    return found


def visible_gpus() -> list[str]:
    """Returns the indices of the GPUs as in CUDA_VISIBLE_DEVICES."""
    import torch  # here, because a sweep itself does not wait for torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]
