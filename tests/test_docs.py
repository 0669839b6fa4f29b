"""The documentation: its commands pass the check of the settings, and its links, anchors and signatures exist."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from trainer.command.prepare import prepare

PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *sorted(ROOT.glob("docs/*.md"))]
UNCHECKED = ("optimiser", "experiment=best", "model=wide", "OVERRIDES")
"""Words of commands with an intended mistake, the folder of a study, a model to be written, or a placeholder."""
COMMANDS = sorted(
    {
        command.partition("  #")[0].strip()
        for page in PAGES
        for command in re.findall(r"python train\.py ([^`\n]+)", page.read_text())
        if not any(word in command for word in UNCHECKED)
    }
)
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_documentation_passes_the_check_of_settings(command: str) -> None:
    prepare(["--cfg", "job", *without_foreign_launcher(shlex.split(command))])


def without_foreign_launcher(settings: list[str]) -> list[str]:
    """Removes the settings of a launcher that is not a dependency of Lathe: they cannot be checked here."""
    foreign = any(setting.startswith("hydra/launcher=") for setting in settings)
    return [setting for setting in settings if not (foreign and re.match(r"\+?hydra[/.]launcher\b", setting))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_and_anchor_resolves(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text())):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not re.match(r"[a-z]+:", link) and not (target.exists() and (not anchor or anchor in anchors(target))):
            broken.append(link)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, by GitHub's rules."""
    headings = re.findall(r"^#+ +(.+?) *$", CODE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_signatures_in_architecture_md_exist_in_the_code() -> None:
    assert list(missing_signatures((ROOT / "docs" / "architecture.md").read_text())) == []


def test_a_signature_or_a_file_that_does_not_exist_is_found() -> None:
    page = (
        "```python\n# train.py, absent.py: a text\ndef start() -> list[int]  # def comment()\nclass Absent(Base): x\n"
        "    def method(self) -> None; def start()\n\n# models/<name>.py\ndef ignored()\n```\ndef outside()\n"
    )
    assert list(missing_signatures(page)) == [
        "absent.py: no such file", "Absent: not in train.py", "method: not in train.py",
    ]  # fmt: skip


def missing_signatures(page: str) -> Iterator[str]:
    """Yields the files, and the functions and classes under `# path/file.py` comments, that do not exist.

    A comment may name several files, those after the first also without their folder; `<name>` stands for any file, so
    the lines below it are not checked.
    """
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        paths: list[Path] = []
        for line in block.splitlines():
            if line.startswith("#"):
                names = re.findall(r"[\w/<>]+\.py\b", line)
                if names:
                    folder = (ROOT / names[0]).parent
                    places = [ROOT / name if (ROOT / name).exists() else folder / name for name in names]
                    known = [place for place in places if "<" not in place.name]
                    paths = [place for place in known if place.exists()]
                    yield from (f"{place.relative_to(ROOT)}: no such file" for place in known if not place.exists())
                continue
            code = line.partition("  #")[0]
            for name in re.findall(r"\b(?:def|class) (\w+)", code):
                if paths and name not in {each for path in paths for each in definitions(path)}:
                    yield f"{name}: not in {', '.join(str(path.relative_to(ROOT)) for path in paths)}"


def definitions(path: Path) -> set[str]:
    """The names of all functions, methods and classes of a file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)}
