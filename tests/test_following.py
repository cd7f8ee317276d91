"""An adapter's endpoint follows its base: its status, its context length, and its end."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from instructions import stopped_at_each_instruction
from lora_helpers import BASE, CODE, MATH, NOT_READY, PLAIN, adapters_on_two_bases, generation, stack_of

from bonsai_routing import (
    AdapterRegistry,
    ContextTooLongError,
    EndpointStatus,
    LoraAdapter,
    ModelEndpoint,
    ModelNotFoundError,
    ModelNotReadyError,
    ModelRegistry,
    ModelRouter,
    models_response,
)

Change = Callable[[ModelRegistry], object]

LLAMA = replace(BASE, base_model="llama-3")
SHORT = replace(BASE, max_context_length=8192)


@pytest.fixture
def models() -> ModelRegistry:
    """Two bases, an adapter with an alias that is the default, and a plain endpoint with a name like an adapter's."""
    adapters = adapters_on_two_bases()
    adapters.load(CODE)
    adapters.models.add_alias("coder", "bonsai:code")
    adapters.models.set_default("bonsai:code")
    adapters.models.register(ModelEndpoint("bonsai:plain", "qwen3-8b", adapter="plain", max_context_length=32768))
    return adapters.models


def replaced_by(*endpoints: ModelEndpoint, adapters: tuple[LoraAdapter, ...] = ()) -> Change:
    """Return a change that replaces everything by these."""

    def change(models: ModelRegistry) -> object:
        other = ModelRegistry()
        for endpoint in endpoints:
            other.register(endpoint)
        for adapter in adapters:
            AdapterRegistry(other).load(adapter)
        return models.replace_with(other)

    return change


def removed_and_registered(endpoint: ModelEndpoint) -> Change:
    def change(models: ModelRegistry) -> None:
        models.unregister("bonsai")
        models.register(endpoint)

    return change


def adapter_of(models: ModelRegistry) -> ModelEndpoint:
    endpoint = models.resolve("bonsai:code")
    assert endpoint is not None
    return endpoint


@pytest.mark.parametrize("status", NOT_READY)
def test_an_adapter_is_not_ready_while_its_base_is_not(models: ModelRegistry, status: EndpointStatus) -> None:
    router = ModelRouter(models)
    models.set_status("bonsai", status)
    for name in ("bonsai:code", "coder", None):
        with pytest.raises(ModelNotReadyError) as caught:
            router.route(name)
        assert (caught.value.model, caught.value.status) == ("bonsai:code", status)
        with pytest.raises(ModelNotReadyError):
            router.lease(name)
    with pytest.raises(ModelNotReadyError):
        AdapterRegistry(models).lease_stack("bonsai", stack_of("code"))
    assert "bonsai:code" not in [entry.id for entry in router.models_list()]
    assert "bonsai:code" not in str(models_response(router, aliases=True))
    assert "bonsai:code" not in [str(endpoint.id) for endpoint in models.available_endpoints()]
    models.set_status("bonsai", "ready")
    assert router.route("coder").status is EndpointStatus.READY


@pytest.mark.parametrize(
    "change",
    [
        lambda models: models.register(replace(BASE, status=EndpointStatus.LOADING)),
        lambda models: models.swap(replace(BASE, status=EndpointStatus.LOADING)),
        replaced_by(replace(BASE, status=EndpointStatus.LOADING), adapters=(CODE,)),
    ],
    ids=["register", "swap", "replace_with"],
)
def test_an_adapter_is_not_ready_on_a_base_that_is_registered_anew_and_loads(
    models: ModelRegistry, change: Change
) -> None:
    known = generation(models, "bonsai:code")
    change(models)
    assert adapter_of(models).status is EndpointStatus.LOADING
    models.set_status("bonsai", "ready")
    assert ModelRouter(models).route("bonsai:code").status is EndpointStatus.READY
    assert generation(models, "bonsai:code") == known


@pytest.mark.parametrize("own", EndpointStatus)
@pytest.mark.parametrize("base", EndpointStatus)
@pytest.mark.parametrize("base_first", [False, True])
def test_the_bases_status_goes_before_the_adapters_own(
    models: ModelRegistry, own: EndpointStatus, base: EndpointStatus, base_first: bool
) -> None:
    changes = [("bonsai:code", own), ("bonsai", base)]
    for id, status in reversed(changes) if base_first else changes:
        assert models.set_status(id, status)
    assert adapter_of(models).status is (own if base.is_available() else base)
    models.set_status("bonsai", "ready")
    assert adapter_of(models).status is own


