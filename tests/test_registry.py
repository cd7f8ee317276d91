import copy
import pickle
import tracemalloc
from collections.abc import Callable

import pytest

from bonsai_routing import EndpointStatus, ModelEndpoint, ModelId, ModelNotFoundError, ModelRegistry, RegistryChange


def endpoint(id: str, **fields: object) -> ModelEndpoint:
    return ModelEndpoint(id, f"weights-of-{id}", **fields)  # type: ignore[arg-type]


def registry_of(*endpoints: ModelEndpoint, **aliases: str) -> ModelRegistry:
    registry = ModelRegistry()
    for each in endpoints:
        registry.register(each)
    for alias, target in aliases.items():
        registry.add_alias(alias, target)
    return registry


def ids(registry: ModelRegistry) -> list[str]:
    return [str(each.id) for each in registry]


A, B, C = endpoint("a"), endpoint("b"), endpoint("c")


def test_a_new_registry_is_empty_and_false() -> None:
    registry = ModelRegistry()
    assert registry.is_empty()
    assert len(registry) == 0
    assert not registry
    assert registry.resolve("") is None
    assert registry.default_endpoint() is None
    assert registry.all_endpoints() == registry.available_endpoints() == list(registry) == []


def test_what_was_registered_is_found_as_it_is() -> None:
    registry = registry_of(A)
    assert registry.resolve("a") is A
    assert registry.resolve("A") is None
    assert not registry.is_empty()


def test_a_name_may_be_given_as_an_id() -> None:
    registry = registry_of(A)
    registry.add_alias("x", ModelId("a"))
    assert registry.resolve(ModelId("x")) is A
    assert ModelId("x") in registry
    assert registry.set_status(ModelId("a"), EndpointStatus.ERROR)
    assert registry.unregister(ModelId("a")) is not None


def test_the_empty_text_is_a_name_like_any_other() -> None:
    registry = registry_of(endpoint(""))
    registry.add_alias("x", "")
    assert registry.resolve("") is registry.resolve("x") is not None


def test_registering_again_replaces_and_keeps_the_place() -> None:
    registry = registry_of(A, B)
    newer = endpoint("a", description="newer")
    registry.register(newer)
    assert registry.resolve("a") is newer
    assert ids(registry) == ["a", "b"]


def test_an_id_that_went_and_came_again_is_the_last() -> None:
    registry = registry_of(A, B)
    registry.unregister("a")
    registry.register(A)
    assert ids(registry) == ["b", "a"]


def test_the_last_one_registered_as_default_is_the_default() -> None:
    registry = registry_of(A.set_default(), B.set_default(), C)
    assert registry.default_endpoint() == B.set_default()


def test_registering_the_default_again_without_the_flag_leaves_it_the_default() -> None:
    registry = registry_of(A.set_default())
    registry.register(A)
    assert registry.default_endpoint() is A


def test_registering_the_very_same_endpoint_makes_it_the_default_again() -> None:
    first = A.set_default()
    registry = registry_of(first, B.set_default())
    registry.register(first)
    assert registry.default_endpoint() is first


def test_unregistering_returns_what_was_there() -> None:
    registry = registry_of(A)
    assert registry.unregister("a") is A
    assert registry.unregister("a") is None
    assert registry.resolve("a") is None
    assert registry.is_empty()


def test_unregistering_the_default_leaves_none() -> None:
    registry = registry_of(A.set_default(), B)
    registry.unregister("a")
    assert registry.default_endpoint() is None
    registry.register(A)
    assert registry.default_endpoint() is None


def test_unregistering_another_leaves_the_default() -> None:
    registry = registry_of(A.set_default(), B)
    registry.unregister("b")
    assert registry.default_endpoint() == A.set_default()


def test_unregistering_removes_the_aliases_of_the_id() -> None:
    registry = registry_of(A, B, x="a", y="b", z="a")
    registry.unregister("a")
    registry.register(A)
    assert registry.resolve("x") is registry.resolve("z") is None
    assert registry.resolve("y") is B


def test_unregistering_what_is_not_there_leaves_its_aliases() -> None:
    registry = registry_of(x="a")
    registry.unregister("a")
    registry.register(A)
    assert registry.resolve("x") is A


