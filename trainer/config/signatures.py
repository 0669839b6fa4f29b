"""The arguments of functions and classes with their type hints, and checks of plain values against a hint."""

import collections.abc
import dataclasses
import functools
import importlib
import inspect
import json
import operator
import os
import sys
import types
import typing
from dataclasses import dataclass, field
from typing import Any

from trainer.config.errors import did_you_mean

MISSING = "???"
"""A required value that is not given, as OmegaConf writes it."""


class Node:
    """As a hint: a mapping whose `_target_` names a callable that takes the other keys as arguments."""


@dataclass
class Arguments:
    """The keyword arguments of a function or class: a hint for each, the required ones, and whether others are allowed.

    `unsupported` is the class attribute of this name: features that the class does not support
    ("several_processes", "fsdp" or "ensemble") and the reason, a clause to which the check appends the remedy.
    """

    hints: dict[str, Any] = field(default_factory=dict)
    required: set[str] = field(default_factory=set)
    open: bool = False
    unsupported: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_dataclass(cls, schema: type) -> "Arguments":
        """The fields of a dataclass, all required."""
        return cls(typing.get_type_hints(schema), {each.name for each in dataclasses.fields(schema)})

    @classmethod
    @functools.cache
    def of(cls, target: Any) -> "Arguments":
        """The arguments of a function or a class; `**kwargs` of a class stands for those of its base classes."""
        found = cls(unsupported=dict(getattr(target, "unsupported", {})))
        if not isinstance(target, type):
            found.open = found._add(target)
            return found
        constructors = [vars(base).get("__new__") or vars(base).get("__init__") for base in target.__mro__[:-1]]
        first, *bases = [getattr(each, "__func__", each) for each in constructors if each is not None] or [object]
        found.open = found._add(first)
        required = set(found.required)
        while found.open and bases:
            # `**kwargs` of the last base class, such as nn.Module, accepts nothing.
            found.open = found._add(bases.pop(0)) and bool(bases)
        found.required = required  # the class itself passes what its bases require
        return found

    def _add(self, function: Any) -> bool:
        """Adds the arguments that are not known yet; returns whether the function has `**kwargs`."""
        try:
            parameters = inspect.signature(function).parameters
        except ValueError:
            return True
        has_kwargs = False
        for name, parameter in parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                has_kwargs = True
            elif parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
                if name in self.hints or name in ("self", "cls"):
                    continue
                self.hints[name] = _hint(function, name)
                if parameter.default is None:
                    self.hints[name] = self.hints[name] | None if self.hints[name] is not Any else Any
                if parameter.default is inspect.Parameter.empty:
                    self.required.add(name)
        return has_kwargs


def _hint(function: Any, name: str) -> Any:
    """The hint of an argument; Any if it has none, or if the hint has names defined only for type checkers."""
    function = inspect.unwrap(function)
    annotations = getattr(function, "__annotations__", {})
    holder = types.SimpleNamespace(__annotations__={name: annotations.get(name, Any)})
    try:
        return typing.get_type_hints(holder, getattr(function, "__globals__", {}))[name]
    except (NameError, TypeError, AttributeError):
        return Any


def fits(value: Any, hint: Any) -> bool:
    """Returns whether a plain value is of the type. A node fits every type: its target may build anything."""
    if is_node(value) or any(each is Any or each is object for each in options(hint)):
        return True
    return any(_fits_one(value, each) for each in options(hint))


def _fits_one(value: Any, hint: Any) -> bool:
    kind, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is typing.Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if not isinstance(kind, type):
        return True  # a type variable, or a name that cannot be resolved
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind in (int, bool, str, types.NoneType):
        return type(value) is kind
    if issubclass(kind, os.PathLike):
        return isinstance(value, str)
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return fits_container(value, hint) and all(fits(child, item_hint(hint, value, at)) for at, child in items)
    return False


def fits_container(value: dict[str, Any] | list[Any], hint: Any) -> bool:
    """Returns whether a mapping, or a list of this length, is of the type; its items are not checked."""
    if isinstance(value, dict):
        return any(each is Any or each is object or _takes_dict(each) for each in options(hint))
    return any(
        each is Any or each is object or (_takes_list(each) and _length(each) in (None, len(value)))
        for each in options(hint)
    )


def _length(hint: Any) -> int | None:
    """The length of a tuple with one hint per item; None for other hints."""
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
    """The first dataclass that a hint allows, if any."""
    return next((each for each in options(hint) if dataclasses.is_dataclass(each) and isinstance(each, type)), None)


def literals(hint: Any) -> list[str]:
    """The literal values that a hint allows, as text."""
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
    """Describes the values that a hint allows: `an integer, "auto" or null`."""
    words: list[str] = []
    # A tensor can be given in code, but not written in YAML.
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
    """A value as YAML writes it."""
    return json.dumps(value, ensure_ascii=False)


def is_node(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


def locate(path: str) -> Any:
    """Imports the class or function of this dotted name. Raises ImportError with the cause in its message."""
    from trainer.config.fast_imports import fast_imports  # here, because cached signatures do not need it

    module, _, name = path.rpartition(".")
    try:
        with fast_imports():
            found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # importing a module may raise anything
        raise ImportError(f"cannot import {module}: {type(error).__name__}: {error}") from error
    if not callable(found):
        near = did_you_mean(name, dir(sys.modules[module]))
        raise ImportError(f"{module} has no class or function {name}.{near}")
    return found
