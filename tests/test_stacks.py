import copy
import gc
import math
import pickle
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import FrozenInstanceError, replace

import pytest
from lora_helpers import (
    BASE,
    CODE,
    LAW,
    MATH,
    NEWER,
    NOT_READY,
    PLAIN,
    adapters_on_two_bases,
    each_removal,
    generation,
    in_flight,
    once_at,
    stack_of,
    state,
)

from bonsai_routing import (
    AdapterBaseError,
    AdapterRegistry,
    AdapterStack,
    EndpointStatus,
    LoraAdapter,
    ModelEndpoint,
    ModelId,
    ModelNotFoundError,
    ModelNotReadyError,
    StackLease,
)


@pytest.fixture
def adapters() -> AdapterRegistry:
    return adapters_on_two_bases()


@pytest.fixture
def loaded() -> AdapterRegistry:
    return three_adapters()


def three_adapters() -> AdapterRegistry:
    """Return an adapter registry with three adapters, two of them on the same base."""
    adapters = adapters_on_two_bases()
    for each in (CODE, MATH, LAW):
        adapters.load(each)
    return adapters


def key_of(adapters: AdapterRegistry, stack: AdapterStack, base: str = "bonsai") -> object:
    with adapters.lease_stack(base, stack) as lease:
        return lease.key


def test_a_stack_is_leased_in_its_order_with_its_weights(loaded: AdapterRegistry) -> None:
    stack = AdapterStack().add("math", 0.25).add("code", -2)
    with loaded.lease_stack("bonsai", stack) as lease:
        assert [(each.adapter, each.weight) for each in lease.members] == [(MATH, 0.25), (CODE, -2.0)]
        assert [each.generation for each in lease.members] == [
            generation(loaded.models, each) for each in (MATH.id, CODE.id)
        ]
        assert lease.endpoint is loaded.models.resolve("bonsai")
        assert in_flight(loaded.models) == {"bonsai": 1, "bonsai:math": 1, "bonsai:code": 1}
        assert repr(lease) == "<StackLease of 'bonsai' members=2>"
    assert in_flight(loaded.models) == {}


def test_a_member_may_be_named_by_its_id(loaded: AdapterRegistry) -> None:
    with loaded.lease_stack("bonsai", stack_of("bonsai:math", "code")) as lease:
        assert [each.adapter for each in lease.members] == [MATH, CODE]
    assert key_of(loaded, stack_of("bonsai:math", "code")) == key_of(loaded, stack_of("math", "code"))


def test_a_name_is_taken_as_that_of_an_adapter_on_the_base_first(loaded: AdapterRegistry) -> None:
    odd = LoraAdapter("llama:law", "bonsai", "")
    loaded.load(odd)
    with loaded.lease_stack("bonsai", stack_of("llama:law")) as lease:
        assert [each.adapter for each in lease.members] == [odd]


def test_the_base_may_be_named_by_id_or_alias(loaded: AdapterRegistry) -> None:
    keys = set()
    for base in ("bonsai", ModelId("bonsai"), "chat"):
        with loaded.lease_stack(base, stack_of("code")) as lease:
            keys.add(lease.key)
    assert len(keys) == 1


def test_an_empty_stack_leases_the_base_alone(loaded: AdapterRegistry) -> None:
    with loaded.lease_stack("bonsai", AdapterStack()) as lease:
        assert lease.members == ()
        assert in_flight(loaded.models) == {"bonsai": 1}
    assert in_flight(loaded.models) == {}


def test_an_adapter_twice_in_a_stack_is_leased_twice(loaded: AdapterRegistry) -> None:
    with loaded.lease_stack("bonsai", AdapterStack().add("code", 0.25).add("code", 0.5)) as lease:
        assert [each.weight for each in lease.members] == [0.25, 0.5]
        assert in_flight(loaded.models) == {"bonsai": 1, "bonsai:code": 2}
    assert in_flight(loaded.models) == {}


def test_a_lease_does_not_change_with_its_stack(loaded: AdapterRegistry) -> None:
    stack = AdapterStack().add("math", 3).add("code", 1)
    with loaded.lease_stack("bonsai", stack) as lease:
        key = lease.key
        stack.normalize_weights()
        stack.adapters.clear()
        assert [each.weight for each in lease.members] == [3.0, 1.0]
        assert lease.key == key
        with pytest.raises(FrozenInstanceError):
            lease.members[0].weight = 1.0  # type: ignore[misc]


