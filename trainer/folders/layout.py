"""Names of the files in a run folder or a sweep folder, and what they say about resuming. Torch is not imported."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from common.atomic_write import atomic_write
from trainer.config.settings import argument

LAST = Path("checkpoints", "last.ckpt")


SAVED = "overrides.yaml"
"""The command's settings. Hydra has them too, in .hydra, but writes in place: a run that was killed may have half."""


SWEEP = "sweep.yaml"
"""In the folder of a sweep: its command, all settings as they were given."""


def checkpoints(folder: Path) -> list[Path]:
    """What there is to go on from: the run's last checkpoint, or those of its folds or members."""
    return [path for path in (folder / LAST, *folder.glob(f"*/{LAST}")) if path.exists()]


def save_overrides(folder: Path, lines: Sequence[str]) -> None:
    """Keeps the settings of the command, for those who go on with the run."""
    atomic_write(folder / SAVED, OmegaConf.to_yaml(list(lines)).encode())


def go_on(folder: Path) -> str:
    """The command that goes on with the run in `folder`, or with the one whose fold or member it is."""
    folder = folder.absolute()
    if not (folder / SAVED).exists() and (folder.parent / SAVED).exists():
        folder = folder.parent
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    return f"python train.py {argument('resume', folder)}"


def what_next(folder: Path) -> str:
    """What to do about a run that was interrupted."""
    if not (folder / SAVED).exists():
        return "Nothing was begun."
    if checkpoints(folder):
        return f"Go on with: {go_on(folder)}"
    return f"There is no checkpoint of it. Start anew, in the same folder, with: {go_on(folder)}"
