"""Calls that an exception cuts short, as Ctrl-C does, and calls from the signal handlers that interrupt them."""

import gc
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import FrameType

import pytest
from instructions import ROUNDS, CutShort, cut_short_at, stopped_at_each_instruction

from bonsai_routing import (
    AdapterRegistry,
    AdapterStack,
    Lease,
    LoraAdapter,
    ModelEndpoint,
    ModelRegistry,
    ModelRouter,
    Publication,
    RoutingError,
    models_response,
)

# A lease that is cut short before the caller has it is dropped, and says so.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

Call = Callable[[ModelRouter], object]

NAMES = ["a", "b", "c", "x", "y", "a:code"]
CODE = LoraAdapter("code", "a", "adapters/code")


def endpoint(id: str, **fields: object) -> ModelEndpoint:
    return ModelEndpoint(id, "weights", **fields)  # type: ignore[arg-type]


def started() -> ModelRouter:
    registry = ModelRegistry()
    registry.register(endpoint("a", max_context_length=2, is_default=True))
    registry.register(endpoint("b", max_context_length=8))
    registry.add_alias("x", "a")
    registry.add_alias("b", "a")
    registry.add_alias("y", "a")
    AdapterRegistry(registry).load(CODE)
    return ModelRouter(registry)


def other_registry() -> ModelRegistry:
    registry = ModelRegistry()
    registry.register(endpoint("c", max_context_length=9))
    registry.register(endpoint("a", max_context_length=2))
    registry.add_alias("x", "c")
    return registry


WRITES: dict[str, Call] = {
    "register": lambda router: router.registry.register(endpoint("c", max_context_length=9, is_default=True)),
    "register again": lambda router: router.registry.register(endpoint("a", max_context_length=3)),
    "register over an alias": lambda router: router.registry.register(endpoint("x")),
    "swap": lambda router: router.registry.swap(endpoint("b")),
    "unregister": lambda router: router.registry.unregister("a"),
    "retire": lambda router: router.registry.retire("b"),
    "set_status": lambda router: router.registry.set_status("b", "error"),
    "add_alias": lambda router: router.registry.add_alias("x", "b"),
    "add a new alias": lambda router: router.registry.add_alias("c", "b"),
    "remove_alias": lambda router: router.registry.remove_alias("y"),
    "set_default": lambda router: router.registry.set_default("b"),
    "clear the default": lambda router: router.registry.set_default(None),
    "replace_with": lambda router: router.registry.replace_with(other_registry()),
    "load": lambda router: AdapterRegistry(router.registry).load(LoraAdapter("math", "a", "adapters/math")),
    "swap an adapter": lambda router: AdapterRegistry(router.registry).swap(LoraAdapter("code", "a", "elsewhere")),
    "unload": lambda router: AdapterRegistry(router.registry).unload("a:code"),
}
READS: dict[str, Call] = {
    "lease": lambda router: router.lease("x").release(),
    "lease the default": lambda router: router.lease(None, 4).release(),
    "lease a stack": lambda router: (
        AdapterRegistry(router.registry).lease_stack("a", AdapterStack().add("code", 1)).release()
    ),
    "lease what is not there": lambda router: answer(lambda: router.lease("gone")),
    "route": lambda router: router.route("x"),
    "models_response": lambda router: models_response(router, aliases=True),
}
CALLS = WRITES | READS
each_write = pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def answer(ask: Callable[[], object]) -> object:
    try:
        return ask()
    except RoutingError as error:
        return type(error), error.args


def state(router: ModelRouter) -> list[object]:
    """Return everything that readers see, except for the times of registration."""
    registry = router.registry
    return [
        registry.all_endpoints(),
        registry.available_endpoints(),
        registry.default_endpoint(),
        registry.aliases(),
        list(AdapterRegistry(registry)),
        [{**card, "created": None} for card in models_response(router, aliases=True)["data"]],  # type: ignore[attr-defined]
        len(registry),
        [answer(lambda tokens=tokens: router.route_for_context(None, tokens)) for tokens in (1, 4, 9)],  # type: ignore[misc]
        [answer(lambda name=name: router.route(name)) for name in (None, *NAMES)],  # type: ignore[misc]
        [registry.resolve(name) for name in NAMES],
        [registry.in_flight(name) for name in NAMES],
    ]


