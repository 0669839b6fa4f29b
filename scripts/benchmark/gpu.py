"""Rows per second in training on a CUDA device, compared with a hand-written loop of CUDA graphs and with Lightning,
and the share of the time in which the device is busy.

python scripts/benchmark/gpu.py [--cases T:64 T:256 T:1024 T:4096 T:16384 T:65536] [--rounds 5] [--rows 1048576]
    [--json FILE]

Uses the networks and variants of training.py, all in float32. Requires torch 2.11 or later; the version is reported.
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[2]))

from models.training import losses
from scripts.benchmark.page import markdown, publish
from scripts.benchmark.training import EPOCHS, EVALUATED, WORKLOADS, Clock, Workload, lightning, ours
from trainer.loop.quiet import quiet_lightning

WARM_UP = 3
"""Steps before a capture, which allocate the optimizer state and the cuBLAS workspace."""
PROFILED = 512
"""Maximum number of steps of the profiled epoch: each step has dozens of events."""


class DeviceClock(Clock):
    def record(self) -> None:
        torch.cuda.synchronize()
        super().record()


class Profiler(DeviceClock):
    """Profiles the last epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.profile: Any = profile(activities=[ProfilerActivity.CUDA])

    def record(self) -> None:
        super().record()
        if len(self.times) == EPOCHS:
            self.profile.start()
        elif len(self.times) == EPOCHS + 1:
            self.profile.stop()

    def busy(self) -> float:
        """Share of the epoch, from its first to its last kernel or copy, in which at least one is active."""
        spans = sorted(
            (event.time_range.start, event.time_range.end)
            for event in self.profile.events()
            if event.device_type.name == "CUDA" and not event.is_user_annotation
        )
        taken, until = 0.0, spans[0][0]
        for start, end in spans:  # some overlap
            taken += max(0.0, end - max(start, until))
            until = max(until, end)
        return float(taken / (until - spans[0][0]))


def captured(work: Workload, batch_size: int, clock: Clock) -> None:
    """Keeps all rows on the device and replays one graph per step. Drops the last batch if it is incomplete."""
    device = torch.device("cuda")
    train, val = ({name: values.to(device) for name, values in rows.items()} for rows in (work.train, work.val))
    network = work.build().to(device)
    loss = losses.auto(work.target).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4, fused=True, capturable=True)
    index = torch.zeros(batch_size, dtype=torch.long, device=device)

    def step() -> None:
        batch = {name: values.index_select(0, index) for name, values in train.items()}
        optimizer.zero_grad()
        torch.autograd.backward(loss(network(batch), batch["target"]))
        optimizer.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    count = len(train["target"])
    clock.record()
    for _ in range(EPOCHS):
        order = torch.randperm(count, device=device)[: count - count % batch_size]
        for part in torch.split(order, batch_size):
            index.copy_(part)
            graph.replay()
        network.eval()
        with torch.inference_mode():
            for rows in torch.split(torch.arange(len(val["target"]), device=device), EVALUATED):
                batch = {name: values.index_select(0, rows) for name, values in val.items()}
                loss(network(batch), batch["target"])
        clock.record()


lathe = partial(ours, accelerator="cuda", devices=1, precision="32-true", fast="on")
VARIANTS: dict[str, Callable[[Workload, int, Clock], None]] = {
    "captured by hand": captured,
    "lathe": lathe,
    "lathe, compiled": partial(lathe, compile=True),
    "lightning": partial(lightning, accelerator="cuda", devices=1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=[f"T:{4**power}" for power in range(3, 9)])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2**20)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} finds no CUDA device: nothing to measure")
        return
    quiet_lightning()
    logging.getLogger("trainer").setLevel(logging.WARNING)

    rows: list[list[str]] = []
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    for case in given.cases:
        letter, size = case.split(":")
        batch_size = int(size)
        work = WORKLOADS[letter](given.rows)
        rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for _ in range(given.rounds):
            for name, train in VARIANTS.items():
                clock = DeviceClock()
                train(work, batch_size, clock)
                rates[name].append(given.rows / np.diff(clock.times, axis=0)[1:, 0].min())
        most = PROFILED * batch_size
        train_rows = {name: values[:most] for name, values in work.train.items()}
        val_rows = {name: values[: most // 4] for name, values in work.val.items()}
        some = replace(work, train=train_rows, val=val_rows)
        figures[case] = {}
        for name, train in VARIANTS.items():
            profiler = Profiler()
            train(some, batch_size, profiler)
            figures[case][name] = {"rows_a_second": rates[name], "busy": profiler.busy()}
            ratios = np.array(rates[name]) / rates["captured by hand"]
            ratio = f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"
            rows.append([case, name, ratio, f"{np.median(rates[name]):,.0f}", f"{profiler.busy():.0%}"])
            print(rows[-1], file=sys.stderr)
    headings = ["case", "variant", "relative to captured", "rows/s", "device busy"]
    body = (
        f"{markdown(headings, rows)}\n\n{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}. {given.rows:,} rows,"
        f" {given.rounds} rounds; the busy share is measured in one epoch of at most {PROFILED} steps."
    )
    command = shlex.join(["python", "scripts/benchmark/gpu.py", *sys.argv[1:]])
    publish("Training on a GPU", command, body, figures, given.json)


if __name__ == "__main__":
    main()
