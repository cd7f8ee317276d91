import json
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, partial
from itertools import count, cycle
from types import FrameType
from typing import Any

import pytest
from instructions import ROUNDS, stopped_at_each_instruction

import bonsai_routing.openai
from bonsai_routing import (
    AdapterBaseError,
    AdapterConfigError,
    AdapterLoadedError,
    AdapterRegistry,
    ContextTooLongError,
    EndpointStatus,
    LoraAdapter,
    ModelEndpoint,
    ModelId,
    ModelNotFoundError,
    ModelNotReadyError,
    ModelRegistry,
    ModelRouter,
    NoModelsAvailableError,
    RoutingError,
    StaleGenerationError,
)
from bonsai_routing.openai import ErrorResponse, error_response, model_response, models_response, suggestions


def router_of(*endpoints: ModelEndpoint, **aliases: str) -> ModelRouter:
    registry = ModelRegistry()
    for each in endpoints:
        registry.register(each)
    for alias, target in aliases.items():
        registry.add_alias(alias, target)
    return ModelRouter(registry)


def cards(router: ModelRouter, *, aliases: bool = False) -> list[dict[str, Any]]:
    response: dict[str, Any] = models_response(router, aliases=aliases)
    assert response["object"] == "list"
    return response["data"]  # type: ignore[no-any-return]


def ids(router: ModelRouter, *, aliases: bool = False) -> list[str]:
    return [card["id"] for card in cards(router, aliases=aliases)]


A = ModelEndpoint("a", "weights-a", max_context_length=100)
B = ModelEndpoint("b", "weights-b", max_context_length=200)
LOADING = ModelEndpoint("c", "weights-c", status="loading")


# Lists of models


def test_no_models_are_an_empty_list() -> None:
    assert models_response(router_of()) == {"object": "list", "data": []}


def test_a_card_says_what_clients_read() -> None:
    before = int(time.time())
    router = router_of(A)
    [card] = cards(router)
    created = card.pop("created")
    assert before <= created <= time.time()
    assert card == {
        "id": "a",
        "object": "model",
        "owned_by": "oxibonsai",
        "root": "weights-a",
        "parent": None,
        "max_model_len": 100,
    }


def test_the_cards_agree_with_the_list_of_the_router() -> None:
    router = router_of(B, LOADING, A)
    shown = [(card["id"], card["object"], card["owned_by"], card["created"]) for card in cards(router)]
    assert shown == [(each.id, each.object, each.owned_by, each.created) for each in router.models_list()]
    assert ids(router) == ["b", "a"]


def test_the_time_of_creation_stays_when_the_status_changes() -> None:
    router = router_of(A)
    router.registry._directory.slots["a"].registered_at = 1000
    router.registry.set_status("a", "error")
    router.registry.set_status("a", "ready")
    assert [card["created"] for card in cards(router)] == [1000]
    assert model_response(router, "a")["created"] == 1000


def test_the_bodies_are_ready_for_json() -> None:
    router = router_of(A, x="a")
    for body in (models_response(router, aliases=True), model_response(router, "x"), error_response(EXAMPLES[0]).body):
        assert json.loads(json.dumps(body)) == body


@pytest.mark.parametrize("ask", [models_response, lambda router: model_response(router, "a")])
def test_something_else_than_a_router_is_refused(ask: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match=r"router must be a ModelRouter, not <ModelRegistry"):
        ask(ModelRegistry())


# Parents


def parent(router: ModelRouter, id: str) -> object:
    found = model_response(router, id)["parent"]
    assert {card["id"]: card["parent"] for card in cards(router)}[id] == found
    return found


@pytest.mark.parametrize(("base", "name"), [("a", "code"), ("hub/a:7b", "code"), ("a", "v1:code")])
def test_the_parent_of_a_loaded_adapter_is_its_base(base: str, name: str) -> None:
    router = router_of(ModelEndpoint("a:v1", "w"), ModelEndpoint("hub/a", "w"), ModelEndpoint(base, "w"))
    adapter = LoraAdapter(name, base, "adapters/code")
    AdapterRegistry(router.registry).load(adapter)
    assert parent(router, str(adapter.id)) == base
    router.registry.unregister(base)
    assert parent(router, str(adapter.id)) == base


