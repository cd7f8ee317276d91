"""Stops a writer, or a reader, at each of its instructions and lets the other side in between.

A write must be seen wholly or not at all wherever it is stopped, and a read must answer as before or as after a write
that comes in between.
"""

import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from types import FrameType

import pytest
from instructions import FOLDER, stopped_at_each_instruction

from bonsai_routing import ContextTooLongError, EndpointStatus, ModelEndpoint, ModelRegistry, ModelRouter, RoutingError

NAMES = ["a", "b", "c", "d"]


def answer(read: Callable[[], object]) -> object:
    try:
        return read()
    except RoutingError as error:
        return type(error), error.args


def reads(router: ModelRouter) -> list[Callable[[], object]]:
    """Return every question that can be asked, but for len(), which may be off while an id comes or goes."""
    registry = router.registry
    questions: list[Callable[[], object]] = [
        registry.default_endpoint,
        registry.all_endpoints,
        registry.available_endpoints,
        lambda: [entry.id for entry in router.models_list()],
        lambda: router.route(None),
        lambda: router.route_for_context(None, 2),
        lambda: router.route_for_context(None, 4),
    ]
    for name in NAMES:
        questions += [
            lambda name=name: registry.resolve(name),  # type: ignore[misc]
            lambda name=name: name in registry,  # type: ignore[misc]
            lambda name=name: router.route(name),  # type: ignore[misc]
            lambda name=name: router.route_for_context(name, 2),  # type: ignore[misc]
        ]
    return questions


def random_registry(chance: random.Random) -> ModelRegistry:
    registry = ModelRegistry()
    for _ in range(chance.randrange(8)):
        random_write(chance)(registry)
    return registry


def random_write(chance: random.Random) -> Callable[[ModelRegistry], object]:
    name, other = chance.choice(NAMES), chance.choice(NAMES)
    status = chance.choice([EndpointStatus.READY, *EndpointStatus])
    endpoint = ModelEndpoint(
        name,
        chance.choice("pq"),
        max_context_length=chance.randrange(5),
        is_default=chance.random() < 0.5,
        status=status,
    )
    match chance.randrange(9):
        case 0 | 1 | 2:
            return lambda registry: registry.register(endpoint)
        case 3 | 4:
            return lambda registry: registry.unregister(name)
        case 5:
            return lambda registry: registry.add_alias(name, other)
        case 6 | 7:
            return lambda registry: registry.set_status(name, status)
        case _:
            aside = random_registry(chance)
            return lambda registry: registry.replace_with(aside)


@pytest.mark.parametrize("seed", range(8))
def test_a_write_that_is_stopped_anywhere_is_seen_wholly_or_not_at_all(seed: int) -> None:
    chance = random.Random(seed)
    router = ModelRouter(random_registry(chance))
    questions = reads(router)
    seen: list[list[object]] = []

    def ask() -> list[object]:
        return [answer(read) for read in questions]

    # A reader that waited for the writer's lock would never come back: the writer waits for the reader.
    with ThreadPoolExecutor(1) as pool:
        for _ in range(30):
            write = random_write(chance)
            seen.clear()
            before = ask()
            with stopped_at_each_instruction(lambda: seen.append(pool.submit(ask).result(timeout=30))):
                write(router.registry)
            after = ask()
            changed = next((place for place, state in enumerate(seen) if state != before), len(seen))
            assert all(state == after for state in seen[changed:])


def write_in_time(countdown: Iterator[int], write: Callable[[ModelRegistry], object], registry: ModelRegistry) -> None:
    if next(countdown, None) == 0:
        write(registry)