def test_the_error_has_the_reason_of_what_is_not_ready(models: ModelRegistry) -> None:
    def reason() -> tuple[str | None, float | None]:
        with pytest.raises(ModelNotReadyError) as caught:
            ModelRouter(models).route("bonsai:code")
        return caught.value.reason, caught.value.retry_after

    models.set_status("bonsai:code", "error", reason="bad file")
    models.set_status("bonsai", "loading", reason="starting", retry_after=30)
    assert reason() == ("starting", 30)
    models.set_status("bonsai", "ready")
    assert reason() == ("bad file", None)


@pytest.mark.parametrize(
    "change",
    [
        lambda models: models.register(SHORT),
        lambda models: models.swap(SHORT),
        replaced_by(SHORT, adapters=(CODE,)),
    ],
    ids=["register", "swap", "replace_with"],
)
def test_an_adapter_has_at_most_the_context_of_its_base(models: ModelRegistry, change: Change) -> None:
    router = ModelRouter(models)
    known = generation(models, "bonsai:code")
    assert router.route_for_context("bonsai:code", 32768).max_context_length == 32768
    change(models)
    assert router.route_for_context("bonsai:code", 8192).max_context_length == 8192
    with pytest.raises(ContextTooLongError) as caught:
        router.route_for_context("bonsai:code", 8193)
    assert (caught.value.model, caught.value.available) == ("bonsai:code", 8192)
    models.register(replace(BASE, max_context_length=65536))
    assert router.route_for_context("bonsai:code", 65536).max_context_length == 65536
    assert generation(models, "bonsai:code") == known


def test_an_adapter_with_a_context_of_its_own_has_the_shorter_one() -> None:
    adapters = adapters_on_two_bases()
    adapters.load(replace(CODE, max_context_length=16384))
    lengths = []
    for length in (16385, 16384, 16383, 0, 65536):
        adapters.models.register(replace(BASE, max_context_length=length))
        lengths.append(adapter_of(adapters.models).max_context_length)
    assert lengths == [16384, 16384, 16383, 0, 16384]


def test_an_adapters_endpoint_has_the_metadata_of_its_base_with_its_own_on_top() -> None:
    models = adapters_on_two_bases().models
    models.register(replace(BASE, metadata={"url": "http://one", "price": {"eur": 1, "usd": 2}}))
    adapters = AdapterRegistry(models)
    loaded = adapters.load(replace(CODE, metadata={"price": {"eur": 3}, "owner": "search"}))
    assert loaded == adapter_of(models)
    assert loaded.metadata == {"url": "http://one", "price": {"eur": 3}, "owner": "search"}
    assert list(loaded.metadata) == ["url", "price", "owner"]
    assert adapters.load(MATH).metadata == {"url": "http://one", "price": {"eur": 1, "usd": 2}}
    with adapters.loading(replace(CODE, metadata={"owner": "law"})) as load:
        assert load.endpoint.metadata == {"url": "http://one", "price": {"eur": 1, "usd": 2}, "owner": "law"}
        assert adapter_of(models).metadata["owner"] == "search"
    assert adapter_of(models).metadata["owner"] == "law"


@pytest.mark.parametrize("own", [{}, {"owner": "search"}])
@pytest.mark.parametrize("how", ["register", "swap", "replace_with"])
def test_an_adapter_follows_the_metadata_of_its_base_and_keeps_its_generation(own: dict[str, str], how: str) -> None:
    adapters = adapters_on_two_bases()
    models, adapter = adapters.models, replace(CODE, metadata=own)
    adapters.load(adapter, handle="weights")
    known = generation(models, "bonsai:code")
    newer = replace(BASE, metadata={"url": "http://two"})
    if how == "replace_with":
        replaced_by(newer, adapters=(adapter,))(models)
    else:
        getattr(models, how)(newer)
    with ModelRouter(models).lease("bonsai:code") as lease:
        assert lease.endpoint.metadata == {"url": "http://two", **own}
        assert (lease.generation, lease.handle, lease.adapter) == (known, "weights", adapter)
    models.set_status("bonsai:code", "error")
    models.set_status("bonsai", "loading")
    assert adapter_of(models).metadata == {"url": "http://two", **own}
    models.register(BASE)
    assert adapter_of(models).metadata == own


