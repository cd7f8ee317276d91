"""How long the calls of a registry and its router take, as multiples of a look-up in a plain dictionary.

    python tests/benchmarks/run.py [--quick] [--json FILE] [--sizes N ...]

Prints a table and exits with 1 when a bar is missed.
"""

import argparse
import gc
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter_ns as clock

# What is measured is the package of this checkout, installed or not.
SOURCE = str(Path(__file__).parents[2] / "src")
sys.path.insert(0, SOURCE)

from bonsai_routing import (  # noqa: E402
    EndpointStatus,
    ModelEndpoint,
    ModelLoader,
    ModelNotFoundError,
    ModelRegistry,
    ModelRouter,
    suggestions,
)

SEED = 3
SMALL = 100
SIZES = (10, 1_000, 100_000)
MILLION = 1_000_000

# In tokens. Every endpoint takes FITS, and every one but the default takes FALLBACK.
FITS, FALLBACK, LARGEST = 4_096, 8_000, 1_000_000

LOADING, READY = EndpointStatus.LOADING, EndpointStatus.READY


class Floor:
    """What somebody would write by hand: a dictionary from every name to its endpoint."""

    __slots__ = ("_endpoints",)

    def __init__(self, endpoints: dict[str, ModelEndpoint]) -> None:
        self._endpoints = endpoints

    def get(self, name: str) -> ModelEndpoint | None:
        return self._endpoints.get(name)


