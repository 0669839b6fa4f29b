"""Kinds of columns that networks support, and the error for columns that they do not."""

from collections.abc import Iterable, Sequence

from datamodules.schema import InputSpec, Kind, drop_setting

_PLURALS: dict[Kind, str] = {"number": "numbers", "category": "categories", "text": "texts", "image": "images"}
_TABLE: tuple[Kind, ...] = ("number", "category")
_TEXTS: tuple[Kind, ...] = (*_TABLE, "text")
_NETWORKS: dict[str, tuple[Sequence[Kind], Kind | None]] = {
    "mlp": (_TEXTS, None),
    "linear": (_TEXTS, None),
    "tabm": (_TEXTS, None),
    "realmlp": (_TEXTS, None),
    "resnet": (_TEXTS, None),
    "ft_transformer": (_TEXTS, None),
    "tree": (_TABLE, None),
    "text_transformer": (_TEXTS, "text"),
    "pretrained_text": (("text",), "text"),
    "cnn": (("image",), "image"),
    "resnet18": (("image",), "image"),
    "torchvision": (("image",), "image"),
    "fusion": ((*_TEXTS, "image"), "image"),
}
"""Networks to recommend: the kinds of columns that each supports, and the kind that it needs."""


def refuse_columns(spec: InputSpec, network: str, takes: Sequence[Kind], needs: Kind | None = None) -> None:
    """Raises ValueError if `spec` has a kind of column that the network does not take, or lacks one it `needs`.

    If `needs` is None, any kind in `takes` will do. The message names the present kinds, the networks that support
    them, and the setting that drops columns or changes their kind.
    """
    columns: dict[Kind, list[str]] = {
        "number": list(spec.numbers),
        "category": [name for name, _ in spec.categories],
        "text": [text.name for text in spec.texts],
        "image": [image.name for image in spec.images],
    }
    present = {kind for kind in _PLURALS if columns[kind]}
    if _fits(present, takes, needs):
        return
    if lacks := needs is not None and needs not in present:
        claim = f"{network} needs {_PLURALS[needs]}"
    else:
        claim = f"{network} supports only {_joined([_PLURALS[kind] for kind in takes], 'and')}"
    if not present:
        raise ValueError(f"{claim}, but there are no input columns: set data.columns='{{NAME: KIND}}'.")
    kinds = _joined([_PLURALS[kind] for kind in _PLURALS if kind in present], "and")
    fitting = _joined(
        [name for name, (supported, needed) in _NETWORKS.items() if _fits(present, supported, needed)], "or"
    )
    message = f"{claim}, but there are {kinds}: use model={fitting}"
    if not lacks and present & set(takes):
        others = [name for kind in _PLURALS if kind not in takes for name in columns[kind]]
        message += f", or drop columns with {drop_setting(others)}"
    elif "text" in (needs, *takes):
        message += ", or declare a text column with data.columns='{NAME: text}'"
    raise ValueError(f"{message}.")


def _fits(present: set[Kind], takes: Iterable[Kind], needs: Kind | None) -> bool:
    return bool(present) and present <= set(takes) and (needs is None or needs in present)


def _joined(words: Sequence[str], last: str) -> str:
    return f" {last} ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
