"""Stops a writer, or a reader, at each of its instructions and lets the other side in between.

A write must be seen wholly or not at all wherever it is stopped, and a read must answer as of one moment between its
call and its return, whatever writes come in between.
"""

import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, count, cycle, islice, repeat
from types import FrameType

import pytest
from instructions import FOLDER, stopped_at_each_instruction

from bonsai_routing import (
    EndpointStatus,
    ModelEndpoint,
    ModelRegistry,
    ModelRouter,
    RoutingError,
    model_response,
    models_response,
)

NAMES = ["a", "b", "c", "d"]

Write = Callable[[ModelRegistry], object]


def answer(read: Callable[[], object]) -> object:
    try:
        return read()
    except RoutingError as error:
        return type(error), error.args


def reads(router: ModelRouter) -> list[Callable[[], object]]:
    """Return every question that can be asked."""
    registry = router.registry
    questions: list[Callable[[], object]] = [
        registry.default_endpoint,
        registry.all_endpoints,
        registry.available_endpoints,
        registry.is_empty,
        lambda: len(registry),
        lambda: [entry.id for entry in router.models_list()],
        lambda: router.route(None),
        lambda: router.route_for_context(None, 2),
        lambda: router.route_for_context(None, 4),
        lambda: [(card["id"], card["root"]) for card in models_response(router, aliases=True)["data"]],  # type: ignore[attr-defined]
    ]
    for name in NAMES:
        questions += [
            lambda name=name: registry.resolve(name),  # type: ignore[misc]
            lambda name=name: name in registry,  # type: ignore[misc]
            lambda name=name: router.route(name),  # type: ignore[misc]
            lambda name=name: router.route_for_context(name, 2),  # type: ignore[misc]
            lambda name=name: {**model_response(router, name), "created": None},  # type: ignore[misc]
        ]
    return questions


def random_registry(chance: random.Random) -> ModelRegistry:
    registry = ModelRegistry()
    for _ in range(chance.randrange(8)):
        random_write(chance)(registry)
    return registry


def random_write(chance: random.Random) -> Write:
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


def assert_seen_wholly_or_not_at_all(router: ModelRouter, writes: list[Write]) -> None:
    """Stop each of *writes* before each of its instructions, and ask everything."""
    questions = reads(router)
    seen: list[list[object]] = []

    def ask() -> list[object]:
        return [answer(read) for read in questions]

    # A reader that waited for the writer's lock would never come back: the writer waits for the reader.
    with ThreadPoolExecutor(1) as pool:
        for write in writes:
            seen.clear()
            before = ask()
            with stopped_at_each_instruction(lambda: seen.append(pool.submit(ask).result(timeout=30))):
                write(router.registry)
            after = ask()
            changed = next((place for place, state in enumerate(seen) if state != before), len(seen))
            assert all(state == after for state in seen[changed:])


@pytest.mark.parametrize("seed", range(8))
def test_a_write_that_is_stopped_anywhere_is_seen_wholly_or_not_at_all(seed: int) -> None:
    chance = random.Random(seed)
    router = ModelRouter(random_registry(chance))
    assert_seen_wholly_or_not_at_all(router, [random_write(chance) for _ in range(30)])


def test_an_alias_is_listed_from_when_it_is_routed() -> None:
    registry = ModelRegistry()
    for id in ("a", "b"):
        registry.register(ModelEndpoint(id, "p"))
    targets = ["a", "b", "gone", "b", "d", "a"]
    writes = [partial(ModelRegistry.add_alias, alias="d", target=target) for target in targets]
    assert_seen_wholly_or_not_at_all(ModelRouter(registry), list(writes))


def answer_with_writes(
    start: ModelRegistry, question: int, writes: list[Write], places: list[int]
) -> tuple[object, list[Write]]:
    """Return a copy's answer while each of *writes* comes in before the instruction in its place, and who came late."""
    registry = ModelRegistry()
    registry.replace_with(start)
    late = list(zip(places, writes, strict=True))
    instructions = count()

    def write_in_time() -> None:
        instruction = next(instructions)
        while late and late[0][0] == instruction:
            late.pop(0)[1](registry)

    read = reads(ModelRouter(registry))[question]
    with stopped_at_each_instruction(write_in_time):
        answered = answer(read)
    return answered, [write for _, write in late]


