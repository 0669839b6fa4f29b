"""Old names of settings and targets, in every place where they may stand; `old_run` is a folder from before the move.

`old_run` is an interrupted run of model=tree on iris, with 2 of its epochs done.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from scripts.rules import make_rules
from tests.conftest import ROOT
from trainer import compose
from trainer.command.prepare import prepare
from trainer.config import renamed
from trainer.config.errors import ConfigError
from trainer.config.renamed import MODULES, rename_config, rename_override, rename_target
from trainer.config.signatures import locate
from trainer.folders.layout import SWEEP
from trainer.folders.run_folder import read_metrics
from trainer.folders.status import STATUS
from trainer.multirun.child_runs import child_config
from trainer.search.search_space import distribution
from trainer.search.study import JOURNAL, SAVED, open_study
from trainer.sweep.compare_runs import differing, read_run

OLD_NAMES = {
    "datamodules.builtin": "BuiltinDataModule",
    "datamodules.images": "IdxDataModule ImageFolderDataModule TorchvisionDataModule",
    "datamodules.split": "Split",
    "datamodules.table": "TableDataModule",
    "models.augment": "Augment TableMixup",
    "models.cnn": "CNN",
    "models.ft_transformer": "FTTransformer Tokens",
    "models.fusion": "Fusion",
    "models.inputs": "Inputs",
    "models.linear": "Linear",
    "models.losses": "CrossEntropy Focal Huber MAE MSE auto",
    "models.mlp": "MLP",
    "models.pretrained_text": "PretrainedText",
    "models.realmlp": "RealMLP",
    "models.resnet": "ResNet",
    "models.schedules": "cosine coslog4 flat_cosine onecycle plateau step",
    "models.tabm": "TabM",
    "models.text_transformer": "TextTransformer",
    "models.texts": "TextBag",
    "models.torchvision_classifier": "TorchvisionClassifier",
    "models.tree": "Tree",
    "models.word2vec": "Word2Vec",
    "trainer.callbacks.anneal": "Anneal",
    "trainer.callbacks.averaging": "EMA SWA",
    "trainer.callbacks.progress": "Progress",
    "trainer.callbacks.pruning": "Pruning",
    "trainer.callbacks.random_state": "RandomState",
    "trainer.export": "export",
    "trainer.loop": "Trainer",
    "trainer.sweep": "Begun",
}
"""All targets of the YAML files before the move, by module."""
OLD_TARGETS = [f"{module}.{name}" for module, names in OLD_NAMES.items() for name in names.split()]
OLD_MLP, NEW_MLP = "models.mlp.MLP", "models.architectures.mlp.MLP"
OLD_LINEAR, NEW_LINEAR = "models.linear.Linear", "models.architectures.linear.Linear"


@pytest.fixture(autouse=True)
def _no_name_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renamed, "_announced", set())


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    return shutil.copytree(Path(__file__).parent / "old_run", tmp_path / "old_run")


def with_old_names(tree: Any) -> Any:
    """A plain config with its names from before the move."""
    targets = {rename_target(old): old for old in OLD_TARGETS}
    settings = {new: old for old, new in renamed.SETTINGS.items()}

    def rename(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rename(child) for key, child in value.items()}
        if isinstance(value, list):
            return [rename(child) for child in value]
        return targets.get(value, value) if isinstance(value, str) else value

    return {settings.get(key, key): rename(value) for key, value in tree.items()}


@pytest.mark.parametrize("old", OLD_TARGETS)
def test_every_old_target_exists_under_its_new_name(old: str) -> None:
    new = rename_target(old)
    assert callable(locate(new))
    assert rename_target(new) == new


def test_every_new_module_exists() -> None:
    assert [name for name in MODULES.values() if not ROOT.joinpath(*name.split(".")).with_suffix(".py").exists()] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("processes=4", "n_jobs=4"),
        ("++processes=4", "++n_jobs=4"),
        ("~groups", "~param_groups"),
        ("+groups={inputs.*: {lr: 0.1}}", "+param_groups={inputs.*: {lr: 0.1}}"),
        ("groups.body.lr=0.1", "param_groups.body.lr=0.1"),
        ("model.groups=3", "model.groups=3"),
        ("trainer.devices=${processes}", "trainer.devices=${n_jobs}"),
        (
            f"model._target_={OLD_MLP},models.linear.Linear",
            f"model._target_={NEW_MLP},models.architectures.linear.Linear",
        ),
        (
            f"+callbacks.own={{_target_: {OLD_MLP}, hidden: [8]}}",
            f"+callbacks.own={{_target_: {NEW_MLP}, hidden: [8]}}",
        ),
        (f"paths.output={OLD_MLP}", f"paths.output={OLD_MLP}"),
        ("a b", "a b"),
    ],
)
def test_overrides(old: str, new: str) -> None:
    assert rename_override(old) == new
    assert rename_override(new) == new


def test_configs() -> None:
    params = {"processes": "1,2", "model._target_": f"{OLD_MLP},{OLD_LINEAR}", "seed": 3}
    old = {
        "model": {"_target_": OLD_MLP, "groups": 2, "note": OLD_MLP},
        "search": {"overrides": ["processes=1"]},
        "groups": {"body": {"lr": "${groups.head.lr}"}},
        "hydra": {"sweeper": {"params": params}, "overrides": {"task": ["groups={}"]}},
    }
    new = {
        "model": {"_target_": NEW_MLP, "groups": 2, "note": OLD_MLP},
        "search": {"overrides": ["n_jobs=1"]},
        "param_groups": {"body": {"lr": "${param_groups.head.lr}"}},
        "hydra": {
            "sweeper": {
                "params": {
                    "n_jobs": "1,2",
                    "model._target_": f"{NEW_MLP},{NEW_LINEAR}",
                    "seed": 3,
                }
            },
            "overrides": {"task": ["param_groups={}"]},
        },
    }
    assert rename_config(old) == new
    assert list(rename_config(old)) == list(new)
    assert rename_config(new) == new
    assert rename_config({"groups": 3}, is_root=False) == {"groups": 3}


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(["processes=2", f"model._target_={OLD_MLP}"]) == ["n_jobs=2", f"model._target_={NEW_MLP}"]
    assert prepare(["processes=3"]) == ["n_jobs=3"]
    assert capsys.readouterr() == (
        "",
        f"settings: processes is now n_jobs (command line)\nsettings: {OLD_MLP} is now {NEW_MLP} (command line)\n",
    )


def test_yaml_files_and_local_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {
        "model/own.yaml": f"_target_: {OLD_MLP}\nhidden: [8]\n",
        "local/default.yaml": "# @package _global_\nprocesses: 2\ngroups: {inputs.*: {lr: 0.1}}\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    config = compose("--config-dir", str(tmp_path), "model=own")
    assert (config.model._target_, config.n_jobs, config.param_groups["inputs.*"].lr) == (NEW_MLP, 2, 0.1)
    assert "processes" not in config
    assert sorted(capsys.readouterr().err.splitlines()) == [
        f"settings: groups is now param_groups ({tmp_path}/local/default.yaml)",
        f"settings: {OLD_MLP} is now {NEW_MLP} ({tmp_path}/model/own.yaml)",
        f"settings: processes is now n_jobs ({tmp_path}/local/default.yaml)",
    ]
    (tmp_path / "model/own.yaml").write_text(f"_target_: {OLD_MLP}\nhiden: [8]\n")
    with pytest.raises(ConfigError) as caught:
        prepare(["--config-dir", str(tmp_path), "model=own"])
    assert str(caught.value) == (
        f"A setting is wrong:\n  {tmp_path}/model/own.yaml: model.hiden: unknown key. Did you mean hidden?"
    )


def test_an_old_run_is_resumed_from_its_checkpoint(
    old_run: Path, run_here: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(f"resume={old_run}", "trainer.max_epochs=3", folder=old_run) == old_run
    out, err = capsys.readouterr()
    assert "resume: trainer.max_epochs 2 -> 3 (the command line wins)\n" in out
    assert "_target_" not in out
    assert f"settings: groups is now param_groups ({old_run}/overrides.yaml)\n" in err
    assert f"settings: models.tree.Tree is now models.architectures.tree.Tree ({old_run}/config.yaml)\n" in err
    assert read_metrics(old_run)["fit/epochs"] == 3
    assert "models.architectures.tree.Tree" in (old_run / "config.yaml").read_text()


def test_rules_of_an_old_run(old_run: Path) -> None:
    assert make_rules(old_run).startswith(f"Rules of {old_run}: 2 trees with 2 conditions each\n")


def test_a_fold_or_member_with_old_names_has_the_same_settings(old_run: Path) -> None:
    plain: Any = rename_config(OmegaConf.to_container(OmegaConf.load(old_run / "config.yaml")))
    assert child_config(OmegaConf.create(plain), old_run, {}).resume == f"{old_run}/checkpoints/last.ckpt"
    with pytest.raises(ConfigError, match="l1"):
        child_config(OmegaConf.create(plain | {"l1": 1.0}), old_run, {})


def test_an_old_and_a_new_run_are_compared(old_run: Path, tmp_path: Path) -> None:
    new_run = shutil.copytree(old_run, tmp_path / "new_run")
    config: Any = OmegaConf.to_container(OmegaConf.load(old_run / "config.yaml"))
    for folder, plain in ((old_run, config), (new_run, rename_config(config) | {"seed": 1})):
        (folder / ".hydra").mkdir()
        OmegaConf.save(OmegaConf.create(plain), folder / ".hydra" / "config.yaml")
    assert differing([read_run(old_run), read_run(new_run)]) == {"seed": [0, 1]}


def test_an_old_sweep_is_resumed(tmp_path: Path) -> None:
    (tmp_path / SWEEP).write_text(f"- data=iris\n- processes=1\n- seed=0,1\n- model._target_={OLD_MLP}\n")
    command = ["data=iris", "n_jobs=1", "seed=0,1", f"model._target_={NEW_MLP}"]
    assert prepare([f"sweep.resume={tmp_path}"]) == [*command, "hydra.mode=MULTIRUN", f"hydra.sweep.dir={tmp_path}"]
    assert prepare([f"sweep.resume={tmp_path}", "processes=1"])[: len(command)] == command


def test_the_best_trial_of_an_old_search_is_retrained(tmp_path: Path) -> None:
    from optuna.trial import create_trial

    folder = tmp_path / "search"
    folder.mkdir()
    overrides = ["data=iris", "processes=1", "groups={}", "optimizer.lr=0.1,0.2"]
    config = compose("data=iris", "n_jobs=1", "optimizer.lr=0.1")
    plain = with_old_names(OmegaConf.to_container(config))
    plain["search"] = {"storage": None, "study": "search", "objectives": {}}
    plain["hydra"]["overrides"]["task"] = overrides
    OmegaConf.save(OmegaConf.create(plain), folder / SAVED)
    study = open_study(str(folder / JOURNAL), "search", better=["min"])
    override = OverridesParser.create().parse_override("optimizer.lr=0.1,0.2")
    study.add_trial(
        create_trial(params={"optimizer.lr": "0.2"}, distributions={"optimizer.lr": distribution(override)}, value=0.5)
    )
    assert prepare(["experiment=best", f"study={folder}"]) == [
        "data=iris",
        "n_jobs=1",
        "param_groups={}",
        "optimizer.lr=0.2",
    ]


def test_the_newest_unfinished_old_run_is_found(old_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (old_run / "overrides.yaml").read_text().splitlines()
    (old_run / "overrides.yaml").write_text("\n".join([*lines, f"- paths.output={old_run.parent}", ""]))
    assert (old_run / STATUS).exists()
    command = [line.removeprefix("- ") for line in lines]
    arguments = prepare([*command, f"paths.output={old_run.parent}", "resume=auto"])
    assert arguments[-1] == f"resume={old_run}/checkpoints/last.ckpt"
    assert f"resume: resuming {old_run}\n" in capsys.readouterr().out
