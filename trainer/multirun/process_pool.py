"""Concurrent runs, each in its own process: the folds of a cross-validation, the members of an ensemble."""

import logging
import multiprocessing
import pickle
import signal
from collections.abc import Callable, Collection, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from common.hardware import available_cores, free_memory, readable
from trainer.loop.hardware import THREADS
from trainer.multirun.pool_worker import work

log = logging.getLogger(__name__)
T = TypeVar("T")

MEMORY = 10**9
"""Bytes that a typical run needs in addition to its rows, for libraries, network and gradients."""


def run_all(
    runs: Mapping[Path, Callable[[], T]], config: DictConfig, forward: Collection[logging.Logger] = ()
) -> list[T]:
    """Calls the runs, `config.n_jobs` at once, and returns their results in order. The keys are the run folders.

    With one job the runs are called in this process. Otherwise each has its own process with a share of the cores and
    the memory, and its output goes to train.log in its folder; this process logs its warnings, and its messages to the
    `forward` loggers. If a run fails, or this process is interrupted, the others are terminated. Raises InputError if a
    run does, and RuntimeError with the traceback for any other error.
    """
    count, why = choose_n_jobs(config, len(runs))
    log.info("processes: %d of %d runs at once (%s)", count, len(runs), why)
    if count == 1:
        return [run() for run in runs.values()]
    waiting = list(runs.items())
    running: dict[Connection, BaseProcess] = {}
    results: dict[str, T] = {}
    try:
        while waiting or running:
            while waiting and len(running) < count:
                pipe, process = _start(*waiting.pop(0), [logger.name for logger in forward], count)
                running[pipe] = process
            ready = wait(list(running))
            for pipe in [each for each in running if each in ready]:
                try:
                    received = pipe.recv()
                except EOFError:
                    process = running.pop(pipe)
                    process.join()
                    if process.name not in results:
                        raise RuntimeError(_exit_message(process)) from None
                    continue
                if isinstance(received, Exception):
                    raise received
                if isinstance(received, bytes):
                    results[running[pipe].name] = pickle.loads(received)
                else:
                    name, level, message = received
                    source = f"{running[pipe].name}: " if level >= logging.WARNING else ""
                    logging.getLogger(name).log(level, "%s%s", source, message)
    finally:
        _terminate(list(running.values()))
    return [results[folder.name] for folder in runs]


def choose_n_jobs(config: DictConfig, runs: int) -> tuple[int, str]:
    """Returns the number of runs at once, and the reason."""
    if config.n_jobs != "auto":
        return min(config.n_jobs, runs), "given"
    settings: dict[Any, Any] = {"accelerator": "auto", "threads": "auto", **config.trainer}
    if settings["accelerator"] != "cpu" and torch.cuda.is_available():
        return 1, "they share a GPU"
    threads = 1 if settings["threads"] == "auto" else settings["threads"]
    cores, free = min(available_cores(), THREADS), free_memory()
    count = min(runs, cores // threads)
    if free // MEMORY < count:
        return max(1, free // MEMORY), f"{readable(free)} of memory free"
    return max(1, count), f"{cores} cores, {threads} per run"


def _start(folder: Path, run: Callable[[], object], forward: list[str], count: int) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    receiving, sending = context.Pipe(duplex=False)
    state = (HydraConfig.instance().cfg, logging.getLogger().level)
    # Pickled here, so that the worker chooses when to unpickle it, which imports its modules.
    given = (pickle.dumps(run), folder, *state, forward, count, sending)
    process = context.Process(target=work, args=given, name=folder.name)
    process.start()
    sending.close()  # so that the pipe ends with the process
    return receiving, process


def _exit_message(process: BaseProcess) -> str:
    if process.exitcode == -signal.SIGKILL:
        return f"{process.name} was killed by SIGKILL, possibly because memory ran out: n_jobs=1 needs less."
    return f"{process.name} ended with exit code {process.exitcode}; its log has no error."


def _terminate(processes: list[BaseProcess]) -> None:
    """Lets the processes write a checkpoint first; a second interruption kills them at once."""
    for process in processes:
        process.terminate()
    try:
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()
