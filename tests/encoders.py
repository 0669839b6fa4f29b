"""Small random encoders in folders as transformers writes them, for tests of the code that reads them."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def transformers() -> ModuleType:
    """Returns the package; skips the test if it is not installed."""
    package: ModuleType = pytest.importorskip("transformers", reason="needs transformers: uv sync --extra text")
    package.utils.logging.disable_progress_bar()
    return package


def write_tokenizer(folder: Path, tokens: Sequence[str], **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **config}))
    return folder


def write_encoder(folder: Path, tokens: Sequence[str], family: str = "Bert", **config: Any) -> Path:
    """Writes a tokenizer, and an encoder with two layers of width 32."""
    special = {f"{name}_token": token for name, token in zip(("pad", "unk", "cls", "sep"), SPECIAL, strict=False)}
    write_tokenizer(folder, tokens, tokenizer_class=f"{family}Tokenizer", **special)
    sizes = {"vocab_size": len(tokens), "max_position_embeddings": 128, "pad_token_id": 0}
    if family == "DistilBert":
        sizes |= {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    else:
        sizes |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    settings = getattr(transformers(), f"{family}Config")(**{**sizes, **config})
    transformers().AutoModel.from_config(settings).save_pretrained(folder)
    return folder


def vocabulary(texts: Iterable[str], size: int = 2000) -> list[str]:
    """Returns a vocabulary of texts: their characters, alone and inside words, and their most frequent words."""
    words = Counter(word for text in texts for word in re.findall(r"[a-z]+|[^a-z\s]", text.lower()))
    characters = sorted({character for word in words for character in word})
    whole = dict.fromkeys([*characters, *(word for word, _ in words.most_common(size))])
    return [*SPECIAL, *whole, *(f"##{character}" for character in characters)]
