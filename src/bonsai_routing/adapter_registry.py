"""The LoRA adapters that are loaded into a registry: publishing, listing, and leasing them in stacks."""

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace

from bonsai_routing._checks import check_name
from bonsai_routing._directory import Record
from bonsai_routing._store import Store
from bonsai_routing.adapters import AdapterStack
from bonsai_routing.endpoint import EndpointStatus, ModelEndpoint
from bonsai_routing.errors import AdapterBaseError, AdapterLoadedError, ModelNotFoundError, StaleGenerationError
from bonsai_routing.leases import IdleFuture, complete, idle_future
from bonsai_routing.lora import LoraAdapter
from bonsai_routing.model_id import ModelId
from bonsai_routing.registry import ModelRegistry
from bonsai_routing.stacks import StackLease, lease_stack

__all__ = ["AdapterRegistry"]


class AdapterRegistry:
    """The LoRA adapters that are loaded into a :class:`ModelRegistry`.

    The object has no state of its own: *models* stores each adapter beside its endpoint.
    When the endpoint is unregistered or replaced, by any means, *models* drops the adapter as well.
    Several adapter registries of the same *models* always agree.
    Threads may share an adapter registry. Reading takes no lock.

    >>> models = ModelRegistry()
    >>> models.register(ModelEndpoint("bonsai-8b", "qwen3-8b"))
    >>> AdapterRegistry(models).load(LoraAdapter("code", "bonsai-8b", "adapters/code"))
    ModelEndpoint('bonsai-8b:code', 'qwen3-8b', adapter='code')
    """

    __slots__ = ("models",)

    def __init__(self, models: ModelRegistry) -> None:
        if not isinstance(models, ModelRegistry):
            raise TypeError(f"models must be a ModelRegistry, not {models!r}")
        self.models: ModelRegistry = models

    def load(self, adapter: LoraAdapter, *, check_base: bool = True) -> ModelEndpoint:
        """Publish the endpoint ``base:name`` of an adapter that the engine has loaded, and return the endpoint.

        The endpoint is ready and has the ``base_model`` of the base.
        Its context length is the adapter's if the adapter has a context length, and otherwise the base's.
        Raises :class:`ModelNotFoundError` when the base is not registered, and :class:`AdapterLoadedError` when the id
        is registered already.
        Raises :class:`AdapterBaseError` when the base is itself the endpoint of an adapter, when the adapter's context
        is longer than the base's, or when the adapter was trained on other weights.
        ``check_base=False`` skips the comparison of the weights.
        """
        _check_adapter(adapter)
        store = self.models._store
        return store.run(_load, store, adapter, check_base)

    def swap(
        self, adapter: LoraAdapter, *, expect: int | None = None, check_base: bool = True
    ) -> Future[ModelEndpoint | None]:
        """Load an adapter, or replace the endpoint that has its id, and return the future of the replaced endpoint.

        The future completes with the replaced endpoint when the last lease of this endpoint has ended.
        If no endpoint was replaced, the future has completed with ``None``.
        Raises the errors of :meth:`load`, except :class:`AdapterLoadedError`.
        If *expect* is given and is not the current generation of the id, raises :class:`StaleGenerationError` and
        changes nothing.
        """
        _check_adapter(adapter)
        future = idle_future()
        store = self.models._store
        store.run(_swap, store, adapter, expect, check_base, future)
        return future

    def unload(self, id: ModelId | str) -> Future[ModelEndpoint | None]:
        """Remove the adapter of that id with its endpoint, and return the future of the removed endpoint.

        The future completes with the endpoint when the last lease of the endpoint has ended.
        If no adapter has that id, nothing is removed and the future has completed with ``None``.
        """
        key = check_name("id", id)
        future = idle_future()
        store = self.models._store
        store.run(_unload, store, key, future)
        return future

    @contextmanager
    def loading(self, adapter: LoraAdapter, *, check_base: bool = True) -> Iterator[ModelEndpoint]:
        """Publish an adapter that the engine loads in the ``with`` block.

        The status is ``loading`` during the block. After the block it is ``ready``, or ``error`` if the block raises.
        If a ready endpoint already has the id, this endpoint keeps serving during the block.
        The adapter then replaces it after the block, or never if the block raises.
        The block gets the adapter's endpoint with the status ``loading``.

        Raises the errors of :meth:`load`, except :class:`AdapterLoadedError`.
        Raises :class:`StaleGenerationError` after the block when the endpoint was replaced or removed in the meantime.
        An exception of the block is not caught.
        """
        _check_adapter(adapter)
        store = self.models._store
        loading, known, serving = store.run(_begin_loading, store, adapter, check_base)
        try:
            yield loading
        except BaseException:
            if not serving:
                store.run(_fail_loading, store, adapter, known)
            raise
        store.run(_end_loading, store, adapter, check_base, known, serving)

    def get(self, id: ModelId | str) -> LoraAdapter | None:
        """Return the adapter whose endpoint has that id; ``None`` if there is none."""
        record = self.models._directory.find_id(check_name("id", id))
        return None if record is None else _adapter(record)

    def of(self, base: ModelId | str) -> list[LoraAdapter]:
        """Return the adapters on the base endpoint of that id."""
        key = check_name("base", base)
        return [adapter for adapter in self if adapter.base_model == key]

    def __iter__(self) -> Iterator[LoraAdapter]:
        adapters = map(_adapter, self.models._directory.all_records())
        return iter([adapter for adapter in adapters if adapter is not None])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<AdapterRegistry adapters={len(self)} models={self.models!r}>"

    def lease_stack(self, base: ModelId | str, stack: AdapterStack) -> StackLease:
        """Lease a base, by id or alias, together with the adapters of *stack* on it.

        A name in the stack is the name or the id of an adapter.
        If the stack is empty, only the base is leased.
        Raises :class:`ModelNotFoundError` when the base or an adapter is not found, and :class:`ModelNotReadyError`
        when its endpoint is not ready.
        Raises :class:`AdapterBaseError` when *base* is itself the endpoint of an adapter, or when an adapter of the
        stack is on another base.
        If it raises, nothing is leased.
        """
        requested = check_name("base", base)
        if not isinstance(stack, AdapterStack):
            raise TypeError(f"stack must be an AdapterStack, not {stack!r}")
        store = self.models._store
        return store.run(lease_stack, store, requested, list(stack.adapters))