def test_the_block_of_a_stack_ends_when_it_raises(loaded: AdapterRegistry) -> None:
    with pytest.raises(ValueError, match="no"), loaded.lease_stack("bonsai", stack_of("code")):
        raise ValueError("no")
    assert in_flight(loaded.models) == {}


def test_releasing_a_stack_twice_is_harmless(loaded: AdapterRegistry) -> None:
    first, second = (loaded.lease_stack("bonsai", stack_of("code")) for _ in range(2))
    with first:
        first.release()
        first.release()
    assert in_flight(loaded.models) == {"bonsai": 1, "bonsai:code": 1}
    second.release()
    assert in_flight(loaded.models) == {}


def test_a_stack_that_is_dropped_says_so_for_each_of_its_leases(loaded: AdapterRegistry) -> None:
    with pytest.warns(ResourceWarning) as caught:
        loaded.lease_stack("bonsai", stack_of("math", "code"))
        gc.collect()
    assert sorted(str(each.message) for each in caught) == [
        f"a lease of '{id}' was dropped without being released" for id in ("bonsai", "bonsai:code", "bonsai:math")
    ]
    assert in_flight(loaded.models) == {}


def test_a_released_stack_is_dropped_in_silence(loaded: AdapterRegistry) -> None:
    # pytest turns a warning into an error.
    lease = loaded.lease_stack("bonsai", stack_of("code"))
    lease.release()
    del lease
    gc.collect()


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_a_stacks_lease_cannot_be_copied(loaded: AdapterRegistry, copied: Callable[[StackLease], object]) -> None:
    with loaded.lease_stack("bonsai", stack_of("code")) as lease, pytest.raises(TypeError, match="cannot be copied"):
        copied(lease)


@pytest.mark.parametrize(
    ("id", "draining"),
    [("bonsai", ["bonsai", "bonsai:code", "bonsai:math"]), ("bonsai:code", ["bonsai:code"])],
)
def test_retiring_any_part_of_a_leased_stack_waits_for_it(
    loaded: AdapterRegistry, id: str, draining: list[str]
) -> None:
    endpoint = loaded.models.resolve(id)
    with loaded.lease_stack("bonsai", stack_of("code", "math")):
        gone = loaded.models.retire(id)
        assert not gone.done()
        assert [each.endpoint.id for each in loaded.models.draining()] == draining
    assert gone.result(timeout=0) is endpoint
    assert loaded.models.draining() == []


def test_swapping_a_leased_member_waits_and_leaves_the_lease_as_it_was(loaded: AdapterRegistry) -> None:
    with loaded.lease_stack("bonsai", stack_of("code")) as lease:
        gone = loaded.swap(NEWER)
        assert not gone.done()
        assert [each.adapter for each in lease.members] == [CODE]
        with loaded.lease_stack("bonsai", stack_of("code")) as newer:
            assert [each.adapter for each in newer.members] == [NEWER]
            assert newer.key != lease.key
    assert gone.done()


def test_releasing_a_stack_goes_on_when_a_callback_stops_the_program(loaded: AdapterRegistry) -> None:
    lease = loaded.lease_stack("bonsai", stack_of("code", "math"))

    def stop(_: Future[ModelEndpoint | None]) -> None:
        raise SystemExit("stopped")

    ends = [loaded.models.retire(id) for id in ("bonsai", "bonsai:code", "bonsai:math")]
    ends[0].add_done_callback(stop)
    try:
        with pytest.raises(SystemExit, match="stopped"):
            lease.release()
        assert all(each.done() for each in ends)
    finally:
        lease.release()


# The key of a stack.


def test_the_key_of_an_unchanged_stack_is_the_same(loaded: AdapterRegistry) -> None:
    stack = AdapterStack().add("math", 0.25).add("code", 0.5)
    first = key_of(loaded, stack)
    loaded.models.set_status("bonsai:code", "error")
    loaded.models.set_status("bonsai:code", "ready")
    loaded.load(LoraAdapter("new", "bonsai", ""))
    assert hash(first) == hash(key_of(loaded, stack))
    assert first == key_of(loaded, AdapterStack().add("bonsai:math", 0.25).add("code", 0.5))


def test_the_key_tells_bases_apart(loaded: AdapterRegistry) -> None:
    assert key_of(loaded, AdapterStack()) != key_of(loaded, AdapterStack(), base="llama")


