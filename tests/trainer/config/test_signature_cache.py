"""Cached signatures equal the real ones, and reading them imports no heavy package."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, run_script
from trainer.config import signature_cache
from trainer.config.signature_cache import SignatureCache
from trainer.config.signatures import Arguments, describe, fits, locate

VALUES = [None, True, 3, 0.5, "auto", "x", [1, 2], ["x"], {"x": 1}, {}, []]


@pytest.fixture(autouse=True)
def cache_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    monkeypatch.setattr(signature_cache, "CACHE_FILE", tmp_path / "cache" / "x.json")
    return tmp_path / "cache" / "x.json"


def targets(node: object) -> set[str]:
    if isinstance(node, Mapping):
        return {node["_target_"]} if "_target_" in node else set[str]().union(*map(targets, node.values()))
    return set()


SHIPPED = sorted(set[str]().union(*(targets(yaml.safe_load(file.read_text())) for file in ROOT.glob("conf/*/*.yaml"))))


@pytest.mark.parametrize("path", SHIPPED)
def test_the_cached_signature_of_every_shipped_target_equals_the_real_one(path: str) -> None:
    wanted = Arguments.of(locate(path))
    cache = SignatureCache()
    cache.add(path, wanted)
    cache.save()
    found = SignatureCache().get(path)
    assert found is not None
    assert (found.required, found.open, found.hints.keys()) == (wanted.required, wanted.open, wanted.hints.keys())
    assert found.unsupported == wanted.unsupported
    for name, hint in wanted.hints.items():
        assert describe(found.hints[name]) == describe(hint)
        assert [fits(value, found.hints[name]) for value in VALUES] == [fits(value, hint) for value in VALUES]


def test_the_cache_is_discarded_when_a_source_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signature_cache, "ROOT", tmp_path)
    source = tmp_path / "models" / "own.py"
    source.parent.mkdir()
    source.write_text("")
    cache = SignatureCache()
    cache.add("models.own.Own", Arguments({"width": int}))
    cache.save()
    assert SignatureCache().get("models.own.Own") == Arguments({"width": int})
    os.utime(source, ns=(1, 1))
    assert SignatureCache().get("models.own.Own") is None


def test_no_cache_is_written_where_no_byte_code_is_written(cache_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    cache = SignatureCache()
    cache.add("models.own.Own", Arguments({"width": int}))
    cache.save()
    assert not cache_file.exists()


def test_a_hint_that_is_not_a_type_allows_any_value() -> None:
    cache = SignatureCache()
    cache.add("models.own.Own", Arguments({"width": lambda: None}))
    assert cache.get("models.own.Own") == Arguments({"width": Any})


def run_train(*arguments: str) -> tuple[int, str, list[str], set[str]]:
    """Exit code, standard output, lines of standard error, and the packages that were imported."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = run_script("train.py", *arguments, env=environment | {"PYTHONPROFILEIMPORTTIME": "1"}, fresh=True)
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    return done.returncode, done.stdout, [line for line in lines if not line.startswith("import time:")], imported


@pytest.fixture(scope="module")
def uncached() -> tuple[int, str, list[str]]:
    """The result of a command with a mistake; it imports torch if the cache is not yet filled, and fills it."""
    code, out, err, _ = run_train("model.hiden=64")
    return code, out, err


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["model.hiden=64"]])
def test_help_cfg_and_mistakes_do_not_import_torch(arguments: list[str], uncached: tuple[int, str, list[str]]) -> None:
    *result, imported = run_train(*arguments)
    if arguments == ["model.hiden=64"]:
        assert tuple(result) == uncached
    assert "trainer.config.validate" in imported
    assert not {"torch", "pytorch_lightning", "polars", "numpy"} & imported