def after(*calls: Call) -> list[object]:
    router = started()
    for call in calls:
        call(router)
    return state(router)


def places(call: Call, router_of: Callable[[], ModelRouter] = started) -> Iterator[ModelRouter]:
    """Yield a router for each instruction of a call, which was cut short before this instruction.

    Of a long call, that is each instruction of its beginning and every fifth one after it.
    """
    for place in (*range(300), *range(300, 100_000, 7)):
        router = router_of()
        with suppress(CutShort), cut_short_at(place) as cut:
            call(router)
        if not cut:
            assert place > 5, "nothing was cut short"
            return
        yield router


def next_write(router: ModelRouter) -> None:
    """End whatever a call that was cut short has left to the next write."""
    router.registry.register(endpoint("next"))


@each_call
def test_a_call_that_is_cut_short_anywhere_is_seen_wholly_or_not_at_all(call: Call) -> None:
    before, done = after(), after(call)
    before_next, done_next = after(next_write), after(call, next_write)
    with ThreadPoolExecutor(1) as pool:
        for router in places(call):
            if state(router) not in (before, done):
                # A lease that was cut short may wait for the garbage collector.
                gc.collect()
            assert state(router) in (before, done)
            # Another thread finds the lock free.
            pool.submit(next_write, router).result(timeout=30)
            assert state(router) in (before_next, done_next)


@each_call
def test_the_thread_whose_call_was_cut_short_can_go_on(call: Call) -> None:
    for router in places(call):
        told: list[Publication] = []
        next_write(router)
        with router.lease("next") as lease:
            router.registry.swap(endpoint("next")).add_done_callback(lambda _, told=told: told.append(lease))  # type: ignore[misc]
        assert told


@each_write
def test_later_writes_are_not_harmed_by_a_write_that_was_cut_short(write: Call) -> None:
    for turn, router in enumerate(places(write)):
        # For each instruction another sequence of writes follows.
        later = random.Random(turn).sample(list(WRITES.values()), 4)
        for each in later:
            answer(lambda each=each, router=router: each(router))  # type: ignore[misc]
        expected = []
        for first in ([], [write]):
            clean = started()
            for each in [*first, *later]:
                answer(lambda each=each, clean=clean: each(clean))  # type: ignore[misc]
            expected.append(state(clean))
        assert state(router) in expected


@each_write
def test_leases_outlive_a_write_that_was_cut_short(write: Call) -> None:
    leases: list[Lease] = []

    def leased() -> ModelRouter:
        router = started()
        for lease in leases:
            lease.release()
        leases[:] = [router.lease(name) for name in ("a", "b", "a:code")]
        return router

    for router in places(write, leased):
        registry = router.registry
        next_write(router)
        present = {registry.generation(lease.endpoint.id): lease for lease in leases}
        draining = {each.generation for each in registry.draining()}
        for lease in leases:
            # Each lease is counted once, either on what is registered or on what drains.
            assert (present.get(lease.generation) is lease) != (lease.generation in draining)
            if lease.generation not in draining:
                assert registry.in_flight(lease.endpoint.id) == 1
            lease.release()
        assert registry.draining() == []
        for id in ("a", "b", "a:code"):
            assert registry.in_flight(id) == 0
            assert registry.retire(id).done()
    for lease in leases:
        lease.release()


def test_a_release_that_is_cut_short_anywhere_may_be_repeated() -> None:
    freed: list[object] = []
    leases: list[Lease] = []
    futures: list[Future[ModelEndpoint | None]] = []

    def retiring() -> ModelRouter:
        router = started()
        leases[:] = [router.lease("a")]
        futures[:] = [router.registry.retire("a")]
        freed.clear()
        futures[0].add_done_callback(freed.append)
        return router

    for router in places(lambda router: leases[0].release(), retiring):
        leases[0].release()
        assert futures[0].done()
        assert freed == futures
        assert router.registry.draining() == []
        assert repr(leases[0]).endswith("released>")


