"""Writes and reads of a registry, and a way to stop one of them halfway, for the tests that let the two overlap."""

import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import count
from types import FrameType
from unittest.mock import patch

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

# An id before a colon may be the parent of an adapter in the list of models.
NAMES = ["a", "a:x", "b", "c", "d"]

# Beside a weight of 1 this is drawn always, but for less than once in ten to the eighteenth.
HEAVY = 2**62

Write = Callable[[ModelRegistry], object]
Read = Callable[[], object]


def answer(read: Callable[..., object], *arguments: object, **named: object) -> object:
    """Return what *read* returns, or the error that it raises in a form that can be compared."""
    try:
        return read(*arguments, **named)
    except RoutingError as error:
        return type(error), error.args


def reads(router: ModelRouter) -> dict[str, Read]:
    """Return every question that can be asked about a registry, by a name for messages."""
    registry = router.registry
    questions: dict[str, Read] = {
        "default_endpoint": registry.default_endpoint,
        "all_endpoints": registry.all_endpoints,
        "available_endpoints": registry.available_endpoints,
        "is_empty": registry.is_empty,
        "len": registry.__len__,
        "aliases": lambda: [*registry.aliases().items()],
        "models_list": router.models_list,
        "models_response": partial(models_response, router),
        "models_response with aliases": partial(models_response, router, aliases=True),
        "route None": partial(router.route, None),
        "route_for_context None 2": partial(router.route_for_context, None, 2),
        "route_for_context None 4": partial(router.route_for_context, None, 4),
    }
    for name in NAMES:
        questions |= {
            f"resolve {name}": partial(registry.resolve, name),
            f"contains {name}": partial(registry.__contains__, name),
            f"generation {name}": partial(registry.generation, name),
            f"route {name}": partial(router.route, name),
            f"route_for_context {name} 2": partial(router.route_for_context, name, 2),
            f"model_response {name}": partial(model_response, router, name),
        }
    # It takes long, so it is asked of one name only.
    questions["candidates d 2"] = partial(router.candidates, "d", 2, key="k")
    return {name: partial(answer, read) for name, read in questions.items()}


def ask_everything(router: ModelRouter) -> dict[str, object]:
    """Return the answer to every question."""
    return {name: read() for name, read in reads(router).items()}


def copy_of(registry: ModelRegistry) -> ModelRegistry:
    """Return a registry with the same contents. Each copy of a registry has the same generations."""
    copied = ModelRegistry()
    copied.replace_with(registry)
    return copied


def random_registry(chance: random.Random) -> ModelRegistry:
    registry = ModelRegistry()
    for _ in range(chance.randrange(8)):
        random_write(chance)(registry)
    return registry


def random_targets(chance: random.Random, names: list[str]) -> list[str | dict[str, int]]:
    """Return targets of an alias: mostly one, or else several in order or with weights that leave nothing to chance."""
    if chance.random() < 0.5:
        return [chance.choice(names)]
    targets: list[str | dict[str, int]] = []
    for _ in range(chance.randrange(1, 4)):
        first, second = chance.sample(names, 2)
        tiers: list[str | dict[str, int]] = [first, first, {first: HEAVY, second: 1}, {first: 1, second: HEAVY}]
        targets.append(chance.choice(tiers))
    return targets


def random_write(chance: random.Random) -> Write:
    """Return a write that does the same whenever it is called."""
    name, targets = chance.choice(NAMES), random_targets(chance, NAMES)
    status = chance.choice([EndpointStatus.READY, *EndpointStatus])
    endpoint = ModelEndpoint(
        name,
        chance.choice("pq"),
        adapter="x" if ":" in name else None,
        max_context_length=chance.randrange(5),
        is_default=chance.random() < 0.5,
        status=status,
    )
    match chance.randrange(12):
        case 0 | 1 | 2:
            return registers(endpoint, at=chance.randrange(10))
        case 3 | 4:
            return lambda registry: registry.unregister(name)
        case 5 | 6:
            return lambda registry: registry.add_alias(name, *targets)
        case 7:
            return lambda registry: registry.remove_alias(name)
        case 8:
            return sets_default(chance.choice([name, name, None]))
        case 9 | 10:
            return lambda registry: registry.set_status(name, status)
        case _:
            aside = random_registry(chance)
            return lambda registry: registry.replace_with(aside)


def registers(endpoint: ModelEndpoint, at: int) -> Write:
    """Return a write that registers *endpoint* at a time of its own, so that the times in a list tell something."""

    def write(registry: ModelRegistry) -> None:
        with patch("time.time", return_value=at):
            registry.register(endpoint)

    return write


def sets_default(id: str | None) -> Write:
    return lambda registry: answer(registry.set_default, id)


@contextmanager
def stopped_at_each_call(visit: Callable[[], object]) -> Iterator[None]:
    """Call *visit* whenever the package calls something in this thread.

    On Python 3.11, coverage sees nothing in a block of ``stopped_at_each_instruction``. It sees this block.
    """

    def profile(frame: FrameType, event: str, arg: object) -> None:
        if event in ("call", "c_call") and frame.f_code.co_filename.startswith(FOLDER):
            visit()

    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)


Stops = Callable[[Callable[[], object]], AbstractContextManager[None]]


@contextmanager
def once_in(place: int, action: Callable[[], object], stops: Stops = stopped_at_each_instruction) -> Iterator[None]:
    """Call *action* at stop number *place* of this thread in the block; if there are fewer stops, never."""
    places = count()
    with stops(lambda: action() if next(places) == place else None):
        yield


@contextmanager
def halfway(
    work: Callable[[], object], place: int, stops: Stops = stopped_at_each_instruction
) -> Iterator[Callable[[], bool]]:
    """Start *work* in another thread, stop it at its stop number *place*, and end it after the block.

    The value tells whether *work* was stopped there. If not, it has ended already.
    """
    arrived, go_on = threading.Event(), threading.Event()
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        arrived.set()
        assert go_on.wait(timeout=30)

    def run() -> None:
        try:
            with once_in(place, stop, stops):
                work()
        finally:
            arrived.set()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        try:
            assert arrived.wait(timeout=30)
            yield lambda: stopped
        finally:
            go_on.set()
        running.result(timeout=30)
