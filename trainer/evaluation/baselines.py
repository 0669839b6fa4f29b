"""Baselines of a run on a table: a constant answer and a linear model, both fitted in seconds."""

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from datamodules.loading.batch_loader import Batches
from datamodules.loading.store import MemoryStore, Rows, draw, take
from datamodules.schema import InputSpec, TargetSpec
from datamodules.tabular import TableDataModule
from models.layers.text_bag import rows_of, tfidf
from models.training import metrics
from models.training.calibration import best_temperature
from models.training.lightning_module import SupervisedModule
from models.training.prediction_head import PredictionHead, all_logits, to_units
from models.training.thresholds import best_threshold
from trainer.evaluation.bootstrap import advantage, measure
from trainer.evaluation.verdict import verdict
from trainer.loop.trainer import Trainer

ROWS, CELLS = 100_000, 20_000_000
"""Maximum number of rows of a split, and of its cells times outputs; larger splits are sampled."""
DENSE = 200
"""Maximum number of columns of a dense matrix, one-hot columns included; wider matrices are sparse."""
STRENGTHS = tuple(10.0**power for power in range(-3, 5))
"""Inverse regularization strengths, the strongest penalty first."""

Matrix = Any  # numpy array or scipy sparse matrix, (rows, columns)
Model = Callable[[Matrix], Tensor]
"""Maps encoded rows to (rows, k), in the form of a network's output."""


