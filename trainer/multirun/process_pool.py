"""Several runs at once, each in a process of its own: the folds of a cross-validation, the members of an ensemble."""

import logging
import multiprocessing
import pickle
import signal
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from common.hardware import available_cores, free_memory, readable
from trainer.loop.trainer import THREADS
from trainer.multirun.pool_worker import work

log = logging.getLogger(__name__)
T = TypeVar("T")

MEMORY = 10**9
"""Bytes that most runs need at most beside their rows: libraries, network, gradients."""


def run_all(runs: Mapping[Path, Callable[[], T]], config: DictConfig) -> list[T]:
    """What each run returns, in their order; they are known by their folders.

    `config.n_jobs` of them are at work at once; where it is 1, in this process. In a process of its own a run
    prints to train.log in its folder, and has its share of the cores and of the memory. Where one fails, or this
    process is interrupted, the others are ended by SIGTERM. Raises InputError where a run does, and RuntimeError with
    its traceback where it raises anything else.
    """
    count, why = choose_processes(config, len(runs))
    log.info("processes: %d of %d runs at once (%s)", count, len(runs), why)
    if count == 1:
        return [run() for run in runs.values()]
    waiting = list(runs.items())
    running: dict[Connection, BaseProcess] = {}
    results: dict[str, T] = {}
    try:
        while waiting or running:
            while waiting and len(running) < count:
                pipe, process = _start(*waiting.pop(0), count)
                running[pipe] = process
            ready = wait(list(running))
            for pipe in [each for each in running if each in ready]:
                try:
                    told = pipe.recv()
                except EOFError:
                    process = running.pop(pipe)
                    process.join()
                    if process.name not in results:
                        raise RuntimeError(_died(process)) from None
                    continue
                if isinstance(told, Exception):
                    raise told
                if isinstance(told, bytes):
                    results[running[pipe].name] = pickle.loads(told)
                else:
                    name, level, message = told
                    from_whom = f"{running[pipe].name}: " if level >= logging.WARNING else ""
                    logging.getLogger(name).log(level, "%s%s", from_whom, message)
    finally:
        _end(list(running.values()))
    return [results[folder.name] for folder in runs]


def choose_processes(config: DictConfig, runs: int) -> tuple[int, str]:
    """How many of the runs are to be at work at once, and why."""
    if config.n_jobs != "auto":
        return min(config.n_jobs, runs), "given"
    settings: dict[Any, Any] = {"accelerator": "auto", "threads": "auto", **config.trainer}
    if settings["accelerator"] != "cpu" and torch.cuda.is_available():
        return 1, "they share a GPU"
    threads = 1 if settings["threads"] == "auto" else settings["threads"]
    cores, free = min(available_cores(), THREADS), free_memory()
    count = min(runs, cores // threads)
    if free // MEMORY < count:
        return max(1, free // MEMORY), f"{readable(free)} of memory are free"
    return max(1, count), f"{cores} cores, {threads} of them a run"


def _start(folder: Path, run: Callable[[], object], count: int) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    receiving, sending = context.Pipe(duplex=False)
    state = (HydraConfig.instance().cfg, logging.getLogger().level)
    # Pickled here, so that it is for the process to say when it is imported.
    process = context.Process(target=work, args=(pickle.dumps(run), folder, *state, count, sending), name=folder.name)
    process.start()
    sending.close()  # so that it ends with the process
    return receiving, process


def _died(process: BaseProcess) -> str:
    if process.exitcode == -signal.SIGKILL:
        return (
            f"{process.name} was killed by SIGKILL, as the system does where memory is short: n_jobs=1 takes less of"
            " it."
        )
    return f"{process.name} ended with exit code {process.exitcode}, its log says no more."


def _end(processes: list[BaseProcess]) -> None:
    """They may write a checkpoint first; a second interruption does not wait for it."""
    for process in processes:
        process.terminate()
    try:
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()
