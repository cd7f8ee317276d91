import asyncio
import copy
import gc
import pickle
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import pytest
from instructions import ROUNDS, interrupted_now_and_then, short_turns, stopped_at_each_instruction

from bonsai_routing import (
    ContextTooLongError,
    DrainingEndpoint,
    Lease,
    ModelEndpoint,
    ModelId,
    ModelListEntry,
    ModelNotFoundError,
    ModelNotReadyError,
    ModelRegistry,
    ModelRouter,
    NoModelsAvailableError,
)

A, B = ModelEndpoint("a", "weights"), ModelEndpoint("b", "weights", max_context_length=9999)
NEWER = A.with_description("newer")


@pytest.fixture
def router() -> ModelRouter:
    registry = ModelRegistry()
    registry.register(A.set_default())
    registry.register(B)
    registry.add_alias("x", "a")
    return ModelRouter(registry)


@pytest.fixture
def registry(router: ModelRouter) -> ModelRegistry:
    return router.registry


def test_a_lease_counts_from_its_start_to_the_end_of_the_block(router: ModelRouter, registry: ModelRegistry) -> None:
    with router.lease("x") as lease:
        assert lease.endpoint is registry.resolve("a")
        assert lease.requested == "x"
        assert lease.generation == registry.generation("a")
        assert registry.in_flight("a") == 1
        with router.lease("a"):
            assert registry.in_flight(ModelId("a")) == 2
        assert registry.in_flight("a") == 1
    assert registry.in_flight("a") == 0


def test_a_lease_ends_when_the_block_raises(router: ModelRouter, registry: ModelRegistry) -> None:
    with pytest.raises(KeyError), router.lease("a"):
        raise KeyError
    assert registry.in_flight("a") == 0


def test_a_lease_routes_as_requests_are_routed(router: ModelRouter) -> None:
    with router.lease() as default, router.lease(None, 9999) as large, router.lease("a", 4096) as fits:
        assert [str(lease.endpoint.id) for lease in (default, large, fits)] == ["a", "b", "a"]
        assert default.requested is None


def test_what_cannot_be_routed_is_not_leased(router: ModelRouter, registry: ModelRegistry) -> None:
    registry.set_status("b", "loading")
    for error, requested, tokens in (
        (ModelNotFoundError, "gone", None),
        (ModelNotReadyError, "b", 1),
        (ContextTooLongError, "a", 4097),
        (TypeError, 1, None),
        (TypeError, "a", True),
    ):
        with pytest.raises(error):
            router.lease(requested, tokens)  # type: ignore[arg-type]
    with pytest.raises(NoModelsAvailableError):
        ModelRouter(ModelRegistry()).lease()
    assert registry.in_flight("a") == registry.in_flight("b") == 0


def test_releasing_twice_is_harmless(router: ModelRouter, registry: ModelRegistry) -> None:
    first, second = router.lease("a"), router.lease("a")
    first.release()
    first.release()
    assert registry.in_flight("a") == 1
    with second:
        second.release()
    assert registry.in_flight("a") == 0


def test_a_lease_may_be_released_in_another_thread(router: ModelRouter, registry: ModelRegistry) -> None:
    lease = router.lease("a")
    with ThreadPoolExecutor() as pool:
        pool.submit(lease.release).result()
    assert registry.in_flight("a") == 0


def lease_and_forget(router: ModelRouter) -> None:
    router.lease("x")
    gc.collect()


def test_a_dropped_lease_is_released_and_its_model_is_named(router: ModelRouter, registry: ModelRegistry) -> None:
    with pytest.warns(ResourceWarning, match="a lease of 'a' was dropped without being released"):
        lease_and_forget(router)
    assert registry.in_flight("a") == 0


def test_a_dropped_lease_completes_the_wait_for_it(router: ModelRouter, registry: ModelRegistry) -> None:
    leases = [router.lease("a")]
    future = registry.retire("a")
    with pytest.warns(ResourceWarning):
        leases.clear()
    assert future.done()


def test_a_released_lease_is_dropped_in_silence(router: ModelRouter) -> None:
    lease = router.lease("a")
    lease.release()
    del lease
    gc.collect()


