"""Random requests, loads, failures, reloads and releases, against a plain model of the rules."""

import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

import pytest
from engine_helpers import Engine, Weights, loader_of

from bonsai_routing import (
    AdapterRegistry,
    EndpointStatus,
    LoadingLease,
    LoraAdapter,
    ModelEndpoint,
    ModelNotReadyError,
    ModelRegistry,
    RoutingError,
)

LOADING, READY, ERROR = EndpointStatus.LOADING, EndpointStatus.READY, EndpointStatus.ERROR
IDS = ["a", "b", "c", "d", "e"]


@dataclass
class Copy:
    """What the plain model knows of one version of a model."""

    id: str
    cost: int
    version: int
    # All leases of this version, those included that have waited in vain and are still held.
    leases: set[int]
    used: int = 0
    # waiting, loading, loaded, or unloading
    state: str = "waiting"


class Rules:
    """The rules of loading for models that are no adapters, with lists and without any thread."""

    def __init__(self, capacity: int, costs: dict[str, int]) -> None:
        self.capacity, self.costs = capacity, costs
        self.versions = dict.fromkeys(costs, 0)
        self.failed: set[str] = set()
        self.copies: list[Copy] = []
        self.leases: dict[tuple[str, int], set[int]] = defaultdict(set)
        self.told: dict[int, str] = {}
        self.clock = count()

    def is_leaving(self, copy: Copy) -> bool:
        return self.versions[copy.id] != copy.version

    def in_memory(self) -> list[Copy]:
        return [copy for copy in self.copies if copy.state != "waiting"]

    def lease(self, lease: int, id: str) -> None:
        self.failed.discard(id)
        copy = next((each for each in self.copies if each.id == id and not self.is_leaving(each)), None)
        if copy is None:
            version = self.versions[id]
            copy = Copy(id, self.costs[id], version, self.leases[id, version])
            self.copies.append(copy)
        copy.leases.add(lease)
        copy.used = next(self.clock)
        if copy.state == "loaded":
            self.told[lease] = "loaded"

    def release(self, lease: int) -> None:
        for copy in self.copies:
            if lease in copy.leases:
                copy.used = next(self.clock)
        for leases in self.leases.values():
            leases.discard(lease)

    def replace(self, id: str) -> None:
        """Let the present version of a model leave the registry."""
        self.versions[id] += 1
        self.failed.discard(id)

    def tell(self, copy: Copy, answer: str) -> None:
        for lease in copy.leases:
            self.told.setdefault(lease, answer)

    def load_ends(self, id: str, succeeds: bool) -> None:
        copy = next(each for each in self.copies if each.id == id and each.state == "loading")
        copy.state = "loaded"
        if succeeds:
            if not self.is_leaving(copy):
                self.tell(copy, "loaded")
        else:
            if not self.is_leaving(copy):
                self.failed.add(id)
                self.tell(copy, "failed")
            self.copies.remove(copy)

    def unload_ends(self, id: str) -> None:
        self.copies.remove(next(each for each in self.copies if each.id == id and each.state == "unloading"))

    def idle(self) -> list[Copy]:
        return [each for each in self.in_memory() if each.state == "loaded" and not self.is_leaving(each)]

    def coming(self, also_busy: bool) -> int:
        leaving = [each for each in self.in_memory() if self.is_leaving(each)]
        return sum(
            each.cost for each in leaving if also_busy or (not each.leases and each.state in ("loaded", "unloading"))
        )

    def settle(self) -> None:
        """Do all that has become possible."""
        for copy in [*self.copies]:
            if self.is_leaving(copy) and copy.state in ("waiting", "loading"):
                self.tell(copy, "failed")
            if copy.state == "waiting" and (self.is_leaving(copy) or not copy.leases):
                self.copies.remove(copy)
            elif copy.state == "loaded" and self.is_leaving(copy) and not copy.leases:
                copy.state = "unloading"
        wanted = 0
        for copy in [each for each in self.copies if each.state == "waiting"]:
            memory = self.in_memory()
            if any(each.id == copy.id for each in memory):
                continue
            free = self.capacity - sum(each.cost for each in memory)
            if not wanted and copy.cost <= free:
                copy.state = "loading"
                # What is in memory stands in the order in which it came there.
                continue
            is_first, wanted = not wanted, wanted + copy.cost

            for victim in sorted(self.idle(), key=lambda each: (bool(each.leases), each.used)):
                # The room of what is in use comes later than that of what is idle.
                lacks = free + self.coming(also_busy=bool(victim.leases)) < wanted
                if lacks and (is_first or not victim.leases):
                    self.replace(victim.id)
            if free + self.coming(also_busy=True) < wanted:
                break
        for copy in self.copies:
            if copy.state == "loaded" and self.is_leaving(copy) and not copy.leases:
                copy.state = "unloading"

    def running(self) -> set[str]:
        names = {"loading": "load", "unloading": "unload"}
        return {f"{names[copy.state]} {copy.id}" for copy in self.copies if copy.state in names}


