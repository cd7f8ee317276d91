"""Models that are loaded when they are requested: who waits, who goes, and what is told to whom."""

import asyncio
import copy
import gc
import logging
import math
import pickle
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import pytest
from engine_helpers import Engine, Weights, loader_of, models_loading

from bonsai_routing import (
    AdapterRegistry,
    ContextTooLongError,
    EndpointStatus,
    LoadingLease,
    LoraAdapter,
    ModelEndpoint,
    ModelLoader,
    ModelNotFoundError,
    ModelNotReadyError,
    ModelRegistry,
    ModelRouter,
    NoModelsAvailableError,
    Publication,
    RoutingConfig,
    RoutingError,
    StaleGenerationError,
)

LOADING, READY, ERROR, DISABLED = (
    EndpointStatus.LOADING,
    EndpointStatus.READY,
    EndpointStatus.ERROR,
    EndpointStatus.DISABLED,
)
CODE, MATH = (LoraAdapter(name, "bonsai", f"adapters/{name}") for name in ("code", "math"))


def done(result: object = None) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_result(result)
    return future


def failure(lease: LoadingLease) -> BaseException:
    """Return what waiting for a lease fails with. It must have failed already."""
    assert lease.loaded.done()
    error = lease.loaded.exception()
    assert error is not None
    return error


def ids(endpoints: list[ModelEndpoint]) -> list[str]:
    return [str(endpoint.id) for endpoint in endpoints]


def status(models: ModelRegistry, id: str) -> EndpointStatus:
    endpoint = models.resolve(id)
    assert endpoint is not None
    return endpoint.status


def load_all(loader: ModelLoader, engine: Engine, *names: str) -> None:
    """Have models loaded, one after another, and leave them idle."""
    for name in names:
        with loader.lease(name) as lease:
            engine.finish(f"load {lease.endpoint.id}")
            assert lease.loaded.done()


# 1: who waits is a user already


def test_a_lease_counts_before_its_model_is_loaded() -> None:
    models, engine = models_loading("a"), Engine()
    loader = loader_of(models, engine)
    with loader.lease("a") as lease:
        assert models.in_flight("a") == 1
        assert (lease.loaded.done(), lease.handle, lease.endpoint.status) == (False, None, LOADING)
        engine.finish("load a")
        assert lease.loaded.result(timeout=0) is None
        assert isinstance(lease.handle, Weights)
        assert lease.endpoint == ModelEndpoint("a", "weights")
        assert (lease.generation, lease.requested) == (models.generation("a"), "a")
    assert models.in_flight("a") == 0
    assert ids(loader.loaded()) == ["a"]


def test_waiting_again_after_a_timeout_is_fine_and_release_alone_ends_the_use() -> None:
    models, engine = models_loading("a"), Engine()
    loader = loader_of(models, engine)
    lease = loader.lease("a")
    with pytest.raises(TimeoutError):
        lease.loaded.result(timeout=0)
    assert not lease.loaded.cancel()
    assert models.in_flight("a") == 1
    lease.release()
    lease.release()
    assert models.in_flight("a") == 0
    engine.finish("load a")
    assert lease.loaded.result(timeout=0) is None


def test_an_asyncio_task_that_gives_up_does_not_disturb_the_others() -> None:
    models, engine = models_loading("a"), Engine()
    loader = loader_of(models, engine)

    async def use(seconds: float | None) -> object:
        with loader.lease("a") as lease:
            await asyncio.wait_for(asyncio.wrap_future(lease.loaded), seconds)
            return lease.handle

    async def main() -> object:
        patient = asyncio.create_task(use(None))
        with pytest.raises(TimeoutError):
            await use(0.001)
        cancelled = asyncio.create_task(use(None))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert models.in_flight("a") == 1
        engine.finish("load a")
        return await patient

    assert isinstance(asyncio.run(main()), Weights)
    assert models.in_flight("a") == 0
    assert engine.calls == ["load a"]


def test_nothing_is_evicted_between_loaded_and_used() -> None:
    models, engine = models_loading("a", "b"), Engine(capacity=1)
    loader = loader_of(models, engine)
    first, second = loader.lease("a"), loader.lease("b")
    engine.finish("load a")
    assert first.loaded.done()
    assert engine.calls == ["load a"]
    assert isinstance(first.handle, Weights)
    assert not first.handle.is_freed
    first.release()
    assert engine.calls == ["load a", "unload a"]
    engine.finish("unload a", "load b")
    assert second.loaded.done()
    second.release()


def test_a_lease_that_is_dropped_is_released_and_waits_no_longer() -> None:
    models, engine = models_loading("a", "b"), Engine(capacity=1)
    loader = loader_of(models, engine)
    load_all(loader, engine, "a")
    busy = loader.lease("a")
    dropped = loader.lease("b")
    loaded = dropped.loaded
    with pytest.warns(ResourceWarning):
        del dropped
        gc.collect()
    assert loaded.done()
    busy.release()
    assert "load b" not in engine.calls


# 2: no lock, no threads


def test_loading_and_unloading_hold_no_lock() -> None:
    models = models_loading("a", "b")

    def elsewhere(work: Callable[[], object]) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(work).result(timeout=30)

    def load(endpoint: ModelEndpoint, adapter: LoraAdapter | None) -> "Future[Any]":
        elsewhere(lambda: models.register(ModelEndpoint(f"{endpoint.id}-seen", "weights")))
        models.add_alias(f"alias of {endpoint.id}", str(endpoint.id))
        return done(endpoint.id)

    def unload(publication: Publication) -> "Future[Any]":
        elsewhere(lambda: models.register(ModelEndpoint(f"{publication.endpoint.id}-gone", "weights")))
        return done()

    loader = ModelLoader(ModelRouter(models), load, unload, capacity=1)
    threads = threading.active_count()
    for name in ("a", "b"):
        with loader.lease(name) as lease:
            assert lease.loaded.result(timeout=0) is None
            assert lease.handle == name
    assert {"a-seen", "a-gone", "b-seen", "alias of b"} <= {*ids(models.all_endpoints()), *models.aliases()}
    assert threading.active_count() == threads


def test_an_engine_that_ends_at_once_needs_no_deeper_stack_for_a_longer_chain() -> None:
    models = models_loading("a", "b")
    engine = Engine(capacity=1)
    loader = loader_of(models, engine)
    left = 10_000

    def go_on(previous: LoadingLease) -> None:
        nonlocal left
        previous.release()
        left -= 1
        if left:
            lease = loader.lease("ab"[left % 2])
            lease.loaded.add_done_callback(lambda _: go_on(lease))

    first = loader.lease("a")
    first.loaded.add_done_callback(lambda _: go_on(first))
    engine.at_once = True
    engine.finish("load a")
    loader.close().result(timeout=0)
    assert left == 0
    assert engine.calls.count("load a") == engine.calls.count("unload a") == 5_000
    assert not engine.faults


# 3: loading is the status of what is not loaded, and ready pins


def test_whoever_uses_no_loader_sees_a_model_that_is_loading() -> None:
    models, engine = models_loading("a"), Engine()
    loader = loader_of(models, engine)
    router = ModelRouter(models)
    with pytest.raises(ModelNotReadyError):
        router.route("a")
    assert not engine.calls
    load_all(loader, engine, "a")
    with router.lease("a") as lease:
        assert isinstance(lease.handle, Weights)
        assert loader.unload_idle(0) == 0
    assert loader.unload_idle(0) == 1
    with pytest.raises(ModelNotReadyError) as caught:
        router.route("a")
    assert caught.value.status == LOADING


def test_a_model_that_is_ready_is_pinned() -> None:
    models, engine = models_loading("a", "b"), Engine(capacity=1)
    pinned = Weights("pinned", 0)
    models.register(ModelEndpoint("pinned", "weights"), handle=pinned)
    loader = loader_of(models, engine)
    with loader.lease("pinned") as lease:
        assert lease.loaded.done()
        assert lease.handle is pinned
    load_all(loader, engine, "a")
    with loader.lease("b"):
        engine.finish("unload a", "load b")
    assert loader.unload_idle(0) == 1
    engine.finish("unload b")
    loader.close().result(timeout=0)
    assert status(models, "pinned") == READY
    assert "unload pinned" not in engine.calls


def test_what_the_loader_does_not_manage_is_not_loaded() -> None:
    models, engine = models_loading("a", "b"), Engine()
    asked: list[str] = []

    def manages(endpoint: ModelEndpoint) -> bool:
        asked.append(str(endpoint.id))
        return endpoint.id == "a"

    loader = loader_of(models, engine, manages=manages)
    load_all(loader, engine, "a")
    for _ in range(2):
        with pytest.raises(ModelNotReadyError):
            loader.lease("b")
    assert asked == ["a", "b"]


