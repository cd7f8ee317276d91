"""The index behind a registry, and how a write becomes visible to readers that take no lock.

Theory of operation
-------------------

``Tables.records`` and ``Tables.aliases`` are the reference's state: the endpoints by id, each in a *record* with the
facts of its registration, and the target of each alias.
The default is the alias ``None``, the name of a request that names no model.
An alias may also have several targets, which the reference does not have.

``Tables.names`` is an index over both.
It holds, under each name, the record that the reference's ``resolve`` would find, and under ``LARGEST`` the ready
record with the largest context.
A record never changes, so a lookup is one step.
An alias with targets in order has the record of the first target that is ready, or else of the first registered.
An alias with weights has ``CHOICE``, and so has a default with several targets: its target is chosen at each lookup.

A write may change what several names map to.
It becomes visible as a whole:

1. It stores in ``before`` the present record of each name that it will change.
2. It changes the tables, name by name.
3. It stores an empty ``before``. This one store makes the write visible.

A reader looks a name up, and then looks at ``before``.
If ``before`` is empty, the record is right: it was visible at the lookup, or a write has made it visible since.
If not, a write is in progress: a name in ``before`` maps to the record there, and any other name to the record found.
A reader that needs several names as of the same moment looks at ``before`` first and last.
Each write stores new dictionaries there, so if both looks find the same one, no write became visible in between.
Otherwise the reader tries again. It never waits: each further attempt means that a writer has made progress.

A write is described as data before it begins, and carrying it out twice does no harm.
If an exception cuts it short, readers go on with the old state, and the next write carries it out first.

``ready`` is a cache in front of the index: the endpoints that may be served, by name.
A write removes its names before step 2, and stores the ready ones after step 3.
So an endpoint in ``ready`` is always right, and a name that is not in ``ready`` is looked up in the index.
"""

from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heappush
from operator import attrgetter
from typing import TypeVar

from bonsai_routing._record import Record
from bonsai_routing._targets import Target, Targets, first_ready, ids_of, in_order
from bonsai_routing.endpoint import EndpointStatus, ModelEndpoint

__all__ = ["Aliases", "Directory", "Records"]

# The name of the ready record with the largest context. Only this package has the object, so no request can name it.
LARGEST = object()

# What the index has under a name whose target is chosen at each lookup. It has no endpoint, and is never ready.
CHOICE = object.__new__(Record)
CHOICE.is_ready = False

Found = TypeVar("Found")
Name = TypeVar("Name")

# What a write changes: records by id, and the targets of aliases. None removes.
Records = Mapping[str, Record | None]
Aliases = Mapping[str | None, Target | None]


class Tables:
    """The contents of a directory."""

    __slots__ = ("aliases", "names", "records")

    def __init__(self) -> None:
        # Under each id, each alias that no id shadows, None and LARGEST. Callers may look up any object.
        self.names: dict[object, Record] = {}
        # By id, in the order of first registration.
        self.records: dict[object, Record] = {}
        # What the aliases and the default map to, registered or not, in the order in which they were added.
        # A write stores None for an alias that it removes, and takes it out at its end, so that the order stays.
        self.aliases: dict[str | None, Target | None] = {}