@pytest.mark.parametrize(
    ("id", "expected"),
    [
        ("a:code", "a"),
        ("a:7b:code", "a:7b"),
        ("a:8b:code", "a"),
        ("a:sql:code", "a"),
        ("z:code", None),
        ("code", None),
        ("A:code", None),
        (":code", None),
    ],
)
def test_the_parent_of_another_adapter_is_the_registered_base_that_its_id_begins_with(
    id: str, expected: str | None
) -> None:
    router = router_of(
        ModelEndpoint("a", "w", status="error"),
        ModelEndpoint("a:7b", "w"),
        ModelEndpoint("a:sql", "w", adapter="sql"),
        ModelEndpoint(id, "w", adapter="code-v2"),
        z="a",
    )
    assert parent(router, id) == expected


def test_a_model_without_an_adapter_has_no_parent_whatever_its_id() -> None:
    assert parent(router_of(A, ModelEndpoint("a:7b", "w")), "a:7b") is None


# Aliases


def test_aliases_are_left_out_unless_they_are_asked_for() -> None:
    router = router_of(A, x="a")
    assert ids(router) == ["a"]
    assert ids(router, aliases=True) == ["a", "x"]


def test_the_card_of_an_alias_is_its_targets_with_the_target_as_root() -> None:
    router = router_of(A, ModelEndpoint("a:code", "weights-a", adapter="code"), x="a:code")
    _, target, alias = cards(router, aliases=True)
    assert target["parent"] == "a"
    assert alias == {**target, "id": "x", "root": "a:code"}


def test_aliases_come_after_the_ids_and_in_the_order_in_which_they_were_added() -> None:
    router = router_of(y="b", x="a")
    router.registry.register(B)
    router.registry.add_alias("z", "b")
    router.registry.register(A)
    router.registry.add_alias("y", "a")
    assert ids(router, aliases=True) == ["b", "a", "y", "x", "z"]


def test_an_alias_of_nothing_or_of_a_model_that_is_not_ready_has_no_card() -> None:
    assert ids(router_of(A, LOADING, x="c", y="nothing", z="a"), aliases=True) == ["a", "z"]


def test_an_alias_that_an_id_hides_has_no_card_even_if_that_is_not_ready() -> None:
    router = router_of(A, B, LOADING, b="a", c="a")
    assert ids(router, aliases=True) == ["a", "b"]
    router.registry.unregister("c")
    assert ids(router, aliases=True) == ["a", "b", "c"]


# Single models


def test_a_single_model_is_the_card_of_the_list() -> None:
    router = router_of(A, B, x="b")
    listed = {card["id"]: card for card in cards(router, aliases=True)}
    for name in ("a", "b", "x"):
        assert model_response(router, name) == model_response(router, ModelId(name)) == listed[name]


@pytest.mark.parametrize("name", ["nothing", "x", "c", "y", "h"])
def test_a_name_that_is_not_served_is_refused_as_routing_refuses_it(name: str) -> None:
    router = router_of(A, LOADING, ModelEndpoint("h", "w", status="disabled"), x="gone", y="c", h="a")
    with pytest.raises(RoutingError) as routed:
        router.route(name)
    with pytest.raises(type(routed.value)) as caught:
        model_response(router, name)
    assert caught.value.args == routed.value.args


@pytest.mark.parametrize("name", [None, 8, b"a"])
def test_a_name_must_be_text(name: Any) -> None:
    router = router_of(A.set_default())
    for ask in (model_response, lambda router, name: suggestions(router.registry, name)):
        with pytest.raises(TypeError, match=rf"name must be a str or a ModelId, not {name!r}"):
            ask(router, name)