@dataclass(frozen=True)
class Comparison:
    """`metrics`: `baseline/linear/NAME` and `baseline/constant/NAME` on the test rows, `baseline/seconds`, and
    `baseline/advantage/NAME` of the network over the linear model in the monitored metric, with `/low` and `/high`.
    `verdict`: the outcome as lines of text. Both are empty if there is nothing to compare.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    verdict: str = ""


def compare(trainer: Trainer, module: SupervisedModule, datamodule: TableDataModule, *, test: bool) -> Comparison:
    """Fits the baselines on training rows, with the penalty that has the smallest loss on validation rows, and measures
    them and the network on the same test rows. A split of more than `ROWS` rows or `CELLS` cells is sampled.

    The linear model gets all encoded columns except images, and the class weights of the network's loss and sampling.
    If the network has a temperature or a chosen threshold, each baseline gets its own, from the validation rows.
    """
    spec, target = datamodule.inputs, datamodule.target
    columns = len(spec.numbers) + len(spec.indicators) + len(spec.categories) + len(spec.texts)
    if columns == 0 or not module.answers_rows:
        return Comparison()
    if not test:
        return Comparison(verdict="Not compared with a linear model, because test=false.")
    started = time.perf_counter()
    limit = min(ROWS, CELLS // (columns * target.outputs))
    rows = {split: draw(store, limit) for split, store in datamodule.stores.items()}
    outputs: Any = trainer.predict(module, Batches(MemoryStore(rows["test"]), datamodule.eval_batch_size))
    answers = {"network": torch.cat([module.predict(output) for output in outputs]).cpu()}
    thresholds = {"network": module.threshold}
    rows["test"] = take(rows["test"], torch.arange(len(answers["network"])))  # a debug run predicts only some batches
    inputs = {split: encode(each, spec) for split, each in rows.items()}
    loss = module.loss.cpu()
    models: dict[str, Model] = {
        "linear": fit(inputs, rows, target, loss, class_weights(loss, datamodule)),
        "constant": lambda matrix: constant(target, matrix.shape[0]),
    }
    truth = rows["test"]["target"]
    if target.task == "regression":
        truth = to_units(truth, target)
    results: dict[str, float] = {}
    answer = PredictionHead(target)
    for name, model in models.items():
        output, val_output, val_truth = model(inputs["test"]), model(inputs["val"]), rows["val"]["target"]
        if module.answer.temperature != 1.0:
            answer.temperature = best_temperature(all_logits(val_output), val_truth)
        answers[name], thresholds[name] = answer(output), module.threshold
        if module.chosen_for is not None:
            probability = answer(val_output)[:, 1]
            thresholds[name], _ = best_threshold(probability, val_truth, module.chosen_for, target.classes)
        measured = {"loss": loss(output, rows["test"]["target"])}
        measured |= _metrics(answers[name], truth, target, thresholds[name])
        results |= {f"baseline/{name}/{key}": float(value) for key, value in measured.items()}

    metric = module.monitor.split("/", 1)[1]
    if metric == "loss":
        metric = "rmse" if target.task == "regression" else "log_loss"
    measures = {name: measure(metric, answers[name], truth, target, thresholds[name]) for name in answers}
    over = {name: advantage(metric, measures["network"], measures[name], len(truth), target.outputs) for name in models}
    results[f"baseline/advantage/{metric}"] = over["linear"].value
    results[f"baseline/advantage/{metric}/low"] = over["linear"].low
    results[f"baseline/advantage/{metric}/high"] = over["linear"].high
    results["baseline/seconds"] = seconds = time.perf_counter() - started
    used = {split: len(rows[split]["target"]) for split in ("train", "test")}
    return Comparison(results, verdict(metric, over, module, datamodule, used, seconds))


def encode(rows: Rows, spec: InputSpec) -> Matrix:
    """Input columns of the linear model: encoded numbers and indicators, one-hot codes, TF-IDF of each text.

    Unknown levels and tokens have no column. Returns float64 (rows, columns).
    """
    count = len(rows["target"])
    blocks: list[Matrix] = []
    if spec.numbers or spec.indicators:
        blocks.append(sparse.csr_matrix(rows["numbers"].double().numpy()))
    for index, (_, levels) in enumerate(spec.categories):
        codes = rows["codes"][:, index].numpy()
        blocks.append(sparse.csr_matrix((np.ones(count), (np.arange(count), codes)), (count, levels))[:, 1:])
    for text in spec.texts:
        tokens, offsets = rows[f"tokens.{text.name}"], rows[f"offsets.{text.name}"]
        weights = tfidf(tokens, offsets, torch.tensor((0.0, *text.idf), dtype=torch.float64)).numpy()
        cells = (weights, (rows_of(offsets).numpy(), tokens.numpy()))
        blocks.append(sparse.csr_matrix(cells, (count, len(text.idf) + 1))[:, 1:])
    matrix = sparse.hstack(blocks, format="csr")
    return matrix.toarray() if matrix.shape[1] <= DENSE else matrix


def fit(
    inputs: Mapping[str, Matrix], rows: Mapping[str, Rows], target: TargetSpec, loss: nn.Module, weights: Tensor | None
) -> Model:
    """Fits ridge or logistic regression with the penalty that has the smallest `loss` on the validation rows.

    The search goes from strong to weak penalties and stops when the loss rises. `weights`: (classes,).
    """
    best: Model | None = None
    lowest = np.inf
    for strength in STRENGTHS:
        if target.task == "regression":
            model = _ridge(inputs["train"], rows["train"]["target"], strength)
        else:
            model = _logistic(inputs["train"], rows["train"]["target"], target, strength, weights)
        value = float(loss(model(inputs["val"]), rows["val"]["target"]))
        if best is not None and value >= lowest:
            break
        best, lowest = model, value
    assert best is not None
    return best


def _ridge(inputs: Matrix, truth: Tensor, strength: float) -> Model:
    from sklearn.linear_model import Ridge  # slow to import

    model = Ridge(alpha=1 / strength).fit(inputs, truth.double().numpy())
    return lambda matrix: torch.from_numpy(model.predict(matrix)).float().unsqueeze(1)


def _logistic(inputs: Matrix, truth: Tensor, target: TargetSpec, strength: float, weights: Tensor | None) -> Model:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression  # slow to import

    seen: Tensor = torch.unique(truth)  # a sample may lack a rare class
    if len(seen) == 1:
        return lambda matrix: constant(target, matrix.shape[0])
    shares = _log_shares(target)
    balance = None if weights is None else {code: float(weights[code]) for code in seen.tolist()}
    model = LogisticRegression(C=strength, class_weight=balance, tol=1e-5, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(inputs, truth.numpy())

    def output(matrix: Matrix) -> Tensor:
        scores = torch.from_numpy(model.decision_function(matrix))
        if scores.ndim == 1:
            scores = nn.functional.pad(scores.unsqueeze(1), (1, 0))
        logits = shares.repeat(len(scores), 1)
        logits[:, seen] = scores.log_softmax(1) + shares[seen].logsumexp(0)
        return _as_network(logits, target)

    return output


def constant(target: TargetSpec, rows: int) -> Tensor:
    """The class frequencies or the mean of the training rows as the output for each row, (rows, k)."""
    if target.task == "regression":
        return torch.zeros(rows, 1)
    return _as_network(_log_shares(target).repeat(rows, 1), target)


def class_weights(loss: nn.Module, datamodule: TableDataModule) -> Tensor | None:
    """Weight of a row of each class in training, from the loss and the sampling, (classes,); None if all are 1."""
    weights: Tensor | None = getattr(loss, "weight", None)
    if datamodule.sampling == "balanced":
        balanced = 1 / _log_shares(datamodule.target).exp() / len(datamodule.target.classes)
        weights = balanced if weights is None else weights * balanced
    return weights


def _log_shares(target: TargetSpec) -> Tensor:
    counts = torch.tensor(target.counts, dtype=torch.float64).clamp_min(1)
    return (counts / counts.sum()).log()


def _as_network(logits: Tensor, target: TargetSpec) -> Tensor:
    return (logits[:, 1:] - logits[:, :1] if target.task == "binary" else logits).float()


def _metrics(answers: Tensor, truth: Tensor, target: TargetSpec, threshold: float) -> dict[str, Tensor]:
    metric = metrics.build(target)
    if isinstance(metric, metrics.ClassMetrics):
        metric.threshold = threshold
    metric.update(answers, truth)
    measured: dict[str, Tensor] = metric.compute()
    return measured