def test_a_lease_is_shown_with_its_state(router: ModelRouter) -> None:
    with router.lease("a") as lease:
        assert repr(lease) == "<Lease of 'a' generation=1 held>"
    assert repr(lease) == "<Lease of 'a' generation=1 released>"


def test_a_lease_cannot_be_copied(router: ModelRouter) -> None:
    with router.lease("a") as lease:
        for copied in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="a Lease cannot be copied or pickled"):
                copied(lease)


def test_each_publication_has_a_generation_of_its_own(registry: ModelRegistry) -> None:
    seen = {registry.generation("a"), registry.generation("b")}
    publishers: list[Callable[[], object]] = [
        lambda: registry.register(A),
        lambda: registry.register(A),
        lambda: registry.swap(A),
        lambda: [registry.retire("a"), registry.swap(A)],
        lambda: [registry.replace_with(ModelRegistry()), registry.swap(A)],
    ]
    for publish in publishers:
        publish()
        generation = registry.generation("a")
        assert generation not in seen
        seen.add(generation)


def test_a_status_and_an_alias_keep_the_generation(registry: ModelRegistry) -> None:
    generation = registry.generation("a")
    registry.set_status("a", "loading")
    registry.add_alias("y", "a")
    registry.set_status("a", "ready")
    assert registry.generation("a") == generation


