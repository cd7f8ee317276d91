"""Aliases with several targets: in order, with weights, and with a key."""

import copy
import os
import pickle
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from itertools import count
from typing import Any

import pytest
from instructions import CutShort, cut_short_at, short_turns
from read_write_helpers import once_in

from bonsai_routing import (
    AdapterBaseError,
    AdapterRegistry,
    AdapterStack,
    Candidates,
    ContextTooLongError,
    LoraAdapter,
    ModelEndpoint,
    ModelId,
    ModelNotFoundError,
    ModelNotReadyError,
    ModelRegistry,
    ModelRouter,
    NoModelsAvailableError,
    RoutingError,
    error_response,
    model_response,
    models_response,
)


def router_of(**models: int | str) -> ModelRouter:
    """Return a router of models, each ready with a context length, or with another status and 100 tokens."""
    registry = ModelRegistry()
    for id, value in models.items():
        if isinstance(value, int):
            registry.register(ModelEndpoint(id, "w", max_context_length=value))
        else:
            registry.register(ModelEndpoint(id, "w", max_context_length=100, status=value))
    return ModelRouter(registry)


def ids(candidates: Candidates) -> list[str]:
    return [str(endpoint.id) for endpoint in candidates.able]


def leased(router: ModelRouter, *arguments: Any, **options: Any) -> list[str]:
    """Return the ids that a loop over ``leases()`` gets, each released before the next."""
    found = []
    for lease in router.leases(*arguments, **options):
        with lease:
            found.append(str(lease.endpoint.id))
    return found


# Targets in order


def test_the_first_target_that_is_ready_answers() -> None:
    router = router_of(v1=100, v2="loading")
    router.registry.add_alias("chat", "v2", "v1")
    assert router.route("chat").id == "v1"
    router.registry.set_status("v2", "ready")
    assert router.route("chat").id == "v2"
    router.registry.set_status("v2", "error")
    assert router.route("chat").id == "v1"


def test_every_way_to_ask_for_a_name_takes_the_first_ready_target() -> None:
    router = router_of(v1=100, v2="loading", v3=50)
    router.registry.add_alias("chat", "gone", "v2", "v1", "v3")
    resolved = router.registry.resolve("chat")
    assert resolved is not None
    assert resolved.id == router.route("chat").id == router.route_for_context("chat", 10).id == "v1"
    with router.lease("chat") as lease, router.lease("chat", 10) as another:
        assert lease.endpoint.id == another.endpoint.id == "v1"
        assert lease.requested == "chat"
    assert "chat" in router.registry


def test_with_a_context_length_the_first_target_that_is_ready_and_fits_answers() -> None:
    router = router_of(small=10, large=30, other="disabled", largest=50)
    router.registry.add_alias("chat", "small", "other", "large", "largest")
    for tokens, id in ((10, "small"), (11, "large"), (30, "large"), (31, "largest"), (50, "largest")):
        assert router.route_for_context("chat", tokens).id == id
        with router.lease("chat", tokens) as lease:
            assert lease.endpoint.id == id
        assert ids(router.candidates("chat", tokens))[0] == leased(router, "chat", tokens)[0] == id


def test_an_id_wins_over_an_alias_with_several_targets() -> None:
    router = router_of(v1=100, v2=100)
    for targets in (("v2", "v1"), ({"v1": 1, "v2": 1},)):
        router.registry.add_alias("chat", *targets)
        router.registry.register(ModelEndpoint("chat", "w", status="loading"))
        with pytest.raises(ModelNotReadyError) as caught:
            router.route("chat")
        assert caught.value.model == "chat"
        router.registry.unregister("chat")
        assert router.route("chat").id in ("v1", "v2")


def test_a_target_is_an_id_and_never_an_alias() -> None:
    router = router_of(v1=100)
    router.registry.add_alias("old", "v1")
    router.registry.add_alias("chat", "old", {"old": 1, "older": 1})
    with pytest.raises(ModelNotFoundError):
        router.route("chat")


def test_a_target_may_be_registered_later() -> None:
    router = router_of(v1=100)
    router.registry.add_alias("chat", "v2", "v1")
    router.registry.register(ModelEndpoint("v2", "w"))
    assert router.route("chat").id == "v2"


def test_an_alias_that_is_added_again_has_the_new_targets_alone() -> None:
    router = router_of(v1=100, v2=100, v3=100)
    for targets, id in ((("v1", "v2"), "v1"), (("v2",), "v2"), (({"v3": 1}, "v1"), "v3"), (("v1",), "v1")):
        router.registry.add_alias("chat", *targets)
        assert router.route("chat").id == id
    router.registry.unregister("v3")
    assert router.registry.aliases() == {"chat": "v1"}


def test_a_target_that_is_named_twice_is_tried_once() -> None:
    router = router_of(v1=100, v2=100)
    router.registry.add_alias("chat", "v1", {"v1": 1, "v2": 1}, "v2")
    assert leased(router, "chat") == ["v1", "v2"]


# What aliases() shows, and what becomes of targets that go


