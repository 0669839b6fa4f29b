"""What the last lines of a run say of the network beside the baselines."""

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
"""Settings of a command that the linear model takes over from another."""

WORSE = (
    "Try a lower optimizer.lr. With texts try data.max_tokens=1000 too: the weights of up to 2,000 columns and words"
    " are solved before training."
)
"""What may help a linear model that is worse than scikit-learn's."""


def verdict(
    metric: str,
    over: Mapping[str, Advantage],
    module: SupervisedModule,
    datamodule: TableDataModule,
    drawn: Mapping[str, int],
    seconds: float,
) -> str:
    """Lines: what the baselines are, how the network did beside them, and the command of the linear model where the
    network is not better beyond doubt. `over`: its advantage over "linear" and over "constant"; `drawn`: rows of
    "train" and "test" that were looked at.
    """
    target = datamodule.target
    kind, same = ("ridge", "mean") if target.task == "regression" else ("logistic", "shares of the classes")
    baselines = [f"linear: scikit-learn's {kind} regression; constant: the {same} in training; both on test rows"]
    for split, rows in drawn.items():
        if rows < datamodule.splits[split]["rows"]:
            baselines.append(f"{rows:,} of {datamodule.splits[split]['rows']:,} {split} rows were drawn")
    if datamodule.inputs.images:
        baselines.append("neither sees images")
    lines = [f"{'; '.join(baselines)}; {seconds:.1f} s.", ""]
    if not math.isfinite(over["linear"].value):
        return "\n".join([*lines, f"No verdict: test/{metric} is not defined on these test rows."])
    own = isinstance(module.network, Linear)
    lines.append(_beside_linear(metric, over["linear"], own=own))
    if own and over["linear"].high < 0:
        lines.append(WORSE)
    by = datamodule.settings.split.by
    if by in ("group", "time"):
        lines.append(f"Rows of data.split.by={by} are not independent of each other: the true interval is wider.")
    if not over["constant"].low > 0:
        lines.append(f"It may be no better than the constant answer: {_figures(metric, over['constant'])}")
    linear_over_constant = over["constant"].value - over["linear"].value
    if not over["linear"].low > 0 and linear_over_constant > 0 and not own:
        lines.append(f"Take the linear one, it is smaller and explains itself: {linear_command()}")
    return "\n".join(lines)


def _beside_linear(metric: str, advantage: Advantage, *, own: bool) -> str:
    """`own`: the network is itself a linear model."""
    network, linear = ("This linear model", "scikit-learn's") if own else ("The network", "the linear model")
    if advantage.low > 0:
        said = f"{network} is better than {linear} beyond doubt"
    elif advantage.high < 0:
        said = f"{network} is worse than {linear} beyond doubt"
    elif own:
        said = f"{network} is as good as {linear}, as far as these rows tell"
    else:
        said = f"{network} is not better than {linear} beyond doubt"
    return f"{said}: {_figures(metric, advantage)}"


def _figures(metric: str, advantage: Advantage) -> str:
    return (
        f"test/{metric} {advantage.first:,.5g} against {advantage.second:,.5g}, advantage {advantage.value:,.3g}"
        f" (95 %: {advantage.low:,.3g} to {advantage.high:,.3g})."
    )


def linear_command() -> str:
    """The command of the run that Hydra carries out, with the linear model: settings of the network, and recipes that
    choose one, are left out.
    """
    if not HydraConfig.initialized():
        return "python train.py model=linear"
    config = HydraConfig.get()
    kept = {"data": f"data={config.runtime.choices['data']}"}
    for override in config.overrides.task:
        key = override.lstrip("+~").split("=")[0]
        if key.split(".")[0] in KEPT or (key == "experiment" and not _chooses_model(config.runtime.choices[key])):
            kept[key] = override.lstrip("+")  # as it is typed: the front door adds what Hydra wants before it
    return shlex.join(["python", "train.py", "model=linear", *kept.values()])


def _chooses_model(experiment: str | None) -> bool:
    recipe = CONF / "experiment" / f"{experiment}.yaml"
    return recipe.exists() and re.search(r"^(model|  - override /model):", recipe.read_text(), re.MULTILINE) is not None