class World:
    """A registry of *size* endpoints with an alias each, its floor, and what the operations are called with."""

    def __init__(self, size: int, calls: int) -> None:
        rng = random.Random(SEED)
        self.size, self.calls = size, calls
        self.registry = ModelRegistry()
        self.router = ModelRouter(self.registry)
        endpoints = built(rng, "bonsai-8b:adapter-", size)
        self.fresh = built(rng, "bonsai-8b:fresh-", min(size, calls))[1:]
        # Of each model the id, the endpoint and three aliases, of which the first is registered.
        self.models = [
            (endpoint.id.value, endpoint, f"chat-{i}", f"code-{i}", f"math-{i}") for i, endpoint in enumerate(endpoints)
        ]
        names: dict[str, ModelEndpoint] = {}
        for id, endpoint, alias, *_ in self.models:
            self.registry.register(endpoint)
            self.registry.add_alias(alias, id)
            names[id] = names[alias] = endpoint
        self.floor = Floor(names)
        self.largest = self.models[-1][0]
        # Every name is called in every round, so that a large registry is not measured in the processor's cache.
        # What is called without a name is set against the floor of one name, which is as easy on the cache.
        ids = [model[0] for model in self.models]
        turns = max(1, calls // size)
        self.names = {"one": [self.largest] * calls, "in order": ids * turns}
        rng.shuffle(self.models)
        self.names["ids"] = [model[0] for model in self.models] * turns
        self.names["aliases"] = [model[2] for model in self.models] * turns
        self.unknown = [f"{name}?" for name in self.names["ids"]]
        if size < SMALL:
            # The same models, loaded on demand.
            self.loader = loaded([model[0] for model in self.models])
            # The same models, under names with several targets.
            self.several = ModelRouter(several(endpoints))
            self.names["in tiers"] = [f"best-{id}" for id in ids] * turns
            names.update({f"best-{endpoint.id}": endpoint for endpoint in endpoints})


def loaded(ids: list[str]) -> ModelLoader:
    """Return a loader that has loaded a model of each id."""
    registry, done = ModelRegistry(), Future[None]()
    done.set_result(None)
    loader = ModelLoader(ModelRouter(registry), lambda *_: done, lambda _: done, capacity=len(ids))
    for id in ids:
        registry.register(ModelEndpoint(id, "qwen3-8b", status=LOADING))
        loader.lease(id).release()
    if len(loader.loaded()) != len(ids):
        raise AssertionError("not every model was loaded")
    return loader


def several(endpoints: list[ModelEndpoint]) -> ModelRegistry:
    """Return a registry with an alias for each endpoint that has another target first, and one with weights."""
    registry = ModelRegistry()
    for endpoint in endpoints:
        registry.register(endpoint)
        registry.add_alias(f"best-{endpoint.id}", "not registered", endpoint.id)
    registry.add_alias("split", {str(each.id): weight for each, weight in zip(endpoints, (60, 30, 10), strict=False)})
    return registry


def built(rng: random.Random, prefix: str, count: int) -> list[ModelEndpoint]:
    """Return a small default endpoint, many larger ones, and the largest."""
    contexts = [FITS, *(rng.randrange(2 * FITS, LARGEST) for _ in range(count - 2)), LARGEST]
    return [
        ModelEndpoint(f"{prefix}{i}", "qwen3-8b", max_context_length=context, is_default=i == 0)
        for i, context in enumerate(contexts)
    ]


# Each operation returns nanoseconds per call. What the loop itself takes, 4 ns, is left in all of them and in the
# floor, for a caller has a loop too.


def each(call: Callable[[str], object], names: list[str]) -> float:
    start = clock()
    for name in names:
        call(name)
    return (clock() - start) / len(names)


def floor(world: World, names: list[str]) -> float:
    return each(world.floor.get, names)


def resolve(world: World, names: list[str]) -> float:
    return each(world.registry.resolve, names)


def route(world: World, names: list[str]) -> float:
    return each(world.router.route, names)


def route_default(world: World, names: list[str]) -> float:
    call = world.router.route
    start = clock()
    for _ in names:
        call(None)
    return (clock() - start) / len(names)


def route_fits(world: World, names: list[str]) -> float:
    call = world.router.route_for_context
    start = clock()
    for name in names:
        call(name, FITS)
    return (clock() - start) / len(names)


def route_fallback(world: World, names: list[str]) -> float:
    call = world.router.route_for_context
    start = clock()
    for _ in names:
        call(None, FALLBACK)
    return (clock() - start) / len(names)


def lease(world: World, names: list[str]) -> float:
    call = world.router.lease
    start = clock()
    for name in names:
        call(name).release()
    return (clock() - start) / len(names)


def lease_loaded(world: World, names: list[str]) -> float:
    call = world.loader.lease
    start = clock()
    for name in names:
        call(name).release()
    return (clock() - start) / len(names)


def route_in_tiers(world: World, names: list[str]) -> float:
    return each(world.several.route, names)


def choose_by_key(world: World, names: list[str]) -> float:
    call = world.several.candidates
    start = clock()
    for name in names:
        call("split", key=name)
    return (clock() - start) / len(names)


def lease_by_key(world: World, names: list[str]) -> float:
    call = world.several.leases
    start = clock()
    for name in names:
        for lease in call("split", key=name):
            lease.release()
            break
    return (clock() - start) / len(names)


def flip_and_fallback(world: World, names: list[str]) -> float:
    call, flip = world.router.route_for_context, world.registry.set_status
    start = clock()
    for name, status in zip(names, [LOADING, READY] * (len(names) // 2), strict=True):
        flip(name, status)
        call(None, FALLBACK)
    return (clock() - start) / len(names)


def refuse(world: World, names: list[str]) -> float:
    call = world.router.route
    start = clock()
    for name in world.unknown:
        try:  # noqa: SIM105 -- suppress() would be measured as well
            call(name)
        except ModelNotFoundError:
            pass
    return (clock() - start) / len(names)


def models_list(world: World, names: list[str]) -> float:
    call = world.router.models_list
    start = clock()
    for _ in names[:: world.size]:
        call()
    return (clock() - start) / len(names)


def register(world: World, names: list[str]) -> float:
    call = world.registry.register
    turns, spent = max(1, world.calls // len(world.fresh)), 0
    for _ in range(turns):
        start = clock()
        for endpoint in world.fresh:
            call(endpoint)
        spent += clock() - start
        for endpoint in world.fresh:
            world.registry.unregister(endpoint.id)
    return spent / (turns * len(world.fresh))


def set_status(world: World, names: list[str]) -> float:
    call, ids = world.registry.set_status, names[: world.size]
    start = clock()
    for _ in range(len(names) // world.size):
        for status in (LOADING, READY):
            for name in ids:
                call(name, status)
    return (clock() - start) / (2 * len(names))


def renew(world: World, names: list[str]) -> float:
    unregister, register, add_alias = world.registry.unregister, world.registry.register, world.registry.add_alias
    models = world.models[: world.calls] * max(1, world.calls // world.size)
    for id, _, *aliases in models:
        for alias in aliases:
            add_alias(alias, id)
    start = clock()
    for id, endpoint, first, second, third in models:
        unregister(id)
        register(endpoint)
        add_alias(first, id)
        add_alias(second, id)
        add_alias(third, id)
    return (clock() - start) / len(models)


Operation = Callable[[World, list[str]], float]

# Measured in a small registry only: the second one that they need would be as large as the first.
SMALL_ONLY: tuple[tuple[str, Operation, str, float | None], ...] = (
    ("ModelLoader.lease(id), loaded, its release()", lease_loaded, "ids", 60),
    ("route(alias), second of two targets", route_in_tiers, "in tiers", 1.2),
    ("candidates(alias, key) of three", choose_by_key, "ids", 150),
    ("leases(alias, key) of three, one release()", lease_by_key, "ids", None),
)

# What is measured, the names of the floor to compare with, and the bar: at most how many times the floor it may take.
# What only reads comes first: it finds the memory as it was filled.
OPERATIONS: tuple[tuple[str, Operation, str, float | None], ...] = (
    ("floor: dict.get() in a method", floor, "ids", None),
    ("resolve(id)", resolve, "ids", 1.7),
    ("resolve(alias)", resolve, "aliases", 1.7),
    ("route(id)", route, "ids", 1.25),
    ("route(alias)", route, "aliases", 1.25),
    ("route(None)", route_default, "one", 1.25),
    ("route_for_context(id, n), it fits", route_fits, "ids", 1.8),
    ("route_for_context(alias, n), it fits", route_fits, "aliases", 1.8),
    ("route_for_context(None, n), fallback", route_fallback, "one", 3),
    ("the same after the largest flipped", flip_and_fallback, "one", 100),
    ("lease(id) and its release()", lease, "ids", 26),
    ("ModelNotFoundError, raised and caught", refuse, "ids", 20),
    ("models_list(), per entry", models_list, "in order", 4),
    ("register() of a new endpoint", register, "in order", 60),
    ("set_status() that changes", set_status, "ids", 75),
    ("unregister(), register(), three aliases", renew, "ids", 280),
)

# What making the list itself costs is shared by few entries in a small registry.
SMALL_BARS = {"models_list(), per entry": 7}


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. *bar* limits *times*, the multiple of what it is compared with, or else the median."""

    operation: str
    endpoints: int | None
    unit: str
    min: float
    median: float
    max: float
    times: float | None = None
    bar: float | None = None

    def held(self) -> bool:
        return self.bar is None or (self.median if self.times is None else self.times) <= self.bar

    def __str__(self) -> str:
        endpoints = "" if self.endpoints is None else f"{self.endpoints:,}"
        times = "" if self.times is None else f"{self.times:.2f}"
        bar = "" if self.bar is None else f"{self.bar:g}"
        spread = " ".join(f"{value:9,.1f}" for value in (self.min, self.median, self.max))
        verdict = "" if self.bar is None else "held" if self.held() else "MISSED"
        return f"{self.operation:45} {endpoints:>9} {spread} {self.unit:5} {times:>6} {bar:>4} {verdict}".rstrip()


def measured(title: str, operation: Operation, kind: str, bar: float | None, world: World, rounds: int) -> Row:
    """Measure the floor and an operation in turns, without garbage collection.

    The median is that of the rounds' own ratios: a slow spell of the machine slows both halves of a round.
    """
    names = world.names[kind]
    gc.collect()
    gc.disable()
    pairs = [(floor(world, names), operation(world, names)) for _ in range(rounds)]
    gc.enable()
    times = round(median(spent / base for base, spent in pairs), 2)
    spent = [spent for _, spent in pairs]
    return Row(title, world.size, "ns", min(spent), median(spent), max(spent), times, bar)


def speed(sizes: Iterable[int], quick: bool, only: Container[str] | None = None) -> Iterator[Row]:
    """Measure the operations, or *only* those of these titles, at every size."""
    for size in sizes:
        world = World(size, 5_000 if quick else 20_000)
        for operation in (*OPERATIONS, *(SMALL_ONLY if size < SMALL else ())):
            if only is None or operation[0] in only:
                title, call, kind, bar = operation
                if size < SMALL:
                    bar = SMALL_BARS.get(title, bar)
                yield measured(title, call, kind, bar, world, 5 if quick else 21)


def memory(title: str, with_alias: bool, count: int = 100_000) -> Row:
    """Measure what a registered endpoint takes: all its objects but the strings."""
    names = [(f"bonsai-8b:adapter-{i}", f"chat-{i}") for i in range(count)]
    tracemalloc.start()
    registry = ModelRegistry()
    for i, (id, alias) in enumerate(names):
        registry.register(ModelEndpoint(id, "qwen3-8b", max_context_length=FITS + i))
        if with_alias:
            registry.add_alias(alias, id)
    taken = tracemalloc.get_traced_memory()[0] / count
    tracemalloc.stop()
    return Row(title, count, "bytes", taken, taken, taken, bar=850 if with_alias else 650)


def a_million() -> Iterator[Row]:
    """Register a million endpoints, and route to every one."""
    registry = ModelRegistry()
    endpoints = built(random.Random(SEED), "bonsai-8b:adapter-", MILLION)
    names = [endpoint.id.value for endpoint in endpoints]
    start = clock()
    for endpoint in endpoints:
        registry.register(endpoint)
    registered = (clock() - start) / MILLION
    routed = each(ModelRouter(registry).route, names)
    if list(map(ModelRouter(registry).route, names)) != endpoints:
        raise AssertionError("a million endpoints are registered, and not every one is found")
    yield Row("register(), from none to a million", MILLION, "ns", registered, registered, registered)
    yield Row("route(id), in the same order", MILLION, "ns", routed, routed, routed)


def suggesting(count: int) -> Iterator[Row]:
    """Measure suggestions for a name with a typo, among many names of the same length."""
    for length, before in ((10, "m-"), (60, "organisation-" * 4)):
        names = [
            before + f"{n * 6_700_417_003 % 10 ** (length - len(before)):0{length - len(before)}d}"
            for n in range(count)
        ]
        registry = ModelRegistry()
        for name in names:
            registry.register(ModelEndpoint(name, "weights"))
        wrong = names[424][:-1] + "x"
        spent = []
        for _ in range(5):
            start = clock()
            suggestions(registry, wrong)
            spent.append((clock() - start) / 1e6)
        yield Row(f"suggestions(), {length} characters", count, "ms", min(spent), median(spent), max(spent))


def importing(rounds: int) -> Iterator[Row]:
    """Measure imports in fresh interpreters, in turns, each module compiled beforehand."""
    base = "import asyncio"
    statements: dict[str, float | None] = {base: None, "import bonsai_routing": 1.2}
    spent: dict[str, list[float]] = {title: [] for title in statements}
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "PYTHONPATH": SOURCE,
            "PYTHONPYCACHEPREFIX": folder,
            "PYTHONDONTWRITEBYTECODE": "",
        }
        for _ in range(1 + rounds):
            for title in statements:
                code = f"from time import perf_counter_ns as clock; a = clock(); {title}; print(clock() - a)"
                spent[title].append(int(subprocess.check_output([sys.executable, "-c", code], env=environment)) / 1e6)
    for title, (_, *times) in spent.items():
        ratio = round(median(times) / median(spent[base][1:]), 2)
        yield Row(title, None, "ms", min(times), median(times), max(times), ratio, statements[title])


def rows(sizes: Iterable[int], quick: bool) -> Iterator[Row]:
    yield from speed(sizes, quick)
    yield memory("memory of an endpoint", with_alias=False)
    yield memory("memory of an endpoint and an alias", with_alias=True)
    if not quick:
        yield from a_million()
    yield from suggesting(1_000)
    yield from suggesting(100_000)
    yield from importing(9 if quick else 41)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and not a million endpoints")
    parser.add_argument("--json", metavar="FILE", help="write the table there as well")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, metavar="N", help="numbers of endpoints, from 3")
    options = parser.parse_args()
    about = {
        "python": sys.version,
        "gil": "on" if getattr(sys, "_is_gil_enabled", lambda: True)() else "off",
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "seed": SEED,
    }
    for key, value in about.items():
        print(f"{key}: {value}")
    print(f"\n{'operation':45} endpoints {'min':>9} {'median':>9} {'max':>9} {'unit':5} {'times':>6} {'bar':>4}")
    done: list[Row] = []
    for row in rows(options.sizes, options.quick):
        print(row, flush=True)
        done.append(row)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({**about, "rows": [{**asdict(row), "held": row.held()} for row in done]}, file, indent=1)
    return 0 if all(row.held() for row in done) else 1


if __name__ == "__main__":
    sys.exit(main())