def test_the_largest_context_is_looked_for_among_what_adapters_have_now() -> None:
    adapters = adapters_on_two_bases()
    adapters.load(CODE)
    models = adapters.models
    models.set_default("llama")
    models.register(replace(BASE, max_context_length=10_000, status=EndpointStatus.READY))
    assert ModelRouter(models).route_for_context(None, 10_000).id == "bonsai"
    models.unregister("bonsai")
    with pytest.raises(ContextTooLongError):
        ModelRouter(models).route_for_context(None, 10_000)


OTHER_WEIGHTS = [
    lambda models: models.register(LLAMA),
    lambda models: models.swap(LLAMA),
    removed_and_registered(LLAMA),
    removed_and_registered(BASE),
    lambda models: models.register(replace(BASE, adapter="merged")),
    lambda models: models.unregister("bonsai"),
    lambda models: models.retire("bonsai"),
    replaced_by(),
    replaced_by(BASE),
    replaced_by(LLAMA),
]
OTHER_WEIGHTS_NAMES = [
    "register",
    "swap",
    "unregister and register",
    "unregister and register the same",
    "register with an adapter",
    "unregister",
    "retire",
    "replace_with nothing",
    "replace_with the base alone",
    "replace_with other weights",
]


@pytest.mark.parametrize("change", OTHER_WEIGHTS, ids=OTHER_WEIGHTS_NAMES)
def test_an_adapter_goes_when_its_base_goes_or_gets_other_weights(models: ModelRegistry, change: Change) -> None:
    adapters, router = AdapterRegistry(models), ModelRouter(models)
    old = adapter_of(models)
    with router.lease("coder") as lease:
        change(models)
        assert models.resolve("bonsai:code") is None
        assert list(adapters) == []
        for name in ("bonsai:code", "coder"):
            with pytest.raises(ModelNotFoundError):
                router.route(name)
        assert models.default_endpoint() is None
        assert "coder" not in models.aliases()
        assert [(each.endpoint, each.leases) for each in models.draining() if each.generation == lease.generation] == [
            (old, 1)
        ]
        assert lease.adapter is CODE
    assert models.draining() == []


def test_a_base_of_other_weights_may_bring_adapters_of_its_own(models: ModelRegistry) -> None:
    known = generation(models, "bonsai:code")
    change = models.replace_with(ModelRegistry())
    assert "bonsai:code" in change.removed
    replaced_by(LLAMA, adapters=(CODE,))(models)
    assert adapter_of(models).base_model == "llama-3"
    assert generation(models, "bonsai:code") > known


def test_an_adapter_is_published_anew_by_a_reload_that_changes_its_bases_weights(models: ModelRegistry) -> None:
    known = generation(models, "bonsai:code")
    replaced_by(LLAMA, adapters=(CODE,))(models)
    assert adapter_of(models).base_model == "llama-3"
    assert generation(models, "bonsai:code") > known


@pytest.mark.parametrize(
    "change",
    [
        lambda models: models.register(BASE),
        lambda models: models.swap(replace(BASE, description="reloaded", display_name="B")),
        replaced_by(replace(BASE, description="reloaded"), adapters=(CODE,)),
    ],
    ids=["register", "swap", "replace_with"],
)
def test_an_adapter_stays_when_its_base_is_registered_anew(models: ModelRegistry, change: Change) -> None:
    known = generation(models, "bonsai:code")
    with ModelRouter(models).lease("bonsai:code"):
        change(models)
        assert generation(models, "bonsai:code") == known
        assert models.in_flight("bonsai:code") == 1
        assert all(each.endpoint.id != "bonsai:code" for each in models.draining())
    assert AdapterRegistry(models).get("bonsai:code") is CODE


def test_the_default_may_move_from_an_adapter_to_the_base_that_replaces_its_own(models: ModelRegistry) -> None:
    models.register(replace(LLAMA, is_default=True))
    assert models.default_endpoint() == replace(LLAMA, is_default=True)


