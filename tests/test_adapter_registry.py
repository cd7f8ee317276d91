import asyncio
import copy
import gc
import pickle
import typing
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest
from lora_helpers import (
    BASE,
    CODE,
    LAW,
    MATH,
    NEWER,
    NOT_READY,
    PLAIN,
    REMOVALS,
    adapters_on_two_bases,
    each_removal,
    generation,
    in_flight,
    stack_of,
    state,
)

from bonsai_routing import (
    AdapterBaseError,
    AdapterConfigError,
    AdapterLoadedError,
    AdapterRegistry,
    EndpointStatus,
    LoraAdapter,
    ModelEndpoint,
    ModelId,
    ModelNotFoundError,
    ModelNotReadyError,
    ModelRegistry,
    ModelRouter,
    RoutingError,
    StaleGenerationError,
)


@pytest.fixture
def adapters() -> AdapterRegistry:
    return adapters_on_two_bases()


# Publishing, in each of the three ways.


def load(adapters: AdapterRegistry, adapter: LoraAdapter, *, check_base: bool = True) -> ModelEndpoint | None:
    adapters.load(adapter, check_base=check_base)
    return adapters.models.resolve(adapter.id)


def swap(adapters: AdapterRegistry, adapter: LoraAdapter, *, check_base: bool = True) -> ModelEndpoint | None:
    adapters.swap(adapter, check_base=check_base)
    return adapters.models.resolve(adapter.id)


def loading(adapters: AdapterRegistry, adapter: LoraAdapter, *, check_base: bool = True) -> ModelEndpoint | None:
    with adapters.loading(adapter, check_base=check_base):
        pass
    return adapters.models.resolve(adapter.id)


Publish = Callable[..., ModelEndpoint | None]
each_way = pytest.mark.parametrize("publish", [load, swap, loading])


@each_way
def test_an_adapter_inherits_weights_and_context_length(adapters: AdapterRegistry, publish: Publish) -> None:
    endpoint = publish(adapters, replace(CODE, description="Rust"))
    assert endpoint == ModelEndpoint(
        "bonsai:code", "qwen3-8b", adapter="code", description="Rust", max_context_length=32768
    )
    assert endpoint is not None
    assert not endpoint.is_default
    assert endpoint.status is EndpointStatus.READY


@each_way
@pytest.mark.parametrize("limit", [0, 4096, 32768])
def test_a_context_up_to_the_bases_is_kept(adapters: AdapterRegistry, publish: Publish, limit: int) -> None:
    endpoint = publish(adapters, replace(CODE, max_context_length=limit))
    assert endpoint is not None
    assert endpoint.max_context_length == limit


@each_way
def test_a_context_longer_than_the_bases_is_refused(adapters: AdapterRegistry, publish: Publish) -> None:
    before = state(adapters.models)
    with pytest.raises(AdapterBaseError) as caught:
        publish(adapters, replace(CODE, max_context_length=32769), check_base=False)
    error = caught.value
    assert (error.adapter, error.base_model) == ("code", "bonsai")
    assert error.rule == "its context of 32769 tokens is longer than the base's 32768"
    assert state(adapters.models) == before


@each_way
def test_a_base_that_is_not_registered_is_refused(adapters: AdapterRegistry, publish: Publish) -> None:
    before = state(adapters.models)
    with pytest.raises(ModelNotFoundError) as caught:
        publish(adapters, replace(CODE, base_model="gone"), check_base=False)
    assert caught.value.model == "gone"
    assert state(adapters.models) == before


@each_way
def test_an_alias_is_no_base(adapters: AdapterRegistry, publish: Publish) -> None:
    before = state(adapters.models)
    with pytest.raises(ModelNotFoundError) as caught:
        publish(adapters, replace(CODE, base_model="chat"))
    assert caught.value.model == "chat"
    assert state(adapters.models) == before


@each_way
def test_an_adapter_is_no_base(adapters: AdapterRegistry, publish: Publish) -> None:
    adapters.load(CODE)
    before = state(adapters.models)
    with pytest.raises(AdapterBaseError) as caught:
        publish(adapters, LoraAdapter("math", "bonsai:code", ""), check_base=False)
    error = caught.value
    assert (error.adapter, error.base_model) == ("math", "bonsai:code")
    assert error.rule == "that is an adapter's endpoint, not a base"
    assert state(adapters.models) == before


