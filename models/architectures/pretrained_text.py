"""Fine-tunes a pretrained text encoder (BERT and similar) from a local folder on one text column."""

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

CHUNK_SIZE = 64
"""Number of rows encoded at a time, so that a large batch without gradients needs little memory."""
MAX_NAMES = 5
"""Maximum number of weights that a message names."""


class Encoder(nn.Module):
    """An encoder of transformers: ids and mask int64 (rows, tokens) -> float (rows, tokens, size).

    It can be traced but not scripted: `torch.jit.script` calls `__prepare_scriptable__`, which returns a traced module.
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
            warnings.simplefilter("ignore")  # about shape checks, which become constants
            traced: nn.Module = torch.jit.trace(self.eval(), (torch.zeros_like(mask), mask))
        return traced


class PretrainedText(nn.Module):
    """A pretrained encoder (arXiv 1810.04805), mean pooling (arXiv 1908.10084) or the first token, and a linear head.

    `folder` has an encoder saved by transformers; `data.wordpiece` must be the same folder, so that tokens match its
    tokenizer. Texts are truncated to `max_length` tokens, including the two special tokens. `freeze`: whether to freeze
    the encoder, or the number of its first layers to freeze together with the embeddings. Parameter names start with
    `head` or `body` (the encoder).

    Returns (rows, outputs) logits or standardized values. Raises ValueError unless there is exactly one column, a text,
    if transformers is not installed, and if the folder has no suitable encoder.
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
                f"pretrained_text supports one text column, but there are {', '.join(names)}: drop all but one, for"
                f" example with {drop_setting(names[1:])}, or use model=text_transformer, fusion or mlp."
            )
        if pooling not in ("mean", "first"):
            raise ValueError(f"pooling={pooling!r}: must be mean or first.")
        (text,) = spec.texts
        model, tokenizer = _load(folder)
        _check_tokens(text, tokenizer, f"folder={folder}")
        longest = min(model.config.max_position_embeddings, tokenizer.model_max_length)
        if not 3 <= max_length <= longest:
            raise ValueError(f"max_length={max_length}: must be from 3 to {longest}, the maximum of this encoder.")
        self.tokens = f"tokens.{text.name}"
        self.offsets = f"offsets.{text.name}"
        self.mean = pooling == "mean"
        self.max_tokens = max_length - 2
        self.chunk_size: int = CHUNK_SIZE
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
        lengths = offsets.diff().clamp_max(self.max_tokens)
        # Rows of similar length form a chunk, to reduce padding.
        order = lengths.argsort(stable=True)
        starts = offsets[:-1]
        chunks = [torch.zeros(0, self.head.in_features, device=ids.device)]  # a batch may have no rows
        for start in range(0, len(order), self.chunk_size):
            rows = order[start : start + self.chunk_size]
            chunks.append(self.encode(ids, starts[rows], lengths[rows]))
        output: Tensor = self.head(self.dropout(torch.cat(chunks)[order.argsort()]))
        return output

    def encode(self, ids: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
        """Rows of `ids` that begin at `starts` (rows,) with `lengths` (rows,) -> (rows, size)."""
        position = torch.arange(int(lengths.max()) + 2, device=ids.device)
        ends = lengths.unsqueeze(1) + 1
        inside = (position > 0) & (position < ends)
        padded = torch.full(inside.shape, self.padding, device=ids.device)
        padded[:, 0] = self.first
        padded.scatter_(1, ends, self.last)
        padded[inside] = ids[(starts.unsqueeze(1) + position - 1)[inside]]
        mask = position <= ends
        encoded: Tensor = self.body(padded, mask.long())
        if not self.mean:
            return encoded[:, 0]
        weight = mask.unsqueeze(2).to(encoded.dtype)
        return (encoded * weight).sum(1) / weight.sum(1)


def _load(folder: str | None) -> tuple[Any, Any]:
    """Returns the encoder and its tokenizer, read from local files only."""
    if folder is None:
        raise ValueError("folder: pretrained_text needs the folder of an encoder: set data.wordpiece=DIR.")
    if not Path(folder).is_dir():
        raise ValueError(f"folder={folder}: no such folder.")
    try:
        import transformers  # here, because it is optional and slow to import
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
    except Exception as error:  # transformers raises errors of many types
        raise ValueError(
            f"folder={folder}: has no encoder that transformers can load: {type(error).__name__}: {error}"
        ) from error
    wrong = [f"{name} {tuple(given)} instead of {tuple(own)}" for name, given, own in facts["mismatched_keys"]]
    wrong += [f"{name} is missing" for name in facts["missing_keys"] if not name.startswith("pooler.")]
    if wrong:
        more = f" and {len(wrong) - MAX_NAMES} more" if len(wrong) > MAX_NAMES else ""
        raise ValueError(
            f"folder={folder}: its weights do not match its config.json: {', '.join(sorted(wrong)[:MAX_NAMES])}{more}."
        )
    if hasattr(model, "pooler"):
        model.pooler = nn.Identity()  # a layer on the first token that is not used here
    log.info("encoder: %s of %s, %d layers", type(model).__name__, folder, len(_layers(model)))
    return model, tokenizer


def _check_tokens(text: TextSpec, tokenizer: Any, where: str) -> None:
    """Raises ValueError if the tokens of the column are not those of the encoder."""
    known = tokenizer.get_vocab()
    if any(known.get(token) != index for index, token in enumerate(text.tokens)):
        raise ValueError(
            f"{where}: the tokens of {text.name!r} are not those of this encoder: set data.wordpiece to its folder."
        )
    special = ("cls_token", "sep_token", "pad_token", "unk_token")
    if missing := [token for token in special if getattr(tokenizer, f"{token}_id") is None]:
        raise ValueError(f"{where}: its tokenizer has no {' and no '.join(missing)}; use an encoder like BERT.")


def _layers(model: Any) -> nn.ModuleList:
    """Returns the list of layers, whose name depends on the encoder."""
    count = model.config.num_hidden_layers
    return next(each for each in model.modules() if isinstance(each, nn.ModuleList) and len(each) == count)


def _freeze(model: Any, freeze: bool | int) -> None:
    """Freezes the whole encoder, or the embeddings and this number of layers."""
    layers = _layers(model)
    if not 0 <= freeze <= len(layers):
        raise ValueError(f"freeze={freeze}: must be true, false or a number of layers up to {len(layers)}.")
    if freeze:
        model.requires_grad_(False)
    if freeze is not True and freeze > 0:
        for layer in layers[int(freeze) :]:
            layer.requires_grad_(True)
