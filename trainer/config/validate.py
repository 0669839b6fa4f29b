"""The check of a composed config: every key against the signature of its target, then values and combinations."""

import dataclasses
from typing import Any

from trainer.config.errors import did_you_mean
from trainer.config.schema import ALLOWED_TARGETS, DEFAULTED, DIRECTIVES, PARTIAL, PASSED, Root
from trainer.config.signature_cache import SignatureCache
from trainer.config.signatures import (
    MISSING,
    Arguments,
    Node,
    dataclass_of,
    describe,
    fits,
    fits_container,
    is_node,
    item_hint,
    literals,
    options,
    show,
)
from trainer.config.validate_values import validate_combinations, validate_values


def validate_config(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns all problems of a plain config: the full key of each, and what is wrong."""
    checker = KeyChecker(config)
    checker.check_fields(config, Arguments.of_dataclass(Root), "")
    checker.cache.save()
    return [*checker.problems, *validate_values(config), *validate_combinations(config, checker.signatures)]


class KeyChecker:
    """Compares a plain config with its schema, and each node with the signature of its target.

    Collects mistakes in `problems`, and the signatures of the nodes by full key in `signatures`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        extra = config.get("allowed_targets")
        own = [str(name).rstrip(".") for name in extra] if isinstance(extra, list) else []
        self.allowed = [*ALLOWED_TARGETS, *own]
        self.problems: list[tuple[str, str]] = []
        self.signatures: dict[str, Arguments] = {}
        self.cache = SignatureCache()

    def check_fields(
        self, given: dict[str, Any], signature: Arguments, key: str, passed: frozenset[str] = frozenset()
    ) -> None:
        """Checks the items of a mapping against a signature; `passed` are the arguments that the run passes."""
        for name, value in given.items():
            full = _join(key, name)
            if name in passed:
                self._report(full, "is filled in by the run: leave it out.")
            elif name in signature.hints:
                self.check_value(value, signature.hints[name], full)
            elif not signature.open:
                known = sorted(signature.hints.keys() - passed)
                choices = f" Known are {', '.join(known)}." if known else ""
                self._report(full, "unknown key." + (did_you_mean(str(name), known) or choices))
            else:
                self.check_value(value, Any, full)
        for name in sorted(signature.required - passed - given.keys()):
            hint = signature.hints[name]
            self._report(_join(key, name), "must be given" + ("." if hint is Any else f", {describe(hint)}."))

    def check_value(self, value: Any, hint: Any, key: str) -> None:
        """Checks a value against a type hint, recursively."""
        if value == MISSING:
            self._report(key, f"must be given, {describe(hint)}: {key}=VALUE.")
        elif is_node(value):
            self.check_node(value, key)
        elif isinstance(value, dict) and (schema := dataclass_of(hint)) is not None:
            self.check_fields(value, Arguments.of_dataclass(schema), key)
        elif isinstance(value, dict) and value and Node in options(hint):
            for name in value:
                self._report(_join(key, name), f"is not used: {key} has no _target_. Choose one with {key}=NAME.")
        elif isinstance(value, dict | list) and fits_container(value, hint):
            for name, child in value.items() if isinstance(value, dict) else enumerate(value):
                self.check_value(child, item_hint(hint, value, name), _join(key, name))
        elif not fits(value, hint):
            near = did_you_mean(value, literals(hint)) if isinstance(value, str) else ""
            self._report(key, f"must be {describe(hint)}; it is {show(value)}.{near}")

    def check_node(self, node: dict[str, Any], key: str) -> None:
        """Checks a node against the signature of its target."""
        target = node["_target_"]
        for name, hint in DIRECTIVES.items():
            if name in node:
                self.check_value(node[name], hint, _join(key, name))
        partial = node.get("_partial_") is True
        if key in PARTIAL:
            if not partial:
                self._report(_join(key, "_partial_"), "must be true: the run itself calls it.")
        elif partial and ("." not in key or key.rpartition(".")[0] in ("callbacks", "logger")):
            self._report(_join(key, "_partial_"), "must be false: the run needs the built object.")
        if not isinstance(target, str) or target == MISSING:
            return
        try:
            signature = self._signature(target)
        except ImportError as error:
            self._report(_join(key, "_target_"), str(error))
            return
        self.signatures[key] = signature
        signature = dataclasses.replace(signature, required=signature.required - DEFAULTED.get(key, frozenset()))
        given = {name: value for name, value in node.items() if name not in DIRECTIVES}
        self.check_fields(given, signature, key, PASSED.get(key, frozenset()))

    def _signature(self, target: str) -> Arguments:
        """Raises ImportError where a target is not allowed or does not exist."""
        package = target.partition(".")[0]
        if "." not in target:
            raise ImportError(f"must be a module and a name in it; it is {show(target)}.")
        if not any(f"{target}.".startswith(f"{prefix}.") for prefix in self.allowed):
            allowed = f"Allowed are {', '.join(self.allowed)}; allowed_targets=[{package}] adds to them."
            near = did_you_mean(package, self.allowed)
            raise ImportError(f"{target} is outside the allowed packages.{near} {allowed}")
        return self.cache.arguments(target)

    def _report(self, key: str, what: str) -> None:
        self.problems.append((key, what))


def _join(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)
