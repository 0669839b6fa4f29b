"""Command line of a run: `python train.py model=mlp data=adult`; `python train.py --help` lists the choices."""

import sys

import hydra
from omegaconf import DictConfig

from trainer.config.settings import ROOT
from trainer.main import conclude_sweep, run_command, run_job


def start() -> list[int]:
    """Runs what the command line says, one job or the jobs of a sweep; returns their exit codes."""
    codes: list[int] = []

    @hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="train")
    def main(config: DictConfig) -> float | None:
        value, code = run_job(config)
        codes.append(code)
        return value

    try:
        main()
    finally:
        codes.extend(conclude_sweep())
    return codes


if __name__ == "__main__":
    sys.exit(run_command(start, sys.argv[1:]))