def test_two_loaders_of_one_registry_keep_to_their_own() -> None:
    models = models_loading("a1", "a2", "b1", "b2")
    first, second = Engine(capacity=1), Engine(capacity=1)
    one = loader_of(models, first, manages=lambda endpoint: str(endpoint.id).startswith("a"))
    two = loader_of(models, second, manages=lambda endpoint: str(endpoint.id).startswith("b"))
    load_all(one, first, "a1")
    load_all(two, second, "b1")
    with pytest.raises(ModelNotReadyError):
        one.lease("b2")
    with one.lease("b1") as lease:
        assert lease.loaded.done()
    with one.lease("a2"), two.lease("b2"):
        assert (first.calls, second.calls) == (["load a1", "unload a1"], ["load b1", "unload b1"])


@pytest.mark.parametrize("new", [ERROR, DISABLED])
def test_a_status_that_the_server_sets_goes_before(new: EndpointStatus) -> None:
    models, engine = models_loading("a"), Engine()
    loader = loader_of(models, engine, retry_after=0)
    load_all(loader, engine, "a")
    models.set_status("a", new, reason="maintenance")
    with pytest.raises(ModelNotReadyError, match=str(new)):
        loader.lease("a")
    models.set_status("a", READY)
    with loader.lease("a") as lease:
        assert lease.loaded.done()
        assert isinstance(lease.handle, Weights)
    assert engine.calls == ["load a"]


def test_loading_gives_a_model_back_to_the_loader() -> None:
    models, engine = models_loading("a"), Engine()
    loader = loader_of(models, engine)
    load_all(loader, engine, "a")
    for expected in (["load a"], ["load a", "unload a", "load a"]):
        models.set_status("a", DISABLED)
        if len(expected) > 1:
            loader.unload_idle(0)
            engine.finish("unload a")
            assert status(models, "a") == DISABLED
        models.set_status("a", LOADING)
        with loader.lease("a") as lease:
            if not lease.loaded.done():
                engine.finish("load a")
            assert isinstance(lease.handle, Weights)
            assert not lease.handle.is_freed
        assert engine.calls == expected


@pytest.mark.parametrize("new", [ERROR, DISABLED])
def test_eviction_keeps_the_status_that_the_server_has_set(new: EndpointStatus) -> None:
    models, engine = models_loading("a", "b"), Engine(capacity=1, at_once=True)
    loader = loader_of(models, engine, retry_after=0)
    with loader.lease("a"):
        pass
    models.set_status("a", new, reason="maintenance")
    with loader.lease("b"), pytest.raises(ModelNotReadyError) as caught:
        loader.lease("a")
    assert (caught.value.status, caught.value.reason) == (new, "maintenance")
    assert engine.calls == ["load a", "unload a", "load b"]


def test_an_error_of_the_servers_is_no_failed_load() -> None:
    models, engine = models_loading("a"), Engine()
    loader = loader_of(models, engine, retry_after=0)
    with loader.lease("a"):
        engine.fail("a")
    load_all(loader, engine, "a")
    models.set_status("a", ERROR, reason="the server's")
    with pytest.raises(ModelNotReadyError, match="error"):
        loader.lease("a")
    loader.unload_idle(0)
    engine.finish("unload a")
    models.set_status("a", LOADING)
    with loader.lease("a"):
        models.set_status("a", ERROR, reason="the server's")
        engine.fail("a")
    with pytest.raises(ModelNotReadyError) as caught:
        loader.lease("a")
    assert caught.value.reason == "the server's"


def test_a_lease_waits_for_the_load_and_not_for_what_was_told_before() -> None:
    models, engine = models_loading("a"), Engine()
    loader = loader_of(models, engine)
    with loader.lease("a"):
        models.set_status("a", DISABLED)
        models.set_status("a", READY)
        with loader.lease("a") as lease:
            assert not lease.loaded.done()
            engine.finish("load a")
            assert lease.loaded.result(timeout=0) is None
            assert isinstance(lease.handle, Weights)


@pytest.mark.parametrize("new", [ERROR, DISABLED])
def test_who_waits_is_told_when_the_server_gives_the_model_up(new: EndpointStatus) -> None:
    models, engine = models_loading("a"), Engine()
    loader = loader_of(models, engine)
    with loader.lease("a") as lease:
        models.set_status("a", new, reason="broken")
        error = failure(lease)
        assert isinstance(error, ModelNotReadyError)
        assert (error.status, error.reason) == (new, "broken")
    engine.finish("load a")
    assert status(models, "a") == new
    models.set_status("a", READY)
    with loader.lease("a") as lease:
        assert isinstance(lease.handle, Weights)


def test_a_failed_load_leaves_the_status_that_the_server_has_set() -> None:
    models, engine = models_loading("a"), Engine()
    loader = loader_of(models, engine)
    with loader.lease("a"):
        models.set_status("a", DISABLED)
        engine.fail("a")
    assert status(models, "a") == DISABLED


def test_what_somebody_else_makes_ready_is_not_loaded() -> None:
    models, engine = models_loading("a", "b"), Engine(capacity=1)
    loader = loader_of(models, engine)
    load_all(loader, engine, "a")
    with loader.lease("a"), loader.lease("b") as lease:
        models.set_status("b", READY)
        assert lease.loaded.result(timeout=0) is None
    assert "load b" not in engine.calls


# 4: one load for all who wait


def test_any_number_of_leases_wait_for_one_load() -> None:
    models, engine = models_loading("a"), Engine()
    models.add_alias("chat", "a")
    loader = loader_of(models, engine)
    with ExitStack() as stack:
        leases = [stack.enter_context(loader.lease(name)) for name in ("a", "chat", "a")]
        engine.finish("load a")
        assert [lease.loaded.result(timeout=0) for lease in leases] == [None] * 3
        assert len({lease.handle for lease in leases}) == 1
    assert engine.calls == ["load a"]


def test_different_models_load_side_by_side_as_far_as_the_capacity_goes() -> None:
    models, engine = models_loading("a", "b", "c"), Engine(capacity=2)
    loader = loader_of(models, engine)
    with loader.lease("a"), loader.lease("b"), loader.lease("c"):
        assert [*engine.running] == ["load a", "load b"]


def test_two_idle_models_make_room_for_two_others_side_by_side() -> None:
    models, engine = models_loading("a", "b", "c", "d"), Engine(capacity=2)
    loader = loader_of(models, engine)
    load_all(loader, engine, "a", "b")
    with loader.lease("c"), loader.lease("d"):
        assert [*engine.running] == ["unload a", "unload b"]
        engine.finish("unload b", "unload a")
        assert [*engine.running] == ["load c", "load d"]


def test_a_load_of_an_adapter_registry_is_waited_for_and_not_doubled() -> None:
    models, engine = ModelRegistry(), Engine()
    models.register(ModelEndpoint("bonsai", "qwen"))
    loader = loader_of(models, engine)
    with AdapterRegistry(models).loading(CODE) as load:
        lease = loader.lease("bonsai:code")
        load.handle = "weights"
        assert not lease.loaded.done()
    assert lease.loaded.result(timeout=0) is None
    assert lease.handle == "weights"
    assert not engine.calls
    lease.release()


# 5: within the capacity


def test_what_is_not_yet_unloaded_takes_room() -> None:
    models, engine = models_loading("a", "b"), Engine(capacity=1)
    loader = loader_of(models, engine)
    load_all(loader, engine, "a")
    with loader.lease("b") as lease:
        assert [*engine.running] == ["unload a"]
        engine.finish("unload a")
        assert [*engine.running] == ["load b"]
        engine.finish("load b")
        assert lease.loaded.done()
    assert not engine.faults


def test_costs_add_up_to_the_capacity_and_an_exact_fit_fits() -> None:
    models, engine = models_loading("a", "b", "c"), Engine(capacity=10, costs={"a": 6, "b": 4, "c": 5})
    loader = loader_of(models, engine)
    load_all(loader, engine, "a", "b")
    with loader.lease("c"):
        # The room of b alone does not suffice, and a was used least recently.
        assert [*engine.running] == ["unload a"]
        engine.finish("unload a")
        assert [*engine.running] == ["load c"]


def test_a_cost_over_the_capacity_fails_that_model_alone() -> None:
    models, engine = models_loading("a", "b"), Engine(capacity=10 * 2**30, costs={"a": 10 * 2**30, "b": 11 * 2**30})
    loader = loader_of(models, engine)
    load_all(loader, engine, "a")
    with loader.lease("b") as lease:
        error = failure(lease)
        assert isinstance(error, ModelNotReadyError)
        assert error.status == ERROR
        assert error.reason == "its cost of 11811160064 is more than the capacity of 10737418240"
        assert isinstance(error.__cause__, ValueError)
    assert ids(loader.loaded()) == ["a"]
    assert engine.calls == ["load a"]