def test_the_key_tells_orders_apart(loaded: AdapterRegistry) -> None:
    assert key_of(loaded, stack_of("code", "math")) != key_of(loaded, stack_of("math", "code"))


def test_the_key_tells_members_apart(loaded: AdapterRegistry) -> None:
    stacks = [(), ("code",), ("math",), ("code", "math"), ("code", "code")]
    assert len({key_of(loaded, stack_of(*names)) for names in stacks}) == len(stacks)


def test_the_key_tells_weights_apart(loaded: AdapterRegistry) -> None:
    weights = [0.0, 1.0, -1.0, math.nextafter(1.0, 2.0)]
    assert len({key_of(loaded, AdapterStack().add("code", weight)) for weight in weights}) == len(weights)


def test_the_key_tells_which_member_has_which_weight(loaded: AdapterRegistry) -> None:
    one, two = AdapterStack().add("code", 1).add("math", 2), AdapterStack().add("code", 2).add("math", 1)
    assert key_of(loaded, one) != key_of(loaded, two)


@pytest.mark.parametrize("endpoint", [BASE, PLAIN], ids=["base", "member"])
def test_the_key_tells_generations_apart(loaded: AdapterRegistry, endpoint: ModelEndpoint) -> None:
    before = key_of(loaded, stack_of("code"))
    if endpoint is BASE:
        loaded.models.register(BASE)
    else:
        loaded.swap(CODE)
    assert key_of(loaded, stack_of("code")) != before


def test_the_key_of_an_empty_stack_tells_generations_of_the_base_apart(loaded: AdapterRegistry) -> None:
    before = key_of(loaded, AdapterStack())
    loaded.models.register(BASE)
    assert key_of(loaded, AdapterStack()) != before


# Stacks that cannot be leased.


def assert_refused(
    adapters: AdapterRegistry, base: object, stack: object, error: type[Exception], **facts: object
) -> None:
    """Check that leasing raises *error* with these *facts*, and leases nothing."""
    before = state(adapters.models)
    with pytest.raises(error) as caught:
        adapters.lease_stack(base, stack)  # type: ignore[arg-type]
    assert {fact: getattr(caught.value, fact) for fact in facts} == facts
    assert state(adapters.models) == before
    assert in_flight(adapters.models) == {}


def test_a_stack_on_an_unknown_base_is_not_leased(loaded: AdapterRegistry) -> None:
    assert_refused(loaded, "gone", stack_of("code"), ModelNotFoundError, model="gone")


@pytest.mark.parametrize("status", NOT_READY)
def test_a_stack_on_a_base_that_is_not_ready_is_not_leased(loaded: AdapterRegistry, status: EndpointStatus) -> None:
    loaded.models.set_status("bonsai", status)
    assert_refused(
        loaded, "chat", stack_of("code"), ModelNotReadyError, model="bonsai", status=status, requested="chat"
    )
    assert_refused(loaded, "bonsai", AdapterStack(), ModelNotReadyError, model="bonsai", status=status)


@pytest.mark.parametrize("base", ["bonsai:code", "coder"])
def test_a_stack_on_an_adapter_is_not_leased(loaded: AdapterRegistry, base: str) -> None:
    loaded.models.add_alias("coder", "bonsai:code")
    facts = {"adapter": base, "base_model": base, "rule": "it is an adapter's endpoint, not a base"}
    assert_refused(loaded, base, AdapterStack(), AdapterBaseError, **facts)


def test_a_stack_on_an_adapter_that_was_registered_by_hand_is_not_leased(loaded: AdapterRegistry) -> None:
    # An empty name is also the name of an adapter.
    loaded.models.register(ModelEndpoint("by-hand", "qwen3-8b", adapter=""))
    assert_refused(loaded, "by-hand", AdapterStack(), AdapterBaseError, adapter="by-hand", base_model="by-hand")


@pytest.mark.parametrize("names", [("gone",), ("code", "gone"), ("gone", "code"), ("code", "bonsai:code:x")])
def test_a_stack_with_an_unknown_member_is_not_leased(loaded: AdapterRegistry, names: tuple[str, ...]) -> None:
    assert_refused(loaded, "bonsai", stack_of(*names), ModelNotFoundError)


def test_an_unknown_member_is_named_by_the_name_that_it_would_have(loaded: AdapterRegistry) -> None:
    assert_refused(loaded, "bonsai", stack_of("gone"), ModelNotFoundError, model="bonsai:gone")
    loaded.models.set_default("bonsai")
    assert_refused(loaded, None, stack_of("gone"), ModelNotFoundError, model="bonsai:gone")
    # An alias does not show the id behind it.
    assert_refused(loaded, "chat", stack_of("gone"), ModelNotFoundError, model="chat:gone")