def answers_in_turn(start: ModelRegistry, question: int, writes: list[Write]) -> list[object]:
    """Return a copy's answers before *writes*, between them, and after them."""
    registry = ModelRegistry()
    registry.replace_with(start)
    read = reads(ModelRouter(registry))[question]
    answers = [answer(read)]
    for write in writes:
        write(registry)
        answers.append(answer(read))
    return answers


def assert_answers_are_as_of_one_moment(start: ModelRegistry, writes: list[Write], pauses: Iterator[int]) -> None:
    """Let *writes* come into every read, one instruction later each time, with those pauses in between."""
    for question in range(len(reads(ModelRouter(start)))):
        possible = answers_in_turn(start, question, writes)
        late: list[Write] = []
        place = 0
        while len(late) < len(writes):
            places = [place + pause for pause in accumulate(islice(pauses, len(writes) - 1), initial=0)]
            answered, late = answer_with_writes(start, question, writes, places)
            assert answered in possible[: len(possible) - len(late)], places
            place += 1


@pytest.mark.parametrize("seed", range(40))
def test_a_read_that_writes_come_into_answers_as_of_one_moment(seed: int) -> None:
    chance = random.Random(seed)
    start = random_registry(chance)
    writes = [random_write(chance) for _ in range(1 + seed % 3)]
    assert_answers_are_as_of_one_moment(start, writes, repeat(0))
    assert_answers_are_as_of_one_moment(start, writes, (chance.randrange(9) for _ in repeat(None)))


A = ModelEndpoint("a", "p", is_default=True, max_context_length=5)


@pytest.mark.parametrize(
    "later",
    [
        lambda registry: registry.set_status("a", "error"),
        lambda registry: registry.register(ModelEndpoint("a", "p", max_context_length=1)),
        lambda registry: registry.unregister("a"),
        lambda registry: registry.register(ModelEndpoint("gone", "p")),
    ],
    ids=["it fails", "it is replaced", "it is removed", "it comes"],
)
@pytest.mark.parametrize(
    "earlier",
    [
        lambda registry: registry.add_alias("d", "b"),
        lambda registry: registry.add_alias("c", "b"),
        lambda registry: registry.register(ModelEndpoint("d", "q")),
        lambda registry: registry.register(ModelEndpoint("b", "p", is_default=True)),
        lambda registry: registry.unregister("b"),
    ],
    ids=["alias led elsewhere", "alias of nothing led elsewhere", "alias hidden", "default moved", "largest removed"],
)
def test_what_happens_where_a_name_no_longer_leads_is_not_seen_by_that_name(earlier: Write, later: Write) -> None:
    start = ModelRegistry()
    start.register(A)
    start.register(ModelEndpoint("b", "p", max_context_length=9))
    for alias, target in (("d", "a"), ("c", "gone"), ("other", "gone")):
        start.add_alias(alias, target)
    assert_answers_are_as_of_one_moment(start, [earlier, later], repeat(0))


