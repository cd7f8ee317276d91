"""Leases of a base together with a stack of LoRA adapters."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from bonsai_routing._directory import Directory
from bonsai_routing._record import Record
from bonsai_routing._routing import find_record
from bonsai_routing._store import Store
from bonsai_routing.adapters import AdapterRef
from bonsai_routing.endpoint import ModelEndpoint
from bonsai_routing.errors import (
    AdapterBaseError,
    ContextTooLongError,
    ModelNotFoundError,
    NoModelsAvailableError,
)
from bonsai_routing.leases import Lease
from bonsai_routing.lora import LoraAdapter

__all__ = ["StackLease", "StackMember"]


@dataclass(frozen=True, slots=True)
class StackMember:
    """An adapter of a :class:`StackLease`, its weight, and the generation and the handle that were leased."""

    adapter: LoraAdapter
    weight: float
    generation: int
    handle: Any = field(default=None, repr=False, compare=False)


class StackLease:
    """A base and the adapters of a stack, leased together by :meth:`AdapterRegistry.lease_stack`.

    ``endpoint`` is the base's endpoint and ``handle`` the engine's object that was published with it, or ``None``.
    ``members`` are the adapters in the order of the stack.
    ``key`` is a hashable value that differs whenever the base, the order, a generation or a weight differs.
    Use it as the key of a cache of blended weights.

    The lease ends with :meth:`release` or at the end of its ``with`` block.
    If it is dropped without being released, it is released with a ``ResourceWarning``, as a :class:`Lease` is.
    """

    __slots__ = ("_leases", "endpoint", "handle", "key", "members")

    def __init__(self, leases: list[Lease], members: tuple[StackMember, ...]) -> None:
        # Of the base, and of the members in their order.
        self._leases = leases
        self.endpoint: ModelEndpoint = leases[0].endpoint
        self.handle: Any = leases[0].handle
        self.members: tuple[StackMember, ...] = members
        self.key: tuple[str, int, tuple[tuple[str, int, float], ...]] = (
            self.endpoint.id.value,
            leases[0].generation,
            tuple((member.adapter.id.value, member.generation, member.weight) for member in members),
        )

    def release(self) -> None:
        """End the use of the base and of all adapters. Releasing again does nothing. Never waits."""
        # If a callback of one lease's end raises, the others are released all the same.
        with ExitStack() as releases:
            for lease in self._leases:
                releases.callback(lease.release)

    def __enter__(self) -> "StackLease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<StackLease of '{self.endpoint.id}' members={len(self.members)}>"


def lease_stack(store: Store, base: str | None, refs: list[AdapterRef], required_context: int | None) -> StackLease:
    """Lease the base of that id or alias, or the default, and the adapters that *refs* name. Needs the store's lock."""
    record = store.directory.find(base)
    if record is None:
        raise NoModelsAvailableError if base is None else ModelNotFoundError(base)
    if base is not None and required_context is not None and record.is_ready:
        # Another target of an alias may have room for what does not fit into the first.
        record = find_record(store.directory, base, required_context)
    # Errors say the name that was requested, so that a client does not see the id behind an alias.
    shown = record.id if base is None else base
    if record.endpoint.adapter is not None:
        raise AdapterBaseError(shown, shown, "it is an adapter's endpoint, not a base")
    record.require_ready(base)
    # Everything is checked before the first lease, so an error leaves nothing leased.
    found = [_member(store.directory, record.id, ref.name, shown) for ref in refs]
    records = [record, *(member for member, _ in found)]
    shortest = min(records, key=lambda each: each.endpoint.max_context_length)
    if required_context is not None and required_context > shortest.endpoint.max_context_length:
        raise ContextTooLongError(shortest.id, required_context, shortest.endpoint.max_context_length)
    leases = [Lease(each, each.id, store.ledger) for each in records]
    members = tuple(
        StackMember(adapter, ref.weight, member.generation, member.handle)
        for (member, adapter), ref in zip(found, refs, strict=True)
    )
    return StackLease(leases, members)


def _member(directory: Directory, base: str, name: str, shown: str) -> tuple[Record, LoraAdapter]:
    """Return the ready adapter on *base* with that name or id, and its record.

    Raise an error, which shows the base as *shown*, when there is none.
    """
    for record in _candidates(directory, base, name):
        if record is not None and record.adapter is not None:
            if record.adapter.base_model != base:
                other = f"'{record.adapter.base_model}'" if shown == base else "another base"
                raise AdapterBaseError(name, shown, f"it is loaded on {other}")
            record.require_ready(f"{shown}:{record.adapter.name}")
            return record, record.adapter
    raise ModelNotFoundError(name if name.startswith(f"{base}:") else f"{shown}:{name}")


def _candidates(directory: Directory, base: str, name: str) -> Iterator[Record | None]:
    yield directory.find_id(f"{base}:{name}")
    yield directory.find_id(name)
    # An adapter on another base makes the error say so.
    for record in directory.all_records():
        if record.adapter is not None and record.adapter.name == name:
            yield record