def outcome(lease: LoadingLease) -> str | None:
    if not lease.loaded.done():
        return None
    return "loaded" if lease.loaded.exception() is None else "failed"


@pytest.mark.parametrize("seed", range(60))
def test_plain_models_are_loaded_by_the_rules(seed: int) -> None:
    chance = random.Random(seed)
    capacity = chance.randint(1, 6)
    costs = {id: chance.randint(1, min(3, capacity)) for id in IDS}
    engine, rules, models = Engine(capacity=capacity, costs=costs), Rules(capacity, costs), ModelRegistry()
    for id in IDS:
        models.register(ModelEndpoint(id, "weights", status=LOADING))
    loader = loader_of(models, engine, retry_after=0)
    held: dict[int, LoadingLease] = {}
    taken: dict[int, LoadingLease] = {}
    for step in range(300):
        match chance.randrange(10):
            case 0 | 1 | 2:
                id = chance.choice(IDS)
                held[step] = taken[step] = loader.lease(id)
                rules.lease(step, id)
            case 3 | 4 if held:
                # Those who wait are more patient.
                answered = [number for number in held if held[number].loaded.done()]
                number = chance.choice(answered if answered and chance.random() < 0.8 else [*held])
                held.pop(number).release()
                rules.release(number)
            case 5 | 6 | 7 if engine.running:
                call = chance.choice(sorted(engine.running))
                verb, id = call.split()
                if verb == "load" and chance.random() < 0.2:
                    engine.fail(id)
                    rules.load_ends(id, succeeds=False)
                else:
                    engine.finish(call)
                    rules.unload_ends(id) if verb == "unload" else rules.load_ends(id, succeeds=True)
            case 8 if chance.random() < 0.3:
                id = chance.choice(IDS)
                models.register(ModelEndpoint(id, f"weights {step}", status=LOADING))
                rules.replace(id)
            case 9 if chance.random() < 0.3:
                idle = [copy for copy in rules.idle() if not copy.leases]
                assert loader.unload_idle(0) == len(idle)
                for copy in idle:
                    rules.replace(copy.id)
        rules.settle()
        assert {*engine.running} == rules.running(), step
        # A plan too many changes nothing.
        models.add_alias("alias", f"target {step}")
        assert {*engine.running} == rules.running(), step
        assert {number: outcome(lease) for number, lease in taken.items() if outcome(lease) and number in held} == {
            number: answer for number, answer in rules.told.items() if number in held
        }
        loaded = sorted(rules.idle(), key=lambda each: (bool(each.leases), each.used))
        assert [str(endpoint.id) for endpoint in loader.loaded()] == [copy.id for copy in loaded]
        assert {str(endpoint.id) for endpoint in models if endpoint.status is ERROR} == rules.failed
    assert not engine.faults
    for lease in held.values():
        lease.release()
    closed = loader.close()
    while engine.running:
        engine.finish(*engine.running)
    assert closed.done()
    assert all(lease.loaded.done() for lease in taken.values())
    assert not any(engine.in_memory.values())


# With bases, adapters, reloads and statuses that the server sets, what must never happen does not, and in the end
# everybody was told.

BASES = ["x", "y"]
ADAPTERS = [LoraAdapter(name, base, f"adapters/{name}") for base in BASES for name in ("code", "math", "law")]


