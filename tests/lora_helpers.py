"""Adapters, registries and small functions that several test modules of LoRA adapters use."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from instructions import stopped_at_each_instruction

from bonsai_routing import (
    AdapterRegistry,
    AdapterStack,
    EndpointStatus,
    LoraAdapter,
    ModelEndpoint,
    ModelId,
    ModelRegistry,
)

BASE = ModelEndpoint("bonsai", "qwen3-8b", max_context_length=32768)
OTHER = ModelEndpoint("llama", "llama-3", max_context_length=8192)
CODE = LoraAdapter("code", "bonsai", "adapters/code")
NEWER = LoraAdapter("code", "bonsai", "adapters/code-2")
MATH = LoraAdapter("math", "bonsai", "adapters/math")
LAW = LoraAdapter("law", "llama", "adapters/law")
PLAIN = ModelEndpoint("bonsai:code", "plain")

NOT_READY = [status for status in EndpointStatus if not status.is_available()]


def adapters_on_two_bases() -> AdapterRegistry:
    """Return an adapter registry without adapters, whose models are two bases and an alias."""
    models = ModelRegistry()
    models.register(BASE)
    models.register(OTHER)
    models.add_alias("chat", "bonsai")
    return AdapterRegistry(models)


def state(models: ModelRegistry) -> object:
    """Return everything that the public methods show of a registry and its adapters."""
    return (
        [(endpoint, models.generation(endpoint.id), models.in_flight(endpoint.id)) for endpoint in models],
        [(each.endpoint, each.generation, each.leases) for each in models.draining()],
        list(AdapterRegistry(models)),
        models.default_endpoint(),
    )


def in_flight(models: ModelRegistry) -> dict[str, int]:
    """Return the number of leases of each endpoint that is leased."""
    leases = {str(endpoint.id): models.in_flight(endpoint.id) for endpoint in models}
    return {id: count for id, count in leases.items() if count}


def generation(models: ModelRegistry, id: ModelId | str) -> int:
    number = models.generation(id)
    assert number is not None
    return number


def stack_of(*names: str) -> AdapterStack:
    stack = AdapterStack()
    for name in names:
        stack = stack.add(name, 1.0)
    return stack


@contextmanager
def once_at(place: int, action: Callable[[], object]) -> Iterator[None]:
    """Call *action* before instruction number *place* of the package that this thread executes in the block.

    If the block executes fewer instructions, *action* is not called.
    """
    countdown = iter(range(place, -1, -1))

    def visit() -> None:
        if next(countdown, None) == 0:
            action()

    with stopped_at_each_instruction(visit):
        yield


# All ways to remove an adapter with its endpoint, or to replace this endpoint by a plain endpoint.


def replace_by_a_plain_endpoint(adapters: AdapterRegistry) -> None:
    adapters.models.register(PLAIN)


def replace_by_its_own_endpoint(adapters: AdapterRegistry) -> None:
    endpoint = adapters.models.resolve("bonsai:code")
    assert endpoint is not None
    adapters.models.register(endpoint)


def swap_for_a_plain_endpoint(adapters: AdapterRegistry) -> None:
    adapters.models.swap(PLAIN)


def unregister(adapters: AdapterRegistry) -> None:
    adapters.models.unregister("bonsai:code")


def retire(adapters: AdapterRegistry) -> None:
    adapters.models.retire("bonsai:code")


def replace_everything_by_nothing(adapters: AdapterRegistry) -> None:
    adapters.models.replace_with(ModelRegistry())


def replace_everything_by_plain_endpoints(adapters: AdapterRegistry) -> None:
    other = ModelRegistry()
    for endpoint in adapters.models:
        other.register(endpoint)
    adapters.models.replace_with(other)


def unload_elsewhere(adapters: AdapterRegistry) -> None:
    AdapterRegistry(adapters.models).unload("bonsai:code")


REMOVALS = [
    replace_by_a_plain_endpoint,
    replace_by_its_own_endpoint,
    swap_for_a_plain_endpoint,
    unregister,
    retire,
    replace_everything_by_nothing,
    replace_everything_by_plain_endpoints,
    unload_elsewhere,
]
each_removal = pytest.mark.parametrize("remove", REMOVALS)
