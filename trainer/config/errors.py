"""What is wrong with the settings, said in one form."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from common.errors import InputError


class ConfigError(InputError):
    """Settings that cannot be used; the message says which, where they come from, and what to give."""


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake: the file it stands in (or "command line"), the full key, and what is wrong."""

    where: str
    key: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.what}"


def raise_all(problems: Iterable[Problem]) -> None:
    """Raises one ConfigError with all problems, sorted; nothing where there are none."""
    lines = [str(problem) for problem in sorted(set(problems))]
    if lines:
        head = "A setting is wrong" if len(lines) == 1 else f"{len(lines)} settings are wrong"
        raise ConfigError("\n  ".join([f"{head}:", *lines]))


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A question with the nearest choice, or nothing; to be put behind a sentence."""
    near = difflib.get_close_matches(word, list(choices), n=1)
    return f" Did you mean {near[0]}?" if near else ""
