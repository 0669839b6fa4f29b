"""Compares runs in one table: settings that differ, metrics, seconds.

python scripts/compare.py outputs/RUN outputs/OTHER
python scripts/compare.py multirun/SWEEP --csv runs.csv

A folder of runs, such as a sweep, stands for all runs in it. Runs are sorted by their monitored metric if it is the
same for all. The file (CSV, Parquet or JSON lines, by its extension) has all metrics and all settings that differ.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.errors import EXIT_CODE, InputError
from inference.writers import writing
from trainer.sweep.compare_runs import find_runs, frame, ranked, read_run, side_by_side


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders of runs such as a sweep")
    parser.add_argument("--csv", metavar="FILE", help="file for all metrics and settings that differ, one row per run")
    arguments = parser.parse_args()
    try:
        folders = dict.fromkeys(folder for path in arguments.runs for folder in find_runs(path))
        runs = ranked([read_run(folder) for folder in folders])
        print(side_by_side(runs, "Runs"))
        if arguments.csv is not None:
            with writing(arguments.csv) as write:
                write(frame(runs))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_CODE)


if __name__ == "__main__":
    main()