def test_an_unload_that_fails_is_logged_and_its_room_is_free(caplog: pytest.LogCaptureFixture) -> None:
    models, engine = models_loading("a", "b"), Engine(capacity=1)

    def unload(publication: Publication) -> "Future[Any]":
        raise OSError("no such device")

    loader = ModelLoader(ModelRouter(models), engine.load, unload, capacity=1)
    load_all(loader, engine, "a")
    with caplog.at_level(logging.ERROR), loader.lease("b"):
        assert [*engine.running] == ["load b"]
    assert "no such device" in caplog.text


def test_costs_that_no_float_can_add_up_are_more_than_any_other_capacity() -> None:
    models, engine = models_loading("a", "b"), Engine(costs={"a": 1e308, "b": 1e308})
    loader = loader_of(models, engine, capacity=1.5e308)
    load_all(loader, engine, "a")
    with loader.lease("b"):
        assert [*engine.running] == ["unload a"]


@pytest.mark.parametrize("capacity", [math.inf, 10**400])
def test_an_enormous_capacity_holds_everything(capacity: float) -> None:
    models, engine = models_loading("a", "b"), Engine()
    loader = loader_of(models, engine, capacity=capacity)
    load_all(loader, engine, "a", "b")
    assert ids(loader.loaded()) == ["a", "b"]


def test_costs_that_are_fractions_fit_whatever_the_order() -> None:
    costs = {"bonsai": 4.5, "bonsai:code": 6.2}
    models, engine = adapters_on(LOADING, CODE), Engine(costs=costs)
    loader = loader_of(models, engine, capacity=10.7)
    load_all(loader, engine, "bonsai")
    with loader.lease("bonsai:code") as lease:
        engine.finish("load bonsai:code")
        assert lease.loaded.result(timeout=0) is None


# 6: victims, and who is next


def test_the_least_recently_used_idle_model_goes_first() -> None:
    models, engine = models_loading("a", "b", "c", "d"), Engine(capacity=3)
    loader = loader_of(models, engine)
    load_all(loader, engine, "a", "b", "c")
    with loader.lease("a"):
        pass
    assert ids(loader.loaded()) == ["b", "c", "a"]
    with loader.lease("b"):
        assert ids(loader.loaded()) == ["c", "a", "b"]
        with loader.lease("d"):
            assert [*engine.running] == ["unload c"]


def test_the_end_of_a_lease_is_a_use() -> None:
    models, engine = models_loading("a", "b"), Engine(capacity=2)
    loader = loader_of(models, engine)
    load_all(loader, engine, "a")
    with loader.lease("a"):
        load_all(loader, engine, "b")
    assert ids(loader.loaded()) == ["b", "a"]


def test_if_all_are_busy_the_least_recently_used_drains_and_its_new_requests_queue_behind() -> None:
    models, engine = models_loading("a", "b", "c"), Engine(capacity=2)
    loader = loader_of(models, engine)
    load_all(loader, engine, "a", "b")
    old, other = loader.lease("a"), loader.lease("b")
    waiting = loader.lease("c")
    assert [str(each.endpoint.id) for each in models.draining()] == ["a"]
    again = loader.lease("a")
    assert again.generation != old.generation
    assert not engine.running
    old.release()
    engine.finish("unload a", "load c")
    assert waiting.loaded.done()
    # The requests for c and b are busy. Now one of them makes room for a.
    assert [str(each.endpoint.id) for each in models.draining()] == ["b"]
    other.release()
    engine.finish("unload b", "load a")
    assert again.loaded.done()
    for lease in (waiting, again):
        lease.release()
    assert not engine.faults


def test_a_rare_model_is_served_beside_one_that_is_always_busy() -> None:
    models, engine = models_loading("busy", "rare"), Engine(capacity=1, at_once=True)
    loader = loader_of(models, engine)
    busy = loader.lease("busy")
    rare = loader.lease("rare")
    # The next request comes before the last one ends, so one lease is always held.
    following = loader.lease("busy")
    busy.release()
    assert rare.loaded.done()
    assert not following.loaded.done()
    rare.release()
    assert following.loaded.done()
    following.release()


def test_an_idle_model_goes_before_one_that_drains_for_long() -> None:
    models, engine = models_loading("a", "b", "c"), Engine(capacity=2)
    loader = loader_of(models, engine)
    load_all(loader, engine, "a", "b")
    with loader.lease("a"):
        other = loader.lease("b")
        with loader.lease("c") as lease:
            assert [str(each.endpoint.id) for each in models.draining()] == ["a"]
            other.release()
            engine.finish("unload b", "load c")
            assert lease.loaded.result(timeout=0) is None


def test_no_more_busy_models_drain_than_the_first_in_the_queue_needs() -> None:
    models, engine = models_loading("a", "b", "c", "d"), Engine(capacity=2)
    loader = loader_of(models, engine)
    load_all(loader, engine, "a", "b")
    with loader.lease("a"), loader.lease("b"), loader.lease("c"), loader.lease("d"):
        assert [str(each.endpoint.id) for each in models.draining()] == ["a"]


def test_nobody_waits_behind_a_model_whose_leases_are_all_released() -> None:
    models, engine = models_loading("a", "b", "c"), Engine(capacity=10, costs={"a": 6, "b": 6, "c": 4})
    loader = loader_of(models, engine)
    with loader.lease("a"):
        first, second, third = loader.lease("b"), loader.lease("b"), loader.lease("c")
        first.release()
        assert [*engine.running] == ["load a"]
        second.release()
        assert [*engine.running] == ["load a", "load c"]
        assert isinstance(failure(second), ModelNotReadyError)
        third.release()


def test_nobody_waits_behind_a_model_that_was_leased_while_it_was_pinned() -> None:
    models, engine = models_loading("a", "c"), Engine(capacity=2, costs={"b": 2})
    models.register(ModelEndpoint("b", "weights"))
    loader = loader_of(models, engine)
    pinned, busy = loader.lease("b"), loader.lease("a")
    engine.finish("load a")
    models.set_status("b", LOADING)
    waiting, behind = loader.lease("b"), loader.lease("c")
    waiting.release()
    pinned.release()
    assert [*engine.running] == ["load c"]
    for lease in (busy, behind):
        lease.release()


def test_what_comes_later_does_not_overtake_though_it_would_fit() -> None:
    models, engine = models_loading("a", "b", "c"), Engine(capacity=10, costs={"a": 5, "b": 6, "c": 5})
    loader = loader_of(models, engine)
    load_all(loader, engine, "a")
    with loader.lease("a"), loader.lease("b"), loader.lease("c"):
        # The room of a is enough for b. If c took what is free now, it would not be.
        assert not engine.running


def test_the_beginning_of_a_lease_is_a_use() -> None:
    models, engine = models_loading("a", "b", "c"), Engine(capacity=2)
    loader = loader_of(models, engine)
    load_all(loader, engine, "a", "b")
    with loader.lease("b"), loader.lease("a"), loader.lease("c"):
        assert [str(each.endpoint.id) for each in models.draining()] == ["b"]


# 7: unloading


def test_unload_comes_after_the_last_lease_and_before_the_next_load_of_the_same_id() -> None:
    models, engine = models_loading("a"), Engine()
    loader = loader_of(models, engine)
    load_all(loader, engine, "a")
    first, second = loader.lease("a"), loader.lease("a")
    models.register(ModelEndpoint("a", "other weights", status=LOADING))
    waiting = loader.lease("a")
    assert not engine.running
    first.release()
    assert not engine.running
    second.release()
    assert [*engine.running] == ["unload a"]
    engine.finish("unload a")
    assert [*engine.running] == ["load a"]
    engine.finish("load a")
    assert waiting.loaded.done()
    waiting.release()
    assert not engine.faults


def test_unload_gets_the_publication_that_was_loaded() -> None:
    models, engine = models_loading("a", description="a model"), Engine()
    seen: list[Publication] = []

    def unload(publication: Publication) -> "Future[Any]":
        seen.append(publication)
        return engine.unload(publication)

    loader = ModelLoader(ModelRouter(models), engine.load, unload, capacity=1)
    load_all(loader, engine, "a")
    generation = models.generation("a")
    with loader.lease("a") as lease:
        handle = lease.handle
    assert generation is not None
    loader.unload_idle(0)
    endpoint = ModelEndpoint("a", "weights", description="a model")
    assert seen == [Publication(endpoint, None, generation, handle)]
    assert seen[0].handle is handle


