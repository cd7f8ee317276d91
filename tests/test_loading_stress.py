"""Loaders under threads, asyncio and exceptions at every instruction."""

import asyncio
import gc
import logging
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from engine_helpers import Engine, Weights, loader_of, models_loading
from instructions import ROUNDS, CutShort, cut_short_at, short_turns

from bonsai_routing import (
    AdapterRegistry,
    EndpointStatus,
    LoadingLease,
    LoraAdapter,
    ModelEndpoint,
    ModelLoader,
    ModelNotReadyError,
    ModelRegistry,
    ModelRouter,
    Publication,
    RoutingError,
)

LOADING = EndpointStatus.LOADING
IDS = ["a", "b", "x", "x:code", "x:math", "y:code"]


def models_with_adapters() -> ModelRegistry:
    models = models_loading("a", "b", "x")
    models.register(ModelEndpoint("y", "weights"))
    for base, name in (("x", "code"), ("x", "math"), ("y", "code")):
        AdapterRegistry(models).load(LoraAdapter(name, base, f"adapters/{name}"), status=LOADING)
    return models


class SlowEngine(Engine):
    """An engine whose threads load and unload for some microseconds, and sometimes fail."""

    def __init__(self, *, capacity: float, seed: int) -> None:
        super().__init__(capacity=capacity)
        self.pool = ThreadPoolExecutor(3)
        self.chance = random.Random(seed)

    def _run(self, call: str, future: "Future[Any]", end: Callable[[], None]) -> "Future[Any]":
        fails = call.startswith("load") and self.chance.random() < 0.05

        def work() -> None:
            time.sleep(0.0002)
            if fails:
                self._leaves(call.split()[1])
                future.set_exception(MemoryError("out of memory"))
            else:
                end()

        self.pool.submit(work)
        return future