def test_an_alias_cannot_be_unregistered_or_given_a_status() -> None:
    registry = registry_of(A, x="a")
    assert registry.unregister("x") is None
    assert registry.set_status("x", "error") is False
    assert registry.resolve("x") is A


def test_an_id_wins_over_an_alias_of_the_same_name_until_it_goes() -> None:
    registry = registry_of(A, B, b="a")
    assert registry.resolve("b") is B
    registry.unregister("b")
    assert registry.resolve("b") is A
    registry.register(B)
    assert registry.resolve("b") is B


def test_an_alias_made_before_the_id_of_its_name_is_hidden_too() -> None:
    registry = registry_of(A, b="a")
    assert registry.resolve("b") is A
    registry.register(B)
    assert registry.resolve("b") is B
    registry.unregister("b")
    assert registry.resolve("b") is A


def test_an_alias_of_a_hidden_name_leads_to_the_id() -> None:
    registry = registry_of(A, B, b="a", x="b")
    assert registry.resolve("x") is B
    registry.unregister("b")
    assert registry.resolve("x") is None


def test_an_alias_may_point_at_nothing_and_comes_alive() -> None:
    registry = registry_of(x="a")
    assert registry.resolve("x") is None
    assert "x" not in registry
    registry.register(A)
    assert registry.resolve("x") is A


def test_an_alias_names_an_id_never_another_alias() -> None:
    registry = registry_of(A, x="a", y="x")
    assert registry.resolve("y") is None


def test_an_alias_of_its_own_name_changes_nothing() -> None:
    registry = registry_of(A, a="a")
    assert registry.resolve("a") is A
    registry.unregister("a")
    assert registry.resolve("a") is None
    registry.register(A)
    assert registry.resolve("a") is A
    registry.unregister("a")
    assert registry.resolve("a") is None


def test_an_alias_can_be_pointed_elsewhere() -> None:
    registry = registry_of(A, B, x="a")
    registry.add_alias("x", "b")
    assert registry.resolve("x") is B
    registry.unregister("a")
    assert registry.resolve("x") is B
    registry.add_alias("x", "b")
    registry.unregister("b")
    assert registry.resolve("x") is None


def test_a_hidden_alias_can_be_pointed_elsewhere() -> None:
    registry = registry_of(A, B, C, c="a")
    registry.add_alias("c", "b")
    assert registry.resolve("c") is C
    registry.unregister("c")
    assert registry.resolve("c") is B


def test_an_alias_pointed_away_from_nothing_leaves_nothing_behind() -> None:
    registry = registry_of(A, x="nothing", y="nothing")
    registry.add_alias("x", "a")
    registry.add_alias("y", "a")
    registry.register(endpoint("nothing"))
    assert registry.resolve("x") is registry.resolve("y") is A


def test_a_status_reaches_every_alias() -> None:
    registry = registry_of(A, x="a")
    assert registry.set_status("a", "disabled") is True
    changed = registry.resolve("x")
    assert changed is registry.resolve("a")
    assert changed is not None
    assert changed.status is EndpointStatus.DISABLED
    assert A.status is EndpointStatus.READY


def test_a_status_of_nothing_is_not_set() -> None:
    assert ModelRegistry().set_status("a", EndpointStatus.READY) is False


def test_a_status_that_is_there_already_changes_nothing() -> None:
    registry = registry_of(A)
    assert registry.set_status("a", "ready") is True
    assert registry.resolve("a") is A


def test_available_endpoints_are_the_ready_ones_in_order() -> None:
    registry = registry_of(A, B, C)
    registry.set_status("b", "loading")
    assert registry.available_endpoints() == [A, C]
    assert ids(registry) == ["a", "b", "c"]


def test_a_name_is_in_the_registry_if_it_resolves() -> None:
    registry = registry_of(A, x="a", y="nothing")
    assert [name for name in ("a", "x", "y", "nothing", "") if name in registry] == ["a", "x"]


def test_a_list_is_the_callers_own() -> None:
    registry = registry_of(A)
    registry.all_endpoints().clear()
    registry.available_endpoints().clear()
    assert ids(registry) == ["a"]


