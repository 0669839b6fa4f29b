"""Makes exact if/else rules of a run of model=tree, and measures how far they are from its soft trees.

python scripts/rules.py --run RUN

Prints them and writes rules.txt and rules.json into the run's folder. Run it where the run was: it reads the data anew,
or from the cache. docs/rules.md says what is done.
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
from datamodules.tabular import SplitName, TableDataModule
from inference.writers import as_input_error
from models.architectures.tree import HardTrees, Tree, harden, prune, refit
from models.training import metrics
from models.training.prediction_head import PredictionHead, all_logits, labels, to_units
from trainer.config.instantiate import instantiate
from trainer.config.renamed import load_config
from trainer.export.tree_rules import Reader, Rules, in_units

NEAREST_ROWS = 16_384
"""Training rows, drawn, on which the question nearest to a gate is looked for."""
REFIT_ROWS = 262_144
"""Training rows, drawn, at most, on which the leaves are fitted anew."""
PENALTY = 10.0
"""Weight of the squared distance of the leaves from the soft ones, against one row's loss. On titanic, where it
matters, 1 and 100 were worse over ten splits."""
OF_CLASSES = ("accuracy", "auroc", "log_loss")
SHOWN: dict[Task, tuple[str, ...]] = {
    "binary": OF_CLASSES,
    "multiclass": OF_CLASSES,
    "regression": ("rmse", "mae", "r2"),
}
"""Of the metrics, those in rules.txt; rules.json has all."""

Batch = dict[str, Tensor]


def open_run(folder: Path) -> tuple[DictConfig, TableDataModule, Tree]:
    """Config, data and best weights of a run. Raises InputError where it is none of trees on numbers and levels."""
    described, checkpoint = folder / "config.yaml", folder / "checkpoints" / "best.ckpt"
    for path in (described, checkpoint):
        if not path.exists():
            raise InputError(f"{folder}: no {path.relative_to(folder)} in it. Give the folder of a run of model=tree.")
    config = load_config(described)
    if config.model._target_ != "models.architectures.tree.Tree":
        raise InputError(f"{folder} is a run of {config.model._target_}: rules can be made of model=tree alone.")
    datamodule: TableDataModule = instantiate(config.data)
    datamodule.setup()
    network: Tree = instantiate(config.model, spec=datamodule.inputs, outputs=datamodule.target.outputs)
    if network.inputs.bent is not None:
        raise InputError(
            f"{folder}: its numbers became vectors, of which there are no rules: train with model.inputs.number_size=0."
        )
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    prefix = "network."
    try:
        network.load_state_dict({key.removeprefix(prefix): saved[key] for key in saved if key.startswith(prefix)})
    except RuntimeError as error:
        raise InputError(f"{checkpoint} does not fit the data as they are now: they have changed since.") from error
    return config, datamodule, network.eval()


def make(
    config: DictConfig, datamodule: TableDataModule, network: Tree, threshold: float
) -> tuple[Rules, HardTrees, float]:
    """The rules; the trees before their leaves were fitted anew; the mean squared difference of gates and questions."""
    target = datamodule.target
    count = min(datamodule.splits["train"]["rows"], REFIT_ROWS)
    drawn = next(iter(Batches(datamodule.stores["train"], count, shuffle=True)))
    with torch.no_grad():
        x = network.inputs(drawn)
    nearest = x[:NEAREST_ROWS]
    hard, distance = harden(network, nearest)
    reader = Reader(datamodule, network)
    read = [
        [reader.read(column, level, nearest[:, column]) for column, level in zip(*tree, strict=True)]
        for tree in zip(hard.column.tolist(), hard.threshold.tolist(), strict=True)
    ]
    hard = replace(hard, threshold=torch.tensor([[encoded for _, encoded in tree] for tree in read]))
    leaves = hard.leaves(x)
    fitted = refit(hard, leaves, drawn["target"], instantiate(config.loss, target=target), PENALTY)
    rows = hard.rows_in(leaves)
    conditions = [[condition for condition, _ in tree] for tree in read]
    rules = Rules(target, threshold, conditions, in_units(prune(fitted, rows), target), rows, reader.medians)
    return rules, in_units(hard, target), distance


def measure(
    datamodule: TableDataModule, answers: Mapping[str, Callable[[Batch], Tensor]], threshold: float
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """The metrics of each way to answer, on val and test; and of each split how near the last way is to the first: the
    share of rows with the same label, or the root of the mean squared difference.
    """
    target = datamodule.target
    measured: dict[str, dict[str, float]] = {name: {} for name in answers}
    near: dict[str, float] = {}
    splits: tuple[SplitName, ...] = ("val", "test")
    for split in splits:
        batches = Batches(datamodule.stores[split], datamodule.eval_batch_size)
        truth = torch.cat([batch["target"] for batch in batches])
        if target.task == "regression":
            truth = to_units(truth, target)
        given = {name: torch.cat([answer(batch) for batch in batches]) for name, answer in answers.items()}
        for name, values in given.items():
            metric = metrics.build(target)
            if isinstance(metric, metrics.ClassMetrics):
                metric.threshold = threshold
            metric.update(values, truth)
            measured[name] |= {f"{split}/{key}": float(value) for key, value in metric.compute().items()}
        first, *_, last = given.values()
        if target.task == "regression":
            near[split] = float((first - last).square().mean().sqrt())
        else:
            before, after = (labels(each, target.task, threshold) for each in (first, last))
            near[split] = float((before == after).double().mean())
    return measured, near


def report(task: Task, measured: Mapping[str, Mapping[str, float]], near: Mapping[str, float]) -> Iterator[str]:
    """The metrics as a table, and how near the rules are, in words."""
    names = [f"{split}/{name}" for split in near for name in SHOWN[task]]
    width = max(map(len, measured))
    yield " ".join([" " * width, *(f"{name:>14}" for name in names)])
    for way, values in measured.items():
        yield " ".join([f"{way:<{width}}", *(f"{values[name]:>14.5g}" for name in names)])
    if task == "regression":
        yield "Rules and soft trees differ by " + ", ".join(f"{value:.4g} ({split})" for split, value in near.items())
    else:
        shares = ", ".join(f"{value:.1%} of the {split} rows" for split, value in near.items())
        yield f"Rules and soft trees give the same label on {shares}."


def make_rules(folder: Path) -> str:
    """Writes rules.txt and rules.json into a run's folder; returns what rules.txt holds."""
    config, datamodule, network = open_run(folder)
    finished = folder / "metrics.json"
    settled = json.loads(finished.read_text()) if finished.exists() else {}
    threshold = settled.get("fit/threshold", 0.5 if isinstance(config.threshold, str) else config.threshold)
    rules, unfitted, distance = make(config, datamodule, network, threshold)

    target = datamodule.target
    soft = PredictionHead(target)
    soft.temperature = settled.get("fit/temperature", 1.0)

    def hard(trees: HardTrees) -> Callable[[Batch], Tensor]:
        def answer(batch: Batch) -> Tensor:
            scores = trees.sum_of(trees.leaves(network.inputs(batch)))
            return scores[:, 0] if target.task == "regression" else all_logits(scores).softmax(1)

        return answer

    answers = {
        "soft trees": lambda batch: soft(network(batch)),
        "hard trees": hard(unfitted),
        "rules": hard(rules.trees),
    }
    with torch.no_grad():
        measured, near = measure(datamodule, answers, threshold)
    rows = rules.rows[0].sum()
    lines = [
        f"Rules of {folder}: {network.trees} trees of {len(rules.conditions[0])} questions",
        "",
        *rules.lines(),
        "",
        "How far they are from the soft trees",
        *report(target.task, measured, near),
        f"Hard trees: each gate became the question nearest to it, off by {distance:.3f} in the mean square (of 0 to"
        f" 1). Rules: then their values were fitted anew on {rows:,} training rows.",
    ]
    text = "\n".join(lines) + "\n"
    plain = rules.plain() | {"measured": measured, "near": near, "gates_off_by": distance}
    for name, content in {"rules.txt": text, "rules.json": json.dumps(plain, indent=1)}.items():
        with as_input_error(str(folder / name)):
            (folder / name).write_text(content)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="the folder of a run of model=tree")
    given = parser.parse_args()
    try:
        print(make_rules(given.run), end="")
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_CODE)


if __name__ == "__main__":
    main()
