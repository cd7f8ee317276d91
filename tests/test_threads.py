"""Threads that read while others write, with invariants checked on every answer."""

import copy
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count

import pytest
from instructions import ROUNDS, interrupted_now_and_then, short_turns
from read_write_helpers import halfway

from bonsai_routing import (
    ContextTooLongError,
    ModelEndpoint,
    ModelId,
    ModelNotFoundError,
    ModelNotReadyError,
    ModelRegistry,
    ModelRouter,
)


@pytest.fixture(autouse=True)
def frequent_switches() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    with short_turns():
        yield


def run_together(*tasks: Callable[[], None]) -> None:
    """Run *tasks* at the same time, each in a thread of its own, and raise the first exception of any."""
    barrier = threading.Barrier(len(tasks))
    failures: list[BaseException] = []

    def run(place: int, task: Callable[[], None]) -> None:
        barrier.wait()
        try:
            with interrupted_now_and_then(seed=place):
                task()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=each) for each in enumerate(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def until_done(write: Callable[[], None], *reads: Callable[[], None]) -> None:
    """Run *write* once, and each of *reads* again and again meanwhile."""
    done = threading.Event()

    def write_and_tell() -> None:
        try:
            write()
        finally:
            done.set()

    def read_again(read: Callable[[], None]) -> None:
        while not done.is_set():
            read()

    run_together(write_and_tell, *(lambda read=read: read_again(read) for read in reads))


def version(id: str, number: int, **fields: object) -> ModelEndpoint:
    return ModelEndpoint(id, "weights", description=str(number), **fields)  # type: ignore[arg-type]


def number(endpoint: ModelEndpoint | None) -> int:
    assert endpoint is not None
    return int(endpoint.description)


def test_an_id_and_its_aliases_change_together_and_in_order() -> None:
    router = ModelRouter(ModelRegistry())
    registry = router.registry
    for id in ("x", "y"):
        registry.register(version(id, 0))
        registry.add_alias(f"{id}-alias", id)

    def write() -> None:
        for turn in range(1, 400 * ROUNDS):
            registry.register(version("x", turn))
            registry.register(version("y", turn))

    def read(first: str, second: str) -> None:
        # What is read second was written at the same time or earlier, so it must be as new or newer.
        newest = number(registry.resolve(first))
        assert number(router.route(second)) >= newest
        assert number(registry.resolve(first)) >= newest

    until_done(
        write,
        lambda: read("x", "x-alias"),
        lambda: read("y-alias", "y"),
        lambda: read("y", "x-alias"),
        lambda: read("y-alias", "x"),
    )


def test_a_name_whose_status_changes_is_ready_or_refused_for_its_reason() -> None:
    router = ModelRouter(ModelRegistry())
    router.registry.register(ModelEndpoint("x", "weights", is_default=True))
    router.registry.add_alias("x-alias", "x")

    def write() -> None:
        for turn in range(600 * ROUNDS):
            router.registry.set_status("x", ("loading", "ready", "error", "ready")[turn % 4])

    def read(name: str | None) -> None:
        try:
            assert router.route(name).status == "ready"
            assert router.route_for_context(name, 1).status == "ready"
        except ModelNotReadyError as error:
            assert error.status in ("loading", "error")

    until_done(write, lambda: read("x"), lambda: read("x-alias"), lambda: read(None))


def test_a_name_that_is_registered_and_removed_is_found_wholly_or_not_at_all() -> None:
    router = ModelRouter(ModelRegistry())
    registry = router.registry
    target, shadowing = version("target", 0), version("x", 1)
    registry.register(target)

    def write() -> None:
        for _ in range(200 * ROUNDS):
            registry.add_alias("x", "target")
            registry.register(shadowing)
            registry.add_alias("x-alias", "x")
            registry.unregister("x")

    def read_shadowed() -> None:
        assert router.route("x") in (target, shadowing)

    def read_alias() -> None:
        assert registry.resolve("x-alias") in (None, shadowing)
        assert [*registry.aliases().items()] in ([("x", "target")], [("x", "target"), ("x-alias", "x")])

    def list_all() -> None:
        assert registry.all_endpoints() in ([target], [target, shadowing])
        assert len(router.models_list()) in (1, 2)

    registry.add_alias("x", "target")
    until_done(write, read_shadowed, read_alias, list_all)


def test_an_alias_that_changes_maps_to_its_old_or_its_new_target() -> None:
    router = ModelRouter(ModelRegistry())
    registry = router.registry
    blue, green = version("blue", 0, is_default=True), version("green", 0)
    for endpoint in (blue, green):
        registry.register(endpoint)
    registry.add_alias("live", "blue")

    def write() -> None:
        for turn in range(300 * ROUNDS):
            idle, serving = (green, blue) if turn % 2 else (blue, green)
            registry.add_alias("live", str(serving.id))
            registry.register(serving.set_default())
            # No change of the idle endpoint is seen under the alias or the default.
            registry.register(version(str(idle.id), 1))
            registry.set_status(idle.id, "error")
            registry.unregister(idle.id)
            registry.register(idle)

    def read() -> None:
        assert number(router.route("live")) == number(registry.resolve("live")) == 0
        assert number(router.route(None)) == number(registry.default_endpoint()) == 0

    until_done(write, read, read)


def test_there_is_always_a_default_and_it_is_as_new_as_its_id() -> None:
    router = ModelRouter(ModelRegistry())
    router.registry.register(version("a", 0, is_default=True))

    def write() -> None:
        for turn in range(1, 800 * ROUNDS):
            router.registry.register(version("ab"[turn % 2], turn, is_default=True))

    def read() -> None:
        newest = max(number(router.registry.resolve(id)) for id in "ab" if id in router.registry)
        assert number(router.route(None)) >= newest
        assert number(router.registry.default_endpoint()) >= newest

    until_done(write, read, read)


def test_one_of_two_large_models_is_always_ready() -> None:
    router = ModelRouter(ModelRegistry())
    registry = router.registry
    registry.register(ModelEndpoint("small", "weights", max_context_length=1, is_default=True))
    for id in ("a", "b"):
        registry.register(ModelEndpoint(id, "weights", max_context_length=1000))

    def write() -> None:
        for _ in range(120 * ROUNDS):
            for out, back in (("a", "b"), ("b", "a")):
                registry.set_status(back, "ready")
                registry.set_status(out, "loading")
            registry.set_status("a", "ready")
            registry.unregister("b")
            registry.register(ModelEndpoint("b", "weights", max_context_length=2000))
            registry.register(ModelEndpoint("b", "weights", max_context_length=1000))

    def read() -> None:
        assert router.route_for_context(None, 1000).max_context_length >= 1000
        try:
            assert router.route_for_context(None, 2000).max_context_length == 2000
        except ContextTooLongError as error:
            assert (error.model, error.required, error.available) == ("small", 2000, 1)

    def list_ready() -> None:
        assert [endpoint for endpoint in registry.available_endpoints() if endpoint.max_context_length > 1]

    until_done(write, read, read, list_ready)


def test_a_reader_sees_all_of_the_old_registry_or_all_of_the_new_one() -> None:
    router = ModelRouter(ModelRegistry())

    def directory(turn: int) -> ModelRegistry:
        # The steady name is in all of them; the others carry the number of their directory.
        built = ModelRegistry()
        built.register(ModelEndpoint("steady", "weights"))
        built.register(version(f"only-{turn % 3}", turn))
        built.register(version("x", turn, max_context_length=5000 + turn))
        built.register(version("default", turn, is_default=True))
        built.add_alias("alias", "x" if turn % 2 else "default")
        return built

    router.registry.replace_with(directory(0))

    def write() -> None:
        for turn in range(1, 100 * ROUNDS):
            router.registry.replace_with(directory(turn))
            router.registry.set_status("steady", "ready")

    def listed() -> ModelEndpoint:
        steady, *others = router.registry.all_endpoints()
        assert steady.id == ModelId("steady")
        assert len({number(endpoint) for endpoint in others}) == 1
        assert len(others) == 3
        return others[0]

    questions: list[Callable[[], ModelEndpoint]] = [
        listed,
        lambda: router.route("x"),
        lambda: router.route("alias"),
        lambda: router.route(None),
        lambda: router.route_for_context(None, 5000),
    ]

    def read(chance: random.Random) -> None:
        # Whatever is asked, in whatever order, no answer is older than the one before.
        newest = 0
        for question in chance.choices(questions, k=20):
            assert router.route("steady").status == "ready"
            answer = number(question())
            assert answer >= newest
            newest = answer

    until_done(write, *(partial(read, random.Random(seed)) for seed in range(3)))


@pytest.mark.parametrize("seed", range(3))
def test_writers_in_parallel_lose_nothing(seed: int) -> None:
    router = ModelRouter(ModelRegistry())
    registry = router.registry
    registry.register(ModelEndpoint("default", "weights", max_context_length=0, is_default=True))
    expected: dict[str, ModelEndpoint] = {}
    aliases: dict[str, str] = {}

    def write(writer: int, chance: random.Random) -> None:
        # Each writer has ids and aliases of its own, so that it knows what must be there in the end.
        for _ in range(8):
            id = f"{writer}-{chance.randrange(5)}"
            match chance.randrange(7):
                case 0 | 1:
                    # Many context lengths are equal, so that the order of registration decides.
                    expected[id] = ModelEndpoint(id, "weights", max_context_length=chance.randrange(1, 4))
                    registry.register(expected[id])
                case 2:
                    registry.unregister(id)
                    expected.pop(id, None)
                    for alias in [alias for alias, target in list(aliases.items()) if target == id]:
                        del aliases[alias]
                case 3:
                    registry.set_status(id, "error")
                    registry.set_status(id, "ready")
                case 4:
                    alias = f"alias {writer} {chance.randrange(4)}"
                    assert registry.remove_alias(alias) == (aliases.pop(alias, None) is not None)
                case 5 if id in expected:
                    registry.set_default(id)
                case _:
                    if id in expected:
                        alias = f"alias {writer} {chance.randrange(4)}"
                        registry.add_alias(alias, id)
                        aliases[alias] = id

    for turn in range(30 * ROUNDS):
        run_together(*(partial(write, writer, random.Random(f"{seed} {turn} {writer}")) for writer in range(4)))
        default, *listed = registry.all_endpoints()
        assert {str(endpoint.id): endpoint for endpoint in listed} == expected
        assert len(listed) == len(registry) - 1 == len(expected)
        assert registry.aliases() == aliases
        for alias, target in aliases.items():
            assert registry.resolve(alias) == expected[target]
        # A writer whose endpoint was the default may have removed it.
        assert registry.default_endpoint() in [None, *registry]
        registry.set_default("default")
        largest = max([default, *listed], key=lambda endpoint: endpoint.max_context_length)
        assert router.route_for_context(None, largest.max_context_length) == largest
    for endpoint in listed:
        registry.unregister(endpoint.id)
    assert repr(registry) == "<ModelRegistry endpoints=1 aliases=0>"


def test_reading_takes_no_lock() -> None:
    def assert_readable(router: ModelRouter) -> None:
        registry = router.registry
        assert router.route("alias") is router.route_for_context(None, 5) is registry.resolve("large")
        assert router.route(None) is registry.default_endpoint()
        for name, error in (("gone", ModelNotFoundError), ("loading", ModelNotReadyError)):
            with pytest.raises(error):
                router.route(name)
        with pytest.raises(ContextTooLongError):
            router.route_for_context(None, 10)
        assert len(list(registry)) == len(registry) == 3
        assert len(router.models_list()) == len(registry.available_endpoints()) == 2
        assert "alias" in registry
        assert not registry.is_empty()
        assert repr(router)
        assert registry.aliases()["alias"] == "large"
        assert registry.generation("small") == 1
        assert registry.in_flight("small") == 1
        assert [each.generation for each in registry.draining()] == [2]
        assert list(copy.copy(registry)) == list(registry)

    for place in count(step=5):
        router = ModelRouter(ModelRegistry())
        registry = router.registry
        registry.register(ModelEndpoint("small", "weights", max_context_length=1, is_default=True))
        registry.register(ModelEndpoint("large", "old weights", max_context_length=9))
        registry.register(ModelEndpoint("loading", "weights", status="loading"))
        registry.add_alias("alias", "large")
        leases = [router.lease("small"), router.lease("large")]
        registry.register(ModelEndpoint("large", "weights", max_context_length=9))
        # A reader that waited for the writer would never come back: the writer waits for the reader.
        with halfway(partial(registry.add_alias, "new", "large"), place) as is_stopped, ThreadPoolExecutor(1) as pool:
            pool.submit(assert_readable, router).result(timeout=30)
        for lease in leases:
            lease.release()
        if not is_stopped():
            break
    assert place > 0
