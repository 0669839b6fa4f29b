"""Several processes that train one network. Rank 0 is the run; it starts the other ranks, unless torchrun or srun has.

The other ranks receive the config from rank 0, so that all agree on the settings and the folder. They take part until
the end of training and write only a log; rank 0 does the rest alone. Whatever started them, all processes use the
environment variables of torchrun.
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
"""Seconds before a process that waits for a dead one is ended: NCCL does not report a closed connection."""


@contextmanager
def launch_ranks(config: DictConfig, folder: Path) -> Iterator[None]:
    """Context in which the other ranks of a run, if it has several, take part (`trainer.run.run.run_rank`).

    Raises ConfigError if the settings do not match the processes that were started, and InputError or RuntimeError if
    another rank failed.
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
        _leave()
        if children is not None:
            children.wait()
    except RuntimeError:
        if children is not None and (failure := children.failure()):
            raise failure from None  # the error here is a closed connection
        raise
    finally:
        if children is not None:
            children.kill()
        _leave()
        os.environ.clear()
        os.environ.update(before)  # for the next job of a sweep


def rank_log(folder: Path, rank: int) -> Path:
    return folder / f"train_rank_{rank}.log"


def join() -> None:
    """Initializes torch's process group."""
    import torch  # here, because help and the check of the settings do not wait for torch
    import torch.distributed as dist

    _set_torchrun_variables()
    # Objects are sent by gloo, so that the processes can communicate before they have chosen their devices.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def _leave() -> None:
    import torch.distributed as dist  # as above

    if dist.is_initialized():
        dist.destroy_process_group()


def from_rank_zero(value: Any) -> Any:
    """Returns the value of rank 0 in all processes."""
    import torch.distributed as dist  # as above

    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def _set_torchrun_variables() -> None:
    """Translates the environment variables of srun to those of torchrun, which Lightning and torch read."""
    here, given = launch(), os.environ
    if here is None or here.by != "srun":
        return
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment  # as above

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
    """Starts the other ranks on this machine, as torchrun would, and monitors them."""

    def __init__(self, world: int, folder: Path) -> None:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not typed

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
            with rank_log(folder, number).open("a") as output:
                self.processes[number] = subprocess.Popen(
                    [sys.executable, str(ROOT / "train.py")],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
        threading.Thread(target=self._watch, daemon=True).start()

    def failure(self, within: float = 5.0) -> Exception | None:
        """Waits up to `within` seconds for a process to fail, and returns its error."""
        until = time.monotonic() + within
        while time.monotonic() < until:
            for number, process in self.processes.items():
                if process.poll():
                    return self._error(number, process.returncode)
            time.sleep(0.05)
        return None

    def wait(self) -> None:
        """Waits until the processes, which have finished training, have ended."""
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
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        message = f"process {number} of {len(self.processes) + 1} {how}; its log is {path}"
        if code != EXIT_CODE:
            return RuntimeError(message)
        errors = re.split(r"^\S+ \S+ ERROR ", path.read_text(), flags=re.MULTILINE)
        return InputError(f"{message}:\n{errors[-1].strip()}")

    def _watch(self) -> None:
        """Ends this process if it waits for a dead one and no closed connection interrupts it."""
        while not self.done.wait(0.5):
            error = self.failure(within=0.01)
            if error is not None and not self.done.wait(GRACE):
                log.critical("%s", error)
                for process in self.processes.values():
                    process.kill()
                os._exit(1)
