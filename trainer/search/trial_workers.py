"""Concurrent trials of a search, in worker processes or by a launcher of Hydra."""

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from threading import Thread

from hydra.plugins.launcher import Launcher

from trainer.folders import status


class Worker:
    """A process that runs one trial after another, so that it imports torch only once.

    `run` runs the trial with a list of arguments; it is pickled. `share` are the environment variables that give the
    process its share of the machine; `output` is the file for its output.
    """

    def __init__(self, run: Callable[[list[str]], None], share: Mapping[str, str], output: Path) -> None:
        self.run = run
        self.initial = dict(share), output
        self.pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, get_context("spawn"), _initialize, self.initial)

    def submit(self, folder: Path, arguments: list[str]) -> Future[None]:
        try:
            return self.pool.submit(_run, self.run, folder, arguments)
        except BrokenExecutor:  # the process was killed
            self.pool = self._start()
            return self.pool.submit(_run, self.run, folder, arguments)


def launch(launcher: Launcher, folder: Path, overrides: list[str], number: int) -> Future[None]:
    """Runs a trial by a launcher, which waits for it, in a daemon thread: it does not block the end of the search."""
    future: Future[None] = Future()

    def work() -> None:
        try:
            if not _ended(folder):
                launcher.launch([overrides], number)
                _ended(folder)  # waits for a job of an earlier search that came first
            future.set_result(None)
        except BaseException as error:  # a launcher may raise anything
            future.set_exception(error)

    Thread(target=work, daemon=True).start()
    return future


def _initialize(share: Mapping[str, str], output: Path) -> None:
    """Prepares a worker before it imports torch. The worker ends when the search does, even if that is killed."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(share)
    search = parent_process()
    assert search is not None
    ending = search.sentinel

    def end() -> None:
        connection.wait([ending])
        os._exit(1)  # a resumed search resumes the trial from its checkpoint

    Thread(target=end, daemon=True).start()


def _run(run: Callable[[list[str]], None], folder: Path, arguments: list[str]) -> None:
    """Runs a trial in this process, unless it has ended."""
    if not _ended(folder):
        run(arguments)


def _ended(folder: Path) -> bool:
    """Returns whether a trial of an earlier search has ended. Waits for one that still runs, as on a cluster."""
    while (found := status.read(folder)) is not None and found.state == "running":
        time.sleep(1)
    return found is not None and found.state in ("done", "pruned", "failed")
