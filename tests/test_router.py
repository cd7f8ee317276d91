import copy
import pickle
import time
from collections.abc import Callable
from typing import Any

import pytest
from instructions import stopped_at_each_instruction

from bonsai_routing import (
    ContextTooLongError,
    ModelEndpoint,
    ModelId,
    ModelListEntry,
    ModelNotFoundError,
    ModelNotReadyError,
    ModelRegistry,
    ModelRouter,
    NoModelsAvailableError,
)


def endpoint(id: str, tokens: int = 4096, **fields: Any) -> ModelEndpoint:
    return ModelEndpoint(id, "weights", max_context_length=tokens, **fields)


def router_of(*endpoints: ModelEndpoint, **aliases: str) -> ModelRouter:
    registry = ModelRegistry()
    for each in endpoints:
        registry.register(each)
    for alias, target in aliases.items():
        registry.add_alias(alias, target)
    return ModelRouter(registry)


SMALL = endpoint("small", 100, is_default=True)
MIDDLE = endpoint("middle", 500)
LARGE = endpoint("large", 1000)


def test_the_requested_model_answers_by_id_and_by_alias() -> None:
    router = router_of(SMALL, LARGE, x="large")
    assert router.route("large") is router.route("x") is router.route(ModelId("x")) is LARGE


def test_the_default_answers_when_nothing_is_requested() -> None:
    router = router_of(LARGE, SMALL)
    assert router.route(None) is router.route() is SMALL


def test_the_empty_text_is_a_request_and_not_none() -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        router_of(SMALL).route("")
    assert caught.value.model == ""


def test_an_unknown_name_is_not_found_even_with_a_default() -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        router_of(SMALL).route("smal")
    assert caught.value.model == "smal"


def test_a_name_given_as_an_id_is_not_found_by_its_text() -> None:
    with pytest.raises(ModelNotFoundError, match="model 'gone' not found") as caught:
        router_of(SMALL).route(ModelId("gone"))
    assert type(caught.value.model) is str


def test_a_dangling_alias_is_not_found_by_the_text_requested() -> None:
    with pytest.raises(ModelNotFoundError, match="model 'x' not found"):
        router_of(SMALL, x="gone").route("x")


@pytest.mark.parametrize("status", ["loading", "error", "disabled"])
def test_a_model_that_is_not_ready_is_refused_by_its_id(status: str) -> None:
    router = router_of(SMALL, endpoint("large", 1000, display_name="Large"), x="large")
    router.registry.set_status("large", status)
    with pytest.raises(ModelNotReadyError) as caught:
        router.route("x")
    assert (caught.value.model, caught.value.status) == ("large", status)
    router.registry.set_status("large", "ready")
    assert router.route("x").display_name == "Large"


def test_a_default_that_is_not_ready_is_refused_though_others_are_ready() -> None:
    router = router_of(SMALL, LARGE)
    router.registry.set_status("small", "loading")
    with pytest.raises(ModelNotReadyError, match="model 'small' is not ready"):
        router.route(None)
    with pytest.raises(ModelNotReadyError, match="model 'small' is not ready"):
        router.route_for_context(None, 1)


def test_without_a_default_nothing_is_available_though_models_exist() -> None:
    router = router_of(LARGE)
    with pytest.raises(NoModelsAvailableError):
        router.route(None)
    with pytest.raises(NoModelsAvailableError):
        router.route_for_context(None, 1)


def test_an_exact_fit_fits() -> None:
    router = router_of(SMALL)
    assert router.route_for_context("small", 100) is router.route_for_context(None, 100) is SMALL


def test_a_requested_model_that_is_too_small_is_an_error() -> None:
    with pytest.raises(ContextTooLongError) as caught:
        router_of(SMALL, LARGE, x="small").route_for_context("x", 101)
    assert (caught.value.model, caught.value.required, caught.value.available) == ("small", 101, 100)


def test_the_largest_ready_model_answers_for_a_default_that_is_too_small() -> None:
    router = router_of(SMALL, LARGE, MIDDLE)
    assert router.route_for_context(None, 101) is LARGE
    assert router.route_for_context(None, 1000) is LARGE
    router.registry.set_status("large", "loading")
    assert router.route_for_context(None, 101) is MIDDLE


def test_what_fits_nowhere_is_refused_with_the_defaults_limit() -> None:
    with pytest.raises(ContextTooLongError) as caught:
        router_of(LARGE, SMALL).route_for_context(None, 1001)
    assert (caught.value.model, caught.value.required, caught.value.available) == ("small", 1001, 100)


def test_of_equally_large_models_the_one_registered_first_answers() -> None:
    router = router_of(SMALL, LARGE, endpoint("twin", 1000))
    router.registry.register(LARGE.with_description("again"))
    assert router.route_for_context(None, 1000).id == ModelId("large")
    router.registry.unregister("large")
    router.registry.register(LARGE)
    assert router.route_for_context(None, 1000).id == ModelId("twin")


def test_a_context_of_nothing_fits_a_model_without_any() -> None:
    router = router_of(endpoint("none", 0))
    assert router.route_for_context("none", 0).id == ModelId("none")


