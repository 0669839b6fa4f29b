"""`search=...`: a Hydra sweeper in which Optuna chooses the settings of each trial.

A trial is a run in its own folder below the folder of the search. Its result is read from its status.json, so that a
search that was killed can be resumed, and trials that finished without it count.
"""

import json
import logging
import math
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict

from common.atomic_write import atomic_write
from common.errors import EXIT_CODE, InputError
from trainer.config import hydra_internals
from trainer.config.settings import quoted
from trainer.folders import status
from trainer.folders.layout import LAST
from trainer.search.search_space import distribution, grid
from trainer.search.study import SAVED, TRIAL, counts, objectives, open_study, sampler, storage_of
from trainer.search.trial_workers import Worker, launch
from trainer.sweep.local_launcher import LocalLauncher, config_flags, shares
from trainer.sweep.resources import exit_on_sigterm, resources, wait_for_any
from trainer.sweep.slurm_launcher import SlurmLauncher

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

log = logging.getLogger(__name__)

OUTPUT = "workers.log"
"""File with the output of the trials, in the folder of the search."""


class Search:
    """Runs trials until the study has `search.n_trials` of them, `search.n_jobs` at once.

    A trial starts as soon as another one ends: with Hydra's basic launcher or the local one in worker processes, which
    run `run` for one trial after another, with other launchers by a launch per trial. `lines` are the overrides of all
    trials, as the sweeper received them.
    """

    def __init__(
        self,
        config: DictConfig,
        launcher: Launcher,
        loader: ConfigLoader,
        lines: list[str],
        run: Callable[[list[str]], None],
    ) -> None:
        self.config, self.launcher, self.loader, self.lines = config.copy(), launcher, loader, lines
        self.run_trial = run
        self.folder = Path(config.hydra.sweep.dir).absolute()
        self.running: dict[Future[None], tuple[Trial | FrozenTrial, Worker | None]] = {}

    def run(self) -> None:
        try:
            with exit_on_sigterm():
                self._open()
                try:
                    self._run_trials()
                except BaseException:
                    self._end_trials()
                    raise
        except InputError as error:  # Hydra would print its traceback
            log.error("%s", error)
            sys.exit(EXIT_CODE)

    def _open(self) -> None:
        """Opens the study, creating it if there is none, and determines the settings that all trials share."""
        config, lines = self.config, self.lines
        parsed = OverridesParser.create(self.loader).parse_overrides(lines)
        command = {override.key_or_group: override for override in parsed}  # the last of each key
        space = {each.get_key_element(): each for each in command.values() if each.is_sweep_override()}
        self.space = {key: distribution(override) for key, override in space.items()}
        self.objectives = objectives(config)
        one_run = config.cross_validate is None and config.ensemble is None
        self.resumes = one_run and config.callbacks
        search, storage = config.search, storage_of(config, self.folder)
        saved = self.folder / SAVED
        with open_dict(config):
            search.study = OmegaConf.load(saved).search.study if saved.exists() else self.folder.name
            if search.pruner != "none" and (len(self.objectives) > 1 or not one_run):
                log.info("search.pruner=none: only one run with one objective can be pruned")
                search.pruner = "none"
        better = [config.mode, *search.objectives.values()]
        epochs = config.trainer.max_epochs
        new = search.storage is not None and not saved.exists()  # other searches may use the storage too
        self.study = open_study(storage, search.study, pruner=search.pruner, epochs=epochs, better=better, new=new)
        self.study.sampler = sampler(search.sampler, config.seed, len(self.study.trials))
        points = grid(space)[: search.n_trials] if search.sampler == "grid" else []
        search.n_trials = len(points) or search.n_trials
        atomic_write(saved, OmegaConf.to_yaml(config).encode())
        for point in points:
            self.study.enqueue_trial(point, skip_if_exists=True)

        filled = {"study": search.study, "storage": storage, "pruner": search.pruner}
        trial_only = [line for line in search.overrides if line.partition("=")[0] not in command]
        given = [str(each.input_line) for each in command.values() if not each.is_sweep_override()]
        self.settings = [*trial_only, *given, *(f"search.{key}={quoted(value)}" for key, value in filled.items())]
        self.n_trials, self.n_jobs = search.n_trials, search.n_jobs
        done = counts(self.study) or "none"
        log.info("study %s in %s: %s of %d trials", search.study, storage, done, self.n_trials)

    def _trials(self) -> Iterator["Trial | FrozenTrial"]:
        """Yields the unfinished trials of an earlier search, then new ones."""
        from optuna.trial import TrialState  # here, because only a search waits for Optuna

        for trial in self.study.get_trials(states=[TrialState.RUNNING]):
            if trial.params.keys() == self.space.keys():
                yield trial
            else:  # the search was killed while it drew the settings of the trial
                self.study.tell(trial.number, state=TrialState.FAIL)
        while sum(trial.state != TrialState.WAITING for trial in self.study.get_trials(deepcopy=False)) < self.n_trials:
            yield self.study.ask(self.space)

    def _run_trials(self) -> None:
        trials = self._trials()
        free = list(self._workers())
        while True:
            while free and (trial := next(trials, None)) is not None:
                worker = free.pop()
                self.running[self._launch(trial, worker)] = trial, worker
            if not self.running:
                break
            for future in wait_for_any(self.running):
                trial, worker = self.running.pop(future)
                error = future.exception()
                if error is not None and worker is None and status.read(self._folder(trial)) is None:
                    raise error  # of the launcher: the trial was not started, and a resumed search starts it
                self._tell(trial, error)
                free.append(worker)

    def _end_trials(self) -> None:
        """Stops the running trials, which write their checkpoints. Ctrl-C may have reached the workers already."""
        log.info("stopping the trials: each writes a checkpoint")
        if isinstance(self.launcher, SlurmLauncher):
            self.launcher.cancel()
        for process in multiprocessing.active_children():
            process.terminate()
        for future, (_, worker) in self.running.items():
            if worker is not None:
                wait_for_any([future])

    def _workers(self) -> Sequence[Worker | None]:
        """Returns the workers; None for each concurrent trial if the launcher starts its own processes."""
        # looked up here, because Hydra executes the modules of its plugins a second time
        if not isinstance(self.launcher, hydra_internals.BasicLauncher | LocalLauncher):
            return [None] * self.n_jobs
        trainer = self.config.trainer
        each = shares(resources(trainer).devices, trainer.accelerator, self.n_jobs)
        return [Worker(self.run_trial, share, self.folder / OUTPUT) for share in each]

    def _launch(self, trial: "Trial | FrozenTrial", worker: Worker | None) -> Future[None]:
        folder = self._folder(trial)
        overrides = [*self.settings, *(f"{key}={value}" for key, value in trial.params.items())]
        overrides.append(f"search.trial={trial.number}")
        if self.resumes and (folder / LAST).exists():
            overrides.append(f"resume={quoted(folder / LAST)}")
        if worker is None:
            return launch(self.launcher, folder, overrides, trial.number)
        hydra_overrides = [*self.config.hydra.overrides.hydra, "hydra.mode=RUN", f"hydra.run.dir={quoted(folder)}"]
        return worker.submit(folder, [*config_flags(), *overrides, *hydra_overrides])

    def _folder(self, trial: "Trial | FrozenTrial") -> Path:
        return self.folder / f"{TRIAL}{trial.number}"

    def _tell(self, trial: "Trial | FrozenTrial", error: BaseException | None) -> None:
        """Records the result of a trial in the study, and logs it."""
        from optuna.trial import TrialState  # as above

        folder = self._folder(trial)
        ended, values, state = status.read(folder), None, TrialState.FAIL
        if error is not None:
            message = f"failed: {error}"
        elif ended is None or ended.state in ("running", "interrupted"):
            message = "failed: its process was killed"
        elif ended.state == "pruned":
            message, state = str(ended.error), TrialState.PRUNED
        elif ended.state == "failed":
            message = f"failed: {ended.error} ({folder / 'train.log'})"
        else:
            values = self._values(folder, ended.value)
            finite = all(math.isfinite(value) for value in values)
            state, values = (TrialState.COMPLETE, values) if finite else (TrialState.FAIL, None)
            shown = (f"{name} {value:.5g}" for name, value in zip(self.objectives, values or [], strict=False))
            message = ", ".join(shown) or "failed: an objective is not finite"
        self.study.tell(trial.number, values, state)
        log.info("trial %d of %d: %s", trial.number, self.n_trials, message)

    def _values(self, folder: Path, monitored: float | None) -> list[float]:
        """Returns the value of each objective. Raises InputError if the run did not measure one."""
        metrics = json.loads((folder / "metrics.json").read_text())
        for name in self.objectives[1:]:
            if name not in metrics:
                raise InputError(
                    f"search.objectives: {name} is not a metric of the run. The metrics are {', '.join(metrics)}."
                )
        values = [monitored, *(metrics[name] for name in self.objectives[1:])]
        return [math.nan if value is None else float(value) for value in values]
