"""An engine that loads and unloads when a test says so, and notices what must never happen to it."""

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from threading import Lock
from typing import Any

from bonsai_routing import (
    EndpointStatus,
    LoraAdapter,
    ModelEndpoint,
    ModelLoader,
    ModelRegistry,
    ModelRouter,
    Publication,
)


class Weights:
    """What an engine has loaded, until it is freed."""

    def __init__(self, id: str, number: int) -> None:
        self.id = id
        self.number = number
        self.is_freed = False

    def __repr__(self) -> str:
        return f"{self.id} #{self.number}"


class Engine:
    """Has at most one copy of each model and never costs more than *capacity*; an assertion fails otherwise.

    A load or an unload ends when the test calls :meth:`finish`; with *at_once* it has ended when it is called.
    """

    def __init__(
        self, *, capacity: float = 1_000, costs: Mapping[str, float] | None = None, at_once: bool = False
    ) -> None:
        self.capacity = capacity
        self.costs = costs or {}
        self.at_once = at_once
        # What was called, in order: "load a", "unload a".
        self.calls: list[str] = []
        # What has not ended, by "load a" and "unload a": its future and what ends it.
        self.running: dict[str, tuple[Future[Any], Callable[[], None]]] = {}
        # From the call of load() until the future of unload() is done, or that of a failed load().
        self.in_memory: Counter[str] = Counter()
        self.faults: list[str] = []
        # For the counters, when threads share an engine.
        self._lock = Lock()

    def cost(self, endpoint: ModelEndpoint) -> float:
        return self.costs.get(str(endpoint.id), 1)

    def load(self, endpoint: ModelEndpoint, adapter: LoraAdapter | None) -> "Future[Any]":
        assert (adapter is None) == (endpoint.adapter is None)
        id = str(endpoint.id)
        with self._lock:
            self.calls.append(f"load {id}")
            self.in_memory[id] += 1
            weights = Weights(id, self.calls.count(f"load {id}"))
            self._look(id)
        future: Future[Any] = Future()
        return self._run(f"load {id}", future, lambda: future.set_result(weights))

    def unload(self, publication: Publication) -> "Future[Any]":
        id = str(publication.endpoint.id)
        weights = publication.handle
        with self._lock:
            self.calls.append(f"unload {id}")
            if not isinstance(weights, Weights) or weights.id != id or weights.is_freed:
                self.faults.append(f"unload {id} with {weights!r}")
            else:
                weights.is_freed = True
        future: Future[Any] = Future()

        def end() -> None:
            self._leaves(id)
            future.set_result(None)

        return self._run(f"unload {id}", future, end)

    def finish(self, *calls: str) -> None:
        """End calls that are running, for example ``finish("load a")``."""
        for call in calls:
            self.running.pop(call)[1]()

    def fail(self, id: str, error: BaseException | None = None) -> None:
        """Let the load of a model fail."""
        future, _ = self.running.pop(f"load {id}")
        self._leaves(id)
        future.set_exception(error or MemoryError("out of memory"))

    def _run(self, call: str, future: "Future[Any]", end: Callable[[], None]) -> "Future[Any]":
        if self.at_once:
            end()
        else:
            self.running[call] = future, end
        return future

    def _leaves(self, id: str) -> None:
        with self._lock:
            self.in_memory[id] -= 1

    def _look(self, id: str) -> None:
        cost = sum(self.costs.get(each, 1) * count for each, count in self.in_memory.items())
        if self.in_memory[id] > 1:
            self.faults.append(f"two copies of {id}")
        if cost > self.capacity:
            self.faults.append(f"a cost of {cost}: {dict(self.in_memory)}")


def models_loading(*ids: str, **fields: Any) -> ModelRegistry:
    """Return a registry of models that are not loaded."""
    models = ModelRegistry()
    for id in ids:
        models.register(ModelEndpoint(id, "weights", status=EndpointStatus.LOADING, **fields))
    return models


def loader_of(models: ModelRegistry, engine: Engine, **options: Any) -> ModelLoader:
    options.setdefault("capacity", engine.capacity)
    options.setdefault("cost", engine.cost)
    return ModelLoader(ModelRouter(models), engine.load, engine.unload, **options)
