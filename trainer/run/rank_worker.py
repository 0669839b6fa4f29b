"""Process of a rank other than 0: it trains with rank 0 and writes only its own log."""

import logging
from collections.abc import Sequence
from contextlib import redirect_stdout

from omegaconf import OmegaConf

from common.distributed import launched_rank
from common.errors import EXIT_CODE, InputError
from trainer.command.prepare import prepare
from trainer.config.fast_imports import fast_imports
from trainer.folders.signals import Interrupted, watch
from trainer.run.ranks import from_rank_zero, join, rank_log

log = logging.getLogger(__name__)


def work(command: Sequence[str] = ()) -> int:
    """Runs a rank other than 0 and returns its exit code. `command` is checked first, because rank 0 never sends the
    config of a command that it rejects."""
    if command:
        with redirect_stdout(None):
            try:
                prepare(list(command))
            except InputError:
                return EXIT_CODE  # rank 0 reports the reason
    with fast_imports():  # imports torch and Lightning
        from trainer.run.run import run_rank
    join()
    config, folder = from_rank_zero(None)
    folder.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        filename=rank_log(folder, launched_rank()),
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        force=True,
    )
    try:
        with watch.installed():
            run_rank(OmegaConf.create(config), folder)
    except Interrupted as interrupted:
        return interrupted.exit_code
    except InputError as error:
        log.error("%s", error)
        return EXIT_CODE
    except Exception:
        log.exception("The process failed.")
        return 1
    return 0
