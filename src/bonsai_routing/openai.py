"""What OpenAI's clients read: the bodies of ``/v1/models`` and of errors, as dictionaries ready for JSON."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from bonsai_routing._checks import check_callable, check_name, check_tokens, short_repr
from bonsai_routing._directory import Directory
from bonsai_routing._record import Record
from bonsai_routing._targets import Target, ids_of, leading
from bonsai_routing.endpoint import EndpointStatus, ModelEndpoint
from bonsai_routing.errors import (
    AdapterBaseError,
    AdapterConfigError,
    AdapterLoadedError,
    ContextTooLongError,
    ModelNotFoundError,
    ModelNotReadyError,
    NoModelsAvailableError,
    RoutingError,
    StaleGenerationError,
)
from bonsai_routing.model_id import ModelId
from bonsai_routing.router import OWNER, ModelRouter

__all__ = ["ErrorResponse", "error_response", "model_response", "models_response"]

# In seconds. OpenAI's client tries three times in all and waits this long in between; some versions of it ignore more
# than 60 seconds, and others give up at more than 120.
_RETRY_AFTER = 5

# The header that OpenAI's client obeys before it looks at the status; otherwise it repeats every 409 and 5xx.
_NO_RETRY = {"x-should-retry": "false"}


def models_response(
    router: ModelRouter,
    *,
    aliases: bool = False,
    ready: bool = True,
    owned_by: str = OWNER,
    card: Callable[[ModelEndpoint], Mapping[str, object] | None] | None = None,
) -> dict[str, object]:
    """Return the body of ``GET /v1/models``: a card for every ready endpoint, in the order of first registration.

    ``created`` is when the endpoint was registered, in whole seconds of Unix time, ``root`` the name of its weights,
    ``max_model_len`` its context length in tokens, and ``parent`` the id of the base that its adapter is on.
    For an adapter from an :class:`AdapterRegistry` the parent is the adapter's ``base_model``.
    For any other endpoint with an adapter it is the longest part of the id before a colon that is the id of a
    registered endpoint without an adapter, and ``None`` if no part is.

    *aliases* adds a card for every alias that maps to one of these endpoints and is not shadowed by an id, after the
    endpoints and in the order in which the aliases were added.
    It is its target's card, but ``id`` is the alias and ``root`` the target's id.
    Of several targets, ``root`` is the one that answers now: the first that is ready, and of those with weights the
    heaviest. ``max_model_len`` is then the largest of all that are ready.
    ``ready=False`` lists the endpoints that are not ready as well, and gives every card the key ``status``.
    *owned_by* is the owner of every model.
    *card* is called with each listed endpoint, without any lock, and returns a mapping of more keys for its card. They
    win over the keys above. If it returns ``None``, the endpoint and its aliases are left out.
    Raises ``TypeError`` for an argument of the wrong type, and if *card* returns anything else. An exception of *card*
    is not caught.

    >>> registry = ModelRegistry()
    >>> registry.register(ModelEndpoint("bonsai-8b", "qwen3-8b"))
    >>> [card] = models_response(ModelRouter(registry))["data"]
    >>> card["id"], card["root"], card["parent"], card["max_model_len"]
    ('bonsai-8b', 'qwen3-8b', None, 4096)
    """
    directory = _directory(router)
    _check_options(owned_by, card)
    records, targets = directory.snapshot()
    present = {record.id: record for record in records}
    listed: dict[str, _Listed] = {}
    for record in records:
        if record.is_ready or not ready:
            found = _listed(record, present.get, owned_by, ready, card)
            if found is not None:
                listed[record.id] = found
    data = [each.card() for each in listed.values()]
    if aliases:
        for alias, target in targets.items():
            of_alias = [listed[id] for id in ids_of(target) if id in listed]
            if alias is not None and alias not in present and of_alias:
                data.append(_alias_card(alias, target, of_alias))
    return {"object": "list", "data": data}


def model_response(
    router: ModelRouter,
    name: ModelId | str,
    *,
    ready: bool = True,
    owned_by: str = OWNER,
    card: Callable[[ModelEndpoint], Mapping[str, object] | None] | None = None,
) -> dict[str, object]:
    """Return the body of ``GET /v1/models/{id}``: the card of that id or alias, as :func:`models_response` has it.

    Raises :class:`ModelNotFoundError` and :class:`ModelNotReadyError`, as routing does.
    ``ready=False`` returns the card of a model that is not ready as well, with the key ``status``.
    If *card* leaves the model out, raises :class:`ModelNotFoundError`, also when the model is not ready.
    """
    directory = _directory(router)
    text = check_name("name", name)
    _check_options(owned_by, card)

    def find() -> tuple[Target | None, list[Record], dict[str, Record | None]]:
        target, records, _ = directory.find_targets(text)
        # The bases that a card may name as its parent.
        prefixes = {prefix for id in records for prefix in _prefixes(id)}
        return target, [*records.values()], {prefix: directory.find_id(prefix) for prefix in prefixes}

    target, records, bases = directory.at_once(find)
    found = [_listed(record, bases.get, owned_by, ready, card) for record in records]
    listed = [each for each in found if each is not None]
    if not listed:
        raise ModelNotFoundError(text)
    if ready and not any(each.record.is_ready for each in listed):
        raise listed[0].record.not_ready(text)
    return listed[0].card() if listed[0].record.id == text else _alias_card(text, target, listed)


class _Listed(NamedTuple):
    """An endpoint of the list, its card, and the keys that the caller's *card* adds to it."""

    record: Record
    ours: dict[str, object]
    more: Mapping[str, object]

    def card(self) -> dict[str, object]:
        return {**self.ours, **self.more}


