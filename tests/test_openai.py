import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import count, cycle
from types import FrameType
from typing import Any, cast

import pytest
from instructions import ROUNDS, short_turns, stopped_at_each_instruction

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
from bonsai_routing.openai import ErrorResponse, error_response, model_response, models_response


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


def test_the_time_of_creation_stays_when_the_status_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.9)
    router = router_of(A)
    monkeypatch.undo()
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
    with pytest.raises(TypeError, match=rf"name must be a str or a ModelId, not {name!r}"):
        model_response(router, name)


# What the caller adds


def data(router: ModelRouter, **options: Any) -> list[dict[str, Any]]:
    return models_response(router, **options)["data"]  # type: ignore[return-value]


def by_name(router: ModelRouter, key: str, **options: Any) -> dict[str, object]:
    """Return the value that the card of each id and alias has under a key."""
    return {card["id"]: card[key] for card in data(router, aliases=True, **options)}


def test_models_that_are_not_ready_are_listed_on_request_and_every_card_has_its_status() -> None:
    router = router_of(A, LOADING, ModelEndpoint("d", "w", status="disabled"), x="c", y="a")
    assert by_name(router, "status", ready=False) == {
        "a": "ready",
        "c": "loading",
        "d": "disabled",
        "x": "loading",
        "y": "ready",
    }
    assert [type(card["status"]) for card in data(router, ready=False)] == [str] * 3
    [without, _, _] = data(router, ready=False)
    del without["status"]
    assert [without] == data(router) == data(router, ready=True)


def test_the_owner_of_the_models_can_be_set() -> None:
    router = router_of(A, x="a")
    assert by_name(router, "owned_by", owned_by="me") == {"a": "me", "x": "me"}
    assert model_response(router, "x", owned_by="")["owned_by"] == ""


def test_a_card_may_be_given_more_keys_which_win() -> None:
    router = router_of(A, replace(B, metadata={"card": {"owned_by": "search", "tags": ["vision"]}}), x="b", y="a")
    plain = by_name(router, "max_model_len")

    def more(endpoint: ModelEndpoint) -> Mapping[str, object]:
        return {"context_length": endpoint.max_context_length, **endpoint.metadata.get("card", {})}

    assert by_name(router, "context_length", card=more) == plain
    assert by_name(router, "owned_by", card=more, owned_by="me") == {"a": "me", "b": "search", "x": "search", "y": "me"}
    assert json.loads(json.dumps(data(router, card=more)))[1]["tags"] == ["vision"]
    listed = {card["id"]: card for card in data(router, aliases=True, card=more)}
    assert {name: model_response(router, name, card=more) for name in listed} == listed
    assert set(by_name(router, "status", ready=False, card=lambda _: {"status": "up"}).values()) == {"up"}


def test_the_card_of_an_alias_keeps_the_alias_and_the_id_of_its_target_whatever_is_added() -> None:
    router = router_of(A, x="a")

    def renamed(endpoint: ModelEndpoint) -> dict[str, str]:
        return {"id": "A", "root": "secret"}

    target, alias = data(router, aliases=True, card=renamed)
    assert (target["id"], target["root"]) == ("A", "secret")
    assert (alias["id"], alias["root"]) == ("x", "a")
    assert model_response(router, "a", card=renamed) == target
    assert model_response(router, "x", card=renamed) == alias


def test_a_model_without_a_card_is_left_out_with_its_aliases() -> None:
    router = router_of(A, B, LOADING, x="a", y="b", z="c")

    def visible(endpoint: ModelEndpoint) -> dict[str, object] | None:
        return {} if endpoint.id == "b" else None

    assert list(by_name(router, "id", card=visible, ready=False)) == ["b", "y"]
    assert model_response(router, "y", card=visible)["root"] == "b"
    # Nor does the answer tell that the model exists and is not ready.
    for name in ("a", "x", "c", "z", "nothing"):
        with pytest.raises(ModelNotFoundError) as caught:
            model_response(router, name, card=visible)
        assert caught.value.model == name


def test_a_single_model_that_is_not_ready_is_refused_although_it_has_a_card() -> None:
    with pytest.raises(ModelNotReadyError):
        model_response(router_of(LOADING), "c", card=lambda _: {})


def test_card_is_called_once_for_each_listed_model_and_may_use_the_registry() -> None:
    router = router_of(A, B, LOADING, x="a", y="a")
    asked: list[str] = []

    def ask(endpoint: ModelEndpoint) -> dict[str, object]:
        asked.append(str(endpoint.id))
        assert router.registry.set_status(endpoint.id, "ready")
        with router.lease(endpoint.id):
            return {}

    assert len(data(router, aliases=True, card=ask)) == 4
    assert asked == ["a", "b"]
    data(router, ready=False, card=ask)
    assert asked == ["a", "b", "a", "b", "c"]
    model_response(router, "y", card=ask)
    assert asked[5:] == ["a"]


