"""Which endpoint answers a request."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from bonsai_routing._checks import check_name, check_tokens
from bonsai_routing._directory import LARGEST, Directory
from bonsai_routing._record import Record
from bonsai_routing._routing import find_next, find_record, rank, refusal
from bonsai_routing._targets import Targets
from bonsai_routing.endpoint import ModelEndpoint
from bonsai_routing.errors import RoutingError
from bonsai_routing.leases import Lease
from bonsai_routing.model_id import ModelId
from bonsai_routing.registry import ModelRegistry

__all__ = ["Candidates", "ModelListEntry", "ModelRouter"]

# The owner of every model, as in the reference.
OWNER = "oxibonsai"


# Not frozen: filling a frozen instance would double the time that a list takes.
@dataclass(slots=True)
class ModelListEntry:
    """One model of an OpenAI-compatible ``/v1/models`` response.

    ``object`` is always ``"model"``; ``created`` is when the endpoint was registered, in whole seconds of Unix time.
    """

    id: str
    object: str
    owned_by: str
    created: int


class Candidates(NamedTuple):
    """Who may answer a request, as :meth:`ModelRouter.candidates` returns it.

    ``able`` are the endpoints that may answer, the best first.
    ``refused`` are the ids of the other targets, each with the reason why it may not answer: ``"not found"``, its
    status, with the reason that the server has given, or the context length that is too short.
    """

    able: tuple[ModelEndpoint, ...]
    refused: tuple[tuple[str, str], ...]


class ModelRouter:
    """Finds the endpoint that answers a request.

    ``registry`` is the directory that it looks in. It may be changed at any time.
    Safe to share between threads; routing takes no lock.
    A copy by ``deepcopy`` or pickle has its own copy of the registry.

    >>> registry = ModelRegistry()
    >>> registry.register(ModelEndpoint("bonsai-8b", "qwen3-8b").set_default())
    >>> ModelRouter(registry).route(None)
    ModelEndpoint('bonsai-8b', 'qwen3-8b', is_default=True)
    """

    __slots__ = ("registry",)

    def __init__(self, registry: ModelRegistry) -> None:
        if not isinstance(registry, ModelRegistry):
            raise TypeError(f"registry must be a ModelRegistry, not {registry!r}")
        self.registry: ModelRegistry = registry

    # What the reference has, in its order

    def route(self, requested_model: ModelId | str | None = None) -> ModelEndpoint:
        """Return the ready endpoint of the requested id or alias, or the default one for ``None``.

        Raises :class:`ModelNotFoundError` when nothing has the name, :class:`ModelNotReadyError` when the endpoint is
        not ready, and :class:`NoModelsAvailableError` when nothing was requested and there is no default.
        Another model never answers instead.
        Of several targets of an alias the first that is ready answers. If none is ready, the error is the first one's.
        """
        directory = self.registry._directory
        try:
            return directory.ready[requested_model]
        except (KeyError, TypeError):
            pass
        return find_record(directory, requested_model).endpoint

    def route_for_context(self, requested_model: ModelId | str | None, required_context: int) -> ModelEndpoint:
        """Return the endpoint that :meth:`route` returns, if *required_context* tokens fit into its context.

        If no model was requested and the tokens do not fit into the default's context, the ready endpoint with the
        largest context answers; of equals the one that was registered first.
        Of several targets of an alias the first answers that is ready and into whose context the tokens fit.
        Raises what :meth:`route` raises, and :class:`ContextTooLongError` when the tokens fit nowhere.
        """
        directory = self.registry._directory
        before = directory.before
        try:
            endpoint = directory.ready[requested_model]
            # isinstance() would cost half of the floor. check_tokens() sees to every other class.
            if required_context.__class__ is int and required_context >= 0:
                if required_context <= endpoint.max_context_length:
                    return endpoint
                if requested_model is None:
                    largest = directory.ready[LARGEST]
                    # If no write became visible meanwhile, the default and the largest are those of one moment.
                    if required_context <= largest.max_context_length and directory.before is before:
                        return largest
        except (KeyError, TypeError):
            pass
        return find_record(directory, requested_model, check_tokens("required_context", required_context)).endpoint

    def models_list(self) -> list[ModelListEntry]:
        """Return an entry for every ready endpoint, in the order of first registration."""
        return [
            ModelListEntry(record.id, "model", OWNER, record.registered_at)
            for record in self.registry._directory.all_records()
            if record.is_ready
        ]

    # What Python adds

    def __repr__(self) -> str:
        return f"ModelRouter({self.registry!r})"

    # Hot swap

    def lease(self, requested_model: ModelId | str | None = None, required_context: int | None = None) -> Lease:
        """Route like :meth:`route` or, if *required_context* is given, :meth:`route_for_context`, and count the use.

        Finding the endpoint and counting it is one step, so no endpoint can be replaced and become idle in between.
        Raises what those raise. Never waits for a model, so it serves threads and asyncio alike.

        >>> registry = ModelRegistry()
        >>> registry.register(ModelEndpoint("bonsai-8b", "qwen3-8b"))
        >>> with ModelRouter(registry).lease("bonsai-8b") as lease:
        ...     lease.endpoint.base_model, lease.generation, registry.in_flight("bonsai-8b")
        ('qwen3-8b', 1, 1)
        """
        if required_context is not None:
            check_tokens("required_context", required_context)
        store = self.registry._store
        return store.run(store.lease, find_record, requested_model, required_context)

    # Several targets

    def leases(
        self,
        requested_model: ModelId | str | None = None,
        required_context: int | None = None,
        *,
        key: str | None = None,
    ) -> Iterator[Lease]:
        """Return an iterator of leases of the endpoints that may answer, the best first, each leased at its turn.

        For an alias with several targets, these are the targets that are ready, into whose context *required_context*
        tokens fit. Any other name has one lease, as from :meth:`lease`. No id comes twice.
        Between targets with weights, *key* decides, for example the id of a user: the same key has the same order on
        every machine, while the targets and their weights stay the same. ``None`` means a random order.
        The first lease raises what :meth:`lease` raises. Later the iterator ends when nobody is left.

        Each lease is the caller's: use it in a ``with`` block, and go on with the loop if the engine has failed.

        >>> registry = ModelRegistry()
        >>> for id in ("v1", "v2"):
        ...     registry.register(ModelEndpoint(id, "qwen3-8b"))
        >>> registry.add_alias("chat", "v2", "v1")
        >>> for lease in ModelRouter(registry).leases("chat"):
        ...     with lease:
        ...         print(lease.endpoint.id)
        v2
        v1
        """
        name = _check(requested_model, required_context, key)
        return self._leases(name, requested_model, required_context, key)

    def _leases(
        self, name: str | None, requested_model: ModelId | str | None, required_context: int | None, key: str | None
    ) -> Iterator[Lease]:
        tried: set[str] = set()
        has_one = False

        def find(directory: Directory, _: ModelId | str | None, required_context: int | None) -> Record:
            nonlocal has_one
            if not tried:
                # What an alias is changed to during the loop counts for the next request.
                has_one = not isinstance(directory.find_targets(name)[0], Targets)
            record = find_next(directory, name, required_context, key, tried)
            tried.add(record.id)
            return record

        store = self.registry._store
        while True:
            try:
                found = [store.run(store.lease, find, requested_model, required_context)]
            except RoutingError:
                if tried:
                    return
                raise
            # No reference stays here, so a lease that the caller drops is released.
            yield found.pop()
            if has_one:
                return

    def candidates(
        self,
        requested_model: ModelId | str | None = None,
        required_context: int | None = None,
        *,
        key: str | None = None,
    ) -> Candidates:
        """Return who may answer a request, the best first, and why the others may not, as of one moment.

        The arguments are those of :meth:`leases`, which leases the endpoints in this order.
        Raises :class:`ModelNotFoundError` when neither an id nor an alias has the name, and
        :class:`NoModelsAvailableError` when nothing was requested and there is no default.

        >>> registry = ModelRegistry()
        >>> registry.register(ModelEndpoint("v1", "qwen3-8b"))
        >>> registry.register(ModelEndpoint("v2", "qwen3-8b", status="loading"))
        >>> registry.add_alias("chat", "v2", "v1")
        >>> ModelRouter(registry).candidates("chat")
        Candidates(able=(ModelEndpoint('v1', 'qwen3-8b'),), refused=(('v2', 'loading'),))
        """
        name = _check(requested_model, required_context, key)
        able, others = rank(self.registry._directory, name, required_context, key)
        if not able and not others:
            raise refusal(others, name, 0)
        return Candidates(
            tuple(record.endpoint for record in able), tuple((id, _why_not(record)) for id, record in others)
        )


def _check(requested_model: ModelId | str | None, required_context: int | None, key: str | None) -> str | None:
    """Return the requested name as text. Raise ``TypeError`` or ``ValueError`` when an argument is not valid."""
    if required_context is not None:
        check_tokens("required_context", required_context)
    if not (key is None or isinstance(key, str)):
        raise TypeError(f"key must be a str or None, not {key!r}")
    return None if requested_model is None else check_name("requested_model", requested_model)


def _why_not(record: Record | None) -> str:
    """Return why the target with that record may not answer; ``None`` stands for an id that is not registered."""
    if record is None:
        return "not found"
    if record.is_ready:
        return f"a context of {record.endpoint.max_context_length} tokens"
    status = record.endpoint.status.value
    return status if record.note is None or record.note.reason is None else f"{status}: {record.note.reason}"
