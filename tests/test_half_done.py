"""Stops a writer, or a reader, at each of its instructions and lets the other side in between.

A write must be seen wholly or not at all wherever it is stopped, and a read must answer as of one moment between its
call and its return, whatever writes come in between.
"""

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, count, cycle, islice, repeat

import pytest
from instructions import CutShort, cut_short_at, stopped_at_each_instruction
from read_write_helpers import (
    Write,
    ask_everything,
    copy_of,
    halfway,
    once_in,
    random_registry,
    random_write,
    reads,
    registers,
    sets_default,
    stopped_at_each_call,
)

from bonsai_routing import ModelEndpoint, ModelId, ModelRegistry, ModelRouter


def assert_seen_wholly_or_not_at_all(router: ModelRouter, write: Write, ask: Callable[[], dict[str, object]]) -> None:
    """Stop *write* before each of its instructions, and ask everything there."""
    seen: list[dict[str, object]] = []
    before = ask()
    with stopped_at_each_instruction(lambda: seen.append(ask())):
        write(router.registry)
    after = ask()
    visible = next((place for place, state in enumerate(seen) if state != before), len(seen))
    for state in seen[visible:]:
        assert state == after


@pytest.mark.parametrize("seed", range(3))
def test_another_thread_sees_a_write_wholly_or_not_at_all(seed: int) -> None:
    chance = random.Random(seed)
    router = ModelRouter(random_registry(chance))
    # A reader that waited for the writer's lock would never come back: the writer waits for the reader.
    with ThreadPoolExecutor(1) as pool:
        for _ in range(15):
            assert_seen_wholly_or_not_at_all(
                router,
                random_write(chance),
                lambda: pool.submit(ask_everything, router).result(timeout=30),
            )


@pytest.mark.parametrize("seed", range(100, 103))
def test_a_signal_handler_sees_the_write_that_it_interrupts_wholly_or_not_at_all(seed: int) -> None:
    chance = random.Random(seed)
    router = ModelRouter(random_registry(chance))
    for _ in range(15):
        assert_seen_wholly_or_not_at_all(router, random_write(chance), partial(ask_everything, router))


def test_an_alias_is_listed_as_soon_as_it_is_routed() -> None:
    registry = ModelRegistry()
    for id in ("a", "b"):
        registry.register(ModelEndpoint(id, "p"))
    router = ModelRouter(registry)
    for target in ("a", "b", "gone", "b", "c", "a"):
        write = partial(ModelRegistry.add_alias, alias="c", target=target)
        assert_seen_wholly_or_not_at_all(router, write, partial(ask_everything, router))


def test_an_alias_that_was_removed_is_not_listed_again_during_a_later_write() -> None:
    registry = ModelRegistry()
    registry.add_alias("c", "a")
    registry.remove_alias("c")
    seen: list[object] = []
    with stopped_at_each_instruction(lambda: seen.append(registry.aliases())):
        registry.register(ModelEndpoint("a", "p"))
    assert all(aliases == {} for aliases in seen)


def test_everything_can_be_replaced_after_a_write_that_was_cut_short_anywhere() -> None:
    other = ModelRegistry()
    other.register(ModelEndpoint("b", "p", is_default=True))
    other.add_alias("c", "b")
    expected = ask_everything(ModelRouter(copy_of(other)))
    for place in count():
        registry = ModelRegistry()
        registry.register(ModelEndpoint("a", "p", is_default=True))
        registry.add_alias("c", "a")
        cut_short = False
        try:
            with cut_short_at(place):
                registry.register(ModelEndpoint("a", "q", is_default=True))
        except CutShort:
            cut_short = True
        registry.replace_with(other)
        answers = ask_everything(ModelRouter(registry))
        # The numbers of generations depend on how many the registry has used before.
        assert {**answers, "generation b": expected["generation b"]} == expected, place
        if not cut_short:
            break


def answer_with_writes(
    start: ModelRegistry, question: str, writes: list[Write], places: list[int]
) -> tuple[object, list[Write]]:
    """Return a copy's answer while each of *writes* comes in before the instruction in its place, and the late ones."""
    registry = copy_of(start)
    late = list(zip(places, writes, strict=True))
    instructions = count()

    def write_in_time() -> None:
        instruction = next(instructions)
        while late and late[0][0] == instruction:
            late.pop(0)[1](registry)

    read = reads(ModelRouter(registry))[question]
    with stopped_at_each_instruction(write_in_time):
        answered = read()
    return answered, [write for _, write in late]


