"""The commands that the documentation gives are commands."""

import re
import shlex

import pytest

from tests.conftest import ROOT
from trainer.command.prepare import prepare

COMMANDS = sorted(
    {
        command.partition("  #")[0].strip()
        for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
        for command in re.findall(r"python train\.py ([^`\n]+)", page.read_text())
        # The README's example of a mistake; and what needs the folder of a study, which test_search.py gives it.
        if "optimiser" not in command and "experiment=best" not in command
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_documentation_passes_the_check_of_settings(command: str) -> None:
    prepare(["--cfg", "job", *checked(shlex.split(command))])


def checked(settings: list[str]) -> list[str]:
    """Without those of a launcher that Lathe does not bring, which nobody here can check."""
    foreign = any(setting.startswith("hydra/launcher=") for setting in settings)
    return [setting for setting in settings if not (foreign and re.match(r"\+?hydra[/.]launcher\b", setting))]
