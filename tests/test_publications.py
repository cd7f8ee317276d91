"""What a publication carries, who is told when it is idle, and who waits until it is ready."""

import asyncio
import copy
import logging
import math
import pickle
import queue
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import count

import pytest
from instructions import CutShort, cut_short_at, short_turns, stopped_at_each_instruction
from lora_helpers import BASE, CODE, NEWER, generation, stack_of

from bonsai_routing import (
    AdapterBaseError,
    AdapterRegistry,
    EndpointStatus,
    ModelEndpoint,
    ModelNotFoundError,
    ModelNotReadyError,
    ModelRegistry,
    ModelRouter,
    Publication,
    RegistryChange,
    RoutingConfig,
    RoutingError,
    error_response,
)

A, B = ModelEndpoint("a", "p"), ModelEndpoint("b", "p")
NEW = ModelEndpoint("a", "q")


class Weights:
    """An engine's object, which can be told from every other one and cannot be copied."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("weights cannot be copied")


OLD_WEIGHTS, NEW_WEIGHTS = Weights("old"), Weights("new")


def handle_of(models: ModelRegistry, name: str) -> object:
    with ModelRouter(models).lease(name) as lease:
        return lease.handle


STATUSES = ("error", "ready")


# Handles.


def test_a_lease_has_the_handle_of_its_publication() -> None:
    models = ModelRegistry()
    models.register(A, handle=OLD_WEIGHTS)
    models.add_alias("x", "a")
    with ModelRouter(models).lease("x") as old:
        models.swap(NEW, handle=NEW_WEIGHTS)
        with ModelRouter(models).lease("x") as new:
            assert (old.endpoint, old.handle, old.adapter) == (A, OLD_WEIGHTS, None)
            assert (new.endpoint, new.handle) == (NEW, NEW_WEIGHTS)
    models.register(A)
    assert handle_of(models, "a") is None


def test_an_adapters_lease_has_its_adapter_and_its_handle() -> None:
    models = ModelRegistry()
    models.register(BASE, handle="base")
    adapters = AdapterRegistry(models)
    adapters.load(CODE, handle=OLD_WEIGHTS)
    with ModelRouter(models).lease("bonsai:code") as old, adapters.lease_stack("bonsai", stack_of("code")) as stack:
        adapters.swap(NEWER, handle=NEW_WEIGHTS)
        assert (old.adapter, old.handle) == (CODE, OLD_WEIGHTS)
        assert stack.handle == "base"
        assert [(each.adapter, each.handle) for each in stack.members] == [(CODE, OLD_WEIGHTS)]
        with ModelRouter(models).lease("bonsai:code") as new:
            assert (new.adapter, new.handle) == (NEWER, NEW_WEIGHTS)


@pytest.mark.parametrize("serving", [False, True], ids=["new", "serving"])
def test_a_handle_that_is_loaded_in_a_block_is_published_with_the_status(serving: bool) -> None:
    models = ModelRegistry()
    models.register(BASE)
    adapters = AdapterRegistry(models)
    if serving:
        adapters.load(CODE, handle=OLD_WEIGHTS)
    with adapters.loading(NEWER) as load:
        load.handle = NEW_WEIGHTS
        if serving:
            assert handle_of(models, "bonsai:code") is OLD_WEIGHTS
    with ModelRouter(models).lease("bonsai:code") as lease:
        assert (lease.adapter, lease.handle) == (NEWER, NEW_WEIGHTS)


@pytest.mark.parametrize(
    "change",
    [
        lambda models: [models.set_status(id, status) for id in ("a", "bonsai", "bonsai:code") for status in STATUSES],
        lambda models: [models.set_status("bonsai", status) for status in STATUSES],
        lambda models: models.register(replace(BASE, description="again"), handle="again"),
        lambda models: models.set_default("a"),
        lambda models: models.replace_with(copy.deepcopy(models)),
        lambda models: models.replace_with(plain_copy(models, handle="other")),
        lambda models: models.replace_with(plain_copy(models, handle="other", default="a")),
    ],
    ids=["status", "status of the base", "base anew", "default", "copy", "reload", "reload with another default"],
)
def test_what_stays_published_keeps_its_handle(change: Callable[[ModelRegistry], object]) -> None:
    models = ModelRegistry()
    models.register(A, handle=OLD_WEIGHTS)
    models.register(BASE)
    AdapterRegistry(models).load(CODE, handle=NEW_WEIGHTS)
    change(models)
    assert handle_of(models, "a") is OLD_WEIGHTS
    assert handle_of(models, "bonsai:code") is NEW_WEIGHTS


def plain_copy(models: ModelRegistry, handle: object, default: str | None = None) -> ModelRegistry:
    """Return a registry that declares the same, with another handle for each."""
    other = ModelRegistry()
    for endpoint in models:
        if endpoint.adapter is None:
            other.register(endpoint.set_default() if endpoint.id == default else endpoint, handle=handle)
    for adapter in AdapterRegistry(models):
        AdapterRegistry(other).load(adapter, handle=handle)
    return other


def test_replacing_everything_takes_over_the_handles_of_what_is_new_or_changed() -> None:
    models, other = ModelRegistry(), ModelRegistry()
    for endpoint in (A, B, BASE):
        models.register(endpoint, handle=OLD_WEIGHTS)
    AdapterRegistry(models).load(CODE, handle=OLD_WEIGHTS)
    for endpoint in (NEW, B, BASE, ModelEndpoint("c", "p")):
        other.register(endpoint, handle=NEW_WEIGHTS)
    AdapterRegistry(other).load(NEWER, handle=NEW_WEIGHTS)
    models.replace_with(other)
    assert {id: handle_of(models, id) for id in ("a", "b", "c", "bonsai", "bonsai:code")} == {
        "a": NEW_WEIGHTS,
        "b": OLD_WEIGHTS,
        "c": NEW_WEIGHTS,
        "bonsai": OLD_WEIGHTS,
        "bonsai:code": NEW_WEIGHTS,
    }


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda models: pickle.loads(pickle.dumps(models))],
    ids=["copy", "deep", "pickle"],
)
def test_a_copy_has_no_handles_and_tells_nobody(copied: Callable[[ModelRegistry], ModelRegistry]) -> None:
    told: list[Publication] = []
    models = ModelRegistry(on_idle=told.append)
    models.register(BASE, handle=OLD_WEIGHTS)
    AdapterRegistry(models).load(CODE, handle=OLD_WEIGHTS)
    models.set_status("bonsai:code", "error", reason="bad file", retry_after=3)
    twin = copied(models)
    assert handle_of(twin, "bonsai") is None
    with pytest.raises(ModelNotReadyError) as caught:
        ModelRouter(twin).route("bonsai:code")
    assert (caught.value.reason, caught.value.retry_after) == ("bad file", 3)
    twin.set_status("bonsai:code", "ready")
    assert handle_of(twin, "bonsai:code") is None
    assert handle_of(models, "bonsai") is OLD_WEIGHTS
    twin.unregister("bonsai")
    assert told == []


def test_a_lease_agrees_with_itself_at_every_instruction_of_every_write() -> None:
    """The endpoint, the adapter, the handle and the generation of a lease are those of one publication."""
    models = ModelRegistry()
    adapters = AdapterRegistry(models)
    facts: dict[int, tuple[object, ...]] = {}

    def look() -> None:
        for id in ("bonsai", "bonsai:code"):
            # In the middle of a write of this very thread, nothing can be leased.
            with suppress(RuntimeError, RoutingError), ModelRouter(models).lease(id) as lease:
                seen = (lease.endpoint.description, lease.adapter, lease.handle)
                assert facts.setdefault(lease.generation, seen) == seen
                if id == "bonsai":
                    assert lease.handle == lease.endpoint.description
                else:
                    assert lease.adapter is not None
                    assert lease.handle == lease.adapter.source == lease.endpoint.description

    def base(name: str, weights: str = "qwen3-8b") -> ModelEndpoint:
        return replace(BASE, description=name, base_model=weights)

    def load_in_a_block() -> None:
        with adapters.loading(replace(CODE, source="six", description="six")) as load:
            load.handle = "six"

    writes: list[Callable[[], object]] = [
        lambda: models.register(base("one"), handle="one"),
        lambda: adapters.load(replace(CODE, source="two", description="two"), handle="two"),
        lambda: models.swap(base("three"), handle="three"),
        lambda: adapters.swap(replace(CODE, source="four", description="four"), handle="four"),
        lambda: models.set_status("bonsai", "error"),
        lambda: models.set_status("bonsai", "ready"),
        load_in_a_block,
        lambda: models.register(base("five", "llama"), handle="five"),
        load_in_a_block,
        lambda: models.replace_with(ModelRegistry()),
    ]
    for write in writes:
        with stopped_at_each_instruction(look):
            write()
    assert len(facts) >= 6


# Who is told when a publication is idle.


def loads_over(models: ModelRegistry) -> None:
    with AdapterRegistry(models).loading(NEWER):
        pass


ENDS: list[tuple[str, Callable[[ModelRegistry], object], list[str]]] = [
    ("register", lambda models: models.register(NEW), ["a"]),
    ("swap", lambda models: models.swap(NEW), ["a"]),
    ("unregister", lambda models: models.unregister("a"), ["a"]),
    ("retire", lambda models: models.retire("a"), ["a"]),
    ("replace_with", lambda models: models.replace_with(ModelRegistry()), ["a", "bonsai", "bonsai:code"]),
    ("unload", lambda models: AdapterRegistry(models).unload("bonsai:code"), ["bonsai:code"]),
    ("swap of an adapter", lambda models: AdapterRegistry(models).swap(NEWER), ["bonsai:code"]),
    ("loading", loads_over, ["bonsai:code"]),
    ("a base that goes", lambda models: models.unregister("bonsai"), ["bonsai", "bonsai:code"]),
    (
        "a base of other weights",
        lambda models: models.register(replace(BASE, base_model="llama")),
        ["bonsai", "bonsai:code"],
    ),
]
each_end = pytest.mark.parametrize(("end", "ids"), [each[1:] for each in ENDS], ids=[each[0] for each in ENDS])


def with_three(on_idle: Callable[[Publication], object] | None) -> ModelRegistry:
    models = ModelRegistry(on_idle=on_idle)
    models.register(A, handle="weights of a")
    models.register(BASE, handle="weights of bonsai")
    AdapterRegistry(models).load(CODE, handle="weights of bonsai:code")
    return models


@each_end
@pytest.mark.parametrize("leased", [False, True], ids=["not leased", "leased"])
def test_each_publication_that_goes_is_told_once_when_it_is_idle(
    end: Callable[[ModelRegistry], object], ids: list[str], leased: bool
) -> None:
    told: list[Publication] = []
    models = with_three(told.append)
    expected = [
        Publication(models.resolve(id) or A, CODE if ":" in id else None, generation(models, id), f"weights of {id}")
        for id in ids
    ]
    if leased:
        leases = [ModelRouter(models).lease(id) for id in ids for _ in range(2)]
        end(models)
        for lease in leases:
            assert lease.generation not in [each.generation for each in told]
            lease.release()
            lease.release()
    else:
        end(models)
    told.sort(key=lambda each: each.generation)
    assert told == expected
    assert [each.handle for each in told] == [f"weights of {id}" for id in ids]
    models.register(ModelEndpoint("c", "p"))
    models.set_status("c", "error")
    assert len(told) == len(ids)


def test_nobody_is_told_of_what_is_only_changed() -> None:
    told: list[Publication] = []
    models = with_three(told.append)
    with ModelRouter(models).lease("bonsai:code"):
        models.set_status("a", "error")
        models.set_status("bonsai", "loading")
        models.set_status("bonsai", "ready")
        models.set_default("a")
        models.replace_with(copy.deepcopy(models))
    assert told == []


def test_who_is_told_may_use_the_registry() -> None:
    seen: list[tuple[str, bool]] = []

    def on_idle(publication: Publication) -> None:
        # No lock is held: another thread can write meanwhile.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(models.add_alias, "x", str(publication.generation)).result(timeout=30)
        if len(seen) < 1_000:
            # This replaces an endpoint in turn, of which this function is told too.
            future = models.swap(ModelEndpoint("b", str(publication.generation)))
            seen.append((publication.endpoint.base_model, future.done()))

    models = ModelRegistry(on_idle=on_idle)
    models.register(B)
    models.register(A)
    models.unregister("a")
    assert len(seen) == 1_000
    assert all(done for _, done in seen)


def test_an_exception_of_who_is_told_is_logged_and_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    told: list[int] = []

    def on_idle(publication: Publication) -> None:
        told.append(publication.generation)
        raise ValueError("cannot free")

    models = ModelRegistry(on_idle=on_idle)
    models.register(A)
    with caplog.at_level(logging.ERROR, "bonsai_routing"):
        future = models.swap(NEW)
        with ModelRouter(models).lease("a"):
            models.unregister("a")
    assert told == [1, 2]
    assert future.result(timeout=0) is A
    assert [record.name for record in caplog.records] == ["bonsai_routing"] * 2
    assert "cannot free" in caplog.text
    assert len(models) == 0


def test_an_exception_that_stops_the_program_goes_through_when_all_are_told() -> None:
    told: list[str] = []

    def on_idle(publication: Publication) -> None:
        told.append(str(publication.endpoint.id))
        raise KeyboardInterrupt

    models = with_three(on_idle)
    with pytest.raises(KeyboardInterrupt):
        models.replace_with(ModelRegistry())
    assert sorted(told) == ["a", "bonsai", "bonsai:code"]
    models.register(A)
    assert len(told) == 3


@pytest.mark.parametrize("on_idle", ["print", 5, object()], ids=repr)
def test_who_is_told_must_be_callable(on_idle: object) -> None:
    with pytest.raises(TypeError, match="on_idle must be a callable or None, not "):
        ModelRegistry(on_idle=on_idle)  # type: ignore[arg-type]


def test_a_worker_that_frees_keeps_that_out_of_the_requests() -> None:
    idle: queue.Queue[Publication | None] = queue.Queue()
    freed: list[tuple[object, threading.Thread]] = []

    def work() -> None:
        while (publication := idle.get()) is not None:
            freed.append((publication.handle, threading.current_thread()))

    worker = threading.Thread(target=work)
    worker.start()
    models = with_three(idle.put)
    models.replace_with(ModelRegistry())
    idle.put(None)
    worker.join(timeout=30)
    assert {handle for handle, _ in freed} == {"weights of a", "weights of bonsai", "weights of bonsai:code"}
    assert {thread for _, thread in freed} == {worker}


def test_each_is_told_once_when_many_threads_lease_and_replace() -> None:
    """And every lease agrees with itself: the endpoint, the adapter and the handle are those of one publication."""
    told: list[int] = []
    models = ModelRegistry(on_idle=lambda publication: told.append(publication.generation))
    models.register(replace(BASE, description="start"), handle="start")
    adapters = AdapterRegistry(models)
    used: set[int] = set()

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for number in range(400):
            name = f"{seed} {number}"
            with suppress(RoutingError):
                match chance.randrange(7):
                    case 0:
                        base = replace(BASE, base_model=chance.choice(["q", "r"]), description=name)
                        models.register(base, handle=name)
                    case 1:
                        models.swap(ModelEndpoint("a", "p", description=name), handle=name)
                    case 2:
                        models.unregister(chance.choice(["a", "bonsai"]))
                    case 3:
                        adapters.swap(replace(CODE, source=name, description=name), handle=name)
                    case _:
                        id = chance.choice(["a", "bonsai", "bonsai:code"])
                        with ModelRouter(models).lease(id) as lease:
                            used.add(lease.generation)
                            assert lease.generation not in told
                            assert lease.handle == lease.endpoint.description
                            assert lease.adapter is None or lease.adapter.source == lease.handle

    with short_turns(), ThreadPoolExecutor(6) as pool:
        for future in [pool.submit(work, seed) for seed in range(6)]:
            future.result(timeout=120)
    models.replace_with(ModelRegistry())
    models.register(A)
    assert [each for each, times in Counter(told).items() if times != 1] == []
    assert used <= set(told)
    # Every number that was given to a publication, but that of the last one.
    assert len(told) > 500
    assert models.draining() == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@each_end
def test_a_write_that_is_cut_short_anywhere_tells_of_each_at_most_once_and_loses_none_for_long(
    end: Callable[[ModelRegistry], object], ids: list[str]
) -> None:
    lost = 0
    for place in count():
        told: list[int] = []
        models = with_three(lambda publication, told=told: told.append(publication.generation))  # type: ignore[misc]
        numbers = {generation(models, id) for id in ids}
        with suppress(CutShort), cut_short_at(place) as cut:
            end(models)
        models.replace_with(ModelRegistry())
        models.register(B)
        assert len(set(told)) == len(told), place
        # A few places are between noting that it is told and the call; CPython runs no signal handler there.
        lost += not numbers <= set(told)
        if not cut:
            break
    assert lost <= 8 * len(ids)


# Futures of what replace_with took away.


def test_a_reload_has_a_future_of_all_that_has_gone() -> None:
    models = with_three(None)
    endpoints = tuple(models)
    first, second = ModelRouter(models).lease("a"), ModelRouter(models).lease("bonsai:code")
    change = models.replace_with(ModelRegistry())
    first.release()
    assert not change.idle.done()
    second.release()
    assert change.idle.result(timeout=0) == endpoints


def test_a_reload_that_takes_nothing_away_is_idle_at_once() -> None:
    models = with_three(None)
    with ModelRouter(models).lease("a"):
        change = models.replace_with(copy.deepcopy(models))
        assert change.idle.result(timeout=0) == ()


def test_a_reload_is_idle_at_once_if_nothing_that_has_gone_is_leased() -> None:
    for on_idle in (None, lambda publication: None):
        models = with_three(on_idle)
        endpoints = tuple(models)
        assert models.replace_with(ModelRegistry()).idle.result(timeout=0) == endpoints


def test_the_future_of_a_reload_cannot_be_cancelled() -> None:
    models = with_three(None)
    with ModelRouter(models).lease("a"):
        change = models.replace_with(ModelRegistry())
        assert not change.idle.cancel()
    assert change.idle.done()


def test_a_change_is_a_value() -> None:
    change = with_three(None).replace_with(ModelRegistry())
    assert change == RegistryChange((), ("a", "bonsai", "bonsai:code"), ())
    for copied in (pickle.loads(pickle.dumps(change)), copy.deepcopy(change)):
        assert copied == change
        assert copied.idle.result(timeout=0) == ()
    assert repr(change) == "RegistryChange(added=(), removed=('a', 'bonsai', 'bonsai:code'), changed=())"


# Who waits until a name is ready.


LOADING = replace(A, status=EndpointStatus.LOADING)


@pytest.fixture
def loading() -> ModelRegistry:
    models = ModelRegistry()
    models.register(LOADING)
    models.add_alias("x", "a")
    return models


def test_what_is_ready_need_not_be_waited_for() -> None:
    models = with_three(None)
    for name in ("a", "bonsai:code"):
        assert models.when_ready(name).result(timeout=0) is models.resolve(name)


@pytest.mark.parametrize("name", ["a", "x"])
@pytest.mark.parametrize(
    "change",
    [
        lambda models: models.set_status("a", "ready"),
        lambda models: models.register(NEW),
        lambda models: models.swap(NEW),
        lambda models: models.replace_with(registry_of(A)),
    ],
    ids=["set_status", "register", "swap", "replace_with"],
)
def test_a_future_completes_when_its_name_is_ready(
    loading: ModelRegistry, name: str, change: Callable[[ModelRegistry], object]
) -> None:
    future = loading.when_ready(name)
    loading.register(B)
    loading.set_status("a", "loading", reason="still")
    assert not future.done()
    change(loading)
    assert future.result(timeout=0) is loading.resolve(name)


def registry_of(*endpoints: ModelEndpoint) -> ModelRegistry:
    models = ModelRegistry()
    for endpoint in endpoints:
        models.register(endpoint)
        models.add_alias("x", "a")
    return models


def test_an_alias_that_is_moved_to_what_is_ready_completes_its_future(loading: ModelRegistry) -> None:
    loading.register(B)
    by_alias, by_id = loading.when_ready("x"), loading.when_ready("a")
    loading.add_alias("x", "b")
    assert by_alias.result(timeout=0) is B
    assert not by_id.done()


@pytest.mark.parametrize("status", ["error", "disabled"])
@pytest.mark.parametrize("name", ["a", "x"])
def test_a_future_fails_when_its_model_fails(loading: ModelRegistry, status: str, name: str) -> None:
    future = loading.when_ready(name)
    loading.set_status("a", status, reason="out of memory", retry_after=60)
    error = future.exception(timeout=0)
    assert isinstance(error, ModelNotReadyError)
    assert (error.model, error.status, error.reason, error.retry_after) == ("a", status, "out of memory", 60)
    assert type(loading.when_ready(name).exception(timeout=0)) is ModelNotReadyError


@pytest.mark.parametrize("name", ["a", "x"])
@pytest.mark.parametrize(
    "change",
    [
        lambda models: models.unregister("a"),
        lambda models: models.retire("a"),
        lambda models: models.replace_with(ModelRegistry()),
    ],
    ids=["unregister", "retire", "replace_with"],
)
def test_a_future_fails_when_its_name_goes(
    loading: ModelRegistry, name: str, change: Callable[[ModelRegistry], object]
) -> None:
    future = loading.when_ready(name)
    change(loading)
    error = future.exception(timeout=0)
    assert isinstance(error, ModelNotFoundError)
    assert error.model == name


def test_a_future_of_an_unknown_name_has_failed() -> None:
    assert type(ModelRegistry().when_ready("nobody").exception(timeout=0)) is ModelNotFoundError
    with pytest.raises(TypeError, match="name must be a str or a ModelId, not None"):
        ModelRegistry().when_ready(None)  # type: ignore[arg-type]


def test_an_adapter_is_waited_for_together_with_its_base() -> None:
    models = ModelRegistry()
    models.register(replace(BASE, status=EndpointStatus.LOADING))
    AdapterRegistry(models).load(CODE)
    future = models.when_ready("bonsai:code")
    models.set_status("bonsai", "ready")
    assert future.result(timeout=0) is models.resolve("bonsai:code")
    with AdapterRegistry(models).loading(replace(CODE, name="math")) as load:
        waiting = models.when_ready(load.endpoint.id)
        assert not waiting.done()
    assert waiting.result(timeout=0).adapter == "math"


def test_a_future_that_nobody_waits_for_any_more_does_no_harm(loading: ModelRegistry) -> None:
    async def wait() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(loading.when_ready("a")), 0.001)

    asyncio.run(wait())
    future = loading.when_ready("a")
    assert not future.cancel()
    loading.set_status("a", "ready")
    assert future.result(timeout=0) is loading.resolve("a")


def test_a_chain_of_waiting_of_any_length_needs_no_deeper_stack() -> None:
    length = 3_000
    models = ModelRegistry()
    for number in range(length):
        models.register(ModelEndpoint(str(number), "p", status="loading"))

    def then(number: int) -> Callable[[Future[ModelEndpoint]], object]:
        return lambda future: models.set_status(str(number + 1), "ready")

    for number in range(length - 1):
        models.when_ready(str(number)).add_done_callback(then(number))
    models.set_status("0", "ready")
    assert all(endpoint.status is EndpointStatus.READY for endpoint in models)


def test_whoever_waits_hears_of_a_write_that_was_cut_short_anywhere() -> None:
    for place in count():
        models = registry_of(LOADING)
        future = models.when_ready("a")
        with suppress(CutShort), cut_short_at(place) as cut:
            models.set_status("a", "ready")
        models.set_status("a", "ready")
        assert future.result(timeout=0) is models.resolve("a"), place
        if not cut:
            break


def test_threads_wait_for_what_another_thread_loads() -> None:
    models = registry_of(LOADING)
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(models.when_ready("x").result, 30) for _ in range(8)]
        models.register(NEW)
        assert [each.result(timeout=30) for each in waiting] == [NEW] * 8


# Reasons.


def not_ready(models: ModelRegistry, name: str = "a") -> ModelNotReadyError:
    with pytest.raises(ModelNotReadyError) as caught:
        ModelRouter(models).route(name)
    return caught.value


def test_an_error_has_the_reason_until_the_status_is_set_again() -> None:
    models = registry_of(A)
    known = generation(models, "a")
    models.set_status("a", "error", reason="out of memory", retry_after=7.5)
    for read in (ModelRouter(models).route, ModelRouter(models).lease):
        with pytest.raises(ModelNotReadyError) as caught:
            read("x")
        assert (caught.value.reason, caught.value.retry_after) == ("out of memory", 7.5)
        assert str(caught.value) == "model 'a' is not ready (status: error)"
    models.set_status("a", "error", reason="bad file")
    assert (not_ready(models).reason, not_ready(models).retry_after) == ("bad file", None)
    models.set_status("a", "error")
    assert (not_ready(models).reason, not_ready(models).retry_after) == (None, None)
    models.set_status("a", "error", retry_after=0)
    models.set_status("a", "ready")
    models.set_status("a", "error")
    assert (not_ready(models).reason, not_ready(models).retry_after) == (None, None)
    assert generation(models, "a") == known


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"reason": 5}, TypeError, "reason must be a str or None, not 5"),
        ({"retry_after": "5"}, TypeError, "retry_after must be a finite number of 0 seconds or more, not '5'"),
        ({"retry_after": True}, TypeError, "retry_after must be a finite number of 0 seconds or more, not True"),
        ({"retry_after": -1}, ValueError, "retry_after must be a finite number of 0 seconds or more, not -1"),
        ({"retry_after": math.inf}, ValueError, "retry_after must be a finite number of 0 seconds or more, not inf"),
        ({"retry_after": math.nan}, ValueError, "retry_after must be a finite number of 0 seconds or more, not nan"),
    ],
)
def test_a_reason_is_text_and_the_time_is_seconds(
    arguments: dict[str, object], kind: type[Exception], text: str
) -> None:
    models = registry_of(A)
    with pytest.raises(kind, match=text.replace("(", r"\(")):
        models.set_status("a", "error", **arguments)  # type: ignore[arg-type]
    assert ModelRouter(models).route("a") is A


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (ValueError("bad magic number"), "bad magic number"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (AdapterBaseError("x", "y", "z"), "adapter 'x' does not fit base model 'y': z"),
    ],
)
def test_a_load_that_fails_leaves_its_reason(failure: BaseException, reason: str) -> None:
    models = with_three(None)
    AdapterRegistry(models).unload("bonsai:code")
    with suppress(BaseException), AdapterRegistry(models).loading(CODE):
        raise failure
    assert not_ready(models, "bonsai:code").reason == reason


class Unreadable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


def test_a_load_that_fails_with_an_exception_without_text_has_its_type_as_the_reason() -> None:
    models = with_three(None)
    AdapterRegistry(models).unload("bonsai:code")
    with pytest.raises(Unreadable), AdapterRegistry(models).loading(CODE):
        raise Unreadable
    assert not_ready(models, "bonsai:code").reason == "Unreadable"


@pytest.mark.parametrize(
    ("status", "retry_after", "headers"),
    [
        ("loading", None, {"Retry-After": "5"}),
        ("loading", 30, {"Retry-After": "30"}),
        ("loading", 0, {"Retry-After": "0"}),
        ("loading", 0.2, {"Retry-After": "1"}),
        ("error", None, {"x-should-retry": "false"}),
        ("error", 60, {"Retry-After": "60"}),
        ("disabled", None, {"x-should-retry": "false"}),
    ],
)
def test_clients_are_told_when_to_try_again_and_never_why(
    status: str, retry_after: float | None, headers: dict[str, str]
) -> None:
    models = registry_of(A)
    models.set_status("a", status, reason="a secret path", retry_after=retry_after)
    answer = error_response(not_ready(models))
    assert answer.headers == headers
    assert "secret" not in str(answer)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_with_a_reason_can_be_copied(copied: Callable[[ModelNotReadyError], ModelNotReadyError]) -> None:
    error = copied(ModelNotReadyError("a", status="error", reason="why", retry_after=3))
    assert (error.model, error.status, error.reason, error.retry_after) == ("a", "error", "why", 3)


# What a server has said outlives a reload.


CONFIG = RoutingConfig((BASE,), (CODE,))


def reload(models: ModelRegistry, status: str | None = None) -> RegistryChange:
    return models.replace_with(CONFIG.registry(status=status))


def test_a_reload_leaves_what_loads_alone() -> None:
    models = ModelRegistry()
    models.register(BASE)
    adapters = AdapterRegistry(models)
    with adapters.loading(CODE) as load:
        change = reload(models)
        assert change == RegistryChange((), (), ())
        assert not_ready(models, "bonsai:code").status == "loading"
        load.handle = NEW_WEIGHTS
    assert handle_of(models, "bonsai:code") is NEW_WEIGHTS


def test_a_reload_leaves_what_failed_to_load_failed() -> None:
    models = ModelRegistry()
    models.register(BASE)
    with suppress(ValueError), AdapterRegistry(models).loading(CODE):
        raise ValueError("bad file")
    reload(models)
    error = not_ready(models, "bonsai:code")
    assert (error.status, error.reason) == ("error", "bad file")


@pytest.mark.parametrize("id", ["bonsai", "bonsai:code"])
@pytest.mark.parametrize("status", EndpointStatus)
@pytest.mark.parametrize("start", [None, "loading"])
def test_a_status_that_was_set_outlives_a_reload(id: str, status: EndpointStatus, start: str | None) -> None:
    models = CONFIG.registry(status=start)
    models.set_status(id, status, reason="why")
    before = [*models]
    numbers = [generation(models, endpoint.id) for endpoint in before]
    for _ in range(2):
        assert reload(models, start) == RegistryChange((), (), ())
    assert [*models] == before
    assert [generation(models, endpoint.id) for endpoint in before] == numbers
    if not status.is_available() and (id == "bonsai" or start is None):
        assert not_ready(models, id).reason == "why"


def test_a_registry_can_start_with_everything_loading() -> None:
    told: list[Publication] = []
    down = replace(A, status=EndpointStatus.DISABLED)
    models = RoutingConfig((BASE, down), (CODE,), default="bonsai:code").registry(
        status=EndpointStatus.LOADING, on_idle=told.append
    )
    assert {str(each.id): each.status.value for each in models} == {
        "bonsai": "loading",
        "a": "disabled",
        "bonsai:code": "loading",
    }
    models.set_status("bonsai", "ready")
    assert not_ready(models, "bonsai:code").status == "loading"
    models.set_status("bonsai:code", "ready")
    assert ModelRouter(models).route().id == "bonsai:code"
    models.unregister("bonsai")
    assert len(told) == 2
    with pytest.raises(ValueError, match="status must be one of"):
        CONFIG.registry(status="asleep")