@pytest.mark.parametrize("seed", range(30))
def test_a_read_that_a_write_comes_into_answers_as_before_or_as_after(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(3):
        start = random_registry(chance)
        write = random_write(chance)
        for question in range(len(reads(ModelRouter(start)))):
            place, came = 0, True
            while came:
                # Each time the write comes in one instruction later, until the read has ended before it.
                registry = ModelRegistry()
                registry.replace_with(start)
                read = reads(ModelRouter(registry))[question]
                before = answer(read)
                countdown = iter(range(place, -1, -1))

                with stopped_at_each_instruction(partial(write_in_time, countdown, write, registry)):
                    between = answer(read)
                came = next(countdown, None) is None
                if came:
                    assert between in (before, answer(read))
                place += 1


def answers_with_two_writes_at_each_place(
    start: ModelRegistry, writes: list[Callable[[ModelRegistry], object]], question: int
) -> list[object]:
    answers = []
    place, came = 0, True
    while came:
        registry = ModelRegistry()
        registry.replace_with(start)
        countdown = iter(range(place, -1, -1))
        with stopped_at_each_instruction(
            partial(write_in_time, countdown, lambda registry: [write(registry) for write in writes], registry)
        ):
            answers.append(answer(reads(ModelRouter(registry))[question]))
        came = next(countdown, None) is None
        place += 1
    return answers


def test_a_list_shows_no_later_write_without_the_earlier_one() -> None:
    start = ModelRegistry()
    start.register(ModelEndpoint("a", "p"))
    writes: list[Callable[[ModelRegistry], object]] = [
        lambda registry: registry.register(ModelEndpoint("b", "p")),
        lambda registry: registry.set_status("a", "error"),
    ]
    for endpoints in answers_with_two_writes_at_each_place(start, writes, 1):
        shown = [(str(each.id), str(each.status)) for each in endpoints]  # type: ignore[attr-defined]
        assert shown in ([("a", "ready")], [("a", "error"), ("b", "ready")])


def test_a_large_model_that_went_before_the_default_shrank_answers_for_nobody() -> None:
    start = ModelRegistry()
    default = ModelEndpoint("a", "p", is_default=True, max_context_length=5)
    start.register(default)
    start.register(ModelEndpoint("b", "p", max_context_length=9))
    writes: list[Callable[[ModelRegistry], object]] = [
        lambda registry: registry.unregister("b"),
        lambda registry: registry.register(default.with_context_length(1)),
    ]
    for endpoint in answers_with_two_writes_at_each_place(start, writes, 6):
        assert endpoint in (default, (ContextTooLongError, ("a", 4, 1)))


@contextmanager
def stopped_at_each_call(visit: Callable[[], object], function: str = "") -> Iterator[None]:
    """Call *visit* whenever the package calls something, or just when that function begins.

    Unlike the above, it leaves tracing to a coverage tool.
    """

    def profile(frame: FrameType, event: str, arg: object) -> None:
        ours = event in ("call", "c_call") and frame.f_code.co_filename.startswith(FOLDER)
        if ours and function in ("", frame.f_code.co_name):
            visit()

    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)


def test_a_list_that_a_write_comes_into_is_gathered_anew() -> None:
    registry = ModelRegistry()
    registry.register(ModelEndpoint("a", "p"))
    writes = iter([partial(registry.register, ModelEndpoint("b", "p"))])
    with stopped_at_each_call(lambda: next(writes, int)()):
        endpoints = registry.all_endpoints()
    assert [str(endpoint.id) for endpoint in endpoints] == ["a", "b"]


def test_a_list_that_writers_come_into_all_the_time_ends_and_is_right_for_each_endpoint() -> None:
    registry = ModelRegistry()
    steady = ModelEndpoint("b", "p")
    registry.register(ModelEndpoint("a", "p"))
    registry.register(steady)
    statuses = cycle([EndpointStatus.ERROR, EndpointStatus.READY])
    with stopped_at_each_call(lambda: registry.set_status("a", next(statuses))):
        endpoints = registry.all_endpoints()
    assert [str(endpoint.id) for endpoint in endpoints] == ["a", "b"]
    assert endpoints[1] is steady


def test_the_default_is_looked_up_anew_when_it_changes_meanwhile() -> None:
    router = ModelRouter(ModelRegistry())
    router.registry.register(ModelEndpoint("a", "p", is_default=True, max_context_length=1))
    newer = ModelEndpoint("b", "p", is_default=True, max_context_length=2)
    writes = iter([partial(router.registry.register, newer)])
    with stopped_at_each_call(lambda: next(writes, int)(), function="settled"):
        assert router.route_for_context(None, 2) is newer


def test_replacing_everything_ends_though_writers_come_in_all_the_time() -> None:
    registry, other = ModelRegistry(), ModelRegistry()
    registry.register(ModelEndpoint("a", "p"))
    other.register(ModelEndpoint("b", "p"))
    statuses = cycle([EndpointStatus.ERROR, EndpointStatus.READY])

    def write() -> None:
        # In the end the lock is held, and no writer comes in any more.
        if not registry._ledger.lock.locked():
            registry.set_status("a", next(statuses))

    with stopped_at_each_call(write):
        change = registry.replace_with(other)
    assert (change.added, change.removed) == (("b",), ("a",))
    assert list(registry) == list(other)
