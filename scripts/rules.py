"""Converts the soft trees of a model=tree run into exact if/else rules, and measures how much they differ.

python scripts/rules.py --run RUN

Prints the rules and writes rules.txt and rules.json to the run folder. It needs the data of the run, and reads them
from the cache if possible. docs/rules.md describes the method.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.errors import EXIT_CODE, InputError
from datamodules.loading.batch_loader import Batches
from datamodules.schema import Task
from datamodules.split import SplitName
from datamodules.tabular import TableDataModule
from inference.writers import as_input_error
from models.architectures.tree import HardTrees, Tree, harden, prune, refit
from models.training import metrics
from models.training.prediction_head import PredictionHead, all_logits, labels, to_units
from trainer.config.instantiate import instantiate
from trainer.config.renamed import load_config
from trainer.export.tree_rules import Reader, Rules, in_units

NEAREST_ROWS = 16_384
"""Number of sampled training rows on which each gate is approximated by a condition."""
REFIT_ROWS = 262_144
"""Maximum number of sampled training rows on which the leaves are refitted."""
PENALTY = 10.0
"""Weight of the squared distance between the leaves and the soft leaves, relative to the loss of one row. On titanic,
where it matters, 1 and 100 were worse over ten splits."""
CLASS_METRICS = ("accuracy", "auroc", "log_loss")
SHOWN: dict[Task, tuple[str, ...]] = {
    "binary": CLASS_METRICS,
    "multiclass": CLASS_METRICS,
    "regression": ("rmse", "mae", "r2"),
}
"""Metrics in rules.txt; rules.json has all metrics."""

Batch = dict[str, Tensor]


def open_run(folder: Path) -> tuple[DictConfig, TableDataModule, Tree]:
    """Returns config, data and network with the best weights. Raises InputError if the run cannot become rules."""
    described, checkpoint = folder / "config.yaml", folder / "checkpoints" / "best.ckpt"
    for path in (described, checkpoint):
        if not path.exists():
            raise InputError(f"{folder}: has no {path.relative_to(folder)}. Give the folder of a model=tree run.")
    config = load_config(described)
    if config.model._target_ != "models.architectures.tree.Tree":
        raise InputError(f"{folder}: is a run of {config.model._target_}. Rules need a model=tree run.")
    datamodule: TableDataModule = instantiate(config.data)
    datamodule.setup()
    network: Tree = instantiate(config.model, spec=datamodule.inputs, outputs=datamodule.target.outputs)
    if network.inputs.bent is not None:
        raise InputError(
            f"{folder}: the network embeds numbers as vectors. Rules need a run with model.inputs.number_size=0."
        )
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    prefix = "network."
    try:
        network.load_state_dict({key.removeprefix(prefix): saved[key] for key in saved if key.startswith(prefix)})
    except RuntimeError as error:
        raise InputError(f"{checkpoint}: does not fit the data, which have changed since the run.") from error
    return config, datamodule, network.eval()


def make(
    config: DictConfig, datamodule: TableDataModule, network: Tree, threshold: float
) -> tuple[Rules, HardTrees, float]:
    """Returns the rules, the hard trees before refitting, and the mean squared difference of gates and conditions."""
    target = datamodule.target
    count = min(datamodule.splits["train"]["rows"], REFIT_ROWS)
    sample = next(iter(Batches(datamodule.stores["train"], count, shuffle=True)))
    with torch.no_grad():
        x = network.inputs(sample)
    nearest = x[:NEAREST_ROWS]
    hard, distance = harden(network, nearest)
    reader = Reader(datamodule, network)
    read = [
        [reader.read(column, level, nearest[:, column]) for column, level in zip(*tree, strict=True)]
        for tree in zip(hard.column.tolist(), hard.threshold.tolist(), strict=True)
    ]
    hard = replace(hard, threshold=torch.tensor([[encoded for _, encoded in tree] for tree in read]))
    leaves = hard.leaves(x)
    fitted = refit(hard, leaves, sample["target"], instantiate(config.loss, target=target), PENALTY)
    rows = hard.count_rows(leaves)
    conditions = [[condition for condition, _ in tree] for tree in read]
    rules = Rules(target, threshold, conditions, in_units(prune(fitted, rows), target), rows, reader.medians)
    return rules, in_units(hard, target), distance


def measure(
    datamodule: TableDataModule, models: Mapping[str, Callable[[Batch], Tensor]], threshold: float
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Returns the metrics of each model on val and test, and for each split how close the last model is to the first:
    the fraction of rows with the same label, or the root mean squared difference.
    """
    target = datamodule.target
    measured: dict[str, dict[str, float]] = {name: {} for name in models}
    near: dict[str, float] = {}
    splits: tuple[SplitName, ...] = ("val", "test")
    for split in splits:
        batches = Batches(datamodule.stores[split], datamodule.eval_batch_size)
        truth = torch.cat([batch["target"] for batch in batches])
        if target.task == "regression":
            truth = to_units(truth, target)
        predictions = {name: torch.cat([model(batch) for batch in batches]) for name, model in models.items()}
        for name, values in predictions.items():
            metric = metrics.build(target)
            if isinstance(metric, metrics.ClassMetrics):
                metric.threshold = threshold
            metric.update(values, truth)
            measured[name] |= {f"{split}/{key}": float(value) for key, value in metric.compute().items()}
        first, *_, last = predictions.values()
        if target.task == "regression":
            near[split] = float((first - last).square().mean().sqrt())
        else:
            before, after = (labels(each, target.task, threshold) for each in (first, last))
            near[split] = float((before == after).double().mean())
    return measured, near