each_question = pytest.mark.parametrize("ask", [models_response, partial(model_response, name="x")])


@each_question
def test_an_exception_of_card_is_not_caught(ask: Callable[..., object]) -> None:
    with pytest.raises(ZeroDivisionError):
        ask(router_of(A, x="a"), card=lambda _: 1 // 0)


@each_question
@pytest.mark.parametrize("result", [False, 0, "text", [("id", "a")], A])
def test_card_returns_a_mapping_or_none(ask: Callable[..., object], result: object) -> None:
    with pytest.raises(TypeError) as caught:
        ask(router_of(A, x="a"), card=lambda _: result)
    assert str(caught.value) == f"card must return a mapping or None, not {result!r}"


@each_question
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"owned_by": None}, "owned_by must be a str, not None"),
        ({"owned_by": b"me"}, "owned_by must be a str, not b'me'"),
        ({"card": {}}, "card must be a callable or None, not {}"),
    ],
)
def test_a_wrong_option_is_refused(ask: Callable[..., object], options: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        ask(router_of(A, x="a"), **options)
    assert str(caught.value) == message


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
                "message": "This model's maximum context length is 4097 tokens. However, you requested 4294 tokens. "
                "Please reduce the length of the messages or completion. (context_length_exceeded)",
                "type": "invalid_request_error",
                "param": "messages",
                "code": "context_length_exceeded",
            }
        },
    )


@pytest.mark.parametrize(
    ("prompt_tokens", "shares"),
    [
        (0, "0 in the messages, 9000 in the completion"),
        (8000, "8000 in the messages, 1000 in the completion"),
        (9000, "9000 in the messages, 0 in the completion"),
    ],
)
def test_a_context_that_is_too_long_is_told_the_shares_that_are_known(prompt_tokens: int, shares: str) -> None:
    answer: Any = error_response(ContextTooLongError("a", 9000, 4096), prompt_tokens=prompt_tokens).body
    assert answer["error"]["message"] == (
        f"This model's maximum context length is 4096 tokens. However, you requested 9000 tokens ({shares}). "
        "Please reduce the length of the messages or completion. (context_length_exceeded)"
    )


@pytest.mark.parametrize("error", EXAMPLES, ids=repr)
def test_prompt_tokens_that_cannot_be_are_refused(error: RoutingError) -> None:
    for wrong, kind, rule in (
        (-1, ValueError, "prompt_tokens must be 0 tokens or more, not -1"),
        (True, TypeError, "prompt_tokens must be an int, not True"),
        (1.0, TypeError, "prompt_tokens must be an int, not 1.0"),
        ("1", TypeError, "prompt_tokens must be an int, not '1'"),
    ):
        with pytest.raises(kind) as caught:
            error_response(error, prompt_tokens=cast("Any", wrong))
        assert str(caught.value) == rule


def test_more_prompt_tokens_than_were_requested_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^prompt_tokens must be at most 9000, the tokens that were requested, not 9001$"
    ):
        error_response(ContextTooLongError("a", 9000, 4096), prompt_tokens=9001)


def test_prompt_tokens_change_no_other_answer() -> None:
    assert error_response(ModelNotFoundError("a"), prompt_tokens=7) == error_response(ModelNotFoundError("a"))


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


# Writers that come in between


@pytest.fixture
def _frequent_switches() -> Iterator[None]:
    with short_turns():
        yield


def side(letter: str) -> ModelRegistry:
    """Return a registry of models and aliases that all bear one letter."""
    names = [f"{letter}-{number}" for number in range(40)]
    models = (ModelEndpoint(name, "w") for name in names)
    return router_of(*models, **{f"alias-of-{name}": name for name in names}).registry


@pytest.mark.usefixtures("_frequent_switches")
def test_lists_are_whole_while_other_threads_write() -> None:
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
    other = router_of(B, ModelEndpoint("c", "w"), x="c", y="b", z="b").registry
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
    partial(models_response, ready=False, card=lambda endpoint: {"weights": endpoint.base_model}),
    partial(model_response, name="a"),
    partial(model_response, name="x"),
]


@pytest.fixture
def _a_clock_that_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.0)


def answers_with_a_write_at_each_place(
    question: Callable[[ModelRouter], object], change: int
) -> Iterator[tuple[object, object, object]]:
    """Yield an answer before the change, that answer if the change comes in meanwhile, and the answer afterwards."""
    for place in count():
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
        for before, between, after in answers_with_a_write_at_each_place(question, change):
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
