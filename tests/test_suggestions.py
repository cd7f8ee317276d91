import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from functools import partial
from itertools import count
from typing import Any

import pytest
from instructions import ROUNDS, short_turns, stopped_at_each_instruction

from bonsai_routing import ModelEndpoint, ModelId, ModelRegistry, ModelRouter, models_response
from bonsai_routing.suggestions import suggestions


def registry_of(*names: str, **aliases: str) -> ModelRegistry:
    registry = ModelRegistry()
    for name in names:
        registry.register(ModelEndpoint(name, "w"))
    for alias, target in aliases.items():
        registry.add_alias(alias, target)
    return registry


# Which names are similar


@pytest.mark.parametrize(
    "typo",
    [
        "bonsia-8b",
        "bonsai-8",
        "bonsai_8b",
        "bonsai-88b",
        "bonsia8b",
        "binsay-8b",
        "bnsai-b",
        "bonnsaai-8b",
        "BONSAI-8B",
        "bonsai",
        "ai-8b",
    ],
)
def test_a_typo_is_recognised(typo: str) -> None:
    assert suggestions(registry_of("qwen3-32b", "bonsai-8b", "llama-3"), typo) == ["bonsai-8b"]


@pytest.mark.parametrize("typo", ["cod", "coed", "cide", "codee", "CODE"])
def test_one_mistake_is_recognised_in_a_name_of_four_characters(typo: str) -> None:
    assert suggestions(registry_of("code", "math"), typo) == ["code"]


@pytest.mark.parametrize("name", ["", "b", "mistral", "bonsai-8b", "x" * 10_000, "\0\n\ud800"])
def test_a_name_that_is_not_similar_to_another_gets_no_suggestions(name: str) -> None:
    assert suggestions(registry_of("bonsai-8b", "llama-3", "", "x" * 64), name) == []


@pytest.mark.parametrize(
    ("name", "other"), [("code", "model"), ("small", "smollm2"), ("gpt-4", "glm-4"), ("llama-3", "gemma-3"), ("a", "b")]
)
def test_unrelated_short_names_are_not_suggested(name: str, other: str) -> None:
    assert suggestions(registry_of(name), other) == suggestions(registry_of(other), name) == []


def test_ids_and_aliases_are_suggested_if_they_resolve() -> None:
    registry = registry_of("model-1", "model-4", **{"model-2": "model-1", "model-3": "gone"})
    registry.unregister("model-4")
    assert suggestions(registry, ModelId("model-x")) == ["model-1", "model-2"]


@pytest.mark.parametrize("status", ["loading", "disabled", "error"])
def test_a_model_that_is_not_ready_is_not_suggested(status: str) -> None:
    registry = registry_of("model", x="model", **{"models": "model"})
    registry.set_status("model", status)
    assert (
        suggestions(registry, "modle")
        == suggestions(registry, "openai/model")
        == suggestions(registry, "x:latest")
        == []
    )
    registry.set_status("model", "ready")
    assert suggestions(registry, "modle") == ["model", "models"]
    assert suggestions(registry, "openai/model") == ["model"]
    assert suggestions(registry, "x:latest") == ["x"]


@pytest.mark.parametrize("seed", range(20))
def test_what_is_suggested_is_listed(seed: int) -> None:
    chance = random.Random(seed)
    registry = ModelRegistry()
    names = [f"model-{number}" for number in range(12)]
    for _ in range(60):
        name, target = chance.sample(names, 2)
        status = chance.choice(["ready", "ready", "loading"])
        changes: list[Callable[[], object]] = [
            partial(registry.register, ModelEndpoint(name, "w", status=status)),
            partial(registry.set_status, name, status),
            partial(registry.add_alias, name, target),
            partial(registry.unregister, name),
            partial(registry.remove_alias, name),
        ]
        chance.choice(changes)()
        listed = models_response(ModelRouter(registry), aliases=True)["data"]
        shown = {each["id"] for each in listed}  # type: ignore[attr-defined]
        for asked in ("model-", f"openai/{name}", f"{target}-2024-08-06"):
            found = suggestions(registry, asked)
            assert {*found} <= shown
            assert len(found) == min(3, len(shown)) or asked != "model-"


