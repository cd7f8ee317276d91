"""Leases of a base together with a stack of LoRA adapters."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

from bonsai_routing._directory import Directory, Record
from bonsai_routing._store import Store
from bonsai_routing.adapters import AdapterRef
from bonsai_routing.endpoint import ModelEndpoint
from bonsai_routing.errors import AdapterBaseError, ModelNotFoundError
from bonsai_routing.leases import Lease
from bonsai_routing.lora import LoraAdapter

__all__ = ["StackLease", "StackMember"]


@dataclass(frozen=True, slots=True)
class StackMember:
    """An adapter of a :class:`StackLease`, its weight, and the generation that was leased."""

    adapter: LoraAdapter
    weight: float
    generation: int


class StackLease:
    """A base and the adapters of a stack, leased together by :meth:`AdapterRegistry.lease_stack`.

    ``endpoint`` is the base's endpoint, and ``members`` are the adapters in the order of the stack.
    ``key`` is a hashable value that differs whenever the base, the order, a generation or a weight differs.
    Use it as the key of a cache of blended weights.

    The lease ends with :meth:`release` or at the end of its ``with`` block.
    If it is dropped without being released, it is released with a ``ResourceWarning``, as a :class:`Lease` is.
    """

    __slots__ = ("_leases", "endpoint", "key", "members")

    def __init__(self, leases: list[Lease], members: tuple[StackMember, ...]) -> None:
        # Of the base, and of the members in their order.
        self._leases = leases
        self.endpoint: ModelEndpoint = leases[0].endpoint
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


def lease_stack(store: Store, base: str, refs: list[AdapterRef]) -> StackLease:
    """Lease the base of that id or alias and the adapters that *refs* name. Needs the store's lock."""
    record = store.directory.find(base)
    if record is None:
        raise ModelNotFoundError(base)
    if record.endpoint.adapter is not None:
        raise AdapterBaseError(record.id, base, "it is an adapter's endpoint, not a base")
    record.require_ready()
    # Everything is checked before the first lease, so an error leaves nothing leased.
    found = [_member(store, record.id, ref.name) for ref in refs]
    leases = [Lease(each, each.id, store.ledger, store.owner) for each in (record, *(member for member, _ in found))]
    members = tuple(
        StackMember(adapter, ref.weight, member.generation) for (member, adapter), ref in zip(found, refs, strict=True)
    )
    return StackLease(leases, members)


def _member(store: Store, base: str, name: str) -> tuple[Record, LoraAdapter]:
    """Return the ready adapter on *base* with that name or id, and its record. Raise an error when there is none."""
    for record in _candidates(store.directory, base, name):
        if record is not None and isinstance(record.adapter, LoraAdapter):
            if record.adapter.base_model != base:
                raise AdapterBaseError(name, base, f"it is loaded on '{record.adapter.base_model}'")
            record.require_ready()
            return record, record.adapter
    raise ModelNotFoundError(name if name.startswith(f"{base}:") else f"{base}:{name}")


def _candidates(directory: Directory, base: str, name: str) -> Iterator[Record | None]:
    yield directory.find_id(f"{base}:{name}")
    yield directory.find_id(name)
    # An adapter on another base makes the error say so.
    for record in directory.all_records():
        if isinstance(record.adapter, LoraAdapter) and record.adapter.name == name:
            yield record
