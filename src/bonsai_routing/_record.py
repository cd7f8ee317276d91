"""What a registry knows about one registration."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, NamedTuple

from bonsai_routing._checks import check_seconds
from bonsai_routing._metadata import EMPTY, merge
from bonsai_routing.endpoint import EndpointStatus, ModelEndpoint
from bonsai_routing.errors import ModelNotReadyError
from bonsai_routing.lora import LoraAdapter

__all__ = ["Note", "Own", "Record", "make_note", "reason_of"]

_READY = EndpointStatus.READY


class Note(NamedTuple):
    """What a server has said about a status: a reason, for people, and when to try again, in seconds."""

    reason: str | None
    retry_after: float | None


def make_note(reason: str | None, retry_after: float | None) -> Note | None:
    """Return a note with checked contents; ``None`` if it would be empty."""
    if reason is None and retry_after is None:
        return None
    if not (reason is None or isinstance(reason, str)):
        raise TypeError(f"reason must be a str or None, not {reason!r}")
    if retry_after is not None:
        check_seconds("retry_after", retry_after)
    return Note(reason, retry_after)


def reason_of(error: BaseException) -> str:
    """Return the text of an exception, or its type if it has none."""
    try:
        text = str(error)
    except Exception:
        text = ""
    return text or type(error).__name__


class Own(NamedTuple):
    """The status of an adapter itself. Its endpoint has this status while its base is ready."""

    status: EndpointStatus
    note: Note | None


class Record:
    """One state of one registration. A record never changes: a write replaces it.

    The endpoint of an adapter *follows its base*: its status, its context length and its metadata are derived from the
    base's.
    """

    __slots__ = (
        "adapter",
        "declared",
        "endpoint",
        "generation",
        "handle",
        "id",
        "is_ready",
        "note",
        "own",
        "rank",
        "registered_at",
    )

    def __init__(
        self,
        endpoint: ModelEndpoint,
        declared: ModelEndpoint,
        registered_at: int,
        generation: int,
        rank: int,
        handle: object = None,
        note: Note | None = None,
        adapter: LoraAdapter | None = None,
        own: Own | None = None,
    ) -> None:
        self.id: str = endpoint.id.value
        self.endpoint: ModelEndpoint = endpoint
        self.is_ready: bool = endpoint.status is _READY
        # The endpoint as it was registered, before any change of its status.
        self.declared: ModelEndpoint = declared
        # In whole seconds of Unix time.
        self.registered_at: int = registered_at
        # The number of this publication. No other publication in the registry has it.
        self.generation: int = generation
        # The position in the order of first registration. No other id in the registry has it.
        self.rank: int = rank
        # The engine's object for this publication.
        self.handle: object = handle
        # About the endpoint's status; None if the server has said nothing.
        self.note: Note | None = note
        # If an AdapterRegistry published the endpoint, the adapter and its own status; otherwise None.
        self.adapter: LoraAdapter | None = adapter
        self.own: Own | None = own

    def require_ready(self, requested: str | None) -> None:
        """Raise :class:`ModelNotReadyError` unless the endpoint, which was requested by that name, is ready."""
        if not self.is_ready:
            raise self.not_ready(requested)

    def not_ready(self, requested: str | None) -> ModelNotReadyError:
        """Return the error that says why the endpoint, which was requested by that name, is not ready."""
        reason, retry_after = self.note or (None, None)
        return ModelNotReadyError(self.id, self.endpoint.status, reason, retry_after, requested)

    def own_status(self) -> Own:
        """Return the status of the endpoint itself, whatever its base's is."""
        return self.own or Own(self.endpoint.status, self.note)

    def with_status(self, status: EndpointStatus, note: Note | None, handle: object) -> "Record":
        """Return this publication with another status. For an endpoint that follows no base."""
        endpoint = _with(self.endpoint, status, self.endpoint.max_context_length, self.endpoint.metadata)
        return Record(endpoint, self.declared, self.registered_at, self.generation, self.rank, handle, note)

    def on(self, base: "Record", own: Own | None, handle: object) -> "Record":
        """Return this publication on that state of its base, with that status of its own. For an adapter's endpoint."""
        adapter = self.adapter
        assert adapter is not None
        assert own is not None
        status, note = own if base.is_ready else (base.endpoint.status, base.note)
        limits = (base.endpoint.max_context_length, adapter.max_context_length)
        limit = min(limit for limit in limits if limit is not None)
        endpoint = _with(self.declared, status, limit, merge(base.endpoint.metadata, adapter.metadata))
        return Record(
            endpoint, self.declared, self.registered_at, self.generation, self.rank, handle, note, adapter, own
        )

    def has_weights_of(self, other: "Record") -> bool:
        """Return whether the two endpoints serve the same weights, so that the adapters of one fit the other."""
        ours, theirs = self.endpoint, other.endpoint
        return ours.base_model == theirs.base_model and ours.adapter == theirs.adapter

    def without_handle(self) -> "Record":
        """Return this record without its handle."""
        return Record(
            self.endpoint,
            self.declared,
            self.registered_at,
            self.generation,
            self.rank,
            None,
            self.note,
            self.adapter,
            self.own,
        )

    def is_declared_as(self, other: "Record") -> bool:
        """Return whether *other* is this publication, as it is or as it was declared.

        ``is_default`` and what an adapter's endpoint takes from its base do not count.
        """
        if self.adapter != other.adapter:
            return False
        offered = _without_base(other, other.endpoint)
        known = _without_base(self, self.endpoint), _without_base(self, self.declared)
        return offered in known or any(offered == replace(each, is_default=offered.is_default) for each in known)


# Filling the slots of a frozen instance one by one takes a fifth of the time of replace(), which checks every field
# again. That halves the time of set_status().
(
    _put_id,
    _put_display_name,
    _put_description,
    _put_base_model,
    _put_adapter,
    _put_max_context_length,
    _put_is_default,
    _put_status,
    _put_metadata,
) = (vars(ModelEndpoint)[each.name].__set__ for each in fields(ModelEndpoint))


def _with(
    endpoint: ModelEndpoint, status: EndpointStatus, max_context_length: int, metadata: Mapping[str, Any]
) -> ModelEndpoint:
    """Return *endpoint* with that status, that context length and that metadata, which is frozen already."""
    if type(endpoint) is not ModelEndpoint:
        return replace(endpoint, status=status, max_context_length=max_context_length, metadata=metadata)
    changed = object.__new__(ModelEndpoint)
    _put_id(changed, endpoint.id)
    _put_display_name(changed, endpoint.display_name)
    _put_description(changed, endpoint.description)
    _put_base_model(changed, endpoint.base_model)
    _put_adapter(changed, endpoint.adapter)
    _put_max_context_length(changed, max_context_length)
    _put_is_default(changed, endpoint.is_default)
    _put_status(changed, status)
    _put_metadata(changed, metadata)
    return changed


def _without_base(record: Record, endpoint: ModelEndpoint) -> ModelEndpoint:
    """Return one of the two endpoints of *record* without what it takes from its base."""
    if record.own is None:
        return endpoint
    status = record.declared.status if endpoint is record.declared else record.own.status
    return _with(endpoint, status, 0, EMPTY)
