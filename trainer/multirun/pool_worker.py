"""The process of one run among several, `process_pool`'s: it is forked from a server that has imported this module.

Nothing that is imported here may start threads that a fork would break, as Polars does.
"""

import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals

from common.errors import InputError
from trainer.config.fast_imports import fast_imports
from trainer.folders.signals import Interrupted, watch

logging.basicConfig()  # Lightning, which would find no handlers, would add its own
with fast_imports():
    import pytorch_lightning  # noqa: F401
    import torch

LOG = "train.log"
FORWARDED_LOGGERS = ("trainer.multirun.cross_validation", "trainer.multirun.ensemble", "trainer.evaluation.report")
"""Loggers whose messages the other process logs too, beside all warnings; the rest is in the log of the run."""


class LogForwarder(logging.Handler):
    """Sends logger, level and message to the process that started this one."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self.pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING or record.name in FORWARDED_LOGGERS:
            self.pipe.send((record.name, record.levelno, record.getMessage()))


def work(run: bytes, folder: Path, hydra: Any, level: int, share: int, pipe: Connection) -> None:
    """Calls the pickled `run` with one of `share` parts of the cores and of the memory, and sends what it returns.

    Sends what is to be logged before (`LogForwarder`), or an error instead: an InputError, or a RuntimeError with the
    traceback.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends all
    threading.Thread(target=_follow_parent, daemon=True).start()
    _log_to(folder, level, pipe)
    setup_globals()
    HydraConfig.instance().cfg = hydra
    # Before the run is unpickled: what it imports counts the threads.
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
        pipe.send(
            RuntimeError(f"{folder.name} stopped at an error; its log is {folder / LOG}.\n{traceback.format_exc()}")
        )
    else:
        # By value: tensors that multiprocessing pickles are in memory of this process, which ends.
        pipe.send(pickle.dumps(result))


def _log_to(folder: Path, level: int, pipe: Connection) -> None:
    """What is printed, by whomever, goes to train.log in the folder."""
    folder.mkdir(exist_ok=True)
    with (folder / LOG).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    handlers = [logging.FileHandler(folder / LOG), LogForwarder(pipe)]
    logging.basicConfig(handlers=handlers, level=level, force=True, format="%(asctime)s %(levelname)s %(message)s")


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