def test_an_int_of_another_kind_is_a_number_of_tokens() -> None:
    class Tokens(int):
        pass

    router = router_of(SMALL, LARGE)
    assert router.route_for_context("small", Tokens(100)) is SMALL
    assert router.route_for_context(None, Tokens(101)) is LARGE


@pytest.mark.parametrize(
    ("required", "error"), [(True, TypeError), (1.0, TypeError), (None, TypeError), (-1, ValueError)]
)
@pytest.mark.parametrize("model", ["small", None, "gone"])
def test_a_wrong_number_of_tokens_is_named(model: str | None, required: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^required_context must be .*, not {required}$"):
        router_of(SMALL).route_for_context(model, required)


@pytest.mark.parametrize("name", [1, b"small", ["small"], SMALL])
def test_a_wrong_name_is_named(name: Any) -> None:
    router = router_of(SMALL)
    with pytest.raises(TypeError, match=r"^requested_model must be a str or a ModelId, not "):
        router.route(name)
    with pytest.raises(TypeError, match=r"^requested_model must be a str or a ModelId, not "):
        router.route_for_context(name, 1)


def test_a_model_that_shrank_is_not_remembered_as_large() -> None:
    router = router_of(SMALL, LARGE, MIDDLE)
    router.registry.register(LARGE.with_context_length(200))
    assert router.route_for_context(None, 101) is MIDDLE
    router.registry.register(LARGE)
    assert router.route_for_context(None, 101) is LARGE


def test_the_same_endpoint_registered_again_and_again_is_one_endpoint() -> None:
    router = router_of(SMALL, MIDDLE)
    for _ in range(3):
        router.registry.register(LARGE)
        router.registry.register(endpoint("large", 50))
    assert router.route_for_context(None, 101) is MIDDLE
    for _ in range(3):
        router.registry.register(LARGE)
    router.registry.unregister("large")
    assert router.route_for_context(None, 101) is MIDDLE


def test_the_list_has_the_ready_models_in_order() -> None:
    router = router_of(SMALL, MIDDLE, LARGE, x="small")
    router.registry.set_status("middle", "disabled")
    assert [(entry.id, entry.object, entry.owned_by) for entry in router.models_list()] == [
        ("small", "model", "oxibonsai"),
        ("large", "model", "oxibonsai"),
    ]


def test_created_is_when_the_endpoint_was_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_700_000_000.9
    monkeypatch.setattr(time, "time", lambda: now)
    router = router_of(SMALL, LARGE)
    now += 60
    router.registry.set_status("small", "error")
    router.registry.set_status("small", "ready")
    router.registry.register(LARGE)
    twin = pickle.loads(pickle.dumps(router))
    for each in (router, twin):
        assert [entry.created for entry in each.models_list()] == [1_700_000_000, 1_700_000_060]


def test_list_entries_compare_by_value() -> None:
    entry = ModelListEntry("a", "model", "oxibonsai", 1)
    assert entry == copy.copy(entry) == pickle.loads(pickle.dumps(entry))
    assert repr(entry) == "ModelListEntry(id='a', object='model', owned_by='oxibonsai', created=1)"


def test_a_router_needs_a_registry_though_it_be_empty() -> None:
    registry = ModelRegistry()
    assert ModelRouter(registry).registry is registry
    with pytest.raises(TypeError, match="registry must be a ModelRegistry, not None"):
        ModelRouter(None)  # type: ignore[arg-type]


def test_a_router_is_shown_with_its_registry() -> None:
    assert repr(router_of(SMALL)) == "ModelRouter(<ModelRegistry endpoints=1 aliases=0>)"


def test_a_deep_copy_of_a_router_has_its_own_registry() -> None:
    router = router_of(SMALL)
    twin = copy.deepcopy(router)
    router.registry.unregister("small")
    assert twin.route(None) == SMALL
    assert copy.copy(router).registry is router.registry


def ready_again(registry: ModelRegistry) -> None:
    registry.set_status("a", "error")
    registry.set_status("a", "ready")


def moved_away_and_back(registry: ModelRegistry) -> None:
    registry.add_alias("x", "b")
    registry.add_alias("x", "a")


def replaced(registry: ModelRegistry) -> None:
    registry.replace_with(copy.deepcopy(registry))


@pytest.mark.parametrize(
    "write",
    [
        lambda registry: registry.register(ModelEndpoint("a", "q", is_default=True)),
        lambda registry: registry.swap(ModelEndpoint("a", "q", is_default=True)),
        lambda registry: registry.unregister("b"),
        lambda registry: registry.set_default("a"),
        ready_again,
        moved_away_and_back,
        replaced,
    ],
    ids=["register", "swap", "unregister", "set_default", "set_status", "add_alias", "replace_with"],
)
def test_routing_to_what_is_ready_takes_few_steps_after_any_write(write: Callable[[ModelRegistry], object]) -> None:
    registry = ModelRegistry()
    registry.register(ModelEndpoint("a", "p", is_default=True))
    registry.register(ModelEndpoint("b", "p"))
    registry.add_alias("x", "a")
    router = ModelRouter(registry)
    write(registry)
    for name in ("a", "x", None):
        steps: list[None] = []
        with stopped_at_each_instruction(lambda steps=steps: steps.append(None)):  # type: ignore[misc]
            router.route(name)
        # The slow path takes more than twice as many.
        assert len(steps) < 25, name