def fresh(chance: random.Random) -> ModelRegistry:
    """Return a registry of some bases and adapters, of which some are pinned."""
    models = ModelRegistry()
    for id in ("a", "b", *BASES):
        if chance.random() < 0.9:
            weights = chance.choice(["weights", "weights", "weights", "other weights"])
            pinned = id == "y" and chance.random() < 0.5
            models.register(ModelEndpoint(id, weights, status=READY if pinned else LOADING))
    for adapter in ADAPTERS:
        if adapter.base_model in models and chance.random() < 0.9:
            own = READY if adapter.name == "law" else LOADING
            AdapterRegistry(models).load(adapter, status=own)
    return models


def weights_in_use(held: list[LoadingLease]) -> Iterator[Weights]:
    for lease in held:
        if lease.loaded.done() and lease.loaded.exception() is None and isinstance(lease.handle, Weights):
            yield lease.handle


@pytest.mark.parametrize("seed", range(60))
def test_with_adapters_nothing_is_torn_down_and_everybody_is_told(seed: int) -> None:
    chance = random.Random(seed)
    names = ["a", "b", *BASES, *(str(adapter.id) for adapter in ADAPTERS)]
    costs: dict[str, float] = {id: chance.randint(0, 3) for id in names}
    engine = Engine(capacity=chance.randint(4, 10), costs=costs, at_once=chance.random() < 0.2)
    models = fresh(chance)
    loader = loader_of(models, engine, retry_after=0)
    held: list[LoadingLease] = []
    taken: list[LoadingLease] = []
    for _ in range(300):
        match chance.randrange(12):
            case 0 | 1 | 2 | 3:
                with suppress(RoutingError):
                    lease = loader.lease(chance.choice(names))
                    held.append(lease)
                    taken.append(lease)
            case 4 | 5 | 6 if held:
                held.pop(chance.randrange(len(held))).release()
            case 7 | 8 if engine.running:
                call = chance.choice(sorted(engine.running))
                if call.startswith("load") and chance.random() < 0.2:
                    engine.fail(call.split()[1])
                else:
                    engine.finish(call)
            case 9:
                loader.unload_idle(0)
            case 10 if chance.random() < 0.3:
                models.replace_with(fresh(chance))
            case 11 if chance.random() < 0.5:
                id = chance.choice(names)
                match chance.randrange(3):
                    case 0:
                        models.unregister(id)
                    case 1:
                        models.set_status(id, chance.choice([LOADING, ERROR, EndpointStatus.DISABLED]))
                    case 2 if ":" not in id and id in models:
                        models.register(ModelEndpoint(id, "weights", status=LOADING))
        before = [*engine.calls], repr(loader)
        models.set_default(None)
        models.add_alias("alias", f"target {len(taken)} {len(held)} {len(engine.calls)}")
        models.remove_alias("alias")
        assert (engine.calls, repr(loader)) == before
        assert not engine.faults
        assert not [weights for weights in weights_in_use(held) if weights.is_freed]
        # An adapter runs on its base.
        for weights in weights_in_use(held):
            base = weights.id.partition(":")[0]
            assert base == weights.id or models.resolve(base) is None or engine.in_memory[base] or base == "y"
    # Whoever is loaded is used and released, and what runs ends, until nobody waits.
    for _ in range(1_000):
        answered = [each for each in held if each.loaded.done()]
        for lease in answered:
            held.remove(lease)
            lease.release()
        if not engine.running and not answered:
            break
        engine.finish(*engine.running)
    assert not held
    closed = loader.close()
    for _ in range(1_000):
        engine.finish(*engine.running)
    assert closed.done()
    assert not any(engine.in_memory.values())
    assert not engine.faults
    for lease in taken:
        assert lease.loaded.done()
        error = lease.loaded.exception()
        assert error is None or isinstance(error, RoutingError)


def test_the_plain_model_finds_faults() -> None:
    """The rules and a loader with another capacity part ways soon."""
    with pytest.raises(AssertionError):
        for seed in range(20):
            chance = random.Random(seed)
            engine, rules = Engine(), Rules(2, dict.fromkeys(IDS, 1))
            models = ModelRegistry()
            for id in IDS:
                models.register(ModelEndpoint(id, "weights", status=LOADING))
            loader = loader_of(models, engine, capacity=3)
            for step in range(50):
                id = chance.choice(IDS)
                with suppress(ModelNotReadyError), loader.lease(id):
                    rules.lease(step, id)
                    rules.settle()
                    assert {*engine.running} == rules.running()
