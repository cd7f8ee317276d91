"""Leases of a base together with a stack of LoRA adapters."""

from dataclasses import dataclass
from types import TracebackType

from bonsai_routing.endpoint import ModelEndpoint
from bonsai_routing.leases import Lease, Ledger
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

    __slots__ = ("_leases", "_ledger", "endpoint", "key", "members")

    def __init__(self, leases: list[Lease], members: tuple[StackMember, ...], ledger: Ledger) -> None:
        self._leases = leases
        self._ledger = ledger
        self.endpoint: ModelEndpoint = leases[0].endpoint
        self.members: tuple[StackMember, ...] = members
        self.key: tuple[str, int, tuple[tuple[str, int, float], ...]] = (
            self.endpoint.id.value,
            leases[0].generation,
            tuple((member.adapter.id.value, member.generation, member.weight) for member in members),
        )

    def release(self) -> None:
        """End the use of the base and of all adapters. Releasing again does nothing. Never waits."""
        self._ledger.returned.extend(self._leases)
        self._ledger.settle()

    def __enter__(self) -> "StackLease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<StackLease of '{self.endpoint.id}' members={len(self.members)}>"
