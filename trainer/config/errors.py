"""Mistakes in the settings, and the error that reports all of them."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from common.errors import InputError


class ConfigError(InputError):
    """Settings that cannot be used; the message names them, where they were given, and what to give instead."""


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake: the file with the setting, or "command line"; its full key; and what is wrong."""

    where: str
    key: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.what}"


def raise_all(problems: Iterable[Problem]) -> None:
    """Raises one ConfigError with all problems, sorted, if there are any."""
    lines = [str(problem) for problem in sorted(set(problems))]
    if lines:
        head = "A setting is wrong" if len(lines) == 1 else f"{len(lines)} settings are wrong"
        raise ConfigError("\n  ".join([f"{head}:", *lines]))


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Returns " Did you mean X?" with the most similar choice; an empty text if none is similar."""
    near = difflib.get_close_matches(word, list(choices), n=1)
    return f" Did you mean {near[0]}?" if near else ""