def test_threads_never_run_on_weights_that_are_freed() -> None:
    models, engine = models_with_adapters(), SlowEngine(capacity=3, seed=1)
    loader = loader_of(models, engine, retry_after=0)
    torn_down: list[Weights] = []
    served: list[str] = []
    leases: list[LoadingLease] = []

    def requests(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(100 * ROUNDS):
            with suppress(RoutingError), loader.lease(chance.choice(IDS)) as lease:
                leases.append(lease)
                if chance.random() < 0.1:
                    with suppress(TimeoutError):
                        lease.loaded.result(timeout=0)
                else:
                    lease.loaded.result(timeout=60)
                    weights = lease.handle
                    assert isinstance(weights, Weights)
                    assert weights.id == lease.endpoint.id
                    if weights.is_freed:
                        torn_down.append(weights)
                    served.append(weights.id)

    def reloads(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(30 * ROUNDS):
            loader.unload_idle(0)
            if chance.random() < 0.5:
                models.replace_with(models_with_adapters())
            else:
                models.register(
                    ModelEndpoint(chance.choice("abx"), chance.choice(["weights", "other"]), status=LOADING)
                )
            time.sleep(0.0005)
        models.replace_with(models_with_adapters())

    with short_turns(), ThreadPoolExecutor(5) as threads:
        running = [threads.submit(requests, seed) for seed in range(4)] + [threads.submit(reloads, 4)]
        for each in running:
            each.result(timeout=120)
    loader.close().result(timeout=60)
    engine.pool.shutdown()
    assert served
    assert not torn_down
    assert not engine.faults
    assert not any(engine.in_memory.values())
    assert all(lease.loaded.done() for lease in leases)


def test_asyncio_never_runs_on_weights_that_are_freed() -> None:
    models, engine = models_with_adapters(), Engine(capacity=3, at_once=True)
    torn_down: list[Weights] = []
    served: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def load(endpoint: ModelEndpoint, adapter: LoraAdapter | None) -> object:
            future = engine.load(endpoint, adapter)
            await asyncio.sleep(0.0005)
            return future.result()

        async def unload(publication: Publication) -> None:
            await asyncio.sleep(0.0005)
            engine.unload(publication)

        loader = ModelLoader(
            ModelRouter(models),
            lambda endpoint, adapter: asyncio.run_coroutine_threadsafe(load(endpoint, adapter), loop),
            lambda publication: asyncio.run_coroutine_threadsafe(unload(publication), loop),
            capacity=3,
        )
        chance = random.Random(2)

        async def request() -> None:
            with loader.lease(chance.choice(IDS)) as lease:
                patience = 0.001 if chance.random() < 0.2 else 60
                await asyncio.wait_for(asyncio.wrap_future(lease.loaded), patience)
                weights = lease.handle
                await asyncio.sleep(0.0005)
                assert isinstance(weights, Weights)
                if weights.is_freed:
                    torn_down.append(weights)
                served.append(weights.id)

        results = await asyncio.gather(*(request() for _ in range(400 * ROUNDS)), return_exceptions=True)
        assert {type(result) for result in results} <= {type(None), TimeoutError}
        await asyncio.wait_for(asyncio.wrap_future(loader.close()), 60)

    asyncio.run(main())
    assert served
    assert not torn_down
    assert not engine.faults
    assert not any(engine.in_memory.values())


def request_all(loader: ModelLoader, engine: Engine) -> None:
    for id in ("a", "x:code", "b", "a"):
        with suppress(RoutingError), loader.lease(id):
            while engine.running:
                engine.finish(*engine.running)
    loader.unload_idle(0)


# A lease that is cut short before the caller has it is dropped, and says so.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("part", range(4))
def test_an_exception_at_any_instruction_leaves_a_loader_that_works(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # A log record that pytest keeps would keep the exception, and with it the lease in its traceback.
    monkeypatch.setattr(logging.getLogger("bonsai_routing"), "disabled", True)
    # Each part tries every 800th of some ten thousand places or, in a longer run, more.
    step = max(800 // ROUNDS, 1)
    place, cut = part * step // 4, [""]
    while cut:
        models, engine = models_with_adapters(), Engine(capacity=2, at_once=True)
        loader = loader_of(models, engine, retry_after=0)
        with suppress(CutShort), cut_short_at(place) as cut:
            request_all(loader, engine)
        gc.collect()
        for id in ("b", "x:math", "a"):
            endpoint = models.resolve(id)
            assert endpoint is not None
            if endpoint.status is not EndpointStatus.ERROR:
                with loader.lease(id) as lease:
                    assert lease.loaded.result(timeout=0) is None, place
                    assert isinstance(lease.handle, Weights)
                    assert not lease.handle.is_freed
        assert loader.close().result(timeout=0) is None, place
        # An exception in the engine, or just before its future is kept, loses what it has begun.
        assert not engine.faults or cut in (["Call.tell"], ["ModelId.__str__"]), place
        place += step
    assert place > 10_000


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
def test_a_signal_handler_may_release_what_waits() -> None:
    models, engine = models_loading("a", "b"), Engine(capacity=1)
    loader = loader_of(models, engine)
    held: list[LoadingLease] = []
    released = threading.Event()

    def handler(*_: object) -> None:
        while held:
            held.pop().release()
        released.set()

    before = signal.signal(signal.SIGALRM, handler)
    try:
        for _ in range(300 * ROUNDS):
            # Once each time, so that no handler interrupts another.
            signal.setitimer(signal.ITIMER_REAL, 0.0002)
            with loader.lease("a"):
                held.append(loader.lease("b"))
                if "load a" in engine.running:
                    engine.finish("load a")
            while held:
                held.pop().release()
            while engine.running:
                engine.finish(*engine.running)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    closed = loader.close()
    while engine.running:
        engine.finish(*engine.running)
    assert closed.done()
    assert not engine.faults
    with pytest.raises(ModelNotReadyError):
        loader.lease("a")
