"""The last lines of a run: whether the network is better than a linear model and than a constant answer."""

import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from datamodules.tabular import TableDataModule
from models.architectures.linear import Linear
from models.training.lightning_module import SupervisedModule
from trainer.evaluation.bootstrap import Advantage

CONF = Path(__file__).parents[2] / "conf"
KEPT = ("data", "paths", "loss", "monitor", "mode", "threshold", "calibrate", "seed", "cross_validate")
"""Settings that the command of the linear model copies from the command of the run."""

WORSE = (
    "Try a lower optimizer.lr. With texts also try data.max_tokens=1000: the weights of up to 2,000 columns and words"
    " are solved before training."
)
"""Advice for a linear model that is worse than scikit-learn's."""


def verdict(
    metric: str,
    over: Mapping[str, Advantage],
    module: SupervisedModule,
    datamodule: TableDataModule,
    used: Mapping[str, int],
    seconds: float,
) -> str:
    """Returns lines that describe the baselines and compare the network with them: better, no clear difference or
    worse, each with its 95 % interval. Better means better than the linear model and than the constant baseline.

    Unless the network is better, the command of the linear model follows. `over`: advantage of the network over
    "linear" and over "constant"; `used`: number of "train" and "test" rows; `seconds`: time of the comparison.
    """
    target = datamodule.target
    kind, constant = ("ridge", "mean") if target.task == "regression" else ("logistic", "class frequencies")
    baselines = [
        f"linear: scikit-learn's {kind} regression; constant: the {constant} of the training rows; both on test rows"
    ]
    for split, rows in used.items():
        if rows < datamodule.splits[split]["rows"]:
            baselines.append(f"on a sample of {rows:,} of {datamodule.splits[split]['rows']:,} {split} rows")
    if datamodule.inputs.images:
        baselines.append("neither uses images")
    lines = [f"{'; '.join(baselines)}; {seconds:.1f} s.", ""]
    if not math.isfinite(over["linear"].value):
        return "\n".join([*lines, f"No comparison: test/{metric} is not defined on these test rows."])
    own = isinstance(module.network, Linear)
    lines += _outcome(metric, over, own=own)
    if own and over["linear"].high < 0:
        lines.append(WORSE)
    by = datamodule.settings.split.by
    if by in ("group", "time"):
        lines.append(f"Rows of data.split.by={by} are not independent of each other: the true interval is wider.")
    linear_over_constant = over["constant"].value - over["linear"].value
    if not over["linear"].low > 0 and linear_over_constant > 0 and not own:
        lines.append(f"The linear model is simpler. Train it with: {linear_command()}")
    return "\n".join(lines)


def _outcome(metric: str, over: Mapping[str, Advantage], *, own: bool) -> list[str]:
    """Sentences of the outcome. `own`: the network is itself a linear model."""
    network, linear = ("this linear model", "scikit-learn's") if own else ("the network", "the linear model")
    if over["constant"].low > 0:
        return [_compare(metric, network, linear, over["linear"])]
    constant = _compare(metric, network, "the constant baseline", over["constant"])
    if over["linear"].low > 0:
        return [constant, f"Compared with {linear}: {_figures(metric, over['linear'])}"]
    return [_compare(metric, network, linear, over["linear"]), constant]


def _compare(metric: str, network: str, other: str, advantage: Advantage) -> str:
    outcome = f"No clear difference between {network} and {other}"
    if advantage.low > 0 or advantage.high < 0:
        outcome = f"{network.capitalize()} is {'better' if advantage.low > 0 else 'worse'} than {other}"
    return f"{outcome}: {_figures(metric, advantage)}"


def _figures(metric: str, advantage: Advantage) -> str:
    return (
        f"test/{metric} {advantage.first:,.5g} vs {advantage.second:,.5g}, advantage {advantage.value:,.3g}"
        f" (95 % CI {advantage.low:,.3g} to {advantage.high:,.3g})."
    )


def linear_command() -> str:
    """Returns the current command with the linear model. Settings of the network, and recipes that choose a network,
    are left out.
    """
    if not HydraConfig.initialized():
        return "python train.py model=linear"
    config = HydraConfig.get()
    kept = {"data": f"data={config.runtime.choices['data']}"}
    for override in config.overrides.task:
        key = override.lstrip("+~").split("=")[0]
        if key.split(".")[0] in KEPT or (key == "experiment" and not _chooses_model(config.runtime.choices[key])):
            kept[key] = override.lstrip("+")  # as a user types it: train.py adds the + that Hydra requires
    return shlex.join(["python", "train.py", "model=linear", *kept.values()])


def _chooses_model(experiment: str | None) -> bool:
    recipe = CONF / "experiment" / f"{experiment}.yaml"
    return recipe.exists() and re.search(r"^(model|  - override /model):", recipe.read_text(), re.MULTILINE) is not None
