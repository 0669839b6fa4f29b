"""The outcomes of the comparison with the baselines: better, no clear difference, worse."""

import pytest

from trainer.evaluation.bootstrap import Advantage
from trainer.evaluation.verdict import _outcome

BETTER = Advantage(0.31, 0.35, 0.04, 0.02, 0.06)
UNCLEAR = Advantage(0.31, 0.32, 0.01, -0.01, 0.03)
WORSE = Advantage(0.31, 0.25, -0.06, -0.08, -0.04)
FIGURES = {
    BETTER: "test/log_loss 0.31 vs 0.35, advantage 0.04 (95 % CI 0.02 to 0.06).",
    UNCLEAR: "test/log_loss 0.31 vs 0.32, advantage 0.01 (95 % CI -0.01 to 0.03).",
    WORSE: "test/log_loss 0.31 vs 0.25, advantage -0.06 (95 % CI -0.08 to -0.04).",
}


@pytest.mark.parametrize(
    ("linear", "outcome"),
    [
        (BETTER, "The network is better than the linear model"),
        (UNCLEAR, "No clear difference between the network and the linear model"),
        (WORSE, "The network is worse than the linear model"),
    ],
)
def test_a_network_that_beats_the_constant_baseline_is_compared_with_the_linear_model(
    linear: Advantage, outcome: str
) -> None:
    sentences = _outcome("log_loss", {"linear": linear, "constant": BETTER}, own=False)
    assert sentences == [f"{outcome}: {FIGURES[linear]}"]


def test_a_network_is_not_better_unless_it_beats_the_constant_baseline_too() -> None:
    assert _outcome("log_loss", {"linear": BETTER, "constant": UNCLEAR}, own=False) == [
        f"No clear difference between the network and the constant baseline: {FIGURES[UNCLEAR]}",
        f"Compared with the linear model: {FIGURES[BETTER]}",
    ]
    assert _outcome("log_loss", {"linear": UNCLEAR, "constant": WORSE}, own=False) == [
        f"No clear difference between the network and the linear model: {FIGURES[UNCLEAR]}",
        f"The network is worse than the constant baseline: {FIGURES[WORSE]}",
    ]


def test_a_linear_network_is_compared_with_scikit_learns() -> None:
    assert _outcome("log_loss", {"linear": BETTER, "constant": BETTER}, own=True) == [
        f"This linear model is better than scikit-learn's: {FIGURES[BETTER]}"
    ]
