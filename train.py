"""The front door: `python train.py model=mlp data=adult`; `python train.py --help` lists the choices."""

import logging
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from serving.errors import EXIT_CODE, InputError
from trainer import processes, sweep
from trainer.compose import ROOT
from trainer.config import prepare
from trainer.resume import checkpoints, save_overrides, what_next
from trainer.signals import Interrupted, hand_over, watch
from trainer.status import Pruned, recorded

log = logging.getLogger("train")
codes: list[int] = []
"""With what the runs of this process would exit that were not carried out."""


@hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="train")
def main(config: DictConfig) -> float | None:
    """One run; in a sweep, a job that cannot be carried out leaves the others to go on."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        if (before := sweep.done_before(folder, config)) is not None:
            return before.value
        if processes.rank() > 0:  # of a job of a sweep that Slurm starts as several processes
            return processes.work()
        with watch.owning(), recorded(folder, config.monitor, config.mode) as status:

            def begun() -> None:
                save_overrides(folder, HydraConfig.get().overrides.task)
                status.before = None

            if not checkpoints(folder):  # those that there are may not go with the settings
                begun()
            # Imported here so that help need not wait for torch.
            from trainer.lean import lean

            with lean():
                from trainer.run import run

            status.value = run(config, begun)
        return status.value
    except Pruned as ending:
        log.info("%s", ending)
    except Interrupted as interrupted:
        of_sweep = HydraConfig.get().mode is RunMode.MULTIRUN  # which says how to go on with all
        log.warning("%s.%s", interrupted, "" if of_sweep else f" {what_next(folder)}")
        hand_over(interrupted.number)
        raise
    except InputError as error:
        log.error("%s", error)
        codes.append(EXIT_CODE)
    except Exception:
        log.exception("The run stopped at an error that is not a setting's.")
        codes.append(1)
    return None


def carry_out() -> None:
    """The run, or the sweep and its table."""
    try:
        main()
    finally:
        if sweep.Begun.folder is not None:
            codes.extend(sweep.conclude(sweep.Begun.folder, sweep.Begun.jobs))


if __name__ == "__main__":
    try:
        if processes.rank() > 0:
            sys.exit(processes.work(sys.argv[1:]))
        sys.argv[1:] = prepare(sys.argv[1:])
        carry_out()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_CODE)
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)
    except KeyboardInterrupt:  # before the run has begun
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    if codes:
        sys.exit(codes[0] if len(set(codes)) == 1 else 1)