def test_a_registry_is_shown_by_its_counts() -> None:
    assert repr(registry_of(A, B, x="a")) == "<ModelRegistry endpoints=2 aliases=1>"


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda registry: registry.register("a"), "endpoint"),
        (lambda registry: registry.unregister(None), "id"),
        (lambda registry: registry.add_alias(None, "a"), "alias"),
        (lambda registry: registry.add_alias(ModelId("x"), "a"), "alias"),
        (lambda registry: registry.add_alias("x", 1), "target"),
        (lambda registry: registry.remove_alias(None), "alias"),
        (lambda registry: registry.set_default(1), "id"),
        (lambda registry: registry.resolve(None), "id_or_alias"),
        (lambda registry: registry.resolve(["a"]), "id_or_alias"),
        (lambda registry: registry.set_status(1, "ready"), "id"),
        (lambda registry: registry.set_status("a", None), "status"),
        (lambda registry: A in registry, "name"),
        (lambda registry: registry.replace_with({}), "other"),
    ],
)
def test_a_wrong_argument_is_named_and_changes_nothing(call: Callable[[ModelRegistry], object], argument: str) -> None:
    registry = registry_of(A, x="a")
    with pytest.raises(TypeError, match=rf"^{argument} must be .*, not "):
        call(registry)
    assert registry.resolve("a") is registry.resolve("x") is A
    assert repr(registry) == "<ModelRegistry endpoints=1 aliases=1>"


def test_a_wrong_status_changes_nothing() -> None:
    registry = registry_of(A)
    with pytest.raises(ValueError, match="status must be one of"):
        registry.set_status("a", "gone")
    assert registry.resolve("a") is A


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda original: pickle.loads(pickle.dumps(original))])
def test_a_copy_answers_alike_and_shares_nothing(copied: Callable[[ModelRegistry], ModelRegistry]) -> None:
    original = registry_of(A, B.set_default(), C, x="a", c="b", dangling="d")
    original.set_status("a", "loading")
    twin = copied(original)
    assert list(twin) == list(original)
    assert twin.default_endpoint() == B.set_default()
    assert twin.resolve("x") == original.resolve("x")

    original.unregister("b")
    original.set_status("a", "ready")
    twin.unregister("c")
    twin.register(endpoint("d"))
    assert twin.resolve("c") == twin.default_endpoint() == B.set_default()
    assert twin.resolve("dangling") == endpoint("d")
    assert [str(each.status) for each in twin] == ["loading", "ready", "ready"]
    assert ids(original) == ["a", "c"]


def test_a_copy_of_a_users_own_kind_of_registry_is_of_that_kind() -> None:
    assert type(copy.deepcopy(Audited())) is Audited


class Audited(ModelRegistry):
    __slots__ = ()


def test_an_alias_can_be_removed() -> None:
    registry = registry_of(A, B, x="a", b="a", dangling="nothing")
    assert registry.aliases() == {"x": "a", "b": "a", "dangling": "nothing"}
    assert registry.remove_alias("x") is True
    assert registry.remove_alias("b") is True
    assert registry.remove_alias("x") is registry.remove_alias("a") is False
    assert registry.aliases() == {"dangling": "nothing"}
    assert registry.resolve("x") is None
    assert registry.resolve("a") is A
    assert registry.resolve("b") is B


def test_the_default_can_be_moved_and_cleared() -> None:
    registry = registry_of(A.set_default(), B, x="b")
    generations = registry.generation("a"), registry.generation("b")
    registry.set_default("b")
    assert registry.default_endpoint() is B
    registry.set_default(ModelId("a"))
    assert registry.default_endpoint() == A.set_default()
    registry.set_default(None)
    assert registry.default_endpoint() is None
    assert (registry.generation("a"), registry.generation("b")) == generations
    for name in ("x", "nothing"):
        with pytest.raises(ModelNotFoundError, match=f"model '{name}' not found"):
            registry.set_default(name)
    assert registry.default_endpoint() is None


def test_replacing_takes_everything_over_and_says_what_changed() -> None:
    registry = registry_of(A.set_default(), B, C, x="a")
    newer = endpoint("b", description="newer")
    other = registry_of(endpoint("d"), C, newer.set_default(), x="d", c="b")
    change = registry.replace_with(other)
    assert change == RegistryChange(added=("d",), removed=("a",), changed=("b",))
    assert list(registry) == list(other)
    assert registry.resolve("x") == endpoint("d")
    assert registry.default_endpoint() == newer.set_default()
    registry.unregister("c")
    assert registry.resolve("c") == newer.set_default()


