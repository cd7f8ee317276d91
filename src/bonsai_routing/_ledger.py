"""Which publications are in use, and whom to tell when the last use of one that has gone has ended.

Theory of operation
-------------------

A registry gives every endpoint that it publishes a *generation*, a number that it never uses again.
The ledger counts leases by generation, so a lease stays counted whatever happens to the endpoint meanwhile.
A generation that leaves the registry while it is leased *drains*; when its last lease ends, it is *idle*.
Then ``on_idle`` is called for it, and its future is completed.

A lease is added with the store's lock held, and only to a generation that is in the registry.
So the leases of a generation that drains can only become fewer, and "drains and has no lease" is final.
That is why a release needs no lock: it removes its lease in one step, then looks whether the generation drains, and
then whether leases are left.
A write does the same the other way round: it notes that the generation drains, and then looks whether leases are left.
One of the two comes second and sees that the generation is idle; if both do, it is noted as idle once.

Releasing may therefore happen anywhere: in another thread, in a signal handler, or in a finalizer that the garbage
collector runs while this very thread holds the lock.

What runs code of users (``on_idle`` and the callbacks of futures) is a *notice*.
Notices are told without any lock, each by one thread, by whoever finishes a verb or a release next.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Condition, Lock, RLock, get_ident
from time import monotonic
from typing import Any, Protocol, TypeVar

from bonsai_routing._record import Record
from bonsai_routing.endpoint import ModelEndpoint
from bonsai_routing.errors import RoutingError
from bonsai_routing.lora import LoraAdapter

__all__ = [
    "Completion",
    "Departure",
    "DrainingEndpoint",
    "IdleFuture",
    "Ledger",
    "Notice",
    "OnIdle",
    "Publication",
    "complete",
    "new_future",
]

Result = TypeVar("Result")

_logger = logging.getLogger("bonsai_routing")


@dataclass(frozen=True, slots=True)
class Publication:
    """One publication of an endpoint, as ``on_idle`` of a :class:`ModelRegistry` gets it.

    ``adapter`` is the adapter and ``handle`` the engine's object that were published with the endpoint, or ``None``.
    Comparison ignores the handle.
    No other publication in the registry has the number ``generation``.
    """

    endpoint: ModelEndpoint
    adapter: LoraAdapter | None
    generation: int
    handle: Any = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class DrainingEndpoint:
    """An endpoint that was replaced or removed and is still leased.

    ``leases`` is the number of leases held on it, and ``seconds`` the time since it was replaced or removed.
    """

    endpoint: ModelEndpoint
    generation: int
    leases: int
    seconds: float


OnIdle = Callable[[Publication], object]
IdleFuture = Future[ModelEndpoint | None]


def new_future() -> "Future[Any]":
    """Return a future that cannot be cancelled, so that its callbacks run when it is true and never before."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


def complete(future: "Future[Result] | None", result: Result) -> None:
    """Complete a future, unless there is none or it is done."""
    if future is not None and not future.done():
        # Another thread may complete it at the same time.
        with suppress(InvalidStateError):
            future.set_result(result)


class Notice(Protocol):
    """Something to be told that runs code of users."""

    def tell(self, on_idle: OnIdle | None) -> None:
        """Tell it, unless it has been told. The thread that calls this is the only one that does."""
        ...

    def is_told(self) -> bool:
        """Return whether it need not be told again."""
        ...


class Departure:
    """A publication that leaves the registry, and the notice that it is idle."""

    __slots__ = ("called", "future", "record", "since")

    def __init__(self, record: Record, future: IdleFuture | None = None) -> None:
        self.record: Record = record
        self.future: IdleFuture | None = future
        # Whether the publication was told of, to on_idle if there is one.
        self.called: bool = False
        # When it left the registry, by the monotonic clock.
        self.since: float = 0.0

    def tell(self, on_idle: OnIdle | None) -> None:
        record = self.record
        try:
            if not self.called:
                publication = Publication(record.endpoint, record.adapter, record.generation, record.handle)
                # CPython runs no signal handler between this and the call.
                self.called = True
                if on_idle is not None:
                    on_idle(publication)
        except Exception:
            _logger.exception("on_idle raised for %s", record.endpoint)
        finally:
            complete(self.future, record.endpoint)

    def is_told(self) -> bool:
        return self.called and (self.future is None or self.future.done())


class Completion:
    """The notice that a future is done, with a result or with an error."""

    __slots__ = ("error", "future", "result")

    def __init__(self, future: "Future[Any]", result: object, error: RoutingError | None = None) -> None:
        self.future: Future[Any] = future
        self.result: object = result
        self.error: RoutingError | None = error

    def tell(self, on_idle: OnIdle | None) -> None:
        if self.error is None:
            complete(self.future, self.result)
        else:
            # Another notice, or an attempt that was cut short, may have completed it.
            with suppress(InvalidStateError):
                self.future.set_exception(self.error)

    def is_told(self) -> bool:
        return self.future.done()


