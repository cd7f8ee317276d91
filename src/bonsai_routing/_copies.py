"""The copies of models in memory, as a loader keeps them, and the notices that load and unload them."""

import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any
from weakref import ref

from bonsai_routing._ledger import OnIdle, new_future
from bonsai_routing._record import Record
from bonsai_routing.leases import Lease

__all__ = ["Call", "Copy", "Due", "Hold"]


class Hold(Lease):
    """A lease that something in memory holds on what it needs there."""

    __slots__ = ()

    def __del__(self) -> None:
        # No warning: the loader and its registry are being collected.
        pass


class Copy:
    """The weights of one publication: wanted, being loaded, loaded, or being unloaded."""

    __slots__ = (
        "base",
        "cost",
        "generation",
        "handle",
        "id",
        "is_loaded",
        "load",
        "loaded",
        "record",
        "unload",
        "used_at",
        "waiting",
    )

    def __init__(self, record: Record, cost: float) -> None:
        self.id: str = record.id
        self.generation: int = record.generation
        # The latest record of the publication.
        self.record: Record = record
        self.cost: float = cost
        # The calls of the user's functions, from the moment when each may begin.
        self.load: Call | None = None
        self.unload: Call | None = None
        # Whether load has succeeded and the handle is published.
        self.is_loaded: bool = False
        self.handle: object = None
        # While an adapter has room, a lease of its base.
        self.base: Lease | None = None
        # By the monotonic clock.
        self.used_at: float = time.monotonic()
        # For those who wait until it is loaded: a future for each name that was requested, because an error says the
        # name, and the leases whose handles are to be set then, by id().
        self.loaded: dict[str | None, Future[None]] = {}
        self.waiting: dict[int, ref[Lease]] = {}

    def is_answered(self) -> bool:
        """Return whether nobody waits for an answer."""
        return all(future.done() for future in self.loaded.values())


class Call:
    """The notice that a function of the user's may be called, and the future that it has returned."""

    __slots__ = ("arguments", "called", "function", "is_watched", "on_done", "running")

    def __init__(
        self,
        function: Callable[..., Future[Any]],
        arguments: tuple[object, ...],
        on_done: "Callable[[Future[Any]], None]",
    ) -> None:
        self.function: Callable[..., Future[Any]] = function
        self.arguments: tuple[object, ...] = arguments
        self.on_done: Callable[[Future[Any]], None] = on_done
        self.called: bool = False
        self.running: Future[Any] | None = None
        # Whether the end of the future makes a plan due.
        self.is_watched: bool = False

    def tell(self, on_idle: OnIdle | None) -> None:
        try:
            if not self.called:
                self.called = True
                running = self.function(*self.arguments)
                if not isinstance(running, Future):
                    raise TypeError(f"load and unload must return a concurrent.futures.Future, not {running!r}")
                self.running = running
        except BaseException as error:
            self.running = _failed(error)
            if not isinstance(error, Exception):
                raise
        finally:
            if self.running is None:  # pragma: no cover -- coverage does not see tests/test_loading_stress.py here
                # An exception came between the call and keeping its future.
                self.running = _failed(InterruptedError("the call was interrupted"))
            self.running.add_done_callback(self.on_done)
            self.is_watched = True

    def is_told(self) -> bool:
        return self.is_watched

    def is_done(self) -> bool:
        return self.running is not None and self.running.done()

    def error(self) -> BaseException | None:
        """Return what the call has failed with; ``None`` if it has not. For a call that is done."""
        assert self.running is not None
        try:
            return self.running.exception()
        except CancelledError as error:
            return error

    def result(self) -> object:
        """Return the result of a call that is done and has not failed."""
        assert self.running is not None
        return self.running.result()


class Due:
    """The notice that a loader has something to do."""

    __slots__ = ("advance", "has_begun", "is_done")

    def __init__(self, advance: Callable[[], None]) -> None:
        self.advance: Callable[[], None] = advance
        self.has_begun: bool = False
        self.is_done: bool = False

    def tell(self, on_idle: OnIdle | None) -> None:
        # What happens from here on needs another plan.
        self.has_begun = True
        self.advance()
        self.is_done = True

    def is_told(self) -> bool:
        return self.is_done


def _failed(error: BaseException) -> "Future[Any]":
    future = new_future()
    future.set_exception(error)
    return future
