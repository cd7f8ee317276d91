"""A served model and whether it is ready."""

from dataclasses import dataclass, field, fields, replace
from enum import StrEnum

from bonsai_routing._checks import check_tokens
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
        """Return whether requests may be sent to the endpoint: only when it is ready."""
        return self is READY

    @classmethod
    def _missing_(cls, value: object) -> None:
        words = ", ".join(repr(status.value) for status in cls)
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"status must be one of {words}, not {value!r}")


# A global name is found in a fraction of the time of an attribute of the enum.
READY = EndpointStatus.READY


@dataclass(frozen=True, slots=True, init=False, repr=False)
class ModelEndpoint:
    """What one model id serves: a base model, perhaps with a LoRA adapter, and its limits.

    *id* may be given as text.
    *display_name* is for people; ``None`` means the id.
    *base_model* names the weights.
    *adapter* names the LoRA adapter applied to them; ``None`` means none.
    *max_context_length* is in tokens.
    *is_default* asks for requests that name no model.
    *status* may be given as its text.

    Raises ``TypeError`` or ``ValueError`` for an argument of the wrong type or value.

    >>> ModelEndpoint("bonsai-8b", "qwen3-8b").with_context_length(32768)
    ModelEndpoint('bonsai-8b', 'qwen3-8b', max_context_length=32768)
    """

    id: ModelId
    display_name: str = field(kw_only=True)
    description: str = field(kw_only=True)
    base_model: str
    adapter: str | None = field(kw_only=True)
    max_context_length: int = field(kw_only=True)
    is_default: bool = field(kw_only=True)
    status: EndpointStatus = field(kw_only=True)

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
    ) -> None:
        if isinstance(id, str):
            id = ModelId(id)
        elif not isinstance(id, ModelId):
            raise TypeError(f"id must be a ModelId or a str, not {id!r}")
        if display_name is None:
            display_name = id.value
        for name, text in (("display_name", display_name), ("description", description), ("base_model", base_model)):
            if not isinstance(text, str):
                raise TypeError(f"{name} must be a str, not {text!r}")
        if not (adapter is None or isinstance(adapter, str)):
            raise TypeError(f"adapter must be a str or None, not {adapter!r}")
        if not isinstance(is_default, bool):
            raise TypeError(f"is_default must be a bool, not {is_default!r}")
        # A frozen instance can be filled through ``object`` alone.
        put = object.__setattr__
        put(self, "id", id)
        put(self, "display_name", display_name)
        put(self, "description", description)
        put(self, "base_model", base_model)
        put(self, "adapter", adapter)
        put(self, "max_context_length", check_tokens("max_context_length", max_context_length))
        put(self, "is_default", is_default)
        put(self, "status", EndpointStatus(status))

    def __repr__(self) -> str:
        plain = ModelEndpoint(self.id, self.base_model)
        shown = [repr(self.id.value), repr(self.base_model)]
        for name in (item.name for item in fields(self)):
            value = getattr(self, name)
            if value != getattr(plain, name):
                shown.append(f"{name}={str(value)!r}" if name == "status" else f"{name}={value!r}")
        return f"ModelEndpoint({', '.join(shown)})"

    def with_adapter(self, adapter: str) -> "ModelEndpoint":
        """Return this endpoint with a LoRA adapter of that name; the id stays."""
        if adapter is None:
            raise TypeError("adapter must be a str, not None")
        return replace(self, adapter=adapter)

    def with_description(self, description: str) -> "ModelEndpoint":
        """Return this endpoint with another description."""
        return replace(self, description=description)

    def with_context_length(self, max_context_length: int) -> "ModelEndpoint":
        """Return this endpoint with another context length, in tokens."""
        return replace(self, max_context_length=max_context_length)

    def set_default(self) -> "ModelEndpoint":
        """Return this endpoint marked as the default, which takes effect when it is registered."""
        return replace(self, is_default=True)


# The setters of the slots themselves: they fill a frozen instance in half the time of object.__setattr__().
(
    _set_id,
    _set_display_name,
    _set_description,
    _set_base_model,
    _set_adapter,
    _set_max_context_length,
    _set_is_default,
    _set_status,
) = (vars(ModelEndpoint)[item.name].__set__ for item in fields(ModelEndpoint))


def with_status(endpoint: ModelEndpoint, status: EndpointStatus) -> ModelEndpoint:
    """Return *endpoint* with another status, in a fifth of the time of ``replace``, which checks all fields again."""
    if type(endpoint) is not ModelEndpoint:
        return replace(endpoint, status=status)
    changed = object.__new__(ModelEndpoint)
    _set_id(changed, endpoint.id)
    _set_display_name(changed, endpoint.display_name)
    _set_description(changed, endpoint.description)
    _set_base_model(changed, endpoint.base_model)
    _set_adapter(changed, endpoint.adapter)
    _set_max_context_length(changed, endpoint.max_context_length)
    _set_is_default(changed, endpoint.is_default)
    _set_status(changed, status)
    return changed