def answers_in_turn(start: ModelRegistry, writes: list[Write]) -> dict[str, list[object]]:
    """Return a copy's answers to every question before *writes*, between them, and after them."""
    registry = copy_of(start)
    router = ModelRouter(registry)
    states = [ask_everything(router)]
    for write in writes:
        write(registry)
        states.append(ask_everything(router))
    return {question: [state[question] for state in states] for question in states[0]}


def assert_answers_are_as_of_one_moment(start: ModelRegistry, writes: list[Write], pauses: Iterator[int]) -> None:
    """Let *writes* come into every read, one instruction later each time, with those pauses in between."""
    for question, possible in answers_in_turn(start, writes).items():
        late: list[Write] = []
        place = 0
        while len(late) < len(writes):
            places = [place + pause for pause in accumulate(islice(pauses, len(writes) - 1), initial=0)]
            answered, late = answer_with_writes(start, question, writes, places)
            assert answered in possible[: len(possible) - len(late)], (question, places)
            place += 1


@pytest.mark.parametrize("seed", range(9))
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
        registers(ModelEndpoint("a", "p", max_context_length=1), at=8),
        lambda registry: registry.unregister("a"),
        registers(ModelEndpoint("gone", "p"), at=9),
    ],
    ids=["target fails", "target is replaced", "target is removed", "missing target is registered"],
)
@pytest.mark.parametrize(
    "earlier",
    [
        lambda registry: registry.add_alias("a:x", "b"),
        lambda registry: registry.add_alias("c", "b"),
        lambda registry: registry.remove_alias("a:x"),
        registers(ModelEndpoint("a:x", "q", adapter="x"), at=7),
        registers(ModelEndpoint("b", "p", is_default=True), at=7),
        sets_default("b"),
        sets_default(None),
        lambda registry: registry.unregister("b"),
    ],
    ids=[
        "alias is changed",
        "dangling alias is changed",
        "alias is removed",
        "alias is shadowed",
        "default is replaced",
        "default is set",
        "default is cleared",
        "largest is removed",
    ],
)
def test_a_change_of_a_target_is_not_seen_under_a_name_that_no_longer_maps_to_it(earlier: Write, later: Write) -> None:
    start = ModelRegistry()
    start.register(A)
    start.register(ModelEndpoint("b", "p", max_context_length=9))
    for alias, target in (("a:x", "a"), ("c", "gone"), ("other", "gone")):
        start.add_alias(alias, target)
    start.add_alias("d", "gone", "a", "b")
    assert_answers_are_as_of_one_moment(start, [earlier, later], repeat(0))


def test_a_fallback_by_context_is_not_mixed_of_a_registry_and_its_replacement() -> None:
    start, replacement = ModelRegistry(), ModelRegistry()
    start.register(ModelEndpoint("a", "p", is_default=True, max_context_length=1))
    replacement.register(ModelEndpoint("b", "p", is_default=True, max_context_length=5))
    replacement.register(ModelEndpoint("c", "p", max_context_length=9))
    assert_answers_are_as_of_one_moment(start, [lambda registry: registry.replace_with(replacement)], repeat(0))


