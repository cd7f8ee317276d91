"""Random calls, answered alike by the registry and by an oracle as plain as lists."""

import copy
import pickle
import random
from dataclasses import replace

import pytest
from read_write_helpers import answer, random_targets

from bonsai_routing import (
    ContextTooLongError,
    EndpointStatus,
    ModelEndpoint,
    ModelNotFoundError,
    ModelNotReadyError,
    ModelRegistry,
    ModelRouter,
    NoModelsAvailableError,
    RegistryChange,
)

NAMES = ["a", "b", "c", "a:x", "a:", "", "d", "e"]
STATUSES = list(EndpointStatus)


Tiers = list[str | dict[str, int]]


class Oracle:
    """The reference, with lists for dictionaries."""

    def __init__(self) -> None:
        self.endpoints: list[ModelEndpoint] = []
        self.declared: list[ModelEndpoint] = []
        self.aliases: list[tuple[str, Tiers]] = []
        self.default: str | None = None

    def at(self, id: str | None) -> ModelEndpoint | None:
        return next((each for each in self.endpoints if str(each.id) == id), None)

    def register(self, endpoint: ModelEndpoint) -> None:
        if endpoint.is_default:
            self.default = str(endpoint.id)
        old = self.at(str(endpoint.id))
        if old is None:
            self.endpoints.append(endpoint)
        else:
            self.endpoints[self.endpoints.index(old)] = endpoint
        self.declared = [each for each in self.declared if each.id != endpoint.id] + [endpoint]

    def unregister(self, id: str) -> ModelEndpoint | None:
        old = self.at(id)
        if old is not None:
            self.endpoints.remove(old)
            self.declared = [each for each in self.declared if each.id != old.id]
            self.aliases = [(alias, others) for alias, tiers in self.aliases if (others := without(tiers, id))]
            if self.default == id:
                self.default = None
        return old

    def add_alias(self, alias: str, *targets: str | dict[str, int]) -> None:
        places = [place for place, pair in enumerate(self.aliases) if pair[0] == alias]
        if places:
            self.aliases[places[0]] = (alias, [*targets])
        else:
            self.aliases.append((alias, [*targets]))

    def remove_alias(self, alias: str) -> bool:
        count = len(self.aliases)
        self.aliases = [pair for pair in self.aliases if pair[0] != alias]
        return len(self.aliases) < count

    def set_default(self, id: str | None) -> None:
        if id is not None and self.at(id) is None:
            raise ModelNotFoundError(id)
        self.default = id

    def set_status(self, id: str, status: EndpointStatus) -> bool:
        old = self.at(id)
        if old is None:
            return False
        changed = ModelEndpoint(
            old.id, old.base_model, max_context_length=old.max_context_length, is_default=old.is_default, status=status
        )
        self.endpoints[self.endpoints.index(old)] = changed
        return True

    def replace_with(self, other: "Oracle") -> RegistryChange:
        was, declared = self.endpoints, self.declared
        self.endpoints, self.declared = list(other.endpoints), list(other.declared)
        self.aliases, self.default = list(other.aliases), other.default
        added, changed = [], []
        for place, endpoint in enumerate(other.endpoints):
            live = next((each for each in was if each.id == endpoint.id), None)
            if live is None:
                added.append(str(endpoint.id))
                continue
            if endpoint != live and endpoint not in declared:
                changed.append(str(endpoint.id))
            known = [replace(each, is_default=endpoint.is_default) for each in (live, *declared)]
            if endpoint in known:
                self.endpoints[place] = replace(live, is_default=endpoint.is_default)
        removed = [str(each.id) for each in was if self.at(str(each.id)) is None]
        return RegistryChange(tuple(added), tuple(removed), tuple(changed))

    def named(self, name: str | None) -> list[ModelEndpoint]:
        """Return the registered endpoints that a name maps to, in the order in which they are named."""
        if name is None or self.at(name) is not None:
            endpoint = self.at(self.default if name is None else name)
            return [] if endpoint is None else [endpoint]
        ids = [id for tier in dict(self.aliases).get(name, []) for id in ([tier] if isinstance(tier, str) else tier)]
        return [endpoint for id in dict.fromkeys(ids) if (endpoint := self.at(id)) is not None]

    def ready(self, name: str | None) -> list[ModelEndpoint]:
        """Return the ready endpoints that a name maps to, the best first. Of a tier with weights it is the heaviest."""
        best: dict[str, None] = {}
        for tier in [] if name is None else dict(self.aliases).get(name, []):
            best.update(dict.fromkeys([tier] if isinstance(tier, str) else sorted(tier, key=tier.__getitem__)[::-1]))
        ready = [endpoint for endpoint in self.named(name) if endpoint.status == "ready"]
        return ready if len(ready) < 2 else sorted(ready, key=lambda endpoint: [*best].index(str(endpoint.id)))

    def resolve(self, name: str) -> ModelEndpoint | None:
        return next(iter([*self.ready(name), *self.named(name)]), None)

    def route(self, name: str | None) -> ModelEndpoint:
        return self.route_for_context(name, 0)

    def route_for_context(self, name: str | None, tokens: int) -> ModelEndpoint:
        named, ready = self.named(name), self.ready(name)
        if not named:
            raise NoModelsAvailableError if name is None else ModelNotFoundError(name)
        if not ready:
            raise ModelNotReadyError(str(named[0].id), named[0].status, requested=name)
        for endpoint in ready:
            if endpoint.max_context_length >= tokens:
                return endpoint
        if name is None:
            endpoint = largest([each for each in self.endpoints if each.status == "ready"])
            if endpoint.max_context_length >= tokens:
                return endpoint
        endpoint = largest([each for each in named if each.status == "ready"])
        raise ContextTooLongError(str(endpoint.id), tokens, endpoint.max_context_length)

    def candidates(self, name: str | None, tokens: int) -> list[ModelEndpoint]:
        able = [each for each in self.ready(name) if each.max_context_length >= tokens]
        if name is None and self.ready(None) and not able:
            able = [largest([each for each in self.endpoints if each.status == "ready"])]
        return [each for each in able if each.max_context_length >= tokens]

    def shown_aliases(self) -> list[tuple[str, object]]:
        return [(alias, shown(tiers)) for alias, tiers in self.aliases]


