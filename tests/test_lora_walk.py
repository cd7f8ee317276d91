"""Interleaved calls on one adapter registry, and random calls that are compared with an oracle."""

import copy
import random
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace

import pytest
from lora_helpers import BASE, CODE, NEWER, PLAIN, generation, in_flight, once_at, stack_of, state

from bonsai_routing import (
    AdapterBaseError,
    AdapterLoad,
    AdapterLoadedError,
    AdapterRegistry,
    EndpointStatus,
    LoraAdapter,
    ModelEndpoint,
    ModelId,
    ModelNotFoundError,
    ModelNotReadyError,
    ModelRegistry,
    ModelRouter,
    Publication,
    RoutingError,
    StackLease,
    StaleGenerationError,
)

# Interleaved calls.


def outcome(call: Callable[[AdapterRegistry], object], adapters: AdapterRegistry) -> object:
    """Return the answer or the error of a call, in a form that can be compared after all leases have ended."""
    try:
        answer = call(adapters)
    except RoutingError as error:
        return type(error), error.args
    if isinstance(answer, StackLease):
        key = answer.key
        # Leases of endpoints that drain count as well.
        leased = sum(in_flight(adapters.models).values()) + sum(each.leases for each in adapters.models.draining())
        answer.release()
        return key, leased
    return answer


def settled(answer: object) -> object:
    """Return the result of a future, which must be done, and any other answer unchanged."""
    return answer.result(timeout=0) if isinstance(answer, Future) else answer


# Stands for the answer of a call that is refused because it interrupted a write in its own thread.
REFUSED = object()


def small_registry(loaded: bool) -> AdapterRegistry:
    adapters = AdapterRegistry(ModelRegistry())
    adapters.models.register(BASE)
    if loaded:
        adapters.load(CODE)
    return adapters


def in_one_registry(*calls: Callable[[AdapterRegistry], object], loaded: bool) -> tuple[list[object], object]:
    """Return the answers of calls that follow one another, and the state after them."""
    adapters = small_registry(loaded)
    return [settled(outcome(call, adapters)) for call in calls], state(adapters.models)


def interleaved(
    call: Callable[[AdapterRegistry], object], other: Callable[[AdapterRegistry], object], place: int, loaded: bool
) -> tuple[object, object, object] | None:
    """Run *other* before instruction number *place* of *call*. Return their answers, and the state after them.

    If *call* is in the middle of a write there, *other* is refused and its answer is ``REFUSED``.
    Return ``None`` if *call* has fewer instructions.
    """
    adapters = small_registry(loaded)
    answers: list[object] = []

    def interrupt() -> None:
        try:
            answers.append(outcome(other, adapters))
        except RuntimeError:
            answers.append(REFUSED)

    def interrupted(adapters: AdapterRegistry) -> object:
        with once_at(place, interrupt):
            return call(adapters)

    answer = outcome(interrupted, adapters)
    if not answers:
        return None
    return settled(answer), settled(answers[0]), state(adapters.models)


@pytest.mark.parametrize("loaded", [False, True], ids=["absent", "loaded"])
@pytest.mark.parametrize(
    "call",
    [
        lambda adapters: adapters.load(CODE),
        lambda adapters: adapters.swap(NEWER),
        lambda adapters: adapters.swap(NEWER, expect=2),
        lambda adapters: adapters.unload("bonsai:code"),
        lambda adapters: adapters.lease_stack("bonsai", stack_of("code")),
        lambda adapters: adapters.get("bonsai:code"),
        list,
        len,
    ],
    ids=["load", "swap", "expect", "unload", "stack", "get", "list", "len"],
)
@pytest.mark.parametrize(
    "other",
    [
        lambda adapters: adapters.models.register(PLAIN),
        lambda adapters: adapters.models.unregister("bonsai:code"),
        lambda adapters: adapters.models.replace_with(ModelRegistry()),
        lambda adapters: adapters.swap(replace(CODE, source="elsewhere")),
    ],
    ids=["register", "unregister", "replace_with", "swap"],
)
def test_what_others_do_meanwhile_comes_before_or_after(
    call: Callable[[AdapterRegistry], object], other: Callable[[AdapterRegistry], object], loaded: bool
) -> None:
    (first, second), end = in_one_registry(call, other, loaded=loaded)
    allowed = [(first, second, end)]
    (second, first), end = in_one_registry(other, call, loaded=loaded)
    allowed.append((first, second, end))
    checked = 0
    for place in range(10_000):
        seen = interleaved(call, other, place, loaded)
        if seen is None:
            assert checked > 3, "nothing was stopped"
            return
        if seen[1] is not REFUSED:
            assert seen in allowed, f"stopped at place {place}"
            checked += 1
    pytest.fail("the call does not end")


