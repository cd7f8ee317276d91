"""How a registry finds endpoints: slots, and the order of stores that lets readers go without a lock.

Theory of operation
-------------------

A *slot* is the place that a model id names, whether or not anything is registered there.
``Directory.names`` leads from every name, id or alias, to a slot, so a look-up is one dictionary access and one
attribute, and storing another endpoint in a slot changes the id and all its aliases at once.

Readers take no lock.
Writers exclude each other (the registry's lock) and order their stores so that a single one makes the whole write
visible: ``names[alias] = ...`` in ``point`` for an alias, ``slot.endpoint = ...`` in ``flip`` for everything else.

- A name is entered before its slot is filled and taken out after its slot was emptied.
  A reader that meets an empty slot asks ``aliases`` what stands behind the id.
- The default and the largest context, which may change with a slot, are stored beforehand as ``ChangingLeaders``, which
  read as the old ones until the slot has flipped.
- ``slot.available`` is empty while ``slot.endpoint`` changes.
  It only spares readers a test: who finds it empty looks at ``slot.endpoint``.
- A reader takes two steps, from the name (or the default) to the slot and from there to the endpoint, and the way may
  be led elsewhere in between.
  So a slot that something has led away from is *left*: its endpoint never changes again, and a copy takes its place
  before the next change.
"""

from heapq import heapify, heappop, heappush

from bonsai_routing.endpoint import READY, ModelEndpoint

__all__ = ["Directory", "Slot"]


class Slot:
    """The place that a model id names."""

    # In memory they stand in this, the alphabetical order: what readers use is beside the object's header. With eight
    # attributes a slot is as large as an endpoint, and the two are often neighbours in memory.
    __slots__ = ("available", "endpoint", "entry", "generation", "id", "inbound", "order", "registered_at")

    # Known once the id is registered: the rank by first registration, which no other slot of the directory has; the
    # number of the endpoint's publication; and when that was, in whole seconds of Unix time.
    order: int
    generation: int
    registered_at: int

    def __init__(self, id: str) -> None:
        self.id = id
        self.endpoint: ModelEndpoint | None = None
        # The same endpoint while it may be served, so that routing needs no test of its status.
        self.available: ModelEndpoint | None = None
        # This slot's entry in ``Directory.heap``. Any other entry of its id is out of date.
        self.entry: Entry | None = None
        # The names in ``Directory.aliases`` that lead here; ``None`` for none.
        self.inbound: list[str] | None = None


# Minus the context length, so that the largest comes first; the order, so that of equals the one registered first does;
# the id.
Entry = tuple[int, int, str]

VACANT = Slot("")


class Leaders:
    """Which slot is the default (perhaps vacant), and which ready endpoint has the largest context, if any is ready."""

    __slots__ = ("default", "largest")

    def __init__(self, default: Slot, largest: ModelEndpoint | None) -> None:
        self.default = default
        self.largest = largest

    def settled(self) -> "Leaders":
        return self


class ChangingLeaders:
    """The leaders during a write: the old ones until its slot has flipped, then the new ones."""

    __slots__ = ("after", "before", "old", "slot")

    # Readers in a hurry find nothing here, and go the way that asks settled().
    default = VACANT
    largest = None

    def __init__(self, slot: Slot, before: Leaders, after: Leaders) -> None:
        self.slot = slot
        self.old = slot.endpoint
        self.before = before
        self.after = after

    def settled(self) -> Leaders:
        return self.before if self.slot.endpoint is self.old else self.after


