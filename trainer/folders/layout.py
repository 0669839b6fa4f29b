"""Names of the files in run folders and sweep folders, and the command that resumes a run. Does not import torch."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from common.atomic_write import atomic_write
from trainer.config.settings import argument

LAST = Path("checkpoints", "last.ckpt")
SAVED = "overrides.yaml"
"""The overrides of the command. Hydra's copy in .hydra is not written atomically: a killed run may leave half of it."""
SWEEP = "sweep.yaml"
"""In the folder of a sweep: the overrides of its command."""


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints to resume from: the last one of the run, and those of its folds or members."""
    return [path for path in (folder / LAST, *folder.glob(f"*/{LAST}")) if path.exists()]


def save_overrides(folder: Path, lines: Sequence[str]) -> None:
    """Writes the overrides of the command, from which the run is resumed."""
    atomic_write(folder / SAVED, OmegaConf.to_yaml(list(lines)).encode())


def resume_command(folder: Path) -> str:
    """The command that resumes the run in `folder`, or the run of which it is a fold or member."""
    folder = folder.absolute()
    if not (folder / SAVED).exists() and (folder.parent / SAVED).exists():
        folder = folder.parent
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    return f"python train.py {argument('resume', folder)}"


def what_next(folder: Path) -> str:
    """A message that says how to resume an interrupted run."""
    if not (folder / SAVED).exists():
        return "The run had not started."
    if checkpoints(folder):
        return f"Resume it with: {resume_command(folder)}"
    return f"It has no checkpoint. Start it again, in the same folder, with: {resume_command(folder)}"
