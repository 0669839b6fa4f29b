"""The process of a rank other than 0: it trains with rank 0 and writes only a log of its own."""

import logging
from collections.abc import Sequence
from contextlib import redirect_stdout

from omegaconf import OmegaConf

from common.distributed import launched_rank
from common.errors import EXIT_CODE, InputError
from trainer.folders.signals import Interrupted, watch
from trainer.run.ranks import from_rank_zero, join, rank_log

log = logging.getLogger(__name__)


def work(command: Sequence[str] = ()) -> int:
    """All that a process does that is not rank 0; the exit code. `command`: whether rank 0 will take it is looked up
    first, so that nobody waits for it in vain."""
    from trainer.config.fast_imports import fast_imports

    if command:
        from trainer.command.prepare import prepare

        with redirect_stdout(None):
            try:
                prepare(list(command))
            except InputError:
                return EXIT_CODE  # rank 0 says why
    with fast_imports():
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
        log.exception("The process stopped at an error that is not a setting's.")
        return 1
    return 0
