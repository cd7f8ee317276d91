"""What OpenAI's clients read: the bodies of ``/v1/models`` and of errors, as dictionaries ready for JSON."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter

from bonsai_routing._checks import check_name
from bonsai_routing._directory import VACANT, Directory, Slot
from bonsai_routing.endpoint import READY, EndpointStatus, ModelEndpoint
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
from bonsai_routing.lora import LoraAdapter
from bonsai_routing.model_id import ModelId
from bonsai_routing.registry import ModelRegistry
from bonsai_routing.router import OWNER, ModelRouter, ready

__all__ = ["ErrorResponse", "error_response", "model_response", "models_response", "suggestions"]

# How often a list is gathered anew because a write came in between.
_ATTEMPTS = 8

# In seconds. OpenAI's client tries three times in all and waits this long in between; some versions of it ignore more
# than 60 seconds, and others give up at more than 120.
_RETRY_AFTER = "5"

# The header that OpenAI's client obeys before it looks at the status; otherwise it repeats every 409 and 5xx.
_NO_RETRY = {"x-should-retry": "false"}

# What bounds the time that suggestions take: names of more characters than this neither get any nor are any, and of the
# others only so many are compared closely that all of them together have about this many characters.
_LONGEST = 64
_COMPARED = 6000

# The characters that are tried at each place of a name: ASCII's visible ones.
_TRIED = [chr(code) for code in range(33, 127)]

_ENDPOINT = attrgetter("endpoint")


def models_response(router: ModelRouter, *, aliases: bool = False) -> dict[str, object]:
    """Return the body of ``GET /v1/models``: a card for every ready endpoint, in the order of first registration.

    ``created`` is when the endpoint was registered, in whole seconds of Unix time, ``root`` the name of its weights,
    ``max_model_len`` its context length in tokens, and ``parent`` the id of the base that its adapter is on.
    For an adapter from an :class:`AdapterRegistry` the parent is the adapter's ``base_model``.
    For any other endpoint with an adapter it is the longest part of the id before a colon that is the id of a
    registered endpoint without an adapter, and ``None`` if no part is.

    *aliases* adds a card for every alias that leads to one of these endpoints and is not hidden by an id, after the
    endpoints and in the order in which the aliases were added.
    It is its target's but for ``id``, the alias, and ``root``, the target's id.

    >>> registry = ModelRegistry()
    >>> registry.register(ModelEndpoint("bonsai-8b", "qwen3-8b"))
    >>> [card] = models_response(ModelRouter(registry))["data"]
    >>> card["id"], card["root"], card["parent"], card["max_model_len"]
    ('bonsai-8b', 'qwen3-8b', None, 4096)
    """
    registry = _registry(router)
    attempts = _ATTEMPTS
    while True:
        writes = registry._writes
        directory = registry._directory
        # Each of these is one step in C, so no writer can change the dictionary meanwhile.
        slots = [*directory.slots.values()]
        endpoints = [*map(_ENDPOINT, slots)]
        attached = directory.attached.copy()
        pointers = directory.aliases.copy() if aliases else {}
        ways = [*map(directory.names.get, pointers)]
        attempts -= 1
        if writes == registry._writes or not attempts:
            break
    present: dict[str, ModelEndpoint] = {
        slot.id: endpoint for slot, endpoint in zip(slots, endpoints) if endpoint is not None
    }
    cards = {
        slot.id: _card(slot, endpoint, attached, present.get)
        for slot, endpoint in zip(slots, endpoints)
        if endpoint is not None and endpoint.status is READY
    }
    data = [*cards.values()]
    for (alias, slot), way in zip(pointers.items(), ways):
        # Its name leads nowhere yet if the alias is just being added, and to a vacant slot if an id of that name is
        # just coming or going.
        if way is not None and alias not in present:
            target = way.id if way.id in present else slot.id
            if target in cards:
                data.append(_alias_card(alias, cards[target]))
    return {"object": "list", "data": data}


def model_response(router: ModelRouter, name: ModelId | str) -> dict[str, object]:
    """Return the body of ``GET /v1/models/{id}``: the card of that id or alias, as :func:`models_response` has it.

    Raises :class:`ModelNotFoundError` and :class:`ModelNotReadyError`, as routing does.
    """
    registry = _registry(router)
    text = check_name("name", name)
    while True:
        writes = registry._writes
        directory = registry._directory
        slot, endpoint = directory.found(text)
        card = {} if endpoint is None else _card(slot, endpoint, directory.attached, directory.at)
        if writes == registry._writes:
            break
    if endpoint is None:
        raise ModelNotFoundError(text)
    ready(endpoint)
    return card if slot.id == text else _alias_card(text, card)


def _registry(router: ModelRouter) -> ModelRegistry:
    if not isinstance(router, ModelRouter):
        raise TypeError(f"router must be a ModelRouter, not {router!r}")
    return router.registry


def _card(
    slot: Slot,
    endpoint: ModelEndpoint,
    attached: Mapping[str, object],
    find: Callable[[str], ModelEndpoint | None],
) -> dict[str, object]:
    return {
        "id": slot.id,
        "object": "model",
        "created": slot.registered_at,
        "owned_by": OWNER,
        "root": endpoint.base_model,
        "parent": None if endpoint.adapter is None else _parent(slot.id, attached.get(slot.id), find),
        "max_model_len": endpoint.max_context_length,
    }


def _alias_card(alias: str, card: dict[str, object]) -> dict[str, object]:
    return {**card, "id": alias, "root": card["id"]}


def _parent(id: str, adapter: object, find: Callable[[str], ModelEndpoint | None]) -> str | None:
    """Return the id of the base that the *adapter* with the endpoint *id* is on; *find* finds registered endpoints."""
    if isinstance(adapter, LoraAdapter):
        return adapter.base_model
    base, colon, _ = id.rpartition(":")
    while colon:
        endpoint = find(base)
        if endpoint is not None and endpoint.adapter is None:
            return base
        base, colon, _ = base.rpartition(":")
    return None


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """An answer over HTTP: its status, the headers that it needs beyond the usual ones, and its body for JSON."""

    status: int
    headers: dict[str, str]
    body: dict[str, object]


def error_response(error: RoutingError) -> ErrorResponse:
    """Return what a server answers when *error* ended a request, as OpenAI's clients understand it.

    Only a model that is loading is worth waiting for, and gets a ``Retry-After`` in seconds.
    Every other answer that OpenAI's client would repeat has ``x-should-retry: false``.
    A kind of error that is not one of this package's about routing and adapters, such as :class:`ConfigError`, is the
    server's own fault: its text is not for clients, and the answer is a plain 500.
    Raises ``TypeError`` when *error* is not a :class:`RoutingError`.

    >>> answer = error_response(ModelNotFoundError("bonsai"))
    >>> answer.status, answer.body["error"]["message"]
    (404, 'The model `bonsai` does not exist.')
    """
    match error:
        case ModelNotFoundError():
            return _answer(404, "model_not_found", f"The model `{error.model}` does not exist.")
        case ContextTooLongError():
            # OpenAI's own words, which clients look for with their numbers. Some look for the code, and in the text.
            message = (
                f"This model's maximum context length is {error.available} tokens. However, your messages resulted in "
                f"{error.required} tokens. Please reduce the length of the messages. (context_length_exceeded)"
            )
            return _answer(400, "context_length_exceeded", message, param="messages")
        case ModelNotReadyError():
            message = f"The model `{error.model}` is not ready (status: {error.status})."
            # The status is text, and need not be the enum's own member.
            headers = {"Retry-After": _RETRY_AFTER} if error.status == EndpointStatus.LOADING else _NO_RETRY
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


def suggestions(registry: ModelRegistry, name: ModelId | str) -> list[str]:
    """Return up to three ids and aliases that *name* may have been meant to be, the most likely first.

    They resolve, whatever their status, and *name* itself is not one of them.
    They are for a message to people: routing never lets another model answer.

    First come the names that few edits lead to, the fewest first, then longer ones that begin or end with *name*, the
    shortest first; equals in alphabetical order.
    An edit inserts, removes or replaces a character or swaps two neighbours; an ASCII letter's case is none.
    One is allowed for each three characters of *name*, and three at most.
    What a single edit in ASCII makes of *name* is considered in any case.
    Beyond that at most some hundred names are compared, those first that begin and end as *name* does, so that the time
    is bounded.
    Names of more than 64 characters get no suggestions and are none.

    >>> registry = ModelRegistry()
    >>> registry.register(ModelEndpoint("bonsai-8b", "qwen3-8b"))
    >>> suggestions(registry, "Bonsia-8b")
    ['bonsai-8b']
    """
    if not isinstance(registry, ModelRegistry):
        raise TypeError(f"registry must be a ModelRegistry, not {registry!r}")
    name = check_name("name", name)
    if len(name) > _LONGEST:
        return []
    wanted = _folded(name)
    limit = min(3, len(wanted) // 3)
    directory = registry._directory
    ranked: list[tuple[int, int, str]] = []
    for each in {*_alike(directory, wanted, limit), *_one_edit_away(directory, name)} - {name}:
        if directory.names.get(each, VACANT).endpoint is None:
            continue
        text = _folded(each)
        edits = _edits(wanted, text, limit)
        if edits <= limit:
            ranked.append((edits, 0, each))
        elif limit and (text.startswith(wanted) or text.endswith(wanted)):
            ranked.append((limit + 1, len(text), each))
    return [each for _, _, each in sorted(ranked)[:3]]


def _folded(name: str) -> str:
    """Return *name* in small letters if it is in ASCII; otherwise that would take ten times as long."""
    return name.lower() if name.isascii() else name


def _alike(directory: Directory, wanted: str, limit: int) -> list[str]:
    """Return the names that are worth a close comparison, in a fraction of the time that comparing all would take."""
    # Listed in one step, because writers may change the dictionary meanwhile. All its keys are text.
    listed: list[str] = [*directory.names]  # type: ignore[list-item]
    names = [name for name in listed if len(wanted) - limit <= len(name) <= _LONGEST]
    third = len(wanted) // 3
    head, tail = wanted[:third], wanted[len(wanted) - third :]
    if "".join(names).isascii():
        folded = [*map(str.lower, names)]
    else:
        # As _folded() does it, which would take half as long again.
        folded = [name.lower() if name.isascii() else name for name in names]
    shared = [name.startswith(head) + name.endswith(tail) for name in folded]
    best = sorted(range(len(names)), key=shared.__getitem__, reverse=True)
    return [names[place] for place in best[: _COMPARED // (len(wanted) + 10)]]


def _one_edit_away(directory: Directory, name: str) -> Iterator[str]:
    """Yield the names that one edit leads to, at a cost that does not depend on how many names there are."""
    for place in range(len(name) + 1):
        head, rest, beyond = name[:place], name[place:], name[place + 1 :]
        edited = [head + beyond, head + beyond[:1] + rest[:1] + beyond[1:]]
        edited += [head + tried + end for tried in _TRIED for end in (rest, beyond)]
        yield from filter(directory.names.__contains__, edited)


def _edits(one: str, other: str, limit: int) -> int:
    """Return how many edits lead from *one* to the *other*; something above *limit* if more than *limit* do.

    This is the optimal string alignment distance, computed only where it can be within the limit.
    """
    start = 0
    for x, y in zip(one, other):
        if x != y:
            break
        start += 1
    one, other = one[start:], other[start:]
    while one and other and one[-1] == other[-1]:
        one, other = one[:-1], other[:-1]
    # An edit takes away one character at the most, so most names are known to be too far without the table below.
    if sum(max(0, one.count(x) - other.count(x)) for x in {*one}) > limit:
        return limit + 1
    # The edits from the beginning of *one* up to a row's character to each beginning of *other*.
    above: list[int] = []
    row: list[int] = [*range(len(other) + 1)]
    for i, x in enumerate(one, 1):
        before, above, row = above, row, [i] + [limit + 1] * len(other)
        first, last = max(1, i - limit), min(len(other), i + limit)
        for j in range(first, last + 1):
            y, edits = other[j - 1], above[j - 1]
            if x != y:
                # Calling min() would double the time of the whole search.
                if above[j] < edits:
                    edits = above[j]
                if row[j - 1] < edits:
                    edits = row[j - 1]
                if i > 1 and j > 1 and x == other[j - 2] and y == one[i - 2] and before[j - 2] < edits:
                    edits = before[j - 2]
                edits += 1
            row[j] = edits
        if min(row[first - 1 : last + 1]) > limit:
            return limit + 1
    return row[-1]
