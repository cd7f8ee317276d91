"""Leases: which endpoints are in use, and the wait for the last use of one that was replaced or removed.

Theory of operation
-------------------

A registry gives every endpoint that it publishes a *generation*, a number that it never uses again.
The ledger counts leases by generation, so it does not matter what has become of the endpoint meanwhile.
A generation that leaves the registry while it is leased *drains*: its last release completes its future, if any.

Releasing never waits, because it may happen anywhere: in another thread, in a signal handler, or in a finalizer that
the garbage collector runs while this very thread holds the lock.
So it is counted down at once only if the lock is free.
Otherwise the lease is put into ``returned``, where the holder of the lock looks after letting go.
"""

import warnings
from collections import deque
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from types import TracebackType

from bonsai_routing._futures import futures
from bonsai_routing.endpoint import ModelEndpoint
from bonsai_routing.model_id import ModelId

__all__ = ["DrainingEndpoint", "Lease"]


class Lease:
    """One use of an endpoint, from :meth:`ModelRouter.lease` until :meth:`release` or the end of its ``with`` block.

    ``endpoint`` is what was leased, as it was then, and ``requested`` the name by which it was requested, ``None`` for
    the default.
    ``generation`` is the number of the endpoint's publication.
    No other endpoint ever has it in this registry, not even a later one of the same id; a change of status keeps it.
    So it is what a cache of weights or prefixes should be keyed by.

    A lease may be released in any thread.
    One that is dropped without being released is released when it is collected, with a ``ResourceWarning``.
    """

    __slots__ = ("_ledger", "endpoint", "generation", "requested")

    def __init__(
        self, endpoint: ModelEndpoint, requested: ModelId | str | None, generation: int, ledger: "Ledger"
    ) -> None:
        # Counted from the start; the ledger's lock must be held.
        ledger.leases[generation] = ledger.leases.get(generation, 0) + 1
        self.endpoint: ModelEndpoint = endpoint
        self.requested: ModelId | str | None = requested
        self.generation: int = generation
        # Who counts this lease; None once it has been counted down.
        self._ledger: Ledger | None = ledger

    def release(self) -> None:
        """End the use of the endpoint. Releasing again does nothing. Never waits."""
        ledger = self._ledger
        if ledger is not None:
            if ledger.lock.acquire(False):
                try:
                    ledger.end(self)
                finally:
                    ledger.lock.release()
            else:
                ledger.returned.append(self)
            if ledger.returned or ledger.idle:
                ledger.settle()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        if self._ledger is not None:
            self.release()
            message = f"a lease of '{self.endpoint.id}' was dropped without being released"
            warnings.warn(message, ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        state = "released" if self._ledger is None else "held"
        return f"<Lease of '{self.endpoint.id}' generation={self.generation} {state}>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Lease cannot be copied or pickled: it is counted once")


@dataclass(frozen=True, slots=True)
class DrainingEndpoint:
    """An endpoint that was replaced or removed and is still leased.

    ``leases`` is how many leases of it are held, and ``seconds`` how long ago it was replaced or removed.
    """

    endpoint: ModelEndpoint
    generation: int
    leases: int
    seconds: float


class _Drain:
    """A generation that has left the registry, and the future that waits for its last lease, if any does."""

    __slots__ = ("endpoint", "future", "since")

    def __init__(self, endpoint: ModelEndpoint, future: "futures.Future[ModelEndpoint | None] | None") -> None:
        self.endpoint = endpoint
        self.future = future
        self.since = monotonic()


class Ledger:
    """Counts the leases of one registry, and owns the registry's lock."""

    __slots__ = ("_drains", "idle", "leases", "lock", "returned")

    def __init__(self) -> None:
        # Protects the registry's directory against a second writer, and everything below but ``returned``. It is held
        # while an endpoint is found and counted, which makes the two one step. No code of a user's runs under it.
        self.lock: Lock = Lock()
        # How many leases of a generation are held, where any is.
        self.leases: dict[int, int] = {}
        # Released leases that are not counted down yet. Anybody may append; only who holds the lock takes out.
        self.returned: deque[Lease] = deque()
        # The generations that are gone and still leased.
        self._drains: dict[int, _Drain] = {}
        # Those whose last lease has ended, until the lock is let go.
        self.idle: list[_Drain] = []

    def settle(self) -> None:
        """Count down what was returned, and complete what waited for it.

        Everybody who held the lock does this next; if somebody else holds it by then, that one will.
        """
        while (self.returned or self.idle) and self.lock.acquire(False):
            try:
                self._count_down()
                idle, self.idle = self.idle, []
            finally:
                self.lock.release()
            if idle:
                _complete(idle)

    def in_flight(self, generation: int) -> int:
        """Return how many leases of a generation are held. The lock must be held."""
        self._count_down()
        return self.leases.get(generation, 0)

    def leave(
        self,
        generation: int,
        endpoint: ModelEndpoint,
        future: "futures.Future[ModelEndpoint | None] | None" = None,
    ) -> None:
        """Let a generation drain that leaves the registry. The lock must be held."""
        # What was returned and is not counted down yet will be when the lock is let go.
        if generation in self.leases:
            self._drains[generation] = _Drain(endpoint, future)
        elif future is not None:
            # Nobody else has this future yet, so it has no callbacks that could run here.
            future.set_result(endpoint)

    def draining(self) -> list[DrainingEndpoint]:
        """Return what is gone and still leased, in the order in which it went. The lock must be held."""
        self._count_down()
        now = monotonic()
        return [
            DrainingEndpoint(drain.endpoint, generation, self.leases[generation], now - drain.since)
            for generation, drain in self._drains.items()
        ]

    def end(self, lease: Lease) -> None:
        """Count a lease down, unless that has been done. The lock must be held."""
        if lease._ledger is not None:
            lease._ledger = None
            generation = lease.generation
            left = self.leases[generation] - 1
            if left:
                self.leases[generation] = left
            else:
                del self.leases[generation]
                if generation in self._drains:
                    self.idle.append(self._drains.pop(generation))

    def _count_down(self) -> None:
        while self.returned:
            self.end(self.returned.popleft())


def _complete(drains: list[_Drain]) -> None:
    """Complete the futures that wait for *drains*, all of them, even if a callback stops the program."""
    failure: BaseException | None = None
    for drain in drains:
        try:
            if drain.future is not None and drain.future.set_running_or_notify_cancel():
                drain.future.set_result(drain.endpoint)
        except BaseException as error:
            failure = error
    if failure is not None:
        raise failure
