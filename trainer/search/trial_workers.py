"""How the trials of a search are carried out at once: in processes of its own, or by a launcher of Hydra."""

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
    """A process that carries out one trial after another, so that it imports torch once; `share` are the variables by
    which it takes its share of the machine, `output` is where it prints to. `run` carries out the trial that a list of
    arguments describes; it is pickled."""

    def __init__(self, run: Callable[[list[str]], None], share: Mapping[str, str], output: Path) -> None:
        self.run = run
        self.begun_with = dict(share), output
        self.pool = self._begin()

    def _begin(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, get_context("spawn"), _begin, self.begun_with)

    def submit(self, folder: Path, arguments: list[str]) -> Future[None]:
        try:
            return self.pool.submit(_run, self.run, folder, arguments)
        except BrokenExecutor:  # it was killed
            self.pool = self._begin()
            return self.pool.submit(_run, self.run, folder, arguments)


def launch(launcher: Launcher, folder: Path, overrides: list[str], number: int) -> Future[None]:
    """A trial by a launcher, which waits for it; the thread does not keep a search that is interrupted from ending."""
    future: Future[None] = Future()

    def work() -> None:
        try:
            if not _ended(folder):
                launcher.launch([overrides], number)
                _ended(folder)  # one that an earlier search had queued came first
            future.set_result(None)
        except BaseException as error:  # whatever a launcher raises
            future.set_exception(error)

    Thread(target=work, daemon=True).start()
    return future


def _begin(share: Mapping[str, str], output: Path) -> None:
    """In a worker, before torch is imported: it ends with the search, whatever ends that."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(share)
    search = parent_process()
    assert search is not None
    ending = search.sentinel

    def end() -> None:
        connection.wait([ending])
        os._exit(1)  # a trial that is not done goes on from its checkpoint in the next search

    Thread(target=end, daemon=True).start()


def _run(run: Callable[[list[str]], None], folder: Path, arguments: list[str]) -> None:
    """A trial in this process."""
    if not _ended(folder):
        run(arguments)


def _ended(folder: Path) -> bool:
    """Whether a trial that an earlier search left has ended; one that still runs, on a cluster, is waited for."""
    while (found := status.read(folder)) is not None and found.state == "running":
        time.sleep(1)
    return found is not None and found.state in ("done", "pruned", "failed")
