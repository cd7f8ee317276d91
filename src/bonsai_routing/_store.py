"""The state of one registry, and the verbs that change it, which take turns."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from threading import get_ident
from typing import TypeVar, TypeVarTuple
from weakref import WeakSet, ref

from bonsai_routing._directory import Aliases, Directory, Records
from bonsai_routing._ledger import Completion, Departure, IdleFuture, Ledger, OnIdle, complete, new_future
from bonsai_routing._record import Note, Own, Record
from bonsai_routing._targets import Target, Targets, without
from bonsai_routing.endpoint import EndpointStatus, ModelEndpoint
from bonsai_routing.errors import ModelNotFoundError
from bonsai_routing.leases import Lease
from bonsai_routing.lora import LoraAdapter
from bonsai_routing.model_id import ModelId

__all__ = ["Contents", "RegistryChange", "Store"]

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

# What a copy needs: all records, in order, and the targets of all aliases, with the default as the alias None.
Contents = tuple[list[Record], dict[str | None, Target]]


def _nothing_gone() -> "Future[tuple[ModelEndpoint, ...]]":
    future = new_future()
    future.set_result(())
    return future


@dataclass(frozen=True, slots=True)
class RegistryChange:
    """What :meth:`ModelRegistry.replace_with` changed: the ids of endpoints, as text.

    ``added`` and ``changed`` are in the new order of registration, ``removed`` in the old one.
    ``idle`` is a future of the endpoints that were replaced or removed, in the old order of registration.
    It completes when the last lease of all of them has ended. It cannot be cancelled.
    Comparison ignores it, and a copy or a pickle has a future that has completed with ``()``.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    idle: "Future[tuple[ModelEndpoint, ...]]" = field(default_factory=_nothing_gone, repr=False, compare=False)

    def __reduce__(self) -> tuple[object, ...]:
        return RegistryChange, (self.added, self.removed, self.changed)


