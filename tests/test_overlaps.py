"""A reader that begins before a write, ends within it, and asks again while the write is still in progress.

The reader is stopped at an instruction. There the write begins in another thread, and is stopped too. When the reader
has ended and has asked again, the write ends.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count

import pytest
from instructions import stopped_at_each_instruction
from read_write_helpers import HEAVY, Write, ask_everything, copy_of, halfway, once_in, reads, registers, sets_default

from bonsai_routing import ModelEndpoint, ModelRegistry, ModelRouter

# About how many pairs of a place of the reader and a place of the writer are tried for each write and each question.
PAIRS = 80


def start() -> ModelRegistry:
    """Return a registry whose every answer one of the writes changes."""
    registry = ModelRegistry()
    registers(ModelEndpoint("a", "p", is_default=True, max_context_length=2), at=1)(registry)
    registers(ModelEndpoint("b", "p", max_context_length=4), at=2)(registry)
    registers(ModelEndpoint("a:x", "p", adapter="x", status="loading"), at=3)(registry)
    registry.add_alias("c", "a")
    registry.add_alias("b", "a")
    registry.add_alias("other", "gone")
    registry.add_alias("d", "a:x", {"b": HEAVY, "a": 1})
    return registry


def replacement() -> ModelRegistry:
    registry = ModelRegistry()
    registers(ModelEndpoint("a:x", "q", adapter="x", max_context_length=9), at=4)(registry)
    registers(ModelEndpoint("c", "q", is_default=True, max_context_length=3), at=5)(registry)
    registry.add_alias("a", "c")
    return registry


WRITES: dict[str, Write] = {
    "register": registers(ModelEndpoint("c", "q", max_context_length=9), at=6),
    "register a default": registers(ModelEndpoint("c", "q", is_default=True, max_context_length=3), at=6),
    "replace": registers(ModelEndpoint("a", "q", max_context_length=5), at=6),
    "unregister": lambda registry: registry.unregister("a"),
    "unregister the largest": lambda registry: registry.unregister("b"),
    "set_status": lambda registry: registry.set_status("a:x", "ready"),
    "add_alias": lambda registry: registry.add_alias("c", "b"),
    "add_alias, targets in order": lambda registry: registry.add_alias("c", "gone", "a:x", "b"),
    "add_alias, other weights": lambda registry: registry.add_alias("d", "a:x", {"b": 1, "a": HEAVY}),
    "add_alias, one target again": lambda registry: registry.add_alias("d", "a"),
    "remove_alias": lambda registry: registry.remove_alias("c"),
    "set_default": sets_default("b"),
    "clear the default": sets_default(None),
    "replace_with": lambda registry: registry.replace_with(replacement()),
}


START = start()


def changed_questions(write: Write) -> dict[str, tuple[object, object]]:
    """Return the answers before and after *write*, of one question for each method whose answer it changes."""
    registry = copy_of(START)
    old = ask_everything(ModelRouter(registry))
    write(registry)
    new = ask_everything(ModelRouter(registry))
    changed = {question.split(" ")[0]: question for question in old if old[question] != new[question]}
    return {question: (old[question], new[question]) for question in changed.values()}


def instructions_of(work: Callable[[], object]) -> int:
    """Return how many instructions of the package *work* executes."""
    executed = count()
    with stopped_at_each_instruction(lambda: next(executed)):
        work()
    return next(executed)


def pairs_of_places(reader_places: int, writer_places: int) -> Iterator[tuple[int, int]]:
    """Return pairs of places. If PAIRS allows, each place of the reader is in one, and they are spread evenly."""
    for reader_place in range(0, reader_places, -(-reader_places // PAIRS)):
        stops = max(1, PAIRS // reader_places)
        for stop in range(stops):
            # Multiples of the golden ratio, without their whole parts, are spread evenly.
            spread = (reader_place * 0.618 + stop / stops) % 1
            yield reader_place, int(spread * writer_places)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_reader_that_a_write_overtakes_never_goes_back(write: Write) -> None:
    writer_places = instructions_of(partial(write, copy_of(START)))
    for question, (old, new) in changed_questions(write).items():
        reader_places = instructions_of(reads(ModelRouter(START))[question])
        for reader_place, writer_place in pairs_of_places(reader_places, writer_places):
            registry = copy_of(START)
            read = reads(ModelRouter(registry))[question]
            with ExitStack() as stack:
                writing = partial(stack.enter_context, halfway(partial(write, registry), writer_place))
                with once_in(reader_place, writing):
                    first = read()
                again = read()
            places = (question, reader_place, writer_place)
            assert first in (old, new), places
            assert again in (old, new), places
            assert (first, again) != (new, old), places
            assert read() == new, places
