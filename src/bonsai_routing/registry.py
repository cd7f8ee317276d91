"""The directory of served models: which endpoints exist, and by which names they are found."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future

from bonsai_routing._checks import check_callable, check_name
from bonsai_routing._ledger import new_future
from bonsai_routing._record import make_note
from bonsai_routing._store import Contents, RegistryChange, Store
from bonsai_routing._targets import AliasTarget, ShownTarget, make_target, shown
from bonsai_routing.endpoint import EndpointStatus, ModelEndpoint
from bonsai_routing.leases import DrainingEndpoint, Publication
from bonsai_routing.model_id import ModelId

__all__ = ["ModelRegistry", "RegistryChange"]


class ModelRegistry:
    """A directory of model endpoints, with aliases and a default.

    Safe to share between threads. Reading takes no lock and never sees a part of a write.
    ``name in registry`` tells whether the name resolves.
    Iteration yields the endpoints in the order of first registration.
    A copy, deep or shallow or by pickle, shares nothing with the original and has no leases and no handles.
    An empty registry is false, because its length is 0.

    *on_idle* is called with the :class:`Publication` of each endpoint that was replaced or removed, exactly once, when
    its last lease has ended: the engine can free what it has loaded for it.
    It is called without any lock, in the thread that ended the last lease, or in the thread that replaced or removed
    the endpoint if it was not leased.
    Freeing there would delay a request, so pass the ``put`` of a queue that a worker reads.
    An exception of *on_idle* is logged. ``None`` means that nobody is told. A copy has no *on_idle*.

    >>> registry = ModelRegistry()
    >>> registry.register(ModelEndpoint("bonsai-8b", "qwen3-8b"))
    >>> registry.add_alias("chat", "bonsai-8b")
    >>> registry.resolve("chat")
    ModelEndpoint('bonsai-8b', 'qwen3-8b')
    """

    __slots__ = ("_directory", "_store")

    def __init__(self, *, on_idle: Callable[[Publication], object] | None = None) -> None:
        check_callable("on_idle", on_idle)
        # The two doors to the state, for the other modules too: the store to write, the directory to read.
        self._store = Store(on_idle)
        self._directory = self._store.directory

    # What the reference has, in its order

    def register(self, endpoint: ModelEndpoint, *, handle: object = None) -> None:
        """Add *endpoint* under its id, and replace the endpoint that has this id.

        If ``endpoint.is_default`` is true, it becomes the default; otherwise the default stays what it is.
        *handle* is the engine's object for this publication, which its leases have; the library does not look at it.
        A change of the status keeps it. A copy or a pickle of the registry has no handles.
        Raises ``TypeError`` when *endpoint* is not a :class:`ModelEndpoint`.
        """
        if not isinstance(endpoint, ModelEndpoint):
            raise TypeError(f"endpoint must be a ModelEndpoint, not {endpoint!r}")
        self._store.run(self._store.publish, endpoint, handle)

    def unregister(self, id: ModelId | str) -> ModelEndpoint | None:
        """Remove the endpoint of that id, and return it; ``None`` if there is none.

        Every alias loses this target. An alias without other targets is removed too.

        If it was the default, there is no default afterwards.
        An alias is not an id: it cannot be used to unregister.
        """
        return self._store.run(self._store.remove, check_name("id", id))

    def add_alias(self, alias: str, target: AliasTarget, *others: AliasTarget) -> None:
        """Map *alias* to the id *target*, or to several targets, and replace what it was mapped to.

        The target need not be registered yet: the alias resolves as soon as it is.
        An alias maps to ids, never to another alias.
        If an id and an alias have the same name, the id wins.

        Several targets are tried in their order: the first that is ready answers.
        In place of an id, a mapping of ids to weights is one step in this order: of those that are ready one is drawn,
        as often as its weight says. A weight is a whole number; a target with the weight 0 is left out.
        When a target is unregistered, the alias loses it, and it is removed with its last target.
        Raises ``TypeError`` or ``ValueError`` when a target is neither an id nor such a mapping, or no weight is above
        0.

        >>> registry = ModelRegistry()
        >>> registry.register(ModelEndpoint("v1", "qwen3-8b"))
        >>> registry.register(ModelEndpoint("v2", "qwen3-8b", status="loading"))
        >>> registry.add_alias("chat", "v2", "v1")
        >>> registry.resolve("chat")
        ModelEndpoint('v1', 'qwen3-8b')
        """
        if not isinstance(alias, str):
            raise TypeError(f"alias must be a str, not {alias!r}")
        # Most aliases have one target, and only the other kinds of targets need more checks.
        made = target if isinstance(target, str) and not others else make_target((target, *others))
        self._store.run(self._store.set_alias, alias, made)

    def resolve(self, id_or_alias: ModelId | str) -> ModelEndpoint | None:
        """Return the endpoint of that id or, if there is none, of that alias; ``None`` if there is neither.

        The endpoint may have any status.
        Of several targets of an alias it is the first that is ready, or the first registered if none is. Among weights
        one is drawn.
        """
        directory = self._directory
        try:
            record = directory.tables.names[id_or_alias]
            if not directory.before and id_or_alias is not None:
                return record.endpoint
        except (AttributeError, KeyError, TypeError):
            pass
        found = directory.find(check_name("id_or_alias", id_or_alias))
        return None if found is None else found.endpoint

    def default_endpoint(self) -> ModelEndpoint | None:
        """Return the endpoint for requests that name no model, in any status; ``None`` if there is none."""
        record = self._directory.find(None)
        return None if record is None else record.endpoint

    def available_endpoints(self) -> list[ModelEndpoint]:
        """Return the ready endpoints, in the order of first registration."""
        return [record.endpoint for record in self._directory.all_records() if record.is_ready]

    def all_endpoints(self) -> list[ModelEndpoint]:
        """Return all endpoints, in the order of first registration."""
        return [record.endpoint for record in self._directory.all_records()]

    def set_status(
        self,
        id: ModelId | str,
        status: EndpointStatus | str,
        *,
        reason: str | None = None,
        retry_after: float | None = None,
    ) -> bool:
        """Give the endpoint of that id another status; return whether there is one.

        An alias is not an id here.
        Until the status is set again, each :class:`ModelNotReadyError` has *reason*, for people, and *retry_after*, in
        seconds.
        While the base of an adapter is not ready, the adapter's endpoint has the base's status, reason and
        *retry_after*. Its own come back when the base is ready.
        Raises ``ValueError`` when *status* is text that names no status, or *retry_after* is negative or not finite.
        """
        # Calling an enum takes long, even when there is nothing to convert.
        if not isinstance(status, EndpointStatus):
            status = EndpointStatus(status)
        note = make_note(reason, retry_after)
        return self._store.run(self._store.set_status, check_name("id", id), status, note)

    def __len__(self) -> int:
        return self._directory.count()

    def is_empty(self) -> bool:
        """Return whether no endpoint is registered; aliases do not count."""
        return not len(self)

    # What Python adds

    def __contains__(self, name: object) -> bool:
        return self._directory.find(check_name("name", name)) is not None

    def __iter__(self) -> Iterator[ModelEndpoint]:
        return iter(self.all_endpoints())

    def __repr__(self) -> str:
        return f"<ModelRegistry endpoints={len(self)} aliases={len(self.aliases())}>"

    def __reduce__(self) -> tuple[object, ...]:
        records, aliases = self._store.contents()
        return _restored, (type(self), ([record.without_handle() for record in records], aliases))

    # Everyday changes

    def aliases(self) -> dict[str, ShownTarget]:
        """Return a new dictionary of all aliases and the ids that they map to, in the order in which they were added.

        The value of an alias with several targets is a tuple of what :meth:`add_alias` takes for each.
        It includes aliases whose target is not registered, and aliases that an id of the same name shadows.
        """
        targets = self._directory.snapshot()[1].items()
        return {alias: shown(target) for alias, target in targets if alias is not None}

    def remove_alias(self, alias: str) -> bool:
        """Remove *alias*; return whether there was such an alias. An id of the same name stays."""
        if not isinstance(alias, str):
            raise TypeError(f"alias must be a str, not {alias!r}")
        return self._store.run(self._store.set_alias, alias, None)

    def set_default(self, id: ModelId | str | None) -> None:
        """Make the endpoint of that id the default, or clear the default if *id* is ``None``.

        No generation changes and nothing drains: ``is_default`` of the endpoints stays what it was.
        Raises :class:`ModelNotFoundError` when no endpoint has that id. An alias is not an id here.
        """
        self._store.run(self._store.set_default, None if id is None else check_name("id", id))

    def replace_with(self, other: "ModelRegistry") -> RegistryChange:
        """Replace all endpoints, aliases and the default with those of *other*, in one step; return what that changed.

        A reader sees all of the old registry or all of the new one. The two registries share nothing afterwards.
        If an endpoint of *other* equals the endpoint of its id here, as it is or as it was registered, it is unchanged:
        it keeps its present status, the time of its registration, its handle, its generation and its leases.
        If it differs in nothing but ``is_default``, it counts as changed and keeps all of these too.
        """
        if not isinstance(other, ModelRegistry):
            raise TypeError(f"other must be a ModelRegistry, not {other!r}")
        return self._store.replace(other._store.contents())

    # Hot swap

    def swap(self, endpoint: ModelEndpoint, *, handle: object = None) -> Future[ModelEndpoint | None]:
        """Do what :meth:`register` does, and return a future of the endpoint that was replaced.

        New requests get *endpoint* and *handle* at once.
        When the last lease of the old endpoint has ended, the future completes with that endpoint. If it has no leases,
        that is at once. If there was no old endpoint, the future completes with ``None``.
        The future cannot be cancelled, so its callbacks never run before.
        They run outside every lock, in the thread that ends the last lease.
        """
        if not isinstance(endpoint, ModelEndpoint):
            raise TypeError(f"endpoint must be a ModelEndpoint, not {endpoint!r}")
        future = new_future()
        self._store.run(self._store.publish, endpoint, handle, future)
        return future

    def retire(self, id: ModelId | str) -> Future[ModelEndpoint | None]:
        """Do what :meth:`unregister` does, and return a future of the removed endpoint, as :meth:`swap` does."""
        future = new_future()
        self._store.run(self._store.remove, check_name("id", id), future)
        return future

    def when_ready(self, name: ModelId | str) -> Future[ModelEndpoint]:
        """Return a future of the endpoint of that id or alias, which completes as soon as the endpoint is ready.

        It completes as soon as one of several targets is ready, and waits while one of them is ``loading``.
        The future fails with :class:`ModelNotReadyError` when the status becomes ``error`` or ``disabled``, and with
        :class:`ModelNotFoundError` when nothing has the name any more. It cannot be cancelled.
        If it need not wait, it has completed or failed already.
        Its callbacks run outside every lock, in the thread that changed the registry.
        """
        return self._store.run(self._store.when_ready, check_name("name", name))

    def generation(self, id: ModelId | str) -> int | None:
        """Return the number of the present publication of that id; ``None`` if there is none.

        No other publication in this registry has this number. :class:`Lease` says what it is good for.
        """
        record = self._directory.find_id(check_name("id", id))
        return None if record is None else record.generation

    def in_flight(self, id: ModelId | str) -> int:
        """Return how many leases of the present endpoint of that id are held; 0 if there is none."""
        key = check_name("id", id)
        while True:
            generation = self.generation(key)
            leases = self._store.ledger.in_flight(generation)
            if generation == self.generation(key):
                return leases

    def draining(self) -> list[DrainingEndpoint]:
        """Return the endpoints that were replaced or removed and are still leased, oldest first."""
        return self._store.ledger.draining()


def _restored(cls: type[ModelRegistry], contents: Contents) -> ModelRegistry:
    """Make a registry of what a copied or pickled one contained."""
    registry = cls()
    registry._store.replace(contents)
    return registry