def test_a_model_that_the_card_leaves_out_is_not_suggested() -> None:
    registry = registry_of("model-1", "model-2", "model-3", **{"model-4": "model-1", "model-5": "model-3"})

    def card(endpoint: ModelEndpoint) -> dict[str, object] | None:
        return None if endpoint.id == "model-1" else {"owned_by": "us"}

    assert suggestions(registry, "model-x", card=card) == ["model-2", "model-3", "model-5"]
    assert suggestions(registry, "openai/model-1", card=card) == []
    assert suggestions(registry, "openai/model-2", card=card) == ["model-2"]


def test_the_card_is_asked_only_about_what_would_be_suggested() -> None:
    asked: list[str] = []

    def card(endpoint: ModelEndpoint) -> dict[str, object]:
        asked.append(str(endpoint.id))
        return {}

    registry = registry_of(*(f"model-{number}" for number in range(10)), "else")
    registry.set_status("model-1", "loading")
    assert suggestions(registry, "model-x", card=card) == ["model-0", "model-2", "model-3"] == asked


# Decorated names


@pytest.mark.parametrize(
    "name",
    [
        "openai/bonsai-8b",
        "openrouter/openai/bonsai-8b",
        "bonsai-8b:latest",
        "bonsai-8b-latest",
        "bonsai-8b@latest",
        "bonsai-8b:free",
        "bonsai-8b:nitro",
        "bonsai-8b-2024-08-06",
        "bonsai-8b-20240806",
        "bonsai-8b@20240806",
        "bonsai-8b-0613",
        "openrouter/openai/bonsai-8b-2024-08-06:free",
        "/bonsai-8b",
        "//bonsai-8b",
    ],
)
def test_a_decorated_name_is_recognised_in_a_registry_of_any_size(name: str) -> None:
    registry = registry_of(*(str(number) for number in range(1100)), "bonsai-8b")
    assert suggestions(registry, name) == ["bonsai-8b"]


@pytest.mark.parametrize("decorated", ["bonsai-8b:latest", "bonsai-8b-latest"])
def test_the_latest_version_is_recognised_behind_a_plain_name(decorated: str) -> None:
    assert suggestions(registry_of(*(str(number) for number in range(1100)), decorated), "bonsai-8b") == [decorated]


def test_the_longest_registered_name_comes_first() -> None:
    registry = registry_of("m", "m-2024-08-06", "org/m", "org/m:free", "org/m-2024-08-06")
    assert suggestions(registry, "hub/org/m-2024-08-06:free") == ["org/m-2024-08-06", "m-2024-08-06", "org/m"]
    registry.unregister("org/m-2024-08-06")
    registry.unregister("m-2024-08-06")
    assert suggestions(registry, "hub/org/m-2024-08-06:free") == ["org/m", "m"]


def test_a_plain_name_comes_before_similar_ones_and_only_once() -> None:
    registry = registry_of("bonsai-8b-0612", "bonsai-8b")
    assert suggestions(registry, "bonsai-8b-0613") == ["bonsai-8b", "bonsai-8b-0612"]


@pytest.mark.parametrize("name", ["m-8b", "m:code", "m-06-13", "m-202408061", "m/", "m:latest/x", "m latest", "m-٠٦١٣"])
def test_what_looks_only_a_little_like_a_decoration_is_none(name: str) -> None:
    assert suggestions(registry_of("m"), name) == []


def test_a_name_of_up_to_200_characters_may_be_decorated() -> None:
    registry = registry_of("bonsai-8b")
    assert suggestions(registry, "x" * 190 + "/bonsai-8b") == ["bonsai-8b"]
    assert suggestions(registry, "x" * 191 + "/bonsai-8b") == []
    assert suggestions(registry, "/" * 10**6 + "bonsai-8b" + ":latest" * 10**6) == []


def test_the_name_itself_is_not_suggested() -> None:
    assert suggestions(registry_of("model-1", "model-2"), "model-1") == ["model-2"]


def test_the_three_most_similar_names_are_suggested_and_equals_are_in_alphabetical_order() -> None:
    registry = registry_of("model-bxx", "model-c", "model-a", "model-bx", "Model-b")
    assert suggestions(registry, "model-b") == ["Model-b", "model-bx", "model-bxx"]
    assert suggestions(registry, "model-d") == ["Model-b", "model-a", "model-c"]


def test_longer_names_that_begin_or_end_with_the_name_come_last() -> None:
    registry = registry_of("qwen3-8b-instruct", "organisation/Qwen3-8B", "my-qwen3-8b-gguf", "qwen3-4b")
    assert suggestions(registry, "qwen3-8b") == ["qwen3-4b", "qwen3-8b-instruct", "organisation/Qwen3-8B"]