def _directory(router: ModelRouter) -> Directory:
    if not isinstance(router, ModelRouter):
        raise TypeError(f"router must be a ModelRouter, not {router!r}")
    return router.registry._directory


def _check_options(owned_by: object, card: object) -> None:
    if not isinstance(owned_by, str):
        raise TypeError(f"owned_by must be a str, not {owned_by!r}")
    check_callable("card", card)


def _listed(
    record: Record,
    find: Callable[[str], Record | None],
    owned_by: str,
    ready: bool,
    card: Callable[[ModelEndpoint], Mapping[str, object] | None] | None,
) -> _Listed | None:
    """Return what the list has of a record; ``None`` if *card* leaves the endpoint out. *find* finds other records."""
    more = {} if card is None else card(record.endpoint)
    if more is None:
        return None
    if not isinstance(more, Mapping):
        raise TypeError(f"card must return a mapping or None, not {short_repr(more)}")
    ours: dict[str, object] = {
        "id": record.id,
        "object": "model",
        "created": record.registered_at,
        "owned_by": owned_by,
        "root": record.endpoint.base_model,
        "parent": None if record.endpoint.adapter is None else _parent(record, find),
        "max_model_len": record.endpoint.max_context_length,
    }
    if not ready:
        ours["status"] = record.endpoint.status.value
    return _Listed(record, ours, more)


def _alias_card(alias: str, target: Target | None, listed: list[_Listed]) -> dict[str, object]:
    """Return the card of an alias, whose targets are *listed* as far as they may be shown."""
    ready = {each.record.id: each for each in listed if each.record.is_ready}
    root = leading(target, ready)
    answering = listed[0] if root is None else ready[root]
    longest = max(each.record.endpoint.max_context_length for each in [*ready.values()] or listed[:1])
    return {**answering.ours, "max_model_len": longest, **answering.more, "id": alias, "root": answering.record.id}


def _parent(record: Record, find: Callable[[str], Record | None]) -> str | None:
    """Return the id of the base that the adapter of a record is on."""
    if record.adapter is not None:
        return record.adapter.base_model
    for prefix in _prefixes(record.id):
        base = find(prefix)
        if base is not None and base.id == prefix and base.endpoint.adapter is None:
            return prefix
    return None


def _prefixes(id: str) -> list[str]:
    """Return the parts of an id that end before a colon, the longest first."""
    return [id[:place] for place in range(len(id) - 1, -1, -1) if id[place] == ":"]


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """An answer over HTTP: its status, the headers that it needs beyond the usual ones, and its body for JSON."""

    status: int
    headers: dict[str, str]
    body: dict[str, object]


