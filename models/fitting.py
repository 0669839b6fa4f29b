"""Which networks fit which columns, and the sentence for a network that does not fit."""

from collections.abc import Sequence
from typing import Literal

from datamodules.schema import InputSpec

Part = Literal["table", "text", "image"]
"""What networks tell apart: numbers and categories (dates among them), texts, images."""

_WORDS: dict[Part, str] = {"table": "numbers and categories", "text": "texts", "image": "images"}
_FITTING: dict[Part, str] = {
    "table": "linear, mlp, resnet, tabm, realmlp, ft_transformer or tree",
    "text": "text_transformer, linear or mlp",
    "image": "cnn, resnet18, torchvision or fusion",
}


def refuse_columns(spec: InputSpec, network: str, takes: Sequence[Part], needs: Part | None = None) -> None:
    """Raises ValueError where `spec` has other parts than the network `takes`, none at all, or not the one it `needs`.

    The message says what there is, which networks fit that, and how a column is left out or becomes another kind.
    """
    there: list[Part] = []
    if spec.numbers or spec.categories:
        there.append("table")
    if spec.texts:
        there.append("text")
    if spec.images:
        there.append("image")
    if there and set(there) <= set(takes) and (needs is None or needs in there):
        return
    claim = f"takes {_listed(takes)} alone" if needs is None else f"needs {_WORDS[needs]}"
    if not there:
        raise ValueError(
            f"model={network} {claim}, and there is no column to learn from: data.columns={{NAME: KIND}} says what a"
            " column is."
        )
    message = f"model={network} {claim}, and there are {_listed(there)}: choose model={_fitting(there)}"
    wanted = set(takes) if needs is None else {needs}
    if wanted & set(there):
        message += ", or leave columns out with data.columns={NAME: drop}"
    elif "text" in wanted:
        message += ", or say which column is a text with data.columns={NAME: text}"
    raise ValueError(f"{message}.")


def _fitting(there: Sequence[Part]) -> str:
    if len(there) == 1:
        return _FITTING[there[0]]
    return "fusion or mlp" if "image" in there else "text_transformer, linear or mlp"


def _listed(parts: Sequence[Part]) -> str:
    words = [_WORDS[part] for part in parts]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