@pytest.mark.parametrize(
    ("targets", "shown"),
    [
        (["v1"], "v1"),
        ([ModelId("v1")], "v1"),
        (["v2", ModelId("v1")], ("v2", "v1")),
        ([{"v1": 90, ModelId("v2"): 10}, "v3"], ({"v1": 90, "v2": 10}, "v3")),
        ([{"v1": 5}], "v1"),
        ([{"v1": 5}, "v2"], ("v1", "v2")),
        ([{"v1": 5, "v2": 0}], "v1"),
        ([{"v1": 2**63 - 1, "v2": 1}], ({"v1": 2**63 - 1, "v2": 1},)),
    ],
)
def test_aliases_are_shown_as_they_were_added(targets: list[Any], shown: object) -> None:
    registry = ModelRegistry()
    registry.add_alias("chat", *targets)
    assert registry.aliases() == {"chat": shown}
    for twin in (copy.copy(registry), copy.deepcopy(registry), pickle.loads(pickle.dumps(registry))):
        assert twin.aliases() == {"chat": shown}
    again = ModelRegistry()
    again.add_alias("chat", *(shown if isinstance(shown, tuple) else (shown,)))
    assert again.aliases() == {"chat": shown}


def test_what_aliases_returns_cannot_change_the_registry() -> None:
    router = router_of(v1=100, v2="loading")
    weights = {"v1": 1, "v2": 1}
    router.registry.add_alias("chat", weights, "v3")
    weights["v1"] = 0
    shown = router.registry.aliases()["chat"][0]
    with pytest.raises(TypeError):
        shown["v1"] = 0  # type: ignore[index]
    assert router.registry.aliases() == {"chat": ({"v1": 1, "v2": 1}, "v3")}


def test_a_target_that_is_unregistered_leaves_every_alias() -> None:
    router = router_of(v1=100, v2=100, v3=100)
    registry = router.registry
    registry.add_alias("order", "v1", "v2")
    registry.add_alias("weights", {"v1": 90, "v2": 10}, "v3")
    registry.add_alias("one", "v1")
    registry.unregister("v1")
    assert registry.aliases() == {"order": "v2", "weights": ("v2", "v3")}
    registry.retire("v2")
    assert registry.aliases() == {"weights": "v3"}
    registry.register(ModelEndpoint("v1", "w"))
    assert router.route("weights").id == "v3"
    registry.unregister("v3")
    assert registry.aliases() == {}


def test_an_adapter_that_goes_with_its_base_leaves_its_aliases_too() -> None:
    router = router_of(base=100, other=100)
    AdapterRegistry(router.registry).load(LoraAdapter("code", "base", ""))
    router.registry.add_alias("chat", "base:code", {"base": 1, "other": 1}, "other")
    router.registry.add_alias("coder", "base:code", "base")
    router.registry.unregister("base")
    assert router.registry.aliases() == {"chat": "other"}


def test_a_reload_carries_all_targets() -> None:
    router, aside = router_of(v1=100), router_of(v1=100, v2=100)
    aside.registry.add_alias("chat", {"v1": 1, "v2": 1}, "v3")
    router.registry.replace_with(aside.registry)
    assert router.registry.aliases() == {"chat": ({"v1": 1, "v2": 1}, "v3")}
    assert ids(router.candidates("chat", key="k")) == ids(aside.candidates("chat", key="k"))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([1], "target must be a str, a ModelId or a mapping of ids to weights, not 1"),
        (["v1", None], "target must be a str, a ModelId or a mapping of ids to weights, not None"),
        ([["v1", "v2"]], "target must be a str, a ModelId or a mapping of ids to weights, not ['v1', 'v2']"),
        ([{}], "target must have an id with a weight above 0, not {}"),
        ([{"v1": 0}], "target must have an id with a weight above 0, not {'v1': 0}"),
        ([{"v1": -1}], "the weight of 'v1' must be from 0 to 2**63 - 1, not -1"),
        ([{"v1": 2**63}], f"the weight of 'v1' must be from 0 to 2**63 - 1, not {2**63}"),
        (
            [{"v1": 10**5000}],
            "the weight of 'v1' must be from 0 to 2**63 - 1, not a value of type int that cannot be shown",
        ),
        ([{"v1": 0.5, "v2": 0.5}], "the weight of 'v1' must be an int, not 0.5"),
        ([{"v1": True}], "the weight of 'v1' must be an int, not True"),
        ([{"v1": "1"}], "the weight of 'v1' must be an int, not '1'"),
        ([{1: 1}], "the id of a weight must be a str or a ModelId, not 1"),
    ],
)
def test_a_target_that_is_not_valid_is_refused_and_changes_nothing(targets: list[Any], message: str) -> None:
    registry = ModelRegistry()
    registry.add_alias("chat", "v0")
    with pytest.raises((TypeError, ValueError)) as caught:
        registry.add_alias("chat", *targets)
    assert str(caught.value) == message
    assert registry.aliases() == {"chat": "v0"}


def test_an_alias_without_a_target_is_refused() -> None:
    with pytest.raises(TypeError, match="target"):
        ModelRegistry().add_alias("chat")  # type: ignore[call-arg]


# Weights