class Store:
    """The directory, the leases and the lock of one registry.

    Every verb but ``run`` and ``replace`` needs the lock: pass it to ``run``, or call it in a function that ``run``
    calls.
    """

    __slots__ = ("__weakref__", "directory", "generation", "ledger", "loads", "now", "unfinished", "waiting")

    def __init__(self, on_idle: OnIdle | None) -> None:
        self.directory: Directory = Directory()
        self.ledger: Ledger = Ledger(on_idle)
        # The last number that a publication got.
        self.generation: int = 0
        # The time of the last registration, in whole seconds of Unix time.
        self.now: int = 0
        # The futures of the names that somebody waits for.
        self.waiting: dict[str, Future[ModelEndpoint]] = {}
        # What loads an adapter, by the id of its endpoint. Each entry is of use as long as its object is alive.
        self.loads: dict[str, ref[object]] = {}
        # The write that has begun: what publishes it, with which arguments, and what leaves the registry.
        # It stays here if an exception cuts the write short.
        self.unfinished: tuple[Callable[..., None], tuple[object, ...], Sequence[Departure]] | None = None
        _stores.add(self)

    def run(self, work: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        """Call *work* while no other thread writes or leases, and return what it returns.

        Raises ``RuntimeError`` when a signal handler or a finalizer that interrupted such a call in its own thread
        calls this: neither could wait for the other.
        """
        thread, ledger = get_ident(), self.ledger
        if ledger.owner == thread and ledger.is_at_work():
            raise RuntimeError(
                "the registry cannot be written to or leased from in a signal handler or a finalizer that interrupted "
                "a write or a lease in the same thread"
            )
        # CPython runs no signal handler between acquiring the lock and entering the block, nor between leaving the
        # block and releasing the lock. So a handler that raises cannot leave the lock held.
        try:
            with ledger.lock:
                ledger.owner = thread
                if self.unfinished is not None:
                    self._finish_cut_short()
                result = work(*arguments)
                ledger.owner = 0
                return result
        except BaseException:
            # Another thread may have the lock by now.
            if ledger.owner == thread:  # pragma: no branch
                ledger.owner = 0
            raise
        finally:
            # Also what an exception kept an earlier call from telling.
            if ledger.ending:
                ledger.settle()

    def publish(
        self,
        endpoint: ModelEndpoint,
        handle: object = None,
        future: IdleFuture | None = None,
        adapter: LoraAdapter | None = None,
        own: Own | None = None,
    ) -> Record:
        """Publish *endpoint* as a new generation, and start draining the endpoint that it replaces.

        With an *adapter*, whose own status is *own*, the endpoint follows its base from now on.
        """
        records = self.directory.tables.records
        old = records.get(endpoint.id.value)
        self.generation = generation = self.generation + 1
        rank = generation if old is None else old.rank
        now = int(time.time())
        # All that are registered in the same second share the object, which saves 32 bytes each.
        self.now = now = self.now if self.now == now else now
        record = Record(endpoint, endpoint, now, generation, rank, handle, None, adapter)
        if adapter is not None:
            record = record.on(records[adapter.base_model], own, handle)
        self._replace(record.id, old, record, future)
        return record

    def renew(self, old: Record) -> None:
        """Publish the endpoint of *old* as a new generation without a handle, and start draining *old*.

        Its own status becomes ``loading`` if it is ``ready``. All else stays as it is: the declared endpoint, the time
        of registration, the default, the adapters.
        """
        self.generation = generation = self.generation + 1
        new = Record(old.endpoint, old.declared, old.registered_at, generation, old.rank, None, None, old.adapter)
        own = old.own_status()
        if own.status is EndpointStatus.READY:
            own = Own(EndpointStatus.LOADING, None)
        if old.adapter is None:
            new = new.with_status(*own, None)
        else:
            new = new.on(self.directory.tables.records[old.adapter.base_model], own, None)
        changed: dict[str, Record | None] = {old.id: new}
        if old.id in self.directory.followers_of:
            self._follow(old, new, changed, {}, [])
        self._write(changed, {}, [Departure(old)])

    def remove(self, id: str, future: IdleFuture | None = None) -> ModelEndpoint | None:
        """Remove the endpoint of an id, also from its aliases, start draining it, and return it."""
        old = self.directory.tables.records.get(id)
        if old is None:
            complete(future, None)
            return None
        self._replace(id, old, None, future)
        return old.endpoint

    def set_status(self, id: str, status: EndpointStatus, note: Note | None = None, handle: object = None) -> bool:
        """Give the endpoint of an id another status; return whether the id is registered.

        The endpoint gets *handle* as well, unless it is ``None``.
        """
        records = self.directory.tables.records
        old = records.get(id)
        if old is None:
            return False
        if handle is None:
            handle = old.handle
        if old.adapter is not None:
            own = Own(status, note)
            if own != old.own or handle is not old.handle:
                self._write({id: old.on(records[old.adapter.base_model], own, handle)}, {})
        elif status is not old.endpoint.status or note != old.note or handle is not old.handle:
            new = old.with_status(status, note, handle)
            changed: dict[str, Record | None] = {id: new}
            if id in self.directory.followers_of:
                self._follow(old, new, changed, {}, [])
            self._write(changed, {})
        return True

    def end_load(self, id: str) -> None:
        """Note that nothing loads the adapter of an id any more."""
        self.ledger.notify(None)
        self.loads.pop(id, None)

    def is_loading(self, id: str) -> bool:
        """Return whether a block of :meth:`AdapterRegistry.loading` is loading that id."""
        load = self.loads.get(id)
        return load is not None and load() is not None

    def set_alias(self, alias: str | None, target: Target | None) -> bool:
        """Map an alias, or the default, to its target, or remove it; return whether there was one before."""
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
        return Lease(find(self.directory, requested_model, required_context), requested_model, self.ledger)

    def when_ready(self, name: str) -> "Future[ModelEndpoint]":
        """Return the future of the endpoint that a name maps to, which completes when this is ready or will not be."""
        record = self.directory.find_awaited(name)
        if record is not None and record.endpoint.status is EndpointStatus.LOADING:
            # One for all who wait for the name, so that those who gave up leave nothing behind.
            return self.waiting.setdefault(name, new_future())
        # No other code has this future yet, so it has no callbacks that could run here.
        answer = _answer(new_future(), name, record)
        answer.tell(None)
        return answer.future

    def contents(self) -> Contents:
        """Return everything that a copy needs, as of one moment. Needs no lock."""
        return self.directory.snapshot()

    def replace(self, contents: Contents) -> RegistryChange:
        """Publish *contents* in place of everything, in one step, and return what changes. Takes the lock itself."""
        # The new directory is built without the lock. It is built again, with the lock, only if another write became
        # visible in the meantime.
        directory, ledger = self.directory, self.ledger
        first = self.run(self._reserve, len(contents[0]))
        seen = directory.before, directory.tables
        built = _build(directory.all_records(), contents, first)

        def publish() -> RegistryChange:
            new, gone, change = built
            if directory.before is not seen[0] or directory.tables is not seen[1]:
                new, gone, change = _build(directory.all_records(), contents, first)
            in_use = [each for each in gone if ledger.on_idle is not None or each.generation in ledger.held]
            futures: list[IdleFuture] = [new_future() for _ in in_use]
            idle = _all_idle(futures, tuple(record.endpoint for record in gone))
            leaving = [Departure(record, future) for record, future in zip(in_use, futures, strict=True)]
            self._carry_out(directory.replace, (new,), leaving)
            return RegistryChange(*change, idle)

        return self.run(publish)

    def after_fork_in_child(self) -> None:  # pragma: no cover -- runs in children alone: tests/test_fork.py
        """Make the store of a child process usable, whatever the parent's other threads were doing.

        They do not exist here: what they had begun to write is carried out, and their leases are not counted.
        """
        thread = get_ident()
        self.ledger.keep_leases_of(thread)
        self.loads = {}
        if self.ledger.owner != thread or not self.ledger.is_at_work():
            self.ledger.renew_lock()
            if self.unfinished is not None:
                self._finish_cut_short()

    def _reserve(self, count: int) -> int:
        """Reserve as many generations as *count*, and return the first."""
        self.generation += count
        return self.generation - count + 1

    def _replace(self, id: str, old: Record | None, new: Record | None, future: IdleFuture | None) -> None:
        """Write *new* in place of *old*, and what this changes for aliases and for the adapters on the id."""
        records: dict[str, Record | None] = {id: new}
        aliases: dict[str | None, Target | None] = {}
        leaving: list[Departure] = []
        if old is not None:
            leaving.append(Departure(old, future))
            if new is None:
                self._drop_target(id, aliases)
            if id in self.directory.followers_of:
                self._follow(old, new, records, aliases, leaving)
        elif future is not None:
            complete(future, None)
        if new is not None and new.endpoint.is_default:
            aliases[None] = id
        self._write(records, aliases, leaving)

    def _follow(
        self,
        old: Record,
        new: Record | None,
        records: dict[str, Record | None],
        aliases: dict[str | None, Target | None],
        leaving: list[Departure],
    ) -> None:
        """Add to a write of a base what it changes for the adapters on it: without their weights' base, they go."""
        stay = new is not None and new.has_weights_of(old)
        for id in self.directory.followers_of[old.id]:
            follower = self.directory.tables.records[id]
            if new is not None and stay:
                records[id] = follower.on(new, follower.own, follower.handle)
            else:
                records[id] = None
                self._drop_target(id, aliases)
                leaving.append(Departure(follower))

    def _drop_target(self, id: str, aliases: dict[str | None, Target | None]) -> None:
        """Add to a write that removes an id what it changes for the aliases: they lose this target, or go with it."""
        targets = self.directory.tables.aliases
        for alias in self.directory.aliases_of.get(id, ()):
            target = aliases.get(alias, targets[alias])
            aliases[alias] = without(target, id) if isinstance(target, Targets) else None

    def _write(self, records: Records, aliases: Aliases, leaving: Sequence[Departure] = ()) -> None:
        before = self.directory.begin(records, aliases)
        self._carry_out(self.directory.update, (before, records, aliases), leaving)

    def _carry_out(
        self, publish: Callable[..., None], arguments: tuple[object, ...], leaving: Sequence[Departure]
    ) -> None:
        """Make a write visible. It may be carried out again after an exception cut it short."""
        self.unfinished = publish, arguments, leaving
        # A generation drains before the write is visible, so that nobody sees it as gone and as not leased.
        for departure in leaving:
            self.ledger.leave(departure)
        publish(*arguments)
        if self.waiting:
            self._answer()
        if self.ledger.watchers:
            self.ledger.notify(None)
        self.unfinished = None

    def _finish_cut_short(self) -> None:
        """Carry out a write that an exception or a fork has cut short.

        Its futures are left alone: its caller never got them, and if the exception came while one was being completed,
        the future's own lock may be held for ever.
        """
        assert self.unfinished is not None
        for departure in self.unfinished[2]:
            departure.future = None
        self._carry_out(*self.unfinished)

    def _answer(self) -> None:
        """Have the futures completed whose names are ready, or will not be."""
        for name, future in self.waiting.copy().items():
            record = self.directory.find_awaited(name)
            if record is None or record.endpoint.status is not EndpointStatus.LOADING:
                self.ledger.tell(future, _answer(future, name, record))
                self.waiting.pop(name, None)


def _answer(future: "Future[ModelEndpoint]", name: str, record: Record | None) -> Completion:
    """Return the notice that a name for which somebody waits is ready, or why it will not be."""
    if record is None:
        return Completion(future, None, ModelNotFoundError(name))
    return Completion(future, record.endpoint) if record.is_ready else Completion(future, None, record.not_ready(name))


def _build(
    present: list[Record], contents: Contents, first: int
) -> tuple[Directory, list[Record], tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]]:
    """Return a directory of *contents*, the *present* records that it replaces or removes, and what changes.

    The new records get the generations from *first* on.
    """
    records, aliases = contents
    old = {record.id: record for record in present}
    gone = {record.generation: record for record in present}
    new: dict[str, Record] = {}
    added: list[str] = []
    changed: list[str] = []
    for rank, record in enumerate(records, first):
        id = record.id
        live = old.get(id)
        source, generation = record, rank
        if live is None:
            added.append(id)
        elif live.is_declared_as(record):
            # What the server has made of the model since stays.
            source, generation = live, live.generation
            del gone[generation]
        if live is not None and (generation == rank or record.endpoint.is_default != live.endpoint.is_default):
            changed.append(id)
        endpoint = source.endpoint
        if endpoint.is_default != record.endpoint.is_default:
            endpoint = replace(endpoint, is_default=record.endpoint.is_default)
        new[id] = Record(
            endpoint,
            record.declared,
            source.registered_at,
            generation,
            rank,
            source.handle,
            source.note,
            source.adapter,
            source.own,
        )
    for id, record in new.items():
        if record.adapter is not None:
            new[id] = record.on(new[record.adapter.base_model], record.own, record.handle)
    directory = Directory()
    directory.update(directory.begin(new, aliases), new, aliases)
    removed = tuple(id for id in old if id not in new)
    return directory, [*gone.values()], (tuple(added), removed, tuple(changed))


def _all_idle(
    futures: Sequence[IdleFuture], endpoints: tuple[ModelEndpoint, ...]
) -> "Future[tuple[ModelEndpoint, ...]]":
    """Return a future that completes with *endpoints* when all *futures* have completed."""
    idle = new_future()
    awaited = set(map(id, futures))

    def look(future: IdleFuture) -> None:
        awaited.discard(id(future))
        if not awaited:
            complete(idle, endpoints)

    for future in futures:
        future.add_done_callback(look)
    if not futures:
        complete(idle, endpoints)
    return idle


_stores: "WeakSet[Store]" = WeakSet()


def _after_fork_in_child() -> None:  # pragma: no cover -- runs in children alone
    for store in [*_stores]:
        store.after_fork_in_child()


if hasattr(os, "register_at_fork"):  # pragma: no branch -- only Windows has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