@pytest.mark.parametrize(
    ("first", "second", "question"),
    [
        (
            lambda registry: registry.register(ModelEndpoint("c", "q")),
            lambda registry: registry.register(ModelEndpoint("a", "q")),
            "route c",
        ),
        (
            lambda registry: registry.register(ModelEndpoint("c", "q", is_default=True)),
            lambda registry: registry.register(ModelEndpoint("a", "q", is_default=True)),
            "route None",
        ),
        (
            lambda registry: registry.register(ModelEndpoint("c", "q", is_default=True)),
            lambda registry: registry.unregister("c"),
            "default_endpoint",
        ),
        (
            lambda registry: registry.add_alias("b", "a"),
            lambda registry: registry.remove_alias("c"),
            "aliases",
        ),
    ],
    ids=[
        "an alias is shadowed and its target replaced",
        "the default changes twice",
        "the default is registered and removed",
        "an alias is added and another one removed",
    ],
)
def test_a_read_that_begins_in_one_write_and_ends_after_another_answers_as_of_one_moment(
    first: Write, second: Write, question: str
) -> None:
    def is_stopped(writer_place: int, reader_place: int) -> tuple[bool, bool]:
        """Return whether the writer, and whether the reader, was stopped in that place."""
        registry = ModelRegistry()
        registry.register(A)
        registry.add_alias("c", "a")
        read = reads(ModelRouter(registry))[question]
        answered: list[object] = []
        with halfway(partial(first, registry), writer_place) as writing:
            # The old answer is not possible any more if the write is already visible.
            possible = [read()]
            reading = halfway(lambda: answered.append(read()), reader_place)
            reader_is_stopped = reading.__enter__()
        possible.append(read())
        second(registry)
        possible.append(read())
        reading.__exit__(None, None, None)
        assert answered[0] in possible, (writer_place, reader_place)
        return writing(), reader_is_stopped()

    for writer_place in count(step=47):
        for reader_place in count():
            writer_is_stopped, reader_is_stopped = is_stopped(writer_place, reader_place)
            if not reader_is_stopped:
                break
        if not writer_is_stopped:
            break


def started() -> ModelRegistry:
    """Return a registry whose every answer one of the writes below changes."""
    registry = ModelRegistry()
    registers(ModelEndpoint("a", "p", is_default=True, max_context_length=1), at=1)(registry)
    registers(ModelEndpoint("a:x", "p", adapter="x", max_context_length=4), at=2)(registry)
    registry.add_alias("c", "a")
    registry.add_alias("dangling", "b")
    return registry


def everything_else() -> ModelRegistry:
    registry = ModelRegistry()
    registers(ModelEndpoint("b", "q", is_default=True, max_context_length=3), at=3)(registry)
    registers(ModelEndpoint("a:x", "q", adapter="x", max_context_length=9), at=4)(registry)
    registry.add_alias("a", "b")
    return registry


each_write = pytest.mark.parametrize(
    "write",
    [
        registers(ModelEndpoint("b", "p", max_context_length=4), at=5),
        registers(ModelEndpoint("b", "p", max_context_length=2, is_default=True), at=5),
        registers(ModelEndpoint("a", "q", adapter="y"), at=5),
        lambda registry: registry.unregister("a"),
        lambda registry: registry.set_status("a:x", "error"),
        lambda registry: registry.add_alias("c", "a:x"),
        lambda registry: registry.remove_alias("c"),
        sets_default("a:x"),
        sets_default(None),
        lambda registry: registry.replace_with(everything_else()),
    ],
    ids=[
        "register",
        "register a default",
        "replace",
        "unregister",
        "set_status",
        "add_alias",
        "remove_alias",
        "set_default",
        "clear the default",
        "replace_with",
    ],
)


@each_write
def test_a_write_that_comes_into_a_read_at_any_call_is_seen_wholly_or_not_at_all(write: Write) -> None:
    for question, possible in answers_in_turn(started(), [write]).items():
        for place in count():
            registry = copy_of(started())
            read = reads(ModelRouter(registry))[question]
            late = [write]
            with once_in(place, lambda: late.pop()(registry), stopped_at_each_call):  # noqa: B023 -- it runs in this turn
                answered = read()
            assert answered in possible, (question, place)
            if late:
                break


@each_write
def test_a_read_during_a_write_that_is_stopped_at_any_call_sees_it_wholly_or_not_at_all(write: Write) -> None:
    possible = answers_in_turn(started(), [write])
    for place in count():
        registry = copy_of(started())
        with halfway(partial(write, registry), place, stopped_at_each_call) as is_stopped:
            answers = ask_everything(ModelRouter(registry))
        old = {question: states[0] for question, states in possible.items()}
        new = {question: states[1] for question, states in possible.items()}
        assert answers in (old, new), place
        if not is_stopped():
            assert answers == new
            break


def test_a_list_is_as_of_one_moment_however_many_writes_come_into_it() -> None:
    one, other = started(), everything_else()
    possible = [ask_everything(ModelRouter(copy_of(each))) for each in (one, other)]
    lists = ["all_endpoints", "len", "aliases", "models_list", "models_response with aliases", "model_response a"]
    for question in lists:
        registry = copy_of(one)
        read = reads(ModelRouter(registry))[question]
        writes = islice(cycle([other, one]), 100)
        with stopped_at_each_call(lambda: [registry.replace_with(each) for each in islice(writes, 1)]):  # noqa: B023 -- it runs in this turn
            answered = read()
        assert answered in [answers[question] for answers in possible], question
        assert next(writes, None) is None


