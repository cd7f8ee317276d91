"""The LoRA adapters that are loaded into a registry: publishing, listing, and leasing them in stacks."""

from collections.abc import Iterator
from contextlib import contextmanager

from bonsai_routing._checks import check_name
from bonsai_routing._futures import futures
from bonsai_routing.adapters import AdapterStack
from bonsai_routing.endpoint import READY, EndpointStatus, ModelEndpoint, with_status
from bonsai_routing.errors import (
    AdapterBaseError,
    AdapterLoadedError,
    ModelNotFoundError,
    ModelNotReadyError,
    StaleGenerationError,
)
from bonsai_routing.leases import Lease
from bonsai_routing.lora import LoraAdapter
from bonsai_routing.model_id import ModelId
from bonsai_routing.registry import ModelRegistry
from bonsai_routing.router import ready
from bonsai_routing.stacks import StackLease, StackMember

__all__ = ["AdapterRegistry"]


class AdapterRegistry:
    """The LoRA adapters that are loaded into a :class:`ModelRegistry`.

    The object has no state of its own: *models* stores each adapter beside its endpoint.
    When the endpoint is unregistered or replaced, by any means, *models* drops the adapter as well.
    Several adapter registries of the same *models* always agree.
    Threads may share an adapter registry, and each method takes the registry's lock for a moment.

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
        with self._locked() as models:
            endpoint = self._endpoint(adapter, check_base)
            if models._generation(adapter.id.value) is not None:
                raise AdapterLoadedError(adapter.id.value)
            models._publish(endpoint, attached=adapter)
        return endpoint

    def swap(
        self, adapter: LoraAdapter, *, expect: int | None = None, check_base: bool = True
    ) -> "futures.Future[ModelEndpoint | None]":
        """Load an adapter, or replace the endpoint that has its id, and return the future of the replaced endpoint.

        The future completes with the replaced endpoint when the last lease of this endpoint has ended.
        If no endpoint was replaced, the future has completed with ``None``.
        Raises the errors of :meth:`load`, except :class:`AdapterLoadedError`.
        If *expect* is given and is not the current generation of the id, raises :class:`StaleGenerationError` and
        changes nothing.
        """
        _check_adapter(adapter)
        future: futures.Future[ModelEndpoint | None] = futures.Future()
        with self._locked() as models:
            endpoint = self._endpoint(adapter, check_base)
            if expect is not None:
                self._expect(adapter.id, expect)
            models._publish(endpoint, future, attached=adapter)
        return future

    def unload(self, id: ModelId | str) -> "futures.Future[ModelEndpoint | None]":
        """Remove the adapter of that id with its endpoint, and return the future of the removed endpoint.

        The future completes with the endpoint when the last lease of the endpoint has ended.
        If no adapter has that id, nothing is removed and the future has completed with ``None``.
        """
        key = check_name("id", id)
        future: futures.Future[ModelEndpoint | None] = futures.Future()
        with self._locked() as models:
            if key in _adapters(models):
                models._remove(key, future)
            else:
                future.set_result(None)
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
        id = adapter.id
        with self._locked() as models:
            endpoint = self._endpoint(adapter, check_base)
            loading = with_status(endpoint, EndpointStatus.LOADING)
            present = models._directory.at(id.value)
            serving = present is not None and present.status is READY
            known = models._generation(id.value) if serving else models._publish(loading, attached=adapter)
        try:
            yield loading
        except BaseException:
            with self._locked() as models:
                if not serving and models._generation(id.value) == known:
                    models._set_status(id.value, EndpointStatus.ERROR)
            raise
        with self._locked() as models:
            self._expect(id, known)
            if serving:
                models._publish(self._endpoint(adapter, check_base), attached=adapter)
            else:
                models._set_status(id.value, EndpointStatus.READY)

    def get(self, id: ModelId | str) -> LoraAdapter | None:
        """Return the adapter whose endpoint has that id; ``None`` if there is none."""
        key = check_name("id", id)
        with self._locked() as models:
            return _adapters(models).get(key)

    def of(self, base: ModelId | str) -> list[LoraAdapter]:
        """Return the adapters on the base endpoint of that id."""
        key = check_name("base", base)
        return [adapter for adapter in self if adapter.base_model == key]

    def __iter__(self) -> Iterator[LoraAdapter]:
        with self._locked() as models:
            adapters = list(_adapters(models).values())
        return iter(adapters)

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
        refs = list(stack.adapters)
        with self._locked() as models:
            endpoint = models.resolve(requested)
            if endpoint is None:
                raise ModelNotFoundError(requested)
            if endpoint.adapter is not None:
                raise AdapterBaseError(endpoint.id.value, requested, "it is an adapter's endpoint, not a base")
            # Check everything before the first lease, so that an error leaves nothing leased.
            ready(endpoint)
            adapters = [self._member(endpoint.id.value, ref.name) for ref in refs]
            slots = [models._directory.slots[str(id)] for id in (endpoint.id, *(each.id for each in adapters))]
            leases = [
                Lease(slot.endpoint, slot.id, slot.generation, models._ledger)
                for slot in slots
                if slot.endpoint is not None
            ]
        members = tuple(
            StackMember(adapter, ref.weight, lease.generation)
            for adapter, ref, lease in zip(adapters, refs, leases[1:], strict=True)
        )
        return StackLease(leases, members, self.models._ledger)

    @contextmanager
    def _locked(self) -> Iterator[ModelRegistry]:
        """Hold the registry's lock during the block, so that the block reads and writes in one step."""
        ledger = self.models._ledger
        try:
            with ledger.lock:
                yield self.models
        finally:
            ledger.settle()

    def _endpoint(self, adapter: LoraAdapter, check_base: bool) -> ModelEndpoint:
        """Return the endpoint of *adapter* on its base. Raise an error when the base is missing or does not fit."""
        base = self.models._directory.at(adapter.base_model)
        if base is None:
            raise ModelNotFoundError(adapter.base_model)
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

    def _member(self, base: str, name: str) -> LoraAdapter:
        """Return the ready adapter on *base* with that name or id. Raise an error when there is none."""
        adapters = _adapters(self.models)
        adapter = adapters.get(f"{base}:{name}") or adapters.get(name)
        if adapter is None:
            adapter = next((each for each in adapters.values() if each.name == name), None)
        if adapter is None:
            raise ModelNotFoundError(name if name.startswith(f"{base}:") else f"{base}:{name}")
        if adapter.base_model != base:
            raise AdapterBaseError(name, base, f"it is loaded on '{adapter.base_model}'")
        endpoint = self.models._directory.at(adapter.id.value)
        if endpoint is not None and endpoint.status is not READY:
            raise ModelNotReadyError(adapter.id.value, endpoint.status)
        return adapter

    def _expect(self, id: ModelId, generation: int | None) -> None:
        """Raise :class:`StaleGenerationError` when *generation* is not the current generation of the id."""
        present = self.models._generation(id.value)
        if present != generation:
            raise StaleGenerationError(id.value, generation, present)


def _adapters(models: ModelRegistry) -> dict[str, LoraAdapter]:
    """Return the adapters of a registry by id, in the order of loading."""
    # Only adapters are ever attached to endpoints.
    return models._directory.attached  # type: ignore[return-value]


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