def test_on_idle_is_still_called_once_for_each_publication() -> None:
    told: list[tuple[str, object]] = []
    models = ModelRegistry(on_idle=lambda publication: told.append((str(publication.endpoint.id), publication.handle)))
    models.register(ModelEndpoint("a", "weights", status=LOADING))
    engine = Engine(at_once=True)
    loader = loader_of(models, engine)
    with loader.lease("a") as lease:
        handle = lease.handle
    loader.unload_idle(0)
    models.unregister("a")
    assert told == [("a", handle), ("a", None)]


# 8: the context comes first


def test_the_context_is_checked_before_anything_is_loaded() -> None:
    models, engine = models_loading("a", max_context_length=4_096), Engine()
    loader = loader_of(models, engine)
    with pytest.raises(ContextTooLongError) as caught:
        loader.lease("a", 4_097)
    assert caught.value.args == ("a", 4_097, 4_096)
    assert not engine.calls
    with loader.lease("a", 4_096):
        assert engine.calls == ["load a"]


# 9: loads that fail, and loads that somebody overtook


def test_a_load_that_fails_is_told_to_all_who_wait() -> None:
    models, engine = models_loading("a"), Engine()
    loader = loader_of(models, engine, retry_after=7.5)
    with loader.lease("a") as first, loader.lease("a") as second:
        cause = MemoryError("out of memory")
        engine.fail("a", cause)
        for lease in (first, second):
            error = failure(lease)
            assert isinstance(error, ModelNotReadyError)
            assert (error.model, error.status) == ("a", ERROR)
            assert (error.reason, error.retry_after) == ("out of memory", 7.5)
            assert error.__cause__ is cause
    assert status(models, "a") == ERROR
    with pytest.raises(ModelNotReadyError) as caught:
        loader.lease("a")
    assert (caught.value.reason, caught.value.retry_after) == ("out of memory", 7.5)
    assert engine.calls == ["load a"]


