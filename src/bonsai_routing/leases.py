"""Leases: which endpoints are in use, and when the last use of a replaced or removed endpoint has ended.

Theory of operation
-------------------

A registry gives every endpoint that it publishes a *generation*, a number that it never uses again.
The ledger counts leases by generation, so a lease stays counted whatever happens to the endpoint meanwhile.
A generation that leaves the registry while it is leased *drains*; when its last lease ends, it is *idle*, and its
future is completed.

A lease is added with the store's lock held, and only to a generation that is in the registry.
So the leases of a generation that drains can only become fewer, and "drains and has no lease" is final.
That is why a release needs no lock: it removes its lease in one step, then looks whether the generation drains, and
then whether leases are left.
A write does the same the other way round: it notes that the generation drains, and then looks whether leases are left.
One of the two comes second and sees that the generation is idle; if both do, the future is completed once.

Releasing may therefore happen anywhere: in another thread, in a signal handler, or in a finalizer that the garbage
collector runs while this very thread holds the lock.
"""

import warnings
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock, get_ident
from time import monotonic
from types import TracebackType

from bonsai_routing._directory import Record
from bonsai_routing.endpoint import ModelEndpoint
from bonsai_routing.model_id import ModelId

__all__ = ["DrainingEndpoint", "Lease"]


class Lease:
    """One use of an endpoint, from :meth:`ModelRouter.lease` until :meth:`release` or the end of its ``with`` block.

    ``endpoint`` is the endpoint as it was when it was leased.
    ``requested`` is the name that was requested, ``None`` for the default.
    ``generation`` is the number of the endpoint's publication.
    No other publication in this registry has it, not even a later one of the same id; a change of status keeps it.
    So it is a good key for a cache of weights or prefixes.

    A lease may be released in any thread.
    A lease that is dropped without being released is released when it is garbage-collected, with a ``ResourceWarning``.
    """

    __slots__ = ("_held", "_ledger", "endpoint", "generation", "requested")

    def __init__(self, record: Record, requested: ModelId | str | None, ledger: "Ledger", thread: int) -> None:
        self.endpoint: ModelEndpoint = record.endpoint
        self.generation: int = record.generation
        self.requested: ModelId | str | None = requested
        self._ledger = ledger
        # The leases of this generation; None after the release.
        self._held: dict[int, int] | None = ledger.held.setdefault(record.generation, {})
        # The lease counts from here on.
        self._held[id(self)] = thread

    def release(self) -> None:
        """End the use of the endpoint. Releasing again does nothing. Never waits."""
        held, ledger = self._held, self._ledger
        if held is not None:
            if ledger.drains:
                # If an exception cuts this call short, the next one sees to the generation.
                ledger.ending.add(self.generation)
            held.pop(id(self), None)
            if ledger.drains:
                ledger.end(self.generation)
            self._held = None
        if ledger.ending:
            ledger.settle()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        try:
            held = self._held
        except AttributeError:
            # An exception ended __init__ before the lease was counted.
            return
        if held is not None:
            self.release()
            message = f"a lease of '{self.endpoint.id}' was dropped without being released"
            warnings.warn(message, ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        state = "released" if self._held is None else "held"
        return f"<Lease of '{self.endpoint.id}' generation={self.generation} {state}>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Lease cannot be copied or pickled: it is counted once")


@dataclass(frozen=True, slots=True)
class DrainingEndpoint:
    """An endpoint that was replaced or removed and is still leased.

    ``leases`` is the number of leases held on it, and ``seconds`` the time since it was replaced or removed.
    """

    endpoint: ModelEndpoint
    generation: int
    leases: int
    seconds: float


IdleFuture = Future[ModelEndpoint | None]


def idle_future() -> IdleFuture:
    """Return a future that cannot be cancelled, so that its callbacks run when an endpoint is idle and never before."""
    future: IdleFuture = Future()
    future.set_running_or_notify_cancel()
    return future


def complete(future: IdleFuture | None, endpoint: ModelEndpoint | None) -> None:
    """Complete a future, unless there is none or it is done."""
    if future is not None and not future.done():
        # Another thread may complete it at the same time.
        with suppress(InvalidStateError):
            future.set_result(endpoint)


class Drain:
    """A generation that has left the registry while it was leased, and the future that waits for its last lease."""

    __slots__ = ("endpoint", "future", "generation", "since")

    def __init__(self, record: Record, future: IdleFuture | None) -> None:
        self.endpoint: ModelEndpoint = record.endpoint
        self.generation: int = record.generation
        self.future: IdleFuture | None = future
        self.since: float = monotonic()