# Errors

EXAMPLES: list[RoutingError] = [
    ModelNotFoundError("it's"),
    ContextTooLongError("a", 4294, 4097),
    NoModelsAvailableError(),
    ModelNotReadyError("a", "loading"),
    ModelNotReadyError("a", EndpointStatus.LOADING),
    ModelNotReadyError("a", "error"),
    ModelNotReadyError("a", EndpointStatus.DISABLED),
    AdapterBaseError("code", "a", "it is loaded on 'b'"),
    AdapterConfigError("adapters/code", "r", "is missing"),
    AdapterLoadedError("a:code"),
    StaleGenerationError("a", 1, 2),
]


class HouseError(RoutingError):
    pass


class HouseNotFoundError(ModelNotFoundError):
    pass


def facts(error: RoutingError) -> Any:
    return error_response(error).body["error"]


def test_every_kind_of_error_is_among_the_examples() -> None:
    kinds = set(RoutingError.__subclasses__()) - {HouseError}
    assert {kind for kind in kinds if kind.__module__ == "bonsai_routing.errors"} == {type(each) for each in EXAMPLES}


@pytest.mark.parametrize("error", [*EXAMPLES, RoutingError("x"), HouseError("x")], ids=repr)
def test_every_error_has_openais_shape(error: RoutingError) -> None:
    answer = error_response(error)
    assert list(answer.body) == ["error"]
    assert list(facts(error)) == ["message", "type", "param", "code"]
    assert facts(error)["type"] == ("server_error" if answer.status >= 500 else "invalid_request_error")
    assert all(isinstance(text, str) for pair in answer.headers.items() for text in pair)


@pytest.mark.parametrize("error", EXAMPLES, ids=repr)
def test_only_waiting_for_a_model_that_loads_is_worth_a_retry(error: RoutingError) -> None:
    answer = error_response(error)
    # What OpenAI's client does by the status alone.
    retried = answer.status in (408, 409, 429) or answer.status >= 500
    if "load" in getattr(error, "status", ""):
        assert retried
        # More than 60 seconds are ignored by some versions of the client.
        assert 0 < float(answer.headers.pop("Retry-After")) <= 60
        assert answer.headers == {}
    else:
        assert answer.headers == ({"x-should-retry": "false"} if retried else {})


def test_an_unknown_model_is_not_found() -> None:
    answer = error_response(ModelNotFoundError("it's"))
    assert answer == ErrorResponse(
        404,
        {},
        {
            "error": {
                "message": "The model `it's` does not exist.",
                "type": "invalid_request_error",
                "param": None,
                "code": "model_not_found",
            }
        },
    )


def test_a_context_that_is_too_long_is_told_in_the_words_that_clients_look_for() -> None:
    assert error_response(ContextTooLongError("a", 4294, 4097)) == ErrorResponse(
        400,
        {},
        {
            "error": {
                "message": "This model's maximum context length is 4097 tokens. However, your messages resulted in "
                "4294 tokens. Please reduce the length of the messages. (context_length_exceeded)",
                "type": "invalid_request_error",
                "param": "messages",
                "code": "context_length_exceeded",
            }
        },
    )


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NoModelsAvailableError(), 503, "no_models_available"),
        (ModelNotReadyError("a", "loading"), 503, "model_not_ready"),
        (AdapterBaseError("code", "a", "it is loaded on 'b'"), 400, "adapter_base_mismatch"),
        (AdapterConfigError("adapters/code", "r", "is missing"), 400, "invalid_adapter_config"),
        (AdapterLoadedError("a:code"), 400, "adapter_already_loaded"),
        (StaleGenerationError("a", 1, 2), 409, "stale_generation"),
    ],
)
def test_other_errors_have_a_status_and_a_code(error: RoutingError, status: int, code: str) -> None:
    assert error_response(error).status == status
    assert facts(error)["code"] == code
    assert facts(error)["param"] is None