def report(task: Task, measured: Mapping[str, Mapping[str, float]], near: Mapping[str, float]) -> Iterator[str]:
    """Lines of the table of metrics, and a sentence on how close the rules are."""
    names = [f"{split}/{name}" for split in near for name in SHOWN[task]]
    width = max(map(len, measured))
    yield " ".join([" " * width, *(f"{name:>14}" for name in names)])
    for model, values in measured.items():
        yield " ".join([f"{model:<{width}}", *(f"{values[name]:>14.5g}" for name in names)])
    if task == "regression":
        yield "Root mean squared difference of rules and soft trees: " + ", ".join(
            f"{value:.4g} ({split})" for split, value in near.items()
        )
    else:
        shares = ", ".join(f"{value:.1%} of the {split} rows" for split, value in near.items())
        yield f"Rules and soft trees predict the same label for {shares}."


def make_rules(folder: Path) -> str:
    """Writes rules.txt and rules.json to the run folder. Returns the content of rules.txt."""
    config, datamodule, network = open_run(folder)
    path = folder / "metrics.json"
    metrics_of_run = json.loads(path.read_text()) if path.exists() else {}
    threshold = metrics_of_run.get("fit/threshold", 0.5 if isinstance(config.threshold, str) else config.threshold)
    rules, unfitted, distance = make(config, datamodule, network, threshold)

    target = datamodule.target
    soft = PredictionHead(target)
    soft.temperature = metrics_of_run.get("fit/temperature", 1.0)

    def hard(trees: HardTrees) -> Callable[[Batch], Tensor]:
        def predict(batch: Batch) -> Tensor:
            scores = trees.output(trees.leaves(network.inputs(batch)))
            return scores[:, 0] if target.task == "regression" else all_logits(scores).softmax(1)

        return predict

    models = {
        "soft trees": lambda batch: soft(network(batch)),
        "hard trees": hard(unfitted),
        "rules": hard(rules.trees),
    }
    with torch.no_grad():
        measured, near = measure(datamodule, models, threshold)
    rows = rules.rows[0].sum()
    lines = [
        f"Rules of {folder}: {network.trees} trees with {len(rules.conditions[0])} conditions each",
        "",
        *rules.lines(),
        "",
        "Comparison with the soft trees",
        *report(target.task, measured, near),
        f"Hard trees: each gate is replaced by the closest condition; their mean squared difference, from 0 to 1, is"
        f" {distance:.3f}. Rules: in addition, the values are refitted on {rows:,} training rows.",
    ]
    text = "\n".join(lines) + "\n"
    plain = rules.plain() | {"measured": measured, "near": near, "gates_off_by": distance}
    for name, content in {"rules.txt": text, "rules.json": json.dumps(plain, indent=1)}.items():
        with as_input_error(str(folder / name)):
            (folder / name).write_text(content)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a model=tree run")
    arguments = parser.parse_args()
    try:
        print(make_rules(arguments.run), end="")
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_CODE)


if __name__ == "__main__":
    main()
