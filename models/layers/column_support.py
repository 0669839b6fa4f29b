"""Which networks fit which columns, and the sentence for one that does not."""

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
"""Those to recommend: what each is good for, and what must be there."""


def refuse_columns(spec: InputSpec, network: str, takes: Sequence[Kind], needs: Kind | None = None) -> None:
    """Raises ValueError where `spec` has a column that is none of what the network `takes`, or none that it `needs`.

    Kinds are number, category, text and image; what it needs may be any of those that it takes unless it is said.
    The message says what there is, which networks fit that, and how a column is left out or becomes another kind.
    """
    columns: dict[Kind, list[str]] = {
        "number": list(spec.numbers),
        "category": [name for name, _ in spec.categories],
        "text": [text.name for text in spec.texts],
        "image": [image.name for image in spec.images],
    }
    there = {kind for kind in _PLURALS if columns[kind]}
    if _fits(there, takes, needs):
        return
    if lacks := needs is not None and needs not in there:
        claim = f"{network} needs {_PLURALS[needs]}"
    else:
        claim = f"{network} takes {_joined([_PLURALS[kind] for kind in takes], 'and')} alone"
    if not there:
        raise ValueError(
            f"{claim}, and there is no column to learn from: data.columns='{{NAME: KIND}}' says what a column is."
        )
    kinds = _joined([_PLURALS[kind] for kind in _PLURALS if kind in there], "and")
    fitting = _joined([name for name, (good_for, must) in _NETWORKS.items() if _fits(there, good_for, must)], "or")
    message = f"{claim}, and there are {kinds}: choose model={fitting}"
    if not lacks and there & set(takes):
        others = [name for kind in _PLURALS if kind not in takes for name in columns[kind]]
        message += f", or leave columns out with {drop_setting(others)}"
    elif "text" in (needs, *takes):
        message += ", or say which column is a text with data.columns='{NAME: text}'"
    raise ValueError(f"{message}.")


def _fits(there: set[Kind], takes: Iterable[Kind], needs: Kind | None) -> bool:
    return bool(there) and there <= set(takes) and (needs is None or needs in there)


def _joined(words: Sequence[str], last: str) -> str:
    return f" {last} ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
