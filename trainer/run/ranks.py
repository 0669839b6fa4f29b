"""Several processes that train one network: rank 0 is the run; it starts the others, or torchrun or srun has.

The others wait for rank 0 to send them its config, so that all agree on every setting and on the folder. They go with
it to the end of training, and write nothing but a log of their own; what follows rank 0 does alone. Who started them,
all go by the variables of torchrun.
"""

import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from common.distributed import launch
from common.errors import EXIT_CODE, InputError
from common.hardware import available_cores
from trainer.config.errors import ConfigError
from trainer.config.validate_processes import count_devices, validate_launch, validate_processes

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
GRACE = 30.0
"""Seconds in which a process learns of another's end by their connection, which NCCL does not tell of."""


@contextmanager
def launch_ranks(config: DictConfig, folder: Path) -> Iterator[None]:
    """The other processes of a run, if it has several, take part meanwhile (`trainer.run.run.run_rank`).

    Raises ConfigError where their number is not what was started, and InputError or RuntimeError where one of them
    ended.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True)
    for key, what in (*validate_processes(plain), *validate_launch(plain)):
        raise ConfigError(f"{key}: {what}")
    world = count_devices(plain["trainer"]) * plain["trainer"].get("num_nodes", 1)
    if world == 1:
        yield
        return
    before = dict(os.environ)
    children = Children(world, folder) if launch() is None else None
    try:
        join()
        from_rank_zero((plain, folder))
        yield
        _part()
        if children is not None:
            children.wait()
    except RuntimeError:
        if children is not None and (ended := children.ended()):
            raise ended from None  # the error here is that of a connection
        raise
    finally:
        if children is not None:
            children.kill()
        _part()
        os.environ.clear()
        os.environ.update(before)  # the next job of a sweep begins as this one did


def rank_log(folder: Path, rank: int) -> Path:
    return folder / f"train_rank_{rank}.log"


def join() -> None:
    """Joins the group of all processes."""
    import torch
    import torch.distributed as dist

    _as_torchrun()
    # What is no tensor goes by gloo, so that the processes may talk before they know their devices.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def _part() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def from_rank_zero(value: Any) -> Any:
    """What rank 0 gives, in all processes."""
    import torch.distributed as dist

    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def _as_torchrun() -> None:
    """Says what srun says in the variables of torchrun, which Lightning and torch go by."""
    here, given = launch(), os.environ
    if here is None or here.by != "srun":
        return
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    job, step = given["SLURM_JOB_ID"], given["SLURM_STEP_ID"]
    given |= {
        "RANK": str(here.rank),
        "WORLD_SIZE": str(here.world),
        "LOCAL_RANK": given["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(here.local),
        "GROUP_RANK": given["SLURM_NODEID"],
        "TORCHELASTIC_RUN_ID": f"{job}.{step}",
    }
    given.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(given["SLURM_STEP_NODELIST"]))
    given.setdefault("MASTER_PORT", str(15_000 + (int(job) + 1000 * int(step)) % 10_000))
    given.setdefault("OMP_NUM_THREADS", _threads(here.local))


def _threads(local: int) -> str:
    return str(max(available_cores() // local, 1))


class Children:
    """Processes that this one starts on its machine, as torchrun would, and watches."""

    def __init__(self, world: int, folder: Path) -> None:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not told to mypy

        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.folder = folder
        os.environ.update(
            {
                "RANK": "0",
                "LOCAL_RANK": "0",
                "GROUP_RANK": "0",
                "WORLD_SIZE": str(world),
                "LOCAL_WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self.store.port),
                "TORCHELASTIC_RUN_ID": str(os.getpid()),
                "TORCHELASTIC_RESTART_COUNT": "0",
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            }
        )
        os.environ.setdefault("OMP_NUM_THREADS", _threads(world))
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.done = threading.Event()
        for number in range(1, world):
            environment = os.environ | {"RANK": str(number), "LOCAL_RANK": str(number)}
            with rank_log(folder, number).open("a") as said:
                self.processes[number] = subprocess.Popen(
                    [sys.executable, str(ROOT / "train.py")],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                )
        threading.Thread(target=self._watch, daemon=True).start()

    def ended(self, within: float = 5.0) -> Exception | None:
        """The error of one that ended by itself, and badly; looked for so many seconds."""
        until = time.monotonic() + within
        while time.monotonic() < until:
            for number, process in self.processes.items():
                if process.poll():
                    return self._error(number, process.returncode)
            time.sleep(0.05)
        return None

    def wait(self) -> None:
        """For their end, which is near."""
        self.done.set()
        for process in self.processes.values():
            process.wait(GRACE)

    def kill(self) -> None:
        self.done.set()
        for process in self.processes.values():
            process.kill()
            process.wait()

    def _error(self, number: int, code: int) -> Exception:
        path = rank_log(self.folder, number)
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        what = f"process {number} of {len(self.processes) + 1} {how}; its log is {path}"
        if code != EXIT_CODE:
            return RuntimeError(what)
        errors = re.split(r"^\S+ \S+ ERROR ", path.read_text(), flags=re.MULTILINE)
        return InputError(f"{what}:\n{errors[-1].strip()}")

    def _watch(self) -> None:
        """Ends this process where it waits for one that is gone, and no connection tells it so."""
        while not self.done.wait(0.5):
            error = self.ended(within=0.01)
            if error is not None and not self.done.wait(GRACE):
                log.critical("%s", error)
                for process in self.processes.values():
                    process.kill()
                os._exit(1)