@pytest.mark.skipif(sys.version_info[:2] == (3, 12), reason="crashes when two threads trace their instructions")
@pytest.mark.parametrize(
    ("first", "second", "question"),
    [
        (
            lambda registry: registry.register(ModelEndpoint("d", "q")),
            lambda registry: registry.register(ModelEndpoint("a", "q")),
            lambda router: router.route("d"),
        ),
        (
            lambda registry: registry.register(ModelEndpoint("d", "q", is_default=True)),
            lambda registry: registry.register(ModelEndpoint("a", "q", is_default=True)),
            lambda router: router.route(None),
        ),
        (
            lambda registry: registry.register(ModelEndpoint("d", "q", is_default=True)),
            lambda registry: registry.unregister("d"),
            lambda router: router.registry.default_endpoint(),
        ),
    ],
    ids=["an alias is hidden and its target replaced", "the default moves twice", "the default comes and goes"],
)
def test_a_read_that_begins_in_one_write_and_ends_after_another_answers_as_of_one_moment(
    first: Write, second: Write, question: Callable[[ModelRouter], object]
) -> None:
    def answers(writing_stops_at: int, reading_stops_at: int) -> tuple[object, list[object], bool]:
        """Return the answer, the possible ones, and whether the reader was stopped on its way."""
        registry = ModelRegistry()
        registry.register(A)
        registry.add_alias("d", "a")
        ask = partial(answer, partial(question, ModelRouter(registry)))
        possible: list[object] = []
        stopped, go_on = threading.Event(), threading.Event()
        reading: list[Future[object]] = []
        writers_instructions, readers_instructions = count(), count()

        def stop() -> None:
            if next(readers_instructions) == reading_stops_at:
                stopped.set()
                assert go_on.wait(timeout=30)

        def read() -> object:
            try:
                with stopped_at_each_instruction(stop):
                    return ask()
            finally:
                stopped.set()

        def begin_to_read() -> None:
            if next(writers_instructions) == writing_stops_at:
                # What was before is no answer any more if the write can be seen by now.
                possible.append(ask())
                reading.append(pool.submit(read))
                assert stopped.wait(timeout=30)

        with stopped_at_each_instruction(begin_to_read):
            first(registry)
        possible.append(ask())
        second(registry)
        possible.append(ask())
        on_its_way = bool(reading) and next(readers_instructions) == reading_stops_at + 1
        go_on.set()
        return reading[0].result(timeout=30) if reading else possible[-1], possible, on_its_way

    with ThreadPoolExecutor(1) as pool:
        for writing_stops_at in count(step=3):
            for reading_stops_at in count():
                answered, possible, on_its_way = answers(writing_stops_at, reading_stops_at)
                assert answered in possible, (writing_stops_at, reading_stops_at)
                if not on_its_way:
                    break
            # The write was over before it could be stopped there.
            if reading_stops_at == 0:
                break


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


@pytest.mark.parametrize("place", range(3))
def test_a_count_that_a_write_comes_into_is_taken_anew(place: int) -> None:
    registry = ModelRegistry()
    registry.register(ModelEndpoint("a", "p"))
    countdown = iter(range(place, -1, -1))
    write = partial(registry.register, ModelEndpoint("b", "p"))
    with stopped_at_each_call(lambda: next(countdown, None) == 0 and write()):
        assert len(registry) == 2


def test_a_count_that_begins_before_a_write_and_ends_within_it_counts_nothing_vacant() -> None:
    registry = ModelRegistry()
    registry.register(ModelEndpoint("a", "p"))
    reached, go_on = threading.Event(), threading.Event()

    def stop() -> None:
        reached.set()
        assert go_on.wait(timeout=30)

    def write() -> None:
        # By then the id stands in the directory, and its slot is vacant.
        with stopped_at_each_call(stop, function="flip"):
            registry.register(ModelEndpoint("b", "p"))

    with ThreadPoolExecutor(1) as pool:
        for place in range(4):
            countdown = iter(range(place, -1, -1))
            reached.clear()
            go_on.clear()

            def begin_to_write() -> None:
                if next(countdown, None) == 0:  # noqa: B023 -- it runs in this turn
                    pool.submit(write)
                    assert reached.wait(timeout=30)

            with stopped_at_each_call(begin_to_write):
                assert len(registry) == 1
            go_on.set()
            pool.submit(registry.unregister, "b").result(timeout=30)


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


def test_a_name_is_looked_up_anew_when_a_write_comes_in() -> None:
    registry = ModelRegistry()
    registry.add_alias("x", "gone")
    writes = iter([partial(registry.register, ModelEndpoint("x", "p"))])
    with stopped_at_each_call(lambda: next(writes, int)(), function="found"):
        assert registry.resolve("x") == ModelEndpoint("x", "p")


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