def test_three_characters_are_enough_for_longer_names_and_two_are_not() -> None:
    registry = registry_of("bonsai-8b", "llama-bon")
    assert suggestions(registry, "bon") == ["bonsai-8b", "llama-bon"]
    assert suggestions(registry, "bo") == suggestions(registry, "on") == []


def test_case_is_ignored() -> None:
    assert suggestions(registry_of("ab", "abc", "aB"), "Ab") == ["aB", "ab", "abc"]
    assert suggestions(registry_of("МОДЕЛЬ"), "модель") == ["МОДЕЛЬ"]


def test_a_name_of_more_than_64_characters_gets_no_suggestions_and_is_not_suggested() -> None:
    registry = registry_of("x" * 64, "x" * 65)
    assert suggestions(registry, "x" * 63) == ["x" * 64]
    assert suggestions(registry, "x" * 65) == suggestions(registry, "x" * 66) == []


def plain_suggestions(names: list[str], name: str) -> list[str]:
    ranked = []
    for each in names:
        text, wanted = each.lower(), name.lower()
        ratio = SequenceMatcher(None, text, wanted).ratio()
        if each != name and (ratio >= 0.7 or (len(name) >= 3 and wanted in (text[: len(name)], text[-len(name) :]))):
            ranked.append((-ratio, each))
    return [each for _, each in sorted(ranked)[:3]]


@pytest.mark.parametrize("seed", range(20))
def test_they_are_the_suggestions_of_a_plain_search(seed: int) -> None:
    chance = random.Random(seed)
    alphabet = chance.choice(["ab", "abAB-", "abcdefg"])
    names = sorted({"".join(chance.choices(alphabet, k=chance.randrange(13))) for _ in range(40)})
    chance.shuffle(names)
    registry = registry_of(*names)
    for _ in range(20):
        name = "".join(chance.choices(alphabet, k=chance.randrange(13)))
        assert suggestions(registry, name) == plain_suggestions(names, name), (seed, name)


# Large registries


@pytest.fixture(scope="module", params=["model-{}", "{}/organisation", "base:{}:x"])
def crowd(request: pytest.FixtureRequest) -> tuple[str, ModelRegistry]:
    """Return a name and a registry of a thousand names that differ from it in twelve digits."""
    names = [request.param.format(f"{number * 6_700_417_003 % 10**12:012d}") for number in range(1000)]
    return names[-1], registry_of(*names)


def test_a_wrong_character_anywhere_is_recognised_in_a_large_registry(crowd: tuple[str, ModelRegistry]) -> None:
    right, registry = crowd
    for place in range(len(right)):
        head, tail = right[:place], right[place + 1 :]
        for typo in (head + tail, head + "z" + right[place:], head + "z" + tail):
            assert right in suggestions(registry, typo), typo


def test_transposed_characters_are_recognised_in_a_large_registry(crowd: tuple[str, ModelRegistry]) -> None:
    right, registry = crowd
    assert suggestions(registry, right.replace("71", "17"))[0] == right


def test_a_prefix_is_recognised_in_a_large_registry(crowd: tuple[str, ModelRegistry]) -> None:
    right, registry = crowd
    assert suggestions(registry, right[:-4])[0] == right


def test_50_names_are_compared_and_these_contain_the_most_quarters_of_the_name() -> None:
    similar = "a-bc-de-fg-h"
    registry = registry_of(similar, *(f"ab-{number}" for number in range(49)))
    assert suggestions(registry, "abcdefgh") == [similar]
    registry.register(ModelEndpoint("199-AB", "w"))
    assert suggestions(registry, "abcdefgh") == []
    registry.set_status("199-AB", "loading")
    assert suggestions(registry, "abcdefgh") == [similar]


def test_only_the_first_thousand_names_are_searched_for_similar_ones() -> None:
    registry = registry_of(*(str(number) for number in range(998)), "bonsai-8b", "bonsai-70b")
    assert suggestions(registry, "bonsia-8b") == ["bonsai-8b", "bonsai-70b"]
    registry = registry_of(*(str(number) for number in range(1000)), "bonsai-8b")
    assert suggestions(registry, "bonsia-8b") == []
    assert suggestions(registry, "openai/bonsai-8b") == ["bonsai-8b"]


