"""`search=...`: a sweeper for Hydra that lets Optuna choose the settings of each trial.

A trial is a run in a folder of its own below the search's. How it ended is read from its status.json, so that a search
that was killed goes on with what it left, and what went on without it counts.
"""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from serving.errors import EXIT_CODE, InputError
from trainer import status
from trainer.resume import LAST, quoted
from trainer.space import distribution, grid
from trainer.study import SAVED, TRIAL, conclude, counts, objectives, open_study, sampler, storage_of

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

log = logging.getLogger(__name__)

FREE = ("search.n_trials", "search.n_jobs")
"""Settings that may be others when a search goes on."""
FLAGS = ("config_path", "config_name", "config_dir")
ENDED = ("done", "pruned", "failed")


class Search(BasicSweeper):
    """Carries out trials until the study has `search.n_trials` of them, `search.n_jobs` at once.

    With Hydra's basic launcher in processes that each carry out one trial after another, else each by a launch of its
    own; so the next trial begins as soon as one ends.
    """

    __module__ = "hydra_plugins.lathe"  # Hydra takes plugins of this package alone

    def sweep(self, arguments: list[str]) -> None:
        assert self.config is not None
        self.folder = Path(self.config.hydra.sweep.dir).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with status.claim(self.folder):
                self._begin(self.config.copy(), [*self._parse_config(), *arguments])
                self._carry_out()
                conclude(self.study, self.folder, self.objectives)
        except InputError as error:  # of which Hydra would print a traceback
            log.error("%s", error)
            sys.exit(EXIT_CODE)
        except (KeyboardInterrupt, SystemExit):
            log.info("the search goes on when its command is given again with hydra.sweep.dir=%s", self.folder)
            raise

    def _begin(self, config: DictConfig, lines: list[str]) -> None:
        """Opens the study, a new one where there is none, and settles what all trials share."""
        assert self.hydra_context is not None
        parsed = OverridesParser.create(self.hydra_context.config_loader).parse_overrides(lines)
        command = {override.key_or_group: override for override in parsed}  # the last of each key
        space = {each.get_key_element(): each for each in command.values() if each.is_sweep_override()}
        self.space = {key: distribution(override) for key, override in space.items()}
        self.objectives = objectives(config)
        one_run = config.cross_validate is None and config.ensemble is None
        self.resumes = one_run and config.callbacks
        search = config.search
        with open_dict(config):
            search.study, search.storage = self._name(lines), storage_of(config, self.folder)
            if search.pruner != "none" and (len(self.objectives) > 1 or not one_run):
                log.info("search.pruner=none: only one run with one objective can be pruned")
                search.pruner = "none"
        directions = [config.mode, *search.objectives.values()]
        self.study = open_study(config, directions=[f"{direction}imize" for direction in directions])
        self.study.sampler = sampler(config, len(self.study.trials))
        OmegaConf.save(config, self.folder / SAVED)

        filled = [f"search.{key}={quoted(search[key])}" for key in ("study", "storage", "pruner")]
        trial_only = [line for line in search.overrides if line.partition("=")[0] not in command]
        given = [str(each.input_line) for each in command.values() if not each.is_sweep_override()]
        self.settings = [*trial_only, *given, *filled]
        self.n_trials, self.n_jobs = search.n_trials, search.n_jobs
        if search.sampler == "grid":
            points = grid(space)[: self.n_trials]
            self.n_trials = len(points)
            for point in points:
                self.study.enqueue_trial(point, skip_if_exists=True)
        log.info("study %s in %s: %s of %d trials", search.study, search.storage, counts(self.study), self.n_trials)

    def _name(self, lines: list[str]) -> str:
        """Of the study. Raises InputError where the folder holds the search of another command."""
        if not (self.folder / SAVED).exists():
            return self.folder.name
        saved: Any = OmegaConf.load(self.folder / SAVED)
        before = [f"{key}={value}" for key, value in saved.hydra.sweeper.params.items()] + saved.hydra.overrides.task
        then, now = ({line for line in each if line.partition("=")[0] not in FREE} for each in (before, lines))
        if then != now:
            differing = [f"it had {line}" for line in sorted(then - now)] + [f"not {line}" for line in sorted(now - then)]
            raise InputError(
                f"{self.folder} holds a search that was begun by another command: {', '.join(differing)}. Give it as it"
                " was, or choose another hydra.sweep.dir."
            )
        return str(saved.search.study)

    def _trials(self) -> Iterator["Trial | FrozenTrial"]:
        """Those that a search left, then new ones."""
        from optuna.trial import TrialState

        yield from self.study.get_trials(states=[TrialState.RUNNING])
        while sum(trial.state != TrialState.WAITING for trial in self.study.get_trials(deepcopy=False)) < self.n_trials:
            yield self.study.ask(self.space)

    def _carry_out(self) -> None:
        trials = self._trials()
        free = [self._slot() for _ in range(self.n_jobs)]
        running: dict[Future[Any], tuple[Trial | FrozenTrial, ProcessPoolExecutor | None]] = {}
        while True:
            while free and (trial := next(trials, None)) is not None:
                slot = free.pop()
                running[self._launch(trial, slot)] = trial, slot
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                trial, slot = running.pop(future)
                error = future.exception()
                self._tell(trial, error)
                free.append(self._slot() if isinstance(error, BrokenExecutor) else slot)

    def _slot(self) -> ProcessPoolExecutor | None:
        """Where a trial is carried out: a process, or None where the launcher has one."""
        if not isinstance(self.launcher, BasicLauncher):
            return None
        return ProcessPoolExecutor(1, get_context("spawn"), _start, (self.folder / "workers.log", self.n_jobs))

    def _launch(self, trial: "Trial | FrozenTrial", slot: ProcessPoolExecutor | None) -> Future[Any]:
        assert self.config is not None
        assert self.launcher is not None
        folder = self.folder / f"{TRIAL}{trial.number}"
        overrides = [*self.settings, *(f"{key}={value}" for key, value in trial.params.items())]
        overrides.append(f"search.trial={trial.number}")
        if self.resumes and (folder / LAST).exists():
            overrides.append(f"resume={quoted(folder / LAST)}")
        if slot is None:
            return _in_thread(folder, self.launcher.launch, [overrides], trial.number)
        options = vars(get_args_parser().parse_args())
        flags = [f"--{flag.replace('_', '-')}={options[flag]}" for flag in FLAGS if options[flag] is not None]
        hydra = [*self.config.hydra.overrides.hydra, "hydra.mode=RUN", f"hydra.run.dir={quoted(folder)}"]
        return slot.submit(_run, folder, [*flags, *overrides, *hydra])

    def _tell(self, trial: "Trial | FrozenTrial", error: BaseException | None) -> None:
        """Records how a trial ended, and says it."""
        from optuna.trial import TrialState

        folder = self.folder / f"{TRIAL}{trial.number}"
        ended = status.read(folder)
        values = None
        why = str(error) if error is not None else "its process was ended" if ended is None else ended.error
        state = TrialState.FAIL
        if ended is not None and ended.state == "pruned":
            state = TrialState.PRUNED
        elif ended is not None and ended.state == "done":
            values = self._values(folder, ended.value)
            if 
            state = TrialState.COMPLETE
        self.study.tell(trial.number, values, state)
        ...
