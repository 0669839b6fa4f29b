"""What targets take is said the same from memory, without the packages that say it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, run_script
from trainer.config import signature_cache
from trainer.config.signature_cache import SignatureCache
from trainer.config.signatures import Arguments, describe, fits
from trainer.config.validate import locate

VALUES = [None, True, 3, 0.5, "auto", "x", [1, 2], ["x"], {"x": 1}, {}, []]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    monkeypatch.setattr(signature_cache, "PLACE", tmp_path / "cache" / "x.json")
    return tmp_path / "cache" / "x.json"


def targets(node: object) -> set[str]:
    if isinstance(node, Mapping):
        return {node["_target_"]} if "_target_" in node else set[str]().union(*map(targets, node.values()))
    return set()


SHIPPED = sorted(set[str]().union(*(targets(yaml.safe_load(file.read_text())) for file in ROOT.glob("conf/*/*.yaml"))))


@pytest.mark.parametrize("path", SHIPPED)
def test_every_shipped_target_is_remembered_as_it_is(path: str) -> None:
    wanted = Arguments.of(locate(path))
    memory = SignatureCache()
    memory.add(path, wanted)
    memory.keep()
    found = SignatureCache().get(path)
    assert found is not None
    assert (found.required, found.open, found.hints.keys()) == (wanted.required, wanted.open, wanted.hints.keys())
    for name, hint in wanted.hints.items():
        assert describe(found.hints[name]) == describe(hint)
        assert [fits(value, found.hints[name]) for value in VALUES] == [fits(value, hint) for value in VALUES]


def test_all_is_forgotten_when_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signature_cache, "ROOT", tmp_path)
    source = tmp_path / "models" / "own.py"
    source.parent.mkdir()
    source.write_text("")
    memory = SignatureCache()
    memory.add("models.own.Own", Arguments({"width": int}))
    memory.keep()
    assert SignatureCache().get("models.own.Own") == Arguments({"width": int})
    os.utime(source, ns=(1, 1))
    assert SignatureCache().get("models.own.Own") is None


def test_nothing_is_written_where_no_byte_code_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    memory = SignatureCache()
    memory.add("models.own.Own", Arguments({"width": int}))
    memory.keep()
    assert not place.exists()


def test_a_hint_that_is_no_type_takes_any_value() -> None:
    memory = SignatureCache()
    memory.add("models.own.Own", Arguments({"width": lambda: None}))
    assert memory.get("models.own.Own") == Arguments({"width": Any})


def front_door(*arguments: str) -> tuple[int, str, list[str], set[str]]:
    """Exit code, standard output, lines of standard error, and the packages that were imported."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = run_script("train.py", *arguments, env=environment | {"PYTHONPROFILEIMPORTTIME": "1"})
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    return done.returncode, done.stdout, [line for line in lines if not line.startswith("import time:")], imported


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["model.hiden=64"]])
def test_help_the_config_and_mistakes_do_not_wait_for_torch(arguments: list[str]) -> None:
    *first, _ = front_door(*arguments)  # this one may import it, to remember what it says
    *second, imported = front_door(*arguments)
    assert first == second
    assert "trainer.config.validate" in imported
    assert not {"torch", "pytorch_lightning", "polars", "numpy"} & imported