def test_leases_are_counted_of_one_generation_wherever_a_swap_comes_in() -> None:
    for place in count():
        router = ModelRouter(ModelRegistry())
        registry = router.registry
        registry.register(ModelEndpoint("a", "p"))
        leases = [router.lease("a") for _ in range(2)]
        late: list[Callable[[], object]] = [leases[0].release, partial(registry.register, ModelEndpoint("a", "q"))]

        def swap() -> None:
            while late:  # noqa: B023 -- it runs in this turn
                late.pop()()  # noqa: B023

        with once_in(place, swap, stopped_at_each_call):
            # Never 1: the lease is released when the generation is no longer the present one.
            assert registry.in_flight("a") in (0, 2), place
        for lease in leases:
            lease.release()
        if late:
            break


def test_replacing_everything_includes_a_write_that_comes_in_at_any_call() -> None:
    came_in = 0
    for place in count():
        registry, refused = ModelRegistry(), False
        registry.register(ModelEndpoint("a", "p"))
        registry.register(ModelEndpoint("b", "p"))
        declared = copy_of(registry)
        late: list[Callable[[], object]] = [
            partial(registry.set_status, "a", "error"),
            partial(registry.register, ModelEndpoint("b", "q")),
        ]

        def write() -> None:
            nonlocal refused
            try:
                while late:  # noqa: B023 -- it runs in this turn
                    late[-1]()  # noqa: B023
                    late.pop()  # noqa: B023
            except RuntimeError:
                # The registry was in the middle of a write in this thread.
                refused = True

        with once_in(place, write, stopped_at_each_call):
            change = registry.replace_with(declared)
        if late:
            assert change.changed == ()
        elif change.changed:
            # The writes came first: the status outlives them, and the endpoint that differed is changed back.
            came_in += 1
            assert change.changed == ("b",)
            assert [endpoint.status for endpoint in registry] == ["error", "ready"]
            assert [endpoint.base_model for endpoint in registry] == ["p", "p"]
        else:
            assert [endpoint.base_model for endpoint in registry] == ["p", "q"]
        if late and not refused:
            break
    assert came_in


def test_replacing_everything_succeeds_however_many_writes_come_into_it() -> None:
    registry, other = ModelRegistry(), ModelRegistry()
    registry.register(ModelEndpoint("a", "p"))
    other.register(ModelEndpoint("b", "p"))
    statuses = islice(cycle(["error", "ready"]), 100)

    def write() -> None:
        # In the end the registry is in the middle of a write, and refuses another one in the same thread.
        with suppress(RuntimeError, StopIteration):
            registry.set_status("a", next(statuses))

    with stopped_at_each_call(write):
        change = registry.replace_with(other)
    assert (change.added, change.removed) == (("b",), ("a",))
    assert list(registry) == list(other)
    assert next(statuses, None) is None


@dataclass(frozen=True)
class Comparing(ModelEndpoint):
    """An endpoint that calls *comparing* before it is compared."""

    comparing: Callable[[], object] = print

    def __eq__(self, other: object) -> bool:
        self.comparing()
        return isinstance(other, Comparing) and (self.id, self.base_model) == (other.id, other.base_model)

    __hash__ = ModelEndpoint.__hash__


def test_other_threads_write_and_lease_while_replace_with_compares_endpoints() -> None:
    router, other = ModelRouter(ModelRegistry()), ModelRegistry()
    registry = router.registry
    compared = threading.Event()

    def use() -> None:
        router.lease("b").release()
        registry.set_status("b", "ready")

    def compare() -> None:
        # A comparison under the registry's lock would time out.
        pool.submit(use).result(timeout=30)
        compared.set()

    registry.register(ModelEndpoint("b", "p"))
    registry.register(Comparing(ModelId("a"), "p", comparing=compare))
    other.register(Comparing(ModelId("a"), "p", comparing=compare))
    with ThreadPoolExecutor(1) as pool:
        change = registry.replace_with(other)
    assert compared.is_set()
    assert (change.added, change.removed, change.changed) == ((), ("b",), ())
