"""`cluster=slurm`: the jobs of a sweep on a Slurm cluster, through submitit.

Unlike Hydra's launcher of that kind, it takes the resources of each job from its trainer, waits for every job whatever
becomes of the others, and cancels them at Ctrl-C.
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
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as HydrasLauncher
from omegaconf import OmegaConf

from common.errors import EXIT_CODE

if TYPE_CHECKING:
    from submitit import Job

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
ASK = 10
"""Seconds between two questions to the cluster about jobs that have left nothing behind."""


class SlurmLauncher(HydrasLauncher):  # type: ignore[misc]
    # Of the class: the object goes into every job. A search launches from several threads.
    jobs: ClassVar[list["Job[JobReturn]"]] = []
    lock: ClassVar = Lock()
    cancelled: ClassVar = False

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        from trainer.sweep.resources import ended_by_sigterm

        with ended_by_sigterm():
            try:
                return wait(self._submit(dict(enumerate(map(list, job_overrides), initial_job_idx))))
            except BaseException:
                self.cancel()
                raise

    def cancel(self) -> None:
        """Ends all jobs, which write their checkpoints, and waits for their end; none is submitted any more."""
        with self.lock:
            SlurmLauncher.cancelled = True
        jobs = [job for job in self.jobs if not job.done()]
        if not jobs:
            return
        names = [job.job_id for job in jobs]
        log.info("cancelling %s: those that run end with a checkpoint", " ".join(names))
        subprocess.run(["scancel", *names], check=False)
        while not all(job.done(force_check=True) for job in jobs):
            time.sleep(1)

    def __call__(self, *arguments: Any) -> JobReturn:
        """In the job. After a signal that submitit handles nothing comes back: it has queued the job again and gone."""
        from trainer.folders.signals import Interrupted

        try:
            returned: JobReturn = super().__call__(*arguments)
            return returned
        except Interrupted as interrupted:
            if interrupted.number == signal.SIGTERM and makes_way():
                signal.raise_signal(signal.SIGUSR2)
            sys.exit(interrupted.exit_code)

    def _submit(self, jobs: dict[int, list[str]]) -> dict[int, "Job[JobReturn]"]:
        """An array for all jobs that need the same resources."""
        from submitit import AutoExecutor
        from submitit.core.utils import FailedJobError

        arrays: dict[str, list[int]] = {}
        for number, overrides in jobs.items():
            arrays.setdefault(json.dumps(self._wanted(overrides)), []).append(number)
        submitted: dict[int, Job[JobReturn]] = {}
        for wanted, numbers in arrays.items():
            settings = json.loads(wanted)
            folder, timeouts = settings.pop("slurm_submitit_folder"), settings.pop("slurm_max_num_timeout")
            executor = AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=timeouts)
            executor.update_parameters(**settings)
            state = Singleton.get_state()
            arguments = [(jobs[number], "hydra.sweep.dir", number, str(number), state) for number in numbers]
            with self.lock:
                if self.cancelled:
                    sys.exit(EXIT_CODE)
                try:
                    array = executor.map_array(self, *zip(*arguments, strict=True))
                except FailedJobError:  # sbatch has said why; Hydra would add a traceback
                    sys.exit(EXIT_CODE)
                self.jobs.extend(array)
            submitted |= dict(zip(numbers, array, strict=True))
        for number in jobs:
            log.info("#%d is job %s: %s", number, submitted[number].job_id, " ".join(filter_overrides(jobs[number])))
        return submitted

    def _wanted(self, overrides: list[str]) -> dict[str, Any]:
        """What submitit is told of the resources of a job."""
        from trainer.sweep.resources import resources

        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        settings: Any = OmegaConf.to_container(config.hydra.launcher, resolve=True)
        del settings["_target_"]
        needs = resources(config.trainer)
        settings |= {"nodes": needs.nodes, "tasks_per_node": needs.devices}
        settings["gpus_per_node"] = settings["gpus_per_node"] or needs.gpus or None
        settings["srun_args"] = ["--wait=60"]  # Where one process has died, the others would wait for it for ever.
        # Jobs start in the folder of the command, which need not be Lathe's.
        settings["setup"] = [f"export PYTHONPATH={shlex.quote(str(ROOT))}:$PYTHONPATH", *(settings["setup"] or [])]
        return {f"slurm_{name}": value for name, value in settings.items()}


def wait(jobs: dict[int, "Job[JobReturn]"]) -> list[JobReturn]:
    """What each job returned, whatever became of the others."""
    returned: dict[int, JobReturn] = {}
    asked = time.monotonic()
    while waiting := [number for number in jobs if number not in returned]:
        time.sleep(1)
        if time.monotonic() - asked > ASK:
            jobs[waiting[0]].done(force_check=True)  # one question for all
            asked = time.monotonic()
        for number in waiting:
            if jobs[number].done():
                returned[number] = outcome(number, jobs[number])
    return [returned[number] for number in sorted(returned)]


def outcome(number: int, job: "Job[JobReturn]") -> JobReturn:
    """What the job returned; nothing where it was killed."""
    from submitit.core.utils import UncompletedJobError

    from trainer.folders import status
    from trainer.sweep.resources import told

    try:
        returned = job.task(0).result()
    except UncompletedJobError as error:
        log.error("#%d, job %s, left no result (%s): %s", number, job.job_id, job.state, job.task(0).paths.stderr)
        log.debug("%s", error)
        return JobReturn(status=JobStatus.COMPLETED)
    assert returned.hydra_cfg is not None
    ended = status.read(Path(returned.hydra_cfg.hydra.runtime.output_dir))
    log.info("#%d, job %s: %s", number, job.job_id, told(ended))
    return returned


def makes_way() -> bool:
    """Whether the job was told to end for others' sake, not cancelled. Where such a job does not end, Slurm queues it
    again; where it does, Slurm leaves it at that."""
    asked = ["squeue", "--noheader", "--format=%T", f"--jobs={os.environ['SLURM_JOB_ID']}"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip() == "RUNNING"