def test_an_alias_that_was_cut_short_and_then_moved_stays_when_its_first_target_goes() -> None:
    def two_endpoints() -> ModelRouter:
        registry = ModelRegistry()
        registry.register(endpoint("a"))
        registry.register(endpoint("b"))
        return ModelRouter(registry)

    tried = 0
    for router in places(lambda router: router.registry.add_alias("x", "a"), two_endpoints):
        router.registry.add_alias("x", "b")
        router.registry.unregister("a")
        assert router.registry.aliases() == {"x": "b"}
        tried += 1
    assert tried > 100


def test_a_release_that_is_cut_short_is_completed_by_the_next_call_too() -> None:
    leases: list[Lease] = []
    futures: list[Future[ModelEndpoint | None]] = []

    def retiring() -> ModelRouter:
        router = started()
        leases[:] = [router.lease("a")]
        futures[:] = [router.registry.retire("a")]
        return router

    for router in places(lambda router: leases[0].release(), retiring):
        next_write(router)
        # Either the lease is still held, or it has ended and the future with it.
        assert futures[0].done() == (not router.registry.draining())
        leases[0].release()
        assert futures[0].done()


def test_a_lease_that_is_cut_short_leaves_nothing_counted() -> None:
    for router in places(lambda router: router.lease("a").release()):
        assert router.registry.in_flight("a") == 0
        assert router.registry.retire("a").done()


@contextmanager
def interrupting(handler: Callable[[], object]) -> Iterator[Callable[[float], None]]:
    """Call *handler* in a signal handler. The block gets a function that sets the timer, in seconds."""

    def handle(number: int, frame: FrameType | None) -> None:
        handler()

    before = signal.signal(signal.SIGALRM, handle)
    try:
        yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


needs_timers = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers that send signals")


@needs_timers
@pytest.mark.parametrize("seed", range(2))
def test_thousands_of_interrupts_leave_the_lock_free_and_every_answer_right(seed: int) -> None:
    if sys.gettrace() is not None:
        pytest.skip("a tracer, such as that of coverage, lets handlers run where CPython itself runs none")
    chance = random.Random(seed)
    armed = False
    interrupts = 0

    def interrupt() -> None:
        if armed:
            raise CutShort

    states = {(name,): (after(call), after(call, next_write)) for name, call in CALLS.items()}
    unharmed = after(), after(next_write)
    with interrupting(interrupt) as set_timer, ThreadPoolExecutor(1) as pool:
        for _ in range(1500 * ROUNDS):
            name, call = chance.choice([*CALLS.items()])
            router = started()
            # Most calls take 5 to 60 microseconds.
            delay = chance.uniform(2e-6, 60e-6)
            try:
                armed = True
                set_timer(delay)
                call(router)
                armed = False
            except CutShort:
                armed = False
                interrupts += 1
                set_timer(0)
            now, then = states[name,]
            if state(router) not in (unharmed[0], now):
                # A lease that was cut short may wait for the garbage collector.
                gc.collect()
            assert state(router) in (unharmed[0], now), name
            pool.submit(next_write, router).result(timeout=30)
            assert state(router) in (unharmed[1], then), name
    assert interrupts > 200


def test_who_is_told_in_the_middle_of_a_write_is_told_at_its_end_and_may_write() -> None:
    told: list[int] = []
    models = ModelRegistry()

    def on_idle(publication: Publication) -> None:
        told.append(publication.generation)
        models.add_alias("told", "a")

    for place in range(100_000):
        left = place
        told.clear()
        models = ModelRegistry(on_idle=on_idle)
        models.register(endpoint("a"))
        models.register(endpoint("b"))
        lease = ModelRouter(models).lease("a")
        models.register(endpoint("a", max_context_length=1))
        assert told == []

        def release(lease: Lease = lease) -> None:
            nonlocal left
            left -= 1
            if left == -1:
                lease.release()

        with stopped_at_each_instruction(release):
            models.set_status("b", "error")
        if left >= 0:
            break
        assert told == [1]
        assert "told" in models.aliases()
    assert place > 200


