"""The state of one registry, and the verbs that change it, which take turns."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import RLock, get_ident
from typing import TypeVar, TypeVarTuple
from weakref import WeakSet

from bonsai_routing._directory import Aliases, Directory, Record, Records
from bonsai_routing.endpoint import EndpointStatus, ModelEndpoint
from bonsai_routing.errors import ModelNotFoundError
from bonsai_routing.leases import IdleFuture, Lease, Ledger, complete
from bonsai_routing.model_id import ModelId

__all__ = ["Contents", "RegistryChange", "Store"]

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

# What a copy needs: of each endpoint, in order, what it is, as what it was declared, when it was registered and its
# adapter; and the targets of all aliases, with the default as the alias None.
Contents = tuple[list[tuple[ModelEndpoint, ModelEndpoint, int, object]], dict[str | None, str]]


@dataclass(frozen=True, slots=True)
class RegistryChange:
    """What :meth:`ModelRegistry.replace_with` changed: the ids of endpoints, as text.

    ``added`` and ``changed`` are in the new order of registration, ``removed`` in the old one.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]


class Store:
    """The directory, the leases and the lock of one registry.

    Every verb but ``run`` and ``replace`` needs the lock: pass it to ``run``, or call it in a function that ``run``
    calls.
    """

    __slots__ = ("__weakref__", "directory", "generation", "ledger", "lock", "owner", "unfinished")

    def __init__(self) -> None:
        # Lets one write at a time change everything below. It is also held while an endpoint is found and its lease is
        # added, which makes the two one step. Only run() takes it, and no code of a user's runs while it is held.
        # Reentrant, so that a signal handler which wants it in its holder's thread is told, and does not wait for ever.
        self.lock: RLock = RLock()
        # The thread that is at work under the lock; 0 while none is.
        self.owner: int = 0
        self.directory: Directory = Directory()
        self.ledger: Ledger = Ledger()
        # The last number that a publication got.
        self.generation: int = 0
        # The write that has begun: what publishes it, with which arguments, and the records that leave the registry.
        # It stays here if an exception cuts the write short.
        self.unfinished: tuple[Callable[..., None], tuple[object, ...], Sequence[Record]] | None = None
        _stores.add(self)

    def run(self, work: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        """Call *work* while no other thread writes or leases, and return what it returns.

        Raises ``RuntimeError`` when a signal handler or a finalizer that interrupted such a call in its own thread
        calls this: neither could wait for the other.
        """
        thread = get_ident()
        if self.owner == thread:
            raise RuntimeError(
                "the registry cannot be written to or leased from in a signal handler or a finalizer that interrupted "
                "a write or a lease in the same thread"
            )
        # CPython runs no signal handler between acquiring the lock and entering the block, nor between leaving the
        # block and releasing the lock. So a handler that raises cannot leave the lock held.
        try:
            with self.lock:
                self.owner = thread
                if self.unfinished is not None:
                    self._finish_cut_short()
                result = work(*arguments)
                self.owner = 0
                return result
        except BaseException:
            # Another thread may have the lock by now.
            if self.owner == thread:  # pragma: no branch
                self.owner = 0
            raise
        finally:
            # What an exception kept an earlier call from completing.
            if self.ledger.ending:
                self.ledger.settle()

    def publish(self, endpoint: ModelEndpoint, adapter: object = None, future: IdleFuture | None = None) -> Record:
        """Publish *endpoint* as a new generation, and start draining the endpoint that it replaces."""
        id = endpoint.id.value
        old = self.directory.tables.records.get(id)
        self.generation = generation = self.generation + 1
        rank = generation if old is None else old.rank
        record = Record(endpoint, endpoint, int(time.time()), generation, rank, adapter)
        leaving = [] if old is None else [old]
        self._write({id: record}, {None: id} if endpoint.is_default else {}, leaving, future)
        return record

    def remove(self, id: str, future: IdleFuture | None = None) -> ModelEndpoint | None:
        """Remove the endpoint of an id and its aliases, start draining it, and return it."""
        directory = self.directory
        old = directory.tables.records.get(id)
        if old is None:
            complete(future, None)
            return None
        self._write({id: None}, dict.fromkeys(directory.aliases_of.get(id, ())), [old], future)
        return old.endpoint

    def set_status(self, id: str, status: EndpointStatus) -> bool:
        """Give the endpoint of an id another status; return whether the id is registered."""
        record = self.directory.tables.records.get(id)
        if record is None:
            return False
        if record.endpoint.status is not status:
            self._write({id: record.with_status(status)}, {})
        return True

    def set_alias(self, alias: str | None, target: str | None) -> bool:
        """Map an alias, or the default, to an id, or remove it; return whether there was one before."""
        old = self.directory.tables.aliases.get(alias)
        if old != target:
            self._write({}, {alias: target})
        return old is not None

    def set_default(self, id: str | None) -> None:
        """Make the endpoint of an id the default; ``None`` for no default."""
        if id is not None and id not in self.directory.tables.records:
            raise ModelNotFoundError(id)
        self.set_alias(None, id)

    def lease(
        self,
        find: Callable[[Directory, ModelId | str | None, int | None], Record],
        requested_model: ModelId | str | None,
        required_context: int | None,
    ) -> Lease:
        """Lease the record that *find* returns, before anything else can happen to it."""
        return Lease(find(self.directory, requested_model, required_context), requested_model, self.ledger, self.owner)

    def contents(self) -> Contents:
        """Return everything that a copy needs, as of one moment. Needs no lock."""
        records, aliases = self.directory.snapshot()
        return [(each.endpoint, each.declared, each.registered_at, each.adapter) for each in records], aliases

    def replace(self, contents: Contents) -> RegistryChange:
        """Publish *contents* in place of everything, in one step, and return what changes. Takes the lock itself."""
        # The new directory is built without the lock. It is built again, with the lock, only if another write became
        # visible in the meantime.
        directory = self.directory
        first = self.run(self._reserve, len(contents[0]))
        seen = directory.before, directory.tables
        built = _build(directory.all_records(), contents, first)

        def publish() -> RegistryChange:
            new, gone, change = built
            if directory.before is not seen[0] or directory.tables is not seen[1]:
                new, gone, change = _build(directory.all_records(), contents, first)
            leaving = [gone[generation] for generation in sorted(gone.keys() & self.ledger.held.keys())]
            self.unfinished = directory.replace, (new,), leaving
            for record in leaving:
                self.ledger.leave(record, None)
            directory.replace(new)
            self.unfinished = None
            return change

        return self.run(publish)

    def after_fork_in_child(self) -> None:  # pragma: no cover -- runs in children alone: tests/test_fork.py
        """Make the store of a child process usable, whatever the parent's other threads were doing.

        They do not exist here: what they had begun to write is carried out, and their leases are not counted.
        """
        thread = get_ident()
        self.ledger.keep_leases_of(thread)
        if self.owner != thread:
            self.lock = RLock()
            self.owner = 0
            if self.unfinished is not None:
                self._finish_cut_short()

    def _reserve(self, count: int) -> int:
        """Reserve as many generations as *count*, and return the first."""
        self.generation += count
        return self.generation - count + 1

    def _write(
        self,
        records: Records,
        aliases: Aliases,
        leaving: Sequence[Record] = (),
        future: IdleFuture | None = None,
    ) -> None:
        directory = self.directory
        before = directory.begin(records, aliases)
        self.unfinished = directory.update, (before, records, aliases), leaving
        # A generation drains before the write is visible, so that nobody sees it as gone and as not leased.
        for record in leaving:
            self.ledger.leave(record, future)
        directory.update(before, records, aliases)
        if future is not None and not leaving:
            complete(future, None)
        self.unfinished = None

    def _finish_cut_short(self) -> None:
        """Carry out a write that an exception or a fork has cut short.

        Its future is left alone: its caller never got it, and if the exception came while it was being completed, the
        future's own lock may be held for ever.
        """
        assert self.unfinished is not None
        publish, arguments, leaving = self.unfinished
        for record in leaving:
            self.ledger.leave(record, None)
        publish(*arguments)
        self.unfinished = None


def _build(
    present: list[Record], contents: Contents, first: int
) -> tuple[Directory, dict[int, Record], RegistryChange]:
    """Return a directory of *contents*, the *present* records that it replaces or removes, and what changes.

    The new records get the generations from *first* on.
    """
    endpoints, aliases = contents
    old = {record.id: record for record in present}
    gone = {record.generation: record for record in present}
    new: dict[str, Record] = {}
    added: list[str] = []
    changed: list[str] = []
    for rank, (endpoint, declared, registered_at, adapter) in enumerate(endpoints, first):
        id = endpoint.id.value
        live = old.get(id)
        if live is None:
            added.append(id)
        elif adapter != live.adapter or endpoint not in (live.endpoint, live.declared):
            changed.append(id)
        if live is not None and adapter == live.adapter and _is_same_publication(endpoint, live):
            if endpoint.is_default == live.endpoint.is_default:
                endpoint = live.endpoint
            else:
                endpoint = replace(live.endpoint, is_default=endpoint.is_default)
            new[id] = Record(endpoint, declared, live.registered_at, live.generation, rank, adapter)
            gone.pop(live.generation)
        else:
            new[id] = Record(endpoint, declared, registered_at, rank, rank, adapter)
    directory = Directory()
    directory.update(directory.begin(new, aliases), new, aliases)
    removed = tuple(id for id in old if id not in new)
    return directory, gone, RegistryChange(tuple(added), removed, tuple(changed))


def _is_same_publication(endpoint: ModelEndpoint, live: Record) -> bool:
    """Return whether *endpoint* is the live endpoint, as it is or as it was declared, except for ``is_default``."""
    return any(
        endpoint in (known, replace(known, is_default=endpoint.is_default)) for known in (live.endpoint, live.declared)
    )


_stores: "WeakSet[Store]" = WeakSet()


def _after_fork_in_child() -> None:  # pragma: no cover -- runs in children alone
    for store in [*_stores]:
        store.after_fork_in_child()


if hasattr(os, "register_at_fork"):  # pragma: no branch -- only Windows has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