def test_replacing_with_nothing_removes_everything() -> None:
    registry = registry_of(A.set_default(), x="a")
    assert registry.replace_with(ModelRegistry()) == RegistryChange((), ("a",), ())
    assert registry.default_endpoint() is registry.resolve("x") is None
    assert registry.is_empty()


def test_replacing_with_itself_changes_nothing() -> None:
    registry = registry_of(A, B, x="a", y="nothing")
    registry.set_status("a", "error")
    assert registry.replace_with(registry) == RegistryChange((), (), ())
    assert ids(registry) == ["a", "b"]
    assert registry.resolve("x") == endpoint("a", status="error")


def test_the_other_registry_shares_nothing_afterwards() -> None:
    registry, other = ModelRegistry(), registry_of(A, x="a")
    registry.replace_with(other)
    other.set_status("a", "error")
    other.add_alias("x", "b")
    other.register(B)
    assert registry.resolve("x") is A
    registry.unregister("a")
    assert ids(other) == ["a", "b"]
    assert other.resolve("x") is B


def test_an_unchanged_endpoint_keeps_its_status() -> None:
    registry = registry_of(A, B)
    registry.set_status("a", "error")
    assert registry.replace_with(registry_of(B, A)) == RegistryChange((), (), ())
    assert [str(each.status) for each in registry] == ["ready", "error"]
    assert ids(registry) == ["b", "a"]
    assert registry.replace_with(registry_of(A)) == RegistryChange((), ("b",), ())
    assert registry.resolve("a") == endpoint("a", status="error")


def test_a_default_that_moves_keeps_the_generations() -> None:
    registry = registry_of(A.set_default(), B)
    registry.set_status("a", "error")
    generations = registry.generation("a"), registry.generation("b")
    assert registry.replace_with(registry_of(A, B.set_default())) == RegistryChange((), (), ("a", "b"))
    assert registry.resolve("a") == endpoint("a", status="error")
    assert registry.default_endpoint() == B.set_default()
    assert (registry.generation("a"), registry.generation("b")) == generations


def test_a_copy_knows_what_was_registered() -> None:
    registry = registry_of(A)
    registry.set_status("a", "error")
    twin = copy.deepcopy(registry)
    assert twin.replace_with(registry_of(A)) == RegistryChange((), (), ())
    assert registry.replace_with(twin) == RegistryChange((), (), ())
    assert registry.replace_with(registry_of(A)) == RegistryChange((), (), ())
    assert registry.resolve("a") == endpoint("a", status="error")


def test_an_endpoint_registered_anew_counts_as_it_was_registered_last() -> None:
    registry = registry_of(A)
    registry.set_status("a", "error")
    registry.register(endpoint("a", status="loading"))
    assert registry.replace_with(registry_of(A)) == RegistryChange((), (), ("a",))
    assert registry.resolve("a") is A


def test_an_endpoint_that_went_and_came_again_counts_as_it_was_registered_last() -> None:
    registry = registry_of(A)
    registry.set_status("a", "error")
    registry.unregister("a")
    registry.register(endpoint("a", status="error"))
    assert registry.replace_with(registry_of(A)).changed == ("a",)
    assert registry.resolve("a") is A


def test_registering_and_flipping_for_ever_needs_no_more_and_more_memory() -> None:
    registry = registry_of(endpoint("largest", max_context_length=9), *(endpoint(f"m{n}") for n in range(10)))

    def churn(turns: range) -> None:
        for turn in turns:
            registry.register(endpoint(f"m{turn % 10}", max_context_length=turn % 7))
            registry.set_status(f"m{turn % 10}", "error")
            registry.set_status(f"m{turn % 10}", "ready")
            registry.add_alias(f"x{turn % 3}", f"m{turn % 10}" if turn % 2 else f"nothing{turn}")
            registry.add_alias("x", f"nothing{turn}")
            registry.add_alias("y", f"nothing{turn}")
            registry.add_alias("live", ("largest", "other")[turn % 2])
            registry.set_status("largest", ("error", "ready")[turn % 2])
            registry.unregister(f"m{(turn + 5) % 10}")
            registry.register(endpoint(f"passing{turn}", max_context_length=turn))
            registry.set_status(f"passing{turn}", "error")
            registry.unregister(f"passing{turn}")

    churn(range(2000))
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    churn(range(2000, 4000))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 20_000
