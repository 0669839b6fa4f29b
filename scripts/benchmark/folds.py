"""Time of folds and ensemble members, in parallel and one after another, relative to one run; and of stacked networks.

python scripts/benchmark/folds.py --data DIR [--table titanic] [--runs 5] [--processes 1 2] [--rounds 5]
    [--settings trainer.max_epochs=20] [--steps 200] [--json FILE]

Each run is timed from launch to end, including the preparation of the data. A stacked step trains several networks as
one, each on its own rows: an alternative that Lathe does not use. This measures what it would gain.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

sys.path.insert(0, str(Path(__file__).parents[2]))

from models.architectures.mlp import perceptron
from scripts.benchmark.defaults import measure
from scripts.benchmark.page import markdown, publish

NETWORKS = {"8-16-16-1, batch 32": (8, [16, 16], 32), "(T) 108-256-256-256-1, batch 256": (108, [256, 256, 256], 256)}


def one_step(width: int, hidden: list[int], batch: int) -> Callable[[], None]:
    network = perceptron(width, hidden, 1, "relu", "none", 0.0, "he")
    return make_step(network, list(network.parameters()), torch.randn(batch, width), torch.rand(batch, 1).round())


def stacked_step(width: int, hidden: list[int], batch: int, networks: int) -> Callable[[], None]:
    each = [perceptron(width, hidden, 1, "relu", "none", 0.0, "he") for _ in range(networks)]
    parameters, buffers = stack_module_state(each)
    call = vmap(lambda state, own, rows: functional_call(each[0], (state, own), (rows,)))
    rows, target = torch.randn(networks, batch, width), torch.rand(networks, batch, 1).round()
    return make_step(lambda given: call(parameters, buffers, given), list(parameters.values()), rows, target)


def make_step(
    network: Callable[[Tensor], Tensor], parameters: list[Tensor], rows: Tensor, target: Tensor
) -> Callable[[], None]:
    """Returns a function that runs one step: forward, backward, fused AdamW."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(network(rows), target, reduction="none")
        torch.autograd.backward(loss.flatten(-2).mean(-1).sum())
        optimizer.step()

    return step


def steps(networks: int, count: int, rounds: int) -> dict[str, list[list[float]]]:
    """CPU milliseconds of a step and of a stacked step, measured alternately, by size of the network."""
    figures: dict[str, list[list[float]]] = {}
    for name, size in NETWORKS.items():
        pair = one_step(*size), stacked_step(*size, networks)
        figures[name] = []
        for _ in range(1 + rounds):
            times = []
            for step in pair:
                started = time.process_time()
                for _ in range(count):
                    step()
                times.append(1000 * (time.process_time() - started) / count)
            figures[name].append(times)
        del figures[name][0]
    return figures


def format_ratios(ratios: list[float]) -> str:
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data")
    parser.add_argument("--table", default="titanic")
    parser.add_argument("--runs", type=int, default=5, help="number of folds, members and stacked networks")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--settings", nargs="*", default=[], help="overrides for every run")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)

    stacked = steps(given.runs, given.steps, given.rounds)
    data = str(Path(given.data).resolve())
    variants: dict[str, list[str]] = {"one run": []}
    for kind in ("cross_validate", "ensemble"):
        for count in given.processes:
            variants[f"{kind}={given.runs} n_jobs={count}"] = [f"{kind}={given.runs}", f"n_jobs={count}"]
    runs: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(given.rounds):  # alternating, so that other work on the machine affects all alike
        for name, settings in variants.items():
            runs[name].append(measure(given.table, 0, data, [*given.settings, *settings])["seconds"])

    rows = []
    for name, seconds in runs.items():
        ratios = [time / one for time, one in zip(seconds, runs["one run"], strict=True)]
        rows.append([f"`{name}`", format_ratios(ratios), f"{median(seconds):.1f}"])
    body = markdown([given.table, "relative to one run", "s"], rows)
    lines = []
    for name, times in stacked.items():
        ratios = [many / one for one, many in times]
        lines.append([name, format_ratios(ratios), f"{median(one for one, _ in times):.3f}"])
    body += (
        f"\n\n{markdown([f'a step of {given.runs} stacked networks', 'relative to one network', 'one, CPU ms'], lines)}"
    )
    body += f"\n\nMedian (range) of {given.rounds} rounds; steps on one thread."
    command = shlex.join(["python", "scripts/benchmark/folds.py", *sys.argv[1:]])
    publish("Folds and members", command, body, {"runs": runs, "steps": stacked}, given.json)


if __name__ == "__main__":
    main()
