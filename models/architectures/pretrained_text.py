"""A pretrained encoder of transformers (BERT and its like) on a text column, from a folder on this machine."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from datamodules.schema import InputSpec, TextSpec, drop_setting
from models.layers.column_support import refuse_columns
from models.layers.common import Dropout

log = logging.getLogger(__name__)

PART = 64
"""Rows that are read at a time, so that a large batch without gradients needs little memory."""
SHOWN = 5
"""Names of weights in a message."""


class Encoder(nn.Module):
    """An encoder of transformers: ids and mask int64 (rows, tokens) -> float (rows, tokens, size).

    TorchScript cannot compile it, but follows it once through its operations; `torch.jit.script` asks for that by
    `__prepare_scriptable__`, and puts what it gets in the module's place.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        output: Tensor = self.model(input_ids=ids, attention_mask=mask)[0]
        return output

    def __prepare_scriptable__(self) -> nn.Module:
        device = next(self.parameters()).device
        mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], device=device)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of checks of shapes, which are followed as they came out
            traced: nn.Module = torch.jit.trace(self.eval(), (torch.zeros_like(mask), mask))
        return traced


class PretrainedText(nn.Module):
    """The tokens of a text through a pretrained encoder, their mean or the first, and a linear head.

    `folder` holds the encoder as transformers writes it; the tokens must be those of its tokenizer (`data.wordpiece`
    has the same folder). Of a text the first tokens are read, `max_length` with the two that mark its beginning and
    end. `freeze`: whether the encoder stays as it is, or how many of its layers do, counted from the embeddings,
    which stay with them. The head is `head`, the encoder `body`, in names of parameters.

    Gives (rows, outputs) logits or standardised values. ValueError for other columns than one of texts, where
    transformers is not installed, and for a folder without an encoder that fits (arXiv 1810.04805, 1908.10084).
    """

    unsupported: ClassVar[Mapping[str, str]] = {
        "fsdp": "reads its rows in chunks, the number of which may differ between processes"
    }

    def __init__(
        self,
        spec: InputSpec,
        outputs: int,
        *,
        folder: str | None,
        pooling: Literal["mean", "first"] = "mean",
        max_length: int = 128,
        freeze: bool | int = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        refuse_columns(spec, "pretrained_text", ["text"])
        if len(spec.texts) > 1:
            names = [text.name for text in spec.texts]
            raise ValueError(
                f"pretrained_text takes one column of texts, and there are {', '.join(names)}: leave out all but one,"
                f" as with {drop_setting(names[1:])}, or choose model=text_transformer, fusion or mlp."
            )
        if pooling not in ("mean", "first"):
            raise ValueError(f"pooling={pooling!r}: choose mean or first.")
        (text,) = spec.texts
        model, tokenizer = _load(folder)
        _check_tokens(text, tokenizer, f"folder={folder}")
        longest = min(model.config.max_position_embeddings, tokenizer.model_max_length)
        if not 3 <= max_length <= longest:
            raise ValueError(f"max_length={max_length}: must be from 3 to {longest}, the most that {folder} can read.")
        self.tokens = f"tokens.{text.name}"
        self.offsets = f"offsets.{text.name}"
        self.mean = pooling == "mean"
        self.most = max_length - 2
        self.part: int = PART
        self.first: int = tokenizer.cls_token_id
        self.last: int = tokenizer.sep_token_id
        self.padding: int = tokenizer.pad_token_id
        self.unknown: int = tokenizer.unk_token_id
        _freeze(model, freeze)
        self.frozen = freeze is True
        self.body = Encoder(model)
        self.dropout = Dropout(dropout)
        self.head = nn.Linear(model.config.hidden_size, outputs)
        self.train()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            self.body.eval()
        return self

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        tokens, offsets = batch[self.tokens], batch[self.offsets]
        ids = torch.where(tokens > 0, tokens.long() - 1, self.unknown)
        lengths = offsets.diff().clamp_max(self.most)
        # Rows of like length are read together, so that little is read of what fills the others up.
        order = lengths.argsort(stable=True)
        starts = offsets[:-1]
        parts = [torch.zeros(0, self.head.in_features, device=ids.device)]  # a batch may have no rows
        for start in range(0, len(order), self.part):
            rows = order[start : start + self.part]
            parts.append(self.read(ids, starts[rows], lengths[rows]))
        output: Tensor = self.head(self.dropout(torch.cat(parts)[order.argsort()]))
        return output

    def read(self, ids: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
        """Rows that begin at `starts` and have `lengths` (rows,) -> (rows, size)."""
        place = torch.arange(int(lengths.max()) + 2, device=ids.device)
        ends = lengths.unsqueeze(1) + 1
        inside = (place > 0) & (place < ends)
        padded = torch.full(inside.shape, self.padding, device=ids.device)
        padded[:, 0] = self.first
        padded.scatter_(1, ends, self.last)
        padded[inside] = ids[(starts.unsqueeze(1) + place - 1)[inside]]
        there = place <= ends
        encoded: Tensor = self.body(padded, there.long())
        if not self.mean:
            return encoded[:, 0]
        weight = there.unsqueeze(2).to(encoded.dtype)
        return (encoded * weight).sum(1) / weight.sum(1)


def _load(folder: str | None) -> tuple[Any, Any]:
    """The encoder and its tokenizer, from files alone."""
    if folder is None:
        raise ValueError("folder: pretrained_text needs the folder of an encoder: set data.wordpiece=DIR.")
    if not Path(folder).is_dir():
        raise ValueError(f"folder={folder}: there is no such folder.")
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            "pretrained_text needs transformers, which is not installed: uv sync --extra text, or"
            " pip install transformers."
        ) from error
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, facts = transformers.AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            weights_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # transformers raises whatever its readers of files raise
        raise ValueError(
            f"folder={folder}: holds no encoder that transformers can load: {type(error).__name__}: {error}"
        ) from error
    wrong = [f"{name} {tuple(there)} instead of {tuple(here)}" for name, there, here in facts["mismatched_keys"]]
    wrong += [f"{name} is missing" for name in facts["missing_keys"] if not name.startswith("pooler.")]
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ValueError(
            f"folder={folder}: its weights are of another network than its config.json says: "
            f"{', '.join(sorted(wrong)[:SHOWN])}{more}."
        )
    if hasattr(model, "pooler"):
        model.pooler = nn.Identity()  # a layer on the first token that nothing here reads
    log.info("encoder: %s of %s, %d layers", type(model).__name__, folder, len(_layers(model)))
    return model, tokenizer


def _check_tokens(text: TextSpec, tokenizer: Any, where: str) -> None:
    """Raises ValueError where the tokens of the batches are not those that the encoder knows."""
    known = tokenizer.get_vocab()
    if any(known.get(token) != index for index, token in enumerate(text.tokens)):
        raise ValueError(
            f"{where}: the tokens of {text.name!r} are not this encoder's: set data.wordpiece to its folder."
        )
    marks = ("cls_token", "sep_token", "pad_token", "unk_token")
    if lacking := [mark for mark in marks if getattr(tokenizer, f"{mark}_id") is None]:
        raise ValueError(f"{where}: its tokenizer has no {' and no '.join(lacking)}; an encoder like BERT has.")


def _layers(model: Any) -> nn.ModuleList:
    """The list of its layers, whatever it is called."""
    count = model.config.num_hidden_layers
    return next(each for each in model.modules() if isinstance(each, nn.ModuleList) and len(each) == count)


def _freeze(model: Any, freeze: bool | int) -> None:
    """Takes gradients from the whole, or from the embeddings and so many layers on them."""
    layers = _layers(model)
    if not 0 <= freeze <= len(layers):
        raise ValueError(f"freeze={freeze}: must be true, false, or a number of layers up to {len(layers)}.")
    if freeze:
        model.requires_grad_(False)
    if freeze is not True and freeze > 0:
        for layer in layers[int(freeze) :]:
            layer.requires_grad_(True)
