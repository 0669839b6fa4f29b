"""Data larger than their memory limit: peak memory of a run, rows encoded per second, and the time of an epoch from
disk relative to one from memory.

python scripts/benchmark/size.py [--rows 20000000] [--limit 2GB] [--json FILE]
"""

import argparse
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.benchmark.page import markdown, publish
from scripts.benchmark.predict import measure

COMMAND = "python scripts/benchmark/size.py"
COMPARED = 4_000_000
"""Number of rows for the comparison of the stores: they fit in memory."""
ROUNDS = 5


def run(rows: Path, folder: Path, *settings: str) -> tuple[float, float, str]:
    """Runs one epoch. Returns the seconds, the peak memory in GB and the log."""
    command = [sys.executable, "train.py", "data=table", f"data.path={rows}", "data.target=y", "model=linear"]
    command += ["data.batch_size=4096", "trainer.max_epochs=1", f"hydra.run.dir={folder}", *settings]
    seconds, peak = measure(command)
    return seconds, peak, (folder / "train.log").read_text()


def encoding_rate(log: str) -> float:
    found = re.search(r"encoded: ([\d,]+) rows in ([\d.]+) s", log)
    assert found is not None
    return float(found[1].replace(",", "")) / float(found[2])


def epochs(rows: Path) -> dict[str, list[float]]:
    """Training rows per second of a small network from each store, measured alternately."""
    import torch

    from datamodules.tabular import TableDataModule
    from models.architectures.mlp import MLP

    loaders = {}
    for store in ("memory", "disk"):
        datamodule = TableDataModule(str(rows), "y", store=store, batch_size=4096)
        datamodule.setup()
        loaders[store] = datamodule.train_dataloader()
    network = MLP(datamodule.inputs, 1, hidden=(64, 64))
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    loss_of = torch.nn.BCEWithLogitsLoss()
    rates: dict[str, list[float]] = {"memory": [], "disk": []}
    for _ in range(ROUNDS):
        for store, loader in loaders.items():
            started = time.perf_counter()
            for batch in loader:
                loss = loss_of(network(batch)[:, 0], batch["target"].float())
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
            rates[store].append(loader.count / (time.perf_counter() - started))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--limit", default="2GB")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, rows in (("large", given.rows), ("compared", min(COMPARED, given.rows))):
            measure([sys.executable, "scripts/make_rows.py", "--output", str(folder / what), "--rows", str(rows)])
        limit = [f"data.memory_limit={given.limit}", f"paths.cache={folder / 'cache'}"]
        seconds, peak, log = run(folder / "large", folder / "run", *limit)
        rates = epochs(folder / "compared")
    ratios = [disk / memory for disk, memory in zip(rates["disk"], rates["memory"], strict=True)]
    rows = [
        ["a run of one epoch", f"{given.rows:,} rows x 31 columns, limit {given.limit}", f"{seconds:.0f} s"],
        ["its peak memory", "", f"{peak:.2f} GB"],
        ["encoding in this run", "", f"{encoding_rate(log):,.0f} rows/s"],
        [
            "epoch from disk, relative to memory",
            f"{min(COMPARED, given.rows):,} rows, {ROUNDS} rounds",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        ],
    ]
    figures = {"seconds": seconds, "peak_gb": peak, "encoding_rate": encoding_rate(log), "epoch_ratios": ratios}
    publish("Data larger than memory", COMMAND, markdown(["measurement", "data", "result"], rows), figures, given.json)


if __name__ == "__main__":
    main()