class Directory:
    """All that a registry knows. Readers use ``names``, ``slots``, ``aliases``, ``leaders`` and ``attached``."""

    __slots__ = ("aliases", "attached", "declared", "heap", "leaders", "left", "names", "slots", "steady", "targets")

    def __init__(self) -> None:
        # Where each name leads: ids, and the aliases that no id hides. All keys are text; they are declared as objects
        # because readers look up what they were given, and find out what it is only when it is not there.
        self.names: dict[object, Slot] = {}
        # The registered ids, in the order of first registration.
        self.slots: dict[str, Slot] = {}
        # Where the aliases lead, the hidden ones included.
        self.aliases: dict[str, Slot] = {}
        # The ids that aliases lead to while nothing is registered there.
        self.targets: dict[str, Slot] = {}
        # The endpoints whose status was changed, by id, as they had been registered.
        self.declared: dict[str, ModelEndpoint] = {}
        # What was published along with an endpoint, by id.
        self.attached: dict[str, object] = {}
        self.leaders: Leaders | ChangingLeaders = Leaders(VACANT, None)
        # The same for writers, who find no write under way.
        self.steady = self.leaders
        # The slots that a name or the default led to and does not any more, since they changed last.
        self.left: set[Slot] = set()
        # An entry for every ready slot. Entries that are out of date or not ready stay until they come to the top or
        # outnumber the slots.
        self.heap: list[Entry] = []

    def found(self, name: str) -> tuple[Slot, ModelEndpoint | None]:
        """Look *name* up, minding what an id hides and one write that is under way; a reader's way, without haste."""
        slot = self.names.get(name, VACANT)
        # Read once: it may change between two looks.
        endpoint = slot.endpoint
        if endpoint is None and slot is not VACANT:
            # The id is just coming or going, and an alias may stand behind it.
            slot = self.aliases.get(name, VACANT)
            endpoint = slot.endpoint
        return slot, endpoint

    def at(self, id: str) -> ModelEndpoint | None:
        """Return the endpoint of an id, but not of an alias."""
        return self.slots.get(id, VACANT).endpoint

    def leading(self) -> tuple[ModelEndpoint | None, ModelEndpoint | None]:
        """Return the default and the ready endpoint with the largest context, as of one moment; a reader's way."""
        while True:
            leaders = self.leaders
            settled = leaders.settled()
            endpoint = settled.default.endpoint
            if self.leaders is leaders:
                return endpoint, settled.largest

    def admit(self, id: str, order: int) -> Slot:
        """Return the slot of an id that is not registered, with the id's name leading to it."""
        slot = self.targets.pop(id, None) if self.targets else None
        if slot is None:
            slot = Slot(id)
        slot.order = order
        if id in self.aliases:
            self.left.add(self.aliases[id])
        self.slots[id] = self.names[id] = slot
        return slot

    def dismiss(self, id: str) -> None:
        """Remove the emptied slot of *id* and its aliases, and let the name lead to the alias that the id hid."""
        names, aliases = self.names, self.aliases
        slot = self.slots.pop(id)
        if self.declared:
            self.declared.pop(id, None)
        self.forget_entry(slot)
        for alias in slot.inbound or ():
            del aliases[alias]
            if names[alias] is slot and alias != id:
                del names[alias]
        if id in aliases:
            names[id] = aliases[id]
        else:
            del names[id]

    def point(self, alias: str, target: str) -> None:
        """Let *alias* lead to the id *target*."""
        slot = self.slots.get(target) or self.targets.get(target)
        if slot is None:
            slot = self.targets[target] = Slot(target)
        aliases = self.aliases
        before = aliases.get(alias)
        if before is slot:
            return
        if slot.inbound is None:
            slot.inbound = [alias]
        else:
            slot.inbound.append(alias)
        aliases[alias] = slot
        if alias not in self.slots:
            self.names[alias] = slot
        if before is not None and before.inbound is not None:
            before.inbound.remove(alias)
            if before.inbound or before.id in self.slots:
                self.left.add(before)
            else:
                del self.targets[before.id]
                self.left.discard(before)

    def renewed(self, slot: Slot) -> Slot:
        """Put a copy in the place of a slot that was left, and return the copy."""
        id, default = slot.id, self.steady.default
        copy = Slot(id)
        copy.order, copy.generation, copy.registered_at = slot.order, slot.generation, slot.registered_at
        copy.endpoint, copy.entry, copy.inbound = slot.endpoint, slot.entry, slot.inbound
        # In this order, and never asking what leads to the slot itself, because a signal may end this anywhere: then
        # the next change does it all again.
        self.names[id] = copy
        for alias in copy.inbound or ():
            self.aliases[alias] = copy
            if alias not in self.slots:
                self.names[alias] = copy
        if default is not VACANT and default.id == id:
            self.leaders = self.steady = Leaders(copy, self.steady.largest)
        self.slots[id] = copy
        self.left.remove(slot)
        return copy

    def forget_entry(self, slot: Slot) -> None:
        """Let the slot's entry in the heap go out of date."""
        slot.entry = None
        if len(self.heap) > 2 * len(self.slots) + 16:
            self.heap[:] = [slot.entry for slot in self.slots.values() if slot.entry is not None]
            heapify(self.heap)

    def largest(self, slot: Slot, ready: ModelEndpoint | None) -> ModelEndpoint | None:
        """Return the ready endpoint with the largest context once *ready* is what *slot* serves."""
        while self.heap:
            entry = self.heap[0]
            top = self.slots.get(entry[2])
            if top is not None and top.entry is entry:
                endpoint = ready if top is slot else top.available
                if endpoint is not None:
                    return endpoint
                top.entry = None
            heappop(self.heap)
        return None

    def flip(self, slot: Slot, endpoint: ModelEndpoint | None, default: bool = False) -> None:
        """Store *endpoint* in *slot*, and change what follows from it as of the same moment.

        *default* makes it the default; otherwise the default stays what it is, or is none if it was in this slot and
        goes.
        """
        if self.left and slot in self.left:
            slot = self.renewed(slot)
        heap = self.heap
        ready = endpoint if endpoint is not None and endpoint.status is READY else None
        if ready is not None:
            entry = (-ready.max_context_length, slot.order, slot.id)
            if slot.entry != entry:
                if slot.entry is not None:
                    self.forget_entry(slot)
                slot.entry = entry
                heappush(heap, entry)
        before = after = self.steady
        largest = before.largest
        if slot.endpoint is largest or (heap and heap[0] is slot.entry):
            largest = self.largest(slot, ready)
        leading = before.default
        if default:
            if leading is not slot and leading is not VACANT:
                self.left.add(leading)
            leading = slot
        elif endpoint is None and leading is slot:
            leading = VACANT
        if largest is not before.largest or leading is not before.default:
            after = Leaders(leading, largest)
            self.leaders = ChangingLeaders(slot, before, after)
        slot.available = None
        slot.endpoint = endpoint
        slot.available = ready
        self.leaders = self.steady = after