def test_the_next_attempt_comes_with_the_first_request_after_retry_after(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    models, engine = models_loading("a"), Engine()
    loader = loader_of(models, engine, retry_after=30)
    with loader.lease("a"):
        engine.fail("a")
    now = 129.9
    with pytest.raises(ModelNotReadyError):
        loader.lease("a")
    now = 130.0
    assert engine.calls == ["load a"]
    with loader.lease("a") as lease:
        assert status(models, "a") == LOADING
        assert engine.calls == ["load a", "load a"]
        engine.finish("load a")
        assert lease.loaded.result(timeout=0) is None


def test_the_server_may_allow_an_earlier_attempt() -> None:
    models, engine = models_loading("a"), Engine()
    loader = loader_of(models, engine)
    with loader.lease("a"):
        engine.fail("a")
    models.set_status("a", LOADING)
    with loader.lease("a"):
        assert engine.calls == ["load a", "load a"]


def test_the_room_of_a_load_that_failed_is_free() -> None:
    models, engine = models_loading("a", "b"), Engine(capacity=1)
    loader = loader_of(models, engine)
    with loader.lease("a"), loader.lease("b"):
        engine.fail("a")
        assert [*engine.running] == ["load b"]


def cancelled() -> "Future[Any]":
    future: Future[Any] = Future()
    future.cancel()
    return future


def raises() -> "Future[Any]":
    raise OSError("no such file")


@pytest.mark.parametrize(
    ("load", "reason", "cause"),
    [
        (raises, "no such file", OSError),
        (lambda: "weights", "load and unload must return a concurrent.futures.Future, not 'weights'", TypeError),
        (cancelled, "CancelledError", CancelledError),
    ],
)
def test_every_way_to_fail_is_a_load_that_failed(
    load: Callable[[], "Future[Any]"], reason: str, cause: type[BaseException]
) -> None:
    models = models_loading("a")
    loader = ModelLoader(ModelRouter(models), lambda endpoint, adapter: load(), lambda _: done(), capacity=1)
    with loader.lease("a") as lease:
        error = failure(lease)
        assert isinstance(error, ModelNotReadyError)
        assert error.reason == reason
        assert isinstance(error.__cause__, cause)


def test_an_interrupt_during_load_is_raised_and_the_load_has_failed() -> None:
    models = models_loading("a")

    def load(endpoint: ModelEndpoint, adapter: LoraAdapter | None) -> "Future[Any]":
        raise KeyboardInterrupt

    loader = ModelLoader(ModelRouter(models), load, lambda _: done(), capacity=1)
    with pytest.warns(ResourceWarning):
        with pytest.raises(KeyboardInterrupt):
            loader.lease("a")
        gc.collect()
    assert status(models, "a") == ERROR
    assert models.in_flight("a") == 0


def unregister(models: ModelRegistry) -> None:
    models.unregister("a")


def replace_by_other_weights(models: ModelRegistry) -> None:
    models.register(ModelEndpoint("a", "other weights", status=LOADING))


def swap_for_a_ready_one(models: ModelRegistry) -> None:
    models.swap(ModelEndpoint("a", "other weights"))


def reload_without_it(models: ModelRegistry) -> None:
    models.replace_with(models_loading("b"))


OVERTAKES = [unregister, replace_by_other_weights, swap_for_a_ready_one, reload_without_it]


@pytest.mark.parametrize("overtake", OVERTAKES)
@pytest.mark.parametrize("held", [False, True])
def test_a_load_that_somebody_overtook_is_unloaded_and_its_waiters_are_told(
    overtake: Callable[[ModelRegistry], None], held: bool
) -> None:
    models, engine = models_loading("a", "b"), Engine()
    loader = loader_of(models, engine)
    lease = loader.lease("a")
    overtake(models)
    assert isinstance(failure(lease), ModelNotReadyError if "a" in models else ModelNotFoundError)
    if not held:
        lease.release()
    engine.finish("load a")
    assert ("unload a" in engine.calls) == (not held)
    lease.release()
    engine.finish("unload a")
    assert not any(engine.in_memory.values())
    assert not engine.faults


@pytest.mark.parametrize("overtake", OVERTAKES)
def test_who_waits_for_room_is_told_when_the_model_is_overtaken(overtake: Callable[[ModelRegistry], None]) -> None:
    models, engine = models_loading("a", "b"), Engine(capacity=1)
    loader = loader_of(models, engine)
    with loader.lease("b"):
        lease = loader.lease("a")
        overtake(models)
        assert isinstance(failure(lease), RoutingError)
        lease.release()
    assert "load a" not in engine.calls


def test_a_load_that_was_overtaken_and_fails_leaves_nothing() -> None:
    models, engine = models_loading("a"), Engine(capacity=1)
    loader = loader_of(models, engine)
    with loader.lease("a"):
        replace_by_other_weights(models)
        engine.fail("a")
    assert status(models, "a") == LOADING
    with loader.lease("a"):
        assert [*engine.running] == ["load a"]


# 10: reloads, adapters, aliases, the default


def test_a_reload_unloads_what_it_removed_or_changed_and_nothing_else() -> None:
    models, engine = models_loading("same", "changed", "removed"), Engine()
    loader = loader_of(models, engine)
    load_all(loader, engine, "same", "changed", "removed")
    new = models_loading("same", "added")
    new.register(ModelEndpoint("changed", "other weights", status=LOADING))
    with loader.lease("same") as same, loader.lease("changed"), loader.lease("removed"):
        models.replace_with(new)
        assert not engine.running
        assert ids(loader.loaded()) == ["same"]
    assert {*engine.running} == {"unload changed", "unload removed"}
    with loader.lease("same") as lease:
        assert lease.loaded.done()
        assert lease.handle is same.handle
    assert status(models, "changed") == LOADING


def test_a_configuration_that_is_read_again_unloads_nothing() -> None:
    config = RoutingConfig.from_mapping(
        {
            "schema": 1,
            "endpoints": [{"id": "bonsai", "base_model": "qwen", "max_context_length": 4096}],
            "adapters": [{"name": "code", "base_model": "bonsai", "source": "adapters/code"}],
        }
    )
    models = config.registry(status="loading")
    engine = Engine(at_once=True)
    loader = loader_of(models, engine)
    with loader.lease("bonsai:code") as lease:
        assert lease.loaded.done()
    models.replace_with(config.registry(status="loading"))
    assert ids(loader.loaded()) == ["bonsai:code", "bonsai"]
    assert engine.calls == ["load bonsai", "load bonsai:code"]


def test_eviction_changes_neither_the_default_nor_the_time_of_registration() -> None:
    models = ModelRegistry()
    models.register(ModelEndpoint("a", "weights", is_default=True, status=LOADING))
    models.register(ModelEndpoint("b", "weights", status=LOADING))
    models.set_default("b")
    loader = loader_of(models, Engine(at_once=True))
    with loader.lease("a"), loader.lease("b"):
        pass
    before = models.all_endpoints()
    entries = ModelRouter(models).models_list()
    assert loader.unload_idle(0) == 2
    assert models.all_endpoints() == [replace(endpoint, status=LOADING) for endpoint in before]
    default = models.default_endpoint()
    assert default is not None
    assert default.id == "b"
    with loader.lease("a"), loader.lease("b"):
        assert ModelRouter(models).models_list() == entries


def test_errors_are_those_of_the_router() -> None:
    models, engine = models_loading("a"), Engine()
    loader = loader_of(models, engine)
    with pytest.raises(ModelNotFoundError):
        loader.lease("nothing")
    with pytest.raises(NoModelsAvailableError):
        loader.lease()
    with pytest.raises(NoModelsAvailableError):
        loader.lease(None, 10)
    with pytest.raises(ValueError, match="required_context must be 0 tokens or more, not -1"):
        loader.lease("a", -1)
    with pytest.raises(TypeError, match="requested_model must be a str or a ModelId, not 1"):
        loader.lease(1)  # type: ignore[arg-type]
    assert not engine.calls


def candidates(**contexts: tuple[int, EndpointStatus]) -> ModelRegistry:
    """Return a registry of models with those contexts and statuses; the first is the default."""
    models = ModelRegistry()
    for name, (context, status) in contexts.items():
        models.register(ModelEndpoint(name, "weights", max_context_length=context, status=status))
    models.set_default(next(iter(contexts)))
    return models


@pytest.mark.parametrize(
    ("models", "tokens", "chosen"),
    [
        # Of two ready ones and one that is not loaded, the latter is not loaded needlessly.
        (candidates(a=(4, READY), b=(8, READY), c=(16, LOADING)), 4, "a"),
        (candidates(a=(4, READY), b=(8, READY), c=(16, LOADING)), 8, "b"),
        (candidates(a=(4, READY), b=(8, READY), c=(16, LOADING)), 9, "c"),
        # The default is loaded if the tokens fit into it.
        (candidates(a=(4, LOADING), b=(8, READY), c=(16, LOADING)), None, "a"),
        (candidates(a=(4, LOADING), b=(8, READY), c=(16, LOADING)), 4, "a"),
        (candidates(a=(4, LOADING), b=(8, READY), c=(16, LOADING)), 5, "b"),
        # Of several that would have to be loaded, the largest, and of equals the first.
        (candidates(a=(4, LOADING), b=(8, LOADING), c=(16, LOADING), d=(16, LOADING)), 5, "c"),
        (candidates(a=(4, LOADING), b=(8, DISABLED), c=(16, ERROR), d=(8, LOADING)), 5, "d"),
    ],
)
def test_the_default_and_the_fallback_load_nothing_needlessly(
    models: ModelRegistry, tokens: int | None, chosen: str
) -> None:
    was_ready = status(models, chosen) == READY
    engine = Engine()
    with loader_of(models, engine).lease(None, tokens) as lease:
        assert lease.endpoint.id == chosen
        assert lease.requested is None
        assert engine.calls == ([] if was_ready else [f"load {chosen}"])


def test_tokens_that_fit_nowhere_are_told_with_the_limit_of_the_default() -> None:
    models, engine = candidates(a=(4, LOADING), b=(8, LOADING)), Engine()
    with pytest.raises(ContextTooLongError) as caught:
        loader_of(models, engine).lease(None, 9)
    assert caught.value.args == ("a", 9, 4)
    assert not engine.calls


# Names with several targets


def test_a_target_that_is_ready_is_preferred_to_one_that_would_have_to_be_loaded() -> None:
    models, engine = models_loading("cold", "warm"), Engine()
    models.add_alias("order", "cold", "warm")
    models.add_alias("weights", {"cold": 99, "warm": 1}, "gone")
    loader = loader_of(models, engine)
    load_all(loader, engine, "warm")
    for name in ("order", "weights"):
        for _ in range(20):
            with loader.lease(name) as lease:
                assert lease.loaded.done()
                assert lease.endpoint.id == "warm"
                assert lease.requested == name
    load_all(loader, engine, "cold")
    with loader.lease("order") as lease:
        assert lease.endpoint.id == "cold"
    assert engine.calls == ["load warm", "load cold"]


@pytest.mark.parametrize(
    ("targets", "tokens", "chosen"),
    [
        (("a", "b", "c"), None, "a"),
        (("b", "a"), 4, "b"),
        (("a", "b", "c"), 5, "b"),
        (("a", "b", "c"), 9, "c"),
        (("a", {"b": 1, "c": 1}), 9, "c"),
        (("gone", "off", "failed", "b"), None, "b"),
        # A target that is ready answers only if the tokens fit.
        (("b", "small"), 2, "small"),
        (("b", "small"), 3, "b"),
    ],
)
def test_if_no_target_is_ready_the_first_that_can_be_loaded_and_fits_is_loaded(
    targets: tuple[Any, ...], tokens: int | None, chosen: str
) -> None:
    models = candidates(
        a=(4, LOADING),
        b=(8, LOADING),
        c=(16, LOADING),
        off=(16, DISABLED),
        failed=(16, ERROR),
        small=(2, READY),
    )
    models.add_alias("chat", *targets)
    engine = Engine()
    was_ready = status(models, chosen) == READY
    with loader_of(models, engine).lease("chat", tokens) as lease:
        assert lease.endpoint.id == chosen
        assert lease.requested == "chat"
        assert engine.calls == ([] if was_ready else [f"load {chosen}"])


def test_while_no_target_is_ready_each_request_draws_which_one_to_load() -> None:
    models, engine = models_loading("a", "b"), Engine()
    models.add_alias("split", {"a": 1, "b": 1})
    loader = loader_of(models, engine)
    with ExitStack() as leases:
        for _ in range(100):
            leases.enter_context(loader.lease("split"))
    assert sorted(engine.calls) == ["load a", "load b"]


def test_an_error_of_a_load_says_the_name_under_which_each_lease_was_taken() -> None:
    models, engine = models_loading("a", "b"), Engine()
    models.add_alias("chat", "a", "b")
    models.add_alias("plain", "a")
    models.set_default("a")
    loader = loader_of(models, engine)
    names = ("chat", "a", "plain", None, "chat")
    with ExitStack() as stack:
        leases = [stack.enter_context(loader.lease(name)) for name in names]
        cause = MemoryError("out of memory")
        engine.fail("a", cause)
        for name, lease in zip(names, leases, strict=True):
            error = failure(lease)
            assert isinstance(error, ModelNotReadyError)
            assert (error.model, error.requested, error.reason) == ("a", name, "out of memory")
            assert error.__cause__ is cause
    # The next request has the next target loaded.
    with loader.lease("chat") as lease:
        assert lease.endpoint.id == "b"


def test_who_was_told_under_one_name_is_not_told_again_with_those_who_wait_under_another() -> None:
    models, engine = models_loading("a"), Engine()
    models.add_alias("chat", "a")
    loader = loader_of(models, engine)
    with loader.lease("a") as first:
        models.set_status("a", DISABLED)
        models.set_status("a", LOADING)
        with loader.lease("chat") as second:
            assert not second.loaded.done()
            engine.finish("load a")
            assert second.loaded.result(timeout=0) is None
        error = failure(first)
        assert isinstance(error, ModelNotReadyError)
        assert (error.status, error.requested) == (DISABLED, "a")


def test_if_no_target_can_be_loaded_the_error_is_that_of_the_first() -> None:
    models, engine = models_loading("a", "b"), Engine()
    for name, targets in (("chat", ("gone", "a", "b")), ("split", ({"a": 1, "b": 99},))):
        models.add_alias(name, *targets)
    loader = loader_of(models, engine, retry_after=7)
    with loader.lease("a"):
        engine.fail("a")
    models.set_status("b", DISABLED, reason="maintenance")
    for name in ("chat", "split"):
        for tokens in (None, 10, 1_000_000):
            with pytest.raises(ModelNotReadyError) as caught:
                loader.lease(name, tokens)
            error = caught.value
            assert (error.model, error.status, error.requested) == ("a", ERROR, name)
            assert (error.reason, error.retry_after) == ("out of memory", 7)
    assert engine.calls == ["load a"]


def test_if_the_tokens_fit_no_target_the_error_has_the_limit_of_the_largest_that_is_ready_or_can_be_loaded() -> None:
    models, engine = candidates(a=(4, LOADING), b=(8, LOADING), c=(16, DISABLED), d=(2, READY)), Engine()
    models.add_alias("chat", "a", "b", "c", "d")
    with pytest.raises(ContextTooLongError) as caught:
        loader_of(models, engine).lease("chat", 9)
    assert caught.value.args == ("b", 9, 8)
    assert not engine.calls


# Adapters


def adapters_on(base: EndpointStatus, *adapters: LoraAdapter, own: EndpointStatus = LOADING) -> ModelRegistry:
    models = ModelRegistry()
    models.register(ModelEndpoint("bonsai", "qwen", status=base))
    for adapter in adapters:
        AdapterRegistry(models).load(adapter, status=own)
    return models


def test_adapters_on_a_pinned_base_come_and_go() -> None:
    models, engine = adapters_on(READY, CODE, MATH), Engine(capacity=1)
    loader = loader_of(models, engine)
    with loader.lease("bonsai:code") as lease:
        engine.finish("load bonsai:code")
        assert lease.adapter == CODE
        assert isinstance(lease.handle, Weights)
        assert status(models, "bonsai:code") == READY
    with loader.lease("bonsai:math"):
        engine.finish("unload bonsai:code", "load bonsai:math")
    assert status(models, "bonsai:code") == LOADING
    assert AdapterRegistry(models).get("bonsai:code") == CODE


def test_the_base_of_an_adapter_is_loaded_first_and_stays_while_the_adapter_is_in_memory() -> None:
    models, engine = adapters_on(LOADING, CODE), Engine(capacity=3)
    models.register(ModelEndpoint("other", "weights", status=LOADING))
    loader = loader_of(models, engine)
    lease = loader.lease("bonsai:code")
    assert [*engine.running] == ["load bonsai"]
    engine.finish("load bonsai")
    assert not lease.loaded.done()
    engine.finish("load bonsai:code")
    assert lease.loaded.done()
    models.unregister("bonsai")
    assert not engine.running
    lease.release()
    assert [*engine.running] == ["unload bonsai:code"]
    engine.finish("unload bonsai:code")
    assert [*engine.running] == ["unload bonsai"]
    engine.finish("unload bonsai")


def test_a_base_and_its_adapter_get_their_room_together() -> None:
    costs = {"bonsai": 5, "bonsai:code": 1, "bonsai:math": 1, "other": 5}
    models, engine = adapters_on(LOADING, CODE, MATH), Engine(capacity=6, costs=costs)
    models.register(ModelEndpoint("other", "weights", status=LOADING))
    loader = loader_of(models, engine)
    load_all(loader, engine, "other")
    with loader.lease("bonsai:code") as lease:
        assert [*engine.running] == ["unload other"]
        engine.finish("unload other", "load bonsai", "load bonsai:code")
        assert lease.loaded.done()
        with loader.lease("bonsai:math"):
            # The base of math cannot make room for math.
            assert [str(each.endpoint.id) for each in models.draining()] == ["bonsai:code"]
    assert not engine.faults


def test_adapters_of_two_bases_that_do_not_fit_together_take_turns() -> None:
    models, engine = ModelRegistry(), Engine(capacity=2)
    for base in ("left", "right"):
        models.register(ModelEndpoint(base, base, status=LOADING))
        AdapterRegistry(models).load(LoraAdapter("x", base, "adapters/x"), status=LOADING)
    loader = loader_of(models, engine)
    load_all(loader, engine, "left", "right")
    first, second = loader.lease("left:x"), loader.lease("right:x")
    engine.finish("unload right", "load left:x")
    assert first.loaded.done()
    assert not second.loaded.done()
    first.release()
    engine.finish("unload left:x", "unload left", "load right", "load right:x")
    assert second.loaded.done()
    second.release()
    assert not engine.faults


def test_no_more_than_needed_goes_with_a_base_that_must_wait_for_its_adapter() -> None:
    models, engine = adapters_on(LOADING, CODE), Engine(capacity=3, costs={"other": 2})
    for id in ("newer", "other"):
        models.register(ModelEndpoint(id, "weights", status=LOADING))
    loader = loader_of(models, engine)
    with loader.lease("bonsai:code"):
        engine.finish("load bonsai", "load bonsai:code")
    load_all(loader, engine, "newer")
    with loader.lease("other"):
        engine.finish("unload bonsai:code", "unload bonsai", "load other")
    assert {*ids(loader.loaded())} == {"newer", "other"}


def test_a_base_stays_for_the_adapter_that_waits_first() -> None:
    models, engine = adapters_on(LOADING, CODE), Engine(capacity=2)
    for id in ("busy", "later"):
        models.register(ModelEndpoint(id, "weights", status=LOADING))
    loader = loader_of(models, engine)
    load_all(loader, engine, "bonsai", "busy")
    busy = loader.lease("busy")
    with loader.lease("bonsai:code") as lease, loader.lease("later"):
        assert loader.unload_idle(0) == 0
        busy.release()
        engine.finish("unload busy", "load bonsai:code")
        assert lease.loaded.result(timeout=0) is None


def test_an_adapter_that_nobody_waits_for_is_not_loaded_when_its_base_is() -> None:
    models, engine = adapters_on(LOADING, CODE), Engine(capacity=2)
    models.register(ModelEndpoint("other", "weights", status=LOADING))
    loader = loader_of(models, engine)
    waiting, base = loader.lease("bonsai:code"), loader.lease("bonsai")
    with loader.lease("other"):
        assert [*engine.running] == ["load bonsai"]
        waiting.release()
        assert [*engine.running] == ["load bonsai", "load other"]
        assert isinstance(failure(waiting), ModelNotReadyError)
    engine.finish("load bonsai")
    base.release()
    assert "load bonsai:code" not in engine.calls


def test_the_use_of_an_adapter_is_one_of_its_base(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    models, engine = adapters_on(LOADING, CODE), Engine(at_once=True)
    loader = loader_of(models, engine)
    with loader.lease("bonsai:code"):
        now = 100.0
    models.unregister("bonsai:code")
    assert loader.unload_idle(1) == 0
    assert loader.unload_idle(0) == 1


def test_a_block_that_loads_a_new_version_is_not_disturbed() -> None:
    models, engine = adapters_on(READY, CODE), Engine(at_once=True)
    loader = loader_of(models, engine)
    with loader.lease("bonsai:code"):
        pass
    newer = LoraAdapter("code", "bonsai", "adapters/code-2")
    with AdapterRegistry(models).loading(newer) as load:
        assert loader.unload_idle(0) == 0
        load.handle = "new weights"
    assert engine.calls == ["load bonsai:code", "unload bonsai:code"]
    with loader.lease("bonsai:code") as lease:
        assert (lease.handle, lease.adapter) == ("new weights", newer)


def test_who_waits_for_a_block_goes_on_when_the_block_was_overtaken() -> None:
    models, engine = adapters_on(READY, CODE), Engine()
    adapters = AdapterRegistry(models)
    adapters.unload("bonsai:code")
    loader = loader_of(models, engine)
    with pytest.raises(StaleGenerationError), adapters.loading(CODE):
        adapters.unload("bonsai:code")
        adapters.load(CODE, status=LOADING)
        lease = loader.lease("bonsai:code")
        assert not engine.running
    engine.finish("load bonsai:code")
    assert lease.loaded.result(timeout=0) is None
    lease.release()


def test_an_adapter_that_never_fits_beside_its_base_fails() -> None:
    models, engine = adapters_on(LOADING, CODE), Engine(capacity=6, costs={"bonsai": 5, "bonsai:code": 2})
    loader = loader_of(models, engine)
    for _ in range(2):
        with loader.lease("bonsai:code") as lease:
            error = failure(lease)
            assert isinstance(error, ModelNotReadyError)
            assert error.reason == "its cost of 2 and its base's of 5 are more than the capacity of 6"
        with pytest.raises(ModelNotReadyError) as caught:
            loader.lease("bonsai:code")
        assert (caught.value.status, caught.value.reason) == (ERROR, error.reason)
        models.set_status("bonsai:code", LOADING)
        if not engine.calls:
            load_all(loader, engine, "bonsai")


def test_a_base_is_evicted_together_with_the_idle_adapters_on_it() -> None:
    models, engine = adapters_on(LOADING, CODE), Engine(capacity=2, costs={"other": 2})
    models.register(ModelEndpoint("other", "weights", status=LOADING))
    loader = loader_of(models, engine)
    with loader.lease("bonsai:code"):
        engine.finish("load bonsai", "load bonsai:code")
    with loader.lease("other"):
        assert [*engine.running] == ["unload bonsai:code"]
        engine.finish("unload bonsai:code")
        assert [*engine.running] == ["unload bonsai"]
        engine.finish("unload bonsai", "load other")
    assert (status(models, "bonsai"), status(models, "bonsai:code")) == (LOADING, LOADING)
    with loader.lease("bonsai:code") as lease:
        engine.finish("unload other", "load bonsai", "load bonsai:code")
        assert isinstance(lease.handle, Weights)
        assert lease.handle.number == 2


def test_a_base_in_use_by_an_adapter_is_not_idle() -> None:
    models, engine = adapters_on(LOADING, CODE), Engine(at_once=True)
    loader = loader_of(models, engine)
    with loader.lease("bonsai:code"):
        assert loader.unload_idle(0) == 0
    assert loader.unload_idle(0) == 2
    assert engine.calls[2:] == ["unload bonsai:code", "unload bonsai"]


def test_an_adapter_is_loaded_anew_onto_a_base_that_was_published_anew() -> None:
    models, engine = adapters_on(READY, CODE), Engine(at_once=True)
    loader = loader_of(models, engine)
    with loader.lease("bonsai:code") as lease:
        old = lease.handle
        models.register(ModelEndpoint("bonsai", "qwen"))
        assert engine.calls == ["load bonsai:code"]
        new = loader.lease("bonsai:code")
    assert engine.calls == ["load bonsai:code", "unload bonsai:code", "load bonsai:code"]
    assert new.loaded.done()
    assert isinstance(new.handle, Weights)
    assert new.handle is not old
    new.release()


def test_in_a_callback_too_an_adapter_runs_on_the_present_base() -> None:
    models, engine = adapters_on(READY, CODE), Engine(at_once=True)
    models.register(ModelEndpoint("other", "weights", status=LOADING))
    loader = loader_of(models, engine)
    with loader.lease("bonsai:code") as lease:
        old = lease.handle
    leases: list[LoadingLease] = []

    def callback(_: "Future[None]") -> None:
        models.register(ModelEndpoint("bonsai", "qwen"))
        leases.append(loader.lease("bonsai:code"))

    engine.at_once = False
    with loader.lease("other") as lease:
        lease.loaded.add_done_callback(callback)
        engine.finish("load other")
    engine.finish("unload bonsai:code", "load bonsai:code")
    assert leases[0].loaded.result(timeout=0) is None
    assert leases[0].handle is not old
    leases[0].release()


def test_a_pinned_base_that_is_called_loading_is_loaded_for_who_waits_for_an_adapter() -> None:
    models, engine = adapters_on(READY, CODE), Engine()
    loader = loader_of(models, engine)
    with loader.lease("bonsai:code") as lease:
        models.set_status("bonsai", LOADING)
        engine.finish("load bonsai:code")
        assert not lease.loaded.done()
        engine.finish("load bonsai")
        assert lease.loaded.result(timeout=0) is None


def test_a_pinned_base_that_is_called_loading_gets_its_room_together_with_the_adapter() -> None:
    models, engine = adapters_on(READY, CODE), Engine(capacity=3, costs={"bonsai": 2})
    models.register(ModelEndpoint("other", "weights", status=LOADING))
    loader = loader_of(models, engine)
    load_all(loader, engine, "bonsai:code", "other")
    models.set_status("bonsai", LOADING)
    with loader.lease("bonsai:code") as lease:
        engine.finish("unload bonsai:code", "unload other", "load bonsai", "load bonsai:code")
        assert lease.loaded.result(timeout=0) is None
    assert not engine.faults


@pytest.mark.parametrize("change", ["other weights", "removed"])
def test_an_adapter_that_waits_for_a_base_which_goes_is_told(change: str) -> None:
    models, engine = adapters_on(LOADING, CODE), Engine()
    loader = loader_of(models, engine)
    with loader.lease("bonsai:code") as lease:
        if change == "removed":
            models.unregister("bonsai")
        else:
            models.register(ModelEndpoint("bonsai", "llama", status=LOADING))
        assert isinstance(failure(lease), ModelNotFoundError)
    engine.finish("load bonsai", "unload bonsai")
    assert not any(engine.in_memory.values())


def test_an_adapter_waits_on_for_a_base_that_was_published_anew() -> None:
    models, engine = adapters_on(LOADING, CODE), Engine(capacity=2)
    loader = loader_of(models, engine)
    with loader.lease("bonsai:code") as lease:
        models.register(ModelEndpoint("bonsai", "qwen", status=LOADING))
        engine.finish("load bonsai")
        engine.finish("unload bonsai", "load bonsai", "load bonsai:code")
        assert lease.loaded.result(timeout=0) is None
    assert not engine.faults


def test_an_adapter_is_told_why_its_base_was_not_loaded() -> None:
    models, engine = adapters_on(LOADING, CODE), Engine()
    loader = loader_of(models, engine, retry_after=0)
    cause = MemoryError("out of memory")
    with loader.lease("bonsai:code") as lease:
        engine.fail("bonsai", cause)
        error = failure(lease)
        assert isinstance(error, ModelNotReadyError)
        assert (error.model, error.status, error.reason) == ("bonsai:code", ERROR, "out of memory")
        assert error.__cause__ is cause
    with loader.lease("bonsai:code") as lease:
        engine.finish("load bonsai", "load bonsai:code")
        assert lease.loaded.result(timeout=0) is None


def test_a_pinned_adapter_has_its_base_loaded_and_keeps_it() -> None:
    models, engine = adapters_on(LOADING, CODE, own=READY), Engine(capacity=1)
    models.register(ModelEndpoint("other", "weights", status=LOADING))
    loader = loader_of(models, engine)
    first = loader.lease("bonsai:code")
    engine.finish("load bonsai")
    assert first.loaded.result(timeout=0) is None
    assert (first.adapter, first.endpoint.status) == (CODE, READY)
    second = loader.lease("bonsai:code")
    assert second.loaded.done()
    first.release()
    with loader.lease("other"):
        assert not engine.running
        second.release()
        assert [*engine.running] == ["unload bonsai"]
    assert engine.calls == ["load bonsai", "unload bonsai"]


def test_an_adapter_on_a_base_that_nobody_loads_is_not_ready() -> None:
    models, engine = adapters_on(LOADING, CODE), Engine()
    loader = loader_of(models, engine, manages=lambda endpoint: endpoint.adapter is not None)
    with pytest.raises(ModelNotReadyError):
        loader.lease("bonsai:code")
    assert not engine.calls


def test_an_adapter_that_is_loading_is_not_taken_from_under_its_base() -> None:
    models, engine = adapters_on(LOADING, CODE), Engine(capacity=2)
    models.register(ModelEndpoint("other", "weights", status=LOADING))
    loader = loader_of(models, engine)
    with loader.lease("bonsai:code") as lease:
        engine.finish("load bonsai")
        with loader.lease("other"):
            assert [*engine.running] == ["load bonsai:code"]
            engine.finish("load bonsai:code")
            assert lease.loaded.result(timeout=0) is None


# 11: the end


def test_close_unloads_everything_when_it_is_idle_and_loads_nothing_more() -> None:
    models, engine = models_loading("idle", "busy", "coming", "waiting", "unused"), Engine(capacity=3)
    loader = loader_of(models, engine)
    load_all(loader, engine, "idle", "busy")
    busy, coming, waiting = (loader.lease(name) for name in ("busy", "coming", "waiting"))
    closed = loader.close()
    error = failure(waiting)
    assert isinstance(error, ModelNotReadyError)
    assert error.reason == "the loader is closed"
    assert not closed.cancel()
    assert {*engine.running} == {"load coming", "unload idle"}
    engine.finish("unload idle", "load coming")
    assert coming.loaded.result(timeout=0) is None
    for name in ("busy", "coming", "unused"):
        with pytest.raises(ModelNotReadyError):
            loader.lease(name)
    coming.release()
    busy.release()
    assert not closed.done()
    engine.finish("unload coming", "unload busy")
    assert closed.done()
    assert loader.close() is closed
    waiting.release()
    assert not any(engine.in_memory.values())
    assert ids(loader.loaded()) == []


def test_close_ends_at_once_when_nothing_is_loaded() -> None:
    loader = loader_of(models_loading("a"), Engine())
    assert loader.close().result(timeout=0) is None


def test_close_lets_an_adapter_go_that_waits_for_its_base() -> None:
    models, engine = adapters_on(LOADING, CODE), Engine()
    loader = loader_of(models, engine)
    with loader.lease("bonsai:code") as lease:
        closed = loader.close()
        assert isinstance(failure(lease), ModelNotReadyError)
    engine.finish("load bonsai", "unload bonsai")
    assert closed.done()
    assert engine.calls == ["load bonsai", "unload bonsai"]


def test_a_closed_loader_lets_go_of_its_registry_and_another_one_takes_over() -> None:
    models, engine = models_loading("a"), Engine(at_once=True)
    first = loader_of(models, engine)
    with first.lease("a") as lease:
        assert lease.loaded.done()
    first.close().result(timeout=0)
    closed = weakref.ref(first)
    del first, lease
    gc.collect()
    assert closed() is None
    second = loader_of(models, engine)
    with second.lease("a") as lease:
        assert lease.loaded.done()
    second.close().result(timeout=0)
    assert engine.calls == ["load a", "unload a"] * 2


# Keep-alive


def test_unload_idle_evicts_what_nobody_has_used_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    models, engine = models_loading("a", "b", "c"), Engine()
    loader = loader_of(models, engine)
    load_all(loader, engine, "a", "b", "c")
    busy = loader.lease("c")
    now = 100.0
    with loader.lease("b"):
        pass
    now = 300.0
    assert loader.unload_idle(300.5) == 0
    assert loader.unload_idle(300) == 1
    assert ids(loader.loaded()) == ["b", "c"]
    busy.release()
    now = 400.0
    assert loader.unload_idle(300) == 1
    assert ids(loader.loaded()) == ["c"]
    assert [*engine.running] == ["unload a", "unload b"]


# Odd input


def test_odd_arguments_are_named() -> None:
    models, engine = models_loading("a"), Engine()
    router = ModelRouter(models)

    odd: list[tuple[dict[str, Any], str]] = [
        ({"capacity": 0}, "capacity must be more than 0, not 0"),
        ({"capacity": math.nan}, "capacity must be more than 0, not nan"),
        ({"capacity": True}, "capacity must be a number, not True"),
        ({"capacity": "2"}, "capacity must be a number, not '2'"),
        ({"capacity": 2, "retry_after": -1}, "retry_after must be a finite number of 0 seconds or more, not -1"),
        ({"capacity": 2, "retry_after": None}, "retry_after must be a finite number of 0 seconds or more, not None"),
        ({"capacity": 2, "cost": 5}, "cost must be callable, not 5"),
        ({"capacity": 2, "manages": "a"}, "manages must be callable, not 'a'"),
        ({"router": models}, "router must be a ModelRouter, not <ModelRegistry"),
        ({"load": None}, "load must be callable, not None"),
        ({"unload": None}, "unload must be callable, not None"),
    ]
    for options, message in odd:
        arguments: dict[str, Any] = {
            "router": router,
            "load": engine.load,
            "unload": engine.unload,
            "capacity": 1,
        } | options
        with pytest.raises((TypeError, ValueError), match=message):
            ModelLoader(**arguments)
    with pytest.raises(ValueError, match="seconds must be a finite number of 0 seconds or more, not -1"):
        loader_of(models, engine).unload_idle(-1)


@pytest.mark.parametrize(
    ("cost", "kind"), [(-1, ValueError), (math.inf, ValueError), ("1", TypeError), (True, TypeError)]
)
def test_an_odd_cost_is_named_with_the_model(cost: Any, kind: type[Exception]) -> None:
    models, engine = models_loading("a"), Engine()
    loader = loader_of(models, engine, cost=lambda _: cost)
    with pytest.raises(kind, match=f"cost must return a .*number.*, not {cost!r}, for 'a'"):
        loader.lease("a")
    assert models.in_flight("a") == 0


def test_what_the_users_functions_raise_comes_out_of_lease() -> None:
    models, engine = models_loading("a"), Engine()

    def manages(endpoint: ModelEndpoint) -> bool:
        raise KeyError(endpoint.id)

    with pytest.raises(KeyError):
        loader_of(models, engine, manages=manages).lease("a")


def test_what_is_not_known_of_a_base_is_asked_while_an_adapter_waits() -> None:
    models, engine = adapters_on(LOADING, CODE), Engine(capacity=2)
    models.register(ModelEndpoint("other", "weights", status=LOADING))

    def cost(endpoint: ModelEndpoint) -> float:
        if endpoint.description:
            raise ValueError(endpoint.description)
        return 1

    loader = loader_of(models, engine, cost=cost)
    load_all(loader, engine, "other")
    with loader.lease("other") as busy, loader.lease("bonsai:code") as lease:
        models.register(ModelEndpoint("bonsai", "qwen", description="no such file", status=LOADING))
        error = failure(lease)
        assert isinstance(error, ModelNotReadyError)
        assert error.reason == "no such file"
        busy.release()


def test_a_model_that_goes_while_the_user_is_asked_is_just_gone() -> None:
    models, engine = adapters_on(LOADING, CODE), Engine(capacity=2)
    models.register(ModelEndpoint("other", "weights", status=LOADING))

    def cost(endpoint: ModelEndpoint) -> float:
        if endpoint.description:
            models.unregister(endpoint.id)
            raise ValueError(endpoint.description)
        return 1

    loader = loader_of(models, engine, cost=cost)
    load_all(loader, engine, "other")
    with loader.lease("other"), loader.lease("bonsai:code") as lease:
        models.register(ModelEndpoint("bonsai", "qwen", description="no such file", status=LOADING))
        assert isinstance(failure(lease), ModelNotFoundError)


def test_a_loader_says_what_it_has() -> None:
    models, engine = models_loading("a", "b"), Engine(capacity=1)
    loader = loader_of(models, engine)
    with loader.lease("a"), loader.lease("b"):
        assert repr(loader) == "<ModelLoader copies=1 waiting=1 capacity=1>"
    with loader.lease("a") as lease:
        assert repr(lease) == f"<LoadingLease of 'a' generation={lease.generation} held>"
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="a ModelLoader cannot be copied or pickled"):
            copied(loader)


def test_models_that_come_and_go_leave_nothing_behind() -> None:
    models, engine = ModelRegistry(), Engine(at_once=True)
    loader = loader_of(models, engine)
    sizes = []
    for number in range(400):
        id = f"user-{number}"
        models.register(ModelEndpoint(id, "weights", status=LOADING))
        with loader.lease(id) as lease:
            assert lease.loaded.done()
        models.unregister(id)
        if number % 200 == 199:
            gc.collect()
            sizes.append(len(gc.get_objects()))
    assert sizes[1] - sizes[0] < 100
    assert repr(loader).startswith("<ModelLoader copies=0 waiting=0")


def test_a_request_leaves_no_garbage() -> None:
    models = models_loading("a")
    loader = loader_of(models, Engine())

    class Local:
        pass

    def request() -> "weakref.ref[Local]":
        # The traceback of an error that something kept would keep this frame.
        local = Local()
        with suppress(RoutingError):
            loader.lease("a", 10_000).release()
        with suppress(RoutingError):
            loader.lease("a").release()
        return weakref.ref(local)

    gc.collect()
    gc.disable()
    try:
        for status in ("disabled", "loading"):
            models.set_status("a", status)
            assert request()() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("targets", [("base:x",), ("base:x", "base:y"), ({"base:x": 1, "base:y": 1},)])
def test_no_target_counts_as_loaded_that_was_loaded_onto_a_base_which_was_replaced(targets: Any) -> None:
    models, engine = models_loading("other"), Engine()
    models.register(ModelEndpoint("base", "weights"))
    adapters, loader = AdapterRegistry(models), loader_of(models, engine)
    for name in "xy":
        adapters.load(LoraAdapter(name, "base", ""), status="loading")
        with loader.lease(f"base:{name}"):
            engine.finish(f"load base:{name}")
    models.add_alias("chat", *targets)
    models.add_alias("soon", "other", "base")
    models.set_status("base", "disabled")
    leases: list[LoadingLease] = []
    # This callback comes after the write and before the loader's next plan, where another thread may come too.
    models.when_ready("soon").add_done_callback(lambda _: leases.append(loader.lease("chat")))
    models.register(ModelEndpoint("base", "weights"))
    [lease] = leases
    with lease:
        assert not lease.loaded.done()


def test_who_waits_for_a_target_that_is_removed_may_try_the_name_again() -> None:
    models = models_loading("v2", "v1")
    models.add_alias("chat", "v2", "v1")
    loader = loader_of(models, Engine())
    with loader.lease("chat") as waiting, loader.lease("v2") as gone:
        models.unregister("v2")
        failure = waiting.loaded.exception(timeout=0)
        assert isinstance(failure, ModelNotReadyError)
        assert (failure.status, failure.requested) == ("loading", "chat")
        assert isinstance(gone.loaded.exception(timeout=0), ModelNotFoundError)
    with loader.lease("chat") as lease:
        assert lease.endpoint.id == "v1"
