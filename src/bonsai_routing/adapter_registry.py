"""The LoRA adapters that are loaded into a registry: publishing, listing, and leasing them in stacks."""

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import Any
from weakref import ref

from bonsai_routing._checks import check_name, check_tokens, shorten
from bonsai_routing._ledger import IdleFuture, complete, new_future
from bonsai_routing._metadata import merge
from bonsai_routing._record import Note, Own, reason_of
from bonsai_routing._store import Store
from bonsai_routing._weights import are_the_same_weights
from bonsai_routing.adapters import AdapterStack
from bonsai_routing.endpoint import EndpointStatus, ModelEndpoint
from bonsai_routing.errors import AdapterBaseError, AdapterLoadedError, ModelNotFoundError, StaleGenerationError
from bonsai_routing.lora import LoraAdapter
from bonsai_routing.model_id import ModelId
from bonsai_routing.registry import ModelRegistry
from bonsai_routing.stacks import StackLease, lease_stack

__all__ = ["AdapterLoad", "AdapterRegistry"]


class AdapterRegistry:
    """The LoRA adapters that are loaded into a :class:`ModelRegistry`.

    The object has no state of its own: *models* stores each adapter beside its endpoint.
    When the endpoint is unregistered or replaced, by any means, *models* drops the adapter as well.

    The endpoint of an adapter follows the base's, each change in the same step as the base's:
    it is ready only while the base is, and has the base's status until then;
    its context length is the base's, or the adapter's own if that is shorter;
    its metadata is the base's, with the adapter's own on top;
    it is removed when the base is removed or gets other weights, which means another ``base_model`` or ``adapter``;
    it stays, with its generation, when the base is registered anew with the same weights.

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

    def load(
        self,
        adapter: LoraAdapter,
        *,
        handle: object = None,
        status: EndpointStatus | str = EndpointStatus.READY,
        check_base: bool = True,
    ) -> ModelEndpoint:
        """Publish the endpoint ``base:name`` of an adapter that the engine has loaded, and return the endpoint.

        The endpoint follows its base, which :class:`AdapterRegistry` explains.
        *handle* is the engine's object, which the leases of this publication have; the library does not look at it.
        *status* is the adapter's own status.
        Raises :class:`ModelNotFoundError` when the base is not registered, and :class:`AdapterLoadedError` when the id
        is registered already.
        Raises :class:`AdapterBaseError` when the base is itself the endpoint of an adapter, when the adapter's context
        is longer than the base's, or when the adapter was trained on other weights.
        ``check_base=False`` skips the comparison of the weights.
        """
        _check_adapter(adapter)
        own = Own(EndpointStatus(status), None)
        store = self.models._store
        return store.run(load_adapter, store, adapter, own, handle, check_base)

    def swap(
        self, adapter: LoraAdapter, *, handle: object = None, expect: int | None = None, check_base: bool = True
    ) -> Future[ModelEndpoint | None]:
        """Load an adapter, or replace the endpoint that has its id, and return the future of the replaced endpoint.

        The future completes with the replaced endpoint when the last lease of this endpoint has ended.
        If no endpoint was replaced, the future has completed with ``None``.
        Raises the errors of :meth:`load`, except :class:`AdapterLoadedError`.
        If *expect* is given and is not the current generation of the id, raises :class:`StaleGenerationError` and
        changes nothing.
        """
        _check_adapter(adapter)
        future = new_future()
        store = self.models._store
        store.run(_swap, store, adapter, handle, expect, check_base, future)
        return future

    def unload(self, id: ModelId | str) -> Future[ModelEndpoint | None]:
        """Remove the adapter of that id with its endpoint, and return the future of the removed endpoint.

        The future completes with the endpoint when the last lease of the endpoint has ended.
        If no adapter has that id, nothing is removed and the future has completed with ``None``.
        """
        key = check_name("id", id)
        future = new_future()
        store = self.models._store
        store.run(_unload, store, key, future)
        return future

    def loading(self, adapter: LoraAdapter, *, check_base: bool = True) -> "AdapterLoad":
        """Return the ``with`` block in which the engine loads *adapter*.

        The status of the adapter is ``loading`` during the block. After the block it is ``ready``, or ``error`` if the
        block raises, and then the text of the exception is the reason that :class:`ModelNotReadyError` has.
        If a ready endpoint already has the id, this endpoint keeps serving during the block.
        The adapter then replaces it after the block, or never if the block raises.
        The block gets the :class:`AdapterLoad`, to give it the engine's object:

        >>> models = ModelRegistry()
        >>> models.register(ModelEndpoint("bonsai-8b", "qwen3-8b"))
        >>> with AdapterRegistry(models).loading(LoraAdapter("code", "bonsai-8b", "adapters/code")) as load:
        ...     load.handle = f"the weights for {load.endpoint.id}"

        On entering, the block raises the errors of :meth:`load`. :class:`AdapterLoadedError` then means that another
        block is loading the id.
        On leaving, it raises :class:`StaleGenerationError` when the endpoint was replaced or removed in the meantime.
        An exception of the block is not caught.
        """
        _check_adapter(adapter)
        return AdapterLoad(self.models._store, adapter, check_base)

    def get(self, id: ModelId | str) -> LoraAdapter | None:
        """Return the adapter whose endpoint has that id; ``None`` if there is none."""
        record = self.models._directory.find_id(check_name("id", id))
        return None if record is None else record.adapter

    def of(self, base: ModelId | str) -> list[LoraAdapter]:
        """Return the adapters on the base endpoint of that id."""
        key = check_name("base", base)
        return [adapter for adapter in self if adapter.base_model == key]

    def __iter__(self) -> Iterator[LoraAdapter]:
        records = self.models._directory.all_records()
        return iter([record.adapter for record in records if record.adapter is not None])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<AdapterRegistry adapters={len(self)} models={self.models!r}>"

    def lease_stack(
        self, base: ModelId | str | None, stack: AdapterStack, required_context: int | None = None
    ) -> StackLease:
        """Lease a base, by id or alias, together with the adapters of *stack* on it; ``None`` means the default.

        A name in the stack is the name or the id of an adapter.
        If the stack is empty, only the base is leased.
        If *required_context*, in tokens, is given, it must fit into the context of the base and of each adapter.
        Raises :class:`ModelNotFoundError` when the base or an adapter is not found, and :class:`ModelNotReadyError`
        when its endpoint is not ready.
        Raises :class:`NoModelsAvailableError` when *base* is ``None`` and there is no default.
        Raises :class:`AdapterBaseError` when *base* is itself the endpoint of an adapter, or when an adapter of the
        stack is on another base, and :class:`ContextTooLongError` for the shortest context if the tokens do not fit.
        If it raises, nothing is leased.
        """
        requested = None if base is None else check_name("base", base)
        if not isinstance(stack, AdapterStack):
            raise TypeError(f"stack must be an AdapterStack, not {stack!r}")
        if required_context is not None:
            check_tokens("required_context", required_context)
        store = self.models._store
        return store.run(lease_stack, store, requested, list(stack.adapters), required_context)


class AdapterLoad:
    """The ``with`` block in which an engine loads an adapter. :meth:`AdapterRegistry.loading` explains it.

    ``endpoint`` is the adapter's endpoint as it is at the beginning of the block. Its status is ``loading``, or that of
    the base if the base is not ready.
    Set ``handle`` to the engine's object in the block: it is published together with the status ``ready``.
    ``idle`` is the future of the endpoint that the adapter replaces, as :meth:`AdapterRegistry.swap` returns it.
    If it replaces none, the future completes with ``None``, at the end of the block at the latest.
    """

    __slots__ = (
        "__weakref__",
        "_adapter",
        "_check_base",
        "_is_loading",
        "_known",
        "_serving",
        "_store",
        "endpoint",
        "handle",
        "idle",
    )

    def __init__(self, store: Store, adapter: LoraAdapter, check_base: bool) -> None:
        self.endpoint: ModelEndpoint
        self.handle: Any = None
        self.idle: Future[ModelEndpoint | None] = new_future()
        self._store = store
        self._adapter = adapter
        self._check_base = check_base
        # The generation that must be there at the end of the block; None before the block.
        self._known: int | None = None
        # Whether a ready endpoint keeps serving during the block.
        self._serving = False
        # Whether the block has begun and not ended.
        self._is_loading = False

    def __enter__(self) -> "AdapterLoad":
        if self._known is not None:
            raise RuntimeError("an AdapterLoad is for one with block")
        replaced = new_future()
        self._store.run(self._begin, replaced)
        if not self._serving:
            replaced.add_done_callback(self._is_idle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        replaced = new_future()
        try:
            if error is None:
                self._store.run(self._succeed, replaced)
            else:
                self._store.run(self._fail, reason_of(error))
                complete(replaced, None)
        except BaseException:
            complete(replaced, None)
            raise
        finally:
            self._is_loading = False
            self._store.run(self._store.end_load, self._adapter.id.value)
            if self._serving:
                replaced.add_done_callback(self._is_idle)

    def __del__(self) -> None:
        # An exception may have ended __init__.
        if getattr(self, "_is_loading", False):
            self._store.run(self._fail, "the loading was given up")
            self._store.run(self._store.end_load, self._adapter.id.value)

    def __repr__(self) -> str:
        return f"<AdapterLoad of '{self._adapter.id}'>"

    def _is_idle(self, replaced: IdleFuture) -> None:
        # Not completed by the registry itself, which must not run callbacks under its lock.
        complete(self.idle, replaced.result())

    # These need the store's lock.

    def _begin(self, replaced: IdleFuture) -> None:
        store, adapter = self._store, self._adapter
        id = adapter.id.value
        declared = _endpoint(store, adapter, self._check_base)
        if store.is_loading(id):
            raise AdapterLoadedError(id)
        present = store.directory.find_id(id)
        if present is not None and present.own_status().status is EndpointStatus.READY:
            self._serving = True
            self.endpoint = replace(declared, status=EndpointStatus.LOADING)
        else:
            present = store.publish(declared, None, replaced, adapter, _LOADING)
            self.endpoint = present.endpoint
        self._known = present.generation
        store.loads[id] = ref(self)
        self._is_loading = True

    def _succeed(self, replaced: IdleFuture) -> None:
        store, adapter = self._store, self._adapter
        _expect(store, adapter, self._known)
        if self._serving:
            declared = _endpoint(store, adapter, self._check_base)
            store.publish(declared, self.handle, replaced, adapter, _READY)
        else:
            store.set_status(adapter.id.value, EndpointStatus.READY, None, self.handle)

    def _fail(self, reason: str) -> None:
        store, adapter = self._store, self._adapter
        if not self._serving and _generation(store, adapter) == self._known:
            store.set_status(adapter.id.value, EndpointStatus.ERROR, Note(reason, None))


_READY = Own(EndpointStatus.READY, None)
_LOADING = Own(EndpointStatus.LOADING, None)


# These functions need the store's lock.


def load_adapter(
    store: Store, adapter: LoraAdapter, own: Own, handle: object, check_base: bool, is_default: bool = False
) -> ModelEndpoint:
    """Publish an adapter that is not loaded. The endpoint asks to be the default if *is_default* is true."""
    endpoint = _endpoint(store, adapter, check_base)
    if _generation(store, adapter) is not None:
        raise AdapterLoadedError(adapter.id.value)
    declared = replace(endpoint, status=own.status, is_default=is_default)
    return store.publish(declared, handle, None, adapter, own).endpoint


def _swap(
    store: Store, adapter: LoraAdapter, handle: object, expect: int | None, check_base: bool, future: IdleFuture
) -> None:
    endpoint = _endpoint(store, adapter, check_base)
    if expect is not None:
        _expect(store, adapter, expect)
    store.publish(endpoint, handle, future, adapter, _READY)


def _unload(store: Store, id: str, future: IdleFuture) -> None:
    record = store.directory.find_id(id)
    if record is not None and record.adapter is not None:
        store.remove(id, future)
    else:
        complete(future, None)


def _generation(store: Store, adapter: LoraAdapter) -> int | None:
    record = store.directory.find_id(adapter.id.value)
    return None if record is None else record.generation


def _expect(store: Store, adapter: LoraAdapter, generation: int | None) -> None:
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
    elif check_base and not are_the_same_weights(adapter.trained_on, base.base_model):
        trained_on, served = shorten(str(adapter.trained_on)), shorten(base.base_model)
        rule = (
            f"it was trained on '{trained_on}', and the base serves '{served}'; "
            "if these are the same weights, set check_base to false"
        )
    else:
        return ModelEndpoint(
            adapter.id,
            base.base_model,
            description=adapter.description,
            adapter=adapter.name,
            max_context_length=limit,
            metadata=merge(base.metadata, adapter.metadata),
        )
    raise AdapterBaseError(adapter.name, adapter.base_model, rule)


def _check_adapter(adapter: LoraAdapter) -> None:
    if not isinstance(adapter, LoraAdapter):
        raise TypeError(f"adapter must be a LoraAdapter, not {adapter!r}")
