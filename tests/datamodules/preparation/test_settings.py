"""Settings: the signature of the data modules lists them, with the keys and defaults of conf/data/table.yaml."""

import inspect
from typing import Any

import pytest
import yaml

from common.cells import MISSING
from datamodules.image_folder import ImageFolderDataModule
from datamodules.split import Split
from datamodules.tabular import TableDataModule
from tests.conftest import ROOT
from trainer.config.signatures import Arguments

TABLE: dict[str, Any] = yaml.safe_load((ROOT / "conf" / "data" / "table.yaml").read_text())


def test_the_config_has_all_settings_with_their_defaults() -> None:
    parameters = dict(inspect.signature(TableDataModule).parameters)
    given = {name: value for name, value in TABLE.items() if not name.startswith("_")}
    assert given.keys() == parameters.keys()
    special = ("path", "target", "cache", "seed", "columns", "replace", "ranges", "split", "missing")
    for name in parameters.keys() - set(special):
        assert parameters[name].default == given[name], name
    assert tuple(given["missing"]) == MISSING
    assert (given["columns"], given["replace"], given["ranges"]) == ({}, {}, {})
    split = {name: value for name, value in given["split"].items() if name != "_target_"}
    assert Split(**split | {"fractions": tuple(split["fractions"])}) == Split()


@pytest.mark.parametrize("target", [TableDataModule, ImageFolderDataModule])
def test_the_check_of_a_config_knows_the_settings_and_their_types(target: type) -> None:
    arguments = Arguments.of(target)
    assert not arguments.open
    assert arguments.hints["max_levels"] is int
    assert arguments.hints["wordpiece"] == str | None
    assert arguments.hints["split"] == Split | None
    assert "rules" not in arguments.hints
    assert arguments.required == ({"path", "target"} if target is TableDataModule else {"path"})


def test_none_means_the_default_and_unknown_settings_are_refused() -> None:
    datamodule = TableDataModule("rows.csv", "y", columns=None, replace=None, ranges=None, split=None, names=None)
    assert (datamodule.settings.columns, datamodule.settings.rules, datamodule.settings.ranges) == ({}, {}, {})
    assert datamodule.settings.split == Split()
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_level'"):
        TableDataModule("rows.csv", "y", max_level=3)
