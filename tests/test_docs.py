"""The commands that the documentation gives are commands."""

import re
import shlex

import pytest

from tests.conftest import ROOT
from trainer.config import prepare

COMMANDS = sorted(
    {
        command.partition("  #")[0].strip()
        for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
        for command in re.findall(r"python train\.py ([^`\n]+)", page.read_text())
        if "optimiser" not in command  # the README's example of a mistake
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_documentation_passes_the_check_of_settings(command: str) -> None:
    prepare(["--cfg", "job", *shlex.split(command)])
