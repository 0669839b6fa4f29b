"""The front door: `python train.py model=mlp data=adult`; `python train.py --help` lists the choices."""

import logging
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from serving.errors import EXIT_CODE, InputError
from trainer import processes
from trainer.config import prepare
from trainer.status import recorded

log = logging.getLogger("train")
failures: list[Exception] = []


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float | None:
    """One run; in a sweep, a job that cannot be carried out leaves the others to go on."""
    if processes.rank() > 0:  # of a job of a sweep that Slurm starts as several processes
        return processes.work()
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        with recorded(folder, config.monitor, config.mode) as status:
            # Imported here so that help need not wait for torch.
            from trainer.lean import lean

            with lean():
                from trainer.run import run

            status.value = run(config)
        return status.value
    except InputError as error:
        log.error("%s", error)
        failures.append(error)
    except Exception as error:
        log.exception("The run stopped at an error that is not a setting's.")
        failures.append(error)
    return None


if __name__ == "__main__":
    try:
        if processes.rank() > 0:
            sys.exit(processes.work(sys.argv[1:]))
        sys.argv[1:] = prepare(sys.argv[1:])
        main()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_CODE)
    except (KeyboardInterrupt, SystemExit) as ending:
        # Lightning ends an interrupted fit by an exit of its own.
        if isinstance(ending, SystemExit) and not isinstance(ending.__context__, KeyboardInterrupt):
            raise
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    if failures:
        sys.exit(EXIT_CODE if all(isinstance(failure, InputError) for failure in failures) else 1)
