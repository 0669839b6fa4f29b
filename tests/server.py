"""Runs scripts of the project in processes forked from a server that has imported torch and Lightning.

A fresh Python process spends 5 to 7 seconds on these imports, a forked one none. Nothing that starts threads may be
imported here, as Polars does.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRELOADED = "trainer.multirun.pool_worker"
"""Imports torch and Lightning, and no Polars."""


def run_forked(
    command: list[str], cwd: Path, stdin: bytes, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """The exit code and the output of `python command...`. Raises TimeoutExpired after `timeout` seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("in", "out", "err")]
        files[0].write_bytes(stdin)
        process = context.Process(target=_run, args=(command, cwd, files, dict(env)))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(command, timeout)
        output, errors = (file.read_text(errors="replace") for file in files[1:])
    return subprocess.CompletedProcess(command, process.exitcode, output, errors)


def _run(command: list[str], cwd: Path, files: list[Path], env: dict[str, str]) -> None:
    """In the forked process: becomes `python command...`."""
    for descriptor, (file, mode) in enumerate(zip(files, (os.O_RDONLY, *[os.O_WRONLY | os.O_CREAT] * 2), strict=True)):
        os.dup2(os.open(file, mode), descriptor)
    for stream in ("stdin", "stdout", "stderr"):
        descriptor = ("stdin", "stdout", "stderr").index(stream)
        setattr(sys, stream, open(descriptor, "r" if descriptor == 0 else "w", closefd=False))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = command
    sys.path[0] = str(Path(command[0]).parent)
    import logging

    logging.getLogger().handlers.clear()  # the server has some, because of Lightning
    runpy.run_path(command[0], run_name="__main__")