def test_a_suggestion_costs_the_same_in_a_registry_of_any_size() -> None:
    def steps(size: int) -> int:
        registry = registry_of(*(f"model-{number:06d}" for number in range(size)))
        done = count()
        with stopped_at_each_instruction(lambda: next(done)):
            suggestions(registry, "openai/model-0000x1-2024-08-06")
        return next(done)

    assert steps(10_000) <= steps(1000) * 1.1


# What is refused


@pytest.mark.parametrize("name", [None, 8, b"a"])
def test_a_name_must_be_text(name: Any) -> None:
    with pytest.raises(TypeError, match=rf"name must be a str or a ModelId, not {name!r}"):
        suggestions(ModelRegistry(), name)


def test_something_else_than_a_registry_is_refused() -> None:
    with pytest.raises(TypeError, match=r"registry must be a ModelRegistry, not ModelRouter\("):
        suggestions(ModelRouter(ModelRegistry()), "a")  # type: ignore[arg-type]


def test_a_card_must_be_callable() -> None:
    with pytest.raises(TypeError, match="card must be a callable or None, not 5"):
        suggestions(ModelRegistry(), "a", card=5)  # type: ignore[arg-type]


# Other threads that write


@pytest.mark.parametrize("other", [("model-2", "model-3"), ()])
def test_a_suggestion_resolved_before_the_write_or_resolves_after_it(other: tuple[str, ...]) -> None:
    for place in count():
        # In each round, the write happens one instruction later, until the call ends before it.
        registry = registry_of("model-1", "model-2", x="model-1")
        countdown = iter(range(place, -1, -1))

        def visit(countdown: Iterator[int] = countdown, registry: ModelRegistry = registry) -> None:
            if next(countdown, None) == 0:
                registry.replace_with(registry_of(*other))

        with stopped_at_each_instruction(visit):
            found = suggestions(registry, "modle")
        if next(countdown, None) is not None:
            break
        assert {*found} <= {"model-1", "model-2", *other}


def test_a_write_while_the_names_are_collected_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = registry_of("model-1")

    def slice_while_another_thread_writes(names: dict[object, object], stop: int) -> Iterator[object]:
        for place, name in enumerate(names):
            if place == 1 and next(interruptions, None) is not None:
                registry.register(ModelEndpoint("model-2", "w"))
            yield name

    interruptions = iter([1])
    monkeypatch.setattr(sys.modules["bonsai_routing.suggestions"], "islice", slice_while_another_thread_writes)
    assert suggestions(registry, "model-") == ["model-1", "model-2"]


@pytest.fixture
def _frequent_switches() -> Iterator[None]:
    with short_turns():
        yield


@pytest.mark.usefixtures("_frequent_switches")
def test_names_that_always_resolve_are_suggested_while_other_threads_write() -> None:
    registry = registry_of("model-1", "model-2")
    barrier = threading.Barrier(3)
    done = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        barrier.wait()
        try:
            while not done.is_set():
                assert suggestions(registry, "model-") == ["model-1", "model-2"]
        except BaseException as failure:
            failures.append(failure)

    def write() -> None:
        barrier.wait()
        try:
            for number in range(3000 * ROUNDS):
                registry.register(ModelEndpoint(f"guest-{number}", "w"))
                registry.add_alias("x", f"guest-{number}")
                registry.unregister(f"guest-{number - 20}")
        except BaseException as failure:
            failures.append(failure)
        finally:
            done.set()

    threads = [threading.Thread(target=task) for task in (read, read, write)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


# The module has the name of the function


@pytest.mark.parametrize(
    "statements",
    [
        "from bonsai_routing.suggestions import suggestions as f; from bonsai_routing import suggestions as g",
        "from bonsai_routing import suggestions as f; from bonsai_routing.suggestions import suggestions as g",
    ],
)
def test_the_package_has_the_function_whichever_import_comes_first(statements: str) -> None:
    subprocess.run([sys.executable, "-c", f"{statements}; assert f is g; f.__code__"], check=True)


@pytest.mark.parametrize("status", ["loading", "disabled", "error"])
def test_a_model_that_is_not_ready_is_suggested_on_request(status: str) -> None:
    registry = registry_of("model")
    registry.set_status("model", status)
    for name in ("modle", "openai/model:latest"):
        assert suggestions(registry, name) == []
        assert suggestions(registry, name, ready=False)[0] == "model"
    assert suggestions(registry, "modle", ready=False, card=lambda endpoint: None) == []
