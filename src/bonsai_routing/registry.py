"""The directory of served models: which endpoints exist, and by which names they are found."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from threading import Lock

from bonsai_routing._directory import VACANT, Directory, Slot
from bonsai_routing.endpoint import EndpointStatus, ModelEndpoint, with_status
from bonsai_routing.model_id import ModelId, name_text

__all__ = ["ModelRegistry", "RegistryChange"]

# How often a listing is gathered anew when a write came in between, before it is returned as it is.
_LISTING_ATTEMPTS = 8

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

    __slots__ = ("_directory", "_lock", "_writes")

    def __init__(self) -> None:
        self._directory = Directory()
        # Held by every write from start to end; it protects all of the directory against a second writer.
        self._lock = Lock()
        # Counts the writes begun, so that a listing can tell whether one came in between.
        self._writes = 0

    def register(self, endpoint: ModelEndpoint) -> None:
        """Add *endpoint* under its id, in place of any endpoint there.

        It becomes the default if it says so; otherwise the default stays what it is.
        Raises ``TypeError`` when *endpoint* is not a :class:`ModelEndpoint`.
        """
        if not isinstance(endpoint, ModelEndpoint):
            raise TypeError(f"endpoint must be a ModelEndpoint, not {endpoint!r}")
        id = endpoint.id.value
        now = int(time.time())
        with self._lock:
            self._writes += 1
            directory = self._directory
            slot = directory.slots.get(id) or directory.admit(id)
            slot.registered_at = now
            directory.declared.pop(id, None)
            directory.flip(slot, endpoint, slot if endpoint.is_default else None)

    def unregister(self, id: ModelId | str) -> ModelEndpoint | None:
        """Remove the endpoint of that id, with every alias of it, and return it; ``None`` if there is none.

        If it was the default, there is no default afterwards.
        An alias is not an id: it cannot be used to unregister.
        """
        key = name_text("id", id)
        with self._lock:
            directory = self._directory
            slot = directory.slots.get(key)
            if slot is None:
                return None
            self._writes += 1
            removed = slot.endpoint
            directory.flip(slot, None, VACANT if directory.leaders.settled().default is slot else None)
            directory.dismiss(slot)
            return removed

    def add_alias(self, alias: str, target: ModelId | str) -> None:
        """Let *alias* lead to the id *target*, in place of where it led before.

        The target need not be registered yet: the alias resolves as soon as it is.
        An alias leads to an id, never to another alias, and an id hides an alias of the same name.
        """
        if not isinstance(alias, str):
            raise TypeError(f"alias must be a str, not {alias!r}")
        key = name_text("target", target)
        with self._lock:
            self._writes += 1
            self._directory.point(alias, key)

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
        return self._find(name_text("id_or_alias", id_or_alias))

    def default_endpoint(self) -> ModelEndpoint | None:
        """Return the endpoint for requests that name no model, in any status; ``None`` if there is none."""
        return self._directory.leaders.settled().default.endpoint

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
        key = name_text("id", id)
        status = EndpointStatus(status)
        with self._lock:
            directory = self._directory
            slot = directory.slots.get(key)
            if slot is None or slot.endpoint is None:
                return False
            if slot.endpoint.status is not status:
                self._writes += 1
                directory.declared.setdefault(key, slot.endpoint)
                directory.flip(slot, with_status(slot.endpoint, status))
            return True

    def replace_with(self, other: "ModelRegistry") -> RegistryChange:
        """Take over all of *other*'s endpoints, aliases and default in one step, and return what that changed.

        A reader sees all of the old registry or all of the new one; *other* shares nothing with this one afterwards.
        An endpoint that *other* has just as it is here, or as it was registered here, is unchanged.
        It keeps its present status and the time of its registration.
        """
        if not isinstance(other, ModelRegistry):
            raise TypeError(f"other must be a ModelRegistry, not {other!r}")
        return self._take_over(*other._contents())

    def __len__(self) -> int:
        return len(self._directory.slots)

    def is_empty(self) -> bool:
        """Return whether no endpoint is registered; aliases do not count."""
        return not self._directory.slots

    def __contains__(self, name: object) -> bool:
        return self._find(name_text("name", name)) is not None

    def __iter__(self) -> Iterator[ModelEndpoint]:
        return iter(self.all_endpoints())

    def __repr__(self) -> str:
        return f"<ModelRegistry endpoints={len(self)} aliases={len(self._directory.aliases)}>"

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (type(self), *self._contents())

    def _contents(self) -> "_Contents":
        """Return the endpoints, as they are, as they were registered, and when; the aliases; and the default's id."""
        with self._lock:
            directory = self._directory
            endpoints = [
                (slot.endpoint, directory.declared.get(slot.id, slot.endpoint), slot.registered_at)
                for slot in directory.slots.values()
                if slot.endpoint is not None
            ]
            aliases = {alias: slot.id for alias, slot in directory.aliases.items()}
            default = directory.leaders.settled().default
            return endpoints, aliases, None if default is VACANT else default.id

    def _take_over(self, endpoints: "_Endpoints", aliases: dict[str, str], default: str | None) -> RegistryChange:
        """Publish a directory of these contents, which is built aside, in one store."""
        with self._lock:
            self._writes += 1
            old, new = self._directory, Directory()
            added: list[str] = []
            changed: list[str] = []
            for endpoint, declared, registered_at in endpoints:
                slot = new.admit(endpoint.id.value)
                slot.registered_at = registered_at
                live = old.slots.get(slot.id)
                if live is None or live.endpoint is None:
                    added.append(slot.id)
                elif endpoint not in (live.endpoint, old.declared.get(slot.id)):
                    changed.append(slot.id)
                else:
                    endpoint, slot.registered_at = live.endpoint, live.registered_at
                if endpoint is not declared:
                    new.declared[slot.id] = declared
                new.flip(slot, endpoint, slot if slot.id == default else None)
            for alias, target in aliases.items():
                new.point(alias, target)
            removed = tuple(id for id in old.slots if id not in new.slots)
            self._directory = new
        return RegistryChange(tuple(added), removed, tuple(changed))

    def _find(self, name: str) -> ModelEndpoint | None:
        """Look *name* up, minding what an id hides and a write that is under way."""
        directory = self._directory
        endpoint = directory.names.get(name, VACANT).endpoint
        if endpoint is None:
            endpoint = directory.aliases.get(name, VACANT).endpoint
        return endpoint

    def _listing(self) -> tuple[list[Slot], list[ModelEndpoint | None]]:
        """Return all slots and, as of one moment, what is in them.

        When writers leave no moment between them, each endpoint is right by itself.
        """
        for _ in range(_LISTING_ATTEMPTS):
            writes = self._writes
            # Both lists are made in C and in one go, so no writer can change the dictionary meanwhile.
            slots = list(self._directory.slots.values())
            endpoints = list(map(_ENDPOINT, slots))
            if writes == self._writes:
                break
        return slots, endpoints


_Endpoints = list[tuple[ModelEndpoint, ModelEndpoint, int]]
_Contents = tuple[_Endpoints, dict[str, str], str | None]


def _restored(
    cls: type[ModelRegistry], endpoints: _Endpoints, aliases: dict[str, str], default: str | None
) -> ModelRegistry:
    """Make a registry of what ``_contents`` returned."""
    registry = cls()
    registry._take_over(endpoints, aliases, default)
    return registry
