"""Sends the same burst of requests to a server with Ray Serve's ``serve.multiplexed`` and to one with ModelLoader.

Each server is a deployment of one replica, in a Ray cluster on this machine. The engine is simulated.
A request is *torn down* if its model is unloaded before the request ends.
The tests require that ModelLoader tears down no request. They only record the count for ``serve.multiplexed``, because
a later release of Ray may correct it.

Print both counts with: python tests/interop/test_ray_multiplexed.py
"""

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import pytest

from bonsai_routing import LoraAdapter, ModelEndpoint, ModelLoader, ModelRegistry, ModelRouter, Publication

ray = pytest.importorskip("ray", reason="needs Ray Serve: pip install 'ray[serve]'")
serve = pytest.importorskip("ray.serve", reason="needs Ray Serve: pip install 'ray[serve]'")

SEED = 11
# How many models fit into memory.
CAPACITY = 3
IDS = [f"model-{number}" for number in range(1, 9)]
# The model of each request, in the order in which the requests are sent.
REQUESTS = random.Random(SEED).choices(IDS, k=400)

# The seconds that the simulated engine takes for each model and for each request.
# serve.multiplexed tears down more requests if they run longer, and fewer if loading takes longer.
LOADING = 0.02
UNLOADING = 0.005
RUNNING = 0.2

# In seconds; far more than all requests take.
PATIENCE = 120


@dataclass(frozen=True)
class Report:
    """What happened to the requests that were sent to a server.

    ``most_loaded`` is the largest number of models that were in memory at the same time.
    """

    server: str
    answered: int
    torn_down: int
    loads: int
    most_loaded: int
    seconds: float

    def __str__(self) -> str:
        requests = f"{self.torn_down} of {self.answered} requests torn down"
        models = f"{self.loads} loads, at most {self.most_loaded} models loaded"
        return f"{self.server} in Ray {ray.__version__}: {requests}, {models}, {self.seconds:.1f} s, seed {SEED}"


class Memory:
    """Counts the models in memory, from the start of the load to the end of the unload."""

    def __init__(self) -> None:
        self.loads = 0
        self.loaded = 0
        self.most_loaded = 0
        # The lock protects the three counts.
        self.lock = Lock()

    def enter(self) -> None:
        with self.lock:
            self.loads += 1
            self.loaded += 1
            self.most_loaded = max(self.most_loaded, self.loaded)

    def leave(self) -> None:
        with self.lock:
            self.loaded -= 1


class Model:
    """A model of the simulated engine."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.is_freed = False

    async def load(self) -> None:
        self.memory.enter()
        await asyncio.sleep(LOADING)

    async def run(self) -> bool:
        """Run a request, and return whether the model was freed before the request ended."""
        await asyncio.sleep(RUNNING)
        return self.is_freed

    def free(self) -> None:
        """Free the model, unless it is freed already. Blocks the thread."""
        if not self.is_freed:
            self.is_freed = True
            time.sleep(UNLOADING)
            self.memory.leave()


class MultiplexedModel(Model):
    """A model for ``serve.multiplexed``, which calls ``__del__`` in a thread to unload it."""

    def __del__(self) -> None:
        # The garbage collector calls this again.
        self.free()


# importorskip() returns Any, and mypy does not accept a decorator without a type.
multiplexed: Callable[[Callable[[Any, str], Awaitable[Model]]], Callable[[Any, str], Awaitable[Model]]]
multiplexed = serve.multiplexed(max_num_models_per_replica=CAPACITY)


class Server:
    """A replica that serves requests. Each request is a call whose multiplexed model id is the id of its model."""

    title: str

    def __init__(self) -> None:
        self.memory = Memory()

    def counts(self) -> tuple[int, int]:
        """Return the number of loads, and the largest number of models in memory at the same time."""
        return self.memory.loads, self.memory.most_loaded


class MultiplexedServer(Server):
    """Serves requests with ``serve.multiplexed``, as Ray's documentation does."""

    title = "serve.multiplexed"

    @multiplexed
    async def load(self, id: str) -> Model:
        model = MultiplexedModel(self.memory)
        await model.load()
        return model

    async def __call__(self) -> bool:
        model = await self.load(serve.get_multiplexed_model_id())
        return await model.run()


class LeasingServer(Server):
    """Serves requests with :class:`ModelLoader`."""

    title = "ModelLoader"

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        models = ModelRegistry()
        for id in IDS:
            models.register(ModelEndpoint(id, "weights", status="loading"))
        self.loader = ModelLoader(ModelRouter(models), self.load, self.unload, capacity=CAPACITY)

    def load(self, endpoint: ModelEndpoint, adapter: LoraAdapter | None) -> Future[Model]:
        return asyncio.run_coroutine_threadsafe(self.load_model(), self.loop)

    async def load_model(self) -> Model:
        model = Model(self.memory)
        await model.load()
        return model

    def unload(self, publication: Publication) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(asyncio.to_thread(publication.handle.free), self.loop)

    async def __call__(self) -> bool:
        with self.loader.lease(serve.get_multiplexed_model_id()) as lease:
            await asyncio.wrap_future(lease.loaded)
            model: Model = lease.handle
            return await model.run()


@contextmanager
def ray_cluster() -> Iterator[None]:
    """Run a Ray cluster on this machine, without an HTTP server."""
    with pytest.MonkeyPatch.context() as patch:
        # The workers inherit the environment, and import this module by its name.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            serve.start(proxy_location="Disabled")
            yield
        finally:
            serve.shutdown()
            ray.shutdown()


def send_burst(server: type[Server]) -> Report:
    """Start a server, send all requests without waiting, and then wait for all answers."""
    # The replica may run all requests at the same time. The default of Ray Serve is five.
    options = {"max_ongoing_requests": len(REQUESTS), "ray_actor_options": {"num_cpus": 0}}
    application = serve.deployment(**options)(server).bind()
    handle = serve.run(application, name=server.__name__, route_prefix=None)
    start = time.monotonic()
    responses = [handle.options(multiplexed_model_id=id).remote() for id in REQUESTS]
    answers = [response.result(timeout_s=PATIENCE) for response in responses]
    seconds = time.monotonic() - start
    loads, most_loaded = handle.counts.remote().result(timeout_s=PATIENCE)
    return Report(server.title, len(answers), sum(answers), loads, most_loaded, seconds)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with ray_cluster():
        yield


def test_model_loader_tears_down_no_request_of_a_burst(cluster: None) -> None:
    report = send_burst(LeasingServer)
    print(report)
    assert report.answered == len(REQUESTS), report
    assert report.torn_down == 0, report
    assert report.most_loaded <= CAPACITY, report


def test_serve_multiplexed_answers_the_same_burst(
    cluster: None, record_property: Callable[[str, object], None]
) -> None:
    report = send_burst(MultiplexedServer)
    print(report)
    record_property("torn_down", report.torn_down)
    assert report.answered == len(REQUESTS), report


if __name__ == "__main__":
    with ray_cluster():
        for each in (MultiplexedServer, LeasingServer):
            print(send_burst(each))
