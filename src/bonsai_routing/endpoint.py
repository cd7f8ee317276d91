"""A served model and whether it is ready."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Self

from bonsai_routing._checks import check_tokens
from bonsai_routing._metadata import EMPTY, freeze
from bonsai_routing.model_id import ModelId

__all__ = ["EndpointStatus", "ModelEndpoint"]


class EndpointStatus(StrEnum):
    """Whether an endpoint serves requests, and if not, why."""

    READY = "ready"
    """The model is loaded and serves requests."""
    LOADING = "loading"
    """The model is being loaded."""
    ERROR = "error"
    """The model failed and serves nothing."""
    DISABLED = "disabled"
    """An administrator has switched the model off."""

    def is_available(self) -> bool:
        """Return whether requests may be sent to the endpoint, which is only true of ``READY``."""
        return self is EndpointStatus.READY

    @classmethod
    def _missing_(cls, value: object) -> None:
        words = ", ".join(repr(status.value) for status in cls)
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"status must be one of {words}, not {value!r}")


@dataclass(frozen=True, slots=True, init=False, repr=False)
class ModelEndpoint:
    """What one model id serves: a base model, perhaps with a LoRA adapter, and its limits.

    *id* may be given as text.
    *display_name* is for people; ``None`` means the id.
    *base_model* names the weights.
    *adapter* names the LoRA adapter that is applied to them; ``None`` means none.
    *max_context_length* is in tokens.
    *is_default* asks for the requests that name no model.
    *status* may be given as its text.
    *metadata* holds JSON values of your own, which the library does not read. It is frozen: its mappings cannot be
    changed, and its lists become tuples.

    A frozen dataclass that inherits from this class may add fields with default values.
    Raises ``TypeError`` or ``ValueError`` for an argument of the wrong type or value.

    >>> ModelEndpoint("bonsai-8b", "qwen3-8b").with_context_length(32768)
    ModelEndpoint('bonsai-8b', 'qwen3-8b', max_context_length=32768)
    """

    id: ModelId
    # The defaults serve the __init__() that dataclass() writes for a subclass.
    display_name: str = field(default=None, kw_only=True)  # type: ignore[assignment]
    description: str = field(default="", kw_only=True)
    base_model: str
    adapter: str | None = field(default=None, kw_only=True)
    max_context_length: int = field(default=4096, kw_only=True)
    is_default: bool = field(default=False, kw_only=True)
    status: EndpointStatus = field(default=EndpointStatus.READY, kw_only=True)
    metadata: Mapping[str, Any] = field(default=EMPTY, kw_only=True)

    def __init__(
        self,
        id: ModelId | str,
        base_model: str,
        *,
        display_name: str | None = None,
        description: str = "",
        adapter: str | None = None,
        max_context_length: int = 4096,
        is_default: bool = False,
        status: EndpointStatus | str = EndpointStatus.READY,
        metadata: Mapping[str, Any] = EMPTY,
    ) -> None:
        # A frozen instance can only be filled through ``object``.
        put = object.__setattr__
        put(self, "id", id)
        put(self, "display_name", display_name)
        put(self, "description", description)
        put(self, "base_model", base_model)
        put(self, "adapter", adapter)
        put(self, "max_context_length", max_context_length)
        put(self, "is_default", is_default)
        put(self, "status", status)
        put(self, "metadata", metadata)
        self.__post_init__()

    def __post_init__(self) -> None:
        put = object.__setattr__
        if isinstance(self.id, str):
            put(self, "id", ModelId(self.id))
        elif not isinstance(self.id, ModelId):
            raise TypeError(f"id must be a ModelId or a str, not {self.id!r}")
        if self.display_name is None:
            put(self, "display_name", self.id.value)
        for name in ("display_name", "description", "base_model"):
            text = getattr(self, name)
            if not isinstance(text, str):
                raise TypeError(f"{name} must be a str, not {text!r}")
        if not (self.adapter is None or isinstance(self.adapter, str)):
            raise TypeError(f"adapter must be a str or None, not {self.adapter!r}")
        if not isinstance(self.is_default, bool):
            raise TypeError(f"is_default must be a bool, not {self.is_default!r}")
        check_tokens("max_context_length", self.max_context_length)
        put(self, "status", EndpointStatus(self.status))
        put(self, "metadata", freeze("metadata", self.metadata))

    def __repr__(self) -> str:
        shown = [repr(self.id.value), repr(self.base_model)]
        for each in fields(self):
            value = getattr(self, each.name)
            default = self.id.value if each.name == "display_name" else each.default
            if each.repr and each.name not in ("id", "base_model") and value != default:
                shown.append(f"{each.name}={str(value) if each.name == 'status' else value!r}")
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def with_adapter(self, adapter: str) -> Self:
        """Return this endpoint with a LoRA adapter of that name; the id stays."""
        if adapter is None:
            raise TypeError("adapter must be a str, not None")
        return replace(self, adapter=adapter)

    def with_description(self, description: str) -> Self:
        """Return this endpoint with another description."""
        return replace(self, description=description)

    def with_context_length(self, max_context_length: int) -> Self:
        """Return this endpoint with another context length, in tokens."""
        return replace(self, max_context_length=max_context_length)

    def set_default(self) -> Self:
        """Return this endpoint marked as the default, which takes effect when it is registered."""
        return replace(self, is_default=True)