def test_an_unknown_member_that_was_named_by_its_id_is_named_so(loaded: AdapterRegistry) -> None:
    assert_refused(loaded, "bonsai", stack_of("bonsai:gone"), ModelNotFoundError, model="bonsai:gone")


@pytest.mark.parametrize("name", ["", "bonsai", "chat", "coder", "plain"])
def test_neither_bases_nor_aliases_nor_plain_endpoints_are_members(loaded: AdapterRegistry, name: str) -> None:
    loaded.models.add_alias("coder", "bonsai:code")
    loaded.models.register(ModelEndpoint("bonsai:plain", "qwen3-8b", adapter="plain"))
    assert_refused(loaded, "bonsai", stack_of(name), ModelNotFoundError)


@each_removal
def test_a_member_that_is_gone_is_unknown(loaded: AdapterRegistry, remove: Callable[[AdapterRegistry], None]) -> None:
    remove(loaded)
    assert_refused(loaded, "bonsai", stack_of("code"), ModelNotFoundError)


@pytest.mark.parametrize("status", NOT_READY)
@pytest.mark.parametrize("names", [("math",), ("math", "code"), ("code", "math")])
def test_a_stack_with_a_member_that_is_not_ready_is_not_leased(
    loaded: AdapterRegistry, status: EndpointStatus, names: tuple[str, ...]
) -> None:
    loaded.models.set_status(MATH.id, status)
    for base in ("bonsai", "chat"):
        facts = {"model": "bonsai:math", "status": status, "requested": f"{base}:math"}
        assert_refused(loaded, base, stack_of(*names), ModelNotReadyError, **facts)


def test_a_stack_with_a_member_that_loads_is_not_leased(loaded: AdapterRegistry) -> None:
    with loaded.loading(LoraAdapter("new", "bonsai", "")):
        assert_refused(loaded, "bonsai", stack_of("code", "new"), ModelNotReadyError, model="bonsai:new")
    with loaded.loading(NEWER):
        # The old adapter keeps serving.
        assert key_of(loaded, stack_of("code"))


@pytest.mark.parametrize("name", ["law", "llama:law"])
@pytest.mark.parametrize("status", EndpointStatus)
def test_a_stack_with_a_member_on_another_base_is_not_leased(
    loaded: AdapterRegistry, name: str, status: EndpointStatus
) -> None:
    loaded.models.set_status("llama:law", status)
    # An alias may map to the other base as well, whose id is not for clients.
    for base, where in (("bonsai", "'llama'"), ("chat", "another base")):
        facts = {"adapter": name, "base_model": base, "rule": f"it is loaded on {where}"}
        assert_refused(loaded, base, stack_of("code", name), AdapterBaseError, **facts)


def test_an_adapter_of_the_base_goes_before_one_of_the_same_name_elsewhere(adapters: AdapterRegistry) -> None:
    adapters.load(replace(CODE, base_model="llama"))
    adapters.load(CODE)
    with adapters.lease_stack("bonsai", stack_of("code")) as lease:
        assert [each.adapter for each in lease.members] == [CODE]


@pytest.mark.parametrize("stack", [None, ["code"], "code", ()], ids=repr)
def test_only_stacks_are_leased(loaded: AdapterRegistry, stack: object) -> None:
    assert_refused(loaded, "bonsai", stack, TypeError)


@pytest.mark.parametrize("base", [5, b"bonsai"], ids=repr)
def test_a_base_is_named_by_text(loaded: AdapterRegistry, base: object) -> None:
    assert_refused(loaded, base, stack_of("code"), TypeError)


# A release while the lock is held.


def test_a_stack_may_be_released_in_the_middle_of_a_write() -> None:
    # A signal handler or a finalizer may do so in the writer's own thread.
    for place in range(10_000):
        adapters = three_adapters()
        lease = adapters.lease_stack("bonsai", stack_of("code", "math"))
        ends = [adapters.unload("bonsai:code"), adapters.unload("bonsai:math")]
        with once_at(place, lease.release):
            adapters.models.register(ModelEndpoint("other", "weights"))
        if not all(each.done() for each in ends):
            lease.release()
            assert place > 100
            return
    pytest.fail("the call does not end")
