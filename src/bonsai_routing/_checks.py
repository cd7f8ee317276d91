"""Checks of arguments that several modules need."""

import json
import math

from bonsai_routing.model_id import ModelId

__all__ = [
    "check_callable",
    "check_name",
    "check_seconds",
    "check_tokens",
    "is_finite",
    "is_rank",
    "key_path",
    "make_line",
    "short_repr",
    "shorten",
]


def check_callable(argument: str, function: object) -> None:
    """Raise ``TypeError`` when *function* is neither callable nor ``None``."""
    if not (function is None or callable(function)):
        raise TypeError(f"{argument} must be a callable or None, not {function!r}")


def check_name(argument: str, name: object) -> str:
    """Return the name of a model as text. Raise ``TypeError`` when *name* is neither a ``str`` nor a ``ModelId``."""
    if isinstance(name, str):
        return name
    if isinstance(name, ModelId):
        return name.value
    raise TypeError(f"{argument} must be a str or a ModelId, not {name!r}")


def check_tokens(argument: str, tokens: int) -> int:
    """Return *tokens*. Raise ``TypeError`` or ``ValueError`` when it is not a whole number of tokens, 0 or more."""
    if not isinstance(tokens, int) or isinstance(tokens, bool):
        raise TypeError(f"{argument} must be an int, not {short_repr(tokens)}")
    if tokens < 0:
        raise ValueError(f"{argument} must be 0 tokens or more, not {short_repr(tokens)}")
    return tokens


def check_seconds(argument: str, seconds: object) -> None:
    """Raise ``TypeError`` or ``ValueError`` when *seconds* is not a finite number of 0 seconds or more."""
    if not (is_finite(seconds) and seconds >= 0):  # type: ignore[operator]
        kind = ValueError if type(seconds) in (int, float) else TypeError
        raise kind(f"{argument} must be a finite number of 0 seconds or more, not {seconds!r}")


def is_finite(value: object) -> bool:
    """Return whether *value* is an ``int`` or a ``float``, not a ``bool``, that is finite when converted to a float."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        # The value is an int that is too large for a float.
        return False


def is_rank(value: object) -> bool:
    """Return whether *value* is a rank of a LoRA adapter: an ``int`` of 1 or more that a float can hold."""
    return isinstance(value, int) and is_finite(value) and value >= 1


def key_path(path: str, key: str) -> str:
    """Return the path of a key in the table at *path*. The key is quoted if TOML requires quotes, and cut if long."""
    if not (key.isascii() and key.replace("-", "").replace("_", "").isalnum()):
        key = json.dumps(key, ensure_ascii=not key.isprintable())
    return f"{path}.{shorten(key)}" if path else shorten(key)


def short_repr(value: object) -> str:
    """Return the ``repr()`` of a value, cut if it is long, or the type if Python cannot make the ``repr()``."""
    try:
        return shorten(repr(value))
    except (ValueError, RecursionError):
        return f"a value of type {type(value).__name__} that cannot be shown"


def shorten(text: str, longest: int = 120) -> str:
    """Return *text*, or its beginning and its end with three dots between them if it is longer than *longest*.

    By default, a line of 500 characters has room for three such texts and a rule.
    """
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}...{text[-half:]}"


def make_line(text: str) -> str:
    """Return *text* as a line of at most 503 characters that is safe to print: other characters are escaped."""
    if not text.isprintable():
        text = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
    return shorten(text, 500)