# These functions need the store's lock.


def _load(store: Store, adapter: LoraAdapter, check_base: bool) -> ModelEndpoint:
    endpoint = _endpoint(store, adapter, check_base)
    if _generation(store, adapter) is not None:
        raise AdapterLoadedError(adapter.id.value)
    return store.publish(endpoint, adapter).endpoint


def _swap(store: Store, adapter: LoraAdapter, expect: int | None, check_base: bool, future: IdleFuture) -> None:
    endpoint = _endpoint(store, adapter, check_base)
    if expect is not None:
        _expect(store, adapter, expect)
    store.publish(endpoint, adapter, future)


def _unload(store: Store, id: str, future: IdleFuture) -> None:
    record = store.directory.find_id(id)
    if record is not None and _adapter(record) is not None:
        store.remove(id, future)
    else:
        complete(future, None)


def _begin_loading(store: Store, adapter: LoraAdapter, check_base: bool) -> tuple[ModelEndpoint, int, bool]:
    """Return the loading endpoint, the generation to expect at the end, and whether a ready endpoint keeps serving."""
    loading = replace(_endpoint(store, adapter, check_base), status=EndpointStatus.LOADING)
    present = store.directory.find_id(adapter.id.value)
    if present is not None and present.is_ready:
        return loading, present.generation, True
    return loading, store.publish(loading, adapter).generation, False


def _fail_loading(store: Store, adapter: LoraAdapter, known: int) -> None:
    if _generation(store, adapter) == known:
        store.set_status(adapter.id.value, EndpointStatus.ERROR)


def _end_loading(store: Store, adapter: LoraAdapter, check_base: bool, known: int, serving: bool) -> None:
    _expect(store, adapter, known)
    if serving:
        store.publish(_endpoint(store, adapter, check_base), adapter)
    else:
        store.set_status(adapter.id.value, EndpointStatus.READY)


def _generation(store: Store, adapter: LoraAdapter) -> int | None:
    record = store.directory.find_id(adapter.id.value)
    return None if record is None else record.generation


def _expect(store: Store, adapter: LoraAdapter, generation: int) -> None:
    """Raise :class:`StaleGenerationError` when *generation* is not the current generation of the adapter's id."""
    present = _generation(store, adapter)
    if present != generation:
        raise StaleGenerationError(adapter.id.value, generation, present)


def _endpoint(store: Store, adapter: LoraAdapter, check_base: bool) -> ModelEndpoint:
    """Return the endpoint of *adapter* on its base. Raise an error when the base is missing or does not fit."""
    record = store.directory.find_id(adapter.base_model)
    if record is None:
        raise ModelNotFoundError(adapter.base_model)
    base = record.endpoint
    limit = base.max_context_length if adapter.max_context_length is None else adapter.max_context_length
    if base.adapter is not None:
        rule = "that is an adapter's endpoint, not a base"
    elif limit > base.max_context_length:
        rule = f"its context of {limit} tokens is longer than the base's {base.max_context_length}"
    elif check_base and not _are_the_same_weights(adapter.trained_on, base.base_model):
        rule = f"it was trained on '{adapter.trained_on}', and the base serves '{base.base_model}'"
    else:
        return ModelEndpoint(
            adapter.id,
            base.base_model,
            description=adapter.description,
            adapter=adapter.name,
            max_context_length=limit,
        )
    raise AdapterBaseError(adapter.name, adapter.base_model, rule)


def _adapter(record: Record) -> LoraAdapter | None:
    """Return the adapter that was published with an endpoint; ``None`` if there is none."""
    return record.adapter if isinstance(record.adapter, LoraAdapter) else None


def _check_adapter(adapter: LoraAdapter) -> None:
    if not isinstance(adapter, LoraAdapter):
        raise TypeError(f"adapter must be a LoraAdapter, not {adapter!r}")


def _are_the_same_weights(trained_on: str | None, base_model: str) -> bool:
    """Return whether an adapter that was trained on these weights fits a base with the weights *base_model*.

    Unknown weights fit every base. Two names are equal if their last path segments are, regardless of case.
    """
    return trained_on in (None, base_model) or _last_segment(str(trained_on)) == _last_segment(base_model)


def _last_segment(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2].casefold()