@needs_timers
def test_each_publication_that_goes_is_told_once_whatever_interrupts() -> None:
    if sys.gettrace() is not None:
        pytest.skip("a tracer, such as that of coverage, lets handlers run where CPython itself runs none")
    chance = random.Random(0)
    told: list[Publication] = []
    # A function of C counts, or nothing does: no handler can come in while it appends.
    models = ModelRegistry(on_idle=told.append)
    armed = False
    interrupts = 0

    def interrupt() -> None:
        if armed:
            raise CutShort

    with interrupting(interrupt) as set_timer:
        for number in range(1500 * ROUNDS):
            lease = None
            try:
                armed = True
                set_timer(chance.uniform(2e-6, 120e-6))
                models.register(ModelEndpoint("a", str(number)))
                lease = ModelRouter(models).lease("a")
                models.register(ModelEndpoint("a", "p"))
                lease.release()
                models.unregister("a")
                armed = False
            except CutShort:
                armed = False
                interrupts += 1
                set_timer(0)
            if lease is not None:
                lease.release()
    del lease
    gc.collect()
    models.register(ModelEndpoint("a", "last"))
    models.unregister("a")
    numbers = [each.generation for each in told]
    assert len(set(numbers)) == len(numbers)
    # Every number was published, but those of calls that were cut short before they published.
    assert len(numbers) > 1000 * ROUNDS
    assert models.draining() == []
    assert interrupts > 200


@each_call
def test_a_handler_in_the_middle_of_a_call_may_read_and_release_and_is_told_when_it_may_not_write(call: Call) -> None:
    # What the handler does may come before the call or after it, or is refused.
    expected = [after(call, next_write), after(next_write, call)]
    before, done = after(), after(call)
    refused = 0
    for place in (*range(300), *range(300, 100_000, 7)):
        router = started()
        left = place
        seen: list[list[object]] = []

        def handle(router: ModelRouter = router, seen: list[list[object]] = seen) -> None:
            nonlocal left, refused
            left -= 1
            if left == -1:
                seen.append(state(router))
                try:
                    next_write(router)
                except RuntimeError as error:
                    refused += 1
                    assert "signal handler" in str(error)

        with stopped_at_each_instruction(handle):
            call(router)
        if not seen:
            break
        assert seen[0] in (before, done) or call in READS.values()
        if "next" in router.registry:
            assert state(router) in expected
        else:
            assert state(router) == done
        # Whatever the handler did, the registry goes on working.
        next_write(router)
    assert refused > 0 or call in (READS["route"], READS["models_response"])


def test_a_write_waits_for_a_write_in_another_thread() -> None:
    router = started()
    begun, go_on = threading.Event(), threading.Event()

    def stop() -> None:
        if not begun.is_set():
            begun.set()
            assert go_on.wait(timeout=30)

    def write() -> None:
        with stopped_at_each_instruction(stop):
            router.registry.register(endpoint("c"))

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(write)
        assert begun.wait(timeout=30)
        second = pool.submit(router.registry.unregister, "a")
        go_on.set()
        first.result(timeout=30)
        assert second.result(timeout=30) is not None
    assert "c" in router.registry
    assert "a" not in router.registry


@pytest.mark.parametrize("call", ["register", "lease"])
def test_a_write_in_the_middle_of_a_write_is_refused_with_the_reason(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = started()
    refused: list[str] = []

    def interrupt() -> float:
        with pytest.raises(RuntimeError, match="signal handler or a finalizer") as caught:
            router.lease("b") if call == "lease" else next_write(router)
        refused.append(str(caught.value))
        return 1000.0

    # A registration asks for the time in the middle of the write.
    monkeypatch.setattr("time.time", interrupt)
    router.registry.register(endpoint("c"))
    assert len(refused) == 1
    assert "c" in router.registry


def test_a_lease_that_was_never_made_is_dropped_in_silence() -> None:
    lease = Lease.__new__(Lease)
    del lease


def test_the_next_write_carries_out_a_write_that_was_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    router = started()
    newer = endpoint("b", max_context_length=7)

    def stop(future: Future[object], result: object) -> None:
        raise CutShort

    monkeypatch.setattr(Future, "set_result", stop)
    with pytest.raises(CutShort):
        router.registry.swap(newer)
    monkeypatch.undo()
    next_write(router)
    assert router.registry.resolve("b") is newer