# Random calls.


@dataclass(eq=False)
class Published:
    """A publication: the endpoint as it was declared, its own status, its adapter if it has one, and its leases."""

    declared: ModelEndpoint
    status: EndpointStatus
    adapter: LoraAdapter | None
    handle: object
    leases: int = 0
    # How the endpoint was when it was replaced or removed.
    last: ModelEndpoint | None = None

    def weights(self) -> tuple[str, str | None]:
        return self.declared.base_model, self.declared.adapter


@dataclass
class Block:
    """A ``loading`` block that has not ended."""

    block: AdapterLoad
    adapter: LoraAdapter
    known: Published
    serving: bool


class Oracle:
    """The published endpoints, their leases and the futures, as plain dictionaries and lists."""

    def __init__(self) -> None:
        self.live: dict[str, Published] = {}
        self.gone: list[Published] = []
        self.waits: list[tuple[Future[ModelEndpoint | None], Published | None]] = []
        self.leases: list[tuple[Callable[[], None], list[Published]]] = []
        self.generations: dict[int, Published] = {}
        self.loading: set[str] = set()

    def shown(self, published: Published) -> ModelEndpoint:
        """Return the endpoint of a publication as a registry shows it, or has last shown it."""
        if published.last is not None:
            return published.last
        if published.adapter is None:
            return replace(published.declared, status=published.status)
        base = self.shown(self.live[published.adapter.base_model])
        limit = published.adapter.max_context_length
        return replace(
            published.declared,
            status=published.status if base.status == "ready" else base.status,
            max_context_length=base.max_context_length if limit is None else min(limit, base.max_context_length),
        )

    def publish(
        self,
        endpoint: ModelEndpoint,
        adapter: LoraAdapter | None = None,
        status: EndpointStatus | None = None,
        handle: object = None,
    ) -> Published | None:
        id = str(endpoint.id)
        new = Published(endpoint, status or endpoint.status, adapter, handle)
        old = self.live.get(id)
        if old is not None:
            if new.weights() != old.weights():
                self.remove_followers(id)
            old.last = self.shown(old)
            self.gone.append(old)
        self.live[id] = new
        return old

    def remove(self, id: str) -> Published | None:
        old = self.live.get(id)
        if old is not None:
            self.remove_followers(id)
            old.last = self.shown(old)
            self.gone.append(self.live.pop(id))
        return old

    def remove_followers(self, base: str) -> None:
        for id, each in [*self.live.items()]:
            if each.adapter is not None and each.adapter.base_model == base:
                self.remove(id)

    def adapter(self, id: str) -> LoraAdapter | None:
        return self.live[id].adapter if id in self.live else None

    def fitting(self, adapter: LoraAdapter) -> ModelEndpoint:
        if adapter.base_model not in self.live:
            raise ModelNotFoundError(adapter.base_model)
        base = self.shown(self.live[adapter.base_model])
        limit = base.max_context_length if adapter.max_context_length is None else adapter.max_context_length
        weights = (adapter.trained_on or base.base_model).split("/")[-1].lower()
        if base.adapter is not None or limit > base.max_context_length or weights != base.base_model.lower():
            raise AdapterBaseError(adapter.name, adapter.base_model, "")
        return ModelEndpoint(adapter.id, base.base_model, adapter=adapter.name, max_context_length=limit)

    def load(self, adapter: LoraAdapter, handle: object) -> None:
        endpoint = self.fitting(adapter)
        if str(adapter.id) in self.live:
            raise AdapterLoadedError(str(adapter.id))
        self.publish(endpoint, adapter, handle=handle)

    def swap(self, adapter: LoraAdapter, expect: Published | None, handle: object) -> Published | None:
        endpoint = self.fitting(adapter)
        if expect is not None and expect is not self.live.get(str(adapter.id)):
            raise StaleGenerationError(str(adapter.id), 0, 0)
        return self.publish(endpoint, adapter, handle=handle)

    def set_status(self, id: str, status: EndpointStatus) -> None:
        if id in self.live:
            self.live[id].status = status

    def begin(self, adapter: LoraAdapter) -> tuple[Published, bool, Published | None]:
        """Begin a block: return what is there now, whether it keeps serving, and what was replaced."""
        endpoint, id = self.fitting(adapter), str(adapter.id)
        if id in self.loading:
            raise AdapterLoadedError(id)
        self.loading.add(id)
        serving = id in self.live and self.live[id].status == "ready"
        replaced = None
        if not serving:
            replaced = self.publish(endpoint, adapter, EndpointStatus.LOADING)
        return self.live[id], serving, replaced

    def end(self, block: Block, fails: bool, handle: object) -> Published | None:
        """End a block, and return what was replaced."""
        id = str(block.adapter.id)
        self.loading.remove(id)
        if block.known is not self.live.get(id):
            if not fails:
                raise StaleGenerationError(id, 0, 0)
        elif not block.serving:
            self.set_status(id, EndpointStatus.ERROR if fails else EndpointStatus.READY)
            block.known.handle = None if fails else handle
        elif not fails:
            return self.publish(self.fitting(block.adapter), block.adapter, handle=handle)
        return None

    def stack(self, base: str, names: list[str]) -> list[Published]:
        if base not in self.live:
            raise ModelNotFoundError(base)
        if self.live[base].declared.adapter is not None:
            raise AdapterBaseError("", base, "")
        ids = [base]
        for name in names:
            named = [id for id, each in self.live.items() if each.adapter is not None and each.adapter.name == name]
            found = [id for id in (f"{base}:{name}", name, *named) if self.adapter(id) is not None]
            ids.append(found[0] if found else "")
        for id in ids:
            if id not in self.live:
                raise ModelNotFoundError(id)
            adapter = self.adapter(id)
            if adapter is not None and adapter.base_model != base:
                raise AdapterBaseError(id, base, "")
            if self.shown(self.live[id]).status != "ready":
                raise ModelNotReadyError(id, "")
        return [self.live[id] for id in ids]

    def replace_with(self, contents: dict[str, tuple[ModelEndpoint, LoraAdapter | None, object]]) -> list[Published]:
        """Replace everything, and return what has gone."""
        old = dict(self.live)
        shown = {id: self.shown(each) for id, each in old.items()}
        kept: set[str] = set()
        self.live = {}
        for id, (endpoint, adapter, handle) in contents.items():
            live = old.get(id)
            if live is None or live.adapter != adapter:
                same = False
            elif adapter is None:
                same = endpoint in (shown[id], live.declared)
            else:
                same = endpoint.base_model == live.declared.base_model
            if live is not None and same:
                kept.add(id)
                live.declared = endpoint
                self.live[id] = live
            else:
                self.live[id] = Published(endpoint, endpoint.status, adapter, handle)
        gone = [each for id, each in old.items() if id not in kept]
        for each in gone:
            each.last = shown[str(each.declared.id)]
        self.gone.extend(gone)
        return gone

    def check(self, adapters: AdapterRegistry) -> None:
        models = adapters.models
        assert {str(each.id): each for each in models} == {id: self.shown(each) for id, each in self.live.items()}
        loaded = {id: each.adapter for id, each in self.live.items() if each.adapter is not None}
        assert {str(each.id): each for each in adapters} == loaded
        assert len(adapters) == len(loaded)
        for id, each in self.live.items():
            assert adapters.get(id) == each.adapter
            assert models.in_flight(id) == each.leases
            assert self.generations.setdefault(generation(models, id), each) is each
        for base in BASES:
            assert {str(each.id) for each in adapters.of(base)} == {
                id for id, each in loaded.items() if each.base_model == base
            }
        for future, published in self.waits:
            assert future.done() == (published is None or not published.leases)
            if future.done():
                assert future.result() == (None if published is None else published.last)
        draining = sorted((str(each.endpoint.id), each.leases) for each in models.draining())
        assert draining == sorted((str(each.declared.id), each.leases) for each in self.gone if each.leases)

    def check_idle(self, idle: list[Publication]) -> None:
        """Check that exactly those were idle that are gone and have no lease, each once."""
        expected = [each for each in self.gone if not each.leases]
        numbers = {id(each): number for number, each in self.generations.items()}
        assert {each.generation for each in idle} == {numbers[id(each)] for each in expected if id(each) in numbers}
        assert len(idle) == len(expected)
        assert len({each.generation for each in idle}) == len(idle)
        for each in idle:
            # What was published and replaced between two checks has no number here.
            known = self.generations.get(each.generation)
            if known is not None:
                assert (each.endpoint, each.adapter, each.handle) == (known.last, known.adapter, known.handle)