def test_a_model_that_is_not_ready_tells_why() -> None:
    assert facts(ModelNotReadyError("a", EndpointStatus.ERROR))["message"] == (
        "The model `a` is not ready (status: error)."
    )


def test_errors_about_adapters_tell_what_is_wrong() -> None:
    for error in EXAMPLES[-4:]:
        assert facts(error)["message"] == str(error)


def test_an_error_of_another_kind_is_the_servers_fault_and_tells_nothing() -> None:
    answer = error_response(HouseError("/etc/secret"))
    assert (answer.status, answer.headers) == (500, {"x-should-retry": "false"})
    assert "secret" not in json.dumps(answer.body)


def test_a_special_kind_of_a_known_error_is_answered_like_that() -> None:
    assert error_response(HouseNotFoundError("a")) == error_response(ModelNotFoundError("a"))


def test_a_name_that_is_half_a_surrogate_pair_can_be_sent() -> None:
    message = facts(ModelNotFoundError("\ud800é"))["message"]
    assert message.encode() == "The model `\\ud800é` does not exist.".encode()


def test_the_headers_of_one_answer_are_not_those_of_the_next() -> None:
    error_response(NoModelsAvailableError()).headers.clear()
    assert error_response(NoModelsAvailableError()).headers


@pytest.mark.parametrize("error", [LookupError("x"), "text", None, ModelNotFoundError])
def test_something_else_than_a_routing_error_is_refused(error: Any) -> None:
    with pytest.raises(TypeError) as caught:
        error_response(error)
    assert str(caught.value) == f"error must be a RoutingError, not {error!r}"


# Suggestions


def registry_of(*names: str, **aliases: str) -> ModelRegistry:
    return router_of(*(ModelEndpoint(name, "w") for name in names), **aliases).registry


@pytest.mark.parametrize(
    "typo", ["bonsai-8", "bonsa-8b", "bonsia-8b", "bonsai_8b", "bonsai-88b", "BONSAI-8B", "bonsia8b"]
)
def test_a_typo_is_recognised(typo: str) -> None:
    assert suggestions(registry_of("qwen3-32b", "bonsai-8b", "llama-3"), typo) == ["bonsai-8b"]


@pytest.mark.parametrize("name", ["", "b", "mistral", "bonsai-8b", "x" * 10_000, "\0\n\ud800"])
def test_what_is_like_no_other_name_gets_no_suggestion(name: str) -> None:
    assert suggestions(registry_of("bonsai-8b", "llama-3", "", "x" * 64), name) == []


def test_ids_and_aliases_are_suggested_and_not_what_leads_nowhere() -> None:
    registry = registry_of("model-1", **{"model-2": "model-1", "model-3": "gone"})
    assert suggestions(registry, ModelId("model-x")) == ["model-1", "model-2"]


def test_a_model_that_is_not_ready_is_suggested_too() -> None:
    assert suggestions(router_of(ModelEndpoint("model", "w", status="error")).registry, "modle") == ["model"]


def test_the_name_itself_is_not_suggested() -> None:
    assert suggestions(registry_of("model-1", "model-2"), "model-1") == ["model-2"]


def test_there_are_three_at_most_and_the_nearest_come_first_and_equals_by_the_alphabet() -> None:
    registry = registry_of("model-bxx", "model-bx", "model-c", "model-a", "Model-b")
    assert suggestions(registry, "model-b") == ["Model-b", "model-a", "model-bx"]


def test_longer_names_that_begin_or_end_with_it_come_after_the_near_ones_and_the_shortest_first() -> None:
    registry = registry_of("qwen3-8b-instruct", "Qwen/Qwen3-8B", "my-qwen3-8b-gguf", "qwen3-4b")
    assert suggestions(registry, "qwen3-8b") == ["qwen3-4b", "Qwen/Qwen3-8B", "qwen3-8b-instruct"]


def test_two_characters_are_too_few_to_tell() -> None:
    assert suggestions(registry_of("ab", "abc", "aB"), "Ab") == ["aB", "ab"]