@pytest.mark.parametrize(
    "change",
    [*OTHER_WEIGHTS[:7], lambda models: models.set_status("bonsai", "error"), lambda models: models.register(SHORT)],
)
def test_a_plain_endpoint_follows_nothing(models: ModelRegistry, change: Change) -> None:
    before, known = models.resolve("bonsai:plain"), generation(models, "bonsai:plain")
    change(models)
    assert models.resolve("bonsai:plain") is before
    assert generation(models, "bonsai:plain") == known


def test_an_adapters_endpoint_that_is_registered_by_hand_follows_nothing_any_more(models: ModelRegistry) -> None:
    models.register(PLAIN)
    models.set_status("bonsai", "error")
    models.unregister("bonsai")
    assert models.resolve("bonsai:code") is PLAIN


def test_an_adapter_of_a_base_whose_name_looks_like_an_adapters_follows_that() -> None:
    models = ModelRegistry()
    for id in ("a", "a:b"):
        models.register(ModelEndpoint(id, "w"))
    adapters = AdapterRegistry(models)
    adapters.load(LoraAdapter("c", "a:b", ""))
    models.set_status("a", "error")
    assert models.resolve("a:b:c") == ModelEndpoint("a:b:c", "w", adapter="c")
    adapters.swap(LoraAdapter("b:c", "a", ""))
    models.unregister("a:b")
    assert models.resolve("a:b:c") is not None
    models.unregister("a")
    assert len(models) == 0


def test_an_adapter_goes_when_its_base_becomes_an_adapter() -> None:
    models = ModelRegistry()
    for id in ("a", "a:b"):
        models.register(ModelEndpoint(id, "w"))
    adapters = AdapterRegistry(models)
    adapters.load(LoraAdapter("c", "a:b", ""))
    adapters.swap(LoraAdapter("b", "a", ""))
    assert [str(endpoint.id) for endpoint in models] == ["a", "a:b"]


def test_a_subclass_of_an_endpoint_keeps_its_fields_while_adapters_follow(models: ModelRegistry) -> None:
    AdapterRegistry(models).load(MATH)
    for status in ("loading", "ready"):
        models.set_status("bonsai", status)
        assert [str(adapter.id) for adapter in AdapterRegistry(models).of("bonsai")] == ["bonsai:code", "bonsai:math"]
        assert {endpoint.status for endpoint in models if endpoint.adapter in ("code", "math")} == {status}


@pytest.mark.parametrize(
    "change",
    [
        *OTHER_WEIGHTS[:2],
        *OTHER_WEIGHTS[4:],
        lambda models: models.set_status("bonsai", "loading"),
        lambda models: models.register(SHORT),
        lambda models: models.register(replace(BASE, metadata={"url": "http://two"})),
    ],
)
def test_no_reader_sees_a_base_and_its_adapter_apart(models: ModelRegistry, change: Change) -> None:
    def states() -> list[tuple[object, ...]]:
        return [(str(each.id), each.status, each.max_context_length, each.metadata) for each in models]

    before = states()
    seen: list[list[tuple[object, ...]]] = []
    with stopped_at_each_instruction(lambda: seen.append(states())):
        change(models)
    after = states()
    assert after != before
    assert len(seen) > 20
    assert all(state in (before, after) for state in seen)


def test_a_context_for_a_stack_must_fit_the_base_and_each_member() -> None:
    adapters = adapters_on_two_bases()
    adapters.load(replace(CODE, max_context_length=16384))
    adapters.load(MATH)
    adapters.models.add_alias("team", "bonsai")
    adapters.models.set_default("bonsai")
    with adapters.lease_stack("bonsai", stack_of("math"), 32768), adapters.lease_stack("team", stack_of(), 32768):
        pass
    for base in ("bonsai", "team", None):
        with adapters.lease_stack(base, stack_of("math", "code"), 16384) as lease:
            assert lease.endpoint.id == "bonsai"
        with pytest.raises(ContextTooLongError) as caught:
            adapters.lease_stack(base, stack_of("math", "code"), 16385)
        assert (caught.value.model, caught.value.available) == ("bonsai:code", 16384)
    with pytest.raises(ContextTooLongError) as caught:
        adapters.lease_stack("bonsai", stack_of(), 32769)
    assert caught.value.model == "bonsai"
    assert [adapters.models.in_flight(endpoint.id) for endpoint in adapters.models] == [0, 0, 0, 0]