# Ids that can be confused: "a:x" is a base or an adapter, and "a:x:y" is an adapter of "a" or of "a:x".
BASES = ["a", "b", "a:x", "nowhere"]
NAMES = ["x", "y", "x:y"]
IDS = ["a", "b", "a:x", "a:y", "a:x:y", "b:x", "b:y"]


def raised(call: Callable[[], object]) -> type[RoutingError] | None:
    try:
        call()
    except RoutingError as error:
        return type(error)
    return None


class Walk:
    """A registry, its oracle, and random calls that are made on both."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.idle: list[Publication] = []
        self.adapters = AdapterRegistry(ModelRegistry(on_idle=self.idle.append))
        self.oracle = Oracle()
        self.blocks: list[Block] = []

    def random_base(self) -> ModelEndpoint:
        return ModelEndpoint(
            self.chance.choice(["a", "a", "b", "b", "a:x"]),
            self.chance.choice(["q", "Q", "r"]),
            max_context_length=self.chance.choice([2, 4]),
            adapter="odd" if self.chance.random() < 0.05 else None,
        )

    def random_adapter(self) -> LoraAdapter:
        return LoraAdapter(
            self.chance.choice(NAMES),
            self.chance.choice(["a", "a", "a", "b", "b", "a:x", "nowhere"]),
            self.chance.choice(["here", "there"]),
            max_context_length=self.chance.choice([None, None, None, 1, 3]),
            trained_on=self.chance.choice([None, None, None, "q", "org/Q", "r"]),
        )

    def random_handle(self) -> object:
        return self.chance.choice([None, object(), object()])

    def agree(self, real: Callable[[], object], plain: Callable[[], object]) -> None:
        """Check that both calls raise the same class of error, or that neither raises."""
        assert raised(real) == raised(plain)

    def register(self) -> None:
        endpoint = self.random_base()
        if self.chance.random() < 0.3:
            endpoint = replace(endpoint, id=ModelId(self.chance.choice(IDS)))
        handle = self.random_handle()
        if self.chance.random() < 0.5:
            self.adapters.models.register(endpoint, handle=handle)
            self.oracle.publish(endpoint, handle=handle)
        else:
            future = self.adapters.models.swap(endpoint, handle=handle)
            self.oracle.waits.append((future, self.oracle.publish(endpoint, handle=handle)))

    def remove(self) -> None:
        id = self.chance.choice(IDS)
        match self.chance.randrange(3):
            case 0:
                self.adapters.models.unregister(id)
                self.oracle.remove(id)
            case 1:
                self.oracle.waits.append((self.adapters.models.retire(id), self.oracle.remove(id)))
            case _:
                future = self.adapters.unload(id)
                loaded = self.oracle.adapter(id) is not None
                self.oracle.waits.append((future, self.oracle.remove(id) if loaded else None))

    def load(self) -> None:
        adapter, handle = self.random_adapter(), self.random_handle()
        self.agree(lambda: self.adapters.load(adapter, handle=handle), lambda: self.oracle.load(adapter, handle))

    def swap(self) -> None:
        adapter, handle, expected = self.random_adapter(), self.random_handle(), None
        if self.chance.random() < 0.5 and self.oracle.generations:
            # The current generation of the id, or any generation that was ever published.
            expected = self.oracle.live.get(str(adapter.id))
            if expected is None or self.chance.random() < 0.3:
                expected = self.chance.choice(list(self.oracle.generations.values()))
        expect = next((number for number, each in self.oracle.generations.items() if each is expected), None)
        futures: list[Future[ModelEndpoint | None]] = []
        replaced: list[Published | None] = []
        self.agree(
            lambda: futures.append(self.adapters.swap(adapter, handle=handle, expect=expect)),
            lambda: replaced.append(self.oracle.swap(adapter, expected, handle)),
        )
        self.oracle.waits.extend(zip(futures, replaced, strict=True))

    def begin(self) -> None:
        adapter = self.random_adapter()
        block = self.adapters.loading(adapter)
        begun: list[tuple[Published, bool, Published | None]] = []
        self.agree(block.__enter__, lambda: begun.append(self.oracle.begin(adapter)))
        for known, serving, replaced in begun:
            self.blocks.append(Block(block, adapter, known, serving))
            if serving:
                assert not block.idle.done()
            else:
                self.oracle.waits.append((block.idle, replaced))

    def end(self) -> None:
        if not self.blocks:
            return
        block = self.blocks.pop(self.chance.randrange(len(self.blocks)))
        fails = self.chance.random() < 0.4
        failure = ValueError("no") if fails else None
        block.block.handle = self.random_handle()

        def leave() -> None:
            try:
                block.block.__exit__(None if failure is None else type(failure), failure, None)
            except ValueError as error:
                if error is not failure:
                    raise

        replaced: list[Published | None] = []
        self.agree(leave, lambda: replaced.append(self.oracle.end(block, fails, block.block.handle)))
        if block.serving:
            self.oracle.waits.append((block.block.idle, replaced[0] if replaced else None))

    def lease(self) -> None:
        base = self.chance.choice(BASES[:3] + IDS)
        names = self.chance.sample([*NAMES, "a:x", "a:x:y", "b:y"], self.chance.choice([0, 1, 1, 2]))
        leases: list[StackLease] = []
        leased: list[list[Published]] = []
        self.agree(
            lambda: leases.append(self.adapters.lease_stack(base, stack_of(*names))),
            lambda: leased.append(self.oracle.stack(base, names)),
        )
        for lease, publications in zip(leases, leased, strict=True):
            for publication in publications:
                publication.leases += 1
            assert [each.adapter for each in lease.members] == [each.adapter for each in publications[1:]]
            assert [self.oracle.generations[each.generation] for each in lease.members] == publications[1:]
            assert [lease.handle, *(each.handle for each in lease.members)] == [each.handle for each in publications]
            self.oracle.leases.append((lease.release, publications))

    def lease_one(self) -> None:
        id = self.chance.choice(IDS)
        publication = self.oracle.live.get(id)
        if publication is not None and self.oracle.shown(publication).status == "ready":
            publication.leases += 1
            lease = ModelRouter(self.adapters.models).lease(id)
            assert lease.endpoint == self.oracle.shown(publication)
            assert (lease.adapter, lease.handle) == (publication.adapter, publication.handle)
            self.oracle.leases.append((lease.release, [publication]))

    def release(self) -> None:
        for _ in range(min(self.chance.randrange(4), len(self.oracle.leases))):
            release, publications = self.oracle.leases.pop(self.chance.randrange(len(self.oracle.leases)))
            release()
            if self.chance.random() < 0.2:
                release()
            for publication in publications:
                publication.leases -= 1

    def set_status(self) -> None:
        id, status = self.chance.choice(IDS), self.chance.choice([EndpointStatus.READY, *EndpointStatus])
        self.adapters.models.set_status(id, status)
        self.oracle.set_status(id, status)

    def replace_everything(self) -> None:
        other = AdapterRegistry(ModelRegistry())
        contents: dict[str, tuple[ModelEndpoint, LoraAdapter | None, object]] = {}
        kept = [each for each in self.oracle.live.values() if each.adapter is None]
        for endpoint in [*(each.declared for each in kept), self.random_base()]:
            if self.chance.random() < 0.8:
                handle = self.random_handle()
                other.models.register(endpoint, handle=handle)
                contents[str(endpoint.id)] = endpoint, None, handle
        for adapter in [*(each.adapter for each in self.oracle.live.values()), self.random_adapter()]:
            if adapter is not None and self.chance.random() < 0.8:
                with suppress(RoutingError):
                    contents[str(adapter.id)] = other.load(adapter, handle="new"), adapter, "new"
        change = self.adapters.models.replace_with(other.models)
        gone = self.oracle.replace_with(contents)
        assert change.idle.done() == (not any(each.leases for each in gone))
        if change.idle.done():
            assert sorted(map(str, change.idle.result())) == sorted(str(each.last) for each in gone)

    def step(self) -> None:
        often = [self.load, self.swap, self.lease, self.release, self.lease_one]
        seldom = [self.register, self.remove, self.begin, self.end, self.set_status]
        rare = [self.replace_everything]
        self.chance.choice(3 * often + 2 * seldom + rare)()


@pytest.mark.parametrize("seed", range(25))
def test_whatever_is_called_the_registry_does_what_the_oracle_says(seed: int) -> None:
    walk = Walk(seed)
    for id in ("a", "b"):
        walk.adapters.models.register(ModelEndpoint(id, "q"))
        walk.oracle.publish(ModelEndpoint(id, "q"))
    for _ in range(250):
        walk.step()
        walk.oracle.check(walk.adapters)
        walk.oracle.check_idle(walk.idle)
    twin = copy.deepcopy(walk.adapters)
    while walk.blocks:
        walk.end()
    for release, publications in walk.oracle.leases:
        release()
        for publication in publications:
            publication.leases -= 1
    walk.oracle.check(walk.adapters)
    assert all(future.done() for future, _ in walk.oracle.waits)
    assert walk.adapters.models.draining() == []
    assert in_flight(twin.models) == {}
