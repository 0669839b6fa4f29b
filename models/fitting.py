"""Which networks fit which columns, and the sentence for one that does not."""

from collections.abc import Iterable, Sequence

from datamodules.schema import InputSpec, Kind

_PLURALS: dict[Kind, str] = {"number": "numbers", "category": "categories", "text": "texts", "image": "images"}


def refuse_columns(spec: InputSpec, network: str, takes: Sequence[Kind], needs: Kind | None = None) -> None:
    """Raises ValueError where `spec` has a column that is none of what the network `takes`, or none that it `needs`.

    Kinds are number, category, text and image; what it needs may be any of those that it takes unless it is said.
    The message says what there is, which networks fit that, and how a column is left out or becomes another kind.
    """
    columns = {"number": spec.numbers, "category": spec.categories, "text": spec.texts, "image": spec.images}
    there = {kind for kind in _PLURALS if columns[kind]}
    if there and there <= set(takes) and (needs is None or needs in there):
        return
    if lacks := needs is not None and needs not in there:
        claim = f"{network} needs {_PLURALS[needs]}"
    else:
        claim = f"{network} takes {_listed(takes)} alone"
    if not there:
        raise ValueError(
            f"{claim}, and there is no column to learn from: data.columns={{NAME: KIND}} says what a column is."
        )
    message = f"{claim}, and there are {_listed(there)}: choose model={_fitting(there)}"
    if not lacks and there & set(takes):
        message += ", or leave columns out with data.columns={NAME: drop}"
    elif "text" in (needs, *takes):
        message += ", or say which column is a text with data.columns={NAME: text}"
    raise ValueError(f"{message}.")


def _fitting(there: set[Kind]) -> str:
    if there == {"image"}:
        return "cnn, resnet18, torchvision or fusion"
    if "image" in there:
        return "fusion or mlp"
    if there == {"text"}:
        return "text_transformer, pretrained_text, linear or mlp"
    if "text" in there:
        return "mlp, linear or text_transformer"
    return "linear, mlp, resnet, tabm, realmlp, ft_transformer or tree"


def _listed(kinds: Iterable[Kind]) -> str:
    *others, last = [plural for kind, plural in _PLURALS.items() if kind in kinds]
    return f"{', '.join(others)} and {last}" if others else last