@pytest.mark.parametrize(
    "lead_elsewhere",
    [
        lambda registry: registry.add_alias("x", "b"),
        lambda registry: registry.register(ModelEndpoint("x", "weights")),
        lambda registry: registry.register(B.set_default()),
    ],
    ids=["alias led elsewhere", "alias hidden", "default moved"],
)
def test_what_a_name_was_led_away_from_is_still_itself(
    router: ModelRouter, lead_elsewhere: Callable[[ModelRegistry], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = router.registry
    monkeypatch.setattr("time.time", lambda: 1000.0)
    registry.register(A.set_default())
    registry.add_alias("y", "a")
    generation = registry.generation("a")
    lease = router.lease("a")
    monkeypatch.setattr("time.time", lambda: 2000.0)
    lead_elsewhere(registry)
    for status in ("error", "ready"):
        registry.set_status("a", status)
    assert registry.generation("a") == generation
    assert registry.in_flight("a") == 1
    assert router.models_list()[0] == ModelListEntry("a", "model", "oxibonsai", 1000)
    assert registry.resolve("y") is registry.resolve("a")
    retired = registry.retire("a")
    assert registry.resolve("y") is None
    assert not retired.done()
    lease.release()
    assert retired.result(timeout=0) == A.set_default()


def test_what_is_not_registered_has_no_generation_and_no_leases(registry: ModelRegistry) -> None:
    registry.add_alias("dangling", "gone")
    for name in ("x", "gone", "dangling"):
        assert registry.generation(name) is None
        assert registry.in_flight(name) == 0
    with pytest.raises(TypeError, match="id must be a str or a ModelId, not None"):
        registry.in_flight(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="id must be a str or a ModelId, not None"):
        registry.generation(None)  # type: ignore[arg-type]


def test_swapping_what_is_idle_completes_at_once(registry: ModelRegistry) -> None:
    old = registry.resolve("a")
    assert registry.swap(NEWER).result(timeout=0) is old
    assert registry.resolve("x") is NEWER
    assert registry.default_endpoint() is NEWER


def test_swapping_in_something_new_completes_with_none(registry: ModelRegistry) -> None:
    assert registry.swap(ModelEndpoint("c", "weights")).result(timeout=0) is None
    assert "c" in registry


def test_retiring_removes_at_once_and_completes_with_what_was_there(registry: ModelRegistry) -> None:
    old = registry.resolve("a")
    assert registry.retire(ModelId("a")).result(timeout=0) is old
    assert registry.resolve("x") is registry.default_endpoint() is None
    assert registry.retire("a").result(timeout=0) is None


def test_swap_and_retire_check_their_arguments(registry: ModelRegistry) -> None:
    with pytest.raises(TypeError, match="endpoint must be a ModelEndpoint, not 'a'"):
        registry.swap("a")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="id must be a str or a ModelId, not None"):
        registry.retire(None)  # type: ignore[arg-type]


def test_the_future_waits_for_the_last_lease_of_the_old_endpoint(router: ModelRouter, registry: ModelRegistry) -> None:
    first, second = router.lease("a"), router.lease("x")
    future = registry.swap(NEWER)
    with router.lease("a") as newer:
        assert newer.endpoint is NEWER
        assert registry.in_flight("a") == 1
        first.release()
        assert not future.done()
        second.release()
        assert future.result(timeout=0) is second.endpoint
        assert registry.in_flight("a") == 1


def test_each_generation_is_waited_for_by_itself(router: ModelRouter, registry: ModelRegistry) -> None:
    first = router.lease("a")
    first_gone = registry.swap(NEWER)
    second = router.lease("a")
    second_gone = registry.retire("a")
    second.release()
    assert (first_gone.done(), second_gone.done()) == (False, True)
    first.release()
    assert first_gone.done()


@pytest.mark.parametrize(
    "write",
    [
        lambda registry: registry.register(NEWER),
        lambda registry: registry.unregister("a"),
        lambda registry: registry.set_status("a", "error"),
        lambda registry: registry.replace_with(ModelRegistry()),
    ],
)
def test_whatever_happens_to_the_endpoint_its_lease_stays_valid(
    router: ModelRouter, registry: ModelRegistry, write: Callable[[ModelRegistry], object]
) -> None:
    with router.lease("a") as lease:
        before = lease.endpoint
        write(registry)
        assert lease.endpoint is before
    assert registry.draining() == []


def test_what_drains_is_listed_until_its_last_lease_ends(router: ModelRouter, registry: ModelRegistry) -> None:
    first, second, other = router.lease("a"), router.lease("a"), router.lease("b")
    assert registry.draining() == []
    registry.register(NEWER)
    registry.unregister("b")
    before = time.monotonic()
    a, b = registry.draining()
    assert a == DrainingEndpoint(first.endpoint, first.generation, 2, a.seconds)
    assert b == DrainingEndpoint(other.endpoint, other.generation, 1, b.seconds)
    assert 0 <= b.seconds <= a.seconds < 60
    first.release()
    other.release()
    (a,) = registry.draining()
    assert (a.generation, a.leases) == (second.generation, 1)
    assert a.seconds >= time.monotonic() - before - 1
    second.release()
    assert registry.draining() == []


def test_replacing_everything_lets_what_changed_drain_and_keeps_the_rest(
    router: ModelRouter, registry: ModelRegistry
) -> None:
    other = ModelRegistry()
    other.register(NEWER)
    other.register(B)
    with router.lease("a") as changed, router.lease("b") as kept:
        registry.replace_with(other)
        assert [draining.generation for draining in registry.draining()] == [changed.generation]
        assert registry.generation("b") == kept.generation
        assert registry.in_flight("b") == 1
        future = registry.retire("b")
        assert not future.done()
    assert future.done()
    assert other.in_flight("a") == other.in_flight("b") == 0


def test_a_copy_of_a_registry_has_no_leases(router: ModelRouter, registry: ModelRegistry) -> None:
    with router.lease("a"):
        twin = copy.deepcopy(registry)
        assert twin.in_flight("a") == 0
        assert twin.retire("a").done()
        assert registry.in_flight("a") == 1


def test_a_future_cannot_be_cancelled(router: ModelRouter, registry: ModelRegistry) -> None:
    called: list[object] = []
    with router.lease("a"):
        futures = [registry.swap(NEWER), registry.retire("b"), registry.retire("gone")]
        for future in futures:
            future.add_done_callback(called.append)
            assert not future.cancel()
            assert not future.cancelled()
        assert called == futures[1:]
    assert called == [*futures[1:], futures[0]]


def test_a_timeout_of_asyncio_runs_no_callback(router: ModelRouter, registry: ModelRegistry) -> None:
    freed: list[object] = []

    async def scenario() -> None:
        with router.lease("a"):
            gone = registry.retire("a")
            gone.add_done_callback(freed.append)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.wrap_future(gone), timeout=0.001)
            assert not gone.done()
            assert freed == []
            assert len(registry.draining()) == 1
        assert freed == [gone]
        assert await asyncio.wait_for(asyncio.wrap_future(gone), timeout=30) == A.set_default()

    asyncio.run(scenario())