def error_response(error: RoutingError, *, prompt_tokens: int | None = None) -> ErrorResponse:
    """Return what a server answers when *error* ended a request, as OpenAI's clients understand it.

    *prompt_tokens* is how many of the required tokens are in the messages; the others are those of the completion.
    The message for a :class:`ContextTooLongError` then has both numbers. ``None`` means unknown.
    A model that is loading gets a ``Retry-After`` in seconds, and so does one for which the server has said when to try
    again. The reason that the server has given is not sent.
    Every other answer that OpenAI's client would repeat has ``x-should-retry: false``.
    A kind of error that is not one of this package's about routing and adapters, such as :class:`ConfigError`, is the
    server's own fault: its text is not for clients, and the answer is a plain 500.
    Raises ``TypeError`` when *error* is not a :class:`RoutingError` or *prompt_tokens* is not an ``int``, and
    ``ValueError`` when *prompt_tokens* is below 0 or above the ``required`` of a :class:`ContextTooLongError`.

    >>> answer = error_response(ModelNotFoundError("bonsai"))
    >>> answer.status, answer.body["error"]["message"]
    (404, 'The model `bonsai` does not exist.')
    """
    if prompt_tokens is not None:
        check_tokens("prompt_tokens", prompt_tokens)
    match error:
        case ModelNotFoundError():
            return _answer(404, "model_not_found", f"The model `{error.model}` does not exist.")
        case ContextTooLongError():
            shares = ""
            if prompt_tokens is not None:
                if prompt_tokens > error.required:
                    rule = f"must be at most {error.required}, the tokens that were requested"
                    raise ValueError(f"prompt_tokens {rule}, not {prompt_tokens}")
                shares = f" ({prompt_tokens} in the messages, {error.required - prompt_tokens} in the completion)"
            # OpenAI's own words, which clients look for with their numbers. Some look for the code, and in the text.
            message = (
                f"This model's maximum context length is {error.available} tokens. However, you requested "
                f"{error.required} tokens{shares}. Please reduce the length of the messages or completion. "
                "(context_length_exceeded)"
            )
            return _answer(400, "context_length_exceeded", message, param="messages")
        case ModelNotReadyError():
            # What was requested, because the id behind an alias is not for clients.
            name = error.model if error.requested is None else error.requested
            message = f"The model `{name}` is not ready (status: {error.status})."
            seconds = error.retry_after
            # The status is text, and need not be the enum's own member.
            if seconds is None and error.status == EndpointStatus.LOADING:
                seconds = _RETRY_AFTER
            # HTTP has whole seconds.
            headers = _NO_RETRY if seconds is None else {"Retry-After": str(math.ceil(seconds))}
            return _answer(503, "model_not_ready", message, headers)
        case NoModelsAvailableError():
            # There is no default until somebody configures one.
            message = "No model was requested, and no default model is available."
            return _answer(503, "no_models_available", message, _NO_RETRY)
        case AdapterBaseError():
            return _answer(400, "adapter_base_mismatch", str(error))
        case AdapterConfigError():
            return _answer(400, "invalid_adapter_config", str(error))
        case AdapterLoadedError():
            # As vLLM answers. A 409 would be repeated by OpenAI's client, and be refused again.
            return _answer(400, "adapter_already_loaded", str(error))
        case StaleGenerationError():
            # A generation never comes back.
            return _answer(409, "stale_generation", str(error), _NO_RETRY)
        case RoutingError():
            return _answer(500, None, "The server could not route the request.", _NO_RETRY)
    raise TypeError(f"error must be a RoutingError, not {error!r}")


def _answer(
    status: int, code: str | None, message: str, headers: dict[str, str] | None = None, param: str | None = None
) -> ErrorResponse:
    facts = {
        # A requested name may hold half of a surrogate pair, which JSON can carry and UTF-8 cannot.
        "message": message.encode("utf-8", "backslashreplace").decode("utf-8"),
        "type": "invalid_request_error" if status < 500 else "server_error",
        "param": param,
        "code": code,
    }
    return ErrorResponse(status, {**(headers or {})}, {"error": facts})
