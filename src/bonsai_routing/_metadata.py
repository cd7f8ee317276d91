"""The metadata of endpoints and adapters: the user's own JSON values, which never change."""

import math
from collections.abc import Mapping
from typing import Any, NoReturn

from bonsai_routing._checks import key_path, short_repr

__all__ = ["EMPTY", "FrozenDict", "freeze", "merge", "thaw"]

# How deep mappings and lists may be nested, the metadata itself included.
_LEVELS = 32


def _refuse(*arguments: object, **named: object) -> NoReturn:
    raise TypeError("this dictionary cannot be changed; make a new one from it")


class FrozenDict(dict[str, Any]):
    """A dictionary that cannot be changed. If its values are hashable, it is hashable.

    A subclass of ``dict``, because ``json`` writes no other mappings.
    """

    __slots__ = ()

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[object, ...]:
        # By default, copy and pickle fill an empty dictionary item by item.
        return FrozenDict, (dict(self),)


EMPTY: Mapping[str, Any] = FrozenDict()


def freeze(argument: str, value: object) -> Mapping[str, Any]:
    """Return a mapping of JSON values with every part frozen: mappings as ``FrozenDict``, lists as tuples.

    Raises ``TypeError`` or ``ValueError`` for what JSON cannot hold. The message has the path of the value.
    """
    if type(value) is FrozenDict:
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"{argument} must be a mapping, not {short_repr(value)}")
    return _freeze_mapping(argument, value, 1)


def merge(base: Mapping[str, Any], own: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return frozen metadata with the keys of both. If both have a key, the value of *own* counts."""
    return FrozenDict({**base, **own}) if base and own else own or base


def thaw(value: object) -> object:
    """Return a frozen value with new dictionaries and lists in it."""
    if isinstance(value, FrozenDict):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [thaw(item) for item in value]
    return value


def _freeze(path: str, value: object, level: int) -> object:
    """Return a value at *path* frozen. *level* is its own level if it is a mapping or a list."""
    if value is None or isinstance(value, bool):
        return value
    # Of a subclass, such as an enumeration, only the plain value is kept.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        # JSON's readers take these, and Python does not write an integer of thousands of digits.
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{path} must be from -2**63 to 2**63 - 1, not {short_repr(value)}")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{path} must be a finite number, not {value!r}")
        return float(value)
    if not isinstance(value, (Mapping, list, tuple)):
        rule = "must be a str, int, float, bool, None, list, tuple or mapping"
        raise TypeError(f"{path} {rule}, not {short_repr(value)}")
    # This also ends the walk of a list that contains itself.
    if level > _LEVELS:
        raise ValueError(f"{path} must not be nested more than {_LEVELS} levels deep")
    if isinstance(value, Mapping):
        return _freeze_mapping(path, value, level)
    return tuple([_freeze(f"{path}[{index}]", item, level + 1) for index, item in enumerate(value)])


def _freeze_mapping(path: str, value: Mapping[object, object], level: int) -> FrozenDict:
    items: dict[str, object] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise TypeError(f"{path} must have text for keys, not {short_repr(key)}")
        items[str.__str__(key)] = _freeze(key_path(path, key), item, level + 1)
    return FrozenDict(items)
