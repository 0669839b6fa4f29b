"""`cluster=slurm`: the jobs of a sweep on a Slurm cluster, through submitit.

Unlike Hydra's Slurm launcher, it takes the resources of each job from its trainer settings, waits for all jobs even if
some fail, and cancels them on Ctrl-C.
"""

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as HydrasLauncher
from omegaconf import OmegaConf

from common.errors import EXIT_CODE
from trainer.config.settings import ROOT
from trainer.folders import status
from trainer.folders.signals import Interrupted
from trainer.sweep.resources import describe_ending, exit_on_sigterm, resources

if TYPE_CHECKING:
    from submitit import Job

log = logging.getLogger(__name__)

POLL = 10
"""Seconds between two queries of the cluster, for jobs that ended without a result."""


class SlurmLauncher(HydrasLauncher):  # type: ignore[misc]
    """Submits the jobs. A search calls `launch` from several threads. The launcher is pickled into every job."""

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self.jobs: list[Job[JobReturn]] = []
        self.lock = Lock()
        self.canceled = False

    def __getstate__(self) -> dict[str, Any]:
        """The state that a job needs: the settings, without the jobs and the lock of this process."""
        return {name: value for name, value in self.__dict__.items() if name not in ("jobs", "lock")}

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        with exit_on_sigterm():
            try:
                return wait(self._submit(dict(enumerate(map(list, job_overrides), initial_job_idx))))
            except BaseException:
                self.cancel()
                raise

    def cancel(self) -> None:
        """Cancels all jobs, which write their checkpoints, and waits for their end. No more jobs are submitted."""
        with self.lock:
            self.canceled = True
        jobs = [job for job in self.jobs if not job.done()]
        if not jobs:
            return
        names = [job.job_id for job in jobs]
        log.info("canceling %s: running jobs write a checkpoint", " ".join(names))
        subprocess.run(["scancel", *names], check=False)
        while not all(job.done(force_check=True) for job in jobs):
            time.sleep(1)

    def __call__(self, *arguments: Any) -> JobReturn:
        """Runs in the job. Does not return after a signal for submitit, which requeues the job and exits."""
        try:
            returned: JobReturn = super().__call__(*arguments)
            return returned
        except Interrupted as interrupted:
            if interrupted.number == signal.SIGTERM and is_preempted():
                signal.raise_signal(signal.SIGUSR2)
            sys.exit(interrupted.exit_code)

    def _submit(self, jobs: dict[int, list[str]]) -> dict[int, "Job[JobReturn]"]:
        """Submits one job array for all jobs that need the same resources."""
        from submitit import AutoExecutor  # here, because Hydra imports its plugins for every command
        from submitit.core.utils import FailedJobError

        arrays: dict[str, list[int]] = {}
        for number, overrides in jobs.items():
            arrays.setdefault(json.dumps(self._parameters(overrides)), []).append(number)
        submitted: dict[int, Job[JobReturn]] = {}
        for parameters, numbers in arrays.items():
            settings = json.loads(parameters)
            folder, timeouts = settings.pop("slurm_submitit_folder"), settings.pop("slurm_max_num_timeout")
            executor = AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=timeouts)
            executor.update_parameters(**settings)
            state = Singleton.get_state()
            arguments = [(jobs[number], "hydra.sweep.dir", number, str(number), state) for number in numbers]
            with self.lock:
                if self.canceled:
                    sys.exit(EXIT_CODE)
                try:
                    array = executor.map_array(self, *zip(*arguments, strict=True))
                except FailedJobError:  # sbatch has printed why; Hydra would add a traceback
                    sys.exit(EXIT_CODE)
                self.jobs.extend(array)
            submitted |= dict(zip(numbers, array, strict=True))
        for number in jobs:
            log.info("#%d is job %s: %s", number, submitted[number].job_id, " ".join(filter_overrides(jobs[number])))
        return submitted

    def _parameters(self, overrides: list[str]) -> dict[str, Any]:
        """Returns submitit's parameters for the resources of a job."""
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        settings: Any = OmegaConf.to_container(config.hydra.launcher, resolve=True)
        del settings["_target_"]
        needs = resources(config.trainer)
        settings |= {"nodes": needs.nodes, "tasks_per_node": needs.devices}
        settings["gpus_per_node"] = settings["gpus_per_node"] or needs.gpus or None
        settings["srun_args"] = ["--wait=60"]  # otherwise the other processes wait forever for a dead one
        # Jobs start in the working directory of the command, which may not be Lathe's folder.
        settings["setup"] = [f"export PYTHONPATH={shlex.quote(str(ROOT))}:$PYTHONPATH", *(settings["setup"] or [])]
        return {f"slurm_{name}": value for name, value in settings.items()}


def wait(jobs: dict[int, "Job[JobReturn]"]) -> list[JobReturn]:
    """Waits for all jobs and returns their results; failed jobs do not end the others."""
    returned: dict[int, JobReturn] = {}
    asked = time.monotonic()
    while waiting := [number for number in jobs if number not in returned]:
        time.sleep(1)
        if time.monotonic() - asked > POLL:
            jobs[waiting[0]].done(force_check=True)  # one query for all
            asked = time.monotonic()
        for number in waiting:
            if jobs[number].done():
                returned[number] = outcome(number, jobs[number])
    return [returned[number] for number in sorted(returned)]


def outcome(number: int, job: "Job[JobReturn]") -> JobReturn:
    """Returns the result of a job, an empty one if it was killed."""
    from submitit.core.utils import UncompletedJobError  # as above

    try:
        returned = job.task(0).result()
    except UncompletedJobError as error:
        log.error("#%d, job %s, left no result (%s): %s", number, job.job_id, job.state, job.task(0).paths.stderr)
        log.debug("%s", error)
        return JobReturn(status=JobStatus.COMPLETED)
    assert returned.hydra_cfg is not None
    ended = status.read(Path(returned.hydra_cfg.hydra.runtime.output_dir))
    log.info("#%d, job %s: %s", number, job.job_id, describe_ending(ended))
    return returned


def is_preempted() -> bool:
    """Returns whether this job was preempted, not canceled. Slurm requeues a preempted job only if it does not exit by
    itself."""
    asked = ["squeue", "--noheader", "--format=%T", f"--jobs={os.environ['SLURM_JOB_ID']}"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip() == "RUNNING"
