"""Writes a large synthetic table as a folder of Parquet files, reproducible by its seed: 24 numbers, 6 categories.

python scripts/make_rows.py --output rows --rows 20000000
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl

NUMBERS, CATEGORIES = 24, 6
ROWS_PER_FILE = 1_000_000
ROWS_PER_GROUP = 131_072


def make(rows: int, seed: int) -> pl.DataFrame:
    """Numbers `x0`, ... of several distributions, some missing; categories `c0`, ... of 3 to 1,000 levels; and `y`, yes
    or no, a noisy function of some of them.
    """
    generator = np.random.default_rng(seed)
    normal = generator.standard_normal((NUMBERS, rows), dtype=np.float32)
    columns: dict[str, pl.Series] = {}
    for index, values in enumerate(normal):
        name = f"x{index}"
        shape = index % 4
        made = (
            values
            if shape == 0
            else np.exp(values)
            if shape == 1
            else np.round(values * 10)
            if shape == 2
            else values**3
        )
        columns[name] = pl.Series(name, made)
        if index % 6 == 5:
            columns[name] = columns[name].set(pl.Series(generator.random(rows) < 0.05), None)
    score = normal[0] + np.sin(3 * normal[1]) + 0.5 * normal[2] * normal[4]
    for index, levels in enumerate(np.geomspace(3, 1000, CATEGORIES).astype(int)):
        codes = (generator.random(rows) ** 2 * levels).astype(np.int32)
        names = pl.Series([f"level {code}" for code in range(levels)])
        columns[f"c{index}"] = names.gather(codes)
        score = score + 0.3 * np.sin(codes * (index + 1))
    yes = score + 0.5 * generator.standard_normal(rows) > 0
    return pl.DataFrame(columns | {"y": pl.Series(yes).replace_strict([True, False], ["yes", "no"])})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="folder of the files")
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, arguments.rows, ROWS_PER_FILE)):
        frame = make(min(ROWS_PER_FILE, arguments.rows - first), arguments.seed + number)
        frame.write_parquet(arguments.output / f"{number:04}.parquet", row_group_size=ROWS_PER_GROUP)


if __name__ == "__main__":
    main()
