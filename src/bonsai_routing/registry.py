"""The directory of served models: which endpoints exist, and by which names they are found."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import attrgetter

from bonsai_routing._checks import check_name
from bonsai_routing._directory import VACANT, Directory, Slot
from bonsai_routing._futures import futures
from bonsai_routing.endpoint import EndpointStatus, ModelEndpoint, with_status
from bonsai_routing.leases import DrainingEndpoint, Ledger
from bonsai_routing.model_id import ModelId

__all__ = ["ModelRegistry", "RegistryChange"]

# How often something that takes long is tried again because a write came in between.
_ATTEMPTS = 8

_ENDPOINT = attrgetter("endpoint")


@dataclass(frozen=True, slots=True)
class RegistryChange:
    """What :meth:`ModelRegistry.replace_with` changed: the ids of endpoints, as text.

    ``added`` and ``changed`` are in the new order of registration, ``removed`` in the old one.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]


class ModelRegistry:
    """A directory of model endpoints, with aliases and a default.

    Safe to share between threads: reading takes no lock and never sees a half-done write.
    ``name in registry`` tells whether the name resolves; iteration gives the endpoints in the order of their first
    registration.
    A copy, deep or shallow or by pickle, shares nothing with the original.
    An empty registry is false, as everything of length 0 is.

    >>> registry = ModelRegistry()
    >>> registry.register(ModelEndpoint("bonsai-8b", "qwen3-8b"))
    >>> registry.add_alias("chat", "bonsai-8b")
    >>> registry.resolve("chat")
    ModelEndpoint('bonsai-8b', 'qwen3-8b')
    """

    __slots__ = ("_directory", "_ledger", "_writes")

    def __init__(self) -> None:
        self._directory = Directory()
        # Owns the lock that every write holds from start to end. The most frequent writes acquire and release it by
        # hand, which takes half as long as "with".
        self._ledger = Ledger()
        # Counts the writes begun, so that what takes long can tell whether one came in between. A generation is the
        # number of the write that published it.
        self._writes = 0

    def register(self, endpoint: ModelEndpoint) -> None:
        """Add *endpoint* under its id, in place of any endpoint there.

        It becomes the default if it says so; otherwise the default stays what it is.
        Raises ``TypeError`` when *endpoint* is not a :class:`ModelEndpoint`.
        """
        if not isinstance(endpoint, ModelEndpoint):
            raise TypeError(f"endpoint must be a ModelEndpoint, not {endpoint!r}")
        ledger = self._ledger
        ledger.lock.acquire()
        try:
            self._publish(endpoint)
        finally:
            ledger.lock.release()
        if ledger.returned or ledger.idle:
            ledger.settle()

    def swap(self, endpoint: ModelEndpoint) -> "futures.Future[ModelEndpoint | None]":
        """Do what :meth:`register` does, and return a future of the endpoint that was replaced.

        New requests get *endpoint* at once.
        The future completes with the old one when its last lease has ended, at once if it has none, and with ``None``
        if there was no old one.
        Its callbacks run outside every lock, in the thread that ends that lease or, if the registry is busy just then,
        in the one that keeps it busy.
        Cancelling it gives up waiting and nothing else.
        """
        if not isinstance(endpoint, ModelEndpoint):
            raise TypeError(f"endpoint must be a ModelEndpoint, not {endpoint!r}")
        future: futures.Future[ModelEndpoint | None] = futures.Future()
        with self._ledger.lock:
            self._publish(endpoint, future)
        self._ledger.settle()
        return future

    def unregister(self, id: ModelId | str) -> ModelEndpoint | None:
        """Remove the endpoint of that id, with every alias of it, and return it; ``None`` if there is none.

        If it was the default, there is no default afterwards.
        An alias is not an id: it cannot be used to unregister.
        """
        key = id if isinstance(id, str) else check_name("id", id)
        ledger = self._ledger
        ledger.lock.acquire()
        try:
            return self._remove(key)
        finally:
            ledger.lock.release()
            if ledger.returned or ledger.idle:
                ledger.settle()

    def retire(self, id: ModelId | str) -> "futures.Future[ModelEndpoint | None]":
        """Do what :meth:`unregister` does, and return a future of the removed endpoint, as :meth:`swap` does."""
        key = check_name("id", id)
        future: futures.Future[ModelEndpoint | None] = futures.Future()
        with self._ledger.lock:
            self._remove(key, future)
        self._ledger.settle()
        return future

    def generation(self, id: ModelId | str) -> int | None:
        """Return the number of the present publication of that id, which no other one has; ``None`` if there is none.

        See :class:`Lease` for what it is good for.
        """
        key = check_name("id", id)
        with self._ledger.lock:
            generation = self._generation(key)
        self._ledger.settle()
        return generation

    def in_flight(self, id: ModelId | str) -> int:
        """Return how many leases of the present endpoint of that id are held; 0 if there is none."""
        key = check_name("id", id)
        with self._ledger.lock:
            generation = self._generation(key)
            leases = 0 if generation is None else self._ledger.in_flight(generation)
        self._ledger.settle()
        return leases

    def draining(self) -> list[DrainingEndpoint]:
        """Return the endpoints that were replaced or removed and are still leased, the first to go first."""
        with self._ledger.lock:
            draining = self._ledger.draining()
        self._ledger.settle()
        return draining

    def add_alias(self, alias: str, target: ModelId | str) -> None:
        """Let *alias* lead to the id *target*, in place of where it led before.

        The target need not be registered yet: the alias resolves as soon as it is.
        An alias leads to an id, never to another alias, and an id hides an alias of the same name.
        """
        if not isinstance(alias, str):
            raise TypeError(f"alias must be a str, not {alias!r}")
        key = target if isinstance(target, str) else check_name("target", target)
        ledger = self._ledger
        ledger.lock.acquire()
        try:
            self._writes += 1
            self._directory.point(alias, key)
        finally:
            ledger.lock.release()
        if ledger.returned or ledger.idle:
            ledger.settle()

    def resolve(self, id_or_alias: ModelId | str) -> ModelEndpoint | None:
        """Return the endpoint of that id or, if there is none, of that alias; ``None`` if there is neither.

        The endpoint may be in any status.
        """
        try:
            endpoint = self._directory.names[id_or_alias].endpoint
            if endpoint is not None:
                return endpoint
        except (KeyError, TypeError):
            pass
        return self._find(check_name("id_or_alias", id_or_alias))

    def default_endpoint(self) -> ModelEndpoint | None:
        """Return the endpoint for requests that name no model, in any status; ``None`` if there is none."""
        return self._directory.leading()[0]

    def available_endpoints(self) -> list[ModelEndpoint]:
        """Return the ready endpoints, in the order of first registration."""
        return [endpoint for endpoint in self.all_endpoints() if endpoint.status is EndpointStatus.READY]

    def all_endpoints(self) -> list[ModelEndpoint]:
        """Return all endpoints, in the order of first registration."""
        return [endpoint for endpoint in self._listing()[1] if endpoint is not None]

    def set_status(self, id: ModelId | str, status: EndpointStatus | str) -> bool:
        """Give the endpoint of that id another status; return whether there is one.

        An alias is not an id here.
        Raises ``ValueError`` when *status* is text that names no status.
        """
        key = check_name("id", id)
        # Calling an enum takes long even when there is nothing to convert.
        if not isinstance(status, EndpointStatus):
            status = EndpointStatus(status)
        ledger = self._ledger
        ledger.lock.acquire()
        try:
            return self._set_status(key, status)
        finally:
            ledger.lock.release()
            if ledger.returned or ledger.idle:
                ledger.settle()

    def replace_with(self, other: "ModelRegistry") -> RegistryChange:
        """Take over all of *other*'s endpoints, aliases and default in one step, and return what that changed.

        A reader sees all of the old registry or all of the new one; *other* shares nothing with this one afterwards.
        An endpoint that *other* has just as it is here, or as it was registered here, is unchanged.
        It keeps its present status, the time of its registration, its generation and its leases.
        One that differs in nothing but ``is_default`` is changed, and keeps them too.
        """
        if not isinstance(other, ModelRegistry):
            raise TypeError(f"other must be a ModelRegistry, not {other!r}")
        return self._take_over(other._contents())

    def __len__(self) -> int:
        writes = self._writes
        if not self._ledger.lock.locked():
            count = len(self._directory.slots)
            if writes == self._writes:
                return count
        # A write may be under way, in which a slot is vacant.
        return len(self.all_endpoints())

    def is_empty(self) -> bool:
        """Return whether no endpoint is registered; aliases do not count."""
        return not len(self)

    def __contains__(self, name: object) -> bool:
        return self._find(check_name("name", name)) is not None

    def __iter__(self) -> Iterator[ModelEndpoint]:
        return iter(self.all_endpoints())

    def __repr__(self) -> str:
        return f"<ModelRegistry endpoints={len(self)} aliases={len(self._directory.aliases)}>"

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (type(self), self._contents())

    def _publish(
        self,
        endpoint: ModelEndpoint,
        future: "futures.Future[ModelEndpoint | None] | None" = None,
        attached: object = None,
    ) -> int:
        """Publish *endpoint*, let the one that it replaces drain, and return the new generation. Needs the lock."""
        self._writes = generation = self._writes + 1
        directory, id = self._directory, endpoint.id.value
        slot = directory.slots.get(id)
        if slot is None or slot.endpoint is None:
            slot = directory.admit(id, generation)
            if future is not None:
                future.set_result(None)
        else:
            self._ledger.leave(slot.generation, slot.endpoint, future)
            directory.declared.pop(id, None)
            if attached is None:
                directory.attached.pop(id, None)
        if attached is not None:
            # Nobody asks for it before an endpoint with an adapter is there.
            directory.attached[id] = attached
        slot.generation = generation
        slot.registered_at = int(time.time())
        directory.flip(slot, endpoint, endpoint.is_default)
        return generation

    def _generation(self, id: str) -> int | None:
        """Do what ``generation`` does. Needs the lock."""
        slot = self._directory.slots.get(id)
        return None if slot is None else slot.generation

    def _set_status(self, id: str, status: EndpointStatus) -> bool:
        """Do what ``set_status`` does. Needs the lock."""
        directory = self._directory
        slot = directory.slots.get(id)
        if slot is None or slot.endpoint is None:
            return False
        if slot.endpoint.status is not status:
            self._writes += 1
            directory.declared.setdefault(id, slot.endpoint)
            directory.flip(slot, with_status(slot.endpoint, status))
        return True

    def _remove(self, id: str, future: "futures.Future[ModelEndpoint | None] | None" = None) -> ModelEndpoint | None:
        """Remove the endpoint of that id, let it drain, and return it. Needs the lock."""
        directory = self._directory
        slot = directory.slots.get(id)
        if slot is None or slot.endpoint is None:
            if future is not None:
                future.set_result(None)
            return None
        self._writes += 1
        removed = slot.endpoint
        if self._ledger.leases or future is not None:
            self._ledger.leave(slot.generation, removed, future)
        directory.flip(slot, None)
        if directory.attached:
            directory.attached.pop(id, None)
        directory.dismiss(id)
        return removed

    def _contents(self) -> "_Contents":
        """Return what a copy needs: all endpoints, the aliases, and the default's id."""
        with self._ledger.lock:
            directory = self._directory
            endpoints = [
                (
                    slot.endpoint,
                    directory.declared.get(slot.id, slot.endpoint),
                    slot.registered_at,
                    directory.attached.get(slot.id),
                )
                for slot in directory.slots.values()
                if slot.endpoint is not None
            ]
            aliases = {alias: slot.id for alias, slot in directory.aliases.items()}
            default = directory.steady.default
        self._ledger.settle()
        return endpoints, aliases, None if default is VACANT else default.id

    def _take_over(self, contents: "_Contents") -> RegistryChange:
        """Publish a directory of these contents in one store."""
        try:
            # It is built without the lock, so that nobody waits, unless writers come in between every time.
            for _ in range(_ATTEMPTS):
                with self._ledger.lock:
                    first, last = self._reserve(contents)
                built = self._built(contents, first)
                with self._ledger.lock:
                    if self._writes == last:
                        return self._publish_all(*built)
            with self._ledger.lock:
                first, _ = self._reserve(contents)
                return self._publish_all(*self._built(contents, first))
        finally:
            self._ledger.settle()

    def _reserve(self, contents: "_Contents") -> tuple[int, int]:
        """Set a generation aside for each endpoint, and return the first and the last. Needs the lock."""
        first = self._writes + 1
        self._writes += len(contents[0]) + 1
        return first, self._writes

    def _built(self, contents: "_Contents", first: int) -> tuple[Directory, dict[int, ModelEndpoint], RegistryChange]:
        """Return a new directory, the endpoints that it takes out of service by generation, and the change."""
        endpoints, aliases, default = contents
        old, new = self._directory, Directory()
        added: list[str] = []
        changed: list[str] = []
        gone = {slot.generation: slot.endpoint for slot in list(old.slots.values()) if slot.endpoint is not None}
        for generation, (endpoint, declared, registered_at, attached) in enumerate(endpoints, first):
            id = endpoint.id.value
            live = old.slots.get(id)
            present = None if live is None else live.endpoint
            slot = new.admit(id, generation)
            if live is None or present is None:
                added.append(id)
            elif endpoint not in (present, old.declared.get(id)) or attached != old.attached.get(id):
                changed.append(id)
            if (
                live is not None
                and present is not None
                and attached == old.attached.get(id)
                and (_alike(endpoint, present) or _alike(endpoint, old.declared.get(id, present)))
            ):
                if endpoint.is_default != present.is_default:
                    endpoint = replace(present, is_default=endpoint.is_default)
                else:
                    endpoint = present
                slot.generation, slot.registered_at = live.generation, live.registered_at
                gone.pop(live.generation, None)
            else:
                slot.generation, slot.registered_at = generation, registered_at
            if endpoint is not declared:
                new.declared[id] = declared
            if attached is not None:
                new.attached[id] = attached
            new.flip(slot, endpoint, id == default)
        for alias, target in aliases.items():
            new.point(alias, target)
        removed = tuple(id for id in list(old.slots) if id not in new.slots)
        return new, gone, RegistryChange(tuple(added), removed, tuple(changed))

    def _publish_all(
        self, directory: Directory, gone: dict[int, ModelEndpoint], change: RegistryChange
    ) -> RegistryChange:
        """Publish what was built, and let what it takes out of service drain. Needs the lock."""
        self._writes += 1
        self._directory = directory
        for generation in self._ledger.leases.keys() & gone.keys():
            self._ledger.leave(generation, gone[generation])
        return change

    def _find(self, name: str) -> ModelEndpoint | None:
        """Return what ``resolve`` returns, for a name that is known to be text."""
        # No number of tries is too many: each further one means that a writer has got something done.
        while True:
            writes = self._writes
            endpoint = self._directory.found(name)[1]
            if writes == self._writes:
                return endpoint

    def _listing(self) -> tuple[list[Slot], list[ModelEndpoint | None]]:
        """Return all slots and, as of one moment, what is in them.

        When writers leave no moment between them, each endpoint is right by itself.
        """
        attempts = _ATTEMPTS
        while True:
            writes = self._writes
            # Both lists are made in C and in one go, so no writer can change the dictionary meanwhile.
            slots = [*self._directory.slots.values()]
            endpoints = [*map(_ENDPOINT, slots)]
            attempts -= 1
            if writes == self._writes or not attempts:
                return slots, endpoints


# The endpoints, each as it is, as it was registered, when, and what was published along with it; the aliases; the
# default.
_Contents = tuple[list[tuple[ModelEndpoint, ModelEndpoint, int, object]], dict[str, str], str | None]


def _alike(one: ModelEndpoint, other: ModelEndpoint) -> bool:
    """Return whether two endpoints are equal but perhaps for being the default, which is no matter of the weights."""
    return one == other or (one.is_default != other.is_default and replace(one, is_default=other.is_default) == other)


def _restored(cls: type[ModelRegistry], contents: _Contents) -> ModelRegistry:
    """Make a registry of what ``_contents`` returned."""
    registry = cls()
    registry._take_over(contents)
    return registry