@each_way
def test_an_adapters_endpoint_that_was_registered_by_hand_is_no_base(
    adapters: AdapterRegistry, publish: Publish
) -> None:
    # An empty name is also the name of an adapter.
    adapters.models.register(ModelEndpoint("by-hand", "qwen3-8b", adapter=""))
    with pytest.raises(AdapterBaseError):
        publish(adapters, replace(CODE, base_model="by-hand"))


@each_way
def test_a_base_may_have_a_colon_in_its_id(adapters: AdapterRegistry, publish: Publish) -> None:
    adapters.models.register(ModelEndpoint("bonsai:8b", "qwen3-8b"))
    endpoint = publish(adapters, replace(CODE, base_model="bonsai:8b"))
    assert endpoint is not None
    assert endpoint.id == ModelId("bonsai:8b:code")
    assert adapters.of("bonsai") == []


@each_way
@pytest.mark.parametrize("status", NOT_READY)
def test_a_base_need_not_be_ready(adapters: AdapterRegistry, publish: Publish, status: EndpointStatus) -> None:
    adapters.models.set_status("bonsai", status)
    endpoint = publish(adapters, CODE)
    assert endpoint is not None
    assert endpoint.status is status
    adapters.models.set_status("bonsai", "ready")
    assert ModelRouter(adapters.models).route("bonsai:code").status is EndpointStatus.READY


@each_way
@pytest.mark.parametrize(
    "trained_on",
    [None, "qwen3-8b", "QWEN3-8B", "Qwen/Qwen3-8B", "Qwen/Qwen3-8B/", "/models/qwen3-8b", "hf://Qwen/Qwen3-8B//"],
)
def test_an_adapter_of_the_same_weights_fits(
    adapters: AdapterRegistry, publish: Publish, trained_on: str | None
) -> None:
    assert publish(adapters, replace(CODE, trained_on=trained_on)) is not None


@each_way
def test_the_weights_of_the_base_may_be_a_path_too(adapters: AdapterRegistry, publish: Publish) -> None:
    adapters.models.register(ModelEndpoint("bonsai", "/models/Qwen3-8B/"))
    assert publish(adapters, replace(CODE, trained_on="qwen3-8b")) is not None


@each_way
def test_the_full_text_is_compared_first(adapters: AdapterRegistry, publish: Publish) -> None:
    adapters.models.register(ModelEndpoint("bonsai", ""))
    assert publish(adapters, replace(CODE, trained_on="")) is not None


@each_way
@pytest.mark.parametrize("trained_on", ["qwen3", "qwen3-8b-base", "qwen3-8b/lora", "llama-3", "qwen3-8b:code"])
def test_an_adapter_of_other_weights_is_refused(adapters: AdapterRegistry, publish: Publish, trained_on: str) -> None:
    before = state(adapters.models)
    with pytest.raises(AdapterBaseError) as caught:
        publish(adapters, replace(CODE, trained_on=trained_on))
    error = caught.value
    assert (error.adapter, error.base_model) == ("code", "bonsai")
    assert error.rule == (
        f"it was trained on '{trained_on}', and the base serves 'qwen3-8b'; "
        "if these are the same weights, set check_base to false"
    )
    assert state(adapters.models) == before


@each_way
def test_an_adapter_of_other_weights_is_let_in_on_demand(adapters: AdapterRegistry, publish: Publish) -> None:
    assert publish(adapters, replace(CODE, trained_on="llama-3"), check_base=False) is not None


@each_way
@pytest.mark.parametrize("adapter", [BASE, "code", None], ids=repr)
def test_only_adapters_are_published(adapters: AdapterRegistry, publish: Publish, adapter: object) -> None:
    before = state(adapters.models)
    with pytest.raises(TypeError) as caught:
        publish(adapters, adapter)
    assert str(caught.value) == f"adapter must be a LoraAdapter, not {adapter!r}"
    assert state(adapters.models) == before


# Loading.


def test_loading_returns_what_it_has_published(adapters: AdapterRegistry) -> None:
    endpoint = adapters.load(CODE)
    assert adapters.models.resolve("bonsai:code") is endpoint
    assert adapters.get("bonsai:code") is CODE
    assert ModelRouter(adapters.models).route("bonsai:code") is endpoint