def test_only_ascii_letters_are_the_same_in_both_cases() -> None:
    assert suggestions(registry_of("modèle", "МОДЕЛЬ"), "modÈle") == ["modèle"]
    assert suggestions(registry_of("МОДЕЛЬ"), "модель") == []


@cache
def distance(one: str, other: str) -> int:
    """Return the optimal string alignment distance, straight from its definition."""
    if not one or not other:
        return len(one) + len(other)
    ways = [
        distance(one[1:], other) + 1,
        distance(one, other[1:]) + 1,
        distance(one[1:], other[1:]) + (one[0] != other[0]),
    ]
    if one[:2] == other[1::-1] and len(one) > 1:
        ways.append(distance(one[2:], other[2:]) + 1)
    return min(ways)


def plain_suggestions(names: list[str], name: str) -> list[str]:
    wanted, limit = name.lower(), min(3, len(name) // 3)
    ranked = []
    for each in names:
        edits = distance(wanted, each.lower())
        if edits <= limit:
            ranked.append((edits, 0, each))
        elif limit and wanted in (each.lower()[: len(name)], each.lower()[-len(name) :]):
            ranked.append((limit + 1, len(each), each))
    return [each for *_, each in sorted(ranked) if each != name][:3]


@pytest.mark.parametrize("seed", range(20))
def test_they_are_those_of_a_plain_search(seed: int) -> None:
    chance = random.Random(seed)
    alphabet = chance.choice(["ab", "abAB-", "abcdefg"])
    names = sorted({"".join(chance.choices(alphabet, k=chance.randrange(13))) for _ in range(40)})
    chance.shuffle(names)
    registry = registry_of(*names)
    for _ in range(20):
        name = "".join(chance.choices(alphabet, k=chance.randrange(13)))
        assert suggestions(registry, name) == plain_suggestions(names, name), (seed, name)


# What stands before and behind twelve digits that differ in a hundred thousand names.
CROWDS = {
    "short": ("model-", ""),
    "common beginning": ("organisation/" * 3, ""),
    "common end": ("", "/organisation" * 3),
    "one letter": ("a" * 51, ""),
    "common beginning and end": ("b" + "a" * 49, "c"),
    "not ASCII": ("модель-и-" * 5, ""),
}


def crowded(kind: str, number: int) -> str:
    before, behind = CROWDS[kind]
    # The digits are so far apart that no two names are alike by chance.
    return f"{before}{number * 6_700_417_003 % 10**12:012d}{behind}"


@pytest.fixture(scope="module", params=CROWDS)
def crowd(request: pytest.FixtureRequest) -> tuple[str, ModelRegistry]:
    """Return one of a hundred thousand names, and the registry of all of them."""
    kind = request.param
    return crowded(kind, 42_424), registry_of(*(crowded(kind, number) for number in range(100_000)))


def test_one_edit_away_is_found_among_a_hundred_thousand(crowd: tuple[str, ModelRegistry]) -> None:
    right, registry = crowd
    digits = crowded("short", 42_424)[-12:]
    place = right.index(digits) + 6
    assert right[place - 1] != right[place]
    for typo in (
        right[:place] + right[place + 1 :],
        right[:place] + "x" + right[place:],
        right[:place] + "x" + right[place + 1 :],
        right[: place - 1] + right[place] + right[place - 1] + right[place + 1 :],
    ):
        assert suggestions(registry, typo)[0] == right


def test_more_edits_between_a_right_beginning_and_end_are_found_among_ten_thousand() -> None:
    registry = registry_of(*(crowded("short", number) for number in range(10_000)))
    right = crowded("short", 4_242)
    for middle in ("xx", "xxx", right[8:10][::-1] + "xx", ""):
        assert suggestions(registry, right[:8] + middle + right[10:]) == [right]


def test_they_take_less_than_50_milliseconds_among_a_hundred_thousand(crowd: tuple[str, ModelRegistry]) -> None:
    right, registry = crowd
    for asked in ("", "abc", right[:-1], "x" + right[1:-1] + "y", right.upper(), "z" * 64, right[::-1], right * 100):
        assert takes_less_than(0.050, partial(suggestions, registry, asked)), asked[:64]


def takes_less_than(seconds: float, act: Callable[[], object]) -> bool:
    """Return whether one of twenty tries does, without the cost of a coverage tool: the machine may be busy."""
    before = sys.gettrace()
    sys.settrace(None)
    try:
        for _ in range(20):
            start = time.perf_counter()
            act()
            if time.perf_counter() - start < seconds:
                return True
    finally:
        sys.settrace(before)
    return False


def test_something_else_than_a_registry_is_refused() -> None:
    with pytest.raises(TypeError, match=r"registry must be a ModelRegistry, not ModelRouter\("):
        suggestions(router_of(), "a")  # type: ignore[arg-type]


# Writers that come in between


@pytest.fixture
def _frequent_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def side(letter: str) -> ModelRegistry:
    """Return a registry of models and aliases that all bear one letter."""
    names = [f"{letter}-{number}" for number in range(40)]
    return registry_of(*names, **{f"alias-of-{name}": name for name in names})


@pytest.mark.usefixtures("_frequent_switches")
def test_lists_and_suggestions_are_whole_while_other_threads_write() -> None:
    registry = ModelRegistry()
    router = ModelRouter(registry)
    left, right = side("left"), side("right")
    registry.replace_with(left)
    barrier = threading.Barrier(4)
    done = threading.Event()
    failures: list[BaseException] = []

    def check() -> None:
        listed = cards(router, aliases=True)
        names = [card["id"] for card in listed]
        assert len(set(names)) == len(names)
        models = [name for name in names if not name.startswith(("alias", "guest"))]
        assert models in ([f"left-{n}" for n in range(40)], [f"right-{n}" for n in range(40)])
        targets = [card["root"] for card in listed if card["id"].startswith("alias")]
        assert targets == models
        for name in suggestions(registry, "left-x"):
            assert name.startswith("left-")
        for name in ("left-0", "alias-of-right-0", "guest"):
            with suppress(ModelNotFoundError):
                assert model_response(router, name)["id"] == name

    def read() -> None:
        while not done.is_set():
            check()

    def replace() -> None:
        for _ in range(60 * ROUNDS):
            registry.replace_with(right)
            registry.replace_with(left)

    def come_and_go() -> None:
        for _ in range(1000 * ROUNDS):
            registry.register(ModelEndpoint("guest", "w"))
            registry.add_alias("guest-alias", "guest")
            registry.unregister("guest")

    def run(task: Callable[[], None], is_writer: bool) -> None:
        barrier.wait()
        try:
            task()
        except BaseException as failure:
            failures.append(failure)
        finally:
            if is_writer:
                done.set()

    tasks = [(read, False), (read, False), (replace, True), (come_and_go, False)]
    threads = [threading.Thread(target=run, args=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def changes() -> list[Callable[[ModelRegistry], object]]:
    other = registry_of("b", "c", x="c", y="b", z="b")
    return [
        lambda registry: registry.replace_with(other),
        lambda registry: registry.register(ModelEndpoint("x", "new")),
        lambda registry: registry.register(ModelEndpoint("a:code", "new", adapter="code")),
        lambda registry: registry.unregister("a"),
        lambda registry: registry.unregister("b"),
        lambda registry: registry.add_alias("x", "b"),
        lambda registry: registry.set_status("a", "error"),
    ]


def answer(ask: Callable[[], object]) -> object:
    try:
        return ask()
    except RoutingError as error:
        return type(error), error.args


def busy_router() -> ModelRouter:
    return router_of(A, ModelEndpoint("a:code", "w", adapter="code"), B, x="a", y="a:code", b="a")


QUESTIONS: list[Callable[[ModelRouter], object]] = [
    partial(models_response, aliases=True),
    partial(model_response, name="a"),
    partial(model_response, name="x"),
]


@pytest.fixture
def _a_clock_that_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.0)


def answers_with_a_write_at_each_place(
    question: Callable[[ModelRouter], object], change: int, places: Iterable[int]
) -> Iterator[tuple[object, object, object]]:
    """Yield an answer before the change, that answer if the change comes in meanwhile, and the answer afterwards."""
    for place in places:
        # Each time the write comes in one instruction later, until the answer is there before it.
        router = busy_router()
        before = answer(partial(question, router))
        countdown = iter(range(place, -1, -1))

        def visit(countdown: Iterator[int] = countdown, router: ModelRouter = router) -> None:
            if next(countdown, None) == 0:
                changes()[change](router.registry)

        with stopped_at_each_instruction(visit):
            between = answer(partial(question, router))
        if next(countdown, None) is not None:
            break
        yield before, between, answer(partial(question, router))


@pytest.mark.usefixtures("_a_clock_that_stands")
@pytest.mark.parametrize("change", range(len(changes())))
def test_a_write_that_comes_in_anywhere_is_seen_wholly_or_not_at_all(change: int) -> None:
    for question in QUESTIONS:
        for before, between, after in answers_with_a_write_at_each_place(question, change, count()):
            assert between in (before, after)


@pytest.mark.usefixtures("_a_clock_that_stands")
@pytest.mark.parametrize("change", range(len(changes())))
def test_a_write_that_is_stopped_anywhere_is_seen_wholly_or_not_at_all(change: int) -> None:
    router = busy_router()
    seen: list[list[object]] = []

    def ask() -> list[object]:
        return [answer(partial(question, router)) for question in QUESTIONS]

    before = ask()
    # A reader that waited for the writer's lock would never come back: the writer waits for the reader.
    with (
        ThreadPoolExecutor(1) as pool,
        stopped_at_each_instruction(lambda: seen.append(pool.submit(ask).result(timeout=30))),
    ):
        changes()[change](router.registry)
    after = ask()
    for state in seen:
        assert all(each in (old, new) for each, old, new in zip(state, before, after, strict=True))


@pytest.mark.parametrize("change", range(len(changes())))
def test_suggestions_are_those_from_before_a_write_or_after_it(change: int) -> None:
    # All that they read of the registry but single names is read in the first instructions.
    for before, between, after in answers_with_a_write_at_each_place(partial(near, name="a:cod"), change, range(300)):
        assert between in (before, after)


def near(router: ModelRouter, name: str) -> list[str]:
    return suggestions(router.registry, name)


def writing_at_each_call(write: Callable[[], object]) -> Callable[[FrameType, str, object], None]:
    """Return a profile function that writes whenever the module under test calls something written in C."""

    def profile(frame: FrameType, event: str, arg: object) -> None:
        if event == "c_call" and frame.f_code.co_filename == bonsai_routing.openai.__file__:
            write()

    return profile


@contextmanager
def profiled(profile: Callable[[FrameType, str, object], None]) -> Iterator[None]:
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)


def test_a_list_ends_when_writers_leave_no_moment_between_them() -> None:
    router = router_of(A, B, x="a")
    statuses = cycle([EndpointStatus.ERROR, EndpointStatus.READY])
    with profiled(writing_at_each_call(lambda: router.registry.set_status("b", next(statuses)))):
        listed = ids(router, aliases=True)
    assert [name for name in listed if name != "b"] == ["a", "x"]


def test_such_a_list_is_of_one_directory_still() -> None:
    router = ModelRouter(side("left"))
    sides = cycle([side("right"), side("left")])
    whole = []
    for registry in (side("left"), side("right")):
        whole.append(ids(ModelRouter(registry), aliases=True))
    with profiled(writing_at_each_call(lambda: router.registry.replace_with(next(sides)))):
        listed = ids(router, aliases=True)
    assert listed in whole
