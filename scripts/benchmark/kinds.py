"""Default settings on texts and images: the metric over three splits, each run from the command line.

python scripts/benchmark/kinds.py --data DIR [--cases sms_spam ag_news] [--seeds 0 1 2] [--json FILE]
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.benchmark.defaults import interval, measure
from scripts.benchmark.page import markdown, publish

CASES: dict[str, tuple[str, list[str], str]] = {
    "sms_spam": ("sms_spam", ["model=linear"], "test/f1/spam"),
    "ag_news": ("ag_news", ["model=linear"], "test/accuracy"),
    "ag_news_word2vec": (
        "ag_news",
        ["model=mlp", "model.inputs.text.weighting=mean", "model.inputs.text.vectors={vectors}"],
        "test/accuracy",
    ),
    "ag_news_transformer": ("ag_news", ["model=text_transformer", "trainer.max_epochs=10"], "test/accuracy"),
    "digits": ("digits", ["model=cnn", "trainer.max_epochs=30"], "test/accuracy"),
    "fashion_mnist": ("fashion_mnist", ["experiment=fashion_mnist"], "test/accuracy"),
}
"""Data, settings and metric; {vectors} is the folder of a Word2Vec run on the same training rows."""


def case(name: str, seed: int, data: str, more: list[str]) -> dict[str, Any]:
    table, settings, _ = CASES[name]
    settings = [*settings, *more]
    split = f"data.split.seed={seed}"
    if not any("{vectors}" in setting for setting in settings):
        return measure(table, seed, data, [*settings, split])
    with tempfile.TemporaryDirectory() as folder:
        words = measure(table, seed, data, ["model=word2vec", *more, split], Path(folder))
        run = measure(table, seed, data, [setting.format(vectors=folder) for setting in settings] + [split])
        return run | {"seconds": run["seconds"] + words["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--settings", nargs="*", default=[], help="overrides for every run")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows, figures = [], {}
    for name in given.cases:
        runs = [case(name, seed, str(Path(given.data).resolve()), given.settings) for seed in given.seeds]
        figures[name] = runs
        metric = CASES[name][2]
        seconds = sorted(run["seconds"] for run in runs)
        rows.append(
            [
                name,
                f"{metric.removeprefix('test/')} {interval([run[metric] for run in runs])}",
                " ".join(f"{run[metric]:.4f}" for run in runs),
                f"{statistics.median(seconds):.0f} ({seconds[0]:.0f} to {seconds[-1]:.0f})",
            ]
        )
        print(rows[-1], file=sys.stderr)
    headings = ["case", "test metric, mean ± 95 % CI", "each split", "seconds, launch to end"]
    listing = "\n".join(f"- {name}: `data={CASES[name][0]} {' '.join(CASES[name][1])}`" for name in given.cases)
    body = f"{markdown(headings, rows)}\n\n{listing}\n\nSeeds {given.seeds} of both the weights and the split."
    publish("Texts and images", "python scripts/benchmark/kinds.py --data DIR", body, figures, given.json)


if __name__ == "__main__":
    main()
