"""Word vectors that a run starts from, trained by an earlier run of `model=word2vec`."""

import logging
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from models.layers.text_bag import VECTORS

log = logging.getLogger(__name__)

START = "model.inputs.text.vectors"
"""Setting with the run folder, or the file, whose vectors the words start from."""


def warn_of_other_rows(config: DictConfig) -> None:
    """Warns where the vectors were trained on other rows: they may have seen rows that are tested here."""
    vectors = OmegaConf.select(config, START)
    described = Path(vectors or "", "config.yaml")
    if vectors is None or not (described.exists() and (described.parent / VECTORS).exists()):
        return
    then = OmegaConf.load(described)
    for key in ("data.path", "data.split"):
        if OmegaConf.select(then, key) != OmegaConf.select(config, key):
            log.warning(
                "%s=%s: these vectors were trained with another %s, possibly on rows that are tested here;"
                " train them with the same data.split",
                START,
                vectors,
                key,
            )
            return