class Directory:
    """The index of one registry. Reading needs no lock; writing needs the store's."""

    __slots__ = ("aliases_of", "before", "before_aliases", "followers_of", "heap", "ready", "tables")

    def __init__(self) -> None:
        # The only reference to the tables, so that a reader gets all of the old ones or all of the new ones.
        self.tables: Tables = Tables()
        # Of the write in progress, the records of the names that it changes; empty if there is none.
        self.before: dict[object, Record | None] = {}
        # Of the same write, the targets of the aliases that it changes; means nothing while before is empty.
        self.before_aliases: Aliases = {}
        # The endpoints that may be served, by name.
        self.ready: dict[object, ModelEndpoint] = {}
        # For writers: the aliases that have each id among their targets, and the ids of the adapters' endpoints that
        # follow it.
        self.aliases_of: dict[str, list[str | None]] = {}
        self.followers_of: dict[str, list[str]] = {}
        # For writers: (-context length, rank, id) of each ready record, as a heap. It may have outdated entries, which
        # are recognised when they reach the top.
        self.heap: list[tuple[int, int, str]] = []

    # Readers

    def find_indexed(self, name: object) -> Record | None:
        """Return what the index has under a name: a record, ``CHOICE``, or ``None``."""
        record = self.tables.names.get(name)
        before = self.before
        return before.get(name, record) if before else record

    def find(self, name: str | None) -> Record | None:
        """Return the record that a name maps to; ``None`` if it maps to nothing.

        Of several targets it is the first that is ready, or else the first registered.
        """
        record = self.find_indexed(name)
        if record is not CHOICE:
            return record
        target, records, _ = self.find_targets(name)
        found = first_ready(in_order(target, name, None), records.get)
        return found if found is None or found.is_ready else next(iter(records.values()))

    def find_id(self, id: str) -> Record | None:
        """Return the record of an id; ``None`` if it is not registered, even if an alias has that name."""
        record = self.find_indexed(id)
        return None if record is None or record is CHOICE or record.id != id else record

    def find_targets(self, name: str | None) -> tuple[Target | None, dict[str, Record], Record | None]:
        """Return what a name maps to, and the records of these ids, as of the same moment.

        A registered id maps to itself. An id that is not registered has no record.
        For the default, the ready record with the largest context comes third, as of the same moment too.
        """
        # As _read() does. A function for what is read would double the time, which each choice by a key pays.
        while True:
            before, tables = self.before, self.tables
            target: Target | None = name
            if name is None or self.find_id(name) is None:
                target = tables.aliases.get(name)
                if before:
                    target = self.before_aliases.get(name, target)
            records: dict[str, Record] = {}
            for id in ids_of(target):
                record = self.find_id(id)
                if record is not None:
                    records[id] = record
            largest = self.find_indexed(LARGEST) if name is None else None
            if self.before is before and self.tables is tables:
                return target, records, largest

    def at_once(self, find: Callable[[], Found]) -> Found:
        """Return what *find* finds with other methods of this directory, all as of the same moment."""
        return self._read(lambda _: find())[0]

    def find_awaited(self, name: str) -> Record | None:
        """Return the record that ``when_ready()`` of a name waits for.

        Of several targets it is a ready one, or else the first that is loading, or else the first registered.
        """
        return min(self.find_targets(name)[1].values(), key=_readiness, default=None)

    def find_publication(self, id: str, generation: int) -> Record | None:
        """Return the record of an id if it still is that publication; otherwise ``None``."""
        record = self.find_id(id)
        return None if record is None or record.generation != generation else record

    def all_records(self) -> list[Record]:
        """Return all records in the order of first registration, as of the same moment."""
        # Copied in one step, so no writer changes the dictionary meanwhile.
        records, before = self._read(lambda tables: tables.records.copy())
        return _undo(before, records) if before else [*records.values()]

    def count(self) -> int:
        """Return the number of records, as of one moment."""
        count, before = self._read(lambda tables: len(tables.records))
        return len(self.all_records()) if before else count

    def snapshot(self) -> tuple[list[Record], dict[str | None, Target]]:
        """Return all records, as ``all_records`` does, and the targets of all aliases, as of the same moment."""
        (records, aliases, before_aliases), before = self._read(
            lambda tables: (tables.records.copy(), tables.aliases.copy(), self.before_aliases)
        )
        if before:
            aliases.update(before_aliases)
        listed = _undo(before, records) if before else [*records.values()]
        return listed, {alias: target for alias, target in aliases.items() if target is not None}

    def _read(self, read: Callable[[Tables], Found]) -> tuple[Found, Mapping[object, Record | None]]:
        """Return what *read* finds as of one moment, and ``before`` as of that moment."""
        while True:
            before, tables = self.before, self.tables
            found = read(tables)
            if self.before is before and self.tables is tables:
                return found, before

    # Writers

    def begin(self, records: Records, aliases: Aliases) -> dict[object, Record | None]:
        """Announce a write, and return the new ``before``.

        A write that removes an id changes all its aliases too.
        """
        present, targets = self.tables.names.get, self.tables.aliases.get
        before: dict[object, Record | None] = {}
        for id, record in records.items():
            before[id] = present(id)
            if record is not None:
                for alias in self.aliases_of.get(id, ()):
                    before[alias] = present(alias)
            largest = present(LARGEST)
            if (
                largest is None
                or largest.id == id
                or (
                    record is not None
                    and record.is_ready
                    and record.endpoint.max_context_length >= largest.endpoint.max_context_length
                )
            ):
                before[LARGEST] = largest
        before_aliases: dict[str | None, Target | None] = {}
        for alias in aliases:
            before[alias] = present(alias)
            before_aliases[alias] = targets(alias)
        self.before_aliases = before_aliases
        self.before = before
        return before

    def update(self, before: dict[object, Record | None], records: Records, aliases: Aliases) -> None:
        """Carry out the write that ``begin`` announced. May be carried out again after an exception cut it short."""
        tables, ready = self.tables, self.ready
        names, present = tables.names, tables.records
        for name in before:
            ready.pop(name, None)
        for id, record in records.items():
            old = present.get(id)
            if (old is not None and old.adapter) or (record is not None and record.adapter):
                _move(id, _base(old), _base(record), self.followers_of)
            if record is None:
                present.pop(id, None)
            else:
                if record.is_ready:
                    self._push(record)
                present[id] = record
        if aliases:
            self._set_targets(aliases)
        record_of = present.get
        target_of: Callable[[object], Target | None] = tables.aliases.get  # type: ignore[assignment]
        servable: dict[object, ModelEndpoint] = {}
        for name in before:
            # What the reference's resolve() does: the id first, then the alias.
            found = record_of(name)
            if found is None:
                target = target_of(name)
                if not isinstance(target, Targets):
                    found = record_of(target)
                elif name is None or target.has_weights:
                    found = CHOICE
                else:
                    found = first_ready(target.ids, record_of)
            if name is LARGEST:
                found = self._largest()
            if found is None:
                names.pop(name, None)
            else:
                names[name] = found
                if found.is_ready:
                    servable[name] = found.endpoint
        # The write becomes visible.
        self.before = {}
        ready.update(servable)
        for alias, target in aliases.items():
            if target is None:
                tables.aliases.pop(alias, None)

    def replace(self, other: "Directory") -> None:
        """Take over the contents of *other*, which is not used afterwards. May be carried out twice."""
        self.ready = {}
        # An exception may have left the announcement of a write that has changed nothing.
        self.before = {}
        self.aliases_of, self.followers_of, self.heap = other.aliases_of, other.followers_of, other.heap
        # Everything becomes visible.
        self.tables = other.tables
        self.ready = other.ready

    def _set_targets(self, aliases: Aliases) -> None:
        targets = self.tables.aliases
        for alias, target in aliases.items():
            old = targets.get(alias)
            if target != old:
                # The target is changed last, so that repeating this after an exception finds the old one again.
                if isinstance(old, Targets) or isinstance(target, Targets):
                    for id in ids_of(old):
                        _move(alias, id, None, self.aliases_of)
                    for id in ids_of(target):
                        _move(alias, None, id, self.aliases_of)
                else:
                    _move(alias, old, target, self.aliases_of)
                targets[alias] = target

    def _push(self, record: Record) -> None:
        """Add the entry of a ready record to the heap, and rebuild the heap if most of its entries are outdated."""
        heap, records = self.heap, self.tables.records
        heappush(heap, (-record.endpoint.max_context_length, record.rank, record.id))
        if len(heap) > 2 * len(records) + 16:
            ready = [each for each in (*records.values(), record) if each.is_ready]
            heap = [(-each.endpoint.max_context_length, each.rank, each.id) for each in ready]
            heapify(heap)
            self.heap = heap

    def _largest(self) -> Record | None:
        """Return the ready record with the largest context, and of equals the first one registered."""
        heap, records = self.heap, self.tables.records
        while heap:
            size, rank, id = heap[0]
            record = records.get(id)
            if (
                record is not None
                and record.is_ready
                and (record.rank, record.endpoint.max_context_length) == (rank, -size)
            ):
                return record
            heappop(heap)
        return None


def _readiness(record: Record) -> int:
    """Return a smaller number the sooner a record may be served."""
    return 0 if record.is_ready else 1 if record.endpoint.status is EndpointStatus.LOADING else 2


def _base(record: Record | None) -> str | None:
    """Return the id of the base that a record follows; ``None`` if it follows none."""
    return None if record is None or record.adapter is None else record.adapter.base_model


def _move(name: Name, old: str | None, new: str | None, lists: dict[str, list[Name]]) -> None:
    """Take *name* out of the list of *old*, and append it to the list of *new*. May be carried out twice."""
    if old == new:
        return
    if old is not None:
        names = lists.get(old, [])
        if name in names:
            names.remove(name)
        if not names:
            lists.pop(old, None)
    if new is not None:
        names = lists.setdefault(new, [name])
        if name not in names:
            names.append(name)


def _undo(before: Mapping[object, Record | None], records: Mapping[object, Record]) -> list[Record]:
    """Return the records as they were before the write in progress, in the order of first registration."""
    kept = {record.id: record for id, record in records.items() if id not in before}
    old = {record.id: record for record in before.values() if record is not None and record is not CHOICE}
    return sorted({**kept, **old}.values(), key=attrgetter("rank"))
