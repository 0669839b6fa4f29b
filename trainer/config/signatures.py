"""What a function takes by name, and whether a plain value fits a type hint."""

import collections.abc
import dataclasses
import functools
import inspect
import json
import operator
import os
import types
import typing
from dataclasses import dataclass, field
from typing import Any

MISSING = "???"


class Node:
    """As a hint: a mapping whose `_target_` says what is called with the other keys."""


@dataclass
class Arguments:
    """What a function takes by name: a hint for each argument, those without a default, and whether it takes any."""

    hints: dict[str, Any] = field(default_factory=dict)
    required: set[str] = field(default_factory=set)
    open: bool = False

    @classmethod
    def of_dataclass(cls, schema: type) -> "Arguments":
        return cls(typing.get_type_hints(schema), {each.name for each in dataclasses.fields(schema)})

    @classmethod
    @functools.cache
    def of(cls, target: Any) -> "Arguments":
        """Those of a function, or of a class; what `**settings` takes is what the base classes take."""
        found = cls()
        if not isinstance(target, type):
            found.open = found._add(target)
            return found
        makers = [vars(base).get("__new__") or vars(base).get("__init__") for base in target.__mro__[:-1]]
        first, *bases = [getattr(maker, "__func__", maker) for maker in makers if maker is not None] or [object]
        found.open = found._add(first)
        required = set(found.required)
        while found.open and bases:
            # The last `*args, **kwargs` of a chain, such as nn.Module's, takes nothing.
            found.open = found._add(bases.pop(0)) and bool(bases)
        found.required = required  # What a base requires is the class's own affair.
        return found

    def _add(self, function: Any) -> bool:
        """Adds arguments not known yet; whether the function takes others beside them."""
        try:
            parameters = inspect.signature(function).parameters
        except ValueError:
            return True
        more = False
        for name, parameter in parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                more = True
            elif parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
                if name in self.hints or name in ("self", "cls"):
                    continue
                self.hints[name] = _hint(function, name)
                if parameter.default is None:
                    self.hints[name] = self.hints[name] | None if self.hints[name] is not Any else Any
                if parameter.default is inspect.Parameter.empty:
                    self.required.add(name)
        return more


def _hint(function: Any, name: str) -> Any:
    """The hint of an argument; Any where there is none, or it has names that exist for type checkers alone."""
    function = inspect.unwrap(function)
    annotations = getattr(function, "__annotations__", {})
    alone = types.SimpleNamespace(__annotations__={name: annotations.get(name, Any)})
    try:
        return typing.get_type_hints(alone, getattr(function, "__globals__", {}))[name]
    except (NameError, TypeError, AttributeError):
        return Any


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of the type; a node fits every type, since its target builds anything."""
    if is_node(value) or any(each is Any or each is object for each in options(hint)):
        return True
    return any(_fits_one(value, each) for each in options(hint))


def _fits_one(value: Any, hint: Any) -> bool:
    kind, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is typing.Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if not isinstance(kind, type):
        return True  # A type variable, a name that cannot be resolved.
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind in (int, bool, str, types.NoneType):
        return type(value) is kind
    if issubclass(kind, os.PathLike):
        return isinstance(value, str)
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return holds(value, hint) and all(fits(child, item_hint(hint, value, at)) for at, child in items)
    return False


def holds(value: dict[str, Any] | list[Any], hint: Any) -> bool:
    """Whether a mapping, or a list of this length, is of the type, whatever is in it."""
    if isinstance(value, dict):
        return any(each is Any or each is object or _takes_dict(each) for each in options(hint))
    return any(
        each is Any or each is object or (_takes_list(each) and _length(each) in (None, len(value)))
        for each in options(hint)
    )


def _length(hint: Any) -> int | None:
    """Of a tuple with a hint a place."""
    arguments = typing.get_args(hint)
    return len(arguments) if typing.get_origin(hint) is tuple and ... not in arguments else None


def item_hint(hint: Any, value: dict[str, Any] | list[Any], at: str | int) -> Any:
    """The hint of an item of a dict or list that fits `hint`."""
    takes = _takes_dict if isinstance(value, dict) else _takes_list
    found = []
    for each in options(hint):
        arguments = [argument for argument in typing.get_args(each) if argument is not ...]
        if takes(each) and arguments:
            found.append(arguments[int(at)] if _length(each) == len(value) else arguments[-1])
    return functools.reduce(operator.or_, found) if found else Any


def _takes_dict(hint: Any) -> bool:
    kind = typing.get_origin(hint) or hint
    return isinstance(kind, type) and issubclass(kind, collections.abc.Mapping)


def _takes_list(hint: Any) -> bool:
    kind = typing.get_origin(hint) or hint
    sequences = (collections.abc.Sequence, collections.abc.Set)
    whole = (collections.abc.Iterable, collections.abc.Collection)
    return isinstance(kind, type) and kind is not str and (issubclass(kind, sequences) or kind in whole)


def options(hint: Any) -> list[Any]:
    """The members of a union, or the hint itself."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [option for each in typing.get_args(hint) for option in options(each)]
    if typing.get_origin(hint) is typing.Annotated:
        return options(typing.get_args(hint)[0])
    return [types.NoneType if hint is None else hint]


def dataclass_of(hint: Any) -> type | None:
    """The dataclass that a hint allows."""
    return next((each for each in options(hint) if dataclasses.is_dataclass(each) and isinstance(each, type)), None)


def literals(hint: Any) -> list[str]:
    """The words that a hint allows."""
    return [str(choice) for each in options(hint) for choice in _choices(each)]


def _choices(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


NOUNS = {
    int: "an integer",
    float: "a number",
    str: "text",
    types.NoneType: "null",
    Node: "a node with _target_",
    Any: "any value",
}


def describe(hint: Any) -> str:
    """What a value must be, in words: `an integer, "auto" or null`."""
    words: list[str] = []
    # A tensor that may be given in code cannot be written in YAML.
    for each in [each for each in options(hint) if getattr(each, "__name__", "") != "Tensor"] or options(hint):
        arguments = [argument for argument in typing.get_args(each) if argument is not ...]
        if _choices(each):
            words += [show(choice) for choice in arguments]
        elif each is bool:
            words += ["true", "false"]
        elif isinstance(typing.get_origin(each) or each, type) and issubclass(
            typing.get_origin(each) or each, os.PathLike
        ):
            words.append(NOUNS[str])
        elif _takes_list(each) or _takes_dict(each):
            kind = "a mapping" if _takes_dict(each) else f"a list of {_length(each)}" if _length(each) else "a list"
            words.append(f"{kind} (each {describe(arguments[-1])})" if arguments else kind)
        else:
            words.append(NOUNS.get(each) or f"a node of {getattr(each, '__name__', each)}")
    words = list(dict.fromkeys(words))
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def show(value: Any) -> str:
    """A value as YAML would write it."""
    return json.dumps(value, ensure_ascii=False)


def is_node(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value