class Ledger:
    """The leases of one registry by generation, the generations that drain, and the notices to tell.

    An exception may cut any method short: calling it again carries it out.
    """

    __slots__ = (
        "claims",
        "condition",
        "drains",
        "due",
        "ending",
        "held",
        "lock",
        "on_idle",
        "owner",
        "settling",
        "watchers",
    )

    def __init__(self, on_idle: OnIdle | None) -> None:
        self.on_idle: OnIdle | None = on_idle
        self.renew_lock()
        # The leases of each generation that has been leased: the thread that took a lease, by the lease's id().
        self.held: dict[int, dict[int, int]] = {}
        # The generations that are gone and still leased, oldest first.
        self.drains: dict[int, Departure] = {}
        # Who wants to know of each write, with the argument None, and of each generation that drained and is idle now.
        # They only note that, with tell(). Each change makes a new tuple.
        self.watchers: tuple[Callable[[int | None], None], ...] = ()
        # What to look at: generations of which a lease is about to end or has ended, and the keys of all notices.
        self.ending: set[object] = set()
        # The notices that are to be told, each until it has been: departures by generation, answers to when_ready() by
        # future, and all others by themselves.
        self.due: dict[object, Notice] = {}
        # The thread that tells a notice.
        self.claims: dict[object, int] = {}
        # For each thread that tells notices, a lock that it holds meanwhile.
        self.settling: dict[int, Lock] = {}

    def renew_lock(self) -> None:
        # The store's. Lets one write at a time change the store and what is here. It is also held while an endpoint is
        # found and its lease is added, which makes the two one step. Only Store.run() takes it, and no code of a user's
        # runs while it is held.
        # Reentrant, so that a signal handler which wants it in its holder's thread is told, and does not wait for ever.
        self.lock: RLock = RLock()
        # Nobody waits for it. It knows whether this thread holds the lock.
        self.condition: Condition = Condition(self.lock)
        # The thread that is at work under the lock; 0 while none is, unless an exception cut the end of the work short.
        self.owner: int = 0

    def is_at_work(self) -> bool:
        """Return whether this thread holds the lock."""
        try:
            self.condition.notify()
        except RuntimeError:
            return False
        return True

    def leave(self, departure: Departure) -> None:
        """Start draining a publication that leaves the registry; if it is not leased, complete its future at once.

        Needs the store's lock. No other code has the future yet, so it has no callbacks that could run here.
        """
        generation = departure.record.generation
        if generation in self.held or self.on_idle is not None:
            departure.since = monotonic()
            self.drains.setdefault(generation, departure)
            if self.held.get(generation):
                return
            self.ending.add(generation)
        complete(departure.future, departure.record.endpoint)

    def in_flight(self, generation: int | None) -> int:
        """Return the number of leases held on a generation; 0 for ``None``."""
        return 0 if generation is None else len(self.held.get(generation, ()))

    def draining(self) -> list[DrainingEndpoint]:
        """Return the generations that are gone and still leased, oldest first."""
        now = monotonic()
        found = [
            DrainingEndpoint(each.record.endpoint, generation, self.in_flight(generation), now - each.since)
            # Copied in one step, so no other thread changes the dictionary meanwhile.
            for generation, each in self.drains.copy().items()
        ]
        return [each for each in found if each.leases]

    def end(self, generation: object) -> None:
        """Note that a lease has ended: if its generation drains and has no lease left, it is idle now."""
        departure = self.drains.get(generation)  # type: ignore[call-overload]
        # In this order: once the generation drains, no lease is added.
        if departure is not None and not self.held.get(generation):  # type: ignore[call-overload]
            self.tell(generation, departure)
            self.notify(departure.record.generation)
            self.drains.pop(generation, None)  # type: ignore[call-overload]
            self.held.pop(generation, None)  # type: ignore[call-overload]
        elif generation not in self.due:
            self.ending.discard(generation)

    def notify(self, generation: int | None) -> None:
        """Let the watchers know of a generation that is idle now or, with ``None``, of a write."""
        for watch in self.watchers:
            watch(generation)

    def tell(self, key: object, notice: Notice) -> None:
        """Have a notice told by the next call of ``settle``."""
        self.ending.add(key)
        self.due[key] = notice

    def settle(self) -> None:
        """Tell all notices, which runs code of users.

        That code may end the last lease of another generation. That call of this method returns at once, and the outer
        one goes on, so a chain of callbacks of any length needs no deeper stack.
        A release in the middle of a write in the same thread leaves the notices to the end of the write.
        An exception that gets out of a callback is raised again when the other notices have been told.
        """
        thread = get_ident()
        lock = self.settling.setdefault(thread, Lock())
        if lock.locked() or (self.owner == thread and self.is_at_work()):
            return
        failures: list[BaseException] = []
        progress = True
        while progress:
            for key in self.ending.copy():
                self.end(key)
            with lock:
                told = [self._tell(key, thread, failures) for key in self.due.copy()]
            progress = any(told)
        self.settling.pop(thread, None)
        if failures:
            raise failures[-1]

    def _tell(self, key: object, thread: int, failures: list[BaseException]) -> bool:
        """Tell one notice, unless another thread is telling it; return whether that is done."""
        try:
            if self.claims.setdefault(key, thread) != thread:
                return False
            notice = self.due.get(key)
            if notice is None:
                return False
            _require_stack(_STACK)
            try:
                notice.tell(self.on_idle)
            except BaseException as error:
                failures.append(error)
            # A notice stays until it has been told.
            if not notice.is_told():  # pragma: no cover
                return False
            self.due.pop(key, None)
            self.ending.discard(key)
            return True
        finally:
            if self.claims.get(key) == thread:
                self.claims.pop(key, None)

    def keep_leases_of(self, thread: int) -> None:  # pragma: no cover -- runs in forked children alone
        """Forget the leases of all other threads, and every generation that drains for no other lease."""
        for held in self.held.values():
            for lease, owner in [*held.items()]:
                if owner != thread:
                    del held[lease]
        self.drains = {generation: each for generation, each in self.drains.items() if self.held.get(generation)}
        self.ending = set()
        self.due = {}
        self.claims = {}
        self.settling = {}


# More calls than telling a notice takes, up to the first call of a callback.
_STACK = 30


def _require_stack(calls: int) -> None:
    """Raise ``RecursionError`` now rather than when a future is done and its callbacks have not been called."""
    if calls:
        _require_stack(calls - 1)