class Ledger:
    """The leases of one registry by generation, and the generations that drain.

    An exception may cut any method short: calling it again carries it out.
    """

    __slots__ = ("drains", "ending", "held", "idle", "settling")

    def __init__(self) -> None:
        # The leases of each generation that has been leased: the thread that took a lease, by the lease's id().
        self.held: dict[int, dict[int, int]] = {}
        # The generations that are gone and still leased, oldest first.
        self.drains: dict[int, Drain] = {}
        # The generations to look at: a lease of them is about to end or has ended, or their future is not done yet.
        self.ending: set[int] = set()
        # The generations whose last lease has ended, until their futures are done.
        self.idle: dict[int, Drain] = {}
        # For each thread that is completing futures, a lock that it holds meanwhile.
        self.settling: dict[int, Lock] = {}

    def leave(self, record: Record, future: IdleFuture | None) -> None:
        """Start draining a generation that leaves the registry; if it is not leased, complete *future* at once.

        Needs the store's lock. No other code has *future* yet, so it has no callbacks that could run here.
        """
        generation = record.generation
        if generation in self.held:
            self.drains.setdefault(generation, Drain(record, future))
            if self.held.get(generation):
                return
            self.drains.pop(generation, None)
            self.held.pop(generation, None)
        complete(future, record.endpoint)

    def in_flight(self, generation: int | None) -> int:
        """Return the number of leases held on a generation; 0 for ``None``."""
        return 0 if generation is None else len(self.held.get(generation, ()))

    def draining(self) -> list[DrainingEndpoint]:
        """Return the generations that are gone and still leased, oldest first."""
        now = monotonic()
        found = [
            DrainingEndpoint(drain.endpoint, drain.generation, self.in_flight(drain.generation), now - drain.since)
            # Copied in one step, so no other thread changes the dictionary meanwhile.
            for drain in [*self.drains.values()]
        ]
        return [each for each in found if each.leases]

    def end(self, generation: int) -> None:
        """Note that a lease has ended: if its generation drains and has no lease left, it is idle now."""
        drain = self.drains.get(generation)
        # In this order: once the generation drains, no lease is added.
        if drain is not None and not self.held.get(generation):
            self.ending.add(generation)
            self.idle[generation] = drain
            self.drains.pop(generation, None)
            self.held.pop(generation, None)
        elif generation not in self.idle:
            self.ending.discard(generation)

    def settle(self) -> None:
        """Complete the futures of all idle generations, which runs their callbacks.

        A callback may end the last lease of another generation. That call of this method returns at once, and the outer
        one goes on, so a chain of callbacks of any length needs no deeper stack.
        An exception that gets out of a callback is raised again when the other futures are done.
        """
        thread = get_ident()
        lock = self.settling.setdefault(thread, Lock())
        if lock.locked():
            return
        failure: BaseException | None = None
        while self.ending:
            for generation in self.ending.copy():
                self.end(generation)
            with lock:
                failure = self._complete_all() or failure
        self.settling.pop(thread, None)
        if failure is not None:
            raise failure

    def _complete_all(self) -> BaseException | None:
        """Complete the futures of the generations that are idle now, and return the last exception of a callback."""
        failure: BaseException | None = None
        for generation, drain in self.idle.copy().items():
            try:
                _require_stack(_STACK)
                complete(drain.future, drain.endpoint)
            except (MemoryError, RecursionError):
                raise
            except BaseException as error:
                failure = error
            # An entry stays until its future is done.
            if drain.future is None or drain.future.done():  # pragma: no branch
                self.idle.pop(generation, None)
                self.ending.discard(generation)
        return failure

    def keep_leases_of(self, thread: int) -> None:  # pragma: no cover -- runs in forked children alone
        """Forget the leases of all other threads, and every generation that drains for no other lease."""
        for held in self.held.values():
            for lease, owner in [*held.items()]:
                if owner != thread:
                    del held[lease]
        self.drains = {generation: drain for generation, drain in self.drains.items() if self.held.get(generation)}
        self.ending = set()
        self.idle = {}
        self.settling = {}


# More calls than completing a future takes, up to the first call of a callback.
_STACK = 30


def _require_stack(calls: int) -> None:
    """Raise ``RecursionError`` now rather than when a future is done and its callbacks have not been called."""
    if calls:
        _require_stack(calls - 1)