def test_callbacks_may_use_the_registry(router: ModelRouter, registry: ModelRegistry) -> None:
    # Were any lock held, the callback would wait for itself.
    lease = router.lease("a")
    seen: list[object] = []

    def call_back(future: Future[ModelEndpoint | None]) -> None:
        registry.register(ModelEndpoint("c", "weights"))
        with router.lease("c"):
            seen.append(future.result())

    registry.swap(NEWER).add_done_callback(call_back)
    lease.release()
    assert seen == [lease.endpoint]


def test_a_callback_that_raises_hurts_nobody_else(
    router: ModelRouter, registry: ModelRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    lease, other = router.lease("a"), router.lease("b")
    first, second = registry.retire("a"), registry.retire("b")
    first.add_done_callback(lambda _: 1 / 0)
    lease.release()
    other.release()
    assert first.done()
    assert second.done()
    assert "ZeroDivisionError" in caplog.text


def test_a_callback_that_stops_the_program_stops_it_after_the_others_were_told(
    router: ModelRouter, registry: ModelRegistry
) -> None:
    lease, other = router.lease("a"), router.lease("b")
    first, second = registry.retire("a"), registry.retire("b")

    def stop(future: Future[ModelEndpoint | None]) -> None:
        other.release()
        sys.exit("stopped")

    first.add_done_callback(stop)
    with pytest.raises(SystemExit, match="stopped"):
        lease.release()
    assert first.done()
    assert second.done()


def test_a_chain_of_ten_thousand_callbacks_ends(router: ModelRouter, registry: ModelRegistry) -> None:
    # Each future's callback ends the lease that the next future waits for.
    leases: list[Lease] = []
    futures: list[Future[ModelEndpoint | None]] = []
    for _ in range(10_000):
        leases.append(router.lease("a"))
        futures.append(registry.swap(A))
    for future, lease in zip(futures, leases[1:]):
        future.add_done_callback(lambda _, lease=lease: lease.release())  # type: ignore[misc]
    leases[0].release()
    assert all(future.done() for future in futures)
    assert registry.draining() == []


def test_a_chain_over_two_registries_ends() -> None:
    routers = [ModelRouter(ModelRegistry()) for _ in range(2)]
    for each in routers:
        each.registry.register(A)
    leases = [routers[turn % 2].lease("a") for turn in range(2000)]
    futures = [each.registry.retire("a") for each in routers]

    # The last lease of the second registry ends in a callback of the first, and so on.
    def release_the_others(future: Future[ModelEndpoint | None]) -> None:
        for lease in leases[1::2]:
            lease.release()

    futures[0].add_done_callback(release_the_others)
    for lease in leases[::2]:
        lease.release()
    assert all(future.done() for future in futures)


@pytest.mark.parametrize("retire_within", [False, True])
def test_a_callback_may_retire_and_wait_for_what_is_not_leased(
    router: ModelRouter, registry: ModelRegistry, retire_within: bool
) -> None:
    lease = router.lease("a")
    with router.lease("b"):
        pass
    seen: list[object] = []

    def call_back(future: Future[ModelEndpoint | None]) -> None:
        seen.append(registry.retire("b").result(timeout=0) if retire_within else registry.swap(B).result(timeout=0))

    registry.retire("a").add_done_callback(call_back)
    lease.release()
    assert seen == [B]


def test_near_the_recursion_limit_no_future_is_lost(router: ModelRouter, registry: ModelRegistry) -> None:
    leases: list[Lease] = []
    futures: list[Future[ModelEndpoint | None]] = []
    freed: list[object] = []
    for _ in range(300):
        leases.append(router.lease("a"))
        futures.append(registry.swap(A))
        futures[-1].add_done_callback(freed.append)
    left = iter(leases)
    stopped = 0

    def dive() -> None:
        nonlocal stopped
        with suppress(RecursionError):
            dive()
        # On the way back, each level ends a lease with one more call of room than the level before.
        lease = next(left, None)
        if lease is not None:
            try:
                lease.release()
            except RecursionError:
                stopped += 1

    dive()
    assert stopped > 0
    for lease in leases:
        lease.release()
    assert all(future.done() for future in futures)
    assert len(freed) == len(futures)
    assert registry.draining() == []


def test_a_lease_may_be_released_in_the_middle_of_every_call(router: ModelRouter, registry: ModelRegistry) -> None:
    # As a finalizer or a signal handler in the same thread would do.
    calls: list[Callable[[], object]] = [
        lambda: registry.register(NEWER),
        lambda: registry.unregister("b"),
        lambda: registry.add_alias("y", "b"),
        lambda: registry.remove_alias("x"),
        lambda: registry.set_default(None),
        lambda: registry.set_status("a", "error"),
        lambda: registry.in_flight("a"),
        lambda: registry.draining(),
        lambda: registry.replace_with(registry),
        lambda: router.lease("a").release(),
    ]
    for call in calls:
        for place in range(10_000):
            for endpoint in (A.set_default(), B):
                registry.register(endpoint)
            lease, other = router.lease("a"), router.lease("b")
            gone = registry.swap(A.set_default())
            countdown = iter(range(place, -1, -1))

            def release(lease: Lease = lease, countdown: Iterator[int] = countdown) -> None:
                if next(countdown, None) == 0:
                    lease.release()

            with stopped_at_each_instruction(release):
                call()
            reached = next(countdown, None) is None
            lease.release()
            assert gone.done()
            other.release()
            assert registry.draining() == []
            assert registry.in_flight("a") == registry.in_flight("b") == 0
            if not reached:
                break


@pytest.mark.parametrize(
    "write",
    [
        lambda router: router.registry.register(B),
        lambda router: router.registry.unregister("gone"),
        lambda router: router.registry.add_alias("y", "b"),
        lambda router: router.registry.set_status("b", "ready"),
        lambda router: router.registry.in_flight("b"),
        lambda router: router.registry.draining(),
        lambda router: router.registry.replace_with(router.registry),
        lambda router: router.lease("b").release(),
    ],
    ids=["register", "unregister", "add_alias", "set_status", "in_flight", "draining", "replace_with", "lease"],
)
def test_a_release_that_another_thread_comes_into_completes_the_future(write: Callable[[ModelRouter], object]) -> None:
    with ThreadPoolExecutor(1) as pool:
        for place in range(1000):
            router = ModelRouter(ModelRegistry())
            for endpoint in (A, B):
                router.registry.register(endpoint)
            lease = router.lease("a")
            future = router.registry.retire("a")
            countdown = iter(range(place, -1, -1))

            def interrupt(router: ModelRouter = router, countdown: Iterator[int] = countdown) -> None:
                if next(countdown, None) == 0:
                    pool.submit(write, router).result(timeout=30)

            with stopped_at_each_instruction(interrupt):
                lease.release()
            assert future.done()
            if next(countdown, None) is not None:
                break


def test_a_release_beside_a_write_never_loses_the_future(router: ModelRouter, registry: ModelRegistry) -> None:
    # The last lease ends while another thread, stopped at one of its instructions, retires the endpoint.
    with ThreadPoolExecutor(1) as pool:
        for place in range(10_000):
            registry.register(A)
            lease = router.lease("a")
            countdown = iter(range(place, -1, -1))

            def release(lease: Lease = lease, countdown: Iterator[int] = countdown) -> None:
                if next(countdown, None) == 0:
                    pool.submit(lease.release).result(timeout=30)

            with stopped_at_each_instruction(release):
                gone = registry.retire("a")
            reached = next(countdown, None) is None
            lease.release()
            assert gone.result(timeout=0) is lease.endpoint
            if not reached:
                break


def test_a_lease_is_found_and_counted_in_one_step(router: ModelRouter, registry: ModelRegistry) -> None:
    # Wherever leasing is stopped, a retirement either comes first, and nothing is leased, or waits for the lease.
    with ThreadPoolExecutor(1) as pool:
        for place in range(10_000):
            registry.register(A)
            future = None
            countdown = iter(range(place, -1, -1))

            def retire(countdown: Iterator[int] = countdown) -> None:
                nonlocal future
                if next(countdown, None) == 0:
                    future = pool.submit(registry.retire, "a")
                    # Let the other thread come as far as it can: to its end, or to the lock that leasing holds.
                    for _ in range(50):
                        if future.done():
                            break
                        time.sleep(0)

            try:
                with stopped_at_each_instruction(retire):
                    lease = router.lease("a")
            except ModelNotFoundError:
                continue
            if future is None:
                lease.release()
                assert place > 50
                break
            gone = future.result(timeout=30)
            assert not gone.done()
            lease.release()
            assert gone.result(timeout=30) is lease.endpoint


def test_asyncio_waits_for_the_last_lease(router: ModelRouter, registry: ModelRegistry) -> None:
    async def serve(started: asyncio.Event, stop: asyncio.Event) -> None:
        with router.lease("a"):
            started.set()
            await stop.wait()

    async def scenario() -> None:
        started, stop = asyncio.Event(), asyncio.Event()
        request = asyncio.create_task(serve(started, stop))
        await started.wait()
        gone = asyncio.wrap_future(registry.retire("a"))
        await asyncio.sleep(0)
        assert not gone.done()
        stop.set()
        old = await asyncio.wait_for(gone, timeout=30)
        assert old is not None
        assert old.id == ModelId("a")
        await request

    asyncio.run(scenario())


def test_a_thread_waits_for_the_last_lease(router: ModelRouter, registry: ModelRegistry) -> None:
    lease = router.lease("a")
    future = registry.swap(NEWER)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(future.result, 30)
        lease.release()
        assert waiting.result(timeout=30) is lease.endpoint


class Oracle:
    """Who leases what, and who waits, as plain as lists."""

    def __init__(self) -> None:
        # Endpoint and identity of its publication, by id.
        self.published: dict[str, tuple[ModelEndpoint, object]] = {}
        self.leases: list[tuple[Lease, object]] = []
        self.generations: dict[int, object] = {}
        self.waits: list[tuple[Future[ModelEndpoint | None], ModelEndpoint | None, object]] = []

    def leave(self, id: str, future: Future[ModelEndpoint | None] | None) -> None:
        endpoint, publication = self.published.pop(id, (None, None))
        if future is not None:
            self.waits.append((future, endpoint, publication))

    def leased(self, publication: object) -> int:
        return sum(each is publication for _, each in self.leases)

    def draining(self) -> list[int]:
        """Return the numbers of leases on what is not published any more."""
        present = [publication for _, publication in self.published.values()]
        gone = {publication: self.leased(publication) for _, publication in self.leases if publication not in present}
        return sorted(gone.values())

    def check(self, registry: ModelRegistry) -> None:
        assert {str(endpoint.id): endpoint for endpoint in registry} == {
            id: endpoint for id, (endpoint, _) in self.published.items()
        }
        for id, (_, publication) in self.published.items():
            assert registry.in_flight(id) == self.leased(publication)
        for future, endpoint, publication in self.waits:
            assert future.done() == (not self.leased(publication))
            assert not future.done() or future.result() is endpoint
        assert sorted(each.leases for each in registry.draining()) == self.draining()


def step(chance: random.Random, router: ModelRouter, oracle: Oracle, turn: int) -> None:
    """Call something at random, and tell the oracle."""
    registry = router.registry
    id = chance.choice("abc")
    endpoint = ModelEndpoint(id, "weights", description=str(turn))
    match chance.randrange(9):
        case 0:
            registry.register(endpoint)
            oracle.leave(id, None)
            oracle.published[id] = endpoint, object()
        case 1:
            oracle.leave(id, registry.swap(endpoint))
            oracle.published[id] = endpoint, object()
        case 2:
            registry.unregister(id)
            oracle.leave(id, None)
        case 3:
            oracle.leave(id, registry.retire(id))
        case 4:
            # Takes over one endpoint, and leaves one as it is.
            aside = ModelRegistry()
            kept = registry.resolve(chance.choice("abc"))
            published = {}
            for each in [endpoint] if kept is None or str(kept.id) == id else [kept, endpoint]:
                aside.register(each)
                published[str(each.id)] = each, object() if each is endpoint else oracle.published[str(each.id)][1]
            registry.replace_with(aside)
            oracle.published = published
        case 5 | 6 | 7:
            if id in oracle.published:
                lease = router.lease(id)
                publication = oracle.published[id][1]
                assert oracle.generations.setdefault(lease.generation, publication) is publication
                oracle.leases.append((lease, publication))
        case _:
            for _ in range(min(3, len(oracle.leases))):
                oracle.leases.pop(chance.randrange(len(oracle.leases)))[0].release()
    oracle.check(registry)


def assert_all_ends_well(registry: ModelRegistry, oracle: Oracle) -> None:
    for lease, _ in oracle.leases:
        lease.release()
    assert all(future.done() for future, _, _ in oracle.waits)
    assert registry.draining() == []


@pytest.mark.parametrize("seed", range(20))
def test_leases_and_futures_do_what_the_oracle_says(seed: int) -> None:
    chance = random.Random(seed)
    router, oracle = ModelRouter(ModelRegistry()), Oracle()
    for turn in range(300):
        step(chance, router, oracle, turn)
    assert_all_ends_well(router.registry, oracle)


@pytest.mark.parametrize("seed", range(5))
def test_tasks_of_asyncio_take_turns_and_all_that_wait_are_told(seed: int) -> None:
    router, oracle = ModelRouter(ModelRegistry()), Oracle()
    told: list[ModelEndpoint | None] = []

    async def walk(place: int) -> None:
        chance = random.Random(f"{seed} {place}")
        for turn in range(60):
            step(chance, router, oracle, 1000 * place + turn)
            if chance.random() < 0.5:
                await asyncio.sleep(0)

    async def wait(future: Future[ModelEndpoint | None]) -> None:
        told.append(await asyncio.wrap_future(future))

    async def scenario() -> None:
        await asyncio.gather(*(walk(place) for place in range(5)))
        waiting = [asyncio.create_task(wait(future)) for future, _, _ in oracle.waits]
        await asyncio.sleep(0)
        assert_all_ends_well(router.registry, oracle)
        await asyncio.wait_for(asyncio.gather(*waiting), timeout=30)

    asyncio.run(scenario())
    assert len(told) == len(oracle.waits) > 0


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_when_leases_and_swaps_race(seed: int) -> None:
    router = ModelRouter(ModelRegistry())
    registry = router.registry
    barrier = threading.Barrier(6)
    alive: dict[int, int] = {}
    taken, released, early = [0] * 4, [0] * 4, []
    futures: list[tuple[Future[ModelEndpoint | None], int]] = []
    registry.register(ModelEndpoint("a", "weights", description="0"))
    done = threading.Event()
    lock = threading.Lock()

    def serve(place: int, chance: random.Random) -> None:
        barrier.wait()
        held: list[Lease] = []
        while not done.is_set():
            try:
                lease = router.lease("a")
            except ModelNotFoundError:
                continue
            number = int(lease.endpoint.description)
            with lock:
                alive[number] = alive.get(number, 0) + 1
            taken[place] += 1
            held.append(lease)
            while held and (len(held) > 5 or chance.random() < 0.5):
                give_back(place, held.pop(chance.randrange(len(held))))
        for lease in held:
            give_back(place, lease)

    def give_back(place: int, lease: Lease) -> None:
        with lock:
            alive[int(lease.endpoint.description)] -= 1
        released[place] += 1
        lease.release()

    def told(future: Future[ModelEndpoint | None]) -> None:
        endpoint = future.result()
        if endpoint is not None:
            with lock:
                if alive.get(int(endpoint.description)):
                    early.append(endpoint)

    def swap(writer: int) -> None:
        barrier.wait()
        for turn in range(1, 150 * ROUNDS):
            number = 2 * turn + writer
            endpoint = ModelEndpoint("a", "weights", description=str(number))
            future = registry.retire("a") if turn % 10 == 0 else registry.swap(endpoint)
            future.add_done_callback(told)
            futures.append((future, number))

    def interrupted(task: Callable[[], None], place: int) -> None:
        with interrupted_now_and_then(seed=place):
            task()

    threads = [
        threading.Thread(target=interrupted, args=(partial(serve, place, random.Random(f"{seed} {place}")), place))
        for place in range(4)
    ]
    writers = [threading.Thread(target=interrupted, args=(partial(swap, writer), writer)) for writer in range(2)]
    with short_turns():
        for thread in threads + writers:
            thread.start()
        for thread in writers:
            thread.join()
        done.set()
        for thread in threads:
            thread.join()

    assert early == []
    assert all(future.done() for future, _ in futures)
    assert taken == released
    assert sum(taken) > 0
    assert registry.in_flight("a") == 0
    assert registry.draining() == []