def largest(endpoints: list[ModelEndpoint]) -> ModelEndpoint:
    return max(endpoints, key=lambda endpoint: endpoint.max_context_length)


def without(tiers: Tiers, id: str) -> Tiers:
    """Return the tiers without one of their targets."""
    left: Tiers = []
    for tier in tiers:
        if isinstance(tier, dict):
            others = {other: weight for other, weight in tier.items() if other != id}
            left += [others] if others else []
        elif tier != id:
            left.append(tier)
    return left


def shown(tiers: Tiers) -> object:
    """Return the tiers as ``aliases()`` shows them."""
    plain = [tier if isinstance(tier, str) or len(tier) > 1 else next(iter(tier)) for tier in tiers]
    return plain[0] if set(map(str, plain)) == {str(plain[0])} and isinstance(plain[0], str) else tuple(plain)


def assert_alike(router: ModelRouter, oracle: Oracle) -> None:
    registry = router.registry
    assert list(registry) == oracle.endpoints
    assert len(registry) == len(oracle.endpoints)
    assert registry.available_endpoints() == [each for each in oracle.endpoints if each.status == "ready"]
    assert [entry.id for entry in router.models_list()] == [str(each.id) for each in registry.available_endpoints()]
    assert registry.default_endpoint() == oracle.at(oracle.default)
    assert [*registry.aliases().items()] == oracle.shown_aliases()
    for name in NAMES:
        assert registry.resolve(name) == oracle.resolve(name)
        assert (name in registry) == (oracle.resolve(name) is not None)
    for request in [*NAMES, None]:
        assert answer(router.route, request) == answer(oracle.route, request)
        for tokens in (0, 1, 2, 3, 4, 5):
            assert answer(router.route_for_context, request, tokens) == answer(
                oracle.route_for_context, request, tokens
            )
            able = answer(lambda name, n: [*router.candidates(name, n).able], request, tokens)
            assert able in (oracle.candidates(request, tokens), answer(oracle.route, request))


def step(chance: random.Random, registry: ModelRegistry, oracle: Oracle) -> None:
    name = chance.choice(NAMES)
    match chance.randrange(11):
        case 0 | 1 | 2:
            endpoint = ModelEndpoint(
                name,
                chance.choice("pq"),
                max_context_length=chance.randrange(5),
                is_default=chance.random() < 0.3,
                status=chance.choice([EndpointStatus.READY, *STATUSES]),
            )
            registry.register(endpoint)
            oracle.register(endpoint)
        case 3:
            assert registry.unregister(name) == oracle.unregister(name)
        case 4 | 5:
            targets = random_targets(chance, NAMES)
            registry.add_alias(name, *targets)
            oracle.add_alias(name, *targets)
        case 6:
            assert registry.remove_alias(name) == oracle.remove_alias(name)
        case 7:
            id = chance.choice([name, name, None])
            assert answer(registry.set_default, id) == answer(oracle.set_default, id)
        case _:
            status = chance.choice(STATUSES)
            assert registry.set_status(name, status) == oracle.set_status(name, status)


@pytest.mark.parametrize("seed", range(30))
def test_every_call_answers_as_the_oracle_does(seed: int) -> None:
    chance = random.Random(seed)
    router, oracle = ModelRouter(ModelRegistry()), Oracle()
    aside, aside_oracle = ModelRegistry(), Oracle()
    for _ in range(250):
        step(chance, router.registry, oracle)
        step(chance, aside, aside_oracle)
        match chance.randrange(40):
            case 0:
                router = chance.choice([copy.deepcopy(router), ModelRouter(copy.copy(router.registry))])
            case 1:
                router = pickle.loads(pickle.dumps(router))
            case 2 | 3:
                assert router.registry.replace_with(aside) == oracle.replace_with(aside_oracle)
        assert_alike(router, oracle)
    assert_alike(ModelRouter(aside), aside_oracle)
