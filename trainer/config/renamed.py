"""Names of settings and targets from before they were moved: old YAML files, commands and run folders stay valid.

Each old name is read as the new one, which is printed once per process on standard error.
"""

import re
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from common.distributed import launched_rank

SETTINGS = {"processes": "n_jobs", "groups": "param_groups"}
"""Keys at the top of the config."""

_MOVED = {
    "datamodules": "table:tabular images:image_folder builtin:sklearn_datasets ranks:common.distributed",
    "datamodules.readers": "read delimited idx decode:image_files",
    "datamodules.audit": "audit_rows:row_checks audit_columns:column_checks audit_tables:contingency",
    "datamodules.preparation": "prepare:pipeline infer:infer_schema clean statistics fit:fit_features target"
    " keys:row_keys pixels:image_columns chunks cache settings",
    "datamodules.loading": "store loader:batch_loader",
    "models.architectures": "mlp linear tabm realmlp resnet ft_transformer tree text_transformer pretrained_text"
    " word2vec cnn torchvision_classifier fusion ensemble",
    "models.layers": "inputs:tabular_embedding texts:text_bag layers:common entmax weights:pretrained_weights"
    " ridge:linear_solver fitting:column_support",
    "models.training": "supervised:lightning_module losses metrics metric_names schedules:lr_schedules"
    " groups:parameter_groups augment:augmentation diverged:divergence together:distributed answers:prediction_head"
    " calibration thresholds",
    "trainer.config": "check:validate compose:composer lean:fast_imports problems:errors remembered:signature_cache"
    " signatures",
    "trainer.evaluation": "settle:postprocess baselines bootstrap verdict report latency pictures:plots"
    " lr_find:lr_finder",
    "trainer.export": "export average:average_artifacts card:model_card rules:tree_rules",
    "trainer.folders": "folder:run_folder status signals tables colours:colors",
    "trainer.loop": "loop:trainer fast:fast_loop step:fused_step graph:compiled_step checkpoints:checkpoint_io"
    " sharded:fsdp",
    "trainer.multirun": "several:child_runs parallel:process_pool worker:pool_worker cross_validation ensemble",
    "trainer.run": "run processes:ranks",
    "trainer.search": "search:sweeper space:search_space study workers:trial_workers search_pictures:plots",
    "trainer.sweep": "sweep compare:compare_runs cluster:resources local:local_launcher slurm:slurm_launcher",
}
"""Modules by their new package: OLD:NEW, or NAME where only the package changed."""


def _expand_moved() -> dict[str, str]:
    found = {}
    for package, names in _MOVED.items():
        for each in names.split():
            old, _, new = each.partition(":")
            found[f"{package.partition('.')[0]}.{old}"] = new if "." in new else f"{package}.{new or old}"
    found["datamodules.audit"] = "datamodules.audit.audit"
    return found


MODULES = _expand_moved()
"""New module names by the old ones."""
CLASSES = {
    "datamodules.ranks.Ranks": "common.distributed.ProcessGroup",
    "models.answers.Answer": "models.training.prediction_head.PredictionHead",
    "models.inputs.Inputs": "models.layers.tabular_embedding.TabularEmbedding",
    "trainer.checkpoints.WholeCheckpoints": "trainer.loop.checkpoint_io.AtomicCheckpointIO",
    "trainer.sweep.Begun": "trainer.sweep.sweep.SweepFolder",
}
"""New names by the old ones, of classes whose own name changed."""

_OVERRIDE = re.compile(r"([+~]*)([^=@.]*)([^=]*)(.*)", re.DOTALL)
_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
_REFERENCE = re.compile(r"(?<=\$\{)(?:" + "|".join(SETTINGS) + r")(?=[}.\[])")
_LINES = (("search", "overrides"), ("hydra", "overrides", "task"))
"""Where a config has lists of overrides."""
_PARAMS = ("hydra", "sweeper", "params")
_announced: set[str] = set()


def rename_target(target: str, where: str | None = None) -> str:
    """The present name of a target; the same name where it has not changed.

    `where`, the file with the name or "command line", is printed with the new name; None prints nothing.
    """
    module, _, name = target.rpartition(".")
    new = CLASSES.get(target) or (f"{MODULES[module]}.{name}" if module in MODULES else target)
    return _announce(target, new, where)


def rename_override(line: str, where: str | None = None) -> str:
    """An override such as `processes=4` or `model._target_=models.mlp.MLP` with the present names."""
    parts = _OVERRIDE.fullmatch(line)
    if parts is None:
        return line
    prefix, key, rest, value = parts.groups()
    key = _announce(key, SETTINGS.get(key, key), where)
    if "_target_" in line:
        value = _DOTTED.sub(lambda name: rename_target(name[0], where), value)
    return prefix + key + rest + _rename_references(value, where)


def rename_config(tree: dict[str, Any], where: str | None = None, *, is_root: bool = True) -> dict[str, Any]:
    """A plain config, or with `is_root=False` a part of one, with the present names; the order of keys stays."""
    renamed: dict[str, Any] = _rename_node(tree, () if is_root else ("",), where)
    return renamed


def _rename_node(value: Any, path: tuple[str, ...], where: str | None) -> Any:
    if isinstance(value, dict) and path == _PARAMS:
        pairs = [(each, rename_override(f"{key}={each}", where).partition("=")) for key, each in value.items()]
        return {key: text if isinstance(each, str) else each for each, (key, _, text) in pairs}
    if isinstance(value, dict):
        return {
            _rename_key(key, value, path, where): _rename_node(child, (*path, str(key)), where)
            for key, child in value.items()
        }
    if isinstance(value, list):
        if path in _LINES:
            return [rename_override(str(line), where) for line in value]
        return [_rename_node(child, (*path, ""), where) for child in value]
    if not isinstance(value, str):
        return value
    if path and path[-1] == "_target_":
        return rename_target(value, where)
    return _rename_references(value, where)


def _rename_key(key: Any, siblings: dict[Any, Any], path: tuple[str, ...], where: str | None) -> Any:
    """The present name of a key at the top of the config, unless the present name is given too."""
    if path or key not in SETTINGS or SETTINGS[key] in siblings:
        return key
    return _announce(key, SETTINGS[key], where)


def _rename_references(value: str, where: str | None) -> str:
    return _REFERENCE.sub(lambda name: _announce(name[0], SETTINGS[name[0]], where), value) if "${" in value else value


def load_config(path: Path) -> DictConfig:
    """The config in a file of a run folder, with the present names."""
    plain: Any = OmegaConf.to_container(OmegaConf.load(path))
    return OmegaConf.create(rename_config(plain, str(path)))


def load_overrides(path: Path, *, announce: bool = True) -> list[str]:
    """The overrides in a file of a run folder or a sweep folder, with the present names."""
    return [rename_override(str(line), str(path) if announce else None) for line in OmegaConf.load(path)]


def _announce(old: str, new: str, where: str | None) -> str:
    """Returns the new name; prints it the first time that the old one is used, unless `where` is None."""
    if new != old and where is not None and old not in _announced:
        _announced.add(old)
        if launched_rank() == 0:
            print(f"settings: {old} is now {new} ({where})", file=sys.stderr)
    return new
