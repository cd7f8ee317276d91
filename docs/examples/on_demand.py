"""Serves requests for LoRA adapters with ModelLoader, and then with a plain LRU cache, and compares the two.

One base model is pinned. Forty LoRA adapters are on it, and eight of them fit into memory.
Worker threads serve the requests. The popularity of the adapters follows Zipf's law.
The engine is simulated: to load an adapter, to unload it and to run a request each take some milliseconds.
The LRU cache evicts the adapter that was requested least recently, even if a request is running on it.

The requests are the same for both. The program prints its progress, and at the end a table with these rows:

loads, evictions: how many there were until the last request ended
wait: the time from when a worker takes a request until the adapter is loaded
hit rate: the share of requests that found their adapter loaded
models torn down under a request: the number of requests whose adapter was unloaded before they ended

Run it with: python docs/examples/on_demand.py
The exit code is 1 if ModelLoader tore down a model under a request, and 0 otherwise.
"""

import argparse
import random
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from threading import Lock

from bonsai_routing import AdapterRegistry, LoraAdapter, ModelEndpoint, ModelLoader, ModelRegistry, ModelRouter

BASE = "bonsai-8b"
TORN_DOWN = "models torn down under a request"


@dataclass
class Weights:
    """The weights of an adapter in the memory of the engine."""

    freed: bool = False


@dataclass(frozen=True)
class Request:
    """A request for the model with this id, which runs for so many seconds."""

    id: str
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What happened to a request. ``wait`` is in seconds."""

    wait: float
    hit: bool
    torn_down: bool


class Engine:
    """A simulated engine, which loads and unloads in the threads of *pool*."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool = pool
        self.loads: list[str] = []
        self.unloads: list[Weights] = []

    def load(self, id: str) -> Future[Weights]:
        self.loads.append(id)
        return self.pool.submit(self._load)

    def unload(self, weights: Weights) -> Future[None]:
        self.unloads.append(weights)
        return self.pool.submit(self._unload, weights)

    def run(self, weights: Weights, seconds: float) -> bool:
        """Run a request, and return whether its weights were freed before it ended."""
        time.sleep(seconds)
        return weights.freed

    def _load(self) -> Weights:
        time.sleep(0.015)
        return Weights()

    def _unload(self, weights: Weights) -> None:
        weights.freed = True
        time.sleep(0.003)


class OnDemandServer:
    """Serves requests with a :class:`ModelLoader`."""

    def __init__(self, engine: Engine, names: list[str], capacity: int) -> None:
        self.engine = engine
        models = ModelRegistry()
        # The loader never evicts the base, because the base is registered as ready.
        models.register(ModelEndpoint(BASE, "qwen3-8b"))
        adapters = AdapterRegistry(models)
        for name in names:
            adapters.load(LoraAdapter(name, BASE, f"adapters/{name}"), status="loading")
        self.loader = ModelLoader(
            ModelRouter(models),
            load=lambda endpoint, adapter: engine.load(endpoint.id.value),
            unload=lambda publication: engine.unload(publication.handle),
            capacity=capacity,
        )

    def serve(self, request: Request) -> Outcome:
        start = time.monotonic()
        with self.loader.lease(request.id) as lease:
            hit = lease.loaded.done()
            lease.loaded.result()
            wait = time.monotonic() - start
            return Outcome(wait, hit, self.engine.run(lease.handle, request.seconds))


class LruServer:
    """Serves requests with a plain LRU cache, which does not know which models are in use."""

    def __init__(self, engine: Engine, capacity: int) -> None:
        self.engine = engine
        self.capacity = capacity
        # The models that are loaded or being loaded, the least recently used first. The lock protects this dictionary.
        self.models: OrderedDict[str, Future[Weights]] = OrderedDict()
        self.lock = Lock()

    def get(self, id: str) -> tuple[Weights, bool]:
        """Return the weights of a model when it is loaded, and whether it was loaded already."""
        with self.lock:
            present = self.models.pop(id, None)
            victim = self.evict() if present is None and len(self.models) >= self.capacity else None
            model = self.models[id] = Future() if present is None else present
            hit = model.done()
        if victim is not None:
            self.engine.unload(victim.result()).result()
        if present is None:
            model.set_result(self.engine.load(id).result())
        return model.result(), hit

    def evict(self) -> Future[Weights]:
        """Remove and return the least recently used model that is loaded, or the oldest one if none is loaded."""
        # The caller holds the lock.
        loaded = (id for id, model in self.models.items() if model.done())
        return self.models.pop(next(loaded, next(iter(self.models))))

    def serve(self, request: Request) -> Outcome:
        start = time.monotonic()
        weights, hit = self.get(request.id)
        wait = time.monotonic() - start
        return Outcome(wait, hit, self.engine.run(weights, request.seconds))


def hit_rate(outcomes: list[Outcome]) -> str:
    return f"{sum(outcome.hit for outcome in outcomes) / len(outcomes):.1%}"


def simulate(
    title: str, engine: Engine, serve: Callable[[Request], Outcome], requests: list[Request], workers: int
) -> dict[str, str]:
    """Serve the requests in so many threads, print the progress, and return a column of the table by its rows."""
    outcomes: list[Outcome] = []
    total = len(requests)
    with ThreadPoolExecutor(workers) as pool:
        for done, outcome in enumerate(pool.map(serve, requests), 1):
            outcomes.append(outcome)
            if done * 10 // total > (done - 1) * 10 // total:
                counts = f"{len(engine.loads):5} loads {len(engine.unloads):5} evictions"
                print(f"{title:15} {done:5} requests {counts}  hit rate {hit_rate(outcomes):>6}", flush=True)
    waits = sorted(1000 * outcome.wait for outcome in outcomes)
    return {
        "": title,
        "loads": str(len(engine.loads)),
        "evictions": str(len(engine.unloads)),
        "wait, median (ms)": f"{median(waits):.1f}",
        "wait, 99th percentile (ms)": f"{waits[total * 99 // 100]:.1f}",
        "hit rate": hit_rate(outcomes),
        TORN_DOWN: str(sum(outcome.torn_down for outcome in outcomes)),
    }


def positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def main(argv: list[str]) -> int:
    """Run both simulations, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=positive, default=1200, help="default: 1200")
    parser.add_argument("--adapters", type=positive, default=40, help="default: 40")
    parser.add_argument("--capacity", type=positive, default=8, help="how many adapters fit; default: 8")
    parser.add_argument("--workers", type=positive, default=8, help="default: 8")
    parser.add_argument("--seed", type=int, default=3, help="default: 3")
    options = parser.parse_args(argv)
    chance = random.Random(options.seed)
    names = [f"adapter-{rank}" for rank in range(1, options.adapters + 1)]
    popularity = [1 / rank for rank in range(1, options.adapters + 1)]
    chosen = chance.choices(names, popularity, k=options.requests)
    requests = [Request(f"{BASE}:{name}", chance.uniform(0.005, 0.045)) for name in chosen]
    with ThreadPoolExecutor(4) as pool:
        engine = Engine(pool)
        on_demand = OnDemandServer(engine, names, options.capacity)
        ours = simulate("ModelLoader", engine, on_demand.serve, requests, options.workers)
        on_demand.loader.close().result()
    with ThreadPoolExecutor(4) as pool:
        engine = Engine(pool)
        lru = LruServer(engine, options.capacity)
        plain = simulate("plain LRU cache", engine, lru.serve, requests, options.workers)
    for row, value in ours.items():
        print(f"{row:32}{value:>14}{plain[row]:>18}")
    return 1 if int(ours[TORN_DOWN]) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
