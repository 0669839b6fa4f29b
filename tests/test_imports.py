"""The import graph: no cycle, and no import from a lower package to a higher one. Imports inside functions count."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    "common inference",
    "datamodules.schema datamodules.features datamodules.readers datamodules.split datamodules.audit",
    "datamodules.loading datamodules.preparation datamodules",
    "models.training models.layers models.architectures",
    "trainer.config trainer.folders trainer.sweep trainer.search trainer.command trainer.loop trainer.callbacks",
    "trainer.evaluation trainer.export trainer.run trainer.multirun trainer.api trainer.main trainer",
    "scripts train hydra_plugins",
)
"""Packages from the lowest to the highest; a module belongs to the longest name that is a prefix of its own."""
ORDER = " ".join(FLOORS).split()
CLOSED = {
    "common": set(),
    "inference": {"common"},
    "datamodules": {"common"},
    "models": {"common", "datamodules.schema"},
}
"""The other packages of the project that a package may import."""


def _modules() -> dict[str, Path]:
    paths = [path for name in {name.partition(".")[0] for name in ORDER} for path in (ROOT / name).rglob("*.py")]
    paths.append(ROOT / "train.py")
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def _imports(path: Path, modules: dict[str, Path]) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else node.module for name in full}
    return found & modules.keys()


MODULES = _modules()
GRAPH = {name: _imports(path, MODULES) - {name} for name, path in MODULES.items()}


def _package(module: str) -> str:
    return max((name for name in ORDER if f"{module}.".startswith(f"{name}.")), key=len)


def test_no_modules_import_each_other_in_a_cycle() -> None:
    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = GRAPH[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    assert sorted(name for name in GRAPH if name in reachable(name)) == []


def test_no_module_imports_a_higher_package() -> None:
    place = {name: number for number, name in enumerate(ORDER)}
    upward = [
        f"{module} -> {imported}"
        for module, names in sorted(GRAPH.items())
        for imported in sorted(names)
        if place[_package(imported)] > place[_package(module)]
    ]
    assert upward == []


@pytest.mark.parametrize("package", CLOSED)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    outside = {
        imported
        for module, names in GRAPH.items()
        for imported in names
        if module.partition(".")[0] == package and imported.partition(".")[0] != package
    }
    allowed = CLOSED[package]
    assert {name for name in outside if not any(f"{name}.".startswith(f"{each}.") for each in allowed)} == set()


def test_every_module_is_in_a_package_of_the_order() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders <= {name.partition(".")[0] for name in ORDER}
    assert len(GRAPH) > 150
