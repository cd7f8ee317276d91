"""The names under which models are served."""

from dataclasses import dataclass

__all__ = ["ModelId"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ModelId:
    """The name of a served model: ``base`` or ``base:adapter``.

    Any text is a valid id, the empty text included.
    An id equals its text and hashes like it, so either finds an entry of a dictionary that the other is a key of.
    Where only a ``str`` will do, such as in JSON, use ``str(id)``.
    Raises ``TypeError`` when *value* is not a ``str``.

    >>> ModelId("bonsai-8b:code").adapter_name()
    'code'
    >>> ModelId("bonsai-8b") == "bonsai-8b"
    True
    """

    value: str

    def __post_init__(self) -> None:
        if not isinstance(self.value, str):
            raise TypeError(f"value must be a str, not {self.value!r}")

    def __str__(self) -> str:
        return self.value

    def __repr__(self) -> str:
        return f"ModelId({self.value!r})"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ModelId):
            return self.value == other.value
        if isinstance(other, str):
            return self.value == other
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.value)

    def as_str(self) -> str:
        """Return the id as text."""
        return self.value

    def is_base(self) -> bool:
        """Return whether the id names a base model: whether it has no colon."""
        return ":" not in self.value

    def adapter_name(self) -> str | None:
        """Return the part after the first colon, or ``None`` for a base model.

        ``"base:"`` names the adapter ``""``, which is not the same as no adapter.
        """
        _, colon, adapter = self.value.partition(":")
        return adapter if colon else None