def test_an_adapter_is_loaded_once(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    before = state(adapters.models)
    with pytest.raises(AdapterLoadedError) as caught:
        adapters.load(NEWER)
    assert caught.value.model == "bonsai:code"
    assert state(adapters.models) == before


@pytest.mark.parametrize("status", NOT_READY)
def test_an_adapter_that_is_not_ready_has_its_name_too(adapters: AdapterRegistry, status: EndpointStatus) -> None:
    adapters.load(CODE)
    adapters.models.set_status("bonsai:code", status)
    with pytest.raises(AdapterLoadedError):
        adapters.load(NEWER)


def test_an_adapter_does_not_load_over_another_endpoint(adapters: AdapterRegistry) -> None:
    adapters.models.register(PLAIN)
    before = state(adapters.models)
    with pytest.raises(AdapterLoadedError) as caught:
        adapters.load(CODE)
    assert caught.value.model == "bonsai:code"
    assert state(adapters.models) == before


def test_an_alias_of_the_same_name_is_hidden_by_the_adapter(adapters: AdapterRegistry) -> None:
    adapters.models.add_alias("bonsai:code", "llama")
    endpoint = adapters.load(CODE)
    assert adapters.models.resolve("bonsai:code") is endpoint


def test_one_name_can_be_loaded_on_several_bases(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    adapters.load(replace(CODE, base_model="llama"))
    assert [str(each.id) for each in adapters] == ["bonsai:code", "llama:code"]


# Replacing.


def test_swapping_in_what_is_not_there_loads_it(adapters: AdapterRegistry) -> None:
    assert adapters.swap(CODE).result(timeout=0) is None
    assert adapters.get("bonsai:code") is CODE


def test_swapping_an_idle_adapter_completes_at_once(adapters: AdapterRegistry) -> None:
    old = adapters.load(CODE)
    assert adapters.swap(NEWER).result(timeout=0) is old
    assert adapters.get("bonsai:code") is NEWER


def test_swapping_the_same_adapter_is_a_new_publication(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    before = generation(adapters.models, CODE.id)
    adapters.swap(CODE)
    assert generation(adapters.models, CODE.id) != before


def test_swapping_waits_for_the_last_lease_of_the_old(adapters: AdapterRegistry) -> None:
    old = adapters.load(CODE)
    first, second = (ModelRouter(adapters.models).lease("bonsai:code") for _ in range(2))
    gone = adapters.swap(NEWER)
    with ModelRouter(adapters.models).lease("bonsai:code") as newer:
        assert newer.generation == generation(adapters.models, CODE.id) != first.generation
        first.release()
        assert not gone.done()
        second.release()
        assert gone.result(timeout=0) is old


def test_swapping_takes_the_place_of_any_endpoint(adapters: AdapterRegistry) -> None:
    adapters.models.register(PLAIN)
    assert adapters.swap(CODE).result(timeout=0) is PLAIN
    assert list(adapters) == [CODE]


def test_swapping_makes_ready_what_had_failed(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    adapters.models.set_status("bonsai:code", "error")
    adapters.swap(NEWER)
    assert ModelRouter(adapters.models).route("bonsai:code").status is EndpointStatus.READY


def test_swapping_expects_the_present_generation(adapters: AdapterRegistry) -> None:
    old = adapters.load(CODE)
    assert adapters.swap(NEWER, expect=generation(adapters.models, CODE.id)).result(timeout=0) is old
    assert list(adapters) == [NEWER]


def test_swapping_with_a_stale_generation_changes_nothing(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    stale = generation(adapters.models, CODE.id)
    adapters.swap(NEWER)
    before = state(adapters.models)
    with pytest.raises(StaleGenerationError) as caught:
        adapters.swap(CODE, expect=stale)
    error = caught.value
    assert (error.model, error.expected, error.present) == ("bonsai:code", stale, stale + 1)
    assert state(adapters.models) == before


def test_swapping_expects_in_vain_what_is_gone(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    stale = generation(adapters.models, CODE.id)
    adapters.unload(CODE.id)
    before = state(adapters.models)
    with pytest.raises(StaleGenerationError) as caught:
        adapters.swap(CODE, expect=stale)
    assert (caught.value.expected, caught.value.present) == (stale, None)
    assert state(adapters.models) == before


def test_a_change_of_status_is_no_change_of_generation(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    known = generation(adapters.models, CODE.id)
    adapters.models.set_status("bonsai:code", "error")
    adapters.swap(NEWER, expect=known)
    assert list(adapters) == [NEWER]


def test_zero_is_a_generation_that_nothing_has(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    with pytest.raises(StaleGenerationError):
        adapters.swap(NEWER, expect=0)


def test_a_swap_that_is_refused_leaves_the_old_adapter(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    with ModelRouter(adapters.models).lease("bonsai:code"):
        before = state(adapters.models)
        with pytest.raises(AdapterBaseError):
            adapters.swap(replace(NEWER, trained_on="llama-3"))
        assert state(adapters.models) == before


@each_way
def test_an_adapter_that_is_the_default_stays_it(adapters: AdapterRegistry, publish: Publish) -> None:
    adapters.models.register(replace(PLAIN, is_default=True))
    if publish is load:
        # A removed endpoint is no longer the default, so load() has no default to keep.
        adapters.models.unregister(PLAIN.id)
    endpoint = publish(adapters, CODE)
    assert adapters.models.default_endpoint() is (None if publish is load else endpoint)


@each_way
def test_aliases_lead_to_the_new_adapter(adapters: AdapterRegistry, publish: Publish) -> None:
    adapters.models.add_alias("coder", "bonsai:code")
    endpoint = publish(adapters, CODE)
    assert adapters.models.resolve("coder") is endpoint


# Unloading.


@pytest.mark.parametrize("id", ["bonsai:code", ModelId("bonsai:code")], ids=repr)
def test_unloading_removes_the_endpoint(adapters: AdapterRegistry, id: ModelId | str) -> None:
    old = adapters.load(CODE)
    assert adapters.unload(id).result(timeout=0) is old
    assert adapters.models.resolve("bonsai:code") is None
    assert list(adapters) == []


def test_unloading_waits_for_the_last_lease(adapters: AdapterRegistry) -> None:
    old = adapters.load(CODE)
    with ModelRouter(adapters.models).lease("bonsai:code"):
        gone = adapters.unload("bonsai:code")
        assert not gone.done()
        assert list(adapters) == []
    assert gone.result(timeout=0) is old


@pytest.mark.parametrize("id", ["bonsai:gone", "bonsai", "code", "coder", "bonsai:plain", ""])
def test_unloading_what_is_no_adapters_id_does_nothing(adapters: AdapterRegistry, id: str) -> None:
    adapters.load(CODE)
    adapters.models.add_alias("coder", "bonsai:code")
    adapters.models.register(ModelEndpoint("bonsai:plain", "qwen3-8b", adapter="plain"))
    before = state(adapters.models)
    assert adapters.unload(id).result(timeout=0) is None
    assert state(adapters.models) == before


def test_unloading_the_default_leaves_none(adapters: AdapterRegistry) -> None:
    adapters.models.register(replace(PLAIN, is_default=True))
    adapters.swap(CODE)
    adapters.unload(CODE.id)
    assert adapters.models.default_endpoint() is None


def test_what_was_unloaded_can_be_loaded_again(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    before = generation(adapters.models, CODE.id)
    adapters.unload(CODE.id)
    adapters.load(CODE)
    assert generation(adapters.models, CODE.id) > before


# Loading in a block.


def test_an_adapter_is_loading_until_the_block_ends(adapters: AdapterRegistry) -> None:
    with adapters.loading(CODE) as load:
        endpoint = load.endpoint
        assert endpoint.status is EndpointStatus.LOADING
        assert adapters.models.resolve("bonsai:code") is endpoint
        assert adapters.get("bonsai:code") is CODE
        known = generation(adapters.models, CODE.id)
        with pytest.raises(ModelNotReadyError):
            ModelRouter(adapters.models).route("bonsai:code")
    assert ModelRouter(adapters.models).route("bonsai:code") == replace(endpoint, status=EndpointStatus("ready"))
    assert generation(adapters.models, CODE.id) == known
    assert list(adapters) == [CODE]


def test_nothing_is_published_before_the_block_begins(adapters: AdapterRegistry) -> None:
    assert repr(adapters.loading(CODE)) == "<AdapterLoad of 'bonsai:code'>"
    assert list(adapters) == []


@pytest.mark.parametrize(
    "failure",
    [
        ValueError("no"),
        ModelNotFoundError("x"),
        StopIteration("no"),
        KeyboardInterrupt(),
        SystemExit(1),
        GeneratorExit(),
        asyncio.CancelledError(),
    ],
    ids=lambda failure: type(failure).__name__,
)
@pytest.mark.parametrize("serving", [False, True], ids=["new", "serving"])
def test_whatever_the_block_raises_goes_through(
    adapters: AdapterRegistry, failure: BaseException, serving: bool
) -> None:
    if serving:
        adapters.load(CODE)
    before = state(adapters.models)
    with pytest.raises(type(failure)) as caught, adapters.loading(NEWER):
        raise failure
    assert caught.value is failure
    if serving:
        assert state(adapters.models) == before
    else:
        endpoint = adapters.models.resolve("bonsai:code")
        assert endpoint is not None
        assert endpoint.status is EndpointStatus.ERROR
        assert list(adapters) == [NEWER]


def test_an_exception_is_not_chained_to_anything(adapters: AdapterRegistry) -> None:
    with pytest.raises(ValueError, match="no") as caught, adapters.loading(CODE):
        raise ValueError("no")
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_what_failed_to_load_can_be_tried_again(adapters: AdapterRegistry) -> None:
    with suppress(ValueError), adapters.loading(CODE):
        raise ValueError
    failed = generation(adapters.models, CODE.id)
    with adapters.loading(NEWER) as load:
        assert adapters.models.resolve("bonsai:code") is load.endpoint
    assert ModelRouter(adapters.models).route("bonsai:code").status is EndpointStatus.READY
    assert generation(adapters.models, CODE.id) > failed
    assert list(adapters) == [NEWER]


@pytest.mark.parametrize("status", NOT_READY)
def test_what_serves_nothing_is_replaced_at_once(adapters: AdapterRegistry, status: EndpointStatus) -> None:
    adapters.load(CODE)
    adapters.models.set_status("bonsai:code", status)
    with adapters.loading(NEWER) as load:
        assert adapters.models.resolve("bonsai:code") is load.endpoint
        assert list(adapters) == [NEWER]


def test_the_old_adapter_serves_until_the_new_one_is_there(adapters: AdapterRegistry) -> None:
    old = adapters.load(CODE)
    known = generation(adapters.models, CODE.id)
    with ModelRouter(adapters.models).lease("bonsai:code") as lease:
        with adapters.loading(NEWER) as load:
            endpoint = load.endpoint
            assert endpoint.status is EndpointStatus.LOADING
            assert not load.idle.done()
            assert ModelRouter(adapters.models).route("bonsai:code") is old is lease.endpoint
            assert generation(adapters.models, CODE.id) == known
            assert list(adapters) == [CODE]
            assert adapters.models.draining() == []
        assert ModelRouter(adapters.models).route("bonsai:code") == replace(endpoint, status=EndpointStatus("ready"))
        assert generation(adapters.models, CODE.id) > known
        assert list(adapters) == [NEWER]
        assert [each.endpoint for each in adapters.models.draining()] == [old]
        assert not load.idle.done()
    assert load.idle.result(timeout=0) is old
    assert adapters.models.draining() == []


def test_a_plain_endpoint_serves_until_the_adapter_is_there(adapters: AdapterRegistry) -> None:
    adapters.models.register(PLAIN)
    with adapters.loading(CODE):
        assert adapters.models.resolve("bonsai:code") is PLAIN
        assert list(adapters) == []
    assert list(adapters) == [CODE]


def test_the_base_is_looked_at_again_before_a_serving_adapter_is_replaced(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    loading_newer = adapters.loading(replace(NEWER, max_context_length=32768))
    with pytest.raises(AdapterBaseError), loading_newer:
        adapters.models.register(replace(BASE, max_context_length=8192))
    assert list(adapters) == [CODE]
    assert loading_newer.idle.result(timeout=0) is None


def test_the_default_stays_with_an_adapter_that_is_loading(adapters: AdapterRegistry) -> None:
    adapters.models.register(replace(PLAIN, is_default=True, status=EndpointStatus("error")))
    with adapters.loading(CODE) as load:
        assert adapters.models.default_endpoint() is load.endpoint
    assert adapters.models.default_endpoint() == replace(load.endpoint, status=EndpointStatus("ready"))


def swap_elsewhere(adapters: AdapterRegistry) -> None:
    AdapterRegistry(adapters.models).swap(replace(CODE, source="elsewhere"))


def load_elsewhere(adapters: AdapterRegistry) -> None:
    adapters.unload("bonsai:code")
    AdapterRegistry(adapters.models).load(replace(CODE, source="elsewhere"))


each_interference = pytest.mark.parametrize("interfere", [*REMOVALS, swap_elsewhere, load_elsewhere])
each_start = pytest.mark.parametrize("serving", [False, True], ids=["new", "serving"])


@each_interference
@each_start
def test_what_was_replaced_or_removed_while_it_loaded_is_left_alone(
    adapters: AdapterRegistry, serving: bool, interfere: Callable[[AdapterRegistry], None]
) -> None:
    if serving:
        adapters.load(CODE)
    with pytest.raises(StaleGenerationError) as caught, adapters.loading(NEWER):
        known = generation(adapters.models, CODE.id)
        interfere(adapters)
        after = state(adapters.models)
    error = caught.value
    assert (error.model, error.expected) == ("bonsai:code", known)
    assert error.present == adapters.models.generation("bonsai:code") != known
    assert state(adapters.models) == after
    assert adapters.get("bonsai:code") != NEWER


@each_interference
@each_start
def test_a_failure_leaves_alone_what_somebody_else_has_put_there(
    adapters: AdapterRegistry, serving: bool, interfere: Callable[[AdapterRegistry], None]
) -> None:
    if serving:
        adapters.load(CODE)
    with pytest.raises(ValueError, match="no"), adapters.loading(NEWER):
        interfere(adapters)
        after = state(adapters.models)
        raise ValueError("no")
    assert state(adapters.models) == after


@each_start
def test_an_id_that_is_being_loaded_is_not_loaded_a_second_time(adapters: AdapterRegistry, serving: bool) -> None:
    if serving:
        adapters.load(CODE)
    with adapters.loading(NEWER):
        before = state(adapters.models)
        for directory in (adapters, AdapterRegistry(adapters.models)):
            with pytest.raises(AdapterLoadedError) as caught, directory.loading(CODE):
                pytest.fail("the block was entered")
            assert caught.value.model == "bonsai:code"
        assert state(adapters.models) == before
        with adapters.loading(MATH):
            pass
    assert list(adapters) == [NEWER, MATH]
    with adapters.loading(CODE):
        pass
    assert list(adapters) == [CODE, MATH]


def test_an_id_can_be_loaded_again_when_an_earlier_block_was_removed_or_failed(adapters: AdapterRegistry) -> None:
    for failure in (ValueError("no"), KeyboardInterrupt()):
        with suppress(ValueError, KeyboardInterrupt), adapters.loading(CODE):
            raise failure
        with suppress(StaleGenerationError), adapters.loading(CODE):
            adapters.unload(CODE.id)
        with adapters.loading(CODE):
            pass
        assert ModelRouter(adapters.models).route("bonsai:code").status is EndpointStatus.READY


def test_a_block_is_entered_once(adapters: AdapterRegistry) -> None:
    block = adapters.loading(CODE)
    with block:
        pass
    with pytest.raises(RuntimeError, match="one with block"), block:
        pytest.fail("the block was entered")
    assert list(adapters) == [CODE]


@each_start
def test_a_status_that_is_set_meanwhile_is_no_replacement(adapters: AdapterRegistry, serving: bool) -> None:
    if serving:
        adapters.load(CODE)
    with adapters.loading(NEWER):
        adapters.models.set_status("bonsai:code", "error")
    assert list(adapters) == [NEWER]
    assert ModelRouter(adapters.models).route("bonsai:code").status is EndpointStatus.READY


def test_a_reload_that_changes_nothing_does_not_disturb_what_loads(adapters: AdapterRegistry) -> None:
    with adapters.loading(CODE):
        adapters.models.replace_with(copy.deepcopy(adapters.models))
    assert list(adapters) == [CODE]


def test_a_load_that_is_given_up_has_failed(adapters: AdapterRegistry) -> None:
    block = adapters.loading(CODE)
    block.__enter__()
    del block
    gc.collect()
    endpoint = adapters.models.resolve("bonsai:code")
    assert endpoint is not None
    assert endpoint.status is EndpointStatus.ERROR


# Listing.


def test_a_new_directory_is_empty(adapters: AdapterRegistry) -> None:
    assert len(adapters) == 0
    assert list(adapters) == adapters.of("bonsai") == []
    assert adapters.get("bonsai:code") is None


def test_a_directory_needs_a_registry() -> None:
    with pytest.raises(TypeError, match="models must be a ModelRegistry, not None"):
        AdapterRegistry(None)  # type: ignore[arg-type]


def test_an_empty_registry_is_a_registry() -> None:
    models = ModelRegistry()
    assert AdapterRegistry(models).models is models


def test_adapters_are_found_by_id_alone(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    adapters.models.add_alias("coder", "bonsai:code")
    assert adapters.get("bonsai:code") is adapters.get(ModelId("bonsai:code")) is CODE
    assert [adapters.get(name) for name in ("coder", "code", "bonsai", "")] == [None] * 4


def test_adapters_are_listed_in_the_order_of_loading(adapters: AdapterRegistry) -> None:
    for each in (MATH, LAW, CODE):
        adapters.load(each)
    adapters.swap(replace(MATH, source="newer"))
    assert [each.name for each in adapters] == ["math", "law", "code"]
    assert len(adapters) == 3


@pytest.mark.parametrize("base", ["bonsai", ModelId("bonsai")], ids=repr)
def test_adapters_are_listed_by_base(adapters: AdapterRegistry, base: ModelId | str) -> None:
    for each in (MATH, LAW, CODE):
        adapters.load(each)
    assert adapters.of(base) == [MATH, CODE]
    assert adapters.of("llama") == [LAW]
    assert adapters.of("chat") == adapters.of("gone") == []


def test_endpoints_that_were_registered_by_hand_are_no_adapters(adapters: AdapterRegistry) -> None:
    adapters.models.register(ModelEndpoint("bonsai:code", "qwen3-8b", adapter="code"))
    assert adapters.get("bonsai:code") is None
    assert list(adapters) == []


def test_a_listing_stays_as_it_is_when_something_is_loaded_meanwhile(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    listing = iter(adapters)
    adapters.load(MATH)
    assert list(listing) == [CODE]


@pytest.mark.parametrize("name", [5, None, b"bonsai"], ids=repr)
def test_names_are_checked(adapters: AdapterRegistry, name: object) -> None:
    with pytest.raises(TypeError, match="id must be"):
        adapters.get(name)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="id must be"):
        adapters.unload(name)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="base must be"):
        adapters.of(name)  # type: ignore[arg-type]


def test_a_directory_is_shown_with_its_size(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    assert repr(adapters) == f"<AdapterRegistry adapters=1 models={adapters.models!r}>"


@each_removal
def test_an_adapter_goes_with_its_endpoint(
    adapters: AdapterRegistry, remove: Callable[[AdapterRegistry], None]
) -> None:
    adapters.load(CODE)
    remove(adapters)
    assert adapters.get("bonsai:code") is None
    assert list(adapters) == adapters.of("bonsai") == []
    assert len(adapters) == 0


@each_removal
def test_an_adapter_does_not_come_back_with_its_name(
    adapters: AdapterRegistry, remove: Callable[[AdapterRegistry], None]
) -> None:
    endpoint = adapters.load(CODE)
    remove(adapters)
    adapters.models.register(endpoint)
    adapters.models.set_status(endpoint.id, "loading")
    assert adapters.get("bonsai:code") is None


@pytest.mark.parametrize("status", EndpointStatus)
def test_an_adapter_stays_whatever_its_status(adapters: AdapterRegistry, status: EndpointStatus) -> None:
    adapters.load(CODE)
    adapters.models.set_status("bonsai:code", status)
    assert adapters.get("bonsai:code") is CODE
    assert adapters.of("bonsai") == list(adapters) == [CODE]


def test_a_reload_brings_the_adapters_of_the_other_registry(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    other = AdapterRegistry(ModelRegistry())
    other.models.register(BASE)
    other.load(MATH)
    change = adapters.models.replace_with(other.models)
    assert (change.added, change.changed) == (("bonsai:math",), ())
    assert sorted(change.removed) == ["bonsai:code", "llama"]
    assert list(adapters) == list(other) == [MATH]


def test_a_reload_keeps_the_adapters_that_are_the_same(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    known = generation(adapters.models, CODE.id)
    other = AdapterRegistry(ModelRegistry())
    other.models.register(BASE)
    other.load(replace(CODE))
    assert adapters.models.replace_with(other.models).changed == ()
    assert generation(adapters.models, CODE.id) == known
    assert list(adapters) == [CODE]


def test_a_reload_with_another_adapter_behind_an_equal_endpoint_is_a_change(adapters: AdapterRegistry) -> None:
    # The endpoints are equal, but the sources of the adapters differ.
    old = adapters.load(CODE)
    known = generation(adapters.models, CODE.id)
    other = AdapterRegistry(ModelRegistry())
    other.models.register(BASE)
    assert other.load(NEWER) == old
    assert adapters.models.replace_with(other.models).changed == ("bonsai:code",)
    assert generation(adapters.models, CODE.id) != known
    assert list(adapters) == [NEWER]


def test_after_a_reload_the_two_share_nothing(adapters: AdapterRegistry) -> None:
    other = AdapterRegistry(copy.deepcopy(adapters.models))
    other.load(CODE)
    adapters.models.replace_with(other.models)
    other.unload(CODE.id)
    other.load(MATH)
    assert list(adapters) == [CODE]
    assert list(other) == [MATH]


def test_a_load_that_failed_stays_failed_in_a_reload(adapters: AdapterRegistry) -> None:
    with suppress(ValueError), adapters.loading(CODE):
        raise ValueError
    known = generation(adapters.models, CODE.id)
    adapters.models.replace_with(copy.deepcopy(adapters.models))
    assert generation(adapters.models, CODE.id) == known
    endpoint = adapters.models.resolve("bonsai:code")
    assert endpoint is not None
    assert endpoint.status is EndpointStatus.ERROR


def test_two_directories_of_one_registry_agree(adapters: AdapterRegistry) -> None:
    twin = AdapterRegistry(adapters.models)
    adapters.load(CODE)
    assert twin.get("bonsai:code") is CODE
    with pytest.raises(AdapterLoadedError):
        twin.load(CODE)
    twin.swap(NEWER)
    assert list(adapters) == list(twin) == [NEWER]
    with twin.lease_stack("bonsai", stack_of("code")):
        gone = adapters.unload("bonsai:code")
        assert not gone.done()
    assert gone.done()
    assert len(adapters) == len(twin) == 0


def unpickled(adapters: AdapterRegistry) -> AdapterRegistry:
    return typing.cast(AdapterRegistry, pickle.loads(pickle.dumps(adapters)))


@pytest.mark.parametrize("copied", [copy.deepcopy, unpickled])
def test_a_copy_has_the_same_adapters_and_goes_its_own_way(
    adapters: AdapterRegistry, copied: Callable[[AdapterRegistry], AdapterRegistry]
) -> None:
    adapters.load(CODE)
    adapters.load(MATH)
    adapters.models.set_status(MATH.id, "error")
    with adapters.lease_stack("bonsai", stack_of("code")):
        twin = copied(adapters)
        assert twin.models is not adapters.models
        assert list(twin) == list(adapters) == [CODE, MATH]
        assert list(twin.models) == list(adapters.models)
        assert in_flight(twin.models) == {}
        assert twin.unload(CODE.id).done()
        assert twin.swap(replace(MATH, source="newer")).done()
    assert list(adapters) == [CODE, MATH]
    adapters.unload(MATH.id)
    assert [each.source for each in twin] == ["newer"]


# Errors.


@pytest.mark.parametrize(
    ("error", "base", "text"),
    [
        (AdapterBaseError("code", "bonsai", "no"), ValueError, "adapter 'code' does not fit base model 'bonsai': no"),
        (AdapterConfigError("file", "r", "is missing"), ValueError, "file: r is missing"),
        (AdapterConfigError("file", None, "is gone"), ValueError, "file: is gone"),
        (AdapterLoadedError("bonsai:code"), ValueError, "adapter 'bonsai:code' is loaded already"),
        (StaleGenerationError("bonsai", 7, None), RoutingError, "model 'bonsai' has generation None, not 7"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_each_error_carries_its_facts_to_wherever_it_is_sent(
    error: RoutingError, base: type[Exception], text: str
) -> None:
    assert isinstance(error, RoutingError)
    assert isinstance(error, base)
    assert str(error) == text
    assert error.args == tuple(vars(error).values())
    for twin in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert (type(twin), vars(twin), str(twin)) == (type(error), vars(error), text)
