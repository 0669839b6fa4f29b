"""Worker process of `process_pool`: forked from a server that has imported this module.

Do not import anything here that starts threads, such as Polars: they do not survive a fork.
"""

import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Collection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals

from common.errors import InputError
from trainer.config.fast_imports import fast_imports
from trainer.folders.signals import Interrupted, watch

logging.basicConfig()  # without a handler Lightning would add its own
with fast_imports():
    import pytorch_lightning  # noqa: F401
    import torch

LOG = "train.log"


class LogForwarder(logging.Handler):
    """Sends warnings, and all messages of the loggers in `names`, to the parent process: logger, level and message."""

    def __init__(self, pipe: Connection, names: Collection[str]) -> None:
        super().__init__()
        self.pipe, self.names = pipe, names

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING or record.name in self.names:
            self.pipe.send((record.name, record.levelno, record.getMessage()))


def work(
    run: bytes, folder: Path, hydra: Any, level: int, forward: Collection[str], share: int, pipe: Connection
) -> None:
    """Calls the pickled `run` with 1 / `share` of the cores and the memory, and sends the pickled result.

    Sends log messages before it (`LogForwarder`). In place of the result it sends an InputError, or a RuntimeError with
    the traceback of any other error.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which terminates all workers
    threading.Thread(target=_follow_parent, daemon=True).start()
    _log_to(folder, level, LogForwarder(pipe, forward))
    setup_globals()
    HydraConfig.instance().cfg = hydra
    # Before the run is unpickled, because its imports read the number of threads.
    torch.set_num_threads(max(1, torch.get_num_threads() // share))
    os.environ.setdefault("POLARS_MAX_THREADS", str(torch.get_num_threads()))
    from common import hardware

    hardware.sharing = share
    try:
        with watch.installed():
            result = pickle.loads(run)()
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)
    except InputError as error:
        print(error, file=sys.stderr)
        pipe.send(InputError(f"{folder.name}: {error}"))
    except Exception:
        traceback.print_exc()
        pipe.send(RuntimeError(f"{folder.name} failed; its log is {folder / LOG}.\n{traceback.format_exc()}"))
    else:
        # Pickled by value: multiprocessing would share the tensors in memory of this process, which ends.
        pipe.send(pickle.dumps(result))


def _log_to(folder: Path, level: int, forwarder: LogForwarder) -> None:
    """Sends all output of the process, that of C libraries included, to train.log in the folder."""
    folder.mkdir(exist_ok=True)
    with (folder / LOG).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    handlers = [logging.FileHandler(folder / LOG), forwarder]
    logging.basicConfig(handlers=handlers, level=level, force=True, format="%(asctime)s %(levelname)s %(message)s")


def _follow_parent() -> None:
    """Ends this process when its parent has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
