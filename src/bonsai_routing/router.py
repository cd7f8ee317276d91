"""Which endpoint answers a request."""

from dataclasses import dataclass

from bonsai_routing._checks import check_name, check_tokens
from bonsai_routing.endpoint import READY, ModelEndpoint
from bonsai_routing.errors import (
    ContextTooLongError,
    ModelNotFoundError,
    ModelNotReadyError,
    NoModelsAvailableError,
)
from bonsai_routing.leases import Lease
from bonsai_routing.model_id import ModelId
from bonsai_routing.registry import ModelRegistry

__all__ = ["ModelListEntry", "ModelRouter"]

# Who owns every model, as the reference has it.
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

    ``registry`` is the directory it looks in, and may be changed at any time.
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

    def __repr__(self) -> str:
        return f"ModelRouter({self.registry!r})"

    def route(self, requested_model: ModelId | str | None = None) -> ModelEndpoint:
        """Return the ready endpoint of the requested id or alias, or the default one for ``None``.

        Raises :class:`ModelNotFoundError`, :class:`ModelNotReadyError` or, if nothing was requested and there is no
        default, :class:`NoModelsAvailableError`.
        Another model never answers instead.
        """
        directory = self.registry._directory
        try:
            slot = directory.leaders.default if requested_model is None else directory.names[requested_model]
            endpoint = slot.available
            if endpoint is not None:
                return endpoint
        except KeyError:
            # All names that lead anywhere are there, so nothing more need be looked up.
            if isinstance(requested_model, str):
                raise ModelNotFoundError(requested_model) from None
        except TypeError:
            pass
        return self._found(requested_model)

    def route_for_context(self, requested_model: ModelId | str | None, required_context: int) -> ModelEndpoint:
        """Return the endpoint that :meth:`route` returns, if *required_context* tokens fit into its context.

        When no model was requested and they do not fit into the default's, the ready endpoint with the largest context
        answers; of equals the one registered first.
        Raises what :meth:`route` raises, and :class:`ContextTooLongError` when the tokens fit nowhere.
        """
        directory = self.registry._directory
        leaders = directory.leaders
        try:
            slot = leaders.default if requested_model is None else directory.names[requested_model]
            endpoint = slot.available
            # Comparing the class costs a quarter of calling isinstance(); check_tokens() sees to everything else.
            if endpoint is not None and required_context.__class__ is int and required_context >= 0:
                if required_context <= endpoint.max_context_length:
                    return endpoint
                largest = leaders.largest
                if (
                    requested_model is None
                    and largest is not None
                    and required_context <= largest.max_context_length
                    # The default is as small, and the largest as large, as they were at the same moment.
                    and directory.leaders is leaders
                ):
                    return largest
        except (KeyError, TypeError):
            pass
        check_tokens("required_context", required_context)
        if requested_model is not None:
            endpoint = fallback = self._found(requested_model)
        else:
            endpoint, fallback = self._found_default()
        if required_context <= endpoint.max_context_length:
            return endpoint
        if required_context <= fallback.max_context_length:
            return fallback
        raise ContextTooLongError(endpoint.id.value, required_context, endpoint.max_context_length)

    def lease(self, requested_model: ModelId | str | None = None, required_context: int | None = None) -> Lease:
        """Route like :meth:`route` or, if *required_context* is given, :meth:`route_for_context`, and count the use.

        Finding the endpoint and counting it is one step, so no endpoint can be replaced and found idle in between.
        Raises what those raise. Never waits for a model, so it serves threads and asyncio alike.

        >>> registry = ModelRegistry()
        >>> registry.register(ModelEndpoint("bonsai-8b", "qwen3-8b"))
        >>> with ModelRouter(registry).lease("bonsai-8b") as lease:
        ...     lease.endpoint.base_model, lease.generation, registry.in_flight("bonsai-8b")
        ('qwen3-8b', 1, 1)
        """
        registry = self.registry
        ledger = registry._ledger
        ledger.lock.acquire()
        try:
            if required_context is None:
                endpoint = self.route(requested_model)
            else:
                endpoint = self.route_for_context(requested_model, required_context)
            slot = registry._directory.slots[endpoint.id.value]
            return Lease(endpoint, requested_model, slot.generation, ledger)
        finally:
            ledger.lock.release()
            if ledger.returned or ledger.idle:
                ledger.settle()

    def models_list(self) -> list[ModelListEntry]:
        """Return an entry for every ready endpoint, in the order of first registration."""
        slots, endpoints = self.registry._listing()
        return [
            ModelListEntry(slot.id, "model", OWNER, slot.registered_at)
            for slot, endpoint in zip(slots, endpoints)
            if endpoint is not None and endpoint.status is READY
        ]

    def _found(self, requested_model: ModelId | str | None) -> ModelEndpoint:
        """Route without haste: find out what is wrong, if anything is."""
        if requested_model is None:
            return self._found_default()[0]
        name = check_name("requested_model", requested_model)
        endpoint = self.registry._find(name)
        if endpoint is None:
            raise ModelNotFoundError(name)
        return ready(endpoint)

    def _found_default(self) -> tuple[ModelEndpoint, ModelEndpoint]:
        """Return the default and the ready endpoint with the largest context, both as of one moment."""
        endpoint, largest = self.registry._directory.leading()
        if endpoint is None:
            raise NoModelsAvailableError
        return ready(endpoint), largest or endpoint


def ready(endpoint: ModelEndpoint) -> ModelEndpoint:
    """Return *endpoint* if it is ready; otherwise raise :class:`ModelNotReadyError`."""
    if endpoint.status is not READY:
        raise ModelNotReadyError(endpoint.id.value, endpoint.status)
    return endpoint