def shares(router: ModelRouter, name: str, count: int) -> Mapping[str, float]:
    drawn = Counter(str(router.route(name).id) for _ in range(count))
    return {id: number / count for id, number in drawn.items()}


def test_weights_are_shares_of_the_requests() -> None:
    router = router_of(a=100, b=100, c=100)
    router.registry.add_alias("split", {"a": 60, "b": 30, "c": 10})
    # Ten standard deviations.
    assert shares(router, "split", 10_000) == pytest.approx({"a": 0.6, "b": 0.3, "c": 0.1}, abs=0.05)


def test_a_target_that_is_not_ready_leaves_its_share_to_the_others_of_its_tier() -> None:
    router = router_of(a="loading", b=100, c=100, net=100)
    router.registry.add_alias("split", {"a": 60, "b": 30, "c": 10}, "net")
    assert shares(router, "split", 10_000) == pytest.approx({"b": 0.75, "c": 0.25}, abs=0.05)
    for id in ("b", "c"):
        router.registry.set_status(id, "error")
    assert shares(router, "split", 100) == {"net": 1}


def test_a_target_that_is_too_small_leaves_its_share_to_those_that_fit() -> None:
    router = router_of(a=10, b=100, c=100)
    router.registry.add_alias("split", {"a": 98, "b": 1, "c": 1})
    drawn = Counter(str(router.route_for_context("split", 50).id) for _ in range(4_000))
    assert drawn["b"] / 4_000 == pytest.approx(0.5, abs=0.08)
    assert drawn.keys() == {"b", "c"}
    with router.lease("split", 50) as lease:
        assert lease.endpoint.id != "a"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_children_of_a_fork_do_not_draw_alike() -> None:
    code = """
import os
from bonsai_routing import *
registry = ModelRegistry()
for id in "ab":
    registry.register(ModelEndpoint(id, "w"))
registry.add_alias("split", {"a": 1, "b": 1})
router = ModelRouter(registry)
for _ in range(2):
    print(end="", flush=True)
    if os.fork() == 0:
        print("".join(router.route("split").id.value for _ in range(64)), flush=True)
        os._exit(0)
    os.wait()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = run.stdout.split()
    assert first != second


# Keys


def test_a_key_has_the_same_order_on_every_machine() -> None:
    router = router_of(a=100, b=100, c=100, d=100)
    router.registry.add_alias("split", {"a": 60, "b": 30, "c": 10}, "d")
    # Made by another program, from the rule in docs/names.md.
    expected = {"user-1": "cabd", "user-2": "abcd", "user-7": "bacd", "user-19": "bacd", "": "cbad", "é": "acbd"}
    assert {key: "".join(ids(router.candidates("split", key=key))) for key in expected} == expected


def test_the_order_of_a_key_depends_on_nothing_but_names_weights_and_the_key() -> None:
    keys = [f"user-{i}" for i in range(200)]
    router, other = router_of(a=100, b=100, c=100), router_of(c=100, unrelated=100, b="loading", a=100)
    router.registry.add_alias("split", {"a": 60, "b": 30, "c": 10})
    other.registry.add_alias("split", {"c": 10, "b": 30, "a": 60})
    other.registry.set_status("b", "ready")
    assert [ids(router.candidates("split", key=key)) for key in keys] == [
        ids(other.candidates("split", key=key)) for key in keys
    ]


def test_aliases_split_the_same_keys_independently() -> None:
    router = router_of(a=100, b=100)
    for alias in ("one", "two"):
        router.registry.add_alias(alias, {"a": 1, "b": 1})
    both = [[ids(router.candidates(alias, key=f"{i}"))[0] for alias in ("one", "two")] for i in range(1_000)]
    assert sum(one == two for one, two in both) == pytest.approx(500, abs=100)


def test_a_target_that_drops_out_or_comes_back_moves_only_its_own_share() -> None:
    router = router_of(a=100, b=100, c=100)
    router.registry.add_alias("split", {"a": 60, "b": 30, "c": 10})
    keys = [f"user-{i}" for i in range(2_000)]

    def answers() -> dict[str, str]:
        return {key: ids(router.candidates("split", key=key))[0] for key in keys}

    before = answers()
    for id in ("a", "b", "c"):
        router.registry.set_status(id, "error")
        during = answers()
        assert {key for key in keys if before[key] != during[key]} == {key for key in keys if before[key] == id}
        router.registry.set_status(id, "ready")
        assert answers() == before


def test_a_heavier_weight_moves_keys_to_its_target_alone() -> None:
    router = router_of(a=100, b=100, c=100)
    keys = [f"user-{i}" for i in range(2_000)]

    def answers(weight: int) -> dict[str, str]:
        router.registry.add_alias("split", {"a": 60, "b": 30, "c": weight})
        return {key: ids(router.candidates("split", key=key))[0] for key in keys}

    light, heavy = answers(10), answers(20)
    assert {heavy[key] for key in keys if light[key] != heavy[key]} == {"c"}


def test_the_shares_of_keys_are_those_of_the_weights() -> None:
    router = router_of(a=100, b=100, c=100)
    router.registry.add_alias("split", {"a": 60, "b": 30, "c": 10})
    count = 20_000
    drawn = Counter(ids(router.candidates("split", key=f"user-{i}"))[0] for i in range(count))
    # Four standard deviations; the keys are always the same.
    assert {id: number / count for id, number in drawn.items()} == pytest.approx(
        {"a": 0.6, "b": 0.3, "c": 0.1}, abs=0.014
    )


@pytest.mark.parametrize("key", ["", "\0", "\ud800", "x" * 10_000, "é"])
def test_every_text_is_a_key(key: str) -> None:
    router = router_of(a=100, b=100)
    router.registry.add_alias("split", {"a": 1, "b": 1})
    assert leased(router, "split", key=key) == ids(router.candidates("split", key=key))


@pytest.mark.parametrize("key", [1, b"user", ModelId("user")])
def test_a_key_that_is_not_text_is_refused_at_once(key: Any) -> None:
    router = router_of(a=100)
    for call in (router.leases, router.candidates):
        with pytest.raises(TypeError, match="key must be a str or None, not "):
            call("a", key=key)


# leases()


def test_a_loop_gets_a_lease_of_each_target_the_best_first() -> None:
    router = router_of(v1=100, v2=100, v3="loading", v4=100)
    router.registry.add_alias("chat", "v2", "v3", "v1", "gone", "v4")
    assert leased(router, "chat") == ["v2", "v1", "v4"]
    assert [router.registry.in_flight(id) for id in ("v1", "v2", "v4")] == [0, 0, 0]


def test_each_target_is_leased_when_it_is_its_turn() -> None:
    router = router_of(v1=100, v2=100, v3=100)
    router.registry.add_alias("chat", "v1", "v2", "v3")
    loop = router.leases("chat")
    assert router.registry.in_flight("v1") == 0
    with next(loop) as first:
        assert first.endpoint.id == "v1"
        assert [router.registry.in_flight(id) for id in ("v1", "v2", "v3")] == [1, 0, 0]
        router.registry.set_status("v2", "error")
        router.registry.register(ModelEndpoint("v3", "newer"))
        with next(loop) as second:
            assert second.endpoint == ModelEndpoint("v3", "newer")


def test_a_target_that_becomes_ready_during_the_loop_has_its_turn() -> None:
    router = router_of(v1=100, v2="loading")
    router.registry.add_alias("chat", "v2", "v1")
    found = []
    for lease in router.leases("chat"):
        with lease:
            found.append(str(lease.endpoint.id))
            router.registry.set_status("v2", "ready")
    assert found == ["v1", "v2"]


@pytest.mark.parametrize("name", ["v1", ModelId("v1"), "plain", None])
def test_any_other_name_has_one_lease(name: str | ModelId | None) -> None:
    router = router_of(v1=100)
    router.registry.add_alias("plain", "v1")
    router.registry.set_default("v1")
    [lease] = router.leases(name, 10, key="k")
    with lease:
        assert lease.endpoint.id == "v1"
        assert lease.requested == name


def test_the_loop_over_the_default_has_the_fallback_by_context() -> None:
    router = router_of(small=10, large=50)
    router.registry.set_default("small")
    assert leased(router, None, 10) == ["small"]
    assert leased(router, None, 11) == ["large"]


def test_the_first_lease_of_a_loop_raises_what_a_lease_raises() -> None:
    router = router_of(v1="loading", v2="error", small=10)
    router.registry.add_alias("chat", "v2", "v1")
    router.registry.add_alias("split", {"v1": 1, "v2": 1})
    router.registry.add_alias("tiny", "small", "v1")
    for name, tokens in (("gone", None), ("chat", None), ("split", None), ("v1", None), ("tiny", 11), (None, None)):
        loop = router.leases(name, tokens)
        with pytest.raises(RoutingError) as expected:
            router.lease(name, tokens)
        with pytest.raises(type(expected.value)) as caught:
            next(loop)
        assert caught.value.args == expected.value.args


def test_the_loop_ends_when_nobody_is_left() -> None:
    router = router_of(v1=100, v2=100)
    router.registry.add_alias("chat", "v1", "v2")
    for lease in router.leases("chat"):
        with lease:
            router.registry.remove_alias("chat")
            router.registry.unregister("v2")
    assert lease.endpoint.id == "v1"


@pytest.mark.parametrize("name", ["plain", None])
def test_a_name_with_one_target_has_one_lease_whatever_happens_during_the_loop(name: str | None) -> None:
    router = router_of(v1=10, v2=50)
    router.registry.add_alias("plain", "v1")
    router.registry.set_default("v1")
    for lease in router.leases(name):
        with lease:
            assert lease.endpoint.id == "v1"
            router.registry.add_alias("plain", "v2", "v1")
            router.registry.set_default("v2")
    for tokens in (20, 5):
        router.registry.set_default("v1")
        for lease in router.leases(None, tokens):
            with lease:
                router.registry.register(ModelEndpoint(f"other-{tokens}", "w", max_context_length=99))
                router.registry.set_status(lease.endpoint.id, "error")
        assert lease.endpoint.id == ("v2" if tokens == 20 else "v1")


def test_a_loop_goes_on_with_what_is_left_of_several_targets() -> None:
    router = router_of(v1=10, v2=50)
    router.registry.add_alias("chat", "v1", "v2")
    found = []
    for lease in router.leases("chat"):
        with lease:
            found.append(str(lease.endpoint.id))
            router.registry.add_alias("chat", "v2")
    assert found == ["v1", "v2"]


def test_a_loop_with_weights_has_each_target_once() -> None:
    router = router_of(a=100, b=100, c=100)
    router.registry.add_alias("split", {"a": 1, "b": 1, "c": 1})
    for _ in range(50):
        assert sorted(leased(router, "split")) == ["a", "b", "c"]
    assert {leased(router, "split")[0] for _ in range(100)} == {"a", "b", "c"}


def test_a_loop_that_is_left_leaves_nothing_leased() -> None:
    router = router_of(v1=100, v2=100)
    router.registry.add_alias("chat", "v1", "v2")
    for lease in router.leases("chat"):
        with lease:
            break
    with pytest.raises(ZeroDivisionError):
        for lease in router.leases("chat"):
            with lease:
                raise ZeroDivisionError
    unused = router.leases("chat")
    assert [router.registry.in_flight(id) for id in ("v1", "v2")] == [0, 0]
    unused.close()  # type: ignore[attr-defined]


def test_a_lease_that_the_loop_drops_is_not_kept_by_the_iterator() -> None:
    router = router_of(v1=100, v2=100)
    router.registry.add_alias("chat", "v1", "v2")
    loop = router.leases("chat")
    with pytest.warns(ResourceWarning, match="a lease of 'v1' was dropped"):
        next(loop)
    assert router.registry.in_flight("v1") == 0


def test_a_lease_outlives_the_iterator_that_it_came_from() -> None:
    router = router_of(v1=100)
    with next(router.leases("v1")) as lease:
        assert router.registry.in_flight("v1") == 1
    assert repr(lease).endswith("released>")


@pytest.mark.parametrize("arguments", [(1,), ("v1", -1), ("v1", "10")])
def test_arguments_are_checked_before_the_loop_begins(arguments: tuple[Any, ...]) -> None:
    router = router_of(v1=100)
    for call in (router.leases, router.candidates):
        with pytest.raises((TypeError, ValueError), match=r"(requested_model|required_context) must be "):
            call(*arguments)


# candidates()


def test_candidates_say_who_may_answer_and_why_the_others_may_not() -> None:
    router = router_of(v1=100, v2="loading", v3=10, v4=100, v5="error")
    router.registry.set_status("v5", "error", reason="out of memory")
    router.registry.add_alias("chat", "gone", "v5", "v4", "v3", "v2", "v1")
    candidates = router.candidates("chat", 50)
    assert ids(candidates) == ["v4", "v1"]
    assert candidates.refused == (
        ("gone", "not found"),
        ("v5", "error: out of memory"),
        ("v3", "a context of 10 tokens"),
        ("v2", "loading"),
    )
    able, refused = candidates
    assert (able, refused) == candidates


def test_candidates_of_other_names_have_one_target() -> None:
    router = router_of(v1=100, v2="disabled")
    router.registry.add_alias("plain", "v1")
    router.registry.add_alias("dangling", "gone")
    v1 = router.route("v1")
    assert router.candidates("v1") == router.candidates("plain", 100) == Candidates((v1,), ())
    assert router.candidates("plain", 101) == Candidates((), (("v1", "a context of 100 tokens"),))
    assert router.candidates("v2") == Candidates((), (("v2", "disabled"),))
    assert router.candidates("dangling") == Candidates((), (("gone", "not found"),))


def test_candidates_of_the_default_include_the_fallback_by_context() -> None:
    router = router_of(small=10, large=50)
    with pytest.raises(NoModelsAvailableError):
        router.candidates()
    router.registry.set_default("small")
    assert ids(router.candidates(None, 10)) == ["small"]
    assert router.candidates(None, 11) == Candidates((router.route("large"),), (("small", "a context of 10 tokens"),))
    assert router.candidates(None, 51).able == ()


def test_candidates_of_an_unknown_name_are_an_error() -> None:
    with pytest.raises(ModelNotFoundError, match="model 'gone' not found"):
        router_of().candidates("gone")


# Errors


def test_if_no_target_is_registered_the_alias_is_not_found() -> None:
    router = router_of()
    for targets in (("v1", "v2"), ({"v1": 1, "v2": 1},)):
        router.registry.add_alias("chat", *targets)
        with pytest.raises(ModelNotFoundError) as caught:
            router.route("chat")
        assert caught.value.model == "chat"
        assert router.registry.resolve("chat") is None
        assert "chat" not in router.registry


@pytest.mark.parametrize(
    "targets", [("gone", "v1", "v2"), ({"gone": 1, "v1": 1, "v2": 98},), ("v1", {"v2": 1, "x": 1})]
)
def test_if_no_target_is_ready_the_error_is_that_of_the_first(targets: tuple[Any, ...]) -> None:
    router = router_of(v1="loading", v2="error")
    router.registry.set_status("v1", "loading", reason="cold", retry_after=7)
    router.registry.add_alias("chat", *targets)
    for tokens in (None, 10, 1000):
        with pytest.raises(ModelNotReadyError) as caught:
            router.lease("chat", tokens)
        error = caught.value
        assert (error.model, error.status, error.reason, error.retry_after) == ("v1", "loading", "cold", 7)
        assert error.requested == "chat"
        assert str(error) == "model 'v1' is not ready (status: loading)"
    assert router.registry.resolve("chat") == router.registry.resolve("v1")


@pytest.mark.parametrize("targets", [("v1", "v2", "v3"), ({"v1": 1, "v2": 1}, "v3"), ({"v1": 9, "v2": 1, "v3": 9},)])
def test_if_no_target_is_large_enough_the_error_has_the_largest_ready_one(targets: tuple[Any, ...]) -> None:
    router = router_of(v1=10, v2=50, v3="loading")
    router.registry.add_alias("chat", *targets)
    with pytest.raises(ContextTooLongError) as caught:
        router.route_for_context("chat", 51)
    assert (caught.value.required, caught.value.available) == (51, 50)


def test_an_answer_to_a_client_never_shows_the_id_behind_an_alias() -> None:
    router = router_of(secret=10, hidden="loading")
    router.registry.add_alias("plain", "hidden")
    router.registry.add_alias("several", "hidden", "gone")
    router.registry.add_alias("split", {"hidden": 1, "gone": 1})
    router.registry.add_alias("tiny", "secret", "hidden")
    router.registry.add_alias("dangling", "gone")
    waiting: Future[ModelEndpoint] = router.registry.when_ready("plain")
    for call in (
        lambda: router.route("plain"),
        lambda: router.route("several"),
        lambda: router.lease("split"),
        lambda: router.route_for_context("tiny", 99),
        lambda: router.route("dangling"),
        lambda: model_response(router, "several"),
        lambda: AdapterRegistry(router.registry).lease_stack("plain", AdapterStack()),
        lambda: AdapterRegistry(router.registry).lease_stack("tiny", AdapterStack().add("code", 1.0)),
    ):
        with pytest.raises(RoutingError) as caught:
            call()
        body = str(error_response(caught.value).body)
        assert not any(id in body for id in ("secret", "hidden", "gone"))
    router.registry.set_status("hidden", "error")
    failure = waiting.exception(timeout=30)
    assert isinstance(failure, ModelNotReadyError)
    assert "`plain` is not ready (status: error)" in str(error_response(failure).body)


def test_an_error_about_the_default_or_an_id_says_the_id() -> None:
    router = router_of(v1="loading")
    router.registry.set_default("v1")
    for name in (None, "v1", ModelId("v1")):
        with pytest.raises(ModelNotReadyError) as caught:
            router.route(name)
        assert caught.value.requested == (None if name is None else "v1")
        assert "`v1` is not ready" in str(error_response(caught.value).body)


# Cards, waiting, the default


def test_a_card_of_an_alias_says_who_answers_now_and_how_much_fits() -> None:
    router = router_of(v1=10, v2="loading", v3=50, v4="error")
    router.registry.add_alias("chat", "v2", "v1", "v3")
    router.registry.add_alias("split", {"v1": 10, "v3": 90}, "v2")
    router.registry.add_alias("down", "v2", "v4")
    shown = {card["id"]: (card["root"], card["max_model_len"]) for card in cards(router)}
    assert shown == {"v1": ("w", 10), "v3": ("w", 50), "chat": ("v1", 50), "split": ("v3", 50)}
    router.registry.set_status("v2", "ready")
    router.registry.set_status("v3", "error")
    shown = {card["id"]: (card["root"], card["max_model_len"]) for card in cards(router)}
    assert shown == {
        "v1": ("w", 10),
        "v2": ("w", 100),
        "chat": ("v2", 100),
        "split": ("v1", 100),
        "down": ("v2", 100),
    }
    for card in cards(router):
        assert model_response(router, card["id"]) == card


def test_a_card_of_an_alias_without_a_ready_target_shows_the_first() -> None:
    router = router_of(v1="error", v2="loading", v3=10)
    router.registry.add_alias("order", "gone", "v2", "v1")
    router.registry.add_alias("weights", {"v1": 1, "v2": 9})
    data = models_response(router, aliases=True, ready=False)["data"]
    assert isinstance(data, list)
    assert [(card["id"], card["root"], card["status"]) for card in data[3:]] == [
        ("order", "v2", "loading"),
        ("weights", "v1", "error"),
    ]


def test_a_card_of_an_alias_may_be_asked_for_before_any_target_is_ready() -> None:
    router = router_of(v1="loading", v2="error")
    router.registry.add_alias("chat", "v2", "v1")
    router.registry.add_alias("split", {"v1": 1, "v2": 9})
    body: Any = models_response(router, aliases=True, ready=False)
    listed = {card["id"]: card for card in body["data"]}
    assert {id: card["status"] for id, card in listed.items()} == {
        "v1": "loading",
        "v2": "error",
        "chat": "error",
        "split": "loading",
    }
    assert all(model_response(router, id, ready=False) == card for id, card in listed.items())
    router.registry.register(ModelEndpoint("v1", "w", max_context_length=10))
    card = model_response(router, "chat", ready=False)
    assert (card["root"], card["status"], card["max_model_len"]) == ("v1", "ready", 10)
    with pytest.raises(ModelNotFoundError):
        model_response(router, "gone", ready=False)


def test_an_alias_that_an_id_shadows_has_no_card() -> None:
    router = router_of(v1=10, v2=20)
    router.registry.add_alias("v2", "v1", "v2")
    router.registry.add_alias("chat", {"v1": 1, "v2": 1})
    assert [card["id"] for card in cards(router)] == ["v1", "v2", "chat"]
    assert model_response(router, "v2")["max_model_len"] == 20


def cards(router: ModelRouter) -> list[Any]:
    data = models_response(router, aliases=True)["data"]
    assert isinstance(data, list)
    return data


def test_waiting_for_a_name_ends_when_one_target_is_ready() -> None:
    router = router_of(v1="error", v2="loading", v3="loading")
    for targets in (("v1", "v2", "v3"), ({"v1": 8, "v2": 1, "v3": 1},)):
        router.registry.add_alias("chat", *targets)
        waiting = router.registry.when_ready("chat")
        router.registry.set_status("v2", "error")
        assert not waiting.done()
        router.registry.set_status("v3", "ready")
        assert waiting.result(timeout=30).id == "v3"
        assert router.registry.when_ready("chat").result(timeout=30).id == "v3"
        for id in ("v2", "v3"):
            router.registry.set_status(id, "loading")


def test_waiting_for_a_name_fails_when_no_target_is_loading_any_more() -> None:
    router = router_of(v1="loading", v2="loading")
    router.registry.add_alias("chat", "v1", "v2")
    waiting = router.registry.when_ready("chat")
    router.registry.set_status("v2", "error")
    router.registry.set_status("v1", "disabled")
    failure = waiting.exception(timeout=30)
    assert isinstance(failure, ModelNotReadyError)
    assert (failure.model, failure.status, failure.requested) == ("v1", "disabled", "chat")
    router.registry.set_status("v2", "loading")
    waiting = router.registry.when_ready("chat")
    router.registry.remove_alias("chat")
    assert isinstance(waiting.exception(timeout=30), ModelNotFoundError)


def test_a_stack_is_leased_on_the_target_that_answers() -> None:
    router = router_of(v1=100, v2="loading")
    adapters = AdapterRegistry(router.registry)
    adapters.load(LoraAdapter("code", "v1", ""))
    router.registry.add_alias("chat", "v2", "v1")
    with adapters.lease_stack("chat", AdapterStack().add("code", 1.0)) as stack:
        assert stack.endpoint.id == "v1"


def test_a_stack_is_leased_on_the_first_target_that_it_fits() -> None:
    router = router_of(small=10, large=50)
    adapters = AdapterRegistry(router.registry)
    router.registry.add_alias("chat", "small", "large")
    with adapters.lease_stack("chat", AdapterStack(), 20) as stack:
        assert stack.endpoint.id == "large"
    with pytest.raises(ContextTooLongError) as caught:
        adapters.lease_stack("chat", AdapterStack(), 51)
    assert caught.value.available == 50
    adapters.load(LoraAdapter("code", "large", ""))
    router.registry.add_alias("chat", "small", "large:code")
    with pytest.raises(AdapterBaseError):
        adapters.lease_stack("chat", AdapterStack(), 20)


# Threads


def test_no_reader_sees_a_name_down_while_one_target_is_up() -> None:
    router = router_of(v1=100, v2=100)
    registry = router.registry
    registry.add_alias("chat", "v2", "v1")
    registry.add_alias("split", {"v1": 1, "v2": 1})
    stop = threading.Event()
    failures: list[Exception] = []
    barrier = threading.Barrier(3)

    def read(name: str) -> None:
        barrier.wait()
        while not stop.is_set():
            try:
                router.route(name)
                router.route_for_context(name, 50)
                router.lease(name).release()
            except Exception as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=read, args=(name,)) for name in ("chat", "split")]
    with short_turns():
        for thread in threads:
            thread.start()
        barrier.wait()
        chance = random.Random(1)
        for _ in range(2_000):
            first = chance.choice(["v1", "v2"])
            registry.set_status(first, "error")
            if chance.random() < 0.2:
                registry.unregister(first)
                registry.add_alias("chat", "v2", "v1")
                registry.add_alias("split", {"v1": 1, "v2": 1})
                registry.register(ModelEndpoint(first, "w", max_context_length=100))
            registry.set_status(first, "ready")
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


# Between two instructions


@pytest.mark.parametrize("targets", [("a", "b"), ("b", "a"), ({"a": 1, "b": 1},), ({"b": 1, "a": 1},)])
def test_a_name_is_not_down_when_one_target_fails_after_another_has_come_up(targets: Any) -> None:
    # Both writes come in between any two instructions of the reader.
    for place in count():
        router = ModelRouter(ModelRegistry())
        registry = router.registry
        registry.register(ModelEndpoint("a", "p", status="error"))
        registry.register(ModelEndpoint("b", "p"))
        registry.add_alias("d", *targets)
        late: list[Callable[[], object]] = [
            partial(registry.set_status, "b", "error"),
            partial(registry.set_status, "a", "ready"),
        ]

        def write() -> None:
            while late:  # noqa: B023 -- it runs in this turn
                late.pop()()  # noqa: B023

        with once_in(place, write):
            assert router.route("d").id in ("a", "b")
        if late:
            break


def test_an_alias_whose_change_was_cut_short_anywhere_follows_its_targets_afterwards() -> None:
    for place in count():
        registry, cut_short = ModelRegistry(), False
        router = ModelRouter(registry)
        for id in ("v1", "v2", "v3"):
            registry.register(ModelEndpoint(id, "p"))
            registry.add_alias(f"other {id}", id)
        registry.add_alias("chat", "v1", "v2")
        try:
            with cut_short_at(place):
                registry.add_alias("chat", "v2", "v3")
        except CutShort:
            cut_short = True
        # The next write completes the one that was cut short, unless it had not begun.
        registry.register(ModelEndpoint("unrelated", "p"))
        chat = registry.aliases()["chat"]
        assert chat in (("v1", "v2"), ("v2", "v3"))
        registry.set_status("v2", "error")
        assert router.route("chat").id == ("v1" if "v1" in chat else "v3"), place
        registry.unregister("v2")
        assert registry.aliases().get("chat") == ("v1" if "v1" in chat else "v3"), place
        # An id that the alias does not map to any more does not take it away.
        registry.add_alias("chat", "unrelated")
        registry.unregister("v1")
        registry.unregister("v3")
        assert registry.aliases() == {"chat": "unrelated"}, place
        if not cut_short:
            break


def test_errors_of_a_stack_do_not_show_the_ids_behind_an_alias() -> None:
    registry = ModelRegistry()
    for id in ("secret", "hidden"):
        registry.register(ModelEndpoint(id, "p"))
    adapters = AdapterRegistry(registry)
    adapters.load(LoraAdapter("code", "hidden", ""))
    adapters.load(LoraAdapter("slow", "secret", ""), status="loading")
    registry.add_alias("chat", "secret", "hidden")
    registry.add_alias("coder", "hidden:code", "hidden")
    for base, member in (("chat", "slow"), ("chat", "code"), ("chat", "gone"), ("coder", "code")):
        with pytest.raises(RoutingError) as caught:
            adapters.lease_stack(base, AdapterStack().add(member, 1.0))
        body = str(error_response(caught.value).body)
        assert not any(id in body for id in ("secret", "hidden")), (base, member)


def test_a_card_says_the_largest_context_of_the_targets_that_are_ready() -> None:
    router = ModelRouter(ModelRegistry())
    registry = router.registry
    for id, length, status in (("v1", 10, "ready"), ("v2", 99, "loading")):
        registry.register(ModelEndpoint(id, "p", max_context_length=length, status=status))
    registry.add_alias("chat", "v2", "v1")
    registry.set_default("v1")
    listed = models_response(router, aliases=True, ready=False)["data"]
    assert isinstance(listed, list)
    assert [(card["id"], card["max_model_len"]) for card in listed] == [("v1", 10), ("v2", 99), ("chat", 10)]
    assert (listed[-1]["root"], listed[-1]["status"]) == ("v1", "ready")


@pytest.mark.parametrize("targets", [("v1", "v2"), ("v2", "v1"), ({"v1": 9, "v2": 1},)])
def test_an_alias_of_a_target_without_a_card_has_the_card_of_the_others(targets: Any) -> None:
    router = ModelRouter(ModelRegistry())
    for id, length in (("v1", 10), ("v2", 50)):
        router.registry.register(ModelEndpoint(id, "p", max_context_length=length))
    router.registry.add_alias("chat", *targets)
    router.registry.add_alias("plain", "v2")

    def card(endpoint: ModelEndpoint) -> dict[str, object] | None:
        return None if endpoint.id == "v2" else {"owner": str(endpoint.id)}

    listed = models_response(router, aliases=True, card=card)["data"]
    assert isinstance(listed, list)
    assert [(each["id"], each["root"], each["max_model_len"]) for each in listed] == [
        ("v1", "p", 10),
        ("chat", "v1", 10),
    ]
    assert model_response(router, "chat", card=card) == listed[-1]
    with pytest.raises(ModelNotFoundError):
        model_response(router, "plain", card=card)


def test_a_card_has_the_model_and_the_parent_of_the_same_moment() -> None:
    for place in count():
        router = ModelRouter(ModelRegistry())
        registry = router.registry
        registry.register(ModelEndpoint("a", "p"))
        registry.register(ModelEndpoint("a:x", "p", adapter="x"))
        registry.add_alias("chat", "gone", "a:x")
        late: list[Callable[[], object]] = [
            partial(registry.unregister, "a"),
            partial(registry.register, ModelEndpoint("a:x", "p", adapter="x", max_context_length=9)),
        ]

        def write() -> None:
            while late:  # noqa: B023 -- it runs in this turn
                late.pop()()  # noqa: B023

        with once_in(place, write):
            card = model_response(router, "chat")
        assert (card["max_model_len"], card["parent"]) in ((4096, "a"), (9, None)), place
        if late:
            break
