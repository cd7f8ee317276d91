"""Which endpoint answers a request."""

from dataclasses import dataclass

from bonsai_routing._checks import check_tokens
from bonsai_routing._directory import LARGEST
from bonsai_routing._routing import find_record
from bonsai_routing.endpoint import ModelEndpoint
from bonsai_routing.leases import Lease
from bonsai_routing.model_id import ModelId
from bonsai_routing.registry import ModelRegistry

__all__ = ["ModelListEntry", "ModelRouter"]

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
